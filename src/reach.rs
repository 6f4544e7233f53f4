//! What this node reaches: the store, the source, the members of its groups, and its own sshd.
//!
//! A set of words that stay the same from one look to the next, so that before and after can be compared. Never: decides
//! what a loss means; never: asks for more than existed before.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::fleet::Node;
use crate::fleet::schema::CheckKind;
use crate::host::command::{Command, argv};
use crate::lock::session::Session;
use crate::name::UnitName;
use crate::plan::risk::Area;
use crate::probe::{self, Health, Question};
use crate::settings::{Access, Remote, TrustRoot};

const WITHIN: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_millis(500);

#[allow(clippy::disallowed_methods)] // the batch at hand is not over before it is confirmed, and there is no event to wait for
pub fn pause() {
    std::thread::sleep(EVERY);
}

/// Asked all at once.
pub fn reached(session: &Session<'_>, root: &TrustRoot, node: &Node, areas: &BTreeSet<Area>) -> BTreeSet<String> {
    let mut questions: Vec<(String, Question)> = Vec::new();
    for circle in &session.circles {
        let of = |question: &Question| format!("{} of {}", question.member, circle.group.id);
        questions.extend(circle.gate.iter().map(|question| (of(question), question.clone())));
    }
    questions.extend(root.remotes.iter().filter_map(|remote| {
        let (host, port) = endpoint(remote)?;
        Some((format!("source {host}:{port}"), tcp(node, host, port)))
    }));
    if areas.contains(&Area::Sshd) {
        questions.extend(sshd(node));
    }
    let asked: Vec<Question> = questions.iter().map(|(_, question)| question.clone()).collect();
    let answers = probe::ask_all(session.probe, &asked);
    let healthy = questions.into_iter().zip(answers).filter(|(_, evidence)| evidence.health == Health::Healthy);
    let mut reached: BTreeSet<String> = healthy.map(|((words, _), _)| words).collect();
    if session.store.as_ref().is_ok_and(|store| store.read(&["meta"]).is_ok()) {
        reached.insert("the store".to_owned());
    }
    reached
}

/// `None`: a file of this machine.
fn endpoint(remote: &Remote) -> Option<(String, u16)> {
    match &remote.access {
        Access::File { .. } => None,
        Access::Ssh { host, port, .. } => Some((host.clone(), *port)),
        Access::Https { .. } => {
            let authority = remote.url.split_once("://")?.1.split('/').next()?;
            let host = authority.rsplit('@').next()?;
            let (name, port) = match host.rsplit_once(':') {
                Some((name, port)) if port.parse::<u16>().is_ok() => (name, port.parse().ok()?),
                _ => (host, 443),
            };
            Some((name.trim_matches(['[', ']']).to_owned(), port))
        }
    }
}

/// Where people come in: at each address of the node, at whichever port sshd is configured for now.
fn sshd(node: &Node) -> Vec<(String, Question)> {
    let call = argv(["sshd", "-T"]);
    let Ok(told) = (Command { argv: &call, user: "", within: WITHIN }).succeed() else { return Vec::new() };
    let text = told.text();
    let ports = text.lines().filter_map(|line| line.strip_prefix("port ")?.trim().parse::<u16>().ok());
    let ports: Vec<u16> = ports.collect();
    let addresses = node.addresses.values();
    let pairs = addresses.flat_map(|address| ports.iter().map(move |port| (address, *port)));
    pairs.map(|(address, port)| (format!("sshd at {address}"), tcp(node, address.clone(), port))).collect()
}

fn tcp(node: &Node, address: String, port: u16) -> Question {
    Question {
        check: "reach".to_owned(),
        kind: CheckKind::Tcp,
        member: node.name.clone(),
        id: None,
        ids: Vec::new(),
        address,
        own: false,
        unit: UnitName::from(""),
        port: Some(port),
        path: None,
        status: 0,
        tls: None,
        secret: None,
        user: None,
        run: Vec::new(),
        timeout: WITHIN,
        members: Vec::new(),
        changing: Vec::new(),
    }
}
