//! Carries out a plan, batch by batch; takes the hold where the plan says that one is needed.
//!
//! Within a batch: packages, archives unpacked, staging and validation, the steps before the stop, stop, exchange, start. A
//! batch that fails leaves its dependants alone and lets the others go on. Never: a choice of what or in which order.

mod act;
mod cluster_action;
mod noted;
mod risky;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use act::{Act, Acting, Lead};
use noted::artifact_id;

use crate::disk::DiskError;
use crate::fleet::LANES;
use crate::host::{Host, HostError, Observed, Query, Step, Words};
use crate::ledger::{Intention, Ledger, LedgerError};
use crate::lock::quorum::Because;
use crate::lock::session::{Entry, Intent, RecordPhase, Session};
use crate::name::{ClusterName, GroupId, HostPath, RoleName, UnitName};
use crate::plan::batch::{Phase, Unpacking};
use crate::plan::risk::Area;
use crate::plan::{Batch, HoldNeed, Owned, Plan, UnitMove, Unsteady};
use crate::probe::Health;
use crate::reason::{self, Reason, chain};
use crate::resource::unit::mount_point;

/// What became of a plan.
#[derive(Default)]
pub struct Outcome {
    pub done: Vec<Acted>,
    /// With what would end the wait.
    pub deferred: Vec<(String, Because)>,
    /// With the error, its causes included.
    pub failed: Vec<(String, Because)>,
    /// Files that somebody else had changed, and that were put back.
    pub drifted: Vec<HostPath>,
    /// The machine goes down: nothing is over.
    pub rebooting: bool,
    /// Stop and start times of units, as seen in this run.
    pub durations: BTreeMap<UnitName, (Duration, Duration)>,
}

impl Outcome {
    pub fn is_converged(&self) -> bool {
        self.deferred.is_empty() && self.failed.is_empty() && !self.rebooting
    }

    /// Whether all that is left waits for this.
    pub fn waits_for(&self, reason: Reason) -> bool {
        !self.rebooting && self.deferred.iter().all(|(_, because)| because.reason() == reason)
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
    pub reach: &'a Reach<'a>,
}

/// How a node-risk batch is confirmed.
pub struct Reach<'a> {
    /// What the node reaches now, of what a mistake in these areas would take away: in words that stay the same.
    pub ask: &'a dyn Fn(&BTreeSet<Area>) -> BTreeSet<String>,
    /// Waits until it is worth asking again.
    pub pause: &'a dyn Fn(),
}

impl Reach<'_> {
    /// Of a sandbox: nothing is reached, so nothing can be lost.
    pub const NOTHING: Reach<'static> = Reach { ask: &|_| BTreeSet::new(), pause: &|| {} };
}

pub fn apply(plan: &Plan<'_>, tools: &mut Tools<'_>) -> Result<Outcome, ApplyError> {
    let mut outcome = Outcome::default();
    let mut failed_roles: BTreeSet<RoleName> = BTreeSet::new();
    let mut not_mounted: Vec<String> = Vec::new();
    let mut still_runs: Option<Because> = None;
    tools.ledger.ran(&plan.adopt)?;
    tools.ledger.bring_back(&plan.back)?;
    tools.ledger.set_uses(&plan.uses)?;
    adopt(plan, tools)?;
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
        if let Some(point) = not_mounted.iter().find(|point| batch.writes_below(point)) {
            let because = Because::new(reason::DEPENDENCY_FAILED, None, format!("{point} could not be mounted"));
            outcome.failed.push((batch.name.clone(), because));
            continue;
        }
        // What a unit used goes when the unit has stopped.
        if let Some(because) = still_runs.clone().filter(|_| batch.phase == Phase::Removal && batch.retire.is_empty()) {
            outcome.deferred.push((batch.name.clone(), because));
            continue;
        }
        // A reboot comes when all else is done: it must not hide what is not. So does an action for the whole cluster, which
        // speaks for a member that is as its commit says.
        let last = !batch.reboot.is_empty() || batch.elects.is_some();
        let open = outcome.failed.iter().chain(&outcome.deferred).map(|(_, because)| because).next();
        if let Some(because) = open.filter(|_| last).cloned() {
            outcome.deferred.push((batch.name.clone(), because));
            continue;
        }
        let span = tracing::info_span!("batch", name = %batch.name);
        let _in = span.enter();
        let taken = take(batch, plan, tools)?;
        if batch.phase == Phase::Mounts && !matches!(taken, Taken::Acted(_)) {
            not_mounted.extend(batch.units.keys().filter_map(mount_point));
        }
        if let (Taken::Deferred(because) | Taken::Failed(because), false) = (&taken, batch.retire.is_empty()) {
            still_runs.get_or_insert_with(|| because.clone());
        }
        match taken {
            Taken::Deferred(because) => outcome.deferred.push((batch.name.clone(), because)),
            Taken::Failed(because) => {
                if matches!(batch.phase, Phase::Users | Phase::Role) {
                    failed_roles.extend(batch.role.clone());
                }
                outcome.failed.push((batch.name.clone(), because));
            }
            Taken::Acted(acted) => {
                outcome.drifted.extend(batch.drifted().cloned());
                outcome.rebooting |= !batch.reboot.is_empty();
                for line in &acted.report.lines {
                    tracing::info!("{line}");
                }
                outcome.durations.extend(acted.durations);
                outcome.done.push(acted.report);
            }
        }
    }
    if !outcome.rebooting {
        settle_interrupted(plan, &outcome, tools)?;
    }
    for (unit, how) in &plan.unsteady {
        match how {
            Unsteady::Starting => {
                let because = Because::new(reason::SETTLING, None, format!("{unit} is not ready since it was started"));
                outcome.deferred.push((unit.to_string(), because));
            }
            Unsteady::Died => {
                let sentence = format!("{unit} failed after it was started; started again");
                outcome.failed.push((unit.to_string(), Because::new(reason::APPLY_FAILED, None, sentence)));
            }
        }
    }
    let open: BTreeSet<&ClusterName> = plan.batches.iter().filter_map(|batch| batch.elects.as_ref()).collect();
    let over: Vec<ClusterName> = plan.elects.iter().filter(|cluster| !open.contains(cluster)).cloned().collect();
    if !over.is_empty() {
        tools.session.free_turns(over);
    }
    Ok(outcome)
}

/// Says of what a run wrote that died before it could say so.
fn adopt(plan: &Plan<'_>, tools: &mut Tools<'_>) -> Result<(), ApplyError> {
    let files = plan.adopted.iter().filter(|adopted| adopted.seen.is_some());
    let files: Vec<HostPath> = files.map(|adopted| HostPath::new(adopted.id.name.clone())).collect();
    if !files.is_empty()
        && let Err(error) = tools.host.perform(&Step::Sync(files.iter().collect()))
    {
        tracing::warn!(error = %chain(&error), "what an earlier run wrote is not noted yet");
        return Ok(());
    }
    let fingerprints = tools.ledger.fingerprints();
    let owned = plan.adopted.iter().map(|adopted| {
        let owned = Owned {
            inputs: adopted.inputs,
            content: adopted.seen.map(|(digest, _)| fingerprints.of(digest)),
            stamp: adopted.seen.map(|(_, stamp)| stamp),
            written: true,
            secret: adopted.secret,
            secret_comes: false,
            keep: adopted.keep,
            owed: adopted.owed,
        };
        (adopted.id.clone(), owned)
    });
    let owned: Vec<_> = owned.collect();
    Ok(tools.ledger.own(&owned)?)
}

/// An agent died between arming and the end of a batch, and the batch is not there any more, or cannot go on: what its
/// hold covers is live by now (units are started without asking), so it settles as after any start.
fn settle_interrupted(plan: &Plan<'_>, outcome: &Outcome, tools: &mut Tools<'_>) -> Result<(), ApplyError> {
    let Some(record) = tools.session.record() else { return Ok(()) };
    let lent = record.is_lent(&tools.session.boot_id);
    if lent || !matches!(record.phase, RecordPhase::Acting | RecordPhase::Repairing) {
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
    let changes = record.holds.iter().any(|(hold, _)| !hold.change.is_none());
    if units.is_empty() && !open && changes {
        // Whether the vote came or went is for the others to say.
        tools.session.acted()?;
    } else if units.is_empty() && !open {
        tools.session.nothing_to_settle()?;
    } else if all_run(&units, tools) && (!open || healthy()) {
        // Nothing of it is left to do: its commit is live, if it is still the one that is wanted.
        match !open && record.commit == tools.session.commit {
            true => tools.session.acted()?,
            false => tools.session.interrupted()?,
        }
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
    if let Some(cluster) = &batch.elects {
        return Ok(cluster_action::take(batch, cluster, tools));
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
    // What takes long and disturbs nobody is done before anybody has to wait for this node.
    if let Err(error) = unpack(batch, tools)? {
        start_as_it_was(batch, tools)?;
        return Ok(Taken::Failed(Because::new(reason_of(&error), None, chain(&error))));
    }
    let units = disturbed(batch, plan);
    let lanes = batch.groups.iter().any(|group| group.as_str() == LANES);
    let runs = |unit: &&UnitName| tools.observed.units.get(*unit).is_some_and(|state| state.is_running());
    let intent = Intent {
        batch: &batch.name,
        groups: batch.groups.iter().cloned().collect(),
        units: units.iter().map(ToString::to_string).collect(),
        running: lanes || units.iter().any(runs),
        takes_node: batch.takes_node(),
        start_secs_max: batch.units.values().map(|part| part.spec.start_secs_max).max().unwrap_or(0),
        change: batch.change.clone(),
    };
    let entry = tools.session.enter(&intent)?;
    if matches!(entry, Entry::Deferred(_)) {
        start_as_it_was(batch, tools)?;
    }
    let lead = match entry {
        Entry::Deferred(because) if because.reason() == reason::GATE_FAILED => return Ok(Taken::Failed(because)),
        Entry::Deferred(because) => return Ok(Taken::Deferred(because)),
        Entry::Act { down, .. } if !down.is_empty() && came_back(&units, &down, tools) => {
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
            if !batch.reboot.is_empty() {
                // It goes on in the next boot: the record stays as it is until then.
                return Ok(Taken::Acted(through));
            }
            // What needs no settling gives back at once: nothing was stopped or started, or nothing is meant to run.
            let disturbed =
                batch.moves.iter().any(|action| !matches!(action, UnitMove::Enable(_) | UnitMove::Disable(_)));
            let runs = units.iter().any(|unit| plan.running.contains(*unit));
            if !batch.change.is_none() || !batch.risk.is_empty() || runs && (disturbed || repairs) {
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

/// Archives are fetched and unpacked; what is live stays as it is, and so does what the ledger knows of it. A new id is in
/// the ledger before its first write.
fn unpack(batch: &Batch<'_>, tools: &mut Tools<'_>) -> Result<Result<(), HostError>, ApplyError> {
    if batch.artifacts.is_empty() {
        return Ok(Ok(()));
    }
    let known = tools.ledger.known()?;
    let ids = batch.artifacts.iter().map(|artifact| (artifact_id(artifact), artifact.spec.inputs()));
    let new = ids.filter(|(id, _)| !known.owned.contains_key(id));
    let new: Vec<Intention> = new.map(|(id, inputs)| Intention { id, inputs, secret: false, owed: false }).collect();
    tools.ledger.intend(&new)?;
    let unpacked = |artifact: &Unpacking<'_>| tools.host.perform(&Step::Unpack(artifact.spec)).map(drop);
    Ok(batch.artifacts.iter().try_for_each(unpacked))
}

fn reason_of(error: &HostError) -> Reason {
    match error {
        HostError::Command { .. } => reason::STEP_FAILED,
        other => other.reason(),
    }
}

/// The units that are away while the batch acts: its own, and all that a group protects if it can take the node away.
fn disturbed<'p>(batch: &'p Batch<'_>, plan: &'p Plan<'_>) -> Vec<&'p UnitName> {
    let own = batch.units.keys().chain(&batch.retire).chain(&batch.again);
    let whole = plan.units.iter().filter(|(_, groups)| batch.takes_node() && !groups.is_empty());
    own.chain(whole.map(|(unit, _)| unit)).collect::<BTreeSet<_>>().into_iter().collect()
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
        match tools.host.perform(&Step::Start { unit: name, within, words: words(batch) }) {
            Ok(_) => tracing::info!(unit = %name, "started with what it last ran with"),
            Err(error) => tracing::error!(unit = %name, error = %chain(&error), "could not be started"),
        }
    }
    Ok(())
}

/// A member was allowed to go because it was down; at the moment of acting it runs, and does not say that it is sick.
fn came_back(units: &[&UnitName], down: &[GroupId], tools: &Tools<'_>) -> bool {
    let Ok(seen) = tools.host.observe(&Query { units: units.to_vec(), ..Query::default() }) else { return true };
    let sick = |group| {
        let health = tools.session.own_health(group).map(|evidence| evidence.health);
        matches!(health, Some(Health::Unhealthy(_)))
    };
    seen.units.values().any(|state| state.is_running()) && !down.iter().all(sick)
}

fn words(batch: &Batch<'_>) -> Words {
    if batch.secrets_near { Words::Kept } else { Words::Told }
}
