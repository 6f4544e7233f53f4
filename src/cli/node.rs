//! `converger node`: what an operator decides about one node. Never: lets a node in that nobody put away.

use clap::Subcommand;

use super::access::Access;
use super::operator::{Operation, unreachable};
use super::{Done, Failure, say};
use crate::lock::{operator, protocol};
use crate::name::NodeName;
use crate::reason::Exit;

/// Let a node in again that was declared dead
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// End the quarantine of a node that was declared dead
    ///
    /// From then on it may take holds again. Make sure first that the machine is what it was: its disk, its state, and that
    /// no other machine runs under its name.
    Admit {
        /// A node that `holds release --dead` put away
        #[arg(value_name = "NODE")]
        node: String,
        /// Why, for those who read it later: it goes into the audit keys
        #[arg(long)]
        reason: String,
    },
}

pub fn run(args: Args, access: &Access) -> Done {
    let What::Admit { node, reason } = args.what;
    let node = NodeName::new(node);
    let operation = Operation::begin(access, "admitted", node.to_string(), &reason)?;
    let seen = operation.store.read(&[&protocol::dead_key(&node)]).map_err(unreachable)?;
    let Some(transaction) = operator::admit(&node, &seen, &operation.said, &operation.id) else {
        operation.known_node(&node)?;
        return Err(Failure::usage(format!("{node} was not declared dead")));
    };
    operation.commit(&transaction)?;
    say(format!("{node} is admitted: it may take holds again.\n"));
    Ok(Exit::Done)
}
