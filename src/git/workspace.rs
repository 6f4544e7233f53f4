//! An engineer's repository, or a plain folder: read as it is, committed or not.
//!
//! Never: a verification that nobody asked for (whose machine it is trusts it already); a judgement of its own.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use git2::Oid;

use super::links::{Merges, links};
use super::objects::{Objects, name, tree_id};
use super::relation::relation;
use super::{GitError, store, transport, tree};
use crate::fleet::tree::Tree;
use crate::name::CommitId;
use crate::settings::{Limits, TrustRoot};
use crate::trust::commit::{Commit, payload_sha256};
use crate::trust::{self, Acceptance, Accepted, Link, Offer, Signer, Verified};

/// A commit as people name it, in a repository of an engineer: nothing here is verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitSummary {
    pub id: CommitId,
    pub subject: String,
    pub author: String,
    /// Fingerprint of the key that signed it, where the signature matches; whether that key may sign is not looked at.
    pub signer: Option<String>,
}

/// An engineer's repository, or a folder inside or outside of one.
pub struct Workspace {
    path: PathBuf,
    repository: Option<git2::Repository>,
    limits: Limits,
}

impl Workspace {
    pub fn open(path: &Path) -> Result<Self, GitError> {
        transport::prepare();
        let path = path.canonicalize().map_err(|source| GitError::Folder { path: path.to_owned(), source })?;
        let repository = match git2::Repository::discover(&path) {
            Ok(repository) => Some(repository),
            Err(error) if error.code() == git2::ErrorCode::NotFound => None,
            Err(source) => return Err(GitError::Open { path, source }),
        };
        Ok(Self { path, repository, limits: Limits::default() })
    }

    /// The folder as it is, committed or not, without what git ignores.
    pub fn tree_of_worktree(&self) -> Result<Tree, GitError> {
        let ignored = |path: &Path| {
            self.repository.as_ref().is_some_and(|repository| repository.is_path_ignored(path).unwrap_or(false))
        };
        tree::of_folder(&self.path, &ignored, &self.limits)
    }

    /// The files of a revision; of the folder that was opened, where that lies inside the repository.
    pub fn tree_at(&self, revision: &str) -> Result<Tree, GitError> {
        let (id, repository) = self.commit(revision)?;
        let objects = Objects::of(repository)?;
        let mut root = tree_id(&objects.commit(id)?)?;
        let below = repository.workdir().and_then(|work| work.canonicalize().ok());
        if let Some(below) = below.and_then(|work| self.path.strip_prefix(work).ok().map(Path::to_owned))
            && let Some(folder) = below.to_str().filter(|folder| !folder.is_empty())
        {
            let entry = tree::entry_at(&objects, root, folder)?.filter(tree::Entry::is_folder);
            root = entry.ok_or_else(|| GitError::NotATree { id: format!("{revision}:{folder}") })?.id;
        }
        tree::load(&objects, &name(id), root, &self.limits)
    }

    pub fn summary(&self, revision: &str) -> Result<CommitSummary, GitError> {
        let (id, repository) = self.commit(revision)?;
        summary(&Objects::of(repository)?, id)
    }

    /// Commits that `head` has by first parents and `base` has not, newest first.
    pub fn between(&self, base: &str, head: &str) -> Result<Vec<CommitSummary>, GitError> {
        let ((base, repository), (head, _)) = (self.commit(base)?, self.commit(head)?);
        let failed = store("list the commits between two revisions");
        let walk = || -> Result<Vec<Oid>, git2::Error> {
            let mut walk = repository.revwalk()?;
            walk.simplify_first_parent()?;
            walk.push(head)?;
            walk.hide(base)?;
            walk.collect()
        };
        let objects = Objects::of(repository)?;
        walk().map_err(failed)?.into_iter().map(|id| summary(&objects, id)).collect()
    }

    /// Judges the first parents of a revision as a node does: from the introduction of `root` or, as if `since` had been
    /// accepted, from there. Sequence numbers go on from the introduction, or from 0 at `since`.
    pub fn verify(&self, root: &TrustRoot, revision: &str, since: Option<&str>) -> Result<Verified, GitError> {
        let accepted = since.map(|since| self.as_if_accepted(root, since)).transpose()?;
        self.judge(root, revision, accepted.as_ref())
    }

    /// What a node that has accepted this would make of a revision. The last good commit of a refusal is the last one that was
    /// verified.
    pub fn judge(&self, root: &TrustRoot, revision: &str, accepted: Option<&Accepted>) -> Result<Verified, GitError> {
        let (tip, repository) = self.commit(revision)?;
        let objects = Objects::of(repository)?;
        let floor = accepted.filter(|accepted| accepted.binds(root));
        let (relation, new) = relation(&objects, tip, root, floor)?;
        let offer = Offer { tip: name(tip), raw: objects.commit(tip)?, relation };
        let merges = Merges::new(&objects, &root.limits);
        let judged = Cell::new(0_usize);
        let links = links(&objects, new.clone(), &root.limits).inspect(|_| judged.set(judged.get() + 1));
        let verified = trust::verify(root, accepted, &offer, links, |link| merges.evidence(&link.raw));
        verified.map_err(|error| match error {
            GitError::Refused(mut refusal) => {
                let before = judged.get().checked_sub(2).and_then(|before| new.get(before)).map(|id| name(*id));
                refusal.last_good = before.or(refusal.last_good);
                GitError::Refused(refusal)
            }
            error => error,
        })
    }

    /// What judging one commit needs; for a commit without parents its own `trust/` stands in for its parent's.
    pub fn link(&self, revision: &str) -> Result<Link, GitError> {
        let (id, repository) = self.commit(revision)?;
        let objects = Objects::of(repository)?;
        let link = links(&objects, vec![id], &self.limits).next();
        link.unwrap_or_else(|| Err(GitError::NotACommit { id: id.to_string() }))
    }

    /// A value of the clone's own configuration: `git config` without the machine's and the user's.
    pub fn setting(&self, name: &str) -> Option<String> {
        self.repository.as_ref()?.config().ok()?.get_string(name).ok()
    }

    /// A clone that lacks the older part of its history.
    pub fn is_shallow(&self) -> bool {
        self.repository.as_ref().is_some_and(git2::Repository::is_shallow)
    }

    fn as_if_accepted(&self, root: &TrustRoot, since: &str) -> Result<Accepted, GitError> {
        let (id, repository) = self.commit(since)?;
        let raw = Objects::of(repository)?.commit(id)?;
        let payload = Commit::parse(&raw).map_or(raw, |commit| commit.payload);
        Ok(Accepted {
            fleet: root.fleet.clone(),
            introduction: root.introduction.commit.clone(),
            commit: name(id),
            payload_sha256: payload_sha256(&payload),
            seq: 0,
            subject: String::new(),
            // Whoever named it stands for it.
            acceptance: Acceptance::Signed(Signer { principal: String::new(), fingerprint: String::new() }),
        })
    }

    fn commit(&self, revision: &str) -> Result<(Oid, &git2::Repository), GitError> {
        // Said by its full id it need not be a commit to git: why it is none is for `trust` to say.
        if let (Ok(id), Some(repository)) = (Oid::from_str(revision), &self.repository)
            && revision.len() == 40
            && repository.odb().is_ok_and(|odb| odb.exists(id))
        {
            return Ok((id, repository));
        }
        let absent = |source| GitError::NoRevision { path: self.path.clone(), revision: revision.to_owned(), source };
        let repository = self.repository.as_ref().ok_or_else(|| absent(git2::Error::from_str("no git repository")))?;
        let commit = repository.revparse_single(revision).and_then(|object| object.peel_to_commit()).map_err(absent)?;
        Ok((commit.id(), repository))
    }
}

fn summary(objects: &Objects<'_>, id: Oid) -> Result<CommitSummary, GitError> {
    let raw = objects.commit(id)?;
    let id = name(id);
    let Ok(commit) = Commit::parse(&raw) else {
        return Ok(CommitSummary { id, subject: "(unreadable)".into(), author: "(unreadable)".into(), signer: None });
    };
    let signer = commit.signature.and_then(|armor| trust::signature::verify(&armor, &commit.payload).ok());
    let signer = signer.map(|fingerprint| fingerprint.to_string());
    Ok(CommitSummary { id, subject: commit.subject, author: commit.author, signer })
}
