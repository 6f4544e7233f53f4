//! Requests to S3-compatible stores, signed: AWS Signature Version 4.
//!
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>. The key stays in this process: what goes
//! to the child that asks is one signature, for one object, for some minutes. PURE. Never: a key in a header or an error.

use jiff::Timestamp;
use ring::hmac;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// SHA-256 of nothing: a GET has no body.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// As a secret has them: `id:secret`, or a line each.
pub struct Key {
    id: Zeroizing<String>,
    secret: Zeroizing<String>,
}

impl Key {
    /// `None`: the secret is neither.
    pub fn parse(secret: &[u8]) -> Option<Self> {
        let text = str::from_utf8(secret).ok()?.trim();
        let (id, secret) = text.split_once('\n').or_else(|| text.split_once(':'))?;
        let (id, secret) = (id.trim(), secret.trim());
        let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
        let own = |text: &str| Zeroizing::new(text.to_owned());
        (plain(id) && plain(secret)).then(|| Self { id: own(id), secret: own(secret) })
    }
}

/// One GET.
pub struct Get<'a> {
    /// With its port unless that is the scheme's own.
    pub host: &'a str,
    /// As it goes over the wire, percent-encoded.
    pub path: &'a str,
    pub region: &'a str,
    /// To be sent and signed besides, names in lower case.
    pub headers: &'a [(&'a str, String)],
}

/// The headers to send, without `host`.
pub fn sign(get: &Get<'_>, key: &Key, now: Timestamp) -> Vec<(String, String)> {
    let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = &stamp[..8];
    let mut headers: Vec<(String, String)> =
        get.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    headers.push(("x-amz-content-sha256".to_owned(), EMPTY.to_owned()));
    headers.push(("x-amz-date".to_owned(), stamp.clone()));
    let mut signed = headers.clone();
    signed.push(("host".to_owned(), get.host.to_owned()));
    signed.sort();
    let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let request = format!("GET\n{}\n\n{lines}\n{names}\n{EMPTY}", get.path);

    let scope = format!("{day}/{}/s3/aws4_request", get.region);
    let digest = hex::encode(Sha256::digest(request));
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}");
    let first = Zeroizing::new(format!("AWS4{}", key.secret.as_str()));
    let parts = [day, get.region, "s3", "aws4_request", &text];
    let signature = parts.into_iter().fold(Zeroizing::new(first.as_bytes().to_vec()), |key, part| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Zeroizing::new(hmac::sign(&key, part.as_bytes()).as_ref().to_vec())
    });
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={}",
        key.id.as_str(),
        hex::encode(signature.as_slice())
    );
    headers.push(("authorization".to_owned(), authorization));
    headers
}

/// `/bucket/key` as it goes over the wire.
pub fn path(bucket: &str, key: &str) -> String {
    let mut path = String::from("/");
    for byte in bucket.bytes().chain([b'/']).chain(key.bytes()) {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => path.push(char::from(byte)),
            byte => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first example of the page above: "GET Object".
    #[test]
    fn a_request_is_signed_as_published() {
        let secret = format!("AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCY{}", "EXAMPLEKEY");
        let key = Key::parse(secret.as_bytes()).unwrap();
        let get = Get {
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            region: "us-east-1",
            headers: &[("range", "bytes=0-9".to_owned())],
        };
        let headers = sign(&get, &key, "2013-05-24T00:00:00Z".parse().unwrap());
        let (_, authorization) = headers.last().unwrap();
        assert_eq!(
            authorization,
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert!(!format!("{headers:?}").contains("wJalr"));
    }

    #[test]
    fn keys_are_two_words_and_paths_are_encoded() {
        assert!(Key::parse(b"id:secret/with+more=\n").is_some() && Key::parse(b"id\nsecret\n").is_some());
        assert!(["", "id", "id:", ":secret", "id secret"].iter().all(|text| Key::parse(text.as_bytes()).is_none()));
        assert_eq!(path("b", "a b/ü+1.tgz"), "/b/a%20b/%C3%BC%2B1.tgz");
    }
}
