//! The life of one hold: (phase, event) -> (phase, action).
//!
//! CLAIM, PROBE, ARM, RECORD, ACT, SETTLE, RELEASE, in that order; the probe comes after the claim so that no other
//! controlled restart can invalidate it, arming is the fence, the record on disk comes after arming and before anything
//! stops. A failed settle keeps the hold. PURE. Never: a clock (the driver says when the settle time is over).

use crate::lock::quorum::{Because, Verdict};

/// Where an attempt is. `Armed` and later are backed by the record on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Phase {
    Idle,
    /// The decision was to go; the claim is on its way.
    Claiming {
        lanes: Vec<usize>,
    },
    /// The holds are ours; the others are being asked.
    Claimed,
    /// The arming transaction is on its way.
    Arming,
    /// Fenced; the record is being written.
    Armed,
    /// Recorded: from here on the member may be down.
    Acting,
    /// Restarted: must be healthy without a break.
    Settling,
    /// Not healthy; the hold stays.
    Failed,
    /// Giving back.
    Releasing,
    Done,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The verdicts over all groups, made on one snapshot: before the claim (`Idle`) or after it (`Claimed`).
    Judged(Vec<Verdict>),
    Committed,
    /// A condition did not hold: somebody wrote first.
    Refused,
    /// No answer: unknown whether it happened; the driver read again and tells what it found.
    Recovered {
        mine: bool,
    },
    /// The store cannot be reached.
    Lost(String),
    /// The record is on disk.
    Recorded,
    /// The steps, the exchange of files and the start went through.
    Acted,
    /// A step before the stop failed; nothing was stopped.
    NothingStopped(String),
    /// Something failed after the stop.
    ActFailed(String),
    /// Healthy for the settle time without a break.
    Settled,
    /// Not healthy in time.
    Sick(String),
    /// A failed holder has a new commit to repair itself with.
    Repair,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Write the holds of all groups in these lanes, all or none.
    Claim {
        lanes: Vec<usize>,
    },
    /// Ask every other member of every group, then judge again.
    Probe,
    Arm,
    Record,
    Act,
    Settle,
    Release,
    /// Mark the hold failed; keep it.
    Fail(String),
    /// End this attempt; the next wake plans afresh.
    Wait(Because),
    /// The attempt is over and nothing is held.
    Finish,
}

/// The transition. An event that does not belong to a phase changes nothing and ends the attempt.
pub fn step(phase: Phase, event: Event) -> (Phase, Action) {
    use crate::reason;
    let wait = |reason, sentence: String| Action::Wait(Because::new(reason, None, sentence));
    match (phase, event) {
        (Phase::Idle, Event::Judged(verdicts)) => match all_go(&verdicts) {
            Ok(lanes) => (Phase::Claiming { lanes: lanes.clone() }, Action::Claim { lanes }),
            Err(because) => (Phase::Idle, Action::Wait(*because)),
        },
        (Phase::Claiming { .. }, Event::Committed | Event::Recovered { mine: true }) => (Phase::Claimed, Action::Probe),
        (Phase::Claiming { .. }, Event::Refused | Event::Recovered { mine: false }) => {
            (Phase::Idle, wait(reason::LOST_RACE, "another member was faster".to_owned()))
        }
        (Phase::Claimed, Event::Judged(verdicts)) => match all_go(&verdicts) {
            Ok(_) => (Phase::Arming, Action::Arm),
            Err(because) => (Phase::Releasing, Action::Wait(*because)),
        },
        (Phase::Arming, Event::Committed | Event::Recovered { mine: true }) => (Phase::Armed, Action::Record),
        (Phase::Arming, Event::Refused | Event::Recovered { mine: false }) => {
            (Phase::Releasing, wait(reason::LOST_RACE, "the group changed between asking and arming".to_owned()))
        }
        (Phase::Armed, Event::Recorded) => (Phase::Acting, Action::Act),
        (Phase::Acting, Event::Acted) => (Phase::Settling, Action::Settle),
        (Phase::Acting, Event::NothingStopped(_)) => (Phase::Releasing, Action::Release),
        (Phase::Acting, Event::ActFailed(why)) => (Phase::Failed, Action::Fail(why)),
        (Phase::Settling, Event::Settled) => (Phase::Releasing, Action::Release),
        (Phase::Settling, Event::Sick(why)) => (Phase::Failed, Action::Fail(why)),
        // It became healthy after all: somebody mended what was around it.
        (Phase::Failed, Event::Settled) => (Phase::Releasing, Action::Release),
        (Phase::Failed, Event::Repair) => (Phase::Acting, Action::Act),
        (Phase::Failed, Event::Sick(why)) => (Phase::Failed, Action::Fail(why)),
        (Phase::Releasing, Event::Committed | Event::Refused | Event::Recovered { .. }) => {
            (Phase::Done, Action::Finish)
        }
        // Before the record nothing was stopped: give back and try again later. After it the member comes first.
        (Phase::Idle | Phase::Claiming { .. }, Event::Lost(why)) => (Phase::Idle, wait(reason::STORE_UNREACHABLE, why)),
        (Phase::Claimed | Phase::Arming | Phase::Armed, Event::Lost(why)) => {
            (Phase::Releasing, wait(reason::STORE_UNREACHABLE, why))
        }
        (phase, Event::Lost(why)) => (phase, wait(reason::STORE_UNREACHABLE, why)),
        (phase, event) => {
            let sentence = format!("{event:?} does not belong to {phase:?}");
            (phase, wait(reason::INTERNAL, sentence))
        }
    }
}

/// Every group must say go; else the gravest answer: never before wait.
fn all_go(verdicts: &[Verdict]) -> Result<Vec<usize>, Box<Because>> {
    if let Some(Verdict::Never(because)) = verdicts.iter().find(|verdict| matches!(verdict, Verdict::Never(_))) {
        return Err(Box::new(because.clone()));
    }
    verdicts
        .iter()
        .map(|verdict| match verdict {
            Verdict::Go { lane } => Ok(*lane),
            Verdict::Wait(because) | Verdict::Never(because) => Err(Box::new(because.clone())),
        })
        .collect()
}
