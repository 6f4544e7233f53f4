//! `converger why NODE`: why a node is where it is, and what would end it.
//!
//! Never: guesses; it says what the node reported and what the store has.

use super::access::Access;
use super::{Done, Failure, say, say_json};
use crate::clock::{Clock as _, SystemClock};
use crate::lock::protocol;
use crate::name::NodeName;
use crate::plan::show::{Paint, about};
use crate::reason::{self, Exit, chain};
use crate::report::{self, State};

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
    let snapshot = store.read(&["hold/", "n/"]).map_err(unreachable)?;
    for group in fleet.environment.groups_of(&node) {
        let holds = protocol::holds_in(&snapshot, &group.id);
        let text = match holds.first() {
            Some((hold, _)) => {
                let secs = now.duration_since(hold.since).as_secs().max(0).unsigned_abs();
                format!("held by {} for {} ({:?}: {})", hold.node, about(secs), hold.phase, hold.reason)
            }
            None => "free".to_owned(),
        };
        out.push_str(&format!("  {:<22} {text}\n", group.id));
    }
    for note in &report.notes {
        out.push_str(&format!("\n{bold}{}{off}: {}\n  {}\n", note.batch, note.reason, note.because.sentence));
        out.push_str(&format!("  {}\n", note.because.ends));
    }
    if report.notes.is_empty()
        && let Some(reason) = report.reason()
        && !report.sentence.contains(reason.mend)
    {
        out.push_str(&format!("{}\n", reason.mend));
    }
    if snapshot.get(&protocol::beat_key(&node)).is_none() {
        out.push_str(&format!("{red}No sign of life: this is what it said last, at {}.{off}\n", report.at));
    }
    say(out);
    Ok(report.exit())
}
