//! What happens to a fleet, by lot: faults, operators, merges; and how all of that ends.
//!
//! Never: what an operator is told not to do (a hold is freed only of a machine that is off).

use converger::lock::fake::FakeStore;
use converger::lock::protocol;
use converger::lock::store::{LockStore, Transaction, Write};
use converger::resource::unit::Active;

use crate::fleets::{Kind, VERSIONS, built};
use crate::world::{Cut, Event, Power, SECOND, Time, World};

pub fn freeze(store: &FakeStore, key: &str) {
    let value = b"{\"reason\":\"sim\",\"by\":\"sim\",\"until\":null}".to_vec();
    store.commit(&Transaction { when: vec![], then: vec![Write::Put(key.to_owned(), value)] }).unwrap();
}

pub fn delete(store: &FakeStore, key: &str) {
    store.commit(&Transaction { when: vec![], then: vec![Write::Delete(key.to_owned())] }).unwrap();
}

/// What an operator writes as `holds release --dead`.
pub fn declare_dead(world: &mut World, node: usize) {
    let name = world.name(node).clone();
    world.say(|| format!("an operator declares {name} dead"));
    world.counts.declared_dead += 1;
    world.machines[node].declared_dead = true;
    for at in world.machines[node].members.clone() {
        world.members[at].tainted = true;
        world.members[at].owes = false;
    }
    world.armed.retain(|(_, who), _| *who != node);
}

pub fn release_dead(store: &FakeStore, name: &converger::name::NodeName) {
    let snapshot = store.read(&["hold/", "act/"]).unwrap();
    store.commit(&protocol::release_dead(name, &snapshot, b"{}")).unwrap();
}

/// What chance does with the store itself, once nobody has the world in hands.
#[derive(Debug)]
pub enum Deed {
    Nothing,
    Kill(usize),
    Freeze(String),
}

impl World {
    pub fn merge(&mut self, versions: &[&'static str]) {
        let shape = self.shape.clone();
        self.history.push(built(&shape, versions));
        self.counts.merges += 1;
        let (at, said) = (self.history.len() - 1, versions.join(" "));
        self.say(|| format!("somebody merges c{at}: {said}"));
        // A push reaches most nodes at once, the others by their poll.
        for node in 0..self.machines.len() {
            if self.random.chance(700) {
                let at = self.now + self.random.below(3 * SECOND);
                self.wake(node, at);
            }
        }
    }

    /// Another version for all or for one cluster; one time in three what was good before.
    fn merge_something(&mut self) {
        let last = self.history.last().expect("there is a first").versions.clone();
        let clusters = last.len();
        let version = match self.random.below(6) {
            0 | 1 => "good-1",
            2 => *self.random.pick(&["good-2", "good-3"]),
            _ => *self.random.pick(&VERSIONS),
        };
        let one = self.random.below(clusters as u64) as usize;
        let all = self.random.chance(500);
        let next: Vec<&'static str> =
            last.iter().enumerate().map(|(at, was)| if all || at == one { version } else { was }).collect();
        self.merge(&next);
    }

    pub fn chance(&mut self) -> Deed {
        let wait = self.random.between(SECOND / 5, 8 * SECOND);
        self.after(wait / self.tempo, Event::Chance);
        let node = self.random.below(self.machines.len() as u64) as usize;
        let member = (!self.members.is_empty()).then(|| self.random.below(self.members.len() as u64) as usize);
        let name = self.name(node).clone();
        self.counts.faults += 1;
        match self.random.below(100) {
            0..=24 => self.merge_something(),
            25..=36 => {
                let Some(at) = member.filter(|at| self.runs(*at)) else { return Deed::Nothing };
                let who = self.member_name(at);
                self.say(|| format!("{who} crashes"));
                self.members[at].excused = true;
                self.set_active(at, Active::Failed);
                if self.random.chance(600) {
                    let wait = self.random.below(4 * SECOND);
                    self.after(wait, Event::Restart(at));
                }
            }
            37..=44 => {
                let Some(at) = member else { return Deed::Nothing };
                let (who, wait) = (self.member_name(at), self.random.between(SECOND, 60 * SECOND));
                self.say(|| format!("{who} is sick of its surroundings for {} s", wait / SECOND));
                self.members[at].sick = true;
                self.members[at].excused = true;
                self.feel(at);
                self.after(wait, Event::Well(at));
            }
            45..=52 if self.machines[node].power == Power::On => {
                self.say(|| format!("{name} reboots"));
                self.counts.reboots += 1;
                self.goes_down(node, Power::Rebooting);
                let wait = self.random.between(SECOND, 90 * SECOND);
                self.after(wait, Event::Boots(node));
                return Deed::Kill(node);
            }
            53..=57 if self.machines[node].power == Power::On => {
                self.say(|| format!("{name} is off for good"));
                self.goes_down(node, Power::Off);
                let wait = self.random.between(5 * SECOND, 60 * SECOND);
                self.after(wait, Event::DeclaredDead(node));
                return Deed::Kill(node);
            }
            58..=63 if self.machines[node].power == Power::On => {
                self.say(|| format!("{name} its agent is killed"));
                return Deed::Kill(node);
            }
            64..=68 => {
                let wait = self.random.between(SECOND, 40 * SECOND);
                self.say(|| format!("the store is away for {} s", wait / SECOND));
                self.store_down = true;
                self.after(wait, Event::StoreBack);
            }
            69..=76 => {
                let other = self.random.below(self.machines.len() as u64) as usize;
                let cut = if self.random.chance(400) { Cut::Store(node) } else { Cut::Peer(node, other) };
                self.say(|| format!("cut: {cut:?}"));
                self.cuts.insert(cut);
                let wait = self.random.between(SECOND, 60 * SECOND);
                self.after(wait, Event::Healed(cut));
            }
            77..=82 => {
                let group = &self.groups[self.random.below(self.groups.len() as u64) as usize].id;
                let keys = ["freeze/fleet".to_owned(), format!("freeze/g/{group}"), format!("freeze/n/{name}")];
                let key = self.random.pick(&keys).clone();
                self.say(|| format!("an operator writes {key}"));
                self.counts.freezes += 1;
                self.frozen.insert(key.clone());
                let wait = self.random.between(SECOND, 40 * SECOND);
                self.after(wait, Event::Thaws(key.clone()));
                return Deed::Freeze(key);
            }
            83..=89 => {
                let group = self.random.below(self.groups.len() as u64) as usize;
                self.lead(group);
            }
            90..=95 => {
                let off = self.random.between(0, 200_000) as i64 - 100_000;
                self.say(|| format!("{name} its wall clock is {off} s off"));
                self.machines[node].off_secs = off;
            }
            _ => {
                if let Some(memory) = &mut self.machines[node].memory {
                    memory.watch = None;
                    self.say(|| format!("{name} loses its watch"));
                }
            }
        }
        Deed::Nothing
    }

    /// Somebody else leads, or the same one.
    pub fn lead(&mut self, group: usize) {
        if self.groups[group].leader.is_none() {
            return;
        }
        let healthy: Vec<usize> =
            self.groups[group].members.iter().copied().filter(|at| self.members[*at].healthy).collect();
        if healthy.is_empty() {
            return;
        }
        let leader = *self.random.pick(&healthy);
        let (who, id) = (self.member_name(leader), self.groups[group].id.clone());
        self.groups[group].leader = Some(leader);
        self.say(|| format!("{who} leads {id}"));
    }

    fn goes_down(&mut self, node: usize, power: Power) {
        for at in self.machines[node].members.clone() {
            self.pay(at);
            self.members[at].excused = true;
            self.members[at].stopped_by_us = false;
        }
        self.machines[node].power = power;
        for at in self.machines[node].members.clone() {
            let unit = self.members[at].unit.clone();
            if let Some(state) = self.machines[node].host.world.borrow_mut().units.get_mut(&unit) {
                state.active = Active::Inactive;
            }
            self.feel(at);
        }
    }

    /// It boots; most of its units start by themselves.
    pub fn boots(&mut self, node: usize) {
        let name = self.name(node).clone();
        self.say(|| format!("{name} boots"));
        self.machines[node].power = Power::On;
        self.machines[node].booted_at = self.now;
        self.machines[node].host.world.borrow_mut().boots += 1;
        for at in self.machines[node].members.clone() {
            if self.random.chance(800) && self.live(at).is_some() {
                self.start_by_itself(at);
            }
        }
        self.agent_comes(node);
    }

    pub fn agent_comes(&mut self, node: usize) {
        self.machines[node].agent += 1;
        let (agent, wait) = (self.machines[node].agent, self.random.below(10 * SECOND));
        self.after(wait, Event::AgentStarts(node, agent));
    }

    /// A machine that was off for good is there again.
    pub fn returns(&mut self, node: usize, disk: Disk) {
        let name = self.name(node).clone();
        self.say(|| format!("{name} comes back with {disk:?} disk"));
        if disk == Disk::New {
            let machine = &mut self.machines[node];
            let _ = std::fs::remove_dir_all(&machine.dir);
            std::fs::create_dir_all(&machine.dir).unwrap();
            machine.told = None;
            machine.applied = None;
            let mut world = machine.host.world.borrow_mut();
            world.files.clear();
            let units: Vec<_> = world.units.keys().cloned().collect();
            for unit in units {
                world.units.insert(unit, crate::fleet::not_running());
            }
            drop(world);
            for at in self.machines[node].members.clone() {
                let member = &mut self.members[at];
                (member.version, member.tainted, member.owes, member.settled) = (None, true, false, false);
                self.feel(at);
            }
        }
        self.boots(node);
    }

    pub fn dies_of_its_version(&mut self, at: usize, start: u64) {
        if self.members[at].starts != start || !self.runs(at) {
            return;
        }
        let who = self.member_name(at);
        self.say(|| format!("{who} dies of its version"));
        // A version that settled was taken for good: what it does later is nobody's.
        self.members[at].excused |= self.members[at].version == Some(Kind::Late);
        self.set_active(at, Active::Failed);
        if self.random.chance(300) {
            let wait = self.random.below(2 * SECOND);
            self.after(wait, Event::Restart(at));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disk {
    Old,
    New,
}

/// How long a healed fleet may take: leaders yield for half an hour, and `after` waits as long.
pub const HEALED_WITHIN: Time = 3 * 3600 * SECOND;
