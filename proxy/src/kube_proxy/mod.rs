//! kube-proxy's configuration: the `KubeProxyConfiguration` file and the flags, as far as they make sense on Linux with
//! nftables or iptables. What only another mode or system uses is read over.

mod file;
mod flags;

pub use file::KubeProxyConfiguration;
pub use flags::Flags;

use crate::config::{
    Config, ConntrackSettings, DetectLocal, IptablesSettings, Mode, NodePortAddresses,
};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
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
    /// `--master`: the API server's URL, in place of the kubeconfig's.
    pub master: Option<String>,
    /// What the process's oom_score_adj is to be.
    pub oom_score_adj: i32,
}

impl KubeProxyConfiguration {
    /// The proxy's configuration; `host_name` is this node's name unless the file overrides it.
    ///
    /// # Errors
    /// [`Error::Field`] for a mode that isn't there, an address or a network that can't be parsed.
    pub fn load(&self, host_name: &str) -> Result<Loaded, Error> {
        let mode = self.mode()?;
        let (field, rules) = self.rules();
        let bit = rules.masquerade_bit.unwrap_or(14);
        let masquerade_bit = u8::try_from(bit).ok().filter(|bit| *bit < 32);
        let (healthz, metrics) = match self.bind_address.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => ("[::]:10256", "[::1]:10249"),
            Ok(IpAddr::V4(_)) => ("0.0.0.0:10256", "127.0.0.1:10249"),
            Err(_) if self.bind_address.is_empty() => ("0.0.0.0:10256", "127.0.0.1:10249"),
            Err(_) => {
                let problem = format!("{:?} is no address", self.bind_address);
                return Err(Error::field("bindAddress", problem));
            }
        };
        let oom_score_adj = self.oom_score_adj.unwrap_or(-999);
        if !(-1000..=1000).contains(&oom_score_adj) {
            return Err(Error::field("oomScoreAdj", "must be from -1000 to 1000"));
        }
        let mut min_sync_period =
            duration(field.min_sync_period, rules.min_sync_period.as_deref())?;
        if min_sync_period.is_zero() && mode != Mode::Nftables {
            // Upstream's default: a run of iptables-restore costs more than a transaction.
            min_sync_period = Duration::from_secs(1);
        }
        let config = Config {
            mode,
            detect_local: self.detect_local(mode)?,
            masquerade_all: rules.masquerade_all,
            masquerade_bit: masquerade_bit
                .ok_or_else(|| Error::field(field.masquerade_bit, "must be from 0 to 31"))?,
            node_port_addresses: node_port_addresses(&self.mode, &self.node_port_addresses)?,
            min_sync_period,
            bridge: (!self.detect_local.bridge_interface.is_empty())
                .then(|| self.detect_local.bridge_interface.clone()),
            healthz_address: address(
                "healthzBindAddress",
                &self.healthz_bind_address,
                healthz,
                10256,
            )?,
            metrics_address: address(
                "metricsBindAddress",
                &self.metrics_bind_address,
                metrics,
                10249,
            )?,
            conntrack: Some(self.conntrack.settings()?),
            ..Config::new(self.node_name(host_name)?, Vec::new())
        };
        let kubeconfig = Some(&self.client_connection.kubeconfig).filter(|path| !path.is_empty());
        Ok(Loaded {
            config,
            kubeconfig: kubeconfig.map(PathBuf::from),
            master: None,
            oom_score_adj,
        })
    }

    /// The settings of the rules, by the mode, and what the file calls them.
    fn rules(&self) -> (RuleFields, &file::Rules) {
        match self.mode.as_str() {
            "nftables" => (RuleFields::NFTABLES, &self.nftables),
            _ => (RuleFields::IPTABLES, &self.iptables),
        }
    }

    /// As upstream, the overriding name is trimmed and in lower case.
    fn node_name(&self, host_name: &str) -> Result<String, Error> {
        if self.hostname_override.is_empty() {
            return Ok(host_name.to_owned());
        }
        let name = self.hostname_override.trim().to_lowercase();
        if name.is_empty() {
            return Err(Error::field(
                "hostnameOverride",
                "it is blank: leave it out, or name the Node",
            ));
        }
        Ok(name)
    }

    /// Upstream's default mode is iptables; which one does the work is not seen from outside, so that here nftables does
    /// it for an empty mode, by iptables' settings and defaults.
    fn mode(&self) -> Result<Mode, Error> {
        match self.mode.as_str() {
            "" | "nftables" => Ok(Mode::Nftables),
            "iptables" => {
                let default = IptablesSettings::default();
                let period = self.iptables.sync_period.as_deref();
                let period = duration("iptables.syncPeriod", period)?;
                Ok(Mode::Iptables(IptablesSettings {
                    sync_period: if period.is_zero() {
                        default.sync_period
                    } else {
                        period
                    },
                    localhost_node_ports: self
                        .iptables
                        .localhost_node_ports
                        .unwrap_or(default.localhost_node_ports),
                }))
            }
            "ipvs" => Err(Error::field(
                "mode",
                "ipvs is not there: use nftables (Linux 5.13 and later) or iptables, or leave it empty",
            )),
            "userspace" => Err(Error::field(
                "mode",
                "userspace was removed from Kubernetes in 1.26: use nftables",
            )),
            other => Err(Error::field(
                "mode",
                format!("{other:?} is unknown: use nftables or iptables"),
            )),
        }
    }

    fn detect_local(&self, mode: Mode) -> Result<DetectLocal, Error> {
        let networks = parse_networks("clusterCIDR", self.cluster_cidr.split(','))?;
        let of_family = |ipv6: bool| {
            networks
                .iter()
                .filter(|n| n.addr().is_ipv6() == ipv6)
                .count()
        };
        if mode != Mode::Nftables && (of_family(false) > 1 || of_family(true) > 1) {
            return Err(Error::field(
                "clusterCIDR",
                "mode iptables takes one network of each family: name one that holds all pods, or use nftables",
            ));
        }
        match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" if networks.is_empty() => Ok(DetectLocal::Unknown),
            "" | "ClusterCIDR" => Ok(DetectLocal::Networks(networks)),
            "NodeCIDR" => Ok(DetectLocal::NodeNetworks),
            "BridgeInterface" => {
                let name = &self.detect_local.bridge_interface;
                interface("detectLocal.bridgeInterface", name)?;
                Ok(DetectLocal::Interface(name.clone()))
            }
            "InterfaceNamePrefix" => {
                let prefix = &self.detect_local.interface_name_prefix;
                interface("detectLocal.interfaceNamePrefix", prefix)?;
                Ok(DetectLocal::Interface(format!("{prefix}*")))
            }
            other => Err(Error::field(
                "detectLocalMode",
                format!(
                    "{other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
                ),
            )),
        }
    }
}

/// What a file calls the settings of the rules, for errors.
struct RuleFields {
    masquerade_bit: &'static str,
    min_sync_period: &'static str,
}

impl RuleFields {
    const NFTABLES: RuleFields = RuleFields {
        masquerade_bit: "nftables.masqueradeBit",
        min_sync_period: "nftables.minSyncPeriod",
    };
    const IPTABLES: RuleFields = RuleFields {
        masquerade_bit: "iptables.masqueradeBit",
        min_sync_period: "iptables.minSyncPeriod",
    };
}

/// Refuses what can't be an interface's name, or its beginning: an empty prefix would make all that comes in local.
fn interface(field: &'static str, name: &str) -> Result<(), Error> {
    const LONGEST: usize = 15;
    let fits = (1..=LONGEST).contains(&name.len());
    if fits && !name.contains(['/', '*', '\"']) && !name.contains(char::is_whitespace) {
        return Ok(());
    }
    Err(Error::field(
        field,
        format!(
            "{name:?} is no interface's name: detectLocalMode needs one of 1 to {LONGEST} bytes"
        ),
    ))
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

/// If nothing is said, upstream serves the node's primary addresses in nftables mode, and all in the others, of which the
/// empty mode is one.
fn node_port_addresses(mode: &str, texts: &[String]) -> Result<NodePortAddresses, Error> {
    match texts {
        [] if mode == "nftables" => Ok(NodePortAddresses::Primary),
        [] => Ok(NodePortAddresses::All),
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
