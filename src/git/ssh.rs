//! A connection through the system's `ssh`, which has had more eyes on it than any library.
//!
//! Everything is said on the command line, nothing comes from a configuration file, an agent or the environment. Never:
//! an unknown host key, a password, a question, an argument that trust.toml did not restrict to plain characters.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use super::transport::{Dial, Metered};
use crate::disk;
use crate::settings::Access;

/// The name under which the host key is known, whatever the host is called.
const ALIAS: &str = "converger-remote";

pub(super) struct Session {
    child: Child,
    /// Its standard input and output; a socket, because reading from it can time out.
    socket: Metered<UnixStream>,
    heard: bool,
}

#[allow(clippy::disallowed_methods)] // a long-running child whose ends libgit2 reads and writes as it likes
pub(super) fn connect(dial: &Dial) -> io::Result<Session> {
    let Access::Ssh { user, host, port, path, host_key, key_file } = &dial.access else {
        return Err(io::Error::other("this remote is not reached by ssh"));
    };
    let known_hosts = dial.cache.join("known_hosts");
    disk::write_atomic(&known_hosts, format!("{ALIAS} {host_key}\n").as_bytes(), 0o600).map_err(io::Error::other)?;

    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new("ssh")
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["-F", "none", "-T", "-a", "-x"])
        .args(OPTIONS.iter().map(|option| format!("-o{option}")))
        .arg(format!("-oHostKeyAlias={ALIAS}"))
        .arg(format!("-oUserKnownHostsFile=\"{}\"", known_hosts.display()))
        .arg(format!("-oConnectTimeout={}", dial.budget.left()?.as_secs().clamp(1, 30)))
        .arg("-p")
        .arg(port.to_string())
        .arg("-i")
        .arg(key_file)
        .arg("--")
        .arg(format!("{user}@{host}"))
        .arg(format!("git-upload-pack '{path}'"))
        .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run ssh: {error}")))?;
    let socket = Metered { stream: ours, budget: dial.budget.clone() };
    Ok(Session { child, socket, heard: false })
}

const OPTIONS: [&str; 17] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "VerifyHostKeyDNS=no",
    "CheckHostIP=no",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "PreferredAuthentications=publickey",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "ProxyCommand=none",
    "ControlMaster=no",
    "ControlPath=none",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    "LogLevel=ERROR",
];

impl Session {
    fn limit_wait(&self) -> io::Result<()> {
        let left = self.socket.budget.left()?;
        self.socket.stream.set_read_timeout(Some(left))?;
        self.socket.stream.set_write_timeout(Some(left))
    }

    /// What ssh itself had to say; it has ended, or is made to.
    fn complaint(&mut self) -> String {
        let _ = self.child.kill();
        let mut said = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(4096).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() { "ssh ended without a word".to_owned() } else { lines.join("; ") }
    }
}

impl Read for Session {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.limit_wait()?;
        match self.socket.read(buffer) {
            Ok(0) if !self.heard => Err(io::Error::other(self.complaint())),
            Ok(read) => {
                self.heard = true;
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            Err(_) if !self.heard => Err(io::Error::other(self.complaint())),
            Err(error) => Err(error),
        }
    }
}

impl Write for Session {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.limit_wait()?;
        self.socket.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.socket.stream.shutdown(Shutdown::Both);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
