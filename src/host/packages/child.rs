//! The package manager as a child: of systemd, in a unit of its own, so that it outlives an agent that is killed.
//!
//! There is one such unit and no second while it lives: a later agent finds it by its name, waits for it, and goes on from
//! what it left. Where systemd does not run, it is a plain child. Never: two package managers of ours at once; a wait
//! without end.

use std::path::Path;
use std::time::Duration;

use super::no_starts::{self, NoStarts, OFFLINE};
use crate::clock::{Clock, SystemClock};
use crate::host::HostError;
use crate::host::command::{Command, KEPT_BYTES_MAX, Output};
use crate::host::root::Root;

/// Who the package manager is a child of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parent {
    /// systemd: the machine's own.
    Systemd,
    /// This process, where there is no systemd; it dies with us.
    Agent,
}

const UNIT: &str = "converger-packages.service";
/// systemd keeps it for as long as it knows the unit.
const UNIT_FILE: &str = "/run/systemd/transient/converger-packages.service";
const RUN: &str = "/run/converger";
const SAID: &str = "/run/converger/packages.out";
/// A package manager that is killed leaves work to be finished: this is for one that hangs.
const ACT_WITHIN: Duration = Duration::from_secs(1800);
/// For what only looks, or fetches lists.
const ASK_WITHIN: Duration = Duration::from_secs(300);
/// How long somebody else, or what we left running, is waited for.
const OTHERS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Nobody is asked anything, and needrestart, which would restart services of others, stays out of it.
const ENVIRONMENT: [&str; 7] = [
    OFFLINE,
    "DEBIAN_FRONTEND=noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN=true",
    "APT_LISTCHANGES_FRONTEND=none",
    "APT_LISTBUGS_FRONTEND=none",
    "NEEDRESTART_SUSPEND=1",
    "NEEDRESTART_MODE=l",
];

/// One that looks: killed with us, which harms nothing.
pub fn ask(words: &[&str]) -> Result<Output, HostError> {
    Command { argv: &in_environment(words), user: "", within: ASK_WITHIN }.run()
}

/// One that acts, with nothing started or restarted by it.
pub fn act(root: &Root, parent: Parent, words: &[&str]) -> Result<Output, HostError> {
    // What asks the policy, and the policy with it, is Debian's.
    let _no_starts = Path::new("/usr/sbin/invoke-rc.d").exists().then(|| NoStarts::begin(root)).transpose()?;
    let argv = in_environment(words);
    match parent {
        Parent::Agent => Command { argv: &argv, user: "", within: ACT_WITHIN }.run(),
        Parent::Systemd => in_unit(root, argv),
    }
}

fn in_environment(words: &[&str]) -> Vec<String> {
    ["/usr/bin/env"].iter().chain(&ENVIRONMENT).chain(words).map(|word| (*word).to_owned()).collect()
}

/// Its output goes to a file: a pipe would end with us, and the manager with it.
fn in_unit(root: &Root, argv: Vec<String>) -> Result<Output, HostError> {
    let (run, _) = root.make_directory(RUN)?;
    let _ = rustix::fs::unlinkat(&run.fd, "packages.out", rustix::fs::AtFlags::empty());
    let mut words: Vec<String> = ["/usr/bin/systemd-run", "--quiet", "--wait", "--collect"].map(str::to_owned).to_vec();
    words.push(format!("--unit={UNIT}"));
    words.push("--description=Packages, as the fleet repository wants them".to_owned());
    let properties = [
        format!("StandardOutput=file:{SAID}"),
        "StandardError=inherit".to_owned(),
        format!("RuntimeMaxSec={}", ACT_WITHIN.as_secs()),
        "OOMPolicy=continue".to_owned(),
        "UMask=0022".to_owned(),
    ];
    let after = no_starts::TAKE_BACK.iter().map(|command| format!("ExecStopPost=-{command}"));
    words.extend(properties.into_iter().chain(after).map(|property| format!("--property={property}")));
    words.extend(["--".to_owned()].into_iter().chain(argv));
    let waited = Command { argv: &words, user: "", within: ACT_WITHIN + OTHERS_WITHIN }.run()?;
    // The one that waited can lose its connection; what it waited for goes on.
    wait_for_left_behind()?;
    let said = said();
    // Without it the unit never began, and systemd-run says why.
    Ok(if said.is_empty() && waited.exit != 0 { waited } else { Output { stdout: said, ..waited } })
}

/// The end of what it said.
fn said() -> Vec<u8> {
    let text = std::fs::read(SAID).unwrap_or_default();
    text[text.len().saturating_sub(KEPT_BYTES_MAX)..].to_vec()
}

/// Whether a manager that we started runs, whoever of us it was.
pub fn is_running() -> bool {
    Path::new(UNIT_FILE).exists()
}

/// Errors: it still runs after a minute.
pub fn wait_for_left_behind() -> Result<(), HostError> {
    wait_while(|| is_running().then(|| format!("{UNIT}, which an agent before this one started, still runs")))
}

/// Looks again and again while there is a reason to wait. Errors: the reason, when a minute is over.
pub fn wait_while(mut reason: impl FnMut() -> Option<String>) -> Result<(), HostError> {
    let clock = SystemClock;
    let deadline = clock.awake() + OTHERS_WITHIN;
    while let Some(why) = reason() {
        if clock.awake() >= deadline {
            return Err(HostError::PackagesBusy { why });
        }
        pause();
    }
    Ok(())
}

#[allow(clippy::disallowed_methods)] // a lock of another program's tells nobody when it is free
fn pause() {
    std::thread::sleep(LOOK_EVERY);
}
