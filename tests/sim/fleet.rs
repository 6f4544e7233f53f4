//! One simulated fleet: made from a seed, driven to its end, judged at every event.
//!
//! Never: anything that another run of the same seed would not do.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use converger::host::fake::FakeHost;
use converger::lock::fake::FakeStore;
use converger::lock::quorum;
use converger::lock::session::read_record;
use converger::lock::store::LockStore;
use converger::name::UnitName;
use converger::resource::UnitState;

use crate::agents;
use crate::fate::{self, Deed, Disk, HEALED_WITHIN};
use crate::fleets::{Shape, built};
use crate::random::Random;
use crate::safety::Deeds;
use crate::strand::{Handle, MachineClock, Moved, Shared, arrive};
use crate::world::{Counts, Event, GroupTruth, Machine, Member, Power, Rates, SECOND, Time, World};

/// What is done to a fleet.
#[derive(Clone)]
pub struct Plan {
    pub shape: Shape,
    /// How long chance has its way.
    pub chaos: Time,
    /// How many times as often chance moves: large fleets have more of everything.
    pub tempo: u64,
    pub trace: bool,
}

pub struct Ended {
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub counts: Counts,
    /// Virtual seconds from the end of the faults until all was well.
    pub healed_secs: u64,
}

pub struct Fleet {
    pub shared: Arc<Shared>,
    strands: BTreeMap<usize, Handle>,
    chaos: Time,
    healed_at: Option<Time>,
    _dir: tempfile::TempDir,
}

pub fn not_running() -> UnitState {
    UnitState { loaded: true, ..UnitState::missing() }
}

/// Where syncing costs nothing, if there is such a place with room: what is simulated is not the disk.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let at = if room > 1 << 30 { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("converger-sim-").tempdir_in(at).unwrap()
}

impl Fleet {
    /// Everybody is off the first commit's first run; nothing is installed yet.
    pub fn new(seed: u64, plan: &Plan) -> Self {
        let dir = folder();
        let clusters = plan.shape.clusters.len().max(1);
        let first = built(&plan.shape, &vec!["good-1"; clusters]);
        let time = Arc::new(AtomicU64::new(0));
        let store = FakeStore::new("sim", Arc::new(MachineClock::right(Arc::clone(&time))));
        let mut machines: Vec<Machine> = Vec::new();
        for (n, node) in first.fleet.environment.nodes.iter().enumerate() {
            let at: PathBuf = dir.path().join(n.to_string());
            std::fs::create_dir(&at).unwrap();
            machines.push(Machine {
                name: node.name.clone(),
                dir: at,
                host: FakeHost::default(),
                power: Power::On,
                agent: 0,
                is_there: true,
                memory: None,
                runs: false,
                next_wake: None,
                woken: false,
                quiet_until: 0,
                at: 0,
                booted_at: 0,
                off_secs: 0,
                told: None,
                applied: None,
                declared_dead: false,
                members: Vec::new(),
                passed_over: BTreeMap::new(),
                slowness: 1,
            });
        }
        let names: BTreeMap<_, _> = machines.iter().enumerate().map(|(n, machine)| (machine.name.clone(), n)).collect();
        let mut members: Vec<Member> = Vec::new();
        let mut groups: Vec<GroupTruth> = Vec::new();
        for (n, group) in first.groups().enumerate() {
            let mut mine = Vec::new();
            for name in &group.members {
                let node = names[name];
                let known = members.iter().position(|member| member.node == node && member.unit == group.unit);
                let at = known.unwrap_or_else(|| {
                    machines[node].members.push(members.len());
                    machines[node].host.world.borrow_mut().units.insert(group.unit.clone(), not_running());
                    members.push(member(node, &group.unit));
                    members.len() - 1
                });
                members[at].groups.push(n);
                mine.push(at);
            }
            groups.push(GroupTruth {
                id: group.id.to_string(),
                needed: quorum::needed(group, group.members.len()),
                k: group.max_unavailable,
                conflicts: Vec::new(),
                leader: group.leader.is_some().then(|| mine[0]),
                members: mine,
            });
        }
        for (n, group) in first.groups().enumerate() {
            let at = |id: &str| groups.iter().position(|one| one.id == id);
            let conflicts: Vec<usize> = group.conflicts.iter().filter_map(|id| at(id.as_str())).collect();
            groups[n].conflicts = conflicts;
        }
        let mut world = World {
            shape: plan.shape.clone(),
            tempo: plan.tempo,
            random: Random::of(seed),
            rates: Rates::default(),
            now: 0,
            moment: 0,
            events: BinaryHeap::new(),
            queued: Vec::new(),
            machines,
            members,
            groups,
            history: vec![first],
            store_down: false,
            cuts: BTreeSet::new(),
            frozen: BTreeSet::new(),
            late: Vec::new(),
            healing: false,
            armed: BTreeMap::new(),
            trace: plan.trace.then(Vec::new),
            violation: None,
            counts: Counts::default(),
        };
        for node in 0..world.machines.len() {
            let at = world.random.below(2 * SECOND);
            world.wake(node, at);
            world.after(at + 30 * SECOND, Event::Beat(node));
        }
        let shared = Arc::new(Shared { world: Mutex::new(world), store, time, names });
        Self { shared, strands: BTreeMap::new(), chaos: plan.chaos, healed_at: None, _dir: dir }
    }

    /// Until the fleet stands for the first time, without a fault.
    pub fn settle_in(&mut self) {
        while !self.is_well() {
            if !self.step() || self.shared.world().now > 3600 * SECOND {
                self.shared.world().violated("it does not even come up".to_owned());
                return;
            }
        }
    }

    pub fn begin_chaos(&mut self, rates: &Rates) {
        let mut world = self.shared.world();
        world.say(|| "the fleet stands".to_owned());
        world.rates = rates.clone();
        world.after(0, Event::Chance);
        let chaos = self.chaos;
        world.after(chaos, Event::Heal);
    }

    /// False: nothing will ever happen again, or something is wrong.
    pub fn step(&mut self) -> bool {
        let event = {
            let mut world = self.shared.world();
            let event = world.next_event();
            self.shared.time.store(world.now, Ordering::Relaxed);
            event
        };
        let Some(event) = event else { return false };
        self.handle(event);
        self.shared.world().violation.is_none()
    }

    fn kill(&mut self, node: usize) {
        if let Some(strand) = self.strands.remove(&node) {
            strand.kill();
        }
        self.gone(node);
    }

    /// There is no agent any more, and what it remembered went with it.
    fn gone(&mut self, node: usize) {
        let memory = {
            let mut world = self.shared.world();
            world.counts.deaths += 1;
            let machine = &mut world.machines[node];
            machine.agent += 1;
            machine.is_there = false;
            (machine.runs, machine.next_wake, machine.woken) = (false, None, false);
            machine.memory.take()
        };
        drop(memory);
        let mut world = self.shared.world();
        if world.machines[node].power == Power::On {
            world.agent_comes(node);
        }
        let members = world.machines[node].members.clone();
        world.check(&members);
    }

    fn moved(&mut self, node: usize, mut strand: Handle) {
        match strand.go_on() {
            Moved::Paused(wait) => {
                self.strands.insert(node, strand);
                self.shared.world().after(wait, Event::Resume(node));
            }
            Moved::Ended(ended) => agents::ended(&self.shared, node, *ended),
            Moved::Died => self.gone(node),
        }
    }

    fn handle(&mut self, event: Event) {
        let shared = Arc::clone(&self.shared);
        match event {
            Event::Wake(node) => {
                let due = {
                    let mut world = shared.world();
                    let now = world.now;
                    let machine = &mut world.machines[node];
                    let due = machine.next_wake.is_some_and(|next| next <= now);
                    if due {
                        machine.next_wake = None;
                    }
                    due && !machine.runs && machine.power == Power::On && machine.is_there
                };
                if due {
                    let strand = agents::start(&shared, node);
                    self.moved(node, strand);
                }
            }
            Event::Resume(node) => {
                if let Some(strand) = self.strands.remove(&node) {
                    self.moved(node, strand);
                }
            }
            Event::Beat(node) => {
                let alive = {
                    let mut world = shared.world();
                    world.after(30 * SECOND, Event::Beat(node));
                    let machine = &world.machines[node];
                    let reaches = !world.store_down && !world.cuts.contains(&crate::world::Cut::Store(node));
                    machine.power == Power::On && machine.memory.is_some() && reaches
                };
                if alive {
                    agents::beats(&shared, node);
                }
            }
            Event::Chance => {
                if shared.world().healing {
                    return;
                }
                let deed = shared.world().chance();
                match deed {
                    Deed::Nothing => {}
                    Deed::Kill(node) => self.kill(node),
                    Deed::Freeze(key) => fate::freeze(&shared.store, &key),
                }
                let mut world = shared.world();
                let members: Vec<usize> = (0..world.members.len()).collect();
                world.check(&members);
            }
            Event::Restart(at) => {
                let mut world = shared.world();
                let node = world.members[at].node;
                if world.machines[node].power == Power::On && !world.runs(at) && !world.members[at].stopped_by_us {
                    let who = world.member_name(at);
                    world.say(|| format!("systemd starts {who}"));
                    world.start_by_itself(at);
                    world.check(&[at]);
                }
            }
            Event::Dies(at, start) => {
                let mut world = shared.world();
                world.dies_of_its_version(at, start);
                world.check(&[at]);
            }
            Event::AgentStarts(node, agent) => {
                let mut world = shared.world();
                if world.machines[node].agent == agent && world.machines[node].power == Power::On {
                    let now = world.now;
                    world.machines[node].is_there = true;
                    world.machines[node].next_wake = None;
                    world.wake(node, now);
                }
            }
            Event::Boots(node) => {
                let mut world = shared.world();
                if world.machines[node].power == Power::Rebooting {
                    world.boots(node);
                    let members = world.machines[node].members.clone();
                    world.check(&members);
                }
            }
            Event::DeclaredDead(node) => {
                let name = {
                    let mut world = shared.world();
                    if world.machines[node].power != Power::Off {
                        return;
                    }
                    fate::declare_dead(&mut world, node);
                    let wait = world.random.between(10 * SECOND, 120 * SECOND);
                    world.after(wait, Event::Returns(node));
                    world.name(node).clone()
                };
                fate::release_dead(&shared.store, &name);
            }
            Event::Returns(node) => {
                let mut world = shared.world();
                if world.machines[node].power == Power::Off {
                    let disk = if world.random.chance(500) { Disk::New } else { Disk::Old };
                    world.returns(node, disk);
                    let wait = world.random.below(60 * SECOND);
                    world.after(wait, Event::Admitted(node));
                }
            }
            Event::Admitted(node) => {
                let name = {
                    let mut world = shared.world();
                    if world.machines[node].power != Power::On {
                        world.after(5 * SECOND, Event::Admitted(node));
                        return;
                    }
                    if !world.machines[node].declared_dead {
                        return;
                    }
                    world.machines[node].declared_dead = false;
                    let name = world.name(node).clone();
                    world.say(|| format!("an operator lets {name} in again"));
                    name
                };
                fate::delete(&shared.store, &format!("dead/{name}"));
            }
            Event::StoreBack => {
                let mut world = shared.world();
                world.store_down = false;
                world.say(|| "the store is back".to_owned());
            }
            Event::Healed(cut) => drop(shared.world().cuts.remove(&cut)),
            Event::Well(at) => {
                let mut world = shared.world();
                world.members[at].sick = false;
                world.feel(at);
            }
            Event::Thaws(key) => {
                shared.world().frozen.remove(&key);
                fate::delete(&shared.store, &key);
            }
            Event::Late(n) => {
                let late = shared.world().late[n].take();
                if let Some((node, transaction)) = late {
                    let name = shared.world().name(node).clone();
                    shared.world().say(|| format!("{name} a write of long ago arrives"));
                    let _ = arrive(&shared, node, &transaction, None, &mut Deeds::default());
                }
            }
            Event::Heal => self.heal(),
            Event::Deadline => {
                let mut world = shared.world();
                let why = world.open();
                world.violated(format!("L1: not well in {} virtual minutes: {why}", HEALED_WITHIN / SECOND / 60));
            }
        }
    }

    /// Faults stop, what was published last is good, the dead are declared, and come back.
    fn heal(&mut self) {
        let shared = Arc::clone(&self.shared);
        let (frozen, dead, off) = {
            let mut world = shared.world();
            world.say(|| "the faults stop".to_owned());
            world.healing = true;
            world.rates = Rates::default();
            world.store_down = false;
            world.cuts.clear();
            for at in 0..world.members.len() {
                world.members[at].sick = false;
                world.feel(at);
            }
            for machine in &mut world.machines {
                machine.passed_over.clear();
            }
            let frozen = std::mem::take(&mut world.frozen);
            let nodes = 0..world.machines.len();
            let dead: Vec<usize> = nodes.clone().filter(|node| world.machines[*node].declared_dead).collect();
            let off: Vec<usize> = nodes.filter(|node| world.machines[*node].power == Power::Off).collect();
            let clusters = world.shape.clusters.len().max(1);
            let version = *world.random.pick(&["good-1", "good-2", "good-3"]);
            world.merge(&vec![version; clusters]);
            world.after(HEALED_WITHIN, Event::Deadline);
            (frozen, dead, off)
        };
        for key in frozen {
            fate::delete(&shared.store, &key);
        }
        for node in &off {
            if !dead.contains(node) {
                self.handle(Event::DeclaredDead(*node));
            }
            self.handle(Event::Returns(*node));
        }
        self.healed_at = Some(shared.world().now);
    }

    /// Every node is as the newest commit says, all of its members are up, and nobody holds anything.
    pub fn is_well(&self) -> bool {
        let world = self.shared.world();
        let newest = world.history.len() - 1;
        world.machines.iter().all(|machine| machine.applied == Some(newest) && machine.power == Power::On)
            && world.open().is_empty()
            && self.shared.store.read(&["hold/"]).is_ok_and(|left| left.entries.is_empty())
            && world.machines.iter().all(|machine| read_record(&machine.dir.join("hold.json")).is_none())
    }

    /// To its end.
    pub fn run(mut self, rates: &Rates) -> Ended {
        self.settle_in();
        self.begin_chaos(rates);
        while self.step() {
            if self.healed_at.is_some() && self.is_well() {
                break;
            }
        }
        self.end()
    }

    pub fn end(mut self) -> Ended {
        for (_, strand) in std::mem::take(&mut self.strands) {
            strand.kill();
        }
        let mut world = self.shared.world();
        let now = world.now;
        let most = world.machines.iter().flat_map(|machine| machine.passed_over.values()).max().copied().unwrap_or(0);
        let members = world.groups.iter().map(|group| group.members.len()).max().unwrap_or(0) as u64;
        if world.violation.is_none() && most > 3 * members {
            world.violated(format!("L5: a node was passed over {most} times"));
        }
        Ended {
            violation: world.violation.take(),
            trace: world.trace.take().unwrap_or_default(),
            counts: world.counts.clone(),
            healed_secs: (now - self.healed_at.unwrap_or(now)) / SECOND,
        }
    }
}

impl World {
    /// What is not as it should be; empty: nothing.
    pub fn open(&self) -> String {
        let newest = self.history.len() - 1;
        let behind = self.machines.iter().filter(|machine| machine.applied != Some(newest));
        let behind = behind.map(|machine| format!("{} has applied {:?} of c{newest}", machine.name, machine.applied));
        let last = self.history[newest];
        let sick = (0..self.members.len()).filter(|at| {
            let cluster = self.groups[self.members[*at].groups[0]].id.split('.').next().unwrap_or_default();
            !self.members[*at].healthy || self.live_text(*at) != last.version(&self.shape, cluster)
        });
        let sick = sick.map(|at| {
            format!(
                "{} is {} ({})",
                self.member_name(at),
                if self.runs(at) { "up" } else { "down" },
                self.live_text(at)
            )
        });
        behind.chain(sick).collect::<Vec<_>>().join("; ")
    }
}

fn member(node: usize, unit: &UnitName) -> Member {
    Member {
        node,
        unit: unit.clone(),
        conf: format!("/etc/{}.conf", unit.as_str().trim_end_matches(".service")),
        groups: Vec::new(),
        version: None,
        starts: 0,
        started_at: 0,
        sick: false,
        stopped_by_us: false,
        excused: false,
        settled: false,
        tainted: true,
        owes: false,
        healthy: false,
        changed: 0,
    }
}
