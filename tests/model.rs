//! The restart-hold protocol, looked at in every state that a small fleet can get into.
//!
//! The decisions are the product's own (`lock::{quorum, machine, protocol, recovery, keys}`); the world around them is here:
//! members, agents, versions, faults, operators. `cargo test --test model` looks at a part, `make model` at everything. Never:
//! a second telling of the protocol.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a checker that tells what it found")]
#![allow(clippy::disallowed_methods, reason = "how much is asked for, and how long it took")]
#![allow(clippy::needless_range_loop, reason = "groups and nodes are numbers")]
#![allow(clippy::cast_possible_truncation, reason = "numbers below eight")]

#[path = "model/candidates.rs"]
mod candidates;
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
#[path = "model/single.rs"]
mod single;
#[path = "model/state.rs"]
mod state;
#[path = "model/world.rs"]
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mutants::Mutant;
use real::Real;
use search::{Found, search};
use single::Single;

/// Of each configuration, unless everything is asked for.
const STATES_MAX: usize = 3_500;

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

/// What is searched: a fleet with holds, or the candidates for a singleton.
enum Scene {
    Fleet(config::Config),
    Single(single::Config),
}

impl Scene {
    fn all() -> Vec<Self> {
        config::all().into_iter().map(Self::Fleet).chain(single::all().into_iter().map(Self::Single)).collect()
    }

    fn deep() -> Vec<Self> {
        config::deep().into_iter().map(Self::Fleet).collect()
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Fleet(config) => config.name,
            Self::Single(config) => config.name,
        }
    }

    fn search(&self, mutant: Option<Mutant>) -> Found {
        match self {
            Self::Fleet(config) => search(Real::new(config, mutant), most()),
            Self::Single(config) => search(Single::new(config, mutant), most()),
        }
    }
}

/// S1 to S10 in every state, and from every state everything can end well (L1 to L4).
#[test]
fn s1_to_s10_hold_in_every_state_and_everything_can_end_well() {
    let deep = if everything() { Scene::deep() } else { Vec::new() };
    let scenes: Vec<Scene> = deep.into_iter().chain(Scene::all()).filter(|scene| wanted(scene.name())).collect();
    let found: Vec<Found> = each(&scenes, |scene| {
        let began = Instant::now();
        let found = scene.search(None);
        let part = if found.whole { "" } else { " (a part)" };
        println!("{:>15} {:>10} states{part}, {:.0} s", scene.name(), found.states, began.elapsed().as_secs_f64());
        if let Some((promise, way)) = &found.broken {
            println!("{}: {promise}\n  {}", scene.name(), way.join("\n  "));
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
        let scenes = Scene::all();
        let mut scenes = names.iter().filter_map(|name| scenes.iter().find(|scene| scene.name() == *name));
        let found = scenes.find_map(|scene| Some((scene.name(), scene.search(Some(*mutant)).broken?)));
        match &found {
            Some((scene, (promise, way))) => {
                println!("{mutant:?} ({words}), {scene}, {} steps: {promise}", way.len() - 1);
            }
            None => println!("{mutant:?} ({words}): NOT CAUGHT"),
        }
        found.is_some()
    });
    let missed: Vec<Mutant> =
        all.iter().zip(&caught).filter(|(_, caught)| !**caught).map(|((mutant, ..), _)| *mutant).collect();
    println!("{} of {} mutants caught", all.len() - missed.len(), all.len());
    // The first part of each configuration is enough for some of them.
    let few = if everything() { 0 } else { all.len() * 3 / 4 };
    assert!(missed.len() <= few, "not caught: {missed:?}");
}
