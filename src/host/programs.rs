//! The programs that roles bring: validators, guards, steps, actions, checks.
//!
//! Each runs as a transient unit where systemd is ours to ask (`transient`), else as a plain child with the same argument
//! list, user, time limit and cap on its output (`command`). Never: a program of converger's own choice; those are plain
//! children.

use super::HostError;
use super::command::{Command, Output};
use super::transient;
use super::units::Systemd;
use super::view::Bind;

/// What a program is for says what it may touch.
pub enum Program<'a> {
    /// Looks at candidates where they will be: reads what its user may, changes nothing, reaches nobody.
    Validator(&'a [Bind]),
    /// Says whether an action is needed.
    Guard,
    /// A unit's step.
    Step,
    /// Answers a gate.
    Check,
    /// By name, of which one run goes on at a time. It outlives an agent that dies.
    Action(&'a str),
}

/// As `Command::run`. `systemd`: `None` where there is none, or where it is not the machine's own that is converged.
pub fn run(systemd: Option<&Systemd>, program: &Program<'_>, command: &Command<'_>) -> Result<Output, HostError> {
    match systemd {
        Some(systemd) if nix::unistd::geteuid().is_root() => transient::run(systemd, program, command),
        _ => command.run(),
    }
}
