//! `unit`: a systemd unit, ours or a vendor's: enabled or not, running or not, and the steps around a restart.
//!
//! PURE. Never: talks to systemd.

use serde::{Deserialize, Serialize};

use super::Digest;
use crate::name::UnitName;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    #[default]
    Running,
    Stopped,
    Masked,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitSpec {
    pub name: UnitName,
    /// `None`: left as the vendor or the operator has it.
    pub enabled: Option<bool>,
    pub state: Wanted,
    /// Argument lists, run in order before the unit is stopped; one that fails ends the attempt.
    pub before_stop: Vec<Vec<String>>,
    /// Only if this member leads.
    pub transfer: Vec<Vec<String>>,
    pub after_start: Vec<Vec<String>>,
    pub stop_secs_max: u64,
    pub start_secs_max: u64,
    /// A reload takes the hold too.
    pub reload_hold: bool,
    /// `converger restart` raises it; a new number is a new input.
    pub restart_epoch: u64,
}

impl UnitSpec {
    pub fn inputs(&self) -> Digest {
        Digest::of_parts([self.name.as_str().as_bytes(), self.restart_epoch.to_string().as_bytes()])
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Active {
    Active,
    Reloading,
    Activating,
    Deactivating,
    Inactive,
    Failed,
}

/// What systemd says of a unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitState {
    /// False: systemd knows no such unit.
    pub loaded: bool,
    pub active: Active,
    pub enabled: bool,
    pub masked: bool,
    /// systemd's InvocationID: another one means that the unit was started again, by whomever.
    pub invocation: String,
    /// The unit file on disk is newer than what systemd runs with.
    pub needs_daemon_reload: bool,
}

impl UnitState {
    pub fn missing() -> Self {
        Self {
            loaded: false,
            active: Active::Inactive,
            enabled: false,
            masked: false,
            invocation: String::new(),
            needs_daemon_reload: false,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.active, Active::Active | Active::Reloading | Active::Activating)
    }
}
