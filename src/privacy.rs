//! What the process does about itself before anything else, so that nothing of its memory leaves with a crash.
//!
//! Every command does it: which of them is given an identity is known only later. Never: a panic's own words, they may
//! quote a value.

use std::io::Write as _;
use std::panic::PanicHookInfo;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// No core dump, and no process of the same user looks into this one: prctl(2) PR_SET_DUMPABLE closes ptrace(2) and
/// `/proc/PID/mem`, and keeps the kernel from handing a dump to a collector, which the limit alone does not (core(5)).
/// Programs that are started inherit the limit only.
pub fn close_memory() {
    // Neither fails for a process that asks for less; where a filter forbids the calls the rest still holds.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// A panic says where it happened, and nothing else.
pub fn hush_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "{}", place_of(panic));
    }));
}

fn place_of(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let place = panic
        .location()
        .map_or_else(|| "an unknown place".to_owned(), |at| format!("{}:{}", inside_its_package(at.file()), at.line()));
    format!("panic at {place} in thread {thread} (its message is not shown: it could quote a secret)")
}

/// `src/apply.rs` of ours as it is; of a dependency its package's folder, not where it was built.
fn inside_its_package(file: &str) -> &str {
    let Some((before, _)) = file.rsplit_once("/src/") else { return file };
    let package = before.rfind('/').map_or(0, |slash| slash + 1);
    &file[package..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_tells_nothing_of_the_machine_that_built_it() {
        assert_eq!(inside_its_package("src/apply.rs"), "src/apply.rs");
        assert_eq!(inside_its_package("/home/me/registry/src/index-1/tera-2.4.0/src/vm.rs"), "tera-2.4.0/src/vm.rs");
    }
}
