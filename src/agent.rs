//! The agent: wait for something to happen, run the pipeline, sleep. `--once` is the same without the waiting.
//!
//! Owns the things that live longer than a run (store, probe, watches, the settle vigil). Never: a policy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::disk::{self, DiskError, Exclusive};
use crate::drift::DriftWatch;
use crate::git::Repository;
use crate::git::accepted::AcceptedFiles;
use crate::host::Host;
use crate::host::command::{Command, KEPT_BYTES_MAX};
use crate::host::linux::LinuxHost;
use crate::host::units::Systemd;
use crate::ledger::Ledger;
use crate::lock::protocol;
use crate::lock::store::{self, LockStore, StoreError, Transaction, Watch, Write};
use crate::name::{HostPath, UnitName};
use crate::pacing;
use crate::paths::Paths;
use crate::pipeline::{self, Mode, PipelineError, Ran, World};
use crate::probe::{self, LiveProbe, Probe, RecorderProbe};
use crate::reason::{self, Exit, Reason, chain};
use crate::report::State;
use crate::resource::Digest;
use crate::resource::unit::Active;
use crate::secrets::identities::Identities;
use crate::settings::{Access, Rooted, Settings, TrustRoot};
use crate::settle::Vigil;
use crate::wake::{Wake, Wakes};

/// Something that keeps an agent from starting at all.
#[derive(Debug)]
pub struct StartError {
    pub reason: Reason,
    pub message: String,
}

impl StartError {
    fn new(reason: Reason, message: impl ToString) -> Self {
        Self { reason, message: message.to_string() }
    }

    /// A folder that somebody else can write is a mistake in how it was set up; the rest is the machine's.
    fn disk(error: DiskError) -> Self {
        let reason = match error {
            DiskError::NotPrivate { .. } => reason::SETTINGS,
            DiskError::Io { .. } | DiskError::TooLarge { .. } => reason::APPLY_FAILED,
        };
        Self::new(reason, chain(&error))
    }
}

/// An agent with all it needs, before its first run.
pub struct Agent {
    settings: Settings,
    root: TrustRoot,
    paths: Paths,
    repository: Repository,
    accepted: AcceptedFiles,
    ledger: Ledger,
    identities: Identities,
    host: LinuxHost<'static>,
    probe: Box<dyn Probe + Sync>,
    store: Result<Box<dyn LockStore>, StoreError>,
    vigil: Vigil,
    local: Digest,
    wakes: Wakes,
    stop: Arc<AtomicBool>,
    _only_one: Exclusive,
}

/// Local settings are small.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;
/// `--once` waits this long for its own member to settle; a first member alone never does.
const ONCE_MAX: Duration = Duration::from_secs(600);
/// A node without a sign of life for this long is silent.
pub const BEAT: Duration = Duration::from_secs(90);
/// After a run that failed here, what moves in the store wakes us no sooner than this: a hold that was claimed and given
/// back for nothing moves there too.
const FAILED_PAUSE: Duration = Duration::from_secs(10);

impl Agent {
    /// `root`: the directory that stands for `/`; `None`: the machine itself.
    pub fn start(settings_file: &Path, root: Option<&Path>) -> Result<Self, StartError> {
        // Before anything starts a thread: a thread that does not block them would die of these signals.
        let (wakes, stop) = (Wakes::default(), Arc::new(AtomicBool::new(false)));
        signals(&wakes, &stop);
        let usage = |message: String| StartError::new(reason::SETTINGS, message);
        let read = |path: &Path| -> Result<Vec<u8>, StartError> {
            disk::read_bounded(path, SETTINGS_BYTES_MAX)
                .map_err(|error| usage(chain(&error)))?
                .ok_or_else(|| usage(format!("{}: no such file", path.display())))
        };
        let settings_bytes = read(settings_file)?;
        let rooted = if root.is_some() { Rooted::Below } else { Rooted::Host };
        let settings = Settings::parse(&String::from_utf8_lossy(&settings_bytes), settings_file, rooted)
            .map_err(|error| usage(error.to_string()))?;
        let trust_bytes = read(&settings.trust)?;
        let trust = TrustRoot::parse(&String::from_utf8_lossy(&trust_bytes), &settings.trust)
            .map_err(|error| usage(error.to_string()))?;
        let identities = Identities::load(&settings.identities)
            .map_err(|error| StartError::new(reason::IDENTITY_PERMISSIONS, chain(&error)))?;
        let root_dir = root.map_or_else(|| PathBuf::from("/"), Path::to_owned);
        if root.is_some() {
            disk::create_dirs(&root_dir).map_err(StartError::disk)?;
        }
        let paths = Paths::below(&root_dir);
        for dir in [paths.state(), paths.cache(), paths.run()] {
            disk::create_dirs(&dir).map_err(StartError::disk)?;
        }
        let only_one = Exclusive::acquire(&paths.lock())
            .map_err(StartError::disk)?
            .ok_or_else(|| usage(format!("another agent works on {} already", paths.state().display())))?;
        let repository = Repository::open(&paths.state(), &paths.cache())
            .map_err(|error| StartError::new(error.reason(), chain(&error)))?;
        let accepted = AcceptedFiles::open(&paths.state()).map_err(StartError::disk)?;
        // Without it this node would believe an older branch; what is damaged is for an operator to look at.
        if accepted.accepted().is_none()
            && let Some(damaged) = accepted.damaged().first()
        {
            let what =
                format!("{} cannot be read, and no other copy is left of what was last accepted", damaged.display());
            return Err(StartError::new(reason::ROLLBACK, what));
        }
        let ledger =
            Ledger::open(&paths.ledger()).map_err(|error| StartError::new(reason::APPLY_FAILED, chain(&error)))?;
        let host = match root {
            Some(root) => LinuxHost::sandbox(root, &SystemClock),
            None => LinuxHost::machine(&SystemClock),
        }
        .map_err(|error| StartError::new(reason::APPLY_FAILED, chain(&error)))?;
        let probe: Box<dyn Probe + Sync> = match &settings.sandbox {
            Some(sandbox) => {
                let roots = root_dir.join(&sandbox.roots).display().to_string();
                Box::new(RecorderProbe { roots })
            }
            None => Box::new(live_probe()),
        };
        let store = store::open(settings.store.clone().into(), &trust.fleet, settings.environment.as_str());
        let local = Digest::of_parts([env!("CARGO_PKG_VERSION").as_bytes(), &settings_bytes, &trust_bytes]);
        Ok(Self {
            settings,
            root: trust,
            paths,
            repository,
            accepted,
            ledger,
            identities,
            host,
            probe,
            store,
            vigil: Vigil::default(),
            local,
            wakes,
            stop,
            _only_one: only_one,
        })
    }

    pub fn run(&mut self, mode: Mode) -> Result<Ran, PipelineError> {
        let mut world = World {
            settings: &self.settings,
            root: &self.root,
            paths: &self.paths,
            repository: &mut self.repository,
            accepted: &mut self.accepted,
            ledger: &mut self.ledger,
            identities: &self.identities,
            host: &self.host as &dyn Host,
            store: self.store.as_deref(),
            probe: &*self.probe,
            clock: &SystemClock,
            stop: &self.stop,
            vigil: &mut self.vigil,
            local: self.local,
            mode,
        };
        pipeline::run(&mut world)
    }

    /// Until this node is converged, or cannot get further without others, or has settled for too long. Told after every run.
    pub fn once(&mut self, mode: Mode, mut told: impl FnMut(&Ran)) -> Result<Ran, PipelineError> {
        let mut last_beat = None;
        let began = SystemClock.awake();
        loop {
            // One run is a sign of life as well.
            self.beat(&mut last_beat);
            let ran = self.run(mode)?;
            told(&ran);
            let patient = SystemClock.awake().saturating_sub(began) < ONCE_MAX;
            let settling = ran.report.reason == reason::SETTLING.id && ran.report.exit() == Exit::Waiting;
            match ran.again_in {
                Some(again) if settling && patient && !self.stop.load(Ordering::Relaxed) => {
                    drop(self.wakes.wait(again))
                }
                _ => return Ok(ran),
            }
        }
    }

    /// Until SIGTERM or SIGINT.
    pub fn stay(&mut self, mut told: impl FnMut(&Result<Ran, PipelineError>)) -> Exit {
        let wakes = std::mem::take(&mut self.wakes);
        let node = self.settings.node.clone();
        let mut drift: Option<DriftWatch> = None;
        let mut watched: Vec<HostPath> = Vec::new();
        let mut interests = vec![protocol::WAKE.to_owned()];
        let mut peers = self.watch(&wakes, &interests);
        let mut failures = 0;
        let mut last_beat: Option<Duration> = None;
        for round in 0.. {
            self.beat(&mut last_beat);
            let ran = self.run(Mode::Apply);
            told(&ran);
            let again_in = match &ran {
                Ok(ran) => {
                    failures = if ran.report.exit() == Exit::Unreachable { failures + 1 } else { 0 };
                    if let Some(managed) = &ran.managed {
                        let paths: Vec<HostPath> = self.watchable(managed);
                        if paths != watched || drift.is_none() {
                            // The old one ends first: a machine has few inotify instances, and a sandbox many agents.
                            drop(drift.take());
                            drift = self.watch_files(&wakes, &paths);
                            watched = paths;
                        }
                    }
                    if let Some(new) = &ran.interests
                        && *new != interests
                    {
                        interests.clone_from(new);
                        drop(peers.take());
                        peers = self.watch(&wakes, &interests);
                    }
                    ran.again_in
                }
                Err(_) => {
                    failures += 1;
                    None
                }
            };
            let failed = ran.as_ref().is_ok_and(|ran| ran.report.state == State::Failed);
            let mut pause = if failed { FAILED_PAUSE } else { Duration::ZERO };
            if again_in.is_none() {
                crate::memory::let_go_of_code();
            }
            let mut sleep = pacing::next(&node, self.settings.poll, round, failures, again_in);
            loop {
                let began = SystemClock.awake();
                let woken = wakes.wait(sleep.min(BEAT / 3));
                if woken.contains(&Wake::Shutdown) || self.stop.load(Ordering::Relaxed) {
                    return Exit::Done;
                }
                let passed = SystemClock.awake().saturating_sub(began);
                sleep = sleep.saturating_sub(passed);
                pause = pause.saturating_sub(passed);
                if woken.iter().all(|wake| *wake == Wake::Store) && !pause.is_zero() {
                    sleep = sleep.min(pause);
                    self.beat(&mut last_beat);
                    continue;
                }
                let only_beat = woken.iter().all(|wake| *wake == Wake::Tick) && !sleep.is_zero();
                if !only_beat {
                    break;
                }
                self.beat(&mut last_beat);
            }
        }
        Exit::Done
    }

    fn watch(&self, wakes: &Wakes, interests: &[String]) -> Option<Watch> {
        let store = self.store.as_ref().ok()?;
        let prefixes: Vec<&str> = interests.iter().map(String::as_str).collect();
        let watch = store.watch(&prefixes, Box::new(send(wakes, Wake::Store)));
        watch.inspect_err(|error| tracing::warn!(%error, "no watch; polling only")).ok()
    }

    /// A hint for people and for the order of restarts; nothing safe depends on it.
    fn beat(&self, last: &mut Option<Duration>) {
        let now = SystemClock.awake();
        if last.is_some_and(|last| now.saturating_sub(last) < BEAT / 3) {
            return;
        }
        if let Ok(store) = &self.store {
            let value = SystemClock.now().to_string().into_bytes();
            let put = Write::PutFor(protocol::beat_key(&self.settings.node), value, BEAT);
            if store.commit(&Transaction { when: Vec::new(), then: vec![put] }).is_ok() {
                *last = Some(now);
            }
        }
    }

    fn watch_files(&self, wakes: &Wakes, paths: &[HostPath]) -> Option<DriftWatch> {
        let wake = send(wakes, Wake::Drift);
        let watch = DriftWatch::over(Path::new("/"), paths, move |_| wake());
        watch.inspect_err(|error| tracing::warn!("no drift watch, polling only: {}", chain(error))).ok()
    }

    /// What we manage, and the branch's own file in repositories on this machine: a push there wakes us at once.
    fn watchable(&self, managed: &[HostPath]) -> Vec<HostPath> {
        let root = self.paths.root().canonicalize().unwrap_or_else(|_| self.paths.root().to_owned());
        let files = managed.iter().map(|path| root.join(path.as_str().trim_start_matches('/')));
        let remotes = self.root.remotes.iter().filter_map(|remote| match &remote.access {
            Access::File { path } => Some(path),
            Access::Ssh { .. } | Access::Https { .. } => None,
        });
        // A branch that is only in packed-refs gets a file of its own with the first push.
        let branches = remotes.map(|path| {
            let work_tree = path.join(".git");
            if work_tree.is_dir() { work_tree.join(&self.root.reference) } else { path.join(&self.root.reference) }
        });
        files.chain(branches).map(|path| HostPath::new(path.display().to_string())).collect()
    }
}

/// What the gates of a real machine need of it.
fn live_probe() -> LiveProbe {
    let run = |argv: &[String], user: Option<&str>, within: Duration| {
        let command = Command { argv, user: user.unwrap_or(""), within };
        let output = command.run().map_err(|error| chain(&error))?;
        // A list that was cut would look like a shorter list, and a killed checker proves nothing.
        if output.stdout.len() >= KEPT_BYTES_MAX {
            return Err("it says more than can be judged".to_owned());
        }
        if output.exit < 0 || output.exit > 128 {
            return Err("it was killed".to_owned());
        }
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(probe::Ran { code: output.exit, stdout })
    };
    let unit_state = |unit: &UnitName| -> Result<Active, String> {
        let states = Systemd::new().and_then(|systemd| systemd.observe(&[unit]));
        let states = states.map_err(|error| chain(&error))?;
        states.get(unit).map(|state| state.active).ok_or_else(|| format!("{unit} is not known"))
    };
    LiveProbe { run: Arc::new(run), unit_state: Arc::new(unit_state) }
}

fn send(wakes: &Wakes, wake: Wake) -> impl Fn() + Send + Sync + 'static {
    let sender = std::sync::Mutex::new(wakes.sender());
    move || {
        // Nobody listens any more: the agent is on its way out.
        let _ = sender.lock().map(|sender| sender.send(wake));
    }
}

/// SIGTERM and SIGINT end the agent after the batch at hand, SIGHUP makes it look.
fn signals(wakes: &Wakes, stop: &Arc<AtomicBool>) {
    use nix::sys::signal::{SigSet, Signal};
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    if let Err(error) = set.thread_block() {
        tracing::warn!(%error, "signals cannot be caught");
        return;
    }
    let (sender, stop) = (wakes.sender(), stop.clone());
    std::thread::spawn(move || {
        while let Ok(signal) = set.wait() {
            let wake = if signal == Signal::SIGHUP { Wake::Signal } else { Wake::Shutdown };
            stop.fetch_or(wake == Wake::Shutdown, Ordering::Relaxed);
            if sender.send(wake).is_err() {
                return;
            }
        }
    });
}
