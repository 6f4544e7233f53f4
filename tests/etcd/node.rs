//! One node's session over a store, with a state folder of its own: what an agent is to the hold protocol.

use std::borrow::Cow;

use converger::clock::SystemClock;
use converger::fleet::schema::Quorum;
use converger::fleet::{Group, MemberChange};
use converger::lock::session::{Circle, Intent, Session};
use converger::lock::store::LockStore;
use converger::lock::view;
use converger::name::{CommitId, GroupId, NodeName, RoleName};
use converger::probe::{Probe, Question, fake};

pub struct Node {
    pub me: NodeName,
    pub dir: tempfile::TempDir,
    pub group: Group,
}

pub fn group(id: &str, members: &[&str]) -> Group {
    Group {
        id: id.into(),
        members: members.iter().map(|name| NodeName::from(*name)).collect(),
        changing: std::collections::BTreeMap::new(),
        quorum: Quorum::Majority,
        max_unavailable: 1,
        rank: Vec::new(),
        conflicts: Vec::new(),
        aliases: Vec::new(),
        unit: "x.service".into(),
        gate: Some("gate".to_owned()),
        leader: None,
        settle_secs: 10,
        role: RoleName::from("r"),
    }
}

impl Node {
    pub fn new(me: &str, group: &Group) -> Self {
        Self { me: me.into(), dir: tempfile::tempdir().unwrap(), group: group.clone() }
    }

    pub fn session<'a>(&'a self, store: &'a dyn LockStore, probe: &'a (dyn Probe + Sync), seq: u64) -> Session<'a> {
        Session {
            me: &self.me,
            store: Ok(store),
            probe,
            clock: &SystemClock,
            boot_id: "boot".to_owned(),
            windows: Vec::new(),
            state_is_old: true,
            record_path: self.dir.path().join("hold.json"),
            pin_path: self.dir.path().join("store.json"),
            circles: vec![Circle {
                group: Cow::Borrowed(&self.group),
                view: Some(view::digest_of(&self.group)),
                conflicts: Vec::new(),
                gate: self.group.members.iter().map(|member| self.question(member)).collect(),
                leader: Vec::new(),
                after: Vec::new(),
            }],
            clusters: Vec::new(),
            commit: CommitId::new(format!("{seq:040}")),
            seq,
        }
    }

    pub fn intent(&self, running: bool) -> Intent<'static> {
        Intent {
            batch: "x.service",
            groups: vec![GroupId::new(self.group.id.as_str())],
            units: vec!["x.service".to_owned()],
            running,
            takes_node: false,
            start_secs_max: 30,
            change: MemberChange::None,
        }
    }

    fn question(&self, member: &NodeName) -> Question {
        fake::question(&self.me, member, &"x.service".into())
    }
}
