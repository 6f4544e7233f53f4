//! `converger diff`: how a node differs from what the repository wants, with the planner that decides what it will do.
//!
//! Never: changes anything, anywhere; on a node it looks beside the agent, which goes on.

use std::path::PathBuf;

use serde::Serialize;

use super::access::Access;
use super::{Done, Failure, agent, plan, say, say_json};
use crate::agent::{Agent, Purpose};
use crate::git::Workspace;
use crate::name::{CommitId, NodeName};
use crate::pipeline::{Mode, Ran};
use crate::plan::changes::Change;
use crate::plan::fleetwide::{self, Live};
use crate::plan::show::{self, Paint};
use crate::reason::{self, Exit, chain};
use crate::report;

/// Show how a node differs from what the repository wants
///
/// On a node, without NODE: this machine against the commit that it has accepted, beside a running agent; what somebody
/// changed by hand is here. From an engineer's machine, with NODE: the commit that the node reports as applied against the
/// work tree. Secrets are masked; where one is or was, only line numbers are shown.
#[derive(clap::Args)]
pub struct Args {
    /// A node of the topology. Default: this machine
    #[arg(value_name = "NODE")]
    node: Option<String>,
    /// Compare with this commit instead of the one that the node reports
    #[arg(long, value_name = "COMMIT", requires = "node")]
    from: Option<String>,
    /// Compare up to this commit instead of the work tree
    #[arg(long, value_name = "COMMIT", requires = "node")]
    to: Option<String>,
    /// The directory that an agent converges in place of this machine
    #[arg(long, value_name = "DIR", conflicts_with = "node")]
    root: Option<PathBuf>,
    /// Who this node is
    #[arg(long, value_name = "FILE", default_value = "/etc/converger/agent.toml", conflicts_with = "node")]
    settings: PathBuf,
    /// One entry per resource, with what is there and what comes, for scripts
    #[arg(long)]
    json: bool,
}

/// One node's changes, as every command with `--json` has them.
#[derive(Serialize)]
struct NodeDiff<'a> {
    node: &'a NodeName,
    /// `null`: nothing was applied yet.
    from: Option<&'a CommitId>,
    /// `null`: the work tree.
    to: Option<&'a CommitId>,
    changes: &'a [Change],
}

pub fn run(args: Args, access: &Access) -> Done {
    match &args.node {
        Some(node) => between_commits(&NodeName::new(node.clone()), &args, access),
        None => here(&args),
    }
}

fn here(args: &Args) -> Done {
    crate::log::start(0, crate::log::To::Terminal);
    let looked = Agent::start(&args.settings, args.root.as_deref(), Purpose::Look);
    let mut looked = looked.map_err(|error| Failure::of(error.reason, error.message))?;
    let ran = looked.run(Mode::Look).map_err(agent::failure)?;
    show_plan(&ran, args.json);
    Ok(ran.report.exit())
}

/// The plan of a run that only looked.
pub(super) fn show_plan(ran: &Ran, json: bool) {
    let report = &ran.report;
    let plan = ran.plan.as_ref();
    if json {
        let commit = |at: &'_ Option<report::At>| at.as_ref().map(|at| at.commit.clone());
        let (from, to) = (commit(&report.applied), commit(&report.target));
        let changes = plan.map_or(&[][..], |plan| &plan.changes);
        say_json(&NodeDiff { node: &report.node, from: from.as_ref(), to: to.as_ref(), changes });
        return;
    }
    say(plan.map_or("", |plan| &plan.text));
    if !report.reason.is_empty() && report.reason != reason::DRY_RUN.id {
        say(format!("{}: {}\n{}", report.node, report.reason, agent::evidence(report)));
    }
}

fn between_commits(node: &NodeName, args: &Args, access: &Access) -> Done {
    let workspace = Workspace::open(&access.folder()?).map_err(|e| Failure::usage(chain(&e)))?;
    let to = match &args.to {
        Some(revision) => plan::tree_at(&workspace, revision)?,
        None => access.work_tree()?,
    };
    let after = access.load(&to)?.fleet;
    if after.environment.node(node).is_none() {
        return Err(Failure::usage(format!("{node} is not a node of environment {}", after.environment.name)));
    }
    let from = match &args.from {
        Some(revision) => plan::tree_at(&workspace, revision)?,
        None => {
            let store = access.store(&after.name, &after.environment.name)?;
            let (reports, _) =
                report::collect(&*store).map_err(|e| Failure::of(reason::STORE_UNREACHABLE, chain(&e)))?;
            let applied = reports.get(node).and_then(|report| report.applied.as_ref()).ok_or_else(|| {
                Failure::usage(format!("{node} has not reported a commit as applied; name one with --from"))
            })?;
            plan::tree_at(&workspace, applied.commit.as_str())?
        }
    };
    let before = access.load(&from)?.fleet;
    let old = plan::sides(&before, &from, Some(node))?;
    let new = plan::sides(&after, &to, Some(node))?;
    let compared = fleetwide::compare(&after.environment, &old, &new, &Live::default());
    if args.json {
        let changes = compared.changes.first().map_or(&[][..], |change| &change.changes);
        say_json(&NodeDiff { node, from: from.commit.as_ref(), to: to.commit.as_ref(), changes });
        return Ok(Exit::Done);
    }
    let name = |commit: &Option<CommitId>| commit.as_ref().map_or("the work tree", CommitId::short).to_owned();
    let Paint { bold, off, .. } = Paint::COLOUR;
    say(format!("{bold}{node}{off}: {} -> {}\n\n", name(&from.commit), name(&to.commit)));
    say(match compared.changes.first() {
        Some(change) => show::node_change(change, Paint::COLOUR),
        None => "nothing changes\n".to_owned(),
    });
    Ok(Exit::Done)
}
