//! The hold protocol: its decisions as tables, its sessions over every store, and whole nodes that die at every step.
//!
//! Never: a sleep where a clock can be moved.
#![allow(clippy::disallowed_methods, reason = "starts etcd and waits for it; blessing writes the tables")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]

mod fleet_of;
mod one_run;
#[path = "locks/views.rs"]
mod views;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use converger::apply::{self, Reach, Tools};
use converger::clock::{Clock, FakeClock, SystemClock};
use converger::fleet::schema::{CheckKind, Membership, Quorum};
use converger::fleet::{Fleet, Group, MemberChange};
use converger::host::fake::FakeHost;
use converger::host::{Done, Host, HostError, Observed, Query, Step};
use converger::ledger::Ledger;
use converger::lock::fake::{FakeStore, Fault};
use converger::lock::local::LocalStore;
use converger::lock::machine::{self, Action, Event, Phase};
use converger::lock::protocol;
use converger::lock::quorum::{self, Because, Freeze, Ground, Hold, HoldPhase, Member, Situation, Verdict};
use converger::lock::session::{Circle, Entry, Intent, Record, RecordPhase, Session, Swept, because_of};
use converger::lock::store::{LockStore, Outcome, Snapshot, StoreError, StoreKind, Transaction, Watch, Write, open};
use converger::lock::view::{self, Standing};
use converger::name::{ClusterName, CommitId, GroupId, NodeName, RoleName};
use converger::pipeline;
use converger::plan::plan;
use converger::probe::fake::{self, FakeProbe};
use converger::probe::{Evidence, Health, Listed, LiveProbe, Probe as _, Question};
use converger::reason;
use converger::render::Renderer;
use converger::resource::unit::Active;
use converger::secrets::Unsealed;
use converger::settle::Vigil;
use fleet_of::{Files, spec};
use one_run::{Death, Ran, Target, quiet_deaths};

// ---- the tables ----

fn commit(seq: u64) -> CommitId {
    CommitId::new(format!("c{seq}"))
}

fn group(id: &str, members: &[&str], quorum: Quorum, max_unavailable: usize) -> Group {
    Group {
        id: id.into(),
        members: members.iter().map(|name| NodeName::from(*name)).collect(),
        changing: BTreeMap::new(),
        quorum,
        max_unavailable,
        rank: Vec::new(),
        conflicts: Vec::new(),
        aliases: Vec::new(),
        unit: "x.service".into(),
        gate: Some("gate".to_owned()),
        leader: None,
        settle_secs: 10,
        role: RoleName::from("r"),
    }
}

fn hold(group: &GroupId, lane: usize, node: &str, phase: HoldPhase, seq: u64) -> Hold {
    Hold {
        group: group.clone(),
        lane,
        node: node.into(),
        attempt: format!("attempt of {node}"),
        commit: commit(seq),
        seq,
        phase,
        units: vec!["x.service".to_owned()],
        boot_id: "boot".to_owned(),
        reason: "gate says no".to_owned(),
        since: jiff::Timestamp::UNIX_EPOCH,
        change: MemberChange::None,
    }
}

/// Blocks of situation, `----`, answer.
fn answer_quorum(situation: &str) -> String {
    let mut the_group = None;
    let mut me = None;
    let mut running = true;
    let mut members = Vec::new();
    let (mut holds, mut conflicting, mut proven, mut after) = (Vec::new(), Vec::new(), BTreeSet::new(), Vec::new());
    let mut change = MemberChange::None;
    let changes = |word: &str| match word.split_once('=') {
        _ if word == "joins" => MemberChange::Joins,
        _ if word == "leaves" => MemberChange::Leaves,
        Some(("strikes", node)) => MemberChange::Strikes(node.into()),
        _ => MemberChange::None,
    };
    let (mut freeze, mut asked_secs, mut seq, mut view) = (None, 0, 5, Standing::InForce);
    for line in situation.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let list = |name: &str| value(name).map(|v| v.split(',').collect::<Vec<_>>()).unwrap_or_default();
        let number = |text: &str| text.parse::<u64>().unwrap();
        match words[0] {
            "group" => {
                let quorum = if words[2] == "none" { Quorum::None } else { Quorum::Majority };
                let mut said = group(words[1], &[], quorum, words[3].parse().unwrap());
                said.rank = list("rank").into_iter().map(NodeName::from).collect();
                said.aliases = list("alias").into_iter().map(GroupId::from).collect();
                said.conflicts = list("conflicts").into_iter().map(GroupId::from).collect();
                the_group = Some(said);
            }
            "take" => seq = number(words[1]),
            "hold" => {
                let own = &the_group.as_ref().unwrap().id;
                let of = value("of").map_or_else(|| own.clone(), GroupId::from);
                let phase = match words[2] {
                    "claimed" => HoldPhase::Claimed,
                    "armed" => HoldPhase::Armed,
                    _ => HoldPhase::Failed,
                };
                let lane = value("lane").map_or(0, |lane| lane.parse().unwrap());
                let mut hold = hold(&of, lane, words[1], phase, value("at").map_or(5, number));
                hold.change =
                    words.iter().map(|word| changes(word)).find(|change| !change.is_none()).unwrap_or_default();
                let conflicts = the_group.as_ref().unwrap().conflicts.contains(&of);
                if conflicts { conflicting.push(hold) } else { holds.push(hold) }
            }
            "proven" => drop(proven.insert(number(words[1]))),
            "frozen" => {
                let until = value("until").map(|until| until.parse().unwrap());
                freeze = Some(Freeze { by: words[1].to_owned(), reason: words[2].to_owned(), until });
            }
            "after" => {
                let missing = words[2..].iter().map(|name| NodeName::from(*name)).collect();
                after.push((ClusterName::from(words[1]), missing));
            }
            "declared" => {
                let at = number(words[1]);
                view = match words[2] {
                    "alike" => Standing::InForce,
                    _ if at < seq => Standing::Moves,
                    _ => Standing::Behind { seq: at, commit: commit(at) },
                };
            }
            "change" => change = changes(words[1]),
            "asked" => asked_secs = number(words[1]),
            name => {
                let has = |word: &str| words.contains(&word);
                if has("me") {
                    me = Some(NodeName::from(name));
                    running = !has("stopped");
                }
                let health = match (value("sick"), value("unknown")) {
                    (Some(why), _) => Health::Unhealthy(why.to_owned()),
                    (_, Some(why)) => Health::Unknown(why.to_owned()),
                    _ if has("stopped") => Health::Unhealthy("does not run".to_owned()),
                    _ => Health::Healthy,
                };
                let state = match () {
                    () if has("joining") => Membership::Joining,
                    () if has("draining") => Membership::Draining,
                    () if has("retired") => Membership::Retired,
                    () => Membership::Active,
                };
                let listed = value("lists").map(|names| names.split(',').collect::<Vec<_>>());
                members.push(Member {
                    name: name.into(),
                    state,
                    lists: listed.map(|names| Listed {
                        members: names.iter().map(|name| NodeName::from(*name)).collect(),
                        strangers: value("strangers")
                            .map(|names| names.split(',').map(str::to_owned).collect())
                            .unwrap_or_default(),
                    }),
                    health,
                    leads: has("leads"),
                    applied_seq: value("applied").map(number),
                    wants_since: has("wants").then_some(jiff::Timestamp::UNIX_EPOCH),
                    silent: has("silent"),
                    dead: has("dead"),
                });
            }
        }
    }
    let (group, me) = (the_group.unwrap(), me.unwrap());
    let situation = Situation {
        group: &group,
        me: &me,
        commit: &commit(seq),
        seq,
        members,
        running,
        change,
        holds,
        conflicting,
        proven,
        freeze,
        view,
        after,
        asked_secs,
    };
    let said = |verdict: Verdict| match verdict {
        Verdict::Go { lane, ground } => format!("go, lane {lane}, {ground:?}").to_lowercase(),
        Verdict::Wait(because) => format!("wait {}: {}", because.reason, because.sentence),
        Verdict::Never(because) => format!("never {}: {}", because.reason, because.sentence),
    };
    format!("claim {}\narm   {}", said(quorum::may_claim(&situation)), said(quorum::may_arm(&situation)))
}

fn table(name: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    (path, text)
}

fn bless(path: &Path, found: &str, said: &str) {
    if std::env::var_os("CONVERGER_BLESS").is_some() {
        std::fs::write(path, said).unwrap();
        return;
    }
    for (found, said) in found.lines().zip(said.lines()) {
        assert_eq!(found, said, "{}", path.display());
    }
    assert_eq!(found.lines().count(), said.lines().count(), "{}", path.display());
}

#[test]
fn every_row_of_the_quorum_table_says_what_it_says() {
    let (path, text) = table("quorum.txt");
    let (head, rows) = text.split_once("\n\n").unwrap();
    let mut said = head.to_owned();
    let mut count = 0;
    for row in rows.split("\n\n").map(str::trim).filter(|row| !row.is_empty()) {
        let situation = row.split_once("\n----").unwrap().0;
        said += &format!("\n\n{situation}\n----\n{}", answer_quorum(situation));
        count += 1;
    }
    said.push('\n');
    assert!(count >= 40, "{count} rows");
    bless(&path, &text, &said);
}

/// As Kafka's tool prints the voters of a row of the table of controllers.
fn kafka_prints(voters: &[&str]) -> String {
    const NOW: u64 = 1_732_000_000_000;
    let mut table = "NodeId\tLogEndOffset\tLag\tLastFetchTimestamp\tLastCaughtUpTimestamp\tStatus\n".to_owned();
    for (at, voter) in voters.iter().enumerate() {
        let (id, behind) = voter.split_once(':').unwrap();
        let caught_up = behind.parse::<u64>().map_or("-1".to_owned(), |behind| (NOW - behind).to_string());
        let status = if at == 0 { "Leader" } else { "Follower" };
        table += &format!("{id}\t900\t0\t{NOW}\t{caught_up}\t{status}\n");
    }
    table
}

/// Each voter is asked by the real check; the answers are judged as a group's.
fn answer_controllers(row: &str) -> String {
    let words = |name: &str| -> Vec<&str> {
        row.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().collect()
    };
    let (voters, roll) = (words("voters "), words("roll ")[0]);
    let printed = kafka_prints(&voters);
    let live = LiveProbe {
        run: Arc::new(move |_, _, _| Ok(converger::probe::Ran { code: 0, stdout: printed.clone() })),
        unit_state: Arc::new(|_| Err("no unit".to_owned())),
    };
    let ids: Vec<&str> = voters.iter().map(|voter| voter.split(':').next().unwrap()).collect();
    let members: Vec<_> = ids.iter().map(|id| (NodeName::from(*id), "127.0.0.1".to_owned())).collect();
    let mut situation = "group kafka.controllers majority 1\nasked 9999\n".to_owned();
    for id in ids {
        let asked = Question {
            kind: CheckKind::KafkaQuorum,
            id: id.parse().ok(),
            run: vec!["kafka-metadata-quorum.sh".to_owned()],
            members: members.clone(),
            ..fake::question(&roll.into(), &id.into(), &"x.service".into())
        };
        let health = match live.ask(&asked).health {
            Health::Healthy => String::new(),
            Health::Unhealthy(why) => format!(" sick={}", why.replace(' ', "-")),
            Health::Unknown(why) => format!(" unknown={}", why.replace(' ', "-")),
        };
        situation += &format!("n{id} {}up silent{health}\n", if id == roll { "me " } else { "" });
    }
    answer_quorum(&situation).lines().last().unwrap().trim_start_matches("arm").trim().to_owned()
}

/// G41
#[test]
fn every_row_of_the_table_of_controllers_says_what_it_says() {
    let (path, text) = table("controllers.txt");
    let (head, rows) = text.split_once("\n\n").unwrap();
    let mut said = head.to_owned();
    for row in rows.split("\n\n").map(str::trim).filter(|row| !row.is_empty()) {
        let row = row.split_once("\n----").unwrap().0;
        said += &format!("\n\n{row}\n----\n{}", answer_controllers(row));
    }
    said.push('\n');
    assert!(said.matches("----").count() >= 13, "rows are missing");
    bless(&path, &text, &said);
}

#[test]
fn every_pair_that_can_happen_is_in_the_machine_table() {
    let because = || Because::new(reason::STORE_UNREACHABLE, None, "no answer".to_owned());
    let go = || Verdict::Go { lane: 1, ground: Ground::Spared };
    let wait = || Verdict::Wait(Because::new(reason::DEGRADED, None, "too few".to_owned()));
    let never = || Verdict::Never(Because::new(reason::QUORUM_TOO_SMALL, None, "never".to_owned()));
    let why = || "why".to_owned();
    let phases = [
        Phase::Idle,
        Phase::Claiming { lanes: vec![1] },
        Phase::Claimed,
        Phase::Arming,
        Phase::Armed,
        Phase::Acting,
        Phase::Repairing,
        Phase::Settling,
        Phase::Failed,
        Phase::Releasing,
        Phase::Done,
    ];
    let events = [
        ("judged: go", Event::Judged(vec![go(), go()])),
        ("judged: go, wait", Event::Judged(vec![go(), wait()])),
        ("judged: wait, never", Event::Judged(vec![wait(), never()])),
        ("judged: nobody", Event::Judged(vec![])),
        ("committed", Event::Committed),
        ("refused", Event::Refused),
        ("recovered, mine", Event::Recovered { mine: true }),
        ("recovered, not mine", Event::Recovered { mine: false }),
        ("lost", Event::Lost(because())),
        ("recorded", Event::Recorded),
        ("acted", Event::Acted),
        ("nothing to settle", Event::NothingToSettle),
        ("nothing stopped", Event::NothingStopped(why())),
        ("act failed", Event::ActFailed(why())),
        ("settled", Event::Settled),
        ("sick", Event::Sick(why())),
        ("repair", Event::Repair),
    ];
    let mut said =
        "# (phase, event) -> (phase, action) of a hold. A pair that is not here changes nothing and ends the \
                    attempt (`internal`).\n# CONVERGER_BLESS=1 cargo test --test locks writes it anew.\n"
            .to_owned();
    for phase in &phases {
        for (name, event) in &events {
            let (next, action) = machine::step(phase.clone(), event.clone());
            let action = match action {
                Action::Wait(because) if because.sentence.contains("does not belong") => {
                    assert_eq!(*phase, next, "what does not belong changes nothing");
                    continue;
                }
                Action::Wait(because) => format!("Wait {}: {}", because.reason, because.sentence),
                action => format!("{action:?}"),
            };
            said += &format!("{phase:?}, {name} -> {next:?}, {action}\n");
        }
    }
    let (path, text) = table("machine.txt");
    bless(&path, &text, &said);
}

// ---- sessions over every store ----

/// One node of a session test.
struct Agent {
    me: NodeName,
    dir: tempfile::TempDir,
    groups: Vec<Group>,
    clock: FakeClock,
    boot: String,
}

impl Agent {
    fn new(me: &str, groups: &[&Group]) -> Self {
        Self {
            me: me.into(),
            dir: tempfile::tempdir().unwrap(),
            groups: groups.iter().map(|group| (*group).clone()).collect(),
            clock: FakeClock::at(SystemClock.now()),
            boot: "boot-1".to_owned(),
        }
    }

    fn session<'a>(&'a self, store: &'a dyn LockStore, probe: &'a FakeProbe, seq: u64) -> Session<'a> {
        let circle = |group: &'a Group| Circle {
            group: Cow::Borrowed(group),
            view: Some(view::digest_of(group)),
            conflicts: group.conflicts.clone(),
            gate: group.members.iter().map(|name| fake::question(&self.me, name, &"x.service".into())).collect(),
            leader: Vec::new(),
            after: Vec::new(),
        };
        Session {
            me: &self.me,
            store: Ok(store),
            probe,
            clock: &self.clock,
            boot_id: self.boot.clone(),
            state_is_old: true,
            record_path: self.dir.path().join("hold.json"),
            pin_path: self.dir.path().join("store.json"),
            circles: self.groups.iter().map(circle).collect(),
            clusters: Vec::new(),
            windows: Vec::new(),
            commit: commit(seq),
            seq,
        }
    }

    fn intent(&self, running: bool) -> Intent<'static> {
        Intent {
            batch: "x.service",
            groups: self.groups.iter().map(|group| group.id.clone()).collect(),
            units: vec!["x.service".to_owned()],
            running,
            takes_node: false,
            start_secs_max: 30,
            change: MemberChange::None,
        }
    }
}

fn why(entry: &Entry) -> &str {
    match entry {
        Entry::Act { .. } => "act",
        Entry::Deferred(because) => &because.reason,
    }
}

fn fake() -> FakeStore {
    FakeStore::new("one", Arc::new(FakeClock::at(SystemClock.now())))
}

fn put(store: &dyn LockStore, key: &str, value: &str) {
    let then = vec![Write::Put(key.to_owned(), value.into())];
    store.commit(&Transaction { when: vec![], then }).unwrap();
}

fn delete(store: &dyn LockStore, key: &str) {
    store.commit(&Transaction { when: vec![], then: vec![Write::Delete(key.to_owned())] }).unwrap();
}

/// `GROUP/LANE/NODE PHASE` of every hold.
fn holds(store: &dyn LockStore) -> Vec<String> {
    let read = store.read(&["hold/"]).unwrap();
    let line = |key: &str, value: &[u8]| {
        let hold: Hold = serde_json::from_slice(value).unwrap();
        format!("{} {:?}", key.trim_start_matches("hold/"), hold.phase).to_lowercase()
    };
    read.entries.iter().map(|entry| line(&entry.key, &entry.value)).collect()
}

/// A client that lets the others in between at every call, at random.
struct Shaken {
    store: Box<dyn LockStore>,
    seed: AtomicU64,
}

impl Shaken {
    fn new(store: Box<dyn LockStore>, seed: u64) -> Self {
        Self { store, seed: AtomicU64::new(seed * 7919 + 1) }
    }

    fn shake(&self) {
        let mut x = self.seed.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.seed.store(x, Ordering::Relaxed);
        for _ in 0..x % 7 {
            std::thread::yield_now();
        }
    }
}

impl LockStore for Shaken {
    fn identity(&self) -> Result<String, StoreError> {
        self.store.identity()
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.shake();
        self.store.read(prefixes)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        self.shake();
        self.store.commit(transaction)
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        self.store.watch(prefixes, on_change)
    }
}

/// Members take rounds of holds on all of their groups at once; each counts who is away.
fn nobody_shares(
    groups: &[Group],
    conflicts: &[(usize, usize)],
    rounds: u64,
    open: &(dyn Fn() -> Box<dyn LockStore> + Sync),
) {
    let names: BTreeSet<&str> = groups.iter().flat_map(|group| &group.members).map(|name| name.as_str()).collect();
    let probe = FakeProbe::healthy(names.iter().copied());
    let away: Vec<AtomicUsize> = groups.iter().map(|_| AtomicUsize::new(0)).collect();
    let all_taken = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (number, name) in names.iter().enumerate() {
            let (probe, away, all_taken) = (&probe, &away, &all_taken);
            scope.spawn(move || {
                let mine: Vec<usize> =
                    (0..groups.len()).filter(|at| groups[*at].members.contains(&NodeName::from(*name))).collect();
                let own: Vec<&Group> = mine.iter().map(|at| &groups[*at]).collect();
                let agent = Agent::new(name, &own);
                let store = Shaken::new(open(), number as u64 + 1);
                for seq in 1..=rounds {
                    let session = agent.session(&store, probe, seq);
                    let end = Instant::now() + Duration::from_secs(120);
                    loop {
                        assert!(Instant::now() < end, "{name} starves in round {seq}");
                        match session.enter(&agent.intent(true)).unwrap() {
                            Entry::Act { .. } => break,
                            Entry::Deferred(because) => {
                                assert_ne!(because.reason, "internal", "{}", because.sentence);
                                std::thread::yield_now();
                            }
                        }
                    }
                    // Whoever asks now must see it down; it does not matter for the count, which is the promise.
                    for at in &mine {
                        let others = away[*at].fetch_add(1, Ordering::SeqCst);
                        assert!(others < groups[*at].max_unavailable, "{others} others of {} are away", groups[*at].id);
                    }
                    for (a, b) in conflicts.iter().filter(|(a, b)| mine.contains(a) || mine.contains(b)) {
                        let both = away[*a].load(Ordering::SeqCst) > 0 && away[*b].load(Ordering::SeqCst) > 0;
                        assert!(!both || (mine.contains(a) && mine.contains(b)), "conflicting groups are both away");
                    }
                    store.shake();
                    for at in &mine {
                        away[*at].fetch_sub(1, Ordering::SeqCst);
                    }
                    session.acted().unwrap();
                    while session.settled().unwrap().is_some() {}
                    all_taken.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(all_taken.load(Ordering::SeqCst) as u64, rounds * names.len() as u64);
}

fn three() -> Vec<Group> {
    vec![group("c.g", &["n1", "n2", "n3"], Quorum::Majority, 1)]
}

/// Overlapping groups in opposite orders, one with a former name, two that conflict.
fn crossing() -> Vec<Group> {
    let mut a = group("c.a", &["n1", "n2", "n3"], Quorum::None, 1);
    let mut b = group("c.b", &["n4", "n3", "n2"], Quorum::None, 1);
    let mut c = group("d.c", &["n5", "n4"], Quorum::None, 1);
    b.aliases = vec!["c.old".into()];
    a.conflicts = vec![c.id.clone()];
    c.conflicts = vec![a.id.clone()];
    vec![a, b, c]
}

#[test]
fn s1_s7_s8_never_two_of_a_group_over_the_fake() {
    let store = fake();
    nobody_shares(&three(), &[], 60, &|| Box::new(store.clone()));
    nobody_shares(&crossing(), &[(0, 2)], 40, &|| Box::new(store.clone()));
}

#[test]
fn s1_s7_s8_never_two_of_a_group_over_the_local_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let open = || -> Box<dyn LockStore> {
        Box::new(LocalStore::open(&path, "/converger/f/e/".to_owned(), Arc::new(SystemClock)).unwrap())
    };
    nobody_shares(&three(), &[], 20, &open);
    nobody_shares(&crossing(), &[(0, 2)], 10, &open);
}

struct Etcd {
    child: Child,
    kind: StoreKind,
    _dir: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Self {
        let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/etcd-3.5.16/bin/etcd");
        let binary = std::env::var_os("CONVERGER_ETCD").map_or(cached, PathBuf::from);
        assert!(binary.is_file(), "run tools/etcd first (make test does)");
        let port = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (port, peer) = (port(), port());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(binary)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error", "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let kind = StoreKind::Etcd { endpoints: vec![client], ca: None, cert: None, key: None };
        let etcd = Self { child, kind, _dir: dir };
        let end = Instant::now() + Duration::from_secs(120);
        let store = etcd.open();
        while let Err(error) = store.read(&[""]) {
            assert!(Instant::now() < end, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        etcd
    }

    fn open(&self) -> Box<dyn LockStore> {
        open(self.kind.clone(), "f", "e").unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn s1_s7_s8_never_two_of_a_group_over_etcd() {
    let etcd = Etcd::start();
    nobody_shares(&three(), &[], 25, &|| etcd.open());
    nobody_shares(&crossing(), &[(0, 2)], 10, &|| etcd.open());
}

#[test]
fn p1_p2_claim_arm_and_record_come_before_acting_and_nothing_has_a_lease() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    assert_eq!(holds(&store), ["c.g/0/n1 armed"]);
    let record = session.record().unwrap();
    assert_eq!((record.phase, record.seq, record.holds.len()), (RecordPhase::Acting, 5, 1));
    assert_eq!(record.holds[0].1, store.read(&["hold/"]).unwrap().entries[0].create_revision, "the token");
    // Years later it is still there.
    agent.clock.advance(Duration::from_secs(100_000_000));
    let other = Agent::new("n2", &[&groups[0]]);
    let there = other.session(&store, &probe, 5);
    assert_eq!(why(&there.enter(&other.intent(true)).unwrap()), "held-by-peer");
    session.acted().unwrap();
    assert_eq!(why(&there.enter(&other.intent(true)).unwrap()), "held-by-peer", "started is not settled");
    assert!(session.settled().unwrap().is_none());
    assert!(session.record().is_none());
    assert_eq!(why(&there.enter(&other.intent(true)).unwrap()), "act");
}

#[test]
fn p2_the_probe_comes_after_the_claim() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    // Right after the claim was written another member goes away.
    let store =
        Meddled { store, at: AtomicUsize::new(2), then: Box::new(|_| panic!("armed although a member is away")) };
    let watched = Away { store: &store, probe: &probe };
    let session = agent.session(&watched, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "degraded");
    assert_eq!(holds(&store), [] as [&str; 0], "given back");
    assert!(session.record().is_none());
}

/// n2 goes away as soon as a hold was written.
struct Away<'a> {
    store: &'a dyn LockStore,
    probe: &'a FakeProbe,
}

impl LockStore for Away<'_> {
    fn identity(&self) -> Result<String, StoreError> {
        self.store.identity()
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.store.read(prefixes)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let outcome = self.store.commit(transaction);
        if transaction.then.iter().any(|write| matches!(write, Write::Put(key, _) if key.starts_with("hold/"))) {
            self.probe.say("n2", Evidence::unhealthy("went away"));
        }
        outcome
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        self.store.watch(prefixes, on_change)
    }
}

/// A store in which something happens right before the n-th commit that puts a hold.
struct Meddled<'a> {
    store: FakeStore,
    at: AtomicUsize,
    then: Box<dyn Fn(&FakeStore) + Send + Sync + 'a>,
}

impl LockStore for Meddled<'_> {
    fn identity(&self) -> Result<String, StoreError> {
        self.store.identity()
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.store.read(prefixes)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let puts_hold = |write: &Write| matches!(write, Write::Put(key, _) if key.starts_with("hold/"));
        if transaction.then.iter().any(puts_hold) && self.at.fetch_sub(1, Ordering::SeqCst) == 1 {
            (self.then)(&self.store);
        }
        self.store.commit(transaction)
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        self.store.watch(prefixes, on_change)
    }
}

fn put_hold(store: &dyn LockStore, hold: &Hold) {
    put(store, &protocol::hold_key(&hold.group, hold.lane, &hold.node), &serde_json::to_string(hold).unwrap());
}

/// (what happens, before which write of a hold, what the node says)
#[test]
fn s9_nothing_is_claimed_or_armed_after_the_group_changed() {
    type Meddling = fn(&FakeStore);
    let cases: &[(&str, Meddling)] = &[
        ("frozen fleet", |store| put(store, "freeze/fleet", "{}")),
        ("frozen group", |store| put(store, "freeze/g/c.g", "{}")),
        ("frozen node", |store| put(store, "freeze/n/n1", "{}")),
        ("declared dead", |store| put(store, "dead/n1", "{}")),
        ("a peer claims", |store| put_hold(store, &hold(&"c.g".into(), 1, "n2", HoldPhase::Claimed, 5))),
        ("a peer fails", |store| put_hold(store, &hold(&"c.g".into(), 1, "n2", HoldPhase::Failed, 5))),
        ("under a former name", |store| put_hold(store, &hold(&"c.old".into(), 0, "n2", HoldPhase::Claimed, 5))),
        ("a conflict", |store| put_hold(store, &hold(&"d.c".into(), 0, "n9", HoldPhase::Claimed, 5))),
    ];
    for (what, meddle) in cases {
        for before in [1, 2] {
            let mut groups = three();
            groups[0].aliases = vec!["c.old".into()];
            groups[0].conflicts = vec!["d.c".into()];
            let probe = FakeProbe::healthy(["n1", "n2", "n3"]);
            let agent = Agent::new("n1", &[&groups[0]]);
            let store = Meddled { store: fake(), at: AtomicUsize::new(before), then: Box::new(meddle) };
            let session = agent.session(&store, &probe, 5);
            let entry = session.enter(&agent.intent(true)).unwrap();
            assert_eq!(why(&entry), "lost-race", "{what} before write {before}");
            assert!(session.record().is_none(), "{what}");
            let mine: Vec<String> = holds(&store).into_iter().filter(|hold| hold.contains("/n1 ")).collect();
            assert_eq!(mine, [] as [&str; 0], "{what} before write {before}");
        }
    }
    // An operator who takes the hold away between claim and arm.
    let (probe, groups) = (FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let store =
        Meddled { store: fake(), at: AtomicUsize::new(2), then: Box::new(|store| delete(store, "hold/c.g/0/n1")) };
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "lost-race", "the token is gone");
    assert!(session.record().is_none());
}

#[test]
fn a_node_that_is_dead_or_frozen_says_so() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    put(&store, "dead/n1", "{}");
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "declared-dead");
    assert_eq!(why(&session.enter(&agent.intent(false)).unwrap()), "declared-dead", "also for a repair");
    delete(&store, "dead/n1");
    for key in ["freeze/fleet", "freeze/g/c.g", "freeze/n/n1"] {
        put(&store, key, r#"{"reason":"x","by":"ops","until":"2001-01-01T00:00:00Z"}"#);
        assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "frozen", "{key}, also when its time is over");
        delete(&store, key);
        put(&store, key, "not JSON");
        assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "frozen", "{key}");
        delete(&store, key);
    }
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    put(&store, "freeze/fleet", "{}");
    session.acted().unwrap();
    assert!(session.settled().unwrap().is_none(), "what is armed goes on");
}

#[test]
fn an_alias_is_held_with_its_group_in_one_transaction() {
    let (store, probe, mut groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    groups[0].aliases = vec!["c.old".into()];
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    let intent = Intent { groups: vec!["c.g".into(), "c.old".into()], ..agent.intent(true) };
    assert_eq!(why(&session.enter(&intent).unwrap()), "act");
    assert_eq!(holds(&store), ["c.g/0/n1 armed", "c.old/0/n1 armed"]);
    // Who knows the former name only is kept out too.
    let old = group("c.old", &["n1", "n2", "n3"], Quorum::Majority, 1);
    let lagging = Agent::new("n2", &[&old]);
    let there = lagging.session(&store, &probe, 4);
    assert_eq!(why(&there.enter(&lagging.intent(true)).unwrap()), "held-by-peer");
    // Interrupted: both are covered.
    probe.say("n1", Evidence::unhealthy("down"));
    assert_eq!(why(&session.enter(&intent).unwrap()), "act");
    session.acted().unwrap();
    session.settled().unwrap();
    assert_eq!(holds(&store), [] as [&str; 0]);
}

#[test]
fn groups_that_nobody_judged_are_no_yes() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    let intent = Intent { groups: vec!["c.other".into()], ..agent.intent(true) };
    assert_eq!(why(&session.enter(&intent).unwrap()), "internal");
    let nobody = Intent { groups: Vec::new(), ..agent.intent(true) };
    assert_eq!(why(&session.enter(&nobody).unwrap()), "internal");
    assert!(session.record().is_none());
}

#[test]
fn p6_without_a_store_nothing_new_is_stopped_and_an_armed_holder_finishes() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    let none = Session {
        store: Err(because_of(&StoreError::Unreachable { endpoints: "e".into(), why: "down".into() })),
        ..agent.session(&store, &probe, 5)
    };
    assert_eq!(why(&none.enter(&agent.intent(true)).unwrap()), "store-unreachable");
    assert_eq!(why(&none.enter(&agent.intent(false)).unwrap()), "store-unreachable");
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    // It is down, and the store too: the own member is started from the record.
    probe.say("n1", Evidence::unhealthy("stopped"));
    assert_eq!(why(&none.enter(&agent.intent(false)).unwrap()), "act");
    none.acted().unwrap();
    assert_eq!(none.settled().unwrap().unwrap().reason, "store-unreachable", "healthy, and the hold is still there");
    assert!(none.record().is_some());
    assert!(session.settled().unwrap().is_none());
    assert_eq!(holds(&store), [] as [&str; 0]);
}

#[test]
fn what_a_store_says_is_told_as_it_is() {
    let reasons = [
        (StoreError::Denied { why: "role".into() }, "store-denied"),
        (StoreError::NoSpace, "store-full"),
        (StoreError::Unreachable { endpoints: "e".into(), why: "w".into() }, "store-unreachable"),
        (StoreError::OutcomeUnknown { endpoints: "e".into(), why: "w".into() }, "store-unreachable"),
        (StoreError::TooLarge { needs: 129 }, "too-many-groups"),
        (StoreError::Settings { why: "w".into() }, "settings"),
    ];
    for (error, reason) in reasons {
        assert_eq!(because_of(&error).reason, reason);
    }
}

/// `check` counts as the claim does: with what it lets pass a node can go, with one group more it could not.
#[test]
fn as_many_groups_as_check_lets_pass_can_be_taken_at_once() {
    for (count, conflicts, fits) in [(24, 0, true), (25, 0, false), (20, 12, true), (20, 13, false)] {
        let (store, probe) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]));
        let mut groups: Vec<Group> =
            (0..count).map(|n| group(&format!("c.g{n}"), &["n1", "n2", "n3"], Quorum::Majority, 1)).collect();
        groups[0].conflicts = (0..conflicts).map(|n| GroupId::from(format!("d.g{n}").as_str())).collect();
        assert_eq!(protocol::claim_size(count, count + conflicts) <= protocol::OPERATIONS_MAX, fits);
        let agent = Agent::new("n1", &groups.iter().collect::<Vec<_>>());
        let session = agent.session(&store, &probe, 5);
        let entry = session.enter(&agent.intent(true)).unwrap();
        assert_eq!(why(&entry), if fits { "act" } else { "too-many-groups" }, "{count} {conflicts}");
        if let Entry::Deferred(because) = entry {
            let needs = protocol::claim_size(count, count + conflicts);
            let said = format!(
                "too many groups at once: one transaction would need {needs} conditions or writes, the store takes 128"
            );
            assert_eq!((because.sentence, holds(&store)), (said, Vec::new()));
        }
    }
}

/// Every fault at every call: nothing is left behind for ever, and nothing is acted on without a hold and a record.
#[test]
fn s4_s6_a_fault_at_any_call_leaves_either_a_record_or_no_armed_hold() {
    let faults = [Fault::Unreachable, Fault::OutcomeUnknownApplied, Fault::OutcomeUnknownNotApplied, Fault::NoSpace];
    let mut acted = BTreeSet::new();
    for fault in faults {
        for at in 0..14 {
            let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
            let agent = Agent::new("n1", &[&groups[0]]);
            let failing = FailsAt { store: store.clone(), left: AtomicUsize::new(at), fault };
            let session = agent.session(&failing, &probe, 5);
            let entry = session.enter(&agent.intent(true)).unwrap();
            let armed = holds(&store).iter().any(|hold| hold.ends_with("armed"));
            match &entry {
                Entry::Act { .. } => {
                    acted.insert(format!("{fault:?} {at}"));
                    assert!(session.record().is_some() && armed, "{fault:?} at {at}");
                    session.acted().unwrap();
                    session.settled().unwrap();
                }
                Entry::Deferred(because) => {
                    let known = ["store-unreachable", "store-full"].contains(&because.reason.as_str());
                    assert!(known, "{fault:?} at {at}: {}", because.reason);
                    assert!(session.record().is_none(), "{fault:?} at {at}");
                }
            }
            // The next run of this node clears what is left, whether or not it wants anything.
            let later = agent.session(&store, &probe, 6);
            later.settled().unwrap();
            later.sweep(&mut Swept::default());
            assert_eq!(holds(&store), [] as [&str; 0], "{fault:?} at {at}");
            let other = Agent::new("n2", &[&groups[0]]);
            let there = other.session(&store, &probe, 6);
            assert_eq!(why(&there.enter(&other.intent(true)).unwrap()), "act", "{fault:?} at {at}");
        }
    }
    assert!(acted.iter().any(|at| at.starts_with("OutcomeUnknownApplied")), "a lost answer is found again: {acted:?}");
}

/// Lets some calls through before it asks the fake to fail.
struct FailsAt {
    store: FakeStore,
    left: AtomicUsize,
    fault: Fault,
}

impl FailsAt {
    fn count(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.store.fail_next(self.fault);
        }
    }
}

impl LockStore for FailsAt {
    fn identity(&self) -> Result<String, StoreError> {
        self.count();
        self.store.identity()
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.count();
        self.store.read(prefixes)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        self.count();
        self.store.commit(transaction)
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        self.store.watch(prefixes, on_change)
    }
}

#[test]
fn another_store_or_an_older_one_disrupts_nothing() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    for _ in 0..5 {
        put(&store, "wake", "");
    }
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    session.nothing_stopped("x").unwrap();

    let restored = fake();
    let session = agent.session(&restored, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "store-replaced", "its revision fell");
    assert_eq!(why(&session.enter(&agent.intent(false)).unwrap()), "store-replaced");
    let foreign = FakeStore::new("two", Arc::new(FakeClock::at(SystemClock.now())));
    for _ in 0..50 {
        put(&foreign, "wake", "");
    }
    let session = agent.session(&foreign, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "store-replaced");
    assert_eq!(holds(&foreign), [] as [&str; 0]);
    std::fs::write(agent.dir.path().join("store.json"), "garbage").unwrap();
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "store-replaced", "a pin that cannot be read");
}

fn meta(epoch: u64, store: &str) -> String {
    format!(r#"{{"fleet":"f","epoch":{epoch},"schema":1,"store":"{store}"}}"#)
}

/// S9 G20: an epoch that is raised after the store was looked at stops the claim and the arming alike; the next attempt
/// is made with what is true then.
#[test]
fn s9_nothing_is_claimed_or_armed_after_the_epoch_was_raised() {
    for moment in ["n/n1/want/", "hold/"] {
        let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
        let agent = Agent::new("n1", &[&groups[0]]);
        let (other, raised) = (store.clone(), AtomicBool::new(false));
        let raise = move || {
            if !raised.swap(true, Ordering::Relaxed) {
                put(&other, "meta", &meta(1, "one"));
            }
        };
        let watch = store.watch(&[moment], Box::new(raise)).unwrap();
        let session = agent.session(&store, &probe, 5);
        assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "lost-race", "{moment}");
        assert_eq!((holds(&store), session.record()), (Vec::new(), None), "{moment}");
        drop(watch);
        assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act", "{moment}");
    }
}

/// The same for a repair in lanes.
#[test]
fn s9_nothing_is_retargeted_after_the_epoch_was_raised() {
    let five = ["n1", "n2", "n3", "n4", "n5"];
    let g = group("c.g", &five, Quorum::Majority, 2);
    let (store, probe, agent) = (fake(), FakeProbe::healthy(five), Agent::new("n1", &[&g]));
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    probe.say("n1", Evidence::unhealthy("bad"));
    session.broken("bad").unwrap();
    let raise = |store: &FakeStore| put(store, "meta", &meta(1, "one"));
    let meddled = Meddled { store: store.clone(), at: AtomicUsize::new(1), then: Box::new(raise) };
    let session = agent.session(&meddled, &probe, 6);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "lost-race");
    let record = session.record().unwrap();
    assert_eq!((record.phase, record.seq), (RecordPhase::Failed, 5), "it tries nothing");
    assert_eq!(holds(&store), ["c.g/0/n1 failed"]);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act", "what it looks at is of the new epoch");
}

/// G20: what an operator wrote back has another token; its holder knows it by its attempt, tells of it and ends it.
#[test]
fn a_hold_that_was_written_back_is_its_holders_again() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    let key = store.read(&["hold/"]).unwrap().entries[0].clone();
    delete(&store, &key.key);
    put(&store, &key.key, std::str::from_utf8(&key.value).unwrap());
    session.broken("it does not start").unwrap();
    assert_eq!(holds(&store), ["c.g/0/n1 failed"]);
    delete(&store, &key.key);
    put(&store, &key.key, std::str::from_utf8(&key.value).unwrap());
    assert_eq!(session.settled().unwrap(), None);
    assert_eq!((holds(&store), session.record()), (Vec::new(), None));
}

#[test]
fn a_record_that_cannot_be_read_blocks_and_frees_nothing() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    std::fs::write(agent.dir.path().join("hold.json"), "{").unwrap();
    session.sweep(&mut Swept::default());
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "settling");
    assert_eq!(holds(&store), ["c.g/0/n1 armed"]);
}

#[test]
fn a_failed_holder_stops_the_others_and_is_repaired_by_the_next_commit() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let other = Agent::new("n2", &[&groups[0]]);
    let bad = agent.session(&store, &probe, 5);
    assert_eq!(why(&bad.enter(&agent.intent(true)).unwrap()), "act");
    bad.acted().unwrap();
    probe.say("n1", Evidence::unhealthy("bad"));
    bad.sick("x.service after taking c5: bad").unwrap();
    assert_eq!(holds(&store), ["c.g/0/n1 failed"]);
    for running in [true, false] {
        let there = other.session(&store, &probe, 5);
        assert_eq!(why(&there.enter(&other.intent(running)).unwrap()), "hold-failed");
    }
    assert_eq!(why(&bad.enter(&agent.intent(true)).unwrap()), "gate-failed", "the same commit is not tried again");
    // Another member is down too, and there is a freeze: the repair asks nobody.
    probe.say("n3", Evidence::unhealthy("down"));
    put(&store, "freeze/fleet", "{}");
    let good = agent.session(&store, &probe, 6);
    assert_eq!(why(&good.enter(&agent.intent(true)).unwrap()), "act");
    // A step before the stop fails: the member is as sick as before, so the hold stays, and it is tried again.
    good.nothing_stopped("validation").unwrap();
    assert_eq!(holds(&store).len(), 1);
    assert_eq!(why(&good.enter(&agent.intent(true)).unwrap()), "act");
    good.acted().unwrap();
    probe.say("n1", Evidence::healthy());
    assert!(good.settled().unwrap().is_none());
    assert_eq!(holds(&store), [] as [&str; 0]);
}

#[test]
fn a_repair_in_lanes_is_tried_by_one_member_at_a_time() {
    let five = ["n1", "n2", "n3", "n4", "n5"];
    let g = group("c.g", &five, Quorum::Majority, 2);
    let (store, probe) = (fake(), FakeProbe::healthy(five));
    let agents: Vec<Agent> = ["n1", "n2"].into_iter().map(|name| Agent::new(name, &[&g])).collect();
    // Both failed with a commit that had settled elsewhere before.
    put(&store, "n/n5/report", &report("n5", 5, &[("c.g", 5)]));
    for agent in &agents {
        let session = agent.session(&store, &probe, 5);
        assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
        session.acted().unwrap();
    }
    for agent in &agents {
        probe.say(agent.me.as_str(), Evidence::unhealthy("bad"));
        agent.session(&store, &probe, 5).sick("bad").unwrap();
    }
    let (one, two) = (agents[0].session(&store, &probe, 6), agents[1].session(&store, &probe, 6));
    assert_eq!(why(&one.enter(&agents[0].intent(true)).unwrap()), "act");
    assert_eq!(why(&two.enter(&agents[1].intent(true)).unwrap()), "first-alone");
    one.acted().unwrap();
    one.sick("worse").unwrap();
    assert_eq!(why(&two.enter(&agents[1].intent(true)).unwrap()), "first-alone", "it failed with it");
    // Without the store nobody knows who else tries.
    let gone = Session {
        store: Err(because_of(&StoreError::Unreachable { endpoints: "e".into(), why: "down".into() })),
        ..agents[1].session(&store, &probe, 7)
    };
    assert_eq!(why(&gone.enter(&agents[1].intent(true)).unwrap()), "store-unreachable");
    let one = agents[0].session(&store, &probe, 7);
    assert_eq!(why(&one.enter(&agents[0].intent(true)).unwrap()), "act");
    one.acted().unwrap();
    probe.say("n1", Evidence::healthy());
    one.settled().unwrap();
    put(&store, "n/n1/report", &report("n1", 7, &[("c.g", 7)]));
    let two = agents[1].session(&store, &probe, 7);
    assert_eq!(why(&two.enter(&agents[1].intent(true)).unwrap()), "act");
}

/// A commit that leaves one lane does not make two holders one: their claims were made in two.
#[test]
fn a_commit_that_narrows_the_group_is_tried_by_one_of_the_holders_at_a_time() {
    let five = ["n1", "n2", "n3", "n4", "n5"];
    for said_by_the_record in [true, false] {
        let wide = group("c.g", &five, Quorum::Majority, 2);
        let (store, probe) = (fake(), FakeProbe::healthy(five));
        let mut agents: Vec<Agent> = ["n1", "n2"].into_iter().map(|name| Agent::new(name, &[&wide])).collect();
        put(&store, "n/n5/report", &report("n5", 5, &[("c.g", 5)]));
        for agent in &agents {
            let session = agent.session(&store, &probe, 5);
            assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
            session.acted().unwrap();
        }
        for agent in &agents {
            probe.say(agent.me.as_str(), Evidence::unhealthy("bad"));
            agent.session(&store, &probe, 5).sick("bad").unwrap();
        }
        for agent in &mut agents {
            agent.groups[0].max_unavailable = 1;
            let path = agent.dir.path().join("hold.json");
            let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            if !said_by_the_record {
                // Of an agent that did not write it.
                record.as_object_mut().unwrap().remove("lanes").unwrap();
                std::fs::write(&path, record.to_string()).unwrap();
            }
        }
        let (one, two) = (agents[0].session(&store, &probe, 6), agents[1].session(&store, &probe, 6));
        assert_eq!(why(&one.enter(&agents[0].intent(true)).unwrap()), "act");
        assert_eq!(why(&two.enter(&agents[1].intent(true)).unwrap()), "first-alone");
        // And with the next commit, after a repair in one lane.
        one.acted().unwrap();
        one.sick("worse").unwrap();
        let (one, two) = (agents[0].session(&store, &probe, 7), agents[1].session(&store, &probe, 7));
        assert_eq!(why(&two.enter(&agents[1].intent(true)).unwrap()), "act");
        assert_eq!(why(&one.enter(&agents[0].intent(true)).unwrap()), "first-alone");
    }
}

/// The other way round: what was claimed in one lane was repaired in two, and then there is one again.
#[test]
fn a_repair_in_more_lanes_than_the_claim_is_remembered() {
    let three = ["n1", "n2", "n3"];
    let narrow = group("c.g", &three, Quorum::Majority, 1);
    let (store, probe) = (fake(), FakeProbe::healthy(three));
    let mut agent = Agent::new("n1", &[&narrow]);
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    probe.say("n1", Evidence::unhealthy("bad"));
    session.broken("bad").unwrap();
    assert_eq!(session.record().unwrap().lanes, 1);
    drop(session);
    agent.groups[0].max_unavailable = 2;
    let session = agent.session(&store, &probe, 6);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    session.broken("bad").unwrap();
    drop(session);
    agent.groups[0].max_unavailable = 1;
    put_hold(&store, &hold(&"c.g".into(), 1, "n2", HoldPhase::Failed, 7));
    let session = agent.session(&store, &probe, 7);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "first-alone");
}

#[test]
fn a_record_of_an_earlier_boot_asks_the_store_before_anything_new() {
    for failed in [false, true] {
        let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
        let mut agent = Agent::new("n1", &[&groups[0]]);
        let session = agent.session(&store, &probe, 5);
        assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
        if failed {
            session.broken("could not be started").unwrap();
        }
        drop(session);
        agent.boot = "boot-2".to_owned();
        probe.say("n1", Evidence::unhealthy("down"));
        let unreachable = || because_of(&StoreError::Unreachable { endpoints: "e".into(), why: "down".into() });
        let alone = Session { store: Err(unreachable()), ..agent.session(&store, &probe, 6) };
        assert_eq!(why(&alone.enter(&agent.intent(false)).unwrap()), "store-unreachable");
        // Declared dead while it was off, its hold released.
        let read = store.read(&["hold/"]).unwrap();
        store.commit(&protocol::release_dead(&agent.me, &read, b"{}")).unwrap();
        let back = agent.session(&store, &probe, 6);
        assert_eq!(why(&back.enter(&agent.intent(false)).unwrap()), "declared-dead");
        // Let in again: it is one of many, and claims like everybody.
        delete(&store, "dead/n1");
        put_hold(&store, &hold(&"c.g".into(), 0, "n2", HoldPhase::Armed, 6));
        assert_eq!(why(&back.enter(&agent.intent(false)).unwrap()), "held-by-peer");
        assert!(back.record().is_none());
    }
    // Confirmed by the store: it goes on.
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let mut agent = Agent::new("n1", &[&groups[0]]);
    assert_eq!(why(&agent.session(&store, &probe, 5).enter(&agent.intent(true)).unwrap()), "act");
    agent.boot = "boot-2".to_owned();
    probe.say("n1", Evidence::unhealthy("down"));
    let back = agent.session(&store, &probe, 5);
    assert_eq!(why(&back.enter(&agent.intent(false)).unwrap()), "act");
    assert_eq!(back.record().unwrap().boot_id, "boot-2");
}

#[test]
fn an_interrupted_holder_whose_member_runs_settles_before_it_takes_anything() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    let next = agent.session(&store, &probe, 6);
    assert_eq!(why(&next.enter(&agent.intent(true)).unwrap()), "settling");
    let record = next.record().unwrap();
    assert_eq!(record.phase, RecordPhase::Settling);
    assert_eq!(record.proves(), None, "what it settles with may be what it had before");
    // Sick after all: with what it had, so that what it was about to take is still to be tried.
    next.sick("sick").unwrap();
    probe.say("n1", Evidence::unhealthy("sick"));
    let again = agent.session(&store, &probe, 5);
    assert_eq!(why(&again.enter(&agent.intent(true)).unwrap()), "act");
    again.acted().unwrap();
    assert_eq!(again.record().unwrap().proves(), Some(5));
    again.sick("sick").unwrap();
    assert_eq!(why(&again.enter(&agent.intent(true)).unwrap()), "gate-failed");
    assert_eq!(again.record().unwrap().proves(), None);
}

#[test]
fn a_node_without_its_state_does_not_free_what_it_armed() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    for (phase, old, says, left) in [
        (HoldPhase::Claimed, false, "act", 1),
        (HoldPhase::Armed, true, "act", 1),
        (HoldPhase::Armed, false, "declared-dead", 1),
        (HoldPhase::Failed, true, "declared-dead", 1),
    ] {
        put_hold(&store, &hold(&"c.g".into(), 0, "n1", phase, 5));
        let session = Session { state_is_old: old, ..agent.session(&store, &probe, 6) };
        session.sweep(&mut Swept::default());
        assert_eq!(holds(&store).len(), usize::from(says != "act"), "{phase:?} {old}");
        assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), says, "{phase:?} {old}");
        assert_eq!(holds(&store).len(), left);
        let _ = std::fs::remove_file(agent.dir.path().join("hold.json"));
        delete(&store, "hold/c.g/0/n1");
    }
}

/// A store that counts how often all holds are read, and in which this node may not delete.
struct Counted<'a> {
    store: &'a FakeStore,
    of_all: AtomicUsize,
    denies: AtomicBool,
}

impl LockStore for Counted<'_> {
    fn identity(&self) -> Result<String, StoreError> {
        self.store.identity()
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.of_all.fetch_add(usize::from(prefixes.contains(&"hold/")), Ordering::Relaxed);
        self.store.read(prefixes)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        if self.denies.load(Ordering::Relaxed) {
            return Err(StoreError::Denied { why: "permission denied".into() });
        }
        self.store.commit(transaction)
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        self.store.watch(prefixes, on_change)
    }
}

/// An attempt that died between claim and arming, in a group that the node has left since, or in lanes that it has no more.
#[test]
fn a_claim_on_a_group_that_is_none_of_its_own_any_more_goes_back() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let counted = Counted { store: &store, of_all: AtomicUsize::new(0), denies: AtomicBool::new(false) };
    let agent = Agent::new("n1", &[&groups[0]]);
    let other = group("c.other", &["n1", "n2", "n3"], Quorum::Majority, 1);
    let left = |phases: [HoldPhase; 2]| {
        put_hold(&store, &hold(&"@environment".into(), 0, "n1", phases[0], 5));
        put_hold(&store, &hold(&"c.former".into(), 1, "n1", phases[1], 5));
    };
    put_hold(&store, &hold(&"@environment".into(), 1, "n2", HoldPhase::Claimed, 5));
    // What is armed may be that of another record of this node.
    put_hold(&store, &hold(&"converger.agents".into(), 0, "n1", HoldPhase::Armed, 5));
    put_hold(&store, &hold(&"c.gone".into(), 0, "n1", HoldPhase::Failed, 5));
    left([HoldPhase::Claimed; 2]);
    let stay = ["@environment/1/n2 claimed", "c.gone/0/n1 failed", "converger.agents/0/n1 armed"];
    let mut swept = Swept::default();
    let sweep = |agent: &Agent, swept: &mut Swept| agent.session(&counted, &probe, 6).sweep(swept);
    sweep(&agent, &mut swept);
    assert_eq!(holds(&store), stay);
    // Once for each agent, and for each change of its groups.
    left([HoldPhase::Claimed; 2]);
    for _ in 0..3 {
        sweep(&agent, &mut swept);
    }
    assert_eq!((holds(&store).len(), counted.of_all.load(Ordering::Relaxed)), (5, 1));
    let moved = Agent::new("n1", &[&groups[0], &other]);
    store.fail_next(Fault::Unreachable);
    sweep(&moved, &mut swept);
    assert_eq!(holds(&store).len(), 5, "it could not look");
    sweep(&moved, &mut swept);
    assert_eq!(holds(&store), stay, "as soon as it can");
    let looks = counted.of_all.load(Ordering::Relaxed);
    // Without the right to do so it does not ask for ever.
    left([HoldPhase::Claimed; 2]);
    counted.denies.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        sweep(&agent, &mut swept);
    }
    assert_eq!((holds(&store).len(), counted.of_all.load(Ordering::Relaxed) - looks), (5, 1));
}

#[test]
fn a_hold_that_an_operator_took_away_is_not_waited_for_and_the_rest_goes_back() {
    let (store, probe, mut groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    groups[0].aliases = vec!["c.old".into()];
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    session.enter(&agent.intent(true)).unwrap();
    session.acted().unwrap();
    delete(&store, "hold/c.old/0/n1");
    assert!(session.settled().unwrap().is_none());
    assert_eq!(holds(&store), [] as [&str; 0]);
    assert!(session.record().is_none());
}

#[test]
fn only_ones_own_token_is_released() {
    let (store, probe, groups) = (fake(), FakeProbe::healthy(["n1", "n2", "n3"]), three());
    let agent = Agent::new("n1", &[&groups[0]]);
    let session = agent.session(&store, &probe, 5);
    session.enter(&agent.intent(true)).unwrap();
    session.acted().unwrap();
    // Released by an operator and made anew under the same key: not the one of the record.
    delete(&store, "hold/c.g/0/n1");
    put_hold(&store, &hold(&"c.g".into(), 0, "n1", HoldPhase::Armed, 9));
    assert!(session.settled().unwrap().is_none());
    assert_eq!(holds(&store), ["c.g/0/n1 armed"]);
}

fn report(node: &str, applied: u64, proven: &[(&str, u64)]) -> String {
    let proven: BTreeMap<&str, serde_json::Value> =
        proven.iter().map(|(group, seq)| (*group, serde_json::json!({ "seq": seq }))).collect();
    serde_json::json!({
        "node": node, "environment": "production", "agent": "0",
        "applied": { "commit": format!("c{applied}"), "seq": applied, "subject": "" },
        "target": null, "state": "converged", "reason": "", "sentence": "", "notes": [], "drift_repaired": 0,
        "audit": [], "units": {}, "holds": [], "leads": [], "proven": proven,
        "since": "2026-01-01T00:00:00Z", "at": "2026-01-01T00:00:00Z",
    })
    .to_string()
}

// ---- whole nodes ----

const TOPOLOGY: &str = r#"
[tiers.streaming]
order = 30
[clusters.kafka]
tier = "streaming"
roles = ["kafka"]
[clusters.kafka.groups.controllers]
members = "all"
quorum = "majority"
max_unavailable = 1
[nodes.n1]
clusters = ["kafka"]
addresses = { app = "10.20.20.11" }
size = { vcpu = 1, memory_gib = 1, disk_gib = 1 }
[nodes.n2]
clusters = ["kafka"]
addresses = { app = "10.20.20.12" }
size = { vcpu = 1, memory_gib = 1, disk_gib = 1 }
[nodes.n3]
clusters = ["kafka"]
addresses = { app = "10.20.20.13" }
size = { vcpu = 1, memory_gib = 1, disk_gib = 1 }
"#;

const ROLE: &str = r#"
format = 1
[groups.controllers]
unit = "kafka.service"
gate = "quorum"
settle_secs = 10
[[file]]
path = "/etc/kafka.conf"
source = "conf"
restarts = ["kafka.service"]
[[file]]
path = "/etc/kafka.rules"
source = "rules"
reloads = ["kafka.service"]
[[unit]]
name = "kafka.service"
enabled = true
state = "running"
start_secs_max = 30
reload_hold = true
[[check]]
name = "quorum"
kind = "tcp"
port = 9093
"#;

const KAFKA: &str = "kafka.service";

fn fleet_with(conf: &str, rules: &str, edit: impl Fn(String) -> String) -> Fleet {
    Files::new()
        .with("environments/production/topology.toml", edit(TOPOLOGY.to_owned()))
        .with("roles/kafka/role.toml", edit(ROLE.to_owned()))
        .with("roles/kafka/conf", conf)
        .with("roles/kafka/rules", rules)
        .fleet()
}

fn conf(version: &str) -> Fleet {
    fleet_with(version, "", |text| text)
}

/// Counts the points at which an agent may die, and lets it die at one of them.
#[derive(Clone, Default)]
struct Fate {
    left: Arc<Mutex<Option<usize>>>,
}

impl Fate {
    fn set(&self, at: Option<usize>) -> Option<usize> {
        std::mem::replace(&mut *self.left.lock().unwrap(), at)
    }

    fn point(&self) {
        let Some(left) = self.set(None) else { return };
        let Some(left) = left.checked_sub(1) else { panic_any(Death) };
        self.set(Some(left));
    }
}

/// One machine: survives its agents.
struct Machine {
    name: &'static str,
    host: FakeHost,
    dir: tempfile::TempDir,
    vigil: RefCell<Vigil>,
    fate: Fate,
}

/// What the members know of each other: whose unit runs with a good version is healthy.
struct Bed {
    store: FakeStore,
    clock: Arc<FakeClock>,
    probe: FakeProbe,
    machines: Vec<Machine>,
    up: Mutex<BTreeMap<&'static str, bool>>,
    /// Their gates say no, although they run.
    unwell: Mutex<BTreeSet<&'static str>>,
}

/// The host, with what must hold whenever something is stopped.
struct Watched<'a> {
    bed: &'a Bed,
    machine: &'a Machine,
}

impl Host for Watched<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        self.machine.host.observe(query)
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        self.machine.fate.point();
        if matches!(step, Step::Stop { .. }) && self.machine.runs() {
            self.bed.may_stop(self.machine);
        }
        let done = self.machine.host.perform(step);
        self.bed.feel();
        self.machine.fate.point();
        done
    }
}

/// The store, where an agent may die before and after every write.
struct Mortal<'a> {
    store: &'a FakeStore,
    fate: &'a Fate,
}

impl LockStore for Mortal<'_> {
    fn identity(&self) -> Result<String, StoreError> {
        self.store.identity()
    }

    fn read(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        self.store.read(prefixes)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        self.fate.point();
        let outcome = self.store.commit(transaction);
        self.fate.point();
        outcome
    }

    fn watch(&self, prefixes: &[&str], on_change: Box<dyn Fn() + Send + Sync>) -> Result<Watch, StoreError> {
        self.store.watch(prefixes, on_change)
    }
}

impl Machine {
    fn runs(&self) -> bool {
        self.host.world.borrow().units.get(KAFKA).is_some_and(|state| state.is_running())
    }

    fn conf(&self) -> String {
        let world = self.host.world.borrow();
        world
            .files
            .get("/etc/kafka.conf")
            .map(|file| String::from_utf8(file.bytes.clone()).unwrap())
            .unwrap_or_default()
    }

    fn record(&self) -> Option<Record> {
        converger::lock::session::read_record(&self.dir.path().join("hold.json"))
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.host.world.borrow_mut().log)
    }
}

impl Bed {
    /// Every member runs with version `good-1` and has settled.
    fn new() -> Self {
        let clock = Arc::new(FakeClock::at(SystemClock.now()));
        let machine = |name| Machine {
            name,
            host: FakeHost::default(),
            dir: tempfile::tempdir().unwrap(),
            vigil: RefCell::default(),
            fate: Fate::default(),
        };
        let bed = Self {
            store: FakeStore::new("one", clock.clone()),
            clock,
            probe: FakeProbe::default(),
            machines: ["n1", "n2", "n3"].map(machine).into(),
            up: Mutex::default(),
            unwell: Mutex::default(),
        };
        for machine in &bed.machines {
            machine.host.world.borrow_mut().units.insert(
                KAFKA.into(),
                converger::resource::UnitState { loaded: true, ..converger::resource::UnitState::missing() },
            );
        }
        let fleet = conf("good-1");
        for _ in 0..4 {
            for machine in &bed.machines {
                bed.run(machine, &fleet, 1);
            }
            bed.clock.advance(Duration::from_secs(11));
        }
        for machine in &bed.machines {
            assert!(machine.runs() && machine.record().is_none(), "{}", machine.name);
            machine.log();
        }
        bed
    }

    /// What everybody's gate says now.
    fn feel(&self) {
        for machine in &self.machines {
            let unwell = self.unwell.lock().unwrap().contains(machine.name);
            let healthy = machine.runs() && machine.conf().starts_with("good") && !unwell;
            self.up.lock().unwrap().insert(machine.name, healthy);
            let evidence = if healthy { Evidence::healthy() } else { Evidence::unhealthy("refused") };
            self.probe.say(machine.name, evidence);
        }
    }

    /// S1, S3, S6: a healthy member is stopped under an armed and recorded hold, while the others are up.
    fn may_stop(&self, machine: &Machine) {
        let held = holds(&self.store).iter().any(|hold| hold.contains(&format!("/{} armed", machine.name)));
        assert!(
            held && machine.record().is_some(),
            "{} is stopped without a hold: {:?}",
            machine.name,
            holds(&self.store)
        );
        let up = self.up.lock().unwrap();
        let others = up.iter().filter(|(name, up)| **name != machine.name && **up).count();
        assert!(!up[machine.name] || others >= 2, "{} is stopped while only {others} others are up", machine.name);
    }

    /// One run of a node's agent: what `pipeline::run` does between render and publish.
    fn run(&self, machine: &Machine, fleet: &Fleet, seq: u64) -> Ran {
        self.feel();
        let spec = spec(fleet, machine.name);
        let renderer = Renderer::new(fleet);
        let desired = renderer.node(&spec, &Unsealed::without_keys()).unwrap_or_else(|problems| panic!("{problems:?}"));
        let mut ledger = Ledger::open(&machine.dir.path().join("ledger.db")).unwrap();
        let store = Mortal { store: &self.store, fate: &machine.fate };
        let agent = one_run::Agent {
            host: &Watched { bed: self, machine },
            store: Ok(&store),
            probe: &self.probe,
            clock: &*self.clock,
            dir: machine.dir.path(),
            ledger: &mut ledger,
            vigil: &mut machine.vigil.borrow_mut(),
        };
        let target = Target { spec: &spec, renderer: &renderer, desired: &desired, commit: commit(seq), seq };
        let ran = one_run::run(agent, &target);
        let proven = ledger.proven().unwrap();
        let proven: Vec<(&str, u64)> = proven.iter().map(|(group, proof)| (group.as_str(), proof.seq)).collect();
        let settled = ran.outcome.is_converged() && ran.settling.is_over() && machine.record().is_none();
        put(
            &self.store,
            &format!("n/{}/report", machine.name),
            &report(machine.name, if settled { seq } else { 0 }, &proven),
        );
        self.feel();
        ran
    }

    /// Everybody in turn, until nobody has anything left to do.
    fn run_all(&self, fleet: &Fleet, seq: u64) -> bool {
        for _ in 0..60 {
            let mut open = false;
            for machine in &self.machines {
                let ran = self.run(machine, fleet, seq);
                open |= !ran.outcome.is_converged() || !ran.settling.is_over() || !ran.outcome.done.is_empty();
                open |= machine.record().is_some();
            }
            self.clock.advance(Duration::from_secs(3));
            if !open {
                return true;
            }
        }
        false
    }
}

/// An agent that dies at a point; a new one has an empty memory.
fn dies(bed: &Bed, machine: &Machine, fleet: &Fleet, seq: u64, at: usize) -> bool {
    machine.fate.set(Some(at));
    let death = catch_unwind(AssertUnwindSafe(|| bed.run(machine, fleet, seq)));
    let lived = machine.fate.set(None).is_some();
    machine.vigil.replace(Vigil::default());
    bed.feel();
    match death {
        Ok(_) => assert!(lived),
        Err(panic) => assert!(panic.is::<Death>(), "{:?}", panic.downcast_ref::<String>()),
    }
    !lived
}

#[test]
fn s1_s3_s6_a_rolling_change_takes_one_member_after_the_other() {
    let bed = Bed::new();
    assert!(bed.run_all(&conf("good-2"), 2));
    for machine in &bed.machines {
        assert_eq!(machine.conf(), "good-2");
        assert_eq!(machine.log().iter().filter(|line| line.starts_with("stop ")).count(), 1, "{}", machine.name);
    }
    assert_eq!(holds(&bed.store), [] as [&str; 0]);
}

#[test]
fn an_agent_that_dies_at_any_step_is_finished_by_the_next_one() {
    quiet_deaths();
    let mut points = 0;
    // In the run that acts, and in those that settle and release.
    for runs_before in [0, 1] {
        for at in 0.. {
            let bed = Bed::new();
            let fleet = conf("good-2");
            let n1 = &bed.machines[0];
            for _ in 0..runs_before {
                bed.run(n1, &fleet, 2);
                bed.clock.advance(Duration::from_secs(1));
                bed.run(n1, &fleet, 2);
                bed.clock.advance(Duration::from_secs(11));
            }
            if !dies(&bed, n1, &fleet, 2, at) {
                break;
            }
            points += 1;
            // Another member meets what was left; `may_stop` looks at it.
            bed.run(&bed.machines[1], &fleet, 2);
            assert!(
                bed.run_all(&fleet, 2),
                "no end after a death at {at} ({runs_before}): {:?} {:?}",
                n1.record(),
                holds(&bed.store)
            );
            for machine in &bed.machines {
                assert_eq!((machine.conf().as_str(), machine.runs()), ("good-2", true), "{} after {at}", machine.name);
            }
            assert_eq!(holds(&bed.store), [] as [&str; 0], "after a death at {at}");
        }
    }
    assert!(points >= 15, "{points} points");
}

#[test]
fn an_agent_that_dies_at_any_step_is_followed_by_a_commit_that_takes_it_back() {
    quiet_deaths();
    for at in 0.. {
        let bed = Bed::new();
        let n1 = &bed.machines[0];
        if !dies(&bed, n1, &conf("good-2"), 2, at) {
            assert!(at >= 15);
            break;
        }
        assert!(
            bed.run_all(&conf("good-1"), 3),
            "no end after a death at {at}: {:?} {:?}",
            n1.record(),
            holds(&bed.store)
        );
        for machine in &bed.machines {
            assert_eq!((machine.conf().as_str(), machine.runs()), ("good-1", true), "{} after {at}", machine.name);
        }
        assert_eq!(holds(&bed.store), [] as [&str; 0], "after a death at {at}");
    }
}

#[test]
fn p3_s2_a_bad_version_reaches_one_member_and_the_next_commit_mends_it() {
    let bed = Bed::new();
    let bad = conf("bad-2");
    assert!(!bed.run_all(&bad, 2), "it never ends");
    let confs: Vec<String> = bed.machines.iter().map(Machine::conf).collect();
    assert_eq!(confs, ["bad-2", "good-1", "good-1"]);
    assert_eq!(holds(&bed.store), ["kafka.controllers/0/n1 failed"]);
    assert_eq!(bed.run(&bed.machines[0], &bad, 2).reason(), "gate-failed");
    assert_eq!(bed.run(&bed.machines[1], &bad, 2).reason(), "hold-failed");
    // A worse one: the same member takes it, and nobody else.
    assert!(!bed.run_all(&conf("bad-3"), 3));
    let confs: Vec<String> = bed.machines.iter().map(Machine::conf).collect();
    assert_eq!(confs, ["bad-3", "good-1", "good-1"]);
    assert!(bed.run_all(&conf("good-1"), 4), "a revert");
    assert!(bed.machines.iter().all(|machine| machine.conf() == "good-1" && machine.runs()));
    assert_eq!(holds(&bed.store), [] as [&str; 0]);
}

#[test]
fn p4_a_member_that_is_down_starts_with_its_live_inputs_without_a_hold() {
    let bed = Bed::new();
    let n2 = &bed.machines[1];
    n2.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().active = Active::Failed;
    for _ in 0..20 {
        bed.store.fail_next(Fault::Unreachable);
    }
    let ran = catch_unwind(AssertUnwindSafe(|| bed.run(n2, &conf("good-1"), 1)));
    drop(ran); // the report of the test itself does not reach the store
    assert!(n2.runs());
}

#[test]
fn a_member_that_is_down_and_must_wait_for_what_is_new_runs_with_what_it_had() {
    let bed = Bed::new();
    let n1 = &bed.machines[0];
    put_hold(&bed.store, &hold(&"kafka.controllers".into(), 0, "n2", HoldPhase::Armed, 2));
    n1.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().active = Active::Failed;
    assert_eq!(bed.run(n1, &conf("good-2"), 2).reason(), "held-by-peer");
    assert_eq!((n1.conf().as_str(), n1.runs()), ("good-1", true));
}

#[test]
fn a_member_in_lanes_says_which_commit_it_has_proven() {
    let bed = Bed::new();
    bed.run_all(&conf("good-2"), 2);
    let read = bed.store.read(&["n/n1/report"]).unwrap();
    let said: converger::report::Report = serde_json::from_slice(&read.entries[0].value).unwrap();
    assert_eq!(said.proven.get(&GroupId::from("kafka.controllers")).map(|proof| proof.seq), Some(2));
    // What changes nothing proves nothing.
    bed.run_all(&conf("good-2"), 3);
    let read = bed.store.read(&["n/n1/report"]).unwrap();
    let said: converger::report::Report = serde_json::from_slice(&read.entries[0].value).unwrap();
    assert_eq!(said.proven.get(&GroupId::from("kafka.controllers")).map(|proof| proof.seq), Some(2));
}

#[test]
fn a_running_member_that_leaves_its_group_asks_those_who_stay() {
    let bed = Bed::new();
    let leave = |text: String| text.replacen("clusters = [\"kafka\"]", "clusters = []", 1);
    let fleet = fleet_with("good-1", "", leave);
    let n1 = &bed.machines[0];
    // Another member is down: of three that the service lists, two others must be healthy.
    let n3 = &bed.machines[2];
    n3.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().active = Active::Failed;
    assert_eq!(bed.run(n1, &fleet, 2).reason(), "degraded");
    assert!(n1.runs());
    n3.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().active = Active::Active;
    let ran = bed.run(n1, &fleet, 2);
    assert_eq!(ran.reason(), "", "{:?}", ran.outcome.failed);
    assert!(!n1.runs());
    bed.run(n1, &fleet, 2);
    assert_eq!((holds(&bed.store), n1.record()), (Vec::new(), None), "nothing is left to settle");
}

#[test]
fn a_group_that_is_gone_is_left_one_member_at_a_time() {
    let bed = Bed::new();
    let fleet = fleet_with("good-1", "", |text| text.replace("clusters = [\"kafka\"]", "clusters = []"));
    put_hold(&bed.store, &hold(&"kafka.controllers".into(), 0, "n2", HoldPhase::Armed, 2));
    assert_eq!(bed.run(&bed.machines[0], &fleet, 2).reason(), "held-by-peer");
    assert!(bed.machines[0].runs());
    delete(&bed.store, "hold/kafka.controllers/0/n2");
    assert!(bed.run(&bed.machines[0], &fleet, 2).outcome.is_converged());
    assert!(!bed.machines[0].runs());
}

#[test]
fn a_renamed_group_is_held_under_both_names_and_settles_under_either() {
    let bed = Bed::new();
    let rename = |text: String| {
        let named = text.replace("groups.controllers]", "groups.voters]");
        named.replace("max_unavailable = 1", "max_unavailable = 1\naliases = [\"kafka.controllers\"]")
    };
    let renamed = fleet_with("good-2", "", rename);
    let n1 = &bed.machines[0];
    bed.run(n1, &renamed, 3);
    assert_eq!(holds(&bed.store), ["kafka.controllers/0/n1 armed", "kafka.voters/0/n1 armed"]);
    assert_eq!(bed.run(&bed.machines[1], &conf("good-2"), 2).reason(), "held-by-peer", "it knows the former name");
    assert!(bed.run_all(&renamed, 3));
    // A failure under the old name is mended by a commit that renames.
    let bed = Bed::new();
    assert!(!bed.run_all(&conf("bad-2"), 2));
    assert!(bed.run_all(&renamed, 3), "{:?}", holds(&bed.store));
    assert!(bed.machines.iter().all(|machine| machine.conf() == "good-2"));
}

#[test]
fn a_unit_that_is_stopped_on_purpose_gives_its_hold_back() {
    let bed = Bed::new();
    let stop = |text: String| text.replace("state = \"running\"", "state = \"stopped\"");
    let fleet = fleet_with("good-1", "", stop);
    bed.run(&bed.machines[0], &fleet, 2);
    assert!(!bed.machines[0].runs());
    assert_eq!((holds(&bed.store), bed.machines[0].record()), (Vec::new(), None));
}

#[test]
fn a_reload_that_is_known_to_be_harmless_takes_no_hold() {
    let free = |text: String| text.replace("reload_hold = true", "reload_hold = false");
    let bed = Bed::new();
    let n1 = &bed.machines[0];
    put_hold(&bed.store, &hold(&"kafka.controllers".into(), 0, "n2", HoldPhase::Armed, 2));
    assert_eq!(bed.run(n1, &fleet_with("good-1", "new", |text| text), 2).reason(), "held-by-peer");
    n1.log();
    let ran = bed.run(n1, &fleet_with("good-1", "new", free), 2);
    assert_eq!(ran.reason(), "");
    assert!(n1.log().contains(&"reload kafka.service".to_owned()));
    // With anything that restarts beside it, it takes the hold.
    assert_eq!(bed.run(n1, &fleet_with("good-2", "newer", free), 3).reason(), "held-by-peer");
    assert_eq!(n1.log().iter().filter(|line| line.starts_with("swap")).count(), 0);
}

#[test]
fn a_member_that_comes_back_by_itself_is_not_stopped_on_the_ground_that_it_was_down() {
    let bed = Bed::new();
    let n1 = &bed.machines[0];
    n1.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().active = Active::Failed;
    let n2 = &bed.machines[1];
    n2.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().active = Active::Failed;
    // systemd starts it while the hold is being armed.
    let fleet = conf("good-2");
    let spec = spec(&fleet, "n1");
    let renderer = Renderer::new(&fleet);
    let secrets = Unsealed::without_keys();
    let desired = renderer.node(&spec, &secrets).unwrap_or_else(|problems| panic!("{problems:?}"));
    let mut ledger = Ledger::open(&n1.dir.path().join("ledger.db")).unwrap();
    let known = ledger.known().unwrap();
    let observed = pipeline::observe(&n1.host, &desired, &known, ledger.fingerprints()).unwrap();
    n1.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().active = Active::Active;
    bed.feel();
    let plan = plan(&desired, &observed, &known, &spec.groups);
    let session = Session {
        clusters: Vec::new(),
        windows: Vec::new(),
        me: &spec.node.name,
        store: Ok(&bed.store),
        probe: &bed.probe,
        clock: &*bed.clock,
        boot_id: observed.boot_id.clone(),
        state_is_old: true,
        record_path: n1.dir.path().join("hold.json"),
        pin_path: n1.dir.path().join("store.json"),
        circles: pipeline::circles(&renderer, &spec, &secrets, &known).unwrap(),
        commit: commit(2),
        seq: 2,
    };
    let stop = AtomicBool::new(false);
    let mut tools = Tools {
        host: &n1.host,
        ledger: &mut ledger,
        session: &session,
        stop: &stop,
        observed: &observed,
        reach: &Reach::NOTHING,
    };
    let outcome = apply::apply(&plan, &mut tools).unwrap();
    assert_eq!(outcome.deferred[0].1.reason, "settling", "{}", outcome.deferred[0].1.sentence);
    assert_eq!((n1.conf().as_str(), n1.runs()), ("good-1", true));
    assert_eq!((holds(&bed.store), n1.record()), (Vec::new(), None));
}

#[test]
fn a_restart_while_settling_begins_the_settle_time_anew() {
    let bed = Bed::new();
    let n1 = &bed.machines[0];
    let fleet = conf("good-2");
    bed.run(n1, &fleet, 2);
    bed.run(n1, &fleet, 2);
    bed.clock.advance(Duration::from_secs(9));
    // It died and was started again between two looks.
    n1.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().invocation = "another run".to_owned();
    bed.run(n1, &fleet, 2);
    bed.clock.advance(Duration::from_secs(9));
    bed.run(n1, &fleet, 2);
    assert_eq!(holds(&bed.store).len(), 1);
    bed.clock.advance(Duration::from_secs(2));
    bed.run(n1, &fleet, 2);
    assert_eq!(holds(&bed.store), [] as [&str; 0]);
}

#[test]
fn a_moment_of_sickness_begins_the_settle_time_anew() {
    let bed = Bed::new();
    let n1 = &bed.machines[0];
    let fleet = conf("good-2");
    bed.run(n1, &fleet, 2);
    bed.run(n1, &fleet, 2);
    bed.clock.advance(Duration::from_secs(9));
    bed.unwell.lock().unwrap().insert(n1.name);
    assert_eq!(bed.run(n1, &fleet, 2).reason(), "settling");
    bed.unwell.lock().unwrap().clear();
    for _ in 0..2 {
        bed.run(n1, &fleet, 2);
        assert_eq!(holds(&bed.store).len(), 1, "healthy again, for less than ten seconds");
        bed.clock.advance(Duration::from_secs(9));
    }
    bed.run(n1, &fleet, 2);
    assert_eq!(holds(&bed.store), [] as [&str; 0]);
}

#[test]
fn a_member_gets_its_units_own_start_time_before_it_is_called_sick() {
    let bed = Bed::new();
    let n1 = &bed.machines[0];
    let bad = conf("bad-2");
    bed.run(n1, &bad, 2);
    // Three settle times and start_secs_max.
    bed.clock.advance(Duration::from_secs(60));
    assert_eq!(bed.run(n1, &bad, 2).reason(), "settling");
    bed.clock.advance(Duration::from_secs(1));
    bed.run(n1, &bad, 2);
    assert_eq!(holds(&bed.store), ["kafka.controllers/0/n1 failed"]);
}

#[test]
fn p7_a_holder_that_is_gone_is_waited_for_until_an_operator_says_that_it_is_dead() {
    quiet_deaths();
    let bed = Bed::new();
    let n1 = &bed.machines[0];
    let fleet = conf("good-2");
    bed.run(n1, &fleet, 2);
    n1.host.world.borrow_mut().units.get_mut(KAFKA).unwrap().active = Active::Inactive;
    for _ in 0..20 {
        bed.clock.advance(Duration::from_secs(3600));
        assert_eq!(bed.run(&bed.machines[1], &fleet, 2).reason(), "held-by-peer");
    }
    let read = bed.store.read(&["hold/"]).unwrap();
    bed.store.commit(&protocol::release_dead(&"n1".into(), &read, b"{}")).unwrap();
    assert_eq!(bed.run(&bed.machines[1], &fleet, 2).reason(), "degraded", "one of three is gone");
    // It boots again with its record.
    n1.host.world.borrow_mut().boots += 1;
    n1.vigil.replace(Vigil::default());
    let newer = conf("good-3");
    for _ in 0..5 {
        bed.run(n1, &newer, 3);
        bed.clock.advance(Duration::from_secs(11));
    }
    assert!(n1.runs(), "started with its live inputs");
    assert_eq!(n1.conf(), "good-2", "and nothing new");
    assert_eq!(bed.run(n1, &newer, 3).reason(), "declared-dead");
    delete(&bed.store, "dead/n1");
    assert!(bed.run_all(&newer, 3));
}

/// Everybody at random, some die, some fail; nobody is stopped that may not be (`may_stop`), and in the end all is well.
#[test]
fn rounds_of_agents_that_die_at_random_end_well() {
    quiet_deaths();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below).unwrap()
    };
    let bed = Bed::new();
    let mut seq = 1;
    for round in 0..100 {
        seq += 1;
        let version = if random(4) == 0 { format!("bad-{seq}") } else { format!("good-{seq}") };
        let fleet = conf(&version);
        for _ in 0..random(8) {
            let machine = &bed.machines[random(3)];
            if random(3) == 0 {
                dies(&bed, machine, &fleet, seq, random(25));
            } else {
                bed.run(machine, &fleet, seq);
            }
            if random(12) == 0 {
                machine.host.world.borrow_mut().boots += 1;
                machine.vigil.replace(Vigil::default());
            }
            bed.clock.advance(Duration::from_secs(random(12) as u64));
        }
        let bad = bed.machines.iter().filter(|machine| machine.conf().starts_with("bad")).count();
        assert!(bad <= 1, "round {round}: {bad} members have a bad version");
    }
    seq += 1;
    let last = conf("good-last");
    assert!(bed.run_all(&last, seq), "{:?}", holds(&bed.store));
    assert!(bed.machines.iter().all(|machine| machine.conf() == "good-last" && machine.runs()));
    assert_eq!(holds(&bed.store), [] as [&str; 0]);
}
