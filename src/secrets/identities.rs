//! The private keys that a node (or an operator) opens secrets with: age key files and OpenSSH private keys.
//!
//! Touches: the identity files, read once. Never: a plugin, a passphrase, a key that others can read.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Private keys, in the order in which they are tried.
pub struct Identities(Vec<Box<dyn age::Identity + Send + Sync>>);

/// The first two are the reason `identity-permissions`.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read the identity {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the identity {path} {what}: keep it a regular file of the agent's own user with mode 0600")]
    Exposed { path: PathBuf, what: String },
    #[error("{path} is no identity: {why}")]
    NotAnIdentity { path: PathBuf, why: String },
}

const FILE_BYTES_MAX: u64 = 64 << 10;

impl Identities {
    /// Errors: the first file that cannot be used; there is no falling back to the others.
    pub fn load<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self, IdentityError> {
        let mut identities = Vec::new();
        for path in paths {
            identities.extend(read(path.as_ref())?);
        }
        Ok(Self(identities))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|identity| identity.as_ref() as &dyn age::Identity)
    }
}

fn read(path: &Path) -> Result<Vec<Box<dyn age::Identity + Send + Sync>>, IdentityError> {
    let unreadable = |source| IdentityError::Unreadable { path: path.to_owned(), source };
    // Not through a link, and not waiting for a pipe's other end: what is opened is what is looked at.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let custom = i32::try_from(flags.bits()).expect("open flags fit");
    let file = OpenOptions::new().read(true).custom_flags(custom).open(path).map_err(unreadable)?;
    is_private(path, &file)?;
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    let not = |why: &str| IdentityError::NotAnIdentity { path: path.to_owned(), why: why.to_owned() };
    if text.contains("-----BEGIN ") {
        return match age::ssh::Identity::from_buffer(text.as_bytes(), None) {
            Ok(key @ age::ssh::Identity::Unencrypted(_)) => Ok(vec![Box::new(key)]),
            Ok(age::ssh::Identity::Encrypted(_)) => {
                Err(not("the key has a passphrase, and nobody is there to type it"))
            }
            Ok(age::ssh::Identity::Unsupported(_)) => Err(not("only ssh-ed25519 and ssh-rsa keys can decrypt")),
            Err(_) => Err(not("it is no OpenSSH private key that can be read")),
        };
    }
    let mut keys: Vec<Box<dyn age::Identity + Send + Sync>> = Vec::new();
    for line in text.as_bytes().lines() {
        let line = Zeroizing::new(line.map_err(unreadable)?);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.parse::<age::x25519::Identity>() {
            Ok(key) => keys.push(Box::new(key)),
            Err(_) if line.starts_with("AGE-PLUGIN-") => return Err(not("plugins are not run")),
            Err(_) => return Err(not("it holds something else than AGE-SECRET-KEY-1… lines and comments")),
        }
    }
    if keys.is_empty() { Err(not("there is no key in it")) } else { Ok(keys) }
}

fn is_private(path: &Path, file: &File) -> Result<(), IdentityError> {
    let meta = file.metadata().map_err(|source| IdentityError::Unreadable { path: path.to_owned(), source })?;
    let exposed = |what: String| Err(IdentityError::Exposed { path: path.to_owned(), what });
    if !meta.is_file() {
        exposed("is no regular file".to_owned())
    } else if meta.uid() != rustix::process::geteuid().as_raw() {
        exposed(format!("belongs to uid {}", meta.uid()))
    } else if meta.mode() & 0o077 != 0 {
        exposed(format!("has mode {:04o}", meta.mode() & 0o7777))
    } else {
        Ok(())
    }
}
