//! The bytes of a commit object, in the one form in which git itself writes them.
//!
//! Everything that is signed is read here and nowhere else, so there are not two opinions about what a commit says.
//! PURE. Never: a lenient reading; an object that git would write differently is not a commit to us.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::name::CommitId;

/// A commit's message and headers are people's text; more than this is not.
const SIZE_MAX: usize = 1 << 20;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Object id of the tree.
    pub tree: String,
    pub parents: Vec<CommitId>,
    /// `name <email>`, safe to print.
    pub author: String,
    pub email: String,
    /// First line of the message, safe to print.
    pub subject: String,
    pub allowances: Vec<Allowance>,
    /// The armor as ssh-keygen wrote it, final newline included. `None`: not signed.
    pub signature: Option<String>,
    /// What was signed: the object without its signature header.
    pub payload: Vec<u8>,
}

/// A trailer `Converger-Allow: NAME OBJECT`: a guard that its signer lifts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Allowance {
    pub guard: String,
    pub object: String,
}

/// Identity for ancestry: two commits that differ in their signature only are one (R8).
pub fn payload_sha256(payload: &[u8]) -> String {
    hex::encode(Sha256::digest(payload))
}

impl Commit {
    /// Strict: `tree`, `parent`s, `author`, `committer`, further headers, at most one `gpgsig`; UTF-8 without NUL.
    /// The error says what is wrong, without a full stop.
    pub fn parse(raw: &[u8]) -> Result<Self, String> {
        if raw.len() > SIZE_MAX {
            return Err(format!("it has {} bytes, more than {SIZE_MAX}", raw.len()));
        }
        let text = str::from_utf8(raw).map_err(|_| "it is not UTF-8".to_owned())?;
        if text.contains('\0') {
            return Err("it contains a NUL byte".to_owned());
        }
        let (headers, message) = text.split_once("\n\n").ok_or("it has no empty line after its headers")?;
        let mut headers = Headers { rest: Some(headers) }.peekable();

        let tree = object_id(headers.next(), "tree")?;
        let mut parents = Vec::new();
        while headers.peek().is_some_and(|(name, _)| *name == "parent") {
            parents.push(CommitId::new(object_id(headers.next(), "parent")?));
        }
        let (author, email) = identity(headers.next(), "author")?;
        identity(headers.next(), "committer")?;

        let mut signature = None;
        let mut payload = raw.to_vec();
        for (name, value) in headers {
            match name {
                "gpgsig" if signature.is_some() => return Err("it has two gpgsig headers".to_owned()),
                "gpgsig" if value.is_empty() => return Err("its gpgsig header is empty".to_owned()),
                "gpgsig" => {
                    let start = value.as_ptr() as usize - text.as_ptr() as usize - "gpgsig ".len();
                    payload.drain(start..start + "gpgsig ".len() + value.len() + "\n".len());
                    signature = Some(value.replace("\n ", "\n") + "\n");
                }
                "tree" | "parent" | "author" | "committer" => {
                    return Err(format!("its {name} header is not in its place"));
                }
                "encoding" | "gpgsig-sha256" => return Err(format!("its header {name} is not supported")),
                _ if is_header_name(name) => {}
                _ => return Err("it has a line among its headers that is none".to_owned()),
            }
        }
        Ok(Self {
            tree,
            parents,
            author,
            email,
            subject: printable(message.lines().next().unwrap_or_default()),
            allowances: allowances(message),
            signature,
            payload,
        })
    }
}

/// Name and value (continuation lines included) of each header.
struct Headers<'a> {
    rest: Option<&'a str>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.rest?;
        let mut end = 0;
        loop {
            end = text[end..].find('\n').map_or(text.len(), |at| end + at);
            if !text[end..].starts_with("\n ") {
                break;
            }
            end += 1;
        }
        self.rest = text.get(end + 1..);
        Some(text[..end].split_once(' ').unwrap_or((&text[..end], "")))
    }
}

fn object_id(header: Option<(&str, &str)>, wanted: &str) -> Result<String, String> {
    match header {
        Some((name, id)) if name == wanted && is_object_id(id) => Ok(id.to_owned()),
        _ => Err(format!("its {wanted} header is missing, misplaced or no object id")),
    }
}

fn is_object_id(id: &str) -> bool {
    id.len() == 40 && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_header_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
}

/// `name <email> seconds zone`, as `git fsck` demands it. The time is looked at for its form only.
fn identity(header: Option<(&str, &str)>, wanted: &str) -> Result<(String, String), String> {
    let wrong = || format!("its {wanted} header is missing, misplaced or malformed");
    let (_, value) = header.filter(|(name, _)| *name == wanted).ok_or_else(wrong)?;
    let (name, rest) = value.split_once('<').ok_or_else(wrong)?;
    let (email, time) = rest.split_once("> ").ok_or_else(wrong)?;
    let (seconds, zone) = time.split_once(' ').ok_or_else(wrong)?;
    let digits = |text: &str| !text.is_empty() && text.len() <= 19 && text.bytes().all(|c| c.is_ascii_digit());
    let sound = (name.is_empty() || name.ends_with(' '))
        && !value.contains('\n')
        && !name.contains('>')
        && !email.contains(['<', '>'])
        && digits(seconds)
        && zone.len() == 5
        && zone.starts_with(['+', '-'])
        && digits(&zone[1..]);
    if sound { Ok((printable(&format!("{name}<{email}>")), printable(email))) } else { Err(wrong()) }
}

/// Control characters would let a commit paint over the terminal of whoever reads about it.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// From the message's last paragraph, if that consists of trailers only and is not the first.
fn allowances(message: &str) -> Vec<Allowance> {
    let Some((_, last)) = message.trim_end().rsplit_once("\n\n") else {
        return Vec::new();
    };
    let trailers: Option<Vec<(&str, &str)>> =
        last.lines().map(|line| line.split_once(": ").filter(|(token, _)| is_header_name(token))).collect();
    trailers
        .unwrap_or_default()
        .into_iter()
        .filter(|(token, _)| token.eq_ignore_ascii_case("Converger-Allow"))
        .filter_map(|(_, value)| {
            let (guard, object) = value.trim().split_once(' ')?;
            let object = object.trim();
            let plain = !object.is_empty() && !object.contains(char::is_whitespace);
            plain.then(|| Allowance { guard: guard.to_owned(), object: object.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n\
        parent 0123456789012345678901234567890123456789\n\
        author A U Thor <a@example.org> 1700000000 +0100\n\
        committer A U Thor <a@example.org> 1700000000 +0100\n\n\
        subject\n\nbody\n\nConverger-Allow: downgrade kafka\nSigned-off-by: A <a@example.org>\n";

    fn signed() -> String {
        let signature = "gpgsig -----BEGIN SSH SIGNATURE-----\n AAAA\n -----END SSH SIGNATURE-----\n";
        PLAIN.replacen("\n\n", &format!("\n{signature}\n"), 1)
    }

    #[test]
    fn the_payload_is_the_commit_without_its_signature() {
        let commit = Commit::parse(signed().as_bytes()).unwrap();
        assert_eq!(commit.payload, PLAIN.as_bytes());
        assert_eq!(commit.signature.unwrap(), "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n");
        assert_eq!((commit.subject.as_str(), commit.email.as_str()), ("subject", "a@example.org"));
        assert_eq!(commit.allowances, [Allowance { guard: "downgrade".into(), object: "kafka".into() }]);
    }

    #[test]
    fn headers_of_other_tools_stay_in_the_payload() {
        let text = signed().replace("gpgsig ", "mergetag object 12\n type commit\n\n x\nchange-id abc\ngpgsig ");
        assert_eq!(Commit::parse(text.as_bytes()).unwrap().signature, None, "an empty line ends the headers");
        let text = signed().replace("gpgsig ", "mergetag object 12\n type commit\n \n x\nchange-id abc\ngpgsig ");
        let commit = Commit::parse(text.as_bytes()).unwrap();
        assert!(String::from_utf8(commit.payload).unwrap().contains("\n type commit\n \n x\nchange-id abc\n\nsubject"));
    }

    #[test]
    fn what_git_would_not_write_is_malformed() {
        let twice = signed().replacen("\n\n", "\ngpgsig AAAA\n\n", 1);
        assert_eq!(Commit::parse(twice.as_bytes()).unwrap_err(), "it has two gpgsig headers");
        for (from, to) in [
            ("tree 4b", "tree 4B"),
            ("parent 01", "parent  01"),
            ("parent 0123456789", "parent 012345678"),
            ("A U Thor <a@example.org> 17", "A U Thor <a@example.org>  17"),
            ("A U Thor <a@", "A U Thor a@"),
            (" +0100", ""),
            ("subject", "sub\0ject"),
            ("\n\nsubject", "\nencoding ISO-8859-1\n\nsubject"),
            ("\n\nsubject", "\nparent 0123456789012345678901234567890123456789\n\nsubject"),
            ("\n\nsubject", "\n=\n\nsubject"),
            ("\n\nsubject", "\ngpgsig\n\nsubject"),
        ] {
            let text = PLAIN.replacen(from, to, 1);
            assert_ne!(text, PLAIN);
            assert!(Commit::parse(text.as_bytes()).is_err(), "{from:?} -> {to:?}");
        }
        assert!(Commit::parse(b"").is_err());
        assert!(Commit::parse(&[&b"tree \xff"[..], PLAIN.as_bytes()].concat()).is_err());
    }

    #[test]
    fn a_trailer_outside_the_last_paragraph_lifts_nothing() {
        let parse = |message: &str| {
            let text = format!("{}\n\n{message}", PLAIN.split_once("\n\n").unwrap().0);
            Commit::parse(text.as_bytes()).unwrap().allowances.len()
        };
        assert_eq!(parse("Converger-Allow: downgrade kafka\n"), 0);
        assert_eq!(parse("s\n\nConverger-Allow: downgrade kafka\n\nlater text\n"), 0);
        assert_eq!(parse("s\n\nnot a trailer\nConverger-Allow: downgrade kafka\n"), 0);
        assert_eq!(parse("s\n\nConverger-Allow: downgrade\n"), 0);
        assert_eq!(parse("s\n\nConverger-Allow: downgrade kafka\nconverger-allow: mass_removal n1\n"), 2);
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        let commit = Commit::parse(PLAIN.replace("\n\nsubject", "\n\n\u{1b}[2Jsub").as_bytes()).unwrap();
        assert_eq!(commit.subject, "\u{fffd}[2Jsub");
    }
}
