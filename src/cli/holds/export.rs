//! `converger holds export`, on a node: its own holds as its disk has them, for `holds reinit`.
//!
//! Never: asks a store; never: takes a record that cannot be read for none.

use std::path::{Path, PathBuf};

use super::super::{Done, Failure, say_json};
use crate::clock::{Clock as _, SystemClock};
use crate::disk;
use crate::lock::epoch::Export;
use crate::lock::quorum::{Hold, HoldPhase};
use crate::lock::session::{self, Record, RecordPhase};
use crate::paths::Paths;
use crate::reason::{Exit, chain};
use crate::settings::{Rooted, Settings, TrustRoot};
use crate::update;

/// Print this node's own holds as its disk has them, as JSON
///
/// On the node, as root. `converger holds reinit` takes the exports of all nodes after etcd was restored. Nothing secret is in
/// it.
#[derive(clap::Args)]
pub struct Args {
    /// Of the agent that works below this directory
    #[arg(long, value_name = "DIR", default_value = "/", hide_default_value = true)]
    root: PathBuf,
    /// Who this node is
    #[arg(long, value_name = "FILE", default_value = "/etc/converger/agent.toml")]
    settings: PathBuf,
}

const SETTINGS_BYTES_MAX: u64 = 1 << 20;

pub fn run(args: &Args) -> Done {
    let read = |path: &Path| -> Result<String, Failure> {
        let bytes = disk::read_bounded(path, SETTINGS_BYTES_MAX).map_err(|error| Failure::usage(chain(&error)))?;
        let bytes = bytes.ok_or_else(|| Failure::usage(format!("{}: no such file", path.display())))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let rooted = if args.root == Path::new("/") { Rooted::Host } else { Rooted::Below };
    let settings = Settings::parse(&read(&args.settings)?, &args.settings, rooted);
    let settings = settings.map_err(|error| Failure::usage(error.to_string()))?;
    let trust = TrustRoot::parse(&read(&settings.trust)?, &settings.trust);
    let trust = trust.map_err(|error| Failure::usage(error.to_string()))?;
    let paths = Paths::below(&args.root);
    if !paths.state().is_dir() {
        return Err(Failure::usage(format!("no agent has run here: there is no {}", paths.state().display())));
    }
    let pin = session::read_pin(&paths.store_pin()).map_err(|error| Failure::new(Exit::Host, chain(&error)))?;
    let mut holds = Vec::new();
    for path in [paths.hold(), update::record_path(&paths.agents())] {
        let Some(record) = session::read_record(&path) else { continue };
        if record.holds.is_empty() {
            let what = format!(
                "{} cannot be read, so nobody knows what this node holds: look at its members; remove the file when all of them are healthy",
                path.display()
            );
            return Err(Failure::new(Exit::Host, what));
        }
        holds.extend(held(record));
    }
    say_json(&Export {
        fleet: trust.fleet,
        environment: settings.environment,
        node: settings.node,
        at: SystemClock.now(),
        // One that cannot be read knows no epoch; the node says so itself.
        pin: pin.ok().flatten(),
        holds,
    });
    Ok(Exit::Done)
}

/// As they have to stand in the store.
fn held(record: Record) -> impl Iterator<Item = Hold> {
    let Record { phase, holds, why, .. } = record;
    holds.into_iter().map(move |(hold, _)| match phase {
        RecordPhase::Failed => Hold { phase: HoldPhase::Failed, reason: why.clone(), ..hold },
        RecordPhase::Acting | RecordPhase::Repairing | RecordPhase::Settling => {
            Hold { phase: HoldPhase::Armed, ..hold }
        }
    })
}
