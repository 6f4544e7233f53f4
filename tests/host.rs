//! The host against real directories: what goes live, what is refused, and what is left after things go wrong.
//!
//! Everything below a temporary root. Never: the machine's own files or units.
// Plays services, administrators and crashes; helpers of tests are tests.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use converger::clock::{Clock, FakeClock, SystemClock};
use converger::host::linux::{LinuxHost, Owners, Units};
use converger::host::recorder::{self, Recorder};
use converger::host::{FileQuery, Host, HostError, Observed, Query, Step};
use converger::name::{HostPath, UnitName};
use converger::resource::file::{Policy, Stamp};
use converger::resource::unit::Active;
use converger::resource::{Content, Digest, FileSpec, FileState};

const CLOCK: SystemClock = SystemClock;

struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn host<'a>(&self, clock: &'a dyn Clock) -> LinuxHost<'a> {
        let recorder = Recorder::paced(self.dir.path(), Duration::ZERO, Duration::ZERO).unwrap();
        let owners = if root() { Owners::Kept } else { Owners::Ignored };
        LinuxHost::new(self.dir.path(), owners, Units::Recorder(recorder), clock).unwrap()
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    /// Names of everything below, without the state directory.
    fn tree(&self) -> Vec<String> {
        fn walk(dir: &Path, top: &Path, names: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                names.push(path.strip_prefix(top).unwrap().display().to_string());
                if path.symlink_metadata().unwrap().is_dir() {
                    walk(&path, top, names);
                }
            }
        }
        let mut names = Vec::new();
        walk(self.dir.path(), self.dir.path(), &mut names);
        names.retain(|name| !name.starts_with("var"));
        names.sort();
        names
    }

    fn backups(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.at("var/lib/converger/backups").join(path)) else { return Vec::new() };
        let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn spec(path: &str, text: &str) -> FileSpec {
    let (owner, group) = if root() { ("daemon", "bin") } else { ("root", "root") };
    FileSpec {
        path: path.into(),
        content: Content::plain(text.into()),
        owner: owner.into(),
        group: group.into(),
        mode: 0o640,
        policy: Policy::Enforce,
        validate: None,
    }
}

fn apply(host: &LinuxHost<'_>, specs: &[FileSpec]) -> Result<Vec<(HostPath, Stamp, Digest)>, HostError> {
    host.perform(&Step::Stage(specs.iter().collect()))?;
    host.perform(&Step::Swap).map(|done| done.stamps)
}

fn look(host: &LinuxHost<'_>, path: &str) -> FileState {
    let path = HostPath::from(path);
    let query = FileQuery { path: &path, known: None, bytes_unless: None };
    host.observe(&Query { files: vec![query], ..Query::default() }).unwrap().files.remove(&path).unwrap()
}

#[test]
fn files_are_made_and_replaced_with_owner_mode_and_backup_and_nothing_is_left_over() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    sandbox.put("etc/old.conf", "a stranger's");
    let specs = [spec("/etc/new/deep/a.conf", "new"), spec("/etc/old.conf", "ours")];
    for spec in &specs {
        assert!(spec.diff(&look(&host, spec.path.as_str()), root()).is_some());
    }
    let live = apply(&host, &specs).unwrap();
    assert_eq!(live.len(), 2);
    for spec in &specs {
        assert_eq!(spec.diff(&look(&host, spec.path.as_str()), root()), None, "a second run changes nothing");
    }
    assert_eq!(sandbox.tree(), ["etc", "etc/new", "etc/new/deep", "etc/new/deep/a.conf", "etc/old.conf"]);
    assert_eq!(std::fs::metadata(sandbox.at("etc/new")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(sandbox.backups("etc/old.conf"), ["a stranger's"]);
    assert_eq!(sandbox.backups("etc/new/deep/a.conf"), Vec::<String>::new());
    let backups = std::fs::metadata(sandbox.at("var/lib/converger/backups")).unwrap();
    assert_eq!(backups.mode() & 0o7777, 0o700);
    host.perform(&Step::Remove(&"/etc/old.conf".into())).unwrap();
    assert_eq!(look(&host, "/etc/old.conf"), FileState::Absent);
    assert_eq!(sandbox.backups("etc/old.conf"), ["a stranger's", "ours"]);
}

#[test]
fn the_last_ten_backups_stay_and_of_secrets_the_last() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    for n in 0..14 {
        apply(&host, &[spec("/etc/a", &n.to_string())]).unwrap();
        let secret = Content::secret(Some(n.to_string().into_bytes().into()), b"masked".to_vec(), Vec::new());
        apply(&host, &[FileSpec { content: secret, ..spec("/etc/s", "") }]).unwrap();
    }
    let kept: Vec<String> = (3..13).map(|n| n.to_string()).collect();
    assert_eq!(sandbox.backups("etc/a"), kept);
    assert_eq!(sandbox.backups("etc/s"), ["12"]);
}

#[test]
fn attributes_are_set_without_touching_the_bytes_and_never_through_a_hard_link() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    let spec = spec("/etc/a", "same");
    sandbox.put("etc/a", "same");
    let inode = std::fs::metadata(sandbox.at("etc/a")).unwrap().ino();
    host.perform(&Step::SetAttributes(&spec)).unwrap();
    assert_eq!(spec.diff(&look(&host, "/etc/a"), root()), None);
    assert_eq!(std::fs::metadata(sandbox.at("etc/a")).unwrap().ino(), inode);
    // As a service would link root's shadow file into its own directory to have it handed over.
    std::fs::remove_file(sandbox.at("etc/a")).unwrap();
    sandbox.put("shadow", "same");
    std::fs::hard_link(sandbox.at("shadow"), sandbox.at("etc/a")).unwrap();
    let before = std::fs::metadata(sandbox.at("shadow")).unwrap();
    host.perform(&Step::SetAttributes(&spec)).unwrap();
    assert_eq!(spec.diff(&look(&host, "/etc/a"), root()), None);
    let after = std::fs::metadata(sandbox.at("shadow")).unwrap();
    assert_eq!((after.uid(), after.mode(), after.nlink()), (before.uid(), before.mode(), 1));
}

#[test]
fn what_is_no_file_is_told_blocks_and_stays() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    sandbox.put("target", "untouched");
    std::fs::create_dir_all(sandbox.at("etc/directory")).unwrap();
    symlink("../target", sandbox.at("etc/link")).unwrap();
    assert!(Command::new("mkfifo").arg(sandbox.at("etc/fifo")).status().unwrap().success());
    for (path, what) in [("/etc/directory", "directory"), ("/etc/link", "symbolic link"), ("/etc/fifo", "FIFO")] {
        assert_eq!(look(&host, path), FileState::Other(what));
        // The good one of the batch does not go live either.
        let error = apply(&host, &[spec("/etc/good", "x"), spec(path, "x")]).unwrap_err();
        assert_eq!(error.to_string(), format!("{path} is in the way: it is a {what}"));
        assert!(host.perform(&Step::Remove(&path.into())).is_err());
    }
    assert_eq!(sandbox.read("target"), "untouched");
    assert_eq!(sandbox.tree(), ["etc", "etc/directory", "etc/fifo", "etc/link", "target"]);
}

#[test]
fn links_of_the_system_are_followed_and_links_of_a_service_refused() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    std::fs::create_dir_all(sandbox.at("run/lock")).unwrap();
    std::fs::create_dir_all(sandbox.at("var")).unwrap();
    symlink("/run", sandbox.at("var/run")).unwrap();
    symlink("../var/run/lock/../lock", sandbox.at("run/again")).unwrap();
    apply(&host, &[spec("/run/again/a", "followed")]).unwrap();
    assert_eq!(sandbox.read("run/lock/a"), "followed", "absolute targets stay below the root");
    symlink("loop", sandbox.at("loop")).unwrap();
    assert!(matches!(look(&host, "/loop/a"), FileState::Unreadable(_)));

    sandbox.put("etc/passwd", "the system's");
    std::fs::create_dir_all(sandbox.at("srv/kafka")).unwrap();
    symlink("../../etc", sandbox.at("srv/kafka/conf")).unwrap();
    // The directory is the service's: others than root can write there.
    std::fs::set_permissions(sandbox.at("srv/kafka"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = apply(&host, &[spec("/srv/kafka/conf/passwd", "x")]).unwrap_err();
    assert!(error.to_string().contains("could have been made by others than root"), "{error}");
    assert!(matches!(look(&host, "/srv/kafka/conf/passwd"), FileState::Unreadable(_)));
    assert_eq!(sandbox.read("etc/passwd"), "the system's");
    for path in ["/etc/../etc/x", "/etc//x", "etc/x", "/", "/etc/x/"] {
        assert!(apply(&host, &[spec(path, "x")]).is_err(), "{path}");
    }
}

#[test]
fn a_directory_that_flips_to_a_link_and_back_never_leads_outside() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    sandbox.put("etc/passwd", "the system's");
    std::fs::create_dir_all(sandbox.at("srv/conf")).unwrap();
    std::fs::set_permissions(sandbox.at("srv"), std::fs::Permissions::from_mode(0o777)).unwrap();
    symlink("../etc", sandbox.at("srv/other")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let srv = std::fs::File::open(sandbox.at("srv")).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&srv, "conf", &srv, "other", exchange).unwrap();
            }
        });
        for n in 0..300 {
            let _ = apply(&host, &[spec("/srv/conf/passwd", &n.to_string())]);
            let _ = host.perform(&Step::Unstage);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(sandbox.read("etc/passwd"), "the system's");
}

#[test]
fn what_a_crash_left_staged_is_gone_after_the_next_start() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    host.perform(&Step::Stage(vec![&spec("/a", "x")])).unwrap();
    std::mem::forget(host);
    assert_eq!(sandbox.tree(), [".converger-stage", ".converger-stage/candidate-0"]);
    assert_eq!(std::fs::metadata(sandbox.at(".converger-stage")).unwrap().mode() & 0o7777, 0o700);
    let host = sandbox.host(&CLOCK);
    assert_eq!(sandbox.tree(), Vec::<String>::new());
    host.perform(&Step::Stage(vec![&spec("/b/c", "x")])).unwrap();
    host.perform(&Step::Unstage).unwrap();
    assert_eq!(sandbox.tree(), Vec::<String>::new(), "also the directories that were made");
}

#[test]
fn a_stamp_spares_the_reading_only_when_it_proves_something() {
    let sandbox = Sandbox::new();
    sandbox.put("etc/a", "one");
    let path = HostPath::from("/etc/a");
    let ask = |host: &LinuxHost<'_>, known| {
        let query = FileQuery { path: &path, known, bytes_unless: None };
        match host.observe(&Query { files: vec![query], ..Query::default() }).unwrap().files.remove(&path) {
            Some(FileState::Regular(regular)) => regular,
            other => panic!("{other:?}"),
        }
    };
    let lie = Digest::of(b"not what is there");
    let host = sandbox.host(&CLOCK);
    let fresh = ask(&host, None);
    assert_eq!(fresh.stamp.ctime_ns, 0, "just written: another write could hide in the same tick");
    assert_eq!(ask(&host, Some((fresh.stamp, lie))).digest, Digest::of(b"one"), "so it is read again");
    let later = FakeClock::at(CLOCK.now() + Duration::from_secs(10));
    let host = sandbox.host(&later);
    let settled = ask(&host, None);
    assert_ne!(settled.stamp.ctime_ns, 0);
    assert_eq!(ask(&host, Some((settled.stamp, lie))).digest, lie, "not read");
    std::fs::write(sandbox.at("etc/a"), "two").unwrap();
    assert_eq!(ask(&host, Some((settled.stamp, lie))).digest, Digest::of(b"two"));
}

#[test]
fn bytes_come_only_when_they_differ() {
    let sandbox = Sandbox::new();
    sandbox.put("a", "text");
    let host = sandbox.host(&CLOCK);
    let path = HostPath::from("/a");
    for (unless, bytes) in [(Digest::of(b"text"), None), (Digest::of(b"other"), Some(b"text".to_vec()))] {
        let query = FileQuery { path: &path, known: None, bytes_unless: Some(unless) };
        let observed: Observed = host.observe(&Query { files: vec![query], ..Query::default() }).unwrap();
        match &observed.files[&path] {
            FileState::Regular(regular) => assert_eq!(regular.bytes, bytes),
            other => panic!("{other:?}"),
        }
    }
}

/// Runs `script` with `$1` = the sandbox; only root can mount and set attributes, and CI is root.
fn as_root(sandbox: &Sandbox, script: &str) -> bool {
    let status = Command::new("sh").args(["-ec", script, "sh"]).arg(sandbox.dir.path()).status().unwrap();
    assert!(status.success(), "{script}");
    true
}

#[test]
fn a_full_disk_changes_nothing() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    as_root(
        &sandbox,
        "mkdir -m 755 $1/data; mount -t tmpfs -o size=64k,mode=755 t $1/data; echo -n old >$1/data/a; echo -n old >$1/data/b",
    );
    let host = sandbox.host(&CLOCK);
    let error = apply(&host, &[spec("/data/a", "new"), spec("/data/b", &"x".repeat(100_000))]).unwrap_err();
    let (a, b) = (sandbox.read("data/a"), sandbox.read("data/b"));
    let names = std::fs::read_dir(sandbox.at("data")).unwrap().count();
    // Space comes back: the same work now fits.
    apply(&host, &[spec("/data/a", "new"), spec("/data/b", "new")]).unwrap();
    let after = sandbox.read("data/b");
    as_root(&sandbox, "umount $1/data");
    assert!(
        matches!(&error, HostError::File { operation: "stage", source, .. } if source.raw_os_error() == Some(28)),
        "{error:?}"
    );
    assert_eq!((a.as_str(), b.as_str(), names, after.as_str()), ("old", "old", 2, "new"));
}

#[test]
fn read_only_mounts_and_immutable_files_are_named() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    as_root(
        &sandbox,
        "mkdir -m 755 $1/data; mount -t tmpfs -o size=64k,mode=755 t $1/data; mount -o remount,ro $1/data",
    );
    let host = sandbox.host(&CLOCK);
    let error = apply(&host, &[spec("/data/a", "new")]).unwrap_err();
    as_root(&sandbox, "umount $1/data");
    assert!(matches!(&error, HostError::File { source, .. } if source.raw_os_error() == Some(30)), "{error:?}");

    sandbox.put("etc/fixed", "old");
    as_root(&sandbox, "chattr +i $1/etc/fixed");
    let error = apply(&host, &[spec("/etc/good", "x"), spec("/etc/fixed", "new")]).unwrap_err();
    as_root(&sandbox, "chattr -i $1/etc/fixed");
    let HostError::File { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("chattr -i"), "{source}");
    assert_eq!(sandbox.read("etc/fixed"), "old");
    assert!(!sandbox.at("etc/good").exists());
}

#[test]
fn an_unknown_account_stops_the_batch() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    let nobody = FileSpec { owner: "no-such-user".into(), ..spec("/b", "x") };
    let error = apply(&host, &[spec("/a", "x"), nobody]).unwrap_err();
    assert_eq!(error.to_string(), "no user or group no-such-user on this host (wanted by /b)");
    assert_eq!(sandbox.tree(), Vec::<String>::new());
}

#[test]
fn a_thousand_files_are_cheap() {
    let sandbox = Sandbox::new();
    let specs: Vec<FileSpec> = (0..1000)
        .map(|n| spec(&format!("/etc/role{:02}/file{n:04}.conf", n / 50), &format!("setting = {n}\n").repeat(40)))
        .collect();
    let host = sandbox.host(&CLOCK);
    let (cpu, began) = (cpu_time(), CLOCK.awake());
    apply(&host, &specs).unwrap();
    println!("first apply of 1,000 files: {:?} CPU, {:?} wall", cpu_time() - cpu, CLOCK.awake() - began);
    let later = FakeClock::at(CLOCK.now() + Duration::from_secs(10));
    let host = sandbox.host(&later);
    let ask = |known: &dyn Fn(&HostPath) -> Option<(Stamp, Digest)>| {
        let query = |spec: &'_ FileSpec| known(&spec.path);
        let files = specs.iter().map(|spec| FileQuery { path: &spec.path, known: query(spec), bytes_unless: None });
        host.observe(&Query { files: files.collect(), ..Query::default() }).unwrap().files
    };
    let cpu = cpu_time();
    let first = ask(&|_| None);
    println!("observing 1,000 files, all hashed: {:?} CPU", cpu_time() - cpu);
    let cpu = cpu_time();
    let second = ask(&|path| match &first[path] {
        FileState::Regular(regular) => Some((regular.stamp, regular.digest)),
        _ => None,
    });
    let spent = cpu_time() - cpu;
    println!("observing 1,000 files with known stamps: {spent:?} CPU");
    assert_eq!(first, second);
    assert!(specs.iter().all(|spec| spec.diff(&second[&spec.path], root()).is_none()));
}

/// Of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

#[test]
fn a_sandbox_records_units_for_its_peers() {
    let sandbox = Sandbox::new();
    let clock = FakeClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    let host = sandbox.host(&clock);
    let kafka = UnitName::from("kafka.service");
    let within = Duration::from_secs(1);
    let state = || {
        let query = Query { units: vec![&kafka], ..Query::default() };
        host.observe(&query).unwrap().units.remove(&kafka).unwrap()
    };
    assert!(state().loaded, "a vendor's unit has no file in a sandbox");
    sandbox.put("etc/systemd/system/kafka.service", "[Service]\n");
    host.perform(&Step::Start { unit: &kafka, within }).unwrap();
    let first = recorder::peer_state(sandbox.dir.path(), &kafka).unwrap();
    assert_eq!((first.state, first.starts, first.invocation.len()), (Active::Active, 1, 32));
    sandbox.put("etc/systemd/system/kafka.service", "[Service]\n#\n");
    assert!(state().needs_daemon_reload);
    host.perform(&Step::DaemonReload).unwrap();
    assert!(!state().needs_daemon_reload);

    sandbox.put("run/converger/units.fail", "kafka.service start\nkafka.service gate\n");
    assert!(recorder::gate_fails(sandbox.dir.path(), &kafka));
    host.perform(&Step::Stop { unit: &kafka, within }).unwrap();
    let error = host.perform(&Step::Start { unit: &kafka, within }).unwrap_err();
    assert!(error.to_string().starts_with("cannot start kafka.service"), "{error}");
    assert_eq!(state().active, Active::Failed);
    std::fs::remove_file(sandbox.at("run/converger/units.fail")).unwrap();
    host.perform(&Step::Start { unit: &kafka, within }).unwrap();
    let second = recorder::peer_state(sandbox.dir.path(), &kafka).unwrap();
    assert_ne!(second.invocation, first.invocation);
    std::fs::remove_file(sandbox.at("etc/systemd/system/kafka.service")).unwrap();
    assert!(!state().loaded, "ours, and its file is gone");
    host.perform(&Step::Mask(&kafka)).unwrap();
    host.perform(&Step::Stop { unit: &kafka, within }).unwrap();
    assert!(host.perform(&Step::Start { unit: &kafka, within }).is_err());
    let events: Vec<String> = sandbox
        .read("run/converger/units.log")
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
        .collect();
    let expected =
        "starting started daemon-reload stopping stopped starting failed starting started masked stopping stopped";
    assert_eq!(events.join(" "), expected);
}
