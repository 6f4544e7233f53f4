//! What can take the whole node away: confirmed while the node still reaches what it reached before, else put back; and a
//! reboot.
//!
//! Never: an exchange before a timer that needs no agent is set to undo it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::act::{Act, Acting};
use super::{Acted, ApplyError, Through};
use crate::host::{HostError, Step};
use crate::lock::quorum::Because;
use crate::plan::risk::{self, Undo};
use crate::reason::{self, chain};

/// It is confirmed when all that was reached before is reached for so long without a break.
const STEADY: Duration = Duration::from_secs(5);
/// Counted from the exchange: then the agent puts back, before the timer does.
const CONFIRM_WITHIN: Duration = Duration::from_secs(60);

/// A node-risk batch, ready to be put back.
pub(super) struct Armed {
    undo: Undo,
    /// What the node reached.
    before: BTreeSet<String>,
    at: Duration,
}

impl Act<'_, '_, '_, '_> {
    pub(super) fn reboot(mut self) -> Result<Acting, ApplyError> {
        let at = self.tools.session.clock.awake();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        // Counted before it happens: afterwards there is nobody who could.
        let asked = self.plan.booted.asking(self.plan.commit, &self.tools.observed.boot_id, at_ms);
        self.tools.ledger.set_booted(&asked)?;
        if let Err(error) = self.tools.host.perform(&Step::Reboot) {
            return Ok(Acting::NothingStopped(Because::new(error.reason(), None, chain(&error))));
        }
        self.lines.push(format!("reboot for {}", self.batch.reboot.join(", ")));
        let report = Acted { batch: self.batch.name.clone(), lines: self.lines, files: 0, restarts: 0 };
        Ok(Acting::Through(Through { report, durations: self.durations }))
    }

    /// A node-risk batch can be put back from here on, by whoever is left.
    pub(super) fn arm(&mut self) -> Result<Result<Option<Armed>, HostError>, ApplyError> {
        if self.batch.risk.is_empty() {
            return Ok(Ok(None));
        }
        let before = (self.tools.reach.ask)(&self.batch.risk);
        let undo = Undo::of(self.batch, &self.tools.observed.units, &self.known);
        let writes = self.batch.files.iter().map(|file| file.spec).collect();
        let at = self.tools.session.clock.awake();
        let armed = self.tools.host.perform(&Step::Arm(&undo, writes));
        Ok(armed.map(|_| Some(Armed { undo, before, at })))
    }

    /// Errors: how the batch ended instead.
    pub(super) fn exchange(&mut self, armed: Option<Armed>) -> Result<Result<(), Acting>, ApplyError> {
        let live = self.go_live()?;
        let Some(Armed { undo, before, at }) = armed else {
            return Ok(live.map_err(|error| Acting::Broken(Because::new(error.reason(), None, chain(&error)))));
        };
        if let Err(error) = live {
            return self.not_live(&undo, &error).map(Err);
        }
        let confirmed = self.reaches(&before, at).and_then(|()| {
            let confirmed = self.tools.host.perform(&Step::Confirm);
            confirmed.map(drop).map_err(|error| format!("it was put back before it was confirmed: {}", chain(&error)))
        });
        let Err(why) = confirmed else {
            let reached = before.into_iter().collect::<Vec<_>>().join(", ");
            self.lines.push(match reached.as_str() {
                "" => "confirmed: nothing had been reached before".to_owned(),
                reached => format!("confirmed: still reached: {reached}"),
            });
            return Ok(Ok(()));
        };
        let why = self.put_back(&why);
        self.tools.ledger.undone(&undo, &why)?;
        self.noted();
        Ok(Err(Acting::Broken(Because::new(reason::ROLLED_BACK, None, why))))
    }

    /// It did not even become live: put back, and tried once more, as after any interruption. The hold goes back if no unit was
    /// touched.
    fn not_live(&mut self, undo: &Undo, error: &HostError) -> Result<Acting, ApplyError> {
        let why = self.put_back(&chain(error));
        let again = self.tools.ledger.was_interrupted(undo)?;
        self.tools.ledger.interrupted(undo, &why)?;
        self.noted();
        if again {
            return Ok(Acting::Broken(Because::new(reason::ROLLED_BACK, None, why)));
        }
        let because = Because::new(error.reason(), None, why);
        let untouched = self.batch.units.is_empty() && self.batch.retire.is_empty();
        Ok(if untouched { Acting::NothingStopped(because) } else { Acting::Broken(because) })
    }

    /// The ledger has it.
    fn noted(&self) {
        if let Err(error) = self.tools.host.perform(&Step::Noted) {
            tracing::warn!(error = %chain(&error), "the note of what was put back stays; the next run reads it again");
        }
    }

    /// Says what was done, and why.
    fn put_back(&self, why: &str) -> String {
        let told = format!("{} put back: {why}", self.batch.name);
        match self.tools.host.perform(&Step::RollBack(why)) {
            Ok(_) => told,
            Err(error) => format!("{told}; and not wholly: {}", chain(&error)),
        }
    }

    /// Whether all is reached that was reached before, steadily; if not, what is not.
    pub(super) fn reaches(&self, before: &BTreeSet<String>, armed: Duration) -> Result<(), String> {
        let (clock, mut since) = (self.tools.session.clock, None);
        while !before.is_empty() {
            let lost = risk::lost(before, &(self.tools.reach.ask)(&self.batch.risk));
            let now = clock.awake();
            if !lost.is_empty() {
                since = None;
                if now.saturating_sub(armed) > CONFIRM_WITHIN {
                    return Err(format!("not reached any more: {}", lost.join(", ")));
                }
            } else if now.saturating_sub(*since.get_or_insert(now)) >= STEADY {
                return Ok(());
            }
            (self.tools.reach.pause)();
        }
        Ok(())
    }
}
