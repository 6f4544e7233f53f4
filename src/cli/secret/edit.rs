//! `converger secret edit`: a value in the engineer's own editor, and back. Never: on a disk.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::Keys;
use super::draft::{Draft, commit_yourself};
use super::room::Room;
use crate::cli::access::Access;
use crate::cli::process::{Ended, edit, hold_signals};
use crate::cli::{Done, Failure, say};
use crate::name::SecretName;
use crate::reason::{Exit, chain};

/// Change the value of a secret in your editor
///
/// Opens $VISUAL or $EDITOR on a file in memory, which is wiped when the editor ends, however it ends. Nothing is written if
/// the value is as it was; otherwise the version is raised. Editors that keep copies elsewhere must be told not to.
#[derive(clap::Args)]
pub struct Args {
    /// As in secrets.toml
    name: String,
    #[command(flatten)]
    keys: Keys,
}

pub fn run(args: Args, access: &Access) -> Done {
    let before = Draft::open(access)?;
    let name = SecretName::new(args.name);
    let version = before.entry(&name)?.version;
    let old = before.value(&name, &args.keys.load(access)?)?;
    if std::str::from_utf8(old.expose()).is_err() {
        return Err(Failure::usage(format!(
            "secret {name} is not text: `converger secret encrypt {name} --from FILE` replaces it"
        )));
    }
    let failed = |error: super::room::RoomError| Failure::usage(chain(&error));
    let held = hold_signals()?;
    let room = Room::new(&places(), name.as_str(), old.expose()).map_err(failed)?;
    let command = editor();
    match edit(&command, &room.file, &held)? {
        Ended::Well => {}
        Ended::Badly(how) => {
            return Err(Failure::usage(format!("the editor {how}; secret {name} is as it was")));
        }
    }
    let mut value = room.value().map_err(failed)?;
    drop(room);
    // Many editors end a file with a newline whether there was one or not.
    if value.ends_with(b"\n") && !old.expose().ends_with(b"\n") {
        value.pop();
    }
    if value.as_slice() == old.expose() {
        say(format!("{name}: unchanged, still version {version}\n"));
        return Ok(Exit::Done);
    }
    if value.is_empty() {
        return Err(Failure::usage(format!("the value is empty; secret {name} is as it was")));
    }
    // An editor may be open for long: not over what came in meanwhile.
    let mut draft = Draft::open(access)?;
    if draft.entry(&name)?.sha256 != before.entry(&name)?.sha256 {
        return Err(Failure::usage(format!("secret {name} was changed meanwhile; nothing was written")));
    }
    let version = version + 1;
    let said = draft.put(&name, &value, version, None)?;
    let restarts = draft.restarts().unwrap_or_default();
    let paths = draft.write()?;
    say(format!("{said}\n{restarts}{}", commit_yourself(&paths, &format!("secrets: {name}, version {version}"))));
    Ok(Exit::Done)
}

/// Where a user's files in memory are.
fn places() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    own.into_iter().chain([PathBuf::from("/dev/shm")]).collect()
}

/// By what it is in the end: `vi` and `editor` are links to it on many machines.
fn is_vim(program: &OsStr) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = match Path::new(program).components().count() {
        1 => std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file()),
        _ => Some(PathBuf::from(program)),
    };
    let real = found.and_then(|file| file.canonicalize().ok());
    let names = [Some(Path::new(program)), real.as_deref()].into_iter().flatten().filter_map(Path::file_name);
    names.filter_map(OsStr::to_str).any(|name| ["vim", "nvim", "gvim"].contains(&name) || name.starts_with("vim."))
}

/// Program and arguments, as every tool that opens an editor takes them; no shell.
fn editor() -> Vec<OsString> {
    let said = ["VISUAL", "EDITOR"].into_iter().filter_map(std::env::var_os).find(|said| !said.is_empty());
    let said = said.unwrap_or_else(|| "vi".into());
    let mut words: Vec<OsString> = match said.to_str() {
        Some(text) => text.split_whitespace().map(OsString::from).collect(),
        None => vec![said],
    };
    if words.first().is_some_and(|program| is_vim(program)) {
        // No swap file, no history of registers, no backup, no undo file: some of them would lie on a disk.
        words.extend(["-n", "-i", "NONE", "--cmd", "set nobackup nowritebackup noundofile"].map(OsString::from));
    }
    words
}
