//! Which program is the agent: the last one that proved itself, one on trial, those that failed; and what a start makes of
//! it.
//!
//! One small file says all of it, so that after a crash anywhere either the old or the new sentence is true. Fields are
//! only ever added: the version before reads it too. Never: names a program that is not whole on this disk; never: two
//! programs on trial.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{Clock as _, SystemClock};
use crate::disk::{self, DiskError, Exclusive};
use crate::reason::Exit;
use crate::wake::Wakes;

/// One program, as a commit names it.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Build {
    pub version: String,
    /// Hex SHA-256.
    pub sha256: String,
}

impl Build {
    /// Its file, below the folder of the agents.
    pub fn program(&self, folder: &Path) -> PathBuf {
        let digits = self.sha256.get(..16).unwrap_or(&self.sha256);
        folder.join(format!("{}-{digits}", self.version)).join("converger")
    }
}

/// The program that the unit starts: a package's, or the one that enrolled the node. It is the way back.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Installed {
    pub path: PathBuf,
    inode: u64,
    size: u64,
    mtime_ns: i128,
}

impl Installed {
    pub fn at(path: &Path) -> std::io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Ok(Self { path: path.to_owned(), inode: meta.ino(), size: meta.len(), mtime_ns })
    }
}

/// A program that must complete one whole run, or is left.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Trial {
    pub build: Build,
    /// Exit code with which the last run of the program before it ended: the new one must get as far.
    pub before: u8,
    /// What it has to complete a run.
    pub secs: u64,
    /// How often it was started.
    #[serde(default)]
    pub starts: u32,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// The last one that completed a trial; `None`: the installed program is the agent.
    #[serde(default)]
    pub current: Option<Build>,
    /// As it was when `current` was taken.
    #[serde(default)]
    pub installed: Option<Installed>,
    #[serde(default)]
    pub trial: Option<Trial>,
    /// By digest: why it is not tried again.
    #[serde(default)]
    pub bad: BTreeMap<String, String>,
}

/// What the unit's program does when it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// It is the agent itself.
    Stay,
    Run(Build),
    /// With somebody outside who watches it for so long.
    Try(Build, Duration),
}

/// A trial that ends so often before its first whole run is over, whatever the watcher's clock says.
const STARTS_MAX: u32 = 3;
/// More than one fleet ever tried; the oldest ones are forgotten in no order that matters.
const BAD_MAX: usize = 100;
const FILE_MAX: u64 = 1 << 20;

impl State {
    /// Counts the start of a trial. What was installed since the current program was taken was meant to run: by hand, by a
    /// package manager, also to replace an agent that cannot fetch any more.
    pub fn start(&mut self, installed: &Installed) -> Start {
        if self.installed.as_ref() != Some(installed) {
            (self.current, self.trial) = (None, None);
            self.installed = Some(installed.clone());
        }
        if let Some(trial) = &mut self.trial {
            if trial.starts < STARTS_MAX {
                trial.starts += 1;
                return Start::Try(trial.build.clone(), Duration::from_secs(trial.secs));
            }
            self.back(&format!("it ended {STARTS_MAX} times before it had completed a run"));
        }
        self.current.clone().map_or(Start::Stay, Start::Run)
    }

    /// The program on trial is left, and not tried again.
    pub fn back(&mut self, why: &str) {
        let Some(trial) = self.trial.take() else { return };
        if self.bad.len() >= BAD_MAX {
            self.bad.pop_first();
        }
        self.bad.insert(trial.build.sha256, format!("converger {}: {why}", trial.build.version));
    }

    /// The program on trial is the agent from now on.
    pub fn proved(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.current = Some(trial.build);
        }
    }
}

/// Whether a run of a program on trial proves it: it came to its end (`None`: it did not), and got as far as the last run
/// of the program before it, or to a wait.
pub fn is_proof(before: u8, exit: Option<Exit>) -> bool {
    exit.is_some_and(|exit| matches!(exit, Exit::Done | Exit::Waiting) || exit.code() == before)
}

/// What is on disk; nothing where there is nothing yet. One that cannot be read says nothing: the installed program runs.
pub fn read(folder: &Path) -> Result<State, DiskError> {
    let bytes = disk::read_trusted(&folder.join("state.json"), FILE_MAX)?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
}

/// Reads, changes and writes it, alone: the agent, the next start and the watcher may come at the same moment.
pub fn change<T>(folder: &Path, change: impl FnOnce(&mut State) -> T) -> Result<T, DiskError> {
    disk::create_dirs(folder)?;
    let _alone = alone(folder)?;
    let before = read(folder)?;
    let mut after = before.clone();
    let told = change(&mut after);
    if after != before {
        let bytes = serde_json::to_vec_pretty(&after).expect("plain data serializes");
        disk::write_atomic(&folder.join("state.json"), &bytes, 0o600)?;
    }
    Ok(told)
}

/// Others have it for the time of one write only.
fn alone(folder: &Path) -> Result<Exclusive, DiskError> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let (path, began) = (folder.join("lock"), SystemClock.awake());
    loop {
        if let Some(lock) = Exclusive::acquire(&path)? {
            return Ok(lock);
        }
        if SystemClock.awake().saturating_sub(began) > PATIENCE {
            let source = std::io::ErrorKind::TimedOut.into();
            return Err(DiskError::Io { operation: "lock", path, source });
        }
        Wakes::default().wait(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(version: &str) -> Build {
        Build { version: version.to_owned(), sha256: version.repeat(16) }
    }

    fn installed(inode: u64) -> Installed {
        Installed { path: PathBuf::from("/usr/bin/converger"), inode, size: 1, mtime_ns: 1 }
    }

    fn on_trial() -> State {
        let trial = Trial { build: build("2"), before: 0, secs: 5, starts: 0 };
        State { current: Some(build("1")), installed: Some(installed(1)), trial: Some(trial), bad: BTreeMap::new() }
    }

    /// O1
    #[test]
    fn a_trial_that_dies_again_and_again_ends_without_a_watcher() {
        let mut state = on_trial();
        for _ in 0..3 {
            assert_eq!(state.start(&installed(1)), Start::Try(build("2"), Duration::from_secs(5)));
        }
        assert_eq!(state.start(&installed(1)), Start::Run(build("1")));
        assert!(state.bad[&build("2").sha256].contains("ended 3 times"), "{state:?}");
    }

    /// O7
    #[test]
    fn what_was_installed_since_runs() {
        let mut state = on_trial();
        assert_eq!(state.start(&installed(2)), Start::Stay);
        assert_eq!((state.trial, state.bad.len()), (None, 0));
    }

    #[test]
    fn what_proved_itself_is_current_and_what_failed_is_remembered() {
        let mut good = on_trial();
        good.proved();
        assert_eq!((good.start(&installed(1)), good.trial), (Start::Run(build("2")), None));
        let mut bad = on_trial();
        bad.back("it hung");
        assert_eq!(bad.start(&installed(1)), Start::Run(build("1")));
        assert_eq!(bad.bad[&build("2").sha256], "converger 2: it hung");
        // Nothing is on trial any more: a watcher that comes late changes nothing.
        bad.back("late");
        assert_eq!(bad.bad.len(), 1);
    }

    /// O1
    #[test]
    fn a_run_proves_a_program_only_if_it_gets_as_far_as_the_one_before() {
        for (before, exit, proof) in [
            (0, Some(Exit::Done), true),
            (0, Some(Exit::Waiting), true),
            (5, Some(Exit::Done), true),
            (5, Some(Exit::Host), true),
            (0, Some(Exit::Host), false),
            (0, Some(Exit::Unreachable), false),
            (0, Some(Exit::Repository), false),
            (7, Some(Exit::Trust), false),
            (5, None, false),
        ] {
            assert_eq!(is_proof(before, exit), proof, "{before} -> {exit:?}");
        }
    }

    /// O4
    #[test]
    fn a_state_that_is_torn_or_of_a_later_version_starts_an_agent_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("agent");
        assert_eq!(read(&folder).unwrap(), State::default());
        change(&folder, |state| *state = on_trial()).unwrap();
        let path = folder.join("state.json");
        let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        value["of_tomorrow"] = true.into();
        value["trial"]["of_tomorrow"] = 1.into();
        disk::write_atomic(&path, value.to_string().as_bytes(), 0o600).unwrap();
        assert_eq!(read(&folder).unwrap(), on_trial());
        disk::write_atomic(&path, b"{\"current\": {\"ver", 0o600).unwrap();
        assert_eq!(read(&folder).unwrap().start(&installed(1)), Start::Stay);
    }
}
