//! What a program says, read without waiting and kept up to a cap.
//!
//! Never: blocks, or lets a flood keep the caller from looking at the time.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Of stdout and of stderr each; the rest is read and forgotten.
pub const KEPT_BYTES_MAX: usize = 64 * 1024;

/// The reading end of one of the program's streams.
pub struct Pipe {
    fd: std::fs::File,
    pub kept: Vec<u8>,
    pub open: bool,
}

impl Pipe {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd: fd.into(), kept: Vec::new(), open: true }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn drain(&mut self) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&self.fd, true)?;
        let mut buffer = [0; 8192];
        // A bounded number of rounds, so that a flood cannot keep us from looking at the time.
        for _ in 0..64 {
            match self.fd.read(&mut buffer) {
                Ok(0) => {
                    self.open = false;
                    break;
                }
                Ok(read) => {
                    let room = KEPT_BYTES_MAX - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..read.min(room)]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
