//! Where a branch of a repository on this machine points: a few reads, so that a poll with nothing new costs nothing.
//!
//! Only the plain cases (<https://git-scm.com/docs/gitrepository-layout>): a file of its own, or a line of packed-refs.
//! Everything else is for the child that fetches. Never: libgit2, a followed symlink, an object.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use git2::Oid;

const LOOSE_MAX: u64 = 128;
const PACKED_MAX: u64 = 16 << 20;

/// The id of `reference`, if it is plain to see.
pub(super) fn tip(repository: &Path, reference: &str) -> Option<Oid> {
    let inside = repository.join(".git");
    let directory = if inside.is_dir() { &inside } else { repository };
    match regular(&directory.join(reference), LOOSE_MAX) {
        Seen::Absent => packed(&read(regular(&directory.join("packed-refs"), PACKED_MAX))?, reference),
        seen => loose(&read(seen)?),
    }
}

enum Seen {
    Absent,
    Other,
    Bytes(Vec<u8>),
}

fn read(seen: Seen) -> Option<Vec<u8>> {
    match seen {
        Seen::Bytes(bytes) => Some(bytes),
        Seen::Absent | Seen::Other => None,
    }
}

/// Nothing that could block or lead elsewhere: another user may own the repository.
fn regular(path: &Path, max: u64) -> Seen {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Seen::Absent,
        Err(_) => return Seen::Other,
    };
    let mut bytes = Vec::new();
    let plain = file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= max);
    match plain && file.take(max).read_to_end(&mut bytes).is_ok() {
        true => Seen::Bytes(bytes),
        false => Seen::Other,
    }
}

fn loose(bytes: &[u8]) -> Option<Oid> {
    id(bytes.strip_suffix(b"\n")?)
}

fn packed(bytes: &[u8], reference: &str) -> Option<Oid> {
    let named = |line: &&[u8]| line.get(40) == Some(&b' ') && line[41..] == *reference.as_bytes();
    id(&bytes.split(|byte| *byte == b'\n').find(named)?[..40])
}

fn id(hex: &[u8]) -> Option<Oid> {
    let plain = hex.len() == 40 && hex.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| Oid::from_str(str::from_utf8(hex).ok()?).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789012345678901234567890123456789";

    #[test]
    fn a_branch_is_a_file_or_a_packed_line_and_all_else_is_not_plain() {
        assert_eq!(loose(format!("{ID}\n").as_bytes()).unwrap().to_string(), ID);
        for odd in ["ref: refs/heads/x\n", "", "\n", ID, &ID[1..], "ABCDEF", &format!("{ID}0\n")] {
            assert!(loose(odd.as_bytes()).is_none(), "{odd:?}");
        }
        let lines = format!(
            "# pack-refs with: peeled\n{} refs/heads/mainz\n{ID} refs/heads/main\n^{ID}\n",
            ID.replace('0', "f")
        );
        assert_eq!(packed(lines.as_bytes(), "refs/heads/main").unwrap().to_string(), ID);
        assert!(packed(lines.as_bytes(), "refs/heads/other").is_none());
        assert!(packed(&lines.as_bytes()[..30], "refs/heads/main").is_none());
    }

    #[test]
    fn a_pipe_or_a_symlink_in_place_of_a_branch_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let heads = dir.path().join("refs/heads");
        std::fs::create_dir_all(&heads).unwrap();
        nix::unistd::mkfifo(&heads.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", heads.join("link")).unwrap();
        for name in ["pipe", "link", "absent"] {
            assert!(tip(dir.path(), &format!("refs/heads/{name}")).is_none());
        }
    }
}
