//! The life of one hold: (phase, event) -> (phase, action).
//!
//! CLAIM, PROBE, ARM, RECORD, ACT, SETTLE, RELEASE, in that order; the probe comes after the claim so that no other
//! controlled restart can invalidate it, arming is the fence, the record on disk comes after arming and before anything
//! stops. A failed settle keeps the hold. PURE. Never: a clock (the driver says when the settle time is over).

use crate::lock::quorum::{Because, Verdict};
use crate::reason;

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
    /// Acting again, after a failure or an interruption: the member may have been down since before.
    Repairing,
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
    /// The store gave no answer, or none that helps: with its reason.
    Lost(Because),
    /// The record is on disk.
    Recorded,
    /// The steps, the exchange of files and the start went through.
    Acted,
    /// What was done left nothing that could settle: no unit was disturbed, or it was stopped on purpose.
    NothingToSettle,
    /// A step before the stop failed; nothing was stopped.
    NothingStopped(String),
    /// Something failed after the stop.
    ActFailed(String),
    /// Healthy for the settle time without a break.
    Settled,
    /// Not healthy in time.
    Sick(String),
    /// A failed holder has a new commit to repair itself with, or an interrupted one goes on.
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
        (Phase::Acting | Phase::Repairing, Event::Acted) => (Phase::Settling, Action::Settle),
        (Phase::Acting | Phase::Repairing, Event::NothingToSettle) => (Phase::Releasing, Action::Release),
        (Phase::Acting, Event::NothingStopped(_)) => (Phase::Releasing, Action::Release),
        // The member is as it was, and that may be down: the hold stays, and the next run tries again.
        (Phase::Repairing, Event::NothingStopped(why)) => (Phase::Repairing, wait(reason::STEP_FAILED, why)),
        (Phase::Acting | Phase::Repairing, Event::ActFailed(why)) => (Phase::Failed, Action::Fail(why)),
        (Phase::Settling, Event::Settled) => (Phase::Releasing, Action::Release),
        (Phase::Settling, Event::Sick(why)) => (Phase::Failed, Action::Fail(why)),
        // It became healthy after all: somebody mended what was around it.
        (Phase::Failed, Event::Settled) => (Phase::Releasing, Action::Release),
        (Phase::Failed | Phase::Acting | Phase::Repairing, Event::Repair) => (Phase::Repairing, Action::Act),
        (Phase::Failed, Event::Sick(why)) => (Phase::Failed, Action::Fail(why)),
        (Phase::Releasing, Event::Committed | Event::Refused | Event::Recovered { .. }) => {
            (Phase::Done, Action::Finish)
        }
        // Before the record nothing was stopped: give back and try again later. After it the member comes first.
        (Phase::Idle | Phase::Claiming { .. }, Event::Lost(because)) => (Phase::Idle, Action::Wait(because)),
        (Phase::Claimed | Phase::Arming | Phase::Armed, Event::Lost(because)) => {
            (Phase::Releasing, Action::Wait(because))
        }
        (phase, Event::Lost(because)) => (phase, Action::Wait(because)),
        (phase, event) => {
            let sentence = format!("{event:?} does not belong to {phase:?}");
            (phase, wait(reason::INTERNAL, sentence))
        }
    }
}

/// Every group must say go; else the gravest answer: never before wait. No group, no go.
fn all_go(verdicts: &[Verdict]) -> Result<Vec<usize>, Box<Because>> {
    if verdicts.is_empty() {
        let sentence = "a hold was asked for and no group was judged".to_owned();
        return Err(Box::new(Because::new(reason::INTERNAL, None, sentence)));
    }
    if let Some(Verdict::Never(because)) = verdicts.iter().find(|verdict| matches!(verdict, Verdict::Never(_))) {
        return Err(Box::new(because.clone()));
    }
    verdicts
        .iter()
        .map(|verdict| match verdict {
            Verdict::Go { lane, .. } => Ok(*lane),
            Verdict::Wait(because) | Verdict::Never(because) => Err(Box::new(because.clone())),
        })
        .collect()
}
