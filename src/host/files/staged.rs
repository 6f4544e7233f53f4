//! Candidates of a batch: all on disk before the first is renamed, each file old or new whatever happens.
//!
//! Never: truncates a file that somebody reads, leaves a candidate behind when it fails.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::accounts::Numbers;
use super::in_place::replaceable;
use super::stage::{CANDIDATE, STAGE, Stage, mount_of, open_stage, top_of_mount};
use super::stat::{plain, stamp, stat};
use super::{FSYNC_FILES_MAX, Owners, labels, room};
use crate::clock::Clock;
use crate::host::root::{Directory, Root, file, split};
use crate::host::{HostError, backup};
use crate::name::HostPath;
use crate::resource::file::{Previous, Stamp};
use crate::resource::{Digest, FileSpec};

/// Candidates on disk, in the order they will go live.
#[derive(Default)]
pub struct Staged {
    candidates: Vec<Candidate>,
    stages: Vec<Stage>,
    /// Directories that had to be made for the targets, outermost first.
    made: Vec<String>,
}

struct Candidate {
    path: HostPath,
    stage: usize,
    name: String,
    digest: Digest,
    previous: Previous,
}

impl Staged {
    /// Writes a candidate for each file; all are durable when it returns, or nothing is left of any.
    pub fn write(root: &Root, owners: Owners, specs: &[(&FileSpec, Previous)]) -> Result<Self, HostError> {
        let mut staged = Self::default();
        match staged.write_all(root, owners, specs) {
            Ok(()) => Ok(staged),
            Err(error) => {
                staged.forget(root);
                Err(error)
            }
        }
    }

    fn write_all(&mut self, root: &Root, owners: Owners, specs: &[(&FileSpec, Previous)]) -> Result<(), HostError> {
        room::check(root, specs)?;
        let mut numbers = Numbers::default();
        let mut last: Option<(String, Directory, usize)> = None;
        for (spec, previous) in specs {
            let path = spec.path.as_str();
            let (parent, name) = split(path)?;
            if last.as_ref().is_none_or(|(before, ..)| before != parent) {
                let (directory, made) = root.make_directory(parent)?;
                self.made.extend(made);
                let stage = self.stage(root, &directory)?;
                last = Some((parent.to_owned(), directory, stage));
            }
            let Some((_, directory, stage)) = &last else { continue };
            replaceable(directory, name, path)?;
            let account = if owners == Owners::Kept { Some(numbers.of(spec)?) } else { None };
            let bytes = spec.content.bytes().ok_or_else(|| HostError::File {
                operation: "stage",
                path: path.to_owned(),
                source: std::io::Error::other("a secret in it cannot be opened on this node"),
            })?;
            let candidate = Candidate {
                path: spec.path.clone(),
                stage: *stage,
                name: format!("{CANDIDATE}{}", self.candidates.len()),
                digest: Digest::of(bytes),
                previous: *previous,
            };
            let fd = &self.stages[*stage].fd;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(fd, &candidate.name, flags, Mode::from_raw_mode(0o600));
            let mut out = File::from(opened.map_err(file("stage", path))?);
            self.candidates.push(candidate);
            let failed = |source| HostError::File { operation: "stage", path: path.to_owned(), source };
            plain(&out).map_err(file("stage", path))?;
            labels::set(&out, directory, name).map_err(file("label", path))?;
            out.write_all(bytes).map_err(failed)?;
            if let Some((user, group)) = account {
                rustix::fs::fchown(&out, Some(user), Some(group)).map_err(file("set the owner of", path))?;
            }
            // After the owner, which would clear set-user-id bits.
            rustix::fs::fchmod(&out, Mode::from_raw_mode(spec.mode)).map_err(file("set the mode of", path))?;
            if specs.len() <= FSYNC_FILES_MAX {
                out.sync_all().map_err(failed)?;
            }
        }
        if specs.len() > FSYNC_FILES_MAX {
            self.sync_mounts()?;
        }
        Ok(())
    }

    /// The staging directory on the mount where `directory` is.
    fn stage(&mut self, root: &Root, directory: &Directory) -> Result<usize, HostError> {
        let mount = mount_of(directory)?;
        if let Some(index) = self.stages.iter().position(|stage| stage.mount == mount) {
            return Ok(index);
        }
        let (home, top) = top_of_mount(root, directory)?;
        let fd = open_stage(&home, &top)?;
        self.stages.push(Stage { mount, top: home.fd, fd });
        Ok(self.stages.len() - 1)
    }

    /// Renames everything into place, previous contents to the backups first. What is live when it fails is old or
    /// new; what was not renamed stays staged.
    pub fn go_live(&mut self, root: &Root, clock: &dyn Clock) -> Result<Vec<(HostPath, Stamp, Digest)>, HostError> {
        let mut kept = backup::Backups::default();
        for candidate in &self.candidates {
            kept.keep(root, clock, &candidate.path, Some(candidate.digest), candidate.previous)?;
        }
        kept.make_durable()?;
        let mut live = Vec::new();
        let renamed = self.rename_all(root, clock, &mut live);
        let durable = self.sync_directories(root, &live);
        renamed.and(durable)?;
        // Live now, and not to be taken back.
        self.candidates.clear();
        self.made.clear();
        self.forget(root);
        Ok(live)
    }

    fn rename_all(
        &mut self,
        root: &Root,
        clock: &dyn Clock,
        live: &mut Vec<(HostPath, Stamp, Digest)>,
    ) -> Result<(), HostError> {
        let mut last: Option<(String, Directory)> = None;
        for candidate in &self.candidates {
            let path = candidate.path.as_str();
            let (parent, name) = split(path)?;
            if last.as_ref().is_none_or(|(before, _)| before != parent) {
                let gone = || HostError::Blocked { path: parent.to_owned(), what: "it went away meanwhile".to_owned() };
                last = Some((parent.to_owned(), root.directory(parent)?.ok_or_else(gone)?));
            }
            let Some((_, directory)) = &last else { continue };
            let from = &self.stages[candidate.stage].fd;
            rustix::fs::renameat(from, &candidate.name, &directory.fd, name).map_err(file("replace", path))?;
            let stat = stat(directory, name).map_err(file("look at", path))?;
            live.push((candidate.path.clone(), stamp(&stat, clock), candidate.digest));
        }
        Ok(())
    }

    /// Makes the renames durable.
    fn sync_directories(&self, root: &Root, live: &[(HostPath, Stamp, Digest)]) -> Result<(), HostError> {
        if live.len() > FSYNC_FILES_MAX {
            return self.sync_mounts();
        }
        let parents = live.iter().map(|(path, ..)| path.as_str()).chain(self.made.iter().map(String::as_str));
        let parents: BTreeSet<&str> = parents.filter_map(|path| Some(split(path).ok()?.0)).collect();
        for parent in parents {
            if let Some(directory) = root.directory(parent)? {
                rustix::fs::fsync(&directory.fd).map_err(file("sync", parent))?;
            }
        }
        Ok(())
    }

    fn sync_mounts(&self) -> Result<(), HostError> {
        self.stages.iter().try_for_each(|stage| rustix::fs::syncfs(&stage.fd).map_err(file("sync", STAGE)))
    }

    /// Removes what is left of the candidates, and of the directories that were made for them.
    pub fn forget(&mut self, root: &Root) {
        for candidate in self.candidates.drain(..) {
            let _ = rustix::fs::unlinkat(&self.stages[candidate.stage].fd, &candidate.name, AtFlags::empty());
        }
        for stage in self.stages.drain(..) {
            let _ = rustix::fs::unlinkat(&stage.top, STAGE, AtFlags::REMOVEDIR);
        }
        for made in self.made.drain(..).rev() {
            if let Ok((parent, name)) = split(&made)
                && let Ok(Some(directory)) = root.directory(parent)
            {
                let _ = rustix::fs::unlinkat(&directory.fd, name, AtFlags::REMOVEDIR);
            }
        }
    }
}
