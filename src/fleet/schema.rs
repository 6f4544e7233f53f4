//! What people write: one type per file of the fleet repository, exactly its keys.
//!
//! These types are the source of `schemas/*.json` and of the reference pages; their doc comments are what an editor
//! shows. PURE. Never: a default that is not in a doc comment, an `untagged` enum (its errors say nothing).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector::Selector;
use crate::name::{ClusterName, EnvironmentName, GroupId, NodeName, RoleName, SecretName, UnitName};
use crate::resource::action::Scope;
use crate::resource::artifact::file_of;
use crate::resource::file::Policy;
use crate::resource::unit::Wanted;

fn yes() -> bool {
    true
}

/// `fleet.toml`: the fleet's identity. Changed only by a commit that a root key signed.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct FleetFile {
    /// Version of the repository format. Always 1.
    pub format: u32,
    /// Fleet id; equals `fleet` in every node's trust root.
    pub name: String,
    /// The environment that commands use when none is named.
    pub default_environment: EnvironmentName,
    /// Trust policy; must agree with the nodes' trust roots, which decide. Default: standard.
    #[serde(default)]
    pub trust: TrustPolicy,
    /// Limits that a commit passes only if it says so, signed.
    #[serde(default)]
    pub guards: Guards,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "kebab-case")]
pub enum TrustPolicy {
    /// The ordinary pull-request flow on one branch.
    #[default]
    Standard,
    /// Promotion commits on `deploy/<env>`.
    Strict,
}

/// Limits that a commit passes only with a signed `Converger-Allow: NAME OBJECT` trailer.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct Guards {
    /// Resources removed from one node.
    pub mass_removal: usize,
    /// Percent of an environment's nodes whose protected units restart.
    pub mass_change_percent: u32,
    /// Nodes may leave the topology without having been retired.
    pub node_removal: bool,
    /// Packages and artifacts may go to an older version.
    pub downgrade: bool,
    /// Secrets may go to an older version.
    pub secret_rollback: bool,
    /// `roles_at` may move backwards.
    pub roles_rollback: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            mass_removal: 20,
            mass_change_percent: 100,
            node_removal: false,
            downgrade: false,
            secret_rollback: false,
            roles_rollback: false,
        }
    }
}

/// `trust/policy.toml`: who may sign what.
#[derive(Deserialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// By the principal's name in `trust/allowed_signers`.
    #[serde(default)]
    pub principals: BTreeMap<String, Principal>,
    /// Keys that nobody may sign with any more.
    #[serde(default)]
    pub banned: Banned,
}

#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// What it may change.
    pub roles: Vec<PrincipalRole>,
    /// Globs over repository paths that this principal may change; `**` crosses folders. Default: everything.
    #[serde(default = "everything")]
    pub paths: Vec<String>,
}

fn everything() -> Vec<String> {
    vec!["**".to_owned()]
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum PrincipalRole {
    /// May change `trust/` and `fleet.toml`.
    Root,
    /// May change everything else within its paths.
    Deploy,
    /// Signs freshness statements only (policy `strict`).
    Freshness,
}

#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Banned {
    /// Fingerprints (`SHA256:…`) that never sign validly again. Entries can only be added.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// `environments/<env>/environment.toml`.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentFile {
    /// Version of the format. Always 1.
    pub format: u32,
    /// DNS domain of the nodes: `kafka01` is `kafka01.<domain>`.
    pub domain: String,
    /// Operating system of nodes that do not say otherwise: `debian-12`, `ubuntu-22.04`, `rhel-9`.
    pub os: String,
    /// Roles of every node.
    #[serde(default)]
    pub roles: Vec<RoleName>,
    /// Full id of an accepted commit whose `roles/` this environment keeps.
    #[serde(default)]
    pub roles_at: Option<String>,
    /// By name: an address range, `10.20.0.0/16`.
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
    /// By name: an address that moves between nodes.
    #[serde(default)]
    pub vips: BTreeMap<String, String>,
    /// By bucket: S3-compatible stores that `s3://bucket/key` in versions.toml stands for.
    #[serde(default)]
    pub s3: BTreeMap<String, BucketEntry>,
    /// PEM file in the environment's folder: the only authorities that https mirrors are believed by. Default: the system's.
    #[serde(default)]
    pub mirror_authorities: Option<String>,
    /// How the nodes take another version of the agent (component `converger` of `versions.toml`).
    #[serde(default)]
    pub agents: Agents,
}

/// An S3-compatible bucket that artifacts come from.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct BucketEntry {
    /// `https://s3.example.internal:9000`; the bucket's name becomes part of the path.
    pub endpoint: String,
    /// As the server calls it; many want `us-east-1`.
    pub region: String,
    /// Secret with the key id and the secret key: `id:key`, or a line each. Granted to every node that needs it.
    pub secret: SecretName,
}

/// The order and the pace in which agents are updated.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct Agents {
    /// Nodes that go first; the others wait until all of them run the new agent settled. Default: nobody.
    pub canaries: Selector,
    /// How many percent of the nodes may have an agent on trial at once; at least one node. Default: 10.
    pub at_a_time_percent: u64,
    /// Seconds in which a new agent must complete one whole run, or the one before it is back. Default: 300.
    pub trial_secs: u64,
}

impl Default for Agents {
    fn default() -> Self {
        Self { canaries: Selector::Any(Vec::new()), at_a_time_percent: 10, trial_secs: 300 }
    }
}

/// `environments/<env>/topology.toml`: who and how many.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct TopologyFile {
    /// Clusters put together for people.
    #[serde(default)]
    pub tiers: BTreeMap<String, TierEntry>,
    /// In order of declaration.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, ClusterEntry>")]
    pub clusters: Entries<ClusterEntry>,
    /// In order of declaration, which is the order of restarts.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, NodeEntry>")]
    pub nodes: Entries<NodeEntry>,
}

/// Named tables in the order in which they are written, each with the span of its name.
#[derive(Clone, Debug)]
pub struct Entries<T>(pub Vec<(toml::Spanned<String>, T)>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for InOrder<T> {
            type Value = Entries<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("named tables")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct TierEntry {
    /// For display only.
    pub order: i64,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ClusterEntry {
    /// The tier that it is shown in.
    pub tier: String,
    /// Roles that every member has. Empty: not written yet; `check` warns.
    pub roles: Vec<RoleName>,
    /// Clusters whose members report a commit applied before these take it.
    #[serde(default)]
    pub after: Vec<ClusterName>,
    /// Maintenance windows, UTC: `Sat 02:00-04:00`, `Mon-Fri 22:00-04:00`, `02:00-04:00`. Empty: always.
    #[serde(default)]
    pub windows: Vec<String>,
    /// Raised by one, restarts the units of this cluster's roles, member by member.
    #[serde(default)]
    pub restart_epoch: u64,
    /// Explicit numbers, never reused: `node.id` in this cluster's roles.
    #[serde(default)]
    pub ids: BTreeMap<NodeName, u64>,
    /// Members whose availability is judged together; what that means is in the role.
    #[serde(default)]
    pub groups: BTreeMap<String, GroupEntry>,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    /// Selector within the cluster. Default: all of it.
    #[serde(default)]
    pub members: Selector,
    /// How many must stay up.
    pub quorum: Quorum,
    /// How many members may be away at once; at least 1.
    pub max_unavailable: usize,
    /// Names that go first; the leader goes last whatever is said here.
    #[serde(default)]
    pub rank: Vec<NodeName>,
    /// Groups of which none may be disrupted at the same time.
    #[serde(default)]
    pub conflicts: Vec<GroupId>,
    /// Former names of this group.
    #[serde(default)]
    pub aliases: Vec<GroupId>,
}

#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Quorum {
    /// More than half of the members must stay up.
    Majority,
    /// Only `max_unavailable` counts.
    None,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// The clusters that it is a member of.
    pub clusters: Vec<ClusterName>,
    /// By network: the address.
    pub addresses: BTreeMap<String, String>,
    /// The machine's size, for templates.
    pub size: Size,
    /// Free facts for selectors and templates: `controller = true`, `rack = "a"`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub labels: BTreeMap<String, toml::Value>,
    /// Default: the environment's.
    #[serde(default)]
    pub os: Option<String>,
    /// The node's own age or SSH public key.
    #[serde(default)]
    pub recipient: Option<String>,
    /// More keys of the node, while it goes from one to another: secrets are encrypted to all of them.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// Default: active.
    #[serde(default)]
    pub state: Membership,
}

#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Virtual processors.
    pub vcpu: u64,
    /// Memory in GiB.
    pub memory_gib: u64,
    /// Data disk in GiB.
    pub disk_gib: u64,
}

#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Membership {
    /// New: its first start is a membership change.
    Joining,
    #[default]
    Active,
    /// On its way out.
    Draining,
    /// Out; may be deleted from the topology.
    Retired,
}

/// `versions.toml`, one table per component.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// As its makers write it.
    pub version: String,
    /// Hex SHA-256 of the archive; needed once a role declares the artifact.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Tried in order: `https://`, `http://`, `file:///`, `s3://bucket/key`.
    #[serde(default)]
    pub urls: Vec<String>,
    /// What the archive is called, which tells its form. Default: the last part of the first url.
    #[serde(default)]
    pub file: Option<String>,
    /// Where an OS (family or exact) differs.
    #[serde(default)]
    pub os: BTreeMap<String, VersionOverride>,
}

/// A component's version as one OS gets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pinned<'a> {
    pub version: &'a str,
    pub sha256: Option<&'a str>,
    pub urls: &'a [String],
    /// What the archive is called. Empty: nothing tells.
    pub file: &'a str,
}

impl Version {
    /// Key by key: the exact OS, its family, then everybody's.
    pub fn on(&self, os: &str) -> Pinned<'_> {
        let overrides = [self.os.get(os), self.os.get(super::os_family(os))];
        let overrides = || overrides.into_iter().flatten();
        let urls = overrides().find_map(|other| other.urls.as_deref()).unwrap_or(&self.urls);
        let file = overrides().find_map(|other| other.file.as_deref()).or(self.file.as_deref());
        Pinned {
            version: overrides().find_map(|other| other.version.as_deref()).unwrap_or(&self.version),
            sha256: overrides().find_map(|other| other.sha256.as_deref()).or(self.sha256.as_deref()),
            urls,
            file: file.unwrap_or_else(|| urls.first().map_or("", |url| file_of(url))),
        }
    }
}

#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct VersionOverride {
    /// In place of the one for all.
    #[serde(default)]
    pub version: Option<String>,
    /// In place of the one for all.
    #[serde(default)]
    pub sha256: Option<String>,
    /// In place of those for all.
    #[serde(default)]
    pub urls: Option<Vec<String>>,
    /// In place of the one for all.
    #[serde(default)]
    pub file: Option<String>,
}

/// `variables.toml`: values for templates, over `roles/<role>/defaults.toml`. Tables merge, arrays replace, later wins:
/// all, os, cluster, node.
#[derive(Deserialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Variables {
    /// For every node.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub all: toml::Table,
    /// By OS family or exact OS.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, BTreeMap<String, serde_json::Value>>")]
    pub os: BTreeMap<String, toml::Table>,
    /// By cluster: for the roles that it brings.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, BTreeMap<String, serde_json::Value>>")]
    pub cluster: BTreeMap<ClusterName, toml::Table>,
    /// By node.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, BTreeMap<String, serde_json::Value>>")]
    pub node: BTreeMap<NodeName, toml::Table>,
}

/// `secrets.toml`: who may read which secret.
#[derive(Deserialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct SecretsFile {
    /// Recipients that can open every secret of the environment.
    #[serde(default)]
    pub operators: Vec<String>,
    /// By name: the secret in `secrets/NAME.age`.
    #[serde(default)]
    pub secrets: BTreeMap<crate::name::SecretName, SecretEntry>,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct SecretEntry {
    /// Raised when the value changes; restarts follow it, never the ciphertext. Left out until the secret is made.
    #[serde(default)]
    pub version: u64,
    /// Hex SHA-256 of the .age file. Left out until the secret is made.
    #[serde(default)]
    pub sha256: String,
    /// Nodes that may read it.
    pub grant: Selector,
    /// Hex SHA-256 of the sorted recipients it is encrypted to, each followed by a newline. Left out until the secret is
    /// made.
    #[serde(default)]
    pub recipients: String,
    /// What `converger secret generate` makes it of. Default: nothing, somebody gives the value.
    #[serde(default)]
    pub generate: Option<Shape>,
    /// When its certificate expires, RFC 3339. Written by the commands that make or import certificates.
    #[serde(default, deserialize_with = "moment")]
    #[schemars(with = "Option<String>")]
    pub expires: Option<jiff::Timestamp>,
}

fn moment<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<jiff::Timestamp>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = |_| format!("{text:?} is no date and time; expected one as in 2027-01-31T10:00:00Z");
    text.parse().map(Some).map_err(wrong).map_err(serde::de::Error::custom)
}

/// What a secret that nobody types is made of.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// What it is.
    pub kind: ShapeKind,
    /// `password`: characters. Default: 32.
    #[serde(default)]
    pub length: Option<usize>,
    /// `password`: the characters to choose from. Default: letters and digits.
    #[serde(default)]
    pub alphabet: Option<String>,
    /// `hex`, `base64`: how many random bytes are written so. Default: 32.
    #[serde(default)]
    pub bytes: Option<usize>,
    /// `tls`: the secret with the key of the authority that signs it.
    #[serde(default)]
    pub ca: Option<crate::name::SecretName>,
    /// `tls`: DNS names, besides the node's own if it is granted to exactly one node.
    #[serde(default)]
    pub names: Vec<String>,
    /// `tls`: IP addresses, or names of `vips`, besides the node's own if it is granted to exactly one node.
    #[serde(default)]
    pub ips: Vec<String>,
    /// `ca`, `tls`: how long the certificate is valid. Default: 3650 and 365, and never longer than its authority's.
    #[serde(default)]
    pub days: Option<u32>,
}

#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum ShapeKind {
    /// Characters of an alphabet.
    Password,
    /// Random bytes in hex.
    Hex,
    /// Random bytes in base64.
    Base64,
    /// An ed25519 key as OpenSSH writes it; its public half goes to `public/NAME.pub` of the environment.
    Ssh,
    /// The key of a certificate authority, granted to no node; its certificate goes to `public/NAME.crt`.
    Ca,
    /// Private key, certificate and its chain in one PEM, for servers and clients.
    Tls,
}

/// `roles/<role>/role.toml`: what a node with this role must look like.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct RoleFile {
    /// Version of the format. Always 1.
    pub format: u32,
    /// What the topology's groups of this name mean.
    #[serde(default)]
    pub groups: BTreeMap<String, RoleGroup>,
    /// OS packages.
    #[serde(default)]
    #[schemars(with = "Vec<Package>")]
    pub package: Vec<toml::Spanned<Package>>,
    /// Archives.
    #[serde(default)]
    #[schemars(with = "Vec<Artifact>")]
    pub artifact: Vec<toml::Spanned<Artifact>>,
    /// Files.
    #[serde(default)]
    #[schemars(with = "Vec<File>")]
    pub file: Vec<toml::Spanned<File>>,
    /// systemd units.
    #[serde(default)]
    #[schemars(with = "Vec<Unit>")]
    pub unit: Vec<toml::Spanned<Unit>>,
    /// Questions about health.
    #[serde(default)]
    #[schemars(with = "Vec<Check>")]
    pub check: Vec<toml::Spanned<Check>>,
    /// Guarded one-off commands.
    #[serde(default)]
    #[schemars(with = "Vec<Action>")]
    pub action: Vec<toml::Spanned<Action>>,
}

#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct RoleGroup {
    /// The unit whose stop takes a member away.
    pub unit: UnitName,
    /// A check: asked of the other members before (probe), of oneself after (settle).
    #[serde(default)]
    pub gate: Option<String>,
    /// The check that tells who leads.
    #[serde(default)]
    pub leader: Option<String>,
    /// How long the member must be healthy, without a break, before the next one moves.
    #[serde(default = "settle_default")]
    pub settle_secs: u64,
}

fn settle_default() -> u64 {
    30
}

/// An OS package.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// By OS family or exact OS: `{ debian = "chrony", rhel = "chrony" }`.
    pub name: BTreeMap<String, String>,
    /// Empty: any.
    #[serde(default)]
    pub version: String,
    /// Kept from being upgraded by others. Otherwise a hold that is there is released.
    #[serde(default)]
    pub hold: bool,
    /// Which of the role's nodes. Default: all.
    #[serde(default)]
    pub only: Selector,
    /// Units that must restart when it changes.
    #[serde(default)]
    pub restarts: Vec<UnitName>,
    /// Units that must reload when it changes.
    #[serde(default)]
    pub reloads: Vec<UnitName>,
    /// Whether the change needs a reboot.
    #[serde(default)]
    pub reboot: bool,
}

impl Package {
    /// The name on the exact OS, else in its family.
    pub fn name_on(&self, os: &str) -> Option<&str> {
        self.name.get(os).or_else(|| self.name.get(super::os_family(os))).map(String::as_str)
    }
}

/// An archive of `versions.toml`, unpacked to `into/<version>`; `into/current` points there.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// A component of versions.toml.
    pub component: String,
    /// Absolute path of the folder that has the versions.
    pub into: String,
    /// Which of the role's nodes. Default: all.
    #[serde(default)]
    pub only: Selector,
    /// Units that must restart when it changes.
    #[serde(default)]
    pub restarts: Vec<UnitName>,
    /// Units that must reload when it changes.
    #[serde(default)]
    pub reloads: Vec<UnitName>,
}

/// A file: exactly one of `template`, `source`, `secret`.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute; a Tera string.
    pub path: String,
    /// A Tera template in the role's folder.
    #[serde(default)]
    pub template: Option<String>,
    /// A file in the role's folder, byte for byte.
    #[serde(default)]
    pub source: Option<String>,
    /// A secret's name; a Tera string.
    #[serde(default)]
    pub secret: Option<String>,
    /// A user's name.
    #[serde(default = "root")]
    pub owner: String,
    /// A group's name.
    #[serde(default = "root")]
    pub group: String,
    /// Octal. Default: 0644, and 0600 where a secret is in it.
    #[serde(default)]
    pub mode: Option<String>,
    /// Which of the role's nodes. Default: all.
    #[serde(default)]
    pub only: Selector,
    /// How to check its candidate before it replaces anything.
    #[serde(default)]
    pub validate: Option<Validate>,
    /// Units that must restart when it changes.
    #[serde(default)]
    pub restarts: Vec<UnitName>,
    /// Units that must reload when it changes.
    #[serde(default)]
    pub reloads: Vec<UnitName>,
    #[serde(default)]
    pub policy: Policy,
    /// Whether the change needs a reboot.
    #[serde(default)]
    pub reboot: bool,
}

fn root() -> String {
    "root".to_owned()
}

/// A check of a file's candidate before it replaces anything.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Validate {
    /// Argument list; `{}` is the candidate. It sees all candidates of its batch in place, changes nothing and has no network.
    pub run: Vec<String>,
    /// Default: an unprivileged user; the owner of a file with secrets.
    #[serde(default)]
    pub user: String,
    /// Exit codes that mean that it is good.
    #[serde(default = "zero")]
    pub ok_exit: Vec<i32>,
    /// Regular expressions over the output that refuse the candidate whatever the exit code.
    #[serde(default)]
    pub fail_on: Vec<String>,
    /// Lines of output to leave out of account.
    #[serde(default)]
    pub ignore: Vec<String>,
}

fn zero() -> Vec<i32> {
    vec![0]
}

/// A systemd unit.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    pub name: UnitName,
    /// Our own unit file: a template in the role's folder.
    #[serde(default)]
    pub template: Option<String>,
    /// A drop-in for a vendor's unit: a template in the role's folder.
    #[serde(default)]
    pub dropin: Option<String>,
    /// Default: left as it is.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// How it must be: running, stopped, or impossible to start.
    #[serde(default)]
    pub state: Wanted,
    /// Argument lists, run before the stop; one that fails ends the attempt before anything stopped.
    #[serde(default)]
    pub before_stop: Vec<Vec<String>>,
    /// Run only where this member leads: hand the lead over.
    #[serde(default)]
    pub transfer: Vec<Vec<String>>,
    /// Argument lists, run after the start.
    #[serde(default)]
    pub after_start: Vec<Vec<String>>,
    /// How long its stop may take.
    #[serde(default = "stop_default")]
    pub stop_secs_max: u64,
    /// How long its start may take.
    #[serde(default = "stop_default")]
    pub start_secs_max: u64,
    /// A reload takes the hold too, unless it is known to be harmless.
    #[serde(default = "yes")]
    pub reload_hold: bool,
    /// One node of the cluster runs it at a time (the manual's page on singletons).
    #[serde(default)]
    pub singleton: bool,
    /// Singletons only: how long it may take until another node may run it; it is stopped in time.
    #[serde(default)]
    pub lease_secs: Option<u64>,
    /// Which of the role's nodes. Default: all.
    #[serde(default)]
    pub only: Selector,
}

fn stop_default() -> u64 {
    90
}

/// A question about a member's health.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What `gate` and `leader` call it.
    pub name: String,
    /// What is asked, and how; the manual's page on restart locks says when the answer is healthy.
    pub kind: CheckKind,
    /// Whose address of the asked member is used. Default: the first that the environment declares.
    #[serde(default)]
    pub network: Option<String>,
    /// Where the kind needs one.
    #[serde(default)]
    pub port: Option<u16>,
    /// `http`: the path; `sentinel`: the master's name; `vip-holder`: the address.
    #[serde(default)]
    pub path: Option<String>,
    /// Expected HTTP status. Default: 200.
    #[serde(default)]
    pub status: Option<u16>,
    /// Asked over TLS, with these files.
    #[serde(default)]
    pub tls: Option<CheckTls>,
    /// The password's secret, where the kind needs one.
    #[serde(default)]
    pub secret: Option<String>,
    /// The user that belongs to the password; `command`: the user that runs it.
    #[serde(default)]
    pub user: Option<String>,
    /// `command`: argument list; `{address}` is the asked member.
    #[serde(default)]
    pub run: Vec<String>,
    /// No answer in this time is unknown, which is down.
    #[serde(default = "five")]
    pub timeout_secs: u64,
}

fn five() -> u64 {
    5
}

#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    Etcd,
    KafkaQuorum,
    KafkaIsr,
    Patroni,
    Redis,
    Sentinel,
    Keeper,
    VipHolder,
    Http,
    Tcp,
    Command,
    Unit,
}

#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct CheckTls {
    /// Path of the authority's certificate on the node.
    pub ca: String,
    /// Path of the asking node's own certificate.
    #[serde(default)]
    pub cert: Option<String>,
    /// Path of its private key.
    #[serde(default)]
    pub key: Option<String>,
}

/// A guarded one-off command.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Its name on the node.
    pub name: String,
    /// Argument list; no shell.
    pub run: Vec<String>,
    /// Done if this path exists.
    #[serde(default)]
    pub creates: Option<String>,
    /// Done if this command exits 0.
    #[serde(default)]
    pub unless: Vec<String>,
    /// Default: root.
    #[serde(default)]
    pub user: String,
    /// Units that must not start before this ran.
    #[serde(default)]
    pub before: Vec<UnitName>,
    /// How often it runs.
    #[serde(default)]
    pub scope: Scope,
    /// `join`, `drain`, `leave`: a membership change, under the node's hold.
    #[serde(default)]
    pub on: String,
    /// Which of the role's nodes. Default: all.
    #[serde(default)]
    pub only: Selector,
}
