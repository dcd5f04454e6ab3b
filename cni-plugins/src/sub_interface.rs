//! `macvlan`, `ipvlan` and `vlan`: an interface of the container's own on one of the host's.

use std::os::fd::{AsFd, OwnedFd};

use linux::netlink::{Link, LinkKind, MacAddress, Netlink, NewLink};
use serde::Deserialize;

use crate::attach::{self, MacConf};
use crate::protocol::{Error, NetResult, Request};
use crate::{Plugin, netns};

pub const MACVLAN: Plugin = Plugin {
    name: "macvlan",
    add: add_macvlan,
    del: attach::del,
    check: |request| attach::check_kind(request, "macvlan"),
    gc: attach::gc,
    status: attach::status,
};

pub const IPVLAN: Plugin = Plugin {
    name: "ipvlan",
    add: add_ipvlan,
    del: attach::del,
    check: |request| attach::check_kind(request, "ipvlan"),
    gc: attach::gc,
    status: attach::status,
};

pub const VLAN: Plugin = Plugin {
    name: "vlan",
    add: add_vlan,
    del: attach::del,
    check: check_vlan,
    gc: attach::gc,
    status: attach::status,
};

/// Upstream's keys of all three.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NetConf {
    master: String,
    mode: String,
    mtu: u32,
    /// The parent is in the container's namespace.
    link_in_container: bool,
    #[serde(rename = "bcqueuelen")]
    bc_queue_len: Option<u32>,
    vlan_id: Option<u32>,
    #[serde(flatten)]
    mac: MacConf,
}

fn add_macvlan(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    let mode = match conf.mode.as_str() {
        "private" => 1,
        "vepa" => 2,
        "" | "bridge" => 4,
        "passthru" => 8,
        other => return Err(unknown_mode("macvlan", other)),
    };
    let mac = conf.mac.read(request)?;
    let kind = LinkKind::Macvlan {
        mode,
        bc_queue_len: conf.bc_queue_len,
    };
    attach::add(request, |host, netns| {
        make(request, &conf, host, netns, kind, mac)
    })
}

fn add_ipvlan(request: &Request) -> Result<NetResult, Error> {
    let mut conf: NetConf = request.config()?;
    let mode = match conf.mode.as_str() {
        "" | "l2" => 0,
        "l3" => 1,
        "l3s" => 2,
        other => return Err(unknown_mode("ipvlan", other)),
    };
    // Chained after another plugin, it stands on that one's interface.
    if let (true, Some(previous)) = (conf.master.is_empty(), &request.previous) {
        conf.master = previous
            .interfaces
            .first()
            .map(|interface| interface.name.clone())
            .unwrap_or_default();
    }
    let kind = LinkKind::Ipvlan { mode, flag: 0 };
    attach::add(request, |host, netns| {
        make(request, &conf, host, netns, kind, None)
    })
}

fn add_vlan(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    if conf.master.is_empty() {
        return Err(Error::config(
            r#"master: field is required. It specifies the host interface name to create the VLAN for"#,
        ));
    }
    let id = vlan_id(&conf)?;
    attach::add(request, |host, netns| {
        make(request, &conf, host, netns, LinkKind::Vlan { id }, None)
    })
}

fn vlan_id(conf: &NetConf) -> Result<u16, Error> {
    let id = conf.vlan_id.unwrap_or_default();
    let bad = || {
        Error::config(format!(
            "vlanId: invalid VLAN ID {id} (must be between 0 and 4094 inclusive)"
        ))
    };
    u16::try_from(id)
        .ok()
        .filter(|id| *id <= 4094)
        .ok_or_else(bad)
}

fn check_vlan(request: &Request) -> Result<(), Error> {
    /// `linux/if_link.h`
    const IFLA_VLAN_ID: u16 = 1;
    let id = vlan_id(&request.config()?)?;
    attach::check(request, |link| match link.kind_number(IFLA_VLAN_ID) {
        Some(seen) if link.is_kind("vlan") && seen == u32::from(id) => Ok(()),
        seen => Err(Error::failed(format!(
            "check {}: VLAN {seen:?}, expected {id}",
            link.name
        ))),
    })
}

/// Makes the interface in the container's namespace, under its final name, on a parent of the host's or the container's.
fn make(
    request: &Request,
    conf: &NetConf,
    host: &mut Netlink,
    netns: &OwnedFd,
    kind: LinkKind<'_>,
    mac: Option<MacAddress>,
) -> Result<(), Error> {
    let link = |parent: &Link| -> Result<NewLink<'_>, Error> {
        let mtu = attach::mtu(conf.mtu, parent)?;
        Ok(NewLink {
            mtu,
            mac,
            parent: Some(parent.index),
            ..NewLink::new(&request.attachment.ifname, kind)
        })
    };
    if conf.link_in_container {
        return netns::inside(netns, |inner| {
            let parent = attach::parent(inner, &conf.master)?;
            Ok(inner.add_link(&link(&parent)?)?)
        });
    }
    let parent = attach::parent(host, &conf.master)?;
    Ok(host.add_link(&NewLink {
        netns: Some(netns.as_fd()),
        ..link(&parent)?
    })?)
}

fn unknown_mode(kind: &str, mode: &str) -> Error {
    Error::config(format!("mode: unknown {kind} mode: {mode:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::lab::{Host, Pod, connect, new_namespace, wire_to_world};

    /// ADD on the interface that leads out, traffic, CHECK, DEL; `changes` are the plugin's own keys.
    fn works(plugin: &str, changes: &[(&str, Value)]) {
        let host = Host::new();
        let world = new_namespace();
        wire_to_world(&host, &world);
        let before = host.links();
        let addresses = json!([{ "address": "192.0.2.9/24" }, { "address": "2001:db8::9/64" }]);
        let ipam = json!({ "type": "static", "addresses": addresses });
        let mut config = json!({ "cniVersion": "1.1.0", "name": "net", "type": plugin, "master": "out0", "ipam": ipam });
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        let pod = Pod::new("a");
        let result = host.call("ADD", &pod, &config).expect("add");
        assert_eq!(
            (
                &result["interfaces"][0]["name"],
                &result["ips"][0]["interface"]
            ),
            (&json!("eth0"), &json!(0))
        );
        if plugin != "vlan" {
            for address in ["192.0.2.2:80", "[2001:db8::2]:80"] {
                assert!(
                    connect(&pod.netns, &world, address.parse().expect("address")).is_some(),
                    "{address}"
                );
            }
        }
        config["prevResult"] = result;
        host.call("CHECK", &pod, &config).expect("check");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        host.call("CHECK", &pod, &config).expect_err("gone");
        assert_eq!(host.links(), before);
        config["mtu"] = json!(9000);
        let error = host
            .call("ADD", &pod, &config)
            .expect_err("larger than the parent's");
        assert!(
            error["msg"]
                .as_str()
                .expect("msg")
                .contains("mtu: invalid MTU 9000"),
            "{error}"
        );
    }

    #[test]
    fn macvlan_is_another_station_on_the_hosts_link() {
        works(
            "macvlan",
            &[
                ("mode", json!("bridge")),
                ("mac", json!("0a:58:00:00:00:09")),
            ],
        );
    }

    #[test]
    #[ignore = "needs a kernel with ipvlan: the VM's"]
    fn ipvlan_is_another_address_on_the_hosts_link() {
        works("ipvlan", &[]);
    }

    #[test]
    #[ignore = "needs a kernel with VLANs: the VM's"]
    fn vlan_carries_its_tag() {
        works("vlan", &[("vlanId", json!(7))]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_key() {
        let host = Host::new();
        let pod = Pod::new("a");
        let cases = [
            ("macvlan", json!({ "mode": "x" }), "mode"),
            ("macvlan", json!({ "master": "none0" }), "master"),
            ("macvlan", json!({}), "master"),
            ("ipvlan", json!({ "mode": "bridge" }), "mode"),
            ("vlan", json!({}), "master"),
            ("vlan", json!({ "master": "lo", "vlanId": 5000 }), "vlanId"),
        ];
        for (plugin, mut config, key) in cases {
            config["cniVersion"] = json!("1.0.0");
            config["name"] = json!("net");
            config["type"] = json!(plugin);
            let error = host.call("ADD", &pod, &config).expect_err(key);
            assert_eq!(error["code"], 7, "{error}");
            assert!(
                error["msg"].as_str().expect("msg").starts_with(key),
                "{error}"
            );
        }
    }
}
