//! What operators do to restart locks, by the built binary over the local store and over a real etcd: freeze, pause, restart,
//! admit, release, and a store that was restored from a snapshot.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

mod bed;
mod etcd;
mod forge;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bed::{Bed, NODES, NodeBed, Said};
use converger::lock::store::{LockStore, StoreKind, Transaction, Write, open};
use etcd::{Ca, Etcd};
use nix::unistd::Uid;
use serde_json::{Value, json};

/// Three nodes that converged, and where their store is.
struct Place {
    bed: Bed,
    nodes: [NodeBed; 3],
    /// The `[store]` table of an operator.
    client: String,
}

impl Place {
    fn local() -> Self {
        let bed = Bed::new();
        let client = format!("kind = \"local\"\npath = \"{}\"", bed.dir().join("store.db").display());
        let nodes = NODES.map(|name| bed.node(name));
        Self { bed, nodes, client }.converged()
    }

    /// Each node with a certificate of its own, the operator too.
    fn over(etcd: &Etcd, ca: &Ca) -> Self {
        let bed = Bed::new();
        let table = |name: &str| {
            let (cert, key) = ca.issue(name);
            let (ca, cert, key) = (ca.path.display(), cert.display(), key.display());
            let endpoint = format!("https://127.0.0.1:{}", etcd.port);
            format!("kind = \"etcd\"\nendpoints = [\"{endpoint}\"]\nca = \"{ca}\"\ncert = \"{cert}\"\nkey = \"{key}\"")
        };
        let nodes = NODES.map(|name| {
            let node = bed.node(name);
            node.settings(&table(name));
            node
        });
        // It was laid over another store.
        std::fs::remove_file(nodes[0].root.join("var/lib/converger/store.json")).unwrap();
        let client = table("operator");
        Self { bed, nodes, client }.converged()
    }

    fn converged(self) -> Self {
        for node in &self.nodes {
            node.once().exits(0);
        }
        self
    }

    fn node(&self, name: &str) -> &NodeBed {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn run(&self, args: &[&str]) -> Said {
        let path = self.bed.dir().join("operator.toml");
        std::fs::write(&path, format!("[store]\n{}\n", self.client)).unwrap();
        let mut command = bed::converger();
        command.current_dir(&self.bed.forge.work).arg("--client").arg(&path).args(args);
        Said::of(command.output().unwrap())
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let said = self.run(args);
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}:\n{}", said.all()))
    }

    /// A change that restarts web.service everywhere.
    fn change(&self, from: &str, to: &str) -> String {
        self.bed.edit("roles/web/defaults.toml", &format!("workers = {from}"), &format!("workers = {to}"));
        self.bed.commit(&format!("{to} workers"))
    }

    fn store(&self) -> Box<dyn LockStore> {
        open(StoreKind::Local { path: self.bed.dir().join("store.db") }, "test", "production").unwrap()
    }

    fn put(&self, key: &str, value: &Value) {
        let then = vec![Write::Put(key.to_owned(), value.to_string().into_bytes())];
        self.store().commit(&Transaction { when: vec![], then }).unwrap();
    }

    /// What operators did, in order: `what object reason`.
    fn audit(&self) -> Vec<String> {
        let entries = self.store().read(&["audit/@operators/"]).unwrap().entries;
        let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
        let line = |value: Value| ["what", "object", "reason"].map(|key| text(&value, key)).join(" ");
        entries.iter().map(|entry| line(serde_json::from_slice(&entry.value).unwrap())).collect()
    }

    /// `GROUP NODE PHASE` of every hold.
    fn holds(&self) -> Vec<String> {
        let listed = self.json(&["holds", "list", "--json"]);
        let text =
            |hold: &Value| ["group", "node", "phase"].map(|key| hold[key].as_str().unwrap().to_owned()).join(" ");
        listed["holds"].as_array().unwrap().iter().map(text).collect()
    }

    fn starts(&self) -> [u64; 3] {
        NODES.map(|name| self.node(name).starts("web.service"))
    }

    fn fails(&self, name: &str, how: &str) {
        self.node(name).put("run/converger/units.fail", how);
    }

    fn export(&self, name: &str) -> PathBuf {
        let node = self.node(name);
        let settings = node.root.join("etc/converger/agent.toml");
        let mut command = bed::converger();
        command.args(["holds", "export", "--root"]).arg(&node.root).arg("--settings").arg(settings);
        let said = Said::of(command.output().unwrap()).exits(0);
        let path = self.bed.dir().join(format!("{name}.export"));
        std::fs::write(&path, said.out).unwrap();
        path
    }
}

fn hold(node: &str, group: &str, phase: &str, since: &str) -> Value {
    json!({
        "group": group, "lane": 0, "node": node, "attempt": "a", "commit": "0123456789", "seq": 2, "phase": phase,
        "units": ["web.service"], "boot_id": "b", "reason": "web.service takes 0123456", "since": since,
    })
}

// ---- freeze

/// G31: nothing is claimed from then on, and everything that needs no hold goes on.
#[test]
fn a_freeze_stops_new_restarts_until_it_is_lifted() {
    let place = Place::local();
    place.run(&["freeze", "--reason", "quarter end", "--for", "4h"]).exits(0).says(&["the fleet is frozen until 20"]);
    place.change("4", "8");
    place.bed.edit("roles/base/motd", "of", "in");
    place.bed.commit("and a word");
    let waits = place.node("web01").once().exits(6).says(&["frozen", "quarter end"]);
    assert!(!waits.all().contains("etcdctl"));
    assert_eq!(place.node("web01").text("etc/motd"), "web01 in production\n");
    assert_eq!(place.starts(), [1, 1, 1]);
    place.run(&["status"]).exits(6).says(&["the fleet is frozen until 20", "quarter end"]);
    place.run(&["why", "web01"]).exits(6).says(&["the fleet is frozen by", "`converger unfreeze --reason"]);
    place.run(&["holds", "list"]).exits(0).says(&["no holds", "the fleet is frozen by", "quarter end"]);
    let listed = place.json(&["holds", "list", "--json"]);
    assert_eq!(listed["freezes"][0]["scope"], "fleet");
    assert_eq!(listed["freezes"][0]["reason"], "quarter end");
    place.run(&["unfreeze", "--reason", "it is over"]).exits(0);
    place.run(&["unfreeze", "--reason", "again"]).exits(2).says(&["the fleet is not frozen"]);
    place.node("web01").once().exits(0);
    assert_eq!(place.starts(), [2, 1, 1]);
    assert_eq!(place.audit(), ["freeze the fleet quarter end", "unfreeze the fleet it is over"]);
}

/// G31: of a group, of a node, and until a time that comes by itself.
#[test]
fn a_freeze_is_of_what_it_says_and_ends_by_itself() {
    let place = Place::local();
    place.run(&["freeze", "--node", "web02", "--reason", "disks", "--for", "1d"]).exits(0);
    place.run(&["freeze", "--group", "web.web", "--reason", "a moment", "--for", "2s"]).exits(0);
    place.change("4", "8");
    let end = Instant::now() + Duration::from_secs(60);
    while place.node("web01").once().code != 0 {
        assert!(Instant::now() < end, "the freeze of the group does not end");
    }
    place.node("web02").once().exits(6).says(&["frozen", "disks"]);
    place.node("web03").once().exits(6).says(&["web02"]);
    place.run(&["why", "web01"]).exits(0);
    let why = place.run(&["why", "web02"]).exits(6).says(&["node web02 is frozen"]);
    assert!(!why.all().contains("group web.web is frozen"));
}

/// The group that nobody declares; services go on.
#[test]
fn the_agents_are_frozen_by_the_name_of_their_group() {
    let place = Place::local();
    place.run(&["freeze", "--group", "converger.agents", "--reason", "wait", "--for", "1h"]).exits(0);
    let listed = place.json(&["holds", "list", "--json"]);
    let frozen = &listed["freezes"][0];
    assert_eq!((&frozen["scope"], &frozen["attention"]), (&json!("g/converger.agents"), &json!([])), "{listed}");
    place.change("4", "8");
    place.node("web01").once().exits(0);
    place.run(&["unfreeze", "--group", "converger.agents", "--reason", "go"]).exits(0);
    let near = place.run(&["freeze", "--group", "converger.agent", "--reason", "x", "--for", "1h"]).exits(2);
    near.says(&["did you mean converger.agents?"]);
}

#[test]
fn a_freeze_without_reason_end_or_object_is_refused() {
    let place = Place::local();
    let cases: [(&[&str], &str); 9] = [
        (&["--reason", "x"], "--for"),
        (&["--for", "4h"], "--reason"),
        (&["--reason", " ", "--for", "4h"], "--reason"),
        (&["--reason", "x", "--for", "4 monkeys"], "is no duration"),
        (&["--reason", "x", "--for", "0s"], "not in the future"),
        (&["--reason", "x", "--until", "2001-01-01T00:00Z"], "not in the future"),
        (&["--reason", "x", "--until", "tomorrow"], "is no time"),
        (&["--reason", "x", "--for", "2y"], "days"),
        (&["--reason", "x", "--for", "4h", "--group", "web.wab"], "did you mean web.web?"),
    ];
    for (args, word) in cases {
        place.run(&[&["freeze"], args].concat()).exits(2).says(&[word]);
    }
    place.run(&["freeze", "--reason", "x", "--for", "4h", "--node", "web1"]).exits(2).says(&["is not a node"]);
    place.run(&["freeze", "--reason", "x", "--for", "4h", "--node", "web01", "--group", "web.web"]).exits(2);
    assert!(place.audit().is_empty());
}

// ---- pause

fn on(node: &NodeBed, args: &[&str]) -> Said {
    let mut command = bed::converger();
    command.args(args).arg("--root").arg(&node.root);
    Said::of(command.output().unwrap())
}

/// A pause says what it is, also where nobody reads the store, and applies nothing: no file, no restart, no drift.
#[test]
fn a_paused_node_applies_nothing_and_says_so() {
    let place = Place::local();
    let node = place.node("web01");
    on(node, &["pause", "--reason", "new disks", "--for", "2h"]).exits(0).says(&["paused until 20"]);
    let commit = place.change("4", "8");
    place.bed.edit("roles/base/motd", "of", "in");
    place.bed.commit("and a word");
    node.put("etc/tool/a.conf", "somebody's own\n");
    let before = node.host();
    node.once().exits(6).says(&["paused", "new disks", "`converger resume`"]);
    assert!(node.host() == before, "{:?}", node.text("etc/motd"));
    let report = node.report();
    assert_eq!((report["state"].as_str(), report["reason"].as_str()), (Some("paused"), Some("paused")));
    assert_eq!(report["pause"]["reason"], "new disks");
    assert!(report["pause"]["until"].as_str().unwrap() > report["at"].as_str().unwrap());
    assert_ne!(report["target"]["commit"], commit, "it goes on fetching");
    assert_ne!(report["applied"]["commit"], report["target"]["commit"]);
    place.run(&["status"]).exits(6).says(&["1 paused", "web01  ", "paused until"]);
    place.run(&["why", "web01"]).exits(6).says(&["new disks"]);
    // The others do not wait for it for ever: it asks for nothing.
    assert!(place.store().read(&["n/web01/want/"]).unwrap().entries.is_empty());
    on(node, &["resume"]).exits(0).says(&["resumed"]);
    on(node, &["resume"]).exits(0).says(&["was not paused"]);
    node.once().exits(0);
    assert_eq!(node.text("etc/tool/a.conf"), "first = yes\na = 1\n");
    assert_eq!(place.starts(), [2, 1, 1]);
}

/// A node that is as its commit says is paused all the same, without a store too, and its time ends by itself.
#[test]
fn a_pause_needs_no_store_and_ends_by_itself() {
    let place = Place::local();
    let node = place.node("web02");
    node.settings("kind = \"etcd\"\nendpoints = [\"https://127.0.0.1:1\"]\nca = \"ca\"\ncert = \"c\"\nkey = \"k\"");
    on(node, &["pause", "--reason", "a moment", "--for", "3s"]).exits(0);
    node.put("etc/motd", "mine\n");
    let said = node.once();
    assert_eq!(node.report()["state"], "paused", "{}", said.all());
    assert_eq!(node.text("etc/motd"), "mine\n");
    let end = Instant::now() + Duration::from_secs(60);
    while node.text("etc/motd") == "mine\n" {
        node.once();
        assert!(Instant::now() < end, "the pause does not end");
    }
    assert_ne!(node.report()["state"], "paused");
    assert!(!node.root.join("var/lib/converger/pause.json").exists());
}

/// A member that was restarted before the pause settles in it, and its hold goes back: the others do not wait for a person.
#[test]
fn a_holder_settles_and_gives_back_while_it_is_paused() {
    let place = Place::local();
    let node = place.node("web01");
    place.change("4", "8");
    place.fails("web01", "web.service gate\n");
    let run = std::thread::scope(|scope| {
        let run = scope.spawn(|| node.once());
        let end = Instant::now() + Duration::from_secs(60);
        while place.starts() != [2, 1, 1] {
            assert!(Instant::now() < end, "it does not restart");
            std::thread::sleep(Duration::from_millis(20));
        }
        on(node, &["pause", "--reason", "look at the gate", "--for", "1h"]).exits(0);
        place.fails("web01", "");
        run.join().unwrap()
    });
    run.exits(6);
    let end = Instant::now() + Duration::from_secs(60);
    while !place.holds().is_empty() {
        node.once().exits(6);
        assert!(Instant::now() < end, "its hold does not go back: {:?}", place.holds());
    }
    assert_eq!(node.report()["state"], "paused");
    place.node("web02").once().exits(0);
}

/// An agent that stays goes on as soon as it is told, not at its next poll.
#[test]
fn an_agent_that_stays_is_woken_by_the_end_of_its_pause() {
    let place = Place::local();
    let node = place.node("web01");
    let settings = node.root.join("etc/converger/agent.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, format!("{text}\n[poll]\nsecs = 3600\njitter_secs = 0\n")).unwrap();
    let mut command = bed::converger();
    command.args(["agent", "--root"]).arg(&node.root).arg("--settings").arg(&settings);
    let mut agent = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let until = |what: &str, state: &str| {
        let end = Instant::now() + Duration::from_secs(60);
        while node.report()["state"] != state {
            assert!(Instant::now() < end, "{what}: {}", node.report());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until("it runs", "converged");
    on(node, &["pause", "--reason", "disks", "--for", "1h"]).exits(0);
    until("it sees the pause", "paused");
    node.put("etc/motd", "mine\n");
    on(node, &["resume"]).exits(0);
    until("it goes on", "converged");
    let end = Instant::now() + Duration::from_secs(60);
    while node.text("etc/motd") == "mine\n" {
        assert!(Instant::now() < end, "drift is not repaired after the pause");
        std::thread::sleep(Duration::from_millis(50));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
}

// ---- restart

/// Every member restarts once, one under a hold after the other, and nothing else changes.
#[test]
fn restart_writes_a_signed_commit_and_every_member_restarts_once() {
    let place = Place::local();
    let git = |args: &[&str]| place.bed.forge.git(args);
    let before = place.bed.read("environments/production/topology.toml");
    let head = place.bed.forge.head();
    // Without a key there is no commit, and the file is as it was.
    git(&["config", "gpg.format", "ssh"]);
    git(&["config", "user.signingkey", "/nonexistent"]);
    place.run(&["restart", "web", "--reason", "leaks"]).exits(2);
    assert_eq!(
        (place.bed.read("environments/production/topology.toml"), place.bed.forge.head()),
        (before.clone(), head)
    );
    assert_eq!(git(&["status", "--porcelain"]), "");
    git(&["config", "user.signingkey", place.bed.forge.key("alice").to_str().unwrap()]);
    place.run(&["restart", "wab", "--reason", "leaks"]).exits(2).says(&["did you mean web?"]);
    place.bed.forge.write("roles/base/motd", "not yet\n");
    let said = place.run(&["restart", "web", "--reason", "leaks"]).exits(0);
    said.says(&["3 restarts", "web01  web.service", "restart web: leaks (restart_epoch 1)", "git push origin main"]);
    let after = place.bed.read("environments/production/topology.toml");
    assert_eq!(after, before.replace("roles = [\"web\"]\n", "roles = [\"web\"]\nrestart_epoch = 1\n"));
    assert_eq!(git(&["diff", "--name-only", "HEAD~1", "HEAD"]), "environments/production/topology.toml");
    assert_eq!(git(&["log", "-1", "--format=%s"]), "restart web: leaks");
    let files = |node: &NodeBed| {
        let mut host = node.host();
        host.remove(&node.root.join("run/converger/units.json"));
        host
    };
    let hosts: Vec<_> = place.nodes.iter().map(files).collect();
    for (n, node) in place.nodes.iter().enumerate() {
        let said = node.once().exits(0).says(&["hold web.web: claimed, asked, armed", "restart web.service"]);
        assert!(!said.all().contains("tool.service"), "{}", said.all());
        let mut starts = [1; 3];
        starts[..=n].fill(2);
        assert_eq!(place.starts(), starts);
        node.once().exits(0).says(&["nothing to do"]);
    }
    assert_eq!(place.nodes.iter().map(files).collect::<Vec<_>>(), hosts, "nothing else changes");
    assert_eq!(place.starts(), [2, 2, 2]);
    place.bed.forge.write("environments/production/topology.toml", &format!("{after}# mine\n"));
    place.run(&["restart", "web", "--reason", "again"]).exits(2).says(&["changes that are not committed"]);
}

// ---- dead, admitted, claimed

#[test]
fn a_node_that_was_declared_dead_is_admitted_by_a_command() {
    let place = Place::local();
    place.run(&["holds", "release", "--dead", "web02", "--reason", "host lost"]).exits(0).says(&["node admit web02"]);
    place.change("4", "8");
    place.node("web01").once().exits(0);
    place.node("web02").once().exits(6).says(&["declared-dead", "converger node admit"]);
    place.run(&["holds", "list"]).exits(0).says(&["web02 was declared dead by ", "host lost", "node admit web02"]);
    place.run(&["status"]).says(&["web02 was declared dead: host lost"]);
    place.run(&["why", "web02"]).says(&["web02 was declared dead: host lost"]);
    place.run(&["node", "admit", "web01", "--reason", "x"]).exits(2).says(&["web01 was not declared dead"]);
    place.run(&["node", "admit", "web9", "--reason", "x"]).exits(2).says(&["is not a node"]);
    place.run(&["node", "admit", "web02"]).exits(2).says(&["--reason"]);
    place.run(&["node", "admit", "web02", "--reason", "same disk, new board"]).exits(0);
    place.node("web02").once().exits(0);
    assert_eq!(place.audit(), ["declared-dead web02 host lost", "admitted web02 same disk, new board"]);
    let entry = &place.store().read(&["audit/@operators/"]).unwrap().entries[0];
    let by = nix::unistd::User::from_uid(Uid::current()).unwrap().unwrap().name;
    assert_eq!(serde_json::from_slice::<Value>(&entry.value).unwrap()["by"], by);
}

/// The one release that needs no statement about a machine: only while the phase is still claimed.
#[test]
fn only_a_claim_is_released_without_a_statement_about_the_machine() {
    let place = Place::local();
    let now = jiff::Timestamp::now().to_string();
    let release = |what: &str| place.run(&["holds", "release", "--claimed", what, "--reason", "stuck"]);
    for (phase, word) in [("armed", "has armed its hold"), ("failed", "failed under its hold")] {
        place.put("hold/web.web/0/web02", &hold("web02", "web.web", phase, &now));
        release("web.web/web02").exits(2).says(&[word, "--dead web02"]);
        assert_eq!(place.holds().len(), 1);
    }
    place.put("hold/web.web/0/web02", &hold("web02", "web.web", "claimed", &now));
    place.run(&["holds", "list"]).exits(0).says(&["web02  claimed"]);
    release("web.web").exits(2).says(&["name group and node"]);
    release("web.web/web03").exits(2).says(&["web03 has no hold on web.web"]);
    place.run(&["holds", "release", "--reason", "x"]).exits(2);
    place.run(&["holds", "release", "--claimed", "web.web/web02", "--dead", "web02", "--reason", "x"]).exits(2);
    release("web.web/web02").exits(0);
    assert!(place.holds().is_empty());
    assert_eq!(place.audit(), ["claim-released web.web/web02 stuck"]);
}

/// G4 G24: what is old, failed, or of nobody that is there any more stands out, and says what would end it.
#[test]
fn what_stands_out_among_the_holds_is_told_with_what_ends_it() {
    let place = Place::local();
    let now = jiff::Timestamp::now();
    let recent = now.to_string();
    let old = (now - Duration::from_secs(3600)).to_string();
    place.put("hold/web.web/0/web02", &hold("web02", "web.web", "armed", &recent));
    let calm = place.run(&["holds", "list"]).exits(0);
    assert!(!calm.out.contains("It ends"), "{}", calm.out);
    assert!(place.json(&["holds", "list", "--json"])["holds"][0]["attention"].as_array().unwrap().is_empty());
    place.run(&["status"]).says(&["holds 1\n"]);
    place.put("hold/web.web/0/web02", &hold("web02", "web.web", "armed", &old));
    place.put("hold/web.web/0/web09", &hold("web09", "web.web", "armed", &recent));
    place.put("hold/mail.mail/0/web03", &hold("web03", "mail.mail", "failed", &recent));
    place.put("hold/web.web/0/web01", &json!("garbage"));
    place.put(
        "act/mail/web09",
        &json!({ "cluster": "mail", "node": "web09", "action": "topics", "commit": "0123456789",
        "attempt": "a", "since": old }),
    );
    let all = place.run(&["holds", "list"]).exits(0);
    let all = all.says(&[
        "web.web of web02: older than 10 min",
        "It ends when web02 settles: `converger why web02`",
        "web.web of web09: the topology has no node web09",
        "mail.mail of web03: the topology has no group mail.mail; failed",
        "web.web of web01: failed",
        "its hold cannot be read",
        "action topics of web09: the topology has no node web09",
        "the topology has no cluster mail; older than 10 min",
    ]);
    assert!(all.out.contains("web.service"), "units");
    let listed = place.json(&["holds", "list", "--json"]);
    assert_eq!(listed["holds"].as_array().unwrap().len(), 4);
    assert!(listed["holds"].as_array().unwrap().iter().all(|hold| !hold["attention"].as_array().unwrap().is_empty()));
    assert!(listed["holds"][1]["age_secs"].is_u64() && listed["actions"][0]["ends"].is_string());
    place.run(&["status"]).says(&["holds 4 (5 to be looked at: converger holds list)"]);
    place.run(&["why", "web01"]).says(&["held by web02", "the topology has no node web09"]);
    // An operator ends it for a node that is gone.
    place.run(&["holds", "release", "--dead", "web09", "--reason", "taken away"]).exits(0).says(&["2 holds freed"]);
}

// ---- a store that was restored

/// The whole way: a snapshot with a hold that is over, a hold that the snapshot has not, and nobody disrupted by either.
fn restored(place: &Place, take: impl Fn(&Path), restore: impl Fn(&Path), count_up: impl Fn()) {
    let snapshot = place.bed.dir().join("snapshot");
    // web02 fails, and the snapshot has its hold.
    place.change("4", "8");
    place.fails("web02", "web.service start\n");
    place.node("web01").once().exits(0);
    place.node("web02").once().exits(5);
    place.node("web03").once().exits(6).says(&["hold-failed"]);
    assert_eq!(place.holds(), ["web.web web02 failed"]);
    take(&snapshot);
    // That ends, and web01 fails with the next one.
    place.fails("web02", "");
    place.change("8", "16");
    for name in ["web02", "web01", "web03"] {
        place.node(name).once().exits(0);
    }
    place.change("16", "32");
    place.fails("web01", "web.service start\n");
    place.node("web01").once().exits(5);
    assert_eq!(place.holds(), ["web.web web01 failed"]);
    let starts = place.starts();

    restore(&snapshot);
    assert_eq!(place.holds(), ["web.web web02 failed"], "yesterday's");
    for name in ["web02", "web03"] {
        place.node(name).once().exits(7).says(&["store-replaced", "`converger holds reinit`"]);
    }
    place.node("web01").once().exits(5).says(&["gate-failed"]);
    // It counts up again, and is no better for it.
    count_up();
    place.node("web02").once().exits(7).says(&["store-replaced"]);

    let reinit = |more: &[&str]| place.run(&[&["holds", "reinit", "--reason", "restored", "--from"], more].concat());
    let [one, two, three] = NODES.map(|name| place.export(name).to_str().unwrap().to_owned());
    reinit(&[&one, &two, &three]).exits(2).says(&["the fleet is not frozen"]);
    place.run(&["freeze", "--reason", "etcd was restored", "--for", "1h"]).exits(0);
    reinit(&[&one, &two]).exits(2).says(&["no word of web03", "holds export"]);
    reinit(&[&one, &two, &two, &three]).exits(2).says(&["web02 is exported twice"]);
    reinit(&[&one, &two, &three, "--dead", "web03"]).exits(2).says(&["its machine is not off"]);
    assert_eq!(place.holds(), ["web.web web02 failed"], "nothing is written by half");
    let said = reinit(&[&one, &two, &three]).exits(0);
    said.says(&["at epoch 1", "web.web of web01", "web.web of web02", "converger unfreeze"]);
    assert_eq!(place.holds(), ["web.web web01 failed"]);
    for name in ["web02", "web03"] {
        place.node(name).once().exits(6);
        assert_eq!(place.node(name).report()["store_epoch"], 1);
    }
    place.run(&["unfreeze", "--reason", "looked at"]).exits(0);
    place.node("web02").once().exits(6).says(&["hold-failed", "web01"]);
    assert_eq!(place.starts(), starts, "nobody was disrupted");
    // The holder finds its hold again, ends it, and life goes on.
    place.fails("web01", "");
    place.change("32", "64");
    for name in NODES {
        place.node(name).once().exits(0);
    }
    assert!(place.holds().is_empty());

    // The same snapshot once more: the epoch says so.
    restore(&snapshot);
    place.change("64", "128");
    place.node("web01").once().exits(7).says(&["store-replaced"]);
    assert_eq!(place.holds(), ["web.web web02 failed"]);
}

/// G20
#[test]
fn a_local_store_that_was_restored_is_told_the_holds_of_today() {
    let place = Place::local();
    let files = ["store.db", "store.db-wal", "store.db-shm"];
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for file in files {
            let _ = std::fs::remove_file(to.join(file));
            if from.join(file).exists() {
                std::fs::copy(from.join(file), to.join(file)).unwrap();
            }
        }
    };
    let dir = place.bed.dir();
    let count_up = || (0..200).for_each(|n| place.put("wake", &json!(n)));
    restored(&place, |snapshot| copy(dir, snapshot), |snapshot| copy(snapshot, dir), count_up);
}

/// G20 over a real etcd and its own snapshots; each restore is a new cluster. G21 over a second one.
#[test]
fn an_etcd_that_was_restored_is_told_the_holds_of_today() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(dir.path(), "ca");
    let etcd = etcd::etcd_with_certificates(&ca);
    let (cert, key) = ca.issue("snapshots");
    let data = etcd.dir.path().join("data");
    let endpoint = format!("https://127.0.0.1:{}", etcd.port);
    let place = Place::over(&etcd, &ca);
    let etcd = std::cell::RefCell::new(etcd);
    let etcdctl = |args: &[&str]| {
        let mut command = Command::new(etcd::binary().with_file_name("etcdctl"));
        command
            .args(["--endpoints", &endpoint, "--cacert"])
            .arg(&ca.path)
            .arg("--cert")
            .arg(&cert)
            .arg("--key")
            .arg(&key);
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let times = std::cell::Cell::new(0);
    let take = |snapshot: &Path| etcdctl(&["snapshot", "save", snapshot.to_str().unwrap()]);
    let restore = |snapshot: &Path| {
        times.set(times.get() + 1);
        let token = format!("restored-{}", times.get());
        let mut etcd = etcd.borrow_mut();
        etcd.kill();
        std::fs::remove_dir_all(&data).unwrap();
        let (snapshot, data) = (snapshot.to_str().unwrap(), data.to_str().unwrap());
        etcdctl(&["snapshot", "restore", snapshot, "--data-dir", data, "--initial-cluster-token", &token]);
        etcd.restart();
    };
    // Its identity tells, whatever it counts.
    restored(&place, take, restore, || {});
}

/// G21: endpoints that point at another cluster. Nothing is claimed there, and all is well when they are put right.
#[test]
fn endpoints_of_another_etcd_are_noticed_and_nothing_is_claimed_there() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(dir.path(), "ca");
    let (etcd, other) = (etcd::etcd_with_certificates(&ca), etcd::etcd_with_certificates(&ca));
    let place = Place::over(&etcd, &ca);
    place.change("4", "8");
    let node = place.node("web01");
    let settings = node.text("etc/converger/agent.toml");
    let here = |etcd: &Etcd| format!("127.0.0.1:{}", etcd.port);
    node.put("etc/converger/agent.toml", &settings.replace(&here(&etcd), &here(&other)));
    node.once().exits(7).says(&["store-replaced", "this is the store"]);
    let elsewhere = StoreKind::Etcd {
        endpoints: vec![format!("https://{}", here(&other))],
        ca: Some(ca.path.clone()),
        cert: Some(dir.path().join("operator.crt")),
        key: Some(dir.path().join("operator.key")),
    };
    let elsewhere = open(elsewhere, "test", "production").unwrap().read(&[""]).unwrap().entries;
    assert!(elsewhere.iter().any(|entry| entry.key == "n/web01/beat"), "it was asked");
    assert!(elsewhere.iter().all(|entry| !entry.key.starts_with("hold/")));
    assert_eq!(place.starts(), [1, 1, 1]);
    node.put("etc/converger/agent.toml", &settings);
    node.once().exits(0);
    assert_eq!(place.starts(), [2, 1, 1]);
}
