//! Measures the budgets of the design on this machine, in one run, beside floors measured in the same run.
//!
//! `cargo bench --bench budgets` measures the real binary and writes `docs/performance.md`; `-- --short` takes one
//! repetition of everything and writes nothing. Never: fails because something was slow; a slow machine is no bug.

#![allow(clippy::disallowed_methods, clippy::print_stdout)] // runs programs, writes its fixture, reads the clock, prints
#![allow(clippy::unwrap_used, clippy::panic)] // a fixture that cannot be made ends the measurement

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use converger::git::{Children, Repository};
use converger::settings::TrustRoot;
use sha2::Digest as _;

const CONVERGER: &str = env!("CARGO_BIN_EXE_converger");
const FILES: usize = 1000;
const TEMPLATES: usize = 20;
/// Files of the one template that reads `vars.knob`: 1 % of all.
const KNOB_FILES: usize = 10;
const UNITS: usize = 5;
/// A stamp that is younger than two seconds proves nothing, so a file is hashed again until then.
const STAMPS_PROVE: Duration = Duration::from_millis(2500);
const ASLEEP: Duration = Duration::from_secs(10);

fn main() {
    let short = std::env::args().any(|arg| arg == "--short");
    let times = |full: usize| if short { 1 } else { full };
    let mut table = Table::default();
    let bench = Bench::new();

    let start = median(times(20), || run(Command::new(CONVERGER).arg("--version").stdout(Stdio::null())));
    table.row("floor: the process starts and ends", "", start.cpu_text(), None, "converger --version");

    // First apply, each time of a new root.
    let first = median(times(7), || {
        bench.new_node();
        run(&mut bench.once())
    });
    let write = median(times(7), || inside(|| bench.floor_write()));
    table.row("floor: write 1,000 files, syncfs, rename, syncfs", "", write.both_text(), None, "in the bench");
    let within = first.cpu_ms() <= 150.0 && first.wall_ms() <= 250.0;
    table.row(
        "first apply of 1,000 files, durable",
        "150 ms CPU, 250 ms wall",
        first.both_text(),
        Some((within, first.cpu_ms() / write.cpu_ms())),
        "converger agent --once, an empty root",
    );

    // Nothing moved.
    bench.settle();
    let statx = median(times(20), || inside(|| bench.floor_statx()));
    let hash = median(times(20), || inside(|| bench.floor_hash()));
    let ls = median(times(20), || run(Command::new("git").arg("ls-remote").arg(bench.forge()).stdout(Stdio::null())));
    table.row("floor: statx of 1,000 files", "", statx.cpu_text(), None, "in the bench");
    table.row("floor: read and hash 1,000 files", "", hash.cpu_text(), None, "in the bench");
    table.row("floor: ask the remote and do nothing", "", ls.cpu_text(), None, "git ls-remote");
    if let Some(rsync) = bench.rsync(times(20)) {
        table.row("beside it: rsync with nothing to do", "", rsync.cpu_text(), None, "rsync -a");
    }
    let floor = start.cpu_ms() + statx.cpu_ms();
    let noop = median(times(20), || run(&mut bench.once()));
    table.row(
        "no-op run, 1,000 files, whole process, fetch and verify included",
        "25 ms CPU",
        noop.cpu_text(),
        Some((noop.cpu_ms() <= 25.0, noop.cpu_ms() / floor)),
        "converger agent --once",
    );

    // Everything looked at, nothing done: other bytes of the settings break the seal.
    let audit = median(times(10), || {
        bench.other_settings();
        run(&mut bench.once())
    });
    table.row(
        "drift audit, whole process: load, render, compare 1,000 files",
        "",
        audit.cpu_text(),
        None,
        "converger agent --once, new settings",
    );

    let changed = median(times(7), || {
        bench.turn_knob();
        run(&mut bench.once())
    });
    table.row(
        "one variable changed, 1 % of 1,000 files, from fetched to applied",
        "40 ms CPU",
        changed.both_text(),
        Some((changed.cpu_ms() <= 40.0, changed.cpu_ms() / floor)),
        "converger agent --once, a new commit",
    );
    table.row("its memory at most", "", format!("{:.1} MB", changed.rss_mb), None, "wait4");

    inside_the_agent(&bench, &mut table, short, statx.cpu_ms());
    whole_environment(&bench, &mut table, short);
    signature_chain(&bench, &mut table, short);

    let size = std::fs::metadata(CONVERGER).unwrap().len() as f64 / 1e6;
    table.row("binary, stripped", "25 MB", format!("{size:.1} MB"), Some((size <= 25.0, f64::NAN)), "ls -l");
    if !short {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
        std::fs::write(&page, table.page()).unwrap();
        println!("\nwritten: {}", page.display());
    }
}

/// One agent that stays: asleep, woken for nothing, woken for a touched file, repairing.
fn inside_the_agent(bench: &Bench, table: &mut Table, short: bool, statx_ms: f64) {
    bench.new_node();
    let agent = Agent(bench.agent().spawn().unwrap());
    bench.wait_converged();
    // The first look after an apply hashes everything again, and leaves the seal.
    std::thread::sleep(STAMPS_PROVE);
    agent.wake();
    std::thread::sleep(Duration::from_millis(500));
    let before = agent.switches();
    std::thread::sleep(if short { Duration::from_secs(2) } else { ASLEEP });
    let wakes = agent.switches() - before;
    let (rss, anon) = (agent.memory_mb("VmRSS:"), agent.memory_mb("RssAnon:"));
    table.row(
        "agent asleep, memory",
        "15 MB RSS",
        format!("{rss:.1} MB, of which {anon:.1} MB its own, the rest pages of the binary"),
        Some((rss < 15.0, f64::NAN)),
        "VmRSS after the first apply and 10 s of sleep",
    );
    table.row(
        "agent asleep, wake-ups in 10 s",
        "none without cause",
        wakes.to_string(),
        Some((wakes == 0, f64::NAN)),
        "voluntary_ctxt_switches of all threads",
    );

    let looks = if short { 5 } else { 100 };
    let noop = agent.cpu_ms_of(looks, |_| agent.wake());
    table.row(
        "no-op inside the running agent",
        "2 ms CPU",
        format!("{noop:.2} ms"),
        Some((noop <= 2.0, noop / statx_ms)),
        "/proc/PID/stat over 100 SIGHUPs",
    );
    let looks = if short { 5 } else { 50 };
    let audit = agent.cpu_ms_of(looks, |n| {
        let file = std::fs::File::open(bench.file(n)).unwrap();
        file.set_modified(std::time::SystemTime::now()).unwrap();
    });
    table.row(
        "drift audit inside the running agent",
        "10 ms CPU",
        format!("{audit:.2} ms"),
        Some((audit <= 10.0, audit / statx_ms)),
        "/proc/PID/stat over 50 touched files",
    );

    let mut repairs: Vec<f64> = (0..if short { 1 } else { 20 })
        .map(|n| {
            let path = bench.file(n + 100);
            let good = std::fs::read(&path).unwrap();
            let began = Instant::now();
            std::fs::write(&path, "somebody was here\n").unwrap();
            while std::fs::read(&path).unwrap() != good {
                assert!(began.elapsed() < Duration::from_secs(30), "{} is not repaired", path.display());
                std::thread::sleep(Duration::from_millis(1));
            }
            let took = began.elapsed().as_secs_f64() * 1e3;
            std::thread::sleep(Duration::from_millis(100));
            took
        })
        .collect();
    repairs.sort_by(f64::total_cmp);
    let repair = repairs[repairs.len() / 2];
    table.row(
        "drift repaired, from the write",
        "100 ms",
        format!("{repair:.0} ms"),
        Some((repair <= 100.0, f64::NAN)),
        "the file is polled every millisecond",
    );
}

/// What an engineer waits for.
fn whole_environment(bench: &Bench, table: &mut Table, short: bool) {
    let fleet = bench.dir.path().join("template");
    let key = bench.key.display().to_string();
    run(Command::new(CONVERGER).args(["init", fleet.to_str().unwrap(), "--key", &key]).stdout(Stdio::null()));
    let variables = fleet.join("roles/kafka/defaults.toml");
    let text = std::fs::read_to_string(&variables).unwrap();
    let edited = text.replacen("replica_fetch_max_bytes = ", "replica_fetch_max_bytes = 1", 1);
    assert_ne!(text, edited, "the template has lost the variable that is changed here");
    std::fs::write(&variables, edited).unwrap();
    let large = bench.large(1000);
    let environments = [
        ("production, 65 nodes", &fleet, 500.0, "0.5 s"),
        ("1,000 nodes", &large, 2000.0, "a tenth of 10,000 nodes' 20 s"),
    ];
    for (name, repo, budget, budget_text) in environments {
        for command in ["check", "plan"] {
            let mut cli = Command::new(CONVERGER);
            cli.arg(command).current_dir(repo).stdout(Stdio::null());
            let cost = median(if short { 1 } else { 5 }, || run(&mut cli));
            table.row(
                &format!("`{command}` of a whole environment: {name}"),
                budget_text,
                format!("{:.2} s wall, {:.2} s CPU, {:.0} MB", cost.wall_ms() / 1e3, cost.cpu_ms() / 1e3, cost.rss_mb),
                Some((cost.wall_ms() <= budget, f64::NAN)),
                &format!("converger {command}"),
            );
        }
    }
}

/// Commits that each change a file and are signed, verified through the library as a new node would.
fn signature_chain(bench: &Bench, table: &mut Table, short: bool) {
    let commits = if short { 100 } else { 2000 };
    let chain = bench.dir.path().join("chain.git");
    bench.git(&["clone", "-q", "--bare", ".", chain.to_str().unwrap()]);
    let repository = git2::Repository::open_bare(&chain).unwrap();
    let key = ssh_key::PrivateKey::read_openssh_file(&bench.key).unwrap();
    let introduction = repository.head().unwrap().peel_to_commit().unwrap().id();
    let mut parent = introduction;
    for n in 0..commits {
        let base = repository.find_commit(parent).unwrap().tree().unwrap();
        let mut tree = repository.treebuilder(Some(&base)).unwrap();
        tree.insert("NOTES", repository.blob(format!("{n}\n").as_bytes()).unwrap(), 0o100644).unwrap();
        let tree = repository.find_tree(tree.write().unwrap()).unwrap();
        let who = git2::Signature::new("alice", "alice@example.org", &git2::Time::new(1_700_000_000 + n, 0)).unwrap();
        let before = repository.find_commit(parent).unwrap();
        let payload = repository.commit_create_buffer(&who, &who, "a change\n", &tree, &[&before]).unwrap();
        let payload = str::from_utf8(&payload).unwrap();
        let signature = key.sign("git", ssh_key::HashAlg::Sha512, payload.as_bytes()).unwrap();
        let armor = signature.to_pem(ssh_key::LineEnding::LF).unwrap();
        parent = repository.commit_signed(payload, armor.trim_end(), Some("gpgsig")).unwrap();
    }
    repository.reference("refs/heads/main", parent, true, "").unwrap();
    let trust = bench.trust(&introduction.to_string(), &chain);
    let root = TrustRoot::parse(&trust, &bench.dir.path().join("trust.toml")).unwrap();
    let (state, cache) = (bench.dir.path().join("chain-state"), bench.dir.path().join("chain-cache"));
    let children = Children { program: CONVERGER.into(), user: None };
    let mut node = Repository::open(&state, &cache, &children).unwrap();
    let fetched = node.fetch(&root, None).unwrap();
    let cost = inside(|| assert_eq!(fetched.verify(&root, None).unwrap().commit().as_str(), parent.to_string()));
    let rate = commits as f64 / cost.cpu_ms() * 1e3;
    table.row(
        &format!("signature chain of {commits} commits"),
        "5,000 commits per second",
        format!("{rate:.0} per second of CPU"),
        Some((rate >= 5000.0, f64::NAN)),
        "through the library: Fetched::verify",
    );
}

/// What one thing cost.
#[derive(Clone, Copy)]
struct Cost {
    cpu: Duration,
    wall: Duration,
    rss_mb: f64,
}

impl Cost {
    fn cpu_ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3
    }
    fn wall_ms(&self) -> f64 {
        self.wall.as_secs_f64() * 1e3
    }
    fn cpu_text(&self) -> String {
        format!("{:.1} ms CPU", self.cpu_ms())
    }
    fn both_text(&self) -> String {
        format!("{:.0} ms CPU, {:.0} ms wall", self.cpu_ms(), self.wall_ms())
    }
}

/// The middle of several, CPU and wall each for itself.
fn median(times: usize, mut once: impl FnMut() -> Cost) -> Cost {
    let costs: Vec<Cost> = (0..times).map(|_| once()).collect();
    let middle = |of: fn(&Cost) -> Duration| {
        let mut all: Vec<Duration> = costs.iter().map(of).collect();
        all.sort();
        all[all.len() / 2]
    };
    let rss_mb = costs.iter().map(|cost| cost.rss_mb).fold(0.0, f64::max);
    Cost { cpu: middle(|cost| cost.cpu), wall: middle(|cost| cost.wall), rss_mb }
}

fn cpu_of(usage: &nix::libc::rusage) -> Duration {
    let time = |time: nix::libc::timeval| Duration::from_micros((time.tv_sec * 1_000_000 + time.tv_usec) as u64);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Runs a program to its end: its own CPU time and that of what it waited for.
#[allow(unsafe_code, clippy::zombie_processes)] // std has no wait4, which alone tells what one child used; it waits
fn run(command: &mut Command) -> Cost {
    let began = Instant::now();
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<nix::libc::rusage>::zeroed());
    // SAFETY: both pointers are valid for the call; all zeros is a rusage.
    let usage = unsafe {
        let pid = nix::libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr());
        assert_eq!(pid, child.id() as i32);
        usage.assume_init()
    };
    assert_eq!(status, 0, "{command:?}");
    Cost { cpu: cpu_of(&usage), wall: began.elapsed(), rss_mb: usage.ru_maxrss as f64 / 1e3 }
}

/// The same of something in this process.
fn inside(what: impl FnOnce()) -> Cost {
    // getrusage counts a thread in ticks.
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let (before, began) = (cpu(), Instant::now());
    what();
    Cost { cpu: cpu() - before, wall: began.elapsed(), rss_mb: 0.0 }
}

/// A running agent, stopped when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

impl Agent {
    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
    fn wake(&self) {
        self.signal(nix::sys::signal::Signal::SIGHUP);
    }
    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap()
    }
    fn cpu_ms(&self) -> f64 {
        let stat = self.proc("stat");
        // After the name, which may hold anything: state is field 3, utime and stime are 14 and 15, in ticks of 10 ms.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        [11, 12].iter().map(|at| fields[*at].parse::<f64>().unwrap() * 10.0).sum()
    }
    /// CPU per wake-up, each given the time to be a look of its own.
    fn cpu_ms_of(&self, times: usize, mut wake: impl FnMut(usize)) -> f64 {
        let before = self.cpu_ms();
        for n in 0..times {
            wake(n);
            std::thread::sleep(Duration::from_millis(80));
        }
        (self.cpu_ms() - before) / times as f64
    }
    fn memory_mb(&self, field: &str) -> f64 {
        value_of(&self.proc("status"), field) as f64 / 1e3
    }
    fn switches(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let status = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default()
        };
        tasks.map(|task| value_of(&status(task), "voluntary_ctxt_switches:")).sum()
    }
}

fn value_of(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// One node, a signed fleet, and the repository that stands in for the forge.
struct Bench {
    dir: tempfile::TempDir,
    key: PathBuf,
    turns: std::cell::Cell<usize>,
    node: std::cell::Cell<usize>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let path = key.to_str().unwrap();
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "alice", "-f", path]));
        let bench = Self { dir, key, turns: std::cell::Cell::default(), node: std::cell::Cell::default() };
        std::fs::create_dir(bench.work()).unwrap();
        bench.git(&["init", "-q", "-b", "main", "."]);
        bench.configure(&bench.work());
        bench.write_fleet(&bench.work(), &one_node());
        bench.write("roles/base/role.toml", &role());
        for template in 0..TEMPLATES {
            bench.write(&format!("roles/base/t{template}"), &template_text(template));
        }
        for unit in 0..UNITS {
            let text = format!("[Unit]\nDescription=bench {unit}\n[Service]\nExecStart=/bin/true\n");
            bench.write(&format!("roles/base/bench{unit}.service"), &text);
        }
        bench.git(&["add", "-A"]);
        bench.git(&["commit", "-q", "-m", "a fleet"]);
        let first = bench.git(&["rev-parse", "HEAD"]);
        bench.git(&["clone", "-q", "--bare", ".", bench.forge().to_str().unwrap()]);
        let etc = bench.dir.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(etc.join("trust.toml"), bench.trust(&first, &bench.forge())).unwrap();
        bench.other_settings();
        bench
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }
    fn forge(&self) -> PathBuf {
        self.dir.path().join("forge.git")
    }
    fn root(&self) -> PathBuf {
        self.dir.path().join(format!("node{}", self.node.get()))
    }
    fn file(&self, n: usize) -> PathBuf {
        self.root().join(path_of(n).trim_start_matches('/'))
    }
    fn settings(&self) -> PathBuf {
        self.dir.path().join("etc/agent.toml")
    }

    fn git(&self, args: &[&str]) -> String {
        self.git_in(&self.work(), args)
    }
    fn git_in(&self, dir: &Path, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("HOME", self.dir.path());
        let output = command.current_dir(dir).args(args).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
    fn configure(&self, dir: &Path) {
        let key = self.key.to_str().unwrap();
        let values = [("gpg.format", "ssh"), ("user.signingkey", key), ("commit.gpgsign", "true")];
        for (name, value) in values.into_iter().chain([("user.name", "alice"), ("user.email", "alice@example.org")]) {
            self.git_in(dir, &["config", name, value]);
        }
    }
    fn write(&self, path: &str, text: &str) {
        write_below(&self.work(), path, text);
    }
    fn write_fleet(&self, dir: &Path, topology: &str) {
        let public = std::fs::read_to_string(self.key.with_extension("pub")).unwrap();
        let policy = "[principals.\"alice@example.org\"]\nroles = [\"root\", \"deploy\"]\npaths = [\"**\"]\n";
        write_below(dir, "fleet.toml", "format = 1\nname = \"bench\"\ndefault_environment = \"production\"\n");
        write_below(dir, "trust/allowed_signers", &format!("alice@example.org {public}"));
        write_below(dir, "trust/policy.toml", policy);
        let environment = "format = 1\ndomain = \"example.internal\"\nos = \"debian-12\"\nroles = [\"base\"]\n\
                           [networks]\napp = \"10.0.0.0/8\"\n";
        write_below(dir, "environments/production/environment.toml", environment);
        write_below(dir, "environments/production/topology.toml", topology);
        write_below(dir, "environments/production/variables.toml", "[all]\nknob = 0\nport = 9092\n");
    }
    fn trust(&self, introduction: &str, remote: &Path) -> String {
        let mut keygen = Command::new("ssh-keygen");
        let said = keygen.arg("-lf").arg(&self.key).output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        let signer = said.split(' ').nth(1).unwrap();
        format!(
            "fleet = \"bench\"\nref = \"refs/heads/main\"\npolicy = \"standard\"\nintroduction = {{ commit = \
             \"{introduction}\", signer = \"{signer}\", seq = 1 }}\n[[remotes]]\nurl = \"file://{}\"\n",
            remote.display()
        )
    }
    /// The same settings in other bytes.
    fn other_settings(&self) {
        let turn = self.turn();
        let store = self.dir.path().join("store.db");
        let settings = format!(
            "# {turn}\nnode = \"node1\"\nenvironment = \"production\"\ntrust = \"trust.toml\"\n\
             [store]\nkind = \"local\"\npath = \"{}\"\n[sandbox]\nroots = \"../{{node}}\"\nsettle_secs = 1\n",
            store.display()
        );
        std::fs::write(self.settings(), settings).unwrap();
    }
    fn turn(&self) -> usize {
        self.turns.set(self.turns.get() + 1);
        self.turns.get()
    }
    fn turn_knob(&self) {
        let knob = self.turn();
        self.write("environments/production/variables.toml", &format!("[all]\nknob = {knob}\nport = 9092\n"));
        self.git(&["commit", "-q", "-a", "-m", "a knob"]);
        self.git(&["push", "-q", self.forge().to_str().unwrap(), "main"]);
    }

    fn agent(&self) -> Command {
        let mut agent = Command::new(CONVERGER);
        let log = std::fs::File::create(self.dir.path().join("agent.log")).unwrap();
        agent.args(["agent", "--root"]).arg(self.root()).arg("--settings").arg(self.settings());
        agent.stdout(Stdio::null()).stderr(log);
        agent
    }
    fn once(&self) -> Command {
        let mut agent = self.agent();
        agent.arg("--once");
        agent
    }
    /// Another root: ext4 is slow where many files were just deleted.
    fn new_node(&self) {
        self.node.set(self.node.get() + 1);
    }
    /// Until stamps prove something, and the seal is there.
    fn settle(&self) {
        std::thread::sleep(STAMPS_PROVE);
        for _ in 0..2 {
            run(&mut self.once());
        }
    }
    fn wait_converged(&self) {
        let began = Instant::now();
        let status = self.root().join("run/converger/status.json");
        while !std::fs::read_to_string(&status).unwrap_or_default().contains("\"state\": \"converged\"") {
            assert!(began.elapsed() < Duration::from_secs(60), "the agent does not converge");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn floor_statx(&self) {
        for n in 0..FILES {
            std::hint::black_box(std::fs::symlink_metadata(self.file(n)).unwrap().len());
        }
    }
    fn floor_hash(&self) {
        for n in 0..FILES {
            std::hint::black_box(sha2::Sha256::digest(std::fs::read(self.file(n)).unwrap()));
        }
    }
    fn floor_write(&self) {
        let dir = self.dir.path().join(format!("floor{}", self.turn()));
        std::fs::create_dir(&dir).unwrap();
        for n in 0..FILES {
            std::fs::write(dir.join(format!("stage{n}")), [b'x'; 700]).unwrap();
        }
        let top = std::fs::File::open(&dir).unwrap();
        rustix::fs::syncfs(&top).unwrap();
        for n in 0..FILES {
            std::fs::rename(dir.join(format!("stage{n}")), dir.join(format!("live{n}"))).unwrap();
        }
        rustix::fs::syncfs(&top).unwrap();
    }
    fn rsync(&self, times: usize) -> Option<Cost> {
        Command::new("rsync").arg("--version").output().ok()?;
        let (from, to) = (self.root().join("etc"), self.dir.path().join("mirror"));
        let mut rsync = Command::new("rsync");
        rsync.arg("-a").arg(&from).arg(&to);
        run(&mut rsync);
        Some(median(times, || run(&mut rsync)))
    }

    /// A committed fleet of `nodes` nodes with 20 files each, and an uncommitted change of a variable.
    fn large(&self, nodes: usize) -> PathBuf {
        let dir = self.dir.path().join("large");
        std::fs::create_dir(&dir).unwrap();
        self.write_fleet(&dir, &topology(nodes));
        let files: String = (0..TEMPLATES).map(file_entry).collect();
        write_below(&dir, "roles/base/role.toml", &format!("format = 1\n{files}"));
        for template in 0..TEMPLATES {
            write_below(&dir, &format!("roles/base/t{template}"), &template_text(template));
        }
        self.git_in(&dir, &["init", "-q", "-b", "main", "."]);
        self.configure(&dir);
        self.git_in(&dir, &["add", "-A"]);
        self.git_in(&dir, &["commit", "-q", "-m", "a large fleet"]);
        write_below(&dir, "environments/production/variables.toml", "[all]\nknob = 1\nport = 9092\n");
        dir
    }
}

fn write_below(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn one_node() -> String {
    topology(1)
}

fn topology(nodes: usize) -> String {
    let nodes: String = (1..=nodes)
        .map(|n| {
            let address = format!("10.0.{}.{}", n / 250, n % 250 + 1);
            format!(
                "[nodes.node{n}]\nclusters = [\"all\"]\naddresses = {{ app = \"{address}\" }}\n\
                 size = {{ vcpu = 4, memory_gib = 8, disk_gib = 100 }}\n"
            )
        })
        .collect();
    format!("[tiers.one]\norder = 10\n[clusters.all]\ntier = \"one\"\nroles = []\n{nodes}")
}

fn path_of(n: usize) -> String {
    format!("/etc/bench/d{:02}/file{n:04}.conf", n / 50)
}

/// The first template, the one that reads the knob, makes the first files; the others share the rest.
fn file_entry(n: usize) -> String {
    let template = if n < KNOB_FILES { 0 } else { 1 + n % (TEMPLATES - 1) };
    format!("[[file]]\npath = \"{}\"\ntemplate = \"t{template}\"\n", path_of(n))
}

fn role() -> String {
    let mut role = "format = 1\n".to_owned();
    for n in 0..FILES {
        role.push_str(&file_entry(n));
        if (KNOB_FILES..KNOB_FILES + 2 * UNITS).contains(&n) {
            writeln!(role, "restarts = [\"bench{}.service\"]", n % UNITS).unwrap();
        }
    }
    // Stopped: a sandbox only plays that a start takes its time.
    for unit in 0..UNITS {
        let name = format!("bench{unit}.service");
        writeln!(role, "[[unit]]\nname = \"{name}\"\ntemplate = \"{name}\"\nenabled = true\nstate = \"stopped\"")
            .unwrap();
    }
    role
}

/// About 700 bytes with what templates do: values, a loop, a condition, filters.
fn template_text(n: usize) -> String {
    let knob = if n == 0 { "knob = {{ vars.knob }}\n" } else { "" };
    let lines: String = (0..12).map(|line| format!("setting.{line}.of.template.{n} = {}\n", line * 37 + n)).collect();
    format!(
        "# {{{{ node.fqdn }}}}\n{knob}listen = {{{{ node.addresses.app }}}}:{{{{ vars.port }}}}\n{lines}\
         {{% for name, address in node.addresses %}}bind.{{{{ name }}}} = {{{{ address }}}}\n{{% endfor %}}\
         {{% if vars.port > 1024 %}}unprivileged = true\n{{% endif %}}os = {{{{ node.os }}}}\n"
    )
}

/// What was measured, in order.
#[derive(Default)]
struct Table {
    rows: String,
}

impl Table {
    /// `verdict`: within the budget, and how many times the floor (NaN: there is none).
    fn row(&mut self, what: &str, budget: &str, measured: String, verdict: Option<(bool, f64)>, how: &str) {
        let (met, ratio) = match verdict {
            None => ("", String::new()),
            Some((met, ratio)) => {
                let ratio = if ratio.is_nan() { String::new() } else { format!("{ratio:.1}") };
                (if met { "yes" } else { "**no**" }, ratio)
            }
        };
        println!("{what}: {measured}   [{budget}] {met} {ratio}");
        writeln!(self.rows, "| {what} | {budget} | {measured} | {met} | {ratio} | {how} |").unwrap();
    }

    fn page(&self) -> String {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |it| it.1);
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let memory = value_of(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:") / 1_000_000;
        let date = jiff::Timestamp::now().strftime("%Y-%m-%d");
        format!(
            "# Performance\n\n\
             Written by `make bench`, which measures the binary of `cargo build --release` and the floors below in one run; \
             nothing is asserted.\nMedian of up to 20 runs. CPU is user and system time of whole processes (wait4), their \
             children included. The fixture: one node, a signed\nfleet on a local remote, 1,000 files from 20 templates, \
             five units, a sandbox (`--root`).\n\n\
             Machine: {cores} x {model}, {memory} GB, Linux {}, load {load} at the end. Date: {date}.\n\n\
             | what | budget | measured | met | times the floor | how |\n| --- | --- | --- | --- | --- | --- |\n{}\n\
             The floor of a run is starting the process and a statx of every file; of a first apply, writing and renaming \
             as many files\nbetween two syncfs; inside the agent, the statx alone.\n",
            kernel.trim(),
            self.rows
        )
    }
}
