//! Is this the store that this node knows, and not an older state of it? And how a restored store is told the holds of today.
//!
//! A node pins the store's identity, its epoch and the highest revision that it saw. Another identity, a lower epoch or a
//! lower revision may lack holds that are armed: nothing is disrupted until an operator wrote the nodes' own records back
//! and raised the epoch ([`reinit`]). PURE. Never: believes a store because it answers.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lock::operator::{Scope, Statement};
use crate::lock::protocol::{self, OPERATIONS_MAX};
use crate::lock::quorum::{Hold, HoldPhase};
use crate::lock::store::{Condition, Key, Snapshot, Transaction, Write};
use crate::name::{EnvironmentName, GroupId, NodeName};

/// Absent as long as the store was never restored: epoch 0.
pub const META: &str = "meta";
/// What this agent understands of `meta`.
pub const SCHEMA: u32 = 1;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Meta {
    pub fleet: String,
    pub epoch: u64,
    pub schema: u32,
    /// Identity of the store for which the epoch was raised: a copy of it is another one.
    pub store: String,
}

/// What a node keeps on its disk of the store that it deals with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pin {
    pub identity: String,
    #[serde(default)]
    pub epoch: u64,
    /// The highest seen.
    pub revision: i64,
    /// It was once seen lower than that: what counts up again is no proof. Ends with a higher epoch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fell: bool,
}

/// Looks at what one read of `meta` showed. The pin that is to be kept, and whether the store is the one that is known;
/// if not, a sentence. `pin`: `None` on a node that never met a store.
pub fn judge(pin: Option<&Pin>, identity: &str, snapshot: &Snapshot) -> (Option<Pin>, Result<(), String>) {
    let refused = |sentence: String| (pin.cloned(), Err(sentence));
    let meta = match snapshot.get(META).map(|entry| serde_json::from_slice::<Meta>(&entry.value)) {
        None => None,
        Some(Ok(meta)) if meta.schema <= SCHEMA => Some(meta),
        Some(Ok(meta)) => return refused(format!("the store's schema is {}, this agent knows {SCHEMA}", meta.schema)),
        Some(Err(_)) => return refused("the store's `meta` cannot be read".to_owned()),
    };
    if let Some(meta) = meta.as_ref().filter(|meta| meta.store != identity) {
        return refused(format!("this is the store {identity}, its `meta` is that of {}", meta.store));
    }
    let epoch = meta.map_or(0, |meta| meta.epoch);
    let fresh = Pin { identity: identity.to_owned(), epoch, revision: snapshot.revision, fell: false };
    let Some(known) = pin.filter(|known| known.epoch >= epoch) else { return (Some(fresh), Ok(())) };
    if known.epoch > epoch {
        return refused(format!("the store is of epoch {epoch}, this node knows epoch {}", known.epoch));
    }
    if known.identity != identity {
        return refused(format!("this is the store {identity}, this node knows {}", known.identity));
    }
    if known.fell || snapshot.revision < known.revision {
        let sentence = if snapshot.revision < known.revision {
            format!("the store is at revision {}, it was at {}", snapshot.revision, known.revision)
        } else {
            "the store was seen at a lower revision than before".to_owned()
        };
        return (Some(Pin { fell: true, ..known.clone() }), Err(sentence));
    }
    (Some(fresh), Ok(()))
}

/// The revision of `meta` in a snapshot; 0: it is not there.
pub fn meta_revision(snapshot: &Snapshot) -> i64 {
    snapshot.get(META).map_or(0, |entry| entry.mod_revision)
}

/// Nobody told the store anew since `meta` was read at this revision.
pub fn same_epoch(meta_revision: i64) -> Condition {
    Condition::ModifiedAt(META.to_owned(), meta_revision)
}

/// What one node knows of its own holds: `converger holds export`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    pub fleet: String,
    pub environment: EnvironmentName,
    pub node: NodeName,
    pub at: Timestamp,
    /// `None`: it never met a store.
    pub pin: Option<Pin>,
    /// Armed or failed; a claim that was not armed yet is nothing.
    pub holds: Vec<Hold>,
}

/// A store that is told the holds of today, before anything is written.
pub struct Restored<'a> {
    pub fleet: &'a str,
    pub environment: &'a EnvironmentName,
    /// All that are not retired.
    pub nodes: &'a [NodeName],
    /// Of the store.
    pub identity: &'a str,
    /// `hold/`, `freeze/` and `meta`.
    pub snapshot: &'a Snapshot,
    pub exports: &'a [Export],
    /// Their machines are off for good.
    pub dead: &'a [NodeName],
}

pub struct Reinit {
    /// One transaction each, in this order: what is held comes first, the epoch last. Until then no node believes the store,
    /// and whoever stops in between begins again.
    pub steps: Vec<Vec<Write>>,
    /// The freeze and the epoch are as they were looked at.
    still: [Condition; 2],
    pub epoch: u64,
    /// As the nodes have them.
    pub holds: Vec<Hold>,
    /// In the store, and of no node.
    pub dropped: Vec<Hold>,
}

impl Reinit {
    /// A step of it. `read_at`: the revision of the snapshot, then that of the step before.
    pub fn transaction(&self, step: &[Write], read_at: i64) -> Transaction {
        let untouched = Condition::RangeUntouchedSince(protocol::HOLDS.to_owned(), read_at);
        Transaction { when: self.still.iter().cloned().chain([untouched]).collect(), then: step.to_vec() }
    }
}

/// What makes the store say what the nodes know. Errors: everything that is missing.
pub fn reinit(restored: &Restored<'_>, statement: &Statement, audit: Key) -> Result<Reinit, Vec<String>> {
    let Restored { fleet, environment, nodes, identity, snapshot, exports, dead } = restored;
    let mut problems = Vec::new();
    let freeze = Scope::Fleet.key();
    let frozen_at = snapshot.get(&freeze).map(|entry| entry.mod_revision);
    if frozen_at.is_none() {
        problems.push("the fleet is not frozen: `converger freeze --reason … --for 4h` first".to_owned());
    }
    let mut by_node: BTreeMap<&NodeName, &Export> = BTreeMap::new();
    for export in *exports {
        let node = &export.node;
        if export.fleet != *fleet || export.environment != **environment {
            let (fleet, environment) = (&export.fleet, &export.environment);
            problems.push(format!("the export of {node} is of fleet {fleet}, environment {environment}"));
        } else if by_node.insert(node, export).is_some() {
            problems.push(format!("{node} is exported twice: keep the newer one"));
        }
        let foreign = export.holds.iter().filter(|hold| hold.node != *node || hold.group.as_str().contains('/'));
        for hold in foreign {
            problems.push(format!(
                "the export of {node} names a hold of {} on {}: no node speaks for another",
                hold.node, hold.group
            ));
        }
        if dead.contains(node) {
            problems.push(format!("{node} has an export, so its machine is not off: leave out --dead {node}"));
        }
    }
    let missing = nodes.iter().filter(|node| !by_node.contains_key(node) && !dead.contains(node));
    let missing: Vec<&str> = missing.map(NodeName::as_str).collect();
    if !missing.is_empty() {
        problems.push(format!(
            "no word of {}: run `converger holds export` there, or say --dead NODE if its machine is off for good",
            missing.join(", ")
        ));
    }
    let present: BTreeMap<&str, Hold> = held(snapshot);
    for hold in present.values() {
        // A claim is only a claim: its ARM will fail.
        let later = |export: &&Export| hold.phase != HoldPhase::Claimed && hold.since > export.at;
        if let Some(export) = by_node.get(&hold.node).filter(|export| later(export)) {
            let (node, group, at) = (&hold.node, &hold.group, export.at);
            problems.push(format!("{node} took {group} after it was exported at {at}: export it again"));
        }
    }
    let epochs = exports.iter().filter_map(|export| export.pin.as_ref()).map(|pin| pin.epoch);
    let told = snapshot.get(META).and_then(|entry| serde_json::from_slice::<Meta>(&entry.value).ok());
    let epoch = epochs.chain(told.map(|meta| meta.epoch)).max().unwrap_or(0) + 1;
    let Some(frozen_at) = frozen_at.filter(|_| problems.is_empty()) else { return Err(problems) };

    let holds: Vec<Hold> = exports.iter().flat_map(|export| export.holds.iter().cloned()).collect();
    let key = |hold: &Hold| protocol::hold_key(&hold.group, hold.lane, &hold.node);
    let wanted: BTreeSet<Key> = holds.iter().map(key).collect();
    let stale = present.iter().filter(|(key, _)| !wanted.contains(**key));
    let deletes = stale.clone().map(|(key, _)| Write::Delete((*key).to_owned()));
    let json = |value: serde_json::Result<Vec<u8>>| value.expect("names, numbers and times serialize");
    let puts = holds.iter().map(|hold| Write::Put(key(hold), json(serde_json::to_vec(hold))));
    let meta = Meta { fleet: (*fleet).to_owned(), epoch, schema: SCHEMA, store: (*identity).to_owned() };
    let statement = json(serde_json::to_vec(statement));
    let declared = dead.iter().map(|node| Write::Put(protocol::dead_key(node), statement.clone()));
    // The epoch is the very last: whatever follows it would be refused, because it moved.
    let last = [Write::Put(audit, statement.clone()), Write::Put(META.to_owned(), json(serde_json::to_vec(&meta)))];
    let (said, last) = (declared.collect::<Vec<_>>(), Vec::from(last));
    let writes: Vec<Write> = puts.chain(deletes).chain(said).chain(last).collect();
    Ok(Reinit {
        steps: writes.chunks(OPERATIONS_MAX).map(<[Write]>::to_vec).collect(),
        still: [Condition::ModifiedAt(freeze, frozen_at), same_epoch(meta_revision(snapshot))],
        epoch,
        dropped: stale.map(|(_, hold)| hold.clone()).collect(),
        holds,
    })
}

/// By key, all groups. One that cannot be read is one all the same.
fn held(snapshot: &Snapshot) -> BTreeMap<&str, Hold> {
    let all = snapshot.below("hold/").filter_map(|entry| {
        let group = GroupId::new(entry.key.strip_prefix("hold/")?.split('/').next()?);
        Some((entry.key.as_str(), protocol::hold_of(entry, &group)))
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::keys::Keys;
    use crate::lock::store::{Entry, Outcome};
    use crate::name::CommitId;

    fn store(revision: i64, meta: Option<&str>) -> Snapshot {
        let entry = |value: &str| Entry { key: META.into(), value: value.into(), create_revision: 1, mod_revision: 1 };
        Snapshot { revision, entries: meta.map(entry).into_iter().collect() }
    }

    fn meta(epoch: u64, store: &str) -> String {
        format!(r#"{{"fleet":"f","epoch":{epoch},"schema":1,"store":"{store}"}}"#)
    }

    fn pin(identity: &str, epoch: u64, revision: i64) -> Pin {
        Pin { identity: identity.into(), epoch, revision, fell: false }
    }

    /// G20 G21
    #[test]
    fn only_the_known_store_is_believed_or_one_of_a_higher_epoch() {
        type Row = (Option<Pin>, &'static str, i64, Option<String>, Result<(), &'static str>);
        let cases: [Row; 12] = [
            (None, "one", 7, None, Ok(())),
            (None, "one", 7, Some(meta(3, "one")), Ok(())),
            (None, "two", 7, Some(meta(3, "one")), Err("this is the store two, its `meta` is that of one")),
            (Some(pin("one", 0, 7)), "one", 7, None, Ok(())),
            (Some(pin("one", 0, 7)), "one", 6, None, Err("the store is at revision 6, it was at 7")),
            (Some(pin("one", 0, 7)), "two", 9, None, Err("this is the store two, this node knows one")),
            (Some(pin("one", 0, 7)), "two", 3, Some(meta(1, "two")), Ok(())),
            (Some(pin("one", 2, 7)), "two", 9, Some(meta(2, "two")), Err("this is the store two, this node knows one")),
            (
                Some(pin("one", 2, 7)),
                "one",
                9,
                Some(meta(1, "one")),
                Err("the store is of epoch 1, this node knows epoch 2"),
            ),
            (Some(pin("one", 2, 7)), "one", 9, None, Err("the store is of epoch 0, this node knows epoch 2")),
            (None, "one", 7, Some("garbage".into()), Err("the store's `meta` cannot be read")),
            (
                None,
                "one",
                7,
                Some(meta(3, "one").replace("\"schema\":1", "\"schema\":2")),
                Err("the store's schema is 2, this agent knows 1"),
            ),
        ];
        for (known, identity, revision, meta, expected) in cases {
            let (_, judged) = judge(known.as_ref(), identity, &store(revision, meta.as_deref()));
            assert_eq!(judged, expected.map_err(str::to_owned), "{known:?} meets {identity} at {revision}, {meta:?}");
        }
    }

    /// G20: beats alone raise the revision of a restored store past what was seen.
    #[test]
    fn a_store_that_fell_is_not_believed_when_it_has_counted_up_again() {
        let (fallen, judged) = judge(Some(&pin("one", 0, 7)), "one", &store(6, None));
        assert!(judged.is_err());
        let (still, judged) = judge(fallen.as_ref(), "one", &store(100, None));
        assert_eq!((still, judged), (fallen.clone(), Err("the store was seen at a lower revision than before".into())));
        let (new, judged) = judge(fallen.as_ref(), "one", &store(100, Some(&meta(1, "one"))));
        assert_eq!((new, judged), (Some(pin("one", 1, 100)), Ok(())));
    }

    fn hold(node: &str, phase: HoldPhase, since: i64) -> Hold {
        Hold {
            group: "g".into(),
            lane: 0,
            node: node.into(),
            attempt: format!("attempt of {node}"),
            commit: CommitId::from("c"),
            seq: 1,
            phase,
            units: Vec::new(),
            boot_id: String::new(),
            reason: String::new(),
            since: Timestamp::from_second(since).unwrap(),
            change: crate::fleet::MemberChange::None,
        }
    }

    fn entry(hold: &Hold) -> Entry {
        let key = protocol::hold_key(&hold.group, hold.lane, &hold.node);
        Entry { key, value: serde_json::to_vec(hold).unwrap(), create_revision: 5, mod_revision: 5 }
    }

    fn export(node: &str, epoch: u64, holds: &[Hold]) -> Export {
        Export {
            fleet: "f".into(),
            environment: "e".into(),
            node: node.into(),
            at: Timestamp::from_second(100).unwrap(),
            pin: Some(pin("old", epoch, 900)),
            holds: holds.to_vec(),
        }
    }

    fn reinit_of(present: &[Hold], exports: &[Export]) -> Result<Reinit, Vec<String>> {
        let frozen = Entry { key: Scope::Fleet.key(), value: vec![], create_revision: 6, mod_revision: 6 };
        let entries = present.iter().map(entry).chain([frozen]).collect();
        restored_from(&Snapshot { revision: 8, entries }, exports)
    }

    fn restored_from(snapshot: &Snapshot, exports: &[Export]) -> Result<Reinit, Vec<String>> {
        let restored = Restored {
            fleet: "f",
            environment: &"e".into(),
            nodes: &["a".into(), "b".into(), "c".into()],
            identity: "new",
            snapshot,
            exports,
            dead: &["c".into()],
        };
        let at = Timestamp::from_second(200).unwrap();
        let said = |text: &str| text.to_owned();
        let said = Statement { what: said("reinit"), object: said("holds"), reason: said("r"), by: said("o"), at };
        reinit(&restored, &said, "audit/x".into())
    }

    /// G20
    #[test]
    fn a_restored_store_gets_the_holds_of_the_nodes_and_the_highest_epoch() {
        let (armed, stale) = (hold("a", HoldPhase::Armed, 50), hold("b", HoldPhase::Armed, 40));
        let dead = hold("c", HoldPhase::Failed, 30);
        let found = reinit_of(
            &[stale.clone(), dead.clone()],
            &[export("a", 4, std::slice::from_ref(&armed)), export("b", 2, &[])],
        );
        let found = found.map_err(|problems| problems.join("; ")).unwrap();
        assert_eq!((found.epoch, &found.holds, &found.dropped), (5, &vec![armed], &vec![stale, dead]));
        let [step] = &found.steps[..] else { panic!("{:?}", found.steps) };
        let keys: Vec<&str> = step.iter().map(Write::key).collect();
        assert_eq!(keys, ["hold/g/0/a", "hold/g/0/b", "hold/g/0/c", "dead/c", "audit/x", "meta"]);
        let freeze = Condition::ModifiedAt("freeze/fleet".into(), 6);
        assert_eq!(found.transaction(step, 8).when[0], freeze, "nobody lifts it meanwhile");
    }

    /// An export comes from a machine that may be somebody else's by now.
    #[test]
    fn an_export_speaks_for_its_own_node_only() {
        let forged = hold("b", HoldPhase::Armed, 50);
        let found = reinit_of(&[], &[export("a", 4, &[forged]), export("b", 2, &[])]);
        assert!(found.is_err_and(|problems| problems.join(";").contains("names a hold of b")));
    }

    /// More than one transaction takes: nobody believes the store before the last one, and nobody else writes in between.
    #[test]
    fn many_holds_are_written_back_one_step_after_the_other() {
        let many = |node: &str| -> Vec<Hold> {
            let one = |n| Hold { group: GroupId::new(format!("g.{n}")), ..hold(node, HoldPhase::Armed, 50) };
            (0..200).map(one).collect()
        };
        let mut keys = Keys::default();
        let there = many("b").into_iter().map(|hold| Write::Put(entry(&hold).key, entry(&hold).value));
        let frozen = Write::Put(Scope::Fleet.key(), Vec::new());
        keys.commit(&Transaction { when: Vec::new(), then: there.chain([frozen]).collect() });
        let exports = [export("a", 4, &many("a")), export("b", 2, &[])];
        let snapshot = keys.read(&["hold/", "freeze/", META]);
        let found = restored_from(&snapshot, &exports).map_err(|problems| problems.join("; ")).unwrap();
        assert!(found.steps.len() > 2 && found.steps.iter().all(|step| step.len() <= OPERATIONS_MAX));
        let (before, mut read_at) = (keys.clone(), snapshot.revision);
        for (n, step) in found.steps.iter().enumerate() {
            assert!(keys.read(&[META]).entries.is_empty(), "the epoch comes last");
            // Somebody who takes a hold in between, or ends the freeze, stops it.
            for meddled in [Write::Put("hold/g.7/0/c".into(), Vec::new()), Write::Delete(Scope::Fleet.key())] {
                let mut other = keys.clone();
                other.commit(&Transaction { when: Vec::new(), then: vec![meddled] });
                assert_eq!(other.commit(&found.transaction(step, read_at)).0, Outcome::Refused, "step {n}");
            }
            let (Outcome::Committed(revision), _) = keys.commit(&found.transaction(step, read_at)) else {
                panic!("step {n}")
            };
            read_at = revision;
        }
        let held = keys.read(&["hold/"]).entries;
        assert!(held.len() == 200 && held.iter().all(|entry| entry.key.ends_with("/a")));
        assert_eq!(keys.read(&[META, "audit/x"]).entries.len(), 2);
        // Whoever stopped after the first step says it again.
        let mut keys = before;
        keys.commit(&found.transaction(&found.steps[0], snapshot.revision));
        let again = restored_from(&keys.read(&["hold/", "freeze/", META]), &exports);
        assert_eq!(again.map_err(|problems| problems.join("; ")).unwrap().epoch, found.epoch);
    }

    #[test]
    fn a_hold_that_is_newer_than_its_export_is_not_deleted() {
        let later = hold("b", HoldPhase::Armed, 150);
        let exports = [export("a", 0, &[]), export("b", 0, &[])];
        let Err(problems) = reinit_of(&[later], &exports) else { panic!("it was taken away") };
        assert_eq!(problems, ["b took g after it was exported at 1970-01-01T00:01:40Z: export it again"]);
        let claim = hold("b", HoldPhase::Claimed, 150);
        assert!(reinit_of(&[claim], &exports).is_ok(), "its arming fails");
    }
}
