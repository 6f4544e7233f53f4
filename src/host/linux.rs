//! The real host, or a sandbox of it below a root directory.
//!
//! Dispatches: files to `files`, units to systemd or (in a sandbox) to the recorder, the rest to the module of its
//! kind. Never: a decision; a sandbox never reaches the machine's systemd, accounts, packages or kernel.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::command::{Command, Output};
use super::confirm::{self, When};
pub use super::files::Owners;
use super::files::{self, Staged};
use super::packages::{Packages, Parent};
use super::programs::{self, Program};
use super::recorder::Recorder;
use super::root::{Root, split};
use super::units::Systemd;
use super::{
    Done, Host, HostError, Observed, Query, Step, Words, activate, artifacts, room, said, transient, validate, verify,
};
use crate::clock::Clock;
use crate::plan::risk::Undo;
use crate::resource::action::ActionState;
use crate::resource::file::{Previous, Validate};
use crate::resource::{ActionSpec, FileSpec};

/// A guard (`unless`) that says nothing for so long says nothing.
const GUARD_WITHIN: Duration = Duration::from_secs(30);
const ACTION_WITHIN: Duration = Duration::from_secs(600);

pub struct LinuxHost<'a> {
    root: Root,
    owners: Owners,
    units: Units,
    packages: Packages,
    clock: &'a dyn Clock,
    staged: RefCell<Staged>,
}

/// Who controls units.
pub enum Units {
    Systemd(Systemd),
    /// A sandbox.
    Recorder(Recorder),
}

impl<'a> LinuxHost<'a> {
    /// The machine itself.
    pub fn machine(clock: &'a dyn Clock) -> Result<Self, HostError> {
        let owners = if nix::unistd::geteuid().is_root() { Owners::Kept } else { Owners::Ignored };
        let host = Self::new(Path::new("/"), owners, Units::Systemd(Systemd::new()?), clock)?;
        if let Err(error) = host.packages.clean() {
            // A /usr that is read-only: nothing can be installed, and all else goes on.
            tracing::warn!(error = %crate::reason::chain(&error), "what a package manager's run left");
        }
        verify::clean(&host.root);
        room::clean(&host.root)?;
        if let Units::Systemd(systemd) = &host.units
            && let Err(error) = transient::sweep(systemd)
        {
            // Each of them ends by itself when its time is over.
            tracing::warn!(%error, "programs that an earlier agent left running");
        }
        Ok(host)
    }

    /// A directory that stands for a machine; units are recorded, owners are not kept.
    pub fn sandbox(root: &Path, clock: &'a dyn Clock) -> Result<Self, HostError> {
        Self::new(root, Owners::Ignored, Units::Recorder(Recorder::new(root)?), clock)
    }

    /// To look at, and never to take a step on: not even what a crash left is removed. `None`: the machine itself.
    pub fn look(root: Option<&Path>, clock: &'a dyn Clock) -> Result<Self, HostError> {
        let units = match root {
            Some(root) => Units::Recorder(Recorder::new(root)?),
            None => Units::Systemd(Systemd::new()?),
        };
        let owners = match root {
            None if nix::unistd::geteuid().is_root() => Owners::Kept,
            _ => Owners::Ignored,
        };
        let root = Root::open(root.unwrap_or(Path::new("/")))?;
        let packages = Packages::new(Parent::Systemd)?;
        Ok(Self { root, owners, units, packages, clock, staged: RefCell::default() })
    }

    /// Removes what a crash left staged on the root's own mount.
    pub fn new(root: &Path, owners: Owners, units: Units, clock: &'a dyn Clock) -> Result<Self, HostError> {
        let root = Root::open(root)?;
        files::clean(&root, [])?;
        let packages = Packages::new(Parent::Systemd)?;
        Ok(Self { root, owners, units, packages, clock, staged: RefCell::default() })
    }

    /// Removes what a crash left staged on the mounts of these files: a secret may be in it.
    pub fn clean<'p>(&self, files: impl IntoIterator<Item = &'p str>) -> Result<(), HostError> {
        files::clean(&self.root, files)
    }

    fn stage(&self, specs: &[(&FileSpec, Previous)], words: Words) -> Result<Vec<String>, HostError> {
        self.staged.borrow_mut().forget(&self.root);
        let mut staged = Staged::write(&self.root, self.owners, specs)?;
        let candidates: Vec<&FileSpec> = specs.iter().map(|(spec, _)| *spec).collect();
        let skipped = match &self.units {
            Units::Recorder(_) => {
                let rules = candidates.iter().filter_map(|spec| Some((spec, spec.validate.as_ref()?)));
                let said = |(spec, rules): (&&FileSpec, &Validate)| {
                    format!("{}: not validated by `{}` in a sandbox", spec.path, rules.run.join(" "))
                };
                rules.map(said).collect()
            }
            Units::Systemd(systemd) => {
                if let Err(error) = validate::validate(&self.root, Some(systemd), &candidates, words) {
                    staged.forget(&self.root);
                    return Err(error);
                }
                Vec::new()
            }
        };
        self.staged.replace(staged);
        Ok(skipped)
    }

    fn set_attributes(&self, spec: &FileSpec, done: &mut Done) -> Result<(), HostError> {
        let digest = spec.content.bytes().map(crate::resource::Digest::of);
        match files::set_attributes(&self.root, self.owners, self.clock, spec)? {
            Some(stamp) => done.stamps.extend(digest.map(|digest| (spec.path.clone(), stamp, digest))),
            None => {
                let mut staged = Staged::write(&self.root, self.owners, &[(spec, Previous::Kept)])?;
                done.stamps = staged.go_live(&self.root, self.clock)?;
            }
        }
        Ok(())
    }

    fn arm(&self, undo: &Undo, writes: &[&FileSpec]) -> Result<(), HostError> {
        confirm::arm(&self.root, undo, &boot_id()?, writes)?;
        if matches!(self.units, Units::Recorder(_)) {
            return Ok(());
        }
        let program = std::env::current_exe().map_err(|source| HostError::File {
            operation: "find",
            path: "/proc/self/exe".to_owned(),
            source,
        })?;
        // Another one was installed in its place meanwhile.
        let program = program.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
        confirm::start_timer(Path::new(&program)).inspect_err(|_| drop(confirm::confirm(&self.root)))
    }

    fn roll_back(&self, why: &str) -> Result<(), HostError> {
        let when = match self.units {
            Units::Systemd(_) => When::Running,
            Units::Recorder(_) => When::Sandbox,
        };
        confirm::roll_back(&self.root, self.owners, self.clock, why, when)?;
        self.on_timer(confirm::stop_timer);
        Ok(())
    }

    fn on_timer(&self, act: impl FnOnce()) {
        if matches!(self.units, Units::Systemd(_)) {
            act();
        }
    }

    fn action(&self, spec: &ActionSpec) -> ActionState {
        if let Some(creates) = &spec.creates {
            return match self.exists(creates) {
                Ok(true) => ActionState::Done,
                Ok(false) => ActionState::Needed,
                Err(error) => ActionState::Unknown(error.to_string()),
            };
        }
        match &self.units {
            Units::Recorder(recorder) => recorder.action(spec),
            Units::Systemd(_) if spec.unless.is_empty() => ActionState::Needed,
            Units::Systemd(_) if self.is_missing(&spec.unless) => ActionState::Unguarded,
            Units::Systemd(systemd) => {
                let guard = Command { argv: &spec.unless, user: &spec.user, within: GUARD_WITHIN };
                match programs::run(Some(systemd), &Program::Guard, &guard) {
                    Ok(output) if output.exit == 0 => ActionState::Done,
                    Ok(_) => ActionState::Needed,
                    Err(error) => ActionState::Unknown(error.to_string()),
                }
            }
        }
    }

    /// Whether a program that is given by its path is not there.
    fn is_missing(&self, argv: &[String]) -> bool {
        argv.first().is_some_and(|program| program.starts_with('/') && matches!(self.exists(program), Ok(false)))
    }

    fn exists(&self, path: &str) -> Result<bool, HostError> {
        let (parent, name) = split(path)?;
        let Some(directory) = self.root.directory(parent)? else { return Ok(false) };
        match rustix::fs::statat(&directory.fd, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(super::root::file("look at", path)(error)),
        }
    }

    /// Judges a program that must succeed; `who` is what its words are kept under.
    fn tell(
        &self,
        who: &str,
        words: Words,
        command: &Command<'_>,
        ran: Result<Output, HostError>,
    ) -> Result<Output, HostError> {
        let output = ran?;
        if output.exit == 0 {
            said::forget(&self.root, who);
            return Ok(output);
        }
        let said = match words {
            Words::Told => format!(": {}", output.tail()),
            Words::Kept => format!(" ({})", said::keep(&self.root, who, &output)),
        };
        Err(command.failed(format!("exit {}{said}", output.exit)))
    }

    /// One run at a time: one that an agent left behind when it died is waited for, and then the world is asked again.
    fn act(&self, systemd: &Systemd, spec: &ActionSpec, words: Words) -> Result<(), HostError> {
        if transient::wait_for(systemd, &spec.name, ACTION_WITHIN)? && self.action(spec) == ActionState::Done {
            return Ok(());
        }
        let command = Command { argv: &spec.run, user: &spec.user, within: ACTION_WITHIN };
        let ran = programs::run(Some(systemd), &Program::Action(&spec.name), &command);
        self.tell(&format!("action-{}", spec.name), words, &command, ran).map(drop)
    }

    fn on_machine(&self, systemd: &Systemd, step: &Step<'_>, done: &mut Done) -> Result<(), HostError> {
        match *step {
            Step::Verify(ref files, ref comes, words) => verify::verify(&self.root, systemd, files, comes, words),
            Step::Activate(what, spec, words) => {
                let argv = activate::command(what, spec.path.as_str());
                let command = Command { argv: &argv, user: "", within: activate::WITHIN };
                let told = self.tell(&format!("activate-{}", spec.path), words, &command, command.run());
                activate::after(what, spec, words, told)
            }
            Step::DaemonReload => systemd.daemon_reload(),
            Step::Enable(unit) => systemd.enable(unit),
            Step::Disable(unit) => systemd.disable(unit),
            Step::Mask(unit) => systemd.mask(unit),
            Step::Unmask(unit) => systemd.unmask(unit),
            Step::Start { unit, within, words } => systemd.start(unit, within, words),
            Step::Stop { unit, within, words } => systemd.stop(unit, within, words),
            Step::Reload { unit, within, words } => systemd.reload(unit, within, words),
            Step::Install(ref order) => {
                self.packages.install(order)?;
                // Packages do not tell systemd of their unit files themselves, as they talk to no systemd here.
                systemd.daemon_reload()
            }
            Step::Uninstall(names, words) => {
                done.skipped.extend(self.packages.remove(names, words)?);
                systemd.daemon_reload()
            }
            Step::Unpack(spec) => {
                let store = artifacts::Store::of_the_machine(self.clock)?;
                artifacts::unpack(&self.root, &store, spec)
            }
            Step::Switch(spec) => artifacts::switch(&self.root, spec),
            Step::Discard(into) => artifacts::discard(&self.root, into.as_str()),
            Step::Run { argv, user, within, words } => {
                let command = Command { argv, user, within };
                let ran = programs::run(Some(systemd), &Program::Step, &command);
                self.tell(&argv.join(" "), words, &command, ran).map(drop)
            }
            Step::Act(spec, words) => self.act(systemd, spec, words),
            Step::Stage(..)
            | Step::Swap
            | Step::Unstage
            | Step::Sync(_)
            | Step::SetAttributes(_)
            | Step::Remove(..) => Ok(()),
            Step::Arm(..) | Step::Confirm | Step::RollBack(_) | Step::Noted => Ok(()),
            Step::Reboot => systemd.reboot(),
        }
    }
}

impl Host for LinuxHost<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        let relations = match &self.units {
            Units::Systemd(systemd) if query.stop_sets => systemd.relations(&query.units)?,
            _ => BTreeMap::new(),
        };
        let (units, packages) = match &self.units {
            Units::Systemd(systemd) => (systemd.observe(&query.units)?, self.packages.observe(&query.packages)),
            Units::Recorder(recorder) => (recorder.observe(&query.units)?, recorder.packages(&query.packages)?),
        };
        let artifact =
            |spec: &&crate::resource::ArtifactSpec| (spec.into.clone(), artifacts::observe(&self.root, spec));
        let actions: BTreeMap<_, _> = query.actions.iter().map(|spec| (spec.name.clone(), self.action(spec))).collect();
        Ok(Observed {
            files: files::observe(&self.root, self.clock, &query.files)?,
            units,
            relations,
            packages,
            artifacts: query.artifacts.iter().map(artifact).collect(),
            actions,
            boot_id: match &self.units {
                Units::Systemd(_) => boot_id()?,
                Units::Recorder(recorder) => recorder.boot_id(boot_id()?)?,
            },
            owners: self.owners == Owners::Kept,
        })
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let began = self.clock.awake();
        let mut done = Done::default();
        match (step, &self.units) {
            (Step::Stage(specs, words), _) => done.skipped = self.stage(specs, *words)?,
            (Step::Swap, _) => done.stamps = self.staged.borrow_mut().go_live(&self.root, self.clock)?,
            (Step::Unstage, _) => self.staged.borrow_mut().forget(&self.root),
            (Step::Sync(paths), _) => files::sync(&self.root, paths)?,
            (Step::SetAttributes(spec), _) => self.set_attributes(spec, &mut done)?,
            (Step::Remove(path, previous), _) => files::remove(&self.root, self.clock, path, *previous)?,
            (Step::Arm(undo, writes), _) => self.arm(undo, writes)?,
            (Step::Confirm, _) => {
                confirm::confirm(&self.root)?;
                self.on_timer(confirm::stop_timer);
            }
            (Step::RollBack(why), _) => self.roll_back(why)?,
            (Step::Noted, _) => confirm::noted(&self.root)?,
            (_, Units::Systemd(systemd)) => self.on_machine(systemd, step, &mut done)?,
            (_, Units::Recorder(recorder)) => done.skipped.extend(recorder.perform(step, self.clock)?),
        }
        done.took = self.clock.awake().saturating_sub(began);
        Ok(done)
    }
}

/// Puts back what nobody confirmed on this machine, without an agent.
pub fn roll_back(clock: &dyn Clock, why: &str, when: When) -> Result<(), HostError> {
    let root = Root::open(Path::new("/"))?;
    if confirm::roll_back(&root, Owners::Kept, clock, why, when)? {
        tracing::warn!(why, "put back");
    }
    Ok(())
}

/// Of the running boot.
pub(super) fn boot_id() -> Result<String, HostError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let read = std::fs::read_to_string(path);
    let id = read.map_err(|source| HostError::File { operation: "read", path: path.to_owned(), source })?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::host::command::argv;

    /// B11.
    #[test]
    fn a_program_with_secrets_near_is_told_by_its_exit_code() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(dir.path()).unwrap();
        let host = LinuxHost::new(dir.path(), Owners::Ignored, Units::Recorder(recorder), &SystemClock).unwrap();
        let run = |words, exit: &str| {
            let argv = argv(["sh", "-c", "echo pass$0 >&2; exit $1", "word", exit]);
            let command = Command { argv: &argv, user: "", within: Duration::from_secs(5) };
            let told = host.tell("action-migrate", words, &command, command.run());
            told.map(drop).map_err(|error| error.to_string())
        };
        assert!(run(Words::Told, "3").unwrap_err().contains("exit 3: password"));
        let error = run(Words::Kept, "3").unwrap_err();
        assert!(error.contains("exit 3 (") && !error.contains("password"), "{error}");
        let said = dir.path().join("run/converger/said/action-migrate");
        assert_eq!(std::fs::read_to_string(&said).unwrap(), "password\n");
        assert_eq!(run(Words::Kept, "0"), Ok(()));
        assert!(!said.exists());
    }
}
