//! Programs that an engineer's command runs on the engineer's own machine, with their environment and their terminal.
//!
//! Never: on a node; the agent runs programs through `host::command`, with nothing of its environment.

#![allow(clippy::disallowed_methods)] // git and ssh need the engineer's agent, keys and terminal

use std::path::Path;
use std::process::{Child, Command, Stdio};

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
