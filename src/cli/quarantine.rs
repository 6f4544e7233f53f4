//! `converger quarantine`: the children of the agent that meet foreign bytes; nobody else starts them.
//!
//! Never: an argument that says more than the task.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::os::fd::AsFd as _;

use super::{Done, Failure};
use crate::git::{quarantine, sandbox};
use crate::host::artifacts::download;
use crate::reason::{Exit, chain};

/// Fetch or read for the agent, without privileges: the order comes through standard input
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    task: Task,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Task {
    Fetch,
    Read,
    Artifact,
}

pub fn run(args: Args) -> Done {
    sandbox::keep_only_standard_streams();
    // Not the library's own: those are buffered by lines.
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(internal)?;
    let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(internal)?;
    let input = BufReader::with_capacity(1 << 16, File::from(input));
    let output = BufWriter::with_capacity(1 << 16, File::from(output));
    let done = match args.task {
        Task::Fetch => quarantine::fetch(input, output),
        Task::Read => quarantine::read(input, output),
        Task::Artifact => download::download(input, output),
    };
    done.map(|()| Exit::Done).map_err(internal)
}

fn internal(error: impl std::error::Error + 'static) -> Failure {
    Failure::new(Exit::Internal, chain(&error))
}
