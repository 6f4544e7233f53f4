//! A folder in memory for one value while an editor is open: 0700, on a tmpfs, wiped and removed at the end.
//!
//! Never: a file system that keeps its files on a disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, statfs};
use zeroize::Zeroizing;

use crate::secrets::header::FILE_BYTES_MAX;

/// linux/magic.h
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    #[error("no folder in memory to edit in: tried {tried}; set XDG_RUNTIME_DIR to one on a tmpfs")]
    NoMemory { tried: String },
    #[error("cannot make a folder in {place}")]
    Make { place: PathBuf, source: io::Error },
    #[error("cannot {operation} the file in memory")]
    File { operation: &'static str, source: io::Error },
}

pub struct Room {
    folder: PathBuf,
    pub file: PathBuf,
}

impl Room {
    /// In the first of these places that is in memory.
    pub fn new(places: &[PathBuf], name: &str, value: &[u8]) -> Result<Self, RoomError> {
        let place = places.iter().find(|place| is_memory(place)).ok_or_else(|| RoomError::NoMemory {
            tried: places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", "),
        })?;
        let folder = make(place).map_err(|source| RoomError::Make { place: place.clone(), source })?;
        let room = Self { file: folder.join(name), folder };
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&room.file);
        written
            .and_then(|mut file| file.write_all(value))
            .map_err(|source| RoomError::File { operation: "write", source })?;
        Ok(room)
    }

    /// What the editor left.
    pub fn value(&self) -> Result<Zeroizing<Vec<u8>>, RoomError> {
        let mut value = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
        File::open(&self.file)
            .and_then(|file| file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut value))
            .map_err(|source| RoomError::File { operation: "read", source })?;
        Ok(value)
    }
}

impl Drop for Room {
    /// Editors leave copies beside the file: all of them.
    fn drop(&mut self) {
        wipe_all(&self.folder);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn is_memory(place: &Path) -> bool {
    // The type of the field differs between machines.
    #[allow(clippy::unnecessary_cast)]
    statfs(place).is_ok_and(|found| [TMPFS, RAMFS].contains(&(found.f_type as i64)))
}

fn make(place: &Path) -> io::Result<PathBuf> {
    for n in 0..100 {
        let folder = place.join(format!("converger-secret-{}-{n}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| folder),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn wipe_all(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => wipe_all(&entry.path()),
            _ => drop(wipe(&entry.path())),
        }
    }
}

fn wipe(path: &Path) -> io::Result<()> {
    // A FIFO would hold us for ever, and signals are blocked.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).expect("open flags fit");
    let mut file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let length = file.metadata()?.len();
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_memory_will_do() {
        let disk = Path::new(env!("CARGO_MANIFEST_DIR")).to_owned();
        assert!(is_memory(Path::new("/dev/shm")) && !is_memory(&disk));
        let error = Room::new(&[disk.clone(), "/nowhere".into()], "s", b"x").err().unwrap().to_string();
        assert!(error.contains(&format!("{}, /nowhere", disk.display())), "{error}");
    }

    #[test]
    fn copies_that_an_editor_left_go_too() {
        let room = Room::new(&["/dev/shm".into()], "s", b"canary").unwrap();
        let folder = room.folder.clone();
        // Another name of the same bytes shows that they were wiped, not only unlinked.
        let other = folder.with_extension("other");
        std::fs::hard_link(&room.file, &other).unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.join("s~")).unwrap();
        assert_eq!(*room.value().unwrap(), b"canary");
        drop(room);
        let left = std::fs::read(&other).unwrap();
        std::fs::remove_file(&other).unwrap();
        assert!(!folder.exists());
        assert_eq!(left, [0; 6]);
    }
}
