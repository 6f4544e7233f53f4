//! An action of a whole cluster: one member at a time, never one that is behind, and nothing lost when that one dies.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]
#![allow(clippy::disallowed_methods, reason = "starts etcd and waits for it")]

mod etcd;
mod fleet_of;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use converger::apply::{self, Outcome, Reach, Tools};
use converger::clock::{Clock as _, SystemClock};
use converger::host::{Done, Host, HostError, Observed, Query, Step};
use converger::ledger::Ledger;
use converger::lock::fake::{FakeStore, Fault};
use converger::lock::local::LocalStore;
use converger::lock::session::Session;
use converger::lock::store::{LockStore, Outcome as StoreOutcome, Snapshot, StoreError, Transaction, Watch, Write};
use converger::name::{CommitId, NodeName};
use converger::plan::{Plan, plan};
use converger::probe::fake::FakeProbe;
use converger::render::Renderer;
use converger::report::{At, Report, State};
use converger::resource::action::ActionState;
use converger::secrets::Unsealed;
use etcd::Etcd;
use fleet_of::{Files, spec};

const ROLE: &str = r#"
format = 1
[[action]]
name = "topics"
run = ["topics", "{{ vars.wanted }}"]
unless = ["topics-are", "{{ vars.wanted }}"]
scope = "cluster"
"#;
const MEMBERS: [&str; 3] = ["kafka01", "kafka02", "kafka03"];

/// What the action changes: it is nobody's own.
#[derive(Default)]
struct World {
    topics: String,
    running: usize,
    most: usize,
    runs: Vec<String>,
    /// The next run ends so, after it has done its work.
    end: End,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum End {
    #[default]
    Well,
    /// The agent dies in the middle.
    Killed,
    Fails,
    /// It says that it did it and did not.
    Lies,
}

struct Machine<'w> {
    me: &'w str,
    world: &'w Mutex<World>,
}

impl Host for Machine<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        let world = self.world.lock().unwrap();
        let state = |unless: &[String]| if unless[1] == world.topics { ActionState::Done } else { ActionState::Needed };
        let actions = query.actions.iter().map(|spec| (spec.name.clone(), state(&spec.unless))).collect();
        Ok(Observed { actions, boot_id: "boot".to_owned(), ..Observed::default() })
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let Step::Act(spec, _) = step else { return Ok(Done::default()) };
        let end = {
            let mut world = self.world.lock().unwrap();
            world.running += 1;
            world.most = world.most.max(world.running);
            world.runs.push(format!("{} {}", self.me, spec.run[1]));
            std::mem::take(&mut world.end)
        };
        std::thread::sleep(std::time::Duration::from_millis(2)); // lets the others in
        let mut world = self.world.lock().unwrap();
        world.running -= 1;
        match end {
            End::Well => world.topics.clone_from(&spec.run[1]),
            End::Lies => {}
            End::Fails => return Err(HostError::Command { command: "topics".to_owned(), why: "exit 1".to_owned() }),
            End::Killed => {
                drop(world);
                panic_any("killed")
            }
        }
        Ok(Done::default())
    }
}

/// One run of an agent that follows the commit at `seq`, which wants these topics.
fn agent(me: &str, seq: u64, wanted: &str, store: &dyn LockStore, world: &Mutex<World>) -> Outcome {
    run(me, seq, wanted, store, world, |_| {})
}

/// The same, with something done to its plan.
fn run(
    me: &str,
    seq: u64,
    wanted: &str,
    store: &dyn LockStore,
    world: &Mutex<World>,
    change: impl FnOnce(&mut Plan<'_>),
) -> Outcome {
    let variables = format!("[all]\nwanted = \"{wanted}\"\n");
    let files = Files::new().with("roles/kafka/role.toml", ROLE);
    let fleet = files.with("environments/production/variables.toml", variables).fleet();
    let spec = spec(&fleet, me);
    let desired = Renderer::new(&fleet).node(&spec, &Unsealed::without_keys()).unwrap_or_else(|p| panic!("{p:?}"));
    let host = Machine { me, world };
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
    let known = ledger.known().unwrap();
    let observed = converger::pipeline::observe(&host, &desired, &known, ledger.fingerprints()).unwrap();
    let mut plan = plan(&desired, &observed, &known, &spec.groups);
    change(&mut plan);
    let (probe, me) = (FakeProbe::healthy(MEMBERS), NodeName::from(me));
    let session = Session {
        me: &me,
        store: Ok(store),
        probe: &probe,
        clock: &SystemClock,
        boot_id: "boot".to_owned(),
        state_is_old: true,
        record_path: dir.path().join("hold.json"),
        pin_path: dir.path().join("store.json"),
        circles: Vec::new(),
        clusters: vec![("kafka".into(), MEMBERS.map(NodeName::from).to_vec())],
        windows: Vec::new(),
        commit: CommitId::new(format!("c{seq}")),
        seq,
    };
    let stop = AtomicBool::new(false);
    let mut tools = Tools {
        host: &host,
        ledger: &mut ledger,
        session: &session,
        stop: &stop,
        observed: &observed,
        reach: &Reach::NOTHING,
    };
    apply::apply(&plan, &mut tools).unwrap()
}

/// The reason of what was not done, or what was.
fn ended(outcome: &Outcome) -> String {
    let not_done = outcome.failed.iter().chain(&outcome.deferred).map(|(_, because)| because.reason.clone());
    let done = outcome.done.iter().flat_map(|acted| acted.lines.clone());
    not_done.chain(done).collect::<Vec<_>>().join("; ")
}

fn put(store: &dyn LockStore, key: &str, value: impl Into<Vec<u8>>) {
    let then = vec![Write::Put(key.to_owned(), value.into())];
    store.commit(&Transaction { when: vec![], then }).unwrap();
}

/// A member that lives, and reports these commits.
fn reports(store: &dyn LockStore, member: &str, applied: u64, target: u64) {
    let at = |seq| Some(At { commit: CommitId::new(format!("c{seq}")), seq, subject: String::new() });
    let report = Report {
        applied: at(applied),
        target: at(target),
        state: State::Applying,
        ..Report::new(&member.into(), &"production".into(), SystemClock.now())
    };
    put(store, &format!("n/{member}/beat"), "now");
    put(store, &format!("n/{member}/report"), serde_json::to_vec(&report).unwrap());
}

fn claims(store: &dyn LockStore) -> Vec<String> {
    store.read(&["act/"]).unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

/// Stands for SIGKILL: nothing of the agent goes on after it.
fn dies(run: impl FnOnce()) {
    let killed = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    assert_eq!(killed.downcast_ref::<&str>(), Some(&"killed"));
}

fn fake() -> FakeStore {
    FakeStore::new("one", Arc::new(SystemClock))
}

#[test]
fn three_members_at_once_run_it_exactly_once_in_every_store() {
    let (etcd, dir) = (Etcd::start(), tempfile::tempdir().unwrap());
    let local = || {
        let path = dir.path().join("store.db");
        Box::new(LocalStore::open(&path, "/converger/f/e/".to_owned(), Arc::new(SystemClock)).unwrap())
            as Box<dyn LockStore>
    };
    let kinds: [&dyn Fn() -> Box<dyn LockStore>; 2] = [&|| etcd.store(), &local];
    for open in kinds {
        let world = Mutex::new(World::default());
        for round in 1..=8 {
            let wanted = round.to_string();
            std::thread::scope(|scope| {
                for member in MEMBERS {
                    let (store, wanted, world) = (open(), wanted.as_str(), &world);
                    scope.spawn(move || agent(member, round, wanted, &*store, world));
                }
            });
            let world = world.lock().unwrap();
            assert_eq!(world.topics, wanted);
            assert_eq!((world.runs.len(), world.most), (usize::try_from(round).unwrap(), 1), "{:?}", world.runs);
        }
        assert_eq!(claims(&*open()), [] as [&str; 0]);
    }
}

#[test]
fn a_member_that_is_behind_waits_instead_of_putting_the_old_state_back() {
    let (store, world) = (fake(), Mutex::new(World::default()));
    assert_eq!(ended(&agent("kafka01", 5, "old", &store, &world)), "action topics for kafka");
    assert_eq!(ended(&agent("kafka02", 6, "new", &store, &world)), "action topics for kafka");
    assert_eq!(ended(&agent("kafka01", 5, "old", &store, &world)), "behind-peer");
    assert_eq!(world.lock().unwrap().topics, "new");
    // Somebody brought the world there by hand before anybody of c7 ran anything: what the others follow counts too.
    world.lock().unwrap().topics = "newest".to_owned();
    reports(&store, "kafka03", 7, 7);
    assert_eq!(ended(&agent("kafka02", 6, "new", &store, &world)), "behind-peer");
    // A revert is a newer commit.
    assert_eq!(ended(&agent("kafka01", 8, "old", &store, &world)), "action topics for kafka");
    assert_eq!(world.lock().unwrap().runs, ["kafka01 old", "kafka02 new", "kafka01 old"]);
}

#[test]
fn one_that_dies_in_the_middle_keeps_the_turn_and_goes_on_itself() {
    let (store, world) = (fake(), Mutex::new(World { end: End::Killed, ..World::default() }));
    dies(|| drop(agent("kafka01", 5, "a", &store, &world)));
    assert_eq!(claims(&store), ["act/kafka/kafka01"]);
    assert_eq!(store.read(&["action/kafka/topics"]).unwrap().entries.len(), 1, "what is begun is on record before");
    assert_eq!(ended(&agent("kafka02", 5, "a", &store, &world)), "held-by-peer");
    assert_eq!(ended(&agent("kafka02", 6, "b", &store, &world)), "held-by-peer", "another commit changes nothing");
    assert_eq!(ended(&agent("kafka01", 5, "a", &store, &world)), "action topics for kafka");
    assert_eq!(claims(&store), [] as [&str; 0]);
    assert_eq!(world.lock().unwrap().runs, ["kafka01 a", "kafka01 a"]);
}

#[test]
fn a_turn_that_nobody_needs_any_more_goes_back() {
    let (store, world) = (fake(), Mutex::new(World { end: End::Killed, ..World::default() }));
    dies(|| drop(agent("kafka01", 5, "a", &store, &world)));
    world.lock().unwrap().topics = "a".to_owned();
    assert_eq!(ended(&agent("kafka01", 5, "a", &store, &world)), "");
    assert_eq!(claims(&store), [] as [&str; 0]);
}

#[test]
fn a_paused_member_keeps_the_turn_of_what_may_still_run() {
    let (store, world) = (fake(), Mutex::new(World { end: End::Killed, ..World::default() }));
    dies(|| drop(agent("kafka01", 5, "a", &store, &world)));
    run("kafka01", 5, "a", &store, &world, |plan| drop(plan.put_off(None)));
    assert_eq!(claims(&store), ["act/kafka/kafka01"]);
    assert_eq!(ended(&agent("kafka02", 5, "a", &store, &world)), "held-by-peer");
}

#[test]
fn an_operator_frees_the_turn_of_a_dead_machine() {
    let (store, world) = (fake(), Mutex::new(World::default()));
    put(&store, "act/kafka/kafka01", "not even a claim");
    assert_eq!(ended(&agent("kafka02", 5, "a", &store, &world)), "held-by-peer");
    let seen = store.read(&["hold/", "act/"]).unwrap();
    store.commit(&converger::lock::protocol::release_dead(&"kafka01".into(), &seen, b"{}")).unwrap();
    assert_eq!(ended(&agent("kafka01", 5, "a", &store, &world)), "declared-dead");
    put(&store, "action/kafka/topics", r#"{"commit":"c6","seq":6,"node":"kafka01","inputs":""}"#);
    assert_eq!(ended(&agent("kafka02", 5, "a", &store, &world)), "behind-peer", "what it had begun was newer");
    put(&store, "action/kafka/topics", "not even a record");
    assert_eq!(ended(&agent("kafka02", 5, "a", &store, &world)), "behind-peer");
    store.commit(&Transaction { when: vec![], then: vec![Write::Delete("action/kafka/topics".to_owned())] }).unwrap();
    assert_eq!(ended(&agent("kafka02", 5, "a", &store, &world)), "action topics for kafka");
}

#[test]
fn a_failure_is_told_and_gives_the_turn_back() {
    for (end, reason) in [(End::Fails, "apply-failed"), (End::Lies, "apply-failed")] {
        let (store, world) = (fake(), Mutex::new(World { end, ..World::default() }));
        let outcome = agent("kafka01", 5, "a", &store, &world);
        assert_eq!(ended(&outcome), reason);
        if end == End::Lies {
            assert!(outcome.failed[0].1.sentence.contains("still says that it is needed"), "{:?}", outcome.failed);
        }
        assert_eq!(claims(&store), [] as [&str; 0]);
        assert_eq!(ended(&agent("kafka02", 5, "a", &store, &world)), "action topics for kafka");
    }
}

#[test]
fn an_answer_that_is_lost_is_looked_up_and_a_freeze_is_kept() {
    for (fault, then) in [
        (Fault::OutcomeUnknownApplied, "action topics for kafka"),
        (Fault::OutcomeUnknownNotApplied, "store-unreachable"),
        (Fault::NoSpace, "store-full"),
    ] {
        let (store, world) = (fake(), Mutex::new(World::default()));
        // The first commit is the wish, which is a hint.
        put(&store, "n/kafka01/want/act.kafka.topics", want());
        store.fail_next(fault);
        assert_eq!(ended(&agent("kafka01", 5, "a", &store, &world)), then);
        let runs = usize::from(then.starts_with("action"));
        assert_eq!(world.lock().unwrap().runs.len(), runs, "{then}");
        assert_eq!(ended(&agent("kafka01", 5, "a", &store, &world)) == "action topics for kafka", runs == 0);
        assert_eq!(claims(&store), [] as [&str; 0]);
    }
    let (store, world) = (fake(), Mutex::new(World::default()));
    put(&store, "freeze/fleet", r#"{"reason":"audit","by":"ops","until":null}"#);
    assert_eq!(ended(&agent("kafka01", 5, "a", &store, &world)), "frozen");
    assert_eq!(world.lock().unwrap().runs, [] as [&str; 0]);
}

fn want() -> Vec<u8> {
    let awake_ms = u64::try_from(SystemClock.awake().as_millis()).unwrap();
    let want =
        serde_json::json!({ "commit": "c5", "since": SystemClock.now(), "boot_id": "boot", "awake_ms": awake_ms });
    serde_json::to_vec(&want).unwrap()
}

#[test]
fn the_first_member_that_lives_goes_first() {
    let (store, world) = (fake(), Mutex::new(World::default()));
    reports(&store, "kafka01", 4, 5);
    assert_eq!(ended(&agent("kafka02", 5, "a", &store, &world)), "order");
    assert_eq!(ended(&agent("kafka01", 5, "a", &store, &world)), "action topics for kafka");
}

/// A store where something is written between a look and the claim that follows it.
struct Between<'s> {
    store: &'s FakeStore,
    key: Mutex<Option<&'static str>>,
}

impl LockStore for Between<'_> {
    fn identity(&self) -> Result<String, StoreError> {
        self.store.identity()
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.store.read(prefixes)
    }

    fn commit(&self, transaction: &Transaction) -> Result<StoreOutcome, StoreError> {
        if transaction.then.iter().any(|write| write.key().starts_with("act/"))
            && let Some(key) = self.key.lock().unwrap().take()
        {
            put(self.store, key, r#"{"commit":"c6","seq":6,"node":"kafka03","inputs":""}"#);
        }
        self.store.commit(transaction)
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        self.store.watch(prefixes, on_change)
    }
}

#[test]
fn whatever_changes_between_the_look_and_the_claim_is_noticed() {
    for key in ["act/kafka/kafka03", "action/kafka/topics", "freeze/fleet", "freeze/n/kafka01", "dead/kafka01"] {
        for interrupted in [false, true] {
            let (store, world) = (fake(), Mutex::new(World::default()));
            if interrupted {
                world.lock().unwrap().end = End::Killed;
                dies(|| drop(agent("kafka01", 5, "a", &store, &world)));
            }
            let runs = world.lock().unwrap().runs.len();
            let between = Between { store: &store, key: Mutex::new(Some(key)) };
            assert_eq!(ended(&agent("kafka01", 5, "a", &between, &world)), "lost-race", "{key} {interrupted}");
            assert_eq!(world.lock().unwrap().runs.len(), runs, "{key} {interrupted}");
        }
    }
}
