//! The restart-hold protocol, looked at in every state that a small fleet can get into.
//!
//! The decisions are the product's own (`lock::{quorum, machine, protocol, recovery, keys}`); the world around them is here:
//! members, agents, versions, faults, operators. `cargo test --test model` looks at a part, `make model` at everything. Never:
//! a second telling of the protocol.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a checker that tells what it found")]
#![allow(clippy::disallowed_methods, reason = "how much is asked for, and how long it took")]
#![allow(clippy::needless_range_loop, reason = "groups and nodes are numbers")]
#![allow(clippy::cast_possible_truncation, reason = "numbers below eight")]

#[path = "model/config.rs"]
mod config;
#[path = "model/mutants.rs"]
mod mutants;
#[path = "model/promises.rs"]
mod promises;
#[path = "model/real.rs"]
mod real;
#[path = "model/search.rs"]
mod search;
#[path = "model/state.rs"]
mod state;
#[path = "model/world.rs"]
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use config::Config;
use mutants::Mutant;
use search::{Found, search};

/// Of each configuration, unless everything is asked for.
const STATES_MAX: usize = 5_000;

fn everything() -> bool {
    std::env::var("CONVERGER_MODEL").is_ok_and(|said| said == "all")
}

fn most() -> usize {
    if everything() { usize::MAX } else { STATES_MAX }
}

/// All of them, on both cores.
fn each<T: Sync, R: Send>(jobs: &[T], run: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((at, job)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, jobs.get(at)?)))
                {
                    let result = run(job);
                    done.lock().unwrap().push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

fn wanted(name: &str) -> bool {
    std::env::var("CONVERGER_MODEL_ONLY").map_or(true, |only| only == name)
}

/// S1 to S9 in every state, and from every state everything can end well (L1 to L4).
#[test]
fn s1_to_s9_hold_in_every_state_and_everything_can_end_well() {
    let deep = if everything() { config::deep() } else { Vec::new() };
    let configs: Vec<Config> = deep.into_iter().chain(config::all()).filter(|config| wanted(config.name)).collect();
    let found: Vec<Found> = each(&configs, |config| {
        let began = Instant::now();
        let found = search(config, None, most());
        let part = if found.whole { "" } else { " (a part)" };
        println!("{:>15} {:>10} states{part}, {:.0} s", config.name, found.states, began.elapsed().as_secs_f64());
        if let Some((promise, way)) = &found.broken {
            println!("{}: {promise}\n  {}", config.name, way.join("\n  "));
        }
        found
    });
    println!("{} distinct states", found.iter().map(|found| found.states).sum::<usize>());
    assert!(found.iter().all(|found| found.broken.is_none()), "a promise is broken: the way to it is above");
}

/// Each weakened rule breaks a promise: the test of the model itself.
#[test]
fn every_weakened_rule_is_caught() {
    let all: Vec<_> = mutants::ALL.iter().filter(|(mutant, ..)| wanted(&format!("{mutant:?}"))).collect();
    let caught = each(&all, |(mutant, words, names)| {
        let configs = config::all();
        let configs = names.iter().filter_map(|name| configs.iter().find(|config| config.name == *name));
        let found =
            configs.clone().find_map(|config| Some((config.name, search(config, Some(*mutant), most()).broken?)));
        match &found {
            Some((config, (promise, way))) => {
                println!("{mutant:?} ({words}), {config}, {} steps: {promise}", way.len() - 1);
            }
            None => println!("{mutant:?} ({words}): NOT CAUGHT"),
        }
        found.is_some()
    });
    let missed: Vec<Mutant> =
        all.iter().zip(&caught).filter(|(_, caught)| !**caught).map(|((mutant, ..), _)| *mutant).collect();
    println!("{} of {} mutants caught", all.len() - missed.len(), all.len());
    // The first part of each configuration is enough for many of them.
    let few = if everything() { 0 } else { all.len() * 2 / 3 };
    assert!(missed.len() <= few, "not caught: {missed:?}");
}
