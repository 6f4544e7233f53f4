//! What nodes wait for, refuse or failed at, as people read it: once for all the nodes that say the same.
//!
//! PURE. Never: a fact that a report has and this leaves out.

use jiff::Timestamp;
use serde::Serialize;

use super::Note;
use crate::lock::quorum::Because;
use crate::name::NodeName;
use crate::plan::show::about;

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Obstacle {
    /// In whose way it is.
    pub nodes: Vec<NodeName>,
    pub because: Because,
    /// Since when the first of them meets it.
    pub since: Option<Timestamp>,
}

/// In the order of the notes.
pub fn obstacles(notes: impl IntoIterator<Item = (NodeName, Note)>) -> Vec<Obstacle> {
    let mut all: Vec<Obstacle> = Vec::new();
    for (node, Note { because, since, .. }) in notes {
        match all.iter_mut().find(|known| known.because == because) {
            Some(known) => {
                known.since = known.since.into_iter().chain(since).min();
                if !known.nodes.contains(&node) {
                    known.nodes.push(node);
                }
            }
            None => all.push(Obstacle { nodes: vec![node], because, since }),
        }
    }
    all
}

impl Obstacle {
    /// A line of who and what, then the evidence.
    pub fn text(&self, now: Timestamp) -> String {
        let nodes: Vec<&str> = self.nodes.iter().map(NodeName::as_str).collect();
        let heading = format!("{}: {}{}", nodes.join(" "), self.because.reason, since(self.since, now));
        format!("{heading}\n{}", evidence(&self.because, now))
    }
}

/// `, for 41 s`; nothing where nobody knows.
pub fn since(since: Option<Timestamp>, now: Timestamp) -> String {
    since.map_or_else(String::new, |since| format!(", for {}", about(age(since, now))))
}

/// What is the case, for which group, who holds it and since when, and what would end it; a line each, indented.
pub fn evidence(because: &Because, now: Timestamp) -> String {
    let Because { group, sentence, holders, since, ends, .. } = because;
    let mut facts: Vec<String> = group.iter().map(|group| format!("group {group}")).collect();
    let names: Vec<&str> = holders.iter().map(NodeName::as_str).collect();
    let held = since.map_or_else(String::new, |since| format!("since {since} ({})", about(age(since, now))));
    match (names.is_empty(), held.is_empty()) {
        (true, true) => {}
        (true, false) => facts.push(held),
        (false, true) => facts.push(format!("held by {}", names.join(", "))),
        (false, false) => facts.push(format!("held by {} {held}", names.join(", "))),
    }
    // A refusal says by itself what to do.
    let ends = if sentence.contains(ends.as_str()) { "" } else { ends };
    let lines = [sentence.trim_end().replace('\n', "\n  "), facts.join(", "), ends.to_owned()];
    lines.iter().filter(|line| !line.is_empty()).map(|line| format!("  {line}\n")).collect()
}

fn age(since: Timestamp, now: Timestamp) -> u64 {
    now.duration_since(since).as_secs().max(0).unsigned_abs()
}
