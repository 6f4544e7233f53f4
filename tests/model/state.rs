//! A state of the world: members, agents, the store's holds and what may still go wrong, packed into a few words.
//!
//! Revisions are kept as what can be asked of them: is this hold the one I made (small tokens), was it written since I read
//! (`touched`). Nodes are sorted, where the configuration treats them alike. Never: a name, a time, or a number that grows.

pub const NODES: usize = 5;
pub const GROUPS: usize = 2;
pub const WORDS: usize = NODES + 3;

/// How the unit of a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Svc {
    #[default]
    Up,
    /// It runs, and its gate says no.
    Sick,
    Down,
}

/// Where the agent is inside one run; none of it survives the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Pc {
    #[default]
    None,
    Claiming,
    Claimed,
    Arming,
    Armed,
    /// Recorded, about to stop.
    Acting,
    Stopped,
    Swapped,
    /// About to write another commit into its own holds.
    Retargeting,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Rec {
    #[default]
    None,
    Acting,
    Repairing,
    Settling,
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum HoldIs {
    #[default]
    None,
    Claimed,
    Armed,
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    pub is: HoldIs,
    pub lane: u8,
    pub commit: u8,
    /// Stands for the revision at which it was created.
    pub token: u8,
}

/// A hold as its maker remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mine {
    pub there: bool,
    pub lane: u8,
    pub token: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Node {
    pub svc: Svc,
    /// What its environment does to every start, until the version changes.
    pub brk: Svc,
    /// Taken away by converger, and not yet seen healthy.
    pub ctl: bool,
    /// The ledger says that the unit was once healthy here for its settle time.
    pub settled: bool,
    /// The ledger knows units at all.
    pub memory: bool,
    pub on: bool,
    pub dead: bool,
    /// Declared dead while it had this version.
    pub ghost: bool,
    pub live: u8,
    pub target: u8,
    /// The last commit that settled under a hold, and one more.
    pub proved: u8,
    pub pc: Pc,
    /// Allowed to go because it is down already.
    pub down: bool,
    /// The lanes that were judged free.
    pub lanes: [u8; GROUPS],
    pub rec: Rec,
    pub rec_commit: u8,
    /// The record is of an earlier boot.
    pub rec_old: bool,
    pub mine: [Mine; GROUPS],
    /// Holds written since this node read, by group and node.
    pub touched: u16,
    /// Members that are away since before this node's claim.
    pub away: u8,
    /// It has looked at the store since the snapshot was taken.
    pub looked: bool,
    /// The store is older than what this node has seen.
    pub replaced: bool,
    /// Whose declarations it counted with: as `State::spec`.
    pub counted: [u8; GROUPS],
    /// The record says that several could hold its groups.
    pub rec_several: bool,
    /// How often others of its group claimed while it might have, where that is counted.
    pub passed: u8,
}

/// What may still happen, at most three times each.
pub const BUDGETS: usize = 12;
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Fault {
    AgentDies,
    Reboot,
    ServiceDies,
    EnvironmentBreaks,
    StoreFlips,
    AnswerLost,
    MachineDies,
    Freeze,
    LedgerLost,
    Snapshot,
    StepFails,
    Heals,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State {
    pub nodes: [Node; NODES],
    pub holds: [[Held; NODES]; GROUPS],
    pub snap: [[Held; NODES]; GROUPS],
    pub snap_dead: u8,
    pub snapped: bool,
    pub restored: bool,
    /// The commit whose declaration of each group is in force, and one more.
    pub spec: [u8; GROUPS],
    /// The newest commit of the branch.
    pub published: u8,
    /// What kind of version the doubtful commit is: good, bad, slowly bad.
    pub kind: u8,
    pub store_down: bool,
    pub frozen: bool,
    /// Who leads, where the configuration has a leader.
    pub leader: u8,
    pub left: [u8; BUDGETS],
}

impl Node {
    pub fn runs(&self) -> bool {
        self.svc != Svc::Down
    }

    pub fn forget_attempt(&mut self) {
        self.pc = Pc::None;
        self.down = false;
        self.lanes = [0; GROUPS];
        self.counted = [0; GROUPS];
        self.touched = 0;
        self.away = 0;
        if self.rec == Rec::None {
            self.mine = Default::default();
        }
    }

    pub fn forget_record(&mut self) {
        self.rec = Rec::None;
        self.rec_commit = 0;
        self.rec_old = false;
        self.rec_several = false;
        self.ctl = false;
        self.forget_attempt();
    }
}

struct Bits {
    word: u64,
    at: u32,
}

impl Bits {
    fn put(&mut self, value: u64, width: u32) -> &mut Self {
        debug_assert!(value < 1 << width);
        self.word |= value << self.at;
        self.at += width;
        self
    }

    fn take(&mut self, width: u32) -> u64 {
        let value = self.word & ((1 << width) - 1);
        self.word >>= width;
        value
    }

    fn flag(&mut self) -> bool {
        self.take(1) == 1
    }

    fn byte(&mut self, width: u32) -> u8 {
        self.take(width) as u8
    }
}

const SVC: [Svc; 3] = [Svc::Up, Svc::Sick, Svc::Down];
const PC: [Pc; 9] =
    [Pc::None, Pc::Claiming, Pc::Claimed, Pc::Arming, Pc::Armed, Pc::Acting, Pc::Stopped, Pc::Swapped, Pc::Retargeting];
const REC: [Rec; 5] = [Rec::None, Rec::Acting, Rec::Repairing, Rec::Settling, Rec::Failed];
const HOLD: [HoldIs; 4] = [HoldIs::None, HoldIs::Claimed, HoldIs::Armed, HoldIs::Failed];

fn pack_node(n: &Node) -> u64 {
    let mut bits = Bits { word: 0, at: 0 };
    bits.put(u64::from(n.touched), 10).put(u64::from(n.away), 5);
    for flag in [n.ctl, n.settled, n.memory, n.on, n.dead, n.ghost, n.down, n.rec_old, n.looked, n.replaced] {
        bits.put(u64::from(flag), 1);
    }
    bits.put(n.svc as u64, 2).put(n.brk as u64, 2).put(n.live.into(), 2).put(n.target.into(), 2);
    bits.put(n.proved.into(), 2).put(n.pc as u64, 4).put(n.rec as u64, 3).put(n.rec_commit.into(), 2);
    for (g, (mine, lane)) in n.mine.iter().zip(n.lanes).enumerate() {
        bits.put(n.counted[g].into(), 2);
        bits.put(mine.there.into(), 1).put(mine.lane.into(), 1).put(mine.token.into(), 2).put(lane.into(), 1);
    }
    bits.put(n.rec_several.into(), 1).put(n.passed.into(), 3);
    bits.word
}

fn unpack_node(word: u64) -> Node {
    let mut b = Bits { word, at: 0 };
    let (touched, away) = (b.take(10) as u16, b.byte(5));
    let [ctl, settled, memory, on, dead, ghost, down, rec_old, looked, replaced] = std::array::from_fn(|_| b.flag());
    let (svc, brk) = (SVC[b.take(2) as usize], SVC[b.take(2) as usize]);
    let (live, target, proved) = (b.byte(2), b.byte(2), b.byte(2));
    let (pc, rec, rec_commit) = (PC[b.take(4) as usize], REC[b.take(3) as usize], b.byte(2));
    let (mut mine, mut lanes, mut counted) = ([Mine::default(); GROUPS], [0; GROUPS], [0; GROUPS]);
    for g in 0..GROUPS {
        counted[g] = b.byte(2);
        mine[g] = Mine { there: b.flag(), lane: b.byte(1), token: b.byte(2) };
        lanes[g] = b.byte(1);
    }
    let (rec_several, passed) = (b.flag(), b.byte(3));
    Node {
        svc,
        brk,
        ctl,
        settled,
        memory,
        on,
        dead,
        ghost,
        live,
        target,
        proved,
        pc,
        down,
        lanes,
        rec,
        rec_commit,
        rec_old,
        mine,
        touched,
        away,
        looked,
        replaced,
        counted,
        rec_several,
        passed,
    }
}

/// Holds of one node in all groups, in 14 bits each for the store and for the snapshot.
fn pack_holds(holds: &[[Held; NODES]; GROUPS], node: usize) -> u64 {
    let mut bits = Bits { word: 0, at: 0 };
    for group in holds {
        let held = group[node];
        bits.put(held.is as u64, 2).put(held.lane.into(), 1).put(held.commit.into(), 2).put(held.token.into(), 2);
    }
    bits.word
}

fn unpack_holds(word: u64, holds: &mut [[Held; NODES]; GROUPS], node: usize) {
    let mut b = Bits { word, at: 0 };
    for group in holds {
        group[node] = Held { is: HOLD[b.take(2) as usize], lane: b.byte(1), commit: b.byte(2), token: b.byte(2) };
    }
}

pub type Packed = [u64; WORDS];

impl State {
    pub fn pack(&self) -> Packed {
        let mut words = [0; WORDS];
        let (mut holds, mut snap) = (0u128, 0u128);
        for (n, node) in self.nodes.iter().enumerate() {
            words[n] = pack_node(node);
            holds |= u128::from(pack_holds(&self.holds, n)) << (14 * n);
            snap |= u128::from(pack_holds(&self.snap, n)) << (14 * n);
        }
        // 70 bits each: the six that do not fit go with the rest.
        words[NODES] = holds as u64;
        words[NODES + 1] = snap as u64;
        let mut bits = Bits { word: 0, at: 0 };
        bits.put((holds >> 64) as u64, 6).put((snap >> 64) as u64, 6).put(self.snap_dead.into(), 5);
        for flag in [self.snapped, self.restored, self.store_down, self.frozen] {
            bits.put(u64::from(flag), 1);
        }
        bits.put(self.published.into(), 2).put(self.kind.into(), 2).put(self.leader.into(), 3);
        for few in self.left.iter().chain(&self.spec) {
            bits.put((*few).into(), 2);
        }
        words[NODES + 2] = bits.word;
        words
    }

    pub fn unpack(words: &Packed) -> Self {
        let mut state = Self::default();
        let mut b = Bits { word: words[NODES + 2], at: 0 };
        let holds = u128::from(words[NODES]) | u128::from(b.take(6)) << 64;
        let snap = u128::from(words[NODES + 1]) | u128::from(b.take(6)) << 64;
        for n in 0..NODES {
            state.nodes[n] = unpack_node(words[n]);
            unpack_holds((holds >> (14 * n)) as u64, &mut state.holds, n);
            unpack_holds((snap >> (14 * n)) as u64, &mut state.snap, n);
        }
        state.snap_dead = b.byte(5);
        [state.snapped, state.restored, state.store_down, state.frozen] = std::array::from_fn(|_| b.flag());
        (state.published, state.kind, state.leader) = (b.byte(2), b.byte(2), b.byte(3));
        state.left = std::array::from_fn(|_| b.byte(2));
        state.spec = std::array::from_fn(|_| b.byte(2));
        state
    }

    pub fn can(&self, fault: Fault) -> bool {
        self.left[fault as usize] > 0
    }

    #[must_use]
    pub fn spend(mut self, fault: Fault) -> Self {
        self.left[fault as usize] -= 1;
        self
    }

    /// The node `order[n]` of this state is the node `n` of the other one.
    fn reordered(&self, order: &[usize; NODES]) -> Self {
        let mut place = [0; NODES];
        for (to, from) in order.iter().enumerate() {
            place[*from] = to;
        }
        let moved = |mask: u16| {
            (0..NODES * GROUPS)
                .filter(|at| mask >> at & 1 == 1)
                .fold(0u16, |found, at| found | 1 << (at / NODES * NODES + place[at % NODES]))
        };
        let mut other = *self;
        for (to, from) in order.iter().enumerate() {
            let node = self.nodes[*from];
            other.nodes[to] = Node { touched: moved(node.touched), away: moved(node.away.into()) as u8, ..node };
            for g in 0..GROUPS {
                other.holds[g][to] = self.holds[g][*from];
                other.snap[g][to] = self.snap[g][*from];
            }
        }
        other.snap_dead = moved(self.snap_dead.into()) as u8;
        other
    }

    /// The same state with the first `alike` nodes in a fixed order, and that order.
    pub fn sorted(&self, alike: usize) -> (Self, [usize; NODES]) {
        let mut order: [usize; NODES] = std::array::from_fn(|n| n);
        let key = |n: &usize| {
            let node = Node { touched: 0, away: 0, ..self.nodes[*n] };
            let counts = self.nodes[*n].touched.count_ones() << 4 | self.nodes[*n].away.count_ones();
            let seen = self.nodes.iter().filter(|node| node.away >> n & 1 == 1).count();
            (pack_node(&node), pack_holds(&self.holds, *n), pack_holds(&self.snap, *n), counts, seen)
        };
        order[..alike].sort_by_key(key);
        if order.iter().enumerate().all(|(to, from)| to == *from) {
            (*self, order)
        } else {
            (self.reordered(&order), order)
        }
    }
}
