//! `accepted.a` and `accepted.b`: the floor, written in turn, so that one of them is whole whatever happens.
//!
//! Never: a lower floor after a crash; a damaged copy believed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{self, DiskError};
use crate::trust::Accepted;

const NAMES: [&str; 2] = ["accepted.a", "accepted.b"];
const SIZE_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Copy {
    /// Grows with every write; the higher valid one counts.
    counter: u64,
    accepted: Accepted,
}

/// The two copies in a state directory.
pub struct AcceptedFiles {
    directory: PathBuf,
    newest: Option<(usize, Copy)>,
    damaged: Vec<PathBuf>,
}

impl AcceptedFiles {
    pub fn open(state: &Path) -> Result<Self, DiskError> {
        let mut files = Self { directory: state.to_owned(), newest: None, damaged: Vec::new() };
        for (slot, name) in NAMES.iter().enumerate() {
            let path = state.join(name);
            let Some(bytes) = disk::read_bounded(&path, SIZE_MAX)? else { continue };
            match unsealed(&bytes) {
                Some(copy) if files.newest.as_ref().is_none_or(|(_, other)| copy.counter > other.counter) => {
                    files.newest = Some((slot, copy));
                }
                Some(_) => {}
                None => files.damaged.push(path),
            }
        }
        Ok(files)
    }

    pub fn accepted(&self) -> Option<&Accepted> {
        self.newest.as_ref().map(|(_, copy)| &copy.accepted)
    }

    /// Copies that are there but not whole: one after a power cut is nothing, two are a lost floor.
    pub fn damaged(&self) -> &[PathBuf] {
        &self.damaged
    }

    /// Writes over the older copy; the newer one stays until this one is durable.
    pub fn keep(&mut self, accepted: &Accepted) -> Result<(), DiskError> {
        if self.accepted() == Some(accepted) {
            return Ok(());
        }
        let (slot, counter) = self.newest.as_ref().map_or((0, 1), |(slot, copy)| (1 - slot, copy.counter + 1));
        let copy = Copy { counter, accepted: accepted.clone() };
        disk::write_atomic(&self.directory.join(NAMES[slot]), &sealed(&copy), 0o600)?;
        self.newest = Some((slot, copy));
        Ok(())
    }
}

/// Hex SHA-256 of the rest, a newline, JSON.
fn sealed(copy: &Copy) -> Vec<u8> {
    let body = serde_json::to_vec(copy).expect("strings and numbers are always JSON");
    [hex::encode(Sha256::digest(&body)).as_bytes(), b"\n", &body].concat()
}

fn unsealed(bytes: &[u8]) -> Option<Copy> {
    let (sum, body) = bytes.split_at_checked(64)?;
    let body = body.strip_prefix(b"\n")?;
    if sum != hex::encode(Sha256::digest(body)).as_bytes() {
        return None;
    }
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Acceptance, Signer};

    fn at(seq: u64) -> Accepted {
        Accepted {
            fleet: "f".into(),
            introduction: "1".into(),
            commit: format!("c{seq}").into(),
            payload_sha256: String::new(),
            seq,
            subject: "s".into(),
            acceptance: Acceptance::Signed(Signer { principal: "p".into(), fingerprint: "SHA256:x".into() }),
        }
    }

    fn seq(dir: &Path) -> Option<u64> {
        AcceptedFiles::open(dir).unwrap().accepted().map(|accepted| accepted.seq)
    }

    #[test]
    fn whichever_copy_is_damaged_the_floor_falls_by_one_write_at_most() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(seq(dir.path()), None);
        let mut files = AcceptedFiles::open(dir.path()).unwrap();
        for n in 1..=4 {
            files.keep(&at(n)).unwrap();
            assert_eq!(seq(dir.path()), Some(n));
        }
        for (name, left) in [("accepted.a", 4), ("accepted.b", 3)] {
            let path = dir.path().join(name);
            let whole = disk::read_bounded(&path, SIZE_MAX).unwrap().unwrap();
            for cut in [0, 30, 64, 65, whole.len() - 1] {
                disk::write_atomic(&path, &whole[..cut], 0o600).unwrap();
                let files = AcceptedFiles::open(dir.path()).unwrap();
                assert_eq!(files.accepted().map(|accepted| accepted.seq), Some(left), "{name} cut at {cut}");
                assert_eq!(files.damaged(), std::slice::from_ref(&path));
            }
            let mut flipped = whole.clone();
            *flipped.last_mut().unwrap() ^= 1;
            disk::write_atomic(&path, &flipped, 0o600).unwrap();
            assert_eq!(seq(dir.path()), Some(left));
            disk::write_atomic(&path, &whole, 0o600).unwrap();
        }
    }

    #[test]
    fn the_same_again_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = AcceptedFiles::open(dir.path()).unwrap();
        files.keep(&at(1)).unwrap();
        files.keep(&at(1)).unwrap();
        assert!(!dir.path().join("accepted.b").exists());
    }
}
