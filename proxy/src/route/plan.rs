//! Which way to each other node's pods: from the Nodes and this node's links, purely.

use super::object::NodeFacts;
use super::{Mode, PROTOCOL, Settings};
use ipnet::IpNet;
use linux::netlink::{Address, Destination, Link, MacAddress, Route};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// This node's links as the kernel has them.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// All interfaces.
    pub links: Vec<Link>,
    /// Their addresses.
    pub addresses: Vec<Address>,
    /// The main table's routes.
    pub routes: Vec<Route>,
}

/// The way to one range of another node's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The node is a neighbour on an interface.
    Direct {
        /// Its address there.
        gateway: IpAddr,
        /// The interface.
        index: u32,
    },
    /// Through the VXLAN device.
    Tunnel {
        /// The node's address.
        remote: IpAddr,
        /// The hardware address of its VXLAN device.
        mac: MacAddress,
    },
}

/// This node's end of the tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// This node's address towards the others.
    pub local: IpAddr,
    /// The device's hardware address.
    pub mac: MacAddress,
    /// The device's MTU: the path's less what the encapsulation takes.
    pub mtu: u32,
}

/// All that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// This node's pods.
    pub own: Vec<IpNet>,
    /// The ways to the others' pods.
    pub ways: BTreeMap<IpNet, Way>,
    /// Other networks to which the pods keep their addresses.
    pub non_masquerade: Vec<IpNet>,
    /// The VXLAN device, if a way needs it.
    pub endpoint: Option<Endpoint>,
    /// Nodes that can't be reached, and why.
    pub unreachable: Vec<String>,
}

/// Ethernet, IP, UDP and VXLAN headers, in bytes.
fn encapsulation(local: IpAddr) -> u32 {
    if local.is_ipv6() { 70 } else { 50 }
}

/// A node's VXLAN device has a hardware address that follows from the node's own, so that nobody need tell it.
fn device_mac(address: IpAddr) -> MacAddress {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        // FNV-1a
        IpAddr::V6(address) => address
            .octets()
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
            })
            .to_be_bytes(),
    };
    MacAddress([0x0a, 0x6f, a, b, c, d])
}

impl Links {
    /// The interface on whose link an address is: the best route to it has no gateway.
    fn on_link(&self, address: IpAddr) -> Option<u32> {
        let length = |route: &Route| match route.destination {
            Destination::Net(net) if net.contains(&address) => Some(net.prefix_len()),
            Destination::DefaultV4 if address.is_ipv4() => Some(0),
            Destination::DefaultV6 if address.is_ipv6() => Some(0),
            _ => None,
        };
        let others = self
            .routes
            .iter()
            .filter(|route| route.protocol != PROTOCOL);
        let fitting = others.filter_map(|route| Some((length(route)?, route)));
        let (_, best) = fitting.max_by_key(|(length, route)| {
            (*length, std::cmp::Reverse(route.metric.unwrap_or(0)))
        })?;
        best.index.filter(|_| best.gateway.is_none())
    }

    fn mtu_of(&self, address: IpAddr) -> Option<u32> {
        let found = self
            .addresses
            .iter()
            .find(|found| found.net.addr() == address)?;
        let link = self.links.iter().find(|link| link.index == found.index)?;
        Some(link.mtu)
    }
}

/// Plans the ways from `own` to the pods of the others.
pub fn plan<'a>(
    own: &NodeFacts,
    others: impl Iterator<Item = &'a NodeFacts>,
    links: &Links,
    settings: &Settings,
) -> Plan {
    let mode = settings.mode;
    let mut plan = Plan {
        own: own.pod_cidrs.clone(),
        non_masquerade: settings.non_masquerade_cidrs.clone(),
        ..Plan::default()
    };
    for node in others {
        // The tunnels' outer addresses are of the first family that this node has.
        let remote = own.addresses.first().and_then(|local| {
            let mut same = node.addresses.iter();
            same.find(|address| address.is_ipv4() == local.is_ipv4())
        });
        for cidr in &node.pod_cidrs {
            let gateway = node
                .addresses
                .iter()
                .find(|address| address.is_ipv4() == cidr.addr().is_ipv4());
            let direct = gateway.filter(|_| mode != Mode::Vxlan).and_then(|gateway| {
                let index = links.on_link(*gateway)?;
                Some(Way::Direct {
                    gateway: *gateway,
                    index,
                })
            });
            let tunnel = remote
                .filter(|_| mode != Mode::Direct)
                .map(|remote| Way::Tunnel {
                    remote: *remote,
                    mac: device_mac(*remote),
                });
            match direct.or(tunnel) {
                Some(way) => drop(plan.ways.insert(cidr.trunc(), way)),
                None => plan.unreachable.push(format!(
                    "node {}: pods in {cidr}: {}",
                    node.name,
                    reason(gateway.copied(), mode)
                )),
            }
        }
    }
    let tunnels = plan
        .ways
        .values()
        .any(|way| matches!(way, Way::Tunnel { .. }));
    plan.endpoint = own
        .addresses
        .first()
        .filter(|_| tunnels)
        .map(|local| Endpoint {
            local: *local,
            mac: device_mac(*local),
            mtu: links
                .mtu_of(*local)
                .unwrap_or(1500)
                .saturating_sub(encapsulation(*local)),
        });
    plan
}

fn reason(gateway: Option<IpAddr>, mode: Mode) -> String {
    match (gateway, mode) {
        (None, _) => "the node has no InternalIP that can be used for them".to_owned(),
        (Some(gateway), Mode::Direct) => format!(
            "its address {gateway} is on none of this node's links: use the mode auto or vxlan"
        ),
        (Some(gateway), _) => {
            format!("its address {gateway} is of another family than this node's")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str, cidrs: &[&str]) -> NodeFacts {
        NodeFacts {
            name: name.into(),
            addresses: vec![address.parse().expect("address")],
            pod_cidrs: cidrs
                .iter()
                .map(|text| text.parse().expect("network"))
                .collect(),
        }
    }

    fn links() -> Links {
        let local: IpNet = "192.0.2.0/24".parse().expect("network");
        let far: IpNet = "192.0.2.64/26".parse().expect("network");
        let gateway: IpAddr = "192.0.2.9".parse().expect("address");
        let default: IpNet = "0.0.0.0/0".parse().expect("network");
        Links {
            routes: vec![
                Route::link(local, 2),
                Route {
                    index: Some(2),
                    ..Route::via(far, gateway)
                },
                Route {
                    index: Some(2),
                    ..Route::via(default, gateway)
                },
            ],
            ..Links::default()
        }
    }

    #[test]
    fn a_node_behind_a_gateway_is_no_neighbour() {
        let own = node("a", "192.0.2.1", &["10.244.0.0/24"]);
        let near = node("b", "192.0.2.2", &["10.244.1.0/24"]);
        let far = node("c", "192.0.2.70", &["10.244.2.0/24"]);
        let others = [near, far];
        let auto = plan(&own, others.iter(), &links(), &Mode::Auto.into());
        let ways: Vec<_> = auto.ways.values().collect();
        assert!(matches!(ways[0], Way::Direct { index: 2, .. }));
        assert!(matches!(ways[1], Way::Tunnel { .. }));
        assert_eq!(auto.endpoint.map(|endpoint| endpoint.mtu), Some(1450));
        let direct = plan(&own, others.iter(), &links(), &Mode::Direct.into());
        assert_eq!((direct.ways.len(), direct.unreachable.len()), (1, 1));
        assert!(direct.unreachable[0].contains("node c"));
        let vxlan = plan(&own, others.iter(), &links(), &Mode::Vxlan.into());
        assert!(
            vxlan
                .ways
                .values()
                .all(|way| matches!(way, Way::Tunnel { .. }))
        );
    }

    #[test]
    fn pods_of_a_family_that_the_node_lacks_go_through_the_tunnel() {
        let own = node("a", "192.0.2.1", &["fd00:0:0:1::/64"]);
        let other = node("b", "192.0.2.2", &["fd00:0:0:2::/64"]);
        let plan = plan(&own, [other].iter(), &links(), &Mode::Auto.into());
        assert!(
            plan.ways
                .values()
                .all(|way| matches!(way, Way::Tunnel { .. }))
        );
    }
}
