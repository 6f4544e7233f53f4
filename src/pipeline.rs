//! The whole way of a commit to a node, top to bottom: ten hops, each a call, no channel between them.
//!
//! ```text
//! Remote -fetch-> Fetched -verify-> Verified -load-> Fleet -select-> NodeSpec -unseal-> Secrets
//! (NodeSpec, Secrets) -render-> Desired ; (Desired, Ledger) -observe-> Observed
//! (Desired, Observed) -plan-> Plan -apply-> Outcome -publish-> Report
//! ```
//!
//! A source that fails or is refused does not end the run: the last good commit goes on being enforced, and the report says
//! so. Nothing on the host changes before the plan is whole. Never: a decision; the hops make them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::apply::{self, ApplyError, Outcome, Tools, chain};
use crate::clock::Clock;
use crate::diagnostics::{self, Style};
use crate::disk::DiskError;
use crate::fleet::load::{self, Loaded};
use crate::fleet::problem::{Problem, Severity};
use crate::fleet::select::{NodeSpec, select};
use crate::fleet::tree::Tree;
use crate::git::accepted::AcceptedFiles;
use crate::git::{GitError, Repository};
use crate::host::{FileQuery, Host, HostError, Observed, Query};
use crate::ledger::{Ledger, LedgerError, Seal};
use crate::lock::protocol;
use crate::lock::quorum::Because;
use crate::lock::session::{self, Circle, Session};
use crate::lock::store::{LockStore, StoreError};
use crate::name::{CommitId, HostPath, NodeName, UnitName};
use crate::paths::Paths;
use crate::plan::{self, Known, Owned, Plan, show};
use crate::probe::Probe;
use crate::reason::{self, Reason};
use crate::render::{Desired, Renderer};
use crate::report::{self, At, Note, Report, State, UnitHealth};
use crate::resource::file::{FileState, Policy};
use crate::resource::{Digest, Kind, Resource};
use crate::secrets::identities::Identities;
use crate::secrets::unseal;
use crate::settings::{Settings, TrustRoot};
use crate::settle::{Settling, Vigil};
use crate::trust::Verified;

/// Everything a run works with. It lives as long as the agent.
pub struct World<'w> {
    pub settings: &'w Settings,
    pub root: &'w TrustRoot,
    pub paths: &'w Paths,
    pub repository: &'w mut Repository,
    /// The last accepted commit: the floor below which this node never goes.
    pub accepted: &'w mut AcceptedFiles,
    pub ledger: &'w mut Ledger,
    pub identities: &'w Identities,
    pub host: &'w dyn Host,
    pub store: Result<&'w dyn LockStore, &'w StoreError>,
    pub probe: &'w (dyn Probe + Sync),
    pub clock: &'w dyn Clock,
    /// Set when the agent was asked to stop.
    pub stop: &'w AtomicBool,
    /// Members that must prove themselves: how long each has been healthy.
    pub vigil: &'w mut Vigil,
    /// Digest of everything local that the desired state depends on: agent version, settings, identities.
    pub local: Digest,
    pub mode: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Apply,
    /// Change nothing; bring back the plan as text.
    DryRun(show::Paint),
}

/// How a run ended.
pub struct Ran {
    pub report: Report,
    /// What was done, for people; empty if nothing was.
    pub lines: Vec<String>,
    /// The plan, in a dry run.
    pub plan: Option<String>,
    /// Come back this soon: something is settling or waiting.
    pub again_in: Option<Duration>,
    /// Nothing had moved: most hops were not needed.
    pub still: bool,
    /// Managed files, for the drift watch; `None`: as before.
    pub managed: Option<Vec<HostPath>>,
    /// Keys whose change should wake this node.
    pub interests: Option<Vec<String>>,
}

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Settle(#[from] crate::settle::SettleError),
    #[error("the verified commit {commit} cannot be read from this node's own store")]
    Store { commit: String, source: GitError },
    /// Nothing was ever accepted here, so there is nothing to enforce.
    #[error("{}", .0.sentence)]
    NothingToEnforce(Box<Because>),
}

impl PipelineError {
    /// The one place where an error becomes an exit code.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NothingToEnforce(because) => because.reason(),
            Self::Ledger(_) | Self::Disk(_) | Self::Host(_) | Self::Apply(_) | Self::Settle(_) | Self::Store { .. } => {
                reason::APPLY_FAILED
            }
        }
    }
}

/// One run.
pub fn run(world: &mut World<'_>) -> Result<Ran, PipelineError> {
    let source = fetch_and_verify(world)?;
    if let Some(ran) = unmoved(world, &source)? {
        return Ok(ran);
    }
    let (tree, at, complaint) = good_tree(world, source)?;
    let Loaded { fleet, .. } = load::load(&tree, Some(&world.settings.environment)).map_err(repository_problems)?;
    let Some(spec) = select(&fleet, &world.settings.node) else {
        return not_in_topology(world, at);
    };
    let secrets = unseal(&spec, world.identities);
    let renderer = Renderer::new(&fleet);
    let desired = renderer.node(&spec, &secrets).map_err(repository_problems)?;
    let known = world.ledger.known()?;
    let observed = observe(world.host, &desired, &known)?;
    let plan = plan::plan(&desired, &observed, &known, &spec.groups);
    if let Mode::DryRun(paint) = world.mode {
        return dry_run(world, &plan, at, complaint, paint);
    }
    let session =
        open_session(world, &renderer, &spec, &secrets, &known, &observed, &at).map_err(repository_problems)?;
    let settling = world.vigil.look(&session, &spec, &observed, world.ledger, world.settings)?;
    let mut tools =
        Tools { host: world.host, ledger: world.ledger, session: &session, stop: world.stop, observed: &observed };
    let outcome = apply::apply(&plan, &mut tools)?;
    let leads = if spec.groups.is_empty() { Vec::new() } else { session.leads() };
    let holds = session.record().map(|record| record.holds.into_iter().map(|(hold, _)| hold.group).collect());
    let interests = interests(&spec);
    let facts = Facts {
        desired: &desired,
        plan: &plan,
        observed: &observed,
        outcome,
        settling,
        at,
        complaint,
        leads,
        holds: holds.unwrap_or_default(),
    };
    publish(world, facts, interests)
}

/// The newest commit that is verified, and what is wrong with what the remotes offer.
struct Source {
    verified: Verified,
    complaint: Option<Because>,
}

#[tracing::instrument(skip_all, fields(node = %world.settings.node))]
fn fetch_and_verify(world: &mut World<'_>) -> Result<Source, PipelineError> {
    let before = world.accepted.accepted().cloned();
    let offered = world.repository.fetch(world.root, before.as_ref());
    let offered = offered.and_then(|fetched| fetched.verify(world.root, before.as_ref()));
    let complaint = match offered {
        Ok(verified) if before.as_ref() == Some(verified.accepted()) => {
            return Ok(Source { verified, complaint: None });
        }
        Ok(verified) => {
            for commit in verified.new_commits() {
                tracing::info!(commit = %commit.id, subject = %commit.subject, "verified");
            }
            world.repository.admit(&verified).map_err(|source| store_error(verified.commit(), source))?;
            world.accepted.keep(verified.accepted())?;
            return Ok(Source { verified, complaint: None });
        }
        Err(GitError::Refused(refusal)) => {
            Because::new(refusal.reason, None, refusal.to_string()).ends(refusal.reason.mend)
        }
        Err(error) => Because::new(error.reason(), None, chain(&error)),
    };
    match before.and_then(|accepted| world.repository.resume(world.root, &accepted)) {
        Some(verified) => Ok(Source { verified, complaint: Some(complaint) }),
        None => Err(PipelineError::NothingToEnforce(Box::new(complaint))),
    }
}

fn store_error(commit: &CommitId, source: GitError) -> PipelineError {
    PipelineError::Store { commit: commit.to_string(), source }
}

/// How long a converged node is believed to be as it was without asking everything again.
const AUDIT_SECS: i64 = 600;

/// Nothing moved since the last converged run: same commit, same local settings, every file with the same stamp, every unit
/// in the same run of itself. Then there is nothing to render and nothing to do.
fn unmoved(world: &mut World<'_>, source: &Source) -> Result<Option<Ran>, PipelineError> {
    if world.mode != Mode::Apply || source.complaint.is_some() {
        return Ok(None);
    }
    let Some(seal) = world.ledger.seal()? else { return Ok(None) };
    let Some(last) = report::read(&world.paths.report()) else { return Ok(None) };
    let age = world.clock.now().duration_since(last.at).as_secs();
    let same = seal.key == world.local
        && seal.at.commit == *source.verified.commit()
        && last.state == State::Converged
        && (0..AUDIT_SECS).contains(&age)
        && session::read_record(&world.paths.hold()).is_none();
    if !same {
        return Ok(None);
    }
    let query = Query {
        files: seal
            .files
            .iter()
            .map(|(path, stamp, digest)| FileQuery {
                path,
                known: Some((*stamp, *digest)),
                bytes_unless: Some(*digest),
            })
            .collect(),
        units: seal.units.iter().map(|(unit, _)| unit).collect(),
        ..Query::default()
    };
    let observed = world.host.observe(&query)?;
    let files = seal.files.iter().all(|(path, stamp, _)| {
        matches!(observed.files.get(path), Some(FileState::Regular(regular)) if regular.stamp == *stamp)
    });
    let units = seal.units.iter().all(|(unit, invocation)| {
        observed.units.get(unit).is_some_and(|state| state.invocation == *invocation && !state.needs_daemon_reload)
    });
    Ok((files && units).then(|| Ran {
        report: last,
        lines: Vec::new(),
        plan: None,
        again_in: None,
        still: true,
        managed: None,
        interests: None,
    }))
}

/// The tree to enforce: the verified commit's, or, while that one has problems that touch this node, the last good one's.
fn good_tree(world: &mut World<'_>, source: Source) -> Result<(Arc<Tree>, At, Option<Because>), PipelineError> {
    let Source { verified, mut complaint } = source;
    let limits = &world.root.limits;
    let at = At { commit: verified.commit().clone(), seq: verified.seq(), subject: verified.subject().to_owned() };
    let good = world.ledger.good()?;
    let problems = match world.repository.tree(&verified, limits).map(Arc::new) {
        Ok(tree) if good.as_ref() == Some(&at) => return Ok((tree, at, complaint)),
        Ok(tree) => match problems_for(&tree, world) {
            problems if problems.is_empty() => {
                world.ledger.set_good(&at)?;
                return Ok((tree, at, complaint));
            }
            problems => diagnostics::render(&problems, &tree, Style::default()),
        },
        Err(error) => chain(&error),
    };
    let sentence = format!("{} has problems:\n{problems}", at.commit.short());
    let because = Because::new(reason::REPOSITORY_INVALID, None, sentence);
    let Some(good) = good else {
        return Err(PipelineError::NothingToEnforce(Box::new(because)));
    };
    tracing::error!(reason = %because.reason, commit = %at.commit, "keeping {}\n{}", good.commit, because.sentence);
    complaint.get_or_insert(because);
    let tree = world.repository.tree_of_earlier(&verified, &good.commit, limits);
    match tree.map_err(|source| store_error(&good.commit, source))? {
        Some(tree) => Ok((Arc::new(tree), good, complaint)),
        None => Err(PipelineError::NothingToEnforce(Box::new(complaint.unwrap_or_else(|| {
            Because::new(reason::REPOSITORY_INVALID, None, "the last good commit is not on this chain".to_owned())
        })))),
    }
}

/// Every error in a commit that touches this node; a node that the topology does not name is touched by none.
fn problems_for(tree: &Arc<Tree>, world: &World<'_>) -> Vec<Problem> {
    let found = || -> Result<(), Vec<Problem>> {
        let Loaded { fleet, .. } = load::load(tree, Some(&world.settings.environment))?;
        if let Some(spec) = select(&fleet, &world.settings.node) {
            Renderer::new(&fleet).node(&spec, &unseal(&spec, world.identities))?;
        }
        Ok(())
    };
    match found() {
        Ok(()) => Vec::new(),
        Err(problems) => problems.into_iter().filter(|problem| problem.severity == Severity::Error).collect(),
    }
}

/// A commit that was good for this node has problems now: only a newer agent or other local keys can do that.
fn repository_problems(problems: Vec<Problem>) -> PipelineError {
    let titles: Vec<String> = problems.iter().map(|problem| format!("{}: {}", problem.path, problem.title)).collect();
    PipelineError::NothingToEnforce(Box::new(Because::new(reason::REPOSITORY_INVALID, None, titles.join("; "))))
}

fn not_in_topology(world: &mut World<'_>, at: At) -> Result<Ran, PipelineError> {
    let sentence = format!("{} does not name {}", at.commit.short(), world.settings.node);
    let mut report = blank(world, &at)?;
    report.state = State::NotInTopology;
    report.reason = reason::NOT_IN_TOPOLOGY.id.to_owned();
    report.sentence = sentence.clone();
    tell(world, &mut report)?;
    Ok(Ran {
        report,
        lines: vec![sentence],
        plan: None,
        again_in: None,
        still: false,
        managed: Some(Vec::new()),
        interests: Some(Vec::new()),
    })
}

#[tracing::instrument(skip_all)]
fn observe(host: &dyn Host, desired: &Desired, known: &Known) -> Result<Observed, HostError> {
    let mut query = Query::default();
    let leftovers: Vec<(HostPath, UnitName)> = known
        .owned
        .keys()
        .filter(|id| matches!(id.kind, Kind::File | Kind::Unit))
        .map(|id| (HostPath::new(id.name.clone()), UnitName::new(id.name.clone())))
        .collect();
    for placed in &desired.resources {
        match &placed.resource {
            Resource::File(spec) => {
                let owned = known.owned.get(&placed.resource.id());
                let stamp = owned.and_then(|owned| Some((owned.stamp?, owned.content?)));
                let wanted = spec.content.bytes().map(Digest::of);
                query.files.push(FileQuery { path: &spec.path, known: stamp, bytes_unless: wanted });
            }
            Resource::Unit(spec) => query.units.push(&spec.name),
            Resource::Package(spec) => query.packages.push(spec),
            Resource::Artifact(spec) => query.artifacts.push(spec),
            Resource::Action(spec) => query.actions.push(spec),
        }
    }
    // What we own and nobody wants any more is looked at too, to be removed.
    for (path, unit) in &leftovers {
        if path.as_str().starts_with('/') {
            if !query.files.iter().any(|file| file.path == path) {
                query.files.push(FileQuery { path, known: None, bytes_unless: None });
            }
        } else if !query.units.contains(&unit) {
            query.units.push(unit);
        }
    }
    host.observe(&query)
}

fn dry_run(
    world: &mut World<'_>,
    plan: &Plan<'_>,
    at: At,
    complaint: Option<Because>,
    paint: show::Paint,
) -> Result<Ran, PipelineError> {
    let mut report = blank(world, &at)?;
    if let Some(because) = complaint {
        report.reason = because.reason.clone();
        report.sentence = because.sentence;
    } else if !plan.is_empty() {
        report.state = State::Waiting;
        report.reason = reason::DRY_RUN.id.to_owned();
    }
    Ok(Ran {
        report,
        lines: Vec::new(),
        plan: Some(show::node(plan, paint)),
        again_in: None,
        still: false,
        managed: None,
        interests: None,
    })
}

fn open_session<'a>(
    world: &World<'a>,
    renderer: &Renderer<'_>,
    spec: &'a NodeSpec<'_>,
    secrets: &crate::secrets::Unsealed,
    known: &Known,
    observed: &Observed,
    at: &At,
) -> Result<Session<'a>, Vec<Problem>> {
    let environment = &spec.fleet.environment;
    let mut circles = Vec::new();
    for group in &spec.groups {
        let ask = |check: &Option<String>| match check {
            Some(check) => renderer.questions(spec, group, check, secrets),
            None => Ok(Vec::new()),
        };
        let cluster = environment.cluster(&group.id.cluster());
        let after = cluster.map(|cluster| cluster.after.as_slice()).unwrap_or_default().iter().map(|first| {
            let members = environment.cluster(first).map(|cluster| cluster.members.clone()).unwrap_or_default();
            (first.clone(), members)
        });
        circles.push(Circle { group, gate: ask(&group.gate)?, leader: ask(&group.leader)?, after: after.collect() });
    }
    Ok(Session {
        me: &spec.node.name,
        store: world.store.ok(),
        no_store: world.store.err().map(|error| chain(error)).unwrap_or_default(),
        probe: world.probe,
        clock: world.clock,
        boot_id: observed.boot_id.clone(),
        state_is_old: !known.units.is_empty(),
        record_path: world.paths.hold(),
        circles,
        commit: at.commit.clone(),
        seq: at.seq,
    })
}

/// Keys whose change may end a wait of this node.
fn interests(spec: &NodeSpec<'_>) -> Vec<String> {
    let groups = spec.groups.iter().flat_map(|group| {
        let ids = [&group.id].into_iter().chain(&group.aliases).chain(&group.conflicts);
        ids.map(protocol::hold_range).collect::<Vec<_>>()
    });
    let mut peers: Vec<&NodeName> = spec.groups.iter().flat_map(|group| &group.members).collect();
    peers.sort();
    peers.dedup();
    let peers = peers.into_iter().filter(|peer| **peer != spec.node.name).map(protocol::report_key);
    groups.chain(peers).chain([protocol::FREEZES.to_owned(), protocol::WAKE.to_owned()]).collect()
}

struct Facts<'a> {
    desired: &'a Desired,
    plan: &'a Plan<'a>,
    observed: &'a Observed,
    outcome: Outcome,
    settling: Settling,
    at: At,
    complaint: Option<Because>,
    leads: Vec<crate::name::GroupId>,
    holds: Vec<crate::name::GroupId>,
}

#[tracing::instrument(skip_all)]
fn publish(world: &mut World<'_>, facts: Facts<'_>, interests: Vec<String>) -> Result<Ran, PipelineError> {
    let Facts { desired, plan, observed, outcome, settling, at, complaint, leads, holds } = facts;
    let known = world.ledger.known()?;
    let settled_again = session::read_record(&world.paths.hold());
    let unsettled = plan.units.iter().any(|(unit, groups)| {
        let wanted = plan.running.contains(unit) && !groups.is_empty();
        wanted && known.units.get(unit).is_none_or(|ran| !ran.settled)
    });
    let acted_now =
        unsettled || settled_again.as_ref().is_some_and(|record| record.phase == session::RecordPhase::Settling);
    let converged = outcome.is_converged() && settling.is_over() && settled_again.is_none() && !unsettled;
    let mut report = blank(world, &at)?;
    report.drift_repaired = world.ledger.count_drift(outcome.drift as u64)?;
    report.audit = plan.audit.iter().map(ToString::to_string).collect();
    report.leads = leads;
    report.holds = holds;
    report.units = unit_health(world.host, desired, &known, &outcome)?;
    let note = |(batch, because): &(String, Because)| Note {
        batch: batch.clone(),
        reason: because.reason.clone(),
        because: because.clone(),
    };
    report.notes = outcome.failed.iter().chain(&outcome.deferred).map(note).collect();
    let first = |list: &[(String, Because)]| list.first().map(|(_, because)| because.clone());
    // A member that was restarted in this very run is judged from now on, whatever it was before.
    let failed_before = settling.failed.clone().filter(|_| !acted_now);
    let main = failed_before
        .map(|because| (State::Failed, because))
        .or_else(|| first(&outcome.failed).map(|because| (State::Failed, because)))
        .or_else(|| settling.settling.clone().map(|because| (State::Applying, because)))
        .or_else(|| {
            acted_now.then(|| (State::Applying, Because::new(reason::SETTLING, None, "restarted, settling".to_owned())))
        })
        .or_else(|| first(&outcome.deferred).map(|because| (State::Waiting, because)));
    if converged {
        let changed = world.ledger.applied()?.as_ref() != Some(&at);
        if changed || !outcome.done.is_empty() {
            world.ledger.set_applied(&at, world.clock.now(), &summary(&outcome))?;
        }
        report.applied = Some(at.clone());
    }
    let untouched = converged && outcome.done.is_empty();
    let seal = untouched.then(|| seal(world.local, &at, desired, observed)).flatten();
    world.ledger.set_seal(seal.as_ref())?;
    freshen(world.ledger, &known, observed)?;
    let (state, because) = match (main, complaint) {
        (Some((state, because)), complaint) => {
            // A refusal stays visible beside a failure or a wait of our own.
            report.notes.extend(complaint.map(|because| Note {
                batch: "source".to_owned(),
                reason: because.reason.clone(),
                because,
            }));
            (state, Some(because))
        }
        (None, Some(because)) => {
            let unreachable = because.reason() == reason::SOURCE_UNREACHABLE;
            (if unreachable { State::Unreachable } else { State::Refused }, Some(because))
        }
        (None, None) => (State::Converged, None),
    };
    report.state = state;
    if let Some(because) = because {
        report.reason = because.reason;
        report.sentence = because.sentence;
    }
    tell(world, &mut report)?;
    let waiting = !outcome.deferred.is_empty();
    let again_in = match (settling.again_in, acted_now, waiting) {
        (Some(again), _, _) => Some(again),
        (None, true, _) => Some(Vigil::FIRST_LOOK),
        // Watches bring us back at once; this is for when they are lost.
        (None, false, true) => Some(Duration::from_secs(10)),
        (None, false, false) => None,
    };
    let lines = outcome.done.iter().flat_map(|acted| acted.lines.iter().cloned()).collect();
    let managed = desired
        .resources
        .iter()
        .filter_map(|placed| match &placed.resource {
            Resource::File(spec) => Some(spec.path.clone()),
            _ => None,
        })
        .collect();
    Ok(Ran { report, lines, plan: None, again_in, still: false, managed: Some(managed), interests: Some(interests) })
}

fn summary(outcome: &Outcome) -> String {
    let files: usize = outcome.done.iter().map(|acted| acted.files).sum();
    let restarts: usize = outcome.done.iter().map(|acted| acted.restarts).sum();
    format!("{files} files, {restarts} restarts")
}

fn unit_health(
    host: &dyn Host,
    desired: &Desired,
    known: &Known,
    outcome: &Outcome,
) -> Result<std::collections::BTreeMap<UnitName, UnitHealth>, HostError> {
    let units = desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::Unit(spec) => Some(&spec.name),
        _ => None,
    });
    let query = Query { units: units.collect(), ..Query::default() };
    let observed = host.observe(&query)?;
    let health = observed.units.iter().map(|(name, state)| {
        let (stop, start) = outcome.durations.get(name).copied().unwrap_or_default();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let settled = known.units.get(name).is_some_and(|ran| ran.settled);
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
                files.push((spec.path.clone(), seen.stamp, seen.digest));
            }
            _ if spec.policy == Policy::Enforce => return None,
            _ => {}
        }
    }
    let units = observed.units.iter().map(|(name, state)| (name.clone(), state.invocation.clone())).collect();
    Some(Seal { key, at: at.clone(), files, units })
}

/// What was hashed again because its stamp had moved need not be hashed next time.
fn freshen(ledger: &mut Ledger, known: &Known, observed: &Observed) -> Result<(), LedgerError> {
    let moved = known.owned.iter().filter_map(|(id, owned)| {
        let FileState::Regular(seen) = observed.files.get(id.name.as_str())? else { return None };
        let fresh = owned.content == Some(seen.digest) && owned.stamp != Some(seen.stamp) && seen.stamp.ctime_ns != 0;
        fresh.then(|| (id.clone(), Owned { stamp: Some(seen.stamp), ..owned.clone() }))
    });
    ledger.own(&moved.collect::<Vec<_>>())
}

fn blank(world: &World<'_>, at: &At) -> Result<Report, PipelineError> {
    let now = world.clock.now();
    Ok(Report {
        node: world.settings.node.clone(),
        environment: world.settings.environment.clone(),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        applied: world.ledger.applied()?,
        target: Some(at.clone()),
        state: State::Converged,
        reason: String::new(),
        sentence: String::new(),
        notes: Vec::new(),
        drift_repaired: world.ledger.drift_repaired()?,
        audit: Vec::new(),
        units: std::collections::BTreeMap::new(),
        holds: Vec::new(),
        leads: Vec::new(),
        proven: std::collections::BTreeMap::new(),
        since: now,
        at: now,
    })
}

/// To the disk and to the store, if it says something new.
fn tell(world: &mut World<'_>, report: &mut Report) -> Result<(), PipelineError> {
    let last = report::read(&world.paths.report());
    if let Some(last) = &last {
        carry_over(report, last);
    }
    let news = last.as_ref().is_none_or(|last| report.differs(last));
    report::write(&world.paths.report(), report)?;
    if news
        && let Ok(store) = world.store
        && let Err(error) = report::publish(store, report)
    {
        tracing::warn!(%error, "the report did not reach the store; it follows with the next one");
    }
    Ok(())
}

/// What outlives a run: when the state began, and how long a unit's last stop and start took.
fn carry_over(report: &mut Report, last: &Report) {
    if last.state == report.state && last.reason == report.reason && last.target == report.target {
        report.since = last.since;
    }
    for (name, unit) in &mut report.units {
        if let Some(before) = last.units.get(name)
            && unit.stop_ms == 0
        {
            unit.stop_ms = before.stop_ms;
            unit.start_ms = before.start_ms;
        }
    }
}
