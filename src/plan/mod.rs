//! What must be done here, and in which batches: a total function of what is wanted, what is there and what we know.
//!
//! Resources joined by `restarts`, `reloads`, `before` and unit files are one batch: they go live together. What belongs to
//! no unit goes first, role by role. "Needs a restart" is a comparison of digests (what the unit runs with, what it should
//! run with), never a remembered event. PURE. Never: fails, or asks the host.

pub mod batch;
pub mod fleetwide;
pub mod guard;
pub mod known;
pub mod show;

use std::collections::{BTreeMap, BTreeSet};

pub use batch::{Batch, Blocked, FileWrite, HoldNeed, UnitMove, Why};
pub use known::{Known, Owned, Pending, RanWith, SecretSeen};

use crate::fleet::Group;
use crate::host::Observed;
use crate::name::{CommitId, GroupId, HostPath, NodeName, RoleName, UnitName};
use crate::reason;
use crate::render::Desired;
use crate::resource::action::ActionState;
use crate::resource::file::{FileChange, FileState, Policy};
use crate::resource::unit::Wanted;
use crate::resource::{Digest, Id, Kind, Placed, Resource, UnitSpec, UnitState};

/// Everything that must be done on one node, in order. Empty batches are kept out.
pub struct Plan<'a> {
    pub node: &'a NodeName,
    pub commit: Option<&'a CommitId>,
    pub batches: Vec<Batch<'a>>,
    /// Differences that `policy = "audit"` only reports.
    pub audit: Vec<Id>,
    /// Units that run with the right inputs although the ledger did not know: to be recorded, nothing to do.
    pub adopt: Vec<(UnitName, RanWith)>,
    /// Every unit of ours, with the groups that its stop would take a member from, by the target commit.
    pub units: BTreeMap<UnitName, Vec<GroupId>>,
    /// Those of them that must run.
    pub running: BTreeSet<UnitName>,
}

impl Plan<'_> {
    /// Nothing to do and nothing unknown.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn files(&self) -> usize {
        self.batches.iter().map(|batch| batch.files.len() + batch.removals.len()).sum()
    }
}

/// `groups`: those that this node is a member of, by the target commit.
pub fn plan<'a>(desired: &'a Desired, observed: &Observed, known: &'a Known, groups: &[&Group]) -> Plan<'a> {
    let components = Components::of(&desired.resources);
    let sealed: BTreeMap<&Id, &str> =
        desired.sealed.iter().map(|sealed| (&sealed.resource, sealed.reason.as_str())).collect();
    let mut audit = Vec::new();
    let mut adopt = Vec::new();
    let mut batches: Vec<Batch<'a>> = Vec::new();

    for component in components.in_order(&desired.resources) {
        let mut batch = Batch::named(component.name.clone(), component.role.clone(), component.phase);
        for &index in &component.resources {
            let placed = &desired.resources[index];
            if let Some(why) = sealed.get(&placed.resource.id()) {
                batch.blocked.push(Blocked {
                    id: placed.resource.id(),
                    reason: reason::SECRET_UNREADABLE,
                    why: (*why).to_owned(),
                });
                continue;
            }
            consider(placed, observed, known, &mut batch, &mut audit);
        }
        for (unit, inputs) in component.units(&desired.resources) {
            let state = observed.units.get(unit.name.as_str()).cloned().unwrap_or_else(UnitState::missing);
            let protecting = groups_of(groups, &unit.name, known.units.get(&unit.name));
            consider_unit(unit, &state, inputs, known, observed, protecting, &mut batch, &mut adopt);
        }
        if reloads_freely(&batch, component.resources.iter().map(|&index| &desired.resources[index])) {
            batch.hold = HoldNeed::None;
        }
        // What belongs to no unit does not wait for a neighbour that cannot be written.
        let alone = if batch.phase == batch::Phase::Unit { None } else { batch.without_blocked() };
        batches.push(batch);
        batches.extend(alone);
    }
    batches.extend(removals(desired, known, observed));
    // Batches of units come last, and of those the unprotected ones first: a wait must not hold up the harmless.
    batches.sort_by_key(|batch| (batch.phase, !batch.groups.is_empty()));
    batches.retain(|batch| !batch.is_empty());
    let units = desired
        .resources
        .iter()
        .filter_map(|placed| match &placed.resource {
            Resource::Unit(unit) => Some((unit.name.clone(), groups_of(groups, &unit.name, None))),
            _ => None,
        })
        .collect();
    let wanted = desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::Unit(unit) if unit.state == Wanted::Running => Some(unit.name.clone()),
        _ => None,
    });
    let running = wanted.collect();
    Plan { node: &desired.node, commit: desired.commit.as_ref(), batches, audit, adopt, units, running }
}

/// The groups that a stop of this unit takes a member from: by the target commit, and by the one that is live, if asked.
fn groups_of(groups: &[&Group], unit: &UnitName, live: Option<&RanWith>) -> Vec<GroupId> {
    let target = groups.iter().filter(|group| group.unit == *unit);
    let mut ids: BTreeSet<GroupId> =
        target.flat_map(|group| group.aliases.iter().cloned().chain([group.id.clone()])).collect();
    if let Some(ran) = live {
        ids.extend(ran.groups.iter().cloned());
    }
    ids.into_iter().collect()
}

fn consider<'a>(placed: &'a Placed, observed: &Observed, known: &Known, batch: &mut Batch<'a>, audit: &mut Vec<Id>) {
    let id = placed.resource.id();
    match &placed.resource {
        Resource::File(spec) => {
            let state = observed.files.get(&spec.path).unwrap_or(&FileState::Absent);
            let Some(change) = spec.diff(state, observed.owners) else { return };
            if spec.policy == Policy::Audit && change != FileChange::Create {
                audit.push(id);
                return;
            }
            if let FileChange::Blocked(what) = change {
                batch.blocked.push(Blocked { id, reason: reason::APPLY_FAILED, why: what });
                return;
            }
            // What we last put there is what is wanted: somebody else changed it since.
            let ours = known.owned.get(&id).is_some_and(|owned| owned.inputs == spec.inputs() && owned.written);
            let why = if ours { Why::Drift } else { Why::Intended };
            let before = match state {
                FileState::Regular(regular) => regular.bytes.clone(),
                _ => None,
            };
            let secret = spec.content.is_secret() || known.owned.get(&id).is_some_and(|owned| owned.secret);
            batch.files.push(FileWrite { spec, change, why, origin: &placed.origin, before, secret });
        }
        Resource::Package(spec) => {
            let unknown = crate::resource::package::PackageState::Unknown("was not asked".to_owned());
            let state = observed.packages.get(&spec.name).unwrap_or(&unknown);
            if let Some(what) = spec.diff(state) {
                batch.packages.push((spec, what));
            }
        }
        Resource::Artifact(spec) => {
            let absent = crate::resource::artifact::ArtifactState::Absent;
            if let Some(what) = spec.diff(observed.artifacts.get(&spec.into).unwrap_or(&absent)) {
                batch.artifacts.push((spec, what));
            }
        }
        Resource::Action(spec) => match observed.actions.get(&spec.name) {
            Some(ActionState::Done) => {}
            // Membership changes belong to holds of their own kind and run with them.
            _ if !spec.on.is_empty() => {}
            Some(ActionState::Unknown(why)) => {
                batch.blocked.push(Blocked { id, reason: reason::APPLY_FAILED, why: why.clone() });
            }
            Some(ActionState::Needed) | None => batch.actions.push(spec),
        },
        Resource::Unit(_) => {}
    }
}

/// The digests of what makes a unit restart and of what makes it reload.
#[derive(Clone, Copy)]
struct Inputs {
    restart: Digest,
    reload: Digest,
}

#[allow(clippy::too_many_arguments)] // one place, private; a struct would only name the arguments twice
fn consider_unit<'a>(
    unit: &'a UnitSpec,
    state: &UnitState,
    inputs: Inputs,
    known: &Known,
    observed: &Observed,
    groups: Vec<GroupId>,
    batch: &mut Batch<'a>,
    adopt: &mut Vec<(UnitName, RanWith)>,
) {
    let ran = known.units.get(&unit.name);
    let settled = ran.is_some_and(|ran| ran.settled);
    let intended = batch.brings_news();
    batch
        .units
        .insert(unit.name.clone(), batch::UnitPart { spec: unit, restart: inputs.restart, reload: inputs.reload });

    match unit.state {
        Wanted::Masked => {
            if state.is_running() {
                batch.moves.push(UnitMove::Stop(unit));
            }
            if !state.masked {
                batch.moves.push(UnitMove::Mask(unit));
            }
        }
        Wanted::Stopped => {
            if state.is_running() {
                batch.moves.push(UnitMove::Stop(unit));
            }
        }
        Wanted::Running => {
            if state.masked {
                batch.moves.push(UnitMove::Unmask(unit));
            }
            if !state.is_running() {
                batch.moves.push(UnitMove::Start(unit));
            } else {
                match runs_with(known, &unit.name, state, &observed.boot_id) {
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
                        if ran.is_none_or(|ran| ran.invocation != state.invocation || ran.groups != groups) {
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
    match unit.enabled {
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
    batch.groups.extend(groups);
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
    let more = !batch.packages.is_empty() || !batch.artifacts.is_empty() || !batch.actions.is_empty();
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
fn runs_with(known: &Known, unit: &UnitName, state: &UnitState, boot_id: &str) -> RunsWith {
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
        // Started again by somebody else: with the files that we left there.
        Some(ran) => RunsWith::Digests { restart: ran.restart, reload: ran.reload },
        None => RunsWith::Nobody,
    }
}

/// What we own and nobody wants any more.
fn removals<'a>(desired: &'a Desired, known: &'a Known, observed: &Observed) -> Option<Batch<'a>> {
    let wanted: BTreeSet<Id> = desired.resources.iter().map(|placed| placed.resource.id()).collect();
    let mut batch = Batch::named("what left the repository".to_owned(), None, batch::Phase::Removal);
    for (id, owned) in &known.owned {
        if wanted.contains(id) {
            continue;
        }
        match id.kind {
            Kind::File => {
                let path = HostPath::new(id.name.clone());
                match observed.files.get(&path) {
                    None | Some(FileState::Absent) => batch.forget.push(id.clone()),
                    Some(_) if owned.keep => batch.forget.push(id.clone()),
                    Some(_) => batch.removals.push(path),
                }
            }
            Kind::Unit => {
                let unit = UnitName::new(id.name.clone());
                let state = observed.units.get(&unit).cloned().unwrap_or_else(UnitState::missing);
                if state.loaded && (state.is_running() || state.enabled) {
                    let groups = known.units.get(&unit).map(|ran| ran.groups.clone()).unwrap_or_default();
                    if !groups.is_empty() && state.is_running() {
                        batch.groups.extend(groups);
                        batch.hold = HoldNeed::Required;
                    }
                    batch.retire.push(unit);
                } else {
                    batch.forget.push(id.clone());
                }
            }
            // Packages, unpacked versions and what actions did stay: taking them away is never implied.
            Kind::Package | Kind::Artifact | Kind::Action => batch.forget.push(id.clone()),
        }
    }
    (!batch.is_empty()).then_some(batch)
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
                    let mut inputs: Vec<_> = mine().filter(|placed| concerns(placed)).collect();
                    inputs.sort_by_key(|placed| placed.resource.id());
                    parts.extend(inputs.iter().map(|placed| placed.resource.inputs()));
                    Digest::of_parts(parts.iter().map(|part| part.bytes().as_slice()))
                };
                let restart = digest(&|placed| placed.restarts.contains(&unit.name));
                let reload = digest(&|placed| placed.reloads.contains(&unit.name));
                (unit, Inputs { restart, reload })
            })
            .collect()
    }
}

struct Components {
    /// For each resource, the smallest index of its component.
    root: Vec<usize>,
    /// Whether the component has a unit.
    has_unit: Vec<bool>,
}

impl Components {
    fn of(resources: &[Placed]) -> Self {
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
            for unit in placed.restarts.iter().chain(&placed.reloads).chain(&placed.before) {
                if let Some(&other) = units.get(unit) {
                    let (a, b) = (find(&mut root, index), find(&mut root, other));
                    let (low, high) = (a.min(b), a.max(b));
                    root[high] = low;
                }
            }
        }
        let root: Vec<usize> = (0..resources.len()).map(|index| find(&mut root, index)).collect();
        let mut has_unit = vec![false; resources.len()];
        for index in units.into_values() {
            has_unit[root[index]] = true;
        }
        Self { root, has_unit }
    }

    /// Users first, then what belongs to no unit (role by role), then each unit's own.
    fn in_order(&self, resources: &[Placed]) -> Vec<Component> {
        let mut components: Vec<Component> = Vec::new();
        let mut by_key: BTreeMap<(batch::Phase, String), usize> = BTreeMap::new();
        for (index, placed) in resources.iter().enumerate() {
            let root = self.root[index];
            let role = &placed.origin.role;
            let (phase, name) = if self.has_unit[root] {
                (batch::Phase::Unit, format!("{root}"))
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
            if component.phase == batch::Phase::Unit {
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

fn is_user(resource: &Resource) -> bool {
    matches!(resource, Resource::File(spec) if spec.path.as_str().contains("/sysusers.d/"))
}
