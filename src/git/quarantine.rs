//! The child's end: the two tasks in which foreign bytes are met, `fetch` and `read`, over standard input and output.
//!
//! The first frame is the order, then the sandbox closes, and only then is anything foreign looked at. Never: a decision;
//! objects that are handed over here are hashed by the agent.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use git2::{ObjectType, Odb, Oid, Repository};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::reader::OBJECT_OVERHEAD;
use super::sandbox::{self, Profile, SandboxError};
use super::wire::{self, Along, Answer, Ask, WireError};
use super::{merge, objects, transport, tree};
use crate::disk::{self, DiskError};
use crate::reason::chain;
use crate::settings::{Limits, Remote};

const ORDER_MAX: u64 = 1 << 20;
const ASK_MAX: u64 = 1 << 16;
/// A tree deeper than any that is loaded is not read ahead.
const AHEAD_DEPTH: usize = 32;

/// Nothing of gitrepository-layout(5) that we use.
const STEERING: [&str; 7] = ["shallow", "info", "hooks", "objects/info", "commondir", "config.worktree", "worktrees"];
const CONFIG: &[u8] = b"[core]\n\trepositoryformatversion = 0\n\tbare = true\n";

/// One remote to fetch from.
#[derive(Serialize, Deserialize)]
pub(super) struct FetchOrder {
    pub profile: Profile,
    pub remote: Remote,
    /// Its place among the remotes: what it showed last is kept under it.
    pub index: usize,
    pub reference: String,
    pub limits: Limits,
    /// A tip that need not be sent again.
    pub known: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ReadOrder {
    pub profile: Profile,
}

/// Why a child ends before its work is done. It is told to the agent, or nobody listens any more.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    #[error("the agent has gone")]
    Pipe(#[from] io::Error),
    #[error("what the agent asks is not understood")]
    Garbage(#[from] WireError),
    #[error("this command is started by the agent only")]
    Order(#[from] serde_json::Error),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("cannot open {path}", path = .path.display())]
    Open { path: PathBuf, source: git2::Error },
}

/// `converger quarantine fetch`: one remote, into the quarantine.
pub fn fetch(input: impl Read, output: impl Write) -> Result<(), QuarantineError> {
    let mut talk = Talk { input, output };
    let order: FetchOrder = talk.order()?;
    talk.enter(&order.profile)?;
    let answer = match fetched(&order) {
        Ok(tip) => Answer::Tip(tip),
        Err(transport::RemoteFault::Limit(why)) => Answer::Over(why),
        Err(transport::RemoteFault::Failed(why)) => Answer::Failed(why),
    };
    talk.say(&answer)
}

fn fetched(order: &FetchOrder) -> Result<Oid, transport::RemoteFault> {
    let failed = |error: git2::Error| transport::RemoteFault::Failed(error.message().to_owned());
    transport::prepare();
    transport::trust_owners();
    let path = &order.profile.quarantine;
    let unusable = |error: DiskError| transport::RemoteFault::Failed(chain(&error));
    plain(path).map_err(unusable)?;
    let quarantine = Repository::open_bare(path).or_else(|_| {
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        Repository::init_opts(path, &options)
    });
    let quarantine = quarantine.map_err(failed)?;
    forget_broken(&quarantine).map_err(unusable)?;
    let seen = format!("refs/quarantine/{}", order.index);
    let known = |tip: Oid| {
        order.known.as_ref().is_some_and(|known| *known == tip.to_string())
            || quarantine.refname_to_id(&seen).is_ok_and(|last| last == tip)
    };
    let tip = transport::fetch(&quarantine, &order.remote, &order.reference, &order.limits, path.clone(), &known)?;
    if !known(tip) && quarantine.find_commit(tip).is_ok() {
        // What is known is offered at the next fetch instead of being sent again.
        quarantine.reference(&seen, tip, true, "").map_err(failed)?;
    }
    Ok(tip)
}

/// Removes references that a power cut left empty: every fetch would fail over one.
fn forget_broken(quarantine: &Repository) -> Result<(), DiskError> {
    let folder = quarantine.path().join("refs/quarantine");
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = format!("refs/quarantine/{}", entry.file_name().to_string_lossy());
        if quarantine.refname_to_id(&name).is_err() {
            disk::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Takes away what an earlier child, taken over, could have left there to hide history or to steer this one.
fn plain(quarantine: &Path) -> Result<(), DiskError> {
    for name in STEERING {
        disk::remove(&quarantine.join(name))?;
    }
    let config = quarantine.join("config");
    let text = disk::read_bounded(&config, CONFIG.len() as u64).ok().flatten();
    if text.is_none_or(|text| text != CONFIG) {
        disk::remove(&config)?;
        disk::write_atomic(&config, CONFIG, 0o600)?;
    }
    Ok(())
}

/// `converger quarantine read`: objects by id until nobody asks any more.
pub fn read(input: impl Read, output: impl Write) -> Result<(), QuarantineError> {
    let mut talk = Talk { input, output };
    let order: ReadOrder = talk.order()?;
    talk.enter(&order.profile)?;
    transport::prepare();
    transport::trust_owners();
    let path = order.profile.quarantine;
    let opened = Repository::open_bare(&path).and_then(|repository| repository.odb().map(drop).map(|()| repository));
    let repository = opened.map_err(|source| QuarantineError::Open { path: path.clone(), source })?;
    let odb = repository.odb().map_err(|source| QuarantineError::Open { path, source })?;
    while let Some(ask) = talk.asked()? {
        match ask {
            Ask::Read { id, max } => talk.say(&object(&odb, id, max))?,
            Ask::Chain { along, tip, until, commits, bytes } => {
                let mut ahead = Ahead { odb: &odb, talk: &mut talk, left: bytes, sent: HashSet::new() };
                match along {
                    Along::FirstParents => ahead.chain(tip, &until, commits)?,
                    Along::AllParents => ahead.history(tip, &until, commits)?,
                }
                talk.say(&Answer::End)?;
            }
            Ask::Merge { ours, theirs, base } => {
                talk.say(&match merge::recompute(&repository, ours, theirs, base) {
                    Ok(Some(tree)) => Answer::Merged(tree),
                    Ok(None) => Answer::Conflict,
                    Err(error) => Answer::Missing(error.message().to_owned()),
                })?
            }
        }
    }
    Ok(())
}

fn object(odb: &Odb<'_>, id: Oid, max: u64) -> Answer {
    // The size first: what is too large is not unpacked.
    let answer = odb.read_header(id).and_then(|(size, _)| match size as u64 {
        size if size > max => Ok(Answer::Larger { size }),
        _ => odb.read(id).map(|object| Answer::Object { id, kind: object.kind(), bytes: object.data().to_vec() }),
    });
    answer.unwrap_or_else(|error| Answer::Missing(error.message().to_owned()))
}

/// Sends what verifying a chain will ask for, as far as there is room: a convenience, so what cannot be read is left out.
struct Ahead<'a, I, O> {
    odb: &'a Odb<'a>,
    talk: &'a mut Talk<I, O>,
    left: u64,
    sent: HashSet<Oid>,
}

impl<I: Read, O: Write> Ahead<'_, I, O> {
    fn chain(&mut self, tip: Oid, until: &[Oid], commits: u32) -> Result<(), QuarantineError> {
        let mut next = Some(tip);
        for _ in 0..commits {
            let Some(id) = next else { break };
            let Some(raw) = self.send(id, ObjectType::Commit)? else { break };
            let (Ok(root), Ok(parent)) = (objects::tree_id(&raw), objects::first_parent(&raw)) else { break };
            let last = until.contains(&id);
            next = parent.filter(|_| !last);
            let before = next.and_then(|parent| self.odb.read(parent).ok()?.data().to_vec().into());
            let before = before.and_then(|raw: Vec<u8>| objects::tree_id(&raw).ok());
            self.trees(root, before, 0)?;
        }
        Ok(())
    }

    fn history(&mut self, tip: Oid, until: &[Oid], commits: u32) -> Result<(), QuarantineError> {
        let mut open = VecDeque::from([tip]);
        let mut seen = HashSet::from([tip]);
        while let Some(id) = open.pop_front() {
            let Some(raw) = self.send(id, ObjectType::Commit)? else { continue };
            for parent in objects::parents(&raw).unwrap_or_default() {
                if !until.contains(&id) && seen.len() < commits as usize && seen.insert(parent) {
                    open.push_back(parent);
                }
            }
        }
        Ok(())
    }

    /// The folders that `before` has not, and the files of `trust/`; of a first commit the root and those.
    fn trees(&mut self, id: Oid, before: Option<Oid>, depth: usize) -> Result<(), QuarantineError> {
        if before == Some(id) || depth > AHEAD_DEPTH || self.sent.contains(&id) {
            return Ok(());
        }
        let old = before.and_then(|before| self.entries(before)).unwrap_or_default();
        let Some(raw) = self.send(id, ObjectType::Tree)? else { return Ok(()) };
        let first = before.is_none() && depth == 0;
        for entry in tree::parse(&raw).unwrap_or_default() {
            let known = old.iter().find(|old| old.name == entry.name).map(|old| old.id);
            let trusts = depth == 0 && (entry.name == b"trust" || entry.name == b"fleet.toml");
            if known == Some(entry.id) {
                continue;
            }
            match (entry.is_folder(), trusts) {
                (true, true) => self.trust(entry.id)?,
                (true, false) if !first => self.trees(entry.id, known, depth + 1)?,
                (false, true) => drop(self.send(entry.id, ObjectType::Blob)?),
                _ => {}
            }
        }
        Ok(())
    }

    fn trust(&mut self, folder: Oid) -> Result<(), QuarantineError> {
        let Some(raw) = self.send(folder, ObjectType::Tree)? else { return Ok(()) };
        for entry in tree::parse(&raw).unwrap_or_default() {
            if entry.is_file() {
                self.send(entry.id, ObjectType::Blob)?;
            }
        }
        Ok(())
    }

    fn entries(&self, tree: Oid) -> Option<Vec<tree::Entry>> {
        tree::parse(self.odb.read(tree).ok()?.data())
    }

    /// Its bytes, sent unless there is no more room; `None`: there is none, or it is something else.
    fn send(&mut self, id: Oid, kind: ObjectType) -> Result<Option<Vec<u8>>, QuarantineError> {
        let Ok((size, found)) = self.odb.read_header(id) else { return Ok(None) };
        let cost = size as u64 + OBJECT_OVERHEAD;
        if found != kind || cost > self.left {
            return Ok(None);
        }
        let Ok(object) = self.odb.read(id) else { return Ok(None) };
        let bytes = object.data().to_vec();
        if self.sent.insert(id) {
            self.left -= cost;
            self.talk.say_later(&Answer::Object { id, kind, bytes: bytes.clone() })?;
        }
        Ok(Some(bytes))
    }
}

/// Frames in, frames out.
pub(crate) struct Talk<I, O> {
    pub input: I,
    pub output: O,
}

impl<I: Read, O: Write> Talk<I, O> {
    pub fn order<T: DeserializeOwned>(&mut self) -> Result<T, QuarantineError> {
        let bytes = self.frame(ORDER_MAX)?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Closes the sandbox around this process, and says so.
    pub fn enter(&mut self, profile: &Profile) -> Result<(), QuarantineError> {
        match sandbox::enter(profile) {
            Ok(landlock) => self.say(&Answer::Ready { landlock }),
            Err(error) => {
                self.say(&Answer::Failed(chain(&error)))?;
                Err(error.into())
            }
        }
    }

    fn asked(&mut self) -> Result<Option<Ask>, QuarantineError> {
        self.frame(ASK_MAX)?.map(|bytes| Ok(Ask::parse(&bytes)?)).transpose()
    }

    /// `None`: nobody asks any more.
    fn frame(&mut self, max: u64) -> Result<Option<Vec<u8>>, QuarantineError> {
        let mut head = [0; 4];
        match self.input.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let mut bytes = vec![0; wire::length(head, max)?];
        self.input.read_exact(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn say(&mut self, answer: &Answer) -> Result<(), QuarantineError> {
        self.say_later(answer)?;
        Ok(self.output.flush()?)
    }

    fn say_later(&mut self, answer: &Answer) -> Result<(), QuarantineError> {
        Ok(self.output.write_all(&wire::frame(&answer.bytes())?)?)
    }

    /// Bytes that mean something to other tasks than those of git.
    pub fn tell(&mut self, bytes: &[u8]) -> Result<(), QuarantineError> {
        self.output.write_all(&wire::frame(bytes)?)?;
        Ok(self.output.flush()?)
    }
}
