//! The nouns: what a node must look like (Spec), what it looks like (State), and the difference (Change).
//!
//! One file per kind. PURE, and it imports nothing of ours but names. Never: touches a host.

pub mod action;
pub mod activation;
pub mod artifact;
pub mod content;
pub mod file;
pub mod package;
pub mod unit;
pub mod version_order;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use action::ActionSpec;
pub use activation::Activation;
pub use artifact::ArtifactSpec;
pub use content::{Content, Digest, Found};
pub use file::{FileSpec, FileState};
pub use package::PackageSpec;
pub use unit::{UnitSpec, UnitState};

use crate::name::{ClusterName, RepoPath, RoleName, UnitName};

/// One thing a node must have. There are five kinds and no other.
#[derive(Clone)]
pub enum Resource {
    File(FileSpec),
    Package(PackageSpec),
    Artifact(ArtifactSpec),
    Unit(UnitSpec),
    Action(ActionSpec),
}

impl Resource {
    pub fn id(&self) -> Id {
        match self {
            Self::File(spec) => Id { kind: Kind::File, name: spec.path.to_string() },
            Self::Package(spec) => Id { kind: Kind::Package, name: spec.name.clone() },
            Self::Artifact(spec) => Id { kind: Kind::Artifact, name: spec.into.to_string() },
            Self::Unit(spec) => Id { kind: Kind::Unit, name: spec.name.to_string() },
            Self::Action(spec) => Id { kind: Kind::Action, name: spec.name.clone() },
        }
    }

    /// What a unit that uses this resource runs with: a digest of everything that would need a restart.
    ///
    /// Made from masked content and secret *versions*, so that re-keying a secret restarts nothing and no hash of a
    /// value exists.
    pub fn inputs(&self) -> Digest {
        match self {
            Self::File(spec) => spec.inputs(),
            Self::Package(spec) => spec.inputs(),
            Self::Artifact(spec) => spec.inputs(),
            Self::Unit(spec) => spec.inputs(),
            Self::Action(spec) => spec.inputs(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    File,
    Package,
    Artifact,
    Unit,
    Action,
}

/// What a resource is called on its node; two resources with one id on a node are a problem.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Id {
    pub kind: Kind,
    pub name: String,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::File => write!(f, "{}", self.name),
            Kind::Package => write!(f, "package {}", self.name),
            Kind::Artifact => write!(f, "artifact {}", self.name),
            Kind::Unit => write!(f, "{}", self.name),
            Kind::Action => write!(f, "action {}", self.name),
        }
    }
}

/// Where in the fleet repository a resource is declared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Origin {
    pub role: RoleName,
    /// `None` for roles that a node has without a cluster (the environment's own).
    pub cluster: Option<ClusterName>,
    pub path: RepoPath,
    /// 1-based.
    pub line: usize,
}

/// A resource with its place on the node: where it comes from and whom it concerns.
#[derive(Clone)]
pub struct Placed {
    pub resource: Resource,
    pub origin: Origin,
    /// Units that must restart when this changes.
    pub restarts: Vec<UnitName>,
    /// Units that must reload when this changes.
    pub reloads: Vec<UnitName>,
    /// Actions only: units that must not start before this ran.
    pub before: Vec<UnitName>,
    /// A change needs a reboot of the machine.
    pub reboot: bool,
}

impl Placed {
    /// Whether a change of it changes anything on a node that has it: a seed is its service's own once it is there, and an
    /// audited file is left as it is.
    pub fn is_enforced(&self) -> bool {
        !matches!(&self.resource, Resource::File(spec) if spec.policy != file::Policy::Enforce)
    }
}
