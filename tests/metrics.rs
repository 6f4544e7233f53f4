//! The metrics of an agent: judged by a strict reader of the exposition format, by Prometheus' own promtool, and by what stands
//! in them while real runs wait, settle, fail and refuse.
//!
//! Never: a name that is not in the manual.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and write files as they like")]

mod bed;
mod forge;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bed::{Bed, NodeBed};
use converger::lock::quorum::Because;
use converger::lock::recovery::RecordPhase;
use converger::name::{CommitId, GroupId, NodeName, SecretName, UnitName};
use converger::reason;
use converger::report::metrics::{SERIES_MAX, exposition};
use converger::report::{At, Ending, Holding, Note, Report, State, UnitHealth};
use converger::resource::unit::Active;
use jiff::Timestamp;
use proptest::prelude::*;

/// Series by name and labels.
type Series = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// Every line is what the format says, every name has one HELP and one TYPE before all of its series, no series is there
/// twice. <https://prometheus.io/docs/instrumenting/exposition_formats/>
#[track_caller]
fn read(text: &str) -> Series {
    assert!(text.ends_with('\n') && !text.contains('\r'), "{text:?}");
    let (mut series, mut kinds) = (Series::new(), BTreeMap::new());
    let (mut helped, mut now) = (BTreeSet::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, said) = help.split_once(' ').unwrap();
            assert!(!said.is_empty() && helped.insert(name.to_owned()), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(helped.contains(name) && ["gauge", "counter"].contains(&kind), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            now = name.to_owned();
        } else {
            let (name, labels, value) = sample(line);
            assert_eq!(name, now, "{line}: stands with its own");
            let plain = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_');
            assert!(plain && name.starts_with("converger_"), "{line}");
            assert!(series.insert((name, labels), value).is_none(), "{line}: twice");
        }
    }
    assert_eq!(helped.len(), kinds.len());
    series
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            assert!(label.bytes().all(|c| c.is_ascii_lowercase() || c == b'_') && !label.is_empty(), "{line}");
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().unwrap_or_else(|| panic!("{line}: no end")) {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        other => panic!("{line}: \\{other}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').unwrap();
    }
    let value = rest.strip_prefix(' ').unwrap();
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("{line}: {value:?} is no number")))
}

/// What Prometheus itself says of a page.
#[track_caller]
#[allow(clippy::print_stderr, reason = "a check that was not made is said aloud")]
fn promtool(text: &str) {
    let spawned =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        assert!(std::env::var_os("CI").is_none(), "promtool is missing: tools/test-servers installs it");
        return eprintln!(
            "\n*** promtool is missing (tools/test-servers installs it): only our own reader judged ***\n"
        );
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn value(series: &Series, name: &str, of: &[(&str, &str)]) -> Option<f64> {
    series.get(&(format!("converger_{name}"), labels(of))).copied()
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn at(seq: u64) -> At {
    At { commit: CommitId::new(format!("{seq:040}")), seq, subject: "a subject".to_owned() }
}

/// A node about which there is everything to say.
fn everything() -> Report {
    let mut report = Report::new(&"web01".into(), &"production".into(), time(1_700_000_600));
    let held = Because {
        holders: vec!["web02".into(), "web03".into()],
        since: Some(time(1_700_000_100)),
        ..Because::new(reason::HELD_BY_PEER, Some(&"web.web".into()), "web02, web03 has web".to_owned())
    };
    (report.applied, report.target) = (Some(at(4)), Some(at(5)));
    (report.state, report.since) = (State::Waiting, time(1_700_000_200));
    report.explain(held.clone());
    let failed = Because::new(reason::DISK_FULL, None, "/var: no space".to_owned());
    report.notes = vec![Note::new("web.service", held), Note::new("base", failed)];
    report.notes.push(Note::of_source(Because::new(reason::UNSIGNED, None, "c0ffee1 is unsigned".to_owned())));
    report.goes_on_from(None);
    report.holds = vec!["db.members".into(), "db.standby".into()];
    report.holding = Some(Holding { batch: "db".into(), phase: RecordPhase::Settling, since: time(1_700_000_300) });
    (report.drift_repaired, report.audit) = (7, vec!["/etc/a".to_owned(), "/etc/b".to_owned()]);
    let health = |active| UnitHealth { active, settled: true, stop_ms: 1, start_ms: 2 };
    report.units.insert("web.service".into(), health(Active::Active));
    report.units.insert("db.service".into(), health(Active::Failed));
    report.singletons = BTreeSet::from([UnitName::from("beat.service")]);
    report.certificates = vec![Ending { secret: "tls".into(), expires: time(1_700_900_000) }];
    report.warnings = vec!["something".to_owned()];
    report
}

#[test]
fn every_fact_of_a_report_is_a_series_with_help_type_and_unit() {
    let text = exposition(&everything(), Duration::from_millis(1250));
    promtool(&text);
    let series = read(&text);
    let wait: &[(&str, &str)] = &[("reason", "held-by-peer"), ("group", "web.web")];
    let of_batch = |batch, reason, group| vec![("batch", batch), ("reason", reason), ("group", group)];
    let commit = format!("{:040}", 5);
    type Wanted<'a> = (&'a str, Vec<(&'a str, &'a str)>, f64);
    let expected: &[Wanted<'_>] = &[
        ("build_info", vec![("version", env!("CARGO_PKG_VERSION"))], 1.0),
        ("node_info", vec![("node", "web01"), ("environment", "production")], 1.0),
        ("applied_commit_seq", vec![], 4.0),
        ("target_commit_seq", vec![], 5.0),
        ("target_commit_info", vec![("commit", &commit)], 1.0),
        ("state", vec![("state", "waiting"), ("reason", "held-by-peer")], 1.0),
        ("state_since_timestamp_seconds", vec![], 1_700_000_200.0),
        ("exit_code", vec![], 4.0),
        ("last_run_timestamp_seconds", vec![], 1_700_000_600.0),
        ("last_run_duration_seconds", vec![], 1.25),
        ("batch_since_timestamp_seconds", of_batch("web.service", "held-by-peer", "web.web"), 1_700_000_600.0),
        ("batch_since_timestamp_seconds", of_batch("base", "disk-full", ""), 1_700_000_600.0),
        ("batch_since_timestamp_seconds", of_batch("source", "unsigned", ""), 1_700_000_600.0),
        ("batches_open", vec![("reason", "unsigned")], 1.0),
        ("batches_failed", vec![], 1.0),
        ("source_refused", vec![], 1.0),
        ("wait_holders", wait.to_vec(), 2.0),
        ("wait_holder_info", [wait, &[("holder", "web03")]].concat(), 1.0),
        ("wait_held_since_timestamp_seconds", wait.to_vec(), 1_700_000_100.0),
        ("hold_since_timestamp_seconds", vec![("group", "db.standby"), ("phase", "settling")], 1_700_000_300.0),
        ("drift_repaired_total", vec![], 7.0),
        ("drift_audit", vec![], 2.0),
        ("unit_active", vec![("unit", "web.service")], 1.0),
        ("unit_active", vec![("unit", "db.service")], 0.0),
        ("singleton_held", vec![("unit", "beat.service")], 1.0),
        ("certificate_expiry_timestamp_seconds", vec![("secret", "tls")], 1_700_900_000.0),
        ("warnings", vec![], 1.0),
        ("report_untold", vec![], 0.0),
        ("series_left_out", vec![], 0.0),
    ];
    for (name, of, wanted) in expected {
        assert_eq!(value(&series, name, of), Some(*wanted), "{name} {of:?} in:\n{text}");
    }
    assert!(!text.contains("no space") && !text.contains("a subject"), "sentences are for people:\n{text}");
}

/// One state at a time, so that its change is seen; a calm node has no series of waits.
#[test]
fn a_calm_node_waits_for_nothing() {
    let calm = Report::new(&"web01".into(), &"production".into(), time(5));
    let text = exposition(&calm, Duration::ZERO);
    promtool(&text);
    let series = read(&text);
    assert_eq!(value(&series, "state", &[("state", "converged"), ("reason", "")]), Some(1.0));
    assert_eq!(series.keys().filter(|(name, _)| name == "converger_state").count(), 1);
    for name in ["batch", "wait", "hold", "paused", "applied"] {
        let begins = format!("converger_{name}_");
        assert!(!series.keys().any(|(name, _)| name.starts_with(&begins)), "{name}:\n{text}");
    }
    assert_eq!(value(&series, "batches_failed", &[]), Some(0.0));
    assert_eq!(value(&series, "source_refused", &[]), Some(0.0));
}

/// M5: whatever a repository or a peer says.
#[test]
fn ten_thousand_resources_are_a_bounded_page() {
    let mut report = everything();
    for n in 0..10_000 {
        let because = Because {
            holders: (0..9).map(|k| NodeName::new(format!("peer{n}-{k}"))).collect(),
            since: Some(time(n)),
            ..Because::new(reason::HELD_BY_PEER, Some(&GroupId::new(format!("g{n}"))), "x".repeat(10_000))
        };
        report.notes.push(Note::new(format!("{n}{}", "y".repeat(10_000)), because));
        report.holds.push(GroupId::new(format!("h{n}")));
        report.certificates.push(Ending { secret: SecretName::new(format!("s{n}")), expires: time(n) });
        let health = UnitHealth { active: Active::Active, settled: true, stop_ms: 0, start_ms: 0 };
        report.units.insert(UnitName::new(format!("u{n}.service")), health);
    }
    let text = exposition(&report, Duration::ZERO);
    promtool(&text);
    let series = read(&text);
    let names: BTreeSet<&str> = series.keys().map(|(name, _)| name.as_str()).collect();
    assert!(series.len() <= names.len() * SERIES_MAX && text.len() < 1 << 18, "{} series", series.len());
    assert_eq!(value(&series, "batches_open", &[("reason", "held-by-peer")]), Some(10_001.0), "counts are whole");
    assert!(value(&series, "series_left_out", &[]).unwrap() > 100_000.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No name, of a group, a batch or a peer, breaks the page or becomes a series of its own making.
    #[test]
    fn no_name_breaks_the_page(names in proptest::collection::vec("(?s).{0,12}[\\\\\"\n{}=# \u{1b}]?.{0,4}", 1..6)) {
        let mut report = everything();
        for name in &names {
            let because = Because {
                holders: vec![NodeName::new(name.clone())],
                ..Because::new(reason::DEGRADED, Some(&GroupId::new(name.clone())), name.clone())
            };
            report.notes.push(Note::new(name.clone(), because));
            (report.agent, report.reason) = (name.clone(), name.clone());
        }
        let series = read(&exposition(&report, Duration::ZERO));
        let known = read(&exposition(&everything(), Duration::ZERO));
        let of = |series: &Series| series.keys().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
        prop_assert_eq!(of(&series), of(&known));
        let found = value(&series, "build_info", &[("version", &report.agent.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"))]);
        prop_assert_eq!(found, Some(1.0));
    }
}

// ---- as agents write them ----

fn page(node: &NodeBed) -> Series {
    let text = node.text("run/converger/metrics.prom");
    promtool(&text);
    read(&text)
}

/// Since when a node waits survives its runs, its agents and other commits.
#[test]
fn a_run_writes_what_it_reports_and_a_wait_keeps_its_age() {
    let bed = Bed::new();
    let node = bed.node("web01");
    node.once().exits(0);
    let calm = page(&node);
    assert_eq!(value(&calm, "state", &[("state", "converged"), ("reason", "")]), Some(1.0));
    assert_eq!(value(&calm, "applied_commit_seq", &[]), value(&calm, "target_commit_seq", &[]));
    let path = node.root.join("run/converger/metrics.prom");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    bed.edit("roles/web/defaults.toml", "4", "8");
    bed.commit("more workers");
    let mut waits = Vec::new();
    let of: &[(&str, &str)] = &[("batch", "web.service"), ("reason", "degraded"), ("group", "web.web")];
    for message in ["", "another", "and another"] {
        if !message.is_empty() {
            bed.forge.write("roles/web/defaults.toml", &format!("workers = {}\n", 8 + message.len()));
            bed.commit(message);
        }
        node.once().exits(6);
        let found = page(&node);
        let since = ["batch_since_timestamp_seconds", "state_since_timestamp_seconds"];
        let since = [value(&found, since[0], of), value(&found, since[1], &[])].map(Option::unwrap);
        waits.push((since, value(&found, "target_commit_seq", &[]).unwrap()));
        let report = node.report();
        assert_eq!(report["ends"], "It ends when 2 others are healthy.");
        assert!(report["notes"][0]["since"].is_string(), "{report}");
    }
    assert!(waits.iter().all(|(since, _)| *since == waits[0].0), "{waits:?}");
    assert_eq!(waits.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(), [3.0, 4.0, 5.0]);
    assert_eq!(value(&page(&node), "applied_commit_seq", &[]), Some(2.0), "KEEP");
}

#[test]
fn a_hold_of_its_own_has_an_age_and_a_refusal_is_seen() {
    let bed = Bed::new();
    for name in bed::NODES {
        bed.node(name).once().exits(0);
    }
    let node = bed.node("web01");
    bed.edit("roles/web/defaults.toml", "4", "8");
    bed.commit("more workers");
    node.put("run/converger/units.fail", "web.service start\n");
    node.once().exits(5);
    let failed = page(&node);
    let since = value(&failed, "hold_since_timestamp_seconds", &[("group", "web.web"), ("phase", "failed")]);
    assert!(since.is_some_and(|since| since > 1_700_000_000.0), "{failed:?}");
    let other = bed.node("web02");
    other.once().exits(6);
    let waiting = page(&other);
    let waits: &[(&str, &str)] = &[("reason", "hold-failed"), ("group", "web.web")];
    assert_eq!(value(&waiting, "wait_holders", waits), Some(1.0), "{waiting:?}");
    assert_eq!(value(&waiting, "wait_holder_info", &[waits, &[("holder", "web01")]].concat()), Some(1.0));
    assert_eq!(value(&waiting, "source_refused", &[]), Some(0.0));
    bed.edit("roles/base/motd", "of", "in");
    bed.forge.commit(None, "quick fix");
    other.once().exits(4);
    assert_eq!(value(&page(&other), "source_refused", &[]), Some(1.0), "beside the wait");
}

/// M3: where metrics go is a choice, and that it is not there changes nothing else.
#[test]
fn the_textfile_is_where_the_settings_say_and_no_run_fails_for_it() {
    let bed = Bed::new();
    let node = bed.node("web02");
    let dir = bed.dir().join("textfiles");
    let settings = node.text("etc/converger/agent.toml");
    let at = |path: &Path| {
        let metrics = format!("[metrics]\ntextfile = \"{}\"\n\n[sandbox]", path.display());
        node.put("etc/converger/agent.toml", &settings.replace("[sandbox]", &metrics));
    };
    at(&dir.join("converger.prom"));
    node.once().exits(0);
    assert!(!dir.exists(), "nobody else's folder is made");
    std::fs::create_dir(&dir).unwrap();
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("a word");
    node.once().exits(0);
    let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["converger.prom"]);
    let series = read(&std::fs::read_to_string(dir.join("converger.prom")).unwrap());
    assert_eq!(value(&series, "applied_commit_seq", &[]), Some(3.0));
    assert!(!node.root.join("run/converger/metrics.prom").exists());
    // A dry run writes nothing.
    std::fs::remove_file(dir.join("converger.prom")).unwrap();
    node.agent(&["--dry-run"]).exits(0);
    assert!(!dir.join("converger.prom").exists());
}

/// Every name is in the manual, and nothing else is there.
#[test]
fn the_manual_has_every_metric() {
    let mut report = everything();
    let clock = converger::clock::FakeClock::at(time(5));
    let pause = converger::pause::Pause::new("disks", "eve".to_owned(), Duration::from_secs(60), "boot", &clock);
    report.pause = Some(pause);
    let series = read(&exposition(&report, Duration::ZERO));
    let names: BTreeSet<&str> = series.keys().map(|(name, _)| name.as_str()).collect();
    let manual = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let told = manual
        .lines()
        .filter_map(|line| line.strip_prefix("| `converger_"))
        .filter_map(|line| line.split(['`', '{']).next());
    let told: BTreeSet<String> = told.map(|name| format!("converger_{name}")).collect();
    assert_eq!(told.iter().map(String::as_str).collect::<BTreeSet<_>>(), names);
}
