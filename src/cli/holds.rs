//! `converger holds`: who holds which group, and freeing the hold of a machine that is off for good.
//!
//! Never: frees the hold of a node that nobody declared dead.

use clap::Subcommand;

use super::access::Access;
use super::{Done, Failure, say, say_json};
use crate::clock::{Clock as _, SystemClock};
use crate::lock::protocol;
use crate::lock::quorum::Hold;
use crate::lock::store::{Outcome, Write};
use crate::name::{GroupId, NodeName};
use crate::plan::show::{about, table};
use crate::reason::{self, Exit, chain};

/// List restart holds, or release those of a machine that is off for good
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Who holds which group, since when, and in which phase
    List {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Free the holds of a machine that is off for good
    ///
    /// Only state that a node is dead when its machine is off: the safety of the next restart rests on it. The node may not
    /// disrupt anything afterwards, until its key below `dead/` in the store is deleted.
    Release {
        /// The node whose machine is off
        #[arg(long, value_name = "NODE")]
        dead: String,
        /// Why, for those who read it later: it goes into the audit keys
        #[arg(long)]
        reason: String,
    },
}

pub fn run(args: Args, access: &Access) -> Done {
    let tree = access.work_tree()?;
    let fleet = access.load(&tree)?.fleet;
    let store = access.store(&fleet.name, &fleet.environment.name)?;
    let unreachable = |e| Failure::of(reason::STORE_UNREACHABLE, chain(&e));
    let snapshot = store.read(&["hold/", "act/"]).map_err(unreachable)?;
    match args.what {
        What::List { json } => {
            let groups = snapshot.entries.iter().filter_map(|entry| entry.key.strip_prefix("hold/")?.split('/').next());
            let mut groups: Vec<GroupId> = groups.map(GroupId::from).collect();
            groups.sort();
            groups.dedup();
            let holds: Vec<Hold> =
                groups.iter().flat_map(|group| protocol::holds_in(&snapshot, group)).map(|(hold, _)| hold).collect();
            if json {
                say_json(&holds);
                return Ok(Exit::Done);
            }
            if holds.is_empty() {
                say("no holds\n");
                return Ok(Exit::Done);
            }
            let now = SystemClock.now();
            let rows: Vec<[String; 6]> = holds
                .iter()
                .map(|hold| {
                    let age = now.duration_since(hold.since).as_secs().max(0).unsigned_abs();
                    let phase = format!("{:?}", hold.phase).to_lowercase();
                    let commit = hold.commit.short().to_owned();
                    [hold.group.to_string(), hold.node.to_string(), phase, about(age), commit, hold.reason.clone()]
                })
                .collect();
            let head = ["group", "node", "phase", "for", "commit", "reason"].map(str::to_owned);
            say(table(&head, &rows, ""));
            Ok(Exit::Done)
        }
        What::Release { dead, reason } => {
            let node = NodeName::new(dead);
            let holds = snapshot.entries.iter().any(|entry| entry.key.ends_with(&format!("/{node}")));
            if fleet.environment.node(&node).is_none() && !holds {
                let environment = &fleet.environment.name;
                return Err(Failure::usage(format!(
                    "{node} is not a node of environment {environment} and holds nothing"
                )));
            }
            let statement = serde_json::json!({
                "node": node, "reason": reason, "at": SystemClock.now(), "by": nix::unistd::getuid().as_raw(),
            });
            let statement = serde_json::to_vec(&statement).expect("plain data");
            let mut transaction = protocol::release_dead(&node, &snapshot, &statement);
            let freed = transaction.when.len();
            let audit = format!("audit/{node}/{}", ulid::Ulid::generate());
            transaction.then.push(Write::Put(audit, statement));
            match store.commit(&transaction).map_err(unreachable)? {
                Outcome::Committed(_) => {
                    say(format!(
                        "{node} is declared dead; {freed} holds freed. It disrupts nothing until it is admitted again.\n"
                    ));
                    Ok(Exit::Done)
                }
                Outcome::Refused => Err(Failure::of(
                    reason::LOST_RACE,
                    "the holds changed meanwhile; look again with `converger holds list`",
                )),
            }
        }
    }
}
