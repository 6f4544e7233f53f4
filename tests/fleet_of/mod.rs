//! A fleet from a handful of files, as `fleet::load` would make it.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use converger::fleet::schema::{
    EnvironmentFile, FleetFile, Membership, RoleFile, SecretsFile, TopologyFile, Variables, Version,
};
use converger::fleet::select::{NodeSpec, select};
use converger::fleet::tree::Tree;
use converger::fleet::{Cluster, Declared, Environment, Fleet, Group, Node, Role, Secret, Tier};
use converger::name::{ClusterName, CommitId, EnvironmentName, GroupId, NodeName, RepoPath, RoleName};

pub const ENVIRONMENT: &str = r#"
format = 1
domain = "data.example.internal"
os = "debian-12"
roles = ["base"]
[networks]
app = "10.20.0.0/16"
mgmt = "10.10.0.0/16"
[vips]
internal = "10.20.0.10"
"#;

pub const TOPOLOGY: &str = r#"
[tiers.streaming]
order = 30
[clusters.etcd]
tier = "streaming"
roles = ["etcd"]
[clusters.etcd.groups.members]
members = "all"
quorum = "majority"
max_unavailable = 1
[clusters.kafka]
tier = "streaming"
roles = ["kafka"]
restart_epoch = 2
[clusters.kafka.ids]
kafka01 = 1
kafka02 = 2
kafka03 = 3
[clusters.kafka.groups.controllers]
members = { label = "controller" }
quorum = "majority"
max_unavailable = 1
[nodes.kafka01]
clusters = ["kafka"]
addresses = { app = "10.20.20.11", mgmt = "10.10.20.11" }
size = { vcpu = 16, memory_gib = 64, disk_gib = 2000 }
labels = { controller = true, rack = "a" }
[nodes.kafka02]
clusters = ["kafka"]
addresses = { app = "10.20.20.12", mgmt = "10.10.20.12" }
size = { vcpu = 16, memory_gib = 64, disk_gib = 2000 }
labels = { controller = true, rack = "b" }
[nodes.kafka03]
clusters = ["kafka"]
addresses = { app = "10.20.20.13", mgmt = "10.10.20.13" }
size = { vcpu = 16, memory_gib = 64, disk_gib = 2000 }
[nodes.etcd01]
clusters = ["etcd"]
addresses = { app = "10.20.30.11", mgmt = "10.10.30.11" }
size = { vcpu = 4, memory_gib = 8, disk_gib = 100 }
os = "rhel-9"
[nodes.etcd02]
clusters = ["etcd"]
addresses = { app = "10.20.30.12" }
size = { vcpu = 4, memory_gib = 8, disk_gib = 100 }
state = "retired"
"#;

/// Files of the repository by path; `fleet.toml`, the environment and the topology above are there unless given.
#[derive(Clone)]
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    pub fn new() -> Self {
        Self(BTreeMap::new())
            .with("fleet.toml", "format = 1\nname = \"test\"\ndefault_environment = \"production\"\n")
            .with("environments/production/environment.toml", ENVIRONMENT)
            .with("environments/production/topology.toml", TOPOLOGY)
            .with("roles/base/role.toml", "format = 1\n")
            .with("roles/etcd/role.toml", "format = 1\n[groups.members]\nunit = \"etcd.service\"\n")
            .with("roles/kafka/role.toml", "format = 1\n[groups.controllers]\nunit = \"kafka.service\"\n")
    }

    pub fn with(mut self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.0.insert(path.to_owned(), bytes.as_ref().to_vec());
        self
    }

    pub fn fleet(&self) -> Fleet {
        let files = self.0.iter().map(|(path, bytes)| (RepoPath::from(path.as_str()), Arc::from(bytes.as_slice())));
        fleet(&Arc::new(Tree { commit: Some(CommitId::new("0".repeat(40))), files: files.collect() }))
    }
}

pub fn spec<'a>(fleet: &'a Fleet, node: &str) -> NodeSpec<'a> {
    select(fleet, &NodeName::from(node)).expect("the topology has the node")
}

fn read<T: serde::de::DeserializeOwned>(tree: &Tree, path: &str) -> T {
    let text = tree.get(path).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).unwrap_or_default();
    toml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn fleet(tree: &Arc<Tree>) -> Fleet {
    let file: FleetFile = read(tree, "fleet.toml");
    let folder = format!("environments/{}", file.default_environment);
    let environment: EnvironmentFile = read(tree, &format!("{folder}/environment.toml"));
    let topology: TopologyFile = read(tree, &format!("{folder}/topology.toml"));
    let secrets: SecretsFile = read(tree, &format!("{folder}/secrets.toml"));
    let used = topology.clusters.0.iter().flat_map(|(_, cluster)| &cluster.roles).chain(&environment.roles);
    let role_bodies: BTreeMap<RoleName, Role> = used.map(|name| (name.clone(), role(tree, name))).collect();
    let nodes: Vec<Node> = topology
        .nodes
        .0
        .iter()
        .map(|(name, entry)| Node {
            name: NodeName::new(name.get_ref().as_str()),
            clusters: entry.clusters.clone(),
            addresses: entry.addresses.clone(),
            size: entry.size,
            labels: entry.labels.clone(),
            os: entry.os.clone().unwrap_or_else(|| environment.os.clone()),
            recipient: entry.recipient.clone(),
            more_recipients: entry.recipients.clone(),
            state: entry.state,
        })
        .collect();
    let clusters = topology.clusters.0.iter().map(|(name, entry)| {
        let name = ClusterName::new(name.get_ref().as_str());
        let members: Vec<&Node> = nodes.iter().filter(|node| node.clusters.contains(&name)).collect();
        let groups = entry.groups.iter().filter_map(|(group, said)| {
            let (role, meaning) =
                entry.roles.iter().find_map(|role| Some((role, role_bodies.get(role)?.groups.get(group)?)))?;
            let selected: Vec<&&Node> = members.iter().filter(|node| said.members.selects(node, &|_| false)).collect();
            let changing = selected.iter().filter(|node| node.state != Membership::Active);
            Some(Group {
                id: GroupId::of(&name, group),
                members: selected.iter().map(|node| node.name.clone()).collect(),
                changing: changing.map(|node| (node.name.clone(), node.state)).collect(),
                quorum: said.quorum,
                max_unavailable: said.max_unavailable,
                rank: said.rank.clone(),
                conflicts: said.conflicts.clone(),
                aliases: said.aliases.clone(),
                unit: meaning.unit.clone(),
                gate: meaning.gate.clone(),
                leader: meaning.leader.clone(),
                settle_secs: meaning.settle_secs,
                role: role.clone(),
            })
        });
        Cluster {
            groups: groups.collect(),
            members: members.iter().map(|node| node.name.clone()).collect(),
            tier: entry.tier.clone(),
            roles: entry.roles.clone(),
            after: entry.after.clone(),
            windows: entry.windows.iter().map(|window| window.parse().unwrap()).collect(),
            restart_epoch: entry.restart_epoch,
            ids: entry.ids.clone(),
            name,
        }
    });
    let clusters: Vec<Cluster> = clusters.collect();
    let tiers = topology.tiers.iter().map(|(name, tier)| {
        let inside = clusters.iter().filter(|cluster| cluster.tier == *name);
        (name.clone(), Tier { order: tier.order, clusters: inside.map(|cluster| cluster.name.clone()).collect() })
    });
    let known_secrets = secrets.secrets.into_iter().map(|(name, entry)| {
        let secret = Secret {
            path: RepoPath::new(format!("{folder}/secrets/{name}.age")),
            name: name.clone(),
            version: entry.version,
            sha256: entry.sha256,
            grant: entry.grant,
            recipients: entry.recipients,
            generate: entry.generate,
            expires: entry.expires,
        };
        (name, secret)
    });
    Fleet {
        name: file.name,
        commit: tree.commit.clone(),
        guards: file.guards,
        trust: file.trust,
        tree: Arc::clone(tree),
        environment: Environment {
            name: EnvironmentName::new(file.default_environment.as_str()),
            domain: environment.domain,
            os: environment.os,
            roles: environment.roles,
            roles_at: None,
            networks: environment.networks,
            vips: environment.vips,
            s3: BTreeMap::new(),
            mirror_authorities: None,
            agents: environment.agents,
            tiers: tiers.collect(),
            clusters,
            nodes,
            versions: read::<BTreeMap<String, Version>>(tree, &format!("{folder}/versions.toml")),
            variables: read::<Variables>(tree, &format!("{folder}/variables.toml")),
            secrets: known_secrets.collect(),
            operators: secrets.operators,
            role_bodies,
        },
    }
}

fn role(tree: &Tree, name: &RoleName) -> Role {
    let path = format!("roles/{name}/role.toml");
    let manifest = tree.get(&path).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).unwrap_or_default();
    let body: RoleFile = read(tree, &path);
    fn declared<T>(manifest: &str, entries: Vec<toml::Spanned<T>>) -> Vec<Declared<T>> {
        let declare = |entry: toml::Spanned<T>| Declared {
            line: manifest[..entry.span().start].lines().count().max(1),
            span: entry.span(),
            body: entry.into_inner(),
        };
        entries.into_iter().map(declare).collect()
    }
    let checks = body.check.into_iter().map(toml::Spanned::into_inner);
    Role {
        name: name.clone(),
        groups: body.groups,
        packages: declared(&manifest, body.package),
        artifacts: declared(&manifest, body.artifact),
        files: declared(&manifest, body.file),
        units: declared(&manifest, body.unit),
        actions: declared(&manifest, body.action),
        checks: checks.map(|check| (check.name.clone(), check)).collect(),
        defaults: read(tree, &format!("roles/{name}/defaults.toml")),
        path: path.into(),
    }
}
