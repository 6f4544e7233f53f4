//! How a tip lies to what was accepted: onward by first parents, behind it, beside it, or apart.
//!
//! Commits are the same when what was signed is the same. Never: a commit date; never: more commits than [limits] allow.

use std::collections::{HashSet, VecDeque};

use git2::Oid;

use super::GitError;
use super::objects::{Objects, first_parent, name, oid, parents};
use crate::settings::{Limits, TrustRoot};
use crate::trust::commit::{Commit, payload_sha256};
use crate::trust::{Accepted, Relation};

/// How the tip lies to the floor (or to the introduction), and the commits to judge, oldest first.
pub(super) fn relation(
    objects: &Objects<'_>,
    tip: Oid,
    root: &TrustRoot,
    floor: Option<&Accepted>,
) -> Result<(Relation, Vec<Oid>), GitError> {
    let mut new = Vec::new();
    let mut next = Some(tip);
    let until = oid(floor.map_or(&root.introduction.commit, |floor| &floor.commit))?;
    while let Some(id) = next {
        objects.chain_ahead(id, &[until], root.limits.commits - new.len())?;
        let raw = objects.commit(id)?;
        let name = name(id);
        match floor {
            Some(floor) if name == floor.commit || identity(id, &raw) == floor.payload_sha256 => {
                new.reverse();
                let base_payload_sha256 = floor.payload_sha256.clone();
                return Ok((Relation::Onward { base: name, base_payload_sha256 }, new));
            }
            None if name == root.introduction.commit => {
                new.push(id);
                new.reverse();
                return Ok((Relation::FromIntroduction, new));
            }
            _ => {}
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
    let tip_is = identity(tip, &objects.commit(tip)?);
    let relation = if reaches(objects, oid(&floor.commit)?, &tip_is, &root.limits)? {
        Relation::Behind
    } else if reaches(objects, tip, &floor.payload_sha256, &root.limits)? {
        Relation::Beside
    } else {
        Relation::Apart
    };
    Ok((relation, Vec::new()))
}

/// Signed again, a commit has another id and is still the same. What is no commit to us is only itself.
pub(super) fn identity(id: Oid, raw: &[u8]) -> String {
    Commit::parse(raw).map_or_else(|_| id.to_string(), |commit| payload_sha256(&commit.payload))
}

/// Whether `from` is that commit or descends from it. What no store has, or what lies behind too many commits, is not seen.
fn reaches(objects: &Objects<'_>, from: Oid, wanted: &str, limits: &Limits) -> Result<bool, GitError> {
    objects.history_ahead(from, limits.commits)?;
    let mut open = VecDeque::from([from]);
    let mut seen = HashSet::from([from]);
    while let Some(id) = open.pop_front() {
        let raw = match objects.commit(id) {
            Err(GitError::Object { .. } | GitError::NotACommit { .. }) => continue,
            raw => raw?,
        };
        if identity(id, &raw) == wanted {
            return Ok(true);
        }
        for parent in parents(&raw)? {
            if seen.len() <= limits.commits && seen.insert(parent) {
                open.push_back(parent);
            }
        }
    }
    Ok(false)
}
