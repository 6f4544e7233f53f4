//! A small network of namespaces: one for the agents, with a switch, and one for each member, at 10.99.0.1 and on.
//!
//! The namespaces have no names: each lives as long as the process that holds it, and that dies with the thread that made
//! it, however that ends. The machine's own network is not touched.

#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // runs programs

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

pub struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn();
        let mut holder = holder.unwrap();
        // Once it says something it is inside.
        let mut said = [0];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
        Self(holder)
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// A program inside, which dies with the thread that started it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", &format!("--net={}", self.path()), program]);
        command
    }

    /// `ip` with these words.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        let output = self.command("ip").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// This thread is inside from now on, and so is what it starts.
pub fn enter(namespace: &str) {
    let file = File::open(namespace).unwrap();
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).unwrap();
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Net {
    pub agents: Namespace,
    pub members: Vec<Namespace>,
}

pub fn address(member: usize) -> String {
    format!("10.99.0.{}", member + 1)
}

impl Net {
    pub fn new(members: usize) -> Self {
        let net = Self { agents: Namespace::new(), members: (0..members).map(|_| Namespace::new()).collect() };
        for words in
            ["link add br0 type bridge", "address add 10.99.0.254/24 dev br0", "link set br0 up", "link set lo up"]
        {
            net.agents.ip(words);
        }
        for (n, member) in net.members.iter().enumerate() {
            net.agents.ip(&format!("link add v{n} type veth peer name eth0 netns {}", member.0.id()));
            net.agents.ip(&format!("link set v{n} master br0 up"));
            member.ip("link set lo up");
            member.ip(&format!("address add {}/24 dev eth0", address(n)));
            member.ip("link set eth0 up");
        }
        net
    }

    /// Nobody reaches this member, and it reaches nobody.
    pub fn unplug(&self, member: usize) {
        self.agents.ip(&format!("link set v{member} down"));
    }

    pub fn plug(&self, member: usize) {
        self.agents.ip(&format!("link set v{member} up"));
    }

    /// The members do not reach each other; the agents reach all of them.
    pub fn cut(&self, one: usize, other: usize) {
        self.members[one].ip(&format!("route add blackhole {}/32", address(other)));
        self.members[other].ip(&format!("route add blackhole {}/32", address(one)));
    }

    pub fn mend(&self, one: usize, other: usize) {
        self.members[one].ip(&format!("route del blackhole {}/32", address(other)));
        self.members[other].ip(&format!("route del blackhole {}/32", address(one)));
    }
}
