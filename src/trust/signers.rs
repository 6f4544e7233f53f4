//! `trust/allowed_signers`: which key belongs to which principal.
//!
//! The format is OpenSSH's (`ssh-keygen(1)`, ALLOWED SIGNERS), so that `git verify-commit` reads the same file; of its
//! freedom we take what has one meaning: one principal per line, no patterns, no certificates, no dates (a key lives
//! from the commit that adds it to the one that removes it). PURE. Never: a line that is skipped because it is odd.

use std::collections::BTreeMap;

use ssh_key::{HashAlg, PublicKey};

use super::signature;

/// Fingerprint (`SHA256:…`) -> whose key, and of which kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Signers(BTreeMap<String, Listed>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Listed {
    principal: String,
    /// As in the file: `ssh-ed25519`.
    kind: String,
}

/// A line that does not say what it must; 1-based.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct SignersProblem {
    pub line: usize,
    pub what: String,
}

impl Signers {
    /// All problems, not the first.
    pub fn parse(text: &str) -> Result<Self, Vec<SignersProblem>> {
        let mut signers = BTreeMap::new();
        let mut problems = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let read = entry(line).and_then(|entry| match entry {
                // Listed for something else than git: no business of ours.
                Entry { for_git: false, .. } => Ok(()),
                Entry { fingerprint, listed, .. } => match signers.insert(fingerprint, listed.clone()) {
                    None => Ok(()),
                    Some(other) => {
                        let (other, principal) = (other.principal, listed.principal);
                        Err(format!("this key is listed twice, for {other} and for {principal}"))
                    }
                },
            });
            if let Err(what) = read {
                problems.push(SignersProblem { line: index + 1, what });
            }
        }
        if problems.is_empty() { Ok(Self(signers)) } else { Err(problems) }
    }

    pub fn principal(&self, fingerprint: &str) -> Option<&str> {
        self.0.get(fingerprint).map(|listed| listed.principal.as_str())
    }

    /// The key's type as OpenSSH calls it.
    pub fn kind(&self, fingerprint: &str) -> Option<&str> {
        self.0.get(fingerprint).map(|listed| listed.kind.as_str())
    }

    /// Fingerprint and principal of every key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(fingerprint, listed)| (fingerprint.as_str(), listed.principal.as_str()))
    }
}

struct Entry {
    fingerprint: String,
    listed: Listed,
    for_git: bool,
}

/// Keys with which a forge signs what is done in its web pages, and the forge.
/// <https://docs.gitlab.com/user/project/repository/signed_commits/>
const FORGE_KEYS: [(&str, &str); 1] = [("SHA256:ylvmNrhpOBqBQRVi0S8xv2meWLs/QnN7AztQlZY5UPE", "GitLab.com")];

fn entry(line: &str) -> Result<Entry, String> {
    let (principal, rest) = line.split_once([' ', '\t']).ok_or("a principal and a key are expected")?;
    if principal.contains(['*', '?', '!', '"', ',']) {
        return Err(format!("{principal} is a pattern or a list; write one line for each principal"));
    }
    let rest = rest.trim_start();
    let (options, key) = split_options(rest)?;
    let mut for_git = true;
    for option in options {
        match option.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("namespaces") => {
                let mut names = value.trim_matches('"').split(',').map(str::trim);
                if names.clone().any(|name| name.is_empty() || name.contains(['*', '?', '!'])) {
                    return Err(format!("namespaces={value}: patterns are not accepted, write \"git\""));
                }
                for_git = names.any(|name| name == "git");
            }
            Some((name, _))
                if name.eq_ignore_ascii_case("valid-after") || name.eq_ignore_ascii_case("valid-before") =>
            {
                return Err(format!(
                    "{name}: dates decide nothing here; remove the line in a commit when the key ends"
                ));
            }
            None if option.eq_ignore_ascii_case("cert-authority") => {
                return Err("cert-authority: certificates are not accepted, list the keys themselves".to_owned());
            }
            _ => return Err(format!("{option} is not an option that is known here")),
        }
    }
    let key = PublicKey::from_openssh(key).map_err(|error| format!("the key cannot be read: {error}"))?;
    signature::usable(key.key_data())?;
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    if let Some((_, forge)) = FORGE_KEYS.iter().find(|(known, _)| *known == fingerprint) {
        return Err(format!("with this key {forge} signs for everybody who has an account there; list people's keys"));
    }
    let listed = Listed { principal: principal.to_owned(), kind: key.algorithm().to_string() };
    Ok(Entry { fingerprint, listed, for_git })
}

/// `[options] keytype base64 [comment]`: options are comma-separated, their values may be quoted.
fn split_options(text: &str) -> Result<(Vec<&str>, &str), String> {
    let first = text.split([' ', '\t']).next().unwrap_or_default();
    let key_types = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
    if key_types.iter().any(|prefix| first.starts_with(prefix)) {
        return Ok((Vec::new(), text));
    }
    let mut quoted = false;
    let end = text.find(|c: char| {
        quoted ^= c == '"';
        !quoted && (c == ' ' || c == '\t')
    });
    let (options, key) = text.split_at(end.ok_or("no key follows the options, or a quote is open")?);
    let mut quoted = false;
    let split = options.split(|c: char| {
        quoted ^= c == '"';
        !quoted && c == ','
    });
    Ok((split.collect(), key.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    fn what(text: &str) -> String {
        Signers::parse(text).unwrap_err().remove(0).to_string()
    }

    #[test]
    fn a_line_maps_a_key_to_its_principal() {
        let text = format!("# people\n\nalice@example.org namespaces=\"git,file\" {KEY} alice's laptop\n");
        let signers = Signers::parse(&text).unwrap();
        let (fingerprint, principal) = signers.iter().next().unwrap();
        assert_eq!(principal, "alice@example.org");
        assert_eq!(signers.principal(fingerprint), Some("alice@example.org"));
        assert!(fingerprint.starts_with("SHA256:"));
    }

    #[test]
    fn a_key_for_another_namespace_is_not_for_commits() {
        let signers = Signers::parse(&format!("alice namespaces=\"file\" {KEY}\n")).unwrap();
        assert_eq!(signers.iter().count(), 0);
    }

    #[test]
    fn what_has_more_than_one_meaning_is_refused_with_its_line() {
        assert!(what(&format!("alice {KEY}\n*@example.org {KEY}\n")).starts_with("line 2: *@example.org is a pattern"));
        assert!(what(&format!("alice {KEY}\nbob {KEY}\n")).contains("listed twice, for alice and for bob"));
        assert!(what(&format!("alice valid-before=\"20300101\" {KEY}\n")).contains("dates decide nothing"));
        assert!(what(&format!("alice cert-authority {KEY}\n")).contains("certificates"));
        assert!(what(&format!("alice namespaces=\"g*\" {KEY}\n")).contains("patterns"));
        assert!(what(&format!("alice no-touch-required {KEY}\n")).contains("not an option"));
        assert!(what("alice namespaces=\"git ssh-ed25519 AAAA\n").contains("quote is open"));
        assert!(what("alice ssh-ed25519 AAAA\n").contains("cannot be read"));
        assert!(what("alice\n").contains("expected"));
        let forge = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIADOCCUoN3Q1UPQqUvp845fKy7haJH17qsSkVXzWXilW";
        assert!(what(&format!("forge {forge}\n")).contains("GitLab.com signs for everybody"));
        assert_eq!(Signers::parse("alice x\nbob y\n").unwrap_err().len(), 2);
    }
}
