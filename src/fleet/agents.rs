//! The agents themselves: which version of converger a node is to run, and the group in which the nodes take it.
//!
//! The component `converger` of `versions.toml` is the agent's version; where there is none, agents stay as they are. All
//! nodes of an environment are one group that nobody declares, `converger.agents`: canaries first, then a share of the
//! nodes at a time. PURE. Never: compares versions; what the commit says is wanted, be it older.

use std::collections::BTreeMap;

use super::schema::{Agents, Membership, Quorum};
use super::{Environment, Group, Node};
use crate::name::{ClusterName, GroupId, NodeName, RoleName, UnitName};

/// In `versions.toml`.
pub const COMPONENT: &str = "converger";
/// The agent's own unit; its file says which program it starts.
pub const UNIT: &str = "converger.service";

/// The agent that a node is to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub version: String,
    /// Hex SHA-256 of the program: one ELF file.
    pub sha256: String,
    /// Tried in order.
    pub urls: Vec<String>,
    pub group: Group,
    /// The canaries that this node waits for, with the digest that each of them is to run; none for a canary.
    pub canaries: Vec<(NodeName, String)>,
    pub trial_secs: u64,
}

/// `None`: the commit says nothing of the agent.
pub fn wanted(environment: &Environment, node: &Node) -> Option<Wanted> {
    let component = environment.versions.get(COMPONENT)?;
    let pinned = component.on(&node.os);
    let canaries: Vec<&Node> = canaries(environment).collect();
    let before_me = if canaries.iter().any(|canary| canary.name == node.name) { Vec::new() } else { canaries };
    let digest = |node: &Node| component.on(&node.os).sha256.map(str::to_owned);
    Some(Wanted {
        version: pinned.version.to_owned(),
        // `check` sees to it that every node has one.
        sha256: pinned.sha256?.to_owned(),
        urls: pinned.urls.to_vec(),
        group: group(environment),
        canaries: before_me.into_iter().filter_map(|canary| Some((canary.name.clone(), digest(canary)?))).collect(),
        trial_secs: environment.agents.trial_secs,
    })
}

/// Hex SHA-256 of the agent that a node is to run; `None`: the commit says nothing of it.
pub fn digest<'a>(environment: &'a Environment, node: &Node) -> Option<&'a str> {
    environment.versions.get(COMPONENT)?.on(&node.os).sha256
}

pub fn group_id() -> GroupId {
    GroupId::of(&ClusterName::from("converger"), "agents")
}

/// Nobody's service goes away with an agent, so there is no quorum and no gate; lanes, freezes and failures count.
pub fn group(environment: &Environment) -> Group {
    let members: Vec<NodeName> = environment.nodes.iter().map(|node| node.name.clone()).collect();
    Group {
        id: group_id(),
        quorum: Quorum::None,
        max_unavailable: lanes(&environment.agents, members.len()),
        rank: canaries(environment).map(|node| node.name.clone()).collect(),
        members,
        changing: BTreeMap::new(),
        conflicts: Vec::new(),
        aliases: Vec::new(),
        unit: UnitName::from(UNIT),
        gate: None,
        leader: None,
        settle_secs: 0,
        role: RoleName::from(COMPONENT),
    }
}

/// How many agents may be on trial at once.
fn lanes(agents: &Agents, nodes: usize) -> usize {
    let percent = usize::try_from(agents.at_a_time_percent).unwrap_or(100).min(100);
    (nodes.saturating_mul(percent) / 100).max(1)
}

/// Those that are still there.
fn canaries(environment: &Environment) -> impl Iterator<Item = &Node> {
    let nodes = environment.nodes.iter().filter(|node| node.state != Membership::Retired);
    nodes.filter(|node| {
        let has_role = |role: &RoleName| {
            let mut brought = node.clusters.iter().filter_map(|name| environment.cluster(name));
            environment.roles.contains(role) || brought.any(|cluster| cluster.roles.contains(role))
        };
        environment.agents.canaries.selects(node, &has_role)
    })
}

/// What a commit does to the agents, for people; `None`: nothing.
pub fn change(before: &Environment, after: &Environment) -> Option<String> {
    let component = after.versions.get(COMPONENT)?;
    let (old, nodes) = (before.versions.get(COMPONENT), after.nodes.len());
    let moves = |node: &&Node| old.is_none_or(|old| old.on(&node.os).sha256 != component.on(&node.os).sha256);
    let moving = after.nodes.iter().filter(moves).count();
    if moving == 0 {
        return None;
    }
    let from = old.map_or("what is installed", |old| old.version.as_str());
    let first: Vec<&str> = canaries(after).map(|node| node.name.as_str()).collect();
    let order = if first.is_empty() { String::new() } else { format!(", canaries first ({})", first.join(", ")) };
    let lanes = lanes(&after.agents, nodes);
    Some(format!(
        "agents: converger {from} -> {} on {moving} of {nodes} nodes, {lanes} at a time{order}",
        component.version
    ))
}

/// Units that the agent runs as, or that watch it.
pub fn is_own_unit(name: &str) -> bool {
    name.starts_with("converger.") || name.starts_with("converger-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_at_a_time_and_never_nobody() {
        let percent = |at_a_time_percent| Agents { at_a_time_percent, ..Agents::default() };
        for (said, nodes, lanes_max) in [(10, 1, 1), (10, 9, 1), (10, 65, 6), (10, 1000, 100), (100, 3, 3), (0, 3, 1)] {
            assert_eq!(lanes(&percent(said), nodes), lanes_max, "{said} % of {nodes}");
        }
    }

    #[test]
    fn its_own_units_are_known() {
        assert!(is_own_unit("converger.service") && is_own_unit("converger-trial-1.timer"));
        assert!(!is_own_unit("convergerd.service") && !is_own_unit("kafka.service"));
    }
}
