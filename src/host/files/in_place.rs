//! What is done to a file where it is: whether it may be replaced at all, its owner and mode, its removal.
//!
//! Never: touches anything but a regular file, or a file that has another name somewhere.

use std::collections::BTreeSet;

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxAttributes};
use rustix::io::Errno;

use super::Owners;
use super::accounts::Numbers;
use super::stage::mount_of;
use super::stat::{irregular, plain, stamp, stat, stat_of};
use crate::clock::Clock;
use crate::fleet::check::is_protected;
use crate::host::root::{Directory, Root, file, split};
use crate::host::{HostError, backup};
use crate::name::HostPath;
use crate::resource::FileSpec;
use crate::resource::file::{Previous, Stamp};

/// Nothing but a regular file, or nothing at all, may be replaced; and it must be possible.
pub(super) fn replaceable(directory: &Directory, name: &str, path: &str) -> Result<(), HostError> {
    let fixed = |stat: &Statx, of: &'static str| {
        let held = stat.stx_attributes & (StatxAttributes::IMMUTABLE | StatxAttributes::APPEND);
        if held.is_empty() { Ok(()) } else { Err(HostError::Fixed { path: path.to_owned(), what: of }) }
    };
    // Where it leads in the end counts: a link of the system's own may lead from an innocent path to ours.
    if let Some(why) = is_protected(&format!("/{}/{name}", directory.real)) {
        return Err(HostError::Blocked { path: path.to_owned(), what: why.to_owned() });
    }
    fixed(&stat_of(&directory.fd).map_err(file("look at", path))?, "its directory")?;
    match stat(directory, name) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(file("look at", path)(error)),
        Ok(stat) => match irregular(&stat) {
            Some(what) => Err(HostError::Blocked { path: path.to_owned(), what: format!("it is a {what}") }),
            None => fixed(&stat, "it"),
        },
    }
}

/// Sets owner and mode of a file whose bytes are right. `None`: it has another name somewhere (a hard link), so it
/// must become a file of its own instead.
pub fn set_attributes(
    root: &Root,
    owners: Owners,
    clock: &dyn Clock,
    spec: &FileSpec,
) -> Result<Option<Stamp>, HostError> {
    let path = spec.path.as_str();
    let (parent, name) = split(path)?;
    let gone = || HostError::File { operation: "open", path: path.to_owned(), source: Errno::NOENT.into() };
    let directory = root.directory(parent)?.ok_or_else(gone)?;
    replaceable(&directory, name, path)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&directory.fd, name, flags, Mode::empty()).map_err(file("open", path))?;
    let before = stat_of(&fd).map_err(file("look at", path))?;
    if let Some(what) = irregular(&before) {
        return Err(HostError::Blocked { path: path.to_owned(), what: format!("it is a {what}") });
    }
    // A service can link root's files into its own directory; their owner must not become the service.
    if before.stx_nlink != 1 {
        return Ok(None);
    }
    if owners == Owners::Kept {
        let (user, group) = Numbers::default().of(spec)?;
        rustix::fs::fchown(&fd, Some(user), Some(group)).map_err(file("set the owner of", path))?;
    }
    plain(&fd).map_err(file("set the mode of", path))?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(spec.mode)).map_err(file("set the mode of", path))?;
    rustix::fs::fsync(&fd).map_err(file("sync", path))?;
    Ok(Some(stamp(&stat_of(&fd).map_err(file("look at", path))?, clock)))
}

/// Makes durable whatever is at these paths, or is not there any more: files, their directories, and those above them.
pub fn sync(root: &Root, paths: &[&HostPath]) -> Result<(), HostError> {
    let mut synced = BTreeSet::new();
    for path in paths {
        let mut above = path.as_str();
        let directory = loop {
            above = split(above)?.0;
            match root.directory(above)? {
                Some(directory) => break directory,
                None if above == "/" => return Ok(()),
                None => {}
            }
        };
        if synced.insert(mount_of(&directory)?) {
            rustix::fs::syncfs(&directory.fd).map_err(file("sync", above))?;
        }
    }
    Ok(())
}

/// Removes a regular file, if it is there.
pub fn remove(root: &Root, clock: &dyn Clock, path: &HostPath, previous: Previous) -> Result<(), HostError> {
    let mut kept = backup::Backups::default();
    kept.keep(root, clock, path, None, previous)?;
    let (parent, name) = split(path.as_str())?;
    let Some(directory) = root.directory(parent)? else { return Ok(()) };
    replaceable(&directory, name, path.as_str())?;
    kept.make_durable()?;
    match rustix::fs::unlinkat(&directory.fd, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(file("remove", path.as_str())(error)),
    }
    rustix::fs::fsync(&directory.fd).map_err(file("sync", parent))
}
