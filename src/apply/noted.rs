//! What the ledger is told of a batch: before the first write, around the exchange, and at the end.
//!
//! Never: a note of what is not on the disk.

use std::collections::BTreeMap;

use super::ApplyError;
use super::act::Act;
use crate::host::Query;
use crate::ledger::Intention;
use crate::name::UnitName;
use crate::plan::batch::Unpacking;
use crate::plan::{Batch, FileWrite, Owned, Pending, RanWith};
use crate::resource::package::PackageState;
use crate::resource::{Digest, Id, Kind, PackageSpec, UnitSpec, UnitState};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Swapped {
    No,
    Yes,
}

impl<'a> Act<'_, 'a, '_, '_> {
    /// An id enters the ledger before its first write.
    pub(super) fn intend(&mut self) -> Result<(), ApplyError> {
        let files = self.batch.files.iter().map(|file| Intention {
            id: file_id(file),
            inputs: file.spec.inputs(),
            secret: file.spec.content.is_secret(),
            owed: is_owed(self.batch, file),
        });
        let plain = |id: Id, inputs: Digest| Intention { id, inputs, secret: false, owed: false };
        let units = self.batch.units.values().map(|part| plain(unit_id(part.spec), part.spec.inputs()));
        let packages = self.arriving().map(|spec| plain(package_id(&spec.name), spec.inputs()));
        let intentions: Vec<Intention> = files.chain(units).chain(packages).collect();
        Ok(self.tools.ledger.intend(&intentions)?)
    }

    /// Packages that are not there yet: what was there before us never becomes ours.
    pub(super) fn arriving(&self) -> impl Iterator<Item = &'a PackageSpec> {
        let (batch, seen) = (self.batch, &self.tools.observed.packages);
        let specs = batch.packages.iter().map(|(spec, _)| *spec);
        specs.filter(|spec| matches!(seen.get(&spec.name), Some(PackageState::Absent)))
    }

    /// Before the first rename and after the last: which run of each unit still has the old inputs.
    /// As it is right before the first stop: staging and waiting take their time, and somebody may have restarted a unit.
    pub(super) fn invocations(&self) -> BTreeMap<UnitName, String> {
        let run = |(name, state): (&UnitName, &UnitState)| (name.clone(), state.invocation.clone());
        let units: Vec<&UnitName> = self.batch.units.keys().collect();
        if units.is_empty() {
            return BTreeMap::new();
        }
        let seen = self.tools.host.observe(&Query { units, ..Query::default() });
        seen.map_or_else(
            |_| self.tools.observed.units.iter().map(run).collect(),
            |seen| seen.units.iter().map(run).collect(),
        )
    }

    /// Which run of each unit has the old inputs, before the exchange and after it.
    pub(super) fn pend(&mut self, swapped: Swapped) -> Result<(), ApplyError> {
        let pending = self.batch.units.values().map(|part| {
            let name = &part.spec.name;
            let invocation = self.runs.get(name).cloned();
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
    pub(super) fn remember(&mut self) -> Result<(), ApplyError> {
        let again = &self.batch.again;
        let names: Vec<&UnitName> = self.batch.units.keys().chain(again).collect();
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
                    owned.push((id, ours(inputs)));
                }
                // What was only started again runs with what it ran with before.
                for name in again.iter().filter(|name| !known.pending.contains_key(*name)) {
                    if let (Some(before), Some(state)) = (known.units.get(name), seen.units.get(name)) {
                        let invocation = state.invocation.clone();
                        let now = RanWith { invocation, boot_id: seen.boot_id.clone(), ..before.clone() };
                        ran.push((name.clone(), now));
                    }
                }
                self.tools.ledger.ran(&ran)?;
                self.tools.ledger.own(&owned)?;
                self.tools.ledger.bring_back(again)?;
            }
        }
        let retired: Vec<Id> =
            self.batch.retire.iter().map(|unit| Id { kind: Kind::Unit, name: unit.to_string() }).collect();
        self.tools.ledger.disown(&retired)?;
        let discarded = self.batch.discards.iter().map(|into| Id { kind: Kind::Artifact, name: into.to_string() });
        self.tools.ledger.disown(&discarded.collect::<Vec<_>>())?;
        Ok(self.tools.ledger.forget_units(&self.batch.retire)?)
    }
}

/// Whether a tool must act on a file after it is written.
pub(super) fn is_owed(batch: &Batch<'_>, file: &FileWrite<'_>) -> bool {
    batch.activations.iter().any(|(_, spec)| spec.path == file.spec.path)
}

pub(super) fn file_id(file: &FileWrite<'_>) -> Id {
    Id { kind: Kind::File, name: file.spec.path.to_string() }
}

pub(super) fn artifact_id(artifact: &Unpacking<'_>) -> Id {
    Id { kind: Kind::Artifact, name: artifact.spec.into.to_string() }
}

pub(super) fn unpacked(artifact: &Unpacking<'_>) -> Owned {
    ours(artifact.spec.inputs())
}

pub(super) fn unit_id(unit: &UnitSpec) -> Id {
    Id { kind: Kind::Unit, name: unit.name.to_string() }
}

/// Of what has no bytes of its own.
pub(super) fn ours(inputs: Digest) -> Owned {
    Owned {
        inputs,
        content: None,
        stamp: None,
        written: true,
        secret: false,
        secret_comes: false,
        owed: false,
        keep: false,
    }
}

pub(super) fn package_id(name: &str) -> Id {
    Id { kind: Kind::Package, name: name.to_owned() }
}
