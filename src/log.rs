//! Logging: to the journal with fields where there is one, else to standard error.
//!
//! Never: a secret; nothing that holds one can be formatted.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    Journal,
    /// A person waits for the answer: only what is wrong.
    Terminal,
}

pub fn start(verbose: u8, to: To) {
    let level = match (to, verbose) {
        (To::Terminal, 0) => "error",
        (To::Journal, 0) | (To::Terminal, 1) => "info",
        _ => "debug",
    };
    let filter = EnvFilter::new(format!("converger={level}"));
    let registry = tracing_subscriber::registry().with(filter);
    // systemd connects a unit's standard error to the journal and says so; a journal beside a terminal is not meant.
    let in_unit = std::env::var_os("JOURNAL_STREAM").is_some();
    match (to, in_unit.then(tracing_journald::layer)) {
        (To::Journal, Some(Ok(journal))) => registry.with(journal).init(),
        _ => {
            let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).without_time();
            registry.with(text.with_ansi(false)).init();
        }
    }
}
