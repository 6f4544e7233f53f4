//! Settling: a member that was (re)started must be healthy, without a break, for its settle time.
//!
//! Keeps in memory since when each unit has been healthy; an agent that starts anew counts anew. Never: shortens a settle
//! time (a sandbox may say that its services are stand-ins).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::disk::DiskError;
use crate::fleet::Group;
use crate::fleet::select::NodeSpec;
use crate::host::Observed;
use crate::ledger::{Ledger, LedgerError};
use crate::lock;
use crate::lock::quorum::{Because, Hold};
use crate::lock::session::{Record, RecordPhase, Session, Swept};
use crate::name::UnitName;
use crate::plan::membership::is_leaving;
use crate::plan::{Plan, RanWith};
use crate::probe::{Evidence, Health};
use crate::reason;
use crate::settings::Settings;

/// Since when, in awake time, each unit has been healthy without a break, and in which run of itself.
#[derive(Default)]
pub struct Vigil {
    healthy_since: BTreeMap<UnitName, (Duration, String)>,
    swept: Swept,
}

/// What is still settling on this node, and what did not.
#[derive(Default)]
pub struct Settling {
    pub settling: Option<Because>,
    pub failed: Option<Because>,
    pub again_in: Option<Duration>,
}

impl Settling {
    pub fn is_over(&self) -> bool {
        self.settling.is_none() && self.failed.is_none()
    }

    fn waits(&mut self, because: Because, again: Duration) {
        self.settling.get_or_insert(because);
        self.soon(again);
    }

    fn soon(&mut self, again: Duration) {
        self.again_in = Some(self.again_in.map_or(again, |before| before.min(again)));
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A member may take this many settle times (and its unit's time to start) to become healthy for one of them.
const SETTLE_TIMES_MAX: u32 = 3;
/// While something settles, and while something is waited for.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(10);

impl Vigil {
    /// How soon after a start the first look is worth it.
    pub const FIRST_LOOK: Duration = Duration::from_millis(100);

    /// Looks at every member that has not settled: gives holds back, or marks them failed.
    pub fn look(
        &mut self,
        session: &Session<'_>,
        spec: &NodeSpec<'_>,
        observed: &Observed,
        ledger: &mut Ledger,
        settings: &Settings,
        plan: &Plan<'_>,
    ) -> Result<Settling, SettleError> {
        session.sweep(&mut self.swept);
        let mut result = Settling::default();
        // Put back, the member is as healthy as before; but what failed is still wanted, and nobody else shall take it.
        let refused = plan.refused().filter(|(batch, _)| {
            let kept = |record: Record| record.phase == RecordPhase::Failed && record.batch == *batch;
            session.record().is_some_and(kept)
        });
        if let Some((_, blocked)) = refused {
            result.failed = Some(Because::new(blocked.reason, None, blocked.why.clone()));
            result.soon(LATER);
            return Ok(result);
        }
        let settles = |record: &Record| matches!(record.phase, RecordPhase::Settling | RecordPhase::Failed);
        let mut record = session.record();
        let groups: Vec<&Group> = spec.groups.to_vec();
        let uncovered = |record: &&Record| settles(record) && !record.holds.is_empty() && !covers(record, &groups);
        if let Some(held) = record.as_ref().filter(uncovered) {
            // Nobody says what healthy would mean for it, or nothing does: lanes of the environment.
            if let Some(seq) = held.proves() {
                ledger.prove(held.holds.iter().map(|(hold, _)| &hold.group), seq)?;
            }
            if let Some(because) = session.settled()? {
                result.waits(because, LATER);
            }
            record = session.record();
        }
        // Awake time of an earlier boot says nothing in this one.
        if let Some(started) = record.as_mut().filter(|record| record.acted_boot != session.boot_id) {
            if started.phase == RecordPhase::Settling {
                session.started_anew()?;
            }
            started.acted_ms = u64::try_from(session.clock.awake().as_millis()).unwrap_or(u64::MAX);
        }
        let known = ledger.known()?;
        let mut units: Vec<&UnitName> = groups.iter().map(|group| &group.unit).collect();
        units.sort();
        units.dedup();
        // A hold of several units goes back when all of them have settled.
        let (mut open, mut done) = (false, Vec::new());
        for unit in units.into_iter().filter(|unit| plan.running.contains(*unit)) {
            let Some(ran) = known.units.get(unit) else { continue };
            let groups: Vec<&Group> = groups.iter().filter(|group| group.unit == *unit).copied().collect();
            let record = record.as_ref().filter(|record| covers(record, &groups));
            // Between arming and the start it is `apply` that goes on.
            if record.map_or(ran.settled, |record| !settles(record)) {
                continue;
            }
            let settle = settle_of(&groups, settings);
            let now = session.clock.awake();
            let state = observed.units.get(unit).filter(|state| state.is_running());
            let sick = match state {
                None => Some(format!("{unit} does not run")),
                Some(_) => sickness(session, &groups),
            };
            let Some(why) = sick else {
                let run = state.map(|state| state.invocation.clone()).unwrap_or_default();
                let since = self.healthy_since.entry(unit.clone()).or_insert_with(|| (now, run.clone()));
                // It was started again in between: that is a break, even if nobody saw it down.
                if since.1 != run {
                    *since = (now, run);
                }
                let healthy = now.saturating_sub(since.0);
                if healthy < settle {
                    open |= record.is_some();
                    let sentence =
                        format!("settling {unit}, {} of {} s", healthy.as_secs(), settle.as_secs_f64().ceil());
                    result.waits(Because::new(reason::SETTLING, None, sentence), (settle - healthy).min(SOON));
                    continue;
                }
                if !ran.settled {
                    ledger.ran(&[(unit.clone(), RanWith { settled: true, ..ran.clone() })])?;
                }
                if record.is_some() {
                    done.push(unit);
                } else {
                    self.healthy_since.remove(unit);
                }
                continue;
            };
            self.healthy_since.remove(unit);
            open |= record.is_some();
            let Some(record) = record else {
                // Without a hold it stopped nobody: it starts and heals as it can.
                let sentence = format!("{unit} is not healthy yet: {why}");
                result.waits(Because::new(reason::SETTLING, None, sentence), SOON);
                continue;
            };
            not_yet(session, record, unit.as_str(), &why, settle, &mut result)?;
        }
        // A vote that was given back: by what those say who stay.
        let covered = record.as_ref().filter(|record| settles(record) && covers(record, &groups));
        // A commit that takes the leave back leaves nothing to wait for but the own member.
        let goes = |hold: &Hold| {
            let who = lock::membership::subject(&hold.change, session.me);
            let group = groups.iter().find(|group| group.ids().any(|id| *id == hold.group));
            hold.change.takes_a_vote() && group.is_some_and(|group| is_leaving(group.state_of(who)))
        };
        let leaving = covered.filter(|record| record.holds.iter().any(|(hold, _)| goes(hold)));
        if let Some(record) = leaving
            && let Some(why) = record.holds.iter().find_map(|(hold, _)| session.lingers(hold))
        {
            open = true;
            not_yet(session, record, &record.batch, &why, settle_of(&groups, settings), &mut result)?;
        }
        let settled = |record: &&Record| {
            let looked = record.phase == RecordPhase::Settling || !done.is_empty() || leaving.is_some();
            settles(record) && covers(record, &groups) && looked && !open
        };
        if let Some(record) = record.as_ref().filter(settled) {
            // Before the others see the hold go.
            if let Some(seq) = record.proves() {
                ledger.prove(record.holds.iter().map(|(hold, _)| &hold.group), seq)?;
            }
            match session.settled()? {
                Some(because) => result.waits(because, LATER),
                None => {
                    tracing::info!(batch = record.batch, "settled, hold released");
                    done.into_iter().for_each(|unit| drop(self.healthy_since.remove(unit)));
                }
            }
        }
        Ok(result)
    }
}

/// In time it waits, later it has failed.
fn not_yet(
    session: &Session<'_>,
    record: &Record,
    what: &str,
    why: &str,
    settle: Duration,
    result: &mut Settling,
) -> Result<(), SettleError> {
    let limit = settle * SETTLE_TIMES_MAX + Duration::from_secs(record.start_secs_max);
    let late = session.clock.awake().saturating_sub(Duration::from_millis(record.acted_ms)) > limit;
    let sentence = match record.phase {
        // What went wrong first says more than what its gate says since.
        RecordPhase::Failed => record.why.clone(),
        _ if !record.knows_its_commit() => format!("{what} after an interruption: {why}"),
        _ => format!("{what} after taking {}: {why}", record.commit.short()),
    };
    if record.phase == RecordPhase::Failed || late {
        session.sick(&sentence)?;
        result.failed.get_or_insert(Because::new(reason::GATE_FAILED, None, sentence));
        result.soon(LATER);
    } else {
        result.waits(Because::new(reason::SETTLING, None, sentence), SOON);
    }
    Ok(())
}

fn covers(record: &Record, groups: &[&Group]) -> bool {
    record
        .holds
        .iter()
        .any(|(hold, _)| groups.iter().any(|group| group.id == hold.group || group.aliases.contains(&hold.group)))
}

fn settle_of(groups: &[&Group], settings: &Settings) -> Duration {
    let said = groups.iter().map(|group| group.settle_secs).max().unwrap_or(0);
    let overlaid = settings.sandbox.as_ref().and_then(|sandbox| sandbox.settle_secs);
    Duration::from_secs(overlaid.unwrap_or(said))
}

/// Why the member is not healthy; `None`: every gate says that it is.
fn sickness(session: &Session<'_>, groups: &[&Group]) -> Option<String> {
    groups.iter().find_map(|group| match session.own_health(&group.id)? {
        Evidence { health: Health::Healthy, lists: Some(lists), .. } if !lists.members.contains(session.me) => {
            Some("it has no vote yet".to_owned())
        }
        evidence => not_healthy(evidence.health),
    })
}

fn not_healthy(health: Health) -> Option<String> {
    match health {
        Health::Healthy => None,
        Health::Unhealthy(why) => Some(why),
        Health::Unknown(why) => Some(format!("unknown: {why}")),
    }
}
