//! Two mirrors of one branch that do not show the same, and nodes whose own record was lost or set back: what the store
//! remembers is compared with what the remotes offer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs, write files and look at the clock")]

mod bed;
mod etcd;
mod forge;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bed::{Bed, NodeBed};
use converger::lock::store::{self, LockStore, Transaction, Write};
use converger::settings::Store;
use forge::run;

/// A bare repository beside the forge that shows what is pushed to it, and no more.
struct Mirror(PathBuf);

impl Mirror {
    fn of(bed: &Bed, name: &str) -> Self {
        let path = bed.dir().join(name);
        run(Command::new("git").args(["init", "-q", "--bare", "-b", "main"]).arg(&path));
        let mirror = Self(path);
        mirror.take(bed, "main");
        mirror
    }

    /// Shows this revision from now on, whatever it showed before.
    fn take(&self, bed: &Bed, revision: &str) {
        let path = self.0.to_str().unwrap();
        bed.forge.git(&["push", "-q", "--force", path, &format!("{revision}:refs/heads/main")]);
    }

    fn serves(&self, bed: &Bed, name: &str) -> NodeBed {
        let node = bed.node(name);
        node.put("etc/converger/trust.toml", &bed.trust(&format!("file://{}", self.0.display())));
        let store = format!("kind = \"local\"\npath = \"{}\"", store_path(bed).display());
        node.settings(&format!("{store}\n\n[poll]\nsecs = 1\njitter_secs = 0"));
        node
    }
}

fn store_path(bed: &Bed) -> PathBuf {
    bed.dir().join("store.db")
}

fn store(bed: &Bed) -> Box<dyn LockStore> {
    store::open(Store::Local { path: store_path(bed) }.into(), "test", "production").unwrap()
}

/// A10, A12, A32 over a real etcd, with certificates: what the nodes tell goes through it and survives their disks.
#[test]
fn the_same_holds_over_a_real_etcd() {
    let bed = Bed::new();
    let ca = etcd::Ca::new(bed.dir(), "ca");
    let server = etcd::etcd_with_certificates(&ca);
    let (left, right) = (Mirror::of(&bed, "left.git"), Mirror::of(&bed, "right.git"));
    let [first, second] = [(&left, "web01"), (&right, "web02")].map(|(mirror, name)| {
        let node = mirror.serves(&bed, name);
        let (cert, key) = ca.issue(name);
        node.settings(&format!(
            "kind = \"etcd\"\nendpoints = [\"https://127.0.0.1:{}\"]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n\n\
             [poll]\nsecs = 1\njitter_secs = 0",
            server.port,
            ca.path.display(),
            cert.display(),
            key.display()
        ));
        node.once().exits(0);
        node
    });
    let base = bed.forge.head();
    let ours = motd(&bed, "left");
    left.take(&bed, "main");
    first.once().exits(0);
    lose_state(&first);
    left.take(&bed, &base);
    first.once().exits(4).says(&["rollback-floor"]);
    left.take(&bed, &ours);
    first.once().exits(0);
    second.once().exits(0);
    std::thread::sleep(Duration::from_millis(3500));
    second.once().exits(4).says(&["stale-source", "web01 has verified"]);
    bed.forge.git(&["reset", "-q", "--hard", &base]);
    motd(&bed, "right");
    right.take(&bed, "main");
    second.once().exits(4).says(&["forked-source", "web01 verified another commit"]);
    first.once().exits(4).says(&["forked-source", "web02 verified another commit"]);
}

/// A change that needs no restart.
fn motd(bed: &Bed, text: &str) -> String {
    bed.forge.write("roles/base/motd", &format!("{text}\n"));
    bed.commit(text)
}

fn lose_state(node: &NodeBed) {
    std::fs::remove_dir_all(node.root.join("var/lib/converger")).unwrap();
    std::fs::remove_dir_all(node.root.join("var/cache/converger")).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// A10: without freshness statements, what peers verified is how a frozen mirror is noticed.
#[test]
fn a_mirror_that_stands_still_is_stale_once_others_have_seen_more_for_three_polls() {
    let bed = Bed::new();
    let (quick, frozen) = (Mirror::of(&bed, "quick.git"), Mirror::of(&bed, "frozen.git"));
    let (first, second) = (quick.serves(&bed, "web01"), frozen.serves(&bed, "web02"));
    first.once().exits(0);
    second.once().exits(0);
    let old = bed.forge.head();
    let new = motd(&bed, "news");
    quick.take(&bed, "main");
    first.once().exits(0);
    let began = Instant::now();
    second.once().exits(0);
    let said = loop {
        assert!(began.elapsed() < Duration::from_secs(180), "never stale");
        let said = second.once();
        if said.code != 0 {
            break said;
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    assert!(began.elapsed() > Duration::from_secs(3), "stale before three polls");
    said.exits(4).says(&["stale-source", "web01 has verified", &new[..7]]);
    assert_eq!(second.report()["state"], "stale-source");
    assert_eq!(second.applied(), old);
    // It goes on enforcing what it has, and the fault is gone when the mirror is.
    second.put("etc/motd", "defaced\n");
    second.once().exits(4).says(&["drift, put back"]);
    bed.converger(&["status"]).says(&["stale-source"]);
    frozen.take(&bed, "main");
    second.once().exits(0);
    assert_eq!(second.applied(), new);
}

/// A12
#[test]
fn two_signed_successors_of_one_commit_are_a_fork_that_both_sides_see() {
    let bed = Bed::new();
    let (left, right) = (Mirror::of(&bed, "left.git"), Mirror::of(&bed, "right.git"));
    let (first, second) = (left.serves(&bed, "web01"), right.serves(&bed, "web02"));
    first.once().exits(0);
    second.once().exits(0);
    let base = bed.forge.head();
    let ours = motd(&bed, "left");
    left.take(&bed, "main");
    bed.forge.git(&["reset", "-q", "--hard", &base]);
    let theirs = motd(&bed, "right");
    right.take(&bed, "main");
    first.once().exits(0);
    second.once().exits(4).says(&["forked-source", "web01 verified another commit", &ours[..7], &theirs[..7]]);
    first.once().exits(4).says(&["forked-source", "web02 verified another commit"]);
    // Hints only: each goes on with the chain that it verified.
    assert_eq!(first.applied(), ours);
    assert_eq!(second.report()["target"]["commit"], theirs.as_str());
    assert!(second.text("etc/motd").contains("right"));
}

/// A32
#[test]
fn a_node_that_lost_its_state_still_does_not_go_back() {
    let bed = Bed::new();
    let mirror = Mirror::of(&bed, "mirror.git");
    let node = mirror.serves(&bed, "web01");
    node.once().exits(0);
    let old = bed.forge.head();
    let new = motd(&bed, "news");
    mirror.take(&bed, "main");
    node.once().exits(0);
    lose_state(&node);
    mirror.take(&bed, &old);
    let before = node.host();
    node.once().exits(4).says(&["rollback-floor", "by the store this node had number"]);
    assert!(node.host() == before, "something was changed on the host");
    // Nor is another branch of the same length taken for it.
    bed.forge.git(&["reset", "-q", "--hard", &old]);
    let other = motd(&bed, "another");
    mirror.take(&bed, "main");
    node.once().exits(4).says(&["not-descendant", &other[..7], &new[..7]]);
    assert!(node.host() == before, "something was changed on the host");
    mirror.take(&bed, &new);
    node.once().exits(0);
    assert_eq!(node.applied(), new);
}

/// A32: the disk of last week, and a forge that shows what was there last week.
#[test]
fn a_disk_that_was_set_back_is_noticed() {
    let bed = Bed::new();
    let mirror = Mirror::of(&bed, "mirror.git");
    let node = mirror.serves(&bed, "web01");
    node.once().exits(0);
    let old = bed.forge.head();
    let snapshot = bed.dir().join("snapshot");
    copy(&node.root.join("var"), &snapshot);
    let new = motd(&bed, "news");
    mirror.take(&bed, "main");
    node.once().exits(0);
    copy(&snapshot, &node.root.join("var"));
    mirror.take(&bed, &old);
    node.once().exits(4).says(&["rollback-floor"]);
    assert_eq!(node.report()["state"], "refused");
    mirror.take(&bed, &new);
    node.once().exits(0);
    assert_eq!(node.applied(), new);
}

/// A32: only what was accepted is lost. The ledger still knows how far this node was, without any store.
#[test]
fn a_node_that_lost_only_what_it_accepted_does_not_go_back() {
    let bed = Bed::new();
    let mirror = Mirror::of(&bed, "mirror.git");
    let node = mirror.serves(&bed, "web01");
    node.once().exits(0);
    let old = bed.forge.head();
    motd(&bed, "news");
    mirror.take(&bed, "main");
    node.once().exits(0);
    for lost in ["accepted.a", "accepted.b"] {
        let _ = std::fs::remove_file(node.root.join("var/lib/converger").join(lost));
    }
    node.settings("kind = \"local\"\npath = \"elsewhere.db\"");
    mirror.take(&bed, &old);
    node.once().exits(4).says(&["rollback-floor", "by its ledger this node had number"]);
}

#[test]
fn a_new_introduction_gives_up_the_floor_and_is_on_record() {
    let bed = Bed::new();
    let mirror = Mirror::of(&bed, "mirror.git");
    let node = mirror.serves(&bed, "web01");
    let old = bed.forge.head();
    motd(&bed, "news");
    mirror.take(&bed, "main");
    node.once().exits(0);
    mirror.take(&bed, &old);
    node.once().exits(4).says(&["rollback"]);
    assert_eq!(audit(&bed), Vec::<serde_json::Value>::new());
    let trust = node.text("etc/converger/trust.toml");
    let first = bed.forge.git(&["rev-list", "--max-parents=0", "main"]);
    node.put("etc/converger/trust.toml", &trust.replace(&first, &old).replace("seq = 1", "seq = 2"));
    node.once().exits(0);
    assert_eq!(node.applied(), old);
    let audit = audit(&bed);
    assert_eq!(audit.len(), 1, "{audit:?}");
    assert_eq!(audit[0]["what"], "re-introduction");
    assert_eq!(
        (audit[0]["from"]["introduction"].as_str(), audit[0]["to"]["introduction"].as_str()),
        (Some(first.as_str()), Some(old.as_str()))
    );
}

fn audit(bed: &Bed) -> Vec<serde_json::Value> {
    let entries = store(bed).read(&["audit/web01/"]).unwrap().entries;
    entries.iter().map(|entry| serde_json::from_slice(&entry.value).unwrap()).collect()
}

/// A peer that was taken over writes what it likes below its own name.
#[test]
fn a_lying_peer_raises_an_alarm_and_moves_nobody() {
    let bed = Bed::new();
    let mirror = Mirror::of(&bed, "mirror.git");
    let node = mirror.serves(&bed, "web01");
    node.once().exits(0);
    let lies = |value: &str| {
        let then = vec![Write::Put("n/web02/verified".to_owned(), value.as_bytes().to_vec())];
        store(&bed).commit(&Transaction { when: Vec::new(), then }).unwrap();
    };
    for garbage in ["", "{}", "\u{1b}[2J", "{\"introduction\":\"x\",\"commit\":\"y\",\"seq\":9,\"trail\":[]}"] {
        lies(garbage);
        node.once().exits(0);
    }
    let (id, digest) = ("7".repeat(40), "7".repeat(64));
    lies(&format!("{{\"introduction\":\"{id}\",\"commit\":\"{id}\",\"seq\":2,\"trail\":[\"{digest}\"]}}"));
    let new = motd(&bed, "news");
    mirror.take(&bed, "main");
    node.once().exits(4).says(&["forked-source", "web02 verified another commit at number 2"]);
    assert!(node.text("etc/motd").contains("news"), "the alarm kept the node back");
    assert_eq!(node.report()["target"]["commit"], new.as_str());
}
