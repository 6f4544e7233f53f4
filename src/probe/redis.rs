//! `redis` and `sentinel`: what the server says of its replication, and what the sentinel says of its quorum.
//!
//! Never: a command that changes anything.

use std::io::{BufRead, BufReader, Read, Write};

use super::wire::{self, Channel};
use super::{Evidence, Question, quoted};

const SERVER_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// A master that serves, or a replica whose link to its master is up. A replica that fell away goes on answering
/// clients, so PING alone proves nothing.
pub(super) fn ask_server(question: &Question) -> Result<Evidence, String> {
    let mut client = Client::open(question, SERVER_PORT)?;
    match client.call(&["PING"])? {
        Reply::Text(pong) if pong == "PONG" => {}
        Reply::Error(error) => return refused(&error),
        _ => return Err("does not speak the Redis protocol".to_owned()),
    }
    match client.call(&["INFO", "replication"])? {
        Reply::Text(info) => replication(&info),
        Reply::Error(error) => refused(&error),
        _ => Err("INFO replication is not answered by text".to_owned()),
    }
}

/// Whether enough sentinels agree to fail the master over; the name of the master is the check's path.
pub(super) fn ask_sentinel(question: &Question) -> Result<Evidence, String> {
    let master = question.path.as_deref().ok_or("the check names no master (path)")?;
    let mut client = Client::open(question, SENTINEL_PORT)?;
    match client.call(&["SENTINEL", "get-master-addr-by-name", master])? {
        Reply::List(address) if address.len() == 2 => {}
        Reply::Nothing => return Ok(Evidence::unhealthy(format!("watches no master named {master}"))),
        Reply::Error(error) => return refused(&error),
        _ => return Err("does not answer like a sentinel".to_owned()),
    }
    match client.call(&["SENTINEL", "CKQUORUM", master])? {
        Reply::Text(said) if said.starts_with("OK ") => Ok(Evidence::healthy()),
        Reply::Error(error) => refused(&error),
        _ => Err("does not answer like a sentinel".to_owned()),
    }
}

fn replication(info: &str) -> Result<Evidence, String> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    match (field("role"), field("master_link_status")) {
        (Some("master"), _) => Ok(Evidence::healthy().leading(true)),
        (Some("slave"), Some("up")) => Ok(Evidence::healthy().leading(false)),
        (Some("slave"), _) => {
            let why = match (field("master_sync_in_progress"), field("master_link_down_since_seconds")) {
                (Some("1"), _) => "is still taking a full copy from its master".to_owned(),
                (_, Some(seconds)) if seconds != "-1" => {
                    format!("its link to the master is down for {} s", quoted(seconds))
                }
                _ => "its link to the master is down".to_owned(),
            };
            Ok(Evidence::unhealthy(why).leading(false))
        }
        _ => Err("INFO replication names no role".to_owned()),
    }
}

/// Redis refuses for its own state (LOADING, MASTERDOWN, NOQUORUM …), or because of who asks what, which says nothing
/// of it.
fn refused(error: &str) -> Result<Evidence, String> {
    let said = quoted(error);
    match error.split_whitespace().next() {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "ERR") => Err(format!("does not let us ask: {said}")),
        _ => Ok(Evidence::unhealthy(said)),
    }
}

/// Larger than anything that is asked for here.
const LINE_MAX: u64 = 64 * 1024;
const TEXT_MAX: usize = 1024 * 1024;
const LIST_MAX: usize = 16;

#[derive(PartialEq, Eq, Debug)]
enum Reply {
    Text(String),
    Error(String),
    Nothing,
    /// Its texts.
    List(Vec<String>),
}

/// The Redis protocol, version 2: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
struct Client {
    stream: BufReader<Box<dyn Channel>>,
}

impl Client {
    fn open(question: &Question, usual_port: u16) -> Result<Self, String> {
        let stream = wire::open(question, question.port.unwrap_or(usual_port))?;
        let mut client = Self { stream: BufReader::new(stream) };
        if let Some(secret) = &question.secret {
            let login = match &question.user {
                Some(user) => client.call(&["AUTH", user, secret])?,
                None => client.call(&["AUTH", secret])?,
            };
            if let Reply::Error(error) = login {
                return Err(format!("does not let us in: {}", quoted(&error)));
            }
        }
        Ok(client)
    }

    fn call(&mut self, words: &[&str]) -> Result<Reply, String> {
        let mut request = zeroize::Zeroizing::new(format!("*{}\r\n", words.len()));
        for word in words {
            request.push_str(&format!("${}\r\n", word.len()));
            request.push_str(word);
            request.push_str("\r\n");
        }
        let stream = self.stream.get_mut();
        stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(|error| error.to_string())?;
        read_reply(&mut self.stream)
    }
}

fn read_reply(stream: &mut impl BufRead) -> Result<Reply, String> {
    let foreign = || "does not speak the Redis protocol".to_owned();
    let line = read_line(stream)?;
    let Some(kind) = line.chars().next().filter(char::is_ascii) else { return Err(foreign()) };
    let rest = &line[1..];
    match kind {
        '+' => Ok(Reply::Text(rest.to_owned())),
        '-' => Ok(Reply::Error(rest.to_owned())),
        '$' | '*' if rest == "-1" => Ok(Reply::Nothing),
        '$' => {
            let length: usize = rest.parse().ok().filter(|length| *length <= TEXT_MAX).ok_or_else(foreign)?;
            let mut bytes = vec![0; length + 2];
            stream.read_exact(&mut bytes).map_err(|error| error.to_string())?;
            bytes.truncate(length);
            String::from_utf8(bytes).map(Reply::Text).map_err(|_| foreign())
        }
        '*' => {
            let length: usize = rest.parse().ok().filter(|length| *length <= LIST_MAX).ok_or_else(foreign)?;
            let texts = (0..length).map(|_| read_text(stream).ok_or_else(foreign)).collect::<Result<_, _>>()?;
            Ok(Reply::List(texts))
        }
        _ => Err(foreign()),
    }
}

/// An element of a list; lists in lists are not asked for.
fn read_text(stream: &mut impl BufRead) -> Option<String> {
    if !stream.fill_buf().ok()?.starts_with(b"$") {
        return None;
    }
    match read_reply(stream).ok()? {
        Reply::Text(text) => Some(text),
        _ => None,
    }
}

fn read_line(stream: &mut impl BufRead) -> Result<String, String> {
    let mut line = String::new();
    stream.take(LINE_MAX).read_line(&mut line).map_err(|error| error.to_string())?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None if line.is_empty() => Err("closes the connection without an answer".to_owned()),
        None => Err("does not speak the Redis protocol".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Health;

    fn replies(bytes: &str) -> Vec<Result<Reply, String>> {
        let mut stream = bytes.as_bytes();
        let mut replies = Vec::new();
        while !stream.is_empty() {
            replies.push(read_reply(&mut stream));
        }
        replies
    }

    #[test]
    fn reads_every_kind_of_reply_that_is_asked_for() {
        let text = |text: &str| Ok(Reply::Text(text.to_owned()));
        assert_eq!(
            replies("+PONG\r\n$5\r\na\r\nbc\r\n$-1\r\n*-1\r\n-ERR no\r\n*2\r\n$1\r\nh\r\n$1\r\np\r\n+end\r\n"),
            [
                text("PONG"),
                text("a\r\nbc"),
                Ok(Reply::Nothing),
                Ok(Reply::Nothing),
                Ok(Reply::Error("ERR no".to_owned())),
                Ok(Reply::List(vec!["h".to_owned(), "p".to_owned()])),
                text("end"),
            ]
        );
    }

    #[test]
    fn what_is_not_the_protocol_proves_nothing() {
        for bytes in ["HTTP/1.1 200 OK\r\n", "$99999999999\r\n", "*1\r\n*1\r\n", "+no end", "\r\n", "é\r\n", "$x\r\n"]
        {
            assert!(replies(bytes)[0].is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_replica_counts_only_with_its_link_up() {
        let evidence = |info: &str| replication(&info.replace('\n', "\r\n"));
        assert_eq!(evidence("# Replication\nrole:master\n"), Ok(Evidence::healthy().leading(true)));
        assert_eq!(evidence("role:slave\nmaster_link_status:up\n"), Ok(Evidence::healthy().leading(false)));
        assert_eq!(
            evidence(
                "role:slave\nmaster_link_status:down\nmaster_sync_in_progress:0\nmaster_link_down_since_seconds:7\n"
            ),
            Ok(Evidence::unhealthy("its link to the master is down for 7 s").leading(false))
        );
        assert_eq!(
            evidence("role:slave\nmaster_link_status:down\nmaster_sync_in_progress:1\n"),
            Ok(Evidence::unhealthy("is still taking a full copy from its master").leading(false))
        );
        assert!(evidence("master_link_status:up\n").is_err());
    }

    #[test]
    fn a_refusal_of_the_asker_is_not_one_of_the_server() {
        assert!(refused("NOAUTH Authentication required.").is_err());
        assert!(refused("ERR unknown command 'SENTINEL'").is_err());
        let loading = refused("LOADING Redis is loading the dataset in memory").expect("an answer");
        assert!(matches!(loading.health, Health::Unhealthy(_)));
    }
}
