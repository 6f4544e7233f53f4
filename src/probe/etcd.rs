//! `etcd`: a member that proves, through its own endpoint, that it takes part in the quorum of its own cluster.
//!
//! A member that is cut off still answers status and serializable reads; so the evidence is a linearizable read, and
//! more than half of those that have a vote must say the same of cluster, leader and term. Never: a write, not even
//! the listing of alarms (etcd proposes it to the quorum; the status names them too).

use std::pin::pin;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, Identity, Member, StatusResponse, TlsOptions,
};
use tokio::task::JoinSet;

use super::wire::{self, Deadline, authority};
use super::{Evidence, Health, Listed, Question, quoted};
use crate::name::NodeName;

const PORT: u16 = 2379;

/// Committed entries that a healthy member may have yet to apply.
const UNAPPLIED_MAX: u64 = 100;

/// gRPC's PERMISSION_DENIED.
const PERMISSION_DENIED: i32 = 7;

/// What a member says of its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct View {
    cluster: u64,
    leader: u64,
    term: u64,
}

pub(super) fn ask(question: &Question) -> Result<Evidence, String> {
    let deadline = Deadline::within(question.timeout);
    // The client goes on trying an address where nobody listens until its time is over.
    let port = question.port.unwrap_or(PORT);
    wire::connect(&question.address, port, deadline)
        .map_err(|error| format!("{}: {error}", authority(&question.address, port)))?;
    let options = connect_options(question)?;
    let left = deadline.left().map_err(|error| error.to_string())?;
    // On a thread of its own, because whoever asks may be inside a runtime already.
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| format!("cannot start a runtime: {error}"))?;
                let evidence = runtime.block_on(evidence(question, options, left));
                runtime.shutdown_background();
                evidence
            })
            .join()
            .unwrap_or_else(|_| Err("the probe itself failed: a bug".to_owned()))
    })
}

async fn evidence(question: &Question, options: ConnectOptions, within: Duration) -> Result<Evidence, String> {
    let mut over = pin!(tokio::time::sleep(within));
    let mut peers = JoinSet::new();
    for (name, address) in &question.members {
        if *name != question.member {
            let (name, view) = (name.clone(), view_of(url(question, address), options.clone()));
            peers.spawn(async move { Some((name, view.await?)) });
        }
    }

    let (view, evidence) = tokio::select! {
        asked = ask_member(question, options) => asked?,
        () = &mut over => return Err(format!("no answer within {} ms", question.timeout.as_millis())),
    };
    if evidence.health != Health::Healthy {
        return Ok(evidence);
    }
    // Of those that come and go only who is listed; of the others all: a member of another cluster lists itself.
    let lists = evidence.lists.clone().unwrap_or_default();
    let votes = |name: &NodeName| lists.members.contains(name) || !question.changing.contains(name);
    let others = question.members.iter().filter(|(name, _)| *name != question.member && votes(name)).count();
    let members = 1 + others + lists.strangers.len();
    let mut views = vec![view];
    loop {
        if view.leader != 0 && agreeing(&views) > members / 2 {
            return Ok(evidence);
        }
        tokio::select! {
            said = peers.join_next() => match said {
                Some(Ok(Some((name, view)))) if votes(&name) => views.push(view),
                Some(_) => {}
                None => break,
            },
            () = &mut over => break,
        }
    }
    let answer = if view.leader == 0 { leaderless(&views, members) } else { disagreement(&views, members) };
    Ok(answer.unwrap_or_else(|why| Evidence { health: Health::Unknown(why), ..evidence.clone() }))
}

/// The asked member, the first, has no leader: its own fault if more than half of the members have one together.
fn leaderless(views: &[View], members: usize) -> Result<Evidence, String> {
    let together = |view: &View| views.iter().filter(|other| *other == view).count() > members / 2;
    if views.iter().any(|view| view.leader != 0 && view.cluster == views[0].cluster && together(view)) {
        return Ok(Evidence::unhealthy("has no leader, and most members have one").leading(false));
    }
    // An election, or the quorum is gone: whoever still votes is needed.
    Err("has no leader, nor have most members".to_owned())
}

/// How many say the same as the asked member, which is the first.
fn agreeing(views: &[View]) -> usize {
    views.iter().filter(|view| **view == views[0]).count()
}

/// Too few agree with the asked member: what that means.
fn disagreement(views: &[View], members: usize) -> Result<Evidence, String> {
    let own = views[0].cluster;
    let majority = members / 2 + 1;
    let alike = views.iter().filter(|view| view.cluster == own).count();
    let other = |view: &&View| view.cluster != own;
    if let Some(foreign) = views.iter().find(other)
        && views.iter().filter(|view| view.cluster == foreign.cluster).count() >= majority
    {
        return Ok(Evidence::unhealthy(format!(
            "belongs to cluster {own:x}, most members belong to {:x}",
            foreign.cluster
        )));
    }
    Err(match alike {
        alike if alike < majority => format!("only {alike} of {members} members answer for cluster {own:x}"),
        _ => format!("the members do not agree on leader and term: {} of {members} do", agreeing(views)),
    })
}

/// What the asked member proves by itself; without a leader that is nothing yet.
async fn ask_member(question: &Question, options: ConnectOptions) -> Result<(View, Evidence), String> {
    let mut client = Client::connect([url(question, &question.address)], Some(options)).await.map_err(words)?;
    let status = client.status().await.map_err(words)?;
    let (view, id) = read_status(&status).ok_or("its status has no header")?;
    let leads = view.leader == id;
    if status.is_learner() {
        return Ok((view, Evidence::unhealthy("is a learner, which has no vote").leading(leads)));
    }
    if view.leader == 0 {
        // The others tell whose fault that is.
        return Ok((view, Evidence::healthy().leading(false)));
    }
    let listed = client.member_list().await;
    let lists = listed.as_ref().ok().and_then(|listed| voters(listed.members(), question));
    let unknown = |why: String| Ok((view, Evidence::unknown(why).leading(leads).listing(lists.clone())));
    // An alarm is one of the whole cluster, and a member that lags still votes: neither makes it one to be spared.
    if !status.errors().is_empty() {
        return unknown(quoted(&status.errors().join(", ")));
    }
    let unapplied = status.raft_index().saturating_sub(status.raft_applied_index());
    if unapplied > UNAPPLIED_MAX {
        return unknown(format!("has {unapplied} committed entries yet to apply"));
    }
    match client.get("converger", Some(GetOptions::new().with_limit(1).with_keys_only())).await {
        Ok(_) => {}
        // Permissions are looked at after the quorum has confirmed the read (etcd 3.5, EtcdServer.Range).
        Err(Error::GRpcStatus(status)) if status.code() as i32 == PERMISSION_DENIED => {}
        Err(error) => return Err(words(error)),
    }
    // A load balancer, or another member, must not answer in its place.
    let listed = listed.map_err(words)?;
    let answered = listed.members().iter().find(|member| member.id() == id).ok_or("is no member of its own cluster")?;
    if !is_at(answered, question.member.as_str(), &question.address) {
        return Err(format!("member {} answers in its place", quoted(answered.name())));
    }
    Ok((view, Evidence::healthy().leading(leads).listing(lists)))
}

/// Who of the listed has a vote, by the question's names; `None` where it names nobody.
fn voters(listed: &[Member], question: &Question) -> Option<Listed> {
    if question.members.is_empty() {
        return None;
    }
    let mut lists = Listed::default();
    for voter in listed.iter().filter(|member| !member.is_learner()) {
        match question.members.iter().find(|(name, address)| is_at(voter, name.as_str(), address)) {
            Some((name, _)) => drop(lists.members.insert(name.clone())),
            // One that never started has no name yet.
            None if voter.name().is_empty() => {
                lists.strangers.push(quoted(voter.peer_urls().first().map_or("", String::as_str)));
            }
            None => lists.strangers.push(quoted(voter.name())),
        }
    }
    Some(lists)
}

/// Whether the listed member is the one of this name, or at this address.
fn is_at(listed: &Member, name: &str, address: &str) -> bool {
    let mut urls = listed.client_urls().iter().chain(listed.peer_urls());
    listed.name() == name || urls.any(|url| host(url) == address)
}

/// What another member says; nothing if it does not.
async fn view_of(url: String, options: ConnectOptions) -> Option<View> {
    let mut client = Client::connect([url], Some(options)).await.ok()?;
    let (view, _) = read_status(&client.status().await.ok()?)?;
    Some(view)
}

/// The member's view and its own id.
fn read_status(status: &StatusResponse) -> Option<(View, u64)> {
    let header = status.header()?;
    let view = View { cluster: header.cluster_id(), leader: status.leader(), term: status.raft_term() };
    Some((view, header.member_id()))
}

fn url(question: &Question, address: &str) -> String {
    let scheme = if question.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", authority(address, question.port.unwrap_or(PORT)))
}

fn connect_options(question: &Question) -> Result<ConnectOptions, String> {
    let read = |path: &str| std::fs::read(path).map_err(|error| format!("{path}: {error}"));
    let mut options = ConnectOptions::new();
    if let Some(tls) = &question.tls {
        let mut client = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
        if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
            client = client.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        options = options.with_tls(client);
    }
    if let (Some(user), Some(secret)) = (&question.user, &question.secret) {
        options = options.with_user(user.as_str(), secret.as_str());
    }
    Ok(options)
}

/// The host of `scheme://host:port`.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn words(error: Error) -> String {
    match error {
        Error::GRpcStatus(status) => quoted(status.message()),
        error => quoted(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: View = View { cluster: 0xa, leader: 1, term: 7 };
    const ELSEWHERE: View = View { cluster: 0xb, leader: 9, term: 2 };

    #[test]
    fn most_members_decide_which_cluster_is_meant() {
        assert_eq!(
            disagreement(&[ELSEWHERE, HERE, HERE], 3),
            Ok(Evidence::unhealthy("belongs to cluster b, most members belong to a"))
        );
        assert_eq!(agreeing(&[HERE, ELSEWHERE, HERE]), 2);
    }

    #[test]
    fn too_few_answers_prove_nothing() {
        assert_eq!(disagreement(&[HERE], 3), Err("only 1 of 3 members answer for cluster a".to_owned()));
        assert_eq!(disagreement(&[HERE, ELSEWHERE], 3), Err("only 1 of 3 members answer for cluster a".to_owned()));
        let later = View { leader: 2, term: 8, ..HERE };
        assert_eq!(
            disagreement(&[HERE, later, later], 3),
            Err("the members do not agree on leader and term: 1 of 3 do".to_owned())
        );
    }

    #[test]
    fn without_a_leader_it_is_at_fault_only_if_most_others_have_one() {
        let lost = View { leader: 0, ..HERE };
        assert_eq!(
            leaderless(&[lost, HERE, HERE], 3),
            Ok(Evidence::unhealthy("has no leader, and most members have one").leading(false))
        );
        for views in [&[lost][..], &[lost, HERE], &[lost, lost, HERE], &[lost, ELSEWHERE, ELSEWHERE]] {
            assert_eq!(leaderless(views, 3), Err("has no leader, nor have most members".to_owned()), "{views:?}");
        }
    }

    #[test]
    fn the_host_of_a_url() {
        for (url, expected) in [
            ("https://10.0.0.1:2379", "10.0.0.1"),
            ("http://[fd00::1]:2379/", "fd00::1"),
            ("https://etcd01.x:1", "etcd01.x"),
        ] {
            assert_eq!(host(url), expected);
        }
    }
}
