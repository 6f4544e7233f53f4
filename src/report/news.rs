//! What a run found, to the journal: what is as it was is not said again.
//!
//! The fields are those of the report, so that nobody has to read sentences. Never: a line per run for a wait that goes on.

use super::{Note, Report, State};
use crate::name::{GroupId, NodeName};
use crate::reason::{self, Exit};

/// `last`: what was told before by this agent.
pub fn tell(report: &Report, last: Option<&Report>) {
    let Report { node, state, .. } = report;
    let commit = report.target.as_ref().map_or("", |at| at.commit.short());
    if *state == State::Converged {
        tracing::info!(%node, commit, state = state.name(), "converged");
    }
    let before = last.map(Report::open).unwrap_or_default();
    for note in report.open().iter().filter(|note| !before.iter().any(|before| says_the_same(note, before))) {
        let Note { batch, reason, because, since } = note;
        let holders: Vec<&str> = because.holders.iter().map(NodeName::as_str).collect();
        let holder = Some(holders.join(" ")).filter(|holder| !holder.is_empty());
        let group = because.group.as_ref().map(GroupId::as_str);
        let held_since = because.since.map(|since| since.to_string());
        let since = since.unwrap_or(report.since);
        let (state, ends, sentence) = (state.name(), &*because.ends, because.sentence.trim_end());
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(
                    %node, commit, state, batch, reason, group, holder, held_since, %since, ends, "{sentence}"
                )
            };
        }
        match exit(note) {
            Exit::Waiting | Exit::Done => say!(info),
            _ => say!(error),
        }
    }
}

fn exit(note: &Note) -> Exit {
    reason::by_id(&note.reason).map_or(Exit::Internal, |reason| reason.exit)
}

/// The numbers of a wait change all the time; what failed is another thing when its sentence is.
fn says_the_same(note: &Note, before: &Note) -> bool {
    let waits = exit(note) == Exit::Waiting;
    note.goes_on(before)
        && note.because.holders == before.because.holders
        && (waits || note.because.sentence == before.because.sentence)
}
