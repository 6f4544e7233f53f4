//! Laws of a node, over random states and crashes at every step: what was applied needs nothing more; a run that died is
//! finished by the next one; no restart is lost and none is made up.
//!
//! The host is in memory and remembers which content every unit was started with. The process "dies" by a panic at one step,
//! before or after its effect, or the step just fails; then the same functions run again, from the same ledger on disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::print_stderr, reason = "panics that are meant stay silent, others are shown")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use converger::apply::{self, Outcome, Reach, Tools};
use converger::clock::FakeClock;
use converger::fleet::Group;
use converger::fleet::schema::{Membership, Quorum};
use converger::host::fake::FakeHost;
use converger::host::{Contained, Done, Host, HostError, Observed, Query, Step};
use converger::ledger::Ledger;
use converger::lock::fake::FakeStore;
use converger::lock::protocol;
use converger::lock::session::{Circle, Session, read_record};
use converger::lock::store::{LockStore, Transaction, Write};
use converger::name::{CommitId, GroupId, NodeName, UnitName};
use converger::pipeline::observe;
use converger::plan::{self, Known};
use converger::probe::fake::{self, FakeProbe};
use converger::render::Desired;
use converger::resource::content::SecretUse;
use converger::resource::file::{FileSpec, Policy};
use converger::resource::unit::{Active, Relations, UnitState, Wanted};
use converger::resource::{ActionSpec, ArtifactSpec, Content, Origin, PackageSpec, Placed, Resource, UnitSpec};
use proptest::prelude::*;
use zeroize::Zeroizing;

#[path = "laws/coupled.rs"]
mod coupled;
#[path = "laws/leaving.rs"]
mod leaving;

/// In a group: `web.service`. Outside of any: `tool.service`.
const UNITS: [&str; 2] = ["web.service", "tool.service"];
const ME: &str = "web01";

/// What a commit wants of the node, as data that can be shrunk and shown.
#[derive(Clone, Debug, PartialEq)]
struct Commit {
    files: BTreeMap<u8, File>,
    units: [Option<Unit>; 2],
    package: Option<u8>,
    /// Version of what the first unit runs.
    artifact: Option<u8>,
    action: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct File {
    content: u8,
    mode: u32,
    attached: Attached,
    /// Version of the secret in it.
    secret: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Attached {
    Nobody,
    Restarts(usize),
    Reloads(usize),
}

#[derive(Clone, Debug, PartialEq)]
struct Unit {
    state: Wanted,
    enabled: Option<bool>,
    epoch: u64,
}

fn path(n: u8) -> String {
    format!("/etc/f{n}")
}

impl Commit {
    fn desired(&self) -> Desired {
        let mut resources = Vec::new();
        let mut place = |resource: Resource, restarts: Vec<UnitName>, reloads: Vec<UnitName>| {
            let origin = Origin { role: "web".into(), cluster: None, path: "roles/web/role.toml".into(), line: 1 };
            resources.push(Placed { resource, origin, restarts, reloads, before: Vec::new(), reboot: false });
        };
        if let Some(version) = self.package {
            let spec = PackageSpec { name: "tool".to_owned(), version: version.to_string(), hold: false };
            place(Resource::Package(spec), Vec::new(), Vec::new());
        }
        if let Some(version) = self.artifact {
            let spec = ArtifactSpec {
                component: "app".to_owned(),
                version: version.to_string(),
                sha256: "ab".repeat(32),
                urls: vec!["https://mirror/app.tgz".to_owned()],
                file: "app.tgz".to_owned(),
                into: "/opt/app".into(),
                buckets: BTreeMap::new(),
                authorities: None,
            };
            let unit = self.units[0].as_ref().map(|_| UnitName::from(UNITS[0]));
            place(Resource::Artifact(spec), unit.into_iter().collect(), Vec::new());
        }
        for (n, file) in &self.files {
            let text = |secret: &str| format!("content {}\n{secret}\n", file.content).into_bytes();
            let content = match file.secret {
                None => Content::plain(text("")),
                Some(version) => {
                    let used = vec![SecretUse { name: "token".into(), version }];
                    Content::secret(Some(Zeroizing::new(text(&version.to_string()))), text("«secret:token»"), used)
                }
            };
            let spec = FileSpec {
                path: path(*n).as_str().into(),
                content,
                owner: "root".to_owned(),
                group: "root".to_owned(),
                mode: file.mode,
                policy: Policy::Enforce,
                validate: None,
            };
            // Whom nobody runs, nobody restarts.
            let unit = |n: usize| self.units[n].as_ref().map(|_| UnitName::from(UNITS[n])).into_iter().collect();
            match file.attached {
                Attached::Nobody => place(Resource::File(spec), Vec::new(), Vec::new()),
                Attached::Restarts(n) => place(Resource::File(spec), unit(n), Vec::new()),
                Attached::Reloads(n) => place(Resource::File(spec), Vec::new(), unit(n)),
            }
        }
        for (n, unit) in self.units.iter().enumerate() {
            let Some(unit) = unit else { continue };
            let spec = UnitSpec {
                name: UNITS[n].into(),
                enabled: unit.enabled,
                state: unit.state,
                before_stop: vec![vec!["drain".to_owned()]],
                transfer: Vec::new(),
                after_start: Vec::new(),
                stop_secs_max: 10,
                start_secs_max: 10,
                reload_hold: true,
                lease_secs: None,
                restart_epoch: unit.epoch,
            };
            place(Resource::Unit(spec), Vec::new(), Vec::new());
        }
        if self.action {
            let spec = ActionSpec {
                name: "format".to_owned(),
                run: vec!["format".to_owned()],
                creates: None,
                unless: vec!["is-formatted".to_owned()],
                user: String::new(),
                scope: converger::resource::action::Scope::Node,
                on: String::new(),
            };
            place(Resource::Action(spec), Vec::new(), Vec::new());
        }
        Desired {
            node: ME.into(),
            state: Membership::Active,
            commit: None,
            resources,
            sealed: Vec::new(),
            strikes: Vec::new(),
        }
    }
}

fn file() -> impl Strategy<Value = File> {
    let attached = prop_oneof![
        Just(Attached::Nobody),
        (0..2_usize).prop_map(Attached::Restarts),
        (0..2_usize).prop_map(Attached::Reloads)
    ];
    let mode = prop_oneof![Just(0o644), Just(0o600)];
    (0..3_u8, mode, attached, prop::option::weighted(0.2, 1..3_u64))
        .prop_map(|(content, mode, attached, secret)| File { content, mode, attached, secret })
}

fn unit() -> impl Strategy<Value = Unit> {
    let state = prop_oneof![4 => Just(Wanted::Running), 1 => Just(Wanted::Stopped), 1 => Just(Wanted::Masked)];
    (state, prop::option::of(any::<bool>()), 0..2_u64).prop_map(|(state, enabled, epoch)| Unit {
        state,
        enabled,
        epoch,
    })
}

fn commit() -> impl Strategy<Value = Commit> {
    let files = prop::collection::btree_map(0..5_u8, file(), 0..5);
    let units = [prop::option::weighted(0.8, unit()), prop::option::weighted(0.6, unit())];
    let (package, artifact) = (prop::option::weighted(0.2, 1..3_u8), prop::option::weighted(0.4, 1..3_u8));
    (files, units, package, artifact, prop::bool::weighted(0.2))
        .prop_map(|(files, units, package, artifact, action)| Commit { files, units, package, artifact, action })
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    /// The process dies before the step happened.
    Before,
    /// The process dies when the step has happened and nobody has written that down.
    After,
    /// The step does not happen, and says so.
    Error,
    /// The code of the step panics.
    Bug,
}

/// A host in memory that knows what its units run with, and ends a run at one step.
#[derive(Default)]
struct Machine {
    host: FakeHost,
    /// What was on disk when each unit was last started, and when it last read its files again.
    runs_with: RefCell<BTreeMap<UnitName, Contents>>,
    reread: RefCell<BTreeMap<UnitName, Contents>>,
    end: Cell<Option<(usize, End)>>,
    /// A socket starts the next unit that is stopped, before anything else happens.
    socket: Cell<bool>,
    restart_at_stage: RefCell<Option<String>>,
    steps: Cell<usize>,
}

type Contents = BTreeMap<String, (Vec<u8>, u32)>;

struct Died;

/// What a provider panics with.
struct Buggy;

impl Machine {
    fn contents(&self) -> Contents {
        let world = self.host.world.borrow();
        let files = world.files.iter().map(|(path, file)| (path.to_string(), (file.bytes.clone(), file.mode)));
        let live = world.artifacts.iter().map(|(into, (version, _))| (into.to_string(), (version.clone().into(), 0)));
        files.chain(live).collect()
    }

    fn starts(&self, unit: &str) -> usize {
        let line = format!("start {unit}");
        self.host.world.borrow().log.iter().filter(|step| **step == line).count()
    }

    /// Somebody starts a unit by hand, or a boot does.
    fn start_by_hand(&self, unit: &str) {
        let contents = self.contents();
        let mut world = self.host.world.borrow_mut();
        let boots = world.boots;
        let state = world.units.get_mut(unit).unwrap();
        state.active = Active::Active;
        state.invocation = format!("by-hand-{boots}-{}", self.steps.get());
        drop(world);
        self.runs_with.borrow_mut().insert(unit.into(), contents.clone());
        self.reread.borrow_mut().insert(unit.into(), contents);
    }
}

impl Host for Machine {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        self.host.observe(query)
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let n = self.steps.get();
        self.steps.set(n + 1);
        let end = self.end.get().filter(|(at, _)| *at == n).map(|(_, end)| end);
        match end {
            Some(End::Before) => std::panic::panic_any(Died),
            Some(End::Bug) => std::panic::panic_any(Buggy),
            Some(End::Error) => {
                return Err(HostError::Command { command: "step".to_owned(), why: "wanted".to_owned() });
            }
            _ => {}
        }
        let done = self.host.perform(step)?;
        if matches!(step, Step::Stage(..))
            && let Some(unit) = self.restart_at_stage.take()
        {
            self.start_by_hand(&unit);
        }
        match step {
            Step::Start { unit, .. } => {
                self.runs_with.borrow_mut().insert((*unit).clone(), self.contents());
                self.reread.borrow_mut().insert((*unit).clone(), self.contents());
            }
            Step::Stop { unit, .. } if self.socket.take() => self.start_by_hand(unit.as_str()),
            Step::Reload { unit, .. } => drop(self.reread.borrow_mut().insert((*unit).clone(), self.contents())),
            _ => {}
        }
        if end == Some(End::After) {
            std::panic::panic_any(Died);
        }
        Ok(done)
    }
}

struct Node {
    machine: Machine,
    dir: tempfile::TempDir,
    store: FakeStore,
    probe: FakeProbe,
    clock: Arc<FakeClock>,
    group: Group,
    /// Counts commits: a failed one is repaired by the next.
    commit: Cell<u64>,
}

impl Node {
    fn new() -> Self {
        std::panic::set_hook(Box::new(|info| {
            if !info.payload().is::<Died>() && !info.payload().is::<Buggy>() {
                eprintln!("{info}");
            }
        }));
        let clock = Arc::new(FakeClock::at("2026-01-01T00:00:00Z".parse().unwrap()));
        let names = ["web01", "web02", "web03"];
        let group = Group {
            id: GroupId::from("web.web"),
            members: names.iter().map(|name| NodeName::from(*name)).collect(),
            changing: BTreeMap::new(),
            quorum: Quorum::Majority,
            max_unavailable: 1,
            rank: Vec::new(),
            conflicts: Vec::new(),
            aliases: Vec::new(),
            unit: UNITS[0].into(),
            gate: Some("up".to_owned()),
            leader: None,
            settle_secs: 1,
            role: "web".into(),
        };
        Self {
            machine: Machine::default(),
            dir: tempfile::tempdir().unwrap(),
            store: FakeStore::new("one", clock.clone()),
            probe: FakeProbe::healthy(names),
            clock,
            group,
            commit: Cell::new(0),
        }
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.dir.path().join("ledger.db")).unwrap()
    }

    fn record(&self) -> PathBuf {
        self.dir.path().join("hold.json")
    }

    fn session(&self, observed: &Observed) -> Session<'_> {
        let question = |member: &NodeName| fake::question(&ME.into(), member, &UNITS[0].into());
        let gate = self.group.members.iter().map(question).collect();
        let me = self.group.members.first().unwrap();
        Session {
            me,
            store: Ok(&self.store),
            probe: &self.probe,
            clock: &*self.clock,
            boot_id: observed.boot_id.clone(),
            state_is_old: true,
            record_path: self.record(),
            pin_path: self.dir.path().join("store.json"),
            clusters: Vec::new(),
            windows: Vec::new(),
            circles: vec![Circle {
                group: std::borrow::Cow::Borrowed(&self.group),
                view: None,
                conflicts: Vec::new(),
                gate,
                leader: Vec::new(),
                after: Vec::new(),
            }],
            commit: CommitId::new(format!("{:040x}", self.commit.get())),
            seq: self.commit.get(),
        }
    }

    fn known(&self) -> Known {
        self.ledger().known().unwrap()
    }

    /// One run, as the pipeline does it. `None`: the process died.
    fn run(&self, desired: &Desired) -> Option<Outcome> {
        let run = || {
            let mut ledger = self.ledger();
            let known = ledger.known().unwrap();
            let observed = observe(&self.machine, desired, &known, ledger.fingerprints()).unwrap();
            let plan = plan::plan(desired, &observed, &known, &[&self.group]);
            let session = self.session(&observed);
            let stop = AtomicBool::new(false);
            let contained = Contained(&self.machine);
            // A bug stays inside as it does in an agent; a death must come through.
            let bug = self.machine.end.get().is_some_and(|(_, end)| end == End::Bug);
            let host: &dyn Host = if bug { &contained } else { &self.machine };
            let mut tools = Tools {
                host,
                ledger: &mut ledger,
                session: &session,
                stop: &stop,
                observed: &observed,
                reach: &Reach::NOTHING,
            };
            apply::apply(&plan, &mut tools).unwrap()
        };
        match std::panic::catch_unwind(AssertUnwindSafe(run)) {
            Ok(outcome) => Some(outcome),
            Err(panic) if panic.is::<Died>() => None,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The member has proven itself for as long as it must: what the vigil does.
    fn settle(&self) {
        let mut ledger = self.ledger();
        let settled = ledger.known().unwrap().units.into_iter().map(|(unit, mut ran)| {
            ran.settled = true;
            (unit, ran)
        });
        let settled: Vec<_> = settled.collect();
        // Only what is not in the middle of an exchange.
        let pending = ledger.known().unwrap().pending;
        let settled: Vec<_> = settled.into_iter().filter(|(unit, _)| !pending.contains_key(unit)).collect();
        ledger.ran(&settled).unwrap();
        let observed = self.machine.observe(&Query::default()).unwrap();
        let session = self.session(&observed);
        use converger::lock::session::RecordPhase;
        let settles = |phase| matches!(phase, RecordPhase::Settling | RecordPhase::Failed);
        if session.record().is_some_and(|record| settles(record.phase)) {
            session.settled().unwrap();
        }
    }

    fn is_converged(&self, desired: &Desired) -> bool {
        let known = self.known();
        let observed = observe(&self.machine, desired, &known, self.ledger().fingerprints()).unwrap();
        plan::plan(desired, &observed, &known, &[&self.group]).is_empty()
    }

    /// Runs until there is nothing to do.
    #[track_caller]
    fn converge(&self, desired: &Desired) {
        self.commit.set(self.commit.get() + 1);
        let mut said = Vec::new();
        for _ in 0..6 {
            let outcome = self.run(desired).expect("nobody dies here");
            self.settle();
            if outcome.is_converged() && self.is_converged(desired) {
                return;
            }
            said = outcome.failed.into_iter().chain(outcome.deferred).map(|(_, because)| because.sentence).collect();
        }
        panic!("not converged after 6 runs: {said:?}; {:#?}", self.machine.host.world.borrow().log);
    }

    /// What people can see of the host, of what we manage.
    fn state(&self, desired: &Desired) -> (Contents, BTreeMap<String, (bool, bool, bool)>) {
        let world = self.machine.host.world.borrow();
        let units = desired.resources.iter().filter_map(|placed| match &placed.resource {
            Resource::Unit(unit) => Some(unit),
            _ => None,
        });
        let units = units.map(|unit| {
            let state = world.units.get(&unit.name).cloned().unwrap_or_else(UnitState::missing);
            let enabled = unit.enabled.is_some() && state.enabled;
            (unit.name.to_string(), (state.is_running(), enabled, state.masked))
        });
        let units = units.collect();
        drop(world);
        (self.machine.contents(), units)
    }

    /// Every running unit runs with what is on disk, as far as it concerns the unit.
    #[track_caller]
    fn nobody_runs_with_old_files(&self, desired: &Desired) {
        let files = self.machine.contents();
        for placed in &desired.resources {
            let path = match &placed.resource {
                Resource::File(file) => file.path.as_str(),
                Resource::Artifact(artifact) => artifact.into.as_str(),
                _ => continue,
            };
            let now = files.get(path);
            let running =
                |unit: &&UnitName| self.machine.host.world.borrow().units.get(*unit).is_some_and(UnitState::is_running);
            for unit in placed.restarts.iter().filter(running) {
                let started = self.machine.runs_with.borrow();
                let with = started.get(unit).and_then(|with| with.get(path));
                assert_eq!(with, now, "{unit} runs with an old {path}");
            }
            for unit in placed.reloads.iter().filter(running) {
                let read = self.machine.reread.borrow();
                let with = read.get(unit).and_then(|with| with.get(path));
                assert_eq!(with, now, "{unit} has read an old {path}");
            }
        }
    }
}

fn config() -> ProptestConfig {
    // Each case has a ledger on disk with full durability.
    ProptestConfig { cases: 40, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_was_applied_needs_nothing_more(first in commit(), second in commit()) {
        let node = Node::new();
        node.machine.host.world.borrow_mut().put("/etc/stranger", "not ours");
        for commit in [&first, &second] {
            let desired = commit.desired();
            node.converge(&desired);
            node.nobody_runs_with_old_files(&desired);
            let log = node.machine.host.world.borrow().log.len();
            let outcome = node.run(&desired).unwrap();
            prop_assert!(outcome.done.is_empty() && outcome.is_converged());
            prop_assert_eq!(node.machine.host.world.borrow().log.len(), log, "a converged run takes no step");
        }
        // Dropped resources went, strangers stay.
        let contents = node.machine.contents();
        prop_assert!(contents.contains_key("/etc/stranger"));
        let mut left: Vec<String> = contents.into_keys().filter(|path| path != "/etc/stranger").collect();
        left.sort();
        let artifact = second.artifact.map(|_| "/opt/app".to_owned());
        let wanted: Vec<String> = second.files.keys().map(|n| path(*n)).chain(artifact).collect();
        prop_assert_eq!(left, wanted);
        for (n, unit) in UNITS.iter().enumerate().filter(|(n, _)| second.units[*n].is_none()) {
            let running = node.machine.host.world.borrow().units.get(*unit).is_some_and(UnitState::is_running);
            prop_assert!(!running, "{} left the repository and runs on ({})", unit, n);
        }
    }

    #[test]
    fn a_run_that_died_is_finished_by_the_next(first in commit(), second in commit(), at in 0..24_usize, how in 0..4_usize) {
        let end = [End::Before, End::After, End::Error, End::Bug][how];
        let desired = second.desired();
        let undisturbed = Node::new();
        undisturbed.converge(&first.desired());
        undisturbed.converge(&desired);
        let node = Node::new();
        node.converge(&first.desired());
        let began = node.machine.steps.get();
        node.machine.end.set(Some((began + at, end)));
        node.commit.set(node.commit.get() + 1);
        let _ = node.run(&desired);
        node.machine.end.set(None);
        // What a new process removes when it starts.
        node.machine.host.perform(&Step::Unstage).unwrap();
        node.converge(&desired);
        prop_assert_eq!(node.state(&desired), undisturbed.state(&desired));
        node.nobody_runs_with_old_files(&desired);
        prop_assert!(read_record(&node.record()).is_none(), "a hold stays");
        // What only the next look shows to be there (a package) is noted by the next run.
        node.run(&desired).unwrap();
        let known = node.known();
        prop_assert!(known.pending.is_empty(), "{:?} is pending", known.pending.keys());
        let unsaid: Vec<_> = known.owned.iter().filter(|(_, owned)| !owned.written).map(|(id, _)| id).collect();
        prop_assert!(unsaid.is_empty(), "{:?} is not noted as written", unsaid);
    }

    #[test]
    fn a_wait_loses_no_restart(first in commit(), second in commit()) {
        let node = Node::new();
        node.converge(&first.desired());
        // web02 has the group.
        let hold = serde_json::json!({ "taken": "by web02" }).to_string().into_bytes();
        let key = protocol::hold_key(&node.group.id, 0, &"web02".into());
        let put = Transaction { when: Vec::new(), then: vec![Write::Put(key.clone(), hold)] };
        node.store.commit(&put).unwrap();
        let desired = second.desired();
        node.commit.set(node.commit.get() + 1);
        let (starts, was) = (node.machine.starts(UNITS[0]), node.machine.host.world.borrow().units.get(UNITS[0]).cloned());
        let running = was.as_ref().is_some_and(UnitState::is_running);
        let outcome = node.run(&desired).unwrap();
        if running {
            prop_assert_eq!(node.machine.starts(UNITS[0]), starts, "it was restarted without a hold");
            let still = node.machine.host.world.borrow().units.get(UNITS[0]).cloned();
            prop_assert_eq!(still.unwrap().invocation, was.unwrap().invocation);
            prop_assert!(outcome.failed.is_empty());
        }
        let give_back = Transaction { when: Vec::new(), then: vec![Write::Delete(key)] };
        node.store.commit(&give_back).unwrap();
        node.converge(&desired);
        node.nobody_runs_with_old_files(&desired);
    }

    #[test]
    fn drift_is_put_back_without_a_restart(wanted in commit(), which in 0..5_u8) {
        let node = Node::new();
        let desired = wanted.desired();
        node.converge(&desired);
        let starts: Vec<usize> = UNITS.iter().map(|unit| node.machine.starts(unit)).collect();
        let before = node.machine.contents();
        if !wanted.files.contains_key(&which) {
            return Ok(());
        }
        node.machine.host.world.borrow_mut().put(&path(which), "quick fix\n");
        node.converge(&desired);
        prop_assert_eq!(node.machine.contents(), before);
        let now: Vec<usize> = UNITS.iter().map(|unit| node.machine.starts(unit)).collect();
        prop_assert_eq!(now, starts);
    }

    #[test]
    fn the_same_input_makes_the_same_plan(first in commit(), second in commit()) {
        let logs = [0, 1].map(|_| {
            let node = Node::new();
            node.converge(&first.desired());
            node.converge(&second.desired());
            node.machine.host.world.borrow().log.clone()
        });
        prop_assert_eq!(&logs[0], &logs[1]);
    }
}

/// One file that restarts a unit, and the unit.
fn simple(content: u8, unit: usize) -> Commit {
    let mut units = [None, None];
    units[unit] = Some(Unit { state: Wanted::Running, enabled: Some(true), epoch: 0 });
    let file = File { content, mode: 0o644, attached: Attached::Restarts(unit), secret: None };
    Commit { files: BTreeMap::from([(0, file)]), units, package: None, artifact: None, action: false }
}

/// A node whose agent dies right before or after the first step that begins with `at`, while it takes the second commit.
fn died(at: &str, end: End, unit: usize) -> (Node, Desired) {
    let steps = |node: &Node| node.machine.host.world.borrow().log.clone();
    let rehearsal = Node::new();
    rehearsal.converge(&simple(1, unit).desired());
    let began = rehearsal.machine.steps.get();
    rehearsal.converge(&simple(2, unit).desired());
    let n = steps(&rehearsal).iter().skip(began).position(|step| step.starts_with(at)).unwrap();
    let node = Node::new();
    node.converge(&simple(1, unit).desired());
    node.machine.end.set(Some((began + n, end)));
    let desired = simple(2, unit).desired();
    node.commit.set(node.commit.get() + 1);
    assert!(node.run(&desired).is_none(), "it was to die at {at}");
    node.machine.end.set(None);
    (node, desired)
}

/// An archive is there before anybody is asked to wait; it becomes live while nobody runs it.
#[test]
fn an_artifact_is_unpacked_before_the_stop_and_switched_between_stop_and_start() {
    let node = Node::new();
    let with = |version| Commit { artifact: Some(version), ..simple(1, 0) }.desired();
    node.converge(&with(1));
    let log = || node.machine.host.world.borrow().log.clone();
    let began = log().len();
    node.converge(&with(2));
    let steps = log().split_off(began);
    let first = |step: &str| steps.iter().position(|line| line == step).unwrap_or_else(|| panic!("{step}: {steps:?}"));
    let order = ["unpack app 2", "run drain", "stop web.service", "switch app 2", "start web.service"].map(first);
    assert!(order.is_sorted(), "{steps:?}");
    node.nobody_runs_with_old_files(&with(2));

    // A mirror that fails stops nobody and claims nothing.
    node.machine.host.world.borrow_mut().fail.push("unpack app 3".to_owned());
    let began = log().len();
    let outcome = node.run(&with(3)).unwrap();
    assert_eq!(outcome.failed.len(), 1);
    assert_eq!(log().split_off(began), ["unpack app 3"]);
    assert!(read_record(&node.record()).is_none());

    // Somebody deleted it: put back without a hold and without a restart.
    node.converge(&with(2));
    let starts = node.machine.starts(UNITS[0]);
    node.machine.host.world.borrow_mut().artifacts.clear();
    let outcome = node.run(&with(2)).unwrap();
    assert_eq!((outcome.drifted.len(), outcome.is_converged(), node.machine.starts(UNITS[0])), (1, true, starts));

    // It leaves the repository, and what used it is stopped first.
    let began = log().len();
    node.converge(&Commit { files: BTreeMap::new(), units: [None, None], ..simple(1, 0) }.desired());
    let steps = log().split_off(began);
    let at = |step: &str| steps.iter().position(|line| line == step).unwrap_or_else(|| panic!("{step}: {steps:?}"));
    assert!(at("stop web.service") < at("discard /opt/app"));
    assert!(node.machine.host.world.borrow().artifacts.is_empty());
}

/// Level, not edge: whatever happened between two runs, the next one finds out by looking.
#[test]
fn a_restart_that_the_agent_did_not_live_to_see() {
    for unit in [0, 1] {
        for (at, end) in [("stage", End::After), ("stop", End::Before), ("stop", End::After), ("swap", End::Before)] {
            let (node, desired) = died(at, end, unit);
            node.converge(&desired);
            node.nobody_runs_with_old_files(&desired);
            assert_eq!(node.machine.starts(UNITS[unit]), 2, "{at} {end:?}: started once more");
        }
        for (at, end) in [("swap", End::After), ("start", End::Before), ("start", End::After)] {
            let (node, desired) = died(at, end, unit);
            node.converge(&desired);
            node.nobody_runs_with_old_files(&desired);
            assert!(read_record(&node.record()).is_none(), "{at} {end:?}: the hold of the dead agent stays");
            let starts = node.machine.starts(UNITS[unit]);
            assert!((2..=3).contains(&starts), "{at} {end:?}: {starts} starts");
        }
    }
}

#[test]
fn somebody_restarted_it_before_the_exchange() {
    for unit in [0, 1] {
        let (node, desired) = died("stop", End::After, unit);
        node.machine.start_by_hand(UNITS[unit]);
        node.converge(&desired);
        node.nobody_runs_with_old_files(&desired);
    }
}

#[test]
fn somebody_restarted_it_after_the_exchange() {
    for unit in [0, 1] {
        let (node, desired) = died("start", End::Before, unit);
        node.machine.start_by_hand(UNITS[unit]);
        node.converge(&desired);
        node.nobody_runs_with_old_files(&desired);
        assert_eq!(node.machine.starts(UNITS[unit]), 1, "it runs with the new files: no second restart");
    }
}

#[test]
fn the_machine_was_rebooted_after_the_exchange() {
    for unit in [0, 1] {
        let (node, desired) = died("start", End::Before, unit);
        node.machine.host.world.borrow_mut().boots += 1;
        node.machine.start_by_hand(UNITS[unit]);
        node.converge(&desired);
        node.nobody_runs_with_old_files(&desired);
        assert_eq!(node.machine.starts(UNITS[unit]), 1, "the boot started it with the new files");
    }
}

#[test]
fn a_restart_by_hand_or_a_reboot_of_a_converged_node_needs_nothing() {
    for reboot in [0, 1] {
        let node = Node::new();
        let desired = simple(1, 0).desired();
        node.converge(&desired);
        node.machine.host.world.borrow_mut().boots += reboot;
        node.machine.start_by_hand(UNITS[0]);
        node.converge(&desired);
        assert_eq!(node.machine.starts(UNITS[0]), 1);
    }
}

#[test]
fn a_unit_that_somebody_stopped_is_started() {
    for unit in [0, 1] {
        let node = Node::new();
        let desired = simple(1, unit).desired();
        node.converge(&desired);
        node.machine.host.world.borrow_mut().units.get_mut(UNITS[unit]).unwrap().active = Active::Inactive;
        node.converge(&desired);
        assert_eq!(node.machine.starts(UNITS[unit]), 2);
        assert!(!node.machine.host.world.borrow().log.iter().any(|step| step.starts_with("stop")));
    }
}

#[test]
fn a_unit_that_runs_with_the_right_files_is_adopted() {
    for unit in [0, 1] {
        let desired = simple(1, unit).desired();
        let model = Node::new();
        model.converge(&desired);
        // The same machine, and an agent that knows nothing of it.
        let node = Node::new();
        node.machine.host.world.borrow_mut().files = model.machine.host.world.borrow().files.clone();
        node.machine.host.world.borrow_mut().units = model.machine.host.world.borrow().units.clone();
        node.converge(&desired);
        assert_eq!(node.machine.host.world.borrow().log, Vec::<String>::new());
        assert!(node.known().units.contains_key(UNITS[unit]), "from now on it is known what it runs with");
    }
}

#[test]
fn a_rekey_restarts_nothing_and_a_raised_version_does() {
    let with = |version: u64| {
        let mut commit = simple(1, 1);
        commit.files.get_mut(&0).unwrap().secret = Some(version);
        commit.desired()
    };
    let node = Node::new();
    node.converge(&with(1));
    // Encrypted anew: another file in the repository, the same value and version here.
    node.converge(&with(1));
    assert_eq!(node.machine.starts(UNITS[1]), 1);
    node.converge(&with(2));
    assert_eq!(node.machine.starts(UNITS[1]), 2);
    node.nobody_runs_with_old_files(&with(2));
}

/// K6: whatever step it is, the run tells the bug and goes on with what does not need it, and the next run finishes.
#[test]
fn a_panic_in_one_provider_fails_its_batch_and_nothing_else() {
    let both = |content| {
        let files = [0, 1].map(|unit| {
            let attached = Attached::Restarts(usize::from(unit));
            (unit, File { content, mode: 0o644, attached, secret: None })
        });
        let unit = Unit { state: Wanted::Running, enabled: Some(true), epoch: 0 };
        Commit {
            files: files.into(),
            units: [Some(unit.clone()), Some(unit)],
            package: None,
            artifact: None,
            action: false,
        }
        .desired()
    };
    let mut panicked = 0;
    for at in 0..20 {
        let node = Node::new();
        node.converge(&both(1));
        let began = node.machine.steps.get();
        node.machine.end.set(Some((began + at, End::Bug)));
        node.commit.set(node.commit.get() + 1);
        let outcome = node.run(&both(2)).unwrap();
        node.machine.end.set(None);
        if let [(batch, because)] = outcome.failed.as_slice() {
            panicked += 1;
            assert_eq!(because.reason(), converger::reason::INTERNAL, "{batch}: {}", because.sentence);
            assert!(because.sentence.contains("which is a bug of converger"), "{}", because.sentence);
            assert_eq!(outcome.done.len(), 1, "the other unit's batch went through");
        }
        node.converge(&both(2));
        node.nobody_runs_with_old_files(&both(2));
    }
    assert!(panicked > 5, "{panicked}");
}

#[test]
fn a_package_goes_with_its_commit_only_if_it_came_with_one() {
    let with = |package| Commit { package, ..simple(1, 0) };
    let there = |node: &Node| node.machine.host.world.borrow().packages.get("tool").cloned();
    let node = Node::new();
    node.converge(&with(Some(1)).desired());
    assert_eq!(there(&node).as_deref(), Some("1"));
    node.converge(&with(None).desired());
    assert_eq!(there(&node), None);

    let node = Node::new();
    node.machine.host.world.borrow_mut().packages.insert("tool".to_owned(), "0".to_owned());
    node.converge(&with(Some(1)).desired());
    assert_eq!(there(&node).as_deref(), Some("1"), "another version of it");
    node.converge(&with(None).desired());
    assert_eq!(there(&node).as_deref(), Some("1"), "it was there before");
}
