//! Watches what we manage, and tells which of it somebody touched.
//!
//! Directories are watched, not files: a watch on a file ends when an editor renames another over it. Every directory above
//! is watched too, to see any of them go and come back. Touches are collected until somebody takes them, so that a flood
//! costs a set of names and one call. Our own writes are reported as well; who knows what it left there tells them apart.
//! Never: reads a file, or decides that something is drift.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fswatch::{self, Event, Subscription, What};
use crate::name::HostPath;
use crate::reason::chain;

/// Directories that are watched at most; each costs the kernel about 1 KiB, and an account has a limit of its own
/// (`fs.inotify.max_user_watches`).
pub const WATCHES_MAX: usize = 4096;

/// What somebody touched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// Maybe none.
    Files(BTreeSet<HostPath>),
    /// Events were lost, or a directory came or went: look at everything, and make a new watch.
    Everything,
}

impl Touched {
    const NOTHING: Self = Self::Files(BTreeSet::new());

    fn is_nothing(&self) -> bool {
        *self == Self::NOTHING
    }

    fn add(&mut self, more: Self) {
        match (self, more) {
            (Self::Everything, _) => {}
            (before, Self::Everything) => *before = Self::Everything,
            (Self::Files(before), Self::Files(more)) => before.extend(more),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the kernel gives no inotify instance (fs.inotify.max_user_instances, open files)")]
pub struct DriftError(#[source] std::io::Error);

/// Watches until it is dropped.
pub struct DriftWatch {
    _subscription: Subscription,
    state: Arc<Mutex<State>>,
    watches: usize,
    unwatched: Option<String>,
}

struct State {
    touched: Touched,
    /// Touches of these are not told.
    ignored: BTreeSet<HostPath>,
}

/// By watched directory: what it means if a name in it changes.
type Meanings = BTreeMap<PathBuf, BTreeMap<OsString, Touched>>;

impl DriftWatch {
    /// Watches `paths` below `root`. `report` is called from the watcher's own thread with the first touch after each
    /// [`Self::take`]. Directories beyond the limits stay unwatched: see [`Self::unwatched`].
    pub fn over<'a>(
        root: &Path,
        paths: impl IntoIterator<Item = &'a HostPath>,
        report: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, DriftError> {
        let meanings = Arc::new(meanings(root, paths));
        let state = Arc::new(Mutex::new(State { touched: Touched::NOTHING, ignored: BTreeSet::new() }));
        let (names, seen) = (meanings.clone(), state.clone());
        let handler = move |event: &Event| {
            let Some(mut touched) = meaning(&names, event) else { return };
            let mut state = locked(&seen);
            if let Touched::Files(files) = &mut touched {
                files.retain(|file| !state.ignored.contains(file));
            }
            let first = state.touched.is_nothing() && !touched.is_nothing();
            state.touched.add(touched);
            drop(state);
            if first {
                report();
            }
        };
        let mut subscription = fswatch::subscribe(handler).map_err(DriftError)?;
        let mut watches = 0;
        let mut why = None;
        for directory in meanings.keys() {
            if watches == WATCHES_MAX {
                why = Some(format!("at most {WATCHES_MAX} are"));
                break;
            }
            match subscription.watch(directory) {
                Ok(()) => watches += 1,
                // It went away since it was looked for: its parent's watch, set before it, tells when it returns.
                Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound) => {}
                Err(error) if matches!(error.kind(), std::io::ErrorKind::StorageFull) => {
                    why = Some("the kernel takes no more watches (fs.inotify.max_user_watches)".to_owned());
                    break;
                }
                Err(error) => why = Some(format!("{}: {error}", directory.display())),
            }
        }
        let unwatched = why
            .map(|why| format!("{watches} of {} directories are watched ({why}); the rest is polled", meanings.len()));
        Ok(Self { _subscription: subscription, state, watches, unwatched })
    }

    /// What was touched since this was last asked.
    pub fn take(&self) -> Touched {
        std::mem::replace(&mut locked(&self.state).touched, Touched::NOTHING)
    }

    /// From now on, touches of these files alone are not told.
    pub fn ignore(&self, files: BTreeSet<HostPath>) {
        locked(&self.state).ignored = files;
    }

    /// How many directories are watched.
    pub fn watches(&self) -> usize {
        self.watches
    }

    /// Not everything is watched: how much, and why.
    pub fn unwatched(&self) -> Option<&str> {
        self.unwatched.as_deref()
    }
}

/// A watch that is kept up: made anew when other files are managed, and when directories came or went.
pub struct Lookout {
    report: Arc<dyn Fn() + Send + Sync>,
    files: Vec<HostPath>,
    ignored: BTreeSet<HostPath>,
    watch: Option<DriftWatch>,
    stale: bool,
    /// What is not watched, as it was told last.
    told: Option<String>,
}

impl Lookout {
    /// `report` is called from another thread when there is something to [`Self::take`].
    pub fn new(report: impl Fn() + Send + Sync + 'static) -> Self {
        let (files, ignored) = (Vec::new(), BTreeSet::new());
        Self { report: Arc::new(report), files, ignored, watch: None, stale: true, told: None }
    }

    /// What was touched since this was last asked.
    pub fn take(&mut self) -> Touched {
        let touched = self.watch.as_ref().map_or(Touched::NOTHING, DriftWatch::take);
        self.stale |= touched == Touched::Everything;
        touched
    }

    /// Watches these files from now on (`None`: as before); touches of `ignored` alone are not told. Without inotify there
    /// is no watch and the next call tries again. True: the watch is new, so what was touched until now was not seen.
    pub fn keep(&mut self, files: Option<Vec<HostPath>>, ignored: BTreeSet<HostPath>) -> bool {
        if let Some(files) = files.filter(|files| *files != self.files) {
            self.files = files;
            self.stale = true;
        }
        self.ignored = ignored;
        let new = self.stale || self.watch.is_none();
        if new {
            // The old one ends first: there is one instance and a limit of watches.
            drop(self.watch.take());
            let report = self.report.clone();
            let missing = match DriftWatch::over(Path::new("/"), &self.files, move || report()) {
                Ok(watch) => {
                    self.stale = false;
                    let missing = watch.unwatched().map(str::to_owned);
                    self.watch = Some(watch);
                    missing
                }
                Err(error) => Some(format!("{}; files are only polled", chain(&error))),
            };
            if missing != self.told {
                if let Some(missing) = &missing {
                    tracing::warn!("drift is seen late: {missing}");
                }
                self.told = missing;
            }
        }
        if let Some(watch) = &self.watch {
            watch.ignore(self.ignored.clone());
        }
        new && self.watch.is_some()
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nobody panics while holding it.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn meanings<'a>(root: &Path, paths: impl IntoIterator<Item = &'a HostPath>) -> Meanings {
    let mut meanings = Meanings::new();
    let mut exists: BTreeMap<PathBuf, bool> = BTreeMap::new();
    for path in paths {
        let below = root.join(path.as_str().trim_start_matches('/'));
        let mut child = below.as_path();
        let mut meant = Touched::Files(BTreeSet::from([path.clone()]));
        while let Some(directory) = child.parent()
            && directory.starts_with(root)
        {
            // Asked once each: most files have their directories in common.
            if *exists.entry(directory.to_owned()).or_insert_with(|| directory.is_dir()) {
                let names = meanings.entry(directory.to_owned()).or_default();
                names.insert(child.file_name().unwrap_or_default().to_owned(), meant);
            }
            meant = Touched::Everything;
            child = directory;
        }
    }
    meanings
}

fn meaning(meanings: &Meanings, event: &Event) -> Option<Touched> {
    let (path, what) = match event {
        Event::Lost => return Some(Touched::Everything),
        Event::At(path, what) => (path, what),
    };
    match meanings.get(path.parent()?)?.get(path.file_name()?)? {
        // Of a directory only that it comes or goes; what happens inside has its own watch.
        Touched::Everything if *what != What::Moved => None,
        meant => Some(meant.clone()),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // plays somebody who changes files
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    fn watch(root: &Path, paths: &[&str]) -> (DriftWatch, Receiver<()>) {
        let (sender, receiver) = channel();
        let paths: Vec<HostPath> = paths.iter().map(|path| HostPath::from(*path)).collect();
        let watch = DriftWatch::over(root, &paths, move || sender.send(()).unwrap_or(())).unwrap();
        (watch, receiver)
    }

    /// The next thing that is told.
    fn next((watch, receiver): &(DriftWatch, Receiver<()>)) -> Touched {
        receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        watch.take()
    }

    fn file(path: &str) -> Touched {
        Touched::Files(BTreeSet::from([HostPath::from(path)]))
    }

    #[test]
    fn changes_of_managed_files_are_told_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/kafka");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("a"), "1").unwrap();
        let seen = watch(root.path(), &["/etc/kafka/a", "/etc/kafka/b", "/etc/kafka/c"]);
        assert_eq!(seen.0.watches(), 3, "the directory and those above it, once for all files");
        std::fs::read(etc.join("a")).unwrap();
        std::fs::write(etc.join("stranger"), "1").unwrap();
        std::fs::write(etc.join("b.tmp"), "1").unwrap();
        std::fs::rename(etc.join("b.tmp"), etc.join("b")).unwrap();
        assert_eq!(next(&seen), file("/etc/kafka/b"), "not the reading, not the stranger, the rename");
        seen.0.ignore(BTreeSet::from([HostPath::from("/etc/kafka/c")]));
        std::fs::write(etc.join("c"), "1").unwrap();
        std::fs::remove_file(etc.join("a")).unwrap();
        assert_eq!(next(&seen), file("/etc/kafka/a"), "not what is ignored");
    }

    #[test]
    fn directories_that_go_and_come_back_mean_everything() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/kafka/deep/deeper");
        std::fs::create_dir_all(&etc).unwrap();
        for moved in ["etc/kafka/deep/deeper", "etc/kafka/deep", "etc/kafka", "etc"] {
            let seen = watch(root.path(), &["/etc/kafka/deep/deeper/a"]);
            let (from, to) = (root.path().join(moved), root.path().join("away"));
            std::fs::rename(&from, &to).unwrap();
            assert_eq!(next(&seen), Touched::Everything, "{moved} went");
            std::fs::rename(&to, &from).unwrap();
            assert_eq!(next(&seen), Touched::Everything, "{moved} came back");
        }
        let seen = watch(root.path(), &["/srv/kafka/a"]);
        std::fs::create_dir_all(root.path().join("srv/kafka")).unwrap();
        assert_eq!(next(&seen), Touched::Everything);
    }

    #[test]
    fn one_directory_under_two_names_and_in_two_watches() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run/app");
        std::fs::create_dir_all(&run).unwrap();
        std::os::unix::fs::symlink(root.path().join("run"), root.path().join("var")).unwrap();
        let first = watch(root.path(), &["/run/app/a", "/var/app/a"]);
        let second = watch(root.path(), &["/run/app/a"]);
        // One event: an editor's rename.
        let change = || {
            std::fs::write(run.join("tmp"), "1").unwrap();
            std::fs::rename(run.join("tmp"), run.join("a")).unwrap();
        };
        change();
        let mut both = next(&first);
        if both == file("/run/app/a") || both == file("/var/app/a") {
            both.add(next(&first));
        }
        assert_eq!(both, Touched::Files(["/run/app/a", "/var/app/a"].map(HostPath::from).into()));
        assert_eq!(next(&second), file("/run/app/a"));
        drop(first);
        change();
        assert_eq!(next(&second), file("/run/app/a"), "the end of one watch is not the end of the other");
    }
}
