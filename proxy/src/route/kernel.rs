//! The plan's effects: routes, the VXLAN device with its neighbours, and what isn't masqueraded. Only what differs is
//! changed, so that connections on ways that stay don't notice.

use super::plan::{Endpoint, Links, Plan, Way};
use super::{DEVICE, Error, PROTOCOL, TABLE};
use crate::policy::Ranges;
use ipnet::IpNet;
use linux::netlink::{LinkChange, LinkKind, MacAddress, Netlink, NewLink, Route};
use linux::nftables::{
    Batch, Chain, ChainKind, Element, Family, Field, Hook, Rule, Set, Socket, Table, address_bytes,
};
use std::net::IpAddr;

/// The kernel's number of the main table.
const MAIN: u32 = 254;
const VXLAN_ID: u32 = 1;
const VXLAN_PORT: u16 = 4789;
/// Before the masquerading rules of the CNI plugins and of the proxy.
const BEFORE_MASQUERADE: i32 = 99;

/// Reads this node's links.
pub fn observe(netlink: &mut Netlink) -> Result<Links, Error> {
    Ok(Links {
        links: netlink.links()?,
        addresses: netlink.all_addresses()?,
        routes: netlink.routes(MAIN)?,
    })
}

/// Brings the kernel from what it has to the plan; goes on past an error and returns the first.
pub fn apply(
    netlink: &mut Netlink,
    links: &Links,
    before: &Plan,
    plan: &Plan,
    mark: u32,
) -> Result<(), Error> {
    let mut outcome = Ok(());
    let mut note = |result: Result<(), Error>| {
        if outcome.is_ok() {
            outcome = result;
        }
    };
    let device = match plan.endpoint {
        Some(endpoint) => Some(ensure_device(netlink, links, &endpoint, &plan.own)?),
        None => None,
    };
    for (cidr, way) in &plan.ways {
        if let (Way::Tunnel { remote, mac }, Some(index)) = (way, device) {
            note(
                netlink
                    .replace_forwarding(index, *mac, Some(*remote))
                    .map_err(Error::from),
            );
            note(
                netlink
                    .replace_neighbour(index, tunnel_gateway(*cidr, *mac), *mac)
                    .map_err(Error::from),
            );
        }
    }
    let wanted: Vec<Route> = plan
        .ways
        .iter()
        .filter_map(|(cidr, way)| route(*cidr, way, device))
        .collect();
    let same = |a: &Route, b: &Route| {
        a.destination == b.destination && a.gateway == b.gateway && a.index == b.index
    };
    let found = links
        .routes
        .iter()
        .filter(|route| route.protocol == PROTOCOL);
    let found: Vec<&Route> = found.collect();
    for route in &wanted {
        if !found.iter().any(|present| same(present, route)) {
            note(netlink.replace_route(route).map_err(Error::from));
        }
    }
    for old in found {
        // IPv6 keeps the old route beside a replaced one whose gateway differs.
        if !wanted.iter().any(|route| same(old, route)) {
            let replaced = wanted
                .iter()
                .any(|route| route.destination == old.destination);
            if !replaced || old.destination.is_ipv6() {
                note(netlink.delete_route(old).map_err(Error::from));
            }
        }
    }
    if let Some(index) = device {
        note(forget_ends(netlink, index, before, plan));
    } else if let Some(link) = links.links.iter().find(|link| link.name == DEVICE) {
        note(netlink.delete_link(link.index).map_err(Error::from));
    }
    note(keep_sources(plan, mark));
    outcome
}

/// Deletes what only the earlier plan's tunnels needed. A node's ranges share its forwarding entry.
fn forget_ends(netlink: &mut Netlink, index: u32, before: &Plan, plan: &Plan) -> Result<(), Error> {
    let ends = |plan: &Plan| -> Vec<(IpNet, IpAddr, MacAddress)> {
        let tunnels = plan.ways.iter().filter_map(|(cidr, way)| match way {
            Way::Tunnel { remote, mac } => Some((*cidr, *remote, *mac)),
            Way::Direct { .. } => None,
        });
        tunnels.collect()
    };
    let wanted = ends(plan);
    for (cidr, remote, mac) in ends(before) {
        if !wanted.iter().any(|(_, _, other)| *other == mac) {
            netlink.delete_forwarding(index, mac, Some(remote))?;
        }
        let gateway = tunnel_gateway(cidr, mac);
        let used =
            |(cidr, _, mac): &(IpNet, IpAddr, MacAddress)| tunnel_gateway(*cidr, *mac) == gateway;
        if !wanted.iter().any(used) {
            netlink.delete_neighbour(index, gateway)?;
        }
    }
    Ok(())
}

fn route(cidr: IpNet, way: &Way, device: Option<u32>) -> Option<Route> {
    let (gateway, index, on_link) = match way {
        Way::Direct { gateway, index } => (*gateway, *index, false),
        Way::Tunnel { mac, .. } => (tunnel_gateway(cidr, *mac), device?, true),
    };
    Some(Route {
        index: Some(index),
        on_link,
        protocol: PROTOCOL,
        ..Route::via(cidr, gateway)
    })
}

/// What stands for the other node's end of the tunnel, as a neighbour of its hardware address: the first address of its
/// pods' network, or an address of the link in IPv6, which takes no gateway whose own route leads to another device.
fn tunnel_gateway(cidr: IpNet, mac: MacAddress) -> IpAddr {
    match cidr {
        IpNet::V4(cidr) => cidr.network().into(),
        IpNet::V6(_) => {
            let part = |at: usize| u16::from_be_bytes([mac.0[at], mac.0[at + 1]]);
            [0xfe80, 0, 0, 0, 0, part(0), part(2), part(4)].into()
        }
    }
}

/// The VXLAN device, made anew if it is of another make.
fn ensure_device(
    netlink: &mut Netlink,
    links: &Links,
    endpoint: &Endpoint,
    own: &[IpNet],
) -> Result<u32, Error> {
    const LOCAL: [u16; 2] = [4, 17];
    let local = address_bytes(endpoint.local);
    let found = links.links.iter().find(|link| link.name == DEVICE);
    let right = found.filter(|link| {
        let same_local = LOCAL
            .iter()
            .any(|kind| link.kind_attribute(*kind) == Some(&local[..]));
        link.is_kind("vxlan") && same_local && link.mac == Some(endpoint.mac)
    });
    let index = match (right, found) {
        (Some(link), _) => link.index,
        (None, found) => {
            if let Some(link) = found {
                netlink.delete_link(link.index)?;
            }
            let kind = LinkKind::Vxlan {
                id: VXLAN_ID,
                port: VXLAN_PORT,
                local: Some(endpoint.local),
            };
            netlink.add_link(&NewLink {
                mac: Some(endpoint.mac),
                mtu: Some(endpoint.mtu),
                up: true,
                ..NewLink::new(DEVICE, kind)
            })?;
            let link = netlink.link_by_name(DEVICE)?;
            link.ok_or(Error::DeviceGone)?.index
        }
    };
    let change = LinkChange {
        mtu: Some(endpoint.mtu),
        up: Some(true),
        ..LinkChange::default()
    };
    netlink.change_link(index, &change)?;
    for cidr in own {
        let bits = if cidr.addr().is_ipv6() { 128 } else { 32 };
        if let Ok(address) = IpNet::new(cidr.network(), bits) {
            netlink.add_address(index, address)?;
        }
    }
    Ok(index)
}

/// Pods' addresses are kept on the way to other nodes' pods and to the networks of the settings: a translation to the same address comes before the one to
/// the node's. What the proxy marked for masquerading is masqueraded.
fn keep_sources(plan: &Plan, mark: u32) -> Result<(), Error> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new();
    for family in [Family::Ip, Family::Ip6] {
        let of_family = |net: &&IpNet| net.addr().is_ipv6() == (family == Family::Ip6);
        let own: Vec<IpNet> = plan.own.iter().filter(of_family).copied().collect();
        let others = plan.ways.keys().chain(&plan.non_masquerade);
        let others: Vec<IpNet> = others.filter(of_family).copied().collect();
        let table = Table::new(family, TABLE);
        if own.is_empty() || others.is_empty() {
            if socket.tables()?.contains(&table) {
                batch.delete_table(&table);
            }
            continue;
        }
        batch.delete_table(&table);
        batch.add_table(&table);
        let sets = [
            ("own-pods", Field::saddr(family), own),
            ("kept-destinations", Field::daddr(family), others),
        ];
        for (name, field, _) in &sets {
            batch.add_set(&table, &Set::of(*name, &[*field]).of_intervals());
        }
        let chain = Chain::base(
            "nat-postrouting",
            ChainKind::Nat,
            Hook::Postrouting,
            BEFORE_MASQUERADE,
        );
        batch.add_chain(&table, &chain);
        let rule = Rule::new()
            .masked(Field::Mark, mark, 0)
            .is_in(&[Field::saddr(family)], "own-pods")
            .is_in(&[Field::daddr(family)], "kept-destinations")
            .keep_source(family);
        batch.add_rule(&table, "nat-postrouting", &rule);
        for (name, _, networks) in sets {
            for (key, interval_end) in network_ends(&networks, family) {
                let element = Element {
                    interval_end,
                    ..Element::key(&key)
                };
                batch.add_element(&table, name, &element);
            }
        }
    }
    Ok(batch.commit(&mut socket)?)
}

/// Removes routes, device and table.
pub fn remove(netlink: &mut Netlink) -> Result<(), Error> {
    let links = observe(netlink)?;
    apply(netlink, &links, &Plan::default(), &Plan::default(), 0)
}

/// Networks as an interval set takes them.
fn network_ends(networks: &[IpNet], family: Family) -> Vec<(Vec<u8>, bool)> {
    let mut ranges = Ranges::default();
    networks
        .iter()
        .for_each(|network| ranges.add(*network, &[]));
    ranges.ends(family)
}
