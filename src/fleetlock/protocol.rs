//! One FleetLock request and its answer, as bytes.
//!
//! A request is `POST /v1/pre-reboot` or `POST /v1/steady-state` with the header `fleet-lock-protocol: true` and a small JSON
//! body; an error is a status other than 200 with `kind` and `value`. What is not exactly that is refused before anything
//! is asked of the agent. PURE. Never: keeps a connection open; never: a body without its length.

use serde::{Deserialize, Serialize};

use crate::reason::{self, Exit, Reason};

/// Head and body together.
pub const REQUEST_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 32;
/// zincati's own, from which each of its machines derives its id.
const ZINCATI: [u8; 16] = *b"\xde\x35\x10\x6b\x6e\xc2\x46\x88\xb6\x3a\xfd\xda\xa1\x56\x67\x9b";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// May this machine reboot now? From a yes on it may, at any time.
    PreReboot,
    /// It is back, or does not want to reboot any more.
    SteadyState,
}

/// Errors: the refusal.
pub type Answer = Result<(), Refusal>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Of HTTP.
    pub status: u16,
    /// Id of a [`Reason`].
    pub kind: &'static str,
    /// One sentence with names and numbers.
    pub value: String,
}

impl Refusal {
    pub fn of(reason: Reason, sentence: impl Into<String>) -> Self {
        let status = match reason.exit {
            Exit::Unreachable => 503,
            _ if reason == reason::FLEETLOCK_BUSY => 503,
            Exit::Internal => 500,
            _ => 409,
        };
        Self { status, kind: reason.id, value: sentence.into() }
    }

    /// A request that is none.
    fn request(status: u16, sentence: impl Into<String>) -> Self {
        Self { status, kind: reason::FLEETLOCK_REQUEST.id, value: sentence.into() }
    }
}

/// Whom requests must be meant for.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What `Host` may say; `None`: anything, for a socket that no browser reaches.
    pub hosts: Option<Vec<String>>,
    /// This node's ids: its name, and what zincati calls this machine.
    pub ids: Vec<String>,
}

impl Endpoint {
    /// The names under which a port of this machine is reached from itself. A page that was made to resolve to it names
    /// another host (DNS rebinding).
    pub fn hosts_of(address: std::net::SocketAddr) -> Vec<String> {
        let (ip, port) = (address.ip(), address.port());
        let names = [if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }, "localhost".to_owned()];
        let with_port = names.iter().map(|name| format!("{name}:{port}"));
        let plain = names.iter().filter(|_| port == 80).cloned();
        with_port.chain(plain).collect()
    }
}

#[derive(Deserialize)]
struct Body {
    client_params: ClientParams,
}

#[derive(Deserialize)]
struct ClientParams {
    id: String,
    group: String,
}

/// As far as the request has come; `None`: more must come.
pub fn read(bytes: &[u8], endpoint: &Endpoint) -> Result<Option<Call>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(Refusal::request(431, "the request is too long")),
        Err(error) => return Err(Refusal::request(400, format!("this is no HTTP request: {error}"))),
    };
    let call = match request.path {
        Some("/v1/pre-reboot") => Call::PreReboot,
        Some("/v1/steady-state") => Call::SteadyState,
        _ => return Err(Refusal::request(404, "there are /v1/pre-reboot and /v1/steady-state")),
    };
    if request.method != Some("POST") {
        return Err(Refusal::request(405, "POST is the only method"));
    }
    if let Some(hosts) = &endpoint.hosts {
        let host = one(request.headers, "host")?.unwrap_or_default();
        if !hosts.iter().any(|known| known.eq_ignore_ascii_case(host)) {
            return Err(Refusal::request(403, format!("Host is none of {}", hosts.join(", "))));
        }
    }
    if one(request.headers, "fleet-lock-protocol")? != Some("true") {
        return Err(Refusal::request(400, "the header `fleet-lock-protocol: true` is missing"));
    }
    if one(request.headers, "transfer-encoding")?.is_some() {
        return Err(Refusal::request(411, "a body comes with its Content-Length"));
    }
    let length = one(request.headers, "content-length")?.unwrap_or_default();
    let length = Some(length).filter(|length| !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(length) = length else { return Err(Refusal::request(411, "a body comes with its Content-Length")) };
    let end = length.parse::<usize>().ok().and_then(|length| head.checked_add(length));
    let Some(end) = end.filter(|end| *end <= REQUEST_BYTES_MAX) else {
        return Err(Refusal::request(413, format!("a request has at most {REQUEST_BYTES_MAX} bytes")));
    };
    let Some(body) = bytes.get(head..end) else { return Ok(None) };
    let Body { client_params } = serde_json::from_slice(body)
        .map_err(|error| Refusal::request(400, format!("the body is not what FleetLock says: {error}")))?;
    let ClientParams { id, group } = client_params;
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-');
    if group.is_empty() || !group.bytes().all(plain) {
        return Err(Refusal::request(400, "`group` is not of letters, digits, `.` and `-`"));
    }
    if !endpoint.ids.contains(&id) {
        let sentence = format!("`id` is not this machine's ({})", endpoint.ids.join(" or "));
        return Err(Refusal::request(403, sentence));
    }
    Ok(Some(call))
}

/// A header that is said once or not at all.
fn one<'h>(headers: &[httparse::Header<'h>], name: &str) -> Result<Option<&'h str>, Refusal> {
    let mut said = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let (first, second) = (said.next(), said.next());
    if second.is_some() {
        return Err(Refusal::request(400, format!("the header {name} is said twice")));
    }
    first
        .map(|header| std::str::from_utf8(header.value).map(str::trim))
        .transpose()
        .map_err(|_| Refusal::request(400, format!("the header {name} is no text")))
}

/// The whole answer; the connection ends with it.
pub fn written(answer: &Answer) -> Vec<u8> {
    #[derive(Serialize)]
    struct Told<'a> {
        kind: &'a str,
        value: &'a str,
    }
    let (status, body) = match answer {
        Ok(()) => (200, String::new()),
        Err(Refusal { status, kind, value }) => {
            (*status, serde_json::to_string(&Told { kind, value }).expect("two texts serialize"))
        }
    };
    let words = match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {words}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The client was too slow.
pub fn too_slow() -> Refusal {
    Refusal::request(408, "the request did not come in time")
}

/// What zincati calls a machine: systemd's application-specific machine id (sd-id128(3)), in lower-case hex.
/// `machine`: what /etc/machine-id says; `None`: that is no machine id.
pub fn zincati_id(machine: &str) -> Option<String> {
    let machine: [u8; 16] = hex::decode(machine.trim()).ok()?.try_into().ok()?;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &machine);
    let tag = ring::hmac::sign(&key, &ZINCATI);
    let mut id: [u8; 16] = tag.as_ref().get(..16)?.try_into().ok()?;
    // A random UUID, as RFC 9562 marks one.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    Some(hex::encode(id))
}
