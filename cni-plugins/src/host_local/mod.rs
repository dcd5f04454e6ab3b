//! `host-local`: addresses from ranges, with the leases in files of this host.
//!
//! The files are upstream's (`<dataDir>/<network>/<address>`), so that a host can change over with its leases in place.

mod config;
mod range;
mod store;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::Plugin;
use crate::protocol::{Error, IpConfig, NetResult, Request};
use config::Config;
use range::RangeSet;
use store::Store;

pub const PLUGIN: Plugin = Plugin {
    name: "host-local",
    add,
    del,
    check,
    gc,
    status,
};

fn add(request: &Request) -> Result<NetResult, Error> {
    let config = Config::read(request)?;
    let mut store = Store::lock(&config.data_dir, &request.network)?;
    let held = store.noted_leases_of(&request.attachment)?;
    if let Some(ip) = held
        .iter()
        .find(|ip| config.ranges.iter().any(|set| set.find(**ip).is_some()))
    {
        let owner = &request.attachment.container_id;
        return Err(Error::failed(format!(
            "{ip} has been allocated to {owner}, duplicate allocation is not allowed"
        )));
    }
    let mut wanted = config.requested.clone();
    let mut ips = Vec::with_capacity(config.ranges.len());
    for (number, set) in config.ranges.iter().enumerate() {
        let requested = wanted
            .iter()
            .position(|ip| set.find(*ip).is_some())
            .map(|at| wanted.remove(at));
        match allocate(&mut store, request, set, number, requested) {
            Ok(ip) => ips.push(ip),
            Err(error) => return Err(error.and_undo(store.release(&request.attachment))),
        }
    }
    if !wanted.is_empty() {
        let list = wanted
            .iter()
            .map(IpAddr::to_string)
            .collect::<Vec<_>>()
            .join(" ");
        let error = Error::config(format!("failed to allocate all requested IPs: {list}"));
        return Err(error.and_undo(store.release(&request.attachment)));
    }
    Ok(NetResult {
        ips,
        routes: config.routes,
        dns: config.dns,
        ..NetResult::default()
    })
}

/// Takes the requested address of a set, or the next free one after the last that was given.
fn allocate(
    store: &mut Store,
    request: &Request,
    set: &RangeSet,
    number: usize,
    requested: Option<IpAddr>,
) -> Result<IpConfig, Error> {
    let owner = &request.attachment;
    if let Some(ip) = requested {
        let range = set
            .find(ip)
            .ok_or_else(|| Error::config(format!("requested ip {ip} is not in {set}")))?;
        if range.gateway == ip {
            return Err(Error::config(format!(
                "requested ip {ip} is subnet's gateway"
            )));
        }
        if !store.reserve(owner, ip, number)? {
            return Err(Error::failed(format!(
                "requested IP address {ip} is not available in range set {set}"
            )));
        }
        return Ok(range.config(ip));
    }
    for (range, ip) in set.addresses_after(store.last_reserved(number)) {
        if store.reserve(owner, ip, number)? {
            return Ok(range.config(ip));
        }
    }
    Err(Error::failed(format!(
        "no IP addresses available in range set: {set}"
    )))
}

fn del(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    match Store::lock_if_there(&config.data_dir, &request.network)? {
        Some(mut store) => store.release(&request.attachment),
        None => Ok(()),
    }
}

fn check(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    let store = Store::lock_if_there(&config.data_dir, &request.network)?;
    let held = store
        .map(|store| store.leases_of(&request.attachment))
        .transpose()?
        .unwrap_or_default();
    if held.is_empty() {
        let container = &request.attachment.container_id;
        return Err(Error::failed(format!(
            "host-local: Failed to find address added by container {container}"
        )));
    }
    Ok(())
}

fn gc(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    match Store::lock_if_there(&config.data_dir, &request.network)? {
        Some(mut store) => store.release_all_but(&request.valid_attachments),
        None => Ok(()),
    }
}

fn status(request: &Request) -> Result<(), Error> {
    Config::read(request).map(drop)
}
