//! While a package manager works, nothing is started, stopped or restarted by it.
//!
//! Two fences. `SYSTEMD_OFFLINE=1` in its environment, which scriptlets of rpm and maintainer scripts of dpkg inherit:
//! systemctl then leaves out all that needs a running systemd (systemd's docs/ENVIRONMENT.md). And Debian's `policy-rc.d`
//! (invoke-rc.d(8)) for scripts that do not ask systemctl. An administrator's own policy is put aside and comes back.
//! Never: leaves its policy behind; what a crash left is taken back by the manager's own unit, or by the next agent.

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::host::HostError;
use crate::host::root::{Directory, Root, file};

const SBIN: &str = "/usr/sbin";
const POLICY: &str = "policy-rc.d";
const BEFORE: &str = "policy-rc.d.before-converger";
const FRESH: &str = ".policy-rc.d.converger";
const FORBID: &[u8] =
    b"#!/bin/sh\n# Made by converger while it installs a package: nothing is started or restarted by that.\nexit 101\n";

/// For the manager's environment.
pub const OFFLINE: &str = "SYSTEMD_OFFLINE=1";
/// What takes the policy back when the manager ends and no agent is there to see it, one command after the other.
pub const TAKE_BACK: [&str; 2] =
    ["/bin/rm -f /usr/sbin/policy-rc.d", "/bin/mv -fT /usr/sbin/policy-rc.d.before-converger /usr/sbin/policy-rc.d"];

/// The policy, while it lives.
pub struct NoStarts<'a>(&'a Root);

impl<'a> NoStarts<'a> {
    pub fn begin(root: &'a Root) -> Result<Self, HostError> {
        clean(root)?;
        let (sbin, _) = root.make_directory(SBIN)?;
        let failed = file("write", POLICY);
        match rustix::fs::renameat(&sbin.fd, POLICY, &sbin.fd, BEFORE) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        let guard = Self(root);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fresh = rustix::fs::openat(&sbin.fd, FRESH, flags, Mode::from_raw_mode(0o700)).map_err(&failed)?;
        rustix::fs::fchmod(&fresh, Mode::from_raw_mode(0o755)).map_err(&failed)?;
        let mut out = std::fs::File::from(fresh);
        // Durable before it has its name: an empty one, after a power cut, would forbid nothing and be nobody's.
        std::io::Write::write_all(&mut out, FORBID)
            .and_then(|()| out.sync_all())
            .map_err(|source| HostError::File { operation: "write", path: POLICY.to_owned(), source })?;
        rustix::fs::renameat(&sbin.fd, FRESH, &sbin.fd, POLICY).map_err(&failed)?;
        Ok(guard)
    }
}

impl Drop for NoStarts<'_> {
    fn drop(&mut self) {
        if let Err(error) = clean(self.0) {
            tracing::error!(%error, "{SBIN}/{POLICY} is still converger's");
        }
    }
}

/// Takes back what a crash left: the administrator's policy returns, ours goes.
pub fn clean(root: &Root) -> Result<(), HostError> {
    let Some(sbin) = root.directory(SBIN)? else { return Ok(()) };
    let failed = file("restore", POLICY);
    match rustix::fs::renameat(&sbin.fd, BEFORE, &sbin.fd, POLICY) {
        Ok(()) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    if is_ours(&sbin) {
        rustix::fs::unlinkat(&sbin.fd, POLICY, AtFlags::empty()).map_err(failed)?;
    }
    Ok(())
}

fn is_ours(sbin: &Directory) -> bool {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(&sbin.fd, POLICY, flags, Mode::empty()) else { return false };
    let mut text = Vec::new();
    let mut read = std::io::Read::take(std::fs::File::from(fd), FORBID.len() as u64 + 1);
    std::io::Read::read_to_end(&mut read, &mut text).is_ok() && text == FORBID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_administrators_policy_comes_back_also_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let read = |name: &str| std::fs::read(dir.path().join("usr/sbin").join(name)).ok();
        let guard = NoStarts::begin(&root).unwrap();
        assert_eq!(read(POLICY).as_deref(), Some(FORBID));
        drop(guard);
        assert_eq!(read(POLICY), None);

        let own: &[u8] = b"#!/bin/sh\nexit 0\n";
        crate::disk::write_atomic(&dir.path().join("usr/sbin").join(POLICY), own, 0o755).unwrap();
        std::mem::forget(NoStarts::begin(&root).unwrap());
        assert_eq!(read(POLICY).as_deref(), Some(FORBID));
        assert_eq!(read(BEFORE).as_deref(), Some(own));
        clean(&root).unwrap();
        assert_eq!((read(POLICY).as_deref(), read(BEFORE)), (Some(own), None));
        clean(&root).unwrap();
        assert_eq!(read(POLICY).as_deref(), Some(own), "what is not ours stays");
    }
}
