//! Files of the host: looked at without following anything, and replaced so that each is old or new.
//!
//! Candidates are written in `.converger-stage`, 0700, at the top of the target's mount; only when all of a batch are
//! on disk is the first one renamed. What is replaced or removed goes to the backups before that. Never: truncates a
//! file that somebody reads, leaves a temporary name in a directory that a service scans, opens what could block.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Statx, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;
use sha2::Digest as _;

use super::root::{Directory, Root, file, split};
use super::{FileQuery, HostError, backup};
use crate::clock::Clock;
use crate::fleet::check::is_protected;
use crate::name::HostPath;
use crate::resource::file::{Regular, Stamp};
use crate::resource::{Digest, FileSpec, FileState};

const STAGE: &str = ".converger-stage";
const CANDIDATE: &str = "candidate-";
/// Up to here an fsync for each file is cheaper than a syncfs, which also waits for what others wrote.
const FSYNC_FILES_MAX: usize = 16;
/// Larger files are hashed but not brought along to be shown.
const SHOWN_BYTES_MAX: u64 = 1024 * 1024;
/// Two writes this close together may leave the same change time (kernels round it to a tick; some filesystems to
/// more), so a file that has just changed must be hashed again another time.
const RACY_NS: i128 = 2_000_000_000;

/// Whether owners can be told and set here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owners {
    Kept,
    /// A sandbox: everything belongs to whoever runs it.
    Ignored,
}

/// Candidates on disk, in the order they will go live.
#[derive(Default)]
pub struct Staged {
    candidates: Vec<Candidate>,
    stages: Vec<Stage>,
    /// Directories that had to be made for the targets, outermost first.
    made: Vec<String>,
}

struct Candidate {
    path: HostPath,
    stage: usize,
    name: String,
    digest: Digest,
    backups: usize,
}

/// One mount's staging directory.
struct Stage {
    mount: u64,
    /// The top of the mount.
    top: OwnedFd,
    fd: OwnedFd,
}

/// What is at `queries`' paths. One that cannot be looked at is a state, not an error.
pub fn observe(
    root: &Root,
    clock: &dyn Clock,
    queries: &[FileQuery<'_>],
) -> Result<BTreeMap<HostPath, FileState>, HostError> {
    let mut names = Names::default();
    let mut seen = BTreeMap::new();
    // Files come in the order of their paths, so the directory before is nearly always the directory again.
    let mut last: Option<(&str, Result<Option<Directory>, String>)> = None;
    for query in queries {
        let (parent, name) = split(query.path.as_str())?;
        if last.as_ref().is_none_or(|(path, _)| *path != parent) {
            last = Some((parent, root.directory(parent).map_err(|error| error.to_string())));
        }
        let state = match &last {
            Some((_, Ok(Some(directory)))) => match look(directory, name, clock, query, &mut names) {
                Ok(state) => state,
                Err(error) => FileState::Unreadable(format!("cannot read {}: {error}", query.path)),
            },
            Some((_, Err(why))) => FileState::Unreadable(why.clone()),
            _ => FileState::Absent,
        };
        seen.insert(query.path.clone(), state);
    }
    Ok(seen)
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
) -> Result<Option<(Digest, Stamp, Option<Vec<u8>>)>, std::io::Error> {
    // Without NONBLOCK a FIFO that took the file's place meanwhile would hold us until somebody writes into it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&directory.fd, name, flags, Mode::empty())?);
    let before = stat_of(&file)?;
    if irregular(&before).is_some() {
        return Ok(None);
    }
    let mut hash = sha2::Sha256::new();
    let mut kept = (unwanted.is_some() && before.stx_size <= SHOWN_BYTES_MAX).then(Vec::new);
    let mut buffer = vec![0; 64 * 1024];
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
    Ok(Some((digest, stamp, kept.filter(|_| unwanted != Some(digest)))))
}

fn stat(directory: &Directory, name: &str) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(&directory.fd, name, AtFlags::SYMLINK_NOFOLLOW, wanted)
}

fn stat_of(fd: impl std::os::fd::AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// In words, what it is instead of a regular file.
fn irregular(stat: &Statx) -> Option<&'static str> {
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::RegularFile => None,
        FileType::Directory => Some("directory"),
        FileType::Symlink => Some("symbolic link"),
        FileType::Fifo => Some("FIFO"),
        FileType::Socket => Some("socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("device"),
        _ => Some("thing of an unknown kind"),
    }
}

fn stamp_fields(stat: &Statx) -> Stamp {
    let time = |time: rustix::fs::StatxTimestamp| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    Stamp {
        device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        size: stat.stx_size,
        mtime_ns: time(stat.stx_mtime),
        ctime_ns: time(stat.stx_ctime),
        mode: stat.stx_mode.into(),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
    }
}

/// A stamp that proves nothing later (see `RACY_NS`) gets no change time, so that it matches no later one.
fn stamp(stat: &Statx, clock: &dyn Clock) -> Stamp {
    let mut stamp = stamp_fields(stat);
    if clock.now().as_nanosecond() - stamp.ctime_ns < RACY_NS {
        stamp.ctime_ns = 0;
    }
    stamp
}

fn proves(stamp: &Stamp) -> bool {
    stamp.ctime_ns != 0
}

/// Names of owners, asked once each.
#[derive(Default)]
struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    fn user(&mut self, uid: u32) -> String {
        let ask = || nix::unistd::User::from_uid(uid.into()).ok().flatten().map_or(uid.to_string(), |user| user.name);
        self.users.entry(uid).or_insert_with(ask).clone()
    }

    fn group(&mut self, gid: u32) -> String {
        let ask =
            || nix::unistd::Group::from_gid(gid.into()).ok().flatten().map_or(gid.to_string(), |group| group.name);
        self.groups.entry(gid).or_insert_with(ask).clone()
    }
}

/// Numbers of the owners that a spec names (a number stands for itself), asked once each.
#[derive(Default)]
struct Numbers {
    users: HashMap<String, Uid>,
    groups: HashMap<String, Gid>,
}

impl Numbers {
    fn of(&mut self, spec: &FileSpec) -> Result<(Uid, Gid), HostError> {
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

impl Staged {
    /// Writes a candidate for each file; all are durable when it returns, or nothing is left of any.
    pub fn write(root: &Root, owners: Owners, specs: &[&FileSpec]) -> Result<Self, HostError> {
        let mut staged = Self::default();
        match staged.write_all(root, owners, specs) {
            Ok(()) => Ok(staged),
            Err(error) => {
                staged.forget(root);
                Err(error)
            }
        }
    }

    fn write_all(&mut self, root: &Root, owners: Owners, specs: &[&FileSpec]) -> Result<(), HostError> {
        let mut numbers = Numbers::default();
        let mut last: Option<(String, Directory, usize)> = None;
        for spec in specs {
            let path = spec.path.as_str();
            let (parent, name) = split(path)?;
            if last.as_ref().is_none_or(|(before, ..)| before != parent) {
                let (directory, made) = root.make_directory(parent)?;
                self.made.extend(made);
                let stage = self.stage(root, &directory)?;
                last = Some((parent.to_owned(), directory, stage));
            }
            let Some((_, directory, stage)) = &last else { continue };
            replaceable(directory, name, path)?;
            let account = if owners == Owners::Kept { Some(numbers.of(spec)?) } else { None };
            let bytes = spec.content.bytes().ok_or_else(|| HostError::Blocked {
                path: path.to_owned(),
                what: "a secret in it cannot be opened on this node".to_owned(),
            })?;
            let candidate = Candidate {
                path: spec.path.clone(),
                stage: *stage,
                name: format!("{CANDIDATE}{}", self.candidates.len()),
                digest: Digest::of(bytes),
                backups: if spec.content.is_secret() { 1 } else { backup::KEPT_MAX },
            };
            let fd = &self.stages[*stage].fd;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(fd, &candidate.name, flags, Mode::from_raw_mode(0o600));
            let mut out = File::from(opened.map_err(file("stage", path))?);
            self.candidates.push(candidate);
            let failed = |source| HostError::File { operation: "stage", path: path.to_owned(), source };
            out.write_all(bytes).map_err(failed)?;
            if let Some((user, group)) = account {
                rustix::fs::fchown(&out, Some(user), Some(group)).map_err(file("set the owner of", path))?;
            }
            // After the owner, which would clear set-user-id bits.
            rustix::fs::fchmod(&out, Mode::from_raw_mode(spec.mode)).map_err(file("set the mode of", path))?;
            if specs.len() <= FSYNC_FILES_MAX {
                out.sync_all().map_err(failed)?;
            }
        }
        if specs.len() > FSYNC_FILES_MAX {
            self.sync_mounts()?;
        }
        Ok(())
    }

    /// The staging directory on the mount where `directory` is.
    fn stage(&mut self, root: &Root, directory: &Directory) -> Result<usize, HostError> {
        let mount_of = |fd: &OwnedFd| stat_of(fd).map(|stat| stat.stx_mnt_id);
        let mount = mount_of(&directory.fd).map_err(file("look at", &directory.real))?;
        if let Some(index) = self.stages.iter().position(|stage| stage.mount == mount) {
            return Ok(index);
        }
        // From the root down, the last directory where another mount begins is the top of the innermost one.
        let mut top = String::new();
        let mut before = None;
        let ends = directory.real.match_indices('/').map(|(at, _)| at).chain([directory.real.len()]);
        for prefix in [""].into_iter().chain(ends.map(|end| &directory.real[..end])) {
            let path = format!("/{prefix}");
            let Some(here) = root.directory(&path)? else { continue };
            let mount = mount_of(&here.fd).map_err(file("look at", &path))?;
            if before != Some(mount) {
                before = Some(mount);
                top = path;
            }
        }
        let missing = || HostError::Blocked { path: top.clone(), what: "it went away meanwhile".to_owned() };
        let home = root.directory(&top)?.ok_or_else(missing)?;
        let fd = open_stage(&home, &top)?;
        self.stages.push(Stage { mount, top: home.fd, fd });
        Ok(self.stages.len() - 1)
    }

    /// Renames everything into place, previous contents to the backups first. What is live when it fails is old or
    /// new; what was not renamed stays staged.
    pub fn go_live(&mut self, root: &Root, clock: &dyn Clock) -> Result<Vec<(HostPath, Stamp, Digest)>, HostError> {
        let mut kept = backup::Backups::default();
        for candidate in &self.candidates {
            kept.keep(root, clock, &candidate.path, Some(candidate.digest), candidate.backups)?;
        }
        kept.make_durable(FSYNC_FILES_MAX)?;
        let mut live = Vec::new();
        let renamed = self.rename_all(root, clock, &mut live);
        let durable = self.sync_directories(root, &live);
        renamed.and(durable)?;
        // Live now, and not to be taken back.
        self.candidates.clear();
        self.made.clear();
        self.forget(root);
        Ok(live)
    }

    fn rename_all(
        &mut self,
        root: &Root,
        clock: &dyn Clock,
        live: &mut Vec<(HostPath, Stamp, Digest)>,
    ) -> Result<(), HostError> {
        let mut last: Option<(String, Directory)> = None;
        for candidate in &self.candidates {
            let path = candidate.path.as_str();
            let (parent, name) = split(path)?;
            if last.as_ref().is_none_or(|(before, _)| before != parent) {
                let gone = || HostError::Blocked { path: parent.to_owned(), what: "it went away meanwhile".to_owned() };
                last = Some((parent.to_owned(), root.directory(parent)?.ok_or_else(gone)?));
            }
            let Some((_, directory)) = &last else { continue };
            let from = &self.stages[candidate.stage].fd;
            rustix::fs::renameat(from, &candidate.name, &directory.fd, name).map_err(file("replace", path))?;
            let stat = stat(directory, name).map_err(file("look at", path))?;
            live.push((candidate.path.clone(), stamp(&stat, clock), candidate.digest));
        }
        Ok(())
    }

    /// Makes the renames durable.
    fn sync_directories(&self, root: &Root, live: &[(HostPath, Stamp, Digest)]) -> Result<(), HostError> {
        if live.len() > FSYNC_FILES_MAX {
            return self.sync_mounts();
        }
        let parents = live.iter().map(|(path, ..)| path.as_str()).chain(self.made.iter().map(String::as_str));
        let parents: std::collections::BTreeSet<&str> = parents.filter_map(|path| Some(split(path).ok()?.0)).collect();
        for parent in parents {
            if let Some(directory) = root.directory(parent)? {
                rustix::fs::fsync(&directory.fd).map_err(file("sync", parent))?;
            }
        }
        Ok(())
    }

    fn sync_mounts(&self) -> Result<(), HostError> {
        self.stages.iter().try_for_each(|stage| rustix::fs::syncfs(&stage.fd).map_err(file("sync", STAGE)))
    }

    /// Removes what is left of the candidates, and of the directories that were made for them.
    pub fn forget(&mut self, root: &Root) {
        for candidate in self.candidates.drain(..) {
            let _ = rustix::fs::unlinkat(&self.stages[candidate.stage].fd, &candidate.name, AtFlags::empty());
        }
        for stage in self.stages.drain(..) {
            let _ = rustix::fs::unlinkat(&stage.top, STAGE, AtFlags::REMOVEDIR);
        }
        for made in self.made.drain(..).rev() {
            if let Ok((parent, name)) = split(&made)
                && let Ok(Some(directory)) = root.directory(parent)
            {
                let _ = rustix::fs::unlinkat(&directory.fd, name, AtFlags::REMOVEDIR);
            }
        }
    }
}

/// Opens a mount's staging directory, empty.
fn open_stage(home: &Directory, top: &str) -> Result<OwnedFd, HostError> {
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

/// Removes what a crash left staged on the root's own mount; other mounts are cleaned when they are staged on again.
pub fn clean(root: &Root) -> Result<(), HostError> {
    let Some(home) = root.directory("/")? else { return Ok(()) };
    match rustix::fs::statat(&home.fd, STAGE, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(file("look at", STAGE)(error)),
        Ok(_) => open_stage(&home, "/")?,
    };
    let _ = rustix::fs::unlinkat(&home.fd, STAGE, AtFlags::REMOVEDIR);
    Ok(())
}

/// Nothing but a regular file, or nothing at all, may be replaced; and it must be possible.
fn replaceable(directory: &Directory, name: &str, path: &str) -> Result<(), HostError> {
    let fixed = |stat: &Statx, of: &str| {
        let held = stat.stx_attributes & (StatxAttributes::IMMUTABLE | StatxAttributes::APPEND);
        let source = std::io::Error::other(format!("{of} is immutable or append-only (lsattr, chattr -i -a)"));
        if held.is_empty() {
            Ok(())
        } else {
            Err(HostError::File { operation: "replace", path: path.to_owned(), source })
        }
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
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(spec.mode)).map_err(file("set the mode of", path))?;
    rustix::fs::fsync(&fd).map_err(file("sync", path))?;
    Ok(Some(stamp(&stat_of(&fd).map_err(file("look at", path))?, clock)))
}

/// Removes a regular file; its content goes to the backups first.
pub fn remove(root: &Root, clock: &dyn Clock, path: &HostPath) -> Result<(), HostError> {
    let (parent, name) = split(path.as_str())?;
    let Some(directory) = root.directory(parent)? else { return Ok(()) };
    replaceable(&directory, name, path.as_str())?;
    let mut kept = backup::Backups::default();
    kept.keep(root, clock, path, None, backup::KEPT_MAX)?;
    kept.make_durable(FSYNC_FILES_MAX)?;
    match rustix::fs::unlinkat(&directory.fd, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(file("remove", path.as_str())(error)),
    }
    rustix::fs::fsync(&directory.fd).map_err(file("sync", parent))
}
