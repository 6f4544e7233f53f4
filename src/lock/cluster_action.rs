//! An action that concerns a whole cluster: one member at a time runs it, by a claim in the store.
//!
//! The claim has no lease: a member that dies in the middle keeps it until it is back, or an operator declares it dead.
//! Its agent finds its own claim and goes on; the action must bear being run again. Touches: `act/` and `action/` in the
//! store. Never: runs anything; never: two claims of one cluster.

use crate::lock::election::{self, Begun, Candidate, Claim, Election};
use crate::lock::epoch;
use crate::lock::protocol;
use crate::lock::quorum::Because;
use crate::lock::session::{Session, because_of};
use crate::lock::store::{Condition, LockStore, Outcome, Snapshot, StoreError, Transaction, Write};
use crate::name::{ClusterName, GroupId, NodeName};
use crate::probe::Health;
use crate::reason;
use crate::report::{Report, State};
use crate::resource::Digest;

/// The right to run one action of a cluster, until it is given back.
pub struct Turn {
    key: String,
    token: i64,
}

impl Session<'_> {
    /// Asks for the turn. Errors: what this node waits for.
    pub fn take_turn(&self, cluster: &ClusterName, action: &str, inputs: Digest) -> Result<Turn, Box<Because>> {
        let members = self.clusters.iter().find(|(name, _)| name == cluster).map(|(_, members)| members.as_slice());
        let members = members.ok_or_else(|| {
            Box::new(Because::new(reason::INTERNAL, None, format!("{} is not in cluster {cluster}", self.me)))
        })?;
        let keys = [protocol::act_range(cluster), protocol::begun_key(cluster, action), protocol::FREEZES.to_owned()];
        let of_peers = members
            .iter()
            .flat_map(|member| [protocol::report_key(member), protocol::beat_key(member), protocol::dead_key(member)]);
        let (store, seen) = self.look_at(keys.into_iter().chain(of_peers))?;
        let groups: Vec<GroupId> = self.groups_of(cluster).cloned().collect();
        let want = [GroupId::new(format!("act.{cluster}.{action}"))];
        let asked_secs = self.want(store, &want);
        let election = Election {
            cluster,
            action,
            me: self.me,
            commit: &self.commit,
            seq: self.seq,
            candidates: members.iter().map(|member| candidate(&seen, member)).collect(),
            claims: protocol::claims_in(&seen, cluster),
            begun: seen.get(&protocol::begun_key(cluster, action)).map(|entry| begun(&entry.value)),
            freeze: protocol::freeze_in(&seen, &groups, self.me),
            declared_dead: seen.get(&protocol::dead_key(self.me)).is_some(),
            sick: self.sickness_in(cluster),
            asked_secs,
        };
        election::may_run(&election)?;
        let claim = Claim {
            cluster: cluster.clone(),
            node: self.me.clone(),
            action: action.to_owned(),
            commit: self.commit.clone(),
            attempt: ulid::Ulid::generate().to_string(),
            since: self.clock.now(),
        };
        let begun =
            Begun { commit: self.commit.clone(), seq: self.seq, node: self.me.clone(), inputs: inputs.to_string() };
        let key = protocol::act_key(cluster, self.me);
        let own = seen.get(&key).map(|entry| entry.create_revision);
        let mut begin = protocol::begin(&claim, &begun, own, &seen, &groups);
        begin.when.push(epoch::same_epoch(epoch::meta_revision(&seen)));
        match store.commit(&begin) {
            Ok(Outcome::Committed(revision)) => {
                self.stop_wanting(store, &want);
                Ok(Turn { key, token: own.unwrap_or(revision) })
            }
            Ok(Outcome::Refused) => {
                let sentence = format!("another member of {cluster} was quicker");
                Err(Box::new(Because::new(reason::LOST_RACE, None, sentence)))
            }
            // What was written all the same is found by its attempt.
            Err(error @ (StoreError::OutcomeUnknown { .. } | StoreError::NoSpace)) => {
                let again = store.read(&[&key]).map_err(|error| because_of(&error))?;
                let entry = again.get(&key).filter(|entry| {
                    serde_json::from_slice::<Claim>(&entry.value).is_ok_and(|found| found.attempt == claim.attempt)
                });
                entry.map(|entry| Turn { key, token: entry.create_revision }).ok_or_else(|| because_of(&error).into())
            }
            Err(error) => Err(because_of(&error).into()),
        }
    }

    /// Gives the turn back. What stays is found by the next run.
    pub fn end_turn(&self, turn: Turn) {
        let Ok(store) = &self.store else { return };
        give_back(*store, turn, self.me);
    }

    /// Gives back what an interrupted attempt left, once nothing of it is to be done any more.
    pub fn free_turns(&self, clusters: impl IntoIterator<Item = ClusterName>) {
        let keys: Vec<String> = clusters.into_iter().map(|cluster| protocol::act_key(&cluster, self.me)).collect();
        let Ok(store) = &self.store else { return };
        let left = match store.read(&keys.iter().map(String::as_str).collect::<Vec<_>>()) {
            Ok(left) => left,
            Err(error) => return tracing::debug!(node = %self.me, %error, "not looked for claims of actions"),
        };
        for entry in left.entries {
            give_back(*store, Turn { key: entry.key, token: entry.create_revision }, self.me);
        }
    }

    /// This node's groups of a cluster.
    fn groups_of(&self, cluster: &ClusterName) -> impl Iterator<Item = &GroupId> {
        self.circles.iter().map(|circle| &circle.group.id).filter(move |id| id.cluster() == *cluster)
    }

    /// Why this node's own member of the cluster is not healthy, as far as a gate can tell.
    fn sickness_in(&self, cluster: &ClusterName) -> Option<String> {
        self.groups_of(cluster).filter_map(|id| self.own_health(id)).find_map(|evidence| match evidence.health {
            Health::Healthy => None,
            Health::Unhealthy(why) => Some(why),
            Health::Unknown(why) => Some(format!("unknown: {why}")),
        })
    }
}

fn give_back(store: &dyn LockStore, turn: Turn, me: &NodeName) {
    // Deletes only, so that it works while the store is full.
    let when = vec![Condition::CreatedAt(turn.key.clone(), turn.token)];
    if let Err(error) = store.commit(&Transaction { when, then: vec![Write::Delete(turn.key)] }) {
        tracing::warn!(node = %me, %error, "the claim of an action could not be given back yet");
    }
}

fn candidate(seen: &Snapshot, member: &NodeName) -> Candidate {
    let report = seen.get(&protocol::report_key(member));
    let report = report.and_then(|entry| serde_json::from_slice::<Report>(&entry.value).ok());
    let stuck = |report: &Report| !matches!(report.state, State::Converged | State::Applying | State::Waiting);
    let away = seen.get(&protocol::beat_key(member)).is_none() || seen.get(&protocol::dead_key(member)).is_some();
    Candidate {
        name: member.clone(),
        away,
        stuck: report.as_ref().is_some_and(stuck),
        applied_seq: report.as_ref().and_then(|report| report.applied.as_ref()).map(|at| at.seq),
        target_seq: report.as_ref().and_then(|report| report.target.as_ref()).map(|at| at.seq),
    }
}

/// One that cannot be read was written by somebody who knows more: nobody goes past it.
fn begun(value: &[u8]) -> Begun {
    serde_json::from_slice(value).unwrap_or_else(|_| Begun {
        commit: crate::name::CommitId::new("unknown"),
        seq: u64::MAX,
        node: NodeName::new("somebody"),
        inputs: String::new(),
    })
}
