//! Which member of a cluster runs an action that concerns the whole cluster, and when nobody may: a pure decision.
//!
//! What the action changes lives in a store, not on a node, so a member that follows an older commit would put the old
//! state back. The record of who ran it last, and what the others follow, keep such a member waiting. The order of the
//! members is a preference; that two never run it is the claim's doing. PURE. Never: a clock, or a yes by default.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lock::quorum::{Because, Freeze};
use crate::name::{ClusterName, CommitId, NodeName};
use crate::reason;

/// `act/<cluster>/<node>`: this node runs an action of the cluster, or was interrupted in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claim {
    pub cluster: ClusterName,
    pub node: NodeName,
    pub action: String,
    pub commit: CommitId,
    /// A write whose answer was lost is recognised by it.
    pub attempt: String,
    pub since: Timestamp,
}

/// `action/<cluster>/<name>`: the commit by which the action was last begun.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Begun {
    pub commit: CommitId,
    pub seq: u64,
    pub node: NodeName,
    /// Digest of the masked command and of the versions of secrets, in hex.
    pub inputs: String,
}

/// A member of the cluster, as far as it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub name: NodeName,
    /// No sign of life, or declared dead.
    pub away: bool,
    /// Its report says that it failed or refuses the commit.
    pub stuck: bool,
    pub applied_seq: Option<u64>,
    /// The newest commit that is good for it, by its report.
    pub target_seq: Option<u64>,
}

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
pub struct Election<'a> {
    pub cluster: &'a ClusterName,
    pub action: &'a str,
    pub me: &'a NodeName,
    pub commit: &'a CommitId,
    pub seq: u64,
    /// In order of declaration, me included.
    pub candidates: Vec<Candidate>,
    /// Of the whole cluster, mine included.
    pub claims: Vec<Claim>,
    pub begun: Option<Begun>,
    pub freeze: Option<Freeze>,
    pub declared_dead: bool,
    /// Why my own member is not healthy.
    pub sick: Option<String>,
    /// How long I have been asking, in seconds.
    pub asked_secs: u64,
}

/// A member that comes earlier keeps the others waiting this long.
pub const EARLIER_SECS: u64 = 120;

/// May I run it now? Errors: what I wait for.
pub fn may_run(e: &Election<'_>) -> Result<(), Box<Because>> {
    let wait = |reason, sentence: String| Err(Box::new(Because::new(reason, None, sentence)));
    if e.declared_dead {
        return wait(reason::DECLARED_DEAD, format!("{} was declared dead", e.me));
    }
    if let Some(freeze) = &e.freeze {
        return wait(reason::FROZEN, format!("frozen by {}: {}", freeze.by, freeze.reason));
    }
    if let Some(claim) = e.claims.iter().find(|claim| claim.node != *e.me) {
        let sentence = format!("{} runs action {} of {}", claim.node, claim.action, e.cluster);
        let mut because = Because::new(reason::HELD_BY_PEER, None, sentence);
        because.holders.push(claim.node.clone());
        because.since = Some(claim.since);
        return Err(Box::new(because));
    }
    if let Some(begun) = &e.begun
        && (begun.seq > e.seq || begun.seq == e.seq && begun.commit != *e.commit)
    {
        let sentence = format!(
            "{} ran action {} at {}, which this node has not got yet",
            begun.node,
            e.action,
            begun.commit.short()
        );
        return wait(reason::BEHIND_PEER, sentence);
    }
    let ahead = |other: &&Candidate| other.name != *e.me && other.target_seq.is_some_and(|seq| seq > e.seq);
    if let Some(ahead) = e.candidates.iter().find(ahead) {
        let sentence = format!("{} follows a newer commit than {}", ahead.name, e.commit.short());
        return wait(reason::BEHIND_PEER, sentence);
    }
    if let Some(why) = &e.sick {
        return wait(reason::SETTLING, format!("this member is not healthy: {why}"));
    }
    let earlier = e.candidates.iter().take_while(|other| other.name != *e.me);
    let comes = |other: &&Candidate| !other.away && !other.stuck && other.applied_seq.is_none_or(|seq| seq < e.seq);
    match earlier.into_iter().find(comes) {
        Some(first) if e.asked_secs < EARLIER_SECS => {
            let sentence = format!("{} comes first and has not applied {} yet", first.name, e.commit.short());
            wait(reason::ORDER, sentence)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str) -> Candidate {
        Candidate { name: name.into(), away: false, stuck: false, applied_seq: Some(5), target_seq: Some(5) }
    }

    fn begun(seq: u64, commit: &str) -> Option<Begun> {
        Some(Begun { commit: CommitId::new(commit), seq, node: "n1".into(), inputs: String::new() })
    }

    fn claim(node: &str) -> Claim {
        Claim {
            cluster: "kafka".into(),
            node: node.into(),
            action: "topics".to_owned(),
            commit: CommitId::new("c5"),
            attempt: String::new(),
            since: Timestamp::UNIX_EPOCH,
        }
    }

    /// What `n2` of three hears at commit c5, place 5, when something of the world is otherwise.
    fn heard(change: impl FnOnce(&mut Election<'_>)) -> String {
        let (cluster, me, commit) = ("kafka".into(), "n2".into(), CommitId::new("c5"));
        let mut election = Election {
            cluster: &cluster,
            action: "topics",
            me: &me,
            commit: &commit,
            seq: 5,
            candidates: ["n1", "n2", "n3"].map(candidate).to_vec(),
            claims: Vec::new(),
            begun: begun(5, "c5"),
            freeze: None,
            declared_dead: false,
            sick: None,
            asked_secs: 0,
        };
        change(&mut election);
        may_run(&election).err().map_or_else(|| "go".to_owned(), |because| because.reason)
    }

    #[test]
    fn nobody_runs_it_beside_another_behind_another_or_when_told_to_keep_still() {
        assert_eq!(heard(|_| ()), "go");
        assert_eq!(heard(|e| e.claims = vec![claim("n2")]), "go", "my own, from before an interruption");
        assert_eq!(heard(|e| e.claims = vec![claim("n2"), claim("n3")]), "held-by-peer");
        assert_eq!(heard(|e| e.begun = begun(6, "c6")), "behind-peer");
        assert_eq!(heard(|e| e.begun = begun(5, "fork")), "behind-peer", "a fork of the branch");
        assert_eq!(heard(|e| e.begun = begun(4, "c4")), "go");
        assert_eq!(heard(|e| e.begun = None), "go");
        assert_eq!(heard(|e| e.candidates[2].target_seq = Some(6)), "behind-peer");
        assert_eq!(heard(|e| e.candidates[1].target_seq = Some(6)), "go", "my own word from before a re-introduction");
        assert_eq!(heard(|e| e.declared_dead = true), "declared-dead");
        assert_eq!(heard(|e| e.sick = Some("no answer".to_owned())), "settling");
        let freeze = Freeze { reason: "audit".to_owned(), by: "ops".to_owned(), until: None };
        assert_eq!(heard(|e| e.freeze = Some(freeze)), "frozen");
    }

    #[test]
    fn the_first_that_can_goes_first_and_keeps_nobody_for_ever() {
        let before = |change: fn(&mut Candidate)| {
            heard(|e| {
                e.candidates[0].applied_seq = Some(4);
                change(&mut e.candidates[0]);
            })
        };
        assert_eq!(before(|_| ()), "order");
        assert_eq!(before(|first| first.applied_seq = None), "order", "it never reported and lives: it is coming");
        assert_eq!(before(|first| first.away = true), "go");
        assert_eq!(before(|first| first.stuck = true), "go");
        assert_eq!(heard(|e| e.candidates[2].applied_seq = Some(4)), "go", "it comes after me");
        let late = |e: &mut Election<'_>| (e.candidates[0].applied_seq, e.asked_secs) = (Some(4), EARLIER_SECS);
        assert_eq!(heard(late), "go");
    }
}
