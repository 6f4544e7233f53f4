//! From a remote's address to objects in the quarantine: everything that foreign bytes pass through.
//!
//! libgit2 speaks the protocol and unpacks; the connections are ours: TLS by `https`, the system's ssh by `ssh`. It is
//! one function, [`fetch`], which the child calls inside its sandbox. Never: a scheme that trust.toml did
//! not parse, a redirect, a credential in an address, tags, a second branch.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream, Transport};
use git2::{AutotagOption, Direction, FetchOptions, Oid, RemoteCallbacks, Repository};

use super::{https, ssh};
use crate::clock::{Clock, SystemClock};
use crate::settings::{Access, Limits, Remote};

/// What one connection may still cost.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// Awake time at which it ends.
    until: Duration,
    bytes: u64,
}

impl Budget {
    fn new(limits: &Limits) -> Self {
        let until = SystemClock.awake() + Duration::from_secs(limits.time_secs);
        Self { until, bytes: limits.pack_mib << 20 }
    }

    /// Time left, never zero.
    pub fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_sub(SystemClock.awake());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the time for this remote is over (time_secs)"));
        }
        Ok(left)
    }
}

/// A stream that ends when its budget does.
pub(super) struct Metered<S> {
    pub stream: S,
    pub budget: Budget,
}

impl<S: Read> Read for Metered<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.budget.left()?;
        let read = self.stream.read(buffer)?;
        self.budget.bytes = self.budget.bytes.checked_sub(read as u64).ok_or_else(over_size)?;
        Ok(read)
    }
}

impl<S: Write> Write for Metered<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.budget.left()?;
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

const OVER_SIZE: &str = "the remote sent more than pack_mib";

fn over_size() -> io::Error {
    io::Error::other(OVER_SIZE)
}

/// Why a remote gave nothing; only [`RemoteFault::Limit`] is its guilt for sure.
#[derive(Debug)]
pub(super) enum RemoteFault {
    Limit(String),
    Failed(String),
}

/// How to reach one remote.
#[derive(Clone)]
pub(super) struct Dial {
    pub url: String,
    pub access: Access,
    pub budget: Budget,
    /// For files that ssh wants to read.
    pub cache: PathBuf,
}

thread_local! {
    // libgit2 makes the transport on the thread that fetches, and hands it nothing of ours.
    static DIAL: RefCell<Option<Dial>> = const { RefCell::new(None) };
}

/// Shuts out the machine's and the user's git configuration and puts our connections in place of libgit2's.
#[allow(unsafe_code)] // libgit2's global options; inside a Once, before any repository is opened
pub(super) fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        use git2::ConfigLevel::{Global, ProgramData, System, XDG};
        for level in [System, Global, XDG, ProgramData] {
            // SAFETY: nothing else of this process uses libgit2 before `prepare` returned.
            unsafe { git2::opts::set_search_path(level, "") }.expect("an empty path is a valid path");
        }
        git2::opts::strict_hash_verification(true);
        git2::opts::strict_object_creation(true);
        // SAFETY: as above.
        unsafe {
            git2::transport::register("ssh", |remote| Transport::smart(remote, false, Ours))
                .and_then(|()| git2::transport::register("https", |remote| Transport::smart(remote, true, Ours)))
                .and_then(|()| git2::transport::register("http", |remote| Transport::smart(remote, true, Refused)))
                .and_then(|()| git2::transport::register("git", |remote| Transport::smart(remote, false, Refused)))
        }
        .expect("each scheme is registered once");
    });
}

/// In a child: repositories belong to whom they belong, and no configuration of theirs starts anything here.
#[allow(unsafe_code)] // libgit2's global option, as above
pub(super) fn trust_owners() {
    // SAFETY: called by the one thread of a child, before any repository is opened. It cannot fail.
    let _ = unsafe { git2::opts::set_verify_owner_validation(false) };
}

struct Ours;

impl SmartSubtransport for Ours {
    fn action(&self, url: &str, action: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let failed = |error: io::Error| git2::Error::from_str(&error.to_string());
        let dial = DIAL.with_borrow(Clone::clone).filter(|dial| dial.url == url);
        let dial = dial.ok_or_else(|| git2::Error::from_str("this address is not the one in trust.toml"))?;
        match (&dial.access, action) {
            (Access::Ssh { .. }, Service::UploadPackLs) => Ok(Box::new(ssh::connect(&dial).map_err(failed)?)),
            (Access::Https { .. }, Service::UploadPackLs) => Ok(Box::new(https::references(&dial).map_err(failed)?)),
            (Access::Https { .. }, Service::UploadPack) => Ok(Box::new(https::exchange(dial))),
            _ => Err(git2::Error::from_str("only fetching is done here")),
        }
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// For schemes that are never used: without this libgit2's own code would answer.
struct Refused;

impl SmartSubtransport for Refused {
    fn action(&self, _: &str, _: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        Err(git2::Error::from_str("this scheme is not used"))
    }
    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// The id that `reference` has at the remote; its objects are in `quarantine` afterwards unless `known` already has them.
pub(super) fn fetch(
    quarantine: &Repository,
    remote: &Remote,
    reference: &str,
    limits: &Limits,
    cache: PathBuf,
    known: &dyn Fn(Oid) -> bool,
) -> Result<Oid, RemoteFault> {
    if let Access::File { path } = &remote.access {
        // Asking is a few reads; connecting would list every branch.
        let tip = Repository::open_bare(path)
            .or_else(|_| Repository::open(path))
            .and_then(|repository| repository.refname_to_id(reference))
            .map_err(|error| RemoteFault::Failed(error.message().to_owned()))?;
        if known(tip) {
            return Ok(tip);
        }
    }
    let dial = Dial { url: remote.url.clone(), access: remote.access.clone(), budget: Budget::new(limits), cache };
    DIAL.set(Some(dial));
    let fetched = download(quarantine, &remote.url, reference, limits, known);
    DIAL.set(None);
    fetched
}

fn download(
    quarantine: &Repository,
    url: &str,
    reference: &str,
    limits: &Limits,
    known: &dyn Fn(Oid) -> bool,
) -> Result<Oid, RemoteFault> {
    let over = Rc::new(RefCell::new(None));
    let fault = |error: git2::Error| match over.take() {
        Some(limit) => RemoteFault::Limit(limit),
        None if error.message().contains(OVER_SIZE) => RemoteFault::Limit(OVER_SIZE.to_owned()),
        None => RemoteFault::Failed(error.message().to_owned()),
    };
    let budget = Budget::new(limits);
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|progress| {
        let what = if progress.total_objects() as u64 > limits.objects {
            format!("the remote sends {} objects, more than {}", progress.total_objects(), limits.objects)
        } else if progress.received_bytes() as u64 > limits.pack_mib << 20 {
            OVER_SIZE.to_owned()
        } else if budget.left().is_err() {
            "unpacking takes more than time_secs".to_owned()
        } else {
            return true;
        };
        over.replace(Some(what));
        false
    });

    let mut remote = quarantine.remote_anonymous(url).map_err(fault)?;
    let tip = {
        let connection = remote.connect_auth(Direction::Fetch, None, None).map_err(fault)?;
        let listed = connection.list().map_err(fault)?;
        let named = listed.iter().find(|head| head.name() == reference).map(git2::RemoteHead::oid);
        let tip = named.ok_or_else(|| RemoteFault::Failed(format!("it has no {reference}")))?;
        if known(tip) {
            return Ok(tip);
        }
        tip
    };
    let mut options = FetchOptions::new();
    options.remote_callbacks(callbacks).download_tags(AutotagOption::None).update_fetchhead(false);
    remote.download(&[format!("+{reference}:refs/quarantine/tip")], Some(&mut options)).map_err(fault)?;
    let _ = remote.disconnect();
    quarantine.odb().and_then(|odb| odb.refresh()).map_err(fault)?;
    Ok(tip)
}
