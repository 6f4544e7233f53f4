//! Restart locks: durable holds on groups, taken in one transaction, ended only by a healthy member.
//!
//! `quorum` decides (PURE), `machine` says what comes next (PURE), `protocol` turns it into transactions (PURE), and a
//! `store` carries them: etcd, a local SQLite file for one machine, or a fake. Never: a lease, a clock or a watch that
//! safety depends on.

pub mod etcd;
pub mod fake;
pub mod local;
pub mod machine;
pub mod protocol;
pub mod quorum;
pub mod session;
pub mod store;
