//! The header of an age file: how many it is encrypted to, and to which SSH keys. It needs no key to be read.
//!
//! Source: <https://c2sp.org/age>. A stanza of an age key is anonymous and only counts; one of an SSH key carries a tag,
//! the beginning of the key's SHA-256. PURE. Never: work that a hostile header could make long; it is cut off before.

use std::io::{BufRead as _, BufReader, Read as _};

use age::armor::ArmoredReader;
use ssh_key::{HashAlg, PublicKey};

/// An age file may not be larger; a secret is a password, a key, a keystore.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Some 100 bytes a recipient: enough for the nodes of a fleet of a thousand.
pub const HEADER_BYTES_MAX: usize = 128 << 10;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Recipients in all; what an implementation adds to confuse others ("grease") is none.
    pub recipients: usize,
    /// Tags of SSH keys, as they are written: base64 of four bytes.
    ssh_tags: Vec<String>,
    /// Somebody would have to type a passphrase.
    pub passphrase: bool,
}

impl Header {
    /// Reads no further than the header's end.
    ///
    /// # Errors
    /// What is wrong with it, in words that follow "it" or "its".
    pub fn read(file: &[u8]) -> Result<Self, &'static str> {
        if file.len() > FILE_BYTES_MAX {
            return Err("it is larger than 1 MiB");
        }
        let mut header = Self::default();
        let mut lines = BufReader::new(ArmoredReader::new(file).take(HEADER_BYTES_MAX as u64 + 1));
        let (mut line, mut read) = (Vec::new(), 0);
        loop {
            line.clear();
            read += lines.read_until(b'\n', &mut line).map_err(|_| "its armor is broken")?;
            if read > HEADER_BYTES_MAX {
                return Err("its header is too large");
            }
            if !line.ends_with(b"\n") {
                return Err("its header does not end");
            }
            if line.starts_with(b"--- ") {
                return Ok(header);
            }
            // A stanza's body is base64: it never begins like this.
            let Some(stanza) = line.strip_prefix(b"-> ") else { continue };
            let stanza = std::str::from_utf8(stanza).map_err(|_| "its header is not text")?;
            let mut words = stanza.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some(kind), _) if kind.ends_with("-grease") => continue,
                (Some("ssh-ed25519" | "ssh-rsa"), Some(tag)) => header.ssh_tags.push(tag.to_owned()),
                (Some("scrypt"), _) => header.passphrase = true,
                _ => {}
            }
            header.recipients += 1;
        }
    }

    /// Whether it is encrypted to this recipient. `None`: an age key's stanza does not tell.
    pub fn names(&self, recipient: &str) -> Option<bool> {
        let key = PublicKey::from_openssh(recipient).ok()?;
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        // Both are base64 of the digest's beginning; a tag's sixth character has bits of its own end in it.
        let start = fingerprint.strip_prefix("SHA256:")?.get(..5)?;
        Some(self.ssh_tags.iter().any(|tag| tag.starts_with(start)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secrets::encrypt;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rust";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti foo@bar";

    #[test]
    fn recipients_are_counted_and_ssh_keys_recognised() {
        let key = age::x25519::Identity::generate().to_public().to_string();
        let file = encrypt(b"x", [key.as_str(), ED25519]).unwrap();
        let header = Header::read(&file).unwrap();
        assert_eq!((header.recipients, header.passphrase), (2, false));
        assert_eq!(header.names(ED25519), Some(true));
        assert_eq!(header.names(OTHER), Some(false));
        assert_eq!(header.names(&key), None);
    }

    #[test]
    fn a_header_without_an_end_is_none() {
        let key = age::x25519::Identity::generate().to_public().to_string();
        let file = encrypt(b"x", [key.as_str()]).unwrap();
        assert_eq!(Header::read(&file[..60]), Err("its header does not end"));
        assert!(Header::read(b"").is_err());
        let long = [&b"age-encryption.org/v1\n"[..], &b"-> X25519 a\n".repeat(20_000)].concat();
        assert_eq!(Header::read(&long), Err("its header is too large"));
        assert_eq!(Header::read(&vec![b'x'; 2 << 20]), Err("it is larger than 1 MiB"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_none(
            start in prop::sample::select(vec!["", "age-encryption.org/v1\n", "-----BEGIN AGE ENCRYPTED FILE-----\n"]),
            rest in "(-> |--- |ssh-rsa |X25519 |AAAA|\\PC|\n){0,40}",
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let file = [start.as_bytes(), rest.as_bytes(), &bytes].concat();
            if let Ok(header) = Header::read(&file) {
                prop_assert!(header.recipients <= rest.matches("-> ").count() + bytes.len() / 3);
            }
        }
    }
}
