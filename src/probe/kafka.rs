//! `kafka-quorum` and `kafka-isr`: what Kafka's own tools say, asked through the member itself.
//!
//! Both judge the asked member alone (has it caught up, does a partition wait for it), because what is wrong with
//! another member must not make this one look broken. When every other broker is in sync for all that it has, no partition
//! comes below its minimum by this one's going (unless it has no more replicas than its minimum). Never: what another
//! member would say in its place.

use super::command::Run;
use super::wire::{Deadline, authority};
use super::{Evidence, Listed, Question};
use crate::name::NodeName;

const PORT: u16 = 9092;

/// `controller.quorum.fetch.timeout.ms` by default: a voter that is further behind is about to be given up.
const CAUGHT_UP_WITHIN_MS: i64 = 2000;

/// A controller that leads, or has caught up with the leader, in a quorum of which more than half has.
pub(super) fn ask_quorum(question: &Question, run: &Run) -> Result<Evidence, String> {
    let id = own_id(question)?;
    let deadline = Deadline::within(question.timeout);
    judge_quorum(&tool(question, run, deadline, &["describe", "--replication"])?, id, &question.ids)
}

/// A broker that is in sync for every partition it has, while no partition is without a leader.
pub(super) fn ask_isr(question: &Question, run: &Run) -> Result<Evidence, String> {
    let id = own_id(question)?;
    let deadline = Deadline::within(question.timeout);
    // A partition is under its minimum only if it is under-replicated, and then waits for somebody by name.
    let behind = tool(question, run, deadline, &["--describe", "--under-replicated-partitions"])?;
    let leaderless = tool(question, run, deadline, &["--describe", "--unavailable-partitions"])?;
    judge_isr(&behind, &leaderless, id)
}

fn own_id(question: &Question) -> Result<u64, String> {
    question.id.ok_or_else(|| format!("the cluster declares no id for {}", question.member))
}

/// What the tool of the check prints about this; `Err` if it could not find out.
fn tool(question: &Question, run: &Run, deadline: Deadline, asked: &[&str]) -> Result<String, String> {
    let program = question.run.first().ok_or("the check names no tool (run)")?;
    let mut argv = question.run.clone();
    argv.push("--bootstrap-server".to_owned());
    argv.push(authority(&question.address, question.port.unwrap_or(PORT)));
    argv.extend(asked.iter().map(|&word| word.to_owned()));
    let left = deadline.left().map_err(|error| error.to_string())?;
    let ran = run(&argv, question.user.as_deref(), left)?;
    if ran.code != 0 {
        return Err(format!("{program} {} exits with {}", asked.join(" "), ran.code));
    }
    Ok(ran.stdout)
}

struct Replica {
    id: u64,
    lag: i64,
    caught_up_ms: i64,
    status: Status,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Status {
    Leader,
    Follower,
    Observer,
}

/// `ids`: of the members of the group.
fn judge_quorum(table: &str, id: u64, ids: &[(NodeName, u64)]) -> Result<Evidence, String> {
    let replicas =
        read_replication(table).ok_or("kafka-metadata-quorum prints something else than a replication table")?;
    let leader =
        replicas.iter().find(|replica| replica.status == Status::Leader).ok_or("the controllers have no leader")?;
    // The leader's row carries the leader's own now: no clocks of two machines are compared.
    let behind_ms = |replica: &Replica| leader.caught_up_ms.saturating_sub(replica.caught_up_ms);
    let caught_up = |replica: &&Replica| replica.caught_up_ms >= 0 && behind_ms(replica) <= CAUGHT_UP_WITHIN_MS;

    let voters: Vec<&Replica> = replicas.iter().filter(|replica| replica.status != Status::Observer).collect();
    let said = |evidence: Evidence| Ok(evidence.listing(listed(&voters, ids)));
    let Some(own) = replicas.iter().find(|replica| replica.id == id) else {
        return said(Evidence::unhealthy(format!("controller {} does not list {id}", leader.id)));
    };
    let leads = own.status == Status::Leader;
    if own.status == Status::Observer {
        return said(Evidence::unhealthy(format!("{id} is an observer, not a voter")).leading(false));
    }
    let good = voters.iter().copied().filter(caught_up).count();
    if good < voters.len() / 2 + 1 {
        let why = format!("only {good} of {} controllers have caught up", voters.len());
        return said(Evidence::unknown(why).leading(leads));
    }
    if !caught_up(&own) {
        let why = match own.caught_up_ms {
            ..0 => format!("{id} has never caught up, lag {}", own.lag),
            _ => format!("{id} caught up {} ms ago, lag {}", behind_ms(own), own.lag),
        };
        return said(Evidence::unhealthy(why).leading(leads));
    }
    said(Evidence::healthy().leading(leads))
}

/// Who they are by the topology's names; `None` where it numbers nobody.
fn listed(voters: &[&Replica], ids: &[(NodeName, u64)]) -> Option<Listed> {
    if ids.is_empty() {
        return None;
    }
    let mut lists = Listed::default();
    for voter in voters {
        match ids.iter().find(|(_, id)| *id == voter.id) {
            Some((name, _)) => drop(lists.members.insert(name.clone())),
            None => lists.strangers.push(format!("controller {}", voter.id)),
        }
    }
    Some(lists)
}

/// By the names of the columns: releases before 3.9 have no DirectoryId.
fn read_replication(table: &str) -> Option<Vec<Replica>> {
    let mut lines = table.lines().filter(|line| !line.trim().is_empty());
    let header: Vec<&str> = lines.find(|line| line.trim_start().starts_with("NodeId"))?.split_whitespace().collect();
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let cell = |name: &str| cells.get(header.iter().position(|column| *column == name)?).copied();
            if cells.len() != header.len() {
                return None;
            }
            Some(Replica {
                id: cell("NodeId")?.parse().ok()?,
                lag: cell("Lag")?.parse().ok()?,
                caught_up_ms: cell("LastCaughtUpTimestamp")?.parse().ok()?,
                status: match cell("Status")? {
                    "Leader" => Status::Leader,
                    "Follower" => Status::Follower,
                    "Observer" => Status::Observer,
                    _ => return None,
                },
            })
        })
        .collect()
}

fn judge_isr(behind: &str, leaderless: &str, id: u64) -> Result<Evidence, String> {
    let foreign = "kafka-topics prints something else than partitions";
    let behind = read_partitions(behind).ok_or(foreign)?;
    let leaderless = read_partitions(leaderless).ok_or(foreign)?;
    let waiting = behind.iter().chain(&leaderless).filter(|partition| partition.waits_for(id)).count();
    if waiting > 0 {
        let why = format!("{waiting} partitions wait for broker {id} to catch up");
        // Others have it, and lack somebody else: without it they would come below their minimum.
        return match behind.iter().filter(|partition| partition.in_sync.contains(&id)).count() {
            0 => Ok(Evidence::unhealthy(why)),
            needed => Err(format!("{why}, and {needed} others that lack a replica have it")),
        };
    }
    if !leaderless.is_empty() {
        return Err(format!("{} partitions have no leader, none because of broker {id}", leaderless.len()));
    }
    Ok(Evidence::healthy())
}

struct Partition {
    replicas: Vec<u64>,
    in_sync: Vec<u64>,
}

impl Partition {
    fn waits_for(&self, id: u64) -> bool {
        self.replicas.contains(&id) && !self.in_sync.contains(&id)
    }
}

/// Lines of `Topic: t  Partition: 0  Leader: 1  Replicas: 1,2,3  Isr: 1,2 …`, separated by tabs.
fn read_partitions(text: &str) -> Option<Vec<Partition>> {
    let ids = |list: &str| -> Option<Vec<u64>> {
        list.split(',').filter(|id| !id.is_empty()).map(|id| id.trim().parse().ok()).collect()
    };
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let field = |name: &str| line.split('\t').find_map(|field| field.trim().strip_prefix(name)).map(str::trim);
            Some(Partition { replicas: ids(field("Replicas:")?)?, in_sync: ids(field("Isr:")?)? })
        })
        .collect()
}

#[derive(Clone, Copy)]
pub(super) enum Asked {
    Quorum,
    Replicas,
}

/// Of controller or broker 1; the two lists of partitions with an empty line in between.
pub(super) fn of_reply(bytes: &[u8], asked: Asked) -> Result<Evidence, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "does not answer with text".to_owned())?;
    match asked {
        Asked::Quorum => judge_quorum(text, 1, &[]),
        Asked::Replicas => {
            let (behind, leaderless) = text.split_once("\n\n").unwrap_or((text, ""));
            judge_isr(behind, leaderless, 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Health;

    /// The table of Kafka 3.9 with these rows of id, lag, ms behind the leader (`None`: never) and status.
    fn table(rows: &[(u64, i64, Option<i64>, &str)]) -> String {
        const NOW: i64 = 1_732_000_000_000;
        let mut table =
            "NodeId\tDirectoryId           \tLogEndOffset\tLag\tLastFetchTimestamp\tLastCaughtUpTimestamp\tStatus  \t\n"
                .to_owned();
        for (id, lag, behind, status) in rows {
            let caught_up = behind.map_or(-1, |behind| NOW - behind);
            table +=
                &format!("{id}     \tAAAAAAAAAAAAAAAAAAAAAA\t{}\t{lag}  \t{NOW}\t{caught_up}\t{status}\t\n", 900 - lag);
        }
        table
    }

    #[test]
    fn a_controller_is_judged_by_when_it_caught_up_last() {
        let table = table(&[
            (1, 0, Some(0), "Leader"),
            (2, 0, Some(480), "Follower"),
            (3, 250, Some(9000), "Follower"),
            (4, 0, Some(400), "Observer"),
        ]);
        let evidence = |id| judge_quorum(&table, id, &[]).expect("an answer");
        assert_eq!(evidence(1), Evidence::healthy().leading(true));
        assert_eq!(evidence(2), Evidence::healthy().leading(false));
        assert_eq!(evidence(3), Evidence::unhealthy("3 caught up 9000 ms ago, lag 250").leading(false));
        assert_eq!(evidence(4), Evidence::unhealthy("4 is an observer, not a voter").leading(false));
        assert_eq!(evidence(5), Evidence::unhealthy("controller 1 does not list 5"));
    }

    #[test]
    fn a_controller_without_a_majority_beside_it_proves_nothing() {
        let table = table(&[(1, 0, Some(0), "Leader"), (2, 0, Some(9000), "Follower"), (3, 9, None, "Follower")]);
        let few = Evidence::unknown("only 1 of 3 controllers have caught up");
        assert_eq!(judge_quorum(&table, 1, &[]), Ok(few.clone().leading(true)));
        assert_eq!(judge_quorum(&table, 3, &[]), Ok(few.leading(false)), "whoever votes is needed when so few have");
        assert!(judge_quorum(&table, 4, &[]).is_ok_and(|evidence| evidence.health != Health::Healthy), "not listed");
    }

    #[test]
    fn the_controllers_are_listed_by_the_names_of_the_topology() {
        let mut rows = [1, 2, 3, 4].map(|id| (id, 0, Some(0), if id == 1 { "Leader" } else { "Follower" }));
        rows[2] = (3, 9, None, "Observer");
        let ids: Vec<_> = [1, 2, 3].map(|id| (NodeName::new(format!("kafka0{id}")), id)).to_vec();
        let members = ["kafka01", "kafka02"].map(NodeName::from).into();
        let lists = Some(Listed { members, strangers: vec!["controller 4".to_owned()] });
        let healthy = Evidence::healthy().leading(false).listing(lists.clone());
        assert_eq!(judge_quorum(&table(&rows), 2, &ids), Ok(healthy));
        let observer = Evidence::unhealthy("3 is an observer, not a voter").leading(false).listing(lists);
        assert_eq!(judge_quorum(&table(&rows), 3, &ids), Ok(observer), "who has no vote hears who has one");
    }

    #[test]
    fn the_table_of_an_older_kafka_has_no_directories() {
        let table = "NodeId\tLogEndOffset\tLag\tLastFetchTimestamp\tLastCaughtUpTimestamp\tStatus  \t\n\
                     1     \t11\t0\t1732000000000\t1732000000000\tLeader\t\n";
        assert_eq!(judge_quorum(table, 1, &[]), Ok(Evidence::healthy().leading(true)));
    }

    #[test]
    fn text_that_is_no_table_proves_nothing() {
        for text in [
            "",
            "WARN something\n",
            "NodeId\tLag\tStatus\n1\t0\tLeader\n",
            "NodeId Lag LastCaughtUpTimestamp Status\n1 0\n",
        ] {
            assert!(judge_quorum(text, 1, &[]).is_err(), "{text:?}");
        }
    }

    const BEHIND: &str = "\tTopic: orders\tPartition: 0\tLeader: 1\tReplicas: 1,2,3\tIsr: 1,2\tElr: \tLastKnownElr: \n\
                          \tTopic: orders\tPartition: 4\tLeader: 2\tReplicas: 2,3,1\tIsr: 2,1\tElr: \tLastKnownElr: \n";

    #[test]
    fn partitions_wait_for_a_broker_by_name() {
        assert_eq!(judge_isr("", "", 3), Ok(Evidence::healthy()));
        assert_eq!(judge_isr(BEHIND, "", 3), Ok(Evidence::unhealthy("2 partitions wait for broker 3 to catch up")));
        assert_eq!(judge_isr(BEHIND, "", 1), Ok(Evidence::healthy()));
        assert_eq!(judge_isr(BEHIND, "", 9), Ok(Evidence::healthy()));
    }

    #[test]
    fn a_broker_that_others_count_on_is_not_free_to_go() {
        let both = format!("{BEHIND}\tTopic: orders\tPartition: 7\tLeader: 3\tReplicas: 3,1,2\tIsr: 3,2\tElr: \n");
        let evidence = judge_isr(&both, "", 3);
        assert_eq!(
            evidence,
            Err("2 partitions wait for broker 3 to catch up, and 1 others that lack a replica have it".to_owned())
        );
    }

    #[test]
    fn a_partition_without_a_leader_leaves_nobody_proven() {
        let leaderless = "\tTopic: one\tPartition: 0\tLeader: none\tReplicas: 3\tIsr: 3\n";
        assert_eq!(
            judge_isr("", leaderless, 1),
            Err("1 partitions have no leader, none because of broker 1".to_owned())
        );
        assert!(judge_isr("Error while executing topic command\n", "", 1).is_err());
    }

    #[test]
    fn the_tools_get_the_members_own_address_and_no_more_than_the_time_that_is_left() {
        use std::time::Duration;
        let question = crate::probe::recorder::tests::question(crate::fleet::schema::CheckKind::KafkaIsr, "kafka01");
        let question = Question {
            id: Some(1),
            run: vec!["kafka-topics.sh".to_owned(), "--command-config".to_owned(), "admin.properties".to_owned()],
            ..question
        };
        let run: Box<Run> = Box::new(|argv, _, within| {
            assert!(within <= Duration::from_secs(5));
            assert!(argv.join(" ").starts_with(
                "kafka-topics.sh --command-config admin.properties --bootstrap-server 10.0.0.1:9092 --describe --un"
            ));
            Ok(super::super::Ran { code: 0, stdout: String::new() })
        });
        assert_eq!(ask_isr(&question, &*run), Ok(Evidence::healthy()));
        let run: Box<Run> = Box::new(|_, _, _| Ok(super::super::Ran { code: 1, stdout: String::new() }));
        let evidence = ask_isr(&question, &*run);
        assert_eq!(evidence, Err("kafka-topics.sh --describe --under-replicated-partitions exits with 1".to_owned()));
        assert!(!matches!(evidence, Ok(Evidence { health: Health::Healthy, .. })));
    }
}
