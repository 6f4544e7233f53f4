//! The store of one machine: an SQLite file that several processes share.
//!
//! Every commit is one short `BEGIN IMMEDIATE` transaction, durable when it returns. After it the writer opens and
//! closes `<path>.wake`, which wakes the watchers of all processes through inotify. Never: polling, or a wake file that
//! carries anything.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction as Sql, TransactionBehavior, params};
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::store::{Condition, Entry, LockStore, Outcome, Snapshot, StoreError, Transaction, Watch, Write, range};
use crate::clock::Clock;
use crate::fswatch::{self, Event, Subscription, What};

/// How long a writer waits for the others; a commit takes milliseconds.
const BUSY: Duration = Duration::from_secs(5);

/// What `PRAGMA user_version` says of a file made by [`SCHEMA`].
const VERSION: i64 = 1;

/// The counter begins where etcd's does. `expires` is in milliseconds since 1970, of this machine's clock.
const SCHEMA: &str = "
    CREATE TABLE meta (identity TEXT NOT NULL, revision INTEGER NOT NULL);
    INSERT INTO meta VALUES (lower(hex(randomblob(16))), 1);
    CREATE TABLE entry (
        key TEXT PRIMARY KEY,
        value BLOB NOT NULL,
        create_revision INTEGER NOT NULL,
        mod_revision INTEGER NOT NULL,
        expires INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX entry_expires ON entry (expires) WHERE expires IS NOT NULL;
    PRAGMA user_version = 1;";

pub struct LocalStore {
    file: Arc<File>,
    connection: Mutex<Connection>,
}

/// What a watch's thread needs too.
struct File {
    path: PathBuf,
    root: String,
    clock: Arc<dyn Clock + Send + Sync>,
}

impl LocalStore {
    /// Opens the file, and makes it if there is none. `root` comes before every key.
    pub fn open(path: &Path, root: String, clock: Arc<dyn Clock + Send + Sync>) -> Result<Self, StoreError> {
        let file = Arc::new(File { path: path.to_owned(), root, clock });
        // Two processes that make the file at the same time would trip over each other in the change to WAL.
        let wake = file.wake()?;
        rustix::fs::flock(&wake, FlockOperation::LockExclusive).map_err(|error| file.settings("lock", &error))?;
        let connection = file.connect()?;
        Ok(Self { file, connection: Mutex::new(connection) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic interrupted was rolled back when it was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        self.file.failed(error)
    }
}

impl File {
    fn connect(&self) -> Result<Connection, StoreError> {
        let prepare = || {
            let mut connection = Connection::open(&self.path)?;
            connection.busy_timeout(BUSY)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // A hold outlives a power cut.
            connection.pragma_update(None, "synchronous", "FULL")?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if version == 0 {
                transaction.execute_batch(SCHEMA)?;
                version = VERSION;
            }
            transaction.commit()?;
            Ok((connection, version))
        };
        let (connection, version) = prepare().map_err(|error| self.failed(error))?;
        if version != VERSION {
            let why = format!("{} was made by another version of converger", self.path.display());
            return Err(StoreError::Settings { why });
        }
        Ok(connection)
    }

    /// Opens the wake file for writing; closing it wakes every watcher.
    fn wake(&self) -> Result<OwnedFd, StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(self.wake_path(), flags, Mode::from_raw_mode(0o644))
            .map_err(|error| self.settings("open the wake file beside", &error))
    }

    fn wake_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".wake");
        path.into()
    }

    fn now(&self) -> i64 {
        self.clock.now().as_millisecond()
    }

    fn settings(&self, operation: &str, error: &dyn std::fmt::Display) -> StoreError {
        StoreError::Settings { why: format!("cannot {operation} {}: {error}", self.path.display()) }
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        let path = self.path.display().to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Unreachable { endpoints: path, why: format!("busy for {} s", BUSY.as_secs()) }
            }
            Some(ErrorCode::DiskFull) => StoreError::NoSpace,
            _ => StoreError::Local { path, source: error },
        }
    }

    /// Changes whenever something below the prefixes was written or deleted: a write has the highest revision so far,
    /// and without one a deletion leaves fewer.
    fn signature(&self, connection: &Connection, prefixes: &[String]) -> rusqlite::Result<Vec<(i64, i64)>> {
        let mut count = connection.prepare_cached(
            "SELECT count(*), coalesce(max(mod_revision), 0) FROM entry
             WHERE key >= ?1 AND key < ?2 AND (expires IS NULL OR expires > ?3)",
        )?;
        let now = self.now();
        let one = |prefix: &String| {
            let (from, to) = range(prefix);
            count.query_row(params![from, to, now], |row| Ok((row.get(0)?, row.get(1)?)))
        };
        prefixes.iter().map(one).collect()
    }
}

impl LockStore for LocalStore {
    fn identity(&self) -> Result<String, StoreError> {
        self.connection()
            .query_row("SELECT identity FROM meta", [], |row| row.get(0))
            .map_err(|error| self.failed(error))
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        let mut connection = self.connection();
        let mut read = || {
            let transaction = connection.transaction()?;
            let mut entries = Vec::new();
            for prefix in prefixes {
                entries.extend(below(&transaction, &self.file, prefix)?);
            }
            Ok(Snapshot { revision: revision(&transaction)?, entries })
        };
        let mut snapshot = read().map_err(|error| self.failed(error))?;
        snapshot.entries.sort_by(|one, other| one.key.cmp(&other.key));
        snapshot.entries.dedup();
        Ok(snapshot)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.well_formed()?;
        let mut connection = self.connection();
        let prepared = prepare(&mut connection, &self.file, transaction).map_err(|error| self.failed(error))?;
        let Some(Prepared { sql, before, changed }) = prepared else {
            return Ok(Outcome::Refused);
        };
        sql.commit().map_err(|error| StoreError::OutcomeUnknown {
            endpoints: self.file.path.display().to_string(),
            why: error.to_string(),
        })?;
        if !changed {
            return Ok(Outcome::Committed(before));
        }
        if let Err(error) = self.file.wake() {
            tracing::warn!(%error, "committed, but nobody is woken");
        }
        Ok(Outcome::Committed(before + 1))
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        let (signals, received) = channel();
        let mut watching = Watching {
            file: Arc::clone(&self.file),
            connection: self.file.connect()?,
            prefixes: prefixes.iter().map(|prefix| format!("{}{prefix}", self.file.root)).collect(),
            seen: Vec::new(),
            subscription: None,
            signals: signals.clone(),
            on_change,
        };
        watching.begin()?;
        watching.seen =
            self.file.signature(&watching.connection, &watching.prefixes).map_err(|error| self.failed(error))?;
        std::thread::Builder::new()
            .name("store-watch".into())
            .spawn(move || watching.run(&received))
            .map_err(|error| self.file.settings("watch", &error))?;
        Ok(Watch::new(StopOnDrop(signals)))
    }
}

/// All written, only the COMMIT is left.
struct Prepared<'a> {
    sql: Sql<'a>,
    before: i64,
    changed: bool,
}

/// None (and rolled back) when a condition does not hold.
fn prepare<'a>(
    connection: &'a mut Connection,
    file: &File,
    transaction: &Transaction,
) -> rusqlite::Result<Option<Prepared<'a>>> {
    let sql = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let now = file.now();
    sql.prepare_cached("DELETE FROM entry WHERE expires <= ?1")?.execute([now])?;
    for condition in &transaction.when {
        if !holds(&sql, &file.root, condition)? {
            return Ok(None);
        }
    }
    let before = revision(&sql)?;
    let changed = write(&sql, &file.root, &transaction.then, before + 1, now)?;
    Ok(Some(Prepared { sql, before, changed }))
}

fn revision(sql: &Connection) -> rusqlite::Result<i64> {
    sql.prepare_cached("SELECT revision FROM meta")?.query_row([], |row| row.get(0))
}

fn below(sql: &Connection, file: &File, prefix: &str) -> rusqlite::Result<Vec<Entry>> {
    let (from, to) = range(&format!("{}{prefix}", file.root));
    let mut select = sql.prepare_cached(
        "SELECT substr(key, ?4), value, create_revision, mod_revision FROM entry
         WHERE key >= ?1 AND key < ?2 AND (expires IS NULL OR expires > ?3)",
    )?;
    // substr counts characters, from 1.
    let skip = file.root.chars().count() + 1;
    let entry = |row: &rusqlite::Row<'_>| {
        Ok(Entry { key: row.get(0)?, value: row.get(1)?, create_revision: row.get(2)?, mod_revision: row.get(3)? })
    };
    select.query_map(params![from, to, file.now(), i64::try_from(skip).unwrap_or(i64::MAX)], entry)?.collect()
}

fn holds(sql: &Connection, root: &str, condition: &Condition) -> rusqlite::Result<bool> {
    let revisions = |key: &str| -> rusqlite::Result<Option<(i64, i64)>> {
        sql.prepare_cached("SELECT create_revision, mod_revision FROM entry WHERE key = ?1")?
            .query_row([format!("{root}{key}")], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    };
    let newer_than = |prefix: &str, revision: i64| {
        let (from, to) = range(&format!("{root}{prefix}"));
        sql.prepare_cached("SELECT 1 FROM entry WHERE key >= ?1 AND key < ?2 AND mod_revision > ?3")?
            .exists(params![from, to, revision])
    };
    Ok(match condition {
        Condition::Absent(key) => revisions(key)?.is_none(),
        Condition::CreatedAt(key, revision) => revisions(key)?.is_some_and(|(created, _)| created == *revision),
        Condition::ModifiedAt(key, revision) => revisions(key)?.map_or(0, |(_, modified)| modified) == *revision,
        Condition::RangeEmpty(prefix) => !newer_than(prefix, 0)?,
        Condition::RangeUntouchedSince(prefix, revision) => !newer_than(prefix, *revision)?,
    })
}

/// Whether anything changed.
fn write(sql: &Sql<'_>, root: &str, writes: &[Write], revision: i64, now: i64) -> rusqlite::Result<bool> {
    let mut changed = 0;
    let put = |key: &str, value: &[u8], expires: Option<i64>| {
        sql.prepare_cached(
            "INSERT INTO entry VALUES (?1, ?2, ?3, ?3, ?4) ON CONFLICT (key) DO UPDATE
             SET value = excluded.value, mod_revision = excluded.mod_revision, expires = excluded.expires",
        )?
        .execute(params![format!("{root}{key}"), value, revision, expires])
    };
    for write in writes {
        changed += match write {
            Write::Put(key, value) => put(key, value, None)?,
            Write::PutFor(key, value, time) => {
                let expires = now.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
                put(key, value, Some(expires))?
            }
            Write::Delete(key) => {
                sql.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([format!("{root}{key}")])?
            }
        };
    }
    if changed > 0 {
        sql.prepare_cached("UPDATE meta SET revision = ?1")?.execute([revision])?;
    }
    Ok(changed > 0)
}

enum Signal {
    /// Somebody committed.
    Touched,
    /// The wake file is gone (a cleaner of temporary files): what is watched is not what others touch.
    Lost,
    Stop,
}

/// A watch's own thread.
struct Watching {
    file: Arc<File>,
    connection: Connection,
    /// With the root.
    prefixes: Vec<String>,
    seen: Vec<(i64, i64)>,
    subscription: Option<Subscription>,
    signals: Sender<Signal>,
    on_change: Box<dyn Fn() + Send + Sync>,
}

impl Watching {
    fn begin(&mut self) -> Result<(), StoreError> {
        let signals = self.signals.clone();
        let wake_path = self.file.wake_path();
        let mine = wake_path.clone();
        let tell = move |event: &Event| {
            let signal = match event {
                Event::Lost => Signal::Touched,
                Event::At(path, _) if *path != mine => return,
                Event::At(_, What::Closed) => Signal::Touched,
                Event::At(_, What::Moved) => Signal::Lost,
                Event::At(_, What::Written | What::Attributes) => return,
            };
            // The thread is gone only when the watch was dropped.
            let _ = signals.send(signal);
        };
        drop(self.file.wake()?);
        let failed = |error: std::io::Error| self.file.settings("watch (fs.inotify.max_user_instances?)", &error);
        // The old one ends first, or it would end the new one's watch of the same path.
        self.subscription = None;
        let mut subscription = fswatch::subscribe(tell).map_err(failed)?;
        subscription.watch(&wake_path).map_err(failed)?;
        self.subscription = Some(subscription);
        Ok(())
    }

    fn run(mut self, signals: &Receiver<Signal>) {
        while let Ok(first) = signals.recv() {
            let mut lost = false;
            for signal in std::iter::once(first).chain(signals.try_iter()) {
                match signal {
                    Signal::Touched => {}
                    Signal::Lost => lost = true,
                    Signal::Stop => return,
                }
            }
            if lost && let Err(error) = self.begin() {
                tracing::warn!(%error, "the watch of the store ended");
                (self.on_change)();
                return;
            }
            match self.file.signature(&self.connection, &self.prefixes) {
                Ok(now) if now == self.seen && !lost => {}
                Ok(now) => {
                    self.seen = now;
                    (self.on_change)();
                }
                Err(_) => (self.on_change)(),
            }
        }
    }
}

struct StopOnDrop(Sender<Signal>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // The thread is gone only when it cannot watch any more.
        let _ = self.0.send(Signal::Stop);
    }
}
