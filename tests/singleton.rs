//! Three candidates for one singleton, in time that the test makes: every call to the store and to systemd can take any
//! time, freeze the agent, be lost, or happen long after it was sent; agents die, machines lose their power, clocks are set.
//! At no moment two run, and when the faults are over one runs within the promised time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and look at the clock")]

mod bed;
mod forge;

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bed::{Bed, NodeBed};
use converger::clock::Clock;
use converger::host::HostError;
use converger::host::guard::{self, Guard};
use converger::lock::fake::FakeStore;
use converger::lock::singleton::{GRANTS, Grant, Holder, Singleton, Wish, drop_in};
use converger::lock::store::{Condition, LockStore, Outcome, Snapshot, StoreError, Transaction, Watch, Write};
use converger::name::{NodeName, UnitName};
use converger::resource::unit::Active;
use converger::singletons::Post;
use jiff::{SignedDuration, Timestamp};

const CANDIDATES: usize = 3;
const LEASE_SECS: u64 = 30;
const STOP_SECS_MAX: u64 = 8;
const TICK: u64 = 100;
/// From the end of the last fault until one runs: the lease and its margin, a look, a start, and the unit's own stop.
const BOUND_MS: u64 = 75_000;

fn singleton() -> Singleton {
    let (unit, cluster) = ("beat.service".into(), "app".into());
    Singleton { unit, cluster, lease_secs: LEASE_SECS, stop_secs_max: STOP_SECS_MAX }
}

/// Milliseconds that passed, for everybody.
#[derive(Default)]
struct Passed(AtomicU64);

impl Clock for Passed {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + self.awake()
    }

    fn awake(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A machine: its clocks, its systemd, what its agent keeps.
#[derive(Default)]
struct Machine {
    /// When it booted; each at another time.
    booted: i64,
    /// What somebody set its wall clock to.
    set_by: i64,
    cut_off: bool,
    frozen_until: u64,
    next_round: u64,
    /// The link and the timer of its last grant: until when, in everybody's time.
    grant: Option<(Grant, u64)>,
    /// The link is gone, the timer is not.
    barred: bool,
    /// Somebody starts the unit in the moment before.
    started_when_barred: bool,
    unit: Unit,
    /// Its agent's next run mends what does not run.
    mends_at: Option<u64>,
}

impl Machine {
    fn may_start(&self, now: u64) -> bool {
        !self.barred && self.grant.as_ref().is_some_and(|(_, until)| now < *until)
    }
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
enum Unit {
    #[default]
    Down,
    Runs,
    StopsUntil(u64),
}

struct World {
    passed: Arc<Passed>,
    store: FakeStore,
    random: Mutex<u64>,
    machines: Vec<Mutex<Machine>>,
    /// `None`: its agent is dead, or in the middle of a round.
    posts: Vec<Mutex<Option<Post>>>,
    /// Sent, and not there yet.
    late: Mutex<Vec<(u64, Transaction)>>,
    /// Where each keeps which store it knows: nothing, unless a test says so.
    pins: [PathBuf; CANDIDATES],
    _state: tempfile::TempDir,
    calm: Mutex<bool>,
    log: Mutex<Vec<String>>,
    runners_seen: AtomicU64,
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        let passed = Arc::new(Passed::default());
        let state = tempfile::tempdir().unwrap();
        let world = Self {
            pins: std::array::from_fn(|at| state.path().join(format!("store.{at}.json"))),
            _state: state,
            store: FakeStore::new("one", passed.clone()),
            passed,
            random: Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d),
            machines: (0..CANDIDATES).map(|_| Mutex::default()).collect(),
            posts: (0..CANDIDATES).map(|_| Mutex::new(Some(Post::new(singleton(), Wish::Run)))).collect(),
            late: Mutex::default(),
            calm: Mutex::new(false),
            log: Mutex::default(),
            runners_seen: AtomicU64::new(0),
        };
        for at in 0..CANDIDATES {
            world.machine(at, |machine| machine.booted = -1_000_000 * at as i64);
        }
        Arc::new(world)
    }

    fn now(&self) -> u64 {
        self.passed.0.load(Ordering::Relaxed)
    }

    fn machine<T>(&self, at: usize, with: impl FnOnce(&mut Machine) -> T) -> T {
        with(&mut self.machines[at].lock().unwrap())
    }

    fn below(&self, bound: u64) -> u64 {
        let mut state = self.random.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn happens(&self, one_in: u64) -> bool {
        let calm = *self.calm.lock().unwrap();
        !calm && self.below(one_in) == 0
    }

    fn say(&self, words: String) {
        self.log.lock().unwrap().push(format!("{:>8} {words}", self.now()));
    }

    /// The agent of this machine is at a call: meanwhile the others go on.
    fn at_a_call(self: &Arc<Self>, at: usize) {
        let frozen = if self.happens(40) { 100 * self.below(700) } else { 0 };
        if frozen > 5_000 {
            self.say(format!("{at} is frozen for {frozen} ms in the middle of a round"));
        }
        let until = self.now() + frozen;
        while self.now() < until {
            self.tick();
        }
    }

    fn tick(self: &Arc<Self>) {
        self.passed.0.fetch_add(TICK, Ordering::Relaxed);
        let now = self.now();
        let due: Vec<Transaction> = {
            let mut late = self.late.lock().unwrap();
            late.extract_if(.., |(at, _)| *at <= now).map(|(_, transaction)| transaction).collect()
        };
        for transaction in due {
            let done = self.store.commit(&transaction);
            self.say(format!("a late write arrives: {done:?}"));
        }
        for at in 0..CANDIDATES {
            self.systemd(at);
        }
        self.judge();
        if self.happens(300) {
            self.fault();
        }
        for at in 0..CANDIDATES {
            let due = self.machine(at, |machine| machine.next_round <= now && machine.frozen_until <= now);
            let Some(mut post) = due.then(|| self.posts[at].lock().unwrap().take()).flatten() else { continue };
            let (line, guard, clock) = (Line(self.clone(), at), Fake(self.clone(), at), Own(self.clone(), at));
            let round = post.round(&NodeName::from(format!("n{at}").as_str()), &line, &self.pins[at], &guard, &clock);
            let now = self.now();
            self.machine(at, |machine| {
                machine.next_round = now + u64::try_from(round.again_in.as_millis()).unwrap();
                if round.is_news {
                    machine.mends_at = Some(now + 1_000);
                }
            });
            // An agent that was killed meanwhile is not there to put it back.
            let mut kept = self.posts[at].lock().unwrap();
            if kept.is_none() {
                *kept = Some(post);
            }
        }
    }

    fn systemd(&self, at: usize) {
        let now = self.now();
        let stop = self.below(STOP_SECS_MAX * 1_000);
        self.machine(at, |machine| {
            if machine.grant.as_ref().is_some_and(|(_, until)| *until <= now) {
                machine.grant = None;
                if machine.unit == Unit::Runs {
                    machine.unit = Unit::StopsUntil(now + stop);
                }
            }
            if let Unit::StopsUntil(until) = machine.unit
                && until <= now
            {
                machine.unit = Unit::Down;
            }
            let mends = machine.mends_at.is_some_and(|mends| mends <= now && machine.frozen_until <= now);
            if mends {
                machine.mends_at = None;
                if machine.may_start(now) && machine.unit == Unit::Down {
                    machine.unit = Unit::Runs;
                }
            }
        });
    }

    fn runners(&self) -> Vec<usize> {
        (0..CANDIDATES).filter(|at| self.machine(*at, |machine| machine.unit != Unit::Down)).collect()
    }

    fn judge(&self) {
        let runners = self.runners();
        self.runners_seen.fetch_add(runners.len() as u64, Ordering::Relaxed);
        assert!(runners.len() < 2, "two run: {runners:?}\n{}", self.log.lock().unwrap().join("\n"));
    }

    fn fault(&self) {
        let now = self.now();
        let (what, at, long) = (self.below(9), self.below(3) as usize, 100 * self.below(900));
        match what {
            0 | 1 => self.machine(at, |machine| machine.cut_off = true),
            2 | 3 => (0..CANDIDATES).for_each(|at| self.machine(at, |machine| machine.cut_off = false)),
            4 => self.machine(at, |machine| machine.frozen_until = now + long),
            5 => self.machine(at, |machine| machine.set_by = long as i64 * 1_000 - 45_000_000),
            // The agent dies; another one starts, and takes up what is left in /run.
            6 => self.replace_agent(at),
            // The machine loses its power, and boots.
            7 => {
                self.machine(at, |machine| {
                    let booted = now as i64;
                    *machine = Machine { booted, frozen_until: now + long, ..Machine::default() };
                });
                self.replace_agent(at);
            }
            _ => self.machine(at, |machine| machine.unit = Unit::Down),
        }
        self.say(format!("fault {what} at {at}, {long}"));
    }

    fn awake(&self, at: usize) -> Duration {
        let booted = self.machine(at, |machine| machine.booted);
        Duration::from_millis(self.now().checked_add_signed(-booted).unwrap())
    }

    fn replace_agent(&self, at: usize) {
        let awake = self.awake(at);
        let linked = |machine: &mut Machine| machine.grant.clone().filter(|_| !machine.barred);
        let grant = self.machine(at, linked).map(|(grant, _)| grant);
        let mut post = match grant.filter(|grant| grant.is_valid(awake)) {
            Some(grant) => Post::resumed(grant),
            None => Post::new(singleton(), Wish::Run),
        };
        post.wish(singleton(), Wish::Run);
        *self.posts[at].lock().unwrap() = Some(post);
    }

    /// No more faults; what was frozen goes on.
    fn heal(self: &Arc<Self>) {
        *self.calm.lock().unwrap() = true;
        let now = self.now();
        self.late.lock().unwrap().iter_mut().for_each(|(arrives, _)| *arrives = now);
        for at in 0..CANDIDATES {
            self.machine(at, |machine| (machine.cut_off, machine.frozen_until) = (false, now));
        }
    }
}

/// A machine's own clocks.
struct Own(Arc<World>, usize);

impl Clock for Own {
    fn now(&self) -> Timestamp {
        self.0.passed.now() + SignedDuration::from_millis(self.0.machine(self.1, |machine| machine.set_by))
    }

    fn awake(&self) -> Duration {
        self.0.awake(self.1)
    }
}

/// A machine's way to the store.
struct Line(Arc<World>, usize);

fn gone() -> StoreError {
    StoreError::Unreachable { endpoints: "fake".into(), why: "cut off".into() }
}

fn lost() -> StoreError {
    StoreError::OutcomeUnknown { endpoints: "fake".into(), why: "cut off".into() }
}

impl Line {
    fn is_cut(&self) -> bool {
        self.0.machine(self.1, |machine| machine.cut_off)
    }
}

impl LockStore for Line {
    fn identity(&self) -> Result<String, StoreError> {
        if self.is_cut() { Err(gone()) } else { self.0.store.identity() }
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.0.at_a_call(self.1);
        if self.is_cut() {
            return Err(gone());
        }
        let answer = self.0.store.read(prefixes);
        self.0.at_a_call(self.1);
        answer
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        self.0.at_a_call(self.1);
        if self.0.happens(15) {
            let arrives = self.0.now() + 100 * self.0.below(600);
            self.0.say(format!("{} writes, which arrives at {arrives}", self.1));
            self.0.late.lock().unwrap().push((arrives, transaction.clone()));
            return Err(lost());
        }
        if self.is_cut() {
            return Err(lost());
        }
        let done = self.0.store.commit(transaction);
        self.0.at_a_call(self.1);
        if self.0.happens(15) { Err(lost()) } else { done }
    }

    fn watch(&self, _: &[&str], _: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        Ok(Watch::new(()))
    }
}

/// A machine's systemd, as `host::guard` asks it.
struct Fake(Arc<World>, usize);

impl Guard for Fake {
    fn state(&self, _: &UnitName) -> Result<Active, HostError> {
        self.0.at_a_call(self.1);
        Ok(self.0.machine(self.1, |machine| match machine.unit {
            Unit::Down => Active::Inactive,
            Unit::Runs => Active::Active,
            Unit::StopsUntil(_) => Active::Deactivating,
        }))
    }

    fn arm(&self, grant: &Grant) -> Result<(), HostError> {
        self.0.at_a_call(self.1);
        let failed = |why: &str| HostError::Unit { operation: "guard", unit: "beat".into(), why: why.into() };
        let awake = Own(self.0.clone(), self.1).awake();
        if !grant.is_valid(awake) || self.0.happens(30) {
            return Err(failed("too late, or no answer"));
        }
        let left = u64::try_from((grant.ends() - awake).as_millis()).unwrap();
        let until = self.0.now() + left;
        self.0.machine(self.1, |machine| (machine.grant, machine.barred) = (Some((grant.clone(), until)), false));
        self.0.at_a_call(self.1);
        Ok(())
    }

    fn bar(&self, _: &UnitName) -> Result<(), HostError> {
        self.0.at_a_call(self.1);
        self.0.machine(self.1, |machine| {
            if std::mem::take(&mut machine.started_when_barred) && machine.may_start(self.0.now()) {
                machine.unit = Unit::Runs;
            }
            machine.barred = true;
        });
        Ok(())
    }

    fn disarm(&self, _: &UnitName) -> Result<(), HostError> {
        self.0.machine(self.1, |machine| machine.grant = None);
        Ok(())
    }

    fn start(&self, _: &UnitName) -> Result<(), HostError> {
        self.0.at_a_call(self.1);
        let now = self.0.now();
        self.0.machine(self.1, |machine| {
            if machine.may_start(now) && machine.unit == Unit::Down {
                machine.unit = Unit::Runs;
            }
        });
        Ok(())
    }

    fn stop(&self, _: &UnitName) -> Result<(), HostError> {
        let until = self.0.now() + self.0.below(STOP_SECS_MAX * 1_000);
        self.0.machine(self.1, |machine| {
            if machine.unit == Unit::Runs {
                machine.unit = Unit::StopsUntil(until);
            }
        });
        Ok(())
    }
}

/// G16.
#[test]
fn never_two_run_and_one_runs_when_the_faults_are_over() {
    let seeds: u64 = std::env::var("CONVERGER_SEEDS").map_or(30, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let world = World::new(seed);
        for _ in 0..3 {
            while world.below(3_000) != 0 {
                world.tick();
            }
            world.heal();
            let healed = world.now();
            while world.runners().is_empty() {
                world.tick();
                let took = world.now() - healed;
                let log = || world.log.lock().unwrap().join("\n");
                assert!(took < BOUND_MS, "seed {seed}: nobody runs {took} ms after the last fault\n{}", log());
            }
            *world.calm.lock().unwrap() = false;
        }
        assert!(world.runners_seen.load(Ordering::Relaxed) > 0, "seed {seed}");
    }
}

/// What an operator or a restored store does to the key takes the singleton from nobody before its time.
#[test]
fn a_key_that_was_deleted_is_not_taken_at_once() {
    let world = World::new(7);
    *world.calm.lock().unwrap() = true;
    let run_for = |secs: u64| (0..secs * 1_000 / TICK).for_each(|_| world.tick());
    run_for(60);
    let [holder] = world.runners()[..] else { panic!("nobody runs") };
    // It does not hear of it; the others see it at once.
    world.machine(holder, |machine| machine.cut_off = true);
    let delete = Write::Delete(singleton().key());
    world.store.commit(&Transaction { when: Vec::<Condition>::new(), then: vec![delete] }).unwrap();
    run_for(90);
    let runners = world.runners();
    assert!(runners.len() == 1 && runners[0] != holder, "{runners:?} after {holder}");
}

/// A key that is not there looks the same before it was made and after it was deleted.
#[test]
fn who_saw_no_key_before_it_was_made_waits_when_it_is_gone_again() {
    let world = World::new(8);
    *world.calm.lock().unwrap() = true;
    let run_for = |secs: u64| (0..secs * 1_000 / TICK).for_each(|_| world.tick());
    let cut = |at: usize, cut_off: bool| world.machine(at, |machine| machine.cut_off = cut_off);
    run_for(10);
    cut(2, true);
    run_for(50);
    let [holder] = world.runners()[..] else { panic!("nobody runs") };
    // Only who saw nothing of it is there when it is deleted.
    (0..2).for_each(|at| cut(at, true));
    let delete = Write::Delete(singleton().key());
    world.store.commit(&Transaction { when: Vec::<Condition>::new(), then: vec![delete] }).unwrap();
    cut(2, false);
    run_for(60);
    assert!(holder != 2 && world.runners() == [2], "{:?} after {holder}", world.runners());
}

/// S10: the key is not given away under a unit that was started since the look.
#[test]
fn a_unit_that_is_started_while_its_key_is_given_away_is_stopped_first() {
    let world = World::new(9);
    *world.calm.lock().unwrap() = true;
    let run_for = |secs: u64| (0..secs * 1_000 / TICK).for_each(|_| world.tick());
    run_for(60);
    let [holder] = world.runners()[..] else { panic!("nobody runs") };
    world.machine(holder, |machine| machine.started_when_barred = true);
    world.posts[holder].lock().unwrap().as_mut().unwrap().leave();
    run_for(2 * (5 + STOP_SECS_MAX + 1 + 5));
    assert!(!world.machine(holder, |machine| machine.started_when_barred), "it was not started in between");
    let runners = world.runners();
    assert!(runners.len() == 1 && runners[0] != holder, "{runners:?} after {holder}");
}

#[test]
fn who_lost_it_can_have_it_again() {
    let world = World::new(6);
    *world.calm.lock().unwrap() = true;
    let run_for = |secs: u64| (0..secs * 1_000 / TICK).for_each(|_| world.tick());
    let cut = |at: usize, cut_off: bool| world.machine(at, |machine| machine.cut_off = cut_off);
    cut(2, true);
    run_for(60);
    let [first] = world.runners()[..] else { panic!("nobody runs") };
    let second = 1 - first;
    for (away, back) in [(first, second), (second, first), (first, second)] {
        cut(back, false);
        cut(away, true);
        run_for(60);
        assert_eq!(world.runners(), [back]);
    }
}

#[test]
fn a_planned_move_takes_a_stop_and_a_start_and_no_lease() {
    let world = World::new(3);
    *world.calm.lock().unwrap() = true;
    let run_for = |secs: u64| (0..secs * 1_000 / TICK).for_each(|_| world.tick());
    run_for(60);
    let [holder] = world.runners()[..] else { panic!("nobody runs") };
    world.posts[holder].lock().unwrap().as_mut().unwrap().leave();
    // Its look, its stop, its next look, the look of the others.
    run_for(5 + STOP_SECS_MAX + 1 + 5);
    let runners = world.runners();
    assert!(runners.len() == 1 && runners[0] != holder, "{runners:?} after {holder}");
}

/// A holder may be frozen after its write and before systemd has the new timer: until then the others go by the old one.
#[test]
fn a_shorter_lease_counts_when_systemd_goes_by_it() {
    let world = World::new(6);
    *world.calm.lock().unwrap() = true;
    let follow = |lease_secs: u64| {
        for post in &world.posts {
            post.lock().unwrap().as_mut().unwrap().wish(Singleton { lease_secs, ..singleton() }, Wish::Run);
        }
    };
    let written = || {
        let (key, before) = (singleton().key(), world.store.read(&["single/"]).unwrap().revision);
        loop {
            world.tick();
            let snapshot = world.store.read(&["single/"]).unwrap();
            let entry = snapshot.get(&key).filter(|entry| entry.mod_revision > before);
            if let Some(holder) = entry.and_then(Holder::of) {
                return holder.lease_secs;
            }
        }
    };
    follow(10 * LEASE_SECS);
    (0..3_000).for_each(|_| world.tick());
    assert_eq!((written(), world.runners().len()), (10 * LEASE_SECS, 1));
    follow(LEASE_SECS);
    assert_eq!([written(), written()], [10 * LEASE_SECS, LEASE_SECS]);
}

#[test]
fn a_holder_whose_unit_stays_down_lets_another_try() {
    let world = World::new(4);
    *world.calm.lock().unwrap() = true;
    let tick = || {
        world.tick();
        // It cannot run there.
        world.machine(0, |machine| machine.unit = Unit::Down);
    };
    world.machine(1, |machine| machine.frozen_until = 60_000);
    world.machine(2, |machine| machine.frozen_until = 60_000);
    (0..600).for_each(|_| tick());
    assert!(world.machine(0, |machine| machine.grant.is_some()), "it had no rival");
    (0..1_200).for_each(|_| tick());
    assert!(world.runners().iter().any(|at| *at != 0), "{:?}", world.runners());
}

#[test]
fn a_node_that_was_declared_dead_takes_nothing() {
    let world = World::new(5);
    *world.calm.lock().unwrap() = true;
    let dead = |at: usize| Write::Put(format!("dead/n{at}"), b"{}".to_vec());
    let then = (0..CANDIDATES).map(dead).collect();
    world.store.commit(&Transaction { when: Vec::new(), then }).unwrap();
    (0..2_000).for_each(|_| world.tick());
    assert_eq!(world.runners(), [0_usize; 0]);
}

/// What holds refuse gives and takes no singleton either: another store, an older state of this one, one of which nobody
/// knows. A higher epoch is believed.
#[test]
fn a_store_that_is_not_the_one_that_is_known_gives_no_singleton() {
    let pin = |identity: &str, epoch: u64, revision: i64| {
        format!(r#"{{"identity":"{identity}","epoch":{epoch},"revision":{revision}}}"#)
    };
    let fell = pin("one", 0, 1).replace('}', r#","fell":true}"#);
    for pin in [pin("another", 0, 1), pin("one", 0, 1_000), pin("one", 1, 1), fell, "garbage".to_owned()] {
        let world = World::new(8);
        *world.calm.lock().unwrap() = true;
        let run_for = |secs: u64| (0..secs * 1_000 / TICK).for_each(|_| world.tick());
        let told = |pin: &str| world.pins.iter().for_each(|path| std::fs::write(path, pin).unwrap());
        told(&pin);
        run_for(120);
        assert_eq!(world.runners(), [0_usize; 0], "{pin}");
        assert!(world.store.read(&["single/"]).unwrap().entries.is_empty(), "{pin}");
        assert_eq!(std::fs::read_to_string(&world.pins[0]).unwrap(), pin, "it is read only");
        let meta = br#"{"fleet":"f","epoch":2,"schema":1,"store":"one"}"#.to_vec();
        let raised = vec![Write::Put("meta".to_owned(), meta)];
        if pin != "garbage" {
            world.store.commit(&Transaction { when: Vec::new(), then: raised }).unwrap();
            run_for(60);
            assert_eq!(world.runners().len(), 1, "{pin}: told anew");
        }
    }
    // It had the singleton when the store was exchanged: it ends in time.
    let world = World::new(9);
    *world.calm.lock().unwrap() = true;
    let run_for = |secs: u64| (0..secs * 1_000 / TICK).for_each(|_| world.tick());
    run_for(60);
    assert_eq!(world.runners().len(), 1);
    world.pins.iter().for_each(|path| std::fs::write(path, pin("another", 0, 1)).unwrap());
    run_for(LEASE_SECS);
    assert_eq!(world.runners(), [0_usize; 0]);
}

/// The grant on the disk is what systemd's condition and the next agent look at.
#[test]
fn a_grant_is_seen_as_long_as_its_link_leads_to_it() {
    let run = tempfile::tempdir().unwrap();
    let grant = |mark: &str| Grant { singleton: singleton(), revision: 7, mark: mark.to_owned(), sent_ms: 0 };
    let sandbox = guard::Sandbox::new(run.path());
    let marks = |secs| {
        let grants = guard::grants(run.path(), Duration::from_secs(secs));
        grants.into_iter().map(|grant| grant.mark).collect::<Vec<_>>()
    };
    assert!(marks(1).is_empty());
    sandbox.arm(&grant("A")).unwrap();
    sandbox.arm(&grant("B")).unwrap();
    assert_eq!((marks(19), marks(20)), (vec!["B".to_owned()], vec![]));
    let link = run.path().join(GRANTS).join("beat.service");
    let condition = format!("ConditionPathExists=/run/converger/{GRANTS}/beat.service\n");
    assert!(drop_in(&"beat.service".into(), STOP_SECS_MAX).contains(&condition));
    // What systemd's timer does first.
    std::fs::remove_file(std::fs::canonicalize(&link).unwrap()).unwrap();
    assert!(marks(1).is_empty() && !link.exists());
    sandbox.disarm(&"beat.service".into()).unwrap();
    assert!(!link.is_symlink());
}

struct Agent(Child);

impl Agent {
    fn of(node: &NodeBed) -> Self {
        let mut command = bed::converger();
        let settings = node.root.join("etc/converger/agent.toml");
        command.arg("agent").arg("--root").arg(&node.root).arg("--settings").arg(settings);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[track_caller]
fn until(what: &str, happened: impl Fn() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < Duration::from_secs(120), "{what} did not happen within 120 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Below a root no systemd ends it; everything else is the same.
#[test]
fn one_of_two_agents_runs_it_and_a_commit_moves_it() {
    let bed = Bed::new();
    let unit = "\n[[unit]]\nname = \"beat.service\"\ntemplate = \"web.service\"\nsingleton = true\nlease_secs = 15\nstop_secs_max = 5\n";
    bed.edit("roles/web/role.toml", "\n[[check]]", &format!("{unit}\n[[check]]"));
    bed.commit("a singleton");
    let nodes = ["web01", "web02"].map(|name| bed.node(name));
    // A run by hand takes none.
    nodes[0].once();
    let agents = nodes.each_ref().map(Agent::of);
    let runs = |node: &NodeBed| {
        let path = node.root.join("run/converger/units.json");
        let units = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        units.is_some_and(|units| units["beat.service"]["state"] == "active")
    };
    until("a start", || nodes.iter().any(runs));
    let holder = nodes.iter().position(runs).unwrap();
    assert!(!runs(&nodes[1 - holder]), "one stands by");
    until("both are converged", || nodes.iter().all(|node| node.report()["state"] == "converged"));
    let why = |at: usize| bed.converger(&["why", &nodes[at].name]).exits(0).out;
    let words = format!("a singleton: {} runs it, this node stands by", nodes[holder].name);
    assert!(why(holder).contains("a singleton: it runs here"), "{}", why(holder));
    assert!(why(1 - holder).contains(&words), "{}", why(1 - holder));
    let elsewhere = format!("lease_secs = 15\nonly = {{ nodes = [\"{}\"] }}", nodes[1 - holder].name);
    bed.edit("roles/web/role.toml", "lease_secs = 15", &elsewhere);
    bed.commit("elsewhere");
    until("the move", || runs(&nodes[1 - holder]) && !runs(&nodes[holder]));
    drop(agents);
}
