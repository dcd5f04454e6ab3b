//! The configuration of `host-local`.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use super::range::{Range, RangeSet};
use crate::protocol::{Dns, Error, Request, Route};

/// What is needed to allocate, all checked.
#[derive(Debug)]
pub(super) struct Config {
    /// The sets, of each of which a container gets one address.
    pub ranges: Vec<RangeSet>,
    /// Passed into the result.
    pub routes: Vec<Route>,
    /// Passed into the result, from `resolvConf`.
    pub dns: Dns,
    /// Where the networks' folders are.
    pub data_dir: PathBuf,
    /// Addresses that the caller asks for.
    pub requested: Vec<IpAddr>,
}

/// Upstream's keys.
#[derive(Deserialize)]
struct NetConf {
    ipam: Option<Ipam>,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Arguments,
    args: Option<Args>,
}

#[derive(Deserialize)]
struct Args {
    #[serde(default)]
    cni: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    /// Addresses, with or without a prefix length.
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default, rename = "ipRanges")]
    ip_ranges: Vec<Vec<RangeConf>>,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(flatten)]
    single: RangeConfOptional,
    #[serde(default)]
    ranges: Vec<Vec<RangeConf>>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default, rename = "dataDir")]
    data_dir: String,
    #[serde(default, rename = "resolvConf")]
    resolv_conf: String,
}

#[derive(Deserialize)]
pub(super) struct RangeConf {
    pub subnet: IpNet,
    #[serde(rename = "rangeStart")]
    pub start: Option<IpAddr>,
    #[serde(rename = "rangeEnd")]
    pub end: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
}

/// The one range of older configurations, directly in `ipam`.
#[derive(Deserialize)]
struct RangeConfOptional {
    subnet: Option<IpNet>,
    #[serde(rename = "rangeStart")]
    start: Option<IpAddr>,
    #[serde(rename = "rangeEnd")]
    end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// Upstream's folder.
const DATA_DIR: &str = "/var/lib/cni/networks";

impl Config {
    pub(super) fn read(request: &Request) -> Result<Self, Error> {
        let conf: NetConf = request.config()?;
        let ipam = conf
            .ipam
            .ok_or_else(|| Error::config("ipam: missing in the configuration"))?;
        let mut sets = conf.runtime.ip_ranges;
        if let Some(subnet) = ipam.single.subnet {
            let RangeConfOptional {
                start,
                end,
                gateway,
                ..
            } = ipam.single;
            sets.push(vec![RangeConf {
                subnet,
                start,
                end,
                gateway,
            }]);
        }
        sets.extend(ipam.ranges);
        let ranges = range_sets(&sets)?;
        let mut requested = Vec::new();
        let asked = [
            conf.args.map(|args| args.cni.ips).unwrap_or_default(),
            conf.runtime.ips,
        ]
        .concat();
        for text in asked.iter().chain(request.args()?.get("IP")) {
            requested.push(requested_ip(text)?);
        }
        Ok(Self {
            ranges,
            routes: ipam.routes,
            dns: if ipam.resolv_conf.is_empty() {
                Dns::default()
            } else {
                resolv_conf(&ipam.resolv_conf)?
            },
            data_dir: if ipam.data_dir.is_empty() {
                DATA_DIR
            } else {
                &ipam.data_dir
            }
            .into(),
            requested,
        })
    }
}

fn range_sets(sets: &[Vec<RangeConf>]) -> Result<Vec<RangeSet>, Error> {
    if sets.is_empty() {
        return Err(Error::config("ipam.ranges: no IP ranges specified"));
    }
    let read = |(number, set): (usize, &Vec<RangeConf>)| {
        let ranges = set.iter().map(Range::new).collect::<Result<Vec<_>, _>>();
        ranges
            .and_then(RangeSet::new)
            .map_err(|reason| Error::config(format!("ipam.ranges[{number}]: {reason}")))
    };
    let sets: Vec<RangeSet> = sets
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()?;
    for (number, set) in sets.iter().enumerate() {
        if let Some(other) = sets
            .iter()
            .take(number)
            .position(|other| other.overlaps(set))
        {
            return Err(Error::config(format!(
                "ipam.ranges: range set {number} overlaps with {other}"
            )));
        }
    }
    Ok(sets)
}

/// `10.1.2.3` or `10.1.2.3/24`
fn requested_ip(text: &str) -> Result<IpAddr, Error> {
    let address = text.split('/').next().unwrap_or_default();
    address
        .parse()
        .map_err(|_| Error::config(format!("requested IP {text:?} is not an address")))
}

/// The settings of a file like `/etc/resolv.conf` (`man 5 resolv.conf`).
fn resolv_conf(path: &str) -> Result<Dns, Error> {
    let text = fs::read_to_string(path)
        .map_err(|cause| Error::io(format!("read resolvConf {path}: {cause}")))?;
    let mut dns = Dns::default();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', ';']))
    {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let values = words.map(str::to_owned);
        match key {
            "nameserver" => dns.nameservers.extend(values.take(1)),
            "domain" => dns.domain = values.take(1).collect(),
            "search" => dns.search.extend(values),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    Ok(dns)
}
