//! `firewall`: which traffic may be forwarded to the container.
//!
//! With `open`, which is the default, this plugin leaves forwarding as the host has it: a chain of its own can forbid,
//! but can't allow what another table forbids, so a host that drops forwarded packets by default has to allow its
//! containers' there. `same-bridge` keeps the networks that ask for it apart: from one bridge to another nothing is
//! forwarded. `isolated` does the same, and forwards nothing from a bridge to itself either.

use linux::netlink::{BridgePort, Link, LinkChange, Netlink};
use linux::nftables::{
    Batch, Chain, ChainKind, Element, Family, Field, Hook, Rule, Set, Socket, Table,
};
use serde::Deserialize;

use crate::Plugin;
use crate::masquerade::TABLE;
use crate::owned::name_key;
use crate::protocol::{Error, NetResult, Request};

pub const PLUGIN: Plugin = Plugin {
    name: "firewall",
    add,
    del: |_| Ok(()),
    check,
    gc: |_| Ok(()),
    status: |request| Policy::read(request).map(drop),
};

/// Upstream's keys. What names chains of iptables and zones of firewalld has no meaning here.
#[derive(Deserialize)]
struct NetConf {
    #[serde(default)]
    backend: String,
    #[serde(default, rename = "ingressPolicy")]
    ingress_policy: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Open,
    SameBridge,
    Isolated,
}

impl Policy {
    fn read(request: &Request) -> Result<Self, Error> {
        let conf: NetConf = request.config()?;
        if !["", "iptables", "nftables"].contains(&conf.backend.as_str()) {
            return Err(Error::config(format!(
                "backend: {:?} is not supported: this plugin works by nftables, which \"iptables\" and \"nftables\" ask for too",
                conf.backend
            )));
        }
        match conf.ingress_policy.as_str() {
            "" | "open" => Ok(Self::Open),
            "same-bridge" => Ok(Self::SameBridge),
            "isolated" => Ok(Self::Isolated),
            other => Err(Error::config(format!(
                "ingressPolicy: unknown ingress policy {other:?} (open, same-bridge or isolated)"
            ))),
        }
    }
}

/// The bridges that are kept apart, and each with itself.
const BRIDGES: &str = "separate-bridges";
const SAME: &str = "same-bridge";
const CHAIN: &str = "separate-bridges-forward";
/// `NF_IP_PRI_FILTER`
const FILTER: i32 = 0;
const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

fn add(request: &Request) -> Result<NetResult, Error> {
    let policy = Policy::read(request)?;
    let result = request.required_previous()?;
    if policy != Policy::Open {
        let bridge = bridge(result)?;
        let mut socket = Socket::open().map_err(failed)?;
        FAMILIES
            .into_iter()
            .try_for_each(|family| separate(&mut socket, family, &bridge.name, policy))?;
        if policy == Policy::Isolated {
            isolate_ports(result, &bridge)?;
        }
    }
    Ok(result.clone())
}

/// The bridge that the container is connected to.
fn bridge(result: &NetResult) -> Result<Link, Error> {
    let mut host = Netlink::open()?;
    for interface in result
        .interfaces
        .iter()
        .filter(|interface| interface.sandbox.is_empty())
    {
        if let Some(link) = host
            .link_by_name(&interface.name)?
            .filter(|link| link.is_kind("bridge"))
        {
            return Ok(link);
        }
    }
    Err(Error::config(
        "ingressPolicy: same-bridge needs a bridge in prevResult.interfaces",
    ))
}

/// What stays on the bridge passes no rule of the IP layer: the bridge itself passes nothing from one isolated port to
/// another.
fn isolate_ports(result: &NetResult, bridge: &Link) -> Result<(), Error> {
    let mut host = Netlink::open()?;
    for interface in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let link = host.link_by_name(&interface.name)?;
        if let Some(port) = link.filter(|link| link.master == Some(bridge.index)) {
            let change = LinkChange {
                port: Some(BridgePort {
                    isolated: Some(true),
                    ..BridgePort::default()
                }),
                ..LinkChange::default()
            };
            host.change_link(port.index, &change)?;
        }
    }
    Ok(())
}

/// Adds the bridge to those that are kept apart; once it is there, nothing changes.
fn separate(
    socket: &mut Socket,
    family: Family,
    bridge: &str,
    policy: Policy,
) -> Result<(), Error> {
    let table = Table::new(family, TABLE);
    let mut batch = Batch::new();
    if !socket
        .chains(&table)
        .map_err(failed)?
        .iter()
        .any(|chain| chain.name == CHAIN)
    {
        let pair = [Field::IifName, Field::OifName];
        batch.add_table(&table);
        batch.add_set(&table, &Set::of(BRIDGES, &[Field::IifName]));
        batch.add_set(&table, &Set::of(SAME, &pair));
        batch.add_chain(
            &table,
            &Chain::base(CHAIN, ChainKind::Filter, Hook::Forward, FILTER),
        );
        batch.flush_chain(&table, CHAIN);
        batch.add_rule(&table, CHAIN, &Rule::new().is_in(&pair, SAME).accept());
        let between = Rule::new()
            .is_in(&[Field::IifName], BRIDGES)
            .is_in(&[Field::OifName], BRIDGES);
        batch.add_rule(&table, CHAIN, &between.drop());
    }
    let key = name_key(bridge);
    batch.add_element(&table, BRIDGES, &Element::key(&key));
    if policy == Policy::SameBridge {
        batch.add_element(&table, SAME, &Element::key(&[key, key].concat()));
    }
    batch.commit(socket).map_err(failed)
}

fn check(request: &Request) -> Result<(), Error> {
    if Policy::read(request)? == Policy::Open {
        return Ok(());
    }
    let bridge = bridge(request.required_previous()?)?;
    let key = name_key(&bridge.name);
    let mut socket = Socket::open().map_err(failed)?;
    for family in FAMILIES {
        let elements = socket
            .elements(&Table::new(family, TABLE), BRIDGES)
            .map_err(failed)?;
        if !elements.iter().any(|element| element.key == key) {
            return Err(Error::failed(format!(
                "check {}: not kept apart from other bridges",
                bridge.name
            )));
        }
    }
    Ok(())
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::failed(format!("firewall: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::{Value, json};

    use crate::lab::{Host, Pod, connect, ips};

    #[test]
    fn same_bridge_keeps_networks_apart_and_open_does_not() {
        let host = Host::new();
        let pods = ["a", "b", "c", "d"].map(Pod::new);
        let add = |pod: &Pod, bridge: &str, subnet: &str, policy: &str| {
            let mut config = host.bridge_config();
            config["name"] = json!(bridge);
            config["bridge"] = json!(bridge);
            config["ipMasq"] = json!(false);
            config["ipam"]["ranges"] = json!([[{ "subnet": subnet }]]);
            config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
            let result = host.call("ADD", pod, &config).expect("bridge");
            let mut firewall = json!({ "cniVersion": "1.1.0", "name": bridge, "type": "firewall", "ingressPolicy": policy });
            firewall["prevResult"] = result.clone();
            assert_eq!(host.call("ADD", pod, &firewall).expect("firewall"), result);
            host.call("CHECK", pod, &firewall).expect("check");
            SocketAddr::new(ips(&result)[0], 80)
        };
        add(&pods[0], "br1", "10.1.0.0/24", "same-bridge");
        let same = add(&pods[1], "br1", "10.1.0.0/24", "same-bridge");
        let other = add(&pods[2], "br2", "10.2.0.0/24", "same-bridge");
        let open = add(&pods[3], "br3", "10.3.0.0/24", "open");
        let reached = |pod: &Pod, address| connect(&pods[0].netns, &pod.netns, address).is_some();
        assert_eq!(
            (
                reached(&pods[1], same),
                reached(&pods[2], other),
                reached(&pods[3], open)
            ),
            (true, false, true)
        );
        let isolated = [4, 5].map(|n| {
            let pod = Pod::new(&format!("i{n}"));
            let address = add(&pod, "br4", "10.4.0.0/24", "isolated");
            (pod, address)
        });
        let [(first, own), (second, _)] = &isolated;
        let from = |pod: &Pod| connect(&pod.netns, &first.netns, *own).is_some();
        assert!(!from(second) && !from(&pods[0]), "isolated from all pods");
        assert!(connect(&host.netns, &first.netns, *own).is_some());
        let bad: Value = json!({ "cniVersion": "1.0.0", "name": "n", "type": "firewall", "ingressPolicy": "shut" });
        assert_eq!(
            host.call("ADD", &pods[0], &bad)
                .expect_err("unknown policy")["code"],
            7
        );
    }
}
