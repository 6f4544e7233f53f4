//! `artifact`: an archive by digest, unpacked into `into/<version>`, with `into/current` pointing at it.
//!
//! PURE. Never: downloads.

use super::Digest;
use crate::name::HostPath;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArtifactSpec {
    pub component: String,
    pub version: String,
    pub sha256: String,
    pub urls: Vec<String>,
    pub into: HostPath,
}

impl ArtifactSpec {
    pub fn inputs(&self) -> Digest {
        let parts = [self.component.as_bytes(), self.version.as_bytes(), self.sha256.as_bytes()];
        Digest::of_parts(parts.into_iter().chain([self.into.as_str().as_bytes()]))
    }
}

/// Which version `current` points at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArtifactState {
    Absent,
    Current { version: String },
}

impl ArtifactSpec {
    pub fn diff(&self, state: &ArtifactState) -> Option<String> {
        match state {
            ArtifactState::Absent => Some(format!("unpack {} {}", self.component, self.version)),
            ArtifactState::Current { version } if *version != self.version => {
                Some(format!("{} {} -> {}", self.component, version, self.version))
            }
            ArtifactState::Current { .. } => None,
        }
    }
}
