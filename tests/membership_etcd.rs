//! A real etcd whose members come and go by commits: the role's own script and actions, the real probe, the real holds.
//!
//! The script and the file of the first start are the template repository's, pointed at loopback addresses and without TLS.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]
#![allow(clippy::disallowed_methods)] // starts etcd, runs etcdctl and waits for both

mod asked;
mod fleet_of;
mod one_run;

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use asked::{Etcd, Server, etcd_admin, etcd_program, free_port, live};
use converger::clock::SystemClock;
use converger::fleet::Fleet;
use converger::host::fake::FakeHost;
use converger::host::{Done, Host, HostError, Observed, Query, Step};
use converger::ledger::Ledger;
use converger::lock::fake::FakeStore;
use converger::lock::store::{LockStore as _, Transaction, Write};
use converger::name::CommitId;
use converger::pipeline;
use converger::render::Renderer;
use converger::resource::UnitState;
use converger::resource::action::ActionState;
use converger::secrets::Unsealed;
use converger::settle::Vigil;
use fleet_of::{Files, spec};
use one_run::{Agent, Ran, Target};

const SCRIPT: &str = "/usr/local/libexec/datalyptica/etcd-member";
const NODES: [&str; 4] = ["etcd01", "etcd02", "etcd03", "etcd04"];

struct Machine {
    name: &'static str,
    number: usize,
    fake: FakeHost,
    dir: PathBuf,
    vigil: RefCell<Vigil>,
    server: RefCell<Option<Server>>,
}

struct Bed {
    dir: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    store: FakeStore,
    machines: Vec<Machine>,
}

/// A machine whose etcd and whose actions are real.
struct Real<'a> {
    bed: &'a Bed,
    machine: &'a Machine,
}

fn run(argv: &[String]) -> Option<bool> {
    let mut command = Command::new(argv.first()?);
    let status = command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).status();
    status.ok().map(|status| status.success())
}

impl Host for Real<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        let mut seen = self.machine.fake.observe(query)?;
        for spec in &query.actions {
            let done = match &spec.creates {
                Some(path) => Some(Path::new(path).exists()),
                None => run(&spec.unless),
            };
            let state = match done {
                Some(true) => ActionState::Done,
                Some(false) => ActionState::Needed,
                None => ActionState::Unguarded,
            };
            seen.actions.insert(spec.name.clone(), state);
        }
        Ok(seen)
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let machine = self.machine;
        if let Step::Stop { .. } = step {
            *machine.server.borrow_mut() = None;
        }
        let done = machine.fake.perform(step)?;
        match step {
            Step::Swap => {
                if let Some(script) = machine.fake.world.borrow().files.get(SCRIPT) {
                    std::fs::write(machine.dir.join("etcd-member"), &script.bytes).unwrap();
                    let mode = std::fs::Permissions::from_mode(0o755);
                    std::fs::set_permissions(machine.dir.join("etcd-member"), mode).unwrap();
                }
            }
            Step::Start { .. } => *machine.server.borrow_mut() = Some(self.bed.start(machine)),
            Step::Act(spec, _) => {
                let failed = || HostError::Command { command: spec.run.join(" "), why: "it fails".to_owned() };
                run(&spec.run).filter(|well| *well).ok_or_else(failed)?;
            }
            _ => {}
        }
        Ok(done)
    }
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = |(at, name): (usize, &'static str)| Machine {
            name,
            number: at + 1,
            fake: FakeHost::default(),
            dir: dir.path().join(name),
            vigil: RefCell::default(),
            server: RefCell::default(),
        };
        let machines: Vec<Machine> = NODES.into_iter().enumerate().map(machine).collect();
        for machine in &machines {
            std::fs::create_dir_all(&machine.dir).unwrap();
            let there = UnitState { loaded: true, ..UnitState::missing() };
            machine.fake.world.borrow_mut().units.insert("etcd.service".into(), there);
        }
        let store = FakeStore::new("one", Arc::new(SystemClock));
        Self { client_port: free_port(), peer_port: free_port(), store, machines, dir }
    }

    /// The template's text, for this bed.
    fn text(&self, name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("repo-template/roles/etcd").join(name);
        let tls = "--cacert /etc/datalyptica/pki/ca.crt --cert /etc/etcd/tls.pem --key /etc/etcd/tls.pem ";
        let etcdctl = etcd_program().with_file_name("etcdctl");
        let mut text = std::fs::read_to_string(path).unwrap();
        for (there, here) in [
            ("https://{{ node.fqdn }}", "http://{{ node.addresses.app }}"),
            ("https://{{ peer.fqdn }}", "http://{{ peer.addresses.app }}"),
            (":2379", &format!(":{}", self.client_port)),
            (":2380", &format!(":{}", self.peer_port)),
            (tls, ""),
            ("/opt/etcd/current/etcdctl", etcdctl.to_str().unwrap()),
            ("/data/etcd/member", &format!("{}/data/{{{{ node.id }}}}/member", self.dir.path().display())),
            (SCRIPT, &format!("{}/{{{{ node.name }}}}/etcd-member", self.dir.path().display())),
        ] {
            text = text.replace(there, here);
        }
        text
    }

    fn fleet(&self, states: [&str; 4], conf: &str) -> Fleet {
        let mut topology = "[tiers.t]\norder = 1\n[clusters.etcd]\ntier = \"t\"\nroles = [\"etcd\"]\n\
                            [clusters.etcd.groups.members]\nmembers = \"all\"\nquorum = \"majority\"\n\
                            max_unavailable = 1\n[clusters.etcd.ids]\n"
            .to_owned();
        NODES.iter().zip(1..).for_each(|(node, number)| topology += &format!("{node} = {number}\n"));
        for ((node, state), number) in NODES.iter().zip(states).zip(1..) {
            topology += &format!(
                "[nodes.{node}]\nclusters = [\"etcd\"]\naddresses = {{ app = \"127.0.0.{number}\" }}\n\
                 state = \"{state}\"\nsize = {{ vcpu = 1, memory_gib = 1, disk_gib = 1 }}\n"
            );
        }
        let role = self.text("role.toml");
        let (_, actions) = role.split_once("# A member that joins later").unwrap();
        let role = format!(
            "format = 1\n[groups.members]\nunit = \"etcd.service\"\ngate = \"health\"\nleader = \"health\"\n\
             settle_secs = 1\n[[file]]\npath = \"/etc/etcd/etcd.env\"\nsource = \"conf\"\nrestarts = [\"etcd.service\"]\n\
             [[file]]\npath = \"/etc/etcd/bootstrap.env\"\ntemplate = \"bootstrap.env\"\npolicy = \"seed\"\n\
             [[file]]\npath = \"{SCRIPT}\"\ntemplate = \"etcd-member.sh\"\nmode = \"0755\"\n\
             [[unit]]\nname = \"etcd.service\"\nenabled = true\nstate = \"running\"\nstart_secs_max = 60\n\
             [[check]]\nname = \"health\"\nkind = \"etcd\"\nnetwork = \"app\"\nport = {}\n#{actions}",
            self.client_port
        );
        Files::new()
            .with("environments/production/topology.toml", topology)
            .with("roles/etcd/role.toml", role)
            .with("roles/etcd/conf", conf)
            .with("roles/etcd/bootstrap.env", self.text("bootstrap.env"))
            .with("roles/etcd/etcd-member.sh", self.text("etcd-member.sh"))
            .fleet()
    }

    /// With what its seed says of the first start.
    fn start(&self, machine: &Machine) -> Server {
        let world = machine.fake.world.borrow();
        let seed = String::from_utf8(world.files["/etc/etcd/bootstrap.env"].bytes.clone()).unwrap();
        let value = |key: &str| seed.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
        let named = value("ETCD_INITIAL_CLUSTER").split(',').map(|peer| peer.split('=').next().unwrap());
        let numbers: Vec<usize> = named.map(|name| NODES.iter().position(|node| *node == name).unwrap() + 1).collect();
        let folder = self.dir.path().join("data");
        let etcd = Etcd { folder: &folder, client_port: self.client_port, peer_port: self.peer_port };
        std::fs::create_dir_all(&folder).unwrap();
        etcd.start(machine.number, &numbers, value("ETCD_INITIAL_CLUSTER_STATE"), "")
    }

    fn machine(&self, name: &str) -> &Machine {
        self.machines.iter().find(|machine| machine.name == name).unwrap()
    }

    fn run(&self, name: &str, fleet: &Fleet, seq: u64) -> Ran {
        let machine = self.machine(name);
        let spec = spec(fleet, machine.name);
        let renderer = Renderer::new(fleet);
        let mut desired = renderer.node(&spec, &Unsealed::without_keys()).unwrap_or_else(|p| panic!("{p:?}"));
        desired.strikes = pipeline::strikes(&renderer, fleet, &spec, Some(&self.store));
        let agent = Agent {
            host: &Real { bed: self, machine },
            store: Ok(&self.store),
            probe: &live(),
            clock: &SystemClock,
            dir: &machine.dir,
            ledger: &mut Ledger::open(&machine.dir.join("ledger.db")).unwrap(),
            vigil: &mut machine.vigil.borrow_mut(),
        };
        let commit = CommitId::new(format!("c{seq}"));
        one_run::run(agent, &Target { spec: &spec, renderer: &renderer, desired: &desired, commit, seq })
    }

    #[track_caller]
    fn rounds(&self, fleet: &Fleet, seq: u64, nodes: &[&str]) {
        let end = Instant::now() + Duration::from_secs(180);
        loop {
            let ran: Vec<Ran> = nodes.iter().map(|node| self.run(node, fleet, seq)).collect();
            if ran.iter().all(|ran| ran.converged) {
                return;
            }
            let reasons: Vec<&str> = ran.iter().map(Ran::reason).collect();
            assert!(Instant::now() < end, "{nodes:?} never converge to c{seq}: {reasons:?}");
            sleep(Duration::from_millis(200));
        }
    }

    /// Who has a vote, by what etcd says.
    fn voters(&self) -> Vec<String> {
        let url = format!("http://127.0.0.1:{}", self.client_port);
        let list = etcd_admin(url, async |mut client| client.member_list().await);
        let voters = list.members().iter().filter(|member| !member.is_learner());
        let mut voters: Vec<String> = voters.map(|member| member.name().to_owned()).collect();
        voters.sort();
        voters
    }

    fn holds(&self) -> usize {
        self.store.read(&["hold/"]).unwrap().entries.len()
    }
}

#[test]
fn etcd_members_join_leave_and_are_struck() {
    let bed = Bed::new();
    const JOINING: [&str; 4] = ["active", "active", "active", "joining"];
    const FOUR: [&str; 4] = ["active"; 4];
    const RETIRED: [&str; 4] = ["active", "active", "retired", "active"];
    const DEAD: [&str; 4] = ["active", "active", "retired", "retired"];

    // Three are born.
    bed.rounds(&bed.fleet(JOINING, "one"), 1, &NODES[..3]);
    assert_eq!(bed.voters(), NODES[..3]);

    // A fourth joins by a commit: listed as a learner, started, promoted; meanwhile nobody restarts.
    let joining = bed.fleet(JOINING, "one");
    let ran = bed.run("etcd04", &joining, 2);
    assert_eq!((ran.outcome.failed, bed.holds()), (vec![], 1));
    assert_eq!(bed.voters(), NODES);
    assert_eq!(bed.run("etcd01", &bed.fleet(JOINING, "two"), 3).reason(), "held-by-peer");
    bed.rounds(&joining, 2, &["etcd04"]);
    assert_eq!(bed.holds(), 0);
    assert!(bed.run("etcd04", &joining, 2).outcome.done.is_empty(), "a second run changes nothing");
    bed.rounds(&bed.fleet(FOUR, "one"), 4, &NODES);

    // One retires: stopped, removed; meanwhile nobody restarts.
    let retired = bed.fleet(RETIRED, "one");
    let ran = bed.run("etcd03", &retired, 5);
    assert_eq!((ran.outcome.failed, ran.outcome.deferred, bed.holds()), (vec![], vec![], 1));
    assert_eq!(bed.run("etcd01", &bed.fleet(RETIRED, "two"), 6).reason(), "held-by-peer");
    bed.rounds(&retired, 5, &["etcd03"]);
    assert_eq!((bed.voters(), bed.holds()), (vec!["etcd01".into(), "etcd02".into(), "etcd04".into()], 0));
    assert!(bed.machine("etcd03").server.borrow().is_none());
    assert!(bed.run("etcd03", &retired, 5).outcome.done.is_empty(), "a second run changes nothing");

    // One dies, and its commit calls it retired: while it is listed it counts, so nobody restarts.
    *bed.machine("etcd04").server.borrow_mut() = None;
    let reason = || bed.run("etcd02", &bed.fleet(DEAD, "two"), 7).reason().to_owned();
    let end = Instant::now() + Duration::from_secs(60);
    // An election may come first, in which nobody tells who has a vote.
    while reason() != "degraded" {
        assert!(Instant::now() < end, "{}", reason());
        sleep(Duration::from_millis(200));
    }
    let dead = bed.fleet(DEAD, "one");
    bed.run("etcd01", &dead, 7);
    assert_eq!((bed.voters().len(), bed.holds()), (3, 0), "nobody said that it is dead");

    // An operator says so: a healthy member strikes it, by the role's own action.
    let then = ["dead/etcd04", "n/etcd01/beat"].map(|key| Write::Put(key.to_owned(), b"x".to_vec())).to_vec();
    bed.store.commit(&Transaction { when: vec![], then }).unwrap();
    assert!(bed.run("etcd02", &dead, 7).outcome.done.is_empty(), "that is for the first of them");
    let ran = bed.run("etcd01", &dead, 7);
    let done: Vec<&String> = ran.outcome.done.iter().flat_map(|acted| &acted.lines).collect();
    assert_eq!(done, ["hold etcd.members: claimed, asked, armed", "action etcd-remove of etcd04"]);
    assert_eq!((bed.voters(), bed.holds()), (vec!["etcd01".to_owned(), "etcd02".to_owned()], 1));
    assert_eq!(bed.run("etcd02", &bed.fleet(DEAD, "two"), 8).reason(), "quorum-too-small", "two can spare nobody");
    bed.rounds(&dead, 7, &["etcd01"]);
    assert_eq!(bed.holds(), 0);
    assert!(bed.run("etcd01", &dead, 7).outcome.done.is_empty(), "a second run changes nothing");
}
