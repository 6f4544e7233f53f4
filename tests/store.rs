//! What every store must do, over all three of them, and what only a real etcd can be asked.
//!
//! Never: a store that is not the real one, except the fake itself.
#![allow(clippy::disallowed_methods)] // starts, freezes and kills etcd, and waits for it
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // in what the tests share, as in the tests

mod etcd;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use converger::clock::{Clock, FakeClock, SystemClock};
use converger::lock::fake::{FakeStore, Fault};
use converger::lock::local::LocalStore;
use converger::lock::store::{
    Condition, LockStore, Outcome, Snapshot, StoreError, StoreKind, Transaction, Watch, Write, open,
};
use etcd::{Ca, Etcd, as_user, binary, etcd_with_certificates, free_port, kind};
use nix::sys::signal::Signal;

// ---- the contract, over every store ----

type OpenClient = dyn Fn(&str) -> Box<dyn LockStore>;
type Case = fn(&Bed);

/// A kind of store: how to get one more client of an environment, and how time passes for it.
struct Bed {
    client: Box<OpenClient>,
    pass: Box<dyn Fn(Duration)>,
}

const CONTRACT: &[(&str, Case)] = &[
    ("conditions hold or refuse", conditions_hold_or_refuse),
    ("a range is untouched until something in it is written", a_range_is_untouched_until_something_in_it_is_written),
    ("create and mod revisions", create_and_mod_revisions),
    ("what changes nothing keeps the revision", what_changes_nothing_keeps_the_revision),
    ("several ranges are read at one revision", several_ranges_are_read_at_one_revision),
    ("of two that claim one wins", of_two_that_claim_one_wins),
    ("a watch tells of writes and deletions of others", a_watch_tells_of_writes_and_deletions_of_others),
    ("what was put for a time vanishes", what_was_put_for_a_time_vanishes),
    ("a malformed transaction is refused", a_malformed_transaction_is_refused),
    ("the identity stays", the_identity_stays),
];

fn keeps_the_contract(bed: &Bed) {
    for (name, case) in CONTRACT {
        eprintln!("- {name}");
        case(bed);
    }
}

#[test]
fn the_fake_keeps_the_contract() {
    keeps_the_contract(&fake_bed());
}

#[test]
fn the_local_store_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    keeps_the_contract(&local_bed(dir.path()));
}

#[test]
fn etcd_keeps_the_contract() {
    let etcd = Etcd::start();
    keeps_the_contract(&etcd_bed(&etcd));
}

fn fake_bed() -> Bed {
    let clock = Arc::new(FakeClock::at(SystemClock.now()));
    let stores = std::sync::Mutex::new(std::collections::HashMap::new());
    let time = Arc::clone(&clock);
    Bed {
        client: Box::new(move |environment| {
            let mut stores = stores.lock().unwrap();
            let clock: Arc<dyn Clock + Send + Sync> = clock.clone();
            let store = stores.entry(environment.to_owned()).or_insert_with(|| FakeStore::new("f", clock));
            Box::new(store.clone())
        }),
        pass: Box::new(move |by| time.advance(by)),
    }
}

fn etcd_bed(etcd: &Etcd) -> Bed {
    let kind = etcd.kind();
    Bed {
        client: Box::new(move |environment| open(kind.clone(), "f", environment).unwrap()),
        pass: Box::new(std::thread::sleep),
    }
}

fn local_bed(dir: &Path) -> Bed {
    let clock = Arc::new(FakeClock::at(SystemClock.now()));
    let path = dir.join("store.db");
    let time = Arc::clone(&clock);
    Bed {
        client: Box::new(move |environment| {
            Box::new(LocalStore::open(&path, format!("/converger/f/{environment}/"), clock.clone()).unwrap())
        }),
        pass: Box::new(move |by| time.advance(by)),
    }
}

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.into(), value.into())
}

fn delete(key: &str) -> Write {
    Write::Delete(key.into())
}

fn commit(store: &dyn LockStore, when: Vec<Condition>, then: Vec<Write>) -> Outcome {
    store.commit(&Transaction { when, then }).unwrap()
}

fn committed(store: &dyn LockStore, then: Vec<Write>) -> i64 {
    match commit(store, vec![], then) {
        Outcome::Committed(revision) => revision,
        Outcome::Refused => panic!("refused without a condition"),
    }
}

fn keys(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.entries.iter().map(|entry| entry.key.as_str()).collect()
}

fn conditions_hold_or_refuse(bed: &Bed) {
    let store = (bed.client)("conditions");
    let created = committed(&*store, vec![put("a/x", "1")]);
    let modified = committed(&*store, vec![put("a/x", "2")]);
    let check = |condition: Condition, holds: bool| {
        let outcome = commit(&*store, vec![condition.clone()], vec![put("seen", "")]);
        assert_eq!(matches!(outcome, Outcome::Committed(_)), holds, "{condition:?}");
    };
    check(Condition::Absent("a/y".into()), true);
    check(Condition::Absent("a/x".into()), false);
    check(Condition::CreatedAt("a/x".into(), created), true);
    check(Condition::CreatedAt("a/x".into(), modified), false);
    check(Condition::CreatedAt("a/y".into(), created), false);
    check(Condition::ModifiedAt("a/x".into(), modified), true);
    check(Condition::ModifiedAt("a/x".into(), created), false);
    check(Condition::ModifiedAt("a/y".into(), 0), true);
    check(Condition::ModifiedAt("a/x".into(), 0), false);
    check(Condition::RangeEmpty("b/".into()), true);
    check(Condition::RangeEmpty("a/".into()), false);
    check(Condition::RangeEmpty("a".into()), true);
    check(Condition::RangeEmpty("a/x".into()), false);
    check(Condition::RangeEmpty("".into()), false);

    let refused =
        commit(&*store, vec![Condition::Absent("new".into()), Condition::Absent("a/x".into())], vec![put("new", "")]);
    assert_eq!(refused, Outcome::Refused);
    assert_eq!(store.read(&["new"]).unwrap().entries, vec![]);
}

fn a_range_is_untouched_until_something_in_it_is_written(bed: &Bed) {
    let store = (bed.client)("untouched");
    let untouched = |since: i64| {
        let when = vec![Condition::RangeUntouchedSince("hold/g/".into(), since)];
        matches!(commit(&*store, when, vec![]), Outcome::Committed(_))
    };
    let empty = store.read(&["hold/g/"]).unwrap().revision;
    assert!(untouched(empty), "empty");
    assert!(untouched(0), "empty, and nothing was ever read");

    let one = committed(&*store, vec![put("hold/g/0/n1", "1")]);
    assert!(!untouched(empty), "a newer key");
    assert!(untouched(one));
    let two = committed(&*store, vec![put("hold/g/0/n1", "2")]);
    assert!(!untouched(one), "rewritten");
    assert!(untouched(two));
    committed(&*store, vec![put("hold/g1/0/n1", "")]);
    assert!(untouched(two), "another range");
    committed(&*store, vec![delete("hold/g/0/n1")]);
    assert!(untouched(two), "a deletion does not count");
}

fn create_and_mod_revisions(bed: &Bed) {
    let store = (bed.client)("revisions");
    let one = committed(&*store, vec![put("a", "1"), put("b", "1")]);
    let two = committed(&*store, vec![put("a", "2")]);
    assert_eq!(two, one + 1);
    let read = store.read(&["a", "b"]).unwrap();
    let a = read.get("a").unwrap();
    assert_eq!((a.create_revision, a.mod_revision, a.value.as_slice()), (one, two, b"2".as_slice()));
    let b = read.get("b").unwrap();
    assert_eq!((b.create_revision, b.mod_revision), (one, one));
    assert_eq!(read.revision, two);

    committed(&*store, vec![delete("a")]);
    let again = committed(&*store, vec![put("a", "3")]);
    assert_eq!(again, two + 2);
    assert_eq!(store.read(&["a"]).unwrap().get("a").unwrap().create_revision, again);
}

fn what_changes_nothing_keeps_the_revision(bed: &Bed) {
    let store = (bed.client)("nothing");
    let one = committed(&*store, vec![put("a", "")]);
    assert_eq!(committed(&*store, vec![]), one);
    assert_eq!(committed(&*store, vec![delete("b")]), one);
    assert_eq!(commit(&*store, vec![Condition::Absent("a".into())], vec![put("b", "")]), Outcome::Refused);
    assert_eq!(store.read(&[""]).unwrap().revision, one);
    let released = commit(&*store, vec![Condition::CreatedAt("a".into(), one)], vec![delete("a")]);
    assert_eq!(released, Outcome::Committed(one + 1));
    assert_eq!(keys(&store.read(&[""]).unwrap()), Vec::<&str>::new());
}

fn several_ranges_are_read_at_one_revision(bed: &Bed) {
    let store = (bed.client)("ranges");
    let revision =
        committed(&*store, vec![put("b/2", ""), put("b/1", ""), put("a/1", ""), put("a", ""), put("b1", "")]);
    let read = store.read(&["b/", "a/", "b/1"]).unwrap();
    assert_eq!(keys(&read), ["a/1", "b/1", "b/2"], "by key, each once");
    assert_eq!(read.revision, revision);
    assert_eq!(keys(&store.read(&["a"]).unwrap()), ["a"]);
    assert_eq!(keys(&store.read(&[""]).unwrap()), ["a", "a/1", "b/1", "b/2", "b1"]);
    assert_eq!(keys(&(bed.client)("rangesother").read(&[""]).unwrap()), Vec::<&str>::new(), "another environment");

    // One writer moves two keys together; nobody ever sees one without the other.
    let writer = (bed.client)("ranges");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..100 {
                committed(&*writer, vec![put("x/1", &round.to_string()), put("y/1", &round.to_string())]);
            }
        });
        for _ in 0..100 {
            let read = store.read(&["x/", "y/"]).unwrap();
            let value = |key| read.get(key).map(|entry: &converger::lock::store::Entry| entry.value.clone());
            assert_eq!(value("x/1"), value("y/1"));
        }
    });
}

fn of_two_that_claim_one_wins(bed: &Bed) {
    const ROUNDS: usize = 200;
    let stores = [(bed.client)("race"), (bed.client)("race")];
    let wins: Vec<_> = (0..ROUNDS).map(|_| AtomicUsize::new(0)).collect();
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for (node, store) in stores.iter().enumerate() {
            let (wins, barrier) = (&wins, &barrier);
            scope.spawn(move || {
                for (round, wins) in wins.iter().enumerate() {
                    barrier.wait();
                    let when = vec![Condition::RangeEmpty(format!("hold/{round}/"))];
                    if commit(&**store, when, vec![put(&format!("hold/{round}/n{node}"), "")]) != Outcome::Refused {
                        wins.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    assert!(wins.iter().all(|wins| wins.load(Ordering::SeqCst) == 1));
    assert_eq!(stores[0].read(&["hold/"]).unwrap().entries.len(), ROUNDS);
}

fn watched(store: &dyn LockStore, prefixes: &[&str]) -> (Watch, Receiver<()>) {
    let (told, changes) = channel();
    let watch = store
        .watch(
            prefixes,
            Box::new(move || {
                let _ = told.send(());
            }),
        )
        .unwrap();
    (watch, changes)
}

fn a_watch_tells_of_writes_and_deletions_of_others(bed: &Bed) {
    let (watcher, other) = ((bed.client)("watch"), (bed.client)("watch"));
    let (watch, changes) = watched(&*watcher, &["hold/", "wake"]);
    let told =
        |what: &str| changes.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("not told: {what}"));
    committed(&*other, vec![put("hold/g/0/n1", "")]);
    told("put");
    committed(&*other, vec![put("hold/g/0/n1", "2")]);
    told("rewritten");
    committed(&*other, vec![delete("hold/g/0/n1")]);
    told("deleted");
    committed(&*other, vec![put("wake", "")]);
    told("one key");
    committed(&*watcher, vec![put("wake", "2")]);
    told("by itself");

    // What comes after something unwatched is told; the unwatched thing was not, or would come first.
    committed(&*other, vec![put("wakes", ""), put("n/n1/report", "")]);
    assert!(changes.recv_timeout(Duration::from_millis(300)).is_err(), "told of what it does not watch");

    drop(watch);
    committed(&*other, vec![put("wake", "3")]);
    assert!(changes.recv_timeout(Duration::from_millis(300)).is_err(), "told after its end");
}

fn what_was_put_for_a_time_vanishes(bed: &Bed) {
    let store = (bed.client)("putfor");
    let beat = || vec![Write::PutFor("n/n1/beat".into(), b"x".to_vec(), Duration::from_secs(5))];
    let is_there = || !store.read(&["n/n1/beat"]).unwrap().entries.is_empty();
    committed(&*store, beat());
    // Put again in time, it outlives its first time.
    for _ in 0..6 {
        (bed.pass)(Duration::from_secs(1));
        assert!(is_there());
        committed(&*store, beat());
    }
    assert!(is_there());
    for _ in 0..60 {
        (bed.pass)(Duration::from_secs(1));
        if !is_there() {
            break;
        }
    }
    assert!(!is_there(), "still there");
    assert!(matches!(
        commit(&*store, vec![Condition::RangeEmpty("n/n1/".into()), Condition::Absent("n/n1/beat".into())], beat()),
        Outcome::Committed(_)
    ));
    assert!(is_there(), "made again after it had vanished");
    committed(&*store, vec![put("n/n1/beat", "for good")]);
    (bed.pass)(Duration::from_secs(8));
    assert!(is_there(), "a plain put stays");
}

fn a_malformed_transaction_is_refused(bed: &Bed) {
    let store = (bed.client)("malformed");
    let twice = Transaction { when: vec![], then: vec![put("a", "1"), delete("a")] };
    assert!(matches!(store.commit(&twice), Err(StoreError::Settings { .. })));
    assert_eq!(store.read(&["a"]).unwrap().entries, vec![]);
}

fn the_identity_stays(bed: &Bed) {
    let identity = (bed.client)("identity").identity().unwrap();
    assert!(!identity.is_empty());
    assert_eq!((bed.client)("identity").identity().unwrap(), identity);
}

// ---- the fake ----

#[test]
fn the_fake_fails_as_it_is_told() {
    let store = FakeStore::new("f", Arc::new(SystemClock));
    let write = |key: &str| store.commit(&Transaction { when: vec![], then: vec![put(key, "")] });
    store.fail_next(Fault::OutcomeUnknownApplied);
    store.fail_next(Fault::OutcomeUnknownNotApplied);
    store.fail_next(Fault::NoSpace);
    assert!(store.read(&["a"]).is_ok(), "a read has no unknown outcome");
    assert!(matches!(write("a"), Err(StoreError::OutcomeUnknown { .. })));
    assert!(matches!(write("b"), Err(StoreError::OutcomeUnknown { .. })));
    assert_eq!(committed(&store, vec![delete("a")]), 3, "a full store takes deletions");
    assert!(matches!(write("c"), Err(StoreError::NoSpace)));
    committed(&store, vec![put("d", "")]);
    store.fail_next(Fault::Unreachable);
    assert!(matches!(store.read(&[""]), Err(StoreError::Unreachable { .. })));
    assert_eq!(keys(&store.read(&[""]).unwrap()), ["d"]);
}

// ---- the local store ----

fn local(path: &Path) -> Box<dyn LockStore> {
    open(StoreKind::Local { path: path.into() }, "f", "e").unwrap()
}

#[test]
fn eight_writers_of_a_local_store_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                // Eight make the file at once.
                let store = local(&path);
                let mut done = 0;
                while done < 100 {
                    let read = store.read(&["counter"]).unwrap();
                    let (value, revision) = read.get("counter").map_or((0, 0), |entry| {
                        (String::from_utf8(entry.value.clone()).unwrap().parse::<u32>().unwrap(), entry.mod_revision)
                    });
                    let when = vec![Condition::ModifiedAt("counter".into(), revision)];
                    if commit(&*store, when, vec![put("counter", &(value + 1).to_string())]) != Outcome::Refused {
                        done += 1;
                    }
                }
            });
        }
    });
    let read = local(&path).read(&["counter"]).unwrap();
    assert_eq!(read.get("counter").unwrap().value, b"800");
    assert_eq!(read.revision, 801, "one revision for each commit, after the first");
}

#[test]
fn local_stores_are_told_apart_and_a_reopened_one_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("1.db"), dir.path().join("2.db"));
    let identity = local(&one).identity().unwrap();
    assert_ne!(identity, local(&two).identity().unwrap());
    assert_eq!(identity, local(&one).identity().unwrap());
}

#[test]
fn a_local_watch_survives_the_loss_of_its_wake_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let (watcher, other) = (local(&path), local(&path));
    let (_watch, changes) = watched(&*watcher, &["a"]);
    std::fs::remove_file(dir.path().join("store.db.wake")).unwrap();
    changes.recv_timeout(Duration::from_secs(60)).expect("told that the watch was set up again");
    committed(&*other, vec![put("a", "")]);
    changes.recv_timeout(Duration::from_secs(60)).expect("told of the write");
}

#[test]
fn a_wake_file_that_is_a_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("store.db.wake")).unwrap();
    let error = open(StoreKind::Local { path }, "f", "e").err().expect("refused");
    assert!(matches!(error, StoreError::Settings { .. }), "{error}");
    assert!(!dir.path().join("elsewhere").exists());
}

// ---- a real etcd ----

/// Until a read answers: a server that was just started may have no leader yet.
fn read_soon(store: &dyn LockStore) -> Snapshot {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        match store.read(&[""]) {
            Ok(read) => return read,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn write(store: &dyn LockStore, key: &str) -> Result<Outcome, StoreError> {
    store.commit(&Transaction { when: vec![], then: vec![put(key, "")] })
}

/// What a call may take (etcd.rs). A loaded machine is late by some; without the deadline it is the keepalive that ends a
/// call, after 15 s.
const DEADLINE: Duration = Duration::from_secs(5);

#[test]
fn a_frozen_etcd_is_unreachable_in_time_and_its_writes_are_unknown() {
    let etcd = Etcd::start();
    let store = etcd.store();
    committed(&*store, vec![put("a", "")]);
    etcd.signal(Signal::SIGSTOP);
    let begin = Instant::now();
    let read = store.read(&["a"]);
    assert!(matches!(read, Err(StoreError::Unreachable { .. })), "{read:?}");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(14), "{took:?}");
    let begin = Instant::now();
    let written = write(&*store, "b");
    assert!(matches!(written, Err(StoreError::OutcomeUnknown { .. })), "{written:?}");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(14), "{took:?}");
    etcd.signal(Signal::SIGCONT);
    assert!(keys(&read_soon(&*store)).contains(&"a"));
    committed(&*store, vec![put("c", "")]);
}

#[test]
fn nobody_listening_is_unreachable_at_once_also_for_writes() {
    let store = open(kind(&[free_port()]), "f", "e").unwrap();
    let begin = Instant::now();
    let (read, written) = (store.read(&["a"]), write(&*store, "a"));
    assert!(matches!(read, Err(StoreError::Unreachable { .. })), "{read:?}");
    assert!(matches!(written, Err(StoreError::Unreachable { .. })), "not even sent: {written:?}");
    assert!(begin.elapsed() < DEADLINE, "{:?}", begin.elapsed());
    assert!(watched(&*store, &["a"]).1.try_recv().is_err(), "a watch waits for it");
}

#[test]
fn one_dead_and_one_frozen_endpoint_leave_the_third() {
    let (frozen, good) = (Etcd::start(), Etcd::start());
    committed(&*good.store(), vec![put("a", "")]);
    frozen.signal(Signal::SIGSTOP);
    let store = open(kind(&[free_port(), frozen.port, good.port]), "f", "e").unwrap();
    assert_eq!(keys(&store.read(&["a"]).unwrap()), ["a"]);
    let took = (0..5).map(|_| {
        let begin = Instant::now();
        committed(&*store, vec![put("b", "")]);
        begin.elapsed()
    });
    assert!(took.min().unwrap() < Duration::from_secs(1), "the one that answered is asked first");
}

#[test]
fn a_killed_etcd_comes_back_with_everything_and_the_watch_too() {
    let mut etcd = Etcd::start();
    let store = etcd.store();
    let identity = store.identity().unwrap();
    committed(&*store, vec![put("a", "")]);
    let before = store.read(&[""]).unwrap();
    let (_watch, changes) = watched(&*store, &["hold/"]);
    etcd.kill();
    assert!(matches!(store.read(&[""]), Err(StoreError::Unreachable { .. })));
    etcd.restart();
    assert_eq!(read_soon(&*store), before);
    assert_eq!(store.identity().unwrap(), identity);
    changes.recv_timeout(Duration::from_secs(60)).expect("told that the watch was set up again");
    committed(&*etcd.store(), vec![put("hold/g/0/n1", "")]);
    changes.recv_timeout(Duration::from_secs(60)).expect("told of a write after it");
    assert_ne!(identity, Etcd::start().store().identity().unwrap(), "another cluster");
}

#[test]
fn a_full_etcd_takes_only_deletions() {
    let etcd = Etcd::start_with("http", &["--quota-backend-bytes", "1048576"]);
    let store = etcd.store();
    committed(&*store, vec![put("hold", "")]);
    let big = "x".repeat(200_000);
    // The quota is compared with the size on disk, which follows the writes: many may fit that should not.
    let give_up = Instant::now() + Duration::from_secs(60);
    let full = loop {
        match store.commit(&Transaction { when: vec![], then: vec![put("big", &big)] }) {
            Err(error) => break error,
            Ok(_) if Instant::now() > give_up => panic!("it takes everything"),
            Ok(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(matches!(full, StoreError::NoSpace), "{full:?}");
    assert!(matches!(write(&*store, "claim"), Err(StoreError::NoSpace)));
    committed(&*store, vec![delete("hold")]);
    assert_eq!(store.read(&["hold"]).unwrap().entries, vec![]);
}

// ---- who may do what ----

#[test]
fn only_certificates_of_the_fleets_authority_are_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, foreign) = (Ca::new(dir.path(), "ca"), Ca::new(dir.path(), "foreign"));
    let etcd = etcd_with_certificates(&ca);
    let store = as_user(&etcd, &ca, &ca.issue("n1"));
    read_soon(&*store);
    committed(&*store, vec![put("a", "")]);

    let stranger = as_user(&etcd, &ca, &foreign.issue("n2"));
    let (read, written) = (stranger.read(&["a"]), write(&*stranger, "b"));
    // The refusal is an alert or just the end of the connection, whichever the client sees first.
    let said = read.as_ref().map_err(ToString::to_string).expect_err("refused");
    let is_refusal = matches!(read, Err(StoreError::Denied { .. })) || said.contains("refuses this node's certificate");
    assert!(is_refusal, "{said}");
    assert!(written.is_err(), "{written:?}");
    let fooled = as_user(&etcd, &foreign, &ca.issue("n3")).read(&["a"]);
    assert!(matches!(fooled, Err(StoreError::Denied { .. })), "a server of a foreign authority: {fooled:?}");
    assert_eq!(keys(&store.read(&[""]).unwrap()), ["a"]);
}

#[test]
fn a_node_claims_for_itself_and_touches_nobody_elses_hold() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(dir.path(), "ca");
    let etcd = etcd_with_certificates(&ca);
    let admin = ca.issue("root");
    let (n1, n2) = (as_user(&etcd, &ca, &ca.issue("n1")), as_user(&etcd, &ca, &ca.issue("n2")));
    read_soon(&*n1);
    let ctl = |arguments: &[&str]| {
        let program = binary().with_file_name("etcdctl");
        let output = Command::new(program)
            .args(["--endpoints", &format!("https://127.0.0.1:{}", etcd.port), "--cacert", ca.path.to_str().unwrap()])
            .args(["--cert", admin.0.to_str().unwrap(), "--key", admin.1.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    ctl(&["user", "add", "root", "--no-password"]);
    ctl(&["user", "grant-role", "root", "root"]);
    for node in ["n1", "n2"] {
        ctl(&["user", "add", node, "--no-password"]);
        ctl(&["role", "add", node]);
        ctl(&["role", "grant-permission", node, "read", "/converger/f/e/", "/converger/f/e0"]);
        let (from, to) = (format!("/converger/f/e/n/{node}/"), format!("/converger/f/e/n/{node}0"));
        ctl(&["role", "grant-permission", node, "readwrite", &from, &to]);
        ctl(&["role", "grant-permission", node, "write", &format!("/converger/f/e/hold/c.g/0/{node}")]);
        ctl(&["user", "grant-role", node, node]);
    }
    ctl(&["auth", "enable"]);

    let claim = |store: &dyn LockStore, node: &str| {
        let when = vec![Condition::RangeEmpty("hold/c.g/".into()), Condition::Absent("freeze/fleet".into())];
        store.commit(&Transaction { when, then: vec![put(&format!("hold/c.g/0/{node}"), node)] })
    };
    assert!(matches!(claim(&*n1, "n1"), Ok(Outcome::Committed(_))));
    assert!(matches!(claim(&*n2, "n2"), Ok(Outcome::Refused)));
    committed(&*n2, vec![Write::PutFor("n/n2/beat".into(), vec![], Duration::from_secs(60))]);
    committed(&*n2, vec![Write::PutFor("n/n2/beat".into(), vec![], Duration::from_secs(60))]);
    let (_watch, _) = watched(&*n2, &["hold/", "wake"]);

    let denied = |what: &str, then: Write| {
        let answer = n2.commit(&Transaction { when: vec![], then: vec![then] });
        assert!(matches!(answer, Err(StoreError::Denied { .. })), "{what}: {answer:?}");
    };
    denied("delete", delete("hold/c.g/0/n1"));
    denied("overwrite", put("hold/c.g/0/n1", "n2"));
    denied("forge a report", put("n/n1/report", ""));
    denied("freeze", put("freeze/fleet", ""));
    assert_eq!(keys(&n2.read(&["hold/"]).unwrap()), ["hold/c.g/0/n1"]);
    let stranger = as_user(&etcd, &ca, &ca.issue("n9")).read(&["hold/"]);
    assert!(matches!(stranger, Err(StoreError::Denied { .. })), "a certificate without a user: {stranger:?}");
    committed(&*n1, vec![delete("hold/c.g/0/n1")]);
    assert!(matches!(claim(&*n2, "n2"), Ok(Outcome::Committed(_))));
    assert!(etcd.dir.path().exists());
}
