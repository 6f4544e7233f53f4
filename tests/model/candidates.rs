//! Candidates for one singleton: machines, their agents, and what is on its way to the store, packed into a few words.
//!
//! Times are ages in ticks of the clock that they are of; an age that decides nothing any more stands still. Revisions are
//! kept as what can be asked of them: is the key still as it was then. Nodes are sorted: they are all alike. Never: a number
//! that grows.

pub const CANDIDATES: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Unit {
    #[default]
    Down,
    Runs,
    /// For at most so many ticks.
    Stops(u8),
}

/// A revision of the key, as somebody remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Revision {
    /// There was no key.
    #[default]
    None,
    /// The key as it is.
    Now,
    /// It was written since.
    Old,
}

/// A grant on the machine's disk; its timer runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Grant {
    /// Since its write was sent.
    pub age: u8,
    pub written: Revision,
    pub timer: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    pub at: Revision,
    pub age: u8,
    pub freed: bool,
}

/// What a read found, compared with what its reader knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Look {
    pub there: bool,
    pub free: bool,
    /// It shows the write of which the reader does not know.
    pub found: bool,
    pub mine: bool,
    /// As the reader saw it last.
    pub same: bool,
    /// With the reader's name in it.
    pub named: bool,
    pub is_now: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says {
    Held,
    /// And whether the post is over then.
    Free {
        over: bool,
    },
    Nobodys,
}

/// Of a write that was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Flies,
    Refused,
    Committed(Revision),
}

/// Where an agent is inside one round.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pc {
    #[default]
    Idle,
    Read(Look),
    /// About to write the key.
    Writes(Says),
    Sent {
        age: u8,
        base: Revision,
        says: Says,
        fate: Fate,
    },
    /// Its write counts, when its timer is set.
    Arms {
        age: u8,
    },
    /// Its timer is set, and the link leads to the grant before.
    Links,
    Starts,
    /// It has looked whether it may start.
    Checked,
    /// About to take the grant away.
    Frees {
        over: bool,
    },
    /// No start is possible any more.
    Barred {
        over: bool,
    },
}

impl Pc {
    fn has_found(self) -> bool {
        matches!(self, Self::Read(Look { found: true, .. }))
    }
}

/// A write whose sender waits no longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Late {
    pub base: Revision,
    pub says: Says,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Candidate {
    pub unit: Unit,
    /// systemd's condition leads to `grant`.
    pub link: bool,
    pub grant: Option<Grant>,
    /// One whose timer is set, before the link leads to it.
    pub fresh: Option<Grant>,
    pub posted: bool,
    /// A run of this agent has said what the repository wants.
    pub told: bool,
    pub wants: bool,
    /// The agent counts with `grant`.
    pub granted: bool,
    pub seen: Option<Seen>,
    pub mine: Option<Revision>,
    /// A write of which it does not know: how long ago it was sent, and whether the key shows it.
    pub unsure: Option<(u8, bool)>,
    pub pc: Pc,
    pub late: Option<Late>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State {
    pub nodes: [Candidate; CANDIDATES],
    pub there: bool,
    pub free: bool,
    /// Whose name is in the key, where it is asked for, and one more.
    pub named: u8,
    /// Ticks for which machines may still be paused.
    pub pauses: u8,
}

impl State {
    /// The key has another revision from here on.
    pub fn overwrite(&mut self) {
        let old = |at: &mut Revision| {
            if *at == Revision::Now {
                *at = Revision::Old;
            }
        };
        for node in &mut self.nodes {
            node.grant.iter_mut().chain(&mut node.fresh).for_each(|grant| old(&mut grant.written));
            node.seen.iter_mut().for_each(|seen| old(&mut seen.at));
            node.mine.iter_mut().for_each(old);
            node.late.iter_mut().for_each(|late| old(&mut late.base));
            node.unsure = node.unsure.filter(|(_, shown)| !shown || node.pc.has_found());
            match &mut node.pc {
                Pc::Read(look) => look.is_now = false,
                Pc::Sent { base, fate, .. } => {
                    old(base);
                    if let Fate::Committed(at) = fate {
                        old(at);
                    }
                }
                _ => {}
            }
        }
    }

    /// Nothing that decides nothing any more.
    pub fn tidy(&mut self) {
        let there = self.there;
        for node in &mut self.nodes {
            let read = matches!(node.pc, Pc::Read(Look { same: true, .. }));
            if let Some(seen) = &mut node.seen
                && !read
                && seen.at == Revision::Old
            {
                (seen.age, seen.freed) = (0, false);
            }
            // What can never be true again is as good as lost.
            if node.late.is_some_and(|late| late.base == Revision::Old) {
                node.late = None;
            }
            let lost = node.late.is_none_or(|late| late.says != Says::Held);
            let found = node.pc.has_found();
            node.unsure = node.unsure.filter(|(_, shown)| found || *shown && there || !shown && !lost);
        }
    }
}

pub type Packed = [u64; CANDIDATES + 1];

struct Bits(u64, u32);

impl Bits {
    fn put(&mut self, value: u8, width: u32) -> &mut Self {
        debug_assert!(u32::from(value) < 1 << width);
        self.0 |= u64::from(value) << self.1;
        self.1 += width;
        self
    }

    fn flag(&mut self, flag: bool) -> &mut Self {
        self.put(flag.into(), 1)
    }

    fn take(&mut self, width: u32) -> u8 {
        let value = self.0 & ((1 << width) - 1);
        self.0 >>= width;
        value as u8
    }

    fn was(&mut self) -> bool {
        self.take(1) == 1
    }

    fn put_grant(&mut self, grant: Option<Grant>) {
        let known = grant.unwrap_or_default();
        self.flag(grant.is_some()).put(known.age, 3).put(known.written as u8, 2).flag(known.timer);
    }

    fn grant(&mut self) -> Option<Grant> {
        let there = self.was();
        let grant = Grant { age: self.take(3), written: REVISIONS[self.take(2) as usize], timer: self.was() };
        there.then_some(grant)
    }
}

const REVISIONS: [Revision; 3] = [Revision::None, Revision::Now, Revision::Old];

const SAYS: [Says; 4] = [Says::Held, Says::Free { over: false }, Says::Free { over: true }, Says::Nobodys];

fn number(says: Says) -> u8 {
    SAYS.iter().position(|known| *known == says).unwrap_or(0) as u8
}

fn pack(node: &Candidate) -> u64 {
    let mut bits = Bits(0, 0);
    let unit = match node.unit {
        Unit::Down => 0,
        Unit::Runs => 1,
        Unit::Stops(ticks) => 1 + ticks,
    };
    bits.put(unit, 2).flag(node.link).flag(node.posted).flag(node.told).flag(node.wants).flag(node.granted);
    bits.put_grant(node.grant);
    bits.put_grant(node.fresh);
    let seen = node.seen.unwrap_or_default();
    bits.flag(node.seen.is_some()).put(seen.at as u8, 2).put(seen.age, 4).flag(seen.freed);
    bits.flag(node.mine.is_some()).put(node.mine.unwrap_or_default() as u8, 2);
    let (age, shown) = node.unsure.unwrap_or_default();
    bits.flag(node.unsure.is_some()).put(age, 3).flag(shown);
    let late = node.late.unwrap_or(Late { base: Revision::None, says: Says::Held });
    bits.flag(node.late.is_some()).put(late.base as u8, 2).put(number(late.says), 2);
    match node.pc {
        Pc::Idle => bits.put(0, 4),
        Pc::Read(look) => {
            let Look { there, free, found, mine, same, named, is_now } = look;
            bits.put(1, 4);
            [there, free, found, mine, same, named, is_now].into_iter().fold(&mut bits, Bits::flag)
        }
        Pc::Writes(says) => bits.put(2, 4).put(number(says), 2),
        Pc::Sent { age, base, says, fate } => {
            let (fate, at) = match fate {
                Fate::Flies => (0, Revision::None),
                Fate::Refused => (1, Revision::None),
                Fate::Committed(at) => (2, at),
            };
            bits.put(3, 4).put(age, 3).put(base as u8, 2).put(number(says), 2).put(fate, 2).put(at as u8, 2)
        }
        Pc::Arms { age } => bits.put(4, 4).put(age, 3),
        Pc::Links => bits.put(5, 4),
        Pc::Starts => bits.put(6, 4),
        Pc::Checked => bits.put(7, 4),
        Pc::Frees { over } => bits.put(8, 4).flag(over),
        Pc::Barred { over } => bits.put(9, 4).flag(over),
    };
    bits.0
}

fn unpack(word: u64) -> Candidate {
    let mut b = Bits(word, 0);
    let unit = match b.take(2) {
        0 => Unit::Down,
        1 => Unit::Runs,
        more => Unit::Stops(more - 1),
    };
    let [link, posted, told, wants, granted] = std::array::from_fn(|_| b.was());
    let (grant, fresh) = (b.grant(), b.grant());
    let (there, at) = (b.was(), REVISIONS[b.take(2) as usize]);
    let seen = Seen { at, age: b.take(4), freed: b.was() };
    let seen = there.then_some(seen);
    let (there, at) = (b.was(), REVISIONS[b.take(2) as usize]);
    let mine = there.then_some(at);
    let (there, age, shown) = (b.was(), b.take(3), b.was());
    let unsure = there.then_some((age, shown));
    let (there, base, says) = (b.was(), REVISIONS[b.take(2) as usize], SAYS[b.take(2) as usize]);
    let late = there.then_some(Late { base, says });
    let pc = match b.take(4) {
        0 => Pc::Idle,
        1 => {
            let [there, free, found, mine, same, named, is_now] = std::array::from_fn(|_| b.was());
            Pc::Read(Look { there, free, found, mine, same, named, is_now })
        }
        2 => Pc::Writes(SAYS[b.take(2) as usize]),
        3 => {
            let (age, base, says) = (b.take(3), REVISIONS[b.take(2) as usize], SAYS[b.take(2) as usize]);
            let (fate, at) = (b.take(2), REVISIONS[b.take(2) as usize]);
            let fate = [Fate::Flies, Fate::Refused, Fate::Committed(at)][fate as usize];
            Pc::Sent { age, base, says, fate }
        }
        4 => Pc::Arms { age: b.take(3) },
        5 => Pc::Links,
        6 => Pc::Starts,
        7 => Pc::Checked,
        8 => Pc::Frees { over: b.was() },
        _ => Pc::Barred { over: b.was() },
    };
    Candidate { unit, link, grant, fresh, posted, told, wants, granted, seen, mine, unsure, pc, late }
}

impl State {
    pub fn pack(&self) -> Packed {
        let mut bits = Bits(0, 0);
        bits.flag(self.there).flag(self.free).put(self.named, 2).put(self.pauses, 2);
        let mut words = [bits.0; CANDIDATES + 1];
        words.iter_mut().zip(&self.nodes).for_each(|(word, node)| *word = pack(node));
        words
    }

    pub fn unpack(words: &Packed) -> Self {
        let mut b = Bits(words[CANDIDATES], 0);
        let nodes = std::array::from_fn(|n| unpack(words[n]));
        Self { nodes, there: b.was(), free: b.was(), named: b.take(2), pauses: b.take(2) }
    }

    /// The same state with the first `alike` candidates in a fixed order, and that order.
    pub fn sorted(&self, alike: usize) -> (Self, [usize; CANDIDATES]) {
        let mut order: [usize; CANDIDATES] = std::array::from_fn(|n| n);
        order[..alike].sort_by_key(|n| (usize::from(self.named) == n + 1, pack(&self.nodes[*n])));
        let named = order.iter().position(|n| usize::from(self.named) == n + 1).map_or(0, |at| at as u8 + 1);
        (Self { nodes: order.map(|n| self.nodes[n]), named, ..*self }, order)
    }
}
