//! What is true in a simulated fleet: machines, their services, who leads, what is cut off, and what is going to happen.
//!
//! Agents see of it what their host, store and probe say. Never: a decision of an agent.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::PathBuf;

use converger::host::fake::FakeHost;
use converger::ledger::Ledger;
use converger::lock::store::{Transaction, Watch};
use converger::name::{NodeName, UnitName};
use converger::report::Report;
use converger::resource::UnitState;
use converger::resource::unit::Active;
use converger::settle::Vigil;

use crate::fleets::{Built, Kind, SETTLE_SECS, Shape};
use crate::random::Random;

/// Microseconds since the fleet began.
pub type Time = u64;
pub const SECOND: Time = 1_000_000;
pub const MILLI: Time = 1_000;

#[derive(Clone, Debug)]
pub enum Event {
    /// An agent looks, if it is idle and asked for this time.
    Wake(usize),
    /// A paused agent goes on.
    Resume(usize),
    Beat(usize),
    /// Chance moves.
    Chance,
    /// systemd starts a unit that died, if it is still down.
    Restart(usize),
    /// A slow-bad version dies, if this is still the start that it ran since.
    Dies(usize, u64),
    AgentStarts(usize, u64),
    Boots(usize),
    DeclaredDead(usize),
    /// A machine that was declared dead comes back: with its disk or with a new one.
    Returns(usize),
    Admitted(usize),
    StoreBack,
    Healed(Cut),
    Well(usize),
    Thaws(String),
    /// A write whose answer was lost long ago arrives.
    Late(usize),
    /// Faults stop.
    Heal,
    /// Everything must be well by now.
    Deadline,
}

/// Who cannot ask whom.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cut {
    Store(usize),
    Peer(usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    On,
    /// It boots again by itself.
    Rebooting,
    /// For good, as far as anybody knows.
    Off,
}

/// What an agent loses when it dies.
pub struct Memory {
    pub vigil: Vigil,
    pub ledger: Ledger,
    pub round: u64,
    pub interests: Vec<String>,
    pub watch: Option<Watch>,
    /// The commit at which nothing was left to do; nothing moved on this machine since.
    pub still: Option<usize>,
}

pub struct Machine {
    pub name: NodeName,
    pub dir: PathBuf,
    pub host: FakeHost,
    pub power: Power,
    /// Counts agents; what was meant for an earlier one is void.
    pub agent: u64,
    /// False between the death of an agent and the start of the next.
    pub is_there: bool,
    /// `None` while a run has it, or while there is no agent.
    pub memory: Option<Memory>,
    /// Its fiber is at work.
    pub runs: bool,
    pub next_wake: Option<Time>,
    pub woken: bool,
    /// What moves in the store wakes it no sooner.
    pub quiet_until: Time,
    /// Which commit of the history it has fetched.
    pub at: usize,
    pub booted_at: Time,
    /// How far its wall clock is off, in seconds.
    pub off_secs: i64,
    pub told: Option<Report>,
    pub applied: Option<usize>,
    pub declared_dead: bool,
    pub members: Vec<usize>,
    /// How often others took a hold that it wanted too, since it began to want.
    pub passed_over: BTreeMap<usize, u64>,
    /// Its loop takes so many times as long.
    pub slowness: u64,
}

/// One unit of one machine, a member of one group or more.
pub struct Member {
    pub node: usize,
    pub unit: UnitName,
    pub conf: String,
    pub groups: Vec<usize>,
    /// What it runs with.
    pub version: Option<Kind>,
    pub starts: u64,
    pub started_at: Time,
    /// Its surroundings make it sick, whatever its version.
    pub sick: bool,
    pub stopped_by_us: bool,
    /// It is down for a cause that is not ours.
    pub excused: bool,
    /// Its node's ledger says that it settled on this disk.
    pub settled: bool,
    /// It never settled on this disk, or its node was declared dead: what it has says nothing of the others.
    pub tainted: bool,
    /// It was stopped under a hold and has not run for its settle time since.
    pub owes: bool,
    pub healthy: bool,
    /// The moment (a count of what happened) of the last change of `healthy`.
    pub changed: u64,
}

pub struct GroupTruth {
    pub id: String,
    pub members: Vec<usize>,
    pub needed: usize,
    pub k: usize,
    pub conflicts: Vec<usize>,
    /// The member that leads; `None`: nobody ever does.
    pub leader: Option<usize>,
}

/// How often things fail, in a thousand.
#[derive(Clone, Default)]
pub struct Rates {
    pub pause: u64,
    pub die: u64,
    pub write: u64,
    pub ask: u64,
    pub step: u64,
    pub watch: u64,
}

pub struct World {
    pub shape: Shape,
    pub tempo: u64,
    pub random: Random,
    pub rates: Rates,
    pub now: Time,
    /// Counts everything that happens.
    pub moment: u64,
    pub events: BinaryHeap<Reverse<(Time, u64, usize)>>,
    pub queued: Vec<Option<Event>>,
    pub machines: Vec<Machine>,
    pub members: Vec<Member>,
    pub groups: Vec<GroupTruth>,
    pub history: Vec<&'static Built>,
    pub store_down: bool,
    pub cuts: BTreeSet<Cut>,
    pub frozen: BTreeSet<String>,
    pub late: Vec<Option<(usize, Transaction)>>,
    pub healing: bool,
    /// When each armed hold was armed: (group, node).
    pub armed: BTreeMap<(usize, usize), u64>,
    pub trace: Option<Vec<String>>,
    pub violation: Option<String>,
    pub counts: Counts,
}

/// What happened, for those who ask whether a simulation tries anything at all.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    pub events: u64,
    pub runs: u64,
    pub deaths: u64,
    pub pauses: u64,
    pub stops: u64,
    pub claims: u64,
    pub releases: u64,
    pub failures: u64,
    pub store_faults: u64,
    pub requests: u64,
    pub questions: u64,
    pub reboots: u64,
    pub declared_dead: u64,
    pub merges: u64,
    pub freezes: u64,
    pub faults: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.runs += other.runs;
        self.deaths += other.deaths;
        self.pauses += other.pauses;
        self.stops += other.stops;
        self.claims += other.claims;
        self.releases += other.releases;
        self.failures += other.failures;
        self.store_faults += other.store_faults;
        self.requests += other.requests;
        self.questions += other.questions;
        self.reboots += other.reboots;
        self.declared_dead += other.declared_dead;
        self.merges += other.merges;
        self.freezes += other.freezes;
        self.faults += other.faults;
    }
}

impl World {
    pub fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} {}", now as f64 / SECOND as f64, what()));
        }
    }

    pub fn violated(&mut self, what: String) {
        self.say(|| format!("VIOLATED {what}"));
        self.violation.get_or_insert(what);
    }

    pub fn after(&mut self, wait: Time, event: Event) {
        self.at(self.now + wait, event);
    }

    pub fn at(&mut self, time: Time, event: Event) {
        let n = self.queued.len();
        self.queued.push(Some(event));
        self.events.push(Reverse((time, n as u64, n)));
    }

    pub fn next_event(&mut self) -> Option<Event> {
        let Reverse((time, _, n)) = self.events.pop()?;
        self.now = self.now.max(time);
        self.moment += 1;
        self.counts.events += 1;
        self.queued[n].take()
    }

    /// An agent is to look at this time, or sooner if it was going to.
    pub fn wake(&mut self, node: usize, at: Time) {
        let machine = &mut self.machines[node];
        if machine.runs {
            machine.woken = true;
        } else if machine.next_wake.is_none_or(|next| at < next) {
            machine.next_wake = Some(at);
            self.at(at, Event::Wake(node));
        }
    }

    pub fn name(&self, node: usize) -> &NodeName {
        &self.machines[node].name
    }

    pub fn member_name(&self, member: usize) -> String {
        let member = &self.members[member];
        format!("{} of {}", member.unit, self.name(member.node))
    }

    pub fn runs(&self, member: usize) -> bool {
        let member = &self.members[member];
        let host = &self.machines[member.node].host;
        self.machines[member.node].power == Power::On
            && host.world.borrow().units.get(&member.unit).is_some_and(UnitState::is_running)
    }

    /// What its configuration file says now, running or not.
    pub fn live(&self, member: usize) -> Option<Kind> {
        let member = &self.members[member];
        let world = self.machines[member.node].host.world.borrow();
        let file = world.files.get(member.conf.as_str())?;
        Some(Kind::of(&String::from_utf8_lossy(&file.bytes)))
    }

    pub fn live_text(&self, member: usize) -> String {
        let member = &self.members[member];
        let world = self.machines[member.node].host.world.borrow();
        let file = world.files.get(member.conf.as_str());
        file.map(|file| String::from_utf8_lossy(&file.bytes).into_owned()).unwrap_or_default()
    }

    fn is_healthy(&self, at: usize) -> bool {
        let member = &self.members[at];
        let well = !matches!(member.version, Some(Kind::Sick | Kind::Dead) | None);
        self.runs(at) && well && !member.sick
    }

    /// Something about this member changed, perhaps.
    pub fn feel(&mut self, at: usize) {
        let healthy = self.is_healthy(at);
        let (running, moment, good) = (self.runs(at), self.moment, self.live(at).is_some_and(|kind| !kind.is_bad()));
        let member = &mut self.members[at];
        if running {
            member.stopped_by_us = false;
        }
        if member.healthy != healthy {
            member.healthy = healthy;
            member.changed = moment;
        }
        if healthy {
            member.excused = false;
            if good && member.settled && !self.machines[member.node].declared_dead && member.version == Some(Kind::Good)
            {
                member.tainted = false;
            }
        }
    }

    /// It runs now and did not before, or in another run of itself.
    pub fn started(&mut self, at: usize) {
        let kind = self.live(at);
        let (now, settle) = (self.now, SETTLE_SECS * SECOND);
        let wait = match kind {
            Some(Kind::Slow) => Some(self.random.between(settle / 10, settle * 8 / 10)),
            Some(Kind::Late) => Some(self.random.between(settle * 2, settle * 20)),
            _ => None,
        };
        let member = &mut self.members[at];
        member.version = kind;
        member.starts += 1;
        member.started_at = now;
        let starts = member.starts;
        if let Some(wait) = wait {
            self.after(wait, Event::Dies(at, starts));
        }
        if kind == Some(Kind::Dead) {
            self.set_active(at, Active::Failed);
        }
        self.feel(at);
    }

    /// It is about to be down, or was started anew: has it run for its settle time?
    pub fn pay(&mut self, at: usize) {
        let (running, now) = (self.runs(at), self.now);
        let member = &mut self.members[at];
        if running && now >= member.started_at + SETTLE_SECS * SECOND {
            member.owes = false;
        }
    }

    pub fn set_active(&mut self, at: usize, active: Active) {
        self.pay(at);
        let member = &self.members[at];
        let mut world = self.machines[member.node].host.world.borrow_mut();
        if let Some(state) = world.units.get_mut(&member.unit) {
            state.active = active;
        }
        drop(world);
        let machine = &mut self.machines[self.members[at].node];
        if let Some(memory) = &mut machine.memory {
            memory.still = None;
        }
        self.feel(at);
    }

    /// Started by systemd, with what is there.
    pub fn start_by_itself(&mut self, at: usize) {
        let unit = self.members[at].unit.clone();
        let node = self.members[at].node;
        let number = self.members[at].starts;
        let mut world = self.machines[node].host.world.borrow_mut();
        let Some(state) = world.units.get_mut(&unit).filter(|state| state.loaded) else { return };
        state.active = Active::Active;
        state.invocation = format!("by itself {number}");
        drop(world);
        self.started(at);
        if let Some(memory) = &mut self.machines[node].memory {
            memory.still = None;
        }
    }
}
