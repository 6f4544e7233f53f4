//! The staging directory of a mount: `.converger-stage`, 0700, at its top, so that a rename reaches every target and no
//! service that scans a directory ever sees a candidate.
//!
//! Never: trusts a directory of that name that somebody else made.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::stat::stat_of;
use crate::host::HostError;
use crate::host::root::{Directory, Root, file, split};

pub(super) const STAGE: &str = ".converger-stage";
pub(super) const CANDIDATE: &str = "candidate-";

/// One mount's staging directory.
pub(super) struct Stage {
    pub(super) mount: u64,
    /// The top of the mount.
    pub(super) top: OwnedFd,
    pub(super) fd: OwnedFd,
}

pub(super) fn mount_of(directory: &Directory) -> Result<u64, HostError> {
    stat_of(&directory.fd).map(|stat| stat.stx_mnt_id).map_err(file("look at", &directory.real))
}

/// The top of the mount where `directory` is, and its path.
pub(super) fn top_of_mount(root: &Root, directory: &Directory) -> Result<(Directory, String), HostError> {
    // From the root down, the last directory where another mount begins is the top of the innermost one.
    let mut top = String::new();
    let mut before = None;
    let ends = directory.real.match_indices('/').map(|(at, _)| at).chain([directory.real.len()]);
    for prefix in [""].into_iter().chain(ends.map(|end| &directory.real[..end])) {
        let path = format!("/{prefix}");
        let Some(here) = root.directory(&path)? else { continue };
        let mount = mount_of(&here)?;
        if before != Some(mount) {
            before = Some(mount);
            top = path;
        }
    }
    let missing = || HostError::Blocked { path: top.clone(), what: "it went away meanwhile".to_owned() };
    Ok((root.directory(&top)?.ok_or_else(missing)?, top))
}

/// Opens a mount's staging directory, empty.
pub(super) fn open_stage(home: &Directory, top: &str) -> Result<OwnedFd, HostError> {
    let path = format!("{}/{STAGE}", top.trim_end_matches('/'));
    match rustix::fs::mkdirat(&home.fd, STAGE, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(file("make", &path)(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&home.fd, STAGE, flags, Mode::empty()).map_err(file("open", &path))?;
    let stat = rustix::fs::fstat(&fd).map_err(file("look at", &path))?;
    // The top of a mount may belong to a service, which could have put something of its own there.
    if stat.st_uid != nix::unistd::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Err(HostError::Blocked { path, what: "it is not a private directory of ours".to_owned() });
    }
    // Left by a crash. Only names of ours: whoever owns the mount's top could have renamed another directory of root's.
    let entries = rustix::fs::Dir::read_from(&fd).map_err(file("read", &path))?;
    for entry in entries {
        let entry = entry.map_err(file("read", &path))?;
        if entry.file_name().to_bytes().starts_with(CANDIDATE.as_bytes()) {
            rustix::fs::unlinkat(&fd, entry.file_name(), AtFlags::empty()).map_err(file("clean", &path))?;
        }
    }
    Ok(fd)
}

/// Removes what a crash left staged on the mounts of these files. What cannot be looked at is told when it is written.
pub fn clean<'p>(root: &Root, files: impl IntoIterator<Item = &'p str>) -> Result<(), HostError> {
    let parents: BTreeSet<&str> = files.into_iter().filter_map(|path| Some(split(path).ok()?.0)).collect();
    let mut seen = BTreeSet::new();
    for parent in ["/"].into_iter().chain(parents) {
        let Ok(Some(directory)) = root.directory(parent) else { continue };
        if !seen.insert(mount_of(&directory)?) {
            continue;
        }
        let (home, top) = top_of_mount(root, &directory)?;
        match rustix::fs::statat(&home.fd, STAGE, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(file("look at", STAGE)(error)),
            Ok(_) => open_stage(&home, &top)?,
        };
        let _ = rustix::fs::unlinkat(&home.fd, STAGE, AtFlags::REMOVEDIR);
    }
    Ok(())
}
