//! The probes against the real servers they are made for: redis and its sentinel, a three-member etcd, and small
//! HTTP and TLS servers of our own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // starts servers and writes their files

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use converger::fleet::schema::CheckKind;
use converger::name::{NodeName, UnitName};
use converger::probe::{Evidence, Health, LiveProbe, Probe, Question, Ran, Tls, ask_all};
use converger::resource::unit::Active;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server of this test; gone when the test is.
struct Server(Child);

impl Server {
    fn start(program: &Path, installed_by: &str, arguments: &[String]) -> Self {
        let child = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{}: {error}; {installed_by} installs it", program.display())))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn live() -> LiveProbe {
    LiveProbe {
        run: Arc::new(|_, _, _| Err("nothing to run here".to_owned())),
        unit_state: Arc::new(|_| Err("no service manager".to_owned())),
    }
}

fn question(kind: CheckKind, port: u16) -> Question {
    Question {
        check: "gate".to_owned(),
        kind,
        member: NodeName::from("node01"),
        id: None,
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
    }
}

fn ask(question: &Question) -> Evidence {
    live().ask(question)
}

/// Asks until it is so; servers take a moment.
fn until(question: &Question, wanted: impl Fn(&Evidence) -> bool) -> Evidence {
    let started = Instant::now();
    loop {
        let evidence = ask(question);
        if wanted(&evidence) {
            return evidence;
        }
        assert!(started.elapsed() < Duration::from_secs(40), "{question:?} goes on answering {evidence:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn healthy(evidence: &Evidence) -> bool {
    evidence.health == Health::Healthy
}

#[track_caller]
fn assert_unknown(evidence: &Evidence, word: &str) {
    assert!(matches!(&evidence.health, Health::Unknown(why) if why.contains(word)), "{evidence:?}, not {word:?}");
}

#[track_caller]
fn assert_unhealthy(evidence: &Evidence, word: &str) {
    assert!(matches!(&evidence.health, Health::Unhealthy(why) if why.contains(word)), "{evidence:?}, not {word:?}");
}

/// A server that takes connections and says nothing, however long one waits, costs the timeout and no more.
#[track_caller]
fn assert_silent(question: &Question) {
    let question = Question { timeout: Duration::from_millis(600), ..question.clone() };
    let started = Instant::now();
    let evidence = ask(&question);
    let took = started.elapsed();
    assert!(matches!(evidence.health, Health::Unknown(_)), "{evidence:?}");
    assert!(took >= Duration::from_millis(500) && took < Duration::from_millis(1200), "took {took:?}");
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

// Certificates: one CA, a server's and a client's certificate, for 127.0.0.1.

struct Pki(tempfile::TempDir);

impl Pki {
    fn new() -> Self {
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

    fn path(&self, file: &str) -> String {
        self.0.path().join(file).display().to_string()
    }

    fn anonymous(&self) -> Option<Tls> {
        Some(Tls { ca: self.path("ca.crt"), cert: None, key: None })
    }

    fn client(&self) -> Option<Tls> {
        Some(Tls { ca: self.path("ca.crt"), cert: Some(self.path("client.crt")), key: Some(self.path("client.key")) })
    }
}

// tcp, command, unit, vip-holder

#[test]
fn tcp_is_healthy_where_somebody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = question(CheckKind::Tcp, listener.local_addr().unwrap().port());
    assert_eq!(ask(&asked), Evidence::healthy());
    let by_name = Question { address: "localhost".to_owned(), ..asked.clone() };
    assert_eq!(ask(&by_name), Evidence::healthy());
    drop(listener);
    assert_unhealthy(&ask(&asked), "nothing listens");
    assert_unknown(&ask(&Question { address: "no-such-host.invalid".to_owned(), ..asked.clone() }), "no-such-host");
    assert_unknown(&ask(&Question { port: None, ..asked }), "no port");
}

#[test]
fn a_command_answers_for_the_member_that_it_was_given() {
    let probe = LiveProbe {
        run: Arc::new(|argv, user, within| {
            assert_eq!((user, within), (Some("nobody"), Duration::from_secs(5)));
            match argv[1].as_str() {
                "10.0.0.1:80" => Ok(Ran { code: 0, stdout: String::new() }),
                "10.0.0.2:80" => Ok(Ran { code: 3, stdout: "a secret".to_owned() }),
                _ => Err("took longer than 5 s".to_owned()),
            }
        }),
        ..live()
    };
    let about = |address: &str| Question {
        address: address.to_owned(),
        run: vec!["check".to_owned(), "{address}:80".to_owned()],
        user: Some("nobody".to_owned()),
        ..question(CheckKind::Command, 0)
    };
    assert_eq!(probe.ask(&about("10.0.0.1")), Evidence::healthy());
    assert_eq!(probe.ask(&about("10.0.0.2")), Evidence::unhealthy("check exits with 3"));
    assert_eq!(probe.ask(&about("10.0.0.3")), Evidence::unknown("took longer than 5 s"));
    let local = Question { run: vec!["check".to_owned(), "10.0.0.1:80".to_owned()], ..about("10.0.0.1") };
    assert_unknown(&probe.ask(&local), "cannot be asked of a peer");
    assert_eq!(probe.ask(&Question { own: true, ..local }), Evidence::healthy());
}

#[test]
fn a_unit_is_asked_on_its_own_node_only() {
    let asked = Question { own: true, ..question(CheckKind::Unit, 0) };
    let in_state = |state| LiveProbe { unit_state: Arc::new(move |_| Ok(state)), ..live() };
    assert_eq!(in_state(Active::Active).ask(&asked), Evidence::healthy());
    assert_unhealthy(&in_state(Active::Failed).ask(&asked), "service.service has failed");
    assert_unhealthy(&in_state(Active::Activating).ask(&asked), "still starting");
    assert_unknown(&ask(&asked), "no service manager");
    assert_unknown(&in_state(Active::Active).ask(&Question { own: false, ..asked }), "cannot be asked of a peer");
}

#[test]
fn whoever_has_the_shared_address_leads() {
    let holds = |address: &str| {
        ask(&Question { own: true, path: Some(address.to_owned()), ..question(CheckKind::VipHolder, 0) })
    };
    assert_eq!(holds("127.0.0.1"), Evidence::healthy().leading(true));
    assert_eq!(holds("192.0.2.7"), Evidence::healthy().leading(false));
    assert_unknown(&holds("lb01"), "not an address");
    let peer = Question { path: Some("127.0.0.1".to_owned()), ..question(CheckKind::VipHolder, 0) };
    assert_unknown(&ask(&peer), "cannot be asked of a peer");
}

#[test]
fn members_are_asked_at_the_same_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let hung = Question { timeout: Duration::from_millis(600), ..question(CheckKind::Http, port) };
    let fine = question(CheckKind::Tcp, open.local_addr().unwrap().port());
    let started = Instant::now();
    let answers = ask_all(&live(), &[hung.clone(), hung.clone(), fine, hung]);
    assert!(started.elapsed() < Duration::from_millis(1200), "took {:?}", started.elapsed());
    assert_eq!(answers.iter().map(healthy).collect::<Vec<_>>(), [false, false, true, false]);
}

// http

/// Answers every connection with these bytes; returns its port.
fn answering(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, bytes);
        }
    });
    port
}

fn answer(mut stream: impl Read + Write, bytes: &[u8]) {
    let mut request = [0; 2048];
    if stream.read(&mut request).is_ok_and(|length| request[..length].starts_with(b"GET /healthz HTTP/1.1\r\n")) {
        let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    }
}

fn http(port: u16) -> Question {
    Question { path: Some("/healthz".to_owned()), ..question(CheckKind::Http, port) }
}

#[test]
fn http_is_judged_by_its_status() {
    let fine = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!(ask(&http(fine)), Evidence::healthy());
    assert_unhealthy(&ask(&Question { status: 204, ..http(fine) }), "answers 200, not 204");
    let starting = answering(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    assert_unhealthy(&ask(&http(starting)), "answers 503, not 200");
    assert_eq!(ask(&Question { status: 503, ..http(starting) }), Evidence::healthy());
    let elsewhere = answering(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n");
    assert_unhealthy(&ask(&http(elsewhere)), "answers 302");
}

#[test]
fn http_that_does_not_answer_proves_nothing() {
    assert_unknown(&ask(&http(answering(b"\x15\x03\x01 garbage\r\n\r\n"))), "http://127.0.0.1");
    assert_unknown(&ask(&http(answering(b""))), "http://127.0.0.1");
    assert_unknown(&ask(&http(free_port())), "refused");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_silent(&http(silent.local_addr().unwrap().port()));
}

#[test]
fn http_that_drips_its_headers_costs_the_timeout_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-slow: ");
        while stream.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_silent(&http(port));
}

#[test]
fn http_over_tls_must_show_a_certificate_of_the_named_ca() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let pki = Pki::new();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            CertificateDer::pem_file_iter(pki.path("server.crt")).unwrap().map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_file(pki.path("server.key")).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            answer(rustls::StreamOwned::new(session, stream), b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });

    assert_eq!(ask(&Question { tls: pki.anonymous(), ..http(port) }), Evidence::healthy());
    assert_unknown(&ask(&Question { tls: Pki::new().anonymous(), ..http(port) }), "https://");
    let other_name = Question { address: "127.0.0.2".to_owned(), tls: pki.anonymous(), ..http(port) };
    assert_unknown(&ask(&other_name), "https://");
    let no_ca = Some(Tls { ca: pki.path("server.key"), cert: None, key: None });
    assert_unknown(&ask(&Question { tls: no_ca, ..http(port) }), "no certificate");
    assert_unknown(&ask(&http(port)), "http://");
}

// redis and sentinel

fn redis(folder: &Path, port: u16, more: &str) -> Server {
    let mut arguments =
        words(&format!("--port {port} --bind 127.0.0.1 --dir {} --dbfilename {port}", folder.display()));
    arguments.extend(["--save".to_owned(), String::new()]);
    arguments.extend(words(more));
    Server::start(Path::new("redis-server"), "tools/test-servers", &arguments)
}

#[test]
fn redis_tells_master_from_replica_and_counts_the_link() {
    let folder = tempfile::tempdir().unwrap();
    let (port, replica_port) = (free_port(), free_port());
    let master = redis(folder.path(), port, "--requirepass pw --masterauth pw");
    let replica =
        redis(folder.path(), replica_port, &format!("--requirepass pw --masterauth pw --replicaof 127.0.0.1 {port}"));
    let secret = |word: &str| Some(zeroize::Zeroizing::new(word.to_owned()));
    let of_master = Question { secret: secret("pw"), ..question(CheckKind::Redis, port) };
    let of_replica = Question { port: Some(replica_port), ..of_master.clone() };

    assert_eq!(until(&of_master, healthy), Evidence::healthy().leading(true));
    assert_eq!(until(&of_replica, healthy), Evidence::healthy().leading(false));
    let named = Question { user: Some("default".to_owned()), ..of_master.clone() };
    assert_eq!(ask(&named), Evidence::healthy().leading(true));
    assert_unknown(&ask(&Question { secret: secret("wrong"), ..of_master.clone() }), "does not let us in");
    assert_unknown(&ask(&Question { secret: None, ..of_master.clone() }), "does not let us ask");

    replica.signal(Signal::SIGSTOP);
    assert_silent(&of_replica);
    replica.signal(Signal::SIGCONT);
    assert_eq!(until(&of_replica, healthy), Evidence::healthy().leading(false));

    drop(master);
    assert_unknown(&ask(&of_master), "refused");
    let evidence = until(&of_replica, |evidence| !healthy(evidence));
    assert_unhealthy(&evidence, "its link to the master is down");
    assert_eq!(evidence.leads, Some(false));
}

#[test]
fn redis_over_tls_with_a_client_certificate() {
    let (folder, pki, port) = (tempfile::tempdir().unwrap(), Pki::new(), free_port());
    let tls = format!(
        "--tls-port {port} --tls-cert-file {} --tls-key-file {} --tls-ca-cert-file {} --tls-auth-clients yes",
        pki.path("server.crt"),
        pki.path("server.key"),
        pki.path("ca.crt")
    );
    let _server = redis(folder.path(), 0, &tls);
    let asked = Question { tls: pki.client(), ..question(CheckKind::Redis, port) };
    assert_eq!(until(&asked, healthy), Evidence::healthy().leading(true));
    for wrong in [pki.anonymous(), Pki::new().client(), None] {
        let evidence = ask(&Question { tls: wrong, ..asked.clone() });
        assert!(matches!(evidence.health, Health::Unknown(_)), "{evidence:?}");
    }
}

#[test]
fn a_sentinel_is_healthy_when_enough_of_them_agree() {
    let folder = tempfile::tempdir().unwrap();
    let (port, sentinel_port) = (free_port(), free_port());
    let _master = redis(folder.path(), port, "");
    until(&question(CheckKind::Redis, port), healthy);
    let file = folder.path().join("sentinel.conf");
    let watched = format!("sentinel monitor main 127.0.0.1 {port} 1\nsentinel monitor lonely 127.0.0.1 {port} 2\n");
    std::fs::write(&file, format!("port {sentinel_port}\nbind 127.0.0.1\n{watched}")).unwrap();
    let arguments = [file.display().to_string(), "--sentinel".to_owned()];
    let sentinel = Server::start(Path::new("redis-server"), "tools/test-servers", &arguments);

    let about =
        |master: &str| Question { path: Some(master.to_owned()), ..question(CheckKind::Sentinel, sentinel_port) };
    assert_eq!(until(&about("main"), healthy), Evidence::healthy());
    assert_unhealthy(&ask(&about("lonely")), "NOQUORUM");
    assert_unhealthy(&ask(&about("nobody")), "watches no master named nobody");
    assert_unknown(&ask(&Question { port: Some(port), ..about("main") }), "unknown command");
    sentinel.signal(Signal::SIGSTOP);
    assert_silent(&about("main"));
}

// etcd

fn etcd_program() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os("CONVERGER_ETCD").map_or_else(|| manifest.join(".cache/etcd-3.5.16/bin/etcd"), PathBuf::from)
}

struct Etcd<'a> {
    folder: &'a Path,
    client_port: u16,
    peer_port: u16,
}

impl Etcd<'_> {
    /// Member `etcd0<number>` at 127.0.0.<number>, in a cluster of the numbers given.
    fn start(&self, number: usize, cluster: &[usize], state: &str, more: &str) -> Server {
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

    fn question(&self, number: usize) -> Question {
        let members = (1..=3).map(|n| (NodeName::new(format!("etcd0{n}")), format!("127.0.0.{n}")));
        Question {
            member: NodeName::new(format!("etcd0{number}")),
            address: format!("127.0.0.{number}"),
            members: members.collect(),
            ..question(CheckKind::Etcd, self.client_port)
        }
    }
}

/// Runs an administrator's call.
fn etcd_admin<T>(url: String, call: impl AsyncFnOnce(etcd_client::Client) -> Result<T, etcd_client::Error>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { call(etcd_client::Client::connect([url], None).await.unwrap()).await.unwrap() })
}

#[test]
fn etcd_members_prove_their_quorum() {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd { folder: folder.path(), client_port: free_port(), peer_port: free_port() };
    let mut servers: Vec<Option<Server>> = (1..=3).map(|n| Some(etcd.start(n, &[1, 2, 3], "new", ""))).collect();
    let questions: Vec<_> = (1..=3).map(|n| etcd.question(n)).collect();
    for asked in &questions {
        until(asked, healthy);
    }

    let answers = ask_all(&live(), &questions);
    let leaders: Vec<_> = (0..3).filter(|&i| answers[i].leads == Some(true)).collect();
    assert!(answers.iter().all(healthy) && leaders.len() == 1, "{answers:?}");
    let leader = leaders[0];
    let url = |i: usize| format!("http://127.0.0.{}:{}", i + 1, etcd.client_port);
    let told = etcd_admin(url(0), async |mut client| client.status().await);
    let list = etcd_admin(url(0), async |mut client| client.member_list().await);
    let named = list.members().iter().find(|member| member.id() == told.leader()).unwrap().name().to_owned();
    assert_eq!(named, format!("etcd0{}", leader + 1));

    // Somebody else at that place.
    let balanced = Question { address: "localhost".to_owned(), ..etcd.question(3) };
    assert_unknown(&ask(&balanced), "member etcd01 answers in its place");

    // A follower that hangs, while the others are seen to be fine.
    let follower = (leader + 1) % 3;
    let other = 3 - leader - follower;
    servers[follower].as_ref().unwrap().signal(Signal::SIGSTOP);
    assert_silent(&questions[follower]);
    assert_eq!(ask(&questions[leader]), Evidence::healthy().leading(true));
    assert_eq!(ask(&questions[other]), Evidence::healthy().leading(false));
    servers[follower].as_ref().unwrap().signal(Signal::SIGCONT);
    until(&questions[follower], healthy);

    // A learner.
    let peer = format!("http://127.0.0.4:{}", etcd.peer_port);
    let options = etcd_client::MemberAddOptions::new().with_is_learner();
    etcd_admin(url(leader), async |mut client| {
        // etcd takes none while one of its members was away a moment ago.
        while let Err(error) = client.member_add([peer.as_str()], Some(options.clone())).await {
            assert!(error.to_string().contains("unhealthy cluster"), "{error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    });
    let learner = etcd.start(4, &[1, 2, 3, 4], "existing", "");
    let evidence = until(&etcd.question(4), |evidence| matches!(evidence.health, Health::Unhealthy(_)));
    assert_unhealthy(&evidence, "learner");
    assert_eq!(ask(&questions[leader]), Evidence::healthy().leading(true));
    drop(learner);

    // A member of another cluster at the place of a third one that is away.
    let foreign = etcd.start(5, &[5], "new", "");
    servers[follower] = None;
    assert_unknown(&ask(&questions[follower]), "refused");
    let mut stranger = etcd.question(5);
    stranger.members[follower] = (stranger.member.clone(), stranger.address.clone());
    let evidence = until(&stranger, |evidence| matches!(evidence.health, Health::Unhealthy(_)));
    assert_unhealthy(&evidence, "most members belong to");
    let own = Question { members: stranger.members.clone(), ..questions[other].clone() };
    assert_eq!(until(&own, healthy), Evidence::healthy().leading(false));
    drop(foreign);

    // An alarm.
    let none = etcd_client::AlarmAction::Activate;
    let space = etcd_client::AlarmType::Nospace;
    etcd_admin(url(other), async |mut client| client.alarm(none, space, None).await);
    assert_unhealthy(&ask(&questions[other]), "NOSPACE");
    let none = etcd_client::AlarmAction::Deactivate;
    etcd_admin(url(other), async |mut client| client.alarm(none, space, None).await);
    until(&questions[other], healthy);

    // Without its quorum the last one knows no leader, or cannot read.
    servers[leader] = None;
    let short = Question { timeout: Duration::from_secs(1), ..questions[other].clone() };
    // Its status still names the leader; no second opinion is asked for here, so only the read can tell.
    let evidence = ask(&Question { members: Vec::new(), ..short.clone() });
    assert!(matches!(evidence.health, Health::Unknown(_)), "{evidence:?}");
    let evidence = until(&short, |evidence| matches!(evidence.health, Health::Unhealthy(_)));
    assert_unhealthy(&evidence, "no leader");
}

#[test]
fn etcd_over_tls_and_with_users() {
    let (folder, pki) = (tempfile::tempdir().unwrap(), Pki::new());
    let etcd = Etcd { folder: folder.path(), client_port: free_port(), peer_port: free_port() };
    let alone = |number| Question { members: Vec::new(), ..etcd.question(number) };
    let tls = format!(
        "--cert-file {} --key-file {} --trusted-ca-file {} --client-cert-auth",
        pki.path("server.crt"),
        pki.path("server.key"),
        pki.path("ca.crt")
    );
    let _secure = etcd.start(1, &[1], "new", &tls);
    let asked = Question { tls: pki.client(), ..alone(1) };
    assert_eq!(until(&asked, healthy), Evidence::healthy().leading(true));
    for wrong in [pki.anonymous(), Pki::new().client(), None] {
        let evidence = ask(&Question { tls: wrong, timeout: Duration::from_millis(600), ..asked.clone() });
        assert!(matches!(evidence.health, Health::Unknown(_)), "{evidence:?}");
    }

    let _plain = etcd.start(2, &[2], "new", "");
    until(&alone(2), healthy);
    etcd_admin(format!("http://127.0.0.2:{}", etcd.client_port), async |mut client| {
        for user in ["root", "probe"] {
            client.user_add(user, "pw", None).await?;
        }
        client.role_add("root").await?;
        client.user_grant_role("root", "root").await?;
        client.auth_enable().await
    });
    // A user without any permission can still have the quorum confirm its read.
    let secret = Some(zeroize::Zeroizing::new("pw".to_owned()));
    let asked = Question { user: Some("probe".to_owned()), secret, ..alone(2) };
    assert_eq!(ask(&asked), Evidence::healthy().leading(true));
    assert!(matches!(ask(&alone(2)).health, Health::Unknown(_)), "nobody in particular asks");
    let wrong = Some(zeroize::Zeroizing::new("wrong".to_owned()));
    assert!(matches!(ask(&Question { secret: wrong, ..asked }).health, Health::Unknown(_)), "a wrong password");
}

#[test]
fn what_is_not_etcd_proves_nothing() {
    let asked = question(CheckKind::Etcd, answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    let evidence = ask(&Question { timeout: Duration::from_secs(1), ..asked });
    assert!(matches!(evidence.health, Health::Unknown(_)), "{evidence:?}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_silent(&question(CheckKind::Etcd, silent.local_addr().unwrap().port()));
}
