//! A real etcd on loopback, started and stopped by pid, with certificates where a test wants them.

#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // starts, freezes and kills etcd, and waits for it

pub mod net;
pub mod node;
pub mod three;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use converger::lock::store::{LockStore, StoreKind, open};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

pub struct Etcd {
    child: Child,
    pub dir: Arc<tempfile::TempDir>,
    pub port: u16,
    arguments: Vec<String>,
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

pub fn binary() -> PathBuf {
    let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/etcd-3.5.16/bin/etcd");
    let path = std::env::var_os("CONVERGER_ETCD").map_or(cached, PathBuf::from);
    assert!(path.is_file(), "run tools/etcd first (make test does)");
    path
}

impl Etcd {
    pub fn start() -> Self {
        Self::start_with("http", &[])
    }

    pub fn start_with(scheme: &str, more: &[&str]) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let (port, peer) = (free_port(), free_port());
        let client = format!("{scheme}://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{peer}");
        let mut arguments: Vec<String> = [
            "--data-dir",
            dir.path().join("data").to_str().unwrap(),
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("default={peer}"),
            "--initial-cluster-token",
            &peer,
            "--log-level",
            "error",
            "--unsafe-no-fsync",
        ]
        .map(String::from)
        .into();
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let etcd = Self { child: spawn(&arguments), dir, port, arguments };
        etcd.wait_until_up();
        etcd
    }

    pub fn wait_until_up(&self) {
        let end = Instant::now() + Duration::from_secs(120);
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(Instant::now() < end, "etcd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn kind(&self) -> StoreKind {
        kind(&[self.port])
    }

    pub fn store(&self) -> Box<dyn LockStore> {
        open(self.kind(), "f", "e").unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        // Threads stop one by one, on a loaded machine after an answer or two.
        while signal == Signal::SIGSTOP && !is_stopped(self.child.id()) {
            std::thread::yield_now();
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = spawn(&self.arguments);
        self.wait_until_up();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(arguments: &[String]) -> Child {
    Command::new(binary()).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

pub fn kind(ports: &[u16]) -> StoreKind {
    let endpoints = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    StoreKind::Etcd { endpoints, ca: None, cert: None, key: None }
}

pub struct Ca {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    pub path: PathBuf,
}

impl Ca {
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let path = dir.join(format!("{name}.crt"));
        std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir: dir.into(), issuer: Issuer::new(params, key), path }
    }

    /// The certificate and its key, in files.
    pub fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        self.issue_until(name, 4000)
    }

    /// Valid until the end of that year, in the same files.
    pub fn issue_until(&self, name: &str, year: i32) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let files = (self.dir.join(format!("{name}.crt")), self.dir.join(format!("{name}.key")));
        std::fs::write(&files.0, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

/// An etcd that wants certificates of this authority.
pub fn etcd_with_certificates(ca: &Ca) -> Etcd {
    let (cert, key) = ca.issue("server");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (ca, cert, key) = (text(&ca.path), text(&cert), text(&key));
    Etcd::start_with(
        "https",
        &["--client-cert-auth", "--trusted-ca-file", &ca, "--cert-file", &cert, "--key-file", &key],
    )
}

pub fn as_user(etcd: &Etcd, ca: &Ca, files: &(PathBuf, PathBuf)) -> Box<dyn LockStore> {
    open(kind_of_user(etcd, ca, files), "f", "e").unwrap()
}

pub fn kind_of_user(etcd: &Etcd, ca: &Ca, files: &(PathBuf, PathBuf)) -> StoreKind {
    StoreKind::Etcd {
        endpoints: vec![format!("https://127.0.0.1:{}", etcd.port)],
        ca: Some(ca.path.clone()),
        cert: Some(files.0.clone()),
        key: Some(files.1.clone()),
    }
}

/// Each of its threads is (proc_pid_stat(5): the state follows the name in brackets).
fn is_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut states = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    states.all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
}
