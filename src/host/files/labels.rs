//! SELinux labels. A candidate is made in the staging directory and has that directory's label; before it goes live it gets
//! the one of the file that it replaces, else of the directory where it will be, as files that are made there get.
//!
//! Never: reads the policy's own list of paths (`matchpathcon`); what that says beyond the two, `restorecon` has to set.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::host::root::Directory;

const LABEL: &str = "security.selinux";

/// Errors: none where there are no labels, or where the policy does not let us set them.
pub(super) fn set(candidate: impl AsFd, directory: &Directory, name: &str) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let replaced = rustix::fs::openat(&directory.fd, name, flags, Mode::empty()).ok();
    let label = match replaced.map(of).transpose()?.flatten() {
        Some(label) => Some(label),
        None => of(&directory.fd)?,
    };
    match label {
        Some(label) if of(&candidate)?.as_ref() != Some(&label) => {
            match rustix::fs::fsetxattr(candidate, LABEL, &label, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(()),
                done => done,
            }
        }
        _ => Ok(()),
    }
}

fn of(file: impl AsFd) -> Result<Option<Vec<u8>>, Errno> {
    // Contexts are short; a longer one is none that policies make.
    let mut label = [0; 1024];
    match rustix::fs::fgetxattr(file, LABEL, &mut label) {
        Ok(length) => Ok(Some(label[..length].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::RANGE) => Ok(None),
        Err(error) => Err(error),
    }
}
