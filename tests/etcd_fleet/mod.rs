//! A bed's fleet over an etcd with client certificates, and the rights that `converger etcd-acl` gives.

#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // runs programs and writes files

use std::path::PathBuf;
use std::process::Command;

use converger::lock::store::{LockStore, open};

use crate::bed::{self, Bed, NodeBed, Said};
use crate::etcd::{Ca, Etcd, binary, etcd_with_certificates, kind_of_user};

/// A fleet of three with one group, and an etcd that wants certificates. Nobody has rights yet, and everybody may do everything.
pub struct Fleet {
    pub bed: Bed,
    pub ca: Ca,
    pub etcd: Etcd,
    _dir: tempfile::TempDir,
}

impl Fleet {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(dir.path(), "ca");
        Self { bed: Bed::new(), etcd: etcd_with_certificates(&ca), ca, _dir: dir }
    }

    /// The same fleet with another etcd.
    pub fn over(self, etcd: Etcd) -> Self {
        Self { etcd, ..self }
    }

    pub fn settings(&self, files: &(PathBuf, PathBuf)) -> String {
        let path = |path: &PathBuf| format!("{:?}", path.to_str().unwrap());
        format!(
            "kind = \"etcd\"\nendpoints = [\"https://127.0.0.1:{}\"]\nca = {}\ncert = {}\nkey = {}",
            self.etcd.port,
            path(&self.ca.path),
            path(&files.0),
            path(&files.1)
        )
    }

    /// An engineer's command with the certificate of this user.
    pub fn as_user(&self, user: &str, args: &[&str]) -> Said {
        let client = self.bed.dir().join(format!("{user}.toml"));
        std::fs::write(&client, format!("[store]\n{}\n", self.settings(&self.ca.issue(user)))).unwrap();
        let mut command = bed::converger();
        command.current_dir(&self.bed.forge.work).arg("--client").arg(&client).args(args);
        Said::of(command.output().unwrap())
    }

    pub fn acl(&self, args: &[&str]) -> Said {
        self.as_user("root", &[&["etcd-acl"], args].concat())
    }

    /// With rights for every node, and authentication on.
    pub fn with_rights() -> Self {
        let fleet = Self::new();
        fleet.acl(&["--apply", "--operator", "ann"]).exits(0);
        fleet.acl(&["--enable-auth"]).exits(0).says(&["authentication is on"]);
        fleet
    }

    pub fn store(&self, user: &str) -> Box<dyn LockStore> {
        open(kind_of_user(&self.etcd, &self.ca, &self.ca.issue(user)), "test", "production").unwrap()
    }

    pub fn node(&self, name: &str) -> NodeBed {
        let node = self.bed.node(name);
        // The bed's first node comes with a memory of another store.
        let _ = std::fs::remove_file(node.root.join("var/lib/converger/store.json"));
        node.settings(&self.settings(&self.ca.issue(name)));
        node
    }

    pub fn etcdctl(&self, args: &[&str]) -> String {
        let (cert, key) = self.ca.issue("root");
        let output = Command::new(binary().with_file_name("etcdctl"))
            .args(["--endpoints", &format!("https://127.0.0.1:{}", self.etcd.port), "--cacert"])
            .arg(&self.ca.path)
            .arg("--cert")
            .arg(cert)
            .arg("--key")
            .arg(key)
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
