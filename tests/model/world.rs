//! What can happen next: a step of an agent, which asks the real functions, or a fault, or a word of an operator.
//!
//! What the agent does between the questions (stop, exchange, start, look) is told here as `apply` and `settle` do it. Never:
//! two things at once, or a time; everything that may happen may happen now.

use converger::lock::machine::{Event, Phase};
use converger::lock::recovery::Asks;

use super::config::{Config, Kind};
use super::mutants::Mutant;
use super::promises;
use super::real::{Again, Answer, Real, Write, lost};
use super::search::{Next, World};
use super::state::{Fault, GROUPS, Held, HoldIs, Mine, NODES, Packed, Pc, Rec, State, Svc};

macro_rules! happenings {
    ($($name:ident: $words:literal;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum What { $($name),* }

        impl What {
            pub fn words(self) -> &'static str {
                match self { $(Self::$name => $words),* }
            }
        }
    };
}

happenings! {
    Looks: "looks at the store and waits";
    Judges: "judges that it may claim";
    Claims: "claims";
    ClaimRefused: "claims and is refused";
    ClaimLost: "claims, and no answer comes";
    JudgesToArm: "asks everybody and judges that it may arm";
    BacksOff: "asks everybody, judges that it must wait, and gives its claim back";
    LosesStore: "finds no store after its claim";
    Arms: "arms";
    ArmRefused: "is refused to arm and gives its claim back";
    ArmLost: "arms, and no answer comes";
    Records: "writes its record";
    CameBack: "finds its member up again and gives back";
    StepFails: "fails before the stop";
    Stops: "stops its member";
    Swaps: "puts the new files live";
    Starts: "starts its member, which must settle";
    StartFails: "starts its member, which fails";
    Settles: "sees its member settled and gives back";
    SettlesUnheard: "sees its member settled and cannot give back";
    Fails: "sees its member sick and keeps the hold as failed";
    Reenters: "goes on in its own hold";
    GoesOnSettling: "finds its member healthy after an interruption";
    NotOurs: "learns that its hold is gone";
    Retargets: "writes the new commit into its hold";
    RetargetRefused: "may not write the new commit into its hold";
    FreesLeftovers: "gives back what an attempt left behind";
    StartsOwn: "starts its member as it was";
    ChangesFreely: "changes its member without a hold";
    SettledFreely: "sees its member settled for the first time";
    SwapsEarly: "puts the new files live before any hold";
    Pulls: "sees a newer commit";
    Publishes: "a newer commit is published";
    AgentDies: "its agent dies";
    Reboots: "reboots";
    ServiceDies: "its service dies";
    Breaks: "its environment breaks";
    TurnsSick: "its environment makes it sick";
    Heals: "its environment heals";
    SlowBadDies: "its new version turns sick";
    StoreGoes: "the store goes";
    StoreComes: "the store comes";
    MachineDies: "its machine goes";
    MachineReturns: "its machine returns";
    DeclaredDead: "an operator declares it dead";
    Admitted: "an operator lets it in again";
    Frozen: "an operator freezes the fleet";
    Unfrozen: "an operator ends the freeze";
    LedgerLost: "its ledger is lost";
    Snapshot: "a snapshot of the store is taken";
    Restored: "the store is restored from it";
    OperatorFrees: "an operator frees its hold";
}

impl World for Real {
    type State = State;
    type Packed = Packed;

    fn starts(&self) -> Vec<State> {
        self.config.starts()
    }

    fn next(&mut self, s: &State, out: &mut Vec<Next<State>>) {
        for n in 0..self.config.nodes {
            let mut at = At { real: self, s, n, out };
            if s.nodes[n].on {
                at.agent();
            }
            at.faults();
        }
        At { real: self, s, n: 0, out }.everywhere();
    }

    fn broken(&mut self, s: &State) -> Option<&'static str> {
        promises::broken(&self.config, s)
    }

    fn is_over(&self, s: &State) -> bool {
        self.config.is_over(s)
    }

    fn ends(&self) -> bool {
        self.config.ends
    }

    fn sorted(&self, s: &State) -> (State, [usize; NODES]) {
        s.sorted(self.config.alike)
    }

    fn pack(s: &State) -> Packed {
        s.pack()
    }

    fn unpack(words: &Packed) -> State {
        State::unpack(words)
    }

    fn title(&self, start: &State) -> String {
        let doubtful = self.config.doubtful;
        format!("(commit {doubtful} is {:?})", self.config.kind_of(start, doubtful))
    }
}

/// The store answers.
fn available(config: &Config, s: &State) -> bool {
    let up = s.nodes[..config.nodes].iter().filter(|node| node.svc == Svc::Up).count();
    !s.store_down && (!config.own_store || up > config.nodes / 2)
}

struct At<'a> {
    real: &'a mut Real,
    s: &'a State,
    n: usize,
    out: &'a mut Vec<Next<State>>,
}

impl At<'_> {
    fn is(&self, mutant: Mutant) -> bool {
        self.real.is(mutant)
    }

    fn push(&mut self, what: What, mut state: State, wrong: Option<&'static str>) {
        tidy(&self.real.config, &mut state);
        use What::{Frozen, Publishes, Restored, Snapshot, StoreComes, StoreGoes, Unfrozen};
        let of_all = matches!(what, Frozen | Publishes | Restored | Snapshot | StoreComes | StoreGoes | Unfrozen);
        let node = (!of_all).then_some(self.n as u8);
        self.out.push(Next { node, words: what.words(), state, wrong });
    }

    fn has_store(&self) -> bool {
        available(&self.real.config, self.s)
    }

    /// It answers, and is as new as this node knows it.
    fn sees_store(&self) -> bool {
        self.has_store() && (!self.s.nodes[self.n].replaced || self.is(Mutant::RestoreUnnoticed))
    }

    fn agent(&mut self) {
        let (n, s) = (self.n, self.s);
        let node = &s.nodes[n];
        match node.pc {
            Pc::None => self.between_steps(),
            Pc::Claiming => self.claims(),
            Pc::Claimed => self.probes(),
            Pc::Arming => self.arms(),
            Pc::Armed => {
                let mut next = *s;
                let node = &mut next.nodes[n];
                (node.rec, node.rec_commit, node.rec_old, node.pc) = (Rec::Acting, node.target, false, Pc::Acting);
                node.rec_several = self.real.several(n, &s.nodes[n]);
                self.push(What::Records, next, None);
            }
            Pc::Acting => self.acts(),
            Pc::Stopped => {
                let mut next = *s;
                self.exchange(&mut next);
                next.nodes[n].pc = Pc::Swapped;
                self.push(
                    What::Swaps,
                    next,
                    (node.dead && !s.restored).then_some("S9: a node that was declared dead takes new files"),
                );
            }
            Pc::Swapped => {
                let mut next = *s;
                next.nodes[n].pc = Pc::None;
                next.nodes[n].svc = self.started(s);
                if next.nodes[n].runs() {
                    let event = if self.is(Mutant::ReleasedAtStart) { Event::NothingToSettle } else { Event::Acted };
                    self.advance(What::Starts, next, &event);
                } else {
                    self.advance(What::StartFails, next, &Event::ActFailed(String::new()));
                }
            }
            Pc::Retargeting => match self.has_store().then(|| self.real.write(s, n, Write::Retarget)) {
                Some(Answer::Written { holds, spec }) => {
                    let mut next = *s;
                    let wrong = self.wrote(&mut next, (holds, spec), true);
                    self.repairs(&mut next);
                    self.push(What::Retargets, next, wrong);
                }
                _ => {
                    let mut next = *s;
                    next.nodes[n].forget_attempt();
                    self.push(What::RetargetRefused, next, None);
                }
            },
        }
    }

    /// New files: what the environment did to the old version is over.
    fn exchange(&self, next: &mut State) {
        let node = &mut next.nodes[self.n];
        (node.live, node.brk, node.ghost) = (node.target, Svc::Up, false);
    }

    /// How a start of what is live ends.
    fn started(&self, s: &State) -> Svc {
        let node = &s.nodes[self.n];
        if self.real.config.kind_of(s, node.live) == Kind::Bad { Svc::Down } else { node.brk }
    }

    /// What a transaction left in the store; a promise that it broke.
    fn wrote(
        &self,
        next: &mut State,
        (holds, spec): ([[Held; NODES]; GROUPS], [u8; GROUPS]),
        puts: bool,
    ) -> Option<&'static str> {
        let mut wrong = None;
        for (g, group) in holds.iter().enumerate() {
            for (n, held) in group.iter().enumerate() {
                if n != self.n && *held != next.holds[g][n] {
                    wrong = Some("P7: a node wrote another node's hold");
                }
                let mask = 1 << (g * NODES + n);
                if held.is == HoldIs::None {
                    next.nodes.iter_mut().for_each(|node| node.touched &= !mask);
                } else if n == self.n && puts && (next.nodes[n].mine[g].there || next.holds[g][n] != *held) {
                    next.nodes.iter_mut().for_each(|node| node.touched |= mask);
                }
            }
        }
        (next.holds, next.spec) = (holds, spec);
        wrong
    }

    fn between_steps(&mut self) {
        let (n, s) = (self.n, self.s);
        let node = s.nodes[n];
        let open = node.target != node.live;
        if s.snapped && !node.looked && self.sees_store() {
            let mut next = *s;
            next.nodes[n].looked = true;
            self.push(What::Looks, next, None);
        }
        let waits_for_store = self.is(Mutant::RecoveryNeedsTheStore) && node.rec != Rec::None && !self.has_store();
        if !node.runs() && !waits_for_store {
            let mut next = *s;
            if self.is(Mutant::NewInputsAtStart) {
                self.exchange(&mut next);
            }
            next.nodes[n].svc = self.started(&next);
            if next.nodes[n].runs() {
                self.push(What::StartsOwn, next, None);
            }
        }
        if open && self.is(Mutant::FilesBeforeTheHold) && node.rec == Rec::None {
            let mut next = *s;
            next.nodes[n].live = node.target;
            self.push(What::SwapsEarly, next, None);
        }
        // What is in no group any more costs nobody anything.
        let alone = self.real.circles(n, &node).is_empty();
        // As the plan says it: what never settled here and is not healthy costs nobody anything.
        let free = alone
            || node.rec == Rec::None
                && !node.settled
                && (node.svc != Svc::Up || self.is(Mutant::LostLedgerRestartsAtOnce))
            || node.rec == Rec::None && self.is(Mutant::NewInputsWithoutAHold) && !node.runs();
        if open && free {
            let mut next = *s;
            self.exchange(&mut next);
            next.nodes[n].svc = self.started(&next);
            let wrong = promises::changing_freely(self.real, s, n);
            self.push(What::ChangesFreely, next, wrong);
            if node.rec == Rec::None {
                return;
            }
        }
        if node.rec != Rec::None {
            return self.with_record(open && !alone, alone);
        }
        if !node.settled && node.svc == Svc::Up && self.real.config.kind_of(s, node.live) != Kind::SlowBad {
            let mut next = *s;
            let node = &mut next.nodes[n];
            (node.settled, node.memory, node.ctl) = (true, true, false);
            self.push(What::SettledFreely, next, None);
        }
        if !self.sees_store() {
            return;
        }
        match self.real.leftovers(s, n) {
            Answer::Release if self.is(Mutant::LeftoversStay) => {}
            Answer::Release => {
                if let Answer::Written { holds, spec } = self.real.write(s, n, Write::Leftovers) {
                    let mut next = *s;
                    let wrong =
                        self.wrote(&mut next, (holds, spec), false).or_else(|| promises::given_back(self.real, s, n));
                    self.push(What::FreesLeftovers, next, wrong);
                }
            }
            Answer::Repairs if open => {
                if let Answer::Go { lanes, .. } = self.real.judge(s, n, false) {
                    let mut next = *s;
                    let away =
                        (0..self.real.config.nodes).filter(|other| *other != n && s.nodes[*other].svc != Svc::Up);
                    let node = &mut next.nodes[n];
                    (node.pc, node.lanes, node.touched, node.counted) = (Pc::Claiming, lanes, 0, s.spec);
                    node.away = away.fold(0, |mask, other| mask | 1 << other);
                    self.push(What::Judges, next, None);
                }
            }
            _ => {}
        }
    }

    fn claims(&mut self) {
        let (n, s) = (self.n, self.s);
        let mut gone = *s;
        gone.nodes[n].forget_attempt();
        if self.is(Mutant::ClaimNotWritten) {
            let mut next = *s;
            next.nodes[n].pc = Pc::Claimed;
            return self.push(What::Claims, next, None);
        }
        if !self.has_store() {
            return self.push(What::LosesStore, gone, None);
        }
        let Answer::Written { holds, spec } = self.real.write(s, n, Write::Claim) else {
            return self.push(What::ClaimRefused, gone, None);
        };
        let mut next = *s;
        let wrong = self.wrote(&mut next, (holds, spec), true);
        if self.real.config.fair {
            self.passes(&mut next);
        }
        let held = s.holds.iter().any(|group| group[n].is != HoldIs::None);
        let wrong = wrong.or(held.then_some("S7: a node that holds something claims more"));
        if s.can(Fault::AnswerLost) && lost(Phase::Claiming { lanes: Vec::new() }) == Phase::Idle {
            let mut lost = next.spend(Fault::AnswerLost);
            lost.nodes[n].forget_attempt();
            self.push(What::ClaimLost, lost, wrong);
        }
        for g in 0..GROUPS {
            let held = next.holds[g][n];
            let there = held.is != HoldIs::None;
            next.nodes[n].mine[g] = Mine { there, lane: held.lane, token: held.token };
        }
        next.nodes[n].pc = Pc::Claimed;
        next.nodes[n].lanes = [0; GROUPS];
        if self.is(Mutant::RecordAtClaim) {
            let node = &mut next.nodes[n];
            (node.rec, node.rec_commit) = (Rec::Acting, node.target);
        }
        self.push(What::Claims, next, wrong);
    }

    /// Everybody who waits although it might go is passed over by this node's claim.
    fn passes(&mut self, next: &mut State) {
        let s = self.s;
        for other in (0..self.real.config.nodes).filter(|other| *other != self.n) {
            let node = &s.nodes[other];
            let waits = node.on && node.pc == Pc::None && node.rec == Rec::None && node.target != node.live;
            if waits && !node.replaced && self.real.entitled(s, other) {
                next.nodes[other].passed = (node.passed + 1).min(7);
            }
        }
        next.nodes[self.n].passed = 0;
    }

    fn probes(&mut self) {
        let (n, s) = (self.n, self.s);
        let mut next = *s;
        if !self.has_store() {
            next.nodes[n].forget_attempt();
            return self.push(What::LosesStore, next, None);
        }
        match self.real.judge(s, n, true) {
            Answer::Go { down, .. } => {
                let node = &mut next.nodes[n];
                (node.pc, node.touched, node.down) = (Pc::Arming, 0, down);
                self.push(What::JudgesToArm, next, None);
            }
            _ => self.back_off(What::BacksOff, next),
        }
    }

    fn back_off(&mut self, what: What, mut next: State) {
        let mut wrong = None;
        if let Answer::Written { holds, spec } = self.real.write(self.s, self.n, Write::GiveBack) {
            wrong = self.wrote(&mut next, (holds, spec), false);
        }
        next.nodes[self.n].forget_attempt();
        self.push(what, next, wrong);
    }

    fn arms(&mut self) {
        let (n, s) = (self.n, self.s);
        let mut gone = *s;
        gone.nodes[n].forget_attempt();
        if self.is(Mutant::LostIsCommitted) && s.can(Fault::AnswerLost) {
            let mut next = s.spend(Fault::AnswerLost);
            next.nodes[n].pc = Pc::Armed;
            self.push(What::ArmLost, next, None);
        }
        if !self.has_store() {
            return self.push(What::LosesStore, gone, None);
        }
        let Answer::Written { holds, spec } = self.real.write(s, n, Write::Arm) else {
            return self.back_off(What::ArmRefused, *s);
        };
        let mut next = *s;
        let wrong = self.wrote(&mut next, (holds, spec), true);
        let wrong = wrong.or_else(|| promises::arming(self.real, s, n));
        if s.can(Fault::AnswerLost) && lost(Phase::Arming) == Phase::Releasing {
            let mut lost = next.spend(Fault::AnswerLost);
            lost.nodes[n].forget_attempt();
            self.push(What::ArmLost, lost, wrong);
        }
        next.nodes[n].pc = Pc::Armed;
        self.push(What::Arms, next, wrong);
    }

    fn acts(&mut self) {
        let (n, s) = (self.n, self.s);
        let node = s.nodes[n];
        if node.down && node.svc == Svc::Up && !self.is(Mutant::RepairNotRechecked) {
            return self.advance(What::CameBack, *s, &Event::NothingToSettle);
        }
        if s.can(Fault::StepFails) {
            self.advance(What::StepFails, s.spend(Fault::StepFails), &Event::NothingStopped(String::new()));
        }
        let mut next = *s;
        let wrong = promises::stopping(self.real, s, n);
        let node = &mut next.nodes[n];
        // What a repair stops was taken away before.
        node.ctl |= node.runs() && node.rec == Rec::Acting;
        (node.svc, node.pc) = (Svc::Down, Pc::Stopped);
        self.push(What::Stops, next, wrong);
    }

    /// What the record becomes.
    fn advance(&mut self, what: What, mut next: State, event: &Event) {
        let n = self.n;
        next.nodes[n].pc = Pc::None;
        next.nodes[n].forget_attempt();
        match self.real.advance(&next, n, event) {
            Answer::Settles => next.nodes[n].rec = Rec::Settling,
            Answer::Fails if self.is(Mutant::FailureReleases) => return self.release(what, next),
            Answer::Fails => {
                next.nodes[n].rec = Rec::Failed;
                if available(&self.real.config, &next)
                    && let Answer::Written { holds, spec } = self.real.write(&next, n, Write::Fail)
                {
                    let wrong = self.wrote(&mut next, (holds, spec), true);
                    return self.push(what, next, wrong);
                }
            }
            Answer::Release => return self.release(what, next),
            _ => {}
        }
        if next != *self.s {
            self.push(what, next, None);
        }
    }

    fn interrupted(&mut self) {
        let mut next = *self.s;
        if let Some(commit) = self.real.interrupted(self.s, self.n) {
            let node = &mut next.nodes[self.n];
            (node.rec, node.rec_commit) = (Rec::Settling, commit);
            self.push(What::GoesOnSettling, next, None);
        }
    }

    fn release(&mut self, what: What, mut next: State) {
        let n = self.n;
        if !available(&self.real.config, &next) {
            let what = if what == What::Settles { What::SettlesUnheard } else { what };
            if next != *self.s {
                self.push(what, next, None);
            }
            return;
        }
        let mut wrong = promises::given_back(self.real, &next, n);
        if let Answer::Written { holds, spec } = self.real.write(&next, n, Write::GiveBack) {
            wrong = self.wrote(&mut next, (holds, spec), false).or(wrong);
        }
        next.nodes[n].forget_record();
        self.push(what, next, wrong);
    }

    fn with_record(&mut self, open: bool, alone: bool) {
        let (n, s) = (self.n, self.s);
        let node = s.nodes[n];
        let slow = self.real.config.kind_of(s, node.live) == Kind::SlowBad && !self.is(Mutant::NoSettleTime);
        match node.rec {
            // Nobody says what healthy would mean for it.
            Rec::Settling | Rec::Failed if alone => self.advance(What::Settles, *s, &Event::Settled),
            Rec::Settling | Rec::Failed => {
                if node.svc == Svc::Up && !slow || node.runs() && self.is(Mutant::SettledWhileSick) {
                    let mut next = *s;
                    next.nodes[n].settled = true;
                    if let Some(commit) = self.real.proves(s, n) {
                        next.nodes[n].proved = commit + 1;
                    }
                    self.advance(What::Settles, next, &Event::Settled);
                }
                if node.svc != Svc::Up && node.rec == Rec::Settling {
                    self.advance(What::Fails, *s, &Event::Sick(String::new()));
                }
            }
            Rec::Acting | Rec::Repairing => {
                if node.runs() && (!open || node.svc == Svc::Up) {
                    match !open && node.rec_commit == node.target {
                        true => self.advance(What::GoesOnSettling, *s, &Event::Acted),
                        false => self.interrupted(),
                    }
                }
            }
            Rec::None => {}
        }
        if !open {
            return;
        }
        let mut next = *s;
        match self.real.reenter(s, n) {
            Again::Wait => {}
            Again::Settle => self.interrupted(),
            Again::Repair(Asks::Nobody) => {
                let mut wrong = None;
                if self.has_store()
                    && node.rec_commit != node.target
                    && let Answer::Written { holds, spec } = self.real.write(s, n, Write::Retold)
                {
                    wrong = self.wrote(&mut next, (holds, spec), true);
                }
                self.repairs(&mut next);
                self.push(What::Reenters, next, wrong);
            }
            Again::Repair(asks) if self.sees_store() => match self.real.said(s, n, asks) {
                Answer::NotOurs => {
                    next.nodes[n].forget_record();
                    self.push(What::NotOurs, next, None);
                }
                Answer::Release => {
                    (next.nodes[n].pc, next.nodes[n].touched) = (Pc::Retargeting, 0);
                    self.push(What::Reenters, next, None);
                }
                Answer::Repairs => {
                    self.repairs(&mut next);
                    self.push(What::Reenters, next, None);
                }
                _ => {}
            },
            Again::Repair(_) => {}
        }
    }

    fn repairs(&mut self, next: &mut State) {
        let several = self.real.several(self.n, &next.nodes[self.n]);
        let node = &mut next.nodes[self.n];
        node.forget_attempt();
        (node.rec, node.rec_commit, node.rec_old, node.pc) = (Rec::Repairing, node.target, false, Pc::Acting);
        node.rec_several |= several;
    }

    fn faults(&mut self) {
        let (n, s) = (self.n, self.s);
        let node = s.nodes[n];
        let kind = self.real.config.kind_of(s, node.live);
        // Seen a moment ago and acted upon: no time for a change of heart.
        let repairing = node.pc == Pc::Acting && node.rec == Rec::Repairing;
        if node.on && node.pc == Pc::None && node.target < s.published && self.real.config.lagging {
            let mut next = *s;
            next.nodes[n].target = s.published;
            self.push(What::Pulls, next, None);
        }
        if node.on && node.pc != Pc::None && s.can(Fault::AgentDies) {
            let mut next = s.spend(Fault::AgentDies);
            if self.is(Mutant::RecordForgotten) {
                next.nodes[n].rec = Rec::None;
                (next.nodes[n].rec_commit, next.nodes[n].rec_old) = (0, false);
            }
            if self.is(Mutant::HoldOnALease) {
                next.holds.iter_mut().for_each(|group| group[n] = Held::default());
            }
            next.nodes[n].forget_attempt();
            self.push(What::AgentDies, next, None);
        }
        if node.on && s.can(Fault::Reboot) {
            self.goes_down(What::Reboots, s.spend(Fault::Reboot));
        }
        if node.svc == Svc::Up && s.can(Fault::ServiceDies) && !repairing {
            let mut next = s.spend(Fault::ServiceDies);
            next.nodes[n].svc = Svc::Down;
            self.push(What::ServiceDies, next, None);
        }
        if node.svc == Svc::Up && s.can(Fault::EnvironmentBreaks) && !repairing {
            for (what, how) in [(What::TurnsSick, Svc::Sick), (What::Breaks, Svc::Down)] {
                let mut next = s.spend(Fault::EnvironmentBreaks);
                (next.nodes[n].svc, next.nodes[n].brk) = (how, how);
                self.push(what, next, None);
            }
        }
        let last = node.live == self.real.config.last && s.published == self.real.config.last;
        if node.brk != Svc::Up && !repairing && (last || s.can(Fault::Heals)) {
            let mut next = if last { *s } else { s.spend(Fault::Heals) };
            next.nodes[n].brk = Svc::Up;
            if node.svc == Svc::Sick {
                next.nodes[n].svc = Svc::Up;
            }
            self.push(What::Heals, next, None);
        }
        if node.svc == Svc::Up && kind == Kind::SlowBad {
            let mut next = *s;
            next.nodes[n].svc = Svc::Sick;
            self.push(What::SlowBadDies, next, None);
        }
        if node.on && s.can(Fault::MachineDies) {
            let mut next = s.spend(Fault::MachineDies);
            next.nodes[n].on = false;
            self.goes_down(What::MachineDies, next);
        }
        if !node.on {
            let mut next = *s;
            next.nodes[n].on = true;
            self.push(What::MachineReturns, next, None);
        }
        self.operator();
        if node.on && s.can(Fault::LedgerLost) {
            let mut next = s.spend(Fault::LedgerLost);
            let ctl = node.ctl;
            next.nodes[n].forget_record();
            let lost = &mut next.nodes[n];
            (lost.ctl, lost.memory, lost.settled, lost.proved) = (ctl, false, false, 0);
            self.push(What::LedgerLost, next, None);
        }
    }

    fn goes_down(&mut self, what: What, mut next: State) {
        let node = &mut next.nodes[self.n];
        node.svc = Svc::Down;
        node.forget_attempt();
        node.rec_old = node.rec != Rec::None;
        self.push(what, next, None);
    }

    fn operator(&mut self) {
        let (n, s) = (self.n, self.s);
        let node = s.nodes[n];
        let holds = s.holds.iter().any(|group| group[n].is != HoldIs::None);
        let between = node.on && node.rec == Rec::None && node.pc == Pc::None;
        let lost = between && holds && self.real.leftovers(s, n) == Answer::Wait;
        if holds
            && self.has_store()
            && (!node.on || lost)
            && let Answer::Written { holds, spec } = self.real.release_dead(s, n)
        {
            let mut next = *s;
            (next.holds, next.spec) = (holds, spec);
            let mask: u16 = (0..GROUPS).map(|g| 1 << (g * NODES + n)).sum();
            next.nodes.iter_mut().for_each(|node| node.touched &= !mask);
            let node = &mut next.nodes[n];
            (node.dead, node.ghost, node.ctl) = (true, true, false);
            self.push(What::DeclaredDead, next, None);
        }
        if self.is(Mutant::OperatorFreesArmed) && holds && node.on {
            let mut next = *s;
            next.holds.iter_mut().for_each(|group| group[n] = Held::default());
            self.push(What::OperatorFrees, next, None);
        }
        // A claim can be taken away at any time: its holder will not arm.
        let claimed = s.holds.iter().all(|group| matches!(group[n].is, HoldIs::Claimed | HoldIs::None));
        if holds && claimed && node.on && s.can(Fault::StepFails) {
            let mut next = s.spend(Fault::StepFails);
            next.holds.iter_mut().for_each(|group| group[n] = Held::default());
            self.push(What::OperatorFrees, next, None);
        }
        if node.on && node.dead && self.has_store() {
            let mut next = *s;
            next.nodes[n].dead = false;
            self.push(What::Admitted, next, None);
        }
    }

    fn everywhere(&mut self) {
        let s = self.s;
        if s.published < self.real.config.last {
            let mut next = *s;
            next.published += 1;
            self.push(What::Publishes, next, None);
        }
        if s.store_down {
            self.push(What::StoreComes, State { store_down: false, ..*s }, None);
        } else if s.can(Fault::StoreFlips) {
            self.push(What::StoreGoes, State { store_down: true, ..s.spend(Fault::StoreFlips) }, None);
        }
        if s.frozen {
            self.push(What::Unfrozen, State { frozen: false, ..*s }, None);
        } else if s.can(Fault::Freeze) {
            self.push(What::Frozen, State { frozen: true, ..s.spend(Fault::Freeze) }, None);
        }
        if s.can(Fault::Snapshot) && !s.snapped {
            let mut next = s.spend(Fault::Snapshot);
            (next.snapped, next.snap) = (true, s.holds);
            next.snap_dead = (0..NODES).fold(0, |mask, n| mask | u8::from(s.nodes[n].dead) << n);
            self.push(What::Snapshot, next, None);
        }
        // Every node looks at the store at each wake: since the snapshot all of them have.
        let mut on = s.nodes[..self.real.config.nodes].iter().filter(|node| node.on);
        if s.snapped && !s.restored && on.all(|node| node.looked) {
            let mut next = *s;
            (next.restored, next.holds, next.snap) = (true, s.snap, Default::default());
            for (n, node) in next.nodes[..self.real.config.nodes].iter_mut().enumerate() {
                (node.replaced, node.dead, node.looked) = (true, s.snap_dead >> n & 1 == 1, false);
                // The store was away meanwhile.
                if matches!(node.pc, Pc::Claiming | Pc::Claimed | Pc::Arming | Pc::Armed | Pc::Retargeting) {
                    node.forget_attempt();
                }
            }
            (next.snapped, next.snap_dead) = (false, 0);
            self.push(What::Restored, next, None);
        }
    }
}

/// What follows by itself.
fn tidy(config: &Config, state: &mut State) {
    let up = (0..config.nodes).filter(|n| state.nodes[*n].svc == Svc::Up).fold(0u8, |mask, n| mask | 1 << n);
    for node in &mut state.nodes[..config.nodes] {
        node.away &= !up;
        if !matches!(node.pc, Pc::Claiming | Pc::Arming | Pc::Retargeting) {
            node.touched = 0;
        }
        if node.pc != Pc::Claiming {
            node.counted = [0; GROUPS];
        }
        if !config.lagging && node.on && node.pc == Pc::None {
            node.target = state.published;
        }
        if node.target == node.live {
            node.passed = 0;
        }
    }
    if config.ordered && up >> state.leader & 1 == 0 && up != 0 {
        state.leader = up.trailing_zeros() as u8;
    }
}
