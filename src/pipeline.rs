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

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::apply::{self, ApplyError, Outcome, Tools};
use crate::clock::Clock;
use crate::diagnostics::{self, Style};
use crate::disk::DiskError;
use crate::fleet::load::{self, Loaded};
use crate::fleet::problem::{Problem, Severity};
use crate::fleet::schema::Quorum;
use crate::fleet::select::{NodeSpec, select};
use crate::fleet::tree::Tree;
use crate::fleet::{Fleet, Group};
use crate::git::accepted::AcceptedFiles;
use crate::git::{GitError, Repository};
use crate::host::{FileQuery, Host, HostError, Observed, Query};
use crate::ledger::{Ledger, LedgerError, Seal};
use crate::lock::protocol;
use crate::lock::quorum::Because;
use crate::lock::session::{self, Circle, Session};
use crate::lock::store::{LockStore, StoreError};
use crate::name::{CommitId, GroupId, HostPath, NodeName, RoleName, UnitName};
use crate::paths::Paths;
use crate::plan::guard::{self, Target};
use crate::plan::{self, Known, Owned, Plan, RanWith, show};
use crate::probe::Probe;
use crate::reason::{self, Reason, chain};
use crate::render::{Desired, Renderer};
use crate::report::{self, At, Note, Report, State, UnitHealth};
use crate::resource::file::{FileState, Policy};
use crate::resource::{Digest, Kind, Resource};
use crate::secrets::identities::Identities;
use crate::secrets::{Unsealed, unseal};
use crate::settings::{Settings, TrustRoot};
use crate::settle::{Settling, Vigil};
use crate::trust::Verified;
use crate::trust::commit::Allowance;

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

/// One run. An error is told like any other end of a run: a node that cannot go on must not look like one that is well.
pub fn run(world: &mut World<'_>) -> Result<Ran, PipelineError> {
    let ran = hops(world);
    if let Err(error) = &ran
        && world.mode == Mode::Apply
    {
        tell_error(world, error);
    }
    ran
}

fn hops(world: &mut World<'_>) -> Result<Ran, PipelineError> {
    let source = fetch_and_verify(world)?;
    if let Some(ran) = unmoved(world, &source)? {
        return Ok(ran);
    }
    let (Rendered { fleet, own }, at, complaint) = newest_good(world, source)?;
    let Some((spec, (secrets, desired))) = select(&fleet, &world.settings.node).zip(own) else {
        return not_in_topology(world, at);
    };
    let renderer = Renderer::new(&fleet);
    let known = world.ledger.known()?;
    let observed = observe(world.host, &desired, &known)?;
    let plan = plan::plan(&desired, &observed, &known, &spec.groups);
    if let Mode::DryRun(paint) = world.mode {
        return dry_run(world, &plan, at, complaint, paint);
    }
    let target = Target { fleet: &fleet, desired: &desired, unsealed: &secrets, lifted: &[] };
    world.ledger.saw_secrets(target.seen())?;
    let session =
        open_session(world, &renderer, &spec, &secrets, &known, &observed, &at).map_err(repository_problems)?;
    let settling = world.vigil.look(&session, &spec, &observed, world.ledger, world.settings)?;
    let mut tools =
        Tools { host: world.host, ledger: world.ledger, session: &session, stop: world.stop, observed: &observed };
    let outcome = apply::apply(&plan, &mut tools)?;
    let leads = if spec.groups.is_empty() { Vec::new() } else { session.leads() };
    let holds = session.record().map(|record| record.holds.into_iter().map(|(hold, _)| hold.group).collect());
    let interests = interests(&session);
    let facts = Facts {
        desired: &desired,
        plan: &plan,
        known: &known,
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
    let floor = world.ledger.good()?.filter(|_| before.is_none());
    let complaint = match offered {
        // What was accepted is lost, but the ledger still knows how far this node was.
        Ok(verified) if floor.as_ref().is_some_and(|floor| verified.seq() < floor.seq) => {
            let floor = floor.map_or(0, |floor| floor.seq);
            let (commit, seq) = (verified.commit().short(), verified.seq());
            let sentence = format!("{commit} is number {seq} of the branch, this node was at number {floor}");
            Because::new(reason::ROLLBACK, None, sentence)
        }
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
        Err(GitError::Refused(mut refusal)) => {
            // What was accepted may have problems of its own: then an earlier commit is in force.
            if let Some(good) = world.ledger.good()? {
                refusal.last_good = Some(good.commit);
            }
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

/// A commit as this node sees it.
struct Rendered {
    fleet: Fleet,
    /// `None`: the topology does not name this node.
    own: Option<(Unsealed, Desired)>,
}

/// What to enforce: the verified commit, or, while that one has problems that touch this node, the last good one.
fn newest_good(world: &mut World<'_>, source: Source) -> Result<(Rendered, At, Option<Because>), PipelineError> {
    let Source { verified, mut complaint } = source;
    let limits = &world.root.limits;
    let at = At { commit: verified.commit().clone(), seq: verified.seq(), subject: verified.subject().to_owned() };
    let good = world.ledger.good()?;
    let because = match world.repository.tree(&verified, limits).map(Arc::new) {
        Ok(tree) => match rendered(&tree, world) {
            Ok(rendered) if good.as_ref() == Some(&at) => return Ok((rendered, at, complaint)),
            Ok(rendered) => match held_back(&rendered, &verified, world)? {
                None => {
                    world.ledger.set_good(&at)?;
                    return Ok((rendered, at, complaint));
                }
                Some(because) => because,
            },
            Err(problems) if good.as_ref() == Some(&at) => return Err(repository_problems(problems)),
            Err(problems) => {
                let errors = problems.into_iter().filter(|problem| problem.severity == Severity::Error);
                invalid(&at.commit, &diagnostics::render(&errors.collect::<Vec<_>>(), &tree, Style::default()))
            }
        },
        Err(error) => invalid(&at.commit, &chain(&error)),
    };
    let Some(good) = good else {
        return Err(PipelineError::NothingToEnforce(Box::new(because)));
    };
    complaint.get_or_insert(because);
    let tree = world.repository.tree_of_earlier(&verified, &good.commit, limits);
    match tree.map_err(|source| store_error(&good.commit, source))? {
        Some(tree) => Ok((rendered(&Arc::new(tree), world).map_err(repository_problems)?, good, complaint)),
        None => Err(PipelineError::NothingToEnforce(Box::new(complaint.unwrap_or_else(|| {
            Because::new(reason::REPOSITORY_INVALID, None, "the last good commit is not on this chain".to_owned())
        })))),
    }
}

fn invalid(commit: &CommitId, problems: &str) -> Because {
    Because::new(reason::REPOSITORY_INVALID, None, format!("{} has problems:\n{problems}", commit.short()))
}

/// A guard that keeps this node from taking a commit.
fn held_back(rendered: &Rendered, verified: &Verified, world: &World<'_>) -> Result<Option<Because>, PipelineError> {
    let Some((unsealed, desired)) = &rendered.own else { return Ok(None) };
    let known = world.ledger.known()?;
    let applied = world.ledger.applied()?;
    let since = applied.as_ref().map(|at| &at.commit);
    let lifted = world.repository.allowances(verified, since, &world.root.limits);
    let lifted = lifted.map_err(|source| store_error(verified.commit(), source))?;
    let lifted: Vec<Allowance> = lifted.into_iter().map(|(_, one)| one).collect();
    Ok(guard::judge(&Target { fleet: &rendered.fleet, desired, unsealed, lifted: &lifted }, &known))
}

/// Errors: every problem of a commit that touches this node; a node that the topology does not name is touched by none.
fn rendered(tree: &Arc<Tree>, world: &World<'_>) -> Result<Rendered, Vec<Problem>> {
    let Loaded { fleet, .. } = load::load(tree, Some(&world.settings.environment))?;
    let own = match select(&fleet, &world.settings.node) {
        None => None,
        Some(spec) => {
            let secrets = unseal(&spec, world.identities);
            let desired = Renderer::new(&fleet).node(&spec, &secrets)?;
            Some((secrets, desired))
        }
    };
    Ok(Rendered { fleet, own })
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

/// Looks at what is wanted, and at what is ours and not wanted any more.
#[tracing::instrument(skip_all)]
pub fn observe(host: &dyn Host, desired: &Desired, known: &Known) -> Result<Observed, HostError> {
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
    let wanted: HashSet<&HostPath> = query.files.iter().map(|file| file.path).collect();
    for (path, unit) in &leftovers {
        if path.as_str().starts_with('/') {
            if !wanted.contains(path) {
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
        report.state = State::of_source(because.reason());
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
    Ok(Session {
        me: &spec.node.name,
        store: world.store.map_err(session::because_of),
        probe: world.probe,
        clock: world.clock,
        boot_id: observed.boot_id.clone(),
        state_is_old: !known.units.is_empty(),
        record_path: world.paths.hold(),
        pin_path: world.paths.store_pin(),
        circles: circles(renderer, spec, secrets, known)?,
        commit: at.commit.clone(),
        seq: at.seq,
    })
}

/// The groups that this node is a member of by the target commit, and those that protect a unit as it runs now.
pub fn circles<'a>(
    renderer: &Renderer<'_>,
    spec: &NodeSpec<'a>,
    secrets: &crate::secrets::Unsealed,
    known: &Known,
) -> Result<Vec<Circle<'a>>, Vec<Problem>> {
    let environment = &spec.fleet.environment;
    let me = &spec.node.name;
    let conflicts = |group: &Group| -> Vec<GroupId> {
        let with_aliases = group.conflicts.iter().flat_map(|id| {
            let aliases = environment.groups().find(|other| other.id == *id).map(|other| other.aliases.as_slice());
            std::iter::once(id).chain(aliases.unwrap_or_default())
        });
        with_aliases.cloned().collect()
    };
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
        circles.push(Circle {
            group: Cow::Borrowed(*group),
            conflicts: conflicts(group),
            gate: ask(&group.gate)?,
            leader: ask(&group.leader)?,
            after: after.collect(),
        });
    }
    for (unit, ran) in &known.units {
        for id in &ran.groups {
            if circles.iter().any(|circle| circle.ids().any(|known| known == id)) {
                continue;
            }
            // This node has left it, or it is gone. Its members are those of today, and this one: it still counts.
            let is_it = |group: &&Group| group.id == *id || group.aliases.contains(id);
            let today = environment.groups().find(is_it).filter(|group| !group.members.is_empty());
            let gate = today.and_then(|group| renderer.questions(spec, group, group.gate.as_ref()?, secrets).ok());
            let mut group = today.cloned().unwrap_or_else(|| gone(id, unit));
            group.members.push(me.clone());
            let conflicts = conflicts(&group);
            // A gate that cannot be asked leaves everybody unknown, which is down.
            let gate = gate.unwrap_or_default();
            circles.push(Circle { group: Cow::Owned(group), conflicts, gate, leader: Vec::new(), after: Vec::new() });
        }
    }
    Ok(circles)
}

/// A group that the target commit does not declare: nobody needs it any more, so there is nothing to count. Who still
/// has an older commit sees the hold under its name.
fn gone(id: &GroupId, unit: &UnitName) -> Group {
    Group {
        id: id.clone(),
        members: Vec::new(),
        quorum: Quorum::None,
        max_unavailable: 1,
        rank: Vec::new(),
        conflicts: Vec::new(),
        aliases: Vec::new(),
        unit: unit.clone(),
        gate: None,
        leader: None,
        settle_secs: 0,
        role: RoleName::new(""),
    }
}

/// Keys whose change may end a wait of this node.
fn interests(session: &Session<'_>) -> Vec<String> {
    let groups = session.circles.iter().flat_map(|circle| circle.ids().chain(&circle.conflicts));
    let groups: BTreeSet<&GroupId> = groups.collect();
    let peers = session.circles.iter().flat_map(|circle| &circle.group.members);
    let peers: BTreeSet<&NodeName> = peers.filter(|peer| *peer != session.me).collect();
    let keys = groups.into_iter().map(protocol::hold_range).chain(peers.into_iter().map(protocol::report_key));
    let always = [protocol::FREEZES.to_owned(), protocol::WAKE.to_owned(), protocol::dead_key(session.me)];
    keys.chain(always).collect()
}

struct Facts<'a> {
    desired: &'a Desired,
    plan: &'a Plan<'a>,
    /// Before anything was done.
    known: &'a Known,
    observed: &'a Observed,
    outcome: Outcome,
    settling: Settling,
    at: At,
    complaint: Option<Because>,
    leads: Vec<GroupId>,
    holds: Vec<GroupId>,
}

#[tracing::instrument(skip_all)]
fn publish(world: &mut World<'_>, facts: Facts<'_>, interests: Vec<String>) -> Result<Ran, PipelineError> {
    let Facts { desired, plan, known, observed, outcome, settling, at, complaint, leads, holds } = facts;
    let ran = world.ledger.units()?;
    let settled_again = session::read_record(&world.paths.hold());
    let unsettled = plan.units.iter().any(|(unit, groups)| {
        let wanted = plan.running.contains(unit) && !groups.is_empty();
        wanted && ran.get(unit).is_none_or(|ran| !ran.settled)
    });
    let acted_now =
        unsettled || settled_again.as_ref().is_some_and(|record| record.phase == session::RecordPhase::Settling);
    let converged = outcome.is_converged() && settling.is_over() && settled_again.is_none() && !unsettled;
    let mut report = blank(world, &at)?;
    report.drift_repaired = world.ledger.count_drift(outcome.drift as u64)?;
    report.audit = plan.audit.iter().map(ToString::to_string).collect();
    report.leads = leads;
    report.holds = holds;
    report.units = unit_health(world.host, desired, &ran, &outcome)?;
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
    world.ledger.set_seal(seal)?;
    // After a change the ledger knows more than this run saw; the next run sees it.
    if outcome.done.is_empty() && outcome.failed.is_empty() {
        freshen(world.ledger, known, observed)?;
    }
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
        (None, Some(because)) => (State::of_source(because.reason()), Some(because)),
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
    ran: &BTreeMap<UnitName, RanWith>,
    outcome: &Outcome,
) -> Result<BTreeMap<UnitName, UnitHealth>, HostError> {
    let units = desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::Unit(spec) => Some(&spec.name),
        _ => None,
    });
    let query = Query { units: units.collect(), ..Query::default() };
    let observed = host.observe(&query)?;
    let health = observed.units.iter().map(|(name, state)| {
        let (stop, start) = outcome.durations.get(name).copied().unwrap_or_default();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let settled = ran.get(name).is_some_and(|ran| ran.settled);
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
    Ok(Report {
        applied: world.ledger.applied()?,
        target: Some(at.clone()),
        drift_repaired: world.ledger.drift_repaired()?,
        proven: world.ledger.proven()?,
        ..Report::new(&world.settings.node, &world.settings.environment, world.clock.now())
    })
}

/// The disk and the store may be what is wrong: each is told as far as it listens.
fn tell_error(world: &World<'_>, error: &PipelineError) {
    let last = report::read(&world.paths.report());
    let now = world.clock.now();
    let fresh = || Report::new(&world.settings.node, &world.settings.environment, now);
    let mut report = last.clone().unwrap_or_else(fresh);
    report.state = match error {
        PipelineError::NothingToEnforce(because) => State::of_source(because.reason()),
        _ => State::Failed,
    };
    report.reason = error.reason().id.to_owned();
    report.sentence = chain(error);
    report.notes.clear();
    (report.since, report.at) = (now, now);
    if let Some(last) = &last {
        carry_over(&mut report, last);
    }
    if let Err(error) = report::write(&world.paths.report(), &report) {
        tracing::warn!("the report cannot be written: {}", chain(&error));
    }
    if last.is_none_or(|last| report.differs(&last))
        && let Ok(store) = world.store
        && let Err(error) = report::publish(store, &report)
    {
        tracing::warn!(%error, "the report did not reach the store; it follows with the next one");
    }
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
