//! `converger secret encrypt`: a new secret, or another value for one. Never: needs a key, unless to compare values.

use std::path::PathBuf;

use super::draft::{Draft, commit_yourself};
use super::{Keys, value};
use crate::cli::access::Access;
use crate::cli::{Done, Failure, say};
use crate::name::SecretName;
use crate::reason::Exit;
use crate::secrets::cover::Cover;
use crate::secrets::document::Grant;

/// Make a secret, or give one another value
///
/// The value comes from standard input, every byte of it, a newline at the end too; at a terminal it is asked for and not
/// shown. It is encrypted to the nodes that the grant selects and to the operators. A secret that there is
/// already gets its version raised, so what uses it restarts. With --identity a value that is the same writes nothing.
#[derive(clap::Args)]
pub struct Args {
    /// Lowercase letters, digits and dashes; the file is secrets/NAME.age
    name: String,
    /// Read the value from a file instead
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Who may read it, as in secrets.toml: '{ cluster = "redis" }', '[{ role = "base" }, { nodes = ["lb01"] }]', 'all'
    #[arg(long, value_name = "SELECTOR")]
    grant: Option<String>,
    #[command(flatten)]
    keys: Keys,
}

pub fn run(args: Args, access: &Access) -> Done {
    let mut draft = Draft::open(access)?;
    let name = SecretName::new(args.name);
    let grant = args.grant.as_deref().map(Grant::parse).transpose();
    let grant = grant.map_err(|error| Failure::usage(error.to_string()))?;
    let entry = draft.fleet.environment.secrets.get(&name);
    if entry.is_none() && grant.is_none() {
        return Err(Failure::usage(format!(
            "environment {} has no secret \"{name}\" yet: say who may read it, --grant '{{ cluster = \"NAME\" }}'",
            draft.fleet.environment.name
        )));
    }
    let file = entry.and_then(|entry| draft.fleet.tree.get(entry.path.as_str()));
    let old = match (&file, args.keys.identity.is_empty()) {
        (Some(_), false) => Some(draft.value(&name, &args.keys.load(access)?)?),
        _ => None,
    };
    let value = value::read(args.from.as_deref(), &format!("the value of {name}"))?;
    let same = old.is_some_and(|old| old.expose() == value.as_slice());
    let version = match entry {
        Some(entry) if same => {
            let narrower = grant.as_ref().is_some_and(|grant| grant.selector != entry.grant);
            let gap = file.and_then(|file| Cover::of(&draft.fleet.environment).gap(entry, file));
            if !narrower && gap.is_none() {
                say(format!("{name}: unchanged, still version {}\n", entry.version));
                return Ok(Exit::Done);
            }
            entry.version
        }
        Some(entry) => entry.version + 1,
        None => 1,
    };
    let said = draft.put(&name, &value, version, grant.as_ref())?;
    let restarts = draft.restarts().unwrap_or_default();
    let paths = draft.write()?;
    say(format!("{said}\n{restarts}{}", commit_yourself(&paths, &format!("secrets: {name}, version {version}"))));
    Ok(Exit::Done)
}
