//! What stands in the store: holds, turns of actions, freezes, nodes declared dead; and what about them needs a person.
//!
//! PURE. Never: leaves out what it cannot read, or whose node or group is not in the topology any more.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use crate::fleet::{Environment, agents};
use crate::lock::election::Claim;
use crate::lock::operator::{Scope, Statement};
use crate::lock::protocol;
use crate::lock::quorum::{Freeze, Hold, HoldPhase};
use crate::lock::store::Snapshot;
use crate::name::{ClusterName, GroupId, NodeName};

/// What [`Standing::of`] must be given.
pub const RANGES: [&str; 4] = ["hold/", "act/", protocol::FREEZES, "dead/"];

/// A hold that is older than this is worth a look.
const OLD_SECS: u64 = 600;

#[derive(Serialize)]
pub struct Standing {
    pub holds: Vec<Held>,
    pub actions: Vec<Turn>,
    pub freezes: Vec<Frozen>,
    pub dead: Vec<Dead>,
}

#[derive(Serialize)]
pub struct Held {
    #[serde(flatten)]
    pub hold: Hold,
    pub age_secs: u64,
    /// Why it stands out; none: it is as it should be.
    pub attention: Vec<String>,
    pub ends: String,
}

#[derive(Serialize)]
pub struct Turn {
    #[serde(flatten)]
    pub claim: Claim,
    pub age_secs: u64,
    pub attention: Vec<String>,
    pub ends: String,
}

#[derive(Serialize)]
pub struct Frozen {
    /// `fleet`, `g/GROUP`, `n/NODE`.
    pub scope: String,
    #[serde(flatten)]
    pub freeze: Freeze,
    pub attention: Vec<String>,
    pub ends: String,
    #[serde(skip)]
    pub of: Option<Scope>,
}

#[derive(Serialize)]
pub struct Dead {
    pub node: NodeName,
    pub reason: String,
    pub by: String,
    pub at: Option<Timestamp>,
    pub ends: String,
}

impl Standing {
    pub fn of(snapshot: &Snapshot, environment: &Environment, now: Timestamp) -> Self {
        let age = |since: Timestamp| now.duration_since(since).as_secs().max(0).unsigned_abs();
        let named = |prefix| {
            let keys =
                snapshot.below(prefix).filter_map(move |entry| entry.key.strip_prefix(prefix)?.split('/').next());
            keys.map(str::to_owned).collect::<BTreeSet<String>>()
        };
        let groups = named("hold/").into_iter().map(GroupId::new);
        let holds = groups.flat_map(|group| protocol::holds_in(snapshot, &group));
        let holds = holds.map(|(hold, _)| {
            let (attention, ends) = look(&hold, environment, age(hold.since));
            Held { age_secs: age(hold.since), attention, ends, hold }
        });
        let clusters = named("act/").into_iter().map(ClusterName::new);
        let claims = clusters.flat_map(|cluster| protocol::claims_in(snapshot, &cluster));
        let actions = claims.map(|claim| {
            let mut attention: Vec<String> = stranger(&claim.node, environment).into_iter().collect();
            if environment.cluster(&claim.cluster).is_none() {
                attention.push(format!("the topology has no cluster {}", claim.cluster));
            }
            attention.extend(old(age(claim.since)));
            let ends = format!("It ends with the action, or when the next run of {} finds it.", claim.node);
            Turn { age_secs: age(claim.since), attention, ends, claim }
        });
        let freezes = snapshot.below(protocol::FREEZES).map(|entry| frozen(entry, environment));
        let dead = snapshot.below("dead/").filter_map(|entry| {
            let node = NodeName::new(entry.key.strip_prefix("dead/")?);
            let said = serde_json::from_slice::<Statement>(&entry.value).ok();
            let ends = format!("It ends by `converger node admit {node} --reason \"…\"`.");
            let unreadable = || "its statement cannot be read".to_owned();
            Some(Dead {
                reason: said.as_ref().map_or_else(unreadable, |said| said.reason.clone()),
                by: said.as_ref().map_or_else(String::new, |said| said.by.clone()),
                at: said.map(|said| said.at),
                node,
                ends,
            })
        });
        Self { holds: holds.collect(), actions: actions.collect(), freezes: freezes.collect(), dead: dead.collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.actions.is_empty() && self.freezes.is_empty() && self.dead.is_empty()
    }

    /// Holds and turns that somebody should look at.
    pub fn conspicuous(&self) -> usize {
        let holds = self.holds.iter().filter(|held| !held.attention.is_empty()).count();
        holds + self.actions.iter().filter(|turn| !turn.attention.is_empty()).count()
    }

    /// The freezes that keep a node from disrupting its members of these groups.
    pub fn freezes_of<'a>(&'a self, node: &'a NodeName, groups: &'a [&GroupId]) -> impl Iterator<Item = &'a Frozen> {
        self.freezes.iter().filter(move |frozen| match &frozen.of {
            Some(Scope::Fleet) => true,
            Some(Scope::Group(group)) => groups.contains(&group),
            Some(Scope::Node(frozen)) => frozen == node,
            None => false,
        })
    }
}

fn stranger(node: &NodeName, environment: &Environment) -> Option<String> {
    environment.node(node).is_none().then(|| format!("the topology has no node {node}: its agent gives nothing back"))
}

fn old(secs: u64) -> Option<String> {
    (secs > OLD_SECS).then(|| format!("older than {} min", OLD_SECS / 60))
}

/// Whether anybody counts a group by this name.
fn knows(environment: &Environment, id: &GroupId) -> bool {
    let is_it = |group: &crate::fleet::Group| group.id == *id || group.aliases.contains(id);
    environment.groups().any(is_it) || is_it(&environment.lanes()) || *id == agents::group_id()
}

/// What stands out about a hold, and what ends it.
fn look(hold: &Hold, environment: &Environment, age_secs: u64) -> (Vec<String>, String) {
    let (node, group) = (&hold.node, &hold.group);
    let mut attention: Vec<String> = stranger(node, environment).into_iter().collect();
    let gone = !attention.is_empty();
    if !knows(environment, group) {
        attention.push(format!("the topology has no group {group}"));
    }
    if hold.phase == HoldPhase::Failed {
        attention.push("failed".to_owned());
    }
    attention.extend(old(age_secs));
    let dead = format!("If its machine is off for good: `converger holds release --dead {node} --reason \"…\"`.");
    let ends = match hold.phase {
        HoldPhase::Claimed => format!(
            "It ends by itself, or by `converger holds release --claimed {group}/{node} --reason \"…\"`: nothing was stopped under it."
        ),
        _ if gone => format!("Bring {node} back into the topology, or take the machine away. {dead}"),
        HoldPhase::Failed => format!("It ends with the next commit that is good for {node}, often a revert. {dead}"),
        HoldPhase::Armed => format!("It ends when {node} settles: `converger why {node}`. {dead}"),
    };
    (attention, ends)
}

fn frozen(entry: &crate::lock::store::Entry, environment: &Environment) -> Frozen {
    let of = Scope::of_key(&entry.key);
    let mut attention = Vec::new();
    match &of {
        Some(Scope::Group(group)) if !knows(environment, group) => {
            attention.push(format!("the topology has no group {group}"));
        }
        Some(Scope::Node(node)) if environment.node(node).is_none() => {
            attention.push(format!("the topology has no node {node}"));
        }
        None => attention.push("this key freezes nothing".to_owned()),
        Some(_) => {}
    }
    let scope = entry.key.strip_prefix(protocol::FREEZES).unwrap_or(&entry.key).to_owned();
    let option = match &of {
        Some(Scope::Group(group)) => format!(" --group {group}"),
        Some(Scope::Node(node)) => format!(" --node {node}"),
        Some(Scope::Fleet) | None => String::new(),
    };
    let freeze = protocol::freeze_of(entry);
    let ends = match freeze.until {
        Some(until) => format!("It ends at {until}, or by `converger unfreeze{option} --reason \"…\"`."),
        None => format!("It has no end: `converger unfreeze{option} --reason \"…\"`."),
    };
    Frozen { scope, freeze, attention, ends, of }
}
