//! Somebody else wants to reboot this machine: the same holds as for a reboot of our own, lent until the machine is back.
//!
//! Never: a yes before the record is on disk; never: a yes that was not heard and is kept.

use std::collections::BTreeSet;

use super::{PipelineError, Ran, World};
use crate::apply::Outcome;
use crate::fleet::MemberChange;
use crate::fleet::select::NodeSpec;
use crate::fleetlock::desk::Asked;
use crate::fleetlock::protocol::{Answer, Call, Refusal};
use crate::host::{Host, Query};
use crate::ledger::Ledger;
use crate::lock::lent::Permission;
use crate::lock::quorum::Because;
use crate::lock::session::{self, Intent, RecordPhase, Session};
use crate::name::{GroupId, UnitName};
use crate::plan::{Plan, reboot, risk};
use crate::probe::Health;
use crate::reason;

/// Answers who asked, with all else done, and says of a permission that nobody uses.
pub(super) fn serve(
    asked: &mut Option<Asked>,
    mut outcome: Outcome,
    plan: &Plan<'_>,
    session: &Session<'_>,
    host: &dyn Host,
    ledger: &Ledger,
    spec: &NodeSpec<'_>,
) -> Result<Outcome, PipelineError> {
    if let Some(asked) = asked.take() {
        let call = asked.call();
        let because = match call {
            Call::PreReboot => pre_reboot(&outcome, plan, session, ledger, spec)?,
            Call::SteadyState => steady_state(session, host)?,
        };
        if let (Call::PreReboot, Some(because), true) = (call, &because, session.lent().is_some()) {
            // Whoever hears a no does not reboot.
            session.take_back(&because.sentence)?;
        }
        let answer = because.map_or(Ok(()), |because| Err(Refusal::of(because.reason(), because.sentence)));
        if asked.answer(answer).is_err() && call == Call::PreReboot && session.lent().is_some() {
            session.take_back("whoever asked did not wait for the answer")?;
        }
    }
    match session.permission() {
        Permission::Nobody => {}
        Permission::Fresh => outcome.rebooting = true,
        Permission::Unused(because) => outcome.failed.push((reboot::BY_ANOTHER.to_owned(), because)),
    }
    Ok(outcome)
}

/// What the run did not come to: whoever waits is told why.
pub(super) fn unanswered(world: &mut World<'_>, ran: &Result<Ran, PipelineError>) {
    let Some(asked) = world.asked.take() else { return };
    let nothing_held = session::read_record(&world.paths.hold()).is_none();
    let answer: Answer = match ran {
        _ if asked.call() == Call::SteadyState && nothing_held => Ok(()),
        Ok(ran) => {
            let reason = reason::by_id(&ran.report.reason).unwrap_or(reason::INTERNAL);
            Err(Refusal::of(reason, ran.report.sentence.clone()))
        }
        Err(error) => Err(Refusal::of(error.reason(), reason::chain(error))),
    };
    if asked.answer(answer).is_err() {
        tracing::debug!("whoever asked did not wait for the answer");
    }
}

/// `None`: the machine may reboot now.
fn pre_reboot(
    outcome: &Outcome,
    plan: &Plan<'_>,
    session: &Session<'_>,
    ledger: &Ledger,
    spec: &NodeSpec<'_>,
) -> Result<Option<Because>, PipelineError> {
    let open = outcome.failed.iter().chain(&outcome.deferred).next();
    // A reboot must not hide what is not done.
    if let Some((batch, because)) = open {
        return Ok(Some(Because { sentence: format!("{batch}: {}", because.sentence), ..because.clone() }));
    }
    if outcome.rebooting && session.lent().is_none() {
        return Ok(Some(Because::new(reason::REBOOTING, None, "the machine reboots already".to_owned())));
    }
    let known = ledger.known()?;
    // Nobody would miss it.
    if !known.has_settled {
        return Ok(None);
    }
    let groups: BTreeSet<GroupId> = risk::groups_of_node(&spec.groups, &known);
    let protected = plan.units.iter().filter(|(_, groups)| !groups.is_empty());
    let intent = Intent {
        batch: reboot::BY_ANOTHER,
        groups: groups.into_iter().collect(),
        units: protected.map(|(unit, _)| unit.to_string()).collect(),
        running: true,
        takes_node: true,
        start_secs_max: 0,
        change: MemberChange::None,
    };
    Ok(session.lend(&intent)?)
}

/// `None`: nothing is held for whoever asks.
fn steady_state(session: &Session<'_>, host: &dyn Host) -> Result<Option<Because>, PipelineError> {
    // A hold of our own is none of theirs.
    let Some(record) = session.record().filter(|record| record.batch == reboot::BY_ANOTHER) else { return Ok(None) };
    if record.phase == RecordPhase::Failed {
        return Ok(Some(Because::new(reason::GATE_FAILED, None, record.why)));
    }
    let settles = || Some(Because::new(reason::SETTLING, None, "the members of this node's groups settle".to_owned()));
    if !record.is_lent(&session.boot_id) {
        return Ok(settles());
    }
    let units: BTreeSet<UnitName> =
        record.holds.iter().flat_map(|(hold, _)| &hold.units).map(|unit| UnitName::new(unit.clone())).collect();
    let seen = host.observe(&Query { units: units.iter().collect(), ..Query::default() })?;
    let run = units.iter().all(|unit| seen.units.get(unit).is_some_and(|state| state.is_running()));
    let asked = record.holds.iter().filter_map(|(hold, _)| session.own_health(&hold.group));
    if run && asked.map(|evidence| evidence.health).all(|health| health == Health::Healthy) {
        return Ok(session.take_back("whoever asked does not reboot")?);
    }
    session.lent_no_more()?;
    Ok(settles())
}
