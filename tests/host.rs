//! The host against real directories: what goes live, what is refused, and what is left after things go wrong.
//!
//! Everything below a temporary root. Never: the machine's own files or units.
// Plays services, administrators and crashes; helpers of tests are tests.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod hosted;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use converger::clock::{Clock, FakeClock};
use converger::host::linux::LinuxHost;
use converger::host::recorder;
use converger::host::{FileQuery, Host, Observed, Query, Step, Words};
use converger::name::{HostPath, UnitName};
use converger::resource::file::{Previous, Stamp};
use converger::resource::unit::Active;
use converger::resource::{Content, Digest, FileSpec, FileState};
use hosted::{CLOCK, Sandbox, apply, as_root, look, root, secret, spec};

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
    host.perform(&Step::Remove(&"/etc/old.conf".into(), Previous::Kept)).unwrap();
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

/// B13: copies of a secret that is not used any more are gone: it rotates, the file turns plain, or leaves.
#[test]
fn no_copy_of_an_old_secret_stays() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    let write = |spec: &FileSpec, previous| {
        host.perform(&Step::Stage(vec![(spec, previous)], Words::Told)).unwrap();
        host.perform(&Step::Swap).unwrap();
    };
    let ways: [(&str, &dyn Fn()); 3] = [
        ("it rotates", &|| write(&secret("/etc/s", "new"), Previous::Gone)),
        ("it turns plain", &|| write(&spec("/etc/s", "plain"), Previous::Gone)),
        ("it leaves", &|| drop(host.perform(&Step::Remove(&"/etc/s".into(), Previous::Gone)).unwrap())),
    ];
    for (way, go) in ways {
        sandbox.put("etc/s", "a stranger's");
        write(&secret("/etc/s", "old"), Previous::KeptOnce);
        sandbox.put("etc/s", "old, and edited");
        write(&secret("/etc/s", "old"), Previous::KeptOnce);
        assert_eq!(sandbox.backups("etc/s"), ["old, and edited"], "{way}");
        let mode = |path: &str| std::fs::metadata(sandbox.at(path)).unwrap().mode() & 0o777;
        assert_eq!(mode("var/lib/converger/backups"), 0o700);
        let copy = std::fs::read_dir(sandbox.at("var/lib/converger/backups/etc/s")).unwrap().next().unwrap().unwrap();
        assert_eq!(copy.metadata().unwrap().mode() & 0o777, 0o600);
        go();
        assert!(sandbox.backups("etc/s").is_empty(), "{way}");
    }
    // Gone already, by somebody else's hand.
    write(&secret("/etc/s", "old"), Previous::KeptOnce);
    sandbox.put("etc/s", "edited");
    write(&secret("/etc/s", "old"), Previous::KeptOnce);
    std::fs::remove_dir_all(sandbox.at("etc")).unwrap();
    host.perform(&Step::Remove(&"/etc/s".into(), Previous::Gone)).unwrap();
    assert!(sandbox.backups("etc/s").is_empty());
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
fn what_a_crash_left_staged_is_gone_after_the_next_start() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    host.perform(&Step::Stage(vec![(&spec("/a", "x"), Previous::Kept)], Words::Told)).unwrap();
    std::mem::forget(host);
    assert_eq!(sandbox.tree(), [".converger-stage", ".converger-stage/candidate-0"]);
    assert_eq!(std::fs::metadata(sandbox.at(".converger-stage")).unwrap().mode() & 0o7777, 0o700);
    let host = sandbox.host(&CLOCK);
    assert_eq!(sandbox.tree(), Vec::<String>::new());
    host.perform(&Step::Stage(vec![(&spec("/b/c", "x"), Previous::Kept)], Words::Told)).unwrap();
    host.perform(&Step::Unstage).unwrap();
    assert_eq!(sandbox.tree(), Vec::<String>::new(), "also the directories that were made");
}

/// B13: also on another mount than the root's own.
#[test]
fn what_a_crash_left_staged_on_another_mount_is_gone_too() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    as_root(&sandbox, "mkdir $1/srv; mount -t tmpfs -o mode=755 none $1/srv");
    let host = sandbox.host(&CLOCK);
    host.perform(&Step::Stage(vec![(&secret("/srv/s", "canary"), Previous::KeptOnce)], Words::Told)).unwrap();
    std::mem::forget(host);
    assert!(sandbox.at("srv/.converger-stage/candidate-0").exists());
    let host = sandbox.host(&CLOCK);
    host.clean(["/srv/s"]).unwrap();
    let left = sandbox.at("srv/.converger-stage").exists();
    // Lazily: the host that crashed never gave back what it had open.
    as_root(&sandbox, "umount -l $1/srv");
    assert!(!left);
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
            FileState::Regular(regular) => {
                assert_eq!(regular.bytes.as_ref().map(|found| found.bytes().to_vec()), bytes)
            }
            other => panic!("{other:?}"),
        }
    }
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
    let (within, words) = (Duration::from_secs(1), Words::Told);
    let state = || {
        let query = Query { units: vec![&kafka], ..Query::default() };
        host.observe(&query).unwrap().units.remove(&kafka).unwrap()
    };
    assert!(state().loaded, "a vendor's unit has no file in a sandbox");
    sandbox.put("etc/systemd/system/kafka.service", "[Service]\n");
    host.perform(&Step::Start { unit: &kafka, within, words }).unwrap();
    let first = recorder::peer_state(sandbox.dir.path(), &kafka).unwrap();
    assert_eq!((first.state, first.starts, first.invocation.len()), (Active::Active, 1, 32));
    sandbox.put("etc/systemd/system/kafka.service", "[Service]\n#\n");
    assert!(state().needs_daemon_reload);
    host.perform(&Step::DaemonReload).unwrap();
    assert!(!state().needs_daemon_reload);

    sandbox.put("run/converger/units.fail", "kafka.service start\nkafka.service gate\n");
    assert!(recorder::gate_fails(sandbox.dir.path(), &kafka));
    host.perform(&Step::Stop { unit: &kafka, within, words }).unwrap();
    let error = host.perform(&Step::Start { unit: &kafka, within, words }).unwrap_err();
    assert!(error.to_string().starts_with("cannot start kafka.service"), "{error}");
    assert_eq!(state().active, Active::Failed);
    std::fs::remove_file(sandbox.at("run/converger/units.fail")).unwrap();
    host.perform(&Step::Start { unit: &kafka, within, words }).unwrap();
    let second = recorder::peer_state(sandbox.dir.path(), &kafka).unwrap();
    assert_ne!(second.invocation, first.invocation);
    std::fs::remove_file(sandbox.at("etc/systemd/system/kafka.service")).unwrap();
    assert!(!state().loaded, "ours, and its file is gone");
    host.perform(&Step::Mask(&kafka)).unwrap();
    host.perform(&Step::Stop { unit: &kafka, within, words }).unwrap();
    assert!(host.perform(&Step::Start { unit: &kafka, within, words }).is_err());
    let events: Vec<String> = sandbox
        .read("run/converger/units.log")
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
        .collect();
    let expected =
        "starting started daemon-reload stopping stopped starting failed starting started masked stopping stopped";
    assert_eq!(events.join(" "), expected);
}
