//! argv, logging, exit code. Never: a decision.

use std::process::ExitCode;

use clap::Parser as _;
use converger::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            cli::tell(&failure);
            ExitCode::from(failure.exit.code())
        }
    }
}
