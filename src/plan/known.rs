//! What we remember of this node, as the planner needs it: a plain value that the ledger fills.
//!
//! PURE. Never: stands in for looking at the host.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::reboot::Booted;
use crate::name::{GroupId, HostPath, NodeName, SecretName, UnitName};
use crate::resource::file::Stamp;
use crate::resource::{Digest, Id};
use crate::secrets::fingerprint::Fingerprint;

/// By resource.
pub type Uses = BTreeMap<Id, BTreeSet<UnitName>>;

#[derive(Clone, Default)]
pub struct Known {
    pub owned: BTreeMap<Id, Owned>,
    pub units: BTreeMap<UnitName, RanWith>,
    /// Units whose files are being exchanged, or were and whose restart is not recorded yet.
    pub pending: BTreeMap<UnitName, Pending>,
    /// Units that we took down along with others and have not seen running since.
    pub along: BTreeSet<UnitName>,
    /// Secrets of this node as they were when it last acted on a commit.
    pub secrets: BTreeMap<SecretName, SecretSeen>,
    /// Which units restart or reload for what is ours here, as the repository said last.
    pub uses: Uses,
    /// Nodes of the topology that were not retired then.
    pub standing: Vec<NodeName>,
    /// Files that somebody else goes on writing: left as they are for now.
    pub resting: BTreeSet<HostPath>,
    /// A unit of a group settled here once, or a commit was wholly live.
    pub has_settled: bool,
    /// Node-risk content that was put back, by its digest: why, in words.
    pub rolled_back: BTreeMap<String, String>,
    pub booted: Booted,
    /// Singletons that this node may run now.
    pub held: BTreeSet<UnitName>,
}

/// A secret's version and what its value is told by, which stays in the node's own ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecretSeen {
    pub version: u64,
    /// `None`: from a ledger that kept plain digests, which are forgotten.
    pub value: Option<Fingerprint>,
}

/// A resource that is ours here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owned {
    /// Digest of what the repository wanted when it was last written (masked, secret versions).
    pub inputs: Digest,
    /// Of the bytes on disk, so that they need not be read again while the stamp is the same. `None` for what is no file.
    pub content: Option<Fingerprint>,
    pub stamp: Option<Stamp>,
    /// False between "this will be ours" and "it is written".
    pub written: bool,
    /// A secret was in it when it was last written: what is on disk is shown to nobody.
    #[serde(default)]
    pub secret: bool,
    /// A secret is in what is being written: until that is over, it may be there already.
    #[serde(default)]
    pub secret_comes: bool,
    /// The tool that it is for has not acted on it since it was written, or about to be.
    #[serde(default)]
    pub owed: bool,
    /// Stays on the node when it leaves the repository (seeds: the service's own by now).
    pub keep: bool,
}

/// Groups (under each of their names) with their `max_unavailable`.
pub type Lanes = BTreeMap<GroupId, usize>;

/// What a unit was last (re)started with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RanWith {
    pub restart: Digest,
    pub reload: Digest,
    pub invocation: String,
    pub boot_id: String,
    /// It was once healthy for its settle time under this name.
    pub settled: bool,
    /// The groups that protected it by the commit that was live then.
    pub groups: Vec<GroupId>,
    /// How many of their members could be away; where it is not said, as many as the target lets go.
    #[serde(default)]
    pub lanes: Lanes,
}

impl RanWith {
    pub fn now(restart: Digest, reload: Digest, invocation: &str, boot_id: &str, groups: &Lanes) -> Self {
        Self {
            restart,
            reload,
            invocation: invocation.to_owned(),
            boot_id: boot_id.to_owned(),
            settled: false,
            groups: groups.keys().cloned().collect(),
            lanes: groups.clone(),
        }
    }
}

impl RanWith {
    pub fn protected_by(&self) -> Lanes {
        self.groups.iter().map(|id| (id.clone(), self.lanes.get(id).copied().unwrap_or(usize::MAX))).collect()
    }
}

/// Written before the first rename of a unit's files: what it will run with, and which run of it was going on then.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pending {
    pub restart: Digest,
    pub reload: Digest,
    /// The run (InvocationID) that still has the old inputs.
    pub invocation: String,
    pub boot_id: String,
    /// All renames are done: whoever started after this runs with the new inputs.
    pub swapped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_an_older_agent_is_read_and_an_older_agent_reads_ours() {
        let one = || Digest::of_parts([b"one".as_slice()]);
        let now = RanWith::now(one(), one(), "run", "boot", &Lanes::from([("c.g".into(), 1)]));
        let mut row = serde_json::to_value(&now).unwrap();
        assert_eq!(row["groups"], serde_json::json!(["c.g"]));
        row.as_object_mut().unwrap().remove("lanes");
        let read: RanWith = serde_json::from_value(row).unwrap();
        assert_eq!(read.protected_by(), Lanes::from([("c.g".into(), usize::MAX)]));
        assert_eq!(now.protected_by(), Lanes::from([("c.g".into(), 1)]));
    }
}
