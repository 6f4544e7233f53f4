//! `converger secret rekey`: the same values, encrypted to those who may read them now.
//!
//! Never: a file that is right already, a version, half of the secrets; all are opened before one is written.

use super::Keys;
use super::draft::{Draft, commit, commit_yourself};
use crate::cli::access::Access;
use crate::cli::{Done, Failure, say};
use crate::fleet::Secret as Entry;
use crate::name::SecretName;
use crate::plan::show::plural;
use crate::reason::Exit;
use crate::secrets::Secret;
use crate::secrets::cover::Cover;

/// Encrypt secrets anew to those who may read them now
///
/// Touches only files that are encrypted to others than secrets.toml and topology.toml say, and says why for each. Values and
/// versions stay, so nothing restarts. All of them are opened first, with your key: if one cannot be, nothing is written.
#[derive(clap::Args)]
pub struct Args {
    /// Only these. Default: every secret that needs it
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Also those that are encrypted to the right keys already
    #[arg(long)]
    all: bool,
    /// Make one signed commit of exactly the files that changed
    #[arg(long)]
    commit: bool,
    #[command(flatten)]
    keys: Keys,
}

pub fn run(args: Args, access: &Access) -> Done {
    let mut draft = Draft::open(access)?;
    let due = due(&draft, &args)?;
    if due.is_empty() {
        say("nothing to do: every one of them is encrypted to exactly those who may read it\n");
        return Ok(Exit::Done);
    }
    let keys = args.keys.load(access)?;
    let (mut opened, mut sealed): (Vec<(Due, Secret)>, Vec<String>) = (Vec::new(), Vec::new());
    for due in due {
        match draft.value(&due.name, &keys) {
            Ok(value) => opened.push((due, value)),
            Err(failure) => sealed.push(failure.message),
        }
    }
    if !sealed.is_empty() {
        return Err(Failure::new(Exit::Secrets, format!("{}\nnothing was written", sealed.join("\n"))));
    }
    let mut text = String::new();
    for (due, value) in &opened {
        text += &format!("{}\n", draft.put(&due.name, value.expose(), due.version, None)?);
        text.extend(due.why.iter().map(|why| format!("  because {why}\n")));
    }
    let folder = draft.folder.clone();
    let paths = draft.write()?;
    let subject = match &opened[..] {
        [(one, _)] => format!("secrets: re-key {}", one.name),
        several => format!("secrets: re-key {}", plural(several.len(), "secret")),
    };
    text += &match args.commit {
        true => format!("committed as {}\n", commit(&folder, &paths, &format!("{subject}\n\n{text}"))?),
        false => commit_yourself(&paths, &subject),
    };
    say(text);
    Ok(Exit::Done)
}

struct Due {
    name: SecretName,
    version: u64,
    why: Vec<String>,
}

fn due(draft: &Draft, args: &Args) -> Result<Vec<Due>, Failure> {
    let cover = Cover::of(&draft.fleet.environment);
    let entries: Vec<&Entry> = match args.names.is_empty() {
        true => draft.fleet.environment.secrets.values().collect(),
        false => {
            let named = args.names.iter().map(|name| draft.entry(&SecretName::new(name.as_str())));
            named.collect::<Result<_, _>>()?
        }
    };
    let mut due = Vec::new();
    for entry in entries {
        // One without a file has no value yet: `check` says so.
        let Some(file) = draft.fleet.tree.get(entry.path.as_str()) else { continue };
        let why = match cover.gap(entry, file) {
            Some(gap) => [vec![format!("it was {}", gap.counts())], gap.sentences()].concat(),
            None if args.all => vec!["that was asked for".to_owned()],
            None => continue,
        };
        due.push(Due { name: entry.name.clone(), version: entry.version, why });
    }
    Ok(due)
}
