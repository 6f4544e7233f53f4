//! Our own state on disk: the only functions that write files of the agent itself.
//!
//! A write is a new file beside the old one, fsync, rename, fsync of the directory: after a power cut the old or the
//! new content is there, whole. Never: truncates in place, follows a symlink at the target, retries a failed fsync
//! (its pages may be gone: <https://wiki.postgresql.org/wiki/Fsync_Errors>).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot {operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is larger than {max} bytes")]
    TooLarge { path: PathBuf, max: u64 },
    #[error("{path} must belong to this user and be writable by nobody else (it belongs to uid {uid}, mode {mode:o})")]
    NotPrivate { path: PathBuf, uid: u32, mode: u32 },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Io { operation, path: path.to_owned(), source }
}

/// Replaces the file at `path` by `bytes` with `mode`, durably. What fails leaves the old content.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
    let fresh = beside(path);
    let written = write_new(&fresh, bytes, mode).and_then(|()| rename(&fresh, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
        return written;
    }
    sync_directory(path)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
    // A crash may have left one; whoever else writes here holds our lock.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", path)(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed("create", path))?;
    // The mode at creation is cut by the umask.
    file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", path))?;
    file.write_all(bytes).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("fsync", path))
}

#[allow(clippy::disallowed_methods)] // this file is where it is allowed
fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    std::fs::rename(from, to).map_err(failed("replace", to))
}

/// Moves a file that somebody else wrote into place, durably; both paths are on one file system.
pub fn install(from: &Path, to: &Path) -> Result<(), DiskError> {
    File::open(from).and_then(|file| file.sync_all()).map_err(failed("fsync", from))?;
    rename(from, to)?;
    sync_directory(to)
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.new.{}", std::process::id()))
}

fn sync_directory(of: &Path) -> Result<(), DiskError> {
    let directory = match of.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|file| file.sync_all()).map_err(failed("fsync", directory))
}

/// The whole file, `None` where there is none. More than `max` bytes is an error, found before they are all read.
pub fn read_bounded(path: &Path, max: u64) -> Result<Option<Vec<u8>>, DiskError> {
    let Some(file) = open(path)? else { return Ok(None) };
    rest_of(file, path, max).map(Some)
}

/// As [`read_bounded`], of a file that decides what is believed: it belongs to this user or to root, and nobody else can
/// write it.
pub fn read_trusted(path: &Path, max: u64) -> Result<Option<Vec<u8>>, DiskError> {
    let Some(file) = open(path)? else { return Ok(None) };
    let meta = file.metadata().map_err(failed("look at", path))?;
    let owned = [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
    if !owned || meta.mode() & 0o022 != 0 {
        return Err(DiskError::NotPrivate { path: path.to_owned(), uid: meta.uid(), mode: meta.mode() & 0o7777 });
    }
    rest_of(file, path, max).map(Some)
}

fn open(path: &Path) -> Result<Option<File>, DiskError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn rest_of(file: File, path: &Path, max: u64) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > max {
        return Err(DiskError::TooLarge { path: path.to_owned(), max });
    }
    Ok(bytes)
}

/// Makes `path` and what is missing above it, for this user only, and refuses one that somebody else can write.
pub fn create_dirs(path: &Path) -> Result<(), DiskError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
    let meta = std::fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 || !meta.is_dir() {
        return Err(DiskError::NotPrivate { path: path.to_owned(), uid: meta.uid(), mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

/// Removes a file or a whole directory; one that is not there is fine.
pub fn remove(path: &Path) -> Result<(), DiskError> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match gone {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// One agent per state directory: an advisory lock that the kernel takes back when its holder dies.
#[derive(Debug)]
pub struct Exclusive {
    _file: File,
}

impl Exclusive {
    /// `None`: another process has it.
    pub fn acquire(path: &Path) -> Result<Option<Self>, DiskError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed("open", path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed("lock", path)(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_atomic(&path, b"first, and longer", 0o600).unwrap();
        write_atomic(&path, b"second", 0o640).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap().unwrap(), b"second");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_symlink_at_the_target_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        write_atomic(&victim, b"precious", 0o600).unwrap();
        let path = dir.path().join("state");
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        write_atomic(&path, b"new", 0o600).unwrap();
        assert_eq!(read_bounded(&victim, 100).unwrap().unwrap(), b"precious");
        assert!(!std::fs::symlink_metadata(&path).unwrap().is_symlink());
    }

    #[test]
    fn a_failed_write_names_the_file_and_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("taken");
        std::fs::create_dir(&target).unwrap();
        let error = write_atomic(&target, b"x", 0o600).unwrap_err();
        assert!(error.to_string().starts_with("cannot replace "), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn reading_stops_at_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        write_atomic(&path, &[0; 11], 0o600).unwrap();
        assert!(matches!(read_bounded(&path, 10), Err(DiskError::TooLarge { max: 10, .. })));
        assert_eq!(read_bounded(&path, 11).unwrap().unwrap().len(), 11);
        assert!(read_bounded(&dir.path().join("none"), 10).unwrap().is_none());
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        create_dirs(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(create_dirs(&path), Err(DiskError::NotPrivate { mode: 0o777, .. })));
    }

    #[test]
    fn only_one_holds_the_lock_and_dropping_it_frees_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Exclusive::acquire(&path).unwrap().unwrap();
        assert!(Exclusive::acquire(&path).unwrap().is_none());
        drop(first);
        assert!(Exclusive::acquire(&path).unwrap().is_some());
    }
}
