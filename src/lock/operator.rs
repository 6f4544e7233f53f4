//! What operators write into the store: freezes, releases, admissions, each with who and why.
//!
//! Whatever they do is one transaction with an entry below `audit/@operators/`, where no node may write. PURE. Never: frees
//! a hold that is armed; never: a freeze without an end.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lock::protocol;
use crate::lock::quorum::{Freeze, Hold, HoldPhase};
use crate::lock::store::{Condition, Entry, Key, Snapshot, Transaction, Write};
use crate::name::{GroupId, NodeName};

/// What a freeze holds for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    Fleet,
    Group(GroupId),
    Node(NodeName),
}

impl Scope {
    pub fn key(&self) -> Key {
        match self {
            Self::Fleet => "freeze/fleet".to_owned(),
            Self::Group(group) => format!("freeze/g/{group}"),
            Self::Node(node) => format!("freeze/n/{node}"),
        }
    }

    pub fn of_key(key: &str) -> Option<Self> {
        match key.strip_prefix(protocol::FREEZES)?.split_once('/') {
            None => Some(Self::Fleet),
            Some(("g", group)) => Some(Self::Group(GroupId::new(group))),
            Some(("n", node)) => Some(Self::Node(NodeName::new(node))),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("the fleet"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// Who did what to what, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Statement {
    /// `freeze`, `unfreeze`, `declared-dead`, `admitted`, `claim-released`, `reinit`.
    pub what: String,
    /// `fleet`, a group, a node, `GROUP/NODE`.
    #[serde(alias = "node")]
    pub object: String,
    pub reason: String,
    pub by: String,
    pub at: Timestamp,
}

impl Statement {
    fn value(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and a time serialize")
    }
}

/// `id`: a ULID.
pub fn audit_key(id: &str) -> Key {
    format!("audit/@operators/{id}")
}

/// The transaction with its entry in the audit.
fn audited(when: Vec<Condition>, write: Write, statement: &Statement, id: &str) -> Transaction {
    Transaction { when, then: vec![write, Write::Put(audit_key(id), statement.value())] }
}

/// Nobody wrote or deleted the key since it was looked at.
fn as_seen(key: &str, seen: Option<&Entry>) -> Condition {
    Condition::ModifiedAt(key.to_owned(), seen.map_or(0, |entry| entry.mod_revision))
}

/// In place of one that is there. `lasts`: its lease; the value says the same for people.
pub fn freeze(
    scope: &Scope,
    freeze: &Freeze,
    lasts: Duration,
    seen: &Snapshot,
    said: &Statement,
    id: &str,
) -> Transaction {
    let key = scope.key();
    let when = vec![as_seen(&key, seen.get(&key))];
    let value = serde_json::to_vec(freeze).expect("texts and a time serialize");
    audited(when, Write::PutFor(key, value, lasts), said, id)
}

/// Ends the freeze that was looked at. `None`: there is none.
pub fn unfreeze(scope: &Scope, seen: &Snapshot, said: &Statement, id: &str) -> Option<Transaction> {
    let key = scope.key();
    let entry = seen.get(&key)?;
    Some(audited(vec![as_seen(&key, Some(entry))], Write::Delete(key), said, id))
}

/// Ends the quarantine of a node. `None`: it was not declared dead.
pub fn admit(node: &NodeName, seen: &Snapshot, said: &Statement, id: &str) -> Option<Transaction> {
    let key = protocol::dead_key(node);
    let entry = seen.get(&key)?;
    Some(audited(vec![as_seen(&key, Some(entry))], Write::Delete(key), said, id))
}

/// Frees a claim. Safe whatever its holder does: nothing was stopped under it, and its arming will fail. Errors: the hold
/// that is more than a claim by now; `None`: there is none.
pub fn release_claimed(
    group: &GroupId,
    node: &NodeName,
    seen: &Snapshot,
    said: &Statement,
    id: &str,
) -> Result<Transaction, Option<Hold>> {
    let mine = seen.below(&protocol::hold_range(group)).find(|entry| entry.key.ends_with(&format!("/{node}"))).cloned();
    let entry = mine.ok_or(None)?;
    let hold = protocol::hold_of(&entry, group);
    if hold.phase != HoldPhase::Claimed {
        return Err(Some(hold));
    }
    Ok(audited(vec![as_seen(&entry.key, Some(&entry))], Write::Delete(entry.key), said, id))
}
