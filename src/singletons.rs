//! The agent's part in singletons: writes and watches their keys, beside its runs, so that no apply keeps it waiting.
//!
//! What is to be done is decided by [`crate::lock::singleton`], what ends a grant is systemd ([`crate::host::guard`]). A run
//! tells which singletons this node is a candidate for ([`Singletons::stand_for`]) and asks which of them it has
//! ([`Singletons::held`]). Never: starts a unit whose end is not arranged.

mod post;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use post::Post;

use crate::clock::{Clock, SystemClock};
use crate::host::HostError;
use crate::host::guard::{self, Guard, Machine, Sandbox};
use crate::lock::singleton::{Singleton, Wish};
use crate::lock::store::{LockStore, Watch};
use crate::name::{NodeName, UnitName};
use crate::reason::chain;
use crate::settings::Rooted;
use crate::wake::{Wake, Waker};

/// Until a machine that goes down has handed over what it had.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(600);
/// A stop or a lost answer is looked at again after this.
const SOON: Duration = Duration::from_millis(500);

/// The singletons of this node.
pub struct Singletons {
    run: PathBuf,
    rooted: Rooted,
    orders: Arc<Orders>,
    /// What the last run counted with.
    planned: Option<BTreeSet<UnitName>>,
    start: Option<Start>,
    keeper: Option<Keeper>,
}

/// What the keeper needs; it is started when there is something to keep.
struct Start {
    me: NodeName,
    store: Arc<dyn LockStore>,
    pin: PathBuf,
    waker: Waker,
}

struct Keeper {
    thread: std::thread::JoinHandle<()>,
    machine: Option<Machine>,
}

/// What the runs of the agent want, and news of the store: for the keeper.
#[derive(Default)]
struct Orders {
    pending: Mutex<Pending>,
    more: Condvar,
}

#[derive(Default)]
struct Pending {
    wishes: Option<BTreeMap<UnitName, (Option<Singleton>, Wish)>>,
    store_moved: bool,
    ending: Option<Ending>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Everything goes on as it is, without us.
    Leave,
    HandOver,
}

impl Orders {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Whoever panicked has left a plain value.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending());
        self.more.notify_one();
    }

    /// What was told, waiting for it at most this long.
    fn take(&self, at_most: Duration) -> Pending {
        let quiet =
            |pending: &mut Pending| pending.wishes.is_none() && !pending.store_moved && pending.ending.is_none();
        let told = self.more.wait_timeout_while(self.pending(), at_most, quiet);
        let mut pending = told.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::take(&mut *pending)
    }
}

impl Singletons {
    /// `run`: the agent's directory in /run. Nothing is taken before [`Singletons::begin`].
    pub fn new(run: &Path, rooted: Rooted) -> Self {
        let (orders, planned) = Default::default();
        Self { run: run.to_owned(), rooted, orders, planned, start: None, keeper: None }
    }

    /// Keeps what an agent before this one had, and from the next run on takes what is nobody's. `pin`: where this node keeps
    /// which store it knows.
    pub fn begin(&mut self, me: &NodeName, store: Arc<dyn LockStore>, pin: PathBuf, waker: Waker) {
        self.start = Some(Start { me: me.clone(), store, pin, waker });
        if !self.held().is_empty() {
            self.keep();
        }
    }

    fn keep(&mut self) {
        if self.start.is_none() {
            return;
        }
        let guards = || -> Result<(Box<dyn Guard>, Option<Machine>), HostError> {
            Ok(match self.rooted {
                Rooted::Host => (Box::new(Machine::new(&self.run)?), Some(Machine::new(&self.run)?)),
                Rooted::Below => (Box::new(Sandbox::new(&self.run)), None),
            })
        };
        let (guard, machine) = match guards() {
            Ok(guards) => guards,
            Err(error) => return tracing::error!(error = %chain(&error), "this node takes no singletons"),
        };
        // Only now: what failed is tried again by the next run.
        let Some(Start { me, store, pin, waker }) = self.start.take() else { return };
        let grants = guard::grants(&self.run, SystemClock.awake());
        let posts: BTreeMap<_, _> =
            grants.into_iter().map(|grant| (grant.singleton.unit.clone(), Post::resumed(grant))).collect();
        let orders = self.orders.clone();
        let keeping = Keeping { me, store, pin, guard, waker, orders, posts, watch: None };
        let thread = std::thread::Builder::new().name("singletons".to_owned()).spawn(move || keeping.keep());
        match thread {
            Ok(thread) => self.keeper = Some(Keeper { thread, machine }),
            Err(error) => tracing::error!(%error, "no thread: this node takes no singletons"),
        }
    }

    /// What this node may run now. A run that asks after it has looked at the units never takes one that it has for one that
    /// somebody else started.
    pub fn held(&self) -> BTreeSet<UnitName> {
        let grants = guard::grants(&self.run, SystemClock.awake());
        grants.into_iter().map(|grant| grant.singleton.unit).collect()
    }

    /// The same, for a plan.
    pub fn plan_with(&mut self) -> BTreeSet<UnitName> {
        let held = self.held();
        self.planned = Some(held.clone());
        held
    }

    /// Whether the last plan counted with something else, or this agent has not planned yet: nobody is a candidate before.
    pub fn have_moved(&self) -> bool {
        let keeps = self.start.is_some() || self.keeper.is_some();
        keeps && self.planned.as_ref() != Some(&self.held())
    }

    /// The singletons that this node is a candidate for, and the units that run here whatever others do.
    pub fn stand_for(&mut self, candidates: Vec<(Singleton, Wish)>, ordinary: impl IntoIterator<Item = UnitName>) {
        if !candidates.is_empty() {
            self.keep();
        }
        let ordinary = ordinary.into_iter().map(|unit| (unit, (None, Wish::Ordinary)));
        let candidates =
            candidates.into_iter().map(|(singleton, wish)| (singleton.unit.clone(), (Some(singleton), wish)));
        let wishes = ordinary.chain(candidates).collect();
        self.orders.tell(|pending| pending.wishes = Some(wishes));
    }

    /// The agent ends. A machine that goes down stops its singletons and frees them first; else they run on until another
    /// agent goes on here, or their time is over.
    pub fn end(&mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        let goes_down = keeper.machine.as_ref().is_some_and(Machine::goes_down);
        let ending = if goes_down { Ending::HandOver } else { Ending::Leave };
        self.orders.tell(|pending| pending.ending = Some(ending));
        if keeper.thread.join().is_err() {
            tracing::error!("the thread for singletons panicked; systemd stops what it had");
        }
    }
}

/// The thread's own.
struct Keeping {
    me: NodeName,
    store: Arc<dyn LockStore>,
    pin: PathBuf,
    guard: Box<dyn Guard>,
    waker: Waker,
    orders: Arc<Orders>,
    posts: BTreeMap<UnitName, Post>,
    watch: Option<Watch>,
}

impl Keeping {
    fn keep(mut self) {
        let mut sleep = Duration::ZERO;
        let mut ends = None;
        loop {
            let told = self.orders.take(sleep);
            if let Some(wishes) = told.wishes {
                self.wish(wishes);
            }
            match told.ending {
                Some(Ending::Leave) => return,
                Some(Ending::HandOver) => ends = Some(SystemClock.awake() + HANDED_OVER_WITHIN),
                None => {}
            }
            if let Some(ends) = ends {
                self.posts.values_mut().for_each(Post::leave);
                if self.posts.is_empty() || SystemClock.awake() > ends {
                    return;
                }
            }
            sleep = self.rounds().min(if ends.is_some() { SOON } else { IDLE });
        }
    }

    fn wish(&mut self, mut wishes: BTreeMap<UnitName, (Option<Singleton>, Wish)>) {
        let before: Vec<UnitName> = self.posts.keys().cloned().collect();
        for (unit, post) in &mut self.posts {
            match wishes.remove(unit) {
                Some((Some(singleton), wish)) => post.wish(singleton, wish),
                Some((None, _)) => post.ordinary(),
                None => post.leave(),
            }
        }
        let new = wishes.into_values().filter_map(|(singleton, wish)| Some(Post::new(singleton?, wish)));
        self.posts.extend(new.map(|post| (post.singleton().unit.clone(), post)));
        if self.posts.keys().cloned().collect::<Vec<_>>() != before {
            self.watch();
        }
    }

    fn watch(&mut self) {
        let keys: Vec<String> = self.posts.values().map(|post| post.singleton().key()).collect();
        self.watch = None;
        if keys.is_empty() {
            return;
        }
        let orders = self.orders.clone();
        let prefixes: Vec<&str> = keys.iter().map(String::as_str).collect();
        let watch = self.store.watch(&prefixes, Box::new(move || orders.tell(|pending| pending.store_moved = true)));
        self.watch =
            watch.inspect_err(|error| tracing::debug!(%error, "singletons are not watched; polling only")).ok();
    }

    /// One look at each. How soon to look again.
    fn rounds(&mut self) -> Duration {
        let mut sleep = IDLE;
        let mut over = Vec::new();
        for (unit, post) in &mut self.posts {
            let round = post.round(&self.me, &*self.store, &self.pin, &*self.guard, &SystemClock);
            if round.is_news {
                self.waker.wake(Wake::Store);
            }
            if round.is_over {
                over.push(unit.clone());
            }
            sleep = sleep.min(round.again_in);
        }
        over.iter().for_each(|unit| drop(self.posts.remove(unit)));
        sleep
    }
}

/// Without any singleton there is nothing to do until one is told.
const IDLE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::FakeClock;
    use crate::lock::fake::FakeStore;
    use crate::wake::Wakes;

    /// Only a run makes a node a candidate: the first one of an agent must be a whole one.
    #[test]
    fn an_agent_that_has_not_planned_yet_has_moved() {
        let run = tempfile::tempdir().unwrap();
        let mut singletons = Singletons::new(run.path(), Rooted::Below);
        assert!(!singletons.have_moved(), "an agent that keeps none has none to plan with");
        let clock = Arc::new(FakeClock::at(jiff::Timestamp::UNIX_EPOCH));
        let store = Arc::new(FakeStore::new("one", clock));
        singletons.begin(&"n1".into(), store, run.path().join("store.json"), Wakes::default().waker());
        assert!(singletons.have_moved());
        assert!(singletons.plan_with().is_empty());
        assert!(!singletons.have_moved());
    }
}
