//! What a merge will do to a whole environment, before the merge: the node planner run on paper for every node.
//!
//! Every node is taken as converged at the base commit, and the same `plan` is asked what the head would do to it. Secrets
//! are masked; whether one changed is told by its version. PURE. Never: a second planner.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::fleet::select::NodeSpec;
use crate::fleet::{Cluster, Environment, Group};
use crate::host::Observed;
use crate::lock::quorum;
use crate::name::{ClusterName, GroupId, HostPath, NodeName, UnitName};
use crate::plan::changes::{self, Before, Change};
use crate::plan::known::{Known, Owned, RanWith};
use crate::plan::{FileWrite, HoldNeed, UnitMove, membership, plan};
use crate::render::Desired;
use crate::resource::artifact::ArtifactState;
use crate::resource::content::Content;
use crate::resource::file::{FileChange, FileState, Policy, Regular, Stamp};
use crate::resource::package::PackageState;
use crate::resource::unit::{Active, Wanted};
use crate::resource::{Digest, Resource, UnitState};

/// What an environment goes through from one commit to another.
#[derive(Serialize)]
pub struct FleetPlan {
    pub nodes: usize,
    /// Nodes that change, in order of declaration.
    pub changes: Vec<NodeChange>,
    /// In the order in which they happen.
    pub steps: Vec<Disruption>,
    /// Nodes that are new, and nodes that are gone.
    pub joined: Vec<NodeName>,
    pub left: Vec<NodeName>,
    /// Maintenance windows of the clusters that have any and are disrupted: the steps begin inside them only.
    pub windows: BTreeMap<ClusterName, Vec<String>>,
    pub total_secs: u64,
}

#[derive(Serialize)]
pub struct NodeChange {
    pub node: NodeName,
    /// The same, one by one, for machines.
    pub changes: Vec<Change>,
    #[serde(skip)]
    pub files: Vec<FileDiff>,
    /// `install haproxy`, `kafka 3.9.0 -> 3.9.1`, `action format-storage`, `enable x.service`.
    #[serde(skip)]
    pub others: Vec<String>,
    /// Units that restart, reload, start or stop.
    #[serde(skip)]
    pub units: Vec<(&'static str, UnitName)>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileDiff {
    pub path: HostPath,
    /// `None`: new.
    pub before: Option<Vec<u8>>,
    /// `None`: removed.
    pub after: Option<Vec<u8>>,
    /// Secrets whose version moves: name, from, to.
    pub secrets: Vec<(String, u64, u64)>,
    /// `root:root 0644 -> root:kafka 0640`
    pub attributes: Option<(String, String)>,
}

/// One node's protected unit going away for a while.
#[derive(Serialize)]
pub struct Disruption {
    pub node: NodeName,
    pub cluster: ClusterName,
    pub unit: UnitName,
    pub verb: &'static str,
    /// What stays up while it is away.
    pub stays: Vec<Stays>,
    pub from_secs: u64,
    pub leads: bool,
}

#[derive(Serialize)]
pub struct Stays {
    pub group: GroupId,
    pub up: usize,
    pub of: usize,
    /// Quorum; 0 where the group has none.
    pub need: usize,
}

/// What is known of the running fleet; all of it may be missing.
#[derive(Default)]
pub struct Live {
    pub leaders: BTreeMap<GroupId, NodeName>,
    /// Seconds for stop and start, as last seen.
    pub stop_start_secs: BTreeMap<(NodeName, UnitName), u64>,
}

/// Where nobody has seen a unit stop and start yet.
const STOP_START_SECS: u64 = 10;

/// One node at one commit.
pub struct Side<'a> {
    pub spec: NodeSpec<'a>,
    pub desired: Desired,
}

pub fn compare(
    environment: &Environment,
    base: &BTreeMap<NodeName, Side<'_>>,
    head: &BTreeMap<NodeName, Side<'_>>,
    live: &Live,
) -> FleetPlan {
    let mut changes = Vec::new();
    let mut disrupted: BTreeMap<NodeName, Disrupted> = BTreeMap::new();
    for node in &environment.nodes {
        let Some(after) = head.get(&node.name) else { continue };
        let Some(before) = base.get(&node.name) else { continue };
        let (change, disruptions) = compare_node(before, after);
        if !disruptions.is_empty() {
            disrupted.insert(node.name.clone(), disruptions);
        }
        changes.extend(change);
    }
    let steps = schedule(environment, &disrupted, live);
    let total_secs = steps.iter().map(|step| step.from_secs + duration(environment, step, live)).max().unwrap_or(0);
    let disrupted = |cluster: &&Cluster| steps.iter().any(|step| step.cluster == cluster.name);
    let windows = environment.clusters.iter().filter(disrupted).filter(|cluster| !cluster.windows.is_empty());
    let windows = windows.map(|cluster| (cluster.name.clone(), said(cluster))).collect();
    FleetPlan {
        windows,
        nodes: environment.nodes.len(),
        changes,
        steps,
        joined: head.keys().filter(|node| !base.contains_key(*node)).cloned().collect(),
        left: base.keys().filter(|node| !head.contains_key(*node)).cloned().collect(),
        total_secs,
    }
}

fn said(cluster: &Cluster) -> Vec<String> {
    cluster.windows.iter().map(ToString::to_string).collect()
}

/// When all of a node may be away, as far as maintenance windows say.
fn in_windows(spec: &NodeSpec<'_>) -> String {
    let clusters = spec.node.clusters.iter().filter_map(|name| spec.fleet.environment.cluster(name));
    let bound = clusters.filter(|cluster| !cluster.windows.is_empty());
    let said: Vec<String> = bound.map(|cluster| format!("{} {} UTC", cluster.name, said(cluster).join(", "))).collect();
    if said.is_empty() { String::new() } else { format!(", in the windows of {}", said.join(" and ")) }
}

/// A unit that goes away, by which verb, and the groups that it takes a member from.
type Disrupted = Vec<(UnitName, &'static str, BTreeSet<GroupId>)>;

fn compare_node(before: &Side<'_>, after: &Side<'_>) -> (Option<NodeChange>, Disrupted) {
    let old = on_paper(&before.desired);
    let new = on_paper(&after.desired);
    let (observed, known) = converged_at(&old, &before.spec.groups);
    let plan = plan(&new, &observed, &known, &after.spec.groups);
    let old_files: BTreeMap<&HostPath, &Content> = files(&old).collect();
    let mut change = NodeChange {
        node: after.spec.node.name.clone(),
        changes: changes::of(&plan, &Before::Commit(&old_files)),
        files: Vec::new(),
        others: Vec::new(),
        units: Vec::new(),
    };
    let mut disruptions = Vec::new();
    for batch in &plan.batches {
        change.files.extend(batch.files.iter().map(|file| diff(file, old_files.get(&file.spec.path).copied())));
        change.files.extend(batch.removals.iter().map(|(path, _)| FileDiff {
            path: path.clone(),
            before: old_files.get(path).map(|content| content.shown().to_vec()),
            after: None,
            secrets: Vec::new(),
            attributes: None,
        }));
        change.others.extend(batch.packages.iter().map(|(package, what)| format!("package {}: {what}", package.name)));
        change.others.extend(batch.uninstall.iter().map(|name| format!("package {name}: remove, if we installed it")));
        change.others.extend(batch.artifacts.iter().map(|artifact| artifact.what.clone()));
        change.others.extend(batch.discards.iter().map(|into| format!("remove the artifact in {into}")));
        change.others.extend(batch.actions.iter().map(|action| format!("action {}", action.name)));
        change.others.extend(membership::told(batch, &change.node));
        change.others.extend(batch.membership.iter().map(|(_, action)| format!("action {}", action.name)));
        for action in &batch.moves {
            let unit = &action.spec().name;
            match action {
                UnitMove::Enable(_) | UnitMove::Disable(_) | UnitMove::Mask(_) | UnitMove::Unmask(_) => {
                    change.others.push(format!("{} {unit}", action.verb()));
                }
                _ => change.units.push((action.verb(), unit.clone())),
            }
            let disrupts = matches!(action, UnitMove::Restart(_) | UnitMove::Stop(_) | UnitMove::Reload(_));
            if disrupts && batch.hold != HoldNeed::None {
                disruptions.push((unit.clone(), action.verb(), batch.groups.clone()));
            }
        }
        if !batch.risk.is_empty() {
            let areas: Vec<String> = batch.risk.iter().map(ToString::to_string).collect();
            let areas = areas.join(", ");
            change.others.push(format!(
                "node-risk ({areas}): under a hold of the whole node{}, put back unless confirmed",
                in_windows(&after.spec)
            ));
        }
        if !batch.reboot.is_empty() {
            let (needs, windows) = (batch.reboot.join(", "), in_windows(&after.spec));
            change.others.push(format!("reboot for {needs}, under a hold of the whole node{windows}"));
        }
        change.units.extend(batch.retire.iter().map(|unit| ("stop", unit.clone())));
    }
    change.others.extend(plan.outgrown.iter().map(|spec| {
        format!("{}: a seed whose template changes; a node that has the file keeps it as it is", spec.path)
    }));
    let nothing = change.files.is_empty() && change.others.is_empty() && change.units.is_empty();
    ((!nothing).then_some(change), disruptions)
}

fn files(desired: &Desired) -> impl Iterator<Item = (&HostPath, &Content)> {
    desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::File(spec) => Some((&spec.path, &spec.content)),
        _ => None,
    })
}

fn diff(file: &FileWrite<'_>, old: Option<&Content>) -> FileDiff {
    let versions = |content: &Content| -> BTreeMap<String, u64> {
        content.secrets().iter().map(|used| (used.name.to_string(), used.version)).collect()
    };
    let before = old.map(versions).unwrap_or_default();
    let secrets = versions(&file.spec.content)
        .into_iter()
        .filter_map(|(name, to)| before.get(&name).filter(|from| **from != to).map(|from| (name.clone(), *from, to)))
        .collect();
    let attributes = match &file.change {
        FileChange::Attributes { from, to } => Some((from.clone(), to.clone())),
        _ => None,
    };
    FileDiff {
        path: file.spec.path.clone(),
        before: old.map(|content| content.shown().to_vec()),
        after: Some(file.spec.content.shown().to_vec()),
        secrets,
        attributes,
    }
}

/// The same resources with bytes that stand for masked text and secret versions, so that they can be compared by anybody.
fn on_paper(desired: &Desired) -> Desired {
    let resources = desired.resources.iter().map(|placed| {
        let mut placed = placed.clone();
        if let Resource::File(spec) = &mut placed.resource
            && spec.content.is_secret()
        {
            let stand_in = spec.content.inputs().bytes().to_vec();
            let (shown, secrets) = (spec.content.shown().to_vec(), spec.content.secrets().to_vec());
            spec.content = Content::secret(Some(stand_in.into()), shown, secrets);
        }
        placed
    });
    Desired {
        node: desired.node.clone(),
        state: desired.state,
        commit: desired.commit.clone(),
        resources: resources.collect(),
        sealed: Vec::new(),
        strikes: Vec::new(),
    }
}

/// A host and a ledger as they are when this was applied and has settled.
fn converged_at(desired: &Desired, groups: &[&Group]) -> (Observed, Known) {
    const PAPER: &str = "paper";
    let nobody = Observed { boot_id: PAPER.to_owned(), owners: true, ..Observed::default() };
    let empty = Known::default();
    // What a first run would record as each unit's inputs.
    let first = plan(desired, &nobody, &empty, groups);
    let mut observed = nobody.clone();
    let mut known = Known { has_settled: true, ..Known::default() };
    for batch in &first.batches {
        for (name, part) in &batch.units {
            let ids = first.units.get(name).cloned().unwrap_or_default();
            let mut ran = RanWith::now(part.restart, part.reload, PAPER, PAPER, &ids);
            ran.settled = true;
            known.units.insert(name.clone(), ran);
        }
    }
    known.uses = first.uses.clone();
    // On paper every candidate runs: who does is not in the repository.
    known.held = known.units.keys().cloned().collect();
    for placed in &desired.resources {
        let id = placed.resource.id();
        known.owned.insert(
            id,
            Owned {
                inputs: placed.resource.inputs(),
                content: None,
                stamp: None,
                written: true,
                secret: false,
                secret_comes: false,
                owed: false,
                keep: matches!(&placed.resource, Resource::File(spec) if spec.policy == Policy::Seed),
            },
        );
        match &placed.resource {
            Resource::File(spec) => {
                let bytes = spec.content.bytes().unwrap_or_default();
                let stamp = Stamp { device: 0, inode: 0, size: 0, mtime_ns: 0, ctime_ns: 0, mode: 0, uid: 0, gid: 0 };
                let regular = Regular {
                    digest: Digest::of(bytes),
                    mode: spec.mode,
                    owner: spec.owner.clone(),
                    group: spec.group.clone(),
                    stamp,
                    bytes: None,
                };
                observed.files.insert(spec.path.clone(), FileState::Regular(regular));
            }
            Resource::Unit(spec) => {
                let state = UnitState {
                    loaded: true,
                    active: if spec.state == Wanted::Running { Active::Active } else { Active::Inactive },
                    enabled: spec.enabled.unwrap_or(false),
                    masked: spec.state == Wanted::Masked,
                    invocation: PAPER.to_owned(),
                    needs_daemon_reload: false,
                    drop_ins: Vec::new(),
                };
                observed.units.insert(spec.name.clone(), state);
            }
            Resource::Package(spec) => {
                let state = PackageState::Installed { version: spec.version.clone(), held: spec.hold };
                observed.packages.insert(spec.name.clone(), state);
            }
            Resource::Artifact(spec) => {
                let state = ArtifactState::Current { version: spec.version.clone(), sha256: spec.sha256.clone() };
                observed.artifacts.insert(spec.into.clone(), state);
            }
            // A node that comes or goes by this commit has not done yet what that takes.
            Resource::Action(spec) if membership::is_due(placed, desired.state) => {
                observed.actions.insert(spec.name.clone(), crate::resource::action::ActionState::Done);
            }
            Resource::Action(_) => {}
        }
    }
    known.booted = known.booted.look(desired, &[], &empty, PAPER);
    (observed, known)
}

/// Cluster by cluster in parallel, node by node inside; clusters named in `after` first.
fn schedule(environment: &Environment, disrupted: &BTreeMap<NodeName, Disrupted>, live: &Live) -> Vec<Disruption> {
    let mut steps: Vec<Disruption> = Vec::new();
    let mut ends: BTreeMap<ClusterName, u64> = BTreeMap::new();
    let mut waiting: Vec<&Cluster> = environment.clusters.iter().collect();
    while !waiting.is_empty() {
        // `check` refuses cycles; if one came through all the same, take the rest as it stands.
        let ready = waiting
            .iter()
            .position(|cluster| !cluster.after.iter().any(|first| waiting.iter().any(|other| other.name == *first)));
        let cluster = waiting.remove(ready.unwrap_or(0));
        let begin = cluster.after.iter().filter_map(|first| ends.get(first)).copied().max().unwrap_or(0);
        let end = schedule_cluster(environment, cluster, disrupted, live, begin, &mut steps);
        ends.insert(cluster.name.clone(), end);
    }
    steps.sort_by_key(|step| step.from_secs);
    steps
}

fn schedule_cluster(
    environment: &Environment,
    cluster: &Cluster,
    disrupted: &BTreeMap<NodeName, Disrupted>,
    live: &Live,
    begin: u64,
    steps: &mut Vec<Disruption>,
) -> u64 {
    let leads = |node: &NodeName| cluster.groups.iter().any(|group| live.leaders.get(&group.id) == Some(node));
    let rank = |node: &NodeName| {
        cluster.groups.iter().filter_map(|group| group.rank.iter().position(|name| name == node)).min()
    };
    let mut order: Vec<&NodeName> = cluster.members.iter().collect();
    order.sort_by_key(|node| (leads(node), rank(node).unwrap_or(usize::MAX)));
    let mut at = begin;
    // The first goes alone; after it as many at a time as every group has lanes.
    let mut lanes: Vec<u64> = Vec::new();
    for node in order {
        let Some(disruptions) = disrupted.get(node) else { continue };
        for (unit, verb, groups) in disruptions {
            let mine: Vec<&Group> = cluster.groups.iter().filter(|group| groups.contains(&group.id)).collect();
            if mine.is_empty() {
                continue;
            }
            let lanes_max = mine.iter().map(|group| group.max_unavailable.max(1)).min().unwrap_or(1);
            let free =
                if lanes.len() < lanes_max && !lanes.is_empty() && steps.iter().any(|s| s.cluster == cluster.name) {
                    at
                } else {
                    lanes.iter().copied().min().unwrap_or(at)
                };
            let stays = mine
                .iter()
                .map(|group| Stays {
                    group: group.id.clone(),
                    up: group.members.len().saturating_sub(lanes_max.min(group.max_unavailable)),
                    of: group.members.len(),
                    need: match group.quorum {
                        crate::fleet::schema::Quorum::Majority => quorum::needed(
                            &Group { max_unavailable: usize::MAX, ..(*group).clone() },
                            group.members.len(),
                        ),
                        crate::fleet::schema::Quorum::None => 0,
                    },
                })
                .collect();
            let step = Disruption {
                node: node.clone(),
                cluster: cluster.name.clone(),
                unit: unit.clone(),
                verb,
                stays,
                from_secs: free,
                leads: leads(node),
            };
            let end = free + duration(environment, &step, live);
            if lanes.is_empty() {
                at = end;
            }
            if lanes.len() >= lanes_max
                && let Some(lane) = lanes.iter().position(|lane| *lane == free)
            {
                lanes.remove(lane);
            }
            lanes.push(end);
            steps.push(step);
        }
    }
    lanes.into_iter().max().unwrap_or(begin)
}

fn duration(environment: &Environment, step: &Disruption, live: &Live) -> u64 {
    let settle = step
        .stays
        .iter()
        .filter_map(|stays| environment.group(&stays.group))
        .map(|group| group.settle_secs)
        .max()
        .unwrap_or(0);
    let key = (step.node.clone(), step.unit.clone());
    settle + live.stop_start_secs.get(&key).copied().unwrap_or(STOP_START_SECS)
}
