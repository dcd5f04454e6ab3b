//! What the proxy is told: by `orlop`'s flags, or by a KubeProxyConfiguration file.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How the node's own pods are told from other sources, whose traffic to a Service is masqueraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// By their addresses: `ClusterCIDR`.
    Networks(Vec<IpNet>),
    /// By the interface that their packets come in by: `BridgeInterface`, or `InterfaceNamePrefix` if it ends in `*`.
    Interface(String),
    /// By the addresses that the Node object has for its pods: `NodeCIDR`.
    NodeNetworks,
    /// Not at all: traffic to a ClusterIP is never masqueraded, unless `masquerade_all`.
    Unknown,
}

/// What makes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Tables of nftables, by netlink.
    Nftables,
    /// `iptables-restore`, with kube-proxy's chains.
    Iptables(IptablesSettings),
}

impl Mode {
    /// kube-proxy's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Iptables(_) => "iptables",
        }
    }
}

/// What only [`Mode::Iptables`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IptablesSettings {
    /// How often it is checked whether others took the rules away.
    pub sync_period: Duration,
    /// Whether NodePorts answer on 127.0.0.1, too, where NodePorts answer on that address.
    pub localhost_node_ports: bool,
}

impl Default for IptablesSettings {
    /// Upstream's.
    fn default() -> IptablesSettings {
        IptablesSettings {
            sync_period: Duration::from_secs(30),
            localhost_node_ports: true,
        }
    }
}

/// On which of the node's addresses NodePorts answer. On loopback only in iptables mode, and only IPv4's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On all.
    All,
    /// On the Node's primary address of each family.
    Primary,
    /// On those in these networks.
    Networks(Vec<IpNet>),
}

/// Connection tracking's limits, in upstream's words; what is `None` or 0 is left as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConntrackSettings {
    /// Connections at most, for each core.
    pub max_per_core: u32,
    /// Connections at most, however few the cores.
    pub min: u32,
    /// Idle time of established TCP connections.
    pub tcp_established: Option<Duration>,
    /// Idle time of TCP connections in CLOSE_WAIT.
    pub tcp_close_wait: Option<Duration>,
    /// Don't take TCP packets out of window for invalid.
    pub tcp_be_liberal: bool,
    /// Idle time of UDP flows without answers.
    pub udp: Option<Duration>,
    /// Idle time of UDP flows with answers.
    pub udp_stream: Option<Duration>,
}

/// The proxy's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What makes the rules.
    pub mode: Mode,
    /// Which Node this is.
    pub node_name: String,
    /// How the node's own pods are told from others.
    pub detect_local: DetectLocal,
    /// Masquerade all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// The bit of the packet mark that asks for masquerading, 0 to 31; upstream's is 14.
    pub masquerade_bit: u8,
    /// Where NodePorts answer.
    pub node_port_addresses: NodePortAddresses,
    /// Changes that come sooner after a transaction than this wait, and are applied together. Zero: apply at once, and
    /// join only what came in during a transaction.
    pub min_sync_period: Duration,
    /// The bridge that joins the node's pods. Bridged packets have to pass the node's IP layer, or a Service's answer
    /// goes past it from pod to pod: `net.bridge.bridge-nf-call-iptables` is set; on a kernel without `br_netfilter`
    /// what a Service sends from the bridge back into it is masqueraded instead.
    pub bridge: Option<String>,
    /// Connection tracking's limits; `None` leaves the kernel's.
    pub conntrack: Option<ConntrackSettings>,
    /// Delete the rules when the proxy stops. Else they stay, as kube-proxy's do, and serve until the next start.
    pub cleanup_on_exit: bool,
    /// Where `/healthz` and `/livez` answer.
    pub healthz_address: Option<SocketAddr>,
    /// Where `/metrics` answers.
    pub metrics_address: Option<SocketAddr>,
    /// Where the proxy says which endpoints it sends to; see [`Config::local_endpoints`].
    pub local_endpoints: watch::Sender<LocalEndpoints>,
    /// Where the proxy says what it has done; see [`Config::progress`].
    pub progress: watch::Sender<Progress>,
}

/// The endpoints on this node to which the rules send, and for a while those to which they did, with when that ended.
pub type LocalEndpoints = BTreeMap<IpAddr, Option<Instant>>;

/// How long an endpoint that left is told.
const LEFT_TOLD: Duration = Duration::from_secs(10);

/// What the proxy has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Transactions since the start; the first one makes the rules what the API says.
    pub transactions: u64,
    /// Elements or rules that changed in the last one.
    pub last_changes: usize,
    /// From the first event that it holds to the kernel's answer.
    pub last_duration: Duration,
    /// Services that are programmed.
    pub services: usize,
    /// Services that the kernel refused.
    pub failed_services: usize,
}

impl Progress {
    /// Whether the rules have been made what the API says at least once.
    pub fn synced(&self) -> bool {
        self.transactions > 0
    }
}

impl Config {
    /// The defaults for a node: pods told by `pod_networks`, NodePorts on all addresses.
    pub fn new(node_name: impl Into<String>, pod_networks: Vec<IpNet>) -> Config {
        let detect_local = if pod_networks.is_empty() {
            DetectLocal::Unknown
        } else {
            DetectLocal::Networks(pod_networks)
        };
        Config {
            mode: Mode::Nftables,
            node_name: node_name.into(),
            detect_local,
            masquerade_all: false,
            masquerade_bit: 14,
            node_port_addresses: NodePortAddresses::All,
            min_sync_period: Duration::ZERO,
            bridge: None,
            conntrack: None,
            cleanup_on_exit: false,
            healthz_address: None,
            metrics_address: None,
            local_endpoints: watch::Sender::default(),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    /// Follows what the proxy does; [`Progress::synced`] says when the rules stand.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Follows which of this node's pods get traffic from its rules, but for those that get it only because all
    /// endpoints terminate, and which did a moment ago. A kubelet that waits, within bounds, until a pod that is to stop
    /// isn't among them, and a little more for what was on its way, stops no pod in the middle of a request.
    pub fn local_endpoints(&self) -> watch::Receiver<LocalEndpoints> {
        self.local_endpoints.subscribe()
    }

    pub(crate) fn report_local_endpoints(&self, endpoints: &BTreeSet<IpAddr>) {
        let now = Instant::now();
        self.local_endpoints.send_if_modified(|told| {
            told.retain(|_, left| left.is_none_or(|at| now.duration_since(at) < LEFT_TOLD));
            let mut changed = false;
            for (address, left) in told.iter_mut() {
                if left.is_none() && !endpoints.contains(address) {
                    *left = Some(now);
                    changed = true;
                }
            }
            for address in endpoints {
                changed |= told.insert(*address, None) != Some(None);
            }
            changed
        });
    }

    pub(crate) fn report(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }

    /// The mark that asks for masquerading.
    pub fn masquerade_mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }
}
