//! Opens the secrets of one node, and makes new ones: age files, one secret each.
//!
//! Age does not say who encrypted: only files of the verified commit come here, and their digest is compared with
//! `secrets.toml` before a key is tried. PURE given the key. Never: a secret that is not granted to the node; never:
//! a value in an error, in Debug, in a log.

pub mod cover;
pub mod document;
pub mod fingerprint;
pub mod header;
pub mod identities;
pub mod order;
pub mod pem;
pub mod shape;
pub mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use age::armor::ArmoredReader;
use age::{DecryptError, Decryptor, Encryptor};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use self::header::Header;
use self::identities::Identities;
use crate::fleet::select::NodeSpec;
use crate::fleet::{Fleet, Secret as Entry};
use crate::name::{RoleName, SecretName};

/// A secret's value. It is wiped when it is dropped, and cannot be printed, compared, copied or serialized.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// For the disk, and for a template's rendering.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Why one secret cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secret {name}: {path} is not in the commit")]
    Missing { name: SecretName, path: String },
    #[error(
        "secret {name}: {path} is not the file that secrets.toml describes (its sha256 is {found}); find out who changed it, or run `converger secret encrypt {name}`"
    )]
    Digest { name: SecretName, path: String, found: String },
    #[error(
        "secret {name} cannot be opened by this node ({recipient}): run `converger secret rekey {name}` in the fleet repository; if that has nothing to do, the topology's recipient is not that of this node's key"
    )]
    NotARecipient { name: SecretName, recipient: String },
    #[error(
        "secret {name}: the file is no intact age file for recipients ({why}); run `converger secret encrypt {name}` in the fleet repository"
    )]
    Damaged { name: SecretName, why: String },
}

/// The secrets of one node as far as they could be opened.
pub struct Unsealed {
    /// `None`: nobody gave a key.
    opened: Option<BTreeMap<SecretName, Result<Secret, String>>>,
}

pub enum Opened<'a> {
    Value(&'a Secret),
    /// Why not, in words.
    Sealed(&'a str),
    /// Nobody gave a key: only placeholders are wanted.
    NoKey,
}

impl Unsealed {
    /// For CI and for plans: every secret is a placeholder.
    pub fn without_keys() -> Self {
        Self { opened: None }
    }

    pub fn get(&self, name: &SecretName) -> Opened<'_> {
        match self.opened.as_ref().map(|opened| opened.get(name)) {
            None => Opened::NoKey,
            Some(Some(Ok(secret))) => Opened::Value(secret),
            Some(Some(Err(reason))) => Opened::Sealed(reason),
            Some(None) => Opened::Sealed("the secret is not granted to this node"),
        }
    }

    /// The secrets that could be opened.
    pub fn opened(&self) -> impl Iterator<Item = (&SecretName, &Secret)> {
        self.opened.iter().flatten().filter_map(|(name, result)| Some((name, result.as_ref().ok()?)))
    }

    /// The secrets that could not be opened, and why.
    pub fn sealed(&self) -> impl Iterator<Item = (&SecretName, &str)> {
        self.opened.iter().flatten().filter_map(|(name, result)| Some((name, result.as_ref().err()?.as_str())))
    }
}

/// The secrets that `secrets.toml` lets this node read.
pub fn granted(spec: &NodeSpec<'_>) -> BTreeSet<SecretName> {
    let roles: BTreeSet<&RoleName> = spec.roles.iter().map(|instance| &instance.role.name).collect();
    let secrets = spec.fleet.environment.secrets.values();
    let granted = secrets.filter(|secret| secret.grant.selects(spec.node, &|role| roles.contains(role)));
    granted.map(|secret| secret.name.clone()).collect()
}

/// Opens every secret that is granted to the node; one that fails does not keep the others back.
pub fn unseal(spec: &NodeSpec<'_>, identities: &Identities) -> Unsealed {
    let environment = &spec.fleet.environment;
    let recipient = spec.node.recipient.as_deref().unwrap_or("no recipient in the topology");
    let entries = granted(spec).into_iter().filter_map(|name| environment.secrets.get(&name));
    let opened = entries.map(|entry| {
        let result = open(spec.fleet, entry, identities, recipient);
        (entry.name.clone(), result.map_err(|error| error.to_string()))
    });
    Unsealed { opened: Some(opened.collect()) }
}

/// Opens one secret. `recipient` is named in the error that says that it is not encrypted to it.
pub fn open(fleet: &Fleet, entry: &Entry, identities: &Identities, recipient: &str) -> Result<Secret, SecretError> {
    let name = || entry.name.clone();
    let path = entry.path.to_string();
    let Some(file) = fleet.tree.get(&path) else { return Err(SecretError::Missing { name: name(), path }) };
    let found = hex::encode(Sha256::digest(file));
    if found != entry.sha256.to_ascii_lowercase() {
        return Err(SecretError::Digest { name: name(), path, found });
    }
    decrypt(file, identities).map_err(|failure| match failure {
        Failure::NoKeyFits => SecretError::NotARecipient { name: name(), recipient: recipient.to_owned() },
        Failure::Damaged(why) => SecretError::Damaged { name: name(), why },
    })
}

enum Failure {
    NoKeyFits,
    Damaged(String),
}

impl From<DecryptError> for Failure {
    fn from(error: DecryptError) -> Self {
        match error {
            DecryptError::NoMatchingKeys => Self::NoKeyFits,
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// The whole plaintext or nothing: the library hands out what comes before a damaged part.
fn decrypt(file: &[u8], identities: &Identities) -> Result<Secret, Failure> {
    let damaged = |why: &str| Failure::Damaged(why.to_owned());
    // A hostile header is refused before any of its stanzas is worked on.
    let header = Header::read(file).map_err(damaged)?;
    if header.passphrase {
        return Err(damaged("it is encrypted with a passphrase"));
    }
    let mut binary = Vec::with_capacity(file.len());
    ArmoredReader::new(file).read_to_end(&mut binary).map_err(|_| damaged("its armor is broken"))?;
    let decryptor = Decryptor::new_buffered(binary.as_slice())?;
    // Reserved at once: a vector that grows leaves copies behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(binary.len()));
    let mut reader = decryptor.decrypt(identities.iter())?;
    reader.read_to_end(&mut plain).map_err(|_| damaged("its content does not authenticate"))?;
    Ok(Secret(plain))
}

#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    #[error("{0:?} is no age recipient and no ssh-ed25519 or ssh-rsa public key")]
    Recipient(String),
    #[error("cannot encrypt to nobody")]
    Nobody,
    #[error("no node would open the file: {0}")]
    TooLarge(&'static str),
    #[error("cannot encrypt")]
    Age(#[source] age::EncryptError),
    #[error("cannot encrypt")]
    Io(#[source] std::io::Error),
}

/// A binary age file, for anybody with the key of one of the recipients.
pub fn encrypt<'a>(plaintext: &[u8], recipients: impl IntoIterator<Item = &'a str>) -> Result<Vec<u8>, EncryptError> {
    let recipients: BTreeSet<&str> = recipients.into_iter().collect();
    let keys = recipients.into_iter().map(recipient).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(EncryptError::Nobody);
    }
    let encryptor = Encryptor::with_recipients(keys.iter().map(|key| key.as_ref() as &dyn age::Recipient))
        .map_err(EncryptError::Age)?;
    let mut file = Vec::with_capacity(plaintext.len() + 4096);
    let mut writer = encryptor.wrap_output(&mut file).map_err(EncryptError::Io)?;
    writer.write_all(plaintext).and_then(|()| writer.finish()).map_err(EncryptError::Io)?;
    // What a node would refuse is not written.
    Header::read(&file).map_err(EncryptError::TooLarge)?;
    Ok(file)
}

fn recipient(text: &str) -> Result<Box<dyn age::Recipient>, EncryptError> {
    if let Ok(key) = text.parse::<age::x25519::Recipient>() {
        return Ok(Box::new(key));
    }
    match text.parse::<age::ssh::Recipient>() {
        Ok(key) => Ok(Box::new(key)),
        Err(_) => Err(EncryptError::Recipient(text.to_owned())),
    }
}
