//! converger: each VM of a fleet pulls one signed branch, renders its own part of it, and makes itself so, restarting
//! clustered services without ever taking a quorum away.
//!
//! The rule behind the code: *decide with data, then act on the decision.* What can be wrong is decided by synchronous
//! functions over plain values; what touches the world is thin and boring, and decides nothing.
//!
//! # The path of the data
//!
//! [`pipeline::run`] is this picture as one function, with no channel between its hops:
//!
//! ```text
//!  git          trust         fleet/load    fleet/select   secrets
//! Remote -----> Fetched ----> Verified ---> Fleet -------> NodeSpec ---> Unsealed
//!        fetch         verify         load         select          unseal   |
//!                                                                           | render
//!                           host                                            v
//!  ledger: what is ours --> Observed <------------ observe ------------- Desired
//!                              |                                            |
//!                              +---------------> plan <---------------------+
//!                                                 |
//!                            lock, probe <---> apply, settle ---> Outcome ---> Report
//! ```
//!
//! `check`, `render`, `plan`, `agent --dry-run` and the agent are the same functions stopped at different hops. A [`pause`] stops
//! a run after the plan: what settles goes on, nothing is begun. Beside the runs stand two things only: [`singletons`], a
//! thread that writes the keys of units of which one runs in a cluster, and [`fleetlock`], which listens for others who want
//! to reboot the machine and leaves their question for the next run.
//!
//! # Code map
//!
//! The modules below stand in reading order: nouns, decisions, what touches the world, what drives it all. Start with
//! [`pipeline`], then follow what interests you. Files that begin with PURE have no input or output, no clock, no
//! randomness, no environment and no async in them.
//!
//! Imports run one way: main, cli, agent, pipeline, the rest; decisions never import effects. A trait exists only where
//! there is a real thing and a stand-in for it: [`host::Host`], [`lock::store::LockStore`], [`probe::Probe`],
//! [`host::guard::Guard`], [`clock::Clock`].
//!
//! # What holds everywhere
//!
//! - Nothing on the host changes before the plan is whole; all files of a batch are staged before the first rename.
//! - "Needs a restart" is a comparison of digests with what the unit was started with, never a remembered event.
//! - Only what the ledger says is ours is ever removed, and an id is in the ledger before its first write.
//! - Waiting ends the run: nothing sleeps on a hold, the next wake plans anew.
//! - Closed for disruption, open for the rest: without a store or without an answer nothing running is stopped, while
//!   files, drift and starts go on. Unknown is down.
//! - Policy (members, lanes, order, gates) comes from the verified commit, state (holds, reports) from the store.
//! - A secret has no Debug, no Serialize and no Clone; what people see is the masked text.
//! - What meets foreign bytes (transport, packs, merging) runs in children without privileges, [`git`]'s; the agent hashes
//!   what they hand over and writes only what is verified.
//! - What a peer says of the branch raises an alarm ([`peers`]) and moves nobody.
//! - The decisions about holds are those that `tests/model.rs` and `tests/sim.rs` go through: the same functions.
//! - One place for each effect: programs of a node start in `host::command` (those of
//!   roles as units of their own, `host::programs`), our own files are written in [`disk`], the
//!   host's in `host::files`, the time comes from [`clock`]. Clippy refuses the functions below them everywhere else.
//! - Every wait, refusal and failure has one id of [`reason`], and one exit code with it.
//!
//! # Absent on purpose
//!
//! - A central server: nodes meet in the source and in the store, and go on alone.
//! - A shell, a template that runs programs, a hook: a command is a list of arguments.
//! - A checkout: trees are read by id from the object store, so Git's filters, hooks and attributes have no effect.
//! - Leases and timeouts on holds: a clock cannot tell whether a machine is off ([`singletons`] are the one exception).
//! - Resource kinds for users, directories or sysctl: those are files for systemd's own tools.
//! - A second implementation of anything, for the sandbox, the plan or the tests: there are stand-ins for the world only.
//! - Async beyond etcd and D-Bus, whose clients need it.

// The nouns.
pub mod name;
pub mod reason;
pub mod resource;

// Decisions.
pub mod fleet;
pub mod pacing;
pub mod paths;
pub mod plan;
pub mod render;
pub mod secrets;
pub mod settings;
pub mod trust;

// What touches the world.
pub mod clock;
pub mod disk;
pub mod drift;
pub mod errno;
pub mod fleetlock;
pub mod fswatch;
pub mod git;
pub mod host;
pub mod ledger;
pub mod lock;
pub mod pause;
pub mod peers;
pub mod probe;
pub mod report;
pub mod wake;

// What drives it.
pub mod agent;
pub mod apply;
pub mod pipeline;
pub mod reach;
pub mod settle;
pub mod singletons;
pub mod update;

// What people meet.
pub mod cli;
pub mod diagnostics;
pub mod log;
pub mod memory;
pub mod privacy;
pub mod template;
