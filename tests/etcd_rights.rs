//! Who may do what in a real etcd with client certificates, as `converger etcd-acl` sets it, and what becomes of a node
//! whose rights or certificate end.
#![allow(clippy::disallowed_methods)] // starts etcd and the agent, and waits for them
#![allow(clippy::unwrap_used, clippy::panic)] // in what the tests share, as in the tests

mod bed;
mod etcd;
mod etcd_fleet;
mod forge;

use std::time::{Duration, Instant};

use bed::NODES;
use converger::lock::protocol;
use converger::lock::quorum::{Hold, HoldPhase};
use converger::lock::session::Entry;
use converger::lock::store::{Condition, LockStore, Outcome, StoreError, StoreKind, Transaction, Write, open};
use converger::name::{CommitId, GroupId};
use converger::probe::fake::FakeProbe;
use etcd::node::{Node, group};
use etcd::{Etcd, kind_of_user};
use etcd_fleet::Fleet;

fn write(store: &dyn LockStore, write: Write) -> Result<Outcome, StoreError> {
    store.commit(&Transaction { when: vec![], then: vec![write] })
}

fn put(key: &str) -> Write {
    Write::Put(key.to_owned(), b"forged".to_vec())
}

fn delete(key: &str) -> Write {
    Write::Delete(key.to_owned())
}

#[test]
fn rights_are_given_once_and_only_what_changed_is_changed_later() {
    let fleet = Fleet::new();
    let topology = fleet.bed.read("environments/production/topology.toml");
    let one_more = "\n[clusters.old]\ntier = \"front\"\nroles = [\"base\"]\n\n[nodes.old01]\nclusters = [\"old\"]\naddresses = { app = \"10.20.1.9\" }\n\
                    size = { vcpu = 2, memory_gib = 4, disk_gib = 20 }\n";
    fleet.bed.forge.write("environments/production/topology.toml", &format!("{topology}{one_more}"));
    let shown = fleet.acl(&["--operator", "ann"]).exits(0);
    shown.says(&[
        "converger/test/production/admin",
        "/converger/test/production/hold/web.web/0/web01",
        "Nothing was asked",
    ]);
    let lines = fleet.acl(&["--commands", "--operator", "ann"]).exits(0).out;
    let done = fleet.acl(&["--apply", "--operator", "ann"]).exits(0).out;
    assert_eq!(lines, done, "the lines for review are what is done");
    assert!(done.contains("etcdctl user add web01 --no-password"), "{done}");
    assert_eq!(fleet.acl(&["--apply", "--operator", "ann"]).exits(0).out, "nothing to change\n");
    // Who is an operator is not in the repository: they keep their role.
    assert_eq!(fleet.acl(&["--apply"]).exits(0).out, "nothing to change\n");

    fleet.bed.forge.write("environments/production/topology.toml", &topology);
    let kept = fleet.acl(&["--apply", "--keep"]).exits(0).out;
    assert!(kept.ends_with("that are not wanted any more were kept\n") && !kept.contains("etcdctl"), "{kept}");
    let gone = fleet.acl(&["--apply"]).exits(0).out;
    assert_eq!(
        gone.lines().collect::<Vec<_>>(),
        [
            "etcdctl user revoke-role old01 converger/test/production/node/old01",
            "etcdctl user delete old01",
            "etcdctl role delete converger/test/production/node/old01",
        ]
    );
    assert_eq!(fleet.acl(&["--apply"]).exits(0).out, "nothing to change\n");
    let said: serde_json::Value = serde_json::from_str(&fleet.acl(&["--json"]).exits(0).out).unwrap();
    assert_eq!(said["users"]["web01"], serde_json::json!(["converger/test/production/node/web01"]));
}

#[test]
fn authentication_is_not_turned_on_over_somebodys_head() {
    let fleet = Fleet::new();
    fleet.as_user("ann", &["etcd-acl", "--apply", "--operator", "ann"]).exits(0);
    fleet
        .as_user("ann", &["etcd-acl", "--enable-auth"])
        .exits(2)
        .says(&["your certificate says ann", "grant-role ann root"]);
    // Still off: whoever has a certificate may do everything.
    assert!(write(&*fleet.store("web01"), put("freeze/fleet")).is_ok());
    assert!(write(&*fleet.store("web01"), delete("freeze/fleet")).is_ok());
    let reserved = fleet.acl(&["--operator", "web01"]).exits(2);
    reserved.says(&["web01 is a node"]);

    // A server that asks nobody for a certificate would know nobody.
    let (cert, key) = fleet.ca.issue("server");
    let open = Etcd::start_with("https", &["--cert-file", cert.to_str().unwrap(), "--key-file", key.to_str().unwrap()]);
    let fleet = fleet.over(open);
    fleet.acl(&["--enable-auth"]).exits(2).says(&["answers clients without a certificate", "--client-cert-auth"]);
    let store = fleet.store("web01");
    store.identity().unwrap();
    let warnings = store.warnings();
    assert!(warnings.iter().any(|warning| warning.contains("--client-cert-auth")), "{warnings:?}");
}

/// G17, G19: agents with their own rights only roll a change through the group; under a group's former name too.
#[test]
fn agents_roll_a_change_with_their_own_rights_and_under_a_former_name_too() {
    let fleet = Fleet::with_rights();
    let nodes = NODES.map(|name| fleet.node(name));
    for node in &nodes {
        node.once().exits(0);
    }
    fleet.bed.edit("roles/web/defaults.toml", "4", "8");
    fleet.bed.commit("more workers");
    for node in &nodes {
        node.once().exits(0).says(&["hold web.web: claimed, asked, armed", "restart web.service"]);
    }
    assert_eq!(fleet.as_user("ann", &["holds", "list"]).exits(0).out, "no holds\n");
    fleet.as_user("ann", &["why", "web01"]).exits(0).says(&["Warning: etcd 3.5.16 has CVE-2026-33413"]);
    fleet.as_user("ann", &["status"]).exits(0).says(&["CVE-2026-73499", "(say 3 nodes)"]);

    // The rename: rights first, and the old ones stay until everybody has the commit.
    fleet.bed.edit("environments/production/topology.toml", "groups.web]", "groups.front]\naliases = [\"web.web\"]");
    fleet.bed.edit("roles/web/role.toml", "[groups.web]", "[groups.front]");
    fleet.bed.edit("roles/web/defaults.toml", "8", "16");
    fleet.acl(&["--apply", "--keep"]).exits(0).says(&["write /converger/test/production/hold/web.front/0/web01"]);
    fleet.bed.commit("another name");
    for node in &nodes {
        node.once().exits(0).says(&["hold web.front, web.web: claimed, asked, armed", "restart web.service"]);
    }
    assert_eq!(fleet.as_user("ann", &["holds", "list"]).exits(0).out, "no holds\n");
    fleet.acl(&["--apply"]).exits(0).says(&["nothing to change"]);
    fleet.bed.edit("environments/production/topology.toml", "\naliases = [\"web.web\"]", "");
    fleet.bed.edit("roles/web/defaults.toml", "16", "32");
    fleet.bed.commit("the former name is forgotten");
    // The unit still runs with it.
    let revoked =
        "revoke-permission converger/test/production/node/web01 /converger/test/production/hold/web.web/0/web01";
    let before = fleet.acl(&["--apply", "--keep"]).exits(0);
    assert!(!before.says(&["were kept"]).all().contains("revoke"));
    for node in &nodes {
        node.once().exits(0).says(&["restart web.service"]);
    }
    fleet.acl(&["--apply"]).exits(0).says(&[revoked]);
    fleet.bed.edit("roles/web/defaults.toml", "32", "64");
    fleet.bed.commit("still more workers");
    nodes[0].once().exits(0).says(&["hold web.front: claimed, asked, armed", "restart web.service"]);
}

/// G17, G18: what a node that was taken over can do to the others in the store.
#[test]
fn a_node_can_neither_free_nor_forge_what_is_anothers() {
    let fleet = Fleet::with_rights();
    let (web01, web02) = (fleet.store("web01"), fleet.store("web02"));
    let held = GroupId::from("web.web");
    let hold = Hold {
        group: held.clone(),
        lane: 0,
        node: "web01".into(),
        attempt: "a".to_owned(),
        commit: CommitId::new("c"),
        seq: 1,
        phase: HoldPhase::Claimed,
        units: Vec::new(),
        boot_id: String::new(),
        reason: String::new(),
        since: jiff::Timestamp::UNIX_EPOCH,
        change: converger::fleet::MemberChange::None,
    };
    let read_at = web01.read(&["hold/"]).unwrap().revision;
    let claim = protocol::claim(&[hold], std::slice::from_ref(&held), &[], read_at, &"web01".into());
    assert!(matches!(web01.commit(&claim), Ok(Outcome::Committed(_))));

    let others = [
        "hold/web.web/0/web01",
        "hold/web.web/0/web03",
        "hold/web.web/1/web02",
        "hold/web.web/0/web02/more",
        "hold/web.other/0/web02",
        "hold/@environment/0/web02",
        "n/web01/report",
        "n/web01/verified",
        "n/web01/beat",
        "n/web01/want/web.web",
        "n/web03/report",
        "freeze/fleet",
        "freeze/g/web.web",
        "freeze/n/web01",
        "dead/web01",
        "dead/web02",
        "meta",
        "wake",
        "audit/web01/1",
        "act/web/web01",
        "act/other/web02",
        "action/other/topics",
        "single/other/x.service",
        "spec/web.other",
        "anything",
    ];
    for key in others {
        for (what, forged) in [("write", put(key)), ("delete", delete(key))] {
            let answer = write(&*web02, forged);
            assert!(matches!(answer, Err(StoreError::Denied { .. })), "{what} {key}: {answer:?}");
        }
    }
    // What is its own, it may write.
    let own = [
        "n/web02/report",
        "audit/web02/1",
        "act/web/web02",
        "action/web/topics",
        "single/web/x.service",
        "spec/web.web",
    ];
    for key in own {
        assert!(write(&*web02, put(key)).is_ok(), "{key}");
        assert!(write(&*web02, delete(key)).is_ok(), "{key}");
    }
    let when = vec![Condition::RangeEmpty(protocol::hold_range(&held))];
    let second = Transaction { when, then: vec![put("hold/web.web/0/web02")] };
    assert!(matches!(web02.commit(&second), Ok(Outcome::Refused)), "web01's claim stands");

    // Another environment is none of its business, and a certificate without a user is nobody.
    let elsewhere = open(kind_of_user(&fleet.etcd, &fleet.ca, &fleet.ca.issue("web02")), "test", "staging").unwrap();
    assert!(matches!(elsewhere.read(&["n/"]), Err(StoreError::Denied { .. })));
    assert!(matches!(fleet.store("nobody").read(&["hold/"]), Err(StoreError::Denied { .. })));
    let anonymous = StoreKind::Etcd {
        endpoints: vec![format!("https://127.0.0.1:{}", fleet.etcd.port)],
        ca: Some(fleet.ca.path.clone()),
        cert: None,
        key: None,
    };
    let anonymous = open(anonymous, "test", "production").unwrap();
    assert!(anonymous.read(&["hold/"]).is_err() && write(&*anonymous, put("hold/web.web/0/web01")).is_err());
    // Nor can a node give itself more.
    fleet.as_user("web02", &["etcd-acl", "--apply"]).exits(7).says(&["store-denied"]);
    // An operator may.
    assert!(write(&*fleet.store("ann"), put("freeze/fleet")).is_ok());
}

/// G33: rights that are taken away and certificates that expire while a hold is armed. It stays, and goes back when they are mended.
#[test]
fn a_holder_without_rights_or_certificate_keeps_its_hold_until_it_is_mended() {
    let fleet = Fleet::with_rights();
    let probe = FakeProbe::healthy(NODES);
    let node = Node::new("web01", &group("web.web", &NODES));
    let store = fleet.store("web01");
    let operator = fleet.store("ann");
    let holds = || operator.read(&["hold/"]).unwrap().entries.len();
    let role = "converger/test/production/node/web01";
    let because = |seq: u64| {
        let session = node.session(&*store, &probe, seq);
        match session.enter(&node.intent(true)).unwrap() {
            Entry::Act { .. } => "act".to_owned(),
            Entry::Deferred(because) => because.reason,
        }
    };

    // Without its role it asks in vain, and no trace is left.
    fleet.etcdctl(&["user", "revoke-role", "web01", role]);
    assert_eq!((because(1), holds()), ("store-denied".to_owned(), 0));
    fleet.acl(&["--apply"]).exits(0).says(&["user grant-role web01"]);
    assert_eq!((because(1), holds()), ("act".to_owned(), 1));

    // Taken away under an armed hold; the user itself is gone.
    fleet.etcdctl(&["user", "delete", "web01"]);
    let session = node.session(&*store, &probe, 1);
    session.acted().unwrap();
    let not_yet = session.settled().unwrap().expect("it cannot be given back");
    assert_eq!((not_yet.reason.as_str(), holds()), ("store-denied", 1), "{}", not_yet.sentence);
    assert!(session.record().is_some(), "what is held is remembered");
    fleet.acl(&["--apply"]).exits(0).says(&["user add web01"]);
    assert_eq!(session.settled().unwrap(), None);
    assert_eq!((holds(), session.record()), (0, None));

    // An expired certificate: another agent of the node is not let in with it.
    assert_eq!(because(2), "act");
    session.acted().unwrap();
    let expired = fleet.ca.issue_until("web01", 2001);
    let store = open(kind_of_user(&fleet.etcd, &fleet.ca, &expired), "test", "production").unwrap();
    let session = node.session(&*store, &probe, 2);
    let not_yet = session.settled().unwrap().expect("it cannot be given back");
    let reasons = ["store-denied", "store-unreachable"];
    assert!(
        reasons.contains(&not_yet.reason.as_str()) && not_yet.sentence.contains("certificate"),
        "{}",
        not_yet.sentence
    );
    assert_eq!(holds(), 1);
    fleet.ca.issue("web01");
    let end = Instant::now() + Duration::from_secs(60);
    while let Some(not_yet) = session.settled().unwrap() {
        assert!(Instant::now() < end, "{}", not_yet.sentence);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!((holds(), session.record()), (0, None));
}
