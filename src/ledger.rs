//! The ledger: what we own on this node, what each unit was started with, what was applied and when.
//!
//! One SQLite file, written with full durability before the host is touched. The version before this one must be able to
//! read it: rows are JSON, unknown fields are ignored. What a secret touched is told by fingerprints, whose key lies beside
//! the ledger. Never: a secret's value, or a plain digest of one; never: a stand-in for looking at the host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use ring::rand::SecureRandom as _;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::disk::{self, DiskError};
use crate::name::{GroupId, HostPath, NodeName, SecretName, UnitName};
use crate::plan::fight::Fights;
use crate::plan::known::Uses;
use crate::plan::reboot::Booted;
use crate::plan::risk::Undo;
use crate::plan::{Known, Owned, Pending, RanWith, SecretSeen};
use crate::report::{At, Proof};
use crate::resource::file::Stamp;
use crate::resource::{Digest, Id, UnitState};
use crate::secrets::fingerprint::{Fingerprint, Fingerprints, KEY_BYTES};
use crate::trust::VerifiedCommit;
use crate::trust::commit::Allowance;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {operation} the ledger {path}")]
    Sqlite { operation: &'static str, path: String, source: rusqlite::Error },
    #[error("the key of the ledger cannot be kept")]
    Key(#[source] DiskError),
    #[error("{path} is not the ledger's key; remove it, and files and secrets are compared anew")]
    NoKey { path: String },
    #[error("the ledger {path} is of format {found}, this converger knows {FORMAT}: run the newer agent that wrote it")]
    Newer { path: String, found: i64 },
    #[error("the kernel gives no randomness for the ledger's key")]
    Random,
}

/// Table, key and JSON of a row; `None`: it goes.
type Write = (&'static str, String, Option<String>);

pub struct Ledger {
    db: Connection,
    path: PathBuf,
    fingerprints: Fingerprints,
    /// As last read or written; `None`: not looked yet. An agent asks for them at every wake-up.
    seal: Option<Option<Seal>>,
    peers: Option<Vec<NodeName>>,
}

/// What is about to be written for the first time, or anew.
pub struct Intention {
    pub id: Id,
    pub inputs: Digest,
    /// A secret is in it.
    pub secret: bool,
    /// A tool must act on it.
    pub owed: bool,
}

/// What a converged run left behind: if all of it is as it was, there is nothing to do and nothing to render.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Seal {
    /// Digest of everything that the desired state depends on besides the commit: agent version, settings, identities.
    pub key: Digest,
    pub at: At,
    pub files: Vec<(HostPath, Stamp)>,
    /// Units as they were: started or stopped by hand, masked, disabled is another state.
    pub units: Vec<(UnitName, UnitState)>,
}

/// A guard that a verified commit lifts until that commit is applied.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
struct Lifted {
    /// Number of the commit on the branch.
    seq: u64,
    #[serde(flatten)]
    what: Allowance,
}

/// It rises only in a release whose predecessor can read the new format already: an update must leave the way back open.
/// Fields of rows and facts are only ever added, and each has a default.
const FORMAT: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS owned (id TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS units (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS pending (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS history (n INTEGER PRIMARY KEY, at TEXT NOT NULL, json TEXT NOT NULL);
";
/// For a ledger of another key, or of none: the first ones kept plain digests, from which a short password can be guessed.
/// They go, also from the pages of the file; the versions of secrets stay, as a floor.
const FORGET_CONTENTS: &str = "
    PRAGMA temp_store = MEMORY;
    BEGIN;
    UPDATE owned SET json = json_set(json, '$.content', NULL, '$.stamp', NULL);
    UPDATE OR REPLACE facts SET name = 'secrets_seen', json = (
        SELECT json_group_object(key, json_object('version', json_extract(value, '$.version'), 'value', NULL))
        FROM json_each(facts.json)
    ) WHERE name IN ('secrets', 'secrets_seen');
    DELETE FROM facts WHERE name = 'seal';
    COMMIT;
    VACUUM;
    PRAGMA wal_checkpoint(TRUNCATE);
";
/// An agent and those who look at its ledger are quick.
const BUSY: Duration = Duration::from_secs(5);
/// How much history is kept.
const HISTORY_MAX: i64 = 1000;

impl Ledger {
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let failed =
            |operation| move |source| LedgerError::Sqlite { operation, path: path.display().to_string(), source };
        let db = Connection::open(path).map_err(failed("open"))?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read"))?;
        if version > FORMAT {
            return Err(LedgerError::Newer { path: path.display().to_string(), found: version });
        }
        // One process writes, as the agent's own lock sees to; others may look. A write-ahead log is durable with one fsync
        // a transaction, where a rollback journal takes four.
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;")
            .and_then(|()| db.busy_timeout(BUSY))
            .map_err(failed("configure"))?;
        if version == 0 {
            db.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"))
                .map_err(failed("create"))?;
        }
        let mut ledger = Self { fingerprints: fingerprints(path)?, db, path: path.to_owned(), seal: None, peers: None };
        let key = ledger.fingerprints.of(Digest::of(b"the key of this ledger"));
        if ledger.fact::<Fingerprint>("key")? != Some(key) {
            ledger.db.execute_batch(FORGET_CONTENTS).map_err(failed("forget the contents in"))?;
            ledger.state("key", Some(&key))?;
        }
        Ok(ledger)
    }

    /// To look at, also while an agent runs. A node without a ledger owns nothing.
    pub fn look(path: &Path) -> Result<Self, LedgerError> {
        let failed =
            |operation| move |source| LedgerError::Sqlite { operation, path: path.display().to_string(), source };
        let db = if path.exists() {
            let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("open"))?;
            db.busy_timeout(BUSY).map_err(failed("configure"))?;
            db
        } else {
            let db = Connection::open_in_memory().map_err(failed("open"))?;
            db.execute_batch(SCHEMA).map_err(failed("create"))?;
            db
        };
        // Without its key nothing that is remembered matches, as with another one.
        let fingerprints = key_of_fingerprints(path)?.unwrap_or_else(|| Fingerprints::keyed(&[0; KEY_BYTES]));
        Ok(Self { fingerprints, db, path: path.to_owned(), seal: None, peers: None })
    }

    pub fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
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
        known.along = self.fact("along")?.unwrap_or_default();
        known.secrets = self.fact("secrets_seen")?.unwrap_or_default();
        known.standing = self.standing()?.unwrap_or_default();
        known.uses = self.uses()?;
        known.has_settled = self.applied()?.is_some() || known.units.values().any(|ran| ran.settled);
        known.booted = self.booted()?;
        known.rolled_back = self.fact("rolled_back")?.unwrap_or_default();
        Ok(known)
    }

    /// What the node's secrets are from now on; those that cannot be opened now are remembered as they were.
    pub fn saw_secrets(&mut self, now: Vec<(SecretName, SecretSeen)>) -> Result<(), LedgerError> {
        let before: BTreeMap<SecretName, SecretSeen> = self.fact("secrets_seen")?.unwrap_or_default();
        let mut after = before.clone();
        after.extend(now);
        if after == before { Ok(()) } else { self.state("secrets_seen", Some(&after)) }
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

    pub fn owned(&self, id: &Id) -> Result<Option<Owned>, LedgerError> {
        self.one("SELECT json FROM owned WHERE id = ?1", &key_of(id))
    }

    /// Files that were put back lately.
    pub fn fights(&self) -> Result<Fights, LedgerError> {
        Ok(self.fact("fights")?.unwrap_or_default())
    }

    pub fn set_fights(&mut self, fights: &Fights) -> Result<(), LedgerError> {
        if self.fights()? == *fights { Ok(()) } else { self.state("fights", Some(fights)) }
    }

    /// "This will be ours": before the first write of it.
    pub fn intend(&mut self, intentions: &[Intention]) -> Result<(), LedgerError> {
        let mut rows = Vec::with_capacity(intentions.len());
        for Intention { id, inputs, secret, owed } in intentions {
            let before = self.owned(id)?;
            let owned = Owned {
                inputs: *inputs,
                content: before.as_ref().and_then(|owned| owned.content),
                stamp: before.as_ref().and_then(|owned| owned.stamp),
                written: false,
                secret: before.as_ref().is_some_and(|owned| owned.secret),
                secret_comes: *secret || before.as_ref().is_some_and(|owned| owned.secret_comes),
                owed: *owed,
                keep: before.is_some_and(|owned| owned.keep),
            };
            rows.push((id.clone(), owned));
        }
        self.own(&rows)
    }

    pub fn own(&mut self, rows: &[(Id, Owned)]) -> Result<(), LedgerError> {
        self.all(rows.iter().map(|(id, owned)| ("owned", key_of(id), Some(json(owned)))))
    }

    /// The tool that this file is for has acted on it.
    pub fn activated(&mut self, path: &HostPath) -> Result<(), LedgerError> {
        let id = Id { kind: crate::resource::Kind::File, name: path.to_string() };
        match self.one::<Owned>("SELECT json FROM owned WHERE id = ?1", &key_of(&id))? {
            Some(owned) if owned.owed => self.own(&[(id, Owned { owed: false, ..owned })]),
            _ => Ok(()),
        }
    }

    /// These units are about to be stopped along with others: they are owed a start.
    pub fn take_along(&mut self, units: &[UnitName]) -> Result<(), LedgerError> {
        self.set_along(|along| along.extend(units.iter().cloned()))
    }

    /// They run again, or are gone.
    pub fn bring_back(&mut self, units: &[UnitName]) -> Result<(), LedgerError> {
        self.set_along(|along| along.retain(|unit| !units.contains(unit)))
    }

    fn set_along(&mut self, change: impl FnOnce(&mut BTreeSet<UnitName>)) -> Result<(), LedgerError> {
        let before: BTreeSet<UnitName> = self.fact("along")?.unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        if after == before { Ok(()) } else { self.state("along", Some(&after)) }
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

    fn all(&mut self, writes: impl Iterator<Item = Write>) -> Result<(), LedgerError> {
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
        self.set_lifted(|lifted| lifted.retain(|lifted| lifted.seq > at.seq))?;
        self.note(now, &serde_json::json!({ "at": at, "what": what }))
    }

    pub fn booted(&self) -> Result<Booted, LedgerError> {
        Ok(self.fact("booted")?.unwrap_or_default())
    }

    pub fn set_booted(&mut self, booted: &Booted) -> Result<(), LedgerError> {
        if self.booted()? == *booted { Ok(()) } else { self.state("booted", Some(booted)) }
    }

    /// A batch was put back before anybody had looked at what it did: the agent or the machine ended. It is tried once more;
    /// the second time it may well be the reason.
    pub fn interrupted(&mut self, undo: &Undo, why: &str) -> Result<(), LedgerError> {
        let mut before: BTreeSet<String> = self.fact("interrupted")?.unwrap_or_default();
        let refused: BTreeMap<String, String> = self.fact("rolled_back")?.unwrap_or_default();
        if !before.insert(undo.digest.to_string()) || refused.contains_key(&undo.digest.to_string()) {
            return self.undone(undo, why);
        }
        self.put_back(undo, [("facts", "interrupted".to_owned(), Some(json(&before)))])
    }

    fn uses(&self) -> Result<Uses, LedgerError> {
        Ok(self.fact::<Vec<(Id, BTreeSet<UnitName>)>>("uses")?.unwrap_or_default().into_iter().collect())
    }

    pub fn set_uses(&mut self, uses: &Uses) -> Result<(), LedgerError> {
        if self.uses()? == *uses {
            return Ok(());
        }
        // Ids are no keys of JSON.
        self.state("uses", Some(&uses.iter().collect::<Vec<_>>()))
    }

    pub fn was_interrupted(&self, undo: &Undo) -> Result<bool, LedgerError> {
        let before: BTreeSet<String> = self.fact("interrupted")?.unwrap_or_default();
        Ok(before.contains(&undo.digest.to_string()))
    }

    /// A batch was put back for what it did: what is remembered of it is as it was, and its content is not tried again.
    pub fn undone(&mut self, undo: &Undo, why: &str) -> Result<(), LedgerError> {
        let mut rolled_back: BTreeMap<String, String> = self.fact("rolled_back")?.unwrap_or_default();
        for digest in undo.contents.iter().chain([&undo.digest]) {
            rolled_back.insert(digest.to_string(), why.to_owned());
        }
        self.put_back(undo, [("facts", "rolled_back".to_owned(), Some(json(&rolled_back)))])
    }

    fn put_back(&mut self, undo: &Undo, fact: [Write; 1]) -> Result<(), LedgerError> {
        let owned = undo.owned.iter().map(|(id, owned)| ("owned", key_of(id), owned.as_ref().map(json)));
        let units = undo.units.iter().flat_map(|(unit, ran)| {
            [("units", unit.to_string(), ran.as_ref().map(json)), ("pending", unit.to_string(), None)]
        });
        self.all(owned.chain(units).chain(fact))
    }

    /// Forgets what was rolled back and is wanted no more, and so what was interrupted.
    pub fn keep_rolled_back(&mut self, wanted: &BTreeSet<String>) -> Result<(), LedgerError> {
        let before: BTreeSet<String> = self.fact("interrupted")?.unwrap_or_default();
        if !before.is_subset(wanted) {
            self.state("interrupted", Some(&before.intersection(wanted).collect::<BTreeSet<_>>()))?;
        }
        let mut rolled_back: BTreeMap<String, String> = self.fact("rolled_back")?.unwrap_or_default();
        let before = rolled_back.len();
        rolled_back.retain(|digest, _| wanted.contains(digest));
        if rolled_back.len() == before { Ok(()) } else { self.state("rolled_back", Some(&rolled_back)) }
    }

    /// A line of history.
    pub fn note(&mut self, now: Timestamp, what: &serde_json::Value) -> Result<(), LedgerError> {
        self.db
            .execute("INSERT INTO history (at, json) VALUES (?1, ?2)", params![now.to_string(), json(what)])
            .and_then(|_| {
                self.db
                    .execute("DELETE FROM history WHERE n <= (SELECT max(n) FROM history) - ?1", params![HISTORY_MAX])
            })
            .map_err(self.failed("write"))?;
        Ok(())
    }

    /// Notes what these commits lift, in place of whatever was noted beyond number `floor`. Before the floor itself moves:
    /// a commit is judged once, and its trailers cannot be asked for again.
    pub fn lift(&mut self, floor: u64, commits: &[VerifiedCommit]) -> Result<(), LedgerError> {
        let applied = self.applied()?;
        // Of a chain that is judged from its beginning, what is applied already counts no more.
        let done = applied.and_then(|at| commits.iter().position(|commit| commit.id == at.commit));
        let new = commits
            .iter()
            .skip(done.map_or(0, |index| index + 1))
            .flat_map(|commit| commit.allowances.iter().map(|what| Lifted { seq: commit.seq, what: what.clone() }));
        self.set_lifted(|lifted| {
            lifted.retain(|lifted| lifted.seq <= floor);
            lifted.extend(new);
        })
    }

    /// Guards lifted by commits up to number `seq` that are new since the applied one. A lost ledger lifts none.
    pub fn lifted(&self, seq: u64) -> Result<Vec<Allowance>, LedgerError> {
        let lifted: Vec<Lifted> = self.fact("lifted")?.unwrap_or_default();
        Ok(lifted.into_iter().filter(|lifted| lifted.seq <= seq).map(|lifted| lifted.what).collect())
    }

    fn set_lifted(&mut self, change: impl FnOnce(&mut Vec<Lifted>)) -> Result<(), LedgerError> {
        let before: Vec<Lifted> = self.fact("lifted")?.unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        if after == before { Ok(()) } else { self.state("lifted", Some(&after)) }
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

    /// The nodes that the topology named last.
    pub fn peers(&mut self) -> Result<&[NodeName], LedgerError> {
        if self.peers.is_none() {
            self.peers = Some(self.fact("peers")?.unwrap_or_default());
        }
        Ok(self.peers.as_deref().unwrap_or_default())
    }

    /// `nodes`: all of the topology; `standing`: those of them that are not retired.
    pub fn set_peers(&mut self, nodes: Vec<NodeName>, standing: &[NodeName]) -> Result<(), LedgerError> {
        if self.peers()? != nodes {
            self.state("peers", Some(&nodes))?;
            self.peers = Some(nodes);
        }
        if self.standing()?.as_deref() != Some(standing) {
            self.state("standing", Some(&standing))?;
        }
        Ok(())
    }

    /// `None`: from before it was kept.
    fn standing(&self) -> Result<Option<Vec<NodeName>>, LedgerError> {
        self.fact("standing")
    }

    /// Since when peers know more of the branch than this node is shown.
    pub fn behind_since(&self) -> Result<Option<Timestamp>, LedgerError> {
        self.fact("behind_since")
    }

    pub fn set_behind_since(&mut self, since: Option<Timestamp>) -> Result<(), LedgerError> {
        if self.behind_since()? != since {
            self.state("behind_since", since.as_ref())?;
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

/// With the key beside the ledger; a new one where there is none: then nothing that is remembered matches, and everything is
/// looked at again.
fn fingerprints(ledger: &Path) -> Result<Fingerprints, LedgerError> {
    if let Some(fingerprints) = key_of_fingerprints(ledger)? {
        return Ok(fingerprints);
    }
    let path = key_path(ledger);
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    ring::rand::SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| LedgerError::Random)?;
    disk::write_atomic(&path, key.as_slice(), 0o600).map_err(LedgerError::Key)?;
    Ok(Fingerprints::keyed(&key))
}

fn key_path(ledger: &Path) -> PathBuf {
    ledger.with_extension("key")
}

/// `None`: there is none.
fn key_of_fingerprints(ledger: &Path) -> Result<Option<Fingerprints>, LedgerError> {
    let path = key_path(ledger);
    let found = disk::read_bounded(&path, KEY_BYTES as u64).map_err(LedgerError::Key)?.map(Zeroizing::new);
    let Some(found) = found else { return Ok(None) };
    let key = found.as_slice().try_into();
    key.map(|key| Some(Fingerprints::keyed(key))).map_err(|_| LedgerError::NoKey { path: path.display().to_string() })
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data serializes")
}

fn key_of(id: &Id) -> String {
    json(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(ledger: &Ledger, version: u64, value: &str) -> (SecretName, SecretSeen) {
        let value = Some(ledger.fingerprints().of(Digest::of(value.as_bytes())));
        ("db".into(), SecretSeen { version, value })
    }

    fn everything_in(folder: &Path) -> Vec<u8> {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.extension().is_none_or(|end| end != "key"))
            .flat_map(|path| std::fs::read(path).unwrap())
            .collect()
    }

    fn holds(bytes: &[u8], text: &str) -> bool {
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    #[test]
    fn nothing_in_a_stolen_ledger_can_be_compared_with_a_guess() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let mut ledger = Ledger::open(&path).unwrap();
        let first = seen(&ledger, 1, "1234");
        ledger.saw_secrets(vec![first.clone()]).unwrap();
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.known().unwrap().secrets.into_iter().collect::<Vec<_>>(), [first]);
        let bytes = everything_in(dir.path());
        assert!(holds(&bytes, "secrets_seen"));
        assert!(!holds(&bytes, &Digest::of(b"1234").to_string()));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(dir.path().join("ledger.key")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn plain_digests_of_an_old_ledger_are_forgotten_and_versions_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        drop(Ledger::open(&path).unwrap());
        let (digest, id) = (Digest::of(b"1234"), Id { kind: crate::resource::Kind::File, name: "/etc/db".to_owned() });
        let db = Connection::open(&path).unwrap();
        let owned = format!(
            "{{\"inputs\":\"{digest}\",\"content\":\"{digest}\",\"stamp\":null,\"written\":true,\"keep\":false}}"
        );
        let owned = owned.replacen(&digest.to_string(), &Digest::of(b"masked").to_string(), 1);
        let secrets = format!("{{\"db\":{{\"version\":7,\"value\":\"{digest}\"}}}}");
        db.execute("INSERT INTO owned VALUES (?1, ?2)", params![key_of(&id), owned]).unwrap();
        db.execute("DELETE FROM facts", []).unwrap();
        db.execute("INSERT INTO facts VALUES ('secrets', ?1)", [secrets]).unwrap();
        drop(db);
        assert!(holds(&everything_in(dir.path()), &digest.to_string()));
        let known = Ledger::open(&path).unwrap().known().unwrap();
        assert_eq!(known.secrets[&SecretName::from("db")], SecretSeen { version: 7, value: None });
        assert_eq!((known.owned[&id].content, known.owned[&id].written), (None, true));
        assert!(!holds(&everything_in(dir.path()), &digest.to_string()));
    }

    /// I7: cycles that fail for ever, and files that come and go, leave a ledger of the same size.
    #[test]
    fn the_ledger_does_not_grow_with_its_age() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
        // What is measured is room, not durability.
        ledger.db.execute_batch("PRAGMA synchronous = OFF;").unwrap();
        let size = |ledger: &Ledger| {
            ledger.db.execute_batch("PRAGMA wal_checkpoint(PASSIVE);").unwrap();
            everything_in(dir.path()).len()
        };
        let mut sizes = Vec::new();
        for round in 0..5_u32 {
            for n in 0..HISTORY_MAX {
                ledger.note(Timestamp::UNIX_EPOCH, &serde_json::json!({ "what": "failed", "n": n })).unwrap();
            }
            for n in 0..100 {
                let id = Id { kind: crate::resource::Kind::File, name: format!("/etc/{round}/{n}") };
                let inputs = Digest::of(b"x");
                ledger.intend(&[Intention { id: id.clone(), inputs, secret: false, owed: false }]).unwrap();
                ledger.disown(&[id]).unwrap();
            }
            sizes.push(size(&ledger));
        }
        let rows: i64 = ledger.db.query_row("SELECT count(*) FROM history", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, HISTORY_MAX);
        assert!(sizes[4] <= sizes[1] + 64 * 1024, "{sizes:?}");
    }

    #[test]
    fn a_lost_key_makes_values_unknown_and_keeps_versions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let mut ledger = Ledger::open(&path).unwrap();
        let first = seen(&ledger, 3, "x");
        ledger.saw_secrets(vec![first]).unwrap();
        drop(ledger);
        std::fs::remove_file(dir.path().join("ledger.key")).unwrap();
        let known = Ledger::open(&path).unwrap().known().unwrap();
        assert_eq!(known.secrets[&SecretName::from("db")], SecretSeen { version: 3, value: None });
    }
}
