//! The sandbox that a child closes around itself before it meets a foreign byte.
//!
//! In this order: limits, Landlock (files, TCP ports, signals), the user, capabilities, seccomp (system calls). Each layer
//! holds without the others. The parent does none of it: it would need code between fork and exec. Never: opened again.

pub mod calls;
mod filesystem;

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, geteuid, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::settings::{Access, Limits, Remote};

/// What a child is for: it gets no more than that needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Reads the quarantine.
    Read,
    /// Fetches from a repository on this machine.
    File,
    Https,
    /// Fetches through the system's `ssh`, which lives in the same sandbox.
    Ssh,
    /// Downloads an archive: from the network into the pipe to its parent, no file is written.
    Artifact,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// How the sandbox is closed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Profile {
    /// Whom to become; `None`: nobody else.
    pub user: Option<User>,
    pub task: Task,
    /// The only place to write (to read, for [`Task::Read`]); unused for [`Task::Artifact`], which has none.
    pub quarantine: PathBuf,
    /// Files, and folders with all below them, that this remote needs.
    pub readable: Vec<PathBuf>,
    /// The remote's TCP port; names are looked up at port 53 besides.
    pub port: Option<u16>,
    pub limits: Limits,
}

impl Profile {
    /// For fetching from one remote.
    pub fn to_fetch(remote: &Remote, quarantine: &Path, user: Option<User>, limits: &Limits) -> Self {
        let (task, port) = match &remote.access {
            Access::File { .. } => (Task::File, None),
            Access::Ssh { port, .. } => (Task::Ssh, Some(*port)),
            Access::Https { .. } => {
                let port = remote.url.parse().ok().and_then(|url: ureq::http::Uri| url.port_u16());
                (Task::Https, Some(port.unwrap_or(443)))
            }
        };
        Self { user, task, quarantine: quarantine.to_owned(), readable: remote.access.files(), port, limits: *limits }
    }

    /// For downloading from one TCP port.
    pub fn to_download(port: u16, user: Option<User>, limits: &Limits) -> Self {
        let (quarantine, readable) = (PathBuf::new(), Vec::new());
        Self { user, task: Task::Artifact, quarantine, readable, port: Some(port), limits: *limits }
    }

    /// For reading what was fetched.
    pub fn to_read(quarantine: &Path, user: Option<User>, limits: &Limits) -> Self {
        let readable = Vec::new();
        Self { user, task: Task::Read, quarantine: quarantine.to_owned(), readable, port: None, limits: *limits }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("cannot {what}")]
    Step { what: &'static str, source: io::Error },
    #[error("cannot restrict files and ports")]
    Landlock { source: landlock::RulesetError },
    #[error("cannot restrict system calls")]
    Seccomp { source: seccompiler::Error },
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |error| SandboxError::Step { what, source: error.into() }
}

/// Ends what this process may have inherited besides standard input, output and error. Comes first of all.
#[allow(unsafe_code)] // no safe wrapper exists: it would have to know who owns the descriptors
pub fn keep_only_standard_streams() {
    // SAFETY: close_range(2); called before this process has opened anything, so nobody owns what is closed.
    unsafe { nix::libc::close_range(3, u32::MAX, 0) };
}

/// Closes it, for good. Gives the ABI of the kernel's Landlock; 0: it has none, and the other layers have to do.
pub fn enter(profile: &Profile) -> Result<u8, SandboxError> {
    thread::set_no_new_privs(true).map_err(step("give up new privileges"))?;
    limits(profile)?;
    // While paths can still be opened that only root enters.
    let landlock = filesystem::restrict(profile)?;
    privileges(profile.user)?;
    // A change of user takes these two back.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("hide the memory"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("tie this process to its parent"))?;
    calls::restrict(profile.task)?;
    Ok(landlock)
}

fn limits(profile: &Profile) -> Result<(), SandboxError> {
    const MIB: u64 = 1 << 20;
    let Limits { pack_mib, time_secs, .. } = profile.limits;
    // An object, what it is a delta of, the index of a pack.
    let data = (512 + 2 * pack_mib) * MIB;
    let file = match profile.task {
        Task::Read | Task::Artifact => 0,
        // The remote is told off before the kernel kills.
        _ => (pack_mib + 64) * MIB,
    };
    let all = [
        (Resource::Core, 0),
        (Resource::Data, data),
        (Resource::As, data + (1024 + 4 * pack_mib) * MIB),
        (Resource::Fsize, file),
        (Resource::Nofile, 512),
        (Resource::Cpu, time_secs.saturating_add(1)),
    ];
    for (resource, most) in all {
        // What we were given may be less already.
        let most = getrlimit(resource).maximum.map_or(most, |given| given.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(step("set limits"))?;
    }
    Ok(())
}

fn privileges(user: Option<User>) -> Result<(), SandboxError> {
    if geteuid().is_root() {
        for bit in 0..64 {
            let Some(capability) = CapabilitySet::from_bits(1 << bit) else { continue };
            match thread::remove_capability_from_bounding_set(capability) {
                // This kernel does not know it, or whoever started us kept the right to do this.
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
                Err(error) => return Err(step("bound the capabilities")(error)),
            }
        }
    }
    if let Some(User { uid, gid }) = user {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        thread::set_thread_groups(&[]).map_err(step("leave all groups"))?;
        thread::set_thread_res_gid(gid, gid, gid).map_err(step("change the group"))?;
        thread::set_thread_res_uid(uid, uid, uid).map_err(step("change the user"))?;
        // Counted for this user, whom nobody else is. Threads that look up names, ssh and what it may start.
        let most = Some(32);
        setrlimit(Resource::Nproc, Rlimit { current: most, maximum: most }).map_err(step("set limits"))?;
    }
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    thread::set_capabilities(None, none).map_err(step("give up capabilities"))
}
