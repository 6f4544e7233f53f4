//! A node that unpacks artifacts below a directory, and archives to unpack: real ones and hostile ones.

#![allow(dead_code)] // each test file uses its own part

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use converger::clock::SystemClock;
use converger::git::Children;
use converger::git::sandbox::User;
use converger::host::HostError;
use converger::host::artifacts::fetch::{BOUNDS, Bounds};
use converger::host::artifacts::{self, MARKER, Store};
use converger::host::root::Root;
use converger::reason::{Reason, chain};
use converger::resource::ArtifactSpec;
use converger::resource::artifact::file_of;
use sha2::{Digest as _, Sha256};

const CLOCK: SystemClock = SystemClock;

/// A machine's root with `/opt/app` for versions, a cache, and a folder of a mirror.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub root: Root,
    pub user: Option<User>,
    pub bounds: Bounds,
}

impl Node {
    pub fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    pub fn within(folder: &Path) -> Self {
        let dir = tempfile::tempdir_in(folder).unwrap();
        for name in ["root", "cache", "mirror"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = Root::open(&dir.path().join("root")).unwrap();
        Self { dir, root, user: None, bounds: BOUNDS }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn app(&self, path: &str) -> PathBuf {
        self.at("root/opt/app").join(path)
    }

    pub fn store(&self) -> Store<'static> {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_converger"));
        Store::new(&self.at("cache"), Children { program, user: self.user }, &CLOCK).bounded(self.bounds)
    }

    /// Puts an archive into the mirror's folder, and says what versions.toml would.
    pub fn publish(&self, version: &str, file: &str, bytes: &[u8]) -> ArtifactSpec {
        std::fs::write(self.at("mirror").join(file), bytes).unwrap();
        spec(version, bytes, vec![format!("file://{}", self.at("mirror").join(file).display())])
    }

    pub fn unpack(&self, spec: &ArtifactSpec) -> Result<(), HostError> {
        artifacts::unpack(&self.root, &self.store(), spec)
    }

    pub fn bring(&self, spec: &ArtifactSpec) -> Result<(), HostError> {
        self.unpack(spec)?;
        artifacts::switch(&self.root, spec)
    }

    /// What would still have to be done.
    pub fn diff(&self, spec: &ArtifactSpec) -> Option<String> {
        spec.diff(&artifacts::observe(&self.root, spec))
    }

    pub fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.app(path)).unwrap()
    }

    /// Names in the directory of the versions.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.app("")) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn parts(&self) -> Vec<u64> {
        let Ok(entries) = std::fs::read_dir(self.at("cache/artifacts")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).collect()
    }
}

pub fn spec(version: &str, bytes: &[u8], urls: Vec<String>) -> ArtifactSpec {
    ArtifactSpec {
        component: "app".to_owned(),
        version: version.to_owned(),
        sha256: hex::encode(Sha256::digest(bytes)),
        file: file_of(&urls[0]).to_owned(),
        urls,
        into: "/opt/app".into(),
        buckets: BTreeMap::new(),
        authorities: None,
    }
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub fn refused(result: Result<(), HostError>) -> (Reason, String) {
    match result {
        Err(HostError::Artifact(error)) => (error.reason(), chain(&error)),
        Err(error) => panic!("{}", chain(&error)),
        Ok(()) => panic!("it went well"),
    }
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A small program with everything that programs are shipped with.
pub fn program(dir: &Path, version: &str) {
    let top = dir.join(format!("app-{version}"));
    for folder in ["bin", "lib/empty", &format!("lib/{}", "deep/".repeat(40))] {
        std::fs::create_dir_all(top.join(folder)).unwrap();
    }
    std::fs::write(top.join("bin/run"), format!("#!/bin/sh\necho {version}\n")).unwrap();
    std::fs::set_permissions(top.join("bin/run"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(top.join("lib/big.jar"), noise(300_000, version)).unwrap();
    std::fs::write(top.join("lib/ü and space"), "").unwrap();
    std::fs::write(top.join("lib").join("n".repeat(150)), version).unwrap();
    std::fs::write(top.join("lib").join("deep/".repeat(40)).join("leaf"), "leaf").unwrap();
    std::fs::hard_link(top.join("lib/big.jar"), top.join("lib/same.jar")).unwrap();
    symlink("../lib/big.jar", top.join("bin/link")).unwrap();
    symlink("nowhere", top.join("dangling")).unwrap();
    symlink("lib", top.join("libs")).unwrap();
}

/// Bytes that do not pack well, the same each time.
pub fn noise(bytes: usize, seed: &str) -> Vec<u8> {
    let blocks = (0..bytes.div_ceil(32)).flat_map(|n| Sha256::digest(format!("{seed}{n}")).to_vec());
    blocks.take(bytes).collect()
}

pub fn packed(dir: &Path, version: &str, file: &str, options: &[&str]) -> Vec<u8> {
    if !dir.join(format!("app-{version}")).exists() {
        program(dir, version);
    }
    run(Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(options)
        .arg("-cf")
        .arg(dir.join(file))
        .arg(format!("app-{version}")));
    std::fs::read(dir.join(file)).unwrap()
}

/// A version of the program as `.tar.gz`.
pub fn release(version: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    packed(dir.path(), version, "x.tar.gz", &["--gzip"])
}

/// Everything below: kind, size or target or content, executable for its owner.
pub fn listing(top: &Path) -> BTreeMap<String, String> {
    fn walk(at: &Path, top: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let what = if meta.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else if meta.is_dir() {
                walk(&path, top, found);
                "directory".to_owned()
            } else {
                let digest = hex::encode(Sha256::digest(std::fs::read(&path).unwrap()));
                format!("{digest} x{} links {} at {}", meta.mode() >> 6 & 1, meta.nlink(), meta.mtime())
            };
            found.insert(path.strip_prefix(top).unwrap().display().to_string(), what);
        }
    }
    let mut found = BTreeMap::new();
    walk(top, top, &mut found);
    found.remove(MARKER);
    found
}

/// A tar file, header by header.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn entry(&mut self, kind: u8, name: &str, link: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.sized(kind, name, link, mode, content, content.len() as u64)
    }

    pub fn sized(&mut self, kind: u8, name: &str, link: &str, mode: u32, content: &[u8], size: u64) -> &mut Self {
        let mut head = [0u8; 512];
        let mut put = |at: usize, text: &[u8]| head[at..at + text.len()].copy_from_slice(text);
        put(0, &name.as_bytes()[..name.len().min(100)]);
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(head);
        self.0.extend(content);
        self.0.resize(self.0.len().div_ceil(512) * 512, 0);
        self
    }

    pub fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.entry(b'0', name, "", 0o644, content)
    }

    pub fn pax(&mut self, records: &[(&str, &str)]) -> &mut Self {
        let record = |(key, value): &(&str, &str)| {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len() + 1;
            while format!("{length}{rest}").len() != length {
                length += 1;
            }
            format!("{length}{rest}")
        };
        let text: String = records.iter().map(record).collect();
        self.entry(b'x', "pax", "", 0o644, text.as_bytes())
    }

    pub fn end(&self) -> Vec<u8> {
        [&self.0[..], &[0; 1024]].concat()
    }
}

pub fn tar(make: impl FnOnce(&mut Tar)) -> Vec<u8> {
    let mut tar = Tar::default();
    make(&mut tar);
    tar.end()
}
