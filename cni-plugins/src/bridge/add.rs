//! ADD: bridge, cable, addresses, in this order; undone in the opposite one.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use ipnet::IpNet;
use linux::netlink::{BridgePort, Link, LinkChange, LinkKind, Netlink, NewLink, VethPeer};

use super::config::Config;
use super::{host, mac_spoof_check, vlan};
use crate::owned::Owner;
use crate::protocol::{Error, IpConfig, NetResult, Request, Route};
use crate::{delegate, host_end, interface, masquerade, netns};

pub(super) fn add(request: &Request) -> Result<NetResult, Error> {
    let config = Config::read(request)?;
    let netns = netns::open(request)?;
    let mut host = Netlink::open()?;
    let bridge = host::ensure_bridge(&mut host, &config)?;
    let cable = make_cable(request, &config, &netns, &mut host, &bridge)?;
    match connect(request, &config, &netns, &mut host, &bridge, &cable) {
        Ok(result) => Ok(result),
        Err(error) => Err(error.and_undo(host.delete_link(cable.index).map_err(Error::from))),
    }
}

/// Makes the cable whole by one message, its inner end born in the container's namespace under its final name; then
/// sets what the bridge does with the port. Returns the host's end.
fn make_cable(
    request: &Request,
    config: &Config,
    netns: &OwnedFd,
    host: &mut Netlink,
    bridge: &Link,
) -> Result<Link, Error> {
    let name = host_end::name(&request.network, &request.attachment);
    let peer = VethPeer {
        name: &request.attachment.ifname,
        netns: Some(netns.as_fd()),
        mac: config.mac,
        mtu: config.mtu,
    };
    let link = NewLink {
        mtu: config.mtu,
        master: Some(bridge.index),
        up: true,
        ..NewLink::new(&name, LinkKind::Veth(peer))
    };
    let port = interface::make(host, &link).map_err(|error| {
        let ifname = &request.attachment.ifname;
        error.during(format!(
            "connect {ifname} of {} to {}",
            request.attachment.container_id, bridge.name
        ))
    })?;
    let alias = host_end::alias(&request.network, &request.attachment);
    let change = LinkChange {
        alias: Some(&alias),
        port: Some(BridgePort {
            hairpin: Some(config.hairpin),
            isolated: Some(config.isolated),
        }),
        ..LinkChange::default()
    };
    let done = host.change_link(port.index, &change).map_err(Error::from);
    match done.and_then(|()| vlan::assign(host, &port, config)) {
        Ok(()) => Ok(port),
        Err(error) => Err(error.and_undo(host.delete_link(port.index).map_err(Error::from))),
    }
}

fn connect(
    request: &Request,
    config: &Config,
    netns: &OwnedFd,
    host: &mut Netlink,
    bridge: &Link,
    cable: &Link,
) -> Result<NetResult, Error> {
    if !config.has_ipam {
        let inner = finish_inside(request, config, netns, None)?;
        check_sender(request, config, cable, &inner)?;
        return Ok(describe(
            request,
            bridge,
            cable,
            inner,
            NetResult::default(),
        ));
    }
    let mut addresses = delegate::ipam_add(request)?;
    let mut vlan_gateway = None;
    let done = (|| {
        if addresses.ips.is_empty() {
            return Err(Error::failed("IPAM plugin returned missing IP config"));
        }
        let gateways = plan_gateways(config, &mut addresses);
        vlan_gateway = prepare_host(config, host, bridge, &gateways, &addresses)?;
        let inner = finish_inside(request, config, netns, Some(&addresses))?;
        check_sender(request, config, cable, &inner)?;
        Ok(inner)
    })();
    match done {
        Ok(inner) => {
            let mut result = describe(request, bridge, cable, inner, addresses);
            let gateway = vlan_gateway.map(|link| interface::report(&link, ""));
            result.interfaces.extend(gateway);
            Ok(result)
        }
        Err(error) => Err(error.and_undo(delegate::ipam_del(request))),
    }
}

/// Completes what the address plugin left open: the gateway of each address, and the default routes of a default
/// gateway. Returns the addresses that the bridge gets.
fn plan_gateways(config: &Config, result: &mut NetResult) -> Vec<IpNet> {
    let mut gateways = Vec::new();
    let is_default = |net: &IpNet| net.prefix_len() == 0;
    for ip in &mut result.ips {
        ip.interface = Some(CONTAINER);
        if !config.is_gateway {
            continue;
        }
        let gateway = *ip.gateway.get_or_insert_with(|| first_of(ip.address));
        gateways.extend(IpNet::new(gateway, ip.address.prefix_len()));
        let v6 = gateway.is_ipv6();
        let has_default = result
            .routes
            .iter()
            .any(|r| is_default(&r.dst) && r.dst.addr().is_ipv6() == v6);
        if config.is_default_gateway && !has_default {
            let everything = if v6 {
                IpNet::V6(Default::default())
            } else {
                IpNet::V4(Default::default())
            };
            result.routes.push(Route::new(everything, Some(gateway)));
        }
    }
    gateways
}

/// The subnet's first address.
fn first_of(net: IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).wrapping_add(1).into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).wrapping_add(1).into()),
    }
}

/// Returns the interface that has the gateway's address, if it is not the bridge.
fn prepare_host(
    config: &Config,
    host: &mut Netlink,
    bridge: &Link,
    gateways: &[IpNet],
    result: &NetResult,
) -> Result<Option<Link>, Error> {
    let mut other = None;
    if config.is_gateway {
        let gateway = vlan::gateway(host, bridge, config)?;
        for address in gateways {
            host::ensure_address(host, &gateway, *address, config.force_address)?;
        }
        interface::enable_forwarding(gateways.iter().map(IpNet::addr))?;
        other = Some(gateway).filter(|gateway| gateway.index != bridge.index);
    }
    if config.masquerade {
        masquerade::ensure(result.ips.iter().map(|ip: &IpConfig| ip.address))?;
    }
    Ok(other)
}

/// The last step that can fail: its elements appear together or not at all.
fn check_sender(
    request: &Request,
    config: &Config,
    cable: &Link,
    inner: &Link,
) -> Result<(), Error> {
    match inner.mac {
        Some(mac) if config.mac_spoof_check => {
            mac_spoof_check::add(&Owner::of(request), &cable.name, mac)
        }
        _ => Ok(()),
    }
}

/// Configures the container's interface and reports it.
fn finish_inside(
    request: &Request,
    config: &Config,
    netns: &OwnedFd,
    addresses: Option<&NetResult>,
) -> Result<Link, Error> {
    let name = &request.attachment.ifname;
    netns::inside(netns, |inner| {
        match addresses {
            Some(result) => interface::configure(inner, name, result, config.detect_duplicates)?,
            None if config.disable_container_interface => {}
            None => {
                let link = interface::find(inner, name)?;
                host::set_up(inner, &link)?;
            }
        }
        interface::find(inner, name)
    })
}

/// The container's interface in the result: after the bridge and the host's end.
const CONTAINER: usize = 2;

fn describe(
    request: &Request,
    bridge: &Link,
    cable: &Link,
    inner: Link,
    addresses: NetResult,
) -> NetResult {
    let inner = interface::report(&inner, request.netns_path());
    NetResult {
        interfaces: vec![
            interface::report(bridge, ""),
            interface::report(cable, ""),
            inner,
        ],
        dns: request.dns().unwrap_or(addresses.dns),
        ips: addresses.ips,
        routes: addresses.routes,
    }
}
