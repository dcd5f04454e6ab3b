//! The configuration of `portmap`, in upstream's keys.

use std::net::IpAddr;

use serde::Deserialize;

use crate::protocol::{Error, Request};

/// What is to be mapped, all checked.
#[derive(Debug)]
pub(super) struct Config {
    /// Connections from the host's loopback address, and of the container to itself, work too.
    pub snat: bool,
    pub mappings: Vec<Mapping>,
}

/// A port of the host's that leads to one of the container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub host_port: u16,
    pub container_port: u16,
    /// `IPPROTO_*`
    pub protocol: u8,
    /// One of the host's addresses; any if absent.
    pub host_ip: Option<IpAddr>,
    /// The unspecified address of one family restricts to it.
    pub only_v6: Option<bool>,
}

#[derive(Deserialize)]
struct NetConf {
    #[serde(default = "yes")]
    snat: bool,
    #[serde(default)]
    backend: Option<String>,
    #[serde(default, rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(default, rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
    #[serde(default, rename = "runtimeConfig")]
    runtime: RuntimeConfig,
}

#[derive(Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default, rename = "portMappings")]
    mappings: Option<Vec<PortMapping>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

fn yes() -> bool {
    true
}

impl Config {
    pub(super) fn read(request: &Request) -> Result<Self, Error> {
        let conf: NetConf = request.config()?;
        if let Some(backend) = conf
            .backend
            .filter(|b| !["", "iptables", "nftables"].contains(&b.as_str()))
        {
            return Err(Error::config(format!(
                "backend: unrecognized backend {backend:?}"
            )));
        }
        let conditions = [
            ("conditionsV4", conf.conditions_v4),
            ("conditionsV6", conf.conditions_v6),
        ];
        if let Some((key, _)) = conditions
            .iter()
            .find(|(_, list)| list.as_ref().is_some_and(|list| !list.is_empty()))
        {
            return Err(Error::config(format!(
                "{key}: conditions of iptables are not supported"
            )));
        }
        let mut mappings = Vec::new();
        for (number, entry) in conf.runtime.mappings.unwrap_or_default().iter().enumerate() {
            // A host port of 0 asks for nothing, as in upstream's runtimes.
            if entry.host_port == 0 {
                continue;
            }
            let bad =
                |reason| Error::config(format!("runtimeConfig.portMappings[{number}].{reason}"));
            mappings.push(mapping(entry).map_err(bad)?);
        }
        Ok(Self {
            snat: conf.snat,
            mappings,
        })
    }
}

fn mapping(entry: &PortMapping) -> Result<Mapping, String> {
    let port = |key: &str, port: i64| match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{key}: invalid port {port}")),
    };
    let protocol = match entry.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => IPPROTO_TCP,
        "udp" => IPPROTO_UDP,
        "sctp" => IPPROTO_SCTP,
        other => return Err(format!("protocol: unknown protocol {other:?}")),
    };
    let host_ip: Option<IpAddr> = match entry.host_ip.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| format!("hostIP: {text:?} is not an address"))?,
        ),
    };
    Ok(Mapping {
        host_port: port("hostPort", entry.host_port)?,
        container_port: port("containerPort", entry.container_port)?,
        protocol,
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
        only_v6: host_ip
            .filter(IpAddr::is_unspecified)
            .map(|ip| ip.is_ipv6()),
    })
}

pub(super) const IPPROTO_TCP: u8 = 6;
pub(super) const IPPROTO_UDP: u8 = 17;
pub(super) const IPPROTO_SCTP: u8 = 132;
