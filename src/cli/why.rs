//! `converger why NODE`: why a node is where it is, and what would end it.
//!
//! Never: guesses; it says what the node reported and what the store has.

use super::access::Access;
use super::{Done, Failure, say, say_json};
use crate::clock::{Clock as _, SystemClock};
use crate::fleet::agents;
use crate::lock::protocol;
use crate::lock::singleton::{self, Holder};
use crate::lock::standing::{RANGES, Standing};
use crate::name::{GroupId, NodeName};
use crate::plan::show::{Paint, about};
use crate::reason::{self, Exit, chain};
use crate::report::{self, State, obstacle};
use crate::secrets::tls;

/// Explain one node: what it waits for, refuses or failed at, since when, and what would end it
///
/// Reads the node's last report and the holds of its groups from the store. Ends with the exit code of the node's own reason,
/// 0 if it is converged.
#[derive(clap::Args)]
pub struct Args {
    /// A node of the topology
    #[arg(value_name = "NODE")]
    node: String,
    /// The report as JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, access: &Access) -> Done {
    let tree = access.work_tree()?;
    let fleet = access.load(&tree)?.fleet;
    let node = NodeName::new(args.node);
    if fleet.environment.node(&node).is_none() {
        return Err(Failure::usage(format!("{node} is not a node of environment {}", fleet.environment.name)));
    }
    let store = access.store(&fleet.name, &fleet.environment.name)?;
    let unreachable = |e| Failure::of(reason::STORE_UNREACHABLE, chain(&e));
    let (reports, _) = report::collect(&*store).map_err(unreachable)?;
    let Paint { bold, red, dim, off, .. } = Paint::COLOUR;
    let Some(report) = reports.get(&node) else {
        say(format!("{bold}{node}{off} has never reported: its agent was not started, or does not reach the store\n"));
        return Ok(Exit::Unreachable);
    };
    if args.json {
        say_json(report);
        return Ok(report.exit());
    }
    let now = SystemClock.now();
    let commit = |at: &Option<report::At>| at.as_ref().map_or("nothing", |at| at.commit.short()).to_owned();
    let (applied, target) = (commit(&report.applied), commit(&report.target));
    let mut out = match report.state {
        State::Converged => format!("{bold}{node}{off} is converged at {applied}\n"),
        _ if report.applied.is_none() => {
            format!("{bold}{node}{off} has applied nothing yet: {red}{}{off}\n", report.reason)
        }
        _ if applied == target => format!("{bold}{node}{off} is at {applied}: {red}{}{off}\n", report.reason),
        _ => format!("{bold}{node}{off} is at {applied}, not at {target}: {red}{}{off}\n", report.reason),
    };
    if !report.sentence.is_empty() {
        let secs = now.duration_since(report.since).as_secs().max(0).unsigned_abs();
        out.push_str(&format!("\n{}\n{dim}for {}{off}\n", report.sentence.trim_end(), about(secs)));
    }
    let ranges: Vec<&str> = RANGES.into_iter().chain(["n/", "single/"]).collect();
    let snapshot = store.read(&ranges).map_err(unreachable)?;
    let standing = Standing::of(&snapshot, &fleet.environment, now);
    let wanted = fleet.environment.node(&node).and_then(|node| agents::wanted(&fleet.environment, node));
    if let Some(wanted) = &wanted {
        let settled = report.agent_sha256.as_ref() == Some(&wanted.sha256);
        let how = if settled { "as wanted".to_owned() } else { format!("{} is wanted", wanted.version) };
        out.push_str(&format!("  {:<22} converger {} runs, {how}\n", "agent", report.agent));
    }
    let of_agents = wanted.iter().map(|wanted| &wanted.group);
    // A node in no group has the lanes of the environment only.
    let lanes = fleet.environment.lanes();
    let lanes = lanes.members.contains(&node).then_some(&lanes);
    let mut of_node: Vec<&GroupId> = Vec::new();
    for group in fleet.environment.groups_of(&node).chain(of_agents).chain(lanes) {
        let holds = standing.holds.iter().filter(|held| held.hold.group == group.id);
        let holds = holds.map(|held| {
            let hold = &held.hold;
            let strange = held.attention.iter().map(|what| format!("; {what}")).collect::<String>();
            format!("held by {} for {} ({:?}: {}){strange}", hold.node, about(held.age_secs), hold.phase, hold.reason)
        });
        let text = holds.collect::<Vec<_>>().join("; ");
        let text = if text.is_empty() { "free" } else { &text };
        out.push_str(&format!("  {:<22} {text}\n", group.id));
        of_node.push(&group.id);
    }
    for frozen in standing.freezes_of(&node, &of_node) {
        let what = frozen.of.as_ref().map_or_else(|| frozen.scope.clone(), ToString::to_string);
        let (by, reason) = (&frozen.freeze.by, &frozen.freeze.reason);
        out.push_str(&format!("\n{bold}{what} is frozen{off} by {by}: {reason}\n  {}\n", frozen.ends));
    }
    for dead in standing.dead.iter().filter(|dead| dead.node == node) {
        out.push_str(&format!("\n{red}{node} was declared dead{off}: {}\n  {}\n", dead.reason, dead.ends));
    }
    for unit in report.units.keys() {
        let clusters = fleet.environment.clusters.iter().filter(|cluster| cluster.members.contains(&node));
        let entries = clusters.filter_map(|cluster| snapshot.get(&singleton::key(&cluster.name, unit)));
        for holder in entries.filter_map(Holder::of) {
            let text = match (holder.free || holder.nobodys, holder.node == node) {
                (true, _) => "a singleton that nobody runs".to_owned(),
                (false, true) => "a singleton: it runs here".to_owned(),
                (false, false) => format!("a singleton: {} runs it, this node stands by", holder.node),
            };
            out.push_str(&format!("  {unit:<22} {text}\n"));
        }
    }
    for note in &report.notes {
        let since = obstacle::since(note.since, now);
        out.push_str(&format!("\n{bold}{}{off}: {}{since}\n", note.batch, note.reason));
        out.push_str(&obstacle::evidence(&note.because, now));
    }
    // What the state is because of, where no note says it.
    if let Some(main) = report.open().first().filter(|main| !report.notes.contains(main))
        && !report.sentence.contains(&main.because.ends)
    {
        out.push_str(&format!("{}\n", main.because.ends));
    }
    for one in &report.certificates {
        let verb = if one.expires < now { "expired" } else { "expires" };
        let when = tls::from_now(one.expires, now);
        out.push_str(&format!("\nThe certificate of secret {} {verb} {when}, at {}.\n", one.secret, one.expires));
    }
    for warning in &report.warnings {
        out.push_str(&format!("\nWarning: {warning}.\n"));
    }
    if snapshot.get(&protocol::beat_key(&node)).is_none() {
        out.push_str(&format!("{red}No sign of life: this is what it said last, at {}.{off}\n", report.at));
    }
    say(out);
    Ok(report.exit())
}
