//! Three etcd members, each in a network namespace of its own, and what can happen to them.

#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // runs programs and waits for them

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use converger::lock::store::StoreKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::binary;
use super::net::{Net, address};

pub struct Three {
    pub net: Net,
    members: Vec<Member>,
    dir: tempfile::TempDir,
}

struct Member {
    child: Option<Child>,
    /// Data that is lost gets another folder.
    generation: usize,
    arguments: Vec<String>,
}

pub const COUNT: usize = 3;

impl Three {
    /// `more`: arguments for each member.
    pub fn start(more: &[&str]) -> Self {
        let (net, dir) = (Net::new(COUNT), tempfile::tempdir().unwrap());
        let more: Vec<String> = more.iter().map(|argument| (*argument).to_owned()).collect();
        let members = (0..COUNT).map(|_| Member { child: None, generation: 0, arguments: more.clone() }).collect();
        let mut three = Self { net, members, dir };
        for member in 0..COUNT {
            three.spawn(member, "new");
        }
        three.until("three members are healthy", |three| (0..COUNT).all(|member| three.is_healthy(member)));
        three
    }

    pub fn kind(&self) -> StoreKind {
        let endpoints = (0..COUNT).map(client).collect();
        StoreKind::Etcd { endpoints, ca: None, cert: None, key: None }
    }

    fn data(&self, member: usize) -> PathBuf {
        self.dir.path().join(format!("m{member}.{}", self.members[member].generation))
    }

    fn spawn(&mut self, member: usize, state: &str) {
        let data = self.data(member);
        let cluster: Vec<String> = (0..COUNT).map(|n| format!("m{n}={}", peer(n))).collect();
        let (client, peer) = (client(member), peer(member));
        let mut command = self.net.members[member].command(binary().to_str().unwrap());
        command.arg("--data-dir").arg(data).args(["--name", &format!("m{member}")]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", state]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500", "--log-level", "fatal"]);
        command.args(["--unsafe-no-fsync"]).args(&self.members[member].arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.members[member].child = Some(child);
    }

    pub fn signal(&self, member: usize, signal: Signal) {
        let child = self.members[member].child.as_ref().expect("it runs");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    pub fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// With the data that it has.
    pub fn restart(&mut self, member: usize) {
        self.spawn(member, "existing");
    }

    /// A member that lost its disk: it is removed, added again, and starts with nothing.
    pub fn lose_data(&mut self, member: usize) {
        self.kill(member);
        let list = self.ctl((member + 1) % COUNT, &["member", "list"]).expect("the others answer");
        let line = list.lines().find(|line| line.contains(&format!(" m{member},"))).expect("it is a member");
        let id = line.split(',').next().unwrap().to_owned();
        let other = (member + 1) % COUNT;
        self.until("the member is removed", |three| three.ctl(other, &["member", "remove", &id]).is_some());
        let url = format!("--peer-urls={}", peer(member));
        self.until("the member is added", |three| {
            three.ctl(other, &["member", "add", &format!("m{member}"), &url]).is_some()
        });
        self.members[member].generation += 1;
        self.spawn(member, "existing");
    }

    pub fn snapshot(&self) -> PathBuf {
        let path = self.dir.path().join("snapshot.db");
        let _ = std::fs::remove_file(&path);
        self.ctl(0, &["snapshot", "save", path.to_str().unwrap()]).expect("a snapshot is saved");
        path
    }

    /// All members begin anew from this snapshot.
    pub fn restore(&mut self, snapshot: &Path) {
        let cluster: Vec<String> = (0..COUNT).map(|n| format!("m{n}={}", peer(n))).collect();
        (0..COUNT).for_each(|member| self.kill(member));
        for member in 0..COUNT {
            self.members[member].generation += 1;
            let (data, name) = (self.data(member), format!("m{member}"));
            let words = [
                "snapshot",
                "restore",
                snapshot.to_str().unwrap(),
                "--data-dir",
                data.to_str().unwrap(),
                "--name",
                &name,
            ];
            let more = ["--initial-cluster", &cluster.join(","), "--initial-advertise-peer-urls", &peer(member)];
            self.ctl(member, &[&words[..], &more[..]].concat()).expect("a snapshot is restored");
        }
        (0..COUNT).for_each(|member| self.spawn(member, "existing"));
    }

    /// What etcdctl says through this member; none if it fails.
    pub fn ctl(&self, member: usize, words: &[&str]) -> Option<String> {
        let program = binary().with_file_name("etcdctl");
        let mut command = self.net.agents.command(program.to_str().unwrap());
        command.args(["--endpoints", &client(member), "--command-timeout", "3s", "--dial-timeout", "2s"]).args(words);
        let output = command.output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    pub fn is_healthy(&self, member: usize) -> bool {
        self.ctl(member, &["endpoint", "health"]).is_some()
    }

    /// As one of those that have a leader says it.
    pub fn leader(&self) -> usize {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            for member in (0..COUNT).filter(|member| self.members[*member].child.is_some()) {
                let said = self.ctl(member, &["endpoint", "status", "-w", "json"]).unwrap_or_default();
                let said: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
                let status = &said[0]["Status"];
                if status["leader"].as_u64().is_some_and(|id| id != 0)
                    && status["leader"] == status["header"]["member_id"]
                {
                    return member;
                }
            }
            assert!(Instant::now() < end, "nobody leads");
        }
    }

    fn until(&self, what: &str, happened: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        while !happened(self) {
            assert!(Instant::now() < end, "not in 120 s: {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        (0..COUNT).for_each(|member| self.kill(member));
    }
}

fn client(member: usize) -> String {
    format!("http://{}:2379", address(member))
}

fn peer(member: usize) -> String {
    format!("http://{}:2380", address(member))
}
