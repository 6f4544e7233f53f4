//! What a node says about itself: to its own disk, and to the store where the others and the engineers read it.
//!
//! Written when it changed. `metrics`, `news` and `obstacle` say the same in three more places. Never: a secret, a digest of
//! one, or a commit that is not on disk yet.

pub mod metrics;
pub mod news;
pub mod obstacle;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::disk::{self, DiskError};
use crate::lock::protocol;
use crate::lock::quorum::Because;
use crate::lock::recovery::{Record, RecordPhase};
use crate::lock::store::{LockStore, StoreError, Transaction, Write};
use crate::name::{CommitId, EnvironmentName, GroupId, NodeName, SecretName, UnitName};
use crate::pause::Pause;
use crate::reason::{self, Exit, Reason};
use crate::resource::unit::Active;

/// A commit and its place on the first-parent chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct At {
    pub commit: CommitId,
    pub seq: u64,
    pub subject: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Converged,
    /// Acting, or settling after having acted.
    Applying,
    Waiting,
    /// The offered commit was refused; the last good one is enforced.
    Refused,
    /// The offered commit was not refused, but other nodes know more of the branch.
    StaleSource,
    /// Other nodes verified another branch.
    ForkedSource,
    Unreachable,
    NotInTopology,
    /// Somebody works on the machine: nothing is applied.
    Paused,
    Failed,
}

impl State {
    /// In kebab-case, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Converged => "converged",
            Self::Applying => "applying",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::StaleSource => "stale-source",
            Self::ForkedSource => "forked-source",
            Self::Unreachable => "unreachable",
            Self::NotInTopology => "not-in-topology",
            Self::Paused => "paused",
            Self::Failed => "failed",
        }
    }

    /// What the remotes offer is why.
    fn is_of_source(self) -> bool {
        matches!(self, Self::Refused | Self::StaleSource | Self::ForkedSource | Self::Unreachable)
    }

    /// Of a node that is as the last good commit says, while the source gives this reason to complain.
    pub fn of_source(reason: Reason) -> Self {
        let named = [
            (reason::SOURCE_UNREACHABLE, Self::Unreachable),
            (reason::STALE_SOURCE, Self::StaleSource),
            (reason::FORKED_SOURCE, Self::ForkedSource),
        ];
        named.into_iter().find(|(named, _)| *named == reason).map_or(Self::Refused, |(_, state)| state)
    }
}

/// One batch that is not where it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    pub batch: String,
    pub reason: String,
    pub because: Because,
    /// Since when it is so without a break, over runs and agents; a boot of the machine forgets it.
    #[serde(default)]
    pub since: Option<Timestamp>,
}

impl Note {
    pub fn new(batch: impl Into<String>, because: Because) -> Self {
        Self { batch: batch.into(), reason: because.reason.clone(), because, since: None }
    }

    /// What is wrong with what the remotes offer.
    pub fn of_source(because: Because) -> Self {
        Self::new(SOURCE, because)
    }

    /// The same batch is held up by the same thing, whatever the numbers are by now.
    fn goes_on(&self, last: &Self) -> bool {
        self.batch == last.batch && self.reason == last.reason && self.because.group == last.because.group
    }
}

/// Where a batch would stand, if the remotes are what is wrong.
const SOURCE: &str = "source";

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnitHealth {
    pub active: Active,
    /// It was once healthy for its settle time.
    pub settled: bool,
    /// How long its last stop and start took, as we saw it; 0: not seen.
    pub stop_ms: u64,
    pub start_ms: u64,
}

/// A member that settled with a commit's inputs of a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proof {
    pub seq: u64,
}

/// A hold of this node's own, from arming until release.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holding {
    pub batch: String,
    pub phase: RecordPhase,
    pub since: Timestamp,
}

/// A certificate in one of the node's secrets that expires soon, or has expired.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ending {
    pub secret: SecretName,
    pub expires: Timestamp,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    pub node: NodeName,
    pub environment: EnvironmentName,
    /// Version of the agent.
    pub agent: String,
    /// Hex SHA-256 of the agent's program, once that has proved itself; only where a commit says which one is wanted.
    #[serde(default)]
    pub agent_sha256: Option<String>,
    /// The commit that is wholly live here.
    pub applied: Option<At>,
    /// The newest commit that was verified and is good for this node.
    pub target: Option<At>,
    pub state: State,
    /// Id of a [`Reason`]; empty where all is well.
    pub reason: String,
    /// One sentence, with names and numbers.
    pub sentence: String,
    /// What would end it; empty where all is well.
    #[serde(default)]
    pub ends: String,
    pub notes: Vec<Note>,
    /// Files that were found changed and were put back, since the agent keeps count.
    pub drift_repaired: u64,
    /// Differences that are only reported (`policy = "audit"`).
    pub audit: Vec<String>,
    pub units: BTreeMap<UnitName, UnitHealth>,
    /// Groups whose hold this node has.
    pub holds: Vec<GroupId>,
    /// What it has them for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holding: Option<Holding>,
    /// Units of which one runs in the cluster, and which run here.
    #[serde(default)]
    pub singletons: BTreeSet<UnitName>,
    /// Groups that this node's member leads, when it was last asked.
    pub leads: Vec<GroupId>,
    pub proven: BTreeMap<GroupId, Proof>,
    /// Within 30 days, the first ones first.
    #[serde(default)]
    pub certificates: Vec<Ending>,
    /// In force when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// How often the store that this node deals with was restored.
    #[serde(default)]
    pub store_epoch: u64,
    /// What somebody should mend although nothing waits for it: of the store so far.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The store does not have it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untold: bool,
    /// When this state began.
    pub since: Timestamp,
    pub at: Timestamp,
}

impl Report {
    /// Of a node that has nothing to say yet.
    pub fn new(node: &NodeName, environment: &EnvironmentName, now: Timestamp) -> Self {
        Self {
            node: node.clone(),
            environment: environment.clone(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            agent_sha256: None,
            applied: None,
            target: None,
            state: State::Converged,
            reason: String::new(),
            sentence: String::new(),
            ends: String::new(),
            notes: Vec::new(),
            drift_repaired: 0,
            audit: Vec::new(),
            units: BTreeMap::new(),
            holds: Vec::new(),
            holding: None,
            singletons: BTreeSet::new(),
            leads: Vec::new(),
            proven: BTreeMap::new(),
            certificates: Vec::new(),
            pause: None,
            store_epoch: 0,
            warnings: Vec::new(),
            untold: false,
            since: now,
            at: now,
        }
    }

    pub fn reason(&self) -> Option<Reason> {
        reason::by_id(&self.reason)
    }

    /// The exit code of a run that ends like this.
    pub fn exit(&self) -> Exit {
        let own = match self.state {
            State::Converged => Exit::Done,
            _ => self.reason().map_or(Exit::Internal, |reason| reason.exit),
        };
        self.notes
            .iter()
            .filter_map(|note| reason::by_id(&note.reason))
            .fold(own, |worst, reason| worst.worst(reason.exit))
    }

    /// What the state is because of.
    pub fn explain(&mut self, because: Because) {
        (self.reason, self.sentence, self.ends) = (because.reason, because.sentence, because.ends);
    }

    pub fn holds(&mut self, record: Option<&Record>) {
        let holds = record.map(|record| &*record.holds).unwrap_or_default();
        self.holds = holds.iter().map(|(hold, _)| hold.group.clone()).collect();
        let since = holds.iter().map(|(hold, _)| hold.since).min();
        self.holding = record.zip(since).map(|(record, since)| Holding {
            batch: record.batch.clone(),
            phase: record.phase,
            since,
        });
    }

    /// What outlives a run: when a state and a wait began, and how long a unit's last stop and start took.
    pub fn goes_on_from(&mut self, last: Option<&Self>) {
        for note in &mut self.notes {
            let before = last.and_then(|last| last.notes.iter().find(|before| note.goes_on(before)));
            note.since = before.and_then(|before| before.since).or(note.since).or(Some(self.at));
        }
        let Some(last) = last else { return };
        // Another commit does not make a wait younger.
        let same_wait = !self.reason.is_empty() || last.target == self.target;
        if last.state == self.state && last.reason == self.reason && same_wait {
            self.since = last.since;
        }
        for (name, unit) in &mut self.units {
            if let Some(before) = last.units.get(name)
                && unit.stop_ms == 0
            {
                unit.stop_ms = before.stop_ms;
                unit.start_ms = before.start_ms;
            }
        }
    }

    /// Everything that is not as it should be: the notes, and what the state is because of.
    pub fn open(&self) -> Vec<Note> {
        let mut open = self.notes.clone();
        let told = |note: &Note| note.reason == self.reason && note.because.sentence == self.sentence;
        if !self.reason.is_empty() && !open.iter().any(told) {
            let ends = if self.ends.is_empty() { self.reason().map_or("", |reason| reason.mend) } else { &self.ends };
            let because = Because {
                reason: self.reason.clone(),
                group: None,
                sentence: self.sentence.clone(),
                holders: Vec::new(),
                since: None,
                ends: ends.to_owned(),
            };
            let batch = if self.state.is_of_source() { SOURCE } else { "" };
            open.insert(0, Note { since: Some(self.since), ..Note::new(batch, because) });
        }
        open
    }

    /// Whether it says something else than the last one (the time of writing aside, and who knows of it).
    pub fn differs(&self, last: &Self) -> bool {
        Self { at: last.at, untold: last.untold, ..self.clone() } != *last
    }
}

impl Report {
    /// As somebody else wrote it. Without control characters, wherever they stand: whoever writes a report could otherwise
    /// steer the terminal that shows it. What is one line stays one.
    fn of_peer(bytes: &[u8]) -> Option<Self> {
        let mut value = serde_json::from_slice(bytes).ok()?;
        make_legible(&mut value);
        let mut report: Self = serde_json::from_value(value).ok()?;
        for at in report.applied.iter_mut().chain(&mut report.target) {
            at.commit = CommitId::new(at.commit.as_str().replace(|c: char| !c.is_ascii_hexdigit(), "?"));
            at.subject = at.subject.replace('\n', " ");
        }
        let notes =
            report.notes.iter_mut().flat_map(|note| [&mut note.batch, &mut note.reason, &mut note.because.reason]);
        for text in notes.chain(&mut report.warnings).chain([&mut report.reason, &mut report.agent]) {
            *text = text.replace('\n', " ");
        }
        Some(report)
    }
}

/// All texts in it, keys included; line feeds stay.
fn make_legible(value: &mut serde_json::Value) {
    use serde_json::Value;
    let steers = |c: char| c.is_control() && c != '\n';
    match value {
        Value::String(text) if text.contains(steers) => *text = text.replace(steers, "\u{fffd}"),
        Value::Array(all) => all.iter_mut().for_each(make_legible),
        Value::Object(fields) => {
            let all = std::mem::take(fields).into_iter().map(|(key, mut value)| {
                make_legible(&mut value);
                (key.replace(char::is_control, "\u{fffd}"), value)
            });
            *fields = all.collect();
        }
        _ => {}
    }
}

/// The last report on this disk. `None`: none, or one that cannot be read.
pub fn read(path: &Path) -> Option<Report> {
    serde_json::from_slice(&disk::read_bounded(path, 1 << 20).ok()??).ok()
}

pub fn write(path: &Path, report: &Report) -> Result<(), DiskError> {
    let mut bytes = serde_json::to_vec_pretty(report).expect("a report is plain data");
    bytes.push(b'\n');
    disk::write_atomic(path, &bytes, 0o644)
}

pub fn publish(store: &dyn LockStore, report: &Report) -> Result<(), StoreError> {
    let told = Report { untold: false, ..report.clone() };
    let value = serde_json::to_vec(&told).expect("a report is plain data");
    let then = vec![Write::Put(protocol::report_key(&report.node), value)];
    store.commit(&Transaction { when: Vec::new(), then }).map(drop)
}

/// Every report in the store, by node. One that cannot be read is left out and named.
pub fn collect(store: &dyn LockStore) -> Result<(BTreeMap<NodeName, Report>, Vec<NodeName>), StoreError> {
    let snapshot = store.read(&["n/"])?;
    let mut reports = BTreeMap::new();
    let mut unreadable = Vec::new();
    for entry in &snapshot.entries {
        let Some(node) = entry.key.strip_prefix("n/").and_then(|rest| rest.strip_suffix("/report")) else { continue };
        // A node may write whatever keys below its own.
        if node.contains(|c: char| c == '/' || c.is_control()) {
            continue;
        }
        let node = NodeName::new(node);
        match Report::of_peer(&entry.value) {
            // The key says whose it is, whatever the value claims.
            Some(report) => drop(reports.insert(node.clone(), Report { node, ..report })),
            None => unreadable.push(node),
        }
    }
    Ok((reports, unreadable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_steers_nobodys_terminal() {
        let (node, environment) = (NodeName::from("web01"), EnvironmentName::from("production"));
        let mut report = Report::new(&node, &environment, Timestamp::UNIX_EPOCH);
        report.sentence = "\u{1b}[2Jgone".to_owned();
        report.target = Some(At { commit: CommitId::from("zz\u{7}"), seq: 1, subject: "a\n\u{1b}]0;b".to_owned() });
        report.certificates =
            vec![Ending { secret: SecretName::from("a\u{1b}[1m\nb"), expires: Timestamp::UNIX_EPOCH }];
        let because = Because::new(reason::DEGRADED, Some(&"a.\u{1b}b".into()), "\u{1b}[2J".to_owned());
        let because = Because { reason: "\u{1b}x\ny".to_owned(), holders: vec!["n\u{7}".into()], ..because };
        report.notes = vec![Note::new("\u{1b}a", because)];
        report.agent = "1\n\u{1b}2".to_owned();
        report.proven.insert("g.\u{1b}".into(), Proof { seq: 1 });
        let report = Report::of_peer(&serde_json::to_vec(&report).unwrap()).unwrap();
        let text = serde_json::to_string(&report).unwrap();
        assert!(!text.contains("\\u00") && !text.contains(char::is_control), "{text}");
        assert!(!report.agent.contains('\n') && !report.notes[0].because.reason.contains('\n'));
        assert!(!report.certificates[0].secret.as_str().contains('\u{1b}'));
        let target = report.target.unwrap();
        for text in [report.sentence.as_str(), target.subject.as_str(), target.commit.as_str()] {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
    }
}
