//! One node's dealings with the holds: drives `machine` with the store, the probes and the record on disk.
//!
//! Everything here carries out what `quorum` and `machine` said. A record on disk means: this node armed a hold, its
//! member may be down because of us, and it comes first until it is healthy again. Never: two records at once; never:
//! waits (a wait ends the attempt).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::disk::{self, DiskError};
use crate::fleet::Group;
use crate::lock::machine::{self, Action, Event, Phase};
use crate::lock::protocol;
use crate::lock::quorum::{self, Because, Hold, HoldPhase, Member, Situation, Verdict};
use crate::lock::store::{LockStore, Outcome, Snapshot, StoreError, Transaction, Write};
use crate::name::{ClusterName, CommitId, GroupId, NodeName};
use crate::probe::{self, Evidence, Health, Probe, Question};
use crate::reason;
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
    pub boot_id: String,
    /// Awake time at which the member was started, in milliseconds.
    pub acted_ms: u64,
    /// Why it failed.
    pub why: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordPhase {
    Acting,
    Settling,
    Failed,
}

/// A group as this node meets it: its questions made concrete, for every member.
pub struct Circle<'a> {
    pub group: &'a Group,
    /// In the order of `group.members`.
    pub gate: Vec<Question>,
    /// Empty where nobody leads.
    pub leader: Vec<Question>,
    /// Clusters that go first, with their members.
    pub after: Vec<(ClusterName, Vec<NodeName>)>,
}

pub struct Session<'a> {
    pub me: &'a NodeName,
    pub store: Option<&'a dyn LockStore>,
    /// Why there is no store, where there is none.
    pub no_store: String,
    pub probe: &'a (dyn Probe + Sync),
    pub clock: &'a dyn Clock,
    pub boot_id: String,
    /// This node's ledger knows units: its state was not lost.
    pub state_is_old: bool,
    pub record_path: PathBuf,
    pub circles: Vec<Circle<'a>>,
    pub commit: CommitId,
    pub seq: u64,
}

/// What a batch asks for.
pub struct Intent<'a> {
    pub batch: &'a str,
    pub groups: Vec<GroupId>,
    pub units: Vec<String>,
    /// Whether the unit runs now.
    pub running: bool,
}

pub enum Entry {
    /// Armed and recorded (or covered by a record that was there): act now. `leads`: this member leads, hand over first.
    Act { leads: bool },
    /// Not now.
    Deferred(Because),
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
        let Some(store) = self.store else {
            return Ok(Entry::Deferred(Because::new(reason::STORE_UNREACHABLE, None, self.no_store.clone())));
        };
        if let Some(because) = self.free_leftovers(store, intent) {
            return Ok(Entry::Deferred(because));
        }
        let circles: Vec<&Circle<'_>> =
            self.circles.iter().filter(|circle| intent.groups.contains(&circle.group.id)).collect();
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
                    return Ok(Entry::Act { leads: attempt.leads });
                }
                Action::Wait(because) => {
                    if phase == Phase::Releasing && !attempt.holds.is_empty() {
                        give_back(store, &attempt.holds, self.me);
                    }
                    return Ok(Entry::Deferred(because));
                }
                Action::Settle | Action::Release | Action::Fail(_) | Action::Finish => {
                    return Ok(Entry::Deferred(Because::new(
                        reason::INTERNAL,
                        None,
                        format!("{action:?} before anything was done"),
                    )));
                }
            };
        }
    }

    /// A hold of ours without a record: an attempt that ended before anything was stopped (the record comes before that).
    /// It goes back. A failed one without a record means that this machine lost its disk: that is for an operator.
    fn free_leftovers(&self, store: &dyn LockStore, intent: &Intent<'_>) -> Option<Because> {
        let ranges: Vec<String> = intent.groups.iter().map(protocol::hold_range).collect();
        let snapshot = match store.read(&ranges.iter().map(String::as_str).collect::<Vec<_>>()) {
            Ok(snapshot) => snapshot,
            Err(error) => return Some(Because::new(reason::STORE_UNREACHABLE, None, error.to_string())),
        };
        let held = intent.groups.iter().flat_map(|group| protocol::holds_in(&snapshot, group));
        let (mine, failed): (Vec<_>, Vec<_>) = held
            .filter(|(hold, _)| hold.node == *self.me)
            .partition(|(hold, _)| hold.phase != HoldPhase::Failed && self.state_is_old);
        if let Some((hold, _)) = failed.first() {
            let sentence = format!("this node has {} since {} and no record of it", hold.group, hold.since);
            return Some(Because::new(reason::DECLARED_DEAD, Some(&hold.group), sentence).held_by(hold));
        }
        if !mine.is_empty() {
            give_back(store, &mine, self.me);
        }
        None
    }

    /// A record is there: this batch may be covered by it.
    fn reenter(&self, mut record: Record, intent: &Intent<'_>) -> Result<Entry, DiskError> {
        let held: Vec<&GroupId> = record.holds.iter().map(|(hold, _)| &hold.group).collect();
        let covers = intent.groups.iter().all(|group| held.contains(&group));
        let own = intent.groups.iter().any(|group| held.contains(&group));
        let group = record.holds.first().map(|(hold, _)| hold.group.clone());
        let wait = |reason, sentence: String| Ok(Entry::Deferred(Because::new(reason, group.as_ref(), sentence)));
        match record.phase {
            _ if !own => wait(reason::SETTLING, format!("{} has a hold for {} first", self.me, record.batch)),
            RecordPhase::Settling => wait(reason::SETTLING, format!("{} is settling", record.batch)),
            // Interrupted in the middle: finish what was begun, also with what is wanted now.
            RecordPhase::Acting if covers => Ok(Entry::Act { leads: false }),
            RecordPhase::Failed if covers && record.commit == self.commit => {
                wait(reason::GATE_FAILED, record.why.clone())
            }
            RecordPhase::Failed if covers => {
                let earlier_boot = record.boot_id != self.boot_id;
                let store = match (earlier_boot, self.store) {
                    // A record of an earlier boot: we may have been declared dead since.
                    (true, None) => return wait(reason::STORE_UNREACHABLE, self.no_store.clone()),
                    (true, Some(store)) if !still_mine(store, &record, self.me) => {
                        return wait(reason::DECLARED_DEAD, "the hold of the last boot is gone".to_owned());
                    }
                    (_, store) => store,
                };
                record.commit = self.commit.clone();
                record.seq = self.seq;
                record.phase = RecordPhase::Acting;
                record.boot_id = self.boot_id.clone();
                for (hold, _) in &mut record.holds {
                    hold.commit = self.commit.clone();
                    hold.seq = self.seq;
                    hold.reason = "repair".to_owned();
                }
                if let Some(store) = store {
                    let _ = store.commit(&protocol::retarget(&record.holds, self.me)); // a hint for people: k = 1
                }
                self.save(&record)?;
                Ok(Entry::Act { leads: false })
            }
            _ => wait(
                reason::HOLD_FAILED,
                format!("the hold covers {} only, the change needs {:?}", record.batch, intent.groups),
            ),
        }
    }

    /// The member was restarted: now it must prove itself.
    pub fn acted(&self) -> Result<(), DiskError> {
        let Some(mut record) = self.record() else { return Ok(()) };
        record.phase = RecordPhase::Settling;
        record.acted_ms = millis(self.clock.awake());
        self.save(&record)
    }

    /// Nothing was stopped: the holds go back.
    pub fn nothing_stopped(&self) -> Result<(), DiskError> {
        self.release()
    }

    /// The member did not come back: the hold stays, and everybody is told.
    pub fn failed(&self, why: &str) -> Result<(), DiskError> {
        let Some(mut record) = self.record() else { return Ok(()) };
        if record.phase == RecordPhase::Failed && record.why == why {
            return Ok(());
        }
        record.phase = RecordPhase::Failed;
        record.why = why.to_owned();
        self.save(&record)?;
        if let Some(store) = self.store {
            let _ = store.commit(&protocol::fail(&record.holds, self.me, why)); // best effort, the hold itself speaks
        }
        Ok(())
    }

    /// Gives the holds back and ends the record. Without a store the record stays, and so do the holds.
    pub fn release(&self) -> Result<(), DiskError> {
        let Some(record) = self.record() else { return Ok(()) };
        let Some(store) = self.store else { return Ok(()) };
        match store.commit(&protocol::release(&record.holds, self.me)) {
            // Refused: they are not ours any more (an operator released them); nothing is left to give back.
            Ok(Outcome::Committed(_) | Outcome::Refused) => disk::remove(&self.record_path),
            Err(error) => {
                tracing::warn!(node = %self.me, %error, "the hold could not be given back yet");
                Ok(())
            }
        }
    }

    /// How this node's own member of a group is, asked at its own address.
    pub fn own_health(&self, group: &GroupId) -> Option<Evidence> {
        let circle = self.circles.iter().find(|circle| circle.group.id == *group)?;
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
        #[derive(Serialize, Deserialize)]
        struct Want {
            commit: CommitId,
            since: jiff::Timestamp,
        }
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
}

impl Attempt<'_, '_> {
    fn ranges(&self) -> Vec<GroupId> {
        let looked_at = self.circles.iter().flat_map(|circle| {
            let group = circle.group;
            std::iter::once(&group.id).chain(&group.aliases).chain(&group.conflicts)
        });
        let mut ranges: Vec<GroupId> = looked_at.chain(&self.intent.groups).cloned().collect();
        ranges.sort();
        ranges.dedup();
        ranges
    }

    fn judge(&mut self, phase: &Phase) -> Event {
        match self.situations() {
            Ok(situations) => Event::Judged(
                situations
                    .iter()
                    .map(|situation| match phase {
                        Phase::Idle => quorum::may_claim(situation),
                        _ => quorum::may_arm(situation),
                    })
                    .collect::<Vec<Verdict>>(),
            ),
            Err(error) => Event::Lost(error.to_string()),
        }
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
        let group_ids: Vec<GroupId> = self.circles.iter().map(|circle| circle.group.id.clone()).collect();
        let freeze = protocol::freeze_in(&snapshot, &group_ids, session.me);
        let mut situations = Vec::new();
        for (circle, gate) in self.circles.iter().zip(&gates) {
            let group = circle.group;
            let holds = std::iter::once(&group.id)
                .chain(&group.aliases)
                .flat_map(|id| protocol::holds_in(&snapshot, id))
                .map(|(hold, _)| hold);
            let conflicting =
                group.conflicts.iter().flat_map(|id| protocol::holds_in(&snapshot, id)).map(|(hold, _)| hold);
            let members = group.members.iter().enumerate().map(|(at, name)| Member {
                name: name.clone(),
                health: gate
                    .get(at)
                    .map_or_else(|| Health::Unknown("it was not asked".to_owned()), |evidence| evidence.health.clone()),
                leads: leaders.get(name).copied().unwrap_or(false),
                applied_seq: reports.get(name).and_then(|r| r.applied.as_ref()).map(|at| at.seq),
                wants_since: snapshot
                    .get(&protocol::want_key(name, &group.id))
                    .and_then(|entry| serde_json::from_slice::<serde_json::Value>(&entry.value).ok())
                    .and_then(|want| want.get("since")?.as_str()?.parse().ok()),
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
            let proven = reports
                .values()
                .any(|report| report.proven.get(&group.id).is_some_and(|proof| proof.seq >= session.seq));
            situations.push(Situation {
                group,
                me: session.me,
                commit: &session.commit,
                seq: session.seq,
                members: members.collect(),
                running: self.intent.running,
                holds: holds.collect(),
                conflicting: conflicting.collect(),
                proven,
                freeze: freeze.clone(),
                after: after.collect(),
                asked_secs: self.asked_secs,
            });
        }
        Ok(situations)
    }

    fn claim(&mut self, lanes: &[usize]) -> Event {
        let session = self.session;
        let holds: Vec<Hold> = self
            .circles
            .iter()
            .zip(lanes)
            .map(|(circle, lane)| Hold {
                group: circle.group.id.clone(),
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
            })
            .collect();
        let transaction = protocol::claim(&holds, &self.ranges(), self.read_at, session.me);
        match self.store.commit(&transaction) {
            Ok(Outcome::Committed(revision)) => {
                self.holds = holds.into_iter().map(|hold| (hold, revision)).collect();
                Event::Committed
            }
            Ok(Outcome::Refused) => Event::Refused,
            Err(StoreError::OutcomeUnknown { .. } | StoreError::NoSpace) => self.recover(),
            Err(error) => Event::Lost(error.to_string()),
        }
    }

    /// The answer to a write was lost: what is there now?
    fn recover(&mut self) -> Event {
        let mut found = Vec::new();
        for circle in &self.circles {
            let Ok(snapshot) = self.store.read(&[&protocol::hold_range(&circle.group.id)]) else {
                return Event::Lost("the answer to a claim was lost, and so was the look at it".to_owned());
            };
            let held = protocol::holds_in(&snapshot, &circle.group.id);
            found.extend(held.into_iter().filter(|(hold, _)| hold.attempt == self.id));
        }
        let mine = found.len() == self.circles.len();
        self.holds = found;
        Event::Recovered { mine }
    }

    fn arm(&mut self) -> Event {
        let transaction = protocol::arm(&self.holds, &self.ranges(), self.read_at, self.session.me);
        for (hold, _) in &mut self.holds {
            hold.phase = HoldPhase::Armed;
        }
        match self.store.commit(&transaction) {
            Ok(Outcome::Committed(_)) => Event::Committed,
            Ok(Outcome::Refused) => Event::Refused,
            Err(StoreError::OutcomeUnknown { .. } | StoreError::NoSpace) => {
                let before = self.holds.len();
                match self.recover() {
                    Event::Recovered { .. } => {
                        let armed = self.holds.iter().all(|(hold, _)| hold.phase == HoldPhase::Armed);
                        Event::Recovered { mine: armed && self.holds.len() == before }
                    }
                    other => other,
                }
            }
            Err(error) => Event::Lost(error.to_string()),
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

fn still_mine(store: &dyn LockStore, record: &Record, me: &NodeName) -> bool {
    record.holds.iter().all(|(hold, token)| {
        let key = protocol::hold_key(&hold.group, hold.lane, me);
        store.read(&[&key]).is_ok_and(|s| s.get(&key).is_some_and(|entry| entry.create_revision == *token))
    })
}

/// `None`: no hold of ours is armed.
pub fn read_record(path: &Path) -> Option<Record> {
    serde_json::from_slice(&disk::read_bounded(path, 1 << 20).ok()??).ok()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
