//! What a store must do for the hold protocol: read several ranges at one revision, and commit conditional writes.
//!
//! The same protocol code runs over every store. Keys are relative to the environment's prefix
//! (`/converger/<fleet>/<environment>/`), which the store adds. Revisions behave as in etcd: one counter for the whole
//! store that every commit with at least one write raises by one; a key keeps its `create` revision until it is deleted.
//! Never: an interpretation of a value.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::etcd::{EtcdStore, Server};
use super::local::LocalStore;
use crate::clock::SystemClock;
use crate::settings::Store;

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

/// A condition of a transaction. Prefixes are those of [`LockStore::read`]: without a trailing `/` it is one key.
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
    /// A key at most once.
    pub then: Vec<Write>,
}

impl Transaction {
    /// What etcd would refuse is refused by every store, so that a test over the fake finds it.
    pub(super) fn well_formed(&self) -> Result<(), StoreError> {
        let malformed = |why: String| Err(StoreError::Settings { why });
        let needs = self.when.len().max(self.then.len());
        if needs > OPERATIONS_MAX {
            return Err(StoreError::TooLarge { needs });
        }
        let mut keys = BTreeSet::new();
        match self.then.iter().find(|write| !keys.insert(write.key())) {
            Some(twice) => malformed(format!("a transaction that writes {} twice", twice.key())),
            None => Ok(()),
        }
    }
}

impl Write {
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::PutFor(key, _, _) | Self::Delete(key) => key,
        }
    }
}

/// Of conditions, and of writes, in one transaction: etcd's own default (`--max-txn-ops`).
pub const OPERATIONS_MAX: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done at this revision (the store's present one when there was nothing to write or to delete).
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
    /// A write that was answered like this may have happened (etcd raises the alarm while it applies): read first.
    #[error("the store is full (NOSPACE alarm); releases still work")]
    NoSpace,
    #[error("the store at {path} cannot be used")]
    Local { path: String, source: rusqlite::Error },
    /// Groups, their former names and their conflicts are taken in one transaction, or not at all.
    #[error(
        "too many groups at once: one transaction would need {needs} conditions or writes, the store takes {OPERATIONS_MAX}"
    )]
    TooLarge { needs: usize },
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

/// Called from outside a runtime's own threads: every method waits for its answer, at most a few seconds.
pub trait LockStore: Send + Sync {
    /// Which store this is, for the pin against a replaced or foreign one (etcd's cluster id, a local file's own).
    fn identity(&self) -> Result<String, StoreError>;

    /// All entries below these prefixes, at one revision, each once and by key. A prefix without a trailing `/` is one
    /// key; the empty prefix is the whole environment.
    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError>;

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// Calls `on_change` (from another thread, soon after, possibly once for many) when anything below one of the
    /// prefixes was written or deleted, and also when the watch itself had to be set up again. A hint, never evidence.
    /// Watch first and read then: what changes after this returned is told. `on_change` hands the news on and returns:
    /// it must not wait, nor call this store. A store that does not answer is no error here: the watch begins when it
    /// answers again.
    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError>;

    /// What people should know of the servers that answered so far. None of it keeps anybody from working.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The end of the range of keys that begins with this prefix; none if it names one key.
pub(super) fn range_end(prefix: &str) -> Option<String> {
    // '0' is the character after '/'.
    prefix.strip_suffix('/').map(|folder| format!("{folder}0"))
}

/// The same with an end for one key too: nothing sorts between a key and the key with a NUL after it.
pub(super) fn range(prefix: &str) -> (String, String) {
    if prefix.is_empty() {
        return (String::new(), char::MAX.to_string());
    }
    (prefix.to_owned(), range_end(prefix).unwrap_or_else(|| format!("{prefix}\0")))
}

/// Where the store is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreKind {
    Etcd {
        /// `https://host:2379`, or `http://` without certificates.
        endpoints: Vec<String>,
        ca: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
    },
    /// One SQLite file for the processes of one machine; made when it is not there.
    Local { path: PathBuf },
}

impl From<Store> for StoreKind {
    fn from(store: Store) -> Self {
        match store {
            Store::Etcd { endpoints, ca, cert, key } => {
                Self::Etcd { endpoints, ca: Some(ca), cert: Some(cert), key: Some(key) }
            }
            Store::Local { path } => Self::Local { path },
        }
    }
}

/// The store of one environment. An etcd that does not answer is found out by the first call, not here.
pub fn open(kind: StoreKind, fleet: &str, environment: &str) -> Result<Box<dyn LockStore>, StoreError> {
    let root = format!("/converger/{fleet}/{environment}/");
    Ok(match kind {
        StoreKind::Etcd { endpoints, ca, cert, key } => {
            Box::new(EtcdStore::open(Server { endpoints, ca, cert, key }, root)?)
        }
        StoreKind::Local { path } => Box::new(LocalStore::open(&path, root, Arc::new(SystemClock))?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_a_range_and_anything_else_is_one_key() {
        assert_eq!(range("hold/g/"), ("hold/g/".into(), "hold/g0".into()));
        assert_eq!(range("hold/g"), ("hold/g".into(), "hold/g\0".into()));
    }

    #[test]
    fn a_key_is_written_once() {
        let write = |key: &str| Write::Delete(key.into());
        let transaction = |then| Transaction { when: vec![], then };
        assert!(transaction(vec![write("a"), write("b")]).well_formed().is_ok());
        let error = transaction(vec![write("a"), Write::Put("a".into(), vec![])]).well_formed().unwrap_err();
        assert_eq!(error.to_string(), "bad store settings: a transaction that writes a twice");
        let many = (0..129).map(|n| write(&n.to_string())).collect();
        assert!(transaction(many).well_formed().is_err());
    }
}
