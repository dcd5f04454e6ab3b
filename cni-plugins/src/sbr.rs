//! `sbr`: source-based routing. What is sent from an address of this interface leaves by it, whatever the main table
//! says: a container with several interfaces answers each where it was asked.

use std::net::IpAddr;

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
    status: |request| NetConf::read(request).map(drop),
};

/// Upstream's keys.
#[derive(Deserialize)]
struct NetConf {
    /// The table that the rules lead to, whose routes are others' business; if absent, a table for each address gets the
    /// interface's routes.
    table: Option<u32>,
    /// Default gateways, at most one of a family; the addresses' own if absent.
    #[serde(default)]
    gateways: Vec<IpAddr>,
    /// The routes to what is on the link stay in the main table too, from the address.
    #[serde(default, rename = "addSourceHints")]
    add_source_hints: bool,
}

const MAIN_TABLE: u32 = 254;
const FIRST_TABLE: u32 = 100;

impl NetConf {
    fn read(request: &Request) -> Result<Self, Error> {
        let conf: Self = request.config()?;
        for v6 in [false, true] {
            if conf.gateways.iter().filter(|ip| ip.is_ipv6() == v6).count() > 1 {
                return Err(Error::config(
                    "gateways: more than one of a family (one IPv4, one IPv6)",
                ));
            }
        }
        Ok(conf)
    }

    /// The default gateway beside an address.
    fn gateway(&self, ip: &IpConfig) -> Option<IpAddr> {
        let v6 = ip.address.addr().is_ipv6();
        let own = self.gateways.iter().find(|gateway| gateway.is_ipv6() == v6);
        own.copied().or(ip.gateway)
    }
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let conf = NetConf::read(request)?;
    let result = request.required_previous()?;
    let netns = netns::open(request)?;
    netns::inside(&netns, |inner| {
        let index = interface::find(inner, &request.attachment.ifname)?.index;
        let mut rules = Vec::new();
        let routed = route_all(inner, index, &conf, request, result, &mut rules);
        routed.map_err(|error| {
            let index = Some(index).filter(|_| conf.table.is_none());
            error.and_undo(remove(inner, &rules, index))
        })
    })?;
    Ok(result.clone())
}

/// Adds the rules, noting each in `rules`, then moves the interface's routes from the main table to theirs.
fn route_all(
    inner: &mut Netlink,
    index: u32,
    conf: &NetConf,
    request: &Request,
    result: &NetResult,
    rules: &mut Vec<SourceRule>,
) -> Result<(), Error> {
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
        let rule = SourceRule {
            source: ip.address.addr().into(),
            table,
            priority: None,
        };
        inner.add_source_rule(&rule)?;
        rules.push(rule);
        if conf.table.is_none() {
            fill_table(inner, index, table, ip, conf.gateway(ip), &own)?;
        }
    }
    if conf.table.is_some() {
        return Ok(());
    }
    let stays = |route: &Route| conf.add_source_hints && route.gateway.is_none();
    // Routes by a gateway first: they need the ones to what is on the link.
    let mut leaving: Vec<&Route> = own.iter().filter(|route| !stays(route)).collect();
    leaving.sort_by_key(|route| route.gateway.is_none());
    for (number, route) in leaving.iter().enumerate() {
        if let Err(cause) = inner.delete_route(route) {
            let gone = leaving.iter().take(number).rev();
            let back = all_of(gone.map(|route| inner.replace_route(route).map_err(Error::from)));
            return Err(Error::from(cause).and_undo(back));
        }
    }
    if conf.add_source_hints {
        for ip in addresses(request, result) {
            inner.replace_route(&Route {
                source: Some(ip.address.addr()),
                ..Route::link(ip.address.trunc(), index)
            })?;
        }
    }
    Ok(())
}

/// The interface's addresses in the result: those that are not another interface's.
fn addresses<'a>(
    request: &'a Request,
    result: &'a NetResult,
) -> impl Iterator<Item = &'a IpConfig> {
    let own = |at: usize| {
        let interface = result.interfaces.get(at);
        interface.is_none_or(|interface| interface.name == request.attachment.ifname)
    };
    result
        .ips
        .iter()
        .filter(move |ip| ip.interface.is_none_or(own))
}

/// The first table, from 100 on, that no rule leads to.
fn free_table(inner: &mut Netlink) -> Result<u32, Error> {
    let taken: Vec<u32> = inner
        .source_rules()?
        .iter()
        .map(|rule| rule.table)
        .collect();
    for table in FIRST_TABLE.. {
        if !taken.contains(&table)
            && !(253..=255).contains(&table)
            && inner.routes(table)?.is_empty()
        {
            return Ok(table);
        }
    }
    Err(Error::failed("sbr: no free routing table"))
}

/// Gives an address's table a default route by the gateway, and those of the interface's routes that are of the
/// address's subnet or of no particular one.
fn fill_table(
    inner: &mut Netlink,
    index: u32,
    table: u32,
    ip: &IpConfig,
    gateway: Option<IpAddr>,
    own: &[Route],
) -> Result<(), Error> {
    let v6 = ip.address.addr().is_ipv6();
    let is_of = |route: &Route| {
        let inside = |other: Option<IpAddr>| other.is_some_and(|ip2| ip.address.contains(&ip2));
        let general = route.source.is_none() && route.gateway.is_none();
        inside(route.source) || inside(route.gateway) || general
    };
    let mut own: Vec<&Route> = own
        .iter()
        .filter(|route| route.destination.is_ipv6() == v6 && is_of(route))
        .collect();
    // What is on the link first: a gateway has to be reachable when a route by it is added.
    own.sort_by_key(|route| route.gateway.is_some());
    for route in own {
        inner.replace_route(&Route {
            table: Some(table),
            ..route.clone()
        })?;
    }
    let Some(gateway) = gateway else {
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

/// The rules go by the addresses, and with them the interface's routes in their tables. The main table's stay away: DEL of
/// the plugin that made the interface follows.
fn del(request: &Request) -> Result<(), Error> {
    let conf: NetConf = request.config()?;
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
        let link = inner.link_by_name(&request.attachment.ifname)?;
        if let Some(link) = &link {
            let addresses = inner.addresses(link.index)?;
            mine.extend(addresses.iter().map(|address| address.net.addr()));
        }
        let mut rules = inner.source_rules()?;
        rules.retain(|rule| mine.contains(&rule.source.addr()));
        let index = link.map(|link| link.index);
        remove(inner, &rules, index.filter(|_| conf.table.is_none()))
    })
}

/// Deletes rules, and the routes by interface `index` in the tables that they lead to.
fn remove(inner: &mut Netlink, rules: &[SourceRule], index: Option<u32>) -> Result<(), Error> {
    let mut outcomes = Vec::new();
    for rule in rules {
        outcomes.push(inner.delete_source_rule(rule).map_err(Error::from));
        let Some(index) = index else {
            continue;
        };
        match inner.routes(rule.table) {
            Ok(mut routes) => {
                routes.retain(|route| route.index == Some(index));
                // Routes by a gateway first: they need the ones to what is on the link.
                routes.sort_by_key(|route| route.gateway.is_none());
                let deleted = routes.iter().map(|route| inner.delete_route(route));
                outcomes.extend(deleted.map(|done| done.map_err(Error::from)));
            }
            Err(cause) => outcomes.push(Err(cause.into())),
        }
    }
    all_of(outcomes)
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
        let main = pod.inside(|| Netlink::open().expect("netlink").routes(254));
        assert_eq!(main.expect("routes"), [], "moved");
        host.call("CHECK", &pod, &config).expect("check");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        assert!(rules().is_empty());
        host.call("CHECK", &pod, &config).expect_err("gone");
    }

    #[test]
    fn source_hints_keep_the_link_reachable_and_gateways_can_be_stated() {
        let host = Host::new();
        let pod = Pod::new("a");
        let result = host
            .call("ADD", &pod, &host.bridge_config())
            .expect("bridge");
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "sbr",
            "addSourceHints": true,
            "gateways": ["10.1.0.254", "fd00:1::fe"],
            "prevResult": result,
        });
        host.call("ADD", &pod, &config).expect("add");
        for (table, gateway) in [(100, "10.1.0.254"), (101, "fd00:1::fe")] {
            let routes = pod.inside(|| Netlink::open().expect("netlink").routes(table));
            let gateway = gateway.parse().ok();
            assert!(
                routes
                    .expect("routes")
                    .iter()
                    .any(|route| route.gateway == gateway)
            );
        }
        let gateway = "10.1.0.1:80".parse().expect("address");
        let seen = crate::lab::connect(&pod.netns, &host.netns, gateway);
        assert_eq!(seen, "10.1.0.2".parse().ok());
        config["gateways"] = json!(["10.1.0.254", "10.1.0.253"]);
        let error = host
            .call("ADD", &pod, &config)
            .expect_err("two of a family");
        assert!(
            error["msg"]
                .as_str()
                .expect("msg")
                .starts_with("gateways: ")
        );
    }

    #[test]
    fn a_failure_takes_the_rules_back() {
        let host = Host::new();
        let pod = Pod::new("a");
        let mut result = host
            .call("ADD", &pod, &host.bridge_config())
            .expect("bridge");
        result["ips"][1]["gateway"] = json!("fd00:2::1");
        let config =
            json!({ "cniVersion": "1.1.0", "name": "net", "type": "sbr", "prevResult": result });
        let routes = || pod.inside(|| Netlink::open().expect("netlink").routes(254));
        let before = routes();
        host.call("ADD", &pod, &config).expect_err("no way there");
        let rules = pod.inside(|| Netlink::open().expect("netlink").source_rules());
        assert_eq!((rules, routes()), (Ok(Vec::new()), before));
    }
}
