//! `converger secret`: making, changing, reading and re-encrypting the secrets of an environment.
//!
//! Works on the work tree; what is written is merged like any other change. Never: a value in an argument, in the
//! environment, in a file on a disk, or echoed by a terminal.

mod audit;
mod draft;
mod edit;
mod encrypt;
mod generate;
mod import;
mod rekey;
mod request;
mod room;
mod rotate;
mod show;
mod value;

use std::path::PathBuf;

pub(super) use draft::commit;

use clap::Subcommand;

use super::access::{Access, home};
use super::{Done, Failure};
use crate::reason::{Exit, chain};
use crate::secrets::identities::Identities;

/// Make, change, read and re-encrypt secrets
///
/// One age file per secret, encrypted to the nodes that `grant` in secrets.toml selects and to the operators. All of this
/// changes files of the work tree; nodes take it when it is signed and merged.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Encrypt(encrypt::Args),
    Generate(generate::Args),
    Request(request::Args),
    Import(import::Args),
    Edit(edit::Args),
    Show(show::Args),
    Rotate(rotate::Args),
    Rekey(rekey::Args),
    Audit(audit::Args),
}

pub fn run(args: Args, access: &Access) -> Done {
    match args.what {
        What::Encrypt(args) => encrypt::run(args, access),
        What::Generate(args) => generate::run(args, access),
        What::Request(args) => request::run(args, access),
        What::Import(args) => import::run(args, access),
        What::Edit(args) => edit::run(args, access),
        What::Show(args) => show::run(args, access),
        What::Rotate(args) => rotate::run(args, access),
        What::Rekey(args) => rekey::run(args, access),
        What::Audit(args) => audit::run(args, access),
    }
}

/// Who opens secrets.
#[derive(clap::Args)]
struct Keys {
    /// A private key of yours, age or SSH. Default: `identity` of the client settings, else ~/.config/converger/identity
    #[arg(long, value_name = "FILE")]
    identity: Vec<PathBuf>,
}

impl Keys {
    fn load(&self, access: &Access) -> Result<Identities, Failure> {
        let mut paths = self.identity.clone();
        if paths.is_empty() {
            paths.extend(access.client()?.identity);
        }
        if paths.is_empty() {
            let usual = home().map(|home| home.join(".config/converger/identity"));
            paths.extend(usual.filter(|path| path.exists()));
        }
        if paths.is_empty() {
            return Err(Failure::usage(
                "no key of yours is named: add --identity FILE, or keep it as ~/.config/converger/identity",
            ));
        }
        Identities::load_asking(&paths, &value::passphrase).map_err(|error| Failure::new(Exit::Secrets, chain(&error)))
    }
}
