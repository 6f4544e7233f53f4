//! What a remote offers becomes what we believe: the first-parent chain, commit by commit, from the node's own root.
//!
//! A commit is accepted iff a key that `trust/` *of its first parent* authorises for what it touches signed it, and so
//! was every commit between it and the last accepted one; or iff it is a merge that brings only such commits, and that
//! can be made again. The idea of authorising by the parent, from an introduction outside the repository, is that of
//! Guix (Courtès, "Building a Secure Software Supply Chain with GNU Guix", 2022).
//! PURE: `git` reads the objects. Never: a [`Verified`] made anywhere else; a decision by a date; a forge's word.

mod chain;
pub mod commit;
mod judge;
pub mod lineage;
pub mod merge;
pub mod policy;
mod refusal;
pub mod signature;
pub mod signers;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::{CommitId, RepoPath};
use crate::reason;
use crate::settings::TrustRoot;
use chain::{Chain, Tip};
use commit::Allowance;
use merge::Merge;
use policy::TrustFiles;
pub use refusal::Refusal;

/// One commit of the first-parent chain with what judging it needs; git hands them over oldest first.
#[derive(Clone, Debug)]
pub struct Link {
    pub id: CommitId,
    /// The commit object's bytes.
    pub raw: Vec<u8>,
    /// The tree whose files the fields below are.
    pub tree: String,
    /// Shared between links as long as the files are the same, so they are read once.
    pub parent_trust: Arc<TrustFiles>,
    pub own_trust: Arc<TrustFiles>,
    /// Paths that differ between the first parent's tree and this one's; empty for the introduction.
    pub changed: Vec<RepoPath>,
}

/// The tip that a remote shows, and how it lies to what we have.
#[derive(Clone, Debug)]
pub struct Offer {
    pub tip: CommitId,
    /// The tip's bytes, to name it in a refusal.
    pub raw: Vec<u8>,
    pub relation: Relation,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Relation {
    /// The accepted commit is on the first-parent chain of the tip; the links begin after it. `base` has the same
    /// payload, and another id only if somebody signed it again.
    Onward {
        base: CommitId,
        base_payload_sha256: String,
    },
    /// Nothing accepted yet; the links begin with the introduction itself.
    FromIntroduction,
    /// Nothing accepted yet, and the introduction is not on the chain.
    NoIntroduction,
    /// The tip is an ancestor of the accepted commit.
    Behind,
    /// The accepted commit is an ancestor of the tip, but not by first parents.
    Beside,
    Apart,
}

/// What this node has accepted: the floor that survives restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// Under which trust root: another fleet or introduction begins a new chain.
    pub fleet: String,
    pub introduction: CommitId,
    pub commit: CommitId,
    pub payload_sha256: String,
    pub seq: u64,
    pub subject: String,
    /// The name is that of the time when there was one signer, and no merge was ever made again.
    #[serde(rename = "signer")]
    pub acceptance: Acceptance,
}

impl Accepted {
    /// Whether it binds under this trust root. A re-introduction resets the floor.
    pub fn binds(&self, root: &TrustRoot) -> bool {
        self.fleet == root.fleet && self.introduction == root.introduction.commit
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signer {
    pub principal: String,
    /// `SHA256:…`, of an SSH key. Another kind of key gets a prefix of its own.
    pub fingerprint: String,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.principal, self.fingerprint)
    }
}

/// Why a commit is good.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Acceptance {
    /// An authorised key signed the commit object itself.
    Signed(Signer),
    /// A forge's merge button made it out of what these signed, and added nothing.
    Recomputed {
        /// Its second parent.
        merged: CommitId,
        /// In the order in which they first signed; each once.
        signers: Vec<Signer>,
    },
}

impl fmt::Display for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signed(signer) => write!(f, "signed by {signer}"),
            Self::Recomputed { signers, .. } => {
                let names: Vec<&str> = signers.iter().map(|signer| signer.principal.as_str()).collect();
                // Nothing but the branch itself was merged back.
                let names = if names.is_empty() { "nobody new".to_owned() } else { names.join(", ") };
                write!(f, "merged by the forge, signed by {names}")
            }
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedCommit {
    pub id: CommitId,
    /// Its number on the branch.
    pub seq: u64,
    pub subject: String,
    pub acceptance: Acceptance,
    /// Guards that authorised keys lift: of the commit itself if one signed it, else of the signed commits that it brings.
    pub allowances: Vec<Allowance>,
}

/// A commit that an authenticated chain leads to. Only this module makes one, and only one of these is ever loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    accepted: Accepted,
    new: Vec<VerifiedCommit>,
}

impl Verified {
    pub fn commit(&self) -> &CommitId {
        &self.accepted.commit
    }
    pub fn seq(&self) -> u64 {
        self.accepted.seq
    }
    pub fn subject(&self) -> &str {
        &self.accepted.subject
    }
    pub fn acceptance(&self) -> &Acceptance {
        &self.accepted.acceptance
    }
    /// Verified now, oldest first; empty when the tip is what was accepted before.
    pub fn new_commits(&self) -> &[VerifiedCommit] {
        &self.new
    }
    /// Guards lifted by the new commits.
    pub fn allowances(&self) -> impl Iterator<Item = &Allowance> {
        self.new.iter().flat_map(|commit| &commit.allowances)
    }
    /// What to keep, so that this node never goes below it.
    pub fn accepted(&self) -> &Accepted {
        &self.accepted
    }
}

/// What was accepted before, once more; `None`: it does not bind under this root.
pub fn again(root: &TrustRoot, accepted: &Accepted) -> Option<Verified> {
    accepted.binds(root).then(|| Verified { accepted: accepted.clone(), new: Vec::new() })
}

/// Judges the commits that are new, oldest first, and stops at the first that breaks a rule.
///
/// `accepted` binds if [`Accepted::binds`]; the links are those that `offer.relation` promises. `merges` is asked about
/// commits of two parents that nobody on the list signed. `E` is whatever reading them can fail with.
pub fn verify<'m, E: From<Box<Refusal>>>(
    root: &TrustRoot,
    accepted: Option<&Accepted>,
    offer: &Offer,
    links: impl IntoIterator<Item = Result<Link, E>>,
    merges: impl Fn(&Link) -> Result<Merge<'m, E>, E>,
) -> Result<Verified, E> {
    let floor = accepted.filter(|accepted| accepted.binds(root));
    let mut chain = Chain::new(root, floor);
    let mut links = links.into_iter();
    let refused = match (&offer.relation, floor) {
        (Relation::Onward { base, base_payload_sha256 }, Some(floor))
            if *base_payload_sha256 == floor.payload_sha256 =>
        {
            chain.tip = Some(Tip { id: base.clone(), accepted: floor.clone() });
            None
        }
        (Relation::FromIntroduction, None) => match links.next().transpose()? {
            Some(link) if link.id == root.introduction.commit => {
                chain.introduce(&link)?;
                None
            }
            _ => Some(reason::INTRODUCTION_MISSING),
        },
        (Relation::NoIntroduction, _) => Some(reason::INTRODUCTION_MISSING),
        (Relation::Behind, _) => Some(reason::ROLLBACK),
        (Relation::Beside, _) => Some(reason::FOXTROT),
        _ => Some(reason::NOT_DESCENDANT),
    };
    if let Some(reason) = refused {
        return Err(chain.judge.refuse_tip(reason, offer).into());
    }
    for link in links {
        chain.extend(&link?, &merges)?;
    }
    match chain.tip {
        Some(tip) if tip.id == offer.tip => Ok(Verified { accepted: tip.accepted, new: chain.new }),
        _ => Err(chain.judge.refuse_tip(reason::NOT_DESCENDANT, offer).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_accepted_before_there_were_recomputed_merges_is_still_read() {
        let before = r#"{"fleet":"f","introduction":"1","commit":"2","payload_sha256":"3","seq":4,"subject":"s",
            "signer":{"principal":"alice","fingerprint":"SHA256:x"}}"#;
        let accepted: Accepted = serde_json::from_str(before).unwrap();
        assert_eq!(accepted.acceptance.to_string(), "signed by alice (SHA256:x)");
        let Acceptance::Signed(alice) = &accepted.acceptance else { panic!("{accepted:?}") };
        for acceptance in [
            accepted.acceptance.clone(),
            Acceptance::Recomputed { merged: "5".into(), signers: vec![alice.clone()] },
            Acceptance::Recomputed { merged: "5".into(), signers: Vec::new() },
        ] {
            let now = Accepted { acceptance, ..accepted.clone() };
            let kept = serde_json::to_string(&now).unwrap();
            assert_eq!(serde_json::from_str::<Accepted>(&kept).unwrap(), now);
        }
    }
}
