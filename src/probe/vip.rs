//! `vip-holder`: whether this node has the shared address on one of its interfaces.
//!
//! Not having it is no fault: the check tells who leads. Never: asked of a peer, for the address answers for whoever
//! has it.

use std::net::IpAddr;

use super::{Evidence, Question};

pub(super) fn ask(question: &Question) -> Result<Evidence, String> {
    if !question.own {
        return Err("cannot be asked of a peer".to_owned());
    }
    let path = question.path.as_deref().ok_or("the check names no address (path)")?;
    let shared: IpAddr = path.parse().map_err(|_| format!("`{path}` is not an address"))?;
    // Looked up at the interfaces: a socket can be bound to an address that is not here (ip_nonlocal_bind).
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|error| format!("cannot list the interfaces: {error}"))?;
    let holds = interfaces.filter_map(|interface| interface.address).any(|address| {
        address.as_sockaddr_in().is_some_and(|v4| IpAddr::V4(v4.ip()) == shared)
            || address.as_sockaddr_in6().is_some_and(|v6| IpAddr::V6(v6.ip()) == shared)
    });
    Ok(Evidence::healthy().leading(holds))
}
