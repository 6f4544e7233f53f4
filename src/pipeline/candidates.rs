//! Which singletons a node stands for, after a run: those of its roles whose batches went through.
//!
//! Never: says who runs one.

use std::collections::BTreeSet;

use crate::apply::Outcome;
use crate::lock::singleton::{Singleton, Wish};
use crate::name::UnitName;
use crate::pause::Pause;
use crate::plan::Plan;
use crate::render::Desired;
use crate::resource::Resource;
use crate::resource::unit::Wanted;

/// Of which units this run knows that they have what they need: those whose batches went through. Of none where nothing is
/// begun: somebody works on the machine, or it goes down.
pub(super) fn ready<'p>(
    plan: &'p Plan<'_>,
    outcome: &Outcome,
    pause: Option<&Pause>,
) -> impl Fn(&UnitName) -> bool + use<'p> {
    let (begins, open) = (pause.is_none() && !outcome.rebooting, open(plan, outcome));
    move |unit| begins && !open.contains(unit)
}

/// Units whose batches did not go through.
fn open<'p>(plan: &'p Plan<'_>, outcome: &Outcome) -> BTreeSet<&'p UnitName> {
    let open: BTreeSet<&str> =
        outcome.failed.iter().chain(&outcome.deferred).map(|(batch, _)| batch.as_str()).collect();
    plan.batches
        .iter()
        .filter(|batch| open.contains(batch.name.as_str()))
        .flat_map(|batch| batch.units.keys())
        .collect()
}

/// With what is wanted of each. One whose unit must be stopped everywhere is none.
pub(super) fn of(desired: &Desired, is_ready: &dyn Fn(&UnitName) -> bool) -> Vec<(Singleton, Wish)> {
    let candidates = desired.resources.iter().filter_map(|placed| {
        let Resource::Unit(unit) = &placed.resource else { return None };
        let singleton = Singleton {
            unit: unit.name.clone(),
            cluster: placed.origin.cluster.clone()?,
            lease_secs: unit.lease_secs.filter(|_| unit.state == Wanted::Running)?,
            stop_secs_max: unit.stop_secs_max,
        };
        let wish = if is_ready(&unit.name) { Wish::Run } else { Wish::Keep };
        Some((singleton, wish))
    });
    candidates.collect()
}

/// Units that run here whatever others do.
pub(super) fn ordinary(desired: &Desired) -> impl Iterator<Item = UnitName> + '_ {
    desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::Unit(unit) if unit.lease_secs.is_none() => Some(unit.name.clone()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Observed;
    use crate::lock::quorum::Because;
    use crate::plan::{self, Known};
    use crate::reason;

    #[test]
    fn a_machine_that_goes_down_or_is_worked_on_takes_nothing() {
        let desired = Desired {
            node: "n1".into(),
            state: crate::fleet::schema::Membership::Active,
            commit: None,
            resources: Vec::new(),
            sealed: Vec::new(),
            strikes: Vec::new(),
        };
        let (observed, known) = (Observed::default(), Known::default());
        let plan = plan::plan(&desired, &observed, &known, &[]);
        let unit = UnitName::from("beat.service");
        let ready = |outcome: &Outcome, pause: Option<&Pause>| ready(&plan, outcome, pause)(&unit);
        assert!(ready(&Outcome::default(), None));
        // Nothing was tried: what would fail is not known.
        let goes_down = Outcome { rebooting: true, ..Outcome::default() };
        assert!(!ready(&goes_down, None));
        let (reason, by, boot_id) = Default::default();
        let (since, until) = (jiff::Timestamp::UNIX_EPOCH, jiff::Timestamp::UNIX_EPOCH);
        let pause = Pause { reason, by, since, until, boot_id, since_awake_ms: 0 };
        assert!(!ready(&Outcome::default(), Some(&pause)));
        let because = Because::new(reason::STEP_FAILED, None, String::new());
        let other = Outcome { failed: vec![("another batch".to_owned(), because)], ..Outcome::default() };
        assert!(ready(&other, None));
    }
}
