//! Which singletons a node stands for, after a run: those of its roles whose batches went through.
//!
//! Never: says who runs one.

use std::collections::BTreeSet;

use crate::apply::Outcome;
use crate::lock::singleton::{Singleton, Wish};
use crate::name::UnitName;
use crate::plan::Plan;
use crate::render::Desired;
use crate::resource::Resource;
use crate::resource::unit::Wanted;

/// Units whose batches did not go through.
pub(super) fn open<'p>(plan: &'p Plan<'_>, outcome: &Outcome) -> BTreeSet<&'p UnitName> {
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
