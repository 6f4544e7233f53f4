//! A pause of this node: somebody works on the machine, and the agent applies nothing until the time is over.
//!
//! It is a file in the agent's state directory, so it works without a store and survives a reboot. It ends at a wall time;
//! within the boot in which it began it also ends when it has lasted as long by the clock that nobody can set, so a clock
//! that was set back cannot make it longer. Never: a step of a clock that begins a pause, or takes one up again.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::disk::{self, DiskError};
use crate::lock::quorum::Because;
use crate::reason;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pause {
    pub reason: String,
    pub by: String,
    pub since: Timestamp,
    pub until: Timestamp,
    /// The boot in which it began, and the awake time then, in milliseconds.
    pub boot_id: String,
    pub since_awake_ms: u64,
}

/// The wall clock and the awake clock may differ by this much before it is said.
const STEP_SECS: i64 = 30;

impl Pause {
    pub fn new(why: &str, by: String, lasts: Duration, boot_id: &str, clock: &dyn Clock) -> Self {
        let since = clock.now();
        Self {
            reason: why.to_owned(),
            by,
            since,
            until: since + lasts,
            boot_id: boot_id.to_owned(),
            since_awake_ms: millis(clock.awake()),
        }
    }

    /// How much of it is left; `None`: it is over.
    pub fn left(&self, boot_id: &str, clock: &dyn Clock) -> Option<Duration> {
        let by_wall = Duration::try_from(self.until.duration_since(clock.now())).unwrap_or(Duration::ZERO);
        let by_awake = match self.awake_since(boot_id, clock) {
            Some(passed) => self.lasts().saturating_sub(passed),
            None => by_wall,
        };
        Some(by_wall.min(by_awake)).filter(|left| !left.is_zero())
    }

    fn lasts(&self) -> Duration {
        Duration::try_from(self.until.duration_since(self.since)).unwrap_or(Duration::ZERO)
    }

    fn awake_since(&self, boot_id: &str, clock: &dyn Clock) -> Option<Duration> {
        let same = self.boot_id == boot_id;
        same.then(|| clock.awake().saturating_sub(Duration::from_millis(self.since_awake_ms)))
    }

    /// By how many seconds the wall clock was set forth since it began; less than none: back. `None`: not worth a word, or
    /// nobody knows any more. A machine that slept looks like one whose clock was set forth.
    fn stepped_secs(&self, boot_id: &str, clock: &dyn Clock) -> Option<i64> {
        let awake = i64::try_from(self.awake_since(boot_id, clock)?.as_secs()).unwrap_or(i64::MAX);
        let stepped = clock.now().duration_since(self.since).as_secs().saturating_sub(awake);
        (stepped.abs() > STEP_SECS).then_some(stepped)
    }

    pub fn because(&self, boot_id: &str, clock: &dyn Clock) -> Because {
        let stepped = match self.stepped_secs(boot_id, clock) {
            Some(secs) if secs > 0 => format!("; the clock went forth by {secs} s since it began"),
            Some(secs) => format!("; the clock was set back by {} s since it began", -secs),
            None => String::new(),
        };
        let sentence = format!("paused until {} by {}: {}{stepped}", self.until, self.by, self.reason);
        let mut because = Because::new(reason::PAUSED, None, sentence);
        because.since = Some(self.since);
        because.ends(format!("It ends at {}, or by `converger resume` on the node.", self.until))
    }
}

/// `None`: there is none. One that cannot be read is none: a pause is a kindness to people, and has an end.
pub fn read(path: &Path) -> Result<Option<Pause>, DiskError> {
    let bytes = disk::read_bounded(path, 1 << 16)?;
    Ok(bytes.and_then(|bytes| {
        let pause = serde_json::from_slice(&bytes);
        pause.inspect_err(|error| tracing::warn!(%error, "{} cannot be read: no pause", path.display())).ok()
    }))
}

pub fn write(path: &Path, pause: &Pause) -> Result<(), DiskError> {
    let bytes = serde_json::to_vec_pretty(pause).expect("texts and times serialize");
    disk::write_atomic(path, &bytes, 0o600)
}

/// The pause that is in force. One that is over is gone for good: a clock that is set back does not bring it back.
pub fn in_force(path: &Path, boot_id: &str, clock: &dyn Clock) -> Result<Option<(Pause, Duration)>, DiskError> {
    let Some(pause) = read(path)? else { return Ok(None) };
    match pause.left(boot_id, clock) {
        Some(left) => Ok(Some((pause, left))),
        None => {
            tracing::info!(reason = pause.reason, "the pause is over");
            disk::remove(path).map(|()| None)
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A wall clock that can be set.
    struct Clocks {
        wall: Mutex<Timestamp>,
        awake: Mutex<Duration>,
    }

    impl Clocks {
        fn pass(&self, secs: u64) {
            *self.wall.lock().unwrap() += Duration::from_secs(secs);
            *self.awake.lock().unwrap() += Duration::from_secs(secs);
        }

        fn step(&self, secs: i64) {
            *self.wall.lock().unwrap() += jiff::SignedDuration::from_secs(secs);
        }
    }

    impl Clock for Clocks {
        fn now(&self) -> Timestamp {
            *self.wall.lock().unwrap()
        }

        fn awake(&self) -> Duration {
            *self.awake.lock().unwrap()
        }
    }

    fn paused_for(secs: u64) -> (Clocks, Pause) {
        let wall = "2026-11-21T12:00:00Z".parse().unwrap();
        let clocks = Clocks { wall: Mutex::new(wall), awake: Mutex::new(Duration::from_secs(500)) };
        let pause = Pause::new("disks", "alice".to_owned(), Duration::from_secs(secs), "boot", &clocks);
        (clocks, pause)
    }

    #[test]
    fn it_ends_when_its_time_is_over() {
        let (clocks, pause) = paused_for(3600);
        clocks.pass(3599);
        assert_eq!(pause.left("boot", &clocks), Some(Duration::from_secs(1)));
        clocks.pass(1);
        assert_eq!(pause.left("boot", &clocks), None);
    }

    /// G16
    #[test]
    fn a_clock_that_is_set_back_makes_no_pause_longer_and_is_told() {
        let (clocks, pause) = paused_for(3600);
        clocks.step(-86_400);
        assert_eq!(pause.left("boot", &clocks), Some(Duration::from_secs(3600)));
        let said = pause.because("boot", &clocks).sentence;
        assert!(said.ends_with("the clock was set back by 86400 s since it began"), "{said}");
        clocks.pass(3600);
        assert_eq!(pause.left("boot", &clocks), None);
        // In another boot only the wall clock is left to go by.
        assert_eq!(pause.left("another boot", &clocks), Some(Duration::from_secs(86_400)));
    }

    /// G16
    #[test]
    fn a_clock_that_is_set_forth_ends_it_and_set_back_again_does_not_bring_it_back() {
        let (clocks, pause) = paused_for(3600);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause.json");
        write(&path, &pause).unwrap();
        assert!(in_force(&path, "boot", &clocks).unwrap().is_some());
        clocks.step(7200);
        assert!(in_force(&path, "boot", &clocks).unwrap().is_none());
        clocks.step(-7200);
        assert!(in_force(&path, "boot", &clocks).unwrap().is_none());
    }
}
