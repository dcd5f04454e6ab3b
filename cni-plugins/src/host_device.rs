//! `host-device`: moves one of the host's interfaces into the container, and back.
//!
//! The name that it had is kept in its alias while it is away, as upstream keeps it.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use linux::namespace::{NamespaceKind, open_own};
use linux::netlink::{Link, LinkChange, Netlink, in_namespace};
use serde::Deserialize;

use crate::protocol::{Error, NetResult, Request};
use crate::{Plugin, attach, delegate, interface, netns};

pub const PLUGIN: Plugin = Plugin {
    name: "host-device",
    add,
    del,
    check: |r| attach::check(r, |_| Ok(())),
    gc: attach::gc,
    status: attach::status,
};

/// Upstream's keys: one of the four says which interface.
#[derive(Deserialize)]
struct NetConf {
    #[serde(default)]
    device: String,
    #[serde(default)]
    hwaddr: String,
    #[serde(default, rename = "kernelpath")]
    kernel_path: String,
    #[serde(default, rename = "pciBusID")]
    pci: String,
    #[serde(default, rename = "runtimeConfig")]
    runtime: RuntimeConfig,
}

#[derive(Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default, rename = "deviceID")]
    device_id: String,
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    let moved = attach::add_moved(
        request,
        |host, netns| {
            let link = find(host, &conf)?;
            give(host, netns, &link, &request.attachment.ifname)
        },
        |netns| take_back(netns, &request.attachment.ifname),
    )?;
    Ok(moved)
}

fn find(host: &mut Netlink, conf: &NetConf) -> Result<Link, Error> {
    let pci = if conf.runtime.device_id.is_empty() {
        &conf.pci
    } else {
        &conf.runtime.device_id
    };
    let missing = |key: &str, value: &str| {
        Error::config(format!("{key}: failed to find host device {value:?}"))
    };
    if !conf.device.is_empty() {
        return host
            .link_by_name(&conf.device)?
            .ok_or_else(|| missing("device", &conf.device));
    }
    if !conf.hwaddr.is_empty() {
        let mac = conf
            .hwaddr
            .parse()
            .map_err(|reason| Error::config(format!("hwaddr: {reason}")))?;
        let found = host.links()?.into_iter().find(|link| link.mac == Some(mac));
        return found.ok_or_else(|| missing("hwaddr", &conf.hwaddr));
    }
    let (key, value, folder) = if !conf.kernel_path.is_empty() {
        if !Path::new(&conf.kernel_path).starts_with("/sys/devices") {
            return Err(Error::config(format!(
                "kernelpath: {:?} must be below /sys/devices",
                conf.kernel_path
            )));
        }
        (
            "kernelpath",
            &conf.kernel_path,
            Path::new(&conf.kernel_path).join("net"),
        )
    } else if !pci.is_empty() && !pci.contains('/') {
        (
            "pciBusID",
            pci,
            Path::new("/sys/bus/pci/devices").join(pci).join("net"),
        )
    } else {
        return Err(Error::config(
            r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#,
        ));
    };
    let name = fs::read_dir(&folder)
        .ok()
        .and_then(|mut entries| entries.next()?.ok()?.file_name().into_string().ok());
    let name = name.ok_or_else(|| missing(key, value))?;
    host.link_by_name(&name)?.ok_or_else(|| missing(key, value))
}

/// Moves the interface into the container's namespace, then renames it there: the name may be taken on either side.
fn give(host: &mut Netlink, netns: &OwnedFd, link: &Link, name: &str) -> Result<(), Error> {
    let away = LinkChange {
        up: Some(false),
        alias: Some(&link.name),
        ..LinkChange::default()
    };
    host.change_link(link.index, &away)?;
    host.change_link(
        link.index,
        &LinkChange {
            netns: Some(netns.as_fd()),
            ..LinkChange::default()
        },
    )?;
    let renamed = netns::inside(netns, |inner| {
        let moved = interface::find(inner, &link.name)?;
        if link.name == name {
            return Ok(());
        }
        Ok(inner.change_link(
            moved.index,
            &LinkChange {
                name: Some(name),
                ..LinkChange::default()
            },
        )?)
    });
    renamed.map_err(|error| error.and_undo(take_back(netns, &link.name)))
}

/// Moves the interface back under the name that it had. One that is gone is no error.
fn take_back(netns: &OwnedFd, name: &str) -> Result<(), Error> {
    let home =
        open_own(NamespaceKind::Network).map_err(|cause| Error::failed(cause.to_string()))?;
    netns::inside(netns, |inner| {
        let Some(link) = inner.link_by_name(name)? else {
            return Ok(());
        };
        let original = if link.alias.is_empty() {
            link.name.clone()
        } else {
            link.alias.clone()
        };
        let back = LinkChange {
            up: Some(false),
            ..LinkChange::default()
        };
        inner.change_link(link.index, &back)?;
        if original != link.name {
            inner.change_link(
                link.index,
                &LinkChange {
                    name: Some(&original),
                    ..LinkChange::default()
                },
            )?;
        }
        inner.change_link(
            link.index,
            &LinkChange {
                netns: Some(home.as_fd()),
                ..LinkChange::default()
            },
        )?;
        in_namespace(&home, || {
            let mut host = Netlink::open()?;
            let link = interface::find(&mut host, &original)?;
            Ok(host.change_link(
                link.index,
                &LinkChange {
                    alias: Some(""),
                    ..LinkChange::default()
                },
            )?)
        })?
    })
}

fn del(request: &Request) -> Result<(), Error> {
    let netns = netns::open_if_there(request)?;
    delegate::ipam_del_and(request, || match netns {
        Some(netns) => take_back(&netns, &request.attachment.ifname),
        // The kernel has given a physical interface back to the host, and deleted any other.
        None => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::lab::{Host, Pod, new_namespace, wire_to_world};

    #[test]
    fn a_device_is_lent_to_the_container_and_comes_back_under_its_name() {
        let host = Host::new();
        let world = new_namespace();
        wire_to_world(&host, &world);
        let pod = Pod::new("a");
        let addresses = json!([{ "address": "192.0.2.9/24" }]);
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "host-device",
            "device": "out0",
            "ipam": { "type": "static", "addresses": addresses },
        });
        let result = host.call("ADD", &pod, &config).expect("add");
        assert_eq!(host.links(), ["lo"]);
        assert!(
            crate::lab::connect(&pod.netns, &world, "192.0.2.2:80".parse().expect("address"))
                .is_some()
        );
        config["prevResult"] = result;
        host.call("CHECK", &pod, &config).expect("check");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        assert_eq!(host.links(), ["lo", "out0"]);

        config["ipam"]["addresses"] = json!([]);
        host.call("ADD", &pod, &config).expect_err("no address");
        assert_eq!(host.links(), ["lo", "out0"], "given back");
        config["device"] = json!("none0");
        let error = host.call("ADD", &pod, &config).expect_err("no device");
        assert_eq!(error["msg"], "device: failed to find host device \"none0\"");
    }
}
