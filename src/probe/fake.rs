//! A probe for tests: it says what it was told to say.
//!
//! Never: an answer nobody gave it; whoever is not mentioned is unknown.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::{Evidence, Probe, Question};
use crate::name::NodeName;

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
