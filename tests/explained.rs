//! Every wait and refusal of the restart locks, made by the functions that decide, and told in all five places: `why`,
//! `status`, `holds list`, the metrics and the journal. Each names the reason, the group, who holds it, the numbers, since
//! when, and what would end it; metrics leave the sentences to `converger explain`.
//!
//! Never: a wait that is written down here by hand.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and write files as they like")]

mod bed;
mod forge;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bed::Bed;
use converger::clock::FakeClock;
use converger::fleet::schema::{Membership, Quorum};
use converger::fleet::window::Window;
use converger::fleet::{Group, MemberChange};
use converger::lock::election::{self, Begun, Candidate, Claim, Election};
use converger::lock::fake::FakeStore;
use converger::lock::instance::Instance;
use converger::lock::lent::Permission;
use converger::lock::machine::{self, Action, Event, Phase};
use converger::lock::protocol;
use converger::lock::quorum::{self, Because, Freeze, Hold, HoldPhase, Member, Situation, Verdict};
use converger::lock::recovery::{self, Asks, Lent, Me, Next, Reentry, Said};
use converger::lock::session::{Circle, Entry, Intent, Record, RecordPhase, Session, because_of};
use converger::lock::store::{LockStore, Snapshot, StoreError, StoreKind, Transaction, Write, open};
use converger::lock::view::Standing;
use converger::lock::window;
use converger::name::{ClusterName, CommitId, GroupId, NodeName, RoleName};
use converger::probe::fake::FakeProbe;
use converger::probe::{Health, Listed};
use converger::reason;
use converger::report::{self, At, Note, Report, State, metrics, news};
use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt as _};

// ---- the scenery of a decision ----

const ME: &str = "web01";

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn commit(seq: u64) -> CommitId {
    CommitId::new(format!("c{seq:039}"))
}

fn group() -> Group {
    Group {
        id: "web.web".into(),
        members: ["web01", "web02", "web03"].map(NodeName::from).to_vec(),
        changing: BTreeMap::new(),
        quorum: Quorum::Majority,
        max_unavailable: 1,
        rank: Vec::new(),
        conflicts: Vec::new(),
        aliases: Vec::new(),
        unit: "web.service".into(),
        gate: None,
        leader: None,
        settle_secs: 10,
        role: RoleName::from("web"),
    }
}

fn hold(group: &str, node: &str, phase: HoldPhase, seq: u64) -> Hold {
    Hold {
        group: group.into(),
        lane: 0,
        node: node.into(),
        attempt: format!("attempt of {node}"),
        commit: commit(seq),
        seq,
        phase,
        units: vec!["web.service".to_owned()],
        boot_id: "boot".to_owned(),
        reason: "web.service takes it".to_owned(),
        since: time(1_700_000_000),
        change: MemberChange::None,
    }
}

/// Three healthy members that want the commit, and one change to that.
fn situation(change: impl FnOnce(&mut Situation<'_>)) -> Verdict {
    judged(quorum::may_claim, change)
}

fn judged(judge: fn(&Situation<'_>) -> Verdict, change: impl FnOnce(&mut Situation<'_>)) -> Verdict {
    let (group, me, to) = (group(), NodeName::from(ME), commit(5));
    let member = |name: &NodeName| Member {
        name: name.clone(),
        state: Membership::Active,
        health: Health::Healthy,
        lists: None,
        leads: false,
        applied_seq: (name.as_str() != ME).then_some(5),
        wants_since: Some(time(0)),
        silent: false,
        dead: false,
    };
    let mut situation = Situation {
        group: &group,
        me: &me,
        commit: &to,
        seq: 5,
        members: group.members.iter().map(member).collect(),
        running: true,
        change: MemberChange::None,
        holds: Vec::new(),
        conflicting: Vec::new(),
        proven: BTreeSet::from([5]),
        freeze: None,
        view: Standing::InForce,
        after: Vec::new(),
        asked_secs: 0,
    };
    change(&mut situation);
    judge(&situation)
}

#[track_caller]
fn not_now(verdict: Verdict) -> Because {
    match verdict {
        Verdict::Wait(because) | Verdict::Never(because) => because,
        Verdict::Go { .. } => panic!("it may go"),
    }
}

fn of_the_quorum() -> Vec<(&'static str, Because)> {
    let freeze = Freeze { reason: "quarter end".into(), by: "eve".into(), until: Some(time(2_000_000_000)) };
    let peer = |phase| hold("web.web", "web02", phase, 5);
    let wants = |verdict| not_now(verdict);
    vec![
        ("declared-dead", wants(situation(|s| s.members[0].dead = true))),
        ("frozen", wants(situation(|s| s.freeze = Some(freeze)))),
        ("hold-failed", wants(situation(|s| s.holds.push(peer(HoldPhase::Failed))))),
        ("held-by-peer", wants(situation(|s| s.holds.push(peer(HoldPhase::Armed))))),
        ("held-by-peer, after the claim", {
            let conflict = hold("mail.mail", "web03", HoldPhase::Armed, 5);
            wants(judged(quorum::may_arm, |s| s.conflicting.push(conflict)))
        }),
        ("held-by-peer, of two lanes", {
            let lanes = |s: &mut Situation<'_>| {
                s.holds =
                    vec![peer(HoldPhase::Armed), Hold { lane: 1, ..hold("web.web", "web03", HoldPhase::Claimed, 5) }];
            };
            wants(situation(lanes))
        }),
        ("behind-spec", wants(situation(|s| s.view = Standing::Behind { seq: 9, commit: commit(9) }))),
        ("after-cluster", {
            wants(situation(|s| s.after.push((ClusterName::from("store"), vec!["store01".into(), "store02".into()]))))
        }),
        (
            "order",
            wants(situation(|s| {
                s.members.rotate_left(1);
                s.members[0].applied_seq = Some(4);
            })),
        ),
        (
            "order, of the leader",
            wants(situation(|s| {
                s.members[0].leads = true;
                s.members[2].applied_seq = Some(4);
            })),
        ),
        ("degraded", wants(situation(|s| s.members[1].health = Health::Unhealthy("answers 503".to_owned())))),
        ("degraded, after the claim", {
            wants(judged(quorum::may_arm, |s| s.members[2].health = Health::Unknown("no answer".to_owned())))
        }),
        (
            "membership-differs",
            wants(situation(|s| {
                s.members[1].lists = Some(Listed { strangers: vec!["web09".to_owned()], ..Listed::default() });
            })),
        ),
        ("quorum-too-small", wants(situation(|s| s.members.truncate(1)))),
    ]
}

/// Where two may go at once, and the first has not proved the commit.
fn first_alone() -> Because {
    let mut two = group();
    two.max_unavailable = 2;
    let (me, to) = (NodeName::from(ME), commit(5));
    let (seen, _) =
        store_with(&[hold("web.web", "web02", HoldPhase::Armed, 5), hold("web.web", ME, HoldPhase::Failed, 5)]);
    let mine = seen.entries.iter().find(|entry| entry.key.ends_with(ME)).unwrap();
    let mine = (serde_json::from_slice(&mine.value).unwrap(), mine.create_revision);
    let record = Record { commit: commit(4), ..record(RecordPhase::Failed, vec![mine]) };
    let me = Me { node: &me, boot_id: "boot", commit: &to, seq: 5 };
    let Said::Wait(because) = recovery::said(&record, me, Asks::Retargets, &[(&two, BTreeSet::new())], &seen) else {
        panic!("it does not wait")
    };
    because
}

/// Its vote goes, and the member went before.
#[test]
fn a_window_does_not_keep_what_does_not_run_from_leaving() {
    let windows: [Window; 1] = ["Sun 02:00-04:00".parse().unwrap()];
    let closed = window::closed(&[(ClusterName::from("web"), &windows[..])], time(1_700_000_000)).unwrap();
    for running in [true, false] {
        let go = Verdict::Go { lane: 0, ground: quorum::Ground::Spared };
        let mut told = None;
        situation(|s| {
            (s.running, s.change) = (running, MemberChange::Leaves);
            told = Some(window::outside(Some(&closed), go, s));
        });
        assert_eq!(matches!(told, Some(Verdict::Go { .. })), !running);
    }
}

fn of_the_windows() -> Vec<(&'static str, Because)> {
    let windows: [Window; 1] = ["Sun 02:00-04:00".parse().unwrap()];
    let other: [Window; 1] = ["Mon 02:00-04:00".parse().unwrap()];
    let closed = |clusters: &[(ClusterName, &[Window])]| window::closed(clusters, time(1_700_000_000)).unwrap();
    let outside = |closed: Because| {
        let go = Verdict::Go { lane: 0, ground: quorum::Ground::Spared };
        let mut told = None;
        situation(|s| told = Some(window::outside(Some(&closed), go, s)));
        not_now(told.unwrap())
    };
    // A Tuesday.
    let (web, mail) = (ClusterName::from("web"), ClusterName::from("mail"));
    let never = closed(&[(web.clone(), &windows), (mail, &other)]);
    let closed = closed(&[(web, &windows)]);
    vec![("outside-window", outside(closed)), ("outside-window, for ever", outside(never))]
}

fn store_with(holds: &[Hold]) -> (Snapshot, FakeStore) {
    let store = FakeStore::new("one", Arc::new(FakeClock::at(time(0))));
    for hold in holds {
        let key = protocol::hold_key(&hold.group, hold.lane, &hold.node);
        put(&store, &key, &serde_json::to_vec(hold).unwrap());
    }
    (store.read(&[""]).unwrap(), store)
}

fn put(store: &dyn LockStore, key: &str, value: &[u8]) {
    let then = vec![Write::Put(key.to_owned(), value.to_vec())];
    store.commit(&Transaction { when: vec![], then }).unwrap();
}

fn record(phase: RecordPhase, holds: Vec<(Hold, i64)>) -> Record {
    Record {
        phase,
        holds,
        batch: "web.service".to_owned(),
        commit: commit(5),
        seq: 5,
        boot_id: "boot".to_owned(),
        acted_ms: 0,
        acted_boot: "boot".to_owned(),
        start_secs_max: 0,
        why: "web.service after taking c000000: answers 503".to_owned(),
        lanes: 1,
        lent: None,
    }
}

fn of_recovery() -> Vec<(&'static str, Because)> {
    let (me, to, other) = (NodeName::from(ME), commit(5), commit(6));
    let held = || vec![(hold("web.web", ME, HoldPhase::Armed, 5), 7)];
    let group = group();
    let reenter = |record: &Record, target: &CommitId, groups: &[&str], healthy: bool| {
        let me = Me { node: &me, boot_id: "boot", commit: target, seq: 5 };
        let groups: Vec<GroupId> = groups.iter().map(|id| GroupId::from(*id)).collect();
        match recovery::reenter(record, me, &groups, &[&group], || healthy) {
            Reentry::Wait(because) | Reentry::Settle(because) => because,
            Reentry::Repair => panic!("it repairs"),
        }
    };
    let lent = Some(Lent { boot_id: "boot".to_owned(), said_ms: 0 });
    let dead = {
        let (_, store) = store_with(&[]);
        put(&store, &protocol::dead_key(&me), b"{}");
        let me = Me { node: &me, boot_id: "boot", commit: &to, seq: 5 };
        match recovery::said(&record(RecordPhase::Failed, held()), me, Asks::Store, &[], &store.read(&[""]).unwrap()) {
            Said::Wait(because) => because,
            other => panic!("{other:?}"),
        }
    };
    let step = match recovery::advance(
        &record(RecordPhase::Repairing, held()),
        Event::NothingStopped("the step said 1".to_owned()),
        "boot",
        0,
    ) {
        Next::Stays(Some(because)) => because,
        other => panic!("{other:?}"),
    };
    let failed = record(RecordPhase::Failed, held());
    let settles = record(RecordPhase::Settling, held());
    let acting = record(RecordPhase::Acting, held());
    vec![
        ("rebooting, lent", reenter(&Record { lent, ..settles.clone() }, &to, &["web.web"], false)),
        ("settling, another batch", reenter(&settles, &to, &["mail.mail"], false)),
        ("settling", reenter(&settles, &to, &["web.web"], false)),
        ("hold-failed, it covers too little", reenter(&acting, &to, &["web.web", "mail.mail"], false)),
        ("gate-failed", reenter(&failed, &to, &["web.web"], false)),
        ("settling, mended", reenter(&failed, &other, &["web.web"], true)),
        ("settling, interrupted", reenter(&acting, &to, &["web.web"], true)),
        ("declared-dead, of a holder", dead),
        ("declared-dead, without its disk", {
            *recovery::leftovers([(hold("web.web", ME, HoldPhase::Failed, 5), 7)], false).unwrap_err()
        }),
        ("step-failed", step),
    ]
}

fn of_the_session() -> Vec<(&'static str, Because)> {
    let dir = tempfile::tempdir().unwrap();
    let (me, clock, probe, group) = (NodeName::from(ME), FakeClock::at(time(0)), FakeProbe::healthy([]), group());
    let (_, store) = store_with(&[]);
    let session = || Session {
        me: &me,
        store: Ok(&store),
        probe: &probe,
        clock: &clock,
        boot_id: "boot".to_owned(),
        state_is_old: true,
        record_path: dir.path().join("hold.json"),
        pin_path: dir.path().join("store.json"),
        circles: vec![Circle {
            group: Cow::Borrowed(&group),
            view: None,
            conflicts: Vec::new(),
            gate: Vec::new(),
            leader: Vec::new(),
            after: Vec::new(),
        }],
        clusters: Vec::new(),
        windows: Vec::new(),
        commit: commit(5),
        seq: 5,
    };
    let intent = Intent {
        batch: "web.service",
        groups: vec!["web.web".into()],
        units: Vec::new(),
        running: true,
        takes_node: false,
        start_secs_max: 0,
        change: MemberChange::None,
    };
    std::fs::write(dir.path().join("store.json"), r#"{"identity":"another","epoch":3,"revision":900}"#).unwrap();
    let Entry::Deferred(replaced) = session().enter(&intent).unwrap() else { panic!("it acts") };
    let holds = vec![(hold("web.web", ME, HoldPhase::Armed, 5), 7)];
    let lent = Some(Lent { boot_id: "boot".to_owned(), said_ms: 0 });
    let lent = Record { lent, ..record(RecordPhase::Acting, holds) };
    std::fs::write(dir.path().join("hold.json"), serde_json::to_vec(&lent).unwrap()).unwrap();
    clock.advance(Duration::from_secs(3600));
    let Permission::Unused(unused) = session().permission() else { panic!("it is fresh") };
    let raced = match machine::step(Phase::Claiming { lanes: vec![0] }, Event::Refused) {
        (_, Action::Wait(because)) => because,
        other => panic!("{other:?}"),
    };
    let store_error = |error| because_of(&error);
    vec![
        ("store-replaced", replaced),
        ("reboot-failed", unused),
        ("lost-race", raced),
        ("store-denied", store_error(StoreError::Denied { why: "permission denied".to_owned() })),
        ("store-full", store_error(StoreError::NoSpace)),
    ]
}

fn cloned() -> Because {
    let (_, store) = store_with(&[]);
    let mut one = Instance::new(ME.into(), "boot".to_owned());
    let mut copy = Instance::new(ME.into(), "another boot".to_owned());
    one.beat(&store, Duration::ZERO, "now").unwrap();
    copy.beat(&store, Duration::ZERO, "now").unwrap();
    copy.doubled().unwrap()
}

fn of_the_election() -> Vec<(&'static str, Because)> {
    let (cluster, me, to) = (ClusterName::from("web"), NodeName::from(ME), commit(5));
    let asks = |change: &dyn Fn(&mut Election<'_>)| {
        let candidate = |name: &str| Candidate {
            name: name.into(),
            away: false,
            stuck: false,
            applied_seq: Some(5),
            target_seq: Some(5),
        };
        let mut election = Election {
            cluster: &cluster,
            action: "topics",
            me: &me,
            commit: &to,
            seq: 5,
            candidates: ["web03", ME, "web02"].map(candidate).to_vec(),
            claims: Vec::new(),
            begun: None,
            freeze: None,
            declared_dead: false,
            sick: None,
            asked_secs: 0,
        };
        change(&mut election);
        *election::may_run(&election).unwrap_err()
    };
    let claim = Claim {
        cluster: cluster.clone(),
        node: "web03".into(),
        action: "topics".to_owned(),
        commit: commit(5),
        attempt: "a".to_owned(),
        since: time(1_700_000_000),
    };
    let begun = Begun { commit: commit(9), seq: 9, node: "web03".into(), inputs: String::new() };
    vec![
        ("held-by-peer, a turn", asks(&|e| e.claims.push(claim.clone()))),
        ("behind-peer", asks(&|e| e.begun = Some(begun.clone()))),
        ("behind-peer, who follows", asks(&|e| e.candidates[0].target_seq = Some(9))),
        ("settling, before an action", asks(&|e| e.sick = Some("answers 503".to_owned()))),
        ("order, of an action", asks(&|e| e.candidates[0].applied_seq = Some(4))),
    ]
}

/// Its name begins with its reason.
fn every_wait() -> Vec<(&'static str, Because)> {
    let single = vec![("first-alone", first_alone()), ("cloned", cloned())];
    let all = [of_the_quorum(), single, of_the_windows(), of_recovery(), of_the_session(), of_the_election()];
    let all: Vec<_> = all.into_iter().flatten().collect();
    for (name, because) in &all {
        assert_eq!(name.split(',').next(), Some(&*because.reason), "{name}: {because:?}");
    }
    all
}

// ---- where it is told ----

/// A report with all of it, the first as what its state is because of.
fn reported(since: Timestamp) -> Report {
    let mut report = Report::new(&ME.into(), &"production".into(), Timestamp::now());
    let at = At { commit: commit(5), seq: 5, subject: "more workers".to_owned() };
    (report.target, report.state, report.since) = (Some(at), State::Waiting, since);
    let notes = every_wait().into_iter().map(|(name, because)| Note { since: Some(since), ..Note::new(name, because) });
    report.notes = notes.collect();
    report.holds = vec!["web.web".into()];
    report.explain(report.notes[0].because.clone());
    report
}

/// What a person reads, in pieces that stand together.
fn pieces(text: &str) -> Vec<&str> {
    text.split("\n\n").collect()
}

#[track_caller]
fn told(place: &str, text: &str, note: &Note, sentence: &str) {
    let Because { group, holders, since, ends, .. } = &note.because;
    let mut facts = vec![note.reason.clone(), sentence.to_owned(), ends.clone()];
    facts.extend(group.as_ref().map(|group| format!("group {group}")));
    facts.extend(holders.iter().map(ToString::to_string));
    facts.extend(since.map(|since| format!("since {since}")));
    let waits_for = |piece: &str| piece.contains(", for 10 min") || piece.contains(", for 11 min");
    let found = pieces(text).into_iter().any(|piece| waits_for(piece) && facts.iter().all(|fact| piece.contains(fact)));
    assert!(found, "{place} does not tell {} with {facts:#?}:\n{text}", note.batch);
}

#[test]
fn people_read_reason_group_holders_numbers_since_when_and_what_would_end_it() {
    let bed = Bed::new();
    let report = reported(Timestamp::now() - Duration::from_secs(595));
    let store = open(StoreKind::Local { path: bed.dir().join("store.db") }, "test", "production").unwrap();
    report::publish(&*store, &report).unwrap();
    put(&*store, &protocol::beat_key(&ME.into()), b"now");
    let why = bed.converger(&["why", ME]).out;
    let status = bed.converger(&["status", "--all"]).out;
    let holds = bed.converger(&["holds", "list"]).out;
    let listed: serde_json::Value = serde_json::from_str(&bed.converger(&["holds", "list", "--json"]).out).unwrap();
    let listed = listed["waits"].as_array().unwrap();
    for note in &report.notes {
        let sentence = note.because.sentence.trim_end();
        told("why", &why, note, sentence);
        told("holds list", &holds, note, sentence);
        // The table above has the sentence of the state.
        let main = sentence == report.sentence;
        told("status", &status, note, if main { "" } else { sentence });
        let as_listed = |entry: &serde_json::Value| {
            serde_json::from_value::<Because>(entry["because"].clone()).is_ok_and(|because| because == note.because)
        };
        assert!(listed.iter().any(as_listed), "holds list --json: {}", note.batch);
    }
    assert!(status.contains(&format!("declared-dead: {} (for 1", report.sentence)), "{status}");
    // Without --all nobody reads pages of it.
    let status = bed.converger(&["status"]).out;
    assert!(status.contains("more: converger why NODE"), "{status}");
    assert_eq!(pieces(&status).iter().filter(|piece| piece.starts_with("web01: ")).count(), 10);
}

/// Many nodes that wait for one thing are one entry.
#[test]
fn what_many_wait_for_is_told_once() {
    let bed = Bed::new();
    let store = open(StoreKind::Local { path: bed.dir().join("store.db") }, "test", "production").unwrap();
    let now = Timestamp::now();
    for (node, ago) in [("web01", 60), ("web03", 300)] {
        let note = Note::new(
            "web.service",
            not_now(situation(|s| s.holds.push(hold("web.web", "web02", HoldPhase::Armed, 5)))),
        );
        let mut report = Report { state: State::Waiting, ..Report::new(&node.into(), &"production".into(), now) };
        report.explain(note.because.clone());
        report.notes = vec![Note { since: Some(now - Duration::from_secs(ago)), ..note }];
        report::publish(&*store, &report).unwrap();
    }
    for command in [&["status"][..], &["holds", "list"]] {
        let text = bed.converger(command).out;
        let heading = ["web01 web03: held-by-peer, for 5 min\n", "web01 web03: held-by-peer, for 6 min\n"];
        assert!(heading.iter().any(|heading| text.contains(heading)), "{text}");
        assert_eq!(text.matches("It ends when web02 settles").count(), 1, "{text}");
    }
}

#[test]
fn metrics_have_reason_group_holders_and_since_when() {
    let report = reported(time(1_699_999_000));
    let text = metrics::exposition(&report, Duration::ZERO);
    let has = |line: &str| assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
    for note in &report.notes {
        let Because { group, holders, since, reason, .. } = &note.because;
        let group = group.as_ref().map_or("", |group| group.as_str());
        let of = format!("reason=\"{reason}\",group=\"{group}\"");
        has(&format!("converger_batch_since_timestamp_seconds{{batch=\"{}\",{of}}} 1699999000", note.batch));
        for holder in holders {
            has(&format!("converger_wait_holder_info{{{of},holder=\"{holder}\"}} 1"));
        }
        if since.is_some() {
            has(&format!("converger_wait_held_since_timestamp_seconds{{{of}}} 1700000000"));
        }
    }
    has("converger_wait_holders{reason=\"held-by-peer\",group=\"web.web\"} 2");
    has("converger_batches_open{reason=\"degraded\"} 2");
    has("converger_state{state=\"waiting\",reason=\"declared-dead\"} 1");
    // What would end it is told by the reason's own page, in one word that leads there.
    for note in &report.notes {
        assert!(reason::by_id(&note.reason).is_some_and(|reason| !reason.mend.is_empty()));
    }
}

// ---- the journal ----

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Heard {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut said = BTreeMap::new();
        event.record(&mut Fields(&mut said));
        self.0.lock().unwrap().push(said);
    }
}

impl Heard {
    fn of(&self, say: impl FnOnce()) -> Vec<BTreeMap<String, String>> {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(self.clone()), say);
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[test]
fn the_journal_has_every_fact_as_a_field_once_for_each_change() {
    let heard = Heard::default();
    let report = reported(time(1_699_999_000));
    let lines = heard.of(|| news::tell(&report, None));
    assert_eq!(lines.len(), report.notes.len());
    for (line, note) in lines.iter().zip(&report.notes) {
        let Because { group, holders, since, reason, ends, sentence } = &note.because;
        let field = |name: &str| line.get(name).map(String::as_str);
        assert_eq!((field("node"), field("commit"), field("state")), (Some(ME), Some("c000000"), Some("waiting")));
        assert_eq!(
            (field("batch"), field("reason"), field("ends")),
            (Some(&*note.batch), Some(&**reason), Some(&**ends))
        );
        assert_eq!(field("group"), group.as_ref().map(GroupId::as_str), "{}", note.batch);
        let names: Vec<&str> = holders.iter().map(NodeName::as_str).collect();
        assert_eq!(field("holder").unwrap_or_default(), names.join(" "), "{}", note.batch);
        assert_eq!(field("held_since").map(str::to_owned), since.map(|since| since.to_string()), "{}", note.batch);
        assert_eq!((field("since"), field("message")), (Some("2023-11-14T21:56:40Z"), Some(sentence.trim_end())));
    }
    // The next runs find the same.
    assert!(heard.of(|| news::tell(&report, Some(&report))).is_empty());
    let mut later = report.clone();
    let changed = |name: &str| report.notes.iter().position(|note| note.batch == name).unwrap();
    // Other numbers of a wait are no news; another holder is, another error is, and so is what comes anew.
    later.notes[changed("degraded")].because.sentence = "0 of 2 other members are healthy".to_owned();
    later.notes[changed("held-by-peer")].because.holders = vec!["web03".into()];
    later.notes[changed("gate-failed")].because.sentence = "web.service does not run".to_owned();
    later.notes.push(Note::new("tool.service", not_now(situation(|s| s.members[0].dead = true))));
    let lines = heard.of(|| news::tell(&later, Some(&report)));
    let said: Vec<&str> = lines.iter().map(|line| &*line["batch"]).collect();
    assert_eq!(said, ["held-by-peer", "gate-failed", "tool.service"]);
}
