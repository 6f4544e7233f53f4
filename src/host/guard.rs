//! What keeps a singleton from running longer than this node may: systemd, without the agent.
//!
//! `/run/converger/single/UNIT` is a link to a grant. systemd starts the unit only while the link leads somewhere
//! (`ConditionPathExists=` in the unit's drop-in), and a transient timer takes the grant away and stops the unit
//! when its time is over. A new grant gets a timer of its own, looked at once it is set, before the link leads to it. So an
//! agent that is killed or frozen between any two of these steps leaves a unit that stops in time. Never: waits for a unit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use zbus::OwnedVariant;

use super::HostError;
use super::transient::{Properties, plain};
use super::units::{Systemd, get};
use crate::clock::{Clock, SystemClock};
use crate::disk::{self, DiskError};
use crate::lock::singleton::{GRANTS, Grant};
use crate::name::UnitName;
use crate::resource::unit::Active;

/// systemd sets its timer later than we ask; it is set for this much earlier.
const SLACK: Duration = Duration::from_secs(1);
const GRANT_BYTES_MAX: u64 = 1 << 16;
const TIMER: &str = "org.freedesktop.systemd1.Timer";

/// The machine that a singleton runs on, or what stands for it.
pub trait Guard: Send {
    fn state(&self, unit: &UnitName) -> Result<Active, HostError>;

    /// From here on the unit may be started, and is stopped when the grant ends. Errors: an earlier grant still counts, until
    /// its own end.
    fn arm(&self, grant: &Grant) -> Result<(), HostError>;

    /// No grant lets the unit start any more; what runs is still stopped when its grant ends.
    fn bar(&self, unit: &UnitName) -> Result<(), HostError>;

    /// The same, and nothing stops the unit any more: of one that does not run.
    fn disarm(&self, unit: &UnitName) -> Result<(), HostError>;

    /// Asks for it; does not wait.
    fn start(&self, unit: &UnitName) -> Result<(), HostError>;

    /// Asks for it; does not wait.
    fn stop(&self, unit: &UnitName) -> Result<(), HostError>;
}

/// Grants that are valid now.
pub fn grants(run: &Path, now: Duration) -> Vec<Grant> {
    let entries = std::fs::read_dir(run.join(GRANTS)).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let read = |path: PathBuf| -> Option<Grant> {
        serde_json::from_slice(&disk::read_bounded(&path, GRANT_BYTES_MAX).ok()??).ok()
    };
    links.filter_map(|link| read(link.path())).filter(|grant| grant.is_valid(now)).collect()
}

/// A machine with systemd.
pub struct Machine {
    systemd: Systemd,
    folder: PathBuf,
}

impl Machine {
    /// Errors: systemd does not run here.
    pub fn new(run: &Path) -> Result<Self, HostError> {
        Ok(Self { systemd: Systemd::new()?, folder: run.join(GRANTS) })
    }

    /// Whether the whole machine goes down.
    pub fn goes_down(&self) -> bool {
        let state = self.systemd.ask("look at", "systemd", async |bus| bus.manager.system_state().await);
        state.is_ok_and(|state| state == "stopping")
    }

    /// The time at which systemd will act, in awake time.
    fn set_timer(&self, grant: &Grant, within: Duration) -> Result<Duration, HostError> {
        let unit = &grant.singleton.unit;
        let timer = timer(grant);
        let elapses = self.systemd.ask("guard", unit.as_str(), async |bus| {
            let (timer_properties, stopper) = (timer_properties(within)?, stopper(grant, &self.folder)?);
            let service = timer.replace(".timer", ".service");
            let aux = vec![(service, stopper)];
            match bus.manager.start_transient_unit(timer.clone(), "fail".to_owned(), timer_properties, aux).await {
                // The question was asked twice.
                Err(zbus::Error::MethodError(name, ..)) if name.as_str().ends_with(".UnitExists") => {}
                answer => drop(answer?),
            }
            let path = bus.manager.load_unit(timer.clone()).await?;
            // The job is done at once, but after the answer.
            for _ in 0..LOOKS {
                let elapses: u64 = get(&bus.properties(&path, TIMER).await?, "NextElapseUSecMonotonic").unwrap_or(0);
                if elapses != 0 && elapses != u64::MAX {
                    return Ok(Some(Duration::from_micros(elapses)));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(None)
        })?;
        elapses.ok_or_else(|| guard_failed(unit, "its timer does not run".to_owned()))
    }

    /// Every grant of the unit but this one, with its timer.
    fn forget_others(&self, unit: &UnitName, keep: Option<&str>) -> Result<(), HostError> {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((of, mark)) = name.rsplit_once('.') else { continue };
            if of == unit.as_str() && keep != Some(mark) {
                self.forget(unit, mark)?;
            }
        }
        Ok(())
    }

    /// Its timer first: one whose grant is gone would be known to nobody, and stop the unit all the same.
    fn forget(&self, unit: &UnitName, mark: &str) -> Result<(), HostError> {
        let timer = named(unit, mark);
        let stopped = self.systemd.ask("forget", &timer, async |bus| {
            bus.manager.stop_unit(timer.clone(), "replace".to_owned()).await.map(drop)
        });
        // Any other no means that it has fired, or never was.
        if let Err(HostError::NoSystemd { why }) = stopped {
            return Err(HostError::NoSystemd { why });
        }
        let grant = self.folder.join(file(unit, mark));
        disk::remove(&grant).map_err(|error| failed(unit, &error))
    }
}

const LOOKS: u32 = 40;
const LOOK_EVERY: Duration = Duration::from_millis(25);

impl Guard for Machine {
    fn state(&self, unit: &UnitName) -> Result<Active, HostError> {
        Ok(self.systemd.observe(&[unit])?.remove(unit).map_or(Active::Inactive, |state| state.active))
    }

    fn arm(&self, grant: &Grant) -> Result<(), HostError> {
        let unit = &grant.singleton.unit;
        let left = grant.ends().saturating_sub(SystemClock.awake()).saturating_sub(SLACK);
        if left.is_zero() {
            return Err(guard_failed(unit, "its time was over before its timer was set".to_owned()));
        }
        put(&self.folder, grant)?;
        let armed = self.set_timer(grant, left).and_then(|elapses| {
            // Whoever was frozen since `left` was computed has set it too late.
            if elapses > grant.ends() {
                return Err(guard_failed(unit, "its timer was set too late".to_owned()));
            }
            lead_to(&self.folder, grant)
        });
        if let Err(error) = armed {
            self.forget(unit, &grant.mark)?;
            return Err(error);
        }
        self.forget_others(unit, Some(&grant.mark))
    }

    fn bar(&self, unit: &UnitName) -> Result<(), HostError> {
        disk::remove(&self.folder.join(unit.as_str())).map_err(|error| failed(unit, &error))
    }

    fn disarm(&self, unit: &UnitName) -> Result<(), HostError> {
        self.bar(unit)?;
        self.forget_others(unit, None)
    }

    fn start(&self, unit: &UnitName) -> Result<(), HostError> {
        self.systemd.ask("start", unit.as_str(), async |bus| {
            let _ = bus.manager.reset_failed_unit(unit.to_string()).await; // one that failed too often is not started
            bus.manager.start_unit(unit.to_string(), "replace".to_owned()).await.map(drop)
        })
    }

    fn stop(&self, unit: &UnitName) -> Result<(), HostError> {
        self.systemd.ask("stop", unit.as_str(), async |bus| {
            bus.manager.stop_unit(unit.to_string(), "replace-irreversibly".to_owned()).await.map(drop)
        })
    }
}

/// A sandbox has stand-ins for units, which the plan starts and stops: they run as long as they may.
pub struct Sandbox {
    folder: PathBuf,
}

impl Sandbox {
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join(GRANTS) }
    }
}

impl Guard for Sandbox {
    fn state(&self, unit: &UnitName) -> Result<Active, HostError> {
        let run = self.folder.parent().unwrap_or(&self.folder);
        let runs = grants(run, SystemClock.awake()).iter().any(|grant| grant.singleton.unit == *unit);
        Ok(if runs { Active::Active } else { Active::Inactive })
    }

    fn arm(&self, grant: &Grant) -> Result<(), HostError> {
        put(&self.folder, grant)?;
        lead_to(&self.folder, grant)?;
        let others = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for other in others.filter(|other| is_of(&other.file_name().to_string_lossy(), grant)) {
            disk::remove(&other.path()).map_err(|error| failed(&grant.singleton.unit, &error))?;
        }
        Ok(())
    }

    fn bar(&self, unit: &UnitName) -> Result<(), HostError> {
        disk::remove(&self.folder.join(unit.as_str())).map_err(|error| failed(unit, &error))
    }

    fn disarm(&self, unit: &UnitName) -> Result<(), HostError> {
        self.bar(unit)
    }

    fn start(&self, _: &UnitName) -> Result<(), HostError> {
        Ok(())
    }

    fn stop(&self, _: &UnitName) -> Result<(), HostError> {
        Ok(())
    }
}

/// An older grant of the same unit.
fn is_of(name: &str, grant: &Grant) -> bool {
    name.rsplit_once('.').is_some_and(|(of, mark)| of == grant.singleton.unit.as_str() && mark != grant.mark)
}

/// A mark has no dot in it.
fn file(unit: &UnitName, mark: &str) -> String {
    format!("{unit}.{mark}")
}

fn named(unit: &UnitName, mark: &str) -> String {
    format!("converger-single-{}-{mark}.timer", plain(unit.as_str()))
}

fn timer(grant: &Grant) -> String {
    named(&grant.singleton.unit, &grant.mark)
}

fn put(folder: &Path, grant: &Grant) -> Result<(), HostError> {
    let bytes = serde_json::to_vec(grant).expect("names and numbers serialize");
    disk::create_dirs(folder)
        .and_then(|()| disk::write_atomic(&folder.join(file(&grant.singleton.unit, &grant.mark)), &bytes, 0o600))
        .map_err(|error| failed(&grant.singleton.unit, &error))
}

/// In one step: before it the link leads to the grant before, after it to this one.
fn lead_to(folder: &Path, grant: &Grant) -> Result<(), HostError> {
    let unit = &grant.singleton.unit;
    let fresh = folder.join(format!(".{unit}.new"));
    disk::remove(&fresh).map_err(|error| failed(unit, &error))?;
    std::os::unix::fs::symlink(file(unit, &grant.mark), &fresh).map_err(|source| HostError::File {
        operation: "link",
        path: fresh.display().to_string(),
        source,
    })?;
    disk::install(&fresh, &folder.join(unit.as_str())).map_err(|error| failed(unit, &error))
}

type Made = zbus::Result<Vec<(String, OwnedVariant)>>;

fn timer_properties(within: Duration) -> Made {
    let mut set = Properties::default();
    let micros = u64::try_from(within.as_micros()).unwrap_or(u64::MAX);
    set.add("Description", "End of a singleton's time on this node");
    set.add("TimersMonotonic", vec![("OnActiveSec", micros)]);
    set.add("AccuracyUSec", 1_000_u64);
    set.add("RemainAfterElapse", false);
    // It counts while the machine shuts down too.
    set.add("DefaultDependencies", false);
    set.add("CollectMode", "inactive-or-failed");
    set.made
}

/// First nobody can start it any more; then it is stopped; what is left when its time to stop is over is killed.
fn stopper(grant: &Grant, folder: &Path) -> Made {
    let unit = grant.singleton.unit.as_str();
    let path = folder.join(file(&grant.singleton.unit, &grant.mark)).display().to_string();
    let time = grant.singleton.stop_secs_max.to_string();
    let calls: [&[&str]; 3] = [
        &["/usr/bin/rm", "-f", &path],
        &["/usr/bin/timeout", &time, "/usr/bin/systemctl", "stop", "--job-mode=replace-irreversibly", unit],
        &["/usr/bin/systemctl", "kill", "--signal=KILL", unit],
    ];
    let exec = |argv: &&[&str]| (argv[0].to_owned(), argv.iter().map(|word| word.replace('$', "$$")).collect(), true);
    let calls: Vec<(String, Vec<String>, bool)> = calls.iter().map(exec).collect();
    let mut set = Properties::default();
    set.add("Description", format!("Stop {unit}: this node's time for it is over"));
    set.add("Type", "oneshot");
    set.add("ExecStart", calls);
    set.add("DefaultDependencies", false);
    set.add("CollectMode", "inactive-or-failed");
    set.made
}

fn guard_failed(unit: &UnitName, why: String) -> HostError {
    HostError::Unit { operation: "guard", unit: unit.to_string(), why }
}

fn failed(unit: &UnitName, error: &DiskError) -> HostError {
    guard_failed(unit, crate::reason::chain(error))
}
