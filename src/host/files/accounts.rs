//! Owners by name and by number, each asked once.
//!
//! Never: makes an account.

use std::collections::HashMap;

use rustix::fs::{Gid, Uid};

use crate::host::HostError;
use crate::resource::FileSpec;

/// Names of owners, asked once each.
#[derive(Default)]
pub(super) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    pub(super) fn user(&mut self, uid: u32) -> String {
        let ask = || nix::unistd::User::from_uid(uid.into()).ok().flatten().map_or(uid.to_string(), |user| user.name);
        self.users.entry(uid).or_insert_with(ask).clone()
    }

    pub(super) fn group(&mut self, gid: u32) -> String {
        let ask =
            || nix::unistd::Group::from_gid(gid.into()).ok().flatten().map_or(gid.to_string(), |group| group.name);
        self.groups.entry(gid).or_insert_with(ask).clone()
    }
}

/// Numbers of the owners that a spec names (a number stands for itself), asked once each.
#[derive(Default)]
pub(super) struct Numbers {
    users: HashMap<String, Uid>,
    groups: HashMap<String, Gid>,
}

impl Numbers {
    pub(super) fn of(&mut self, spec: &FileSpec) -> Result<(Uid, Gid), HostError> {
        let unknown = |name: &str| HostError::NoSuchAccount { name: name.to_owned(), path: spec.path.to_string() };
        let user = match self.users.get(&spec.owner) {
            Some(user) => *user,
            None => {
                let found = nix::unistd::User::from_name(&spec.owner).ok().flatten().map(|user| user.uid.as_raw());
                Uid::from_raw(found.or(spec.owner.parse().ok()).ok_or_else(|| unknown(&spec.owner))?)
            }
        };
        let group = match self.groups.get(&spec.group) {
            Some(group) => *group,
            None => {
                let found = nix::unistd::Group::from_name(&spec.group).ok().flatten().map(|group| group.gid.as_raw());
                Gid::from_raw(found.or(spec.group.parse().ok()).ok_or_else(|| unknown(&spec.group))?)
            }
        };
        self.users.insert(spec.owner.clone(), user);
        self.groups.insert(spec.group.clone(), group);
        Ok((user, group))
    }
}
