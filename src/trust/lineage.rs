//! What nodes tell each other of the branch as they verified it, compared: a source may show one node less than another,
//! or something else.
//!
//! PURE. Never: a peer's word that moves a node. A peer that was taken over can raise an alarm here, and no more.

use serde::{Deserialize, Serialize};

use crate::name::{CommitId, NodeName};

/// How many commits a node tells of: two nodes can be this far apart and still be seen to have parted.
pub const TRAIL_MAX: usize = 16;

/// The branch as one node verified it.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Lineage {
    /// Where its chain begins; a floor binds under the same introduction only.
    pub introduction: CommitId,
    pub commit: CommitId,
    pub seq: u64,
    /// Hex SHA-256 of the commits' payloads, newest first: of `commit`, and of those before it.
    pub trail: Vec<String>,
}

/// What the peers' words come to, for one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hearsay<'a> {
    /// Nobody knows more.
    Level,
    /// A peer has verified commits that this node was not shown.
    Behind { peer: &'a NodeName, theirs: &'a Lineage },
    /// A peer verified another commit at this place of the history.
    Forked { peer: &'a NodeName, theirs: &'a Lineage, seq: u64 },
}

impl Lineage {
    fn digest_at(&self, seq: u64) -> Option<&str> {
        let back = usize::try_from(self.seq.checked_sub(seq)?).ok()?;
        self.trail.get(back).map(String::as_str)
    }

    /// It has the form that a node writes; anything can stand in a store.
    pub fn is_sound(&self) -> bool {
        let hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|c| c.is_ascii_hexdigit());
        hex(self.commit.as_str(), 40)
            && hex(self.introduction.as_str(), 40)
            && (1..=TRAIL_MAX).contains(&self.trail.len())
            && self.trail.iter().all(|digest| hex(digest, 64))
    }

    /// The newest place at which both know a commit and it is not the same one.
    fn parted_from(&self, other: &Self) -> Option<u64> {
        // Numbered otherwise, as under another introduction: a place means nothing then.
        let shared = |digest: &String| other.trail.iter().position(|theirs| theirs == digest);
        let misnumbered = self.trail.iter().enumerate().any(|(back, digest)| {
            shared(digest).is_some_and(|theirs| self.seq - back as u64 != other.seq - theirs as u64)
        });
        let newest = self.seq.min(other.seq);
        let (ours, theirs) = (self.digest_at(newest)?, other.digest_at(newest)?);
        (!misnumbered && ours != theirs).then_some(newest)
    }
}

/// A fork counts more than being behind; of several peers that are ahead the farthest is named.
pub fn compare<'a>(own: &Lineage, peers: impl IntoIterator<Item = (&'a NodeName, &'a Lineage)>) -> Hearsay<'a> {
    let mut hearsay = Hearsay::Level;
    for (peer, theirs) in peers {
        if let Some(seq) = own.parted_from(theirs) {
            return Hearsay::Forked { peer, theirs, seq };
        }
        let farthest = match hearsay {
            Hearsay::Behind { theirs, .. } => theirs.seq,
            _ => own.seq,
        };
        if theirs.seq > farthest {
            hearsay = Hearsay::Behind { peer, theirs };
        }
    }
    hearsay
}

/// The peers to ask now: all of a small fleet, of a large one some, others at every round.
pub fn sample<'a>(nodes: &'a [NodeName], me: &NodeName, round: u64) -> Vec<&'a NodeName> {
    const ASKED_MAX: usize = 64;
    let start = (round as usize).wrapping_mul(ASKED_MAX) % nodes.len().max(1);
    let turn = nodes[start..].iter().chain(&nodes[..start]);
    turn.filter(|node| *node != me).take(ASKED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits named by letters, oldest first; the first has number 1.
    fn lineage(commits: &str) -> Lineage {
        let digest = |c: char| format!("{:064x}", c as u32);
        let trail: Vec<String> = commits.chars().rev().take(TRAIL_MAX).map(digest).collect();
        Lineage { introduction: "0".repeat(40).into(), commit: "1".repeat(40).into(), seq: commits.len() as u64, trail }
    }

    fn heard(own: &str, peers: &[&str]) -> String {
        let names: Vec<NodeName> = (0..peers.len()).map(|n| NodeName::new(format!("n{n}"))).collect();
        let peers: Vec<Lineage> = peers.iter().map(|commits| lineage(commits)).collect();
        match compare(&lineage(own), names.iter().zip(&peers)) {
            Hearsay::Level => "level".to_owned(),
            Hearsay::Behind { peer, theirs } => format!("behind {peer} at {}", theirs.seq),
            Hearsay::Forked { peer, seq, .. } => format!("forked from {peer} at {seq}"),
        }
    }

    #[test]
    fn peers_are_compared_place_by_place() {
        for (own, peers, expected) in [
            ("abc", &[][..], "level"),
            ("abc", &["abc", "ab", "a"], "level"),
            ("ab", &["abc", "abcd"], "behind n1 at 4"),
            ("abx", &["abc"], "forked from n0 at 3"),
            ("abx", &["abcd"], "forked from n0 at 3"),
            ("abxy", &["abc"], "forked from n0 at 3"),
            ("ab", &["abcd", "ax"], "forked from n1 at 2"),
            // Too far apart to say more than that.
            ("a", &["abcdefghijklmnopqrstuvwxyz"], "behind n0 at 26"),
        ] {
            assert_eq!(heard(own, peers), expected, "{own} {peers:?}");
        }
    }

    #[test]
    fn a_peer_that_counts_from_another_introduction_is_no_fork() {
        let (own, mut peer) = (lineage("abcd"), lineage("abcd"));
        peer.seq = 104;
        let name = NodeName::from("n1");
        assert!(matches!(compare(&own, [(&name, &peer)]), Hearsay::Behind { .. }));
        peer.seq = 3;
        assert_eq!(compare(&own, [(&name, &peer)]), Hearsay::Level);
    }

    #[test]
    fn every_peer_of_a_large_fleet_is_asked_in_turn() {
        let nodes: Vec<NodeName> = (0..1000).map(|n| NodeName::new(format!("n{n}"))).collect();
        let mut asked = std::collections::BTreeSet::new();
        for round in 0..16 {
            let sample = sample(&nodes, &nodes[7], round);
            assert_eq!(sample.len(), 64);
            asked.extend(sample);
        }
        assert_eq!(asked.len(), 999);
        assert!(sample(&[], &nodes[0], 3).is_empty());
    }

    #[test]
    fn what_no_node_would_write_is_not_sound() {
        assert!(lineage("abc").is_sound());
        let mut long = lineage("abc");
        long.trail = vec!["0".repeat(64); TRAIL_MAX + 1];
        let mut odd = lineage("abc");
        odd.commit = "\u{1b}[2J".into();
        let mut empty = lineage("abc");
        empty.trail.clear();
        assert!(!long.is_sound() && !odd.is_sound() && !empty.is_sound());
    }
}
