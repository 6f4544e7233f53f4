//! The ledger: what we own on this node, what each unit was started with, what was applied and when.
//!
//! One SQLite file, written with full durability before the host is touched. The version before this one must be able to
//! read it: rows are JSON, unknown fields are ignored. Never: a secret's value; never: a stand-in for looking at the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::name::{GroupId, HostPath, SecretName, UnitName};
use crate::plan::{Known, Owned, Pending, RanWith, SecretSeen};
use crate::report::{At, Proof};
use crate::resource::file::Stamp;
use crate::resource::{Digest, Id};

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {operation} the ledger {path}")]
    Sqlite { operation: &'static str, path: String, source: rusqlite::Error },
}

pub struct Ledger {
    db: Connection,
    path: PathBuf,
    /// As last read or written; `None`: not looked yet. An agent asks for it at every wake-up.
    seal: Option<Option<Seal>>,
}

/// What a converged run left behind: if all of it is as it was, there is nothing to do and nothing to render.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Seal {
    /// Digest of everything that the desired state depends on besides the commit: agent version, settings, identities.
    pub key: Digest,
    pub at: At,
    pub files: Vec<(HostPath, Stamp, Digest)>,
    /// Units and the run that they were in.
    pub units: Vec<(UnitName, String)>,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS owned (id TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS units (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS pending (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS history (n INTEGER PRIMARY KEY, at TEXT NOT NULL, json TEXT NOT NULL);
";
/// How much history is kept.
const HISTORY_MAX: i64 = 1000;

impl Ledger {
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let failed =
            |operation| move |source| LedgerError::Sqlite { operation, path: path.display().to_string(), source };
        let db = Connection::open(path).map_err(failed("open"))?;
        // One process, as the agent's own lock sees to. A write-ahead log is durable with one fsync a transaction, where
        // a rollback journal takes four.
        db.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(failed("configure"))?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read"))?;
        if version == 0 {
            db.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = 1; COMMIT;")).map_err(failed("create"))?;
        }
        Ok(Self { db, path: path.to_owned(), seal: None })
    }

    fn failed(&self, operation: &'static str) -> impl Fn(rusqlite::Error) -> LedgerError + '_ {
        move |source| LedgerError::Sqlite { operation, path: self.path.display().to_string(), source }
    }

    pub fn known(&self) -> Result<Known, LedgerError> {
        let mut known = Known::default();
        for (id, owned) in self.rows::<Owned>("SELECT id, json FROM owned")? {
            if let Ok(id) = serde_json::from_str::<Id>(&id) {
                known.owned.insert(id, owned);
            }
        }
        known.units = self.units()?;
        for (name, pending) in self.rows::<Pending>("SELECT name, json FROM pending")? {
            known.pending.insert(UnitName::new(name), pending);
        }
        known.secrets = self.fact("secrets")?.unwrap_or_default();
        Ok(known)
    }

    /// What the node's secrets are from now on; those that cannot be opened now are remembered as they were.
    pub fn saw_secrets(&mut self, now: Vec<(SecretName, SecretSeen)>) -> Result<(), LedgerError> {
        let before: BTreeMap<SecretName, SecretSeen> = self.fact("secrets")?.unwrap_or_default();
        let mut after = before.clone();
        after.extend(now);
        if after == before { Ok(()) } else { self.state("secrets", Some(&after)) }
    }

    /// What each unit runs with.
    pub fn units(&self) -> Result<BTreeMap<UnitName, RanWith>, LedgerError> {
        let rows = self.rows("SELECT name, json FROM units")?;
        Ok(rows.into_iter().map(|(name, ran)| (UnitName::new(name), ran)).collect())
    }

    fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<(String, T)>, LedgerError> {
        let mut statement = self.db.prepare(sql).map_err(self.failed("read"))?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .map_err(self.failed("read"))?;
        let rows: Vec<(String, String)> = rows.collect::<Result<_, _>>().map_err(self.failed("read"))?;
        // A row that a newer version wrote and we cannot read is a row that we do not have.
        Ok(rows.into_iter().filter_map(|(key, json)| Some((key, serde_json::from_str(&json).ok()?))).collect())
    }

    /// "This will be ours": before the first write of it.
    pub fn intend(&mut self, ids: &[(Id, Digest)]) -> Result<(), LedgerError> {
        let mut rows = Vec::with_capacity(ids.len());
        for (id, inputs) in ids {
            let before: Option<Owned> = self.one("SELECT json FROM owned WHERE id = ?1", &key_of(id))?;
            let owned = Owned {
                inputs: *inputs,
                content: before.as_ref().and_then(|owned| owned.content),
                stamp: before.as_ref().and_then(|owned| owned.stamp),
                written: false,
                secret: before.as_ref().is_some_and(|owned| owned.secret),
                keep: before.is_some_and(|owned| owned.keep),
            };
            rows.push((id.clone(), owned));
        }
        self.own(&rows)
    }

    pub fn own(&mut self, rows: &[(Id, Owned)]) -> Result<(), LedgerError> {
        self.all(rows.iter().map(|(id, owned)| ("owned", key_of(id), Some(json(owned)))))
    }

    pub fn disown(&mut self, ids: &[Id]) -> Result<(), LedgerError> {
        self.all(ids.iter().map(|id| ("owned", key_of(id), None)))
    }

    pub fn pend(&mut self, units: &[(UnitName, Pending)]) -> Result<(), LedgerError> {
        self.all(units.iter().map(|(unit, pending)| ("pending", unit.to_string(), Some(json(pending)))))
    }

    /// The unit runs with this; nothing is pending for it any more.
    pub fn ran(&mut self, units: &[(UnitName, RanWith)]) -> Result<(), LedgerError> {
        self.all(units.iter().flat_map(|(unit, ran)| {
            [("units", unit.to_string(), Some(json(ran))), ("pending", unit.to_string(), None)]
        }))
    }

    pub fn forget_units(&mut self, units: &[UnitName]) -> Result<(), LedgerError> {
        self.all(units.iter().flat_map(|unit| [("units", unit.to_string(), None), ("pending", unit.to_string(), None)]))
    }

    fn all(&mut self, writes: impl Iterator<Item = (&'static str, String, Option<String>)>) -> Result<(), LedgerError> {
        let path = self.path.display().to_string();
        let failed = |source| LedgerError::Sqlite { operation: "write", path: path.clone(), source };
        let transaction = self.db.transaction().map_err(failed)?;
        let mut any = false;
        for (table, key, value) in writes {
            any = true;
            let column = if table == "owned" { "id" } else { "name" };
            match value {
                Some(json) => transaction
                    .prepare_cached(&format!("INSERT OR REPLACE INTO {table} ({column}, json) VALUES (?1, ?2)"))
                    .and_then(|mut statement| statement.execute(params![key, json])),
                None => transaction
                    .prepare_cached(&format!("DELETE FROM {table} WHERE {column} = ?1"))
                    .and_then(|mut statement| statement.execute(params![key])),
            }
            .map_err(failed)?;
        }
        if any { transaction.commit().map_err(failed) } else { Ok(()) }
    }

    fn fact<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, LedgerError> {
        self.one("SELECT json FROM facts WHERE name = ?1", name)
    }

    fn one<T: DeserializeOwned>(&self, sql: &str, key: &str) -> Result<Option<T>, LedgerError> {
        let json: Option<String> = self
            .db
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row([key], |row| row.get(0)).optional())
            .map_err(self.failed("read"))?;
        Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
    }

    fn state<T: Serialize>(&mut self, name: &'static str, value: Option<&T>) -> Result<(), LedgerError> {
        self.all([("facts", name.to_owned(), value.map(json))].into_iter())
    }

    /// The newest commit whose whole content is good for this node: what is enforced while a newer one has problems.
    pub fn good(&self) -> Result<Option<At>, LedgerError> {
        self.fact("good")
    }

    pub fn set_good(&mut self, at: &At) -> Result<(), LedgerError> {
        self.state("good", Some(at))
    }

    /// The commit that is wholly live.
    pub fn applied(&self) -> Result<Option<At>, LedgerError> {
        self.fact("applied")
    }

    /// Also a line of history.
    pub fn set_applied(&mut self, at: &At, now: Timestamp, what: &str) -> Result<(), LedgerError> {
        self.state("applied", Some(at))?;
        self.db
            .execute(
                "INSERT INTO history (at, json) VALUES (?1, ?2)",
                params![now.to_string(), json(&serde_json::json!({ "at": at, "what": what }))],
            )
            .and_then(|_| {
                self.db
                    .execute("DELETE FROM history WHERE n <= (SELECT max(n) FROM history) - ?1", params![HISTORY_MAX])
            })
            .map_err(self.failed("write"))?;
        Ok(())
    }

    /// The commits with which this node's members have settled under a hold: the last one of each group.
    pub fn proven(&self) -> Result<BTreeMap<GroupId, Proof>, LedgerError> {
        Ok(self.fact("proven")?.unwrap_or_default())
    }

    pub fn prove<'g>(&mut self, groups: impl Iterator<Item = &'g GroupId>, seq: u64) -> Result<(), LedgerError> {
        let mut proven = self.proven()?;
        proven.extend(groups.map(|group| (group.clone(), Proof { seq })));
        self.state("proven", Some(&proven))
    }

    pub fn seal(&mut self) -> Result<Option<&Seal>, LedgerError> {
        if self.seal.is_none() {
            self.seal = Some(self.fact("seal")?);
        }
        Ok(self.seal.as_ref().and_then(Option::as_ref))
    }

    pub fn set_seal(&mut self, seal: Option<Seal>) -> Result<(), LedgerError> {
        if self.seal()? != seal.as_ref() {
            self.state("seal", seal.as_ref())?;
            self.seal = Some(seal);
        }
        Ok(())
    }

    pub fn drift_repaired(&self) -> Result<u64, LedgerError> {
        Ok(self.fact("drift_repaired")?.unwrap_or(0))
    }

    pub fn count_drift(&mut self, more: u64) -> Result<u64, LedgerError> {
        let total = self.drift_repaired()? + more;
        if more > 0 {
            self.state("drift_repaired", Some(&total))?;
        }
        Ok(total)
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data serializes")
}

fn key_of(id: &Id) -> String {
    json(id)
}
