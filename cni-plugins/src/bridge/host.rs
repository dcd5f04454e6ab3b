//! The host's side: the bridge and its addresses.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use ipnet::IpNet;
use linux::netlink::{Link, LinkChange, LinkKind, MacAddress, Netlink, NewLink};

use super::config::Config;
use crate::interface;
use crate::protocol::Error;

/// The bridge, made if it is not there.
///
/// Its hardware address is chosen here and so stays: a bridge without one of its own takes the lowest of its ports',
/// which changes as containers come and go, and with it goes every neighbour's knowledge of the gateway.
pub(super) fn ensure_bridge(host: &mut Netlink, config: &Config) -> Result<Link, Error> {
    let bridge = match host.link_by_name(&config.bridge)? {
        Some(bridge) => bridge,
        None => make_bridge(host, config)?,
    };
    let of_others = bridge.mac.filter(|mac| mac.0[0] != OWN_PREFIX);
    if !bridge.is_kind("bridge") {
        return Err(Error::failed(format!(
            "{:?} already exists but is not a bridge",
            config.bridge
        )));
    }
    let lacks_filtering =
        config.filters_vlans() && bridge.kind_number(IFLA_BR_VLAN_FILTERING) != Some(1);
    let change = LinkChange {
        up: Some(true).filter(|_| !bridge.is_up()),
        promiscuous: Some(true).filter(|_| config.promiscuous && !bridge.is_promiscuous()),
        vlan_filtering: Some(true).filter(|_| lacks_filtering),
        // Its present one, for good: it may be one that it took from a port.
        mac: of_others.filter(|_| bridge.is_kind("bridge")),
        ..LinkChange::default()
    };
    if change
        .up
        .or(change.promiscuous)
        .or(change.vlan_filtering)
        .is_some()
        || change.mac.is_some()
    {
        host.change_link(bridge.index, &change)?;
    }
    Ok(bridge)
}

/// `linux/if_link.h`
const IFLA_BR_VLAN_FILTERING: u16 = 7;

fn make_bridge(host: &mut Netlink, config: &Config) -> Result<Link, Error> {
    let kind = LinkKind::Bridge {
        vlan_filtering: config.filters_vlans(),
        no_default_vlan: config.filters_vlans() && !config.preserve_default_vlan,
    };
    let link = NewLink {
        mac: Some(random_mac()),
        mtu: config.mtu,
        up: true,
        ..NewLink::new(&config.bridge, kind)
    };
    match host.add_link(&link) {
        // Another ADD was first.
        Err(cause) if !cause.is(EEXIST) => return Err(cause.into()),
        _ => {}
    }
    // Until the bridge's link-local address is proved unique, for a second or two after the first port, the host can't
    // ask for a pod's hardware address on behalf of a packet that it forwards.
    interface::skip_duplicate_detection(&config.bridge)?;
    interface::find(host, &config.bridge)
}

const EEXIST: i32 = nix::errno::Errno::EEXIST as i32;

/// Gives the gateway's interface its address.
pub(super) fn ensure_address(
    host: &mut Netlink,
    gateway: &Link,
    address: IpNet,
    force: bool,
) -> Result<(), Error> {
    let present: Vec<IpNet> = host
        .addresses(gateway.index)?
        .into_iter()
        .map(|present| present.net)
        .collect();
    if present.contains(&address) {
        return Ok(());
    }
    // Several of IPv6 are usual as long as their subnets are apart.
    let same_family = present
        .iter()
        .filter(|p| p.addr().is_ipv4() == address.addr().is_ipv4());
    let in_the_way = |p: &&IpNet| {
        p.addr().is_ipv4() || p.contains(&address.addr()) || address.contains(&p.addr())
    };
    for other in same_family.filter(in_the_way) {
        if !force {
            let name = &gateway.name;
            return Err(Error::failed(format!(
                "{name:?} already has an IP address different from {address}: {other}"
            )));
        }
        host.delete_address(gateway.index, *other)?;
    }
    Ok(host.add_address(gateway.index, address)?)
}

pub(super) fn set_up(host: &mut Netlink, link: &Link) -> Result<(), Error> {
    Ok(host.change_link(
        link.index,
        &LinkChange {
            up: Some(true),
            ..LinkChange::default()
        },
    )?)
}

/// What hardware addresses that are chosen here begin with: locally administered, of one station.
const OWN_PREFIX: u8 = 0x0a;

/// A hardware address of the locally administered kind.
pub(super) fn random_mac() -> MacAddress {
    let [_, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    MacAddress([OWN_PREFIX, b, c, d, e, f])
}
