//! etcd's users and roles: looked at, and changed one step at a time.
//!
//! Each step can be repeated: what is there already, or gone already, is no error. Never: decides who may do what; `rights` does.

use std::collections::{BTreeMap, BTreeSet};

use etcd_client::{Client, Error, Permission, PermissionType, RoleRevokePermissionOptions, UserAddOptions};

use super::{Effect, EtcdStore, Server, vet};
use crate::lock::rights::{Access, Change, Keys, ROOT, Rights};
use crate::lock::store::StoreError;

pub struct Auth(EtcdStore);

impl Auth {
    pub fn open(server: Server) -> Result<Self, StoreError> {
        Ok(Self(EtcdStore::open(server, String::new())?))
    }

    /// All users with their roles, and what the roles below this prefix may do.
    pub fn live(&self, prefix: &str) -> Result<Rights, StoreError> {
        let link = self.0.link.clone();
        let prefix = prefix.to_owned();
        self.0.wait(async move {
            let mut rights = Rights::default();
            let names = link.call(Effect::None, |mut client| async move { client.user_list().await }).await?;
            for name in names.users() {
                let user = link
                    .call(Effect::None, |mut client| {
                        let name = name.clone();
                        async move { client.user_get(name).await }
                    })
                    .await?;
                rights.users.insert(name.clone(), user.roles().iter().cloned().collect::<BTreeSet<_>>());
            }
            let names = link.call(Effect::None, |mut client| async move { client.role_list().await }).await?;
            for name in names.roles().iter().filter(|name| name.starts_with(&prefix)) {
                let role = link
                    .call(Effect::None, |mut client| {
                        let name = name.clone();
                        async move { client.role_get(name).await }
                    })
                    .await?;
                let grants = role.permissions().iter().filter_map(granted).collect::<BTreeMap<_, _>>();
                rights.roles.insert(name.clone(), grants);
            }
            Ok(rights)
        })
    }

    pub fn perform(&self, change: &Change) -> Result<(), StoreError> {
        self.write(change.clone(), |mut client, change| async move {
            match change {
                Change::AddRole(role) => client.role_add(role).await.map(drop),
                Change::Grant(role, keys, access) => {
                    client.role_grant_permission(role, permission(keys, access)).await.map(drop)
                }
                Change::AddUser(user) => {
                    client.user_add(user, "", Some(UserAddOptions::new().with_no_pwd())).await.map(drop)
                }
                Change::GiveRole(user, role) => client.user_grant_role(user, role).await.map(drop),
                Change::Revoke(role, keys) => {
                    let options = RoleRevokePermissionOptions::new();
                    let options = match keys.to {
                        Some(to) => options.with_range_end(to),
                        None => options,
                    };
                    client.role_revoke_permission(role, keys.from, Some(options)).await.map(drop)
                }
                Change::TakeRole(user, role) => client.user_revoke_role(user, role).await.map(drop),
                Change::DeleteUser(user) => client.user_delete(user).await.map(drop),
                Change::DeleteRole(role) => client.role_delete(role).await.map(drop),
            }
        })
    }

    /// From then on everybody needs a user. The superuser is made first, without a password.
    pub fn enable(&self) -> Result<(), StoreError> {
        self.perform(&Change::AddUser(ROOT.to_owned()))?;
        self.perform(&Change::GiveRole(ROOT.to_owned(), ROOT.to_owned()))?;
        self.write((), |mut client, ()| async move { client.auth_enable().await.map(drop) })
    }

    /// Whether somebody without a certificate gets an answer.
    pub fn answers_strangers(&self) -> Result<bool, StoreError> {
        let link = self.0.link.clone();
        self.0.wait(async move {
            let mut answers = false;
            for endpoint in 0..link.server.endpoints.len() {
                answers |= vet::answers_strangers(&link, endpoint).await;
            }
            Ok(answers)
        })
    }

    fn write<T, F>(&self, what: T, ask: impl Fn(Client, T) -> F + Send + Sync + 'static) -> Result<(), StoreError>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), Error>> + Send,
    {
        let link = self.0.link.clone();
        let done = self.0.wait(async move { link.call(Effect::Writes, |client| ask(client, what.clone())).await });
        match done {
            Err(StoreError::Settings { why }) if is_done_already(&why) => Ok(()),
            done => done,
        }
    }
}

/// api/v3rpc/rpctypes/error.go of etcd: what it says to a step that was done before.
fn is_done_already(why: &str) -> bool {
    const SAID: &[&str] = &[
        "user name already exists",
        "user name not found",
        "role name already exists",
        "role name not found",
        "role is not granted to the user",
        "permission is not granted to the role",
    ];
    SAID.iter().any(|said| why.contains(said))
}

fn permission(keys: Keys, access: Access) -> Permission {
    let kind = match access {
        Access::Read => PermissionType::Read,
        Access::Write => PermissionType::Write,
        Access::ReadWrite => PermissionType::Readwrite,
    };
    let permission = Permission::new(kind, keys.from);
    match keys.to {
        Some(to) => permission.with_range_end(to),
        None => permission,
    }
}

/// `None`: keys that are no text, which are not ours.
fn granted(permission: &Permission) -> Option<(Keys, Access)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let access = match PermissionType::try_from(permission.get_type()).ok()? {
        PermissionType::Read => Access::Read,
        PermissionType::Write => Access::Write,
        PermissionType::Readwrite => Access::ReadWrite,
    };
    let to = permission.range_end();
    let to = if to.is_empty() { None } else { Some(text(to)?) };
    Some((Keys { from: text(permission.key())?, to }, access))
}
