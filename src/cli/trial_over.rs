//! `converger trial-over`: what the timer runs that watches an agent on trial; nobody else starts it.
//!
//! Never: an argument that says more than the digest of the program whose time is over.

use std::path::Path;

use super::{Done, Failure, say};
use crate::paths::Paths;
use crate::reason::{Exit, chain};
use crate::update::launch;

/// Leave an agent that has not completed a run in its time, and start the one before it
#[derive(clap::Args)]
pub struct Args {
    /// Digest of the program on trial
    sha256: String,
}

pub fn run(args: Args) -> Done {
    let left = launch::over(&Paths::below(Path::new("/")), &args.sha256);
    match left.map_err(|error| Failure::new(Exit::Host, chain(&error)))? {
        true => say("the agent on trial completed no run; the one before it is back\n"),
        false => say("the trial was over already\n"),
    }
    Ok(Exit::Done)
}
