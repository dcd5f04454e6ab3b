//! What outlives the last container of a network, and how it is removed when the network itself ends.
//!
//! ADD makes the bridge, its masquerading rules, the tables for host ports and the folder of leases when it first needs
//! them, and DEL leaves them for the next container, as upstream's plugins do. Whoever made the network's configuration
//! removes them with it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use linux::netlink::Netlink;

use crate::protocol::{Error, all_of};
use crate::{bridge, masquerade, portmap};

/// Removes the network `name` on the bridge `bridge` with its leases in `lease_dir`, after all of its containers have
/// been disconnected. Does nothing if nothing is left of it.
///
/// # Errors
/// If a container is still connected or holds a lease, which is left as it is; the kernel's.
pub fn remove_network(name: &str, bridge: &str, lease_dir: &Path) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let mut outcomes = Vec::new();
    if let Some(link) = netlink.link_by_name(bridge)? {
        let ports: Vec<String> = netlink
            .links()?
            .into_iter()
            .filter(|port| port.master == Some(link.index))
            .map(|port| port.name)
            .collect();
        if !ports.is_empty() {
            return Err(Error::failed(format!(
                "remove network {name}: {bridge} has ports: {}",
                ports.join(", ")
            )));
        }
        let addresses = netlink.addresses(link.index)?;
        let subnets = addresses
            .iter()
            .filter(|address| !address.is_link_local())
            .map(|address| address.net);
        outcomes.push(masquerade::remove(subnets));
        outcomes.push(netlink.delete_link(link.index).map_err(Error::from));
    }
    outcomes.push(bridge::remove_unused_table());
    outcomes.push(portmap::remove_unused_tables());
    outcomes.push(remove_leases(&lease_dir.join(name)));
    all_of(outcomes)
}

/// Removes a folder that holds no lease.
fn remove_leases(dir: &Path) -> Result<(), Error> {
    let failed =
        |cause: io::Error| Error::io(format!("remove leases in {}: {cause}", dir.display()));
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(failed(cause)),
    };
    let names: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    let held = names
        .iter()
        .filter_map(|name| name.to_str()?.parse::<IpAddr>().ok())
        .collect::<Vec<_>>();
    if !held.is_empty() {
        return Err(Error::failed(format!(
            "remove leases in {}: {} are held",
            dir.display(),
            held.len()
        )));
    }
    fs::remove_dir_all(dir).map_err(failed)
}
