//! The child's end: one GET, from the network into the pipe to the agent, inside the sandbox.
//!
//! It answers with what the server said and then the bytes as they come; the agent compares, hashes, writes and decides, also
//! whether a redirect is followed (by another child). Never: a file, a second request, a proxy from the environment.

use std::io::{Read, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, http};

use crate::git::quarantine::{QuarantineError, Talk};
use crate::git::sandbox::Profile;

/// Bytes of content in one frame.
pub(super) const PIECE: usize = 256 << 10;

#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub profile: Profile,
    pub url: String,
    pub headers: Vec<(String, String)>,
    /// PEM. `None`: the system's.
    pub authorities: Option<String>,
    pub secs: u64,
}

/// What the server said before the content.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Head {
    pub status: u16,
    pub length: Option<u64>,
    pub range: Option<String>,
    pub location: Option<String>,
}

/// A frame: what it is, then its bytes.
pub(super) enum Frame {
    Head(Head),
    Content(Vec<u8>),
    End,
    Failed(String),
}

impl Frame {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Head(head) => [b"H", &serde_json::to_vec(&head).expect("plain data serializes")[..]].concat(),
            Self::Content(bytes) => [b"C", &bytes[..]].concat(),
            Self::End => b"E".to_vec(),
            Self::Failed(why) => [b"F", why.as_bytes()].concat(),
        }
    }

    /// `None`: it means nothing.
    pub fn parse(mut bytes: Vec<u8>) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let rest = bytes.split_off(1);
        match bytes[0] {
            b'H' => serde_json::from_slice(&rest).ok().map(Self::Head),
            b'C' => Some(Self::Content(rest)),
            b'E' if rest.is_empty() => Some(Self::End),
            b'F' => Some(Self::Failed(String::from_utf8_lossy(&rest).escape_debug().take(500).collect())),
            _ => None,
        }
    }
}

/// `converger quarantine artifact`: the order comes first, then the sandbox closes.
pub fn download(input: impl Read, output: impl Write) -> Result<(), QuarantineError> {
    let mut talk = Talk { input, output };
    let order: Order = talk.order()?;
    talk.enter(&order.profile)?;
    let mut response = match get(&order) {
        Ok(response) => response,
        Err(why) => return talk.tell(&Frame::Failed(why).bytes()),
    };
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let head = Head {
        status: response.status().as_u16(),
        length: text("content-length").and_then(|length| length.parse().ok()),
        range: text("content-range"),
        location: text("location"),
    };
    let wanted = matches!(head.status, 200 | 206);
    talk.tell(&Frame::Head(head).bytes())?;
    if !wanted {
        return talk.tell(&Frame::End.bytes());
    }
    // The agent counts; ureq's own limit would end a large archive early.
    let mut content = response.body_mut().with_config().limit(u64::MAX).reader();
    let mut piece = vec![0; PIECE];
    loop {
        match content.read(&mut piece) {
            Ok(0) => return talk.tell(&Frame::End.bytes()),
            Ok(read) => talk.tell(&Frame::Content(piece[..read].to_vec()).bytes())?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return talk.tell(&Frame::Failed(error.to_string()).bytes()),
        }
    }
}

fn get(order: &Order) -> Result<http::Response<ureq::Body>, String> {
    let roots = match &order.authorities {
        Some(pem) => RootCerts::from(certificates(pem)?),
        None => RootCerts::PlatformVerifier,
    };
    let config = Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .https_only(order.url.starts_with("https://"))
        .proxy(None)
        .max_redirects(0)
        // 0 redirects would be an error without the answer that names them
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("converger/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(Duration::from_secs(order.secs)))
        .timeout_connect(Some(Duration::from_secs(order.secs.min(30))))
        .build();
    let mut request = config.new_agent().get(&order.url).header("accept-encoding", "identity");
    for (name, value) in &order.headers {
        let mut value = http::HeaderValue::from_str(value).map_err(|_| format!("no usable header {name}"))?;
        value.set_sensitive(true);
        request = request.header(name, value);
    }
    request.call().map_err(|error| error.to_string())
}

fn certificates(pem: &str) -> Result<Vec<ureq::tls::Certificate<'static>>, String> {
    let items = ureq::tls::parse_pem(pem.as_bytes());
    let found: Vec<_> = items
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() { Err("the authorities hold no certificate".to_owned()) } else { Ok(found) }
}
