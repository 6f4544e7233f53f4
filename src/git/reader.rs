//! Objects of the quarantine, read by a child that can do nothing else: what comes out hashes to the id that was asked for.
//!
//! Started by the first question, ended when it is not needed any more. The hash is libgit2's own SHA-1, which notices
//! collisions (sha1dc). Never: the quarantine opened in this process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use git2::{ObjectType, Oid};

use super::GitError;
use super::child::{ChildError, Children, Running};
use super::objects::{Object, Within};
use super::quarantine::ReadOrder;
use super::sandbox::Profile;
use super::wire::{Along, Answer, Ask};
use crate::settings::Limits;

/// Of a chain that is read ahead.
const AHEAD_BYTES: u64 = 32 << 20;
/// Questions under way at once; fewer bytes than a pipe holds.
const ASKED_AHEAD: usize = 256;
/// What an object costs besides its bytes.
pub(super) const OBJECT_OVERHEAD: u64 = 64;

#[derive(Default)]
struct Held {
    objects: HashMap<Oid, (ObjectType, Arc<[u8]>)>,
    bytes: u64,
    /// Whether all ancestors of some commit were asked for.
    history: bool,
}

pub(super) struct Reader {
    children: Children,
    quarantine: PathBuf,
    limits: Limits,
    running: RefCell<Option<Running>>,
    /// What was read ahead.
    held: RefCell<Held>,
}

impl Reader {
    pub fn new(children: Children, quarantine: PathBuf) -> Self {
        let limits = Limits::default();
        Self { children, quarantine, limits, running: RefCell::default(), held: RefCell::default() }
    }

    /// Ends the child; the next question starts another, which sees what was fetched meanwhile.
    pub fn end(&self) {
        self.running.take();
        self.held.take();
    }

    pub fn set_limits(&mut self, limits: &Limits) {
        self.limits = *limits;
    }

    /// What one object may have.
    pub fn max(&self) -> u64 {
        self.limits.pack_mib << 20
    }

    /// An object that was read ahead.
    pub fn held(&self, id: Oid) -> Option<Object> {
        self.held.borrow().objects.get(&id).map(|(kind, bytes)| Object { kind: *kind, bytes: bytes.to_vec() })
    }

    /// An object of at most `max` bytes.
    pub fn read(&self, id: Oid, max: u64) -> Result<Within, GitError> {
        self.talk(|child| {
            child.ask(&Ask::Read { id, max })?;
            answered(child, id, max)
        })?
        .map_err(|why| missing(id, &why))
    }

    /// Objects of at most `max` bytes each, in this order.
    pub fn read_all(
        &self,
        ids: &[Oid],
        max: u64,
        mut take: impl FnMut(Oid, Within) -> Result<(), GitError>,
    ) -> Result<(), GitError> {
        let absent: Vec<Oid> = {
            let held = self.held.borrow();
            ids.iter().filter(|id| !held.objects.contains_key(id)).copied().collect()
        };
        let (mut asked, mut answers) = (0, 0);
        for id in ids {
            if let Some(object) = self.held(*id) {
                take(*id, Within::Whole(object))?;
                continue;
            }
            let within = self.talk(|child| {
                // Half of what may be under way is answered before more is asked.
                if asked - answers <= ASKED_AHEAD / 2 {
                    let until = absent.len().min(answers + ASKED_AHEAD);
                    for id in &absent[asked..until] {
                        child.ask(&Ask::Read { id: *id, max })?;
                    }
                    asked = until;
                }
                answers += 1;
                answered(child, *id, max)
            })?;
            take(*id, within.map_err(|why| missing(*id, &why))?)?;
        }
        Ok(())
    }

    /// Reads a first-parent chain ahead, as far as there is room; what is not there is no error yet.
    pub fn chain_ahead(&self, tip: Oid, until: &[Oid], commits: usize) -> Result<(), GitError> {
        let known = self.held.borrow().objects.contains_key(&tip);
        if known { Ok(()) } else { self.ahead(Along::FirstParents, tip, until, commits) }
    }

    /// Reads all ancestors ahead, once.
    pub fn history_ahead(&self, tip: Oid, commits: usize) -> Result<(), GitError> {
        let known = std::mem::replace(&mut self.held.borrow_mut().history, true);
        if known { Ok(()) } else { self.ahead(Along::AllParents, tip, &[], commits) }
    }

    fn ahead(&self, along: Along, tip: Oid, until: &[Oid], commits: usize) -> Result<(), GitError> {
        let mut held = self.held.borrow_mut();
        if held.bytes > AHEAD_BYTES / 2 {
            *held = Held { history: along == Along::AllParents, ..Held::default() };
        }
        let mut left = AHEAD_BYTES - held.bytes;
        let commits = u32::try_from(commits).unwrap_or(u32::MAX);
        self.talk(|child| {
            child.ask(&Ask::Chain { along, tip, until: until.to_vec(), commits, bytes: left })?;
            loop {
                match child.answer(left)? {
                    Answer::Object { id, kind, bytes } => {
                        honest(id, kind, &bytes)?;
                        let cost = bytes.len() as u64 + OBJECT_OVERHEAD;
                        left = left.checked_sub(cost).ok_or(ChildError::TooMuch)?;
                        held.bytes += cost;
                        held.objects.insert(id, (kind, Arc::from(bytes)));
                    }
                    Answer::End | Answer::Missing(_) => return Ok(()),
                    _ => return Err(ChildError::Unasked),
                }
            }
        })
    }

    /// The tree that merging gives, made by the child in memory; `None`: there are conflicts.
    pub fn merge(&self, ours: Oid, theirs: Oid, base: Oid) -> Result<Option<Oid>, GitError> {
        let merged = self.talk(|child| {
            child.ask(&Ask::Merge { ours, theirs, base })?;
            match child.answer(0)? {
                Answer::Merged(tree) => Ok(Ok(Some(tree))),
                Answer::Conflict => Ok(Ok(None)),
                Answer::Missing(why) => Ok(Err(why)),
                _ => Err(ChildError::Unasked),
            }
        })?;
        merged.map_err(|why| super::store("make a merge again")(git2::Error::from_str(&why)))
    }

    /// One conversation; a child that broke it off, or lied, is not asked again.
    fn talk<T>(&self, say: impl FnOnce(&mut Running) -> Result<T, ChildError>) -> Result<T, GitError> {
        let mut running = self.running.borrow_mut();
        let said = match &mut *running {
            Some(child) => say(child),
            none => self.start().and_then(|child| say(none.insert(child))),
        };
        if said.is_err() {
            running.take();
        }
        said.map_err(|source| GitError::Reader { source: Box::new(source) })
    }

    fn start(&self) -> Result<Running, ChildError> {
        let profile = Profile::to_read(&self.quarantine, self.children.user, &self.limits);
        self.children.start("read", &ReadOrder { profile }, self.limits.time_secs)
    }
}

/// The answer to one [`Ask::Read`]; `Err`: it is not there, and why.
fn answered(child: &mut Running, id: Oid, max: u64) -> Result<Result<Within, String>, ChildError> {
    match child.answer(max)? {
        Answer::Object { id: said, kind, bytes } if said == id => {
            honest(id, kind, &bytes)?;
            if bytes.len() as u64 > max {
                return Err(ChildError::TooMuch);
            }
            Ok(Ok(Within::Whole(Object { kind, bytes })))
        }
        Answer::Larger { size } if size > max => Ok(Ok(Within::Larger(size))),
        Answer::Missing(why) => Ok(Err(why)),
        _ => Err(ChildError::Unasked),
    }
}

fn honest(id: Oid, kind: ObjectType, bytes: &[u8]) -> Result<(), ChildError> {
    match Oid::hash_object(kind, bytes) {
        Ok(hash) if hash == id => Ok(()),
        // An error: libgit2 saw a collision being attempted.
        _ => Err(ChildError::Lied { id: id.to_string() }),
    }
}

fn missing(id: Oid, why: &str) -> GitError {
    GitError::Object { id: id.to_string(), source: git2::Error::from_str(why) }
}
