//! Paths below a root directory, opened so that nobody but root decides where they lead.
//!
//! The rule: a directory on the way may be a symbolic link only if the link and every directory from the root down to
//! it belong to root (in a sandbox: or to us) and nobody else can write there. So `/bin`, `/var/run` and a link that
//! an administrator made are followed; a link that a service put into a directory of its own is refused, also when
//! it appears in the middle of our work: what was found is opened again without any link (`openat2` with
//! `RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS`, openat2(2)) and used by descriptor from then on. The last component is
//! never followed. Never: leaves the root directory, also not through a link's absolute target.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::HostError;

const LINKS_MAX: usize = 8;

pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
}

/// A directory below the root, held by descriptor.
pub struct Directory {
    pub fd: OwnedFd,
    /// From the root, without links, without a leading slash; empty: the root itself.
    pub real: String,
}

impl Root {
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(file("open", &path.to_string_lossy()))?;
        Ok(Self { dir, path: path.to_owned() })
    }

    /// Where `path`, absolute as the repository says it, lies for other programs.
    pub fn outside(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }

    /// The directory `path` (absolute). `None`: it is not there.
    pub fn directory(&self, path: &str) -> Result<Option<Directory>, HostError> {
        let wanted = plain(path)?;
        let opened = match self.open_real(wanted) {
            Err(Errno::LOOP) => {
                self.without_links(wanted).and_then(|real| self.open_real(&real).map(|fd| Directory { fd, real }))
            }
            other => other.map(|fd| Directory { fd, real: wanted.to_owned() }),
        };
        match opened {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP) => {
                let what = "a symbolic link on the way could have been made by others than root".to_owned();
                Err(HostError::Blocked { path: path.to_owned(), what })
            }
            Err(Errno::NOTDIR) => {
                let what = "something on the way is not a directory".to_owned();
                Err(HostError::Blocked { path: path.to_owned(), what })
            }
            Err(error) => Err(file("open", path)(error)),
        }
    }

    /// As `directory`, made where it is missing: root's, 0755. Says which ones were made, outermost first.
    pub fn make_directory(&self, path: &str) -> Result<(Directory, Vec<String>), HostError> {
        let mut made = Vec::new();
        if let Some(directory) = self.directory(path)? {
            return Ok((directory, made));
        }
        let mut here = Directory { fd: self.open_real("").map_err(file("open", "/"))?, real: String::new() };
        for name in plain(path)?.split('/') {
            let next = format!("/{}/{name}", here.real);
            let next = next.replace("//", "/");
            match self.directory(&next)? {
                Some(directory) => here = directory,
                None => {
                    rustix::fs::mkdirat(&here.fd, name, Mode::from_raw_mode(0o755)).map_err(file("make", &next))?;
                    made.push(next.clone());
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let fd = rustix::fs::openat(&here.fd, name, flags, Mode::empty()).map_err(file("open", &next))?;
                    // The umask is not ours to know.
                    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(file("make", &next))?;
                    here = Directory { fd, real: plain(&next)?.to_owned() };
                }
            }
        }
        Ok((here, made))
    }

    fn open_real(&self, real: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let real = if real.is_empty() { "." } else { real };
        rustix::fs::openat2(&self.dir, real, flags, Mode::empty(), resolve)
    }

    /// Where `wanted` leads if only links are followed that the rule at the top of this file allows.
    fn without_links(&self, wanted: &str) -> Result<String, Errno> {
        let mut wanted = wanted.to_owned();
        for _ in 0..LINKS_MAX {
            match self.first_link(&wanted)? {
                Some(instead) => wanted = instead,
                None => return Ok(wanted),
            }
        }
        Err(Errno::LOOP)
    }

    /// `wanted` with its first link replaced by what it points at. `None`: there is no link in it.
    fn first_link(&self, wanted: &str) -> Result<Option<String>, Errno> {
        let mut done: Vec<&str> = Vec::new();
        let mut rest = wanted.split('/');
        while let Some(name) = rest.next() {
            let here = self.open_real(&done.join("/"))?;
            if !only_ours(&rustix::fs::fstat(&here)?) {
                // Whatever link comes after this, somebody else could have put it there.
                return Ok(None);
            }
            let entry = rustix::fs::statat(&here, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(entry.st_mode) != FileType::Symlink {
                done.push(name);
                continue;
            }
            if !is_ours(entry.st_uid) {
                return Err(Errno::LOOP);
            }
            let target = rustix::fs::readlinkat(&here, name, Vec::new())?;
            let target = target.to_str().map_err(|_| Errno::INVAL)?;
            if target.starts_with('/') {
                done.clear();
            }
            for part in target.split('/').chain(rest) {
                match part {
                    "" | "." => {}
                    // Exact, not lexical: nothing in `done` is a link, and what follows is looked at again.
                    ".." => drop(done.pop()),
                    part => done.push(part),
                }
            }
            return Ok(Some(done.join("/")));
        }
        Ok(None)
    }
}

/// `/a/b` as `a/b`.
fn plain(path: &str) -> Result<&str, HostError> {
    let bad = || HostError::Blocked { path: path.to_owned(), what: "it is not a plain absolute path".to_owned() };
    let inner = path.strip_prefix('/').ok_or_else(bad)?;
    let odd = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
    if !inner.is_empty() && inner.split('/').any(odd) { Err(bad()) } else { Ok(inner) }
}

/// `/a/b/c` as `/a/b` and `c`.
pub fn split(path: &str) -> Result<(&str, &str), HostError> {
    let bad = || HostError::Blocked { path: path.to_owned(), what: "it is not a plain absolute path".to_owned() };
    let (parent, name) =
        plain(path)?.rsplit_once('/').map_or(("", path), |_| path.rsplit_once('/').unwrap_or_default());
    let name = name.trim_start_matches('/');
    if name.is_empty() { Err(bad()) } else { Ok((if parent.is_empty() { "/" } else { parent }, name)) }
}

fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

fn only_ours(stat: &rustix::fs::Stat) -> bool {
    is_ours(stat.st_uid) && stat.st_mode & 0o022 == 0
}

/// Makes the error of an operation on `path`.
pub fn file(operation: &'static str, path: &str) -> impl Fn(Errno) -> HostError + use<> {
    let path = path.to_owned();
    move |error| HostError::File { operation, path: path.clone(), source: error.into() }
}

/// Replaces `name` in `directory` by one rename; readers see the old or the new. For files of `/run`: not synced.
pub fn replace(directory: &impl AsFd, name: &str, bytes: &[u8], mode: Mode, path: &str) -> Result<(), HostError> {
    let temporary = format!(".{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, &temporary, flags, mode).map_err(file("write", path))?;
    let mut out = std::fs::File::from(fd);
    std::io::Write::write_all(&mut out, bytes).map_err(|source| HostError::File {
        operation: "write",
        path: path.to_owned(),
        source,
    })?;
    rustix::fs::renameat(directory, &temporary, directory, name).map_err(file("write", path))
}
