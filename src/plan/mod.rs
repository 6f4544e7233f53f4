//! What must be done here, and in which batches: a total function of what is wanted, what is there and what we know.
//!
//! Resources joined by `restarts`, `reloads`, `before` and unit files are one batch: they go live together. What belongs to
//! no unit goes first, role by role. "Needs a restart" is a comparison of digests (what the unit runs with, what it should
//! run with), never a remembered event. PURE. Never: fails, or asks the host.

pub mod adopt;
pub mod batch;
pub mod changes;
pub mod fight;
pub mod fleetwide;
pub mod guard;
pub mod known;
pub mod membership;
pub mod reboot;
pub mod risk;
pub mod show;
pub mod stopset;

use std::collections::{BTreeMap, BTreeSet};

pub use adopt::Adopted;
pub use batch::{Batch, Blocked, FileWrite, HoldNeed, UnitMove, Why};
pub use known::{Known, Lanes, Owned, Pending, RanWith, SecretSeen, Uses};

use crate::fleet::Group;
use crate::fleet::schema::Membership;
use crate::host::Observed;
use crate::name::{ClusterName, CommitId, HostPath, NodeName, RoleName, UnitName};
use crate::reason;
use crate::render::Desired;
use crate::resource::action::{ActionState, Scope};
use crate::resource::file::{FileChange, FileState, Policy, Previous};
use crate::resource::package::PackageState;
use crate::resource::unit::{Active, Wanted};
use crate::resource::{ActionSpec, Activation, Digest, FileSpec, Id, Kind, Placed, Resource, UnitSpec, UnitState};

/// Everything that must be done on one node, in order. Empty batches are kept out.
pub struct Plan<'a> {
    pub node: &'a NodeName,
    pub commit: Option<&'a CommitId>,
    pub batches: Vec<Batch<'a>>,
    /// Differences that `policy = "audit"` only reports.
    pub audit: Vec<FileWrite<'a>>,
    /// Drop-ins of an administrator for our units: they stay, and are told.
    pub strangers: Vec<Id>,
    /// Drift that is not repaired now: somebody else goes on writing these files.
    pub resting: Vec<FileWrite<'a>>,
    /// Seeds that are there, and whose template is another one by now: left to their service.
    pub outgrown: Vec<&'a FileSpec>,
    /// Units that run with the right inputs although the ledger did not know: to be recorded, nothing to do.
    pub adopt: Vec<(UnitName, RanWith)>,
    /// Written by a run that died before it could say so.
    pub adopted: Vec<Adopted>,
    /// What this boot started with, to be recorded before the first write.
    pub booted: reboot::Booted,
    /// Every unit of ours, with the groups that its stop would take a member from, by the target commit.
    pub units: BTreeMap<UnitName, Lanes>,
    /// Those of them that must run.
    pub running: BTreeSet<UnitName>,
    /// Units that are not what they must be for good, whatever is done about it: the commit is not applied yet.
    pub unsteady: Vec<(UnitName, Unsteady)>,
    /// To be remembered: which units restart or reload for what.
    pub uses: Uses,
    /// Clusters of this node that have actions of their own.
    pub elects: BTreeSet<ClusterName>,
    /// Units that were taken down along with others, and run again or are gone: nothing is owed to them any more.
    pub back: Vec<UnitName>,
}

/// What became of a unit since it was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsteady {
    /// It is not ready, or systemd is about to start it again after it failed.
    Starting,
    /// It failed in the very run of itself that we started.
    Died,
}

impl Plan<'_> {
    /// Nothing to do and nothing unknown.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The batch that must not be tried again until the repository wants something else, and why.
    pub fn refused(&self) -> Option<(&str, &Blocked)> {
        self.batches.iter().find_map(|batch| {
            let refuses = |one: &&Blocked| [reason::ROLLED_BACK, reason::REBOOT_FAILED].contains(&one.reason);
            Some((batch.name.as_str(), batch.blocked.iter().find(refuses)?))
        })
    }

    /// Takes out every batch but the one that is under way already. The names of what was taken out.
    pub fn put_off(&mut self, under_way: Option<&str>) -> Vec<String> {
        let (stay, off) =
            std::mem::take(&mut self.batches).into_iter().partition(|b| Some(b.name.as_str()) == under_way);
        self.batches = stay;
        // What was not looked at is not over.
        self.elects.clear();
        off.into_iter().map(|batch: Batch<'_>| batch.name).collect()
    }

    pub fn files(&self) -> usize {
        self.batches.iter().map(|batch| batch.files.len() + batch.removals.len()).sum()
    }
}

/// `groups`: those that this node is a member of, by the target commit.
pub fn plan<'a>(desired: &'a Desired, observed: &Observed, known: &'a Known, groups: &[&Group]) -> Plan<'a> {
    let components = Components::of(&desired.resources, groups);
    let leaving = membership::left_units(groups, &desired.node);
    let sealed: BTreeMap<&Id, &str> =
        desired.sealed.iter().map(|sealed| (&sealed.resource, sealed.reason.as_str())).collect();
    let with_secrets = roles_with_secrets(desired, known);
    let wanted: BTreeSet<Id> = desired.resources.iter().map(|placed| placed.resource.id()).collect();
    let mut audit = Vec::new();
    let mut adopt = Vec::new();
    let mut resting = Vec::new();
    let mut strangers = Vec::new();
    let mut batches: Vec<Batch<'a>> = Vec::new();

    for component in components.in_order(&desired.resources) {
        let mut batch = Batch::named(component.name.clone(), component.role.clone(), component.phase);
        for &index in &component.resources {
            let placed = &desired.resources[index];
            batch.secrets_near |= with_secrets.contains(&placed.origin.role);
            // A node on its way out may not open secrets any more, and stops with what it has.
            if let Some(why) = sealed.get(&placed.resource.id()) {
                if membership::is_leaving(desired.state) {
                    continue;
                }
                batch.blocked.push(Blocked {
                    id: placed.resource.id(),
                    reason: reason::SECRET_UNREADABLE,
                    why: (*why).to_owned(),
                });
                continue;
            }
            if component.phase == batch::Phase::Cluster {
                batch.elects.clone_from(&placed.origin.cluster);
            }
            consider(placed, desired.state, observed, known, &mut batch, &mut audit);
        }
        for (unit, mut inputs) in component.units(&desired.resources) {
            let mine = component.resources.iter().map(|&index| &desired.resources[index]);
            inputs.drifted = has_drifted(&batch, mine.filter(|placed| placed.restarts.contains(&unit.name)));
            let state = observed.units.get(unit.name.as_str()).cloned().unwrap_or_else(UnitState::missing);
            let protecting = groups_of(groups, &unit.name, known.units.get(&unit.name));
            let leaves = leaving.contains(&unit.name);
            consider_unit(unit, &state, inputs, leaves, known, observed, protecting, &mut batch, &mut adopt);
            strangers.extend(strangers_drop_ins(&state, &wanted, known));
        }
        resting.extend(batch.rest(&known.resting));
        if reloads_freely(&batch, component.resources.iter().map(|&index| &desired.resources[index])) {
            batch.hold = HoldNeed::None;
        }
        membership::judge(&mut batch, desired.state);
        // What belongs to no unit does not wait for a neighbour that cannot be written.
        let alone = if batch.phase >= batch::Phase::Unit || batch.phase == batch::Phase::Mounts {
            None
        } else {
            batch.without_blocked()
        };
        batches.push(batch);
        batches.extend(alone);
    }
    batches.extend(membership::strikes(&desired.strikes, observed));
    without_guards(&mut batches, observed);
    let left = removals(&wanted, known, observed, &mut batches);
    batches.extend(left);
    let risky: Vec<Batch<'a>> = batches.iter_mut().filter_map(risk::split).collect();
    batches.extend(risky);
    stopset::widen(&mut batches, &observed.relations, &|unit| {
        let ran = known.units.get(unit);
        let settled = ran.is_some_and(|ran| ran.settled);
        let need = if settled { HoldNeed::Required } else { HoldNeed::RequiredIfHealthy };
        (groups_of(groups, unit, ran), need)
    });
    let state = |unit: &UnitName| observed.units.get(unit).cloned().unwrap_or_else(UnitState::missing);
    let back = known.along.iter().filter(|unit| state(unit).is_running() || !state(unit).loaded);
    let back: Vec<UnitName> = back.cloned().collect();
    let is_ours = |unit: &UnitName| wanted.contains(&Id { kind: Kind::Unit, name: unit.to_string() });
    let again = known.along.iter().filter(|unit| !back.contains(unit) && !is_ours(unit)).cloned();
    let mut along = Batch::named("units that were stopped along".to_owned(), None, batch::Phase::Again);
    along.again.extend(again);
    batches.push(along);
    let node = risk::groups_of_node(groups, known);
    batches.iter_mut().for_each(|batch| risk::judge(batch, &node, known));
    let booted = known.booted.look(desired, &batches, known, &observed.boot_id);
    batches.extend(reboot::batch(&booted, desired, &node, known));
    // Batches of units come last, and of those the unprotected ones first: a wait must not hold up the harmless.
    // Of what left the repository the units come first: they may still use the files.
    let rest = |batch: &Batch<'_>| batch.phase == batch::Phase::Removal && batch.retire.is_empty();
    batches.sort_by_key(|batch| (batch.phase, rest(batch), !batch.groups.is_empty()));
    batches.retain(|batch| !batch.is_empty());
    let adopted = adopt::adopted(desired, observed, known, &batches);
    let units = desired
        .resources
        .iter()
        .filter_map(|placed| match &placed.resource {
            Resource::Unit(unit) => Some((unit.name.clone(), groups_of(groups, &unit.name, None))),
            _ => None,
        })
        .collect();
    let outgrown = desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::File(spec) => is_outgrown(spec, &placed.resource.id(), observed, known).then_some(spec),
        _ => None,
    });
    let outgrown = outgrown.collect();
    let run = desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::Unit(unit) if wanted_here(unit, leaving.contains(&unit.name), known) == Wanted::Running => {
            Some(unit.name.clone())
        }
        _ => None,
    });
    let running: BTreeSet<UnitName> = run.collect();
    let unsteady =
        running.iter().filter_map(|unit| Some((unit.clone(), unsteadiness(unit, known, observed)?))).collect();
    let elects = desired.resources.iter().filter(|placed| is_of_cluster(&placed.resource));
    let elects = elects.filter_map(|placed| placed.origin.cluster.clone()).collect();
    Plan {
        node: &desired.node,
        commit: desired.commit.as_ref(),
        batches,
        audit,
        strangers,
        resting,
        outgrown,
        adopt,
        adopted,
        booted,
        units,
        running,
        unsteady,
        back,
        uses: uses(desired, known),
        elects,
    }
}

/// A singleton runs only where it may, and is stopped anywhere else, whoever started it; so is the unit of a group that
/// this node leaves.
fn wanted_here(unit: &UnitSpec, leaves: bool, known: &Known) -> Wanted {
    let elsewhere = leaves || unit.lease_secs.is_some() && !known.held.contains(&unit.name);
    if unit.state == Wanted::Running && elsewhere { Wanted::Stopped } else { unit.state }
}

/// As the repository says now, and of what is still ours as it said last.
fn uses(desired: &Desired, known: &Known) -> Uses {
    let left = known.uses.iter().filter(|(id, _)| known.owned.contains_key(id));
    let left = left.map(|(id, units)| (id.clone(), units.clone()));
    let now = desired.resources.iter().filter(|placed| !(placed.restarts.is_empty() && placed.reloads.is_empty()));
    let now =
        now.map(|placed| (placed.resource.id(), placed.restarts.iter().chain(&placed.reloads).cloned().collect()));
    let quiet: BTreeSet<Id> = desired.resources.iter().map(|placed| placed.resource.id()).collect();
    left.filter(|(id, _)| !quiet.contains(id)).chain(now).collect()
}

/// An action whose guard's program is not there waits for what may bring it; when nothing comes, nothing is begun.
fn without_guards(batches: &mut [Batch<'_>], observed: &Observed) {
    let brings =
        |batch: &Batch<'_>| !(batch.files.is_empty() && batch.packages.is_empty() && batch.artifacts.is_empty());
    if batches.iter().any(brings) {
        return;
    }
    for batch in batches {
        let unguarded = |action: &mut &ActionSpec| observed.actions.get(&action.name) == Some(&ActionState::Unguarded);
        let changes = batch.membership.extract_if(.., |(_, action)| unguarded(action)).map(|(_, action)| action);
        let changes: Vec<&ActionSpec> = changes.collect();
        for action in batch.actions.extract_if(.., unguarded).chain(changes).collect::<Vec<_>>() {
            let id = Id { kind: Kind::Action, name: action.name.clone() };
            let why = format!(
                "the program of its `unless`, {}, is not on this host",
                action.unless.first().map_or("", String::as_str)
            );
            batch.blocked.push(Blocked { id, reason: reason::APPLY_FAILED, why });
        }
    }
}

/// Whether somebody else changed what a unit is started with.
fn has_drifted<'a>(batch: &Batch<'_>, mut inputs: impl Iterator<Item = &'a Placed>) -> bool {
    let content = |change: &FileChange| matches!(change, FileChange::Create | FileChange::Content);
    let drift = batch.files.iter().filter(|file| file.why == Why::Drift && content(&file.change));
    let drift: BTreeSet<&HostPath> = drift.map(|file| &file.spec.path).collect();
    inputs.any(|placed| matches!(&placed.resource, Resource::File(spec) if drift.contains(&spec.path)))
}

fn unsteadiness(unit: &UnitName, known: &Known, observed: &Observed) -> Option<Unsteady> {
    let state = observed.units.get(unit)?;
    // Of an exchange that did not end the batch tells.
    if known.pending.contains_key(unit) {
        return (state.active == Active::Activating).then_some(Unsteady::Starting);
    }
    // One that settled with what it has died of something else.
    let ours = known.units.get(unit).is_some_and(|ran| ran.invocation == state.invocation && !ran.settled);
    match state.active {
        Active::Activating => Some(Unsteady::Starting),
        Active::Failed if ours => Some(Unsteady::Died),
        _ => None,
    }
}

/// What an administrator adds to a unit of ours stays, and is never silent.
fn strangers_drop_ins(state: &UnitState, wanted: &BTreeSet<Id>, known: &Known) -> Vec<Id> {
    let by_hand = |path: &&String| path.starts_with("/etc/systemd/system") || path.starts_with("/run/systemd/system");
    let ids = state.drop_ins.iter().filter(by_hand).map(|path| Id { kind: Kind::File, name: path.clone() });
    ids.filter(|id| !wanted.contains(id) && !known.owned.contains_key(id)).collect()
}

/// Roles that write a secret, or wrote one when they last wrote: what their programs say can quote it.
fn roles_with_secrets<'a>(desired: &'a Desired, known: &Known) -> BTreeSet<&'a RoleName> {
    let with = desired.resources.iter().filter(|placed| match &placed.resource {
        Resource::File(spec) => {
            let owned = known.owned.get(&placed.resource.id());
            spec.content.is_secret() || owned.is_some_and(|owned| owned.secret || owned.secret_comes)
        }
        _ => false,
    });
    with.map(|placed| &placed.origin.role).collect()
}

fn is_outgrown(spec: &FileSpec, id: &Id, observed: &Observed, known: &Known) -> bool {
    let there = matches!(observed.files.get(&spec.path), Some(FileState::Regular(_)));
    let ours = known.owned.get(id).is_some_and(|owned| owned.written && owned.inputs != spec.inputs());
    spec.policy == Policy::Seed && there && ours
}

/// The groups that a stop of this unit takes a member from: by the target commit, and by the one that is live, if asked.
fn groups_of(groups: &[&Group], unit: &UnitName, live: Option<&RanWith>) -> Lanes {
    let target = groups.iter().filter(|group| group.unit == *unit);
    let named = target.flat_map(|group| group.ids().map(|id| (id.clone(), group.max_unavailable)));
    let live = live.into_iter().flat_map(RanWith::protected_by);
    // The target's word counts where both have one.
    live.chain(named).collect()
}

fn consider<'a>(
    placed: &'a Placed,
    node: Membership,
    observed: &Observed,
    known: &Known,
    batch: &mut Batch<'a>,
    audit: &mut Vec<FileWrite<'a>>,
) {
    let id = placed.resource.id();
    match &placed.resource {
        Resource::File(spec) => {
            let state = observed.files.get(&spec.path).unwrap_or(&FileState::Absent);
            // A role that names the unit for it has said how its rules are loaded.
            let by_unit =
                |tool| tool == Activation::Nftables && !(placed.restarts.is_empty() && placed.reloads.is_empty());
            let tool = Activation::of(&spec.path).filter(|tool| !by_unit(*tool));
            let Some(change) = spec.diff(state, observed.owners) else {
                let owed = known.owned.get(&id).is_some_and(|owned| owned.owed);
                batch.activations.extend(tool.filter(|_| owed).map(|tool| (tool, spec)));
                return;
            };
            let audit_only = spec.policy == Policy::Audit && change != FileChange::Create;
            let blocked = match &change {
                FileChange::Blocked(why) => Some((reason::APPLY_FAILED, why)),
                FileChange::Unsafe(why) => Some((reason::UNSAFE_PATH, why)),
                FileChange::Create | FileChange::Content | FileChange::Attributes { .. } => None,
            };
            if let Some((reason, why)) = blocked.filter(|_| !audit_only) {
                batch.blocked.push(Blocked { id, reason, why: why.clone() });
                return;
            }
            // What we last put there is what is wanted: somebody else changed it since.
            let ours = known.owned.get(&id).is_some_and(|owned| owned.inputs == spec.inputs() && owned.written);
            let why = if ours { Why::Drift } else { Why::Intended };
            let before = match state {
                FileState::Regular(regular) => regular.bytes.clone(),
                _ => None,
            };
            let owned = known.owned.get(&id);
            let involved = spec.content.is_secret() || owned.is_some_and(|owned| owned.secret || owned.secret_comes);
            let previous = match (owned.is_some_and(|owned| owned.secret), why) {
                (true, Why::Intended) => Previous::Gone,
                _ if involved => Previous::KeptOnce,
                _ => Previous::Kept,
            };
            let write = FileWrite { spec, change, why, origin: &placed.origin, before, previous };
            if audit_only {
                audit.push(write);
            } else {
                batch.activations.extend(tool.map(|tool| (tool, spec)));
                batch.files.push(write);
            }
        }
        Resource::Package(spec) => {
            batch.listed.push(spec);
            let unknown = PackageState::Unknown("was not asked".to_owned());
            let state = observed.packages.get(&spec.name).unwrap_or(&unknown);
            if let Some(what) = spec.diff(state) {
                batch.packages.push((spec, what));
            }
        }
        Resource::Artifact(spec) => {
            let absent = crate::resource::artifact::ArtifactState::Absent;
            if let Some(what) = spec.diff(observed.artifacts.get(&spec.into).unwrap_or(&absent)) {
                let ours = known.owned.get(&id).is_some_and(|owned| owned.inputs == spec.inputs() && owned.written);
                let why = if ours { Why::Drift } else { Why::Intended };
                batch.artifacts.push(batch::Unpacking { spec, what, why });
            }
        }
        Resource::Action(_) if !membership::is_due(placed, node) => {}
        Resource::Action(spec) => match observed.actions.get(&spec.name) {
            Some(ActionState::Done) => {}
            Some(ActionState::Unknown(why)) => {
                batch.blocked.push(Blocked { id, reason: reason::APPLY_FAILED, why: why.clone() });
            }
            Some(ActionState::Needed | ActionState::Unguarded) | None => match membership::moment(spec, placed, node) {
                Some(moment) => batch.membership.push((moment, spec)),
                None => batch.actions.push(spec),
            },
        },
        Resource::Unit(_) => {}
    }
}

/// The digests of what makes a unit restart and of what makes it reload.
#[derive(Clone, Copy)]
struct Inputs {
    restart: Digest,
    reload: Digest,
    /// What is on disk of the former is not what we left there.
    drifted: bool,
}

#[allow(clippy::too_many_arguments)] // one place, private; a struct would only name the arguments twice
fn consider_unit<'a>(
    unit: &'a UnitSpec,
    state: &UnitState,
    inputs: Inputs,
    leaves: bool,
    known: &Known,
    observed: &Observed,
    groups: Lanes,
    batch: &mut Batch<'a>,
    adopt: &mut Vec<(UnitName, RanWith)>,
) {
    let ran = known.units.get(&unit.name);
    let settled = ran.is_some_and(|ran| ran.settled);
    let intended = batch.brings_news();
    batch
        .units
        .insert(unit.name.clone(), batch::UnitPart { spec: unit, restart: inputs.restart, reload: inputs.reload });

    let wanted = wanted_here(unit, leaves, known);
    // A standby starts, when it does, with what is on disk.
    let stands_by = wanted != unit.state
        && !intended
        && ran.is_none_or(|ran| (ran.restart, ran.reload) != (inputs.restart, inputs.reload));
    match wanted {
        Wanted::Masked | Wanted::Stopped => {
            if state.is_running() {
                batch.moves.push(UnitMove::Stop(unit));
            } else if known.pending.contains_key(&unit.name) || stands_by {
                // A run died between the stop and its note.
                let mut now =
                    RanWith::now(inputs.restart, inputs.reload, &state.invocation, &observed.boot_id, &groups);
                now.settled = settled;
                adopt.push((unit.name.clone(), now));
            }
            if wanted == Wanted::Masked && !state.masked {
                batch.moves.push(UnitMove::Mask(unit));
            }
        }
        Wanted::Running => {
            if state.masked {
                batch.moves.push(UnitMove::Unmask(unit));
            }
            if !state.is_running() {
                batch.moves.push(UnitMove::Start(unit));
            } else {
                match runs_with(known, &unit.name, state, &observed.boot_id, inputs) {
                    RunsWith::Nobody if !intended => adopt.push((
                        unit.name.clone(),
                        RanWith::now(inputs.restart, inputs.reload, &state.invocation, &observed.boot_id, &groups),
                    )),
                    RunsWith::Nobody | RunsWith::Uncertain => batch.moves.push(UnitMove::Restart(unit)),
                    RunsWith::Digests { restart, .. } if restart != inputs.restart => {
                        batch.moves.push(UnitMove::Restart(unit));
                    }
                    RunsWith::Digests { reload, .. } if reload != inputs.reload => {
                        batch.moves.push(UnitMove::Reload(unit));
                    }
                    RunsWith::Digests { .. } => {
                        let open = known.pending.contains_key(&unit.name);
                        if open || ran.is_none_or(|ran| ran.invocation != state.invocation || ran.lanes != groups) {
                            let mut now = RanWith::now(
                                inputs.restart,
                                inputs.reload,
                                &state.invocation,
                                &observed.boot_id,
                                &groups,
                            );
                            now.settled = settled;
                            adopt.push((unit.name.clone(), now));
                        }
                    }
                }
            }
        }
    }
    match unit.enabled.filter(|_| !leaves).or(leaves.then_some(false)) {
        Some(true) if !state.enabled => batch.moves.push(UnitMove::Enable(unit)),
        Some(false) if state.enabled => batch.moves.push(UnitMove::Disable(unit)),
        _ => {}
    }
    if state.needs_daemon_reload {
        batch.daemon_reload = true;
    }
    if groups.is_empty() {
        return;
    }
    batch.groups.extend(groups.into_keys());
    let stops = batch.moves.iter().any(|action| match action {
        UnitMove::Restart(spec) | UnitMove::Stop(spec) => spec.name == unit.name,
        UnitMove::Reload(spec) => spec.name == unit.name && spec.reload_hold,
        _ => false,
    });
    let need = if !stops && !intended {
        HoldNeed::None
    } else if settled {
        HoldNeed::Required
    } else if state.is_running() {
        HoldNeed::RequiredIfHealthy
    } else {
        HoldNeed::None
    };
    batch.hold = batch.hold.max(need);
}

/// Nothing but reloads that the repository wants without a hold, and nothing new but what they are for.
fn reloads_freely<'a>(batch: &Batch<'_>, mut placed: impl Iterator<Item = &'a Placed>) -> bool {
    let free = |action: &UnitMove<'_>| matches!(action, UnitMove::Reload(unit) if !unit.reload_hold);
    let more = !batch.packages.is_empty() || !batch.artifacts.is_empty();
    let more = more || !batch.actions.is_empty() || !batch.membership.is_empty();
    let news = batch.files.iter().filter(|file| file.why == Why::Intended).map(|file| &file.spec.path);
    let news: BTreeSet<&HostPath> = news.collect();
    let only_reloads = |placed: &Placed| placed.restarts.is_empty() && placed.before.is_empty();
    !batch.moves.is_empty()
        && batch.moves.iter().all(free)
        && !more
        && placed.all(|placed| match &placed.resource {
            Resource::File(spec) => only_reloads(placed) || !news.contains(&spec.path),
            _ => true,
        })
}

enum RunsWith {
    /// We never started it and never saw it run.
    Nobody,
    Digests {
        restart: Digest,
        reload: Digest,
    },
    /// It was started while its files were being exchanged.
    Uncertain,
}

/// What a running unit runs with: what it was last started with by us, unless somebody else started it since.
fn runs_with(known: &Known, unit: &UnitName, state: &UnitState, boot_id: &str, inputs: Inputs) -> RunsWith {
    let ran = known.units.get(unit);
    if let Some(pending) = known.pending.get(unit) {
        let restarted = state.invocation != pending.invocation || *boot_id != pending.boot_id;
        return match (restarted, pending.swapped) {
            (true, true) => RunsWith::Digests { restart: pending.restart, reload: pending.reload },
            (true, false) => RunsWith::Uncertain,
            (false, _) => match ran {
                Some(ran) => RunsWith::Digests { restart: ran.restart, reload: ran.reload },
                None => RunsWith::Uncertain,
            },
        };
    }
    match ran {
        // Started again by somebody else, and what it starts with was changed too: by whom first is not known.
        Some(ran) if inputs.drifted && ran.invocation != state.invocation => RunsWith::Uncertain,
        // Started again by somebody else: with the files that we left there.
        Some(ran) => RunsWith::Digests { restart: ran.restart, reload: ran.reload },
        None => RunsWith::Nobody,
    }
}

/// What we own and nobody wants any more: each unit that must be stopped with its own files, then all the rest.
fn removals<'a>(
    wanted: &BTreeSet<Id>,
    known: &'a Known,
    observed: &Observed,
    batches: &mut [Batch<'a>],
) -> Vec<Batch<'a>> {
    let mut rest = Batch::named("what left the repository".to_owned(), None, batch::Phase::Removal);
    let mut retired: BTreeMap<UnitName, Batch<'a>> = BTreeMap::new();
    let gone = || known.owned.iter().filter(|(id, _)| !wanted.contains(id));
    for (id, _) in gone().filter(|(id, _)| id.kind == Kind::Unit) {
        let unit = UnitName::new(id.name.clone());
        let state = observed.units.get(&unit).cloned().unwrap_or_else(UnitState::missing);
        if !state.loaded || !(state.is_running() || state.enabled) {
            rest.forget.push(id.clone());
            continue;
        }
        let mut batch = Batch::named(format!("{unit}, which left the repository"), None, batch::Phase::Removal);
        let groups = known.units.get(&unit).map(RanWith::protected_by).unwrap_or_default();
        if !groups.is_empty() && state.is_running() {
            batch.groups.extend(groups.into_keys());
            batch.hold = HoldNeed::Required;
        }
        batch.retire.push(unit.clone());
        retired.insert(unit, batch);
    }
    for (id, owned) in gone() {
        // What a unit of ours used goes when that unit stops, as what is new to it comes.
        let users = known.uses.get(id);
        let used =
            |batch: &&mut Batch<'_>| users.is_some_and(|users| users.iter().any(|unit| batch.units.contains_key(unit)));
        let user = batches.iter_mut().find(used).filter(|_| !owned.keep);
        let rest = match user {
            Some(batch) => {
                batch.hold = batch.hold.max(need_of(batch, known, observed));
                batch
            }
            None => &mut rest,
        };
        match id.kind {
            Kind::Unit => {}
            Kind::File => {
                let path = HostPath::new(id.name.clone());
                let batch = unit_of(&path).and_then(|unit| retired.get_mut(unit)).unwrap_or(rest);
                let there = !matches!(observed.files.get(&path), None | Some(FileState::Absent));
                match owned.secret {
                    _ if owned.keep => batch.forget.push(id.clone()),
                    // Also where it is gone already: its backups go too.
                    true => {
                        batch.removals.push((path, Previous::Gone));
                        batch.secrets_near = true;
                    }
                    false if there => batch.removals.push((path, Previous::Kept)),
                    false => batch.forget.push(id.clone()),
                }
            }
            // Only those that were not there before us are owned.
            Kind::Package => match observed.packages.get(&id.name) {
                Some(PackageState::Installed { .. } | PackageState::Half(_)) => rest.uninstall.push(&id.name),
                Some(PackageState::Absent) => rest.forget.push(id.clone()),
                Some(PackageState::Unknown(_)) | None => {}
            },
            // After the units that leave: they may run from there.
            Kind::Artifact => rest.discards.push(HostPath::new(id.name.clone())),
            // What actions did stays: taking it away is never implied.
            Kind::Action => rest.forget.push(id.clone()),
        }
    }
    retired.into_values().chain([rest]).collect()
}

/// The hold that a batch needs for something that it brings or takes away.
fn need_of(batch: &Batch<'_>, known: &Known, observed: &Observed) -> HoldNeed {
    let running = |unit: &UnitName| observed.units.get(unit).is_some_and(UnitState::is_running);
    let settled = |unit: &UnitName| known.units.get(unit).is_some_and(|ran| ran.settled);
    match batch.groups.is_empty() {
        true => HoldNeed::None,
        false if batch.units.keys().any(settled) => HoldNeed::Required,
        false if batch.units.keys().any(running) => HoldNeed::RequiredIfHealthy,
        false => HoldNeed::None,
    }
}

/// The unit whose unit file or drop-in this is.
fn unit_of(path: &HostPath) -> Option<&str> {
    let name = path.as_str().strip_prefix("/etc/systemd/system/")?;
    Some(name.split_once(".d/").map_or(name, |(unit, _)| unit))
}

/// Resources that go live together.
struct Component {
    name: String,
    role: Option<RoleName>,
    phase: batch::Phase,
    resources: Vec<usize>,
}

impl Component {
    fn units<'a>(&self, resources: &'a [Placed]) -> Vec<(&'a UnitSpec, Inputs)> {
        let mine = || self.resources.iter().map(|&index| &resources[index]);
        mine()
            .filter_map(|placed| match &placed.resource {
                Resource::Unit(unit) => Some(unit),
                _ => None,
            })
            .map(|unit| {
                let digest = |concerns: &dyn Fn(&Placed) -> bool| {
                    let mut parts: Vec<Digest> = vec![unit.inputs()];
                    let mut inputs: Vec<_> = mine().filter(|placed| placed.is_enforced() && concerns(placed)).collect();
                    inputs.sort_by_key(|placed| placed.resource.id());
                    parts.extend(inputs.iter().map(|placed| placed.resource.inputs()));
                    Digest::of_parts(parts.iter().map(|part| part.bytes().as_slice()))
                };
                let restart = digest(&|placed| placed.restarts.contains(&unit.name));
                let reload = digest(&|placed| placed.reloads.contains(&unit.name));
                (unit, Inputs { restart, reload, drifted: false })
            })
            .collect()
    }
}

struct Components {
    /// For each resource, the smallest index of its component.
    root: Vec<usize>,
    /// Whether the component has a unit.
    has_unit: Vec<bool>,
    /// Whether all its units mount something.
    mounts: Vec<bool>,
}

impl Components {
    fn of(resources: &[Placed], groups: &[&Group]) -> Self {
        let mut root: Vec<usize> = (0..resources.len()).collect();
        let units: BTreeMap<&UnitName, usize> = resources
            .iter()
            .enumerate()
            .filter_map(|(index, placed)| match &placed.resource {
                Resource::Unit(unit) => Some((&unit.name, index)),
                _ => None,
            })
            .collect();
        fn find(root: &mut [usize], mut at: usize) -> usize {
            while root[at] != at {
                root[at] = root[root[at]];
                at = root[at];
            }
            at
        }
        for (index, placed) in resources.iter().enumerate() {
            let named = placed.restarts.iter().chain(&placed.reloads).chain(&placed.before);
            for unit in named.chain(membership::unit_of(placed, groups)) {
                if let Some(&other) = units.get(unit) {
                    let (a, b) = (find(&mut root, index), find(&mut root, other));
                    let (low, high) = (a.min(b), a.max(b));
                    root[high] = low;
                }
            }
        }
        let root: Vec<usize> = (0..resources.len()).map(|index| find(&mut root, index)).collect();
        let mut has_unit = vec![false; resources.len()];
        let mut mounts = vec![true; resources.len()];
        for (unit, index) in units {
            has_unit[root[index]] = true;
            mounts[root[index]] &= is_mount(unit);
        }
        Self { root, has_unit, mounts }
    }

    /// Users first, then what belongs to no unit (role by role), then each unit's own.
    fn in_order(&self, resources: &[Placed]) -> Vec<Component> {
        let mut components: Vec<Component> = Vec::new();
        let mut by_key: BTreeMap<(batch::Phase, String), usize> = BTreeMap::new();
        for (index, placed) in resources.iter().enumerate() {
            let root = self.root[index];
            let role = &placed.origin.role;
            let (phase, name) = if is_of_cluster(&placed.resource) {
                (batch::Phase::Cluster, placed.resource.id().to_string())
            } else if self.has_unit[root] {
                (if self.mounts[root] { batch::Phase::Mounts } else { batch::Phase::Unit }, format!("{root}"))
            } else if is_user(&placed.resource) {
                (batch::Phase::Users, format!("users of {role}"))
            } else {
                (batch::Phase::Role, role.to_string())
            };
            let at = *by_key.entry((phase, name.clone())).or_insert_with(|| {
                components.push(Component { name, role: Some(role.clone()), phase, resources: Vec::new() });
                components.len() - 1
            });
            components[at].resources.push(index);
        }
        for component in &mut components {
            if matches!(component.phase, batch::Phase::Unit | batch::Phase::Mounts) {
                let units = component.resources.iter().filter_map(|&index| match &resources[index].resource {
                    Resource::Unit(unit) => Some(unit.name.as_str()),
                    _ => None,
                });
                component.name = units.collect::<Vec<_>>().join(", ");
            }
        }
        components
    }
}

/// An action for the whole cluster. Membership changes are not: they are each member's own.
fn is_of_cluster(resource: &Resource) -> bool {
    matches!(resource, Resource::Action(spec) if spec.scope == Scope::Cluster && spec.on.is_empty())
}

fn is_mount(unit: &UnitName) -> bool {
    [".mount", ".automount", ".swap"].iter().any(|kind| unit.as_str().ends_with(kind))
}

fn is_user(resource: &Resource) -> bool {
    matches!(resource, Resource::File(spec) if spec.path.as_str().contains("/sysusers.d/"))
}
