//! `static`: the addresses that the configuration or the caller states.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::Plugin;
use crate::protocol::{Dns, Error, IpConfig, NetResult, Request, Route};

pub const PLUGIN: Plugin = Plugin {
    name: "static",
    add,
    del: |_| Ok(()),
    check,
    gc: |_| Ok(()),
    status: |request| request.config::<NetConf>().map(drop),
};

/// Upstream's keys.
#[derive(Deserialize)]
struct NetConf {
    ipam: Ipam,
    #[serde(default)]
    args: Args,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Arguments,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Clone, Deserialize)]
struct Address {
    address: IpNet,
    gateway: Option<IpAddr>,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    #[serde(default)]
    ips: Vec<String>,
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let conf: NetConf = request.config()?;
    let ips = addresses(&conf, request)?.into_iter();
    let ips = ips.map(|a| IpConfig {
        interface: None,
        address: a.address,
        gateway: a.gateway,
    });
    Ok(NetResult {
        ips: ips.collect(),
        routes: conf.ipam.routes,
        dns: conf.ipam.dns,
        ..NetResult::default()
    })
}

/// The runtime's addresses replace those of `args`, which replace the configuration's; those of `CNI_ARGS` come on top
/// of the configuration's.
fn addresses(conf: &NetConf, request: &Request) -> Result<Vec<Address>, Error> {
    let asked = [&conf.runtime.ips, &conf.args.cni.ips]
        .into_iter()
        .find(|ips| !ips.is_empty());
    if let Some(ips) = asked {
        return ips
            .iter()
            .map(|ip| {
                Ok(Address {
                    address: net(ip)?,
                    gateway: None,
                })
            })
            .collect();
    }
    let mut all = conf.ipam.addresses.clone();
    let listed = |key: &str| {
        request
            .args
            .get(key)
            .map(String::as_str)
            .unwrap_or_default()
            .split(',')
    };
    for ip in listed("IP").filter(|ip| !ip.is_empty()) {
        all.push(Address {
            address: net(ip.trim())?,
            gateway: None,
        });
    }
    for gateway in listed("GATEWAY").filter(|gateway| !gateway.is_empty()) {
        let bad = || Error::config(format!("GATEWAY: {gateway:?} is not an address"));
        let gateway: IpAddr = gateway.trim().parse().map_err(|_| bad())?;
        all.iter_mut()
            .filter(|a| a.address.contains(&gateway))
            .for_each(|a| a.gateway = Some(gateway));
    }
    Ok(all)
}

fn net(text: &str) -> Result<IpNet, Error> {
    text.parse().map_err(|_| {
        Error::config(format!(
            "the 'IP' field is expected to be in CIDR notation, got: {text:?}"
        ))
    })
}

fn check(request: &Request) -> Result<(), Error> {
    let conf: NetConf = request.config()?;
    let result = request.required_previous()?;
    for wanted in addresses(&conf, request)? {
        if !result.ips.iter().any(|ip| ip.address == wanted.address) {
            return Err(Error::failed(format!(
                "static: failed to find address {}",
                wanted.address
            )));
        }
    }
    Ok(())
}
