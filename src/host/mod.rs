//! The machine under our feet: look at it, and take one step on it.
//!
//! Everything that changes a node goes through [`Host::perform`], one [`Step`] at a time. Never: a decision; which step
//! and in which order was settled by `plan`.

mod accounts;
mod activate;
pub mod artifacts;
mod backup;
pub mod command;
pub mod confirm;
mod contained;
pub mod fake;
mod files;
pub mod guard;
pub mod linux;
pub mod packages;
mod pipe;
pub mod programs;
pub mod recorder;
mod room;
pub mod root;
mod said;
mod sysctl;
mod transient;
pub mod units;
mod validate;
mod verify;
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use artifacts::ArtifactError;

use crate::errno;
use crate::name::{HostPath, UnitName};
use crate::plan::risk::Undo;
use crate::reason::{self, Reason};
use crate::resource::action::ActionState;
use crate::resource::artifact::ArtifactState;
use crate::resource::file::{FileSpec, FileState, Previous, Stamp};
use crate::resource::package::PackageState;
use crate::resource::unit::Relations;
use crate::resource::{ActionSpec, Activation, ArtifactSpec, Digest, UnitState};
pub use backup::backups;
pub use contained::Contained;
pub use said::Words;

/// What to look at.
#[derive(Default)]
pub struct Query<'a> {
    pub files: Vec<FileQuery<'a>>,
    pub units: Vec<&'a UnitName>,
    /// Look at what systemd would stop along with the units too.
    pub stop_sets: bool,
    /// Names in the node's OS family.
    pub packages: Vec<&'a str>,
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
    /// Of the units, and of all that systemd would stop along with them.
    pub relations: BTreeMap<UnitName, Relations>,
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
    /// Write candidates beside their targets, validate them; nothing is live yet. All or none. A program that validates can
    /// read other files than the candidate.
    Stage(Vec<(&'a FileSpec, Previous)>, Words),
    /// Rename what was staged into place and make it durable.
    Swap,
    /// Forget what was staged.
    Unstage,
    /// Owner and mode only; the bytes are right.
    SetAttributes(&'a FileSpec),
    Remove(&'a HostPath, Previous),
    /// Ask systemd whether these unit files and drop-ins are good. What a unit runs may be missing where one of these paths
    /// leads: it comes later.
    Verify(Vec<&'a FileSpec>, Vec<&'a str>, Words),
    /// Let its owner's tool act on a file that changed.
    Activate(Activation, &'a FileSpec, Words),
    /// Make durable what a run that died wrote or removed there: it is going to be noted as done.
    Sync(Vec<&'a HostPath>),
    DaemonReload,
    Enable(&'a UnitName),
    Disable(&'a UnitName),
    Mask(&'a UnitName),
    Unmask(&'a UnitName),
    Start {
        unit: &'a UnitName,
        within: Duration,
        words: Words,
    },
    Stop {
        unit: &'a UnitName,
        within: Duration,
        words: Words,
    },
    Reload {
        unit: &'a UnitName,
        within: Duration,
        words: Words,
    },
    /// In one transaction.
    Install(packages::Order<'a>),
    /// Packages that left the repository; what something else needs stays.
    Uninstall(&'a [&'a str], Words),
    /// Fetch an archive and unpack it beside what is live. Changes nothing for anybody.
    Unpack(&'a ArtifactSpec),
    /// `current` points at what was unpacked.
    Switch(&'a ArtifactSpec),
    /// Remove every version that was unpacked into this directory, and its `current`.
    Discard(&'a HostPath),
    /// A unit's step (`before_stop`, `transfer`, `after_start`): an argument list.
    Run {
        argv: &'a [String],
        user: &'a str,
        within: Duration,
        words: Words,
    },
    Act(&'a ActionSpec, Words),
    /// Before a node-risk batch: keep what it replaces, and start the timer that puts it back. With the files to be written.
    Arm(&'a Undo, Vec<&'a FileSpec>),
    /// It stays. Errors: it was put back meanwhile.
    Confirm,
    /// Put it back, and say why.
    RollBack(&'a str),
    /// The ledger knows what was put back.
    Noted,
    /// Returns when it was asked for; services are stopped as at any shutdown.
    Reboot,
}

/// What a step has to say when it went well.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Done {
    /// How long it took, as the host measured it.
    pub took: Duration,
    /// Files that are live now, as stat sees them (after `Swap` and `SetAttributes`).
    pub stamps: Vec<(HostPath, Stamp, Digest)>,
    /// What was left out, as a sandbox cannot do it or somebody still needs it: in words.
    pub skipped: Vec<String>,
}

/// A step that did not happen, or not wholly; what is live is old or new, never between.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot {operation} {path}")]
    File { operation: &'static str, path: String, source: std::io::Error },
    #[error("{path} is in the way: {what}")]
    Blocked { path: String, what: String },
    #[error("cannot replace {path}: {what} is immutable or append-only (lsattr, chattr -i -a)")]
    Fixed { path: String, what: &'static str },
    #[error("no room below {path}: {needed} {what} are needed, {free} are free")]
    NoRoom { path: String, what: &'static str, needed: u64, free: u64 },
    #[error("no user or group {name} on this host (wanted by {path})")]
    NoSuchAccount { name: String, path: String },
    #[error("{path}: the candidate was refused by `{command}`: {output}")]
    Invalid { path: String, command: String, output: String },
    #[error("cannot {operation} {unit}: {why}")]
    Unit { operation: &'static str, unit: String, why: String },
    #[error("{path} has no full effect: {why}")]
    Activation { path: String, why: String },
    #[error("systemd does not answer: {why}")]
    NoSystemd { why: String },
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("cannot {operation} package {names}: {why}")]
    Package { operation: &'static str, names: String, why: String },
    #[error("the package manager is busy: {why}")]
    PackagesBusy { why: String },
    #[error("the package manager would also {why}, which the role does not list so; nothing was touched")]
    PackagePlan { why: String },
    #[error("`{command}` failed: {why}")]
    Command { command: String, why: String },
    #[error("{what}: not done by this version of converger; {hint}")]
    Unsupported { what: String, hint: &'static str },
    #[error("cannot {operation} {what}: the code for it panicked, which is a bug of converger")]
    Panicked { operation: &'static str, what: String },
}

impl HostError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Blocked { .. } => reason::UNSAFE_PATH,
            Self::Fixed { .. } => reason::READ_ONLY,
            Self::NoRoom { .. } => reason::DISK_FULL,
            Self::Panicked { .. } => reason::INTERNAL,
            Self::PackagesBusy { .. } => reason::PACKAGE_BUSY,
            Self::PackagePlan { .. } => reason::PACKAGE_PLAN,
            Self::Artifact(error) => errno::reason_of(error).unwrap_or(error.reason()),
            other => errno::reason_of(other).unwrap_or(reason::APPLY_FAILED),
        }
    }
}

pub trait Host {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError>;
    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError>;
}
