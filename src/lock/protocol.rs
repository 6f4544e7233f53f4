//! The hold protocol's keys and transactions: what a decision becomes in the store.
//!
//! All conditions of one step are in one transaction, so that any pure decision over what was read is atomic: nothing
//! was written in the ranges since the read. PURE. Never: talks to a store; never: a lease on a hold.

use crate::lock::quorum::{Freeze, Hold, HoldPhase};
use crate::lock::store::{Condition, Entry, Key, Snapshot, Transaction, Write};
use crate::name::{GroupId, NodeName};

pub fn hold_range(group: &GroupId) -> Key {
    format!("hold/{group}/")
}

pub fn hold_key(group: &GroupId, lane: usize, node: &NodeName) -> Key {
    format!("hold/{group}/{lane}/{node}")
}

pub fn want_key(node: &NodeName, group: &GroupId) -> Key {
    format!("n/{node}/want/{group}")
}

pub fn report_key(node: &NodeName) -> Key {
    format!("n/{node}/report")
}

pub fn beat_key(node: &NodeName) -> Key {
    format!("n/{node}/beat")
}

pub fn dead_key(node: &NodeName) -> Key {
    format!("dead/{node}")
}

pub const FREEZES: &str = "freeze/";
/// Written when every node should fetch at once.
pub const WAKE: &str = "wake";

fn freeze_keys<'a>(groups: impl IntoIterator<Item = &'a GroupId>, node: &NodeName) -> Vec<Key> {
    let of_groups = groups.into_iter().map(|group| format!("freeze/g/{group}"));
    ["freeze/fleet".to_owned(), format!("freeze/n/{node}")].into_iter().chain(of_groups).collect()
}

/// The freeze that concerns these groups and this node, if there is one.
pub fn freeze_in(snapshot: &Snapshot, groups: &[GroupId], node: &NodeName) -> Option<Freeze> {
    freeze_keys(groups, node).iter().find_map(|key| {
        let entry = snapshot.get(key)?;
        Some(serde_json::from_slice(&entry.value).unwrap_or_else(|_| Freeze {
            reason: "unreadable freeze, honoured all the same".to_owned(),
            by: "unknown".to_owned(),
            until: None,
        }))
    })
}

/// The holds in a snapshot. A value that cannot be read is a hold all the same: of the node that its key names, failed.
pub fn holds_in(snapshot: &Snapshot, group: &GroupId) -> Vec<(Hold, i64)> {
    snapshot.below(&hold_range(group)).map(|entry| (hold_of(entry, group), entry.create_revision)).collect()
}

fn hold_of(entry: &Entry, group: &GroupId) -> Hold {
    let mut parts = entry.key.rsplit('/');
    let node = NodeName::new(parts.next().unwrap_or_default());
    let lane = parts.next().and_then(|lane| lane.parse().ok()).unwrap_or(0);
    match serde_json::from_slice::<Hold>(&entry.value) {
        // The key says whose it is, whatever the value claims.
        Ok(hold) => Hold { node, lane, group: group.clone(), ..hold },
        Err(_) => Hold {
            group: group.clone(),
            lane,
            node,
            attempt: String::new(),
            commit: crate::name::CommitId::new("unknown"),
            seq: 0,
            phase: HoldPhase::Failed,
            units: Vec::new(),
            boot_id: String::new(),
            reason: "its hold cannot be read".to_owned(),
            since: jiff::Timestamp::UNIX_EPOCH,
        },
    }
}

fn value(hold: &Hold) -> Vec<u8> {
    serde_json::to_vec(hold).expect("names, numbers and times serialize")
}

/// All groups or none. `read_at`: the revision of the snapshot that the decision was made on; `ranges`: all groups whose
/// holds were looked at (conflicting ones and aliases too).
pub fn claim(holds: &[Hold], ranges: &[GroupId], read_at: i64, me: &NodeName) -> Transaction {
    let untouched = ranges.iter().map(|group| Condition::RangeUntouchedSince(hold_range(group), read_at));
    let mine = holds.iter().map(|hold| Condition::Absent(hold_key(&hold.group, hold.lane, me)));
    let when = untouched
        .chain(mine)
        .chain(freeze_keys(ranges, me).into_iter().map(Condition::Absent))
        .chain([Condition::Absent(dead_key(me))])
        .collect();
    let then = holds.iter().map(|hold| Write::Put(hold_key(&hold.group, hold.lane, me), value(hold))).collect();
    Transaction { when, then }
}

/// The fence: the holds are still the ones I made, nobody failed, froze or declared me dead meanwhile.
pub fn arm(holds: &[(Hold, i64)], ranges: &[GroupId], read_at: i64, me: &NodeName) -> Transaction {
    let when = own(holds, me)
        .into_iter()
        .chain(ranges.iter().map(|group| Condition::RangeUntouchedSince(hold_range(group), read_at)))
        .chain(freeze_keys(ranges, me).into_iter().map(Condition::Absent))
        .chain([Condition::Absent(dead_key(me))])
        .collect();
    Transaction { when, then: rewrite(holds, me, HoldPhase::Armed) }
}

/// Best effort: the others see it in the phase of the hold; without it they see a hold that does not end.
pub fn fail(holds: &[(Hold, i64)], me: &NodeName, why: &str) -> Transaction {
    let told: Vec<(Hold, i64)> =
        holds.iter().map(|(hold, token)| (Hold { reason: why.to_owned(), ..hold.clone() }, *token)).collect();
    Transaction { when: own(holds, me), then: rewrite(&told, me, HoldPhase::Failed) }
}

/// A failed holder takes up another commit (repair, usually a revert) inside its own hold, where several may hold the
/// group: nobody else wrote since the look that showed that nobody else tries it.
pub fn retarget(holds: &[(Hold, i64)], ranges: &[GroupId], read_at: i64, me: &NodeName) -> Transaction {
    let untouched = ranges.iter().map(|group| Condition::RangeUntouchedSince(hold_range(group), read_at));
    let when = own(holds, me).into_iter().chain(untouched).chain([Condition::Absent(dead_key(me))]).collect();
    Transaction { when, then: rewrite(holds, me, HoldPhase::Armed) }
}

/// The same where nobody else can hold the group: a word to people.
pub fn retold(holds: &[(Hold, i64)], me: &NodeName) -> Transaction {
    Transaction { when: own(holds, me), then: rewrite(holds, me, HoldPhase::Armed) }
}

/// Deletes only, so that it works while the store is full.
pub fn release(holds: &[(Hold, i64)], me: &NodeName) -> Transaction {
    let then = holds.iter().map(|(hold, _)| Write::Delete(hold_key(&hold.group, hold.lane, me))).collect();
    Transaction { when: own(holds, me), then }
}

/// An operator frees the holds of a machine that is off for good; from then on that node must not disrupt anything.
pub fn release_dead(node: &NodeName, snapshot: &Snapshot, statement: &[u8]) -> Transaction {
    let suffix = format!("/{node}");
    let mine = snapshot.entries.iter().filter(|entry| {
        (entry.key.starts_with("hold/") || entry.key.starts_with("act/")) && entry.key.ends_with(&suffix)
    });
    let (when, deletes): (Vec<_>, Vec<_>) = mine
        .map(|entry| (Condition::CreatedAt(entry.key.clone(), entry.create_revision), Write::Delete(entry.key.clone())))
        .unzip();
    let then = deletes.into_iter().chain([Write::Put(dead_key(node), statement.to_vec())]).collect();
    Transaction { when, then }
}

fn own(holds: &[(Hold, i64)], me: &NodeName) -> Vec<Condition> {
    holds.iter().map(|(hold, token)| Condition::CreatedAt(hold_key(&hold.group, hold.lane, me), *token)).collect()
}

fn rewrite(holds: &[(Hold, i64)], me: &NodeName, phase: HoldPhase) -> Vec<Write> {
    holds
        .iter()
        .map(|(hold, _)| Write::Put(hold_key(&hold.group, hold.lane, me), value(&Hold { phase, ..hold.clone() })))
        .collect()
}
