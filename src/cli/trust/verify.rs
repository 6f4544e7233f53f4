//! `converger trust verify`: whether a node that begins at the introduction would arrive here.
//!
//! Never: fetches; it looks at what this clone has.

use serde_json::json;

use super::super::access::Access;
use super::super::{Done, Failure, say, say_json};
use super::{Beginning, NOBODY_SAID, Refused};
use crate::plan::show::plural;
use crate::reason::Exit;
use crate::trust::Acceptance;

/// Verify every commit from the introduction to a revision, as a node does
///
/// Ends with 0 if a node would accept the revision, with 4 if it would refuse it or a commit before it; the first that
/// breaks a rule is named, with the rule and the last good commit.
#[derive(clap::Args)]
pub struct Args {
    /// What to verify
    #[arg(value_name = "REV", default_value = "HEAD")]
    revision: String,
    /// Verify only what is new since this commit, as if a node had accepted it
    #[arg(long, value_name = "COMMIT")]
    since: Option<String>,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    beginning: Beginning,
}

pub fn run(args: &Args, access: &Access) -> Done {
    let workspace = super::workspace(access)?;
    let root = args.beginning.root(access, &workspace)?.ok_or_else(|| Failure::usage(NOBODY_SAID))?;
    let verified = match workspace.verify(&root, &args.revision, args.since.as_deref()) {
        Ok(verified) => verified,
        Err(error) => {
            let refusal = super::refusal(error, &workspace)?;
            if !args.json {
                return Err(super::refused(&refusal));
            }
            say_json(&json!({ "fleet": root.fleet, "verified": null, "refused": Refused::of(&refusal) }));
            return Ok(Exit::Trust);
        }
    };
    let from = args.since.as_deref().unwrap_or(root.introduction.commit.as_str());
    let from = workspace.summary(from).map_err(super::failure)?;
    let seq = args.since.is_none().then_some(verified.seq());
    let commits = verified.new_commits().len();
    if args.json {
        let tip =
            json!({ "commit": verified.commit(), "subject": verified.subject(), "acceptance": verified.acceptance() });
        let from = json!({ "commit": from.id, "subject": from.subject, "signer": from.signer });
        say_json(&json!({
            "fleet": root.fleet, "verified": commits, "from": from, "tip": tip, "seq": seq, "refused": null,
        }));
        return Ok(Exit::Done);
    }
    if commits == 0 {
        say(format!("nothing new since {}\n", from.id.short()));
        return Ok(Exit::Done);
    }
    let seq = seq.map_or(String::new(), |seq| format!(", seq {seq}"));
    let first = verified.new_commits().first().filter(|_| args.since.is_none());
    let signer = first.map_or(String::new(), |first| format!(" ({})", who(&first.acceptance)));
    say(format!(
        "{} verified, from {}{signer} to {} ({}){seq}\n",
        plural(commits, "commit"),
        from.id.short(),
        verified.commit().short(),
        who(verified.acceptance()),
    ));
    Ok(Exit::Done)
}

fn who(acceptance: &Acceptance) -> String {
    match acceptance {
        Acceptance::Signed(signer) => signer.principal.clone(),
        Acceptance::Recomputed { .. } => acceptance.to_string(),
    }
}
