//! Whether the user who fetches can read what a remote needs: keys, tokens, certificates, by their owner and mode.
//!
//! Said before a child fails with less to say. Never: a file opened.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::child::FETCH_USER;
use super::sandbox::User;

const READ: u32 = 0o4;
const ENTER: u32 = 0o1;

/// Why one of these files cannot be read by `user`, and what to do. A file that is not there is for the child to tell.
pub(super) fn every(files: &[PathBuf], user: User) -> Result<(), String> {
    files.iter().try_for_each(|file| one(file, user))
}

fn one(file: &Path, user: User) -> Result<(), String> {
    for folder in file.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
        if !permits(folder, user, ENTER) {
            let (file, folder) = (file.display(), folder.display());
            return Err(format!(
                "{file} cannot be read by {FETCH_USER}, who may not enter {folder}: `chmod 0711 {folder}`"
            ));
        }
    }
    if permits(file, user, READ) {
        return Ok(());
    }
    let file = file.display();
    Err(format!("{file} cannot be read by {FETCH_USER}: `chown root:{FETCH_USER} {file}` and `chmod 0640 {file}`"))
}

fn permits(path: &Path, user: User, wanted: u32) -> bool {
    let Ok(meta) = std::fs::metadata(path) else { return true };
    let shift = match (meta.uid() == user.uid, meta.gid() == user.gid) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    meta.mode() >> shift & wanted != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_that_the_fetch_user_cannot_read_is_named_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let open = |mode: u32, path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let file = dir.path().join("deploy.key");
        crate::disk::write_atomic(&file, b"key", 0o600).unwrap();
        open(0o711, dir.path());
        let stranger = User { uid: 54321, gid: 54321 };
        let group = User { uid: 54321, gid: std::fs::metadata(&file).unwrap().gid() };
        let said = every(std::slice::from_ref(&file), stranger).unwrap_err();
        assert!(said.contains("deploy.key cannot be read by converger-fetch: `chown root:converger-fetch "), "{said}");
        open(0o640, &file);
        assert!(one(&file, stranger).is_err());
        assert_eq!(one(&file, group), Ok(()));
        open(0o700, dir.path());
        assert!(one(&file, group).unwrap_err().contains("may not enter"));
    }
}
