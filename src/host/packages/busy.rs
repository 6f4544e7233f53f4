//! Who has the locks of the system's package managers.
//!
//! Never: takes one, or breaks one.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Flock, FlockType, fcntl_getlk};

/// The first of these files (POSIX record locks, fcntl(2)) that somebody has locked: by whom, in words.
pub fn holder(files: &[&str]) -> Option<String> {
    files.iter().find_map(|path| {
        let fd = rustix::fs::open(*path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let lock = fcntl_getlk(&fd, &Flock::from(FlockType::WriteLock)).ok()??;
        let pid = lock.pid.map(|pid| pid.as_raw_nonzero().to_string()).unwrap_or_default();
        let name = std::fs::read_to_string(Path::new("/proc").join(&pid).join("comm")).unwrap_or_default();
        Some(format!("{path} is locked by {} (process {pid})", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    /// E1.
    #[test]
    #[allow(clippy::disallowed_methods)] // such locks are between processes
    fn who_has_the_lock_is_named_as_long_as_he_has_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(holder(&["/no/such/file", path]), None);
        let hold = "import fcntl, sys\nf = open(sys.argv[1], 'w')\nfcntl.lockf(f, fcntl.LOCK_EX)\n\
                    print('locked', flush=True)\nsys.stdin.read()";
        let mut python = Command::new("python3");
        let mut other = python.args(["-c", hold, path]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(other.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let said = holder(&["/no/such/file", path]).unwrap();
        assert_eq!(said, format!("{path} is locked by python3 (process {})", other.id()));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(holder(&[path]), None);
    }
}
