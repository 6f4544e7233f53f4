//! Gates: ask one member one question, and bring back evidence.
//!
//! One file per kind of check. A probe that cannot decide says so, and `lock::quorum` takes that for down. Never: a
//! decision about the group.

use std::time::Duration;

use crate::fleet::schema::CheckKind;
use crate::name::{NodeName, UnitName};

/// A check of a role, made concrete for one asked member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// The check's name in its role.
    pub check: String,
    pub kind: CheckKind,
    /// The member that is asked.
    pub member: NodeName,
    /// Its address on the check's network.
    pub address: String,
    /// Whether the asked member is this very node.
    pub own: bool,
    /// The unit whose health is meant (the group's).
    pub unit: UnitName,
    pub port: Option<u16>,
    pub path: Option<String>,
    pub status: u16,
    pub tls: Option<Tls>,
    pub secret: Option<zeroize::Zeroizing<String>>,
    pub user: Option<String>,
    pub run: Vec<String>,
    pub timeout: Duration,
    /// All members of the group and their addresses on the check's network: some kinds compare what several say.
    pub members: Vec<(NodeName, String)>,
}

/// Paths on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    pub ca: String,
    pub cert: Option<String>,
    pub key: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    Healthy,
    /// It answered, and the answer is no: in words, with numbers.
    Unhealthy(String),
    /// No answer, or one that proves nothing: in words.
    Unknown(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    pub health: Health,
    /// Whether this member leads its group, where the check can tell.
    pub leads: Option<bool>,
}

pub trait Probe {
    fn ask(&self, question: &Question) -> Evidence;
}
