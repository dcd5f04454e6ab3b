//! `ptp`: a cable between the container and the host, without a bridge: all traffic is routed.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use ipnet::IpNet;
use linux::netlink::{Destination, LinkChange, LinkKind, Netlink, NewLink, Route, VethPeer};
use serde::Deserialize;

use crate::protocol::{Error, IpConfig, NetResult, Request};
use crate::{Plugin, attach, delegate, host_end, interface, masquerade, netns};

pub const PLUGIN: Plugin = Plugin {
    name: "ptp",
    add,
    del,
    check: |request| attach::check_kind(request, "veth"),
    gc: attach::gc,
    status: attach::status,
};

/// Upstream's keys.
#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct NetConf {
    ip_masq: bool,
    mtu: u32,
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    if delegate::ipam_type(request).is_none() {
        return Err(Error::config("ipam: ptp requires an IPAM configuration"));
    }
    let netns = netns::open(request)?;
    let mut host = Netlink::open()?;
    let name = host_end::name(&request.network, &request.attachment);
    let mtu = Some(conf.mtu).filter(|mtu| *mtu != 0);
    let peer = VethPeer {
        name: &request.attachment.ifname,
        netns: Some(netns.as_fd()),
        mac: None,
        mtu,
    };
    let link = NewLink {
        mtu,
        ..NewLink::new(&name, LinkKind::Veth(peer))
    };
    let end = interface::make(&mut host, &link)?;
    let done = delegate::ipam_add(request).and_then(|addresses| {
        connect(request, &conf, &mut host, &netns, end.index, addresses)
            .map_err(|error| error.and_undo(delegate::ipam_del(request)))
    });
    done.map_err(|error| error.and_undo(host.delete_link(end.index).map_err(Error::from)))
}

fn connect(
    request: &Request,
    conf: &NetConf,
    host: &mut Netlink,
    netns: &OwnedFd,
    end: u32,
    mut addresses: NetResult,
) -> Result<NetResult, Error> {
    let name = &request.attachment.ifname;
    addresses
        .ips
        .iter_mut()
        .for_each(|ip| ip.interface = Some(1));
    let hops = addresses
        .ips
        .iter()
        .map(hop)
        .collect::<Result<Vec<_>, _>>()?;
    prepare_host(request, host, end, &hops)?;
    let inner = netns::inside(netns, |inner| {
        interface::configure(inner, name, &addresses, false)?;
        let link = interface::find(inner, name)?;
        hops.iter()
            .try_for_each(|hop| route_by_host(inner, link.index, hop))?;
        Ok(link)
    })?;
    if conf.ip_masq {
        masquerade::ensure(hops.iter().map(|hop| hop.address))?;
    }
    let end = host
        .link_by_index(end)?
        .ok_or_else(|| Error::failed(format!("find the host's end of {name}: gone")))?;
    Ok(NetResult {
        interfaces: vec![
            interface::report(&end, ""),
            interface::report(&inner, request.netns_path()),
        ],
        dns: request.dns().unwrap_or(addresses.dns),
        ips: addresses.ips,
        routes: addresses.routes,
    })
}

/// A container's address and the host's next to it.
struct Hop {
    address: IpNet,
    gateway: IpAddr,
}

fn hop(ip: &IpConfig) -> Result<Hop, Error> {
    let missing = || Error::failed(format!("IPAM plugin gave no gateway for {}", ip.address));
    Ok(Hop {
        address: ip.address,
        gateway: ip.gateway.ok_or_else(missing)?,
    })
}

/// The gateway's address on the host's end, and a route to the container's only address.
fn prepare_host(
    request: &Request,
    host: &mut Netlink,
    end: u32,
    hops: &[Hop],
) -> Result<(), Error> {
    let name = host_end::name(&request.network, &request.attachment);
    interface::skip_duplicate_detection(&name)?;
    let alias = host_end::alias(&request.network, &request.attachment);
    host.change_link(
        end,
        &LinkChange {
            up: Some(true),
            alias: Some(&alias),
            ..LinkChange::default()
        },
    )?;
    for hop in hops {
        host.add_address(end, IpNet::from(hop.gateway))?;
        host.add_route(&Route::link(IpNet::from(hop.address.addr()), end))?;
    }
    interface::enable_forwarding(hops.iter().map(|hop| hop.gateway))
}

/// Even the neighbours in the subnet are reached by the host: the kernel's own route to them goes.
fn route_by_host(inner: &mut Netlink, index: u32, hop: &Hop) -> Result<(), Error> {
    let source = Some(hop.address.addr());
    let subnet = Destination::from(hop.address);
    inner.delete_route(&Route {
        protocol: KERNEL,
        ..Route::link(subnet, index)
    })?;
    inner.add_route(&Route {
        source,
        ..Route::link(IpNet::from(hop.gateway), index)
    })?;
    inner.add_route(&Route {
        source,
        index: Some(index),
        ..Route::via(subnet, hop.gateway)
    })?;
    Ok(())
}

/// `RTPROT_KERNEL`
const KERNEL: u8 = 2;

fn del(request: &Request) -> Result<(), Error> {
    if netns::open_if_there(request)?.is_none() {
        let mut host = Netlink::open()?;
        if let Some(end) =
            host.link_by_name(&host_end::name(&request.network, &request.attachment))?
        {
            host.delete_link(end.index)?;
        }
    }
    attach::del(request)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::json;

    use crate::lab::{Host, Pod, connect, ips, new_namespace, wire_to_world};

    #[test]
    fn containers_reach_the_host_each_other_and_the_world_by_routes_alone() {
        let host = Host::new();
        let world = new_namespace();
        wire_to_world(&host, &world);
        let before = host.links();
        let mut config = host.bridge_config();
        config["type"] = json!("ptp");
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        let first = host.call("ADD", &a, &config).expect("add");
        let second = host.call("ADD", &b, &config).expect("add");
        for (own, other) in ips(&first).into_iter().zip(ips(&second)) {
            assert_eq!(
                connect(&a.netns, &b.netns, SocketAddr::new(other, 80)),
                Some(own)
            );
            assert!(connect(&host.netns, &b.netns, SocketAddr::new(other, 80)).is_some());
        }
        for (outside, hosts) in [
            ("192.0.2.2:80", "192.0.2.1"),
            ("[2001:db8::2]:80", "2001:db8::1"),
        ] {
            let seen = connect(&a.netns, &world, outside.parse().expect("address"));
            assert_eq!(seen.map(|ip| ip.to_string()).as_deref(), Some(hosts));
        }
        config["prevResult"] = first;
        host.call("CHECK", &a, &config).expect("check");
        host.call("DEL", &a, &config).expect("del");
        drop(b);
        host.call_without_netns("DEL", "b", &config).expect("del");
        assert_eq!((host.links(), host.leases().len()), (before, 0));
    }
}
