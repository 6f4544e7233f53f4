//! The real host, or a sandbox of it below a root directory.
//!
//! Dispatches: files to `files`, units to systemd or (in a sandbox) to the recorder, the rest to the module of its
//! kind. Never: a decision; a sandbox never reaches the machine's systemd, accounts, packages or kernel.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::command::Command;
pub use super::files::Owners;
use super::files::{self, Staged};
use super::recorder::Recorder;
use super::root::{Root, split};
use super::units::Systemd;
use super::{Done, Host, HostError, Observed, Query, Step, activate, packages, validate};
use crate::clock::Clock;
use crate::resource::action::ActionState;
use crate::resource::{ActionSpec, FileSpec};

/// A guard (`unless`) that says nothing for so long says nothing.
const GUARD_WITHIN: Duration = Duration::from_secs(30);
const ACTION_WITHIN: Duration = Duration::from_secs(600);

pub struct LinuxHost<'a> {
    root: Root,
    owners: Owners,
    units: Units,
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
        packages::clean(&host.root)?;
        validate::clean(&host.root)?;
        Ok(host)
    }

    /// A directory that stands for a machine; units are recorded, owners are not kept.
    pub fn sandbox(root: &Path, clock: &'a dyn Clock) -> Result<Self, HostError> {
        Self::new(root, Owners::Ignored, Units::Recorder(Recorder::new(root)?), clock)
    }

    /// Removes what a crash left staged.
    pub fn new(root: &Path, owners: Owners, units: Units, clock: &'a dyn Clock) -> Result<Self, HostError> {
        let root = Root::open(root)?;
        files::clean(&root)?;
        Ok(Self { root, owners, units, clock, staged: RefCell::default() })
    }

    fn stage(&self, specs: &[&FileSpec]) -> Result<Vec<String>, HostError> {
        self.staged.borrow_mut().forget(&self.root);
        let mut staged = Staged::write(&self.root, self.owners, specs)?;
        let mut skipped = Vec::new();
        for spec in specs {
            let Some(rules) = &spec.validate else { continue };
            let verdict = match &self.units {
                Units::Recorder(_) => {
                    skipped.push(format!("{}: not validated by `{}` in a sandbox", spec.path, rules.run.join(" ")));
                    Ok(())
                }
                Units::Systemd(_) => validate::validate(&self.root, spec, rules),
            };
            if let Err(error) = verdict {
                staged.forget(&self.root);
                return Err(error);
            }
        }
        self.staged.replace(staged);
        Ok(skipped)
    }

    fn set_attributes(&self, spec: &FileSpec, done: &mut Done) -> Result<(), HostError> {
        let digest = spec.content.bytes().map(crate::resource::Digest::of);
        match files::set_attributes(&self.root, self.owners, self.clock, spec)? {
            Some(stamp) => done.stamps.extend(digest.map(|digest| (spec.path.clone(), stamp, digest))),
            None => done.stamps = Staged::write(&self.root, self.owners, &[spec])?.go_live(&self.root, self.clock)?,
        }
        Ok(())
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
            Units::Systemd(_) => match (Command { argv: &spec.unless, user: &spec.user, within: GUARD_WITHIN }.run()) {
                Ok(output) if output.exit == 0 => ActionState::Done,
                Ok(_) => ActionState::Needed,
                Err(error) => ActionState::Unknown(error.to_string()),
            },
        }
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

    fn on_machine(&self, systemd: &Systemd, step: &Step<'_>) -> Result<(), HostError> {
        match *step {
            Step::Activate(what) => activate::activate(what),
            Step::DaemonReload => systemd.daemon_reload(),
            Step::Enable(unit) => systemd.enable(unit),
            Step::Disable(unit) => systemd.disable(unit),
            Step::Mask(unit) => systemd.mask(unit),
            Step::Unmask(unit) => systemd.unmask(unit),
            Step::Start { unit, within } => systemd.start(unit, within),
            Step::Stop { unit, within } => systemd.stop(unit, within),
            Step::Reload { unit, within } => systemd.reload(unit, within),
            Step::Install(spec) => packages::install(&self.root, spec),
            Step::Unpack(spec) => match spec.diff(&packages::artifact(&self.root, spec)) {
                None => Ok(()),
                Some(change) => Err(HostError::Unsupported {
                    what: change,
                    hint: "place its version's directory by image or by hand, and point `current` there",
                }),
            },
            Step::Run { argv, user, within } => Command { argv, user, within }.succeed().map(drop),
            Step::Act(spec) => Command { argv: &spec.run, user: &spec.user, within: ACTION_WITHIN }.succeed().map(drop),
            Step::Stage(_) | Step::Swap | Step::Unstage | Step::SetAttributes(_) | Step::Remove(_) => Ok(()),
        }
    }
}

impl Host for LinuxHost<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        let (units, packages) = match &self.units {
            Units::Systemd(systemd) => (systemd.observe(&query.units)?, packages::observe(&query.packages)),
            Units::Recorder(recorder) => (recorder.observe(&query.units)?, recorder.packages(&query.packages)?),
        };
        let artifact =
            |spec: &&crate::resource::ArtifactSpec| (spec.into.clone(), packages::artifact(&self.root, spec));
        let actions: BTreeMap<_, _> = query.actions.iter().map(|spec| (spec.name.clone(), self.action(spec))).collect();
        Ok(Observed {
            files: files::observe(&self.root, self.clock, &query.files)?,
            units,
            packages,
            artifacts: query.artifacts.iter().map(artifact).collect(),
            actions,
            boot_id: boot_id()?,
            owners: self.owners == Owners::Kept,
        })
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let began = self.clock.awake();
        let mut done = Done::default();
        match (step, &self.units) {
            (Step::Stage(specs), _) => done.skipped = self.stage(specs)?,
            (Step::Swap, _) => done.stamps = self.staged.borrow_mut().go_live(&self.root, self.clock)?,
            (Step::Unstage, _) => self.staged.borrow_mut().forget(&self.root),
            (Step::SetAttributes(spec), _) => self.set_attributes(spec, &mut done)?,
            (Step::Remove(path), _) => files::remove(&self.root, self.clock, path)?,
            (_, Units::Systemd(systemd)) => self.on_machine(systemd, step)?,
            (_, Units::Recorder(recorder)) => done.skipped.extend(recorder.perform(step, self.clock)?),
        }
        done.took = self.clock.awake().saturating_sub(began);
        Ok(done)
    }
}

fn boot_id() -> Result<String, HostError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let read = std::fs::read_to_string(path);
    let id = read.map_err(|source| HostError::File { operation: "read", path: path.to_owned(), source })?;
    Ok(id.trim().to_owned())
}
