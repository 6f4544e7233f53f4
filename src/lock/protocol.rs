//! The hold protocol's keys and transactions: what a decision becomes in the store.
//!
//! All conditions of one step are in one transaction, so that any pure decision over what was read is atomic: nothing
//! was written in the ranges since the read. PURE. Never: talks to a store; never: a lease on a hold.

use crate::fleet::{Group, MemberChange};
use crate::lock::election::{Begun, Claim};
use crate::lock::quorum::{Freeze, Hold, HoldPhase};
pub use crate::lock::store::OPERATIONS_MAX;
use crate::lock::store::{Condition, Entry, Key, Snapshot, Transaction, Write};
use crate::lock::view::{self, Standing, View};
use crate::name::{ClusterName, GroupId, NodeName};

/// All groups.
pub const HOLDS: &str = "hold/";

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

/// The branch as this node verified it.
pub fn verified_key(node: &NodeName) -> Key {
    format!("n/{node}/verified")
}

pub fn beat_key(node: &NodeName) -> Key {
    format!("n/{node}/beat")
}

/// Which process of which boot lives under the node's name.
pub fn instance_key(node: &NodeName) -> Key {
    format!("n/{node}/instance")
}

pub fn dead_key(node: &NodeName) -> Key {
    format!("dead/{node}")
}

/// Whose declaration of a group is in force.
pub fn spec_key(group: &GroupId) -> Key {
    format!("spec/{group}")
}

/// Who of a cluster runs an action of it.
pub fn act_range(cluster: &ClusterName) -> Key {
    format!("act/{cluster}/")
}

pub fn act_key(cluster: &ClusterName, node: &NodeName) -> Key {
    format!("act/{cluster}/{node}")
}

/// By which commit an action of a cluster was last begun.
pub fn begun_key(cluster: &ClusterName, action: &str) -> Key {
    format!("action/{cluster}/{action}")
}

/// What these nodes say, in few questions: etcd takes at most 128 in one transaction (`--max-txn-ops`).
pub fn said_by<'a>(peers: impl IntoIterator<Item = &'a NodeName>) -> Vec<Key> {
    const ONE_BY_ONE_MAX: usize = 64;
    let keys: Vec<Key> = peers.into_iter().map(|peer| format!("n/{peer}/")).collect();
    if keys.len() > ONE_BY_ONE_MAX { vec!["n/".to_owned()] } else { keys }
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
    freeze_keys(groups, node).iter().find_map(|key| snapshot.get(key).map(freeze_of))
}

/// What an entry below `freeze/` says.
pub fn freeze_of(entry: &Entry) -> Freeze {
    serde_json::from_slice(&entry.value).unwrap_or_else(|_| Freeze {
        reason: "unreadable freeze, honoured all the same".to_owned(),
        by: "unknown".to_owned(),
        until: None,
    })
}

/// The holds in a snapshot. A value that cannot be read is a hold all the same: of the node that its key names, failed.
pub fn holds_in(snapshot: &Snapshot, group: &GroupId) -> Vec<(Hold, i64)> {
    snapshot.below(&hold_range(group)).map(|entry| (hold_of(entry, group), entry.create_revision)).collect()
}

/// This node's holds, of whatever group, with their tokens.
pub fn holds_of<'a>(snapshot: &'a Snapshot, node: &'a NodeName) -> impl Iterator<Item = (Hold, i64)> + 'a {
    let all = snapshot.below(HOLDS).filter_map(|entry| {
        let group = GroupId::new(entry.key.strip_prefix(HOLDS)?.split('/').next()?);
        Some((hold_of(entry, &group), entry.create_revision))
    });
    all.filter(move |(hold, _)| hold.node == *node)
}

/// The hold of an entry below a group's range.
pub fn hold_of(entry: &Entry, group: &GroupId) -> Hold {
    let mut parts = entry.key.rsplit('/');
    let node = NodeName::new(parts.next().unwrap_or_default());
    let lane = parts.next().and_then(|lane| lane.parse().ok()).unwrap_or(0);
    match serde_json::from_slice::<Hold>(&entry.value) {
        // The key says whose it is, whatever the value claims.
        Ok(hold) => {
            // For people, whose terminal nobody shall steer.
            let legible = |text: String| text.replace(char::is_control, "\u{fffd}");
            let units = hold.units.into_iter().map(legible).collect();
            Hold { node, lane, group: group.clone(), units, reason: legible(hold.reason), ..hold }
        }
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
            change: MemberChange::None,
        },
    }
}

fn value(hold: &Hold) -> Vec<u8> {
    serde_json::to_vec(hold).expect("names, numbers and times serialize")
}

/// All groups or none. `read_at`: the revision of the snapshot that the decision was made on; `ranges`: all groups whose
/// holds were looked at (conflicting ones and aliases too); `declared`: whose declaration of each group it counted with.
pub fn claim(holds: &[Hold], ranges: &[GroupId], declared: &[Declared], read_at: i64, me: &NodeName) -> Transaction {
    let untouched = ranges.iter().map(|group| Condition::RangeUntouchedSince(hold_range(group), read_at));
    let mine = holds.iter().map(|hold| Condition::Absent(hold_key(&hold.group, hold.lane, me)));
    let seen = declared.iter().map(|one| Condition::ModifiedAt(spec_key(&one.group), one.seen_at));
    let moving = || declared.iter().filter_map(|one| Some((&one.group, one.moves_to.as_ref()?)));
    let free = moving().map(|(group, _)| Condition::RangeEmpty(hold_range(group)));
    let when = untouched
        .chain(mine)
        .chain(seen)
        .chain(free)
        .chain(freeze_keys(ranges, me).into_iter().map(Condition::Absent))
        .chain([Condition::Absent(dead_key(me))])
        .collect();
    let brought = moving().map(|(group, view)| {
        Write::Put(spec_key(group), serde_json::to_vec(view).expect("names and numbers serialize"))
    });
    let held = holds.iter().map(|hold| Write::Put(hold_key(&hold.group, hold.lane, me), value(hold)));
    Transaction { when, then: brought.chain(held).collect() }
}

/// How many conditions the claim of so many names takes, of `ranges` names that are looked at, where each of its groups moves
/// its declaration: the most that it can be.
pub fn claim_size(names: usize, ranges: usize) -> usize {
    let of_each_name = ["no hold of ours", "whose declaration", "nobody's, as it moves"].len();
    let of_each_range = ["untouched", "no freeze"].len();
    let of_all = ["fleet not frozen", "node not frozen", "not dead", "epoch"].len();
    of_each_name * names + of_each_range * ranges + of_all
}

/// Whose declaration of a group a claim counted with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Declared {
    pub group: GroupId,
    /// The revision at which the one in force was last written; 0: there is none.
    pub seen_at: i64,
    /// The claim brings this one into force, where nobody holds the group.
    pub moves_to: Option<View>,
}

/// What the views in force mean for a node that has `mine` (`None`: its commit declares no such group), and what its claim
/// has to say of them. Under each name of the group: a node that lags knows it by a former one.
pub fn declared(group: &Group, mine: Option<&View>, seen: &Snapshot) -> (Standing, Vec<Declared>) {
    let Some(mine) = mine else { return (Standing::InForce, Vec::new()) };
    let said = |id: &GroupId| {
        let there = seen.get(&spec_key(id));
        (there.map_or(0, |entry| entry.mod_revision), view::standing(there.map(|entry| entry.value.as_slice()), mine))
    };
    let all: Vec<(&GroupId, i64, Standing)> = group.ids().map(|id| (id, said(id).0, said(id).1)).collect();
    let behind = all.iter().map(|(.., one)| one).find(|one| matches!(one, Standing::Behind { .. }));
    let moves = all.iter().any(|(.., one)| *one == Standing::Moves);
    let standing = behind.cloned().unwrap_or(if moves { Standing::Moves } else { Standing::InForce });
    let one = |(id, seen_at, own): &(&GroupId, i64, Standing)| Declared {
        group: (*id).clone(),
        seen_at: *seen_at,
        moves_to: (standing == Standing::Moves && *own == Standing::Moves).then(|| mine.clone()),
    };
    let declared = all.iter().map(one).collect();
    (standing, declared)
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

/// The claims of a cluster's actions. One that cannot be read is a claim all the same: of the node that its key names.
pub fn claims_in(snapshot: &Snapshot, cluster: &ClusterName) -> Vec<Claim> {
    let claim = |entry: &Entry| {
        let node = NodeName::new(entry.key.rsplit('/').next().unwrap_or_default());
        match serde_json::from_slice::<Claim>(&entry.value) {
            Ok(claim) => Claim { node, cluster: cluster.clone(), ..claim },
            Err(_) => Claim {
                cluster: cluster.clone(),
                node,
                action: "that cannot be read".to_owned(),
                commit: crate::name::CommitId::new("unknown"),
                attempt: String::new(),
                since: jiff::Timestamp::UNIX_EPOCH,
            },
        }
    };
    snapshot.below(&act_range(cluster)).map(claim).collect()
}

/// Nobody else of the cluster runs anything, and nobody began this action since it was looked at. What was begun is
/// written before it runs: whoever follows an older commit waits from then on, also if this node dies in the middle.
/// `own`: the revision of this node's own claim, left by an interrupted attempt; `groups`: those whose freeze counts.
pub fn begin(claim: &Claim, begun: &Begun, own: Option<i64>, looked_at: &Snapshot, groups: &[GroupId]) -> Transaction {
    let mine = act_key(&claim.cluster, &claim.node);
    let record = begun_key(&claim.cluster, &claim.action);
    let free = match own {
        None => vec![Condition::RangeEmpty(act_range(&claim.cluster))],
        Some(token) => vec![
            Condition::CreatedAt(mine.clone(), token),
            Condition::RangeUntouchedSince(act_range(&claim.cluster), looked_at.revision),
        ],
    };
    let unchanged = Condition::ModifiedAt(record.clone(), looked_at.get(&record).map_or(0, |entry| entry.mod_revision));
    let still = freeze_keys(groups, &claim.node).into_iter().chain([dead_key(&claim.node)]).map(Condition::Absent);
    let value = |text: serde_json::Result<Vec<u8>>| text.expect("names, numbers and times serialize");
    Transaction {
        when: free.into_iter().chain([unchanged]).chain(still).collect(),
        then: vec![
            Write::Put(mine, value(serde_json::to_vec(claim))),
            Write::Put(record, value(serde_json::to_vec(begun))),
        ],
    }
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
