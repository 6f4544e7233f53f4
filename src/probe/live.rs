//! The probe of a real fleet: every kind of check asked of the service itself.
//!
//! Never: a kind that is answered by another kind's evidence.

use std::sync::Arc;

use super::command::Run;
use super::unit::AskUnit;
use super::{Evidence, Probe, Question, command, etcd, http, kafka, redis, tcp, unit, vip};
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
            CheckKind::Patroni => Err("this kind of check comes with the role postgresql".to_owned()),
            CheckKind::Keeper => Err("this kind of check comes with the role clickhouse".to_owned()),
        };
        answer.unwrap_or_else(Evidence::unknown)
    }
}
