//! Where everything of an agent lies, below `--root DIR` or on the machine itself.
//!
//! PURE. Never: makes a directory.

use std::path::{Path, PathBuf};

pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// `/`, or the directory that stands for it.
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Survives reboots: ledger, accepted commit, hold record, verified objects, backups.
    pub fn state(&self) -> PathBuf {
        self.root.join("var/lib/converger")
    }

    /// May be lost: the quarantine of what was fetched and is not verified yet.
    pub fn cache(&self) -> PathBuf {
        self.root.join("var/cache/converger")
    }

    pub fn run(&self) -> PathBuf {
        self.root.join("run/converger")
    }

    pub fn ledger(&self) -> PathBuf {
        self.state().join("ledger.db")
    }

    /// The record of an armed hold.
    pub fn hold(&self) -> PathBuf {
        self.state().join("hold.json")
    }

    /// Which store this node deals with, and how far it has seen it.
    pub fn store_pin(&self) -> PathBuf {
        self.state().join("store.json")
    }

    /// Why the agent applies nothing, and until when.
    pub fn pause(&self) -> PathBuf {
        self.state().join("pause.json")
    }

    /// Programs of the agent, which of them runs, and the record of a hold on `converger.agents`.
    pub fn agents(&self) -> PathBuf {
        self.state().join("agent")
    }

    pub fn report(&self) -> PathBuf {
        self.run().join("status.json")
    }

    /// The last report for Prometheus, unless the settings name another place.
    pub fn metrics(&self) -> PathBuf {
        self.run().join("metrics.prom")
    }

    /// Whoever has this lock is the agent of this node.
    pub fn lock(&self) -> PathBuf {
        self.state().join("agent.lock")
    }
}
