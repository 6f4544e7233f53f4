//! What a node says about itself: to its own disk, and to the store where the others and the engineers read it.
//!
//! Written when it changed. Never: a secret, a digest of one, or a commit that is not on disk yet.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::disk::{self, DiskError};
use crate::lock::protocol;
use crate::lock::quorum::Because;
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
}

impl Note {
    /// What is wrong with what the remotes offer.
    pub fn of_source(because: Because) -> Self {
        Self { batch: "source".to_owned(), reason: because.reason.clone(), because }
    }
}

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
    pub notes: Vec<Note>,
    /// Files that were found changed and were put back, since the agent keeps count.
    pub drift_repaired: u64,
    /// Differences that are only reported (`policy = "audit"`).
    pub audit: Vec<String>,
    pub units: BTreeMap<UnitName, UnitHealth>,
    /// Groups whose hold this node has.
    pub holds: Vec<GroupId>,
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
            notes: Vec::new(),
            drift_repaired: 0,
            audit: Vec::new(),
            units: BTreeMap::new(),
            holds: Vec::new(),
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

    /// Whether it says something else than the last one (the time of writing aside, and who knows of it).
    pub fn differs(&self, last: &Self) -> bool {
        Self { at: last.at, untold: last.untold, ..self.clone() } != *last
    }
}

impl Report {
    /// Without control characters: whoever writes a report could otherwise steer the terminal that shows it.
    fn harmless(mut self) -> Self {
        let clean = |text: &mut String| {
            if text.contains(|c: char| c.is_control() && c != '\n') {
                *text = text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}");
            }
        };
        for at in self.applied.iter_mut().chain(&mut self.target) {
            clean(&mut at.subject);
            at.subject = at.subject.replace('\n', " ");
            at.commit = CommitId::new(at.commit.as_str().replace(|c: char| !c.is_ascii_hexdigit(), "?"));
        }
        for ending in &mut self.certificates {
            ending.secret = SecretName::new(ending.secret.as_str().replace(char::is_control, "\u{fffd}"));
        }
        clean(&mut self.reason);
        clean(&mut self.sentence);
        if let Some(pause) = &mut self.pause {
            clean(&mut pause.reason);
            clean(&mut pause.by);
        }
        self.warnings.iter_mut().for_each(clean);
        for note in &mut self.notes {
            for text in [&mut note.batch, &mut note.reason, &mut note.because.sentence, &mut note.because.ends] {
                clean(text);
            }
        }
        self
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
        let node = NodeName::new(node);
        match serde_json::from_slice::<Report>(&entry.value) {
            // The key says whose it is, whatever the value claims.
            Ok(report) => drop(reports.insert(node.clone(), Report { node, ..report }.harmless())),
            Err(_) => unreadable.push(node),
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
        let report = report.harmless();
        assert!(!report.certificates[0].secret.as_str().contains(char::is_control));
        let target = report.target.unwrap();
        for text in [report.sentence.as_str(), target.subject.as_str(), target.commit.as_str()] {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
    }
}
