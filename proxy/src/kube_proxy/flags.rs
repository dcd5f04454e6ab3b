//! kube-proxy's flags. As upstream, with `--config` the file alone counts, but for `--hostname-override`.

use super::file::Rules;
use super::{Error, KubeProxyConfiguration, Loaded, duration};
use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::path::PathBuf;

/// kube-proxy's flags. Those that mean something here are fields; the others are taken, and mean nothing.
#[derive(Args, Debug, Clone, Default)]
pub struct Flags {
    /// A KubeProxyConfiguration file; the other flags don't count then.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write what the flags come to as a KubeProxyConfiguration file, and end; what is empty in it means the default.
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// How to reach the API server, and as whom.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The API server's URL, in place of the kubeconfig's.
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// Name of this node; the host's name if not given.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// nftables, which an empty mode means too, or iptables, which runs iptables-restore.
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
    /// The bit of the packet mark that asks for masquerading.
    #[arg(long, value_name = "BIT", alias = "nftables-masquerade-bit")]
    pub iptables_masquerade_bit: Option<i32>,
    /// The shortest time between two changes of the rules.
    #[arg(long, value_name = "DURATION", alias = "nftables-min-sync-period")]
    pub iptables_min_sync_period: Option<String>,
    /// How often iptables mode checks whether others took its rules away.
    #[arg(long, value_name = "DURATION", alias = "nftables-sync-period")]
    pub iptables_sync_period: Option<String>,
    /// An address of the family in which /healthz and /metrics answer by default.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub bind_address: String,
    /// Where /healthz and /livez answer.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub healthz_bind_address: String,
    /// Where /metrics answers.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub metrics_bind_address: String,
    /// The port of --healthz-bind-address; 0 turns it off.
    #[arg(long, value_name = "PORT", hide = true)]
    pub healthz_port: Option<u16>,
    /// The port of --metrics-bind-address; 0 turns it off.
    #[arg(long, value_name = "PORT", hide = true)]
    pub metrics_port: Option<u16>,
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
    /// Idle time of a UDP flow without answers.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<String>,
    /// Idle time of a UDP flow with answers.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<String>,
    /// This process's oom_score_adj, -1000 to 1000.
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,
    /// Print the version, and end.
    #[arg(long, value_name = "true|raw", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub version: Option<String>,
    /// Print the rules that would be made, and end.
    #[arg(long)]
    pub dump: bool,
    #[command(flatten)]
    pub switches: Switches,
    #[command(flatten)]
    ignored: Ignored,
}

/// What is on or off. As in Go, `--flag`, `--flag=true`, `--flag=0` and the like all do.
#[derive(Debug, Clone, Default)]
pub struct Switches {
    /// Masquerade all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// Don't take TCP packets out of window for invalid.
    pub conntrack_tcp_be_liberal: bool,
    /// Remove all rules, and end.
    pub cleanup: bool,
    /// NodePorts answer on 127.0.0.1, in iptables mode.
    pub iptables_localhost_nodeports: Option<bool>,
    /// Set what needs all of root's rights, and end.
    pub init_only: bool,
}

const SWITCHES: [(&str, &str); 4] = [
    ("masquerade-all", "Masquerade all traffic to ClusterIPs"),
    (
        "conntrack-tcp-be-liberal",
        "Track TCP packets out of window, too",
    ),
    ("cleanup", "Remove all rules, and end"),
    (
        "init-only",
        "Set the kernel's settings, which takes root, and end; afterwards CAP_NET_ADMIN is enough",
    ),
];

const LOCALHOST: &str = "iptables-localhost-nodeports";

fn switch(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value("false")
        .hide_default_value(true)
        .value_name("BOOL")
        .value_parser(BoolishValueParser::new())
}

/// Flags that a kube-proxy's command line may have and that change nothing here: they are of other modes, or of things
/// that this program does otherwise or not at all.
#[derive(Debug, Clone, Default)]
struct Ignored;

const IGNORED_SWITCHES: [&str; 5] = [
    "bind-address-hard-fail",
    "profiling",
    "ipvs-strict-arp",
    "log-text-split-stream",
    "log-json-split-stream",
];

const IGNORED_VALUES: [&str; 19] = [
    "config-sync-period",
    "feature-gates",
    "ipvs-exclude-cidrs",
    "ipvs-min-sync-period",
    "ipvs-scheduler",
    "ipvs-sync-period",
    "ipvs-tcp-timeout",
    "ipvs-tcpfin-timeout",
    "ipvs-udp-timeout",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "logging-format",
    "show-hidden-metrics-for-version",
    "v",
    "vmodule",
];

impl Args for Switches {
    fn augment_args(command: Command) -> Command {
        let localhost = switch(LOCALHOST)
            .help("Serve NodePorts on 127.0.0.1 too, in iptables mode; true if not given");
        command
            .args(SWITCHES.map(|(name, help)| switch(name).help(help)))
            .arg(localhost.default_value(None::<&str>))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Switches {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let on = |name: &str| matches.get_one::<bool>(name).copied().unwrap_or(false);
        Ok(Switches {
            masquerade_all: on("masquerade-all"),
            conntrack_tcp_be_liberal: on("conntrack-tcp-be-liberal"),
            cleanup: on("cleanup"),
            iptables_localhost_nodeports: matches.get_one::<bool>(LOCALHOST).copied(),
            init_only: on("init-only"),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Ignored {
    fn augment_args(command: Command) -> Command {
        let value = |name: &'static str| {
            let arg = Arg::new(name).long(name).hide(true);
            let arg = arg.allow_hyphen_values(true).action(ArgAction::Append);
            if name == "v" { arg.short('v') } else { arg }
        };
        command
            .args(IGNORED_SWITCHES.map(|name| switch(name).hide(true)))
            .args(IGNORED_VALUES.map(value))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Ignored)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}

impl Flags {
    /// The configuration that they come to.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(&self, host_name: &str) -> Result<Loaded, Error> {
        let file = self.file()?;
        let mut loaded = file.load(host_name)?;
        loaded.kubeconfig = loaded.kubeconfig.or_else(|| self.kubeconfig.clone());
        loaded.master.clone_from(&self.master);
        if self.config.is_none() {
            // A file's zero is nothing said, a flag's is.
            if let Some(period) = &self.iptables_min_sync_period {
                let period = duration("--iptables-min-sync-period", Some(period))?;
                loaded.config.min_sync_period = period;
            }
            let addresses = [
                (&mut loaded.config.healthz_address, self.healthz_port),
                (&mut loaded.config.metrics_address, self.metrics_port),
            ];
            for (address, port) in addresses {
                match (address.as_mut(), port) {
                    (_, Some(0)) => *address = None,
                    (Some(address), Some(port)) => address.set_port(port),
                    (_, None) | (None, _) => {}
                }
            }
        }
        Ok(loaded)
    }

    /// The file that they name, or else the flags as a file.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Parse`].
    pub fn file(&self) -> Result<KubeProxyConfiguration, Error> {
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
        Ok(file)
    }

    fn as_file(&self) -> KubeProxyConfiguration {
        let mut file = KubeProxyConfiguration {
            mode: self.proxy_mode.clone(),
            cluster_cidr: self.cluster_cidr.clone(),
            detect_local_mode: self.detect_local_mode.clone(),
            bind_address: self.bind_address.clone(),
            oom_score_adj: self.oom_score_adj,
            healthz_bind_address: self.healthz_bind_address.clone(),
            metrics_bind_address: self.metrics_bind_address.clone(),
            node_port_addresses: self.nodeport_addresses.clone(),
            ..KubeProxyConfiguration::default()
        };
        self.pod_bridge_interface
            .clone_into(&mut file.detect_local.bridge_interface);
        self.pod_interface_name_prefix
            .clone_into(&mut file.detect_local.interface_name_prefix);
        file.nftables = Rules {
            masquerade_all: self.switches.masquerade_all,
            masquerade_bit: self.iptables_masquerade_bit,
            min_sync_period: self.iptables_min_sync_period.clone(),
            sync_period: self.iptables_sync_period.clone(),
            localhost_node_ports: None,
        };
        file.iptables = Rules {
            localhost_node_ports: self.switches.iptables_localhost_nodeports,
            ..file.nftables.clone()
        };
        if let Some(kubeconfig) = &self.kubeconfig {
            file.client_connection.kubeconfig = kubeconfig.display().to_string();
        }
        let conntrack = &mut file.conntrack;
        conntrack.max_per_core = self.conntrack_max_per_core;
        conntrack.min = self.conntrack_min;
        conntrack
            .tcp_established_timeout
            .clone_from(&self.conntrack_tcp_timeout_established);
        conntrack
            .tcp_close_wait_timeout
            .clone_from(&self.conntrack_tcp_timeout_close_wait);
        conntrack.tcp_be_liberal = self.switches.conntrack_tcp_be_liberal;
        conntrack
            .udp_timeout
            .clone_from(&self.conntrack_udp_timeout);
        conntrack
            .udp_stream_timeout
            .clone_from(&self.conntrack_udp_timeout_stream);
        file
    }
}
