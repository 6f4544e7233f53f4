//! Crash safety, proved: an agent that dies at any effect of an apply is followed by one that ends where nobody died.
//!
//! An effect is a system call that changes something, told by strace. `make crash` tries every one; `cargo test` a sample.
//! Never: a hook in the product.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs, write files and look at the clock")]

mod bed;
mod forge;
mod reference;

use std::time::{Duration, Instant};

use reference::{Effect, Ended, all_of, before, effects, number, the_reference};

/// What a crash could interrupt is among the effects that are tried.
#[test]
fn the_effects_of_the_reference_are_of_every_kind() {
    let kinds = [
        ("accepted state", "/accepted"),
        ("ledger", "ledger.db-wal>"),
        ("candidate", ".converger-stage/candidate-0>"),
        ("rename", "\"candidate-0\""),
        ("mode in place", "/etc/many/09.conf>"),
        ("backup", "backups/etc/many"),
        ("removal", "/etc/many>, \"12.conf\""),
        ("hold in the store", "store.db-wal>"),
        ("hold record", ".hold.json.new"),
        ("unit", "\"units.json\""),
        ("package and action", "\"recorded.json\""),
        ("report", ".status.json.new"),
    ];
    for (what, mark) in kinds {
        let calls: Vec<&Effect> = effects().into_iter().filter(|effect| effect.words.contains(mark)).collect();
        assert!(!calls.is_empty(), "no effect on the {what}");
    }
}

/// K1, K3, K4, D17: each file is old or new at that moment; the next run makes everything as if nobody had died, and no unit
/// is started once more or once less.
#[test]
fn an_agent_that_dies_at_any_effect_is_followed_by_one_that_ends_the_same() {
    let (reference, before) = (the_reference(), before(the_reference()));
    let every = number("CONVERGER_CRASH_EVERY", 53);
    all_of(effects().into_iter().step_by(every), |effect| {
        let what = format!("killed at {effect}");
        let attempt = reference.copy();
        let Ended::Killed = attempt.killed_at(effect) else { return None };
        attempt.files_are_old_or_new(&before, reference, &what);
        attempt.recover(&what);
        attempt.is_as_undisturbed(reference, &what);
        Some(())
    });
}

/// K1, K7: twice in a row, at any moment, as the machine runs it.
#[test]
fn an_agent_that_is_killed_at_random_moments_is_followed_by_one_that_ends_the_same() {
    let (reference, before) = (the_reference(), before(the_reference()));
    let attempt = reference.copy();
    let began = Instant::now();
    attempt.recover("a rehearsal");
    let whole = began.elapsed();
    let kills = number("CONVERGER_CRASH_KILLS", 8);
    all_of(0..kills, |n| {
        let attempt = reference.copy();
        let mut what = String::from("killed after");
        for _ in 0..2 {
            let mut random = [0; 2];
            getrandom::fill(&mut random).unwrap();
            // All parts of the run, and a random place in each.
            let part = n as f64 + f64::from(u16::from_le_bytes(random)) / 65536.0;
            let delay = whole.mul_f64(part / kills as f64);
            what.push_str(&format!(" {} ms", delay.as_millis()));
            killed_after(&attempt, delay);
            attempt.files_are_old_or_new(&before, reference, &what);
        }
        attempt.recover(&what);
        attempt.is_as_undisturbed(reference, &what);
        Some(())
    });
}

fn killed_after(attempt: &reference::Attempt, delay: Duration) {
    let mut agent = attempt.agent().spawn().unwrap();
    std::thread::sleep(delay);
    agent.kill().unwrap();
    agent.wait().unwrap();
}
