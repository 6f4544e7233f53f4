//! What a transaction does to an ordered map with revisions: etcd's rules, as one function of a plain value.
//!
//! The fake store is this behind a lock, and the model checker this in every state. PURE. Never: an expiry, a watch, or
//! a failure; those are the store's.

use std::collections::BTreeMap;

use crate::lock::store::{Condition, Entry, Key, Outcome, Snapshot, Transaction, Write, range};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    pub revision: i64,
    pub entries: BTreeMap<Key, Entry>,
}

impl Default for Keys {
    /// Empty, at etcd's first revision.
    fn default() -> Self {
        Self { revision: 1, entries: BTreeMap::new() }
    }
}

impl Keys {
    /// Everything below these prefixes, each once and by key. A prefix without a trailing `/` is one key.
    pub fn read(&self, prefixes: &[&str]) -> Snapshot {
        let found: BTreeMap<_, _> =
            prefixes.iter().flat_map(|prefix| self.below(prefix)).map(|entry| (&entry.key, entry)).collect();
        Snapshot { revision: self.revision, entries: found.into_values().cloned().collect() }
    }

    /// All of it or nothing. With it the keys that changed; none, and the revision stays.
    pub fn commit(&mut self, transaction: &Transaction) -> (Outcome, Vec<Key>) {
        if !transaction.when.iter().all(|condition| self.holds(condition)) {
            return (Outcome::Refused, Vec::new());
        }
        let changed = self.write(&transaction.then);
        (Outcome::Committed(self.revision), changed)
    }

    fn below(&self, prefix: &str) -> impl Iterator<Item = &Entry> {
        let (from, to) = range(prefix);
        self.entries.range(from..to).map(|(_, entry)| entry)
    }

    fn holds(&self, condition: &Condition) -> bool {
        let entry = |key: &Key| self.entries.get(key);
        match condition {
            Condition::Absent(key) => entry(key).is_none(),
            Condition::CreatedAt(key, revision) => entry(key).is_some_and(|entry| entry.create_revision == *revision),
            Condition::ModifiedAt(key, revision) => entry(key).map_or(0, |entry| entry.mod_revision) == *revision,
            Condition::RangeEmpty(prefix) => self.below(prefix).next().is_none(),
            Condition::RangeUntouchedSince(prefix, revision) => {
                self.below(prefix).all(|entry| entry.mod_revision <= *revision)
            }
        }
    }

    fn write(&mut self, writes: &[Write]) -> Vec<Key> {
        let revision = self.revision + 1;
        let mut changed = Vec::new();
        for write in writes {
            match write {
                Write::Put(key, value) | Write::PutFor(key, value, _) => {
                    let create_revision = self.entries.get(key).map_or(revision, |entry| entry.create_revision);
                    let entry =
                        Entry { key: key.clone(), value: value.clone(), create_revision, mod_revision: revision };
                    self.entries.insert(key.clone(), entry);
                    changed.push(key.clone());
                }
                Write::Delete(key) => changed.extend(self.entries.remove(key).map(|entry| entry.key)),
            }
        }
        if !changed.is_empty() {
            self.revision = revision;
        }
        changed
    }
}
