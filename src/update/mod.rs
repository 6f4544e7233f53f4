//! The agent takes another version of itself: which one the commit wants, when its turn is, and how the trial ends.
//!
//! A step between two runs of an agent at rest, never inside one: wait for the canaries, bring the program, take the hold on
//! `converger.agents`, write down that it is on trial, exec. The new program's first whole run ends the trial and gives the
//! hold back; a timer outside the agent ends it otherwise ([`launch`]). Never: two steps at once; never: a program that
//! failed here before.

pub mod fetch;
pub mod launch;
pub mod state;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::Clock;
use crate::disk::DiskError;
use crate::fleet::MemberChange;
use crate::fleet::agents::{UNIT, Wanted, group_id};
use crate::ledger::{Ledger, LedgerError};
use crate::lock::protocol;
use crate::lock::quorum::{Because, Hold, HoldPhase};
use crate::lock::session::{self, Circle, Entry, Intent, Record, RecordPhase, Session};
use crate::lock::store::{LockStore, StoreError};
use crate::name::NodeName;
use crate::paths::Paths;
use crate::probe::Probe;
use crate::reason::{self, Exit, chain};
use crate::report::{At, Report};
use crate::settings::Rooted;
use state::{Build, Installed, State, Trial};

/// How a program becomes the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// The unit's own process becomes it.
    Exec,
    /// Below a root it is only written down that it did, and the next run counts as its own.
    Told,
    /// Not the unit's process: nobody would bring the old one back.
    Never,
}

/// What the agent remembers of its own update between runs.
pub struct Updater {
    folder: PathBuf,
    way: Way,
    own: Option<PathBuf>,
    /// Digest of `own`, once it was asked for.
    own_digest: Option<String>,
    wanted: Option<Wanted>,
    boot_id: String,
    on_trial: bool,
    /// What came of the last step for what is wanted.
    last: Option<Because>,
    /// Awake time before which nothing is fetched again.
    not_before: Duration,
}

/// How the run before this step ended.
pub struct Ended {
    /// `None`: it did not come to its end.
    pub exit: Option<Exit>,
    /// Nothing was done in it, nothing settles, no hold is armed.
    pub at_rest: bool,
    /// What it was a run of; `None`: of nothing.
    pub target: Option<At>,
    /// The last step is all that it complains of.
    pub only_update: bool,
}

/// What a step works with.
pub struct Errand<'a> {
    pub me: &'a NodeName,
    pub paths: &'a Paths,
    pub store: Result<&'a dyn LockStore, &'a StoreError>,
    pub probe: &'a (dyn Probe + Sync),
    pub clock: &'a dyn Clock,
    pub ledger: &'a mut Ledger,
}

/// What the agent does after a step.
#[derive(PartialEq, Eq, Debug)]
pub enum Next {
    /// As it would have.
    Go,
    /// Run again now: something is to be told, or a trial begins.
    Again,
    /// Something is still to be done, soon.
    Soon,
    /// Become this program: the one that the unit starts.
    Become(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the program of this agent cannot be looked at")]
    Own(#[source] std::io::Error),
}

/// After a source that failed; a mirror is not asked at every wake-up.
const FETCH_AGAIN: Duration = Duration::from_secs(600);

impl Updater {
    pub fn new(paths: &Paths, rooted: Rooted) -> Self {
        let folder = paths.agents();
        let folder = folder.canonicalize().unwrap_or(folder);
        let way = match rooted {
            Rooted::Below => Way::Told,
            Rooted::Host if launch::in_unit() => Way::Exec,
            Rooted::Host => Way::Never,
        };
        let on_trial = state::read(&folder).is_ok_and(|state| state.trial.is_some());
        Self {
            folder,
            way,
            own: launch::own_program(),
            own_digest: None,
            wanted: None,
            boot_id: String::new(),
            on_trial,
            last: None,
            not_before: Duration::ZERO,
        }
    }

    /// What this program does is judged by its whole runs: none of them may be left out.
    pub fn on_trial(&self) -> bool {
        self.on_trial
    }

    /// Whether one process sees an update to its end: below a root.
    pub fn goes_on_here(&self) -> bool {
        self.way == Way::Told
    }

    /// Told by every whole run: what its commit wants. Why this node does not run it settled; `None`: it does.
    pub fn look(&mut self, wanted: Option<Wanted>, boot_id: &str) -> Option<Because> {
        let digest = |wanted: &Option<Wanted>| wanted.as_ref().map(|wanted| wanted.sha256.clone());
        if digest(&wanted) != digest(&self.wanted) {
            (self.last, self.not_before) = (None, Duration::ZERO);
        }
        self.wanted = wanted;
        boot_id.clone_into(&mut self.boot_id);
        self.standing().unwrap_or_else(|error| Some(because(reason::UPDATE_FAILED, chain(&error))))
    }

    fn standing(&mut self) -> Result<Option<Because>, UpdateError> {
        let Some(wanted) = self.wanted.clone() else { return Ok(None) };
        let state = state::read(&self.folder)?;
        let running = self.running(&state)?;
        if let Some(why) = state.bad.get(&wanted.sha256) {
            return Ok(Some(because(reason::UPDATE_FAILED, why.clone())));
        }
        let (now, then) = (&running.version, &wanted.version);
        if running.sha256 == wanted.sha256 {
            let sentence = format!("converger {now} is on trial until this run is over");
            return Ok(state.trial.is_some().then(|| because(reason::AGENT_UPDATE, sentence)));
        }
        Ok(Some(match &self.last {
            Some(last) => last.clone(),
            None => because(reason::AGENT_UPDATE, format!("converger {now} runs, {then} is wanted")),
        }))
    }

    /// Digest of this agent's program, once it has proved itself; not looked up where no commit asks.
    pub fn settled(&mut self) -> Option<String> {
        self.wanted.as_ref()?;
        let state = state::read(&self.folder).ok().filter(|state| state.trial.is_none())?;
        self.running(&state).ok().map(|build| build.sha256)
    }

    /// Keys whose change may bring this node's turn.
    pub fn interests(&self) -> Vec<String> {
        let Some(wanted) = self.wanted.as_ref().filter(|_| self.last.is_some()) else { return Vec::new() };
        let canaries = wanted.canaries.iter().map(|(canary, _)| protocol::report_key(canary));
        canaries.chain([protocol::hold_range(&wanted.group.id)]).collect()
    }

    fn running(&mut self, state: &State) -> Result<Build, UpdateError> {
        let known = state.trial.iter().map(|trial| &trial.build).chain(&state.current);
        let mut here = known.filter(|build| match self.way {
            Way::Told => true,
            Way::Exec | Way::Never => self.own.as_deref() == Some(&build.program(&self.folder)),
        });
        if let Some(build) = here.next() {
            return Ok(build.clone());
        }
        let sha256 = match &self.own_digest {
            Some(digest) => digest.clone(),
            // The bytes that run, also where another file has their name by now.
            None => fetch::digest(Path::new("/proc/self/exe")).map_err(UpdateError::Own)?,
        };
        self.own_digest = Some(sha256.clone());
        Ok(Build { version: env!("CARGO_PKG_VERSION").to_owned(), sha256 })
    }

    /// The step after a run. What goes wrong is told by the next one.
    pub fn after(&mut self, ended: &Ended, mut errand: Errand<'_>) -> Next {
        let step = self.step(ended, &mut errand);
        step.unwrap_or_else(|error| self.remember(because(reason::UPDATE_FAILED, chain(&error))))
    }

    /// The exec did not happen: nothing was exchanged, and it is not tried again.
    pub fn not_become(&mut self, why: &str) {
        tracing::error!("{why}");
        if let Err(error) = state::change(&self.folder, |state| state.back(why)) {
            tracing::error!("{}", chain(&error));
        }
        self.on_trial = false;
    }

    fn step(&mut self, ended: &Ended, errand: &mut Errand<'_>) -> Result<Next, UpdateError> {
        let record = session::read_record(&self.record_path());
        if self.wanted.is_none() && record.is_none() && !self.on_trial {
            return Ok(Next::Go);
        }
        let mut state = state::read(&self.folder)?;
        let running = self.running(&state)?;
        if let Some(trial) = state.trial.as_ref().filter(|trial| trial.build == running) {
            if !state::is_proof(trial.before, ended.exit) {
                // Maybe the next run does: until the watcher says that the time is over.
                return Ok(Next::Soon);
            }
            let before = state.current.take();
            state = state::change(&self.folder, |state| {
                // The watcher may have been faster.
                state.proved();
                state.clone()
            })?;
            tracing::info!(version = running.version, "the agent completed its trial");
            // The one before it stays for a revert.
            let keep: Vec<&Build> = before.iter().chain([&running]).collect();
            fetch::prune(&self.folder, &keep);
        }
        self.on_trial = state.trial.is_some();
        let wanted = self.wanted.clone();
        let bad = wanted.as_ref().and_then(|wanted| state.bad.get(&wanted.sha256));
        let as_wanted = wanted.as_ref().is_none_or(|wanted| wanted.sha256 == running.sha256);
        let Some(target) = &ended.target else { return Ok(Next::Go) };
        if let Some(record) = record {
            let session = self.session(errand, target);
            let again = record.phase == RecordPhase::Failed && record.commit == target.commit;
            match bad {
                Some(why) => fail(&session, &record, why)?,
                None if as_wanted => return self.give_back(errand, target, &record),
                // The trial ended without an end (another program was installed), or somebody lets it be tried again.
                None if record.phase == RecordPhase::Settling || again => {
                    return self.give_back(errand, target, &record);
                }
                None => {}
            }
        }
        match wanted {
            Some(wanted) if !as_wanted && bad.is_none() => self.take(&wanted, ended, target, errand),
            _ => Ok(Next::Go),
        }
    }

    fn take(
        &mut self,
        wanted: &Wanted,
        ended: &Ended,
        target: &At,
        errand: &mut Errand<'_>,
    ) -> Result<Next, UpdateError> {
        let waits = |what: &str| because(reason::AGENT_UPDATE, format!("converger {} waits: {what}", wanted.version));
        if self.way == Way::Never {
            return Ok(self.remember(waits(&format!("only the agent of {UNIT} is exchanged"))));
        }
        if !ended.at_rest {
            return Ok(self.remember(waits("this node is not at rest")));
        }
        if errand.clock.awake() < self.not_before {
            return Ok(Next::Go);
        }
        if let Some(because) = not_yet(wanted, errand) {
            return Ok(self.remember(because));
        }
        let build = Build { version: wanted.version.clone(), sha256: wanted.sha256.clone() };
        let state = state::read(&self.folder)?;
        let installed = self.installed(&state)?;
        // What was installed may be what is wanted again; this program is not, if it is that one.
        let here = Some(installed.path.as_path()).filter(|path| self.own.as_deref() != Some(*path));
        if let Err(error) = fetch::program(&self.folder, &build, &wanted.urls, here) {
            self.not_before = errand.clock.awake() + FETCH_AGAIN;
            return Ok(self.remember(because(reason::UPDATE_FAILED, chain(&error))));
        }
        let session = self.session(errand, target);
        let intent = Intent {
            batch: wanted.group.id.as_str(),
            groups: vec![wanted.group.id.clone()],
            units: vec![UNIT.to_owned()],
            // An agent that is away takes nothing from anybody: its member costs the group nothing, and nobody's order.
            running: false,
            takes_node: false,
            start_secs_max: wanted.trial_secs,
            change: MemberChange::None,
        };
        if let Entry::Deferred(because) = session.enter(&intent)? {
            return Ok(self.remember(because));
        }
        let before = ended.exit.filter(|_| !ended.only_update).unwrap_or(Exit::Done);
        let trial = Trial { build, before: before.code(), secs: wanted.trial_secs, starts: 0 };
        let path = installed.path.clone();
        state::change(&self.folder, |state| (state.trial, state.installed) = (Some(trial), Some(installed)))?;
        session.acted()?;
        (self.on_trial, self.last) = (true, None);
        tracing::info!(version = wanted.version, "another agent goes on, on trial for {} s", wanted.trial_secs);
        Ok(if self.way == Way::Exec { Next::Become(path) } else { Next::Again })
    }

    /// The program that the unit starts: this one, or the one that became this one.
    fn installed(&self, state: &State) -> Result<Installed, UpdateError> {
        let own = self.own.as_deref().filter(|own| !own.starts_with(&self.folder));
        match (own, &state.installed) {
            (Some(own), _) => Installed::at(own).map_err(UpdateError::Own),
            // As it was when it handed over: if it was replaced since, the next start sees that.
            (None, Some(installed)) => Ok(installed.clone()),
            (None, None) => Err(UpdateError::Own(std::io::ErrorKind::NotFound.into())),
        }
    }

    fn give_back(&self, errand: &mut Errand<'_>, target: &At, record: &Record) -> Result<Next, UpdateError> {
        if let (Some(seq), Some(_)) = (record.proves(), &self.wanted) {
            errand.ledger.prove(std::iter::once(&group_id()), seq)?;
        }
        let session = self.session(errand, target);
        match record.phase {
            RecordPhase::Acting | RecordPhase::Repairing => session.nothing_to_settle()?,
            RecordPhase::Settling | RecordPhase::Failed => drop(session.settled()?),
        }
        // Without the store it stays, and is given back later.
        Ok(if session.record().is_none() { Next::Again } else { Next::Soon })
    }

    /// A wait of the same kind is told by the next run that there is anyway.
    fn remember(&mut self, because: Because) -> Next {
        let news = self.last.as_ref().is_none_or(|last| last.reason != because.reason);
        self.last = Some(because);
        if news { Next::Again } else { Next::Go }
    }

    fn record_path(&self) -> PathBuf {
        record_path(&self.folder)
    }

    fn session<'a>(&self, errand: &Errand<'a>, target: &At) -> Session<'a> {
        let circle = |wanted: &Wanted| Circle {
            group: Cow::Owned(wanted.group.clone()),
            view: None,
            conflicts: Vec::new(),
            gate: Vec::new(),
            leader: Vec::new(),
            after: Vec::new(),
        };
        Session {
            clusters: Vec::new(),
            windows: Vec::new(),
            me: errand.me,
            store: errand.store.map_err(session::because_of),
            probe: errand.probe,
            clock: errand.clock,
            boot_id: self.boot_id.clone(),
            // A hold on this group without its record protects nobody: it goes back.
            state_is_old: true,
            record_path: self.record_path(),
            pin_path: errand.paths.store_pin(),
            circles: self.wanted.iter().map(circle).collect(),
            commit: target.commit.clone(),
            seq: target.seq,
        }
    }
}

/// Of a hold on `converger.agents`.
pub fn record_path(folder: &Path) -> PathBuf {
    folder.join("hold.json")
}

fn because(reason: reason::Reason, sentence: String) -> Because {
    Because::new(reason, Some(&group_id()), sentence)
}

/// Everybody is told once, and again if the why is another.
fn fail(session: &Session<'_>, record: &Record, why: &str) -> Result<(), DiskError> {
    match record.phase {
        RecordPhase::Acting | RecordPhase::Repairing => session.broken(why),
        RecordPhase::Settling | RecordPhase::Failed => session.sick(why),
    }
}

/// What one look at the store shows before anything is fetched: canaries that do not run what they are to run, as their own
/// reports say (nobody waits for one that was declared dead), and lanes that are all taken.
fn not_yet(wanted: &Wanted, errand: &Errand<'_>) -> Option<Because> {
    let group = &wanted.group;
    let mut keys = protocol::said_by(wanted.canaries.iter().map(|(node, _)| node));
    keys.extend([protocol::hold_range(&group.id), "dead/".to_owned()]);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let seen = errand.store.map_err(session::because_of);
    let seen = seen.and_then(|store| store.read(&keys).map_err(|error| session::because_of(&error)));
    let snapshot = match seen {
        Ok(snapshot) => snapshot,
        Err(because) => return Some(because),
    };
    let mut missing = Vec::new();
    for (node, sha256) in &wanted.canaries {
        let entry = snapshot.get(&protocol::report_key(node));
        let report = entry.and_then(|entry| serde_json::from_slice::<Report>(&entry.value).ok());
        let runs = report.as_ref().and_then(|report| report.agent_sha256.as_ref());
        if runs == Some(sha256) || snapshot.get(&protocol::dead_key(node)).is_some() {
            continue;
        }
        let failed =
            report.iter().flat_map(|report| &report.notes).find(|note| note.reason == reason::UPDATE_FAILED.id);
        if let Some(note) = failed {
            return Some(because(reason::HOLD_FAILED, format!("canary {node} failed: {}", note.because.sentence)));
        }
        missing.push(node.as_str());
    }
    if !missing.is_empty() {
        let names = missing.join(", ");
        let sentence = format!("canaries first: {names} not yet settled with converger {}", wanted.version);
        return Some(because(reason::ORDER, sentence).ends("It ends when their reports say that they run it."));
    }
    let holds = protocol::holds_in(&snapshot, &group.id).into_iter().map(|(hold, _)| hold);
    let others: Vec<Hold> = holds.filter(|hold| hold.node != *errand.me).collect();
    let failed = others.iter().any(|hold| hold.phase == HoldPhase::Failed);
    (others.len() >= group.max_unavailable && !failed).then(|| {
        let names: Vec<&str> = others.iter().map(|hold| hold.node.as_str()).collect();
        let sentence = format!("{} of {} lanes are taken: {}", others.len(), group.max_unavailable, names.join(", "));
        others.iter().fold(because(reason::HELD_BY_PEER, sentence), Because::held_by)
    })
}
