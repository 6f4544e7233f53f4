//! The ledger: what we own on this node, what each unit was started with, what was applied and when.
//!
//! One SQLite file, written with full durability before the host is touched. The version before this one must be able to
//! read it: rows are JSON, unknown fields are ignored. Never: a secret's value; never: a stand-in for looking at the host.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::name::{HostPath, UnitName};
use crate::plan::{Known, Owned, Pending, RanWith};
use crate::report::At;
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
        // One process (the agent's own lock sees to it); a rollback journal needs no second file between runs.
        db.execute_batch("PRAGMA synchronous = FULL; PRAGMA locking_mode = NORMAL; PRAGMA busy_timeout = 2000;")
            .map_err(failed("configure"))?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read"))?;
        if version == 0 {
            db.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = 1; COMMIT;")).map_err(failed("create"))?;
        }
        Ok(Self { db, path: path.to_owned() })
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
        for (name, ran) in self.rows::<RanWith>("SELECT name, json FROM units")? {
            known.units.insert(UnitName::new(name), ran);
        }
        for (name, pending) in self.rows::<Pending>("SELECT name, json FROM pending")? {
            known.pending.insert(UnitName::new(name), pending);
        }
        Ok(known)
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
        let known = self.known()?;
        let rows = ids.iter().map(|(id, inputs)| {
            let before = known.owned.get(id);
            let owned = Owned {
                inputs: *inputs,
                content: before.and_then(|owned| owned.content),
                stamp: before.and_then(|owned| owned.stamp),
                written: false,
                keep: before.is_some_and(|owned| owned.keep),
            };
            (id.clone(), owned)
        });
        let rows: Vec<_> = rows.collect();
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
        let json: Option<String> = self
            .db
            .query_row("SELECT json FROM facts WHERE name = ?1", [name], |row| row.get(0))
            .optional()
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

    pub fn seal(&self) -> Result<Option<Seal>, LedgerError> {
        self.fact("seal")
    }

    pub fn set_seal(&mut self, seal: Option<&Seal>) -> Result<(), LedgerError> {
        self.state("seal", seal)
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
