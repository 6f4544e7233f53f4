//! The sockets: a port on loopback, or a Unix socket for root.
//!
//! A thread for each connection, few of them, each with a short time to ask its one request. Never: an address that
//! another machine reaches; never: longer than a client may take.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;

use super::desk::Desk;
use super::protocol::{self, Answer, Endpoint};
use crate::clock::{Clock, SystemClock};
use crate::disk::{self, DiskError};
use crate::settings::FleetLock;

/// A request must have come by then.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// A run that is on (probes, restarts) is waited for so long; whoever hears of no answer asks again.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
const CONNECTIONS_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("FleetLock cannot listen on {at}")]
    Bind { at: String, source: io::Error },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Serves until the process ends. Once this returns, the socket is there.
pub fn listen(at: &FleetLock, ids: Vec<String>, desk: Desk) -> Result<(), ListenError> {
    let bind = |source| ListenError::Bind { at: at.to_string(), source };
    match at {
        FleetLock::Loopback(address) => {
            let listener = TcpListener::bind(address).map_err(bind)?;
            let endpoint = Endpoint { hosts: Some(Endpoint::hosts_of(*address)), ids };
            serve(endpoint, desk, move || listener.accept().map(|(stream, _)| stream))
        }
        FleetLock::Unix(path) => {
            let listener = private(path).map_err(bind)?;
            serve(Endpoint { hosts: None, ids }, desk, move || listener.accept().map(|(stream, _)| stream))
        }
    }
    .map_err(bind)
}

/// Only root may connect: whoever may, can keep this node's groups from moving.
fn private(path: &Path) -> io::Result<UnixListener> {
    let refused = |error: DiskError| io::Error::other(crate::reason::chain(&error));
    if let Some(folder) = path.parent() {
        disk::create_dirs(folder).map_err(refused)?;
    }
    // One that an agent left behind; there is no other agent.
    disk::remove(path).map_err(refused)?;
    let listener = UnixListener::bind(path)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    Ok(listener)
}

/// A connection whose peer may be waited for only so long.
trait Patient: Read + Write + Send + 'static {
    fn wait_at_most(&self, time: Duration) -> io::Result<()>;
}

impl Patient for std::net::TcpStream {
    fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Patient for std::os::unix::net::UnixStream {
    fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

fn serve<S: Patient>(
    endpoint: Endpoint,
    desk: Desk,
    accept: impl Fn() -> io::Result<S> + Send + 'static,
) -> io::Result<()> {
    let endpoint = Arc::new(endpoint);
    let thread = std::thread::Builder::new().name("fleetlock".to_owned());
    let accepting = thread.spawn(move || {
        loop {
            let Ok(mut stream) = accept() else {
                breathe();
                continue;
            };
            // Each connection has a clone; the first is this thread's own.
            if Arc::strong_count(&endpoint) > CONNECTIONS_MAX {
                continue;
            }
            let (endpoint, desk) = (endpoint.clone(), desk.clone());
            let one = std::thread::Builder::new().name("fleetlock".to_owned());
            let spawned = one.spawn(move || {
                let answer = answer(&mut stream, &endpoint, &desk);
                // Whoever does not take it has it anyway when it asks again.
                let _ = stream.write_all(&protocol::written(&answer)).and_then(|()| stream.flush());
            });
            if let Err(error) = spawned {
                tracing::warn!(%error, "a FleetLock request was not served");
            }
        }
    });
    accepting.map(drop)
}

/// Out of descriptors, most likely: another connection is taken when some are free again.
#[allow(clippy::disallowed_methods)] // a thread of its own; no run waits for it
fn breathe() {
    std::thread::sleep(Duration::from_secs(1));
}

fn answer(stream: &mut impl Patient, endpoint: &Endpoint, desk: &Desk) -> Answer {
    let began = SystemClock.awake();
    let mut bytes = Vec::new();
    let mut some = [0; 1024];
    loop {
        if let Some(call) = protocol::read(&bytes, endpoint)? {
            let answer = desk.ask(call, ANSWER_WITHIN);
            tracing::info!(?call, ?answer, "FleetLock");
            return answer;
        }
        let left = ASK_WITHIN.saturating_sub(SystemClock.awake().saturating_sub(began));
        // A time limit of zero would be none.
        if left.is_zero() || stream.wait_at_most(left).is_err() {
            return Err(protocol::too_slow());
        }
        match stream.read(&mut some) {
            Ok(0) | Err(_) => return Err(protocol::too_slow()),
            Ok(count) => bytes.extend(some.iter().take(count)),
        }
    }
}
