//! `converger status`: where the fleet is; exceptions first. Never: counts a silent node as fine.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::access::Access;
use super::{Done, Failure, say, say_json};
use crate::clock::{Clock as _, SystemClock};
use crate::fleet::{Fleet, agents};
use crate::lock::protocol;
use crate::lock::standing::{RANGES, Standing};
use crate::lock::store::LockStore;
use crate::name::{NodeName, SecretName};
use crate::plan::show::{Paint, about, table};
use crate::reason::{self, Exit, chain};
use crate::report::{self, At, Report, obstacle};
use crate::secrets::tls;
use crate::wake::{Wake, Wakes};

/// Show which commit each node runs, what it is waiting for, and why
///
/// Exceptions first; what is fine is counted. Read from the nodes' reports in the store. A node without a sign of life is
/// `silent`, never fine.
#[derive(clap::Args)]
pub struct Args {
    /// Also list the nodes that are fine
    #[arg(long)]
    all: bool,
    /// Reports as JSON, for scripts
    #[arg(long)]
    json: bool,
    /// Keep showing until interrupted
    #[arg(long)]
    watch: bool,
    /// Wait until every node has applied this commit (or a later one)
    #[arg(long, value_name = "COMMIT")]
    wait: Option<String>,
    /// How long --wait waits, in seconds
    #[arg(long, value_name = "N", default_value_t = 3600)]
    timeout_secs: u64,
}

pub fn run(args: Args, access: &Access) -> Done {
    let tree = access.work_tree()?;
    let fleet = access.load(&tree)?.fleet;
    let store = access.store(&fleet.name, &fleet.environment.name)?;
    let wakes = Wakes::default();
    let waker = wakes.waker();
    let on_change = move || waker.wake(Wake::Store);
    let _watch = (args.watch || args.wait.is_some())
        .then(|| store.watch(&["n/", "hold/", protocol::FREEZES, "dead/"], Box::new(on_change)))
        .transpose()
        .map_err(|e| Failure::of(reason::STORE_UNREACHABLE, chain(&e)))?;
    let began = SystemClock.awake();
    loop {
        let picture = Picture::take(&*store, &fleet)?;
        if let Some(commit) = &args.wait {
            if picture.everybody_has(commit) {
                say(picture.show(args.all));
                return Ok(Exit::Done);
            }
            if SystemClock.awake().saturating_sub(began).as_secs() >= args.timeout_secs {
                say(picture.show(args.all));
                return Ok(picture.exit().worst(Exit::Waiting));
            }
        } else if args.json {
            say_json(&picture.reports);
            return Ok(picture.exit());
        } else {
            let clear = if args.watch { "\x1b[2J\x1b[H" } else { "" };
            say(format!("{clear}{}", picture.show(args.all)));
            if !args.watch {
                return Ok(picture.exit());
            }
        }
        wakes.wait(Duration::from_secs(1));
    }
}

struct Picture<'a> {
    fleet: &'a Fleet,
    reports: BTreeMap<NodeName, Report>,
    unreadable: Vec<NodeName>,
    silent: Vec<NodeName>,
    standing: Standing,
    now: Timestamp,
}

impl<'a> Picture<'a> {
    fn take(store: &dyn LockStore, fleet: &'a Fleet) -> Result<Self, Failure> {
        let unreachable = |e| Failure::of(reason::STORE_UNREACHABLE, chain(&e));
        let (reports, unreadable) = report::collect(store).map_err(unreachable)?;
        let ranges: Vec<&str> = RANGES.into_iter().chain(["n/"]).collect();
        let snapshot = store.read(&ranges).map_err(unreachable)?;
        let nodes = fleet.environment.nodes.iter().map(|node| &node.name);
        let silent = nodes.filter(|name| snapshot.get(&protocol::beat_key(name)).is_none()).cloned().collect();
        let now = SystemClock.now();
        let standing = Standing::of(&snapshot, &fleet.environment, now);
        Ok(Self { fleet, reports, unreadable, silent, standing, now })
    }

    /// The newest commit that any node has verified.
    fn target(&self) -> Option<&At> {
        self.reports.values().filter_map(|report| report.target.as_ref()).max_by_key(|at| at.seq)
    }

    fn everybody_has(&self, commit: &str) -> bool {
        // A peer may say what it likes of a commit's place: the highest is what it takes to have it.
        let said = self.reports.values().flat_map(|report| report.applied.iter().chain(&report.target));
        let seq = said.filter(|at| at.commit.as_str().starts_with(commit)).map(|at| at.seq).max();
        let Some(seq) = seq else { return false };
        self.fleet.environment.nodes.iter().all(|node| {
            let applied = self.reports.get(&node.name).and_then(|report| report.applied.as_ref());
            applied.is_some_and(|at| at.seq >= seq)
        })
    }

    fn state(&self, node: &NodeName) -> (&'static str, Option<&Report>) {
        let Some(report) = self.reports.get(node) else { return ("silent", None) };
        if self.silent.contains(node) {
            return ("silent", Some(report));
        }
        (report.state.name(), Some(report))
    }

    fn exit(&self) -> Exit {
        let nodes = self.fleet.environment.nodes.iter();
        nodes.fold(Exit::Done, |worst, node| {
            let exit = match self.state(&node.name) {
                ("silent", _) => Exit::Unreachable,
                (_, Some(report)) => report.exit(),
                (_, None) => Exit::Unreachable,
            };
            worst.worst(exit)
        })
    }

    fn show(&self, all: bool) -> String {
        let Paint { bold, green, red, yellow, dim, off } = Paint::COLOUR;
        let environment = &self.fleet.environment;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for node in &environment.nodes {
            *counts.entry(self.state(&node.name).0).or_default() += 1;
        }
        let count = |state: &str| counts.get(state).copied().unwrap_or(0);
        let target = self.target();
        let at = |report: Option<&Report>| -> bool {
            let applied = report.and_then(|report| report.applied.as_ref());
            applied.map(|at| at.seq) == target.map(|at| at.seq) && target.is_some()
        };
        let has = |name: &NodeName| self.state(name).0 != "silent" && at(self.reports.get(name));
        let done = environment.nodes.iter().filter(|node| has(&node.name)).count();
        let mut out = match target {
            Some(at) => format!("{bold}{}{off}  {} {}\n", environment.name, at.commit.short(), at.subject),
            None => format!("{bold}{}{off}  no node has reported yet\n", environment.name),
        };
        let drift = self.reports.values().fold(0_u64, |sum, report| sum.saturating_add(report.drift_repaired));
        let mut parts = vec![format!("{green}{} converged{off}", count("converged"))];
        for (state, colour) in [
            ("applying", yellow),
            ("waiting", yellow),
            ("paused", yellow),
            ("failed", red),
            ("refused", red),
            ("stale-source", red),
            ("forked-source", red),
            ("unreachable", red),
            ("not-in-topology", red),
            ("silent", red),
        ] {
            let n = count(state);
            if n > 0 {
                parts.push(format!("{colour}{n} {state}{off}"));
            } else if matches!(state, "failed" | "silent" | "waiting") {
                parts.push(format!("{dim}0 {state}{off}"));
            }
        }
        let total = environment.nodes.len();
        let width = 38;
        let full = (done * width).checked_div(total).unwrap_or(0);
        out.push_str(&format!(
            "{}   |{}{}| {done} of {total} at target   drift repaired {drift}, holds {}\n\n",
            parts.join(" · "),
            "#".repeat(full),
            "-".repeat(width - full),
            self.holds()
        ));
        out.push_str(&self.freezes());
        out.push_str(&self.agents());
        out.push_str(&self.clusters(all, &at));
        out.push_str(&self.exceptions(all, &at));
        out.push_str(&self.obstacles(all));
        out.push_str(&self.certificates(all));
        out.push_str(&self.warnings());
        for node in &self.unreadable {
            out.push_str(&format!("{red}{node}: its report cannot be read{off}\n"));
        }
        out
    }

    fn holds(&self) -> String {
        let Paint { red, off, .. } = Paint::COLOUR;
        match (self.standing.holds.len(), self.standing.conspicuous()) {
            (holds, 0) => holds.to_string(),
            (holds, n) => format!("{holds} {red}({n} to be looked at: converger holds list){off}"),
        }
    }

    /// What operators put in the way, and whom they put away.
    fn freezes(&self) -> String {
        let Paint { yellow, red, off, .. } = Paint::COLOUR;
        let Standing { freezes, dead, .. } = &self.standing;
        let mut out = String::new();
        for frozen in freezes {
            let what = frozen.of.as_ref().map_or_else(|| frozen.scope.clone(), ToString::to_string);
            let until = frozen.freeze.until.map_or_else(|| "for ever".to_owned(), |until| format!("until {until}"));
            let (by, reason) = (&frozen.freeze.by, &frozen.freeze.reason);
            out.push_str(&format!("{yellow}{what} is frozen{off} {until} by {by}: {reason}\n"));
        }
        for dead in dead {
            out.push_str(&format!("{red}{} was declared dead{off}: {}\n", dead.node, dead.reason));
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out.replace(|c: char| c.is_control() && c != '\n' && c != '\x1b', "\u{fffd}")
    }

    fn clusters(&self, all: bool, at: &dyn Fn(Option<&Report>) -> bool) -> String {
        let mut rows = Vec::new();
        let mut fine = (0, 0);
        for cluster in &self.fleet.environment.clusters {
            let done = cluster.members.iter().filter(|node| at(self.reports.get(*node))).count();
            let mut states: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for node in &cluster.members {
                states.entry(self.state(node).0).or_default().push(node.as_str());
            }
            let calm = done == cluster.members.len() && states.keys().all(|state| *state == "converged");
            if calm && !all {
                fine = (fine.0 + 1, fine.1 + cluster.members.len());
                continue;
            }
            let words: Vec<String> = states
                .iter()
                .map(|(state, nodes)| match *state {
                    "converged" => format!("{} converged", nodes.len()),
                    state => format!("{state} {}", nodes.join(" ")),
                })
                .collect();
            rows.push([
                cluster.name.to_string(),
                cluster.members.len().to_string(),
                done.to_string(),
                words.join(", "),
            ]);
        }
        if fine.0 > 0 {
            let name = match (rows.is_empty(), fine.0) {
                (true, 1) => "the only cluster".to_owned(),
                (true, n) => format!("all {n} clusters"),
                (false, 1) => "1 other".to_owned(),
                (false, n) => format!("{n} others"),
            };
            rows.push([name, fine.1.to_string(), fine.1.to_string(), "converged".to_owned()]);
        }
        table(&["cluster", "nodes", "at target", "state"].map(str::to_owned), &rows, "")
    }

    fn exceptions(&self, all: bool, at: &dyn Fn(Option<&Report>) -> bool) -> String {
        let mut rows = Vec::new();
        for node in &self.fleet.environment.nodes {
            let (state, report) = self.state(&node.name);
            if state == "converged" && at(report) && !all {
                continue;
            }
            let applied = report.and_then(|report| report.applied.as_ref()).map_or("-", |at| at.commit.short());
            let reason = report.map_or_else(
                || "never reported".to_owned(),
                |report| {
                    let since = self.now.duration_since(report.since).as_secs().max(0);
                    let sentence = report.sentence.lines().next().unwrap_or_default();
                    match report.reason.as_str() {
                        "" => String::new(),
                        reason if sentence.starts_with(reason) => sentence.to_owned(),
                        reason => format!("{reason}: {sentence} (for {})", about(since.unsigned_abs())),
                    }
                },
            );
            rows.push([node.name.to_string(), applied.to_owned(), state.to_owned(), reason]);
        }
        if rows.is_empty() {
            return String::new();
        }
        format!("\n{}", table(&["node", "applied", "state", "reason"].map(str::to_owned), &rows, ""))
    }

    /// What would end what the exceptions wait for, once for all that wait for the same.
    fn obstacles(&self, all: bool) -> String {
        const SHOWN: usize = 10;
        let notes = self.fleet.environment.nodes.iter().filter_map(|node| Some((node, self.reports.get(&node.name)?)));
        let notes = notes.flat_map(|(node, report)| {
            let said = report.sentence.lines().next().unwrap_or_default();
            report.open().into_iter().map(move |mut note| {
                // The table has it.
                if note.because.sentence.trim_end() == said {
                    note.because.sentence.clear();
                }
                (node.name.clone(), note)
            })
        });
        let found = obstacle::obstacles(notes);
        let shown = if all { found.len() } else { SHOWN };
        let mut out: String = found.iter().take(shown).map(|one| format!("\n{}", one.text(self.now))).collect();
        if let more @ 1.. = found.len().saturating_sub(shown) {
            out.push_str(&format!("\nand {more} more: converger why NODE, or status --all\n"));
        }
        out
    }

    /// How far the agents are, where a commit says which one is wanted.
    fn agents(&self) -> String {
        let environment = &self.fleet.environment;
        let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
        let mut settled = 0;
        for node in &environment.nodes {
            let Some(wanted) = agents::digest(environment, node) else { return String::new() };
            let report = self.reports.get(&node.name);
            *versions.entry(report.map_or("unknown", |report| &report.agent)).or_default() += 1;
            settled += usize::from(report.is_some_and(|report| report.agent_sha256.as_deref() == Some(wanted)));
        }
        let versions: Vec<String> = versions.iter().map(|(version, nodes)| format!("{nodes} run {version}")).collect();
        format!("agents: {settled} of {} as wanted ({})\n\n", environment.nodes.len(), versions.join(", "))
    }

    /// What nodes warn of, and how many of them.
    fn warnings(&self) -> String {
        let Paint { yellow, off, .. } = Paint::COLOUR;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for warning in self.reports.values().flat_map(|report| &report.warnings) {
            *counts.entry(warning).or_default() += 1;
        }
        let lines = counts.iter().map(|(warning, nodes)| format!("{yellow}{warning}{off} (say {nodes} nodes)\n"));
        let lines: String = lines.collect();
        if lines.is_empty() { lines } else { format!("\n{lines}") }
    }

    /// Those that expire soon, as the nodes that have them say.
    fn certificates(&self, all: bool) -> String {
        const SHOWN: usize = 10;
        let of = |(node, report): (&NodeName, &Report)| {
            report.certificates.iter().map(|one| (one.expires, one.secret.clone(), node.clone())).collect::<Vec<_>>()
        };
        let mut ending: Vec<_> = self.reports.iter().flat_map(of).collect();
        ending.sort();
        let shown = if all { ending.len() } else { SHOWN };
        let row = |(at, secret, node): &(Timestamp, SecretName, NodeName)| {
            [secret.to_string(), node.to_string(), tls::from_now(*at, self.now), at.to_string()]
        };
        let mut rows: Vec<_> = ending.iter().take(shown).map(row).collect();
        match ending.len().saturating_sub(shown) {
            _ if rows.is_empty() => return String::new(),
            0 => {}
            more => rows.push([format!("and {more} more"), String::new(), String::new(), String::new()]),
        }
        format!("\n{}", table(&["certificate", "node", "expires", "at"].map(str::to_owned), &rows, ""))
    }
}
