//! The groups that a node must look at before it takes a member away, made concrete from the verified commit.
//!
//! Never: members, lanes or gates from anywhere else.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::World;
use crate::apply::Outcome;
use crate::fleet::Group;
use crate::fleet::problem::Problem;
use crate::fleet::schema::Quorum;
use crate::fleet::select::NodeSpec;
use crate::fleet::window::Window;
use crate::host::Observed;
use crate::lock::protocol;
use crate::lock::quorum::Because;
use crate::lock::session::{self, Circle, Session};
use crate::lock::view;
use crate::name::{ClusterName, GroupId, NodeName, RoleName, UnitName};
use crate::plan::Known;
use crate::reason;
use crate::render::Renderer;
use crate::report::At;

pub(super) fn open_session<'a>(
    world: &World<'a>,
    renderer: &Renderer<'_>,
    spec: &'a NodeSpec<'_>,
    secrets: &crate::secrets::Unsealed,
    known: &Known,
    observed: &Observed,
    at: &At,
) -> Result<Session<'a>, Vec<Problem>> {
    Ok(Session {
        me: &spec.node.name,
        // Whoever may be replaced in the middle of it begins nothing that takes a member away.
        store: match (&world.doubled, world.updater.on_trial()) {
            // The other one may have a copy of this one's record, and takes the same holds for its own.
            (Some(because), _) => Err(because.clone()),
            (None, true) => Err(Because::new(reason::AGENT_UPDATE, None, "this agent is on trial".to_owned())),
            (None, false) => world.store.map_err(session::because_of),
        },
        probe: world.probe,
        clock: world.clock,
        boot_id: observed.boot_id.clone(),
        state_is_old: known.has_settled,
        record_path: world.paths.hold(),
        pin_path: world.paths.store_pin(),
        circles: circles(renderer, spec, secrets, known)?,
        clusters: spec
            .node
            .clusters
            .iter()
            .filter_map(|name| Some((name.clone(), spec.fleet.environment.cluster(name)?.members.clone())))
            .collect(),
        windows: windows(spec),
        commit: at.commit.clone(),
        seq: at.seq,
    })
}

/// The maintenance windows that bind this node.
pub fn windows<'a>(spec: &NodeSpec<'a>) -> Vec<(ClusterName, &'a [Window])> {
    let clusters = spec.node.clusters.iter().filter_map(|name| spec.fleet.environment.cluster(name));
    let bound = clusters.filter(|cluster| !cluster.windows.is_empty());
    bound.map(|cluster| (cluster.name.clone(), cluster.windows.as_slice())).collect()
}

/// The groups that this node is a member of by the target commit, and those that protect a unit as it runs now.
pub fn circles<'a>(
    renderer: &Renderer<'_>,
    spec: &NodeSpec<'a>,
    secrets: &crate::secrets::Unsealed,
    known: &Known,
) -> Result<Vec<Circle<'a>>, Vec<Problem>> {
    let environment = &spec.fleet.environment;
    let me = &spec.node.name;
    let conflicts = |group: &Group| -> Vec<GroupId> {
        let with_aliases = group.conflicts.iter().flat_map(|id| {
            let aliases = environment.groups().find(|other| other.id == *id).map(|other| other.aliases.as_slice());
            std::iter::once(id).chain(aliases.unwrap_or_default())
        });
        with_aliases.cloned().collect()
    };
    let mut circles = Vec::new();
    for group in &spec.groups {
        let ask = |check: &Option<String>| match check {
            Some(check) => renderer.questions(spec, group, check, secrets),
            None => Ok(Vec::new()),
        };
        let cluster = environment.cluster(&group.id.cluster());
        let after = cluster.map(|cluster| cluster.after.as_slice()).unwrap_or_default().iter().map(|first| {
            let members = environment.cluster(first).map(|cluster| cluster.members.clone()).unwrap_or_default();
            (first.clone(), members)
        });
        // As many as both the commit that is live here and the target let go: what made room for more may not be live yet.
        let lanes = known.units.get(&group.unit).and_then(|ran| ran.lanes.get(&group.id)).copied();
        let narrower = lanes.filter(|lanes| *lanes < group.max_unavailable);
        circles.push(Circle {
            group: match narrower {
                Some(max_unavailable) => Cow::Owned(Group { max_unavailable, ..(*group).clone() }),
                None => Cow::Borrowed(*group),
            },
            view: Some(view::digest_of(group)),
            conflicts: conflicts(group),
            gate: ask(&group.gate)?,
            leader: ask(&group.leader)?,
            after: after.collect(),
        });
    }
    for (unit, ran) in &known.units {
        for id in &ran.groups {
            if circles.iter().any(|circle| circle.ids().any(|known| known == id)) {
                continue;
            }
            // This node has left it, or it is gone. Its members are those of today, and this one: it still counts.
            let is_it = |group: &&Group| group.id == *id || group.aliases.contains(id);
            let today = environment.groups().find(is_it).filter(|group| !group.members.is_empty());
            let gate = today.and_then(|group| renderer.questions(spec, group, group.gate.as_ref()?, secrets).ok());
            let view = today.map(view::digest_of);
            let mut group = today.cloned().unwrap_or_else(|| gone(id, unit));
            group.members.push(me.clone());
            let conflicts = conflicts(&group);
            // A gate that cannot be asked leaves everybody unknown, which is down.
            let gate = gate.unwrap_or_default();
            circles.push(Circle {
                group: Cow::Owned(group),
                view,
                conflicts,
                gate,
                leader: Vec::new(),
                after: Vec::new(),
            });
        }
    }
    if circles.is_empty() {
        let lanes = Cow::Owned(environment.lanes());
        circles.push(Circle {
            group: lanes,
            view: None,
            conflicts: Vec::new(),
            gate: Vec::new(),
            leader: Vec::new(),
            after: Vec::new(),
        });
    }
    Ok(circles)
}

/// A group that the target commit does not declare: nobody needs it any more, so there is nothing to count. Who still
/// has an older commit sees the hold under its name.
fn gone(id: &GroupId, unit: &UnitName) -> Group {
    Group {
        id: id.clone(),
        members: Vec::new(),
        changing: BTreeMap::new(),
        quorum: Quorum::None,
        max_unavailable: 1,
        rank: Vec::new(),
        conflicts: Vec::new(),
        aliases: Vec::new(),
        unit: unit.clone(),
        gate: None,
        leader: None,
        settle_secs: 0,
        role: RoleName::new(""),
    }
}

/// Keys whose change may end a wait of this node. Who waits for nobody is not woken by what the others do.
pub fn interests(session: &Session<'_>, elects: &BTreeSet<ClusterName>, outcome: &Outcome) -> Vec<String> {
    let always = [protocol::FREEZES.to_owned(), protocol::dead_key(session.me)];
    let always = always.into_iter().chain(elects.iter().map(protocol::act_range));
    if outcome.deferred.is_empty() {
        return always.collect();
    }
    // Whoever waits for a lane of the environment asks again by itself: a watch of all nodes would wake all of them.
    let circles = || session.circles.iter().filter(|circle| !circle.group.is_lanes());
    let groups = circles().flat_map(|circle| circle.ids().chain(&circle.conflicts));
    let groups: BTreeSet<&GroupId> = groups.collect();
    let first =
        |circle: &'_ Circle<'_>| circle.after.iter().flat_map(|(_, members)| members.clone()).collect::<Vec<_>>();
    let peers = circles().flat_map(|circle| circle.group.members.iter().cloned().chain(first(circle)));
    let peers: BTreeSet<NodeName> = peers.filter(|peer| peer != session.me).collect();
    let keys = groups.into_iter().map(protocol::hold_range).chain(peers.iter().map(protocol::report_key));
    keys.chain(always).collect()
}
