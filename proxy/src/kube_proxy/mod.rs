//! kube-proxy's configuration: the `KubeProxyConfiguration` file and the flags, as far as they make sense on Linux with
//! nftables. What only another mode or system uses is read over.

mod file;
mod flags;

pub use file::KubeProxyConfiguration;
pub use flags::Flags;

use crate::config::{Config, ConntrackSettings, DetectLocal, NodePortAddresses};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no KubeProxyConfiguration.
    #[error("parse KubeProxyConfiguration: {0}")]
    Parse(String),
    /// A field has a value that can't be used.
    #[error("{field}: {problem}")]
    Field {
        /// The file's word for it.
        field: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl Error {
    fn field(field: &'static str, problem: impl Into<String>) -> Error {
        Error::Field {
            field,
            problem: problem.into(),
        }
    }
}

/// What a configuration comes to.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The proxy's configuration.
    pub config: Config,
    /// `clientConnection.kubeconfig`; none means the service account's.
    pub kubeconfig: Option<PathBuf>,
}

impl KubeProxyConfiguration {
    /// The proxy's configuration; `host_name` is this node's name unless the file overrides it.
    ///
    /// # Errors
    /// [`Error::Field`] for a mode that isn't there, an address or a network that can't be parsed.
    pub fn load(&self, host_name: &str) -> Result<Loaded, Error> {
        check_mode(&self.mode)?;
        let name = if self.hostname_override.is_empty() {
            host_name
        } else {
            &self.hostname_override
        };
        let timings = &self.nftables;
        let bit = timings.masquerade_bit.unwrap_or(14);
        let masquerade_bit = u8::try_from(bit).ok().filter(|bit| *bit < 32);
        let config = Config {
            detect_local: self.detect_local()?,
            masquerade_all: timings.masquerade_all,
            masquerade_bit: masquerade_bit
                .ok_or_else(|| Error::field("nftables.masqueradeBit", "must be from 0 to 31"))?,
            node_port_addresses: node_port_addresses(&self.node_port_addresses)?,
            min_sync_period: duration(
                "nftables.minSyncPeriod",
                timings.min_sync_period.as_deref(),
            )?,
            bridge: (!self.detect_local.bridge_interface.is_empty())
                .then(|| self.detect_local.bridge_interface.clone()),
            healthz_address: address(
                "healthzBindAddress",
                &self.healthz_bind_address,
                "0.0.0.0:10256",
                10256,
            )?,
            metrics_address: address(
                "metricsBindAddress",
                &self.metrics_bind_address,
                "127.0.0.1:10249",
                10249,
            )?,
            conntrack: Some(self.conntrack.settings()?),
            ..Config::new(name, Vec::new())
        };
        let kubeconfig = Some(&self.client_connection.kubeconfig).filter(|path| !path.is_empty());
        Ok(Loaded {
            config,
            kubeconfig: kubeconfig.map(PathBuf::from),
        })
    }

    fn detect_local(&self) -> Result<DetectLocal, Error> {
        let networks = parse_networks("clusterCIDR", self.cluster_cidr.split(','))?;
        match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" if networks.is_empty() => Ok(DetectLocal::Unknown),
            "" | "ClusterCIDR" => Ok(DetectLocal::Networks(networks)),
            "NodeCIDR" => Ok(DetectLocal::NodeNetworks),
            "BridgeInterface" => Ok(DetectLocal::Interface(
                self.detect_local.bridge_interface.clone(),
            )),
            "InterfaceNamePrefix" => Ok(DetectLocal::Interface(format!(
                "{}*",
                self.detect_local.interface_name_prefix
            ))),
            other => Err(Error::field(
                "detectLocalMode",
                format!(
                    "{other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
                ),
            )),
        }
    }
}

/// Upstream's default mode is iptables; which one does the work is not seen from outside, so that here an empty mode
/// means nftables.
fn check_mode(mode: &str) -> Result<(), Error> {
    match mode {
        "" | "nftables" => Ok(()),
        "iptables" | "ipvs" => Err(Error::field(
            "mode",
            format!("{mode} is not there: use nftables (Linux 5.13 and later), or leave it empty"),
        )),
        "userspace" => Err(Error::field(
            "mode",
            "userspace was removed from Kubernetes in 1.26: use nftables",
        )),
        other => Err(Error::field(
            "mode",
            format!("{other:?} is unknown: use nftables"),
        )),
    }
}

fn parse_networks<'a>(
    field: &'static str,
    texts: impl Iterator<Item = &'a str>,
) -> Result<Vec<IpNet>, Error> {
    let texts = texts.map(str::trim).filter(|text| !text.is_empty());
    texts
        .map(|text| {
            text.parse()
                .map_err(|_| Error::field(field, format!("{text:?} is no network")))
        })
        .collect()
}

/// In nftables mode upstream serves the node's primary addresses if nothing is said.
fn node_port_addresses(texts: &[String]) -> Result<NodePortAddresses, Error> {
    match texts {
        [] => Ok(NodePortAddresses::Primary),
        [one] if one == "primary" => Ok(NodePortAddresses::Primary),
        many => Ok(NodePortAddresses::Networks(parse_networks(
            "nodePortAddresses",
            many.iter().map(String::as_str),
        )?)),
    }
}

/// An address with or without a port; `0` or `:0`-like ends it.
fn address(
    field: &'static str,
    text: &str,
    default: &str,
    port: u16,
) -> Result<Option<SocketAddr>, Error> {
    let text = if text.is_empty() { default } else { text };
    let address = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, port)))
        .or_else(|_| {
            text.strip_prefix(':')
                .unwrap_or_default()
                .parse()
                .map(|port| SocketAddr::from(([0, 0, 0, 0], port)))
        })
        .map_err(|_| Error::field(field, format!("{text:?} is no address with a port")))?;
    Ok((address.port() != 0).then_some(address))
}

/// Go's durations: `1h2m3.5s`, `100ms`; nothing means zero.
fn duration(field: &'static str, text: Option<&str>) -> Result<Duration, Error> {
    let text = text.unwrap_or("0s");
    parse_duration(text).ok_or_else(|| {
        Error::field(
            field,
            format!("{text:?} is no duration such as 1m30s or 100ms"),
        )
    })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest == "0" {
        return Some(total);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[end..];
    }
    (!text.is_empty()).then_some(total)
}

impl file::Conntrack {
    fn settings(&self) -> Result<ConntrackSettings, Error> {
        const HOUR: Duration = Duration::from_secs(3_600);
        let optional = |field, text: &Option<String>| -> Result<Option<Duration>, Error> {
            let value = duration(field, text.as_deref())?;
            Ok((!value.is_zero()).then_some(value))
        };
        // Upstream's defaults.
        let or = |text: &Option<String>, default| {
            if text.is_none() {
                Ok(Some(default))
            } else {
                optional("conntrack", text)
            }
        };
        Ok(ConntrackSettings {
            max_per_core: self.max_per_core.unwrap_or(32_768),
            min: self.min.unwrap_or(131_072),
            tcp_established: or(&self.tcp_established_timeout, HOUR * 24)?,
            tcp_close_wait: or(&self.tcp_close_wait_timeout, HOUR)?,
            tcp_be_liberal: self.tcp_be_liberal,
            udp: optional("conntrack.udpTimeout", &self.udp_timeout)?,
            udp_stream: optional("conntrack.udpStreamTimeout", &self.udp_stream_timeout)?,
        })
    }
}

#[cfg(test)]
mod tests;
