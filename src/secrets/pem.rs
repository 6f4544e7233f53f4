//! The parts of a PEM text: which block is the key, which the certificate, which its chain (RFC 7468).
//!
//! PURE. Never: decodes a block; never: says what stands in one.

/// One block, with its borders and without a newline at its end.
#[derive(Clone, Copy)]
pub struct Block<'t> {
    /// `CERTIFICATE`, `PRIVATE KEY`.
    pub label: &'t str,
    pub text: &'t str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The first private key.
    Key,
    /// The first certificate: the one that the key belongs to.
    Certificate,
    /// All certificates after the first.
    Chain,
}

/// The blocks in their order; what stands between them, and a block without an end, is left out.
pub fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    const BEGIN: &str = "-----BEGIN ";
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let block = &rest[rest.find(BEGIN)?..];
            let inside = &block[BEGIN.len()..];
            rest = inside;
            let label = &inside[..inside.find("-----")?];
            let end = format!("-----END {label}-----");
            if let Some(at) = inside.find(&end) {
                let (block, after) = block.split_at(BEGIN.len() + at + end.len());
                rest = after;
                return Some(Block { label, text: block });
            }
        }
    })
}

pub fn certificates(text: &str) -> impl Iterator<Item = &str> {
    blocks(text).filter(|block| block.label == "CERTIFICATE").map(|block| block.text)
}

/// Whatever its format: `PRIVATE KEY`, `RSA PRIVATE KEY`, `OPENSSH PRIVATE KEY`.
pub fn private_key(text: &str) -> Option<&str> {
    blocks(text).find(|block| block.label.ends_with("PRIVATE KEY")).map(|block| block.text)
}

/// The part's blocks, one below the other, without a newline at the end. `None`: there is no such block; a chain may be
/// empty, a certificate straight from a root has none.
pub fn part(text: &str, part: Part) -> Option<String> {
    match part {
        Part::Key => private_key(text).map(str::to_owned),
        Part::Certificate => certificates(text).next().map(str::to_owned),
        Part::Chain => {
            certificates(text).next()?;
            Some(certificates(text).skip(1).collect::<Vec<_>>().join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "talk\n-----BEGIN RSA PRIVATE KEY-----\nk\n-----END RSA PRIVATE KEY-----\n\
        -----BEGIN CERTIFICATE-----\na\n-----END CERTIFICATE-----\nsubject=b\n\
        -----BEGIN CERTIFICATE-----\nb\n-----END CERTIFICATE-----\r\n-----BEGIN CERTIFICATE-----\nc";

    #[test]
    fn parts_are_found_wherever_they_stand() {
        assert!(part(TEXT, Part::Key).unwrap().contains("\nk\n"));
        assert_eq!(part(TEXT, Part::Certificate).unwrap(), "-----BEGIN CERTIFICATE-----\na\n-----END CERTIFICATE-----");
        assert_eq!(part(TEXT, Part::Chain).unwrap(), "-----BEGIN CERTIFICATE-----\nb\n-----END CERTIFICATE-----");
        let alone = &TEXT[..TEXT.find("subject").unwrap()];
        assert_eq!(part(alone, Part::Chain).as_deref(), Some(""));
    }

    #[test]
    fn what_is_no_pem_has_no_parts() {
        for text in
            ["", "hunter2", "-----BEGIN ", "-----BEGIN X-----", "-----BEGIN A-----\n-----END B-----", "-----BEGIN é"]
        {
            assert_eq!(blocks(text).count(), 0, "{text:?}");
            assert_eq!(part(text, Part::Chain), None);
        }
    }
}
