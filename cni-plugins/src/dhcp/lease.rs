//! What a server granted.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use linux::clock;
use serde::{Deserialize, Serialize};

use super::message::{Message, option};
use crate::protocol::{Dns, Error, IpConfig, NetResult, Route};

/// An address for a time. The times are since the machine's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub address: Ipv4Addr,
    prefix_length: u8,
    pub server: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    routes: Vec<(Ipv4Net, Ipv4Addr)>,
    nameservers: Vec<Ipv4Addr>,
    domain: String,
    /// When its server is asked for more time, when any server is, and when it ends.
    pub renewal: Duration,
    pub rebinding: Duration,
    pub expiry: Duration,
}

/// Where a server doesn't say.
const DEFAULT_SECONDS: u32 = 3600;

impl Lease {
    /// Reads an acknowledgement that just came.
    ///
    /// # Errors
    /// Code 999 naming the option that it lacks.
    pub fn read(ack: &Message) -> Result<Self, Error> {
        let missing = |what| Error::failed(format!("DHCP option {what} not found in DHCPACK"));
        let mask = ack.addresses(option::SUBNET_MASK).first().copied();
        let mask = u32::from(mask.ok_or_else(|| missing("Subnet Mask"))?);
        let server = ack.addresses(option::SERVER).first().copied();
        let gateway = ack.addresses(option::ROUTERS).first().copied();
        let granted = ack
            .seconds(option::LEASE_TIME)
            .unwrap_or(DEFAULT_SECONDS)
            .max(1);
        let seconds = |code| ack.seconds(code).filter(|at| *at < granted);
        let renewal = seconds(option::RENEWAL_TIME).unwrap_or(granted / 2);
        let rebinding = seconds(option::REBINDING_TIME)
            .filter(|at| *at >= renewal)
            .unwrap_or(renewal.max((u64::from(granted) * 7 / 8) as u32));
        let now = clock::since_boot();
        let at = |seconds: u32| now + Duration::from_secs(seconds.into());
        Ok(Self {
            address: ack.yours,
            prefix_length: mask.leading_ones() as u8,
            server: server.ok_or_else(|| missing("Server Identifier"))?,
            gateway,
            routes: routes(ack, gateway),
            nameservers: ack.addresses(option::NAME_SERVERS),
            domain: ack.text(option::DOMAIN_NAME).unwrap_or_default(),
            renewal: at(renewal),
            rebinding: at(rebinding),
            expiry: at(granted),
        })
    }

    /// As an address plugin reports it.
    pub fn result(&self, priority: Option<u32>) -> NetResult {
        /// `RT_SCOPE_LINK`
        const LINK: u8 = 253;
        let route = |(destination, gateway): &(Ipv4Net, Ipv4Addr)| Route {
            priority,
            scope: gateway.is_unspecified().then_some(LINK),
            ..Route::new(
                IpNet::V4(*destination),
                Some(IpAddr::V4(*gateway)).filter(|gateway| !gateway.is_unspecified()),
            )
        };
        let address = IpNet::new(self.address.into(), self.prefix_length);
        let address = address.unwrap_or_else(|_| IpNet::from(IpAddr::V4(self.address)));
        NetResult {
            ips: vec![IpConfig {
                interface: None,
                address,
                gateway: self.gateway.map(IpAddr::V4),
            }],
            routes: self.routes.iter().map(route).collect(),
            dns: Dns {
                nameservers: self.nameservers.iter().map(Ipv4Addr::to_string).collect(),
                domain: self.domain.clone(),
                ..Dns::default()
            },
            ..NetResult::default()
        }
    }
}

/// Classless routes replace all others (RFC 3442); else static ones, and the default route by the router.
fn routes(ack: &Message, gateway: Option<Ipv4Addr>) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let option = |code| {
        ack.options
            .get(&code)
            .map(Vec::as_slice)
            .unwrap_or_default()
    };
    let classless = classless_routes(option(option::CLASSLESS_ROUTES));
    if !classless.is_empty() {
        return classless;
    }
    let pairs = option(option::STATIC_ROUTES).as_chunks::<8>().0.iter();
    let statics = pairs.filter_map(|[a, b, c, d, gateway @ ..]| {
        let destination = classful(Ipv4Addr::new(*a, *b, *c, *d))?;
        Some((destination, Ipv4Addr::from(*gateway)))
    });
    let default = gateway.map(|gateway| (Ipv4Net::default(), gateway));
    statics.chain(default).collect()
}

/// Prefix length, as many bytes of the network as it takes, router.
fn classless_routes(mut bytes: &[u8]) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let mut routes = Vec::new();
    while let [length, rest @ ..] = bytes {
        let taken = usize::from(length.div_ceil(8));
        let Some((network, after)) = rest.split_at_checked(taken) else {
            break;
        };
        let Some((router, after)) = after.split_first_chunk::<4>() else {
            break;
        };
        let mut octets = [0; 4];
        octets
            .iter_mut()
            .zip(network)
            .for_each(|(to, from)| *to = *from);
        let Ok(network) = Ipv4Net::new(octets.into(), *length) else {
            break;
        };
        routes.push((network.trunc(), Ipv4Addr::from(*router)));
        bytes = after;
    }
    routes
}

/// The network of an address by its class, which is all that option 33 says of it.
fn classful(address: Ipv4Addr) -> Option<Ipv4Net> {
    let length = match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        192..224 => 24,
        _ => return None,
    };
    Ipv4Net::new(address, length).ok().map(|net| net.trunc())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use linux::netlink::MacAddress;
    use serde_json::{Value, json};

    use super::*;
    use crate::protocol::Version;

    fn ack(options: &[(u8, &[u8])]) -> Message {
        let own: [(u8, &[u8]); 3] = [
            (option::SUBNET_MASK, &[255, 255, 255, 0]),
            (option::SERVER, &[192, 168, 1, 1]),
            (option::ROUTERS, &[192, 168, 1, 1]),
        ];
        let all = own.iter().chain(options);
        Message {
            is_reply: true,
            transaction: 1,
            is_answered_to_all: false,
            client: Ipv4Addr::UNSPECIFIED,
            yours: [192, 168, 1, 5].into(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            options: all.map(|(code, value)| (*code, value.to_vec())).collect(),
        }
    }

    fn routes_of(options: &[(u8, &[u8])]) -> Value {
        let lease = Lease::read(&ack(options)).expect("lease");
        let result = lease
            .result(Some(7))
            .encode(Version::V1_1_0)
            .expect("encode");
        serde_json::from_slice::<Value>(&result).expect("json")["routes"].clone()
    }

    #[test]
    fn routes_come_from_the_router_from_static_and_from_classless_ones() {
        let default = json!({ "dst": "0.0.0.0/0", "gw": "192.168.1.1", "priority": 7 });
        assert_eq!(routes_of(&[]), json!([default]));
        let statics = [10, 0, 0, 0, 192, 168, 1, 2, 172, 16, 0, 0, 192, 168, 1, 3];
        assert_eq!(
            routes_of(&[(option::STATIC_ROUTES, &statics)]),
            json!([
                { "dst": "10.0.0.0/8", "gw": "192.168.1.2", "priority": 7 },
                { "dst": "172.16.0.0/16", "gw": "192.168.1.3", "priority": 7 },
                default,
            ])
        );
        let classless = [
            24, 10, 9, 8, 192, 168, 1, 4, 0, 192, 168, 1, 5, 32, 10, 1, 1, 1, 0, 0, 0, 0,
        ];
        assert_eq!(
            routes_of(&[(option::CLASSLESS_ROUTES, &classless)]),
            json!([
                { "dst": "10.9.8.0/24", "gw": "192.168.1.4", "priority": 7 },
                { "dst": "0.0.0.0/0", "gw": "192.168.1.5", "priority": 7 },
                { "dst": "10.1.1.1/32", "priority": 7, "scope": 253 },
            ])
        );
        assert_eq!(classless_routes(&[33, 1, 2, 3, 4, 5, 1, 1, 1, 1]), []);
    }

    #[test]
    fn times_that_cannot_be_are_replaced_and_a_missing_mask_is_named() {
        let times = |options: &[(u8, &[u8])]| {
            let lease = Lease::read(&ack(options)).expect("lease");
            let seconds = |a: Duration, b: Duration| (b - a).as_secs();
            (
                seconds(lease.renewal, lease.rebinding),
                seconds(lease.renewal, lease.expiry),
            )
        };
        let hundred: (u8, &[u8]) = (option::LEASE_TIME, &[0, 0, 0, 100]);
        assert_eq!(times(&[hundred]), (37, 50));
        let late: (u8, &[u8]) = (option::RENEWAL_TIME, &[0, 0, 1, 0]);
        assert_eq!(times(&[hundred, late]), (37, 50));
        let early: (u8, &[u8]) = (option::RENEWAL_TIME, &[0, 0, 0, 10]);
        assert_eq!(times(&[hundred, early]), (77, 90));
        assert_eq!(times(&[]), (1350, 1800));
        let mut bare = ack(&[]);
        bare.options = BTreeMap::new();
        let error = Lease::read(&bare).expect_err("no mask").to_string();
        assert_eq!(error, "DHCP option Subnet Mask not found in DHCPACK");
    }
}
