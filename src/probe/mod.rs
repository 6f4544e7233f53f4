//! Gates: ask one member one question, and bring back evidence.
//!
//! One file per kind of check. A probe that cannot decide says so, and `lock::quorum` takes that for down: unknown.
//! Unhealthy says more: a node may take its own unhealthy member away without asking the others. So the kinds that know
//! quorums say it only of a member that has no vote, or while the others are a majority without it; where the fault may be
//! somebody else's, or the member is still counted on, the answer is unknown. Never: a decision about the group.

mod command;
mod etcd;
pub mod fake;
mod http;
mod kafka;
mod keeper;
mod live;
mod others;
mod patroni;
mod recorder;
mod redis;
mod tcp;
mod unit;
mod vip;
mod wire;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::fleet::schema::CheckKind;
use crate::name::{NodeName, UnitName};

pub use command::{Ran, Run};
pub use live::{LiveProbe, of_reply};
pub use recorder::RecorderProbe;
pub use unit::AskUnit;

/// A check of a role, made concrete for one asked member.
#[derive(Clone, PartialEq, Eq)]
pub struct Question {
    /// The check's name in its role.
    pub check: String,
    pub kind: CheckKind,
    /// The member that is asked.
    pub member: NodeName,
    /// Its number in the cluster's `ids`: by which Kafka knows it.
    pub id: Option<u64>,
    /// The numbers of all members of the group that have one.
    pub ids: Vec<(NodeName, u64)>,
    /// Its address on the check's network; with TLS, the name or address that its certificate must carry.
    pub address: String,
    /// Whether the asked member is this very node.
    pub own: bool,
    /// The unit whose health is meant (the group's).
    pub unit: UnitName,
    /// `None`: the protocol's usual one. `tcp` must have one.
    pub port: Option<u16>,
    /// `http`: the path. `sentinel`: the name of the watched master. `vip-holder`: the shared address.
    pub path: Option<String>,
    /// `http`: the status that means healthy.
    pub status: u16,
    pub tls: Option<Tls>,
    /// `redis`, `sentinel`, `etcd`: the password.
    pub secret: Option<zeroize::Zeroizing<String>>,
    /// `redis`, `sentinel`, `etcd`: who logs in. `command` and Kafka's: the account that the command runs as.
    pub user: Option<String>,
    /// `command`: argument list, `{address}` is the asked member. Kafka's: the tool with the options that it always
    /// needs (`["…/kafka-topics.sh", "--command-config", "FILE"]`); server and question are appended.
    pub run: Vec<String>,
    /// For everything that the answer takes.
    pub timeout: Duration,
    /// All members of the group, in order of declaration, and their addresses on the check's network: some kinds
    /// compare what several say.
    pub members: Vec<(NodeName, String)>,
    /// Those of them that the topology does not call active: whether they have a vote is for the service to say.
    pub changing: Vec<NodeName>,
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?}) of {} at {}", self.check, self.kind, self.member, self.address)
    }
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
    /// Who has a vote, where the check can tell.
    pub lists: Option<Listed>,
}

/// Who has a vote in the service, by what the asked member says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listed {
    /// Of the members in the question.
    pub members: BTreeSet<NodeName>,
    /// Those that are none of them, as the service calls them.
    pub strangers: Vec<String>,
}

impl Evidence {
    pub fn healthy() -> Self {
        Self { health: Health::Healthy, leads: None, lists: None }
    }

    pub fn unhealthy(why: impl Into<String>) -> Self {
        Self { health: Health::Unhealthy(why.into()), leads: None, lists: None }
    }

    /// Who leads is worth saying of a member that is unknown, too: it may be stopped, with the others' leave, and hands
    /// over before.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { health: Health::Unknown(why.into()), leads: None, lists: None }
    }

    #[must_use]
    pub fn leading(self, leads: bool) -> Self {
        Self { leads: Some(leads), ..self }
    }

    #[must_use]
    pub fn listing(self, lists: Option<Listed>) -> Self {
        Self { lists, ..self }
    }
}

pub trait Probe {
    /// Returns within the question's timeout.
    fn ask(&self, question: &Question) -> Evidence;
}

/// Everybody at the same time; the answers in the order of the questions.
pub fn ask_all(probe: &(dyn Probe + Sync), questions: &[Question]) -> Vec<Evidence> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = questions.iter().map(|question| scope.spawn(move || probe.ask(question))).collect();
        asked
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Evidence::unknown("the probe itself failed: a bug")))
            .collect()
    })
}

/// What somebody else said, made fit for a report: one line, no control characters, 200 characters at most.
fn quoted(text: &str) -> String {
    text.trim().chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
