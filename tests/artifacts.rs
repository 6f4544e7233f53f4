//! Artifacts from a mirror to `current`: real archives of the machine's own tar, zip, xz and zstd, real servers on loopback,
//! hostile archives made byte by byte, and crashes at every system call.
//!
//! Everything below temporary directories. Never: another machine.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod mirror;
mod unpacked;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use converger::git::sandbox::User;
use converger::host::HostError;
use converger::host::artifacts::fetch::Bounds;
use converger::host::artifacts::{self, MARKER};
use converger::reason::{self, chain};
use converger::resource::artifact::{ArtifactState, Bucket};
use converger::resource::content::SecretUse;
use converger::resource::{ArtifactSpec, Content};
use mirror::{Answer, Asked, Mirror};
use sha2::{Digest as _, Sha256};
use unpacked::{Node, Tar, is_root, listing, packed, refused, release, run, spec, tar};
use zeroize::Zeroizing;

// ---- forms

/// E8: benign archives are what GNU tar makes of them, in every format that it writes.
#[test]
fn archives_unpack_to_what_tar_and_unzip_make_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &[&str]); 6] = [
        ("gnu.tar.gz", &["--format=gnu", "--gzip"]),
        ("pax.tar.xz", &["--format=pax", "--xz"]),
        ("posix.tar.zst", &["--format=posix", "--zstd"]),
        ("plain.tar", &["--format=gnu"]),
        ("oldgnu.tgz", &["--format=oldgnu", "--gzip"]),
        ("global.tar.gz", &["--format=pax", "--gzip", "--pax-option=globexthdr.comment=x"]),
    ];
    for (file, options) in cases {
        let bytes = packed(dir.path(), "1.0", file, options);
        let expected = dir.path().join(format!("expected-{file}"));
        std::fs::create_dir(&expected).unwrap();
        run(Command::new("tar").arg("-C").arg(&expected).arg("-xf").arg(dir.path().join(file)));
        let node = Node::new();
        let spec = node.publish("1.0", file, &bytes);
        node.bring(&spec).unwrap_or_else(|error| panic!("{file}: {}", chain(&error)));
        assert_eq!(listing(&node.app("current/")), listing(&expected.join("app-1.0")), "{file}");
        assert_eq!(node.diff(&spec), None);
        assert_eq!(node.parts(), [0; 0], "the download is gone");
    }

    run(Command::new("zip").current_dir(dir.path()).args(["-qry", "x.zip", "app-1.0"]));
    let expected = dir.path().join("unzipped");
    run(Command::new("unzip").args(["-qq", "-d"]).arg(&expected).arg(dir.path().join("x.zip")));
    let node = Node::new();
    let spec = node.publish("1.0", "x.zip", &std::fs::read(dir.path().join("x.zip")).unwrap());
    node.bring(&spec).unwrap();
    let without_time = |top: &Path| {
        let listed = listing(top).into_iter();
        listed.map(|(path, what)| (path, what.split(" at ").next().unwrap().to_owned())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(without_time(&node.app("current/")), without_time(&expected.join("app-1.0")));
}

#[test]
fn a_zstd_file_of_several_frames_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = packed(dir.path(), "1.0", "x.tar", &[]);
    let mut zstd = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc".to_vec();
    for part in bytes.chunks(bytes.len() / 3) {
        let mut child = Command::new("zstd")
            .args(["-q", "-c"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(part).unwrap());
            zstd.extend(child.wait_with_output().unwrap().stdout);
        });
    }
    let node = Node::new();
    node.bring(&node.publish("1.0", "x.tar.zst", &zstd)).unwrap();
    assert_eq!(node.text("current/bin/run"), "#!/bin/sh\necho 1.0\n");
}

#[test]
fn a_jar_keeps_its_name_and_everybody_may_read_it() {
    let node = Node::new();
    let spec = node.publish("0.98.0", "nessie-runner.jar", b"PK not looked into");
    node.bring(&spec).unwrap();
    assert_eq!(node.text("current/nessie-runner.jar"), "PK not looked into");
    let mode = |path: &str| node.app(path).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("current/nessie-runner.jar"), mode("0.98.0")), (0o644, 0o755));
    let declared = ArtifactSpec { file: "other.jar".to_owned(), version: "1".to_owned(), ..spec };
    node.bring(&declared).unwrap();
    assert_eq!(node.text("current/other.jar"), "PK not looked into");
}

// ---- hostile archives

/// E8: whatever an archive tries, it is refused by the entry's name, nothing of it is anywhere, and what was live is live.
#[test]
fn what_tries_to_get_out_is_refused_by_name_and_leaves_nothing() {
    type Make = fn(&mut Tar);
    let cases: &[(&str, &str, Make)] = &[
        ("parent", "../evil", |t| _ = t.file("../evil", b"x")),
        ("parent inside", "a/../../evil", |t| _ = t.file("a/../../evil", b"x")),
        ("absolute", "/tmp/evil", |t| _ = t.file("/tmp/evil", b"x")),
        ("absolute link", "l", |t| _ = t.file("a", b"x").entry(b'2', "l", "/etc", 0o777, b"")),
        ("link out", "a/l", |t| _ = t.file("a/b", b"x").file("c", b"").entry(b'2', "a/l", "../../etc", 0o777, b"")),
        ("link through a link", "m", |t| {
            t.file("a/b", b"x").entry(b'2', "a/l", "..", 0o777, b"").entry(b'2', "m", "a/l/../etc", 0o777, b"");
        }),
        ("write through a link", "l/evil", |t| {
            _ = t.entry(b'2', "l", "d", 0o777, b"").file("d/x", b"").file("l/evil", b"x")
        }),
        ("write through a link out", "l/evil", |t| _ = t.entry(b'2', "l", "..", 0o777, b"").file("l/evil", b"x")),
        // RUSTSEC-2026-0067: a directory that takes a link's place changes what the link points at.
        ("directory over a link", "l", |t| {
            t.file("a", b"x").entry(b'2', "l", "a", 0o777, b"").entry(b'5', "l/", "", 0o777, b"");
        }),
        ("link over a directory", "d", |t| _ = t.file("d/x", b"x").entry(b'2', "d", "elsewhere", 0o777, b"")),
        ("hard link out", "h", |t| _ = t.file("a", b"x").entry(b'1', "h", "/etc/passwd", 0o644, b"")),
        ("hard link up", "h", |t| _ = t.file("a", b"x").entry(b'1', "h", "../../etc/passwd", 0o644, b"")),
        ("hard link to a link", "h", |t| {
            t.file("a", b"x").entry(b'2', "l", "a", 0o777, b"").entry(b'1', "h", "l", 0o644, b"");
        }),
        ("character device", "null", |t| _ = t.file("a", b"").entry(b'3', "null", "", 0o666, b"")),
        ("block device", "sda", |t| _ = t.file("a", b"").entry(b'4', "sda", "", 0o666, b"")),
        ("pipe", "fifo", |t| _ = t.file("a", b"").entry(b'6', "fifo", "", 0o666, b"")),
        ("unknown type", "odd", |t| _ = t.file("a", b"").entry(b'Z', "odd", "", 0o666, b"")),
        ("sparse", "holes", |t| _ = t.file("a", b"").entry(b'S', "holes", "", 0o666, b"")),
        ("twice", "a", |t| _ = t.file("a", b"one").file("a", b"two")),
        ("twice by another spelling", "a", |t| _ = t.file("a", b"one").file("./a", b"two")),
        ("file over a directory", "d", |t| _ = t.file("d/x", b"").file("d", b"")),
        ("below a file", "a/b", |t| _ = t.file("a", b"").file("a/b", b"")),
        ("our own name", "x/.converger-artifact", |t| _ = t.file("x/a", b"").file(&format!("x/{MARKER}"), b"{}")),
        ("control characters", "a\\nb", |t| _ = t.file("a\nb", b"")),
        // RUSTSEC-2026-0068, CVE-2025-62518: readers that believe different sizes see different archives.
        ("pax size", "a", |t| {
            let hidden = tar(|t| _ = t.file("../evil", b"x"));
            t.pax(&[("size", "0")]).file("a", &hidden);
        }),
        ("ustar size", "a", |t| {
            let hidden = tar(|t| _ = t.file("../evil", b"x"));
            t.pax(&[("size", &hidden.len().to_string())]).sized(b'0', "a", "", 0o644, &hidden, 0);
        }),
        ("pax size twice", "pax", |t| _ = t.pax(&[("size", "1"), ("size", "2")]).file("a", b"x")),
        ("pax path out", "../evil", |t| _ = t.pax(&[("path", "../evil")]).file("a", b"x")),
        ("pax link out", "l", |t| {
            t.file("a", b"").pax(&[("linkpath", "../../etc")]).entry(b'2', "l", "a", 0o777, b"");
        }),
        ("pax sparse", "pax", |t| _ = t.pax(&[("GNU.sparse.major", "1")]).file("a", b"x")),
        ("global path", "pax", |t| {
            t.entry(b'g', "pax", "", 0o644, b"16 path=../evil\n").file("a", b"x");
        }),
        ("long name out", "../evil", |t| _ = t.entry(b'L', "@", "", 0o644, b"../evil\0").file("a", b"x")),
        ("long name too long", "@", |t| _ = t.entry(b'L', "@", "", 0o644, &[b'a'; 70_000]).file("a", b"x")),
        ("two long names", "@", |t| {
            t.entry(b'L', "@", "", 0o644, b"a\0").entry(b'L', "@", "", 0o644, b"b\0").file("a", b"x");
        }),
        ("directory with content", "d/", |t| _ = t.entry(b'5', "d/", "", 0o755, b"x").file("a", b"")),
        ("nothing", "", |t| _ = t.entry(b'5', "d/", "", 0o755, b"")),
    ];
    let node = Node::new();
    let good = node.publish("1.0", "good.tar.gz", &release("1.0"));
    node.bring(&good).unwrap();
    let before = listing(&node.at("root"));
    for (what, entry, make) in cases {
        let bad = node.publish("2.0", "bad.tar", &tar(make));
        let (reason, said) = refused(node.unpack(&bad));
        assert_eq!(reason, reason::ARCHIVE_REFUSED, "{what}: {said}");
        assert!(said.contains(&format!("{entry:?}").replace("\\\\", "\\")), "{what}: {said}");
        assert_eq!(listing(&node.at("root")), before, "{what}");
    }
    assert_eq!(node.diff(&good), None);
}

/// E8: the same with zip files, which Python writes without asking.
#[test]
fn hostile_zip_files_are_refused_too() {
    const MAKE: &str = r#"
import stat, sys, warnings, zipfile
warnings.simplefilter("ignore")
def entry(name, mode): 
    info = zipfile.ZipInfo(name); info.create_system = 3; info.external_attr = mode << 16
    return info
cases = {
    "parent": [("../evil", 0o100644, b"x")],
    "absolute": [("/tmp/evil", 0o100644, b"x")],
    "link-out": [("a", 0o100644, b"x"), ("l", 0o120777, b"../../etc")],
    "through-link": [("l", 0o120777, b".."), ("l/evil", 0o100644, b"x")],
    "device": [("a", 0o100644, b"x"), ("dev", 0o020666, b"")],
    "twice": [("a", 0o100644, b"one"), ("a", 0o100644, b"two")],
}
for what, entries in cases.items():
    with zipfile.ZipFile(f"{sys.argv[1]}/{what}.zip", "w", zipfile.ZIP_DEFLATED) as out:
        for name, mode, content in entries: out.writestr(entry(name, mode), content)
with zipfile.ZipFile(f"{sys.argv[1]}/names.zip", "w") as out: out.writestr(entry("good", 0o100644), b"x")
data = open(f"{sys.argv[1]}/names.zip", "rb").read()
open(f"{sys.argv[1]}/names.zip", "wb").write(data.replace(b"good", b"evil", 1))
with zipfile.ZipFile(f"{sys.argv[1]}/content.zip", "w") as out: out.writestr(entry("good", 0o100644), b"checksum")
data = open(f"{sys.argv[1]}/content.zip", "rb").read()
open(f"{sys.argv[1]}/content.zip", "wb").write(data.replace(b"checksum", b"checkSum", 1))
"#;
    let made = tempfile::tempdir().unwrap();
    run(Command::new("python3").arg("-c").arg(MAKE).arg(made.path()));
    let node = Node::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(made.path()).unwrap() {
        let path = entry.unwrap().path();
        let bad = node.publish("2.0", "bad.zip", &std::fs::read(&path).unwrap());
        let result = node.unpack(&bad);
        let Err(HostError::Artifact(error)) = result else { panic!("{}: {result:?}", path.display()) };
        let damaged = path.ends_with("content.zip");
        assert!(damaged || error.reason() == reason::ARCHIVE_REFUSED, "{}: {}", path.display(), chain(&error));
        assert_eq!(node.names(), [""; 0], "{}", path.display());
        assert!(!node.at("root/opt/evil").exists() && !node.at("root/evil").exists());
        seen += 1;
    }
    assert_eq!(seen, 8);
}

/// E8, L: bombs end at a bound, before they are written.
#[test]
fn bombs_are_refused_before_anything_is_written() {
    let node = Node::new();
    std::fs::File::create(node.at("zeros")).unwrap().set_len(100 << 20).unwrap();
    run(Command::new("tar")
        .arg("-C")
        .arg(node.at(""))
        .args(["--gzip", "-cf", "bomb", "zeros"])
        .current_dir(node.at("")));
    let zeros = std::fs::read(node.at("bomb")).unwrap();
    let (reason, said) = refused(node.unpack(&node.publish("2.0", "bomb.tar.gz", &zeros)));
    assert!(reason == reason::ARCHIVE_REFUSED && said.contains("times its size"), "{said}");
    // Announced and not there: judged by what is announced.
    let huge = tar(|t| _ = t.sized(b'0', "huge", "", 0o644, b"", 0o77777777777));
    let (reason, said) = refused(node.unpack(&node.publish("2.0", "huge.tar", &huge)));
    assert!(reason == reason::ARCHIVE_REFUSED && said.contains("huge"), "{said}");
    let deep = tar(|t| _ = t.file("x", b"").pax(&[("path", &"d/".repeat(65))]).file("a", b""));
    assert!(refused(node.unpack(&node.publish("2.0", "deep.tar", &deep))).1.contains("deeper than"));
    assert_eq!(node.names(), [""; 0]);
}

/// E8: bits that give rights away are dropped, everything is root's.
#[test]
fn set_id_bits_and_rights_of_others_are_dropped() {
    let node = Node::new();
    let bytes = tar(|t| {
        t.entry(b'0', "su", "", 0o6777, b"x").entry(b'0', "closed", "", 0o600, b"x").entry(b'5', "d/", "", 0o1777, b"");
    });
    node.bring(&node.publish("1.0", "x.tar", &bytes)).unwrap();
    let look = |path: &str| {
        let meta = node.app(path).metadata().unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    assert_eq!(look("1.0/su"), (0o755, uid, gid));
    assert_eq!(look("1.0/closed"), (0o644, uid, gid));
    assert_eq!(look("1.0/d"), (0o755, uid, gid));
}

#[test]
fn an_archive_that_is_cut_off_or_none_at_all_is_an_error() {
    let node = Node::new();
    let whole = release("1.0");
    for (file, bytes) in [
        ("cut.tar.gz", &whole[..whole.len() / 2]),
        ("page.tar.gz", &b"<html>404</html>"[..]),
        ("page.tar.xz", b"<html>404</html>"),
        ("page.tar.zst", b"<html>404</html>"),
        ("page.zip", b"<html>404</html>"),
        ("page.tar", b"<html>404</html>"),
        ("empty.tar.gz", b""),
    ] {
        refused(node.unpack(&node.publish("1.0", file, bytes)));
        assert_eq!(node.names(), [""; 0], "{file}");
    }
}

// ---- mirrors

/// E7: a mirror without it, one with something else, one that is not there: the next one is asked, and the digest decides.
#[test]
fn mirrors_are_tried_in_order_and_the_digest_decides() {
    let node = Node::new();
    let (old, new) = (release("1.0"), release("2.0"));
    node.bring(&node.publish("1.0", "old.tar.gz", &old)).unwrap();
    let body = new.clone();
    let mirror = Mirror::http(move |asked| match &*asked.path {
        "/missing.tar.gz" => Answer::status(404),
        "/changed.tar.gz" => Answer::ok(&old),
        "/chunked.tar.gz" => Answer { chunked: true, ..Answer::ok(&body) },
        _ => Answer::ranged(&body, asked),
    });
    let urls = |names: &[&str]| -> Vec<String> { names.iter().map(|name| mirror.url(name)).collect() };
    let only_bad = spec("2.0", &new, [urls(&["/missing.tar.gz", "/changed.tar.gz"]), vec![mirror::nobody()]].concat());
    let (reason, said) = refused(node.unpack(&only_bad));
    assert_eq!(reason, reason::DIGEST_MISMATCH);
    for part in ["404", "sha256", "127.0.0.1"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(node.names(), ["1.0", "current"], "what was live is live");
    assert_eq!(node.parts(), [0], "nothing wrong is gone on with");

    let none = spec("2.0", &new, urls(&["/missing.tar.gz"]));
    assert_eq!(refused(node.unpack(&none)).0, reason::MIRRORS_FAILED);

    let last = spec("2.0", &new, urls(&["/missing.tar.gz", "/changed.tar.gz", "/chunked.tar.gz"]));
    node.bring(&last).unwrap();
    assert_eq!(node.text("current/bin/run"), "#!/bin/sh\necho 2.0\n");
    assert_eq!(mirror.asked().last().unwrap().headers["accept-encoding"], "identity");
}

/// E7.
#[test]
fn an_archive_without_a_usable_digest_is_never_asked_for() {
    let node = Node::new();
    let mirror = Mirror::http(|_| Answer::ok(b"x"));
    let spec = ArtifactSpec { sha256: String::new(), ..spec("1", b"x", vec![mirror.url("/x.jar")]) };
    refused(node.unpack(&spec));
    assert!(mirror.asked().is_empty());
}

#[test]
fn a_download_that_was_interrupted_goes_on_where_it_was() {
    let node = Node::new();
    let body = release("1.0");
    let (served, cut) = (body.clone(), body.len() * 3 / 4);
    let mirror = Mirror::http(move |asked| match (&*asked.path, asked.from()) {
        // It breaks off the first time, and then stays away.
        ("/flaky.tar.gz", None) => Answer { cut: Some(cut), ..Answer::ok(&served) },
        ("/flaky.tar.gz", Some(_)) => Answer::status(503),
        _ => Answer::ranged(&served, asked),
    });
    let first = spec("1.0", &body, vec![mirror.url("/flaky.tar.gz")]);
    let (reason, _) = refused(node.unpack(&first));
    assert_eq!((reason, node.parts()), (reason::MIRRORS_FAILED, vec![cut as u64]));
    let before = mirror.served();
    // The next run, at another mirror.
    node.bring(&spec("1.0", &body, vec![mirror.url("/good.tar.gz")])).unwrap();
    assert_eq!(mirror.served() - before, (body.len() - cut) as u64, "only the rest was sent");
    assert_eq!(mirror.asked().last().unwrap().from(), Some(cut));
}

#[test]
fn a_mirror_that_breaks_off_again_and_again_still_gives_it_all() {
    let node = Node::new();
    let body = release("1.0");
    let served = body.clone();
    let step = body.len() / 4;
    let mirror = Mirror::http(move |asked| {
        let answer = Answer::ranged(&served, asked);
        Answer { cut: Some(step.min(answer.body.len())), ..answer }
    });
    node.bring(&spec("1.0", &body, vec![mirror.url("/x.tar.gz")])).unwrap();
    assert_eq!(mirror.served(), body.len() as u64, "no byte twice");
    assert!(mirror.asked().len() > 3);
}

#[test]
fn a_server_without_ranges_and_a_wrong_beginning_are_started_anew() {
    let body = release("1.0");
    for wrong in [true, false] {
        for ranges in [true, false] {
            let node = Node::new();
            let served = body.clone();
            let mirror = Mirror::http(move |asked| match ranges {
                true => Answer::ranged(&served, asked),
                false => Answer::ok(&served),
            });
            let spec = spec("1.0", &body, vec![mirror.url("/x.tar.gz")]);
            std::fs::create_dir_all(node.at("cache/artifacts")).unwrap();
            std::fs::set_permissions(node.at("cache/artifacts"), PermissionsExt::from_mode(0o700)).unwrap();
            let left = if wrong { vec![7; 5000] } else { body[..5000].to_vec() };
            std::fs::write(node.at(&format!("cache/artifacts/{}.part", spec.sha256)), left).unwrap();
            node.bring(&spec).unwrap_or_else(|error| panic!("{wrong} {ranges}: {}", chain(&error)));
            assert_eq!(node.diff(&spec), None);
            assert_eq!(mirror.asked().len(), if wrong && ranges { 2 } else { 1 });
        }
    }
    // More than there is: the server cannot give that range.
    let node = Node::new();
    let served = body.clone();
    let mirror = Mirror::http(move |asked| Answer::ranged(&served, asked));
    let spec = spec("1.0", &body, vec![mirror.url("/x.tar.gz")]);
    std::fs::create_dir_all(node.at("cache/artifacts")).unwrap();
    std::fs::set_permissions(node.at("cache/artifacts"), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::write(node.at(&format!("cache/artifacts/{}.part", spec.sha256)), vec![0; body.len() + 1]).unwrap();
    node.bring(&spec).unwrap();
    // What was received before a crash is not asked for again.
    let (first, asked) = (ArtifactSpec { version: "2.0".to_owned(), ..spec.clone() }, mirror.asked().len());
    std::fs::write(node.at(&format!("cache/artifacts/{}.part", spec.sha256)), &body).unwrap();
    node.bring(&first).unwrap();
    assert_eq!(mirror.asked().len(), asked);
}

/// E7: redirects lead on, but never from https to http; authorities are those that the environment names.
#[test]
fn redirects_and_authorities() {
    let node = Node::new();
    let body = release("1.0");
    let served = body.clone();
    let plain = Mirror::http(move |asked| match &*asked.path {
        "/there/x.tar.gz" => Answer::redirect("/x.tar.gz".to_owned()),
        "/round.tar.gz" => Answer::redirect("/round.tar.gz".to_owned()),
        _ => Answer::ranged(&served, asked),
    });
    let (served, down) = (body.clone(), plain.url("/x.tar.gz"));
    let tls = Mirror::https(move |asked| match &*asked.path {
        "/down.tar.gz" => Answer::redirect(down.clone()),
        "/file.tar.gz" => Answer::redirect("file:///etc/passwd".to_owned()),
        _ => Answer::ranged(&served, asked),
    });
    let with = |url: String, authority: Option<&Mirror>| ArtifactSpec {
        authorities: authority.map(|mirror| Arc::from(mirror.authority.as_str())),
        ..spec("1.0", &body, vec![url])
    };
    let fails = |spec: &ArtifactSpec| refused(node.unpack(spec)).1;
    assert!(fails(&with(plain.url("/round.tar.gz"), None)).contains("more than 5 redirects"));
    assert!(fails(&with(tls.url("/down.tar.gz"), Some(&tls))).contains("from https to http"));
    assert!(fails(&with(tls.url("/file.tar.gz"), Some(&tls))).contains("not followed"));
    assert_eq!(plain.asked().len(), 6, "nobody was sent there");
    let stranger = fails(&with(tls.url("/x.tar.gz"), None));
    assert!(stranger.contains("certificate") || stranger.contains("Unknown"), "{stranger}");
    let other = Mirror::https(|_| Answer::status(404));
    fails(&with(tls.url("/x.tar.gz"), Some(&other)));
    node.unpack(&with(tls.url("/x.tar.gz"), Some(&tls))).unwrap();
    node.bring(&ArtifactSpec { version: "2".to_owned(), ..with(plain.url("/there/x.tar.gz"), None) }).unwrap();
}

#[test]
fn a_mirror_that_says_nothing_or_too_much_is_left() {
    let mut node = Node::new();
    node.bounds = Bounds { bytes: 1 << 20, secs: 60, silent_secs: 1 };
    let body = release("1.0");
    let served = body.clone();
    let mirror = Mirror::http(move |asked| match &*asked.path {
        "/silent.tar.gz" => Answer { cut: Some(5000), hangs: true, ..Answer::ok(&served) },
        "/endless.tar.gz" => Answer { chunked: true, ..Answer::ok(&vec![0; 3 << 20]) },
        "/large.tar.gz" => Answer::ok(&vec![0; 3 << 20]),
        _ => Answer::ranged(&served, asked),
    });
    let urls = ["/silent.tar.gz", "/endless.tar.gz", "/large.tar.gz"].map(|path| mirror.url(path));
    let (_, said) = refused(node.unpack(&spec("1.0", &body, urls.to_vec())));
    assert!(said.contains("said nothing for 1 s") && said.contains("more than 1048576 bytes"), "{said}");
    assert!(node.parts().iter().sum::<u64>() <= 1 << 20);
    node.bring(&spec("1.0", &body, vec![mirror.url("/x.tar.gz")])).unwrap();
}

/// What arrives from the network arrives in a process of another user where we are root.
#[test]
fn root_downloads_as_another_user() {
    if !is_root() {
        println!("not root: nobody to become");
        return;
    }
    let mut node = Node::new();
    node.user = Some(User { uid: 65534, gid: 65534 });
    let body = release("1.0");
    let served = body.clone();
    let owner = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&owner);
    let mirror = Mirror::http(move |asked| {
        // The only process of nobody's that is ours, while it waits for the answer.
        let uids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let words = std::fs::read(entry.path().join("cmdline")).ok()?;
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let uid = status.lines().find(|line| line.starts_with("Uid:"))?.split_whitespace().nth(1)?.to_owned();
            words.ends_with(b"quarantine\0artifact\0").then_some(uid)
        });
        seen.fetch_add(uids.filter(|uid| uid == "65534").count(), Ordering::SeqCst);
        Answer::ranged(&served, asked)
    });
    node.bring(&spec("1.0", &body, vec![mirror.url("/x.tar.gz")])).unwrap();
    assert!(owner.load(Ordering::SeqCst) > 0);
    assert_eq!(node.at("cache/artifacts").metadata().unwrap().uid(), 0);
}

// ---- object stores

/// An S3 server's side of signature version 4, written from the specification's own words and not from the signer's code:
/// it rebuilds what must have been signed from the request that came.
fn is_signed(asked: &Asked, id: &str, secret: &str) -> bool {
    fn hmac(key: &[u8], text: &str) -> Vec<u8> {
        let mut block = [0u8; 64];
        block[..key.len()].copy_from_slice(key);
        let pad = |with: u8| block.map(|byte| byte ^ with).to_vec();
        let inner = Sha256::digest([pad(0x36), text.as_bytes().to_vec()].concat());
        Sha256::digest([pad(0x5c), inner.to_vec()].concat()).to_vec()
    }
    let Some(header) = asked.headers.get("authorization") else { return false };
    let field = |name: &str| {
        let rest = &header[header.find(&format!("{name}=")).unwrap() + name.len() + 1..];
        rest.split(',').next().unwrap().to_owned()
    };
    let credential = field("Credential");
    let scope: Vec<&str> = credential.splitn(2, '/').collect();
    let signed = field("SignedHeaders");
    let mut canonical = format!("GET\n{}\n\n", asked.path);
    for name in signed.split(';') {
        canonical += &format!("{name}:{}\n", asked.headers[name]);
    }
    canonical += &format!("\n{signed}\n{}", asked.headers["x-amz-content-sha256"]);
    let digest = hex::encode(Sha256::digest(&canonical));
    let text = format!("AWS4-HMAC-SHA256\n{}\n{}\n{digest}", asked.headers["x-amz-date"], scope[1]);
    let key = scope[1].split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part));
    let must = ["host", "x-amz-content-sha256", "x-amz-date"];
    scope[0] == id
        && must.iter().all(|name| signed.split(';').any(|s| s == *name))
        && field("Signature") == hex::encode(hmac(&key, &text))
}

#[test]
fn a_bucket_is_read_with_a_signature_and_the_key_stays_here() {
    const SECRET: &str = "wJalrXUtnFEMI+K7MDENG";
    let node = Node::new();
    let body = release("1.0");
    let served = body.clone();
    let mirror = Mirror::http(move |asked| match &*asked.path {
        "/builds/app/x%2B1.tar.gz" if is_signed(asked, "reader", SECRET) => Answer::ranged(&served, asked),
        "/builds/app/moved.tar.gz" => Answer::redirect("http://127.0.0.1:1/x".to_owned()),
        _ => Answer::status(403),
    });
    let bucket = |secret: Option<&str>| Bucket {
        endpoint: mirror.url(""),
        region: "eu-central-1".to_owned(),
        secret: "mirror-key".into(),
        credentials: Content::secret(
            secret.map(|secret| Zeroizing::new(format!("reader\n{secret}\n").into_bytes())),
            b"mirror-key".to_vec(),
            vec![SecretUse { name: "mirror-key".into(), version: 1 }],
        ),
    };
    let with = |url: &str, secret| ArtifactSpec {
        buckets: BTreeMap::from([("builds".to_owned(), bucket(secret))]),
        ..spec("1.0", &body, vec![url.to_owned()])
    };
    let fails = |spec: &ArtifactSpec| {
        let (reason, said) = refused(node.unpack(spec));
        assert_eq!(reason, reason::MIRRORS_FAILED, "{said}");
        assert!(!said.contains(SECRET), "{said}");
        said
    };
    assert!(fails(&with("s3://builds/app/other.tar.gz", Some(SECRET))).contains("403"));
    assert!(fails(&with("s3://builds/app/x+1.tar.gz", Some("wrong"))).contains("403"));
    assert!(fails(&with("s3://builds/app/moved.tar.gz", Some(SECRET))).contains("signed for this address"));
    assert!(fails(&with("s3://builds/app/x.tar.gz", None)).contains("secret mirror-key cannot be opened"));
    assert!(fails(&with("s3://elsewhere/x.tar.gz", Some(SECRET))).contains("[s3.elsewhere]"));
    node.bring(&with("s3://builds/app/x+1.tar.gz", Some(SECRET))).unwrap();
    assert!(mirror.asked().last().unwrap().headers["authorization"].contains("Credential=reader/"));
    let said = mirror.asked().iter().map(|asked| format!("{asked:?}")).collect::<String>();
    assert!(!said.contains(SECRET), "the key never leaves");
    assert!(!format!("{:?}", with("s3://builds/x.jar", Some(SECRET))).contains(SECRET));
}

// ---- places

#[test]
fn the_first_version_is_live_at_once_and_the_next_ones_when_they_are_switched_to() {
    let node = Node::new();
    let first = node.publish("1.0", "1.tar.gz", &release("1.0"));
    assert_eq!(node.diff(&first).as_deref(), Some("unpack app 1.0"));
    node.unpack(&first).unwrap();
    assert_eq!((node.diff(&first), node.names()), (None, vec!["1.0".to_owned(), "current".to_owned()]));
    let second = node.publish("2.0", "2.tar.gz", &release("2.0"));
    node.unpack(&second).unwrap();
    assert_eq!(node.diff(&second).as_deref(), Some("app 1.0 -> 2.0"), "nothing moved");
    assert_eq!(node.text("current/bin/run"), "#!/bin/sh\necho 1.0\n");
    artifacts::switch(&node.root, &second).unwrap();
    assert_eq!(node.text("current/bin/run"), "#!/bin/sh\necho 2.0\n");
    // The way back needs no mirror.
    std::fs::remove_dir_all(node.at("mirror")).unwrap();
    node.bring(&first).unwrap();
    assert_eq!(node.diff(&first), None);
}

#[test]
fn another_archive_of_the_same_version_takes_its_place_in_one_step() {
    let node = Node::new();
    let first = node.publish("1.0", "1.tar.gz", &release("first"));
    node.bring(&first).unwrap();
    let second = node.publish("1.0", "2.tar.gz", &release("second"));
    assert_eq!(node.diff(&second).as_deref(), Some("app 1.0: another archive of the same version"));
    node.unpack(&second).unwrap();
    assert_eq!(node.text("current/bin/run"), "#!/bin/sh\necho first\n", "what is live is not touched");
    artifacts::switch(&node.root, &second).unwrap();
    assert_eq!(node.text("1.0/bin/run"), "#!/bin/sh\necho second\n");
    assert_eq!(node.diff(&second), None);
    node.bring(&node.publish("2.0", "3.tar.gz", &release("third"))).unwrap();
    assert_eq!(node.names(), ["1.0", "2.0", "current"], "what it took the place of is gone");
}

#[test]
fn a_version_that_somebody_damaged_or_deleted_is_seen_and_made_anew() {
    let node = Node::new();
    let spec = node.publish("1.0", "1.tar.gz", &release("1.0"));
    node.bring(&spec).unwrap();
    std::fs::remove_dir_all(node.app("1.0")).unwrap();
    assert_eq!(artifacts::observe(&node.root, &spec), ArtifactState::Absent);
    node.bring(&spec).unwrap();
    assert_eq!(node.diff(&spec), None);
    std::fs::remove_file(node.app("current")).unwrap();
    assert!(node.diff(&spec).is_some());
    node.bring(&spec).unwrap();
    assert_eq!((node.diff(&spec), node.text("current/bin/run")), (None, "#!/bin/sh\necho 1.0\n".to_owned()));
}

#[test]
fn what_somebody_else_put_there_is_put_aside_and_never_removed() {
    let node = Node::new();
    std::fs::create_dir_all(node.app("1.0")).unwrap();
    std::fs::write(node.app("1.0/by-hand"), "precious").unwrap();
    std::fs::create_dir_all(node.app("data")).unwrap();
    symlink("1.0", node.app("current")).unwrap();
    let spec = node.publish("1.0", "1.tar.gz", &release("1.0"));
    assert!(node.diff(&spec).unwrap().contains("somebody else"));
    node.unpack(&spec).unwrap();
    assert_eq!(node.text("current/by-hand"), "precious");
    artifacts::switch(&node.root, &spec).unwrap();
    assert_eq!(node.text("1.0.before-converger/by-hand"), "precious");
    for version in ["2.0", "3.0", "4.0", "5.0"] {
        node.bring(&node.publish(version, "x.tar.gz", &release(version))).unwrap();
    }
    let kept = ["1.0.before-converger", "3.0", "4.0", "5.0", "current", "data"];
    assert_eq!(node.names(), kept, "the live one and two before it");
    artifacts::discard(&node.root, "/opt/app").unwrap();
    assert_eq!(node.names(), ["1.0.before-converger", "data"]);
    artifacts::discard(&node.root, "/opt/app").unwrap();
    artifacts::discard(&node.root, "/opt/never").unwrap();
}

#[test]
fn the_version_before_is_the_one_that_was_live_before_also_after_a_way_back() {
    let node = Node::new();
    let specs: Vec<ArtifactSpec> = ["1.0", "2.0", "3.0"]
        .iter()
        .map(|version| node.publish(version, &format!("{version}.tar.gz"), &release(version)))
        .collect();
    for spec in [&specs[0], &specs[1], &specs[2], &specs[0]] {
        node.bring(spec).unwrap();
    }
    node.bring(&node.publish("4.0", "4.tar.gz", &release("4.0"))).unwrap();
    assert_eq!(node.names(), ["1.0", "3.0", "4.0", "current"]);
}

#[test]
fn a_directory_in_which_others_can_write_is_refused() {
    let node = Node::new();
    let spec = node.publish("1.0", "1.tar.gz", &release("1.0"));
    std::fs::create_dir_all(node.app("")).unwrap();
    std::fs::set_permissions(node.app(""), PermissionsExt::from_mode(0o777)).unwrap();
    let Err(HostError::Blocked { what, .. }) = node.unpack(&spec) else { panic!() };
    assert!(what.contains("others than root"), "{what}");
    std::fs::set_permissions(node.app(""), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(node.app("current")).unwrap();
    node.unpack(&spec).unwrap();
    let Err(HostError::Blocked { what, .. }) = artifacts::switch(&node.root, &spec) else { panic!() };
    assert!(what.contains("no symbolic link"), "{what}");
    let bad = ArtifactSpec { version: "../up".to_owned(), ..spec };
    assert!(matches!(node.unpack(&bad), Err(HostError::Blocked { .. })));
}

/// I1: what does not fit is refused before it is begun, and goes through when there is room.
#[test]
fn a_full_disk_changes_nothing_and_is_told_before() {
    if !is_root() {
        println!("not root: nothing can be mounted");
        return;
    }
    let node = Node::new();
    std::fs::create_dir_all(node.app("")).unwrap();
    let mount =
        |options: &str| run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(node.app("")));
    mount("size=200k,mode=755");
    let spec = node.publish("1.0", "1.tar.gz", &release("1.0"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (reason, said) = refused(node.unpack(&spec));
        assert_eq!(reason, reason::APPLY_FAILED);
        assert!(said.contains("are free"), "{said}");
        assert_eq!(node.names(), [""; 0]);
        mount("remount,size=20m,mode=755");
        node.bring(&spec).unwrap();
        assert_eq!(node.diff(&spec), None);
    }));
    run(Command::new("umount").arg(node.app("")));
    result.unwrap();
}

// ---- crashes

/// Below: every name, and what it is.
fn shape(node: &Node) -> BTreeMap<String, String> {
    listing(&node.at("root"))
}

/// E10, K1: killed at any call that changes something, `current` is the old version or the new one, whole; run again, it is
/// as if nothing had happened.
#[test]
fn killed_anywhere_it_is_old_or_new_and_the_next_run_finishes() {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--example", "artifact"]).status().unwrap();
    assert!(built.success());
    let example = Path::new(env!("CARGO_BIN_EXE_converger")).with_file_name("examples").join("artifact");
    let small = |version: &str| {
        tar(|t| _ = t.entry(b'0', "bin/run", "", 0o755, version.as_bytes()).entry(b'2', "link", "bin/run", 0o777, b""))
    };
    // In memory where there is some: what is asked here is the order of calls, hundreds of times.
    let memory = Some(Path::new("/dev/shm")).filter(|folder| folder.is_dir());
    let folder = memory.map_or_else(std::env::temp_dir, Path::to_owned);
    let first = Node::within(&folder);
    first.bring(&first.publish("1.0", "1.tar", &small("first"))).unwrap();
    first.unpack(&first.publish("0.9", "0.tar", &small("zero"))).unwrap();
    let start = || {
        let node = Node::within(&folder);
        run(Command::new("cp").arg("-aT").arg(first.at("root")).arg(node.at("root")));
        // Another archive of the version that is live.
        let next = node.publish("1.0", "2.tar", &small("second"));
        (node, next)
    };
    let command = |node: &Node, spec: &ArtifactSpec, program: &mut Command| {
        program
            .args([&node.at("root"), &node.at("cache")])
            .args([&spec.urls[0], &spec.sha256, &spec.version, "both"])
            .output()
            .unwrap()
    };
    let (reference, next) = start();
    assert!(command(&reference, &next, &mut Command::new(&example)).status.success());
    let expected: BTreeSet<String> = shape(&reference).into_keys().collect();
    let mut killed = 0;
    for call in [
        "openat2",
        "fchmod",
        "mkdirat",
        "write",
        "symlinkat",
        "renameat2",
        "renameat",
        "unlinkat",
        "fsync",
        "syncfs",
        "utimensat",
        "unlink",
    ] {
        for when in 1.. {
            let (node, next) = start();
            let mut strace = Command::new("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            strace.args(["-e", &format!("inject={call}:signal=SIGKILL:when={when}")]).arg(&example);
            let output = command(&node, &next, &mut strace);
            let at = format!("{call} {when}");
            let live = node.text("current/bin/run");
            assert!(["first", "second"].contains(&live.as_str()), "{at}: {live}");
            assert!(node.app("current/link").exists() && node.app("current").join(MARKER).exists(), "{at}");
            if output.status.success() {
                break;
            }
            killed += 1;
            node.bring(&next).unwrap_or_else(|error| panic!("{at}: {}", chain(&error)));
            assert_eq!((node.text("current/bin/run"), node.diff(&next)), ("second".to_owned(), None), "{at}");
            assert_eq!(shape(&node).into_keys().collect::<BTreeSet<_>>(), expected, "{at}");
            assert_eq!(node.parts(), [0; 0], "{at}");
            assert!(when < 60, "{at}");
        }
    }
    println!("killed {killed} times");
    assert!(killed > 25, "{killed}");
}
