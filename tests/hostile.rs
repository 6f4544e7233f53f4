//! Disks and neighbours that mean harm, or mean nothing: what is in the way, what is full, what is fixed, what flips.
//!
//! Everything below a temporary root, as root: only root can mount, and CI is root. Never: the machine's own files.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod hosted;

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use converger::host::{Host as _, HostError, Step, Words};
use converger::reason;
use converger::resource::file::Previous;
use converger::resource::{FileSpec, FileState};
use hosted::{CLOCK, Sandbox, apply, as_root, look, root, spec};
use rustix::fs::XattrFlags;

/// D2, D5: nothing is followed, opened or replaced that is no file; the rest of its batch waits with it.
#[test]
fn what_is_no_file_is_told_blocks_and_stays() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    sandbox.put("target", "untouched");
    std::fs::create_dir_all(sandbox.at("etc/directory")).unwrap();
    symlink("../target", sandbox.at("etc/link")).unwrap();
    as_root(&sandbox, "mkfifo $1/etc/fifo; mknod $1/etc/device c 1 3");
    let _socket = UnixListener::bind(sandbox.at("etc/socket")).unwrap();
    let before = sandbox.tree();
    for (path, what) in [
        ("/etc/directory", "directory"),
        ("/etc/link", "symbolic link"),
        ("/etc/fifo", "FIFO"),
        ("/etc/socket", "socket"),
        ("/etc/device", "device"),
    ] {
        assert_eq!(look(&host, path), FileState::Other(what));
        let error = apply(&host, &[spec("/etc/good", "x"), spec(path, "x")]).unwrap_err();
        assert_eq!(error.to_string(), format!("{path} is in the way: it is a {what}"));
        assert_eq!(error.reason(), reason::UNSAFE_PATH);
        assert!(host.perform(&Step::SetAttributes(&spec(path, "x"))).is_err());
        assert!(host.perform(&Step::Remove(&path.into(), Previous::Kept)).is_err());
    }
    assert_eq!(sandbox.read("target"), "untouched");
    assert_eq!(sandbox.tree(), before);
}

/// D5: it was a file when it was looked at, and is something else when it is opened.
#[test]
fn a_fifo_that_takes_a_files_place_holds_nobody_up() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    let spec = spec("/etc/a", "x");
    host.perform(&Step::Stage(vec![(&spec, Previous::Kept)], Words::Told)).unwrap();
    as_root(&sandbox, "mkfifo $1/etc/a");
    // The copy of what is there does not wait for a writer; the rename takes the FIFO's place.
    host.perform(&Step::Swap).unwrap();
    assert_eq!(sandbox.read("etc/a"), "x");
}

/// D1.
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
    assert!(matches!(look(&host, "/loop/a"), FileState::Unsafe(_)));

    sandbox.put("etc/passwd", "the system's");
    std::fs::create_dir_all(sandbox.at("srv/kafka")).unwrap();
    symlink("../../etc", sandbox.at("srv/kafka/conf")).unwrap();
    // The directory is the service's: others than root can write there.
    std::fs::set_permissions(sandbox.at("srv/kafka"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = apply(&host, &[spec("/srv/kafka/conf/passwd", "x")]).unwrap_err();
    assert!(error.to_string().contains("could have been made by others than root"), "{error}");
    assert!(matches!(look(&host, "/srv/kafka/conf/passwd"), FileState::Unsafe(_)));
    assert_eq!(error.reason(), reason::UNSAFE_PATH);
    assert_eq!(sandbox.read("etc/passwd"), "the system's");
}

/// D3: as a service user would, thousands of times: nothing is written outside, also when the check and the write see
/// different directories.
#[test]
fn a_directory_that_flips_to_a_link_and_back_never_leads_outside() {
    let sandbox = Sandbox::new();
    as_root(&sandbox, "mount -t tmpfs -o mode=755 t $1");
    let host = sandbox.host(&CLOCK);
    sandbox.put("etc/passwd", "the system's");
    std::fs::create_dir_all(sandbox.at("srv/conf")).unwrap();
    std::fs::set_permissions(sandbox.at("srv"), std::fs::Permissions::from_mode(0o777)).unwrap();
    symlink("../etc", sandbox.at("srv/other")).unwrap();
    let (stop, mut done, mut refused) = (AtomicBool::new(false), 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let srv = std::fs::File::open(sandbox.at("srv")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&srv, "conf", &srv, "other", exchange).unwrap();
            }
        });
        for n in 0..3000 {
            let written = apply(&host, &[spec("/srv/conf/passwd", &n.to_string())]);
            let set = host.perform(&Step::SetAttributes(&spec("/srv/conf/passwd", "")));
            let removed = host.perform(&Step::Remove(&"/srv/conf/passwd".into(), Previous::Kept));
            for error in [written.map(drop).err(), set.map(drop).err(), removed.map(drop).err()] {
                match error.map(|error| error.reason()) {
                    None => done += 1,
                    Some(reason) if reason == reason::UNSAFE_PATH => refused += 1,
                    // It was there when it was looked for and not when it was opened.
                    Some(reason) => assert_eq!(reason, reason::APPLY_FAILED),
                }
            }
            let _ = host.perform(&Step::Unstage);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (passwd, names) = (sandbox.read("etc/passwd"), std::fs::read_dir(sandbox.at("etc")).unwrap().count());
    let owner = std::fs::metadata(sandbox.at("etc/passwd")).unwrap().uid();
    drop(host);
    as_root(&sandbox, "umount -l $1");
    assert_eq!((passwd.as_str(), names, owner), ("the system's", 1, 0));
    assert!(done > 0 && refused > 0, "there was no race: {done} went through, {refused} were refused");
}

/// D15: what the repository's own check would have refused is refused here too.
#[test]
fn a_path_that_is_not_plain_is_no_path() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    let long = format!("/etc/{}", "x".repeat(5000));
    for path in ["/etc/../etc/x", "/etc//x", "/etc/./x", "etc/x", "", "/", "/etc/x/", "/etc/a\0b", long.as_str()] {
        assert!(apply(&host, &[spec(path, "x")]).is_err(), "{path}");
        assert!(host.perform(&Step::Remove(&path.into(), Previous::Kept)).is_err() || path == long, "{path}");
    }
    assert!(sandbox.tree().iter().all(|name| name == "etc"), "{:?}", sandbox.tree());
}

/// D16: also through a link that the system's own administrator made.
#[test]
fn what_is_the_agents_own_is_nobodys_target() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    sandbox.put("etc/converger/trust.toml", "the trust root");
    symlink("converger", sandbox.at("etc/other")).unwrap();
    for path in ["/etc/converger/trust.toml", "/etc/other/trust.toml", "/var/lib/converger/ledger.db", "/proc/x"] {
        let error = apply(&host, &[spec(path, "x")]).unwrap_err();
        assert_eq!(error.reason(), reason::UNSAFE_PATH, "{path}: {error}");
        let _ = host.perform(&Step::Remove(&path.into(), Previous::Kept));
    }
    assert_eq!(sandbox.read("etc/converger/trust.toml"), "the trust root");
}

/// D6: of the file, and of its directory; the attribute is named, and the rest of the batch stays what it was.
#[test]
fn an_immutable_file_or_directory_is_named() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    for (attribute, on) in [("i", "etc/fixed"), ("a", "etc/fixed"), ("i", "etc"), ("a", "etc")] {
        sandbox.put("etc/fixed", "old");
        sandbox.put("srv/good", "old");
        as_root(&sandbox, &format!("chattr +{attribute} $1/{on}"));
        let written = apply(&host, &[spec("/srv/good", "new"), spec("/etc/fixed", "new")]);
        let set = host.perform(&Step::SetAttributes(&spec("/etc/fixed", "old")));
        let removed = host.perform(&Step::Remove(&"/etc/fixed".into(), Previous::Kept));
        as_root(&sandbox, &format!("chattr -{attribute} $1/{on}"));
        for error in [written.map(drop).unwrap_err(), set.map(drop).unwrap_err(), removed.map(drop).unwrap_err()] {
            assert_eq!(error.reason(), reason::READ_ONLY, "{error}");
            assert!(error.to_string().contains("immutable or append-only (lsattr, chattr -i -a)"), "{error}");
        }
        assert_eq!((sandbox.read("etc/fixed").as_str(), sandbox.read("srv/good").as_str()), ("old", "old"));
    }
    apply(&host, &[spec("/srv/good", "new"), spec("/etc/fixed", "new")]).unwrap();
}

fn mounted(sandbox: &Sandbox, options: &str) {
    as_root(sandbox, &format!("mkdir -m 755 $1/data; mount -t tmpfs -o {options},mode=755 t $1/data"));
    sandbox.put("data/a", "old");
    sandbox.put("data/b", "old");
}

/// Whatever the assertions say, the mount goes.
fn unmounted(sandbox: &Sandbox, then: impl FnOnce()) {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(then));
    as_root(sandbox, "umount -l $1/data");
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// D7: before it begins, and between staging and the first rename.
#[test]
fn a_read_only_mount_is_named_and_a_remount_is_enough() {
    let sandbox = Sandbox::new();
    mounted(&sandbox, "size=64k");
    unmounted(&sandbox, || {
        let host = sandbox.host(&CLOCK);
        let specs = [spec("/data/a", "new"), spec("/data/b", "new")];
        host.perform(&Step::Stage(specs.iter().map(|spec| (spec, Previous::Kept)).collect(), Words::Told)).unwrap();
        as_root(&sandbox, "mount -o remount,ro $1/data");
        let swap = host.perform(&Step::Swap).unwrap_err();
        let stage = apply(&host, &specs).unwrap_err();
        for error in [swap, stage] {
            assert_eq!(error.reason(), reason::READ_ONLY, "{error}");
        }
        assert_eq!((sandbox.read("data/a").as_str(), sandbox.read("data/b").as_str()), ("old", "old"));
        as_root(&sandbox, "mount -o remount,rw $1/data");
        apply(&host, &specs).unwrap();
        assert_eq!((sandbox.read("data/a").as_str(), sandbox.read("data/b").as_str()), ("new", "new"));
        assert_eq!(std::fs::read_dir(sandbox.at("data")).unwrap().count(), 2, "nothing is left staged");
    });
}

/// D8, I1: what cannot fit is not begun; when there is room again, the same work is done.
#[test]
fn a_batch_that_does_not_fit_is_not_begun() {
    for (options, big, what) in [("size=64k", 100_000, "bytes"), ("size=1m,nr_inodes=6", 1, "inodes")] {
        let sandbox = Sandbox::new();
        mounted(&sandbox, options);
        unmounted(&sandbox, || {
            let host = sandbox.host(&CLOCK);
            let mut specs = vec![spec("/data/a", "new"), spec("/data/b", &"x".repeat(big))];
            specs.extend((0..4).map(|n| spec(&format!("/data/more{n}"), "x")));
            let error = apply(&host, &specs).unwrap_err();
            assert_eq!(error.reason(), reason::DISK_FULL, "{error}");
            assert!(matches!(&error, HostError::NoRoom { what: short, .. } if *short == what), "{error}");
            assert_eq!((sandbox.read("data/a").as_str(), sandbox.read("data/b").as_str()), ("old", "old"));
            assert_eq!(std::fs::read_dir(sandbox.at("data")).unwrap().count(), 2, "not even the staging directory");
            as_root(&sandbox, "mount -o remount,size=2m,nr_inodes=100 $1/data");
            apply(&host, &specs).unwrap();
            assert_eq!(sandbox.read("data/a"), "new");
        });
    }
}

/// D8: somebody else is quicker than the check. The write that comes short is the last one, and nothing of it stays.
#[test]
fn a_disk_that_fills_up_meanwhile_changes_nothing() {
    let sandbox = Sandbox::new();
    mounted(&sandbox, "size=256k");
    unmounted(&sandbox, || {
        let host = sandbox.host(&CLOCK);
        let (stop, mut refused) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = std::fs::write(sandbox.at("data/hog"), vec![0; 220 * 1024]);
                    let _ = std::fs::remove_file(sandbox.at("data/hog"));
                }
            });
            for n in 0..400 {
                let text = format!("{n} ").repeat(20_000);
                let specs = [spec("/data/a", &text), spec("/data/b", "new")];
                match apply(&host, &specs) {
                    Ok(_) => assert_eq!(sandbox.read("data/a"), text),
                    Err(error) => {
                        assert_eq!(error.reason(), reason::DISK_FULL, "{error}");
                        refused += 1;
                    }
                }
                let a = sandbox.read("data/a");
                let whole = a.split_once(' ').is_some_and(|(word, _)| a == format!("{word} ").repeat(20_000));
                assert!(a == "old" || whole, "torn at {n}: {} bytes", a.len());
            }
            stop.store(true, Ordering::Relaxed);
        });
        let _ = std::fs::remove_file(sandbox.at("data/hog"));
        assert!(refused > 0, "there was always room");
        assert_eq!(std::fs::read_dir(sandbox.at("data")).unwrap().count(), 2, "nothing is left staged");
    });
}

/// D10: the user is gone when the file is written, or was never there.
#[test]
fn an_unknown_account_stops_the_batch() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    let nobody = FileSpec { owner: "no-such-user".into(), ..spec("/b", "x") };
    let error = apply(&host, &[spec("/a", "x"), nobody]).unwrap_err();
    assert_eq!(error.to_string(), "no user or group no-such-user on this host (wanted by /b)");
    assert_eq!(sandbox.tree(), Vec::<String>::new());
}

/// An access list that lets uid 1 write: version 2; owner, user 1, group, mask, others (acl(5), linux/posix_acl_xattr.h).
fn access_list() -> Vec<u8> {
    let entry =
        |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let entries = [entry(1, 6, none), entry(2, 6, 1), entry(4, 4, none), entry(0x10, 6, none), entry(0x20, 4, none)];
    [&2_u32.to_le_bytes()[..], &entries.concat()].concat()
}

fn attributes(sandbox: &Sandbox, path: &str) -> Vec<String> {
    let mut buffer = vec![0; 4096];
    let length = rustix::fs::llistxattr(sandbox.at(path), &mut buffer).unwrap();
    let names = buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> =
        names.map(|name| std::ffi::OsStr::from_bytes(name).to_string_lossy().into_owned()).collect();
    // The kernel's own, where it labels files.
    names.retain(|name| name != "security.selinux");
    names
}

/// D11: what an attacker or an administrator put on the old file does not pass to the new one, nor from the directory that
/// candidates are written in.
#[test]
fn nothing_dangerous_is_inherited_from_what_was_there() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    // Version 2, effective, cap_dac_override (linux/capability.h).
    let capability: Vec<u8> = [0x0200_0001_u32, 2, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(sandbox.at(path), name, value, XattrFlags::empty()).unwrap();
    };
    for same in [false, true] {
        sandbox.put("etc/tool", "old");
        set("etc/tool", "user.note", b"x");
        set("etc/tool", "system.posix_acl_access", &access_list());
        set("etc/tool", "security.capability", &capability);
        std::fs::set_permissions(sandbox.at("etc/tool"), std::fs::Permissions::from_mode(0o6777)).unwrap();
        set(".", "system.posix_acl_default", &access_list());
        let wanted = if same { "old" } else { "new" };
        let spec = FileSpec { mode: 0o755, ..spec("/etc/tool", wanted) };
        if same {
            host.perform(&Step::SetAttributes(&spec)).unwrap();
        } else {
            apply(&host, std::slice::from_ref(&spec)).unwrap();
        }
        assert_eq!(std::fs::metadata(sandbox.at("etc/tool")).unwrap().mode() & 0o7777, 0o755);
        // A note of somebody's on bytes that stay does no harm.
        let left: &[&str] = if same { &["user.note"] } else { &[] };
        assert_eq!(attributes(&sandbox, "etc/tool"), left, "same bytes: {same}");
        assert_eq!(spec.diff(&look(&host, "/etc/tool"), root()), None);
    }
}

/// D11: of what was there, else of the directory; never of where candidates are written. Labels are attributes that root can
/// set on any kernel; what a policy makes of them is not tried here.
#[test]
fn a_new_file_has_the_label_that_belongs_there() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    sandbox.put("etc/shadow", "old");
    sandbox.put("srv/other", "old");
    let set = |path: &str, label: &[u8]| {
        rustix::fs::setxattr(sandbox.at(path), "security.selinux", label, XattrFlags::empty()).unwrap();
    };
    set("etc", b"system_u:object_r:etc_t:s0");
    set("etc/shadow", b"system_u:object_r:shadow_t:s0");
    set(".", b"system_u:object_r:root_t:s0");
    apply(&host, &[spec("/etc/new", "x"), spec("/etc/shadow", "new"), spec("/srv/other", "new")]).unwrap();
    let label = |path: &str| {
        let mut label = [0; 100];
        let length = rustix::fs::getxattr(sandbox.at(path), "security.selinux", &mut label).unwrap_or(0);
        String::from_utf8(label[..length].to_vec()).unwrap()
    };
    assert_eq!(label("etc/new"), "system_u:object_r:etc_t:s0");
    assert_eq!(label("etc/shadow"), "system_u:object_r:shadow_t:s0");
    assert_eq!(label("srv/other"), "", "where nothing is labelled nothing is");
}

/// D20: a program that runs keeps its bytes.
#[test]
fn a_running_program_is_replaced_and_runs_on() {
    let sandbox = Sandbox::new();
    let host = sandbox.host(&CLOCK);
    std::fs::create_dir(sandbox.at("bin")).unwrap();
    std::fs::copy("/bin/cat", sandbox.at("bin/tool")).unwrap();
    let mut tool = Command::new(sandbox.at("bin/tool")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    apply(&host, &[spec("/bin/tool", "#!/bin/false\n")]).unwrap();
    std::io::Write::write_all(&mut tool.stdin.take().unwrap(), b"still here").unwrap();
    let said = tool.wait_with_output().unwrap();
    assert!(said.status.success() && said.stdout == b"still here", "{said:?}");
    assert_eq!(sandbox.read("bin/tool"), "#!/bin/false\n");
}
