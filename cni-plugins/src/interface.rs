//! The container's interface: addresses, routes, and whether they are still there. Shared by all plugins that make one.

use std::net::IpAddr;

use ipnet::IpNet;
use linux::netlink::{
    Link, LinkChange, Netlink, NewLink, Route as KernelRoute, RouteScope, read_sysctl, write_sysctl,
};

use crate::protocol::{Error, Interface, NetResult, Route};

const MAIN_TABLE: u32 = 254;

/// The interface `name` of this conversation's namespace.
///
/// # Errors
/// Code 999 if there is none.
pub fn find(netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
    netlink
        .link_by_name(name)?
        .ok_or_else(|| Error::failed(format!("find {name}: no such interface")))
}

/// Makes an interface in this conversation's namespace and returns it. What can't be seen after it was made is deleted.
///
/// # Errors
/// The kernel's.
pub fn make(netlink: &mut Netlink, link: &NewLink<'_>) -> Result<Link, Error> {
    netlink.add_link(link)?;
    find(netlink, link.name).map_err(|error| {
        let deleted = netlink.delete_link_by_name(link.name);
        error.and_undo(deleted.map_err(Error::from))
    })
}

/// An interface as a result states it; `sandbox` is its namespace's path, empty for the host's.
pub fn report(link: &Link, sandbox: &str) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: link.mtu,
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// Gives interface `name` the addresses and routes of `result`, and brings it up. Called in the container's namespace.
///
/// IPv6 addresses are usable at once. With `detect_duplicates` false, the kernel doesn't probe for the link-local
/// address either: the addresses come from an allocator, and nobody else has them.
///
/// # Errors
/// The kernel's, naming the address or the route.
pub fn configure(
    inner: &mut Netlink,
    name: &str,
    result: &NetResult,
    detect_duplicates: bool,
) -> Result<(), Error> {
    let link = find(inner, name)?;
    // A neighbour may remember the address's last owner: announce the new one when the link comes up.
    announce(name)?;
    if result.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
        enable_ipv6(name, detect_duplicates)?;
    }
    for ip in &result.ips {
        inner.add_address(link.index, ip.address)?;
    }
    inner.change_link(
        link.index,
        &LinkChange {
            up: Some(true),
            ..LinkChange::default()
        },
    )?;
    for route in &result.routes {
        inner.add_route(&kernel_route(route, result, link.index))?;
    }
    Ok(())
}

fn announce(name: &str) -> Result<(), Error> {
    for path in [
        ["net", "ipv4", "conf", name, "arp_notify"],
        ["net", "ipv6", "conf", name, "ndisc_notify"],
    ] {
        write_if_there(&path, "1")?;
    }
    Ok(())
}

fn enable_ipv6(name: &str, detect_duplicates: bool) -> Result<(), Error> {
    write_if_there(&["net", "ipv6", "conf", name, "disable_ipv6"], "0")?;
    if detect_duplicates {
        Ok(())
    } else {
        skip_duplicate_detection(name)
    }
}

/// Lets the kernel use a link-local address without asking whether somebody else has it. Call it before the interface
/// has a carrier.
///
/// # Errors
/// EROFS where `/proc/sys` is read-only.
pub fn skip_duplicate_detection(name: &str) -> Result<(), Error> {
    write_if_there(&["net", "ipv6", "conf", name, "accept_dad"], "0")
}

/// A kernel without IPv6 has none of its sysctls.
fn write_if_there(path: &[&str], value: &str) -> Result<(), Error> {
    match write_sysctl(path, value) {
        Err(cause) if !cause.is_not_found() => Err(cause.into()),
        _ => Ok(()),
    }
}

/// A route of a result goes by its own gateway, or by that of the first address of its family.
fn kernel_route(route: &Route, result: &NetResult, index: u32) -> KernelRoute {
    let v6 = route.dst.addr().is_ipv6();
    let gateways = result.ips.iter().filter_map(|ip| ip.gateway);
    let on_link = route.scope == Some(253);
    let gateway = route.gw.or_else(|| {
        gateways
            .into_iter()
            .find(|gw| gw.is_ipv6() == v6)
            .filter(|_| !on_link)
    });
    let base = match gateway {
        Some(gateway) => KernelRoute::via(route.dst, gateway),
        None => KernelRoute::link(route.dst, index),
    };
    let scope = match route.scope {
        None => base.scope,
        Some(0) => RouteScope::Universe,
        Some(253) => RouteScope::Link,
        Some(254) => RouteScope::Host,
        Some(number) => RouteScope::Other(number),
    };
    KernelRoute {
        index: Some(index),
        scope,
        mtu: route.mtu,
        advmss: route.advmss,
        metric: route.priority,
        table: route.table,
        ..base
    }
}

/// Whether interface `name` still has the addresses and routes of `result`. Called in the container's namespace.
///
/// # Errors
/// Code 999 naming the first that is missing.
pub fn verify(inner: &mut Netlink, name: &str, result: &NetResult) -> Result<Link, Error> {
    let link = find(inner, name)?;
    let present: Vec<IpNet> = inner
        .addresses(link.index)?
        .into_iter()
        .map(|address| address.net)
        .collect();
    let (at, _) = result.container_interface(name).unzip();
    for ip in result
        .ips
        .iter()
        .filter(|ip| ip.interface.is_none() || ip.interface == at)
    {
        if !present.contains(&ip.address) {
            return Err(Error::failed(format!(
                "check {name}: failed to find address {}",
                ip.address
            )));
        }
    }
    for route in &result.routes {
        let wanted = kernel_route(route, result, link.index);
        let table = wanted.table.unwrap_or(MAIN_TABLE);
        let found = inner.routes(table)?.iter().any(|seen| {
            seen.destination == wanted.destination
                && (wanted.gateway.is_none() || seen.gateway == wanted.gateway)
        });
        if !found {
            return Err(Error::failed(format!(
                "check {name}: expected route {wanted} not found"
            )));
        }
    }
    Ok(link)
}

/// Takes the interface out of use before its addresses are given back: addresses removed, down. With `delete` it is
/// deleted too. Called in the container's namespace; an interface that is gone is no error.
///
/// # Errors
/// The kernel's.
pub fn retire(inner: &mut Netlink, name: &str, delete: bool) -> Result<(), Error> {
    let Some(link) = inner.link_by_name(name)? else {
        return Ok(());
    };
    if delete {
        return Ok(inner.delete_link(link.index)?);
    }
    for address in inner.addresses(link.index)? {
        inner.delete_address(link.index, address.net)?;
    }
    Ok(inner.change_link(
        link.index,
        &LinkChange {
            up: Some(false),
            ..LinkChange::default()
        },
    )?)
}

/// Lets the host forward packets of the families of `addresses`.
///
/// # Errors
/// EROFS where `/proc/sys` is read-only and forwarding is off.
pub fn enable_forwarding(addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), Error> {
    let (mut v4, mut v6) = (false, false);
    addresses
        .into_iter()
        .for_each(|ip| if ip.is_ipv4() { v4 = true } else { v6 = true });
    if v4 {
        write_sysctl(&["net", "ipv4", "ip_forward"], "1")?;
    }
    if v6 && read_sysctl(&["net", "ipv6", "conf", "all", "forwarding"]).is_ok() {
        write_sysctl(&["net", "ipv6", "conf", "all", "forwarding"], "1")?;
    }
    Ok(())
}
