//! What the agent and its children say to each other: frames of a length (4 bytes, big endian) and that many bytes.
//!
//! Both ends of a pipe use it, and each takes the other for a liar: lengths are bounded before anything is read, every
//! byte has one meaning, nothing may be left over. PURE. Never: a decision about what an object says.

use git2::{ObjectType, Oid};

/// What the agent wants of the child that reads the quarantine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    /// One object of at most `max` bytes. Answered by [`Answer::Object`], [`Answer::Larger`] or [`Answer::Missing`].
    Read { id: Oid, max: u64 },
    /// What comes before `tip` down to `until` (with it), at most `commits`, as far as `bytes` last. Objects, newest first,
    /// then [`Answer::End`].
    Chain { along: Along, tip: Oid, until: Vec<Oid>, commits: u32, bytes: u64 },
    /// The tree that merging gives, in memory. [`Answer::Merged`], [`Answer::Conflict`] or [`Answer::Missing`].
    Merge { ours: Oid, theirs: Oid, base: Oid },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Along {
    /// First parents, with the trees and trust files in which a commit differs from the one before it.
    FirstParents,
    /// All parents, commits only.
    AllParents,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The sandbox is closed; the ABI of the kernel's Landlock, 0 where there is none.
    Ready {
        landlock: u8,
    },
    Object {
        id: Oid,
        kind: ObjectType,
        bytes: Vec<u8>,
    },
    /// Its size in bytes.
    Larger {
        size: u64,
    },
    /// Not there, or not readable: why.
    Missing(String),
    End,
    Merged(Oid),
    Conflict,
    /// What the branch is at this remote; its objects are in the quarantine.
    Tip(Oid),
    /// The remote went over a limit.
    Over(String),
    Failed(String),
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {len} bytes, where at most {max} belong")]
    TooLong { len: u64, max: u64 },
    #[error("a frame that means nothing")]
    Meaningless,
}

/// A frame's length and everything in it but the bytes of an object.
pub(super) const HEAD: u64 = 64;
/// A sentence from a child; more is cut.
pub(super) const TEXT_MAX: usize = 4096;

/// The length that a frame says it has.
pub(super) fn length(head: [u8; 4], max: u64) -> Result<usize, WireError> {
    let len = u32::from_be_bytes(head);
    if u64::from(len) > max {
        return Err(WireError::TooLong { len: len.into(), max });
    }
    Ok(len as usize)
}

/// Length and bytes, ready to be written.
pub(super) fn frame(bytes: &[u8]) -> Result<Vec<u8>, WireError> {
    let too_long = WireError::TooLong { len: bytes.len() as u64, max: u32::MAX.into() };
    let len = u32::try_from(bytes.len()).map_err(|_| too_long)?;
    Ok([&len.to_be_bytes(), bytes].concat())
}

impl Ask {
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Read { id, max } => [b"r", id.as_bytes(), &max.to_be_bytes()].concat(),
            Self::Chain { along, tip, until, commits, bytes } => {
                let until: Vec<u8> = until.iter().flat_map(|id| id.as_bytes().to_vec()).collect();
                let mark = match along {
                    Along::FirstParents => b"c",
                    Along::AllParents => b"a",
                };
                [mark, tip.as_bytes(), &commits.to_be_bytes(), &bytes.to_be_bytes(), &until].concat()
            }
            Self::Merge { ours, theirs, base } => [b"m", ours.as_bytes(), theirs.as_bytes(), base.as_bytes()].concat(),
        }
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut rest = Rest(bytes);
        let ask = match rest.byte()? {
            b'r' => Self::Read { id: rest.id()?, max: rest.number()? },
            mark @ (b'c' | b'a') => {
                let along = if mark == b'c' { Along::FirstParents } else { Along::AllParents };
                let (tip, commits, bytes) = (rest.id()?, u32::from_be_bytes(rest.array()?), rest.number()?);
                let mut until = Vec::new();
                while !rest.0.is_empty() {
                    until.push(rest.id()?);
                }
                Self::Chain { along, tip, until, commits, bytes }
            }
            b'm' => Self::Merge { ours: rest.id()?, theirs: rest.id()?, base: rest.id()? },
            _ => return Err(WireError::Meaningless),
        };
        rest.over(ask)
    }
}

impl Answer {
    pub fn bytes(&self) -> Vec<u8> {
        let text = |mark: &[u8], text: &str| [mark, &text.as_bytes()[..text.len().min(TEXT_MAX)]].concat();
        match self {
            Self::Ready { landlock } => vec![b'R', *landlock],
            Self::Object { id, kind, bytes } => [b"o", &[mark(*kind)][..], id.as_bytes(), bytes].concat(),
            Self::Larger { size } => [b"l", &size.to_be_bytes()[..]].concat(),
            Self::Missing(why) => text(b"n", why),
            Self::End => b".".to_vec(),
            Self::Merged(tree) => [b"t", tree.as_bytes()].concat(),
            Self::Conflict => b"x".to_vec(),
            Self::Tip(id) => [b"T", id.as_bytes()].concat(),
            Self::Over(why) => text(b"L", why),
            Self::Failed(why) => text(b"F", why),
        }
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut rest = Rest(bytes);
        let answer = match rest.byte()? {
            b'R' => Self::Ready { landlock: rest.byte()? },
            b'o' => {
                let kind = kind(rest.byte()?)?;
                Self::Object { id: rest.id()?, kind, bytes: rest.all().to_vec() }
            }
            b'l' => Self::Larger { size: rest.number()? },
            b'n' => Self::Missing(rest.text()),
            b'.' => Self::End,
            b't' => Self::Merged(rest.id()?),
            b'x' => Self::Conflict,
            b'T' => Self::Tip(rest.id()?),
            b'L' => Self::Over(rest.text()),
            b'F' => Self::Failed(rest.text()),
            _ => return Err(WireError::Meaningless),
        };
        rest.over(answer)
    }
}

fn mark(kind: ObjectType) -> u8 {
    match kind {
        ObjectType::Commit => b'c',
        ObjectType::Tree => b't',
        ObjectType::Blob => b'b',
        ObjectType::Tag => b'g',
        ObjectType::Any => b'?',
    }
}

fn kind(mark: u8) -> Result<ObjectType, WireError> {
    match mark {
        b'c' => Ok(ObjectType::Commit),
        b't' => Ok(ObjectType::Tree),
        b'b' => Ok(ObjectType::Blob),
        b'g' => Ok(ObjectType::Tag),
        _ => Err(WireError::Meaningless),
    }
}

/// What of a frame is not read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(WireError::Meaningless)?;
        self.0 = rest;
        Ok(*first)
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        self.array().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    fn id(&mut self) -> Result<Oid, WireError> {
        let id: [u8; 20] = self.array()?;
        Oid::from_bytes(&id).map_err(|_| WireError::Meaningless)
    }

    fn all(&mut self) -> &[u8] {
        std::mem::take(&mut self.0)
    }

    /// Foreign words, for people: whatever steers a terminal is spelled out.
    fn text(&mut self) -> String {
        let bytes = self.all();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_MAX)]);
        text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
    }

    fn over<T>(&self, meaning: T) -> Result<T, WireError> {
        if self.0.is_empty() { Ok(meaning) } else { Err(WireError::Meaningless) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> Oid {
        Oid::from_bytes(&[byte; 20]).unwrap()
    }

    #[test]
    fn what_is_said_is_understood_and_nothing_shorter_or_longer_is() {
        let asks = [
            Ask::Read { id: id(1), max: 1 << 40 },
            Ask::Chain { along: Along::AllParents, tip: id(1), until: vec![], commits: 7, bytes: 8 },
            Ask::Chain {
                along: Along::FirstParents,
                tip: id(1),
                until: vec![id(2), id(3)],
                commits: u32::MAX,
                bytes: 0,
            },
            Ask::Merge { ours: id(1), theirs: id(2), base: id(3) },
        ];
        for ask in asks {
            let bytes = ask.bytes();
            assert_eq!(Ask::parse(&bytes), Ok(ask.clone()));
            for cut in 0..bytes.len() {
                assert_ne!(Ask::parse(&bytes[..cut]), Ok(ask.clone()));
            }
            assert_ne!(Ask::parse(&[&bytes[..], b"x"].concat()), Ok(ask));
        }
        let answers = [
            Answer::Ready { landlock: 7 },
            Answer::Object { id: id(1), kind: ObjectType::Tree, bytes: b"abc".to_vec() },
            Answer::Larger { size: 9 },
            Answer::Missing("gone".into()),
            Answer::End,
            Answer::Merged(id(4)),
            Answer::Conflict,
            Answer::Tip(id(5)),
            Answer::Over("much".into()),
            Answer::Failed("no".into()),
        ];
        for answer in answers {
            let bytes = answer.bytes();
            assert_eq!(Answer::parse(&bytes), Ok(answer.clone()));
            for cut in 0..bytes.len() {
                assert_ne!(Answer::parse(&bytes[..cut]), Ok(answer.clone()));
            }
        }
        for bytes in [&b""[..], b"?", b"o?", b"RR7", b"..", b"o?aaaaaaaaaaaaaaaaaaaa", b"T123"] {
            assert_eq!(Answer::parse(bytes), Err(WireError::Meaningless), "{bytes:?}");
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let framed = frame(b"abc").unwrap();
        let head = *framed.first_chunk().unwrap();
        assert_eq!(length(head, 3), Ok(3));
        assert_eq!(length(head, 2), Err(WireError::TooLong { len: 3, max: 2 }));
        assert_eq!(length([0xff; 4], 1 << 20), Err(WireError::TooLong { len: u32::MAX.into(), max: 1 << 20 }));
    }

    #[test]
    fn words_of_a_child_steer_nobodys_terminal() {
        let said = Answer::parse(b"F\x1b[2Jgone\n\xff").unwrap();
        assert_eq!(said, Answer::Failed("\\u{1b}[2Jgone\\n\u{fffd}".into()));
        assert!(
            matches!(Answer::parse(&[&b"F"[..], &[b'a'; 9999]].concat()), Ok(Answer::Failed(text)) if text.len() == TEXT_MAX)
        );
    }
}
