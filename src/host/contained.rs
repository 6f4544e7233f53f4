//! A host whose panics stay inside: a bug in one provider fails its step, and the rest of the run goes on.
//!
//! Never: says what the panic said, which may quote what was being handled; the hook in `privacy` tells its place.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Done, Host, HostError, Observed, Query, Step};

pub struct Contained<'a>(pub &'a dyn Host);

impl Host for Contained<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        // What is behind `&self` are descriptors and a cell that a panic leaves empty or whole.
        let seen = catch_unwind(AssertUnwindSafe(|| self.0.observe(query)));
        seen.unwrap_or_else(|_| Err(HostError::Panicked { operation: "look at", what: "this host".to_owned() }))
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let done = catch_unwind(AssertUnwindSafe(|| self.0.perform(step)));
        done.unwrap_or_else(|_| {
            let (operation, what) = said_of(step);
            Err(HostError::Panicked { operation, what })
        })
    }
}

fn said_of(step: &Step<'_>) -> (&'static str, String) {
    match step {
        Step::Stage(specs, _) => ("stage", format!("one of {} files", specs.len())),
        Step::Swap => ("replace", "the staged files".to_owned()),
        Step::Unstage => ("unstage", "the staged files".to_owned()),
        Step::Sync(paths) => ("sync", format!("one of {} files", paths.len())),
        Step::SetAttributes(spec) => ("set the owner and mode of", spec.path.to_string()),
        Step::Remove(path, _) => ("remove", path.to_string()),
        Step::Verify(specs, ..) => ("verify", format!("one of {} unit files", specs.len())),
        Step::Activate(_, spec, _) => ("activate", spec.path.to_string()),
        Step::DaemonReload => ("reload", "systemd".to_owned()),
        Step::Enable(unit) => ("enable", unit.to_string()),
        Step::Disable(unit) => ("disable", unit.to_string()),
        Step::Mask(unit) => ("mask", unit.to_string()),
        Step::Unmask(unit) => ("unmask", unit.to_string()),
        Step::Start { unit, .. } => ("start", unit.to_string()),
        Step::Stop { unit, .. } => ("stop", unit.to_string()),
        Step::Reload { unit, .. } => ("reload", unit.to_string()),
        Step::Install(order) => ("install", format!("one of {} packages", order.wanted.len())),
        Step::Uninstall(names, _) => ("remove", format!("one of {} packages", names.len())),
        Step::Unpack(spec) => ("unpack", spec.into.to_string()),
        Step::Switch(spec) => ("switch", spec.into.to_string()),
        Step::Discard(into) => ("remove", into.to_string()),
        Step::Arm(undo, _) => ("keep what is replaced by", undo.batch.clone()),
        Step::Confirm => ("confirm", "the batch".to_owned()),
        Step::RollBack(_) => ("put back", "the batch".to_owned()),
        Step::Noted => ("forget", "the note of what was put back".to_owned()),
        Step::Reboot => ("reboot", "the machine".to_owned()),
        Step::Run { argv, .. } => ("run", argv.first().cloned().unwrap_or_default()),
        Step::Act(spec, _) => ("run action", spec.name.clone()),
    }
}
