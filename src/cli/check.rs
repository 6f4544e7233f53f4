//! `converger check`: every mistake in a fleet repository, before anybody merges it.

use std::collections::BTreeSet;

use super::access::{Access, STYLED};
use super::{Done, say, say_json};
use crate::clock::{Clock as _, SystemClock};
use crate::diagnostics;
use crate::fleet::load;
use crate::fleet::problem::{Problem, Severity};
use crate::reason::Exit;
use crate::render::lint_fleet;

/// Check the fleet repository: files, topology, roles, templates, secrets' coverage. Needs no key.
#[derive(clap::Args)]
pub struct Args {
    /// As JSON, for machines.
    #[arg(long)]
    json: bool,
    /// Errors only; warnings are counted.
    #[arg(short, long)]
    quiet: bool,
    /// Fleet repository; the same as --repo.
    #[arg(value_name = "REPO")]
    repo: Option<std::path::PathBuf>,
}

pub fn run(args: Args, access: &Access) -> Done {
    let began = SystemClock.awake();
    let access = Access { repo: args.repo.clone().or_else(|| access.repo.clone()), ..access.clone() };
    let tree = access.work_tree()?;
    let environment = access.environment()?;
    let samples: BTreeSet<String> = crate::template::sample_recipients();
    let mut counts = String::new();
    let problems: Vec<Problem> = match load::load_knowing_samples(&tree, environment.as_ref(), &samples) {
        Ok(loaded) => {
            let env = &loaded.fleet.environment;
            counts = format!(
                " · {}: {} nodes, {} clusters, {} roles",
                env.name,
                env.nodes.len(),
                env.clusters.len(),
                env.role_bodies.len()
            );
            let mut problems = loaded.warnings;
            problems.extend(lint_fleet(&loaded.fleet));
            problems
        }
        Err(problems) => problems,
    };
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let exit = if errors > 0 { Exit::Repository } else { Exit::Done };
    if args.json {
        say_json(&diagnostics::to_json(&problems, &tree));
        return Ok(exit);
    }
    let took = SystemClock.awake().saturating_sub(began).as_secs_f64();
    let shown = |problem: &&Problem| !args.quiet || problem.severity == Severity::Error;
    let shown: Vec<Problem> = problems.iter().filter(shown).cloned().collect();
    say(diagnostics::render(&shown, &tree, STYLED));
    say(format!("{}{counts} · {took:.2} s\n", diagnostics::count(&problems)));
    Ok(exit)
}
