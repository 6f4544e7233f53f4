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

/// Whoever watches so many keys of the store and no more looks at once when one of them moves.
const CROWD_KEYS: usize = 32;
/// Of a crowd, one looks in this time, on average: with the questions that one look takes, under 200 a second.
const CROWD_TURN: Duration = Duration::from_millis(40);

/// What moves in the store wakes a node no sooner than this after its last look. `keys`: what it watches, about one for
/// each member of its groups: they all wake together, and every one that looks moves something.
pub fn in_a_crowd(keys: usize) -> Duration {
    let turns = if keys > CROWD_KEYS { u32::try_from(keys).unwrap_or(u32::MAX) } else { 0 };
    CROWD_TURN.saturating_mul(turns)
}

/// Touches in a row that are looked at as they come.
const TOUCHES_FREE: u32 = 10;
const TOUCH_PAUSE: Duration = Duration::from_millis(100);
const TOUCH_PAUSE_MAX: Duration = Duration::from_secs(10);

/// One touch more in the row; after a while without any it is another row.
pub fn touches(row: u32, since_the_last: Duration) -> u32 {
    if since_the_last > TOUCH_PAUSE_MAX { 1 } else { row.saturating_add(1) }
}

/// How long files are left alone after they were touched for the `row`th time in a row: a flood costs a bounded share of the
/// machine, and a single change is seen at once.
pub fn after_touch(row: u32) -> Duration {
    let doublings = row.saturating_sub(TOUCHES_FREE);
    if doublings == 0 { Duration::ZERO } else { (TOUCH_PAUSE * 2_u32.pow(doublings.min(10))).min(TOUCH_PAUSE_MAX) }
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
    fn members_of_a_small_group_look_at_once_and_a_crowd_takes_turns() {
        assert_eq!(in_a_crowd(10), Duration::ZERO);
        let (members, wait) = (300, in_a_crowd(304));
        assert!(members / wait.as_secs() <= 25, "{wait:?}");
    }

    #[test]
    fn a_flood_of_touches_is_looked_at_ever_more_seldom() {
        assert!((0..=TOUCHES_FREE).all(|row| after_touch(row).is_zero()));
        assert_eq!(after_touch(11), Duration::from_millis(200));
        assert_eq!(touches(7, Duration::from_secs(9)), 8);
        assert_eq!(touches(7, Duration::from_secs(11)), 1);
        assert_eq!([after_touch(30), after_touch(u32::MAX)], [TOUCH_PAUSE_MAX; 2]);
    }

    #[test]
    fn failures_slow_down_and_a_wish_speeds_up() {
        let node = NodeName::new("kafka01");
        assert!(next(&node, POLL, 0, 5, None) >= Duration::from_secs(240));
        assert_eq!(next(&node, POLL, 0, 5, Some(Duration::from_secs(1))), Duration::from_secs(1));
    }
}
