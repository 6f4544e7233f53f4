//! Stands in for systemd, packages, artifacts and commands below a sandbox root: remembers, and takes its time.
//!
//! `<root>/run/converger/units.json` is what its "machine" runs, for the probes of other nodes' processes too;
//! `units.log` there has every event as a line of JSON; `units.fail` there names units that shall fail, one a line:
//! `kafka.service start` or `kafka.service gate`. Never: runs a program, or touches anything outside its root.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::root::{Directory, Root, file, replace};
use super::{HostError, Step, artifacts};
use crate::clock::Clock;
use crate::name::UnitName;
use crate::resource::action::ActionState;
use crate::resource::package::PackageState;
use crate::resource::unit::Active;
use crate::resource::{ActionSpec, Digest, UnitState};

const RUN: &str = "/run/converger";
/// Where a unit of ours has its file.
const UNIT_FILES: &str = "/etc/systemd/system";

/// One unit of a sandbox.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnitRecord {
    pub state: Active,
    /// Wall time of the last change of state.
    pub since: Timestamp,
    /// Awake time of the machine when it last started.
    pub started_ms: u64,
    /// Empty: never started.
    pub invocation: String,
    pub enabled: bool,
    pub masked: bool,
    pub starts: u64,
    pub last_stop_ms: u64,
    pub last_start_ms: u64,
    /// The unit's files as of the last daemon-reload; `None`: it never had one here, so it is a vendor's.
    pub definition: Option<Digest>,
}

/// What the sandbox has besides units.
#[derive(Default, Serialize, Deserialize)]
struct Recorded {
    packages: BTreeMap<String, String>,
    #[serde(default)]
    held: BTreeSet<String>,
    actions: BTreeSet<String>,
    #[serde(default)]
    reboots: u64,
}

#[derive(Serialize)]
struct Event<'a> {
    at: Timestamp,
    awake_ms: u64,
    unit: &'a str,
    event: &'a str,
}

pub struct Recorder {
    root: Root,
    stop_takes: Duration,
    start_takes: Duration,
}

type Units = BTreeMap<UnitName, UnitRecord>;

/// What the sandbox at `root` runs as `unit`; `None`: it never had one.
pub fn peer_state(root: &Path, unit: &UnitName) -> Option<UnitRecord> {
    let text = std::fs::read(root.join("run/converger/units.json")).ok()?;
    serde_json::from_slice::<Units>(&text).ok()?.remove(unit)
}

/// Whether `units.fail` of the sandbox at `root` wants the unit's gate to be unhealthy.
pub fn gate_fails(root: &Path, unit: &UnitName) -> bool {
    let text = std::fs::read_to_string(root.join("run/converger/units.fail")).unwrap_or_default();
    wants_failure(&text, unit, "gate")
}

fn wants_failure(text: &str, unit: &UnitName, of: &str) -> bool {
    text.lines().any(|line| line.split_whitespace().eq([unit.as_str(), of]))
}

impl Recorder {
    pub fn new(root: &Path) -> Result<Self, HostError> {
        Self::paced(root, Duration::from_millis(50), Duration::from_millis(100))
    }

    /// With stops and starts that take as long as this.
    pub fn paced(root: &Path, stop_takes: Duration, start_takes: Duration) -> Result<Self, HostError> {
        Ok(Self { root: Root::open(root)?, stop_takes, start_takes })
    }

    pub fn observe(&self, units: &[&UnitName]) -> Result<BTreeMap<UnitName, UnitState>, HostError> {
        let known = self.units()?;
        let state = |unit: &&UnitName| Ok(((*unit).clone(), self.state(unit, known.get(*unit))?));
        units.iter().map(state).collect()
    }

    fn state(&self, unit: &UnitName, record: Option<&UnitRecord>) -> Result<UnitState, HostError> {
        let definition = self.definition(unit)?;
        let Some(record) = record else { return Ok(UnitState { loaded: true, ..UnitState::missing() }) };
        Ok(UnitState {
            // One that had a file of ours and has none any more is gone; a vendor's has no file in a sandbox.
            loaded: definition.is_some() || record.definition.is_none(),
            active: record.state,
            enabled: record.enabled,
            masked: record.masked,
            invocation: record.invocation.clone(),
            needs_daemon_reload: definition != record.definition,
            drop_ins: Vec::new(),
        })
    }

    pub fn packages(&self, names: &[&str]) -> Result<BTreeMap<String, PackageState>, HostError> {
        let recorded = self.recorded()?;
        let state = |name: &str| match recorded.packages.get(name) {
            Some(version) => PackageState::Installed { version: version.clone(), held: recorded.held.contains(name) },
            None => PackageState::Absent,
        };
        Ok(names.iter().map(|name| ((*name).to_owned(), state(name))).collect())
    }

    /// Of an action without `creates`.
    pub fn action(&self, spec: &ActionSpec) -> ActionState {
        match self.recorded() {
            Ok(recorded) if recorded.actions.contains(&spec.name) => ActionState::Done,
            Ok(_) => ActionState::Needed,
            Err(error) => ActionState::Unknown(error.to_string()),
        }
    }

    /// Everything but files. Says what was left out.
    pub fn perform(&self, step: &Step<'_>, clock: &dyn Clock) -> Result<Option<String>, HostError> {
        match *step {
            Step::Start { unit, .. } => self.start(unit, clock)?,
            Step::Stop { unit, .. } => self.stop(unit, clock)?,
            Step::Reload { unit, .. } => self.reload(unit, clock)?,
            Step::Enable(unit) => self.change(unit, clock, "enabled", |record| record.enabled = true)?,
            Step::Disable(unit) => self.change(unit, clock, "disabled", |record| record.enabled = false)?,
            Step::Mask(unit) => self.change(unit, clock, "masked", |record| record.masked = true)?,
            Step::Unmask(unit) => self.change(unit, clock, "unmasked", |record| record.masked = false)?,
            Step::DaemonReload => self.daemon_reload(clock)?,
            Step::Install(ref order) => {
                let mut recorded = self.recorded()?;
                for spec in order.wanted {
                    recorded.packages.insert(spec.name.clone(), spec.version.clone());
                    match spec.hold {
                        true => drop(recorded.held.insert(spec.name.clone())),
                        false => drop(recorded.held.remove(&spec.name)),
                    }
                }
                self.write("recorded.json", &recorded)?;
            }
            Step::Uninstall(names, _) => {
                let mut recorded = self.recorded()?;
                recorded.packages.retain(|name, _| !names.contains(&name.as_str()));
                recorded.held.retain(|name| !names.contains(&name.as_str()));
                self.write("recorded.json", &recorded)?;
            }
            Step::Unpack(spec) => artifacts::stand_in(&self.root, spec)?,
            Step::Switch(spec) => artifacts::switch(&self.root, spec)?,
            Step::Discard(into) => artifacts::discard(&self.root, into.as_str())?,
            Step::Act(spec, _) => {
                match &spec.creates {
                    Some(path) => self.create(path)?,
                    None => {
                        let mut recorded = self.recorded()?;
                        recorded.actions.insert(spec.name.clone());
                        self.write("recorded.json", &recorded)?;
                    }
                }
                return Ok(Some(format!("action {}: `{}` is not run in a sandbox", spec.name, spec.run.join(" "))));
            }
            Step::Run { argv, .. } => return Ok(Some(format!("`{}` is not run in a sandbox", argv.join(" ")))),
            Step::Activate(what, spec, _) => {
                return Ok(Some(format!("{}: {} is not run in a sandbox", spec.path, what.tool())));
            }
            Step::Verify(..)
            | Step::Stage(..)
            | Step::Swap
            | Step::Unstage
            | Step::Sync(_)
            | Step::SetAttributes(_)
            | Step::Remove(..) => {}
            Step::Arm(..) | Step::Confirm | Step::RollBack(_) | Step::Noted => {}
            Step::Reboot => self.reboot(clock)?,
        }
        Ok(None)
    }

    /// The machine's own, and how often the sandbox rebooted since.
    pub fn boot_id(&self, machine: String) -> Result<String, HostError> {
        Ok(match self.recorded()?.reboots {
            0 => machine,
            reboots => format!("{machine}-{reboots}"),
        })
    }

    /// All units stop; those that are enabled start.
    fn reboot(&self, clock: &dyn Clock) -> Result<(), HostError> {
        let mut recorded = self.recorded()?;
        recorded.reboots += 1;
        self.write("recorded.json", &recorded)?;
        self.log("", "reboot", clock)?;
        let units = self.units()?;
        for unit in units.keys() {
            self.stop(unit, clock)?;
        }
        for unit in units.iter().filter(|(_, record)| record.enabled).map(|(unit, _)| unit) {
            // As on a machine: one that does not start is one that is down.
            let _ = self.start(unit, clock);
        }
        Ok(())
    }

    fn start(&self, unit: &UnitName, clock: &dyn Clock) -> Result<(), HostError> {
        let failed = |why: &str| HostError::Unit { operation: "start", unit: unit.to_string(), why: why.to_owned() };
        let record = self.units()?.remove(unit);
        let state = self.state(unit, record.as_ref())?;
        if !state.loaded {
            return Err(failed("there is no such unit"));
        }
        if state.masked {
            return Err(failed("it is masked"));
        }
        if state.is_running() {
            return Ok(());
        }
        let began = clock.awake();
        self.change(unit, clock, "starting", |record| record.state = Active::Activating)?;
        pause(self.start_takes);
        if wants_failure(&self.read("units.fail")?, unit, "start") {
            self.change(unit, clock, "failed", |record| record.state = Active::Failed)?;
            return Err(failed("units.fail says that it fails"));
        }
        let took = millis(clock.awake().saturating_sub(began));
        let definition = self.definition(unit)?;
        let started = self.change(unit, clock, "started", |record| {
            let parts = [unit.as_str().to_owned(), record.starts.to_string(), began.as_nanos().to_string()];
            let invocation = Digest::of_parts(parts.iter().map(String::as_bytes)).to_string();
            record.invocation = invocation[..32].to_owned();
            record.state = Active::Active;
            record.starts += 1;
            record.started_ms = millis(clock.awake());
            record.last_start_ms = took;
            record.definition = record.definition.or(definition);
        });
        // What cannot be noted did not happen: it must not look as if it were still starting.
        started.inspect_err(|_| drop(self.change(unit, clock, "failed", |record| record.state = Active::Failed)))
    }

    fn stop(&self, unit: &UnitName, clock: &dyn Clock) -> Result<(), HostError> {
        if !self.units()?.get(unit).is_some_and(|record| record.state != Active::Inactive) {
            return Ok(());
        }
        let began = clock.awake();
        self.change(unit, clock, "stopping", |record| record.state = Active::Deactivating)?;
        pause(self.stop_takes);
        let took = millis(clock.awake().saturating_sub(began));
        self.change(unit, clock, "stopped", |record| {
            record.state = Active::Inactive;
            record.last_stop_ms = took;
        })
    }

    fn reload(&self, unit: &UnitName, clock: &dyn Clock) -> Result<(), HostError> {
        if !self.units()?.get(unit).is_some_and(|record| record.state == Active::Active) {
            let why = "it is not running".to_owned();
            return Err(HostError::Unit { operation: "reload", unit: unit.to_string(), why });
        }
        self.change(unit, clock, "reloaded", |_| {})
    }

    fn daemon_reload(&self, clock: &dyn Clock) -> Result<(), HostError> {
        let mut units = self.units()?;
        for (unit, record) in &mut units {
            // A vendor's unit stays one until it gets a file; one that had a file is remembered by its last.
            record.definition = self.definition(unit)?.or(record.definition);
        }
        self.write("units.json", &units)?;
        self.log("", "daemon-reload", clock)
    }

    fn change(
        &self,
        unit: &UnitName,
        clock: &dyn Clock,
        event: &str,
        change: impl FnOnce(&mut UnitRecord),
    ) -> Result<(), HostError> {
        let mut units = self.units()?;
        let definition = self.definition(unit)?;
        let record = units.entry(unit.clone()).or_insert_with(|| UnitRecord {
            state: Active::Inactive,
            since: clock.now(),
            started_ms: 0,
            invocation: String::new(),
            enabled: false,
            masked: false,
            starts: 0,
            last_stop_ms: 0,
            last_start_ms: 0,
            definition,
        });
        let before = record.state;
        change(record);
        if record.state != before {
            record.since = clock.now();
        }
        // The log first: who reads it never takes a member for up that has begun to stop.
        self.log(unit.as_str(), event, clock)?;
        self.write("units.json", &units)
    }

    /// A digest of the unit's file and drop-ins; `None`: it has none here.
    fn definition(&self, unit: &UnitName) -> Result<Option<Digest>, HostError> {
        let template = unit.as_str().split_once('@').and_then(|(stem, rest)| Some((stem, rest.rsplit_once('.')?.1)));
        let template = template.map(|(stem, suffix)| format!("{stem}@.{suffix}"));
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for name in [Some(unit.as_str().to_owned()), template].into_iter().flatten() {
            let files = self.root.outside(UNIT_FILES);
            parts.extend(std::fs::read(files.join(&name)).ok());
            let mut dropins: Vec<_> = match std::fs::read_dir(files.join(format!("{name}.d"))) {
                Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
                Err(_) => Vec::new(),
            };
            dropins.sort_unstable();
            parts.extend(dropins.iter().filter_map(|path| std::fs::read(path).ok()));
        }
        Ok((!parts.is_empty()).then(|| Digest::of_parts(parts.iter().map(Vec::as_slice))))
    }

    fn create(&self, path: &str) -> Result<(), HostError> {
        let (parent, name) = super::root::split(path)?;
        let (home, _) = self.root.make_directory(parent)?;
        replace(&home.fd, name, b"", Mode::from_raw_mode(0o644), path)
    }

    fn log(&self, unit: &str, event: &str, clock: &dyn Clock) -> Result<(), HostError> {
        let event = Event { at: clock.now(), awake_ms: millis(clock.awake()), unit, event };
        let mut line = serde_json::to_vec(&event).expect("four plain fields");
        line.push(b'\n');
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let log = rustix::fs::openat(&self.run()?.fd, "units.log", flags, mode).map_err(file("write", "units.log"))?;
        // One write, so that lines of several processes do not mix.
        rustix::io::write(log.as_fd(), &line).map_err(file("write", "units.log")).map(drop)
    }

    fn units(&self) -> Result<Units, HostError> {
        self.parse("units.json")
    }

    fn recorded(&self) -> Result<Recorded, HostError> {
        self.parse("recorded.json")
    }

    fn parse<T: Default + serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, HostError> {
        let text = self.read(name)?;
        if text.is_empty() {
            return Ok(T::default());
        }
        serde_json::from_str(&text).map_err(|error| HostError::File {
            operation: "understand",
            path: format!("{RUN}/{name}"),
            source: error.into(),
        })
    }

    fn read(&self, name: &str) -> Result<String, HostError> {
        match std::fs::read_to_string(self.root.outside(RUN).join(name)) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(HostError::File { operation: "read", path: format!("{RUN}/{name}"), source }),
        }
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), HostError> {
        let bytes = serde_json::to_vec_pretty(value).expect("maps of plain values");
        replace(&self.run()?.fd, name, &bytes, Mode::from_raw_mode(0o644), &format!("{RUN}/{name}"))
    }

    fn run(&self) -> Result<Directory, HostError> {
        Ok(self.root.make_directory(RUN)?.0)
    }
}

#[allow(clippy::disallowed_methods)] // it plays a unit that takes this long; nothing is waited for
fn pause(takes: Duration) {
    std::thread::sleep(takes);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
