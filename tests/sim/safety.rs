//! What must hold at every moment, whatever fails: S1 to S9.
//!
//! Judged on what is true, not on what an agent believes. Never: an agent's own reasoning.

use std::collections::BTreeSet;

use converger::lock::fake::FakeStore;
use converger::lock::quorum::{Hold, HoldPhase};
use converger::lock::session::{RecordPhase, read_record};
use converger::lock::store::{LockStore, Snapshot, Transaction, Write};

use crate::fleets::SETTLE_SECS;
use crate::world::{SECOND, World};

/// What a run of an agent has done so far, as far as it matters here.
#[derive(Clone, Default)]
pub struct Deeds {
    pub began: u64,
    pub claimed: Option<u64>,
    /// Members of this node that had settled here when the run began.
    pub settled: BTreeSet<usize>,
}

fn hold(value: &[u8]) -> Option<Hold> {
    serde_json::from_slice(value).ok()
}

/// Group and node of a hold's key.
fn whose(world: &World, key: &str) -> Option<(usize, usize)> {
    let mut parts = key.strip_prefix("hold/")?.split('/');
    let group = parts.next()?;
    let node = parts.nth(1)?;
    let group = world.groups.iter().position(|one| one.id == group)?;
    let node = world.machines.iter().position(|one| one.name.as_str() == node)?;
    Some((group, node))
}

impl World {
    /// S1, S2, S3 for the groups of these members.
    pub fn check(&mut self, members: &[usize]) {
        let groups: BTreeSet<usize> = members.iter().flat_map(|at| self.members[*at].groups.clone()).collect();
        for at in groups {
            let group = &self.groups[at];
            let (id, k) = (group.id.clone(), group.k);
            let all = group.members.clone();
            let count = |holds: &dyn Fn(usize) -> bool| -> Vec<String> {
                all.iter().filter(|at| holds(**at)).map(|at| self.name(self.members[*at].node).to_string()).collect()
            };
            let stopped = count(&|at| self.members[at].stopped_by_us && !self.members[at].tainted);
            let bad = count(&|at| self.live(at).is_some_and(|kind| kind.is_bad()) && !self.members[at].tainted);
            let down = count(&|at| {
                let member = &self.members[at];
                !member.healthy && !member.excused && !member.tainted
            });
            if stopped.len() > k {
                self.violated(format!("S1: {} of {id} are stopped by us at once", stopped.join(", ")));
            }
            if bad.len() > 1 {
                self.violated(format!("S2: {} of {id} have an unverified bad version", bad.join(", ")));
            }
            if down.len() > k {
                self.violated(format!("S3: {} of {id} are down without a fault", down.join(", ")));
            }
        }
    }

    /// S5, S6: an agent is about to stop a member that runs.
    pub fn may_stop(&mut self, at: usize, deeds: &Deeds, store: &FakeStore) {
        if !deeds.settled.contains(&at) {
            return;
        }
        let node = self.members[at].node;
        let who = self.member_name(at);
        let record = read_record(&self.machines[node].dir.join("hold.json"));
        let snapshot = store.read(&["hold/"]).unwrap();
        let me = self.name(node).to_string();
        for group in self.members[at].groups.clone() {
            let id = self.groups[group].id.clone();
            let recorded = record.as_ref().and_then(|record| {
                let acting = matches!(record.phase, RecordPhase::Acting | RecordPhase::Repairing);
                record.holds.iter().find(|(hold, _)| acting && hold.group.as_str() == id)
            });
            let stored = snapshot
                .entries
                .iter()
                .find(|entry| entry.key.starts_with(&format!("hold/{id}/")) && entry.key.ends_with(&format!("/{me}")));
            let armed = stored.and_then(|entry| Some((hold(&entry.value)?, entry.create_revision)));
            let covered = match (recorded, armed) {
                (Some((_, token)), Some((armed, created))) => armed.phase != HoldPhase::Claimed && *token == created,
                _ => false,
            };
            if !covered {
                self.violated(format!("S6: {who} is stopped without an armed and recorded hold of {id}"));
            }
            self.may_be_spared(at, group, deeds);
        }
        self.counts.stops += 1;
    }

    /// S5: nobody healthy is stopped while too many are away since before the claim, or were taken by others before.
    fn may_be_spared(&mut self, at: usize, group: usize, deeds: &Deeds) {
        let since = deeds.claimed.unwrap_or(deeds.began);
        let member = &self.members[at];
        if !member.healthy || member.changed >= since {
            return;
        }
        let truth = &self.groups[group];
        let away = |other: &&usize| {
            let other_member = &self.members[**other];
            let down = !other_member.healthy && other_member.changed < since;
            let taken = self.armed.get(&(group, other_member.node)).is_some_and(|armed| *armed < since);
            **other != at && (down || taken)
        };
        let away: Vec<String> = truth.members.iter().filter(away).map(|other| self.member_name(*other)).collect();
        let others = truth.members.len() - 1;
        if others - away.len() < truth.needed {
            let (who, id, needed) = (self.member_name(at), truth.id.clone(), truth.needed);
            self.violated(format!(
                "S5: {who} is healthy and stopped, {needed} others of {id} are needed, away since before: {}",
                away.join(", ")
            ));
        }
    }

    /// S4, S7, S8, S9: an agent's write to the store went through. `before`: the holds as they were.
    pub fn wrote(
        &mut self,
        node: usize,
        written: &Transaction,
        before: &Snapshot,
        deeds: &mut Deeds,
        store: &FakeStore,
    ) {
        for write in &written.then {
            let key = write.key();
            let Some((group, owner)) = whose(self, key) else {
                if key.starts_with("dead/") || key.starts_with("freeze/") || key.starts_with("hold/") {
                    self.violated(format!("S4: {} writes {key}", self.name(node)));
                }
                continue;
            };
            if owner != node {
                self.violated(format!("S4: {} writes {key}", self.name(node)));
            }
            let was = before.get(key).and_then(|entry| hold(&entry.value));
            match write {
                Write::Put(_, value) => self.held(node, group, &was, value, deeds, store),
                Write::PutFor(..) => self.violated(format!("S4: {key} is on a lease")),
                Write::Delete(_) if was.is_some() => self.released(node, group),
                Write::Delete(_) => {}
            }
        }
    }

    fn held(
        &mut self,
        node: usize,
        group: usize,
        was: &Option<Hold>,
        value: &[u8],
        deeds: &mut Deeds,
        store: &FakeStore,
    ) {
        let Some(now) = hold(value) else { return };
        let id = self.groups[group].id.clone();
        let me = self.name(node).clone();
        let all = store.read(&["hold/", "freeze/", "dead/"]).unwrap();
        let keys = || all.entries.iter().map(|entry| entry.key.as_str());
        if was.is_none() {
            deeds.claimed = Some(self.moment);
            self.counts.claims += 1;
            let mine = all
                .entries
                .iter()
                .filter(|entry| entry.key.ends_with(&format!("/{me}")))
                .filter_map(|entry| hold(&entry.value));
            let other = mine.filter(|hold| hold.attempt != now.attempt).map(|hold| hold.group.to_string()).next();
            let record = self.machines[node].dir.join("hold.json").exists();
            if let Some(other) = other.or(record.then(|| "what its record says".to_owned())) {
                self.violated(format!("S7: {me} claims {id} while it has {other}"));
            }
            let lanes: BTreeSet<&str> =
                keys().filter_map(|key| key.strip_prefix(&format!("hold/{id}/"))?.split('/').nth(1)).collect();
            if lanes.len() > self.groups[group].k {
                let holders = lanes.into_iter().collect::<Vec<_>>().join(", ");
                self.violated(format!("S1: {holders} hold {id}"));
            }
            for waiting in self.wanting(group, node) {
                *self.machines[waiting].passed_over.entry(group).or_default() += 1;
            }
            self.machines[node].passed_over.remove(&group);
        }
        if now.phase == HoldPhase::Armed && was.as_ref().is_some_and(|was| was.phase == HoldPhase::Claimed) {
            self.armed.insert((group, node), self.moment);
            let stops =
                ["freeze/fleet".to_owned(), format!("freeze/g/{id}"), format!("freeze/n/{me}"), format!("dead/{me}")];
            if let Some(stop) = keys().find(|key| stops.iter().any(|stop| stop == key)) {
                self.violated(format!("S9: {me} arms {id} in spite of {stop}"));
            }
            for other in self.groups[group].conflicts.clone() {
                if let Some((_, who)) = self.armed.keys().find(|(held, who)| *held == other && *who != node) {
                    self.violated(format!(
                        "S8: {me} arms {id} while {} has {}",
                        self.name(*who),
                        self.groups[other].id
                    ));
                }
            }
        }
        if now.phase == HoldPhase::Failed && was.as_ref().is_some_and(|was| was.phase != HoldPhase::Failed) {
            self.counts.failures += 1;
        }
    }

    /// A hold goes back: what was stopped under it must have run for its settle time.
    fn released(&mut self, node: usize, group: usize) {
        self.armed.remove(&(group, node));
        self.counts.releases += 1;
        let mine = self.groups[group].members.clone().into_iter().find(|at| self.members[*at].node == node);
        let Some(at) = mine else { return };
        self.pay(at);
        if self.members[at].owes && !self.members[at].tainted {
            let (who, since) = (self.member_name(at), self.now.saturating_sub(self.members[at].started_at));
            self.violated(format!(
                "S4: the hold of {} goes back, {who} was started {:.1} s ago and has not run for {SETTLE_SECS} s",
                self.groups[group].id,
                since as f64 / SECOND as f64
            ));
        }
    }

    /// Who else has said that it wants this group for the newest commit.
    fn wanting(&self, group: usize, taker: usize) -> Vec<usize> {
        let newest = self.history.len() - 1;
        let wants = |node: &usize| {
            let machine = &self.machines[*node];
            *node != taker
                && machine.power == crate::world::Power::On
                && machine.applied != Some(newest)
                && machine.at == newest
        };
        let members = self.groups[group].members.iter().map(|at| self.members[*at].node);
        members.filter(wants).collect()
    }
}
