//! A run of an agent as a strand of its own: at every effect it may be stopped, killed, or told that it failed.
//!
//! Strands are threads of which one moves at a time, so that the same seed gives the same schedule. Never: two that move
//! at once, or a clock of the machine that this runs on.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use converger::clock::Clock;
use converger::host::{Done, Host, HostError, Observed, Query, Step};
use converger::lock::fake::{FakeStore, Fault};
use converger::lock::store::{LockStore, Outcome, Snapshot, StoreError, Transaction, Watch, Write};
use converger::name::NodeName;
use converger::probe::{Evidence, Probe, Question};
use jiff::Timestamp;

use crate::fleets::Kind;
use crate::one_run::Death;
use crate::safety::Deeds;
use crate::world::{Cut, MILLI, Memory, Power, SECOND, Time, World};

/// What all strands of a simulation share.
pub struct Shared {
    pub world: Mutex<World>,
    pub store: FakeStore,
    pub time: Arc<AtomicU64>,
    pub names: BTreeMap<NodeName, usize>,
}

impl Shared {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clock of one machine; of the store, whose wall clock is right.
pub struct MachineClock {
    pub time: Arc<AtomicU64>,
    pub booted_at: Time,
    pub off_secs: AtomicI64,
}

impl MachineClock {
    pub fn right(time: Arc<AtomicU64>) -> Self {
        Self { time, booted_at: 0, off_secs: AtomicI64::new(0) }
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        let began = Timestamp::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let off = jiff::SignedDuration::from_secs(self.off_secs.load(Ordering::Relaxed));
        began + Duration::from_micros(self.time.load(Ordering::Relaxed)) + off
    }

    fn awake(&self) -> Duration {
        Duration::from_micros(self.time.load(Ordering::Relaxed) - self.booted_at)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Die,
}

enum Back {
    Paused(Time),
    /// `None`: it died.
    Ended(Option<Box<Ended>>),
}

/// How a run ended.
pub struct Ended {
    pub memory: Memory,
    pub ran: crate::one_run::Ran,
}

/// What the scheduler has of a strand.
pub struct Handle {
    go: Sender<Go>,
    back: Receiver<Back>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub enum Moved {
    Paused(Time),
    Ended(Box<Ended>),
    Died,
}

impl Handle {
    /// `body` runs as a strand; nothing of it has happened when this returns.
    pub fn start(
        shared: &Arc<Shared>,
        node: usize,
        deeds: Deeds,
        body: impl FnOnce(&Arc<Strand>) -> Ended + Send + 'static,
    ) -> Self {
        let (go, wait) = channel();
        let (tell, back) = channel();
        let shared = Arc::clone(shared);
        let run = move || {
            let strand = Strand { shared, node, wait: Mutex::new(wait), tell, deeds: Mutex::new(deeds) };
            let strand = Arc::new(strand);
            let ended = catch_unwind(AssertUnwindSafe(|| {
                strand.wait();
                body(&strand)
            }));
            let ended = match ended {
                Ok(ended) => Some(Box::new(ended)),
                Err(panic) => {
                    if !panic.is::<Death>() {
                        let text = panic.downcast_ref::<String>().map(String::as_str);
                        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?");
                        strand.shared.world().violated(format!("an agent panicked: {text}"));
                    }
                    None
                }
            };
            let _ = strand.tell.send(Back::Ended(ended));
        };
        let thread = std::thread::Builder::new().stack_size(4 << 20).spawn(run).unwrap();
        Self { go, back, thread: Some(thread) }
    }

    /// Until it pauses or ends.
    pub fn go_on(&mut self) -> Moved {
        self.tell(Go::On)
    }

    pub fn kill(mut self) {
        loop {
            match self.tell(Go::Die) {
                Moved::Paused(_) => {}
                Moved::Ended(_) | Moved::Died => return,
            }
        }
    }

    fn tell(&mut self, what: Go) -> Moved {
        let _ = self.go.send(what);
        match self.back.recv() {
            Ok(Back::Paused(time)) => Moved::Paused(time),
            Ok(Back::Ended(ended)) => {
                let _ = self.thread.take().map(std::thread::JoinHandle::join);
                ended.map_or(Moved::Died, Moved::Ended)
            }
            Err(_) => Moved::Died,
        }
    }
}

/// What a run has of the simulation: the points at which the others come in between.
pub struct Strand {
    pub shared: Arc<Shared>,
    pub node: usize,
    wait: Mutex<Receiver<Go>>,
    tell: Sender<Back>,
    pub deeds: Mutex<Deeds>,
}

enum Fate {
    Go,
    Die,
    Pause(Time),
}

impl Strand {
    fn wait(&self) {
        let go = self.wait.lock().unwrap_or_else(PoisonError::into_inner).recv();
        if go != Ok(Go::On) {
            panic_any(Death);
        }
    }

    /// Anything may happen here.
    pub fn point(&self) {
        let fate = {
            let mut world = self.shared.world();
            world.moment += 1;
            let rates = world.rates.clone();
            if world.random.chance(rates.die) {
                let name = world.name(self.node).clone();
                world.say(|| format!("{name} its agent dies"));
                Fate::Die
            } else if world.random.chance(rates.pause) {
                let longest = *world.random.pick(&[300 * MILLI, 300 * MILLI, 5 * SECOND, 30 * SECOND]);
                let wait = world.random.below(longest);
                let long = wait > SECOND;
                world.counts.pauses += 1;
                if long {
                    let name = world.name(self.node).clone();
                    world.say(|| format!("{name} its agent hangs for {} s", wait / SECOND));
                }
                Fate::Pause(wait * world.machines[self.node].slowness)
            } else {
                Fate::Go
            }
        };
        match fate {
            Fate::Go => {}
            Fate::Die => panic_any(Death),
            Fate::Pause(wait) => {
                let _ = self.tell.send(Back::Paused(wait));
                self.wait();
            }
        }
    }
}

/// The host of a strand's machine.
pub struct SimHost<'s>(pub &'s Strand);

impl Host for SimHost<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        self.0.point();
        self.0.shared.world().machines[self.0.node].host.observe(query)
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        self.0.point();
        let done = self.act(step);
        self.0.point();
        done
    }
}

impl SimHost<'_> {
    fn act(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let Strand { shared, node, deeds, .. } = self.0;
        let mut world = shared.world();
        let world = &mut *world;
        world.moment += 1;
        let members = world.machines[*node].members.clone();
        let ran: Vec<bool> = members.iter().map(|at| world.runs(*at)).collect();
        let (name, line) = (world.name(*node).clone(), words(step));
        if let Step::Stop { unit, .. } = step
            && let Some(at) = members.iter().copied().find(|at| world.members[*at].unit == **unit)
            && world.runs(at)
        {
            let deeds = deeds.lock().unwrap_or_else(PoisonError::into_inner).clone();
            world.pay(at);
            world.may_stop(at, &deeds, &shared.store);
        }
        if world.random.chance(world.rates.step)
            && matches!(step, Step::Stage(..) | Step::Swap | Step::Start { .. } | Step::Stop { .. })
        {
            world.say(|| format!("{name} {line}: fails"));
            return Err(failed(line));
        }
        world.say(|| format!("{name} {line}"));
        let done = world.machines[*node].host.perform(step);
        let mut done = done;
        for (at, ran) in members.iter().copied().zip(ran) {
            let runs = world.runs(at);
            if ran && !runs {
                world.members[at].stopped_by_us = true;
                world.members[at].owes = true;
            } else if runs && !ran {
                world.started(at);
                if world.members[at].version == Some(Kind::Dead) {
                    done = Err(failed("it does not start".to_owned()));
                }
            }
            world.feel(at);
        }
        world.check(&members);
        done
    }
}

fn failed(why: String) -> HostError {
    HostError::Command { command: "systemctl".to_owned(), why }
}

fn words(step: &Step<'_>) -> String {
    match step {
        Step::Stage(specs, _) => specs.iter().fold("stages".to_owned(), |line, (spec, _)| {
            let text = spec.content.bytes().map(String::from_utf8_lossy).unwrap_or_default();
            format!("{line} {} ({text})", spec.path)
        }),
        Step::Swap => "exchanges".to_owned(),
        Step::Start { unit, .. } => format!("starts {unit}"),
        Step::Stop { unit, .. } => format!("stops {unit}"),
        Step::Enable(unit) => format!("enables {unit}"),
        Step::Unstage => "drops what it staged".to_owned(),
        _ => "does something else".to_owned(),
    }
}

/// The store as one machine reaches it.
pub struct SimStore {
    pub strand: Arc<Strand>,
}

fn no_answer() -> StoreError {
    StoreError::Unreachable { endpoints: "sim".into(), why: "no answer".into() }
}

impl SimStore {
    fn reached(&self) -> Result<(), StoreError> {
        let node = self.strand.node;
        let mut world = self.strand.shared.world();
        world.moment += 1;
        world.counts.requests += 1;
        let lost = {
            let rate = world.rates.ask;
            world.random.chance(rate)
        };
        if world.store_down || world.cuts.contains(&Cut::Store(node)) || lost {
            world.counts.store_faults += 1;
            return Err(no_answer());
        }
        Ok(())
    }

    /// How this write fails, if it does.
    fn fault(&self, transaction: &Transaction) -> Option<Fault> {
        let mut world = self.strand.shared.world();
        let rate = world.rates.write;
        if !world.random.chance(rate) {
            return None;
        }
        world.counts.store_faults += 1;
        let all = [Fault::Unreachable, Fault::OutcomeUnknownApplied, Fault::OutcomeUnknownNotApplied, Fault::NoSpace];
        let fault = *world.random.pick(&all);
        if fault == Fault::NoSpace && transaction.then.iter().all(|write| matches!(write, Write::Delete(_))) {
            return None;
        }
        let name = world.name(self.strand.node).clone();
        let keys = keys(transaction);
        let late = fault == Fault::OutcomeUnknownNotApplied && world.random.chance(500);
        world.say(|| {
            format!("{name} its write of {keys} fails: {fault:?}{}", if late { ", and arrives late" } else { "" })
        });
        if late {
            let wait = world.random.below(20 * SECOND);
            let n = world.late.len();
            world.late.push(Some((self.strand.node, transaction.clone())));
            world.after(wait, crate::world::Event::Late(n));
        }
        Some(fault)
    }
}

pub fn keys(transaction: &Transaction) -> String {
    let words: Vec<String> = transaction
        .then
        .iter()
        .map(|write| {
            let phase = match write {
                Write::Put(key, value) if key.starts_with("hold/") => {
                    serde_json::from_slice::<converger::lock::quorum::Hold>(value)
                        .map(|hold| format!(" {:?} at {}", hold.phase, hold.commit).to_lowercase())
                        .unwrap_or_default()
                }
                Write::Delete(_) => " deleted".to_owned(),
                _ => String::new(),
            };
            format!("{}{phase}", write.key())
        })
        .collect();
    words.join(", ")
}

/// A write arrives at the store, and what it means is judged.
pub fn arrive(
    shared: &Shared,
    node: usize,
    transaction: &Transaction,
    fault: Option<Fault>,
    deeds: &mut Deeds,
) -> Result<Outcome, StoreError> {
    let holds = transaction.then.iter().any(|write| !write.key().starts_with("n/"));
    let before = if holds { shared.store.read(&["hold/"]).unwrap() } else { Snapshot::default() };
    if let Some(fault) = fault {
        shared.store.fail_next(fault);
    }
    let outcome = shared.store.commit(transaction);
    // The answer may have been lost.
    let done = match &outcome {
        Ok(outcome) => *outcome != Outcome::Refused,
        Err(_) => holds && shared.store.read(&["hold/"]).unwrap() != before,
    };
    if holds && done {
        let mut world = shared.world();
        world.moment += 1;
        let (name, keys) = (world.name(node).clone(), keys(transaction));
        world.say(|| format!("{name} writes {keys}"));
        world.wrote(node, transaction, &before, deeds, &shared.store);
    }
    outcome
}

impl LockStore for SimStore {
    fn identity(&self) -> Result<String, StoreError> {
        self.reached()?;
        self.strand.shared.store.identity()
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.strand.point();
        self.reached()?;
        let found = self.strand.shared.store.read(prefixes);
        self.strand.point();
        found
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        self.strand.point();
        self.reached()?;
        let fault = self.fault(transaction);
        let outcome = {
            let mut deeds = self.strand.deeds.lock().unwrap_or_else(PoisonError::into_inner);
            arrive(&self.strand.shared, self.strand.node, transaction, fault, &mut deeds)
        };
        self.strand.point();
        outcome
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        self.strand.shared.store.watch(prefixes, on_change)
    }
}

/// What the others say when they are asked. Nothing that is drawn by lot here may depend on who asks first.
pub struct SimProbe<'s>(pub &'s Strand);

impl Probe for SimProbe<'_> {
    fn ask(&self, question: &Question) -> Evidence {
        let shared = &self.0.shared;
        let mut world = shared.world();
        world.counts.questions += 1;
        let Some(&asked) = shared.names.get(&question.member) else { return Evidence::unknown("nobody") };
        let machine = &world.machines[asked];
        if machine.power != Power::On || asked != self.0.node && world.cuts.contains(&Cut::Peer(self.0.node, asked)) {
            return Evidence::unknown("no answer");
        }
        let Some(at) = machine.members.iter().copied().find(|at| world.members[*at].unit == question.unit) else {
            return Evidence::unknown("it has no such unit");
        };
        let leads = world.members[at].groups.iter().any(|group| world.groups[*group].leader == Some(at));
        let evidence = if world.members[at].healthy { Evidence::healthy() } else { Evidence::unhealthy("refused") };
        evidence.leading(leads && world.members[at].healthy)
    }
}
