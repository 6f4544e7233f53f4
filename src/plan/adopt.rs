//! What is as it must be although the ledger does not say that it was written: a run died between the write and its note.
//!
//! Without the note a later drift of it would look like something new, and a seed would be taken away with its entry.
//! PURE. Never: takes over what this node never meant to write.

use std::collections::BTreeSet;

use super::{Batch, Known};
use crate::host::Observed;
use crate::name::UnitName;
use crate::render::Desired;
use crate::resource::file::{FileState, Policy, Stamp};
use crate::resource::{Digest, Id, Placed, Resource};

/// To be noted as written; nothing is to be done.
pub struct Adopted {
    pub id: Id,
    pub inputs: Digest,
    pub secret: bool,
    pub keep: bool,
    /// Its owner's tool has not acted on it yet.
    pub owed: bool,
    /// The bytes of a file, and what stat says of it.
    pub seen: Option<(Digest, Stamp)>,
}

pub(super) fn adopted(desired: &Desired, observed: &Observed, known: &Known, batches: &[Batch<'_>]) -> Vec<Adopted> {
    let busy: BTreeSet<&UnitName> = batches.iter().flat_map(|batch| batch.units.keys()).collect();
    let begun = |placed: &&Placed| known.owned.get(&placed.resource.id()).is_some_and(|owned| !owned.written);
    let adopt = |placed: &Placed| {
        let (id, inputs) = (placed.resource.id(), placed.resource.inputs());
        let owed = known.owned.get(&id).is_some_and(|owned| owned.owed);
        let whole = Adopted { id: id.clone(), inputs, secret: false, keep: false, owed, seen: None };
        match &placed.resource {
            Resource::File(spec) => match observed.files.get(&spec.path) {
                // A secret that cannot be opened has no difference to find, and no proof either.
                Some(state @ FileState::Regular(seen))
                    if spec.content.bytes().is_some() && spec.diff(state, observed.owners).is_none() =>
                {
                    let (secret, keep) = (spec.content.is_secret(), spec.policy == Policy::Seed);
                    Some(Adopted { id, inputs, secret, keep, owed, seen: Some((seen.digest, seen.stamp)) })
                }
                _ => None,
            },
            Resource::Package(spec) => {
                let state = observed.packages.get(&spec.name)?;
                spec.diff(state).is_none().then_some(whole)
            }
            Resource::Artifact(spec) => {
                let state = observed.artifacts.get(&spec.into)?;
                spec.diff(state).is_none().then_some(whole)
            }
            Resource::Unit(spec) => (!busy.contains(&spec.name)).then_some(whole),
            Resource::Action(_) => None,
        }
    };
    desired.resources.iter().filter(begun).filter_map(adopt).collect()
}
