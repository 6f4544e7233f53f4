//! Whether this node runs a unit of which one runs in the whole cluster: a pure decision over times that passed here.
//!
//! The key has no lease: its holder writes it again and again, each time on the condition that it is still what it wrote
//! last. systemd stops the unit when two thirds of `lease_secs` have passed since the last write that counts was *sent*; the
//! last third is for the stop. Whoever saw the key unchanged for `lease_secs` and a margin takes it, on the same condition.
//! What is compared are spans of one node's own clock. PURE. Never: another machine's time, or a name in the key as proof.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lock::store::{Condition, Entry, Key, Transaction, Write};
use crate::name::{ClusterName, NodeName, UnitName};

/// The times of a singleton, all made from `lease_secs`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Lease(Duration);

impl Lease {
    /// The longest there is: `check` refuses more, and a key may say anything.
    pub const SECS_MAX: u64 = 86_400;

    pub fn of_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs.min(Self::SECS_MAX)))
    }

    /// A grant ends this long after it was asked for.
    pub fn runs_for(self) -> Duration {
        self.0 * 2 / 3
    }

    /// How often the key is written and looked at.
    pub fn renewed_every(self) -> Duration {
        self.0 / 6
    }

    /// What a clock, a timer or a paused machine may be late by.
    pub fn margin(self) -> Duration {
        self.0 / 3
    }

    /// A key that did not change for this long is nobody's.
    pub fn over_after(self) -> Duration {
        self.0 + self.margin()
    }

    /// A holder whose unit is down for this long lets another try.
    pub fn given_up_after(self) -> Duration {
        self.0
    }
}

/// The key as it was seen last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    /// The store did not answer.
    Unknown,
    /// As I wrote it last.
    Mine,
    /// Its holder stopped the unit and gave it away, while I looked.
    Freed,
    /// There is no key: it was deleted, or the store is new. Of this nobody knows since when it is so.
    Missing,
    /// Anything else: unchanged for this long while I looked.
    Other(Duration),
}

/// The unit on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Running {
    Runs,
    Stops,
    /// For this long.
    Down(Duration),
}

/// What the repository wants of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// It is a candidate and has what the unit needs.
    Run,
    /// It is a candidate that is not ready: it takes nothing, and keeps what it has.
    Keep,
    /// The unit is to run elsewhere: it stops here, then the key is free.
    Leave,
    /// The unit is no singleton any more.
    Ordinary,
}

/// All that the decision depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    pub lease: Lease,
    /// The longer of mine and of the one that the key was last written with: a holder may follow another commit.
    pub longest: Lease,
    pub sight: Sight,
    /// How long ago the last write that counts was sent: one that was answered, and with which systemd's timer was set.
    pub granted: Option<Duration>,
    pub unit: Running,
    pub wish: Wish,
}

impl View {
    pub fn is_granted(&self) -> bool {
        let valid = self.granted.is_some_and(|age| age < self.lease.runs_for());
        valid && matches!(self.sight, Sight::Mine | Sight::Unknown)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Move {
    /// Write the key: it is mine already.
    Renew,
    /// Write the key, then start the unit.
    Take,
    /// Write a key that is nobody's: from then on it is waited for.
    Announce,
    Stop,
    /// Nothing runs here: mark the key as nobody's.
    Free,
    /// Forget the unit: its timer, and the key.
    Drop,
    Rest,
}

/// What to do now.
pub fn decide(view: &View) -> Move {
    let View { lease, longest, sight, granted, unit, wish } = *view;
    if wish == Wish::Ordinary {
        return Move::Drop;
    }
    if !view.is_granted() {
        let is_free = match sight {
            Sight::Mine | Sight::Freed => true,
            Sight::Other(unchanged) => unchanged >= longest.over_after(),
            Sight::Unknown | Sight::Missing => false,
        };
        return match (unit, wish) {
            // Whoever started it.
            (Running::Runs, _) => Move::Stop,
            (Running::Stops, _) => Move::Rest,
            (Running::Down(_), Wish::Leave) => Move::Drop,
            (Running::Down(_), Wish::Run) if is_free => Move::Take,
            (Running::Down(_), Wish::Run) if sight == Sight::Missing => Move::Announce,
            (Running::Down(_), _) => Move::Rest,
        };
    }
    match (unit, wish) {
        (Running::Runs, Wish::Leave) => Move::Stop,
        (Running::Down(_), Wish::Leave) => Move::Drop,
        (Running::Stops, Wish::Leave) => Move::Rest,
        _ if sight == Sight::Unknown => Move::Rest,
        (Running::Down(since), _) if since >= lease.given_up_after() => Move::Free,
        _ if granted.is_some_and(|age| age >= lease.renewed_every()) => Move::Renew,
        _ => Move::Rest,
    }
}

/// What this node knows of the key, by its own looks and writes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Known {
    pub seen: Option<Seen>,
    /// My last write that is known to have happened: its revision and mark.
    pub mine: Option<(i64, String)>,
    /// A write of which it is not known: its mark, and when it was sent.
    pub unsure: Option<(String, Duration)>,
}

/// The key at a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub revision: i64,
    /// Awake time of the first look that showed this revision.
    pub since: Duration,
    /// It was freed after I had seen it held.
    pub freed: bool,
}

impl Known {
    /// A write whose answer was lost, and which the key shows: it is mine. When it was sent.
    pub fn find(&mut self, entry: Option<&Entry>) -> Option<Duration> {
        let (unsure, sent) = self.unsure.take()?;
        let entry = entry.filter(|entry| Holder::of(entry).is_some_and(|holder| holder.mark == unsure))?;
        self.mine = Some((entry.mod_revision, unsure));
        Some(sent)
    }

    /// `now`: awake time after the answer. Only a read that was answered shows a state that was there by then.
    pub fn look(&mut self, entry: Option<&Entry>, now: Duration) -> Sight {
        let Some(entry) = entry else {
            (self.mine, self.seen) = (None, None);
            return Sight::Missing;
        };
        let (revision, holder) = (entry.mod_revision, Holder::of(entry));
        let mark = holder.as_ref().map(|holder| holder.mark.as_str());
        if self.mine.as_ref().is_some_and(|(at, last)| *at == revision && mark == Some(last.as_str())) {
            return Sight::Mine;
        }
        // Somebody wrote since.
        self.mine = None;
        let before = self.seen.map(|seen| seen.revision);
        let seen = self.seen.filter(|seen| seen.revision == revision).unwrap_or_else(|| {
            // An older state of the store may say that the key is free although it was taken since.
            let freed = holder.is_some_and(|holder| holder.free) && before.is_some_and(|before| before < revision);
            Seen { revision, since: now, freed }
        });
        self.seen = Some(seen);
        if seen.freed { Sight::Freed } else { Sight::Other(now.saturating_sub(seen.since)) }
    }

    /// The revision on which a write of this node builds; 0: there must be no key.
    pub fn base(&self) -> i64 {
        let mine = self.mine.as_ref().map(|(revision, _)| *revision);
        mine.or_else(|| self.seen.map(|seen| seen.revision)).unwrap_or(0)
    }
}

/// A singleton of this node's, as the repository declares it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Singleton {
    pub unit: UnitName,
    pub cluster: ClusterName,
    pub lease_secs: u64,
    pub stop_secs_max: u64,
}

impl Singleton {
    pub fn key(&self) -> Key {
        key(&self.cluster, &self.unit)
    }

    pub fn lease(&self) -> Lease {
        Lease::of_secs(self.lease_secs)
    }
}

/// What this node may do until when: on its disk as long as it may.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    pub singleton: Singleton,
    /// The revision of the write that counts, and what it is recognised by.
    pub revision: i64,
    pub mark: String,
    /// Awake time at which it was sent.
    pub sent_ms: u64,
}

impl Grant {
    pub fn sent(&self) -> Duration {
        Duration::from_millis(self.sent_ms)
    }

    /// Awake time at which the unit is stopped.
    pub fn ends(&self) -> Duration {
        self.sent() + self.singleton.lease().runs_for()
    }

    /// A time that has not come yet is of another boot.
    pub fn is_valid(&self, now: Duration) -> bool {
        self.sent() <= now && now < self.ends()
    }
}

pub fn key(cluster: &ClusterName, unit: &UnitName) -> Key {
    format!("single/{cluster}/{unit}")
}

/// Where the grants are, below the agent's own directory in /run: gone with every boot.
pub const GRANTS: &str = "single";

/// What is added to the unit file of a singleton.
pub fn drop_in(unit: &UnitName, stop_secs_max: u64) -> String {
    format!(
        "# A singleton: it runs only while this node has its key (docs/singletons.md).\n\
         [Unit]\n\
         ConditionPathExists=/run/converger/{GRANTS}/{unit}\n\
         [Service]\n\
         TimeoutStopSec={stop_secs_max}\n\
         SendSIGKILL=yes\n"
    )
}

/// The key's value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    pub node: NodeName,
    /// Other with every write: one whose answer was lost is recognised by it.
    pub mark: String,
    /// The unit was stopped; anybody may take the key.
    pub free: bool,
    /// It was written because there was no key; nobody has it.
    #[serde(default)]
    pub nobodys: bool,
    pub lease_secs: u64,
    /// For people.
    pub since: Timestamp,
}

impl Holder {
    /// What cannot be read is somebody's.
    pub fn of(entry: &Entry) -> Option<Self> {
        serde_json::from_slice(&entry.value).ok()
    }
}

/// Writes the key if nobody wrote it since this revision (0: there is none).
pub fn write(key: Key, seen: i64, holder: &Holder, also: impl IntoIterator<Item = Condition>) -> Transaction {
    let value = serde_json::to_vec(holder).expect("names and times serialize");
    let when = [Condition::ModifiedAt(key.clone(), seen)].into_iter().chain(also).collect();
    Transaction { when, then: vec![Write::Put(key, value)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lease of 30 s: it runs for 20, is written every 5, is over after 40.
    /// `sight, granted, unit, wish -> move`, times in seconds.
    const TABLE: &str = "
        # The holder.
        mine         0  runs     run    -> rest
        mine         5  runs     run    -> renew
        mine        19  runs     run    -> renew
        mine        19  runs     keep   -> renew
        mine         5  stops    run    -> renew
        mine         5  down 0   run    -> renew
        mine         5  down 30  run    -> free
        unknown     19  runs     run    -> rest
        unknown     19  down 30  run    -> rest
        # A grant that is over is none, however it became so.
        mine        20  runs     run    -> stop
        mine        20  stops    run    -> rest
        mine        20  down 0   run    -> take
        mine        20  down 0   keep   -> rest
        unknown     20  runs     run    -> stop
        unknown     20  down 0   run    -> rest
        other 0      0  runs     run    -> stop
        other 99     0  runs     run    -> stop
        other 0      0  down 0   run    -> rest
        freed        0  runs     run    -> stop
        # A candidate that waits.
        other 0      -  down 0   run    -> rest
        other 39     -  down 99  run    -> rest
        other 40     -  down 0   run    -> take
        other 40     -  down 0   keep   -> rest
        other 40     -  stops    run    -> rest
        freed        -  down 0   run    -> take
        freed        -  down 0   keep   -> rest
        unknown      -  down 99  run    -> rest
        # Somebody started it by hand.
        other 40     -  runs     run    -> stop
        other 0      -  runs     keep   -> stop
        unknown      -  runs     run    -> stop
        # A planned move: the key is free only when nothing runs.
        mine         5  runs     leave  -> stop
        mine         5  stops    leave  -> rest
        mine         5  down 0   leave  -> drop
        unknown      5  runs     leave  -> stop
        other 0      -  runs     leave  -> stop
        other 0      -  down 0   leave  -> drop
        # No singleton any more.
        mine         5  runs     plain  -> drop
        other 0      -  runs     plain  -> drop
    ";

    fn answer(line: &str) -> String {
        let mut words = line.split_whitespace().peekable();
        let mut word = || words.next().unwrap_or_default();
        let secs = |word: &str| Duration::from_secs(word.parse().expect("seconds"));
        let sight = match word() {
            "unknown" => Sight::Unknown,
            "mine" => Sight::Mine,
            "freed" => Sight::Freed,
            "missing" => Sight::Missing,
            "other" => Sight::Other(secs(word())),
            other => panic!("{other}"),
        };
        let granted = Some(word()).filter(|word| *word != "-").map(secs);
        let unit = match word() {
            "runs" => Running::Runs,
            "stops" => Running::Stops,
            "down" => Running::Down(secs(word())),
            other => panic!("{other}"),
        };
        let wish = match word() {
            "run" => Wish::Run,
            "keep" => Wish::Keep,
            "leave" => Wish::Leave,
            "plain" => Wish::Ordinary,
            other => panic!("{other}"),
        };
        let lease = Lease::of_secs(30);
        format!("{:?}", decide(&View { lease, longest: lease, sight, granted, unit, wish })).to_lowercase()
    }

    #[test]
    fn what_is_done_about_a_singleton() {
        for line in TABLE.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (view, expected) = line.split_once(" -> ").expect("an answer");
            assert_eq!(answer(view), expected, "{line}");
        }
    }

    #[test]
    fn the_stop_ends_before_anybody_else_begins() {
        for secs in [15, 30, 31, 270] {
            let lease = Lease::of_secs(secs);
            let stopped = lease.runs_for() + Duration::from_secs(secs / 3);
            assert!(stopped + lease.margin() <= lease.over_after(), "{secs}");
            assert!(lease.renewed_every() * 3 < lease.runs_for(), "{secs}: three writes may be lost");
        }
    }

    #[test]
    fn a_holder_that_follows_another_commit_has_its_own_time() {
        let (lease, longest) = (Lease::of_secs(30), Lease::of_secs(270));
        let waited = |secs| {
            let sight = Sight::Other(Duration::from_secs(secs));
            let unit = Running::Down(Duration::ZERO);
            decide(&View { lease, longest, sight, granted: None, unit, wish: Wish::Run })
        };
        assert_eq!([40, 359, 360].map(waited), [Move::Rest, Move::Rest, Move::Take]);
    }

    #[test]
    fn a_grant_of_another_boot_is_none() {
        let singleton =
            Singleton { unit: "beat.service".into(), cluster: "app".into(), lease_secs: 30, stop_secs_max: 10 };
        let grant = Grant { singleton, revision: 7, mark: String::new(), sent_ms: 100_000 };
        let valid = |secs| grant.is_valid(Duration::from_secs(secs));
        assert_eq!([99, 100, 119, 120].map(valid), [false, true, true, false]);
    }

    #[test]
    fn a_key_with_any_number_in_it_is_waited_for() {
        let longest = Lease::of_secs(u64::MAX);
        assert_eq!(longest, Lease::of_secs(Lease::SECS_MAX));
        assert!(longest.over_after() < Duration::from_secs(2 * Lease::SECS_MAX));
    }
}
