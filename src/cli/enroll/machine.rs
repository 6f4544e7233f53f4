//! What enrolment does to the machine beside its files: the user that fetches, who owns what, the agent's unit.
//!
//! Never: replaces a unit that is there; starts anything before the head was verified.

use std::path::Path;
use std::time::Duration;

use super::super::{Failure, tell};
use crate::disk;
use crate::host::command::{Command, argv};
use crate::reason::{Exit, chain};

/// Fetches and unpacks what remotes send.
const FETCH_USER: &str = "converger-fetch";
const SYSUSERS: &str = "/usr/lib/sysusers.d/converger.conf";
const UNIT_FILES: &str = "/etc/systemd/system";
const PACKAGED: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];
const AGENT: &str = "converger.service";
/// Puts back at boot what was not confirmed before.
const ROLL_BACK: &str = "converger-roll-back.service";
const BINARY: &str = "/usr/bin/converger";
const WITHIN: Duration = Duration::from_secs(60);

/// What the commands of `machine` need to be there. Comes before anything is written.
pub fn is_fit() -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::usage(
            "this writes /etc/converger and installs a unit: run it as root on the node, or try it below --root DIR",
        ));
    }
    Ok(())
}

/// Whether the unit could be started: systemd is PID 1, and the binary is where the unit expects it.
pub fn can_start() -> Result<(), Failure> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(Failure::usage(
            "systemd does not run here (a container, a chroot?): --no-start does everything but the unit's start",
        ));
    }
    if !Path::new(BINARY).exists() {
        let me = std::env::current_exe().unwrap_or_default();
        return Err(Failure::usage(format!(
            "the unit runs {BINARY}, which is not there: install -m 0755 {} {BINARY}",
            me.display()
        )));
    }
    Ok(())
}

/// Makes the user that fetches, unless there is one.
pub fn fetch_user() -> Result<(), Failure> {
    if user()?.is_some() {
        return Ok(());
    }
    if let Some(folder) = Path::new(SYSUSERS).parent().filter(|folder| folder.is_dir()) {
        let text = include_bytes!("../../../systemd/converger.sysusers");
        disk::write_atomic(&folder.join("converger.conf"), text, 0o644).map_err(failed)?;
    }
    let by_systemd = ["/usr/bin/systemd-sysusers", "/bin/systemd-sysusers"].iter().any(|path| Path::new(path).exists());
    match by_systemd {
        true => run(argv(["systemd-sysusers", SYSUSERS]))?,
        false => run(argv(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", FETCH_USER]))?,
    }
    tell(format!("made the user {FETCH_USER}"));
    Ok(())
}

/// The user that fetches has to get at its credentials: others may enter the folder, and not see what is there.
pub fn let_enter(folder: &Path) -> Result<(), Failure> {
    let mode = rustix::fs::Mode::from_raw_mode(0o711);
    rustix::fs::chmod(folder, mode).map_err(|error| on(folder, error.into()))
}

/// A credential for the remote is the fetching user's own: ssh refuses a key that its user shares with a group.
pub fn give_to_fetch_user(file: &Path) -> Result<(), Failure> {
    let Some(user) = user()? else { return Ok(()) };
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    std::os::unix::fs::lchown(file, Some(uid), Some(gid)).map_err(|error| on(file, error))
}

/// Installs the units unless they are there, enables them and starts the agent; an agent that read other settings is started anew.
pub fn start(settings: Settings) -> Result<(), Failure> {
    let texts: [(&str, &[u8]); 2] = [
        (AGENT, include_bytes!("../../../systemd/converger.service")),
        (ROLL_BACK, include_bytes!("../../../systemd/converger-roll-back.service")),
    ];
    for (unit, text) in texts {
        if PACKAGED.iter().chain([&UNIT_FILES]).any(|folder| Path::new(folder).join(unit).exists()) {
            continue;
        }
        let path = Path::new(UNIT_FILES).join(unit);
        disk::write_atomic(&path, text, 0o644).map_err(failed)?;
        tell(format!("wrote {}", path.display()));
    }
    run(argv(["systemctl", "daemon-reload"]))?;
    run(argv(["systemctl", "enable", ROLL_BACK]))?;
    run(argv(["systemctl", "enable", "--now", AGENT]))?;
    match settings {
        // It finishes the batch at hand first, which may take long.
        Settings::Replaced => run(argv(["systemctl", "--no-block", "restart", AGENT])),
        Settings::AsTheyWere => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Settings {
    AsTheyWere,
    Replaced,
}

fn user() -> Result<Option<nix::unistd::User>, Failure> {
    let found = nix::unistd::User::from_name(FETCH_USER);
    found.map_err(|error| Failure::new(Exit::Host, format!("cannot look up the user {FETCH_USER}: {error}")))
}

fn on(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(Exit::Host, format!("cannot change who may use {}: {error}", path.display()))
}

fn run(argv: Vec<String>) -> Result<(), Failure> {
    let ran = Command { argv: &argv, user: "", within: WITHIN }.succeed();
    ran.map(drop).map_err(|error| Failure::new(Exit::Host, chain(&error)))
}

fn failed(error: disk::DiskError) -> Failure {
    Failure::new(Exit::Host, chain(&error))
}
