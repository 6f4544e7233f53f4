//! Holds that are lent to somebody else who reboots this machine.
//!
//! From arming on the machine may go down at any time of this boot, and nobody can take that back by waiting: whoever has
//! the permission may use it an hour later. It ends when the machine boots, when whoever has it says so, or when it asks
//! again and hears no. Never: a time after which a permission is thought to be over.

use std::time::Duration;

use super::quorum::Because;
use super::recovery::{Lent, Record, RecordPhase};
use super::session::{Entry, Intent, Session, millis};
use crate::disk::DiskError;
use crate::plan::reboot;
use crate::reason;

/// Whether somebody else may reboot the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Permission {
    Nobody,
    /// Said a short time ago: the machine is about to go down.
    Fresh,
    /// The machine did not go down in time; it still may.
    Unused(Because),
}

impl Session<'_> {
    /// The record of holds that are lent now.
    pub fn lent(&self) -> Option<Record> {
        self.record().filter(|record| record.is_lent(&self.boot_id))
    }

    pub fn permission(&self) -> Permission {
        let Some((record, lent)) = self.lent().and_then(|record| record.lent.clone().map(|lent| (record, lent))) else {
            return Permission::Nobody;
        };
        if self.clock.awake().saturating_sub(Duration::from_millis(lent.said_ms)) <= reboot::DOWN_WITHIN {
            return Permission::Fresh;
        }
        let since = record.holds.first().map_or(String::new(), |(hold, _)| format!(" since {}", hold.since));
        let sentence = format!("somebody else may reboot this machine{since}, and has not; the holds stay");
        let ends = "It ends when the machine boots, or with POST /v1/steady-state.";
        Permission::Unused(Because::new(reason::REBOOT_FAILED, None, sentence).ends(ends))
    }

    /// Takes the holds and lends them; those that are lent already are judged again. `Some`: not now, and nothing is lent
    /// any more.
    pub fn lend(&self, intent: &Intent<'_>) -> Result<Option<Because>, DiskError> {
        if let Some(because) = self.refused(intent)? {
            return Ok(Some(because));
        }
        let Some(record) = self.record() else {
            return Ok(Some(Because::new(reason::INTERNAL, None, "nothing was recorded".to_owned())));
        };
        let lent = Lent { boot_id: self.boot_id.clone(), said_ms: millis(self.clock.awake()) };
        self.save(&Record { lent: Some(lent), ..record })?;
        Ok(None)
    }

    fn refused(&self, intent: &Intent<'_>) -> Result<Option<Because>, DiskError> {
        let wait = |reason, sentence: String| Ok(Some(Because::new(reason, None, sentence)));
        match self.record() {
            None => match self.enter(intent)? {
                Entry::Act { .. } => Ok(None),
                Entry::Deferred(because) => Ok(Some(because)),
            },
            // A commit made this node a member of more.
            Some(record) if record.is_lent(&self.boot_id) && !covers(&record, intent) => {
                match self.take_back("it covers too little")? {
                    Some(because) => Ok(Some(because)),
                    None => self.refused(intent),
                }
            }
            Some(record) if record.is_lent(&self.boot_id) => {
                let Err(because) = self.armed_again(&record, intent) else { return Ok(None) };
                self.take_back(&because.sentence)?;
                Ok(Some(*because))
            }
            Some(record) if record.phase == RecordPhase::Failed => wait(reason::GATE_FAILED, record.why),
            Some(record) => {
                wait(reason::SETTLING, format!("{} has a hold for {}, which settles first", self.me, record.batch))
            }
        }
    }

    /// Whoever had the permission has it no more, and nothing was stopped: the holds go back. `Some`: they could not.
    pub fn take_back(&self, why: &str) -> Result<Option<Because>, DiskError> {
        self.nothing_stopped(why)?;
        let stays = |record: Record| {
            let sentence = format!("the hold for {} could not be given back", record.batch);
            Because::new(reason::STORE_UNREACHABLE, None, sentence)
        };
        Ok(self.record().map(stays))
    }

    /// Nobody has the permission any more, and something does not run or is not healthy: it settles.
    pub fn lent_no_more(&self) -> Result<(), DiskError> {
        match self.record() {
            Some(record) => self.save(&Record { lent: None, ..record }),
            None => Ok(()),
        }
    }
}

fn covers(record: &Record, intent: &Intent<'_>) -> bool {
    intent.groups.iter().all(|group| record.holds.iter().any(|(hold, _)| hold.group == *group))
}
