//! The fleet repository's meaning: bytes in, clusters and nodes and roles out, every mistake named.
//!
//! `schema` is what people write (serde types, the source of `schemas/*.json`); this file is what it means; `load` goes
//! from one to the other and collects every [`Problem`](problem::Problem); `select` takes one node's part.
//! PURE. Never: reads a file, opens a secret, renders a template.

pub mod agents;
pub mod check;
pub mod load;
pub mod problem;
pub mod rule;
pub mod schema;
pub mod schemas;
pub mod select;
pub mod selector;
pub mod tree;
pub mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::name::{
    ClusterName, CommitId, EnvironmentName, GroupId, NodeName, RepoPath, RoleName, SecretName, UnitName,
};

/// One environment of one commit, whole and checked.
pub struct Fleet {
    /// The fleet id, equal to the node's trust root.
    pub name: String,
    /// `None`: a work tree that is not committed.
    pub commit: Option<CommitId>,
    /// Must agree with the nodes' trust roots, which decide.
    pub trust: schema::TrustPolicy,
    pub guards: schema::Guards,
    pub environment: Environment,
    /// Every file of the commit, for templates and static sources.
    pub tree: Arc<tree::Tree>,
}

pub struct Environment {
    pub name: EnvironmentName,
    pub domain: String,
    pub os: String,
    /// Roles of every node.
    pub roles: Vec<RoleName>,
    /// The commit whose `roles/` this environment keeps; the caller puts them into the tree.
    pub roles_at: Option<CommitId>,
    /// name -> CIDR
    pub networks: BTreeMap<String, String>,
    /// name -> address
    pub vips: BTreeMap<String, String>,
    /// By name: object stores that artifacts come from.
    pub s3: BTreeMap<String, schema::BucketEntry>,
    /// A file in the environment's folder: the authorities of its mirrors.
    pub mirror_authorities: Option<RepoPath>,
    pub agents: schema::Agents,
    pub tiers: BTreeMap<String, Tier>,
    /// In order of declaration; so are all lists below, and the order of restarts follows them.
    pub clusters: Vec<Cluster>,
    pub nodes: Vec<Node>,
    pub versions: BTreeMap<String, schema::Version>,
    pub variables: schema::Variables,
    pub secrets: BTreeMap<SecretName, Secret>,
    pub operators: Vec<String>,
    /// Every role that the environment or a cluster brings.
    pub role_bodies: BTreeMap<RoleName, Role>,
}

pub struct Tier {
    pub order: i64,
    pub clusters: Vec<ClusterName>,
}

pub struct Cluster {
    pub name: ClusterName,
    pub tier: String,
    pub roles: Vec<RoleName>,
    /// Clusters whose members report a commit applied before ours take it.
    pub after: Vec<ClusterName>,
    /// Empty: always.
    pub windows: Vec<window::Window>,
    pub restart_epoch: u64,
    pub ids: BTreeMap<NodeName, u64>,
    pub members: Vec<NodeName>,
    pub groups: Vec<Group>,
}

/// Nodes whose availability is judged together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    pub id: GroupId,
    /// In order of declaration in the topology.
    pub members: Vec<NodeName>,
    /// Those of them that are not `active`.
    pub changing: BTreeMap<NodeName, schema::Membership>,
    pub quorum: schema::Quorum,
    pub max_unavailable: usize,
    pub rank: Vec<NodeName>,
    pub conflicts: Vec<GroupId>,
    pub aliases: Vec<GroupId>,
    /// From the role: the unit whose stop takes a member away.
    pub unit: UnitName,
    /// From the role: the checks' names.
    pub gate: Option<String>,
    pub leader: Option<String>,
    pub settle_secs: u64,
    /// The role that gives the group its meaning (and its checks).
    pub role: RoleName,
}

/// What a batch changes of the membership of its groups.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberChange {
    #[default]
    None,
    /// This node's member gets its vote.
    Joins,
    /// This node's member stops, and gives its vote back.
    Leaves,
    /// This node's member takes the vote of one that is dead; it stops nothing.
    Strikes(NodeName),
}

impl MemberChange {
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    pub fn takes_a_vote(&self) -> bool {
        matches!(self, Self::Leaves | Self::Strikes(_))
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub name: NodeName,
    pub clusters: Vec<ClusterName>,
    /// network -> address
    pub addresses: BTreeMap<String, String>,
    pub size: schema::Size,
    pub labels: BTreeMap<String, toml::Value>,
    /// The node's own or the environment's.
    pub os: String,
    pub recipient: Option<String>,
    /// Keys besides `recipient`, while it goes from one to another.
    pub more_recipients: Vec<String>,
    pub state: schema::Membership,
}

/// The group that a node-risk batch of a node without groups claims: lanes of the whole environment.
pub const LANES: &str = "@environment";
/// Of the environment's nodes, how many may be at it at a time; at least one.
const LANES_PERCENT: usize = 10;

impl Group {
    /// Every name under which it is held.
    pub fn ids(&self) -> impl Iterator<Item = &GroupId> {
        std::iter::once(&self.id).chain(&self.aliases)
    }

    pub fn state_of(&self, member: &NodeName) -> schema::Membership {
        self.changing.get(member).copied().unwrap_or_default()
    }

    /// Whether it is the environment's lanes, where nobody's health is asked.
    pub fn is_lanes(&self) -> bool {
        self.id.as_str() == LANES
    }
}

impl Environment {
    /// Its lanes as a group: the nodes that are in no other, none of which needs another.
    pub fn lanes(&self) -> Group {
        let alone = self.nodes.iter().map(|node| &node.name);
        let alone = alone.filter(|node| !self.groups().any(|group| group.members.contains(node)));
        Group {
            id: GroupId::from(LANES),
            members: alone.cloned().collect(),
            changing: BTreeMap::new(),
            quorum: schema::Quorum::None,
            max_unavailable: (self.nodes.len() * LANES_PERCENT / 100).max(1),
            rank: Vec::new(),
            conflicts: Vec::new(),
            aliases: Vec::new(),
            unit: UnitName::from(""),
            gate: None,
            leader: None,
            settle_secs: 0,
            role: RoleName::from(""),
        }
    }
}

impl Node {
    /// Every key that a secret is encrypted to for this node.
    pub fn recipients(&self) -> impl Iterator<Item = &str> {
        self.recipient.iter().chain(&self.more_recipients).map(String::as_str)
    }

    /// `debian`, `rhel`: ubuntu is debian; rocky, alma, centos are rhel.
    pub fn os_family(&self) -> &str {
        os_family(&self.os)
    }
}

/// The family of an OS name such as `ubuntu-22.04`.
pub fn os_family(os: &str) -> &str {
    match os.split('-').next().unwrap_or(os) {
        "ubuntu" | "debian" => "debian",
        "rhel" | "rocky" | "almalinux" | "centos" | "fedora" => "rhel",
        other => other,
    }
}

pub struct Secret {
    pub name: SecretName,
    pub version: u64,
    /// Hex SHA-256 of the .age file.
    pub sha256: String,
    pub grant: selector::Selector,
    /// Digest of the recipients it is encrypted to.
    pub recipients: String,
    /// What it is made of, if nobody types it.
    pub generate: Option<schema::Shape>,
    /// When its certificate expires.
    pub expires: Option<jiff::Timestamp>,
    pub path: RepoPath,
}

/// Where the public half of a secret stands, in clear: an authority's certificate (`crt`), an SSH key's (`pub`).
pub fn public_path(environment: &EnvironmentName, secret: &SecretName, extension: &str) -> RepoPath {
    RepoPath::new(format!("environments/{environment}/public/{secret}.{extension}"))
}

/// `roles/<name>/role.toml`, as written, with defaults filled in.
pub struct Role {
    pub name: RoleName,
    pub path: RepoPath,
    pub groups: BTreeMap<String, schema::RoleGroup>,
    pub packages: Vec<Declared<schema::Package>>,
    pub artifacts: Vec<Declared<schema::Artifact>>,
    pub files: Vec<Declared<schema::File>>,
    pub units: Vec<Declared<schema::Unit>>,
    pub actions: Vec<Declared<schema::Action>>,
    pub checks: BTreeMap<String, schema::Check>,
    /// `defaults.toml`, empty where there is none.
    pub defaults: toml::Table,
}

/// Something a role declares, and the line of `role.toml` where it begins (1-based).
pub struct Declared<T> {
    pub line: usize,
    /// Byte range in `role.toml`, for diagnostics.
    pub span: std::ops::Range<usize>,
    pub body: T,
}

impl Environment {
    pub fn cluster(&self, name: &ClusterName) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name == *name)
    }

    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.clusters.iter().flat_map(|cluster| &cluster.groups)
    }

    pub fn group(&self, id: &GroupId) -> Option<&Group> {
        self.groups().find(|group| group.id == *id)
    }

    /// The groups that this node is a member of.
    pub fn groups_of<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a Group> {
        self.groups().filter(move |group| group.members.contains(node))
    }
}
