//! Agents as processes: killed at the worst moment, told to stop, started twice; and what the next run makes of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs, write files and look at the clock")]

mod bed;
mod forge;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bed::{Bed, NodeBed, converger};

/// The three members of the group, converged.
fn members(bed: &Bed) -> [NodeBed; 3] {
    bed::NODES.map(|name| {
        let node = bed.node(name);
        node.once().exits(0);
        node
    })
}

fn spawn(node: &NodeBed, args: &[&str]) -> Child {
    let mut command = converger();
    let settings = node.root.join("etc/converger/agent.toml");
    command.arg("agent").arg("--root").arg(&node.root).arg("--settings").arg(settings).args(args);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[track_caller]
fn until(what: &str, happened: impl Fn() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} did not happen within 30 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn events(node: &NodeBed) -> Vec<String> {
    let log = node.text("run/converger/units.log");
    let event = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(format!("{} {}", event["event"].as_str()?, event["unit"].as_str()?))
    };
    log.lines().filter_map(event).collect()
}

fn more_workers(bed: &Bed) {
    bed.edit("roles/web/defaults.toml", "4", "8");
    bed.commit("more workers");
}

#[track_caller]
fn nobody_holds(bed: &Bed) {
    assert_eq!(bed.converger(&["holds", "list"]).exits(0).out, "no holds\n");
}

#[test]
fn a_protected_restart_is_one_restart_under_a_hold() {
    let bed = Bed::new();
    let [first, ..] = members(&bed);
    more_workers(&bed);
    let starts = first.starts("web.service");
    first.once().exits(0).says(&["hold web.web: claimed, asked, armed", "restart web.service"]);
    assert_eq!(first.starts("web.service"), starts + 1);
    assert!(first.text("etc/web/web.conf").contains("workers = 8"));
    nobody_holds(&bed);
    first.once().exits(0).says(&["nothing to do"]);
}

/// Killed in the middle of a stop (files are old), and in the middle of the start (files are new).
#[test]
fn an_agent_that_was_killed_in_a_restart_is_followed_by_one_that_finishes_it() {
    for (moment, unit) in [("stopping", "web.service"), ("starting", "web.service"), ("starting", "tool.service")] {
        let bed = Bed::new();
        let [first, ..] = members(&bed);
        more_workers(&bed);
        bed.edit("roles/base/tool.service", "true", "false");
        bed.commit("and another tool");
        let (now, starts) = (format!("{moment} {unit}"), events(&first).len());
        let mut agent = spawn(&first, &["--once"]);
        until(&now, || events(&first).iter().skip(starts).any(|event| *event == now));
        agent.kill().unwrap();
        agent.wait().unwrap();
        first.once().exits(0);
        assert!(first.text("etc/web/web.conf").contains("workers = 8"));
        assert!(first.text("etc/systemd/system/tool.service").contains("false"));
        for unit in ["web.service", "tool.service"] {
            assert_eq!(first.report()["units"][unit]["active"], "active", "{now}");
        }
        assert_eq!(first.applied(), bed.forge.head());
        nobody_holds(&bed);
    }
}

/// `kill -9` at ever later moments of a whole run: the next run ends where an undisturbed one would.
#[test]
fn an_agent_that_was_killed_at_any_time_leaves_nothing_that_lasts() {
    let bed = Bed::new();
    let [first, ..] = members(&bed);
    for round in 0..8_u64 {
        let (from, to) = (format!("workers: {round}"), format!("workers: {}", round + 1));
        if round == 0 {
            bed.forge.write("roles/web/defaults.toml", "note = \"workers: 0\"\nworkers = 4\n");
            bed.edit("roles/web/web.conf", "workers", "# {{ vars.note }}\nworkers");
        }
        bed.edit("roles/web/defaults.toml", &from, &to);
        bed.commit(&to);
        let mut agent = spawn(&first, &["--once"]);
        std::thread::sleep(Duration::from_millis(round * 45));
        agent.kill().unwrap();
        agent.wait().unwrap();
        first.once().exits(0);
        assert!(first.text("etc/web/web.conf").contains(&to), "{to}");
        assert_eq!(first.report()["units"]["web.service"]["active"], "active");
        nobody_holds(&bed);
    }
}

#[test]
fn a_machine_that_somebody_meddles_with() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let starts = node.starts("web.service");
    // Restarted by hand: another run of the same files.
    node.meddle("web.service", |unit| unit["invocation"] = "0123456789abcdef0123456789abcdef".into());
    node.once().exits(0);
    assert_eq!(node.starts("web.service"), starts);
    // Stopped by hand: a unit that must run is started.
    node.meddle("web.service", |unit| unit["state"] = "inactive".into());
    node.once().exits(0).says(&["start web.service"]);
    assert_eq!(node.starts("web.service"), starts + 1);
    // A file: put back, and nothing restarts.
    node.put("etc/web/web.conf", "workers = 1000\n");
    node.once().exits(0).says(&["~ /etc/web/web.conf (drift, put back)"]);
    assert_eq!(node.starts("web.service"), starts + 1);
    assert_eq!(node.report()["drift_repaired"], 1);
    nobody_holds(&bed);
}

#[test]
fn there_is_one_agent_per_node_and_it_stops_when_told() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let mut agent = spawn(&node, &[]);
    more_workers(&bed);
    bed.edit("roles/base/motd", "of", "in");
    let head = bed.commit("a push");
    until("the push wakes it", || node.text("etc/motd").contains("in production"));
    assert!(node.report()["target"]["commit"] == head.as_str() || node.report()["target"].is_object());
    node.once().exits(2).says(&["error[settings]", "another agent works on"]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
}
