//! `converger trust explain`: one commit, why a node accepts or refuses it.
//!
//! Never: a word about the commits before it; `verify` looks at the chain.

use std::collections::BTreeSet;

use serde::Serialize;

use super::super::access::Access;
use super::super::{Done, Failure, say, say_json};
use super::show::word;
use super::{Beginning, Refused};
use crate::name::{CommitId, RepoPath};
use crate::plan::show::Paint;
use crate::reason::Exit;
use crate::settings::{Introduction, TrustRoot};
use crate::trust::commit::Commit;
use crate::trust::policy::{Authority, fleet_of, matches, needs_root};
use crate::trust::{Acceptance, Link, Signer};

/// Why a node accepts or refuses one commit, and what it changes in trust/
///
/// The commit is judged by trust/ of its first parent, as if that one had been accepted; whether it was, `converger trust
/// verify` says. Ends with 0 if the commit is accepted, with 4 if it is refused. Where the chain begins need not be said;
/// a node's --trust adds the bans of that node.
#[derive(clap::Args)]
pub struct Args {
    /// What to explain
    #[arg(value_name = "COMMIT", default_value = "HEAD")]
    commit: String,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    beginning: Beginning,
}

#[derive(Serialize)]
struct Explained<'a> {
    commit: CommitId,
    subject: String,
    accepted: Option<Grounds>,
    refused: Option<Refused<'a>>,
    changes: Vec<Change>,
    /// What it makes of `trust/`.
    trust: Vec<String>,
    /// Guards that its trailers lift.
    lifts: Vec<String>,
}

#[derive(Serialize)]
struct Grounds {
    /// Who signed it; of a merge that the forge made, who signed what it brings.
    signers: Vec<Listed>,
    /// Second parent of a merge that the forge made.
    merged: Option<CommitId>,
    /// Whose `trust/` decided; `null`: it is the introduction.
    parent: Option<CommitId>,
}

#[derive(Serialize)]
struct Listed {
    principal: String,
    fingerprint: String,
    /// The key's type.
    kind: String,
    roles: Vec<String>,
}

#[derive(Serialize)]
struct Change {
    path: String,
    /// The pattern, or `role root`; `null`: nothing of the signer's.
    covered_by: Option<String>,
}

pub fn run(args: &Args, access: &Access) -> Done {
    let workspace = super::workspace(access)?;
    let link = workspace.link(&args.commit).map_err(super::failure)?;
    let commit = Commit::parse(&link.raw).ok();
    let parent = commit.as_ref().and_then(|commit| commit.parents.first().cloned());
    let root = match args.beginning.root(access, &workspace)? {
        Some(root) => root,
        None => by_itself(&link, parent.clone())?,
    };
    let introduction = root.introduction.commit == link.id;
    let parent = parent.filter(|_| !introduction);
    let judged = workspace.verify(&root, link.id.as_str(), parent.as_ref().map(CommitId::as_str));
    let (verified, refusal) = match judged {
        Ok(verified) => (Some(verified), None),
        Err(error) => (None, Some(super::refusal(error, &workspace)?)),
    };
    let judges = Authority::parse(if introduction { &link.own_trust } else { &link.parent_trust }).ok();
    let accepted = verified.as_ref().and_then(|verified| verified.new_commits().last());
    let grounds = accepted.map(|accepted| {
        let (signers, merged) = match &accepted.acceptance {
            Acceptance::Signed(signer) => (std::slice::from_ref(signer), None),
            Acceptance::Recomputed { merged, signers } => (signers.as_slice(), Some(merged.clone())),
        };
        let signers = signers.iter().map(|signer| listed(signer, judges.as_ref())).collect();
        Grounds { signers, merged, parent: parent.clone() }
    });
    let lifted = accepted.into_iter().flat_map(|accepted| &accepted.allowances);
    let explained = Explained {
        commit: link.id.clone(),
        subject: commit.map_or_else(|| "(unreadable)".to_owned(), |commit| commit.subject),
        refused: refusal.as_deref().map(Refused::of),
        changes: changes(&link, judges.as_ref(), grounds.as_ref()),
        trust: trust_changes(&link, judges.as_ref()),
        lifts: lifted.map(|lifted| format!("{} {}", lifted.guard, lifted.object)).collect(),
        accepted: grounds,
    };
    match &refusal {
        _ if args.json => say_json(&explained),
        None => say(text(&explained)),
        Some(refusal) => {
            say(details(&explained));
            return Err(super::refused(refusal));
        }
    }
    Ok(if refusal.is_some() { Exit::Trust } else { Exit::Done })
}

/// Without a beginning: whatever fleet the parent says it is of.
fn by_itself(link: &Link, parent: Option<CommitId>) -> Result<TrustRoot, Failure> {
    let commit = parent.ok_or_else(|| Failure::usage(super::NOBODY_SAID))?;
    let (fleet, policy) = fleet_of(&link.parent_trust).unwrap_or_default();
    // Never compared: the parent stands for what was accepted.
    let signer = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned();
    let introduction = Introduction { commit, signer, seq: 1 };
    let root = TrustRoot::of_introduction(fleet, "the branch", introduction).map_err(Failure::usage)?;
    Ok(TrustRoot { policy, ..root })
}

fn listed(signer: &Signer, judges: Option<&Authority>) -> Listed {
    let known = judges.and_then(|judges| judges.principals().get(&signer.principal));
    let kind = judges.and_then(|judges| judges.signers().kind(&signer.fingerprint));
    Listed {
        principal: signer.principal.clone(),
        fingerprint: signer.fingerprint.clone(),
        kind: kind.unwrap_or_default().to_owned(),
        roles: known.map(|known| known.roles.iter().map(word).collect()).unwrap_or_default(),
    }
}

fn changes(link: &Link, judges: Option<&Authority>, grounds: Option<&Grounds>) -> Vec<Change> {
    let signers = grounds.map(|grounds| grounds.signers.as_slice()).unwrap_or_default();
    let known = || signers.iter().filter_map(|signer| judges?.principals().get(&signer.principal));
    let by = |path: &RepoPath| match known().next() {
        Some(_) if needs_root(path) => Some("role root".to_owned()),
        _ => known().flat_map(|known| &known.paths).find(|glob| matches(glob, path.as_str())).cloned(),
    };
    let shown = |path: &RepoPath| path.as_str().escape_debug().to_string();
    link.changed.iter().map(|path| Change { path: shown(path), covered_by: by(path) }).collect()
}

/// Keys, bans and principals that come, go, or change.
fn trust_changes(link: &Link, before: Option<&Authority>) -> Vec<String> {
    let own = Authority::parse(&link.own_trust);
    let (Some(before), Ok(own)) = (before, own) else { return Vec::new() };
    let keys = |authority: &Authority| -> BTreeSet<(String, String, String)> {
        let kind = |key: &str| authority.signers().kind(key).unwrap_or_default().to_owned();
        authority.signers().iter().map(|(key, who)| (who.to_owned(), key.to_owned(), kind(key))).collect()
    };
    let (old, new) = (keys(before), keys(&own));
    let key = |sign: &str, (who, key, kind): &(String, String, String)| format!("{sign} key of {who}: {key} {kind}");
    let mut said: Vec<String> = new.difference(&old).map(|one| key("+", one)).collect();
    said.extend(old.difference(&new).map(|one| key("-", one)));
    said.extend(own.banned().difference(before.banned()).map(|key| format!("! banned: {key}")));
    let names: BTreeSet<&String> = before.principals().keys().chain(own.principals().keys()).collect();
    for name in names {
        let describe = |authority: &Authority| {
            let known = authority.principals().get(name)?;
            let roles: Vec<String> = known.roles.iter().map(word).collect();
            Some(format!("{} on {}", roles.join(", "), known.paths.join("  ")))
        };
        match (describe(before), describe(&own)) {
            (None, Some(new)) => said.push(format!("+ {name}: {new}")),
            (Some(old), None) => said.push(format!("- {name}: {old}")),
            (Some(old), Some(new)) if old != new => said.push(format!("~ {name}: {old} -> {new}")),
            _ => {}
        }
    }
    said
}

fn text(explained: &Explained<'_>) -> String {
    let Paint { bold, dim, green, off, .. } = Paint::COLOUR;
    let (short, subject) = (explained.commit.short(), &explained.subject);
    let mut out = format!("{green}accepted{off} {bold}{short}{off} \"{subject}\"\n");
    if let Some(Grounds { signers, merged, parent }) = &explained.accepted {
        if let Some(merged) = merged {
            let what = "a forge merged it: made again, it is the same, and what it brings is signed";
            out.push_str(&format!("  merge    of {}; {what}\n", merged.short()));
        }
        for Listed { principal, fingerprint, kind, roles } in signers {
            let roles = roles.join(", ");
            out.push_str(&format!("  signer   {principal} {dim}{fingerprint}, {kind}{off}, role {roles}\n"));
        }
        let by = match parent {
            Some(parent) => format!("trust/ of {}, its first parent", parent.short()),
            None => "it is the introduction; its own trust/ is where authority begins".to_owned(),
        };
        out.push_str(&format!("  by       {by}\n"));
    }
    out + &details(explained)
}

/// What it changes and lifts, whether it is accepted or not.
fn details(explained: &Explained<'_>) -> String {
    const SHOWN_MAX: usize = 20;
    let mut out = String::new();
    let mut line = |name: &mut &str, text: String| {
        out.push_str(&format!("  {name:<8} {text}\n"));
        *name = "";
    };
    let mut name = "changes";
    let width = explained.changes.iter().take(SHOWN_MAX).map(|change| change.path.chars().count()).max().unwrap_or(0);
    for change in explained.changes.iter().take(SHOWN_MAX) {
        let covered = change.covered_by.as_ref().map_or(String::new(), |by| format!("  covered by {by}"));
        line(&mut name, format!("{:<width$}{covered}", change.path).trim_end().to_owned());
    }
    if explained.changes.len() > SHOWN_MAX {
        line(&mut name, format!("and {} more", explained.changes.len() - SHOWN_MAX));
    }
    let mut name = "trust";
    explained.trust.iter().for_each(|change| line(&mut name, change.clone()));
    let mut name = "lifts";
    explained.lifts.iter().for_each(|guard| line(&mut name, guard.clone()));
    out
}
