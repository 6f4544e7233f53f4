//! Git: remotes are fetched into a quarantine, verified commits are copied into our own store, trees are read by id.
//!
//! `quarantine.git` (cache, may be lost) holds whatever remotes sent: two kinds of children without privileges write and
//! read it (`quarantine`, in a [`sandbox`]), this process never opens it. `objects.git` (state) holds verified objects
//! only. Both are bare and see no configuration but their own. Never: a work tree, a hook, a filter, a replace ref, a tag,
//! a shallow boundary; an object whose bytes do not hash to its id.

pub mod accepted;
mod admit;
pub(crate) mod child;
mod fetch;
mod graph;
mod https;
mod links;
pub mod merge;
mod objects;
pub mod quarantine;
mod readable;
mod reader;
mod relation;
pub mod sandbox;
mod ssh;
mod stores;
mod tip;
mod transport;
mod tree;
pub(crate) mod wire;
mod workspace;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use git2::Oid;

use crate::disk::DiskError;
use crate::fleet::problem::Problem;
use crate::fleet::tree::Tree;
use crate::name::CommitId;
use crate::reason::{self, Reason};
use crate::settings::{Limits, TrustRoot};
use crate::trust::commit::{Commit, payload_sha256};
use crate::trust::{self, Accepted, Offer, Refusal, Verified};
use admit::Wanted;
use child::ChildError;
pub use child::{Children, FETCH_USER};
pub use fetch::RemoteFailure;
use links::{Merges, links};
use objects::{Objects, first_parent, name, oid, tree_id};
use reader::Reader;
use relation::relation;
pub use workspace::{CommitSummary, Workspace};

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    #[error("no remote could be fetched from{}", RemoteFailure::listed(.0))]
    Unreachable(Vec<RemoteFailure>),
    #[error("more than [limits] {what} = {max}{}", if at.is_empty() { String::new() } else { format!(" at {at}") })]
    Limit { what: &'static str, max: usize, at: String },
    #[error("the tree of this commit has {} entries that are not read", .0.len())]
    BadTree(Vec<Problem>),
    #[error("cannot read object {id}")]
    Object { id: String, source: git2::Error },
    #[error("object {id} is no tree")]
    NotATree { id: String },
    #[error("object {id} is no commit")]
    NotACommit { id: String },
    #[error("the quarantine cannot be read")]
    Reader { source: Box<ChildError> },
    #[error(
        "there is no user {FETCH_USER}, as whom root fetches; install systemd/converger.sysusers as \
         /usr/lib/sysusers.d/converger.conf and run systemd-sysusers"
    )]
    NoFetchUser,
    #[error("cannot open the repository {path}")]
    Open { path: PathBuf, source: git2::Error },
    #[error("cannot {operation}")]
    Store { operation: &'static str, source: git2::Error },
    #[error("{path} has no revision \"{revision}\"")]
    NoRevision { path: PathBuf, revision: String, source: git2::Error },
    #[error("cannot list {path}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl GitError {
    fn limit(what: &'static str, max: usize, at: &str) -> Self {
        Self::Limit { what, max, at: at.escape_debug().to_string() }
    }

    /// The reason under which the node reports it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused(refusal) => refusal.reason,
            Self::Unreachable(failures) if failures.iter().any(|failure| failure.over_limit) => reason::LIMIT,
            Self::Limit { .. } => reason::LIMIT,
            Self::NoFetchUser => reason::SETTINGS,
            Self::NotACommit { .. } => reason::MALFORMED_COMMIT,
            Self::BadTree(_) | Self::NoRevision { .. } | Self::Folder { .. } => reason::REPOSITORY_INVALID,
            Self::Open { .. } | Self::Store { .. } | Self::Disk(_) => reason::APPLY_FAILED,
            _ => reason::SOURCE_UNREACHABLE,
        }
    }
}

/// The two stores of one node.
pub struct Repository {
    objects: git2::Repository,
    /// What remotes sent, by a child.
    reader: Reader,
    children: Children,
    quarantine: PathBuf,
    /// What each remote showed last; its objects are in the quarantine.
    seen: Vec<Option<Oid>>,
    health: Cell<Health>,
}

/// Whether the quarantine can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Health {
    Whole,
    /// Something was not there or not right, or it grew too large: it is fetched anew, once.
    Damaged,
    Renewed,
}

impl Repository {
    /// Opens or makes `objects.git` below `state`, and a place for `quarantine.git` below `cache`.
    pub fn open(state: &Path, cache: &Path, children: &Children) -> Result<Self, GitError> {
        transport::prepare();
        let objects = stores::open(state)?;
        let quarantine = cache.join("quarantine.git");
        stores::make_quarantine(cache, &quarantine, children.user)?;
        let reader = Reader::new(children.clone(), quarantine.clone());
        let (children, health) = (children.clone(), Cell::new(Health::Whole));
        Ok(Self { objects, reader, children, quarantine, seen: Vec::new(), health })
    }

    /// The last accepted commit again, without a remote. `None`: it does not bind under this trust root, or its
    /// objects are gone.
    pub fn resume(&self, root: &TrustRoot, accepted: &Accepted) -> Option<Verified> {
        let tip = Oid::from_str(accepted.commit.as_str()).ok()?;
        self.objects.find_commit(tip).ok()?;
        trust::again(root, accepted)
    }

    /// Copies what a verified commit consists of into the verified store, durably. Comes before its id is kept.
    pub fn admit(&mut self, verified: &Verified) -> Result<(), GitError> {
        self.copy(verified)?;
        // Nothing of what was read is needed any more.
        self.reader.end();
        if stores::consolidate(&self.objects)? {
            self.objects = stores::reopen(&self.objects)?;
        }
        Ok(())
    }

    fn copy(&self, verified: &Verified) -> Result<(), GitError> {
        let from = Objects::with(&self.objects, &self.reader)?;
        let to = self.objects.odb().map_err(store("open the verified store"))?;
        let mut wanted = Wanted::new(&from, &to);
        for id in verified.new_commits().iter().map(|commit| &commit.id).chain([verified.commit()]) {
            wanted.commit(oid(id)?)?;
        }
        let mut incoming = stores::Incoming::new(&self.objects);
        from.read_all(&wanted.ids, |id, object| incoming.add(id, &object))?;
        incoming.finish()?;
        to.refresh().map_err(store("see the new objects"))
    }

    /// The files of a verified commit. A bad entry is [`GitError::BadTree`], with all of them.
    pub fn tree(&self, verified: &Verified, limits: &Limits) -> Result<Tree, GitError> {
        self.tree_of(verified.commit(), limits)
    }

    /// The files of an earlier commit of the verified chain; `None`: it is not on it.
    pub fn tree_of_earlier(
        &self,
        verified: &Verified,
        earlier: &CommitId,
        limits: &Limits,
    ) -> Result<Option<Tree>, GitError> {
        let walked = self.chain(verified.commit(), limits, |id| id == earlier)?;
        if walked.arrived { self.tree_of(earlier, limits).map(Some) } else { Ok(None) }
    }

    /// Payload digests of a commit of the chain and those before it, newest first: at most `max`.
    pub fn trail(&self, tip: &CommitId, max: usize, limits: &Limits) -> Result<Vec<String>, GitError> {
        let seen = Cell::new(0);
        // The chain is asked about each commit once, in its order.
        let walked = self.chain(tip, limits, |_| seen.replace(seen.get() + 1) == max)?;
        let digests =
            walked.commits.iter().filter_map(|(_, raw)| Some(payload_sha256(&Commit::parse(raw).ok()?.payload)));
        Ok(digests.collect())
    }

    fn tree_of(&self, commit: &CommitId, limits: &Limits) -> Result<Tree, GitError> {
        // Not admitted yet, or damaged: what remotes sent hashes to the same ids.
        let objects = Objects::with(&self.objects, &self.reader)?;
        tree::load(&objects, commit, tree_id(&objects.commit(oid(commit)?)?)?, limits)
    }

    /// First parents from `tip` down to where `ends` (which is left out) or where the stores end.
    fn chain(&self, tip: &CommitId, limits: &Limits, ends: impl Fn(&CommitId) -> bool) -> Result<Walked, GitError> {
        let own = Objects::of(&self.objects)?;
        let mut next = Some(oid(tip)?);
        // Where our own store begins is no reason to start a child.
        let objects = match own.commit(oid(tip)?) {
            Ok(_) => own,
            Err(_) => Objects::with(&self.objects, &self.reader)?,
        };
        let mut walked = Walked { commits: Vec::new(), arrived: false };
        while let Some(id) = next {
            let name = name(id);
            walked.arrived = ends(&name);
            if walked.arrived {
                break;
            }
            let raw = match objects.commit(id) {
                Ok(raw) => raw,
                // The verified store begins where this node began.
                Err(_) if !walked.commits.is_empty() => break,
                Err(error) => return Err(error),
            };
            next = first_parent(&raw)?;
            walked.commits.push((name, raw));
            if walked.commits.len() > limits.commits {
                return Err(GitError::limit("commits", limits.commits, ""));
            }
        }
        Ok(walked)
    }
}

struct Walked {
    /// Ids and bytes, newest first.
    commits: Vec<(CommitId, Vec<u8>)>,
    /// Whether the commit that was looked for was met.
    arrived: bool,
}

/// What the remotes show now; its objects are in the quarantine.
pub struct Fetched<'a> {
    repository: &'a Repository,
    /// Without repetitions, in the order of the remotes.
    tips: Vec<Oid>,
    failures: Vec<RemoteFailure>,
}

impl Fetched<'_> {
    /// Remotes that gave nothing, while another did.
    pub fn failures(&self) -> &[RemoteFailure] {
        &self.failures
    }

    /// The valid tip with the highest sequence number: a stale or hostile remote cannot hold back a good one. When no
    /// tip is valid, why the first was not.
    pub fn verify(&self, root: &TrustRoot, accepted: Option<&Accepted>) -> Result<Verified, GitError> {
        let mut best: Option<Verified> = None;
        let mut first_error = None;
        for tip in &self.tips {
            let verified = self.verify_tip(*tip, root, accepted);
            self.judge_quarantine(&verified);
            match verified {
                Ok(verified) if best.as_ref().is_none_or(|best| verified.seq() > best.seq()) => best = Some(verified),
                Ok(_) => {}
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        match (best, first_error) {
            (Some(best), error) => {
                if let Some(error) = error {
                    tracing::warn!(reason = error.reason().id, "one remote shows what is not accepted: {error}");
                }
                Ok(best)
            }
            (None, Some(error)) => Err(error),
            (None, None) => Err(GitError::Unreachable(self.failures.clone())),
        }
    }

    /// What is missing or wrong in the quarantine is fetched anew: once, until something verifies again.
    fn judge_quarantine(&self, verified: &Result<Verified, GitError>) {
        let health = &self.repository.health;
        match verified {
            Ok(verified) if !verified.new_commits().is_empty() && health.get() == Health::Renewed => {
                health.set(Health::Whole);
            }
            Err(GitError::Object { .. } | GitError::Reader { .. }) if health.get() == Health::Whole => {
                health.set(Health::Damaged);
            }
            _ => {}
        }
    }

    fn verify_tip(&self, tip: Oid, root: &TrustRoot, accepted: Option<&Accepted>) -> Result<Verified, GitError> {
        let floor = accepted.filter(|accepted| accepted.binds(root));
        if let Some(floor) = floor.filter(|floor| floor.commit.as_str() == tip.to_string())
            && let Some(verified) = trust::again(root, floor)
        {
            return Ok(verified);
        }
        let objects = Objects::with(&self.repository.objects, &self.repository.reader)?;
        let (relation, new) = relation(&objects, tip, root, floor)?;
        let offer = Offer { tip: name(tip), raw: objects.commit(tip)?, relation };
        let merges = Merges::new(&objects, &root.limits);
        trust::verify(root, accepted, &offer, links(&objects, new, &root.limits), |link| merges.evidence(&link.raw))
    }
}

fn store(operation: &'static str) -> impl FnOnce(git2::Error) -> GitError {
    move |source| GitError::Store { operation, source }
}
