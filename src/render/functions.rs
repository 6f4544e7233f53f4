//! The functions of our templates: `secret`, `nodes_of`, `addresses`.
//!
//! Tera's functions are fixed when templates are compiled, but what `secret` may answer differs with every rendering:
//! it is laid out on this thread for the time of one. PURE otherwise. Never: a value in an error.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tera::{Error, Kwargs, State, Tera, TeraResult, Value};
use zeroize::Zeroizing;

use super::context::Shared;
use crate::name::SecretName;

/// What `secret` answers during one rendering.
#[derive(Default)]
pub struct Pass {
    /// Every secret of the environment.
    pub known: Arc<BTreeSet<SecretName>>,
    /// Those that this node may read.
    pub granted: Arc<BTreeSet<SecretName>>,
    /// `None`: placeholders.
    pub values: Option<BTreeMap<SecretName, Zeroizing<String>>>,
    /// Which ones were asked for and given.
    pub used: BTreeSet<SecretName>,
    /// Why the rendering was refused, if `secret` refused it.
    pub refused: Option<&'static str>,
}

thread_local! {
    static PASS: RefCell<Pass> = RefCell::default();
}

/// Runs one rendering with this pass, and gives the pass back with what was used. The values are wiped.
pub fn during<T>(pass: Pass, render: impl FnOnce() -> T) -> (T, Pass) {
    PASS.with(|slot| *slot.borrow_mut() = pass);
    let answer = render();
    let mut pass = PASS.with(|slot| std::mem::take(&mut *slot.borrow_mut()));
    pass.values = None;
    (answer, pass)
}

pub fn placeholder(name: &SecretName) -> String {
    format!("«secret:{name}»")
}

/// Whether a text is one placeholder, whole and alone.
pub fn is_placeholder(text: &str) -> bool {
    let name = text.strip_prefix("«secret:").and_then(|rest| rest.strip_suffix('»'));
    name.is_some_and(|name| !name.contains(['«', '»']))
}

pub fn register(tera: &mut Tera, shared: &Arc<Shared>) {
    tera.register_function("secret", |args: Kwargs, _: &State<'_>| secret(args.must_get::<&str>("name")?));
    let nodes = Arc::clone(shared);
    tera.register_function("nodes_of", move |args: Kwargs, _: &State<'_>| nodes_of(&nodes, &args));
    let nodes = Arc::clone(shared);
    tera.register_function("addresses", move |args: Kwargs, _: &State<'_>| addresses(&nodes, &args));
}

fn secret(name: &str) -> TeraResult<String> {
    let name = SecretName::from(name);
    PASS.with(|slot| {
        let pass = &mut *slot.borrow_mut();
        if !pass.known.contains(&name) {
            pass.refused = Some("unknown-secret");
            return Err(Error::message(format!("secrets.toml has no secret {name}")));
        }
        if !pass.granted.contains(&name) {
            pass.refused = Some("secret-not-granted");
            return Err(Error::message(format!("the secret {name} is not granted")));
        }
        pass.used.insert(name.clone());
        match &pass.values {
            None => Ok(placeholder(&name)),
            Some(values) => match values.get(&name) {
                Some(value) => Ok(value.to_string()),
                None => Err(Error::message(format!("the secret {name} is asked for only with values"))),
            },
        }
    })
}

pub fn nodes_of(shared: &Shared, args: &Kwargs) -> TeraResult<Value> {
    let (cluster, label, state) =
        (args.get::<&str>("cluster")?, args.get::<&str>("label")?, args.get::<&str>("state")?);
    shared.nodes_of(cluster, label, state).map_err(Error::message)
}

pub fn addresses(shared: &Shared, args: &Kwargs) -> TeraResult<Value> {
    let of = args.must_get::<&Value>("of")?;
    let separator = args.get::<&str>("sep")?.unwrap_or(",");
    let addresses = shared.addresses(of, args.get::<&str>("network")?, args.get::<u64>("port")?, separator);
    addresses.map(Value::from).map_err(Error::message)
}
