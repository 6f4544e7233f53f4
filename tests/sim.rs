//! Whole fleets, simulated: thousands of seeds of faults, operators and merges; what must hold is judged at every event.
//!
//! `CONVERGER_SIM_SEED=n cargo test --test sim -- --nocapture` shows one seed's schedule; `make sim` runs many.
//! Never: a clock of this machine in a decision.
#![allow(clippy::disallowed_methods, reason = "fleets are made in folders of their own")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "in what the tests share, as in the tests")]

mod fleet_of;
mod one_run;

#[path = "sim/agents.rs"]
mod agents;
#[path = "sim/fate.rs"]
mod fate;
#[path = "sim/fleet.rs"]
mod fleet;
#[path = "sim/fleets.rs"]
mod fleets;
#[path = "sim/random.rs"]
mod random;
#[path = "sim/safety.rs"]
mod safety;
#[path = "sim/strand.rs"]
mod strand;
#[path = "sim/threats.rs"]
mod threats;
#[path = "sim/world.rs"]
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fleet::{Ended, Fleet, Plan};
use fleets::Shape;
use random::Random;
use world::{Counts, Rates, SECOND};

const HOUR: Duration = Duration::from_secs(3600);

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |said| said.parse().unwrap())
}

/// Everything about a small fleet follows from its seed.
fn small(seed: u64) -> (Plan, Rates) {
    let mut random = Random::of(seed ^ 0xa5a5);
    let shapes = Shape::small();
    let shape = shapes[usize::try_from(seed).unwrap() % shapes.len()].clone();
    // Some seeds are calm where others are not.
    let rate = |most: u64, random: &mut Random| if random.chance(300) { 0 } else { random.below(most) };
    let rates = Rates {
        pause: rate(120, &mut random),
        die: rate(12, &mut random),
        write: rate(60, &mut random),
        ask: rate(30, &mut random),
        step: rate(30, &mut random),
        watch: rate(500, &mut random),
    };
    let chaos = random.between(60, 200) * SECOND;
    (Plan { shape, chaos, tempo: 1, trace: false }, rates)
}

fn run(seed: u64, (plan, rates): (Plan, Rates)) -> Ended {
    Fleet::new(seed, &plan).run(&rates)
}

/// The same again, with every word.
fn tell(seed: u64, (plan, rates): (Plan, Rates)) -> String {
    let ended = run(seed, (Plan { trace: true, ..plan }, rates));
    let found = ended.violation.unwrap_or_else(|| "nothing".to_owned());
    format!(
        "{}\n\nseed {seed}: {found}\nagain: CONVERGER_SIM_SEED={seed} cargo test --test sim -- --nocapture seeds",
        ended.trace.join("\n")
    )
}

/// Seeds on all processors; the first that fails is told whole. `within`: no seed is begun later.
fn seeds(from: u64, count: u64, within: Duration, plan: &(dyn Fn(u64) -> (Plan, Rates) + Sync)) -> (u64, Counts, u64) {
    one_run::quiet_deaths();
    let (next, done, slowest) = (AtomicU64::new(from), AtomicU64::new(0), AtomicU64::new(0));
    let (total, failed) = (Mutex::new(Counts::default()), Mutex::new(Vec::<u64>::new()));
    let end = Instant::now() + within;
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count || Instant::now() > end || !failed.lock().unwrap().is_empty() {
                        return;
                    }
                    let ended = run(seed, plan(seed));
                    total.lock().unwrap().add(&ended.counts);
                    slowest.fetch_max(ended.healed_secs, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                    if ended.violation.is_some() {
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    if let Some(seed) = failed.into_inner().unwrap().into_iter().min() {
        panic!("\n{}", tell(seed, plan(seed)));
    }
    (done.into_inner(), total.into_inner().unwrap(), slowest.into_inner())
}

#[test]
fn s1_to_s9_hold_and_l1_to_l5_are_reached_whatever_the_seed() {
    one_run::quiet_deaths();
    if let Ok(seed) = std::env::var("CONVERGER_SIM_SEED") {
        let seed: u64 = seed.parse().unwrap();
        println!("{}", tell(seed, small(seed)));
        return;
    }
    let count = number("CONVERGER_SIM_SEEDS", 60);
    let began = Instant::now();
    let (done, counts, slowest) = seeds(0, count, HOUR, &small);
    println!("{done} seeds in {} s, {counts:?}, slowest to heal: {slowest} virtual seconds", began.elapsed().as_secs());
}

/// Faults of a large fleet: as often a node as in a small one, so that much happens at once.
fn large(seed: u64, shape: &Shape, nodes: u64, chaos: u64) -> (Plan, Rates) {
    let rates = Rates { pause: 20, die: 1 + seed % 3, write: 10, ask: 4, step: 4, watch: 50 };
    (Plan { shape: shape.clone(), chaos: chaos * SECOND, tempo: (nodes / 12).max(1), trace: false }, rates)
}

#[test]
fn the_templates_sixty_five_nodes_stay_safe_and_become_well() {
    let count = number("CONVERGER_SIM_TEMPLATES", 1);
    let began = Instant::now();
    let (done, counts, slowest) = seeds(0, count, HOUR, &|seed| large(seed, &Shape::template(), 65, 60));
    println!(
        "65 nodes: {done} seeds in {} s, {counts:?}, slowest to heal: {slowest} virtual seconds",
        began.elapsed().as_secs()
    );
}

#[test]
fn a_generated_fleet_stays_safe_and_becomes_well() {
    let (count, nodes) = (number("CONVERGER_SIM_GENERATED", 1), number("CONVERGER_SIM_NODES", 120));
    let shape = Shape::generated(usize::try_from(nodes).unwrap());
    let began = Instant::now();
    let (done, counts, slowest) = seeds(0, count, HOUR, &|seed| large(seed, &shape, nodes, 30));
    println!(
        "{nodes} nodes: {done} seeds in {} s, {counts:?}, slowest to heal: {slowest} virtual seconds",
        began.elapsed().as_secs()
    );
}
