//! One batch on the host: what can fail unnoticed, the stops, the exchange, the starts.
//!
//! The order is that of the manual: packages, archives, candidates, checks, steps; then stop, switch and rename, systemd's
//! reload, activations, actions, start. Never: a hold; never: a file before all of the batch are staged.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster_action::NO_GUARD;
use super::noted::{Swapped, artifact_id, file_id, is_owed, ours, package_id, unpacked};
use super::{Acted, ApplyError, Through, Tools, reason_of, unpack, words};
use crate::host::packages::Order;
use crate::host::{Done, HostError, Query, Step};
use crate::lock::quorum::Because;
use crate::name::{HostPath, UnitName};
use crate::plan::membership::Moment;
use crate::plan::{Batch, FileWrite, Known, Owned, Plan, UnitMove, Why, show};
use crate::reason::chain;
use crate::resource::action::ActionState;
use crate::resource::file::{FileChange, Policy};
use crate::resource::{ActionSpec, Activation, Id, Kind, PackageSpec, UnitSpec};

/// Whether this member leads and must hand over before it stops.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lead {
    Yes,
    No,
}

pub(super) enum Acting {
    Through(Through),
    /// It failed before anything was stopped or replaced.
    NothingStopped(Because),
    /// It failed later: the member may be down.
    Broken(Because),
}

pub(super) struct Act<'b, 'a, 't, 'w> {
    pub(super) batch: &'b Batch<'a>,
    pub(super) plan: &'b Plan<'a>,
    pub(super) tools: &'t mut Tools<'w>,
    /// Before the first write.
    pub(super) known: Known,
    /// Which run of each unit has the old inputs.
    pub(super) runs: BTreeMap<UnitName, String>,
    pub(super) lines: Vec<String>,
    pub(super) restarts: usize,
    pub(super) durations: BTreeMap<UnitName, (Duration, Duration)>,
}

/// Where our unit files and drop-ins are.
const UNIT_FILES: &str = "/etc/systemd/system/";
/// How long an ordinary tool may take.
const TOOL: Duration = Duration::from_secs(300);

impl<'b, 'a, 't, 'w> Act<'b, 'a, 't, 'w> {
    pub(super) fn new(batch: &'b Batch<'a>, plan: &'b Plan<'a>, tools: &'t mut Tools<'w>) -> Self {
        Self {
            batch,
            plan,
            tools,
            known: Known::default(),
            runs: BTreeMap::new(),
            lines: Vec::new(),
            restarts: 0,
            durations: BTreeMap::new(),
        }
    }

    pub(super) fn run(mut self, lead: Lead) -> Result<Acting, ApplyError> {
        if !self.batch.reboot.is_empty() {
            return self.reboot();
        }
        self.known = self.tools.ledger.known()?;
        self.intend()?;
        let prepared = match unpack(self.batch, self.tools)? {
            Ok(()) => self.prepare(lead),
            Err(error) => Err(error),
        };
        if let Err(error) = prepared {
            let _ = self.tools.host.perform(&Step::Unstage); // leftovers are removed at the next start too
            return Ok(Acting::NothingStopped(Because::new(reason_of(&error), None, chain(&error))));
        }
        let armed = match self.arm()? {
            Ok(armed) => armed,
            Err(error) => {
                let _ = self.tools.host.perform(&Step::Unstage); // leftovers are removed at the next start too
                return Ok(Acting::NothingStopped(Because::new(error.reason(), None, chain(&error))));
            }
        };
        if let Err(ended) = self.exchange(armed)? {
            return Ok(ended);
        }
        let report = Acted {
            batch: self.batch.name.clone(),
            lines: self.lines,
            files: self.batch.files.len() + self.batch.removals.len(),
            restarts: self.restarts,
        };
        Ok(Acting::Through(Through { report, durations: self.durations }))
    }

    /// Everything that can fail without anybody noticing: nothing is stopped, nothing is replaced.
    pub(super) fn prepare(&mut self, lead: Lead) -> Result<(), HostError> {
        let (host, words) = (self.tools.host, words(self.batch));
        if !self.batch.packages.is_empty() {
            let wanted: Vec<&PackageSpec> = self.batch.packages.iter().map(|(package, _)| *package).collect();
            host.perform(&Step::Install(Order { wanted: &wanted, listed: &self.batch.listed, words }))?;
            let lines =
                self.batch.packages.iter().map(|(package, what)| format!("+ package {} ({what})", package.name));
            self.lines.extend(lines);
        }
        let staged: Vec<_> = self
            .batch
            .files
            .iter()
            .filter(|file| matches!(file.change, FileChange::Create | FileChange::Content))
            .map(|file| (file.spec, file.previous))
            .collect();
        if !staged.is_empty() {
            host.perform(&Step::Stage(staged, words))?;
        }
        self.verify()?;
        self.change_membership(Moment::BeforeStop)?;
        for unit in self.stopping() {
            for argv in &unit.before_stop {
                host.perform(&Step::Run { argv, user: "", within: TOOL, words })?;
            }
            if lead == Lead::Yes {
                for argv in &unit.transfer {
                    host.perform(&Step::Run { argv, user: "", within: TOOL, words })?;
                }
            }
        }
        Ok(())
    }

    /// Unit files that have no check of their own.
    pub(super) fn verify(&self) -> Result<(), HostError> {
        let news = self.batch.files.iter().filter(|file| !matches!(file.change, FileChange::Attributes { .. }));
        let news = || news.clone().map(|file| file.spec);
        let units = news().filter(|spec| spec.path.as_str().starts_with(UNIT_FILES) && spec.validate.is_none());
        let units: Vec<_> = units.collect();
        if units.is_empty() {
            return Ok(());
        }
        let mut comes: Vec<&str> = news().map(|spec| spec.path.as_str()).collect();
        comes.extend(self.batch.artifacts.iter().map(|artifact| artifact.spec.into.as_str()));
        // An action can make anything.
        comes.extend(self.batch.actions.first().map(|_| "/"));
        self.tools.host.perform(&Step::Verify(units, comes, words(self.batch))).map(drop)
    }

    pub(super) fn stopping(&self) -> Vec<&'a UnitSpec> {
        let moves = self.batch.moves.iter().filter_map(|action| match action {
            UnitMove::Stop(unit) | UnitMove::Restart(unit) => Some(*unit),
            _ => None,
        });
        moves.collect()
    }

    /// The stops, the exchange, the starts.
    pub(super) fn go_live(&mut self) -> Result<Result<(), HostError>, ApplyError> {
        self.runs = self.invocations();
        self.pend(Swapped::No)?;
        self.tools.ledger.take_along(&self.batch.again)?;
        let mut stop_times = BTreeMap::new();
        for unit in self.stopping() {
            match self.stop(&unit.name, unit.stop_secs_max) {
                Ok(took) => drop(stop_times.insert(unit.name.clone(), took)),
                Err(error) => return Ok(Err(error)),
            }
        }
        // With its unit file still there, for its ExecStop and its [Install].
        if let Err(error) = self.retire() {
            return Ok(Err(error));
        }
        if let Err(error) = self.replace()? {
            // The old files are still there: what we stopped runs with them again.
            for unit in self.stopping() {
                let within = Duration::from_secs(unit.start_secs_max);
                let step = Step::Start { unit: &unit.name, within, words: words(self.batch) };
                if let Err(again) = self.tools.host.perform(&step) {
                    tracing::error!(unit = %unit.name, error = %again, "could not be started again");
                }
            }
            return Ok(self.start_again().and(Err(error)));
        }
        // Whoever starts a unit before systemd has read its new file starts the old one.
        let arranged = self.arrange();
        if let Err(error) = self.daemon_reload() {
            return Ok(Err(error));
        }
        self.pend(Swapped::Yes)?;
        if let Err(error) = arranged.and_then(|()| self.stop_early_starts()) {
            return Ok(Err(error));
        }
        // A tool that fails is no reason to keep a unit down.
        let activated = self.activate()?;
        let started = self.act().and_then(|()| self.start(&stop_times)).and_then(|()| self.start_again());
        if let Err(error) = started.and_then(|()| self.change_membership(Moment::AfterStart)) {
            return Ok(activated.and(Err(error)));
        }
        if let Err(error) = self.uninstall()? {
            return Ok(Err(error));
        }
        self.remember()?;
        Ok(activated)
    }

    pub(super) fn retire(&mut self) -> Result<(), HostError> {
        for unit in &self.batch.retire {
            self.tools.host.perform(&Step::Stop { unit, within: TOOL, words: words(self.batch) })?;
            self.tools.host.perform(&Step::Disable(unit))?;
            self.lines.push(format!("- {unit}: stopped, disabled"));
        }
        Ok(())
    }

    /// A socket, a timer or a person started it between its stop and the end of the exchange: with what, nobody knows.
    pub(super) fn stop_early_starts(&mut self) -> Result<(), HostError> {
        let starts = self.batch.moves.iter().filter_map(|action| match action {
            UnitMove::Start(unit) | UnitMove::Restart(unit) => Some(*unit),
            _ => None,
        });
        let starts: Vec<&UnitSpec> = starts.collect();
        if starts.is_empty() || self.batch.files.is_empty() && self.batch.removals.is_empty() {
            return Ok(());
        }
        let units = starts.iter().map(|unit| &unit.name).collect();
        let seen = self.tools.host.observe(&Query { units, ..Query::default() })?;
        for unit in starts {
            if seen.units.get(&unit.name).is_some_and(|state| state.is_running()) {
                tracing::warn!(unit = %unit.name, "somebody started it while its files were exchanged; stopped again");
                self.stop(&unit.name, unit.stop_secs_max)?;
            }
        }
        Ok(())
    }

    /// What systemd stopped along with our units, and has not started again with them by itself.
    pub(super) fn start_again(&mut self) -> Result<(), HostError> {
        if self.batch.again.is_empty() {
            return Ok(());
        }
        let (host, words) = (self.tools.host, words(self.batch));
        let seen = host.observe(&Query { units: self.batch.again.iter().collect(), ..Query::default() })?;
        let mut result = Ok(());
        for unit in &self.batch.again {
            if seen.units.get(unit).is_none_or(|state| state.is_running() || !state.loaded) {
                continue;
            }
            match host.perform(&Step::Start { unit, within: TOOL, words }) {
                Ok(done) => self.lines.push(format!("start {unit}, which was stopped along: {}", seconds(done.took))),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// After its units stopped. What stays, as something else needs it, is that one's from now on.
    pub(super) fn uninstall(&mut self) -> Result<Result<(), HostError>, ApplyError> {
        let names = &self.batch.uninstall;
        if names.is_empty() {
            return Ok(Ok(()));
        }
        let stay = match self.tools.host.perform(&Step::Uninstall(names, words(self.batch))) {
            Ok(done) => done.skipped,
            Err(error) => return Ok(Err(error)),
        };
        self.lines.extend(names.iter().map(|name| format!("- package {name}")));
        self.lines.extend(stay);
        let ids: Vec<Id> = names.iter().map(|name| package_id(name)).collect();
        Ok(Ok(self.tools.ledger.disown(&ids)?))
    }

    pub(super) fn stop(&mut self, unit: &UnitName, secs_max: u64) -> Result<Duration, HostError> {
        let within = Duration::from_secs(secs_max);
        Ok(self.tools.host.perform(&Step::Stop { unit, within, words: words(self.batch) })?.took)
    }

    /// Renames what was staged, sets attributes, removes what left.
    pub(super) fn replace(&mut self) -> Result<Result<(), HostError>, ApplyError> {
        let host = self.tools.host;
        let mut owned: Vec<(Id, Owned)> = Vec::new();
        let swap = || -> Result<Vec<Done>, HostError> {
            let mut done = Vec::new();
            if self.batch.files.iter().any(|file| matches!(file.change, FileChange::Create | FileChange::Content)) {
                done.push(host.perform(&Step::Swap)?);
            }
            // After what a full disk can keep from happening: an old version must not meet new files, nor a new one old files.
            for artifact in &self.batch.artifacts {
                host.perform(&Step::Switch(artifact.spec))?;
            }
            for file in &self.batch.files {
                if matches!(file.change, FileChange::Attributes { .. }) {
                    done.push(host.perform(&Step::SetAttributes(file.spec))?);
                }
            }
            for (path, previous) in &self.batch.removals {
                done.push(host.perform(&Step::Remove(path, *previous))?);
            }
            Ok(done)
        };
        let result = swap();
        if let Ok(done) = &result {
            let stamps: BTreeMap<&HostPath, _> = done
                .iter()
                .flat_map(|done| &done.stamps)
                .map(|(path, stamp, digest)| (path, (*stamp, *digest)))
                .collect();
            for file in &self.batch.files {
                let stamp = stamps.get(&file.spec.path);
                owned.push((
                    file_id(file),
                    Owned {
                        inputs: file.spec.inputs(),
                        content: stamp.map(|(_, digest)| self.tools.ledger.fingerprints().of(*digest)),
                        stamp: stamp.map(|(stamp, _)| *stamp),
                        written: true,
                        secret: file.spec.content.is_secret(),
                        secret_comes: false,
                        owed: is_owed(self.batch, file),
                        keep: file.spec.policy == Policy::Seed,
                    },
                ));
                self.lines.push(line_of(file));
            }
            for artifact in &self.batch.artifacts {
                owned.push((artifact_id(artifact), unpacked(artifact)));
                let why = if artifact.why == Why::Drift { " (drift, put back)" } else { "" };
                self.lines.push(format!("+ {} in {}{why}", artifact.what, artifact.spec.into));
            }
            owned.extend(self.arriving().map(|spec| (package_id(&spec.name), ours(spec.inputs()))));
            self.tools.ledger.own(&owned)?;
            let gone: Vec<Id> =
                self.batch.removals.iter().map(|(path, _)| Id { kind: Kind::File, name: path.to_string() }).collect();
            self.lines.extend(gone.iter().map(|id| format!("- {id}")));
            self.tools.ledger.disown(&gone)?;
        }
        Ok(match result {
            Ok(_) => self.forget()?,
            Err(error) => Err(error),
        })
    }

    /// What is gone already: maybe by a run that died before it was durable.
    pub(super) fn forget(&mut self) -> Result<Result<(), HostError>, ApplyError> {
        let files = self.batch.forget.iter().filter(|id| id.kind == Kind::File);
        let files: Vec<HostPath> = files.map(|id| HostPath::new(id.name.clone())).collect();
        if !files.is_empty()
            && let Err(error) = self.tools.host.perform(&Step::Sync(files.iter().collect()))
        {
            return Ok(Err(error));
        }
        Ok(Ok(self.tools.ledger.disown(&self.batch.forget)?))
    }

    /// When a unit starts by itself.
    pub(super) fn arrange(&mut self) -> Result<(), HostError> {
        for action in &self.batch.moves {
            let name = &action.spec().name;
            let step = match action {
                UnitMove::Unmask(_) => Step::Unmask(name),
                UnitMove::Mask(_) => Step::Mask(name),
                UnitMove::Enable(_) => Step::Enable(name),
                UnitMove::Disable(_) => Step::Disable(name),
                UnitMove::Start(_) | UnitMove::Stop(_) | UnitMove::Restart(_) | UnitMove::Reload(_) => continue,
            };
            self.tools.host.perform(&step)?;
            self.lines.push(format!("{} {name}", action.verb()));
        }
        Ok(())
    }

    /// Once for all that changed in what systemd reads.
    pub(super) fn daemon_reload(&mut self) -> Result<(), HostError> {
        let files = self.batch.files.iter().map(|file| &file.spec.path);
        let mut paths = files.chain(self.batch.removals.iter().map(|(path, _)| path));
        let arranged = |action: &UnitMove<'_>| {
            matches!(action, UnitMove::Unmask(_) | UnitMove::Mask(_) | UnitMove::Enable(_) | UnitMove::Disable(_))
        };
        let needed = self.batch.daemon_reload
            || !self.batch.retire.is_empty()
            || self.batch.moves.iter().any(arranged)
            || paths.any(|path| path.as_str().starts_with(UNIT_FILES));
        if needed { self.tools.host.perform(&Step::DaemonReload).map(drop) } else { Ok(()) }
    }

    /// The owners of files act on what changed, users first; the first error, when all had their turn.
    pub(super) fn activate(&mut self) -> Result<Result<(), HostError>, ApplyError> {
        let words = words(self.batch);
        let mut activations: Vec<&(Activation, _)> = self.batch.activations.iter().collect();
        activations.sort_by_key(|(tool, _)| *tool);
        let mut result = Ok(());
        for (tool, file) in activations {
            match self.tools.host.perform(&Step::Activate(*tool, file, words)) {
                Ok(_) => self.tools.ledger.activated(&file.path)?,
                Err(error) => result = result.and(Err(error)),
            }
        }
        for (tool, file) in self.batch.not_acted_on() {
            self.lines.push(format!("{} {}", tool.tool(), file.path));
        }
        Ok(result)
    }

    pub(super) fn act(&mut self) -> Result<(), HostError> {
        for action in &self.batch.actions {
            self.run_if_needed(action)?;
        }
        self.change_membership(Moment::AfterStop)?;
        self.change_membership(Moment::BeforeStart)
    }

    fn change_membership(&mut self, now: Moment) -> Result<(), HostError> {
        for (_, action) in self.batch.membership.iter().filter(|(moment, _)| *moment == now) {
            self.run_if_needed(action)?;
        }
        Ok(())
    }

    fn run_if_needed(&mut self, action: &ActionSpec) -> Result<(), HostError> {
        if self.is_needed(action)? {
            self.tools.host.perform(&Step::Act(action, words(self.batch)))?;
            self.lines.push(format!("action {}", action.name));
        }
        Ok(())
    }

    /// A guard whose program came with this batch, or one before it, is asked now.
    fn is_needed(&self, action: &ActionSpec) -> Result<bool, HostError> {
        if self.tools.observed.actions.get(&action.name) != Some(&ActionState::Unguarded) {
            return Ok(true);
        }
        let seen = self.tools.host.observe(&Query { actions: vec![action], ..Query::default() })?;
        let failed = |why: &str| HostError::Command { command: action.unless.join(" "), why: why.to_owned() };
        match seen.actions.get(&action.name) {
            Some(ActionState::Done) => Ok(false),
            Some(ActionState::Unknown(why)) => Err(failed(why)),
            Some(ActionState::Unguarded) => Err(failed(NO_GUARD)),
            Some(ActionState::Needed) | None => Ok(true),
        }
    }

    pub(super) fn start(&mut self, stop_times: &BTreeMap<UnitName, Duration>) -> Result<(), HostError> {
        let (host, words) = (self.tools.host, words(self.batch));
        for action in &self.batch.moves {
            let unit = action.spec();
            let within = Duration::from_secs(unit.start_secs_max);
            match action {
                UnitMove::Start(_) | UnitMove::Restart(_) => {
                    let took = host.perform(&Step::Start { unit: &unit.name, within, words })?.took;
                    let stopped = stop_times.get(&unit.name);
                    self.lines.push(match stopped {
                        Some(stop) => {
                            format!("restart {}: stopped {}, started {}", unit.name, seconds(*stop), seconds(took))
                        }
                        None => format!("start {}: {}", unit.name, seconds(took)),
                    });
                    if let Some(stop) = stopped {
                        self.restarts += 1;
                        self.durations.insert(unit.name.clone(), (*stop, took));
                    }
                    for argv in &unit.after_start {
                        host.perform(&Step::Run { argv, user: "", within: TOOL, words })?;
                    }
                }
                UnitMove::Reload(_) => {
                    host.perform(&Step::Reload { unit: &unit.name, within, words })?;
                    self.lines.push(format!("reload {}", unit.name));
                }
                UnitMove::Stop(_) => self.lines.push(format!("stop {}", unit.name)),
                UnitMove::Enable(_) | UnitMove::Disable(_) | UnitMove::Mask(_) | UnitMove::Unmask(_) => {}
            }
        }
        // Only now: what is stopped may have run from there.
        for into in &self.batch.discards {
            host.perform(&Step::Discard(into))?;
            self.lines.push(format!("- artifact {into}"));
        }
        Ok(())
    }
}

/// What was done to a file; of drift also what it was.
fn line_of(file: &FileWrite<'_>) -> String {
    let mark = if file.change == FileChange::Create { "+" } else { "~" };
    let (why, diff) = match file.why {
        Why::Drift => (" (drift, put back)", show::drift_diff(file)),
        Why::Intended => ("", String::new()),
    };
    let line = match &file.change {
        FileChange::Attributes { from, to } => format!("{mark} {} {from} -> {to}{why}", file.spec.path),
        _ => format!("{mark} {}{why}\n{diff}", file.spec.path),
    };
    line.trim_end().to_owned()
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
