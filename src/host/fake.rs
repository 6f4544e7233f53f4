//! A host in memory, for tests of what acts on one: remembers its steps, and fails where it is told to.
//!
//! Never: touches a disk or waits.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::{Done, Host, HostError, Observed, Query, Step};
use crate::name::{HostPath, UnitName};
use crate::plan::stopset::StopSet;
use crate::resource::action::ActionState;
use crate::resource::artifact::ArtifactState;
use crate::resource::file::{Regular, Stamp};
use crate::resource::package::PackageState;
use crate::resource::unit::{Active, Relations};
use crate::resource::{Digest, FileSpec, FileState, Found, UnitState};

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
    /// What each unit stops with it, and what it is stopped by; whether it runs is told by its state.
    pub relations: BTreeMap<UnitName, Relations>,
    pub packages: BTreeMap<String, String>,
    pub held: BTreeSet<String>,
    /// Version and digest.
    pub artifacts: BTreeMap<HostPath, (String, String)>,
    pub actions_done: BTreeMap<String, bool>,
    /// Counts boots.
    pub boots: u64,
    /// Every step that was asked for, one line each: `start kafka.service`, `stage /etc/a /etc/b`.
    pub log: Vec<String>,
    /// Steps whose line starts with this fail, each entry once.
    pub fail: Vec<String>,
    staged: BTreeMap<HostPath, FakeFile>,
    unpacked: BTreeSet<(HostPath, String)>,
    /// What a batch that is not confirmed replaced.
    pub armed: Option<Vec<(HostPath, Option<FakeFile>)>>,
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

    fn relations(&self) -> BTreeMap<UnitName, Relations> {
        let seen = |(unit, state): (&UnitName, &UnitState)| {
            let relations = self.relations.get(unit).cloned().unwrap_or_default();
            (unit.clone(), Relations { running: state.is_running(), ..relations })
        };
        self.units.iter().map(seen).collect()
    }

    fn unit(&mut self, unit: &UnitName) -> &mut UnitState {
        self.units.entry(unit.clone()).or_insert_with(|| UnitState { loaded: true, ..UnitState::missing() })
    }

    fn perform(&mut self, step: &Step<'_>) -> Result<Done, HostError> {
        let mut done = Done::default();
        match *step {
            Step::Stage(ref specs, _) => {
                let staged = specs.iter().map(|(spec, _)| Ok((spec.path.clone(), self.candidate(spec)?)));
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
            Step::Sync(_) => {}
            Step::SetAttributes(spec) => {
                let file = self.candidate(spec)?;
                done.stamps = vec![(spec.path.clone(), Self::stamp(&file), Digest::of(&file.bytes))];
                self.files.insert(spec.path.clone(), file);
            }
            Step::Remove(path, _) => drop(self.files.remove(path)),
            Step::Verify(..) | Step::Activate(..) | Step::Run { .. } => {}
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
            Step::Stop { unit, .. } => {
                let along = StopSet::of(&[], &[unit], &[], &BTreeSet::new(), &self.relations());
                for unit in along.all().chain([unit]) {
                    self.unit(unit).active = Active::Inactive;
                }
            }
            Step::Reload { unit, .. } => drop(self.unit(unit)),
            Step::Install(ref order) => {
                for spec in order.wanted {
                    self.packages.insert(spec.name.clone(), spec.version.clone());
                    self.held.remove(&spec.name);
                    self.held.extend(spec.hold.then(|| spec.name.clone()));
                }
            }
            Step::Uninstall(names, _) => self.packages.retain(|name, _| !names.contains(&name.as_str())),
            Step::Unpack(spec) => drop(self.unpacked.insert((spec.into.clone(), spec.version.clone()))),
            Step::Switch(spec) => {
                if !self.unpacked.contains(&(spec.into.clone(), spec.version.clone())) {
                    let what = format!("{} {} is not unpacked", spec.component, spec.version);
                    return Err(HostError::Blocked { path: spec.into.to_string(), what });
                }
                drop(self.artifacts.insert(spec.into.clone(), (spec.version.clone(), spec.sha256.clone())));
            }
            Step::Discard(into) => drop(self.artifacts.remove(into)),
            Step::Act(spec, _) => drop(self.actions_done.insert(spec.name.clone(), true)),
            Step::Reboot => {
                self.boots += 1;
                for state in self.units.values_mut().filter(|state| state.is_running()) {
                    self.starts += 1;
                    state.invocation = format!("{:032x}", self.starts);
                }
            }
            Step::Arm(undo, _) => {
                let was = undo.files.iter().map(|(path, _)| (path.clone(), self.files.get(path).cloned()));
                self.armed = Some(was.collect());
            }
            Step::Confirm => {
                let gone = || HostError::Blocked { path: "journal".to_owned(), what: "it was put back".to_owned() };
                self.armed.take().ok_or_else(gone)?;
            }
            Step::Noted => {}
            Step::RollBack(_) => {
                for (path, was) in self.armed.take().unwrap_or_default() {
                    match was {
                        Some(file) => drop(self.files.insert(path, file)),
                        None => drop(self.files.remove(&path)),
                    }
                }
            }
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
                    bytes: shown.then(|| Found::new(file.bytes.clone().into())),
                })
            }
        };
        let unit = |unit: &UnitName| world.units.get(unit).cloned().unwrap_or_else(UnitState::missing);
        let package = |name: &str| match world.packages.get(name) {
            Some(version) => PackageState::Installed { version: version.clone(), held: world.held.contains(name) },
            None => PackageState::Absent,
        };
        let artifact = |into: &HostPath| match world.artifacts.get(into) {
            Some((version, sha256)) => ArtifactState::Current { version: version.clone(), sha256: sha256.clone() },
            None => ArtifactState::Absent,
        };
        let action = |name: &str| match world.actions_done.get(name) {
            Some(true) => ActionState::Done,
            _ => ActionState::Needed,
        };
        Ok(Observed {
            files: query.files.iter().map(|query| (query.path.clone(), file(query))).collect(),
            units: query.units.iter().map(|name| ((*name).clone(), unit(name))).collect(),
            relations: if query.stop_sets { world.relations() } else { BTreeMap::new() },
            packages: query.packages.iter().map(|name| ((*name).to_owned(), package(name))).collect(),
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
        Step::Stage(specs, _) => {
            specs.iter().fold("stage".to_owned(), |line, (spec, _)| format!("{line} {}", spec.path))
        }
        Step::Swap => "swap".to_owned(),
        Step::Unstage => "unstage".to_owned(),
        Step::Sync(paths) => format!("sync {}", paths.iter().map(|path| path.as_str()).collect::<Vec<_>>().join(" ")),
        Step::SetAttributes(spec) => format!("attributes {}", spec.path),
        Step::Remove(path, _) => format!("remove {path}"),
        Step::Verify(specs, ..) => specs.iter().fold("verify".to_owned(), |line, spec| format!("{line} {}", spec.path)),
        Step::Activate(what, spec, _) => format!("{} {}", what.tool(), spec.path),
        Step::DaemonReload => "daemon-reload".to_owned(),
        Step::Enable(unit) => format!("enable {unit}"),
        Step::Disable(unit) => format!("disable {unit}"),
        Step::Mask(unit) => format!("mask {unit}"),
        Step::Unmask(unit) => format!("unmask {unit}"),
        Step::Start { unit, .. } => format!("start {unit}"),
        Step::Stop { unit, .. } => format!("stop {unit}"),
        Step::Reload { unit, .. } => format!("reload {unit}"),
        Step::Install(order) => {
            order.wanted.iter().fold("install".to_owned(), |line, spec| format!("{line} {}", spec.name))
        }
        Step::Uninstall(names, _) => format!("uninstall {}", names.join(" ")),
        Step::Unpack(spec) => format!("unpack {} {}", spec.component, spec.version),
        Step::Switch(spec) => format!("switch {} {}", spec.component, spec.version),
        Step::Discard(into) => format!("discard {into}"),
        Step::Run { argv, .. } => format!("run {}", argv.join(" ")),
        Step::Act(spec, _) => format!("act {}", spec.name),
        Step::Arm(undo, _) => undo.files.iter().fold("arm".to_owned(), |line, (path, _)| format!("{line} {path}")),
        Step::Reboot => "reboot".to_owned(),
        Step::Confirm => "confirm".to_owned(),
        Step::Noted => "noted".to_owned(),
        Step::RollBack(why) => format!("roll-back {why}"),
    }
}
