//! The probes of whole clusters against the real servers: Patroni with PostgreSQL and etcd, ZooKeeper (which speaks as ClickHouse
//! Keeper does), Kafka, and services behind HAProxy and Keepalived.
//!
//! What takes minutes and gigabytes is ignored by `cargo test`; `make test-gates` gets the servers and runs it, one at a time.
//! Never: a process or a namespace that outlives its test.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // starts servers and writes their files

mod asked;
mod machine;
#[path = "gates/voters.rs"]
mod voters;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use asked::*;
use converger::fleet::schema::CheckKind;
use converger::name::NodeName;
use converger::probe::{Evidence, Health, Listed, LiveProbe, Probe, Question, Ran};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn cache(folder: &str) -> PathBuf {
    let cache = std::env::var_os("CONVERGER_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"), PathBuf::from);
    let path = cache.join(folder);
    assert!(path.join("complete").is_file(), "{} is not there: tools/gate-servers gets it", path.display());
    path
}

/// What it prints; it must end well.
fn run(argv: &[&str]) -> String {
    let output = Command::new("timeout").args(["-k", "5", "120"]).args(argv).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{argv:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[track_caller]
fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(120), "not within two minutes: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn unhealthy(evidence: &Evidence) -> bool {
    matches!(evidence.health, Health::Unhealthy(_))
}

fn unknown(word: &str) -> impl Fn(&Evidence) -> bool {
    move |evidence| matches!(&evidence.health, Health::Unknown(why) if why.contains(word))
}

/// Numbers of the members that say that they lead.
fn leaders(of: &dyn Fn(usize) -> Question) -> Vec<usize> {
    (1..=3).filter(|&number| ask(&of(number)).leads == Some(true)).collect()
}

// Patroni

/// A program with everything that it starts, in a process namespace of its own, as a user without rights. It goes with the
/// thread that started it.
fn contained(argv: &[&str], log: &Path) -> Server {
    let log = std::fs::File::create(log).unwrap();
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"])
        // The first process of the namespace stays root: one that gives up its rights is no longer told to die.
        .args(["sh", "-c", "setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"; exit 1", "-"])
        .args(argv)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Server(child)
}

/// Processes of this machine whose command line has the words.
fn pids(words: &[&str]) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if words.iter().all(|word| line.contains(word)) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

struct Patroni<'a> {
    folder: &'a Path,
    etcd: u16,
    rest: u16,
    postgres: u16,
    bin: PathBuf,
}

impl Patroni<'_> {
    fn file(&self, number: usize) -> String {
        self.folder.join(format!("pg0{number}.yml")).display().to_string()
    }

    fn start(&self, number: usize) -> Server {
        let address = format!("127.0.0.{number}");
        let (folder, etcd, rest, postgres) = (self.folder.display(), self.etcd, self.rest, self.postgres);
        let text = format!(
            "scope: main\nname: pg0{number}\nnamespace: /service/\n\
             restapi: {{listen: '{address}:{rest}', connect_address: '{address}:{rest}'}}\n\
             etcd3: {{host: '127.0.0.1:{etcd}'}}\n\
             bootstrap:\n  \
               dcs: {{ttl: 20, loop_wait: 1, retry_timeout: 5, postgresql: {{parameters: {{wal_keep_size: 512MB}}}}}}\n  \
               initdb: [{{encoding: UTF8}}, {{locale: C}}, {{auth: md5}}]\n\
             postgresql:\n  \
               listen: '{address}:{postgres}'\n  connect_address: '{address}:{postgres}'\n  \
               data_dir: '{folder}/pg0{number}'\n  bin_dir: '{bin}'\n  pgpass: '{folder}/pgpass0{number}'\n  \
               authentication:\n    \
                 superuser: {{username: postgres, password: pw}}\n    \
                 replication: {{username: replicator, password: pw}}\n  \
               pg_hba: ['local all all md5', 'host all all 127.0.0.0/8 md5', 'host replication all 127.0.0.0/8 md5']\n  \
               parameters: {{unix_socket_directories: '{folder}', fsync: 'off', shared_buffers: 16MB, max_connections: 20}}\n",
            bin = self.bin.display(),
        );
        std::fs::write(self.file(number), text).unwrap();
        let program = cache("patroni-3.3.2").join("bin/patroni");
        contained(&[program.to_str().unwrap(), &self.file(number)], &self.folder.join(format!("pg0{number}.log")))
    }

    fn question(&self, number: usize) -> Question {
        Question { timeout: Duration::from_secs(10), ..of_three(CheckKind::Patroni, self.rest, "pg", number) }
    }

    fn control(&self, arguments: &[&str]) -> String {
        let program = cache("patroni-3.3.2").join("bin/patronictl");
        let file = self.file(1);
        run(&[&[program.to_str().unwrap(), "-c", &file], arguments].concat())
    }

    fn sql(&self, number: usize, text: &str) {
        let place = format!("host=127.0.0.{number} port={} user=postgres password=pw dbname=postgres", self.postgres);
        run(&["psql", "-qAt", &place, "-c", text]);
    }
}

/// Asks every 50 ms who is primary, until it is dropped; panics if there were ever two at the same time.
struct Observer(Arc<AtomicBool>, Option<std::thread::JoinHandle<usize>>);

impl Observer {
    fn watch(rest: u16) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let is_primary = move |number: &usize| {
            let path = Some("/primary".to_owned());
            healthy(&ask(&Question { path, ..of_three(CheckKind::Http, rest, "pg", *number) }))
        };
        let watch = std::thread::spawn(move || {
            let mut two = 0;
            while !ends.load(Ordering::Relaxed) {
                let primaries: Vec<usize> = (1..=3).filter(&is_primary).collect();
                // The first may have stepped down since it was asked.
                two += usize::from(primaries.len() > 1 && primaries.iter().all(&is_primary));
                std::thread::sleep(Duration::from_millis(50));
            }
            two
        });
        Self(over, Some(watch))
    }

    fn saw_two(mut self) -> usize {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap()
    }
}

/// G40
#[test]
#[ignore = "three PostgreSQL servers, about two minutes: make test-gates"]
fn patroni_members_prove_their_cluster() {
    let folder = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let home = folder.path().join("members");
    std::fs::create_dir(&home).unwrap();
    nix::unistd::chown(&home, Some(65534.into()), Some(65534.into())).unwrap();
    let etcd = Etcd { folder: folder.path(), client_port: free_port(), peer_port: free_port() };
    let _etcd = etcd.start(1, &[1], "new", "");
    let bin = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten().next().unwrap().path().join("bin");
    let patroni = Patroni { folder: &home, etcd: etcd.client_port, rest: free_port(), postgres: free_port(), bin };
    let of = |number| patroni.question(number);
    let alone = Question { members: vec![], ..etcd.question(1) };
    until(&alone, healthy);
    let mut members: Vec<Option<Server>> = vec![Some(patroni.start(1))];
    soon("pg01 leads", || leaders(&of) == [1]);
    members.extend([2, 3].map(|number| Some(patroni.start(number))));
    (1..=3).for_each(|number| drop(until(&of(number), healthy)));
    assert_eq!(leaders(&of), [1]);

    // Somebody else at that place.
    assert_unknown(&ask(&Question { address: "127.0.0.1".to_owned(), ..of(2) }), "member pg01 answers in its place");
    assert_unknown(&ask(&Question { port: Some(etcd.client_port), ..of(1) }), "127.0.0.1");

    // A standby that falls behind is free to go while the others are whole; one that the leader waits for is not.
    let data = home.join("pg03").display().to_string();
    let receiver = || {
        pids(&["walreceiver"])
            .into_iter()
            .find(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == Path::new(&data)))
    };
    let stopped = receiver().unwrap();
    kill(stopped, Signal::SIGSTOP).unwrap();
    let flood = "select pg_logical_emit_message(true, 'test', repeat('x', 60000000))";
    patroni.sql(1, flood);
    assert_unhealthy(&until(&of(3), unhealthy), "of the leader's WAL");
    assert_eq!(ask(&of(2)), Evidence::healthy().leading(false));
    assert_eq!(ask(&of(1)), Evidence::healthy().leading(true));
    kill(stopped, Signal::SIGCONT).unwrap();
    until(&of(3), healthy);

    // An operator has taken over.
    patroni.control(&["pause", "main", "--wait"]);
    (1..=3).for_each(|number| drop(until(&of(number), unknown("is paused"))));
    patroni.control(&["resume", "main", "--wait"]);
    (1..=3).for_each(|number| drop(until(&of(number), healthy)));

    // The leader needs a synchronous standby, once they are asked for.
    patroni.control(&["edit-config", "main", "--force", "-s", "synchronous_mode=true"]);
    let synchronous = || patroni.control(&["list", "main", "-f", "json"]).contains("Sync Standby");
    soon("a synchronous standby", synchronous);
    until(&of(1), healthy);

    // As a unit's `transfer` step says it, before the leader is stopped.
    let observer = Observer::watch(patroni.rest);
    patroni.control(&["switchover", "main", "--leader", "pg01", "--force"]);
    soon("another one leads", || leaders(&of).first().is_some_and(|&leader| leader != 1));
    (1..=3).for_each(|number| drop(until(&of(number), healthy)));
    let leader = leaders(&of)[0];
    assert_eq!(ask(&of(1)), Evidence::healthy().leading(false));
    assert_eq!(observer.saw_two(), 0, "two primaries at the same time");

    // One that hangs answers to nobody, whatever the cluster still says of it; one that is killed neither.
    let program = pids(&["bin/python", "patroni", &patroni.file(1)]).into_iter().max().unwrap();
    kill(program, Signal::SIGSTOP).unwrap();
    assert_silent(&of(1));
    kill(program, Signal::SIGCONT).unwrap();
    until(&of(1), healthy);
    let third = 6 - leader - 1;
    members[third - 1] = None;
    until(&of(third), unknown("refused"));
    assert_eq!(until(&of(1), healthy), Evidence::healthy().leading(false));
    assert_eq!(until(&of(leader), healthy), Evidence::healthy().leading(true));
    // The leader goes, too: without one nothing is proven.
    members[leader - 1] = None;
    assert_unknown(&until(&of(1), |evidence| !healthy(evidence)), "");
}

// ZooKeeper

struct ZooKeeper<'a> {
    folder: &'a Path,
    client: u16,
    peer: u16,
    election: u16,
}

impl ZooKeeper<'_> {
    /// Member `number` of those whose voices it can hear: the others stand at addresses where nobody is.
    fn start(&self, number: usize, hears: &[usize]) -> Server {
        let data = self.folder.join(number.to_string());
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("myid"), format!("{number}\n")).unwrap();
        let servers: String = (1..=3)
            .map(|n| {
                let net = if hears.contains(&n) { "127.0.0" } else { "127.9.9" };
                format!("server.{n}={net}.{n}:{}:{}\n", self.peer, self.election)
            })
            .collect();
        let file = data.join("zoo.cfg");
        let text = format!(
            "tickTime=500\ninitLimit=20\nsyncLimit=6\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.{number}\n\
             admin.enableServer=false\n4lw.commands.whitelist=mntr,conf,ruok\n{servers}",
            data.display(),
            self.client
        );
        std::fs::write(&file, text).unwrap();
        let libraries = cache("zookeeper-3.9.3").join("libs/*");
        let line = format!(
            "-Xmx96m -XX:+UseSerialGC -cp {} org.apache.zookeeper.server.quorum.QuorumPeerMain {}",
            libraries.display(),
            file.display()
        );
        Server::start(Path::new("java"), "tools/gate-servers", &words(&line))
    }

    fn question(&self, number: usize) -> Question {
        Question { id: Some(number as u64), ..of_three(CheckKind::Keeper, self.client, "zk", number) }
    }

    /// What `ruok` says there, as so many checks ask.
    fn ruok(&self, number: usize) -> String {
        let mut said = String::new();
        let mut stream = TcpStream::connect(format!("127.0.0.{number}:{}", self.client)).unwrap();
        stream.write_all(b"ruok").unwrap();
        stream.read_to_string(&mut said).unwrap();
        said
    }
}

/// G41
#[test]
#[ignore = "three JVMs, about a minute: make test-gates"]
fn zookeeper_members_prove_their_quorum() {
    let folder = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper { folder: folder.path(), client: free_port(), peer: free_port(), election: free_port() };
    let of = |number| zookeeper.question(number);
    let mut servers: Vec<Option<Server>> = (1..=3).map(|number| Some(zookeeper.start(number, &[1, 2, 3]))).collect();
    (1..=3).for_each(|number| drop(until(&of(number), healthy)));
    let led = leaders(&of);
    assert_eq!(led.len(), 1, "{led:?}");
    let leader = led[0];
    let (one, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);

    // Somebody else at that place.
    let elsewhere = Question { address: format!("127.0.0.{other}"), ..of(one) };
    assert_unknown(&ask(&elsewhere), &format!("member {other} answers in place of {one}"));

    // A follower that hangs: the leader gives it up, the rest is a quorum.
    servers[one - 1].as_ref().unwrap().signal(Signal::SIGSTOP);
    assert_silent(&of(one));
    assert_eq!(until(&of(other), healthy), Evidence::healthy().leading(false));
    assert_eq!(until(&of(leader), healthy), Evidence::healthy().leading(true));
    servers[one - 1].as_ref().unwrap().signal(Signal::SIGCONT);
    until(&of(one), healthy);

    // Its peers stand elsewhere for it: it says imok, and takes no part.
    servers[one - 1] = None;
    servers[one - 1] = Some(zookeeper.start(one, &[one]));
    let evidence = until(&of(one), unhealthy);
    assert_unhealthy(&evidence, "outside of the quorum");
    assert_eq!(zookeeper.ruok(one), "imok");

    // With nobody else a quorum, it is not known whose fault it is.
    servers[leader - 1] = None;
    until(&of(other), unknown("no quorum of the others"));
    assert_eq!(zookeeper.ruok(other), "imok");
    until(&of(one), unknown("no quorum of the others"));
}

// Kafka

struct Kafka<'a> {
    folder: &'a Path,
    client: u16,
    controller: u16,
}

impl Kafka<'_> {
    fn program(name: &str) -> String {
        cache("kafka-3.9.0").join("bin").join(name).display().to_string()
    }

    fn start(&self, number: usize) -> Server {
        let (client, controller) = (self.client, self.controller);
        let voters: Vec<String> = (1..=3).map(|n| format!("{n}@127.0.0.{n}:{controller}")).collect();
        let folder = self.folder.join(number.to_string());
        let file = self.folder.join(format!("{number}.properties"));
        let text = format!(
            "process.roles=broker,controller\nnode.id={number}\ncontroller.quorum.voters={}\n\
             listeners=CLIENT://127.0.0.{number}:{client},CONTROLLER://127.0.0.{number}:{controller}\n\
             advertised.listeners=CLIENT://127.0.0.{number}:{client}\ninter.broker.listener.name=CLIENT\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             log.dirs={}\ndefault.replication.factor=3\nmin.insync.replicas=2\nnum.network.threads=2\nnum.io.threads=2\n",
            voters.join(","),
            folder.display()
        );
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        if !folder.join("meta.properties").exists() {
            let format = Self::program("kafka-storage.sh");
            run(&[&format, "format", "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAA", "--config", &file]);
        }
        // Not the script: the server itself is stopped by its id.
        let libraries = cache("kafka-3.9.0").join("libs/*");
        let line = format!(
            "-Xmx256m -XX:+UseSerialGC -Dkafka.logs.dir={} -cp {} kafka.Kafka {file}",
            self.folder.display(),
            libraries.display()
        );
        Server::start(Path::new("java"), "tools/gate-servers", &words(&line))
    }

    fn question(&self, kind: CheckKind, number: usize) -> Question {
        let tool = if kind == CheckKind::KafkaQuorum { "kafka-metadata-quorum.sh" } else { "kafka-topics.sh" };
        Question {
            id: Some(number as u64),
            ids: (1..=3).map(|id| (NodeName::new(format!("kafka0{id}")), id)).collect(),
            run: vec![Self::program(tool)],
            timeout: Duration::from_secs(60),
            ..of_three(kind, self.client, "kafka", number)
        }
    }
}

/// The tools as a node runs them, within their time.
fn with_tools() -> LiveProbe {
    LiveProbe {
        run: Arc::new(|argv, _, within| {
            let seconds = within.as_secs_f64().to_string();
            let output = Command::new("timeout").arg(&seconds).args(argv).stdin(Stdio::null()).output();
            let output = output.map_err(|error| error.to_string())?;
            let code = output.status.code().filter(|code| *code != 124).ok_or("took too long")?;
            Ok(Ran { code, stdout: String::from_utf8_lossy(&output.stdout).into_owned() })
        }),
        ..live()
    }
}

/// G41
#[test]
#[ignore = "three brokers, some minutes: make test-gates"]
fn kafka_members_prove_their_quorum_and_their_replicas() {
    let folder = tempfile::tempdir().unwrap();
    let kafka = Kafka { folder: folder.path(), client: free_port(), controller: free_port() };
    let probe = with_tools();
    let ask = |question: &Question| probe.ask(question);
    let until = |question: &Question, wanted: &dyn Fn(&Evidence) -> bool| {
        let mut last = ask(question);
        soon("Kafka says so", || {
            last = ask(question);
            wanted(&last)
        });
        last
    };
    let quorum = |number| kafka.question(CheckKind::KafkaQuorum, number);
    let isr = |number| kafka.question(CheckKind::KafkaIsr, number);
    let mut servers: Vec<Option<Server>> = (1..=3).map(|number| Some(kafka.start(number))).collect();
    (1..=3).for_each(|number| drop(until(&quorum(number), &healthy)));
    let led: Vec<usize> = (1..=3).filter(|&number| ask(&quorum(number)).leads == Some(true)).collect();
    assert_eq!(led.len(), 1, "{led:?}");
    let leader = led[0];
    let (one, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);

    let place = format!("127.0.0.{leader}:{}", kafka.client);
    let topics = Kafka::program("kafka-topics.sh");
    run(&[&topics, "--bootstrap-server", &place, "--create", "--topic", "orders", "--partitions", "6"]);
    (1..=3).for_each(|number| drop(until(&isr(number), &healthy)));

    // A voter that nobody declared.
    let two = Question { ids: quorum(one).ids[..2].to_vec(), ..quorum(one) };
    assert_eq!(ask(&two).lists.unwrap().strangers, ["controller 3"]);

    // One hangs: it answers to nobody, and the leader sees it fall behind; the others are as they were.
    servers[one - 1].as_ref().unwrap().signal(Signal::SIGSTOP);
    let silent = Question { timeout: Duration::from_secs(8), ..quorum(one) };
    assert!(matches!(ask(&silent).health, Health::Unknown(_)));
    let as_seen = |question: Question| Question { address: format!("127.0.0.{leader}"), ..question };
    let evidence = until(&as_seen(quorum(one)), &|evidence| unhealthy(evidence));
    assert_unhealthy(&evidence, "caught up");
    assert_unhealthy(&until(&as_seen(isr(one)), &|evidence| unhealthy(evidence)), "wait for broker");
    let lists = ask(&quorum(leader)).lists;
    assert_eq!(lists.as_ref().map(|lists| (lists.members.len(), lists.strangers.len())), Some((3, 0)));
    assert_eq!(ask(&quorum(leader)), Evidence::healthy().leading(true).listing(lists.clone()));
    assert_eq!(ask(&quorum(other)), Evidence::healthy().leading(false).listing(lists));
    assert_eq!(ask(&isr(other)), Evidence::healthy());
    servers[one - 1].as_ref().unwrap().signal(Signal::SIGCONT);
    (1..=3).for_each(|number| drop(until(&quorum(number), &healthy)));
    (1..=3).for_each(|number| drop(until(&isr(number), &healthy)));

    // Two are gone: the last one proves nothing.
    servers[one - 1] = None;
    servers[leader - 1] = None;
    let short = Question { timeout: Duration::from_secs(15), ..quorum(other) };
    until(&short, &|evidence| matches!(evidence.health, Health::Unknown(_)));
}

// Services behind HAProxy

/// A service that answers who it is, and at /healthz whether it wants requests: 404 while the mark is there.
fn service(address: &str, port: u16, mark: PathBuf, served: Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address, port)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let _ = reader.read_line(&mut line);
            while reader.read_line(&mut String::new()).is_ok_and(|length| length > 2) {}
            if line.starts_with("GET / ") {
                served.fetch_add(1, Ordering::SeqCst);
            }
            let drains = line.contains("/healthz") && mark.exists();
            let status = if drains { "404 Not Found" } else { "200 OK" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
}

/// The lines of a fenced block of the manual's page on restart locks that has this word in its first line.
fn from_the_manual(word: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/restart-locks.md");
    let text = std::fs::read_to_string(page).unwrap();
    let blocks = text.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let found = blocks.map(|(_, block)| block).find(|block| block.lines().take(3).any(|line| line.contains(word)));
    found.unwrap_or_else(|| panic!("no example with {word}")).to_owned()
}

fn haproxy_says(socket: &Path, command: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "{command}").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn a_service_behind_haproxy_is_drained_before_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let (front, back) = (free_port(), free_port());
    let mark = |number| folder.path().join(format!("run{number}/draining"));
    let served = [1, 2].map(|number| {
        let served = Arc::new(AtomicUsize::new(0));
        std::fs::create_dir_all(mark(number).parent().unwrap()).unwrap();
        service(&format!("127.0.0.{number}"), back, mark(number), Arc::clone(&served));
        served
    });
    let socket = folder.path().join("admin.sock");
    let file = folder.path().join("haproxy.cfg");
    let text = format!(
        "global\n  stats socket {} mode 600 level admin\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 9s\n  \
         timeout server 9s\nfrontend in\n  bind 127.0.0.1:{front}\n  default_backend app\n{}\n  \
         server app1 127.0.0.1:{back}\n  server app2 127.0.0.2:{back}\n",
        socket.display(),
        from_the_manual("backend app").trim_end()
    );
    std::fs::write(&file, text).unwrap();
    let arguments = ["-db".to_owned(), "-f".to_owned(), file.display().to_string()];
    let _haproxy = Server::start(Path::new("/usr/sbin/haproxy"), "tools/test-servers", &arguments);
    let through = Question { path: Some("/".to_owned()), ..question(CheckKind::Http, front) };
    until(&through, healthy);
    let gate = |number: usize| Question {
        address: format!("127.0.0.{number}"),
        path: Some("/healthz".to_owned()),
        ..question(CheckKind::Http, back)
    };
    assert_eq!((ask(&gate(1)), ask(&gate(2))), (Evidence::healthy(), Evidence::healthy()));

    // The step of the manual, with this test's place for its mark.
    let script = folder.path().join("app-drain");
    let text = from_the_manual("app-drain");
    assert!(text.contains("mark=/run/app/draining") && text.contains(":8080"), "{text}");
    let text = text.replace("/run/app/draining", &mark(1).display().to_string());
    std::fs::write(&script, text.replace(":8080", &format!(":{back}"))).unwrap();
    let script = script.display().to_string();
    run(&["sh", &script, "on"]);
    // HAProxy knows: nobody new comes.
    let before = served[0].load(Ordering::SeqCst);
    (0..20).for_each(|_| assert_eq!(ask(&through), Evidence::healthy()));
    assert_eq!(served[0].load(Ordering::SeqCst), before);
    assert!(served[1].load(Ordering::SeqCst) >= 20);
    assert_unhealthy(&ask(&gate(1)), "answers 404");
    assert!(haproxy_says(&socket, "show stat").lines().any(|line| line.contains("app,app1,") && line.contains("NOLB")));
    run(&["sh", &script, "off"]);
    soon("requests come again", || {
        ask(&through);
        served[0].load(Ordering::SeqCst) > before
    });
    assert_eq!(ask(&gate(1)), Evidence::healthy());

    // A step that cannot end takes back what it did: the service goes on.
    let busy = TcpStream::connect(("127.0.0.1", back)).unwrap();
    let text = std::fs::read_to_string(&script).unwrap().replace("seq 100", "seq 2");
    std::fs::write(&script, text).unwrap();
    let output = Command::new("sh").args([&script, "on"]).output().unwrap();
    assert!(!output.status.success() && !mark(1).exists(), "{output:?}");
    drop(busy);

    // Where HAProxy runs on the same machine, its own socket does it, by its own words.
    let said = from_the_manual("set server");
    let commands: Vec<&str> = said.lines().filter(|line| line.starts_with("set server")).collect();
    assert_eq!(commands.len(), 2, "{commands:?}");
    haproxy_says(&socket, commands[0]);
    let before = served[0].load(Ordering::SeqCst);
    (0..20).for_each(|_| assert_eq!(ask(&through), Evidence::healthy()));
    assert_eq!(served[0].load(Ordering::SeqCst), before);
    haproxy_says(&socket, commands[1]);
    soon("requests come again", || {
        ask(&through);
        served[0].load(Ordering::SeqCst) > before
    });
}

// Keepalived

const VIP: &str = "10.77.0.100";

fn start_keepalived(name: &str, own: &str, peer: &str, priority: u8) -> Server {
    let folder = PathBuf::from("/run").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("keepalived.conf");
    let text = format!(
        "global_defs {{\n  router_id {name}\n}}\nvrrp_instance v {{\n  state BACKUP\n  interface {name}\n  \
         virtual_router_id 7\n  priority {priority}\n  advert_int 1\n  unicast_src_ip {own}\n  unicast_peer {{\n    {peer}\n  }}\n  \
         virtual_ipaddress {{\n    {VIP}/24 dev {name}\n  }}\n}}\n"
    );
    std::fs::write(&file, text).unwrap();
    let line = format!(
        "netns exec {name} keepalived -n -P -f {} -p {folder}/pid -r {folder}/vrrp.pid",
        file.display(),
        folder = folder.display()
    );
    Server::start(Path::new("ip"), "tools/test-servers", &words(&line))
}

#[test]
fn keepalived_moves_the_address_and_whoever_has_it_leads() {
    const NAME: &str = "keepalived_moves_the_address_and_whoever_has_it_leads";
    let asked = || ask(&Question { own: true, path: Some(VIP.to_owned()), ..question(CheckKind::VipHolder, 0) });
    // Inside of one of the two networks: what the probe says there.
    if std::env::var_os("CONVERGER_TEST_ASK").is_some() {
        writeln!(std::io::stdout(), "leads: {:?}", asked().leads).unwrap();
        return;
    }
    if !machine::is_inside(NAME) {
        return;
    }
    for name in ["lb1", "lb2"] {
        run(&["ip", "netns", "add", name]);
    }
    run(&["ip", "link", "add", "lb1", "netns", "lb1", "type", "veth", "peer", "name", "lb2", "netns", "lb2"]);
    for (name, address) in [("lb1", "10.77.0.1/24"), ("lb2", "10.77.0.2/24")] {
        run(&["ip", "-n", name, "addr", "add", address, "dev", name]);
        run(&["ip", "-n", name, "link", "set", name, "up"]);
        run(&["ip", "-n", name, "link", "set", "lo", "up"]);
    }
    let program = std::env::current_exe().unwrap().display().to_string();
    let leads = |name: &str| {
        let said = run(&[
            "ip",
            "netns",
            "exec",
            name,
            "env",
            "CONVERGER_TEST_ASK=1",
            &program,
            "--exact",
            NAME,
            "--nocapture",
        ]);
        said.contains("leads: Some(true)")
    };
    let first = start_keepalived("lb1", "10.77.0.1", "10.77.0.2", 150);
    soon("the first one has it", || leads("lb1"));
    let _second = start_keepalived("lb2", "10.77.0.2", "10.77.0.1", 100);
    assert!(leads("lb1") && !leads("lb2"));
    // It is told to stop, as systemd does: it hands the address over.
    first.signal(Signal::SIGTERM);
    soon("the second one has it", || leads("lb2") && !leads("lb1"));
}
