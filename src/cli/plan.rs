//! `converger plan`: what a merge will do, before the merge. Never: opens a secret, or changes anything anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::access::{Access, problems_failure};
use super::{Done, Failure, say, say_json};
use crate::fleet::select::select;
use crate::fleet::tree::Tree;
use crate::fleet::{Fleet, agents};
use crate::git::Workspace;
use crate::name::NodeName;
use crate::plan::fleetwide::{self, Live, Side};
use crate::plan::show::{self, Paint};
use crate::reason::{Exit, chain};
use crate::render::Renderer;
use crate::report::{self, Report};
use crate::secrets::Unsealed;

/// Show which files change on which nodes, and which restarts follow, in which order
///
/// Compares two commits (`main..feature`), or HEAD with the work tree as it is. Needs no key: secrets are masked, and a
/// changed one is told by its version. Who leads now is read from the fleet's reports where they can be reached.
#[derive(clap::Args)]
pub struct Args {
    /// Two commits to compare; one revision alone is compared with the work tree
    #[arg(value_name = "BASE..HEAD", default_value = "HEAD")]
    range: String,
    /// Only this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// One entry per resource and node, and the restarts, for scripts
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, access: &Access) -> Done {
    let folder = access.folder()?;
    let workspace = Workspace::open(&folder).map_err(|e| Failure::usage(chain(&e)))?;
    let at = |revision: &str| tree_at(&workspace, revision);
    let (base, head) = match args.range.split_once("..") {
        Some((base, head)) => (at(base)?, at(if head.is_empty() { "HEAD" } else { head })?),
        None => (at(&args.range)?, access.work_tree()?),
    };
    let before = access.load(&base)?.fleet;
    let after = access.load(&head)?.fleet;
    let only = args.node.map(NodeName::new);
    if let Some(node) = &only
        && after.environment.node(node).is_none()
    {
        return Err(Failure::usage(format!("{node} is not a node of environment {}", after.environment.name)));
    }
    let live = live(access, &after);
    let old = sides(&before, &base, only.as_ref())?;
    let new = sides(&after, &head, only.as_ref())?;
    let plan = fleetwide::compare(&after.environment, &old, &new, &live);
    if args.json {
        let (from, to) = (&base.commit, &head.commit);
        say_json(&json!({ "environment": after.environment.name, "from": from, "to": to, "plan": plan }));
        return Ok(Exit::Done);
    }
    if let (Some(base), Some(head)) = (&base.commit, &head.commit) {
        let summary = workspace.summary(head.as_str()).map_err(|e| Failure::usage(chain(&e)))?;
        let signed = summary.signer.map_or_else(|| "not signed".to_owned(), |key| format!("signed by {key}"));
        say(format!("{} -> {}  {}   {signed}\n\n", base.short(), head.short(), summary.subject));
    }
    if let Some(agents) = agents::change(&before.environment, &after.environment) {
        say(format!("{agents}\n\n"));
    }
    let rollback = head.commit.as_ref().map(|commit| commit.short());
    say(show::environment(after.environment.name.as_str(), &plan, rollback, Paint::COLOUR));
    Ok(Exit::Done)
}

pub(super) fn tree_at(workspace: &Workspace, revision: &str) -> Result<Arc<Tree>, Failure> {
    workspace.tree_at(revision).map(Arc::new).map_err(|e| Failure::usage(chain(&e)))
}

/// Every node of one commit, rendered without keys.
pub(super) fn sides<'a>(
    fleet: &'a Fleet,
    tree: &Tree,
    only: Option<&NodeName>,
) -> Result<BTreeMap<NodeName, Side<'a>>, Failure> {
    let renderer = Renderer::new(fleet);
    let mut sides = BTreeMap::new();
    let mut problems = Vec::new();
    for node in &fleet.environment.nodes {
        if only.is_some_and(|only| *only != node.name) {
            continue;
        }
        let Some(spec) = select(fleet, &node.name) else { continue };
        match renderer.node(&spec, &Unsealed::without_keys()) {
            Ok(desired) => drop(sides.insert(node.name.clone(), Side { spec, desired })),
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() { Ok(sides) } else { Err(problems_failure(&problems, tree)) }
}

/// What the running fleet says of itself; nothing where it cannot be reached.
pub(super) fn live(access: &Access, fleet: &Fleet) -> Live {
    let Ok(store) = access.store(&fleet.name, &fleet.environment.name) else { return Live::default() };
    let Ok((reports, _)) = report::collect(&*store) else { return Live::default() };
    let mut live = Live::default();
    for (node, report) in &reports {
        let Report { leads, units, .. } = report;
        live.leaders.extend(leads.iter().map(|group| (group.clone(), node.clone())));
        live.stop_start_secs.extend(
            units
                .iter()
                .filter(|(_, unit)| unit.stop_ms + unit.start_ms > 0)
                .map(|(name, unit)| ((node.clone(), name.clone()), (unit.stop_ms + unit.start_ms).div_ceil(1000))),
        );
    }
    live
}
