//! `converger secret show`: one value to standard output. Never: bytes that a terminal would act upon, unless forced.

use std::io::{IsTerminal as _, Write as _};

use super::Keys;
use super::draft::Draft;
use crate::cli::access::Access;
use crate::cli::{Done, Failure, tell};
use crate::name::SecretName;
use crate::reason::Exit;

/// Write the value of a secret to standard output
///
/// Needs a private key that it is encrypted to: an operator's, or a node's. `converger secret audit` lists secrets without one.
#[derive(clap::Args)]
pub struct Args {
    /// As in secrets.toml
    name: String,
    #[command(flatten)]
    keys: Keys,
    /// Also what is no plain text to a terminal
    #[arg(long)]
    force: bool,
}

pub fn run(args: Args, access: &Access) -> Done {
    let draft = Draft::open(access)?;
    let name = SecretName::new(args.name);
    let value = draft.value(&name, &args.keys.load(access)?)?;
    let mut stdout = std::io::stdout();
    let terminal = stdout.is_terminal();
    if terminal && !args.force && !is_plain(value.expose()) {
        return Err(Failure::usage(format!(
            "secret {name} is no plain text: send it to a file in memory or a program, or add --force"
        )));
    }
    stdout
        .write_all(value.expose())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot write to standard output: {error}")))?;
    if terminal && !value.expose().ends_with(b"\n") {
        // The prompt goes to a line of its own; the value is as it was.
        tell("");
    }
    Ok(Exit::Done)
}

fn is_plain(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| text.chars().all(|c| !c.is_control() || "\n\r\t".contains(c)))
}
