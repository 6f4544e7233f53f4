//! Guards that a node can judge by itself: what the target would do here, against what its ledger remembers.
//!
//! A commit that goes beyond one is not taken by this node; the last good one stays in force. PURE. Never: a guard lifted by
//! anything but fleet.toml, which root signs, or a trailer in a verified commit.

use std::collections::BTreeSet;

use crate::fleet::Fleet;
use crate::lock::quorum::Because;
use crate::name::SecretName;
use crate::plan::{Known, SecretSeen};
use crate::reason;
use crate::render::Desired;
use crate::resource::{Digest, Id, Kind};
use crate::secrets::Unsealed;
use crate::secrets::fingerprint::Fingerprints;
use crate::trust::commit::Allowance;

/// What one node would have of a commit.
pub struct Target<'a> {
    pub fleet: &'a Fleet,
    pub desired: &'a Desired,
    pub unsealed: &'a Unsealed,
    pub fingerprints: &'a Fingerprints,
    /// Guards lifted by commits that are new since the applied one.
    pub lifted: &'a [Allowance],
}

/// `None`: no guard holds the target back here.
pub fn judge(target: &Target<'_>, known: &Known) -> Option<Because> {
    mass_removal(target, known).or_else(|| node_removal(target, known)).or_else(|| {
        target.seen().into_iter().find_map(|(name, now)| {
            let before = known.secrets.get(&name)?;
            let environment = &target.fleet.environment.name;
            if now.version < before.version && !target.fleet.guards.secret_rollback {
                let sentence =
                    format!("secret {name} goes back from version {} to version {}", before.version, now.version);
                return target.unless_lifted("secret-rollback", name.as_str(), sentence);
            }
            let silent = now.version == before.version && before.value.is_some() && now.value != before.value;
            silent.then(|| {
                let sentence = format!(
                    "secret {name} has another value and still version {}, so nothing that uses it would restart; \
                     raise its version in environments/{environment}/secrets.toml",
                    now.version
                );
                Because::new(reason::REPOSITORY_INVALID, None, sentence)
            })
        })
    })
}

fn mass_removal(target: &Target<'_>, known: &Known) -> Option<Because> {
    let wanted: BTreeSet<Id> = target.desired.resources.iter().map(|placed| placed.resource.id()).collect();
    let leaves = known.owned.iter().filter(|(id, owned)| {
        // Of other kinds nothing is ever taken away.
        matches!(id.kind, Kind::File | Kind::Unit | Kind::Package) && !owned.keep && !wanted.contains(*id)
    });
    let leaves: Vec<&Id> = leaves.map(|(id, _)| id).collect();
    let max = target.fleet.guards.mass_removal;
    if leaves.len() <= max {
        return None;
    }
    let node = target.desired.node.as_str();
    let some: Vec<String> = leaves.iter().take(3).map(ToString::to_string).collect();
    let more = if leaves.len() > some.len() { ", …" } else { "" };
    let sentence = format!(
        "{} resources would be removed from {node} ({}{more}); guards.mass_removal is {max}",
        leaves.len(),
        some.join(", ")
    );
    target.unless_lifted("mass-removal", node, sentence)
}

/// A node whose machine still runs would be forgotten by its groups: they would count without it.
fn node_removal(target: &Target<'_>, known: &Known) -> Option<Because> {
    let environment = &target.fleet.environment;
    let left = known.standing.iter().filter(|name| environment.node(name).is_none());
    let left = left.filter(|_| !target.fleet.guards.node_removal);
    left.filter_map(|node| {
        let sentence = format!("{node} leaves the topology without having been retired (`state = \"retired\"` first)");
        target.unless_lifted("node-removal", node.as_str(), sentence)
    })
    .next()
}

impl Target<'_> {
    fn unless_lifted(&self, guard: &str, object: &str, sentence: String) -> Option<Because> {
        let same = |said: &Allowance| said.guard.replace('_', "-") == guard && said.object == object;
        if self.lifted.iter().any(same) {
            return None;
        }
        let trailer = format!("Converger-Allow: {guard} {object}");
        let sentence = format!("{sentence}; if it is meant, sign a commit with the trailer `{trailer}`");
        Some(Because::new(reason::GUARDED, None, sentence))
    }

    /// The secrets of this node that could be opened, as the ledger remembers them.
    pub fn seen(&self) -> Vec<(SecretName, SecretSeen)> {
        let versions = &self.fleet.environment.secrets;
        let seen = self.unsealed.opened().filter_map(|(name, secret)| {
            let version = versions.get(name)?.version;
            let value = self.fingerprints.of(Digest::of(secret.expose()));
            Some((name.clone(), SecretSeen { version, value: Some(value) }))
        });
        seen.collect()
    }
}
