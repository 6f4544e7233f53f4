//! Single threats that need a whole fleet to show: clocks, crossing wants, a herd, a slow node.
//!
//! Never: a fault by lot; each test makes its own.

use std::collections::BTreeSet;

use crate::fleet::{Fleet, Plan};
use crate::fleets::Shape;
use crate::one_run::quiet_deaths;
use crate::world::{Machine, Rates, SECOND, World};
use crate::{HOUR, seeds};

fn calm(shape: Shape) -> Plan {
    Plan { shape, chaos: 0, tempo: 1, trace: true }
}

fn shape(name: &str) -> Shape {
    Shape::small().into_iter().find(|shape| shape.name == name).unwrap()
}

/// A commit rolls through a fleet; what is done to the world before every event is said.
fn roll(seed: u64, plan: &Plan, before: &dyn Fn(&mut World, u64)) -> Fleet {
    quiet_deaths();
    let mut fleet = Fleet::new(seed, plan);
    fleet.settle_in();
    {
        let mut world = fleet.shared.world();
        let clusters = world.shape.clusters.len();
        world.merge(&vec!["good-2"; clusters]);
    }
    let mut events = 0;
    while !fleet.is_well() {
        before(&mut fleet.shared.world(), events);
        events += 1;
        let goes_on = fleet.step() && fleet.shared.world().now < 7200 * SECOND;
        assert!(goes_on, "{:?} {}", fleet.shared.world().violation, fleet.shared.world().open());
    }
    fleet
}

fn holds_of(fleet: Fleet) -> Vec<String> {
    let ended = fleet.end();
    assert_eq!(ended.violation, None);
    ended.trace.into_iter().filter(|line| line.contains(" hold/")).collect()
}

/// How far a node's clock is off at an event: which of a few ways.
type Off = &'static dyn Fn(usize, usize) -> usize;

/// G16: the same holds, in the same order, at the same time.
#[test]
fn clocks_that_are_a_day_off_or_step_change_no_hold() {
    let plan = calm(shape("five-led"));
    let off = |of: Off| {
        move |world: &mut World, events: u64| {
            for (node, machine) in world.machines.iter_mut().enumerate() {
                machine.off_secs = [0, 86_400, -86_400, 3_000][of(node, events as usize) % 4];
            }
        }
    };
    // n1 leads, and yields to the others.
    let ways: [(&str, Off); 4] = [
        ("each has a clock of its own", &|node, _| node),
        ("all step all the time", &|node, events| node + events / 5),
        ("all step once", &|_, events| usize::from(events > 30)),
        ("the leader's steps once", &|node, events| usize::from(node == 0 && events > 30)),
    ];
    for seed in 18..20 {
        let right = holds_of(roll(seed, &plan, &|_, _| ()));
        assert_eq!(right.len(), 15, "five times claimed, armed and given back: {right:#?}");
        for (what, way) in ways {
            assert_eq!(right, holds_of(roll(seed, &plan, &off(way))), "seed {seed}: {what}");
        }
    }
}

/// Once one member has settled with a commit, as many go at a time as there are lanes, and never more.
#[test]
fn the_lanes_of_a_group_are_used_at_once() {
    let fleet = roll(31, &calm(shape("two-lanes")), &|_, _| ());
    let (mut held, mut most) = (BTreeSet::new(), 0);
    for line in holds_of(fleet) {
        let key =
            line.split_whitespace().find(|word| word.starts_with("hold/")).unwrap().trim_end_matches(',').to_owned();
        if line.ends_with("deleted") {
            held.remove(&key)
        } else {
            held.insert(key)
        };
        most = most.max(held.len());
    }
    assert_eq!(most, 2);
}

/// G27: whoever needs several groups takes them in one transaction, so nobody waits with something in hands.
#[test]
fn nodes_that_want_groups_crosswise_never_wait_for_each_other() {
    let rates = Rates { pause: 250, write: 20, ..Rates::default() };
    let plan = |_| (Plan { trace: false, chaos: 20 * SECOND, ..calm(shape("crossing")) }, rates.clone());
    let (done, counts, slowest) = seeds(27_000, 6, HOUR, &plan);
    assert!(done == 6 && counts.claims > 20, "{counts:?}");
    assert!(slowest < 600, "{slowest} virtual seconds");
}

/// G30: a node whose loop takes ten times as long has its turn, and does not hold up the others for long.
#[test]
fn a_slow_node_among_fast_ones_is_served_and_keeps_nobody_waiting_for_long() {
    let fleet = roll(30, &calm(shape("five-led")), &|world, _| world.machines[1].slowness = 10);
    let now = fleet.shared.world().now;
    let ended = fleet.end();
    assert_eq!(ended.violation, None);
    assert!(now < 600 * SECOND, "{} s", now / SECOND);
    let claims: Vec<&String> = ended.trace.iter().filter(|line| line.contains(" claimed at c1")).collect();
    assert_eq!(claims.len(), 5, "each goes once: {claims:#?}");
}

/// G29: more agents than a group of a platform has members want one group at once.
#[test]
fn a_herd_asks_the_store_a_bounded_number_of_times_a_second() {
    let nodes = crate::number("CONVERGER_SIM_HERD", 60);
    quiet_deaths();
    let plan = Plan { trace: false, ..calm(Shape::crowd(usize::try_from(nodes).unwrap())) };
    let mut fleet = Fleet::new(29, &plan);
    fleet.settle_in();
    let (before, began) = {
        let mut world = fleet.shared.world();
        world.merge(&["good-2"]);
        (world.counts.clone(), world.now)
    };
    let applied = |machine: &&Machine| machine.applied == Some(1);
    let grants = |fleet: &Fleet| fleet.shared.world().machines.iter().filter(applied).count();
    let mut within = 0;
    while grants(&fleet) < 5 {
        assert!(fleet.step(), "{:?}", fleet.shared.world().violation);
        within = (fleet.shared.world().now - began) / SECOND;
        assert!(within < 5 * 60, "{} of 5 in five minutes", grants(&fleet));
    }
    let counts = fleet.shared.world().counts.clone();
    let requests = counts.requests - before.requests;
    println!("{nodes} nodes: {requests} requests in {within} s, {} runs", counts.runs - before.runs);
    // The merge itself wakes all of them once.
    let burst = 10 * nodes;
    assert!(requests <= burst + 200 * within, "{requests} requests of {nodes} nodes in {within} s");
    drop(fleet.end());
}
