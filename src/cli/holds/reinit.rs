//! `converger holds reinit`: a store that was restored is told the holds of today, and its epoch is raised.
//!
//! Never: while the fleet is not frozen, or while a node that may hold something has not been heard.

use std::path::PathBuf;

use super::super::access::Access;
use super::super::operator::{Operation, unreachable};
use super::super::{Done, Failure, say};
use crate::disk;
use crate::fleet::schema::Membership;
use crate::lock::epoch::{self, Export, META, Restored};
use crate::lock::operator;
use crate::lock::protocol;
use crate::lock::quorum::Hold;
use crate::name::NodeName;
use crate::reason::{Exit, chain};

/// After etcd was restored: write back the holds that the nodes have on disk, and make nodes believe the store again
///
/// Needs a freeze of the fleet, and a word of every node that is not retired: its `holds export`, or that its machine is off
/// for good. Holds in the store that no node has are deleted, those that nodes have are put back, and the epoch is raised:
/// nodes that know the store as it was accept it as it is.
#[derive(clap::Args)]
pub struct Args {
    /// What `converger holds export` printed, one file for each node
    #[arg(long, value_name = "FILE", num_args = 1..)]
    from: Vec<PathBuf>,
    /// A node whose machine is off for good: it is declared dead
    #[arg(long, value_name = "NODE")]
    dead: Vec<String>,
    /// Why, for those who read it later: it goes into the audit keys
    #[arg(long)]
    reason: String,
}

const EXPORT_BYTES_MAX: u64 = 1 << 20;

pub fn run(args: Args, access: &Access) -> Done {
    let mut exports = Vec::new();
    for path in &args.from {
        let bytes = disk::read_bounded(path, EXPORT_BYTES_MAX).map_err(|error| Failure::usage(chain(&error)))?;
        let bytes = bytes.ok_or_else(|| Failure::usage(format!("{}: no such file", path.display())))?;
        let export = serde_json::from_slice::<Export>(&bytes).map_err(|error| {
            Failure::usage(format!("{}: not what `converger holds export` prints ({error})", path.display()))
        })?;
        exports.push(export);
    }
    let dead: Vec<NodeName> = args.dead.into_iter().map(NodeName::new).collect();
    let operation = Operation::begin(access, "reinit", "holds".to_owned(), &args.reason)?;
    let environment = &operation.fleet.environment;
    let nodes = environment.nodes.iter().filter(|node| node.state != Membership::Retired);
    let nodes: Vec<NodeName> = nodes.map(|node| node.name.clone()).collect();
    let identity = operation.store.identity().map_err(unreachable)?;
    let snapshot = operation.store.read(&["hold/", "dead/", protocol::FREEZES, META]).map_err(unreachable)?;
    let restored = Restored {
        fleet: &operation.fleet.name,
        environment: &environment.name,
        nodes: &nodes,
        identity: &identity,
        snapshot: &snapshot,
        exports: &exports,
        dead: &dead,
    };
    let reinit = epoch::reinit(&restored, &operation.said, operator::audit_key(&operation.id));
    let reinit = reinit.map_err(|problems| {
        Failure::usage(format!("nothing was written:\n{}", lines(problems.iter().map(String::as_str))))
    })?;
    let mut read_at = snapshot.revision;
    for step in &reinit.steps {
        read_at = operation.commit(&reinit.transaction(step, read_at))?;
    }
    let named = |holds: &[Hold]| match holds {
        [] => "  none\n".to_owned(),
        holds => lines(holds.iter().map(|hold| format!("{} of {}", hold.group, hold.node))),
    };
    let declared = snapshot.below("dead/").filter_map(|entry| entry.key.strip_prefix("dead/"));
    let declared: Vec<&str> = declared.chain(dead.iter().map(NodeName::as_str)).collect();
    let declared = if declared.is_empty() { "nobody".to_owned() } else { declared.join(", ") };
    say(format!(
        "The store is at epoch {}: nodes accept it with their next run.\n\nHolds as the nodes have them:\n{}\
         Holds in the store that no node has, deleted:\n{}\nDeclared dead: {declared}. What was declared or admitted since the snapshot is \
         lost: say it again (`converger holds release --dead`, `converger node admit`).\nFreezes of groups and nodes as of the \
         snapshot: `converger holds list`.\n\nNext:\n  1. converger holds list\n  2. converger unfreeze --reason \"…\"\n  \
         3. converger status --watch: no node says store-replaced any more\n",
        reinit.epoch,
        named(&reinit.holds),
        named(&reinit.dropped),
    ));
    Ok(Exit::Done)
}

fn lines<T: AsRef<str>>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| format!("  {}\n", item.as_ref())).collect()
}
