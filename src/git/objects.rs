//! Objects by id, from our own store or from the quarantine: the bytes that come out hash to the id that was asked for.
//!
//! Never: a decision about what they say.

use git2::{ObjectType, Odb, OdbLookupFlags, Oid};

use super::reader::Reader;
use super::{GitError, merge};
use crate::name::CommitId;

#[derive(Debug)]
pub(super) struct Object {
    pub kind: ObjectType,
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum Within {
    Whole(Object),
    /// Its size in bytes.
    Larger(u64),
}

/// A store of ours, and behind it what remotes sent: what the one lacks, or has damaged, the other may have.
pub(super) struct Objects<'a> {
    repository: &'a git2::Repository,
    own: Odb<'a>,
    foreign: Option<&'a Reader>,
}

impl<'a> Objects<'a> {
    /// One repository alone.
    pub fn of(repository: &'a git2::Repository) -> Result<Self, GitError> {
        let own = repository.odb().map_err(super::store("open the object store"))?;
        Ok(Self { repository, own, foreign: None })
    }

    pub fn with(repository: &'a git2::Repository, foreign: &'a Reader) -> Result<Self, GitError> {
        Ok(Self { foreign: Some(foreign), ..Self::of(repository)? })
    }

    pub fn read(&self, id: Oid) -> Result<Object, GitError> {
        match self.read_within(id, self.foreign.map_or(u64::MAX, Reader::max))? {
            Within::Whole(object) => Ok(object),
            Within::Larger(_) => {
                Err(GitError::limit("pack_mib", (self.foreign.map_or(0, Reader::max) >> 20) as usize, &id.to_string()))
            }
        }
    }

    /// An object of at most `max` bytes.
    pub fn read_within(&self, id: Oid, max: u64) -> Result<Within, GitError> {
        if let Some(object) = self.foreign.and_then(|foreign| foreign.held(id)) {
            return Ok(bounded(object, max));
        }
        let absent = || git2::Error::from_str("it is not in the store");
        // Looking again at what is on disk is for those who wrote there.
        let there = self.own.exists_ext(id, OdbLookupFlags::NO_REFRESH);
        let own = if there || self.foreign.is_none() { self.own.read(id) } else { Err(absent()) };
        match (own, self.foreign) {
            (Ok(object), _) => Ok(bounded(Object { kind: object.kind(), bytes: object.data().to_vec() }, max)),
            (Err(_), Some(foreign)) => foreign.read(id, max),
            (Err(source), None) => Err(GitError::Object { id: id.to_string(), source }),
        }
    }

    /// Each of these objects, in this order; those of the quarantine are asked for together.
    pub fn read_all(
        &self,
        ids: &[Oid],
        mut take: impl FnMut(Oid, Object) -> Result<(), GitError>,
    ) -> Result<(), GitError> {
        let Some(foreign) = self.foreign else {
            return ids.iter().try_for_each(|id| take(*id, self.read(*id)?));
        };
        foreign.read_all(ids, foreign.max(), |id, within| match within {
            Within::Whole(object) => take(id, object),
            Within::Larger(_) => Err(GitError::limit("pack_mib", (foreign.max() >> 20) as usize, &id.to_string())),
        })
    }

    /// Reads the first-parent chain of `tip` ahead, down to one of `until`: walking it afterwards asks nobody.
    pub fn chain_ahead(&self, tip: Oid, until: &[Oid], commits: usize) -> Result<(), GitError> {
        match self.foreign {
            Some(foreign) if !self.own.exists_ext(tip, OdbLookupFlags::NO_REFRESH) => {
                foreign.chain_ahead(tip, until, commits)
            }
            _ => Ok(()),
        }
    }

    /// The same of all ancestors, the first time: later ones are few.
    pub fn history_ahead(&self, tip: Oid, commits: usize) -> Result<(), GitError> {
        self.foreign.map_or(Ok(()), |foreign| foreign.history_ahead(tip, commits))
    }

    /// The bytes of a commit object.
    pub fn commit(&self, id: Oid) -> Result<Vec<u8>, GitError> {
        let object = self.read(id)?;
        match object.kind {
            ObjectType::Commit => Ok(object.bytes),
            _ => Err(GitError::NotACommit { id: id.to_string() }),
        }
    }

    /// The tree that merging `theirs` into `ours` gives; `None`: there are conflicts.
    pub fn merge(&self, ours: Oid, theirs: Oid, base: Oid) -> Result<Option<Oid>, GitError> {
        match self.foreign {
            Some(foreign) => foreign.merge(ours, theirs, base),
            None => merge::recompute(self.repository, ours, theirs, base).map_err(super::store("make a merge again")),
        }
    }
}

fn bounded(object: Object, max: u64) -> Within {
    let size = object.bytes.len() as u64;
    if size > max { Within::Larger(size) } else { Within::Whole(object) }
}

pub(super) fn oid(id: &CommitId) -> Result<Oid, GitError> {
    Oid::from_str(id.as_str()).map_err(|source| GitError::Object { id: id.to_string(), source })
}

pub(super) fn name(id: Oid) -> CommitId {
    CommitId::new(id.to_string())
}

pub(super) fn tree_id(raw: &[u8]) -> Result<Oid, GitError> {
    header(raw, "tree").next().unwrap_or_else(|| Err(GitError::NotACommit { id: "without a tree".to_owned() }))
}

pub(super) fn parents(raw: &[u8]) -> Result<Vec<Oid>, GitError> {
    header(raw, "parent").collect()
}

pub(super) fn first_parent(raw: &[u8]) -> Result<Option<Oid>, GitError> {
    header(raw, "parent").next().transpose()
}

/// The values of the headers of this name. Only where to look next: `trust` reads the commit strictly afterwards.
fn header<'a>(raw: &'a [u8], name: &'a str) -> impl Iterator<Item = Result<Oid, GitError>> + 'a {
    let lines = raw.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
    let values = lines.filter_map(move |line| line.strip_prefix(name.as_bytes())?.strip_prefix(b" "));
    values.map(|value| {
        let id = str::from_utf8(value).ok().and_then(|text| Oid::from_str(text).ok());
        id.ok_or_else(|| GitError::NotACommit { id: String::from_utf8_lossy(value).into_owned() })
    })
}
