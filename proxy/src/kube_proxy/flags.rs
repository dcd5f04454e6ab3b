//! kube-proxy's flags. As upstream, with `--config` the file alone counts, but for `--hostname-override`.

use super::{Error, KubeProxyConfiguration, Loaded};
use clap::Args;
use std::path::PathBuf;

/// kube-proxy's flags that this proxy knows. Those of other modes are taken and mean nothing.
#[derive(Args, Debug, Clone, Default)]
pub struct Flags {
    /// A KubeProxyConfiguration file; the other flags don't count then.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to reach the API server, and as whom.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node; the host's name if not given.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// nftables.
    #[arg(long, value_name = "MODE", default_value = "")]
    pub proxy_mode: String,
    /// Addresses of the cluster's pods, which are not masqueraded.
    #[arg(long, value_name = "CIDR,…", default_value = "")]
    pub cluster_cidr: String,
    /// How local pods are told: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix.
    #[arg(long, value_name = "MODE", default_value = "")]
    pub detect_local_mode: String,
    /// The pods' bridge.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub pod_bridge_interface: String,
    /// How the names of the pods' interfaces begin.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub pod_interface_name_prefix: String,
    /// Networks in which this node's addresses serve NodePorts, or `primary`.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Masquerade all traffic to ClusterIPs.
    #[arg(long)]
    pub masquerade_all: bool,
    /// The bit of the packet mark that asks for masquerading.
    #[arg(long, value_name = "BIT", alias = "nftables-masquerade-bit")]
    pub iptables_masquerade_bit: Option<i32>,
    /// The shortest time between two changes of the rules.
    #[arg(long, value_name = "DURATION", alias = "nftables-min-sync-period")]
    pub iptables_min_sync_period: Option<String>,
    /// Where /healthz and /livez answer.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub healthz_bind_address: String,
    /// Where /metrics answers.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub metrics_bind_address: String,
    /// Connections tracked per core, at most.
    #[arg(long, value_name = "COUNT")]
    pub conntrack_max_per_core: Option<u32>,
    /// Connections tracked at most, however few the cores.
    #[arg(long, value_name = "COUNT")]
    pub conntrack_min: Option<u32>,
    /// Idle time of an established TCP connection.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<String>,
    /// Idle time of a TCP connection in CLOSE_WAIT.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<String>,
    /// Track TCP packets out of window, too.
    #[arg(long)]
    pub conntrack_tcp_be_liberal: bool,
    /// Idle time of a UDP flow without answers.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<String>,
    /// Idle time of a UDP flow with answers.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<String>,
    /// Remove all rules, and end.
    #[arg(long)]
    pub cleanup: bool,
    /// Print the rules that would be made, and end.
    #[arg(long)]
    pub dump: bool,
    #[command(flatten)]
    ignored: Ignored,
}

/// Flags that a kube-proxy's command line may have and that change nothing here.
#[derive(Args, Debug, Clone, Default)]
struct Ignored {
    #[arg(long, hide = true)]
    bind_address: Option<String>,
    #[arg(long, hide = true)]
    bind_address_hard_fail: bool,
    #[arg(long, hide = true)]
    config_sync_period: Option<String>,
    #[arg(long, hide = true)]
    feature_gates: Option<String>,
    #[arg(long, hide = true)]
    init_only: bool,
    #[arg(long, hide = true)]
    iptables_sync_period: Option<String>,
    #[arg(long, hide = true)]
    kube_api_burst: Option<i32>,
    #[arg(long, hide = true)]
    kube_api_qps: Option<f64>,
    #[arg(long, hide = true)]
    nftables_sync_period: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    #[arg(long, hide = true)]
    profiling: bool,
    #[arg(long, short = 'v', hide = true)]
    v: Option<i32>,
}

impl Flags {
    /// The configuration that they come to.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(&self, host_name: &str) -> Result<Loaded, Error> {
        let mut file = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|source| Error::Read {
                    path: path.clone(),
                    source,
                })?;
                KubeProxyConfiguration::parse(&text)?
            }
            None => self.as_file(),
        };
        if let Some(name) = &self.hostname_override {
            name.clone_into(&mut file.hostname_override);
        }
        let mut loaded = file.load(host_name)?;
        loaded.kubeconfig = loaded.kubeconfig.or_else(|| self.kubeconfig.clone());
        Ok(loaded)
    }

    fn as_file(&self) -> KubeProxyConfiguration {
        let mut file = KubeProxyConfiguration {
            mode: self.proxy_mode.clone(),
            cluster_cidr: self.cluster_cidr.clone(),
            detect_local_mode: self.detect_local_mode.clone(),
            healthz_bind_address: self.healthz_bind_address.clone(),
            metrics_bind_address: self.metrics_bind_address.clone(),
            node_port_addresses: self.nodeport_addresses.clone(),
            ..KubeProxyConfiguration::default()
        };
        self.pod_bridge_interface
            .clone_into(&mut file.detect_local.bridge_interface);
        self.pod_interface_name_prefix
            .clone_into(&mut file.detect_local.interface_name_prefix);
        file.nftables.masquerade_all = self.masquerade_all;
        file.nftables.masquerade_bit = self.iptables_masquerade_bit;
        file.nftables
            .min_sync_period
            .clone_from(&self.iptables_min_sync_period);
        let conntrack = &mut file.conntrack;
        conntrack.max_per_core = self.conntrack_max_per_core;
        conntrack.min = self.conntrack_min;
        conntrack
            .tcp_established_timeout
            .clone_from(&self.conntrack_tcp_timeout_established);
        conntrack
            .tcp_close_wait_timeout
            .clone_from(&self.conntrack_tcp_timeout_close_wait);
        conntrack.tcp_be_liberal = self.conntrack_tcp_be_liberal;
        conntrack
            .udp_timeout
            .clone_from(&self.conntrack_udp_timeout);
        conntrack
            .udp_stream_timeout
            .clone_from(&self.conntrack_udp_timeout_stream);
        file
    }
}
