//! Landlock: which files a child may open, which ports it may connect to, whom it may signal.
//!
//! <https://docs.kernel.org/userspace-api/landlock.html>. What the kernel's Landlock is too old for is left out; user,
//! capabilities and seccomp hold all the same. Never: a path from a remote.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, Scope, make_bitflags, path_beneath_rules,
};

use super::{Profile, SandboxError, Task};

/// The newest that we know; older kernels do what they can.
const KNOWN: ABI = ABI::V9;

/// What looking up a name reads, and where systems keep the certificates of authorities.
const NAMES_AND_AUTHORITIES: [&str; 16] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/ld.so.cache",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki",
    // The C library loads how names are looked up.
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
];
/// What ssh reads besides: who we are, its group file for tokens of a file, the settings of its cryptography.
const SSH_READS: [&str; 3] = ["/etc/passwd", "/etc/crypto-policies", "/proc/sys/crypto"];
const SSH_EXECUTES: [&str; 4] =
    ["/usr/bin/ssh", "/usr/local/bin/ssh", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];

/// The ABI of the kernel's Landlock.
pub(super) fn restrict(profile: &Profile) -> Result<u8, SandboxError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let files = make_bitflags!(AccessFs::{
        ReadFile | ReadDir | WriteFile | Truncate | Refer | MakeReg | MakeDir | RemoveFile | RemoveDir
    });
    let within = if profile.task == Task::Read { read } else { files };
    let mut rules: Vec<(&Path, BitFlags<AccessFs>)> = Vec::new();
    if profile.task != Task::Artifact {
        rules.push((&profile.quarantine, within));
    }
    rules.extend(profile.readable.iter().map(|path| (path.as_path(), read)));
    if matches!(profile.task, Task::Https | Task::Ssh | Task::Artifact) {
        rules.extend(NAMES_AND_AUTHORITIES.map(|path| (Path::new(path), read)));
    }
    if profile.task == Task::Ssh {
        rules.extend(SSH_READS.map(|path| (Path::new(path), read)));
        rules.extend(SSH_EXECUTES.map(|path| (Path::new(path), read | AccessFs::Execute)));
        rules.push((Path::new("/dev/null"), make_bitflags!(AccessFs::{ReadFile | WriteFile})));
    }
    let ports = profile.port.into_iter().flat_map(|port| [port, 53]);

    let enforced = || {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()?;
        for (path, access) in rules {
            // A path that is not there needs no rule.
            ruleset = ruleset.add_rules(path_beneath_rules([path], access))?;
        }
        for port in ports {
            ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
        ruleset.restrict_self()
    };
    let status = enforced().map_err(|source| SandboxError::Landlock { source })?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u8,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    })
}
