//! One SSHSIG over one commit: who made it, if anybody did.
//!
//! <https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.sshsig>; the cryptography is ssh-key's. PURE.
//! Never: whether that key may sign; SHA-1; a second spelling of the same signature.

use ssh_key::public::KeyData;
use ssh_key::{Algorithm, Fingerprint, HashAlg, LineEnding, PublicKey, SshSig};

const NAMESPACE: &str = "git";
const RSA_BITS_MIN: usize = 3072;
/// FIDO2: the person touched the key (`SSH_SK_USER_PRESENCE_REQD`).
const USER_PRESENT: u8 = 0x01;

/// Who signed `payload`, or why that cannot be said (without a full stop).
pub fn verify(armor: &str, payload: &[u8]) -> Result<Fingerprint, String> {
    if !armor.starts_with("-----BEGIN SSH SIGNATURE-----") {
        return Err("its signature is not an SSH signature".to_owned());
    }
    let signature = SshSig::from_pem(armor).map_err(|error| format!("its signature cannot be read: {error}"))?;
    if signature.to_pem(LineEnding::LF).ok().as_deref() != Some(armor) {
        return Err("its signature is not written as ssh-keygen writes it".to_owned());
    }
    if signature.version() != SshSig::VERSION || !signature.reserved().is_empty() {
        return Err("its signature is of another version".to_owned());
    }
    if signature.namespace() != NAMESPACE {
        return Err(format!("its signature was made for \"{}\", not for git", signature.namespace().escape_debug()));
    }
    usable(signature.public_key())?;
    matches_key(&signature)?;
    PublicKey::from(signature.public_key().clone())
        .verify(NAMESPACE, payload, &signature)
        .map_err(|_| "its signature does not match its content".to_owned())?;
    Ok(signature.public_key().fingerprint(HashAlg::Sha256))
}

/// Whether keys of this kind and size may sign at all.
pub fn usable(key: &KeyData) -> Result<(), String> {
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::SkEd25519 | Algorithm::Ecdsa { .. } | Algorithm::SkEcdsaSha2NistP256 => Ok(()),
        Algorithm::Rsa { .. } => {
            let bits = key
                .rsa()
                .and_then(|rsa| rsa.n.as_positive_bytes())
                .map_or(0, |n| n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize));
            if bits < RSA_BITS_MIN {
                return Err(format!("an RSA key of {bits} bits is too small, {RSA_BITS_MIN} are needed"));
            }
            Ok(())
        }
        other => Err(format!("keys of type {other} are not accepted")),
    }
}

/// The signature's own algorithm must be the key's, with SHA-2 for RSA, and a security key must have been touched.
fn matches_key(signature: &SshSig) -> Result<(), String> {
    let fits = match (signature.public_key().algorithm(), signature.algorithm()) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { hash }) => hash.is_some(),
        (key, made) => key == made,
    };
    if !fits {
        return Err(format!("its signature is of type {}, its key is not", signature.algorithm()));
    }
    let security_key = matches!(signature.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256);
    // flags and a counter of four bytes end such a signature
    let flags = signature.signature_bytes().iter().rev().nth(4).copied().unwrap_or(0);
    if security_key && flags & USER_PRESENT == 0 {
        return Err("nobody touched the security key for its signature".to_owned());
    }
    Ok(())
}
