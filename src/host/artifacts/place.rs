//! The directory of an artifact's versions: `into/<version>`, `into/current`, and what is on its way in or out.
//!
//! A version is whole when our marker is in it: the marker is written last, before the directory gets its name. Another
//! archive of the same version waits as `.<version>.new` and changes places with the old one in one step (renameat2(2),
//! `RENAME_EXCHANGE`), so what `current` points at is one archive or the other, never a mixture. What has no marker is
//! somebody else's: it is put aside as `<version>.before-converger`, and never removed. Names that end in `.part` and begin
//! with a dot are rubbish of ours. Never: follows a link that is not root's own, alters a version that is whole.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::host::HostError;
use crate::host::root::{Directory, Root, file};
use crate::resource::ArtifactSpec;
use crate::resource::artifact::{ArtifactState, CURRENT, is_plain_name};

/// In every version that was unpacked here.
pub const MARKER: &str = ".converger-artifact";
const MARKER_MAX: u64 = 4096;
/// Besides the one that comes: the one that is live, and the one before it.
const KEPT_BEFORE_UNPACKING: usize = 1;

#[derive(Serialize, Deserialize)]
struct Marker {
    component: String,
    version: String,
    sha256: String,
}

/// What an artifact's directory is, and what there must be in it.
pub struct Home<'s> {
    dir: Directory,
    spec: &'s ArtifactSpec,
}

/// What `current` points at.
pub fn observe(root: &Root, spec: &ArtifactSpec) -> ArtifactState {
    let seen = || {
        let into = root.directory(spec.into.as_str()).ok()??;
        let version = live(&into)?;
        let found = directory(&into, &version).ok()?;
        let sha256 = marker(&found).filter(|marker| marker.version == version).map(|marker| marker.sha256);
        Some(ArtifactState::Current { version, sha256: sha256.unwrap_or_default() })
    };
    seen().unwrap_or(ArtifactState::Absent)
}

/// Removes every version that was unpacked into `into`, and `current` if it is ours.
pub fn discard(root: &Root, into: &str) -> Result<(), HostError> {
    let Some(dir) = root.directory(into)? else { return Ok(()) };
    let failed = file("remove from", into);
    let ours = names(&dir, into)?.into_iter().filter(|name| whole(&dir, name).is_some()).collect::<Vec<_>>();
    if live(&dir).is_some_and(|version| ours.contains(&version)) {
        rustix::fs::unlinkat(&dir.fd, CURRENT, AtFlags::empty()).map_err(&failed)?;
    }
    for name in ours {
        throw_away(&dir, &name, into)?;
    }
    sweep(&dir, into)?;
    rustix::fs::fsync(&dir.fd).map_err(failed)
}

impl<'s> Home<'s> {
    /// Made where it is missing. Refuses one in which others than root could put what runs.
    pub fn open(root: &Root, spec: &'s ArtifactSpec) -> Result<Self, HostError> {
        let path = spec.into.as_str();
        let blocked = |what: String| Err(HostError::Blocked { path: path.to_owned(), what });
        if !is_plain_name(&spec.version) {
            return blocked(format!("version {:?} cannot be the name of a directory", spec.version));
        }
        let (dir, _) = root.make_directory(path)?;
        let stat = rustix::fs::fstat(&dir.fd).map_err(file("look at", path))?;
        if ![0, rustix::process::geteuid().as_raw()].contains(&stat.st_uid) || stat.st_mode & 0o022 != 0 {
            return blocked("others than root can write there, and could put something else in its place".to_owned());
        }
        Ok(Self { dir, spec })
    }

    fn path(&self) -> &'s str {
        self.spec.into.as_str()
    }

    fn hidden(&self, end: &str) -> String {
        format!(".{}.{end}", self.spec.version)
    }

    fn is_whole(&self, name: &str) -> bool {
        whole(&self.dir, name).is_some_and(|marker| {
            marker.version == self.spec.version && marker.sha256.eq_ignore_ascii_case(&self.spec.sha256)
        })
    }

    /// Whether the archive was unpacked already, be it live or not.
    pub fn is_unpacked(&self) -> bool {
        self.is_whole(&self.spec.version) || self.is_whole(&self.hidden("new"))
    }

    /// An empty directory to unpack into, for our eyes only.
    pub fn begin(&self) -> Result<OwnedFd, HostError> {
        self.set_aside()?;
        sweep(&self.dir, self.path())?;
        let part = self.hidden("part");
        let failed = file("make", &format!("{}/{part}", self.path()));
        rustix::fs::mkdirat(&self.dir.fd, &part, Mode::from_raw_mode(0o700)).map_err(&failed)?;
        directory(&self.dir, &part).map_err(failed)
    }

    /// What came did not become a version.
    pub fn abandon(&self) -> Result<(), HostError> {
        sweep(&self.dir, self.path())
    }

    /// All is in `staging`: makes it durable and gives it its name. Where nothing is live yet, it is live from now on:
    /// nobody can be using it.
    pub fn finish(&self, staging: &OwnedFd) -> Result<(), HostError> {
        self.mark(staging)?;
        // All of it at once; a power cut before this leaves a name that is swept away.
        rustix::fs::syncfs(staging)
            .map_err(file("write to disk", &format!("{}/{}", self.path(), self.spec.version)))?;
        self.give_name()
    }

    /// An empty version, for a sandbox: nothing that would have to survive a power cut.
    pub fn stand_in(&self) -> Result<(), HostError> {
        self.mark(&self.begin()?)?;
        self.give_name()
    }

    fn mark(&self, staging: &OwnedFd) -> Result<(), HostError> {
        let spec = self.spec;
        let failed = file("finish", &format!("{}/{}", self.path(), spec.version));
        let marker = Marker {
            component: spec.component.clone(),
            version: spec.version.clone(),
            sha256: spec.sha256.to_ascii_lowercase(),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let out = rustix::fs::openat(staging, MARKER, flags, Mode::from_raw_mode(0o644)).map_err(&failed)?;
        rustix::fs::fchmod(&out, Mode::from_raw_mode(0o644)).map_err(&failed)?;
        let text = serde_json::to_vec(&marker).expect("three texts serialize");
        std::fs::File::from(out).write_all(&text).map_err(|source| HostError::File {
            operation: "write",
            path: format!("{}/{MARKER}", spec.version),
            source,
        })?;
        rustix::fs::fchmod(staging, Mode::from_raw_mode(0o755)).map_err(failed)
    }

    fn give_name(&self) -> Result<(), HostError> {
        let Self { dir, spec } = self;
        let failed = file("finish", &format!("{}/{}", self.path(), spec.version));
        let part = self.hidden("part");
        match rustix::fs::renameat_with(&dir.fd, &part, &dir.fd, &spec.version, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => rustix::fs::renameat(&dir.fd, &part, &dir.fd, self.hidden("new")).map_err(&failed)?,
            renamed => renamed.map_err(&failed)?,
        }
        rustix::fs::fsync(&dir.fd).map_err(failed)?;
        match rustix::fs::readlinkat(&dir.fd, CURRENT, Vec::new()) {
            Err(Errno::NOENT) => self.switch(),
            _ => Ok(()),
        }
    }

    /// `current` is this version's, in one step.
    pub fn switch(&self) -> Result<(), HostError> {
        let Self { dir, spec } = self;
        let failed = file("switch", &format!("{}/{CURRENT}", self.path()));
        self.set_aside()?;
        let new = self.hidden("new");
        if !self.is_whole(&spec.version) {
            if !self.is_whole(&new) {
                let what = format!("{} {} is not unpacked", spec.component, spec.version);
                return Err(HostError::Blocked { path: self.path().to_owned(), what });
            }
            match rustix::fs::renameat_with(&dir.fd, &new, &dir.fd, &spec.version, RenameFlags::EXCHANGE) {
                Err(Errno::NOENT) => {
                    rustix::fs::renameat(&dir.fd, &new, &dir.fd, &spec.version).map_err(&failed)?;
                }
                exchanged => exchanged.map_err(&failed)?,
            }
            self.set_aside()?;
        }
        let version = directory(dir, &spec.version).map_err(&failed)?;
        // What was live last is what is kept longest.
        let now = Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        };
        rustix::fs::utimensat(&version, MARKER, &now, AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
        if live(dir).as_ref() != Some(&spec.version) {
            self.link(&failed)?;
        }
        rustix::fs::fsync(&dir.fd).map_err(failed)
    }

    fn link(&self, failed: &impl Fn(Errno) -> HostError) -> Result<(), HostError> {
        const FRESH: &str = ".current.new";
        let dir = &self.dir;
        match rustix::fs::statat(&dir.fd, CURRENT, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink => {
                let path = format!("{}/{CURRENT}", self.path());
                return Err(HostError::Blocked { path, what: "it is no symbolic link; move it away".to_owned() });
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        match rustix::fs::unlinkat(&dir.fd, FRESH, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        rustix::fs::symlinkat(self.spec.version.as_str(), &dir.fd, FRESH).map_err(failed)?;
        rustix::fs::renameat(&dir.fd, FRESH, &dir.fd, CURRENT).map_err(failed)
    }

    /// Makes room before another version comes: what is live and the version before it stay.
    pub fn prune(&self) -> Result<(), HostError> {
        let live = live(&self.dir);
        let mut others = Vec::new();
        for name in names(&self.dir, self.path())? {
            let wanted = name == self.spec.version && self.is_whole(&name);
            let waits = name == self.hidden("new") && self.is_whole(&name);
            if live.as_ref() == Some(&name) || wanted || waits || whole(&self.dir, &name).is_none() {
                continue;
            }
            match name.starts_with('.') {
                // It changed places with its successor, and has no name to go back to.
                true => throw_away(&self.dir, &name, self.path())?,
                false => others.push((since(&self.dir, &name), name)),
            }
        }
        others.sort();
        others.truncate(others.len().saturating_sub(KEPT_BEFORE_UNPACKING));
        for (_, name) in others {
            throw_away(&self.dir, &name, self.path())?;
        }
        sweep(&self.dir, self.path())
    }

    /// Something without a marker that changed places with a version gets a name that people find.
    fn set_aside(&self) -> Result<(), HostError> {
        let new = self.hidden("new");
        if directory(&self.dir, &new).is_err() || whole(&self.dir, &new).is_some() {
            return Ok(());
        }
        let aside = format!("{}.before-converger", self.spec.version);
        match rustix::fs::renameat_with(&self.dir.fd, &new, &self.dir.fd, &aside, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {
                let path = format!("{}/{aside}", self.path());
                let what = "an earlier find is there already; look at it and move it away".to_owned();
                Err(HostError::Blocked { path, what })
            }
            moved => moved.map_err(file("put aside", &format!("{}/{new}", self.path()))),
        }
    }
}

/// The version that `current` points at: a name beside it, and nothing else.
fn live(dir: &Directory) -> Option<String> {
    let target = rustix::fs::readlinkat(&dir.fd, CURRENT, Vec::new()).ok()?;
    let target = target.to_str().ok()?;
    is_plain_name(target).then(|| target.to_owned())
}

fn directory(dir: &Directory, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&dir.fd, name, flags, Mode::empty())
}

fn whole(dir: &Directory, name: &str) -> Option<Marker> {
    marker(&directory(dir, name).ok()?)
}

fn marker(version: &OwnedFd) -> Option<Marker> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(version, MARKER, flags, Mode::empty()).ok()?;
    let mut text = Vec::new();
    std::fs::File::from(fd).take(MARKER_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// When it was last made live, or unpacked.
fn since(dir: &Directory, name: &str) -> i64 {
    let stat = directory(dir, name).and_then(|fd| rustix::fs::statat(&fd, MARKER, AtFlags::SYMLINK_NOFOLLOW));
    stat.map_or(0, |stat| stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as i64))
}

fn names(dir: &Directory, path: &str) -> Result<Vec<String>, HostError> {
    let failed = file("list", path);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir.fd).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Takes its name first: a removal that is interrupted leaves rubbish, and no version with holes.
fn throw_away(dir: &Directory, name: &str, path: &str) -> Result<(), HostError> {
    let rubbish = format!(".{}.part", name.trim_start_matches('.'));
    remove(dir, &rubbish, path)?;
    rustix::fs::renameat(&dir.fd, name, &dir.fd, &rubbish).map_err(file("remove", &format!("{path}/{name}")))?;
    remove(dir, &rubbish, path)
}

/// Removes what was on its way in or out when something ended.
fn sweep(dir: &Directory, path: &str) -> Result<(), HostError> {
    for name in names(dir, path)?.iter().filter(|name| name.starts_with('.') && name.ends_with(".part")) {
        remove(dir, name, path)?;
    }
    Ok(())
}

fn remove(dir: &Directory, name: &str, path: &str) -> Result<(), HostError> {
    remove_tree(&dir.fd, name).map_err(file("remove", &format!("{path}/{name}")))
}

/// By descriptor, from inside out; never through a link.
fn remove_tree(at: &impl AsFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return rustix::fs::unlinkat(at, name, AtFlags::empty()),
        Err(error) => return Err(error),
    };
    for entry in rustix::fs::Dir::read_from(&fd)? {
        let entry = entry?;
        let inside = entry.file_name();
        if matches!(inside.to_bytes(), b"." | b"..") {
            continue;
        }
        match entry.file_type() {
            FileType::Directory | FileType::Unknown => {
                remove_tree(&fd, inside.to_str().map_err(|_| Errno::ILSEQ)?)?;
            }
            _ => rustix::fs::unlinkat(&fd, inside, AtFlags::empty())?,
        }
    }
    rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)
}
