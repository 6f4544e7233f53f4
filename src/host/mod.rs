//! The machine under our feet: look at it, and take one step on it.
//!
//! Everything that changes a node goes through [`Host::perform`], one [`Step`] at a time. Never: a decision; which step
//! and in which order was settled by `plan`.

mod activate;
mod backup;
pub mod command;
pub mod fake;
mod files;
pub mod linux;
mod packages;
pub mod recorder;
mod root;
pub mod units;
mod validate;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::name::{HostPath, UnitName};
use crate::resource::action::ActionState;
use crate::resource::artifact::ArtifactState;
use crate::resource::file::{FileSpec, FileState, Stamp};
use crate::resource::package::PackageState;
use crate::resource::{ActionSpec, ArtifactSpec, Digest, PackageSpec, UnitState};

/// What to look at.
#[derive(Default)]
pub struct Query<'a> {
    pub files: Vec<FileQuery<'a>>,
    pub units: Vec<&'a UnitName>,
    pub packages: Vec<&'a PackageSpec>,
    pub artifacts: Vec<&'a ArtifactSpec>,
    pub actions: Vec<&'a ActionSpec>,
}

pub struct FileQuery<'a> {
    pub path: &'a HostPath,
    /// Seen when the file was last hashed: with the same stamp the file is not read again.
    pub known: Option<(Stamp, Digest)>,
    /// Bring the bytes too if the digest is not this one (its difference will be shown).
    pub bytes_unless: Option<Digest>,
}

/// What the host looks like, in the parts that were asked for.
#[derive(Clone, Default)]
pub struct Observed {
    pub files: BTreeMap<HostPath, FileState>,
    pub units: BTreeMap<UnitName, UnitState>,
    pub packages: BTreeMap<String, PackageState>,
    /// By `into`.
    pub artifacts: BTreeMap<HostPath, ArtifactState>,
    pub actions: BTreeMap<String, ActionState>,
    /// Changes with every boot.
    pub boot_id: String,
    /// Whether owners can be told and set here (not in a sandbox without privileges).
    pub owners: bool,
}

/// One change to the host.
pub enum Step<'a> {
    /// Write candidates beside their targets, validate them; nothing is live yet. All or none.
    Stage(Vec<&'a FileSpec>),
    /// Rename what was staged into place and make it durable.
    Swap,
    /// Forget what was staged.
    Unstage,
    /// Owner and mode only; the bytes are right.
    SetAttributes(&'a FileSpec),
    /// The previous content goes to the backups first.
    Remove(&'a HostPath),
    /// Let systemd's own tools act on what changed: sysusers, tmpfiles, sysctl, modules.
    Activate(Activation),
    DaemonReload,
    Enable(&'a UnitName),
    Disable(&'a UnitName),
    Mask(&'a UnitName),
    Unmask(&'a UnitName),
    Start {
        unit: &'a UnitName,
        within: Duration,
    },
    Stop {
        unit: &'a UnitName,
        within: Duration,
    },
    Reload {
        unit: &'a UnitName,
        within: Duration,
    },
    Install(&'a PackageSpec),
    Unpack(&'a ArtifactSpec),
    /// A unit's step (`before_stop`, `transfer`, `after_start`): an argument list.
    Run {
        argv: &'a [String],
        user: &'a str,
        within: Duration,
    },
    Act(&'a ActionSpec),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Activation {
    Sysusers,
    Tmpfiles,
    Sysctl,
    Modules,
}

/// What a step has to say when it went well.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Done {
    /// How long it took, as the host measured it.
    pub took: Duration,
    /// Files that are live now, as stat sees them (after `Swap` and `SetAttributes`).
    pub stamps: Vec<(HostPath, Stamp, Digest)>,
    /// What a sandbox cannot do and left out: in words.
    pub skipped: Vec<String>,
}

/// A step that did not happen, or not wholly; what is live is old or new, never between.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot {operation} {path}")]
    File { operation: &'static str, path: String, source: std::io::Error },
    #[error("{path} is in the way: {what}")]
    Blocked { path: String, what: String },
    #[error("no user or group {name} on this host (wanted by {path})")]
    NoSuchAccount { name: String, path: String },
    #[error("{path}: the candidate was refused by `{command}`: {output}")]
    Invalid { path: String, command: String, output: String },
    #[error("cannot {operation} {unit}: {why}")]
    Unit { operation: &'static str, unit: String, why: String },
    #[error("systemd does not answer: {why}")]
    NoSystemd { why: String },
    #[error("cannot install package {name}: {why}")]
    Package { name: String, why: String },
    #[error("`{command}` failed: {why}")]
    Command { command: String, why: String },
    #[error("{what}: not done by this version of converger; {hint}")]
    Unsupported { what: String, hint: &'static str },
}

pub trait Host {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError>;
    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError>;
}
