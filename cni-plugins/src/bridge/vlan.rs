//! VLANs of a bridge's ports.

use linux::netlink::{BridgeVlan, Link, LinkKind, Netlink, NewLink, VethPeer};

use super::config::Config;
use super::host;
use crate::interface;
use crate::protocol::Error;

/// VLAN ids from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VlanRange {
    pub first: u16,
    pub last: u16,
}

const DEFAULT_VLAN: u16 = 1;

/// Puts a port into the configured VLANs.
pub(super) fn assign(host: &mut Netlink, port: &Link, config: &Config) -> Result<(), Error> {
    if !config.filters_vlans() {
        return Ok(());
    }
    if !config.preserve_default_vlan {
        host.delete_bridge_vlan(port.index, DEFAULT_VLAN)?;
    }
    if let Some(id) = config.vlan {
        host.add_bridge_vlan(
            port.index,
            &BridgeVlan {
                first: id,
                last: id,
                untagged: true,
            },
        )?;
    }
    for range in &config.trunk {
        host.add_bridge_vlan(
            port.index,
            &BridgeVlan {
                first: range.first,
                last: range.last,
                untagged: false,
            },
        )?;
    }
    Ok(())
}

/// The interface that takes the gateway's address: the bridge, or of a VLAN a cable of its own into the bridge, named
/// after both as upstream does.
pub(super) fn gateway(host: &mut Netlink, bridge: &Link, config: &Config) -> Result<Link, Error> {
    let Some(id) = config.vlan else {
        return Ok(bridge.clone());
    };
    let name = format!("{}.{id}", bridge.name);
    if let Some(link) = host.link_by_name(&name)? {
        return Ok(link);
    }
    let port_name = format!("{}-{id}", bridge.name);
    let peer = VethPeer {
        name: &name,
        netns: None,
        mac: Some(host::random_mac()),
        mtu: config.mtu,
    };
    let kind = LinkKind::Veth(peer);
    let link = NewLink {
        master: Some(bridge.index),
        mtu: config.mtu,
        up: true,
        ..NewLink::new(&port_name, kind)
    };
    let port = interface::make(host, &link)?;
    // The next ADD takes what it finds for whole.
    let finish = |host: &mut Netlink| {
        assign(host, &port, config)?;
        let gateway = interface::find(host, &name)?;
        host::set_up(host, &gateway)?;
        Ok(gateway)
    };
    finish(host)
        .map_err(|error: Error| error.and_undo(host.delete_link(port.index).map_err(Error::from)))
}
