//! A node that comes or goes: which actions are due on it, which units it is to stop, and what that makes of a batch.
//!
//! PURE. Never: decides whether the others can do without it.

use std::collections::BTreeSet;

use super::batch::Phase;
use super::{Batch, HoldNeed, UnitMove};
use crate::fleet::schema::Membership;
use crate::fleet::{Group, MemberChange};
use crate::host::Observed;
use crate::name::{NodeName, UnitName};
use crate::resource::action::{ActionState, Strike};
use crate::resource::{ActionSpec, Placed, Resource};

/// For each dead member what is needed to strike it. It stops nothing here.
pub fn strikes<'a>(strikes: &'a [Strike], observed: &Observed) -> Vec<Batch<'a>> {
    let needed = |strike: &&Strike| observed.actions.get(&strike.action.name) == Some(&ActionState::Needed);
    let batch = |strike: &'a Strike| {
        let mut batch = Batch::named(format!("{}, which is dead", strike.dead), None, Phase::Unit);
        batch.membership.push((Moment::AfterStop, &strike.action));
        batch.groups.extend(strike.groups.iter().cloned());
        batch.change = MemberChange::Strikes(strike.dead.clone());
        batch.hold = HoldNeed::Required;
        batch
    };
    strikes.iter().filter(needed).map(batch).collect()
}

/// When in its batch an action with `on` runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// `drain`
    BeforeStop,
    /// `leave`
    AfterStop,
    /// `join` with `before`
    BeforeStart,
    /// `join`
    AfterStart,
}

/// `None`: an ordinary action, or one that a node in this state does not run.
pub fn moment(spec: &ActionSpec, placed: &Placed, state: Membership) -> Option<Moment> {
    match spec.on.as_str() {
        "join" if state != Membership::Joining => None,
        "join" if placed.before.is_empty() => Some(Moment::AfterStart),
        "join" => Some(Moment::BeforeStart),
        "drain" if is_leaving(state) => Some(Moment::BeforeStop),
        "leave" if is_leaving(state) => Some(Moment::AfterStop),
        _ => None,
    }
}

/// Whether a node in this state runs the action, if it is needed.
pub fn is_due(placed: &Placed, state: Membership) -> bool {
    let Resource::Action(spec) = &placed.resource else { return true };
    spec.on.is_empty() || moment(spec, placed, state).is_some()
}

pub fn is_leaving(state: Membership) -> bool {
    matches!(state, Membership::Draining | Membership::Retired)
}

/// The units that a node stops when it leaves their groups.
pub fn left_units<'g>(groups: &[&'g Group], node: &NodeName) -> BTreeSet<&'g UnitName> {
    groups.iter().filter(|group| is_leaving(group.state_of(node))).map(|group| &group.unit).collect()
}

/// The unit that an action with `on` goes along with, where none is named.
pub fn unit_of<'g>(placed: &Placed, groups: &[&'g Group]) -> impl Iterator<Item = &'g UnitName> {
    let changes = matches!(&placed.resource, Resource::Action(spec) if !spec.on.is_empty());
    let (role, cluster) = (placed.origin.role.clone(), placed.origin.cluster.clone());
    let is_its = move |group: &&&Group| {
        changes && group.role == role && cluster.as_ref().is_none_or(|cluster| group.id.cluster() == *cluster)
    };
    groups.iter().filter(is_its).map(|group| &group.unit).collect::<Vec<_>>().into_iter()
}

/// A vote comes or goes with the batch, whatever its units did before: never without the others.
pub fn judge(batch: &mut Batch<'_>, state: Membership) {
    let stops = batch.moves.iter().any(|action| matches!(action, UnitMove::Stop(_)));
    let change = match state {
        _ if batch.groups.is_empty() => return,
        Membership::Joining if !batch.membership.is_empty() => MemberChange::Joins,
        Membership::Draining | Membership::Retired if stops || !batch.membership.is_empty() => MemberChange::Leaves,
        _ => return,
    };
    batch.change = change;
    batch.hold = HoldNeed::Required;
}

/// In words, for people: `etcd04 joins etcd.members`.
pub fn told(batch: &Batch<'_>, node: &NodeName) -> Option<String> {
    let groups: Vec<&str> = batch.groups.iter().map(|group| group.as_str()).collect();
    let groups = groups.join(", ");
    match &batch.change {
        MemberChange::None => None,
        MemberChange::Joins => Some(format!("{node} joins {groups}")),
        MemberChange::Leaves => Some(format!("{node} leaves {groups}")),
        MemberChange::Strikes(dead) => Some(format!("{node} strikes {dead} off {groups}")),
    }
}
