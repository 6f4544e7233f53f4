//! `converger agent`: the daemon, or one run of it.
//!
//! Never: decides what a node does; it starts `agent` and says what it did.

use std::path::{Path, PathBuf};

use super::{Done, Failure, diff, say};
use crate::agent::{Agent, Purpose};
use crate::paths::Paths;
use crate::pipeline::{Mode, PipelineError, Ran};
use crate::reason::{self, Exit, chain};
use crate::report::{Report, State, news};
use crate::update::launch;

/// Converge this node: fetch, verify, render, apply; stay, or do it once
///
/// One agent runs on a node at a time. Without --once it stays, looks at its source at every poll, repairs drift at once, and
/// logs to the journal; SIGHUP makes it look now, SIGTERM lets it finish the batch at hand.
#[derive(clap::Args)]
pub struct Args {
    /// Converge once (waiting up to 10 minutes for the own member to settle) and exit
    #[arg(long)]
    once: bool,
    /// Converge into this directory, without privileges and without systemd (units are only recorded)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Show what would be done, and change nothing on the host (it does fetch)
    #[arg(long)]
    dry_run: bool,
    /// Who this node is, where its store and trust root are
    #[arg(long, value_name = "FILE", default_value = "/etc/converger/agent.toml")]
    settings: PathBuf,
    /// Print the report as JSON (with --once), or the plan (with --dry-run)
    #[arg(long)]
    json: bool,
    /// More in the log; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

pub fn run(args: Args) -> Done {
    crate::log::start(
        args.verbose,
        if args.once || args.dry_run { crate::log::To::Terminal } else { crate::log::To::Journal },
    );
    if args.root.is_none() && !args.dry_run {
        launch::hand_over(&Paths::below(Path::new("/")));
    }
    let purpose = if args.dry_run { Purpose::DryRun } else { Purpose::Converge };
    let mut agent = Agent::start(&args.settings, args.root.as_deref(), purpose)
        .map_err(|error| Failure::of(error.reason, error.message))?;
    if args.dry_run {
        let ran = agent.run(Mode::DryRun).map_err(failure)?;
        diff::show_plan(&ran, args.json);
        return Ok(ran.report.exit());
    }
    if !args.once {
        agent.listen().map_err(|error| Failure::of(error.reason, error.message))?;
        let mut last = None;
        let exit = agent.stay(|ran| match ran {
            Ok(ran) if ran.still => {}
            Ok(ran) => {
                news::tell(&ran.report, last.as_ref());
                last = Some(ran.report.clone());
            }
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
            let what = match report.state {
                State::Refused | State::StaleSource | State::ForkedSource | State::Unreachable => "keeps",
                _ => "is not converged at",
            };
            format!("{node} {what} {commit}: {}\n{}", report.reason, evidence(report))
        }
    }
}

/// What is wrong, part by part, and what to do about it.
pub(super) fn evidence(report: &Report) -> String {
    let mut parts: Vec<(&str, &str, &str)> =
        report.notes.iter().map(|note| (&*note.batch, &*note.reason, &*note.because.sentence)).collect();
    if !parts.iter().any(|(_, _, sentence)| *sentence == report.sentence) {
        parts.insert(0, ("", &report.reason, &report.sentence));
    }
    let mut text = String::new();
    let mut helped: Vec<&str> = Vec::new();
    for (batch, reason, sentence) in parts {
        let what = if batch.is_empty() { String::new() } else { format!("{batch}: ") };
        let which = if reason == report.reason { String::new() } else { format!("{reason}: ") };
        text.push_str(&format!("  {what}{which}{}\n", sentence.trim_end().replace('\n', "\n  ")));
        let Some(known) = reason::by_id(reason).filter(|_| !helped.contains(&reason)) else { continue };
        helped.push(reason);
        let mend = if sentence.contains(known.mend) { String::new() } else { format!("{} ", known.mend) };
        text.push_str(&format!("  help: {mend}(converger explain {reason})\n"));
    }
    text
}

pub(super) fn failure(error: PipelineError) -> Failure {
    Failure::of(error.reason(), chain(&error))
}
