//! The children that meet foreign bytes: what they cannot do even when they are taken over, and what the agent believes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // what fails here fails the test
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

mod bed;
mod forge;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bed::Bed;
use converger::git::sandbox::{Profile, Task, User, calls};
use converger::git::{Children, GitError, Repository};
use converger::reason::{self, chain};
use converger::settings::Limits;
use forge::{Forge, Node, children};
use nix::libc;

const TASKS: [Task; 5] = [Task::Read, Task::File, Task::Https, Task::Ssh, Task::Artifact];
/// Somebody whom every machine knows and who owns nothing.
const NOBODY: User = User { uid: 65534, gid: 65534 };

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

// ---- what an attacker can do

/// Things to steal and to break, and the program that tries.
struct Target {
    dir: tempfile::TempDir,
    escape: PathBuf,
    port: TcpListener,
    _socket: UnixListener,
    name: String,
}

impl Target {
    fn new() -> Self {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--example", "escape"]).status().unwrap();
        assert!(built.success());
        let escape = Path::new(env!("CARGO_BIN_EXE_converger")).with_file_name("examples").join("escape");
        let dir = tempfile::tempdir().unwrap();
        mode(dir.path(), 0o755);
        let at = |name: &str| dir.path().join(name);
        for (name, bits) in [("age.key", 0o600), ("age.pub", 0o644)] {
            std::fs::write(at(name), "AGE-SECRET-KEY-1").unwrap();
            mode(&at(name), bits);
        }
        for name in ["quarantine.git", "outside"] {
            std::fs::create_dir(at(name)).unwrap();
            mode(&at(name), 0o777);
        }
        std::fs::write(at("outside/precious"), "precious").unwrap();
        mode(&at("outside/precious"), 0o666);
        let name = format!("converger-test-{}", dir.path().display());
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { dir, escape, port, _socket: socket, name }
    }

    fn profile(&self, task: Task, user: Option<User>) -> Profile {
        let quarantine = self.dir.path().join("quarantine.git");
        let port = matches!(task, Task::Https | Task::Ssh | Task::Artifact).then_some(1);
        Profile { user, task, quarantine, readable: Vec::new(), port, limits: Limits::default() }
    }

    /// How each attack went: `None` if it worked, or the error.
    fn attack(&self, profile: Option<&Profile>, attacks: &[&str]) -> (BTreeMap<String, Option<i32>>, Option<i32>) {
        let order = serde_json::json!({
            "profile": profile,
            "private": self.dir.path().join("age.key"),
            "public": self.dir.path().join("age.pub"),
            "outside": self.dir.path().join("outside"),
            "port": self.port.local_addr().unwrap().port(),
            "abstract_name": self.name,
            "parent": std::process::id(),
        });
        let output = Command::new(&self.escape).arg(order.to_string()).args(attacks).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let result = |line: &str| {
            let (name, how) = line.split_once(' ').unwrap();
            (name.to_owned(), how.strip_prefix("errno ").map(|errno| errno.parse().unwrap()))
        };
        let signal = output.status.signal();
        assert!(output.status.success() || signal.is_some(), "{}", String::from_utf8_lossy(&output.stderr));
        (said.lines().map(result).collect(), signal)
    }
}

/// Refused quietly: libraries try some of them, too.
const QUIET: &[&str] = &[
    "read-private",
    "read-public",
    "list-outside",
    "write-outside",
    "write-tmp",
    "truncate-outside",
    "chmod-outside",
    "rename-outside",
    "link-private",
    "symlink",
    "unix-socket",
    "abstract-socket",
    "netlink-socket",
    "raw-socket",
    "packet-socket",
    "connect-elsewhere",
    "listen",
    "udp-bind",
    "become-root",
    "group-root",
    "chown",
    "exec",
    "fork",
    "fork-namespace",
    "signal-parent",
    "memory-of-parent",
    "environment-of-parent",
    "own-memory",
    "dump-core",
    "dumpable",
    "new-code",
    "memfd",
];
/// The process is killed.
const ALARMING: &[&str] =
    &["ptrace-parent", "read-parent", "mount", "user-namespace", "chroot", "bpf", "keyring", "io-uring", "perf"];

/// What a task cannot do without; what keeps it harmless is another layer.
fn granted(task: Task, attack: &str) -> bool {
    match attack {
        // The C library loads how names are looked up; ssh is a program.
        "new-code" => matches!(task, Task::Https | Task::Ssh | Task::Artifact),
        "fork" => task == Task::Ssh,
        // Only where the memory of a process is its own user's anyway.
        "dumpable" => task == Task::Ssh,
        _ => false,
    }
}

/// A24, B11: a child that is taken over reads no key, writes nothing but the quarantine, talks to nobody, becomes nobody.
#[test]
fn nothing_that_an_attacker_tries_works_in_any_sandbox() {
    let target = Target::new();
    let (control, signal) = target.attack(None, QUIET);
    assert_eq!((control.len(), signal), (QUIET.len(), None));
    let failed: Vec<_> = control.iter().filter(|(_, how)| how.is_some()).collect();
    assert!(failed.is_empty() || !is_root(), "without a sandbox all of it works: {failed:?}");

    let users = if is_root() { vec![None, Some(NOBODY)] } else { vec![None] };
    for user in users {
        for task in TASKS {
            let (tried, signal) = target.attack(Some(&target.profile(task, user)), QUIET);
            assert_eq!((tried.len(), signal), (QUIET.len(), None), "{task:?} {user:?}: {tried:?}");
            let worked = tried.iter().filter(|(name, how)| how.is_none() && !granted(task, name));
            let worked: Vec<_> = worked.map(|(name, _)| name).collect();
            assert!(worked.is_empty(), "{task:?} as {user:?}: {worked:?} of {tried:?}");
            println!("{task:?} as {user:?}: {} attacks refused", tried.values().flatten().count());
        }
    }
    assert_eq!(std::fs::read_to_string(target.dir.path().join("outside/precious")).unwrap(), "precious");
}

/// What only attacks begin with ends the process, and shows in the log.
#[test]
fn calls_that_no_fetch_makes_kill_the_child() {
    let target = Target::new();
    for attack in ALARMING {
        let (control, signal) = target.attack(None, &[attack]);
        assert_eq!(signal, None, "{attack}");
        if is_root() {
            assert_eq!(control[*attack], None, "without a sandbox {attack} works");
        }
        for task in [Task::Read, Task::Ssh] {
            let (tried, signal) = target.attack(Some(&target.profile(task, None)), &[attack]);
            assert_eq!((tried.len(), signal), (0, Some(libc::SIGSYS)), "{attack} in {task:?}");
        }
    }
}

/// A longer list is a decision, not an accident.
#[test]
fn the_lists_of_allowed_calls_stay_short() {
    let most = [(Task::Read, 26), (Task::File, 51), (Task::Https, 65), (Task::Ssh, 89)];
    for (task, most) in most {
        let calls = calls::allowed(task).unwrap().len();
        println!("{task:?}: {calls} system calls");
        assert!(calls <= most, "{task:?}: {calls} > {most}");
    }
    let reader = calls::allowed(Task::Read).unwrap();
    for call in [libc::SYS_socket, libc::SYS_connect, libc::SYS_execve, libc::SYS_clone, libc::SYS_kill] {
        assert!(!reader.contains_key(&call), "{call}");
    }
    assert!(!reader[&libc::SYS_openat].is_empty(), "only for reading");
}

// ---- what the agent believes

/// A program in place of ours: fetching is honest, reading answers with these bytes and then does `last`.
fn liar(dir: &Path, answers: &[u8], last: &str) -> Children {
    let (bytes, program) = (dir.join("answers"), dir.join("liar"));
    std::fs::write(&bytes, answers).unwrap();
    let honest = children().program;
    let script =
        format!("#!/bin/sh\n[ \"$2\" = fetch ] && exec {} \"$@\"\ncat {}\n{last}\n", honest.display(), bytes.display());
    std::fs::write(&program, script).unwrap();
    mode(&program, 0o755);
    Children { program, user: None }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn object(id: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
    frame(&[b"o", &[kind][..], &hex::decode(id).unwrap(), bytes].concat())
}

/// A26: bytes that are not the object's, of another kind, too many, senseless, none: each has a name, none gets in.
#[test]
fn a_child_that_lies_is_named_and_nothing_of_it_is_admitted() {
    let forge = Forge::new();
    let tip = forge.head();
    let raw = forge.raw("HEAD").into_bytes();
    let other = forge.git(&["rev-parse", "HEAD:fleet.toml"]);
    let file = forge::FLEET.as_bytes();
    let evil = String::from_utf8(raw.clone()).unwrap().replace("a fleet", "a fraud").into_bytes();
    let (ready, end) = (frame(b"R\x07"), frame(b"."));
    let all = |parts: &[&[u8]]| parts.concat();
    let (listen, hang) = ("exec cat >/dev/null", "exec sleep 60");
    let big = vec![b'x'; 1 << 20];
    let big_id = forge.git_with(&["hash-object", "--stdin"], &big);
    let endless = format!("while cat {}/endless; do :; done", forge.dir.path().display());
    std::fs::write(forge.dir.path().join("endless"), object(&big_id, b'b', &big)).unwrap();
    let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("other bytes", all(&[&ready, &object(&tip, b'c', &evil)]), listen, "other bytes than those of"),
        (
            "other bytes when read",
            all(&[&ready, &end, &object(&tip, b'c', &evil)]),
            listen,
            "other bytes than those of",
        ),
        ("wrong kind", all(&[&ready, &end, &object(&tip, b'b', &raw)]), listen, "other bytes than those of"),
        ("another object", all(&[&ready, &end, &object(&other, b'b', file)]), listen, "what was not asked"),
        ("another answer", all(&[&ready, &frame(&[&b"T"[..], &[7; 20]].concat())]), listen, "what was not asked"),
        ("a long frame", all(&[&ready, &[0xff; 4]]), listen, "where at most"),
        ("garbage", all(&[&ready, &frame(b"garbage")]), listen, "means nothing"),
        ("no greeting", b"hello, world".to_vec(), listen, "where at most"),
        ("too many", ready.clone(), &endless, "where at most"),
        ("nothing", Vec::new(), "exit 3", "ended before it answered (exit status: 3)"),
        ("half", all(&[&ready, &object(&tip, b'c', &raw)[..40]]), "exit 0", "ended before it answered"),
        ("death", ready.clone(), "kill -SYS $$", "system call that no fetch needs"),
        ("last words", ready.clone(), "echo '\u{1b}[2Jargh' >&2; exit 1", "exit status: 1: \\u{1b}[2Jargh"),
        ("silence", ready.clone(), hang, "said nothing for 1 s"),
        ("nothing there", all(&[&ready, &end, &frame(b"nno such object")]), listen, "no such object"),
    ];
    let mut root = forge.root();
    for (what, answers, last, words) in cases {
        root.limits.time_secs = if what == "silence" { 1 } else { 30 };
        let dir = tempfile::tempdir().unwrap();
        let children = liar(dir.path(), &answers, last);
        let (state, cache) = (dir.path().join("state"), dir.path().join("cache"));
        let mut node =
            Node { repository: Repository::open(&state, &cache, &children).unwrap(), state: state.clone(), cache };
        let error = node.verify(&root, None).unwrap_err();
        let said = chain(&error);
        assert!(matches!(error, GitError::Reader { .. } | GitError::Object { .. }), "{what}: {error:?}");
        assert!(said.contains(words) && !said.contains('\u{1b}'), "{what}: {said}");
        assert_eq!(error.reason(), reason::SOURCE_UNREACHABLE, "{what}");
        assert_eq!(std::fs::read_dir(state.join("objects.git/objects/pack")).unwrap().count(), 0, "{what}");
        println!("{what}: {said}");

        // The same node with an honest child: nothing of the lie was kept.
        let mut node = Node::open(state, dir.path().join("cache"));
        assert_eq!(node.verify(&forge.root(), None).unwrap().commit().as_str(), tip, "{what}");
    }
}

/// A fetch child that invents a tip, or nothing at all, costs that remote only.
#[test]
fn a_lying_fetch_child_gives_a_remote_that_failed() {
    let forge = Forge::new();
    let dir = tempfile::tempdir().unwrap();
    for (answers, words) in [
        (b"\0\0\0\x02R\x07".to_vec(), "ended before it answered"),
        (frame(b"Fbroken\x1b[2J"), "broken\\u{1b}[2J"),
        (b"\0\0\0\x02R\x07\0\0\0\x01.".to_vec(), "what was not asked"),
        (b"\0\0\0\x02R\x07\0\0\0\x09Lmuch\x1b[2J".to_vec(), "much\\u{1b}[2J"),
    ] {
        std::fs::write(dir.path().join("answers"), answers).unwrap();
        let program = dir.path().join("liar");
        std::fs::write(&program, format!("#!/bin/sh\ncat {}/answers\n", dir.path().display())).unwrap();
        mode(&program, 0o755);
        let (state, cache) = (dir.path().join("state"), dir.path().join("cache"));
        let mut repository = Repository::open(&state, &cache, &Children { program, user: None }).unwrap();
        let said = chain(&repository.fetch(&forge.root(), None).map(drop).unwrap_err());
        assert!(said.contains(words), "{said}");
    }
    let gone = Children { program: dir.path().join("gone"), user: None };
    let mut repository = Repository::open(&dir.path().join("state"), &dir.path().join("cache"), &gone).unwrap();
    assert!(chain(&repository.fetch(&forge.root(), None).map(drop).unwrap_err()).contains("cannot start"));
}

/// A26: what was damaged on disk is fetched into a fresh quarantine.
#[test]
fn a_damaged_quarantine_is_fetched_anew() {
    let forge = Forge::new();
    let (root, mut node) = (forge.root(), forge.node());
    node.repository.fetch(&root, None).unwrap();
    for entry in std::fs::read_dir(node.cache.join("quarantine.git/objects/pack")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "pack") {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[12..].iter_mut().for_each(|byte| *byte ^= 0x55);
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
        }
    }
    assert!(node.verify(&root, None).is_err());
    assert_eq!(node.verify(&root, None).unwrap().commit().as_str(), forge.head());
}

/// K2: a power cut can leave a reference without its content.
#[test]
fn an_empty_reference_in_the_quarantine_fails_no_fetch() {
    let forge = Forge::new();
    let (root, mut node) = (forge.root(), forge.node());
    node.repository.fetch(&root, None).unwrap();
    let reference = node.cache.join("quarantine.git/refs/quarantine/0");
    std::fs::write(&reference, "").unwrap();
    forge.commit(Some("alice"), "after the power cut");
    assert_eq!(node.verify(&root, None).unwrap().commit().as_str(), forge.head());
}

/// A18, A23: what is planted in the quarantine (a shallow boundary, grafts, alternates, hooks, programs in its
/// configuration) hides nothing, brings nothing and starts nothing.
#[test]
fn what_is_planted_in_the_quarantine_has_no_effect() {
    let forge = Forge::new();
    forge.commit(Some("alice"), "two");
    let (root, mut node) = (forge.root(), forge.node());
    node.repository.fetch(&root, None).unwrap();
    let quarantine = node.cache.join("quarantine.git");
    let marker = forge.dir.path().join("ran");
    let program = forge.dir.path().join("program");
    std::fs::write(&program, format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
    mode(&program, 0o755);
    let plant = |name: &str, text: &str| {
        let path = quarantine.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    plant("shallow", &format!("{}\n", forge.head()));
    plant("info/grafts", &format!("{}\n", forge.head()));
    plant("objects/info/alternates", "/nonexistent/objects\n");
    for hook in ["reference-transaction", "post-update", "pre-receive", "fsmonitor-watchman"] {
        std::fs::create_dir_all(quarantine.join("hooks")).unwrap();
        std::fs::copy(&program, quarantine.join("hooks").join(hook)).unwrap();
    }
    let said = program.display();
    plant(
        "config",
        &format!(
            "[core]\n\tbare = true\n\tsshCommand = {said}\n\tfsmonitor = {said}\n\tgitProxy = {said}\n\
             [credential]\n\thelper = !{said}\n[uploadpack]\n\tpackObjectsHook = {said}\n\
             [url \"ext::{said} \"]\n\tinsteadOf = file://\n[include]\n\tpath = /etc/shadow\n"
        ),
    );
    forge.write(".gitattributes", "* filter=evil merge=evil\n");
    forge.commit(Some("alice"), "three");
    assert_eq!(node.verify(&root, None).unwrap().seq(), 3, "the whole chain");
    assert!(!marker.exists(), "a planted program ran");
    for gone in ["shallow", "info/grafts", "hooks", "objects/info/alternates"] {
        assert!(!quarantine.join(gone).exists(), "{gone}");
    }
}

/// R14: the agent's own process opens neither the quarantine nor a remote's objects; its children do.
#[test]
fn the_agent_itself_never_opens_what_remotes_sent() {
    let bed = Bed::new();
    bed.forge.write("roles/base/motd", "moved on\n");
    bed.commit("something new");
    let node = bed.node("web01");
    let trace = bed.dir().join("trace");
    let mut command = Command::new("strace");
    forge::hermetic(&mut command)
        .args(["-f", "-e", "trace=execve,open,openat,openat2,clone,clone3,vfork", "-s", "4096", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_converger"))
        .args(["agent", "--once", "--root"])
        .arg(&node.root)
        .arg("--settings")
        .arg(node.root.join("etc/converger/agent.toml"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(node.text("etc/motd"), "moved on\n");

    let (mut children, mut ours, mut theirs) = (BTreeSet::new(), Vec::new(), 0);
    let remote = format!("{}/.git/objects", bed.forge.work.display());
    for line in std::fs::read_to_string(&trace).unwrap().lines() {
        let (pid, what) = line.split_once(' ').unwrap();
        let child = children.contains(pid);
        if what.contains("execve(") && what.contains("\"quarantine\"") {
            children.insert(pid.to_owned());
        } else if child && (what.contains("clone") || what.contains("fork")) {
            children.extend(what.rsplit_once("= ").map(|(_, new)| new.to_owned()));
        } else if what.contains("quarantine.git/") || what.contains(&remote) {
            // Its place in the cache may be looked at, by name.
            let listed = what.contains("quarantine.git/objects/pack\"") && what.contains("O_DIRECTORY");
            match child {
                true => theirs += 1,
                false if listed => {}
                false => ours.push(line.to_owned()),
            }
        }
    }
    assert!(children.len() >= 2, "one fetches, one reads");
    assert!(theirs > 10, "the trace sees what it is about");
    assert!(ours.is_empty(), "{ours:#?}");
}

// ---- as another user

/// A35, R14: where we are root the quarantine is another user's, and one that is not is made anew.
#[test]
fn root_fetches_as_another_user_whose_quarantine_is_made_anew_when_it_is_not() {
    if !is_root() {
        println!("not root: nobody to become");
        return;
    }
    let forge = Forge::new();
    mode(forge.dir.path(), 0o711);
    let dir = forge.dir.path().join("node");
    std::fs::create_dir(&dir).unwrap();
    let (state, cache) = (dir.join("state"), dir.join("cache"));
    let children = Children { user: Some(NOBODY), ..children() };
    let quarantine = cache.join("quarantine.git");
    let open = || Repository::open(&state, &cache, &children).unwrap();
    let mut node = Node { repository: open(), state: state.clone(), cache: cache.clone() };
    let accepted = node.accept(&forge.root());
    let meta = std::fs::metadata(&quarantine).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (NOBODY.uid, 0o700));
    let packs = std::fs::read_dir(quarantine.join("objects/pack")).unwrap();
    for entry in packs {
        assert_eq!(entry.unwrap().metadata().unwrap().uid(), NOBODY.uid);
    }
    assert_eq!(std::fs::metadata(&cache).unwrap().mode() & 0o777, 0o711);
    assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o700);

    forge.commit(Some("alice"), "two");
    for spoil in ["chown", "chmod", "file", "link"] {
        match spoil {
            "chown" => std::os::unix::fs::chown(&quarantine, Some(0), Some(0)).unwrap(),
            "chmod" => mode(&quarantine, 0o777),
            _ => {
                std::fs::remove_dir_all(&quarantine).unwrap();
                match spoil {
                    "file" => std::fs::write(&quarantine, "x").unwrap(),
                    _ => std::os::unix::fs::symlink("/etc", &quarantine).unwrap(),
                }
            }
        }
        let mut node = Node { repository: open(), state: state.clone(), cache: cache.clone() };
        assert_eq!(node.verify(&forge.root(), Some(&accepted)).unwrap().seq(), 2, "{spoil}");
        let meta = std::fs::symlink_metadata(&quarantine).unwrap();
        assert_eq!((meta.is_dir(), meta.uid(), meta.mode() & 0o777), (true, NOBODY.uid, 0o700), "{spoil}");
    }
    // A remote that this user may not enter, and a key that it may not read, are named.
    mode(&forge.work, 0o700);
    forge.commit(Some("alice"), "three");
    let said = chain(&node.verify(&forge.root(), Some(&accepted)).unwrap_err());
    assert!(said.contains("converger-fetch, who may not enter") && said.contains("chmod 0711"), "{said}");
    mode(&forge.work, 0o755);
    assert_eq!(node.verify(&forge.root(), Some(&accepted)).unwrap().seq(), 3);
}

/// Two packs per run would be many: what is verified is packed together, what is not is fetched anew.
#[test]
fn stores_do_not_grow_without_end() {
    let forge = Forge::new();
    let (root, mut node) = (forge.root(), forge.node());
    let mut accepted = node.accept(&root);
    let packs = |path: &Path| {
        let listed = std::fs::read_dir(path.join("objects/pack")).unwrap();
        listed.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "pack")).count()
    };
    let objects = node.state.join("objects.git");
    let mut most = 0;
    for n in 0..60 {
        forge.write("roles/base/motd", &n.to_string());
        forge.commit(Some("alice"), "motd");
        let verified = node.verify(&root, Some(&accepted)).unwrap();
        node.repository.admit(&verified).unwrap();
        accepted = verified.accepted().clone();
        most = most.max(packs(&objects));
    }
    println!("at most {most} packs, {} at the end", packs(&objects));
    assert!(most <= 51 && packs(&objects) < 20);
    let verified = node.repository.resume(&root, &accepted).unwrap();
    let first = root.introduction.commit.clone();
    assert!(node.repository.tree_of_earlier(&verified, &first, &root.limits).unwrap().is_some());

    let quarantine = node.cache.join("quarantine.git");
    for n in 0..200 {
        std::fs::write(quarantine.join(format!("objects/pack/pack-{n:040}.pack")), "").unwrap();
    }
    for seq in 62..64 {
        forge.commit(Some("alice"), "more");
        assert_eq!(node.verify(&root, Some(&accepted)).unwrap().seq(), seq);
    }
    assert_eq!(packs(&quarantine), 1);
}

// ---- credentials

/// B11, H5: while a fetch is going on nobody sees a credential in a command line or an environment, and the
/// environment's proxies are not asked.
#[test]
fn children_show_no_credential_and_know_no_proxy() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let (server, proxy) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    proxy.set_nonblocking(true).unwrap();
    let address = server.local_addr().unwrap();
    let https = format!("https://{address}/fleet.git");
    node.put("etc/converger/token", "user:s3cret-token\n");
    let trust = bed.trust(&https).replace("url =", "token_file = \"token\"\nurl =");
    node.put("etc/converger/trust.toml", &format!("{trust}\n[limits]\ntime_secs = 3\n"));
    let mut command = bed::converger();
    let proxies = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];
    let through = format!("http://{}", proxy.local_addr().unwrap());
    let agent = command
        .envs(proxies.map(|name| (name, &through)))
        .args(["agent", "--once", "--root"])
        .arg(&node.root)
        .arg("--settings")
        .arg(node.root.join("etc/converger/agent.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It asked the remote itself, and now waits for an answer.
    let (_held, _) = server.accept().unwrap();
    let read = |pid: u32, what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let began = Instant::now();
    let child = loop {
        let children = read(agent.id(), &format!("task/{}/children", agent.id()));
        let children = String::from_utf8(children).unwrap();
        if let Some(child) = children.split_whitespace().next() {
            break child.parse().unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(60));
    };
    let (arguments, environment) = (read(child, "cmdline"), read(child, "environ"));
    assert_eq!(String::from_utf8_lossy(&arguments), "/proc/self/exe\0quarantine\0fetch\0");
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
    let status = String::from_utf8(read(child, "status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    let output = agent.wait_with_output();
    let said = String::from_utf8_lossy(&output.unwrap().stderr).into_owned();
    assert!(!said.contains("s3cret"), "{said}");
    assert!(proxy.accept().is_err(), "the proxy was asked");
}
