//! Members that come and go by commits: what is run on which node, in which order, under whose hold, and when that ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]

mod fleet_of;
mod one_run;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::Arc;
use std::time::Duration;

use converger::clock::{Clock as _, FakeClock, SystemClock};
use converger::fleet::{Fleet, MemberChange};
use converger::host::fake::FakeHost;
use converger::host::{Done, Host, HostError, Observed, Query, Step};
use converger::ledger::Ledger;
use converger::lock::fake::FakeStore;
use converger::lock::protocol;
use converger::lock::session::{Record, RecordPhase, read_record};
use converger::lock::store::{LockStore as _, Transaction, Write};
use converger::name::{CommitId, GroupId, NodeName};
use converger::pipeline;
use converger::plan::plan;
use converger::plan::show::{self, Paint};
use converger::probe::fake::FakeProbe;
use converger::probe::{Evidence, Listed};
use converger::render::Renderer;
use converger::resource::UnitState;
use converger::secrets::Unsealed;
use converger::settle::Vigil;
use fleet_of::{Files, spec};
use one_run::{Agent, Death, Ran, Target};

const UNIT: &str = "store.service";
const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
const ROLE: &str = r#"
format = 1
[groups.members]
unit = "store.service"
gate = "up"
settle_secs = 10
[[file]]
path = "/etc/store.conf"
source = "conf"
restarts = ["store.service"]
[[unit]]
name = "store.service"
enabled = true
state = "running"
[[check]]
name = "up"
kind = "tcp"
port = 1
[[action]]
name = "promote"
on = "join"
run = ["promote"]
unless = ["votes"]
[[action]]
name = "add"
on = "join"
run = ["add"]
unless = ["is-added"]
before = ["store.service"]
[[action]]
name = "remove"
on = "leave"
run = ["remove", "{{ node.name }}"]
unless = ["gone"]
[[action]]
name = "evacuate"
on = "drain"
run = ["evacuate"]
unless = ["empty"]
"#;

/// The fleet with n4 in this state.
fn fleet(n4: &str, conf: &str) -> Fleet {
    let mut topology = "[tiers.t]\norder = 1\n[clusters.store]\ntier = \"t\"\nroles = [\"store\"]\n\
                        [clusters.store.groups.members]\nmembers = \"all\"\nquorum = \"majority\"\nmax_unavailable = 1\n"
        .to_owned();
    for (at, node) in NODES.iter().enumerate() {
        let state = if *node == "n4" { n4 } else { "active" };
        topology += &format!(
            "[nodes.{node}]\nclusters = [\"store\"]\naddresses = {{ app = \"10.20.0.{}\" }}\nstate = \"{state}\"\n\
             size = {{ vcpu = 1, memory_gib = 1, disk_gib = 1 }}\n",
            at + 1
        );
    }
    let files = Files::new().with("environments/production/topology.toml", topology);
    files.with("roles/store/role.toml", ROLE).with("roles/store/conf", conf).fleet()
}

struct Machine {
    name: &'static str,
    host: FakeHost,
    dir: tempfile::TempDir,
    vigil: RefCell<Vigil>,
}

/// The service and those who run it.
struct Bed {
    store: FakeStore,
    clock: Arc<FakeClock>,
    probe: FakeProbe,
    machines: Vec<Machine>,
    /// Who has a vote.
    votes: RefCell<BTreeSet<&'static str>>,
    /// The members have not heard yet who went: they go on listing it.
    lags: Cell<bool>,
    /// The agent dies after this step.
    dies_after: Cell<&'static str>,
}

struct Watched<'a> {
    bed: &'a Bed,
    machine: &'a Machine,
}

impl Host for Watched<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        let votes = self.bed.votes.borrow().contains(self.machine.name);
        let mut world = self.machine.host.world.borrow_mut();
        world.actions_done.insert("promote".to_owned(), votes);
        world.actions_done.insert("remove".to_owned(), !votes);
        world.actions_done.insert("remove of n4".to_owned(), !self.bed.votes.borrow().contains("n4"));
        drop(world);
        self.machine.host.observe(query)
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let done = self.machine.host.perform(step)?;
        let line = self.machine.host.world.borrow().log.last().cloned().unwrap_or_default();
        match line.as_str() {
            "act promote" => drop(self.bed.votes.borrow_mut().insert(self.machine.name)),
            "act remove of n4" => drop(self.bed.votes.borrow_mut().remove("n4")),
            "act remove" => drop(self.bed.votes.borrow_mut().remove(self.machine.name)),
            _ => {}
        }
        if line == self.bed.dies_after.get() {
            self.bed.dies_after.set("");
            panic_any(Death);
        }
        Ok(done)
    }
}

impl Machine {
    fn runs(&self) -> bool {
        self.host.world.borrow().units.get(UNIT).is_some_and(UnitState::is_running)
    }

    fn record(&self) -> Option<Record> {
        read_record(&self.dir.path().join("hold.json"))
    }

    /// What was done since the last look, as far as the order matters.
    fn log(&self) -> Vec<String> {
        let log = std::mem::take(&mut self.host.world.borrow_mut().log);
        let told = ["act ", "start ", "stop ", "enable ", "disable "];
        log.into_iter().filter(|line| told.iter().any(|word| line.starts_with(word))).collect()
    }
}

impl Bed {
    /// Three members run and have settled; n4 is there and has nothing.
    fn new() -> Self {
        one_run::quiet_deaths();
        let clock = Arc::new(FakeClock::at(SystemClock.now()));
        let machine = |name| Machine {
            name,
            host: FakeHost::default(),
            dir: tempfile::tempdir().unwrap(),
            vigil: RefCell::default(),
        };
        let bed = Self {
            store: FakeStore::new("one", clock.clone()),
            clock,
            probe: FakeProbe::default(),
            machines: NODES.map(machine).into(),
            votes: RefCell::new(["n1", "n2", "n3"].into()),
            lags: Cell::new(false),
            dies_after: Cell::new(""),
        };
        for machine in &bed.machines {
            let there = UnitState { loaded: true, ..UnitState::missing() };
            machine.host.world.borrow_mut().units.insert(UNIT.into(), there);
        }
        bed.rounds(&fleet("joining", "one"), 1, &["n1", "n2", "n3"]);
        bed.machines.iter().for_each(|machine| drop(machine.log()));
        bed
    }

    /// Four members.
    fn of_four() -> Self {
        let bed = Self::new();
        bed.rounds(&fleet("joining", "one"), 2, &["n4"]);
        bed.rounds(&fleet("active", "one"), 3, &NODES);
        bed.machines.iter().for_each(|machine| drop(machine.log()));
        bed
    }

    fn machine(&self, name: &str) -> &Machine {
        self.machines.iter().find(|machine| machine.name == name).unwrap()
    }

    fn feel(&self) {
        let votes = self.votes.borrow();
        let mut members: BTreeSet<NodeName> = votes.iter().map(|name| NodeName::from(*name)).collect();
        members.extend(self.lags.get().then(|| NodeName::from("n4")));
        let lists = Some(Listed { members, strangers: Vec::new() });
        for machine in &self.machines {
            let evidence = match (machine.runs(), votes.contains(machine.name)) {
                (true, true) => Evidence::healthy().listing(lists.clone()),
                (true, false) => Evidence::unhealthy("is a learner"),
                (false, _) => Evidence::unknown("refused"),
            };
            self.probe.say(machine.name, evidence);
        }
    }

    fn run(&self, name: &str, fleet: &Fleet, seq: u64) -> Ran {
        self.feel();
        let machine = self.machine(name);
        let spec = spec(fleet, machine.name);
        let renderer = Renderer::new(fleet);
        let mut desired = renderer.node(&spec, &Unsealed::without_keys()).unwrap_or_else(|p| panic!("{p:?}"));
        desired.strikes = pipeline::strikes(&renderer, fleet, &spec, Some(&self.store));
        let agent = Agent {
            host: &Watched { bed: self, machine },
            store: Ok(&self.store),
            probe: &self.probe,
            clock: &*self.clock,
            dir: machine.dir.path(),
            ledger: &mut Ledger::open(&machine.dir.path().join("ledger.db")).unwrap(),
            vigil: &mut machine.vigil.borrow_mut(),
        };
        let commit = CommitId::new(format!("c{seq}"));
        let ran = one_run::run(agent, &Target { spec: &spec, renderer: &renderer, desired: &desired, commit, seq });
        self.feel();
        ran
    }

    fn rounds(&self, fleet: &Fleet, seq: u64, nodes: &[&str]) {
        for _ in 0..40 {
            let converged = nodes.iter().filter(|node| self.run(node, fleet, seq).converged).count();
            if converged == nodes.len() {
                return;
            }
            self.clock.advance(Duration::from_secs(3));
        }
        panic!("{nodes:?} never converge to c{seq}: {}", self.run(nodes[0], fleet, seq).reason());
    }

    /// The agent ends in the middle; the next one has no memory of it.
    fn dies(&self, name: &str, fleet: &Fleet, seq: u64, after: &'static str) {
        self.dies_after.set(after);
        assert!(catch_unwind(AssertUnwindSafe(|| self.run(name, fleet, seq))).is_err(), "it never came to {after}");
        self.machine(name).vigil.replace(Vigil::default());
    }

    fn holds(&self) -> Vec<(String, MemberChange)> {
        let group = GroupId::from("store.members");
        let seen = self.store.read(&[&protocol::hold_range(&group)]).unwrap();
        protocol::holds_in(&seen, &group).into_iter().map(|(hold, _)| (hold.node.to_string(), hold.change)).collect()
    }

    fn votes(&self) -> String {
        self.votes.borrow().iter().copied().collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_member_joins_under_its_hold_and_a_second_run_changes_nothing() {
    let bed = Bed::new();
    let target = fleet("joining", "one");
    let ran = bed.run("n4", &target, 2);
    assert_eq!(bed.machine("n4").log(), ["enable store.service", "act add", "start store.service", "act promote"]);
    assert_eq!(bed.holds(), [("n4".to_owned(), MemberChange::Joins)]);
    assert!(!ran.converged, "it settles first");
    bed.clock.advance(Duration::from_secs(9));
    assert_eq!(bed.run("n4", &target, 2).reason(), "settling");
    bed.rounds(&target, 2, &["n4"]);
    assert_eq!((bed.holds(), bed.votes()), (vec![], "n1 n2 n3 n4".to_owned()));
    bed.machine("n4").log();
    assert!(bed.run("n4", &target, 2).outcome.done.is_empty());
    assert_eq!(bed.machine("n4").log(), [""; 0]);
}

#[test]
fn nobody_joins_three_of_which_one_is_down() {
    let bed = Bed::new();
    bed.machine("n3").host.world.borrow_mut().units.remove(UNIT);
    let ran = bed.run("n4", &fleet("joining", "one"), 2);
    assert_eq!(ran.reason(), "degraded");
    assert_eq!((bed.machine("n4").log(), bed.holds()), (vec![], vec![]), "not even its start, which would add it");
}

#[test]
fn a_joining_member_without_its_vote_has_not_settled() {
    let bed = Bed::new();
    let target = fleet("joining", "one");
    bed.run("n4", &target, 2);
    bed.votes.borrow_mut().remove("n4");
    bed.clock.advance(Duration::from_secs(20));
    assert_eq!(bed.run("n4", &target, 2).reason(), "settling");
    assert_eq!(bed.holds().len(), 1);
}

#[test]
fn a_join_that_fails_keeps_its_hold_and_the_next_commit_goes_on() {
    let bed = Bed::new();
    bed.machine("n4").host.world.borrow_mut().fail.push("act promote".to_owned());
    let ran = bed.run("n4", &fleet("joining", "one"), 2);
    assert_eq!(ran.reason(), "apply-failed");
    assert_eq!(bed.machine("n4").record().map(|record| record.phase), Some(RecordPhase::Failed));
    assert_eq!(bed.run("n1", &fleet("joining", "two"), 3).reason(), "hold-failed");
    bed.rounds(&fleet("joining", "two"), 3, &["n4"]);
    assert_eq!((bed.holds(), bed.votes()), (vec![], "n1 n2 n3 n4".to_owned()));
}

#[test]
fn who_is_active_neither_joins_nor_leaves() {
    let bed = Bed::of_four();
    for node in NODES {
        assert!(bed.run(node, &fleet("active", "one"), 4).outcome.done.is_empty());
        assert_eq!(bed.machine(node).log(), [""; 0]);
    }
}

#[test]
fn a_member_leaves_and_its_hold_ends_when_nobody_lists_it() {
    for state in ["draining", "retired"] {
        let bed = Bed::of_four();
        let target = fleet(state, "one");
        bed.lags.set(true);
        bed.run("n4", &target, 4);
        let done = ["act evacuate", "stop store.service", "disable store.service", "act remove"];
        assert_eq!(bed.machine("n4").log(), done);
        bed.clock.advance(Duration::from_secs(11));
        assert_eq!(bed.run("n4", &target, 4).reason(), "settling", "the others list it");
        assert_eq!(bed.holds(), [("n4".to_owned(), MemberChange::Leaves)]);
        assert_eq!(bed.run("n1", &fleet(state, "two"), 5).reason(), "held-by-peer");
        bed.lags.set(false);
        bed.rounds(&target, 4, &["n4"]);
        assert_eq!((bed.holds(), bed.votes()), (vec![], "n1 n2 n3".to_owned()));
        let proven = Ledger::open(&bed.machine("n4").dir.path().join("ledger.db")).unwrap().proven().unwrap();
        assert!(proven.values().all(|proof| proof.seq < 4), "who left has not run with it: {proven:?}");
        assert!(bed.run("n4", &target, 4).outcome.done.is_empty());
        assert_eq!(bed.machine("n4").log(), [""; 0], "a second run changes nothing");
        // The three that stay are counted as three.
        bed.rounds(&fleet(state, "two"), 5, &["n1", "n2", "n3"]);
    }
}

#[test]
fn nobody_leaves_four_of_which_one_is_down() {
    let bed = Bed::of_four();
    bed.machine("n2").host.world.borrow_mut().units.remove(UNIT);
    assert_eq!(bed.run("n4", &fleet("retired", "one"), 4).reason(), "degraded");
    assert_eq!(bed.machine("n4").log(), [""; 0]);
}

#[test]
fn an_agent_that_dies_while_its_member_leaves_is_finished_by_the_next_one() {
    for after in ["act evacuate", "stop store.service", "act remove"] {
        let bed = Bed::of_four();
        let target = fleet("retired", "one");
        bed.lags.set(true);
        bed.dies("n4", &target, 4, after);
        for _ in 0..3 {
            bed.run("n4", &target, 4);
            bed.clock.advance(Duration::from_secs(3));
        }
        assert_eq!(bed.holds().len(), 1, "released after {after} while the others list it");
        bed.lags.set(false);
        bed.rounds(&target, 4, &["n4"]);
        assert_eq!((bed.holds(), bed.votes()), (vec![], "n1 n2 n3".to_owned()), "{after}");
        assert!(!bed.machine("n4").runs());
    }
}

#[test]
fn an_agent_that_dies_while_its_member_joins_is_finished_by_the_next_one() {
    for after in ["act add", "start store.service", "act promote"] {
        let bed = Bed::new();
        let target = fleet("joining", "one");
        bed.dies("n4", &target, 2, after);
        bed.rounds(&target, 2, &["n4"]);
        assert_eq!((bed.holds(), bed.votes()), (vec![], "n1 n2 n3 n4".to_owned()), "{after}");
    }
}

/// An operator released it while the machine was off, and let the machine in again.
#[test]
fn a_leave_whose_hold_is_gone_begins_anew() {
    let bed = Bed::of_four();
    let target = fleet("retired", "one");
    bed.dies("n4", &target, 4, "stop store.service");
    let group = protocol::hold_range(&GroupId::from("store.members"));
    let gone = bed.store.read(&[&group]).unwrap().entries.into_iter().map(|entry| Write::Delete(entry.key));
    bed.store.commit(&Transaction { when: vec![], then: gone.collect() }).unwrap();
    bed.rounds(&target, 4, &["n4"]);
    assert_eq!((bed.holds(), bed.votes()), (vec![], "n1 n2 n3".to_owned()));
    assert!(bed.machine("n4").record().is_none());
}

#[test]
fn a_leave_that_is_taken_back_by_the_next_commit_brings_the_member_up_again() {
    let bed = Bed::of_four();
    bed.machine("n4").host.world.borrow_mut().fail.push("act remove".to_owned());
    assert_eq!(bed.run("n4", &fleet("retired", "one"), 4).reason(), "apply-failed");
    assert!(!bed.machine("n4").runs());
    bed.rounds(&fleet("active", "one"), 5, &NODES);
    assert_eq!((bed.holds(), bed.votes()), (vec![], "n1 n2 n3 n4".to_owned()));
}

#[test]
fn a_dead_member_is_struck_by_the_first_of_the_living_once_an_operator_said_so() {
    let bed = Bed::of_four();
    let target = fleet("retired", "one");
    bed.machine("n4").host.world.borrow_mut().units.remove(UNIT);
    let put = |key: &str| {
        let then = vec![Write::Put(key.to_owned(), b"x".to_vec())];
        bed.store.commit(&Transaction { when: vec![], then }).unwrap();
    };
    assert!(bed.run("n1", &target, 4).converged, "nobody said that it is dead");
    put("dead/n4");
    put("n/n1/beat");
    assert!(bed.run("n2", &target, 4).converged, "n1 lives");
    bed.lags.set(true);
    bed.run("n1", &target, 4);
    assert_eq!(bed.machine("n1").log(), ["act remove of n4"]);
    assert_eq!(bed.holds(), [("n1".to_owned(), MemberChange::Strikes("n4".into()))]);
    bed.clock.advance(Duration::from_secs(11));
    bed.run("n1", &target, 4);
    bed.clock.advance(Duration::from_secs(11));
    assert_eq!(bed.run("n1", &target, 4).reason(), "settling");
    bed.lags.set(false);
    bed.rounds(&target, 4, &["n1", "n2", "n3"]);
    assert_eq!((bed.holds(), bed.votes()), (vec![], "n1 n2 n3".to_owned()));
    assert!(NODES[..3].iter().all(|node| bed.machine(node).runs() && bed.machine(node).log().is_empty()));
}

#[test]
fn who_died_in_the_middle_of_striking_goes_on() {
    let bed = Bed::of_four();
    let target = fleet("draining", "one");
    bed.machine("n4").host.world.borrow_mut().units.remove(UNIT);
    let then = vec![Write::Put("dead/n4".to_owned(), b"x".to_vec())];
    bed.store.commit(&Transaction { when: vec![], then }).unwrap();
    bed.lags.set(true);
    bed.dies("n1", &target, 4, "act remove of n4");
    for _ in 0..8 {
        bed.run("n1", &target, 4);
        bed.clock.advance(Duration::from_secs(3));
    }
    assert_eq!(bed.holds().len(), 1, "the others list it");
    bed.lags.set(false);
    bed.rounds(&target, 4, &["n1"]);
    assert!(bed.holds().is_empty());
}

#[test]
fn a_plan_says_who_comes_and_who_goes() {
    let said = |state: &str, name: &str| {
        let bed = if state == "joining" { Bed::new() } else { Bed::of_four() };
        let fleet = fleet(state, "one");
        let spec = spec(&fleet, name);
        let desired = Renderer::new(&fleet).node(&spec, &Unsealed::without_keys()).unwrap_or_else(|p| panic!("{p:?}"));
        let machine = bed.machine(name);
        let ledger = Ledger::open(&machine.dir.path().join("ledger.db")).unwrap();
        let known = ledger.known().unwrap();
        let host = Watched { bed: &bed, machine };
        let observed = pipeline::observe(&host, &desired, &known, ledger.fingerprints()).unwrap();
        show::node(&plan(&desired, &observed, &known, &spec.groups), Paint::default())
    };
    let joins = said("joining", "n4");
    assert!(joins.contains("n4 joins store.members") && joins.contains("action promote (on join)"), "{joins}");
    let leaves = said("draining", "n4");
    assert!(leaves.contains("n4 leaves store.members") && leaves.contains("action remove (on leave)"), "{leaves}");
    assert!(!said("joining", "n1").contains("joins"));
}
