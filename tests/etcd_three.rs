//! Three real etcd members in networks of their own, five nodes that restart their members one after the other over them,
//! and everything that can happen to etcd meanwhile. Whoever watches sees at most one member away, at any time.
//!
//! `CONVERGER_ETCD_SECS` is how long each fault lasts (1), `CONVERGER_ETCD_ROUNDS` how often all of them come (1).
#![allow(clippy::disallowed_methods)] // runs etcd, and looks at the clock
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // in what the tests share, as in the tests

mod etcd;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

use converger::fleet::Group;
use converger::lock::session::{Entry, RecordPhase, Swept};
use converger::lock::store::{LockStore, Outcome, StoreError, StoreKind, Transaction, Watch, Write, open};
use converger::probe::{Evidence, Probe, Question};
use etcd::net;
use etcd::node::{Node, group};
use etcd::three::{COUNT, Three};
use nix::sys::signal::Signal;

const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// What the five share: their services, the commit that is wanted, and who watches them.
struct Fleet {
    kind: StoreKind,
    network: String,
    group: Group,
    /// The newest commit.
    target: AtomicU64,
    over: AtomicBool,
    applied: [AtomicU64; NODES.len()],
    up: [AtomicBool; NODES.len()],
    stops: AtomicUsize,
    seen: Mutex<Seen>,
    state: Mutex<Vec<PathBuf>>,
}

/// Every stop and start, as it happens.
#[derive(Default)]
struct Seen {
    away: BTreeSet<usize>,
    broken: Vec<String>,
    reasons: BTreeMap<String, usize>,
}

impl Probe for Fleet {
    fn ask(&self, question: &Question) -> Evidence {
        let at = NODES.iter().position(|name| *name == question.member.as_str()).expect("one of the five");
        if self.up[at].load(SeqCst) { Evidence::healthy() } else { Evidence::unhealthy("it is stopped") }
    }
}

impl Fleet {
    fn new(three: &Three) -> Self {
        Self {
            kind: three.kind(),
            network: three.net.agents.path(),
            group: group("c.g", &NODES),
            target: AtomicU64::new(0),
            over: AtomicBool::new(false),
            applied: Default::default(),
            up: std::array::from_fn(|_| AtomicBool::new(true)),
            stops: AtomicUsize::new(0),
            seen: Mutex::default(),
            state: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn open(&self) -> Box<dyn LockStore> {
        open(self.kind.clone(), "f", "e").unwrap()
    }

    fn stop(&self, me: usize, armed: bool) {
        let mut seen = self.seen();
        if !seen.away.is_empty() || !armed {
            let line = format!("{} stops (armed: {armed}) while {:?} are away", NODES[me], seen.away);
            seen.broken.push(line);
        }
        seen.away.insert(me);
        self.up[me].store(false, SeqCst);
        self.stops.fetch_add(1, SeqCst);
    }

    fn start(&self, me: usize) {
        let mut seen = self.seen();
        seen.away.remove(&me);
        self.up[me].store(true, SeqCst);
    }

    fn has_converged(&self) -> bool {
        let target = self.target.load(SeqCst);
        self.applied.iter().all(|applied| applied.load(SeqCst) == target)
    }

    /// A commit after the other, for so long.
    fn churn(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if self.has_converged() {
                self.target.fetch_add(1, SeqCst);
            }
            sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    fn converge(&self) {
        let end = Instant::now() + Duration::from_secs(180);
        while !self.has_converged() {
            let seen = self.seen();
            assert!(Instant::now() < end, "not converged: {:?}, {:?}, {:?}", self.target, self.applied, seen.reasons);
            drop(seen);
            sleep(Duration::from_millis(10));
        }
    }
}

/// One agent: takes the hold, restarts its member, settles, gives back; dies now and then, and goes on from its record.
fn agent(fleet: &Fleet, me: usize) {
    net::enter(&fleet.network);
    let node = Node::new(NODES[me], &fleet.group);
    fleet.state.lock().unwrap().push(node.dir.path().join("store.json"));
    let mut dice = Dice(0x9e37_79b9 + me as u64);
    let watched = |store: &dyn LockStore| -> (Receiver<()>, Option<Watch>) {
        let (told, woken) = channel();
        let watch = store.watch(&["hold/"], Box::new(move || _ = told.send(())));
        (woken, watch.ok())
    };
    let mut store = fleet.open();
    let (mut woken, mut _watch) = watched(&*store);
    // Since the hold was taken, the member was stopped and started.
    let mut restarted = false;
    while !fleet.over.load(SeqCst) {
        if dice.one_in(50) {
            store = fleet.open();
            (woken, _watch) = watched(&*store);
        }
        let target = fleet.target.load(SeqCst);
        let session = node.session(&*store, fleet, target);
        let Some(record) = session.record() else {
            session.sweep(&mut Swept::default());
            restarted = false;
            if fleet.applied[me].load(SeqCst) < target {
                match session.enter(&node.intent(true)).unwrap() {
                    Entry::Act { .. } => continue,
                    Entry::Deferred(because) => *fleet.seen().reasons.entry(because.reason).or_default() += 1,
                }
            }
            let _ = woken.recv_timeout(Duration::from_millis(200));
            while woken.try_recv().is_ok() {}
            continue;
        };
        if dice.one_in(20) {
            continue; // it died, and is another one now
        }
        match record.phase {
            RecordPhase::Acting | RecordPhase::Repairing if !restarted => {
                fleet.stop(me, !record.holds.is_empty());
                sleep(Duration::from_millis(dice.below(30)));
                fleet.start(me);
                restarted = true;
            }
            RecordPhase::Acting | RecordPhase::Repairing => session.acted().unwrap(),
            RecordPhase::Settling | RecordPhase::Failed => {
                sleep(Duration::from_millis(dice.below(10)));
                match session.settled().unwrap() {
                    None => drop(fleet.applied[me].fetch_max(record.seq, SeqCst)),
                    Some(because) => {
                        *fleet.seen().reasons.entry(format!("release: {}", because.reason)).or_default() += 1;
                        sleep(Duration::from_millis(100));
                    }
                }
            }
        }
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// At most one hold is in the store, whatever happens; a read that is not answered says nothing.
fn audit(fleet: &Fleet) {
    net::enter(&fleet.network);
    let store = fleet.open();
    while !fleet.over.load(SeqCst) {
        if let Ok(read) = store.read(&["hold/"])
            && read.entries.len() > 1
        {
            let keys: Vec<String> = read.entries.into_iter().map(|entry| entry.key).collect();
            fleet.seen().broken.push(format!("two holds: {keys:?}"));
        }
        sleep(Duration::from_millis(5));
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

type Fault = fn(&Fleet, &mut Three, Duration);

const FAULTS: &[(&str, Fault)] = &[
    ("nothing", |fleet, _, time| fleet.churn(time)),
    ("a follower is cut off from everybody", |fleet, three, time| {
        let cut = (three.leader() + 1) % COUNT;
        three.net.unplug(cut);
        fleet.churn(time);
        three.net.plug(cut);
    }),
    ("the leader is cut off from the others, not from the agents", |fleet, three, time| {
        let leader = three.leader();
        let others = [(leader + 1) % COUNT, (leader + 2) % COUNT];
        others.iter().for_each(|other| three.net.cut(leader, *other));
        fleet.churn(time);
        others.iter().for_each(|other| three.net.mend(leader, *other));
    }),
    ("no two members see each other", |fleet, three, time| {
        let pairs = [(0, 1), (1, 2), (2, 0)];
        pairs.iter().for_each(|(one, other)| three.net.cut(*one, *other));
        fleet.churn(time);
        pairs.iter().for_each(|(one, other)| three.net.mend(*one, *other));
    }),
    ("two of three members are unplugged", |fleet, three, time| {
        [0, 1].into_iter().for_each(|member| three.net.unplug(member));
        fleet.churn(time);
        [0, 1].into_iter().for_each(|member| three.net.plug(member));
    }),
    ("the leader is stopped and continued, again and again", |fleet, three, time| {
        for _ in 0..3 {
            let leader = three.leader();
            three.signal(leader, Signal::SIGSTOP);
            fleet.churn(time);
            three.signal(leader, Signal::SIGCONT);
            fleet.churn(time / 4);
        }
    }),
    ("a member is killed and comes back", |fleet, three, time| {
        let leader = three.leader();
        three.kill(leader);
        fleet.churn(time);
        three.restart(leader);
        fleet.churn(time / 4);
    }),
    ("a member comes back without its data", |fleet, three, time| {
        let member = (three.leader() + 1) % COUNT;
        three.lose_data(member);
        fleet.churn(time);
    }),
    ("everything is compacted all the time", |fleet, three, time| {
        let end = Instant::now() + time;
        let store = fleet.open();
        while Instant::now() < end {
            if let Ok(read) = store.read(&["meta"]) {
                three.ctl(0, &["compact", &read.revision.to_string()]);
            }
            fleet.churn(time / 10);
        }
    }),
    ("the store is full", full),
    ("a snapshot is restored", restored),
];

/// G14: nobody claims, whoever has a hold gives it back.
fn full(fleet: &Fleet, three: &mut Three, time: Duration) {
    let store = fleet.open();
    let put = |key: String| {
        let then = vec![Write::Put(key, vec![b'x'; 1 << 20])];
        store.commit(&Transaction { when: Vec::new(), then })
    };
    let end = Instant::now() + Duration::from_secs(60);
    let mut parts = 0;
    loop {
        fleet.churn(Duration::from_millis(20));
        match put(format!("junk/{parts}")) {
            Err(StoreError::NoSpace) => break,
            Ok(_) => parts += 1,
            Err(_) => {}
        }
        assert!(Instant::now() < end, "it takes everything");
    }
    let known = |reason: &str| fleet.seen().reasons.get(reason).copied().unwrap_or(0);
    let (before, end) = (known("store-full"), Instant::now() + Duration::from_secs(60));
    while known("store-full") == before && Instant::now() < end {
        fleet.churn(Duration::from_millis(10));
    }
    assert!(known("store-full") > before, "nobody says so");
    fleet.churn(time);
    // Releases work: what was held is held no more.
    let end = Instant::now() + Duration::from_secs(60);
    while !store.read(&["hold/"]).is_ok_and(|read| read.entries.is_empty()) {
        assert!(Instant::now() < end, "a hold stays in a full store");
        sleep(Duration::from_millis(10));
    }
    for part in 0..=parts {
        let then = vec![Write::Delete(format!("junk/{part}"))];
        assert!(matches!(store.commit(&Transaction { when: Vec::new(), then }), Ok(Outcome::Committed(_))));
    }
    let revision = store.read(&["meta"]).unwrap().revision.to_string();
    three.ctl(0, &["compact", "--physical", &revision]).expect("it is compacted");
    for member in 0..COUNT {
        three.ctl(member, &["defrag"]).expect("it is defragmented");
    }
    three.ctl(0, &["alarm", "disarm"]).expect("the alarm is taken back");
}

/// G20: what was released since is held again, what was taken is free. Nobody is disrupted until somebody has looked.
fn restored(fleet: &Fleet, three: &mut Three, time: Duration) {
    let snapshot = three.snapshot();
    fleet.churn(time);
    fleet.converge();
    three.restore(&snapshot);
    let store = fleet.open();
    let end = Instant::now() + Duration::from_secs(60);
    while store.read(&["meta"]).is_err() {
        assert!(Instant::now() < end, "the restored members do not answer");
        sleep(Duration::from_millis(50));
    }
    let stops = fleet.stops.load(SeqCst);
    fleet.target.fetch_add(1, SeqCst);
    // Whatever is written meanwhile: an older state does not become the right one by growing.
    for n in 0..500 {
        let then = vec![Write::Put(format!("growth/{}", n % 10), Vec::new())];
        drop(store.commit(&Transaction { when: Vec::new(), then }));
    }
    sleep(time);
    assert_eq!(fleet.stops.load(SeqCst), stops, "somebody was disrupted: {:?}", fleet.seen().reasons);
    assert!(fleet.seen().reasons.contains_key("store-replaced"), "{:?}", fleet.seen().reasons);
    // As the manual says, once it is sure that no hold was lost.
    fleet.state.lock().unwrap().iter().for_each(|pin| std::fs::remove_file(pin).unwrap());
}

/// S1, S6, G5, G14, G15, G20, G32, G34: the promise, whatever happens to the store.
#[test]
fn at_most_one_member_is_away_whatever_happens_to_three_real_members() {
    let mut three = Three::start(&["--quota-backend-bytes", "16777216"]);
    net::enter(&three.net.agents.path());
    let fleet = Fleet::new(&three);
    let (time, rounds) = (Duration::from_secs(number("CONVERGER_ETCD_SECS", 1)), number("CONVERGER_ETCD_ROUNDS", 1));
    std::thread::scope(|scope| {
        let _ends = Ends(&fleet.over);
        for me in 0..NODES.len() {
            let fleet = &fleet;
            scope.spawn(move || agent(fleet, me));
        }
        scope.spawn(|| audit(&fleet));
        for round in 1..=rounds {
            for (what, fault) in FAULTS {
                fleet.target.fetch_add(1, SeqCst);
                let (began, stops, commits) = (Instant::now(), fleet.stops.load(SeqCst), fleet.target.load(SeqCst));
                fleet.seen().reasons.clear();
                fault(&fleet, &mut three, time);
                fleet.converge();
                let (stops, commits) = (fleet.stops.load(SeqCst) - stops, fleet.target.load(SeqCst) + 1 - commits);
                let (secs, seen) = (began.elapsed().as_secs_f32(), fleet.seen());
                eprintln!("{round}. {what}: {commits} commits, {stops} restarts in {secs:.1} s, {:?}", seen.reasons);
                assert!(seen.broken.is_empty(), "{what}: {:?}", seen.broken);
            }
        }
    });
    let left = fleet.open().read(&["hold/"]).unwrap().entries;
    assert!(left.is_empty(), "{left:?}");
    assert!(fleet.stops.load(SeqCst) >= NODES.len() * FAULTS.len());
}

/// The agents end, also when an assertion does not hold.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
