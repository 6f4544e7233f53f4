//! A merge that a forge's button made: good without trusting the forge, if everything that it brings was signed and
//! merging again gives the same tree.
//!
//! The forge then chooses which signed work is merged, and when; it can add nothing and take nothing away. PURE: `git`
//! finds the bases and merges again. Never: a word of the merge commit itself (its message, its trailers, its date).

use std::collections::HashSet;

use super::Signer;
use super::commit::{Allowance, Commit};
use super::judge::{Broken, Judge, broken, listed};
use super::policy::{self, Authority};
use super::refusal::Refusal;
use crate::fleet::schema::PrincipalRole;
use crate::name::{CommitId, RepoPath};
use crate::reason;

/// How far below its first parent a merge's base may lie: work that old was reviewed against another branch.
pub const BASE_STEPS_MAX: usize = 200;

/// What git knows about a commit of two parents. It is asked for what nobody on the list signed, and read as far as the
/// rules get: `E` is whatever reading can fail with.
pub struct Merge<'m, E> {
    /// Common ancestors of both parents that no other common ancestor descends from.
    pub bases: Vec<CommitId>,
    /// First parents from the merge's first parent down to its one base; `None`: the base is elsewhere, or not one.
    pub base_steps: Option<usize>,
    /// What the second parent has and the first has not, ancestors before descendants.
    pub side: Box<dyn Iterator<Item = Result<SideCommit, E>> + 'm>,
    /// The tree that merging again gives; `None`: it takes people to decide.
    pub recompute: Box<dyn FnOnce() -> Result<Option<String>, E> + 'm>,
    /// Paths to which the merge brings a change of its first parent's side that this side did not make there: merging
    /// follows renames.
    pub strayed: Box<dyn FnOnce() -> Result<Vec<RepoPath>, E> + 'm>,
    /// Paths that the merge changes and the side, from the base to its tip, does not.
    pub carried: Box<dyn FnOnce() -> Result<Vec<RepoPath>, E> + 'm>,
}

/// A commit that a merge brings.
#[derive(Clone, Debug)]
pub struct SideCommit {
    pub id: CommitId,
    /// The commit object's bytes.
    pub raw: Vec<u8>,
    pub tree: String,
    /// Paths that differ between its first parent's tree and its own.
    pub changed: Vec<RepoPath>,
    /// Where it has two parents and the second lies on the tracked branch's first-parent chain.
    pub update: Option<Update>,
    /// The branch has it already, under another signature.
    pub again: bool,
}

/// A merge of the tracked branch into a side branch: a forge's "update branch".
#[derive(Clone, Debug)]
pub struct Update {
    /// What merging again gives, where there is one base and nothing for people to decide.
    pub tree: Option<String>,
    /// Paths that differ between the tracked branch there and its own tree: what the side branch brought so far.
    pub brought: Vec<RepoPath>,
    /// As of [`Merge`]: where the tracked branch's changes came to lie, and were not made.
    pub strayed: Vec<RepoPath>,
    pub carried: Vec<RepoPath>,
}

/// What a recomputed merge is believed for.
pub(super) struct Brought {
    /// Of the commits that it brings, each once, in the order in which they first signed.
    pub signers: Vec<Signer>,
    pub allowances: Vec<Allowance>,
}

/// The chain commit that is judged.
pub(super) struct Candidate<'a> {
    pub id: &'a CommitId,
    pub raw: &'a [u8],
    pub commit: &'a Commit,
    pub changed: &'a [RepoPath],
    /// Of its first parent: it judges the side branch too.
    pub authority: &'a Authority,
}

/// Whether the merge is as good as its parts. `unsigned` is what is said of it where it brings nothing.
pub(super) fn judge<'m, E: From<Box<Refusal>>>(
    judge: &Judge<'_>,
    candidate: &Candidate<'_>,
    unsigned: Broken,
    merge: impl FnOnce() -> Result<Merge<'m, E>, E>,
) -> Result<Brought, E> {
    let Candidate { id, raw, commit, authority, .. } = candidate;
    let refuse = |broken: Broken| E::from(judge.refuse(id, raw, Broken { signer: unsigned.signer.clone(), ..broken }));
    if let Some(path) = candidate.changed.iter().find(|path| policy::needs_root(path)) {
        let who = listed(&authority.principals_with(PrincipalRole::Root));
        let path = path.as_str().escape_debug();
        let rule =
            format!("{path} changes only in a commit that role root ({who}) signed itself, never by a merge button");
        return Err(refuse(broken(reason::ROOT_REQUIRED, rule)));
    }
    let Merge { bases, base_steps, side, recompute, strayed, carried: moved } = merge()?;
    if base_steps.is_none_or(|steps| steps > BASE_STEPS_MAX) {
        return Err(refuse(broken(reason::STALE_MERGE, stale(&bases, base_steps))));
    }
    let mut brought = Brought { signers: Vec::new(), allowances: Vec::new() };
    let mut touched = HashSet::new();
    let mut none = true;
    for side in side {
        none = false;
        let side = side?;
        match side_commit(judge, authority, &side) {
            Ok(Some((signer, allowances))) => {
                if !brought.signers.contains(&signer) {
                    brought.signers.push(signer);
                }
                brought.allowances.extend(allowances);
                touched.extend(side.changed);
            }
            Ok(None) => {
                let update = side.update.as_ref();
                let brings = update.map(|update| update.brought.as_slice()).unwrap_or_default();
                let strays = update.map(|update| update.strayed.as_slice()).unwrap_or_default();
                let moved = update.map(|update| update.carried.as_slice()).unwrap_or_default();
                carried(judge, authority, brings, &brought.signers, &touched)
                    .and_then(|()| carried(judge, authority, moved, &brought.signers, &HashSet::new()))
                    .and_then(|()| stays(strays))
                    .map_err(|fault| judge.refuse(&side.id, &side.raw, fault))?;
            }
            Err(broken) => return Err(judge.refuse(&side.id, &side.raw, broken).into()),
        }
    }
    if none {
        return Err(refuse(unsigned.clone()));
    }
    let altered = match recompute()? {
        Some(tree) if tree == commit.tree => None,
        Some(_) => {
            Some("merging its second parent into its first gives another tree, and nobody signed the difference")
        }
        None => Some("its parents conflict, and nobody signed how that was decided"),
    };
    if let Some(rule) = altered {
        return Err(refuse(broken(reason::MERGE_ALTERED, rule)));
    }
    let (strayed, moved) = (strayed()?, moved()?);
    carried(judge, authority, candidate.changed, &brought.signers, &touched)
        .and_then(|()| carried(judge, authority, &moved, &brought.signers, &HashSet::new()))
        .and_then(|()| stays(&strayed))
        .map_err(|fault| judge.refuse(id, raw, fault))?;
    Ok(brought)
}

/// Where the branch renamed a file, merging carries a change to a path that nobody changed. Whose change that was is not
/// known any more, so each of the signers must be allowed to make it. Asked at every merge: later somebody may change that
/// path by hand.
fn carried(
    judge: &Judge<'_>,
    authority: &Authority,
    changed: &[RepoPath],
    signers: &[Signer],
    touched: &HashSet<RepoPath>,
) -> Result<(), Broken> {
    let carried: Vec<RepoPath> = changed.iter().filter(|path| !touched.contains(*path)).cloned().collect();
    signers.iter().try_for_each(|signer| judge.permits(authority, signer, &carried))
}

/// The other way round: the side branch renamed a file, and a change that the branch made under the old name goes along.
/// Whoever signed it there did not sign it here, and whoever moved the file never saw it.
fn stays(strayed: &[RepoPath]) -> Result<(), Broken> {
    let Some(path) = strayed.first() else { return Ok(()) };
    let path = path.as_str().escape_debug();
    let rule = format!(
        "a rename carries a change of the branch to {path}, where nobody made it; merge on your own machine, look, and sign"
    );
    Err(broken(reason::SCOPE, rule))
}

fn stale(bases: &[CommitId], steps: Option<usize>) -> String {
    match (bases, steps) {
        ([], _) => "its parents have no common ancestor".to_owned(),
        ([base], Some(steps)) => {
            format!("its base {} is {steps} commits below its first parent, more than {BASE_STEPS_MAX}", base.short())
        }
        ([base], None) => format!("its base {} is not on the branch's first-parent chain", base.short()),
        (several, _) => {
            let names: Vec<&str> = several.iter().take(4).map(CommitId::short).collect();
            format!("its parents have {} merge bases ({}), not one", several.len(), names.join(", "))
        }
    }
}

/// Who signed it and what that lifts; `None`: it is the tracked branch, merged into the side branch by nobody in
/// particular.
fn side_commit(
    judge: &Judge<'_>,
    authority: &Authority,
    side: &SideCommit,
) -> Result<Option<(Signer, Vec<Allowance>)>, Broken> {
    let commit = judge.read(&side.raw, &side.tree)?;
    if commit.parents.is_empty() {
        return Err(broken(
            reason::NOT_DESCENDANT,
            "a merge brings work that began on this branch; this has no parent",
        ));
    }
    if side.again {
        return Err(broken(reason::STALE_MERGE, "the branch has this commit already, under another signature"));
    }
    let signed = judge.signer(authority, &commit).and_then(|signer| {
        judge.permits(authority, &signer, &side.changed)?;
        Ok(signer)
    });
    match signed {
        Ok(signer) => Ok(Some((signer, commit.allowances))),
        Err(_) if side.update.as_ref().is_some_and(|update| update.tree.as_ref() == Some(&commit.tree)) => Ok(None),
        Err(fault) => Err(fault),
    }
}
