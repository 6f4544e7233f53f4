//! What a run has to say for itself: to the ledger, to the disk, to the store.
//!
//! Never: a commit as applied before it is durable.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::{PipelineError, Ran, World};
use crate::apply::Outcome;
use crate::disk;
use crate::fleet::agents;
use crate::host::{Host, HostError, Observed, Query};
use crate::ledger::{Ledger, LedgerError, Seal};
use crate::lock::quorum::Because;
use crate::lock::session::{self, Record};
use crate::lock::store::LockStore;
use crate::name::{GroupId, SecretName, UnitName};
use crate::pacing;
use crate::pause::Pause;
use crate::plan::fight::Fights;
use crate::plan::{Known, Owned, Plan, RanWith};
use crate::reason::{self, Exit, chain};
use crate::render::Desired;
use crate::report::{self, At, Ending, Note, Proof, Report, State, UnitHealth, metrics};
use crate::resource::file::{FileState, Policy};
use crate::resource::{Digest, Resource};
use crate::settle::{Settling, Vigil};

pub(super) struct Facts<'a> {
    pub(super) desired: &'a Desired,
    pub(super) plan: &'a Plan<'a>,
    /// Before anything was done.
    pub(super) known: &'a Known,
    pub(super) observed: &'a Observed,
    pub(super) outcome: Outcome,
    pub(super) settling: Settling,
    pub(super) at: At,
    pub(super) complaint: Option<Because>,
    pub(super) leads: Vec<GroupId>,
    pub(super) holds: Option<Record>,
    /// Before anything was done.
    pub(super) fights: Fights,
    pub(super) certificates: Vec<(SecretName, Timestamp)>,
    /// In force, with what is left of it.
    pub(super) pause: Option<(Pause, Duration)>,
    /// When a maintenance window of this node opens, if one is closed.
    pub(super) window_opens_in: Option<Duration>,
    /// Why the agent that is wanted does not run here settled.
    pub(super) agent: Option<Because>,
}

#[tracing::instrument(skip_all)]
pub(super) fn publish(world: &mut World<'_>, facts: Facts<'_>, interests: Vec<String>) -> Result<Ran, PipelineError> {
    let Facts { desired, plan, known, observed, outcome, settling, at, complaint, leads, holds, fights, .. } = facts;
    let Facts { certificates, window_opens_in, agent, pause, .. } = facts;
    let (pause, pause_left) = pause.unzip();
    let paused = pause.as_ref().map(|pause| pause.because(&observed.boot_id, world.clock));
    let fights = fight_on(world, fights, &outcome, observed)?;
    let ran = world.ledger.units()?;
    let settled_again = session::read_record(&world.paths.hold());
    let unsettled = plan.units.iter().any(|(unit, groups)| {
        let wanted = plan.running.contains(unit) && !groups.is_empty();
        wanted && ran.get(unit).is_none_or(|ran| !ran.settled)
    });
    // A record that stays when all else is well was not given back, or could not be read.
    let stays = outcome.is_converged() && settling.is_over();
    let unread = settled_again.as_ref().filter(|record| stays && record.phase == session::RecordPhase::Failed);
    let settles = |record: &Record| stays || record.phase == session::RecordPhase::Settling;
    let acted_now = unsettled || unread.is_none() && settled_again.as_ref().is_some_and(settles);
    let converged = outcome.is_converged() && settling.is_over() && settled_again.is_none() && !unsettled;
    let mut report = blank(world, &at)?;
    report.drift_repaired = world.ledger.count_drift(outcome.drifted.len() as u64)?;
    let audited = plan.audit.iter().map(|file| file.spec.path.to_string());
    report.audit = audited.chain(plan.strangers.iter().map(ToString::to_string)).collect();
    report.leads = leads;
    report.holds(holds.as_ref());
    report.singletons = world.singletons.held();
    report.certificates = certificates.into_iter().map(|(secret, expires)| Ending { secret, expires }).collect();
    report.pause = pause;
    report.units = unit_health(world.host, desired, &ran, &outcome)?;
    let note = |(batch, because): &(String, Because)| Note::new(batch, because.clone());
    let fought: Vec<(String, Because)> =
        fights.told().into_iter().map(|(path, because)| (path.to_string(), because)).collect();
    report.notes = outcome.failed.iter().chain(&outcome.deferred).chain(&fought).map(note).collect();
    let first = |list: &[(String, Because)]| list.first().map(|(_, because)| because.clone());
    // A member that was restarted in this very run is judged from now on, whatever it was before.
    let failed_before = settling.failed.clone().filter(|_| !acted_now);
    let main = failed_before
        .map(|because| (State::Failed, because))
        .or_else(|| first(&outcome.failed).map(|because| (State::Failed, because)))
        .or_else(|| {
            let record = unread.filter(|_| !unsettled)?;
            let sentence = format!("a hold for {}: {}", record.batch, record.why);
            Some((State::Failed, Because::new(reason::GATE_FAILED, None, sentence)))
        })
        .or_else(|| {
            let words = || Because::new(reason::REBOOTING, None, reason::REBOOTING.sentence.to_owned());
            outcome.rebooting.then(|| (State::Applying, words()))
        })
        .or_else(|| settling.settling.clone().map(|because| (State::Applying, because)))
        .or_else(|| {
            acted_now.then(|| (State::Applying, Because::new(reason::SETTLING, None, "restarted, settling".to_owned())))
        })
        .or_else(|| paused.clone().map(|because| (State::Paused, because)))
        .or_else(|| first(&outcome.deferred).map(|because| (State::Waiting, because)))
        .or_else(|| first(&fought).map(|because| (State::Waiting, because)));
    // A fight is about drift: the commit itself was live.
    if converged {
        let changed = world.ledger.applied()?.as_ref() != Some(&at);
        if changed || !outcome.done.is_empty() {
            world.ledger.set_applied(&at, world.clock.now(), &summary(&outcome))?;
        }
        report.applied = Some(at.clone());
    }
    let untouched = converged && outcome.done.is_empty() && plan.resting.is_empty();
    let seal = untouched.then(|| seal(world.local, &at, desired, observed)).flatten();
    world.ledger.set_seal(seal)?;
    // After a change the ledger knows more than this run saw; the next run sees it.
    if outcome.done.is_empty() && outcome.failed.is_empty() {
        freshen(world.ledger, known, observed)?;
    }
    let (state, because) = match (main, complaint) {
        (Some((state, because)), complaint) => {
            // A refusal stays visible beside a failure or a wait of our own.
            report.notes.extend(complaint.map(Note::of_source));
            (state, Some(because))
        }
        (None, Some(because)) => (State::of_source(because.reason()), Some(because)),
        (None, None) => (State::Converged, None),
    };
    report.notes.extend(agent.clone().map(|because| Note::new(agents::group_id().to_string(), because)));
    let agent_waits = agent.as_ref().is_some_and(|because| because.reason().exit == Exit::Waiting);
    // What is applied is; that another agent should do it comes last.
    let (state, because) = match (state, agent) {
        (State::Converged, Some(agent)) if agent_waits => (State::Waiting, Some(agent)),
        (State::Converged, Some(agent)) => (State::Failed, Some(agent)),
        (state, _) => (state, because),
    };
    report.state = state;
    if let Some(because) = because {
        report.explain(because);
    }
    tell(world, &mut report)?;
    let waits = |(_, because): &(String, Because)| because.reason() != reason::PAUSED;
    let waiting = outcome.deferred.iter().any(waits) || outcome.rebooting || agent_waits && paused.is_none();
    let again_in = match (settling.again_in, acted_now, waiting) {
        (Some(again), _, _) => Some(again),
        (None, true, _) => Some(Vigil::FIRST_LOOK),
        // Nothing but its window ends this wait.
        (None, false, true) if window_opens_in.is_some() && outcome.waits_for(reason::OUTSIDE_WINDOW) => {
            window_opens_in
        }
        // Watches bring us back at once; this is for when they are lost.
        (None, false, true) => Some(Duration::from_secs(10).max(pacing::in_a_crowd(interests.len()) * 3)),
        (None, false, false) => None,
    };
    let now = world.clock.now();
    let put_back = fights.next(now).map(|next| next.duration_since(now).try_into().unwrap_or(Duration::ZERO));
    let again_in = again_in.into_iter().chain(put_back).chain(pause_left).min();
    let lines = outcome.done.iter().flat_map(|acted| acted.lines.iter().cloned()).collect();
    let managed = desired
        .resources
        .iter()
        .filter_map(|placed| match &placed.resource {
            // What a service makes of its seed is its own.
            Resource::File(spec) => (spec.policy != Policy::Seed).then(|| spec.path.clone()),
            _ => None,
        })
        .collect();
    let (managed, interests, resting) = (Some(managed), Some(interests), fights.resting(now).into_iter().collect());
    Ok(Ran { report, lines, plan: None, again_in, still: false, managed, resting, interests })
}

/// The fights that are on at this commit.
pub(super) fn fights_now(world: &World<'_>, at: &At) -> Result<Fights, PipelineError> {
    let (fights, over) = world.ledger.fights()?.still(&at.commit, world.clock.now());
    for path in over {
        tracing::info!(%path, "nobody else writes it any more, or there is another commit: it is put back at once again");
    }
    Ok(fights)
}

/// With what was put back in this run.
fn fight_on(
    world: &mut World<'_>,
    mut fights: Fights,
    outcome: &Outcome,
    observed: &Observed,
) -> Result<Fights, PipelineError> {
    for path in &outcome.drifted {
        if fights.repaired(path, observed.files.get(path), world.clock.now()) {
            tracing::warn!(%path, reason = reason::DRIFT_FIGHT.id, "{}", reason::DRIFT_FIGHT.sentence);
        }
    }
    world.ledger.set_fights(&fights)?;
    Ok(fights)
}

fn summary(outcome: &Outcome) -> String {
    let files: usize = outcome.done.iter().map(|acted| acted.files).sum();
    let restarts: usize = outcome.done.iter().map(|acted| acted.restarts).sum();
    format!("{files} files, {restarts} restarts")
}

fn unit_health(
    host: &dyn Host,
    desired: &Desired,
    ran: &BTreeMap<UnitName, RanWith>,
    outcome: &Outcome,
) -> Result<BTreeMap<UnitName, UnitHealth>, HostError> {
    let units = desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::Unit(spec) => Some(&spec.name),
        _ => None,
    });
    let query = Query { units: units.collect(), ..Query::default() };
    let observed = host.observe(&query)?;
    let health = observed.units.iter().map(|(name, state)| {
        let (stop, start) = outcome.durations.get(name).copied().unwrap_or_default();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let settled = ran.get(name).is_some_and(|ran| ran.settled);
        (name.clone(), UnitHealth { active: state.active, settled, stop_ms: millis(stop), start_ms: millis(start) })
    });
    Ok(health.collect())
}

/// `None`: a file changed too short a time ago for its stamp to prove anything.
fn seal(key: Digest, at: &At, desired: &Desired, observed: &Observed) -> Option<Seal> {
    let mut files = Vec::new();
    for placed in &desired.resources {
        let Resource::File(spec) = &placed.resource else { continue };
        match observed.files.get(&spec.path) {
            Some(FileState::Regular(seen)) if seen.stamp.ctime_ns != 0 => {
                files.push((spec.path.clone(), seen.stamp));
            }
            _ if spec.policy == Policy::Enforce => return None,
            _ => {}
        }
    }
    let units = observed.units.iter().map(|(name, state)| (name.clone(), state.clone())).collect();
    Some(Seal { key, at: at.clone(), files, units })
}

/// What was hashed again because its stamp had moved need not be hashed next time.
fn freshen(ledger: &mut Ledger, known: &Known, observed: &Observed) -> Result<(), LedgerError> {
    let fingerprints = ledger.fingerprints();
    let moved = known.owned.iter().filter_map(|(id, owned)| {
        let FileState::Regular(seen) = observed.files.get(id.name.as_str())? else { return None };
        let same = owned.content == Some(fingerprints.of(seen.digest));
        let fresh = same && owned.stamp != Some(seen.stamp) && seen.stamp.ctime_ns != 0;
        fresh.then(|| (id.clone(), Owned { stamp: Some(seen.stamp), ..owned.clone() }))
    });
    let moved: Vec<_> = moved.collect();
    ledger.own(&moved)
}

pub(super) fn blank(world: &mut World<'_>, at: &At) -> Result<Report, PipelineError> {
    Ok(Report {
        applied: world.ledger.applied()?,
        target: Some(at.clone()),
        drift_repaired: world.ledger.drift_repaired()?,
        proven: proven(world)?,
        agent_sha256: world.updater.settled(),
        store_epoch: session::read_pin(&world.paths.store_pin())?.ok().flatten().map_or(0, |pin| pin.epoch),
        warnings: world.store.map(LockStore::warnings).unwrap_or_default(),
        ..Report::new(&world.settings.node, &world.settings.environment, world.clock.now())
    })
}

/// What settled here. Where two machines write under one name it is nobody's evidence.
pub(super) fn proven(world: &World<'_>) -> Result<BTreeMap<GroupId, Proof>, LedgerError> {
    if world.doubled.is_some() { Ok(BTreeMap::new()) } else { world.ledger.proven() }
}

/// The disk and the store may be what is wrong: each is told as far as it listens.
pub(super) fn tell_error(world: &World<'_>, error: &PipelineError) {
    let last = report::read(&world.paths.report());
    let now = world.clock.now();
    let fresh = || Report::new(&world.settings.node, &world.settings.environment, now);
    let mut report = last.unwrap_or_else(fresh);
    report.state = match error {
        PipelineError::NothingToEnforce(because) => State::of_source(because.reason()),
        _ => State::Failed,
    };
    report.explain(match error {
        PipelineError::NothingToEnforce(because) => (**because).clone(),
        _ => Because::new(error.reason(), None, chain(error)),
    });
    report.notes.clear();
    if world.doubled.is_some() {
        report.proven.clear();
    }
    (report.since, report.at) = (now, now);
    if let Err(error) = tell(world, &mut report) {
        tracing::warn!("the report cannot be written: {}", chain(&error));
        if let Ok(store) = world.store
            && let Err(error) = report::publish(store, &report)
        {
            tracing::warn!(%error, "the report did not reach the store");
        }
    }
}

/// To the disk and to the store, if it says something new.
pub(super) fn tell(world: &World<'_>, report: &mut Report) -> Result<(), PipelineError> {
    let last = report::read(&world.paths.report());
    report.goes_on_from(last.as_ref());
    report.untold = last.as_ref().is_none_or(|last| last.untold || report.differs(last));
    report::write(&world.paths.report(), report)?;
    let (true, Ok(store)) = (report.untold, world.store) else { return Ok(()) };
    if let Err(error) = report::publish(store, report) {
        tracing::warn!(%error, "the report did not reach the store; the next run tells it");
        return Ok(());
    }
    report.untold = false;
    Ok(report::write(&world.paths.report(), report)?)
}

/// What was told last, for Prometheus. Nothing depends on it.
pub(super) fn expose(world: &World<'_>, took: Duration) {
    let Some(report) = report::read(&world.paths.report()) else { return };
    let path = world.settings.textfile.clone().unwrap_or_else(|| world.paths.metrics());
    if let Err(error) = disk::write_atomic(&path, metrics::exposition(&report, took).as_bytes(), 0o644) {
        tracing::warn!("metrics are not written: {}", chain(&error));
    }
}
