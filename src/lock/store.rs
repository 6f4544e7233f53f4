//! What a store must do for the hold protocol: read several ranges at one revision, and commit conditional writes.
//!
//! The same protocol code runs over every store. Keys are relative to the environment's prefix
//! (`/converger/<fleet>/<environment>/`), which the store adds. Revisions behave as in etcd: one counter for the whole
//! store that every commit with at least one write raises by one; a key keeps its `create` revision until it is deleted.
//! Never: an interpretation of a value.

use std::time::Duration;

/// A key below the environment's prefix: `hold/kafka.brokers/0/kafka01`.
pub type Key = String;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub key: Key,
    pub value: Vec<u8>,
    pub create_revision: i64,
    pub mod_revision: i64,
}

/// Several ranges as they were at one revision (a linearizable read).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    pub revision: i64,
    pub entries: Vec<Entry>,
}

impl Snapshot {
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.key.starts_with(prefix))
    }
}

/// A condition of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// No such key.
    Absent(Key),
    /// The key exists since exactly this revision: it is still the one I made.
    CreatedAt(Key, i64),
    /// The key was last written at exactly this revision; 0: it does not exist.
    ModifiedAt(Key, i64),
    /// No key below this prefix.
    RangeEmpty(Key),
    /// Nothing below this prefix was written after this revision (deletions do not count).
    RangeUntouchedSince(Key, i64),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    Put(Key, Vec<u8>),
    /// Vanishes by itself when it is not put again in this time. For hints that people see, never for safety.
    PutFor(Key, Vec<u8>, Duration),
    Delete(Key),
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// All must hold, or nothing is written.
    pub when: Vec<Condition>,
    pub then: Vec<Write>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Written, at this revision.
    Committed(i64),
    /// A condition did not hold; nothing was written.
    Refused,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store does not answer ({endpoints}): {why}")]
    Unreachable { endpoints: String, why: String },
    /// The write may have happened or not: read before doing anything else.
    #[error("no answer to a write, it may have happened or not ({endpoints}): {why}")]
    OutcomeUnknown { endpoints: String, why: String },
    #[error("the store refuses this node: {why}")]
    Denied { why: String },
    #[error("the store is full (NOSPACE alarm); releases still work")]
    NoSpace,
    #[error("the store at {path} cannot be used")]
    Local { path: String, source: rusqlite::Error },
    #[error("bad store settings: {why}")]
    Settings { why: String },
}

/// A running watch; dropping it ends it.
pub struct Watch {
    _guard: Box<dyn std::any::Any + Send>,
}

impl Watch {
    pub fn new(guard: impl std::any::Any + Send) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

pub trait LockStore: Send + Sync {
    /// Which store this is, for the pin against a replaced or foreign one (etcd's cluster id, a local file's own).
    fn identity(&self) -> Result<String, StoreError>;

    /// All entries below these prefixes, at one revision. A prefix without a trailing `/` is one key.
    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError>;

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// Calls `on_change` (from another thread, soon after, possibly once for many) when anything below one of the
    /// prefixes was written or deleted, and also when the watch itself had to be set up again. A hint, never evidence.
    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError>;
}
