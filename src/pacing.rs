//! How long the agent sleeps: until the next poll, or sooner if a run asked for it, later after failures.
//!
//! PURE. Never: a random number; each node's share of the jitter is a function of its name, so that nodes spread and tests
//! do not.

use std::time::Duration;

use crate::name::NodeName;
use crate::resource::Digest;
use crate::settings::Poll;

/// Failures in a row double the wait up to this many intervals.
const BACKOFF_MAX: u32 = 4;

/// `failures`: runs in a row that could not reach the source or the store. `again_in`: what the last run asked for.
pub fn next(node: &NodeName, poll: Poll, round: u64, failures: u32, again_in: Option<Duration>) -> Duration {
    let interval = Duration::from_secs(poll.secs) * 2_u32.pow(failures.min(2)).min(BACKOFF_MAX);
    let wait = interval + jitter(node, poll, round);
    again_in.map_or(wait, |again| again.min(wait))
}

fn jitter(node: &NodeName, poll: Poll, round: u64) -> Duration {
    let digest = Digest::of_parts([node.as_str().as_bytes(), &round.to_le_bytes()]);
    let share = u16::from_le_bytes([digest.bytes()[0], digest.bytes()[1]]);
    Duration::from_secs(poll.jitter_secs) * u32::from(share) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Poll = Poll { secs: 60, jitter_secs: 15 };

    #[test]
    fn nodes_spread_over_the_jitter() {
        let waits: std::collections::BTreeSet<Duration> =
            (0..50).map(|n| next(&NodeName::new(format!("node{n}")), POLL, 0, 0, None)).collect();
        assert!(waits.len() > 45, "50 nodes wake at {} different times", waits.len());
        assert!(waits.iter().all(|wait| (60..=75).contains(&wait.as_secs())), "{waits:?}");
    }

    #[test]
    fn failures_slow_down_and_a_wish_speeds_up() {
        let node = NodeName::new("kafka01");
        assert!(next(&node, POLL, 0, 5, None) >= Duration::from_secs(240));
        assert_eq!(next(&node, POLL, 0, 5, Some(Duration::from_secs(1))), Duration::from_secs(1));
    }
}
