//! The role's own files and actions change the voters of a real Kafka: born with three, one joins, one is retired, one
//! comes back without its disk, one dies.
//!
//! Never: a command that the role does not have, except to move partitions and to make a topic.
#![allow(clippy::print_stdout)] // what it took

use super::*;

const CLUSTER: [&str; 4] = ["kafka01", "kafka02", "kafka03", "kafka04"];

struct Brokers<'a> {
    folder: &'a Path,
    /// What takes the place of the role's: clients', brokers' and controllers' port.
    ports: [u16; 3],
}

fn address(number: usize) -> String {
    format!("127.77.0.{number}")
}

impl Brokers<'_> {
    fn own(&self, number: usize, path: &str) -> PathBuf {
        self.folder.join(CLUSTER[number - 1]).join(path)
    }

    /// Keys of a CA of this test, as the role wants them: the node's name in the certificate is who it is for Kafka.
    fn make_certificates(&self) {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(self.folder.join("ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        for number in 1..=CLUSTER.len() {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut leaf = rcgen::CertificateParams::new(vec![address(number)]).unwrap();
            leaf.distinguished_name = rcgen::DistinguishedName::new();
            leaf.distinguished_name.push(rcgen::DnType::CommonName, CLUSTER[number - 1]);
            let certificate = leaf.signed_by(&key, &issuer).unwrap();
            std::fs::create_dir_all(self.own(number, "etc")).unwrap();
            std::fs::write(self.own(number, "etc/tls.pem"), key.serialize_pem() + &certificate.pem()).unwrap();
        }
    }

    /// The files of all four as the template's fleet has them, kafka04 being a controller too, in these states; with this
    /// test's places instead of the role's.
    fn render(&self, states: [&str; 4]) {
        let fleet = self.folder.join("fleet");
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("repo-template");
        run(&["rm", "-rf", fleet.to_str().unwrap(), self.folder.join("rendered").to_str().unwrap()]);
        run(&["cp", "-r", template.to_str().unwrap(), fleet.to_str().unwrap()]);
        let file = fleet.join("environments/production/topology.toml");
        let mut topology =
            std::fs::read_to_string(&file).unwrap().replace("[\"kafka04\", \"kafka05\"]", "[\"kafka05\"]");
        for (name, state) in CLUSTER.iter().zip(states) {
            let head = format!("[nodes.{name}]\n");
            let (before, node) = topology.split_once(&head).unwrap();
            let node = node.replacen("labels = { disk", "labels = { controller = true, disk", 1);
            topology = match *name {
                "kafka04" => format!("{before}{head}state = \"{state}\"\n{node}"),
                _ => topology.replace(&head, &format!("{head}state = \"{state}\"\n")),
            };
        }
        std::fs::write(file, topology).unwrap();
        let out = self.folder.join("rendered");
        let mut argv = vec![env!("CARGO_BIN_EXE_converger"), "--repo", fleet.to_str().unwrap(), "render"];
        argv.extend(CLUSTER.iter().flat_map(|name| ["--node", *name]));
        argv.extend(["--out", out.to_str().unwrap()]);
        run(&argv);
        for number in 1..=CLUSTER.len() {
            for path in ["etc/kafka/server.properties", "etc/kafka/client-admin.properties"] {
                let to = format!("etc/{}", path.rsplit('/').next().unwrap());
                self.put(number, &out.join(CLUSTER[number - 1]).join(path), &to);
            }
            let script = out.join(CLUSTER[number - 1]).join("usr/local/libexec/datalyptica/kafka-member");
            self.put(number, &script, "kafka-member");
            std::fs::set_permissions(self.own(number, "kafka-member"), PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    fn put(&self, number: usize, from: &Path, to: &str) {
        std::fs::write(self.own(number, to), self.here(number, &std::fs::read_to_string(from).unwrap())).unwrap();
    }

    fn here(&self, number: usize, text: &str) -> String {
        let kafka = cache("kafka-3.9.0").display().to_string();
        let mut text = text
            .replace("/opt/kafka/current", &kafka)
            .replace("/usr/local/libexec/datalyptica", &self.own(number, "").display().to_string())
            .replace("/etc/datalyptica/pki", &self.folder.display().to_string())
            .replace("/etc/kafka", &self.own(number, "etc").display().to_string())
            .replace("/data/kafka/logs", &self.own(number, "data").display().to_string());
        for (port, own) in ["9092", "9091", "9093"].iter().zip(self.ports) {
            text = text.replace(&format!(":{port}"), &format!(":{own}"));
        }
        for (number, name) in CLUSTER.iter().enumerate() {
            let fqdn = format!("{name}.data.example.internal");
            text = text
                .replace(&fqdn, &address(number + 1))
                .replace(&format!("10.20.20.1{}", number + 1), &address(number + 1));
        }
        text
    }

    /// What the role says under this name, of the member and at the node: argument lists of `run` and of `unless`.
    fn action(&self, name: &str, member: usize, at: usize) -> [Vec<String>; 2] {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("repo-template/roles/kafka/role.toml");
        let role: toml::Table = std::fs::read_to_string(manifest).unwrap().parse().unwrap();
        let actions = role["action"].as_array().unwrap();
        let action = actions.iter().find(|action| action["name"].as_str() == Some(name)).unwrap();
        ["run", "unless"].map(|key| {
            let argv = action.get(key).and_then(toml::Value::as_array).cloned().unwrap_or_default();
            let argv = argv.iter().map(|word| self.here(at, word.as_str().unwrap()));
            argv.map(|word| word.replace("{{ node.name }}", CLUSTER[member - 1])).collect()
        })
    }

    /// As the agent does it: unless its guard is content; then it must be. Whether it was needed.
    fn act(&self, name: &str, member: usize, at: usize) -> bool {
        let [argv, unless] = self.action(name, member, at);
        let started = Instant::now();
        if exit(&unless).0 {
            return false;
        }
        let guarded = started.elapsed();
        let (good, said) = exit(&argv);
        assert!(good, "{argv:?}: {said}");
        let ran = started.elapsed() - guarded;
        assert!(exit(&unless).0, "{argv:?} says {said}, and {unless:?} does not see it");
        println!(
            "{name} for {} at {}: guard {guarded:.1?}, run {ran:.1?}: {said}",
            CLUSTER[member - 1],
            CLUSTER[at - 1]
        );
        true
    }

    fn format(&self, number: usize) {
        let (good, said) = exit(&self.action("format-storage", number, number)[0]);
        assert!(good, "{said}");
        println!("format-storage for {}: {said}", CLUSTER[number - 1]);
    }

    fn directory(&self, number: usize) -> String {
        let text = std::fs::read_to_string(self.own(number, "data/meta.properties")).unwrap();
        text.lines().find_map(|line| line.strip_prefix("directory.id=")).unwrap().to_owned()
    }

    fn start(&self, number: usize) -> Server {
        let libraries = cache("kafka-3.9.0").join("libs/*");
        let line = format!(
            "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dkafka.logs.dir={} -cp {} kafka.Kafka {}",
            self.own(number, "").display(),
            libraries.display(),
            self.own(number, "etc/server.properties").display()
        );
        Server::start(Path::new("java"), "tools/gate-servers", &words(&line))
    }

    fn question(&self, kind: CheckKind, number: usize) -> Question {
        let tool = if kind == CheckKind::KafkaQuorum { "kafka-metadata-quorum.sh" } else { "kafka-topics.sh" };
        let client = self.own(number, "etc/client-admin.properties").display().to_string();
        Question {
            member: NodeName::from(CLUSTER[number - 1]),
            address: address(number),
            id: Some(number as u64),
            ids: CLUSTER.iter().zip(1..).map(|(name, id)| (NodeName::from(*name), id)).collect(),
            run: vec![Kafka::program(tool), "--command-config".to_owned(), client],
            timeout: Duration::from_secs(20),
            ..question(kind, self.ports[0])
        }
    }

    /// A tool of Kafka's own, asked at this node.
    fn tool(&self, name: &str, at: usize, arguments: &[&str]) -> String {
        let client = self.own(at, "etc/client-admin.properties").display().to_string();
        let place = format!("{}:{}", address(at), self.ports[0]);
        run(&[&[&Kafka::program(name), "--bootstrap-server", &place, "--command-config", &client], arguments].concat())
    }
}

/// Whether it ends well, and what it says.
fn exit(argv: &[String]) -> (bool, String) {
    let output = Command::new("timeout").args(["-k", "5", "300"]).args(argv).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said)
        .lines()
        .filter(|line| !line.starts_with("log4j:"))
        .collect::<Vec<_>>()
        .join("\n");
    (output.status.success(), said)
}

fn listed(numbers: &[usize]) -> Option<Listed> {
    let members = numbers.iter().map(|&number| NodeName::from(CLUSTER[number - 1])).collect();
    Some(Listed { members, strangers: vec![] })
}

/// G41
#[test]
#[ignore = "four brokers, some minutes: make test-gates"]
fn kafka_voters_come_and_go_by_the_role_s_actions() {
    let folder = tempfile::tempdir().unwrap();
    let brokers = Brokers { folder: folder.path(), ports: [free_port(), free_port(), free_port()] };
    let began = Instant::now();
    let told = |what: &str| println!("{:5.1?} {what}", began.elapsed());
    let probe = with_tools();
    let quorum = |number| probe.ask(&brokers.question(CheckKind::KafkaQuorum, number));
    let isr = |number| probe.ask(&brokers.question(CheckKind::KafkaIsr, number));
    // Who leads them.
    let all_vote = |voters: &[usize]| {
        let mut leader = None;
        soon(&format!("voters are {voters:?}"), || {
            leader = None;
            let votes = |&number: &usize| {
                let said = quorum(number);
                leader = leader.or((said.leads == Some(true)).then_some(number));
                healthy(&said) && said.lists == listed(voters)
            };
            voters.iter().all(votes) && leader.is_some()
        });
        leader.unwrap()
    };
    brokers.make_certificates();

    // Born with three, all formatted with the same list. What is there already is left alone.
    brokers.render(["active", "active", "active", "joining"]);
    (1..=3).for_each(|number| brokers.format(number));
    let storage = brokers.directory(3);
    assert_eq!(storage.len(), 22);
    brokers.format(3);
    assert_eq!(brokers.directory(3), storage);
    let mut servers: Vec<Option<Server>> = (1..=3).map(|number| Some(brokers.start(number))).collect();
    all_vote(&[1, 2, 3]);
    told("born with three voters");
    assert!(!brokers.act("kafka-add", 2, 2), "it votes already");

    // A fourth: it knows nobody's list, starts as an observer, and is added by the role.
    brokers.format(4);
    assert_ne!(brokers.directory(4)[..11], storage[..11], "storage of its own");
    let list = "data/__cluster_metadata-0/00000000000000000000-0000000000.checkpoint";
    assert!(brokers.own(3, list).exists() && !brokers.own(4, list).exists());
    servers.push(Some(brokers.start(4)));
    let mut seen = quorum(4);
    soon("the fourth is seen", || {
        seen = quorum(4);
        unhealthy(&seen)
    });
    assert_eq!(seen, Evidence::unhealthy("4 is an observer, not a voter").leading(false).listing(listed(&[1, 2, 3])));
    told("the fourth observes");
    assert!(brokers.act("kafka-add", 4, 4));
    let leader = all_vote(&[1, 2, 3, 4]);
    told("the fourth votes");

    // The leader is retired. While it has replicas it is not let go; moved, they are somewhere else.
    brokers.tool("kafka-topics.sh", leader, &["--create", "--topic", "orders", "--partitions", "6"]);
    soon("in sync", || healthy(&isr(leader)));
    let mut states = ["active"; 4];
    states[leader - 1] = "draining";
    brokers.render(states);
    let [drain, _] = brokers.action("kafka-drain", leader, leader);
    let (good, said) = exit(&drain);
    assert!(
        !good && said.contains("has replicas of") && said.contains(" (orders-") && said.contains("first"),
        "{said}"
    );
    told(&said);
    let (topics, plan) = (folder.path().join("topics.json"), folder.path().join("plan.json"));
    std::fs::write(&topics, r#"{"version":1,"topics":[{"topic":"orders"}]}"#).unwrap();
    let stay: Vec<usize> = (1..=4).filter(|&number| number != leader).collect();
    let to = stay.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let reassign = |arguments: &[&str]| brokers.tool("kafka-reassign-partitions.sh", leader, arguments);
    let file = topics.to_str().unwrap();
    let generated = reassign(&["--topics-to-move-json-file", file, "--broker-list", &to, "--generate"]);
    std::fs::write(&plan, generated.rsplit("configuration\n").next().unwrap()).unwrap();
    let file = plan.to_str().unwrap();
    reassign(&["--reassignment-json-file", file, "--execute"]);
    soon("moved", || reassign(&["--reassignment-json-file", file, "--verify"]).matches("is completed").count() == 6);
    assert!(!brokers.act("kafka-drain", leader, leader), "it has nothing left");
    told("drained");
    servers[leader - 1].as_ref().unwrap().signal(Signal::SIGTERM);
    servers[leader - 1].as_mut().unwrap().0.wait().unwrap();
    servers[leader - 1] = None;
    told("stopped");
    assert!(brokers.act("kafka-remove", leader, leader));
    let short = Question { timeout: Duration::from_secs(5), ..brokers.question(CheckKind::KafkaQuorum, leader) };
    assert!(matches!(probe.ask(&short).health, Health::Unknown(_)));
    all_vote(&stay);
    told("the first leader is retired");
    let (one, other, third) = (stay[0], stay[1], stay[2]);

    // One loses its disk. It comes back under its own name and number, as somebody who joins.
    servers[one - 1] = None;
    let lost = brokers.directory(one);
    std::fs::remove_dir_all(brokers.own(one, "data")).unwrap();
    states[one - 1] = "joining";
    brokers.render(states);
    brokers.format(one);
    assert_ne!(brokers.directory(one), lost);
    servers[one - 1] = Some(brokers.start(one));
    assert!(brokers.act("kafka-add", one, one));
    all_vote(&stay);
    told("one has a new disk, and votes");

    // One dies, and is struck off the list by another.
    servers[other - 1] = None;
    states[one - 1] = "active";
    states[other - 1] = "draining";
    brokers.render(states);
    soon("it falls behind", || {
        let at_third = brokers.question(CheckKind::KafkaQuorum, third);
        unhealthy(&probe.ask(&Question { id: Some(other as u64), ..at_third }))
    });
    told("one is dead");
    assert!(brokers.act("kafka-remove", other, one));
    all_vote(&[one, third]);
    told("two are left, and agree");
}
