//! What the tests of the probes share: real servers, started and stopped by pid, and questions to them.
//!
//! Never: a server that outlives its test.
#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // starts servers and writes their files

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use converger::fleet::schema::CheckKind;
use converger::name::{NodeName, UnitName};
use converger::probe::{Evidence, Health, LiveProbe, Probe, Question, Tls};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server of this test; gone when the test is.
pub struct Server(pub Child);

impl Server {
    pub fn start(program: &Path, installed_by: &str, arguments: &[String]) -> Self {
        let child = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{}: {error}; {installed_by} installs it", program.display())))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn live() -> LiveProbe {
    LiveProbe {
        run: Arc::new(|_, _, _| Err("nothing to run here".to_owned())),
        unit_state: Arc::new(|_| Err("no service manager".to_owned())),
    }
}

pub fn question(kind: CheckKind, port: u16) -> Question {
    Question {
        check: "gate".to_owned(),
        kind,
        member: NodeName::from("node01"),
        id: None,
        ids: Vec::new(),
        address: "127.0.0.1".to_owned(),
        own: false,
        unit: UnitName::from("service.service"),
        port: Some(port),
        path: None,
        status: 200,
        tls: None,
        secret: None,
        user: None,
        run: Vec::new(),
        timeout: Duration::from_secs(5),
        members: Vec::new(),
        changing: Vec::new(),
    }
}

pub fn ask(question: &Question) -> Evidence {
    live().ask(question)
}

/// Asks until it is so; servers take a moment.
pub fn until(question: &Question, wanted: impl Fn(&Evidence) -> bool) -> Evidence {
    let started = Instant::now();
    loop {
        let evidence = ask(question);
        if wanted(&evidence) {
            return evidence;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "{question:?} goes on answering {evidence:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn healthy(evidence: &Evidence) -> bool {
    evidence.health == Health::Healthy
}

#[track_caller]
pub fn assert_unknown(evidence: &Evidence, word: &str) {
    assert!(matches!(&evidence.health, Health::Unknown(why) if why.contains(word)), "{evidence:?}, not {word:?}");
}

#[track_caller]
pub fn assert_unhealthy(evidence: &Evidence, word: &str) {
    assert!(matches!(&evidence.health, Health::Unhealthy(why) if why.contains(word)), "{evidence:?}, not {word:?}");
}

/// A server that takes connections and says nothing, however long one waits, costs the timeout and no more.
#[track_caller]
pub fn assert_silent(question: &Question) {
    let question = Question { timeout: Duration::from_millis(600), ..question.clone() };
    let started = Instant::now();
    let evidence = ask(&question);
    let took = started.elapsed();
    assert!(matches!(evidence.health, Health::Unknown(_)), "{evidence:?}");
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(30), "took {took:?}");
}

pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

// Certificates: one CA, a server's and a client's certificate, for 127.0.0.1.

pub struct Pki(tempfile::TempDir);

impl Pki {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.distinguished_name.push(rcgen::DnType::CommonName, "CA of a test");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        for name in ["server", "client"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            let certificate = leaf.signed_by(&key, &issuer).unwrap();
            std::fs::write(folder.path().join(format!("{name}.crt")), certificate.pem()).unwrap();
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self(folder)
    }

    pub fn path(&self, file: &str) -> String {
        self.0.path().join(file).display().to_string()
    }

    pub fn anonymous(&self) -> Option<Tls> {
        Some(Tls { ca: self.path("ca.crt"), cert: None, key: None })
    }

    pub fn client(&self) -> Option<Tls> {
        Some(Tls { ca: self.path("ca.crt"), cert: Some(self.path("client.crt")), key: Some(self.path("client.key")) })
    }
}

/// A Redis at 127.0.0.<number>; replicas say their address, because they connect from another one.
pub fn redis(folder: &Path, number: usize, port: u16, more: &str) -> Server {
    let address = format!("127.0.0.{number}");
    let mut arguments = words(&format!(
        "--port {port} --bind {address} --replica-announce-ip {address} --dir {} --dbfilename {number}.rdb",
        folder.display()
    ));
    arguments.extend(["--save".to_owned(), String::new()]);
    arguments.extend(words(more));
    Server::start(Path::new("redis-server"), "tools/test-servers", &arguments)
}

/// Member `<name>0<number>` of three, at 127.0.0.<number>.
pub fn of_three(kind: CheckKind, port: u16, name: &str, number: usize) -> Question {
    let members = (1..=3).map(|n| (NodeName::new(format!("{name}0{n}")), format!("127.0.0.{n}")));
    Question {
        member: NodeName::new(format!("{name}0{number}")),
        address: format!("127.0.0.{number}"),
        members: members.collect(),
        ..question(kind, port)
    }
}

pub fn etcd_program() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os("CONVERGER_ETCD").map_or_else(|| manifest.join(".cache/etcd-3.5.16/bin/etcd"), PathBuf::from)
}

pub struct Etcd<'a> {
    pub folder: &'a Path,
    pub client_port: u16,
    pub peer_port: u16,
}

impl Etcd<'_> {
    /// Member `etcd0<number>` at 127.0.0.<number>, in a cluster of the numbers given.
    pub fn start(&self, number: usize, cluster: &[usize], state: &str, more: &str) -> Server {
        let scheme = if more.contains("--cert-file") { "https" } else { "http" };
        let peers: Vec<_> = cluster.iter().map(|n| format!("etcd0{n}=http://127.0.0.{n}:{}", self.peer_port)).collect();
        let client = format!("{scheme}://127.0.0.{number}:{}", self.client_port);
        let peer = format!("http://127.0.0.{number}:{}", self.peer_port);
        let line = format!(
            "--name etcd0{number} --data-dir {} --listen-client-urls {client} --advertise-client-urls {client} \
             --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster {} \
             --initial-cluster-token t{} --initial-cluster-state {state} --log-level error --unsafe-no-fsync {more}",
            self.folder.join(number.to_string()).display(),
            peers.join(","),
            cluster.len(),
        );
        Server::start(&etcd_program(), "tools/etcd", &words(&line))
    }

    pub fn question(&self, number: usize) -> Question {
        of_three(CheckKind::Etcd, self.client_port, "etcd", number)
    }
}

/// Runs an administrator's call.
pub fn etcd_admin<T>(url: String, call: impl AsyncFnOnce(etcd_client::Client) -> Result<T, etcd_client::Error>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { call(etcd_client::Client::connect([url], None).await.unwrap()).await.unwrap() })
}
