//! A node's agent: one run of it over the simulated world, and what its loop does around a run.
//!
//! The loop's parts that are not the real ones are named here: fetching is a number, and the report says what `publish`
//! would say of it. Never: a step that the real agent does not take.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use converger::clock::Clock;
use converger::ledger::Ledger;
use converger::lock::protocol;
use converger::lock::session::read_record;
use converger::lock::store::{LockStore, Transaction, Write};
use converger::name::CommitId;
use converger::pacing;
use converger::report::{self, At, Report, State};
use converger::settings::Poll;
use converger::settle::Vigil;

use crate::fleets::Built;
use crate::one_run::{self, Agent, Target};
use crate::safety::Deeds;
use crate::strand::{Ended, Handle, MachineClock, Shared, SimHost, SimProbe, SimStore, Strand};
use crate::world::{MILLI, Memory, SECOND, Time};

pub const POLL: Poll = Poll { secs: 60, jitter_secs: 15 };
const BEAT: Duration = Duration::from_secs(90);
const FAILED_PAUSE: Time = 10 * SECOND;

pub fn commit(at: usize) -> CommitId {
    CommitId::new(format!("c{at}"))
}

fn place(at: usize) -> At {
    At { commit: commit(at), seq: at as u64 + 1, subject: String::new() }
}

/// A strand for the next run of this node's agent.
pub fn start(shared: &Arc<Shared>, node: usize) -> Handle {
    let mut world = shared.world();
    let world = &mut *world;
    world.counts.runs += 1;
    let newest = world.history.len() - 1;
    let machine = &mut world.machines[node];
    machine.runs = true;
    machine.woken = false;
    // It fetches first; a source that does not answer leaves it where it is.
    machine.at = if world.random.chance(world.rates.ask * 3) { machine.at } else { newest };
    let at = machine.at;
    let clock = MachineClock {
        time: Arc::clone(&shared.time),
        booted_at: machine.booted_at,
        off_secs: AtomicI64::new(machine.off_secs),
    };
    let memory = machine.memory.take();
    let (dir, told) = (machine.dir.clone(), machine.told.clone());
    let built = world.history[at];
    let began = world.moment;
    let name = world.name(node).clone();
    let still = memory.as_ref().is_some_and(|memory| memory.still == Some(at));
    if !still {
        world.say(|| format!("{name} looks, at c{at}"));
    }
    Handle::start(shared, node, Deeds { began, ..Deeds::default() }, move |strand| {
        let mut memory = memory.unwrap_or_else(|| Memory {
            vigil: Vigil::default(),
            ledger: Ledger::open(&dir.join("ledger.db")).unwrap(),
            round: 0,
            interests: Vec::new(),
            watch: None,
            still: None,
        });
        let store = SimStore { strand: Arc::clone(strand) };
        beat(&store, strand, &clock);
        if memory.still == Some(at) && read_record(&dir.join("hold.json")).is_none() {
            let ran = one_run::Ran {
                outcome: converger::apply::Outcome::default(),
                settling: converger::settle::Settling::default(),
                converged: true,
                again_in: None,
                interests: memory.interests.clone(),
            };
            return Ended { memory, ran };
        }
        let known = memory.ledger.units().unwrap();
        {
            let mut world = strand.shared.world();
            for member in world.machines[node].members.clone() {
                let settled = known.get(&world.members[member].unit).is_some_and(|ran| ran.settled);
                world.members[member].settled = settled;
                world.feel(member);
                if settled {
                    strand.deeds.lock().unwrap().settled.insert(member);
                }
            }
        }
        let ran = run(strand, &store, &clock, built, at, &dir, &mut memory);
        publish(strand, &store, &clock, at, told.as_ref(), &ran, &memory);
        memory.still = (ran.converged && ran.outcome.done.is_empty()).then_some(at);
        if ran.converged {
            let mut world = strand.shared.world();
            world.machines[node].applied = Some(at);
        }
        Ended { memory, ran }
    })
}

fn run(
    strand: &Arc<Strand>,
    store: &SimStore,
    clock: &MachineClock,
    built: &'static Built,
    at: usize,
    dir: &std::path::Path,
    memory: &mut Memory,
) -> one_run::Ran {
    let name = strand.shared.world().name(strand.node).clone();
    let (spec, desired) = built.node(&name);
    let (host, probe) = (SimHost(strand), SimProbe(strand));
    let agent = Agent {
        host: &host,
        store: Ok(store),
        probe: &probe,
        clock,
        dir,
        ledger: &mut memory.ledger,
        vigil: &mut memory.vigil,
    };
    let place = place(at);
    let target = Target { spec, renderer: &built.renderer, desired, commit: place.commit.clone(), seq: place.seq };
    let ran = one_run::run(agent, &target);
    if ran.converged && memory.ledger.applied().unwrap().as_ref() != Some(&place) {
        memory.ledger.set_applied(&place, clock.now(), "").unwrap();
    }
    let mut world = strand.shared.world();
    let said =
        format!("{} {}", ran.reason(), ran.outcome.done.iter().map(|done| done.batch.as_str()).collect::<String>());
    if !said.trim().is_empty() {
        world.say(|| format!("{name} ends: {said}"));
    }
    let members = world.machines[strand.node].members.clone();
    world.check(&members);
    ran
}

/// A hint for the order of restarts.
fn beat(store: &SimStore, strand: &Strand, clock: &MachineClock) {
    let name = strand.shared.world().name(strand.node).clone();
    let put = Write::PutFor(protocol::beat_key(&name), clock.now().to_string().into_bytes(), BEAT);
    let _ = store.commit(&Transaction { when: Vec::new(), then: vec![put] });
}

/// Between two runs.
pub fn beats(shared: &Shared, node: usize) {
    let (name, value) = {
        let world = shared.world();
        (world.name(node).clone(), b"alive".to_vec())
    };
    let put = Write::PutFor(protocol::beat_key(&name), value, BEAT);
    let _ = shared.store.commit(&Transaction { when: Vec::new(), then: vec![put] });
}

/// As `pipeline::run` ends: to the disk, and to the store if it says something new.
fn publish(
    strand: &Strand,
    store: &SimStore,
    clock: &MachineClock,
    at: usize,
    told: Option<&Report>,
    ran: &one_run::Ran,
    memory: &Memory,
) {
    let name = strand.shared.world().name(strand.node).clone();
    let state = match (ran.converged, ran.outcome.failed.is_empty() && ran.settling.failed.is_none()) {
        (true, _) => State::Converged,
        (false, true) => State::Waiting,
        (false, false) => State::Failed,
    };
    let mut report = Report {
        applied: memory.ledger.applied().unwrap(),
        target: Some(place(at)),
        proven: memory.ledger.proven().unwrap(),
        state,
        reason: ran.reason().to_owned(),
        ..Report::new(&name, &converger::name::EnvironmentName::new("production"), clock.now())
    };
    if let Some(told) = told {
        report.since = told.since;
        if !report.differs(told) {
            return;
        }
    }
    strand.shared.world().machines[strand.node].told = Some(report.clone());
    let _ = report::publish(store, &report);
}

/// What the loop does when a run is over.
pub fn ended(shared: &Arc<Shared>, node: usize, ended: Ended) {
    let Ended { mut memory, ran } = ended;
    memory.round += 1;
    // What was not watched while this run looked may have moved meanwhile.
    let look_again = ran.interests.iter().any(|key| !memory.interests.contains(key));
    if ran.interests != memory.interests {
        memory.interests.clone_from(&ran.interests);
        memory.watch = Some(watch(shared, node, &memory.interests));
    }
    let mut world = shared.world();
    let world = &mut *world;
    let now = world.now;
    let machine = &mut world.machines[node];
    let failed = !ran.outcome.failed.is_empty() || ran.settling.failed.is_some();
    let crowd = pacing::in_a_crowd(memory.interests.len()).as_micros();
    machine.quiet_until = now + if failed { FAILED_PAUSE } else { Time::try_from(crowd).unwrap() };
    let sleep = pacing::next(&machine.name, POLL, memory.round, 0, ran.again_in);
    let sleep = Time::try_from(sleep.as_micros()).unwrap() * machine.slowness;
    machine.runs = false;
    machine.memory = Some(memory);
    let again = match std::mem::take(&mut machine.woken) {
        _ if look_again => now + 20 * MILLI,
        true => now.max(machine.quiet_until) + 20 * MILLI,
        false => now + sleep,
    };
    world.wake(node, again);
}

fn watch(shared: &Arc<Shared>, node: usize, interests: &[String]) -> converger::lock::store::Watch {
    let prefixes: Vec<&str> = interests.iter().map(String::as_str).collect();
    let weak = Arc::downgrade(shared);
    let told = move || {
        let Some(shared) = weak.upgrade() else { return };
        let mut world = shared.world();
        let lost = {
            let rate = world.rates.watch;
            world.random.chance(rate)
        };
        if lost || world.store_down || world.cuts.contains(&crate::world::Cut::Store(node)) {
            return;
        }
        let at = (world.now + 20 * MILLI).max(world.machines[node].quiet_until);
        world.wake(node, at);
    };
    shared.store.watch(&prefixes, Box::new(told)).unwrap()
}
