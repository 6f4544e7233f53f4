//! Lets systemd's own tools act on what changed in sysusers.d, tmpfiles.d, sysctl.d and modules-load.d.
//!
//! Never: does again what systemd already does, or starts a unit.

use std::time::Duration;

use super::command::{Command, argv};
use super::{Activation, HostError};

const WITHIN: Duration = Duration::from_secs(60);

pub fn activate(what: Activation) -> Result<(), HostError> {
    let argv = match what {
        Activation::Sysusers => argv(["systemd-sysusers"]),
        Activation::Tmpfiles => argv(["systemd-tmpfiles", "--create"]),
        // The two that live outside PATH, where every distribution of ours has them.
        Activation::Sysctl => argv(["/usr/lib/systemd/systemd-sysctl"]),
        Activation::Modules => argv(["/usr/lib/systemd/systemd-modules-load"]),
    };
    Command { argv: &argv, user: "", within: WITHIN }.succeed()?;
    Ok(())
}
