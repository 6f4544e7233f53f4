//! `keeper`: a member of ClickHouse Keeper or ZooKeeper that its leader counts.
//!
//! `ruok` proves nothing ("imok" comes from a member outside of the quorum, too), and what a member says of itself not
//! enough: the leader knows how many followers have all that was committed (`zk_synced_followers`), though not which.
//! <https://zookeeper.apache.org/doc/current/zookeeperAdmin.html#sc_zkCommands>. Never: a command that changes anything.

use std::io::{ErrorKind, Read, Write};

use super::others::others;
use super::wire::{self, Deadline};
use super::{Evidence, Question, quoted};

/// Keeper's; ZooKeeper's is 2181.
const PORT: u16 = 9181;

/// Larger than any answer to a four-letter word that is asked here.
const TEXT_MAX: u64 = 256 * 1024;

const NOT_SERVING: &str = "not currently serving requests";

/// What a member says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Leader {
        synced: usize,
    },
    Follower,
    Observer,
    Standalone,
    /// It answers, and takes no part in a quorum.
    Outside,
}

pub(super) fn ask(question: &Question) -> Result<Evidence, String> {
    let deadline = Deadline::within(question.timeout);
    let role = role_of(question)?;
    if let Some(id) = question.id {
        let left = deadline.left().map_err(|error| error.to_string())?;
        let said = word(&Question { timeout: left, ..question.clone() }, "conf")?;
        // ZooKeeper says neither while it is outside; Keeper says who it is.
        if role != Role::Outside || !said.contains(NOT_SERVING) {
            is_itself(&said, id)?;
        }
    }
    let members = question.members.len().max(1);
    let mut peers = Vec::new();
    // As soon as it is sure; a member that hangs is waited for only where it matters.
    let mut said = others(question, deadline, role_of);
    loop {
        match judge(role, &peers, members) {
            Ok(evidence) => return Ok(evidence),
            Err(why) => match said.next() {
                Some((_, role)) => peers.push(role),
                None => {
                    let leads = matches!(role, Role::Leader { .. });
                    let last = last_word(role, &peers, members, why);
                    return Ok(last.unwrap_or_else(|why| Evidence::unknown(why).leading(leads)));
                }
            },
        }
    }
}

/// What is sure, whatever the members say that have not been heard yet; `Err`: nothing is.
fn judge(role: Role, peers: &[Role], members: usize) -> Result<Evidence, String> {
    let majority = members / 2 + 1;
    let leaders = peers.iter().chain([&role]).filter(|role| matches!(role, Role::Leader { .. })).count();
    if leaders > 1 {
        return Err(format!("{leaders} members say that they lead"));
    }
    match role {
        Role::Leader { synced } if synced + 1 >= majority => Ok(Evidence::healthy().leading(true)),
        Role::Leader { synced } => Err(format!("leads with {synced} synced followers, of {members} members")),
        Role::Standalone if members == 1 => Ok(Evidence::healthy().leading(true)),
        Role::Standalone => Ok(Evidence::unhealthy(format!("runs alone, not as one of {members}")).leading(false)),
        Role::Observer => Ok(Evidence::unhealthy("is an observer, which has no vote").leading(false)),
        Role::Follower => match leader_of(peers) {
            Some(synced) if synced + 1 >= members => Ok(Evidence::healthy().leading(false)),
            Some(synced) => Err(format!("the leader counts {synced} synced followers, of {members} members")),
            None => Err("follows, and no other member says that it leads".to_owned()),
        },
        Role::Outside => match leader_of(peers) {
            // The others are a quorum without it: so it is its own fault, and costs nobody anything.
            Some(synced) if synced + 1 >= majority => {
                Ok(Evidence::unhealthy("is not serving: it is outside of the quorum").leading(false))
            }
            _ => Err("is not serving, and no quorum of the others is seen".to_owned()),
        },
    }
}

/// Everybody was heard who answers. A follower may be counted although another one is away: if the leader counts at least as
/// many as say that they follow, it counts each of them.
fn last_word(role: Role, peers: &[Role], members: usize, why: String) -> Result<Evidence, String> {
    let followers = peers.iter().chain([&role]).filter(|role| **role == Role::Follower).count();
    let leaders = peers.iter().filter(|role| matches!(role, Role::Leader { .. })).count();
    match leader_of(peers) {
        Some(synced) if role == Role::Follower && leaders == 1 && synced >= followers && synced + 1 > members / 2 => {
            Ok(Evidence::healthy().leading(false))
        }
        Some(synced) if role == Role::Follower && leaders == 1 => {
            Err(format!("the leader counts {synced} synced followers, and {followers} say that they follow"))
        }
        _ => Err(why),
    }
}

fn leader_of(peers: &[Role]) -> Option<usize> {
    peers.iter().find_map(|role| match role {
        Role::Leader { synced } => Some(*synced),
        _ => None,
    })
}

fn role_of(question: &Question) -> Result<Role, String> {
    read_role(&word(question, "mntr")?)
}

fn read_role(text: &str) -> Result<Role, String> {
    if text.contains(NOT_SERVING) {
        return Ok(Role::Outside);
    }
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t')).map(str::trim);
    match field("zk_server_state") {
        Some("leader") => {
            let synced = field("zk_synced_followers").and_then(|count| count.parse().ok());
            Ok(Role::Leader { synced: synced.ok_or("leads, and does not say how many synced followers it has")? })
        }
        Some("follower") => Ok(Role::Follower),
        Some("observer") => Ok(Role::Observer),
        Some("standalone") => Ok(Role::Standalone),
        Some(other) => Err(format!("calls itself {}", quoted(other))),
        None if text.contains("whitelist") => Err(quoted(text)),
        None => Err("does not answer mntr".to_owned()),
    }
}

/// A load balancer, or another member, must not answer in its place.
fn is_itself(conf: &str, id: u64) -> Result<(), String> {
    let field = |name: &str| conf.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    // ZooKeeper's name for it, and Keeper's.
    match field("serverId").or_else(|| field("server_id")).map(str::trim) {
        Some(said) if said.parse() == Ok(id) => Ok(()),
        Some(said) => Err(format!("member {} answers in place of {id}", quoted(said))),
        None => Err("does not answer conf: nobody knows which member it is".to_owned()),
    }
}

/// The whole answer to a four-letter word: the server closes the connection after it.
fn word(question: &Question, word: &str) -> Result<String, String> {
    let mut stream = wire::open(question, question.port.unwrap_or(PORT))?;
    stream.write_all(word.as_bytes()).and_then(|()| stream.flush()).map_err(|error| error.to_string())?;
    read_text(stream)
}

fn read_text(stream: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    match stream.take(TEXT_MAX + 1).read_to_end(&mut bytes) {
        Ok(_) => {}
        // A TLS session that just ends: what came can be judged, for a cut answer lacks what is looked for.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error.to_string()),
    }
    if bytes.len() as u64 > TEXT_MAX {
        return Err(format!("answers with more than {TEXT_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "does not answer with text".to_owned())
}

pub(super) fn of_reply(bytes: &[u8]) -> Result<Evidence, String> {
    judge(read_role(&read_text(bytes)?)?, &[], 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Health;

    const FOLLOWER: &str = "zk_version\t3.9.3\nzk_server_state\tfollower\nzk_outstanding_requests\t0\n";
    const LEADER: &str = "zk_version\tv24.12\nzk_server_state\tleader\nzk_followers\t2\nzk_synced_followers\t2\n";

    fn whole(role: Role, peers: &[Role], members: usize) -> Result<Evidence, String> {
        judge(role, peers, members).or_else(|why| last_word(role, peers, members, why))
    }

    #[test]
    fn the_state_is_read_from_mntr() {
        assert_eq!(read_role(FOLLOWER), Ok(Role::Follower));
        assert_eq!(read_role(LEADER), Ok(Role::Leader { synced: 2 }));
        assert_eq!(read_role("This ZooKeeper instance is not currently serving requests\n"), Ok(Role::Outside));
        assert_eq!(
            read_role("mntr is not executed because it is not in the whitelist.\n"),
            Err("mntr is not executed because it is not in the whitelist.".to_owned())
        );
    }

    #[test]
    fn what_is_not_an_answer_proves_nothing() {
        for text in ["", "imok", "zk_server_state\tleader\n", "zk_server_state\tking\n", "zk_synced_followers\t-1\n"] {
            assert!(read_role(text).is_err(), "{text:?}");
        }
        let many = "zk_server_state\tleader\nzk_synced_followers\t99999999999999999999999999\n";
        assert!(read_role(many).is_err());
        assert!(read_text(&b"zk\xff"[..]).is_err());
        assert!(read_text(std::io::repeat(b'a')).is_err_and(|why| why.contains("more than")));
    }

    /// G41
    #[test]
    fn imok_does_not_prove_that_a_member_is_in_the_quorum() {
        assert_eq!(read_role("imok"), Err("does not answer mntr".to_owned()));
        let leader = Role::Leader { synced: 1 };
        let outside = whole(Role::Outside, &[leader, Role::Follower], 3);
        assert!(
            matches!(outside, Ok(Evidence { health: Health::Unhealthy(_), leads: Some(false), .. })),
            "{outside:?}"
        );
        assert!(whole(Role::Outside, &[Role::Outside], 3).is_err(), "no quorum is seen: it may be anybody's fault");
        assert!(whole(Role::Outside, &[Role::Leader { synced: 0 }], 3).is_err());
    }

    #[test]
    fn a_follower_is_proven_by_the_leaders_count() {
        let healthy = Ok(Evidence::healthy().leading(false));
        assert_eq!(whole(Role::Follower, &[Role::Leader { synced: 2 }], 3), healthy);
        assert_eq!(whole(Role::Follower, &[Role::Leader { synced: 1 }], 3), healthy, "the third one is away");
        let one_lags = whole(Role::Follower, &[Role::Leader { synced: 1 }, Role::Follower], 3);
        assert!(
            one_lags.is_err_and(|why| why.contains("2 say that they follow")),
            "one of two lags, nobody knows which"
        );
        assert!(whole(Role::Follower, &[Role::Follower, Role::Outside], 3).is_err(), "nobody leads");
        assert!(whole(Role::Follower, &[Role::Leader { synced: 1 }], 5).is_err(), "two of five are no quorum");
    }

    #[test]
    fn a_leader_is_proven_by_a_majority_that_is_synced() {
        assert_eq!(whole(Role::Leader { synced: 1 }, &[], 3), Ok(Evidence::healthy().leading(true)));
        assert!(whole(Role::Leader { synced: 0 }, &[Role::Follower], 3).is_err());
        assert!(whole(Role::Leader { synced: 2 }, &[Role::Leader { synced: 2 }], 5).is_err(), "two lead");
    }

    #[test]
    fn who_has_no_vote_is_not_counted() {
        for role in [Role::Observer, Role::Standalone] {
            let evidence = whole(role, &[Role::Leader { synced: 2 }], 3);
            assert!(matches!(evidence, Ok(Evidence { health: Health::Unhealthy(_), .. })), "{evidence:?}");
        }
        assert_eq!(whole(Role::Standalone, &[], 1), Ok(Evidence::healthy().leading(true)));
    }

    #[test]
    fn a_member_is_known_by_its_id() {
        assert_eq!(is_itself("clientPort=2181\nserverId=2\nmembership: \n", 2), Ok(()));
        assert_eq!(is_itself("server_id=2\ntcp_port=9181\n", 2), Ok(()));
        assert_eq!(is_itself("server_id=1\n", 2), Err("member 1 answers in place of 2".to_owned()));
        assert!(is_itself("conf is not executed because it is not in the whitelist.", 2).is_err());
    }
}
