//! What makes the agent look: a tick, a push, drift, a freed hold, a signal. Several at once are one.
//!
//! Never: says what to do about it.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wake {
    /// The poll interval is over, or what the last run asked for.
    Tick,
    /// A managed file was touched, or the branch of a repository on this machine moved.
    Drift,
    /// A hold, a freeze or a peer's report moved in the store.
    Store,
    /// Somebody asks all nodes to look.
    Pushed,
    /// Somebody else wants to reboot the machine.
    Asked,
    /// SIGHUP: look at everything again.
    Signal,
    /// SIGTERM, SIGINT.
    Shutdown,
}

/// What happened and was not looked at yet. However often it happens, it is a handful of words.
#[derive(Default)]
pub struct Wakes {
    pending: Arc<Pending>,
}

#[derive(Default)]
struct Pending {
    wakes: Mutex<BTreeSet<Wake>>,
    more: Condvar,
}

/// Says that something happened, from any thread.
#[derive(Clone)]
pub struct Waker(Arc<Pending>);

impl Waker {
    pub fn wake(&self, wake: Wake) {
        self.0.pending().insert(wake);
        self.0.more.notify_one();
    }
}

impl Pending {
    fn pending(&self) -> MutexGuard<'_, BTreeSet<Wake>> {
        // Whoever panicked has left a set.
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is something, waiting for it at most this long.
    fn wait(&self, at_most: Duration) -> bool {
        let until = self.more.wait_timeout_while(self.pending(), at_most, |wakes| wakes.is_empty());
        !until.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    fn take(&self) -> BTreeSet<Wake> {
        std::mem::take(&mut self.pending())
    }
}

/// Events that follow within this time belong together: an editor's save, a merge's many files.
const TOGETHER: Duration = Duration::from_millis(20);
/// What comes without end is looked at all the same.
const TOGETHER_MAX: usize = 5;

impl Wakes {
    pub fn waker(&self) -> Waker {
        Waker(self.pending.clone())
    }

    /// Everything that happened, waiting for the first of it at most this long.
    pub fn wait(&self, at_most: Duration) -> BTreeSet<Wake> {
        if !self.pending.wait(at_most) {
            return BTreeSet::from([Wake::Tick]);
        }
        let mut woken = self.pending.take();
        for _ in 0..TOGETHER_MAX {
            if woken.contains(&Wake::Shutdown) || !self.pending.wait(TOGETHER) {
                break;
            }
            woken.extend(self.pending.take());
        }
        woken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn several_wakes_are_one_look() {
        let wakes = Wakes::default();
        for wake in [Wake::Drift, Wake::Store, Wake::Drift] {
            wakes.waker().wake(wake);
        }
        assert_eq!(wakes.wait(Duration::from_secs(5)), BTreeSet::from([Wake::Drift, Wake::Store]));
    }

    #[test]
    fn wakes_without_end_are_looked_at_all_the_same() {
        let wakes = Wakes::default();
        let (waker, over) = (wakes.waker(), Arc::new(AtomicBool::new(false)));
        let ends = over.clone();
        let flood = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                waker.wake(Wake::Store);
            }
        });
        assert_eq!(wakes.wait(Duration::from_secs(60)), BTreeSet::from([Wake::Store]));
        over.store(true, Ordering::Relaxed);
        flood.join().expect("it was told to end");
    }

    #[test]
    fn nothing_happening_is_a_tick() {
        assert_eq!(Wakes::default().wait(Duration::ZERO), BTreeSet::from([Wake::Tick]));
    }
}
