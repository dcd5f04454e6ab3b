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
    status: |request| read(request).map(drop),
};

/// Upstream's keys.
#[derive(Deserialize)]
struct NetConf {
    ipam: Option<Ipam>,
    #[serde(default)]
    args: Args,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Arguments,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(default)]
    addresses: Vec<StatedAddress>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Deserialize)]
struct StatedAddress {
    address: String,
    gateway: Option<IpAddr>,
}

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

fn read(request: &Request) -> Result<(NetConf, Ipam), Error> {
    let mut conf: NetConf = request.config()?;
    let missing = || Error::config("IPAM config missing 'ipam' key");
    let ipam = conf.ipam.take().ok_or_else(missing)?;
    Ok((conf, ipam))
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let (conf, ipam) = read(request)?;
    let ips = addresses(&conf, &ipam, request)?.into_iter();
    let ips = ips.map(|a| IpConfig {
        interface: None,
        address: a.address,
        gateway: a.gateway,
    });
    Ok(NetResult {
        ips: ips.collect(),
        routes: ipam.routes,
        dns: ipam.dns,
        ..NetResult::default()
    })
}

/// The runtime's addresses replace those of `args`, which replace the configuration's; those of `CNI_ARGS` come on top
/// of the configuration's.
fn addresses(conf: &NetConf, ipam: &Ipam, request: &Request) -> Result<Vec<Address>, Error> {
    let asked = [&conf.runtime.ips, &conf.args.cni.ips]
        .into_iter()
        .find(|ips| !ips.is_empty());
    let without_gateway = |what: &str, text: &str| {
        Ok(Address {
            address: net(what, text)?,
            gateway: None,
        })
    };
    if let Some(ips) = asked {
        let entry = |ip: &String| without_gateway("an entry in the 'ips' field is NOT", ip);
        return ips.iter().map(entry).collect();
    }
    let stated = |stated: &StatedAddress| {
        Ok(Address {
            address: net("the 'address' field is expected to be", &stated.address)?,
            gateway: stated.gateway,
        })
    };
    let mut all: Vec<Address> = ipam
        .addresses
        .iter()
        .map(stated)
        .collect::<Result<_, Error>>()?;
    let args = request.args()?;
    let listed = |key: &str| args.get(key).map_or("", String::as_str).split(',');
    for ip in listed("IP").filter(|ip| !ip.is_empty()) {
        all.push(without_gateway(
            "the 'ip' field is expected to be",
            ip.trim(),
        )?);
    }
    for gateway in listed("GATEWAY").filter(|gateway| !gateway.is_empty()) {
        let bad = || Error::config(format!("invalid gateway address: {gateway}"));
        let gateway: IpAddr = gateway.trim().parse().map_err(|_| bad())?;
        all.iter_mut()
            .filter(|a| a.address.contains(&gateway))
            .for_each(|a| a.gateway = Some(gateway));
    }
    Ok(all)
}

fn net(what: &str, text: &str) -> Result<IpNet, Error> {
    text.parse()
        .map_err(|_| Error::config(format!("{what} in CIDR notation, got: '{text}'")))
}

fn check(request: &Request) -> Result<(), Error> {
    let (conf, ipam) = read(request)?;
    let result = request.required_previous()?;
    for wanted in addresses(&conf, &ipam, request)? {
        if !result.ips.iter().any(|ip| ip.address == wanted.address) {
            return Err(Error::failed(format!(
                "static: failed to find address {}",
                wanted.address
            )));
        }
    }
    Ok(())
}
