//! What a node does about what it left behind: re-entry into its own hold, repair, leftovers, lost answers.
//!
//! Its record says what it was about; the store, where it must be asked, says whether that still holds. PURE. Never: a
//! look at the store, at the member or at the disk; `session` looks and carries out.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::fleet::{Group, MemberChange};
use crate::lock::epoch;
use crate::lock::machine::{self, Action, Event, Phase};
use crate::lock::protocol;
use crate::lock::quorum::{Because, Hold, HoldPhase};
use crate::lock::store::{Snapshot, Transaction};
use crate::name::{CommitId, GroupId, NodeName};
use crate::reason;

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
    /// In how many lanes the groups could be held since the claim, by the widest of them. A record that does not say it may
    /// be one of several.
    #[serde(default = "several")]
    pub lanes: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lent: Option<Lent>,
}

fn several() -> usize {
    2
}

/// In how many lanes the widest of these groups can be held.
pub fn lanes<'a>(covered: impl IntoIterator<Item = &'a Group>) -> usize {
    covered.into_iter().map(|group| group.max_unavailable).max().unwrap_or(1)
}

/// Since when, and in which boot, somebody else may reboot the machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lent {
    pub boot_id: String,
    /// Awake time at which it was last said, in milliseconds.
    pub said_ms: u64,
}

impl Record {
    /// The machine may go down at any time. Not any more in the boot after: then the hold settles as any other.
    pub fn is_lent(&self, boot_id: &str) -> bool {
        self.lent.as_ref().is_some_and(|lent| lent.boot_id == boot_id)
    }
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

impl Record {
    /// The place of the commit with which the member settles now. None where the record does not know what went live: a
    /// proof that is missing makes others wait, a wrong one lets two of them take the same bad commit.
    pub fn proves(&self) -> Option<u64> {
        // Who left has not run with it.
        let left = self.holds.iter().any(|(hold, _)| hold.change.takes_a_vote());
        (self.phase == RecordPhase::Settling && self.knows_its_commit() && !left).then_some(self.seq)
    }

    pub fn knows_its_commit(&self) -> bool {
        self.commit.as_str() != UNKNOWN
    }
}

/// Instead of a commit, where it is not known which one is live.
pub const UNKNOWN: &str = "unknown";

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

/// This node, and what it is about.
#[derive(Clone, Copy)]
pub struct Me<'a> {
    pub node: &'a NodeName,
    pub boot_id: &'a str,
    /// The commit that it wants to take.
    pub commit: &'a CommitId,
    pub seq: u64,
}

/// What a batch may do while a record is there.
#[derive(PartialEq, Eq, Debug)]
pub enum Reentry {
    Wait(Because),
    /// Interrupted, and the member is up: what it has settles before anything new is taken.
    Settle(Because),
    /// The own member counts as down already: under the hold that is there, if [`asks`] agrees.
    Repair,
}

/// A record is there: is this batch, which needs `groups`, covered by it? `known`: the groups of this node, by the target
/// commit and by what runs; `healthy`: whether the member runs and every gate says so, asked only where it decides.
pub fn reenter(
    record: &Record,
    me: Me<'_>,
    groups: &[GroupId],
    known: &[&Group],
    healthy: impl Fn() -> bool,
) -> Reentry {
    // A hold under a former name is one on the group: whoever knows either name sees it.
    let held = |group: &GroupId| record.holds.iter().any(|(hold, _)| hold.group == *group);
    let covered =
        |group: &GroupId| held(group) || known.iter().any(|known| known.id == *group && known.ids().any(held));
    let first = record.holds.first().map(|(hold, _)| &hold.group);
    let because = |reason, sentence: String| Because::new(reason, first, sentence);
    let settling = |sentence: String| because(reason::SETTLING, sentence);
    let batch = &record.batch;
    match record.phase {
        _ if record.is_lent(me.boot_id) => {
            Reentry::Wait(because(reason::REBOOTING, format!("the machine may go down at any time: {batch}")))
        }
        _ if !groups.iter().any(covered) => {
            Reentry::Wait(settling(format!("{} has a hold for {batch} first", me.node)))
        }
        RecordPhase::Settling => Reentry::Wait(settling(format!("{batch} is settling"))),
        _ if !groups.iter().all(covered) => {
            let sentence = format!("the hold covers {batch} only, the change needs {groups:?}");
            Reentry::Wait(because(reason::HOLD_FAILED, sentence))
        }
        RecordPhase::Failed if record.commit == *me.commit => {
            Reentry::Wait(because(reason::GATE_FAILED, record.why.clone()))
        }
        RecordPhase::Failed if healthy() => {
            Reentry::Wait(settling(format!("{batch} became healthy; it settles first")))
        }
        RecordPhase::Acting | RecordPhase::Repairing if healthy() => {
            Reentry::Settle(settling(format!("{batch} was interrupted; it settles first")))
        }
        RecordPhase::Acting | RecordPhase::Repairing | RecordPhase::Failed => Reentry::Repair,
    }
}

/// Whom a repair asks before it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asks {
    /// Nobody else can hold the group, and it is the boot in which the store said that the holds are ours. Works without
    /// a store, which may be what is being repaired.
    Nobody,
    /// After a boot: an operator may have declared this node dead meanwhile.
    Store,
    /// Another commit where several may hold the group, or could when this one claimed it: it is tried by one of them at a
    /// time.
    Retargets,
}

/// `covered`: the groups of the holds.
pub fn asks(record: &Record, me: Me<'_>, covered: &[&Group]) -> Asks {
    let another = record.commit != *me.commit;
    // A commit may leave fewer lanes than there are holders already.
    let several = record.lanes.max(lanes(covered.iter().copied())) > 1;
    match record.boot_id == me.boot_id {
        _ if another && several => Asks::Retargets,
        false => Asks::Store,
        true => Asks::Nobody,
    }
}

/// The record of the repair: the commit of today under the holds of then.
pub fn repairing(mut record: Record, me: Me<'_>) -> Record {
    if let (Phase::Repairing, Action::Act) = machine::step(record.phase.into(), Event::Repair) {
        record.phase = RecordPhase::Repairing;
    }
    record.commit = me.commit.clone();
    record.seq = me.seq;
    record.boot_id = me.boot_id.to_owned();
    for (hold, _) in &mut record.holds {
        hold.commit = me.commit.clone();
        hold.seq = me.seq;
        hold.reason = "repair".to_owned();
    }
    record
}

/// What the store says about a repair.
#[derive(PartialEq, Eq, Debug)]
pub enum Said {
    Wait(Because),
    /// An operator released it, and let this node in again: it is one of many.
    NotOurs,
    /// When this was committed.
    Go(Option<Transaction>),
}

/// `record`: as [`repairing`] made it; `covered`: the groups of the holds, each with the commits proven in it; `seen`: the
/// holds of them, what is said of this node, and `meta`.
pub fn said(record: &Record, me: Me<'_>, asks: Asks, covered: &[(&Group, BTreeSet<u64>)], seen: &Snapshot) -> Said {
    if seen.get(&protocol::dead_key(me.node)).is_some() {
        let sentence = format!("{} was declared dead", me.node);
        return Said::Wait(Because::new(reason::DECLARED_DEAD, None, sentence));
    }
    let ours = still_ours(&record.holds, me.node, seen);
    if ours.len() < record.holds.len() {
        return Said::NotOurs;
    }
    if asks != Asks::Retargets {
        return Said::Go(None);
    }
    if let Some(because) = somebody_tries(me, covered, seen) {
        return Said::Wait(because);
    }
    let ranges: Vec<GroupId> = ranges(record, covered.iter().map(|(group, _)| *group)).into_iter().cloned().collect();
    let mut retarget = protocol::retarget(&ours, &ranges, seen.revision, me.node);
    retarget.when.push(epoch::same_epoch(epoch::meta_revision(seen)));
    Said::Go(Some(retarget))
}

/// Every name under which what the record holds is held.
pub fn ranges<'a>(record: &'a Record, covered: impl IntoIterator<Item = &'a Group>) -> BTreeSet<&'a GroupId> {
    let names = covered.into_iter().flat_map(Group::ids);
    names.chain(record.holds.iter().map(|(hold, _)| &hold.group)).collect()
}

/// Those that are still this node's, with today's tokens. A hold is known by its token, or by its attempt: after a restored
/// store an operator wrote it back, and its token is another one.
pub fn still_ours(holds: &[(Hold, i64)], me: &NodeName, seen: &Snapshot) -> Vec<(Hold, i64)> {
    let ours = holds.iter().filter_map(|(hold, token)| {
        let entry = seen.get(&protocol::hold_key(&hold.group, hold.lane, me))?;
        let same = || {
            let found = serde_json::from_slice::<Hold>(&entry.value);
            found.is_ok_and(|found| !hold.attempt.is_empty() && found.attempt == hold.attempt)
        };
        (entry.create_revision == *token || same()).then(|| (hold.clone(), entry.create_revision))
    });
    ours.collect()
}

/// Where several may hold a group: a commit that has not settled anywhere is taken by one member at a time.
fn somebody_tries(me: Me<'_>, covered: &[(&Group, BTreeSet<u64>)], seen: &Snapshot) -> Option<Because> {
    covered.iter().filter(|(_, proven)| !proven.contains(&me.seq)).find_map(|(group, _)| {
        let holds = group.ids().flat_map(|id| protocol::holds_in(seen, id));
        let mut others = holds.map(|(hold, _)| hold).filter(|hold| hold.node != *me.node);
        let first = others.find(|hold| hold.commit == *me.commit)?;
        let sentence = format!("{} tries {}, which has not settled yet", first.node, me.commit.short());
        Some(Because::new(reason::FIRST_ALONE, Some(&group.id), sentence).held_by(&first))
    })
}

/// What becomes of a record.
#[derive(PartialEq, Eq, Debug)]
pub enum Next {
    /// The member was (re)started now: the settle time begins.
    Settles(Record),
    /// The others are told, best effort: a hold that does not end speaks for itself.
    Fails(Record),
    /// The holds go back, then the record.
    Release,
    /// As it is. What stays undone is told.
    Stays(Option<Because>),
}

/// `awake_ms`: awake time of this boot.
pub fn advance(record: &Record, event: Event, boot_id: &str, awake_ms: u64) -> Next {
    match machine::step(record.phase.into(), event).1 {
        Action::Settle => Next::Settles(Record {
            phase: RecordPhase::Settling,
            acted_ms: awake_ms,
            acted_boot: boot_id.to_owned(),
            ..record.clone()
        }),
        Action::Release => Next::Release,
        Action::Fail(why) if record.phase == RecordPhase::Failed && record.why == why => Next::Stays(None),
        Action::Fail(why) => Next::Fails(Record { phase: RecordPhase::Failed, why, ..record.clone() }),
        Action::Wait(because) => Next::Stays(Some(because)),
        other => {
            let sentence = format!("{other:?} while {:?}", record.phase);
            Next::Stays(Some(Because::new(reason::INTERNAL, None, sentence)))
        }
    }
}

/// The agent or the machine ended between arming and the start, and the member runs: it settles with what it has, which may
/// be what it had before. That proves nothing of the record's commit, nor does the member fail with it.
pub fn interrupted(record: &Record, boot_id: &str, awake_ms: u64) -> Next {
    let mut record = Record { commit: CommitId::new(UNKNOWN), seq: 0, ..record.clone() };
    // Nor did it leave: that begins anew, with the others' leave.
    record.holds.iter_mut().for_each(|(hold, _)| hold.change = MemberChange::None);
    advance(&record, Event::Acted, boot_id, awake_ms)
}

/// Holds of ours without a record: of an attempt that ended before anything was stopped (the record comes before that).
/// They go back. A failed one, or an armed one on a node without a memory, means that this machine lost its disk: that
/// is for an operator. `state_is_old`: by its ledger, something once settled on this node.
pub fn leftovers(
    ours: impl IntoIterator<Item = (Hold, i64)>,
    state_is_old: bool,
) -> Result<Vec<(Hold, i64)>, Box<Because>> {
    let (free, lost): (Vec<_>, Vec<_>) = ours.into_iter().partition(|(hold, _)| match hold.phase {
        HoldPhase::Claimed => true,
        HoldPhase::Armed => state_is_old,
        HoldPhase::Failed => false,
    });
    let Some((hold, _)) = lost.first() else { return Ok(free) };
    let sentence = format!("this node has {} since {} and no record of it", hold.group, hold.since);
    Err(Box::new(Because::new(reason::DECLARED_DEAD, Some(&hold.group), sentence).held_by(hold)))
}

/// After a write whose answer was lost: the holds of this attempt that are there now, and whether all of them are as the
/// write makes them.
pub fn found(
    held: impl Iterator<Item = (Hold, i64)>,
    me: &NodeName,
    attempt: &str,
    phase: HoldPhase,
) -> (Vec<(Hold, i64)>, bool) {
    let mine: Vec<_> = held.filter(|(hold, _)| hold.attempt == attempt && hold.node == *me).collect();
    let written = !mine.is_empty() && mine.iter().all(|(hold, _)| hold.phase == phase);
    (mine, written)
}
