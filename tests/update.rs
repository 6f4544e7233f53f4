//! Agents that take another version of themselves, below a root: whose turn it is, what is refused, what a kill leaves
//! behind, and what two versions read of each other. There nothing is exec'd: that the wanted program goes on is written
//! down, and the next run counts as its own. On real machines with systemd: `tests/fleet/update.sh`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and write files as they like")]

mod bed;
mod forge;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bed::{Bed, NodeBed};
use sha2::{Digest as _, Sha256};

/// A program of this machine that is called what it is wanted as, and does nothing else.
fn program(bed: &Bed, name: &str, says: &str) -> PathBuf {
    let (source, program) = (bed.dir().join(format!("{name}.c")), bed.dir().join(name));
    std::fs::write(&source, format!("#include <stdio.h>\nint main(void) {{ return puts(\"{says}\") < 0; }}\n"))
        .unwrap();
    assert!(Command::new("cc").arg("-o").arg(&program).arg(&source).status().unwrap().success());
    program
}

fn digest(program: &Path) -> String {
    hex::encode(Sha256::digest(std::fs::read(program).unwrap()))
}

/// The commit that wants it; canaries as they are written.
fn want(bed: &Bed, version: &str, sha256: &str, program: &Path) -> String {
    let url = program.display();
    bed.forge.write(
        "environments/production/versions.toml",
        &format!("[converger]\nversion = \"{version}\"\nsha256 = \"{sha256}\"\nurls = [\"file://{url}\"]\n"),
    );
    bed.commit("another agent")
}

fn canary(bed: &Bed) {
    let text = bed.read("environments/production/environment.toml");
    let more = "\n[agents]\ncanaries = [{ nodes = [\"web01\"] }]\n";
    bed.forge.write("environments/production/environment.toml", &format!("{text}{more}"));
}

fn runs(node: &NodeBed) -> String {
    node.report()["agent_sha256"].as_str().unwrap_or_default().to_owned()
}

fn reason(node: &NodeBed) -> String {
    node.report()["reason"].as_str().unwrap_or_default().to_owned()
}

/// O7
#[test]
fn canaries_go_first_and_the_others_wait_until_their_reports_say_so() {
    let bed = Bed::new();
    canary(&bed);
    let wanted = program(&bed, "next", "converger 9.9.9");
    let base = bed.forge.git(&["rev-parse", "HEAD"]);
    let commit = want(&bed, "9.9.9", &digest(&wanted), &wanted);
    bed.converger(&["plan", &format!("{base}..{commit}")])
        .exits(0)
        .says(&["agents: converger what is installed -> 9.9.9 on 3 of 3 nodes, 1 at a time, canaries first (web01)"]);
    let (first, second) = (bed.node("web01"), bed.node("web02"));
    second.once().exits(6).says(&["order", "canaries first: web01 not yet settled with converger 9.9.9"]);
    assert_eq!(second.applied(), commit, "everything else of the commit is live");
    assert_ne!(runs(&second), digest(&wanted));
    bed.converger(&["why", "web02"]).exits(6).says(&[
        "9.9.9 is wanted",
        "converger.agents       free",
        "canaries first",
    ]);
    first.once().exits(0);
    assert_eq!(runs(&first), digest(&wanted));
    second.once().exits(0);
    assert_eq!(runs(&second), digest(&wanted));
    bed.converger(&["status"]).says(&["agents: 2 of 3 as wanted"]);
    bed.converger(&["holds", "list"]).says(&["no holds"]);
}

/// O3
#[test]
fn what_is_not_the_program_that_the_commit_names_is_refused_and_nothing_is_held() {
    let bed = Bed::new();
    let wanted = program(&bed, "next", "converger 9.9.9");
    let (right, wrong) = (digest(&wanted), "0".repeat(64));
    let bytes = std::fs::read(&wanted).unwrap();
    let altered = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let (mut bytes, path) = (bytes.clone(), bed.dir().join(name));
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let script = altered("script", &|bytes| *bytes = b"#!/bin/sh\necho converger 9.9.9\n".to_vec());
    let foreign = altered("foreign", &|bytes| bytes[18] ^= 0xff);
    let other = program(&bed, "other", "converger 1.0.0");
    let node = bed.node("web01");
    let before = std::fs::read_to_string(bed.dir().join("nodes/web01/etc/motd")).unwrap();
    for (name, sha256, path, said) in [
        ("another digest", wrong.clone(), &wanted, format!("has the digest {right}, the commit says {wrong}")),
        ("nothing there", right.clone(), &bed.dir().join("none"), "No such file".to_owned()),
        ("a script", digest(&script), &script, "it is not an ELF file".to_owned()),
        ("another processor", digest(&foreign), &foreign, "another kind of processor".to_owned()),
        ("another version", digest(&other), &other, "calls itself \"converger 1.0.0".to_owned()),
    ] {
        let commit = want(&bed, "9.9.9", &sha256, path);
        node.once().exits(5).says(&["update-failed", &said]);
        assert_eq!((reason(&node), node.applied()), ("update-failed".to_owned(), commit), "{name}");
        bed.converger(&["holds", "list"]).says(&["no holds"]);
        let left = std::fs::read_dir(node.root.join("var/lib/converger/agent")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).filter(|name| name != "lock").collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    assert_eq!(std::fs::read_to_string(node.root.join("etc/motd")).unwrap(), before);
    want(&bed, "9.9.9", &right, &wanted);
    node.once().exits(0);
    assert_eq!(runs(&node), right);
}

/// O5
#[test]
fn a_node_with_an_armed_hold_of_its_own_takes_no_other_agent() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let wanted = program(&bed, "next", "converger 9.9.9");
    want(&bed, "9.9.9", &digest(&wanted), &wanted);
    node.put("var/lib/converger/hold.json", "a hold of which nothing is known");
    node.once();
    assert_ne!(runs(&node), digest(&wanted));
    assert!(node.report()["notes"].to_string().contains("not at rest"), "{}", node.report());
    assert!(!node.root.join("var/lib/converger/agent/state.json").exists());
    std::fs::remove_file(node.root.join("var/lib/converger/hold.json")).unwrap();
    node.once().exits(0);
    assert_eq!(runs(&node), digest(&wanted));
}

/// O1
#[test]
fn what_failed_here_before_is_not_tried_again_until_the_commit_wants_another() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let bad = program(&bed, "bad", "converger 9.9.9");
    want(&bed, "9.9.9", &digest(&bad), &bad);
    let state = format!("{{\"bad\": {{\"{}\": \"converger 9.9.9: it hung\"}}}}", digest(&bad));
    node.put("var/lib/converger/agent/state.json", &state);
    for _ in 0..2 {
        node.once().exits(5).says(&["update-failed", "converger 9.9.9: it hung"]);
    }
    bed.converger(&["holds", "list"]).says(&["no holds"]);
    let good = program(&bed, "good", "converger 9.9.10");
    want(&bed, "9.9.10", &digest(&good), &good);
    node.once().exits(0);
    assert_eq!(runs(&node), digest(&good));
}

#[test]
fn a_revert_goes_back_to_the_program_of_before_which_is_still_here() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let programs: Vec<PathBuf> =
        ["1.0.1", "1.0.2"].iter().map(|version| program(&bed, version, &format!("converger {version}"))).collect();
    for program in &programs {
        want(&bed, program.file_name().unwrap().to_str().unwrap(), &digest(program), program);
        node.once().exits(0);
        assert_eq!(runs(&node), digest(program));
    }
    let first = digest(&programs[0]);
    std::fs::remove_file(&programs[0]).unwrap();
    want(&bed, "1.0.1", &first, &programs[0]);
    node.once().exits(0);
    assert_eq!(runs(&node), first);
}

/// O4
#[test]
fn killed_at_any_step_of_an_exchange_a_node_has_an_agent_and_the_next_run_ends_it() {
    let bed = Bed::new();
    let first = program(&bed, "first", "converger 1.0.1");
    want(&bed, "1.0.1", &digest(&first), &first);
    bed.node("web01").once().exits(0);
    let next = program(&bed, "next", "converger 1.0.2");
    want(&bed, "1.0.2", &digest(&next), &next);
    let template = bed.dir().join("template");
    let copy = |from: &Path, to: &Path| {
        let _ = std::fs::remove_dir_all(to);
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&bed.dir().join("nodes"), &template);
    let store = std::fs::read(bed.dir().join("store.db")).unwrap();
    let agent = |node: &NodeBed| node.root.join("var/lib/converger/agent");
    let traced = |inject: Option<&str>| {
        copy(&template, &bed.dir().join("nodes"));
        std::fs::write(bed.dir().join("store.db"), &store).unwrap();
        let node = bed.node("web01");
        let (trace, settings) = (bed.dir().join("trace"), node.root.join("etc/converger/agent.toml"));
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-s", "4096", "-e", "trace=rename,unlink", "-o"]).arg(&trace);
        command.args(inject.map(|inject| format!("-einject={inject}")));
        command.arg(env!("CARGO_BIN_EXE_converger")).args(["agent", "--once", "--root"]).arg(&node.root);
        let ran = command.arg("--settings").arg(settings).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        (node, ran.success(), std::fs::read_to_string(trace).unwrap())
    };
    let (node, done, trace) = traced(None);
    assert!(done && runs(&node) == digest(&next), "undisturbed");
    // Each call that moves or removes something of the agents': its number among those of its kind of that thread.
    let mut seen: std::collections::BTreeMap<(&str, &str), usize> = std::collections::BTreeMap::new();
    let mut steps = Vec::new();
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        let number = seen.entry((thread, name)).or_default();
        *number += 1;
        let target = arguments.rsplit('"').nth(1).unwrap_or_default();
        if Path::new(target).starts_with(agent(&node)) && !target.contains(".new") {
            steps.push(format!("{name}:signal=KILL:when={number}"));
        }
    }
    // The program, the record of the hold, the trial's begin, its phase, its end, and the record's.
    assert!(steps.len() >= 6, "{steps:?} of {trace}");
    for step in steps {
        let (node, done, _) = traced(Some(&step));
        assert!(!done, "{step}");
        // Whatever the state names is there, whole.
        let state: serde_json::Value = serde_json::from_str(&node.text("var/lib/converger/agent/state.json")).unwrap();
        let named: Vec<&serde_json::Value> =
            [&state["current"], &state["trial"]["build"]].into_iter().filter(|build| build.is_object()).collect();
        assert!(!named.is_empty());
        for build in named {
            let (version, sha256) = (build["version"].as_str().unwrap(), build["sha256"].as_str().unwrap());
            let file = agent(&node).join(format!("{version}-{}", &sha256[..16])).join("converger");
            assert_eq!(digest(&file), sha256, "{step}");
        }
        node.once().exits(0);
        assert_eq!(runs(&node), digest(&next), "{step}");
        bed.converger(&["holds", "list"]).says(&["no holds"]);
    }
}

/// L7
#[test]
fn a_commit_of_a_newer_format_is_refused_by_name_and_the_last_good_one_stays() {
    let bed = Bed::new();
    let node = bed.node("web01");
    node.once().exits(0);
    let good = node.applied();
    bed.edit("fleet.toml", "format = 1", "format = 2\nnobody_knows_this = true");
    bed.commit("format 2");
    bed.forge.write("roles/base/motd", "from tomorrow\n");
    bed.commit("and more");
    node.once().exits(3).says(&["agent-too-old", "fleet.toml: format 2 is not known", "which reads format 1"]);
    assert_eq!(node.applied(), good);
    assert!(node.text("etc/motd").starts_with("web01 of"), "the last good one is enforced");
    std::fs::write(node.root.join("etc/motd"), "meddled").unwrap();
    node.once().exits(3);
    assert!(node.text("etc/motd").starts_with("web01 of"), "also against drift");
}

fn ledger(node: &NodeBed) -> rusqlite::Connection {
    rusqlite::Connection::open(node.root.join("var/lib/converger/ledger.db")).unwrap()
}

/// L7
#[test]
fn what_a_newer_agent_adds_to_the_ledger_is_no_hindrance_to_this_one() {
    let bed = Bed::new();
    let node = bed.node("web01");
    node.once().exits(0);
    let starts = node.starts("tool.service");
    let db = ledger(&node);
    for table in ["facts", "owned", "units", "history"] {
        let sql =
            format!("UPDATE {table} SET json = json_set(json, '$.of_tomorrow', 1) WHERE json_type(json) = 'object'");
        assert!(db.execute(&sql, []).unwrap() > 0, "{table}");
    }
    db.execute("CREATE TABLE of_tomorrow (a TEXT)", []).unwrap();
    db.execute("INSERT INTO facts VALUES ('of_tomorrow', '{}')", []).unwrap();
    drop(db);
    bed.edit("roles/base/tool.service", "[Install]", "Nice=1\n[Install]");
    bed.commit("another unit file");
    node.once().exits(0);
    assert_eq!(node.starts("tool.service"), starts + 1, "it was remembered what the unit ran with");
    assert!(ledger(&node).execute("DROP TABLE of_tomorrow", []).is_ok(), "and nothing of tomorrow was lost");
}

/// L7
#[test]
fn a_ledger_of_a_newer_format_is_left_as_it_is_and_the_agent_says_why_it_does_not_start() {
    let bed = Bed::new();
    let node = bed.node("web01");
    node.once().exits(0);
    let db = ledger(&node);
    db.execute_batch("PRAGMA user_version = 2; PRAGMA wal_checkpoint(TRUNCATE);").unwrap();
    drop(db);
    let path = node.root.join("var/lib/converger/ledger.db");
    let before = std::fs::read(&path).unwrap();
    node.once()
        .exits(5)
        .says(&["ledger.db is of format 2, this converger knows 1", "run the newer agent that wrote it"]);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
