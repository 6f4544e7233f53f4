//! What the machine's own errors mean to people: the one place where an errno, or what SQLite makes of one, becomes a reason.
//!
//! Never: decides what to do about it.

use rustix::io::Errno;

use crate::reason::{self, Reason};

/// By the first cause that says something.
pub fn reason_of(error: &(dyn std::error::Error + 'static)) -> Option<Reason> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let of_io = || of_errno(Errno::from_io_error(error.downcast_ref::<std::io::Error>()?)?);
        let of_sqlite = || match error.downcast_ref::<rusqlite::Error>()?.sqlite_error()? {
            // The index of its log, which everybody who reads it needs, found no room.
            error if error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => Some(reason::DISK_FULL),
            error => match error.code {
                rusqlite::ErrorCode::DiskFull => Some(reason::DISK_FULL),
                rusqlite::ErrorCode::ReadOnly => Some(reason::READ_ONLY),
                rusqlite::ErrorCode::SystemIoFailure => Some(reason::DISK_ERROR),
                rusqlite::ErrorCode::OutOfMemory => Some(reason::OUT_OF_RESOURCES),
                _ => None,
            },
        };
        if let Some(reason) = of_io().or_else(of_sqlite) {
            return Some(reason);
        }
        cause = error.source();
    }
    None
}

fn of_errno(errno: Errno) -> Option<Reason> {
    match errno {
        Errno::NOSPC | Errno::DQUOT => Some(reason::DISK_FULL),
        Errno::ROFS => Some(reason::READ_ONLY),
        Errno::IO => Some(reason::DISK_ERROR),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => Some(reason::OUT_OF_RESOURCES),
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::ISDIR => Some(reason::UNSAFE_PATH),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write the report")]
    struct Outer(#[source] crate::disk::DiskError);

    #[test]
    fn the_cause_decides_however_deep_it_is() {
        let source = std::io::Error::from_raw_os_error(28);
        let error = Outer(crate::disk::DiskError::Io { operation: "write", path: "/x".into(), source });
        assert_eq!(reason_of(&error), Some(reason::DISK_FULL));
        assert_eq!(reason_of(&std::io::Error::other("28")), None);
    }
}
