//! The kernel says no: errors at every effect of an apply, and what the agent makes of each.
//!
//! `make crash` tries every call with every error; `cargo test` a sample. Never: a hook in the product.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and write files as they like")]

mod bed;
mod forge;
mod reference;

use bed::Said;
use reference::{Attempt, Effect, Ended, all_of, before, calls, effects, number, the_reference};

const ERRORS: [&str; 6] = ["ENOSPC", "EIO", "EROFS", "EMFILE", "EDQUOT", "EINTR"];

fn failing(attempt: &Attempt, effect: &Effect, error: &str) -> Said {
    match attempt.injected(effect, &format!("error={error}")) {
        Ended::Said(said) => said,
        Ended::Killed => panic!("nobody killed it"),
    }
}

/// I9, D8, K7: each file is old or new, nothing is called done that is not, and the run after it converges. An error that is
/// nobody's loss (a temporary file that was not there, a line on the terminal) may be passed over.
#[test]
fn an_error_at_any_effect_is_told_and_mended_by_the_next_run() {
    let (reference, before) = (the_reference(), before(the_reference()));
    let (every, errors) = (number("CONVERGER_FAULT_EVERY", 127), number("CONVERGER_FAULT_ERRORS", 1));
    let cases = calls().iter().enumerate().step_by(every);
    let cases = cases.flat_map(|(n, effect)| (0..errors).map(move |e| (effect, ERRORS[(n + e) % ERRORS.len()])));
    all_of(cases, |(effect, error)| {
        let what = format!("{error} at {effect}");
        let attempt = reference.copy();
        let said = failing(&attempt, effect, error);
        attempt.files_are_old_or_new(&before, reference, &what);
        assert!(![1, 101].contains(&said.code) && !said.all().contains("panicked"), "{what}: {}", said.all());
        if said.code == 0 {
            attempt.is_whole(reference, &format!("{what}, which was called a success"));
        }
        attempt.recover_in_time(&what);
        attempt.is_whole(reference, &what);
        Some(())
    });
}

/// The first effect of this kind with these words.
fn effect(call: &str, words: &str) -> &'static Effect {
    let found = effects().into_iter().find(|effect| effect.call == call && effect.words.contains(words));
    found.unwrap_or_else(|| panic!("no {call} with {words}"))
}

#[test]
fn what_the_kernel_refuses_has_a_reason_of_its_own() {
    let (reference, stage) = (the_reference(), ".converger-stage/candidate-1>");
    let cases = [
        (effect("write", stage), "ENOSPC", "disk-full"),
        (effect("write", stage), "EDQUOT", "disk-full"),
        (effect("mkdirat", ".converger-stage"), "EROFS", "read-only"),
        (effect("fsync", stage), "EIO", "disk-error"),
        (effect("pwrite64", "ledger.db-wal>"), "ENOSPC", "disk-full"),
        (effect("write", ".hold.json.new"), "ENOSPC", "disk-full"),
    ];
    all_of(cases.into_iter(), |(effect, error, reason)| {
        let attempt = reference.copy();
        let said = failing(&attempt, effect, error).exits(5).says(&[reason]);
        assert_eq!(attempt.node.report()["state"], "failed", "{}", said.all());
        Some(())
    });
}

/// I9: after a failed fsync the pages are clean and the bytes are gone; a second fsync would say that all is well.
#[test]
fn what_could_not_be_synced_is_thrown_away_and_written_anew() {
    let reference = the_reference();
    let failed = effect("fsync", ".converger-stage/candidate-0>");
    let attempt = reference.copy();
    let log = attempt.node.root.with_file_name("trace");
    let inject = format!("inject=fsync:error=EIO:when={}", failed.nth);
    let trace = "trace=fsync,syncfs,renameat,unlinkat,write";
    let options = ["-y", "-s", "80", "-o", log.to_str().unwrap(), "-e", trace, "-e", &inject];
    let Ended::Said(said) = attempt.traced(&options) else { panic!("nobody killed it") };
    said.exits(5).says(&["disk-error", "cannot stage"]);
    let text = std::fs::read_to_string(&log).unwrap();
    let (_, after) = text.split_once("(INJECTED)").unwrap();
    let next = after.lines().skip(1).find(|line| line.contains("candidate-0")).unwrap();
    assert!(next.starts_with("unlinkat("), "after the failed fsync it was not removed: {next}");
    attempt.recover("an fsync that failed");
    attempt.is_whole(reference, "an fsync that failed");
}

/// K7: killed in the middle, then no room while the next run mends it: it says so and writes nothing; with room again it ends
/// where it should.
#[test]
fn a_disk_that_is_full_while_recovering_is_told_and_mended() {
    let reference = the_reference();
    let renames: Vec<&Effect> = effects().into_iter().filter(|effect| effect.words.contains("\"candidate-")).collect();
    let every = number("CONVERGER_FAULT_EVERY", 7).min(7);
    all_of(renames.into_iter().step_by(every), |effect| {
        let what = format!("killed at {effect}, then ENOSPC");
        let attempt = reference.copy();
        let Ended::Killed = attempt.killed_at(effect) else { return None };
        let killed = attempt.node.host();
        // Nothing is written before it is in the ledger, which has no room. What leaves is noted after it has gone.
        let inject = ["-o", "/dev/null", "-e", "trace=pwrite64,write", "-e", "inject=pwrite64,write:error=ENOSPC"];
        let Ended::Said(said) = attempt.traced(&inject) else { panic!("nobody killed it") };
        assert_ne!(said.code, 0, "{what}");
        let now = attempt.node.host();
        let moved = |path: &std::path::PathBuf| {
            let leaves = !now.contains_key(path) && !reference.end.files.contains_key(path);
            path.starts_with("etc") && now.get(path) != killed.get(path) && !leaves
        };
        let moved = killed.keys().chain(now.keys()).find(|path| moved(path));
        assert_eq!(moved, None, "{what}");
        attempt.recover_in_time(&what);
        attempt.is_whole(reference, &what);
        Some(())
    });
}
