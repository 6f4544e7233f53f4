//! What the branch is at each remote: read here where that is a few reads, asked for by a child everywhere else.
//!
//! Never: a remote that holds up the others for longer than its time.

use std::fmt;

use git2::Oid;

use super::child::ChildError;
use super::quarantine::FetchOrder;
use super::sandbox::Profile;
use super::wire::Answer;
use super::{Fetched, GitError, Health, Repository, readable, stores, tip};
use crate::disk;
use crate::reason;
use crate::settings::{Access, Remote, TrustRoot};
use crate::trust::Accepted;

/// Why one remote gave nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteFailure {
    pub url: String,
    pub why: String,
    /// It sent more than [limits] allow.
    pub over_limit: bool,
}

impl RemoteFailure {
    pub(super) fn listed(failures: &[Self]) -> String {
        failures.iter().map(|failure| format!("\n  {failure}")).collect()
    }
}

impl fmt::Display for RemoteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.why)
    }
}

impl Repository {
    /// Asks every remote. One that fails costs its own time only; it is an error when all do.
    pub fn fetch(&mut self, root: &TrustRoot, accepted: Option<&Accepted>) -> Result<Fetched<'_>, GitError> {
        self.reader.end();
        self.reader.set_limits(&root.limits);
        self.seen.resize(root.remotes.len(), None);
        if self.health.get() == Health::Damaged {
            disk::remove(&self.quarantine)?;
            self.seen.fill(None);
            self.health.set(Health::Renewed);
        }
        let accepted = accepted.and_then(|accepted| Oid::from_str(accepted.commit.as_str()).ok());
        let accepted = accepted.filter(|commit| self.objects.find_commit(*commit).is_ok());
        let before = self.seen.clone();
        let mut tips: Vec<Oid> = Vec::new();
        let mut failures = Vec::new();
        for (index, remote) in root.remotes.iter().enumerate() {
            match self.tip_of(index, remote, root, accepted) {
                Ok(tip) => {
                    self.seen[index] = Some(tip);
                    if !tips.contains(&tip) {
                        tips.push(tip);
                    }
                }
                Err(failure) => failures.push(failure),
            }
        }
        if self.seen != before && stores::is_overgrown(&self.quarantine, &root.limits) {
            self.health.set(Health::Damaged);
        }
        if tips.is_empty() {
            return Err(GitError::Unreachable(failures));
        }
        Ok(Fetched { repository: self, tips, failures })
    }

    /// What the branch is at one remote. Its objects are in the quarantine, or in our own store if it is `accepted`.
    fn tip_of(
        &self,
        index: usize,
        remote: &Remote,
        root: &TrustRoot,
        accepted: Option<Oid>,
    ) -> Result<Oid, RemoteFailure> {
        if let Access::File { path } = &remote.access
            && let Some(tip) = tip::tip(path, &root.reference)
            && (accepted == Some(tip) || self.seen[index] == Some(tip))
        {
            return Ok(tip);
        }
        let failure = |why: String, over_limit| RemoteFailure { url: remote.url.clone(), why, over_limit };
        let failed = |error: ChildError| failure(reason::chain(&error), false);
        if let Some(user) = self.children.user {
            readable::every(&remote.access.files(), user).map_err(|why| failure(why, false))?;
        }
        stores::make_quarantine_again(&self.quarantine, self.children.user)
            .map_err(|error| failure(reason::chain(&error), false))?;
        let order = FetchOrder {
            profile: Profile::to_fetch(remote, &self.quarantine, self.children.user, &root.limits),
            remote: remote.clone(),
            index,
            reference: root.reference.clone(),
            limits: root.limits,
            known: accepted.map(|id| id.to_string()),
        };
        let mut child = self.children.start("fetch", &order, root.limits.time_secs).map_err(failed)?;
        match child.answer(0).map_err(failed)? {
            Answer::Tip(tip) => Ok(tip),
            Answer::Over(why) => Err(failure(why, true)),
            Answer::Failed(why) => Err(failure(why, false)),
            _ => Err(failed(ChildError::Unasked)),
        }
    }
}
