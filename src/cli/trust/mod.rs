//! `converger trust`: who may sign, what is signed, and mending a branch that nodes refuse.
//!
//! Never: a judgement of its own; `trust` makes the one that nodes make.

mod explain;
mod mend;
mod show;
mod verify;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::access::Access;
use super::{Done, Failure};
use crate::disk;
use crate::git::{GitError, Workspace};
use crate::name::CommitId;
use crate::reason::{Exit, chain};
use crate::settings::{Introduction, TrustRoot};
use crate::trust::Refusal;
use crate::trust::policy::fleet_of;

/// Who may sign, whether nodes would accept what is here, and mending what they refuse
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Verify(verify::Args),
    Show(show::Args),
    Explain(explain::Args),
    Mend(mend::Args),
}

pub fn run(args: Args, access: &Access) -> Done {
    match args.what {
        What::Verify(args) => verify::run(&args, access),
        What::Show(args) => show::run(&args, access),
        What::Explain(args) => explain::run(&args, access),
        What::Mend(args) => mend::run(args, access),
    }
}

/// Where belief begins, said outside of what is verified.
#[derive(clap::Args)]
struct Beginning {
    /// A node's trust.toml. Default: `trust` of the client settings, else what `converger init` left in this clone
    #[arg(long, value_name = "FILE", help_heading = "Where the chain begins", conflicts_with = "introduction")]
    trust: Option<PathBuf>,
    /// Full id of the introduction, instead of a trust.toml
    #[arg(long, value_name = "COMMIT", help_heading = "Where the chain begins", requires = "signer")]
    introduction: Option<CommitId>,
    /// Fingerprint of the key that signed the introduction
    #[arg(long, value_name = "SHA256:…", help_heading = "Where the chain begins", requires = "introduction")]
    signer: Option<String>,
    /// With --introduction: the fleet's id. Default: what fleet.toml of the introduction says
    #[arg(long, value_name = "NAME", help_heading = "Where the chain begins", requires = "introduction")]
    fleet: Option<String>,
    /// With --introduction: the branch that nodes follow, for what is printed
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Where the chain begins",
        default_value = "main",
        requires = "introduction"
    )]
    branch: String,
}

/// Local settings are small.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;
/// In a clone's configuration, by `converger init`.
pub(super) const INTRODUCTION_SETTING: &str = "converger.introduction";
pub(super) const SIGNER_SETTING: &str = "converger.signer";

impl Beginning {
    /// `None`: nobody said.
    fn root(&self, access: &Access, workspace: &Workspace) -> Result<Option<TrustRoot>, Failure> {
        if let Some(file) = &self.trust {
            return trust_file(file).map(Some);
        }
        if let Some((commit, signer)) = self.introduction.clone().zip(self.signer.clone()) {
            return self.introduced(workspace, commit, signer).map(Some);
        }
        if let Some(file) = access.client()?.trust {
            return trust_file(&file).map(Some);
        }
        let left_here = workspace.setting(INTRODUCTION_SETTING).zip(workspace.setting(SIGNER_SETTING));
        left_here.map(|(commit, signer)| self.introduced(workspace, CommitId::new(commit), signer)).transpose()
    }

    fn introduced(&self, workspace: &Workspace, commit: CommitId, signer: String) -> Result<TrustRoot, Failure> {
        // A clone that lacks the introduction is refused for that, whatever the fleet is called.
        let named = || Some(fleet_of(&workspace.link(commit.as_str()).ok()?.own_trust)?.0);
        let fleet = self.fleet.clone().or_else(named).unwrap_or_default();
        let introduction = Introduction { commit, signer, seq: 1 };
        TrustRoot::of_introduction(fleet, &self.branch, introduction).map_err(Failure::usage)
    }
}

const NOBODY_SAID: &str = "where does the chain begin? Name a node's --trust FILE, or --introduction COMMIT with --signer SHA256:…, \
     or write `trust = \"FILE\"` into ~/.config/converger/client.toml; in a clone that `converger init` made it is known";

fn trust_file(file: &Path) -> Result<TrustRoot, Failure> {
    let bytes = disk::read_bounded(file, SETTINGS_BYTES_MAX).map_err(|error| Failure::usage(chain(&error)))?;
    let bytes = bytes.ok_or_else(|| Failure::usage(format!("{}: no such file", file.display())))?;
    TrustRoot::parse(&String::from_utf8_lossy(&bytes), file).map_err(|error| Failure::usage(error.to_string()))
}

fn workspace(access: &Access) -> Result<Workspace, Failure> {
    Workspace::open(&access.folder()?).map_err(failure)
}

fn failure(error: GitError) -> Failure {
    match &error {
        GitError::NoRevision { .. } => Failure::usage(chain(&error)),
        _ => Failure::new(error.reason().exit, chain(&error)),
    }
}

/// The refusal in an error; the others are told as they are.
fn refusal(error: GitError, workspace: &Workspace) -> Result<Box<Refusal>, Failure> {
    if let GitError::Refused(refusal) = error {
        return Ok(refusal);
    }
    let failure = failure(error);
    let hint = match workspace.is_shallow() {
        true => {
            "\n  help: this clone is shallow; get its history (`git fetch --unshallow`), or name a commit that was verified \
             before with --since"
        }
        false => "",
    };
    Err(Failure::new(failure.exit, format!("{}{hint}", failure.message)))
}

/// A refusal for scripts.
#[derive(Serialize)]
struct Refused<'a> {
    reason: &'a str,
    commit: &'a CommitId,
    subject: &'a str,
    author: &'a str,
    /// Fingerprint of the key that signed it, if one did.
    signer: Option<&'a str>,
    rule: &'a str,
    /// What nodes keep enforcing.
    last_good: Option<&'a CommitId>,
    mend: &'a str,
}

impl<'a> Refused<'a> {
    fn of(refusal: &'a Refusal) -> Self {
        Self {
            reason: refusal.reason.id,
            commit: &refusal.commit,
            subject: &refusal.subject,
            author: &refusal.author,
            signer: refusal.signer.as_deref(),
            rule: &refusal.rule,
            last_good: refusal.last_good.as_ref(),
            mend: refusal.reason.mend,
        }
    }
}

fn refused(refusal: &Refusal) -> Failure {
    debug_assert_eq!(refusal.reason.exit, Exit::Trust);
    Failure::of(refusal.reason, refusal)
}
