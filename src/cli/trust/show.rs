//! `converger trust show`: who may sign what.
//!
//! Never: a verification; it shows what stands there, whoever wrote it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::super::access::{Access, STYLED};
use super::super::{Done, Failure, say, say_json};
use crate::diagnostics;
use crate::fleet::load;
use crate::fleet::problem::Severity;
use crate::fleet::schema::{PrincipalRole, TrustPolicy};
use crate::fleet::tree::Tree;
use crate::name::CommitId;
use crate::plan::show::Paint;
use crate::reason::Exit;
use crate::trust::policy::{Authority, TrustFiles, fleet_of};

/// Who may sign what: principals, their keys, roles and paths, and the bans
///
/// Nothing is verified. What is wrong in trust/ is listed with its place, and then the command ends with 3.
#[derive(clap::Args)]
pub struct Args {
    /// As of this revision. Default: the work tree
    #[arg(value_name = "REV")]
    revision: Option<String>,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    fleet: String,
    policy: TrustPolicy,
    /// `null`: the work tree.
    commit: Option<&'a CommitId>,
    principals: BTreeMap<&'a str, Shape<'a>>,
    banned: Vec<&'a str>,
}

#[derive(Serialize, Default)]
struct Shape<'a> {
    roles: &'a [PrincipalRole],
    paths: &'a [String],
    keys: Vec<Key<'a>>,
}

#[derive(Serialize)]
struct Key<'a> {
    kind: &'a str,
    fingerprint: &'a str,
    banned: bool,
}

pub fn run(args: &Args, access: &Access) -> Done {
    let tree = match &args.revision {
        None => access.work_tree()?,
        Some(revision) => Arc::new(super::workspace(access)?.tree_at(revision).map_err(super::failure)?),
    };
    let problems = load::trust_problems(&tree);
    let file = |path: &str| tree.get(path).cloned();
    let files = TrustFiles {
        allowed_signers: file("trust/allowed_signers"),
        policy: file("trust/policy.toml"),
        fleet: file("fleet.toml"),
    };
    let authority = Authority::parse(&files).ok();
    let shown = authority.as_ref().map(|authority| shown(&tree, &files, authority));
    if args.json {
        say_json(&serde_json::json!({ "trust": shown, "problems": diagnostics::to_json(&problems, &tree) }));
    } else {
        if let Some(shown) = &shown {
            say(text(shown));
        }
        say(diagnostics::render(&problems, &tree, STYLED));
    }
    let wrong = problems.iter().any(|problem| problem.severity == Severity::Error);
    match authority {
        Some(_) if !wrong => Ok(Exit::Done),
        _ if wrong => Ok(Exit::Repository),
        _ => {
            let why = Authority::parse(&files).err().unwrap_or_default();
            Err(Failure::new(Exit::Repository, format!("nobody can sign: {why}")))
        }
    }
}

fn shown<'a>(tree: &'a Tree, files: &TrustFiles, authority: &'a Authority) -> Shown<'a> {
    let (fleet, policy) = fleet_of(files).unwrap_or_default();
    let mut principals: BTreeMap<&str, Shape<'_>> = BTreeMap::new();
    for (name, said) in authority.principals() {
        principals.insert(name, Shape { roles: &said.roles, paths: &said.paths, keys: Vec::new() });
    }
    for (fingerprint, principal) in authority.signers().iter() {
        let kind = authority.signers().kind(fingerprint).unwrap_or_default();
        let key = Key { kind, fingerprint, banned: authority.bans(fingerprint) };
        principals.entry(principal).or_default().keys.push(key);
    }
    let banned = authority.banned().iter().map(String::as_str).collect();
    Shown { fleet, policy, commit: tree.commit.as_ref(), principals, banned }
}

fn text(shown: &Shown<'_>) -> String {
    let Paint { bold, dim, off, .. } = Paint::COLOUR;
    let at = shown.commit.map_or("in the work tree", CommitId::short);
    let mut out = format!("fleet {bold}{}{off}, policy {}, {at}\n", shown.fleet, word(&shown.policy));
    for (name, principal) in &shown.principals {
        let roles = match principal.roles {
            [] => "no role: signs nothing".to_owned(),
            roles => roles.iter().map(word).collect::<Vec<_>>().join(", "),
        };
        out.push_str(&format!("\n{bold}{name}{off}  {roles}\n"));
        if principal.roles.contains(&PrincipalRole::Deploy) {
            out.push_str(&format!("  paths  {}\n", principal.paths.join("  ")));
        }
        for key in &principal.keys {
            let banned = if key.banned { "  banned" } else { "" };
            out.push_str(&format!("  key    {} {dim}{}{off}{banned}\n", key.fingerprint, key.kind));
        }
        if principal.keys.is_empty() {
            out.push_str("  no key: cannot sign\n");
        }
    }
    if !shown.banned.is_empty() {
        out.push_str(&format!("\n{bold}banned{off}\n"));
        shown.banned.iter().for_each(|key| out.push_str(&format!("  {key}\n")));
    }
    out
}

/// As it is written in the files.
pub(super) fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).ok();
    value.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}
