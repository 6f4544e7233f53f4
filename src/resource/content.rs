//! Bytes for a file that know whether a secret touched them.
//!
//! PURE. Never: prints, serializes or hashes a secret's value for anybody but the disk; there is no Debug.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::name::SecretName;

/// SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of several parts; each is preceded by its length, so that no two lists of parts look alike.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// Of what was hashed piece by piece.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", &hex::encode(self.0)[..12])
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hex;
        impl serde::de::Visitor<'_> for Hex {
            type Value = Digest;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 hex digits")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Digest, E> {
                Digest::from_hex(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Hex)
    }
}

/// A secret as a file used it: which one and which version of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SecretUse {
    pub name: SecretName,
    pub version: u64,
}

/// What was on disk in place of a file: anybody's, so it may hold a secret. Wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Found(Zeroizing<Vec<u8>>);

impl Found {
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// To be compared, and shown only where no secret is or was.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What goes into a file, and what may be shown of it.
#[derive(Clone)]
pub struct Content {
    /// `None`: the node cannot open a secret this needs, or nobody gave a key (CI, `plan`): only the mask is known.
    bytes: Option<Zeroizing<Vec<u8>>>,
    /// With `«secret:name»` in place of every value. `None` where no secret is involved: the bytes are the mask.
    masked: Option<Vec<u8>>,
    secrets: Vec<SecretUse>,
}

impl Content {
    pub fn plain(bytes: Vec<u8>) -> Self {
        Self { bytes: Some(Zeroizing::new(bytes)), masked: None, secrets: Vec::new() }
    }

    /// `bytes`: with the values, if they are known; `masked`: the same rendering with placeholders.
    pub fn secret(bytes: Option<Zeroizing<Vec<u8>>>, masked: Vec<u8>, mut secrets: Vec<SecretUse>) -> Self {
        secrets.sort();
        secrets.dedup();
        Self { bytes, masked: Some(masked), secrets }
    }

    /// For the disk only.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_ref().map(|bytes| bytes.as_slice())
    }

    /// For every eye.
    pub fn shown(&self) -> &[u8] {
        match (&self.masked, &self.bytes) {
            (Some(masked), _) => masked,
            (None, Some(bytes)) => bytes,
            (None, None) => &[],
        }
    }

    pub fn secrets(&self) -> &[SecretUse] {
        &self.secrets
    }

    pub fn is_secret(&self) -> bool {
        self.masked.is_some()
    }

    /// What a restart depends on: the masked text and the versions of the secrets in it.
    pub fn inputs(&self) -> Digest {
        let versions: Vec<String> = self.secrets.iter().map(|s| format!("{}@{}", s.name, s.version)).collect();
        Digest::of_parts(std::iter::once(self.shown()).chain(versions.iter().map(|v| v.as_bytes())))
    }
}
