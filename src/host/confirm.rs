//! Commit-confirm: what a node-risk batch replaces is kept in a journal, and put back by whoever comes first.
//!
//! `/var/lib/converger/confirm/` has the journal and the old contents, durable before the first rename. Whoever renames the
//! journal decides: the agent confirms, or the agent, a transient timer (which needs no agent), or the next boot puts
//! back. Never: decides whether the node is reachable; never: a second attempt at the same journal by two at a time.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::command::{Command, argv};
use super::files::{self, Owners, Staged};
use super::root::{Root, file, split};
use super::{HostError, activate};
use crate::clock::Clock;
use crate::disk::{self, DiskError, Exclusive};
use crate::name::HostPath;
use crate::plan::risk::{Redo, Undo};
use crate::resource::file::{Policy, Previous};
use crate::resource::{Activation, Content, FileSpec};

/// Below the agent's state directory.
const FOLDER: &str = "confirm";
/// The batch is live and not confirmed.
const JOURNAL: &str = "journal.json";
/// Somebody puts it back.
const UNDOING: &str = "undoing.json";
/// It was put back, and the agent has not taken note yet.
const UNDONE: &str = "undone.json";
const CONFIRMED: &str = "confirmed.json";
const RULES: &str = "rules.nft";
const STATE: &str = "/var/lib/converger";
const JOURNAL_BYTES_MAX: u64 = 1 << 24;
/// The transient timer and its service.
const TIMER: &str = "converger-unconfirmed";
/// From arming until the timer puts back. The agent gives up earlier.
pub const TIMER_SECS: u64 = 120;
/// How long one tool may take while things are put back.
const TOOL: Duration = Duration::from_secs(60);
/// Somebody else is putting back: it is waited for in as many steps.
const STEPS: u32 = 1200;
const STEP: Duration = Duration::from_millis(100);

#[derive(Serialize, Deserialize)]
struct Journal {
    undo: Undo,
    boot_id: String,
    files: Vec<Kept>,
    /// The kernel's rules as they were lie beside the journal.
    #[serde(default)]
    rules: bool,
    /// Kernel settings that the new files set, as they are now: `net/ipv4/ip_forward`.
    sysctl: Vec<(String, String)>,
    /// Why it was put back.
    #[serde(default)]
    why: String,
}

/// A file as it was.
#[derive(Serialize, Deserialize)]
struct Kept {
    path: HostPath,
    secret: bool,
    /// `None`: there was none.
    was: Option<Was>,
}

#[derive(Serialize, Deserialize)]
struct Was {
    /// Name of its copy beside the journal.
    copy: String,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// What was put back, and why.
pub struct Undone {
    pub undo: Undo,
    pub why: String,
}

/// Who puts back, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// The machine runs: tools and units are told.
    Running,
    /// Before anything reads the files: only what is on the disk.
    Booting,
    /// Files only: a sandbox.
    Sandbox,
}

/// Keeps everything that the batch will replace, durably.
pub fn arm(root: &Root, undo: &Undo, boot_id: &str, writes: &[&FileSpec]) -> Result<(), HostError> {
    let folder = folder(root);
    // What it says is lost with it, and what was put back would look like drift.
    if [JOURNAL, UNDOING, UNDONE].iter().any(|name| folder.join(name).exists()) {
        return Err(HostError::Blocked {
            path: folder.display().to_string(),
            what: "a change was put back, and this run has not taken note of it".to_owned(),
        });
    }
    disk::remove(&folder).map_err(failed)?;
    disk::create_dirs(&folder).map_err(failed)?;
    let mut kept = Vec::new();
    for (number, (path, secret)) in undo.files.iter().enumerate() {
        let was = match read(root, path.as_str())? {
            None => None,
            Some((bytes, was)) => {
                let copy = format!("copy-{number}");
                disk::write_atomic(&folder.join(&copy), &bytes, 0o600).map_err(failed)?;
                Some(Was { copy, ..was })
            }
        };
        kept.push(Kept { path: path.clone(), secret: *secret, was });
    }
    let sysctl = writes.iter().filter(|spec| spec.path.as_str().contains("sysctl")).flat_map(|spec| settings_of(spec));
    let sysctl = sysctl.filter_map(|key| {
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(&key)).ok()?;
        Some((key, value.trim_end().to_owned()))
    });
    let loads = |spec: &&FileSpec| Activation::of(&spec.path) == Some(Activation::Nftables);
    let rules = match writes.iter().copied().any(|spec| loads(&spec)) {
        true => keep_rules(&folder)?,
        false => false,
    };
    let journal = Journal {
        undo: undo.clone(),
        boot_id: boot_id.to_owned(),
        files: kept,
        rules,
        sysctl: sysctl.collect(),
        why: String::new(),
    };
    write(&folder.join(JOURNAL), &journal)
}

/// A file of rules may be loaded without any unit, so it is not enough to put the file back. False: there are none to ask for.
fn keep_rules(folder: &Path) -> Result<bool, HostError> {
    let call = argv(["nft", "--stateless", "list", "ruleset"]);
    match (Command { argv: &call, user: "", within: TOOL }).run() {
        Ok(output) if output.exit == 0 => {
            let text = [b"flush ruleset\n".as_slice(), &output.stdout].concat();
            disk::write_atomic(&folder.join(RULES), &text, 0o600).map_err(failed)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Starts the timer that puts back when nobody confirms. Errors: nothing would, so nothing may be replaced.
pub fn start_timer(program: &Path) -> Result<(), HostError> {
    stop_timer();
    let mut call = argv(["systemd-run", "--quiet", "--collect", "--timer-property=AccuracySec=1s"]);
    call.push(format!("--unit={TIMER}"));
    call.push(format!("--on-active={TIMER_SECS}"));
    call.push("--description=Put back a change that nobody confirmed".to_owned());
    call.push(program.display().to_string());
    call.push("roll-back".to_owned());
    Command { argv: &call, user: "", within: TOOL }.succeed().map(drop)
}

pub fn stop_timer() {
    let timer = format!("{TIMER}.timer");
    let call = argv(["systemctl", "stop", "--quiet", &timer]);
    let _ = Command { argv: &call, user: "", within: TOOL }.run(); // one that fires finds no journal
}

/// The batch stays. Errors: it was put back meanwhile.
pub fn confirm(root: &Root) -> Result<(), HostError> {
    let folder = folder(root);
    disk::install(&folder.join(JOURNAL), &folder.join(CONFIRMED)).map_err(failed)?;
    disk::remove(&folder).map_err(failed)
}

/// Whether a batch is live that nobody confirmed, or one was put back half.
pub fn is_open(state: &Path) -> bool {
    [JOURNAL, UNDOING].iter().any(|name| state.join(FOLDER).join(name).exists())
}

/// What was put back and not taken note of.
pub fn undone(state: &Path) -> Option<Undone> {
    let journal = parse(&state.join(FOLDER).join(UNDONE)).ok()??;
    Some(Undone { undo: journal.undo, why: journal.why })
}

/// What was put back was taken note of.
pub fn noted(root: &Root) -> Result<(), HostError> {
    disk::remove(&folder(root).join(UNDONE)).map_err(failed)
}

/// Puts back what was not confirmed; false: there was nothing. What cannot be put back is told in the journal's `why`, and
/// the rest is put back all the same.
pub fn roll_back(root: &Root, owners: Owners, clock: &dyn Clock, why: &str, when: When) -> Result<bool, HostError> {
    let folder = folder(root);
    if !is_open(&root.outside(STATE)) {
        return Ok(false);
    }
    let _alone = alone(&folder)?;
    let (open, taken) = (folder.join(JOURNAL), folder.join(UNDOING));
    if open.exists() {
        match disk::install(&open, &taken) {
            // It was confirmed in this very moment.
            Err(_) if !open.exists() => return Ok(false),
            done => done.map_err(failed)?,
        }
    }
    // The one before us was through with it.
    let Some(mut journal) = parse(&taken)? else { return Ok(false) };
    let mut trouble = Vec::new();
    if let Err(error) = put_back(root, owners, clock, &folder, &journal.files) {
        trouble.push(crate::reason::chain(&error));
    }
    let earlier_boot = super::linux::boot_id().is_ok_and(|boot_id| boot_id != journal.boot_id);
    if when != When::Sandbox {
        if !earlier_boot {
            for (key, value) in &journal.sysctl {
                let open = std::fs::OpenOptions::new().write(true).open(Path::new("/proc/sys").join(key));
                if let Err(error) = open.and_then(|mut open| open.write_all(value.as_bytes())) {
                    trouble.push(format!("sysctl {key}: {error}"));
                }
            }
        }
        for call in calls(&journal, &folder, when) {
            if let Err(error) = (Command { argv: &call, user: "", within: TOOL }).succeed() {
                trouble.push(crate::reason::chain(&error));
            }
        }
    }
    journal.why = if trouble.is_empty() { why.to_owned() } else { format!("{why}; {}", trouble.join("; ")) };
    write(&folder.join(UNDONE), &journal)?;
    disk::remove(&taken).map_err(failed)?;
    disk::remove(&folder.join(RULES)).map_err(failed)?;
    for kept in &journal.files {
        if let Some(was) = &kept.was {
            disk::remove(&folder.join(&was.copy)).map_err(failed)?;
        }
    }
    Ok(true)
}

/// Every file as it was, all staged before the first rename.
fn put_back(root: &Root, owners: Owners, clock: &dyn Clock, folder: &Path, files: &[Kept]) -> Result<(), HostError> {
    let mut specs = Vec::new();
    for kept in files {
        let Some(was) = &kept.was else { continue };
        let bytes = disk::read_bounded(&folder.join(&was.copy), u64::MAX - 1).map_err(failed)?.unwrap_or_default();
        let bytes = Zeroizing::new(bytes);
        let content = if kept.secret {
            Content::secret(Some(bytes), Vec::new(), Vec::new())
        } else {
            Content::plain(bytes.to_vec())
        };
        let spec = FileSpec {
            path: kept.path.clone(),
            content,
            owner: was.uid.to_string(),
            group: was.gid.to_string(),
            mode: was.mode,
            policy: Policy::Enforce,
            validate: None,
        };
        specs.push((spec, if kept.secret { Previous::Gone } else { Previous::Kept }));
    }
    let specs: Vec<(&FileSpec, Previous)> = specs.iter().map(|(spec, previous)| (spec, *previous)).collect();
    if !specs.is_empty() {
        Staged::write(root, owners, &specs)?.go_live(root, clock)?;
    }
    for kept in files.iter().filter(|kept| kept.was.is_none()) {
        let previous = if kept.secret { Previous::Gone } else { Previous::Kept };
        files::remove(root, clock, &kept.path, previous)?;
    }
    Ok(())
}

/// What reads the files again, in order.
fn calls(journal: &Journal, folder: &Path, when: When) -> Vec<Vec<String>> {
    let touched = |part: &str| journal.files.iter().any(|kept| kept.path.as_str().contains(part));
    let lasting = journal.undo.redo.iter().any(|redo| redo.lasting);
    let mut calls = Vec::new();
    if touched("/systemd/system/") || touched("/etc/fstab") || lasting {
        calls.push(argv(["systemctl", "daemon-reload"]));
    }
    // At boot the rest comes after us.
    if when == When::Running {
        if touched("/sysctl") {
            calls.push(activate::everything(Activation::Sysctl));
        }
        if journal.rules {
            calls.push(activate::command(Activation::Nftables, &folder.join(RULES).display().to_string()));
        }
        if touched("/etc/systemd/network/") {
            calls.push(argv(["networkctl", "reload"]));
        }
    }
    let redo = journal.undo.redo.iter().filter(|redo| redo.lasting || when == When::Running);
    calls.extend(redo.map(|Redo { argv, .. }| argv.clone()));
    calls
}

/// The kernel settings that a sysctl file sets, as paths below /proc/sys. Patterns are left out.
fn settings_of(spec: &FileSpec) -> Vec<String> {
    let text = String::from_utf8_lossy(spec.content.shown()).into_owned();
    let keys = text.lines().filter_map(|line| {
        let key = line.split_once('=')?.0.trim().trim_start_matches('-').trim();
        let plain = !key.is_empty() && !key.starts_with(['#', ';']) && !key.contains(['*', '?', '[']);
        // systemd's rule (sysctl.d(5)): whichever separator comes first is the one.
        let slashes = key.find('/') < key.find('.') && key.contains('/') || !key.contains('.');
        let path = if slashes { key.to_owned() } else { swapped(key) };
        (plain && !path.split('/').any(|part| part == ".." || part.is_empty())).then_some(path)
    });
    keys.collect()
}

fn swapped(key: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    key.chars().map(swap).collect()
}

/// The bytes of a regular file, and whose it is. `None`: there is none.
#[allow(clippy::type_complexity)] // two things about one file, for one caller
fn read(root: &Root, path: &str) -> Result<Option<(Zeroizing<Vec<u8>>, Was)>, HostError> {
    let (parent, name) = split(path)?;
    let Some(directory) = root.directory(parent)? else { return Ok(None) };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&directory.fd, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(file("keep", path)(error)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(file("keep", path))?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(HostError::Blocked { path: path.to_owned(), what: "it is no regular file".to_owned() });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let mut open = std::fs::File::from(fd);
    let failed = |source| HostError::File { operation: "keep", path: path.to_owned(), source };
    open.read_to_end(&mut bytes).map_err(failed)?;
    let was = Was { copy: String::new(), mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
    Ok(Some((bytes, was)))
}

/// Whoever has it puts back; the other waits until that one is through, and finds nothing left.
#[allow(clippy::disallowed_methods)] // the one who puts back may take a minute for each tool
fn alone(folder: &Path) -> Result<Exclusive, HostError> {
    for _ in 0..STEPS {
        if let Some(lock) = Exclusive::acquire(&folder.join("lock")).map_err(failed)? {
            return Ok(lock);
        }
        std::thread::sleep(STEP);
    }
    let what = "somebody else has been putting back for minutes".to_owned();
    Err(HostError::Blocked { path: folder.display().to_string(), what })
}

fn folder(root: &Root) -> PathBuf {
    root.outside(STATE).join(FOLDER)
}

fn write(path: &Path, journal: &Journal) -> Result<(), HostError> {
    let bytes = serde_json::to_vec_pretty(journal).expect("plain data serializes");
    disk::write_atomic(path, &bytes, 0o600).map_err(failed)
}

fn parse(path: &Path) -> Result<Option<Journal>, HostError> {
    let Some(bytes) = disk::read_bounded(path, JOURNAL_BYTES_MAX).map_err(failed)? else { return Ok(None) };
    let failed = |error: serde_json::Error| HostError::File {
        operation: "understand",
        path: path.display().to_string(),
        source: error.into(),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(failed)
}

fn failed(error: DiskError) -> HostError {
    match error {
        DiskError::Io { operation, path, source } => {
            HostError::File { operation, path: path.display().to_string(), source }
        }
        error => HostError::Blocked { path: STATE.to_owned(), what: error.to_string() },
    }
}
