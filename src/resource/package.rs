//! `package`: an OS package, by its name in the node's OS family.
//!
//! PURE. Never: asks a package manager.

use super::Digest;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackageSpec {
    pub name: String,
    /// Empty: any version.
    pub version: String,
    /// Kept from being upgraded by others. One that is not to be held is released, whoever holds it.
    pub hold: bool,
}

impl PackageSpec {
    pub fn inputs(&self) -> Digest {
        Digest::of_parts([self.name.as_bytes(), self.version.as_bytes()])
    }

    /// Whether this version will do.
    pub fn takes(&self, version: &str) -> bool {
        self.version.is_empty() || without_epoch_0(&self.version) == without_epoch_0(version)
    }
}

/// dpkg and rpm take a version without an epoch for one with the epoch 0.
fn without_epoch_0(version: &str) -> &str {
    version.strip_prefix("0:").unwrap_or(version)
}

/// What the package manager says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PackageState {
    Absent,
    Installed {
        version: String,
        held: bool,
    },
    /// As something that was interrupted leaves it: in words.
    Half(String),
    /// It could not be asked: in words.
    Unknown(String),
}

impl PackageSpec {
    /// In words, what is missing; `None`: as it must be.
    pub fn diff(&self, state: &PackageState) -> Option<String> {
        match state {
            PackageState::Absent => Some(format!("install {}", self.wanted())),
            PackageState::Installed { version, .. } if !self.takes(version) => {
                Some(format!("{} -> {}", version, self.version))
            }
            PackageState::Installed { held, .. } => match (held, self.hold) {
                (false, true) => Some("hold".to_owned()),
                (true, false) => Some("release the hold".to_owned()),
                (true, true) | (false, false) => None,
            },
            PackageState::Half(what) => Some(format!("mend: it is {what}")),
            PackageState::Unknown(why) => Some(why.clone()),
        }
    }

    fn wanted(&self) -> &str {
        if self.version.is_empty() { "any version" } else { &self.version }
    }
}
