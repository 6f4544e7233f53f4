//! What a run of the model is about: how many nodes, which groups by which commit, what may go wrong and how often.
//!
//! Never: a rule of the protocol.

use super::state::{BUDGETS, Fault, GROUPS, HoldIs, Mine, NODES, Node, State};

/// A group as a commit declares it; names are numbers.
#[derive(Clone, Debug)]
pub struct Def {
    pub id: usize,
    pub aliases: &'static [usize],
    pub conflicts: &'static [usize],
    pub members: &'static [usize],
    pub at_a_time: usize,
    pub majority: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Good,
    /// It does not start.
    Bad,
    /// It starts, and dies before anybody would call it settled.
    SlowBad,
}

pub const KINDS: [Kind; 3] = [Kind::Good, Kind::Bad, Kind::SlowBad];

#[derive(Clone)]
pub struct Config {
    pub name: &'static str,
    pub nodes: usize,
    /// The first so many nodes are interchangeable.
    pub alike: usize,
    pub groups: fn(u8) -> &'static [Def],
    /// What kind of version the commit `doubtful` may be; all others are good.
    pub kinds: &'static [Kind],
    pub doubtful: u8,
    /// The last commit.
    pub last: u8,
    /// Nodes take a new commit one by one.
    pub lagging: bool,
    /// The store runs on the members themselves.
    pub own_store: bool,
    /// Nobody has settled yet.
    pub bootstrap: bool,
    /// The order of the group counts, and one of the members leads.
    pub ordered: bool,
    /// It is counted how often a member is passed over.
    pub fair: bool,
    pub faults: &'static [(Fault, u8)],
    /// Whether everything must always be able to end well.
    pub ends: bool,
}

impl Config {
    pub fn starts(&self) -> Vec<State> {
        let kinds = KINDS.iter().enumerate().filter(|(_, kind)| self.kinds.contains(kind));
        kinds.map(|(kind, _)| self.start(kind as u8)).collect()
    }

    fn start(&self, kind: u8) -> State {
        let mut state = State { kind, ..State::default() };
        for node in &mut state.nodes[..self.nodes] {
            *node = Node { on: true, settled: !self.bootstrap, memory: !self.bootstrap, ..Node::default() };
            if self.bootstrap {
                node.svc = super::state::Svc::Down;
            }
        }
        for (fault, times) in self.faults {
            state.left[*fault as usize] = *times;
        }
        state
    }

    pub fn kind_of(&self, state: &State, commit: u8) -> Kind {
        if commit == self.doubtful { KINDS[state.kind as usize] } else { Kind::Good }
    }

    /// Faults so far that nobody controls and that may take a member away.
    pub fn uncontrolled(&self, state: &State) -> usize {
        const TAKING: [Fault; 5] =
            [Fault::Reboot, Fault::ServiceDies, Fault::EnvironmentBreaks, Fault::MachineDies, Fault::LedgerLost];
        let had = |fault: Fault| self.faults.iter().find(|(named, _)| *named == fault).map_or(0, |(_, times)| *times);
        TAKING.iter().map(|fault| usize::from(had(*fault) - state.left[*fault as usize])).sum()
    }

    /// Faults so far, of any kind.
    pub fn spent(&self, state: &State) -> usize {
        self.faults.iter().map(|(fault, times)| usize::from(times - state.left[*fault as usize])).sum()
    }

    pub fn is_over(&self, state: &State) -> bool {
        let node = |node: &Node| {
            node.svc == super::state::Svc::Up
                && node.live == self.last
                && node.rec == super::state::Rec::None
                && !node.dead
                && node.mine == [Mine::default(); GROUPS]
        };
        state.published == self.last
            && state.nodes[..self.nodes].iter().all(node)
            && state.holds.iter().flatten().all(|held| held.is == HoldIs::None)
    }
}

const _: () = assert!(NODES <= 5 && BUDGETS <= 12);

const fn of(id: usize, members: &'static [usize], at_a_time: usize) -> Def {
    Def { id, aliases: &[], conflicts: &[], members, at_a_time, majority: true }
}

/// Nobody is needed: two may be away at a time, and the others must stay.
const fn loose(members: &'static [usize]) -> Def {
    Def { majority: false, ..of(0, members, 2) }
}

const THREE: &[Def] = &[of(0, &[0, 1, 2], 1)];
const THREE_IN_LANES: &[Def] = &[of(0, &[0, 1, 2], 2)];
const THREE_LOOSE: &[Def] = &[loose(&[0, 1, 2])];
const THREE_LOOSE_ALONE: &[Def] = &[Def { at_a_time: 1, ..loose(&[0, 1, 2]) }];
const FOUR: &[Def] = &[of(0, &[0, 1, 2, 3], 1)];
const FOUR_IN_LANES: &[Def] = &[of(0, &[0, 1, 2, 3], 2)];
const FOUR_LOOSE: &[Def] = &[loose(&[0, 1, 2, 3])];
const FIVE: &[Def] = &[of(0, &[0, 1, 2, 3, 4], 1)];
const FIVE_IN_LANES: &[Def] = &[of(0, &[0, 1, 2, 3, 4], 2)];
/// Every node is in both groups by one unit.
const BOTH: &[Def] = &[of(0, &[0, 1, 2], 1), of(1, &[0, 1, 2], 1)];
/// Two pairs that must not be disrupted at the same time.
const PAIRS: &[Def] = &[
    Def { majority: false, conflicts: &[1], ..of(0, &[0, 1], 1) },
    Def { majority: false, conflicts: &[0], ..of(1, &[2, 3], 1) },
];
const RENAMED: &[Def] = &[Def { aliases: &[0], ..of(1, &[0, 1, 2], 1) }];

pub fn three(_: u8) -> &'static [Def] {
    THREE
}

/// Commit 2 gives the group another name.
pub fn renamed(commit: u8) -> &'static [Def] {
    if commit < 2 { THREE } else { RENAMED }
}

/// Commit 1 moves the last member out of the group.
pub fn leaving(commit: u8) -> &'static [Def] {
    if commit == 0 { FOUR } else { THREE }
}

/// Commit 2 lets one go at a time, not two.
pub fn narrowed(commit: u8) -> &'static [Def] {
    if commit < 2 { THREE_LOOSE } else { THREE_LOOSE_ALONE }
}

/// Commit 1 lets two go at a time, not one.
pub fn loosened(commit: u8) -> &'static [Def] {
    if commit == 0 { THREE_LOOSE_ALONE } else { THREE_LOOSE }
}

/// Commit 1 lets two go at a time.
pub fn widened(commit: u8) -> &'static [Def] {
    if commit == 0 { FIVE } else { FIVE_IN_LANES }
}

const FEW: &[(Fault, u8)] = &[(Fault::AgentDies, 1), (Fault::ServiceDies, 1)];
const GOOD: &[Kind] = &[Kind::Good];

const QUIET: Config = Config {
    name: "quiet",
    nodes: 3,
    alike: 3,
    groups: three,
    kinds: &KINDS,
    doubtful: 1,
    last: 2,
    lagging: false,
    own_store: false,
    bootstrap: false,
    ordered: false,
    fair: false,
    faults: &[],
    ends: true,
};

use Fault::{
    AgentDies, AnswerLost, EnvironmentBreaks, Freeze, Heals, LedgerLost, MachineDies, Reboot, ServiceDies, Snapshot,
    StepFails, StoreFlips,
};

/// Small ones: each for one kind of trouble, and for the mutants that need it.
pub fn all() -> Vec<Config> {
    use Fault::{
        AgentDies, AnswerLost, EnvironmentBreaks, Freeze, Heals, LedgerLost, MachineDies, Reboot, ServiceDies,
        Snapshot, StepFails, StoreFlips,
    };
    vec![
        QUIET,
        Config { name: "agents", faults: &[(AgentDies, 1), (AnswerLost, 1), (StoreFlips, 1)], ..QUIET },
        Config {
            name: "faults",
            faults: &[(ServiceDies, 1), (EnvironmentBreaks, 1), (AgentDies, 1), (Heals, 1)],
            ..QUIET
        },
        Config { name: "lagging", lagging: true, faults: &[(AgentDies, 1), (Reboot, 1)], ..QUIET },
        Config {
            name: "operator",
            faults: &[(StepFails, 1), (AgentDies, 1), (AnswerLost, 1), (ServiceDies, 1)],
            ..QUIET
        },
        Config { name: "freeze", faults: &[(Freeze, 1), (AgentDies, 1), (ServiceDies, 1)], ..QUIET },
        Config { name: "dead", faults: &[(MachineDies, 1), (AgentDies, 1), (Reboot, 1)], ..QUIET },
        Config { name: "snapshot", faults: &[(Snapshot, 1), (AgentDies, 1)], ends: false, ..QUIET },
        Config { name: "ledger", faults: &[(LedgerLost, 1), (AgentDies, 1)], ..QUIET },
        Config {
            name: "own store",
            own_store: true,
            faults: &[(AgentDies, 1), (EnvironmentBreaks, 1), (ServiceDies, 1)],
            ..QUIET
        },
        Config { name: "bootstrap", bootstrap: true, faults: &[(ServiceDies, 1), (AgentDies, 1)], ..QUIET },
        Config { name: "ordered", ordered: true, alike: 0, faults: &[(AgentDies, 1), (ServiceDies, 1)], ..QUIET },
        Config { name: "lanes", groups: |_| THREE_LOOSE, faults: &[(AgentDies, 1)], ..QUIET },
        Config {
            name: "lanes faults",
            groups: |_| THREE_IN_LANES,
            faults: &[(EnvironmentBreaks, 1), (ServiceDies, 1)],
            ..QUIET
        },
        Config {
            name: "loose faults",
            groups: |_| THREE_LOOSE,
            faults: &[(EnvironmentBreaks, 1), (ServiceDies, 1)],
            ..QUIET
        },
        Config { name: "two broken", faults: &[(EnvironmentBreaks, 2), (AgentDies, 1)], ..QUIET },
        // Two failed holders, and then a bad commit.
        Config {
            name: "retarget",
            groups: |_| THREE_LOOSE,
            doubtful: 2,
            faults: &[(EnvironmentBreaks, 2)],
            ends: false,
            ..QUIET
        },
        // The same, and that commit narrows the group.
        Config {
            name: "narrowed",
            groups: narrowed,
            doubtful: 2,
            faults: &[(EnvironmentBreaks, 2)],
            ends: false,
            ..QUIET
        },
        Config { name: "loosened", groups: loosened, faults: &[(EnvironmentBreaks, 2)], ..QUIET },
        Config { name: "fair", ordered: true, fair: true, alike: 0, kinds: GOOD, faults: FEW, ..QUIET },
        Config {
            name: "fair in lanes",
            groups: |_| THREE_LOOSE,
            ordered: true,
            fair: true,
            alike: 0,
            kinds: GOOD,
            faults: FEW,
            ..QUIET
        },
        Config {
            name: "fair four",
            nodes: 4,
            groups: |_| FOUR,
            ordered: true,
            fair: true,
            alike: 0,
            kinds: GOOD,
            faults: FEW,
            ..QUIET
        },
        Config {
            name: "fair four in lanes",
            nodes: 4,
            groups: |_| FOUR_LOOSE,
            ordered: true,
            fair: true,
            alike: 0,
            kinds: GOOD,
            ..QUIET
        },
        Config { name: "four in lanes", nodes: 4, alike: 4, groups: |_| FOUR_IN_LANES, ..QUIET },
        Config {
            name: "both",
            groups: |_| BOTH,
            faults: &[(AgentDies, 1), (AnswerLost, 1), (ServiceDies, 1)],
            ..QUIET
        },
        Config { name: "pairs", nodes: 4, alike: 0, groups: |_| PAIRS, faults: &[(AgentDies, 1)], ..QUIET },
        Config { name: "renamed", groups: renamed, lagging: true, faults: &[(AgentDies, 1)], ..QUIET },
        Config { name: "leaving", nodes: 4, alike: 3, groups: leaving, lagging: true, ..QUIET },
        Config { name: "widened", nodes: 5, alike: 5, groups: widened, lagging: true, kinds: GOOD, ..QUIET },
        Config { name: "five", nodes: 5, alike: 5, groups: |_| FIVE, faults: &[(ServiceDies, 1)], ..QUIET },
        Config { name: "five in lanes", nodes: 5, alike: 5, groups: |_| FIVE_IN_LANES, last: 1, kinds: GOOD, ..QUIET },
    ]
}

/// Several kinds of trouble at once.
pub fn deep() -> Vec<Config> {
    vec![
        Config {
            name: "agents+",
            faults: &[(AgentDies, 2), (AnswerLost, 1), (StoreFlips, 1), (ServiceDies, 1), (StepFails, 1)],
            ..QUIET
        },
        Config {
            name: "faults+",
            faults: &[(ServiceDies, 1), (EnvironmentBreaks, 2), (AgentDies, 1), (Heals, 1), (AnswerLost, 1)],
            ..QUIET
        },
        Config { name: "dead+", faults: &[(MachineDies, 1), (AgentDies, 1), (Reboot, 1), (ServiceDies, 1)], ..QUIET },
        Config {
            name: "snapshot+",
            faults: &[(Snapshot, 1), (AgentDies, 1), (MachineDies, 1), (ServiceDies, 1)],
            ends: false,
            ..QUIET
        },
        Config {
            name: "ledger+",
            faults: &[(LedgerLost, 1), (AgentDies, 1), (ServiceDies, 1), (StoreFlips, 1)],
            ..QUIET
        },
        Config {
            name: "own store+",
            own_store: true,
            faults: &[(AgentDies, 2), (EnvironmentBreaks, 1), (ServiceDies, 1), (StepFails, 1)],
            ..QUIET
        },
        Config {
            name: "lagging+",
            lagging: true,
            faults: &[(AgentDies, 1), (Reboot, 1), (ServiceDies, 1), (Freeze, 1)],
            ..QUIET
        },
        Config {
            name: "loose+",
            groups: |_| THREE_LOOSE,
            faults: &[(AgentDies, 1), (EnvironmentBreaks, 1), (ServiceDies, 1), (AnswerLost, 1)],
            ..QUIET
        },
        Config {
            name: "both+",
            groups: |_| BOTH,
            faults: &[(AgentDies, 1), (AnswerLost, 1), (ServiceDies, 1), (EnvironmentBreaks, 1)],
            ..QUIET
        },
        Config {
            name: "pairs+",
            nodes: 4,
            alike: 0,
            groups: |_| PAIRS,
            faults: &[(AgentDies, 1), (ServiceDies, 1)],
            ..QUIET
        },
        Config {
            name: "renamed+",
            groups: renamed,
            lagging: true,
            faults: &[(AgentDies, 1), (ServiceDies, 1), (EnvironmentBreaks, 1)],
            ..QUIET
        },
        Config {
            name: "leaving+",
            nodes: 4,
            alike: 3,
            groups: leaving,
            lagging: true,
            faults: &[(AgentDies, 1)],
            ..QUIET
        },
        Config {
            name: "four in lanes+",
            nodes: 4,
            alike: 4,
            groups: |_| FOUR_LOOSE,
            faults: &[(AgentDies, 1)],
            ..QUIET
        },
        Config {
            name: "five+",
            nodes: 5,
            alike: 5,
            groups: |_| FIVE,
            faults: &[(ServiceDies, 1), (AgentDies, 1)],
            ..QUIET
        },
        Config {
            name: "five in lanes+",
            nodes: 5,
            alike: 5,
            groups: |_| FIVE_IN_LANES,
            faults: &[(ServiceDies, 1)],
            ..QUIET
        },
    ]
}
