//! Rules of `trust/`: who may sign, and that somebody can.
//!
//! What is an error here is one to every node as well, which refuses the commit. PURE. Never: an opinion about a signature.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::fleet::load::Document;
use crate::fleet::problem::{Problem, Severity};
use crate::fleet::rule;
use crate::fleet::schema::{PolicyFile, PrincipalRole};
use crate::fleet::tree::Tree;
use crate::trust::policy::is_glob;
use crate::trust::signers::Signers;

const SIGNERS: &str = "trust/allowed_signers";

/// `policy`: `None` if it is not there, or cannot be read, which is told already.
pub(in crate::fleet) fn trust(tree: &Tree, document: &Document<'_>, policy: Option<&PolicyFile>) -> Vec<Problem> {
    let text = tree.get(SIGNERS).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
    let (signers, mut problems) = match Signers::parse(&text) {
        Ok(signers) => (Some(signers), Vec::new()),
        Err(wrong) => {
            let problem = |said: crate::trust::signers::SignersProblem| {
                let title = "a line does not say which key is whose".to_owned();
                Problem::error(rule::SIGNERS_LINE, SIGNERS, title).at(line(&text, said.line), said.what)
            };
            (None, wrong.into_iter().map(problem).collect())
        }
    };
    let Some(policy) = policy else { return problems };
    let principal = |name: &str| ["principals".to_owned(), name.to_owned()];
    for (name, said) in &policy.principals {
        for (index, glob) in said.paths.iter().enumerate().filter(|(_, glob)| !is_glob(glob)) {
            let title = format!("{glob:?} is no pattern of paths");
            let span = document.value(&["principals", name, "paths", &index.to_string()]);
            let problem = document.error(rule::BAD_PATTERN, title);
            problems.push(problem.at(span, "as in \"**\", \"roles/kafka/**\", \"environments/*/variables.toml\""));
        }
    }
    for (index, key) in policy.banned.keys.iter().enumerate() {
        if key.parse::<ssh_key::Fingerprint>().is_err() {
            let span = document.value(&["banned", "keys", &index.to_string()]);
            let problem = document.error(rule::BAD_FINGERPRINT, format!("{key:?} is no fingerprint of a key"));
            problems.push(problem.at(span, "as `ssh-keygen -lf KEY.pub` shows it: SHA256:…"));
        }
    }
    let Some(signers) = signers else { return problems };
    let with_key: BTreeSet<&str> = signers.iter().map(|(_, principal)| principal).collect();
    for name in policy.principals.keys().filter(|name| !with_key.contains(name.as_str())) {
        let path = principal(name);
        let problem = document.warning(rule::PRINCIPAL_WITHOUT_KEY, format!("{name} has no key, and cannot sign"));
        let span = document.key(&[&path[0], &path[1]]);
        problems.push(super::or_else(
            problem.at(span, format!("{SIGNERS} does not name it")),
            "principals with a key",
            name,
            with_key.iter().copied(),
        ));
    }
    for name in with_key.iter().filter(|name| !policy.principals.contains_key(**name)) {
        let at = text.lines().position(|line| line.split_whitespace().next() == Some(name)).map_or(1, |at| at + 1);
        let problem =
            Problem::warning(rule::KEY_WITHOUT_PRINCIPAL, SIGNERS, format!("the key of {name} may sign nothing"));
        let problem = problem.at(line(&text, at), "trust/policy.toml does not name this principal");
        let known = policy.principals.keys().map(String::as_str);
        problems.push(super::or_else(problem, "principals", name, known));
    }
    let roots = signers.iter().filter(|(key, principal)| {
        let known = policy.principals.get(*principal);
        known.is_some_and(|known| known.roles.contains(&PrincipalRole::Root))
            && !policy.banned.keys.iter().any(|ban| ban == key)
    });
    if roots.count() == 0 {
        let title = "no key that is not banned belongs to a principal with role root";
        let problem = document.error(rule::NO_ROOT_KEY, title);
        // A template, which waits for its founder.
        let nobody = with_key.is_empty() && policy.principals.is_empty();
        problems.push(if nobody { Problem { severity: Severity::Warning, ..problem } } else { problem });
    }
    problems
}

/// Where a line stands (1-based).
fn line(text: &str, number: usize) -> Range<usize> {
    let start = text.split_inclusive('\n').take(number - 1).map(str::len).sum();
    let length = text[start..].lines().next().map_or(0, str::len);
    start..start + length
}
