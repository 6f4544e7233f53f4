//! Carries out a plan, batch by batch; takes the hold where the plan says that one is needed.
//!
//! Within a batch: packages and artifacts, staging and validation, the steps before the stop, stop, exchange, start. A
//! batch that fails leaves its dependants alone and lets the others go on. Never: a choice of what or in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::disk::DiskError;
use crate::host::{Activation, Done, Host, HostError, Observed, Query, Step};
use crate::ledger::{Ledger, LedgerError};
use crate::lock::quorum::Because;
use crate::lock::session::{Entry, Intent, Session};
use crate::name::{HostPath, RoleName, UnitName};
use crate::plan::batch::Phase;
use crate::plan::{Batch, FileWrite, HoldNeed, Owned, Pending, Plan, RanWith, UnitMove, Why};
use crate::probe::Health;
use crate::reason;
use crate::resource::file::{FileChange, Policy};
use crate::resource::{Digest, Id, Kind, UnitSpec};

/// What became of a plan.
#[derive(Default)]
pub struct Outcome {
    pub done: Vec<Acted>,
    /// With what would end the wait.
    pub deferred: Vec<(String, Because)>,
    /// With the error, its causes included.
    pub failed: Vec<(String, Because)>,
    pub drift: usize,
    /// Stop and start times of units, as seen in this run.
    pub durations: BTreeMap<UnitName, (Duration, Duration)>,
}

impl Outcome {
    pub fn is_converged(&self) -> bool {
        self.deferred.is_empty() && self.failed.is_empty()
    }
}

/// One batch that went through, for people.
pub struct Acted {
    pub batch: String,
    pub lines: Vec<String>,
    pub files: usize,
    pub restarts: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

pub struct Tools<'a> {
    pub host: &'a dyn Host,
    pub ledger: &'a mut Ledger,
    pub session: &'a Session<'a>,
    /// Set when the agent was asked to stop: the batch at hand is finished, nothing new is begun.
    pub stop: &'a AtomicBool,
    pub observed: &'a Observed,
}

pub fn apply(plan: &Plan<'_>, tools: &mut Tools<'_>) -> Result<Outcome, ApplyError> {
    let mut outcome = Outcome::default();
    let mut failed_roles: BTreeSet<RoleName> = BTreeSet::new();
    tools.ledger.ran(&plan.adopt)?;
    for batch in &plan.batches {
        if tools.stop.load(Ordering::Relaxed) {
            let because = Because::new(reason::INTERRUPTED, None, "asked to stop".to_owned());
            outcome.deferred.push((batch.name.clone(), because));
            continue;
        }
        if let Some(role) = batch.role.as_ref().filter(|role| failed_roles.contains(*role)) {
            let because =
                Because::new(reason::DEPENDENCY_FAILED, None, format!("something of role {role} failed before"));
            outcome.failed.push((batch.name.clone(), because));
            continue;
        }
        let span = tracing::info_span!("batch", name = %batch.name);
        let _in = span.enter();
        match take(batch, plan, tools)? {
            Taken::Deferred(because) => outcome.deferred.push((batch.name.clone(), because)),
            Taken::Failed(because) => {
                tracing::error!(reason = %because.reason, "{}", because.sentence);
                if batch.phase != Phase::Unit {
                    failed_roles.extend(batch.role.clone());
                }
                outcome.failed.push((batch.name.clone(), because));
            }
            Taken::Acted(acted) => {
                outcome.drift += batch.drift();
                for line in &acted.report.lines {
                    tracing::info!("{line}");
                }
                outcome.durations.extend(acted.durations);
                outcome.done.push(acted.report);
            }
        }
    }
    Ok(outcome)
}

enum Taken {
    Acted(Through),
    Deferred(Because),
    Failed(Because),
}

/// A batch that went through.
struct Through {
    report: Acted,
    durations: BTreeMap<UnitName, (Duration, Duration)>,
}

fn take(batch: &Batch<'_>, plan: &Plan<'_>, tools: &mut Tools<'_>) -> Result<Taken, ApplyError> {
    if !batch.blocked.is_empty() {
        let what: Vec<String> = batch.blocked.iter().map(|(id, why)| format!("{id}: {why}")).collect();
        let reason = if what.iter().any(|text| text.contains("secret")) {
            reason::SECRET_UNREADABLE
        } else {
            reason::APPLY_FAILED
        };
        return Ok(Taken::Failed(Because::new(reason, None, what.join("; "))));
    }
    let held = match batch.hold {
        HoldNeed::None => false,
        HoldNeed::Required => true,
        // It never settled here: while its gate does not say that it is healthy, it costs nobody anything.
        HoldNeed::RequiredIfHealthy => batch
            .groups
            .iter()
            .any(|group| tools.session.own_health(group).is_some_and(|evidence| evidence.health == Health::Healthy)),
    };
    if !held {
        return Ok(match Act::new(batch, plan, tools).run(Lead::No)? {
            Acting::Through(through) => Taken::Acted(through),
            Acting::NothingStopped(because) | Acting::Broken(because) => Taken::Failed(because),
        });
    }
    let intent = Intent {
        batch: &batch.name,
        groups: batch.groups.iter().cloned().collect(),
        units: batch.units.keys().map(UnitName::to_string).collect(),
        running: batch.units.keys().any(|unit| tools.observed.units.get(unit).is_some_and(|state| state.is_running())),
    };
    let lead = match tools.session.enter(&intent)? {
        Entry::Deferred(because) if because.reason() == reason::GATE_FAILED => return Ok(Taken::Failed(because)),
        Entry::Deferred(because) => return Ok(Taken::Deferred(because)),
        Entry::Act { leads: true } => Lead::Yes,
        Entry::Act { leads: false } => Lead::No,
    };
    Ok(match Act::new(batch, plan, tools).run(lead)? {
        Acting::Through(mut through) => {
            let names: Vec<&str> = batch.groups.iter().map(|group| group.as_str()).collect();
            through.report.lines.insert(0, format!("hold {}: claimed, asked, armed", names.join(", ")));
            // What needs no settling (nothing was stopped or started) gives back at once.
            let disturbed =
                batch.moves.iter().any(|action| !matches!(action, UnitMove::Enable(_) | UnitMove::Disable(_)));
            if disturbed {
                tools.session.acted()?
            } else {
                tools.session.release()?
            }
            Taken::Acted(through)
        }
        Acting::NothingStopped(because) => {
            tools.session.nothing_stopped()?;
            Taken::Failed(because)
        }
        Acting::Broken(because) => {
            tools.session.failed(&because.sentence)?;
            Taken::Failed(because)
        }
    })
}

/// Whether this member leads and must hand over before it stops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lead {
    Yes,
    No,
}

enum Acting {
    Through(Through),
    /// It failed before anything was stopped or replaced.
    NothingStopped(Because),
    /// It failed later: the member may be down.
    Broken(Because),
}

struct Act<'b, 'a, 't, 'w> {
    batch: &'b Batch<'a>,
    plan: &'b Plan<'a>,
    tools: &'t mut Tools<'w>,
    lines: Vec<String>,
    restarts: usize,
    durations: BTreeMap<UnitName, (Duration, Duration)>,
}

/// How long an ordinary tool may take.
const TOOL: Duration = Duration::from_secs(300);

impl<'b, 'a, 't, 'w> Act<'b, 'a, 't, 'w> {
    fn new(batch: &'b Batch<'a>, plan: &'b Plan<'a>, tools: &'t mut Tools<'w>) -> Self {
        Self { batch, plan, tools, lines: Vec::new(), restarts: 0, durations: BTreeMap::new() }
    }

    fn run(mut self, lead: Lead) -> Result<Acting, ApplyError> {
        self.intend()?;
        if let Err(error) = self.prepare(lead) {
            let _ = self.tools.host.perform(&Step::Unstage); // leftovers are removed at the next start too
            let reason =
                if matches!(error, HostError::Command { .. }) { reason::STEP_FAILED } else { reason::APPLY_FAILED };
            return Ok(Acting::NothingStopped(Because::new(reason, None, chain(&error))));
        }
        match self.exchange()? {
            Ok(()) => {}
            Err(error) => return Ok(Acting::Broken(Because::new(reason::APPLY_FAILED, None, chain(&error)))),
        }
        let report = Acted {
            batch: self.batch.name.clone(),
            lines: self.lines,
            files: self.batch.files.len() + self.batch.removals.len(),
            restarts: self.restarts,
        };
        Ok(Acting::Through(Through { report, durations: self.durations }))
    }

    /// An id enters the ledger before its first write.
    fn intend(&mut self) -> Result<(), ApplyError> {
        let files = self.batch.files.iter().map(|file| (file_id(file), file.spec.inputs()));
        let units = self.batch.units.values().map(|part| (unit_id(part.spec), part.spec.inputs()));
        let ids: Vec<(Id, Digest)> = files.chain(units).collect();
        Ok(self.tools.ledger.intend(&ids)?)
    }

    /// Everything that can fail without anybody noticing: nothing is stopped, nothing is replaced.
    fn prepare(&mut self, lead: Lead) -> Result<(), HostError> {
        let host = self.tools.host;
        for (package, what) in &self.batch.packages {
            host.perform(&Step::Install(package))?;
            self.lines.push(format!("+ package {} ({what})", package.name));
        }
        for (artifact, what) in &self.batch.artifacts {
            host.perform(&Step::Unpack(artifact))?;
            self.lines.push(format!("+ {what} in {}", artifact.into));
        }
        let staged: Vec<_> = self
            .batch
            .files
            .iter()
            .filter(|file| matches!(file.change, FileChange::Create | FileChange::Content))
            .map(|file| file.spec)
            .collect();
        if !staged.is_empty() {
            host.perform(&Step::Stage(staged))?;
        }
        for unit in self.stopping() {
            for argv in &unit.before_stop {
                host.perform(&Step::Run { argv, user: "", within: TOOL })?;
            }
            if lead == Lead::Yes {
                for argv in &unit.transfer {
                    host.perform(&Step::Run { argv, user: "", within: TOOL })?;
                }
            }
        }
        Ok(())
    }

    fn stopping(&self) -> Vec<&'a UnitSpec> {
        let moves = self.batch.moves.iter().filter_map(|action| match action {
            UnitMove::Stop(unit) | UnitMove::Restart(unit) => Some(*unit),
            _ => None,
        });
        moves.collect()
    }

    fn exchange(&mut self) -> Result<Result<(), HostError>, ApplyError> {
        self.pend(Swapped::No)?;
        let mut stop_times = BTreeMap::new();
        for unit in self.stopping() {
            match self.stop(&unit.name, unit.stop_secs_max) {
                Ok(took) => drop(stop_times.insert(unit.name.clone(), took)),
                Err(error) => return Ok(Err(error)),
            }
        }
        if let Err(error) = self.replace()? {
            // The old files are still there: what we stopped runs with them again.
            for unit in self.stopping() {
                let within = Duration::from_secs(unit.start_secs_max);
                if let Err(again) = self.tools.host.perform(&Step::Start { unit: &unit.name, within }) {
                    tracing::error!(unit = %unit.name, error = %again, "could not be started again");
                }
            }
            return Ok(Err(error));
        }
        self.pend(Swapped::Yes)?;
        if let Err(error) = self.activate() {
            return Ok(Err(error));
        }
        if let Err(error) = self.start(&stop_times) {
            return Ok(Err(error));
        }
        self.remember()?;
        Ok(Ok(()))
    }

    fn stop(&mut self, unit: &UnitName, secs_max: u64) -> Result<Duration, HostError> {
        let within = Duration::from_secs(secs_max);
        Ok(self.tools.host.perform(&Step::Stop { unit, within })?.took)
    }

    /// Renames what was staged, sets attributes, removes what left.
    fn replace(&mut self) -> Result<Result<(), HostError>, ApplyError> {
        let host = self.tools.host;
        let mut owned: Vec<(Id, Owned)> = Vec::new();
        let swap = || -> Result<Vec<Done>, HostError> {
            let mut done = Vec::new();
            if self.batch.files.iter().any(|file| matches!(file.change, FileChange::Create | FileChange::Content)) {
                done.push(host.perform(&Step::Swap)?);
            }
            for file in &self.batch.files {
                if matches!(file.change, FileChange::Attributes { .. }) {
                    done.push(host.perform(&Step::SetAttributes(file.spec))?);
                }
            }
            for path in &self.batch.removals {
                done.push(host.perform(&Step::Remove(path))?);
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
                        content: stamp.map(|(_, digest)| *digest),
                        stamp: stamp.map(|(stamp, _)| *stamp),
                        written: true,
                        keep: file.spec.policy == Policy::Seed,
                    },
                ));
                self.lines.push(line_of(file));
            }
            self.tools.ledger.own(&owned)?;
            let gone: Vec<Id> =
                self.batch.removals.iter().map(|path| Id { kind: Kind::File, name: path.to_string() }).collect();
            self.lines.extend(gone.iter().map(|id| format!("- {id}")));
            self.tools.ledger.disown(&gone)?;
            self.tools.ledger.disown(&self.batch.forget)?;
        }
        Ok(result.map(drop))
    }

    /// systemd's own tools act on what changed.
    fn activate(&mut self) -> Result<(), HostError> {
        let host = self.tools.host;
        let touched = |part: &str| {
            let files = self.batch.files.iter().map(|file| &file.spec.path);
            files.chain(&self.batch.removals).any(|path| path.as_str().contains(part))
        };
        let activations = [
            ("/sysusers.d/", Activation::Sysusers),
            ("/tmpfiles.d/", Activation::Tmpfiles),
            ("/modules-load.d/", Activation::Modules),
            ("/sysctl.d/", Activation::Sysctl),
        ];
        for (part, activation) in activations {
            if touched(part) {
                host.perform(&Step::Activate(activation))?;
            }
        }
        if self.batch.daemon_reload || touched("/systemd/system/") {
            host.perform(&Step::DaemonReload)?;
        }
        for action in &self.batch.actions {
            host.perform(&Step::Act(action))?;
            self.lines.push(format!("action {}", action.name));
        }
        for action in &self.batch.moves {
            let name = &action.spec().name;
            let step = match action {
                UnitMove::Unmask(_) => Step::Unmask(name),
                UnitMove::Mask(_) => Step::Mask(name),
                UnitMove::Enable(_) => Step::Enable(name),
                UnitMove::Disable(_) => Step::Disable(name),
                UnitMove::Start(_) | UnitMove::Stop(_) | UnitMove::Restart(_) | UnitMove::Reload(_) => continue,
            };
            host.perform(&step)?;
            self.lines.push(format!("{} {name}", action.verb()));
        }
        Ok(())
    }

    fn start(&mut self, stop_times: &BTreeMap<UnitName, Duration>) -> Result<(), HostError> {
        let host = self.tools.host;
        for action in &self.batch.moves {
            let unit = action.spec();
            let within = Duration::from_secs(unit.start_secs_max);
            match action {
                UnitMove::Start(_) | UnitMove::Restart(_) => {
                    let took = host.perform(&Step::Start { unit: &unit.name, within })?.took;
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
                        host.perform(&Step::Run { argv, user: "", within: TOOL })?;
                    }
                }
                UnitMove::Reload(_) => {
                    host.perform(&Step::Reload { unit: &unit.name, within })?;
                    self.lines.push(format!("reload {}", unit.name));
                }
                UnitMove::Stop(_) => self.lines.push(format!("stop {}", unit.name)),
                UnitMove::Enable(_) | UnitMove::Disable(_) | UnitMove::Mask(_) | UnitMove::Unmask(_) => {}
            }
        }
        for unit in &self.batch.retire {
            host.perform(&Step::Stop { unit, within: TOOL })?;
            host.perform(&Step::Disable(unit))?;
            self.lines.push(format!("- {unit}: stopped, disabled"));
        }
        Ok(())
    }

    /// Before the first rename and after the last: which run of each unit still has the old inputs.
    fn pend(&mut self, swapped: Swapped) -> Result<(), ApplyError> {
        let pending = self.batch.units.values().map(|part| {
            let name = &part.spec.name;
            let invocation = self.tools.observed.units.get(name).map(|state| state.invocation.clone());
            let pending = Pending {
                restart: part.restart,
                reload: part.reload,
                invocation: invocation.unwrap_or_default(),
                boot_id: self.tools.observed.boot_id.clone(),
                swapped: swapped == Swapped::Yes,
            };
            (name.clone(), pending)
        });
        let pending: Vec<_> = pending.collect();
        Ok(self.tools.ledger.pend(&pending)?)
    }

    /// What each unit of the batch runs with now.
    fn remember(&mut self) -> Result<(), ApplyError> {
        let names: Vec<&UnitName> = self.batch.units.keys().collect();
        if !names.is_empty() {
            let query = Query { units: names, ..Query::default() };
            let known = self.tools.ledger.known()?;
            if let Ok(seen) = self.tools.host.observe(&query) {
                let mut ran = Vec::new();
                let mut owned = Vec::new();
                for (name, part) in &self.batch.units {
                    let invocation = seen.units.get(name).map(|state| state.invocation.clone()).unwrap_or_default();
                    let groups = self.plan.units.get(name).cloned().unwrap_or_default();
                    let mut now = RanWith::now(part.restart, part.reload, &invocation, &seen.boot_id, &groups);
                    now.settled = known.units.get(name).is_some_and(|ran| ran.settled);
                    ran.push((name.clone(), now));
                    let id = unit_id(part.spec);
                    let inputs = part.spec.inputs();
                    owned.push((id, Owned { inputs, content: None, stamp: None, written: true, keep: false }));
                }
                self.tools.ledger.ran(&ran)?;
                self.tools.ledger.own(&owned)?;
            }
        }
        let retired: Vec<Id> =
            self.batch.retire.iter().map(|unit| Id { kind: Kind::Unit, name: unit.to_string() }).collect();
        self.tools.ledger.disown(&retired)?;
        Ok(self.tools.ledger.forget_units(&self.batch.retire)?)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Swapped {
    No,
    Yes,
}

fn file_id(file: &FileWrite<'_>) -> Id {
    Id { kind: Kind::File, name: file.spec.path.to_string() }
}

fn unit_id(unit: &UnitSpec) -> Id {
    Id { kind: Kind::Unit, name: unit.name.to_string() }
}

fn line_of(file: &FileWrite<'_>) -> String {
    let mark = if file.change == FileChange::Create { "+" } else { "~" };
    let why = if file.why == Why::Drift { " (drift, put back)" } else { "" };
    match &file.change {
        FileChange::Attributes { from, to } => format!("{mark} {} {from} -> {to}{why}", file.spec.path),
        _ => format!("{mark} {}{why}", file.spec.path),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// An error with its causes, once each.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
