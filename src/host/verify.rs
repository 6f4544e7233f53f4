//! Asks systemd whether unit files and drop-ins are good before they replace anything.
//!
//! `systemd-analyze verify` looks at copies in a directory of root's own that comes before systemd's other ones, so that a
//! drop-in meets the unit that it changes. It exits with 0 for an unknown setting and with 1 for a unit that is not there
//! yet, so its words decide, not its exit code. Never: blames a file for what another one says.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::fs::Mode;

use super::command::{Command, Output};
use super::root::{Root, replace};
use super::units::Systemd;
use super::{HostError, Words, said};
use crate::name::UnitName;
use crate::resource::FileSpec;

const ROOM: &str = "/run/converger/verify";
const UNIT_FILES: &str = "/etc/systemd/system/";
const WITHIN: Duration = Duration::from_secs(60);
/// True today, and no mistake.
const HARMLESS: [&str; 4] = ["deprecated", "obsolete", "legacy", "has been removed"];
/// About another unit, which may come in the same run: the start tells whether it is there.
const ELSEWHERE: [&str; 3] = ["not found", "not loaded", "Failed to create"];

/// Errors: a file is no good, by systemd's words. `comes`: what will be there when the unit starts, and below which paths.
pub fn verify(
    root: &Root,
    systemd: &Systemd,
    files: &[&FileSpec],
    comes: &[&str],
    words: Words,
) -> Result<(), HostError> {
    let judged = room(root, systemd, files).and_then(|units| {
        units.iter().try_for_each(|unit| {
            let output = ask(root, unit)?;
            judge(root, unit, files, comes, words, &output)
        })
    });
    clean(root);
    judged
}

/// What was left there by a check.
pub fn clean(root: &Root) {
    let _ = std::fs::remove_dir_all(root.outside(ROOM));
}

/// Copies of the files, and of the unit files that drop-ins belong to; the units to be asked about.
fn room(root: &Root, systemd: &Systemd, files: &[&FileSpec]) -> Result<BTreeSet<UnitName>, HostError> {
    clean(root);
    let mut units = BTreeSet::new();
    let staged = |unit: &str| files.iter().any(|file| file.path.as_str().strip_prefix(UNIT_FILES) == Some(unit));
    for file in files {
        let Some(inside) = file.path.as_str().strip_prefix(UNIT_FILES) else { continue };
        let (directory, name) = inside.rsplit_once('/').unwrap_or(("", inside));
        let unit = if directory.is_empty() { name } else { directory.strip_suffix(".d").unwrap_or_default() };
        // A drop-in for a whole kind (`service.d`) or a link of [Install] is no unit's own.
        if !unit.contains('.') {
            continue;
        }
        put(root, directory, name, file.content.bytes().unwrap_or_default())?;
        units.insert(UnitName::from(unit));
        if !directory.is_empty() && !staged(unit) {
            let Some(fragment) = systemd.fragment(&UnitName::from(unit))? else {
                units.remove(unit);
                continue;
            };
            let bytes = std::fs::read(root.outside(&fragment));
            let bytes =
                bytes.map_err(|source| HostError::File { operation: "read", path: fragment.clone(), source })?;
            put(root, "", fragment.rsplit('/').next().unwrap_or(unit), &bytes)?;
        }
    }
    Ok(units)
}

fn put(root: &Root, directory: &str, name: &str, bytes: &[u8]) -> Result<(), HostError> {
    let at = format!("{ROOM}/{directory}");
    let at = at.trim_end_matches('/');
    // `/run/converger` above it is root's alone; systemd complains of a unit file that others cannot read.
    let (home, _) = root.make_directory(at)?;
    replace(&home.fd, name, bytes, Mode::from_raw_mode(0o644), at)
}

fn ask(root: &Root, unit: &UnitName) -> Result<Output, HostError> {
    let room = root.outside(ROOM).to_string_lossy().into_owned();
    // With the empty entry at the end come the directories that systemd itself looks into.
    let path = format!("SYSTEMD_UNIT_PATH={room}:");
    let asked = format!("{room}/{unit}");
    let argv: Vec<String> = ["env", &path, "systemd-analyze", "verify", "--man=no", &asked].map(str::to_owned).to_vec();
    Command { argv: &argv, user: "", within: WITHIN }.run()
}

fn judge(
    root: &Root,
    unit: &UnitName,
    files: &[&FileSpec],
    comes: &[&str],
    words: Words,
    output: &Output,
) -> Result<(), HostError> {
    let room = root.outside(ROOM).to_string_lossy().into_owned();
    let text = output.text();
    let bad = complaints(unit.as_str(), &room, comes, &text);
    let who = format!("verify-{unit}");
    let Some(first) = bad.first() else {
        said::forget(root, &who);
        return Ok(());
    };
    // The file that it names, else the unit's own, else its drop-in.
    let of_unit = |file: &&&FileSpec| file.path.as_str().strip_prefix(UNIT_FILES) == Some(unit.as_str());
    let named = |file: &&&FileSpec| {
        let inside = file.path.as_str().strip_prefix(UNIT_FILES).unwrap_or_default();
        first.starts_with(&format!("{room}/{inside}:"))
    };
    let file = files
        .iter()
        .find(named)
        .or_else(|| files.iter().find(of_unit))
        .or_else(|| files.iter().find(|file| file.path.as_str().contains(&format!("/{unit}.d/"))));
    let path = file.map_or_else(|| unit.to_string(), |file| file.path.to_string());
    let secret = files.iter().any(|file| file.content.is_secret());
    let output = if secret || words == Words::Kept {
        said::keep(root, &who, output)
    } else {
        bad.join("; ").replace(&format!("{room}/"), UNIT_FILES)
    };
    Err(HostError::Invalid { path, command: "systemd-analyze verify".to_owned(), output })
}

/// The lines that speak of this unit's files in the room, or of the unit, and tell of a mistake.
fn complaints<'a>(unit: &str, room: &str, comes: &[&str], said: &'a str) -> Vec<&'a str> {
    // A template is asked about as an instance that systemd-analyze makes up.
    let (stem, kind) = unit.rsplit_once('.').unwrap_or((unit, ""));
    let of_template = |line: &str| {
        stem.ends_with('@')
            && line.starts_with(stem)
            && line.split(": ").next().is_some_and(|name| name.ends_with(kind))
    };
    let ours = |line: &&str| {
        line.starts_with(&format!("{room}/")) || line.starts_with(&format!("{unit}: ")) || of_template(line)
    };
    let comes_later = |line: &str| {
        let command = line.split_once("Command ").and_then(|(_, rest)| rest.split_once(" is not executable"));
        command.is_some_and(|(command, _)| {
            let below = |path: &&str| command.strip_prefix(path.trim_end_matches('/'));
            comes.iter().filter_map(below).any(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    let meant =
        |line: &&str| !HARMLESS.iter().chain(&ELSEWHERE).any(|harmless| line.contains(harmless)) && !comes_later(line);
    said.lines().map(str::trim).filter(ours).filter(meant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F1, in the words of systemd 249 and 252.
    #[test]
    fn words_decide() {
        let said = "/room/a.service:5: Unknown key 'ExecStrat' in section [Service], ignoring.\n\
            /room/a.service:7: Support for KillMode=none is deprecated and will eventually be removed.\n\
            a.service: Failed to create a.service/start: Unit nothere.service not found.\n\
            a.service: Command /opt/app/current/bin/app is not executable: No such file or directory\n\
            /usr/lib/systemd/system/plymouth.service:9: Unknown key 'X' in section [Unit], ignoring.\n\
            s.socket: service s.service not loaded, socket cannot be started.\n\
            t@i.service: Service has no ExecStart=, ExecStop=, or SuccessAction=. Refusing.\n";
        let bad = |unit: &str, comes: &[&str]| complaints(unit, "/room", comes, said).len();
        assert_eq!(bad("a.service", &[]), 2);
        assert_eq!(bad("a.service", &["/opt/app"]), 1);
        assert_eq!(bad("a.service", &["/"]), 1);
        assert_eq!(bad("a.service", &["/opt/ap"]), 2);
        assert_eq!(complaints("t@.service", "/no", &[], said).len(), 1);
        assert_eq!(complaints("s.socket", "/no", &[], said).len(), 0);
    }
}
