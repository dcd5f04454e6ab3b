//! `dummy`: an interface that swallows what is sent to it, to hold addresses.

use std::os::fd::AsFd;

use linux::netlink::{LinkKind, NewLink};

use crate::protocol::{Error, NetResult, Request};
use crate::{Plugin, attach, delegate};

pub const PLUGIN: Plugin = Plugin {
    name: "dummy",
    add,
    del: attach::del,
    check: |request| attach::check_kind(request, "dummy"),
    gc: attach::gc,
    status: attach::status,
};

fn add(request: &Request) -> Result<NetResult, Error> {
    if delegate::ipam_type(request).is_none() {
        return Err(Error::config(
            "ipam: dummy interface requires an IPAM configuration",
        ));
    }
    attach::add(request, |host, netns| {
        let link = NewLink::new(&request.attachment.ifname, LinkKind::Dummy);
        Ok(host.add_link(&NewLink {
            netns: Some(netns.as_fd()),
            ..link
        })?)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::lab::{Host, Pod};

    #[test]
    #[ignore = "needs a kernel with dummy interfaces: the VM's"]
    fn a_dummy_holds_addresses() {
        let host = Host::new();
        let pod = Pod::new("a");
        let ipam = json!({ "type": "static", "addresses": [{ "address": "10.9.0.1/32" }] });
        let mut config =
            json!({ "cniVersion": "1.0.0", "name": "net", "type": "dummy", "ipam": ipam });
        config["prevResult"] = host.call("ADD", &pod, &config).expect("add");
        host.call("CHECK", &pod, &config).expect("check");
        host.call("DEL", &pod, &config).expect("del");
        host.call("CHECK", &pod, &config).expect_err("gone");
    }
}
