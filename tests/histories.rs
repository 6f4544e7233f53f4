//! Two verifiers, one verdict: random histories are judged by `converger::git` with `converger::trust` and by a reference
//! that shares no line with them. They agree on what is accepted, by whom, and on the reason and the commit of a refusal.
//!
//! `CONVERGER_HISTORIES=100000` says how many; `CONVERGER_SEED=n` replays one and prints its graph; `make histories` is the
//! long run. Every reason must occur: a run in which one does not proves
//! nothing about it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::print_stdout, reason = "the count and the tally are what the long run is for")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and write files as they like")]

#[path = "histories/edits.rs"]
mod edits;
mod forge;
#[path = "histories/formats.rs"]
mod formats;
#[path = "histories/generator.rs"]
mod generator;
#[path = "histories/merges.rs"]
mod merges;
#[path = "histories/reference.rs"]
mod reference;
#[path = "histories/writer.rs"]
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use converger::git::{GitError, Repository, Workspace};
use converger::settings::TrustRoot;
use converger::trust::{Acceptance, Accepted, Signer};
use generator::{History, PRINCIPALS};
use reference::{By, Floor, Reference, Root, Verdict};
use writer::Writer;

/// Histories that share one object store: more would make its folders slow, fewer cost processes.
const BATCH: u64 = 100;
const HISTORIES: u64 = 3000;
/// Of so many histories one is also shown to git itself.
const SAMPLE: u64 = 500;
/// How often each must occur in [`HISTORIES`].
const REASONS: [(&str, u64); 18] = [
    ("accepted", 1000),
    ("unsigned", 100),
    ("bad-signature", 100),
    ("unknown-key", 100),
    ("banned-key", 50),
    ("scope", 100),
    ("root-required", 50),
    ("trust-removed", 50),
    ("reauthorises-banned-key", 20),
    ("malformed-commit", 50),
    ("rollback", 50),
    ("foxtrot", 20),
    ("not-descendant", 50),
    ("introduction-missing", 20),
    ("fleet-mismatch", 20),
    ("stale-merge", 20),
    ("merge-altered", 20),
    ("accepted with a recomputed merge", 100),
];

/// The real verifier over a store in which whatever is offered has arrived already.
struct Real {
    store: PathBuf,
    remote: TrustRoot,
    /// A node that fetches what is offered, through its children; otherwise it is judged in this process.
    node: Option<Repository>,
}

impl Real {
    fn below(dir: &Path) -> Self {
        let store = dir.join("offered.git");
        git2::Repository::init_bare(&store).unwrap();
        let text = format!(
            "fleet = \"f\"\nref = \"refs/heads/main\"\nintroduction = {{ commit = \"{}\", signer = \"SHA256:{}\", seq = 1 }}\n\
             [[remotes]]\nurl = \"file://{}\"\n",
            "0".repeat(40),
            "A".repeat(43),
            store.display()
        );
        let remote = TrustRoot::parse(&text, &dir.join("trust.toml")).unwrap();
        Self { store, remote, node: None }
    }

    fn verify(&mut self, root: &Root, accepted: Option<&Accepted>, tip: &str) -> (Verdict, Option<Accepted>) {
        let mut trust = self.remote.clone();
        trust.fleet = root.fleet.clone();
        trust.introduction.commit = root.introduction.as_str().into();
        trust.introduction.signer = root.signer.clone();
        trust.introduction.seq = root.seq;
        trust.bans = root.bans.clone();
        let verdict = match &mut self.node {
            None => Workspace::open(&self.store).and_then(|store| store.judge(&trust, tip, accepted)),
            Some(node) => {
                std::fs::write(self.store.join("refs/heads/main"), format!("{tip}\n")).unwrap();
                node.fetch(&trust, accepted).and_then(|fetched| fetched.verify(&trust, accepted))
            }
        };
        match verdict {
            Ok(verified) => {
                let new = verified.new_commits().iter().map(|commit| {
                    let name = |signer: &Signer| format!("{} {}", signer.principal, signer.fingerprint);
                    let by = match &commit.acceptance {
                        Acceptance::Signed(signer) => By::Signed(name(signer)),
                        Acceptance::Recomputed { signers, .. } => By::Recomputed(signers.iter().map(name).collect()),
                    };
                    (commit.id.to_string(), by)
                });
                let kept = verified.accepted().clone();
                let floor =
                    Floor { commit: kept.commit.to_string(), payload: kept.payload_sha256.clone(), seq: kept.seq };
                (Verdict::Accepted { floor, new: new.collect() }, Some(kept))
            }
            Err(GitError::Refused(refusal)) => {
                let (reason, commit) = (refusal.reason.id.to_owned(), refusal.commit.to_string());
                (Verdict::Refused { reason, commit }, None)
            }
            Err(other) => (Verdict::Refused { reason: other.reason().id.to_owned(), commit: other.to_string() }, None),
        }
    }
}

/// Of the run over nodes.
const NODE_HISTORIES: u64 = 30;

/// A store, the writer that fills it, and the verifier that reads it.
struct Bench {
    real: Real,
    writer: Writer,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        // Many small files that nobody needs afterwards.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let real = Real::below(dir.path());
        let writer = Writer::over(&real.store, PRINCIPALS.len() as u8);
        Self { real, writer, dir }
    }

    fn batch(&mut self, seeds: impl Iterator<Item = u64>, tally: &mut BTreeMap<String, u64>) -> Result<(), String> {
        let histories: Vec<History> = seeds.map(|seed| generator::history(&self.writer, seed)).collect();
        let mut reference = Reference::of(&self.real.store);
        reference.merges = merged(&self.real.store, &histories);
        histories.iter().try_for_each(|history| self.compare(&mut reference, history, tally))
    }

    fn compare(
        &mut self,
        reference: &mut Reference,
        history: &History,
        tally: &mut BTreeMap<String, u64>,
    ) -> Result<(), String> {
        let (mut accepted, mut floor): (Option<Accepted>, Option<Floor>) = (None, None);
        for (number, (tip, what)) in history.offers.iter().enumerate() {
            let tip = history.commits[*tip].id.to_string();
            let (real, kept) = self.real.verify(&history.root, accepted.as_ref(), &tip);
            let expected = reference.verify(&history.root, floor.as_ref(), &tip);
            if real != expected && !(self.real.node.is_some() && unreadable(&real, &expected)) {
                let graph = graph(history);
                return Err(format!(
                    "offer {number} ({what}) of seed {}:\n  real       {real:?}\n  reference  {expected:?}\n{graph}\
                     replay: CONVERGER_SEED={} cargo test --test histories -- --nocapture",
                    history.seed, history.seed
                ));
            }
            let said = match &expected {
                Verdict::Refused { reason, .. } => reason.clone(),
                Verdict::Accepted { floor: reached, new } => {
                    if new.iter().any(|(_, by)| matches!(by, By::Recomputed(_))) {
                        *tally.entry("accepted with a recomputed merge".to_owned()).or_default() += 1;
                    }
                    floor = Some(reached.clone());
                    "accepted".to_owned()
                }
            };
            accepted = kept.or(accepted);
            *tally.entry(said).or_default() += 1;
        }
        *tally.entry("commits".to_owned()).or_default() += history.commits.len() as u64;
        *tally.entry("offers".to_owned()).or_default() += history.offers.len() as u64;
        if history.seed.is_multiple_of(SAMPLE) {
            self.ask_git(reference, history)?;
        }
        Ok(())
    }
}

/// Over file:// libgit2 packs what it sends, and cannot even read some commits that Git would not write: nothing arrives.
fn unreadable(real: &Verdict, expected: &Verdict) -> bool {
    let is = |verdict: &Verdict, wanted: &str| matches!(verdict, Verdict::Refused { reason, .. } if reason == wanted);
    is(real, "source-unreachable") && is(expected, "malformed-commit")
}

/// Commits with parents, and what was offered, for people.
fn graph(history: &History) -> String {
    let mut text = format!("{:?}\n", history.root);
    for (number, made) in history.commits.iter().enumerate() {
        let _ = writeln!(text, "  {number:>3} {} {} <- {:?}", made.id, made.what, made.parents);
    }
    let _ = writeln!(text, "offers {:?}", history.offers);
    text
}

/// Every merge of two that any history has, made by `git merge-tree`.
fn merged(store: &Path, histories: &[History]) -> std::collections::HashMap<(String, String), String> {
    let commits = |history: &History, made: &generator::Made| {
        let ids: Vec<String> = made.parents.iter().map(|parent| history.commits[*parent].id.to_string()).collect();
        <[String; 2]>::try_from(ids).ok()
    };
    let wanted: BTreeSet<[String; 2]> = histories
        .iter()
        .flat_map(|history| history.commits.iter().filter_map(move |made| commits(history, made)))
        .collect();
    let mut found = std::collections::HashMap::new();
    let mut wanted: Vec<[String; 2]> = wanted.into_iter().collect();
    while !wanted.is_empty() {
        let mut git = forge::hermetic(&mut Command::new("git"))
            .arg("-C")
            .arg(store)
            // A forge stops where whole folders move; the verifier knows files only, and takes no more than was signed.
            .args([
                "-c",
                "merge.directoryRenames=false",
                "merge-tree",
                "--write-tree",
                "--stdin",
                "--allow-unrelated-histories",
                "--no-messages",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = git.stdin.take().unwrap();
        let asked: String = wanted.iter().map(|[first, second]| format!("{first} {second}\n")).collect();
        let asking = std::thread::spawn(move || drop(input.write_all(asked.as_bytes())));
        let output = git.wait_with_output().unwrap();
        asking.join().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // For each: 1 or 0, the tree, the files in conflict, an empty field.
        let mut fields = text.split('\0');
        let mut done = 0;
        while let (Some(clean @ ("0" | "1")), Some(tree)) = (fields.next(), fields.next()) {
            fields.find(|field| field.is_empty());
            if clean == "1" {
                let [first, second] = wanted[done].clone();
                found.insert((first, second), tree.to_owned());
            }
            done += 1;
        }
        // What git cannot even read ends it: it is asked once more, as the first, and then left; the rest is asked again.
        wanted.drain(..done.max(1).min(wanted.len()));
    }
    found
}

#[test]
fn random_histories_are_judged_alike_by_two_verifiers() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    if let Some(seed) = number("CONVERGER_SEED") {
        let mut bench = Bench::new();
        println!("{}", graph(&generator::history(&bench.writer, seed)));
        let judged = bench.batch(std::iter::once(seed), &mut BTreeMap::new());
        println!("its store, to look at with git: {}/offered.git", bench.dir.keep().display());
        judged.unwrap_or_else(|difference| panic!("{difference}"));
        return;
    }
    let histories = number("CONVERGER_HISTORIES").unwrap_or(HISTORIES);
    let (begun, next) = (Instant::now(), AtomicU64::new(0));
    let (tally, differences) = (Mutex::new(BTreeMap::<String, u64>::new()), Mutex::new(Vec::<String>::new()));
    let work = || {
        let mut mine = BTreeMap::new();
        loop {
            let first = next.fetch_add(BATCH, Ordering::Relaxed);
            if first > 0 && first.is_multiple_of(10_000) {
                println!("{first} begun after {:.0} s", begun.elapsed().as_secs_f64());
            }
            if first >= histories || differences.lock().unwrap().len() >= 5 {
                break;
            }
            if let Err(difference) = Bench::new().batch(first..histories.min(first + BATCH), &mut mine) {
                differences.lock().unwrap().push(difference);
            }
        }
        for (what, count) in mine {
            *tally.lock().unwrap().entry(what).or_default() += count;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));

    let (tally, differences) = (tally.into_inner().unwrap(), differences.into_inner().unwrap());
    println!("{histories} histories in {:.0} s on {threads} threads", begun.elapsed().as_secs_f64());
    for (what, count) in &tally {
        println!("{count:>9} {what}");
    }
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n\n"));
    for (what, least) in REASONS {
        let seen = tally.get(what).copied().unwrap_or_default();
        let least = (least * histories / HISTORIES).min(least);
        assert!(seen >= least, "{what} occurred {seen} times, not {least}: the generator does not make it");
    }
}

/// The same over a node: what is offered is fetched and read by children without privileges.
#[test]
fn a_node_judges_random_histories_like_that_too() {
    let mut bench = Bench::new();
    for seed in 0..NODE_HISTORIES {
        let (state, cache) =
            (bench.dir.path().join(format!("{seed}/state")), bench.dir.path().join(format!("{seed}/cache")));
        bench.real.node = Some(Repository::open(&state, &cache, &forge::children()).unwrap());
        bench.batch(std::iter::once(seed), &mut BTreeMap::new()).unwrap_or_else(|difference| panic!("{difference}"));
    }
}

impl Bench {
    /// Where the reference takes a signature, git and ssh-keygen take it; where git sees merge bases, so does it.
    fn ask_git(&self, reference: &mut Reference, history: &History) -> Result<(), String> {
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            let output = forge::hermetic(&mut command).arg("-C").arg(&self.real.store).args(args).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let signers = self.dir.path().join("everybody");
        let lines: String =
            PRINCIPALS.iter().zip(&self.writer.keys).map(|(name, key)| format!("{name} {}\n", key.line)).collect();
        std::fs::write(&signers, lines).unwrap();
        let allowed = format!("gpg.ssh.allowedSignersFile={}", signers.display());
        for made in &history.commits {
            let id = made.id.to_string();
            let ours = reference.signer(&id);
            let theirs = git(&["-c", "gpg.format=ssh", "-c", &allowed, "verify-commit", &id]).0;
            // git takes armor in any spelling and two headers for one; what we take it must take.
            if ours.is_some() && !theirs {
                return Err(format!("seed {}: git does not take the signature of {id} ({})", history.seed, made.what));
            }
            if let [first, second] = made.parents[..] {
                let (first, second) = (history.commits[first].id.to_string(), history.commits[second].id.to_string());
                let (_, said) = git(&["merge-base", "--all", &first, &second]);
                let said: BTreeSet<String> = said.lines().map(str::to_owned).collect();
                let ours: BTreeSet<String> = reference.merge_bases(&first, &second).into_iter().collect();
                if said != ours {
                    return Err(format!("seed {}: merge bases of {first} {second}: {said:?}, {ours:?}", history.seed));
                }
            }
        }
        Ok(())
    }
}
