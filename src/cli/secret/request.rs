//! `converger secret request`: asks somebody else's authority for a certificate. Never: the key leaves its secret.

use super::Keys;
use super::draft::Draft;
use crate::cli::access::Access;
use crate::cli::{Done, Failure, say};
use crate::name::SecretName;
use crate::reason::{Exit, chain};
use crate::secrets::tls;

/// Write a certificate signing request for the key and the names of a certificate
///
/// To standard output, as PEM. The secret must hold a certificate: `secret generate` makes it with the names that its entry
/// says. What the other authority answers is brought by `secret import NAME --cert FILE`; the key stays where it is.
#[derive(clap::Args)]
pub struct Args {
    /// As in secrets.toml
    name: String,
    #[command(flatten)]
    keys: Keys,
}

pub fn run(args: Args, access: &Access) -> Done {
    let draft = Draft::open(access)?;
    let name = SecretName::new(args.name);
    let value = draft.value(&name, &args.keys.load(access)?)?;
    let request = tls::request(value.expose());
    say(request.map_err(|error| Failure::usage(format!("secret {name}: {}", chain(&error))))?);
    Ok(Exit::Done)
}
