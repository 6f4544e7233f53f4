//! One inotify instance for the whole process: an account has few of them (often 128), and a sandbox runs many agents.
//!
//! Reading is not asked for: a directory in which others only look costs nothing. Never: decides what an event means; each
//! subscriber sees all of them and takes its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// What the kernel tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The queue was full (inotify(7), IN_Q_OVERFLOW): anything may have happened.
    Lost,
    At(PathBuf, What),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Bytes were written, and there may be more to come.
    Written,
    /// Closed by somebody who could write.
    Closed,
    /// Owner, mode, times, number of names.
    Attributes,
    /// It came, went, or has another name now.
    Moved,
}

type Handler = Arc<dyn Fn(&Event) + Send + Sync>;

struct Shared {
    /// Made with the first subscription.
    inotify: Option<Arc<OwnedFd>>,
    /// By watched path: its watch, and how many subscriptions have it.
    paths: BTreeMap<PathBuf, (i32, usize)>,
    /// Two paths of one directory have one watch.
    names: BTreeMap<i32, BTreeSet<PathBuf>>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { inotify: None, paths: BTreeMap::new(), names: BTreeMap::new() });
/// Apart from the above: a handler may be slow, and must not keep others from watching something.
static HANDLERS: Mutex<BTreeMap<u64, Handler>> = Mutex::new(BTreeMap::new());

/// Ends when it is dropped.
pub struct Subscription {
    id: u64,
    paths: Vec<PathBuf>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A handler that panicked has left nothing half done here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `handler` is called from the watcher's own thread, for every event of this process. While it does not return, events
/// wait in the kernel's queue, which is bounded. Errors: the kernel gives no inotify instance (EMFILE).
pub fn subscribe(handler: impl Fn(&Event) + Send + Sync + 'static) -> io::Result<Subscription> {
    let mut shared = locked(&SHARED);
    if shared.inotify.is_none() {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let reader = inotify.clone();
        std::thread::Builder::new().name("fswatch".to_owned()).spawn(move || listen(&reader))?;
        shared.inotify = Some(inotify);
    }
    let mut handlers = locked(&HANDLERS);
    let id = handlers.last_key_value().map_or(0, |(id, _)| id + 1);
    handlers.insert(id, Arc::new(handler));
    Ok(Subscription { id, paths: Vec::new() })
}

fn listen(inotify: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut reader = Reader::new(inotify, &mut buffer);
    loop {
        match reader.next() {
            Ok(event) => tell(&told(event.wd(), event.events(), event.file_name().map(|name| name.to_bytes()))),
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    // It does not happen to a healthy descriptor. Who subscribes next begins anew.
    let mut shared = locked(&SHARED);
    (shared.inotify, shared.paths, shared.names) = (None, BTreeMap::new(), BTreeMap::new());
    drop(shared);
    tell(&[Event::Lost]);
}

fn tell(events: &[Event]) {
    if events.is_empty() {
        return;
    }
    let handlers: Vec<Handler> = locked(&HANDLERS).values().cloned().collect();
    for event in events {
        handlers.iter().for_each(|handler| handler(event));
    }
}

fn told(watch: i32, flags: ReadFlags, name: Option<&[u8]>) -> Vec<Event> {
    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
        return vec![Event::Lost];
    }
    let mut shared = locked(&SHARED);
    if flags.contains(ReadFlags::IGNORED) {
        shared.names.remove(&watch);
        return Vec::new();
    }
    let closed = flags.contains(ReadFlags::CLOSE_WRITE);
    let what = match flags {
        _ if closed => What::Closed,
        _ if flags.contains(ReadFlags::MODIFY) => What::Written,
        _ if flags.contains(ReadFlags::ATTRIB) => What::Attributes,
        _ => What::Moved,
    };
    let paths = shared.names.get(&watch).into_iter().flatten();
    let full = |path: &PathBuf| match name {
        Some(name) => path.join(OsStr::from_bytes(name)),
        None => path.clone(),
    };
    paths.map(|path| Event::At(full(path), what)).collect()
}

impl Subscription {
    /// A directory (what happens to the names in it) or a file (what happens to it). Errors: it is not there, or the
    /// kernel takes no more watches (ENOSPC).
    pub fn watch(&mut self, path: &Path) -> io::Result<()> {
        let wanted = WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        let mut shared = locked(&SHARED);
        let Some(inotify) = shared.inotify.clone() else { return Ok(()) };
        // Also where it is watched already: what is there now may be another file than the one that was.
        let watch = inotify::add_watch(&*inotify, path, wanted)?;
        let before = shared.paths.get(path).copied();
        if let Some((old, _)) = before.filter(|(old, _)| *old != watch) {
            shared.forget(old, path);
        }
        shared.names.entry(watch).or_default().insert(path.to_owned());
        shared.paths.insert(path.to_owned(), (watch, before.map_or(0, |(_, count)| count) + 1));
        self.paths.push(path.to_owned());
        Ok(())
    }
}

impl Shared {
    /// The watch means this path no more; without any path it ends.
    fn forget(&mut self, watch: i32, path: &Path) {
        let Some(names) = self.names.get_mut(&watch) else { return };
        names.remove(path);
        if names.is_empty() {
            self.names.remove(&watch);
            // It is gone with its directory, if that went.
            let _ = self.inotify.as_ref().map(|inotify| inotify::remove_watch(&**inotify, watch));
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        locked(&HANDLERS).remove(&self.id);
        let mut shared = locked(&SHARED);
        for path in &self.paths {
            match shared.paths.get(path).copied() {
                Some((watch, 1)) => {
                    shared.paths.remove(path);
                    shared.forget(watch, path);
                }
                Some((watch, more)) => drop(shared.paths.insert(path.clone(), (watch, more - 1))),
                None => {}
            }
        }
    }
}
