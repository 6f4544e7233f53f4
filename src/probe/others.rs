//! The other members of the asked one's group, asked at the same time: some kinds compare what several say.
//!
//! Never: an error; who does not answer in time says nothing.

use std::sync::mpsc;

use super::Question;
use super::wire::Deadline;
use crate::name::NodeName;

/// What they say, as it comes in. One that hangs costs half of what is left of the question's time.
pub(super) fn others<T: Send + 'static>(
    question: &Question,
    deadline: Deadline,
    ask: fn(&Question) -> Result<T, String>,
) -> impl Iterator<Item = (NodeName, T)> {
    let within = deadline.left().unwrap_or_default() / 2;
    let (answer, answers) = mpsc::channel();
    for (name, address) in question.members.iter().filter(|(name, _)| *name != question.member) {
        let asked = Question {
            member: name.clone(),
            id: None,
            address: address.clone(),
            own: false,
            timeout: within,
            ..question.clone()
        };
        let answer = answer.clone();
        // Left behind when somebody else has decided meanwhile; its own time limit ends it.
        std::thread::spawn(move || {
            if let Ok(said) = ask(&asked) {
                // Nobody may be waiting any more.
                let _ = answer.send((asked.member, said));
            }
        });
    }
    let over = Deadline::within(within);
    std::iter::from_fn(move || answers.recv_timeout(over.left().ok()?).ok())
}
