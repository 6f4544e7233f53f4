//! What systemd would stop together with a unit, and what that means for the batches: whose groups their holds must cover,
//! what is started again afterwards, and which batches are one because they would stop the same unit.
//!
//! The relations were asked of systemd; the closure over them is made here. PURE. Never: a choice of what must restart.

use std::collections::{BTreeMap, BTreeSet};

use super::Lanes;
use super::batch::{Batch, HoldNeed, Phase, UnitMove};
use crate::name::UnitName;
use crate::resource::unit::Relations;

/// Everything else that runs and that systemd stops.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct StopSet {
    /// With a unit that is stopped and started again: they can be started again after it.
    pub again: BTreeSet<UnitName>,
    /// With a unit that stays down, or because a unit that starts conflicts with them: they stay down too.
    pub away: BTreeSet<UnitName>,
}

impl StopSet {
    pub fn all(&self) -> impl Iterator<Item = &UnitName> {
        self.again.iter().chain(&self.away)
    }

    /// What is stopped when `restarted` units are stopped and started, `stopped` ones are stopped for good, and `started`
    /// ones are started; `also` are conflicts of the latter that systemd does not know of yet.
    pub fn of<'a>(
        restarted: &[&'a UnitName],
        stopped: &[&'a UnitName],
        started: &[&'a UnitName],
        also: &'a BTreeSet<UnitName>,
        relations: &'a BTreeMap<UnitName, Relations>,
    ) -> Self {
        let away_from = started.iter().filter_map(|unit| relations.get(*unit)).flat_map(|unit| &unit.conflicts);
        let away_from = away_from.chain(also);
        let down = with(stopped.iter().copied(), relations);
        // A conflict with what does not run stops nobody.
        let runs = |unit: &UnitName| relations.get(unit).is_some_and(|unit| unit.running);
        let conflicting: Vec<&UnitName> = away_from.filter(|unit| runs(unit)).collect();
        let mut away = with(conflicting.iter().copied(), relations);
        away.extend(conflicting);
        away.extend(down);
        let mine = |unit: &&UnitName| restarted.contains(unit) || stopped.contains(unit);
        let own = |set: BTreeSet<&UnitName>| -> BTreeSet<UnitName> {
            set.into_iter().filter(|unit| runs(unit) && !mine(unit)).cloned().collect()
        };
        let away = own(away);
        let mut again = own(with(restarted.iter().copied(), relations));
        again.retain(|unit| !away.contains(unit));
        Self { again, away }
    }
}

/// The closure: all that is stopped when these are, through units that do not run too, as systemd does it.
fn with<'a>(
    units: impl Iterator<Item = &'a UnitName>,
    relations: &'a BTreeMap<UnitName, Relations>,
) -> BTreeSet<&'a UnitName> {
    let mut open: Vec<&UnitName> = units.collect();
    let mut found = BTreeSet::new();
    while let Some(unit) = open.pop() {
        for dragged in relations.get(unit).into_iter().flat_map(|unit| &unit.dragged) {
            if found.insert(dragged) {
                open.push(dragged);
            }
        }
    }
    found
}

/// Makes every batch cover all that it stops. `protects`: the groups of a running unit, and the hold that its stop needs.
pub fn widen(
    batches: &mut Vec<Batch<'_>>,
    relations: &BTreeMap<UnitName, Relations>,
    protects: &dyn Fn(&UnitName) -> (Lanes, HoldNeed),
) {
    join(batches, relations);
    for batch in batches {
        let set = stop_set(batch, relations);
        for (groups, need) in set.all().map(protects) {
            if !groups.is_empty() {
                batch.groups.extend(groups.into_keys());
                batch.hold = batch.hold.max(need);
            }
        }
        // What must be started or restarted anyway is not in the set of what merely follows.
        for action in &mut batch.moves {
            if let UnitMove::Reload(unit) = *action
                && set.again.contains(&unit.name)
            {
                *action = UnitMove::Restart(unit);
            }
        }
        let moved: Vec<&UnitName> = started(batch);
        batch.again = set.again.iter().filter(|unit| !moved.contains(unit)).cloned().collect();
    }
}

/// Two batches of which one stops a unit of the other that must be restarted too are one: it is restarted once.
fn join(batches: &mut Vec<Batch<'_>>, relations: &BTreeMap<UnitName, Relations>) {
    let of_units = |batch: &Batch<'_>| matches!(batch.phase, Phase::Unit | Phase::Mounts);
    'again: loop {
        for at in 0..batches.len() {
            let set = stop_set(&batches[at], relations);
            let joined = |batch: &Batch<'_>| {
                batch.moves.iter().any(|action| !is_of_files(action) && set.again.contains(&action.spec().name))
            };
            let other = (0..batches.len()).find(|&other| other != at && joined(&batches[other]));
            if let Some(other) = other.filter(|&other| of_units(&batches[at]) && of_units(&batches[other])) {
                let follows = batches.remove(other);
                let at = if other < at { at - 1 } else { at };
                batches[at].absorb(follows);
                continue 'again;
            }
        }
        return;
    }
}

fn is_of_files(action: &UnitMove<'_>) -> bool {
    matches!(action, UnitMove::Enable(_) | UnitMove::Disable(_) | UnitMove::Mask(_) | UnitMove::Unmask(_))
}

fn started<'a>(batch: &Batch<'a>) -> Vec<&'a UnitName> {
    let starts = batch.moves.iter().filter_map(|action| match action {
        UnitMove::Start(unit) | UnitMove::Restart(unit) => Some(&unit.name),
        _ => None,
    });
    starts.collect()
}

fn stop_set(batch: &Batch<'_>, relations: &BTreeMap<UnitName, Relations>) -> StopSet {
    let moved = |wanted: &dyn Fn(&UnitMove<'_>) -> bool| -> Vec<&UnitName> {
        batch.moves.iter().filter(|action| wanted(action)).map(|action| &action.spec().name).collect()
    };
    let restarted = moved(&|action| matches!(action, UnitMove::Restart(_)));
    let mut stopped = moved(&|action| matches!(action, UnitMove::Stop(_)));
    stopped.extend(&batch.retire);
    StopSet::of(&restarted, &stopped, &started(batch), &new_conflicts(batch), relations)
}

/// Conflicts in unit files that this batch brings: systemd has not read them yet, and will before the start.
fn new_conflicts(batch: &Batch<'_>) -> BTreeSet<UnitName> {
    let files = batch.files.iter().filter(|file| file.spec.path.as_str().starts_with("/etc/systemd/system/"));
    let texts = files.map(|file| String::from_utf8_lossy(file.spec.content.shown()));
    let mut units = BTreeSet::new();
    for text in texts {
        let said = text.lines().filter_map(|line| line.split_once('='));
        let named = said.filter(|(key, _)| key.trim() == "Conflicts").flat_map(|(_, units)| units.split_whitespace());
        units.extend(named.map(UnitName::from));
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `unit: dragged…; conflicts…`, one a line; a `-` before the unit: it does not run.
    fn relations(table: &str) -> BTreeMap<UnitName, Relations> {
        let names = |text: &str| text.split_whitespace().map(UnitName::from).collect();
        let row = |line: &str| {
            let (unit, rest) = line.split_once(':')?;
            let (dragged, conflicts) = rest.split_once(';').unwrap_or((rest, ""));
            let running = !unit.trim().starts_with('-');
            let unit = UnitName::from(unit.trim().trim_start_matches('-'));
            Some((unit, Relations { running, dragged: names(dragged), conflicts: names(conflicts) }))
        };
        table.lines().filter_map(row).collect()
    }

    fn names(set: &BTreeSet<UnitName>) -> String {
        set.iter().map(|unit| unit.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// F7
    #[test]
    fn a_stop_set_is_closed() {
        let table = "
            db: pool web; old
            pool: api
            -web: site
            site: db
            api:
            old: legacy
            legacy:
            alone:
        ";
        let relations = relations(table);
        // restarted, stopped, conflicts of the new unit file; started again, away
        let rows = [
            ("alone", "", "", "", ""),
            // Through a unit that does not run, in a circle, without itself.
            ("db", "", "", "api pool site", "legacy old"),
            ("", "db", "", "", "api pool site"),
            ("pool", "db", "", "", "api site"),
            ("api", "", "old", "", "legacy old"),
            ("api", "", "web", "", ""),
            ("db", "", "pool", "site", "api legacy old pool"),
            ("unknown", "", "", "", ""),
        ];
        for (restarted, stopped, also, again, away) in rows {
            let list = |text: &str| -> Vec<UnitName> { text.split_whitespace().map(UnitName::from).collect() };
            let (restart, stop, also) = (list(restarted), list(stopped), list(also).into_iter().collect());
            let (restart, stop): (Vec<&UnitName>, Vec<&UnitName>) = (restart.iter().collect(), stop.iter().collect());
            let set = StopSet::of(&restart, &stop, &restart, &also, &relations);
            assert_eq!((names(&set.again).as_str(), names(&set.away).as_str()), (again, away), "{restarted}/{stopped}");
        }
    }
}
