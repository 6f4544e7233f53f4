//! The probe of a real fleet: every kind of check asked of the service itself.
//!
//! Never: a kind that is answered by another kind's evidence.

use std::sync::Arc;

use super::command::Run;
use super::unit::AskUnit;
use super::{Evidence, Probe, Question, command, etcd, http, kafka, keeper, patroni, redis, tcp, unit, vip};
use crate::fleet::schema::CheckKind;

/// What the probe needs of this host comes from outside: it runs no program and asks no service manager by itself.
#[derive(Clone)]
pub struct LiveProbe {
    pub run: Arc<Run>,
    pub unit_state: Arc<AskUnit>,
}

impl Probe for LiveProbe {
    fn ask(&self, question: &Question) -> Evidence {
        let answer = match question.kind {
            CheckKind::Http => http::ask(question),
            CheckKind::Tcp => tcp::ask(question),
            CheckKind::Command => command::ask(question, &*self.run),
            CheckKind::Unit => unit::ask(question, &*self.unit_state),
            CheckKind::Etcd => etcd::ask(question),
            CheckKind::Redis => redis::ask_server(question),
            CheckKind::Sentinel => redis::ask_sentinel(question),
            CheckKind::KafkaQuorum => kafka::ask_quorum(question, &*self.run),
            CheckKind::KafkaIsr => kafka::ask_isr(question, &*self.run),
            CheckKind::VipHolder => vip::ask(question),
            CheckKind::Patroni => patroni::ask(question),
            CheckKind::Keeper => keeper::ask(question),
        };
        answer.unwrap_or_else(Evidence::unknown)
    }
}

/// What these bytes prove of a member that is asked alone, as the answer of a server of this kind (Patroni's three documents
/// and Kafka's two lists one after the other). Without a connection: foreign bytes meet the same parsers.
pub fn of_reply(kind: CheckKind, reply: &[u8]) -> Evidence {
    let answer = match kind {
        CheckKind::Redis => redis::of_reply(reply),
        CheckKind::Keeper => keeper::of_reply(reply),
        CheckKind::Patroni => patroni::of_reply(reply),
        CheckKind::KafkaQuorum => kafka::of_reply(reply, kafka::Asked::Quorum),
        CheckKind::KafkaIsr => kafka::of_reply(reply, kafka::Asked::Replicas),
        _ => Err("reads no reply".to_owned()),
    };
    answer.unwrap_or_else(Evidence::unknown)
}
