//! argv, a closed memory, logging, exit code. Never: a decision.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser as _;
use converger::cli::{self, Cli, Failure};
use converger::{privacy, reason};

fn main() -> ExitCode {
    privacy::close_memory();
    privacy::hush_panics();
    let cli = Cli::parse();
    let done = catch_unwind(AssertUnwindSafe(|| cli::run(cli)));
    match done.unwrap_or_else(|_| Err(Failure::of(reason::INTERNAL, "it stopped at a bug, its place is above"))) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            cli::tell(&failure);
            ExitCode::from(failure.exit.code())
        }
    }
}
