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

mod candidates;
mod circles;
mod lend;
mod publish;
mod source;
mod strikes;
pub mod touched;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use circles::open_session;
pub use circles::{circles, interests, windows};
use publish::{Facts, blank, expose, fights_now, publish, tell, tell_error};
use source::Source;
pub use strikes::strikes;

use crate::apply::{self, ApplyError, Outcome, Reach, Tools};
use crate::clock::Clock;
use crate::diagnostics::{self, Style};
use crate::disk::DiskError;
use crate::fleet::load::{self, Loaded};
use crate::fleet::problem::{Problem, Severity};
use crate::fleet::schema::Membership;
use crate::fleet::select::select;
use crate::fleet::tree::Tree;
use crate::fleet::{Fleet, agents, rule};
use crate::fleetlock::desk::Asked;
use crate::git::accepted::AcceptedFiles;
use crate::git::{GitError, Repository};
use crate::host::confirm::{self, Undone};
use crate::host::{FileQuery, Host, HostError, Observed, Query, Step};
use crate::ledger::{Ledger, LedgerError};
use crate::lock::lent::Permission;
use crate::lock::quorum::Because;
use crate::lock::session::{self, Record, RecordPhase, Session};
use crate::lock::store::{LockStore, StoreError};
use crate::name::{CommitId, HostPath, NodeName, UnitName};
use crate::paths::Paths;
use crate::pause;
use crate::plan::changes::{self, Before, Change};
use crate::plan::guard::{self, Target};
use crate::plan::risk::{self, Area};
use crate::plan::show::{self, Paint};
use crate::plan::{self, Known, Plan, reboot};
use crate::probe::Probe;
use crate::reason::{self, Reason, chain};
use crate::render::{Desired, Renderer};
use crate::report::{self, At, Note, Report, State};
use crate::resource::file::FileState;
use crate::resource::{Digest, Kind, Resource};
use crate::secrets::fingerprint::Fingerprints;
use crate::secrets::identities::Identities;
use crate::secrets::{Unsealed, tls, unseal};
use crate::settings::{Settings, TrustRoot};
use crate::settle::Vigil;
use crate::singletons::Singletons;
use crate::trust::Verified;
use crate::update::Updater;
use crate::{errno, reach};

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
    /// Another machine lives under this node's name.
    pub doubled: Option<Because>,
    pub probe: &'w (dyn Probe + Sync),
    pub clock: &'w dyn Clock,
    /// Set when the agent was asked to stop.
    pub stop: &'w AtomicBool,
    /// Members that must prove themselves: how long each has been healthy.
    pub vigil: &'w mut Vigil,
    pub singletons: &'w mut Singletons,
    /// What is known of the agent's own version.
    pub updater: &'w mut Updater,
    /// Digest of everything local that the desired state depends on: agent version, settings, identities.
    pub local: Digest,
    pub mode: Mode,
    /// When the remotes were last asked.
    pub inquiry: &'w mut Inquiry,
    /// Somebody else wants to reboot the machine, and waits for this run's answer.
    pub asked: Option<Asked>,
}

/// When the remotes were last asked, in awake time, if there was nothing to complain of. While holds go round a group its
/// members look often, and none of that is news of the branch.
#[derive(Default)]
pub struct Inquiry {
    at: Option<Duration>,
    /// What led to this run says nothing of the branch.
    pub is_no_news: bool,
}

impl Inquiry {
    const LATELY: Duration = Duration::from_secs(5);

    fn spares(&self, poll_secs: u64, clock: &dyn Clock) -> bool {
        let lately = Self::LATELY.min(Duration::from_secs(poll_secs));
        self.is_no_news && self.at.is_some_and(|at| clock.awake().saturating_sub(at) < lately)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Apply,
    /// Change nothing on the host; bring back the plan.
    DryRun,
    /// That for what this node has accepted, without a remote; nothing at all is written.
    Look,
}

/// A plan for people and for machines.
pub struct Shown {
    pub text: String,
    pub changes: Vec<Change>,
}

/// How a run ended.
pub struct Ran {
    pub report: Report,
    /// What was done, for people; empty if nothing was.
    pub lines: Vec<String>,
    /// In a dry run.
    pub plan: Option<Shown>,
    /// Come back this soon: something is settling or waiting.
    pub again_in: Option<Duration>,
    /// Nothing had moved: most hops were not needed.
    pub still: bool,
    /// Managed files, for the drift watch; `None`: as before.
    pub managed: Option<Vec<HostPath>>,
    /// Those that are not put back for now, whoever touches them.
    pub resting: Vec<HostPath>,
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
            Self::Host(error) => error.reason(),
            Self::Ledger(_) | Self::Disk(_) | Self::Apply(_) | Self::Settle(_) | Self::Store { .. } => {
                errno::reason_of(self).unwrap_or(reason::APPLY_FAILED)
            }
        }
    }
}

/// One run. An error is told like any other end of a run: a node that cannot go on must not look like one that is well.
pub fn run(world: &mut World<'_>) -> Result<Ran, PipelineError> {
    let began = world.clock.awake();
    let ran = hops(world);
    if let Err(error) = &ran
        && world.mode == Mode::Apply
    {
        tell_error(world, error);
    }
    if world.mode == Mode::Apply && !ran.as_ref().is_ok_and(|ran| ran.still) {
        expose(world, world.clock.awake().saturating_sub(began));
    }
    lend::unanswered(world, &ran);
    ran
}

fn hops(world: &mut World<'_>) -> Result<Ran, PipelineError> {
    if let Some(ran) = going_down(world)? {
        return Ok(ran);
    }
    let undone = undo(world)?;
    let source = match world.mode {
        Mode::Apply if world.inquiry.spares(world.settings.poll.secs, world.clock) => source::accepted(world)?,
        Mode::Apply | Mode::DryRun => source::fetch_and_verify(world)?,
        Mode::Look => source::accepted(world)?,
    };
    if let Some(ran) = unmoved(world, &source)? {
        return Ok(ran);
    }
    let (Rendered { fleet, own }, at, complaint) = newest_good(world, source)?;
    if world.mode == Mode::Apply {
        let nodes = &fleet.environment.nodes;
        let standing = nodes.iter().filter(|node| node.state != Membership::Retired).map(|node| node.name.clone());
        let standing: Vec<NodeName> = standing.collect();
        world.ledger.set_peers(nodes.iter().map(|node| node.name.clone()).collect(), &standing)?;
    }
    let Some((spec, (secrets, mut desired))) = select(&fleet, &world.settings.node).zip(own) else {
        return not_in_topology(world, at, complaint);
    };
    let renderer = Renderer::new(&fleet);
    desired.strikes = strikes(&renderer, &fleet, &spec, world.store.ok());
    let fights = fights_now(world, &at)?;
    let known = Known { resting: fights.resting(world.clock.now()), ..world.ledger.known()? };
    let observed = observe(world.host, &desired, &known, world.ledger.fingerprints())?;
    // After the look at the units: what runs by then may.
    let known = Known { held: world.singletons.plan_with(), ..known };
    let mut plan = plan::plan(&desired, &observed, &known, &spec.groups);
    if world.mode == Mode::Apply {
        world.ledger.set_booted(&plan.booted)?;
        world.ledger.keep_rolled_back(&risk::wanted(&plan, &desired))?;
    }
    if world.mode != Mode::Apply {
        return dry_run(world, &plan, at, complaint);
    }
    let fingerprints = world.ledger.fingerprints();
    let target = Target { fleet: &fleet, desired: &desired, unsealed: &secrets, fingerprints, lifted: &[] };
    let seen = target.seen();
    world.ledger.saw_secrets(seen)?;
    let session =
        open_session(world, &renderer, &spec, &secrets, &known, &observed, &at).map_err(repository_problems)?;
    if let Some(undone) = undone {
        told(&undone, world, &session)?;
    }
    if let Some((batch, blocked)) = plan.refused()
        && session.record().is_some_and(|record| record.batch == batch && record.phase == RecordPhase::Acting)
    {
        session.broken(&blocked.why)?;
    }
    let settling = world.vigil.look(&session, &spec, &observed, world.ledger, world.settings, &plan)?;
    let pause = pause::in_force(&world.paths.pause(), &observed.boot_id, world.clock)?;
    let put_off = match &pause {
        Some(_) => {
            session.withdraw();
            // What was interrupted under a hold is brought to its end: its member may be down because of us.
            let acting = |record: &Record| matches!(record.phase, RecordPhase::Acting | RecordPhase::Repairing);
            plan.put_off(session.record().filter(acting).map(|record| record.batch).as_deref())
        }
        None => Vec::new(),
    };
    let ask = |areas: &BTreeSet<Area>| reach::reached(&session, world.root, spec.node, areas);
    let reach = match world.settings.sandbox {
        None => Reach { ask: &ask, pause: &reach::pause },
        Some(_) => Reach::NOTHING,
    };
    let mut tools = Tools {
        host: world.host,
        ledger: world.ledger,
        session: &session,
        stop: world.stop,
        observed: &observed,
        reach: &reach,
    };
    let mut outcome = match session.permission() {
        // The machine may go down at any moment: nothing is begun, as before a reboot of our own.
        Permission::Fresh => Outcome { rebooting: true, ..Outcome::default() },
        Permission::Nobody | Permission::Unused(_) => apply::apply(&plan, &mut tools)?,
    };
    if let Some((pause, _)) = &pause {
        let because = pause.because(&observed.boot_id, world.clock);
        outcome.deferred.extend(put_off.into_iter().map(|batch| (batch, because.clone())));
    }
    let ready = candidates::ready(&plan, &outcome, pause.as_ref().map(|(pause, _)| pause));
    world.singletons.stand_for(candidates::of(&desired, &ready), candidates::ordinary(&desired));
    if let Some((pause, _)) = pause.as_ref().filter(|_| world.asked.as_ref().is_some_and(Asked::wants_to_reboot)) {
        // Somebody works on this machine.
        outcome.deferred.push((reboot::BY_ANOTHER.to_owned(), pause.because(&observed.boot_id, world.clock)));
    }
    let outcome = lend::serve(&mut world.asked, outcome, &plan, &session, world.host, world.ledger, &spec)?;
    let leads = if spec.groups.is_empty() { Vec::new() } else { session.leads() };
    let holds = session.record();
    let mut interests = interests(&session, &plan.elects, &outcome);
    let agent = world.updater.look(agents::wanted(&fleet.environment, spec.node), &observed.boot_id);
    interests.extend(world.updater.interests());
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
        holds,
        fights,
        certificates: tls::ending(&secrets, world.clock.now()),
        pause,
        window_opens_in: session.window_opens_in(),
        agent,
    };
    publish(world, facts, interests)
}

/// A reboot was asked for in this boot. One that does not come counts as the last try.
fn going_down(world: &mut World<'_>) -> Result<Option<Ran>, PipelineError> {
    let mut booted = world.ledger.booted()?;
    let Some(asked) = booted.asked.as_mut().filter(|_| world.mode == Mode::Apply) else { return Ok(None) };
    if asked.boot_id != world.host.observe(&Query::default())?.boot_id {
        return Ok(None);
    }
    if world.clock.awake().saturating_sub(Duration::from_millis(asked.at_ms)) > reboot::DOWN_WITHIN {
        asked.boot_id.clear();
        asked.times = reboot::REBOOTS_MAX;
        world.ledger.set_booted(&booted)?;
        return Ok(None);
    }
    let fresh = || Report::new(&world.settings.node, &world.settings.environment, world.clock.now());
    let mut report = report::read(&world.paths.report()).unwrap_or_else(fresh);
    report.state = State::Applying;
    report.explain(Because::new(reason::REBOOTING, None, reason::REBOOTING.sentence.to_owned()));
    let again_in = Some(Duration::from_secs(10));
    Ok(Some(Ran {
        report,
        lines: Vec::new(),
        plan: None,
        again_in,
        still: false,
        managed: None,
        resting: Vec::new(),
        interests: None,
    }))
}

/// A node-risk batch that was live when the agent or the machine died, or that the timer put back since: what is remembered
/// of it is as it was before.
fn undo(world: &mut World<'_>) -> Result<Option<Undone>, PipelineError> {
    let state = world.paths.state();
    if world.mode != Mode::Apply {
        return Ok(None);
    }
    if confirm::is_open(&state) {
        world.host.perform(&Step::RollBack("the agent ended before it was confirmed"))?;
    }
    let undone = confirm::undone(&state);
    if let Some(Undone { undo, why }) = &undone {
        world.ledger.interrupted(undo, &format!("{} put back: {why}", undo.batch))?;
        // Once: a run that ends before its end must not count it again.
        world.host.perform(&Step::Noted)?;
    }
    Ok(undone)
}

/// The hold that was taken for it has failed, unless it is tried once more.
fn told(undone: &Undone, world: &World<'_>, session: &Session<'_>) -> Result<(), PipelineError> {
    let name = &undone.undo.batch;
    let refused = world.ledger.known()?.rolled_back.contains_key(&undone.undo.digest.to_string());
    if refused && session.record().is_some_and(|record| record.batch == *name) {
        session.broken(&format!("{name} put back: {}", undone.why))?;
    }
    Ok(())
}

fn store_error(commit: &CommitId, source: GitError) -> PipelineError {
    PipelineError::Store { commit: commit.to_string(), source }
}

/// How long a converged node is believed to be as it was without asking everything again.
const AUDIT_SECS: i64 = 600;

/// Nothing moved since the last converged run: same commit, same local settings, every file with the same stamp, every unit
/// in the same run of itself. Then there is nothing to render and nothing to do.
fn unmoved(world: &mut World<'_>, source: &Source) -> Result<Option<Ran>, PipelineError> {
    let apply = world.mode == Mode::Apply && !world.singletons.have_moved();
    if !apply || source.complaint.is_some() || world.updater.on_trial() || world.asked.is_some() {
        return Ok(None);
    }
    if pause::read(&world.paths.pause())?.is_some() {
        return Ok(None);
    }
    let proven = publish::proven(world)?;
    let Some(seal) = world.ledger.seal()? else { return Ok(None) };
    let Some(last) = report::read(&world.paths.report()) else { return Ok(None) };
    let age = world.clock.now().duration_since(last.at).as_secs();
    let same = seal.key == world.local
        && seal.at.commit == *source.verified.commit()
        && last.state == State::Converged
        && !last.untold
        && last.proven == proven
        && (0..AUDIT_SECS).contains(&age)
        && session::read_record(&world.paths.hold()).is_none();
    if !same {
        return Ok(None);
    }
    let query = Query {
        files: seal
            .files
            .iter()
            // Only the stamp is looked at.
            .map(|(path, stamp)| FileQuery { path, known: Some((*stamp, seal.key)), bytes_unless: None })
            .collect(),
        units: seal.units.iter().map(|(unit, _)| unit).collect(),
        ..Query::default()
    };
    let observed = world.host.observe(&query)?;
    let files = seal.files.iter().all(|(path, stamp)| {
        matches!(observed.files.get(path), Some(FileState::Regular(regular)) if regular.stamp == *stamp)
    });
    let units = seal.units.iter().all(|(unit, state)| observed.units.get(unit) == Some(state));
    Ok((files && units).then(|| Ran {
        report: last,
        lines: Vec::new(),
        plan: None,
        again_in: None,
        still: true,
        managed: None,
        resting: Vec::new(),
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
                    if world.mode != Mode::Look {
                        world.ledger.set_good(&at)?;
                    }
                    return Ok((rendered, at, complaint));
                }
                Some(because) => because,
            },
            Err(problems) if good.as_ref() == Some(&at) => return Err(repository_problems(problems)),
            Err(problems) if problems.iter().any(|problem| problem.rule == rule::FORMAT_VERSION) => {
                let newer = problems.iter().filter(|problem| problem.rule == rule::FORMAT_VERSION);
                let what: Vec<String> = newer.map(|one| format!("{}: {}", one.path, one.title)).collect();
                Because::new(reason::AGENT_TOO_OLD, None, format!("{}: {}", at.commit.short(), what.join("; ")))
            }
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
    let lifted = world.ledger.lifted(verified.seq())?;
    let fingerprints = world.ledger.fingerprints();
    Ok(guard::judge(&Target { fleet: &rendered.fleet, desired, unsealed, fingerprints, lifted: &lifted }, &known))
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

fn not_in_topology(world: &mut World<'_>, at: At, complaint: Option<Because>) -> Result<Ran, PipelineError> {
    let sentence = format!("{} does not name {}", at.commit.short(), world.settings.node);
    let mut report = blank(world, &at)?;
    report.state = State::NotInTopology;
    report.explain(Because::new(reason::NOT_IN_TOPOLOGY, None, sentence.clone()));
    // A newer commit may name it, and be held back.
    report.notes.extend(complaint.map(Note::of_source));
    if world.mode == Mode::Apply {
        // It is a candidate for nothing any more.
        world.singletons.stand_for(Vec::new(), []);
        tell(world, &mut report)?;
    }
    Ok(Ran {
        report,
        lines: vec![sentence],
        plan: None,
        again_in: None,
        still: false,
        managed: Some(Vec::new()),
        resting: Vec::new(),
        interests: Some(Vec::new()),
    })
}

/// Looks at what is wanted, and at what is ours and not wanted any more.
#[tracing::instrument(skip_all)]
pub fn observe(
    host: &dyn Host,
    desired: &Desired,
    known: &Known,
    fingerprints: &Fingerprints,
) -> Result<Observed, HostError> {
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
                let wanted = spec.content.bytes().map(Digest::of);
                // What we left there is worth knowing only as long as it is what is wanted.
                let left = |wanted: &Digest| owned.is_some_and(|own| own.content == Some(fingerprints.of(*wanted)));
                let stamp = wanted.filter(left).and_then(|wanted| Some((owned?.stamp?, wanted)));
                query.files.push(FileQuery { path: &spec.path, known: stamp, bytes_unless: wanted });
            }
            Resource::Unit(spec) => query.units.push(&spec.name),
            Resource::Package(spec) => query.packages.push(&spec.name),
            Resource::Artifact(spec) => query.artifacts.push(spec),
            Resource::Action(spec) if plan::membership::is_due(placed, desired.state) => query.actions.push(spec),
            Resource::Action(_) => {}
        }
    }
    query.actions.extend(desired.strikes.iter().map(|strike| &strike.action));
    // What we own and nobody wants any more is looked at too, to be removed.
    let installed = known.owned.keys().filter(|id| id.kind == Kind::Package).map(|id| id.name.as_str());
    let unwanted: Vec<&str> = installed.filter(|name| !query.packages.contains(name)).collect();
    query.packages.extend(unwanted);
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
    for unit in &known.along {
        if !query.units.contains(&unit) {
            query.units.push(unit);
        }
    }
    query.stop_sets = true;
    host.observe(&query)
}

fn dry_run(world: &mut World<'_>, plan: &Plan<'_>, at: At, complaint: Option<Because>) -> Result<Ran, PipelineError> {
    let mut report = blank(world, &at)?;
    if let Some(because) = complaint {
        report.state = State::of_source(because.reason());
        report.explain(because);
    } else if !plan.is_empty() {
        report.state = State::Waiting;
        report.reason = reason::DRY_RUN.id.to_owned();
    }
    Ok(Ran {
        report,
        lines: Vec::new(),
        plan: Some(Shown { text: show::node(plan, Paint::COLOUR), changes: changes::of(plan, &Before::Host) }),
        again_in: None,
        still: false,
        managed: None,
        resting: Vec::new(),
        interests: None,
    })
}
