//! What a remote offers becomes what we believe: the first-parent chain, commit by commit, from the node's own root.
//!
//! A commit is accepted iff a key that `trust/` *of its first parent* authorises for what it touches signed it, and so
//! was every commit between it and the last accepted one. The idea of authorising by the parent, from an introduction
//! outside the repository, is that of Guix (Courtès, "Building a Secure Software Supply Chain with GNU Guix", 2022).
//! PURE: `git` reads the objects. Never: a [`Verified`] made anywhere else; a decision by a date; a forge's word.

pub mod commit;
pub mod policy;
pub mod signature;
pub mod signers;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fleet::schema::PrincipalRole;
use crate::name::{CommitId, RepoPath};
use crate::reason::{self, Reason};
use crate::settings::TrustRoot;
use commit::{Allowance, Commit, payload_sha256};
use policy::{Authority, Denied, TrustFiles};

/// One commit of the first-parent chain with what judging it needs; git hands them over oldest first.
#[derive(Clone, Debug)]
pub struct Link {
    pub id: CommitId,
    /// The commit object's bytes.
    pub raw: Vec<u8>,
    /// The tree whose files the fields below are.
    pub tree: String,
    /// Shared between links as long as the files are the same, so they are read once.
    pub parent_trust: Arc<TrustFiles>,
    pub own_trust: Arc<TrustFiles>,
    /// Paths that differ between the first parent's tree and this one's; empty for the introduction.
    pub changed: Vec<RepoPath>,
}

/// The tip that a remote shows, and how it lies to what we have.
#[derive(Clone, Debug)]
pub struct Offer {
    pub tip: CommitId,
    /// The tip's bytes, to name it in a refusal.
    pub raw: Vec<u8>,
    pub relation: Relation,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Relation {
    /// The accepted commit is on the first-parent chain of the tip; the links begin after it. `base` has the same
    /// payload, and another id only if somebody signed it again.
    Onward {
        base: CommitId,
        base_payload_sha256: String,
    },
    /// Nothing accepted yet; the links begin with the introduction itself.
    FromIntroduction,
    /// Nothing accepted yet, and the introduction is not on the chain.
    NoIntroduction,
    /// The tip is an ancestor of the accepted commit.
    Behind,
    /// The accepted commit is an ancestor of the tip, but not by first parents.
    Beside,
    Apart,
}

/// What this node has accepted: the floor that survives restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// Under which trust root: another fleet or introduction begins a new chain.
    pub fleet: String,
    pub introduction: CommitId,
    pub commit: CommitId,
    pub payload_sha256: String,
    pub seq: u64,
    pub subject: String,
    pub signer: Signer,
}

impl Accepted {
    /// Whether it binds under this trust root. A re-introduction resets the floor.
    pub fn binds(&self, root: &TrustRoot) -> bool {
        self.fleet == root.fleet && self.introduction == root.introduction.commit
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signer {
    pub principal: String,
    /// `SHA256:…`
    pub fingerprint: String,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.principal, self.fingerprint)
    }
}

/// Why a commit is good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Acceptance {
    /// An authorised key signed the commit object itself.
    Signed(Signer),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedCommit {
    pub id: CommitId,
    pub subject: String,
    pub acceptance: Acceptance,
    /// Guards that its signer lifts; only of commits that an authorised key signed.
    pub allowances: Vec<Allowance>,
}

/// A commit that an authenticated chain leads to. Only [`verify`] makes one, and only one of these is ever loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    accepted: Accepted,
    new: Vec<VerifiedCommit>,
}

impl Verified {
    pub fn commit(&self) -> &CommitId {
        &self.accepted.commit
    }
    pub fn seq(&self) -> u64 {
        self.accepted.seq
    }
    pub fn subject(&self) -> &str {
        &self.accepted.subject
    }
    pub fn signer(&self) -> &Signer {
        &self.accepted.signer
    }
    /// Verified now, oldest first; empty when the tip is what was accepted before.
    pub fn new_commits(&self) -> &[VerifiedCommit] {
        &self.new
    }
    /// Guards lifted by the new commits.
    pub fn allowances(&self) -> impl Iterator<Item = &Allowance> {
        self.new.iter().flat_map(|commit| &commit.allowances)
    }
    /// What to keep, so that this node never goes below it.
    pub fn accepted(&self) -> &Accepted {
        &self.accepted
    }
}

/// Why what a remote offers is not believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub reason: Reason,
    /// The branch, as people call it.
    pub branch: String,
    /// The commit that breaks the rule; it need not be the tip.
    pub commit: CommitId,
    pub subject: String,
    /// E-mail address as the commit says it: anybody can write anything there.
    pub author: String,
    /// Fingerprint of the key that signed it, if one did.
    pub signer: Option<String>,
    /// The rule that it breaks, naming who could have kept it.
    pub rule: String,
    /// What stays in force.
    pub last_good: Option<CommitId>,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.commit.short();
        writeln!(f, "refused {short} on {}: {}", self.branch, self.reason)?;
        writeln!(f, "  commit   {short} \"{}\" by {}", self.subject, self.author)?;
        if let Some(signer) = &self.signer {
            writeln!(f, "  signer   {signer}")?;
        }
        writeln!(f, "  rule     {}", self.rule)?;
        match &self.last_good {
            Some(good) => {
                writeln!(f, "  effect   this node keeps enforcing {}; drift is still repaired", good.short())?
            }
            None => writeln!(f, "  effect   this node has accepted nothing yet and does nothing")?,
        }
        write!(f, "  mend     {}", self.reason.mend)
    }
}

/// Judges the commits that are new, oldest first, and stops at the first that breaks a rule.
///
/// `accepted` binds if [`Accepted::binds`]; the links are those that `offer.relation` promises. `E` is whatever reading
/// a link can fail with.
pub fn verify<E: From<Box<Refusal>>>(
    root: &TrustRoot,
    accepted: Option<&Accepted>,
    offer: &Offer,
    links: impl IntoIterator<Item = Result<Link, E>>,
) -> Result<Verified, E> {
    let floor = accepted.filter(|accepted| accepted.binds(root));
    let mut chain = Chain { root, floor, tip: None, authority: None, new: Vec::new() };
    let mut links = links.into_iter();
    match (&offer.relation, floor) {
        (Relation::Onward { base, base_payload_sha256 }, Some(floor))
            if *base_payload_sha256 == floor.payload_sha256 =>
        {
            chain.tip = Some(Tip { id: base.clone(), accepted: floor.clone() });
        }
        (Relation::FromIntroduction, None) => match links.next().transpose()? {
            Some(link) if link.id == root.introduction.commit => chain.introduce(&link)?,
            _ => return Err(chain.refuse_tip(reason::INTRODUCTION_MISSING, offer).into()),
        },
        (Relation::NoIntroduction, _) => return Err(chain.refuse_tip(reason::INTRODUCTION_MISSING, offer).into()),
        (Relation::Behind, _) => return Err(chain.refuse_tip(reason::ROLLBACK, offer).into()),
        (Relation::Beside, _) => return Err(chain.refuse_tip(reason::FOXTROT, offer).into()),
        _ => return Err(chain.refuse_tip(reason::NOT_DESCENDANT, offer).into()),
    }
    for link in links {
        chain.extend(&link?)?;
    }
    match chain.tip {
        Some(tip) if tip.id == offer.tip => Ok(Verified { accepted: tip.accepted, new: chain.new }),
        _ => Err(chain.refuse_tip(reason::NOT_DESCENDANT, offer).into()),
    }
}

/// The chain as far as it is verified.
struct Chain<'a> {
    root: &'a TrustRoot,
    floor: Option<&'a Accepted>,
    tip: Option<Tip>,
    /// Of the files that were read last: they rarely change from commit to commit.
    authority: Option<(Arc<TrustFiles>, Arc<Authority>)>,
    new: Vec<VerifiedCommit>,
}

struct Tip {
    id: CommitId,
    accepted: Accepted,
}

/// The broken rule, before it is known to which commit it belongs.
struct Broken {
    reason: Reason,
    rule: String,
    signer: Option<String>,
}

fn broken(reason: Reason, rule: impl Into<String>) -> Broken {
    Broken { reason, rule: rule.into(), signer: None }
}

impl Chain<'_> {
    /// The introduction: trust.toml names it and its signer, and its own `trust/` is where authority begins.
    fn introduce(&mut self, link: &Link) -> Result<(), Box<Refusal>> {
        let wanted = &self.root.introduction;
        let judged = || -> Result<(Commit, Signer), Broken> {
            let (commit, fingerprint) = signed(link)?;
            if fingerprint != wanted.signer {
                let rule = format!("trust.toml says that the introduction is signed by {}", wanted.signer);
                return Err(Broken { signer: Some(fingerprint), ..broken(reason::INTRODUCTION_MISSING, rule) });
            }
            let own = Authority::parse(&link.own_trust).map_err(|what| broken(reason::TRUST_REMOVED, what))?;
            self.same_fleet(&link.own_trust)?;
            let principal = own.principal(&fingerprint).unwrap_or("the introduction's signer").to_owned();
            Ok((commit, Signer { principal, fingerprint }))
        };
        let (commit, signer) = judged().map_err(|broken| self.refuse(&link.id, &link.raw, broken))?;
        self.append(link, commit, signer, wanted.seq);
        Ok(())
    }

    fn extend(&mut self, link: &Link) -> Result<(), Box<Refusal>> {
        let (commit, signer) = self.judge(link).map_err(|broken| self.refuse(&link.id, &link.raw, broken))?;
        let seq = self.tip.as_ref().map_or(0, |tip| tip.accepted.seq) + 1;
        self.append(link, commit, signer, seq);
        Ok(())
    }

    fn judge(&mut self, link: &Link) -> Result<(Commit, Signer), Broken> {
        let parent = self.authority(&link.parent_trust).map_err(|what| broken(reason::TRUST_REMOVED, what))?;
        let (commit, fingerprint) = signed(link).map_err(|fault| {
            let unsigned = fault.reason == reason::UNSIGNED;
            if unsigned { broken(reason::UNSIGNED, self.who(&parent)) } else { fault }
        })?;
        let by = |fault: Broken| Broken { signer: Some(fingerprint.clone()), ..fault };
        if commit.parents.first() != self.tip.as_ref().map(|tip| &tip.id) {
            return Err(by(broken(
                reason::NOT_DESCENDANT,
                "every commit follows the one before it by its first parent",
            )));
        }
        // A ban on this node or in the repository outlives the key's entry.
        if self.root.bans.contains(&fingerprint) {
            return Err(by(broken(reason::BANNED_KEY, "trust.toml of this node bans the key")));
        }
        if parent.bans(&fingerprint) {
            return Err(by(broken(reason::BANNED_KEY, "trust/policy.toml of its parent bans the key")));
        }
        let Some(principal) = parent.principal(&fingerprint) else {
            return Err(by(broken(reason::UNKNOWN_KEY, self.who(&parent))));
        };
        if !Arc::ptr_eq(&link.own_trust, &link.parent_trust) {
            self.next_authority(&parent, link).map_err(by)?;
        }
        parent.permits(principal, &link.changed).map_err(|denied| by(self.denied(&parent, principal, &denied)))?;
        Ok((commit, Signer { principal: principal.to_owned(), fingerprint: fingerprint.clone() }))
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
        match policy::fleet_of(files) {
            Some((name, policy)) if name == self.root.fleet && policy == self.root.policy => Ok(()),
            Some((name, policy)) => {
                let rule = format!(
                    "this node belongs to fleet \"{}\" with policy {:?}; fleet.toml says \"{}\", {policy:?}",
                    self.root.fleet,
                    self.root.policy,
                    name.escape_debug()
                );
                Err(broken(reason::FLEET_MISMATCH, rule))
            }
            None => {
                let rule = format!("fleet.toml must name fleet \"{}\"; it is missing or unreadable", self.root.fleet);
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

    fn append(&mut self, link: &Link, commit: Commit, signer: Signer, seq: u64) {
        let accepted = Accepted {
            fleet: self.root.fleet.clone(),
            introduction: self.root.introduction.commit.clone(),
            commit: link.id.clone(),
            payload_sha256: payload_sha256(&commit.payload),
            seq,
            subject: commit.subject.clone(),
            signer: signer.clone(),
        };
        self.tip = Some(Tip { id: link.id.clone(), accepted });
        self.new.push(VerifiedCommit {
            id: link.id.clone(),
            subject: commit.subject,
            acceptance: Acceptance::Signed(signer),
            allowances: commit.allowances,
        });
    }

    fn who(&self, parent: &Authority) -> String {
        let last = self.floor.map(|floor| &floor.commit).unwrap_or(&self.root.introduction.commit);
        format!(
            "every commit after {} needs a signature by a principal of its parent's trust/allowed_signers ({})",
            last.short(),
            listed(&parent.principals_for(None))
        )
    }

    fn denied(&self, parent: &Authority, principal: &str, denied: &Denied) -> Broken {
        match denied {
            Denied::RootRequired(path) => {
                let who = listed(&parent.principals_with(PrincipalRole::Root));
                let path = path.as_str().escape_debug();
                broken(
                    reason::ROOT_REQUIRED,
                    format!("{path} changes only with role root ({who}); {principal} has it not"),
                )
            }
            Denied::Scope(Some(path)) => {
                let who = listed(&parent.principals_for(Some(path)));
                let path = path.as_str().escape_debug();
                broken(reason::SCOPE, format!("{path} is not in the paths of {principal}; it is in those of: {who}"))
            }
            Denied::Scope(None) => {
                let who = listed(&parent.principals_for(None));
                let rule = format!("trust/policy.toml gives {principal} no role that signs commits; it does to: {who}");
                broken(reason::SCOPE, rule)
            }
        }
    }

    fn refuse_tip(&self, reason: Reason, offer: &Offer) -> Box<Refusal> {
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

    fn refuse(&self, id: &CommitId, raw: &[u8], broken: Broken) -> Box<Refusal> {
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

/// The commit and the fingerprint of the key that signed it.
fn signed(link: &Link) -> Result<(Commit, String), Broken> {
    let commit = Commit::parse(&link.raw).map_err(|what| broken(reason::MALFORMED_COMMIT, what))?;
    if commit.tree != link.tree {
        return Err(broken(reason::MALFORMED_COMMIT, "its tree is another one than git reads"));
    }
    let Some(armor) = &commit.signature else {
        return Err(broken(reason::UNSIGNED, "the commit must be signed"));
    };
    let fingerprint = signature::verify(armor, &commit.payload).map_err(|what| broken(reason::BAD_SIGNATURE, what))?;
    Ok((commit, fingerprint.to_string()))
}

fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    match names {
        [] => "nobody".to_owned(),
        names if names.len() <= SHOWN => names.join(", "),
        names => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}
