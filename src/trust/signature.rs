//! One SSHSIG over one commit: who made it, if anybody did.
//!
//! <https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.sshsig>; the cryptography is ssh-key's, of RSA ring's
//! (ssh-key stops at 4096 bits). PURE. Never: whether that key may sign; SHA-1; a second spelling of the same signature.

use std::ops::RangeInclusive;

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents};
use ssh_key::public::{KeyData, RsaPublicKey};
use ssh_key::{Algorithm, Fingerprint, HashAlg, LineEnding, PublicKey, SshSig};

const NAMESPACE: &str = "git";
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "\n-----END SSH SIGNATURE-----\n";
const COLUMNS: usize = 70;
/// Fewer are too weak; more take longer than any person's key needs.
const RSA_BITS: RangeInclusive<usize> = 3072..=8192;
/// FIDO2: the person touched the key (`SSH_SK_USER_PRESENCE_REQD`).
const USER_PRESENT: u8 = 0x01;

/// Who signed `payload`, or why that cannot be said (without a full stop).
pub fn verify(armor: &str, payload: &[u8]) -> Result<Fingerprint, String> {
    if !armor.starts_with(BEGIN) {
        return Err("its signature is not an SSH signature".to_owned());
    }
    let signature = SshSig::from_pem(armor).map_err(|error| format!("its signature cannot be read: {error}"))?;
    // ssh-key does not look at the length before the innermost signature, so what it read is written again. Signatures of
    // security keys it cannot write.
    let touched = matches!(signature.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256);
    if !canonical(armor) || !touched && signature.to_pem(LineEnding::LF).is_ok_and(|again| again != armor) {
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
    let matches = match signature.public_key() {
        KeyData::Rsa(key) => rsa_matches(key, payload, &signature),
        key => PublicKey::from(key.clone()).verify(NAMESPACE, payload, &signature).is_ok(),
    };
    if !matches {
        return Err("its signature does not match its content".to_owned());
    }
    Ok(signature.public_key().fingerprint(HashAlg::Sha256))
}

/// Full lines of base64 and a last one, as ssh-keygen writes them. What is inside them is read strictly.
fn canonical(armor: &str) -> bool {
    let body = armor.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END)).unwrap_or_default();
    let (full, last) = body.rsplit_once('\n').map_or((None, body), |(full, last)| (Some(full), last));
    let mut full = full.into_iter().flat_map(|lines| lines.split('\n'));
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=\n".contains(&byte);
    full.all(|line| line.len() == COLUMNS) && (1..=COLUMNS).contains(&last.len()) && body.bytes().all(base64)
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
            let (min, max) = (RSA_BITS.start(), RSA_BITS.end());
            match bits {
                bits if bits < *min => Err(format!("an RSA key of {bits} bits is too small, {min} are needed")),
                bits if bits > *max => Err(format!("an RSA key of {bits} bits is too large, {max} are allowed")),
                _ => Ok(()),
            }
        }
        other => Err(format!("keys of type {other} are not accepted")),
    }
}

fn rsa_matches(key: &RsaPublicKey, payload: &[u8], signature: &SshSig) -> bool {
    let algorithm = match signature.algorithm() {
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) } => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) } => &RSA_PKCS1_2048_8192_SHA512,
        _ => return false,
    };
    let signed = SshSig::signed_data(NAMESPACE, signature.hash_alg(), payload);
    signed.ok().zip(key.n.as_positive_bytes()).zip(key.e.as_positive_bytes()).is_some_and(|((signed, n), e)| {
        RsaPublicKeyComponents { n, e }.verify(algorithm, &signed, signature.signature_bytes()).is_ok()
    })
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
