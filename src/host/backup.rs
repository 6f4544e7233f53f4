//! Previous contents of what is replaced or removed: `/var/lib/converger/backups/<path>/<time>`.
//!
//! Whatever was there is kept, whoever wrote it: that needs no memory of who did, and a second copy of our own costs
//! little. The last ten of each path stay; of a file with secrets the last one that somebody else wrote, and when the
//! secret is another one, or none, no copy of the old one is made and the earlier go. Never: readable by others than root.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::HostError;
use super::root::{Directory, Root, file, split};
use crate::clock::Clock;
use crate::name::HostPath;
use crate::resource::Digest;
use crate::resource::file::Previous;

const KEPT_MAX: usize = 10;
pub const BACKUPS: &str = "/var/lib/converger/backups";

/// Copies that are written and not yet durable, held open: up to so many one by one, beyond that as one mount.
#[derive(Default)]
pub struct Backups {
    written: Vec<File>,
    /// Where something was put: copies, and directories made for them.
    directories: Vec<OwnedFd>,
    /// More than are held open.
    many: bool,
}

/// Up to here an fsync for each is cheaper than a syncfs, which also waits for what others wrote.
const HELD_MAX: usize = 64;

impl Backups {
    /// Copies what is at `path`, unless nothing is, or what is there is `same` as what comes; and forgets what `previous`
    /// says of the earlier copies.
    pub fn keep(
        &mut self,
        root: &Root,
        clock: &dyn Clock,
        path: &HostPath,
        same: Option<Digest>,
        previous: Previous,
    ) -> Result<(), HostError> {
        let path = path.as_str();
        let newest = match previous {
            Previous::Kept => KEPT_MAX,
            Previous::KeptOnce => 1,
            Previous::Gone => return self.forget(root, path),
        };
        let (parent, name) = split(path)?;
        let Some(directory) = root.directory(parent)? else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mut old = match rustix::fs::openat(&directory.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            // A link that appeared since it was staged: the rename replaces it, there is nothing to keep.
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(()),
            Err(error) => return Err(file("back up", path)(error)),
        };
        let failed = |source| HostError::File { operation: "back up", path: path.to_owned(), source };
        if !old.metadata().map_err(failed)?.is_file() || same.is_some() && digest(&mut old).map_err(failed)? == same {
            return Ok(());
        }
        let shelf = self.shelf(root, path)?;
        let mut copy = create(&shelf, clock, path)?;
        std::io::copy(&mut old, &mut copy).map_err(failed)?;
        prune(&shelf, newest, path)?;
        self.written.push(copy);
        self.directories.push(shelf.fd);
        self.hold_few();
        Ok(())
    }

    /// One descriptor is enough to sync a mount by, and there are only so many.
    fn hold_few(&mut self) {
        if self.many || self.written.len() + self.directories.len() > HELD_MAX {
            self.many = true;
            self.written.clear();
            self.directories.truncate(1);
        }
    }

    fn forget(&mut self, root: &Root, path: &str) -> Result<(), HostError> {
        if let Some(shelf) = root.directory(&format!("{BACKUPS}{path}"))? {
            prune(&shelf, 0, path)?;
            self.directories.push(shelf.fd);
            self.hold_few();
        }
        Ok(())
    }

    /// The directory of `path`'s copies.
    fn shelf(&mut self, root: &Root, path: &str) -> Result<Directory, HostError> {
        let (backups, mut made) = root.make_directory(BACKUPS)?;
        if !made.is_empty() {
            rustix::fs::fchmod(&backups.fd, Mode::from_raw_mode(0o700)).map_err(file("make", BACKUPS))?;
        }
        let (shelf, more) = root.make_directory(&format!("{BACKUPS}{path}"))?;
        made.extend(more);
        for made in made {
            if let Some(parent) = root.directory(split(&made)?.0)? {
                self.directories.push(parent.fd);
            }
        }
        Ok(shelf)
    }

    pub fn make_durable(self) -> Result<(), HostError> {
        if self.many
            && let Some(any) = self.directories.first()
        {
            return rustix::fs::syncfs(any).map_err(file("sync", BACKUPS));
        }
        for copy in &self.written {
            rustix::fs::fsync(copy).map_err(file("sync", BACKUPS))?;
        }
        for directory in &self.directories {
            rustix::fs::fsync(directory).map_err(file("sync", BACKUPS))?;
        }
        Ok(())
    }
}

/// Where previous contents of `path` lie, the oldest first.
pub fn backups(root: &Path, path: &HostPath) -> Result<Vec<PathBuf>, HostError> {
    let shelf = format!("{BACKUPS}{path}");
    let Some(directory) = Root::open(root)?.directory(&shelf)? else { return Ok(Vec::new()) };
    let names = copies(&directory, path.as_str())?;
    let below = root.join(shelf.trim_start_matches('/'));
    Ok(names.iter().map(|name| below.join(OsStr::from_bytes(name.to_bytes()))).collect())
}

fn digest(file: &mut File) -> std::io::Result<Option<Digest>> {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    let mut buffer = Zeroizing::new([0; 16 * 1024]);
    loop {
        match std::io::Read::read(file, buffer.as_mut_slice())? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    std::io::Seek::rewind(file)?;
    Ok(Some(Digest::from_bytes(hash.finalize().into())))
}

fn create(shelf: &Directory, clock: &dyn Clock, path: &str) -> Result<File, HostError> {
    let now = clock.now().strftime("%Y%m%dT%H%M%S%.6fZ").to_string();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut tries = 0;
    loop {
        // Two within a microsecond, or a clock that was set back: still a name of its own, and a later one.
        let name = if tries == 0 { now.clone() } else { format!("{now}-{tries:04}") };
        match rustix::fs::openat(&shelf.fd, &name, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => return Ok(fd.into()),
            Err(Errno::EXIST) if tries < 1000 => tries += 1,
            Err(error) => return Err(file("back up", path)(error)),
        }
    }
}

fn prune(shelf: &Directory, newest: usize, path: &str) -> Result<(), HostError> {
    let copies = copies(shelf, path)?;
    let old = copies.len().saturating_sub(newest);
    for name in &copies[..old] {
        rustix::fs::unlinkat(&shelf.fd, name.as_c_str(), AtFlags::empty())
            .map_err(file("prune the backups of", path))?;
    }
    Ok(())
}

/// Their names are their times.
fn copies(shelf: &Directory, path: &str) -> Result<Vec<CString>, HostError> {
    let mut copies = Vec::new();
    for entry in rustix::fs::Dir::read_from(&shelf.fd).map_err(file("read the backups of", path))? {
        let entry = entry.map_err(file("read the backups of", path))?;
        // Deeper paths have their directories here too.
        if entry.file_type() == FileType::RegularFile {
            copies.push(entry.file_name().to_owned());
        }
    }
    copies.sort_unstable();
    Ok(copies)
}
