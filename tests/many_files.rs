//! A node with very many files: descriptors and memory stay bounded.
//!
//! A process of its own, because limits and the peak of memory are a process's. `make crash` has a hundred thousand.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, reason = "tests")]

mod hosted;

use converger::host::{FileQuery, Host as _, Query, Step, Words};
use converger::resource::file::Previous;
use converger::resource::{Content, Digest, FileSpec};
use hosted::{CLOCK, Sandbox, as_root, root, spec};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const DESCRIPTORS: u64 = 128;

fn peak_of_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

struct Mounted<'s>(&'s Sandbox);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        as_root(self.0, "umount -l $1");
    }
}

/// D22: first all new, then all replaced (each with a backup), then looked at, then removed.
#[test]
fn many_files_need_few_descriptors_and_little_memory() {
    let count = std::env::var("CONVERGER_FILES").map_or(2000, |text| text.parse().unwrap());
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, hard).unwrap();
    let sandbox = Sandbox::new();
    // Memory would be the disk's here, but not this process's.
    as_root(&sandbox, "mount -t tmpfs -o mode=755 t $1");
    let _mounted = Mounted(&sandbox);
    let host = sandbox.host(&CLOCK);
    let specs = |round: usize| -> Vec<FileSpec> {
        (0..count).map(|n| spec(&format!("/srv/d{:03}/{n}", n / 100), &format!("{round} {n}\n"))).collect()
    };
    let mut peaks = Vec::new();
    for round in 0..3 {
        let specs = specs(round);
        host.perform(&Step::Stage(specs.iter().map(|spec| (spec, Previous::Kept)).collect(), Words::Told)).unwrap();
        assert_eq!(host.perform(&Step::Swap).unwrap().stamps.len(), count);
        peaks.push(peak_of_memory_kib());
    }
    let specs = specs(2);
    let files = specs.iter().map(|spec| FileQuery { path: &spec.path, known: None, bytes_unless: None });
    let seen = host.observe(&Query { files: files.collect(), ..Query::default() }).unwrap().files;
    assert!(specs.iter().all(|spec| spec.diff(&seen[&spec.path], root()).is_none()));
    println!("{count} files: peaks of {peaks:?} KiB, {} at the end", peak_of_memory_kib());
    // A few kilobytes for each file: its spec, its candidate, what is seen of it.
    let most = 60 * 1024 + 4 * count as u64;
    assert!(peak_of_memory_kib() < most, "{} KiB, more than {most}", peak_of_memory_kib());

    // One large file is hashed and copied in pieces.
    let before = peak_of_memory_kib();
    let large = sandbox.at("srv/large");
    std::fs::File::create(&large).unwrap().set_len(64 << 20).unwrap();
    let path = "/srv/large".into();
    let query = FileQuery { path: &path, known: None, bytes_unless: Some(Digest::of(b"")) };
    host.observe(&Query { files: vec![query], ..Query::default() }).unwrap();
    let more = peak_of_memory_kib() - before;
    assert!(more < 16 * 1024, "{more} KiB more for one large file");
    let one = FileSpec { content: Content::plain("small".into()), ..spec("/srv/other", "") };
    host.perform(&Step::Stage(vec![(&one, Previous::Kept)], Words::Told)).unwrap();
    host.perform(&Step::Swap).unwrap();
}
