//! Restart locks: durable holds on groups, taken in one transaction, ended only by a healthy member.
//!
//! `quorum` (with `membership`), `window` and `election` decide, `machine` says what comes next, `recovery` what becomes of what was left behind,
//! `protocol` turns it into transactions, `keys` says what those do, `rights` who may do it in etcd; `operator` and `epoch` are
//! what people do to them, `standing` is what they see (all PURE). A `store` carries them: etcd, a local SQLite file for one
//! machine, or a fake. Never: a lease, a clock or a watch that safety depends on.

pub mod cluster_action;
pub mod election;
pub mod epoch;
pub mod etcd;
pub mod fake;
pub mod instance;
pub mod keys;
pub mod leave;
pub mod lent;
pub mod local;
pub mod machine;
pub mod membership;
pub mod opening;
pub mod operator;
pub mod protocol;
pub mod quorum;
pub mod recovery;
pub mod rights;
pub mod session;
pub mod singleton;
pub mod standing;
pub mod store;
pub mod view;
pub mod window;
