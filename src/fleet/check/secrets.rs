//! Rules of secrets: who is granted what, who it is encrypted to, and what lies about unencrypted.
//!
//! All of it without a private key. PURE. Never: shows a line in which a key was found.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use super::{Check, Within, is_sha256};
use crate::fleet::load::Document;
use crate::fleet::problem::Problem;
use crate::fleet::tree::Tree;
use crate::fleet::{Fleet, Node, rule};
use crate::name::{NodeName, SecretName};
use crate::secrets::cover::{Cover, Gap};

/// Private keys that stand unencrypted anywhere in the tree, and `.age` files that are none.
pub fn plaintext(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, bytes) in &tree.files {
        if path.as_str().ends_with(".age") {
            if !is_age(bytes) {
                let title = format!("{path} is not encrypted");
                problems.push(Problem::error(rule::NOT_ENCRYPTED, path.clone(), title));
            }
        } else if let Some(line) = private_key(bytes) {
            let title = format!("line {line} has a private key");
            let problem = Problem::error(rule::PLAINTEXT_SECRET, path.clone(), title);
            problems.push(problem.help("history keeps it: replace the key, encrypt its successor"));
        }
    }
    problems
}

/// Files that are encrypted to more or fewer than `secrets.toml` says with the right digest: somebody made them by hand.
///
/// For people only: a node finds out by itself whether it can open its own.
pub fn miscounted(fleet: &Fleet) -> Vec<Problem> {
    let cover = Cover::of(&fleet.environment);
    let secrets = fleet.environment.secrets.values();
    let gaps = secrets.filter_map(|secret| {
        let gap = cover.gap(secret, fleet.tree.get(secret.path.as_str())?).filter(|gap| gap.vouched)?;
        let rule = if gap.is_stale() { rule::STALE_RECIPIENT } else { rule::SECRET_RECIPIENTS };
        let title = format!("{} is {}", secret.path, gap.counts());
        let problem = Problem::error(rule, secret.path.clone(), title);
        let problem = gap.sentences().into_iter().fold(problem, Problem::note);
        Some(problem.help(format!("`converger secret rekey {}`", secret.name)))
    });
    gaps.collect()
}

fn is_age(bytes: &[u8]) -> bool {
    bytes.starts_with(b"age-encryption.org/v1") || bytes.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----")
}

/// The line (1-based) of the first private key: age's own, or anything armored that calls itself one.
fn private_key(bytes: &[u8]) -> Option<usize> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => std::borrow::Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    };
    // Talking about keys is no key: age's go on for 58 characters, armor has its dashes.
    let age = |rest: &str| rest.bytes().take_while(u8::is_ascii_alphanumeric).count() >= 40;
    let armor = |before: &str| before.rsplit('\n').next().is_some_and(|line| line.contains("-----BEGIN "));
    let found = [
        text.match_indices("AGE-SECRET-KEY-1").find(|(at, key)| age(&text[at + key.len()..])),
        text.match_indices("PRIVATE KEY-----").find(|(at, _)| armor(&text[..*at])),
    ];
    let at = found.into_iter().flatten().map(|(at, _)| at).min()?;
    Some(1 + text[..at].matches('\n').count())
}

impl<'a> Check<'a, '_> {
    pub(super) fn secrets(&mut self) {
        let environment = &self.fleet.environment;
        let document = &self.documents.secrets;
        let mut without_key: BTreeMap<&NodeName, Vec<&SecretName>> = BTreeMap::new();
        let mut files: BTreeMap<String, &SecretName> = BTreeMap::new();
        for (name, secret) in &environment.secrets {
            let path = |key: &'static str| ["secrets", name.as_str(), key];
            self.name(document, &["secrets", name.as_str()], "secret", name.as_str());
            self.selector(document, &path("grant"), &secret.grant, Within::Environment);
            match self.fleet.tree.get(secret.path.as_str()) {
                None => {
                    let problem = document
                        .error(rule::SECRET_MISSING_FILE, format!("secret {name} has no file"))
                        .at(document.key(&["secrets", name.as_str()]), format!("no {}", secret.path));
                    let verb = if secret.generate.is_some() { "generate" } else { "encrypt" };
                    self.problems.push(problem.help(format!("`converger secret {verb} {name}` makes it")));
                }
                Some(_) if !is_sha256(&secret.sha256) => {
                    let problem = document.error(rule::BAD_DIGEST, format!("sha256 of secret {name} is not a SHA-256"));
                    self.problems.push(problem.at(document.value(&path("sha256")), "64 lowercase hex digits"));
                }
                Some(bytes) => {
                    let found = hex::encode(Sha256::digest(bytes));
                    if found != secret.sha256 {
                        let title = format!("{} is not the file that was vouched for", secret.path);
                        let problem = document.error(rule::SECRET_DIGEST, title);
                        let problem = problem.at(document.value(&path("sha256")), format!("the file's is {found}"));
                        self.problems.push(problem);
                    } else if let Some(other) = files.insert(found, name) {
                        let title = format!("secrets {other} and {name} are one and the same file");
                        let problem = document.error(rule::SECRET_COPIED, title);
                        let problem = problem.at(document.value(&path("sha256")), format!("also that of {other}"));
                        self.problems.push(problem.help(format!(
                            "`converger secret encrypt {name}` gives it a value of its own; the same value twice is encrypted twice"
                        )));
                    }
                }
            }
            let mut has_all_keys = true;
            let wanted = self.cover.wanted(&secret.grant);
            for node in wanted.keyless() {
                without_key.entry(&node.name).or_default().push(name);
                has_all_keys = false;
            }
            // A node that has no key, or could not be read, is the reason then, and told already.
            if has_all_keys
                && self.left_out.is_empty()
                && let Some(file) = self.fleet.tree.get(secret.path.as_str())
                && let Some(gap) = self.cover.gap_to(wanted, secret, file).filter(|gap| !gap.vouched)
            {
                self.problems.push(to_rekey(document, name, &gap));
            }
        }
        for (node, secrets) in without_key {
            let title = match &secrets[..] {
                [one] => format!("{node} is granted secret {one} but has no key to read it"),
                [one, rest @ ..] => {
                    format!("{node} is granted secret {one} and {} more but has no key to read them", rest.len())
                }
                [] => continue,
            };
            let document = &self.documents.topology;
            let problem = document.error(rule::NODE_WITHOUT_RECIPIENT, title);
            let span = document.key(&["nodes", node.as_str()]);
            self.problems.push(
                problem.at(span, "no recipient").help("`age-keygen -y /etc/converger/age.key`, on the node, prints it"),
            );
        }
        let folder = format!("environments/{}/secrets", environment.name);
        for (path, _) in self.fleet.tree.below(&folder) {
            let name = path.as_str().strip_prefix(&folder).and_then(|rest| rest[1..].strip_suffix(".age"));
            if let Some(name) = name
                && !environment.secrets.contains_key(name)
                && !self.left_out.contains(name)
                && !self.left_out.contains("secrets")
            {
                let title = format!("{} has no secret \"{name}\"", document.path);
                self.problems.push(Problem::warning(rule::SECRET_NOT_LISTED, path.clone(), title));
            }
        }
    }

    pub(super) fn recipients(&mut self, samples: &BTreeSet<String>) {
        let environment = &self.fleet.environment;
        let mut of: BTreeMap<&str, &NodeName> = BTreeMap::new();
        let document = &self.documents.topology;
        for node in &environment.nodes {
            let said = node.recipient.iter().map(|recipient| (recipient, vec!["recipient".to_owned()]));
            let more = node.more_recipients.iter().enumerate();
            let more = more.map(|(index, recipient)| (recipient, vec!["recipients".to_owned(), index.to_string()]));
            for (recipient, place) in said.chain(more) {
                let path: Vec<&str> =
                    ["nodes", node.name.as_str()].into_iter().chain(place.iter().map(String::as_str)).collect();
                let span = || document.value(&path);
                if !is_recipient(recipient) {
                    let title = format!("recipient of {} is no public key", node.name);
                    let problem = document.error(rule::BAD_RECIPIENT, title);
                    self.problems.push(problem.at(span(), "age1…, ssh-ed25519 … or ssh-rsa …"));
                }
                if let Some(other) = of.insert(recipient, &node.name) {
                    let title = match other == &node.name {
                        true => format!("{other} has one key twice"),
                        false => format!("{other} and {} have the same key", node.name),
                    };
                    let problem = document.warning(rule::DUPLICATE_RECIPIENT, title);
                    self.problems.push(problem.at(span(), format!("{other}'s")));
                }
            }
            if node.recipient.is_none() && !node.more_recipients.is_empty() {
                let title = format!("{} has `recipients` and no `recipient`", node.name);
                let problem = document.error(rule::BAD_RECIPIENT, title);
                let span = document.key(&["nodes", node.name.as_str(), "recipients"]);
                self.problems.push(problem.at(span, "keys besides `recipient`, while it changes"));
            }
        }
        let document = &self.documents.secrets;
        for (index, recipient) in environment.operators.iter().enumerate() {
            if !is_recipient(recipient) {
                let problem = document.error(rule::BAD_RECIPIENT, "an operator's recipient is no public key");
                let span = document.value(&["operators", &index.to_string()]);
                self.problems.push(problem.at(span, "age1…, ssh-ed25519 … or ssh-rsa …"));
            }
            if samples.contains(recipient) {
                let problem =
                    document.warning(rule::SAMPLE_RECIPIENT, "an operator's recipient is a throw-away sample");
                let span = document.value(&["operators", &index.to_string()]);
                self.problems.push(problem.at(span, "everybody has its private key"));
            }
        }
        // One warning: a fresh fleet has a sample on every node.
        let sampled: Vec<&Node> = environment
            .nodes
            .iter()
            .filter(|node| node.recipients().any(|recipient| samples.contains(recipient)))
            .collect();
        if let Some(first) = sampled.first() {
            let document = &self.documents.topology;
            let title = format!("recipients of {} are throw-away samples", super::some_of(&sampled));
            let problem = document.warning(rule::SAMPLE_RECIPIENT, title);
            let span = document.value(&["nodes", first.name.as_str(), "recipient"]);
            let problem = problem.at(span, "everybody has its private key");
            self.problems.push(problem.help("`age-keygen` on the node makes its own"));
        }
    }
}

fn to_rekey(document: &Document<'_>, name: &SecretName, gap: &Gap<'_>) -> Problem {
    let span = document.value(&["secrets", name.as_str(), "recipients"]);
    let (problem, help) = if gap.is_stale() {
        let title = format!("secret {name} can still be opened by somebody who is not granted it");
        let known =
            format!("`converger secret rekey {name}`; who knows the value keeps it: `converger secret rotate {name}`");
        (document.error(rule::STALE_RECIPIENT, title), known)
    } else {
        let title = format!("secret {name} is encrypted to others than those who may read it now");
        (document.error(rule::SECRET_RECIPIENTS, title), format!("`converger secret rekey {name}`"))
    };
    gap.sentences().into_iter().fold(problem.at(span, gap.counts()), Problem::note).help(help)
}

/// An age X25519 recipient, or an SSH public key that age can encrypt to.
fn is_recipient(text: &str) -> bool {
    let age = text.strip_prefix("age1").is_some_and(|rest| {
        rest.len() >= 50 && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    });
    let ssh = ["ssh-ed25519 AAAA", "ssh-rsa AAAA"].into_iter().any(|start| text.starts_with(start));
    (age || ssh) && !text.contains('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_and_talk_about_keys_is_not() {
        let key = format!("AGE-SECRET-{}-1{}", "KEY", "Q".repeat(58));
        assert_eq!(private_key(format!("a\nb = \"{key}\"\n").as_bytes()), Some(2));
        assert_eq!(private_key(format!("\n\n-----BEGIN OPENSSH PRIVATE {}-----\nAAAA", "KEY").as_bytes()), Some(3));
        assert_eq!(private_key(&[&[0xff, b'\n'][..], key.as_bytes()].concat()), Some(2));
        for talk in ["AGE-SECRET-KEY-1...", "never commit a PRIVATE KEY", "-----BEGIN CERTIFICATE-----", "«secret:x»"]
        {
            assert_eq!(private_key(talk.as_bytes()), None, "{talk}");
        }
    }
}
