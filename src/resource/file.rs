//! `file`: a template, a static source or a secret, at a path, with an owner and a mode.
//!
//! PURE. Never: reads a disk.

use serde::{Deserialize, Serialize};

use super::{Content, Digest, Found};
use crate::name::HostPath;

/// How a file is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Always as the repository says.
    #[default]
    Enforce,
    /// A difference is reported and left alone.
    Audit,
    /// Written once, when it is missing; the service's own from then on.
    Seed,
}

/// A check of the candidate before it replaces anything. No shell: an argument list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Validate {
    /// `{}` stands for the candidate's path.
    pub run: Vec<String>,
    /// Empty: an unprivileged user of the agent's choice.
    pub user: String,
    pub ok_exit: Vec<i32>,
    /// Regular expressions over the output; one that matches refuses the candidate whatever the exit code.
    pub fail_on: Vec<String>,
    /// Lines that match are not looked at by `fail_on`.
    pub ignore: Vec<String>,
}

#[derive(Clone)]
pub struct FileSpec {
    pub path: HostPath,
    pub content: Content,
    pub owner: String,
    pub group: String,
    /// Permission bits, `0o644`.
    pub mode: u32,
    pub policy: Policy,
    pub validate: Option<Validate>,
}

impl FileSpec {
    pub fn inputs(&self) -> Digest {
        let meta = format!("{}\n{}:{}\n{:o}", self.path, self.owner, self.group, self.mode);
        Digest::of_parts([meta.as_bytes(), self.content.inputs().bytes().as_slice()])
    }
}

/// What stat says of a file, as cheap evidence that nobody touched it: the same numbers mean the same bytes, because
/// every write moves the change time (ctime), which no system call can set back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime_ns: i128,
    /// 0 if it had changed less than 2 s before it was looked at: another write could hide in the same tick of the
    /// clock, so such a stamp matches no later one and the file is hashed again.
    pub ctime_ns: i128,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What is at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileState {
    Absent,
    Regular(Regular),
    /// A directory, link, socket …: in words. Never followed, never replaced.
    Other(&'static str),
    /// We could not look: in words.
    Unreadable(String),
    /// The way there is nobody's but root's to decide, and is not root's: in words.
    Unsafe(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Regular {
    pub digest: Digest,
    pub mode: u32,
    /// By name where the name is known, else the number.
    pub owner: String,
    pub group: String,
    pub stamp: Stamp,
    /// The bytes, if the observer was asked for them (files whose difference will be shown).
    pub bytes: Option<Found>,
}

/// What becomes of the content that a file loses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Previous {
    /// A copy goes to the backups; the last ten stay.
    Kept,
    /// As that, but one stays: it is somebody else's, and a secret of ours is in it or comes after it.
    KeptOnce,
    /// No copy, and earlier ones go: a secret of ours is in it that this node needs no more.
    Gone,
}

/// How what is there differs from what must be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileChange {
    Create,
    Content,
    /// Same bytes, other owner or mode: `root:root 0644 -> root:kafka 0640`.
    Attributes {
        from: String,
        to: String,
    },
    /// It cannot be looked at: in words.
    Blocked(String),
    /// Something that is no regular file is in its place or on the way to it: in words.
    Unsafe(String),
}

impl FileSpec {
    /// `None`: as it must be. `owners`: whether this host can tell and set owners (not in a sandbox without privileges).
    /// A file whose secret cannot be opened has no bytes to compare: no change is found, `plan` says so elsewhere.
    pub fn diff(&self, state: &FileState, owners: bool) -> Option<FileChange> {
        let regular = match state {
            FileState::Absent => return Some(FileChange::Create),
            FileState::Other(what) => return Some(FileChange::Unsafe(format!("is a {what}"))),
            FileState::Unsafe(why) => return Some(FileChange::Unsafe(why.clone())),
            FileState::Unreadable(why) => return Some(FileChange::Blocked(why.clone())),
            FileState::Regular(regular) => regular,
        };
        if self.policy == Policy::Seed {
            return None;
        }
        let bytes = self.content.bytes()?;
        if Digest::of(bytes) != regular.digest {
            return Some(FileChange::Content);
        }
        let owner_differs = owners && (regular.owner != self.owner || regular.group != self.group);
        if owner_differs || regular.mode != self.mode {
            return Some(FileChange::Attributes {
                from: format!("{}:{} {:04o}", regular.owner, regular.group, regular.mode),
                to: format!("{}:{} {:04o}", self.owner, self.group, self.mode),
            });
        }
        None
    }
}
