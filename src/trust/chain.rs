//! The first-parent chain, commit by commit: who signed it, by whose word, and what it makes of `trust/`.
//!
//! PURE. Never: a commit that is passed over; a second chance for a signature by a listed key.

use std::sync::Arc;

use super::commit::{Allowance, Commit, payload_sha256};
use super::judge::{Broken, Judge, broken, signed};
use super::merge::{self, Brought, Candidate, Merge};
use super::policy::{self, Authority, TrustFiles};
use super::refusal::Refusal;
use super::{Acceptance, Accepted, Link, Signer, VerifiedCommit};
use crate::name::CommitId;
use crate::reason;
use crate::settings::TrustRoot;

/// The chain as far as it is verified.
pub(super) struct Chain<'a> {
    pub judge: Judge<'a>,
    pub tip: Option<Tip>,
    /// Of the files that were read last: they rarely change from commit to commit.
    authority: Option<(Arc<TrustFiles>, Arc<Authority>)>,
    pub new: Vec<VerifiedCommit>,
}

pub(super) struct Tip {
    pub id: CommitId,
    pub accepted: Accepted,
}

/// A commit that keeps every rule, and why.
struct Good {
    commit: Commit,
    acceptance: Acceptance,
    allowances: Vec<Allowance>,
}

impl<'a> Chain<'a> {
    pub fn new(root: &'a TrustRoot, floor: Option<&'a Accepted>) -> Self {
        Self { judge: Judge { root, floor }, tip: None, authority: None, new: Vec::new() }
    }

    /// The introduction: trust.toml names it and its signer, and its own `trust/` is where authority begins.
    pub fn introduce(&mut self, link: &Link) -> Result<(), Box<Refusal>> {
        let wanted = &self.judge.root.introduction;
        let judged = || -> Result<Good, Broken> {
            let commit = self.judge.read(&link.raw, &link.tree)?;
            let fingerprint = signed(&commit)?.ok_or_else(|| broken(reason::UNSIGNED, "the commit must be signed"))?;
            if fingerprint != wanted.signer {
                let rule = format!("trust.toml says that the introduction is signed by {}", wanted.signer);
                return Err(Broken { signer: Some(fingerprint), ..broken(reason::INTRODUCTION_MISSING, rule) });
            }
            let own = Authority::parse(&link.own_trust).map_err(|what| broken(reason::TRUST_REMOVED, what))?;
            self.same_fleet(&link.own_trust)?;
            let principal = own.principal(&fingerprint).unwrap_or("the introduction's signer").to_owned();
            let allowances = commit.allowances.clone();
            Ok(Good { commit, acceptance: Acceptance::Signed(Signer { principal, fingerprint }), allowances })
        };
        let good = judged().map_err(|broken| self.judge.refuse(&link.id, &link.raw, broken))?;
        self.append(link, good, wanted.seq);
        Ok(())
    }

    pub fn extend<'m, E: From<Box<Refusal>>>(
        &mut self,
        link: &Link,
        merges: impl FnOnce(&Link) -> Result<Merge<'m, E>, E>,
    ) -> Result<(), E> {
        let good = self.judge(link, merges)?;
        let seq = self.tip.as_ref().map_or(0, |tip| tip.accepted.seq) + 1;
        self.append(link, good, seq);
        Ok(())
    }

    fn judge<'m, E: From<Box<Refusal>>>(
        &mut self,
        link: &Link,
        merges: impl FnOnce(&Link) -> Result<Merge<'m, E>, E>,
    ) -> Result<Good, E> {
        let refusal = |judge: &Judge<'_>, broken| E::from(judge.refuse(&link.id, &link.raw, broken));
        let (commit, parent) = self.begin(link).map_err(|broken| refusal(&self.judge, broken))?;
        match self.judge.signer(&parent, &commit) {
            Ok(signer) => {
                self.permits(&parent, link, &signer).map_err(|broken| refusal(&self.judge, broken))?;
                let allowances = commit.allowances.clone();
                Ok(Good { commit, acceptance: Acceptance::Signed(signer), allowances })
            }
            // Nobody on the list signed it: a merge may still be as good as what it brings.
            Err(fault) if commit.parents.len() == 2 && fault.reason != reason::BANNED_KEY => {
                let candidate = Candidate {
                    id: &link.id,
                    raw: &link.raw,
                    commit: &commit,
                    changed: &link.changed,
                    authority: &parent,
                };
                let Brought { signers, allowances } = merge::judge(&self.judge, &candidate, fault, || merges(link))?;
                let acceptance = Acceptance::Recomputed { merged: commit.parents[1].clone(), signers };
                Ok(Good { commit, acceptance, allowances })
            }
            Err(fault) => Err(refusal(&self.judge, fault)),
        }
    }

    /// Its place on the chain, and what judges it.
    fn begin(&mut self, link: &Link) -> Result<(Commit, Arc<Authority>), Broken> {
        let parent = self.authority(&link.parent_trust).map_err(|what| broken(reason::TRUST_REMOVED, what))?;
        let commit = self.judge.read(&link.raw, &link.tree)?;
        if commit.parents.first() != self.tip.as_ref().map(|tip| &tip.id) {
            return Err(broken(reason::NOT_DESCENDANT, "every commit follows the one before it by its first parent"));
        }
        Ok((commit, parent))
    }

    fn permits(&mut self, parent: &Authority, link: &Link, signer: &Signer) -> Result<(), Broken> {
        if !Arc::ptr_eq(&link.own_trust, &link.parent_trust) {
            let by = |broken| Broken { signer: Some(signer.fingerprint.clone()), ..broken };
            self.next_authority(parent, link).map_err(by)?;
        }
        self.judge.permits(parent, signer, &link.changed)
    }

    /// What this commit makes of `trust/` and of the fleet's identity must be sound, whoever signed it.
    fn next_authority(&mut self, parent: &Authority, link: &Link) -> Result<(), Broken> {
        let own = self.authority(&link.own_trust).map_err(|what| broken(reason::TRUST_REMOVED, what))?;
        if let Some(key) = parent.forgiven_by(&own) {
            let rule = format!("{key} is banned, and bans only grow");
            return Err(broken(reason::REAUTHORISES_BANNED_KEY, rule));
        }
        self.same_fleet(&link.own_trust)
    }

    fn same_fleet(&self, files: &TrustFiles) -> Result<(), Broken> {
        let root = self.judge.root;
        match policy::fleet_of(files) {
            Some((name, policy)) if name == root.fleet && policy == root.policy => Ok(()),
            Some((name, policy)) => {
                let rule = format!(
                    "this node belongs to fleet \"{}\" with policy {:?}; fleet.toml says \"{}\", {policy:?}",
                    root.fleet,
                    root.policy,
                    name.escape_debug()
                );
                Err(broken(reason::FLEET_MISMATCH, rule))
            }
            None => {
                let rule = format!("fleet.toml must name fleet \"{}\"; it is missing or unreadable", root.fleet);
                Err(broken(reason::FLEET_MISMATCH, rule))
            }
        }
    }

    fn authority(&mut self, files: &Arc<TrustFiles>) -> Result<Arc<Authority>, String> {
        match &self.authority {
            Some((known, authority)) if Arc::ptr_eq(known, files) => Ok(authority.clone()),
            _ => {
                let authority = Arc::new(Authority::parse(files)?);
                self.authority = Some((files.clone(), authority.clone()));
                Ok(authority)
            }
        }
    }

    fn append(&mut self, link: &Link, good: Good, seq: u64) {
        let Good { commit, acceptance, allowances } = good;
        let accepted = Accepted {
            fleet: self.judge.root.fleet.clone(),
            introduction: self.judge.root.introduction.commit.clone(),
            commit: link.id.clone(),
            payload_sha256: payload_sha256(&commit.payload),
            seq,
            subject: commit.subject.clone(),
            acceptance: acceptance.clone(),
        };
        self.tip = Some(Tip { id: link.id.clone(), accepted });
        self.new.push(VerifiedCommit { id: link.id.clone(), seq, subject: commit.subject, acceptance, allowances });
    }
}
