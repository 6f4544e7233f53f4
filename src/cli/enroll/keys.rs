//! The keys of a node: its age identity, its deploy key, its key for the store with a request for a certificate.
//!
//! Never: replaces a key that is there; prints a private one.

use std::path::Path;

use age::secrecy::ExposeSecret as _;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::super::Failure;
use crate::disk;
use crate::name::NodeName;
use crate::reason::{self, Exit, chain};
use crate::secrets::identities::Identities;

const KEY_BYTES_MAX: u64 = 64 << 10;

/// The public half of the age identity at `path`, which is made if there is none.
pub fn recipient(path: &Path) -> Result<String, Failure> {
    if let Some(text) = read(path)? {
        // As the agent reads it: a key that others can read is no secret.
        Identities::load([path]).map_err(|error| Failure::of(reason::IDENTITY_PERMISSIONS, chain(&error)))?;
        let key = text.lines().find_map(|line| line.trim().parse::<age::x25519::Identity>().ok());
        let key = key.ok_or_else(|| Failure::usage(format!("{} holds no age key", path.display())))?;
        return Ok(key.to_public().to_string());
    }
    let key = age::x25519::Identity::generate();
    let recipient = key.to_public().to_string();
    // As age-keygen writes it.
    let text = Zeroizing::new(format!("# public key: {recipient}\n{}\n", key.to_string().expose_secret()));
    write(path, &text)?;
    Ok(recipient)
}

/// The public half of the OpenSSH key at `path`, which is made if there is none.
pub fn deploy_key(path: &Path, node: &NodeName) -> Result<String, Failure> {
    let wrong = |error: ssh_key::Error| Failure::usage(format!("{}: {error}", path.display()));
    let key = match read(path)? {
        Some(text) => PrivateKey::from_openssh(text.as_str()).map_err(wrong)?,
        None => {
            let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(wrong)?;
            key.set_comment(format!("converger@{node}"));
            write(path, &key.to_openssh(LineEnding::LF).map_err(wrong)?)?;
            key
        }
    };
    if key.is_encrypted() {
        return Err(Failure::usage(format!("{} has a passphrase, and nobody is there to type it", path.display())));
    }
    key.public_key().to_openssh().map_err(wrong)
}

/// The certificate request at `request` for the key at `key`, both made if they are not there: ECDSA P-256, CN and DNS
/// name are the node's.
pub fn certificate_request(key: &Path, request: &Path, node: &NodeName) -> Result<String, Failure> {
    let wrong = |error: rcgen::Error| Failure::usage(format!("{}: {error}", key.display()));
    let pair = match read(key)? {
        Some(text) => {
            if let Some(made) = read(request)?.filter(|made| is_of(made, node)) {
                return Ok(made.to_string());
            }
            KeyPair::from_pem(&text).map_err(wrong)?
        }
        None => {
            let pair = KeyPair::generate().map_err(wrong)?;
            write(key, &Zeroizing::new(pair.serialize_pem()))?;
            pair
        }
    };
    let mut params = CertificateParams::new([node.to_string()]).map_err(wrong)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, node.as_str());
    let made = params.serialize_request(&pair).and_then(|request| request.pem()).map_err(wrong)?.replace('\r', "");
    write(request, &made)?;
    Ok(made)
}

/// A request under another name is of who this machine was before.
fn is_of(request: &str, node: &NodeName) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(request.as_bytes()) else { return false };
    let Ok((_, parsed)) = X509CertificationRequest::from_der(&pem.contents) else { return false };
    let subject = &parsed.certification_request_info.subject;
    let mut names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
    names.next() == Some(node.as_str())
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, Failure> {
    let bytes = disk::read_bounded(path, KEY_BYTES_MAX).map_err(|error| Failure::usage(chain(&error)))?;
    let text = |bytes: Vec<u8>| {
        let bytes = Zeroizing::new(bytes);
        let text = str::from_utf8(&bytes).map(|text| Zeroizing::new(text.to_owned()));
        text.map_err(|_| Failure::usage(format!("{} is no text", path.display())))
    };
    bytes.map(text).transpose()
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    disk::write_atomic(path, text.as_bytes(), 0o600).map_err(|error| Failure::new(Exit::Host, chain(&error)))
}
