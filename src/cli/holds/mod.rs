//! `converger holds`: who holds what and what would end it; freeing the holds that their holders cannot free; and giving a
//! restored store the holds of today.
//!
//! Never: frees an armed hold of a node that nobody declared dead.

mod export;
mod list;
mod reinit;

use clap::Subcommand;

use super::access::Access;
use super::operator::{Operation, unreachable};
use super::{Done, Failure, say};
use crate::lock::quorum::HoldPhase;
use crate::lock::store::Write;
use crate::lock::{operator, protocol};
use crate::name::{GroupId, NodeName};
use crate::reason::Exit;

/// List restart holds, release those that their holders cannot release, and restore them after etcd was restored
///
/// What can be released: all holds of a machine that is off for good (`release --dead NODE`), and a claim under which nothing
/// was stopped yet (`release --claimed GROUP/NODE`). Every other hold ends when its member is healthy; `list` says what each
/// waits for.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    List(list::Args),
    Release(Release),
    Export(export::Args),
    Reinit(reinit::Args),
}

/// Free the holds of a machine that is off for good, or a claim that was never armed
///
/// Only state that a node is dead when its machine is off: the safety of the next restart rests on it. The node may not
/// disrupt anything afterwards, until `converger node admit`. A claim can be freed at any time: nothing was stopped under it.
#[derive(clap::Args)]
struct Release {
    /// The node whose machine is off
    #[arg(long, value_name = "NODE", required_unless_present = "claimed", conflicts_with = "claimed")]
    dead: Option<String>,
    /// The claim of this node on this group; refused once it is armed
    #[arg(long, value_name = "GROUP/NODE")]
    claimed: Option<String>,
    /// Why, for those who read it later: it goes into the audit keys
    #[arg(long)]
    reason: String,
}

pub fn run(args: Args, access: &Access) -> Done {
    match args.what {
        What::List(args) => list::run(&args, access),
        What::Release(Release { claimed: Some(claimed), reason, .. }) => release_claimed(&claimed, &reason, access),
        What::Release(Release { dead, reason, .. }) => release_dead(dead.unwrap_or_default(), &reason, access),
        What::Export(args) => export::run(&args),
        What::Reinit(args) => reinit::run(args, access),
    }
}

fn release_dead(node: String, reason: &str, access: &Access) -> Done {
    let node = NodeName::new(node);
    let operation = Operation::begin(access, "declared-dead", node.to_string(), reason)?;
    let snapshot = operation.store.read(&["hold/", "act/"]).map_err(unreachable)?;
    let holds = snapshot.entries.iter().any(|entry| entry.key.ends_with(&format!("/{node}")));
    if operation.fleet.environment.node(&node).is_none() && !holds {
        let environment = &operation.fleet.environment.name;
        return Err(Failure::usage(format!("{node} is not a node of environment {environment} and holds nothing")));
    }
    let statement = serde_json::to_vec(&operation.said).expect("plain data");
    let mut transaction = protocol::release_dead(&node, &snapshot, &statement);
    let freed = transaction.when.len();
    transaction.then.push(Write::Put(operator::audit_key(&operation.id), statement));
    operation.commit(&transaction)?;
    say(format!(
        "{node} is declared dead; {freed} holds freed. It disrupts nothing until `converger node admit {node}`.\n"
    ));
    Ok(Exit::Done)
}

fn release_claimed(claimed: &str, reason: &str, access: &Access) -> Done {
    let Some((group, node)) = claimed.split_once('/') else {
        return Err(Failure::usage(format!("--claimed {claimed:?}: name group and node, as in kafka.brokers/kafka04")));
    };
    let (group, node) = (GroupId::new(group), NodeName::new(node));
    let operation = Operation::begin(access, "claim-released", format!("{group}/{node}"), reason)?;
    let snapshot = operation.store.read(&[&protocol::hold_range(&group)]).map_err(unreachable)?;
    let released = operator::release_claimed(&group, &node, &snapshot, &operation.said, &operation.id);
    let transaction = released.map_err(|hold| {
        Failure::usage(match hold {
            None => format!("{node} has no hold on {group}"),
            Some(hold) if hold.phase == HoldPhase::Failed => format!(
                "{node} failed under its hold on {group}: it ends with the next commit that is good for {node}, or, if its machine is off for good, by `converger holds release --dead {node}`"
            ),
            Some(_) => format!(
                "{node} has armed its hold on {group}: its member may be down; it ends when that settles, or, if its machine is off for good, by `converger holds release --dead {node}`"
            ),
        })
    })?;
    operation.commit(&transaction)?;
    say(format!("the claim of {node} on {group} is gone; {node} plans afresh.\n"));
    Ok(Exit::Done)
}
