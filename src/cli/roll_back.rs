//! `converger roll-back`: puts back a node-risk batch that nobody confirmed; for the timer and the boot, without an agent.
//!
//! Never: asks whether the node is reachable; whoever could confirm did not.

use super::{Done, Failure};
use crate::clock::SystemClock;
use crate::host::confirm::When;
use crate::host::linux;
use crate::log::To;
use crate::reason::{self, Exit, chain};

/// Put back a change of network, firewall, sshd or the like that the agent armed and did not confirm
#[derive(clap::Args)]
pub struct Args {
    /// The machine boots: nothing reads the files yet
    #[arg(long)]
    at_boot: bool,
}

pub fn run(args: Args) -> Done {
    crate::log::start(0, To::Record);
    let (when, why) = if args.at_boot {
        (When::Booting, "the machine booted before it was confirmed")
    } else {
        (When::Running, "nobody confirmed it in time")
    };
    linux::roll_back(&SystemClock, why, when)
        .map(|()| Exit::Done)
        .map_err(|error| Failure::of(reason::APPLY_FAILED, chain(&error)))
}
