//! A power cut: what had reached the disk when the agent died, and nothing else.
//!
//! The node's root is an ext4 image; the agent dies at an effect, the image is copied as the block device has it (what the
//! kernel only kept in memory is lost), the copy is mounted, and the next agent starts there. Options of the mount make it as
//! bad as it gets: nothing is written by itself for minutes, and a rename takes no data along. `/run` is apart: the
//! recorder's units stand for services, which are not files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and write files as they like")]

mod bed;
mod forge;
mod reference;

use std::path::Path;
use std::process::Command;

use forge::run;
use reference::{Attempt, Ended, Reference, all_of, before, effects, number, the_reference};

/// A machine with a disk of its own, taken down when it is dropped.
struct Machine {
    home: tempfile::TempDir,
}

const WORST: &str = "loop,commit=600,noauto_da_alloc";

impl Machine {
    /// With a new disk, and the node on it as it was before the second commit: all of it durable.
    fn new(reference: &Reference) -> Self {
        let machine = Self { home: tempfile::tempdir().unwrap() };
        let home = machine.home.path();
        let image = home.join("image");
        std::fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
        run(Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        machine.mount();
        std::fs::remove_dir(home.join("web01/lost+found")).unwrap();
        run(Command::new("cp").arg("-a").arg(reference.node().join(".")).arg(home.join("web01")));
        run(Command::new("mv").arg(home.join("web01/run")).arg(home.join("run")));
        std::fs::create_dir(home.join("web01/run")).unwrap();
        run(Command::new("mount").arg("--bind").arg(home.join("run")).arg(home.join("web01/run")));
        run(Command::new("cp").arg(reference.bed.dir().join("store.db")).arg(home));
        machine
    }

    fn mount(&self) {
        let at = self.home.path().join("web01");
        std::fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-o", WORST]).arg(self.home.path().join("image")).arg(at));
    }

    fn sync(&self) {
        run(Command::new("sync").arg("-f").arg(self.home.path().join("web01/etc")));
    }

    /// The same machine when the power is back.
    fn after_a_power_cut(self) -> Self {
        let again = Self { home: tempfile::tempdir().unwrap() };
        let (from, to) = (self.home.path(), again.home.path());
        run(Command::new("cp").arg("--sparse=always").arg(from.join("image")).arg(to));
        run(Command::new("cp").arg("-a").arg(from.join("run")).arg(to));
        for name in ["store.db", "store.db-wal", "store.db-shm"] {
            let _ = std::fs::copy(from.join(name), to.join(name));
        }
        drop(self);
        again.mount();
        run(Command::new("mount").arg("--bind").arg(to.join("run")).arg(to.join("web01/run")));
        again
    }

    fn attempt(&self, reference: &Reference) -> Attempt {
        reference.at(self.home.path())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for at in ["web01/run", "web01"] {
            let _ = Command::new("umount").arg("-l").arg(self.home.path().join(at)).status();
        }
    }
}

fn ledger(root: &Path, sql: &str) -> Vec<String> {
    let ledger = rusqlite::Connection::open(root.join("var/lib/converger/ledger.db")).unwrap();
    let mut statement = ledger.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// K2, K4: each file is old or new, the ledger says nothing of what the disk has not, and the next run ends where an
/// undisturbed one would.
#[test]
fn after_a_power_cut_each_file_is_old_or_new_and_the_ledger_is_not_ahead() {
    let (reference, before) = (the_reference(), before(the_reference()));
    let after = &reference.end.files;
    let every = number("CONVERGER_POWER_EVERY", 131);
    all_of(effects().into_iter().skip(every / 2).step_by(every), |effect| {
        let what = format!("power cut at {effect}");
        let machine = Machine::new(reference);
        let attempt = machine.attempt(reference);
        machine.sync();
        let Ended::Killed = attempt.killed_at(effect) else { return None };
        let machine = machine.after_a_power_cut();
        let attempt = machine.attempt(reference);
        let root = &attempt.node.root;
        attempt.files_are_old_or_new(&before, reference, &what);
        let now = attempt.node.host();
        // What is noted as written with the inputs of the new commit is there.
        for path in ledger(root, "SELECT json_extract(id, '$.name') FROM owned WHERE json_extract(json, '$.written')") {
            let path = Path::new(path.trim_start_matches('/'));
            if !before.contains_key(path) && after.contains_key(path) {
                assert_eq!(now.get(path), after.get(path), "{what}: {} is noted as written", path.display());
            }
        }
        let applied = ledger(root, "SELECT json_extract(json, '$.commit') FROM facts WHERE name = 'applied'");
        if applied == [reference.bed.forge.head()] {
            let differs = after.iter().find(|(path, file)| path.starts_with("etc") && now.get(*path) != Some(*file));
            assert_eq!(differs, None, "{what}: called applied");
        }
        attempt.recover(&what);
        attempt.is_as_undisturbed(reference, &what);
        Some(())
    });
}
