//! The seam: what a node of the model asks the real functions, and what they answered.
//!
//! A state becomes the same snapshot, groups, situations, records and transactions that a session would have, and the answer
//! becomes a few bits. Answers are remembered: the functions are pure. Every mutant is here or in `world`, as a question put
//! wrongly or an answer not heard. Never: a rule of the protocol.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use converger::fleet::schema::{Membership, Quorum};
use converger::fleet::{Group, MemberChange};
use converger::lock::keys::Keys;
use converger::lock::machine::{self, Action, Event, Phase};
use converger::lock::protocol::{self, Declared};
use converger::lock::quorum::{self, Because, Freeze, Ground, Hold, HoldPhase, Member, Situation, Verdict};
use converger::lock::recovery::{self, Asks, Me, Next, Record, RecordPhase, Reentry, Said};
use converger::lock::store::{Condition, Entry, Outcome, Snapshot, Transaction};
use converger::lock::view::{Standing, View, digest_of};
use converger::name::{CommitId, GroupId, NodeName};
use converger::probe::Health;
use converger::reason;

use super::config::{Config, Def};
use super::mutants::Mutant;
use super::state::{GROUPS, Held, HoldIs, Mine, NODES, Node, Rec, State, Svc};

const READ_AT: i64 = 25;
const BEFORE_READ: i64 = 20;
const AFTER_READ: i64 = 30;
const NOW: i64 = 40;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Write {
    Claim,
    Arm,
    /// What an attempt or a record has goes back.
    GiveBack,
    Fail,
    Retold,
    Retarget,
    /// What is left in the store without a record goes back.
    Leftovers,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    Wait,
    Settle,
    Repair(Asks),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Wait,
    Go { lanes: [u8; GROUPS], down: bool },
    Again(Again),
    NotOurs,
    Settles,
    Fails,
    Release,
    Repairs,
    Refused,
    Commit(u8),
    Written { holds: [[Held; NODES]; GROUPS], spec: [u8; GROUPS] },
}

type Key = [u64; 6];

pub struct Real {
    pub config: Config,
    pub mutant: Option<Mutant>,
    /// By target commit, live commit and node.
    circles: BTreeMap<(u8, u8, usize), Rc<[Group]>>,
    names: Vec<NodeName>,
    heard: HashMap<(u8, Key), Answer>,
}

fn id(group: usize) -> GroupId {
    GroupId::new(["c.a", "c.b"][group])
}

fn index(id: &GroupId) -> usize {
    usize::from(id.as_str() == "c.b")
}

/// Which commit is live is not known to the record.
const UNKNOWN: u8 = 3;

fn commit(version: u8) -> CommitId {
    if version == UNKNOWN { CommitId::new(recovery::UNKNOWN) } else { CommitId::new(format!("c{version}")) }
}

/// Not a kind of question that a mutant hears.
const ENTITLED: u8 = 40;

fn seq(version: u8) -> u64 {
    10 + u64::from(version)
}

impl Real {
    pub fn new(config: &Config, mutant: Option<Mutant>) -> Self {
        let names = (0..NODES).map(|n| NodeName::new(format!("n{n}"))).collect();
        Self { config: config.clone(), mutant, circles: BTreeMap::new(), names, heard: HashMap::new() }
    }

    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The groups of the target commit that the node is in, and those that protect its unit as it runs now.
    pub fn circles(&mut self, node: usize, of: &Node) -> Rc<[Group]> {
        let key = (of.target, of.live, node);
        if let Some(known) = self.circles.get(&key) {
            return known.clone();
        }
        let mut found: Vec<Group> = Vec::new();
        let target = (self.config.groups)(of.target);
        for def in target.iter().filter(|def| def.members.contains(&node)) {
            // As many as both the commit that is live here and the target let go.
            let live = (self.config.groups)(of.live).iter().find(|live| live.id == def.id);
            let at_a_time = live.map_or(def.at_a_time, |live| live.at_a_time.min(def.at_a_time));
            found.push(self.group(&Def { at_a_time, ..def.clone() }, None));
        }
        let live = if self.is(Mutant::TargetGroupsOnly) || self.is(Mutant::AliasesIgnored) {
            &[]
        } else {
            (self.config.groups)(of.live)
        };
        for def in live.iter().filter(|def| def.members.contains(&node)) {
            let named = |group: &Group| group.ids().any(|name| *name == id(def.id));
            if found.iter().any(named) {
                continue;
            }
            found.push(match target.iter().find(|of| of.id == def.id || of.aliases.contains(&def.id)) {
                Some(today) => self.group(today, Some(node)),
                None => self.group(
                    &Def { members: &[], conflicts: &[], majority: false, at_a_time: 1, ..def.clone() },
                    Some(node),
                ),
            });
        }
        let found: Rc<[Group]> = found.into();
        self.circles.insert(key, found.clone());
        found
    }

    fn group(&self, def: &Def, and: Option<usize>) -> Group {
        let members = def.members.iter().copied().chain(and);
        let aliases = if self.is(Mutant::AliasesIgnored) { &[] } else { def.aliases };
        let one_way = self.is(Mutant::ConflictsOneWay) && def.id == 1;
        let conflicts = if self.is(Mutant::ConflictsIgnored) || one_way { &[] } else { def.conflicts };
        Group {
            id: id(def.id),
            members: members.map(|n| self.names[n].clone()).collect(),
            changing: BTreeMap::new(),
            quorum: if def.majority { Quorum::Majority } else { Quorum::None },
            max_unavailable: def.at_a_time + usize::from(self.is(Mutant::OneLaneMore)),
            rank: Vec::new(),
            conflicts: conflicts.iter().map(|g| id(*g)).collect(),
            aliases: aliases.iter().map(|g| id(*g)).collect(),
            unit: "x.service".into(),
            gate: None,
            leader: None,
            settle_secs: 10,
            role: "r".into(),
        }
    }

    /// What the node would see, with revisions that stand for the same order.
    fn store(&self, s: &State, me: usize) -> Keys {
        let mut keys = Keys { revision: NOW, ..Keys::default() };
        let mut put = |key: String, value: Vec<u8>, create_revision: i64, mod_revision: i64| {
            keys.entries.insert(key.clone(), Entry { key, value, create_revision, mod_revision });
        };
        for g in 0..GROUPS {
            for n in 0..self.config.nodes {
                let held = s.holds[g][n];
                let Some(hold) = self.hold(g, n, held.lane, held.is, held.commit) else { continue };
                let touched = s.nodes[me].touched >> (g * NODES + n) & 1 == 1;
                let written = if touched { AFTER_READ } else { BEFORE_READ };
                let value = serde_json::to_vec(&hold).unwrap();
                put(protocol::hold_key(&hold.group, hold.lane, &hold.node), value, 10 + i64::from(held.token), written);
            }
        }
        for g in 0..GROUPS {
            let same = s.nodes[me].counted[g] == s.spec[g];
            if let Some(view) = s.spec[g].checked_sub(1).and_then(|commit| self.view(&id(g), commit)) {
                let written = if same { BEFORE_READ } else { AFTER_READ };
                put(protocol::spec_key(&id(g)), serde_json::to_vec(&view).unwrap(), 1, written);
            }
        }
        let named = self.names.iter().zip(&s.nodes);
        for (name, _) in named.filter(|(_, node)| node.dead) {
            put(protocol::dead_key(name), b"{}".to_vec(), BEFORE_READ, BEFORE_READ);
        }
        if s.frozen {
            let freeze = Freeze { reason: "model".into(), by: "model".into(), until: None };
            put("freeze/fleet".into(), serde_json::to_vec(&freeze).unwrap(), BEFORE_READ, BEFORE_READ);
        }
        keys
    }

    /// How a commit declares a group, by any of its names.
    fn view(&self, name: &GroupId, version: u8) -> Option<View> {
        let defs = (self.config.groups)(version);
        let group = defs.iter().map(|def| self.group(def, None)).find(|group| group.ids().any(|id| id == name))?;
        Some(View { seq: seq(version), commit: commit(version), digest: digest_of(&group) })
    }

    fn declared(&self, group: &Group, target: u8, seen: &Snapshot) -> (Standing, Vec<Declared>) {
        protocol::declared(group, self.view(&group.id, target).as_ref(), seen)
    }

    fn hold(&self, g: usize, n: usize, lane: u8, is: HoldIs, version: u8) -> Option<Hold> {
        let phase = match is {
            HoldIs::None => return None,
            HoldIs::Claimed => HoldPhase::Claimed,
            HoldIs::Armed => HoldPhase::Armed,
            HoldIs::Failed => HoldPhase::Failed,
        };
        Some(Hold {
            group: id(g),
            lane: lane.into(),
            node: self.names[n].clone(),
            attempt: String::new(),
            commit: commit(version),
            seq: seq(version),
            phase,
            units: Vec::new(),
            boot_id: String::new(),
            reason: String::new(),
            since: jiff::Timestamp::UNIX_EPOCH,
            change: MemberChange::None,
        })
    }

    /// All that any question of this node depends on, in a few words.
    fn key(&self, s: &State, me: usize, more: u64) -> Key {
        let mut key = [0; 6];
        let (mut holds, mut nodes) = (0u128, 0u64);
        for n in 0..self.config.nodes {
            for g in 0..GROUPS {
                let held = s.holds[g][n];
                let bits = held.is as u64
                    | u64::from(held.lane) << 2
                    | u64::from(held.commit) << 3
                    | u64::from(held.token) << 5;
                holds |= u128::from(bits) << (7 * (n * GROUPS + g));
            }
            let node = &s.nodes[n];
            let crashed = node.rec != Rec::None && node.pc == super::state::Pc::None;
            let bits = node.svc as u64
                | u64::from(node.dead) << 2
                | u64::from(node.proved) << 3
                | u64::from(node.on) << 5
                | u64::from(crashed) << 6;
            let asks = node.target != node.live && node.target == s.nodes[me].target;
            let bits = bits | u64::from(asks) << 7;
            nodes |= bits << (8 * n);
        }
        key[0] = holds as u64;
        key[1] = (holds >> 64) as u64 | u64::from(s.frozen) << 10 | u64::from(s.leader) << 11 | (me as u64) << 16;
        key[2] = nodes;
        let node = &s.nodes[me];
        key[3] = u64::from(node.touched)
            | u64::from(node.target) << 10
            | u64::from(node.live) << 12
            | u64::from(node.memory) << 14;
        for (g, mine) in node.mine.iter().enumerate() {
            let bits = u64::from(mine.there)
                | u64::from(mine.lane) << 1
                | u64::from(mine.token) << 2
                | u64::from(node.lanes[g]) << 4;
            key[3] |= (bits | u64::from(s.snap[g][me].token) << 5) << (16 + 8 * g);
        }
        key[4] = node.rec as u64
            | u64::from(node.rec_commit) << 4
            | u64::from(node.rec_old) << 6
            | u64::from(node.rec_several) << 7;
        key[5] = more;
        for g in 0..GROUPS {
            key[5] |= (u64::from(s.spec[g]) | u64::from(node.counted[g]) << 2) << (8 + 4 * g);
        }
        key
    }

    fn ask(&mut self, kind: u8, s: &State, me: usize, more: u64, find: impl FnOnce(&mut Self) -> Answer) -> Answer {
        let mut key = (kind, self.key(s, me, more));
        if kind < Write::Claim as u8 + 8 || kind == ENTITLED {
            key.1[3] &= !0x3ff; // what was written since asks nobody but a transaction
        }
        if let Some(answer) = self.heard.get(&key) {
            return *answer;
        }
        let answer = find(self);
        self.heard.insert(key, answer);
        answer
    }

    /// `quorum` before the claim or after it, and what `machine` makes of it.
    pub fn judge(&mut self, s: &State, me: usize, arming: bool) -> Answer {
        self.ask(arming.into(), s, me, 0, |real| real.judged(s, me, arming))
    }

    /// Whether it might claim, by the rules as they are.
    pub fn entitled(&mut self, s: &State, me: usize) -> bool {
        let mutant = self.mutant.take();
        let answer = self.ask(ENTITLED, s, me, 0, |real| real.judged(s, me, false));
        self.mutant = mutant;
        matches!(answer, Answer::Go { .. })
    }

    /// Whether several can hold the groups of its unit.
    pub fn several(&mut self, me: usize, node: &Node) -> bool {
        recovery::lanes(self.circles(me, node).iter()) > 1
    }

    fn judged(&mut self, s: &State, me: usize, arming: bool) -> Answer {
        let node = &s.nodes[me];
        let keys = self.store(s, me);
        let all = keys.read(&[""]);
        let circles = self.circles(me, node);
        let mut ranges: Vec<GroupId> =
            circles.iter().flat_map(|group| Group::ids(group).chain(&group.conflicts)).cloned().collect();
        ranges.sort();
        ranges.dedup();
        let freeze = protocol::freeze_in(&all, &ranges, &self.names[me]);
        let wanted = commit(node.target);
        let situations = circles.iter().map(|group| {
            let held = |ids: Vec<&GroupId>| -> Vec<Hold> {
                ids.into_iter().flat_map(|id| protocol::holds_in(&all, id)).map(|(hold, _)| hold).collect()
            };
            let member = |name: &NodeName| self.member(s, me, name, &all);
            let mut members: Vec<Member> = group.members.iter().map(member).collect();
            members.dedup_by(|a, b| a.name == b.name);
            let proved = group.members.iter().filter_map(|name| self.node(s, name).proved.checked_sub(1)).map(seq);
            Situation {
                group,
                me: &self.names[me],
                commit: &wanted,
                seq: seq(node.target),
                members,
                running: node.runs(),
                change: MemberChange::None,
                holds: held(Group::ids(group).collect()),
                conflicting: held(group.conflicts.iter().collect()),
                proven: proved.collect(),
                freeze: freeze.clone(),
                view: self.declared(group, node.target, &all).0,
                after: Vec::new(),
                // The first 120 s are over; a leader yields while others still want it.
                asked_secs: 200,
            }
        });
        let verdicts: Vec<Verdict> = situations
            .map(|mut situation| {
                if let Some(mutant) = self.mutant {
                    mutant.misjudge(&mut situation, arming, s);
                }
                let verdict = if arming { quorum::may_arm(&situation) } else { quorum::may_claim(&situation) };
                match verdict {
                    Verdict::Wait(_) | Verdict::Never(_) if arming && self.is(Mutant::ProbeBeforeTheClaim) => {
                        Verdict::Go { lane: 0, ground: Ground::Spared }
                    }
                    verdict => verdict,
                }
            })
            .collect();
        let down = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Go { ground: Ground::Down, .. }));
        let phase = if arming { Phase::Claimed } else { Phase::Idle };
        let mut chosen = [0; GROUPS];
        match machine::step(phase, Event::Judged(verdicts)).1 {
            Action::Arm => {}
            Action::Claim { lanes } => {
                for (group, lane) in circles.iter().zip(lanes) {
                    // An alias that two groups share is held in the lane of the first.
                    for id in Group::ids(group) {
                        chosen[index(id)] = lane as u8;
                    }
                }
            }
            _ => return Answer::Wait,
        }
        Answer::Go { lanes: chosen, down }
    }

    fn node<'s>(&self, s: &'s State, name: &NodeName) -> &'s Node {
        &s.nodes[self.names.iter().position(|known| known == name).unwrap()]
    }

    fn member(&self, s: &State, me: usize, name: &NodeName, seen: &Snapshot) -> Member {
        let node = self.node(s, name);
        let at = self.names.iter().position(|known| known == name).unwrap();
        let wants = self.config.ordered && node.on && node.target != node.live && node.target == s.nodes[me].target;
        Member {
            name: name.clone(),
            state: Membership::Active,
            lists: None,
            health: match node.svc {
                Svc::Up => Health::Healthy,
                Svc::Sick => Health::Unhealthy("sick".into()),
                Svc::Down => Health::Unknown("no answer".into()),
            },
            leads: self.config.ordered && usize::from(s.leader) == at,
            applied_seq: Some(seq(node.live)),
            wants_since: wants.then_some(jiff::Timestamp::UNIX_EPOCH),
            silent: !node.on,
            dead: seen.get(&protocol::dead_key(name)).is_some(),
        }
    }

    fn me<'a>(&'a self, me: usize, wanted: &'a CommitId, node: &Node) -> Me<'a> {
        Me { node: &self.names[me], boot_id: "now", commit: wanted, seq: seq(node.target) }
    }

    /// The holds that the node has by its own memory, as they are told in this phase.
    fn own(&self, s: &State, me: usize, is: HoldIs, version: u8) -> Vec<(Hold, i64)> {
        let there = s.nodes[me].mine.iter().enumerate().filter(|(_, mine)| mine.there);
        let with_token =
            |(g, mine): (usize, &Mine)| Some((self.hold(g, me, mine.lane, is, version)?, 10 + i64::from(mine.token)));
        there.filter_map(with_token).collect()
    }

    fn record(&self, s: &State, me: usize) -> Record {
        let node = &s.nodes[me];
        let several = node.rec_several && !self.is(Mutant::LanesForgotten);
        Record {
            phase: match node.rec {
                Rec::Acting => RecordPhase::Acting,
                Rec::Repairing => RecordPhase::Repairing,
                Rec::Settling => RecordPhase::Settling,
                Rec::None | Rec::Failed => RecordPhase::Failed,
            },
            holds: self.own(s, me, HoldIs::Armed, node.rec_commit),
            batch: "role:x".into(),
            commit: commit(node.rec_commit),
            seq: seq(node.rec_commit),
            boot_id: if node.rec_old { "before".into() } else { "now".into() },
            acted_ms: 0,
            acted_boot: String::new(),
            start_secs_max: 0,
            why: "why".into(),
            lanes: if several { 2 } else { 1 },
            lent: None,
        }
    }

    /// A record is there and the batch of today asks for its groups.
    pub fn reenter(&mut self, s: &State, me: usize) -> Again {
        let answer = self.ask(2, s, me, 0, |real| {
            let node = &s.nodes[me];
            let (circles, wanted) = (real.circles(me, node), commit(node.target));
            let known: Vec<&Group> = circles.iter().collect();
            let groups: BTreeSet<GroupId> = circles.iter().flat_map(Group::ids).cloned().collect();
            let groups: Vec<GroupId> = groups.into_iter().collect();
            let record = real.record(s, me);
            let covered: Vec<&Group> = known
                .iter()
                .copied()
                .filter(|group| Group::ids(group).any(|id| record.holds.iter().any(|(hold, _)| hold.group == *id)))
                .collect();
            let who = real.me(me, &wanted, node);
            Answer::Again(match recovery::reenter(&record, who, &groups, &known, || node.svc == Svc::Up) {
                Reentry::Wait(_) => Again::Wait,
                Reentry::Settle(_) => Again::Settle,
                Reentry::Repair => Again::Repair(recovery::asks(&record, who, &covered)),
            })
        });
        let Answer::Again(again) = answer else { return Again::Wait };
        match (self.mutant, again) {
            (Some(Mutant::NotReentrant), _) => Again::Wait,
            (Some(Mutant::RetargetDropped), Again::Repair(Asks::Retargets)) => Again::Repair(Asks::Nobody),
            (Some(Mutant::BootAsksNobody), Again::Repair(Asks::Store)) => Again::Repair(Asks::Nobody),
            (Some(Mutant::RepairNeedsTheStore), Again::Repair(Asks::Nobody)) => Again::Repair(Asks::Store),
            _ => again,
        }
    }

    /// What the store says about a repair; `Release`: retarget.
    pub fn said(&mut self, s: &State, me: usize, asks: Asks) -> Answer {
        self.ask(3, s, me, u64::from(asks == Asks::Retargets), |real| {
            let node = &s.nodes[me];
            let (circles, wanted) = (real.circles(me, node), commit(node.target));
            let proven = |group: &Group| -> BTreeSet<u64> {
                group.members.iter().filter_map(|name| real.node(s, name).proved.checked_sub(1)).map(seq).collect()
            };
            let mut covered: Vec<(&Group, BTreeSet<u64>)> =
                circles.iter().map(|group| (group, proven(group))).collect();
            if real.is(Mutant::RetargetBesideOthers) {
                covered.iter_mut().for_each(|(_, proven)| proven.extend([10, 11, 12]));
            }
            let who = real.me(me, &wanted, node);
            let record = recovery::repairing(real.record(s, me), who);
            match recovery::said(&record, who, asks, &covered, &real.store(s, me).read(&[""])) {
                Said::Wait(_) => Answer::Wait,
                Said::NotOurs => Answer::NotOurs,
                Said::Go(None) => Answer::Repairs,
                Said::Go(Some(_)) => Answer::Release,
            }
        })
    }

    /// What becomes of the record.
    pub fn advance(&mut self, s: &State, me: usize, event: &Event) -> Answer {
        let which = match event {
            Event::Acted => 0,
            Event::NothingToSettle => 1,
            Event::NothingStopped(_) => 2,
            Event::ActFailed(_) => 3,
            Event::Settled => 4,
            _ => 5,
        };
        self.ask(4, s, me, which, |real| match recovery::advance(&real.record(s, me), event.clone(), "now", 0) {
            Next::Settles(_) => Answer::Settles,
            Next::Fails(_) => Answer::Fails,
            Next::Release => Answer::Release,
            Next::Stays(_) => Answer::Wait,
        })
    }

    /// The commit with which the record says that the member settles.
    pub fn proves(&mut self, s: &State, me: usize) -> Option<u8> {
        let several = self.is(Mutant::OneLaneMore)
            || (0..=self.config.last).flat_map(self.config.groups).any(|def| def.at_a_time > 1);
        if !several {
            return None; // nobody asks for it
        }
        let answer = self.ask(6, s, me, 0, |real| {
            real.record(s, me).proves().map_or(Answer::Wait, |seq| Answer::Commit((seq - 10) as u8))
        });
        if let Answer::Commit(commit) = answer { Some(commit) } else { None }
    }

    /// What the record settles with after an interruption.
    pub fn interrupted(&mut self, s: &State, me: usize) -> Option<u8> {
        let answer = self.ask(7, s, me, 0, |real| match recovery::interrupted(&real.record(s, me), "now", 0) {
            Next::Settles(_) if real.is(Mutant::InterruptedKnows) => Answer::Commit(s.nodes[me].rec_commit),
            Next::Settles(record) if record.commit == commit(UNKNOWN) => Answer::Commit(UNKNOWN),
            Next::Settles(record) => Answer::Commit((record.seq - 10) as u8),
            _ => Answer::Wait,
        });
        if let Answer::Commit(commit) = answer { Some(commit) } else { None }
    }

    /// Holds of this node in the store, and no record: `Release`, or an operator has to look.
    pub fn leftovers(&mut self, s: &State, me: usize) -> Answer {
        self.ask(5, s, me, 0, |real| {
            let old = s.nodes[me].memory || real.is(Mutant::LostLedgerIsNew);
            match recovery::leftovers(real.in_store(s, me), old) {
                Err(_) => Answer::Wait,
                Ok(free) if free.is_empty() => Answer::Repairs,
                Ok(_) => Answer::Release,
            }
        })
    }

    fn in_store(&self, s: &State, me: usize) -> Vec<(Hold, i64)> {
        let held = (0..GROUPS).map(|g| (g, s.holds[g][me]));
        let held = held.filter_map(|(g, held)| {
            Some((self.hold(g, me, held.lane, held.is, held.commit)?, 10 + i64::from(held.token)))
        });
        held.collect()
    }

    /// A transaction of this node, evaluated. The holds after it, or `Refused`.
    pub fn write(&mut self, s: &State, me: usize, write: Write) -> Answer {
        self.ask(8 + write as u8, s, me, 0, |real| {
            let node = s.nodes[me];
            let circles = real.circles(me, &node);
            let looked_at = circles.iter().flat_map(|group| Group::ids(group).chain(&group.conflicts));
            let ranges: Vec<GroupId> = looked_at.cloned().collect::<BTreeSet<_>>().into_iter().collect();
            let name = &real.names[me];
            let transaction = match write {
                Write::Claim => {
                    let ids: BTreeSet<&GroupId> = circles.iter().flat_map(Group::ids).collect();
                    let all = ids
                        .into_iter()
                        .filter_map(|id| real.hold(index(id), me, node.lanes[index(id)], HoldIs::Claimed, node.target));
                    let holds: Vec<Hold> = all.take(if real.is(Mutant::OneGroupOfTwo) { 1 } else { GROUPS }).collect();
                    let then = State { spec: node.counted, ..*s };
                    let seen = real.store(&then, me).read(&["spec/"]);
                    let declared = circles.iter().flat_map(|group| real.declared(group, node.target, &seen).1);
                    protocol::claim(&holds, &ranges, &declared.collect::<Vec<_>>(), READ_AT, name)
                }
                Write::Arm => protocol::arm(&real.own(s, me, HoldIs::Claimed, node.target), &ranges, READ_AT, name),
                Write::GiveBack => protocol::release(
                    &recovery::still_ours(&real.own(s, me, HoldIs::Armed, 0), name, &real.store(s, me).read(&[""])),
                    name,
                ),
                Write::Fail => protocol::fail(&real.own(s, me, HoldIs::Armed, node.rec_commit), name, "why"),
                Write::Retold => protocol::retold(&real.own(s, me, HoldIs::Armed, node.target), name),
                Write::Retarget => {
                    protocol::retarget(&real.own(s, me, HoldIs::Armed, node.target), &ranges, READ_AT, name)
                }
                Write::Leftovers => protocol::release(&real.in_store(s, me), name),
            };
            real.commit(s, me, real.weakened(transaction, write))
        })
    }

    /// An operator's statement that the machine is off.
    pub fn release_dead(&self, s: &State, node: usize) -> Answer {
        let seen = self.store(s, node).read(&[""]);
        self.commit(s, node, protocol::release_dead(&self.names[node], &seen, b"{}"))
    }

    fn weakened(&self, mut transaction: Transaction, write: Write) -> Transaction {
        if let Some(mutant) = self.mutant {
            transaction.when.retain(|condition| !mutant.forgets(condition, write));
        }
        transaction
    }

    fn commit(&self, s: &State, me: usize, transaction: Transaction) -> Answer {
        let mut keys = self.store(s, me);
        let (outcome, _) = keys.commit(&transaction);
        if outcome == Outcome::Refused {
            return Answer::Refused;
        }
        let mut holds = [[Held::default(); NODES]; GROUPS];
        let all = keys.read(&["hold/"]);
        for g in 0..GROUPS {
            for (hold, created) in protocol::holds_in(&all, &id(g)) {
                let n = self.names.iter().position(|name| *name == hold.node).unwrap();
                let used = [s.holds[g][n].token, s.nodes[n].mine[g].token, s.snap[g][n].token];
                let fresh = (0..4).find(|token| !used.contains(token)).unwrap();
                holds[g][n] = Held {
                    is: match hold.phase {
                        HoldPhase::Claimed => HoldIs::Claimed,
                        HoldPhase::Armed => HoldIs::Armed,
                        HoldPhase::Failed => HoldIs::Failed,
                    },
                    lane: hold.lane as u8,
                    commit: (hold.seq - 10) as u8,
                    token: if created > NOW { fresh } else { (created - 10) as u8 },
                };
            }
        }
        let spec = std::array::from_fn(|g| {
            let there = keys.entries.get(&protocol::spec_key(&id(g)));
            let view = there.map(|entry| serde_json::from_slice::<View>(&entry.value).unwrap());
            view.map_or(0, |view| (view.seq - 10) as u8 + 1)
        });
        Answer::Written { holds, spec }
    }
}

/// For `mutants`: does this condition look at a range, the node's own token, a freeze or a death?
pub fn is_range(condition: &Condition) -> bool {
    matches!(condition, Condition::RangeUntouchedSince(..))
}

pub fn is_token(condition: &Condition) -> bool {
    matches!(condition, Condition::CreatedAt(..))
}

pub fn is_absent(condition: &Condition, prefix: &str) -> bool {
    matches!(condition, Condition::Absent(key) if key.starts_with(prefix))
}

/// What a session says when the store's answer to a write was lost, and it cannot read what happened either.
pub fn lost(phase: Phase) -> Phase {
    machine::step(phase, Event::Lost(Because::new(reason::STORE_UNREACHABLE, None, String::new()))).0
}
