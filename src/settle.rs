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
use crate::lock::quorum::Because;
use crate::lock::session::{Record, RecordPhase, Session};
use crate::name::UnitName;
use crate::probe::Health;
use crate::reason;
use crate::settings::Settings;

/// Since when, in awake time, each unit has been healthy without a break.
#[derive(Default)]
pub struct Vigil {
    healthy_since: BTreeMap<UnitName, Duration>,
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
}

#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A member may take this many settle times (and its start limit) to become healthy for one of them.
const SETTLE_TIMES_MAX: u32 = 3;

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
    ) -> Result<Settling, SettleError> {
        let mut result = Settling::default();
        let record = session.record();
        let known = ledger.known()?;
        let mut units: Vec<&UnitName> = spec.groups.iter().map(|group| &group.unit).collect();
        units.sort();
        units.dedup();
        for unit in units {
            let Some(ran) = known.units.get(unit) else { continue };
            let groups: Vec<&Group> = spec.groups.iter().filter(|group| group.unit == *unit).copied().collect();
            let record = record.as_ref().filter(|record| covers(record, &groups));
            let under_hold = record.is_some_and(|record| record.phase != RecordPhase::Acting);
            if ran.settled && !under_hold || record.is_some_and(|record| record.phase == RecordPhase::Acting) {
                continue;
            }
            let settle = settle_of(&groups, settings);
            let now = session.clock.awake();
            let running = observed.units.get(unit).is_some_and(|state| state.is_running());
            match (running, sickness(session, &groups)) {
                (true, None) => {
                    let since = *self.healthy_since.entry(unit.clone()).or_insert(now);
                    let healthy = now.saturating_sub(since);
                    if healthy >= settle {
                        self.healthy_since.remove(unit);
                        let mut ran = ran.clone();
                        ran.settled = true;
                        ledger.ran(&[(unit.clone(), ran)])?;
                        if under_hold {
                            session.release()?;
                            tracing::info!(%unit, "settled, hold released");
                        }
                        continue;
                    }
                    let sentence =
                        format!("settling {unit}, {} of {} s", healthy.as_secs(), settle.as_secs_f64().ceil());
                    result.settling.get_or_insert(Because::new(reason::SETTLING, None, sentence));
                    result.soon((settle - healthy).min(Duration::from_secs(1)));
                }
                (running, sick) => {
                    self.healthy_since.remove(unit);
                    let why = sick.unwrap_or_else(|| format!("{unit} does not run"));
                    let Some(record) = record.filter(|_| under_hold) else {
                        // Without a hold it stopped nobody: it starts and heals as it can.
                        let sentence = format!("{unit} is not healthy yet: {why}");
                        result.settling.get_or_insert(Because::new(reason::SETTLING, None, sentence));
                        result.soon(Duration::from_secs(1));
                        continue;
                    };
                    let _ = running;
                    let started = Duration::from_millis(record.acted_ms);
                    let limit = settle * SETTLE_TIMES_MAX + Duration::from_secs(start_limit(record, &groups));
                    let over = record.phase == RecordPhase::Failed || now.saturating_sub(started) > limit;
                    let sentence = format!("{unit} after taking {}: {why}", record.commit.short());
                    if over {
                        session.failed(&sentence)?;
                        result.failed.get_or_insert(Because::new(reason::GATE_FAILED, None, sentence));
                        result.soon(Duration::from_secs(10));
                    } else {
                        result.settling.get_or_insert(Because::new(reason::SETTLING, None, sentence));
                        result.soon(Duration::from_secs(1));
                    }
                }
            }
        }
        Ok(result)
    }
}

impl Settling {
    fn soon(&mut self, again: Duration) {
        self.again_in = Some(self.again_in.map_or(again, |before| before.min(again)));
    }
}

fn covers(record: &Record, groups: &[&Group]) -> bool {
    record.holds.iter().any(|(hold, _)| groups.iter().any(|group| group.id == hold.group))
}

fn settle_of(groups: &[&Group], settings: &Settings) -> Duration {
    let said = groups.iter().map(|group| group.settle_secs).max().unwrap_or(0);
    let overlaid = settings.sandbox.as_ref().and_then(|sandbox| sandbox.settle_secs);
    Duration::from_secs(overlaid.unwrap_or(said))
}

/// Beyond this the unit's own start limit has long ended.
fn start_limit(_record: &Record, groups: &[&Group]) -> u64 {
    groups.iter().map(|group| group.settle_secs.min(30)).max().unwrap_or(30)
}

/// Why the member is not healthy; `None`: every gate says that it is.
fn sickness(session: &Session<'_>, groups: &[&Group]) -> Option<String> {
    groups.iter().find_map(|group| match session.own_health(&group.id)?.health {
        Health::Healthy => None,
        Health::Unhealthy(why) => Some(why),
        Health::Unknown(why) => Some(format!("unknown: {why}")),
    })
}
