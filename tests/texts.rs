//! What people read, as it stands: `tests/texts/*.txt`, made by the built binary in a pipe, and written anew by
//! `CONVERGER_BLESS=1`. Ids, keys, times and paths are replaced by what they are.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "blessing writes the expected texts")]

mod bed;
mod forge;

use std::path::Path;

use bed::{Bed, Said};
use regex_lite::Regex;

/// A terminal session, as it would be seen.
struct Session<'a> {
    bed: &'a Bed,
    text: String,
}

impl<'a> Session<'a> {
    fn of(bed: &'a Bed) -> Self {
        Self { bed, text: String::new() }
    }

    fn ran(&mut self, command: &str, said: &Said) {
        assert!(!said.all().contains('\u{1b}'), "colours in a pipe: {command}");
        self.text.push_str(&format!("$ {command}\n{}{}", said.out, said.err));
        if said.code != 0 {
            self.text.push_str(&format!("[exit {}]\n", said.code));
        }
        self.text.push('\n');
    }

    fn types(&mut self, args: &[&str]) -> Said {
        let said = self.bed.converger(args);
        let shown: Vec<String> =
            args.iter().map(|arg| if arg.contains(' ') { format!("'{arg}'") } else { (*arg).to_owned() }).collect();
        self.ran(&format!("converger {}", shown.join(" ")), &said);
        said
    }

    fn agent(&mut self, node: &str, args: &[&str]) -> Said {
        let said = self.bed.node(node).agent(args);
        self.ran(&format!("{node}# converger agent {}", args.join(" ")), &said);
        said
    }

    /// With names in place of what differs from run to run.
    fn plain(&self) -> String {
        let mut text = self.text.replace(self.bed.dir().to_str().unwrap(), "DIR");
        let ids = self.bed.forge.git(&["rev-list", "--all", "--reflog", "--reverse", "--topo-order"]);
        for (n, id) in ids.lines().enumerate() {
            text = text.replace(id, &format!("COMMIT-{n}")).replace(&id[..7], &format!("commit{n}"));
        }
        let rules = [
            (r"SHA256:[A-Za-z0-9+/]{43}", "SHA256:KEY"),
            (r"age1[a-z0-9]{58}", "age1RECIPIENT"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
            (r"\b(\d+ ms|\d+\.\d+ s)\b", "N s"),
            (r"\bfor \d+ s\b", "for N s"),
            (r"\b\d+ s ago\b", "N s ago"),
        ];
        for (from, to) in rules {
            text = Regex::new(from).unwrap().replace_all(&text, to).into_owned();
        }
        text
    }

    #[track_caller]
    fn is_as_in(&self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/texts").join(format!("{name}.txt"));
        let text = self.plain();
        if std::env::var_os("CONVERGER_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        if text != expected {
            let diff = similar::TextDiff::from_lines(expected.as_str(), text.as_str());
            panic!("{} (CONVERGER_BLESS=1 writes it anew):\n{}", path.display(), diff.unified_diff());
        }
    }
}

fn json(said: &Said) -> serde_json::Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}:\n{}", said.all()))
}

#[test]
fn help() {
    let bed = Bed::new();
    let mut session = Session::of(&bed);
    session.types(&["--help"]);
    let commands = session.text.clone();
    let (_, commands) = commands.split_once("Commands:\n").unwrap();
    for line in commands.lines().take_while(|line| !line.is_empty()) {
        let command = line.split_whitespace().next().unwrap();
        if line.starts_with("  ") && !line.starts_with("   ") && command != "help" {
            session.types(&[command, "--help"]);
        }
    }
    session.is_as_in("help");
}

#[test]
fn explanations() {
    let bed = Bed::new();
    let mut session = Session::of(&bed);
    session.types(&["explain", "held-by-peer"]);
    session.types(&["explain", "duplicate-address"]);
    session.types(&["explain", "nothing-of-the-kind"]);
    session.is_as_in("explain");
    let all = bed.converger(&["explain"]).exits(0);
    for reason in converger::reason::ALL {
        assert!(all.out.contains(reason.id), "{} is not listed", reason.id);
    }
}

#[test]
fn a_calm_fleet() {
    let bed = Bed::new();
    let mut session = Session::of(&bed);
    for node in bed::NODES {
        session.agent(node, &["--once"]);
    }
    session.agent("web01", &["--once"]);
    session.types(&["check"]);
    session.types(&["plan"]);
    session.types(&["status"]);
    session.types(&["status", "--all"]);
    session.types(&["why", "web01"]);
    session.types(&["why", "web09"]);
    session.types(&["holds", "list"]);
    session.is_as_in("calm");
    assert_eq!(json(&bed.converger(&["status", "--json"]))["web01"]["state"], "converged");
    assert_eq!(json(&bed.converger(&["why", "web01", "--json"]))["node"], "web01");
    assert_eq!(
        json(&bed.converger(&["holds", "list", "--json"])),
        serde_json::json!({ "holds": [], "actions": [], "freezes": [], "dead": [], "waits": [] })
    );
    assert_eq!(json(&bed.node("web01").agent(&["--once", "--json"]))["reason"], "");
}

#[test]
fn a_change_that_waits() {
    let bed = Bed::new();
    let mut session = Session::of(&bed);
    bed.edit("roles/web/defaults.toml", "4", "8");
    bed.edit("roles/base/motd", "of", "in");
    session.types(&["plan"]);
    bed.commit("more workers");
    session.types(&["plan", "HEAD~1..HEAD"]);
    session.agent("web01", &["--dry-run"]);
    session.agent("web01", &["--once"]);
    session.types(&["status"]);
    session.types(&["why", "web01"]);
    session.is_as_in("waits");
}

#[test]
fn refusals() {
    let bed = Bed::new();
    let mut session = Session::of(&bed);
    bed.edit("roles/base/motd", "node.name", "node.nmae");
    session.types(&["check"]);
    bed.commit("a typo");
    session.agent("web01", &["--once"]);
    session.types(&["why", "web01"]);
    bed.forge.signing(Some("alice"), &["revert", "--no-edit", "HEAD"]);
    bed.edit("roles/base/motd", "of", "in");
    bed.forge.commit(None, "quick fix");
    session.agent("web01", &["--once"]);
    session.agent("web01", &["--dry-run"]);
    session.types(&["status"]);
    session.types(&["why", "web01"]);
    session.agent("web02", &["--once"]);
    session.types(&["why", "web02"]);
    session.is_as_in("refusals");
    assert_eq!(json(&bed.converger(&["why", "web01", "--json"]))["reason"], "unsigned");
}

#[test]
fn failures() {
    let bed = Bed::new();
    let mut session = Session::of(&bed);
    let node = bed.node("web01");
    std::fs::remove_file(node.root.join("etc/motd")).unwrap();
    std::fs::create_dir(node.root.join("etc/motd")).unwrap();
    bed.seal("token", 2, "another", &["web02", "web03"]);
    bed.commit("web01 is left out");
    session.agent("web01", &["--once"]);
    session.types(&["status"]);
    session.types(&["why", "web01"]);
    session.is_as_in("failures");
}

#[test]
fn machines_read_them_too() {
    let bed = Bed::new();
    let schemas = bed.converger(&["schema", "topology"]).exits(0);
    assert!(json(&schemas)["properties"]["nodes"].is_object());
    for shell in ["bash", "zsh", "fish"] {
        bed.converger(&["completions", shell]).exits(0).says(&["converger"]);
    }
    bed.edit("roles/base/motd", "node.name", "node.nmae");
    let problems = bed.converger(&["check", "--json"]).exits(3);
    assert_eq!(json(&problems)[0]["path"], "roles/base/motd");
    bed.converger(&["status", "--no-such-option"]).exits(2);
    bed.converger(&["nothing"]).exits(2);
}
