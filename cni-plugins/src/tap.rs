//! `tap`: an interface of the container's whose other end a program in it holds, such as a virtual machine.

use std::fs;

use linux::netlink::{LinkChange, NewTap, add_tap};
use serde::Deserialize;

use crate::attach::{self, MacConf};
use crate::protocol::{Error, NetResult, Request};
use crate::{Plugin, interface, netns};

pub const PLUGIN: Plugin = Plugin {
    name: "tap",
    add,
    del: attach::del,
    check: |request| attach::check_kind(request, "tun"),
    gc: attach::gc,
    status: attach::status,
};

/// Upstream's keys.
#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct NetConf {
    multi_queue: bool,
    mtu: u32,
    owner: Option<u32>,
    group: Option<u32>,
    /// A bridge in the container's namespace that it becomes a port of.
    bridge: String,
    selinux_context: String,
    #[serde(flatten)]
    mac: MacConf,
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    let mac = conf.mac.read(request)?;
    let name = &request.attachment.ifname;
    attach::add(request, |_, netns| {
        netns::inside(netns, |inner| {
            let master = match conf.bridge.as_str() {
                "" => None,
                bridge => Some(interface::find(inner, bridge)?.index),
            };
            label(&conf.selinux_context)?;
            let tap = NewTap {
                name,
                owner: conf.owner,
                group: conf.group,
                multi_queue: conf.multi_queue,
            };
            add_tap(&tap)?;
            let link = interface::find(inner, name)?;
            let mtu = Some(conf.mtu).filter(|mtu| *mtu != 0);
            let change = LinkChange {
                mac,
                mtu,
                master,
                ..LinkChange::default()
            };
            let done = inner.change_link(link.index, &change).map_err(Error::from);
            done.map_err(|error| error.and_undo(inner.delete_link(link.index).map_err(Error::from)))
        })
    })
}

/// Has what this thread opens from now on labelled; the thread ends with the work in the namespace.
fn label(context: &str) -> Result<(), Error> {
    if context.is_empty() {
        return Ok(());
    }
    let failed = |cause| Error::failed(format!("selinuxContext: use label {context:?}: {cause}"));
    fs::write("/proc/thread-self/attr/exec", context).map_err(failed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::lab::{Host, Pod};

    #[test]
    fn a_tap_is_made_with_its_address_and_deleted() {
        let host = Host::new();
        let pod = Pod::new("a");
        let ipam = json!({ "type": "static", "addresses": [{ "address": "10.9.0.1/24" }] });
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "tap",
            "mac": "0a:58:00:00:00:05",
            "mtu": 1400,
            "owner": 1000,
            "group": 1000,
            "multiQueue": true,
            "ipam": ipam,
        });
        let result = host.call("ADD", &pod, &config).expect("add");
        let interface = &result["interfaces"][0];
        assert_eq!(
            (&interface["mac"], &interface["mtu"]),
            (&json!("0a:58:00:00:00:05"), &json!(1400))
        );
        config["prevResult"] = result;
        host.call("CHECK", &pod, &config).expect("check");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        config["bridge"] = json!("none0");
        host.call("ADD", &pod, &config).expect_err("no such bridge");
        host.call("CHECK", &pod, &config).expect_err("gone");
    }
}
