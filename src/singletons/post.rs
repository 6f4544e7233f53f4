//! One singleton on one node: looks at its key and its unit, does what was decided, remembers since when.
//!
//! Never: counts time from an answer; a grant begins when it was asked for.

use std::path::Path;
use std::time::Duration;

use super::SOON;
use crate::clock::Clock;
use crate::host::HostError;
use crate::host::guard::Guard;
use crate::lock::epoch::{self, META};
use crate::lock::protocol;
use crate::lock::session;
use crate::lock::singleton::{Grant, Holder, Known, Lease, Move, Running, Sight, Singleton, View, Wish, decide, write};
use crate::lock::store::{Condition, LockStore, Outcome, Snapshot, StoreError};
use crate::name::NodeName;
use crate::reason::chain;
use crate::resource::unit::Active;

pub struct Post {
    singleton: Singleton,
    wish: Wish,
    known: Known,
    /// When the last write that counts was sent.
    granted: Option<Duration>,
    /// The lease by which systemd stops the unit, while there is a grant.
    armed_secs: u64,
    down_since: Option<Duration>,
    /// What the key was last written with.
    theirs: Lease,
    /// Of which store all this is.
    store: Option<String>,
    /// The store is not the one that this node knows: it was told.
    is_foreign: bool,
}

/// What came of one look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Round {
    /// The agent should look: it has the singleton and it does not run, or has lost it.
    pub is_news: bool,
    /// The singleton is no concern of this node any more.
    pub is_over: bool,
    pub again_in: Duration,
}

impl Post {
    pub fn new(singleton: Singleton, wish: Wish) -> Self {
        Self {
            theirs: singleton.lease(),
            armed_secs: singleton.lease_secs,
            singleton,
            wish,
            known: Known::default(),
            granted: None,
            down_since: None,
            store: None,
            is_foreign: false,
        }
    }

    /// What an agent before this one had: it is kept until a run says otherwise.
    pub fn resumed(grant: Grant) -> Self {
        let granted = Some(grant.sent());
        let known = Known { mine: Some((grant.revision, grant.mark)), ..Known::default() };
        Self { known, granted, ..Self::new(grant.singleton, Wish::Keep) }
    }

    pub fn singleton(&self) -> &Singleton {
        &self.singleton
    }

    pub fn wish(&mut self, singleton: Singleton, wish: Wish) {
        // Under another key everything is to be seen anew; what was granted under the old one ends by itself.
        if singleton.key() != self.singleton.key() {
            self.known = Known::default();
        }
        // A grant keeps the times that it was made with: the new ones hold from the next write on.
        self.singleton = singleton;
        self.wish = wish;
    }

    pub fn leave(&mut self) {
        self.wish = Wish::Leave;
    }

    pub fn ordinary(&mut self) {
        self.wish = Wish::Ordinary;
    }

    /// Looks once, and does what is to be done. `pin`: where this node keeps which store it knows.
    pub fn round(
        &mut self,
        me: &NodeName,
        store: &dyn LockStore,
        pin: &Path,
        guard: &dyn Guard,
        clock: &dyn Clock,
    ) -> Round {
        let unit = self.singleton.unit.clone();
        let mut hands = Hands { me, store, pin, guard, clock };
        let sight = self.look(&mut hands);
        let running = match guard.state(&unit) {
            Ok(active) => self.running(active, clock),
            Err(error) => {
                tracing::warn!(unit = %unit, error = %chain(&error), "the singleton cannot be looked at");
                return Round { is_news: false, is_over: false, again_in: SOON };
            }
        };
        let view = View {
            lease: self.singleton.lease(),
            longest: self.singleton.lease().max(self.theirs),
            sight,
            granted: self.granted.map(|sent| clock.awake().saturating_sub(sent)),
            unit: running,
            wish: self.wish,
        };
        let had = self.granted.is_some();
        let next = decide(&view);
        tracing::debug!(unit = %unit, ?view, ?next, "singleton");
        if !view.is_granted() && had {
            tracing::warn!(unit = %unit, ?sight, "this node has lost the singleton");
            self.granted = None;
        }
        let mut round = Round { is_news: had != self.granted.is_some(), is_over: false, again_in: self.pace(&view) };
        let done = match next {
            Move::Renew | Move::Take => self.write(&mut hands),
            Move::Stop => guard.stop(&unit),
            Move::Announce => self.announce(&mut hands),
            Move::Free => self.free(&mut hands).map(drop),
            Move::Drop => self.free(&mut hands).map(|freed| round.is_over = freed),
            Move::Rest => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(unit = %unit, error = %chain(&error), "singleton");
            (round.is_over, round.again_in) = (false, SOON);
        }
        if next == Move::Drop && !round.is_over {
            round.again_in = SOON;
        }
        if next == Move::Take {
            round.is_news |= self.granted.is_some();
            round.again_in = SOON;
        }
        // It has the singleton, and nothing runs: that is for a run of the agent to mend.
        round.is_news |= self.granted.is_some() && matches!(running, Running::Down(_));
        round
    }

    /// Often enough to write in time, and to see an end when it comes.
    fn pace(&self, view: &View) -> Duration {
        let every = view.lease.renewed_every();
        match (view.sight, view.unit) {
            (Sight::Unknown, _) | (_, Running::Stops) => SOON.min(every),
            (Sight::Other(unchanged), Running::Down(_)) if view.granted.is_none() => {
                every.min(view.longest.over_after().saturating_sub(unchanged)).max(SOON)
            }
            _ => every,
        }
    }

    fn running(&mut self, active: Active, clock: &dyn Clock) -> Running {
        match active {
            Active::Inactive | Active::Failed => {
                let now = clock.awake();
                Running::Down(now.saturating_sub(*self.down_since.get_or_insert(now)))
            }
            Active::Deactivating => {
                self.down_since = None;
                Running::Stops
            }
            Active::Active | Active::Activating | Active::Reloading => {
                self.down_since = None;
                Running::Runs
            }
        }
    }

    fn look(&mut self, hands: &mut Hands<'_>) -> Sight {
        let key = self.singleton.key();
        let (identity, snapshot) = match seen(&key, hands) {
            Ok(seen) => seen,
            Err(Unseen::NoAnswer(error)) => {
                tracing::debug!(%error, "a singleton's key cannot be read");
                return Sight::Unknown;
            }
            Err(Unseen::Foreign(why)) => {
                if !self.is_foreign {
                    tracing::warn!(unit = %self.singleton.unit, why, "this store gives and takes no singleton");
                }
                self.is_foreign = true;
                return Sight::Unknown;
            }
        };
        self.is_foreign = false;
        if self.store.as_ref().is_some_and(|store| *store != identity) {
            // What was seen in another store says nothing in this one.
            self.known = Known::default();
        }
        self.store = Some(identity);
        let entry = snapshot.get(&key);
        let lease = entry.and_then(Holder::of).map(|holder| Lease::of_secs(holder.lease_secs));
        self.theirs = lease.unwrap_or(self.theirs);
        if let Some(sent) = self.known.find(entry) {
            self.count(sent, hands);
        }
        self.known.look(entry, hands.clock.awake())
    }

    fn write(&mut self, hands: &mut Hands<'_>) -> Result<(), HostError> {
        let Some(sent) = self.put(hands, Says::Held) else { return Ok(()) };
        self.count(sent, hands);
        Ok(())
    }

    /// A key that was not there may have been there a moment ago: everybody waits from this write on.
    fn announce(&mut self, hands: &mut Hands<'_>) -> Result<(), HostError> {
        self.put(hands, Says::Nobodys);
        (self.known.mine, self.known.seen) = (None, None);
        Ok(())
    }

    /// Whether it is given up: not if somebody started the unit since the look. Then its timer stays, and so does the key.
    fn free(&mut self, hands: &mut Hands<'_>) -> Result<bool, HostError> {
        let unit = &self.singleton.unit;
        hands.guard.bar(unit)?;
        self.granted = None;
        if self.wish != Wish::Ordinary && !matches!(hands.guard.state(unit)?, Active::Inactive | Active::Failed) {
            return Ok(false);
        }
        hands.guard.disarm(unit)?;
        if self.known.mine.is_some() && self.put(hands, Says::Free).is_some() {
            tracing::info!(unit = %self.singleton.unit, "this node has given the singleton away");
        }
        // To take it back, it waits like anybody else.
        (self.known.mine, self.known.seen) = (None, None);
        Ok(true)
    }

    /// When it was sent, if it certainly happened.
    fn put(&mut self, hands: &mut Hands<'_>, says: Says) -> Option<Duration> {
        let mark = ulid::Ulid::generate().to_string();
        let since = hands.clock.now();
        let holder = Holder {
            node: hands.me.clone(),
            mark: mark.clone(),
            free: says == Says::Free,
            nobodys: says == Says::Nobodys,
            // Until systemd goes by a shorter one, the others wait for the longer.
            lease_secs: match self.granted {
                Some(_) => self.singleton.lease_secs.max(self.armed_secs),
                None => self.singleton.lease_secs,
            },
            since,
        };
        // A node that was declared dead takes nothing; what it has it may keep.
        let alive =
            (says != Says::Free && self.granted.is_none()).then(|| Condition::Absent(protocol::dead_key(hands.me)));
        let transaction = write(self.singleton.key(), self.known.base(), &holder, alive);
        let sent = hands.clock.awake();
        match hands.store.commit(&transaction) {
            Ok(Outcome::Committed(revision)) => {
                self.known.mine = Some((revision, mark));
                Some(sent)
            }
            Ok(Outcome::Refused) => None,
            Err(error) => {
                tracing::debug!(%error, "a singleton's key may not be written");
                if matches!(error, StoreError::OutcomeUnknown { .. } | StoreError::NoSpace) && says == Says::Held {
                    self.known.unsure = Some((mark, sent));
                }
                None
            }
        }
    }

    /// A write that happened counts once systemd is set to stop the unit at its end.
    fn count(&mut self, sent: Duration, hands: &mut Hands<'_>) {
        let Some((revision, mark)) = self.known.mine.clone() else { return };
        let sent_ms = u64::try_from(sent.as_millis()).unwrap_or(u64::MAX);
        let grant = Grant { singleton: self.singleton.clone(), revision, mark, sent_ms };
        let unit = &self.singleton.unit;
        let is_new = self.granted.is_none();
        if !grant.is_valid(hands.clock.awake()) {
            return;
        }
        if let Err(error) = hands.guard.arm(&grant) {
            tracing::warn!(unit = %unit, error = %chain(&error), "the singleton's end cannot be arranged");
            // Somebody else may be able to run it.
            if is_new {
                (self.known.mine, self.known.seen) = (None, None);
            }
            return;
        }
        self.granted = Some(grant.sent());
        self.armed_secs = grant.singleton.lease_secs;
        if is_new {
            // It was no fault that it was down before.
            self.down_since = None;
            tracing::info!(unit = %unit, "this node has the singleton");
            if let Err(error) = hands.guard.start(unit) {
                tracing::warn!(unit = %unit, error = %chain(&error), "the singleton could not be started");
            }
        }
    }
}

/// Why nothing is known of a key.
enum Unseen {
    NoAnswer(StoreError),
    /// What it says is that of another store, or of an older state of it.
    Foreign(String),
}

/// Which store answered, and what it says of the key and of itself: believed as holds believe it.
fn seen(key: &str, hands: &Hands<'_>) -> Result<(String, Snapshot), Unseen> {
    // Before the store is read: a run may raise the pin meanwhile.
    let known = session::read_pin(hands.pin).map_err(|error| Unseen::Foreign(chain(&error)))?;
    let known = known.map_err(Unseen::Foreign)?;
    let identity = hands.store.identity().map_err(Unseen::NoAnswer)?;
    let snapshot = hands.store.read(&[key, META]).map_err(Unseen::NoAnswer)?;
    epoch::judge(known.as_ref(), &identity, &snapshot).1.map_err(Unseen::Foreign)?;
    Ok((identity, snapshot))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    Held,
    Free,
    Nobodys,
}

/// What a round works with.
struct Hands<'a> {
    me: &'a NodeName,
    store: &'a dyn LockStore,
    pin: &'a Path,
    guard: &'a dyn Guard,
    clock: &'a dyn Clock,
}
