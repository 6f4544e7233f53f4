//! The agent: wait for something to happen, run the pipeline, sleep. `--once` is the same without the waiting.
//!
//! Owns the things that live longer than a run (store, probe, watches, the settle vigil). Never: a policy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::disk::{self, DiskError, Exclusive};
use crate::drift::{Lookout, Touched};
use crate::errno;
use crate::fleetlock::desk::Desk;
use crate::fleetlock::{listen, protocol as fleetlock};
use crate::git::accepted::AcceptedFiles;
use crate::git::{Children, Repository};
use crate::host::command::{Command, KEPT_BYTES_MAX};
use crate::host::linux::LinuxHost;
use crate::host::programs::{self, Program};
use crate::host::units::Systemd;
use crate::host::{Contained, Host as _, Query};
use crate::ledger::Ledger;
use crate::lock::instance::{BEAT, Instance, LOOKS, Life};
use crate::lock::protocol;
use crate::lock::quorum::Because;
use crate::lock::session;
use crate::lock::store::{self, LockStore, StoreError, Watch};
use crate::name::{HostPath, UnitName};
use crate::pacing;
use crate::paths::Paths;
use crate::pipeline::{self, Inquiry, Mode, PipelineError, Ran, World, touched};
use crate::probe::{self, LiveProbe, Probe, RecorderProbe};
use crate::reason::{self, Exit, Reason, chain};
use crate::report::State;
use crate::resource::unit::Active;
use crate::resource::{Digest, Kind};
use crate::secrets::identities::Identities;
use crate::settings::{Access, Rooted, Settings, TrustRoot};
use crate::settle::Vigil;
use crate::singletons::Singletons;
use crate::update::{Ended, Errand, Next, Updater, launch};
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
            DiskError::Io { .. } | DiskError::TooLarge { .. } => return Self::machine(error),
        };
        Self::new(reason, chain(&error))
    }

    fn machine(error: impl std::error::Error + 'static) -> Self {
        Self::new(errno::reason_of(&error).unwrap_or(reason::APPLY_FAILED), chain(&error))
    }
}

/// What an agent is started for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Converge,
    /// It fetches and judges as any other, and takes no step on the host.
    DryRun,
    /// To look beside an agent that runs, or without one: nothing at all is written.
    Look,
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
    store: Result<Arc<dyn LockStore>, StoreError>,
    /// `None`: there is no store to beat in.
    life: Option<Arc<Life>>,
    vigil: Vigil,
    singletons: Singletons,
    updater: Updater,
    inquiry: Inquiry,
    local: Digest,
    wakes: Wakes,
    /// Where others ask who want to reboot this machine.
    desk: Option<Desk>,
    stop: Arc<AtomicBool>,
    _only_one: Option<Exclusive>,
}

/// Local settings are small.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;
/// `--once` waits this long for its own member to settle; a first member alone never does.
const ONCE_MAX: Duration = Duration::from_secs(600);
/// After a run that failed here, what moves in the store wakes us no sooner than this: a hold that was claimed and given
/// back for nothing moves there too.
const FAILED_PAUSE: Duration = Duration::from_secs(10);

/// An update that waits, or a trial whose first run was not good enough, is looked at again after this.
const UPDATE_SOON: Duration = Duration::from_secs(5);

impl Agent {
    /// `root`: the directory that stands for `/`; `None`: the machine itself.
    pub fn start(settings_file: &Path, root: Option<&Path>, purpose: Purpose) -> Result<Self, StartError> {
        // Before anything starts a thread: a thread that does not block them would die of these signals.
        let (wakes, stop) = (Wakes::default(), Arc::new(AtomicBool::new(false)));
        signals(&wakes, &stop);
        let usage = |message: String| StartError::new(reason::SETTINGS, message);
        let read = |path: &Path| -> Result<Vec<u8>, StartError> {
            disk::read_trusted(path, SETTINGS_BYTES_MAX)
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
        let paths = Paths::below(&root_dir);
        let only_one = match purpose {
            Purpose::Converge | Purpose::DryRun => Some(alone(&root_dir, &paths)?),
            Purpose::Look if paths.state().is_dir() => None,
            Purpose::Look => {
                return Err(usage(format!("no agent has run here: there is no {}", paths.state().display())));
            }
        };
        // Below a root the machine's users are none of our business.
        let children = match rooted {
            Rooted::Host => Children::of_the_machine(),
            Rooted::Below => Ok(Children::as_we_are()),
        };
        let repository = children
            .and_then(|children| Repository::open(&paths.state(), &paths.cache(), &children))
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
        let ledger = match purpose {
            Purpose::Converge | Purpose::DryRun => Ledger::open(&paths.ledger()),
            Purpose::Look => Ledger::look(&paths.ledger()),
        }
        .map_err(StartError::machine)?;
        let host = match (purpose, root) {
            (Purpose::Converge, Some(root)) => LinuxHost::sandbox(root, &SystemClock),
            (Purpose::Converge, None) => LinuxHost::machine(&SystemClock),
            (Purpose::DryRun | Purpose::Look, root) => LinuxHost::look(root, &SystemClock),
        }
        .map_err(StartError::machine)?;
        if purpose == Purpose::Converge {
            let known = ledger.known().map_err(StartError::machine)?;
            let files = known.owned.keys().filter(|id| id.kind == Kind::File);
            host.clean(files.map(|id| id.name.as_str())).map_err(StartError::machine)?;
        }
        let probe: Box<dyn Probe + Sync> = match &settings.sandbox {
            Some(sandbox) => {
                let roots = root_dir.join(&sandbox.roots).display().to_string();
                Box::new(RecorderProbe { roots })
            }
            None => Box::new(live_probe(rooted)),
        };
        let store: Result<Arc<dyn LockStore>, StoreError> = match purpose {
            Purpose::Converge | Purpose::DryRun => {
                store::open(settings.store.clone().into(), &trust.fleet, settings.environment.as_str()).map(Arc::from)
            }
            // Whoever opens a store signs in to it.
            Purpose::Look => Err(StoreError::Settings { why: "nobody asks it".to_owned() }),
        };
        let local = Digest::of_parts([env!("CARGO_PKG_VERSION").as_bytes(), &settings_bytes, &trust_bytes]);
        let updater = Updater::new(&paths, rooted);
        let singletons = Singletons::new(&paths.run(), rooted);
        let boot_id = host.observe(&Query::default()).map_err(StartError::machine)?.boot_id;
        let instance = Instance::new(settings.node.clone(), boot_id);
        let life = store.as_ref().ok().map(|store| Arc::new(Life::new(instance, store.clone(), Arc::new(SystemClock))));
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
            life,
            vigil: Vigil::default(),
            singletons,
            updater,
            inquiry: Inquiry::default(),
            local,
            wakes,
            desk: None,
            stop,
            _only_one: only_one,
        })
    }

    pub fn run(&mut self, mode: Mode) -> Result<Ran, PipelineError> {
        let host = Contained(&self.host);
        let doubled = self.doubled();
        let mut world = World {
            settings: &self.settings,
            root: &self.root,
            paths: &self.paths,
            repository: &mut self.repository,
            accepted: &mut self.accepted,
            ledger: &mut self.ledger,
            identities: &self.identities,
            host: &host,
            store: self.store.as_deref(),
            doubled,
            probe: &*self.probe,
            clock: &SystemClock,
            stop: &self.stop,
            vigil: &mut self.vigil,
            singletons: &mut self.singletons,
            updater: &mut self.updater,
            local: self.local,
            mode,
            inquiry: &mut self.inquiry,
            asked: self.desk.as_ref().and_then(Desk::waiting),
        };
        pipeline::run(&mut world)
    }

    /// From here on others may ask, if the settings say where; the runs of [`Agent::stay`] answer.
    pub fn listen(&mut self) -> Result<(), StartError> {
        let Some(at) = &self.settings.fleetlock else { return Ok(()) };
        let machine = self.paths.root().join("etc/machine-id");
        let machine = disk::read_bounded(&machine, SETTINGS_BYTES_MAX).map_err(StartError::disk)?;
        let machine = machine.and_then(|id| fleetlock::zincati_id(&String::from_utf8_lossy(&id)));
        let ids = machine.into_iter().chain([self.settings.node.to_string()]).collect();
        let desk = Desk::new(self.wakes.waker());
        listen::listen(at, ids, desk.clone()).map_err(|error| StartError::new(reason::SETTINGS, chain(&error)))?;
        self.desk = Some(desk);
        Ok(())
    }

    /// Until this node is converged, or cannot get further without others, or has settled for too long. Told after every run.
    pub fn once(&mut self, mode: Mode, mut told: impl FnMut(&Ran)) -> Result<Ran, PipelineError> {
        let _beats = self.life.as_ref().map(|life| life.keep(LOOKS));
        let began = SystemClock.awake();
        loop {
            self.beat();
            let ran = self.run(mode)?;
            told(&ran);
            if self.updater.goes_on_here() && self.update(Ok(&ran)) == Some(Duration::ZERO) {
                continue;
            }
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
        if let Ok(store) = &self.store {
            self.singletons.begin(&node, store.clone(), wakes.waker());
        }
        let waker = wakes.waker();
        let mut files = Lookout::new(move || waker.wake(Wake::Drift));
        let (mut touches, mut last_touch) = (0, Duration::ZERO);
        let _pushed = self.watch(&wakes, &[protocol::WAKE.to_owned()], Wake::Pushed);
        let mut interests = Vec::new();
        let mut peers = None;
        let mut failures = 0;
        // From here on the signs of life go on beside the runs.
        let _beats = self.life.as_ref().map(|life| life.keep(LOOKS));
        for round in 0.. {
            self.beat();
            // This run looks at all of it.
            drop(files.take());
            let ran = self.run(Mode::Apply);
            told(&ran);
            // What was not watched while this run looked may have moved meanwhile.
            let mut look_again = false;
            let again_in = match &ran {
                Ok(ran) => {
                    failures = if ran.report.exit() == Exit::Unreachable { failures + 1 } else { 0 };
                    let root = self.machine();
                    let paths = ran.managed.as_ref().map(|managed| self.watchable(managed));
                    let resting = ran.resting.iter().map(|path| below(&root, path)).collect();
                    look_again |= files.keep(paths, resting);
                    if let Some(new) = &ran.interests
                        && *new != interests
                    {
                        look_again |= new.iter().any(|key| !interests.contains(key));
                        interests.clone_from(new);
                        drop(peers.take());
                        peers = self.watch(&wakes, &interests, Wake::Store);
                    }
                    if look_again { Some(Duration::ZERO) } else { ran.again_in }
                }
                Err(_) => {
                    failures += 1;
                    None
                }
            };
            let again_in = sooner(again_in, self.update(ran.as_ref()));
            let failed = ran.as_ref().is_ok_and(|ran| ran.report.state == State::Failed);
            let mut pause = if failed { FAILED_PAUSE } else { pacing::in_a_crowd(interests.len()) };
            if again_in.is_none() {
                crate::memory::let_go_of_code();
            }
            let mut sleep = pacing::next(&node, self.settings.poll, round, failures, again_in);
            // Files that are touched all the time are looked at now and then.
            let mut calm = pacing::after_touch(touches);
            let mut touched = false;
            self.inquiry.is_no_news = true;
            loop {
                let began = SystemClock.awake();
                let nap = if touched { sleep.min(calm) } else { sleep };
                let woken = wakes.wait(nap.min(BEAT / 3));
                if woken.contains(&Wake::Shutdown) || self.stop.load(Ordering::Relaxed) {
                    self.singletons.end();
                    if let Some(life) = &self.life {
                        life.leave();
                    }
                    return Exit::Done;
                }
                self.inquiry.is_no_news &= woken.iter().all(|wake| self.is_no_news(*wake));
                let passed = SystemClock.awake().saturating_sub(began);
                for left in [&mut sleep, &mut pause, &mut calm] {
                    *left = left.saturating_sub(passed);
                }
                if woken.iter().all(|wake| *wake == Wake::Store) && !pause.is_zero() {
                    sleep = sleep.min(pause);
                    self.beat();
                    continue;
                }
                touched |= woken.contains(&Wake::Drift);
                let quiet = woken.iter().all(|wake| matches!(wake, Wake::Tick | Wake::Drift)) && !sleep.is_zero();
                if touched && quiet && calm.is_zero() {
                    touched = false;
                    if !self.are_as_left(files.take()) {
                        let now = SystemClock.awake();
                        touches = pacing::touches(touches, now.saturating_sub(last_touch));
                        last_touch = now;
                        tracing::debug!(?woken, "looks again");
                        break;
                    }
                } else if !quiet {
                    tracing::debug!(?woken, "looks again");
                    break;
                }
                self.beat();
            }
        }
        Exit::Done
    }

    /// Between two runs: another program may go on as the agent. How soon to come back for it.
    fn update(&mut self, ran: Result<&Ran, &PipelineError>) -> Option<Duration> {
        // Nobody exchanges the agent of a machine that is worked on either.
        let moves = |state| matches!(state, State::Applying | State::Paused);
        let armed = || session::read_record(&self.paths.hold()).is_some();
        let ended = match ran {
            Ok(ran) => Ended {
                exit: Some(ran.report.exit()),
                at_rest: ran.lines.is_empty() && !moves(ran.report.state) && !armed(),
                target: ran.report.target.clone(),
                only_update: ran.report.reason == reason::UPDATE_FAILED.id,
            },
            Err(_) => Ended { exit: None, at_rest: false, target: None, only_update: false },
        };
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        // Of two machines under one name neither takes another agent.
        let doubled = self.doubled().map(|because| StoreError::Denied { why: because.sentence });
        let errand = Errand {
            me: &self.settings.node,
            paths: &self.paths,
            store: doubled.as_ref().map_or(self.store.as_deref(), Err),
            probe: &*self.probe,
            clock: &SystemClock,
            ledger: &mut self.ledger,
        };
        match self.updater.after(&ended, errand) {
            Next::Go => None,
            Next::Again => Some(Duration::ZERO),
            Next::Soon => Some(UPDATE_SOON),
            Next::Become(program) => {
                let why = launch::exec(&program);
                self.updater.not_become(&why);
                Some(Duration::ZERO)
            }
        }
    }

    fn watch(&self, wakes: &Wakes, interests: &[String], wake: Wake) -> Option<Watch> {
        let store = self.store.as_ref().ok()?;
        let prefixes: Vec<&str> = interests.iter().map(String::as_str).collect();
        let waker = wakes.waker();
        let watch = store.watch(&prefixes, Box::new(move || waker.wake(wake)));
        watch.inspect_err(|error| tracing::warn!(%error, "no watch; polling only")).ok()
    }

    /// Between two runs: what is known of the store and of who else lives is as of now.
    fn beat(&self) {
        let Some(life) = &self.life else { return };
        life.beat();
        if let Some(revision) = life.store_fell() {
            tracing::error!(revision, reason = reason::STORE_REPLACED.id, "{}", reason::STORE_REPLACED.sentence);
            if let Err(error) = session::saw_it_fall(&self.paths.store_pin()) {
                tracing::error!("{}", chain(&error));
            }
        }
    }

    fn doubled(&self) -> Option<Because> {
        self.life.as_ref()?.doubled()
    }

    /// Our own writes are told to us as well.
    fn are_as_left(&self, touched: Touched) -> bool {
        let Touched::Files(files) = touched else { return false };
        let root = self.machine();
        let ours = |path: &HostPath| {
            let inside = Path::new(path.as_str()).strip_prefix(&root).ok()?;
            Some(HostPath::new(format!("/{}", inside.display())))
        };
        let Some(files) = files.iter().map(ours).collect::<Option<Vec<HostPath>>>() else { return false };
        let left = touched::are_as_left(&self.host, &self.ledger, self.local, &files);
        // What cannot be told now is for a run to find out.
        left.unwrap_or(false)
    }

    /// Whether this tells nothing of the branch.
    fn is_no_news(&self, wake: Wake) -> bool {
        match wake {
            Wake::Tick | Wake::Store | Wake::Asked => true,
            // A branch on this machine is watched like a file of ours.
            Wake::Drift => !self.root.remotes.iter().any(|remote| matches!(remote.access, Access::File { .. })),
            Wake::Pushed | Wake::Signal | Wake::Shutdown => false,
        }
    }

    /// The directory that stands for the machine, as the kernel names it.
    fn machine(&self) -> PathBuf {
        self.paths.root().canonicalize().unwrap_or_else(|_| self.paths.root().to_owned())
    }

    /// What we manage, and the branch's own file in repositories on this machine: a push there wakes us at once.
    fn watchable(&self, managed: &[HostPath]) -> Vec<HostPath> {
        let root = self.machine();
        let files = managed.iter().map(|path| below(&root, path));
        let remotes = self.root.remotes.iter().filter_map(|remote| match &remote.access {
            Access::File { path } => Some(path),
            Access::Ssh { .. } | Access::Https { .. } => None,
        });
        // A branch that is only in packed-refs gets a file of its own with the first push.
        let branches = remotes.map(|path| {
            let work_tree = path.join(".git");
            if work_tree.is_dir() { work_tree.join(&self.root.reference) } else { path.join(&self.root.reference) }
        });
        let pause = Paths::below(&root).pause();
        let others = branches.chain([pause]).map(|path| HostPath::new(path.display().to_string()));
        files.chain(others).collect()
    }
}

/// Makes the agent's own folders, and sees to it that nobody else works in them.
fn alone(root: &Path, paths: &Paths) -> Result<Exclusive, StartError> {
    for dir in [root.to_owned(), paths.state(), paths.cache(), paths.run()] {
        disk::create_dirs(&dir).map_err(StartError::disk)?;
    }
    let lock = Exclusive::acquire(&paths.lock()).map_err(StartError::disk)?;
    lock.ok_or_else(|| {
        let state = paths.state();
        StartError::new(reason::SETTINGS, format!("another agent works on {} already", state.display()))
    })
}

fn below(root: &Path, path: &HostPath) -> HostPath {
    HostPath::new(root.join(path.as_str().trim_start_matches('/')).display().to_string())
}

fn sooner(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// What the gates of a real machine need of it.
fn live_probe(rooted: Rooted) -> LiveProbe {
    let systemd = if rooted == Rooted::Host { Systemd::new().ok() } else { None };
    let run = move |argv: &[String], user: Option<&str>, within: Duration| {
        let command = Command { argv, user: user.unwrap_or(""), within };
        let output = programs::run(systemd.as_ref(), &Program::Check, &command).map_err(|error| chain(&error))?;
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
    let (waker, stop) = (wakes.waker(), stop.clone());
    std::thread::spawn(move || {
        while let Ok(signal) = set.wait() {
            let wake = if signal == Signal::SIGHUP { Wake::Signal } else { Wake::Shutdown };
            stop.fetch_or(wake == Wake::Shutdown, Ordering::Relaxed);
            waker.wake(wake);
        }
    });
}
