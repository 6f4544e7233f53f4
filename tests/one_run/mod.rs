//! One run of a node's agent over stand-ins for the world: what `pipeline::run` does between render and publish, and
//! what an agent that dies on the way looks like.
//!
//! Never: a decision of its own; what it says of the end of a run is what `publish` would say.
#![allow(dead_code, reason = "each user takes a part")]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use converger::apply::{self, Outcome, Reach, Tools};
use converger::clock::Clock;
use converger::fleet::select::NodeSpec;
use converger::host::Host;
use converger::ledger::Ledger;
use converger::lock::quorum::Because;
use converger::lock::session::{RecordPhase, Session};
use converger::lock::store::LockStore;
use converger::name::CommitId;
use converger::pacing;
use converger::pipeline;
use converger::plan::plan;
use converger::probe::Probe;
use converger::render::{Desired, Renderer};
use converger::secrets::Unsealed;
use converger::settings::{Rooted, Settings};
use converger::settle::{Settling, Vigil};

/// Thrown where an agent dies.
pub struct Death;

/// An agent's death is no failure of a test, and nobody needs to read of it.
pub fn quiet_deaths() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<Death>() {
            before(info);
        }
    }));
}

/// What a node's agent has of its world, and what it remembers.
pub struct Agent<'a> {
    pub host: &'a dyn Host,
    pub store: Result<&'a dyn LockStore, Because>,
    pub probe: &'a (dyn Probe + Sync),
    pub clock: &'a dyn Clock,
    /// Where the record and the pin are.
    pub dir: &'a Path,
    pub ledger: &'a mut Ledger,
    pub vigil: &'a mut Vigil,
}

/// The commit that it follows, rendered for it.
pub struct Target<'a> {
    pub spec: &'a NodeSpec<'a>,
    pub renderer: &'a Renderer<'a>,
    pub desired: &'a Desired,
    pub commit: CommitId,
    pub seq: u64,
}

pub struct Ran {
    pub outcome: Outcome,
    pub settling: Settling,
    /// All of the commit is live and has settled.
    pub converged: bool,
    /// When the agent asks to be woken.
    pub again_in: Option<Duration>,
    /// Keys whose change wakes it.
    pub interests: Vec<String>,
}

impl Ran {
    /// Of the first batch that waits or failed, or of what settles.
    pub fn reason(&self) -> &str {
        let first = self.outcome.failed.iter().chain(&self.outcome.deferred).map(|(_, because)| because);
        let settles = self.settling.failed.iter().chain(&self.settling.settling);
        first.chain(settles).next().map_or("", |because| because.reason.as_str())
    }
}

fn settings() -> Settings {
    let text = "node = \"n\"\nenvironment = \"production\"\ntrust = \"t\"\nidentities = []\n[store]\nkind = \"local\"\npath = \"s\"\n";
    Settings::parse(text, Path::new("/agent.toml"), Rooted::Below).expect("they are good")
}

pub fn run(agent: Agent<'_>, target: &Target<'_>) -> Ran {
    let Agent { host, store, probe, clock, dir, ledger, vigil } = agent;
    let Target { spec, renderer, desired, .. } = target;
    let known = ledger.known().unwrap();
    let observed = pipeline::observe(host, desired, &known, ledger.fingerprints()).unwrap();
    let plan = plan(desired, &observed, &known, &spec.groups);
    let session = Session {
        clusters: Vec::new(),
        windows: Vec::new(),
        me: &spec.node.name,
        store,
        probe,
        clock,
        boot_id: observed.boot_id.clone(),
        state_is_old: !known.units.is_empty(),
        record_path: dir.join("hold.json"),
        pin_path: dir.join("store.json"),
        circles: pipeline::circles(renderer, spec, &Unsealed::without_keys(), &known).unwrap(),
        commit: target.commit.clone(),
        seq: target.seq,
    };
    let settling = vigil.look(&session, spec, &observed, ledger, &settings(), &plan).unwrap();
    let stop = AtomicBool::new(false);
    let reach = &Reach::NOTHING;
    let mut tools = Tools { host, ledger, session: &session, stop: &stop, observed: &observed, reach };
    let outcome = apply::apply(&plan, &mut tools).unwrap();
    // From here on as in `publish`.
    let ran = ledger.units().unwrap();
    let record = session.record();
    let unsettled = plan.units.iter().any(|(unit, groups)| {
        let wanted = plan.running.contains(unit) && !groups.is_empty();
        wanted && ran.get(unit).is_none_or(|ran| !ran.settled)
    });
    let stays = outcome.is_converged() && settling.is_over();
    let unread = record.as_ref().filter(|record| stays && record.phase == RecordPhase::Failed);
    let settles = record.as_ref().is_some_and(|record| stays || record.phase == RecordPhase::Settling);
    let acted_now = unsettled || unread.is_none() && settles;
    let converged = stays && record.is_none() && !unsettled;
    let interests = pipeline::interests(&session, &plan.elects, &outcome);
    let again_in = match (settling.again_in, acted_now, !outcome.deferred.is_empty()) {
        (Some(again), _, _) => Some(again),
        (None, true, _) => Some(Vigil::FIRST_LOOK),
        (None, false, true) => Some(Duration::from_secs(10).max(pacing::in_a_crowd(interests.len()) * 3)),
        (None, false, false) => None,
    };
    Ran { outcome, settling, converged, again_in, interests }
}
