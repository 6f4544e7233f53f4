//! A probe for tests: it says what it was told to say.
//!
//! Never: an answer nobody gave it; whoever is not mentioned is unknown.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::{Evidence, Probe, Question};
use crate::fleet::schema::CheckKind;
use crate::name::{NodeName, UnitName};

/// What a node asks of a member, where only the member matters to who answers.
pub fn question(me: &NodeName, member: &NodeName, unit: &UnitName) -> Question {
    Question {
        check: "gate".to_owned(),
        kind: CheckKind::Tcp,
        member: member.clone(),
        id: None,
        ids: Vec::new(),
        address: "127.0.0.1".to_owned(),
        own: member == me,
        unit: unit.clone(),
        port: Some(1),
        path: None,
        status: 200,
        tls: None,
        secret: None,
        user: None,
        run: Vec::new(),
        timeout: Duration::from_secs(1),
        members: Vec::new(),
        changing: Vec::new(),
    }
}

#[derive(Default)]
pub struct FakeProbe {
    answers: Mutex<BTreeMap<NodeName, Evidence>>,
}

impl FakeProbe {
    /// Everybody named is healthy.
    pub fn healthy<'a>(members: impl IntoIterator<Item = &'a str>) -> Self {
        let fake = Self::default();
        for member in members {
            fake.say(member, Evidence::healthy());
        }
        fake
    }

    /// From now on this is the answer about this member.
    pub fn say(&self, member: &str, evidence: Evidence) {
        self.answers.lock().expect("no holder panics").insert(NodeName::from(member), evidence);
    }
}

impl Probe for FakeProbe {
    fn ask(&self, question: &Question) -> Evidence {
        let answers = self.answers.lock().expect("no holder panics");
        answers.get(&question.member).cloned().unwrap_or_else(|| Evidence::unknown("nobody answers"))
    }
}
