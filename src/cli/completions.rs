//! `converger completions`: completion scripts for shells. Never: a word that clap does not know.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Done, say};
use crate::reason::Exit;

/// Print the completion script of a shell
///
/// For bash: `converger completions bash > /etc/bash_completion.d/converger`
#[derive(clap::Args)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

pub fn run(args: Args) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "converger", &mut script);
    say(String::from_utf8_lossy(&script));
    Ok(Exit::Done)
}
