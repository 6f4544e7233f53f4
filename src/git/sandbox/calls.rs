//! seccomp: the system calls that each task needs, by name, and no others.
//!
//! What is not listed fails with EPERM: libraries try things and take no for an answer, and what an attacker gets is the
//! same. A few calls that no fetch ever makes and that attacks begin with kill the process instead, so that it shows
//! in the log. Never: a call by a number, or of another architecture (seccompiler kills those).

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::{SandboxError, Task};

type Calls = BTreeMap<i64, Vec<SeccompRule>>;

/// Reading files that are open or can be opened for reading, memory, the time, the end.
const BASE: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_getdents64,
    libc::SYS_fcntl,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(not(target_arch = "x86_64"))]
    libc::SYS_faccessat,
    #[cfg(not(target_arch = "x86_64"))]
    libc::SYS_readlinkat,
];

/// What the C library and the list of authorities ask about files that they read.
const LOOK: &[i64] = &[libc::SYS_statx, libc::SYS_getpid, libc::SYS_getcwd, libc::SYS_faccessat2];

/// Writing below the quarantine; Landlock says where.
const WRITE: &[i64] = &[
    libc::SYS_faccessat2,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fchmod,
    libc::SYS_statx,
    libc::SYS_utimensat,
    libc::SYS_unlinkat,
    libc::SYS_getpid,
    libc::SYS_getcwd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(not(target_arch = "x86_64"))]
    libc::SYS_mkdirat,
    #[cfg(not(target_arch = "x86_64"))]
    libc::SYS_linkat,
    #[cfg(not(target_arch = "x86_64"))]
    libc::SYS_renameat,
    #[cfg(not(target_arch = "x86_64"))]
    libc::SYS_fchmodat,
];

/// Threads: libgit2 packs with them what a repository on this machine sends, and names are looked up in one.
const THREADS: &[i64] = &[
    // Refused below in a way that makes the C library use clone, whose flags a filter can see.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_gettid,
    libc::SYS_exit,
];

/// Connections, of the families below.
const NETWORK: &[i64] = &[
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmmsg,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    libc::SYS_ioctl,
    libc::SYS_ppoll,
    libc::SYS_uname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Starting ssh, and what ssh does.
const SSH: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_execve,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_pipe2,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_writev,
    libc::SYS_readv,
    libc::SYS_pselect6,
    libc::SYS_set_tid_address,
    libc::SYS_prlimit64,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_setitimer,
    libc::SYS_umask,
    libc::SYS_prctl,
    libc::SYS_close_range,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
];

/// Nobody who fetches makes these; attacks do.
const ALARMING: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_open_by_handle_at,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_acct,
];

/// What a task may call, with conditions on the arguments where there are any.
pub fn allowed(task: Task) -> Result<BTreeMap<i64, Vec<SeccompRule>>, SandboxError> {
    listed(task).map_err(|source| SandboxError::Seccomp { source: Error::Backend(source) })
}

fn listed(task: Task) -> Result<Calls, seccompiler::BackendError> {
    let network = matches!(task, Task::Https | Task::Ssh | Task::Artifact);
    let lists: &[&[i64]] = match task {
        Task::Read => &[BASE],
        Task::File => &[BASE, WRITE, THREADS],
        Task::Https => &[BASE, WRITE, THREADS, NETWORK],
        Task::Artifact => &[BASE, LOOK, THREADS, NETWORK],
        Task::Ssh => &[BASE, WRITE, THREADS, NETWORK, SSH],
    };
    let mut calls: Calls = lists.concat().into_iter().map(|call| (call, Vec::new())).collect();

    let any = SeccompRule::new;
    let lacks = |arg, bits: i32| {
        SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits as u32 as u64), 0)
    };
    let has = |arg, bits: i32| {
        let bits = bits as u32 as u64;
        SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits), bits)
    };
    let is = |arg, value: i32| SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u64);

    // Code is never made, nor loaded, except what the C library loads to look up names.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        calls.insert(call, if network { Vec::new() } else { vec![any(vec![lacks(2, libc::PROT_EXEC)?])?] });
    }
    let writing = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND;
    let reads_only = matches!(task, Task::Read | Task::Artifact);
    calls.insert(libc::SYS_openat, if reads_only { vec![any(vec![lacks(2, writing)?])?] } else { Vec::new() });
    #[cfg(target_arch = "x86_64")]
    calls.insert(libc::SYS_open, if reads_only { vec![any(vec![lacks(1, writing)?])?] } else { Vec::new() });
    if network {
        // TCP to the remote, UDP to name servers; no raw, no unix, no netlink.
        let mut sockets = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
                // Besides its kind there may be flags.
                let kind = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(0xf), kind as u64)?;
                sockets.push(any(vec![is(0, family)?, kind])?);
            }
        }
        calls.insert(libc::SYS_socket, sockets);
    }
    match task {
        // A thread, never a process.
        Task::File | Task::Https | Task::Artifact => {
            _ = calls.insert(libc::SYS_clone, vec![any(vec![has(0, libc::CLONE_THREAD)?])?])
        }
        Task::Ssh => {
            // A process, but in the namespaces that we are in.
            let apart = libc::CLONE_NEWUSER
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWCGROUP;
            calls.insert(libc::SYS_clone, vec![any(vec![lacks(0, apart)?])?]);
            // How we talk to it.
            calls.insert(libc::SYS_socketpair, vec![any(vec![is(0, libc::AF_UNIX)?])?]);
        }
        Task::Read => {}
    }
    Ok(calls)
}

/// From now on, for this process and all it starts.
pub(super) fn restrict(task: Task) -> Result<(), SandboxError> {
    let failed = |source| SandboxError::Seccomp { source };
    let alarming = ALARMING.iter().map(|call| (*call, Vec::new())).collect();
    // Its arguments lie in memory, where a filter cannot look. The strictest of all filters counts.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let filters = [
        (alarming, SeccompAction::Allow, SeccompAction::KillProcess),
        (unknown, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32)),
        (allowed(task)?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow),
    ];
    for (calls, otherwise, listed) in filters {
        seccompiler::apply_filter(&program(calls, otherwise, listed).map_err(failed)?).map_err(failed)?;
    }
    Ok(())
}

fn program(calls: Calls, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, Error> {
    let arch = std::env::consts::ARCH.try_into().map_err(Error::Backend)?;
    let filter = SeccompFilter::new(calls, otherwise, listed, arch).map_err(Error::Backend)?;
    filter.try_into().map_err(Error::Backend)
}
