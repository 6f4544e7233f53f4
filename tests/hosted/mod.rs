//! A directory that stands for a machine's disk, and the real host's functions over it.

#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use converger::clock::{Clock, SystemClock};
use converger::host::linux::{LinuxHost, Owners, Units};
use converger::host::recorder::Recorder;
use converger::host::{FileQuery, Host as _, HostError, Query, Step, Words};
use converger::name::HostPath;
use converger::resource::file::{Policy, Previous, Stamp};
use converger::resource::{Content, Digest, FileSpec, FileState};

pub const CLOCK: SystemClock = SystemClock;

pub struct Sandbox {
    pub dir: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn host<'a>(&self, clock: &'a dyn Clock) -> LinuxHost<'a> {
        let recorder = Recorder::paced(self.dir.path(), Duration::ZERO, Duration::ZERO).unwrap();
        let owners = if root() { Owners::Kept } else { Owners::Ignored };
        LinuxHost::new(self.dir.path(), owners, Units::Recorder(recorder), clock).unwrap()
    }

    pub fn put(&self, path: &str, text: &str) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    /// Names of everything below, without the state directory.
    pub fn tree(&self) -> Vec<String> {
        fn walk(dir: &Path, top: &Path, names: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                names.push(path.strip_prefix(top).unwrap().display().to_string());
                if path.symlink_metadata().unwrap().is_dir() {
                    walk(&path, top, names);
                }
            }
        }
        let mut names = Vec::new();
        walk(self.dir.path(), self.dir.path(), &mut names);
        names.retain(|name| !name.starts_with("var"));
        names.sort();
        names
    }

    pub fn backups(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.at("var/lib/converger/backups").join(path)) else { return Vec::new() };
        let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }
}

pub fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub fn spec(path: &str, text: &str) -> FileSpec {
    let (owner, group) = if root() { ("daemon", "bin") } else { ("root", "root") };
    FileSpec {
        path: path.into(),
        content: Content::plain(text.into()),
        owner: owner.into(),
        group: group.into(),
        mode: 0o640,
        policy: Policy::Enforce,
        validate: None,
    }
}

/// As of something that nobody wrote before.
pub fn previous(spec: &FileSpec) -> Previous {
    if spec.content.is_secret() { Previous::KeptOnce } else { Previous::Kept }
}

pub fn apply(host: &LinuxHost<'_>, specs: &[FileSpec]) -> Result<Vec<(HostPath, Stamp, Digest)>, HostError> {
    host.perform(&Step::Stage(specs.iter().map(|spec| (spec, previous(spec))).collect(), Words::Told))?;
    host.perform(&Step::Swap).map(|done| done.stamps)
}

pub fn look(host: &LinuxHost<'_>, path: &str) -> FileState {
    let path = HostPath::from(path);
    let query = FileQuery { path: &path, known: None, bytes_unless: None };
    host.observe(&Query { files: vec![query], ..Query::default() }).unwrap().files.remove(&path).unwrap()
}

pub fn secret(path: &str, value: &str) -> FileSpec {
    let value = value.as_bytes().to_vec().into();
    FileSpec { content: Content::secret(Some(value), b"masked".to_vec(), Vec::new()), ..spec(path, "") }
}

/// Runs `script` with `$1` = the sandbox; only root can mount and set attributes, and CI is root.
pub fn as_root(sandbox: &Sandbox, script: &str) {
    let status = Command::new("sh").args(["-ec", script, "sh"]).arg(sandbox.dir.path()).status().unwrap();
    assert!(status.success(), "{script}");
}
