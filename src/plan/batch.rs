//! A batch: what goes live together, and what it takes.
//!
//! PURE. Never: decides anything; `plan` fills it, `apply` walks it.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::MemberChange;
use crate::name::{ClusterName, GroupId, HostPath, RoleName, UnitName};
use crate::plan::membership::Moment;
use crate::plan::risk::Area;
use crate::reason::Reason;
use crate::resource::file::{FileChange, Previous};
use crate::resource::{
    ActionSpec, Activation, ArtifactSpec, Digest, FileSpec, Found, Id, Origin, PackageSpec, UnitSpec,
};

/// The order of batches on a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// sysusers.d: files of the other batches belong to these users.
    Users,
    /// Mounts, automounts and swaps: files of the other batches lie below them.
    Mounts,
    /// What belongs to no unit.
    Role,
    /// A unit and its inputs.
    Unit,
    /// An action of a whole cluster: its members run by now.
    Cluster,
    Removal,
    /// Units that an earlier run took down along with others and did not start again.
    Again,
    /// When all else is done.
    Reboot,
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
    pub before: Option<Found>,
    pub previous: Previous,
}

impl FileWrite<'_> {
    /// A secret is in it, or was in what we last wrote there.
    pub fn is_secret(&self) -> bool {
        self.previous != Previous::Kept
    }
}

/// An artifact that is not live as it is wanted.
pub struct Unpacking<'a> {
    pub spec: &'a ArtifactSpec,
    /// In words: `kafka 3.9.0 -> 3.9.1`.
    pub what: String,
    pub why: Why,
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
    /// All packages of its resources, also those that are as they must be.
    pub listed: Vec<&'a PackageSpec>,
    pub artifacts: Vec<Unpacking<'a>>,
    /// Directories of artifacts that left the repository.
    pub discards: Vec<HostPath>,
    pub actions: Vec<&'a ActionSpec>,
    /// Actions with `on` that are needed.
    pub membership: Vec<(Moment, &'a ActionSpec)>,
    /// What comes of it for its groups.
    pub change: MemberChange,
    /// Files that their owners' tools must act on: those that change, and those that were not acted on yet.
    pub activations: Vec<(Activation, &'a FileSpec)>,
    pub moves: Vec<UnitMove<'a>>,
    pub units: BTreeMap<UnitName, UnitPart<'a>>,
    pub daemon_reload: bool,
    /// Files that left the repository.
    pub removals: Vec<(HostPath, Previous)>,
    /// Packages that left the repository and that we installed.
    pub uninstall: Vec<&'a str>,
    /// Units that left the repository: stopped and disabled.
    pub retire: Vec<UnitName>,
    /// Units that systemd stops along with what this batch restarts: started again after it.
    pub again: Vec<UnitName>,
    /// Owned ids that are gone already.
    pub forget: Vec<Id>,
    /// What cannot be done, and why: the batch fails without being begun.
    pub blocked: Vec<Blocked>,
    /// Secrets are in what its role writes: what programs say when something fails stays on the node.
    pub secrets_near: bool,
    pub hold: HoldNeed,
    /// Its action is run by one member of this cluster.
    pub elects: Option<ClusterName>,
    /// Groups that the hold must cover.
    pub groups: BTreeSet<GroupId>,
    /// Not empty: it can take the whole node away, and is put back unless the node still reaches what it reached before.
    pub risk: BTreeSet<Area>,
    /// Not empty: the machine reboots, for these resources.
    pub reboot: Vec<String>,
}

impl<'a> Batch<'a> {
    pub fn named(name: String, role: Option<RoleName>, phase: Phase) -> Self {
        Self {
            name,
            role,
            phase,
            files: Vec::new(),
            packages: Vec::new(),
            listed: Vec::new(),
            artifacts: Vec::new(),
            discards: Vec::new(),
            actions: Vec::new(),
            membership: Vec::new(),
            change: MemberChange::None,
            activations: Vec::new(),
            moves: Vec::new(),
            units: BTreeMap::new(),
            daemon_reload: false,
            removals: Vec::new(),
            uninstall: Vec::new(),
            retire: Vec::new(),
            again: Vec::new(),
            forget: Vec::new(),
            blocked: Vec::new(),
            secrets_near: false,
            hold: HoldNeed::None,
            elects: None,
            groups: BTreeSet::new(),
            risk: BTreeSet::new(),
            reboot: Vec::new(),
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

    /// Takes another batch in: both go live together, this one's units first.
    pub fn absorb(&mut self, other: Self) {
        self.name = format!("{}, {}", self.name, other.name);
        self.phase = self.phase.max(other.phase);
        self.files.extend(other.files);
        self.packages.extend(other.packages);
        self.listed.extend(other.listed);
        self.uninstall.extend(other.uninstall);
        self.discards.extend(other.discards);
        self.artifacts.extend(other.artifacts);
        self.actions.extend(other.actions);
        self.membership.extend(other.membership);
        if self.change.is_none() {
            self.change = other.change;
        }
        self.activations.extend(other.activations);
        self.moves.extend(other.moves);
        self.units.extend(other.units);
        self.daemon_reload |= other.daemon_reload;
        self.removals.extend(other.removals);
        self.retire.extend(other.retire);
        self.again.extend(other.again);
        self.forget.extend(other.forget);
        self.blocked.extend(other.blocked);
        self.secrets_near |= other.secrets_near;
        self.hold = self.hold.max(other.hold);
        self.groups.extend(other.groups);
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
            && self.packages.is_empty()
            && self.artifacts.is_empty()
            && self.discards.is_empty()
            && self.actions.is_empty()
            && self.membership.is_empty()
            && self.activations.is_empty()
            && self.moves.is_empty()
            && self.removals.is_empty()
            && self.uninstall.is_empty()
            && self.retire.is_empty()
            && self.again.is_empty()
            && self.forget.is_empty()
            && self.blocked.is_empty()
            && self.reboot.is_empty()
            && !self.daemon_reload
    }

    /// Whether all units of the node are away, or may be.
    pub fn takes_node(&self) -> bool {
        !self.risk.is_empty() || !self.reboot.is_empty()
    }

    /// Whether it brings something that was not live before (drift repair does not).
    pub fn brings_news(&self) -> bool {
        self.files.iter().any(|file| file.why == Why::Intended)
            || !self.packages.is_empty()
            || self.artifacts.iter().any(|artifact| artifact.why == Why::Intended)
            || !self.actions.is_empty()
    }

    /// Whether something of it lies below this directory.
    pub fn writes_below(&self, directory: &str) -> bool {
        let files = self.files.iter().map(|file| file.spec.path.as_str());
        let mut paths = files.chain(self.artifacts.iter().map(|artifact| artifact.spec.into.as_str()));
        paths.any(|path| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Files that are as they must be, and that their tools have not acted on yet.
    pub fn not_acted_on(&self) -> impl Iterator<Item = &(Activation, &'a FileSpec)> {
        let written = |path: &HostPath| self.files.iter().any(|file| file.spec.path == *path);
        self.activations.iter().filter(move |(_, spec)| !written(&spec.path))
    }

    /// Files, and directories of artifacts, that somebody else changed.
    pub fn drifted(&self) -> impl Iterator<Item = &HostPath> {
        let files = self.files.iter().filter(|file| file.why == Why::Drift).map(|file| &file.spec.path);
        let artifacts = self.artifacts.iter().filter(|artifact| artifact.why == Why::Drift);
        files.chain(artifacts.map(|artifact| &artifact.spec.into))
    }

    /// Leaves these out, unless something starts or changes that reads them. Returns what was left out.
    pub fn rest(&mut self, resting: &BTreeSet<HostPath>) -> Vec<FileWrite<'a>> {
        if self.brings_news() || !self.moves.is_empty() {
            return Vec::new();
        }
        let rests = |file: &mut FileWrite<'_>| file.why == Why::Drift && resting.contains(&file.spec.path);
        self.files.extract_if(.., rests).collect()
    }
}
