//! `action`: a guarded one-off command. Whether it is needed is asked of the world, never remembered.
//!
//! PURE. Never: runs anything.

use super::Digest;
use crate::name::{GroupId, NodeName};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Each node for itself.
    #[default]
    Node,
    /// One elected healthy member for the whole cluster.
    Cluster,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ActionSpec {
    pub name: String,
    /// No shell: an argument list.
    pub run: Vec<String>,
    /// The action is done if this path exists.
    pub creates: Option<String>,
    /// The action is done if this command exits 0.
    pub unless: Vec<String>,
    /// Empty: root.
    pub user: String,
    pub scope: Scope,
    /// A membership change: `join`, `drain`, `leave`; empty: an ordinary action.
    pub on: String,
}

impl ActionSpec {
    pub fn inputs(&self) -> Digest {
        let lists = self.run.iter().chain(&self.unless).map(|arg| arg.as_bytes());
        let rest = [self.creates.as_deref().unwrap_or("").as_bytes(), self.user.as_bytes(), self.on.as_bytes()];
        Digest::of_parts(lists.chain(rest))
    }
}

/// An action that takes the vote of a dead member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Strike {
    pub dead: NodeName,
    pub groups: Vec<GroupId>,
    /// As the dead node would run it.
    pub action: ActionSpec,
}

/// Whether the world says that the action is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ActionState {
    Done,
    Needed,
    /// The program of its guard is not there: the commit may bring it. Asked again before it runs.
    Unguarded,
    /// The guard could not be asked: in words.
    Unknown(String),
}
