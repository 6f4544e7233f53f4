//! The candidates of a batch, laid out like their targets, for the programs that check them.
//!
//! A tree below `/run/converger-validate`, which is memory: `future/etc/x/x.conf` is what `/etc/x/x.conf` will be. With
//! `Attributes::Declared` it is root's alone, and made to be laid over the real directories (`view`). With
//! `Attributes::For` it is what one user may see: directories that only its group enters, the files its own, and in the
//! directory of the checked one links to what else lies there today. `/run/converger` is root's alone, so this lies beside
//! it. Never: writes outside of its tree, or shows a secret to a user that may not read it as a file.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::mount::UnmountFlags;

use super::HostError;
use super::root::{Directory, Root, file, split};
use crate::resource::FileSpec;

const HOME: &str = "/run/converger-validate";
/// One check at a time: there is one agent.
const CHECK: &str = "/run/converger-validate/check";
const FUTURE: &str = "/run/converger-validate/check/future";

/// Who may read the tree.
pub enum Attributes<'a> {
    /// As the files will be. What has no secret in it can be read by all, if that is asked for: whoever checks it may be
    /// another user than whoever uses it.
    Declared { plain: Plain },
    /// One user, that checks this file.
    For { user: &'a nix::unistd::User, checked: &'a FileSpec },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    AsDeclared,
    ReadByAll,
}

/// Goes with everything in it when dropped.
pub struct Room<'r> {
    root: &'r Root,
}

impl<'r> Room<'r> {
    /// Writes the tree. Errors: an account is not there, the file system of `/run` is full.
    pub fn furnish(root: &'r Root, candidates: &[&FileSpec], attributes: &Attributes<'_>) -> Result<Self, HostError> {
        clean(root)?;
        let room = Self { root };
        let (check, _) = root.make_directory(CHECK)?;
        chmod(&check, 0o700)?;
        for spec in candidates {
            room.put(spec, attributes)?;
        }
        if let Attributes::For { user, checked } = attributes {
            room.link_siblings(checked)?;
            own(&check.fd, None, Some(Gid::from_raw(user.gid.as_raw())), CHECK)?;
            chmod(&check, 0o750)?;
        }
        Ok(room)
    }

    /// Where the candidate of `path` lies, for other programs.
    pub fn candidate(&self, path: &str) -> String {
        self.root.outside(&format!("{FUTURE}{path}")).to_string_lossy().into_owned()
    }

    /// The candidates below `directory` (absolute).
    pub fn layer(&self, directory: &str) -> Result<Directory, HostError> {
        Ok(self.root.make_directory(&below(directory))?.0)
    }

    /// An empty directory to mount something on: its path.
    pub fn mount_point(&self, number: usize) -> Result<String, HostError> {
        let path = format!("{CHECK}/seen-{number}");
        self.root.make_directory(&path)?;
        Ok(path)
    }

    fn put(&self, spec: &FileSpec, attributes: &Attributes<'_>) -> Result<(), HostError> {
        let Some(bytes) = spec.content.bytes() else { return Ok(()) };
        let path = spec.path.as_str();
        let (uid, gid, mode) = match attributes {
            Attributes::Declared { plain } => {
                let (uid, gid) = accounts(spec)?;
                let all = if *plain == Plain::ReadByAll && !spec.content.is_secret() { 0o444 } else { 0 };
                (uid, gid, spec.mode | all)
            }
            Attributes::For { user, checked } => {
                if spec.content.is_secret() && spec.path != checked.path && spec.owner != user.name {
                    return Ok(());
                }
                (Uid::from_raw(user.uid.as_raw()), Gid::from_raw(user.gid.as_raw()), 0o400)
            }
        };
        let (parent, name) = split(path)?;
        let directory = self.directory(parent, attributes)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&directory.fd, name, flags, Mode::from_raw_mode(0o600)).map_err(file("copy", path))?;
        let mut copy = std::fs::File::from(fd);
        let failed = |source| HostError::File { operation: "copy", path: path.to_owned(), source };
        std::io::Write::write_all(&mut copy, bytes).map_err(failed)?;
        own(&copy, Some(uid), Some(gid), path)?;
        rustix::fs::fchmod(&copy, Mode::from_raw_mode(mode)).map_err(file("copy", path))
    }

    /// The directory of the tree that stands for `real`; made with what leads there.
    fn directory(&self, real: &str, attributes: &Attributes<'_>) -> Result<Directory, HostError> {
        let (directory, made) = self.root.make_directory(&below(real))?;
        for path in made {
            let Some(real) = path.strip_prefix(FUTURE) else { continue };
            let Some(here) = self.root.directory(&path)? else { continue };
            match attributes {
                Attributes::For { user, .. } => {
                    own(&here.fd, None, Some(Gid::from_raw(user.gid.as_raw())), &path)?;
                    chmod(&here, 0o750)?;
                }
                // Laid over the real one it stands for that one: who enters there enters here.
                Attributes::Declared { .. } => {
                    if let Some(there) = self.root.directory(if real.is_empty() { "/" } else { real })? {
                        let stat = rustix::fs::fstat(&there.fd).map_err(file("look at", real))?;
                        own(&here.fd, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), &path)?;
                        chmod(&here, stat.st_mode & 0o7777)?;
                    }
                }
            }
        }
        Ok(directory)
    }

    /// What lies beside the checked file today and is no candidate: as links, which give nobody a right.
    fn link_siblings(&self, checked: &FileSpec) -> Result<(), HostError> {
        let (parent, _) = split(checked.path.as_str())?;
        let (Some(real), Some(here)) = (self.root.directory(parent)?, self.root.directory(&below(parent))?) else {
            return Ok(());
        };
        for entry in rustix::fs::Dir::read_from(&real.fd).map_err(file("read", parent))? {
            let entry = entry.map_err(file("read", parent))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name != "." && name != ".." {
                let target = self.root.outside(parent).join(name);
                match rustix::fs::symlinkat(&target, &here.fd, name) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(file("link", parent)(error)),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let _ = clean(self.root);
    }
}

fn below(real: &str) -> String {
    if real == "/" { FUTURE.to_owned() } else { format!("{FUTURE}{real}") }
}

/// By name or by number.
fn accounts(spec: &FileSpec) -> Result<(Uid, Gid), HostError> {
    let missing = |name: &str| HostError::NoSuchAccount { name: name.to_owned(), path: spec.path.to_string() };
    let user = nix::unistd::User::from_name(&spec.owner).ok().flatten().map(|user| user.uid.as_raw());
    let group = nix::unistd::Group::from_name(&spec.group).ok().flatten().map(|group| group.gid.as_raw());
    let user = user.or(spec.owner.parse().ok()).ok_or_else(|| missing(&spec.owner))?;
    let group = group.or(spec.group.parse().ok()).ok_or_else(|| missing(&spec.group))?;
    Ok((Uid::from_raw(user), Gid::from_raw(group)))
}

/// Only root can give away.
fn own(fd: &impl std::os::fd::AsFd, uid: Option<Uid>, gid: Option<Gid>, path: &str) -> Result<(), HostError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    rustix::fs::fchown(fd, uid, gid).map_err(file("copy", path))
}

fn chmod(directory: &Directory, mode: u32) -> Result<(), HostError> {
    rustix::fs::fchmod(&directory.fd, Mode::from_raw_mode(mode)).map_err(file("make", &directory.real))
}

/// Removes a tree and what is mounted in it; also what a crash left.
pub fn clean(root: &Root) -> Result<(), HostError> {
    let Some(home) = root.directory(HOME)? else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let check: OwnedFd = match rustix::fs::openat(&home.fd, "check", flags, Mode::empty()) {
        Ok(check) => check,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(file("open", CHECK)(error)),
    };
    for entry in rustix::fs::Dir::read_from(&check).map_err(file("read", CHECK))? {
        let entry = entry.map_err(file("read", CHECK))?;
        if let Some(name) = entry.file_name().to_str().ok().filter(|name| name.starts_with("seen-")) {
            // Nothing is mounted there: not an error. Whoever still looks keeps what it has open.
            let _ =
                rustix::mount::unmount(root.outside(CHECK).join(name), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    drop(check);
    empty(&home.fd, "check")
}

/// Removes a directory and all in it, by descriptors, through no link. What is mounted in it stops it.
fn empty(parent: &OwnedFd, name: &str) -> Result<(), HostError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let here = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(file("clean", CHECK))?;
    for entry in rustix::fs::Dir::read_from(&here).map_err(file("read", CHECK))? {
        let entry = entry.map_err(file("read", CHECK))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name == "." || name == ".." {
            continue;
        }
        match rustix::fs::unlinkat(&here, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => empty(&here, name)?,
            done => done.map_err(file("clean", CHECK))?,
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(file("clean", CHECK))
}
