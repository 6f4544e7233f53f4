//! Git objects and ssh-keygen's signatures made in this process: a commit costs no program.
//!
//! Never: a judgement; it writes what it is told, also what git would not.

use std::path::Path;

use git2::build::TreeUpdateBuilder;
use git2::{FileMode, ObjectType, Oid, Repository};
use ring::digest::{SHA256, SHA512, digest};
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::formats::{ALPHABET, encode};

pub struct Key {
    /// `ssh-ed25519 AAAA…`
    pub line: String,
    pub fingerprint: String,
    blob: Vec<u8>,
    pair: Ed25519KeyPair,
}

impl Key {
    fn new(seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let blob = strings(&[b"ssh-ed25519", pair.public_key().as_ref()]);
        let sum = encode(digest(&SHA256, &blob).as_ref());
        let fingerprint = format!("SHA256:{}", sum.trim_end_matches('='));
        Self { line: format!("ssh-ed25519 {}", encode(&blob)), fingerprint, blob, pair }
    }

    /// The bytes of an SSHSIG.
    fn sign(&self, payload: &[u8], namespace: &str, hash: &str) -> Vec<u8> {
        let sum = digest(if hash == "sha256" { &SHA256 } else { &SHA512 }, payload);
        let parts = [namespace.as_bytes(), b"", hash.as_bytes()];
        let signed = [b"SSHSIG", &strings(&parts)[..], &strings(&[sum.as_ref()])].concat();
        let signature = strings(&[b"ssh-ed25519", self.pair.sign(&signed).as_ref()]);
        [&b"SSHSIG\0\0\0\x01"[..], &strings(&[&self.blob]), &strings(&parts), &strings(&[&signature])].concat()
    }
}

fn strings(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u32).to_be_bytes()[..], part].concat()).collect()
}

/// What stands in a commit's gpgsig header; the number is a key.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Signing {
    Unsigned,
    By(usize),
    /// With SHA-256 in place of SHA-512: as good.
    Sha256(usize),
    /// Made for files.
    Namespace(usize),
    /// Of something else.
    Content(usize),
    /// The right signature in lines of another length.
    Rewrapped(usize),
    CarriageReturns(usize),
    /// A space after the last line.
    Trailing(usize),
    /// Other bits where base64 ends and nobody looks.
    Bits(usize),
    /// Bytes after the signature.
    Longer(usize),
    /// S + L in place of S: the same point for a lenient verifier (RFC 8032, 8.4).
    Malleable(usize),
    /// As a forge signs its merges.
    OpenPgp,
    /// The right one, and one more header.
    Twice(usize),
}

/// The order of the curve's base point, from its lowest byte.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

pub struct Writer {
    pub repository: Repository,
    pub keys: Vec<Key>,
}

pub struct Draft<'a> {
    pub tree: Oid,
    pub parents: &'a [Oid],
    pub seconds: u32,
    pub message: &'a str,
}

impl Writer {
    /// Opens the bare repository there; so many keys, the same ones each time.
    pub fn over(path: &Path, keys: u8) -> Self {
        let repository = Repository::open_bare(path).unwrap();
        Self { repository, keys: (1..=keys).map(Key::new).collect() }
    }

    pub fn write(&self, kind: ObjectType, bytes: &[u8]) -> Oid {
        self.repository.odb().unwrap().write(kind, bytes).unwrap()
    }

    pub fn blob(&self, bytes: &[u8]) -> Oid {
        self.write(ObjectType::Blob, bytes)
    }

    pub fn commit(&self, draft: &Draft, signing: Signing) -> Oid {
        let payload = self.payload(draft);
        self.write(ObjectType::Commit, self.signed(&payload, signing).as_bytes())
    }

    pub fn payload(&self, draft: &Draft) -> String {
        let parents: String = draft.parents.iter().map(|parent| format!("parent {parent}\n")).collect();
        let who = format!("A U Thor <author@example.org> {} +0000", draft.seconds);
        format!("tree {}\n{parents}author {who}\ncommitter {who}\n\n{}\n", draft.tree, draft.message)
    }

    /// The payload with its signature in it.
    pub fn signed(&self, payload: &str, signing: Signing) -> String {
        let sign = |key: usize, namespace, hash| self.keys[key].sign(payload.as_bytes(), namespace, hash);
        let (mut blob, width, end) = match signing {
            Signing::Unsigned => return payload.to_owned(),
            Signing::OpenPgp => {
                let armor = "-----BEGIN PGP SIGNATURE-----\n\niQEzBAABCAAdFiEE\n=AAAA\n-----END PGP SIGNATURE-----";
                return with_header(payload, armor);
            }
            Signing::Twice(key) => {
                let signed = self.signed(payload, Signing::By(key));
                return with_header(&signed, "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----");
            }
            Signing::By(key) | Signing::Bits(key) | Signing::Longer(key) | Signing::Malleable(key) => {
                (sign(key, "git", "sha512"), 70, "\n")
            }
            Signing::Sha256(key) => (sign(key, "git", "sha256"), 70, "\n"),
            Signing::Namespace(key) => (sign(key, "file", "sha512"), 70, "\n"),
            Signing::Content(key) => (self.keys[key].sign(b"something else", "git", "sha512"), 70, "\n"),
            Signing::Rewrapped(key) => (sign(key, "git", "sha512"), 64, "\n"),
            Signing::CarriageReturns(key) => (sign(key, "git", "sha512"), 70, "\r\n"),
            Signing::Trailing(key) => (sign(key, "git", "sha512"), 70, " \n"),
        };
        match signing {
            Signing::Longer(_) => blob.extend([0; 3]),
            Signing::Malleable(_) => {
                let start = blob.len() - 32;
                let sums = blob[start..].iter_mut().zip(ORDER);
                sums.fold(0, |carry, (byte, order)| {
                    let sum = u16::from(*byte) + u16::from(order) + carry;
                    *byte = sum as u8;
                    sum >> 8
                });
            }
            _ => {}
        }
        let mut base64 = encode(&blob);
        if let (Signing::Bits(_), Some(text)) = (signing, base64.strip_suffix('=')) {
            // One `=`: the last two bits stand for nothing.
            let last = ALPHABET.iter().position(|c| text.ends_with(char::from(*c))).unwrap_or_default();
            base64 = format!("{}{}=", &text[..text.len() - 1], char::from(ALPHABET[last | 1]));
        }
        let lines: Vec<&str> = base64.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let (last, newline) = if end == " \n" { (" ", "\n") } else { ("", end) };
        let lines = lines.join(newline);
        let armor = format!("-----BEGIN SSH SIGNATURE-----{newline}{lines}{newline}-----END SSH SIGNATURE-----{last}");
        with_header(payload, &armor)
    }

    /// Changes paths of a tree; `None` removes one. A tree that cannot be changed stays.
    pub fn edit(&self, tree: Oid, changes: &[(&str, Option<(FileMode, Oid)>)]) -> Oid {
        let mut builder = TreeUpdateBuilder::new();
        for (path, what) in changes {
            match what {
                Some((mode, id)) => builder.upsert(*path, *id, *mode),
                None => builder.remove(*path),
            };
        }
        let base = self.repository.find_tree(tree);
        base.and_then(|base| builder.create_updated(&self.repository, &base)).unwrap_or(tree)
    }

    pub fn put(&self, tree: Oid, path: &str, text: &str) -> Oid {
        self.edit(tree, &[(path, Some((FileMode::Blob, self.blob(text.as_bytes()))))])
    }

    pub fn read(&self, tree: Oid, path: &str) -> Option<String> {
        let entry = self.repository.find_tree(tree).ok()?.get_path(Path::new(path)).ok()?;
        let blob = self.repository.find_blob(entry.id()).ok()?;
        String::from_utf8(blob.content().to_vec()).ok()
    }

    /// What stands at a path of the tree.
    pub fn entry(&self, tree: Oid, path: &str) -> Option<Oid> {
        Some(self.repository.find_tree(tree).ok()?.get_path(Path::new(path)).ok()?.id())
    }

    /// As a forge would merge; `None`: a conflict, or what has no one base.
    pub fn merge(&self, first: Oid, second: Oid) -> Option<Oid> {
        let find = |id| self.repository.find_commit(id);
        let mut index = self.repository.merge_commits(&find(first).ok()?, &find(second).ok()?, None).ok()?;
        index.write_tree_to(&self.repository).ok()
    }
}

/// A gpgsig header as the last one.
fn with_header(commit: &str, armor: &str) -> String {
    commit.replacen("\n\n", &format!("\ngpgsig {}\n\n", armor.replace('\n', "\n ")), 1)
}
