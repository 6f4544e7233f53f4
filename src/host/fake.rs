//! A host in memory, for tests of what acts on one: remembers its steps, and fails where it is told to.
//!
//! Never: touches a disk or waits.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::{Done, Host, HostError, Observed, Query, Step};
use crate::name::{HostPath, UnitName};
use crate::resource::action::ActionState;
use crate::resource::artifact::ArtifactState;
use crate::resource::file::{Regular, Stamp};
use crate::resource::package::PackageState;
use crate::resource::unit::Active;
use crate::resource::{Digest, FileSpec, FileState, UnitState};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FakeFile {
    pub bytes: Vec<u8>,
    pub owner: String,
    pub group: String,
    pub mode: u32,
    /// Counts writes; stands for inode and times.
    pub version: u64,
}

/// What the host has. Tests read and change it between steps, as the world does.
#[derive(Default)]
pub struct World {
    pub files: BTreeMap<HostPath, FakeFile>,
    /// In the way: what is there instead of a file.
    pub others: BTreeMap<HostPath, &'static str>,
    pub units: BTreeMap<UnitName, UnitState>,
    pub packages: BTreeMap<String, String>,
    pub artifacts: BTreeMap<HostPath, String>,
    pub actions_done: BTreeMap<String, bool>,
    /// Counts boots.
    pub boots: u64,
    /// Every step that was asked for, one line each: `start kafka.service`, `stage /etc/a /etc/b`.
    pub log: Vec<String>,
    /// Steps whose line starts with this fail, each entry once.
    pub fail: Vec<String>,
    staged: BTreeMap<HostPath, FakeFile>,
    writes: u64,
    starts: u64,
}

#[derive(Default)]
pub struct FakeHost {
    pub world: RefCell<World>,
}

impl World {
    /// A file that somebody else wrote.
    pub fn put(&mut self, path: &str, bytes: &str) {
        self.writes += 1;
        let version = self.writes;
        let root = || "root".to_owned();
        let file = FakeFile { bytes: bytes.into(), owner: root(), group: root(), mode: 0o644, version };
        self.files.insert(path.into(), file);
    }

    fn stamp(file: &FakeFile) -> Stamp {
        let version = file.version;
        Stamp {
            device: 1,
            inode: version,
            size: file.bytes.len() as u64,
            mtime_ns: version.into(),
            ctime_ns: version.into(),
            mode: 0o100_000 | file.mode,
            uid: 0,
            gid: 0,
        }
    }

    fn candidate(&mut self, spec: &FileSpec) -> Result<FakeFile, HostError> {
        let blocked = |what: &str| HostError::Blocked { path: spec.path.to_string(), what: what.to_owned() };
        if let Some(what) = self.others.get(&spec.path) {
            return Err(blocked(&format!("it is a {what}")));
        }
        let bytes = spec.content.bytes().ok_or_else(|| blocked("a secret in it cannot be opened on this node"))?;
        self.writes += 1;
        Ok(FakeFile {
            bytes: bytes.to_vec(),
            owner: spec.owner.clone(),
            group: spec.group.clone(),
            mode: spec.mode,
            version: self.writes,
        })
    }

    fn unit(&mut self, unit: &UnitName) -> &mut UnitState {
        self.units.entry(unit.clone()).or_insert_with(|| UnitState { loaded: true, ..UnitState::missing() })
    }

    fn perform(&mut self, step: &Step<'_>) -> Result<Done, HostError> {
        let mut done = Done::default();
        match *step {
            Step::Stage(ref specs) => {
                let staged = specs.iter().map(|spec| Ok((spec.path.clone(), self.candidate(spec)?)));
                self.staged = staged.collect::<Result<_, HostError>>()?;
            }
            Step::Swap => {
                let staged = std::mem::take(&mut self.staged);
                let live =
                    |(path, file): (&HostPath, &FakeFile)| (path.clone(), Self::stamp(file), Digest::of(&file.bytes));
                done.stamps = staged.iter().map(live).collect();
                self.files.extend(staged);
            }
            Step::Unstage => self.staged.clear(),
            Step::SetAttributes(spec) => {
                let file = self.candidate(spec)?;
                done.stamps = vec![(spec.path.clone(), Self::stamp(&file), Digest::of(&file.bytes))];
                self.files.insert(spec.path.clone(), file);
            }
            Step::Remove(path) => drop(self.files.remove(path)),
            Step::Activate(_) | Step::Run { .. } => {}
            Step::DaemonReload => self.units.values_mut().for_each(|unit| unit.needs_daemon_reload = false),
            Step::Enable(unit) => self.unit(unit).enabled = true,
            Step::Disable(unit) => self.unit(unit).enabled = false,
            Step::Mask(unit) => self.unit(unit).masked = true,
            Step::Unmask(unit) => self.unit(unit).masked = false,
            Step::Start { unit, .. } => {
                self.starts += 1;
                let invocation = format!("{:032x}", self.starts);
                let state = self.unit(unit);
                if !state.is_running() {
                    state.active = Active::Active;
                    state.invocation = invocation;
                }
            }
            Step::Stop { unit, .. } => self.unit(unit).active = Active::Inactive,
            Step::Reload { unit, .. } => drop(self.unit(unit)),
            Step::Install(spec) => drop(self.packages.insert(spec.name.clone(), spec.version.clone())),
            Step::Unpack(spec) => drop(self.artifacts.insert(spec.into.clone(), spec.version.clone())),
            Step::Act(spec) => drop(self.actions_done.insert(spec.name.clone(), true)),
        }
        Ok(done)
    }
}

impl Host for FakeHost {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        let world = self.world.borrow();
        let file = |query: &super::FileQuery<'_>| match (world.others.get(query.path), world.files.get(query.path)) {
            (Some(what), _) => FileState::Other(what),
            (None, None) => FileState::Absent,
            (None, Some(file)) => {
                let digest = Digest::of(&file.bytes);
                let shown = query.bytes_unless.is_some_and(|unwanted| unwanted != digest);
                FileState::Regular(Regular {
                    digest,
                    mode: file.mode,
                    owner: file.owner.clone(),
                    group: file.group.clone(),
                    stamp: World::stamp(file),
                    bytes: shown.then(|| file.bytes.clone()),
                })
            }
        };
        let unit = |unit: &UnitName| world.units.get(unit).cloned().unwrap_or_else(UnitState::missing);
        let package = |name: &str| match world.packages.get(name) {
            Some(version) => PackageState::Installed { version: version.clone() },
            None => PackageState::Absent,
        };
        let artifact = |into: &HostPath| match world.artifacts.get(into) {
            Some(version) => ArtifactState::Current { version: version.clone() },
            None => ArtifactState::Absent,
        };
        let action = |name: &str| match world.actions_done.get(name) {
            Some(true) => ActionState::Done,
            _ => ActionState::Needed,
        };
        Ok(Observed {
            files: query.files.iter().map(|query| (query.path.clone(), file(query))).collect(),
            units: query.units.iter().map(|name| ((*name).clone(), unit(name))).collect(),
            packages: query.packages.iter().map(|spec| (spec.name.clone(), package(&spec.name))).collect(),
            artifacts: query.artifacts.iter().map(|spec| (spec.into.clone(), artifact(&spec.into))).collect(),
            actions: query.actions.iter().map(|spec| (spec.name.clone(), action(&spec.name))).collect(),
            boot_id: format!("boot-{}", world.boots),
            owners: true,
        })
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let mut world = self.world.borrow_mut();
        let line = line(step);
        world.log.push(line.clone());
        if let Some(at) = world.fail.iter().position(|start| line.starts_with(start.as_str())) {
            world.fail.remove(at);
            return Err(HostError::Command { command: line, why: "the test wants it to fail".to_owned() });
        }
        world.perform(step)
    }
}

fn line(step: &Step<'_>) -> String {
    match step {
        Step::Stage(specs) => specs.iter().fold("stage".to_owned(), |line, spec| format!("{line} {}", spec.path)),
        Step::Swap => "swap".to_owned(),
        Step::Unstage => "unstage".to_owned(),
        Step::SetAttributes(spec) => format!("attributes {}", spec.path),
        Step::Remove(path) => format!("remove {path}"),
        Step::Activate(what) => format!("activate {what:?}").to_lowercase(),
        Step::DaemonReload => "daemon-reload".to_owned(),
        Step::Enable(unit) => format!("enable {unit}"),
        Step::Disable(unit) => format!("disable {unit}"),
        Step::Mask(unit) => format!("mask {unit}"),
        Step::Unmask(unit) => format!("unmask {unit}"),
        Step::Start { unit, .. } => format!("start {unit}"),
        Step::Stop { unit, .. } => format!("stop {unit}"),
        Step::Reload { unit, .. } => format!("reload {unit}"),
        Step::Install(spec) => format!("install {}", spec.name),
        Step::Unpack(spec) => format!("unpack {} {}", spec.component, spec.version),
        Step::Run { argv, .. } => format!("run {}", argv.join(" ")),
        Step::Act(spec) => format!("act {}", spec.name),
    }
}
