//! `converger holds list`: what stands in the store, what stands out, and what would end it.
//!
//! Never: leaves out what belongs to no node or group any more.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::access::Access;
use super::super::operator::unreachable;
use super::super::{Done, say, say_json};
use crate::clock::{Clock as _, SystemClock};
use crate::lock::standing::{RANGES, Standing};
use crate::name::NodeName;
use crate::plan::show::{Paint, about, table};
use crate::reason::{self, Exit};
use crate::report::obstacle::{Obstacle, obstacles};
use crate::report::{self, Note, Report};

/// Who holds which group, since when, and in which phase; freezes, nodes declared dead, turns of actions
///
/// What stands out is told with what would end it: a hold that failed, one older than ten minutes, and one of a node or a
/// group that is not in the topology any more. So is what nodes wait for, and what is wrong with those that hold something, as
/// they reported it.
#[derive(clap::Args)]
pub struct Args {
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, access: &Access) -> Done {
    let tree = access.work_tree()?;
    let fleet = access.load(&tree)?.fleet;
    let store = access.store(&fleet.name, &fleet.environment.name)?;
    let snapshot = store.read(&RANGES).map_err(unreachable)?;
    let (reports, _) = report::collect(&*store).map_err(unreachable)?;
    let now = SystemClock.now();
    let listed = Listed { standing: Standing::of(&snapshot, &fleet.environment, now), waits: waits(&reports) };
    if args.json {
        say_json(&listed);
        return Ok(Exit::Done);
    }
    let waits: String = listed.waits.iter().map(|wait| format!("\n{}", wait.text(now))).collect();
    say(text(&listed.standing) + &waits);
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    standing: Standing,
    waits: Vec<Obstacle>,
}

/// What nodes wait for, and what keeps a hold from being given back.
fn waits(reports: &BTreeMap<NodeName, Report>) -> Vec<Obstacle> {
    obstacles(reports.iter().flat_map(|(node, report)| {
        let counts = |note: &Note| {
            let exit = reason::by_id(&note.reason).map(|reason| reason.exit);
            let waits = matches!(exit, Some(Exit::Waiting | Exit::Unreachable));
            waits || note.because.group.is_some() || !report.holds.is_empty()
        };
        report.open().into_iter().filter(counts).map(|note| (node.clone(), note)).collect::<Vec<_>>()
    }))
}

fn text(standing: &Standing) -> String {
    let Standing { holds, actions, freezes, dead } = standing;
    let Paint { bold, red, dim, off, .. } = Paint::COLOUR;
    let mut out = String::new();
    if holds.is_empty() && actions.is_empty() {
        out.push_str("no holds\n");
    } else {
        let held = holds.iter().map(|held| {
            let hold = &held.hold;
            let phase = format!("{:?}", hold.phase).to_lowercase();
            let (age, commit, units) = (about(held.age_secs), hold.commit.short().to_owned(), hold.units.join(" "));
            [hold.group.to_string(), hold.node.to_string(), phase, age, commit, units, hold.reason.clone()]
        });
        let run = actions.iter().map(|turn| {
            let claim = &turn.claim;
            let (commit, what) = (claim.commit.short().to_owned(), format!("action {}", claim.action));
            let (cluster, node) = (claim.cluster.to_string(), claim.node.to_string());
            [cluster, node, "acting".to_owned(), about(turn.age_secs), commit, String::new(), what]
        });
        let rows: Vec<[String; 7]> = held.chain(run).collect();
        let head = ["group", "node", "phase", "for", "commit", "units", "reason"].map(str::to_owned);
        out.push_str(&table(&head, &rows, ""));
    }
    let of_holds =
        holds.iter().map(|held| (format!("{} of {}", held.hold.group, held.hold.node), &held.attention, &held.ends));
    let of_actions = actions
        .iter()
        .map(|turn| (format!("action {} of {}", turn.claim.action, turn.claim.node), &turn.attention, &turn.ends));
    for (what, attention, ends) in of_holds.chain(of_actions).filter(|(_, attention, _)| !attention.is_empty()) {
        out.push_str(&format!("\n{red}{what}{off}: {}\n  {ends}\n", attention.join("; ")));
    }
    for frozen in freezes {
        let freeze = &frozen.freeze;
        let what = frozen.of.as_ref().map_or_else(|| frozen.scope.clone(), ToString::to_string);
        let strange =
            if frozen.attention.is_empty() { String::new() } else { format!(" ({})", frozen.attention.join("; ")) };
        out.push_str(&format!(
            "\n{bold}{what} is frozen{off}{strange} by {}: {}\n  {}\n",
            freeze.by, freeze.reason, frozen.ends
        ));
    }
    for dead in dead {
        let by = if dead.by.is_empty() { String::new() } else { format!(" by {}", dead.by) };
        let at = dead.at.map_or_else(String::new, |at| format!(" {dim}at {at}{off}"));
        out.push_str(&format!(
            "\n{bold}{} was declared dead{off}{by}{at}: {}\n  It disrupts nothing. {}\n",
            dead.node, dead.reason, dead.ends
        ));
    }
    out.replace(|c: char| c.is_control() && c != '\n' && c != '\x1b', "\u{fffd}")
}
