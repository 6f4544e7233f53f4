//! Who may read and write what in etcd, for one environment: users, roles and grants, made from the topology.
//!
//! A user is a certificate's CN. A node reads everything of its environment and writes its own keys only, so that one that
//! was taken over can neither free nor forge another's hold. Roles are named after the prefix of the keys
//! (`converger/FLEET/ENVIRONMENT/…`): what is named otherwise is not ours. PURE. Never: takes away before it has given.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::{Environment, Fleet, agents};
use crate::lock::protocol;
use crate::lock::store::{Key, range_end};
use crate::name::NodeName;

/// etcd's superuser: it is asked for nothing.
pub const ROOT: &str = "root";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

/// `[from, to)`, or the key `from` alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Keys {
    pub from: Key,
    pub to: Option<Key>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rights {
    /// What each role may do with which keys.
    pub roles: BTreeMap<String, BTreeMap<Keys, Access>>,
    /// The roles of each user.
    pub users: BTreeMap<String, BTreeSet<String>>,
}

/// Users that are no nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct People {
    /// May do everything in the environment.
    pub operators: Vec<String>,
    /// May read, and wake the nodes.
    pub wakers: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RightsError {
    #[error("a node is called root, which is etcd's superuser: give it another name")]
    NodeIsRoot,
    #[error("{0} is a node: an operator needs a certificate of their own")]
    OperatorIsNode(String),
}

/// One step from what is to what should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    AddRole(String),
    /// In place of what the role could do with exactly these keys.
    Grant(String, Keys, Access),
    AddUser(String),
    GiveRole(String, String),
    Revoke(String, Keys),
    TakeRole(String, String),
    DeleteUser(String),
    DeleteRole(String),
}

/// What comes before the name of each role of an environment.
pub fn prefix(fleet: &str, environment: &str) -> String {
    format!("converger/{fleet}/{environment}/")
}

/// The rights of an environment as its topology wants them.
pub fn wanted(fleet: &Fleet, people: &People) -> Result<Rights, RightsError> {
    let environment = &fleet.environment;
    let prefix = prefix(&fleet.name, environment.name.as_str());
    let root = format!("/{prefix}");
    let everything = || keys(&root, "");
    let is_node = |name: &&String| environment.nodes.iter().any(|node| node.name.as_str() == name.as_str());
    if let Some(name) = people.operators.iter().chain(&people.wakers).find(is_node) {
        return Err(RightsError::OperatorIsNode(name.clone()));
    }
    let mut rights = Rights::default();
    let (admin, waker) = (format!("{prefix}admin"), format!("{prefix}serve"));
    rights.roles.insert(admin.clone(), BTreeMap::from([(everything(), Access::ReadWrite)]));
    let wakes = [(everything(), Access::Read), (keys(&root, protocol::WAKE), Access::Write)];
    rights.roles.insert(waker.clone(), BTreeMap::from(wakes));
    for (names, role) in [(&people.operators, &admin), (&people.wakers, &waker)] {
        for name in names {
            rights.users.entry(name.clone()).or_default().insert(role.clone());
        }
    }
    for node in &environment.nodes {
        let name = node.name.as_str();
        if name == ROOT {
            return Err(RightsError::NodeIsRoot);
        }
        let role = format!("{prefix}node/{name}");
        let mut grants = BTreeMap::from([(everything(), Access::Read), (keys(&root, &own(name)), Access::ReadWrite)]);
        let writes = written_by(environment, &node.name);
        grants.extend(writes.into_iter().map(|key| (keys(&root, &key), Access::Write)));
        rights.roles.insert(role.clone(), grants);
        rights.users.entry(name.to_owned()).or_default().insert(role);
    }
    Ok(rights)
}

fn own(node: &str) -> String {
    format!("n/{node}/")
}

/// What a node writes besides its own keys below `n/`: all of it as `protocol` names it, folders with a trailing `/`.
fn written_by(environment: &Environment, node: &NodeName) -> BTreeSet<String> {
    let mut keys = BTreeSet::from([format!("audit/{node}/")]);
    let declared = environment.groups_of(node).cloned();
    // A node in no group has the environment's lanes; every node may take another agent.
    let lanes = Some(environment.lanes()).filter(|lanes| lanes.members.contains(node));
    for group in declared.chain(lanes).chain([agents::group(environment)]) {
        for id in group.ids() {
            keys.extend((0..group.max_unavailable).map(|lane| protocol::hold_key(id, lane, node)));
            keys.insert(protocol::spec_key(id));
        }
    }
    let clusters = environment.clusters.iter().filter(|cluster| cluster.members.contains(node));
    for cluster in clusters.map(|cluster| &cluster.name) {
        keys.extend([protocol::act_key(cluster, node), protocol::begun_key(cluster, ""), format!("single/{cluster}/")]);
    }
    keys
}

fn keys(root: &str, key: &str) -> Keys {
    let key = format!("{root}{key}");
    Keys { to: range_end(&key), from: key }
}

/// Everything that is missing, in an order in which each step can be done: after these nobody has less than before.
pub fn missing(live: &Rights, wanted: &Rights) -> Vec<Change> {
    let mut changes = Vec::new();
    for (role, grants) in &wanted.roles {
        let had = live.roles.get(role);
        if had.is_none() {
            changes.push(Change::AddRole(role.clone()));
        }
        for (keys, access) in grants {
            let before = had.and_then(|had| had.get(keys));
            if before != Some(access) {
                changes.push(Change::Grant(role.clone(), keys.clone(), *access));
            }
        }
    }
    for (user, roles) in &wanted.users {
        let had = live.users.get(user);
        if had.is_none() {
            changes.push(Change::AddUser(user.clone()));
        }
        let new = roles.iter().filter(|role| had.is_none_or(|had| !had.contains(*role)));
        changes.extend(new.map(|role| Change::GiveRole(user.clone(), role.clone())));
    }
    changes
}

/// Everything of ours that is there and not wanted. People keep the roles that somebody gave them: the topology does not
/// name them. A user that is left without any role goes.
pub fn superfluous(live: &Rights, wanted: &Rights, prefix: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    let of_nodes = format!("{prefix}node/");
    for (role, grants) in live.roles.iter().filter(|(role, _)| role.starts_with(prefix)) {
        if let Some(kept) = wanted.roles.get(role) {
            let gone = grants.keys().filter(|keys| !kept.contains_key(*keys));
            changes.extend(gone.map(|keys| Change::Revoke(role.clone(), keys.clone())));
        }
    }
    for (user, had) in &live.users {
        let kept = wanted.users.get(user);
        let is_gone = |role: &&String| role.starts_with(&of_nodes) && kept.is_none_or(|kept| !kept.contains(*role));
        let gone: Vec<&String> = had.iter().filter(is_gone).collect();
        changes.extend(gone.iter().map(|role| Change::TakeRole(user.clone(), (*role).clone())));
        if kept.is_none() && !gone.is_empty() && gone.len() == had.len() {
            changes.push(Change::DeleteUser(user.clone()));
        }
    }
    let roles = live.roles.keys().filter(|role| role.starts_with(prefix) && !wanted.roles.contains_key(*role));
    changes.extend(roles.map(|role| Change::DeleteRole(role.clone())));
    changes
}

impl Change {
    /// The arguments of etcdctl that do the same.
    pub fn etcdctl(&self) -> Vec<&str> {
        fn over(keys: &Keys) -> impl Iterator<Item = &str> {
            std::iter::once(keys.from.as_str()).chain(keys.to.as_deref())
        }
        match self {
            Self::AddRole(role) => vec!["role", "add", role],
            Self::Grant(role, keys, access) => {
                ["role", "grant-permission", role, access.word()].into_iter().chain(over(keys)).collect()
            }
            Self::AddUser(user) => vec!["user", "add", user, "--no-password"],
            Self::GiveRole(user, role) => vec!["user", "grant-role", user, role],
            Self::Revoke(role, keys) => ["role", "revoke-permission", role].into_iter().chain(over(keys)).collect(),
            Self::TakeRole(user, role) => vec!["user", "revoke-role", user, role],
            Self::DeleteUser(user) => vec!["user", "delete", user],
            Self::DeleteRole(role) => vec!["role", "delete", role],
        }
    }
}

impl Access {
    /// As etcdctl says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadWrite => "readwrite",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(roles: &[(&str, &[&str])], users: &[(&str, &[&str])]) -> Rights {
        let grants = |names: &[&str]| names.iter().map(|key| (keys("/", key), Access::Write)).collect();
        Rights {
            roles: roles.iter().map(|(role, names)| ((*role).to_owned(), grants(names))).collect(),
            users: users
                .iter()
                .map(|(user, roles)| ((*user).to_owned(), roles.iter().map(|role| (*role).to_owned()).collect()))
                .collect(),
        }
    }

    fn lines(changes: &[Change]) -> Vec<String> {
        changes.iter().map(|change| change.etcdctl().join(" ")).collect()
    }

    #[test]
    fn what_is_as_wanted_needs_nothing() {
        let rights = some(&[("p/node/n1", &["a", "b/"])], &[("n1", &["p/node/n1"])]);
        assert_eq!(missing(&rights, &rights), []);
        assert_eq!(superfluous(&rights, &rights, "p/"), []);
    }

    #[test]
    fn other_access_to_the_same_keys_is_granted_and_not_revoked() {
        let mut live = some(&[("p/node/n1", &["a"])], &[]);
        let wanted = live.clone();
        live.roles.values_mut().for_each(|grants| grants.values_mut().for_each(|access| *access = Access::ReadWrite));
        assert_eq!(lines(&missing(&live, &wanted)), ["role grant-permission p/node/n1 write /a"]);
        assert_eq!(superfluous(&live, &wanted, "p/"), []);
    }

    #[test]
    fn a_node_that_left_loses_its_user_and_one_of_another_environment_keeps_it() {
        let wanted = some(&[("p/admin", &["a"])], &[]);
        let live = some(
            &[("p/admin", &["a"]), ("p/node/n1", &["a"]), ("p/node/n2", &["a"]), ("q/node/n2", &["a"])],
            &[("n1", &["p/node/n1"]), ("n2", &["p/node/n2", "q/node/n2"]), ("ann", &["p/admin"]), ("bob", &[])],
        );
        assert_eq!(missing(&live, &wanted), []);
        assert_eq!(
            lines(&superfluous(&live, &wanted, "p/")),
            [
                "user revoke-role n1 p/node/n1",
                "user delete n1",
                "user revoke-role n2 p/node/n2",
                "role delete p/node/n1",
                "role delete p/node/n2",
            ]
        );
    }
}
