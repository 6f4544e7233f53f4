//! Whether a batch fits, asked before anything of it is written: candidates stand beside what they replace, and copies of
//! that go to the backups.
//!
//! Never: promises that it fits; somebody else may be quicker, and each write says so itself.

use std::collections::BTreeMap;

use rustix::fs::{StatVfs, fstatvfs};

use super::stage::mount_of;
use super::stat::{irregular, stat};
use crate::host::root::{Directory, Root, file, split};
use crate::host::{HostError, backup};
use crate::resource::FileSpec;
use crate::resource::file::Previous;

/// What one mount has, and what is wanted of it.
struct Room {
    below: String,
    has: StatVfs,
    blocks: u64,
    inodes: u64,
}

#[derive(Default)]
struct Rooms(BTreeMap<u64, Room>);

pub(super) fn check(root: &Root, specs: &[(&FileSpec, Previous)]) -> Result<(), HostError> {
    let mut rooms = Rooms::default();
    let mut last: Option<(&str, Directory)> = None;
    let backups = nearest(root, backup::BACKUPS)?;
    for (spec, previous) in specs {
        let (parent, name) = split(spec.path.as_str())?;
        if last.as_ref().is_none_or(|(path, _)| *path != parent) {
            last = Some((parent, nearest(root, parent)?));
        }
        let Some((_, directory)) = &last else { continue };
        let bytes = spec.content.bytes().map_or(0, <[u8]>::len);
        rooms.want(directory, u64::try_from(bytes).unwrap_or(u64::MAX))?;
        if *previous != Previous::Gone
            && let Ok(old) = stat(directory, name)
            && irregular(&old).is_none()
        {
            rooms.want(&backups, old.stx_size)?;
        }
    }
    rooms.0.values().try_for_each(Room::suffices)
}

/// The directory, or the nearest one above it that is there.
fn nearest(root: &Root, path: &str) -> Result<Directory, HostError> {
    let mut path = path;
    loop {
        match root.directory(path)? {
            Some(directory) => return Ok(directory),
            None => path = split(path)?.0,
        }
    }
}

impl Rooms {
    fn want(&mut self, directory: &Directory, bytes: u64) -> Result<(), HostError> {
        let mount = mount_of(directory)?;
        let room = match self.0.entry(mount) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let below = format!("/{}", directory.real);
                let has = fstatvfs(&directory.fd).map_err(file("look at the room of", &below))?;
                entry.insert(Room { below, has, blocks: 0, inodes: 0 })
            }
        };
        room.blocks = room.blocks.saturating_add(bytes.div_ceil(room.has.f_frsize.max(1)));
        room.inodes += 1;
        Ok(())
    }
}

impl Room {
    fn suffices(&self) -> Result<(), HostError> {
        // Root may use what is kept back for it: a full disk is often mended by a change of some file.
        let (blocks, inodes) = if nix::unistd::geteuid().is_root() {
            (self.has.f_bfree, self.has.f_ffree)
        } else {
            (self.has.f_bavail, self.has.f_favail)
        };
        let short = |what, needed, free| HostError::NoRoom { path: self.below.clone(), what, needed, free };
        if self.blocks > blocks {
            let size = self.has.f_frsize;
            return Err(short("bytes", self.blocks.saturating_mul(size), blocks.saturating_mul(size)));
        }
        // Where inodes are not counted, there are none in all.
        if self.has.f_files > 0 && self.inodes > inodes {
            return Err(short("inodes", self.inodes, inodes));
        }
        Ok(())
    }
}
