//! Looks at files: what is there, whose it is, and which bytes it has.
//!
//! Never: writes, follows a link at the path itself, opens what could block.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sha2::Digest as _;
use zeroize::Zeroizing;

use super::accounts::Names;
use super::stat::{irregular, proves, stamp, stamp_fields, stat, stat_of};
use crate::clock::Clock;
use crate::host::root::{Directory, Root, split};
use crate::host::{FileQuery, HostError};
use crate::name::HostPath;
use crate::reason::chain;
use crate::resource::file::{Regular, Stamp};
use crate::resource::{Digest, FileState, Found};

/// Larger files are hashed but not brought along to be shown.
const SHOWN_BYTES_MAX: u64 = 1024 * 1024;

/// What is at `queries`' paths. One that cannot be looked at is a state, not an error.
pub fn observe(
    root: &Root,
    clock: &dyn Clock,
    queries: &[FileQuery<'_>],
) -> Result<BTreeMap<HostPath, FileState>, HostError> {
    let mut names = Names::default();
    let mut seen = BTreeMap::new();
    // Files come in the order of their paths, so the directory before is nearly always the directory again.
    let mut last: Option<(&str, Result<Option<Directory>, FileState>)> = None;
    for query in queries {
        let (parent, name) = split(query.path.as_str())?;
        if last.as_ref().is_none_or(|(path, _)| *path != parent) {
            last = Some((parent, root.directory(parent).map_err(unseen)));
        }
        let state = match &last {
            Some((_, Ok(Some(directory)))) => match look(directory, name, clock, query, &mut names) {
                Ok(state) => state,
                Err(error) => FileState::Unreadable(format!("cannot read {}: {error}", query.path)),
            },
            Some((_, Err(state))) => state.clone(),
            _ => FileState::Absent,
        };
        seen.insert(query.path.clone(), state);
    }
    Ok(seen)
}

fn unseen(error: HostError) -> FileState {
    match error {
        HostError::Blocked { .. } => FileState::Unsafe(error.to_string()),
        error => FileState::Unreadable(chain(&error)),
    }
}

fn look(
    directory: &Directory,
    name: &str,
    clock: &dyn Clock,
    query: &FileQuery<'_>,
    names: &mut Names,
) -> Result<FileState, std::io::Error> {
    let stat = match stat(directory, name) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(FileState::Absent),
        Err(error) => return Err(error.into()),
    };
    if let Some(what) = irregular(&stat) {
        return Ok(FileState::Other(what));
    }
    let stamp = stamp(&stat, clock);
    let (digest, stamp, bytes) = match query.known {
        Some((known, digest))
            if proves(&stamp) && known == stamp && query.bytes_unless.is_none_or(|wanted| wanted == digest) =>
        {
            (digest, stamp, None)
        }
        _ => match read(directory, name, clock, query.bytes_unless)? {
            Some(read) => read,
            None => return Ok(FileState::Other("moving target")),
        },
    };
    Ok(FileState::Regular(Regular {
        digest,
        mode: stamp.mode & 0o7777,
        owner: names.user(stamp.uid),
        group: names.group(stamp.gid),
        stamp,
        bytes,
    }))
}

/// Hashes the file, and keeps its bytes unless its digest is `unwanted`. `None`: it is no regular file any more.
#[allow(clippy::type_complexity)] // three things about one file, for one caller
fn read(
    directory: &Directory,
    name: &str,
    clock: &dyn Clock,
    unwanted: Option<Digest>,
) -> Result<Option<(Digest, Stamp, Option<Found>)>, std::io::Error> {
    // Without NONBLOCK a FIFO that took the file's place meanwhile would hold us until somebody writes into it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&directory.fd, name, flags, Mode::empty())?);
    let before = stat_of(&file)?;
    if irregular(&before).is_some() {
        return Ok(None);
    }
    let mut hash = sha2::Sha256::new();
    // Reserved at once: a vector that grows leaves copies behind.
    let room = || Zeroizing::new(Vec::with_capacity(usize::try_from(before.stx_size).unwrap_or(0)));
    let mut kept = (unwanted.is_some() && before.stx_size <= SHOWN_BYTES_MAX).then(room);
    let mut buffer = Zeroizing::new(vec![0; 64 * 1024]);
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..count]);
        kept = kept.filter(|kept| kept.len() as u64 <= SHOWN_BYTES_MAX);
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(&buffer[..count]);
        }
    }
    let mut stamp = stamp(&before, clock);
    if stamp_fields(&before) != stamp_fields(&stat_of(&file)?) {
        stamp.ctime_ns = 0;
    }
    let digest = Digest::from_bytes(hash.finalize().into());
    Ok(Some((digest, stamp, kept.filter(|_| unwanted != Some(digest)).map(Found::new))))
}
