//! Whether a vote is gone: those who stay are asked.
//!
//! Never: a word of the one who goes.

use crate::fleet::MemberChange;
use crate::lock::membership;
use crate::lock::quorum::{Hold, Member};
use crate::lock::session::Session;
use crate::probe::{self, Question};

impl Session<'_> {
    /// Why a change of the membership is not over for those who stay; `None`: it is.
    pub fn lingers(&self, hold: &Hold) -> Option<String> {
        let circle = self.circles.iter().find(|circle| circle.ids().any(|id| *id == hold.group))?;
        let who = match &hold.change {
            MemberChange::None | MemberChange::Joins => return None,
            change => membership::subject(change, self.me),
        };
        let stay: Vec<Question> = circle.gate.iter().filter(|question| question.member != *who).cloned().collect();
        let answers = probe::ask_all(self.probe, &stay);
        let members = stay.into_iter().zip(answers).map(|(question, evidence)| Member {
            state: circle.group.state_of(&question.member),
            name: question.member,
            health: evidence.health,
            lists: evidence.lists,
            leads: false,
            applied_seq: None,
            wants_since: None,
            silent: false,
            dead: false,
        });
        membership::lingers(&circle.group, &members.collect::<Vec<_>>(), who)
    }
}
