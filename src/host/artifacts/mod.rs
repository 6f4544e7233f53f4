//! `artifact`: an archive by its digest becomes a directory, and one link says which version is live.
//!
//! In reading order: [`fetch`] gets the bytes (from a mirror, through [`download`] in a child without root; [`s3`] signs),
//! [`unpack`] lets [`tree`] judge every entry that [`archive`] reads and writes what is good, [`place`] gives the directory
//! its name and switches `current`. Unpacking disturbs nobody and is done before a unit is stopped; switching is part of the
//! exchange, between stop and start. Never: a byte that does not belong to the digest of `versions.toml`.

pub mod archive;
pub mod download;
pub mod fetch;
mod place;
mod s3;
pub mod tree;
pub mod unpack;

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use self::archive::ArchiveError;
use self::fetch::{BOUNDS, Bounds, Fetch, FetchError, MirrorError};
use self::place::Home;
pub use self::place::MARKER;
use self::unpack::UnpackError;
use super::HostError;
use super::root::Root;
use crate::clock::Clock;
use crate::git::Children;
use crate::paths::Paths;
use crate::reason::{self, Reason};
use crate::resource::ArtifactSpec;
use crate::resource::artifact::{ArtifactState, Form};

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("{component} {version}")]
    Fetch { component: String, version: String, source: FetchError },
    #[error("{component} {version}")]
    Unpack { component: String, version: String, source: UnpackError },
    #[error("{file}: {end} is not unpacked here")]
    Form { file: String, end: &'static str },
    #[error("cannot download as another user")]
    NoUser { source: crate::git::GitError },
}

impl ArtifactError {
    pub fn reason(&self) -> Reason {
        let wrong = |(_, why): &(String, MirrorError)| matches!(why, MirrorError::Digest { .. });
        match self {
            Self::Fetch { source: FetchError::Mirrors(failures), .. } if failures.iter().any(wrong) => {
                reason::DIGEST_MISMATCH
            }
            Self::Fetch { source: FetchError::Mirrors(_), .. } => reason::MIRRORS_FAILED,
            Self::Unpack { source: UnpackError::Archive(ArchiveError::Refused(_) | ArchiveError::Zip(_)), .. } => {
                reason::ARCHIVE_REFUSED
            }
            Self::Fetch { .. } | Self::Unpack { .. } | Self::Form { .. } | Self::NoUser { .. } => reason::APPLY_FAILED,
        }
    }
}

/// What `current` points at.
pub fn observe(root: &Root, spec: &ArtifactSpec) -> ArtifactState {
    place::observe(root, spec)
}

/// Removes what was unpacked into `into`; what others put there stays.
pub fn discard(root: &Root, into: &str) -> Result<(), HostError> {
    place::discard(root, into)
}

/// The version is there and waits for its switch; nothing of what is live has changed.
pub fn unpack(root: &Root, store: &Store<'_>, spec: &ArtifactSpec) -> Result<(), HostError> {
    let home = Home::open(root, spec)?;
    let (component, version) = (spec.component.clone(), spec.version.clone());
    let fetch = Fetch { folder: &store.folder, children: &store.children, clock: store.clock, bounds: store.bounds };
    let fetched = |source| ArtifactError::Fetch { component: component.clone(), version: version.clone(), source };
    if home.is_unpacked() {
        return Ok(fetch.forget(spec).map_err(fetched)?);
    }
    let form = Form::of(&spec.file).map_err(|end| ArtifactError::Form { file: spec.file.clone(), end })?;
    home.prune()?;
    let archive = fetch.fetch(spec).map_err(&fetched)?;
    let staging = home.begin()?;
    match unpack::unpack(&archive, form, &spec.file, staging.as_fd()) {
        Ok(()) => home.finish(&staging)?,
        Err(source) => {
            home.abandon()?;
            return Err(ArtifactError::Unpack { component, version, source }.into());
        }
    }
    Ok(fetch.forget(spec).map_err(fetched)?)
}

/// `current` points at the version from now on.
pub fn switch(root: &Root, spec: &ArtifactSpec) -> Result<(), HostError> {
    Home::open(root, spec)?.switch()
}

/// A sandbox has no mirrors: an empty version stands for the archive.
pub fn stand_in(root: &Root, spec: &ArtifactSpec) -> Result<(), HostError> {
    let home = Home::open(root, spec)?;
    if home.is_unpacked() {
        return Ok(());
    }
    home.prune()?;
    home.stand_in()
}

/// Where archives come through.
pub struct Store<'a> {
    folder: PathBuf,
    children: Children,
    clock: &'a dyn Clock,
    bounds: Bounds,
}

impl<'a> Store<'a> {
    /// `cache`: the agent's own.
    pub fn new(cache: &Path, children: Children, clock: &'a dyn Clock) -> Self {
        Self { folder: cache.join("artifacts"), children, clock, bounds: BOUNDS }
    }

    pub fn bounded(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// The machine's own.
    pub fn of_the_machine(clock: &'a dyn Clock) -> Result<Self, ArtifactError> {
        let children = Children::of_the_machine().map_err(|source| ArtifactError::NoUser { source })?;
        let paths = Paths::below(Path::new("/"));
        Ok(Self::new(&paths.cache(), children, clock))
    }
}
