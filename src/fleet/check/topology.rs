//! Rules of `environment.toml`, `topology.toml`, `variables.toml`: who there is, and who waits for whom.
//!
//! PURE. Never: judges a group that nobody gives a meaning to.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Precision, Within};
use crate::fleet::schema::{ClusterEntry, GroupEntry, Membership, Quorum};
use crate::fleet::selector::Selector;
use crate::fleet::{Cluster, Group, rule};
use crate::lock::protocol::{self, OPERATIONS_MAX};
use crate::name::{GroupId, NodeName, RoleName};
use crate::resource::action::Scope;

impl Check<'_, '_> {
    pub(super) fn environment(&mut self) {
        let environment = &self.fleet.environment;
        let document = &self.documents.environment;
        if let Some(why) = super::mistake_in_name(environment.name.as_str()) {
            let title = format!("{:?} cannot be the name of an environment", environment.name.as_str());
            self.problems.push(document.error(rule::BAD_NAME, title).note(why));
        }
        self.os(document, &["os"], &environment.os, Precision::Exact);
        for (index, role) in environment.roles.iter().enumerate() {
            self.role_exists(&["roles", &index.to_string()], role, Within::Environment);
            let actions = environment.role_bodies.get(role).map(|role| role.actions.as_slice()).unwrap_or_default();
            if let Some(action) = actions.iter().find(|action| action.body.scope == Scope::Cluster) {
                let title = format!("action {} of role {role} is one for a whole cluster", action.body.name);
                let problem = document.error(rule::CLUSTER_ACTION, title);
                let place = document.value(&["roles", &index.to_string()]);
                self.problems.push(problem.at(place, "here no cluster brings it"));
            }
            let units = environment.role_bodies.get(role).map(|role| role.units.as_slice()).unwrap_or_default();
            if let Some(unit) = units.iter().find(|unit| unit.body.singleton) {
                let title = format!("{} of role {role} cannot be a singleton", unit.body.name);
                let problem = document.error(rule::SINGLETON, title);
                let place = document.value(&["roles", &index.to_string()]);
                self.problems.push(problem.at(place, "here no cluster brings it"));
            }
        }
        if let Some(commit) = &environment.roles_at {
            let id = commit.as_str();
            let hex = id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            if !hex || !matches!(id.len(), 40 | 64) {
                let problem = document.error(rule::BAD_COMMIT, format!("{id:?} is not the full id of a commit"));
                self.problems.push(problem.at(document.value(&["roles_at"]), "40 or 64 lowercase hex digits"));
            }
        }
        self.agents();
        let variables = &environment.variables;
        let document = &self.documents.variables;
        for os in variables.os.keys() {
            self.os(document, &["os", os], os, Precision::Family);
        }
        for cluster in variables.cluster.keys() {
            if !self.has_cluster(cluster.as_str()) {
                self.unknown_cluster(
                    document,
                    document.key(&["cluster", cluster.as_str()]),
                    cluster.as_str(),
                    Within::Environment,
                );
            }
        }
        for node in variables.node.keys() {
            if !self.nodes.contains_key(node) {
                self.unknown_node(document, document.key(&["node", node.as_str()]), node.as_str(), Within::Environment);
            }
        }
    }

    fn role_exists(&mut self, path: &[&str], role: &RoleName, within: Within) {
        if self.documents.roles.contains_key(role) {
            return;
        }
        let document = match path.first() {
            Some(&"clusters") => &self.documents.topology,
            _ => &self.documents.environment,
        };
        let known: BTreeSet<&str> = self
            .fleet
            .tree
            .below("roles")
            .filter_map(|(path, _)| path.as_str().strip_prefix("roles/")?.strip_suffix("/role.toml"))
            .collect();
        let problem = super::severity(document, rule::UNKNOWN_ROLE, format!("there is no role \"{role}\""), within);
        let problem = problem.at(document.value(path), format!("no roles/{role}/role.toml"));
        self.unknown(problem, "roles", role.as_str(), known.iter().copied());
    }

    pub(super) fn topology(&mut self) {
        let document = &self.documents.topology;
        let topology = self.topology;
        if topology.nodes.0.is_empty() && self.left_out.is_empty() {
            self.problems.push(document.error(rule::NO_NODES, "the topology has no node"));
        }
        for tier in topology.tiers.keys() {
            self.name(document, &["tiers", tier], "tier", tier);
        }
        for (name, entry) in &topology.clusters.0 {
            self.cluster(name.get_ref(), entry);
        }
        for (name, entry) in &topology.nodes.0 {
            let name = name.get_ref().as_str();
            self.name(document, &["nodes", name], "node", name);
            if entry.clusters.is_empty() {
                let problem = document.error(rule::NODE_WITHOUT_CLUSTER, format!("{name} is in no cluster"));
                self.problems.push(problem.at(document.value(&["nodes", name, "clusters"]), "names no cluster"));
            }
            for (index, cluster) in entry.clusters.iter().enumerate() {
                if !self.has_cluster(cluster.as_str()) {
                    let path = ["nodes", name, "clusters", &index.to_string()];
                    self.unknown_cluster(document, document.value(&path), cluster.as_str(), Within::Environment);
                }
            }
            if let Some(os) = &entry.os {
                self.os(document, &["nodes", name, "os"], os, Precision::Exact);
            }
        }
        self.after_cycles();
        self.windows_together();
        self.taken_together();
        self.aliases();
        for cluster in &self.fleet.environment.clusters {
            self.orders(cluster);
            self.unprotected_units(cluster);
        }
    }

    fn cluster(&mut self, name: &str, entry: &ClusterEntry) {
        let document = &self.documents.topology;
        let path = |rest: &[&'static str]| [&["clusters", name], rest].concat();
        self.name(document, &path(&[]), "cluster", name);
        if name == "converger" {
            let problem = document.error(rule::BAD_NAME, "\"converger\" cannot be the name of a cluster");
            self.problems.push(problem.at(document.key(&path(&[])), "the agents' own: converger.agents"));
        }
        let members: BTreeSet<&NodeName> = self
            .fleet
            .environment
            .clusters
            .iter()
            .find(|cluster| cluster.name.as_str() == name)
            .map(|cluster| cluster.members.iter().collect())
            .unwrap_or_default();
        if !self.topology.tiers.contains_key(&entry.tier) {
            let problem = document
                .error(rule::UNKNOWN_TIER, format!("\"{}\" is not a tier", entry.tier))
                .at(document.value(&path(&["tier"])), "no tier has this name");
            self.unknown(problem, "tiers", &entry.tier, self.topology.tiers.keys().map(String::as_str));
        }
        if entry.roles.is_empty() {
            let count = members.len();
            let nodes = if count == 1 { "node gets" } else { "nodes get" };
            let title = format!("cluster {name} has no roles yet: its {count} {nodes} only what every node gets");
            let problem = document.warning(rule::ROLE_NOT_WRITTEN, title);
            self.problems.push(problem.at(document.value(&path(&["roles"])), "not written yet"));
        }
        for (index, role) in entry.roles.iter().enumerate() {
            self.role_exists(&["clusters", name, "roles", &index.to_string()], role, Within::Environment);
        }
        for (index, other) in entry.after.iter().enumerate() {
            if !self.has_cluster(other.as_str()) {
                let path = ["clusters", name, "after", &index.to_string()];
                self.unknown_cluster(document, document.value(&path), other.as_str(), Within::Environment);
            }
        }
        let mut numbers: BTreeMap<u64, &NodeName> = BTreeMap::new();
        for (node, number) in &entry.ids {
            let path = ["clusters", name, "ids", node.as_str()];
            self.member(&path, node, &members, &format!("cluster {name}"));
            if let Some(other) = numbers.insert(*number, node) {
                let title = format!("{other} and {node} have the same number in cluster {name}");
                let problem = document.error(rule::DUPLICATE_ID, title);
                self.problems.push(problem.at(document.value(&path), format!("{number} is {other}'s")));
            }
        }
        self.windows_of(name, entry);
        for (group, said) in &entry.groups {
            self.group(name, entry, group, said, &members);
        }
    }

    /// A node that is named where only members make sense.
    fn member(&mut self, path: &[&str], node: &NodeName, members: &BTreeSet<&NodeName>, of: &str) {
        let document = &self.documents.topology;
        let span = || if path.get(2) == Some(&"ids") { document.key(path) } else { document.value(path) };
        if !self.nodes.contains_key(node) {
            self.unknown_node(document, span(), node.as_str(), Within::Environment);
        } else if !members.contains(node) {
            let problem = document.error(rule::MEMBER_NOT_IN_CLUSTER, format!("{node} is not a member of {of}"));
            let problem = problem.at(span(), "not a member");
            self.unknown(problem, "members", node.as_str(), members.iter().map(|node| node.as_str()));
        }
    }

    fn group(
        &mut self,
        cluster: &str,
        entry: &ClusterEntry,
        name: &str,
        said: &GroupEntry,
        in_cluster: &BTreeSet<&NodeName>,
    ) {
        let document = &self.documents.topology;
        let path = |rest: &[&'static str]| [&["clusters", cluster, "groups", name], rest].concat();
        let id = GroupId::new(format!("{cluster}.{name}"));
        self.name(document, &path(&[]), "group", name);
        self.meaning(cluster, entry, name);

        self.selector(document, &path(&["members"]), &said.members, Within::Environment);
        if let Selector::Nodes(names) = &said.members {
            for (index, node) in names.iter().enumerate() {
                // Told by the selector already.
                if !self.nodes.contains_key(node) {
                    continue;
                }
                let index = index.to_string();
                let path = [&path(&["members", "nodes"])[..], &[&index]].concat();
                self.member(&path, node, in_cluster, &format!("cluster {cluster}"));
            }
        }
        for (index, other) in said.conflicts.iter().enumerate() {
            let there = self.said_groups().any(|(_, group)| group == *other);
            if !there || *other == id {
                let label = if there { "the group itself" } else { "no group has this name" };
                let problem = document
                    .error(rule::CONFLICTS_UNKNOWN, format!("{id} cannot conflict with \"{other}\""))
                    .at(document.value(&[&path(&["conflicts"])[..], &[&index.to_string()]].concat()), label);
                let known: Vec<String> = self.said_groups().map(|(_, group)| group.to_string()).collect();
                self.unknown(problem, "groups", other.as_str(), known.iter().map(String::as_str));
            }
        }
        if said.max_unavailable == 0 {
            let problem = document.error(rule::MAX_UNAVAILABLE_ZERO, format!("{id} could never restart a member"));
            self.problems.push(problem.at(document.value(&path(&["max_unavailable"])), "must be 1 or more"));
        }
        let environment = &self.fleet.environment;
        let Some(group) = environment.group(&id) else { return };
        let members: BTreeSet<&NodeName> = group.members.iter().collect();
        for (index, node) in said.rank.iter().enumerate() {
            let index = index.to_string();
            self.member(&[&path(&["rank"])[..], &[&index]].concat(), node, &members, &format!("group {id}"));
        }
        // Of a node that could not be read nobody knows whether it is a member.
        if self.left_out.is_empty() {
            self.size(group, &path(&["members"]), &path(&["max_unavailable"]));
        }
    }

    fn size(&mut self, group: &Group, members: &[&str], max_unavailable: &[&str]) {
        let document = &self.documents.topology;
        let stays = |node: &&NodeName| self.nodes.get(node).is_some_and(|node| node.state != Membership::Retired);
        let count = group.members.iter().filter(stays).count();
        if count == 0 {
            let problem = document.error(rule::EMPTY_GROUP, format!("group {} has no member", group.id));
            self.problems.push(problem.at(document.value(members), "selects no node of the cluster"));
            return;
        }
        let majority = count / 2 + 1;
        let left = count.saturating_sub(group.max_unavailable);
        if group.quorum == Quorum::Majority && group.max_unavailable > 0 && left < majority {
            let title = format!("{} cannot spare {} of its {count} members", group.id, group.max_unavailable);
            let span = document.value(max_unavailable);
            let label = format!("leaves {left}, a majority is {majority}");
            // Of one or two nobody can ever go: that may be all there is, and is for the author to accept.
            let problem = match count {
                1 | 2 => document
                    .warning(rule::QUORUM_IMPOSSIBLE, title)
                    .help("its unit will never be restarted; quorum = \"none\" accepts the outage"),
                _ => document.error(rule::QUORUM_IMPOSSIBLE, title),
            };
            self.problems.push(problem.at(span, label));
        }
    }

    /// The roles say what a group is; exactly one of them.
    fn meaning(&mut self, cluster: &str, entry: &ClusterEntry, name: &str) {
        let document = &self.documents.topology;
        let roles = &self.fleet.environment.role_bodies;
        let path = ["clusters", cluster, "groups", name];
        let declaring: Vec<&RoleName> = entry
            .roles
            .iter()
            .filter(|role| roles.get(*role).is_some_and(|body| body.groups.contains_key(name)))
            .collect();
        if let [first, second, ..] = declaring[..] {
            let title = format!("roles {first} and {second} both declare group {cluster}.{name}");
            let problem = document.error(rule::DUPLICATE_GROUP, title);
            self.problems.push(problem.at(document.key(&path), "means two things"));
        }
        // A role that is missing or broken is a problem of its own.
        if declaring.is_empty() && entry.roles.iter().all(|role| roles.contains_key(role)) {
            let problem = document
                .error(rule::UNKNOWN_GROUP, format!("no role of cluster {cluster} declares a group \"{name}\""))
                .at(document.key(&path), "no unit, no check: what would a member be?");
            let known = entry.roles.iter().filter_map(|role| roles.get(role)).flat_map(|body| body.groups.keys());
            self.unknown(problem, "groups of its roles", name, known.map(String::as_str));
        }
    }

    fn said_groups(&self) -> impl Iterator<Item = (&str, GroupId)> {
        self.topology.clusters.0.iter().flat_map(|(cluster, entry)| {
            let id = |group: &String| GroupId::new(format!("{}.{group}", cluster.get_ref()));
            entry.groups.keys().map(move |group| (group.as_str(), id(group)))
        })
    }

    fn aliases(&mut self) {
        let document = &self.documents.topology;
        let live: BTreeSet<GroupId> = self.said_groups().map(|(_, id)| id).collect();
        let mut former: BTreeMap<&GroupId, GroupId> = BTreeMap::new();
        for (cluster, entry) in &self.topology.clusters.0 {
            for (group, said) in &entry.groups {
                let id = GroupId::new(format!("{}.{group}", cluster.get_ref()));
                for (index, alias) in said.aliases.iter().enumerate() {
                    let label = match former.insert(alias, id.clone()) {
                        _ if live.contains(alias) => "this group exists".to_owned(),
                        Some(other) => format!("an alias of {other} too"),
                        None => continue,
                    };
                    let path = ["clusters", cluster.get_ref(), "groups", group, "aliases", &index.to_string()];
                    let problem = document.error(rule::ALIAS_IS_LIVE, format!("{id} was never called \"{alias}\""));
                    self.problems.push(problem.at(document.value(&path), label));
                }
            }
        }
    }

    /// Each circle once, told at the cluster that the topology names first.
    fn after_cycles(&mut self) {
        let document = &self.documents.topology;
        let clusters = &self.topology.clusters.0;
        let after: BTreeMap<&str, Vec<&str>> = clusters
            .iter()
            .map(|(name, entry)| (name.get_ref().as_str(), entry.after.iter().map(|other| other.as_str()).collect()))
            .collect();
        let mut told: BTreeSet<&str> = BTreeSet::new();
        for (name, _) in clusters {
            let start = name.get_ref().as_str();
            if told.contains(start) {
                continue;
            }
            let Some(circle) = way_back(start, &after) else { continue };
            told.extend(&circle);
            let way = circle.iter().chain([&start]).copied().collect::<Vec<_>>().join(" after ");
            let problem = document.error(rule::AFTER_CYCLE, format!("clusters wait for each other: {way}"));
            self.problems.push(problem.at(document.value(&["clusters", start, "after"]), "leads back here"));
        }
    }

    /// A reboot takes all groups of its node in one transaction.
    fn taken_together(&mut self) {
        let document = &self.documents.topology;
        let environment = &self.fleet.environment;
        for node in &environment.nodes {
            let groups = || environment.groups_of(&node.name);
            let names: BTreeSet<&GroupId> = groups().flat_map(Group::ids).collect();
            let conflicts = groups().flat_map(|group| &group.conflicts).flat_map(|id| {
                let of_it = environment.groups().find(|other| other.id == *id).into_iter().flat_map(Group::ids);
                of_it.chain([id])
            });
            let ranges: BTreeSet<&GroupId> = conflicts.chain(names.iter().copied()).collect();
            let needs = protocol::claim_size(names.len(), ranges.len());
            if needs <= OPERATIONS_MAX {
                continue;
            }
            let title = format!("{} is in more groups than it could take at once", node.name);
            let problem = document
                .error(rule::TOO_MANY_GROUPS, title)
                .help("take out `aliases` that no node knows any more, or spread its clusters over more nodes");
            let (groups, former) = (groups().count(), names.len() - groups().count());
            let label = format!(
                "{groups} groups, {former} former names and {} in conflict need {needs} conditions, a transaction has {OPERATIONS_MAX}",
                ranges.len() - names.len()
            );
            self.problems.push(problem.at(document.value(&["nodes", node.name.as_str(), "clusters"]), label));
        }
    }

    /// Members take a commit in the order of rank, then of declaration: groups that share members must agree.
    fn orders(&mut self, cluster: &Cluster) {
        let document = &self.documents.topology;
        for (index, group) in cluster.groups.iter().enumerate() {
            for other in &cluster.groups[..index] {
                let shared = |group: &Group, with: &Group| -> Vec<NodeName> {
                    let mut order = group.members.clone();
                    order.retain(|node| with.members.contains(node));
                    order.sort_by_key(|node| group.rank.iter().position(|first| first == node).unwrap_or(usize::MAX));
                    order
                };
                let (ours, theirs) = (shared(group, other), shared(other, group));
                let Some((mine, yours)) = ours.iter().zip(&theirs).find(|(mine, yours)| mine != yours) else {
                    continue;
                };
                let title = format!("{} and {} want their members in opposite order", other.id, group.id);
                // Whichever says a rank is where to look.
                let spoken = if group.rank.is_empty() { other } else { group };
                let path = ["clusters", cluster.name.as_str(), "groups", spoken.id.short(), "rank"];
                let problem = document.error(rule::ORDER_CONFLICT, title).at(document.value(&path), "");
                self.problems.push(problem.note(format!(
                    "{} takes {mine} before {yours}, {} takes {yours} before {mine}: each would wait for the other",
                    group.id, other.id
                )));
            }
        }
    }

    /// A role knows that a unit's stop takes a member away; the topology must know it too.
    fn unprotected_units(&mut self, cluster: &Cluster) {
        let document = &self.documents.topology;
        for role in cluster.roles.iter().filter_map(|role| self.fleet.environment.role_bodies.get(role)) {
            let units: BTreeSet<_> = role.groups.values().map(|group| &group.unit).collect();
            for unit in units {
                let meant = || role.groups.iter().filter(|(_, group)| group.unit == *unit).map(|(name, _)| name);
                let here = |name: &String| cluster.groups.iter().any(|group| group.id.short() == name);
                if meant().any(here) || meant().any(|name| self.left_out.contains(name)) {
                    continue;
                }
                let title = format!("{unit} of cluster {} restarts without a hold", cluster.name);
                let groups = meant().map(String::as_str).collect::<Vec<_>>().join(" or ");
                let problem = document
                    .warning(rule::UNPROTECTED_UNIT, title)
                    .at(document.key(&["clusters", cluster.name.as_str()]), format!("no group {groups} here"));
                self.problems.push(problem.note(format!("role {} says what its members are", role.name)));
            }
        }
    }
}

/// The clusters from `start` along `after` back to `start`, `start` first.
fn way_back<'n>(start: &'n str, after: &BTreeMap<&'n str, Vec<&'n str>>) -> Option<Vec<&'n str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = vec![start];
    while let Some(at) = open.pop() {
        for next in after.get(at).into_iter().flatten().copied() {
            if next == start {
                let mut way = vec![at];
                while let Some(before) = way.last().filter(|last| **last != start).and_then(|last| came_from.get(last))
                {
                    way.push(before);
                }
                way.reverse();
                return Some(way);
            }
            if let std::collections::btree_map::Entry::Vacant(entry) = came_from.entry(next) {
                entry.insert(at);
                open.push(next);
            }
        }
    }
    None
}
