//! `host-device`: moves one of the host's interfaces into the container, and back.
//!
//! The name that it had is kept in its alias while it is away, as upstream keeps it.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use linux::namespace::{NamespaceKind, open_own};
use linux::netlink::{Link, LinkChange, Netlink};
use serde::Deserialize;

use crate::protocol::{Error, Interface, NetResult, Request};
use crate::{Plugin, attach, delegate, interface, netns};

pub const PLUGIN: Plugin = Plugin {
    name: "host-device",
    add,
    del,
    check,
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

/// What the configuration names.
enum Device {
    /// An interface of the host's.
    Link(Link),
    /// A PCI device whose driver leaves it to programs: there is no interface to move.
    OfPrograms,
}

/// Drivers that leave a device to programs, as upstream lists them.
const DRIVERS_FOR_PROGRAMS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];
const PCI_DEVICES: &str = "/sys/bus/pci/devices";
const AUXILIARY_DEVICES: &str = "/sys/bus/auxiliary/devices";

fn add(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    let device = find(&mut Netlink::open()?, &conf)?;
    let Device::Link(link) = device else {
        return add_without_interface(request);
    };
    let ifname = &request.attachment.ifname;
    attach::add_moved(
        request,
        |host, netns| give(host, netns, &link, ifname),
        |netns| take_back(netns, ifname),
    )
}

/// The addresses are for the program that drives the device.
fn add_without_interface(request: &Request) -> Result<NetResult, Error> {
    let mut result = match delegate::ipam_type(request) {
        Some(_) => delegate::ipam_add(request)?,
        None => NetResult::default(),
    };
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
    result.interfaces = vec![Interface {
        name: request.attachment.ifname.clone(),
        sandbox: request.netns_path().to_owned(),
        ..Interface::default()
    }];
    result.dns = request.dns().unwrap_or(result.dns);
    Ok(result)
}

fn find(host: &mut Netlink, conf: &NetConf) -> Result<Device, Error> {
    let missing = |key: &str, value: &str| {
        Error::config(format!("{key}: failed to find host device {value:?}"))
    };
    let id = &conf.runtime.device_id;
    let (key, value, folder) = if !id.is_empty() {
        // The runtime's word goes before the configuration's.
        let at = [PCI_DEVICES, AUXILIARY_DEVICES].map(|bus| Path::new(bus).join(id));
        let found = at
            .into_iter()
            .find(|path| !id.contains('/') && path.exists());
        let found = found.ok_or_else(|| missing("runtimeConfig.deviceID", id))?;
        ("runtimeConfig.deviceID", id, found)
    } else if !conf.device.is_empty() {
        let link = host.link_by_name(&conf.device)?;
        return link
            .map(Device::Link)
            .ok_or_else(|| missing("device", &conf.device));
    } else if !conf.hwaddr.is_empty() {
        let mac = conf
            .hwaddr
            .parse()
            .map_err(|reason| Error::config(format!("hwaddr: {reason}")))?;
        let found = host.links()?.into_iter().find(|link| link.mac == Some(mac));
        return found
            .map(Device::Link)
            .ok_or_else(|| missing("hwaddr", &conf.hwaddr));
    } else if !conf.kernel_path.is_empty() {
        let path = Path::new(&conf.kernel_path);
        let climbs = path.components().any(|part| part == Component::ParentDir);
        if !path.starts_with("/sys/devices") || climbs {
            return Err(Error::config(format!(
                "kernelpath: {:?} must be absolute and below /sys/devices",
                conf.kernel_path
            )));
        }
        ("kernelpath", &conf.kernel_path, path.to_owned())
    } else if !conf.pci.is_empty() && !conf.pci.contains('/') {
        let path = Path::new(PCI_DEVICES).join(&conf.pci);
        ("pciBusID", &conf.pci, path)
    } else {
        return Err(Error::config(
            r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#,
        ));
    };
    if is_of_programs(&folder) {
        return Ok(Device::OfPrograms);
    }
    let name = interface_of(&folder).ok_or_else(|| missing(key, value))?;
    let link = host.link_by_name(&name)?;
    link.map(Device::Link).ok_or_else(|| missing(key, value))
}

fn is_of_programs(device: &Path) -> bool {
    let driver = fs::read_link(device.join("driver")).unwrap_or_default();
    let name = driver.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| DRIVERS_FOR_PROGRAMS.contains(&name))
}

/// The first interface of a device; a virtio device's is one folder further down.
fn interface_of(device: &Path) -> Option<String> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let virtio = names(device)
        .into_iter()
        .filter(|name| name.starts_with("virtio"))
        .map(|name| device.join(name));
    std::iter::once(device.to_owned())
        .chain(virtio)
        .find_map(|folder| names(&folder.join("net")).into_iter().next())
}

/// Moves the interface into the container's namespace and renames it on the way; it keeps its own name as its alias.
fn give(host: &mut Netlink, netns: &OwnedFd, link: &Link, name: &str) -> Result<(), Error> {
    let taken = netns::inside(netns, |inner| Ok(inner.link_by_name(name)?.is_some()))?;
    if taken {
        return Err(Error::failed(format!(
            "move {} to {name}: the container has an interface of that name",
            link.name
        )));
    }
    let alias = LinkChange {
        alias: Some(&link.name),
        ..LinkChange::default()
    };
    host.change_link(link.index, &alias)?;
    host.change_link(link.index, &moved_to(netns, name))
        .map_err(|cause| {
            let undone = restore(host, link);
            Error::from(cause).and_undo(undone)
        })
}

/// An interface that couldn't be moved is as it was.
fn restore(host: &mut Netlink, link: &Link) -> Result<(), Error> {
    let before = LinkChange {
        alias: Some(&link.alias),
        up: Some(link.is_up()),
        ..LinkChange::default()
    };
    Ok(host.change_link(link.index, &before)?)
}

/// Both by one message: no namespace ever has an interface of a name that isn't the right one there.
fn moved_to<'a>(netns: &'a OwnedFd, name: &'a str) -> LinkChange<'a> {
    LinkChange {
        netns: Some(netns.as_fd()),
        name: Some(name),
        ..LinkChange::default()
    }
}

/// Moves the interface back under the name that it had. One that is gone is no error; one whose name is another's on the
/// host by now stays where it is, up.
fn take_back(netns: &OwnedFd, name: &str) -> Result<(), Error> {
    let home =
        open_own(NamespaceKind::Network).map_err(|cause| Error::failed(cause.to_string()))?;
    let mut host = Netlink::open()?;
    netns::inside(netns, |inner| {
        let Some(link) = inner.link_by_name(name)? else {
            return Ok(());
        };
        let original = if link.alias.is_empty() {
            &link.name
        } else {
            &link.alias
        };
        if host.link_by_name(original)?.is_some() {
            return Err(Error::failed(format!(
                "move {name} back to {original}: the host has an interface of that name"
            )));
        }
        inner
            .change_link(link.index, &moved_to(&home, original))
            .map_err(|cause| {
                let undone = restore(inner, &link);
                Error::from(cause).and_undo(undone)
            })?;
        let link = interface::find(&mut host, original)?;
        let forget = LinkChange {
            alias: Some(""),
            ..LinkChange::default()
        };
        Ok(host.change_link(link.index, &forget)?)
    })
}

fn del(request: &Request) -> Result<(), Error> {
    let netns = netns::open_if_there(request)?;
    delegate::ipam_del_and(request, || match netns {
        // A device that is left to programs has no interface to take back.
        Some(netns) => take_back(&netns, &request.attachment.ifname),
        // The kernel has given a physical interface back to the host, and deleted any other.
        None => Ok(()),
    })
}

fn check(request: &Request) -> Result<(), Error> {
    match find(&mut Netlink::open()?, &request.config()?) {
        Ok(Device::OfPrograms) => delegate::ipam_pass_on(request, "CHECK"),
        // The interface is in the container, where the check looks for it.
        _ => attach::check(request, |_| Ok(())),
    }
}

#[cfg(test)]
mod tests {
    use linux::netlink::{LinkKind, Netlink, NewLink};
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
        config["ipam"]["addresses"] = json!([{ "address": "192.0.2.9/24" }]);
        let make = |name: &'static str| {
            move || {
                let link = NewLink::new(name, LinkKind::Ifb);
                Netlink::open()
                    .expect("netlink")
                    .add_link(&link)
                    .expect("make");
            }
        };
        let delete = |name: &'static str| {
            move || {
                let mut netlink = Netlink::open().expect("netlink");
                let link = netlink.link_by_name(name).expect("get").expect("link");
                netlink.delete_link(link.index).expect("delete");
            }
        };
        // A name that is taken, on either side, is told and changes nothing.
        pod.inside(make("eth0"));
        let error = host.call("ADD", &pod, &config).expect_err("taken inside");
        assert_eq!(
            error["msg"],
            "move out0 to eth0: the container has an interface of that name"
        );
        assert_eq!(host.links(), ["lo", "out0"]);
        pod.inside(delete("eth0"));
        host.call("ADD", &pod, &config).expect("add");
        host.inside(make("out0"));
        let error = host.call("DEL", &pod, &config).expect_err("taken outside");
        assert_eq!(
            error["msg"],
            "move eth0 back to out0: the host has an interface of that name"
        );
        let is_up = pod.inside(|| {
            let link = Netlink::open().expect("netlink").link_by_name("eth0");
            link.expect("get").expect("stays").is_up()
        });
        assert!(is_up);
        host.inside(delete("out0"));
        host.call("DEL", &pod, &config).expect("del");
        assert_eq!(host.links(), ["lo", "out0"]);

        config["device"] = json!("none0");
        let error = host.call("ADD", &pod, &config).expect_err("no device");
        assert_eq!(error["msg"], "device: failed to find host device \"none0\"");
    }
}
