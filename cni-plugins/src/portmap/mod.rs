//! `portmap`: ports of the host that lead to the container's.
//!
//! Chained after a plugin that gives addresses. All mappings are elements of a few maps; adding or removing one changes
//! no rule. Each element carries its owner, by which DEL and GC find it without any other record.

mod config;
mod table;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use linux::netlink::{Netlink, read_sysctl, write_sysctl};
use linux::nftables::{Family, Socket, Table};

use crate::Plugin;
use crate::masquerade::TABLE;
use crate::owned::{self, Owner};
use crate::protocol::{Error, NetResult, Request, all_of};
use config::{Config, Mapping};
use table::{Forward, SETS, Sources};

pub const PLUGIN: Plugin = Plugin {
    name: "portmap",
    add,
    del,
    check,
    gc,
    status,
};

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

fn add(request: &Request) -> Result<NetResult, Error> {
    let config = Config::read(request)?;
    let previous = request.required_previous()?;
    let forwards = plan(&config.mappings, previous);
    if forwards.is_empty() {
        return Ok(previous.clone());
    }
    let owner = Owner::of(request);
    let sources = Sources {
        hairpin: config.snat,
        turning_bridge: if config.snat {
            turning_bridge(previous)?
        } else {
            None
        },
    };
    let mut socket = Socket::open().map_err(table::failed)?;
    for family in FAMILIES {
        let of_family: Vec<Forward> = forwards
            .iter()
            .filter(|forward| forward.family() == family)
            .copied()
            .collect();
        if of_family.is_empty() {
            continue;
        }
        let done = table::insert(&mut socket, family, &owner, &of_family, &sources);
        if let Err(error) = done.and_then(|()| table::forget_old_flows(&mut socket, &of_family)) {
            return Err(error.and_undo(remove_all(&mut socket, &owner)));
        }
    }
    if config.snat
        && forwards
            .iter()
            .any(|forward| forward.family() == Family::Ip)
    {
        route_loopback(previous)?;
    }
    Ok(previous.clone())
}

/// Every mapping in every family that both the mapping and the container have.
fn plan(mappings: &[Mapping], previous: &NetResult) -> Vec<Forward> {
    let of_container = |interface: Option<usize>| {
        interface.is_none_or(|at| {
            previous
                .interfaces
                .get(at)
                .is_none_or(|i| !i.sandbox.is_empty())
        })
    };
    let addresses = previous
        .ips
        .iter()
        .filter(|ip| of_container(ip.interface))
        .map(|ip| ip.address.addr());
    let addresses: Vec<IpAddr> = addresses.collect();
    let mut forwards = Vec::new();
    for mapping in mappings {
        for v6 in [false, true] {
            let container = addresses.iter().copied().find(|ip| ip.is_ipv6() == v6);
            forwards.extend(container.and_then(|container| Forward::new(mapping, container)));
        }
    }
    forwards
}

/// The container's bridge, if the answer of one container to another on it would go past the host's IP layer.
fn turning_bridge(previous: &NetResult) -> Result<Option<String>, Error> {
    let filtered = |name| read_sysctl(&["net", "bridge", name]).is_ok_and(|value| value == "1");
    if filtered("bridge-nf-call-iptables") && filtered("bridge-nf-call-ip6tables") {
        return Ok(None);
    }
    let mut host = Netlink::open()?;
    for interface in previous.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        if host
            .link_by_name(&interface.name)?
            .is_some_and(|link| link.is_kind("bridge"))
        {
            return Ok(Some(interface.name.clone()));
        }
    }
    Ok(None)
}

/// Lets connections from the host's own 127.0.0.1 leave by the interfaces that lead to the container; the table drops
/// what comes to 127.0.0.0/8 from elsewhere, which the kernel then no longer does by itself.
fn route_loopback(previous: &NetResult) -> Result<(), Error> {
    for interface in previous.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        match write_sysctl(
            &["net", "ipv4", "conf", &interface.name, "route_localnet"],
            "1",
        ) {
            Err(cause) if !cause.is_not_found() => return Err(cause.into()),
            _ => {}
        }
    }
    Ok(())
}

fn del(request: &Request) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(table::failed)?;
    remove_all(&mut socket, &Owner::of(request))
}

fn remove_all(socket: &mut Socket, owner: &Owner) -> Result<(), Error> {
    remove(socket, |other| other == owner)
}

fn remove(socket: &mut Socket, unwanted: impl Fn(&Owner) -> bool + Copy) -> Result<(), Error> {
    all_of(FAMILIES.map(|family| {
        owned::remove(socket, &Table::new(family, TABLE), &SETS, unwanted).map_err(table::failed)
    }))
}

fn check(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    let owner = Owner::of(request);
    let mut socket = Socket::open().map_err(table::failed)?;
    for forward in plan(&config.mappings, request.required_previous()?) {
        if !table::contains(&mut socket, &owner, &forward)? {
            return Err(Error::failed(format!("check {forward}: no such mapping")));
        }
    }
    Ok(())
}

fn gc(request: &Request) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(table::failed)?;
    remove(&mut socket, owned::is_stale(request))
}

fn status(request: &Request) -> Result<(), Error> {
    Config::read(request).map(drop)
}

/// Removes the tables of the CNI plugins if no host port is mapped and no network masqueraded.
///
/// # Errors
/// The kernel's.
pub fn remove_unused_tables() -> Result<(), Error> {
    let mut socket = Socket::open().map_err(table::failed)?;
    all_of(FAMILIES.map(|family| table::remove_if_unused(&mut socket, family)))
}
