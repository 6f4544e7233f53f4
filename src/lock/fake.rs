//! A store in memory: deterministic, and it fails when it is told to.
//!
//! Clones are clients of the same store. Watches are called by the committing thread, before its commit returns.
//! Never: a real clock, a thread, or a failure that nobody asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use jiff::Timestamp;

use super::keys::Keys;
use super::store::{Key, LockStore, Outcome, Snapshot, StoreError, Transaction, Watch, Write, range};
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
    keys: Keys,
    expires: BTreeMap<Key, Timestamp>,
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
            keys: Keys::default(),
            expires: BTreeMap::new(),
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
        let State { keys, expires, .. } = &mut *state;
        expires.retain(|key, at| {
            let stays = now < *at;
            if !stays {
                keys.entries.remove(key);
            }
            stays
        });
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

    fn expire(&mut self, writes: &[Write], now: Timestamp) {
        for write in writes {
            match write {
                Write::PutFor(key, _, time) => drop(self.expires.insert(key.clone(), now + *time)),
                Write::Put(key, _) | Write::Delete(key) => drop(self.expires.remove(key)),
            }
        }
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
        Ok(state.keys.read(prefixes))
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
        let (outcome, changed) = state.keys.commit(transaction);
        if outcome != Outcome::Refused {
            state.expire(&transaction.then, self.clock.now());
        }
        let watchers = state.watchers_of(&changed);
        // Released first: a watcher may look at the store.
        drop(state);
        for watcher in watchers {
            (watcher.on_change)();
        }
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
