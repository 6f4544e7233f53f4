//! Programs that an engineer's command runs on the engineer's own machine, with their environment and their terminal.
//!
//! Never: on a node; the agent runs programs through `host::command`, with nothing of its environment.

#![allow(clippy::disallowed_methods)] // git and ssh need the engineer's agent, keys and terminal

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigSet, Signal};

use super::Failure;
use crate::reason::Exit;

/// Runs a program in a folder and brings back what it printed.
pub fn output(folder: &Path, program: &str, args: &[&str]) -> Result<String, Failure> {
    let output = Command::new(program).args(args).current_dir(folder).stdin(Stdio::inherit()).output();
    let output = output.map_err(|error| Failure::usage(format!("cannot run {program}: {error}")))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(Exit::Usage, format!("`{program} {}` failed:\n{stdout}{stderr}", args.join(" "))))
}

/// As [`output`], whatever the exit code; standard error included.
pub fn output_of_any(folder: &Path, program: &str, args: &[&str]) -> Result<String, Failure> {
    let output = Command::new(program).args(args).current_dir(folder).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure::usage(format!("cannot run {program}: {error}")))?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// A program that goes on by itself, its output in a file.
pub fn spawn(folder: &Path, program: &str, args: &[&str], log: std::fs::File) -> Result<Child, Failure> {
    let errors = log.try_clone().map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
    Command::new(program)
        .args(args)
        .current_dir(folder)
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(|error| Failure::usage(format!("cannot start {program}: {error}")))
}

/// How an editor ended.
pub enum Ended {
    Well,
    /// In words that follow "the editor".
    Badly(String),
}

/// Signals wait from here on: there is going to be something that must be cleaned up before we end.
pub fn hold_signals() -> Result<SigSet, Failure> {
    let signals = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGCHLD];
    let signals = SigSet::from_iter(signals);
    signals.thread_block().map_err(no_signals)?;
    Ok(signals)
}

fn no_signals(error: nix::Error) -> Failure {
    Failure::new(Exit::Internal, format!("cannot wait for signals: {error}"))
}

/// Opens an editor on a file and waits until it is closed. When we are asked to end, it is asked first; the keys of the terminal
/// that interrupt are the editor's own business.
pub fn edit(command: &[OsString], file: &Path, held: &SigSet) -> Result<Ended, Failure> {
    let Some((program, args)) = command.split_first() else {
        return Err(Failure::usage("no editor is named: set EDITOR"));
    };
    // The standard library starts a child with no signal blocked.
    let child = Command::new(program).args(args).arg(file).spawn();
    let mut child =
        child.map_err(|error| Failure::usage(format!("cannot start the editor {}: {error}", program.display())))?;
    let mut asked = None;
    let status = loop {
        let signal = held.wait().map_err(no_signals)?;
        if matches!(signal, Signal::SIGTERM | Signal::SIGHUP) {
            asked = Some(signal);
            let id = i32::try_from(child.id()).expect("process ids fit");
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal);
        }
        let ended = child.try_wait().map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
        if let Some(status) = ended {
            break status;
        }
    };
    Ok(match (asked, status.success()) {
        (Some(signal), _) => Ended::Badly(format!("was ended by {signal}")),
        (None, true) => Ended::Well,
        (None, false) => Ended::Badly(format!("failed ({status})")),
    })
}
