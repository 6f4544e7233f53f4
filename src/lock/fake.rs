//! A store in memory: deterministic, and it fails when it is told to.
//!
//! Clones are clients of the same store. Watches are called by the committing thread, before its commit returns.
//! Never: a real clock, a thread, or a failure that nobody asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use jiff::Timestamp;

use super::store::{Condition, Entry, Key, LockStore, Outcome, Snapshot, StoreError, Transaction, Watch, Write, range};
use crate::clock::Clock;

/// How the next call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Any call: nothing happened.
    Unreachable,
    /// A commit: it was done, the answer was lost.
    OutcomeUnknownApplied,
    /// A commit: it was not done, and the caller cannot know.
    OutcomeUnknownNotApplied,
    /// A commit that puts something; commits that only delete go through.
    NoSpace,
}

impl Fault {
    fn hits(self, call: &Call<'_>) -> bool {
        match (self, call) {
            (Self::Unreachable, _) => true,
            (Self::OutcomeUnknownApplied | Self::OutcomeUnknownNotApplied, Call::Commit(_)) => true,
            (Self::NoSpace, Call::Commit(transaction)) => {
                transaction.then.iter().any(|write| !matches!(write, Write::Delete(_)))
            }
            (_, Call::Ask) => false,
        }
    }
}

enum Call<'a> {
    Ask,
    Commit(&'a Transaction),
}

#[derive(Clone)]
pub struct FakeStore {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock + Send + Sync>,
}

struct State {
    identity: String,
    revision: i64,
    entries: BTreeMap<Key, (Entry, Option<Timestamp>)>,
    faults: VecDeque<Fault>,
    watchers: Vec<Weak<Watcher>>,
}

struct Watcher {
    ranges: Vec<(Key, Key)>,
    on_change: Box<dyn Fn() + Send + Sync>,
}

impl FakeStore {
    /// An empty store, with etcd's first revision.
    pub fn new(identity: &str, clock: Arc<dyn Clock + Send + Sync>) -> Self {
        let state = State {
            identity: identity.to_owned(),
            revision: 1,
            entries: BTreeMap::new(),
            faults: VecDeque::new(),
            watchers: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), clock }
    }

    /// The next call that this can happen to fails so; several happen in the order they were asked for.
    pub fn fail_next(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere still reports its own failure.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        state.entries.retain(|_, (_, expires)| expires.is_none_or(|at| now < at));
        state
    }
}

impl State {
    fn fault(&mut self, call: &Call<'_>) -> Option<Fault> {
        self.faults.front().is_some_and(|fault| fault.hits(call)).then(|| self.faults.pop_front()).flatten()
    }

    fn ask(&mut self) -> Result<(), StoreError> {
        self.fault(&Call::Ask).map_or(Ok(()), |_| Err(unreachable()))
    }

    fn below(&self, prefix: &str) -> impl Iterator<Item = &Entry> {
        let (from, to) = range(prefix);
        self.entries.range(from..to).map(|(_, (entry, _))| entry)
    }

    fn holds(&self, condition: &Condition) -> bool {
        let entry = |key: &Key| self.entries.get(key).map(|(entry, _)| entry);
        match condition {
            Condition::Absent(key) => entry(key).is_none(),
            Condition::CreatedAt(key, revision) => entry(key).is_some_and(|entry| entry.create_revision == *revision),
            Condition::ModifiedAt(key, revision) => entry(key).map_or(0, |entry| entry.mod_revision) == *revision,
            Condition::RangeEmpty(prefix) => self.below(prefix).next().is_none(),
            Condition::RangeUntouchedSince(prefix, revision) => {
                self.below(prefix).all(|entry| entry.mod_revision <= *revision)
            }
        }
    }

    /// The keys that changed; none and the revision stays.
    fn write(&mut self, writes: &[Write], now: Timestamp) -> Vec<Key> {
        let revision = self.revision + 1;
        let mut changed = Vec::new();
        for write in writes {
            let (key, value, expires) = match write {
                Write::Put(key, value) => (key, value, None),
                Write::PutFor(key, value, time) => (key, value, Some(now + *time)),
                Write::Delete(key) => {
                    changed.extend(self.entries.remove(key).map(|(entry, _)| entry.key));
                    continue;
                }
            };
            let create_revision = self.entries.get(key).map_or(revision, |(entry, _)| entry.create_revision);
            let entry = Entry { key: key.clone(), value: value.clone(), create_revision, mod_revision: revision };
            self.entries.insert(key.clone(), (entry, expires));
            changed.push(key.clone());
        }
        if !changed.is_empty() {
            self.revision = revision;
        }
        changed
    }

    fn watchers_of(&mut self, changed: &[Key]) -> Vec<Arc<Watcher>> {
        self.watchers.retain(|watcher| watcher.strong_count() > 0);
        let sees = |watcher: &Arc<Watcher>| {
            changed.iter().any(|key| watcher.ranges.iter().any(|(from, to)| from <= key && key < to))
        };
        self.watchers.iter().filter_map(Weak::upgrade).filter(sees).collect()
    }
}

impl LockStore for FakeStore {
    fn identity(&self) -> Result<String, StoreError> {
        let mut state = self.state();
        state.ask()?;
        Ok(state.identity.clone())
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        let mut state = self.state();
        state.ask()?;
        let found: BTreeMap<_, _> =
            prefixes.iter().flat_map(|prefix| state.below(prefix)).map(|entry| (&entry.key, entry)).collect();
        Ok(Snapshot { revision: state.revision, entries: found.into_values().cloned().collect() })
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.well_formed()?;
        let mut state = self.state();
        let fault = state.fault(&Call::Commit(transaction));
        match fault {
            Some(Fault::Unreachable) => return Err(unreachable()),
            Some(Fault::OutcomeUnknownNotApplied) => return Err(unknown()),
            Some(Fault::NoSpace) => return Err(StoreError::NoSpace),
            Some(Fault::OutcomeUnknownApplied) | None => {}
        }
        let outcome = if transaction.when.iter().all(|condition| state.holds(condition)) {
            let changed = state.write(&transaction.then, self.clock.now());
            let revision = state.revision;
            let watchers = state.watchers_of(&changed);
            // Released first: a watcher may look at the store.
            drop(state);
            for watcher in watchers {
                (watcher.on_change)();
            }
            Outcome::Committed(revision)
        } else {
            Outcome::Refused
        };
        if fault.is_some() { Err(unknown()) } else { Ok(outcome) }
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        let ranges = prefixes.iter().map(|prefix| range(prefix)).collect();
        let watcher = Arc::new(Watcher { ranges, on_change });
        self.state().watchers.push(Arc::downgrade(&watcher));
        Ok(Watch::new(watcher))
    }
}

fn unreachable() -> StoreError {
    StoreError::Unreachable { endpoints: "fake".into(), why: "as asked for".into() }
}

fn unknown() -> StoreError {
    StoreError::OutcomeUnknown { endpoints: "fake".into(), why: "as asked for".into() }
}
