//! Where a request waits for a run of the agent: one at a time, and whoever asked may have left meanwhile.
//!
//! Holds belong to runs, so a request is not answered by the thread that read it: it is put here, the agent is woken, and
//! the run that follows answers. Never: two requests at once; never: an answer that counts as given and was not heard.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::protocol::{Answer, Call, Refusal};
use crate::reason;
use crate::wake::{Wake, Waker};

/// Where the two sides meet.
#[derive(Clone)]
pub struct Desk {
    slip: Arc<Mutex<Option<Arc<Slip>>>>,
    waker: Waker,
}

struct Slip {
    call: Call,
    state: Mutex<State>,
    told: Condvar,
}

enum State {
    Waits,
    Answered(Answer),
    /// Whoever asked does not listen any more.
    Left,
}

/// A request that a run has taken up.
pub struct Asked(Arc<Slip>);

impl Desk {
    pub fn new(waker: Waker) -> Self {
        Self { slip: Arc::default(), waker }
    }

    /// Waits for a run's answer.
    pub fn ask(&self, call: Call, within: Duration) -> Answer {
        let busy = |sentence: &str| Err(Refusal::of(reason::FLEETLOCK_BUSY, sentence));
        let slip = Arc::new(Slip { call, state: Mutex::new(State::Waits), told: Condvar::new() });
        {
            let mut place = locked(&self.slip);
            if place.is_some() {
                return busy("another request waits for an answer");
            }
            *place = Some(slip.clone());
        }
        self.waker.wake(Wake::Asked);
        let waits = |state: &mut State| matches!(state, State::Waits);
        let waited = slip.told.wait_timeout_while(locked(&slip.state), within, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let state = std::mem::replace(&mut *state, State::Left);
        *locked(&self.slip) = None;
        match state {
            State::Answered(answer) => answer,
            State::Waits | State::Left => busy("the agent is busy with a run"),
        }
    }

    /// The request that waits; its place stays taken until it is answered, or its client leaves.
    pub fn waiting(&self) -> Option<Asked> {
        let slip = locked(&self.slip).clone()?;
        // One that is answered is its client's, who may not have come to read it yet.
        let waits = matches!(*locked(&slip.state), State::Waits);
        waits.then_some(Asked(slip))
    }
}

impl Asked {
    pub fn call(&self) -> Call {
        self.0.call
    }

    pub fn wants_to_reboot(&self) -> bool {
        self.call() == Call::PreReboot
    }

    /// Errors: nobody heard it.
    pub fn answer(self, answer: Answer) -> Result<(), Unheard> {
        let mut state = locked(&self.0.state);
        if matches!(*state, State::Left) {
            return Err(Unheard);
        }
        *state = State::Answered(answer);
        self.0.told.notify_one();
        Ok(())
    }
}

/// The client had left before the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unheard;

/// Whoever panicked has left plain data.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake::Wakes;

    const LONG: Duration = Duration::from_secs(60);

    fn desk() -> (Desk, Wakes) {
        let wakes = Wakes::default();
        (Desk::new(wakes.waker()), wakes)
    }

    #[test]
    fn a_run_is_woken_and_its_answer_heard() {
        let (desk, wakes) = desk();
        let asking = std::thread::spawn({
            let desk = desk.clone();
            move || desk.ask(Call::PreReboot, LONG)
        });
        assert!(wakes.wait(LONG).contains(&Wake::Asked));
        let asked = desk.waiting().expect("it was put there before the wake");
        assert_eq!(asked.call(), Call::PreReboot);
        let second = desk.ask(Call::SteadyState, LONG).unwrap_err();
        assert_eq!((second.status, second.kind), (503, "fleetlock-busy"));
        let refusal = Refusal::of(reason::FROZEN, "frozen by eve: no");
        asked.answer(Err(refusal.clone())).expect("the client waits");
        assert_eq!(asking.join().expect("it does not panic"), Err(refusal));
        assert!(desk.waiting().is_none());
    }

    /// Its client may not have come to read the answer when the next run looks.
    #[test]
    fn what_is_answered_is_not_taken_up_again() {
        let (desk, _wakes) = desk();
        let slip = Slip { call: Call::PreReboot, state: Mutex::new(State::Waits), told: Condvar::new() };
        *locked(&desk.slip) = Some(Arc::new(slip));
        desk.waiting().expect("it waits").answer(Ok(())).expect("its client is there");
        assert!(desk.waiting().is_none());
    }

    #[test]
    fn an_answer_to_a_client_that_left_is_none() {
        let (desk, _wakes) = desk();
        let asking = std::thread::spawn({
            let desk = desk.clone();
            move || desk.ask(Call::PreReboot, Duration::from_millis(300))
        });
        let mut asked = None;
        while asked.is_none() {
            asked = desk.waiting();
        }
        assert_eq!(asking.join().expect("it does not panic").unwrap_err().kind, "fleetlock-busy");
        assert_eq!(asked.expect("taken up in time").answer(Ok(())), Err(Unheard));
    }
}
