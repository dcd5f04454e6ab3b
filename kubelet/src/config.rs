//! What one kubelet is told at start.

mod file;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use file::Error as FileError;

/// How many ids a pod with a user namespace has at least.
const IDS_UNIT: u32 = 65_536;

/// Everything that a kubelet needs to know; no file is read behind its back.
///
/// [`Config::new`] gives upstream's defaults for a node of a given name.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name under which the node registers, in lower case (RFC 1123).
    pub node_name: String,
    /// The node's addresses, first the primary one; at most one of each family is used.
    pub node_ips: Vec<IpAddr>,
    /// Pod folders, the shared tmpfs: `/var/lib/orlop/kubelet`.
    pub root_dir: PathBuf,
    /// Container logs by pod: `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    /// Symlinks to the current log of each container, for log collectors: `/var/log/containers`.
    pub container_logs_dir: PathBuf,
    /// The CRI server's unix socket.
    pub cri_socket: PathBuf,
    /// Whether a container that states no seccomp profile gets the runtime's own; upstream's default is to confine
    /// none (`seccompDefault`).
    pub seccomp_default: bool,
    /// The cgroup below which `kubepods` lies, `/` at the root.
    pub cgroup_root: String,
    /// Name servers for pods whose dnsPolicy is ClusterFirst; empty: they get the node's own.
    pub cluster_dns: Vec<IpAddr>,
    /// The DNS domain of the cluster.
    pub cluster_domain: String,
    /// The resolver configuration that pods inherit.
    pub resolv_conf: PathBuf,
    /// A folder of pod manifests that run without an API server.
    pub static_pod_path: Option<PathBuf>,
    /// `status.capacity.pods`.
    pub max_pods: u32,
    /// How many ids a pod with `hostUsers: false` gets: 65536, or a multiple of it (`userNamespaces.idsPerPod`).
    pub ids_per_pod: u32,
    /// Labels that the node registers with, besides the well-known ones.
    pub node_labels: BTreeMap<String, String>,
    /// Whether to create and maintain the Node object.
    pub register_node: bool,
    /// CPU, memory and so on held back from pods: capacity less this is allocatable. Quantities.
    pub reserved: BTreeMap<String, String>,
    /// The kubelet's HTTPS API; none: it isn't served.
    pub server: Option<ServerConfig>,
    /// Container log size at which it is rotated.
    pub log_max_bytes: u64,
    /// Log files kept for a container, the current one included.
    pub log_max_files: u32,
    /// How often the Lease is renewed.
    pub lease_renewal: Duration,
    /// Whether an end of the kubelet stops every pod and removes what it made (`up` without `--keep`).
    pub drain_on_shutdown: bool,
    /// The longest that a drain waits for a pod's own grace period.
    pub drain_grace: Duration,
    /// The addresses to which the node's service proxy sends, where it tells, and those to which it did, with when that
    /// ended: a pod that is to stop is let go of first.
    pub served: Option<watch::Receiver<BTreeMap<IpAddr, Option<Instant>>>>,
}

/// The kubelet's HTTPS API.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen.
    pub address: IpAddr,
    /// 10250; 0 takes any free port, which the Node object then states.
    pub port: u16,
    /// Certificate chain, PEM.
    pub cert_pem: String,
    /// Private key, PEM.
    pub key_pem: String,
    /// The CA that signs clients' certificates, PEM.
    pub client_ca_pem: String,
    /// Certificate common names that may call, besides members of `system:masters`.
    pub allowed_users: Vec<String>,
}

impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConfig")
            .field("address", &self.address)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Upstream's defaults for a node called `node_name`.
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips,
            root_dir: "/var/lib/orlop/kubelet".into(),
            pod_logs_dir: "/var/log/pods".into(),
            container_logs_dir: "/var/log/containers".into(),
            cri_socket: "/run/orlop/cri.sock".into(),
            seccomp_default: true,
            cgroup_root: "/".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            static_pod_path: None,
            max_pods: 110,
            ids_per_pod: IDS_UNIT,
            node_labels: BTreeMap::new(),
            register_node: true,
            reserved: BTreeMap::new(),
            server: None,
            log_max_bytes: 10 * 1024 * 1024,
            log_max_files: 5,
            lease_renewal: Duration::from_secs(10),
            drain_on_shutdown: false,
            drain_grace: Duration::from_secs(2),
            served: None,
        }
    }

    /// The folder that holds one pod's files on disk.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// The folder, in the shared tmpfs, that holds one pod's secrets, tokens and ConfigMaps.
    pub fn volatile_pod_dir(&self, uid: &str) -> PathBuf {
        self.volatile_dir().join(uid)
    }

    /// Where the shared tmpfs is mounted.
    pub fn volatile_dir(&self) -> PathBuf {
        self.root_dir.join("volatile")
    }

    /// The folder of one pod's logs, as upstream names it: `<namespace>_<name>_<uid>`.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}
