//! A fleet repository's mistakes, one case file per rule, and files that are no TOML at all.
//!
//! `tests/fleet/valid/` is a small fleet without a problem. A case in `tests/fleet/invalid/` changes it and shows what
//! `check` says: `=== path` opens a file; `- line` is replaced by the `+ lines` that follow it, `+ lines` alone go to
//! the end, `- *` removes the file, `+ \xff` is that byte; after `----` comes what is printed. `CONVERGER_BLESS=1` writes that part anew.
#![allow(clippy::disallowed_methods, reason = "blessing writes the fixtures; a limit is measured")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use converger::diagnostics::{self, Style};
use converger::fleet::load::{Knowing, load, load_knowing};
use converger::fleet::problem::{Problem, Severity};
use converger::fleet::rule;
use converger::fleet::tree::Tree;
use converger::name::{EnvironmentName, RepoPath};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fleet").join(name)
}

fn read_tree(root: &Path) -> Tree {
    let mut tree = Tree::default();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                tree.files.insert(RepoPath::new(name), std::fs::read(&path).unwrap().into());
            }
        }
    }
    tree
}

fn valid() -> Tree {
    read_tree(&folder("valid"))
}

fn set(tree: &mut Tree, path: &str, text: impl Into<Vec<u8>>) {
    tree.files.insert(path.into(), text.into().into());
}

fn text(tree: &Tree, path: &str) -> String {
    tree.get(path).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).unwrap_or_default()
}

/// Applies the part of a case above `----`.
fn edited(case: &str) -> Tree {
    let mut tree = valid();
    let mut path = "";
    let mut at = None;
    for line in case.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("=== ") {
            (path, at) = (name, None);
        } else if line == "- *" {
            assert!(tree.files.remove(path).is_some(), "{path}");
        } else if let Some(old) = line.strip_prefix("- ") {
            let old_text = text(&tree, path);
            let start = format!("\n{old_text}").find(&format!("\n{old}\n")).unwrap_or_else(|| panic!("no line {old}"));
            set(&mut tree, path, format!("{}{}", &old_text[..start], &old_text[start + old.len() + 1..]));
            at = Some(start);
        } else if let Some(new) = line.strip_prefix('+') {
            // A key cannot be written plainly, not even here: the file would be refused by every scanner.
            let new = new.strip_prefix(' ').unwrap_or(new).replace("KE~Y", "KEY") + "\n";
            if new == "\\xff\n" {
                let bytes = [text(&tree, path).as_bytes(), b"\xff"].concat();
                set(&mut tree, path, bytes);
                continue;
            }
            let mut all = text(&tree, path);
            let end = at.unwrap_or(all.len());
            all.insert_str(end, &new);
            at = at.map(|_| end + new.len());
            set(&mut tree, path, all);
        } else {
            assert_eq!(line, "", "a case says `===`, `-`, `+` or `#`");
        }
    }
    tree
}

fn problems_of(tree: &Arc<Tree>, environment: Option<&EnvironmentName>) -> Vec<Problem> {
    // The operator of `valid` plays the sample in the case of that name.
    let samples = match tree.get("sample") {
        Some(_) => text(tree, "sample").lines().map(str::to_owned).collect(),
        None => BTreeSet::new(),
    };
    let knowing = Knowing { samples, now: Some("2026-06-01T00:00:00Z".parse().unwrap()) };
    match load_knowing(tree, environment, &knowing) {
        Ok(loaded) => loaded.warnings,
        Err(problems) => {
            assert!(problems.iter().any(|problem| problem.severity == Severity::Error), "no fleet and no error");
            problems
        }
    }
}

#[test]
fn every_rule_has_a_case_that_shows_what_is_said() {
    let bless = std::env::var_os("CONVERGER_BLESS").is_some();
    let known: BTreeSet<&str> = rule::ALL.iter().map(|rule| rule.id).collect();
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder("invalid")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let case = std::fs::read_to_string(&path).unwrap();
        let (edit, expected) = case.split_once("\n----\n").unwrap_or((&case, ""));
        let tree = Arc::new(edited(edit));
        let problems = problems_of(&tree, None);
        // `rule.variant.txt` is another case of the rule.
        let rule = name.split('.').next().unwrap();
        assert!(problems.iter().any(|problem| problem.rule == rule), "{name} shows {problems:#?}");
        for problem in &problems {
            assert!(known.contains(problem.rule), "{} is not in the list of rules", problem.rule);
        }
        seen.insert(rule.to_owned());
        let said =
            format!("{}{}\n", diagnostics::render(&problems, &tree, Style::default()), diagnostics::count(&problems));
        if bless {
            std::fs::write(&path, format!("{edit}\n----\n{said}")).unwrap();
        } else if said != expected {
            wrong.push(format!("{name} says\n{said}instead of\n{expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let missing: Vec<&str> =
        known.into_iter().filter(|rule| !seen.contains(*rule) && *rule != rule::TOO_LARGE).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn a_good_fleet_has_no_problem() {
    let tree = Arc::new(valid());
    let loaded = match load(&tree, None) {
        Ok(loaded) => loaded,
        Err(problems) => panic!("{}", diagnostics::render(&problems, &tree, Style::default())),
    };
    assert!(loaded.warnings.is_empty(), "{}", diagnostics::render(&loaded.warnings, &tree, Style::default()));
    let environment = &loaded.fleet.environment;
    let names: Vec<&str> = environment.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["etcd01", "etcd02", "etcd03", "kafka01", "kafka02", "kafka03"], "in order of declaration");
    let group = environment.group(&"kafka.controllers".into()).unwrap();
    assert_eq!((group.members.len(), group.unit.as_str(), group.settle_secs), (3, "kafka.service", 60));
    let kafka = &environment.role_bodies["kafka"];
    assert_eq!(kafka.files[1].body.secret.as_deref(), Some("kafka-keystore"));
    assert!(text(&tree, "roles/kafka/role.toml").lines().nth(kafka.files[1].line - 1).unwrap().contains("[[file]]"));
}

#[test]
fn conflicts_are_said_once_and_hold_both_ways() {
    let tree = edited("=== environments/production/topology.toml\n- rank = []\n+ conflicts = [\"etcd.members\"]\n");
    let Ok(loaded) = load(&Arc::new(tree), None) else { panic!("has errors") };
    let group = loaded.fleet.environment.group(&"etcd.members".into()).unwrap();
    assert_eq!(group.conflicts, ["kafka.brokers".into()]);
}

#[test]
fn the_environment_can_be_named() {
    let tree = Arc::new(valid());
    let problems = problems_of(&tree, Some(&"prodution".into()));
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].help.as_deref(), Some("did you mean \"production\"?"));
}

/// Whatever stands in the files: problems or a fleet, soon, and something to print.
fn survives(tree: Tree, what: &str) {
    let tree = Arc::new(tree);
    let start = Instant::now();
    let problems = problems_of(&tree, None);
    let said = diagnostics::render(&problems, &tree, Style::default());
    let _ = diagnostics::to_json(&problems, &tree);
    // An unoptimised lexer takes a second for 5 MB.
    let soon = Duration::from_secs(if cfg!(debug_assertions) { 120 } else { 1 });
    assert!(start.elapsed() < soon, "{what} took {:?}", start.elapsed());
    assert!(said.len() < 1 << 20, "{what} says {} bytes", said.len());
}

#[test]
fn no_file_takes_it_down() {
    let base = valid();
    let paths: Vec<String> =
        base.files.keys().map(|path| path.to_string()).filter(|path| path.ends_with(".toml")).collect();
    let deep_list = format!("x = {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    let deep_table = format!("x = {}1{}\n", "{a=".repeat(10_000), "}".repeat(10_000));
    let dotted = format!("{} = 1\n", vec!["a"; 10_000].join("."));
    let header = format!("[{}]\n", vec!["a"; 10_000].join("."));
    let tables: String = (0..10_000).map(|at| format!("[[x.y]]\nz = {at}\n")).collect();
    let long = format!("x = \"{}\"\n", "ä".repeat(2_500_000));
    let open = format!("x = \"{}", "a".repeat(5_000_000));
    let whole: [(&str, &str); 10] = [
        ("deep list", &deep_list),
        ("deep table", &deep_table),
        ("dotted key", &dotted),
        ("deep header", &header),
        ("many tables", &tables),
        ("long string", &long),
        ("open string", &open),
        ("nothing", ""),
        ("nul", "\0\0\0"),
        ("escape", "x = \"\u{1b}[31m\" \u{202e}\n"),
    ];
    let values = [
        "-1",
        "1",
        "9999999999999999999999",
        "1.5",
        "nan",
        "true",
        "\"\"",
        "\"\u{1b}[2J\"",
        "[]",
        "{}",
        "[[[]]]",
        "1979-05-27",
        "\"{{ x",
    ];
    let mut count = 0;
    for path in &paths {
        let good = text(&base, path);
        let mut try_with = |changed: String, what: &str| {
            let mut tree = Tree { commit: None, files: base.files.clone() };
            set(&mut tree, path, changed);
            survives(tree, &format!("{path}: {what}"));
            count += 1;
        };
        for (what, content) in whole {
            // Once is enough for what takes long.
            if content.len() > 1 << 20 && !path.ends_with("topology.toml") {
                continue;
            }
            try_with(content.to_owned(), what);
            try_with(format!("{content}{good}"), what);
        }
        for (at, line) in good.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let replaced = |with: &str| -> String {
                good.lines()
                    .enumerate()
                    .map(|(other, line)| if other == at { with } else { line })
                    .map(|line| format!("{line}\n"))
                    .collect()
            };
            let start = good.lines().take(at).map(|line| line.len() + 1).sum::<usize>();
            try_with(good[..start + line.len() / 2].to_owned(), "cut");
            try_with(replaced(&format!("{line}\n{line}")), "twice");
            try_with(replaced(""), "left out");
            if let Some((key, _)) = line.split_once(" = ") {
                let value = values[(at * 7 + key.len()) % values.len()];
                try_with(replaced(&format!("{key} = {value}")), value);
                try_with(replaced(&format!("{key}x = 1")), "other key");
            }
        }
    }
    assert!(count >= 300, "{count}");
}

#[test]
fn a_file_of_many_megabytes_is_not_read() {
    let mut tree = valid();
    set(&mut tree, "environments/production/variables.toml", vec![b'#'; (32 << 20) + 1]);
    let problems = problems_of(&Arc::new(tree), None);
    assert_eq!(problems.iter().map(|problem| problem.rule).collect::<Vec<_>>(), [rule::TOO_LARGE]);
}

#[test]
fn one_bad_node_does_not_hide_the_others() {
    let mut tree = valid();
    let path = "environments/production/topology.toml";
    let bad = text(&tree, path)
        .replace("size = { vcpu = 4, memory_gib = 8, disk_gib = 50 }\nlabels = { rack", "size = 4\nlabels = { rack")
        .replace("tier = \"streaming\"", "tier = \"streaming\"\nroless = 1");
    set(&mut tree, path, bad);
    let problems = problems_of(&Arc::new(tree), None);
    let rules: Vec<&str> = problems.iter().map(|problem| problem.rule).collect();
    assert_eq!(rules, ["unknown-key", "wrong-type", "wrong-type", "wrong-type"], "{problems:#?}");
}

#[test]
fn the_certificate_of_a_retired_node_is_no_mistake() {
    let mut tree = edited(
        "=== environments/production/secrets.toml\n+ [secrets.internal]\n+ grant = []\n+ generate = { kind = \"ca\" }\n\
         + [secrets.tls-etcd01]\n+ grant = [{ nodes = [\"etcd01\"] }]\n+ generate = { kind = \"tls\", ca = \"internal\" }\n",
    );
    let path = "environments/production/topology.toml";
    let retired = text(&tree, path).replace("[nodes.etcd01]\n", "[nodes.etcd01]\nstate = \"retired\"\n");
    set(&mut tree, path, retired);
    let problems = problems_of(&Arc::new(tree), None);
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    let errors: Vec<&str> = errors.map(|problem| problem.rule).collect();
    assert_eq!(errors, [rule::SECRET_MISSING_FILE; 2], "{problems:#?}");
}
