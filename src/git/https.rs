//! Git's smart HTTP over ureq and rustls: one GET for the references, one POST for each round of the exchange.
//!
//! <https://git-scm.com/docs/http-protocol>. Never: plain http, a redirect, a proxy from the environment, a token in
//! an address or an error.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};
use ureq::{Agent, Body, http};

use super::transport::{Dial, Metered};
use crate::disk;
use crate::settings::{Access, Credential};

const FILE_MAX: u64 = 1 << 20;
/// What libgit2 writes before it reads; haves are 50 bytes each.
const REQUEST_MAX: usize = 16 << 20;

pub(super) type Response = Metered<Box<dyn Read + Send>>;

/// The list of references.
pub(super) fn references(dial: &Dial) -> io::Result<ReadOnly> {
    let (agent, authorization) = agent(dial)?;
    let mut request = agent
        .get(format!("{}/info/refs?service=git-upload-pack", dial.url.trim_end_matches('/')))
        .header("Accept", "application/x-git-upload-pack-advertisement");
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    let response = request.call().map_err(said)?;
    expect(&response, "application/x-git-upload-pack-advertisement")?;
    Ok(ReadOnly(metered(dial, response)))
}

/// One round: what is written is sent when the first byte is read.
pub(super) fn exchange(dial: Dial) -> Exchange {
    Exchange { dial, request: Vec::new(), response: None }
}

pub(super) struct ReadOnly(Response);

impl Read for ReadOnly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for ReadOnly {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) struct Exchange {
    dial: Dial,
    request: Vec<u8>,
    response: Option<Response>,
}

impl Exchange {
    fn send(&mut self) -> io::Result<Response> {
        let (agent, authorization) = agent(&self.dial)?;
        let mut request = agent
            .post(format!("{}/git-upload-pack", self.dial.url.trim_end_matches('/')))
            .header("Content-Type", "application/x-git-upload-pack-request")
            .header("Accept", "application/x-git-upload-pack-result");
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        let response = request.send(std::mem::take(&mut self.request).as_slice()).map_err(said)?;
        expect(&response, "application/x-git-upload-pack-result")?;
        Ok(metered(&self.dial, response))
    }
}

impl Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.response {
            Some(response) => response.read(buffer),
            None => {
                let response = self.send()?;
                self.response.insert(response).read(buffer)
            }
        }
    }
}

impl Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.request.len() + bytes.len() > REQUEST_MAX {
            return Err(io::Error::other("the request grew too large"));
        }
        self.request.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn metered(dial: &Dial, response: http::Response<Body>) -> Response {
    // Metered counts; ureq's own limit would end a large pack early.
    let stream = response.into_body().into_with_config().limit(u64::MAX).reader();
    Metered { stream: Box::new(stream), budget: dial.budget.clone() }
}

fn expect(response: &http::Response<Body>, wanted: &str) -> io::Result<()> {
    let status = response.status();
    if status.is_redirection() {
        return Err(io::Error::other(format!("it answers {status}: redirects are not followed, write the final url")));
    }
    let kind = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind != wanted {
        return Err(io::Error::other("what answers there is not a git server"));
    }
    Ok(())
}

/// A client for this remote, and the value of its Authorization header.
fn agent(dial: &Dial) -> io::Result<(Agent, Option<http::HeaderValue>)> {
    let Access::Https { ca, credential } = &dial.access else {
        return Err(io::Error::other("this remote is not reached by https"));
    };
    let roots = match ca {
        Some(path) => RootCerts::from(certificates(path)?),
        None => RootCerts::PlatformVerifier,
    };
    let mut tls = TlsConfig::builder().root_certs(roots);
    let mut authorization = None;
    match credential {
        Some(Credential::Token(path)) => authorization = Some(token(path)?),
        Some(Credential::Certificate { cert, key }) => {
            let private = PrivateKey::from_pem(&file(key)?).map_err(|_| unusable(key, "private key"))?;
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&certificates(cert)?, private)));
        }
        None => {}
    }
    let left = dial.budget.left()?;
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .https_only(true)
        .proxy(None)
        .max_redirects(0)
        // 0 redirects would be an error without the answer that names them
        .max_redirects_will_error(false)
        .user_agent(concat!("git/2 (converger/", env!("CARGO_PKG_VERSION"), ")"))
        .timeout_global(Some(left))
        .timeout_connect(Some(left.min(Duration::from_secs(30))))
        .build();
    Ok((config.new_agent(), authorization))
}

fn token(path: &Path) -> io::Result<http::HeaderValue> {
    let bytes = file(path)?;
    let token = str::from_utf8(&bytes).map_err(|_| unusable(path, "token"))?.trim();
    let text = match token.contains(':') {
        true => format!("Basic {}", base64(token.as_bytes())),
        false => format!("Bearer {token}"),
    };
    let mut value = http::HeaderValue::from_str(&text).map_err(|_| unusable(path, "token"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn certificates(path: &Path) -> io::Result<Vec<Certificate<'static>>> {
    let bytes = file(path)?;
    let found: Vec<_> = ureq::tls::parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() { Err(unusable(path, "certificate")) } else { Ok(found) }
}

fn file(path: &Path) -> io::Result<Vec<u8>> {
    let read = disk::read_bounded(path, FILE_MAX).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        io::Error::other(format!("{error}{cause}"))
    })?;
    read.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display())))
}

fn unusable(path: &Path, what: &str) -> io::Error {
    io::Error::other(format!("{} holds no usable {what}", path.display()))
}

fn said(error: ureq::Error) -> io::Error {
    io::Error::other(match error {
        ureq::Error::StatusCode(code @ (401 | 403)) => format!("it answers {code}: the credential is not accepted"),
        ureq::Error::StatusCode(404) => "it answers 404: no such repository, or not for this credential".to_owned(),
        ureq::Error::StatusCode(code) => format!("it answers {code}"),
        other => other.to_string(),
    })
}

/// RFC 4648; for one short header, not worth a dependency.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (group >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("user:pass", "dXNlcjpwYXNz"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
