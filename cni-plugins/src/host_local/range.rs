//! Ranges of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::config::RangeConf;
use crate::protocol::IpConfig;

/// Addresses of one subnet, from `start` to `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub subnet: IpNet,
    pub start: IpAddr,
    pub end: IpAddr,
    /// Never given out.
    pub gateway: IpAddr,
}

/// Ranges of one family, of which a container gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RangeSet {
    ranges: Vec<Range>,
}

impl Range {
    /// Fills in what is left out: the gateway is the subnet's first address, and the range is all of the subnet but
    /// its own and the broadcast address.
    pub fn new(conf: &RangeConf) -> Result<Self, String> {
        let subnet = conf.subnet;
        let network = number(subnet.network());
        let length = subnet.prefix_len();
        if number(subnet.addr()) != network {
            return Err(format!(
                "subnet {subnet} has host bits set: for a prefix length of {length} the network address is {}",
                subnet.network()
            ));
        }
        if length > subnet.max_prefix_len() - 2 {
            return Err(format!("subnet {subnet} is too small to allocate from"));
        }
        let v6 = subnet.addr().is_ipv6();
        let first = address(network + 1, v6);
        let highest = number(subnet.broadcast());
        let last = address(if v6 { highest } else { highest - 1 }, v6);
        let range = Self {
            subnet,
            start: conf.start.unwrap_or(first),
            end: conf.end.unwrap_or(last),
            gateway: conf.gateway.unwrap_or(first),
        };
        range.check(first, last)?;
        Ok(range)
    }

    fn check(&self, first: IpAddr, last: IpAddr) -> Result<(), String> {
        let usable = |ip: IpAddr| self.subnet.contains(&ip) && (first..=last).contains(&ip);
        for (key, ip) in [("rangeStart", self.start), ("rangeEnd", self.end)] {
            if !usable(ip) {
                return Err(format!("{key} {ip} is not in the subnet {}", self.subnet));
            }
        }
        if self.gateway.is_ipv6() != self.start.is_ipv6() {
            return Err(format!(
                "gateway {} is not of the subnet's family",
                self.gateway
            ));
        }
        if self.start > self.end {
            return Err(format!(
                "rangeStart {} is after rangeEnd {}",
                self.start, self.end
            ));
        }
        Ok(())
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv6() == self.start.is_ipv6() && (self.start..=self.end).contains(&ip)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    /// An address of the range as a result states it.
    pub fn config(&self, ip: IpAddr) -> IpConfig {
        // The subnet's own length is valid for any address of its family.
        let address = IpNet::new(ip, self.subnet.prefix_len()).unwrap_or(self.subnet);
        IpConfig {
            interface: None,
            address,
            gateway: Some(self.gateway),
        }
    }
}

impl RangeSet {
    pub fn new(ranges: Vec<Range>) -> Result<Self, String> {
        let Some(first) = ranges.first() else {
            return Err("empty range set".to_owned());
        };
        if ranges
            .iter()
            .any(|range| range.start.is_ipv6() != first.start.is_ipv6())
        {
            return Err("mixed address families".to_owned());
        }
        for (number, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges
                .iter()
                .take(number)
                .find(|other| other.overlaps(range))
            {
                return Err(format!("{range} overlaps {other}"));
            }
        }
        Ok(Self { ranges })
    }

    /// The range that an address is of.
    pub fn find(&self, ip: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(ip))
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.ranges
            .iter()
            .any(|range| other.ranges.iter().any(|second| range.overlaps(second)))
    }

    /// Every address of the set but the gateways, once, beginning after `last` and wrapping around.
    pub fn addresses_after(&self, last: Option<IpAddr>) -> impl Iterator<Item = (&Range, IpAddr)> {
        let at = last.and_then(|ip| {
            Some((
                self.ranges.iter().position(|range| range.contains(ip))?,
                number(ip),
            ))
        });
        let (turn, split) = at.unwrap_or((0, 0));
        let (before, from) = self.ranges.split_at(turn.min(self.ranges.len()));
        let current = from.first();
        let rest = from.get(1..).unwrap_or_default();
        let of = |range: &Range| number(range.start)..=number(range.end);
        let after = current.map(|range| {
            (
                range,
                split.saturating_add(1).max(*of(range).start())..=*of(range).end(),
            )
        });
        let wrapped = current
            .filter(|_| at.is_some())
            .map(|range| (range, *of(range).start()..=split));
        let others = rest
            .iter()
            .chain(before)
            .map(move |range| (range, of(range)));
        after
            .into_iter()
            .chain(others)
            .chain(wrapped)
            .flat_map(|(range, numbers)| {
                numbers.map(move |n| (range, address(n, range.start.is_ipv6())))
            })
            .filter(|(range, ip)| *ip != range.gateway)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(short) if !v6 => Ipv4Addr::from(short).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}
