//! Runs an action of a whole cluster, when this member has the turn.
//!
//! Whether it is needed is asked of the world three times: to plan it, when the turn is taken (another member may have run
//! it meanwhile), and after it ran. Never: believes an exit code alone.

use super::{Acted, Taken, Through, Tools, words};
use crate::host::{HostError, Query, Step};
use crate::lock::quorum::Because;
use crate::name::ClusterName;
use crate::plan::Batch;
use crate::reason::{self, chain};
use crate::resource::ActionSpec;
use crate::resource::action::ActionState;

pub(super) fn take(batch: &Batch<'_>, cluster: &ClusterName, tools: &Tools<'_>) -> Taken {
    let mut report = Acted { batch: batch.name.clone(), lines: Vec::new(), files: 0, restarts: 0 };
    for action in &batch.actions {
        let turn = match tools.session.take_turn(cluster, &action.name, action.inputs()) {
            Ok(turn) => turn,
            Err(because) => return Taken::Deferred(*because),
        };
        let ran = run(action, batch, tools);
        // One of which nobody knows whether it has ended keeps the turn: the next run of this node finds it.
        match ran {
            Err(Ended::Unknown(because)) => return Taken::Failed(because),
            Ok(_) | Err(Ended::Known(_)) => tools.session.end_turn(turn),
        }
        match ran.map_err(Ended::because) {
            Ok(Ran::Done) => report.lines.push(format!("action {} for {cluster}", action.name)),
            Ok(Ran::NotNeeded) => report.lines.push(format!("action {}: not needed any more", action.name)),
            Err(because) => return Taken::Failed(because),
        }
    }
    Taken::Acted(Through { report, durations: Default::default() })
}

/// Of an action whose guard's program is not there when it is its turn.
pub(super) const NO_GUARD: &str = "the program of its `unless` is not on this host";

/// How an attempt ended that did not do it.
enum Ended {
    Known(Because),
    Unknown(Because),
}

impl Ended {
    fn because(self) -> Because {
        match self {
            Self::Known(because) | Self::Unknown(because) => because,
        }
    }
}

enum Ran {
    Done,
    NotNeeded,
}

fn run(action: &ActionSpec, batch: &Batch<'_>, tools: &Tools<'_>) -> Result<Ran, Ended> {
    let told = |error: &HostError| Because::new(reason::APPLY_FAILED, None, chain(error));
    let failed = |error: HostError| Ended::Known(told(&error));
    let unknown =
        |why: String| Ended::Known(Because::new(reason::APPLY_FAILED, None, format!("action {}: {why}", action.name)));
    match needed(action, tools).map_err(failed)? {
        ActionState::Done => return Ok(Ran::NotNeeded),
        ActionState::Unknown(why) => return Err(unknown(why)),
        ActionState::Unguarded => return Err(unknown(NO_GUARD.to_owned())),
        ActionState::Needed => {}
    }
    tools.host.perform(&Step::Act(action, words(batch))).map_err(|error| match error {
        HostError::Command { .. } => failed(error),
        _ => Ended::Unknown(told(&error)),
    })?;
    match needed(action, tools).map_err(failed)? {
        ActionState::Done => Ok(Ran::Done),
        ActionState::Unknown(why) => Err(unknown(why)),
        ActionState::Unguarded => Err(unknown(NO_GUARD.to_owned())),
        ActionState::Needed => Err(unknown("it ran, and its `unless` still says that it is needed".to_owned())),
    }
}

fn needed(action: &ActionSpec, tools: &Tools<'_>) -> Result<ActionState, HostError> {
    let mut seen = tools.host.observe(&Query { actions: vec![action], ..Query::default() })?;
    Ok(seen.actions.remove(&action.name).unwrap_or(ActionState::Needed))
}
