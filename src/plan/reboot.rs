//! Whether the machine must reboot: what its resources with `reboot = true` are, against what this boot started with.
//!
//! Level-triggered, as restarts are: a crash between the write and the reboot, a reboot by hand and a revert before it all
//! come out right. PURE. Never: a remembered event; never: a reboot while anything else is open.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::batch::{Batch, Blocked, Phase};
use super::known::Known;
use super::risk;
use crate::name::{CommitId, GroupId};
use crate::reason;
use crate::render::Desired;
use crate::resource::{Digest, Id, Kind, Placed};

/// So often for one commit; a machine that still needs it then has another problem.
pub const REBOOTS_MAX: u32 = 2;
/// A machine that was told to reboot has this long to go down; meanwhile nothing is begun.
pub const DOWN_WITHIN: Duration = Duration::from_secs(600);
pub const NAME: &str = "reboot";
/// What somebody else asked for, over FleetLock.
pub const BY_ANOTHER: &str = "reboot by another";

/// What the running boot started with.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Booted {
    pub boot_id: String,
    /// Inputs by resource. `None`: it came after the boot.
    pub with: BTreeMap<String, Option<Digest>>,
    /// The last reboot that was asked for.
    pub asked: Option<Asked>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// `None`: a work tree.
    pub commit: Option<CommitId>,
    pub times: u32,
    /// The boot that was to end.
    pub boot_id: String,
    /// Awake time of that boot, in milliseconds.
    pub at_ms: u64,
}

fn needing(desired: &Desired) -> impl Iterator<Item = &Placed> {
    desired.resources.iter().filter(|placed| placed.reboot && placed.is_enforced())
}

impl Booted {
    /// As it is to be remembered before the first write.
    pub fn look(&self, desired: &Desired, batches: &[Batch<'_>], known: &Known, boot_id: &str) -> Self {
        let touched = touched(batches);
        let fresh = self.boot_id != boot_id;
        let mut with = BTreeMap::new();
        for placed in needing(desired) {
            let id = placed.resource.id();
            let left = known.owned.get(&id).filter(|owned| owned.written).map(|owned| owned.inputs);
            let now = match (self.with.get(&id.to_string()), touched.contains(&id)) {
                (Some(before), _) if !fresh => *before,
                (_, false) => Some(placed.resource.inputs()),
                (_, true) if fresh => left,
                (_, true) => None,
            };
            with.insert(id.to_string(), now);
        }
        // What left since the boot is still what it started with.
        let gone = self.with.iter().filter(|(id, _)| !fresh || touched.iter().any(|one| one.to_string() == **id));
        for (id, before) in gone {
            with.entry(id.clone()).or_insert(*before);
        }
        Self { boot_id: boot_id.to_owned(), with, asked: self.asked.clone() }
    }

    /// The resources that a reboot is needed for, once everything else is live.
    pub fn needs(&self, desired: &Desired) -> Vec<String> {
        let wanted: BTreeMap<String, Digest> =
            needing(desired).map(|placed| (placed.resource.id().to_string(), placed.resource.inputs())).collect();
        let news = wanted.iter().filter(|(id, inputs)| self.with.get(*id).copied().flatten() != Some(**inputs));
        let gone = self.with.iter().filter(|(id, with)| with.is_some() && !wanted.contains_key(*id));
        news.map(|(id, _)| id.clone()).chain(gone.map(|(id, _)| id.clone())).collect()
    }

    /// One more is about to be asked for.
    #[must_use]
    pub fn asking(&self, commit: Option<&CommitId>, boot_id: &str, at_ms: u64) -> Self {
        let before = self.asked.as_ref().filter(|asked| asked.commit.as_ref() == commit);
        let times = before.map_or(0, |asked| asked.times) + 1;
        let asked = Asked { commit: commit.cloned(), times, boot_id: boot_id.to_owned(), at_ms };
        Self { asked: Some(asked), ..self.clone() }
    }
}

fn touched(batches: &[Batch<'_>]) -> BTreeSet<Id> {
    let id = |kind, name: &str| Id { kind, name: name.to_owned() };
    let of = |batch: &Batch<'_>| {
        let files = batch.files.iter().map(|file| id(Kind::File, file.spec.path.as_str()));
        let removals = batch.removals.iter().map(|(path, _)| id(Kind::File, path.as_str()));
        let packages = batch.packages.iter().map(|(package, _)| id(Kind::Package, &package.name));
        files.chain(removals).chain(packages).chain(batch.blocked.iter().map(|one| one.id.clone())).collect::<Vec<_>>()
    };
    batches.iter().flat_map(of).collect()
}

/// The last batch, if one is needed.
pub fn batch<'a>(booted: &Booted, desired: &Desired, node: &BTreeSet<GroupId>, known: &Known) -> Option<Batch<'a>> {
    let needs = booted.needs(desired);
    if needs.is_empty() {
        return None;
    }
    let mut batch = Batch::named(NAME.to_owned(), None, Phase::Reboot);
    let asked = booted.asked.as_ref().filter(|asked| asked.commit == desired.commit);
    if let Some(asked) = asked.filter(|asked| asked.times >= REBOOTS_MAX) {
        let id = Id { kind: Kind::Action, name: NAME.to_owned() };
        let why = format!("needed for {} after {} reboots for this commit", needs.join(", "), asked.times);
        batch.blocked.push(Blocked { id, reason: reason::REBOOT_FAILED, why });
    }
    batch.reboot = needs;
    risk::claim_node(&mut batch, node, known);
    Some(batch)
}
