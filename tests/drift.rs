//! Drift as it happens to a machine: files changed, directories moved, floods, somebody who will not stop, and a kernel
//! without inotify. Real agents as processes, real files; what the agent looked at is counted in its log.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs, write files and look at the clock")]

mod bed;
mod forge;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bed::{Bed, NodeBed};
use converger::drift::{DriftWatch, Touched};
use converger::name::HostPath;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// An agent that stays, with its log. Killed when it is dropped.
struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    fn of(node: &NodeBed) -> Self {
        Self::by(node, Command::new(env!("CARGO_BIN_EXE_converger")))
    }

    /// `command`: the binary, or something that ends in starting it.
    fn by(node: &NodeBed, mut command: Command) -> Self {
        let log = node.root.with_extension("log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        forge::hermetic(&mut command);
        command.args(["agent", "-v", "--root"]).arg(&node.root);
        command.arg("--settings").arg(node.root.join("etc/converger/agent.toml"));
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// How often it was woken up to look at everything.
    fn looks(&self) -> usize {
        self.log().matches("looks again").count()
    }

    /// Until it has nothing to do: no look for a second.
    fn is_quiet(&self) -> usize {
        let mut last = (self.looks(), Instant::now());
        until("quiet", || {
            let looks = self.looks();
            if looks != last.0 {
                last = (looks, Instant::now());
            }
            looks > 0 && last.1.elapsed() > Duration::from_secs(1)
        });
        last.0
    }
}

impl Drop for Agent {
    /// With what it started: of strace alone, the agent would be left.
    fn drop(&mut self) {
        let pid = self.child.id();
        let started = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in started.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it may have gone with it
        }
    }
}

#[track_caller]
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}: not within 60 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A node that asks its source once an hour: whatever it notices sooner, it was told.
fn seldom(bed: &Bed) -> NodeBed {
    let node = bed.node("web01");
    poll(&node, 3600);
    node
}

fn poll(node: &NodeBed, secs: u64) {
    let settings = node.text("etc/converger/agent.toml");
    node.put("etc/converger/agent.toml", &format!("{settings}\n[poll]\nsecs = {secs}\njitter_secs = 0\n"));
}

fn has(node: &NodeBed, path: &str, text: &str) -> bool {
    std::fs::read_to_string(node.root.join(path)).is_ok_and(|found| found == text)
}

#[track_caller]
fn is_put_back(node: &NodeBed, path: &str, text: &str) {
    until(&format!("{path} is put back"), || has(node, path, text));
}

/// D19
#[test]
fn what_the_agent_writes_itself_starts_no_second_run() {
    let bed = Bed::new();
    let node = seldom(&bed);
    let agent = Agent::of(&node);
    let before = agent.is_quiet();
    bed.edit("roles/base/motd", "of", "in");
    bed.edit("roles/base/a.conf", "a = 1", "a = 2");
    bed.commit("three files");
    is_put_back(&node, "etc/motd", "web01 in production\n");
    assert_eq!(agent.is_quiet() - before, 1, "the push, and nothing that it caused:\n{}", agent.log());
    // The same bytes again, and times: it looks at the file, and at nothing else.
    node.put("etc/motd", "web01 in production\n");
    assert_eq!(agent.is_quiet() - before, 1, "{}", agent.log());
    node.put("etc/motd", "drift\n");
    is_put_back(&node, "etc/motd", "web01 in production\n");
    assert_eq!(agent.is_quiet() - before, 2, "the drift, and nothing that its repair caused:\n{}", agent.log());
    // Owner and mode are part of it.
    std::fs::set_permissions(node.root.join("etc/motd"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    until("the mode", || {
        let meta = std::fs::metadata(node.root.join("etc/motd")).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777 == 0o644
    });
}

/// D19: every write, rename, chmod and chown moves a change time, and none can be set back.
#[test]
fn a_second_run_writes_nothing() {
    let bed = Bed::new();
    let node = bed.node("web01");
    node.once().exits(0);
    let stat = || -> Vec<_> {
        let of = |path: &PathBuf| {
            let meta = std::fs::symlink_metadata(node.root.join(path)).unwrap();
            (path.clone(), meta.ino(), meta.ctime(), meta.ctime_nsec())
        };
        let files = node.host();
        files.keys().filter(|path| !path.starts_with("run") && path.is_relative()).map(of).collect()
    };
    let (before, starts) = (stat(), node.starts("web.service"));
    // As if every memory of what is there were gone: all of it is rendered and compared.
    node.settings(&format!("kind = \"local\"\npath = \"{}\"  # looked at", bed.dir().join("store.db").display()));
    node.once().exits(0).says(&["nothing to do"]);
    assert!(before.len() > 5);
    assert_eq!(stat(), before);
    assert_eq!(node.starts("web.service"), starts);
}

#[test]
fn drift_is_told_with_what_was_found_and_a_secret_by_its_lines() {
    let bed = Bed::new();
    let node = seldom(&bed);
    node.put("etc/tool/b.conf", "first = yes\na = 1000\nbell = \u{7}\n");
    node.put("etc/web/token", "open barley");
    let said = node.once().exits(0).says(&[
        "~ /etc/tool/b.conf (drift, put back)",
        "- a = 1000",
        "- bell = \u{fffd}",
        "+ a = 1",
        "~ /etc/web/token (drift, put back)",
        "has secrets: lines 1 of 1 differ",
    ]);
    assert!(!said.all().contains("barley") && !said.all().contains("sesame"), "{}", said.all());
    // What not everybody may read is not for the journal either.
    bed.edit("roles/base/role.toml", "path = \"/etc/motd\"", "path = \"/etc/motd\"\nmode = \"0640\"");
    bed.commit("for some");
    node.once().exits(0);
    node.put("etc/motd", "a password\n");
    let said = node.once().exits(0).says(&["~ /etc/motd (drift, put back)", "lines 1 of 1 differ"]);
    assert!(!said.all().contains("password"), "{}", said.all());
    bed.edit("roles/base/role.toml", "mode = \"0640\"", "mode = \"0644\"");
    bed.commit("for all");
    node.once().exits(0);
    let agent = Agent::of(&node);
    agent.is_quiet();
    node.put("etc/motd", "for an hour\n");
    is_put_back(&node, "etc/motd", "web01 of production\n");
    until("the journal", || agent.log().contains("- for an hour"));
    until("the count", || node.report()["drift_repaired"] == 4);
}

#[test]
fn directories_are_watched_again_after_they_went() {
    let bed = Bed::new();
    let node = seldom(&bed);
    let agent = Agent::of(&node);
    agent.is_quiet();
    let conf = "first = yes\na = 1\n";
    let away = node.root.join("away");
    let gone: &[&dyn Fn()] = &[
        &|| std::fs::rename(node.root.join("etc/tool"), &away).unwrap(),
        &|| std::fs::remove_dir_all(node.root.join("etc/tool")).unwrap(),
        &|| {
            // The parent, with everything in it: the settings come back by hand.
            let settings = node.text("etc/converger/agent.toml");
            std::fs::rename(node.root.join("etc"), node.root.join("old")).unwrap();
            node.put("etc/converger/agent.toml", &settings);
        },
    ];
    for go in gone {
        go();
        is_put_back(&node, "etc/tool/a.conf", conf);
        agent.is_quiet();
        // In the directory that is there now.
        node.put("etc/tool/a.conf", "drift\n");
        is_put_back(&node, "etc/tool/a.conf", conf);
        agent.is_quiet();
    }
}

#[test]
fn a_flood_of_events_is_a_few_looks() {
    let bed = Bed::new();
    let node = seldom(&bed);
    let agent = Agent::of(&node);
    let before = agent.is_quiet();
    let [a, b] = ["a", "b"].map(|name| std::fs::File::open(node.root.join(format!("etc/tool/{name}.conf"))).unwrap());
    let times = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    for _ in 0..20_000 {
        // Two of them: the kernel makes one of events that are the same.
        a.set_times(times).unwrap();
        b.set_times(times).unwrap();
    }
    node.put("etc/tool/a.conf", "drift\n");
    is_put_back(&node, "etc/tool/a.conf", "first = yes\na = 1\n");
    let looks = agent.is_quiet() - before;
    assert!(looks < 10, "{looks} looks for 40,000 events:\n{}", agent.log());
}

#[test]
fn a_full_queue_means_everything() {
    let root = tempfile::tempdir().unwrap();
    let names = ["a", "b"];
    let paths: Vec<HostPath> = names.iter().map(|name| HostPath::new(format!("/{name}"))).collect();
    let stuck = Arc::new(AtomicBool::new(true));
    let free = stuck.clone();
    // The watcher's own thread, held up at the first event until all are written.
    let report = move || {
        while free.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let watch = DriftWatch::over(root.path(), &paths, report).unwrap();
    let mut files = names.map(|name| std::fs::File::create(root.path().join(name)).unwrap());
    for _ in 0..20_000 {
        // Two of them: the kernel makes one of events that are the same.
        files.iter_mut().for_each(|file| file.write_all(b"x").unwrap());
    }
    assert_eq!(watch.take(), Touched::Files(BTreeSet::from([paths[0].clone()])), "the first one");
    stuck.store(false, Ordering::Relaxed);
    until("the overflow", || watch.take() == Touched::Everything);
}

/// The same file again and again, by somebody with more patience than we have.
#[test]
fn a_fight_is_slowed_and_told_and_ends() {
    let bed = Bed::new();
    let node = seldom(&bed);
    let agent = Agent::of(&node);
    agent.is_quiet();
    let (motd, over) = (node.root.join("etc/motd"), Arc::new(AtomicBool::new(false)));
    let ends = over.clone();
    let writer = std::thread::spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            // Over what is there, not after emptying it: nobody finds the file half written.
            if let Ok(mut file) = OpenOptions::new().write(true).open(&motd) {
                let _ = file.write_all(b"mine\n").and_then(|()| file.set_len(5));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let fights = |node: &NodeBed| node.report()["reason"] == "drift-fight";
    until("it is told", || fights(&node));
    assert_eq!(node.report()["state"], "waiting");
    assert_eq!(node.report()["notes"][0]["batch"], "/etc/motd");
    let why = bed.converger(&["why", "web01"]).exits(5);
    let why =
        why.says(&["drift-fight", "/etc/motd was put back 5 times since", "a file of ", "written at", "30 minutes"]);
    assert!(!why.all().contains("mine"), "what is in it is shown nowhere but on the node");
    bed.converger(&["status"]).says(&["drift-fight"]);
    // Nobody else has to wait for that.
    let (repaired, looks) = (node.report()["drift_repaired"].as_u64().unwrap(), agent.looks());
    node.put("etc/tool/a.conf", "drift\n");
    is_put_back(&node, "etc/tool/a.conf", "first = yes\na = 1\n");
    assert!(agent.looks() - looks <= 3, "the other's writes wake nobody:\n{}", agent.log());
    assert!(node.report()["drift_repaired"].as_u64().unwrap() <= repaired + 2, "at most one more of /etc/motd");
    assert!(has(&node, "etc/motd", "mine\n"));
    // The ledger remembers.
    drop(agent);
    let said = node.once().exits(5).says(&["drift-fight", "/etc/motd was put back"]);
    assert!(!said.out.contains("~ /etc/motd"), "it rests: {}", said.all());
    node.agent(&["--dry-run"]).says(&["left as it is (drift-fight)", "- mine", "+ web01 of production"]);
    over.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    // Another commit is another try.
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("something else");
    node.once().exits(0);
    assert!(has(&node, "etc/motd", "web01 in production\n"));
    assert_eq!(node.report()["state"], "converged");
}

/// The kernel refuses an instance, or more watches: everything is polled, and that is said once.
#[test]
fn without_inotify_files_are_polled() {
    let refused = [
        ("inotify_init1:error=EMFILE", "no inotify instance"),
        ("inotify_add_watch:error=ENOSPC:when=3+", "the kernel takes no more watches"),
    ];
    for (inject, said) in refused {
        let bed = Bed::new();
        let node = bed.node("web01");
        // The local store is told through inotify too: another one is not there.
        node.settings("kind = \"local\"\npath = \"/nonexistent/store.db\"");
        poll(&node, 1);
        let mut strace = Command::new("strace");
        strace.args(["-f", "--seccomp-bpf", "-o", "/dev/null", "-e"]).arg(format!("inject={inject}"));
        strace.arg(env!("CARGO_BIN_EXE_converger"));
        let agent = Agent::by(&node, strace);
        for n in 0..2 {
            until("a run", || node.root.join("run/converger/status.json").exists());
            node.put("etc/motd", &format!("drift {n}\n"));
            is_put_back(&node, "etc/motd", "web01 of production\n");
        }
        let log = agent.log();
        assert_eq!(log.matches("drift is seen late").count(), 1, "told once:\n{log}");
        assert!(log.contains(said) && log.contains("polled"), "{log}");
    }
}

#[test]
fn what_is_only_audited_is_told_and_never_written() {
    let bed = Bed::new();
    let node = seldom(&bed);
    bed.edit("roles/base/role.toml", "path = \"/etc/motd\"", "path = \"/etc/motd\"\npolicy = \"audit\"");
    bed.commit("the motd is yours");
    node.once().exits(0);
    let agent = Agent::of(&node);
    agent.is_quiet();
    node.put("etc/motd", "ours\n");
    until("it is told", || node.report()["audit"][0] == "/etc/motd");
    agent.is_quiet();
    drop(agent);
    node.agent(&["--dry-run"]).says(&["left as it is (policy = \"audit\")", "- ours"]);
    node.once().exits(0);
    assert!(has(&node, "etc/motd", "ours\n"));
    assert_eq!(node.report()["drift_repaired"], 0);
}

#[test]
fn a_seed_is_its_services_own_and_plan_tells_when_its_template_has_moved_on() {
    let bed = Bed::new();
    let node = seldom(&bed);
    bed.edit("roles/base/role.toml", "path = \"/etc/tool/a.conf\"", "path = \"/etc/tool/seed\"\npolicy = \"seed\"");
    bed.commit("a seed");
    node.once().exits(0);
    let agent = Agent::of(&node);
    let before = agent.is_quiet();
    node.put("etc/tool/seed", "state = 7\n");
    assert_eq!(agent.is_quiet(), before, "what its service writes wakes nobody");
    drop(agent);
    node.once().exits(0).says(&["nothing to do"]);
    bed.edit("roles/base/a.conf", "a = 1", "a = 2");
    let told = "/etc/tool/seed: a seed whose template changes; a node that has the file keeps it as it is";
    bed.converger(&["plan"]).exits(0).says(&[told, "/etc/tool/b.conf"]);
    bed.commit("another template");
    node.once().exits(0);
    assert!(has(&node, "etc/tool/seed", "state = 7\n"));
    let said = look(&node, &[]).exits(0).says(&["policy = \"seed\"", "its template is another one by now"]);
    assert!(!said.all().contains("state = 7"), "{}", said.all());
    assert_eq!(entry(&json(&look(&node, &["--json"]).out)["changes"], "/etc/tool/seed")["why"], "seed");
}

/// F6: whoever masked, disabled or stopped a unit by hand is answered at the next look, also where no file moved.
#[test]
fn a_unit_that_was_disabled_masked_or_stopped_is_noticed() {
    let bed = Bed::new();
    let node = bed.node("web01");
    // Until stamps prove something, everything is looked at anyway.
    std::thread::sleep(Duration::from_millis(2100));
    node.once().exits(0);
    node.once().exits(0).says(&["nothing to do"]);
    node.meddle("tool.service", |unit| unit["enabled"] = false.into());
    node.once().exits(0).says(&["enable tool.service"]);
    node.once().exits(0);
    node.meddle("tool.service", |unit| unit["masked"] = true.into());
    node.once().exits(0).says(&["unmask tool.service"]);
    node.once().exits(0);
    node.meddle("tool.service", |unit| unit["state"] = "inactive".into());
    node.once().exits(0).says(&["start tool.service"]);
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

fn look(node: &NodeBed, args: &[&str]) -> bed::Said {
    let mut command = bed::converger();
    command.arg("diff").arg("--root").arg(&node.root);
    command.arg("--settings").arg(node.root.join("etc/converger/agent.toml")).args(args);
    bed::Said::of(command.output().unwrap())
}

/// The entry of a resource in what a command says with `--json`.
#[track_caller]
fn entry(changes: &serde_json::Value, name: &str) -> serde_json::Value {
    let all = changes.as_array().unwrap();
    all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}: {changes:#}")).clone()
}

/// By hand on the machine, in a commit that is not taken yet, and by an engineer before the merge: one shape.
#[test]
fn a_difference_is_one_thing_wherever_it_is_asked_for() {
    let bed = Bed::new();
    let node = bed.node("web01");
    look(&node, &[]).exits(0).says(&["nothing to do"]);
    node.put("etc/motd", "by hand\n");
    node.put("etc/web/token", "open barley");
    let host = node.host();
    let said = look(&node, &[]).exits(5);
    let said =
        said.says(&["~ /etc/motd   drift", "- by hand", "~ /etc/web/token   drift", "has secrets: lines 1 of 1"]);
    assert!(!said.all().contains("barley") && !said.all().contains("sesame"), "{}", said.all());
    let said = look(&node, &["--json"]).exits(5);
    let diff = json(&said.out);
    assert_eq!(diff["node"], "web01");
    assert_eq!((&diff["from"], &diff["to"]), (&bed.forge.head().into(), &bed.forge.head().into()));
    let motd = entry(&diff["changes"], "/etc/motd");
    assert_eq!((&motd["kind"], &motd["action"], &motd["why"]), (&"file".into(), &"write".into(), &"drift".into()));
    assert_eq!((&motd["before"], &motd["after"]), (&"by hand\n".into(), &"web01 of production\n".into()));
    let token = entry(&diff["changes"], "/etc/web/token");
    assert_eq!((&token["before"], &token["note"]), (&serde_json::Value::Null, &"lines 1 of 1 differ".into()));
    assert!(!said.out.contains("barley") && !said.out.contains("sesame"), "{}", said.out);
    assert_eq!(node.host(), host, "it only looked");
    node.once().exits(0);

    bed.edit("roles/base/motd", "of", "in");
    bed.edit("roles/web/defaults.toml", "4", "8");
    let role = bed.read("roles/base/role.toml");
    bed.forge.write(
        "roles/base/role.toml",
        &role.replace("[[file]]\npath = \"/etc/tool/b.conf\"\ntemplate = \"a.conf\"\n", ""),
    );
    let words = ["web01: ", "-> the work tree", "+ web01 in production", "- /etc/tool/b.conf", "* restart web.service"];
    bed.converger(&["diff", "web01"]).exits(0).says(&words);
    let before = json(&bed.converger(&["diff", "web01", "--json"]).exits(0).out);
    let plan = json(&bed.converger(&["plan", "--json"]).exits(0).out);
    let planned = plan["plan"]["changes"].as_array().unwrap().iter().find(|one| one["node"] == "web01").unwrap();
    assert_eq!(planned["changes"], before["changes"], "plan and diff are one planner");
    assert_eq!(plan["plan"]["steps"][0]["unit"], "web.service");
    bed.commit("for all");
    // The node has not taken it: what it has accepted is what it is compared with.
    look(&node, &[]).exits(0);
    let dry = json(&node.agent(&["--dry-run", "--json"]).exits(5).out);
    assert_eq!((&dry["from"], &dry["to"]), (&before["from"], &bed.forge.head().into()));
    for (name, kind, action) in [
        ("/etc/motd", "file", "write"),
        ("/etc/tool/b.conf", "removal", "remove"),
        ("/etc/web/web.conf", "file", "write"),
        ("web.service", "unit", "restart"),
    ] {
        let (on_paper, on_the_host) = (entry(&before["changes"], name), entry(&dry["changes"], name));
        assert_eq!((&on_paper["kind"], &on_paper["action"]), (&kind.into(), &action.into()), "{name}");
        for key in ["kind", "action", "why", "after", "hold", "batch"] {
            assert_eq!(on_paper[key], on_the_host[key], "{name}: {key}");
        }
    }
    assert_eq!(entry(&dry["changes"], "web.service")["hold"], serde_json::json!(["web.web"]));
    bed.converger(&["diff", "web01", "--from", "HEAD~1", "--to", "HEAD"]).exits(0).says(&["+ workers = 8"]);
    bed.converger(&["diff", "web02"]).exits(2).says(&["has not reported", "--from"]);
    bed.converger(&["diff", "web09"]).exits(2).says(&["web09 is not a node"]);
}

#[test]
fn what_is_owned_is_listed_beside_a_running_agent_with_what_it_replaced() {
    let bed = Bed::new();
    let node = seldom(&bed);
    // A stranger's file that becomes ours, and one beside it that does not.
    node.put("etc/app/adopted.conf", "by hand\n");
    node.put("etc/app/stranger.conf", "by hand\n");
    let role = bed.read("roles/base/role.toml");
    let file = "[[file]]\npath = \"/etc/app/adopted.conf\"\ntemplate = \"motd\"\n";
    bed.forge.write("roles/base/role.toml", &format!("{role}\n{file}"));
    bed.commit("adopt");
    node.once().exits(0);
    let agent = Agent::of(&node);
    agent.is_quiet();
    let owned = |args: &[&str]| {
        let mut command = bed::converger();
        bed::Said::of(command.arg("owned").arg("--root").arg(&node.root).args(args).output().unwrap()).exits(0)
    };
    owned(&[]).says(&["/etc/motd", "tool.service", "secret", "1 of /etc/app/adopted.conf"]);
    let ours = json(&owned(&["--json"]).out);
    let adopted = entry(&ours, "/etc/app/adopted.conf");
    assert_eq!(std::fs::read_to_string(adopted["backups"][0].as_str().unwrap()).unwrap(), "by hand\n");
    assert_eq!(entry(&ours, "/etc/web/token")["secret"], true);
    assert!(!ours.to_string().contains("stranger") && !ours.to_string().contains("sesame"), "{ours:#}");
    drop(agent);
    // The whole role goes: what is not ours stays, and so does the directory that it is in.
    bed.edit("environments/production/environment.toml", "roles = [\"base\"]", "roles = []");
    bed.commit("no base");
    node.once().exits(0);
    assert!(!node.root.join("etc/app/adopted.conf").exists());
    assert_eq!(node.text("etc/app/stranger.conf"), "by hand\n");
    assert!(!owned(&[]).out.contains("/etc/motd"));
    let empty = tempfile::tempdir().unwrap();
    let mut command = bed::converger();
    let said = bed::Said::of(command.arg("owned").arg("--root").arg(empty.path()).output().unwrap());
    said.exits(0).says(&["nothing here is owned"]);
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

/// M10: every call that changes something on disk, of the command and of its children, with the path it names.
#[test]
fn looking_changes_nothing() {
    let bed = Bed::new();
    let node = bed.node("web01");
    node.put("etc/motd", "by hand\n");
    bed.edit("roles/base/motd", "of", "in");
    bed.edit("roles/base/role.toml", "/etc/tool/b.conf", "/etc/tool/c.conf");
    bed.commit("a change");
    // Left by a crash: a plan is not the moment to clean up.
    node.put(".converger-stage/candidate-0", "half\n");
    let settings = node.root.join("etc/converger/agent.toml").display().to_string();
    let root = node.root.display().to_string();
    let client = bed.dir().join("client.toml");
    let client = client.to_str().unwrap();
    bed.converger(&["holds", "list"]);
    let ours: Vec<String> =
        ["var/lib/converger", "var/cache/converger", "run/converger"].map(|at| format!("{root}/{at}")).to_vec();
    let store = bed.dir().join("store.db").display().to_string();
    let commands: &[(&[&str], &[String])] = &[
        (
            &["agent", "--dry-run", "--root", &root, "--settings", &settings],
            &[&ours[..], std::slice::from_ref(&store)].concat(),
        ),
        (
            &["diff", "--root", &root, "--settings", &settings],
            &[format!("{}/ledger.db-shm", ours[0]), format!("{}/ledger.db-wal", ours[0])],
        ),
        (&["owned", "--root", &root], &[format!("{}/ledger.db-shm", ours[0]), format!("{}/ledger.db-wal", ours[0])]),
        (&["--client", client, "plan", "HEAD~1..HEAD"], std::slice::from_ref(&store)),
        (&["--client", client, "diff", "web01"], std::slice::from_ref(&store)),
    ];
    for (args, allowed) in commands {
        let trace = bed.dir().join("trace");
        let mut command = Command::new("strace");
        forge::hermetic(&mut command).current_dir(&bed.forge.work).args(["-f", "-y", "-s", "4096", "-e"]);
        command.arg("trace=open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,rmdir,truncate,ftruncate,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,utimensat,setxattr,fsetxattr,lsetxattr,removexattr,mount,umount2,execve");
        command.arg("-o").arg(&trace).arg(env!("CARGO_BIN_EXE_converger")).args(*args);
        let host = node.host();
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains("/etc/motd"),
            "{args:?} says nothing:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let trace = std::fs::read_to_string(&trace).unwrap();
        let mut seen = 0;
        for line in trace.lines().filter(|line| !line.contains(" = -1 ") && !line.contains("resumed>")) {
            let call = line.split_once(' ').unwrap().1.trim_start();
            let opens = call.starts_with("open");
            seen += usize::from(opens);
            let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| call.contains(flag));
            let harmless =
                call.starts_with("execve(") || call.starts_with("+++") || call.starts_with("---") || (opens && !writes);
            let ours = allowed.iter().any(|at| call.contains(at.as_str()))
                || call.contains("\"/dev/")
                || call.contains("</dev/");
            // Shared memory and pipes of the process itself are no disk.
            assert!(harmless || ours || call.contains("/memfd:"), "{args:?} changes something: {line}");
        }
        assert!(seen > 5, "the trace sees what it is about");
        assert_eq!(node.host(), host, "{args:?}");
    }
    assert_eq!(node.text(".converger-stage/candidate-0"), "half\n");
}
