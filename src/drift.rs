//! Watches what we manage, and tells which of it somebody touched.
//!
//! Directories are watched, not files: a watch on a file ends when an editor renames another over it. Each directory's
//! own parent is watched too, to see it go and come back. Our own writes are reported as well; who knows the stamps
//! tells them apart. Never: reads a file, or decides that something is drift.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use notify::event::EventKind;

use crate::fswatch::{self, Event, Subscription};
use crate::name::HostPath;

/// What somebody touched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    Files(BTreeSet<HostPath>),
    /// Events were lost, or a directory came or went: look at everything, and make a new watch.
    Everything,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot watch {path}")]
pub struct DriftError {
    path: String,
    source: notify::Error,
}

/// Watches until it is dropped.
pub struct DriftWatch {
    _subscription: Subscription,
    watches: usize,
}

/// By watched directory: what it means if a name in it changes.
type Meanings = BTreeMap<PathBuf, BTreeMap<OsString, Touched>>;

impl DriftWatch {
    /// Watches `paths` below `root`; `report` is called from the watcher's own thread.
    pub fn over<'a>(
        root: &Path,
        paths: impl IntoIterator<Item = &'a HostPath>,
        report: impl Fn(Touched) + Send + Sync + 'static,
    ) -> Result<Self, DriftError> {
        let meanings = meanings(root, paths);
        let watched: Vec<PathBuf> = meanings.keys().cloned().collect();
        let failed = |path: &Path, source| DriftError { path: path.display().to_string(), source };
        let handler = move |event: &Event| {
            if let Some(touched) = meaning(&meanings, event) {
                report(touched);
            }
        };
        let mut subscription = fswatch::subscribe(handler).map_err(|source| failed(root, source))?;
        let mut watches = 0;
        for directory in &watched {
            match subscription.watch(directory) {
                Ok(()) => watches += 1,
                // It went away since it was looked for: its parent's watch, set before it, tells when it returns.
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
                Err(error) => return Err(failed(directory, error)),
            }
        }
        Ok(Self { _subscription: subscription, watches })
    }

    /// How many directories are watched.
    pub fn watches(&self) -> usize {
        self.watches
    }
}

fn meanings<'a>(root: &Path, paths: impl IntoIterator<Item = &'a HostPath>) -> Meanings {
    let mut meanings = Meanings::new();
    for path in paths {
        let below = root.join(path.as_str().trim_start_matches('/'));
        let touched = Touched::Files(BTreeSet::from([path.clone()]));
        let mut child = below.as_path();
        let mut meant = touched;
        // The file's directory, and that directory's parent; of what is missing, the nearest that exists.
        let mut wanted = 2;
        while let Some(directory) = child.parent()
            && directory.starts_with(root)
            && wanted > 0
        {
            if directory.is_dir() {
                let names = meanings.entry(directory.to_owned()).or_default();
                names.insert(child.file_name().unwrap_or_default().to_owned(), meant);
                wanted -= 1;
            }
            meant = Touched::Everything;
            child = directory;
        }
    }
    meanings
}

fn meaning(meanings: &Meanings, event: &Event) -> Option<Touched> {
    let Ok(event) = event else { return Some(Touched::Everything) };
    if event.need_rescan() {
        return Some(Touched::Everything);
    }
    let mut files = BTreeSet::new();
    for path in &event.paths {
        let name = |directory: &Path| meanings.get(directory)?.get(path.file_name()?);
        match path.parent().and_then(name) {
            // Being opened and read is no change, and our own looking would otherwise wake us.
            _ if matches!(event.kind, EventKind::Access(_)) => {}
            Some(Touched::Files(touched)) => files.extend(touched.iter().cloned()),
            // Of a directory only that it comes or goes; what happens inside has its own watch.
            Some(Touched::Everything)
                if !matches!(event.kind, EventKind::Modify(notify::event::ModifyKind::Metadata(_))) =>
            {
                return Some(Touched::Everything);
            }
            _ => {}
        }
    }
    (!files.is_empty()).then_some(Touched::Files(files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    fn watch(root: &Path, paths: &[&str]) -> (DriftWatch, Receiver<Touched>) {
        let (sender, receiver) = channel();
        let paths: Vec<HostPath> = paths.iter().map(|path| HostPath::from(*path)).collect();
        let watch = DriftWatch::over(root, &paths, move |touched| drop(sender.send(touched))).unwrap();
        (watch, receiver)
    }

    fn next(receiver: &Receiver<Touched>) -> Touched {
        receiver.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn file(path: &str) -> Touched {
        Touched::Files(BTreeSet::from([HostPath::from(path)]))
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // plays somebody who changes files
    fn changes_of_managed_files_are_told_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/kafka");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("a"), "1").unwrap();
        let (watch, receiver) = watch(root.path(), &["/etc/kafka/a", "/etc/kafka/b", "/etc/kafka/c"]);
        assert_eq!(watch.watches(), 2, "the directory and its parent, once for all files");
        std::fs::read(etc.join("a")).unwrap();
        std::fs::write(etc.join("stranger"), "1").unwrap();
        std::fs::write(etc.join("b.tmp"), "1").unwrap();
        std::fs::rename(etc.join("b.tmp"), etc.join("b")).unwrap();
        assert_eq!(next(&receiver), file("/etc/kafka/b"), "not the reading, not the stranger, the rename");
        std::fs::remove_file(etc.join("a")).unwrap();
        while next(&receiver) != file("/etc/kafka/a") {}
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // plays somebody who changes files
    fn directories_that_go_and_come_back_mean_everything() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/kafka");
        std::fs::create_dir_all(&etc).unwrap();
        let (_watch, receiver) = watch(root.path(), &["/etc/kafka/a"]);
        std::fs::rename(&etc, root.path().join("etc/old")).unwrap();
        assert_eq!(next(&receiver), Touched::Everything);
        let (_watch, receiver) = self::watch(root.path(), &["/etc/kafka/deep/a"]);
        std::fs::create_dir_all(&etc).unwrap();
        assert_eq!(next(&receiver), Touched::Everything);
    }
}
