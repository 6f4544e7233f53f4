//! `command`: a program of the role's choice, run on this node about the asked member.
//!
//! Exit code 0 is healthy, any other is not; what it prints is not looked at, and not repeated: it may carry secrets.
//! Never: starts a program itself.

use std::time::Duration;

use super::{Evidence, Question};

/// Runs an argument list as a user (`None`: the caller's choice) within a time, without a shell. `Err`: it could not be
/// run, was killed, or took too long.
pub type Run = dyn Fn(&[String], Option<&str>, Duration) -> Result<Ran, String> + Send + Sync;

/// A program that came to its own end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    pub code: i32,
    /// All of it. A runner that keeps only a part of so much returns `Err`: who is missing from a list that was cut
    /// looks healthy.
    pub stdout: String,
}

const ADDRESS: &str = "{address}";

pub(super) fn ask(question: &Question, run: &Run) -> Result<Evidence, String> {
    let program = question.run.first().ok_or("the check has no command")?;
    // It would answer for this node, whoever is asked.
    if !question.own && !question.run.iter().any(|argument| argument.contains(ADDRESS)) {
        return Err("cannot be asked of a peer: its command does not use {address}".to_owned());
    }
    let argv: Vec<String> = question.run.iter().map(|argument| argument.replace(ADDRESS, &question.address)).collect();
    let ran = run(&argv, question.user.as_deref(), question.timeout)?;
    Ok(match ran.code {
        0 => Evidence::healthy(),
        code => Evidence::unhealthy(format!("{program} exits with {code}")),
    })
}
