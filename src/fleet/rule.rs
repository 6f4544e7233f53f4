//! Every rule that a fleet repository can break: one list, for `check`, the manual and `converger explain`.
//!
//! PURE. Never: an id in a problem of ours that is not in this list.

/// What a repository must keep to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Kebab-case, stable: the same word in text, JSON, docs and `converger explain`.
    pub id: &'static str,
    /// What is wrong, in one sentence.
    pub sentence: &'static str,
    /// What to do.
    pub mend: &'static str,
}

macro_rules! rules {
    ($($name:ident = $id:literal, $sentence:literal, $mend:literal;)*) => {
        $(pub const $name: &str = $id;)*
        /// All of them, in the order of the manual.
        pub const ALL: &[Rule] = &[$(Rule { id: $id, sentence: $sentence, mend: $mend }),*];
    };
}

rules! {
    // files
    MISSING_FILE = "missing-file",
        "A file that every environment needs is not there.",
        "Add it; `converger init` writes a complete set.";
    NOT_TEXT = "not-text",
        "A TOML file is not UTF-8.",
        "Save it as UTF-8.";
    TOO_LARGE = "too-large",
        "A TOML file is larger than converger reads.",
        "Split it, or keep data in files of a role.";
    TOO_DEEP = "too-deep",
        "Tables are nested deeper than anybody could mean.",
        "Flatten it.";
    SYNTAX = "syntax",
        "The file is not TOML, or says a key twice.",
        "Correct the place that the message shows.";
    FORMAT_VERSION = "format-version",
        "The file is of a newer format than this converger knows (agent-too-old).",
        "Bring the agents to the new version first, then raise `format`.";
    UNKNOWN_KEY = "unknown-key",
        "A key that this file does not have.",
        "Look for a slip of the pen; the schemas in schemas/ list every key.";
    MISSING_KEY = "missing-key",
        "A key that this table needs is not there.",
        "Add it; the schemas in schemas/ explain every key.";
    WRONG_TYPE = "wrong-type",
        "A value is of another type than its key needs.",
        "Write it as the message says.";
    BAD_VALUE = "bad-value",
        "A value is none of those that its key can have.",
        "Take one of those that the message lists.";
    UNKNOWN_ENVIRONMENT = "unknown-environment",
        "There is no folder environments/NAME with this name.",
        "Correct the name, or add the environment.";
    BAD_COMMIT = "bad-commit",
        "A commit is not given by its full id.",
        "Write all 40 (or 64) lowercase hex digits: `git rev-parse COMMIT`.";
    PLAINTEXT_SECRET = "plaintext-secret",
        "A private key stands unencrypted in the repository.",
        "Treat the key as known to others and replace it; keep its successor in secrets/NAME.age.";
    NOT_ENCRYPTED = "not-encrypted",
        "A file that ends in .age is not an age file.",
        "Treat the value as known to others and replace it with `converger secret encrypt NAME`.";
    // trust
    SIGNERS_LINE = "signers-line",
        "A line of trust/allowed_signers does not say which key belongs to which principal.",
        "Write `PRINCIPAL KEY-TYPE KEY`; keys live from commit to commit, so no dates, patterns or certificates.";
    BAD_PATTERN = "bad-pattern",
        "One of a principal's `paths` is no pattern.",
        "`*` and `?` stay inside one name, `**` is a whole name and crosses folders; no slash at the ends.";
    BAD_FINGERPRINT = "bad-fingerprint",
        "A ban does not name a key.",
        "Write the fingerprint as `ssh-keygen -lf KEY.pub` shows it: SHA256:….";
    NO_ROOT_KEY = "no-root-key",
        "Nobody could ever change trust/ or fleet.toml again; nodes refuse such a commit (trust-removed).",
        "Give the role root to a principal whose key trust/allowed_signers lists; `converger init` does it for a new fleet.";
    PRINCIPAL_WITHOUT_KEY = "principal-without-key",
        "trust/policy.toml names a principal that has no key in trust/allowed_signers.",
        "Add the key, or take the principal out.";
    KEY_WITHOUT_PRINCIPAL = "key-without-principal",
        "trust/allowed_signers lists a key of a principal that trust/policy.toml does not name.",
        "Add the principal, or take the key out.";
    // names
    BAD_NAME = "bad-name",
        "A name has other characters than lowercase letters, digits and dashes, or is reserved.",
        "Rename it; names become file names, keys of the store and parts of host names.";
    UNKNOWN_CLUSTER = "unknown-cluster",
        "A cluster is named that the topology does not have.",
        "Correct the name, or add the cluster to topology.toml.";
    UNKNOWN_ROLE = "unknown-role",
        "A role is named that has no roles/NAME/role.toml, or that this environment does not use.",
        "Correct the name, or write the role.";
    UNKNOWN_TIER = "unknown-tier",
        "A cluster is in a tier that the topology does not have.",
        "Correct the name, or add the tier.";
    UNKNOWN_NODE = "unknown-node",
        "A node is named that the topology does not have.",
        "Correct the name, or add the node to topology.toml.";
    UNKNOWN_LABEL = "unknown-label",
        "A selector asks for a label that no node of the environment has.",
        "Correct the name, or label the nodes.";
    UNKNOWN_OS = "unknown-os",
        "An operating system is named that converger does not know.",
        "Write family and version as in debian-12, ubuntu-22.04, rhel-9; in selectors the family alone will do.";
    UNKNOWN_NETWORK = "unknown-network",
        "A network is named that environment.toml does not declare.",
        "Correct the name, or add the network.";
    // topology
    NO_NODES = "no-nodes",
        "The topology has no node.",
        "Add one to topology.toml.";
    NODE_WITHOUT_CLUSTER = "node-without-cluster",
        "A node is in no cluster.",
        "Put it into a cluster, or take it out of the topology.";
    ROLE_NOT_WRITTEN = "role-not-written",
        "A cluster has no roles yet: its nodes get only what every node gets.",
        "Write the role; until then this is a reminder.";
    DUPLICATE_ID = "duplicate-id",
        "Two nodes of a cluster have the same number.",
        "Give each its own, and never one that another node had before.";
    MEMBER_NOT_IN_CLUSTER = "member-not-in-cluster",
        "A node is named as part of a cluster or group that it is not a member of.",
        "Add the cluster to the node's `clusters`, or take the name out here.";
    AFTER_CYCLE = "after-cycle",
        "Clusters wait for each other in a circle.",
        "Take one `after` out.";
    // groups
    UNKNOWN_GROUP = "unknown-group",
        "No role of the cluster says what this group means.",
        "Correct the name, or add [groups.NAME] to the role.";
    DUPLICATE_GROUP = "duplicate-group",
        "Two roles of one cluster declare the same group.",
        "Rename the group in one of them.";
    UNPROTECTED_UNIT = "unprotected-unit",
        "A role knows a unit as a group's member, but the topology has none of these groups: it restarts without a hold.",
        "Add the group to the cluster in topology.toml.";
    EMPTY_GROUP = "empty-group",
        "A group selects no node.",
        "Correct `members`, or label the nodes.";
    MAX_UNAVAILABLE_ZERO = "max-unavailable-zero",
        "A group whose `max_unavailable` is 0 could never restart anything.",
        "Say 1 or more; to keep it from moving use a maintenance window or a freeze.";
    TOO_MANY_GROUPS = "too-many-groups",
        "The groups of a node, with their former names and conflicts, need more than one transaction of the store.",
        "Take former names out of `aliases` when no node knows them any more; else spread the clusters over more nodes.";
    BAD_WINDOW = "bad-window",
        "A maintenance window cannot be read, or the windows of a node's clusters never open together.",
        "Write `Sat 02:00-04:00`, `Mon-Fri 22:00-04:00`, `Tue,Thu 01:00-02:00`, or `02:00-04:00` for every day; times are UTC.";
    QUORUM_IMPOSSIBLE = "quorum-impossible",
        "A group cannot spare as many members as it says and still have a majority.",
        "Lower `max_unavailable`, add members, or say quorum = \"none\" if losing it for a moment is acceptable.";
    ORDER_CONFLICT = "order-conflict",
        "Two groups of a cluster want the same members in opposite order; each would wait for the other.",
        "Give both the same `rank`.";
    CONFLICTS_UNKNOWN = "conflicts-unknown",
        "A group conflicts with one that is not there, or with itself.",
        "Correct the name: \"cluster.group\".";
    ALIAS_IS_LIVE = "alias-is-live",
        "A group's former name is the name of a group that exists, or another group's former name.",
        "Aliases are only for names that nothing has any more.";
    // networks
    BAD_NETWORK = "bad-network",
        "A network is not an address range.",
        "Write it as in 10.20.0.0/16, with the bits of the host part zero.";
    BAD_ADDRESS = "bad-address",
        "An address is not an IP address.",
        "Write it as in 10.20.20.11, without a prefix length.";
    ADDRESS_OUTSIDE_NETWORK = "address-outside-network",
        "A node's address is not in the range of its network.",
        "Correct the address or the network.";
    DUPLICATE_ADDRESS = "duplicate-address",
        "Two nodes, or a node and a virtual address, share an address.",
        "Give each its own.";
    DOCUMENTATION_ADDRESS = "documentation-address",
        "A virtual address is one of those reserved for documentation.",
        "Put your own address there.";
    // roles
    UNKNOWN_CHECK = "unknown-check",
        "A group's gate or leader is not a check of its role.",
        "Correct the name, or add the [[check]].";
    CHECK_INCOMPLETE = "check-incomplete",
        "A check lacks what its kind needs, or cannot be asked.",
        "Add the key that the message names.";
    UNKNOWN_UNIT = "unknown-unit",
        "A unit is named that none of the node's roles declares.",
        "Correct the name, or add the [[unit]].";
    UNKNOWN_TEMPLATE = "unknown-template",
        "A template or source is not a file of the role.",
        "Correct the name, or add the file to the role's folder.";
    FILE_SOURCE = "file-source",
        "A file needs exactly one of template, source and secret; a unit at most one of template and dropin.",
        "Keep one.";
    BAD_MODE = "bad-mode",
        "A mode is not octal.",
        "Write three or four octal digits: \"0640\".";
    BAD_PATH = "bad-path",
        "A path is not absolute and plain.",
        "Begin with /, leave out .., //, a slash at the end, and keep it below 4096 bytes.";
    PROTECTED_PATH = "protected-path",
        "A path that a role must not write: trust of the node, converger's own state, the kernel's file systems.",
        "Keep such files out of roles.";
    CONFLICT = "conflict",
        "Two resources of one node have the same path or name.",
        "Keep one, or let `only` tell them apart.";
    UNKNOWN_COMPONENT = "unknown-component",
        "An artifact is of a component that versions.toml does not have.",
        "Correct the name, or add the component.";
    VERSION_WITHOUT_DIGEST = "version-without-digest",
        "An artifact is used whose version has no sha256 or no urls.",
        "Add them to versions.toml.";
    UNKNOWN_ARCHIVE = "unknown-archive",
        "What an artifact's archive is called is of no form that is unpacked, or is no name.",
        "Say `file` in versions.toml, or take an archive of another form.";
    BAD_URL = "bad-url",
        "A url is of an unknown scheme, has credentials in it, or is none.",
        "Write https://, http://, file:/// or s3://bucket/key; credentials belong into a secret.";
    UNKNOWN_BUCKET = "unknown-bucket",
        "A url names a bucket that environment.toml does not have.",
        "Correct the name, or add [s3.BUCKET] with endpoint, region and secret.";
    BAD_BUCKET = "bad-bucket",
        "A bucket's endpoint is no address of a server, or its region no name.",
        "Write the endpoint as in https://s3.example.internal:9000.";
    BAD_AUTHORITIES = "bad-authorities",
        "`mirror_authorities` names no file of the environment with certificates.",
        "Put the PEM file into the environment's folder and name it as it lies there.";
    BAD_VERSION = "bad-version",
        "The version of the agent cannot be the name of a folder on the nodes.",
        "Write it as `converger --version` says it: digits, letters and `.+~-`, a digit first.";
    AGENT_PACE = "agent-pace",
        "`[agents]` asks for a pace at which the agents cannot be updated safely.",
        "Keep `at_a_time_percent` between 1 and 100 and `trial_secs` between 10 and 3600.";
    OWN_UNIT = "own-unit",
        "A role declares the agent's own unit: its restart would end the run that does it.",
        "Leave converger.service to the package; another version of the agent is the component converger of versions.toml.";
    BAD_DIGEST = "bad-digest",
        "A digest is not a SHA-256 in hex.",
        "Write 64 lowercase hex digits.";
    PACKAGE_WITHOUT_NAME = "package-without-name",
        "A package has no name for the operating system of a node that gets it.",
        "Add the name, or leave those nodes out with `only`.";
    ACTION_WITHOUT_GUARD = "action-without-guard",
        "An action does not say how to tell that it is done.",
        "Add `creates` or `unless`.";
    CLUSTER_ACTION = "cluster-action",
        "An action for the whole cluster is declared so that one member could not run it for all.",
        "Tell by `unless` whether the cluster still needs it; no `creates`, no `before`, and in a role that clusters bring.";
    EMPTY_COMMAND = "empty-command",
        "A command has no words.",
        "Write it as a list: [\"program\", \"argument\"].";
    SINGLETON_LEASE = "singleton-lease",
        "A singleton's lease is missing, longer than a day, or too short for its stop to fit into the last third.",
        "Let `lease_secs` be three times `stop_secs_max` or more, at least 15, and a day (86,400) at most.";
    SINGLETON = "singleton",
        "A singleton is declared so that one node of a cluster could not run it alone.",
        "Let it be a service of a role that clusters bring: not enabled, in no group, without steps.";
    // secrets
    UNKNOWN_SECRET = "unknown-secret",
        "A secret is named that secrets.toml does not have.",
        "Correct the name, or make it with `converger secret encrypt NAME`.";
    SECRET_NOT_GRANTED = "secret-not-granted",
        "A node needs a secret that is not granted to it.",
        "Widen `grant` in secrets.toml, then `converger secret rekey`.";
    SECRET_MISSING_FILE = "secret-missing-file",
        "A secret of secrets.toml has no .age file.",
        "Make it with `converger secret encrypt NAME`, or take the entry out.";
    SECRET_NOT_LISTED = "secret-not-listed",
        "An .age file has no entry in secrets.toml: no node can use it.",
        "Add the entry, or remove the file.";
    SECRET_DIGEST = "secret-digest",
        "An .age file is not the one that secrets.toml vouches for.",
        "Find out who changed it; if it was meant, put its new `sha256` into secrets.toml.";
    SECRET_RECIPIENTS = "secret-recipients",
        "A secret is encrypted to others than those who are granted it now.",
        "Run `converger secret rekey`: it encrypts the same value anew to the nodes that are granted it and the operators.";
    STALE_RECIPIENT = "stale-recipient",
        "A secret can still be opened by somebody who is not granted it any more.",
        "Run `converger secret rekey`, and give it another value with `converger secret rotate NAME`: they know this one.";
    SECRET_COPIED = "secret-copied",
        "Two secrets are one and the same encrypted file: one took the other's place, or was copied.",
        "Give each its own with `converger secret encrypt NAME`; a file is never made by copying another.";
    NODE_WITHOUT_RECIPIENT = "node-without-recipient",
        "A node is granted a secret but has no key to read it with.",
        "Make a key on the node (`age-keygen`) and put its public half into topology.toml as `recipient`.";
    BAD_RECIPIENT = "bad-recipient",
        "A recipient is neither an age nor an SSH public key.",
        "Write age1…, ssh-ed25519 … or ssh-rsa ….";
    DUPLICATE_RECIPIENT = "duplicate-recipient",
        "Two nodes have the same key: each can read what is meant for the other.",
        "Let every node make its own with `age-keygen`.";
    SAMPLE_RECIPIENT = "sample-recipient",
        "A recipient belongs to a throw-away sample whose private key everybody has.",
        "Replace it by the node's or operator's own key before anything real is encrypted to it.";
    BAD_SHAPE = "bad-shape",
        "A secret's `generate` lacks what its kind needs, or has what its kind cannot have.",
        "Write it as the message says; schemas/secrets.json explains every key.";
    AUTHORITY_GRANTED = "authority-granted",
        "The key of a certificate authority is granted to nodes: who has it signs certificates for everybody.",
        "Write `grant = []`: the operators can open it. Nodes get its certificate, which is public.";
    CERTIFICATE_EXPIRES = "certificate-expires",
        "A certificate expires within 30 days, or has expired.",
        "`converger secret generate --due 30` makes new ones; bring those made elsewhere with `converger secret import`.";
}

/// The rule with this id.
pub fn by_id(id: &str) -> Option<Rule> {
    ALL.iter().copied().find(|rule| rule.id == id)
}
