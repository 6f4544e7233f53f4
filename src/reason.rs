//! Every reason for which a node waits, refuses or fails: one list, from which exit codes, docs, metrics and
//! `converger explain` are made.
//!
//! PURE. Never: a reason that stands anywhere else as a bare string.

use std::fmt;

/// Exit codes of every command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    Done = 0,
    /// A bug of ours.
    Internal = 1,
    /// Wrong usage or local settings.
    Usage = 2,
    /// The fleet repository has problems.
    Repository = 3,
    /// Trust refused, or the source is stale.
    Trust = 4,
    /// The host is not (wholly) converged.
    Host = 5,
    /// Waiting: a hold, a gate, a window, a pause.
    Waiting = 6,
    /// Source or coordination unreachable.
    Unreachable = 7,
    Secrets = 8,
}

impl Exit {
    /// When several apply, the first of 1, 2, 3, 4, 8, 5, 7, 6, 0.
    pub fn worst(self, other: Self) -> Self {
        const ORDER: [Exit; 9] = [
            Exit::Internal,
            Exit::Usage,
            Exit::Repository,
            Exit::Trust,
            Exit::Secrets,
            Exit::Host,
            Exit::Unreachable,
            Exit::Waiting,
            Exit::Done,
        ];
        ORDER.into_iter().find(|exit| *exit == self || *exit == other).unwrap_or(Self::Internal)
    }

    pub fn code(self) -> u8 {
        self as u8
    }
}

#[derive(Clone, Copy)]
pub struct Reason {
    /// Kebab-case, stable: the same word in text, JSON, metrics, docs and `converger explain`.
    pub id: &'static str,
    pub exit: Exit,
    /// What it means, in one sentence.
    pub sentence: &'static str,
    /// What to do.
    pub mend: &'static str,
}

impl PartialEq for Reason {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Reason {}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

macro_rules! reasons {
    ($($name:ident = $id:literal, $exit:ident, $sentence:literal, $mend:literal;)*) => {
        $(pub const $name: Reason =
            Reason { id: $id, exit: Exit::$exit, sentence: $sentence, mend: $mend };)*
        /// All of them, in the order of the manual.
        pub const ALL: &[Reason] = &[$($name),*];
    };
}

reasons! {
    // trust
    UNSIGNED = "unsigned", Trust,
        "A commit after the last accepted one carries no signature.",
        "Put it on a merge's second parent with `converger trust mend`; a revert leaves it on the branch.";
    BAD_SIGNATURE = "bad-signature", Trust,
        "A commit's signature does not match its content, its namespace or an allowed algorithm.",
        "Sign again with an SSH key (`git config gpg.format ssh`), then `converger trust mend`.";
    UNKNOWN_KEY = "unknown-key", Trust,
        "A commit is signed by a key that trust/allowed_signers of its first parent does not list.",
        "Let a root principal add the key first, in a commit of its own; mend the branch with `converger trust mend`.";
    BANNED_KEY = "banned-key", Trust,
        "A commit is signed by a key that is banned, in the repository or on this node.",
        "Mend the branch with `converger trust mend`; banned keys never sign validly again.";
    SCOPE = "scope", Trust,
        "A commit changes paths that its signer's scope in trust/policy.toml does not cover.",
        "Have somebody with that scope sign the change.";
    ROOT_REQUIRED = "root-required", Trust,
        "trust/ or fleet.toml changed in a commit that no principal with role root signed.",
        "Have a root principal make this change in a commit of its own.";
    STALE_MERGE = "stale-merge", Trust,
        "A merge that no authorised key signed joins the branch too far back, or at more than one place.",
        "At the forge use \"update branch\" and merge again; or merge locally and sign. Mend the branch with `converger trust mend`.";
    MERGE_ALTERED = "merge-altered", Trust,
        "A merge that no authorised key signed is not what merging its two parents gives.",
        "If the forge resolved a conflict: merge locally and sign. If not, look at who runs the forge. Mend the branch with `converger trust mend`.";
    TRUST_REMOVED = "trust-removed", Trust,
        "A commit removes, empties or garbles the trust folder.",
        "Mend the branch with `converger trust mend`; the folder cannot be dropped.";
    REAUTHORISES_BANNED_KEY = "reauthorises-banned-key", Trust,
        "A commit takes a key off the ban list, or lists a banned key again.",
        "Bans only grow. Mend the branch with `converger trust mend`.";
    MALFORMED_COMMIT = "malformed-commit", Trust,
        "A commit object is not in Git's canonical form (headers, encoding or signature armor).",
        "Make the commit again with an ordinary git.";
    ROLLBACK = "rollback", Trust,
        "The remote offers an ancestor of what this node already accepted.",
        "Put the branch back to where it was; to go back on purpose use `git revert`.";
    ROLLBACK_FLOOR = "rollback-floor", Trust,
        "The remote offers less than this node had verified before its own record of it was lost or set back.",
        "Bring the remote up to date; if what the node knew is to be given up, give trust.toml a new introduction.";
    FOXTROT = "foxtrot", Trust,
        "What this node accepted is in the branch's history, but not on its first-parent chain.",
        "Merge the other way round: the tracked branch must be the first parent.";
    NOT_DESCENDANT = "not-descendant", Trust,
        "The remote's branch does not descend from what this node accepted.",
        "Put the branch back; history of the tracked branch is never rewritten.";
    INTRODUCTION_MISSING = "introduction-missing", Trust,
        "The introduction of this node's trust root is not in the branch's history, or another key signed it.",
        "Check the remote and `introduction` in trust.toml against the fleet's records.";
    FLEET_MISMATCH = "fleet-mismatch", Trust,
        "The repository names another fleet than this node's trust root, or another trust policy.",
        "Point the node at its own fleet's repository.";
    LIMIT = "limit", Trust,
        "The remote sent more than this node takes (size, count, depth or time).",
        "Look at the remote; raise [limits] in trust.toml only if the repository really is that big.";
    STALE_SOURCE = "stale-source", Trust,
        "The remote shows an older commit than other nodes have verified.",
        "Look at the remote or mirror; this node keeps enforcing its last good commit.";
    FORKED_SOURCE = "forked-source", Trust,
        "Other nodes verified another commit at the same place of the history.",
        "Find out who signed both, and which remote shows which; each node goes on with the chain that it verified.";
    // repository
    AGENT_TOO_OLD = "agent-too-old", Repository,
        "The commit is of a newer format than this agent knows; the last good commit stays in force.",
        "Bring the agents to the new version first (component converger of versions.toml), then raise `format`.";
    REPOSITORY_INVALID = "repository-invalid", Repository,
        "The commit verifies, but the fleet repository has problems that touch this node.",
        "Run `converger check`; the fix is the next commit.";
    TOO_MANY_GROUPS = "too-many-groups", Repository,
        "The node would need more groups at once than one transaction of the store takes; it takes none of them.",
        "Take former names out of `aliases` that no node knows any more, let it leave one cluster per commit, or spread its clusters over more nodes.";
    NOT_IN_TOPOLOGY = "not-in-topology", Repository,
        "The topology does not name this node; it does nothing, and keeps what it has.",
        "Add the node to topology.toml, or take the machine away.";
    GUARDED = "guarded", Repository,
        "The commit does something that a guard of fleet.toml holds back.",
        "If it is meant, say so in a signed commit with a `Converger-Allow:` trailer.";
    // host
    UPDATE_FAILED = "update-failed", Host,
        "The agent that the commit wants is not one: it cannot be had, or did not complete a run; the one before it works on.",
        "Revert the version of component converger, or give it another; the message says what went wrong.";
    APPLY_FAILED = "apply-failed", Host,
        "A resource could not be brought to what the repository says; the rest went on.",
        "Read the resource's error in `converger why NODE` or the journal.";
    UNSAFE_PATH = "unsafe-path", Host,
        "A path leads through a link that others than root could have made, or what is in its place is no file.",
        "Look at what is there and who made it; move it away, or manage another path.";
    DISK_FULL = "disk-full", Host,
        "A file system or a quota has no room for what must be written; the files are what they were.",
        "Free space or inodes there; the next run goes on by itself.";
    READ_ONLY = "read-only", Host,
        "A file system is mounted read-only, or a file or its directory is immutable or append-only.",
        "Remount it, or clear the attribute (lsattr, chattr -i -a); the next run goes on by itself.";
    DISK_ERROR = "disk-error", Host,
        "The kernel could not read or write a disk.",
        "Read the kernel's log. On a disk that works, the next run writes anew whatever did not get there.";
    OUT_OF_RESOURCES = "out-of-resources", Host,
        "The agent met a limit of memory, processes or open files.",
        "Raise the limits of its unit, or end what uses them up; the next run goes on by itself.";
    DIGEST_MISMATCH = "digest-mismatch", Host,
        "A mirror gave an archive that does not have the sha256 of versions.toml; what was live stays.",
        "Find out what the mirror has: if it is what you want, put its sha256 into versions.toml, signed.";
    MIRRORS_FAILED = "mirrors-failed", Host,
        "No mirror of an artifact gave its archive; what was live stays.",
        "The message names each mirror and what it said; what was received already is gone on with.";
    ARCHIVE_REFUSED = "archive-refused", Host,
        "An archive has an entry that is not unpacked: outside of its directory, a device, a name twice, too large.",
        "The message names the entry; pack the archive anew without it.";
    DEPENDENCY_FAILED = "dependency-failed", Host,
        "Left alone because something it needs failed.",
        "Mend what failed first; this follows by itself.";
    GATE_FAILED = "gate-failed", Host,
        "This node's own member did not become healthy after its restart; it keeps its hold, so nobody else moves.",
        "Fix forward or `git revert`: the next commit repairs this node first.";
    ROLLED_BACK = "rolled-back", Host,
        "A change of network, firewall, sshd or the like cut this node off, or was not confirmed; it was put back and is not tried again.",
        "Change it or `git revert`: content that is the same is not tried again. A hold taken for it stays until then.";
    REBOOT_FAILED = "reboot-failed", Host,
        "The machine was told to reboot and did not, or needed another reboot for the same commit each time it came back.",
        "Look at the machine's console and at what changes the named files at boot; then fix forward or `git revert`.";
    REBOOTING = "rebooting", Waiting,
        "The machine reboots, under the holds of all groups of the node.",
        "Nothing: it settles when it is back. If it does not come back, look at its console.";
    STEP_FAILED = "step-failed", Host,
        "A step before the stop failed; nothing was stopped and the hold was given back.",
        "Look at the step's command; it is tried again at the next run.";
    PACKAGE_BUSY = "package-busy", Host,
        "Somebody else works on this machine's packages, for longer than is waited for.",
        "Look at the process that the message names; it is tried again at the next run.";
    PACKAGE_PLAN = "package-plan", Host,
        "The package manager would remove or change packages that the role does not list; nothing was touched.",
        "List them in the role with the version that is meant, or pin another version of what needs them.";
    DRIFT_FIGHT = "drift-fight", Host,
        "Somebody else goes on writing a file that is put back each time, so it is put back ever more seldom.",
        "Find who writes it (another configuration manager, the service itself). If it is the service's own: `policy = \"seed\"` or `\"audit\"` for that file.";
    DRY_RUN = "dry-run", Host,
        "There is something to do, and this was a dry run.",
        "Run without --dry-run.";
    INTERRUPTED = "interrupted", Host,
        "The agent was asked to stop; it finished the batch at hand and left the rest.",
        "The next run goes on from here.";
    // waiting
    HELD_BY_PEER = "held-by-peer", Waiting,
        "Another member of the group has the hold.",
        "It ends when that member settles. If its machine is off for good: `converger holds release --dead NODE`.";
    HOLD_FAILED = "hold-failed", Waiting,
        "A member of the group failed after its restart and keeps its hold; the rest of the group stays as it is.",
        "Fix forward or `git revert`: that member repairs itself first, then the others go on.";
    DEGRADED = "degraded", Waiting,
        "Too few other members are healthy to take this one away.",
        "Bring the unhealthy members back; unknown counts as down.";
    MEMBERSHIP_DIFFERS = "membership-differs", Waiting,
        "The service has other voters than the topology declares: nobody can tell what a majority of the group is.",
        "Declare the member that is not declared, or strike it off the service's own list; one that is active without a vote is declared `joining` again.";
    ORDER = "order", Waiting,
        "Earlier members of the group have not applied the commit yet.",
        "It ends when they report it, or are dead or silent.";
    FIRST_ALONE = "first-alone", Waiting,
        "The first member to take a commit goes alone; it has not settled yet.",
        "It ends when that member settles.";
    AFTER_CLUSTER = "after-cluster", Waiting,
        "A cluster that comes first has not reported the commit yet.",
        "It ends when that cluster reports it, or after 30 minutes.";
    SETTLING = "settling", Waiting,
        "The own member was restarted and must stay healthy for its settle time.",
        "It ends by itself.";
    FROZEN = "frozen", Waiting,
        "A freeze is in force: nothing new is stopped.",
        "It ends by itself at its time, or by `converger unfreeze`.";
    OUTSIDE_WINDOW = "outside-window", Waiting,
        "A cluster has maintenance windows, and none is open: no running member of it is taken away.",
        "It ends when the next window opens. To go now, add a window to the cluster in topology.toml.";
    DECLARED_DEAD = "declared-dead", Waiting,
        "An operator declared this node dead; it must not disrupt anything.",
        "Make sure that the machine is what it was, then `converger node admit NODE`.";
    PAUSED = "paused", Waiting,
        "Somebody paused this node: its agent applies nothing; what is settling goes on, and holds are given back.",
        "It ends by itself at its time, or by `converger resume` on the node.";
    CLONED = "cloned", Waiting,
        "Another machine lives under this node's name: a copy of its disk, or a snapshot of it.",
        "Switch off the one that is the copy, or give it an identity of its own (`converger enroll`). It ends 90 s after the last sign of the other one; a reboot looks the same for as long.";
    LOST_RACE = "lost-race", Waiting,
        "Another member claimed first.",
        "Tried again as soon as that hold is released.";
    QUORUM_TOO_SMALL = "quorum-too-small", Waiting,
        "The group can never spare a member: it has too few for its quorum.",
        "Add members, or state `quorum = \"none\"` for it if losing it for a moment is acceptable.";
    BEHIND_PEER = "behind-peer", Waiting,
        "An action of the whole cluster waits: another member follows a newer commit, and this one would put the old state back.",
        "It ends when this node has fetched that commit. If it does not end, compare what both reach: `converger status`.";
    BEHIND_SPEC = "behind-spec", Waiting,
        "Who belongs to the group, or how many of it may be away, is declared by a commit that this node has not accepted.",
        "It ends when the node has accepted that commit. If the branch has no such commit, find out who wrote it, and delete the key below `spec/`.";
    AGENT_UPDATE = "agent-update", Waiting,
        "Another version of the agent is wanted, and this node has not taken it yet.",
        "It ends by itself: canaries first, then a share of the nodes at a time, each after one whole run.";
    FLEETLOCK_REQUEST = "fleetlock-request", Waiting,
        "A request to the FleetLock endpoint is not one, or is not meant for this machine; nobody was asked.",
        "Send what the manual says under \"FleetLock\"; the id is the node's name, or what zincati calls this machine.";
    FLEETLOCK_BUSY = "fleetlock-busy", Waiting,
        "The agent could not answer a FleetLock request in time, or answers another one.",
        "Ask again; nothing is held for a client that did not hear its answer.";
    // unreachable
    SOURCE_UNREACHABLE = "source-unreachable", Unreachable,
        "No remote could be fetched from.",
        "Check network, host key, certificates and the deploy key; the last good commit stays in force.";
    STORE_UNREACHABLE = "store-unreachable", Unreachable,
        "The store does not answer; nothing that needs a hold is started.",
        "Bring etcd back; what needs no hold goes on meanwhile.";
    STORE_DENIED = "store-denied", Unreachable,
        "The store refuses this node's credentials.",
        "Check certificate, user and role of this node in etcd.";
    STORE_FULL = "store-full", Unreachable,
        "The store has raised its NOSPACE alarm: no claims; releases still work.",
        "Compact and defragment etcd, then disarm the alarm.";
    STORE_REPLACED = "store-replaced", Unreachable,
        "The store is not the one this node knows: another cluster, or an older state of it.",
        "If the endpoints are wrong, put them right. If etcd was restored: `converger holds reinit`, as the manual says under \"etcd was restored\"; no node disrupts anything until then.";
    // secrets
    SECRET_UNREADABLE = "secret-unreadable", Secrets,
        "A secret that this node needs cannot be opened with its identities.",
        "Run `converger secret rekey` in the fleet repository; the message names the secret and the node's recipient.";
    IDENTITY_PERMISSIONS = "identity-permissions", Secrets,
        "The node's identity is missing, or others can read it.",
        "Keep it a regular file of the agent's own user with mode 0600.";
    // usage
    SETTINGS = "settings", Usage,
        "agent.toml, trust.toml or the command line is not usable.",
        "Fix what the message names.";
    INTERNAL = "internal", Internal,
        "A bug in converger.",
        "Please report it with the journal of this run.";
}

/// The reason with this id.
pub fn by_id(id: &str) -> Option<Reason> {
    ALL.iter().copied().find(|reason| reason.id == id)
}

/// An error with its causes, once each.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
