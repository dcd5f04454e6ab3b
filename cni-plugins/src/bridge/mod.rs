//! `bridge`: connects the container to a bridge of the host by a virtual cable.

mod add;
mod config;
mod host;
mod mac_spoof_check;
mod vlan;

#[cfg(test)]
mod tests;

use linux::netlink::Netlink;

use crate::owned::{self, Owner};
use crate::protocol::{Error, Request, all_of};
use crate::{Plugin, attach, delegate, host_end, interface, netns};
use config::Config;
pub use mac_spoof_check::remove_if_unused as remove_unused_table;

pub const PLUGIN: Plugin = Plugin {
    name: "bridge",
    add: add::add,
    del,
    check,
    gc,
    status,
};

fn del(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    let netns = netns::open_if_there(request)?;
    let given_back = delegate::ipam_del_and(request, || match netns {
        Some(netns) => netns::inside(&netns, |inner| {
            interface::retire(inner, &request.attachment.ifname, !request.netns_ends())
        }),
        // The namespace may be on its way out, or held by a stray descriptor: cut the cable.
        None => delete_host_end(
            &mut Netlink::open()?,
            &host_end::name(&request.network, &request.attachment),
        ),
    });
    let unchecked = if config.mac_spoof_check {
        let owner = Owner::of(request);
        mac_spoof_check::remove(|other| *other == owner)
    } else {
        Ok(())
    };
    all_of([given_back, unchecked])
}

fn delete_host_end(host: &mut Netlink, name: &str) -> Result<(), Error> {
    match host.link_by_name(name)? {
        Some(link) => Ok(host.delete_link(link.index)?),
        None => Ok(()),
    }
}

fn check(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    let mut host = Netlink::open()?;
    let bridge = interface::find(&mut host, &config.bridge)?;
    if !bridge.is_kind("bridge") {
        return Err(Error::failed(format!(
            "check {}: not a bridge",
            config.bridge
        )));
    }
    let port = interface::find(
        &mut host,
        &host_end::name(&request.network, &request.attachment),
    )?;
    if port.master != Some(bridge.index) {
        return Err(Error::failed(format!(
            "check {}: not a port of {}",
            port.name, config.bridge
        )));
    }
    attach::check(request, |link| match link.mac {
        _ if !link.is_kind("veth") => Err(Error::failed(format!(
            "check {}: not of kind veth",
            link.name
        ))),
        Some(mac) if config.mac_spoof_check => mac_spoof_check::check(&port.name, mac),
        _ => Ok(()),
    })
}

/// Cables whose attachment doesn't exist any more are cut, then their addresses are given back.
fn gc(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    let mut host = Netlink::open()?;
    let mut outcomes = Vec::new();
    if let Some(bridge) = host.link_by_name(&config.bridge)? {
        for port in host
            .links()?
            .iter()
            .filter(|link| link.master == Some(bridge.index))
        {
            let owner = host_end::owner(&request.network, &port.alias);
            if owner.is_some_and(|owner| !request.valid_attachments.contains(&owner)) {
                outcomes.push(host.delete_link(port.index).map_err(Error::from));
            }
        }
    }
    if config.mac_spoof_check {
        outcomes.push(mac_spoof_check::remove(owned::is_stale(request)));
    }
    outcomes.push(delegate::ipam_pass_on(request, "GC"));
    all_of(outcomes)
}

fn status(request: &Request) -> Result<(), Error> {
    Config::read(request)?;
    delegate::ipam_pass_on(request, "STATUS")
}
