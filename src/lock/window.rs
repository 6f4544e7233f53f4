//! Maintenance windows and holds: what must wait for its window, and what need not.
//!
//! A window binds what takes a running member away, and nothing else: who is down starts and is repaired at any time, what
//! is armed finishes, and a failed holder takes the commit that mends it. PURE. Never: a clock.

use jiff::Timestamp;

use super::quorum::{Because, Ground, Situation, Verdict};
use crate::fleet::window::{self, Opening, Window};
use crate::name::ClusterName;
use crate::reason;

/// Why nothing that these clusters bind may begin now, and when it may; `None`: the windows are open.
pub fn closed(clusters: &[(ClusterName, &[Window])], now: Timestamp) -> Option<Because> {
    let windows: Vec<&[Window]> = clusters.iter().map(|(_, windows)| *windows).collect();
    let opening = window::opening(&windows, now);
    let bound = clusters.iter().filter(|(_, windows)| !windows.is_empty());
    let said = bound.map(|(cluster, windows)| {
        let windows: Vec<String> = windows.iter().map(ToString::to_string).collect();
        format!("{cluster} moves in its windows only ({} UTC)", windows.join(", "))
    });
    let said = said.collect::<Vec<_>>().join("; ");
    let (next, ends) = match opening {
        Opening::Now => return None,
        Opening::At(at) => (format!("the next opens at {at}"), format!("It opens at {at}.")),
        Opening::Never => {
            let ends = "It never opens: let the windows of these clusters overlap.";
            ("they are never open together".to_owned(), ends.to_owned())
        }
    };
    Some(Because::new(reason::OUTSIDE_WINDOW, None, format!("{said}; {next}")).ends(ends))
}

/// The verdict on a group, outside of the windows of its cluster. Whoever runs waits for the window rather than for its turn.
pub fn outside(closed: Option<&Because>, verdict: Verdict, situation: &Situation<'_>) -> Verdict {
    let Some(closed) = closed else { return verdict };
    let bound = match &verdict {
        // What does not run is not taken away by what becomes of its vote.
        Verdict::Go { ground: Ground::Spared, .. } => situation.running,
        Verdict::Wait(because) => {
            situation.running && [reason::ORDER, reason::AFTER_CLUSTER].contains(&because.reason())
        }
        Verdict::Go { ground: Ground::Down, .. } | Verdict::Never(_) => false,
    };
    if bound { Verdict::Wait(Because { group: Some(situation.group.id.clone()), ..closed.clone() }) } else { verdict }
}
