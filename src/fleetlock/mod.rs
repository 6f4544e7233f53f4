//! FleetLock: whoever else reboots this machine (zincati, a script of the site) asks this agent first, over HTTP.
//!
//! `protocol` reads requests and writes answers (PURE), `desk` is where a request waits for a run of the agent, `listen` has
//! the sockets. The protocol is zincati's, <https://coreos.github.io/zincati/development/fleetlock/protocol/>. Each agent
//! serves its own machine only. Never: a decision; the run that a request waits for makes it.

pub mod desk;
pub mod listen;
pub mod protocol;
