//! Values that nobody types: passwords, random bytes, SSH keys, in the shape that `secrets.toml` declares.
//!
//! PURE: randomness is handed in. Never: a value in an error.

use std::collections::BTreeSet;

use ssh_key::private::{Ed25519Keypair, KeypairData, PrivateKey};
use ssh_key::{LineEnding, PublicKey};
use zeroize::Zeroizing;

use crate::fleet::schema::{Shape, ShapeKind};

/// Fills what it is given with bytes that nobody can foretell.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);

const LENGTH: usize = 32;
const BYTES: usize = 32;
const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A new value of a secret.
pub struct Made {
    pub value: Zeroizing<Vec<u8>>,
    /// What everybody may see of it, for the environment's `public/`.
    pub public: Option<Public>,
}

pub struct Public {
    /// Of the file's name: `crt`, `pub`.
    pub extension: &'static str,
    pub text: String,
}

/// What is wrong with a shape: the key it is about, and why.
pub fn mistake(shape: &Shape) -> Option<(&'static str, String)> {
    use ShapeKind::{Base64, Ca, Hex, Password, Ssh, Tls};
    let Shape { kind, length, alphabet, bytes, ca, names, ips, days } = shape;
    let said = [
        ("length", length.is_some(), &[Password][..]),
        ("alphabet", alphabet.is_some(), &[Password]),
        ("bytes", bytes.is_some(), &[Hex, Base64]),
        ("ca", ca.is_some(), &[Tls]),
        ("names", !names.is_empty(), &[Tls]),
        ("ips", !ips.is_empty(), &[Tls]),
        ("days", days.is_some(), &[Ca, Tls]),
    ];
    if let Some((key, ..)) = said.into_iter().find(|(_, said, kinds)| *said && !kinds.contains(kind)) {
        let name = match kind {
            Password => "a password",
            Hex => "hex",
            Base64 => "base64",
            Ssh => "an SSH key",
            Ca => "an authority",
            Tls => "a certificate",
        };
        return Some((key, format!("{name} has no {key}")));
    }
    if length.is_some_and(|length| !(8..=1024).contains(&length)) {
        return Some(("length", "from 8 to 1024 characters".to_owned()));
    }
    if bytes.is_some_and(|bytes| !(16..=4096).contains(&bytes)) {
        return Some(("bytes", "from 16 to 4096 bytes".to_owned()));
    }
    if days.is_some_and(|days| !(1..=36_500).contains(&days)) {
        return Some(("days", "from 1 to 36500 days".to_owned()));
    }
    let distinct = |text: &str| text.bytes().collect::<BTreeSet<u8>>().len();
    let good =
        |text: &String| text.len() >= 10 && distinct(text) == text.len() && text.bytes().all(|c| c.is_ascii_graphic());
    if !alphabet.as_ref().is_none_or(good) {
        return Some(("alphabet", "at least 10 different printable ASCII characters, each once".to_owned()));
    }
    if let Some(name) = names.iter().find(|name| !is_dns_name(name)) {
        return Some(("names", format!("{name:?} is not a DNS name")));
    }
    (*kind == Tls && ca.is_none()).then(|| ("kind", "a certificate needs its authority: ca = \"NAME\"".to_owned()))
}

/// RFC 1123 labels, the first of which may be `*`.
fn is_dns_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.chars().all(plain) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.strip_prefix("*.").unwrap_or(name).split('.').all(label)
}

/// A password, as many characters as the shape says, each equally likely.
pub fn password(shape: &Shape, random: Random<'_>) -> Made {
    let alphabet = shape.alphabet.as_deref().unwrap_or(ALPHABET).as_bytes();
    let length = shape.length.unwrap_or(LENGTH);
    // Of a byte only what divides evenly: the remainder would favour the first characters.
    let even = 256 - 256 % alphabet.len();
    let mut value = Zeroizing::new(Vec::with_capacity(length));
    let mut pool = Zeroizing::new([0; 64]);
    while value.len() < length {
        random(&mut *pool);
        let fair = pool.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < even);
        let missing = length - value.len();
        value.extend(fair.map(|byte| alphabet[byte % alphabet.len()]).take(missing));
    }
    Made { value, public: None }
}

/// Random bytes in hex (lowercase) or base64 (with padding).
pub fn bytes(shape: &Shape, random: Random<'_>) -> Made {
    let mut raw = Zeroizing::new(vec![0; shape.bytes.unwrap_or(BYTES)]);
    random(&mut raw);
    let text = match shape.kind {
        ShapeKind::Base64 => data_encoding::BASE64.encode(&raw),
        _ => hex::encode(&*raw),
    };
    Made { value: Zeroizing::new(text.into_bytes()), public: None }
}

/// An ed25519 key in OpenSSH's format without a passphrase, and its public half with this comment.
///
/// # Errors
/// What the encoder says; it knows no value.
pub fn ssh_key(comment: &str, random: Random<'_>) -> Result<Made, ssh_key::Error> {
    let mut seed = Zeroizing::new([0; 32]);
    random(&mut *seed);
    let pair = Ed25519Keypair::from_seed(&seed);
    let public = PublicKey::new(pair.public.into(), comment);
    let private = PrivateKey::new(KeypairData::from(pair), comment)?;
    let value = Zeroizing::new(private.to_openssh(LineEnding::LF)?.as_bytes().to_vec());
    let text = format!("{}\n", public.to_openssh()?);
    Ok(Made { value, public: Some(Public { extension: "pub", text }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Shape {
        toml::from_str(text).unwrap()
    }

    /// All byte values in turn.
    fn counting() -> impl FnMut(&mut [u8]) {
        let mut next = 0_u8;
        move |bytes| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(1);
            }
        }
    }

    #[test]
    fn a_password_has_its_length_and_favours_no_character() {
        let made = password(&shape("kind = \"password\"\nlength = 992"), &mut counting());
        let mut counts = [0; 256];
        made.value.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        // 62 characters, 248 of 256 byte values count: 992 characters are each of them 16 times.
        assert!(ALPHABET.bytes().all(|c| counts[usize::from(c)] == 16));
        assert_eq!(counts.iter().sum::<i32>(), 992);
        let digits = password(&shape("kind = \"password\"\nlength = 8\nalphabet = \"0123456789\""), &mut counting());
        assert_eq!(digits.value.as_slice(), b"01234567");
    }

    #[test]
    fn bytes_are_written_as_the_kind_says() {
        let value = |text: &str| String::from_utf8(bytes(&shape(text), &mut counting()).value.to_vec()).unwrap();
        assert_eq!(value("kind = \"hex\"\nbytes = 16"), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(value("kind = \"base64\"\nbytes = 16"), "AAECAwQFBgcICQoLDA0ODw==");
        assert_eq!(value("kind = \"hex\"").len(), 64);
    }

    #[test]
    fn a_key_comes_from_its_seed_alone() {
        let [a, b] = [(); 2].map(|()| ssh_key("who", &mut counting()).unwrap().public.unwrap().text);
        assert!(a == b && a.starts_with("ssh-ed25519 AAAA") && a.ends_with(" who\n"));
    }

    #[test]
    fn mistakes_name_their_key() {
        for (text, key) in [
            ("kind = \"password\"\nbytes = 16", "bytes"),
            ("kind = \"password\"\nlength = 7", "length"),
            ("kind = \"password\"\nalphabet = \"aabbccddeeffgg\"", "alphabet"),
            ("kind = \"password\"\nalphabet = \"0123456789é\"", "alphabet"),
            ("kind = \"hex\"\nbytes = 15", "bytes"),
            ("kind = \"ssh\"\ndays = 3", "days"),
            ("kind = \"ca\"\ndays = 0", "days"),
            ("kind = \"tls\"", "kind"),
            ("kind = \"tls\"\nca = \"x\"\nnames = [\"a..b\"]", "names"),
            ("kind = \"tls\"\nca = \"x\"\nnames = [\"a.*.b\"]", "names"),
        ] {
            assert_eq!(mistake(&shape(text)).map(|(key, _)| key), Some(key), "{text}");
        }
        for text in
            ["kind = \"password\"", "kind = \"tls\"\nca = \"x\"\nnames = [\"*.a.example\", \"b\"]\nips = [\"::1\"]"]
        {
            assert_eq!(mistake(&shape(text)), None, "{text}");
        }
    }
}
