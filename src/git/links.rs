//! What `trust` needs to judge the commits of a first-parent chain, read from the object stores.
//!
//! Never: a judgement.

use std::sync::Arc;

use git2::Oid;

use super::graph::Graph;
use super::objects::{Objects, first_parent, name, parents, tree_id};
use super::{GitError, tree};
use crate::name::RepoPath;
use crate::settings::Limits;
use crate::trust::Link;
use crate::trust::merge::{Merge, SideCommit, Update};
use crate::trust::policy::{TRUST_FILE_MAX, TrustFiles};

/// What judging each of these commits needs; they follow each other by first parents, oldest first.
pub(super) fn links<'a>(
    objects: &'a Objects<'a>,
    ids: Vec<Oid>,
    limits: &'a Limits,
) -> impl Iterator<Item = Result<Link, GitError>> + 'a {
    // Of the commit before: its tree, and the files that decide, shared as long as they stay the same.
    let mut before: Option<(Oid, TrustIds, Arc<TrustFiles>)> = None;
    ids.into_iter().map(move |id| {
        let raw = objects.commit(id)?;
        let tree = tree_id(&raw)?;
        if before.is_none()
            && let Some(parent) = first_parent(&raw)?
        {
            let tree = tree_id(&objects.commit(parent)?)?;
            before = Some((tree, trust_ids(objects, tree)?, Arc::new(trust_files(objects, tree)?)));
        }
        let own_ids = trust_ids(objects, tree)?;
        let own = match &before {
            Some((_, ids, files)) if *ids == own_ids => files.clone(),
            _ => Arc::new(trust_files(objects, tree)?),
        };
        let (parent_trust, changed) = match &before {
            Some((old, _, files)) => (files.clone(), tree::changed(objects, *old, tree, limits)?),
            None => (own.clone(), Vec::new()),
        };
        before = Some((tree, own_ids, own.clone()));
        Ok(Link { id: name(id), raw, tree: tree.to_string(), parent_trust, own_trust: own, changed })
    })
}

/// The store and the graph that merges are judged from.
pub(super) struct Merges<'a> {
    objects: &'a Objects<'a>,
    graph: Graph<'a>,
    limits: &'a Limits,
}

impl<'a> Merges<'a> {
    pub fn new(objects: &'a Objects<'a>, limits: &'a Limits) -> Self {
        Self { objects, graph: Graph::new(objects, limits.commits), limits }
    }

    /// What judging a commit of two parents needs, read as far as it is asked for.
    pub fn evidence<'s>(&'s self, raw: &[u8]) -> Result<Merge<'s, GitError>, GitError> {
        let &[ours, theirs] = parents(raw)?.as_slice() else {
            return Err(GitError::NotACommit { id: "of two parents".to_owned() });
        };
        let meeting = self.graph.meet(ours, theirs)?;
        let (base, made) = (only(&meeting.bases), tree_id(raw)?);
        let base_steps = base.map(|base| self.graph.steps(ours, base)).transpose()?.flatten();
        Ok(Merge {
            bases: meeting.bases.iter().map(|id| name(*id)).collect(),
            base_steps,
            side: Box::new(meeting.side.into_iter().map(move |id| self.side_commit(id, ours))),
            recompute: Box::new(move || self.again(ours, theirs, base)),
            strayed: Box::new(move || self.strayed(ours, theirs, base, made)),
            carried: Box::new(move || self.strayed(theirs, ours, base, made)),
        })
    }

    fn side_commit(&self, id: Oid, tracked: Oid) -> Result<SideCommit, GitError> {
        let raw = self.objects.commit(id)?;
        let tree = tree_id(&raw)?;
        let parents = parents(&raw)?;
        // Who signs a merge that git would not make like this decides against each of its parents.
        let made = match parents[..] {
            [ours, theirs] => self.again(ours, theirs, only(&self.graph.meet(ours, theirs)?.bases))?,
            _ => None,
        };
        let against = if made.is_some_and(|made| made == tree.to_string()) { &parents[..1] } else { &parents[..] };
        let mut changed = Vec::new();
        for parent in against {
            let parent = tree_id(&self.objects.commit(*parent)?)?;
            changed.extend(tree::changed(self.objects, parent, tree, self.limits)?);
        }
        let update = match parents[..] {
            [ours, theirs] if self.graph.steps(tracked, theirs)?.is_some() => {
                let base = only(&self.graph.meet(ours, theirs)?.bases);
                let tracked = tree_id(&self.objects.commit(theirs)?)?;
                let brought = tree::changed(self.objects, tracked, tree, self.limits)?;
                let strayed = self.strayed(theirs, ours, base, tree)?;
                let carried = self.strayed(ours, theirs, base, tree)?;
                Some(Update { tree: self.again(ours, theirs, base)?, brought, strayed, carried })
            }
            _ => None,
        };
        let again = self.graph.has_twin(tracked, id)?;
        Ok(SideCommit { id: name(id), raw, tree: tree.to_string(), changed, update, again })
    }

    /// Paths that the tracked branch's side changes in what was made of both, and did not change itself since the base.
    fn strayed(&self, tracked: Oid, side: Oid, base: Option<Oid>, made: Oid) -> Result<Vec<RepoPath>, GitError> {
        let Some(base) = base else { return Ok(Vec::new()) };
        let tree = |commit: Oid| tree_id(&self.objects.commit(commit)?);
        let own = tree::changed(self.objects, tree(base)?, tree(tracked)?, self.limits)?;
        let mut taken = tree::changed(self.objects, tree(side)?, made, self.limits)?;
        taken.retain(|path| !own.contains(path));
        Ok(taken)
    }

    fn again(&self, ours: Oid, theirs: Oid, base: Option<Oid>) -> Result<Option<String>, GitError> {
        let tree = base.map(|base| self.objects.merge(ours, theirs, base)).transpose()?.flatten();
        Ok(tree.map(|id| id.to_string()))
    }
}

fn only(bases: &[Oid]) -> Option<Oid> {
    match bases {
        [base] => Some(*base),
        _ => None,
    }
}

/// What stands at `trust` and `fleet.toml`.
type TrustIds = [Option<tree::Entry>; 2];

fn trust_ids(objects: &Objects<'_>, tree: Oid) -> Result<TrustIds, GitError> {
    Ok([tree::entry_at(objects, tree, "trust")?, tree::entry_at(objects, tree, "fleet.toml")?])
}

fn trust_files(objects: &Objects<'_>, tree: Oid) -> Result<TrustFiles, GitError> {
    Ok(TrustFiles {
        allowed_signers: tree::file(objects, tree, "trust/allowed_signers", TRUST_FILE_MAX)?,
        policy: tree::file(objects, tree, "trust/policy.toml", TRUST_FILE_MAX)?,
        fleet: tree::file(objects, tree, "fleet.toml", TRUST_FILE_MAX)?,
    })
}
