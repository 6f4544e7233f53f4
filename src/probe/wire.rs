//! Connections to a member: TCP or TLS, with one time limit for all that happens on them.
//!
//! Never: a certificate that is not checked, or a read that can outlast the question.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::{Question, Tls};
use crate::clock::{Clock, SystemClock};

/// A moment on the awake clock.
#[derive(Clone, Copy)]
pub(super) struct Deadline(Duration);

impl Deadline {
    pub(super) fn within(timeout: Duration) -> Self {
        Self(SystemClock.awake() + timeout)
    }

    /// What is left; an error once that is nothing.
    pub(super) fn left(self) -> io::Result<Duration> {
        match self.0.saturating_sub(SystemClock.awake()) {
            Duration::ZERO => Err(late()),
            left => Ok(left),
        }
    }
}

fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "no answer in time")
}

/// `host:port` as it stands in a URL.
pub(super) fn authority(address: &str, port: u16) -> String {
    match address.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => format!("{address}:{port}"),
    }
}

pub(super) fn connect(address: &str, port: u16, deadline: Deadline) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in resolve(address, port, deadline)? {
        match TcpStream::connect_timeout(&address, deadline.left()?) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::TimedOut => failed = late(),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn resolve(address: &str, port: u16, deadline: Deadline) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    // The system's resolver has time limits of its own; its thread is left behind when they are longer than ours.
    let (answer, answers) = mpsc::channel();
    let name = address.to_owned();
    std::thread::spawn(move || {
        // Nobody may be waiting any more.
        let _ = answer.send((name.as_str(), port).to_socket_addrs().map(Vec::from_iter));
    });
    answers.recv_timeout(deadline.left()?).map_err(|_| late())?
}

pub(super) trait Channel: Read + Write {}
impl<T: Read + Write> Channel for T {}

/// A connection to the asked member, with TLS if the check says so.
pub(super) fn open(question: &Question, port: u16) -> Result<Box<dyn Channel>, String> {
    let place = authority(&question.address, port);
    let deadline = Deadline::within(question.timeout);
    let stream = connect(&question.address, port, deadline).map_err(|error| format!("{place}: {error}"))?;
    let stream = Timed { stream, deadline };
    let Some(tls) = &question.tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(question.address.clone()).map_err(|error| format!("{place}: {error}"))?;
    let session = rustls::ClientConnection::new(Arc::new(client_config(tls)?), name)
        .map_err(|error| format!("{place}: {error}"))?;
    Ok(Box::new(rustls::StreamOwned::new(session, stream)))
}

fn client_config(tls: &Tls) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&tls.ca)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", tls.ca))?;
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{key}: {error}"))?;
            config.with_client_auth_cert(certificates(cert)?, secret).map_err(|error| format!("{cert}: {error}"))
        }
        _ => Ok(config.with_no_client_auth()),
    }
}

/// All certificates of a PEM file, at least one.
pub(super) fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| format!("{path}: {error}"))?;
    if found.is_empty() { Err(format!("{path}: no certificate in it")) } else { Ok(found) }
}

/// Each read and write gets only what is left of the whole.
struct Timed {
    stream: TcpStream,
    deadline: Deadline,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.deadline.left()?))?;
        self.stream.read(buffer).map_err(in_time)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.deadline.left()?))?;
        self.stream.write(bytes).map_err(in_time)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A socket whose time is over says that it would block.
fn in_time(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { late() } else { error }
}
