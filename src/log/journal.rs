//! Events as entries of the journal, with their fields (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! Never: waits. A journal that stands still or is full of others' lines costs lines, not the agent's time.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

const SOCKET: &str = "/run/systemd/journal/socket";
/// A datagram has to fit into the socket's buffer; nothing that we say comes near.
const VALUE_BYTES_MAX: usize = 48 * 1024;

pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

/// What a span says, as it goes before what its events say.
struct Said(Entry);

impl Journal {
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    /// Errors: nobody listens there.
    pub fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        match socket.send_to(&[], path) {
            // It is there and has no time.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            knocked => drop(knocked?),
        }
        // By its path each time: a journal that was started again has another socket.
        Ok(Self { socket, path: path.to_owned() })
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut entry = Entry::default();
        entry.field("SPAN_NAME", span.name());
        attributes.record(&mut entry);
        span.extensions_mut().insert(Said(entry));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(Said(entry)) = span.extensions_mut().get_mut() {
            values.record(entry);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut entry = Entry::default();
        for span in context.lookup_current().into_iter().flat_map(|span| span.scope().from_root()) {
            if let Some(Said(said)) = span.extensions().get() {
                entry.0.extend_from_slice(&said.0);
            }
        }
        entry.origin(event.metadata());
        event.record(&mut entry);
        // Nobody is left to be told.
        let _ = self.socket.send_to(&entry.0, &self.path);
    }
}

#[derive(Default)]
struct Entry(Vec<u8>);

impl Entry {
    /// With its length, so that a value may have lines of its own.
    fn field(&mut self, name: &str, value: &str) {
        let mut end = value.len().min(VALUE_BYTES_MAX);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let value = &value.as_bytes()[..end];
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn origin(&mut self, metadata: &Metadata<'_>) {
        // As syslog counts: error, warning, notice, informational, debug.
        let priority = match *metadata.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "5",
            Level::DEBUG => "6",
            Level::TRACE => "7",
        };
        self.field("PRIORITY", priority);
        self.field("TARGET", metadata.target());
        self.field("SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.field("MESSAGE", value),
            // Names of journal fields are capitals, digits and underscores.
            name => self.field(&format!("F_{}", name.to_ascii_uppercase().replace('.', "_")), value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// I6: nobody reads, and everything is said all the same.
    #[test]
    fn a_journal_that_stands_still_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal::at(&path).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            let _in = tracing::info_span!("batch", name = "web.service").entered();
            for n in 0..10_000 {
                tracing::warn!(reason = "disk-full", n, "no room\nanywhere");
            }
        });
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(journal.recv(&mut buffer).unwrap(), 0, "the knock");
        let length = journal.recv(&mut buffer).unwrap();
        let mut said = std::collections::BTreeMap::new();
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let name = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let (head, tail) = rest[name + 1..].split_at(8);
            let length = usize::try_from(u64::from_le_bytes(head.try_into().unwrap())).unwrap();
            let value = String::from_utf8(tail[..length].to_vec()).unwrap();
            said.insert(String::from_utf8(rest[..name].to_vec()).unwrap(), value);
            rest = &tail[length + 1..];
        }
        let said: Vec<String> = said.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = [
            "F_N=0",
            "F_NAME=web.service",
            "F_REASON=disk-full",
            "MESSAGE=no room\nanywhere",
            "PRIORITY=4",
            "SPAN_NAME=batch",
            "SYSLOG_IDENTIFIER=converger",
            "TARGET=converger::log::journal::tests",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn without_a_journal_there_is_none() {
        assert!(Journal::at(Path::new("/nowhere/socket")).is_err());
    }
}
