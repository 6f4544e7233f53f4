//! Units of the machine's systemd, over the system bus.
//!
//! A job is waited for by its `JobRemoved` signal (subscribed to before the call, as org.freedesktop.systemd1(5) asks)
//! and by looking, in case the signal is lost. Never: cancels a job that takes too long, or waits for one without end.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::sync::Mutex;
use std::time::Duration;

use zbus::export::futures_core::Stream;
use zbus::fdo::{self, PropertiesProxy};
use zbus::{Connection, OwnedObjectPath, OwnedVariant};
use zbus_systemd::systemd1::ManagerProxy;

use super::command::{Command, argv};
use super::{HostError, Words};
use crate::name::UnitName;
use crate::resource::UnitState;
use crate::resource::unit::{Active, Relations};

const BUS: &str = "unix:path=/run/dbus/system_bus_socket";
pub(super) const UNIT: &str = "org.freedesktop.systemd1.Unit";
pub(super) const SERVICE: &str = "org.freedesktop.systemd1.Service";
const NO_SUCH_JOB: &str = "org.freedesktop.systemd1.NoSuchJob";
/// Everything that is not a job.
const ANSWER_WITHIN: Duration = Duration::from_secs(25);
/// systemd leaves the bus when it is upgraded and executes itself anew, and the bus has to be there again too.
const GONE_FOR_MAX: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often it is looked at a job whose signal does not come.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub struct Systemd {
    runtime: Option<tokio::runtime::Runtime>,
    connection: Mutex<Option<Connection>>,
}

pub(super) type Properties = HashMap<String, OwnedVariant>;

impl Systemd {
    /// Connects when it is first asked for something. Errors: systemd does not run here.
    pub fn new() -> Result<Self, HostError> {
        if !Path::new("/run/systemd/system").is_dir() {
            return Err(no_systemd("this machine was not booted by it (no /run/systemd/system)"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| no_systemd(&error.to_string()))?;
        Ok(Self { runtime: Some(runtime), connection: Mutex::new(None) })
    }

    pub fn observe(&self, units: &[&UnitName]) -> Result<BTreeMap<UnitName, UnitState>, HostError> {
        if units.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.ask("look at", "systemd", async |bus| {
            let mut seen = BTreeMap::new();
            for unit in units {
                let path = bus.manager.load_unit(unit.to_string()).await?;
                seen.insert((*unit).clone(), state(&bus.properties(&path, UNIT).await?));
            }
            Ok(seen)
        })
    }

    /// What these units stop and are stopped by, and on from there: all that a stop or a start of theirs can take down.
    pub fn relations(&self, units: &[&UnitName]) -> Result<BTreeMap<UnitName, Relations>, HostError> {
        self.ask("look at", "systemd", async |bus| {
            let mut seen = BTreeMap::new();
            let mut open: Vec<UnitName> = units.iter().map(|unit| (*unit).clone()).collect();
            let mut at = 0;
            while let Some(unit) = open.get(at).cloned() {
                // Only what we start ourselves drives others away; what is started again ran beside them before.
                let is_root = at < units.len();
                at += 1;
                if seen.contains_key(&unit) {
                    continue;
                }
                let path = bus.manager.load_unit(unit.to_string()).await?;
                let mut relations = relations(&bus.properties(&path, UNIT).await?);
                if !is_root {
                    relations.conflicts.clear();
                }
                open.extend(relations.dragged.iter().chain(&relations.conflicts).cloned());
                seen.insert(unit, relations);
            }
            Ok(seen)
        })
    }

    /// The unit file that systemd reads for a unit; `None`: it has none.
    pub fn fragment(&self, unit: &UnitName) -> Result<Option<String>, HostError> {
        self.ask("look at", unit.as_str(), async |bus| {
            let path = bus.manager.load_unit(unit.to_string()).await?;
            Ok(Some(text(&bus.properties(&path, UNIT).await?, "FragmentPath")).filter(|path| !path.is_empty()))
        })
    }

    pub fn start(&self, unit: &UnitName, within: Duration, words: Words) -> Result<(), HostError> {
        let started = self.job("start", unit, within, async |bus| {
            // A unit that failed too often is not started again before that is forgotten.
            let _ = bus.manager.reset_failed_unit(unit.to_string()).await;
            // Else systemd forgets a unit that ends at once, and with it why.
            let _ = bus.manager.ref_unit(unit.to_string()).await;
            bus.manager.start_unit(unit.to_string(), "replace".to_owned()).await
        });
        let judged = started.and_then(|result| self.judge_start(unit, &result, words));
        let _ = self.ask("forget", unit.as_str(), async |bus| bus.manager.unref_unit(unit.to_string()).await);
        judged
    }

    fn judge_start(&self, unit: &UnitName, result: &str, words: Words) -> Result<(), HostError> {
        let good = match (result, self.state(unit)?.active) {
            ("done", Active::Failed) => false,
            // A oneshot that ended well is inactive; so is a unit that systemd was not to start (its Condition…=).
            ("done", Active::Inactive) => self.conditions_met(unit)?,
            (result, _) => result == "done",
        };
        if good {
            return Ok(());
        }
        Err(HostError::Unit { operation: "start", unit: unit.to_string(), why: self.why(unit, result, words) })
    }

    pub fn stop(&self, unit: &UnitName, within: Duration, words: Words) -> Result<(), HostError> {
        if !self.state(unit)?.loaded {
            return Ok(());
        }
        let result = self.job("stop", unit, within, async |bus| {
            // Else a socket's or a person's start takes its place.
            bus.manager.stop_unit(unit.to_string(), "replace-irreversibly".to_owned()).await
        })?;
        // Somebody may have started it again since: it was down.
        if result == "done" {
            return Ok(());
        }
        // It may have failed while it stopped (killed after its time): it is down, which was asked for.
        match self.state(unit)?.active {
            Active::Inactive | Active::Failed => Ok(()),
            _ => {
                Err(HostError::Unit { operation: "stop", unit: unit.to_string(), why: self.why(unit, &result, words) })
            }
        }
    }

    pub fn reload(&self, unit: &UnitName, within: Duration, words: Words) -> Result<(), HostError> {
        let result = self.job("reload", unit, within, async |bus| {
            bus.manager.reload_unit(unit.to_string(), "replace".to_owned()).await
        })?;
        if result == "done" {
            return Ok(());
        }
        Err(HostError::Unit { operation: "reload", unit: unit.to_string(), why: self.why(unit, &result, words) })
    }

    pub fn daemon_reload(&self) -> Result<(), HostError> {
        self.ask("reload", "systemd", async |bus| bus.manager.reload().await)
    }

    /// As `systemctl reboot` does. The manager's own Reboot() would not stop any service (org.freedesktop.systemd1(5)).
    pub fn reboot(&self) -> Result<(), HostError> {
        self.ask("reboot", "the machine", async |bus| {
            let mode = "replace-irreversibly".to_owned();
            bus.manager.start_unit("reboot.target".to_owned(), mode).await.map(drop)
        })
    }

    /// This and the three below change files only; systemd knows of it after a daemon-reload.
    pub fn enable(&self, unit: &UnitName) -> Result<(), HostError> {
        let installable = self.ask("enable", unit.as_str(), async |bus| {
            Ok(bus.manager.enable_unit_files(vec![unit.to_string()], false, false).await?.0)
        })?;
        if installable {
            return Ok(());
        }
        let why = "its unit file has no [Install] section that would say when to start it".to_owned();
        Err(HostError::Unit { operation: "enable", unit: unit.to_string(), why })
    }

    pub fn disable(&self, unit: &UnitName) -> Result<(), HostError> {
        self.ask("disable", unit.as_str(), async |bus| {
            bus.manager.disable_unit_files(vec![unit.to_string()], false).await.map(drop)
        })
    }

    pub fn mask(&self, unit: &UnitName) -> Result<(), HostError> {
        self.ask("mask", unit.as_str(), async |bus| {
            bus.manager.mask_unit_files(vec![unit.to_string()], false, false).await.map(drop)
        })
    }

    pub fn unmask(&self, unit: &UnitName) -> Result<(), HostError> {
        self.ask("unmask", unit.as_str(), async |bus| {
            bus.manager.unmask_unit_files(vec![unit.to_string()], false).await.map(drop)
        })
    }

    fn state(&self, unit: &UnitName) -> Result<UnitState, HostError> {
        Ok(self.observe(&[unit])?.remove(unit).unwrap_or_else(UnitState::missing))
    }

    fn conditions_met(&self, unit: &UnitName) -> Result<bool, HostError> {
        self.ask("look at", unit.as_str(), async |bus| {
            let path = bus.manager.load_unit(unit.to_string()).await?;
            Ok(!is_unmet(&bus.properties(&path, UNIT).await?))
        })
    }

    /// Queues a job and waits for its end; the job's result, in systemd's word.
    pub(super) fn job(
        &self,
        operation: &'static str,
        unit: &UnitName,
        within: Duration,
        queue: impl AsyncFn(&Bus) -> zbus::Result<OwnedObjectPath> + Sync,
    ) -> Result<String, HostError> {
        let result = self.ask_within(within + ANSWER_WITHIN, operation, unit.as_str(), async |bus| {
            let mut removed = pin!(bus.manager.receive_job_removed().await?);
            let job = queue(bus).await?;
            let id = job.rsplit('/').next().and_then(|id| id.parse().ok());
            let waited = tokio::time::timeout(within, async {
                loop {
                    let next = poll_fn(|context| removed.as_mut().poll_next(context));
                    match tokio::time::timeout(LOOK_EVERY, next).await {
                        Ok(Some(signal)) => {
                            let signal = signal.args()?;
                            if signal.job == job {
                                return Ok(signal.result.to_string());
                            }
                        }
                        // No signal, or no more of them: is the job still there?
                        Ok(None) | Err(_) => {
                            let Some(id) = id else { return Ok("done".to_owned()) };
                            // Only systemd's own word counts: it may be gone for a moment.
                            if let Err(zbus::Error::MethodError(name, ..)) = bus.manager.get_job(id).await
                                && name.as_str() == NO_SUCH_JOB
                            {
                                return Ok("done".to_owned());
                            }
                        }
                    }
                }
            });
            waited.await.map_or_else(|_| Ok(None), |result: zbus::Result<String>| result.map(Some))
        })?;
        result.ok_or_else(|| {
            let why = format!("it took longer than {} s; systemd goes on with it", within.as_secs_f32());
            HostError::Unit { operation, unit: unit.to_string(), why }
        })
    }

    /// In words: what systemd says of a unit that did not do what it was told, and its last lines in the journal, or where
    /// to find them.
    fn why(&self, unit: &UnitName, result: &str, told: Words) -> String {
        let said = self.ask("look at", unit.as_str(), async |bus| {
            let path = bus.manager.load_unit(unit.to_string()).await?;
            let service = if unit.as_str().ends_with(".service") {
                bus.properties(&path, SERVICE).await?
            } else {
                Properties::new()
            };
            Ok((bus.properties(&path, UNIT).await?, service))
        });
        let mut words = vec![format!("job {result}")];
        let mut invocation = String::new();
        if let Ok((unit, service)) = said {
            words.push(format!("unit {}", text(&unit, "ActiveState")));
            invocation = self::invocation(&unit);
            if is_unmet(&unit) {
                words.push("a condition in its unit file is not met".to_owned());
            }
            let load = text(&unit, "LoadState");
            if load != "loaded" {
                words.push(load);
            }
            let result = text(&service, "Result");
            if !result.is_empty() && result != "success" {
                words.push(format!("{result}, status {}", number(&service, "ExecMainStatus")));
            }
        }
        if told == Words::Kept {
            let lines = if invocation.is_empty() {
                format!("-u {unit}")
            } else {
                format!("_SYSTEMD_INVOCATION_ID={invocation}")
            };
            words.push(format!("secrets are near, so its journal is on the node only: journalctl {lines}"));
            return words.join(", ");
        }
        // What it said itself in this run; of one that never came so far, what systemd said.
        let lines = [format!("_SYSTEMD_INVOCATION_ID={invocation}"), format!("--unit={unit}")];
        let said = lines.iter().filter(|lines| !lines.ends_with('=')).find_map(|lines| {
            let argv = argv(["journalctl", "-n", "10", "--no-pager", "-o", "cat", "-q", lines]);
            let journal = Command { argv: &argv, user: "", within: Duration::from_secs(5) }.run().ok()?;
            (journal.exit == 0 && !journal.stdout.is_empty()).then(|| journal.tail())
        });
        words.extend(said.map(|said| format!("its journal: {said}")));
        words.join(", ")
    }

    pub(super) fn ask<T: Send>(
        &self,
        operation: &'static str,
        unit: &str,
        question: impl AsyncFn(&Bus) -> zbus::Result<T> + Sync,
    ) -> Result<T, HostError> {
        self.ask_within(ANSWER_WITHIN, operation, unit, question)
    }

    pub(super) fn ask_within<T: Send>(
        &self,
        within: Duration,
        operation: &'static str,
        unit: &str,
        question: impl AsyncFn(&Bus) -> zbus::Result<T> + Sync,
    ) -> Result<T, HostError> {
        let runtime = self.runtime.as_ref().expect("it goes only when this is dropped");
        // On a thread of its own: the caller may be inside another runtime, where ours could not block.
        let answer = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let asked = async || {
                    let bus = Bus::on(self.connection().await?).await?;
                    question(&bus).await
                };
                // What is asked of systemd can be asked twice: a job that is there already is the same job.
                let asked = async {
                    let tries = GONE_FOR_MAX.as_millis() / ASK_AGAIN.as_millis();
                    for _ in 0..tries {
                        match asked().await {
                            Err(error) if is_gone(&error) => drop(self.lost(&error.to_string())),
                            answer => return answer,
                        }
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                    asked().await
                };
                runtime.block_on(async { tokio::time::timeout(within, asked).await })
            });
            asking.join()
        });
        match answer {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(zbus::Error::MethodError(name, message, _)))) => {
                let why = message.unwrap_or_else(|| name.to_string());
                Err(HostError::Unit { operation, unit: unit.to_owned(), why })
            }
            // It answered, and the answer is no.
            Ok(Ok(Err(zbus::Error::FDO(error)))) if !is_lost(&error) => {
                Err(HostError::Unit { operation, unit: unit.to_owned(), why: error.to_string() })
            }
            Ok(Ok(Err(error))) => Err(self.lost(&error.to_string())),
            Ok(Err(_)) => Err(self.lost(&format!("no answer within {} s", within.as_secs()))),
            Err(_) => Err(self.lost("the thread that asked it ended early")),
        }
    }

    /// The next question gets a new connection.
    fn lost(&self, why: &str) -> HostError {
        *self.connection.lock().expect("no holder panics") = None;
        no_systemd(why)
    }

    async fn connection(&self) -> zbus::Result<Connection> {
        let held = self.connection.lock().expect("no holder panics").clone();
        if let Some(connection) = held {
            return Ok(connection);
        }
        let connection = zbus::connection::Builder::address(BUS).build().await?;
        // Once for each connection; a second time is an error.
        ManagerProxy::new(&connection).await?.subscribe().await?;
        *self.connection.lock().expect("no holder panics") = Some(connection.clone());
        Ok(connection)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for its threads is not allowed inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// A connection and systemd's own object on it.
pub(super) struct Bus {
    connection: Connection,
    pub(super) manager: ManagerProxy<'static>,
}

impl Bus {
    async fn on(connection: Connection) -> zbus::Result<Self> {
        let manager = ManagerProxy::new(&connection).await?;
        Ok(Self { connection, manager })
    }

    pub(super) async fn properties(&self, path: &OwnedObjectPath, interface: &'static str) -> zbus::Result<Properties> {
        let proxy = PropertiesProxy::builder(&self.connection)
            .destination("org.freedesktop.systemd1")
            .path(path.clone())
            .build()
            .await?;
        Ok(proxy.get_all(interface.try_into()?).await?)
    }
}

fn state(unit: &Properties) -> UnitState {
    let load = text(unit, "LoadState");
    let file = text(unit, "UnitFileState");
    UnitState {
        loaded: load != "not-found",
        active: match text(unit, "ActiveState").as_str() {
            "active" => Active::Active,
            "reloading" | "refreshing" => Active::Reloading,
            "activating" => Active::Activating,
            "deactivating" => Active::Deactivating,
            "failed" => Active::Failed,
            _ => Active::Inactive,
        },
        enabled: matches!(file.as_str(), "enabled" | "enabled-runtime" | "alias"),
        masked: load == "masked",
        invocation: invocation(unit),
        needs_daemon_reload: get(unit, "NeedDaemonReload").unwrap_or_default(),
        drop_ins: get(unit, "DropInPaths").unwrap_or_default(),
    }
}

/// Everything conflicts with these, and while one of them runs the machine goes down.
const LAST: [&str; 2] = ["shutdown.target", "umount.target"];

fn relations(unit: &Properties) -> Relations {
    let named = |properties: &[&str]| {
        let units = properties.iter().flat_map(|name| get::<Vec<String>>(unit, name).unwrap_or_default());
        units.filter(|unit| !LAST.contains(&unit.as_str())).map(UnitName::new).collect()
    };
    Relations {
        running: state(unit).is_running(),
        // All that have the atom UNIT_ATOM_PROPAGATE_STOP in systemd's src/core/unit-dependency-atom.c.
        dragged: named(&["RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo"]),
        conflicts: named(&["Conflicts", "ConflictedBy"]),
    }
}

fn invocation(unit: &Properties) -> String {
    hex::encode(get::<Vec<u8>>(unit, "InvocationID").unwrap_or_default())
}

/// Whether a condition of the unit was looked at, and was not met.
fn is_unmet(unit: &Properties) -> bool {
    get::<u64>(unit, "ConditionTimestamp").is_some_and(|at| at > 0) && get(unit, "ConditionResult") == Some(false)
}

pub(super) fn get<T: TryFrom<OwnedVariant>>(properties: &Properties, name: &str) -> Option<T> {
    T::try_from(properties.get(name)?.try_clone().ok()?).ok()
}

pub(super) fn text(properties: &Properties, name: &str) -> String {
    get(properties, name).unwrap_or_default()
}

pub(super) fn number(properties: &Properties, name: &str) -> i32 {
    get(properties, name).unwrap_or_default()
}

/// Whether there was nobody to answer, which can be over at once.
fn is_gone(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(_) => true,
        zbus::Error::FDO(error) => is_lost(error),
        zbus::Error::MethodError(name, ..) => NOBODY.contains(&name.as_str()),
        _ => false,
    }
}

/// In the names of dbus-daemon(1).
const NOBODY: [&str; 4] = [
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
];

/// Whether nobody answered, rather than somebody no.
fn is_lost(error: &fdo::Error) -> bool {
    use fdo::Error::{Disconnected, NoReply, ServiceUnknown, TimedOut, ZBus};
    matches!(error, Disconnected(_) | NoReply(_) | ServiceUnknown(_) | TimedOut(_) | ZBus(_))
}

fn no_systemd(why: &str) -> HostError {
    HostError::NoSystemd { why: why.to_owned() }
}
