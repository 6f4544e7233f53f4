//! Maintenance windows: what they say (a table), what waits for them and what does not; and holds that are lent.
//!
//! Never: the machine's own time where a clock can be set.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]
#![allow(clippy::disallowed_methods, reason = "tests run programs, write files and look at the clock")]

mod bed;
mod forge;

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use bed::Bed;
use converger::clock::FakeClock;
use converger::fleet::schema::Quorum;
use converger::fleet::window::{Opening, Window, opening};
use converger::fleet::{Group, MemberChange};
use converger::lock::fake::FakeStore;
use converger::lock::lent::Permission;
use converger::lock::session::{Circle, Entry, Intent, RecordPhase, Session};
use converger::lock::store::{LockStore as _, Transaction, Write};
use converger::name::{ClusterName, CommitId, NodeName, RoleName};
use converger::probe::Evidence;
use converger::probe::fake::{self, FakeProbe};
use jiff::{SignedDuration, Timestamp};

fn windows(said: &str) -> Vec<Window> {
    said.split(" | ").filter(|one| *one != "-").map(|one| one.parse().unwrap()).collect()
}

/// One row: windows, and times, or windows that are none.
fn answer(asked: &str) -> String {
    let lines: Vec<&str> = asked.lines().filter(|line| !line.starts_with('#')).collect();
    let said = |at: &str, opening: Opening| match opening {
        Opening::Now => format!("{at} open"),
        Opening::At(next) => format!("{at} opens at {next}"),
        Opening::Never => format!("{at} never opens"),
    };
    let answers: Vec<String> = match lines.iter().find_map(|line| line.strip_prefix("at ")) {
        Some(times) => {
            let clusters: Vec<Vec<Window>> =
                lines.iter().filter(|line| !line.starts_with("at ")).map(|line| windows(line)).collect();
            let clusters: Vec<&[Window]> = clusters.iter().map(Vec::as_slice).collect();
            times.split(' ').map(|at| said(at, opening(&clusters, at.parse().unwrap()))).collect()
        }
        None => lines.iter().map(|line| line.parse::<Window>().expect_err(line)).collect(),
    };
    answers.join("\n")
}

/// G31
#[test]
fn every_row_of_the_table_of_windows_says_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables/windows.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rows) = text.split_once("\n\n").unwrap();
    let asked = rows.split("\n\n").map(|row| row.split_once("\n----").unwrap().0.trim());
    let said: Vec<String> = asked.map(|asked| format!("{asked}\n----\n{}", answer(asked))).collect();
    assert!(said.len() >= 15, "{} rows", said.len());
    let said = format!("{head}\n\n{}\n", said.join("\n\n"));
    if std::env::var_os("CONVERGER_BLESS").is_some() {
        std::fs::write(&path, said).unwrap();
        return;
    }
    assert_eq!(text, said);
}

#[test]
fn what_opens_next_is_open_then_and_was_not_a_second_before() {
    for said in ["Sat 02:00-04:00", "Sun 23:30-00:30", "Mon-Fri 22:00-04:00", "Mon 00:00-24:00", "Tue,Thu 01:00-02:00"]
    {
        let windows = windows(said);
        let mut at: Timestamp = "2026-11-21T00:00:00.5Z".parse().unwrap();
        for _ in 0..500 {
            if let Opening::At(next) = opening(&[&windows], at) {
                assert!(next > at, "{said}, {at}");
                assert_eq!(opening(&[&windows], next), Opening::Now, "{said}, {at}");
                assert_ne!(opening(&[&windows], next - SignedDuration::from_secs(1)), Opening::Now, "{said}, {at}");
            }
            at += SignedDuration::from_mins(23);
        }
    }
}

// ---- one node of a group ----

const MEMBERS: [&str; 3] = ["n1", "n2", "n3"];

struct Node {
    me: NodeName,
    dir: tempfile::TempDir,
    group: Group,
    windows: Vec<(ClusterName, Vec<Window>)>,
    clock: std::sync::Arc<FakeClock>,
    store: FakeStore,
    probe: FakeProbe,
}

impl Node {
    /// `clusters`: with their windows; the group is of the first.
    fn new(clusters: &[(&str, &str)], now: &str) -> Self {
        let clock = std::sync::Arc::new(FakeClock::at(now.parse().unwrap()));
        let group = Group {
            id: "c.g".into(),
            members: MEMBERS.map(NodeName::from).to_vec(),
            changing: std::collections::BTreeMap::new(),
            quorum: Quorum::Majority,
            max_unavailable: 1,
            rank: Vec::new(),
            conflicts: Vec::new(),
            aliases: Vec::new(),
            unit: "x.service".into(),
            gate: Some("up".to_owned()),
            leader: None,
            settle_secs: 30,
            role: RoleName::from("x"),
        };
        let node = Self {
            me: "n1".into(),
            dir: tempfile::tempdir().unwrap(),
            group,
            windows: clusters.iter().map(|(name, said)| ((*name).into(), windows(said))).collect(),
            store: FakeStore::new("one", clock.clone()),
            clock,
            probe: FakeProbe::default(),
        };
        MEMBERS.iter().for_each(|member| node.probe.say(member, Evidence::healthy()));
        node
    }

    fn session(&self, seq: u64) -> Session<'_> {
        let question = |member: &NodeName| fake::question(&self.me, member, &"x.service".into());
        Session {
            me: &self.me,
            store: Ok(&self.store),
            probe: &self.probe,
            clock: &*self.clock,
            boot_id: "boot-1".to_owned(),
            state_is_old: true,
            record_path: self.dir.path().join("hold.json"),
            pin_path: self.dir.path().join("store.json"),
            circles: vec![Circle {
                view: None,
                group: Cow::Borrowed(&self.group),
                conflicts: Vec::new(),
                gate: self.group.members.iter().map(question).collect(),
                leader: Vec::new(),
                after: Vec::new(),
            }],
            clusters: Vec::new(),
            windows: self.windows.iter().map(|(name, windows)| (name.clone(), windows.as_slice())).collect(),
            commit: CommitId::new(format!("{seq:040}")),
            seq,
        }
    }

    fn enter(&self, seq: u64, intent: &Intent<'_>) -> String {
        match self.session(seq).enter(intent).unwrap() {
            Entry::Act { .. } => "act".to_owned(),
            Entry::Deferred(because) => because.reason,
        }
    }

    fn wants(&self) -> bool {
        self.store.read(&["n/n1/want/"]).unwrap().entries.len() == 1
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

fn restart() -> Intent<'static> {
    Intent {
        batch: "x.service",
        groups: vec!["c.g".into()],
        units: vec!["x.service".to_owned()],
        running: true,
        takes_node: false,
        start_secs_max: 30,
        change: MemberChange::None,
    }
}

const FRIDAY: &str = "2026-11-20T12:00:00Z";
const HOUR: Duration = Duration::from_secs(3600);

/// G31
#[test]
fn a_running_member_is_taken_inside_a_window_only_and_what_is_armed_finishes() {
    let node = Node::new(&[("c", "Sat 02:00-04:00")], FRIDAY);
    let Entry::Deferred(because) = node.session(5).enter(&restart()).unwrap() else { panic!("it went") };
    assert_eq!(because.reason, "outside-window");
    assert_eq!(
        because.sentence,
        "c moves in its windows only (Sat 02:00-04:00 UTC); the next opens at 2026-11-21T02:00:00Z"
    );
    assert_eq!(because.ends, "It opens at 2026-11-21T02:00:00Z.");
    assert_eq!(node.session(5).window_opens_in(), Some(14 * HOUR));
    assert_eq!(node.store.read(&["hold/"]).unwrap().entries, [], "nothing was claimed");

    node.pass(14 * HOUR);
    assert_eq!(node.session(5).window_opens_in(), None);
    assert_eq!(node.enter(5, &restart()), "act");
    node.pass(3 * HOUR);
    let session = node.session(5);
    session.acted().unwrap();
    assert_eq!(session.settled().unwrap(), None, "it gives back after the end of the window");
    assert_eq!(node.enter(6, &restart()), "outside-window");
}

#[test]
fn who_is_down_and_who_mends_a_failed_member_need_no_window() {
    let node = Node::new(&[("c", "Sat 02:00-04:00")], FRIDAY);
    assert_eq!(node.enter(5, &Intent { running: false, ..restart() }), "act", "it does not run");
    node.session(5).nothing_to_settle().unwrap();
    node.probe.say("n1", Evidence::unhealthy("sick"));
    assert_eq!(node.enter(5, &restart()), "act", "it runs and is sick, and nobody else has a hold");
    let session = node.session(5);
    session.acted().unwrap();
    session.sick("still sick").unwrap();
    assert_eq!(session.record().unwrap().phase, RecordPhase::Failed);
    assert_eq!(node.enter(6, &restart()), "act", "the revert is applied inside the hold");
}

/// G26
#[test]
fn a_whole_node_waits_for_the_windows_of_all_of_its_clusters() {
    let node = Node::new(&[("c", "Sat 02:00-04:00"), ("other", "Sat 03:00-05:00")], "2026-11-21T02:30:00Z");
    assert_eq!(node.enter(5, &Intent { takes_node: true, ..restart() }), "outside-window");
    assert_eq!(node.enter(5, &restart()), "act", "only the group's own cluster binds its unit");
    node.session(5).nothing_to_settle().unwrap();
    node.pass(HOUR);
    assert_eq!(node.enter(5, &Intent { takes_node: true, ..restart() }), "act");
}

/// G28
#[test]
fn what_is_worse_is_told_first_and_no_patience_runs_out_before_the_window_opens() {
    let node = Node::new(&[("c", "Sat 02:00-04:00")], FRIDAY);
    let put = |key: &str, value: &[u8]| {
        let put = Write::Put(key.to_owned(), value.to_vec());
        node.store.commit(&Transaction { when: Vec::new(), then: vec![put] }).unwrap();
    };
    node.probe.say("n3", Evidence::unhealthy("down"));
    assert_eq!(node.enter(5, &restart()), "degraded");
    node.probe.say("n3", Evidence::healthy());

    // Asked for inside a window that closed; it does not go on counting until the next one.
    node.pass(15 * HOUR);
    let mut last = node.session(5);
    last.circles[0].group.to_mut().rank = vec!["n2".into()];
    put("n/n2/beat", b"alive");
    assert!(matches!(last.enter(&restart()).unwrap(), Entry::Deferred(because) if because.reason == "order"));
    assert!(node.wants());
    node.pass(2 * HOUR);
    assert!(matches!(last.enter(&restart()).unwrap(), Entry::Deferred(because) if because.reason == "outside-window"));
    assert!(!node.wants());
    node.pass(7 * 24 * HOUR - 2 * HOUR);
    assert!(matches!(last.enter(&restart()).unwrap(), Entry::Deferred(because) if because.reason == "order"));
    node.pass(Duration::from_secs(121));
    assert!(matches!(last.enter(&restart()).unwrap(), Entry::Act { .. }));
}

// ---- holds that are lent to somebody else who reboots ----

fn reboot() -> Intent<'static> {
    Intent { batch: "reboot by another", takes_node: true, ..restart() }
}

fn lend(node: &Node) -> String {
    node.session(5).lend(&reboot()).unwrap().map_or("lent".to_owned(), |because| because.reason)
}

fn phase(node: &Node) -> Option<String> {
    let holds = node.store.read(&["hold/"]).unwrap().entries;
    holds.first().map(|entry| serde_json::from_slice::<serde_json::Value>(&entry.value).unwrap()["phase"].to_string())
}

/// G38: whoever was told that it may reboot may do so an hour later, so no time gives the hold back.
#[test]
fn a_permission_that_nobody_uses_is_told_and_never_ends_by_itself() {
    let node = Node::new(&[], FRIDAY);
    assert_eq!(node.session(5).permission(), Permission::Nobody);
    assert_eq!(lend(&node), "lent");
    assert_eq!(node.session(5).permission(), Permission::Fresh);
    assert_eq!(node.enter(5, &restart()), "rebooting", "nothing else is taken");
    node.pass(Duration::from_secs(601));
    let Permission::Unused(because) = node.session(5).permission() else { panic!("10 min are over") };
    assert_eq!((because.reason.as_str(), phase(&node).as_deref()), ("reboot-failed", Some("\"armed\"")));
    node.pass(100 * HOUR);
    assert!(matches!(node.session(6).permission(), Permission::Unused(_)), "no commit ends it");
    assert_eq!(node.enter(6, &restart()), "rebooting");
    // Asked again it is judged again, and the time begins anew.
    assert_eq!(lend(&node), "lent");
    assert_eq!(node.session(6).permission(), Permission::Fresh);
    // Another boot ends it: from then on it is a hold as any other.
    let mut session = node.session(6);
    session.boot_id = "boot-2".to_owned();
    assert_eq!(session.permission(), Permission::Nobody);
    session.acted().unwrap();
    assert_eq!(session.lend(&reboot()).unwrap().unwrap().reason, "settling");
    assert_eq!(session.settled().unwrap(), None);
    assert_eq!(phase(&node), None);
}

/// G26, G31: all of a node's rules hold for reboots by others: windows, freezes, the health of the others; asked again, a no
/// gives the hold back.
#[test]
fn a_permission_is_judged_each_time_it_is_asked_for() {
    let put = |node: &Node, key: &str| {
        let put = Write::Put(key.to_owned(), b"{}".to_vec());
        node.store.commit(&Transaction { when: Vec::new(), then: vec![put] }).unwrap();
    };
    let delete = |node: &Node, key: &str| {
        let delete = Write::Delete(key.to_owned());
        node.store.commit(&Transaction { when: Vec::new(), then: vec![delete] }).unwrap();
    };
    let node = Node::new(&[("c", "Sat 02:00-04:00"), ("other", "Sat 03:00-05:00")], "2026-11-21T02:30:00Z");
    assert_eq!(lend(&node), "outside-window", "the windows of all of its clusters");
    node.pass(HOUR);
    for (sick, key, reason) in
        [("n3", "", "degraded"), ("", "freeze/fleet", "frozen"), ("", "dead/n1", "declared-dead")]
    {
        assert_eq!(lend(&node), "lent");
        match sick {
            "" => put(&node, key),
            sick => node.probe.say(sick, Evidence::unknown("no answer")),
        }
        assert_eq!((lend(&node).as_str(), phase(&node)), (reason, None));
        assert_eq!((lend(&node).as_str(), phase(&node)), (reason, None), "nor is it claimed anew");
        node.probe.say("n3", Evidence::healthy());
        delete(&node, key);
    }
    assert_eq!(lend(&node), "lent");
    node.pass(HOUR);
    assert_eq!((lend(&node).as_str(), phase(&node)), ("outside-window", None), "it may have been asked for too early");
}

/// Released by an operator, or lost with the store: what was lent is not ours any more.
#[test]
fn a_permission_whose_hold_is_gone_is_none() {
    let node = Node::new(&[], FRIDAY);
    assert_eq!(lend(&node), "lent");
    let key = node.store.read(&["hold/"]).unwrap().entries[0].key.clone();
    node.store.commit(&Transaction { when: Vec::new(), then: vec![Write::Delete(key)] }).unwrap();
    assert_eq!(lend(&node), "lost-race");
    assert_eq!((node.session(5).permission(), phase(&node)), (Permission::Nobody, None));
    assert_eq!(lend(&node), "lent");
}

// ---- the whole agent ----

/// The commit that opens a window is the way to go now.
#[test]
fn an_agent_waits_for_its_window_and_goes_when_a_commit_opens_one() {
    let bed = Bed::new();
    for name in &bed::NODES[1..] {
        bed.node(name).once().exits(0);
    }
    let node = bed.node("web01");
    // In three days, for an hour.
    let far = Timestamp::now() + SignedDuration::from_hours(72);
    let day =
        ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"][usize::try_from((far.as_second() / 86400 + 3) % 7).unwrap()];
    let topology = "environments/production/topology.toml";
    bed.edit(topology, "roles = [\"web\"]\n", &format!("roles = [\"web\"]\nwindows = [\"{day} 00:00-24:00\"]\n"));
    bed.edit("roles/web/defaults.toml", "4", "8");
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("more workers, in time");
    let starts = node.starts("web.service");
    node.once().exits(6).says(&["outside-window", "web moves in its windows only", day]);
    assert!(node.text("etc/motd").contains("in production"), "what disrupts nobody goes on");
    assert!(node.text("etc/web/web.conf").contains("workers = 4"));
    assert_eq!(node.report()["reason"], "outside-window");
    bed.converger(&["why", "web01"]).says(&["outside-window", "opens at"]);
    // Stopped by hand meanwhile: it starts with what it last ran with, and needs no window for what is new either.
    bed.edit(topology, &format!("{day} 00:00-24:00"), "00:00-24:00");
    bed.commit("now");
    node.once().exits(0);
    assert!(node.text("etc/web/web.conf").contains("workers = 8"));
    assert_eq!(node.starts("web.service"), starts + 1);
}
