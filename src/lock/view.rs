//! Whose declaration of a group is in force: members and their states, quorum, lanes, names and conflicts must be the same for all who
//! count, so a node that knows another declaration takes nobody away until it agrees.
//!
//! The store keeps the place and the commit of the declaration in force, with its digest. It moves forward only, and only
//! while nobody holds the group; what it means each node reads from the commit that it verified itself. PURE. Never: a
//! member, a lane or a quorum from the store.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::fleet::Group;
use crate::fleet::schema::{Membership, Quorum};
use crate::name::{CommitId, NodeName};

/// The value of `spec/GROUP`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct View {
    pub seq: u64,
    pub commit: CommitId,
    /// See [`digest_of`].
    pub digest: String,
}

/// What the view in force means for a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is this node's own; or nobody declares the group any more, so that there is nothing to agree on.
    InForce,
    /// This node's is newer: its claim brings it into force.
    Moves,
    /// This node's is older, or another one of the same place.
    Behind { seq: u64, commit: CommitId },
}

/// Everything of a group that the decision counts with, in hexadecimal. Order of members, rank and gates may differ: they
/// decide who goes first and what is asked, not how many may be away.
pub fn digest_of(group: &Group) -> String {
    let sorted = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.join(" ")
    };
    let quorum = match group.quorum {
        Quorum::Majority => "majority",
        Quorum::None => "none",
    };
    let member = |node: &NodeName| match group.state_of(node) {
        Membership::Active => node.to_string(),
        Membership::Joining => format!("{node}=joining"),
        Membership::Draining => format!("{node}=draining"),
        Membership::Retired => format!("{node}=retired"),
    };
    let members: Vec<String> = group.members.iter().map(member).collect();
    let said = [
        group.id.to_string(),
        sorted(members.iter().map(String::as_str).collect()),
        quorum.to_owned(),
        group.max_unavailable.to_string(),
        sorted(group.aliases.iter().map(|id| id.as_str()).collect()),
        sorted(group.conflicts.iter().map(|id| id.as_str()).collect()),
    ];
    hex::encode(Sha256::digest(said.join("\n")))
}

/// `said`: the value in the store. One that cannot be read is in force, and nobody's.
pub fn standing(said: Option<&[u8]>, mine: &View) -> Standing {
    let Some(said) = said else { return Standing::Moves };
    match serde_json::from_slice::<View>(said) {
        Ok(view) if view.digest == mine.digest => Standing::InForce,
        Ok(view) if view.seq < mine.seq => Standing::Moves,
        Ok(view) => Standing::Behind { seq: view.seq, commit: view.commit },
        Err(_) => Standing::Behind { seq: u64::MAX, commit: CommitId::new("unreadable") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(seq: u64, digest: &str) -> View {
        View { seq, commit: CommitId::new(format!("c{seq}")), digest: digest.to_owned() }
    }

    #[test]
    fn a_view_moves_forward_only_and_only_when_it_differs() {
        let said = |view: &View| serde_json::to_vec(view).unwrap();
        let mine = view(5, "a");
        assert_eq!(standing(None, &mine), Standing::Moves);
        assert_eq!(standing(Some(&said(&view(9, "a"))), &mine), Standing::InForce);
        assert_eq!(standing(Some(&said(&view(4, "b"))), &mine), Standing::Moves);
        for seq in [5, 6] {
            let behind = Standing::Behind { seq, commit: CommitId::new(format!("c{seq}")) };
            assert_eq!(standing(Some(&said(&view(seq, "b"))), &mine), behind);
        }
        assert!(matches!(standing(Some(b"?"), &mine), Standing::Behind { .. }));
    }
}
