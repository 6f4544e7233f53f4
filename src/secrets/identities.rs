//! The private keys that a node (or an operator) opens secrets with: age key files and OpenSSH private keys.
//!
//! Touches: the identity files, read once. Never: a plugin, a key that others can read, a passphrase where nobody can type it.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use age::Decryptor;
use age::armor::ArmoredReader;
use age::secrecy::SecretString;
use zeroize::Zeroizing;

/// Private keys, in the order in which they are tried.
pub struct Identities(Vec<Key>);

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
        Self::load_asking(paths, &|_| None)
    }

    /// As [`load`](Self::load), for people: `passphrase` asks for that of a file which has one. `None`: nobody is there.
    pub fn load_asking<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        passphrase: &dyn Fn(&Path) -> Option<SecretString>,
    ) -> Result<Self, IdentityError> {
        let mut identities = Vec::new();
        for path in paths {
            identities.extend(read(path.as_ref(), passphrase)?);
        }
        Ok(Self(identities))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|identity| identity.as_ref() as &dyn age::Identity)
    }
}

type Key = Box<dyn age::Identity + Send + Sync>;

fn read(path: &Path, passphrase: &dyn Fn(&Path) -> Option<SecretString>) -> Result<Vec<Key>, IdentityError> {
    let unreadable = |source| IdentityError::Unreadable { path: path.to_owned(), source };
    // Not through a link, and not waiting for a pipe's other end: what is opened is what is looked at.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let custom = i32::try_from(flags.bits()).expect("open flags fit");
    let file = OpenOptions::new().read(true).custom_flags(custom).open(path).map_err(unreadable)?;
    is_private(path, &file)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize));
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    let not = |why: &str| IdentityError::NotAnIdentity { path: path.to_owned(), why: why.to_owned() };
    let ask = || passphrase(path).ok_or_else(|| not("it has a passphrase, and nobody is there to type it"));
    let wrong = || not("the passphrase is not the right one");
    // What `age --passphrase` made of a key file.
    if bytes.starts_with(b"age-encryption.org/v1\n") || bytes.starts_with(b"-----BEGIN AGE ") {
        let decryptor =
            Decryptor::new(ArmoredReader::new(bytes.as_slice())).map_err(|_| not("it is no intact age file"))?;
        if !decryptor.is_scrypt() {
            return Err(not("it is encrypted to another key"));
        }
        let key = age::scrypt::Identity::new(ask()?);
        let mut plain = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize));
        let mut reader = decryptor.decrypt(std::iter::once(&key as &dyn age::Identity)).map_err(|_| wrong())?;
        reader.read_to_end(&mut plain).map_err(|_| not("it is no intact age file"))?;
        return keys(&plain).map_err(not);
    }
    if bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        return match age::ssh::Identity::from_buffer(bytes.as_slice(), None) {
            Ok(key @ age::ssh::Identity::Unencrypted(_)) => Ok(vec![Box::new(key)]),
            Ok(age::ssh::Identity::Encrypted(key)) => {
                let key = key.decrypt(ask()?).map_err(|_| wrong())?;
                Ok(vec![Box::new(age::ssh::Identity::Unencrypted(key))])
            }
            Ok(age::ssh::Identity::Unsupported(_)) => Err(not("only ssh-ed25519 and ssh-rsa keys can decrypt")),
            Err(_) => Err(not("it is no OpenSSH private key that can be read")),
        };
    }
    keys(&bytes).map_err(not)
}

/// The lines of a key file as `age-keygen` writes it.
fn keys(text: &[u8]) -> Result<Vec<Key>, &'static str> {
    const OTHER: &str = "it holds something else than AGE-SECRET-KEY-1… lines and comments";
    let text = std::str::from_utf8(text).map_err(|_| OTHER)?;
    let mut keys: Vec<Key> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.parse::<age::x25519::Identity>() {
            Ok(key) => keys.push(Box::new(key)),
            Err(_) if line.starts_with("AGE-PLUGIN-") => return Err("plugins are not run"),
            Err(_) => return Err(OTHER),
        }
    }
    if keys.is_empty() { Err("there is no key in it") } else { Ok(keys) }
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
