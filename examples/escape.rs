//! What an attacker who took over a fetch child would try, inside the real sandbox or without one.
//!
//! `tests/sandbox.rs` runs it: arguments are a JSON order and the attacks; one line tells how each went. Never: harm; each
//! attack stops at the first sign of success.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used, unsafe_code)]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Error, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use converger::git::sandbox::{self, Profile};
use nix::libc;
use serde::Deserialize;

/// What there is to get.
#[derive(Deserialize)]
struct Order {
    /// `None`: the control, without a sandbox.
    profile: Option<Profile>,
    /// A key of root's that others cannot read, and one that they could.
    private: PathBuf,
    public: PathBuf,
    /// A folder that everybody may write.
    outside: PathBuf,
    /// A TCP port of this machine that is not the remote's, and an abstract socket.
    port: u16,
    abstract_name: String,
    parent: i32,
}

type Attack = fn(&Order) -> Result<(), Error>;

const ATTACKS: &[(&str, Attack)] = &[
    ("read-private", |order| read(&order.private)),
    ("read-public", |order| read(&order.public)),
    ("list-outside", |order| std::fs::read_dir(&order.outside).map(drop)),
    ("write-outside", |order| write(&order.outside.join("planted"))),
    ("write-tmp", |order| write(Path::new(&format!("/tmp/converger-planted-{}", order.parent)))),
    ("truncate-outside", |order| {
        let path = text(&order.outside.join("precious"));
        call(unsafe { libc::truncate(path.as_ptr(), 8) }.into())
    }),
    ("chmod-outside", |order| {
        let path = text(&order.outside.join("precious"));
        call(unsafe { libc::chmod(path.as_ptr(), 0o777) }.into())
    }),
    ("rename-outside", |order| std::fs::rename(order.outside.join("precious"), order.outside.join("precious"))),
    ("link-private", |order| {
        let link = order.outside.join("link");
        std::fs::hard_link(&order.private, &link).and_then(|()| std::fs::remove_file(link))
    }),
    ("symlink", |order| {
        let link = order.outside.join("symlink");
        std::os::unix::fs::symlink("/etc/shadow", &link).and_then(|()| std::fs::remove_file(link))
    }),
    ("unix-socket", |_| UnixListener::bind_addr(&UnixAddr::from_abstract_name(b"converger-escape")?).map(drop)),
    ("abstract-socket", |order| {
        UnixStream::connect_addr(&UnixAddr::from_abstract_name(order.abstract_name.as_bytes())?).map(drop)
    }),
    ("netlink-socket", |_| call(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0) }.into())),
    ("raw-socket", |_| call(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) }.into())),
    ("packet-socket", |_| call(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) }.into())),
    ("connect-elsewhere", |order| TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], order.port))).map(drop)),
    ("listen", |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    ("udp-bind", |_| UdpSocket::bind("127.0.0.1:0").map(drop)),
    ("become-root", |_| call(unsafe { libc::setresuid(0, 0, 0) }.into())),
    ("group-root", |_| call(unsafe { libc::setresgid(0, 0, 0) }.into())),
    ("chown", |order| {
        let path = text(&order.outside.join("precious"));
        call(unsafe { libc::chown(path.as_ptr(), 1, 1) }.into())
    }),
    ("exec", |_| {
        let (program, none) = (CString::new("/bin/true").unwrap(), std::ptr::null());
        // The child tells by its status whether it could.
        match unsafe { libc::fork() } {
            -1 => Err(Error::last_os_error()),
            0 => unsafe {
                libc::execv(program.as_ptr(), [program.as_ptr(), none].as_ptr());
                libc::_exit((*libc::__errno_location()).clamp(1, 255));
            },
            child => {
                let mut status = 0;
                unsafe { libc::waitpid(child, &mut status, 0) };
                if status == 0 { Ok(()) } else { Err(Error::from_raw_os_error(libc::WEXITSTATUS(status))) }
            }
        }
    }),
    ("fork", |_| match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()),
        0 => unsafe { libc::_exit(0) },
        child => call(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }.into()),
    }),
    ("fork-namespace", |_| {
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
            -1 => Err(Error::last_os_error()),
            0 => unsafe { libc::_exit(0) },
            child => call(unsafe { libc::waitpid(child as i32, std::ptr::null_mut(), 0) }.into()),
        }
    }),
    // SIGURG is ignored by who does not wait for it.
    ("signal-parent", |order| call(unsafe { libc::kill(order.parent, libc::SIGURG) }.into())),
    ("memory-of-parent", |order| File::open(format!("/proc/{}/mem", order.parent)).map(drop)),
    ("environment-of-parent", |order| read(Path::new(&format!("/proc/{}/environ", order.parent)))),
    ("own-memory", |_| OpenOptions::new().write(true).open("/proc/self/mem").map(drop)),
    ("dump-core", |_| {
        let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        call(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) }.into())
    }),
    ("dumpable", |_| call(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) }.into())),
    ("new-code", |_| {
        let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, rights, flags, -1, 0) };
        if at == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(()) }
    }),
    ("memfd", |_| call(unsafe { libc::memfd_create(c"x".as_ptr(), 0) }.into())),
    ("ptrace-parent", |order| {
        let seized = call(unsafe { libc::ptrace(libc::PTRACE_SEIZE, order.parent, 0, 0) });
        unsafe { libc::ptrace(libc::PTRACE_DETACH, order.parent, 0, 0) };
        seized
    }),
    ("read-parent", |order| {
        let mut word = [0u8; 8];
        let to = libc::iovec { iov_base: word.as_mut_ptr().cast(), iov_len: 8 };
        // The parent is the test, whose program lies where its map begins.
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", order.parent)).unwrap_or_default();
        let at = usize::from_str_radix(maps.split('-').next().unwrap_or_default(), 16).unwrap_or(4096);
        let from = libc::iovec { iov_base: at as *mut _, iov_len: 8 };
        call(unsafe { libc::process_vm_readv(order.parent, &to, 1, &from, 1, 0) } as i64)
    }),
    ("mount", |order| {
        let at = text(&order.outside);
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        let source = c"tmpfs".as_ptr();
        call(unsafe { libc::mount(source, at.as_ptr(), source, flags, std::ptr::null()) }.into())?;
        call(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) }.into())
    }),
    ("user-namespace", |_| call(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())),
    ("chroot", |order| call(unsafe { libc::chroot(text(&order.outside).as_ptr()) }.into())),
    ("bpf", |_| {
        // BPF_PROG_GET_NEXT_ID: needs CAP_SYS_ADMIN, changes nothing. ENOENT means that it was let in.
        let mut attr = [0u64; 16];
        let_in(unsafe { libc::syscall(libc::SYS_bpf, 11, attr.as_mut_ptr(), 128) })
    }),
    ("keyring", |_| call(unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 1) })),
    ("io-uring", |_| {
        let mut parameters = [0u64; 15];
        call(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })
    }),
    ("perf", |_| {
        let mut attr = [0u64; 16];
        // A software counter of this process, size of the first version.
        attr[0] = 1 | 64 << 32;
        call(unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_mut_ptr(), 0, -1, -1, 0) })
    }),
];

fn read(path: &Path) -> Result<(), Error> {
    File::open(path)?.read_exact(&mut [0])
}

fn write(path: &Path) -> Result<(), Error> {
    File::create(path)?;
    std::fs::remove_file(path)
}

fn text(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn call(result: i64) -> Result<(), Error> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn let_in(result: i64) -> Result<(), Error> {
    match call(result) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let order: Order = serde_json::from_str(&arguments.next().unwrap()).unwrap();
    let wanted: Vec<String> = arguments.collect();
    if let Some(profile) = &order.profile {
        sandbox::keep_only_standard_streams();
        sandbox::enter(profile).unwrap();
    }
    for (name, attack) in ATTACKS {
        if wanted.iter().any(|wanted| wanted == name) {
            match attack(&order) {
                Ok(()) => println!("{name} done"),
                Err(error) => println!("{name} errno {}", error.raw_os_error().unwrap_or(-1)),
            }
        }
    }
}
