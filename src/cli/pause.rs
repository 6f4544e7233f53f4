//! `converger pause` and `resume`, on a node: its agent applies nothing while somebody works on the machine.
//!
//! Touches: `pause.json` in the agent's state directory. Never: a store, a remote, or a pause without an end.

use std::path::{Path, PathBuf};

use super::operator::{Ends, reason_of, who};
use super::{Done, Failure, say};
use crate::clock::{Clock as _, SystemClock};
use crate::disk;
use crate::host::linux::LinuxHost;
use crate::host::{Host as _, Query};
use crate::paths::Paths;
use crate::pause::{self, Pause};
use crate::reason::{Exit, chain};

/// Let this node's agent apply nothing until a time: somebody works on the machine
///
/// On the node, as root; no store is needed. The agent goes on fetching and verifying, a member that settles goes on and
/// gives its hold back, and a run that has begun comes to its end. It ends by itself. Said again, it replaces the one before.
#[derive(clap::Args)]
pub struct PauseArgs {
    /// Why, for those who see the node paused
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    ends: Ends,
    #[command(flatten)]
    place: Place,
}

/// End the pause of this node before its time
#[derive(clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
struct Place {
    /// Of the agent that works below this directory
    #[arg(long, value_name = "DIR", default_value = "/", hide_default_value = true)]
    root: PathBuf,
}

impl Place {
    fn paths(&self) -> Result<Paths, Failure> {
        let paths = Paths::below(&self.root);
        if paths.state().is_dir() {
            return Ok(paths);
        }
        Err(Failure::usage(format!("no agent has run here: there is no {}", paths.state().display())))
    }
}

pub fn pause(args: PauseArgs) -> Done {
    let paths = args.place.paths()?;
    let reason = reason_of(&args.reason)?;
    let lasts = args.ends.lasts(SystemClock.now())?;
    let boot_id = boot_id(&args.place.root)?;
    let pause = Pause::new(&reason, who(), lasts, &boot_id, &SystemClock);
    pause::write(&paths.pause(), &pause).map_err(failed)?;
    say(format!(
        "paused until {}: nothing is applied here from the next run on; a run that has begun comes to its end.\n",
        pause.until
    ));
    Ok(Exit::Done)
}

pub fn resume(args: ResumeArgs) -> Done {
    let paths = args.place.paths()?;
    let there = paths.pause().exists();
    disk::remove(&paths.pause()).map_err(failed)?;
    say(if there { "resumed: the agent goes on with its next run.\n" } else { "this node was not paused.\n" });
    Ok(Exit::Done)
}

fn boot_id(root: &Path) -> Result<String, Failure> {
    let below = (root != Path::new("/")).then_some(root);
    let seen = LinuxHost::look(below, &SystemClock).and_then(|host| host.observe(&Query::default()));
    seen.map(|seen| seen.boot_id).map_err(|error| Failure::of(error.reason(), chain(&error)))
}

fn failed(error: disk::DiskError) -> Failure {
    Failure::usage(chain(&error))
}
