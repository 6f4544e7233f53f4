//! `package`: an OS package, by its name in the node's OS family.
//!
//! PURE. Never: asks a package manager.

use super::Digest;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackageSpec {
    pub name: String,
    /// Empty: any version.
    pub version: String,
    /// Kept from being upgraded by others.
    pub hold: bool,
}

impl PackageSpec {
    pub fn inputs(&self) -> Digest {
        Digest::of_parts([self.name.as_bytes(), self.version.as_bytes()])
    }
}

/// What the package manager says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PackageState {
    Absent,
    Installed {
        version: String,
    },
    /// It could not be asked: in words.
    Unknown(String),
}

impl PackageSpec {
    /// In words, what is missing; `None`: as it must be.
    pub fn diff(&self, state: &PackageState) -> Option<String> {
        match state {
            PackageState::Absent => Some(format!("install {}", self.wanted())),
            PackageState::Installed { version } if !self.version.is_empty() && *version != self.version => {
                Some(format!("{} -> {}", version, self.version))
            }
            PackageState::Installed { .. } => None,
            PackageState::Unknown(why) => Some(why.clone()),
        }
    }

    fn wanted(&self) -> &str {
        if self.version.is_empty() { "any version" } else { &self.version }
    }
}
