//! Rules of networks, addresses and virtual addresses.
//!
//! PURE. Never: resolves a name.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::Check;
use crate::fleet::rule;

/// An address range.
struct Range {
    base: IpAddr,
    bits: u8,
}

impl Range {
    /// `None`: no address, no length, or host bits that are not zero.
    fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let range = Self { base: base.parse().ok()?, bits: bits.parse().ok()? };
        let host_bits = range.width().checked_sub(range.bits)?;
        let host = number(range.base) & !u128::MAX.checked_shl(u32::from(host_bits)).unwrap_or(0);
        (host == 0).then_some(range)
    }

    fn width(&self) -> u8 {
        if self.base.is_ipv4() { 32 } else { 128 }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let host_bits = u32::from(self.width() - self.bits);
        let same = |address: IpAddr| number(address).checked_shr(host_bits).unwrap_or(0);
        self.base.is_ipv4() == address.is_ipv4() && same(address) == same(self.base)
    }
}

/// Right-aligned.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl Check<'_, '_> {
    pub(super) fn addresses(&mut self) {
        let environment = &self.fleet.environment;
        let document = &self.documents.environment;
        let mut ranges: BTreeMap<&str, Range> = BTreeMap::new();
        for (name, text) in &environment.networks {
            match Range::parse(text) {
                Some(range) => {
                    ranges.insert(name, range);
                }
                None => {
                    let problem = document.error(rule::BAD_NETWORK, format!("network {name} is not an address range"));
                    let span = document.value(&["networks", name]);
                    self.problems.push(problem.at(span, "as in 10.20.0.0/16, host bits zero"));
                }
            }
        }
        // Virtual addresses belong to no network by name, so they are everybody's.
        let mut virtual_addresses: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (name, text) in &environment.vips {
            let span = || document.value(&["vips", name]);
            let Ok(address) = text.parse::<IpAddr>() else {
                let problem = document.error(rule::BAD_ADDRESS, format!("vip {name} is not an address"));
                self.problems.push(problem.at(span(), "as in 10.20.0.10"));
                continue;
            };
            if is_documentation(address) {
                let title = format!("vip {name} is an address reserved for documentation");
                let problem = document.warning(rule::DOCUMENTATION_ADDRESS, title).at(span(), "nobody can reach this");
                self.problems.push(problem.help("put your own address there"));
            }
            if let Some(other) = virtual_addresses.insert(address, name) {
                let title = format!("vips {other} and {name} are both {address}");
                self.problems.push(document.error(rule::DUPLICATE_ADDRESS, title).at(span(), format!("{other}'s")));
            }
        }

        let document = &self.documents.topology;
        let mut taken: BTreeMap<(&str, IpAddr), &str> = BTreeMap::new();
        for node in &environment.nodes {
            for (network, text) in &node.addresses {
                let path = ["nodes", node.name.as_str(), "addresses", network];
                if !environment.networks.contains_key(network) {
                    let title = format!("\"{network}\" is not a network of environment {}", environment.name);
                    let problem = document.error(rule::UNKNOWN_NETWORK, title);
                    let problem = problem.at(document.key(&path), "not declared in environment.toml");
                    self.unknown(problem, "networks", network, environment.networks.keys().map(String::as_str));
                }
                let Ok(address) = text.parse::<IpAddr>() else {
                    let title = format!("address of {} in {network} is not an address", node.name);
                    let problem = document.error(rule::BAD_ADDRESS, title);
                    self.problems.push(problem.at(document.value(&path), "as in 10.20.20.11"));
                    continue;
                };
                if ranges.get(network.as_str()).is_some_and(|range| !range.contains(address)) {
                    let title = format!("address of {} is outside network {network}", node.name);
                    let label = format!("not in {}", environment.networks[network]);
                    let problem = document.error(rule::ADDRESS_OUTSIDE_NETWORK, title);
                    self.problems.push(problem.at(document.value(&path), label));
                }
                let other = match taken.insert((network, address), node.name.as_str()) {
                    Some(other) => Some(other.to_owned()),
                    None => virtual_addresses.get(&address).map(|vip| format!("vip {vip}")),
                };
                if let Some(other) = other {
                    let title = format!("{other} and {} are both {address} in network {network}", node.name);
                    let problem = document.error(rule::DUPLICATE_ADDRESS, title);
                    self.problems.push(problem.at(document.value(&path), format!("{other}'s")));
                }
            }
        }
    }
}

/// RFC 5737, RFC 3849.
fn is_documentation(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => [[192, 0, 2], [198, 51, 100], [203, 0, 113]]
            .into_iter()
            .any(|[a, b, c]| Ipv4Addr::new(a, b, c, address.octets()[3]) == address),
        IpAddr::V6(address) => address.segments()[..2] == [0x2001, 0xdb8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_take_what_is_in_them() {
        for (range, inside, outside) in [
            ("10.20.0.0/16", "10.20.255.255", "10.21.0.0"),
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("fd00:1::/64", "fd00:1::9", "fd00:1:0:1::9"),
            ("::/0", "ffff::", "10.0.0.1"),
        ] {
            let parsed = Range::parse(range).unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{inside} in {range}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{outside} not in {range}");
        }
        for bad in ["10.20.0.1/16", "10.20.0.0", "10.20.0.0/33", "x/8", "fd00::1/64", "::/129", "10.0.0.0/-1", "/"] {
            assert!(Range::parse(bad).is_none(), "{bad}");
        }
    }
}
