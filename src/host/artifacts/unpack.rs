//! Writes a judged archive below one directory, held by descriptor.
//!
//! Twice over the archive: first every entry is judged ([`super::tree`]), then files are written where the judgement put
//! them. Links come last, so nothing is ever written through one, and every path is opened with `openat2` beneath the
//! directory and without links besides. Everything belongs to whom we are, is readable for all and writable for nobody
//! else; of the archive's modes only "executable" is kept. Never: a path that was not judged, an owner, a set-id bit, an
//! extended attribute.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::archive::{self, ArchiveError, Item, Kind};
use super::tree::{LIMITS, Limits, Node, Survey, Tree};
use crate::resource::artifact::Form;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("it unpacks to {needed} bytes, and {free} are free")]
    NoRoom { needed: u64, free: u64 },
    #[error("cannot write {path}")]
    Write { path: String, source: io::Error },
}

fn write(path: &str) -> impl Fn(Errno) -> UnpackError {
    let path = path.to_owned();
    move |error| UnpackError::Write { path: path.clone(), source: error.into() }
}

/// Judges the whole archive; nothing is written.
pub fn survey(file: &File, form: Form, name: &str, limits: Limits) -> Result<Tree, ArchiveError> {
    let packed = file.metadata()?.len();
    let mut survey = Survey::new(packed, limits);
    if form == Form::Single {
        survey.file(name.as_bytes(), packed, false)?;
        return Ok(survey.finish()?);
    }
    each(file, form, &mut |item: Item<'_>| {
        match item.kind {
            Kind::Directory => survey.directory(item.name)?,
            Kind::Link(target) => survey.link(item.name, target)?,
            Kind::Hard(target) => survey.hard(item.name, target)?,
            Kind::File { bytes, executable } => {
                survey.file(item.name, bytes, executable)?;
                // Read to its end: a zip file's checksums are compared, a tar file's end is seen.
                copied(item.content, &mut io::sink(), bytes, item.name)?;
            }
        }
        Ok(())
    })?;
    Ok(survey.finish()?)
}

/// Unpacks below `into`, an empty directory of ours.
pub fn unpack(file: &File, form: Form, name: &str, into: BorrowedFd<'_>) -> Result<(), UnpackError> {
    let tree = survey(file, form, name, LIMITS)?;
    let free = rustix::fs::fstatvfs(into).map_err(write("."))?;
    // A block for each entry besides.
    let block = free.f_frsize.max(4096);
    let (needed, free) = (tree.bytes + tree.nodes.len() as u64 * block, free.f_bavail * free.f_frsize);
    if needed > free {
        return Err(UnpackError::NoRoom { needed, free });
    }
    for (path, _) in tree.nodes.iter().filter(|(_, node)| **node == Node::Directory) {
        let (parent, name) = parent(into, path)?;
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(&parent, name, mode).map_err(write(path))?;
        // The umask is not ours to know.
        let made =
            open(parent.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map_err(write(path))?;
        rustix::fs::fchmod(&made, mode).map_err(write(path))?;
    }
    files(file, form, name, into, &tree)?;
    for (path, node) in &tree.nodes {
        let failed = write(path);
        match node {
            Node::Hard(target) => {
                let ((from, old), (to, new)) = (parent(into, target)?, parent(into, path)?);
                rustix::fs::linkat(&from, old, &to, new, AtFlags::empty()).map_err(failed)?;
            }
            Node::Link(target) => {
                let (to, new) = parent(into, path)?;
                rustix::fs::symlinkat(target.as_str(), &to, new).map_err(failed)?;
            }
            Node::Directory | Node::File { .. } => {}
        }
    }
    Ok(())
}

fn files(file: &File, form: Form, name: &str, into: BorrowedFd<'_>, tree: &Tree) -> Result<(), UnpackError> {
    if form == Form::Single {
        let mut whole = file;
        whole.rewind().map_err(ArchiveError::from)?;
        return put(into, name, tree.bytes, 0o644, None, &mut whole);
    }
    let mut failure = None;
    let walked = each(file, form, &mut |item: Item<'_>| {
        let Kind::File { bytes, .. } = item.kind else { return Ok(()) };
        let place = tree.place(item.name)?;
        let judged = place.as_ref().and_then(|path| tree.nodes.get(path));
        let (Some(path), Some(Node::File { bytes: known, executable })) = (place.as_deref(), judged) else {
            return Err(io::Error::other("the archive changed while it was read").into());
        };
        if bytes != *known {
            return Err(io::Error::other("the archive changed while it was read").into());
        }
        let mode = if *executable { 0o755 } else { 0o644 };
        put(into, path, bytes, mode, item.modified, item.content).map_err(|error| match error {
            UnpackError::Archive(error) => error,
            error => {
                failure = Some(error);
                io::Error::other("writing failed").into()
            }
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(walked?),
    }
}

fn each(
    file: &File,
    form: Form,
    act: &mut dyn FnMut(Item<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut from = file.try_clone()?;
    from.rewind()?;
    match form {
        Form::Tar(packing) => archive::tar(from, packing, act),
        Form::Zip => archive::zip(from, act),
        Form::Single => Ok(()),
    }
}

fn put(
    into: BorrowedFd<'_>,
    path: &str,
    bytes: u64,
    mode: u32,
    modified: Option<u64>,
    content: &mut dyn Read,
) -> Result<(), UnpackError> {
    let failed = write(path);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let fd = open(into, path, flags, Mode::from_raw_mode(0o600)).map_err(&failed)?;
    let mut out = File::from(fd);
    copied(content, &mut Writing { out: &mut out, path }, bytes, path.as_bytes()).map_err(|error| match error {
        ArchiveError::Read(error) => match error.downcast::<WriteFailed>() {
            Ok(WriteFailed { path, source }) => UnpackError::Write { path, source },
            Err(error) => ArchiveError::Read(error).into(),
        },
        error => error.into(),
    })?;
    rustix::fs::fchmod(&out, Mode::from_raw_mode(mode)).map_err(&failed)?;
    // Some programs compare it (Python's compiled files).
    if let Some(seconds) = modified.and_then(|seconds| i64::try_from(seconds).ok()) {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let _ = rustix::fs::futimens(&out, &Timestamps { last_access: time, last_modification: time });
    }
    Ok(())
}

/// Exactly as many bytes as were told.
fn copied(from: &mut dyn Read, to: &mut dyn io::Write, bytes: u64, name: &[u8]) -> Result<(), ArchiveError> {
    // One more is asked for: a checksum is compared where the content ends, and more than told is a lie.
    let copied = io::copy(&mut from.take(bytes + 1), to)?;
    if copied == bytes {
        return Ok(());
    }
    let why = format!("{copied} bytes where {bytes} are announced");
    Err(super::tree::Refusal { entry: String::from_utf8_lossy(name).into_owned(), why }.into())
}

/// Tells a failed write from a failed read.
struct Writing<'a> {
    out: &'a mut File,
    path: &'a str,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
struct WriteFailed {
    path: String,
    source: io::Error,
}

impl io::Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let path = self.path;
        self.out.write(bytes).map_err(|source| io::Error::other(WriteFailed { path: path.to_owned(), source }))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The directory of `path`, and its last part.
fn parent<'p>(into: BorrowedFd<'_>, path: &'p str) -> Result<(OwnedFd, &'p str), UnpackError> {
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    Ok((open(into, directory, flags, Mode::empty()).map_err(write(path))?, name))
}

fn open(into: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(into, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, resolve)
}
