//! One inotify instance for the whole process: an account has few of them (often 128), and a sandbox runs many agents.
//!
//! Never: decides what an event means; each subscriber sees all of them and takes its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

pub type Event = notify::Result<notify::Event>;

type Handler = Arc<dyn Fn(&Event) + Send + Sync>;

struct Shared {
    /// Made with the first subscription.
    watcher: Option<RecommendedWatcher>,
    /// How many subscriptions watch a path.
    paths: BTreeMap<PathBuf, usize>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { watcher: None, paths: BTreeMap::new() });
/// Apart from the above: the watcher's thread reads these while somebody may be asking the watcher for something.
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

/// `handler` is called from the watcher's own thread, for every event of this process; it must not wait.
pub fn subscribe(handler: impl Fn(&Event) + Send + Sync + 'static) -> notify::Result<Subscription> {
    let mut shared = locked(&SHARED);
    if shared.watcher.is_none() {
        let tell = |event: Event| {
            let handlers: Vec<Handler> = locked(&HANDLERS).values().cloned().collect();
            handlers.iter().for_each(|handler| handler(&event));
        };
        shared.watcher = Some(notify::recommended_watcher(tell)?);
    }
    let mut handlers = locked(&HANDLERS);
    let id = handlers.last_key_value().map_or(0, |(id, _)| id + 1);
    handlers.insert(id, Arc::new(handler));
    Ok(Subscription { id, paths: Vec::new() })
}

impl Subscription {
    /// A directory (what happens to the names in it) or a file (what happens to it). Errors: it is not there, or the
    /// kernel takes no more watches.
    pub fn watch(&mut self, path: &Path) -> notify::Result<()> {
        let mut shared = locked(&SHARED);
        let watched = shared.paths.get(path).copied().unwrap_or(0);
        // Also where it is watched already: what is there now may be another file than the one that was.
        shared.watcher.as_mut().map_or(Ok(()), |watcher| watcher.watch(path, RecursiveMode::NonRecursive))?;
        shared.paths.insert(path.to_owned(), watched + 1);
        self.paths.push(path.to_owned());
        Ok(())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        locked(&HANDLERS).remove(&self.id);
        let mut shared = locked(&SHARED);
        for path in &self.paths {
            match shared.paths.get(path).copied() {
                Some(1) => {
                    shared.paths.remove(path);
                    // It is gone with its directory, if that went.
                    let _ = shared.watcher.as_mut().map(|watcher| watcher.unwatch(path));
                }
                Some(more) => drop(shared.paths.insert(path.clone(), more - 1)),
                None => {}
            }
        }
    }
}
