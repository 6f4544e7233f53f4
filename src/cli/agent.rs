//! `converger agent`: the daemon, or one run of it.

use std::path::PathBuf;

use super::{Done, Failure, say};
use crate::agent::Agent;
use crate::apply::chain;
use crate::pipeline::{Mode, PipelineError, Ran};
use crate::plan::show::Paint;
use crate::reason::Exit;

/// Converge this node: fetch, verify, render, apply; stay, or do it once.
#[derive(clap::Args)]
pub struct Args {
    /// Converge once (waiting for the own member to settle) and exit.
    #[arg(long)]
    once: bool,
    /// Converge into this directory, without privileges and without systemd (units are only recorded).
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Show what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[arg(long, value_name = "FILE", default_value = "/etc/converger/agent.toml")]
    settings: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// More in the log; twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

pub fn run(args: Args) -> Done {
    crate::log::start(
        args.verbose,
        if args.once || args.dry_run { crate::log::To::Terminal } else { crate::log::To::Journal },
    );
    let mut agent =
        Agent::start(&args.settings, args.root.as_deref()).map_err(|error| Failure::of(error.reason, error.message))?;
    if args.dry_run {
        let ran = agent.run(Mode::DryRun(Paint::COLOUR)).map_err(failure)?;
        say(ran.plan.unwrap_or_default());
        return Ok(ran.report.exit());
    }
    if !args.once {
        let exit = agent.stay(|ran| match ran {
            Ok(ran) => log_line(ran),
            Err(error) => tracing::error!(reason = %error.reason(), "{}", chain(error)),
        });
        return Ok(exit);
    }
    let began = crate::clock::Clock::awake(&crate::clock::SystemClock);
    let mut files_and_restarts = Vec::new();
    let ran = agent
        .once(Mode::Apply, |ran| {
            for line in &ran.lines {
                if !args.json {
                    say(format!("  {line}\n"));
                }
                files_and_restarts.push(line.clone());
            }
        })
        .map_err(failure)?;
    if args.json {
        super::say_json(&ran.report);
        return Ok(ran.report.exit());
    }
    let took = crate::clock::Clock::awake(&crate::clock::SystemClock).saturating_sub(began);
    say(closing_line(&ran, files_and_restarts.is_empty(), took));
    Ok(ran.report.exit())
}

fn closing_line(ran: &Ran, nothing_done: bool, took: std::time::Duration) -> String {
    let report = &ran.report;
    let commit = report.target.as_ref().map_or("nothing", |at| at.commit.short());
    let node = &report.node;
    let time =
        if took.as_secs() >= 1 { format!("{:.1} s", took.as_secs_f64()) } else { format!("{} ms", took.as_millis()) };
    match report.exit() {
        Exit::Done if nothing_done => format!("{node} converged at {commit}, nothing to do ({time})\n"),
        Exit::Done => format!("{node} converged at {commit} in {time}\n"),
        _ => {
            let mut text = format!("{node} is not converged at {commit}: {}\n  {}\n", report.reason, report.sentence);
            for note in report.notes.iter().filter(|note| note.because.sentence != report.sentence) {
                text.push_str(&format!("  {}: {}: {}\n", note.batch, note.reason, note.because.sentence));
            }
            text
        }
    }
}

fn log_line(ran: &Ran) {
    if ran.still {
        return;
    }
    let report = &ran.report;
    let commit = report.target.as_ref().map_or("", |at| at.commit.short());
    let state = format!("{:?}", report.state).to_lowercase();
    if report.reason.is_empty() {
        tracing::info!(node = %report.node, commit, state, "converged");
    } else {
        tracing::info!(node = %report.node, commit, state, reason = report.reason, "{}", report.sentence);
    }
}

fn failure(error: PipelineError) -> Failure {
    Failure::of(error.reason(), chain(&error))
}
