//! What we remember of this node, as the planner needs it: a plain value that the ledger fills.
//!
//! PURE. Never: stands in for looking at the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::{GroupId, SecretName, UnitName};
use crate::resource::file::Stamp;
use crate::resource::{Digest, Id};

#[derive(Clone, Default)]
pub struct Known {
    pub owned: BTreeMap<Id, Owned>,
    pub units: BTreeMap<UnitName, RanWith>,
    /// Units whose files are being exchanged, or were and whose restart is not recorded yet.
    pub pending: BTreeMap<UnitName, Pending>,
    /// Secrets of this node as they were when it last acted on a commit.
    pub secrets: BTreeMap<SecretName, SecretSeen>,
}

/// A secret's version and the digest of its value, which stays in the node's own ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecretSeen {
    pub version: u64,
    pub value: Digest,
}

/// A resource that is ours here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owned {
    /// Digest of what the repository wanted when it was last written (masked, secret versions).
    pub inputs: Digest,
    /// Digest of the bytes on disk, so that they need not be read again while the stamp is the same. `None` for what is
    /// no file. Kept in the node's own ledger only.
    pub content: Option<Digest>,
    pub stamp: Option<Stamp>,
    /// False between "this will be ours" and "it is written".
    pub written: bool,
    /// A secret was in it when it was last written: what is on disk is shown to nobody.
    #[serde(default)]
    pub secret: bool,
    /// Stays on the node when it leaves the repository (seeds: the service's own by now).
    pub keep: bool,
}

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
}

impl RanWith {
    pub fn now(restart: Digest, reload: Digest, invocation: &str, boot_id: &str, groups: &[GroupId]) -> Self {
        Self {
            restart,
            reload,
            invocation: invocation.to_owned(),
            boot_id: boot_id.to_owned(),
            settled: false,
            groups: groups.to_vec(),
        }
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
