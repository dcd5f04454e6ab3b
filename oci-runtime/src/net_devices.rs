//! `linux.netDevices`: interfaces of the host's that become the container's (config-linux.md, "Network Devices").

use crate::error::{Error, LaunchError};
use linux::netlink::{LinkChange, Netlink, in_namespace};
use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;

/// One interface that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetDevicePlan {
    /// Its name in the launching process's network namespace.
    pub name: String,
    /// Its name in the container's.
    pub new_name: String,
}

/// Reads the spec's list, in the order of names.
pub(crate) fn plan_net_devices(
    linux: &Linux,
    own_network: bool,
) -> Result<Vec<NetDevicePlan>, Error> {
    let mut out = Vec::new();
    for (name, device) in linux.net_devices().iter().flatten() {
        let field = || format!("linux.netDevices[{name}]");
        let new_name = device
            .name()
            .as_deref()
            .filter(|new| !new.is_empty())
            .unwrap_or(name);
        if let Some(bad) = [name.as_str(), new_name]
            .into_iter()
            .find(|name| !is_interface_name(name))
        {
            return Err(Error::spec(
                field(),
                format!("{bad:?} is no interface's name"),
            ));
        }
        out.push(NetDevicePlan {
            name: name.clone(),
            new_name: new_name.to_owned(),
        });
    }
    if !out.is_empty() && !own_network {
        return Err(Error::spec(
            "linux.netDevices",
            "needs a network namespace of the container's own",
        ));
    }
    if !out.is_empty() && linux::namespace::in_user_namespace() {
        return Err(Error::unsupported(
            "linux.netDevices",
            "a rootless container can't be given the host's interfaces",
        ));
    }
    out.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(out)
}

/// As the kernel has it: 1 to 15 bytes without `/`, `:` and white space, and not a directory's `.` or `..`.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

/// Moves the interfaces to another network namespace, gives them back their lasting global addresses, which the
/// kernel takes from what moves, and sets them up.
///
/// Addresses of the link, of the host or of limited life don't go with them.
pub(crate) fn move_all(
    devices: &[NetDevicePlan],
    namespace: BorrowedFd<'_>,
) -> Result<(), LaunchError> {
    devices
        .iter()
        .try_for_each(|device| move_one(device, namespace).map_err(|error| failed(device, &error)))
}

fn failed(device: &NetDevicePlan, error: &linux::netlink::Error) -> LaunchError {
    let step = match device.name == device.new_name {
        true => format!("give network device {} to the container", device.name),
        false => format!(
            "give network device {} to the container as {}",
            device.name, device.new_name
        ),
    };
    LaunchError {
        errno: error.errno,
        ..LaunchError::new(step, error.to_string())
    }
}

fn move_one(device: &NetDevicePlan, namespace: BorrowedFd<'_>) -> linux::netlink::Result<()> {
    let gone = || linux::netlink::Error {
        operation: "find interface",
        object: device.name.clone(),
        errno: libc::ENODEV,
        detail: String::new(),
    };
    let mut host = Netlink::open()?;
    let link = host.link_by_name(&device.name)?.ok_or_else(gone)?;
    let addresses = host.addresses(link.index)?;
    let down = LinkChange {
        up: Some(false),
        ..LinkChange::default()
    };
    host.change_link(link.index, &down)?;
    // In one request: its name may be another's on either side.
    let moved = LinkChange {
        name: Some(&device.new_name),
        netns: Some(namespace),
        ..LinkChange::default()
    };
    host.change_link(link.index, &moved)?;
    let lasting = addresses.into_iter().filter(|address| {
        address.flags & libc::IFA_F_PERMANENT != 0 && address.scope == libc::RT_SCOPE_UNIVERSE
    });
    in_namespace(namespace, || {
        let mut inside = Netlink::open()?;
        let link = inside.link_by_name(&device.new_name)?.ok_or_else(gone)?;
        for address in lasting {
            inside.add_address(link.index, address.net)?;
        }
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        inside.change_link(link.index, &up)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(devices: serde_json::Value, own_network: bool) -> Result<Vec<NetDevicePlan>, Error> {
        let linux = serde_json::from_value(serde_json::json!({ "netDevices": devices })).unwrap();
        plan_net_devices(&linux, own_network)
    }

    #[test]
    fn devices_are_renamed_or_keep_their_names() {
        let planned = plan(serde_json::json!({"b": {}, "a": {"name": "c"}}), true).unwrap();
        let names: Vec<_> = planned
            .iter()
            .map(|device| (device.name.as_str(), device.new_name.as_str()))
            .collect();
        assert_eq!(names, [("a", "c"), ("b", "b")]);
        assert!(plan(serde_json::json!({"b": {}}), false).is_err());
        assert!(plan(serde_json::json!({}), false).unwrap().is_empty());
        for bad in ["", "..", "a/b", "a b", "sixteen-bytes-ab"] {
            assert!(plan(serde_json::json!({ bad: {} }), true).is_err(), "{bad}");
            if !bad.is_empty() {
                let renamed = serde_json::json!({"a": {"name": bad}});
                assert!(plan(renamed, true).is_err(), "{bad}");
            }
        }
    }
}
