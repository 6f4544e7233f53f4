//! What makes the agent look: a tick, a push, drift, a freed hold, a signal. Several at once are one.
//!
//! Never: says what to do about it.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wake {
    /// The poll interval is over, or what the last run asked for.
    Tick,
    /// A managed file was touched, or the branch of a repository on this machine moved.
    Drift,
    /// A hold, a freeze or a peer's report moved in the store, or somebody asks all nodes to look.
    Store,
    /// SIGHUP: look at everything again.
    Signal,
    /// SIGTERM, SIGINT.
    Shutdown,
}

pub struct Wakes {
    sender: Sender<Wake>,
    receiver: Receiver<Wake>,
}

impl Default for Wakes {
    fn default() -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver }
    }
}

/// Events that follow within this time belong together: an editor's save, a merge's many files.
const TOGETHER: Duration = Duration::from_millis(20);

impl Wakes {
    pub fn sender(&self) -> Sender<Wake> {
        self.sender.clone()
    }

    /// Everything that happened, waiting for the first of it at most this long.
    pub fn wait(&self, at_most: Duration) -> BTreeSet<Wake> {
        let mut woken = BTreeSet::new();
        match self.receiver.recv_timeout(at_most) {
            Ok(wake) => drop(woken.insert(wake)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                woken.insert(Wake::Tick);
                return woken;
            }
        }
        while let Ok(wake) = self.receiver.recv_timeout(TOGETHER) {
            woken.insert(wake);
            if woken.contains(&Wake::Shutdown) {
                break;
            }
        }
        woken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_wakes_are_one_look() {
        let wakes = Wakes::default();
        for wake in [Wake::Drift, Wake::Store, Wake::Drift] {
            wakes.sender().send(wake).expect("the receiver lives");
        }
        assert_eq!(wakes.wait(Duration::from_secs(5)), BTreeSet::from([Wake::Drift, Wake::Store]));
    }

    #[test]
    fn nothing_happening_is_a_tick() {
        assert_eq!(Wakes::default().wait(Duration::ZERO), BTreeSet::from([Wake::Tick]));
    }
}
