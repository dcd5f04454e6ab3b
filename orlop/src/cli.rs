//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

/// A Kubernetes node in one program: kubelet, CRI runtime, CNI plugins, service proxy, control plane.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, max_term_width = 100)]
pub struct Cli {
    /// How log lines are written to standard error; RUST_LOG says which.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one whole cluster on this machine: control plane and node.
    Up(Up),
    /// Run the control plane alone: API server, scheduler, controllers.
    Server(Server),
    /// Run a node: kubelet, CRI server and service proxy in one process.
    Node(Node),
    /// Run the kubelet alone, on any CRI server.
    Kubelet(Kubelet),
    /// Run the CRI server alone.
    Cri(Cri),
    /// Run the service proxy alone.
    Proxy(Box<Proxy>),
    /// Import, list and remove images.
    #[command(subcommand)]
    Image(Image),
    /// Install the CNI plugins as links to this program; called with a plugin's name, be that plugin.
    #[command(subcommand)]
    Cni(Cni),
    /// Show what this node is doing: pods, addresses, stages and their times, Services, what waits and why.
    Status(Status),
    /// The OCI runtime, with runc's command line.
    #[command(disable_help_flag = true)]
    Runtime {
        /// runc's words.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Where files are kept.
#[derive(Args, Clone, Debug)]
pub struct Root {
    /// Folder of all that is kept: store, keys, images, container logs.
    #[arg(long, default_value = crate::layout::DEFAULT_ROOT, value_name = "DIR")]
    pub root: PathBuf,
}

/// `orlop up`
#[derive(Args, Clone, Debug)]
pub struct Up {
    #[command(flatten)]
    pub root: Root,
    /// Run a sample Deployment and Service, and prove them.
    #[arg(long)]
    pub demo: bool,
    /// Stop when all is up (and proved); the exit status is 0 only if all of it worked.
    #[arg(long)]
    pub exit: bool,
    /// Leave the containers running at the end, for the next `up` to take over.
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub network: Network,
    #[command(flatten)]
    pub api: Api,
    #[command(flatten)]
    pub this_node: ThisNode,
    #[command(flatten)]
    pub between_nodes: BetweenNodes,
}

/// Addresses of a cluster.
#[derive(Args, Clone, Debug)]
pub struct Network {
    /// Addresses for pods, one range a family.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.244.0.0/16",
        value_name = "CIDR"
    )]
    pub cluster_cidr: Vec<IpNet>,
    /// Length of the prefix that a node gets of an IPv4 range [default: 24, and in `up` less where --max-pods takes more
    /// addresses: twice as many, since one that was given back rests for a while].
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=30))]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// Length of the prefix that a node gets of an IPv6 range.
    #[arg(long, default_value_t = 64, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=126))]
    pub node_cidr_mask_size_ipv6: u8,
    /// Addresses for Services, one range a family.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.96.0.0/16",
        value_name = "CIDR"
    )]
    pub service_cluster_ip_range: Vec<IpNet>,
}

impl Network {
    /// The length of a node's IPv4 prefix that has room for so many pods, if none was asked for.
    pub fn make_room(&mut self, pods: u32) {
        let bits = pods.max(1).saturating_mul(2).next_power_of_two().ilog2();
        let length = u8::try_from(32 - bits.min(31)).unwrap_or(24).min(24);
        self.node_cidr_mask_size_ipv4.get_or_insert(length);
    }
}

/// Where the API is served.
#[derive(Args, Clone, Debug)]
pub struct Api {
    /// Address on which the API is served.
    #[arg(long, default_value = "0.0.0.0", value_name = "IP")]
    pub bind_address: IpAddr,
    /// Port on which the API is served.
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    pub secure_port: u16,
}

/// What a node says of itself.
#[derive(Args, Clone, Debug)]
pub struct ThisNode {
    /// Name under which the node registers; the host's name if not given.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// The node's addresses, one a family; that of the default route if not given.
    #[arg(long, value_delimiter = ',', value_name = "IP")]
    pub node_ip: Vec<IpAddr>,
    /// Port of the kubelet's own API.
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    pub kubelet_port: u16,
    /// Folder of pod manifests to run without an API server.
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Most pods on the node.
    #[arg(long, default_value_t = 110, value_name = "N")]
    pub max_pods: u32,
}

/// What is between the nodes, and between pods and the outside.
#[derive(Args, Clone, Debug)]
pub struct BetweenNodes {
    /// How the pods of other nodes are reached.
    #[arg(long, value_enum, default_value_t = PodNetwork::Auto, value_name = "MODE")]
    pub pod_network: PodNetwork,
    /// The same from a file (YAML), read again at SIGHUP: `mode` (auto, direct, vxlan), and `nonMasqueradeCIDRs`,
    /// networks that see pods' own addresses.
    #[arg(long, value_name = "FILE", conflicts_with = "pod_network")]
    pub pod_network_config: Option<PathBuf>,
}

/// How the pods of other nodes are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PodNetwork {
    /// Directly where nodes share a link, else by VXLAN.
    Auto,
    /// Directly or not at all.
    Direct,
    /// By VXLAN.
    Vxlan,
    /// Another program takes care of it.
    None,
}

impl PodNetwork {
    /// The mode of this program's own routes, if it makes them.
    pub fn mode(self) -> Option<proxy::route::Mode> {
        match self {
            PodNetwork::Auto => Some(proxy::route::Mode::Auto),
            PodNetwork::Direct => Some(proxy::route::Mode::Direct),
            PodNetwork::Vxlan => Some(proxy::route::Mode::Vxlan),
            PodNetwork::None => None,
        }
    }
}

/// `orlop server`
#[derive(Args, Clone, Debug)]
pub struct Server {
    #[command(flatten)]
    pub root: Root,
    #[command(flatten)]
    pub network: Network,
    #[command(flatten)]
    pub api: Api,
    /// Address under which others reach this API server; that of the default route if not given.
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
}

/// `orlop node`
#[derive(Args, Clone, Debug)]
pub struct Node {
    #[command(flatten)]
    pub root: Root,
    /// How to reach the API server, and as whom.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Addresses of the cluster's pods, for the proxy.
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub cluster_cidr: Vec<IpNet>,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub this_node: ThisNode,
    #[command(flatten)]
    pub between_nodes: BetweenNodes,
}

/// The kubelet's serving certificate.
#[derive(Args, Clone, Debug)]
pub struct Tls {
    /// Certificate of the kubelet's API, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// The CA of those who may call the kubelet's API, PEM.
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
}

/// `orlop kubelet`
#[derive(Args, Clone, Debug)]
pub struct Kubelet {
    #[command(flatten)]
    pub root: Root,
    /// How to reach the API server, and as whom.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// The CRI server's unix socket.
    #[arg(
        long,
        default_value = "unix:///run/orlop/cri.sock",
        value_name = "SOCKET"
    )]
    pub container_runtime_endpoint: String,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub this_node: ThisNode,
}

/// `orlop cri`
#[derive(Args, Clone, Debug)]
pub struct Cri {
    /// The unix socket to listen on [default: /run/orlop/cri.sock]
    #[arg(long, value_name = "PATH")]
    pub listen: Option<PathBuf>,
    /// Folder of images and of what outlives a reboot [default: /var/lib/orlop]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Folder of what dies with the kernel [default: /run/orlop]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// A configuration file, TOML; flags count before it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the configuration with its documentation, as a file, and end.
    #[arg(long)]
    pub print_config: bool,
}

/// `orlop proxy`
#[derive(Args, Clone, Debug)]
pub struct Proxy {
    #[command(flatten)]
    pub flags: proxy::kube_proxy::Flags,
    /// Enforce NetworkPolicies too, which kube-proxy leaves to others.
    #[arg(long)]
    pub network_policy: bool,
    /// Remove the rules that a kube-proxy left on this node, in any of its modes, and end; beside --cleanup, both.
    #[arg(long)]
    pub cleanup_kube_proxy: bool,
}

/// Which CRI server is asked.
#[derive(Args, Clone, Debug)]
pub struct CriServer {
    #[command(flatten)]
    pub root: Root,
    /// The CRI server's socket; that of `orlop up` with this root folder if not given.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `orlop image`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Import an OCI archive, an OCI layout's folder, or what `docker save` writes.
    Import {
        #[command(flatten)]
        server: CriServer,
        /// A file or a folder; `-` is standard input.
        path: PathBuf,
        /// The name to give to an image that has none.
        #[arg(long)]
        name: Option<String>,
    },
    /// List images.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        server: CriServer,
    },
    /// Pull an image from a registry.
    Pull {
        #[command(flatten)]
        server: CriServer,
        /// Name of the image.
        image: String,
    },
    /// Write images as one archive, which is an OCI archive and what `docker load` reads.
    Export {
        #[command(flatten)]
        server: CriServer,
        /// A file, which is replaced; `-` is standard output.
        path: PathBuf,
        /// The images, by name, digest or id.
        #[arg(required = true)]
        images: Vec<String>,
        /// Make a folder at PATH, an OCI layout, rather than an archive.
        #[arg(long)]
        layout: bool,
    },
    /// Give an image one more name.
    Tag {
        #[command(flatten)]
        server: CriServer,
        /// Name, digest or id.
        image: String,
        /// The new name.
        name: String,
    },
    /// Keep images from the kubelet's garbage collection.
    Pin {
        #[command(flatten)]
        server: CriServer,
        /// The images.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Let the kubelet's garbage collection have images again.
    Unpin {
        #[command(flatten)]
        server: CriServer,
        /// The images.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Compare all that is stored with its digests; fails if something was changed or is gone.
    Verify {
        #[command(flatten)]
        server: CriServer,
    },
    /// Remove images, by name, digest or id.
    #[command(visible_alias = "rm")]
    Remove {
        #[command(flatten)]
        server: CriServer,
        /// The images.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Import the demo's image, in two versions.
    Demo {
        #[command(flatten)]
        server: CriServer,
    },
}

/// `orlop cni`
#[derive(Debug, Subcommand)]
pub enum Cni {
    /// Make a link to this program for each plugin.
    Install {
        /// The folder, such as /opt/cni/bin.
        folder: PathBuf,
    },
    /// List the plugins.
    List,
    /// Serve the `dhcp` plugin: get addresses by DHCP and renew them. `--help` tells its flags.
    #[command(disable_help_flag = true)]
    DhcpDaemon {
        /// As upstream's `dhcp daemon` takes them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
}

/// `orlop status`
#[derive(Args, Clone, Debug)]
pub struct Status {
    #[command(flatten)]
    pub root: Root,
    /// How to reach the API server; the kubeconfig in the root folder if not given.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value_t = StatusForm::Text, global = true)]
    pub output: StatusForm,
    /// What to show instead of everything.
    #[command(subcommand)]
    pub what: Option<StatusOf>,
}

/// Parts of `orlop status`
#[derive(Clone, Debug, Subcommand)]
pub enum StatusOf {
    /// Show what network policies allow to and from a pod, and which policy allows it.
    Policy {
        /// The pod: its name, or NAMESPACE/NAME.
        pod: String,
        /// The pod's namespace.
        #[arg(short, long, default_value = "default", value_name = "NAMESPACE")]
        namespace: String,
    },
}

/// The form of `orlop status`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StatusForm {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Api {
    /// Where the API is served.
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.bind_address, self.secure_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_prefix_has_room_for_twice_its_pods() {
        let length = |words: &[&str], pods| {
            let words = ["orlop", "up"].iter().chain(words);
            let Command::Up(mut up) = Cli::parse_from(words).command else {
                panic!("up is up");
            };
            up.network.make_room(pods);
            up.network.node_cidr_mask_size_ipv4
        };
        assert_eq!(length(&[], 110), Some(24));
        assert_eq!(length(&[], 129), Some(23));
        assert_eq!(length(&[], 1000), Some(21));
        assert_eq!(length(&["--node-cidr-mask-size-ipv4=25"], 1000), Some(25));
        assert_eq!(length(&[], 0), Some(24));
    }
}
