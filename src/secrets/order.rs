//! What one run of `generate` makes: which secrets, in which order, and whom their certificates are for.
//!
//! PURE. Never: renews what an authority signed in the commit that replaces the authority, nobody would believe it yet.

use jiff::{SignedDuration, Timestamp};

use super::cover::Cover;
use super::tls::Subject;
use crate::fleet::schema::ShapeKind;
use crate::fleet::{Fleet, Secret};
use crate::name::SecretName;

#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Those that have no file yet.
    Missing,
    /// These, whether they have one or not.
    Named(&'a [SecretName]),
    /// Certificates that expire before then.
    Due { days: u32 },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("secrets.toml has no secret {0}")]
    Unknown(SecretName),
    #[error(
        "secret {0} does not say how it is made; add `generate = {{ kind = \"password\" }}` (or hex, base64, ssh, ca, tls) to its entry, or give it a value with `converger secret encrypt {0}`"
    )]
    Shapeless(SecretName),
}

#[derive(Default)]
pub struct Order<'f> {
    /// Authorities before what they sign.
    pub make: Vec<&'f Secret>,
    /// Their authority is replaced in this very run: to be made once the nodes believe the new one.
    pub later: Vec<&'f Secret>,
    /// They expire, and do not say how they are made.
    pub by_hand: Vec<&'f Secret>,
}

fn kind(secret: &Secret) -> Option<ShapeKind> {
    secret.generate.as_ref().map(|shape| shape.kind)
}

/// The authority that signs this secret's certificate.
pub fn authority_of(secret: &Secret) -> Option<&SecretName> {
    secret.generate.as_ref()?.ca.as_ref()
}

pub fn order<'f>(fleet: &'f Fleet, which: Which<'_>, now: Timestamp) -> Result<Order<'f>, OrderError> {
    let secrets = &fleet.environment.secrets;
    let missing = |secret: &Secret| fleet.tree.get(secret.path.as_str()).is_none();
    let mut order = Order::default();
    match which {
        Which::Missing => order.make.extend(secrets.values().filter(|one| kind(one).is_some() && missing(one))),
        Which::Named(names) => {
            for name in names {
                let secret = secrets.get(name).ok_or_else(|| OrderError::Unknown(name.clone()))?;
                if kind(secret).is_none() {
                    return Err(OrderError::Shapeless(name.clone()));
                }
                if !order.make.iter().any(|one| one.name == *name) {
                    order.make.push(secret);
                }
            }
            // An authority that nobody named and that was never made comes along.
            let needed: Vec<&SecretName> = order.make.iter().filter_map(|one| authority_of(one)).collect();
            for authority in needed.into_iter().filter_map(|name| secrets.get(name)) {
                let chosen = order.make.iter().any(|one| one.name == authority.name);
                if !chosen && kind(authority).is_some() && missing(authority) {
                    order.make.push(authority);
                }
            }
        }
        Which::Due { days } => {
            let until = now.checked_add(SignedDuration::from_hours(24 * i64::from(days))).unwrap_or(Timestamp::MAX);
            let due = secrets.values().filter(|one| one.expires.is_some_and(|at| at < until));
            (order.make, order.by_hand) = due.partition(|one| kind(one).is_some());
        }
    }
    let replaced = |name: &SecretName| order.make.iter().any(|one| one.name == *name && !missing(one));
    let waits = |one: &&Secret| !missing(one) && authority_of(one).is_some_and(replaced);
    let (later, mut make): (Vec<&Secret>, Vec<&Secret>) = order.make.iter().copied().partition(waits);
    make.sort_by_key(|one| kind(one) != Some(ShapeKind::Ca));
    (order.make, order.later) = (make, later);
    Ok(order)
}

/// Whom a certificate is for: the node, if it is granted to exactly one, and the names that its shape adds.
pub fn subject(fleet: &Fleet, secret: &Secret) -> Subject {
    let environment = &fleet.environment;
    let (mut names, mut ips) = (Vec::new(), Vec::new());
    let mut name = format!("{} {}", environment.name, secret.name);
    if let Some(shape) = secret.generate.as_ref().filter(|shape| shape.kind == ShapeKind::Tls) {
        name = shape.names.first().cloned().unwrap_or(name);
        if let [node] = &Cover::of(environment).granted(&secret.grant)[..] {
            name = node.name.to_string();
            names = vec![node.name.to_string(), format!("{}.{}", node.name, environment.domain)];
            ips.extend(node.addresses.values());
        }
        names.extend(shape.names.iter().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
        ips.extend(shape.ips.iter().map(|ip| environment.vips.get(ip).unwrap_or(ip)));
    }
    // RFC 5280 (ub-common-name): the alternative names count, this one is for people.
    let name = name.chars().take(64).collect();
    let mut ips: Vec<std::net::IpAddr> = ips.into_iter().filter_map(|ip| ip.parse().ok()).collect();
    let mut seen = std::collections::BTreeSet::new();
    ips.retain(|ip| seen.insert(*ip));
    Subject { organization: fleet.name.clone(), name, names, ips }
}
