//! The agent's end of a child: started from our own program, asked through a pipe, waited for within a time, ended.
//!
//! Its arguments say nothing but the task, its environment is empty, what it is to do comes through its standard input.
//! Never: a child that outlives the value that stands for it; a wait without an end. What a child says is a claim: objects
//! are hashed again, and only of a merge made again there is nothing to hold the answer against (docs/security.md).

use std::io::{self, BufReader, Read, Write};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Serialize;

use super::sandbox::User;
use super::wire::{self, Answer, Ask, WireError};
use crate::clock::{Clock, SystemClock};

/// The user whom the children run as on a machine: systemd/converger.sysusers.
pub const FETCH_USER: &str = "converger-fetch";
/// A child that hangs is found after its time and this.
const GRACE: Duration = Duration::from_secs(5);
/// What a dying child says on standard error.
const LAST_WORDS_MAX: u64 = 2048;

/// How the children are started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Children {
    /// The program that has the hidden command `quarantine`: this one.
    pub program: PathBuf,
    /// Whom they become; `None`: they stay who we are, without capabilities.
    pub user: Option<User>,
}

#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("cannot start {program}", program = .program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("the child said nothing for {secs} s")]
    TimedOut { secs: u64 },
    #[error("the child ended before it answered ({how})")]
    Ended { how: String },
    #[error("cannot talk to the child")]
    Pipe { source: io::Error },
    #[error("the child does not keep to the protocol")]
    Garbage { source: WireError },
    #[error("the child handed over other bytes than those of {id}")]
    Lied { id: String },
    #[error("the child answered what was not asked")]
    Unasked,
    #[error("the child sent more than it was asked for")]
    TooMuch,
}

impl Children {
    /// Our own program, as whoever we are: below a root, in tests.
    pub fn as_we_are() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), user: None }
    }

    /// Our own program; as [`FETCH_USER`] where we are root.
    pub fn of_the_machine() -> Result<Self, super::GitError> {
        let this = Self::as_we_are();
        if !rustix::process::geteuid().is_root() {
            return Ok(this);
        }
        match nix::unistd::User::from_name(FETCH_USER) {
            Ok(Some(user)) if !user.uid.is_root() && user.gid.as_raw() != 0 => {
                Ok(Self { user: Some(User { uid: user.uid.as_raw(), gid: user.gid.as_raw() }), ..this })
            }
            _ => Err(super::GitError::NoFetchUser),
        }
    }

    /// Starts a child, hands it its order, and waits until its sandbox is closed.
    pub(crate) fn start(&self, task: &'static str, order: &impl Serialize, secs: u64) -> Result<Running, ChildError> {
        #[allow(clippy::disallowed_methods)] // a long-running child that is talked to
        let spawned = Command::new(&self.program)
            .args(["quarantine", task])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // With it goes whatever it started (ssh); and a Ctrl-C in a terminal is ours to handle.
            .process_group(0)
            .spawn();
        let mut child = spawned.map_err(|source| ChildError::Start { program: self.program.clone(), source })?;
        let to = child.stdin.take().expect("it is piped");
        let from = child.stdout.take().expect("it is piped");
        let waiting = Waiting { pipe: from, left: Duration::from_secs(secs) + GRACE };
        let mut running = Running { child, to, from: BufReader::with_capacity(1 << 16, waiting), secs };
        let order = serde_json::to_vec(order).expect("paths from settings are text");
        running.tell(&order)?;
        match running.answer(0)? {
            Answer::Ready { landlock } => told(landlock),
            Answer::Failed(why) => return Err(ChildError::Ended { how: why }),
            _ => return Err(ChildError::Unasked),
        }
        Ok(running)
    }
}

/// Once: what the kernel lacks does not come while we run.
fn told(landlock: u8) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| match landlock {
        0 => tracing::warn!("this kernel has no Landlock: what fetches is held by its user and by seccomp alone"),
        abi => tracing::debug!(abi, "what fetches is held by Landlock and seccomp"),
    });
}

/// A child at work. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Running {
    child: std::process::Child,
    to: ChildStdin,
    from: BufReader<Waiting>,
    secs: u64,
}

impl Running {
    pub(super) fn ask(&mut self, ask: &Ask) -> Result<(), ChildError> {
        self.tell(&ask.bytes())
    }

    fn tell(&mut self, bytes: &[u8]) -> Result<(), ChildError> {
        let frame = wire::frame(bytes).map_err(|source| ChildError::Garbage { source })?;
        match self.to.write_all(&frame).and_then(|()| self.to.flush()) {
            // It listens no more; what it said before it left is still to be read, and says more than that.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|error| self.gone(error)),
        }
    }

    /// The next answer; an object in it has at most `max` bytes.
    pub(super) fn answer(&mut self, max: u64) -> Result<Answer, ChildError> {
        let most = max.saturating_add(wire::HEAD).max(wire::TEXT_MAX as u64 + wire::HEAD);
        Answer::parse(&self.frame(most)?).map_err(|source| ChildError::Garbage { source })
    }

    /// From now on the child may be silent for so long.
    pub fn wait_for(&mut self, time: Duration) {
        self.from.get_mut().left = time;
        self.secs = time.as_secs();
    }

    /// The next frame, of at most `max` bytes.
    pub fn frame(&mut self, max: u64) -> Result<Vec<u8>, ChildError> {
        let mut head = [0; 4];
        self.from.read_exact(&mut head).map_err(|error| self.gone(error))?;
        let length = wire::length(head, max).map_err(|source| ChildError::Garbage { source })?;
        // As it comes, not as it is promised.
        let mut bytes = Vec::with_capacity(length.min(1 << 16));
        let read = (&mut self.from).take(length as u64).read_to_end(&mut bytes);
        match read {
            Ok(read) if read == length => Ok(bytes),
            Ok(_) => Err(self.gone(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.gone(error)),
        }
    }

    fn gone(&mut self, error: io::Error) -> ChildError {
        match error.kind() {
            io::ErrorKind::TimedOut => ChildError::TimedOut { secs: self.secs },
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => ChildError::Ended { how: self.last_words() },
            _ => ChildError::Pipe { source: error },
        }
    }

    /// How it ended, and what it complained about.
    fn last_words(&mut self) -> String {
        // It closed its end; a moment later it is gone, and its own status says more than being killed.
        if let Ok(pidfd) = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) {
            let moment = Timespec { tv_sec: 1, tv_nsec: 0 };
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&moment));
        }
        self.end();
        let how = match self.child.wait() {
            Ok(status) if status.signal() == Some(Signal::SYS.as_raw()) => {
                "killed: it made a system call that no fetch needs".to_owned()
            }
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let mut said = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let waiting = Waiting { pipe: stderr, left: Duration::from_secs(1) };
            let _ = waiting.take(LAST_WORDS_MAX).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        let said = said.trim().escape_debug().to_string();
        if said.is_empty() { how } else { format!("{how}: {said}") }
    }

    /// One that ended by itself keeps its own status.
    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A group of its own; it is not reaped, so the number is still its.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.kill();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        let _ = self.child.wait();
    }
}

/// The child's end of a pipe, waited for no longer than `left` in all.
#[derive(Debug)]
struct Waiting<P = ChildStdout> {
    pipe: P,
    left: Duration,
}

impl<P: Read + std::os::fd::AsFd> Read for Waiting<P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = SystemClock.awake();
        let within = Timespec { tv_sec: self.left.as_secs() as i64, tv_nsec: self.left.subsec_nanos().into() };
        let ready = poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&within));
        self.left = self.left.saturating_sub(SystemClock.awake().saturating_sub(began));
        match ready {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => self.pipe.read(buffer),
            Err(rustix::io::Errno::INTR) => Err(io::ErrorKind::Interrupted.into()),
            Err(error) => Err(error.into()),
        }
    }
}
