//! The reference apply: a converged node that takes a commit with some forty changes of every kind, copied for each attempt
//! to disturb it; and what the node looks like in the end, to be compared with an undisturbed one.
//!
//! The real binary on a real disk, units in the recorder's sandbox. An effect is a system call that changes something: the
//! kernel is the fail point (`strace -e inject`), and the product has no hook for it.

#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like
#![allow(clippy::print_stdout)] // counts

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::bed::{Bed, Host, NODES, NodeBed, Said};
use crate::forge::{hermetic, run};

/// Every system call by which the agent changes a disk. One that opens with O_CREAT is seen by the next one of these.
pub const EFFECTS: &str = "write,pwrite64,writev,fsync,fdatasync,syncfs,rename,renameat,renameat2,unlink,unlinkat,rmdir,\
    mkdir,mkdirat,fchown,fchownat,chmod,fchmod,fchmodat,symlink,symlinkat,link,linkat,ftruncate,fallocate,utimensat";

pub struct Reference {
    pub bed: Bed,
    pub end: End,
}

/// What must be the same whatever happened on the way.
#[derive(PartialEq, Debug)]
pub struct End {
    pub files: Host,
    /// State, enabled, masked and how often each was started.
    pub units: BTreeMap<String, (String, bool, bool, u64)>,
    /// What the ledger calls ours and written, and what it has pending.
    pub ledger: Vec<String>,
    pub recorded: String,
}

/// Made once for all tests of a file.
pub fn the_reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(Reference::new)
}

/// The effects of one undisturbed run, in their order.
pub fn effects() -> Vec<&'static Effect> {
    calls().iter().filter(|effect| !effect.call.starts_with("open")).collect()
}

/// The effects, and what was opened for them.
pub fn calls() -> &'static [Effect] {
    static CALLS: OnceLock<Vec<Effect>> = OnceLock::new();
    CALLS.get_or_init(|| {
        let attempt = the_reference().copy();
        let calls = attempt.calls();
        attempt.is_as_undisturbed(the_reference(), "under strace");
        calls
    })
}

/// How much is tried: less in `cargo test` than in `make crash`.
pub fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

impl Reference {
    pub fn new() -> Self {
        let bed = Bed::new();
        first_commit(&bed);
        for name in NODES {
            bed.node(name).once().exits(0);
        }
        second_commit(&bed);
        let end = End { files: Host::new(), units: BTreeMap::new(), ledger: Vec::new(), recorded: String::new() };
        let mut reference = Self { bed, end };
        let undisturbed = reference.copy();
        undisturbed.node.once().exits(0);
        reference.end = undisturbed.end();
        assert_eq!(undisturbed.node.applied(), reference.bed.forge.head());
        reference
    }

    /// The node before the second commit, with a store of its own and the peers as they are.
    pub fn copy(&self) -> Attempt {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("cp").arg("-a").arg(self.node()).arg(dir.path()));
        run(Command::new("cp").arg(self.bed.dir().join("store.db")).arg(dir.path()));
        let mut attempt = self.at(dir.path());
        attempt._dir = Some(dir);
        attempt
    }

    /// The node that is in this folder, beside its store.
    pub fn at(&self, home: &Path) -> Attempt {
        for peer in ["web02", "web03"] {
            std::os::unix::fs::symlink(self.bed.dir().join("nodes").join(peer), home.join(peer)).unwrap();
        }
        let node = NodeBed { root: home.join("web01"), name: "web01".to_owned() };
        node.settings(&format!("kind = \"local\"\npath = \"{}\"", home.join("store.db").display()));
        Attempt { node, head: self.bed.forge.head(), _dir: None }
    }

    /// The node before the second commit.
    pub fn node(&self) -> PathBuf {
        self.bed.dir().join("nodes/web01")
    }
}

pub struct Attempt {
    pub node: NodeBed,
    head: String,
    _dir: Option<tempfile::TempDir>,
}

impl Attempt {
    /// The agent, without strace.
    pub fn agent(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_converger"));
        hermetic(&mut command).args(["agent", "--once", "--root"]).arg(&self.node.root).arg("--settings");
        command.arg(self.node.root.join("etc/converger/agent.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// One run under strace with these options. Only the thread that applies is traced: what others do is no effect on the
    /// host.
    pub fn traced(&self, options: &[&str]) -> Ended {
        let mut command = Command::new("strace");
        hermetic(&mut command).args(options).arg(env!("CARGO_BIN_EXE_converger"));
        command.args(["agent", "--once", "--root"]).arg(&self.node.root).arg("--settings");
        command.arg(self.node.root.join("etc/converger/agent.toml"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        match output.status.signal() {
            Some(_) => Ended::Killed,
            None => Ended::Said(Said::of(output)),
        }
    }

    /// Killed when it is about to do this effect.
    pub fn killed_at(&self, effect: &Effect) -> Ended {
        self.injected(effect, "signal=SIGKILL")
    }

    /// With this fault instead of the effect, or besides it.
    pub fn injected(&self, effect: &Effect, fault: &str) -> Ended {
        let Effect { call, nth, .. } = effect;
        let inject = format!("inject={call}:{fault}:when={nth}");
        self.traced(&["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject])
    }

    fn calls(&self) -> Vec<Effect> {
        let log = self.node.root.with_file_name("trace");
        let ended = self.traced(&[
            "-y",
            "-s",
            "80",
            "-o",
            log.to_str().unwrap(),
            "-e",
            &format!("trace={EFFECTS},openat,openat2"),
        ]);
        let Ended::Said(said) = ended else { panic!("nobody killed it") };
        said.exits(0);
        let home = self.node.root.parent().unwrap().display().to_string();
        let text = std::fs::read_to_string(log).unwrap().replace(&home, "");
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let effect = |line: &str| {
            let call = line.split_once('(')?.0.to_owned();
            let count = counts.entry(call.clone()).or_default();
            *count += 1;
            Some(Effect { nth: *count, words: line.to_owned(), call })
        };
        text.lines().filter_map(effect).collect()
    }

    /// One undisturbed run is enough.
    #[track_caller]
    pub fn recover(&self, what: &str) {
        let said = self.node.once();
        assert_eq!(said.code, 0, "{what}: the run after it says:\n{}", said.all());
    }

    /// As `recover`, in a few runs: a member that could not be started under its hold is started as it was, settles, and is
    /// restarted after that.
    #[track_caller]
    pub fn recover_in_time(&self, what: &str) {
        let mut said = self.node.once();
        for _ in 0..3 {
            if said.code == 0 {
                return;
            }
            said = self.node.once();
        }
        assert_eq!(said.code, 0, "{what}: four runs after it:\n{}", said.all());
    }

    /// What is there now.
    #[track_caller]
    pub fn end(&self) -> End {
        let mut files = self.node.host();
        files.remove(&self.node.root.join("run/converger/units.json"));
        let units: serde_json::Value = serde_json::from_str(&self.node.text("run/converger/units.json")).unwrap();
        let unit = |(name, unit): (&String, &serde_json::Value)| {
            let flag = |of: &str| unit[of].as_bool().unwrap();
            // A stop that was asked for is finished by systemd, whoever asked has died; the recorder stands still.
            let state = unit["state"].as_str().unwrap().replace("deactivating", "inactive");
            (name.clone(), (state, flag("enabled"), flag("masked"), unit["starts"].as_u64().unwrap()))
        };
        let ledger = rusqlite::Connection::open(self.node.root.join("var/lib/converger/ledger.db")).unwrap();
        let rows = |sql: &str| -> Vec<String> {
            let mut statement = ledger.prepare(sql).unwrap();
            statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
        };
        End {
            files,
            units: units.as_object().unwrap().iter().map(unit).collect(),
            ledger: [
                rows("SELECT id || ' ' || json_extract(json, '$.written') FROM owned ORDER BY id"),
                rows("SELECT 'pending ' || name FROM pending"),
                rows("SELECT 'applied ' || json_extract(json, '$.commit') FROM facts WHERE name = 'applied'"),
            ]
            .concat(),
            recorded: std::fs::read_to_string(self.node.root.join("run/converger/recorded.json")).unwrap_or_default(),
        }
    }

    /// Nothing of the way there is left, and the end is that of an undisturbed run.
    #[track_caller]
    pub fn is_as_undisturbed(&self, reference: &Reference, what: &str) {
        self.is_whole(reference, what);
        let end = self.end();
        for (unit, wanted) in &reference.end.units {
            assert_eq!(end.units.get(unit), Some(wanted), "{what}: {unit}");
        }
        assert_eq!(end, reference.end, "{what}");
    }

    /// As `is_as_undisturbed`, but a unit may have been started once more.
    #[track_caller]
    pub fn is_whole(&self, reference: &Reference, what: &str) {
        let end = self.end();
        let names = |end: &End| end.files.keys().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(names(&end), names(&reference.end), "{what}");
        for (path, wanted) in &reference.end.files {
            assert_eq!(&end.files[path], wanted, "{what}: {}", path.display());
        }
        let rows = |of: &End, other: &End| -> Vec<String> {
            of.ledger.iter().filter(|row| !other.ledger.contains(row)).cloned().collect()
        };
        let differ = (rows(&end, &reference.end), rows(&reference.end, &end));
        assert!(
            differ.0.is_empty() && differ.1.is_empty(),
            "{what}: in the ledger {:?} instead of {:?}",
            differ.0,
            differ.1
        );
        assert_eq!(end.recorded, reference.end.recorded, "{what}");
        assert_eq!(self.node.applied(), self.head, "{what}");
        assert_eq!(self.node.report()["state"], "converged", "{what}");
        assert!(!self.node.root.join("run/converger/hold.json").exists(), "{what}: a hold stays");
        assert_eq!(self.holds(), Vec::<String>::new(), "{what}");
    }

    /// Holds that the store has.
    fn holds(&self) -> Vec<String> {
        let store = rusqlite::Connection::open(self.node.root.with_file_name("store.db")).unwrap();
        let mut statement = store.prepare("SELECT key FROM entry WHERE key LIKE 'hold/%'").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// Each managed file has the content of before or of after, and the mode that belongs to it.
    #[track_caller]
    pub fn files_are_old_or_new(&self, before: &Host, reference: &Reference, what: &str) {
        files_are_old_or_new(&self.node.host(), before, &reference.end.files, what);
    }
}

/// A mode may be changed in place where the bytes are the same.
#[track_caller]
pub fn files_are_old_or_new(now: &Host, before: &Host, after: &Host, what: &str) {
    for (path, seen) in now {
        let name = path.display().to_string();
        if name.contains(".converger-stage") || !name.starts_with("etc/") {
            continue;
        }
        let known = [before.get(path), after.get(path)];
        assert!(
            known.contains(&Some(seen)),
            "{what}: {name} is neither old nor new: {:o} {:?}",
            seen.0,
            String::from_utf8_lossy(&seen.1)
        );
    }
    for (path, _) in before.iter().filter(|(path, _)| after.contains_key(*path)) {
        assert!(now.contains_key(path), "{what}: {} is gone", path.display());
    }
}

/// One system call of a run that changes something: strace counts each kind of call by itself.
#[derive(Clone, Debug)]
pub struct Effect {
    pub call: String,
    pub nth: usize,
    /// As strace has it: with the paths.
    pub words: String,
}

impl std::fmt::Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.call, self.nth, self.words)
    }
}

#[derive(Debug)]
pub enum Ended {
    Killed,
    Said(Said),
}

/// Calls `attempt` with each of these, on a few threads.
fn each<T>(of: impl Iterator<Item = T> + Send, attempt: impl Fn(T) + Sync) {
    let of = Mutex::new(of);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(next) = of.lock().unwrap().next() else { return };
                    attempt(next);
                }
            });
        }
    });
}

/// Tries each, and tells all that failed.
#[track_caller]
pub fn all_of<T>(of: impl Iterator<Item = T> + Send, attempt: impl Fn(T) -> Option<()> + Sync) {
    let (tried, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    each(of, |one| match catch_unwind(AssertUnwindSafe(|| attempt(one))) {
        Ok(done) => drop(tried.fetch_add(done.iter().count(), Ordering::Relaxed)),
        Err(panic) => failed.lock().unwrap().push(*panic.downcast::<String>().unwrap_or_default()),
    });
    let (tried, failed) = (tried.into_inner(), failed.into_inner().unwrap());
    println!("{tried} attempts");
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), tried + failed.len(), failed.join("\n\n"));
    assert!(tried > 0, "nothing was tried");
}

fn file(path: &str, template: &str, more: &str) -> String {
    format!("[[file]]\npath = \"{path}\"\ntemplate = \"{template}\"\n{more}\n")
}

fn unit(name: &str, more: &str) -> String {
    format!("[[unit]]\nname = \"{name}\"\n{more}\n")
}

fn first_commit(bed: &Bed) {
    let mut role = bed.read("roles/base/role.toml");
    for n in 0..24 {
        role.push_str(&file(&format!("/etc/many/{n:02}.conf"), "many", ""));
    }
    role.push_str(&file("/etc/seeded", "many", "policy = \"seed\""));
    role.push_str(&unit("old.service", "template = \"tool.service\"\nenabled = true"));
    role.push_str(&unit("fading.service", "template = \"tool.service\"\nenabled = true"));
    role.push_str(&unit("vendor.service", "dropin = \"dropin\""));
    role.push_str(&file("/etc/vendor/read-again", "dropin", "reloads = [\"vendor.service\"]"));
    role.push_str("[[package]]\nname = { debian = \"thing\" }\nversion = \"1.0\"\n\n");
    bed.forge.write("roles/base/role.toml", &role);
    bed.forge.write("roles/base/many", "{{ node.name }}\nmany = 1\n");
    bed.forge.write("roles/base/dropin", "[Service]\n");
    bed.commit("forty resources");
}

/// Contents, modes, new files in new folders, removals, a seed, a drop-in, a package, actions, units of every fate, and a
/// rotated secret with a restart under a hold.
fn second_commit(bed: &Bed) {
    let mut role = bed.read("roles/base/role.toml");
    for n in 0..24 {
        let before = file(&format!("/etc/many/{n:02}.conf"), "many", "");
        let path = format!("/etc/many/{n:02}.conf");
        let now = match n {
            0..=7 => file(&path, "other", ""),
            8..=11 => file(&path, "many", "mode = \"0600\""),
            12..=15 => String::new(),
            _ => before.clone(),
        };
        assert!(role.contains(&before));
        role = role.replace(&before, &now);
    }
    // More than sixteen candidates at once are synced by mount, fewer one by one: both ways are gone.
    for n in 0..8 {
        role.push_str(&file(&format!("/etc/fresh/deep{}/{n}.conf", n % 2), "other", "mode = \"0640\""));
    }
    role.push_str(&file("/etc/planted", "other", "policy = \"seed\""));
    role.push_str(&file("/etc/tool/extra.conf", "other", ""));
    // It can take the node away: a death in it puts it back, and it is tried once more.
    role.push_str(&file("/etc/sysctl.d/50-many.conf", "settings", ""));
    role.push_str(&unit("late.service", "template = \"tool.service\"\nenabled = true"));
    role = role.replace(&unit("old.service", "template = \"tool.service\"\nenabled = true"), "");
    role = role.replace(
        &unit("fading.service", "template = \"tool.service\"\nenabled = true"),
        &unit("fading.service", "template = \"tool.service\"\nenabled = false\nstate = \"stopped\""),
    );
    role = role.replace("version = \"1.0\"", "version = \"1.1\"");
    role.push_str("[[action]]\nname = \"format\"\nrun = [\"format\"]\ncreates = \"/srv/formatted\"\n\n");
    role.push_str("[[action]]\nname = \"seal\"\nrun = [\"seal\"]\nunless = [\"is-sealed\"]\n");
    bed.forge.write("roles/base/role.toml", &role);
    bed.forge.write("roles/base/other", &format!("{{{{ node.name }}}}\n{}", "other = 2\n".repeat(600)));
    bed.forge.write("roles/base/dropin", "[Service]\nNice=5\n");
    bed.forge.write("roles/base/settings", "vm.swappiness = 10\n");
    bed.edit("roles/base/tool.service", "true", "false");
    bed.edit("roles/web/defaults.toml", "4", "8");
    bed.seal("token", 2, "open barley", &NODES);
    bed.commit("everything changes");
}

/// The managed files of a node before the second commit.
pub fn before(reference: &Reference) -> Host {
    NodeBed { root: reference.node(), name: "web01".to_owned() }.host()
}
