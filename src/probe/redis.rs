//! `redis` and `sentinel`: what the server says of its replication, and what the sentinel says of its quorum.
//!
//! Never: a command that changes anything.

use std::io::{BufRead, BufReader, Read, Write};

use super::others::others;
use super::wire::{self, Channel, Deadline};
use super::{Evidence, Question, quoted};
use crate::name::NodeName;

const SERVER_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// The one master, or a replica whose link to it is up. A replica that fell away goes on answering clients, so PING alone
/// proves nothing.
pub(super) fn ask_server(question: &Question) -> Result<Evidence, String> {
    let deadline = Deadline::within(question.timeout);
    let role = role_of(question)?;
    if role == Role::Replica {
        return Ok(Evidence::healthy().leading(false));
    }
    let others: Vec<(NodeName, Role)> = others(question, deadline, role_of).collect();
    let master = others.iter().find(|(_, other)| *other == Role::Master).map(|(name, _)| name);
    let good = others.iter().filter(|(_, other)| matches!(other, Role::Master | Role::Replica)).count();
    match (role, master) {
        (Role::Lost(why), Some(_)) if good > question.members.len() / 2 => Ok(Evidence::unhealthy(why).leading(false)),
        // Nobody to follow, or few others that do: it may be the next master.
        (Role::Lost(why), _) => Ok(Evidence::unknown(format!("{why}; {good} other members serve")).leading(false)),
        (_, Some(other)) => Ok(Evidence::unknown(format!("is a master, and so is {other}")).leading(true)),
        (_, None) => Ok(Evidence::healthy().leading(true)),
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Role {
    Master,
    Replica,
    /// Not serving, or a replica without its master: why.
    Lost(String),
}

fn role_of(question: &Question) -> Result<Role, String> {
    let mut client = Client::open(question, SERVER_PORT)?;
    match client.call(&["PING"])? {
        Reply::Text(pong) if pong == "PONG" => {}
        Reply::Error(error) if is_loading(&error) => return Ok(Role::Lost(quoted(&error))),
        Reply::Error(error) => return Err(refused(&error)),
        _ => return Err("does not speak the Redis protocol".to_owned()),
    }
    match client.call(&["INFO", "replication"])? {
        Reply::Text(info) => read_role(&info),
        Reply::Error(error) => Err(refused(&error)),
        _ => Err("INFO replication is not answered by text".to_owned()),
    }
}

/// Whether enough sentinels agree, on the master and to fail it over; the master's name is the check's path.
pub(super) fn ask_sentinel(question: &Question) -> Result<Evidence, String> {
    let deadline = Deadline::within(question.timeout);
    let master = question.path.as_deref().ok_or("the check names no master (path)")?;
    let mut client = Client::open(question, SENTINEL_PORT)?;
    let Some(address) = watched(&mut client, master)? else {
        return Ok(Evidence::unhealthy(format!("watches no master named {master}")));
    };
    match client.call(&["SENTINEL", "CKQUORUM", master])? {
        Reply::Text(said) if said.starts_with("OK ") => {}
        // The others are away: this one is needed all the more.
        Reply::Error(error) => return Err(refused(&error)),
        _ => return Err("does not answer like a sentinel".to_owned()),
    }
    let members = question.members.len().max(1);
    let mut agree = 1;
    let mut said = others(question, deadline, address_of);
    while agree <= members / 2 {
        let Some((_, other)) = said.next() else {
            return Err(format!(
                "only {agree} of {members} sentinels say that {} is the master",
                quoted(&address.join(":"))
            ));
        };
        agree += usize::from(other.as_ref() == Some(&address));
    }
    Ok(Evidence::healthy())
}

fn address_of(question: &Question) -> Result<Option<Vec<String>>, String> {
    let master = question.path.as_deref().ok_or("the check names no master (path)")?;
    watched(&mut Client::open(question, SENTINEL_PORT)?, master)
}

/// Host and port of the master of this name, if it is watched.
fn watched(sentinel: &mut Client, master: &str) -> Result<Option<Vec<String>>, String> {
    match sentinel.call(&["SENTINEL", "get-master-addr-by-name", master])? {
        Reply::List(address) if address.len() == 2 => Ok(Some(address)),
        Reply::Nothing => Ok(None),
        Reply::Error(error) => Err(refused(&error)),
        _ => Err("does not answer like a sentinel".to_owned()),
    }
}

fn read_role(info: &str) -> Result<Role, String> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    match (field("role"), field("master_link_status")) {
        (Some("master"), _) => Ok(Role::Master),
        (Some("slave"), Some("up")) => Ok(Role::Replica),
        (Some("slave"), _) => {
            Ok(Role::Lost(match (field("master_sync_in_progress"), field("master_link_down_since_seconds")) {
                (Some("1"), _) => "is still taking a full copy from its master".to_owned(),
                (_, Some(seconds)) if seconds != "-1" => {
                    format!("its link to the master is down for {} s", quoted(seconds))
                }
                _ => "its link to the master is down".to_owned(),
            }))
        }
        _ => Err("INFO replication names no role".to_owned()),
    }
}

fn is_loading(error: &str) -> bool {
    error.split_whitespace().next() == Some("LOADING")
}

/// Redis refuses for its own state (NOQUORUM, BUSY …), or because of who asks what, which says nothing of it.
fn refused(error: &str) -> String {
    let said = quoted(error);
    match error.split_whitespace().next() {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "ERR") => format!("does not let us ask: {said}"),
        _ => said,
    }
}

/// The word that an error begins with, and no more: what does not know AUTH repeats its arguments.
fn code_of(error: &str) -> &str {
    let first = error.split_whitespace().next().unwrap_or_default();
    if first.bytes().all(|byte| byte.is_ascii_uppercase()) { first } else { "an error" }
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
                return Err(format!("does not let us in: {}", code_of(&error)));
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

pub(super) fn of_reply(mut bytes: &[u8]) -> Result<Evidence, String> {
    match read_reply(&mut bytes)? {
        Reply::Text(info) => match read_role(&info)? {
            Role::Lost(why) => Ok(Evidence::unhealthy(why).leading(false)),
            role => Ok(Evidence::healthy().leading(role == Role::Master)),
        },
        Reply::Error(error) => Err(refused(&error)),
        _ => Err("INFO replication is not answered by text".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_is_told_without_what_the_server_repeats() {
        assert_eq!(code_of("WRONGPASS invalid username-password pair"), "WRONGPASS");
        assert_eq!(code_of("ERR unknown command 'AUTH', with args beginning with: 'hunter2'"), "ERR");
        assert_eq!(code_of("hunter2 is wrong"), "an error");
    }

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
        let role = |info: &str| read_role(&info.replace('\n', "\r\n"));
        assert_eq!(role("# Replication\nrole:master\n"), Ok(Role::Master));
        assert_eq!(role("role:slave\nmaster_link_status:up\n"), Ok(Role::Replica));
        assert_eq!(
            role("role:slave\nmaster_link_status:down\nmaster_sync_in_progress:0\nmaster_link_down_since_seconds:7\n"),
            Ok(Role::Lost("its link to the master is down for 7 s".to_owned()))
        );
        assert_eq!(
            role("role:slave\nmaster_link_status:down\nmaster_sync_in_progress:1\n"),
            Ok(Role::Lost("is still taking a full copy from its master".to_owned()))
        );
        assert!(role("master_link_status:up\n").is_err());
    }

    #[test]
    fn a_refusal_of_the_asker_is_not_one_of_the_server() {
        assert!(refused("NOAUTH Authentication required.").starts_with("does not let us ask"));
        assert!(refused("ERR unknown command 'SENTINEL'").starts_with("does not let us ask"));
        assert_eq!(refused("NOQUORUM 1 usable Sentinels."), "NOQUORUM 1 usable Sentinels.");
        assert!(is_loading("LOADING Redis is loading the dataset in memory") && !is_loading("BUSY"));
    }
}
