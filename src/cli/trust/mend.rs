//! `converger trust mend`: a branch that has a commit which no node accepts.
//!
//! Never: rewrites history; it adds commits.

use super::super::access::Access;
use super::super::process::output;
use super::super::{Done, Failure, say};
use crate::reason::Exit;

/// Leave refused commits out, by a signed merge that keeps the last good content
///
/// The refused commits go to the second parent's side of the merge. A revert cannot do that: they would stay on the
/// branch. No force-push is needed. Bring back what they changed as signed commits (`git cherry-pick -S`). The merge is
/// made here, in the work tree, which must be clean; pushing it is left to you.
#[derive(clap::Args)]
pub struct Args {
    /// The last commit that nodes accept; `converger why NODE` names it
    #[arg(long, value_name = "COMMIT")]
    good: String,
    /// The refused tip
    #[arg(long, value_name = "COMMIT", default_value = "HEAD")]
    bad: String,
    /// The branch that is mended
    #[arg(long, value_name = "NAME", default_value = "main")]
    branch: String,
}

pub fn run(args: Args, access: &Access) -> Done {
    let Args { good, bad, branch } = args;
    let folder = access.folder()?;
    let git = |args: &[&str]| output(&folder, "git", args);
    let dirty = git(&["status", "--porcelain"])?;
    if !dirty.trim().is_empty() {
        return Err(Failure::usage("the work tree has uncommitted changes; commit or stash them first"));
    }
    let full = |revision: &str| git(&["rev-parse", "--verify", "--end-of-options", &format!("{revision}^{{commit}}")]);
    let good = full(&good)?.trim().to_owned();
    let bad = full(&bad)?.trim().to_owned();
    git(&["merge-base", "--is-ancestor", &good, &bad]).map_err(|_| {
        Failure::usage(format!("{good} is not an ancestor of {bad}; name the last accepted commit with --good"))
    })?;
    if good == bad {
        return Err(Failure::usage("--good and --bad are the same commit; --good is the last one that nodes accept"));
    }
    // The branch is moved to the merge: nothing of it may lie elsewhere.
    let local = format!("refs/heads/{branch}");
    if git(&["rev-parse", "--quiet", "--verify", &local]).is_ok() {
        git(&["merge-base", "--is-ancestor", &local, &bad]).map_err(|_| {
            Failure::usage(format!("{branch} has commits that {} has not; switch to {branch} first", &bad[..7]))
        })?;
    }
    let before = git(&["symbolic-ref", "--quiet", "--short", "HEAD"]).unwrap_or_else(|_| bad.clone());
    git(&["switch", "--quiet", "--detach", &good])?;
    let message = format!("mend: leave out {}, go on from {}", &bad[..7], &good[..7]);
    let merge = ["merge", "--quiet", "--strategy", "ours", "--no-ff", "--gpg-sign", "--message", &message, &bad];
    if let Err(failure) = git(&merge) {
        // Without a key, say: everything is as it was.
        let _ = git(&["merge", "--abort"]);
        git(&["switch", "--quiet", before.trim()])?;
        return Err(failure);
    }
    git(&["switch", "--quiet", "--force-create", &branch])?;
    let head = full("HEAD")?;
    say(format!(
        "{} on {branch}: content of {}, {} on the second parent's side.\nPush it (no force needed): git push origin {branch}\n",
        &head[..7],
        &good[..7],
        &bad[..7]
    ));
    Ok(Exit::Done)
}
