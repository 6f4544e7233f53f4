//! A mirror of archives on loopback: HTTP or HTTPS, that answers as a test says and remembers what it was asked.

#![allow(dead_code)] // each test file uses its own part

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Asked {
    /// `bytes=N-`
    pub fn from(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Only so many bytes of the body are sent, then the connection ends.
    pub cut: Option<usize>,
    /// After the body nothing comes, for ever.
    pub hangs: bool,
    /// Without a length, in pieces.
    pub chunked: bool,
}

impl Answer {
    pub fn ok(body: &[u8]) -> Self {
        Self { status: 200, body: body.to_vec(), ..Self::default() }
    }

    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn redirect(to: String) -> Self {
        Self { status: 302, headers: vec![("location", to)], ..Self::default() }
    }

    /// As a good server does.
    pub fn ranged(body: &[u8], asked: &Asked) -> Self {
        match asked.from() {
            None => Self::ok(body),
            Some(from) if from >= body.len() => Self::status(416),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
                Self { status: 206, headers: vec![("content-range", range)], ..Self::ok(&body[from..]) }
            }
        }
    }
}

pub struct Mirror {
    pub address: SocketAddr,
    scheme: &'static str,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Bytes of bodies.
    served: Arc<AtomicU64>,
    /// PEM of the authority, for https.
    pub authority: String,
}

type Handler = dyn Fn(&Asked) -> Answer + Send + Sync;

impl Mirror {
    pub fn http(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(None, String::new(), Arc::new(answer))
    }

    pub fn https(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = authority.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(authority, key);
        let own = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let leaf = rcgen::CertificateParams::new(names).unwrap().signed_by(&own, &issuer).unwrap();
        let private = rustls::pki_types::PrivateKeyDer::try_from(own.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .unwrap();
        Self::serve(Some(Arc::new(config)), pem, Arc::new(answer))
    }

    fn serve(tls: Option<Arc<rustls::ServerConfig>>, authority: String, answer: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mirror = Self {
            address: listener.local_addr().unwrap(),
            scheme,
            asked: Arc::default(),
            served: Arc::default(),
            authority,
        };
        let (asked, served) = (Arc::clone(&mirror.asked), Arc::clone(&mirror.served));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, answer) = (tls.clone(), Arc::clone(&answer));
                let (asked, served) = (Arc::clone(&asked), Arc::clone(&served));
                std::thread::spawn(move || match tls {
                    None => talk(stream, &*answer, &asked, &served),
                    Some(config) => {
                        let session = rustls::ServerConnection::new(config).unwrap();
                        talk(rustls::StreamOwned::new(session, stream), &*answer, &asked, &served);
                    }
                });
            }
        });
        mirror
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }
}

/// One request; errors are the client's going away.
fn talk(stream: impl Read + Write, answer: &Handler, asked: &Mutex<Vec<Asked>>, served: &AtomicU64) {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.trim().is_empty() => break,
            Ok(_) => lines.push(line.trim().to_owned()),
        }
    }
    let path = lines[0].split(' ').nth(1).unwrap().to_owned();
    let header = |line: &String| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let this = Asked { path, headers: lines[1..].iter().map(header).collect() };
    let said = answer(&this);
    asked.lock().unwrap().push(this);
    let out = stream.get_mut();
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", said.status);
    match said.chunked {
        true => head.push_str("transfer-encoding: chunked\r\n"),
        false => head.push_str(&format!("content-length: {}\r\n", said.body.len())),
    }
    for (name, value) in &said.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    if out.write_all(head.as_bytes()).is_err() {
        return;
    }
    let body = &said.body[..said.cut.unwrap_or(said.body.len())];
    for piece in body.chunks(1000) {
        let piece = match said.chunked {
            true => [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat(),
            false => piece.to_vec(),
        };
        if out.write_all(&piece).is_err() {
            return;
        }
        served.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }
    if said.chunked && said.cut.is_none() {
        let _ = out.write_all(b"0\r\n\r\n");
    }
    let _ = out.flush();
    if said.hangs {
        // Until the other side has had enough.
        let _ = stream.read(&mut [0]);
    }
}

/// An address at which nobody is.
pub fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert!(TcpStream::connect(address).is_err());
    format!("http://{address}/x.tar.gz")
}
