//! Telling whether bytes are the same as before, without remembering them, or anything that they could be guessed from.
//!
//! HMAC-SHA-256 (RFC 2104) with a key of the node: whoever gets a fingerprint alone cannot try passwords against it. PURE
//! given the key. Never: a plain digest of what may be a secret.

use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::resource::Digest;

pub const KEY_BYTES: usize = 32;

/// Of some bytes, on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Digest);

/// The node's way to make them. No Debug, no Clone: it holds the key.
pub struct Fingerprints(hmac::Key);

impl Fingerprints {
    pub fn keyed(key: &[u8; KEY_BYTES]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Of bytes that are known by their digest.
    pub fn of(&self, digest: Digest) -> Fingerprint {
        let tag = hmac::sign(&self.0, digest.bytes());
        let bytes = tag.as_ref().try_into().expect("an HMAC-SHA-256 has 32 bytes");
        Fingerprint(Digest::from_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `openssl mac -digest SHA256 -macopt hexkey:0707… -in DIGEST HMAC` says.
    #[test]
    fn it_is_the_hmac_that_others_compute() {
        let digest = Digest::from_bytes([1; 32]);
        let ours = Fingerprints::keyed(&[7; 32]).of(digest);
        assert_ne!(ours, Fingerprints::keyed(&[8; 32]).of(digest));
        assert_eq!(ours.0.to_string(), "338b3ba46c711ce637cad3635550e860b84209083d8c25b6a92d19d72b185516");
    }
}
