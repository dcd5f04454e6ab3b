//! `loopback`: brings `lo` up in the container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux::netlink::{LinkChange, Netlink};

use crate::protocol::{Error, Interface, IpConfig, NetResult, Request};
use crate::{Plugin, netns};

pub const PLUGIN: Plugin = Plugin {
    name: "loopback",
    add,
    del,
    check,
    gc: |_| Ok(()),
    status: |_| Ok(()),
};

const LO: &str = "lo";

fn add(request: &Request) -> Result<NetResult, Error> {
    let netns = netns::open(request)?;
    let addresses = netns::inside(&netns, |inner| {
        let index = lo(inner)?;
        set_up(inner, index, true)?;
        Ok(inner.addresses(index)?)
    })?;
    // A chained loopback passes on what it was given.
    if let Some(previous) = &request.previous {
        return Ok(previous.clone());
    }
    let sandbox = request.env.get("CNI_NETNS").cloned().unwrap_or_default();
    let is_standard = |ip: IpAddr| ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST;
    let standard = addresses
        .iter()
        .map(|address| address.net)
        .filter(|net| is_standard(net.addr()));
    Ok(NetResult {
        interfaces: vec![Interface {
            name: LO.to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox,
            ..Interface::default()
        }],
        ips: standard
            .map(|address| IpConfig {
                interface: Some(0),
                address,
                gateway: None,
            })
            .collect(),
        ..NetResult::default()
    })
}

fn del(request: &Request) -> Result<(), Error> {
    // The interface can't be deleted, and goes with the namespace.
    let Some(netns) = netns::open_if_there(request)?.filter(|_| !request.netns_ends()) else {
        return Ok(());
    };
    netns::inside(&netns, |inner| {
        let index = lo(inner)?;
        set_up(inner, index, false)
    })
}

fn check(request: &Request) -> Result<(), Error> {
    let netns = netns::open(request)?;
    let up = netns::inside(&netns, |inner| {
        Ok(inner.link_by_name(LO)?.is_some_and(|link| link.is_up()))
    })?;
    if up {
        Ok(())
    } else {
        Err(Error::failed("check lo: loopback interface is down"))
    }
}

fn lo(inner: &mut Netlink) -> Result<u32, Error> {
    let link = inner.link_by_name(LO)?;
    link.map(|link| link.index)
        .ok_or_else(|| Error::failed("find lo: no such interface"))
}

fn set_up(inner: &mut Netlink, index: u32, up: bool) -> Result<(), Error> {
    Ok(inner.change_link(
        index,
        &LinkChange {
            up: Some(up),
            ..LinkChange::default()
        },
    )?)
}
