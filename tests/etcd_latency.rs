//! How long a hold lies free before the next agent takes it, and what a rolling restart of five costs over what the
//! services themselves take. Real agents, a real etcd with certificates and rights.
//!
//! Printed; asserted is only what no loaded machine breaks. `cargo test --test etcd_latency -- --nocapture`
#![allow(clippy::disallowed_methods)] // starts the agents, and looks at the clock
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // in what the tests share, as in the tests

mod bed;
mod etcd;
mod etcd_fleet;
mod forge;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use age::secrecy::ExposeSecret as _;
use bed::NodeBed;
use etcd_fleet::Fleet;

const FIVE: [&str; 5] = ["web01", "web02", "web03", "web04", "web05"];

/// The agents end with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn five() -> Fleet {
    let fleet = Fleet::new();
    let mut topology = fleet.bed.read("environments/production/topology.toml");
    for (n, node) in FIVE.iter().enumerate().skip(3) {
        let key = age::x25519::Identity::generate();
        std::fs::write(fleet.bed.dir().join("identities").join(node), key.to_string().expose_secret()).unwrap();
        topology.push_str(&format!(
            "\n[nodes.{node}]\nclusters = [\"web\"]\naddresses = {{ app = \"10.20.1.{}\" }}\n\
             size = {{ vcpu = 2, memory_gib = 4, disk_gib = 20 }}\nrecipient = \"{}\"\n",
            n + 1,
            key.to_public()
        ));
    }
    fleet.bed.forge.write("environments/production/topology.toml", &topology);
    fleet.bed.seal_as("token", 2, "open sesame", &FIVE, &FIVE);
    fleet.bed.commit("five");
    fleet.acl(&["--apply", "--operator", "ann"]).exits(0);
    fleet.acl(&["--enable-auth"]).exits(0);
    fleet
}

/// Of the agent's own work: when its unit began to stop and when it was up again, in seconds of the machine's clock.
fn downs(node: &NodeBed) -> Vec<(f64, f64)> {
    let at = |line: &serde_json::Value| {
        let at: jiff::Timestamp = line["at"].as_str().unwrap().parse().unwrap();
        at.as_microsecond() as f64 / 1e6
    };
    let lines = node.text("run/converger/units.log");
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let web: Vec<&serde_json::Value> = lines.iter().filter(|line| line["unit"] == "web.service").collect();
    let mut downs = Vec::new();
    let mut since = None;
    for line in web {
        match line["event"].as_str().unwrap() {
            "stopping" => since = Some(at(line)),
            "started" => downs.extend(since.take().map(|since| (since, at(line)))),
            _ => {}
        }
    }
    downs
}

fn distribution(what: &str, mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize] * 1000.0;
    eprintln!("{what}: median {:.0} ms, 90 % {:.0} ms, worst {:.0} ms of {}", at(0.5), at(0.9), at(1.0), values.len());
    at(0.5) / 1000.0
}

#[test]
fn a_freed_hold_is_taken_at_once_by_the_next_agent() {
    let rolls: usize = std::env::var("CONVERGER_ROLLS").ok().and_then(|value| value.parse().ok()).unwrap_or(2);
    let fleet = five();
    let nodes = FIVE.map(|name| fleet.node(name));
    let spawn = |node: &NodeBed| {
        let mut command = bed::converger();
        command.arg("agent").arg("--root").arg(&node.root).arg("--settings");
        command.arg(node.root.join("etc/converger/agent.toml")).stdout(Stdio::null()).stderr(Stdio::null());
        Agent(command.spawn().unwrap())
    };
    let _agents: Vec<Agent> = nodes.iter().map(spawn).collect();
    let head = fleet.bed.forge.head();
    let end = Instant::now() + Duration::from_secs(180);
    let report =
        |node: &NodeBed| std::fs::read_to_string(node.root.join("run/converger/status.json")).unwrap_or_default();
    let has = |node: &NodeBed, head: &str| {
        let report: serde_json::Value = serde_json::from_str(&report(node)).unwrap_or_default();
        report["applied"]["commit"] == head
    };
    while !nodes.iter().all(|node| has(node, &head)) {
        assert!(Instant::now() < end, "not converged: {}", report(&nodes[0]));
        std::thread::sleep(Duration::from_millis(100));
    }
    let ann = fleet.store("ann");
    let (mut gaps, mut own) = (Vec::new(), Vec::new());
    for roll in 0..rolls {
        let downs_before: Vec<usize> = nodes.iter().map(|node| downs(node).len()).collect();
        fleet.bed.edit("roles/web/web.conf", "workers", &format!("# {roll}\nworkers"));
        let head = fleet.bed.commit("another configuration");
        // The holds as they come and go.
        let (mut held, mut freed, mut first, mut last) = (None, None, None, None);
        let end = Instant::now() + Duration::from_secs(180);
        let mut looked = Instant::now();
        loop {
            assert!(Instant::now() < end, "not converged");
            let read = ann.read(&["hold/web.web/"]).unwrap();
            let now = read.entries.first().map(|entry| entry.key.clone());
            if now != held {
                let at = Instant::now();
                if now.is_some() {
                    first.get_or_insert(at);
                    gaps.extend(freed.take().map(|freed| at.duration_since(freed).as_secs_f64()));
                } else {
                    freed = Some(at);
                    last = Some(at);
                }
                held = now;
            }
            if held.is_none() && looked.elapsed() > Duration::from_millis(500) {
                looked = Instant::now();
                if nodes.iter().all(|node| has(node, &head)) {
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let services: f64 = nodes
            .iter()
            .zip(downs_before)
            .flat_map(|(node, before)| downs(node).into_iter().skip(before))
            .map(|(from, to)| to - from)
            .sum();
        let whole = last.unwrap().duration_since(first.unwrap()).as_secs_f64();
        eprintln!("a roll of five: {whole:.2} s, of which stop to start {services:.2} s");
        own.push(whole - services);
    }
    assert!(gaps.len() >= rolls * (FIVE.len() - 1), "{gaps:?}");
    let median = distribution("from one release to the next claim", gaps);
    distribution("a rolling restart of five, over stops and starts", own);
    // What a lost watch would cost is the poll after 10 s.
    assert!(median < 5.0, "{median}");
}
