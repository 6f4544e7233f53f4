//! The only place that starts programs: an argument list, a clean environment, a time limit, a cap on what is kept.
//!
//! A program gets its own process group; whoever is left in it when the program ends, or when its time is over, is
//! killed. Never: a shell, a terminal, an inherited environment or descriptor, an unbounded wait.

use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::HostError;
pub use super::pipe::KEPT_BYTES_MAX;
use super::pipe::Pipe;
use crate::clock::{Clock, SystemClock};

pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run in `/`, with nothing on its stdin.
pub struct Command<'a> {
    /// The program and its arguments; a bare name is looked for in the system's own directories.
    pub argv: &'a [String],
    /// By name; empty: as whom we run. As a plain child, another user's program gets that user's own group and no further
    /// ones; as a unit (`programs`), the groups that any service of that user gets.
    pub user: &'a str,
    pub within: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// 128 and the signal's number if a signal ended it.
    pub exit: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    /// Both streams as text, for regular expressions and for people.
    pub fn text(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }

    /// The last few lines of what it said, on one line, and not too much of that.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(5)..].join("; ");
        let start = last.char_indices().rev().nth(599).map_or(0, |(at, _)| at);
        last[start..].to_owned()
    }
}

impl Command<'_> {
    /// Runs it to its end, whatever its exit code. Errors: it cannot be started, or its time was over.
    pub fn run(&self) -> Result<Output, HostError> {
        let failed = |why: String| self.failed(why);
        let mut child = self.spawn()?;
        let mut stdout = child.stdout.take().map(OwnedFd::from).map(Pipe::new);
        let mut stderr = child.stderr.take().map(OwnedFd::from).map(Pipe::new);
        let ended = self.wait(&child, [stdout.as_mut(), stderr.as_mut()]);
        // The child is not reaped yet, so its group's number cannot have become somebody else's.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let status = child.wait().map_err(|error| failed(error.to_string()))?;
        if !ended.map_err(|error| failed(error.to_string()))? {
            return Err(self.too_long());
        }
        Ok(Output {
            exit: status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
            stdout: stdout.map(|pipe| pipe.kept).unwrap_or_default(),
            stderr: stderr.map(|pipe| pipe.kept).unwrap_or_default(),
        })
    }

    /// As `run`, and an exit code other than 0 is an error too.
    pub fn succeed(&self) -> Result<Output, HostError> {
        let output = self.run()?;
        if output.exit == 0 {
            return Ok(output);
        }
        Err(self.failed(format!("exit {}: {}", output.exit, output.tail())))
    }

    pub fn failed(&self, why: String) -> HostError {
        HostError::Command { command: self.argv.join(" "), why }
    }

    pub fn too_long(&self) -> HostError {
        self.failed(format!("it did not end within {} s and was killed", self.within.as_secs_f32()))
    }

    /// Whom `user` names, if somebody else than us. Errors: nobody has that name here.
    pub fn account(&self) -> Result<Option<nix::unistd::User>, HostError> {
        if self.user.is_empty() {
            return Ok(None);
        }
        let user = nix::unistd::User::from_name(self.user).map_err(|error| self.failed(error.to_string()))?;
        let user = user.ok_or_else(|| self.failed(format!("no user {} on this host", self.user)))?;
        Ok((user.uid != nix::unistd::geteuid()).then_some(user))
    }

    #[allow(clippy::disallowed_methods)] // this file is where it is allowed
    fn spawn(&self) -> Result<Child, HostError> {
        let failed = |why: String| self.failed(why);
        let (program, arguments) = self.argv.split_first().ok_or_else(|| failed("nothing to run".to_owned()))?;
        let mut command = std::process::Command::new(program);
        command.args(arguments).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if let Some(user) = self.account()? {
            // From root, std drops all supplementary groups before it changes the user.
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.spawn().map_err(|error| failed(format!("it cannot be started: {error}")))
    }

    /// Reads what it says until it ends. False: its time is over.
    fn wait(&self, child: &Child, mut pipes: [Option<&mut Pipe>; 2]) -> std::io::Result<bool> {
        let clock = SystemClock;
        let deadline = clock.awake() + self.within;
        let ending = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        loop {
            let left = deadline.saturating_sub(clock.awake());
            let mut ready: Vec<PollFd<'_>> = vec![PollFd::new(&ending, PollFlags::IN)];
            let open = pipes.iter().flatten().filter(|pipe| pipe.open);
            ready.extend(open.map(|pipe| PollFd::from_borrowed_fd(pipe.fd(), PollFlags::IN)));
            let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut ready, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ended = !ready[0].revents().is_empty();
            for pipe in pipes.iter_mut().flatten() {
                pipe.drain()?;
            }
            if ended {
                return Ok(true);
            }
            // One that never stops talking is never idle: poll alone would not see that its time is over.
            if left.is_zero() {
                return Ok(false);
            }
        }
    }
}

/// An argument list from words.
pub fn argv<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(argv: &[&str], user: &str, millis: u64) -> Result<Output, HostError> {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        Command { argv: &argv, user, within: Duration::from_millis(millis) }.run()
    }

    #[test]
    fn output_exit_and_environment_are_its_own() {
        let output = run(&["sh", "-c", "env; pwd; echo no >&2; exit 3"], "", 5000).unwrap();
        assert_eq!(output.exit, 3);
        assert_eq!(output.stderr, b"no\n");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<&str> = stdout.lines().filter(|line| !line.starts_with("PWD=")).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["/", "LANG=C.UTF-8", &format!("PATH={PATH}")]);
    }

    #[test]
    fn arguments_are_not_words_of_a_shell() {
        let output = run(&["printf", "%s|", "a b", "$(id); `id`"], "", 5000).unwrap();
        assert_eq!(output.stdout, b"a b|$(id); `id`|");
    }

    #[test]
    fn the_whole_group_dies_at_the_time_limit() {
        let error = run(&["sh", "-c", "sleep 987 & echo $! >&2; exec sleep 986"], "", 200).unwrap_err();
        assert!(error.to_string().contains("did not end within 0.2 s"), "{error}");
    }

    #[test]
    fn a_child_left_behind_neither_delays_the_end_nor_survives_it() {
        let output = run(&["sh", "-c", "sleep 985 & echo $!"], "", 5000).unwrap();
        let pid: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let gone = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        for _ in 0..1_000_000 {
            if gone() {
                return;
            }
            std::thread::yield_now();
        }
        panic!("sleep {pid} is alive");
    }

    #[test]
    fn a_flood_is_cut_and_still_ends_in_time() {
        let error = run(&["yes"], "", 300).unwrap_err();
        assert!(error.to_string().contains("killed"), "{error}");
        let output = run(&["head", "-c", "1000000", "/dev/zero"], "", 5000).unwrap();
        assert_eq!((output.exit, output.stdout.len()), (0, KEPT_BYTES_MAX));
    }

    #[test]
    fn privileges_are_dropped_with_all_groups() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let output = run(&["id"], "nobody", 5000).unwrap();
        let id = String::from_utf8(output.stdout).unwrap();
        assert!(id.starts_with("uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)"), "{id}");
        assert!(run(&["id"], "no-such-user", 5000).is_err());
    }

    #[test]
    fn what_is_missing_is_an_error_not_an_exit_code() {
        let error = run(&["/no/such/program"], "", 5000).unwrap_err();
        assert!(error.to_string().contains("cannot be started"), "{error}");
        assert!(run(&[], "", 5000).is_err());
    }
}
