//! Weakened rules, each of which must be caught: the test of the model itself.
//!
//! A mutant puts a question to a real function wrongly, or does not hear its answer. Never: a switch in the product.

use converger::lock::quorum::{HoldPhase, Situation};
use converger::lock::store::Condition;
use converger::lock::view::Standing;
use converger::probe::Health;

use super::real::{Write, is_absent, is_range, is_token};
use super::state::{Pc, Rec, State};

macro_rules! mutants {
    ($($name:ident: $words:literal, $($config:literal)|+;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutant { $($name),* }

        /// With what it does in words, and the configurations in which it may be caught.
        pub const ALL: &[(Mutant, &str, &[&str])] = &[$((Mutant::$name, $words, &[$($config),+])),*];
    };
}

mutants! {
    // What is judged.
    NoProbe: "nobody's health is asked", "faults";
    ProbeBeforeTheClaim: "health is asked before the claim only", "faults";
    UnknownIsHealthy: "no answer counts as healthy", "faults";
    SickIsHealthy: "an unhealthy answer counts as healthy", "faults";
    OneLessNeeded: "quorum off by one", "faults";
    MembersAreTheHealthy: "only those that answer count as members", "five";
    HoldersCountAsUp: "holders count as up", "loose faults";
    OneLaneMore: "one lane more than the group says", "five";
    FirstNotAlone: "a commit need not settle on one member first", "lanes";
    FailedIgnored: "a failed hold stops nobody", "lanes";
    FailedIgnoredWhenArming: "a failed hold stops only new claims", "loose faults";
    ExpiredTakenOver: "a hold of an agent that is not seen does not count", "agents";
    FreezeNotJudged: "a freeze is not looked at", "freeze";
    DeadNotJudged: "that this node is dead is not looked at", "dead";
    SickBesideOthers: "a sick member restarts although others hold", "lanes faults";
    DegradedCountsSelf: "a member that is down must ask for the others' health too", "two broken";
    AliasesIgnored: "only the target's name of a group is held", "renamed";
    TargetGroupsOnly: "the groups of the running version are not held", "leaving";
    ConflictsIgnored: "conflicting groups are not looked at", "pairs";
    ConflictsOneWay: "a conflict counts for one side only", "pairs";
    OrderIgnored: "whoever comes first goes, whatever the order of the group", "fair" | "fair in lanes";
    // What is written.
    ClaimWithoutRange: "claim without comparing the range", "quiet" | "lanes";
    ArmWithoutRange: "arm without comparing the range", "loose faults";
    ArmWithoutToken: "arm without comparing the own token", "operator" | "dead" | "snapshot";
    ArmWithoutFreeze: "arm without comparing the freeze", "freeze";
    NoFence: "no transaction between asking and acting", "freeze";
    ClaimNotWritten: "the claim is not written", "quiet";
    OneGroupOfTwo: "one group of two is claimed", "both";
    ViewMovesUnderHolds: "a declaration comes into force while the group is held", "leaving";
    RetargetDropped: "a failed holder takes a new commit without writing it", "retarget";
    RetargetBesideOthers: "a failed holder does not look who else tries", "retarget";
    RetargetWithoutRange: "retarget without comparing the range", "retarget";
    // What is remembered.
    LanesForgotten: "the record forgets in how many lanes it was claimed", "narrowed";
    RecordAtClaim: "the record is written at the claim", "operator";
    RecordForgotten: "the record does not survive the agent", "agents";
    BootAsksNobody: "a record of an earlier boot does not ask the store", "dead";
    LostLedgerIsNew: "a node without its ledger frees what it armed", "ledger";
    LostLedgerRestartsAtOnce: "a healthy member without a ledger needs no hold", "ledger";
    RestoreUnnoticed: "an older state of the store is not noticed", "snapshot";
    LostIsCommitted: "a lost answer counts as done", "agents";
    InterruptedKnows: "after an interruption the record's commit counts as live", "agents" | "lanes";
    // What is done.
    HoldOnALease: "the hold ends with its agent", "agents";
    ReleasedAtStart: "released when the unit is started", "quiet";
    NoSettleTime: "released at the first healthy look", "quiet";
    SettledWhileSick: "released without asking the gate", "faults";
    FailureReleases: "a failed settle gives the hold back", "quiet";
    RepairNotRechecked: "a member that was down is stopped without a second look", "faults";
    FilesBeforeTheHold: "new files are live before the hold", "agents" | "faults";
    NewInputsWithoutAHold: "a member that is down takes new inputs without a hold", "faults";
    NewInputsAtStart: "a member that crashed is started with the new inputs", "faults";
    OperatorFreesArmed: "an operator frees an armed hold of a live node", "operator";
    LeftoversStay: "a claim that was left behind does not go back", "agents";
    // What must not be needed.
    NotReentrant: "a failed holder takes nothing new", "quiet";
    RepairNeedsTheStore: "the repair of the own member asks the store", "own store";
    RecoveryNeedsTheStore: "an interrupted holder starts its member only with the store", "own store";
    // Singletons.
    SingleFromReceiving: "a singleton's time counts from the answer", "single";
    SingleWholeLease: "a singleton runs for the whole lease", "single paused";
    SingleAgentStops: "the agent ends a singleton, not systemd", "single";
    SingleAgentChecks: "the agent looks whether it may start, not systemd", "single";
    SingleNoMargin: "a singleton's key is taken without a margin", "single paused";
    SingleEnabled: "a boot starts a singleton", "single";
    SingleFreedFirst: "a singleton's key is freed before its unit has stopped", "single moved";
    SingleNoSecondLook: "a singleton's unit is not looked at again before its key is freed", "single";
    SingleMissingIsFree: "a singleton's key that is missing may be taken", "single deleted";
    SingleOwnName: "a node's name in a singleton's key is enough", "single";
    SingleTakenBlindly: "a singleton's key is written without comparing", "single";
    SingleLinkFirst: "a singleton may start before its timer is set", "single";
}

impl Mutant {
    /// What the decision is told, weakened.
    pub fn misjudge(self, situation: &mut Situation<'_>, arming: bool, state: &State) {
        let me = situation.me.clone();
        let healthy = |health: &mut Health| *health = Health::Healthy;
        match self {
            Self::NoProbe => situation.members.iter_mut().for_each(|member| healthy(&mut member.health)),
            Self::UnknownIsHealthy => {
                let unknown = situation.members.iter_mut().filter(|member| matches!(member.health, Health::Unknown(_)));
                unknown.for_each(|member| healthy(&mut member.health));
            }
            Self::SickIsHealthy => {
                let others = situation.members.iter_mut().filter(|member| member.name != me);
                let sick = others.filter(|member| matches!(member.health, Health::Unhealthy(_)));
                sick.for_each(|member| healthy(&mut member.health));
            }
            Self::OneLessNeeded => {
                let mut others = situation.members.iter_mut().filter(|member| member.name != me);
                if let Some(member) = others.find(|member| member.health != Health::Healthy) {
                    healthy(&mut member.health);
                }
            }
            Self::MembersAreTheHealthy => {
                situation.members.retain(|member| member.name == me || member.health == Health::Healthy);
            }
            Self::HoldersCountAsUp => {
                let others = situation.holds.iter_mut().filter(|hold| hold.node != me);
                others.for_each(|hold| hold.node = "nobody".into());
            }
            Self::ViewMovesUnderHolds if situation.view == Standing::Moves => situation.view = Standing::InForce,
            Self::FirstNotAlone => situation.proven.extend([10, 11, 12]),
            Self::FailedIgnored => {
                situation.holds.iter_mut().for_each(|hold| hold.phase = HoldPhase::Armed);
                situation.proven.extend([10, 11, 12]);
            }
            Self::FailedIgnoredWhenArming if arming => {
                situation.holds.iter_mut().for_each(|hold| hold.phase = HoldPhase::Armed);
            }
            Self::ExpiredTakenOver => {
                situation.holds.retain(|hold| {
                    let at = hold.node.as_str()[1..].parse::<usize>().unwrap();
                    let node = &state.nodes[at];
                    hold.node == me || !(node.rec != Rec::None && node.pc == Pc::None)
                });
            }
            Self::OrderIgnored => situation.members.iter_mut().for_each(|member| member.wants_since = None),
            Self::FreezeNotJudged => situation.freeze = None,
            Self::DeadNotJudged => situation.members.iter_mut().for_each(|member| member.dead = false),
            Self::SickBesideOthers => {
                let own = situation.members.iter().find(|member| member.name == me);
                if own.is_some_and(|member| matches!(member.health, Health::Unhealthy(_))) {
                    situation.running = false;
                }
            }
            Self::DegradedCountsSelf => {
                situation.running = true;
                let own = situation.members.iter_mut().filter(|member| member.name == me);
                own.for_each(|member| healthy(&mut member.health));
            }
            _ => {}
        }
    }

    /// The condition that a transaction does not have any more.
    pub fn forgets(self, condition: &Condition, write: Write) -> bool {
        match (self, write) {
            (Self::ClaimWithoutRange | Self::ExpiredTakenOver, Write::Claim) => is_range(condition),
            (Self::ArmWithoutRange | Self::ExpiredTakenOver, Write::Arm) => is_range(condition),
            (Self::ArmWithoutToken, Write::Arm) => is_token(condition),
            (Self::ArmWithoutFreeze | Self::FreezeNotJudged, Write::Claim | Write::Arm) => {
                is_absent(condition, "freeze/")
            }
            (Self::ViewMovesUnderHolds, Write::Claim) => {
                matches!(condition, Condition::RangeEmpty(_)) || is_range(condition)
            }
            (Self::DeadNotJudged, Write::Claim | Write::Arm) => is_absent(condition, "dead/"),
            (Self::NoFence, Write::Arm) => true,
            (Self::RetargetWithoutRange, Write::Retarget) => is_range(condition),
            _ => false,
        }
    }
}
