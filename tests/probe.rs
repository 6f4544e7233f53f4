//! The probes against the real servers they are made for: redis and its sentinel, a three-member etcd, and small
//! HTTP and TLS servers of our own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // starts servers and writes their files

mod asked;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asked::*;
use converger::fleet::schema::CheckKind;
use converger::name::NodeName;
use converger::probe::{Evidence, Health, Listed, LiveProbe, Probe, Question, Ran, Tls, ask_all};
use converger::resource::unit::Active;
use nix::sys::signal::Signal;

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
    let hung = Question { timeout: Duration::from_secs(3), ..question(CheckKind::Http, port) };
    let fine = question(CheckKind::Tcp, open.local_addr().unwrap().port());
    let started = Instant::now();
    let answers = ask_all(&live(), &[hung.clone(), hung.clone(), fine, hung]);
    assert!(started.elapsed() < Duration::from_secs(8), "one after the other they take nine: {:?}", started.elapsed());
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

#[test]
fn redis_tells_master_from_replica_and_counts_the_link() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let follows = format!("--requirepass pw --masterauth pw --replicaof 127.0.0.1 {port}");
    let master = redis(folder.path(), 1, port, "--requirepass pw --masterauth pw");
    let replicas = [2, 3].map(|number| redis(folder.path(), number, port, &follows));
    let secret = |word: &str| Some(zeroize::Zeroizing::new(word.to_owned()));
    let of = |number| Question { secret: secret("pw"), ..of_three(CheckKind::Redis, port, "redis", number) };

    assert_eq!(until(&of(1), healthy), Evidence::healthy().leading(true));
    assert_eq!(until(&of(2), healthy), Evidence::healthy().leading(false));
    assert_eq!(until(&of(3), healthy), Evidence::healthy().leading(false));
    let named = Question { user: Some("default".to_owned()), ..of(1) };
    assert_eq!(ask(&named), Evidence::healthy().leading(true));
    assert_unknown(&ask(&Question { secret: secret("wrong"), ..of(1) }), "does not let us in");
    assert_unknown(&ask(&Question { secret: None, ..of(1) }), "does not let us ask");

    replicas[0].signal(Signal::SIGSTOP);
    assert_silent(&of(2));
    replicas[0].signal(Signal::SIGCONT);
    assert_eq!(until(&of(2), healthy), Evidence::healthy().leading(false));

    // Its own fault: the others serve without it.
    let [second, third] = replicas;
    drop(second);
    let second = redis(folder.path(), 2, port, &follows.replace("--masterauth pw", "--masterauth wrong"));
    let evidence = until(&of(2), |evidence| matches!(evidence.health, Health::Unhealthy(_)));
    assert_unhealthy(&evidence, "its link to the master is down");
    assert_eq!(evidence.leads, Some(false));

    // Without a master it is not the replica that is at fault: one of them will be the next.
    drop(master);
    assert_unknown(&ask(&of(1)), "refused");
    assert_unknown(&until(&of(3), |evidence| !healthy(evidence)), "its link to the master is down");

    // A master that was demoted comes back with its old file: of two nobody knows which one is meant.
    drop((second, third));
    let _both = [2, 3].map(|number| redis(folder.path(), number, port, "--requirepass pw"));
    assert_unknown(&until(&of(2), |evidence| format!("{evidence:?}").contains("so is")), "redis03");
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
    let _server = redis(folder.path(), 1, 0, &tls);
    let asked = Question { tls: pki.client(), ..question(CheckKind::Redis, port) };
    assert_eq!(until(&asked, healthy), Evidence::healthy().leading(true));
    for wrong in [pki.anonymous(), Pki::new().client(), None] {
        let evidence = ask(&Question { tls: wrong, ..asked.clone() });
        assert!(matches!(evidence.health, Health::Unknown(_)), "{evidence:?}");
    }
}

fn sentinel(folder: &Path, number: usize, port: u16, watched: &str) -> Server {
    let file = folder.join(format!("sentinel{number}.conf"));
    let address = format!("127.0.0.{number}");
    std::fs::write(&file, format!("port {port}\nbind {address}\nsentinel announce-ip {address}\n{watched}")).unwrap();
    let arguments = [file.display().to_string(), "--sentinel".to_owned()];
    Server::start(Path::new("redis-server"), "tools/test-servers", &arguments)
}

#[test]
fn three_sentinels_agree_on_one_master_and_fail_it_over() {
    let (folder, port, sentinel_port) = (tempfile::tempdir().unwrap(), free_port(), free_port());
    let follows = format!("--replicaof 127.0.0.1 {port}");
    let master = redis(folder.path(), 1, port, "");
    let _replicas = [2, 3].map(|number| redis(folder.path(), number, port, &follows));
    let server = |number| of_three(CheckKind::Redis, port, "redis", number);
    (1..=3).for_each(|number| drop(until(&server(number), healthy)));

    let watched = format!(
        "sentinel monitor main 127.0.0.1 {port} 2\nsentinel down-after-milliseconds main 2000\n\
         sentinel failover-timeout main 10000\nsentinel monitor lonely 127.0.0.1 {} 9\n",
        free_port()
    );
    let sentinels: Vec<_> = (1..=3).map(|number| sentinel(folder.path(), number, sentinel_port, &watched)).collect();
    let about = |master: &str, number| Question {
        path: Some(master.to_owned()),
        ..of_three(CheckKind::Sentinel, sentinel_port, "redis", number)
    };
    (1..=3).for_each(|number| assert_eq!(until(&about("main", number), healthy), Evidence::healthy()));
    assert_unknown(&ask(&about("lonely", 1)), "NOQUORUM");
    assert_unhealthy(&ask(&about("nobody", 1)), "watches no master named nobody");
    assert_unknown(&ask(&Question { port: Some(port), ..about("main", 1) }), "unknown command");

    // The master hangs: its replicas do not notice for a minute, who asks it does.
    master.signal(Signal::SIGSTOP);
    assert_silent(&server(1));
    let leads = |number| ask(&server(number)).leads == Some(true);
    until(&server(2), |_| leads(2) || leads(3));
    let (new, other) = if leads(2) { (2, 3) } else { (3, 2) };
    assert_eq!(until(&server(other), healthy), Evidence::healthy().leading(false));
    (1..=3).for_each(|number| drop(until(&about("main", number), healthy)));
    // The old one wakes up as a master, until a sentinel tells it.
    master.signal(Signal::SIGCONT);
    assert_eq!(until(&server(1), healthy), Evidence::healthy().leading(false));
    assert_eq!(until(&server(new), healthy), Evidence::healthy().leading(true));

    sentinels[0].signal(Signal::SIGSTOP);
    assert_silent(&about("main", 1));
    assert_eq!(until(&about("main", 2), healthy), Evidence::healthy());
    sentinels[1].signal(Signal::SIGSTOP);
    assert_unknown(&until(&about("main", 3), |evidence| !healthy(evidence)), "");
}

// etcd

/// G8 G9
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
    let all =
        Some(Listed { members: [1, 2, 3].map(|n| NodeName::new(format!("etcd0{n}"))).into(), strangers: Vec::new() });
    assert!(answers.iter().all(|answer| answer.lists == all), "{answers:?}");
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
    assert_eq!(ask(&questions[leader]), Evidence::healthy().leading(true).listing(all.clone()));
    assert_eq!(ask(&questions[other]), Evidence::healthy().leading(false).listing(all.clone()));
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
    assert_eq!(ask(&questions[leader]), Evidence::healthy().leading(true).listing(all.clone()));
    drop(learner);

    // A member of another cluster at the place of one that is away, under its name.
    let elsewhere = tempfile::tempdir().unwrap();
    servers[follower] = None;
    assert_unknown(&ask(&questions[follower]), "refused");
    let foreign = Etcd { folder: elsewhere.path(), ..etcd }.start(follower + 1, &[follower + 1], "new", "");
    let evidence = until(&questions[follower], |evidence| matches!(evidence.health, Health::Unhealthy(_)));
    assert_unhealthy(&evidence, "most members belong to");
    assert_eq!(until(&questions[other], healthy), Evidence::healthy().leading(false).listing(all.clone()));
    drop(foreign);

    // A voter that the topology does not declare.
    let named = |i: usize| questions[other].members[i].clone();
    let two = Question { members: vec![named(leader), named(other)], ..questions[other].clone() };
    assert_eq!(ask(&two).lists.unwrap().strangers, [format!("etcd0{}", follower + 1)]);

    // An alarm.
    let none = etcd_client::AlarmAction::Activate;
    let space = etcd_client::AlarmType::Nospace;
    etcd_admin(url(other), async |mut client| client.alarm(none, space, None).await);
    // It is one of all of them, and each still votes.
    assert_unknown(&ask(&questions[other]), "NOSPACE");
    assert_unknown(&ask(&questions[leader]), "NOSPACE");
    let none = etcd_client::AlarmAction::Deactivate;
    etcd_admin(url(other), async |mut client| client.alarm(none, space, None).await);
    until(&questions[other], healthy);

    // Without its quorum the last one knows no leader, or cannot read.
    servers[leader] = None;
    let short = Question { timeout: Duration::from_secs(1), ..questions[other].clone() };
    // Its status still names the leader; no second opinion is asked for here, so only the read can tell.
    let evidence = ask(&Question { members: Vec::new(), ..short.clone() });
    assert!(matches!(evidence.health, Health::Unknown(_)), "{evidence:?}");
    let evidence = until(&short, |evidence| format!("{evidence:?}").contains("leader, nor"));
    assert_unknown(&evidence, "has no leader, nor have most members");
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
