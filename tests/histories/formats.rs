//! The formats that the reference verifier reads, each from its own text: commits, SSHSIG, allowed_signers, policy.toml.
//!
//! Never: a reader of `src`; leniency.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{SHA256, SHA512, digest};
use ring::signature::{ED25519, UnparsedPublicKey};

/// Nothing of these is larger.
pub const FILE_MAX: usize = 1 << 20;

/// A commit object that keeps to the grammar.
pub struct Commit {
    pub tree: String,
    pub parents: Vec<String>,
    pub armor: Option<String>,
    pub payload: Vec<u8>,
}

/// `PRINCIPAL [namespaces="…"] TYPE BASE64 [COMMENT]`. `None`: not sound; `Some(None)`: not for git.
#[allow(clippy::type_complexity)]
pub fn signer(line: &str) -> Option<Option<(String, String)>> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (principal, mut rest) = words.split_first()?;
    if principal.contains(['*', '?', '!', '"', ',']) {
        return None;
    }
    let mut for_git = true;
    if let Some(names) = rest.first()?.strip_prefix("namespaces=") {
        let names: Vec<&str> = names.trim_matches('"').split(',').collect();
        if names.iter().any(|name| name.is_empty() || name.contains(['*', '?', '!'])) {
            return None;
        }
        for_git = names.contains(&"git");
        rest = &rest[1..];
    }
    let blob = decode(rest.get(1)?)?;
    let mut fields = Fields(&blob);
    let sound = fields.string()? == rest[0].as_bytes()
        && match rest[0] {
            "ssh-ed25519" => fields.string()?.len() == 32,
            "ssh-rsa" => {
                let (_, n) = (fields.string()?, fields.string()?);
                let n: Vec<u8> = n.iter().copied().skip_while(|byte| *byte == 0).collect();
                n.len() * 8 - n.first()?.leading_zeros() as usize >= 3072
            }
            _ => false,
        };
    (sound && fields.0.is_empty()).then(|| for_git.then(|| (fingerprint(&blob), (*principal).to_owned())))
}

type Policy = (BTreeMap<String, (Vec<String>, Vec<String>)>, BTreeSet<String>);

pub fn policy_of(table: &toml::Table) -> Option<Policy> {
    let only =
        |table: &toml::Table, names: &[&str]| table.keys().all(|key| names.contains(&key.as_str())).then_some(());
    let strings = |value: &toml::Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|one| one.as_str().map(str::to_owned)).collect()
    };
    only(table, &["principals", "banned"])?;
    let mut principals = BTreeMap::new();
    for (name, principal) in table.get("principals").map_or(Some(&toml::Table::new()), |value| value.as_table())? {
        let principal = principal.as_table()?;
        only(principal, &["roles", "paths"])?;
        let roles = strings(principal.get("roles")?)?;
        let paths = principal.get("paths").map_or(Some(vec!["**".to_owned()]), strings)?;
        let a_glob = |part: &str| part == "**" || (!part.is_empty() && !part.contains("**"));
        let sound = roles.iter().all(|role| ["root", "deploy", "freshness"].contains(&role.as_str()))
            && paths.iter().all(|glob| glob.split('/').all(a_glob));
        sound.then(|| principals.insert(name.clone(), (roles, paths)))?;
    }
    let mut banned = BTreeSet::new();
    if let Some(table) = table.get("banned") {
        only(table.as_table()?, &["keys"])?;
        banned = table.get("keys").map_or(Some(Vec::new()), strings)?.into_iter().collect();
    }
    let a_key = |key: &String| {
        key.strip_prefix("SHA256:").is_some_and(|sum| sum.len() == 43 && decode(&format!("{sum}=")).is_some())
    };
    banned.iter().all(a_key).then_some((principals, banned))
}

/// The values of the headers of one name, however malformed the commit is otherwise.
pub fn headers(raw: &[u8], name: &str) -> Vec<String> {
    let lines = raw.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
    let values = lines.filter_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b" "));
    values.map(|value| String::from_utf8(value.to_vec()).unwrap().to_ascii_lowercase()).collect()
}

/// `None`: git would write it differently, or we do not read it (encodings, SHA-256 repositories).
pub fn parse(raw: &[u8]) -> Option<Commit> {
    let text = std::str::from_utf8(raw).ok().filter(|text| text.len() <= FILE_MAX && !text.contains('\0'))?;
    let end = text.find("\n\n")?;
    // Each header with its continuation lines, and where it begins.
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut at = 0;
    for line in text[..end].split('\n') {
        match (line.starts_with(' '), found.last_mut()) {
            (true, Some((_, header))) => *header = format!("{header}\n{line}"),
            _ => found.push((at, line.to_owned())),
        }
        at += line.len() + 1;
    }
    let id = |header: &str, name: &str| {
        let id = header.strip_prefix(name)?;
        let sound = id.len() == 40 && id.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
        sound.then(|| id.to_owned())
    };
    let mut rest = found.into_iter().peekable();
    let tree = id(&rest.next()?.1, "tree ")?;
    let mut parents = Vec::new();
    while rest.peek()?.1.starts_with("parent ") {
        parents.push(id(&rest.next()?.1, "parent ")?);
    }
    for name in ["author ", "committer "] {
        is_identity(rest.next()?.1.strip_prefix(name)?)?;
    }
    let (mut armor, mut payload) = (None, raw.to_vec());
    for (start, header) in rest {
        let name = header.split(' ').next()?;
        if name == "gpgsig" {
            let value = header.strip_prefix("gpgsig ").filter(|value| !value.is_empty() && armor.is_none())?;
            armor = Some(value.replace("\n ", "\n") + "\n");
            payload = [&raw[..start], &raw[start + header.len() + 1..]].concat();
        }
        let word = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let placed = ["tree", "parent", "author", "committer", "encoding", "gpgsig-sha256"].contains(&name);
        if !word || placed {
            return None;
        }
    }
    Some(Commit { tree, parents, armor, payload })
}

/// `name <email> seconds zone`
fn is_identity(text: &str) -> Option<()> {
    let (open, close) = (text.find('<')?, text.find('>')?);
    let (name, time) = (&text[..open], text[close..].strip_prefix("> ")?);
    let (seconds, zone) = time.split_once(' ')?;
    let number = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let sound = close > open
        && text.matches(['<', '>']).count() == 2
        && !text.contains('\n')
        && (name.is_empty() || name.ends_with(' '))
        && (1..=19).contains(&seconds.len())
        && number(seconds)
        && zone.len() == 5
        && zone.starts_with(['+', '-'])
        && number(&zone[1..]);
    sound.then_some(())
}

/// SSHSIG: https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.sshsig
pub fn signed_by(armor: &str, payload: &[u8]) -> Option<String> {
    let body =
        armor.strip_prefix("-----BEGIN SSH SIGNATURE-----\n")?.strip_suffix("\n-----END SSH SIGNATURE-----\n")?;
    let lines: Vec<&str> = body.split('\n').collect();
    let (last, full) = lines.split_last()?;
    if full.iter().any(|line| line.len() != 70) || last.is_empty() || last.len() > 70 {
        return None;
    }
    let blob = decode(&lines.concat())?;
    let mut fields = Fields(blob.strip_prefix(b"SSHSIG\0\0\0\x01")?);
    let (key, namespace, reserved) = (fields.string()?, fields.string()?, fields.string()?);
    let (hash, signature) = (fields.string()?, fields.string()?);
    if namespace != b"git" || !reserved.is_empty() || !fields.0.is_empty() {
        return None;
    }
    let message = match hash {
        b"sha256" => digest(&SHA256, payload),
        b"sha512" => digest(&SHA512, payload),
        _ => return None,
    };
    let signed: Vec<u8> = [b"git", &b""[..], hash, message.as_ref()]
        .iter()
        .fold(b"SSHSIG".to_vec(), |signed, field| [&signed[..], &(field.len() as u32).to_be_bytes(), field].concat());
    let of = |blob| -> Option<Vec<u8>> {
        let mut fields = Fields(blob);
        let (kind, value) = (fields.string()?, fields.string()?);
        (kind == b"ssh-ed25519" && fields.0.is_empty()).then(|| value.to_vec())
    };
    UnparsedPublicKey::new(&ED25519, of(key)?).verify(&signed, &of(signature)?).ok()?;
    Some(fingerprint(key))
}

fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", encode(digest(&SHA256, blob).as_ref()).trim_end_matches('='))
}

/// `string`s of RFC 4251, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn string(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.0 = rest;
        Some(value)
    }
}

pub const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().chain([&0; 2]).take(3).fold(0usize, |bits, byte| bits << 8 | usize::from(*byte));
        for digit in 0..4 {
            text.push(if digit > chunk.len() { '=' } else { char::from(ALPHABET[bits >> (18 - 6 * digit) & 63]) });
        }
    }
    text
}

/// `None` unless [`encode`] gives it back.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0usize, 0);
    for c in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | ALPHABET.iter().position(|one| *one == c)?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 255) as u8);
        }
    }
    (encode(&bytes) == text).then_some(bytes)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
