//! The probe of a sandbox, where units are not started but recorded: it reads the record of the asked member.
//!
//! Every node has a root of its own on this machine. `<root>/run/converger/units.json` is the recorder's record of units
//! by name (`state`, `started_ms`: when it last started, on the machine's awake clock; other fields are not read here);
//! `units.fail` beside it names what a scene wants to go wrong, one a line: `kafka.service gate`. Never: writes a record.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Evidence, Probe, Question, quoted};
use crate::fleet::schema::CheckKind;
use crate::name::{NodeName, UnitName};

/// `roots`: where a node's root is, with `{node}` for its name.
#[derive(Clone, Debug)]
pub struct RecorderProbe {
    pub roots: String,
}

#[derive(Deserialize, Clone, Copy)]
struct Entry {
    state: State,
    started_ms: u64,
    /// Whether its gate is to fail.
    #[serde(skip)]
    sick: bool,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
enum State {
    Active,
    Reloading,
    Activating,
    Deactivating,
    Inactive,
    Failed,
}

impl RecorderProbe {
    fn entry(&self, node: &NodeName, unit: &UnitName) -> Result<Option<Entry>, String> {
        let path = format!("{}/run/converger/units.json", self.roots.replace("{node}", node.as_str()));
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err("no record: that agent never ran".to_owned());
            }
            Err(error) => return Err(format!("{path}: {error}")),
        };
        let record: BTreeMap<UnitName, Entry> =
            serde_json::from_slice(&bytes).map_err(|error| format!("{path}: {}", quoted(&error.to_string())))?;
        let fail = std::fs::read_to_string(path.replace("units.json", "units.fail")).unwrap_or_default();
        let sick = fail.lines().any(|line| line.split_whitespace().eq([unit.as_str(), "gate"]));
        Ok(record.get(unit).map(|entry| Entry { sick, ..*entry }))
    }

    /// The member that has run longest leads, as a quorum keeps its leader until that one stops.
    fn leader<'a>(&self, question: &'a Question) -> Option<&'a NodeName> {
        let running = question.members.iter().filter_map(|(node, _)| {
            let entry = self.entry(node, &question.unit).ok()??;
            (entry.state == State::Active).then_some((entry.started_ms, node))
        });
        // The first of several equals, hence the first in order of declaration.
        running.min_by_key(|(started, _)| *started).map(|(_, node)| node)
    }
}

impl Probe for RecorderProbe {
    fn ask(&self, question: &Question) -> Evidence {
        let unit = &question.unit;
        let evidence = match self.entry(&question.member, unit) {
            Err(why) => return Evidence::unknown(why),
            Ok(None) => Evidence::unhealthy(format!("{unit} was never started")),
            Ok(Some(Entry { state: State::Active, sick: true, .. })) => {
                Evidence::unhealthy(format!("{unit} runs, and its gate fails"))
            }
            Ok(Some(Entry { state: State::Active, .. })) => Evidence::healthy(),
            Ok(Some(Entry { state, .. })) => Evidence::unhealthy(match state {
                State::Activating => format!("{unit} is still starting"),
                State::Deactivating => format!("{unit} is stopping"),
                State::Failed => format!("{unit} has failed"),
                State::Inactive | State::Active | State::Reloading => format!("{unit} is stopped"),
            }),
        };
        match question.kind {
            CheckKind::Etcd
            | CheckKind::KafkaQuorum
            | CheckKind::Patroni
            | CheckKind::Redis
            | CheckKind::Keeper
            | CheckKind::VipHolder => evidence.leading(self.leader(question) == Some(&question.member)),
            CheckKind::KafkaIsr
            | CheckKind::Sentinel
            | CheckKind::Http
            | CheckKind::Tcp
            | CheckKind::Command
            | CheckKind::Unit => evidence,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    pub(in crate::probe) fn question(kind: CheckKind, member: &str) -> Question {
        let members = ["kafka01", "kafka02", "kafka03"].map(|name| (NodeName::from(name), "10.0.0.1".to_owned()));
        Question {
            check: "gate".to_owned(),
            kind,
            member: NodeName::from(member),
            id: None,
            ids: Vec::new(),
            address: "10.0.0.1".to_owned(),
            own: false,
            unit: UnitName::from("kafka.service"),
            port: None,
            path: None,
            status: 200,
            tls: None,
            secret: None,
            user: None,
            run: Vec::new(),
            timeout: Duration::from_secs(5),
            members: members.to_vec(),
            changing: Vec::new(),
        }
    }

    struct Sandbox(tempfile::TempDir);

    impl Sandbox {
        fn record(&self, node: &str, text: &str) {
            let folder = self.0.path().join(node).join("run/converger");
            std::fs::create_dir_all(&folder).expect("a folder");
            #[allow(clippy::disallowed_methods)] // a test's scenery
            std::fs::write(folder.join("units.json"), text).expect("a record");
        }

        fn unit(&self, node: &str, state: &str, started: u64) {
            let entry = format!(
                r#"{{ "state": "{state}", "since": "2026-11-21T12:00:00Z", "started_ms": {started}, "invocation": "x",
                     "enabled": true, "masked": false, "starts": 1 }}"#
            );
            self.record(node, &format!(r#"{{ "kafka.service": {entry} }}"#));
        }

        fn wants(&self, node: &str, failure: &str) {
            #[allow(clippy::disallowed_methods)] // a test's scenery
            std::fs::write(self.0.path().join(node).join("run/converger/units.fail"), failure).expect("a wish");
        }

        fn ask(&self, node: &str) -> Evidence {
            let roots = format!("{}/{{node}}", self.0.path().display());
            RecorderProbe { roots }.ask(&question(CheckKind::KafkaQuorum, node))
        }
    }

    fn sandbox() -> Sandbox {
        Sandbox(tempfile::tempdir().expect("a folder"))
    }

    #[test]
    fn whoever_has_run_longest_leads_until_it_stops() {
        let sandbox = sandbox();
        sandbox.unit("kafka01", "active", 900);
        sandbox.unit("kafka02", "active", 300);
        sandbox.unit("kafka03", "active", 300);
        sandbox.wants("kafka03", "kafka.service start\nother.service gate\n");
        assert_eq!(sandbox.ask("kafka01"), Evidence::healthy().leading(false));
        assert_eq!(sandbox.ask("kafka02"), Evidence::healthy().leading(true));
        assert_eq!(sandbox.ask("kafka03"), Evidence::healthy().leading(false));
        sandbox.unit("kafka02", "inactive", 950);
        assert_eq!(sandbox.ask("kafka02"), Evidence::unhealthy("kafka.service is stopped").leading(false));
        assert_eq!(sandbox.ask("kafka03"), Evidence::healthy().leading(true));
    }

    #[test]
    fn a_failing_gate_is_unhealthy_while_the_unit_runs() {
        let sandbox = sandbox();
        sandbox.unit("kafka01", "active", 1);
        sandbox.wants("kafka01", "kafka.service gate\n");
        assert_eq!(sandbox.ask("kafka01"), Evidence::unhealthy("kafka.service runs, and its gate fails").leading(true));
    }

    #[test]
    fn a_record_that_is_not_there_or_not_readable_proves_nothing() {
        let sandbox = sandbox();
        assert_eq!(sandbox.ask("kafka01"), Evidence::unknown("no record: that agent never ran"));
        sandbox.record("kafka01", "{ \"kafka.service\": ");
        let evidence = sandbox.ask("kafka01");
        assert!(
            matches!(&evidence.health, crate::probe::Health::Unknown(why) if why.contains("units.json")),
            "{evidence:?}"
        );
        sandbox.record("kafka01", "{}");
        assert_eq!(sandbox.ask("kafka01"), Evidence::unhealthy("kafka.service was never started").leading(false));
    }
}
