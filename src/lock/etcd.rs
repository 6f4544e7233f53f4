//! The store of a fleet: etcd, over TLS with client certificates (the user is the certificate's CN).
//!
//! One client per endpoint, and the one that answered last is asked first; a read goes on to the next endpoint, a write
//! only when it certainly was not sent. Every request has a deadline. The runtime is the store's own, on a thread of its
//! own, so calls are synchronous and connections stay alive between them. Never: a write sent twice, or a lost answer
//! taken for a failure.

mod auth;
pub mod holes;
mod vet;

use std::collections::{BTreeSet, HashMap};
use std::error::Error as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, Identity, KeyValue, PutOptions,
    TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

pub use auth::Auth;

use super::store::{
    Condition, Entry, Key, LockStore, Outcome, Snapshot, StoreError, Transaction, Watch, Write, range_end,
};

/// How long any call takes at most.
const DEADLINE: Duration = Duration::from_secs(5);

/// etcd takes pings every 5 s and more; a watch learns in 15 s that its member is gone without a word.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Events that come together are told once.
const BURST: Duration = Duration::from_millis(10);

/// How a watch comes back: the first wait, doubled up to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Reports of ten thousand nodes; the client's own limit is 4 MB.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Where the servers are, and who we are to them.
pub struct Server {
    pub endpoints: Vec<String>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

pub struct EtcdStore {
    link: Arc<Link>,
    runtime: Arc<Runtime>,
}

impl EtcdStore {
    /// Connects when it is first asked. `root` comes before every key.
    pub fn open(server: Server, root: String) -> Result<Self, StoreError> {
        if server.endpoints.is_empty() {
            return Err(settings("no endpoints"));
        }
        if server.cert.is_some() != server.key.is_some() {
            return Err(settings("cert and key belong together"));
        }
        let count = server.endpoints.len();
        // A fleet spreads over the members.
        let first = usize::try_from(std::process::id()).unwrap_or(0) % count;
        let link = Link {
            server,
            root,
            clients: Mutex::new(vec![None; count]),
            vetted: Mutex::new(vec![Vetted::default(); count]),
            first: AtomicUsize::new(first),
            leases: Mutex::default(),
        };
        // Files that cannot be read are found out now, not at the first hold.
        link.options()?;
        Ok(Self { link: Arc::new(link), runtime: Arc::new(Runtime::start()?) })
    }

    /// Runs on the store's thread and waits here: a caller may itself be inside another runtime.
    fn wait<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, answer) = mpsc::sync_channel(1);
        self.runtime.handle.spawn(async move { done.send(call.await) });
        answer.recv().map_err(|_| self.link.unreachable("the store's thread ended"))?
    }
}

impl LockStore for EtcdStore {
    fn identity(&self) -> Result<String, StoreError> {
        let link = Arc::clone(&self.link);
        self.wait(async move {
            // Any key that every node may read.
            let answer = link.read(Txn::new().and_then(vec![get(&format!("{}meta", link.root))])).await?;
            let header = answer.header().ok_or_else(|| link.unreachable("an answer without a header"))?;
            vet::vet(&link, link.first.load(Ordering::Relaxed)).await;
            Ok(format!("{:x}", header.cluster_id()))
        })
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        let link = Arc::clone(&self.link);
        let ranges: Vec<_> = prefixes.iter().map(|prefix| get(&format!("{}{prefix}", link.root))).collect();
        self.wait(async move {
            let answer = link.read(Txn::new().and_then(ranges)).await?;
            Ok(link.snapshot(&answer))
        })
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.well_formed()?;
        let link = Arc::clone(&self.link);
        let transaction = transaction.clone();
        self.wait(async move { link.commit(&transaction).await })
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        let prefixes: Vec<_> = prefixes.iter().map(|prefix| format!("{}{prefix}", self.link.root)).collect();
        let (began, first) = mpsc::sync_channel(1);
        let task = self.runtime.handle.spawn(watch(Arc::clone(&self.link), prefixes, on_change, began));
        let guard = StopOnDrop { task, _runtime: Arc::clone(&self.runtime) };
        match first.recv_timeout(DEADLINE) {
            Ok(Err(error @ (StoreError::Denied { .. } | StoreError::Settings { .. }))) => Err(error),
            // Not yet: it goes on trying, and says so with a call of `on_change` when it begins.
            _ => Ok(Watch::new(guard)),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let found = locked(&self.link.vetted);
        found.iter().flat_map(|one| &one.warnings).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

struct StopOnDrop {
    task: tokio::task::JoinHandle<()>,
    _runtime: Arc<Runtime>,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A current-thread runtime that lives on its own thread until this is dropped.
struct Runtime {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Runtime {
    fn start() -> Result<Self, StoreError> {
        let failed = |error: std::io::Error| settings(&format!("cannot start the store's thread: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                // Ends when the sender is dropped, which is an error only in name.
                let _ = runtime.block_on(stopped);
            })
            .map_err(failed)?;
        Ok(Self { handle, _stop: stop })
    }
}

struct Link {
    server: Server,
    root: String,
    /// By endpoint; none: to be connected anew, with the certificates as they are then on disk.
    clients: Mutex<Vec<Option<Client>>>,
    /// By endpoint.
    vetted: Mutex<Vec<Vetted>>,
    /// The endpoint to ask first.
    first: AtomicUsize,
    /// For `PutFor`: the lease of each key, and its seconds.
    leases: Mutex<HashMap<Key, (i64, i64)>>,
}

/// What people should know of a server.
#[derive(Clone, Default)]
struct Vetted {
    warnings: Vec<String>,
    /// Of the connection that there is now.
    is_current: bool,
}

/// Why an endpoint gave no answer, as far as it matters for what to do next.
enum Failure {
    /// Certainly not done: ask the next endpoint.
    NotSent(String),
    /// Done or not.
    Lost(String),
    Denied(String),
    NoSpace,
    /// Ours is the mistake; no other endpoint will like it better.
    Malformed(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    Writes,
}

impl Link {
    fn unreachable(&self, why: &str) -> StoreError {
        StoreError::Unreachable { endpoints: self.server.endpoints.join(" "), why: why.to_owned() }
    }

    fn unknown(&self, why: String) -> StoreError {
        StoreError::OutcomeUnknown { endpoints: self.server.endpoints.join(" "), why }
    }

    /// TLS 1.3 has the client done before the server has looked at its certificate: a refusal is an alert or only the
    /// end of the connection, whichever is seen first.
    fn with_hint(&self, failure: Failure, error: &Error) -> Failure {
        let is_connection = matches!(error, Error::GRpcStatus(status) if status.source().is_some());
        match failure {
            Failure::Lost(why) if is_connection && self.server.cert.is_some() => {
                Failure::Lost(format!("{why} (a server that refuses this node's certificate does the same)"))
            }
            other => other,
        }
    }

    fn options(&self) -> Result<ConnectOptions, StoreError> {
        let options = ConnectOptions::new()
            .with_connect_timeout(self.attempt())
            .with_keep_alive(PING.0, PING.1)
            .with_keep_alive_while_idle(false)
            // A member that was cut off from the others says so instead of keeping a silent watch.
            .with_require_leader(true);
        let mut tls = self.trusted()?;
        if let (Some(cert), Some(key)) = (&self.server.cert, &self.server.key) {
            let identity = Identity::from_pem(read_file(cert)?, &*read_file(key)?);
            tls = Some(tls.unwrap_or_default().identity(identity));
        }
        Ok(match tls {
            Some(tls) => options.with_tls(tls),
            None => options,
        })
    }

    /// The server's authority, without a certificate of ours.
    fn options_of_a_stranger(&self) -> Result<ConnectOptions, StoreError> {
        let options = ConnectOptions::new().with_connect_timeout(self.attempt());
        Ok(match self.trusted()? {
            Some(tls) => options.with_tls(tls),
            None => options,
        })
    }

    fn trusted(&self) -> Result<Option<TlsOptions>, StoreError> {
        let Some(ca) = &self.server.ca else { return Ok(None) };
        Ok(Some(TlsOptions::new().ca_certificate(Certificate::from_pem(read_file(ca)?))))
    }

    async fn client(&self, endpoint: usize) -> Result<Client, StoreError> {
        let known = locked(&self.clients)[endpoint].clone();
        if let Some(client) = known {
            return Ok(client);
        }
        // Does not touch the network yet.
        let client = Client::connect([&self.server.endpoints[endpoint]], Some(self.options()?))
            .await
            .map_err(|error| settings(&format!("{}: {}", self.server.endpoints[endpoint], with_sources(&error))))?;
        locked(&self.clients)[endpoint] = Some(client.clone());
        Ok(client)
    }

    fn forget(&self, endpoint: usize) {
        locked(&self.clients)[endpoint] = None;
        locked(&self.vetted)[endpoint].is_current = false;
    }

    /// A frozen endpoint leaves time for the others.
    fn attempt(&self) -> Duration {
        DEADLINE / u32::try_from(self.server.endpoints.len()).unwrap_or(u32::MAX)
    }

    /// Asks one endpoint after the other until one answers.
    async fn call<T, F>(&self, effect: Effect, ask: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let count = self.server.endpoints.len();
        let first = self.first.load(Ordering::Relaxed);
        // A write that was sent is not tried elsewhere, so it may as well wait.
        let patience = match effect {
            Effect::None => self.attempt(),
            Effect::Writes => DEADLINE,
        };
        let mut denied_before = false;
        let mut left = count;
        let mut last = None;
        while left > 0 {
            let endpoint = (first + count - left) % count;
            left -= 1;
            let answer = timeout(patience, ask(self.client(endpoint).await?)).await;
            let failure = match answer {
                Ok(Ok(answer)) => {
                    self.first.store(endpoint, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(error)) => self.with_hint(failure(&error), &error),
                Err(_) => Failure::Lost(format!("no answer in {} ms", patience.as_millis())),
            };
            tracing::debug!(endpoint = self.server.endpoints[endpoint], "no answer from the store");
            last = Some(match failure {
                Failure::NoSpace => return Err(StoreError::NoSpace),
                Failure::Malformed(why) => return Err(StoreError::Settings { why }),
                Failure::Denied(why) => {
                    // Once more over a new connection: a certificate or the rights may have been renewed.
                    self.forget(endpoint);
                    if denied_before {
                        return Err(StoreError::Denied { why });
                    }
                    denied_before = true;
                    left += 1;
                    continue;
                }
                Failure::NotSent(why) => self.unreachable(&why),
                Failure::Lost(why) => {
                    self.forget(endpoint);
                    self.first.store((endpoint + 1) % count, Ordering::Relaxed);
                    if effect == Effect::Writes {
                        return Err(self.unknown(why));
                    }
                    self.unreachable(&why)
                }
            });
        }
        Err(last.unwrap_or_else(|| self.unreachable("no endpoint was asked")))
    }

    async fn read(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        self.call(Effect::None, |client| {
            let txn = txn.clone();
            async move { client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX).txn(txn).await }
        })
        .await
    }

    fn snapshot(&self, answer: &TxnResponse) -> Snapshot {
        let mut entries: Vec<Entry> = Vec::new();
        for range in answer.op_responses() {
            if let TxnOpResponse::Get(found) = range {
                entries.extend(found.kvs().iter().filter_map(|found| self.entry(found)));
            }
        }
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        entries.dedup();
        Snapshot { revision: revision(answer), entries }
    }

    fn entry(&self, found: &KeyValue) -> Option<Entry> {
        Some(Entry {
            key: std::str::from_utf8(found.key()).ok()?.strip_prefix(&self.root)?.to_owned(),
            value: found.value().to_vec(),
            create_revision: found.create_revision(),
            mod_revision: found.mod_revision(),
        })
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let when: Vec<_> = transaction.when.iter().map(|condition| compare(&self.root, condition)).collect();
        let mut then = Vec::new();
        for write in &transaction.then {
            let key = format!("{}{}", self.root, write.key());
            then.push(match write {
                Write::Put(_, value) => TxnOp::put(key, value.clone(), None),
                Write::PutFor(name, value, time) => {
                    let lease = self.lease(name, *time).await?;
                    TxnOp::put(key, value.clone(), Some(PutOptions::new().with_lease(lease)))
                }
                Write::Delete(_) => TxnOp::delete(key, None),
            });
        }
        let txn = Txn::new().when(when).and_then(then);
        let answer = self
            .call(Effect::Writes, |mut client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            })
            .await?;
        Ok(if answer.succeeded() { Outcome::Committed(revision(&answer)) } else { Outcome::Refused })
    }

    /// The key's lease with its whole time before it: the one it had, or a new one. A lease that nothing hangs on
    /// ends by itself, so a lost answer here is no write.
    async fn lease(&self, key: &Key, time: Duration) -> Result<i64, StoreError> {
        let secs = i64::try_from(time.as_secs()).unwrap_or(i64::MAX).max(1);
        let known = locked(&self.leases).get(key).copied();
        if let Some((lease, had)) = known
            && had == secs
        {
            let renewed = self
                .call(Effect::None, |mut client| async move {
                    match client.lease_keep_alive(lease).await {
                        Ok(_) => Ok(true),
                        // Its time was over.
                        Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                        Err(error) => Err(error),
                    }
                })
                .await?;
            if renewed {
                return Ok(lease);
            }
        }
        let granted =
            self.call(Effect::None, |mut client| async move { client.lease_grant(secs, None).await }).await?.id();
        locked(&self.leases).insert(key.clone(), (granted, secs));
        Ok(granted)
    }

    /// Returns when the watch has to be set up again.
    async fn watch_once(
        &self,
        prefixes: &[String],
        began: impl FnOnce(),
        on_change: &(dyn Fn() + Send + Sync),
    ) -> StoreError {
        let endpoint = self.first.load(Ordering::Relaxed);
        let ended = self.watch_endpoint(endpoint, prefixes, began, on_change).await;
        self.forget(endpoint);
        self.first.store((endpoint + 1) % self.server.endpoints.len(), Ordering::Relaxed);
        match ended {
            Ok(reason) => self.unreachable(&reason),
            Err(error) => error,
        }
    }

    async fn watch_endpoint(
        &self,
        endpoint: usize,
        prefixes: &[String],
        began: impl FnOnce(),
        on_change: &(dyn Fn() + Send + Sync),
    ) -> Result<String, StoreError> {
        let mut client = self.client(endpoint).await?;
        let failed = |error: Error| match failure(&error) {
            Failure::Denied(why) => StoreError::Denied { why },
            Failure::NoSpace => StoreError::NoSpace,
            Failure::Malformed(why) => StoreError::Settings { why },
            Failure::NotSent(why) | Failure::Lost(why) => self.unreachable(&why),
        };
        let Some((one, others)) = prefixes.split_first() else {
            return Err(settings("a watch of nothing"));
        };
        let begin = async {
            let mut stream = client.watch(one.as_str(), Some(watch_options(one))).await?;
            for prefix in others {
                stream.watch(prefix.as_str(), Some(watch_options(prefix))).await?;
            }
            // Told from here on: what was created is confirmed one by one.
            let mut missing = prefixes.len();
            let mut early = false;
            while missing > 0 {
                let Some(message) = stream.message().await? else {
                    return Err(Error::WatchError("closed".into()));
                };
                if message.canceled() {
                    return Err(Error::WatchError(message.cancel_reason().to_owned()));
                }
                missing -= usize::from(message.created());
                early |= !message.events().is_empty();
            }
            Ok((stream, early))
        };
        let (mut stream, early) = match timeout(self.attempt(), begin).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(Error::WatchError(why))) if why.contains("permission denied") => {
                return Err(StoreError::Denied { why });
            }
            Ok(Err(error)) => return Err(failed(error)),
            Err(_) => return Ok("no answer".into()),
        };
        began();
        if early {
            on_change();
        }
        let mut told = false;
        loop {
            let message = if told {
                // What came with the event that is told already: taken, without waiting for more.
                match timeout(Duration::ZERO, stream.message()).await {
                    Ok(message) => message,
                    Err(_) => {
                        told = false;
                        on_change();
                        continue;
                    }
                }
            } else {
                stream.message().await
            };
            match message.map_err(failed)? {
                None => return Ok("the watch was closed".into()),
                Some(message) if message.canceled() => return Ok(message.cancel_reason().to_owned()),
                Some(message) if message.events().is_empty() => {}
                Some(_) if told => {}
                Some(_) => {
                    told = true;
                    sleep(BURST).await;
                }
            }
        }
    }
}

async fn watch(
    link: Arc<Link>,
    prefixes: Vec<String>,
    on_change: Box<dyn Fn() + Send + Sync>,
    began: mpsc::SyncSender<Result<(), StoreError>>,
) {
    let mut wait = BACK_OFF.0;
    let mut is_first = true;
    loop {
        let mut has_begun = false;
        let begins = || {
            has_begun = true;
            // The one who asked for the watch reads after it; nobody reads after a later beginning, unless told.
            if is_first {
                let _ = began.try_send(Ok(()));
            } else {
                on_change();
            }
        };
        let ended = link.watch_once(&prefixes, begins, &on_change).await;
        tracing::debug!(error = %ended, "the watch of the store is set up again");
        if is_first {
            let _ = began.try_send(Err(ended));
        }
        is_first = false;
        if has_begun {
            wait = BACK_OFF.0;
        }
        sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

fn get(key: &str) -> TxnOp {
    TxnOp::get(key, range_end(key).map(|end| GetOptions::new().with_range(end)))
}

fn watch_options(prefix: &str) -> WatchOptions {
    match range_end(prefix) {
        Some(end) => WatchOptions::new().with_range(end),
        None => WatchOptions::new(),
    }
}

fn compare(root: &str, condition: &Condition) -> Compare {
    let at = |key: &Key| format!("{root}{key}");
    let ranged = |prefix: &Key, compare: Compare| match range_end(&at(prefix)) {
        Some(end) => compare.with_range(end),
        None => compare,
    };
    match condition {
        Condition::Absent(key) => Compare::create_revision(at(key), CompareOp::Equal, 0),
        Condition::CreatedAt(key, revision) => Compare::create_revision(at(key), CompareOp::Equal, *revision),
        Condition::ModifiedAt(key, revision) => Compare::mod_revision(at(key), CompareOp::Equal, *revision),
        // An empty range is compared as one key with every number 0.
        Condition::RangeEmpty(prefix) => ranged(prefix, Compare::create_revision(at(prefix), CompareOp::Equal, 0)),
        Condition::RangeUntouchedSince(prefix, revision) => {
            ranged(prefix, Compare::mod_revision(at(prefix), CompareOp::Less, revision.saturating_add(1)))
        }
    }
}

fn revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, |header| header.revision())
}

/// gRPC's numbers: <https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>; etcd's use of them:
/// api/v3rpc/rpctypes/error.go.
fn failure(error: &Error) -> Failure {
    let why = with_sources(error);
    if let Some(reason) = refused_before_sending(error) {
        return reason;
    }
    let Error::GRpcStatus(status) = error else {
        return Failure::Lost(why);
    };
    let message = status.message();
    let said = message.to_owned();
    match i32::from(status.code()) {
        // InvalidArgument: etcd also says so when the rights changed meanwhile, or when it knows no user.
        3 if message.contains("auth store is old") || message.contains("user name is empty") => Failure::Denied(said),
        3 if message.contains("authentication failed") => Failure::Denied(said),
        // InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, OutOfRange, Unimplemented
        3 | 5 | 6 | 9 | 11 | 12 => Failure::Malformed(said),
        // PermissionDenied, Unauthenticated
        7 | 16 => Failure::Denied(said),
        // ResourceExhausted
        8 if message.contains("space exceeded") => Failure::NoSpace,
        8 if message.contains("too many requests") => Failure::NotSent(said),
        _ => Failure::Lost(why),
    }
}

/// Nobody listened, or the TLS handshake failed: no request can have been read.
fn refused_before_sending(error: &Error) -> Option<Failure> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(error) => Some(error),
        _ => None,
    };
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if io.kind() == std::io::ErrorKind::ConnectionRefused {
                return Some(Failure::NotSent(io.to_string()));
            }
            let tls = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if let Some(tls) = tls.filter(|tls| is_handshake(tls)) {
                return Some(Failure::Denied(tls.to_string()));
            }
        }
        source = error.source();
    }
    None
}

/// What ends a handshake, and never a connection that was made.
fn is_handshake(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(_) => true,
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::HandshakeFailure
                | Alert::ProtocolVersion
        ),
        _ => false,
    }
}

/// The client's errors say little themselves; what happened is in their sources.
fn with_sources(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let mut source = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(error) => error.source(),
        _ => None,
    };
    while let Some(error) = source {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = error.source();
    }
    text
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    std::fs::read(path)
        .map(Zeroizing::new)
        .map_err(|error| settings(&format!("cannot read {}: {error}", path.display())))
}

fn settings(why: &str) -> StoreError {
    StoreError::Settings { why: why.to_owned() }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done in these maps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
