//! This machine's name and addresses, as a node states them.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use linux::netlink::Netlink;

const MAIN_TABLE: u32 = 254;

/// The host's name in lower case, as a node's name must be (RFC 1123).
pub fn host_name() -> anyhow::Result<String> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    ensure!(
        !name.is_empty(),
        "this machine has no host name: give one with --hostname-override"
    );
    Ok(name)
}

/// The address of each family by which this machine reaches others: that of the default route's interface, else
/// the first that is not of the loopback or of one link only.
pub fn node_addresses() -> anyhow::Result<Vec<IpAddr>> {
    let mut netlink = Netlink::open()?;
    let loopback: Vec<u32> = netlink
        .link_by_name("lo")?
        .into_iter()
        .map(|link| link.index)
        .collect();
    let mut addresses = netlink.all_addresses()?;
    addresses.retain(|address| {
        !loopback.contains(&address.index) && !address.is_link_local() && !address.is_tentative()
    });
    let routes = netlink.routes(MAIN_TABLE)?;
    let mut chosen = Vec::new();
    for v6 in [false, true] {
        let default = routes.iter().filter(|route| {
            matches!(
                route.destination,
                linux::netlink::Destination::DefaultV4 | linux::netlink::Destination::DefaultV6
            ) && route.destination.is_ipv6() == v6
        });
        let default = default.min_by_key(|route| route.metric.unwrap_or(0));
        let of_family = || {
            addresses
                .iter()
                .filter(|address| address.net.addr().is_ipv6() == v6)
        };
        let by_route = default.and_then(|route| {
            let mut on_link = of_family().filter(|address| Some(address.index) == route.index);
            route
                .source
                .or_else(|| on_link.next().map(|address| address.net.addr()))
        });
        chosen.extend(by_route.or_else(|| of_family().next().map(|address| address.net.addr())));
    }
    ensure!(
        !chosen.is_empty(),
        "this machine has no address but loopback's: give one with --node-ip"
    );
    Ok(chosen)
}

/// The node's name and addresses: as given, else as found.
pub fn identity(given: &crate::cli::ThisNode) -> anyhow::Result<(String, Vec<IpAddr>)> {
    let name = match &given.hostname_override {
        Some(name) => name.to_lowercase(),
        None => host_name()?,
    };
    let addresses = if given.node_ip.is_empty() {
        node_addresses().context("find the node's address")?
    } else {
        given.node_ip.clone()
    };
    Ok((name, addresses))
}
