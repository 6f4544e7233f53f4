//! Names and ids: what things are called, as types that cannot be mixed up.
//!
//! PURE. Never: looks anything up, or decides whether a name exists.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl From<&str> for $type {
            fn from(name: &str) -> Self {
                Self(name.to_owned())
            }
        }
        impl From<String> for $type {
            fn from(name: String) -> Self {
                Self(name)
            }
        }
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A VM of the fleet, as the topology names it; never the hostname.
    NodeName
);
name!(
    /// Nodes that do one job together: `kafka`, `etcd`, …
    ClusterName
);
name!(
    /// `roles/<name>/`.
    RoleName
);
name!(
    /// `environments/<name>/`.
    EnvironmentName
);
name!(
    /// `environments/<env>/secrets/<name>.age`.
    SecretName
);
name!(
    /// A systemd unit with its suffix: `kafka.service`.
    UnitName
);
name!(
    /// `<cluster>.<group>`: the nodes whose availability is judged together.
    GroupId
);
name!(
    /// A full Git commit id, 40 or 64 hex digits.
    CommitId
);
name!(
    /// A path inside the fleet repository, `/`-separated, relative, UTF-8.
    RepoPath
);
name!(
    /// An absolute path on a node, as the repository says it (before `--root`).
    HostPath
);

impl GroupId {
    pub fn of(cluster: &ClusterName, group: &str) -> Self {
        Self(format!("{cluster}.{group}"))
    }

    /// The part after the dot: what people call the group inside its cluster.
    pub fn short(&self) -> &str {
        self.0.split_once('.').map_or(self.as_str(), |(_, group)| group)
    }

    /// The part before the dot.
    pub fn cluster(&self) -> ClusterName {
        ClusterName::new(self.0.split_once('.').map_or(self.as_str(), |(cluster, _)| cluster))
    }
}

impl CommitId {
    /// The first seven digits, for people.
    pub fn short(&self) -> &str {
        self.0.get(..7).unwrap_or(&self.0)
    }
}
