//! The promises: what must be true in every state, and of every stop and every release.
//!
//! Told of members and groups only; nothing of the protocol is in here. Never: a rule of how a promise is kept.

use super::config::{Config, Def, Kind};
use super::real::Real;
use super::state::{HoldIs, NODES, Node, Rec, State, Svc};

fn quorum(def: &Def) -> usize {
    if def.majority { def.members.len() / 2 + 1 } else { 0 }
}

/// S1, S2, S3, S8 and L5 in this state.
pub fn broken(config: &Config, s: &State) -> Option<&'static str> {
    let groups = (config.groups)(0);
    for def in groups {
        // Whoever was told to leave is none any more.
        let stays = |n: &&usize| (config.groups)(s.nodes[**n].target).iter().any(|def| def.members.contains(n));
        let members = || def.members.iter().filter(stays).map(|n| &s.nodes[*n]);
        // A commit that narrows the group brings nobody back.
        let defs = (0..=s.published).flat_map(config.groups).filter(|other| other.id == def.id);
        let at_a_time = defs.map(|def| def.at_a_time).max().unwrap_or(def.at_a_time);
        let taken = members().filter(|node| node.ctl && !node.dead).count();
        if taken > at_a_time {
            return Some("S1: more members are taken away than the group allows");
        }
        let unverified =
            |node: &&Node| node.settled && !node.dead && !node.ghost && config.kind_of(s, node.live) != Kind::Good;
        if members().filter(unverified).count() > 1 {
            return Some("S2: two members have a bad version live");
        }
        let down = members().filter(|node| node.settled && node.svc != Svc::Up).count();
        if down > at_a_time + config.uncontrolled(s) {
            return Some("S3: more members are down than were taken or hit by a fault");
        }
        // A claim that a fault undoes is made again.
        if members().any(|node| usize::from(node.passed) > def.members.len() + config.spent(s)) {
            return Some("L5: a member that might go is passed over more often than there are members");
        }
    }
    for def in groups {
        for other in def.conflicts {
            let armed = |g: usize| (0..NODES).filter(move |n| s.holds[g][*n].is == HoldIs::Armed);
            if armed(def.id).any(|n| armed(*other).any(|m| m != n)) {
                return Some("S8: conflicting groups are armed together");
            }
        }
    }
    None
}

/// S5, S6 and S9, as node `n` stops its member.
pub fn stopping(real: &Real, s: &State, n: usize) -> Option<&'static str> {
    let node = &s.nodes[n];
    // What an older store says of the dead is not the operator's last word.
    if node.dead && !s.restored {
        return Some("S9: a node that was declared dead stops its member");
    }
    if !node.runs() {
        return None;
    }
    let config = &real.config;
    if !matches!(node.rec, Rec::Acting | Rec::Repairing) {
        return Some("S6: a member is stopped without a record");
    }
    let of = |commit: u8| (config.groups)(commit).iter().filter(|def| def.members.contains(&n));
    let today = of(node.target).count() > 0;
    for (counts, def) in of(node.target).map(|def| (true, def)).chain(of(node.live).map(|def| (!today, def))) {
        let held = |g: &usize| {
            let (held, mine) = (s.holds[*g][n], node.mine[*g]);
            matches!(held.is, HoldIs::Armed | HoldIs::Failed) && mine.there && mine.token == held.token
        };
        // A member that leaves is still held under the name that the others know.
        if !s.restored && !std::iter::once(&def.id).chain(def.aliases).any(held) && !renamed(config, node, def) {
            return Some("S6: a running member is stopped without an armed hold");
        }
        // Members and quorum are the target's.
        if !counts {
            continue;
        }
        let others = def.members.iter().filter(|other| **other != n);
        let taken = others.clone().filter(|other| s.nodes[**other].ctl && !s.nodes[**other].dead).count();
        let away = others.clone().filter(|other| {
            let there = &s.nodes[**other];
            node.away >> **other & 1 == 1 || there.ctl && !there.dead
        });
        let spare = def.at_a_time.min(def.members.len() - quorum(def));
        if node.svc == Svc::Up && away.count() >= spare {
            return Some("S5: a healthy member is stopped while too many are away");
        }
        let running = others.filter(|other| s.nodes[**other].runs()).count();
        if node.svc == Svc::Sick && node.rec == Rec::Acting && taken > 0 && running < quorum(def) {
            return Some("S5: a member that still votes is stopped beside others");
        }
    }
    None
}

/// The group lives on under another name, and the target's view is checked too.
fn renamed(config: &Config, node: &Node, def: &Def) -> bool {
    (config.groups)(node.target).iter().any(|today| today.id != def.id && today.aliases.contains(&def.id))
}

/// A failed holder stops everybody else, also who had claimed before: as node `n` arms.
pub fn arming(real: &Real, s: &State, n: usize) -> Option<&'static str> {
    if s.frozen || s.nodes[n].dead {
        return Some("S9: armed after a freeze or a death");
    }
    let groups = (real.config.groups)(s.nodes[n].target);
    let mine = groups.iter().filter(|def| def.members.contains(&n)).flat_map(|def| s.holds[def.id].iter().enumerate());
    let mut failed = mine.filter(|(other, held)| *other != n && held.is == HoldIs::Failed);
    failed.next().map(|_| "S5: armed beside a failed hold")
}

/// S6, of a change that asks nobody.
pub fn changing_freely(real: &Real, s: &State, n: usize) -> Option<&'static str> {
    let node = &s.nodes[n];
    let groups = [node.target, node.live].map(real.config.groups);
    let member = groups.iter().copied().flatten().any(|def| def.members.contains(&n));
    (node.svc == Svc::Up && member).then_some("S6: a healthy member is restarted without a hold")
}

/// S4, as node `n` gives its holds back.
pub fn given_back(real: &Real, s: &State, n: usize) -> Option<&'static str> {
    let node = &s.nodes[n];
    let held = s.holds.iter().any(|group| matches!(group[n].is, HoldIs::Armed | HoldIs::Failed));
    let alone = !(real.config.groups)(node.target).iter().any(|def| def.members.contains(&n));
    let unwell = node.svc != Svc::Up || real.config.kind_of(s, node.live) != Kind::Good;
    (held && node.ctl && unwell && !alone).then_some("S4: a hold is given back before its member is well")
}
