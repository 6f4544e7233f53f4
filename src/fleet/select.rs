//! One node's part of the fleet: which roles it has, through which cluster, and which groups it is a member of.
//!
//! PURE. Never: another node's resources.

use super::{Cluster, Fleet, Group, Node, Role};
use crate::name::NodeName;

/// What one node must become, before anything is rendered.
pub struct NodeSpec<'a> {
    pub fleet: &'a Fleet,
    pub node: &'a Node,
    /// In order: the environment's roles, then those of each cluster.
    pub roles: Vec<RoleInstance<'a>>,
    pub groups: Vec<&'a Group>,
}

pub struct RoleInstance<'a> {
    pub role: &'a Role,
    /// The cluster it came from; `None` for the environment's own roles.
    pub cluster: Option<&'a Cluster>,
}

/// `None`: the topology has no such node.
pub fn select<'a>(fleet: &'a Fleet, node: &NodeName) -> Option<NodeSpec<'a>> {
    let environment = &fleet.environment;
    let node = environment.node(node)?;
    let own = environment.roles.iter().map(|role| (role, None));
    let brought = node
        .clusters
        .iter()
        .filter_map(|name| environment.cluster(name))
        .flat_map(|cluster| cluster.roles.iter().map(move |role| (role, Some(cluster))));
    let roles = own
        .chain(brought)
        .filter_map(|(name, cluster)| Some(RoleInstance { role: environment.role_bodies.get(name)?, cluster }))
        .collect();
    let groups = environment.groups().filter(|group| group.members.contains(&node.name)).collect();
    Some(NodeSpec { fleet, node, roles, groups })
}
