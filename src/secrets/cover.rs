//! Who should be able to open each secret, and who can, as far as that shows without a key.
//!
//! The only place that turns a grant into recipients: `check`, the secret commands and everybody else ask here. What a
//! file is really encrypted to is told by its header (how many) and by the digest in `secrets.toml` (which): a set that
//! differs by a few is found by trying. PURE. Never: opens a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest as _, Sha256};

use super::header::Header;
use crate::fleet::schema::Membership;
use crate::fleet::selector::Selector;
use crate::fleet::{Environment, Node, Secret};
use crate::name::{NodeName, RoleName};

/// Bytes that are hashed to find out who is missing from one file, or should be.
const TRIED_BYTES_MAX: usize = 2 << 20;

/// The digest of a set of recipients, as `recipients` in `secrets.toml` has it: hex SHA-256 over the sorted, distinct
/// recipients, each followed by a newline.
pub fn recipients_digest<'a>(recipients: impl IntoIterator<Item = &'a str>) -> String {
    let mut digest = Sha256::new();
    for recipient in recipients.into_iter().collect::<BTreeSet<_>>() {
        digest.update(recipient);
        digest.update("\n");
    }
    hex::encode(digest.finalize())
}

/// A public key, and whose it is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Key<'f> {
    /// `None`: an operator's.
    pub node: Option<&'f Node>,
    pub recipient: &'f str,
}

/// `kafka01`, `kafka01 (retired)`, `the operator age1sf40pwex…`
impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 24;
        match self.node {
            Some(node) if node.state == Membership::Retired => write!(f, "{} (retired)", node.name),
            Some(node) => write!(f, "{}", node.name),
            None => match self.recipient.char_indices().nth(SHOWN) {
                Some((end, _)) => write!(f, "the operator {}…", &self.recipient[..end]),
                None => write!(f, "the operator {}", self.recipient),
            },
        }
    }
}

/// What a grant means: the nodes, and the keys that its secrets are encrypted to.
pub struct Wanted<'f> {
    /// Granted and not retired, in order of declaration. Some may have no key yet.
    pub readers: Vec<&'f Node>,
    /// Of the readers and the operators, without duplicates.
    pub keys: Vec<Key<'f>>,
}

impl<'f> Wanted<'f> {
    pub fn recipients(&self) -> impl Iterator<Item = &'f str> {
        self.keys.iter().map(|key| key.recipient)
    }

    /// Readers that nothing can be encrypted to.
    pub fn keyless(&self) -> impl Iterator<Item = &'f Node> {
        self.readers.iter().copied().filter(|node| node.recipients().next().is_none())
    }

    pub fn digest(&self) -> String {
        recipients_digest(self.recipients())
    }

    /// `4 nodes and 1 operator`
    pub fn count(&self) -> String {
        let operators = self.keys.iter().filter(|key| key.node.is_none()).count();
        let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        format!("{} and {}", plural(self.readers.len(), "node"), plural(operators, "operator"))
    }
}

/// A secret that has to be encrypted anew.
pub struct Gap<'f> {
    pub wanted: Wanted<'f>,
    /// `secrets.toml` has the right digest, and the file is encrypted to more or fewer all the same.
    pub vouched: bool,
    /// As the file's header counts them. `None`: it cannot be read.
    pub encrypted_to: Option<usize>,
    /// Granted, and cannot open it.
    pub lacking: Vec<Key<'f>>,
    /// Not granted, and can open it.
    pub needless: Vec<Key<'f>>,
    /// There are no others than those two lists name.
    pub complete: bool,
}

impl Gap<'_> {
    /// Nobody lacks it, and somebody can open it who is not granted it.
    pub fn is_stale(&self) -> bool {
        let too_many = self.encrypted_to.is_some_and(|count| count > self.wanted.keys.len());
        self.lacking.is_empty() && if self.complete { !self.needless.is_empty() } else { too_many }
    }

    /// `encrypted to 3, granted to 4 nodes and 1 operator`
    pub fn counts(&self) -> String {
        let granted = format!("granted to {}", self.wanted.count());
        self.encrypted_to.map_or_else(|| granted.clone(), |count| format!("encrypted to {count}, {granted}"))
    }

    /// Who lacks it and who no longer needs it, a sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        if !self.lacking.is_empty() {
            sentences.push(format!("{} cannot open it", names(&self.lacking)));
        }
        if !self.needless.is_empty() {
            sentences.push(format!("{} can open it, without being granted it", names(&self.needless)));
        }
        match self.encrypted_to.and_then(|count| count.checked_sub(self.wanted.keys.len())) {
            _ if self.complete => {}
            Some(more @ 1..) => sentences.push(format!("{more} more can open it than should")),
            _ => sentences.push("whose keys those are cannot be told without one of them".to_owned()),
        }
        sentences
    }
}

/// `kafka01`, `kafka01 and kafka02`, `kafka01, kafka02, kafka03 and 4 more`
fn names(keys: &[Key<'_>]) -> String {
    const NAMED: usize = 3;
    let mut named: Vec<String> = keys.iter().take(NAMED).map(Key::to_string).collect();
    if keys.len() > NAMED {
        named.push(format!("{} more", keys.len() - NAMED));
    }
    let last = named.pop().unwrap_or_default();
    if named.is_empty() { last } else { format!("{} and {last}", named.join(", ")) }
}

/// The grants of one environment, ready to be asked about thousands of secrets.
pub struct Cover<'f> {
    environment: &'f Environment,
    nodes: BTreeMap<&'f NodeName, &'f Node>,
}

impl<'f> Cover<'f> {
    pub fn of(environment: &'f Environment) -> Self {
        Self { environment, nodes: environment.nodes.iter().map(|node| (&node.name, node)).collect() }
    }

    /// Every node that is granted, retired ones too.
    pub fn granted(&self, grant: &Selector) -> Vec<&'f Node> {
        match grant {
            // Thousands of secrets are granted to one node each.
            Selector::Nodes(names) => names.iter().filter_map(|name| self.nodes.get(name).copied()).collect(),
            _ => {
                let nodes = self.environment.nodes.iter();
                nodes.filter(|node| grant.selects(node, &|role| self.has_role(node, role))).collect()
            }
        }
    }

    pub fn wanted(&self, grant: &Selector) -> Wanted<'f> {
        let mut readers = self.granted(grant);
        readers.retain(|node| node.state != Membership::Retired);
        let nodes = readers.iter().copied().flat_map(keys_of);
        let operators = self.environment.operators.iter().map(|recipient| Key { node: None, recipient });
        let mut seen = BTreeSet::new();
        let keys = nodes.chain(operators).filter(|key| seen.insert(key.recipient)).collect();
        Wanted { readers, keys }
    }

    /// Why this secret has to be encrypted anew; `None`: exactly those can open it who should.
    pub fn gap(&self, secret: &Secret, file: &[u8]) -> Option<Gap<'f>> {
        self.gap_to(self.wanted(&secret.grant), secret, file)
    }

    /// As [`gap`](Self::gap), for who has asked already who should.
    pub fn gap_to(&self, wanted: Wanted<'f>, secret: &Secret, file: &[u8]) -> Option<Gap<'f>> {
        let header = Header::read(file).ok();
        let encrypted_to = header.as_ref().map(|header| header.recipients);
        let vouched = wanted.digest() == secret.recipients;
        // What the header tells without a key: that it is one, how many, and which SSH keys.
        let fits = header.as_ref().is_some_and(|header| {
            !header.passphrase
                && header.recipients == wanted.keys.len()
                && wanted.recipients().all(|recipient| header.names(recipient) != Some(false))
        });
        if vouched && fits {
            return None;
        }
        let mine: BTreeSet<&str> = wanted.recipients().collect();
        let nodes = self.environment.nodes.iter();
        let others: Vec<Key<'f>> = nodes.flat_map(keys_of).filter(|key| !mine.contains(key.recipient)).collect();
        let found = encrypted_to.and_then(|count| search(&secret.recipients, count, &wanted.keys, &others));
        let complete = found.is_some();
        let (lacking, needless) = found.unwrap_or_else(|| {
            // The digest does not tell; the header names SSH keys all the same.
            let named = |key: &&Key<'f>| header.as_ref().and_then(|header| header.names(key.recipient));
            let lacking = wanted.keys.iter().filter(|key| named(key) == Some(false)).copied().collect();
            (lacking, others.iter().filter(|key| named(key) == Some(true)).copied().collect())
        });
        Some(Gap { wanted, vouched, encrypted_to, lacking, needless, complete })
    }

    fn has_role(&self, node: &Node, role: &RoleName) -> bool {
        let mut through = node.clusters.iter().filter_map(|name| self.environment.cluster(name));
        self.environment.roles.contains(role) || through.any(|cluster| cluster.roles.contains(role))
    }
}

/// Keys that this secret was meant for then and is not now: who has them knows a value that has not changed since.
///
/// A reader that only goes from one key to another is not among them.
pub fn leavers<'b>(then: &Cover<'b>, before: &Secret, now: &Cover<'_>, after: &Secret) -> Vec<Key<'b>> {
    if before.version != after.version {
        return Vec::new();
    }
    let now = now.wanted(&after.grant);
    let stays = |key: &Key<'_>| match key.node {
        Some(node) => now.readers.iter().any(|reader| reader.name == node.name),
        None => now.recipients().any(|recipient| recipient == key.recipient),
    };
    then.wanted(&before.grant).keys.into_iter().filter(|key| !stays(key)).collect()
}

fn keys_of(node: &Node) -> impl Iterator<Item = Key<'_>> {
    node.recipients().map(move |recipient| Key { node: Some(node), recipient })
}

/// The set of `count` recipients with this digest, as what is missing from the wanted ones and what there is besides.
///
/// Nodes come and go next to each other in the topology: runs of neighbours are tried, so a whole cluster is found at
/// once. What a run says is proved by the digest.
fn search<'f>(
    digest: &str,
    count: usize,
    wanted: &[Key<'f>],
    others: &[Key<'f>],
) -> Option<(Vec<Key<'f>>, Vec<Key<'f>>)> {
    let mut left = TRIED_BYTES_MAX;
    for more in 0..=others.len().min(count) {
        let Some(fewer) = (wanted.len() + more).checked_sub(count).filter(|fewer| *fewer <= wanted.len()) else {
            continue;
        };
        for needless in runs(others, more) {
            for start in 0..=wanted.len() - fewer {
                let (before, rest) = wanted.split_at(start);
                let (lacking, after) = rest.split_at(fewer);
                let set = [before, after, needless].concat();
                left = left.checked_sub(set.iter().map(|key| key.recipient.len() + 1).sum())?;
                if recipients_digest(set.iter().map(|key| key.recipient)) == digest {
                    return Some((lacking.to_vec(), needless.to_vec()));
                }
                if fewer == 0 {
                    break;
                }
            }
        }
    }
    None
}

/// All runs of `length` neighbours; of length 0 there is one.
fn runs<'a, 'f>(keys: &'a [Key<'f>], length: usize) -> impl Iterator<Item = &'a [Key<'f>]> {
    let last = if length == 0 { 0 } else { keys.len() - length };
    (0..=last).map(move |start| &keys[start..start + length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipients_digest_is_of_a_set() {
        // printf 'age1a\nage1b\n' | sha256sum
        let expected = "a1f22ff735c8780191fc499234b33df9558a8cde629821cbbf4b6eb7ce9295bd";
        assert_eq!(recipients_digest(["age1b", "age1a", "age1b"]), expected);
        assert_ne!(recipients_digest(["age1a"]), recipients_digest(["age1a", "age1b"]));
        assert_ne!(recipients_digest(["age1ab"]), recipients_digest(["age1a", "b"]));
    }

    #[test]
    fn the_set_with_a_digest_is_found() {
        let names: Vec<String> = (0..30).map(|n| format!("age1{n}")).collect();
        let key = |n: usize| Key { node: None, recipient: &names[n] };
        let keys = |range: std::ops::Range<usize>| range.map(key).collect::<Vec<_>>();
        let found = |had: Vec<Key<'_>>, count: usize| {
            let digest = recipients_digest(had.iter().map(|key| key.recipient));
            search(&digest, count, &keys(0..20), &keys(20..30)).map(|(lacking, needless)| {
                let of = |keys: Vec<Key<'_>>| keys.iter().map(|key| key.recipient.to_owned()).collect::<Vec<_>>();
                (of(lacking), of(needless))
            })
        };
        let of = |range: std::ops::Range<usize>| names[range].to_vec();
        assert_eq!(found(keys(0..17), 17), Some((of(17..20), vec![])), "a cluster was added");
        assert_eq!(found(keys(0..22), 22), Some((vec![], of(20..22))), "two were retired");
        let swapped = [keys(0..5), keys(6..20), keys(23..24)].concat();
        assert_eq!(found(swapped, 20), Some((of(5..6), of(23..24))), "one for another");
        let strange = [keys(0..20), vec![Key { node: None, recipient: "age1gone" }]].concat();
        assert_eq!(found(strange, 21), None, "nobody here has that key");
    }
}
