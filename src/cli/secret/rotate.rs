//! `converger secret rotate`: another value, and what restarts because of it. Never: the version as it was.

use std::path::PathBuf;

use super::draft::{Draft, commit_yourself};
use super::{Keys, generate, value};
use crate::cli::access::Access;
use crate::cli::{Done, Failure, say};
use crate::name::SecretName;
use crate::reason::Exit;
use crate::secrets::order::Which;

/// Give secrets new values, and say which units restart where
///
/// Values are generated where secrets.toml declares how, and standard input is not read then; otherwise, or with --from, one
/// secret at a time, its value from standard input or a file. Versions are raised: nodes restart what uses them, under their holds, once this is merged.
#[derive(clap::Args)]
pub struct Args {
    /// As in secrets.toml
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Read the value from a file instead of standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[command(flatten)]
    keys: Keys,
}

pub fn run(args: Args, access: &Access) -> Done {
    let mut draft = Draft::open(access)?;
    let names: Vec<SecretName> = args.names.into_iter().map(SecretName::new).collect();
    let entries = names.iter().map(|name| draft.entry(name)).collect::<Result<Vec<_>, _>>()?;
    let typed = entries.iter().find(|entry| entry.generate.is_none() || args.from.is_some());
    let Some(version) = typed.map(|entry| entry.version + 1) else {
        return generate::make(draft, Which::Named(&names), None, &args.keys, access);
    };
    let [name] = &names[..] else {
        return Err(Failure::usage(
            "one secret at a time, unless secrets.toml says of each how it is generated and --from is left out",
        ));
    };
    let value = value::read(args.from.as_deref(), &format!("the new value of {name}"))?;
    let mut text = format!("{}\n", draft.put(name, &value, version, None)?);
    text += &draft.restarts().unwrap_or_default();
    let paths = draft.write()?;
    text += &commit_yourself(&paths, &format!("secrets: rotate {name}"));
    say(text);
    Ok(Exit::Done)
}
