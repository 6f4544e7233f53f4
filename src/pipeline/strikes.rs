//! Members that are dead and declared to go: who of those that live takes their votes, and by which actions.
//!
//! Never: a node that an operator has not declared dead, or that its commit still calls active.

use crate::fleet::schema::Membership;
use crate::fleet::select::{NodeSpec, select};
use crate::fleet::{Fleet, Group};
use crate::lock::protocol;
use crate::lock::store::LockStore;
use crate::name::NodeName;
use crate::plan::membership;
use crate::render::Renderer;
use crate::resource::Resource;
use crate::resource::action::Strike;
use crate::secrets::Unsealed;

/// What this node does for the dead of its groups. Without a store nobody is known to be dead.
pub fn strikes(
    renderer: &Renderer<'_>,
    fleet: &Fleet,
    spec: &NodeSpec<'_>,
    store: Option<&dyn LockStore>,
) -> Vec<Strike> {
    let me = &spec.node.name;
    let leaves = |group: &&&Group| group.changing.values().any(|state| membership::is_leaving(*state));
    let groups: Vec<&Group> = spec.groups.iter().filter(leaves).copied().collect();
    if groups.is_empty() {
        return Vec::new();
    }
    let mut keys = vec![String::from("dead/")];
    keys.extend(groups.iter().flat_map(|group| &group.members).map(protocol::beat_key));
    keys.dedup();
    let prefixes: Vec<&str> = keys.iter().map(String::as_str).collect();
    let Some(seen) = store.and_then(|store| store.read(&prefixes).ok()) else { return Vec::new() };
    let dead = |node: &NodeName| seen.get(&protocol::dead_key(node)).is_some();
    let lives = |node: &NodeName| *node == *me || seen.get(&protocol::beat_key(node)).is_some();
    let able =
        |group: &&Group, node: &NodeName| group.state_of(node) == Membership::Active && !dead(node) && lives(node);
    // One of them, so that the others need not wait for it in vain.
    let mine = |group: &&Group| group.members.iter().find(|node| able(group, node)) == Some(me);
    let mut strikes: Vec<Strike> = Vec::new();
    for group in groups.into_iter().filter(mine) {
        for gone in group.members.iter().filter(|node| membership::is_leaving(group.state_of(node)) && dead(node)) {
            // As they stand in its own part of the fleet; its secrets are of no use here.
            let Some(theirs) = select(fleet, gone) else { continue };
            let Ok(desired) = renderer.node(&theirs, &Unsealed::without_keys()) else { continue };
            for placed in &desired.resources {
                let Resource::Action(action) = &placed.resource else { continue };
                if action.on != "leave" || membership::unit_of(placed, &[group]).next().is_none() {
                    continue;
                }
                let mut action = action.clone();
                action.name = format!("{} of {gone}", action.name);
                match strikes.iter_mut().find(|strike| strike.action.name == action.name) {
                    Some(strike) => strike.groups.push(group.id.clone()),
                    None => strikes.push(Strike { dead: gone.clone(), groups: vec![group.id.clone()], action }),
                }
            }
        }
    }
    strikes
}
