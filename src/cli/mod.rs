//! The command line: one file per command, its arguments on top (their doc comments are the help), one function below.
//!
//! Never: a decision that a library function could make.

pub mod access;
pub mod agent;
pub mod check;
pub mod completions;
pub mod demo;
pub mod diff;
pub mod enroll;
pub mod etcd_acl;
pub mod explain;
pub mod freeze;
pub mod holds;
pub mod init;
pub mod node;
mod operator;
pub mod owned;
pub mod pause;
pub mod plan;
mod process;
pub mod quarantine;
pub mod render;
pub mod restart;
pub mod roll_back;
pub mod schema;
pub mod secret;
pub mod status;
pub mod trial_over;
pub mod trust;
pub mod why;

use std::fmt;
use std::io::Write as _;

use clap::{Parser, Subcommand};

use crate::reason::{Exit, Reason};

/// Below the help of `converger`; every command ends with one of them.
const EXIT_CODES: &str = "\
Exit codes:
  0  done, or converged
  1  internal: a bug of converger
  2  usage, or local settings
  3  the repository has problems
  4  trust refused
  5  the host is not (wholly) converged
  6  waiting: a hold, a gate, a freeze, a pause
  7  source or store unreachable
  8  a secret cannot be opened
When several apply: the first of 1, 2, 3, 4, 8, 5, 7, 6, 0. `converger explain` lists the reasons behind them.";

/// Keep a fleet of VMs as a signed Git branch says, and restart its services without losing a quorum
///
/// Every VM runs one agent: it pulls a signed Git repository, renders its own roles, applies them idempotently, and restarts
/// clustered services one member at a time under quorum-aware holds. Engineers merge pull requests; rollback is `git revert`.
#[derive(Parser)]
#[command(
    name = "converger",
    version,
    max_term_width = 100,
    after_help = EXIT_CODES
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub access: access::Access,
}

#[derive(Subcommand)]
pub enum Command {
    Agent(agent::Args),
    Check(check::Args),
    Render(render::Args),
    Plan(plan::Args),
    Diff(diff::Args),
    Status(status::Args),
    Why(why::Args),
    Owned(owned::Args),
    Holds(holds::Args),
    Freeze(freeze::FreezeArgs),
    Unfreeze(freeze::UnfreezeArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Restart(restart::Args),
    Node(node::Args),
    EtcdAcl(etcd_acl::Args),
    Secret(secret::Args),
    Trust(trust::Args),
    Init(init::Args),
    Enroll(enroll::Args),
    Demo(demo::Args),
    Explain(explain::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Quarantine(quarantine::Args),
    #[command(hide = true)]
    RollBack(roll_back::Args),
    #[command(hide = true)]
    TrialOver(trial_over::Args),
}

/// A command that did not do what it was asked: one message, one exit code.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A reason with its object, and what to do.
    pub fn of(reason: Reason, what: impl fmt::Display) -> Self {
        let what = what.to_string();
        // A refusal says what to do by itself.
        let mend = if what.contains(reason.mend) { String::new() } else { format!("{} ", reason.mend) };
        let what = what.trim_end();
        Self::new(reason.exit, format!("error[{reason}]: {what}\n  help: {mend}(converger explain {reason})"))
    }
}

pub type Done = Result<Exit, Failure>;

pub fn run(cli: Cli) -> Done {
    let access = cli.access;
    match cli.command {
        Command::Agent(args) => agent::run(args),
        Command::Check(args) => check::run(args, &access),
        Command::Render(args) => render::run(args, &access),
        Command::Plan(args) => plan::run(args, &access),
        Command::Diff(args) => diff::run(args, &access),
        Command::Status(args) => status::run(args, &access),
        Command::Why(args) => why::run(args, &access),
        Command::Owned(args) => owned::run(args),
        Command::Holds(args) => holds::run(args, &access),
        Command::Freeze(args) => freeze::freeze(args, &access),
        Command::Unfreeze(args) => freeze::unfreeze(args, &access),
        Command::Pause(args) => pause::pause(args),
        Command::Resume(args) => pause::resume(args),
        Command::Restart(args) => restart::run(args, &access),
        Command::Node(args) => node::run(args, &access),
        Command::EtcdAcl(args) => etcd_acl::run(&args, &access),
        Command::Secret(args) => secret::run(args, &access),
        Command::Trust(args) => trust::run(args, &access),
        Command::Init(args) => init::run(args),
        Command::Enroll(args) => enroll::run(&args, &access),
        Command::Demo(args) => demo::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Quarantine(args) => quarantine::run(args),
        Command::RollBack(args) => roll_back::run(args),
        Command::TrialOver(args) => trial_over::run(args),
    }
}

/// To standard output; colours are taken out where nobody sees them (a pipe, `NO_COLOR`). A closed pipe is not an error.
pub fn say(text: impl fmt::Display) {
    let _ = write!(anstream::stdout(), "{text}");
    let _ = anstream::stdout().flush();
}

/// To standard error.
pub fn tell(text: impl fmt::Display) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// One JSON document with a newline.
pub fn say_json(value: &impl serde::Serialize) {
    let text = serde_json::to_string_pretty(value).expect("reports and problems serialize");
    say(format!("{text}\n"));
}
