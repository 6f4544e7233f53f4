//! The branch as this node verified it, told to the store; and what the others told there.
//!
//! Touches: `n/<node>/verified` and `audit/<node>/` in the store. Never: a decision; never: a peer's word without its form
//! being looked at.

use serde::Serialize;

use crate::lock::protocol;
use crate::lock::store::{LockStore, StoreError, Transaction, Write};
use crate::name::NodeName;
use crate::trust::lineage::Lineage;

/// What stands in the store at one moment.
#[derive(Default)]
pub struct Heard {
    /// What this node told last, maybe before its disk was lost.
    pub own: Option<Lineage>,
    pub peers: Vec<(NodeName, Lineage)>,
}

pub fn hear(store: &dyn LockStore, me: &NodeName, peers: &[&NodeName]) -> Result<Heard, StoreError> {
    let keys: Vec<String> = std::iter::once(me).chain(peers.iter().copied()).map(protocol::verified_key).collect();
    let snapshot = store.read(&keys.iter().map(String::as_str).collect::<Vec<_>>())?;
    let lineage = |node: &NodeName| {
        let entry = snapshot.get(&protocol::verified_key(node))?;
        serde_json::from_slice::<Lineage>(&entry.value).ok().filter(Lineage::is_sound)
    };
    let peers = peers.iter().filter_map(|peer| Some(((*peer).clone(), lineage(peer)?))).collect();
    Ok(Heard { own: lineage(me), peers })
}

pub fn tell(store: &dyn LockStore, me: &NodeName, lineage: &Lineage) -> Result<(), StoreError> {
    put(store, protocol::verified_key(me), lineage)
}

/// An entry that nobody writes again.
pub fn audit(store: &dyn LockStore, me: &NodeName, what: &impl Serialize) -> Result<(), StoreError> {
    put(store, format!("audit/{me}/{}", ulid::Ulid::generate()), what)
}

fn put(store: &dyn LockStore, key: String, value: &impl Serialize) -> Result<(), StoreError> {
    let value = serde_json::to_vec(value).expect("plain data serializes");
    store.commit(&Transaction { when: Vec::new(), then: vec![Write::Put(key, value)] }).map(drop)
}
