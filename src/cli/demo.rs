//! `converger demo`: the main job on the production template, on this machine, with real agents as processes.
//!
//! Everything shown is run: git, converger's own commands, one agent process per node. A sandbox has no systemd: a recorder
//! stands in for units, and gates ask it. Never: a line of output that no command printed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use super::process::{output, output_of_any, spawn};
use super::{Done, Failure, say};
use crate::clock::{Clock as _, SystemClock};
use crate::disk;
use crate::fleet::{Fleet, load};
use crate::git::Workspace;
use crate::name::{GroupId, NodeName};
use crate::plan::show::Paint;
use crate::reason::{Exit, chain};
use crate::template;
use crate::wake::Wakes;

/// Watch a merge roll through the 65-node production template on this machine, in a minute or two
///
/// Makes a signed fleet repository, starts one agent process per node (each in a directory of its own, with a local store in
/// place of etcd), merges a change, repairs drift, refuses an unsigned commit and rolls back. Nothing outside the sandbox
/// is touched; no privileges are needed.
#[derive(clap::Args)]
pub struct Args {
    /// Where the sandbox goes; an old sandbox there is replaced
    #[arg(long, value_name = "DIR", default_value = "converger-demo")]
    dir: PathBuf,
    /// Let the agents run on after the demo
    #[arg(long)]
    keep_running: bool,
}

/// A sandbox says so, so that `--dir /etc` is never mistaken for one.
const MARK: &str = ".converger-demo";

pub fn run(args: Args) -> Done {
    let mut demo = Demo::prepare(&args.dir)?;
    let began = SystemClock.awake();
    demo.make_repository()?;
    demo.start_agents()?;
    demo.plan_pull_request()?;
    demo.merge()?;
    demo.drift()?;
    demo.unsigned()?;
    demo.revert()?;
    demo.end(args.keep_running, SystemClock.awake().saturating_sub(began))?;
    Ok(Exit::Done)
}

struct Demo {
    dir: PathBuf,
    exe: String,
    agents: Vec<Child>,
    nodes: Vec<NodeName>,
    groups: BTreeMap<GroupId, (Vec<NodeName>, String)>,
    scene: usize,
}

impl Drop for Demo {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            stop(agent);
        }
        for agent in &mut self.agents {
            let _ = agent.wait();
        }
    }
}

fn stop(agent: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap_or(0));
    if pid.as_raw() > 0 {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
}

impl Demo {
    fn prepare(dir: &Path) -> Result<Self, Failure> {
        if dir.exists() {
            let empty = dir.read_dir().is_ok_and(|mut entries| entries.next().is_none());
            if !empty && !dir.join(MARK).exists() {
                return Err(Failure::usage(format!("{} is not a demo's sandbox; name another --dir", dir.display())));
            }
            std::fs::remove_dir_all(dir).map_err(|error| Failure::usage(format!("{}: {error}", dir.display())))?;
        }
        disk::create_dirs(dir).map_err(failed)?;
        let dir = dir.canonicalize().map_err(|error| Failure::usage(format!("{}: {error}", dir.display())))?;
        put(&dir.join(MARK), b"made by `converger demo`, may be deleted\n", 0o644)?;
        let exe = std::env::current_exe().map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
        let exe = exe.display().to_string();
        Ok(Self { dir, exe, agents: Vec::new(), nodes: Vec::new(), groups: BTreeMap::new(), scene: 0 })
    }

    fn scene(&mut self, sentence: &str) {
        self.scene += 1;
        let Paint { bold, off, .. } = Paint::COLOUR;
        say(format!("\n{bold}{}. {sentence}{off}\n", self.scene));
    }

    fn repository(&self) -> PathBuf {
        self.dir.join("fleet")
    }

    fn root(&self, node: &NodeName) -> PathBuf {
        self.dir.join("nodes").join(node.as_str())
    }

    /// Shows a command and runs it in the fleet repository.
    fn shown(&self, program: &str, args: &[&str]) -> Result<String, Failure> {
        let Paint { dim, off, .. } = Paint::COLOUR;
        say(format!("{dim}$ {program} {}{off}\n", args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" ")));
        if program == "converger" { self.converger(args) } else { output(&self.repository(), program, args) }
    }

    /// One of converger's own commands, by this very binary; its exit code is part of what it says.
    fn converger(&self, args: &[&str]) -> Result<String, Failure> {
        let client = self.dir.join("client.toml").display().to_string();
        let args: Vec<&str> = ["--client", &client].iter().chain(args).copied().collect();
        output_of_any(&self.repository(), &self.exe, &args)
    }

    fn git(&self, args: &[&str]) -> Result<String, Failure> {
        output(&self.repository(), "git", args)
    }

    fn head(&self) -> Result<String, Failure> {
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    fn make_repository(&mut self) -> Result<(), Failure> {
        self.scene("A signed fleet repository is made from the template.");
        let key = self.dir.join("founder");
        let key_text = key.display().to_string();
        output(&self.dir, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "demo founder", "-f", &key_text])?;
        let Paint { dim, off, .. } = Paint::COLOUR;
        say(format!("{dim}$ converger init fleet --key founder{off}\n"));
        let made = output(&self.dir, &self.exe, &["init", "fleet", "--key", &key_text])?;
        say(format!("{}\n", made.lines().next().unwrap_or_default()));
        output(&self.dir, "git", &["clone", "--quiet", "--bare", "fleet", "forge.git"])?;
        let forge = self.dir.join("forge.git").display().to_string();
        self.git(&["remote", "add", "origin", &forge])?;
        say("pushed to forge.git, which stands in for your forge\n");
        let (repository, store) = (self.repository(), self.dir.join("store.db"));
        let client =
            format!("repo = \"{}\"\n[store]\nkind = \"local\"\npath = \"{}\"\n", repository.display(), store.display());
        put(&self.dir.join("client.toml"), client.as_bytes(), 0o600)?;
        say(self.shown("converger", &["check", "--quiet"])?);
        Ok(())
    }

    fn load(&self) -> Result<Fleet, Failure> {
        let tree = Workspace::open(&self.repository()).and_then(|workspace| workspace.tree_of_worktree());
        let tree = std::sync::Arc::new(tree.map_err(|error| Failure::new(Exit::Repository, chain(&error)))?);
        let loaded = load::load(&tree, None).map_err(|problems| super::access::problems_failure(&problems, &tree))?;
        Ok(loaded.fleet)
    }

    fn start_agents(&mut self) -> Result<(), Failure> {
        let fleet = self.load()?;
        let environment = &fleet.environment;
        self.nodes = environment.nodes.iter().map(|node| node.name.clone()).collect();
        self.groups = environment
            .groups()
            .map(|group| (group.id.clone(), (group.members.clone(), group.unit.to_string())))
            .collect();
        self.scene(&format!("{} nodes converge: one agent process each.", self.nodes.len()));
        say(
            "A sandbox has no systemd: a recorder stands in for units (a stop takes 50 ms, a start 100 ms), gates ask it, and\n\
             settle times are overlaid with 1 s. The rest is the real thing.\n",
        );
        let store = self.dir.join("store.db");
        let summary = Workspace::open(&self.repository()).and_then(|workspace| workspace.summary("HEAD"));
        let summary = summary.map_err(|error| Failure::new(Exit::Internal, chain(&error)))?;
        let trust = format!(
            "fleet = \"{}\"\nref = \"refs/heads/main\"\npolicy = \"standard\"\n\
             introduction = {{ commit = \"{}\", signer = \"{}\", seq = 1 }}\n[[remotes]]\nurl = \"file://{}\"\n",
            fleet.name,
            summary.id,
            summary.signer.unwrap_or_default(),
            self.dir.join("forge.git").display()
        );
        disk::create_dirs(&self.dir.join("logs")).map_err(failed)?;
        let began = SystemClock.awake();
        for node in self.nodes.clone() {
            self.start_agent(&node, environment.name.as_str(), &trust, &store)?;
        }
        let head = self.head()?;
        self.wait_for(&head)?;
        let took = SystemClock.awake().saturating_sub(began);
        say(self.shown("converger", &["status"])?);
        say(format!("{} agents started and converged in {:.1} s\n", self.nodes.len(), took.as_secs_f64()));
        Ok(())
    }

    fn start_agent(&mut self, node: &NodeName, environment: &str, trust: &str, store: &Path) -> Result<(), Failure> {
        let root = self.root(node);
        let etc = root.join("etc/converger");
        disk::create_dirs(&etc).map_err(failed)?;
        let settings = format!(
            "node = \"{node}\"\nenvironment = \"{environment}\"\ntrust = \"trust.toml\"\nidentities = [\"age.key\"]\n\
             [store]\nkind = \"local\"\npath = \"{}\"\n[sandbox]\nroots = \"../{{node}}\"\nsettle_secs = 1\n",
            store.display()
        );
        let identity = template::sample_identity(node.as_str())
            .ok_or_else(|| Failure::new(Exit::Internal, format!("no sample identity for {node}")))?;
        put(&etc.join("agent.toml"), settings.as_bytes(), 0o600)?;
        put(&etc.join("trust.toml"), trust.as_bytes(), 0o600)?;
        put(&etc.join("age.key"), identity, 0o600)?;
        let log = self.dir.join("logs").join(format!("{node}.log"));
        put(&log, b"", 0o644)?;
        let log = std::fs::OpenOptions::new().append(true).open(&log);
        let log = log.map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
        let root = root.display().to_string();
        let settings = etc.join("agent.toml").display().to_string();
        let agent = spawn(&self.dir, &self.exe, &["agent", "--root", &root, "--settings", &settings], log)?;
        self.agents.push(agent);
        Ok(())
    }

    fn wait_for(&self, commit: &str) -> Result<(), Failure> {
        let said = self.converger(&["status", "--wait", commit, "--timeout-secs", "120"])?;
        let status: serde_json::Value = serde_json::from_str(&self.converger(&["status", "--json"])?)
            .map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
        let behind = self.nodes.iter().filter(|node| {
            let applied = status.get(node.as_str()).and_then(|report| report["applied"]["commit"].as_str());
            applied != Some(commit)
        });
        match behind.count() {
            0 => Ok(()),
            n => Err(Failure::new(Exit::Host, format!("{n} nodes did not get to {commit}:\n{said}"))),
        }
    }

    fn plan_pull_request(&mut self) -> Result<(), Failure> {
        self.scene("A pull request: bigger Kafka fetches. What will it do, before it is merged?");
        self.git(&["switch", "--quiet", "--create", "bigger-fetches"])?;
        let path = self.repository().join("environments/production/variables.toml");
        let text = disk::read_bounded(&path, 1 << 20).map_err(failed)?.unwrap_or_default();
        let mut document: toml_edit::DocumentMut = String::from_utf8_lossy(&text)
            .parse()
            .map_err(|error: toml_edit::TomlError| Failure::new(Exit::Internal, error.to_string()))?;
        document["cluster"]["kafka"]["replica_fetch_max_bytes"] = toml_edit::value(4_194_304);
        put(&path, document.to_string().as_bytes(), 0o644)?;
        self.git(&["commit", "--quiet", "--all", "--message", "kafka: raise replica.fetch.max.bytes"])?;
        say(self.shown("converger", &["plan", "main..bigger-fetches"])?);
        Ok(())
    }

    fn merge(&mut self) -> Result<(), Failure> {
        self.scene("It is merged. The restarts go one by one, under holds, the leader of the controllers last.");
        self.git(&["switch", "--quiet", "main"])?;
        let merge =
            ["merge", "--quiet", "--no-ff", "--gpg-sign", "--message", "Merge: bigger Kafka fetches", "bigger-fetches"];
        self.shown("git", &merge)?;
        let mut roll = Roll::begin(self)?;
        self.shown("git", &["push", "--quiet", "origin", "main"])?;
        let head = self.head()?;
        roll.watch(self, &head)?;
        say(self.shown("converger", &["status"])?);
        Ok(())
    }

    fn drift(&mut self) -> Result<(), Failure> {
        self.scene("Somebody edits a managed file on kafka02.");
        let node = NodeName::new("kafka02");
        let path = self.root(&node).join("etc/kafka/server.properties");
        let good = disk::read_bounded(&path, 1 << 20).map_err(failed)?.unwrap_or_default();
        let Paint { dim, off, .. } = Paint::COLOUR;
        say(format!("{dim}$ echo 'log.retention.hours=1' >> nodes/kafka02/etc/kafka/server.properties{off}\n"));
        let began = SystemClock.awake();
        let mut bad = good.clone();
        bad.extend_from_slice(b"log.retention.hours=1\n");
        #[allow(clippy::disallowed_methods)] // as an editor would, in place
        std::fs::write(&path, &bad).map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
        let wakes = Wakes::default();
        while disk::read_bounded(&path, 1 << 20).map_err(failed)?.as_deref() != Some(&good) {
            if SystemClock.awake().saturating_sub(began) > Duration::from_secs(120) {
                return Err(Failure::new(Exit::Host, "the drift was not repaired within 2 minutes"));
            }
            wakes.wait(Duration::from_millis(1));
        }
        let took = SystemClock.awake().saturating_sub(began);
        say(format!("put back after {} ms, no restart: Kafka runs with what is there again\n", took.as_millis()));
        Ok(())
    }

    fn unsigned(&mut self) -> Result<(), Failure> {
        self.scene("A commit without a signature is pushed. No node takes it.");
        let good = self.head()?;
        let path = self.repository().join("environments/production/variables.toml");
        let mut text = disk::read_bounded(&path, 1 << 20).map_err(failed)?.unwrap_or_default();
        text.extend_from_slice(b"# quick fix\n");
        put(&path, &text, 0o644)?;
        self.shown("git", &["commit", "--quiet", "--no-gpg-sign", "--all", "--message", "quick fix"])?;
        self.shown("git", &["push", "--quiet", "origin", "main"])?;
        self.wait_until("refused", self.nodes.len())?;
        say(self.shown("converger", &["why", "kafka01"])?);
        say("The branch is mended without force:\n");
        say(self.shown("converger", &["trust", "mend", "--good", &good[..12]])?);
        self.shown("git", &["push", "--quiet", "origin", "main"])?;
        let head = self.head()?;
        self.wait_for(&head)?;
        say(self.shown("converger", &["status"])?);
        Ok(())
    }

    /// Until so many nodes report this state.
    fn wait_until(&self, state: &str, count: usize) -> Result<(), Failure> {
        let began = SystemClock.awake();
        let wakes = Wakes::default();
        loop {
            let status: serde_json::Value = serde_json::from_str(&self.converger(&["status", "--json"])?)
                .map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
            let nodes = status.as_object().map(|nodes| nodes.values().filter(|node| node["state"] == state).count());
            if nodes == Some(count) {
                return Ok(());
            }
            if SystemClock.awake().saturating_sub(began) > Duration::from_secs(180) {
                return Err(Failure::new(Exit::Host, format!("only {nodes:?} of {count} nodes are {state}")));
            }
            wakes.wait(Duration::from_millis(200));
        }
    }

    fn revert(&mut self) -> Result<(), Failure> {
        self.scene("Rollback is a revert of the merge.");
        let merge = self.git(&["log", "--first-parent", "--format=%H", "--grep", "^Merge: bigger"])?;
        let merge = merge.lines().next().unwrap_or_default().trim().to_owned();
        self.shown("git", &["revert", "--no-edit", "--gpg-sign", "--mainline", "1", &merge[..12]])?;
        let mut roll = Roll::begin(self)?;
        self.shown("git", &["push", "--quiet", "origin", "main"])?;
        let head = self.head()?;
        roll.watch(self, &head)?;
        let path = self.root(&NodeName::new("kafka01")).join("etc/kafka/server.properties");
        let text = disk::read_bounded(&path, 1 << 20).map_err(failed)?.unwrap_or_default();
        let line = String::from_utf8_lossy(&text);
        let line = line.lines().find(|line| line.starts_with("replica.fetch.max.bytes")).unwrap_or_default();
        say(format!("kafka01 has {line} again\n"));
        say(self.shown("converger", &["status"])?);
        Ok(())
    }

    fn end(&mut self, keep: bool, took: Duration) -> Result<(), Failure> {
        let Paint { bold, off, .. } = Paint::COLOUR;
        let dir = self.dir.display();
        say(format!(
            "\n{bold}Done in {:.0} s.{off} Everything lies in {dir}:\n  \
             fleet/            the repository          nodes/NAME/       each node's root, with its state below var/lib/converger\n  \
             forge.git         the branch they follow  logs/NAME.log     what each agent said\n\n\
             Try next (in {dir}/fleet, with CONVERGER_CLIENT={dir}/client.toml):\n  \
             1. converger plan                             after an edit of environments/production/variables.toml\n  \
             2. converger render --node kafka01 --out /tmp/r   what one node gets, secrets masked\n  \
             3. converger agent --once --root ../nodes/kafka01 --settings ../nodes/kafka01/etc/converger/agent.toml\n\n\
             Clean up: rm -r {dir}\n",
            took.as_secs_f64(),
        ));
        if keep {
            let pids: Vec<String> = self.agents.iter().map(|agent| agent.id().to_string()).collect();
            put(&self.dir.join("pids"), format!("{}\n", pids.join("\n")).as_bytes(), 0o644)?;
            say(format!("The agents run on; stop them with: kill $(cat {dir}/pids)\n"));
            self.agents.clear();
        }
        Ok(())
    }
}

/// Follows what the recorders write while a change rolls: who goes away, who comes back, how many are away at once.
struct Roll {
    logs: BTreeMap<NodeName, BufReader<std::fs::File>>,
    away: BTreeSet<NodeName>,
    /// The most members of each group that were away at the same time.
    most_away: BTreeMap<GroupId, usize>,
    restarts: usize,
    began: Duration,
}

#[derive(serde::Deserialize)]
struct Event {
    awake_ms: u64,
    unit: String,
    event: String,
}

impl Roll {
    fn begin(demo: &Demo) -> Result<Self, Failure> {
        let members: BTreeSet<&NodeName> = demo.groups.values().flat_map(|(members, _)| members).collect();
        let mut logs = BTreeMap::new();
        for node in members {
            let path = demo.root(node).join("run/converger/units.log");
            let broken = |error: std::io::Error| Failure::new(Exit::Internal, format!("{}: {error}", path.display()));
            let mut log = std::fs::File::open(&path).map_err(broken)?;
            log.seek(SeekFrom::End(0)).map_err(broken)?;
            logs.insert(node.clone(), BufReader::new(log));
        }
        let began = SystemClock.awake();
        Ok(Self { logs, away: BTreeSet::new(), most_away: BTreeMap::new(), restarts: 0, began })
    }

    fn watch(&mut self, demo: &Demo, commit: &str) -> Result<(), Failure> {
        let args = [
            "--client",
            &demo.dir.join("client.toml").display().to_string(),
            "status",
            "--wait",
            commit,
            "--timeout-secs",
            "120",
        ];
        let log = demo.dir.join("logs/wait.log");
        put(&log, b"", 0o644)?;
        let log = std::fs::OpenOptions::new().append(true).open(&log);
        let log = log.map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
        let mut waiting = spawn(&demo.repository(), &demo.exe, &args, log)?;
        let wakes = Wakes::default();
        loop {
            let ended = waiting.try_wait().map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
            self.read(demo);
            if ended.is_some() {
                break;
            }
            wakes.wait(Duration::from_millis(20));
        }
        demo.wait_for(commit)?;
        let most: Vec<String> = self
            .most_away
            .iter()
            .map(|(group, most)| {
                let of = demo.groups.get(group).map_or(0, |(members, _)| members.len());
                format!("{most} of {of} in {group}")
            })
            .collect();
        let all = if most.is_empty() { "nobody".to_owned() } else { most.join(", ") };
        say(format!("The watcher saw {} restarts; most members away at one moment: {all}.\n", self.restarts));
        if self.most_away.values().any(|most| *most > 1) {
            return Err(Failure::new(Exit::Host, "two members of a group were away at the same time"));
        }
        Ok(())
    }

    /// New lines of all nodes, in the order of time.
    fn read(&mut self, demo: &Demo) {
        let mut events: Vec<(u64, NodeName, Event)> = Vec::new();
        for (node, log) in &mut self.logs {
            let mut line = String::new();
            while log.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                if let Ok(event) = serde_json::from_str::<Event>(&line) {
                    events.push((event.awake_ms, node.clone(), event));
                }
                line.clear();
            }
        }
        events.sort_by_key(|(at, node, _)| (*at, node.clone()));
        for (at, node, event) in events {
            self.see(demo, Duration::from_millis(at), &node, &event);
        }
    }

    fn see(&mut self, demo: &Demo, at: Duration, node: &NodeName, event: &Event) {
        let groups = || demo.groups.iter().filter(|(_, (members, unit))| *unit == event.unit && members.contains(node));
        if groups().next().is_none() {
            return;
        }
        let after = at.saturating_sub(self.began).as_secs_f64();
        match event.event.as_str() {
            "stopping" => {
                self.away.insert(node.clone());
                self.restarts += 1;
            }
            "started" => {
                self.away.remove(node);
            }
            _ => return,
        }
        let mut words = Vec::new();
        for (group, (members, _)) in groups() {
            let away = members.iter().filter(|member| self.away.contains(*member)).count();
            let most = self.most_away.entry(group.clone()).or_default();
            *most = (*most).max(away);
            words.push(format!("{} {} of {}", group.short(), members.len() - away, members.len()));
        }
        say(format!("  {after:5.1} s  {node:<8} {:<9} {}   up: {}\n", event.event, event.unit, words.join(", ")));
    }
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    disk::write_atomic(path, bytes, mode).map_err(failed)
}

fn failed(error: crate::disk::DiskError) -> Failure {
    Failure::usage(chain(&error))
}

/// As one would type it.
fn quoted(arg: &str) -> String {
    let plain = !arg.is_empty() && arg.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c));
    if plain { arg.to_owned() } else { format!("'{arg}'") }
}
