//! Who counts for a group while its membership changes, and when somebody has left it.
//!
//! Between the first step of a join or leave and the last, the topology and the service name different members. Whoever
//! the service still lists has a vote that the others must outnumber, so it counts, whatever it is declared as. PURE.
//! Never: takes a member for gone because nobody answered.

use std::collections::BTreeSet;

use crate::fleet::schema::Membership;
use crate::fleet::{Group, MemberChange};
use crate::lock::quorum::{Member, needed, quorum_of};
use crate::name::NodeName;
use crate::probe::Health;

/// Active members, and of the others those that any answer lists. Where no service tells: whoever is draining, and who is
/// healthy of those that come or went.
pub fn counted(members: &[Member]) -> BTreeSet<&NodeName> {
    let listed = listed(members);
    let counts = |member: &&Member| match (member.state, &listed) {
        (Membership::Active, _) | (Membership::Draining, None) => true,
        (_, Some(listed)) => listed.contains(member.name.as_str()),
        (Membership::Joining | Membership::Retired, None) => member.health == Health::Healthy,
    };
    members.iter().filter(counts).map(|member| &member.name).collect()
}

/// What the service lists otherwise than the topology declares, in words: then nobody knows what a majority is.
pub fn difference(members: &[Member]) -> Option<String> {
    let listed = listed(members)?;
    let missing = members.iter().filter(|member| member.state == Membership::Active);
    let missing = missing.map(|member| member.name.as_str()).filter(|name| !listed.contains(name));
    let missing = missing.map(|name| format!("{name} is active and has no vote"));
    let strangers = listed.iter().filter(|name| !members.iter().any(|member| member.name.as_str() == **name));
    let strangers = strangers.map(|name| format!("{name} has a vote and is not declared"));
    let all: Vec<String> = missing.chain(strangers).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// The names of all voters, by the union of all answers; `None`: no answer tells.
fn listed(members: &[Member]) -> Option<BTreeSet<&str>> {
    let mut told = members.iter().filter_map(|member| member.lists.as_ref()).peekable();
    told.peek()?;
    // A node that left the group by its commit is in no question: its service calls it by its name all the same.
    let names = told
        .flat_map(|lists| lists.members.iter().map(NodeName::as_str).chain(lists.strangers.iter().map(String::as_str)));
    Some(names.collect())
}

/// Whose vote comes or goes, or is away for a moment.
pub fn subject<'s>(change: &'s MemberChange, me: &'s NodeName) -> &'s NodeName {
    match change {
        MemberChange::Strikes(node) => node,
        MemberChange::None | MemberChange::Joins | MemberChange::Leaves => me,
    }
}

/// Whether the member that changes is there, and could be missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    There,
    /// It does not run, or is sick: it is missed already.
    Away,
}

/// How many of the `others` counted must be healthy: the arithmetic must hold with the member and without it. `counted`:
/// with it, if it counts.
pub fn asked_for(group: &Group, change: &MemberChange, presence: Presence, counted: usize, others: usize) -> usize {
    match (change, presence) {
        (MemberChange::None, _) | (MemberChange::Leaves, Presence::There) => needed(group, counted),
        (MemberChange::Leaves, Presence::Away) | (MemberChange::Strikes(_), _) => quorum_of(group, counted),
        // From its first vote on they must be a majority without it.
        (MemberChange::Joins, _) => needed(group, others).max(others.min(quorum_of(group, others + 1))),
    }
}

/// Why the change is not over for those who stay; `None`: nobody lists `who` any more, and enough of them are healthy.
pub fn lingers(group: &Group, members: &[Member], who: &NodeName) -> Option<String> {
    if listed(members).is_some_and(|listed| listed.contains(who.as_str())) {
        return Some(format!("{who} is still listed"));
    }
    let counted = counted(members);
    let stay: Vec<&Member> =
        members.iter().filter(|member| member.name != *who && counted.contains(&member.name)).collect();
    let healthy = stay.iter().filter(|member| member.health == Health::Healthy).count();
    let needed = quorum_of(group, stay.len());
    (healthy < needed).then(|| format!("{healthy} of {} that stay are healthy, {needed} are needed", stay.len()))
}
