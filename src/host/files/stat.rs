//! What stat says of a file, and what of it proves something later.
//!
//! Never: follows a link.

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use crate::clock::Clock;
use crate::host::root::Directory;
use crate::resource::file::Stamp;

/// Two writes this close together may leave the same change time (kernels round it to a tick; some filesystems to
/// more), so a file that has just changed must be hashed again another time.
const RACY_NS: i128 = 2_000_000_000;

pub(super) fn stat(directory: &Directory, name: &str) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(&directory.fd, name, AtFlags::SYMLINK_NOFOLLOW, wanted)
}

pub(super) fn stat_of(fd: impl std::os::fd::AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// In words, what it is instead of a regular file.
pub(super) fn irregular(stat: &Statx) -> Option<&'static str> {
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::RegularFile => None,
        FileType::Directory => Some("directory"),
        FileType::Symlink => Some("symbolic link"),
        FileType::Fifo => Some("FIFO"),
        FileType::Socket => Some("socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("device"),
        _ => Some("thing of an unknown kind"),
    }
}

pub(super) fn stamp_fields(stat: &Statx) -> Stamp {
    let time = |time: rustix::fs::StatxTimestamp| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    Stamp {
        device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        size: stat.stx_size,
        mtime_ns: time(stat.stx_mtime),
        ctime_ns: time(stat.stx_ctime),
        mode: stat.stx_mode.into(),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
    }
}

/// A stamp that proves nothing later (see `RACY_NS`) gets no change time, so that it matches no later one.
pub(super) fn stamp(stat: &Statx, clock: &dyn Clock) -> Stamp {
    let mut stamp = stamp_fields(stat);
    if clock.now().as_nanosecond() - stamp.ctime_ns < RACY_NS {
        stamp.ctime_ns = 0;
    }
    stamp
}

pub(super) fn proves(stamp: &Stamp) -> bool {
    stamp.ctime_ns != 0
}

/// Takes an access list off that a directory's default or an administrator put there: mode and owner say it all.
pub(super) fn plain(fd: impl std::os::fd::AsFd) -> Result<(), Errno> {
    match rustix::fs::fremovexattr(fd, "system.posix_acl_access") {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}
