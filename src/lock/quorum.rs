//! May this node take its member of a group away now? A pure decision with its reason and its numbers.
//!
//! Unknown is down, every holder of any lane is down, a failed holder stops everybody else. A member that is already
//! down costs nothing when it is taken. PURE. Never: a clock, a default that says yes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fleet::schema::{Membership, Quorum};
use crate::fleet::{Group, MemberChange};
use crate::lock::membership::{self, Presence};
use crate::lock::view::Standing;
use crate::name::{ClusterName, CommitId, GroupId, NodeName};
use crate::probe::{Health, Listed};
use crate::reason::{self, Reason};

/// A hold, as its holder wrote it. Its token is the revision at which its key was created.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hold {
    pub group: GroupId,
    pub lane: usize,
    pub node: NodeName,
    /// One attempt of one node; a write whose answer was lost is recognised by it.
    pub attempt: String,
    pub commit: CommitId,
    pub seq: u64,
    pub phase: HoldPhase,
    pub units: Vec<String>,
    pub boot_id: String,
    pub reason: String,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "MemberChange::is_none")]
    pub change: MemberChange,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldPhase {
    /// Taken; nothing was stopped yet.
    Claimed,
    /// The member may be down, or is settling.
    Armed,
    /// The member did not become healthy; kept until it is repaired.
    Failed,
}

/// One member of the group, as far as it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub name: NodeName,
    /// As it is declared.
    pub state: Membership,
    pub health: Health,
    /// Who has a vote, by what its service says; `None`: that does not tell, or did not answer.
    pub lists: Option<Listed>,
    pub leads: bool,
    /// How far its own report says that it is.
    pub applied_seq: Option<u64>,
    /// It wants a hold of this group since then.
    pub wants_since: Option<Timestamp>,
    /// No sign of life.
    pub silent: bool,
    /// Declared dead by an operator.
    pub dead: bool,
}

/// Everything that the decision about one group depends on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    pub group: &'a Group,
    pub me: &'a NodeName,
    /// The commit that I want to take.
    pub commit: &'a CommitId,
    pub seq: u64,
    /// In order of declaration, me included.
    pub members: Vec<Member>,
    /// Whether my unit runs, from systemd.
    pub running: bool,
    /// What I am about to change of the membership.
    pub change: MemberChange,
    /// Holds of the group and its aliases, all lanes, mine included.
    pub holds: Vec<Hold>,
    /// Holds of groups that must not be disrupted at the same time.
    pub conflicting: Vec<Hold>,
    /// Places (`seq`) of commits that a member has settled with, as the members' reports say. Missing evidence means alone.
    pub proven: BTreeSet<u64>,
    pub freeze: Option<Freeze>,
    /// Whose declaration of the group is in force.
    pub view: Standing,
    /// Clusters that go first and have not reported the commit, with the members that are missing.
    pub after: Vec<(ClusterName, Vec<NodeName>)>,
    /// How long I have been asking, in seconds of awake time.
    pub asked_secs: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Freeze {
    pub reason: String,
    pub by: String,
    pub until: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// In this lane.
    Go { lane: usize, ground: Ground },
    /// Not now: what ends it is said.
    Wait(Because),
    /// Not before the repository or an operator changes something.
    Never(Because),
}

/// Why taking the member away is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ground {
    /// Enough others are healthy.
    Spared,
    /// It is down already. To be looked at again at the moment of acting: it may have come back by itself.
    Down,
}

/// A reason with its objects and numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Because {
    /// Id of a [`Reason`].
    pub reason: String,
    pub group: Option<GroupId>,
    /// One sentence with names and numbers.
    pub sentence: String,
    pub holders: Vec<NodeName>,
    pub since: Option<Timestamp>,
    /// What would end it.
    pub ends: String,
}

impl Because {
    pub fn new(reason: Reason, group: Option<&GroupId>, sentence: String) -> Self {
        Self {
            reason: reason.id.to_owned(),
            group: group.cloned(),
            sentence,
            holders: Vec::new(),
            since: None,
            ends: reason.mend.to_owned(),
        }
    }

    pub fn held_by(mut self, hold: &Hold) -> Self {
        self.holders.push(hold.node.clone());
        self.since = Some(self.since.map_or(hold.since, |since| since.min(hold.since)));
        self
    }

    pub fn ends(mut self, ends: impl Into<String>) -> Self {
        self.ends = ends.into();
        self
    }

    pub fn reason(&self) -> Reason {
        reason::by_id(&self.reason).unwrap_or(reason::INTERNAL)
    }
}

/// A member that was earlier in the order may keep the others waiting this long without asking itself.
pub const SILENT_IN_ORDER_SECS: u64 = 120;
/// The leader yields to members that still want the commit for at most this long.
pub const LEADER_YIELD_SECS: u64 = 1800;
/// Clusters named in `after` are waited for at most this long.
pub const AFTER_SECS: u64 = 1800;

/// May I claim a lane? Everything that can be known before the claim; health is judged again after it.
pub fn may_claim(s: &Situation<'_>) -> Verdict {
    if let Some(stopped) = stopped(s) {
        return stopped;
    }
    let others = others(s);
    let taken: BTreeSet<usize> = others.iter().map(|hold| hold.lane).collect();
    let lane = (0..s.group.max_unavailable).find(|lane| !taken.contains(lane));
    let (Some(lane), true) = (lane, others.len() < s.group.max_unavailable) else {
        return Verdict::Wait(held(s, &others));
    };
    match &s.view {
        Standing::InForce => {}
        Standing::Behind { seq, commit } => return Verdict::Wait(behind(s, *seq, commit)),
        Standing::Moves if others.is_empty() => {}
        Standing::Moves => {
            let mut because = held(s, &others);
            because.sentence +=
                &format!("; {} declares the group anew, which waits until nobody has it", s.commit.short());
            return Verdict::Wait(because);
        }
    }
    let proven = |seq| s.proven.contains(&seq);
    if let Some(first) = others.iter().find(|hold| !proven(hold.seq) || !proven(s.seq)) {
        let commit = if proven(first.seq) { s.commit.short() } else { first.commit.short() };
        let sentence = format!("{} has a hold and {commit} has not settled on any member yet", first.node);
        return Verdict::Wait(Because::new(reason::FIRST_ALONE, Some(&s.group.id), sentence).held_by(first));
    }
    if let Some(wait) = before_me(s) {
        return Verdict::Wait(wait);
    }
    match spare(s, &others) {
        Ok(ground) => Verdict::Go { lane, ground },
        Err(degraded) => Verdict::Wait(*degraded),
    }
}

/// After the claim: does the group, as it is now, allow my member to go away?
pub fn may_arm(s: &Situation<'_>) -> Verdict {
    if let Some(stopped) = stopped(s) {
        return stopped;
    }
    let lane = s.holds.iter().find(|hold| hold.node == *s.me).map_or(0, |hold| hold.lane);
    match spare(s, &others(s)) {
        Ok(ground) => Verdict::Go { lane, ground },
        Err(degraded) => Verdict::Wait(*degraded),
    }
}

/// What stops every new hold, before the claim and after it alike.
fn stopped(s: &Situation<'_>) -> Option<Verdict> {
    let id = &s.group.id;
    let wait = |reason, sentence: String| Because::new(reason, Some(id), sentence);
    if s.members.iter().any(|member| member.name == *s.me && member.dead) {
        return Some(Verdict::Wait(wait(reason::DECLARED_DEAD, format!("{} was declared dead", s.me))));
    }
    if let Some(freeze) = &s.freeze {
        // Honoured while the key exists: that its time is over is for the store to say, not for this node's clock.
        let until = freeze.until.map_or(String::new(), |until| format!(" until {until}"));
        let sentence = format!("frozen{until} by {}: {}", freeze.by, freeze.reason);
        return Some(Verdict::Wait(wait(reason::FROZEN, sentence)));
    }
    if let Some(never) = impossible(s) {
        return Some(never);
    }
    if let Some(failed) = s.holds.iter().find(|hold| hold.node != *s.me && hold.phase == HoldPhase::Failed) {
        let (node, commit, group) = (&failed.node, failed.commit.short(), id.short());
        let sentence = format!("{node} failed with {commit} and keeps {group}: {}", failed.reason);
        return Some(Verdict::Wait(wait(reason::HOLD_FAILED, sentence).held_by(failed)));
    }
    let others = others(s);
    if !others.is_empty() && (!s.change.is_none() || others.iter().any(|hold| !hold.change.is_none())) {
        let mut because = held(s, &others);
        because.sentence += "; a change of the membership goes alone";
        return Some(Verdict::Wait(because));
    }
    let conflict = s.conflicting.iter().find(|hold| hold.node != *s.me)?;
    let sentence = format!("{} has {}, which must not be disrupted together with {id}", conflict.node, conflict.group);
    Some(Verdict::Wait(wait(reason::HELD_BY_PEER, sentence).held_by(conflict)))
}

fn others<'s>(s: &'s Situation<'_>) -> Vec<&'s Hold> {
    // One member holds a group under each of its names.
    let mut seen = BTreeSet::new();
    s.holds.iter().filter(|hold| hold.node != *s.me && seen.insert((&hold.node, hold.lane))).collect()
}

/// A member that is down already cannot be taken away. While it still runs (and may still vote) it must be alone.
fn presence(s: &Situation<'_>, others: &[&Hold]) -> Presence {
    let own_health = s.members.iter().find(|member| member.name == *s.me).map(|member| &member.health);
    match own_health {
        _ if !s.running => Presence::Away,
        Some(Health::Unhealthy(_)) if others.is_empty() => Presence::Away,
        _ => Presence::There,
    }
}

/// Its repair costs nobody anything. A change of the membership does, wherever the member is.
fn is_down(s: &Situation<'_>, others: &[&Hold]) -> bool {
    s.change.is_none() && presence(s, others) == Presence::Away
}

/// Those that count, but for the one whose vote is about to come, to go or to be away.
fn electorate<'s>(s: &'s Situation<'_>) -> (usize, Vec<&'s Member>) {
    let counted = membership::counted(&s.members);
    let subject = membership::subject(&s.change, s.me);
    let rest = s.members.iter().filter(|member| member.name != *subject && counted.contains(&member.name)).collect();
    (counted.len(), rest)
}

/// Can the group spare my member? The numbers, if not.
fn spare(s: &Situation<'_>, others: &[&Hold]) -> Result<Ground, Box<Because>> {
    if is_down(s, others) {
        return Ok(Ground::Down);
    }
    let id = &s.group.id;
    // Where no majority is promised it matters to nobody who else has a vote.
    if let Some(difference) = membership::difference(&s.members).filter(|_| s.group.quorum == Quorum::Majority) {
        let sentence = format!("the service of {} knows other members than the topology: {difference}", id.short());
        return Err(Box::new(Because::new(reason::MEMBERSHIP_DIFFERS, Some(id), sentence)));
    }
    let holders: BTreeSet<&NodeName> = others.iter().map(|hold| &hold.node).collect();
    let (counted, peers) = electorate(s);
    let spared = |member: &&Member| !holders.contains(&member.name) && member.health == Health::Healthy;
    let healthy = peers.iter().copied().filter(spared).count();
    let needed = membership::asked_for(s.group, &s.change, presence(s, others), counted, peers.len());
    if healthy >= needed {
        return Ok(Ground::Spared);
    }
    let down = peers.iter().filter_map(|member| match &member.health {
        _ if holders.contains(&member.name) => Some(format!("{} holds", member.name)),
        Health::Healthy => None,
        Health::Unhealthy(why) => Some(format!("{}: {why}", member.name)),
        Health::Unknown(why) => Some(format!("{}: unknown, {why}", member.name)),
    });
    let down: Vec<String> = down.collect();
    let sentence = format!(
        "{healthy} of {} other members of {} are healthy, {needed} are needed{} ({})",
        peers.len(),
        id.short(),
        match &s.change {
            MemberChange::None => String::new(),
            MemberChange::Joins => format!(" for {} to join", s.me),
            MemberChange::Leaves => format!(" for {} to leave", s.me),
            MemberChange::Strikes(node) => format!(" to strike {node}"),
        },
        down.join("; ")
    );
    let because = Because::new(reason::DEGRADED, Some(id), sentence);
    Err(Box::new(because.ends(format!("It ends when {needed} others are healthy."))))
}

/// How many others must be healthy while one member is away: max(quorum, members - max_unavailable).
pub fn needed(group: &Group, members: usize) -> usize {
    quorum_of(group, members).max(members.saturating_sub(group.max_unavailable))
}

/// How many of so many members must be healthy at any time.
pub fn quorum_of(group: &Group, members: usize) -> usize {
    match group.quorum {
        Quorum::Majority => members / 2 + 1,
        Quorum::None => 0,
    }
}

/// The order in which members of a group take a commit: rank, then declaration, whoever leads last.
pub fn order<'a>(group: &Group, members: &'a [Member]) -> Vec<&'a Member> {
    let mut order: Vec<&Member> = members.iter().collect();
    order.sort_by_key(|member| {
        let rank = group.rank.iter().position(|name| *name == member.name).unwrap_or(usize::MAX);
        (member.leads, rank)
    });
    order
}

fn impossible(s: &Situation<'_>) -> Option<Verdict> {
    let others = others(s);
    let (n, peers) = electorate(s);
    let needed = membership::asked_for(s.group, &s.change, presence(s, &others), n, peers.len());
    (!is_down(s, &others) && needed > peers.len()).then(|| {
        Verdict::Never(Because::new(
            reason::QUORUM_TOO_SMALL,
            Some(&s.group.id),
            format!("{} has {n} members and needs {needed} of them while one is away", s.group.id.short()),
        ))
    })
}

fn behind(s: &Situation<'_>, seq: u64, commit: &CommitId) -> Because {
    let (group, theirs, mine) = (s.group.id.short(), commit.short(), s.commit.short());
    let sentence = format!("{group} is declared by {theirs} (place {seq}), this node has {mine} (place {})", s.seq);
    Because::new(reason::BEHIND_SPEC, Some(&s.group.id), sentence)
}

fn held(s: &Situation<'_>, others: &[&Hold]) -> Because {
    let names: Vec<&str> = others.iter().map(|hold| hold.node.as_str()).collect();
    let mut because = Because::new(
        reason::HELD_BY_PEER,
        Some(&s.group.id),
        format!("{} has {}", names.join(", "), s.group.id.short()),
    );
    for hold in others {
        because = because.held_by(hold);
    }
    because.ends(format!(
        "It ends when {} settles. If its machine is off for good: converger holds release --dead {} --reason \"…\"",
        names.join(", "),
        names.first().unwrap_or(&"NODE")
    ))
}

/// Who goes before me and has not been there yet.
fn before_me(s: &Situation<'_>) -> Option<Because> {
    if s.asked_secs < AFTER_SECS
        && let Some((cluster, missing)) = s.after.first()
    {
        let names: Vec<&str> = missing.iter().map(|name| name.as_str()).collect();
        return Some(Because::new(
            reason::AFTER_CLUSTER,
            Some(&s.group.id),
            format!("{cluster} goes first; missing: {}", names.join(", ")),
        ));
    }
    // Repairing a member that is down already does not queue behind the healthy.
    if !s.running {
        return None;
    }
    let order = order(s.group, &s.members);
    let mine = s.members.iter().find(|member| member.name == *s.me)?;
    // It is under way in a lane of its own. A leader goes when they are done all the same.
    let goes = |member: &&Member| !mine.leads && s.holds.iter().any(|hold| hold.node == member.name);
    let earlier: Vec<&str> = order
        .iter()
        .take_while(|member| member.name != *s.me)
        .filter(|member| !member.dead && !member.silent && !goes(member))
        .filter(|member| member.applied_seq.is_none_or(|seq| seq < s.seq))
        .filter(|member| member.wants_since.is_some() || s.asked_secs < SILENT_IN_ORDER_SECS)
        .filter(|_| !mine.leads || s.asked_secs < LEADER_YIELD_SECS)
        .map(|member| member.name.as_str())
        .collect();
    if earlier.is_empty() {
        return None;
    }
    let why = if mine.leads { "this member leads and goes last" } else { "in the order of the group" };
    Some(
        Because::new(
            reason::ORDER,
            Some(&s.group.id),
            format!("{} before this one ({why}): {}", s.group.id.short(), earlier.join(", ")),
        )
        .ends("It ends when they report the commit, or are dead or silent."),
    )
}
