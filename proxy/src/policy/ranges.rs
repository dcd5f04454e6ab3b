//! Sets of addresses as ranges: networks less their exceptions.

use ipnet::IpNet;
use linux::nftables::Family;
use std::net::IpAddr;

/// Addresses, as sorted ranges that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn bounds(network: IpNet) -> (u128, u128) {
    (number(network.network()), number(network.broadcast()))
}

impl Ranges {
    /// Adds a network less the exceptions.
    pub fn add(&mut self, network: IpNet, except: &[IpNet]) {
        let same = |other: &&IpNet| other.addr().is_ipv4() == network.addr().is_ipv4();
        let mut parts = vec![bounds(network)];
        for (first, last) in except.iter().filter(same).map(|net| bounds(*net)) {
            let mut rest = Vec::with_capacity(parts.len() + 1);
            for (begin, end) in parts {
                if last < begin || first > end {
                    rest.push((begin, end));
                    continue;
                }
                if begin < first {
                    rest.push((begin, first - 1));
                }
                if end > last {
                    rest.push((last + 1, end));
                }
            }
            parts = rest;
        }
        let ranges = if network.addr().is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        };
        ranges.extend(parts);
        ranges.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (begin, end) in ranges.drain(..) {
            match joined.last_mut() {
                Some(before) if begin <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(end);
                }
                _ => joined.push((begin, end)),
            }
        }
        *ranges = joined;
    }

    fn of(&self, family: Family) -> &[(u128, u128)] {
        if family == Family::Ip6 {
            &self.v6
        } else {
            &self.v4
        }
    }

    /// Whether there are none of a family.
    pub fn is_empty(&self, family: Family) -> bool {
        self.of(family).is_empty()
    }

    /// Whether an address is among them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (ranges, number) = match address {
            IpAddr::V4(_) => (&self.v4, number(address)),
            IpAddr::V6(_) => (&self.v6, number(address)),
        };
        ranges
            .iter()
            .any(|(begin, end)| (*begin..=*end).contains(&number))
    }

    /// As an interval set takes them: where each begins, and the first address past it (true); past the last address
    /// of all there is no end.
    pub fn ends(&self, family: Family) -> Vec<(Vec<u8>, bool)> {
        let width = if family == Family::Ip6 { 16 } else { 4 };
        let bytes = |number: u128| number.to_be_bytes()[16 - width..].to_vec();
        let highest = u128::MAX >> (128 - width * 8);
        let mut ends = Vec::new();
        for (begin, end) in self.of(family) {
            ends.push((bytes(*begin), false));
            if *end < highest {
                ends.push((bytes(end + 1), true));
            }
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(address: u32, prefix: u8) -> IpNet {
        IpNet::new(std::net::Ipv4Addr::from(address).into(), prefix).expect("prefix")
    }

    proptest! {
        #[test]
        fn an_address_is_in_the_ranges_if_a_block_has_it(
            blocks in proptest::collection::vec(((0u32..64, 24u8..=32), proptest::collection::vec((0u32..64, 26u8..=32), 0..3)), 0..4),
            probe in 0u32..256,
        ) {
            let mut ranges = Ranges::default();
            let mut wanted = false;
            let probe = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + probe));
            for ((address, prefix), except) in blocks {
                let net = network(0x0a00_0000 + address * 4, prefix);
                let except: Vec<_> = except.iter().map(|(address, prefix)| network(0x0a00_0000 + address * 4, *prefix)).collect();
                ranges.add(net, &except);
                wanted |= net.contains(&probe) && !except.iter().any(|net| net.contains(&probe));
            }
            prop_assert_eq!(ranges.contains(probe), wanted);
        }
    }

    #[test]
    fn all_addresses_have_no_end() {
        let mut ranges = Ranges::default();
        ranges.add("::/0".parse().expect("network"), &[]);
        assert_eq!(ranges.ends(Family::Ip6), [(vec![0; 16], false)]);
        ranges.add(
            "0.0.0.0/0".parse().expect("network"),
            &["10.0.0.0/8".parse().expect("network")],
        );
        let ends = ranges.ends(Family::Ip);
        assert_eq!(
            ends,
            [
                (vec![0; 4], false),
                (vec![10, 0, 0, 0], true),
                (vec![11, 0, 0, 0], false)
            ]
        );
    }
}
