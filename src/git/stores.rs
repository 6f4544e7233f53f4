//! The two stores on disk: `objects.git`, which is ours, and the folder that belongs to whoever fetches.
//!
//! Never: libgit2 on the quarantine; an object written that was not hashed before.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use git2::{Oid, Repository};

use super::objects::Object;
use super::sandbox::User;
use super::{GitError, store};
use crate::disk;
use crate::settings::Limits;

/// Verified objects that are kept in memory before they are written.
const BATCH_BYTES: usize = 64 << 20;
/// More packs than this become one.
const OWN_PACKS_MAX: usize = 50;
/// More than this, and the quarantine is fetched anew.
const QUARANTINE_PACKS_MAX: usize = 200;

/// Opens or makes `objects.git`.
pub(super) fn open(state: &Path) -> Result<Repository, GitError> {
    let path = state.join("objects.git");
    disk::create_dirs(state)?;
    disk::create_dirs(&path)?;
    let opened = Repository::open_bare(&path).or_else(|_| {
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        Repository::init_opts(&path, &options)
    });
    opened.map_err(|source| GitError::Open { path, source })
}

pub(super) fn reopen(repository: &Repository) -> Result<Repository, GitError> {
    let path = repository.path();
    Repository::open_bare(path).map_err(|source| GitError::Open { path: path.to_owned(), source })
}

/// The folder of the quarantine, entered by `user` only. The cache above it lets others through, and shows nothing.
pub(super) fn make_quarantine(cache: &Path, quarantine: &Path, user: Option<User>) -> Result<(), GitError> {
    disk::create_dirs(cache)?;
    if user.is_some() {
        let through = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(cache, through).map_err(folder(cache))?;
    }
    make_quarantine_again(quarantine, user)
}

/// One that belongs to somebody else, or that others can enter, is thrown away with all in it.
pub(super) fn make_quarantine_again(path: &Path, user: Option<User>) -> Result<(), GitError> {
    let owner = user.map_or(rustix::process::geteuid().as_raw(), |user| user.uid);
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() && meta.uid() == owner && meta.mode() & 0o077 == 0 => return Ok(()),
        Ok(_) => disk::remove(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(folder(path)(error)),
    }
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(folder(path))?;
    if let Some(User { uid, gid }) = user {
        // Nobody else can have put something else here: the cache is ours.
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(folder(path))?;
    }
    Ok(())
}

fn folder(path: &Path) -> impl FnOnce(std::io::Error) -> GitError {
    move |source| GitError::Folder { path: path.to_owned(), source }
}

/// Every fetch leaves a pack there, and nobody packs them together.
pub(super) fn is_overgrown(quarantine: &Path, limits: &Limits) -> bool {
    let (mut packs, mut bytes) = (0, 0);
    // Names and sizes only.
    for entry in std::fs::read_dir(quarantine.join("objects/pack")).into_iter().flatten().flatten() {
        packs += usize::from(entry.path().extension().is_some_and(|end| end == "pack"));
        bytes += entry.metadata().map_or(0, |meta| meta.len());
    }
    packs > QUARANTINE_PACKS_MAX || bytes > 2 * (limits.pack_mib << 20) + (64 << 20)
}

/// Verified objects on their way into our store: packs of what fits into memory.
pub(super) struct Incoming<'a> {
    objects: &'a Repository,
    /// Another view of the store, with memory in front of it.
    batch: Option<Batch>,
}

struct Batch {
    view: Repository,
    ids: Vec<Oid>,
    bytes: usize,
}

impl Batch {
    fn over(objects: &Repository) -> Result<Self, GitError> {
        let view = reopen(objects)?;
        let in_memory = view.odb().and_then(|odb| odb.add_new_mempack_backend(1000).map(drop));
        in_memory.map_err(store("collect the verified objects"))?;
        Ok(Self { view, ids: Vec::new(), bytes: 0 })
    }
}

impl<'a> Incoming<'a> {
    pub fn new(objects: &'a Repository) -> Self {
        Self { objects, batch: None }
    }

    /// `id` is the hash of the object's kind and bytes.
    pub fn add(&mut self, id: Oid, object: &Object) -> Result<(), GitError> {
        if self.batch.as_ref().is_some_and(|batch| batch.bytes > BATCH_BYTES) {
            self.flush()?;
        }
        let batch = match &mut self.batch {
            Some(batch) => batch,
            none => none.insert(Batch::over(self.objects)?),
        };
        let odb = batch.view.odb().map_err(store("open the verified store"))?;
        let written = odb.write(object.kind, &object.bytes).map_err(store("collect the verified objects"))?;
        if written != id {
            return Err(GitError::NotATree { id: id.to_string() });
        }
        batch.ids.push(id);
        batch.bytes += object.bytes.len();
        Ok(())
    }

    pub fn finish(mut self) -> Result<(), GitError> {
        self.flush()
    }

    fn flush(&mut self) -> Result<(), GitError> {
        match self.batch.take() {
            Some(batch) => write_pack(&batch.view, &batch.ids).map(drop),
            None => Ok(()),
        }
    }
}

/// One new pack of these objects, durable when this returns. Its name.
fn write_pack(view: &Repository, ids: &[Oid]) -> Result<String, GitError> {
    let incoming = view.path().join("incoming");
    disk::remove(&incoming)?;
    disk::create_dirs(&incoming)?;
    let pack = || -> Result<Option<String>, git2::Error> {
        let mut builder = view.packbuilder()?;
        for id in ids {
            builder.insert_object(*id, None)?;
        }
        builder.write(&incoming, 0o600)?;
        Ok(builder.name()?.map(str::to_owned))
    };
    let name = pack().map_err(store("pack the verified objects"))?.unwrap_or_default();
    // The index comes last: without it the pack is not seen.
    for suffix in ["pack", "idx"] {
        let file = format!("pack-{name}.{suffix}");
        disk::install(&incoming.join(&file), &view.path().join("objects/pack").join(&file))?;
    }
    disk::remove(&incoming)?;
    Ok(name)
}

/// Many small packs become one. Whether there was something to do: then the store must be opened again.
pub(super) fn consolidate(objects: &Repository) -> Result<bool, GitError> {
    let folder_of_packs = objects.path().join("objects/pack");
    let listed = std::fs::read_dir(&folder_of_packs).map_err(folder(&folder_of_packs))?;
    let packs: Vec<_> = listed.flatten().map(|entry| entry.path()).filter(|path| ends(path, "pack")).collect();
    if packs.len() <= OWN_PACKS_MAX {
        return Ok(false);
    }
    let mut ids = Vec::new();
    let view = reopen(objects)?;
    let odb = view.odb().map_err(store("open the verified store"))?;
    odb.foreach(|id| {
        ids.push(*id);
        true
    })
    .map_err(store("list the verified objects"))?;
    let name = write_pack(&view, &ids)?;
    for old in packs.iter().filter(|path| !path.ends_with(format!("pack-{name}.pack"))) {
        // Without its index a pack is not seen; what a crash leaves is found next time.
        disk::remove(&old.with_extension("idx"))?;
        disk::remove(old)?;
    }
    Ok(true)
}

fn ends(path: &Path, with: &str) -> bool {
    path.extension().is_some_and(|end| end == with)
}
