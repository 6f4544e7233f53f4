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
use crate::fleet::window::Window;
use crate::fleet::{Group, MemberChange};
use crate::lock::epoch::{self, Pin};
use crate::lock::machine::{self, Action, Event, Phase};
use crate::lock::protocol::{self, Declared};
use crate::lock::quorum::{self, Because, Ground, Hold, HoldPhase, Member, Situation, Verdict};
use crate::lock::recovery::{self, Asks, Me, Next, Reentry, Said};
use crate::lock::store::{LockStore, Outcome, Snapshot, StoreError, Transaction, Write};
use crate::lock::view::{Standing, View};
use crate::lock::window;
use crate::name::{ClusterName, CommitId, GroupId, NodeName};
use crate::probe::{self, Evidence, Health, Probe, Question};
use crate::reason::{self, Reason};
use crate::report::Report;

pub use crate::lock::recovery::{Record, RecordPhase};

/// A group as this node meets it: its questions made concrete, for every member.
pub struct Circle<'a> {
    pub group: Cow<'a, Group>,
    /// Digest of its declaration in the target commit; `None`: it declares no such group.
    pub view: Option<String>,
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
        self.group.ids()
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
    /// Something once settled here, by this node's ledger: its state was not lost, or what runs is healthy again.
    pub state_is_old: bool,
    pub record_path: PathBuf,
    /// Where the store's identity and its highest revision seen are kept.
    pub pin_path: PathBuf,
    /// One for every group of the target commit that this node is a member of, and one for every group that protects a
    /// unit as it runs now.
    pub circles: Vec<Circle<'a>>,
    /// The clusters that this node is in, with their members in order of declaration.
    pub clusters: Vec<(ClusterName, Vec<NodeName>)>,
    /// Maintenance windows of the clusters that have any.
    pub windows: Vec<(ClusterName, &'a [Window])>,
    pub commit: CommitId,
    pub seq: u64,
}

/// The groups that a node had when it last looked for what it left behind anywhere; `None`: not since the agent started.
#[derive(Default)]
pub struct Swept(Option<BTreeSet<GroupId>>);

/// What a batch asks for.
pub struct Intent<'a> {
    pub batch: &'a str,
    pub groups: Vec<GroupId>,
    pub units: Vec<String>,
    /// Whether a unit of it runs now.
    pub running: bool,
    /// Whether all of the node is away: the windows of all of its clusters count.
    pub takes_node: bool,
    pub start_secs_max: u64,
    /// What it changes of the membership of the groups.
    pub change: MemberChange,
}

pub enum Entry {
    /// Armed and recorded (or covered by a record that was there): act now.
    Act {
        /// This member leads: hand over first.
        leads: bool,
        /// The groups in which this member may go because it is down already: to be looked at again.
        down: Vec<GroupId>,
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
        StoreError::TooLarge { .. } => reason::TOO_MANY_GROUPS,
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
        let asked_secs = match self.closed(intent) {
            None => self.want(store, &intent.groups),
            // Whoever may not go does not queue, and the bounds of its patience begin when the window opens.
            Some(_) => self.wants_nothing(store, &intent.groups),
        };
        let mut attempt = Attempt {
            session: self,
            store,
            intent,
            circles,
            asked_secs,
            id: ulid::Ulid::generate().to_string(),
            holds: Vec::new(),
            read_at: 0,
            meta_at: epoch::meta_revision(&snapshot),
            declared: Vec::new(),
            leads: false,
            down: Vec::new(),
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
                    self.stop_wanting(store, &intent.groups);
                    return Ok(Entry::Act { leads: attempt.leads, down: attempt.down });
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

    /// Holds that are armed are judged and armed once more: on the health of now, and still against every write.
    pub(super) fn armed_again(&self, record: &Record, intent: &Intent<'_>) -> Result<(), Box<Because>> {
        let circles: Vec<&Circle<'_>> = self.circles.iter().filter(|circle| circle.is_of(&intent.groups)).collect();
        let ids = circles.iter().flat_map(|circle| circle.ids());
        let (store, snapshot) = self.look_at(ids.map(protocol::hold_range))?;
        let mut attempt = Attempt {
            session: self,
            store,
            intent,
            circles,
            asked_secs: 0,
            id: record.holds.first().map(|(hold, _)| hold.attempt.clone()).unwrap_or_default(),
            holds: record.holds.clone(),
            read_at: 0,
            meta_at: epoch::meta_revision(&snapshot),
            declared: Vec::new(),
            leads: false,
            down: Vec::new(),
        };
        let judged = attempt.judge(&Phase::Claimed);
        let (mut phase, mut action) = machine::step(Phase::Claimed, judged);
        if action == Action::Arm {
            let armed = attempt.arm();
            (phase, action) = machine::step(phase, armed);
        }
        tracing::debug!(node = %self.me, batch = intent.batch, ?phase, ?action, "hold, once more");
        match action {
            Action::Record => Ok(()),
            Action::Wait(because) => Err(Box::new(because)),
            other => Err(Box::new(Because::new(reason::INTERNAL, None, format!("{other:?} while armed")))),
        }
    }

    /// These prefixes and whether this node was declared dead, in a store that is the one this node knows.
    pub(super) fn look_at(
        &self,
        prefixes: impl Iterator<Item = String>,
    ) -> Result<(&'a dyn LockStore, Snapshot), Box<Because>> {
        let store = self.store.clone()?;
        let identity = store.identity().map_err(|error| because_of(&error))?;
        let also = [protocol::dead_key(self.me), epoch::META.to_owned()];
        let prefixes: Vec<String> = prefixes.chain(also).collect();
        let snapshot = store.read(&prefixes.iter().map(String::as_str).collect::<Vec<_>>());
        let snapshot = snapshot.map_err(|error| because_of(&error))?;
        let unusable = |error: DiskError| Because::new(reason::APPLY_FAILED, None, reason::chain(&error));
        let known = read_pin(&self.pin_path).map_err(unusable)?;
        let known = known.map_err(|sentence| Because::new(reason::STORE_REPLACED, None, sentence))?;
        let (pin, judged) = epoch::judge(known.as_ref(), &identity, &snapshot);
        if let Some(pin) = pin.filter(|pin| known.as_ref() != Some(pin)) {
            save_pin(&self.pin_path, &pin).map_err(unusable)?;
        }
        judged.map_err(|sentence| Because::new(reason::STORE_REPLACED, None, sentence))?;
        Ok((store, snapshot))
    }

    /// Gives back what an attempt of this node left behind, whether or not the node still wants anything. An agent that has
    /// just started, and one whose groups changed, may have left it in a group that is none of its own: then all are
    /// looked at.
    pub fn sweep(&self, swept: &mut Swept) {
        if self.circles.is_empty() || self.record().is_some() {
            return;
        }
        let names: BTreeSet<GroupId> = self.circles.iter().flat_map(|circle| circle.ids()).cloned().collect();
        let everywhere = swept.0.as_ref() != Some(&names);
        let all = everywhere.then(|| protocol::HOLDS.to_owned());
        let ranges = names.iter().filter(|_| !everywhere).map(protocol::hold_range).chain(all);
        let (store, snapshot) = match self.look_at(ranges) {
            Ok(seen) => seen,
            Err(because) => return tracing::debug!(node = %self.me, because.sentence, "not swept"),
        };
        self.free_leftovers(store, &snapshot);
        if everywhere && self.free_strays(store, &snapshot, &names) {
            swept.0 = Some(names);
        }
    }

    /// Claims of ours on other groups: nothing was stopped under them. Whether there is nothing left to do about them.
    fn free_strays(&self, store: &dyn LockStore, snapshot: &Snapshot, names: &BTreeSet<GroupId>) -> bool {
        let strays = protocol::holds_of(snapshot, self.me).filter(|(hold, _)| !names.contains(&hold.group));
        let strays: Vec<(Hold, i64)> = strays.filter(|(hold, _)| hold.phase == HoldPhase::Claimed).collect();
        if strays.is_empty() {
            return true;
        }
        match store.commit(&protocol::release(&strays, self.me)) {
            Ok(outcome) => outcome != Outcome::Refused,
            // A node that left a group may have no right to its keys any more; `holds list` shows what is left.
            Err(error) => {
                tracing::warn!(node = %self.me, %error, "a claim on a former group could not be given back");
                matches!(error, StoreError::Denied { .. })
            }
        }
    }

    /// What an attempt left behind goes back, as far as it may.
    fn free_leftovers(&self, store: &dyn LockStore, snapshot: &Snapshot) -> Option<Because> {
        let ids = self.circles.iter().flat_map(|circle| circle.ids());
        let ours: BTreeMap<String, (Hold, i64)> = ids
            .flat_map(|group| protocol::holds_in(snapshot, group))
            .filter(|(hold, _)| hold.node == *self.me)
            .map(|(hold, token)| (protocol::hold_key(&hold.group, hold.lane, self.me), (hold, token)))
            .collect();
        match recovery::leftovers(ours.into_values(), self.state_is_old) {
            Err(lost) => return Some(*lost),
            Ok(free) if free.is_empty() => {}
            Ok(free) => give_back(store, &free, self.me),
        }
        None
    }

    fn myself(&self) -> Me<'_> {
        Me { node: self.me, boot_id: &self.boot_id, commit: &self.commit, seq: self.seq }
    }

    /// A record is there: this batch may be covered by it.
    fn reenter(&self, record: Record, intent: &Intent<'_>) -> Result<Entry, DiskError> {
        let healthy = || {
            let asked = record.holds.iter().filter_map(|(hold, _)| self.own_health(&hold.group));
            intent.running && asked.collect::<Vec<_>>().iter().all(|evidence| evidence.health == Health::Healthy)
        };
        let known: Vec<&Group> = self.circles.iter().map(|circle| &*circle.group).collect();
        match recovery::reenter(&record, self.myself(), &intent.groups, &known, healthy) {
            Reentry::Wait(because) => Ok(Entry::Deferred(because)),
            Reentry::Settle(because) => {
                self.interrupted()?;
                Ok(Entry::Deferred(because))
            }
            Reentry::Repair => self.repair(&record, intent),
        }
    }

    /// The own member counts as down already: it may be repaired under the hold that is there, without asking the others.
    /// The store is asked only where it must be.
    fn repair(&self, record: &Record, intent: &Intent<'_>) -> Result<Entry, DiskError> {
        let held: Vec<GroupId> = record.holds.iter().map(|(hold, _)| hold.group.clone()).collect();
        let circles: Vec<&Circle<'_>> = self.circles.iter().filter(|circle| circle.is_of(&held)).collect();
        let covered: Vec<&Group> = circles.iter().map(|circle| &*circle.group).collect();
        let asks = match recovery::asks(record, self.myself(), &covered) {
            // It is armed anew, so the hold must still be there.
            Asks::Nobody if !intent.change.is_none() => Asks::Store,
            asks => asks,
        };
        let another = record.commit != self.commit;
        let mut record = recovery::repairing(record.clone(), self.myself());
        record.holds.iter_mut().for_each(|(hold, _)| hold.change.clone_from(&intent.change));
        record.lanes = record.lanes.max(recovery::lanes(covered.iter().copied()));
        match asks {
            Asks::Nobody => {}
            Asks::Store | Asks::Retargets => {
                let ranges = recovery::ranges(&record, covered).into_iter().map(protocol::hold_range);
                let peers = protocol::said_by(circles.iter().flat_map(|circle| &circle.group.members));
                let (store, snapshot) = match self.look_at(ranges.chain(peers)) {
                    Ok(seen) => seen,
                    Err(because) => return Ok(Entry::Deferred(*because)),
                };
                let reports = peers_reports(&snapshot);
                let covered: Vec<_> = circles.iter().map(|circle| (&*circle.group, proven(&reports, circle))).collect();
                match recovery::said(&record, self.myself(), asks, &covered, &snapshot) {
                    Said::Wait(because) => return Ok(Entry::Deferred(because)),
                    Said::NotOurs => {
                        disk::remove(&self.record_path)?;
                        return self.enter(intent);
                    }
                    Said::Go(None) => {}
                    Said::Go(Some(retarget)) => match store.commit(&retarget) {
                        Ok(Outcome::Committed(_)) => {}
                        Ok(Outcome::Refused) => {
                            return Ok(deferred(reason::LOST_RACE, None, "the group changed meanwhile"));
                        }
                        Err(error) => return Ok(Entry::Deferred(because_of(&error))),
                    },
                }
                record.holds = recovery::still_ours(&record.holds, self.me, &snapshot);
            }
        }
        // The others were counted for something else, or for an attempt that failed.
        if !intent.change.is_none()
            && let Err(because) = self.armed_again(&record, intent)
        {
            return Ok(Entry::Deferred(*because));
        }
        if let (Ok(store), true) = (&self.store, another && asks != Asks::Retargets) {
            let _ = store.commit(&protocol::retold(&record.holds, self.me)); // for people: nobody else can hold it
        }
        self.save(&record)?;
        // That it is not healthy was seen a moment ago.
        Ok(Entry::Act { leads: false, down: Vec::new() })
    }

    /// The record goes on: what was decided is carried out. What stays undone is told.
    fn advance(&self, event: Event) -> Result<Option<Because>, DiskError> {
        let Some(record) = self.record() else { return Ok(None) };
        let next = recovery::advance(&record, event, &self.boot_id, millis(self.clock.awake()));
        self.carry_out(&record, next)
    }

    fn carry_out(&self, record: &Record, next: Next) -> Result<Option<Because>, DiskError> {
        match next {
            Next::Settles(record) => self.save(&record).map(|()| None),
            Next::Release => self.release(record),
            Next::Fails(record) => {
                self.save(&record)?;
                self.tell_failure(record).map(|()| None)
            }
            Next::Stays(because) => Ok(because),
        }
    }

    /// Best effort: a hold that does not end speaks for itself.
    fn tell_failure(&self, mut record: Record) -> Result<(), DiskError> {
        let Ok(store) = &self.store else { return Ok(()) };
        let told = store.commit(&protocol::fail(&record.holds, self.me, &record.why));
        if matches!(told, Ok(Outcome::Refused))
            && let Ok(holds) = self.read_again(*store, &record)
            && holds.len() == record.holds.len()
        {
            // An operator wrote them back.
            record.holds = holds;
            self.save(&record)?;
            let _ = store.commit(&protocol::fail(&record.holds, self.me, &record.why));
        }
        Ok(())
    }

    /// A store that has this hold again is an older one.
    fn saw(&self, revision: i64) {
        let Ok(Ok(Some(pin))) = read_pin(&self.pin_path) else { return };
        if revision > pin.revision
            && let Err(error) = save_pin(&self.pin_path, &Pin { revision, ..pin })
        {
            tracing::warn!(node = %self.me, "{}", reason::chain(&error));
        }
    }

    /// Those of a record's holds that are still ours.
    fn read_again(&self, store: &dyn LockStore, record: &Record) -> Result<Vec<(Hold, i64)>, StoreError> {
        let ranges: Vec<String> = record.holds.iter().map(|(hold, _)| protocol::hold_range(&hold.group)).collect();
        let snapshot = store.read(&ranges.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(recovery::still_ours(&record.holds, self.me, &snapshot))
    }

    /// The member was restarted with the record's commit: now it must prove itself.
    pub fn acted(&self) -> Result<(), DiskError> {
        self.advance(Event::Acted).map(drop)
    }

    /// The member runs after an interruption, perhaps with what it had before.
    pub fn interrupted(&self) -> Result<(), DiskError> {
        let Some(record) = self.record() else { return Ok(()) };
        let next = recovery::interrupted(&record, &self.boot_id, millis(self.clock.awake()));
        self.carry_out(&record, next).map(drop)
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
                Outcome::Committed(revision) => {
                    self.saw(revision);
                    Ok(())
                }
                // Some are not ours any more (an operator released them), or were written back to a restored store; what is
                // left goes back all the same.
                Outcome::Refused => {
                    let left = self.read_again(store, record).map_err(told)?;
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

    pub(super) fn save(&self, record: &Record) -> Result<(), DiskError> {
        let bytes = serde_json::to_vec_pretty(record).expect("a record is plain data");
        disk::write_atomic(&self.record_path, &bytes, 0o600)
    }

    /// Says that this node wants the groups, and for how long it has been saying so.
    pub(super) fn want(&self, store: &dyn LockStore, groups: &[GroupId]) -> u64 {
        let awake_ms = millis(self.clock.awake());
        let mut longest = 0;
        for group in groups {
            let key = protocol::want_key(self.me, group);
            let last = store
                .read(&[&key])
                .ok()
                .and_then(|snapshot| serde_json::from_slice::<Want>(&snapshot.get(&key)?.value).ok());
            match last {
                Some(want) if want.commit == self.commit && want.boot_id == self.boot_id => {
                    longest = longest.max(awake_ms.saturating_sub(want.awake_ms) / 1000);
                }
                _ => {
                    let since = self.clock.now();
                    let want = Want { commit: self.commit.clone(), since, boot_id: self.boot_id.clone(), awake_ms };
                    let value = serde_json::to_vec(&want).expect("plain data");
                    let put = Transaction { when: Vec::new(), then: vec![Write::Put(key, value)] };
                    let _ = store.commit(&put); // a hint: order, never safety
                }
            }
        }
        longest
    }

    /// Nobody waits for a node that asks for nothing.
    pub fn withdraw(&self) {
        let groups: Vec<GroupId> = self.circles.iter().flat_map(|circle| circle.ids()).cloned().collect();
        if let Ok(store) = &self.store {
            self.stop_wanting(*store, &groups);
        }
    }

    pub(super) fn stop_wanting(&self, store: &dyn LockStore, groups: &[GroupId]) {
        let then = groups.iter().map(|group| Write::Delete(protocol::want_key(self.me, group))).collect();
        let _ = store.commit(&Transaction { when: Vec::new(), then }); // a hint: order, never safety
    }
}

/// That a node wants a hold: decides order, never safety.
#[derive(Serialize, Deserialize)]
struct Want {
    commit: CommitId,
    /// For people.
    since: jiff::Timestamp,
    /// The same in awake time of this boot, which no clock step moves; after a boot the node asks anew.
    #[serde(default)]
    boot_id: String,
    #[serde(default)]
    awake_ms: u64,
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
    /// Revision of `meta` when the store was found to be the known one.
    meta_at: i64,
    /// Whose declarations it counted with.
    declared: Vec<Declared>,
    leads: bool,
    down: Vec<GroupId>,
}

impl Attempt<'_, '_> {
    /// Every group whose holds matter: nothing may be written in them between a look and what is decided on it.
    fn ranges(&self) -> Vec<GroupId> {
        let looked_at = self.circles.iter().flat_map(|circle| circle.ids().chain(&circle.conflicts));
        looked_at.cloned().collect::<BTreeSet<GroupId>>().into_iter().collect()
    }

    fn judge(&mut self, phase: &Phase) -> Event {
        let closed = self.session.closed(self.intent);
        let verdicts: Vec<Verdict> = match self.situations() {
            Ok(situations) => situations
                .iter()
                .map(|situation| {
                    let verdict = match phase {
                        Phase::Idle => quorum::may_claim(situation),
                        _ => quorum::may_arm(situation),
                    };
                    window::outside(closed.as_ref(), verdict, situation)
                })
                .collect(),
            Err(error) => return Event::Lost(because_of(&error)),
        };
        let down = self.circles.iter().zip(&verdicts);
        let down = down.filter(|(_, verdict)| matches!(verdict, Verdict::Go { ground: Ground::Down, .. }));
        self.down = down.map(|(circle, _)| circle.group.id.clone()).collect();
        Event::Judged(verdicts)
    }

    /// One snapshot of the store, then one round of questions: what was true after the claim is what counts.
    fn situations(&mut self) -> Result<Vec<Situation<'_>>, StoreError> {
        let session = self.session;
        let ranges = self.ranges();
        let mut prefixes: Vec<String> = ranges.iter().map(protocol::hold_range).collect();
        prefixes.extend(self.circles.iter().flat_map(|circle| circle.ids().map(protocol::spec_key)));
        prefixes.extend([protocol::FREEZES.to_owned(), "dead/".to_owned()]);
        let peers = self.circles.iter().flat_map(|circle| {
            let first = circle.after.iter().flat_map(|(_, members)| members);
            circle.group.members.iter().chain(first)
        });
        let mut peers: Vec<&NodeName> = peers.collect();
        peers.sort();
        peers.dedup();
        prefixes.extend(protocol::said_by(peers));
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

        let counted =
            self.circles.iter().map(|circle| protocol::declared(&circle.group, self.view(circle).as_ref(), &snapshot));
        let (views, declared): (Vec<Standing>, Vec<Vec<Declared>>) = counted.unzip();
        self.declared = declared.into_iter().flatten().collect();

        let reports = peers_reports(&snapshot);
        let freeze = protocol::freeze_in(&snapshot, &ranges, session.me);
        let mut situations = Vec::new();
        for ((circle, gate), view) in self.circles.iter().zip(&gates).zip(views) {
            let group: &Group = &circle.group;
            let holds = circle.ids().flat_map(|id| protocol::holds_in(&snapshot, id)).map(|(hold, _)| hold);
            let conflicting =
                circle.conflicts.iter().flat_map(|id| protocol::holds_in(&snapshot, id)).map(|(hold, _)| hold);
            // Nobody needs another one there: its lanes are counted, and nobody is asked.
            let unasked =
                if group.is_lanes() { Health::Healthy } else { Health::Unknown("it was not asked".to_owned()) };
            let members = group.members.iter().enumerate().map(|(at, name)| Member {
                name: name.clone(),
                state: group.state_of(name),
                health: gate.get(at).map_or_else(|| unasked.clone(), |evidence| evidence.health.clone()),
                lists: gate.get(at).and_then(|evidence| evidence.lists.clone()),
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
                change: self.intent.change.clone(),
                holds: holds.collect(),
                conflicting: conflicting.collect(),
                proven: proven(&reports, circle),
                freeze: freeze.clone(),
                view,
                after: after.collect(),
                asked_secs: self.asked_secs,
            });
        }
        Ok(situations)
    }

    fn view(&self, circle: &Circle<'_>) -> Option<View> {
        let (commit, seq) = (self.session.commit.clone(), self.session.seq);
        Some(View { seq, commit, digest: circle.view.clone()? })
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
                    change: self.intent.change.clone(),
                });
            }
        }
        let holds: Vec<Hold> = holds.into_values().collect();
        let mut transaction = protocol::claim(&holds, &self.ranges(), &self.declared, self.read_at, session.me);
        transaction.when.push(epoch::same_epoch(self.meta_at));
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
        let (mine, written) = recovery::found(held, self.session.me, &self.id, phase);
        if !mine.is_empty() {
            self.holds = mine;
        }
        if written { Event::Recovered { mine: true } } else { Event::Lost(because_of(error)) }
    }

    fn arm(&mut self) -> Event {
        let mut transaction = protocol::arm(&self.holds, &self.ranges(), self.read_at, self.session.me);
        transaction.when.push(epoch::same_epoch(self.meta_at));
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
            lanes: recovery::lanes(self.circles.iter().map(|circle| &*circle.group)),
            lent: None,
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
        commit: CommitId::new(recovery::UNKNOWN),
        seq: 0,
        boot_id: String::new(),
        acted_ms: 0,
        acted_boot: String::new(),
        start_secs_max: 0,
        why: "its record cannot be read".to_owned(),
        lanes: 1,
        lent: None,
    };
    match disk::read_bounded(path, 1 << 20) {
        Ok(None) => None,
        Ok(Some(bytes)) => Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| unreadable(error.to_string()))),
        Err(error) => Some(unreadable(error.to_string())),
    }
}

/// `Ok(Err(_))`: there is one and it cannot be read.
pub fn read_pin(path: &Path) -> Result<Result<Option<Pin>, String>, DiskError> {
    let Some(bytes) = disk::read_bounded(path, 1 << 16)? else { return Ok(Ok(None)) };
    let unreadable = |_| format!("{} cannot be read", path.display());
    Ok(serde_json::from_slice(&bytes).map(Some).map_err(unreadable))
}

fn save_pin(path: &Path, pin: &Pin) -> Result<(), DiskError> {
    let bytes = serde_json::to_vec_pretty(pin).expect("texts and numbers");
    disk::write_atomic(path, &bytes, 0o600)
}

/// The store answered with a lower revision than before: that stays known while it counts up again.
pub fn saw_it_fall(path: &Path) -> Result<(), DiskError> {
    match read_pin(path)? {
        Ok(Some(pin)) if !pin.fell => save_pin(path, &Pin { fell: true, ..pin }),
        Ok(_) | Err(_) => Ok(()),
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
