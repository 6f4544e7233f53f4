//! A role's program as a transient unit: a cgroup of its own, out of reach of D-Bus and of systemd's sockets.
//!
//! `Type=oneshot`: the job of its start ends when the program and all that it left behind are gone, at the latest when its
//! time is over (systemd.service(5), org.freedesktop.systemd1(5)). What each property is for stands beside it and in
//! docs/security.md. Never: a shell, the agent's environment, descriptors or cgroup.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use zbus::{OwnedVariant, Variant};

use super::HostError;
use super::Words;
use super::command::{Command, Output, PATH};
use super::pipe::Pipe;
use super::programs::Program;
use super::units::{SERVICE, Systemd, UNIT, number, text};
use crate::name::UnitName;

/// Processes and threads: enough for tools in Java, too few for a fork bomb to take the machine's.
const TASKS_MAX: u64 = 2048;
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// After the program's own time: for systemd to kill it and to say so.
const GRACE: Duration = Duration::from_secs(15);
/// How long what an agent left running may take to die.
const SWEPT_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What an action may say while nobody listens, because the agent died: more would keep it waiting until its time is over.
const UNHEARD_BYTES: i32 = 1 << 20;
/// Whoever can speak to one of these can stop a unit behind its hold's back, or speak for one.
const OUT_OF_REACH: [&str; 8] = [
    "-/run/dbus",
    "-/run/systemd/private",
    "-/run/systemd/notify",
    "-/run/systemd/io.systemd.Manager",
    "-/run/systemd/io.system.ManagedOOM",
    "-/run/systemd/io.systemd.ManagedOOM",
    "-/run/initctl",
    "-/run/user",
];
/// What systemd adds by itself; a program's environment is PATH and LANG.
const UNSET: [&str; 9] = [
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];
/// systemd's own exit codes for what goes wrong before the program is there ("Process exit codes" in systemd.exec(5)).
const NOT_STARTED: std::ops::RangeInclusive<i32> = 200..=245;
/// Numbers of capabilities(7).
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
const CAP_NET_ADMIN: u64 = 1 << 12;
/// What takes a program out of its namespaces or ends the machine: SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT.
const CAPS_OF_NOBODY: u64 = 1 << 16 | 1 << 17 | 1 << 19 | 1 << 21 | 1 << 22;

/// A bind without what is mounted below its source.
const ALONE: u64 = 0;

type Property = (String, OwnedVariant);

/// Runs it to its end. Errors: it cannot be started, or its time was over.
pub fn run(systemd: &Systemd, program: &Program<'_>, command: &Command<'_>) -> Result<Output, HostError> {
    let unit = unit_of(program);
    let failed = |error: std::io::Error| command.failed(error.to_string());
    let (hear_out, say_out) = stream(program).map_err(failed)?;
    let (hear_err, say_err) = stream(program).map_err(failed)?;
    let properties = properties(program, command, say_out, say_err)?;
    let (over, listening) = std::io::pipe().map_err(failed)?;
    let (ended, heard) = std::thread::scope(|scope| {
        let listener = scope.spawn(move || listen([Pipe::new(hear_out), Pipe::new(hear_err)], &over.into()));
        let ended = until_it_ends(systemd, &unit, command, properties);
        drop(listening);
        (ended, listener.join())
    });
    let exit = ended?;
    let [stdout, stderr] = heard.map_err(|_| command.failed("its output was lost".to_owned()))?;
    Ok(Output { exit, stdout, stderr })
}

/// An earlier run of this action that goes on: waits for its end, no longer than that may take. Says whether there was one.
pub fn wait_for(systemd: &Systemd, action: &str, within: Duration) -> Result<bool, HostError> {
    let unit = unit_of(&Program::Action(action));
    let waited = systemd.ask_within(within + GRACE * 2, "wait for", unit.as_str(), async |bus| {
        let gone = async {
            let mut seen = false;
            loop {
                let path = bus.manager.load_unit(unit.to_string()).await?;
                match text(&bus.properties(&path, UNIT).await?, "ActiveState").as_str() {
                    "inactive" | "failed" => return Ok(seen),
                    _ => seen = true,
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(within + GRACE, gone).await.map_or(Ok(None), |seen: zbus::Result<bool>| seen.map(Some))
    })?;
    waited.ok_or_else(|| HostError::Unit {
        operation: "wait for",
        unit: unit.to_string(),
        why: "an earlier run of this action has not ended".to_owned(),
    })
}

/// Ends what an agent that died left running, except actions: those end by themselves.
pub fn sweep(systemd: &Systemd) -> Result<(), HostError> {
    let patterns = ["validator", "guard", "step", "check"].map(|kind| format!("converger-{kind}-*.service")).to_vec();
    let left = systemd.ask("list", "what was left running", async |bus| {
        bus.manager.list_units_by_patterns(Vec::new(), patterns.clone()).await
    })?;
    for (unit, ..) in left {
        systemd.stop(&UnitName::new(unit), SWEPT_WITHIN, Words::Kept)?;
    }
    Ok(())
}

/// An action's name says which action it is, so that systemd refuses a second run beside the first.
fn unit_of(program: &Program<'_>) -> UnitName {
    let kind = match program {
        Program::Action(name) => return UnitName::new(format!("converger-action-{}.service", plain(name))),
        Program::Validator(_) => "validator",
        Program::Guard => "guard",
        Program::Step => "step",
        Program::Check => "check",
    };
    UnitName::new(format!("converger-{kind}-{}.service", ulid::Ulid::generate()))
}

/// Two names never become one: what a unit's name may not have is written as its bytes.
pub(super) fn plain(name: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        byte => format!("_{byte:02x}"),
    };
    name.bytes().map(byte).collect()
}

/// The exit code, as `Output` has it.
fn until_it_ends(
    systemd: &Systemd,
    unit: &UnitName,
    command: &Command<'_>,
    properties: Vec<Property>,
) -> Result<i32, HostError> {
    let job = systemd.job("start", unit, command.within + GRACE, async |bus| {
        let copy = |(name, value): &Property| Ok((name.clone(), value.try_clone()?));
        let properties = properties.iter().map(copy).collect::<zbus::Result<_>>()?;
        bus.manager.start_transient_unit(unit.to_string(), "fail".to_owned(), properties, Vec::new()).await
    });
    // Never killed by us: a name that was taken is somebody else's run, and systemd ends ours when its time is over.
    let ended = match job {
        Err(HostError::Unit { why, .. }) => Err(command.failed(format!("it cannot be started: {why}"))),
        job => job.and_then(|job| exit(systemd, unit, command, &job)),
    };
    let _ = systemd.ask("forget", unit.as_str(), async |bus| bus.manager.unref_unit(unit.to_string()).await);
    ended
}

fn exit(systemd: &Systemd, unit: &UnitName, command: &Command<'_>, job: &str) -> Result<i32, HostError> {
    let service = systemd.ask("look at", unit.as_str(), async |bus| {
        let path = bus.manager.load_unit(unit.to_string()).await?;
        bus.properties(&path, SERVICE).await
    })?;
    let result = text(&service, "Result");
    match (result.as_str(), number(&service, "ExecMainCode"), number(&service, "ExecMainStatus")) {
        ("timeout", ..) => Err(command.too_long()),
        (_, nix::libc::CLD_EXITED, status) if NOT_STARTED.contains(&status) => {
            Err(command.failed(format!("it cannot be started: exit {status}, which is systemd's (systemd.exec(5))")))
        }
        (_, nix::libc::CLD_EXITED, status) => Ok(status),
        (_, nix::libc::CLD_KILLED | nix::libc::CLD_DUMPED, signal) => Ok(128 + signal),
        _ => Err(command.failed(format!("it cannot be started: job {job}, {result}"))),
    }
}

/// Both ends of a stream of the program's.
fn stream(program: &Program<'_>) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (hear, say) = std::io::pipe()?;
    if !matches!(program, Program::Action(_)) {
        return Ok((hear.into(), say.into()));
    }
    // Open for reading too: when the agent dies, what the action writes waits instead of failing.
    fcntl(&say, FcntlArg::F_SETPIPE_SZ(UNHEARD_BYTES))?;
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&say));
    let both = rustix::fs::open(again, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok((hear.into(), both))
}

/// Reads what is said until the other end of `over` is closed.
fn listen(mut pipes: [Pipe; 2], over: &OwnedFd) -> [Vec<u8>; 2] {
    loop {
        let mut ready = vec![PollFd::new(over, PollFlags::IN)];
        ready.extend(
            pipes.iter().filter(|pipe| pipe.open).map(|pipe| PollFd::from_borrowed_fd(pipe.fd(), PollFlags::IN)),
        );
        let polled = poll(&mut ready, None);
        let ended = !ready[0].revents().is_empty();
        for pipe in &mut pipes {
            pipe.open &= pipe.drain().is_ok();
        }
        match polled {
            Ok(_) if !ended => {}
            Err(rustix::io::Errno::INTR) => {}
            _ => return pipes.map(|pipe| pipe.kept),
        }
    }
}

fn properties(
    program: &Program<'_>,
    command: &Command<'_>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<Vec<Property>, HostError> {
    let (file, argv) = exec(command)?;
    let mut set = Properties::default();
    // What runs, as whom, for how long. Whatever is left when it ends is killed at once.
    set.add("Type", "oneshot");
    set.add("ExecStart", vec![(file, argv, false)]);
    if let Some(user) = command.account()? {
        set.add("User", user.name);
    }
    set.add("TimeoutStartUSec", u64::try_from(command.within.as_micros()).unwrap_or(u64::MAX));
    set.add("KillSignal", nix::libc::SIGKILL);
    // Looked at by us when it has ended, then forgotten. Also while the machine shuts down, when a batch still ends.
    set.add("AddRef", true);
    set.add("CollectMode", "inactive-or-failed");
    set.add("DefaultDependencies", false);
    // What it gets of us.
    set.add("StandardInput", "null");
    set.add("StandardOutputFileDescriptor", zbus::Fd::from(stdout));
    set.add("StandardErrorFileDescriptor", zbus::Fd::from(stderr));
    set.add("Environment", vec![format!("PATH={PATH}"), "LANG=C.UTF-8".to_owned()]);
    set.add("UnsetEnvironment", UNSET.to_vec());
    set.add("UMask", 0o022_u32);
    set.add("KeyringMode", "private");
    // What it may use up.
    set.add("TasksMax", TASKS_MAX);
    set.add("MemoryMax", MEMORY_BYTES_MAX);
    set.add("MemorySwapMax", 0_u64);
    set.add("LimitCORE", 0_u64);
    set.add("LimitCORESoft", 0_u64);
    // What it may reach. Properties that imply NoNewPrivileges= for another user than root are for validators only: steps
    // and actions may be vendors' scripts with sudo in them.
    set.add("InaccessiblePaths", OUT_OF_REACH.to_vec());
    set.add("PrivateTmp", true);
    set.add("ProtectControlGroups", true);
    match program {
        Program::Validator(binds) => {
            let binds: Vec<_> = binds.iter().map(|(shown, at)| (shown.as_str(), at.as_str(), false, ALONE)).collect();
            set.add("BindReadOnlyPaths", binds);
            set.add("ProtectSystem", "strict");
            // Said once more: beside ProtectControlGroups= systemd 252 forgets /run in some containers.
            set.add("ReadOnlyPaths", vec!["/run"]);
            set.add("TemporaryFileSystem", vec![("/dev/shm", "mode=1777")]);
            set.add("ProtectHome", "read-only");
            set.add("PrivateNetwork", true);
            set.add("PrivateDevices", true);
            set.add("ProtectKernelTunables", true);
            set.add("ProtectKernelModules", true);
            set.add("RestrictNamespaces", 0_u64);
            set.add("LockPersonality", true);
            set.add("NoNewPrivileges", true);
            // In a network of its own a port below 1024 and a ruleset are nobody's. As root it reads what the role let it.
            set.add("CapabilityBoundingSet", CAP_DAC_READ_SEARCH | CAP_NET_BIND_SERVICE | CAP_NET_ADMIN);
            set.add("AmbientCapabilities", CAP_NET_BIND_SERVICE);
        }
        Program::Guard | Program::Step | Program::Check | Program::Action(_) => {
            set.add("CapabilityBoundingSet", !CAPS_OF_NOBODY);
        }
    }
    set.made.map_err(|error| command.failed(error.to_string()))
}

/// The program's file and its arguments as systemd takes them. Errors: there is no such file.
fn exec(command: &Command<'_>) -> Result<(String, Vec<String>), HostError> {
    let name = command.argv.first().ok_or_else(|| command.failed("nothing to run".to_owned()))?;
    let file = if name.contains('/') {
        Some(Path::new("/").join(name)).filter(|file| file.exists())
    } else {
        PATH.split(':').map(|directory| Path::new(directory).join(name)).find(is_program)
    };
    let file = file.ok_or_else(|| command.failed("it cannot be started: no such program on this host".to_owned()))?;
    // In ExecStart= a dollar sign stands for a variable, two for one dollar sign.
    let argv = command.argv.iter().map(|argument| argument.replace('$', "$$")).collect();
    Ok((file.to_string_lossy().into_owned(), argv))
}

fn is_program(file: &PathBuf) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Collects properties, or the first error.
pub(super) struct Properties {
    pub(super) made: Result<Vec<Property>, zbus::Error>,
}

impl Default for Properties {
    fn default() -> Self {
        Self { made: Ok(Vec::new()) }
    }
}

impl Properties {
    pub(super) fn add<'v>(&mut self, name: &str, value: impl Into<Variant<'v>>) {
        let Ok(made) = &mut self.made else { return };
        match OwnedVariant::try_from(value.into()) {
            Ok(value) => made.push((name.to_owned(), value)),
            Err(error) => self.made = Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_actions_never_share_a_unit() {
        let unit = |name| unit_of(&Program::Action(name)).to_string();
        assert_eq!(unit("make-topics"), "converger-action-make-topics.service");
        assert_eq!(unit("a/b c"), "converger-action-a_2fb_20c.service");
        assert_ne!(unit("a_b"), unit("a/b"));
    }

    /// C10.
    #[test]
    fn systemd_is_told_a_file_and_arguments_and_no_variables() {
        let argv = ["sh", "a b; $HOME ${HOME}", "%n"].map(str::to_owned);
        let command = Command { argv: &argv, user: "", within: Duration::from_secs(1) };
        let (file, argv) = exec(&command).unwrap();
        assert!(file.starts_with('/') && file.ends_with("/sh"), "{file}");
        assert_eq!(argv, ["sh", "a b; $$HOME $${HOME}", "%n"]);
        let missing = [String::from("no-such-program")];
        assert!(exec(&Command { argv: &missing, user: "", within: Duration::ZERO }).is_err());
    }
}
