//! Logging: to the journal with fields where there is one, else to standard error.
//!
//! Never: a secret; nothing that holds one can be formatted. Never: keeps an agent waiting for whoever reads.

mod journal;

use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    Journal,
    /// A person waits for the answer: only what is wrong.
    Terminal,
    /// A person changes what a node believes: the journal has to know it too.
    Record,
}

pub fn start(verbose: u8, to: To) {
    let level = match (to, verbose) {
        (To::Terminal, 0) => "error",
        (To::Record, 0) => "warn",
        (To::Journal, 0) | (To::Terminal, 1) => "info",
        _ => "debug",
    };
    let filter = EnvFilter::new(format!("converger={level}"));
    let registry = tracing_subscriber::registry().with(filter);
    // systemd connects a unit's standard error to the journal and says so; a journal beside a terminal is not meant.
    let in_unit = std::env::var_os("JOURNAL_STREAM").is_some();
    let wanted = to == To::Record || (to == To::Journal && in_unit);
    match wanted.then(journal::Journal::open) {
        Some(Ok(journal)) => registry.with(journal).init(),
        _ => {
            let text = tracing_subscriber::fmt::layer().with_target(false).without_time().with_ansi(false);
            // A person's pager may take its time.
            if to == To::Terminal {
                registry.with(text.with_writer(io::stderr)).init();
            } else {
                registry.with(text.with_writer(|| Patchy)).init();
            }
        }
    }
}

/// Standard error, as long as whoever reads it does: a line that would have to wait is left out.
struct Patchy;

/// A pipe that can take anything takes this much at once (PIPE_BUF, pipe(7)).
const AT_ONCE: usize = 4096;

impl Write for Patchy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut errors = io::stderr().lock();
        for part in line.chunks(AT_ONCE) {
            let mut ready = [PollFd::new(&errors, PollFlags::OUT)];
            poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
            if ready[0].revents().contains(PollFlags::OUT) {
                errors.write_all(part)?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
