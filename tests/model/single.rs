//! What can happen next to a singleton: a step of a candidate's agent, which asks the real functions, of its systemd, of a
//! message, or a tick of all clocks.
//!
//! The order of an agent's steps is that of `singletons::post` and `host::guard`. An agent that is frozen takes no step, one
//! that is cut off gets no answer: both for any time. Only systemd is on time. Never: a rule of who may run it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::time::Duration;

use converger::lock::keys::Keys;
use converger::lock::singleton::{
    self, Holder, Known, Lease, Move, Running, Seen as RealSeen, Sight, Singleton, View, Wish, decide,
};
use converger::lock::store::{Entry, Outcome};

use super::candidates::{
    CANDIDATES, Candidate, Fate, Grant, Late, Look, Packed, Pc, Revision, Says, Seen, State, Unit,
};
use super::mutants::Mutant;
use super::search::{AsItIs, Next, World, hash};
use super::state::NODES;

/// In ticks: it runs for 4, is stopped within 2, and the margin is 2.
const LEASE: u64 = 6;
const STOP_MAX: u8 = 2;
/// The lease, its margin, and a look.
const AGAIN_WITHIN: u8 = 9;
/// Nobody waits longer for it.
const NEVER: u8 = 40;

#[derive(Clone)]
pub struct Config {
    pub name: &'static str,
    pub candidates: usize,
    /// Ticks for which machines may be paused.
    pub pauses: u8,
    /// The repository moves it, agents die, machines boot, somebody deletes the key.
    pub faults: &'static [Fault],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Moves,
    AgentDies,
    Reboots,
    KeyDeleted,
}

pub fn all() -> Vec<Config> {
    use Fault::{AgentDies, KeyDeleted, Moves, Reboots};
    let two = Config { name: "single", candidates: 2, pauses: 0, faults: &[] };
    vec![
        Config { faults: &[AgentDies, Reboots], ..two.clone() },
        Config { name: "single paused", pauses: 1, faults: &[AgentDies], ..two.clone() },
        Config { name: "single moved", faults: &[Moves], ..two.clone() },
        Config { name: "single deleted", faults: &[KeyDeleted], ..two },
    ]
}

pub struct Single {
    config: Config,
    mutant: Option<Mutant>,
    /// How many ticks without faults until one runs it, by state at the beginning of a tick.
    calm: HashMap<u64, u8, BuildHasherDefault<AsItIs>>,
    /// Answers that are remembered: the functions are pure.
    valid: [bool; 8],
    commits: [[bool; 2]; 3],
    heard: RefCell<HashMap<Asked, Heard>>,
}

impl Single {
    pub fn new(config: &Config, mutant: Option<Mutant>) -> Self {
        let lease_secs = lease_secs(mutant);
        let bases = [Revision::None, Revision::Now, Revision::Old];
        Self {
            config: config.clone(),
            mutant,
            calm: HashMap::default(),
            valid: std::array::from_fn(|age| is_valid(lease_secs, age as u64)),
            commits: bases.map(|base| [false, true].map(|there| committed(base, there))),
            heard: RefCell::default(),
        }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn can(&self, fault: Fault) -> bool {
        self.config.faults.contains(&fault)
    }

    fn is_valid(&self, age: u8) -> bool {
        self.valid[usize::from(age)]
    }

    fn base(&self, node: &Candidate) -> Revision {
        base(node.mine, node.seen.map(|seen| seen.at))
    }

    /// Whether a write on this base happens.
    fn commits(&self, base: Revision, s: &State) -> bool {
        self.commits[base as usize][usize::from(s.there)]
    }

    fn oldest(&self) -> u8 {
        Lease::of_secs(lease_secs(self.mutant)).runs_for().as_secs() as u8
    }
}

/// What a node's own times are made from.
fn lease_secs(mutant: Option<Mutant>) -> u64 {
    if mutant == Some(Mutant::SingleWholeLease) { LEASE * 3 / 2 } else { LEASE }
}

fn is_valid(lease_secs: u64, age: u64) -> bool {
    let (unit, cluster) = ("beat.service".into(), "app".into());
    let singleton = Singleton { unit, cluster, lease_secs, stop_secs_max: STOP_MAX.into() };
    singleton::Grant { singleton, revision: 0, mark: String::new(), sent_ms: (NOW - age) * 1000 }.is_valid(secs(NOW))
}

/// Awake time of every question.
const NOW: u64 = 1000;
const SEEN_MAX: u8 = 8;
const KEY: &str = "single/app/beat.service";
/// The revision of the key, and of whatever it was before.
const REVISION: i64 = 50;
const BEFORE: i64 = 40;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ago(age: u8) -> Duration {
    secs(NOW - u64::from(age))
}

fn number(at: Revision) -> i64 {
    match at {
        Revision::None => 0,
        Revision::Now => REVISION,
        Revision::Old => BEFORE,
    }
}

fn holder(mark: &str, free: bool) -> Holder {
    let since = jiff::Timestamp::UNIX_EPOCH;
    Holder { node: "n1".into(), mark: mark.into(), free, nobodys: false, lease_secs: LEASE, since }
}

fn entry(free: bool) -> Entry {
    let value = serde_json::to_vec(&holder("m", free)).unwrap();
    Entry { key: KEY.into(), value, create_revision: 1, mod_revision: REVISION }
}

type Asked = (Look, Option<(u8, bool)>, bool, Option<(u8, bool)>);
type Heard = (Option<u8>, Sight, Option<(u8, bool)>);

/// How long ago a write was sent that the key shows; what the key says; since when it says so.
fn look_at(node: &Candidate, look: Look) -> Heard {
    let entry = look.there.then(|| entry(look.free));
    let mut knows = known(node, look);
    let age = |then: Duration| (secs(NOW) - then).as_secs() as u8;
    let found = knows.find(entry.as_ref()).map(age);
    let sight = knows.look(entry.as_ref(), secs(NOW));
    (found, sight, knows.seen.map(|seen| (age(seen.since), seen.freed)))
}

/// Whether a write on this base happens.
fn committed(base: Revision, there: bool) -> bool {
    let mut keys = Keys { revision: REVISION, ..Keys::default() };
    if there {
        keys.entries.insert(KEY.into(), entry(false));
    }
    let transaction = singleton::write(KEY.into(), number(base), &holder("n", false), []);
    matches!(keys.commit(&transaction).0, Outcome::Committed(_))
}

/// What the node knows, in numbers that compare as the read found it.
fn known(node: &Candidate, look: Look) -> Known {
    let shown = if look.there { REVISION } else { 0 };
    let mark = |same: bool| if same { "m".to_owned() } else { "x".to_owned() };
    Known {
        seen: node.seen.map(|seen| RealSeen {
            revision: if look.same { shown } else { BEFORE },
            since: ago(seen.age),
            freed: seen.freed,
        }),
        mine: node.mine.map(|_| (if look.mine { REVISION } else { BEFORE }, mark(look.mine))),
        unsure: node.unsure.map(|(age, _)| (mark(look.found), ago(age))),
    }
}

/// The base of a node's next write, by its last one and by what it saw.
fn base(mine: Option<Revision>, seen: Option<Revision>) -> Revision {
    let seen = seen.map(|at| RealSeen { revision: number(at), since: secs(0), freed: false });
    let known = Known { seen, mine: mine.map(|at| (number(at), String::new())), unsure: None };
    match known.base() {
        REVISION => Revision::Now,
        0 => Revision::None,
        _ => Revision::Old,
    }
}

struct At<'a> {
    world: &'a Single,
    s: &'a State,
    n: usize,
    out: &'a mut Vec<Next<State>>,
}

impl At<'_> {
    fn is(&self, mutant: Mutant) -> bool {
        self.world.is(mutant)
    }

    fn push(&mut self, words: &'static str, mut state: State) {
        state.tidy();
        if state != *self.s {
            self.out.push(Next { node: Some(self.n as u8), words, state, wrong: None });
        }
    }

    fn with(&mut self, words: &'static str, change: impl FnOnce(&mut Candidate)) {
        let mut next = *self.s;
        change(&mut next.nodes[self.n]);
        self.push(words, next);
    }

    /// Only what an agent does by itself, with a store that answers.
    fn agent(&mut self) {
        let (n, s) = (self.n, self.s);
        let node = s.nodes[n];
        match node.pc {
            Pc::Idle if node.posted => self.reads(),
            Pc::Idle => {}
            Pc::Read(look) => self.looks(look),
            Pc::Writes(says) => {
                let pc = Pc::Sent { age: 0, base: self.world.base(&node), says, fate: Fate::Flies };
                self.with("writes the key", |node| node.pc = pc);
            }
            Pc::Sent { age, base, says, fate: Fate::Flies } => {
                let mut next = *s;
                let blindly = self.is(Mutant::SingleTakenBlindly);
                let done = blindly || self.world.commits(base, s);
                if done {
                    written(self.world, &mut next, n, says);
                }
                let fate = if done { Fate::Committed(Revision::Now) } else { Fate::Refused };
                next.nodes[n].pc = Pc::Sent { age, base, says, fate };
                self.push(if done { "has written the key" } else { "is refused by the store" }, next);
            }
            Pc::Sent { age, says, fate, .. } => self.hears(age, says, fate),
            Pc::Arms { age } if self.world.is_valid(age) => {
                let grant = Grant { age, written: node.mine.unwrap_or_default(), timer: true };
                if self.is(Mutant::SingleLinkFirst) {
                    return self.with("may start its unit, and has no timer yet", |node| {
                        (node.grant, node.fresh) = (Some(Grant { timer: false, ..grant }), Some(grant));
                        (node.link, node.pc) = (true, Pc::Links);
                    });
                }
                self.with("sets the timer", |node| (node.fresh, node.pc) = (Some(grant), Pc::Links));
            }
            Pc::Arms { .. } => self.with("hears too late", |node| node.pc = Pc::Idle),
            Pc::Links => self.with("has the singleton until its timer", |node| {
                let is_new = !node.granted;
                (node.grant, node.fresh) = (node.fresh, None);
                (node.link, node.granted) = (node.grant.is_some(), node.grant.is_some());
                node.pc = if is_new { Pc::Starts } else { Pc::Idle };
            }),
            Pc::Starts if self.is(Mutant::SingleAgentChecks) => {
                let may = node.granted && node.grant.is_some();
                self.with("looks whether it may start", |node| node.pc = if may { Pc::Checked } else { Pc::Idle });
            }
            Pc::Starts => self.with("starts its unit", |node| {
                node.start();
                node.pc = Pc::Idle;
            }),
            Pc::Checked => self.with("starts its unit, which it has looked at", |node| {
                if node.unit == Unit::Down {
                    node.unit = Unit::Runs;
                }
                node.pc = Pc::Idle;
            }),
            Pc::Frees { over } => self.with("takes its grant away", |node| {
                (node.link, node.granted, node.pc) = (false, false, Pc::Barred { over });
            }),
            Pc::Barred { .. } if node.unit != Unit::Down && !self.frees_what_runs() => {
                self.with("finds its unit started meanwhile, and keeps the key", |node| node.pc = Pc::Idle);
            }
            Pc::Barred { over } => {
                let write = node.mine.is_some();
                let words = if write { "ends its timer, and gives the key away" } else { "ends its timer" };
                self.with(words, |node| {
                    node.grant = None;
                    if write {
                        node.pc = Pc::Writes(Says::Free { over });
                    } else {
                        node.has_freed(over);
                    }
                });
            }
        }
    }

    fn frees_what_runs(&self) -> bool {
        self.is(Mutant::SingleFreedFirst) || self.is(Mutant::SingleNoSecondLook)
    }

    fn reads(&mut self) {
        let (n, s) = (self.n, self.s);
        let node = s.nodes[n];
        let is_it = |at: Revision| if s.there { at == Revision::Now } else { at == Revision::None };
        let look = Look {
            there: s.there,
            free: s.there && s.free,
            found: s.there && node.unsure.is_some_and(|(_, shown)| shown),
            mine: s.there && node.mine == Some(Revision::Now),
            same: node.seen.is_some_and(|seen| is_it(seen.at)),
            named: usize::from(s.named) == n + 1,
            is_now: s.there,
        };
        self.with("reads the key", |node| node.pc = Pc::Read(look));
    }

    fn looks(&mut self, look: Look) {
        let mut next = *self.s;
        let node = &mut next.nodes[self.n];
        let at = match look {
            Look { there: false, .. } => Revision::None,
            Look { is_now: true, .. } => Revision::Now,
            _ => Revision::Old,
        };
        let asked = (look, node.seen.map(|seen| (seen.age, seen.freed)), node.mine.is_some(), node.unsure);
        let heard = self.world.heard.borrow().get(&asked).copied();
        let (found, sight, seen) = heard.unwrap_or_else(|| {
            let answer = look_at(node, look);
            self.world.heard.borrow_mut().insert(asked, answer);
            answer
        });
        node.unsure = None;
        if let Some(age) = found {
            (node.mine, node.pc) = (Some(at), Pc::Arms { age });
            return self.push("finds its own write", next);
        }
        if self.is(Mutant::SingleOwnName) && look.named && !look.free {
            (node.mine, node.pc) = (Some(at), Pc::Arms { age: 0 });
            return self.push("finds its own name", next);
        }
        if sight != Sight::Mine {
            node.mine = None;
            node.seen = seen.map(|(age, freed)| Seen { at, age, freed });
        }
        self.decides(next, sight);
    }

    fn decides(&mut self, mut next: State, sight: Sight) {
        let node = next.nodes[self.n];
        let sight = match sight {
            Sight::Other(unchanged) if self.is(Mutant::SingleNoMargin) => {
                Sight::Other(unchanged + Lease::of_secs(LEASE).margin())
            }
            Sight::Missing if self.is(Mutant::SingleMissingIsFree) => Sight::Freed,
            sight => sight,
        };
        let wish = match (node.told, node.wants) {
            (false, _) => Wish::Keep,
            (true, true) => Wish::Run,
            (true, false) => Wish::Leave,
        };
        let early = self.is(Mutant::SingleFreedFirst) && wish == Wish::Leave && node.unit == Unit::Runs;
        // For how long it was down is kept by nobody here: it may be long.
        let units: &[Running] = match node.unit {
            _ if early => &[Running::Down(Duration::ZERO)],
            Unit::Down => &[Running::Down(Duration::ZERO), Running::Down(Duration::from_secs(LEASE))],
            Unit::Runs => &[Running::Runs],
            Unit::Stops(_) => &[Running::Stops],
        };
        let granted = node.grant.filter(|_| node.granted).map(|grant| secs(grant.age.into()));
        let mut moves = Vec::new();
        for unit in units {
            let lease = Lease::of_secs(lease_secs(self.world.mutant));
            let view = View { lease, longest: Lease::of_secs(LEASE), sight, granted, unit: *unit, wish };
            next.nodes[self.n].granted = node.granted && view.is_granted();
            let made = decide(&view);
            if !moves.contains(&made) {
                moves.push(made);
                self.moves(next, made);
            }
        }
    }

    fn moves(&mut self, mut next: State, made: Move) {
        let node = &mut next.nodes[self.n];
        let (words, pc) = match made {
            Move::Renew => ("sees that it has the key", Pc::Writes(Says::Held)),
            Move::Take => ("sees that nobody has the key", Pc::Writes(Says::Held)),
            Move::Announce => ("sees no key", Pc::Writes(Says::Nobodys)),
            Move::Stop => {
                node.stop();
                ("stops its unit", Pc::Idle)
            }
            Move::Free => ("sees its unit down for long", Pc::Frees { over: false }),
            Move::Drop => ("sees that its unit does not run", Pc::Frees { over: true }),
            Move::Rest => ("sees nothing to do", Pc::Idle),
        };
        node.pc = pc;
        self.push(words, next);
    }

    /// The answer to its write.
    fn hears(&mut self, age: u8, says: Says, fate: Fate) {
        self.with("hears what became of its write", |node| match (says, fate) {
            (Says::Free { over }, _) => node.has_freed(over),
            (Says::Nobodys, _) => node.has_freed(false),
            (Says::Held, Fate::Committed(at)) => {
                node.mine = Some(at);
                node.pc = Pc::Arms { age };
            }
            (Says::Held, _) => node.pc = Pc::Idle,
        });
        if self.is(Mutant::SingleFromReceiving)
            && let Some(last) = self.out.last_mut()
            && let Pc::Arms { age } = &mut last.state.nodes[self.n].pc
        {
            *age = 0;
        }
    }

    /// What nobody controls.
    fn faults(&mut self) {
        let (n, s) = (self.n, self.s);
        let node = s.nodes[n];
        if node.pc == Pc::Idle && node.posted {
            self.decides(*s, Sight::Unknown);
        }
        if let Pc::Sent { age, base, says, fate } = node.pc {
            self.with("gets no answer", |node| {
                node.gives_up(base, says, fate);
                match says {
                    Says::Held => node.unsure = (fate != Fate::Refused).then_some((age, fate != Fate::Flies)),
                    Says::Free { over } => node.has_freed(over),
                    Says::Nobodys => node.has_freed(false),
                }
                node.pc = Pc::Idle;
                if fate == Fate::Committed(Revision::Old) {
                    node.unsure = None;
                }
            });
        }
        if let Pc::Arms { .. } = node.pc {
            self.with("cannot set its timer", |node| {
                if !node.granted {
                    (node.mine, node.seen) = (None, None);
                }
                node.pc = Pc::Idle;
            });
        }
        if let Some(late) = node.late {
            let mut next = *s;
            next.nodes[n].late = None;
            if self.world.commits(late.base, s) {
                written(self.world, &mut next, n, late.says);
                if let (Some((_, shown)), Says::Held) = (&mut next.nodes[n].unsure, late.says) {
                    *shown = true;
                }
                self.push("a late write of its arrives", next);
            }
        }
        if !node.told {
            self.with("is told what the repository wants", Candidate::hears_wish);
        }
        if self.world.can(Fault::Moves) {
            self.with("learns that the unit moves", |node| {
                node.wants = !node.wants;
                if node.told {
                    node.hears_wish();
                }
            });
        }
        if node.unit == Unit::Runs {
            self.with("its unit ends", |node| node.unit = Unit::Down);
        }
        if let Unit::Stops(_) = node.unit {
            self.with("its unit has stopped", |node| node.unit = Unit::Down);
        }
        if node.unit == Unit::Down {
            self.with("somebody starts its unit", Candidate::start);
        }
        if self.world.can(Fault::AgentDies) {
            self.with("its agent dies, and another one starts", |node| node.replace_agent());
        }
        if self.world.can(Fault::Reboots) {
            let enabled = self.is(Mutant::SingleEnabled);
            self.with("boots", |node| {
                node.replace_agent();
                let unit = if enabled { Unit::Runs } else { Unit::Down };
                *node = Candidate { unit, wants: node.wants, late: node.late, ..Candidate::default() };
            });
        }
        if self.is(Mutant::SingleAgentStops) && node.grant.is_some_and(|grant| !self.world.is_valid(grant.age)) {
            self.with("ends what it may not run any longer", Candidate::expire);
        }
    }
}

/// A write of this node's changes the key.
fn written(world: &Single, s: &mut State, n: usize, says: Says) {
    s.overwrite();
    (s.there, s.free) = (true, matches!(says, Says::Free { .. }));
    if world.is(Mutant::SingleOwnName) {
        s.named = n as u8 + 1;
    }
}

impl Candidate {
    /// systemd looks whether the condition is met.
    fn start(&mut self) {
        if self.link && self.unit == Unit::Down {
            self.unit = Unit::Runs;
        }
    }

    fn stop(&mut self) {
        if self.unit == Unit::Runs {
            self.unit = Unit::Stops(STOP_MAX);
        }
    }

    /// The timer of its grant runs out.
    fn expire(&mut self) {
        (self.grant, self.link, self.granted) = (None, false, false);
        self.stop();
    }

    fn has_freed(&mut self, over: bool) {
        (self.mine, self.seen, self.pc) = (None, None, Pc::Idle);
        if over {
            (self.posted, self.unsure) = (false, None);
            if self.told {
                self.hears_wish();
            }
        }
    }

    fn hears_wish(&mut self) {
        self.told = true;
        self.posted |= self.wants;
    }

    fn gives_up(&mut self, base: Revision, says: Says, fate: Fate) {
        if fate == Fate::Flies {
            self.late = Some(Late { base, says });
        }
    }

    /// The next agent finds what is in /run.
    fn replace_agent(&mut self) {
        if let Pc::Sent { base, says, fate, .. } = self.pc {
            self.gives_up(base, says, fate);
        }
        let resumed = self.grant.filter(|_| self.link);
        (self.fresh, self.seen, self.unsure, self.pc) = (None, None, None, Pc::Idle);
        (self.mine, self.granted) = (resumed.map(|grant| grant.written), resumed.is_some());
        (self.posted, self.told) = (resumed.is_some(), false);
    }

    /// A tick of its clock.
    fn tick(&mut self, world: &Single) {
        let oldest = world.oldest();
        let older = |age: &mut u8| *age = (*age + 1).min(oldest);
        self.seen.iter_mut().for_each(|seen| seen.age = (seen.age + 1).min(SEEN_MAX));
        self.unsure.iter_mut().for_each(|(age, _)| older(age));
        if let Pc::Sent { age, .. } | Pc::Arms { age } = &mut self.pc {
            older(age);
        }
        self.unit = match self.unit {
            Unit::Stops(1) => Unit::Down,
            Unit::Stops(ticks) => Unit::Stops(ticks - 1),
            unit => unit,
        };
        self.grant.iter_mut().chain(&mut self.fresh).for_each(|grant| older(&mut grant.age));
        if self.grant.is_some_and(|grant| grant.timer && !world.is_valid(grant.age))
            && !world.is(Mutant::SingleAgentStops)
        {
            self.expire();
        }
        if self.fresh.is_some_and(|grant| !world.is_valid(grant.age)) {
            self.fresh = None;
            self.stop();
        }
    }
}

impl Single {
    fn tick(&self, s: &State, paused: Option<usize>) -> State {
        let mut next = *s;
        for (n, node) in next.nodes[..self.config.candidates].iter_mut().enumerate() {
            if paused != Some(n) {
                node.tick(self);
            }
        }
        next.pauses -= u8::from(paused.is_some());
        next.tidy();
        next
    }

    fn is_well(&self, s: &State) -> bool {
        let runs = |node: &Candidate| node.unit == Unit::Runs && node.granted && node.told && node.wants;
        s.nodes.iter().any(runs)
    }

    /// One tick in which nothing goes wrong and every agent comes to its turn.
    fn calm_tick(&self, s: &State) -> State {
        let mut now = *s;
        for n in 0..self.config.candidates {
            if let Some(late) = now.nodes[n].late.take()
                && self.commits(late.base, &now)
            {
                written(self, &mut now, n, late.says);
            }
            now.tidy();
            now.nodes[n].hears_wish();
            let mut out = Vec::new();
            // What it was in the middle of, and a whole round.
            for _ in 0..2 {
                loop {
                    out.clear();
                    At { world: self, s: &now, n, out: &mut out }.agent();
                    // Of a unit that is down, the first is that it is not so for long.
                    let Some(next) = out.first() else { break };
                    now = next.state;
                    if now.nodes[n].pc == Pc::Idle {
                        break;
                    }
                }
            }
            // A run of the agent's mends it.
            if now.nodes[n].granted {
                now.nodes[n].start();
            }
        }
        if self.is_well(&now) { now } else { self.tick(&now, None) }
    }

    /// How many ticks without faults until one runs it.
    fn again_within(&mut self, s: &State) -> u8 {
        let mut way = Vec::new();
        let mut now = *s;
        let (mut ticks, mut whole) = loop {
            if self.is_well(&now) {
                break (0, false);
            }
            let state = hash(&now.pack());
            if let Some(known) = self.calm.get(&state) {
                break (*known, true);
            }
            way.push(state);
            if way.len() > usize::from(NEVER) {
                break (NEVER, false);
            }
            now = self.calm_tick(&now);
        };
        for state in way.into_iter().rev() {
            ticks += u8::from(whole);
            whole = true;
            self.calm.insert(state, ticks);
        }
        ticks
    }
}

impl World for Single {
    type State = State;
    type Packed = Packed;

    fn starts(&self) -> Vec<State> {
        let mut state = State { pauses: self.config.pauses, ..State::default() };
        for (n, node) in state.nodes[..self.config.candidates].iter_mut().enumerate() {
            node.wants = n == 0 || !self.can(Fault::Moves);
            node.hears_wish();
        }
        vec![state]
    }

    fn next(&mut self, s: &State, out: &mut Vec<Next<State>>) {
        for n in 0..self.config.candidates {
            let mut at = At { world: self, s, n, out };
            at.agent();
            at.faults();
            if s.pauses > 0 {
                out.push(Next {
                    node: Some(n as u8),
                    words: "is paused for a tick",
                    state: self.tick(s, Some(n)),
                    wrong: None,
                });
            }
        }
        let mut everybody = |words, state: State| out.push(Next { node: None, words, state, wrong: None });
        everybody("a tick", self.tick(s, None));
        if self.can(Fault::KeyDeleted) && s.there {
            let mut next = *s;
            next.overwrite();
            (next.there, next.free, next.named) = (false, false, 0);
            next.tidy();
            everybody("somebody deletes the key", next);
        }
    }

    fn broken(&mut self, s: &State) -> Option<&'static str> {
        if s.nodes.iter().filter(|node| node.unit != Unit::Down).count() > 1 {
            return Some("S10: two run it");
        }
        let somebody = s.nodes[..self.config.candidates].iter().any(|node| node.wants);
        if somebody && self.mutant.is_none() && self.again_within(s) > AGAIN_WITHIN {
            return Some("L: without faults nobody runs it within its lease, its margin and a look");
        }
        None
    }

    fn is_over(&self, _: &State) -> bool {
        true
    }

    fn ends(&self) -> bool {
        false
    }

    fn sorted(&self, s: &State) -> (State, [usize; NODES]) {
        let (state, order) = s.sorted(self.config.candidates);
        (state, std::array::from_fn(|n| if n < CANDIDATES { order[n] } else { n }))
    }

    fn pack(s: &State) -> Packed {
        s.pack()
    }

    fn unpack(words: &Packed) -> State {
        State::unpack(words)
    }

    fn title(&self, _: &State) -> String {
        format!("(a lease of {LEASE} ticks)")
    }
}
