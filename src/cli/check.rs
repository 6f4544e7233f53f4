//! `converger check`: every mistake in a fleet repository, before anybody merges it.
//!
//! Never: a key, a node or the store; it reads the repository and nothing else.

use super::access::{Access, STYLED};
use super::{Done, say, say_json};
use crate::clock::{Clock as _, SystemClock};
use crate::diagnostics;
use crate::fleet::check::miscounted;
use crate::fleet::load::{self, Knowing};
use crate::fleet::problem::{Problem, Severity};
use crate::plan::show::plural;
use crate::reason::Exit;
use crate::render::lint_fleet;

/// Check the fleet repository: files, topology, roles, templates, who can read which secret
///
/// Reads the work tree as it is, uncommitted changes included, and needs no key. Every mistake is told at once, with its
/// place and what to do. Ends with 0 if there is no error, with 3 if there is one; warnings alone are no failure.
#[derive(clap::Args)]
pub struct Args {
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
    /// Show errors only; warnings are counted
    #[arg(short, long)]
    quiet: bool,
    /// Fleet repository; the same as --repo
    #[arg(id = "folder", value_name = "REPO")]
    repo: Option<std::path::PathBuf>,
}

pub fn run(args: Args, access: &Access) -> Done {
    let began = SystemClock.awake();
    let access = Access { repo: args.repo.clone().or_else(|| access.repo.clone()), ..access.clone() };
    let tree = access.work_tree()?;
    let environment = access.environment()?;
    let knowing = Knowing { samples: crate::template::sample_recipients(), now: Some(SystemClock.now()) };
    let mut counts = String::new();
    let problems: Vec<Problem> = match load::load_knowing(&tree, environment.as_ref(), &knowing) {
        Ok(loaded) => {
            let env = &loaded.fleet.environment;
            counts = format!(
                " · {}: {}, {}, {}",
                env.name,
                plural(env.nodes.len(), "node"),
                plural(env.clusters.len(), "cluster"),
                plural(env.role_bodies.len(), "role"),
            );
            let mut problems = loaded.warnings;
            problems.extend(lint_fleet(&loaded.fleet));
            problems.extend(miscounted(&loaded.fleet));
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
