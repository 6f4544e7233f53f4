//! What the compiler does not check about this house: who imports whom, and what every file says of itself.
//!
//! Imports run one way: main -> cli -> agent -> pipeline -> the walkers -> effects -> PURE. An exception has a line and a
//! reason in `EXCEPTIONS`; one that is not used any more fails too.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// From the bottom up. A file belongs to the longest entry that its path begins with; it imports from its own layer (the
/// same module only, unless it is PURE) and from those before it.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "pure",
        &[
            "name",
            "reason",
            "resource",
            "fleet",
            "trust",
            "render",
            "plan",
            "pacing",
            "settings",
            "paths",
            "diagnostics",
            "secrets",
            "lock::quorum",
            "lock::membership",
            "lock::election",
            "lock::machine",
            "lock::protocol",
            "lock::epoch",
            "lock::operator",
            "lock::standing",
            "lock::rights",
            "lock::etcd::holes",
            "lock::window",
            "fleetlock::protocol",
            "lock::view",
            "lock::recovery",
            "lock::keys",
            "lock::singleton",
        ],
    ),
    ("leaves", &["disk", "clock", "errno", "fswatch", "wake", "log", "memory", "privacy"]),
    (
        "effects",
        &[
            "git",
            "host",
            "ledger",
            "lock",
            "probe",
            "drift",
            "report",
            "pause",
            "peers",
            "template",
            "secrets::identities",
            "peers",
            "template",
            "secrets::identities",
            "fleetlock",
        ],
    ),
    ("walkers", &["apply", "settle", "reach", "update", "singletons"]),
    ("pipeline", &["pipeline"]),
    ("agent", &["agent"]),
    ("cli", &["cli"]),
    ("main", &["main", "lib"]),
];

/// Who imports what all the same, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("plan", "host::Observed", "a plain value: what was seen; the planner never sees a Host"),
    ("lock::protocol", "lock::store", "transactions and snapshots are plain values; the trait beside them is not used"),
    ("lock::epoch", "lock::store", "as the protocol: transactions and snapshots are plain values"),
    ("lock::operator", "lock::store", "as the protocol: transactions and snapshots are plain values"),
    ("lock::standing", "lock::store", "as the protocol: snapshots are plain values"),
    ("lock::rights", "lock::store", "keys and the end of a range of them; the trait beside them is not used"),
    ("lock::recovery", "lock::store", "as protocol: transactions and snapshots are plain values"),
    ("lock::keys", "lock::store", "as protocol: conditions and writes are plain values"),
    ("lock::singleton", "lock::store", "as lock::protocol: transactions and entries are plain values"),
    ("lock::quorum", "probe::Health", "a plain value: what a gate said"),
    ("lock::quorum", "probe::Listed", "a plain value: who has a vote"),
    ("lock::membership", "probe::Health", "as quorum: what a gate said"),
    ("render", "probe::Question", "a plain value: a check made concrete for a member"),
    ("render", "probe::Tls", "a plain value: part of a question"),
    ("secrets", "secrets::identities", "opening is pure given the keys; reading them is not"),
    ("ledger", "report::At", "a plain value: a commit and its place on the chain"),
    ("ledger", "report::Proof", "a plain value: what settled under a hold"),
    ("report", "pause::Pause", "a plain value: part of what a node says of itself"),
    ("report", "lock::store", "reports are published in the store"),
    ("peers", "lock::store", "what was verified is told to the peers through the store"),
    ("lock::session", "report::Report", "what the peers say of themselves is read from the store"),
    ("host::artifacts", "git::Children", "archives arrive in the same kind of child as commits"),
    ("host::artifacts", "git::child", "how such a child fails"),
    ("host::artifacts", "git::quarantine", "how such a child is told its order"),
    ("host::artifacts", "git::sandbox", "the sandbox that such a child closes"),
    ("host::artifacts", "git::GitError", "there may be no user for such a child"),
    ("lock::session", "probe", "the members' health is asked while the hold is taken"),
    ("lock::leave", "probe", "as a session: the health and the lists of those who stay"),
    ("lock::cluster_action", "report", "as a session: what the peers say of themselves"),
    ("lock::cluster_action", "probe::Health", "as a session: the own member's health"),
];

/// Files that may be longer than 900 lines, and why.
const LONG: &[(&str, &str)] =
    &[("tests/locks.rs", "one suite over three stores: the scenery is told once, every test is short")];
const LINES_MAX: usize = 900;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, ends: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![top().join(folder)];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if ends.is_empty() || ends.iter().any(|end| path.extension().is_some_and(|e| e == *end)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// `src/lock/quorum.rs` is `lock::quorum`, `src/lock/mod.rs` is `lock`.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(top().join("src")).unwrap().with_extension("");
    let parts: Vec<&str> = inside.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
    parts.join("::")
}

/// Without its tests: they may use what they like.
fn production(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\n").next().unwrap().to_owned()
}

fn starts(path: &str, with: &str) -> bool {
    path == with || path.strip_prefix(with).is_some_and(|rest| rest.starts_with("::"))
}

fn layer(path: &str) -> Option<(usize, &'static str)> {
    let all = LAYERS.iter().enumerate().flat_map(|(n, (_, modules))| modules.iter().map(move |module| (n, *module)));
    all.filter(|(_, module)| starts(path, module)).max_by_key(|(_, module)| module.len())
}

/// Everything of ours that a file names: `crate::x::y…`, and `super::x…` as what it stands for. Code, not comments.
fn imports(path: &Path) -> BTreeSet<String> {
    let me = module(path);
    let parent =
        if path.ends_with("mod.rs") { String::new() } else { me.rsplit_once("::").map_or("", |p| p.0).to_owned() };
    let text = production(path);
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for (mark, base) in [("crate::", ""), ("super::", parent.as_str()), ("self::", me.as_str())] {
            for (at, _) in line.match_indices(mark) {
                if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
                    continue;
                }
                let rest = &line[at + mark.len()..];
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
                let name = rest[..end].trim_end_matches(':');
                let full = if base.is_empty() { name.to_owned() } else { format!("{base}::{name}") };
                // `use crate::lock::{a, b}` and the like: each of them.
                match rest[end..].strip_prefix('{') {
                    Some(list) => {
                        let list = list.split('}').next().unwrap();
                        found.extend(list.split(", ").map(|one| match one {
                            "self" => full.clone(),
                            one => format!("{full}::{one}"),
                        }));
                    }
                    None => drop(found.insert(full)),
                }
            }
        }
    }
    found
}

#[test]
fn imports_run_one_way() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for path in files("src", &["rs"]) {
        let me = module(&path);
        let Some((mine, my_module)) = layer(&me) else {
            wrong.push(format!("{me}: give it a layer in tests/tidy.rs"));
            continue;
        };
        for import in imports(&path) {
            let Some((theirs, module)) = layer(&import) else { continue };
            let same_module = me.split("::").next() == import.split("::").next() && my_module == module;
            let pure = LAYERS[theirs].0 == "pure";
            if same_module || pure || theirs < mine {
                continue;
            }
            match EXCEPTIONS.iter().position(|(who, what, _)| starts(&me, who) && starts(&import, what)) {
                Some(exception) => drop(used.insert(exception)),
                None => wrong.push(format!("{me} imports {import} ({} above {})", LAYERS[theirs].0, LAYERS[mine].0)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let idle: Vec<_> = (0..EXCEPTIONS.len()).filter(|n| !used.contains(n)).map(|n| EXCEPTIONS[n]).collect();
    assert!(idle.is_empty(), "exceptions that nobody needs any more: {idle:?}");
}

#[test]
fn pure_modules_reach_for_nothing() {
    let effects = [
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "ToSocketAddrs",
        "std::process",
        "std::env",
        "std::thread",
        "std::os",
        "SystemTime",
        "Instant",
        "git2",
        "rusqlite",
        "nix::",
        "rustix",
        "ureq",
        "zbus",
        "tokio",
        "etcd_client",
        "notify::",
        "async fn",
        "tracing::",
    ];
    for path in files("src", &["rs"]) {
        let me = module(&path);
        if layer(&me).is_none_or(|(n, _)| LAYERS[n].0 != "pure") {
            continue;
        }
        let text = production(&path);
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for (n, line) in code.enumerate() {
            let found = effects.iter().find(|effect| line.contains(**effect));
            assert!(found.is_none(), "{me} is pure and says {found:?} (line of code {n}): {line}");
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_what_it_never_does() {
    for path in files("src", &["rs"]) {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not begin with //!", path.display());
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).map(|line| &line[3..]).collect();
        assert!(head.to_lowercase().contains("never"), "{}: which \"Never\" does it keep?", path.display());
    }
}

#[test]
fn nothing_is_left_for_later() {
    for path in files("src", &["rs"]) {
        let text = production(&path);
        for (n, line) in text.lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX", ".unwrap()", "todo!(", "unimplemented!(", "dbg!("] {
                assert!(!line.contains(word), "{}:{}: {word}", path.display(), n + 1);
            }
        }
    }
}

#[test]
fn files_stay_readable_in_one_sitting() {
    for path in files("src", &["rs"]).into_iter().chain(files("tests", &["rs"])) {
        let name = path.strip_prefix(top()).unwrap().to_str().unwrap().to_owned();
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        let listed = LONG.iter().any(|(file, _)| *file == name);
        assert!(lines <= LINES_MAX || listed, "{name} has {lines} lines: split it, or list it with a reason");
        assert!(lines > LINES_MAX || !listed, "{name} has {lines} lines and need not be listed any more");
    }
}

/// Where something was made, and from where it came, is nobody's business who reads it.
#[test]
fn the_repository_names_no_foreign_places() {
    let places = [
        ["../", "shared"].concat(),
        ["/work", "/"].concat(),
        ["crates", ".io"].concat(),
        ["registry.", "npmjs"].concat(),
        ["pypi", ".org"].concat(),
    ];
    let folders = ["src", "tests", "repo-template", "schemas", "systemd", "tools", "docs", "examples", "benches"];
    let tops = ["Cargo.toml", "Makefile", "README.md"].map(|name| top().join(name));
    for path in folders.iter().flat_map(|folder| files(folder, &[])).chain(tops) {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for place in &places {
            assert!(!text.contains(place.as_str()), "{} mentions {place}", path.display());
        }
    }
}
