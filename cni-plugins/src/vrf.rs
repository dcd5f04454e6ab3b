//! `vrf`: puts the container's interface into a routing domain of the container's.

use std::os::fd::OwnedFd;

use linux::netlink::{Address, Link, LinkChange, LinkKind, Netlink, NewLink, Route};
use serde::Deserialize;

use crate::protocol::{Error, NetResult, Request};
use crate::{Plugin, interface, netns};

pub const PLUGIN: Plugin = Plugin {
    name: "vrf",
    add,
    del,
    check,
    gc: |_| Ok(()),
    status: |request| request.config::<NetConf>().map(drop),
};

/// Upstream's keys.
#[derive(Deserialize)]
struct NetConf {
    #[serde(rename = "vrfname")]
    name: String,
    /// Its routing table; an unused one if 0.
    #[serde(default)]
    table: u32,
}

const MAIN_TABLE: u32 = 254;
/// `linux/if_link.h`
const IFLA_VRF_TABLE: u16 = 1;

fn add(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    let result = request.required_previous()?;
    let netns = netns::open(request)?;
    inside(request, &netns, |inner, name| {
        let link = interface::find(inner, name)?;
        let addresses = inner.addresses(link.index)?;
        let routes = inner.routes(MAIN_TABLE)?;
        let (vrf, table) = ensure_vrf(inner, &conf)?;
        inner.change_link(
            link.index,
            &LinkChange {
                master: Some(vrf),
                ..LinkChange::default()
            },
        )?;
        restore(inner, link.index, table, &addresses, &routes)
    })?;
    Ok(result.clone())
}

/// Runs `work` in the container's namespace with the interface's name.
fn inside<T: Send>(
    request: &Request,
    netns: &OwnedFd,
    work: impl FnOnce(&mut Netlink, &str) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    netns::inside(netns, |inner| work(inner, &request.attachment.ifname))
}

/// The domain's device and table; made if it is not there.
fn ensure_vrf(inner: &mut Netlink, conf: &NetConf) -> Result<(u32, u32), Error> {
    let table_of = |link: &Link| link.kind_number(IFLA_VRF_TABLE);
    if let Some(vrf) = inner.link_by_name(&conf.name)? {
        let Some(table) = table_of(&vrf).filter(|_| vrf.is_kind("vrf")) else {
            return Err(Error::config(format!(
                "vrfname: {:?} already exists but is not a VRF",
                conf.name
            )));
        };
        if conf.table != 0 && conf.table != table {
            let reason = format!("table: VRF {} already exists with table {table}", conf.name);
            return Err(Error::config(reason));
        }
        return Ok((vrf.index, table));
    }
    let taken: Vec<u32> = inner.links()?.iter().filter_map(table_of).collect();
    if conf.table != 0 && taken.contains(&conf.table) {
        return Err(Error::config(format!(
            "table: {} is another VRF's",
            conf.table
        )));
    }
    let free = (1..MAIN_TABLE - 1).find(|table| !taken.contains(table));
    let table = Some(conf.table).filter(|table| *table != 0).or(free);
    let table = table.ok_or_else(|| Error::failed("make VRF: no free routing table"))?;
    inner.add_link(&NewLink {
        up: true,
        ..NewLink::new(&conf.name, LinkKind::Vrf { table })
    })?;
    Ok((interface::find(inner, &conf.name)?.index, table))
}

/// The kernel takes IPv6 addresses and all routes away when an interface changes its domain: they are given again, the
/// routes in the domain's table.
fn restore(
    inner: &mut Netlink,
    index: u32,
    table: u32,
    addresses: &[Address],
    routes: &[Route],
) -> Result<(), Error> {
    for address in addresses
        .iter()
        .filter(|address| address.net.addr().is_ipv6() && !address.is_link_local())
    {
        inner.add_address(index, address.net)?;
    }
    for route in routes
        .iter()
        .filter(|route| route.index == Some(index) && route.gateway.is_some())
    {
        inner.replace_route(&Route {
            table: Some(table),
            ..route.clone()
        })?;
    }
    Ok(())
}

fn del(request: &Request) -> Result<(), Error> {
    let conf: NetConf = request.config()?;
    let Some(netns) = netns::open_if_there(request)?.filter(|_| !request.netns_ends()) else {
        return Ok(());
    };
    inside(request, &netns, |inner, name| {
        let Some(vrf) = inner
            .link_by_name(&conf.name)?
            .filter(|link| link.is_kind("vrf"))
        else {
            return Ok(());
        };
        if let Some(link) = inner
            .link_by_name(name)?
            .filter(|link| link.master == Some(vrf.index))
        {
            inner.change_link(
                link.index,
                &LinkChange {
                    master: Some(0),
                    ..LinkChange::default()
                },
            )?;
        }
        if inner
            .links()?
            .iter()
            .any(|link| link.master == Some(vrf.index))
        {
            return Ok(());
        }
        Ok(inner.delete_link(vrf.index)?)
    })
}

fn check(request: &Request) -> Result<(), Error> {
    let conf: NetConf = request.config()?;
    let netns = netns::open(request)?;
    inside(request, &netns, |inner, name| {
        let vrf = interface::find(inner, &conf.name)?;
        if interface::find(inner, name)?.master != Some(vrf.index) {
            return Err(Error::failed(format!(
                "check {name}: not in VRF {}",
                conf.name
            )));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use linux::netlink::{Destination, Netlink};
    use serde_json::json;

    use crate::lab::{Host, Pod};

    #[test]
    #[ignore = "needs a kernel with VRFs: the VM's"]
    fn the_interface_takes_its_addresses_and_routes_into_the_domain() {
        let host = Host::new();
        let pod = Pod::new("a");
        let result = host
            .call("ADD", &pod, &host.bridge_config())
            .expect("bridge");
        let mut config = json!({ "cniVersion": "1.1.0", "name": "net", "type": "vrf", "vrfname": "blue", "table": 77 });
        config["prevResult"] = result.clone();
        assert_eq!(host.call("ADD", &pod, &config).expect("add"), result);
        let (routes, addresses) = pod.inside(|| {
            let mut inner = Netlink::open().expect("netlink");
            let index = inner
                .link_by_name("eth0")
                .expect("get")
                .expect("eth0")
                .index;
            (
                inner.routes(77).expect("routes"),
                inner.addresses(index).expect("addresses"),
            )
        });
        for default in [Destination::DefaultV4, Destination::DefaultV6] {
            assert!(
                routes.iter().any(|route| route.destination == default),
                "{default} in {routes:?}"
            );
        }
        assert_eq!(
            addresses
                .iter()
                .filter(|address| !address.is_link_local())
                .count(),
            2
        );
        host.call("CHECK", &pod, &config).expect("check");
        config["table"] = json!(78);
        host.call("ADD", &pod, &config).expect_err("another table");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        assert!(
            pod.inside(|| Netlink::open()
                .expect("netlink")
                .link_by_name("blue")
                .expect("get"))
                .is_none()
        );
    }
}
