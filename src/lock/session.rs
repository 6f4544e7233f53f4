//! One node's dealings with the holds: drives `machine` with the store, the probes and the record on disk.
//!
//! Everything here carries out what `quorum` and `machine` said. A record on disk means: this node armed a hold, its
//! member may be down because of us, and it comes first until it is healthy again. Never: two records at once; never:
//! waits (a wait ends the attempt).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::disk::{self, DiskError};
use crate::fleet::Group;
use crate::lock::machine::{self, Action, Event, Phase};
use crate::lock::protocol;
use crate::lock::quorum::{self, Because, Ground, Hold, HoldPhase, Member, Situation, Verdict};
use crate::lock::store::{LockStore, Outcome, Snapshot, StoreError, Transaction, Write};
use crate::name::{ClusterName, CommitId, GroupId, NodeName};
use crate::probe::{self, Evidence, Health, Probe, Question};
use crate::reason::{self, Reason};
use crate::report::Report;

/// What is on disk from arming until release.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    pub phase: RecordPhase,
    /// With the revision at which each was created (its token).
    pub holds: Vec<(Hold, i64)>,
    /// Name of the batch that it was taken for.
    pub batch: String,
    pub commit: CommitId,
    pub seq: u64,
    /// The boot in which the store last confirmed that the holds are ours.
    pub boot_id: String,
    /// Awake time at which the member was started, in milliseconds, in the boot `acted_boot`.
    pub acted_ms: u64,
    #[serde(default)]
    pub acted_boot: String,
    /// How long the units may take to start: a member is not called sick before.
    #[serde(default)]
    pub start_secs_max: u64,
    /// Why it failed.
    pub why: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordPhase {
    Acting,
    /// Acting again, under the hold of an attempt that failed or was interrupted.
    Repairing,
    Settling,
    Failed,
}

impl From<RecordPhase> for Phase {
    fn from(phase: RecordPhase) -> Self {
        match phase {
            RecordPhase::Acting => Self::Acting,
            RecordPhase::Repairing => Self::Repairing,
            RecordPhase::Settling => Self::Settling,
            RecordPhase::Failed => Self::Failed,
        }
    }
}

/// Which store this node deals with, and how far it has seen it: another one, or an older state of it, knows nothing of
/// the holds of today.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
struct Pin {
    identity: String,
    revision: i64,
}

/// A group as this node meets it: its questions made concrete, for every member.
pub struct Circle<'a> {
    pub group: Cow<'a, Group>,
    /// The groups that must not be disrupted together with it, by all of their names.
    pub conflicts: Vec<GroupId>,
    /// In the order of `group.members`.
    pub gate: Vec<Question>,
    /// Empty where nobody leads.
    pub leader: Vec<Question>,
    /// Clusters that go first, with their members.
    pub after: Vec<(ClusterName, Vec<NodeName>)>,
}

impl Circle<'_> {
    /// Every name under which the group is held.
    pub fn ids(&self) -> impl Iterator<Item = &GroupId> {
        std::iter::once(&self.group.id).chain(&self.group.aliases)
    }

    fn is_of(&self, groups: &[GroupId]) -> bool {
        self.ids().any(|id| groups.contains(id))
    }
}

pub struct Session<'a> {
    pub me: &'a NodeName,
    /// Or why there is none.
    pub store: Result<&'a dyn LockStore, Because>,
    pub probe: &'a (dyn Probe + Sync),
    pub clock: &'a dyn Clock,
    pub boot_id: String,
    /// This node's ledger knows units: its state was not lost.
    pub state_is_old: bool,
    pub record_path: PathBuf,
    /// Where the store's identity and its highest revision seen are kept.
    pub pin_path: PathBuf,
    /// One for every group of the target commit that this node is a member of, and one for every group that protects a
    /// unit as it runs now.
    pub circles: Vec<Circle<'a>>,
    pub commit: CommitId,
    pub seq: u64,
}

/// What a batch asks for.
pub struct Intent<'a> {
    pub batch: &'a str,
    pub groups: Vec<GroupId>,
    pub units: Vec<String>,
    /// Whether a unit of it runs now.
    pub running: bool,
    pub start_secs_max: u64,
}

pub enum Entry {
    /// Armed and recorded (or covered by a record that was there): act now.
    Act {
        /// This member leads: hand over first.
        leads: bool,
        ground: Ground,
    },
    /// Not now.
    Deferred(Because),
}

fn deferred(reason: Reason, group: Option<&GroupId>, sentence: impl Into<String>) -> Entry {
    Entry::Deferred(Because::new(reason, group, sentence.into()))
}

/// What an error of the store means to people.
pub fn because_of(error: &StoreError) -> Because {
    let reason = match error {
        StoreError::Unreachable { .. } | StoreError::OutcomeUnknown { .. } | StoreError::Local { .. } => {
            reason::STORE_UNREACHABLE
        }
        StoreError::Denied { .. } => reason::STORE_DENIED,
        StoreError::NoSpace => reason::STORE_FULL,
        StoreError::Settings { .. } => reason::SETTINGS,
    };
    Because::new(reason, None, reason::chain(error))
}

impl<'a> Session<'a> {
    pub fn record(&self) -> Option<Record> {
        read_record(&self.record_path)
    }

    /// Takes the holds that a batch needs, or says why not.
    pub fn enter(&self, intent: &Intent<'_>) -> Result<Entry, DiskError> {
        if let Some(record) = self.record() {
            return self.reenter(record, intent);
        }
        let circles: Vec<&Circle<'_>> = self.circles.iter().filter(|circle| circle.is_of(&intent.groups)).collect();
        let ids: Vec<GroupId> = circles.iter().flat_map(|circle| circle.ids()).cloned().collect();
        if let Some(unknown) = intent.groups.iter().find(|group| !ids.contains(group)) {
            return Ok(deferred(reason::INTERNAL, Some(unknown), format!("nothing is known of {unknown}")));
        }
        let (store, snapshot) = match self.look_at(ids.iter().map(protocol::hold_range)) {
            Ok(seen) => seen,
            Err(because) => return Ok(Entry::Deferred(*because)),
        };
        if let Some(because) = self.free_leftovers(store, &snapshot) {
            return Ok(Entry::Deferred(because));
        }
        let asked_secs = self.want(store, intent);
        let mut attempt = Attempt {
            session: self,
            store,
            intent,
            circles,
            asked_secs,
            id: ulid::Ulid::generate().to_string(),
            holds: Vec::new(),
            read_at: 0,
            leads: false,
            ground: Ground::Spared,
        };
        let mut phase = Phase::Idle;
        let mut event = attempt.judge(&phase);
        loop {
            let action;
            (phase, action) = machine::step(phase, event);
            tracing::debug!(node = %self.me, batch = intent.batch, ?phase, ?action, "hold");
            event = match action {
                Action::Claim { lanes } => attempt.claim(&lanes),
                Action::Probe => attempt.judge(&phase),
                Action::Arm => attempt.arm(),
                Action::Record => {
                    self.save(&attempt.record())?;
                    Event::Recorded
                }
                Action::Act => {
                    self.stop_wanting(store, intent);
                    return Ok(Entry::Act { leads: attempt.leads, ground: attempt.ground });
                }
                Action::Wait(because) => {
                    if phase == Phase::Releasing && !attempt.holds.is_empty() {
                        give_back(store, &attempt.holds, self.me);
                    }
                    return Ok(Entry::Deferred(because));
                }
                Action::Settle | Action::Release | Action::Fail(_) | Action::Finish => {
                    return Ok(deferred(reason::INTERNAL, None, format!("{action:?} before anything was done")));
                }
            };
        }
    }

    /// These prefixes and whether this node was declared dead, in a store that is the one this node knows.
    fn look_at(&self, prefixes: impl Iterator<Item = String>) -> Result<(&'a dyn LockStore, Snapshot), Box<Because>> {
        let store = self.store.clone()?;
        let identity = store.identity().map_err(|error| because_of(&error))?;
        let prefixes: Vec<String> = prefixes.chain([protocol::dead_key(self.me)]).collect();
        let snapshot = store.read(&prefixes.iter().map(String::as_str).collect::<Vec<_>>());
        let snapshot = snapshot.map_err(|error| because_of(&error))?;
        let replaced = |sentence: String| Because::new(reason::STORE_REPLACED, None, sentence);
        let unusable = |error: DiskError| Because::new(reason::APPLY_FAILED, None, reason::chain(&error));
        let known = match disk::read_bounded(&self.pin_path, 1 << 16).map_err(unusable)? {
            None => None,
            Some(bytes) => match serde_json::from_slice::<Pin>(&bytes) {
                Ok(pin) => Some(pin),
                Err(_) => return Err(Box::new(replaced(format!("{} cannot be read", self.pin_path.display())))),
            },
        };
        if let Some(pin) = &known {
            if pin.identity != identity {
                return Err(Box::new(replaced(format!(
                    "this is the store {identity}, this node knows {}",
                    pin.identity
                ))));
            }
            if snapshot.revision < pin.revision {
                let sentence = format!("the store is at revision {}, it was at {}", snapshot.revision, pin.revision);
                return Err(Box::new(replaced(sentence)));
            }
        }
        let now = Pin { identity, revision: snapshot.revision };
        if known.as_ref() != Some(&now) {
            let bytes = serde_json::to_vec_pretty(&now).expect("a text and a number");
            disk::write_atomic(&self.pin_path, &bytes, 0o600).map_err(unusable)?;
        }
        Ok((store, snapshot))
    }

    /// Gives back what an attempt of this node left behind, whether or not the node still wants anything.
    pub fn sweep(&self) {
        if self.circles.is_empty() || self.record().is_some() {
            return;
        }
        let ranges = self.circles.iter().flat_map(|circle| circle.ids()).map(protocol::hold_range);
        match self.look_at(ranges) {
            Ok((store, snapshot)) => drop(self.free_leftovers(store, &snapshot)),
            Err(because) => tracing::debug!(node = %self.me, because.sentence, "not swept"),
        }
    }

    /// A hold of ours without a record: an attempt that ended before anything was stopped (the record comes before that).
    /// It goes back. A failed one, or an armed one on a node without a memory, means that this machine lost its disk:
    /// that is for an operator.
    fn free_leftovers(&self, store: &dyn LockStore, snapshot: &Snapshot) -> Option<Because> {
        let ids = self.circles.iter().flat_map(|circle| circle.ids());
        let held: BTreeMap<String, (Hold, i64)> = ids
            .flat_map(|group| protocol::holds_in(snapshot, group))
            .filter(|(hold, _)| hold.node == *self.me)
            .map(|(hold, token)| (protocol::hold_key(&hold.group, hold.lane, self.me), (hold, token)))
            .collect();
        let (free, lost): (Vec<_>, Vec<_>) = held.into_values().partition(|(hold, _)| match hold.phase {
            HoldPhase::Claimed => true,
            HoldPhase::Armed => self.state_is_old,
            HoldPhase::Failed => false,
        });
        if let Some((hold, _)) = lost.first() {
            let sentence = format!("this node has {} since {} and no record of it", hold.group, hold.since);
            return Some(Because::new(reason::DECLARED_DEAD, Some(&hold.group), sentence).held_by(hold));
        }
        if !free.is_empty() {
            give_back(store, &free, self.me);
        }
        None
    }

    /// A record is there: this batch may be covered by it.
    fn reenter(&self, record: Record, intent: &Intent<'_>) -> Result<Entry, DiskError> {
        let held: Vec<GroupId> = record.holds.iter().map(|(hold, _)| hold.group.clone()).collect();
        // A hold under a former name is one on the group: whoever knows either name sees it.
        let circles: Vec<&Circle<'_>> = self.circles.iter().filter(|circle| circle.is_of(&held)).collect();
        let covered = |group: &GroupId| held.contains(group) || circles.iter().any(|circle| circle.group.id == *group);
        let group = held.first();
        let healthy = || {
            let asked: Vec<Evidence> = held.iter().filter_map(|group| self.own_health(group)).collect();
            intent.running && asked.iter().all(|evidence| evidence.health == Health::Healthy)
        };
        match record.phase {
            _ if !intent.groups.iter().any(covered) => {
                Ok(deferred(reason::SETTLING, group, format!("{} has a hold for {} first", self.me, record.batch)))
            }
            RecordPhase::Settling => Ok(deferred(reason::SETTLING, group, format!("{} is settling", record.batch))),
            _ if !intent.groups.iter().all(covered) => {
                let sentence = format!("the hold covers {} only, the change needs {:?}", record.batch, intent.groups);
                Ok(deferred(reason::HOLD_FAILED, group, sentence))
            }
            RecordPhase::Failed if record.commit == self.commit => {
                Ok(deferred(reason::GATE_FAILED, group, record.why.clone()))
            }
            RecordPhase::Failed if healthy() => {
                Ok(deferred(reason::SETTLING, group, format!("{} became healthy; it settles first", record.batch)))
            }
            // Interrupted, and the member is up: what it has must settle before anything new is taken.
            RecordPhase::Acting | RecordPhase::Repairing if healthy() => {
                self.acted()?;
                Ok(deferred(reason::SETTLING, group, format!("{} was interrupted; it settles first", record.batch)))
            }
            RecordPhase::Acting | RecordPhase::Repairing | RecordPhase::Failed => self.repair(record, &circles, intent),
        }
    }

    /// The own member counts as down already: it may be repaired under the hold that is there, without asking the others.
    /// The store is asked only where it must be: after a boot, and for another commit where several may hold the group.
    fn repair(&self, mut record: Record, circles: &[&Circle<'_>], intent: &Intent<'_>) -> Result<Entry, DiskError> {
        let earlier_boot = record.boot_id != self.boot_id;
        let retargets = record.commit != self.commit;
        let lanes = retargets && circles.iter().any(|circle| circle.group.max_unavailable > 1);
        record.commit = self.commit.clone();
        record.seq = self.seq;
        for (hold, _) in &mut record.holds {
            hold.commit = self.commit.clone();
            hold.seq = self.seq;
            hold.reason = "repair".to_owned();
        }
        if earlier_boot || lanes {
            let ids: BTreeSet<&GroupId> = circles
                .iter()
                .flat_map(|circle| circle.ids())
                .chain(record.holds.iter().map(|(h, _)| &h.group))
                .collect();
            let peers = circles.iter().flat_map(|circle| &circle.group.members).map(protocol::report_key);
            let (store, snapshot) = match self.look_at(ids.iter().map(|id| protocol::hold_range(id)).chain(peers)) {
                Ok(seen) => seen,
                Err(because) => return Ok(Entry::Deferred(*because)),
            };
            if snapshot.get(&protocol::dead_key(self.me)).is_some() {
                return Ok(deferred(reason::DECLARED_DEAD, None, format!("{} was declared dead", self.me)));
            }
            let still_mine = record.holds.iter().all(|(hold, token)| {
                let entry = snapshot.get(&protocol::hold_key(&hold.group, hold.lane, self.me));
                entry.is_some_and(|entry| entry.create_revision == *token)
            });
            if !still_mine {
                // An operator released it, and let this node in again: it is one of many.
                disk::remove(&self.record_path)?;
                return self.enter(intent);
            }
            if lanes {
                if let Some(because) = self.somebody_tries(&snapshot, circles) {
                    return Ok(Entry::Deferred(because));
                }
                let ranges: Vec<GroupId> = ids.into_iter().cloned().collect();
                let retarget = protocol::retarget(&record.holds, &ranges, snapshot.revision, self.me);
                match store.commit(&retarget) {
                    Ok(Outcome::Committed(_)) => {}
                    Ok(Outcome::Refused) => {
                        return Ok(deferred(reason::LOST_RACE, None, "the group changed meanwhile"));
                    }
                    Err(error) => return Ok(Entry::Deferred(because_of(&error))),
                }
            }
        }
        if let (Ok(store), true, false) = (&self.store, retargets, lanes) {
            let _ = store.commit(&protocol::retold(&record.holds, self.me)); // for people: nobody else can hold it
        }
        if let (Phase::Repairing, Action::Act) = machine::step(record.phase.into(), Event::Repair) {
            record.phase = RecordPhase::Repairing;
        }
        record.boot_id = self.boot_id.clone();
        self.save(&record)?;
        // That it is not healthy was seen a moment ago.
        Ok(Entry::Act { leads: false, ground: Ground::Spared })
    }

    /// Where several may hold a group: a commit that has not settled anywhere is taken by one member at a time.
    fn somebody_tries(&self, snapshot: &Snapshot, circles: &[&Circle<'_>]) -> Option<Because> {
        let reports = peers_reports(snapshot);
        circles.iter().find_map(|circle| {
            if proven(&reports, circle).contains(&self.seq) {
                return None;
            }
            let holds = circle.ids().flat_map(|id| protocol::holds_in(snapshot, id));
            let mut others = holds.map(|(hold, _)| hold).filter(|hold| hold.node != *self.me);
            let first = others.find(|hold| hold.commit == self.commit)?;
            let sentence = format!("{} tries {}, which has not settled yet", first.node, self.commit.short());
            Some(Because::new(reason::FIRST_ALONE, Some(&circle.group.id), sentence).held_by(&first))
        })
    }

    /// The record goes on: what the machine says is carried out. What stays undone is told.
    fn advance(&self, event: Event) -> Result<Option<Because>, DiskError> {
        let Some(mut record) = self.record() else { return Ok(None) };
        match machine::step(record.phase.into(), event).1 {
            Action::Settle => {
                record.phase = RecordPhase::Settling;
                record.acted_ms = millis(self.clock.awake());
                record.acted_boot = self.boot_id.clone();
                self.save(&record)?;
                Ok(None)
            }
            Action::Release => self.release(&record),
            Action::Fail(why) => {
                if record.phase != RecordPhase::Failed || record.why != why {
                    record.phase = RecordPhase::Failed;
                    record.why = why;
                    self.save(&record)?;
                    if let Ok(store) = &self.store {
                        // Best effort: a hold that does not end speaks for itself.
                        let _ = store.commit(&protocol::fail(&record.holds, self.me, &record.why));
                    }
                }
                Ok(None)
            }
            Action::Wait(because) => Ok(Some(because)),
            other => Ok(Some(Because::new(reason::INTERNAL, None, format!("{other:?} while {:?}", record.phase)))),
        }
    }

    /// The member was restarted, or runs after an interruption: now it must prove itself.
    pub fn acted(&self) -> Result<(), DiskError> {
        self.advance(Event::Acted).map(drop)
    }

    /// It settles since before this boot, and the clock began anew.
    pub fn started_anew(&self) -> Result<(), DiskError> {
        let Some(record) = self.record() else { return Ok(()) };
        let acted_ms = millis(self.clock.awake());
        self.save(&Record { acted_ms, acted_boot: self.boot_id.clone(), ..record })
    }

    /// Nothing was disturbed, or what was is meant to be down: the holds go back.
    pub fn nothing_to_settle(&self) -> Result<(), DiskError> {
        self.advance(Event::NothingToSettle).map(drop)
    }

    /// A step before the stop failed. The holds go back, unless the member was down before.
    pub fn nothing_stopped(&self, why: &str) -> Result<(), DiskError> {
        self.advance(Event::NothingStopped(why.to_owned())).map(drop)
    }

    /// Something failed after the stop: the hold stays, and everybody is told.
    pub fn broken(&self, why: &str) -> Result<(), DiskError> {
        self.advance(Event::ActFailed(why.to_owned())).map(drop)
    }

    /// The member did not become healthy: the hold stays, and everybody is told.
    pub fn sick(&self, why: &str) -> Result<(), DiskError> {
        self.advance(Event::Sick(why.to_owned())).map(drop)
    }

    /// The member is healthy: the holds go back. `Some`: not yet, and why; the record stays.
    pub fn settled(&self) -> Result<Option<Because>, DiskError> {
        self.advance(Event::Settled)
    }

    /// Gives the holds back and ends the record. Without a store the record stays, and so do the holds.
    fn release(&self, record: &Record) -> Result<Option<Because>, DiskError> {
        let give_back = || -> Result<(), Box<Because>> {
            let store = self.store.clone()?;
            let told = |error: StoreError| because_of(&error);
            match store.commit(&protocol::release(&record.holds, self.me)).map_err(told)? {
                Outcome::Committed(_) => Ok(()),
                // Some are not ours any more (an operator released them); what is left goes back all the same.
                Outcome::Refused => {
                    let ranges: Vec<String> =
                        record.holds.iter().map(|(hold, _)| protocol::hold_range(&hold.group)).collect();
                    let snapshot = store.read(&ranges.iter().map(String::as_str).collect::<Vec<_>>()).map_err(told)?;
                    let mut left = record.holds.clone();
                    left.retain(|(hold, token)| {
                        let entry = snapshot.get(&protocol::hold_key(&hold.group, hold.lane, self.me));
                        entry.is_some_and(|entry| entry.create_revision == *token)
                    });
                    if left.is_empty() {
                        return Ok(());
                    }
                    store.commit(&protocol::release(&left, self.me)).map_err(told)?;
                    Ok(())
                }
            }
        };
        match give_back() {
            Ok(()) => disk::remove(&self.record_path).map(|()| None),
            Err(because) => {
                tracing::warn!(node = %self.me, because.sentence, "the hold could not be given back yet");
                Ok(Some(*because))
            }
        }
    }

    /// How this node's own member of a group is, asked at its own address.
    pub fn own_health(&self, group: &GroupId) -> Option<Evidence> {
        let circle = self.circles.iter().find(|circle| circle.ids().any(|id| id == group))?;
        let question = circle.gate.iter().find(|question| question.own)?;
        Some(self.probe.ask(question))
    }

    /// The groups that this node's member leads now.
    pub fn leads(&self) -> Vec<GroupId> {
        let asked = self.circles.iter().filter_map(|circle| {
            let question = circle.leader.iter().find(|question| question.own)?;
            (self.probe.ask(question).leads == Some(true)).then(|| circle.group.id.clone())
        });
        asked.collect()
    }

    fn save(&self, record: &Record) -> Result<(), DiskError> {
        let bytes = serde_json::to_vec_pretty(record).expect("a record is plain data");
        disk::write_atomic(&self.record_path, &bytes, 0o600)
    }

    /// Says that this node wants the groups, and for how long it has been saying so.
    fn want(&self, store: &dyn LockStore, intent: &Intent<'_>) -> u64 {
        let now = self.clock.now();
        let mut longest = 0;
        for group in &intent.groups {
            let key = protocol::want_key(self.me, group);
            let last = store
                .read(&[&key])
                .ok()
                .and_then(|snapshot| serde_json::from_slice::<Want>(&snapshot.get(&key)?.value).ok());
            match last {
                Some(want) if want.commit == self.commit => {
                    let secs = now.duration_since(want.since).as_secs();
                    longest = longest.max(u64::try_from(secs).unwrap_or(0));
                }
                _ => {
                    let want = Want { commit: self.commit.clone(), since: now };
                    let value = serde_json::to_vec(&want).expect("plain data");
                    let put = Transaction { when: Vec::new(), then: vec![Write::Put(key, value)] };
                    let _ = store.commit(&put); // a hint: order, never safety
                }
            }
        }
        longest
    }

    fn stop_wanting(&self, store: &dyn LockStore, intent: &Intent<'_>) {
        let then = intent.groups.iter().map(|group| Write::Delete(protocol::want_key(self.me, group))).collect();
        let _ = store.commit(&Transaction { when: Vec::new(), then }); // a hint: order, never safety
    }
}

/// That a node wants a hold: decides order, never safety.
#[derive(Serialize, Deserialize)]
struct Want {
    commit: CommitId,
    since: jiff::Timestamp,
}

/// One attempt at taking the holds of a batch.
struct Attempt<'s, 'a> {
    session: &'s Session<'a>,
    store: &'s dyn LockStore,
    intent: &'s Intent<'s>,
    circles: Vec<&'s Circle<'a>>,
    asked_secs: u64,
    id: String,
    holds: Vec<(Hold, i64)>,
    /// Revision of the snapshot that the last judgement was made on.
    read_at: i64,
    leads: bool,
    ground: Ground,
}

impl Attempt<'_, '_> {
    /// Every group whose holds matter: nothing may be written in them between a look and what is decided on it.
    fn ranges(&self) -> Vec<GroupId> {
        let looked_at = self.circles.iter().flat_map(|circle| circle.ids().chain(&circle.conflicts));
        looked_at.cloned().collect::<BTreeSet<GroupId>>().into_iter().collect()
    }

    fn judge(&mut self, phase: &Phase) -> Event {
        let verdicts: Vec<Verdict> = match self.situations() {
            Ok(situations) => situations
                .iter()
                .map(|situation| match phase {
                    Phase::Idle => quorum::may_claim(situation),
                    _ => quorum::may_arm(situation),
                })
                .collect(),
            Err(error) => return Event::Lost(because_of(&error)),
        };
        let down = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Go { ground: Ground::Down, .. }));
        self.ground = if down { Ground::Down } else { Ground::Spared };
        Event::Judged(verdicts)
    }

    /// One snapshot of the store, then one round of questions: what was true after the claim is what counts.
    fn situations(&mut self) -> Result<Vec<Situation<'_>>, StoreError> {
        let session = self.session;
        let ranges = self.ranges();
        let mut prefixes: Vec<String> = ranges.iter().map(protocol::hold_range).collect();
        prefixes.extend([protocol::FREEZES.to_owned(), "dead/".to_owned()]);
        let peers = self.circles.iter().flat_map(|circle| {
            let first = circle.after.iter().flat_map(|(_, members)| members);
            circle.group.members.iter().chain(first)
        });
        let mut peers: Vec<&NodeName> = peers.collect();
        peers.sort();
        peers.dedup();
        prefixes.extend(peers.iter().map(|peer| format!("n/{peer}/")));
        let snapshot = self.store.read(&prefixes.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.read_at = snapshot.revision;

        let questions: Vec<Question> =
            self.circles.iter().flat_map(|circle| circle.gate.iter().chain(&circle.leader)).cloned().collect();
        let answers = probe::ask_all(session.probe, &questions);
        let mut answers = answers.into_iter();
        // Who leads any of the groups goes last in all of them: two groups of one unit must agree on an order.
        let mut gates: Vec<Vec<Evidence>> = Vec::new();
        let mut leaders: BTreeMap<NodeName, bool> = BTreeMap::new();
        for circle in &self.circles {
            gates.push(answers.by_ref().take(circle.gate.len()).collect());
            for question in &circle.leader {
                let leads = answers.next().is_some_and(|evidence| evidence.leads == Some(true));
                *leaders.entry(question.member.clone()).or_default() |= leads;
            }
        }
        self.leads = leaders.get(session.me).copied().unwrap_or(false);

        let reports = peers_reports(&snapshot);
        let freeze = protocol::freeze_in(&snapshot, &ranges, session.me);
        let mut situations = Vec::new();
        for (circle, gate) in self.circles.iter().zip(&gates) {
            let group: &Group = &circle.group;
            let holds = circle.ids().flat_map(|id| protocol::holds_in(&snapshot, id)).map(|(hold, _)| hold);
            let conflicting =
                circle.conflicts.iter().flat_map(|id| protocol::holds_in(&snapshot, id)).map(|(hold, _)| hold);
            let members = group.members.iter().enumerate().map(|(at, name)| Member {
                name: name.clone(),
                health: gate
                    .get(at)
                    .map_or_else(|| Health::Unknown("it was not asked".to_owned()), |evidence| evidence.health.clone()),
                leads: leaders.get(name).copied().unwrap_or(false),
                applied_seq: reports.get(name).and_then(|r| r.applied.as_ref()).map(|at| at.seq),
                wants_since: snapshot
                    .get(&protocol::want_key(name, &group.id))
                    .and_then(|entry| serde_json::from_slice::<Want>(&entry.value).ok())
                    .filter(|want| want.commit == session.commit)
                    .map(|want| want.since),
                silent: snapshot.get(&protocol::beat_key(name)).is_none(),
                dead: snapshot.get(&protocol::dead_key(name)).is_some(),
            });
            let after = circle.after.iter().filter_map(|(cluster, members)| {
                let missing: Vec<NodeName> = members
                    .iter()
                    .filter(|name| {
                        let applied = reports.get(*name).and_then(|report| report.applied.as_ref());
                        // A node that never reported is one that is not there yet: bootstrap does not wait.
                        reports.contains_key(*name) && applied.is_none_or(|at| at.seq < session.seq)
                    })
                    .cloned()
                    .collect();
                (!missing.is_empty()).then(|| (cluster.clone(), missing))
            });
            situations.push(Situation {
                group,
                me: session.me,
                commit: &session.commit,
                seq: session.seq,
                members: members.collect(),
                running: self.intent.running,
                holds: holds.collect(),
                conflicting: conflicting.collect(),
                proven: proven(&reports, circle),
                freeze: freeze.clone(),
                after: after.collect(),
                asked_secs: self.asked_secs,
            });
        }
        Ok(situations)
    }

    fn claim(&mut self, lanes: &[usize]) -> Event {
        let session = self.session;
        let mut holds: BTreeMap<&GroupId, Hold> = BTreeMap::new();
        for (circle, lane) in self.circles.iter().zip(lanes) {
            for id in circle.ids() {
                holds.entry(id).or_insert_with(|| Hold {
                    group: id.clone(),
                    lane: *lane,
                    node: session.me.clone(),
                    attempt: self.id.clone(),
                    commit: session.commit.clone(),
                    seq: session.seq,
                    phase: HoldPhase::Claimed,
                    units: self.intent.units.clone(),
                    boot_id: session.boot_id.clone(),
                    reason: format!("{} takes {}", self.intent.batch, session.commit.short()),
                    since: session.clock.now(),
                });
            }
        }
        let holds: Vec<Hold> = holds.into_values().collect();
        let transaction = protocol::claim(&holds, &self.ranges(), self.read_at, session.me);
        match self.store.commit(&transaction) {
            Ok(Outcome::Committed(revision)) => {
                self.holds = holds.into_iter().map(|hold| (hold, revision)).collect();
                Event::Committed
            }
            Ok(Outcome::Refused) => Event::Refused,
            Err(error) => self.recover(&error, HoldPhase::Claimed),
        }
    }

    /// The answer to a write was lost, or says that it may have happened all the same: what is there now?
    fn recover(&mut self, error: &StoreError, phase: HoldPhase) -> Event {
        if !matches!(error, StoreError::OutcomeUnknown { .. } | StoreError::NoSpace) {
            return Event::Lost(because_of(error));
        }
        let ids: Vec<&GroupId> = self.circles.iter().flat_map(|circle| circle.ids()).collect();
        let ranges: Vec<String> = ids.iter().map(|id| protocol::hold_range(id)).collect();
        let snapshot = match self.store.read(&ranges.iter().map(String::as_str).collect::<Vec<_>>()) {
            Ok(snapshot) => snapshot,
            Err(error) => return Event::Lost(because_of(&error)),
        };
        let held =
            ids.into_iter().collect::<BTreeSet<_>>().into_iter().flat_map(|id| protocol::holds_in(&snapshot, id));
        let mine: Vec<_> = held.filter(|(hold, _)| hold.attempt == self.id && hold.node == *self.session.me).collect();
        let written = !mine.is_empty() && mine.iter().all(|(hold, _)| hold.phase == phase);
        if !mine.is_empty() {
            self.holds = mine;
        }
        if written { Event::Recovered { mine: true } } else { Event::Lost(because_of(error)) }
    }

    fn arm(&mut self) -> Event {
        let transaction = protocol::arm(&self.holds, &self.ranges(), self.read_at, self.session.me);
        match self.store.commit(&transaction) {
            Ok(Outcome::Committed(_)) => {
                for (hold, _) in &mut self.holds {
                    hold.phase = HoldPhase::Armed;
                }
                Event::Committed
            }
            Ok(Outcome::Refused) => Event::Refused,
            Err(error) => self.recover(&error, HoldPhase::Armed),
        }
    }

    fn record(&self) -> Record {
        Record {
            phase: RecordPhase::Acting,
            holds: self.holds.clone(),
            batch: self.intent.batch.to_owned(),
            commit: self.session.commit.clone(),
            seq: self.session.seq,
            boot_id: self.session.boot_id.clone(),
            acted_ms: 0,
            acted_boot: String::new(),
            start_secs_max: self.intent.start_secs_max,
            why: String::new(),
        }
    }
}

fn peers_reports(snapshot: &Snapshot) -> BTreeMap<NodeName, Report> {
    let reports = snapshot.entries.iter().filter_map(|entry| {
        let node = entry.key.strip_prefix("n/")?.strip_suffix("/report")?;
        Some((NodeName::new(node), serde_json::from_slice(&entry.value).ok()?))
    });
    reports.collect()
}

fn give_back(store: &dyn LockStore, holds: &[(Hold, i64)], me: &NodeName) {
    if let Err(error) = store.commit(&protocol::release(holds, me)) {
        // It stays claimed, which harms nobody but the waiting; the next attempt of this node finds and frees it.
        tracing::warn!(node = %me, %error, "a claim could not be given back");
    }
}

/// The commits that members of this group have settled with.
fn proven(reports: &BTreeMap<NodeName, Report>, circle: &Circle<'_>) -> BTreeSet<u64> {
    let members = reports.iter().filter(|(node, _)| circle.group.members.contains(node));
    members.flat_map(|(_, report)| circle.ids().filter_map(|id| report.proven.get(id))).map(|proof| proof.seq).collect()
}

/// `None`: no hold of ours is armed. One that cannot be read is a failed one that covers nothing: nothing that needs a
/// hold happens on this node until somebody has looked.
pub fn read_record(path: &Path) -> Option<Record> {
    let unreadable = |why: String| Record {
        phase: RecordPhase::Failed,
        holds: Vec::new(),
        batch: format!("something that {} does not tell any more ({why})", path.display()),
        commit: CommitId::new("unknown"),
        seq: 0,
        boot_id: String::new(),
        acted_ms: 0,
        acted_boot: String::new(),
        start_secs_max: 0,
        why: "its record cannot be read".to_owned(),
    };
    match disk::read_bounded(path, 1 << 20) {
        Ok(None) => None,
        Ok(Some(bytes)) => Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| unreadable(error.to_string()))),
        Err(error) => Some(unreadable(error.to_string())),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
