//! Rules of secrets: who is granted what, who it is encrypted to, and what lies about unencrypted.
//!
//! All of it without a private key. PURE. Never: shows a line in which a key was found.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use super::{Check, Within, is_sha256};
use crate::fleet::problem::Problem;
use crate::fleet::schema::Membership;
use crate::fleet::tree::Tree;
use crate::fleet::{Node, rule};
use crate::name::{NodeName, SecretName};

/// The digest of a set of recipients, as `secrets.toml` has it: hex SHA-256 over the sorted, unique recipients, each
/// followed by a newline.
pub fn recipients_digest<'a>(recipients: impl IntoIterator<Item = &'a str>) -> String {
    let mut digest = Sha256::new();
    for recipient in recipients.into_iter().collect::<BTreeSet<_>>() {
        digest.update(recipient);
        digest.update("\n");
    }
    hex::encode(digest.finalize())
}

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
        for (name, secret) in &environment.secrets {
            let path = |key: &'static str| ["secrets", name.as_str(), key];
            self.name(document, &["secrets", name.as_str()], "secret", name.as_str());
            self.selector(document, &path("grant"), &secret.grant, Within::Environment);
            match self.fleet.tree.get(secret.path.as_str()) {
                None => {
                    let problem = document
                        .error(rule::SECRET_MISSING_FILE, format!("secret {name} has no file"))
                        .at(document.key(&["secrets", name.as_str()]), format!("no {}", secret.path));
                    self.problems.push(problem.help(format!(
                        "encrypt it with `age -R RECIPIENTS -o secrets/{name}.age` in the environment's folder"
                    )));
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
                    }
                }
            }
            let readers: Vec<&Node> =
                self.selected(&secret.grant).into_iter().filter(|node| node.state != Membership::Retired).collect();
            let lacking: Vec<&Node> = readers.iter().copied().filter(|node| node.recipient.is_none()).collect();
            for node in &lacking {
                without_key.entry(&node.name).or_default().push(name);
            }
            let recipients = readers.iter().filter_map(|node| node.recipient.as_deref());
            let recipients = recipients.chain(environment.operators.iter().map(String::as_str));
            // A node that has no key, or could not be read, is the reason then, and told already.
            if lacking.is_empty() && self.left_out.is_empty() && recipients_digest(recipients) != secret.recipients {
                let nodes = if readers.len() == 1 { "node" } else { "nodes" };
                let title = format!("secret {name} is encrypted to others than those who may read it now");
                let label = format!("not the digest of the {} {nodes} granted and the operators", readers.len());
                let problem =
                    document.error(rule::SECRET_RECIPIENTS, title).at(document.value(&path("recipients")), label);
                self.problems.push(problem.help(format!(
                    "encrypt {name} with `age` to these recipients, and write both digests to secrets.toml"
                )));
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
        for node in &environment.nodes {
            let Some(recipient) = node.recipient.as_deref() else { continue };
            let document = &self.documents.topology;
            let span = || document.value(&["nodes", node.name.as_str(), "recipient"]);
            if !is_recipient(recipient) {
                let title = format!("recipient of {} is no public key", node.name);
                self.problems
                    .push(document.error(rule::BAD_RECIPIENT, title).at(span(), "age1…, ssh-ed25519 … or ssh-rsa …"));
            }
            if let Some(other) = of.insert(recipient, &node.name) {
                let title = format!("{other} and {} have the same key", node.name);
                let problem = document.warning(rule::DUPLICATE_RECIPIENT, title);
                self.problems.push(problem.at(span(), format!("{other}'s")));
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
            .filter(|node| node.recipient.as_ref().is_some_and(|recipient| samples.contains(recipient)))
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

    #[test]
    fn the_recipients_digest_is_of_a_set() {
        // printf 'age1a\nage1b\n' | sha256sum
        let expected = "a1f22ff735c8780191fc499234b33df9558a8cde629821cbbf4b6eb7ce9295bd";
        assert_eq!(recipients_digest(["age1b", "age1a", "age1b"]), expected);
        assert_ne!(recipients_digest(["age1a"]), recipients_digest(["age1a", "age1b"]));
        assert_ne!(recipients_digest(["age1ab"]), recipients_digest(["age1a", "b"]));
    }
}
