//! Changes that can take a whole node away: what they are, what they claim, how they are put back; and reboots.
//!
//! The machines are in memory, the journal is on a real disk; tests/fleet/risk.sh cuts real machines off.
//! Never: a sleep where a clock can be moved.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]

mod fleet_of;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use converger::apply::{self, Outcome, Reach, Tools};
use converger::clock::{Clock as _, FakeClock, SystemClock};
use converger::fleet::Fleet;
use converger::host::confirm;
use converger::host::fake::FakeHost;
use converger::host::linux::LinuxHost;
use converger::host::{Host as _, Query, Step, Words};
use converger::ledger::Ledger;
use converger::lock::fake::FakeStore;
use converger::lock::protocol;
use converger::lock::session::{RecordPhase, Session, read_record};
use converger::lock::store::{LockStore as _, Transaction, Write};
use converger::name::{CommitId, GroupId, HostPath, UnitName};
use converger::pipeline;
use converger::plan::changes::{self, Before};
use converger::plan::risk::{self, Area, Undo};
use converger::plan::{Plan, plan};
use converger::probe::Evidence;
use converger::probe::fake::FakeProbe;
use converger::render::Renderer;
use converger::resource::file::{Policy, Previous};
use converger::resource::{Content, Digest, FileSpec, UnitState};
use converger::secrets::Unsealed;
use converger::settings::{Rooted, Settings};
use converger::settle::{Settling, Vigil};
use fleet_of::{Files, spec};

/// D18: the table, with what only looks like it.
#[test]
fn what_can_take_a_node_away() {
    let paths = [
        ("/etc/systemd/network/10-app.network", Some(Area::Network)),
        ("/etc/netplan/01.yaml", Some(Area::Network)),
        ("/etc/nftables.conf", Some(Area::Firewall)),
        ("/etc/nftables.d/app.nft", Some(Area::Firewall)),
        ("/etc/sysctl.d/50-app.conf", Some(Area::Sysctl)),
        ("/etc/fstab", Some(Area::Mounts)),
        ("/etc/systemd/system/data.mount", Some(Area::Mounts)),
        ("/etc/systemd/system/nftables.service.d/x.conf", Some(Area::Firewall)),
        ("/etc/ssh/sshd_config.d/fleet.conf", Some(Area::Sshd)),
        ("/root/.ssh/authorized_keys", Some(Area::Sshd)),
        ("/etc/pam.d/sshd", Some(Area::Pam)),
        ("/etc/sudoers.d/admins", Some(Area::Sudo)),
        ("/etc/chrony/chrony.conf", Some(Area::Time)),
        ("/usr/local/share/ca-certificates/ours.crt", Some(Area::Trust)),
        ("/etc/resolv.conf", Some(Area::Resolver)),
        ("/etc/hosts", Some(Area::Resolver)),
        ("/etc/motd", None),
        ("/etc/hosts.allow.d/x", None),
        ("/etc/nftables.conf.bak", None),
        ("/etc/systemd/system/app.service", None),
        ("/srv/etc/ssh/sshd_config", None),
    ];
    for (path, area) in paths {
        assert_eq!(risk::area_of_path(&HostPath::from(path)), area, "{path}");
    }
    for (unit, area) in [
        ("ssh.service", Some(Area::Sshd)),
        ("firewalld.service", Some(Area::Firewall)),
        ("srv-data.mount", Some(Area::Mounts)),
        ("kafka.service", None),
    ] {
        assert_eq!(risk::area_of_unit(&UnitName::from(unit)), area, "{unit}");
    }
}

/// H6: what was not reached before proves nothing against a change.
#[test]
fn only_what_was_reached_before_can_be_lost() {
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(risk::lost(&set(&["a", "b"]), &set(&["b", "c"])), ["a"]);
    assert!(risk::lost(&set(&[]), &set(&[])).is_empty());
}

// ---- whole nodes ----

const KAFKA: &str = "kafka.service";

fn topology(alone: usize) -> String {
    let mut text =
        "[tiers.t]\norder = 1\n[clusters.kafka]\ntier = \"t\"\nroles = [\"kafka\"]\n[clusters.kafka.groups.g]\n\
                    members = \"all\"\nquorum = \"majority\"\nmax_unavailable = 1\n"
            .to_owned();
    let size = "size = { vcpu = 1, memory_gib = 1, disk_gib = 1 }\n";
    for n in 1..=3 {
        text += &format!("[nodes.n{n}]\nclusters = [\"kafka\"]\naddresses = {{ app = \"10.20.20.1{n}\" }}\n{size}");
    }
    for n in 1..=alone {
        text += &format!("[nodes.a{n}]\nclusters = []\naddresses = {{ app = \"10.20.30.{n}\" }}\n{size}");
    }
    text
}

const BASE: &str = "format = 1\n[[file]]\npath = \"/etc/motd\"\nsource = \"motd\"\n[[file]]\npath = \"/etc/nftables.conf\"\nsource = \"nft\"\n\
                    [[file]]\npath = \"/etc/default/grub\"\nsource = \"grub\"\nreboot = true\n";
const ROLE: &str = "format = 1\n[groups.g]\nunit = \"kafka.service\"\ngate = \"up\"\nsettle_secs = 10\n[[file]]\npath = \"/etc/kafka.conf\"\n\
                    source = \"conf\"\nrestarts = [\"kafka.service\"]\n[[unit]]\nname = \"kafka.service\"\nenabled = true\nstate = \"running\"\n\
                    [[check]]\nname = \"up\"\nkind = \"tcp\"\nport = 1\n";

struct Repository {
    motd: &'static str,
    nft: &'static str,
    grub: &'static str,
    alone: usize,
}

const FIRST: Repository = Repository { motd: "hello", nft: "accept", grub: "quiet", alone: 0 };

impl Repository {
    fn fleet(&self) -> Fleet {
        Files::new()
            .with("environments/production/topology.toml", topology(self.alone))
            .with("roles/base/role.toml", BASE)
            .with("roles/base/motd", self.motd)
            .with("roles/base/nft", self.nft)
            .with("roles/base/grub", self.grub)
            .with("roles/kafka/role.toml", ROLE)
            .with("roles/kafka/conf", "conf")
            .fleet()
    }
}

struct Node {
    name: String,
    host: FakeHost,
    dir: tempfile::TempDir,
    vigil: RefCell<Vigil>,
}

impl Node {
    fn file(&self, path: &str) -> String {
        let world = self.host.world.borrow();
        world.files.get(path).map(|file| String::from_utf8(file.bytes.clone()).unwrap()).unwrap_or_default()
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.host.world.borrow_mut().log)
    }

    fn phase(&self) -> Option<RecordPhase> {
        read_record(&self.dir.path().join("hold.json")).map(|record| record.phase)
    }
}

struct Bed {
    store: FakeStore,
    clock: Arc<FakeClock>,
    probe: FakeProbe,
    nodes: Vec<Node>,
}

struct Ran {
    outcome: Outcome,
    settling: Settling,
}

impl Ran {
    fn reason(&self) -> &str {
        let settling = self.settling.failed.iter().chain(&self.settling.settling);
        let first = self.outcome.failed.iter().chain(&self.outcome.deferred).map(|(_, because)| because);
        first.chain(settling).next().map_or("", |because| because.reason.as_str())
    }
}

impl Bed {
    /// Everybody has the first commit and has settled.
    fn new(alone: usize) -> Self {
        let clock = Arc::new(FakeClock::at(SystemClock.now()));
        let names = (1..=3).map(|n| format!("n{n}")).chain((1..=alone).map(|n| format!("a{n}")));
        let node = |name| Node {
            name,
            host: FakeHost::default(),
            dir: tempfile::tempdir().unwrap(),
            vigil: RefCell::default(),
        };
        let bed = Self {
            store: FakeStore::new("one", clock.clone()),
            clock,
            probe: FakeProbe::default(),
            nodes: names.map(node).collect(),
        };
        for node in &bed.nodes {
            let unit = UnitState { loaded: true, ..UnitState::missing() };
            node.host.world.borrow_mut().units.insert(KAFKA.into(), unit);
            node.host.world.borrow_mut().put("/etc/default/grub", "quiet");
        }
        let fleet = Repository { alone, ..FIRST }.fleet();
        assert!(bed.run_all(&fleet, 1), "{:?}", bed.holds());
        for node in &bed.nodes {
            let log = node.log();
            assert!(!log.iter().any(|line| line == "reboot"), "{}: {log:?}", node.name);
            Ledger::open(&node.dir.path().join("ledger.db")).unwrap().set_applied(&at(1), bed.clock.now(), "").unwrap();
        }
        bed
    }

    fn holds(&self) -> Vec<String> {
        let snapshot = self.store.read(&["hold/"]).unwrap();
        let phase = |value: &[u8]| serde_json::from_slice::<serde_json::Value>(value).unwrap()["phase"].clone();
        let hold = |entry: &converger::lock::store::Entry| {
            format!("{} {}", &entry.key[5..], phase(&entry.value).as_str().unwrap())
        };
        snapshot.entries.iter().map(hold).collect()
    }

    fn feel(&self) {
        for node in &self.nodes {
            let up = node.host.world.borrow().units.get(KAFKA).is_some_and(UnitState::is_running);
            self.probe.say(&node.name, if up { Evidence::healthy() } else { Evidence::unhealthy("down") });
        }
    }

    /// What `pipeline::run` does between render and publish.
    fn run(&self, node: &Node, fleet: &Fleet, seq: u64) -> Ran {
        self.with_plan(node, fleet, seq, |plan, session, observed, ledger, host| {
            ledger.set_booted(&plan.booted).unwrap();
            let settings = "node = \"n\"\nenvironment = \"production\"\ntrust = \"t\"\nidentities = []\n[store]\nkind = \"local\"\npath = \"s\"\n";
            let settings = Settings::parse(settings, Path::new("/agent.toml"), Rooted::Below).unwrap();
            let spec = spec(fleet, &node.name);
            if let Some((batch, blocked)) = plan.refused()
                && session.record().is_some_and(|record| record.batch == batch && record.phase == RecordPhase::Acting)
            {
                session.broken(&blocked.why).unwrap();
            }
            let settling =
                node.vigil.borrow_mut().look(session, &spec, observed, ledger, &settings, plan).unwrap();
            let stop = AtomicBool::new(false);
            // A firewall that says "drop" cuts the node off.
            let ask = |_: &BTreeSet<Area>| {
                if node.file("/etc/nftables.conf").contains("drop") {
                    BTreeSet::new()
                } else {
                    BTreeSet::from(["the store".to_owned(), "n9 of kafka.g".to_owned()])
                }
            };
            let pause = || self.clock.advance(Duration::from_secs(1));
            let reach = Reach { ask: &ask, pause: &pause };
            let mut tools = Tools { host, ledger, session, stop: &stop, observed, reach: &reach };
            let outcome = apply::apply(plan, &mut tools).unwrap();
            let over = outcome.is_converged() && settling.is_over() && session.record().is_none();
            let report = serde_json::json!({
                "node": node.name, "environment": "production", "agent": "0", "applied": over.then(|| at(seq)),
                "target": null, "state": "converged", "reason": "", "sentence": "", "notes": [], "drift_repaired": 0,
                "audit": [], "units": {}, "holds": [], "leads": [], "proven": ledger.proven().unwrap(),
                "since": "2026-01-01T00:00:00Z", "at": "2026-01-01T00:00:00Z",
            });
            self.put(&format!("n/{}/report", node.name), report.to_string().as_bytes());
            Ran { outcome, settling }
        })
    }

    fn put(&self, key: &str, value: &[u8]) {
        let put = Write::Put(key.to_owned(), value.to_vec());
        self.store.commit(&Transaction { when: Vec::new(), then: vec![put] }).unwrap();
    }

    fn with_plan<T>(
        &self,
        node: &Node,
        fleet: &Fleet,
        seq: u64,
        then: impl FnOnce(&Plan<'_>, &Session<'_>, &converger::host::Observed, &mut Ledger, &FakeHost) -> T,
    ) -> T {
        self.feel();
        let spec = spec(fleet, &node.name);
        let (renderer, secrets) = (Renderer::new(fleet), Unsealed::without_keys());
        let mut desired = renderer.node(&spec, &secrets).unwrap_or_else(|problems| panic!("{problems:?}"));
        desired.commit = Some(at(seq).commit);
        let mut ledger = Ledger::open(&node.dir.path().join("ledger.db")).unwrap();
        let known = ledger.known().unwrap();
        let observed = pipeline::observe(&node.host, &desired, &known, ledger.fingerprints()).unwrap();
        let plan = plan(&desired, &observed, &known, &spec.groups);
        ledger.keep_rolled_back(&risk::wanted(&plan, &desired)).unwrap();
        let session = Session {
            clusters: Vec::new(),
            windows: converger::pipeline::windows(&spec),
            me: &spec.node.name,
            store: Ok(&self.store),
            probe: &self.probe,
            clock: &*self.clock,
            boot_id: observed.boot_id.clone(),
            state_is_old: !known.units.is_empty(),
            record_path: node.dir.path().join("hold.json"),
            pin_path: node.dir.path().join("store.json"),
            circles: pipeline::circles(&renderer, &spec, &secrets, &known).unwrap(),
            commit: at(seq).commit,
            seq,
        };
        let result = then(&plan, &session, &observed, &mut ledger, &node.host);
        self.feel();
        result
    }

    /// Everybody in turn; true: until nobody has anything left to do.
    fn run_all(&self, fleet: &Fleet, seq: u64) -> bool {
        self.rounds(40, fleet, seq)
    }

    fn rounds(&self, rounds: usize, fleet: &Fleet, seq: u64) -> bool {
        for _ in 0..rounds {
            let mut open = false;
            for node in &self.nodes {
                let ran = self.run(node, fleet, seq);
                open |= !ran.outcome.is_converged() || !ran.settling.is_over() || node.phase().is_some();
                open |= !ran.outcome.done.is_empty();
            }
            self.clock.advance(Duration::from_secs(6));
            if !open {
                return true;
            }
        }
        false
    }
}

fn at(seq: u64) -> converger::report::At {
    converger::report::At { commit: CommitId::new(format!("{seq:040}")), seq, subject: String::new() }
}

/// G26: one transaction takes all groups of the node.
#[test]
fn a_firewall_is_confirmed_under_a_hold_of_the_whole_node() {
    let bed = Bed::new(0);
    let fleet = Repository { nft: "accept more", ..FIRST }.fleet();
    bed.run(&bed.nodes[0], &fleet, 2);
    assert_eq!(bed.holds(), ["kafka.g/0/n1 armed"]);
    let log = bed.nodes[0].log();
    assert_eq!(
        log,
        ["stage /etc/nftables.conf", "arm /etc/nftables.conf", "swap", "nft /etc/nftables.conf", "confirm"]
    );
    assert_eq!(bed.nodes[0].phase(), Some(RecordPhase::Settling), "its member must prove itself");
    assert!(bed.run_all(&fleet, 2));
    assert_eq!((bed.holds().len(), bed.nodes[2].file("/etc/nftables.conf").as_str()), (0, "accept more"));
}

#[test]
fn the_first_commit_claims_nothing_and_is_confirmed_all_the_same() {
    let bed = Bed::new(0);
    let fresh = Bed { nodes: Vec::new(), ..bed };
    let node = Node {
        name: "n1".to_owned(),
        host: FakeHost::default(),
        dir: tempfile::tempdir().unwrap(),
        vigil: RefCell::default(),
    };
    let ran = fresh.run(&node, &FIRST.fleet(), 1);
    assert!(ran.outcome.failed.is_empty(), "{}", ran.reason());
    let log = node.log();
    assert!(log.contains(&"confirm".to_owned()) && log.contains(&"arm /etc/nftables.conf".to_owned()), "{log:?}");
    assert_eq!((fresh.holds().len(), node.phase()), (0, None));
}

#[test]
fn what_is_harmless_in_the_same_role_does_not_wait() {
    let bed = Bed::new(0);
    bed.put("freeze/fleet", b"{}");
    let fleet = Repository { nft: "accept more", motd: "news", ..FIRST }.fleet();
    let ran = bed.run(&bed.nodes[0], &fleet, 2);
    assert_eq!(ran.reason(), "frozen");
    assert_eq!(bed.nodes[0].file("/etc/motd"), "news");
    assert_eq!(bed.nodes[0].file("/etc/nftables.conf"), "accept");
}

#[test]
fn machines_read_what_a_change_risks_and_which_tool_acts_on_it() {
    let bed = Bed::new(0);
    let fleet = Repository { nft: "accept more", motd: "news", ..FIRST }.fleet();
    let changes = bed.with_plan(&bed.nodes[0], &fleet, 2, |plan, _, _, _, _| changes::of(plan, &Before::Host));
    let changes = serde_json::to_value(changes).unwrap();
    let of = |kind: &str, name: &str| {
        let is = |change: &&serde_json::Value| change["kind"] == kind && change["name"] == name;
        changes.as_array().unwrap().iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}: {changes:#}"))
    };
    for kind in ["file", "activation"] {
        let change = of(kind, "/etc/nftables.conf");
        assert_eq!(change["risk"], serde_json::json!(["firewall"]), "{kind}");
        assert_eq!(change["hold"], serde_json::json!(["kafka.g"]), "{kind}");
    }
    assert_eq!(of("activation", "/etc/nftables.conf")["action"], "nft");
    assert_eq!(of("file", "/etc/motd").get("risk"), None);
}

#[test]
fn drift_is_put_back_at_once_and_without_a_hold() {
    let bed = Bed::new(0);
    bed.put("freeze/fleet", b"{}");
    bed.nodes[0].host.world.borrow_mut().put("/etc/nftables.conf", "somebody's");
    let ran = bed.run(&bed.nodes[0], &FIRST.fleet(), 1);
    assert_eq!((ran.reason(), ran.outcome.drifted.len()), ("", 1));
    assert_eq!(bed.nodes[0].log(), ["stage /etc/nftables.conf", "swap", "nft /etc/nftables.conf"]);
}

/// H6, D18: the decisions; that packets really stop is proved on machines.
#[test]
fn what_cuts_the_node_off_is_put_back_once_and_stops_the_others() {
    let bed = Bed::new(0);
    let bad = Repository { nft: "drop", motd: "news", ..FIRST }.fleet();
    assert!(!bed.rounds(8, &bad, 2), "it must not become good by waiting");
    assert_eq!(bed.holds(), ["kafka.g/0/n1 failed"]);
    for (node, motd) in bed.nodes.iter().zip(["news"; 3]) {
        assert_eq!((node.file("/etc/nftables.conf").as_str(), node.file("/etc/motd").as_str()), ("accept", motd));
    }
    let reasons: Vec<String> = bed.nodes.iter().map(|node| bed.run(node, &bad, 2).reason().to_owned()).collect();
    assert_eq!(reasons, ["rolled-back", "hold-failed", "hold-failed"]);
    let arms = |node: &Node| node.log().iter().filter(|line| line.starts_with("arm")).count();
    assert_eq!(bed.nodes.iter().map(arms).collect::<Vec<_>>(), [1, 0, 0]);
    // Another commit with the same firewall is no reason to cut it off again.
    let same = Repository { nft: "drop", motd: "other news", ..FIRST }.fleet();
    assert!(!bed.rounds(8, &same, 3));
    assert_eq!((bed.nodes.iter().map(arms).sum::<usize>(), bed.holds()), (0, vec!["kafka.g/0/n1 failed".to_owned()]));
    // The revert.
    assert!(bed.run_all(&Repository { motd: "other news", ..FIRST }.fleet(), 4), "{:?}", bed.holds());
    assert_eq!((bed.nodes.iter().map(arms).sum::<usize>(), bed.holds().len()), (0, 0));
    // On purpose, after the revert: it is tried again.
    assert!(!bed.rounds(8, &bad, 5));
    assert_eq!(bed.nodes.iter().map(arms).sum::<usize>(), 1);
}

#[test]
fn a_fix_after_a_roll_back_is_taken_without_a_revert() {
    let bed = Bed::new(0);
    bed.rounds(4, &Repository { nft: "drop", ..FIRST }.fleet(), 2);
    assert!(bed.run_all(&Repository { nft: "accept better", ..FIRST }.fleet(), 3), "{:?}", bed.holds());
    assert!(bed.nodes.iter().all(|node| node.file("/etc/nftables.conf") == "accept better"));
}

#[test]
fn what_cannot_be_armed_is_not_begun() {
    let bed = Bed::new(0);
    bed.nodes[0].host.world.borrow_mut().fail.push("arm".to_owned());
    let ran = bed.run(&bed.nodes[0], &Repository { nft: "accept more", ..FIRST }.fleet(), 2);
    assert_eq!(ran.reason(), "apply-failed");
    assert_eq!((bed.nodes[0].file("/etc/nftables.conf").as_str(), bed.holds().len()), ("accept", 0));
}

#[test]
fn a_timer_that_was_faster_wins() {
    let bed = Bed::new(0);
    bed.nodes[0].host.world.borrow_mut().fail.push("confirm".to_owned());
    let ran = bed.run(&bed.nodes[0], &Repository { nft: "accept more", ..FIRST }.fleet(), 2);
    assert_eq!((ran.reason(), bed.holds()), ("rolled-back", vec!["kafka.g/0/n1 failed".to_owned()]));
}

#[test]
fn nodes_in_no_group_go_a_tenth_at_a_time_and_the_first_alone() {
    let bed = Bed::new(17);
    let fleet = Repository { nft: "accept more", alone: 17, ..FIRST }.fleet();
    let alone: Vec<&Node> = bed.nodes.iter().filter(|node| node.name.starts_with('a')).collect();
    let lanes = |bed: &Bed| bed.holds().iter().filter(|hold| hold.starts_with("@environment/")).count();
    bed.run(alone[0], &fleet, 2);
    assert_eq!(bed.holds(), ["@environment/0/a1 armed"]);
    assert_eq!(bed.run(alone[1], &fleet, 2).reason(), "first-alone");
    bed.run(alone[0], &fleet, 2);
    assert_eq!(lanes(&bed), 0, "confirmed is settled where nobody needs it");
    // 20 nodes have two lanes.
    for node in &alone[1..] {
        bed.run(node, &fleet, 2);
        assert!(lanes(&bed) <= 2, "{:?}", bed.holds());
    }
    assert_eq!(lanes(&bed), 2);
    assert!(bed.run_all(&fleet, 2));
    assert!(alone.iter().all(|node| node.file("/etc/nftables.conf") == "accept more"));
}

#[test]
fn a_node_in_no_group_that_failed_stops_the_others_of_its_kind() {
    let bed = Bed::new(3);
    let bad = Repository { nft: "drop", alone: 3, ..FIRST }.fleet();
    assert!(!bed.rounds(8, &bad, 2));
    assert_eq!(bed.holds(), ["@environment/0/a1 failed", "kafka.g/0/n1 failed"]);
    assert!(bed.run_all(&Repository { alone: 3, ..FIRST }.fleet(), 3), "{:?}", bed.holds());
    assert!(bed.holds().is_empty());
}

// ---- reboots ----

fn reboots(node: &Node) -> usize {
    node.log().iter().filter(|line| *line == "reboot").count()
}

/// G26, F15: level-triggered, one at a time, under holds.
#[test]
fn a_change_that_needs_a_reboot_gets_one_and_only_one() {
    let bed = Bed::new(0);
    let fleet = Repository { grub: "quiet splash", ..FIRST }.fleet();
    bed.run(&bed.nodes[0], &fleet, 2);
    assert_eq!(bed.holds(), ["kafka.g/0/n1 armed"]);
    assert_eq!(bed.nodes[0].phase(), Some(RecordPhase::Acting), "over when the next boot has settled");
    assert_ne!(bed.run(&bed.nodes[1], &fleet, 2).reason(), "", "the others wait");
    assert!(bed.run_all(&fleet, 2), "{:?}", bed.holds());
    assert_eq!(bed.nodes.iter().map(reboots).collect::<Vec<_>>(), [1, 1, 1]);
    assert!(bed.holds().is_empty());
    assert!(bed.run_all(&fleet, 2));
    assert_eq!(bed.nodes.iter().map(reboots).sum::<usize>(), 0);
}

#[test]
fn a_revert_before_the_reboot_needs_none() {
    let bed = Bed::new(0);
    bed.put("freeze/fleet", b"{}");
    let node = &bed.nodes[0];
    let ran = bed.run(node, &Repository { grub: "quiet splash", ..FIRST }.fleet(), 2);
    assert_eq!((ran.reason(), node.file("/etc/default/grub").as_str()), ("frozen", "quiet splash"));
    let ran = bed.run(node, &FIRST.fleet(), 3);
    assert_eq!((ran.reason(), node.file("/etc/default/grub").as_str(), reboots(node)), ("", "quiet", 0));
}

#[test]
fn a_reboot_by_hand_is_enough() {
    let bed = Bed::new(0);
    bed.put("freeze/fleet", b"{}");
    let (node, fleet) = (&bed.nodes[0], Repository { grub: "quiet splash", ..FIRST }.fleet());
    assert_eq!(bed.run(node, &fleet, 2).reason(), "frozen");
    node.host.world.borrow_mut().boots += 1;
    assert_eq!((bed.run(node, &fleet, 2).reason(), reboots(node)), ("", 0));
}

#[test]
fn a_reboot_waits_for_everything_else() {
    let bed = Bed::new(0);
    let node = &bed.nodes[0];
    node.host.world.borrow_mut().others.insert("/etc/motd".into(), "directory");
    let fleet = Repository { grub: "quiet splash", motd: "news", ..FIRST }.fleet();
    let ran = bed.run(node, &fleet, 2);
    assert_eq!((ran.reason(), reboots(node), bed.holds().len()), ("unsafe-path", 0, 0));
}

/// F15: something writes the file at every boot.
#[test]
fn a_need_that_comes_back_ends_after_two_reboots() {
    let bed = Bed::new(0);
    let (node, fleet) = (&bed.nodes[0], Repository { grub: "quiet splash", ..FIRST }.fleet());
    let mut last = String::new();
    let mut seen = 0;
    for _ in 0..16 {
        let boots = node.host.world.borrow().boots;
        last = bed.run(node, &fleet, 2).reason().to_owned();
        if node.host.world.borrow().boots > boots {
            seen += 1;
            // Forgotten over the boot, as on a machine whose ledger does not know it as its own.
            let mut ledger = Ledger::open(&node.dir.path().join("ledger.db")).unwrap();
            let mut booted = ledger.booted().unwrap();
            booted.boot_id = format!("boot-{}", boots + 1);
            ledger.set_booted(&booted).unwrap();
        }
        bed.clock.advance(Duration::from_secs(6));
    }
    assert_eq!((seen, last.as_str()), (2, "reboot-failed"));
    assert_eq!(bed.holds(), ["kafka.g/0/n1 failed"]);
    assert_eq!(bed.run(&bed.nodes[1], &fleet, 2).reason(), "hold-failed");
    // A revert: nothing needs a reboot any more, and the hold goes back.
    assert!(bed.run_all(&FIRST.fleet(), 3), "{:?}", bed.holds());
    assert!(bed.holds().is_empty());
}

// ---- the journal, on a real disk ----

fn file(path: &str, bytes: &str, mode: u32) -> FileSpec {
    FileSpec {
        path: path.into(),
        content: Content::plain(bytes.as_bytes().to_vec()),
        owner: "root".to_owned(),
        group: "root".to_owned(),
        mode,
        policy: Policy::Enforce,
        validate: None,
    }
}

struct Disk {
    dir: tempfile::TempDir,
    host: LinuxHost<'static>,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = LinuxHost::sandbox(dir.path(), &SystemClock).unwrap();
        let disk = Self { dir, host };
        disk.write(&[file("/etc/nftables.conf", "old", 0o640)]);
        disk
    }

    fn write(&self, specs: &[FileSpec]) {
        let staged = specs.iter().map(|spec| (spec, Previous::Kept)).collect();
        self.host.perform(&Step::Stage(staged, Words::Told)).unwrap();
        self.host.perform(&Step::Swap).unwrap();
    }

    /// A file that was there, and one that was not, are live and not confirmed.
    fn exchange(&self) {
        let specs = [file("/etc/nftables.conf", "new", 0o600), file("/etc/nftables.d/more.nft", "more", 0o600)];
        let undo = Undo {
            batch: "base: firewall".to_owned(),
            digest: Digest::of(b"new"),
            contents: Vec::new(),
            files: specs.iter().map(|spec| (spec.path.clone(), false)).collect(),
            redo: Vec::new(),
            owned: Vec::new(),
            units: Vec::new(),
        };
        self.host.perform(&Step::Arm(&undo, specs.iter().collect())).unwrap();
        self.write(&specs);
        assert_eq!(self.seen(), (Some("new".to_owned()), Some("more".to_owned())));
    }

    fn seen(&self) -> (Option<String>, Option<String>) {
        let read = |path: &str| std::fs::read_to_string(self.dir.path().join(path)).ok();
        (read("etc/nftables.conf"), read("etc/nftables.d/more.nft"))
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("var/lib/converger")
    }

    fn is_old(&self) -> bool {
        let mode = std::fs::metadata(self.dir.path().join("etc/nftables.conf")).unwrap().permissions().mode() & 0o777;
        self.seen() == (Some("old".to_owned()), None) && mode == 0o640
    }
}

#[test]
fn what_is_not_confirmed_is_put_back_with_its_mode_and_what_was_not_there_goes() {
    let disk = Disk::new();
    disk.exchange();
    assert!(confirm::is_open(&disk.state()));
    disk.host.perform(&Step::RollBack("it is cut off")).unwrap();
    assert!(disk.is_old(), "{:?}", disk.seen());
    let undone = confirm::undone(&disk.state()).unwrap();
    assert_eq!((undone.why.as_str(), undone.undo.batch.as_str()), ("it is cut off", "base: firewall"));
    assert!(!confirm::is_open(&disk.state()));
    // Whoever comes late finds nothing, and cannot confirm.
    disk.host.perform(&Step::RollBack("late")).unwrap();
    assert!(disk.host.perform(&Step::Confirm).is_err());
    assert!(disk.is_old());
    disk.host.perform(&Step::Noted).unwrap();
    assert!(confirm::undone(&disk.state()).is_none());
}

#[test]
fn what_is_confirmed_stays_and_leaves_nothing_behind() {
    let disk = Disk::new();
    disk.exchange();
    disk.host.perform(&Step::Confirm).unwrap();
    disk.host.perform(&Step::RollBack("late")).unwrap();
    assert_eq!(disk.seen().0.as_deref(), Some("new"));
    assert!(!disk.state().join("confirm").exists() && confirm::undone(&disk.state()).is_none());
}

#[test]
fn one_who_died_while_putting_back_is_followed_by_another() {
    let disk = Disk::new();
    disk.exchange();
    let folder = disk.state().join("confirm");
    #[allow(clippy::disallowed_methods, reason = "what a crash leaves")]
    std::fs::rename(folder.join("journal.json"), folder.join("undoing.json")).unwrap();
    assert!(confirm::is_open(&disk.state()));
    assert!(disk.host.perform(&Step::Confirm).is_err(), "the decision has fallen");
    disk.host.perform(&Step::RollBack("again")).unwrap();
    assert!(disk.is_old());
}

#[test]
fn old_contents_are_for_root_alone() {
    let disk = Disk::new();
    disk.exchange();
    let folder = disk.state().join("confirm");
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
}

#[test]
fn a_sandbox_boots_anew() {
    let disk = Disk::new();
    let boot = || disk.host.observe(&Query::default()).unwrap().boot_id;
    let before = boot();
    disk.host.perform(&Step::Reboot).unwrap();
    assert_ne!(boot(), before);
}

#[test]
fn the_lanes_are_a_key_range_of_their_own() {
    let group = GroupId::from(converger::fleet::LANES);
    assert_eq!(protocol::hold_key(&group, 1, &"a1".into()), "hold/@environment/1/a1");
}

/// What nobody looked at was maybe not its own fault, twice it was.
#[test]
fn what_was_cut_short_is_tried_once_more_and_no_oftener() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
    let undo = Undo {
        batch: "base: firewall".to_owned(),
        digest: Digest::of(b"new"),
        contents: Vec::new(),
        files: Vec::new(),
        redo: Vec::new(),
        owned: Vec::new(),
        units: Vec::new(),
    };
    let refused = |ledger: &Ledger| ledger.known().unwrap().rolled_back.into_values().collect::<Vec<_>>();
    ledger.interrupted(&undo, "the machine booted").unwrap();
    assert_eq!(refused(&ledger), [] as [&str; 0]);
    ledger.interrupted(&undo, "the machine booted again").unwrap();
    assert_eq!(refused(&ledger), ["the machine booted again"]);
    // The commit wants something else; when it wants this again, it begins anew.
    ledger.keep_rolled_back(&BTreeSet::new()).unwrap();
    ledger.interrupted(&undo, "the machine booted").unwrap();
    assert_eq!(refused(&ledger), [] as [&str; 0]);
    ledger.undone(&undo, "it cut the node off").unwrap();
    assert_eq!(refused(&ledger), ["it cut the node off"], "what was looked at is refused at once");
}

// ---- review ----
fn two_risks(nft: &str, sysctl: &str) -> Fleet {
    Files::new()
        .with("environments/production/topology.toml", topology(0))
        .with("roles/base/role.toml", BASE)
        .with("roles/base/motd", "hello")
        .with("roles/base/nft", nft)
        .with("roles/base/grub", "quiet")
        .with("roles/kafka/role.toml", format!("{ROLE}\n[[file]]\npath = \"/etc/sudoers.d/k\"\nsource = \"sysctl\"\n"))
        .with("roles/kafka/conf", "conf")
        .with("roles/kafka/sysctl", sysctl)
        .fleet()
}

#[test]
fn nothing_else_is_armed_before_what_was_put_back_is_taken_note_of() {
    let disk = Disk::new();
    disk.exchange();
    disk.host.perform(&Step::RollBack("its tool failed")).unwrap();
    assert!(confirm::undone(&disk.state()).is_some());
    let specs = [file("/etc/ssh/sshd_config", "x", 0o600)];
    let undo = Undo {
        batch: "other".into(),
        digest: Digest::of(b"o"),
        contents: Vec::new(),
        files: vec![(specs[0].path.clone(), false)],
        redo: Vec::new(),
        owned: Vec::new(),
        units: Vec::new(),
    };
    assert!(disk.host.perform(&Step::Arm(&undo, specs.iter().collect())).is_err());
    assert!(confirm::undone(&disk.state()).is_some());
    disk.host.perform(&Step::Noted).unwrap();
    disk.host.perform(&Step::Arm(&undo, specs.iter().collect())).unwrap();
}

#[test]
fn what_did_not_become_live_is_no_drift_afterwards() {
    let bed = Bed::new(0);
    let node = &bed.nodes[0];
    node.log();
    node.host.world.borrow_mut().fail.push("nft".to_owned());
    let fleet = two_risks("drop", "k = 1");
    drop(bed.run(node, &fleet, 2));
    let first = node.log();
    assert!(first.iter().filter(|l| l.starts_with("arm")).count() == 2, "two risky batches armed in one run");
    assert_eq!(node.file("/etc/nftables.conf"), "accept");
    drop(bed.run(node, &fleet, 2));
    let second = node.log();
    assert!(
        !second.iter().any(|l| l == "swap") || second.iter().any(|l| l.starts_with("arm")),
        "the firewall that was put back goes live as drift, without hold and without confirmation"
    );
}

#[test]
fn what_was_put_back_is_not_tried_again_when_a_neighbour_comes_right() {
    let bed = Bed::new(0);
    let node = &bed.nodes[0];
    let base = BASE.replace("/etc/default/grub", "/etc/sudoers.d/g").replace("reboot = true\n", "");
    let fleet = |nft: &str, g: &str| {
        Files::new()
            .with("environments/production/topology.toml", topology(0))
            .with("roles/base/role.toml", base.clone())
            .with("roles/base/motd", "hello")
            .with("roles/base/nft", nft)
            .with("roles/base/grub", g)
            .with("roles/kafka/role.toml", ROLE)
            .with("roles/kafka/conf", "conf")
            .fleet()
    };
    bed.run_all(&fleet("accept", "a"), 2);
    node.log();
    bed.rounds(4, &fleet("drop", "b"), 3);
    let arms = node.log().iter().filter(|l| l.starts_with("arm")).count();
    assert_eq!(arms, 1);
    // An operator installs the new sudoers file by hand, as it is wanted.
    node.host.world.borrow_mut().put("/etc/sudoers.d/g", "b");
    bed.rounds(4, &fleet("drop", "b"), 3);
    let log = node.log();
    assert_eq!(
        log.iter().filter(|l| l.starts_with("arm")).count(),
        0,
        "the same firewall cut the node off again, same commit"
    );
}

#[test]
fn joined_batches_keep_what_their_roles_list() {
    use converger::plan::Batch;
    use converger::plan::batch::Phase;
    let spec = converger::resource::PackageSpec { name: "tool".to_owned(), version: "2".to_owned(), hold: false };
    let mut a = Batch::named("a".into(), None, Phase::Unit);
    let mut b = Batch::named("b".into(), None, Phase::Unit);
    b.packages.push((&spec, "1 -> 2".into()));
    b.listed.push(&spec);
    a.absorb(b);
    assert_eq!((a.packages.len(), a.listed.len()), (1, 1), "the package plan check refuses its own package for ever");
}
