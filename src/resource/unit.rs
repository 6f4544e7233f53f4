//! `unit`: a systemd unit, ours or a vendor's: enabled or not, running or not, and the steps around a restart.
//!
//! PURE. Never: talks to systemd.

use std::collections::BTreeSet;

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
    /// One member of the cluster runs it at a time; for how long without a word to the store, in seconds.
    pub lease_secs: Option<u64>,
    /// Raised by a commit to restart the unit everywhere; a new number is a new input.
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
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
    /// Files that change or add to its unit file (systemd.unit(5), drop-ins), whoever put them there.
    pub drop_ins: Vec<String>,
}

/// What systemd does to other units when it stops or starts this one, as it has them loaded now (systemd.unit(5)).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Relations {
    pub running: bool,
    /// Stopped when this one is stopped: what requires it, is bound to it, is part of it, or is named by it for that.
    pub dragged: BTreeSet<UnitName>,
    /// Stopped when this one is started.
    pub conflicts: BTreeSet<UnitName>,
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
            drop_ins: Vec::new(),
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.active, Active::Active | Active::Reloading | Active::Activating)
    }
}

/// Where a mount or automount unit mounts: its name is the escaped path (systemd.unit(5)). `None`: it is none.
pub fn mount_point(unit: &UnitName) -> Option<String> {
    let name = unit.as_str();
    let escaped = name.strip_suffix(".mount").or_else(|| name.strip_suffix(".automount"))?;
    let mut path = vec![b'/'];
    let mut rest = escaped.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'-' => path.push(b'/'),
            b'\\' => {
                let code: Vec<u8> = rest.by_ref().take(3).collect();
                let digits = std::str::from_utf8(code.strip_prefix(b"x")?).ok()?;
                path.push(u8::from_str_radix(digits, 16).ok()?);
            }
            byte => path.push(byte),
        }
    }
    String::from_utf8(path).ok().filter(|path| path != "//")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_the_name_of_its_unit() {
        let point = |unit: &str| mount_point(&UnitName::from(unit));
        assert_eq!(point("data.mount").as_deref(), Some("/data"));
        assert_eq!(point("opt-shared\\x2ddata.automount").as_deref(), Some("/opt/shared-data"));
        assert_eq!(point("-.mount"), None);
        assert_eq!(point("data.service"), None);
        assert_eq!(point("a\\xzz.mount"), None);
    }
}
