//! Whether another machine lives under this node's name: a copy of its disk, a snapshot of it that was woken.
//!
//! Each agent signs what it writes at every beat with its boot and a number of its own. Who finds another's signature
//! where its own should be is not alone, and neither is the other, who finds this one's: both leave every member where it is
//! until one of them has been silent. Beats come beside the runs of the agent, so that none is too long for them. Never: a
//! decision which of the two is the true one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::lock::protocol;
use crate::lock::quorum::Because;
use crate::lock::store::{Condition, LockStore, Outcome, StoreError, Transaction, Write};
use crate::name::NodeName;
use crate::reason;

/// A node without a sign of life for this long is silent.
pub const BEAT: Duration = Duration::from_secs(90);
/// How often it is looked whether the next beat is due: an agent asleep is woken seldom, and of those that are not answered
/// there are three before a sign has gone.
pub const LOOKS: Duration = Duration::from_secs(20);

/// The value of `n/NODE/instance`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signature {
    pub boot_id: String,
    /// Of one process.
    pub nonce: String,
}

/// What this agent wrote last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    Nothing,
    At(i64),
    /// The answer was lost.
    Unknown,
}

/// This agent's signs of life.
pub struct Instance {
    node: NodeName,
    mine: Signature,
    left: Left,
    /// Who else lives, and when it was last found, in awake time.
    other: Option<(Signature, Duration)>,
}

impl Instance {
    pub fn new(node: NodeName, boot_id: String) -> Self {
        let mine = Signature { boot_id, nonce: ulid::Ulid::generate().to_string() };
        Self { node, mine, left: Left::Nothing, other: None }
    }

    /// Looks who signed last, and signs. `time`: for people, as text.
    pub fn beat(&mut self, store: &dyn LockStore, awake: Duration, time: &str) -> Result<Outcome, StoreError> {
        let key = protocol::instance_key(&self.node);
        let seen = store.read(&[&key])?;
        let seen = seen.get(&key).map(|entry| {
            let unreadable = || Signature { boot_id: String::new(), nonce: "unreadable".to_owned() };
            (serde_json::from_slice(&entry.value).unwrap_or_else(|_| unreadable()), entry.mod_revision)
        });
        let found = another(seen, &self.mine, self.left).map(|signature| (signature, awake));
        if let Some((other, _)) = &found {
            tracing::error!(node = %self.node, boot_id = other.boot_id, "another machine lives under this node's name");
        }
        let still = |(_, at): &(Signature, Duration)| awake.saturating_sub(*at) < BEAT;
        self.other = found.or(self.other.take().filter(still));
        let signature = serde_json::to_vec(&self.mine).expect("two texts");
        let then = vec![
            Write::PutFor(key, signature, BEAT),
            Write::PutFor(protocol::beat_key(&self.node), time.as_bytes().to_vec(), BEAT),
        ];
        let told = store.commit(&Transaction { when: Vec::new(), then });
        self.left = match &told {
            Ok(Outcome::Committed(revision)) => Left::At(*revision),
            Ok(Outcome::Refused) | Err(_) => Left::Unknown,
        };
        told
    }

    /// It goes on purpose: the next boot need not wait until its sign is old.
    pub fn leave(&self, store: &dyn LockStore) {
        let Left::At(revision) = self.left else { return };
        let key = protocol::instance_key(&self.node);
        let when = vec![Condition::ModifiedAt(key.clone(), revision)];
        let _ = store.commit(&Transaction { when, then: vec![Write::Delete(key)] }); // it goes by itself too
    }

    /// Why nothing may be disrupted, if another one lives.
    pub fn doubled(&self) -> Option<Because> {
        let (other, _) = self.other.as_ref()?;
        let sentence = if other.boot_id == self.mine.boot_id {
            format!("another agent says that it is {}, in the same boot", self.node)
        } else {
            format!("another machine says that it is {} (boot {})", self.node, other.boot_id)
        };
        Some(Because::new(reason::CLONED, None, sentence))
    }
}

/// An agent's beats, as long as it lives.
pub struct Life {
    store: Arc<dyn LockStore>,
    clock: Arc<dyn Clock + Send + Sync>,
    beats: Mutex<Beats>,
    ends: Condvar,
}

struct Beats {
    instance: Instance,
    /// The last one that was answered, in awake time.
    last: Option<Duration>,
    /// Of the store, as it was answered.
    revision: i64,
    /// A revision that was lower than one before.
    fell: Option<i64>,
    is_over: bool,
}

impl Life {
    pub fn new(instance: Instance, store: Arc<dyn LockStore>, clock: Arc<dyn Clock + Send + Sync>) -> Self {
        let beats = Beats { instance, last: None, revision: 0, fell: None, is_over: false };
        Self { store, clock, beats: Mutex::new(beats), ends: Condvar::new() }
    }

    fn beats(&self) -> MutexGuard<'_, Beats> {
        // Whoever panicked has left a plain value.
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// If the next one is due.
    pub fn beat(&self) {
        self.beat_of(&mut self.beats());
    }

    fn beat_of(&self, beats: &mut Beats) {
        let now = self.clock.awake();
        if beats.is_over || beats.last.is_some_and(|last| now.saturating_sub(last) < BEAT / 3) {
            return;
        }
        let Ok(outcome) = beats.instance.beat(&*self.store, now, &self.clock.now().to_string()) else { return };
        beats.last = Some(now);
        if let Outcome::Committed(revision) = outcome {
            // A store that was set back counts up again: whoever was awake remembers.
            if revision < beats.revision {
                beats.fell = Some(revision);
            }
            beats.revision = revision;
        }
    }

    /// From a thread of its own, until this is dropped: an apply may take longer than a sign lasts. `looks`: how often it
    /// looks at the clock.
    pub fn keep(self: &Arc<Self>, looks: Duration) -> Kept {
        let life = self.clone();
        let keep = move || {
            let mut beats = life.beats();
            // The first one is the agent's own, before its first run.
            while !beats.is_over {
                beats = life.ends.wait_timeout(beats, looks).unwrap_or_else(PoisonError::into_inner).0;
                life.beat_of(&mut beats);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("beats".to_owned()).spawn(keep) {
            tracing::error!(%error, "no thread: a long run looks like silence");
        }
        Kept(self.clone())
    }

    fn end(&self) {
        self.beats().is_over = true;
        self.ends.notify_all();
    }

    /// Why nothing may be disrupted, if another one lives.
    pub fn doubled(&self) -> Option<Because> {
        self.beats().instance.doubled()
    }

    /// The revision at which the store was lower than before, since this was last asked.
    pub fn store_fell(&self) -> Option<i64> {
        self.beats().fell.take()
    }

    /// It ends on purpose; no beat comes after this.
    pub fn leave(&self) {
        self.end();
        self.beats().instance.leave(&*self.store);
    }
}

/// Beats go on until this is dropped.
pub struct Kept(Arc<Life>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Who else signed, if somebody did. The agent before this one in the same boot is nobody else: only one runs at a time.
/// PURE.
fn another(seen: Option<(Signature, i64)>, mine: &Signature, left: Left) -> Option<Signature> {
    let (signature, at) = seen?;
    let own = match left {
        // A process that was copied has the same number: what it signs is not where this one left it.
        Left::At(revision) => signature.nonce == mine.nonce && at == revision,
        Left::Unknown => signature.nonce == mine.nonce,
        Left::Nothing => signature.boot_id == mine.boot_id,
    };
    (!own).then_some(signature)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::FakeClock;
    use crate::lock::fake::{FakeStore, Fault};

    fn store() -> (FakeStore, Arc<FakeClock>) {
        let clock = Arc::new(FakeClock::at(jiff::Timestamp::UNIX_EPOCH));
        (FakeStore::new("one", clock.clone()), clock)
    }

    fn agent(boot: &str) -> Instance {
        Instance::new("n1".into(), boot.to_owned())
    }

    const SECS: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn an_agent_that_is_started_again_is_alone() {
        let (store, _) = store();
        for _ in 0..3 {
            let mut one = agent("a");
            for beat in 0..3 {
                one.beat(&store, SECS(beat * 30), "now").unwrap();
                assert!(one.doubled().is_none());
            }
        }
    }

    /// G22
    #[test]
    fn two_machines_under_one_name_both_leave_everything_where_it_is() {
        let (store, _) = store();
        let (mut true_one, mut copy) = (agent("a"), agent("b"));
        true_one.beat(&store, SECS(0), "now").unwrap();
        assert!(true_one.doubled().is_none());
        copy.beat(&store, SECS(10), "now").unwrap();
        true_one.beat(&store, SECS(30), "now").unwrap();
        for one in [&true_one, &copy] {
            assert_eq!(one.doubled().unwrap().reason, "cloned");
        }
        // The copy is switched off: the other one is alone again after a while.
        true_one.beat(&store, SECS(60), "now").unwrap();
        assert!(true_one.doubled().is_some(), "too soon");
        true_one.beat(&store, SECS(120), "now").unwrap();
        assert!(true_one.doubled().is_none());
    }

    /// G22
    #[test]
    fn a_machine_whose_memory_was_copied_is_found_out_too() {
        let (store, _) = store();
        let mut one = agent("a");
        one.beat(&store, SECS(0), "now").unwrap();
        let mut copy = Instance { node: one.node.clone(), mine: one.mine.clone(), left: one.left, other: None };
        one.beat(&store, SECS(30), "now").unwrap();
        copy.beat(&store, SECS(31), "now").unwrap();
        assert!(copy.doubled().is_some());
        one.beat(&store, SECS(60), "now").unwrap();
        assert!(one.doubled().is_some());
    }

    #[test]
    fn an_answer_that_was_lost_is_nobody_else() {
        let (store, _) = store();
        let mut one = agent("a");
        one.beat(&store, SECS(0), "now").unwrap();
        for fault in [Fault::OutcomeUnknownApplied, Fault::OutcomeUnknownNotApplied] {
            store.fail_next(fault);
            assert!(one.beat(&store, SECS(30), "now").is_err());
            one.beat(&store, SECS(31), "now").unwrap();
            assert!(one.doubled().is_none(), "{fault:?}");
        }
    }

    #[test]
    fn after_a_boot_the_machine_of_before_must_have_been_silent() {
        let (store, clock) = store();
        agent("a").beat(&store, SECS(0), "now").unwrap();
        let mut booted = agent("b");
        booted.beat(&store, SECS(0), "now").unwrap();
        assert!(booted.doubled().is_some());
        booted.beat(&store, SECS(91), "now").unwrap();
        assert!(booted.doubled().is_none());
        booted.leave(&store);
        let mut next = agent("c");
        next.beat(&store, SECS(0), "now").unwrap();
        assert!(next.doubled().is_none(), "the one before said that it goes");
        clock.advance(SECS(91));
        let mut later = agent("d");
        later.beat(&store, SECS(0), "now").unwrap();
        assert!(later.doubled().is_none(), "its sign is gone");
    }

    /// An apply takes as long as it takes, and meanwhile the agent asks for nothing.
    #[test]
    fn a_run_that_takes_longer_than_a_sign_lasts_lets_none_expire() {
        let (store, clock) = store();
        let life = Arc::new(Life::new(agent("a"), Arc::new(store.clone()), clock.clone()));
        life.beat();
        let (told, heard) = std::sync::mpsc::channel();
        let tell = move || {
            let _ = told.send(());
        };
        let _watch = store.watch(&["n/n1/"], Box::new(tell)).unwrap();
        let _kept = life.keep(Duration::from_millis(1));
        // The run: the agent's own thread is in it for 10 minutes.
        for _ in 0..20 {
            clock.advance(BEAT / 3);
            heard.recv_timeout(Duration::from_secs(20)).expect("a beat");
            let signs = store.read(&["n/n1/beat", "n/n1/instance"]).unwrap().entries.len();
            assert_eq!(signs, 2);
        }
        assert!(life.doubled().is_none());
        let mut copy = agent("b");
        copy.beat(&store, SECS(0), "now").unwrap();
        assert!(copy.doubled().is_some(), "a copy that boots meanwhile finds it");
        clock.advance(BEAT / 3);
        heard.recv_timeout(Duration::from_secs(20)).unwrap();
        heard.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(life.doubled().is_some(), "and is found");
        life.leave();
        clock.advance(BEAT);
        life.beat();
        assert!(store.read(&["n/n1/"]).unwrap().entries.is_empty(), "it does not beat on");
    }

    #[test]
    fn a_store_that_falls_between_two_runs_is_told_once() {
        let (store, clock) = store();
        let life = Life::new(agent("a"), Arc::new(store.clone()), clock.clone());
        for secs in [30, 30] {
            life.beat();
            clock.advance(SECS(secs));
        }
        assert_eq!(life.store_fell(), None);
        let Life { beats, .. } = life;
        // The same agent meets an older state of it.
        let life = Life { beats, ..Life::new(agent("a"), Arc::new(FakeStore::new("one", clock.clone())), clock) };
        life.beat();
        assert!(life.store_fell().is_some());
        assert_eq!(life.store_fell(), None);
    }
}
