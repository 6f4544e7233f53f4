//! The start of the agent's unit: which program goes on as the agent, and who watches one on trial from outside.
//!
//! The unit always starts the installed program; it becomes the wanted one by exec (same process, same unit). The watcher is
//! a timer of systemd's, in a unit of its own: it needs neither the agent nor the agent's cgroup. Never: a program on trial
//! without a watcher; never: an exec of what is not, byte by byte, what the commit named.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::fetch;
use super::state::{self, Build, Installed, Start};
use crate::clock::{Clock as _, SystemClock};
use crate::disk::DiskError;
use crate::fleet::agents::UNIT;
use crate::host::HostError;
use crate::host::command::{Command, argv};
use crate::paths::Paths;
use crate::reason::chain;
use crate::wake::Wakes;

/// How long an agent that is asked to end may take before it is ended: it finishes the batch at hand, if it still can.
const GRACE: Duration = Duration::from_secs(60);
const SYSTEMCTL: Duration = Duration::from_secs(30);
/// A handful of failed starts in a row is all that one start looks at.
const STARTS: usize = 4;

/// Whether this process is the agent of the unit: only there is a program exchanged under somebody's eyes.
pub fn in_unit() -> bool {
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    cgroup.lines().any(|line| line.rsplit('/').next() == Some(UNIT))
}

/// Where the program that runs was started from; `None`: it cannot be told. Another one may be there by now.
pub fn own_program() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?;
    // What the kernel writes behind the name of a file that was replaced.
    let name = path.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
    Some(name.map_or_else(|| path.clone(), PathBuf::from))
}

/// Becomes the program that is the agent. Returns if that is this one, or if the other one cannot be had any more.
pub fn hand_over(paths: &Paths) {
    let folder = paths.agents();
    let Some(own) = own_program() else { return };
    let folder = folder.canonicalize().unwrap_or(folder);
    if own.starts_with(&folder) || !folder.join("state.json").exists() {
        return;
    }
    // As a guest, beside the unit (`--once` by hand): what proved itself, never what is on trial.
    if !in_unit() {
        let state = state::read(&folder).unwrap_or_default();
        let as_then = Installed::at(&own).is_ok_and(|now| state.installed == Some(now));
        if let Some(current) = state.current.filter(|_| as_then) {
            become_build(&folder, &current);
        }
        return;
    }
    for _ in 0..STARTS {
        let start = Installed::at(&own).map_err(|error| error.to_string()).and_then(|installed| {
            state::change(&folder, |state| state.start(&installed)).map_err(|error| chain(&error))
        });
        match start {
            Ok(Start::Stay) => return,
            Ok(Start::Run(build)) => {
                become_build(&folder, &build);
                return;
            }
            Ok(Start::Try(build, within)) => {
                let why = match watch(&own, &build, within) {
                    Ok(()) => become_build(&folder, &build),
                    Err(error) => format!("nobody would watch its trial: {}", chain(&error)),
                };
                if leave(&folder, &build.sha256, &why).is_err() {
                    return;
                }
            }
            Err(why) => {
                tracing::error!("{why}; {} goes on as the agent", own.display());
                return;
            }
        }
    }
}

/// Returns only if it did not: why.
fn become_build(folder: &Path, build: &Build) -> String {
    let program = build.program(folder);
    let why = match fetch::is(&program, &build.sha256) {
        true => exec(&program),
        false => format!("{} is not what the commit named", program.display()),
    };
    tracing::error!("{why}; the installed program goes on as the agent");
    why
}

/// The same arguments and the same environment. Asked to end, the program ends from here on as any that catches nothing yet;
/// being asked to look at the source must not end it: that stays blocked until somebody waits for it.
pub fn exec(program: &Path) -> String {
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    if let Err(error) = ending.thread_unblock() {
        return format!("signals cannot be let through: {error}");
    }
    let why = exec_now(program);
    // Nothing was exchanged: this one catches them again. What unblocked them blocks them.
    let _ = ending.thread_block();
    why
}

fn exec_now(program: &Path) -> String {
    let words: Option<Vec<CString>> = std::env::args_os().map(|word| CString::new(word.into_vec()).ok()).collect();
    let path = CString::new(program.as_os_str().to_owned().into_vec()).ok();
    match (path, words) {
        (Some(path), Some(words)) => match nix::unistd::execv(&path, &words) {
            Err(error) => format!("{} cannot be run: {error}", program.display()),
            Ok(never) => match never {},
        },
        _ => format!("{} or the arguments hold a zero byte", program.display()),
    }
}

/// A timer outside of the agent, which asks `converger trial-over` when the time is over, whatever became of the agent.
fn watch(own: &Path, build: &Build, within: Duration) -> Result<(), HostError> {
    let name = format!("converger-trial-{}-{}", std::process::id(), SystemClock.awake().as_millis());
    let words = [
        "systemd-run".to_owned(),
        "--quiet".to_owned(),
        "--collect".to_owned(),
        format!("--unit={name}"),
        format!("--description=The trial of converger {}", build.version),
        format!("--on-active={}s", within.as_secs()),
        "--timer-property=AccuracySec=1s".to_owned(),
        own.display().to_string(),
        "trial-over".to_owned(),
        build.sha256.clone(),
    ];
    Command { argv: &words, user: "", within: SYSTEMCTL }.succeed().map(drop)
}

fn leave(folder: &Path, sha256: &str, why: &str) -> Result<bool, DiskError> {
    state::change(folder, |state| {
        let ours = state.trial.as_ref().is_some_and(|trial| trial.build.sha256 == sha256);
        if ours {
            state.back(why);
        }
        ours
    })
}

#[derive(Debug, thiserror::Error)]
pub enum OverError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What the watcher does when the time is over: a program still on trial is left, and the unit starts anew with the one
/// before it. `false`: the trial was over already.
pub fn over(paths: &Paths, sha256: &str) -> Result<bool, OverError> {
    let folder = paths.agents();
    let secs = state::read(&folder)?.trial.map_or(0, |trial| trial.secs);
    if !leave(&folder, sha256, &format!("it completed no run within {secs} s that got as far as the agent before it"))?
    {
        return Ok(false);
    }
    let before = invocation()?;
    systemctl(["systemctl", "--no-block", "restart", UNIT])?;
    let began = SystemClock.awake();
    while SystemClock.awake().saturating_sub(began) < GRACE {
        // A crash between two starts has none.
        let now = invocation()?;
        if now != before && !now.is_empty() {
            return Ok(true);
        }
        Wakes::default().wait(Duration::from_millis(200));
    }
    // It hangs. Whatever it was doing, the ledger and the record of a hold tell the next one.
    systemctl(["systemctl", "kill", "--signal=KILL", "--kill-who=main", UNIT])?;
    Ok(true)
}

fn invocation() -> Result<String, HostError> {
    let words = argv(["systemctl", "show", "--property=InvocationID", "--value", UNIT]);
    let output = Command { argv: &words, user: "", within: SYSTEMCTL }.succeed()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn systemctl<const N: usize>(words: [&str; N]) -> Result<(), HostError> {
    Command { argv: &argv(words), user: "", within: SYSTEMCTL }.succeed().map(drop)
}
