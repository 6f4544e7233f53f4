//! The only `now()`.
//!
//! Wall time is for people and for expiry dates; everything that is measured uses awake time, which a clock step or
//! a suspended machine does not move. Never: a decision by comparing wall clocks of two machines.

use std::time::Duration;

use jiff::Timestamp;

pub trait Clock {
    /// Wall time, for reports and expiries.
    fn now(&self) -> Timestamp;
    /// Time since boot that the machine was awake (CLOCK_MONOTONIC), for settle times and timeouts.
    fn awake(&self) -> Duration;
}

/// The machine's own clocks.
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // this file is where it is allowed
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn awake(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
}

/// A clock that moves only when it is told to.
pub struct FakeClock {
    start: Timestamp,
    passed: std::sync::Mutex<Duration>,
}

impl FakeClock {
    pub fn at(start: Timestamp) -> Self {
        Self { start, passed: std::sync::Mutex::new(Duration::ZERO) }
    }

    pub fn advance(&self, by: Duration) {
        *self.passed.lock().expect("no holder panics") += by;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        self.start + self.awake()
    }

    fn awake(&self) -> Duration {
        *self.passed.lock().expect("no holder panics")
    }
}
