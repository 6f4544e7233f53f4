//! `converger freeze` and `unfreeze`: nothing new is stopped, in the fleet, a group or on a node, until a time.
//!
//! Never: a freeze without an end; never: interrupts what is armed.

use super::access::Access;
use super::operator::{Ends, Operation, unreachable};
use super::{Done, Failure, say};
use crate::fleet::agents;
use crate::fleet::check::suggest;
use crate::lock::operator::{self, Scope};
use crate::lock::protocol;
use crate::lock::quorum::Freeze;
use crate::name::{GroupId, NodeName};
use crate::reason::Exit;

/// What a freeze is for: the whole environment, unless one of these is named.
#[derive(clap::Args)]
#[group(multiple = false)]
struct Where {
    /// Only this group, as in `kafka.brokers`; `converger.agents`: exchanges of the agent itself
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

impl Where {
    fn scope(&self) -> Scope {
        match (&self.group, &self.node) {
            (Some(group), _) => Scope::Group(GroupId::new(group.clone())),
            (None, Some(node)) => Scope::Node(NodeName::new(node.clone())),
            (None, None) => Scope::Fleet,
        }
    }
}

/// Stop nothing new until a time: in the whole environment, one group, or on one node
///
/// No node claims or arms a hold meanwhile; files, drift and starts go on, and so does what is armed already. It ends by
/// itself. Said again, it replaces the one before.
#[derive(clap::Args)]
pub struct FreezeArgs {
    #[command(flatten)]
    place: Where,
    /// Why, for those who wait
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    ends: Ends,
}

/// End a freeze before its time
#[derive(clap::Args)]
pub struct UnfreezeArgs {
    #[command(flatten)]
    place: Where,
    /// Why, for those who read it later: it goes into the audit keys
    #[arg(long)]
    reason: String,
}

pub fn freeze(args: FreezeArgs, access: &Access) -> Done {
    let scope = args.place.scope();
    let operation = Operation::begin(access, "freeze", scope.to_string(), &args.reason)?;
    exists(&scope, &operation)?;
    let lasts = args.ends.lasts(operation.said.at)?;
    let seen = operation.store.read(&[&scope.key()]).map_err(unreachable)?;
    let until = operation.said.at + lasts;
    let freeze = Freeze { reason: operation.said.reason.clone(), by: operation.said.by.clone(), until: Some(until) };
    operation.commit(&operator::freeze(&scope, &freeze, lasts, &seen, &operation.said, &operation.id))?;
    let before = seen.get(&scope.key()).map(protocol::freeze_of);
    let instead = before.map_or_else(String::new, |before| format!(", in place of {}'s: {}", before.by, before.reason));
    say(format!("{scope} is frozen until {until}{instead}. What is armed goes on; nothing new is stopped.\n"));
    Ok(Exit::Done)
}

pub fn unfreeze(args: UnfreezeArgs, access: &Access) -> Done {
    let scope = args.place.scope();
    let operation = Operation::begin(access, "unfreeze", scope.to_string(), &args.reason)?;
    let seen = operation.store.read(&[&scope.key()]).map_err(unreachable)?;
    let Some(transaction) = operator::unfreeze(&scope, &seen, &operation.said, &operation.id) else {
        return Err(Failure::usage(format!("{scope} is not frozen; `converger holds list` shows what is")));
    };
    operation.commit(&transaction)?;
    say(format!("{scope} is not frozen any more.\n"));
    Ok(Exit::Done)
}

/// A freeze of something that is misspelt would hold nobody back.
fn exists(scope: &Scope, operation: &Operation) -> Result<(), Failure> {
    let environment = &operation.fleet.environment;
    match scope {
        Scope::Fleet => Ok(()),
        Scope::Node(node) => operation.known_node(node),
        Scope::Group(id) if environment.groups().any(|group| group.id == *id || group.aliases.contains(id)) => Ok(()),
        // Nobody declares it, and it is there.
        Scope::Group(id) if *id == agents::group_id() => Ok(()),
        Scope::Group(id) => {
            let (of_agents, declared) = (agents::group_id(), environment.groups().map(|group| group.id.as_str()));
            let near = suggest(id.as_str(), declared.chain([of_agents.as_str()]));
            let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
            Err(Failure::usage(format!("{id} is not a group of environment {}{near}", environment.name)))
        }
    }
}
