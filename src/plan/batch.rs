//! A batch: what goes live together, and what it takes.
//!
//! PURE. Never: decides anything; `plan` fills it, `apply` walks it.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::{GroupId, HostPath, RoleName, UnitName};
use crate::reason::Reason;
use crate::resource::file::FileChange;
use crate::resource::{ActionSpec, ArtifactSpec, Digest, FileSpec, Id, Origin, PackageSpec, UnitSpec};

/// The order of batches on a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// sysusers.d: files of the other batches belong to these users.
    Users,
    /// What belongs to no unit.
    Role,
    /// A unit and its inputs.
    Unit,
    Removal,
}

/// Why a file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// The repository wants something else than before.
    Intended,
    /// The repository wants what we last wrote; somebody else changed it.
    Drift,
}

pub struct FileWrite<'a> {
    pub spec: &'a FileSpec,
    pub change: FileChange,
    pub why: Why,
    pub origin: &'a Origin,
    /// What is there now, if it was read.
    pub before: Option<Vec<u8>>,
    /// A secret is in it, or was in what we last wrote there.
    pub secret: bool,
}

#[derive(Clone, Copy)]
pub enum UnitMove<'a> {
    Start(&'a UnitSpec),
    Stop(&'a UnitSpec),
    Restart(&'a UnitSpec),
    Reload(&'a UnitSpec),
    Enable(&'a UnitSpec),
    Disable(&'a UnitSpec),
    Mask(&'a UnitSpec),
    Unmask(&'a UnitSpec),
}

impl<'a> UnitMove<'a> {
    pub fn spec(&self) -> &'a UnitSpec {
        match self {
            Self::Start(s) | Self::Stop(s) | Self::Restart(s) | Self::Reload(s) => s,
            Self::Enable(s) | Self::Disable(s) | Self::Mask(s) | Self::Unmask(s) => s,
        }
    }

    pub fn verb(&self) -> &'static str {
        match self {
            Self::Start(_) => "start",
            Self::Stop(_) => "stop",
            Self::Restart(_) => "restart",
            Self::Reload(_) => "reload",
            Self::Enable(_) => "enable",
            Self::Disable(_) => "disable",
            Self::Mask(_) => "mask",
            Self::Unmask(_) => "unmask",
        }
    }
}

/// Whether the batch may go live only inside a hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum HoldNeed {
    #[default]
    None,
    /// The unit runs but never settled here: needed only if its gate says that it is healthy.
    RequiredIfHealthy,
    Required,
}

/// A resource that cannot be begun.
pub struct Blocked {
    pub id: Id,
    pub reason: Reason,
    /// In words.
    pub why: String,
}

/// A unit of the batch and the digests of what it must run with.
pub struct UnitPart<'a> {
    pub spec: &'a UnitSpec,
    pub restart: Digest,
    pub reload: Digest,
}

pub struct Batch<'a> {
    pub name: String,
    pub role: Option<RoleName>,
    pub phase: Phase,
    pub files: Vec<FileWrite<'a>>,
    pub packages: Vec<(&'a PackageSpec, String)>,
    pub artifacts: Vec<(&'a ArtifactSpec, String)>,
    pub actions: Vec<&'a ActionSpec>,
    pub moves: Vec<UnitMove<'a>>,
    pub units: BTreeMap<UnitName, UnitPart<'a>>,
    pub daemon_reload: bool,
    /// Files that left the repository.
    pub removals: Vec<HostPath>,
    /// Units that left the repository: stopped and disabled.
    pub retire: Vec<UnitName>,
    /// Owned ids that are gone already.
    pub forget: Vec<Id>,
    /// What cannot be done, and why: the batch fails without being begun.
    pub blocked: Vec<Blocked>,
    pub hold: HoldNeed,
    /// Groups that the hold must cover.
    pub groups: BTreeSet<GroupId>,
}

impl<'a> Batch<'a> {
    pub fn named(name: String, role: Option<RoleName>, phase: Phase) -> Self {
        Self {
            name,
            role,
            phase,
            files: Vec::new(),
            packages: Vec::new(),
            artifacts: Vec::new(),
            actions: Vec::new(),
            moves: Vec::new(),
            units: BTreeMap::new(),
            daemon_reload: false,
            removals: Vec::new(),
            retire: Vec::new(),
            forget: Vec::new(),
            blocked: Vec::new(),
            hold: HoldNeed::None,
            groups: BTreeSet::new(),
        }
    }

    /// Takes what is blocked into a batch of its own, which fails alone.
    pub fn without_blocked(&mut self) -> Option<Self> {
        let blocked = std::mem::take(&mut self.blocked);
        if blocked.is_empty() {
            return None;
        }
        Some(Self { blocked, ..Self::named(self.name.clone(), self.role.clone(), self.phase) })
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
            && self.packages.is_empty()
            && self.artifacts.is_empty()
            && self.actions.is_empty()
            && self.moves.is_empty()
            && self.removals.is_empty()
            && self.retire.is_empty()
            && self.forget.is_empty()
            && self.blocked.is_empty()
            && !self.daemon_reload
    }

    /// Whether it brings something that was not live before (drift repair does not).
    pub fn brings_news(&self) -> bool {
        self.files.iter().any(|file| file.why == Why::Intended)
            || !self.packages.is_empty()
            || !self.artifacts.is_empty()
            || !self.actions.is_empty()
    }

    pub fn drift(&self) -> usize {
        self.files.iter().filter(|file| file.why == Why::Drift).count()
    }
}
