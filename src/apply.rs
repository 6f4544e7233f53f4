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
use crate::lock::quorum::{Because, Ground};
use crate::lock::session::{Entry, Intent, RecordPhase, Session};
use crate::name::{HostPath, RoleName, UnitName};
use crate::plan::batch::Phase;
use crate::plan::{Batch, FileWrite, HoldNeed, Owned, Pending, Plan, RanWith, UnitMove, Why};
use crate::probe::Health;
use crate::reason::{self, chain};
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
    settle_interrupted(plan, &outcome, tools)?;
    Ok(outcome)
}

/// An agent died between arming and the end of a batch, and the batch is not there any more, or cannot go on: what its
/// hold covers is live by now (units are started without asking), so it settles as after any start.
fn settle_interrupted(plan: &Plan<'_>, outcome: &Outcome, tools: &mut Tools<'_>) -> Result<(), ApplyError> {
    let Some(record) = tools.session.record() else { return Ok(()) };
    if !matches!(record.phase, RecordPhase::Acting | RecordPhase::Repairing) {
        return Ok(());
    }
    let covered = |batch: &Batch<'_>| record.holds.iter().any(|(hold, _)| batch.groups.contains(&hold.group));
    let done = |batch: &Batch<'_>| outcome.done.iter().any(|done| done.batch == batch.name);
    let open = plan.batches.iter().any(|batch| covered(batch) && !done(batch));
    let units = record.holds.iter().flat_map(|(hold, _)| &hold.units);
    let units: BTreeSet<UnitName> = units.map(|unit| UnitName::new(unit.clone())).collect();
    let units: Vec<&UnitName> = units.iter().filter(|unit| plan.running.contains(*unit)).collect();
    let healthy = || {
        let asked = record.holds.iter().filter_map(|(hold, _)| tools.session.own_health(&hold.group));
        asked.map(|evidence| evidence.health).all(|health| health == Health::Healthy)
    };
    if units.is_empty() && !open {
        tools.session.nothing_to_settle()?;
    } else if all_run(&units, tools) && (!open || healthy()) {
        tools.session.acted()?;
    }
    Ok(())
}

/// Whether all of them run now; unknown is no.
fn all_run(units: &[&UnitName], tools: &Tools<'_>) -> bool {
    let seen = tools.host.observe(&Query { units: units.to_vec(), ..Query::default() });
    seen.is_ok_and(|seen| units.iter().all(|unit| seen.units.get(*unit).is_some_and(|state| state.is_running())))
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
    if let Some(first) = batch.blocked.first() {
        let what: Vec<String> = batch.blocked.iter().map(|one| format!("{}: {}", one.id, one.why)).collect();
        let sealed = batch.blocked.iter().find(|one| one.reason == reason::SECRET_UNREADABLE);
        let reason = sealed.unwrap_or(first).reason;
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
    let units: Vec<&UnitName> = batch.units.keys().chain(&batch.retire).collect();
    let intent = Intent {
        batch: &batch.name,
        groups: batch.groups.iter().cloned().collect(),
        units: units.iter().map(ToString::to_string).collect(),
        running: units.iter().any(|unit| tools.observed.units.get(*unit).is_some_and(|state| state.is_running())),
        start_secs_max: batch.units.values().map(|part| part.spec.start_secs_max).max().unwrap_or(0),
    };
    let entry = tools.session.enter(&intent)?;
    if matches!(entry, Entry::Deferred(_)) {
        start_as_it_was(batch, tools)?;
    }
    let lead = match entry {
        Entry::Deferred(because) if because.reason() == reason::GATE_FAILED => return Ok(Taken::Failed(because)),
        Entry::Deferred(because) => return Ok(Taken::Deferred(because)),
        Entry::Act { ground: Ground::Down, .. } if came_back(batch, tools) => {
            tools.session.nothing_to_settle()?;
            let sentence = format!("{} came back by itself; planned afresh", batch.name);
            return Ok(Taken::Deferred(Because::new(reason::SETTLING, None, sentence)));
        }
        Entry::Act { leads: true, .. } => Lead::Yes,
        Entry::Act { leads: false, .. } => Lead::No,
    };
    let repairs = tools.session.record().is_some_and(|record| record.phase == RecordPhase::Repairing);
    Ok(match Act::new(batch, plan, tools).run(lead)? {
        Acting::Through(mut through) => {
            let names: Vec<&str> = batch.groups.iter().map(|group| group.as_str()).collect();
            through.report.lines.insert(0, format!("hold {}: claimed, asked, armed", names.join(", ")));
            // What needs no settling gives back at once: nothing was stopped or started, or nothing is meant to run.
            let disturbed =
                batch.moves.iter().any(|action| !matches!(action, UnitMove::Enable(_) | UnitMove::Disable(_)));
            if units.iter().any(|unit| plan.running.contains(*unit)) && (disturbed || repairs) {
                tools.session.acted()?;
            } else {
                tools.session.nothing_to_settle()?;
            }
            Taken::Acted(through)
        }
        Acting::NothingStopped(because) => {
            tools.session.nothing_stopped(&because.sentence)?;
            Taken::Failed(because)
        }
        Acting::Broken(because) => {
            tools.session.broken(&because.sentence)?;
            Taken::Failed(because)
        }
    })
}

/// What is new must wait; a unit that is down starts meanwhile with what it last ran with.
fn start_as_it_was(batch: &Batch<'_>, tools: &mut Tools<'_>) -> Result<(), ApplyError> {
    let known = tools.ledger.known()?;
    for action in &batch.moves {
        let UnitMove::Start(unit) = action else { continue };
        let name = &unit.name;
        let whole = known.pending.get(name).is_none_or(|pending| pending.swapped);
        if !known.units.contains_key(name) || !whole {
            continue;
        }
        let within = Duration::from_secs(unit.start_secs_max);
        match tools.host.perform(&Step::Start { unit: name, within }) {
            Ok(_) => tracing::info!(unit = %name, "started with what it last ran with"),
            Err(error) => tracing::error!(unit = %name, error = %chain(&error), "could not be started"),
        }
    }
    Ok(())
}

/// A member was allowed to go because it was down; at the moment of acting it runs, and does not say that it is sick.
fn came_back(batch: &Batch<'_>, tools: &Tools<'_>) -> bool {
    let units: Vec<&UnitName> = batch.units.keys().chain(&batch.retire).collect();
    let Ok(seen) = tools.host.observe(&Query { units, ..Query::default() }) else { return true };
    let sick = |group| {
        let health = tools.session.own_health(group).map(|evidence| evidence.health);
        matches!(health, Some(Health::Unhealthy(_)))
    };
    seen.units.values().any(|state| state.is_running()) && !batch.groups.iter().all(sick)
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
                        secret: file.spec.content.is_secret(),
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
                    owned.push((
                        id,
                        Owned { inputs, content: None, stamp: None, written: true, secret: false, keep: false },
                    ));
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
