//! The fleets that are simulated: who is in which group of which unit, and every commit that somebody may merge.
//!
//! A commit says one version of every service's configuration. What a version does when it runs is told by its name.
//! Never: a secret, a package, or anything else that a hold does not depend on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, OnceLock};

use converger::fleet::select::{NodeSpec, select};
use converger::fleet::{Fleet, Group};
use converger::name::NodeName;
use converger::render::{Desired, Renderer};
use converger::secrets::Unsealed;

use crate::fleet_of::Files;

/// What becomes of a service with this configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Good,
    /// Runs, and its gate says no.
    Sick,
    /// Does not start.
    Dead,
    /// Is well for a while that is shorter than the settle time, then it dies.
    Slow,
    /// Settles, and dies later.
    Late,
}

impl Kind {
    /// What a settle time finds out.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Sick | Self::Dead | Self::Slow)
    }

    pub fn of(text: &str) -> Self {
        match text.split('-').next() {
            Some("good") => Self::Good,
            Some("sick") => Self::Sick,
            Some("slow") => Self::Slow,
            Some("late") => Self::Late,
            _ => Self::Dead,
        }
    }
}

pub const VERSIONS: [&str; 9] =
    ["good-1", "good-2", "good-3", "sick-1", "sick-2", "dead-1", "slow-1", "slow-2", "late-1"];
pub const SETTLE_SECS: u64 = 2;

/// A group of a cluster, as the topology and the role say it.
#[derive(Clone)]
pub struct GroupShape {
    pub name: &'static str,
    /// Which of its cluster's units.
    pub unit: usize,
    pub members: Vec<String>,
    pub quorum: &'static str,
    pub max_unavailable: usize,
    pub rank: Vec<String>,
    pub conflicts: Vec<String>,
    pub leader: bool,
}

#[derive(Clone)]
pub struct ClusterShape {
    pub name: String,
    pub members: Vec<String>,
    pub groups: Vec<GroupShape>,
    pub after: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Shape {
    pub name: String,
    pub clusters: Vec<ClusterShape>,
}

fn names(from: usize, to: usize) -> Vec<String> {
    (from..=to).map(|n| format!("n{n}")).collect()
}

fn group(name: &'static str, unit: usize, members: &[String], quorum: &'static str, k: usize) -> GroupShape {
    GroupShape {
        name,
        unit,
        members: members.to_vec(),
        quorum,
        max_unavailable: k,
        rank: Vec::new(),
        conflicts: Vec::new(),
        leader: false,
    }
}

fn cluster(name: &str, groups: Vec<GroupShape>) -> ClusterShape {
    let mut members: Vec<String> = groups.iter().flat_map(|group| group.members.clone()).collect();
    members.sort();
    members.dedup();
    ClusterShape { name: name.to_owned(), members, groups, after: Vec::new() }
}

fn led(group: GroupShape) -> GroupShape {
    GroupShape { leader: true, ..group }
}

fn against(group: GroupShape, others: &[&str]) -> GroupShape {
    GroupShape { conflicts: others.iter().map(|other| (*other).to_owned()).collect(), ..group }
}

impl Shape {
    /// Fleets of three to nine nodes, each with something of its own.
    pub fn small() -> Vec<Self> {
        let (three, five) = (names(1, 3), names(1, 5));
        let one = |name: &str, clusters| Self { name: name.to_owned(), clusters };
        let ranked = GroupShape { rank: names(4, 5), ..group("brokers", 0, &five, "none", 1) };
        let kafka = || cluster("kafka", vec![led(group("controllers", 0, &three, "majority", 1)), ranked.clone()]);
        let etcd = |from: usize| cluster("etcd", vec![led(group("members", 0, &names(from, from + 2), "majority", 1))]);
        let mut streaming = kafka();
        streaming.after = vec!["etcd".to_owned()];
        vec![
            one("three", vec![cluster("c", vec![group("g", 0, &three, "majority", 1)])]),
            one("five-led", vec![cluster("c", vec![led(group("g", 0, &five, "majority", 1))])]),
            one("one-unit-two-groups", vec![kafka()]),
            one(
                "conflicting",
                vec![
                    cluster("a", vec![against(group("g", 0, &three, "majority", 1), &["b.g"])]),
                    cluster("b", vec![against(group("g", 0, &names(4, 6), "majority", 1), &["a.g"])]),
                ],
            ),
            one("two-lanes", vec![cluster("c", vec![group("g", 0, &names(1, 4), "none", 2)])]),
            one(
                "two-units",
                vec![cluster(
                    "redis",
                    vec![led(group("servers", 0, &three, "none", 1)), group("sentinels", 1, &three, "majority", 1)],
                )],
            ),
            one("three-lanes-led", vec![cluster("c", vec![led(group("g", 0, &names(1, 7), "majority", 3))])]),
            // Whoever is in both takes them in one transaction; the others cross.
            one(
                "crossing",
                vec![
                    cluster("a", vec![against(group("g", 0, &three, "none", 1), &["b.g"])]),
                    cluster("b", vec![against(group("g", 0, &names(2, 4), "none", 1), &["a.g"])]),
                ],
            ),
            one("after", vec![etcd(6), streaming]),
        ]
    }

    /// The template's fleet: its topology file, its groups; services are stand-ins under the roles' own unit names.
    pub fn template() -> Self {
        Self { name: "template".to_owned(), clusters: Vec::new() }
    }

    /// Clusters of three, five and seven, a few of them in lanes, every tenth in conflict with the one before.
    pub fn generated(nodes: usize) -> Self {
        let mut clusters: Vec<ClusterShape> = Vec::new();
        let mut next = 1;
        while next <= nodes {
            let n = clusters.len();
            let size = [3, 5, 7, 3, 4][n % 5].min(nodes + 1 - next);
            let members = names(next, next + size - 1);
            let said = match n % 5 {
                // A majority of two can never spare one.
                _ if size < 3 => group("g", 0, &members, "none", 1),
                2 => led(group("g", 0, &members, "majority", 2)),
                4 => group("g", 0, &members, "none", 2),
                _ => led(group("g", 0, &members, "majority", 1)),
            };
            let said = match n % 10 {
                3 => against(said, &[&format!("c{}.g", n + 1)]),
                4 => against(said, &[&format!("c{}.g", n - 1)]),
                _ => said,
            };
            clusters.push(cluster(&format!("c{n}"), vec![said]));
            next += size;
        }
        // A cluster that would conflict with one that is not there.
        let known: Vec<String> = clusters.iter().map(|cluster| format!("{}.g", cluster.name)).collect();
        for group in clusters.iter_mut().flat_map(|cluster| &mut cluster.groups) {
            group.conflicts.retain(|other| known.contains(other));
        }
        Self { name: format!("generated-{nodes}"), clusters }
    }

    /// One group of so many.
    pub fn crowd(nodes: usize) -> Self {
        let said = group("g", 0, &names(1, nodes), "none", 1);
        Self { name: format!("crowd-{nodes}"), clusters: vec![cluster("c", vec![said])] }
    }

    fn files(&self, versions: &[&str]) -> Files {
        if self.clusters.is_empty() {
            return template_files(versions[0]);
        }
        let mut topology = "[tiers.t]\norder = 1\n".to_owned();
        let mut files = Files::new();
        let mut labels: BTreeMap<&String, (Vec<String>, Vec<String>)> = BTreeMap::new();
        for (cluster, version) in self.clusters.iter().zip(versions.iter().cycle()) {
            let name = &cluster.name;
            let _ = writeln!(
                topology,
                "[clusters.{name}]\ntier = \"t\"\nroles = [\"{name}\"]\nafter = {:?}",
                cluster.after
            );
            let mut role = "format = 1\n".to_owned();
            let mut units: Vec<usize> = Vec::new();
            for group in &cluster.groups {
                let label = format!("{name}_{}", group.name);
                let _ = writeln!(
                    topology,
                    "[clusters.{name}.groups.{}]\nmembers = {{ label = \"{label}\" }}\nquorum = \"{}\"\nmax_unavailable = {}\nrank = {:?}\nconflicts = {:?}",
                    group.name, group.quorum, group.max_unavailable, group.rank, group.conflicts
                );
                for member in &group.members {
                    labels.entry(member).or_default().1.push(format!("{label} = true"));
                }
                let leader = if group.leader { "leader = \"up\"\n" } else { "" };
                let unit = format!("{name}{}.service", group.unit);
                let _ = writeln!(
                    role,
                    "[groups.{}]\nunit = \"{unit}\"\ngate = \"up\"\n{leader}settle_secs = {SETTLE_SECS}",
                    group.name
                );
                if !units.contains(&group.unit) {
                    units.push(group.unit);
                }
            }
            for unit in units {
                role += &service(&format!("{name}{unit}"));
                files = files.with(&format!("roles/{name}/{name}{unit}.conf"), version);
            }
            role += "[[check]]\nname = \"up\"\nkind = \"tcp\"\nport = 1\n";
            files = files.with(&format!("roles/{name}/role.toml"), role);
            for member in &cluster.members {
                labels.entry(member).or_default().0.push(name.clone());
            }
        }
        for (n, (node, (clusters, labels))) in labels.iter().enumerate() {
            let _ = writeln!(
                topology,
                "[nodes.{node}]\nclusters = {clusters:?}\naddresses = {{ app = \"10.20.{}.{}\" }}\nsize = {{ vcpu = 1, memory_gib = 1, disk_gib = 1 }}\nlabels = {{ {} }}",
                n / 200,
                n % 200 + 1,
                labels.join(", ")
            );
        }
        files.with("environments/production/topology.toml", topology)
    }
}

fn service(name: &str) -> String {
    format!(
        "[[file]]\npath = \"/etc/{name}.conf\"\nsource = \"{name}.conf\"\nrestarts = [\"{name}.service\"]\n[[unit]]\nname = \"{name}.service\"\nenabled = true\nstate = \"running\"\nstart_secs_max = 1\n"
    )
}

fn template_files(version: &str) -> Files {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("repo-template");
    let read = |path: &str| std::fs::read_to_string(top.join(path)).unwrap();
    let mut files = Files::new()
        .with("environments/production/topology.toml", read("environments/production/topology.toml"))
        .with("environments/production/environment.toml", read("environments/production/environment.toml"));
    for role in ["etcd", "kafka", "redis", "sentinel", "haproxy", "keepalived"] {
        let said: toml::Table = toml::from_str(&read(&format!("roles/{role}/role.toml"))).unwrap();
        let mut text = "format = 1\n".to_owned();
        let mut units: Vec<&str> = Vec::new();
        for (name, group) in said["groups"].as_table().unwrap() {
            let unit = group["unit"].as_str().unwrap().trim_end_matches(".service");
            let leader = if group.get("leader").is_some() { "leader = \"up\"\n" } else { "" };
            let _ = writeln!(
                text,
                "[groups.{name}]\nunit = \"{unit}.service\"\ngate = \"up\"\n{leader}settle_secs = {SETTLE_SECS}"
            );
            if !units.contains(&unit) {
                units.push(unit);
            }
        }
        for unit in units {
            text += &service(unit);
            files = files.with(&format!("roles/{role}/{unit}.conf"), version);
        }
        text += "[[check]]\nname = \"up\"\nkind = \"tcp\"\nport = 1\n";
        files = files.with(&format!("roles/{role}/role.toml"), text);
    }
    files
}

/// A commit, as every node of the fleet sees it.
pub struct Built {
    pub versions: Vec<&'static str>,
    pub fleet: &'static Fleet,
    pub renderer: Renderer<'static>,
    nodes: BTreeMap<NodeName, OnceLock<(NodeSpec<'static>, Desired)>>,
}

impl Built {
    pub fn node(&self, name: &NodeName) -> &(NodeSpec<'static>, Desired) {
        self.nodes[name].get_or_init(|| {
            let spec = select(self.fleet, name).unwrap();
            let desired = self.renderer.node(&spec, &Unsealed::without_keys());
            let desired = desired.unwrap_or_else(|problems| panic!("{problems:?}"));
            (spec, desired)
        })
    }

    pub fn groups(&self) -> impl Iterator<Item = &'static Group> {
        self.fleet.environment.groups()
    }

    /// The version of this cluster's services.
    pub fn version(&self, shape: &Shape, cluster: &str) -> &'static str {
        let at = shape.clusters.iter().position(|one| one.name == cluster).unwrap_or(0);
        self.versions[at % self.versions.len()]
    }
}

/// Made once, for all seeds: there are few versions.
pub fn built(shape: &Shape, versions: &[&'static str]) -> &'static Built {
    type Known = Mutex<BTreeMap<(String, Vec<&'static str>), &'static Built>>;
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let mut known = KNOWN.get_or_init(Known::default).lock().unwrap();
    known.entry((shape.name.clone(), versions.to_vec())).or_insert_with(|| {
        let fleet: &'static Fleet = Box::leak(Box::new(shape.files(versions).fleet()));
        let nodes = fleet.environment.nodes.iter().map(|node| (node.name.clone(), OnceLock::new()));
        let (nodes, renderer) = (nodes.collect(), Renderer::new(fleet));
        Box::leak(Box::new(Built { versions: versions.to_vec(), fleet, renderer, nodes }))
    })
}
