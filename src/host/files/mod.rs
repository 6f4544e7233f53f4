//! Files of the host: looked at without following anything, and replaced so that each is old or new.
//!
//! Candidates are written in `.converger-stage`, 0700, at the top of the target's mount; only when all of a batch are
//! on disk is the first one renamed. What is replaced or removed goes to the backups before that. Never: truncates a
//! file that somebody reads, leaves a temporary name in a directory that a service scans, opens what could block.

mod accounts;
mod in_place;
mod labels;
mod observe;
mod room;
mod stage;
mod staged;
mod stat;

pub use in_place::{remove, set_attributes, sync};
pub use observe::observe;
pub use stage::clean;
pub use staged::Staged;

/// Up to here an fsync for each file is cheaper than a syncfs, which also waits for what others wrote.
const FSYNC_FILES_MAX: usize = 16;

/// Whether owners can be told and set here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owners {
    Kept,
    /// A sandbox: everything belongs to whoever runs it.
    Ignored,
}
