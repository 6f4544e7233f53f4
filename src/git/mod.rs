//! Git: remotes are fetched into a quarantine, verified commits are copied into our own store, trees are read by id.
//!
//! `quarantine.git` (cache, may be lost) holds whatever remotes sent; `objects.git` (state) holds verified objects only.
//! Both are bare, ours alone, and see no configuration but their own. Never: a work tree, a hook, a filter, a replace
//! ref, a tag, a shallow boundary; an object whose bytes do not hash to its id.

pub mod accepted;
mod https;
mod ssh;
mod transport;
mod tree;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use git2::{ObjectType, Odb, Oid};

use crate::disk::{self, DiskError};
use crate::fleet::problem::Problem;
use crate::fleet::tree::Tree;
use crate::name::CommitId;
use crate::reason::{self, Reason};
use crate::settings::{Limits, TrustRoot};
use crate::trust::commit::{Allowance, Commit, payload_sha256};
use crate::trust::policy::{TRUST_FILE_MAX, TrustFiles};
use crate::trust::{self, Accepted, Link, Offer, Refusal, Relation, Verified};
use transport::RemoteFault;

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
            Self::BadTree(_) | Self::NoRevision { .. } | Self::Folder { .. } => reason::REPOSITORY_INVALID,
            Self::Open { .. } | Self::Store { .. } | Self::Disk(_) => reason::APPLY_FAILED,
            _ => reason::SOURCE_UNREACHABLE,
        }
    }
}

/// Why one remote gave nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteFailure {
    pub url: String,
    pub why: String,
    /// It sent more than [limits] allow.
    pub over_limit: bool,
}

impl RemoteFailure {
    fn listed(failures: &[Self]) -> String {
        failures.iter().map(|failure| format!("\n  {failure}")).collect()
    }
}

impl fmt::Display for RemoteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.why)
    }
}

/// The two stores of one node.
pub struct Repository {
    quarantine: git2::Repository,
    objects: git2::Repository,
    cache: PathBuf,
}

impl Repository {
    /// Opens or makes `objects.git` below `state` and `quarantine.git` below `cache`.
    pub fn open(state: &Path, cache: &Path) -> Result<Self, GitError> {
        transport::prepare();
        disk::create_dirs(state)?;
        disk::create_dirs(cache)?;
        let objects = open_or_make(&state.join("objects.git"))?;
        let quarantine = open_or_make(&cache.join("quarantine.git"))?;
        Ok(Self { quarantine, objects, cache: cache.to_owned() })
    }

    /// Asks every remote. One that fails costs its own time only; it is an error when all do.
    pub fn fetch(&mut self, root: &TrustRoot, accepted: Option<&Accepted>) -> Result<Fetched<'_>, GitError> {
        let mut tips: Vec<Oid> = Vec::new();
        let mut failures = Vec::new();
        for (index, remote) in root.remotes.iter().enumerate() {
            let seen = format!("refs/quarantine/{index}");
            let known = |tip: Oid| {
                let accepted = accepted.is_some_and(|accepted| accepted.commit.as_str() == tip.to_string());
                (accepted && self.objects.find_commit(tip).is_ok())
                    || self.quarantine.refname_to_id(&seen).is_ok_and(|last| last == tip)
            };
            let cache = self.cache.clone();
            match transport::fetch(&self.quarantine, remote, &root.reference, &root.limits, cache, &known) {
                Ok(tip) => {
                    if self.quarantine.find_commit(tip).is_ok() && !known(tip) {
                        // What is known is offered at the next fetch instead of being sent again.
                        self.quarantine.reference(&seen, tip, true, "").map_err(store("note a fetched tip"))?;
                    }
                    if !tips.contains(&tip) {
                        tips.push(tip);
                    }
                }
                Err(fault) => {
                    let (why, over_limit) = match fault {
                        RemoteFault::Limit(why) => (why, true),
                        RemoteFault::Failed(why) => (why, false),
                    };
                    failures.push(RemoteFailure { url: remote.url.clone(), why, over_limit });
                }
            }
        }
        if tips.is_empty() {
            return Err(GitError::Unreachable(failures));
        }
        Ok(Fetched { repository: self, tips, failures })
    }

    /// The last accepted commit again, without a remote. `None`: it does not bind under this trust root, or its
    /// objects are gone.
    pub fn resume(&self, root: &TrustRoot, accepted: &Accepted) -> Option<Verified> {
        let tip = Oid::from_str(accepted.commit.as_str()).ok()?;
        self.objects.find_commit(tip).ok()?;
        trust::verify::<GitError>(root, Some(accepted), &unmoved(accepted), []).ok()
    }

    /// Copies what a verified commit consists of into the verified store, durably. Comes before its id is kept.
    pub fn admit(&mut self, verified: &Verified) -> Result<(), GitError> {
        let (from, to) = (odb(&self.quarantine)?, odb(&self.objects)?);
        let mut wanted = Wanted { from: &from, to: &to, seen: HashSet::new(), ids: Vec::new() };
        for id in verified.new_commits().iter().map(|commit| &commit.id).chain([verified.commit()]) {
            wanted.commit(oid(id)?)?;
        }
        if wanted.ids.is_empty() {
            return Ok(());
        }
        let incoming = self.objects.path().join("incoming");
        disk::remove(&incoming)?;
        disk::create_dirs(&incoming)?;
        let pack = || -> Result<Option<String>, git2::Error> {
            let mut builder = self.quarantine.packbuilder()?;
            for id in &wanted.ids {
                builder.insert_object(*id, None)?;
            }
            builder.write(&incoming, 0o600)?;
            Ok(builder.name()?.map(str::to_owned))
        };
        let name = pack().map_err(store("pack the verified objects"))?.unwrap_or_default();
        // The index comes last: without it the pack is not seen.
        for suffix in ["pack", "idx"] {
            let file = format!("pack-{name}.{suffix}");
            disk::install(&incoming.join(&file), &self.objects.path().join("objects/pack").join(&file))?;
        }
        disk::remove(&incoming)?;
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

    /// Guards lifted by verified commits after `since` (all of the chain if that is not on it), with the commit.
    pub fn allowances(
        &self,
        verified: &Verified,
        since: Option<&CommitId>,
        limits: &Limits,
    ) -> Result<Vec<(CommitId, Allowance)>, GitError> {
        let walked = self.chain(verified.commit(), limits, |id| Some(id) == since)?;
        let lifted =
            walked.commits.into_iter().filter_map(|(id, raw)| Some((id, Commit::parse(&raw).ok()?.allowances)));
        Ok(lifted.flat_map(|(id, list)| list.into_iter().map(move |one| (id.clone(), one))).collect())
    }

    fn tree_of(&self, commit: &CommitId, limits: &Limits) -> Result<Tree, GitError> {
        let read = |store: &git2::Repository| {
            let odb = odb(store)?;
            let raw = raw_commit(&odb, oid(commit)?)?;
            tree::load(&odb, commit, tree_id(&raw)?, limits)
        };
        match read(&self.objects) {
            // Not admitted yet, or damaged: what remotes sent hashes to the same ids.
            Err(GitError::Object { .. }) => read(&self.quarantine),
            answer => answer,
        }
    }

    /// First parents from `tip` down to where `ends` (which is left out) or where the stores end.
    fn chain(&self, tip: &CommitId, limits: &Limits, ends: impl Fn(&CommitId) -> bool) -> Result<Walked, GitError> {
        let (objects, quarantine) = (odb(&self.objects)?, odb(&self.quarantine)?);
        let mut walked = Walked { commits: Vec::new(), arrived: false };
        let mut next = Some(oid(tip)?);
        while let Some(id) = next {
            let name = CommitId::new(id.to_string());
            walked.arrived = ends(&name);
            if walked.arrived {
                break;
            }
            let raw = match raw_commit(&objects, id).or_else(|_| raw_commit(&quarantine, id)) {
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
            match self.verify_tip(*tip, root, accepted) {
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

    fn verify_tip(&self, tip: Oid, root: &TrustRoot, accepted: Option<&Accepted>) -> Result<Verified, GitError> {
        let floor = accepted.filter(|accepted| accepted.binds(root));
        if let Some(floor) = floor
            && floor.commit.as_str() == tip.to_string()
        {
            return trust::verify(root, accepted, &unmoved(floor), []);
        }
        let odb = odb(&self.repository.quarantine)?;
        let (relation, new) = self.relation(&odb, tip, root, floor)?;
        let offer = Offer { tip: CommitId::new(tip.to_string()), raw: raw_commit(&odb, tip)?, relation };
        trust::verify(root, accepted, &offer, links(&odb, new, &root.limits))
    }

    /// How the tip lies to the floor (or to the introduction), and the commits to judge, oldest first.
    fn relation(
        &self,
        odb: &Odb<'_>,
        tip: Oid,
        root: &TrustRoot,
        floor: Option<&Accepted>,
    ) -> Result<(Relation, Vec<Oid>), GitError> {
        let mut new = Vec::new();
        let mut next = Some(tip);
        while let Some(id) = next {
            let raw = raw_commit(odb, id)?;
            let name = CommitId::new(id.to_string());
            match floor {
                Some(floor) => {
                    // Signed again, a commit has another id and is still the same.
                    let same = name == floor.commit
                        || Commit::parse(&raw).is_ok_and(|it| payload_sha256(&it.payload) == floor.payload_sha256);
                    if same {
                        new.reverse();
                        let base_payload_sha256 = floor.payload_sha256.clone();
                        return Ok((Relation::Onward { base: name, base_payload_sha256 }, new));
                    }
                }
                None if name == root.introduction.commit => {
                    new.push(id);
                    new.reverse();
                    return Ok((Relation::FromIntroduction, new));
                }
                None => {}
            }
            new.push(id);
            if new.len() > root.limits.commits {
                return Err(GitError::limit("commits", root.limits.commits, ""));
            }
            next = first_parent(&raw)?;
        }
        let Some(floor) = floor else {
            return Ok((Relation::NoIntroduction, Vec::new()));
        };
        let accepted = oid(&floor.commit)?;
        let name = CommitId::new(tip.to_string());
        let ancestor = |of, what| self.repository.quarantine.graph_descendant_of(of, what).unwrap_or(false);
        let on_our_chain = || self.repository.chain(&floor.commit, &root.limits, |id| *id == name);
        let relation = if ancestor(accepted, tip) || on_our_chain().is_ok_and(|walked| walked.arrived) {
            Relation::Behind
        } else if ancestor(tip, accepted) {
            Relation::Beside
        } else {
            Relation::Apart
        };
        Ok((relation, Vec::new()))
    }
}

/// The remote shows what was accepted already.
fn unmoved(floor: &Accepted) -> Offer {
    let base_payload_sha256 = floor.payload_sha256.clone();
    let relation = Relation::Onward { base: floor.commit.clone(), base_payload_sha256 };
    Offer { tip: floor.commit.clone(), raw: Vec::new(), relation }
}

/// What judging each of these commits needs; they follow each other by first parents, oldest first.
fn links<'a>(odb: &'a Odb<'a>, ids: Vec<Oid>, limits: &'a Limits) -> impl Iterator<Item = Result<Link, GitError>> + 'a {
    // Of the commit before: its tree, and the files that decide, shared as long as they stay the same.
    let mut before: Option<(Oid, TrustIds, Arc<TrustFiles>)> = None;
    ids.into_iter().map(move |id| {
        let raw = raw_commit(odb, id)?;
        let tree = tree_id(&raw)?;
        if before.is_none()
            && let Some(parent) = first_parent(&raw)?
        {
            let tree = tree_id(&raw_commit(odb, parent)?)?;
            before = Some((tree, trust_ids(odb, tree)?, Arc::new(trust_files(odb, tree)?)));
        }
        let own_ids = trust_ids(odb, tree)?;
        let own = match &before {
            Some((_, ids, files)) if *ids == own_ids => files.clone(),
            _ => Arc::new(trust_files(odb, tree)?),
        };
        let (parent_trust, changed) = match &before {
            Some((old, _, files)) => (files.clone(), tree::changed(odb, *old, tree, limits)?),
            None => (own.clone(), Vec::new()),
        };
        before = Some((tree, own_ids, own.clone()));
        let id = CommitId::new(id.to_string());
        Ok(Link { id, raw, tree: tree.to_string(), parent_trust, own_trust: own, changed })
    })
}

/// What stands at `trust` and `fleet.toml`.
type TrustIds = [Option<tree::Entry>; 2];

fn trust_ids(odb: &Odb<'_>, tree: Oid) -> Result<TrustIds, GitError> {
    Ok([tree::entry_at(odb, tree, "trust")?, tree::entry_at(odb, tree, "fleet.toml")?])
}

fn trust_files(odb: &Odb<'_>, tree: Oid) -> Result<TrustFiles, GitError> {
    Ok(TrustFiles {
        allowed_signers: tree::file(odb, tree, "trust/allowed_signers", TRUST_FILE_MAX)?,
        policy: tree::file(odb, tree, "trust/policy.toml", TRUST_FILE_MAX)?,
        fleet: tree::file(odb, tree, "fleet.toml", TRUST_FILE_MAX)?,
    })
}

/// Objects of verified commits that the verified store lacks.
struct Wanted<'a> {
    from: &'a Odb<'a>,
    to: &'a Odb<'a>,
    seen: HashSet<Oid>,
    ids: Vec<Oid>,
}

impl Wanted<'_> {
    fn commit(&mut self, id: Oid) -> Result<(), GitError> {
        if self.is_new(id) {
            self.ids.push(id);
            self.tree(tree_id(&raw_commit(self.from, id)?)?)?;
        }
        Ok(())
    }

    fn tree(&mut self, id: Oid) -> Result<(), GitError> {
        if !self.is_new(id) {
            return Ok(());
        }
        for entry in tree::entries(self.from, id)? {
            match entry.mode.as_str() {
                "40000" => self.tree(entry.id)?,
                // A submodule's commit is not in this repository.
                "160000" => {}
                _ if self.is_new(entry.id) => self.ids.push(entry.id),
                _ => {}
            }
        }
        self.ids.push(id);
        Ok(())
    }

    fn is_new(&mut self, id: Oid) -> bool {
        !self.to.exists(id) && self.seen.insert(id)
    }
}

fn open_or_make(path: &Path) -> Result<git2::Repository, GitError> {
    disk::create_dirs(path)?;
    let opened = git2::Repository::open_bare(path).or_else(|_| {
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        git2::Repository::init_opts(path, &options)
    });
    opened.map_err(|source| GitError::Open { path: path.to_owned(), source })
}

fn store(operation: &'static str) -> impl FnOnce(git2::Error) -> GitError {
    move |source| GitError::Store { operation, source }
}

fn odb(repository: &git2::Repository) -> Result<Odb<'_>, GitError> {
    repository.odb().map_err(store("open the object store"))
}

fn oid(id: &CommitId) -> Result<Oid, GitError> {
    Oid::from_str(id.as_str()).map_err(|source| GitError::Object { id: id.to_string(), source })
}

fn raw_commit(odb: &Odb<'_>, id: Oid) -> Result<Vec<u8>, GitError> {
    let object = odb.read(id).map_err(|source| GitError::Object { id: id.to_string(), source })?;
    match object.kind() {
        ObjectType::Commit => Ok(object.data().to_vec()),
        _ => Err(GitError::NotACommit { id: id.to_string() }),
    }
}

/// The value of the first header of this name. Only where to look next: `trust` reads the commit strictly afterwards.
fn header(raw: &[u8], name: &str) -> Result<Option<Oid>, GitError> {
    let mut lines = raw.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
    let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b" "));
    let parse = |value: &[u8]| str::from_utf8(value).ok().and_then(|text| Oid::from_str(text).ok());
    match value.map(parse) {
        None => Ok(None),
        Some(Some(id)) => Ok(Some(id)),
        Some(None) => Err(GitError::NotACommit { id: String::from_utf8_lossy(value.unwrap_or_default()).into() }),
    }
}

fn first_parent(raw: &[u8]) -> Result<Option<Oid>, GitError> {
    header(raw, "parent")
}

fn tree_id(raw: &[u8]) -> Result<Oid, GitError> {
    header(raw, "tree")?.ok_or_else(|| GitError::NotACommit { id: "without a tree".to_owned() })
}

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
        let odb = odb(repository)?;
        let mut root = tree_id(&raw_commit(&odb, id)?)?;
        let below = repository.workdir().and_then(|work| work.canonicalize().ok());
        if let Some(below) = below.and_then(|work| self.path.strip_prefix(work).ok().map(Path::to_owned))
            && let Some(folder) = below.to_str().filter(|folder| !folder.is_empty())
        {
            let entry = tree::entry_at(&odb, root, folder)?.filter(tree::Entry::is_folder);
            root = entry.ok_or_else(|| GitError::NotATree { id: format!("{revision}:{folder}") })?.id;
        }
        tree::load(&odb, &CommitId::new(id.to_string()), root, &self.limits)
    }

    pub fn summary(&self, revision: &str) -> Result<CommitSummary, GitError> {
        let (id, repository) = self.commit(revision)?;
        summary(&odb(repository)?, id)
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
        let odb = odb(repository)?;
        walk().map_err(failed)?.into_iter().map(|id| summary(&odb, id)).collect()
    }

    fn commit(&self, revision: &str) -> Result<(Oid, &git2::Repository), GitError> {
        let absent = |source| GitError::NoRevision { path: self.path.clone(), revision: revision.to_owned(), source };
        let repository = self.repository.as_ref().ok_or_else(|| absent(git2::Error::from_str("no git repository")))?;
        let commit = repository.revparse_single(revision).and_then(|object| object.peel_to_commit()).map_err(absent)?;
        Ok((commit.id(), repository))
    }
}

fn summary(odb: &Odb<'_>, id: Oid) -> Result<CommitSummary, GitError> {
    let raw = raw_commit(odb, id)?;
    let id = CommitId::new(id.to_string());
    let Ok(commit) = Commit::parse(&raw) else {
        return Ok(CommitSummary { id, subject: "(unreadable)".into(), author: "(unreadable)".into(), signer: None });
    };
    let signer = commit.signature.and_then(|armor| trust::signature::verify(&armor, &commit.payload).ok());
    let signer = signer.map(|fingerprint| fingerprint.to_string());
    Ok(CommitSummary { id, subject: commit.subject, author: commit.author, signer })
}
