//! `patroni`: a member of a PostgreSQL cluster, by its own state and by what its Patroni reads of the whole cluster.
//!
//! `/patroni` is what the member itself knows now, `/cluster` what it reads in Patroni's store, where a member that hangs
//! looks well for up to a `ttl`; so each is asked at its own address, and those who answer must agree on leader and
//! timeline. <https://patroni.readthedocs.io/en/latest/rest_api.html>. Never: a request other than GET.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::http;
use super::others::others;
use super::wire::Deadline;
use super::{Evidence, Health, Question, quoted};

const PORT: u16 = 8008;

/// Bytes of WAL that a standby may lack: what Patroni's `/replica?lag=` is usually asked with. Positions are up to a
/// `loop_wait` old, so less would blame a busy primary.
const LAG_MAX: u64 = 16 * 1024 * 1024;

/// A cluster of a thousand members is smaller.
const BODY_MAX: u64 = 1024 * 1024;

/// `/cluster`
#[derive(Deserialize, Debug)]
struct Cluster {
    members: Vec<Row>,
    #[serde(default)]
    scope: Option<String>,
    #[serde(default)]
    pause: bool,
}

#[derive(Deserialize, Debug)]
struct Row {
    name: String,
    role: String,
    state: String,
    #[serde(default)]
    timeline: Option<u64>,
    /// Bytes, or the word `unknown`; the leader has none.
    #[serde(default)]
    lag: serde_json::Value,
}

impl Row {
    fn leads(&self) -> bool {
        matches!(self.role.as_str(), "leader" | "standby_leader")
    }

    fn is_synchronous(&self) -> bool {
        matches!(self.role.as_str(), "sync_standby" | "quorum_standby")
    }

    /// Why it could not take over from this leader.
    fn lacks(&self, leader: &Row) -> Option<String> {
        if !matches!(self.state.as_str(), "running" | "streaming") {
            return Some(format!("is {}", quoted(&self.state)));
        }
        if self.timeline != leader.timeline {
            let said = |timeline: Option<u64>| timeline.map_or("unknown".to_owned(), |number| number.to_string());
            return Some(format!("is on timeline {}, the leader on {}", said(self.timeline), said(leader.timeline)));
        }
        match self.lag.as_u64() {
            Some(..=LAG_MAX) => None,
            Some(lag) => Some(format!("lacks {} MiB of the leader's WAL", lag / 1024 / 1024)),
            None => Some("does not say how far it is behind the leader".to_owned()),
        }
    }
}

/// `/patroni`
#[derive(Deserialize, Debug)]
struct Own {
    state: String,
    role: String,
    #[serde(default)]
    pause: bool,
    patroni: Program,
}

#[derive(Deserialize, Debug)]
struct Program {
    scope: String,
    /// Since Patroni 3.2.
    #[serde(default)]
    name: Option<String>,
}

/// `/config`
#[derive(Deserialize, Default, Debug)]
struct Config {
    #[serde(default)]
    synchronous_mode: serde_json::Value,
    #[serde(default)]
    synchronous_node_count: Option<usize>,
}

impl Config {
    fn is_synchronous(&self) -> bool {
        match &self.synchronous_mode {
            serde_json::Value::Bool(on) => *on,
            serde_json::Value::String(mode) => matches!(mode.to_lowercase().as_str(), "quorum" | "on" | "true" | "yes"),
            _ => false,
        }
    }
}

/// What the members must agree on.
#[derive(Clone, PartialEq, Eq, Debug)]
struct View {
    scope: Option<String>,
    leader: String,
    timeline: Option<u64>,
}

pub(super) fn ask(question: &Question) -> Result<Evidence, String> {
    let deadline = Deadline::within(question.timeout);
    let own: Own = said(question, "/patroni", deadline)?;
    let cluster: Cluster = said(question, "/cluster", deadline)?;
    let config: Config = said(question, "/config", deadline)?;
    let view = view(&cluster)?;
    let evidence = judge(question.member.as_str(), &own, &cluster, &config)?;
    if matches!(evidence.health, Health::Unknown(_)) {
        return Ok(evidence);
    }

    let members = question.members.len().max(1);
    let (mut agree, mut answers) = (1, 1);
    for (_, other) in others(question, deadline, view_of) {
        answers += 1;
        agree += usize::from(other == view);
        if agree > members / 2 {
            break;
        }
    }
    if agree > answers / 2 {
        return Ok(evidence);
    }
    let leader = &view.leader;
    let why = format!("the members do not agree on leader and timeline: {agree} of {answers} that answer say {leader}");
    Ok(Evidence { leads: evidence.leads, ..Evidence::unknown(why) })
}

fn view_of(question: &Question) -> Result<View, String> {
    view(&said(question, "/cluster", Deadline::within(question.timeout))?)
}

fn said<T: DeserializeOwned>(question: &Question, path: &str, deadline: Deadline) -> Result<T, String> {
    read(path, &http::body(question, PORT, path, deadline, BODY_MAX)?)
}

fn read<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("{path} is not as Patroni's: {}", quoted(&error.to_string())))
}

fn leader(cluster: &Cluster) -> Result<&Row, String> {
    let mut leaders = cluster.members.iter().filter(|row| row.leads());
    match (leaders.next(), leaders.count()) {
        (Some(leader), 0) => Ok(leader),
        (None, _) => Err("the cluster has no leader".to_owned()),
        (Some(_), more) => Err(format!("{} members say that they lead", more + 1)),
    }
}

fn view(cluster: &Cluster) -> Result<View, String> {
    let leader = leader(cluster)?;
    Ok(View { scope: cluster.scope.clone(), leader: quoted(&leader.name), timeline: leader.timeline })
}

/// What the member proves, before the others are heard.
fn judge(member: &str, own: &Own, cluster: &Cluster, config: &Config) -> Result<Evidence, String> {
    // A load balancer, or another member, must not answer in its place.
    match own.patroni.name.as_deref() {
        Some(name) if name == member => {}
        Some(name) => return Err(format!("member {} answers in its place", quoted(name))),
        None => return Err("does not say its name: Patroni 3.2 and later do".to_owned()),
    }
    if cluster.scope.as_deref().is_some_and(|scope| scope != own.patroni.scope) {
        return Err("speaks of two clusters".to_owned());
    }
    let leader = leader(cluster)?;
    if own.pause || cluster.pause {
        let why = "is paused: somebody has switched Patroni's own failover off";
        return Ok(Evidence::unknown(why).leading(leader.name == member));
    }
    let standbys = || cluster.members.iter().filter(|row| !row.leads());
    let fit = |row: &&Row| row.lacks(leader).is_none();
    let Some(row) = cluster.members.iter().find(|row| row.name == member) else {
        return Ok(Evidence::unhealthy("the cluster does not list it").leading(false));
    };
    if row.leads() {
        let leads = matches!(own.role.as_str(), "master" | "primary" | "standby_leader");
        if !leads || own.state != "running" || row.state != "running" {
            let (role, state) = (quoted(&own.role), quoted(&own.state));
            let why = format!("is the leader by the cluster, and by itself {role}, {state}");
            return Ok(Evidence::unknown(why).leading(true));
        }
        let synchronous = standbys().filter(|row| row.is_synchronous()).filter(fit).count();
        let wanted = config.synchronous_node_count.unwrap_or(1).min(standbys().count()).max(1);
        if config.is_synchronous() && cluster.members.len() > 1 && synchronous < wanted {
            let why = format!("has {synchronous} of {wanted} synchronous standbys");
            return Ok(Evidence::unknown(why).leading(true));
        }
        return Ok(Evidence::healthy().leading(true));
    }
    let lacks = match own.state.as_str() {
        "running" => row.lacks(leader),
        state => Some(format!("its PostgreSQL is {}", quoted(state))),
    };
    let Some(lacks) = lacks else { return Ok(Evidence::healthy().leading(false)) };
    // The leader waits for it, or it and the others that are fit are too few.
    let others = 1 + standbys().filter(|other| other.name != row.name).filter(fit).count();
    if row.is_synchronous() || others <= cluster.members.len() / 2 {
        return Ok(Evidence::unknown(lacks).leading(false));
    }
    Ok(Evidence::unhealthy(lacks).leading(false))
}

/// `/patroni`, `/cluster` and `/config`, one after the other.
pub(super) fn of_reply(bytes: &[u8]) -> Result<Evidence, String> {
    let mut documents = serde_json::Deserializer::from_slice(bytes).into_iter::<serde_json::Value>();
    let mut next = |path: &str| match documents.next() {
        Some(Ok(document)) => Ok(document.to_string().into_bytes()),
        _ => Err(format!("{path} is not as Patroni's")),
    };
    let own: Own = read("/patroni", &next("/patroni")?)?;
    let cluster: Cluster = read("/cluster", &next("/cluster")?)?;
    let config: Config = read("/config", &next("/config")?)?;
    let member = own.patroni.name.clone().unwrap_or_default();
    judge(&member, &own, &cluster, &config)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Patroni 3.3.2 answers, shortened; `pg03`'s row can be another.
    fn cluster(third: &str) -> Cluster {
        let text = format!(
            r#"{{"members": [
                {{"name": "pg01", "role": "leader", "state": "running", "api_url": "http://10.0.0.1:8008/patroni",
                  "host": "10.0.0.1", "port": 5432, "timeline": 3}},
                {{"name": "pg02", "role": "sync_standby", "state": "streaming", "timeline": 3, "lag": 0}},
                {third}], "scope": "main"}}"#
        );
        read("/cluster", text.as_bytes()).expect("a cluster")
    }

    const WELL: &str = r#"{"name": "pg03", "role": "replica", "state": "streaming", "timeline": 3, "lag": 4096}"#;

    fn own(name: &str, role: &str, state: &str) -> Own {
        let text = format!(
            r#"{{"state": "{state}", "role": "{role}", "server_version": 150018, "timeline": 3,
                 "patroni": {{"version": "3.3.2", "scope": "main", "name": "{name}"}}}}"#
        );
        read("/patroni", text.as_bytes()).expect("a member")
    }

    fn config(text: &str) -> Config {
        read("/config", text.as_bytes()).expect("a configuration")
    }

    fn asynchronous() -> Config {
        config(r#"{"ttl": 20, "loop_wait": 5}"#)
    }

    fn is_unknown(answer: &Result<Evidence, String>, word: &str) -> bool {
        matches!(answer, Ok(Evidence { health: Health::Unknown(why), .. }) if why.contains(word))
    }

    fn third(row: &str) -> Result<Evidence, String> {
        judge("pg03", &own("pg03", "replica", "running"), &cluster(row), &asynchronous())
    }

    #[test]
    fn leader_and_standbys_are_told_apart() {
        let all = cluster(WELL);
        let leader = judge("pg01", &own("pg01", "primary", "running"), &all, &asynchronous());
        assert_eq!(leader, Ok(Evidence::healthy().leading(true)));
        assert_eq!(third(WELL), Ok(Evidence::healthy().leading(false)));
        assert_eq!(
            view(&all),
            Ok(View { scope: Some("main".to_owned()), leader: "pg01".to_owned(), timeline: Some(3) })
        );
    }

    #[test]
    fn a_standby_must_stream_on_the_leaders_timeline_and_be_near() {
        for (row, word) in [
            (WELL.replace("streaming", "starting"), "is starting"),
            (WELL.replace(r#""timeline": 3"#, r#""timeline": 2"#), "timeline 2, the leader on 3"),
            (WELL.replace("4096", "17825792"), "lacks 17 MiB"),
            (WELL.replace("4096", r#""unknown""#), "how far"),
        ] {
            let evidence = third(&row).expect("an answer");
            assert!(matches!(&evidence.health, Health::Unhealthy(why) if why.contains(word)), "{evidence:?}");
        }
        assert_eq!(
            third(&WELL.replace("pg03", "pg04")),
            Ok(Evidence::unhealthy("the cluster does not list it").leading(false))
        );
        let stopped = judge("pg03", &own("pg03", "replica", "stopped"), &cluster(WELL), &asynchronous());
        assert_eq!(stopped, Ok(Evidence::unhealthy("its PostgreSQL is stopped").leading(false)));
    }

    #[test]
    fn a_standby_that_the_leader_waits_for_is_never_free_to_go() {
        let behind =
            r#"{"name": "pg03", "role": "sync_standby", "state": "streaming", "timeline": 3, "lag": 99999999}"#;
        assert!(is_unknown(&third(behind), "MiB"), "it is synchronous");
        let alone = r#"{"members": [
            {"name": "pg01", "role": "leader", "state": "running", "timeline": 3},
            {"name": "pg03", "role": "replica", "state": "streaming", "timeline": 3, "lag": 99999999}]}"#;
        let alone: Cluster = read("/cluster", alone.as_bytes()).expect("a cluster");
        let last = judge("pg03", &own("pg03", "replica", "running"), &alone, &asynchronous());
        assert!(is_unknown(&last, "MiB"), "it is the last");
    }

    #[test]
    fn a_leader_needs_the_synchronous_standbys_that_are_asked_for() {
        let leader = |text: &str| judge("pg01", &own("pg01", "primary", "running"), &cluster(WELL), &config(text));
        assert_eq!(leader(r#"{"synchronous_mode": true}"#), Ok(Evidence::healthy().leading(true)));
        assert_eq!(
            leader(r#"{"synchronous_mode": "quorum", "synchronous_node_count": 2}"#),
            Ok(Evidence::unknown("has 1 of 2 synchronous standbys").leading(true))
        );
        assert!(leader(r#"{"synchronous_mode": false, "synchronous_node_count": 2}"#).is_ok());
    }

    /// G40
    #[test]
    fn a_paused_cluster_proves_nothing() {
        let paused = Cluster { pause: true, ..cluster(WELL) };
        let evidence = judge("pg03", &own("pg03", "replica", "running"), &paused, &asynchronous());
        assert!(is_unknown(&evidence, "paused"));
        let knows = Own { pause: true, ..own("pg03", "replica", "running") };
        assert!(is_unknown(&judge("pg03", &knows, &cluster(WELL), &asynchronous()), "paused"));
        let leader =
            judge("pg01", &Own { pause: true, ..own("pg01", "primary", "running") }, &cluster(WELL), &asynchronous());
        assert!(leader.is_ok_and(|evidence| evidence.leads == Some(true)), "it hands over, if it goes at all");
    }

    #[test]
    fn somebody_else_in_its_place_or_two_leaders_prove_nothing() {
        let other = judge("pg03", &own("pg02", "replica", "running"), &cluster(WELL), &asynchronous());
        assert_eq!(other, Err("member pg02 answers in its place".to_owned()));
        let two = third(&WELL.replace("replica", "leader"));
        assert_eq!(two, Err("2 members say that they lead".to_owned()));
        let demoted = judge("pg01", &own("pg01", "replica", "running"), &cluster(WELL), &asynchronous());
        assert!(is_unknown(&demoted, "by itself replica"));
        assert!(
            view(&read("/cluster", br#"{"members": []}"#).expect("json")).is_err_and(|why| why.contains("no leader"))
        );
    }

    #[test]
    fn what_is_not_patroni_proves_nothing() {
        for text in
            ["", "{}", "[]", r#"{"members": [{}]}"#, r#"{"members": 7}"#, "\u{0}", r#"{"members": [{"name": 1}]}"#]
        {
            assert!(read::<Cluster>("/cluster", text.as_bytes()).is_err(), "{text:?}");
        }
        let odd = r#"{"name": "pg03", "role": "", "state": "a\nb", "timeline": null, "lag": -1}"#;
        assert!(third(odd).is_ok_and(|evidence| evidence.health == Health::Unhealthy("is a b".to_owned())));
    }
}
