//! From the files of a commit to a [`Fleet`], with every problem found on the way.
//!
//! Three steps: read every file (problems of form), build the fleet from what could be read, check what it says.
//! PURE. Never: returns a fleet in which an error was found, unless the caller is there to mend it; never: stops at the
//! first.

mod document;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

pub(super) use document::Document;
use document::Reader;

use super::check;
use super::problem::{Problem, Severity};
use super::rule;
use super::schema::{
    EnvironmentFile, FleetFile, Membership, PolicyFile, RoleFile, SecretsFile, TopologyFile, Variables, Version,
};
use super::tree::Tree;
use super::{Cluster, Declared, Environment, Fleet, Group, Node, Role, Secret, Tier};
use crate::name::{ClusterName, CommitId, EnvironmentName, GroupId, NodeName, RepoPath, RoleName};

/// A fleet without errors.
pub struct Loaded {
    pub fleet: Fleet,
    pub warnings: Vec<Problem>,
}

/// One environment of the tree; `None`: the one that `fleet.toml` names as default.
///
/// # Errors
/// Every problem of every file that the environment uses, warnings included; at least one is an error.
pub fn load(tree: &Arc<Tree>, environment: Option<&EnvironmentName>) -> Result<Loaded, Vec<Problem>> {
    load_knowing(tree, environment, &Knowing::default())
}

/// What the repository does not say itself. A node does not ask for it: it only ever leads to warnings.
#[derive(Default)]
pub struct Knowing {
    /// Recipients whose private keys are published as samples.
    pub samples: BTreeSet<String>,
    /// The time, for certificates that expire.
    pub now: Option<Timestamp>,
}

/// As [`load`], and warns of what only somebody who knows more can see.
///
/// # Errors
/// As [`load`].
pub fn load_knowing(
    tree: &Arc<Tree>,
    environment: Option<&EnvironmentName>,
    knowing: &Knowing,
) -> Result<Loaded, Vec<Problem>> {
    match read_and_check(tree, environment, knowing) {
        (Some(fleet), warnings) if warnings.iter().all(|problem| problem.severity == Severity::Warning) => {
            Ok(Loaded { fleet, warnings })
        }
        (_, problems) => Err(problems),
    }
}

fn read_and_check(
    tree: &Arc<Tree>,
    environment: Option<&EnvironmentName>,
    knowing: &Knowing,
) -> (Option<Fleet>, Vec<Problem>) {
    let mut reader = Reader { tree, problems: Vec::new(), left_out: BTreeSet::new() };
    let fleet = read(tree, &mut reader, environment);
    let Reader { mut problems, left_out, .. } = reader;
    problems.extend(check::plaintext(tree));
    let Some((documents, topology, fleet)) = fleet else {
        return (None, problems);
    };
    problems.extend(check::check(&documents, &topology, &fleet, &left_out, knowing));
    (Some(fleet), problems)
}

/// As [`load`], also where errors of these rules are in it: for commands that mend them. They are among the warnings then.
///
/// # Errors
/// As [`load`], if there is an error of another rule.
pub fn load_despite(
    tree: &Arc<Tree>,
    environment: Option<&EnvironmentName>,
    rules: &[&str],
) -> Result<Loaded, Vec<Problem>> {
    let (fleet, problems) = read_and_check(tree, environment, &Knowing::default());
    let stops = |problem: &Problem| problem.severity == Severity::Error && !rules.contains(&problem.rule);
    match fleet {
        Some(fleet) if !problems.iter().any(stops) => Ok(Loaded { fleet, warnings: problems }),
        _ => Err(problems),
    }
}

/// What is wrong in `trust/`, and nothing else.
pub fn trust_problems(tree: &Tree) -> Vec<Problem> {
    let mut reader = Reader { tree, problems: Vec::new(), left_out: BTreeSet::new() };
    read_trust(&mut reader);
    reader.problems
}

fn read_trust(reader: &mut Reader<'_>) {
    let (document, policy) = reader.read::<PolicyFile>("trust/policy.toml");
    let there = reader.tree.get("trust/policy.toml").is_some();
    let policy = if there { policy } else { Some(PolicyFile::default()) };
    reader.problems.extend(check::trust(reader.tree, &document, policy.as_ref()));
}

/// The files of one environment, to point into.
pub(super) struct Documents<'t> {
    pub environment: Document<'t>,
    pub topology: Document<'t>,
    pub versions: Document<'t>,
    pub variables: Document<'t>,
    pub secrets: Document<'t>,
    /// Roles that could be read.
    pub roles: BTreeMap<RoleName, Document<'t>>,
}

/// `None`: not enough could be read to say more.
fn read<'t>(
    tree: &Arc<Tree>,
    reader: &mut Reader<'t>,
    wanted: Option<&EnvironmentName>,
) -> Option<(Documents<'t>, TopologyFile, Fleet)> {
    let (fleet_document, fleet_file) = required::<FleetFile>(reader, "fleet.toml");
    read_trust(reader);
    // Also of a fleet.toml with mistakes: the other files may have some too.
    let by_default = || fleet_document.text_at(&["default_environment"]).map(EnvironmentName::new);
    let name = wanted.cloned().or_else(by_default)?;
    let folder = format!("environments/{name}");
    if reader.tree.below(&folder).next().is_none() {
        reader.problems.push(unknown_environment(reader.tree, &fleet_document, &name, wanted.is_none()));
        return None;
    }
    let (environment_document, environment_file) =
        required::<EnvironmentFile>(reader, &format!("{folder}/environment.toml"));
    let (topology_document, topology_file) = required::<TopologyFile>(reader, &format!("{folder}/topology.toml"));
    let (versions_document, versions) = reader.read::<BTreeMap<String, Version>>(format!("{folder}/versions.toml"));
    let (variables_document, variables) = reader.read::<Variables>(format!("{folder}/variables.toml"));
    let (secrets_document, secrets) = reader.read::<SecretsFile>(format!("{folder}/secrets.toml"));

    let mut used: BTreeSet<&RoleName> = environment_file.iter().flat_map(|file| &file.roles).collect();
    used.extend(topology_file.iter().flat_map(|file| &file.clusters.0).flat_map(|(_, cluster)| &cluster.roles));
    let mut roles = BTreeMap::new();
    let mut role_bodies = BTreeMap::new();
    for role in used {
        let (document, body) = reader.read::<RoleFile>(format!("roles/{role}/role.toml"));
        let (_, defaults) = reader.read::<toml::Table>(format!("roles/{role}/defaults.toml"));
        match body {
            Some(body) => {
                role_bodies.insert(role.clone(), role_of(role, &document, body, defaults.unwrap_or_default()));
                roles.insert(role.clone(), document);
            }
            // Unless it is not there at all, which `check` tells where it is named.
            None if reader.tree.get(document.path.as_str()).is_some() => {
                reader.left_out.insert(role.to_string());
            }
            None => {}
        }
    }

    let (fleet_file, environment_file, topology) = (fleet_file?, environment_file?, topology_file?);
    let nodes = nodes_of(&topology, &environment_file.os);
    let clusters = clusters_of(&topology, &nodes, &environment_file.roles, &role_bodies);
    let SecretsFile { operators, secrets } = secrets.unwrap_or_default();
    let secrets = secrets.into_iter().map(|(name, entry)| {
        let path = RepoPath::new(format!("{folder}/secrets/{name}.age"));
        let secret = Secret {
            name: name.clone(),
            version: entry.version,
            sha256: entry.sha256,
            grant: entry.grant,
            recipients: entry.recipients,
            generate: entry.generate,
            expires: entry.expires,
            path,
        };
        (name, secret)
    });
    let environment = Environment {
        name,
        domain: environment_file.domain,
        os: environment_file.os,
        roles: environment_file.roles,
        roles_at: environment_file.roles_at.map(CommitId::new),
        networks: environment_file.networks,
        vips: environment_file.vips,
        s3: environment_file.s3,
        mirror_authorities: environment_file.mirror_authorities.map(|file| RepoPath::new(format!("{folder}/{file}"))),
        agents: environment_file.agents,
        tiers: tiers_of(&topology),
        clusters,
        nodes,
        versions: versions.unwrap_or_default(),
        variables: variables.unwrap_or_default(),
        secrets: secrets.collect(),
        operators,
        role_bodies,
    };
    let documents = Documents {
        environment: environment_document,
        topology: topology_document,
        versions: versions_document,
        variables: variables_document,
        secrets: secrets_document,
        roles,
    };
    let fleet = Fleet {
        name: fleet_file.name,
        trust: fleet_file.trust,
        commit: reader.tree.commit.clone(),
        guards: fleet_file.guards,
        environment,
        tree: Arc::clone(tree),
    };
    Some((documents, topology, fleet))
}

fn required<'t, T: serde::de::DeserializeOwned>(reader: &mut Reader<'t>, path: &str) -> (Document<'t>, Option<T>) {
    let (document, body) = reader.read(path);
    if reader.tree.get(path).is_none() {
        reader.problems.push(document.error(rule::MISSING_FILE, format!("there is no {path}")));
    }
    (document, body)
}

fn unknown_environment(tree: &Tree, fleet: &Document<'_>, name: &EnvironmentName, by_default: bool) -> Problem {
    let known: BTreeSet<&str> = tree
        .below("environments")
        .filter_map(|(path, _)| path.as_str().strip_prefix("environments/")?.split_once('/'))
        .map(|(name, _)| name)
        .collect();
    let problem = fleet.error(rule::UNKNOWN_ENVIRONMENT, format!("there is no environment \"{name}\""));
    let problem = match by_default {
        true => problem.at(fleet.value(&["default_environment"]), "no folder below environments/ has this name"),
        false => problem,
    };
    check::or_else(problem, "environments", name.as_str(), known.iter().copied())
}

fn role_of(name: &RoleName, document: &Document<'_>, body: RoleFile, defaults: toml::Table) -> Role {
    fn declared<T>(document: &Document<'_>, entries: Vec<toml::Spanned<T>>) -> Vec<Declared<T>> {
        let declare = |entry: toml::Spanned<T>| {
            let span = entry.span();
            Declared { line: document.line(span.start), span, body: entry.into_inner() }
        };
        entries.into_iter().map(declare).collect()
    }
    Role {
        name: name.clone(),
        path: document.path.clone(),
        groups: body.groups,
        packages: declared(document, body.package),
        artifacts: declared(document, body.artifact),
        files: declared(document, body.file),
        units: declared(document, body.unit),
        actions: declared(document, body.action),
        checks: body
            .check
            .into_iter()
            .map(toml::Spanned::into_inner)
            .map(|check| (check.name.clone(), check))
            .collect(),
        defaults,
    }
}

fn tiers_of(topology: &TopologyFile) -> BTreeMap<String, Tier> {
    let clusters_in = |tier: &String| {
        let inside = topology.clusters.0.iter().filter(|(_, cluster)| cluster.tier == *tier);
        inside.map(|(name, _)| ClusterName::new(name.get_ref().as_str())).collect()
    };
    let tiers = topology.tiers.iter();
    tiers.map(|(name, tier)| (name.clone(), Tier { order: tier.order, clusters: clusters_in(name) })).collect()
}

fn nodes_of(topology: &TopologyFile, os: &str) -> Vec<Node> {
    let node = |(name, entry): &(toml::Spanned<String>, super::schema::NodeEntry)| Node {
        name: NodeName::new(name.get_ref().as_str()),
        clusters: entry.clusters.clone(),
        addresses: entry.addresses.clone(),
        size: entry.size,
        labels: entry.labels.clone(),
        os: entry.os.clone().unwrap_or_else(|| os.to_owned()),
        recipient: entry.recipient.clone(),
        more_recipients: entry.recipients.clone(),
        state: entry.state,
    };
    topology.nodes.0.iter().map(node).collect()
}

/// Groups that no role gives a meaning to are left out; `check` says so.
fn clusters_of(
    topology: &TopologyFile,
    nodes: &[Node],
    everywhere: &[RoleName],
    roles: &BTreeMap<RoleName, Role>,
) -> Vec<Cluster> {
    let brought: BTreeMap<&str, &[RoleName]> =
        topology.clusters.0.iter().map(|(name, entry)| (name.get_ref().as_str(), entry.roles.as_slice())).collect();
    let mut members: BTreeMap<&ClusterName, Vec<&Node>> = BTreeMap::new();
    for node in nodes {
        for cluster in &node.clusters {
            members.entry(cluster).or_default().push(node);
        }
    }
    let mut clusters: Vec<Cluster> = topology
        .clusters
        .0
        .iter()
        .map(|(name, entry)| {
            let name = ClusterName::new(name.get_ref().as_str());
            let members = members.get(&name).map_or(&[][..], Vec::as_slice);
            let groups = entry.groups.iter().filter_map(|(group, said)| {
                let (role, meaning) = entry.roles.iter().find_map(|role| {
                    let body = roles.get(role)?;
                    Some((role, body.groups.get(group)?))
                })?;
                let selected = members.iter().filter(|node| {
                    said.members.selects(node, &|role| {
                        let mut through = node.clusters.iter().filter_map(|cluster| brought.get(cluster.as_str()));
                        everywhere.contains(role) || through.any(|roles| roles.contains(role))
                    })
                });
                let selected: Vec<&&Node> = selected.collect();
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
                tier: entry.tier.clone(),
                roles: entry.roles.clone(),
                after: entry.after.clone(),
                // Those that cannot be read are told by `check`.
                windows: entry.windows.iter().filter_map(|window| window.parse().ok()).collect(),
                restart_epoch: entry.restart_epoch,
                ids: entry.ids.clone(),
                members: members.iter().map(|node| node.name.clone()).collect(),
                groups: groups.collect(),
                name,
            }
        })
        .collect();
    close_conflicts(&mut clusters);
    clusters
}

/// Who is said to conflict with me conflicts with me.
fn close_conflicts(clusters: &mut [Cluster]) {
    let groups = || clusters.iter().flat_map(|cluster| &cluster.groups);
    let said: Vec<(GroupId, GroupId)> =
        groups().flat_map(|group| group.conflicts.iter().map(|other| (other.clone(), group.id.clone()))).collect();
    for (to, from) in said {
        let target = clusters.iter_mut().flat_map(|cluster| &mut cluster.groups).find(|group| group.id == to);
        if let Some(group) = target
            && !group.conflicts.contains(&from)
        {
            group.conflicts.push(from);
        }
    }
}
