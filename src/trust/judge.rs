//! One commit and one `trust/` folder: who signed it, and whether that was enough.
//!
//! PURE. Never: where the commit stands; that is for `chain` and `merge`.

use super::commit::Commit;
use super::policy::{Authority, Denied};
use super::refusal::Refusal;
use super::{Accepted, Offer, Signer, signature};
use crate::fleet::schema::PrincipalRole;
use crate::name::{CommitId, RepoPath};
use crate::reason::{self, Reason};
use crate::settings::TrustRoot;

/// What is the same for every commit: this node's own root, and what it accepted before.
pub(super) struct Judge<'a> {
    pub root: &'a TrustRoot,
    pub floor: Option<&'a Accepted>,
}

/// The broken rule, before it is known to which commit it belongs.
#[derive(Clone)]
pub(super) struct Broken {
    pub reason: Reason,
    pub rule: String,
    /// Fingerprint.
    pub signer: Option<String>,
}

pub(super) fn broken(reason: Reason, rule: impl Into<String>) -> Broken {
    Broken { reason, rule: rule.into(), signer: None }
}

impl Judge<'_> {
    /// The commit, if git and we read the same.
    pub fn read(&self, raw: &[u8], tree: &str) -> Result<Commit, Broken> {
        let commit = Commit::parse(raw).map_err(|what| broken(reason::MALFORMED_COMMIT, what))?;
        if commit.tree != tree {
            return Err(broken(reason::MALFORMED_COMMIT, "its tree is another one than git reads"));
        }
        Ok(commit)
    }

    /// Which principal of `authority` signed this very object: unsigned, bad-signature, banned-key or unknown-key if none.
    pub fn signer(&self, authority: &Authority, commit: &Commit) -> Result<Signer, Broken> {
        let Some(fingerprint) = signed(commit)? else {
            return Err(broken(reason::UNSIGNED, self.who(authority)));
        };
        // A ban on this node or in the repository outlives the key's entry.
        let judged = if self.root.bans.contains(&fingerprint) {
            Err(broken(reason::BANNED_KEY, "trust.toml of this node bans the key"))
        } else if authority.bans(&fingerprint) {
            Err(broken(reason::BANNED_KEY, "trust/policy.toml of its parent bans the key"))
        } else {
            authority.principal(&fingerprint).ok_or_else(|| broken(reason::UNKNOWN_KEY, self.who(authority)))
        };
        match judged {
            Ok(principal) => Ok(Signer { principal: principal.to_owned(), fingerprint }),
            Err(fault) => Err(Broken { signer: Some(fingerprint), ..fault }),
        }
    }

    /// Whether the signer may change these paths: scope or root-required if not.
    pub fn permits(&self, authority: &Authority, signer: &Signer, changed: &[RepoPath]) -> Result<(), Broken> {
        authority.permits(&signer.principal, changed).map_err(|what| {
            let fault = denied(authority, &signer.principal, &what);
            Broken { signer: Some(signer.fingerprint.clone()), ..fault }
        })
    }

    fn who(&self, authority: &Authority) -> String {
        let last = self.floor.map(|floor| &floor.commit).unwrap_or(&self.root.introduction.commit);
        format!(
            "every commit after {} needs a signature by a principal of its parent's trust/allowed_signers ({})",
            last.short(),
            listed(&authority.principals_for(None))
        )
    }

    pub fn refuse_tip(&self, reason: Reason, offer: &Offer) -> Box<Refusal> {
        let (tip, last) = (offer.tip.short(), self.floor.map_or("nothing", |floor| floor.commit.short()));
        let introduction = &self.root.introduction;
        let rule = if reason == reason::ROLLBACK {
            format!("this node accepted {last} and never goes back; {tip} is an ancestor of it")
        } else if reason == reason::FOXTROT {
            format!("the first parents of {tip} must lead to {last}; only another parent does")
        } else if reason == reason::INTRODUCTION_MISSING {
            let (commit, signer) = (introduction.commit.short(), &introduction.signer);
            format!("the first parents of {tip} must lead to the introduction {commit}, signed by {signer}")
        } else {
            format!("the first parents of {tip} must lead to {last}, which this node accepted")
        };
        self.refuse(&offer.tip, &offer.raw, broken(reason, rule))
    }

    pub fn refuse(&self, id: &CommitId, raw: &[u8], broken: Broken) -> Box<Refusal> {
        let known = Commit::parse(raw).ok();
        let unreadable = || "(unreadable)".to_owned();
        let (subject, author) =
            known.map_or_else(|| (unreadable(), unreadable()), |known| (known.subject, known.email));
        let branch = self.root.reference.strip_prefix("refs/heads/").unwrap_or(&self.root.reference).to_owned();
        Box::new(Refusal {
            reason: broken.reason,
            branch,
            commit: id.clone(),
            subject,
            author,
            signer: broken.signer,
            rule: broken.rule,
            last_good: self.floor.map(|floor| floor.commit.clone()),
        })
    }
}

fn denied(authority: &Authority, principal: &str, denied: &Denied) -> Broken {
    match denied {
        Denied::RootRequired(path) => {
            let who = listed(&authority.principals_with(PrincipalRole::Root));
            let path = path.as_str().escape_debug();
            let rule = format!("{path} changes only with role root ({who}); {principal} has it not");
            broken(reason::ROOT_REQUIRED, rule)
        }
        Denied::Scope(Some(path)) => {
            let who = listed(&authority.principals_for(Some(path)));
            let path = path.as_str().escape_debug();
            broken(reason::SCOPE, format!("{path} is not in the paths of {principal}; it is in those of: {who}"))
        }
        Denied::Scope(None) => {
            let who = listed(&authority.principals_for(None));
            let rule = format!("trust/policy.toml gives {principal} no role that signs commits; it does to: {who}");
            broken(reason::SCOPE, rule)
        }
    }
}

/// Fingerprint of the key that signed the commit; `None`: it is not signed.
pub(super) fn signed(commit: &Commit) -> Result<Option<String>, Broken> {
    let Some(armor) = &commit.signature else { return Ok(None) };
    let fingerprint = signature::verify(armor, &commit.payload).map_err(|what| broken(reason::BAD_SIGNATURE, what))?;
    Ok(Some(fingerprint.to_string()))
}

pub(super) fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    match names {
        [] => "nobody".to_owned(),
        names if names.len() <= SHOWN => names.join(", "),
        names => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}
