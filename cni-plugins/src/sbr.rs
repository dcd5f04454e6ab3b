//! `sbr`: source-based routing. What is sent from an address of this interface leaves by it, whatever the main table
//! says: a container with several interfaces answers each where it was asked.

use linux::netlink::{Destination, Netlink, Route, SourceRule};
use serde::Deserialize;

use crate::protocol::{Error, IpConfig, NetResult, Request, all_of};
use crate::{Plugin, interface, netns};

pub const PLUGIN: Plugin = Plugin {
    name: "sbr",
    add,
    del,
    check,
    gc: |_| Ok(()),
    status: |request| request.config::<NetConf>().map(drop),
};

/// Upstream's keys.
#[derive(Deserialize)]
struct NetConf {
    /// The table to use; the next unused one from 100 on if absent.
    #[serde(default)]
    table: Option<u32>,
}

const MAIN_TABLE: u32 = 254;
const FIRST_TABLE: u32 = 100;

fn add(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    let result = request.required_previous()?;
    let netns = netns::open(request)?;
    let name = &request.attachment.ifname;
    netns::inside(&netns, |inner| {
        let index = interface::find(inner, name)?.index;
        let own: Vec<Route> = inner
            .routes(MAIN_TABLE)?
            .into_iter()
            .filter(|route| route.index == Some(index))
            .collect();
        for ip in addresses(request, result) {
            let table = match conf.table {
                Some(table) => table,
                None => free_table(inner)?,
            };
            route_by_source(inner, index, table, ip, &own)?;
        }
        // The kernel's own, to what is on the link, stay: others may need to reach it too.
        own.iter()
            .filter(|route| route.protocol != KERNEL)
            .try_for_each(|route| Ok(inner.delete_route(route)?))
    })?;
    Ok(result.clone())
}

/// `RTPROT_KERNEL`
const KERNEL: u8 = 2;

/// The interface's addresses in the result.
fn addresses<'a>(request: &Request, result: &'a NetResult) -> impl Iterator<Item = &'a IpConfig> {
    let at = result
        .container_interface(&request.attachment.ifname)
        .map(|(at, _)| at);
    result
        .ips
        .iter()
        .filter(move |ip| ip.interface.is_none() || ip.interface == at)
}

/// The first table, from 100 on, that no rule leads to.
fn free_table(inner: &mut Netlink) -> Result<u32, Error> {
    let taken: Vec<u32> = inner
        .source_rules()?
        .iter()
        .map(|rule| rule.table)
        .collect();
    (FIRST_TABLE..)
        .find(|table| !taken.contains(table) && !(253..=255).contains(table))
        .ok_or_else(|| Error::failed("sbr: no free routing table"))
}

/// A rule for the address, and in its table the interface's routes of the family, with a default route by the
/// address's gateway.
fn route_by_source(
    inner: &mut Netlink,
    index: u32,
    table: u32,
    ip: &IpConfig,
    own: &[Route],
) -> Result<(), Error> {
    let v6 = ip.address.addr().is_ipv6();
    inner.add_source_rule(&SourceRule {
        source: ip.address.addr().into(),
        table,
        priority: None,
    })?;
    let mut own: Vec<&Route> = own
        .iter()
        .filter(|route| route.destination.is_ipv6() == v6)
        .collect();
    // What is on the link first: a gateway has to be reachable when a route by it is added.
    own.sort_by_key(|route| route.gateway.is_some());
    for route in own {
        inner.replace_route(&Route {
            table: Some(table),
            ..route.clone()
        })?;
    }
    let Some(gateway) = ip.gateway else {
        return Ok(());
    };
    let everything = if v6 {
        Destination::DefaultV6
    } else {
        Destination::DefaultV4
    };
    let default = Route {
        table: Some(table),
        index: Some(index),
        ..Route::via(everything, gateway)
    };
    Ok(inner.replace_route(&default)?)
}

/// The rules go by the addresses; the tables' routes go with the interface.
fn del(request: &Request) -> Result<(), Error> {
    let Some(netns) = netns::open_if_there(request)?.filter(|_| !request.netns_ends()) else {
        return Ok(());
    };
    netns::inside(&netns, |inner| {
        let mut mine: Vec<_> = request
            .previous
            .iter()
            .flat_map(|result| &result.ips)
            .map(|ip| ip.address.addr())
            .collect();
        if let Some(link) = inner.link_by_name(&request.attachment.ifname)? {
            mine.extend(
                inner
                    .addresses(link.index)?
                    .iter()
                    .map(|address| address.net.addr()),
            );
        }
        let rules = inner.source_rules()?;
        let of_mine = rules
            .iter()
            .filter(|rule| mine.contains(&rule.source.addr()));
        all_of(of_mine.map(|rule| inner.delete_source_rule(rule).map_err(Error::from)))
    })
}

fn check(request: &Request) -> Result<(), Error> {
    let netns = netns::open(request)?;
    let result = request.required_previous()?;
    let rules = netns::inside(&netns, |inner| Ok(inner.source_rules()?))?;
    for ip in addresses(request, result) {
        if !rules
            .iter()
            .any(|rule| rule.source.addr() == ip.address.addr())
        {
            return Err(Error::failed(format!(
                "check {}: no rule for it",
                ip.address.addr()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use linux::netlink::{Destination, Netlink};
    use serde_json::json;

    use crate::lab::{Host, Pod};

    #[test]
    fn each_address_has_a_rule_and_a_table_of_its_own_until_del() {
        let host = Host::new();
        let pod = Pod::new("a");
        let result = host
            .call("ADD", &pod, &host.bridge_config())
            .expect("bridge");
        let mut config = json!({ "cniVersion": "1.1.0", "name": "net", "type": "sbr" });
        config["prevResult"] = result.clone();
        assert_eq!(host.call("ADD", &pod, &config).expect("add"), result);
        let rules = || {
            pod.inside(|| {
                Netlink::open()
                    .expect("netlink")
                    .source_rules()
                    .expect("rules")
            })
        };
        let sources: Vec<_> = rules()
            .iter()
            .map(|rule| (rule.source.to_string(), rule.table))
            .collect();
        assert_eq!(
            sources,
            [
                ("10.1.0.2/32".to_owned(), 100),
                ("fd00:1::2/128".to_owned(), 101)
            ]
        );
        let has_default = |table: u32, default: Destination| {
            let routes = pod.inside(|| {
                Netlink::open()
                    .expect("netlink")
                    .routes(table)
                    .expect("routes")
            });
            routes.iter().any(|route| route.destination == default)
        };
        assert!(
            has_default(100, Destination::DefaultV4) && has_default(101, Destination::DefaultV6)
        );
        assert!(
            !has_default(254, Destination::DefaultV4) && !has_default(254, Destination::DefaultV6)
        );
        let gateway = "10.1.0.1:80".parse().expect("address");
        assert!(crate::lab::connect(&pod.netns, &host.netns, gateway).is_some());
        host.call("CHECK", &pod, &config).expect("check");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        assert!(rules().is_empty());
        host.call("CHECK", &pod, &config).expect_err("gone");
    }
}
