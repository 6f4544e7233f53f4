//! A report in the text format of Prometheus, for node_exporter's textfile collector and for whoever scrapes the file.
//!
//! The format: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Times are Unix seconds, so that the file need
//! not be written for them to grow. PURE. Never: a sentence or an error as a label; never: more series of one
//! name than [`SERIES_MAX`], whatever a repository or a peer says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::{Note, Report, SOURCE};
use crate::lock::recovery::RecordPhase;
use crate::name::{GroupId, NodeName};
use crate::reason::{self, Exit};
use crate::resource::unit::Active;

/// Of one name; how many more there would be is a metric of its own.
pub const SERIES_MAX: usize = 64;
/// Of one label's value.
const LABEL_CHARS_MAX: usize = 128;

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// `took`: the run that made the report.
pub fn exposition(report: &Report, took: Duration) -> String {
    let mut page = Page::default();
    let open = report.open();

    page.one("build_info", "The version of the agent.", vec![("version", &*report.agent)], 1.0);
    let names = vec![("node", report.node.as_str()), ("environment", report.environment.as_str())];
    page.one("node_info", "Who this node is to the fleet.", names, 1.0);
    for (name, commit, help) in [
        ("applied", &report.applied, "wholly live on this node"),
        ("target", &report.target, "verified and wanted on this node"),
    ] {
        let Some(commit) = commit else { continue };
        let id = vec![("commit", commit.commit.as_str())];
        page.one(&format!("{name}_commit_info"), &format!("The commit that is {help}."), id, 1.0);
        let help = format!("The place on the branch of the commit that is {help}.");
        page.one(&format!("{name}_commit_seq"), &help, vec![], commit.seq as f64);
    }
    let state = vec![("state", report.state.name()), ("reason", &*report.reason)];
    page.one("state", "The state of the node, with its reason (converger explain REASON).", state, 1.0);
    page.one("state_since_timestamp_seconds", "When the state began.", vec![], at(report.since));
    page.one("exit_code", "What the run would have ended with as a command.", vec![], report.exit().code().into());
    page.one("last_run_timestamp_seconds", "The last run that looked at everything.", vec![], at(report.at));
    page.one("last_run_duration_seconds", "How long that run took.", vec![], took.as_secs_f64());
    page.one("report_untold", "1: the store does not have this report yet.", vec![], bit(report.untold));
    page.one(
        "warnings",
        "What somebody should mend although nothing waits for it.",
        vec![],
        report.warnings.len() as f64,
    );

    page.notes(&open);
    let failed = open.iter().filter(|note| note.batch != SOURCE && !waits(note)).count();
    page.one("batches_failed", "Batches that failed in the last run.", vec![], failed as f64);
    let refused = open.iter().any(|note| exit(note) == Some(Exit::Trust));
    page.one("source_refused", "1: what the remotes offer is refused or stale.", vec![], bit(refused));

    if let Some(holding) = &report.holding {
        let phase = match holding.phase {
            RecordPhase::Acting => "acting",
            RecordPhase::Repairing => "repairing",
            RecordPhase::Settling => "settling",
            RecordPhase::Failed => "failed",
        };
        let since = at(holding.since);
        let held = report.holds.iter().map(|group| (vec![("group", group.as_str()), ("phase", phase)], since));
        page.many("hold_since_timestamp_seconds", "Since when this node holds a group, and in which phase.", held);
    }
    page.counter("drift_repaired_total", "Files that were found changed and were put back.", report.drift_repaired);
    page.one("drift_audit", "Differences that are only reported.", vec![], report.audit.len() as f64);
    let units = report.units.iter().map(|(unit, health)| {
        let runs = matches!(health.active, Active::Active | Active::Reloading);
        (vec![("unit", unit.as_str())], bit(runs))
    });
    page.many("unit_active", "Whether a unit of this node's roles runs.", units);
    let singletons = report.singletons.iter().map(|unit| (vec![("unit", unit.as_str())], 1.0));
    page.many("singleton_held", "Units of which one runs in the cluster, and which run here.", singletons);
    let ending = report.certificates.iter().map(|one| (vec![("secret", one.secret.as_str())], at(one.expires)));
    let help = "When a certificate among the secrets expires; those that do within 30 days.";
    page.many("certificate_expiry_timestamp_seconds", help, ending);
    if let Some(pause) = &report.pause {
        page.one("paused_until_timestamp_seconds", "When the pause of this node ends.", vec![], at(pause.until));
    }
    page.left_out();
    page.text
}

fn at(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

fn group(note: &Note) -> &str {
    note.because.group.as_ref().map_or("", GroupId::as_str)
}

fn wait_of<'a>((reason, group): &(&'a str, &'a str)) -> Labels<'a> {
    vec![("reason", reason), ("group", group)]
}

fn bit(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

fn exit(note: &Note) -> Option<Exit> {
    reason::by_id(&note.reason).map(|reason| reason.exit)
}

/// For others, or for something that ends by itself.
fn waits(note: &Note) -> bool {
    matches!(exit(note), Some(Exit::Waiting | Exit::Unreachable))
}

/// Who has what is waited for, and since when the first of them.
#[derive(Default)]
struct Held<'a> {
    holders: BTreeSet<&'a str>,
    since: Option<Timestamp>,
}

#[derive(Default)]
struct Page {
    text: String,
    left_out: usize,
}

impl Page {
    /// What is not as it should be, part by part.
    fn notes(&mut self, open: &[Note]) {
        let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
        let mut held: BTreeMap<(&str, &str), Held<'_>> = BTreeMap::new();
        for note in open {
            *counts.entry(&note.reason).or_default() += 1.0;
            if !note.because.holders.is_empty() {
                let Held { holders, since } = held.entry((&note.reason, group(note))).or_default();
                holders.extend(note.because.holders.iter().map(NodeName::as_str));
                *since = since.iter().copied().chain(note.because.since).min();
            }
        }
        let counts = counts.into_iter().map(|(reason, count)| (vec![("reason", reason)], count));
        self.many("batches_open", "Batches that are not where they should be, by reason.", counts);
        let since = open.iter().filter_map(|note| {
            let labels = vec![("batch", &*note.batch), ("reason", &*note.reason), ("group", group(note))];
            Some((labels, at(note.since?)))
        });
        let help = "Since when a batch waits, is refused or fails for the same reason.";
        self.many("batch_since_timestamp_seconds", help, since);

        let counts = held.iter().map(|(key, held)| (wait_of(key), held.holders.len() as f64));
        self.many("wait_holders", "How many nodes hold what this node waits for.", counts);
        let info = held.iter().flat_map(|(key, held)| {
            held.holders.iter().map(move |holder| ([wait_of(key), vec![("holder", *holder)]].concat(), 1.0))
        });
        self.many("wait_holder_info", "Who holds what this node waits for.", info);
        let since = held.iter().filter_map(|(key, held)| Some((wait_of(key), at(held.since?))));
        self.many("wait_held_since_timestamp_seconds", "Since when the first of them holds it.", since);
    }

    fn one(&mut self, name: &str, help: &str, labels: Labels<'_>, value: f64) {
        self.many(name, help, [(labels, value)]);
    }

    fn many<'a>(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = (Labels<'a>, f64)>) {
        self.family(name, help, "gauge", series);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, help, "counter", [(vec![], value as f64)]);
    }

    fn left_out(&mut self) {
        let left_out = self.left_out as f64;
        let help = format!("Series that are not here because a name has {SERIES_MAX} already.");
        self.one("series_left_out", &help, vec![], left_out);
    }

    /// Two series with the same labels would make the whole page invalid: the lower value stands.
    fn family<'a>(&mut self, name: &str, help: &str, kind: &str, series: impl IntoIterator<Item = (Labels<'a>, f64)>) {
        let mut lines: BTreeMap<String, f64> = BTreeMap::new();
        for (labels, value) in series {
            let line = lines.entry(written(&labels)).or_insert(value);
            *line = value.min(*line);
        }
        if lines.is_empty() {
            return;
        }
        // A String takes everything.
        let _ = writeln!(self.text, "# HELP converger_{name} {help}\n# TYPE converger_{name} {kind}");
        self.left_out += lines.len().saturating_sub(SERIES_MAX);
        for (labels, value) in lines.into_iter().take(SERIES_MAX) {
            let _ = writeln!(self.text, "converger_{name}{labels} {value}");
        }
    }
}

/// `{a="1",b="2"}`; nothing without labels.
fn written(labels: &Labels<'_>) -> String {
    let pair = |(name, value): &(&str, &str)| {
        let mut text = String::new();
        for c in value.chars().take(LABEL_CHARS_MAX) {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c if c.is_control() => text.push('\u{fffd}'),
                c => text.push(c),
            }
        }
        format!("{name}=\"{text}\"")
    };
    let pairs: Vec<String> = labels.iter().map(pair).collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}
