//! What an API server is told at its start.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;

/// Where the server keeps its files, where it listens, and the ranges that it hands out.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of the store (`store.db`), the keys (`pki/`) and `admin.kubeconfig`. Made when it is not there.
    pub root: PathBuf,
    /// Where HTTPS is served. Port 0 takes a free one; [`Server::addresses`](super::Server::addresses) tells which.
    pub listen: Vec<SocketAddr>,
    /// The address that the `kubernetes` Service points to and that the kubeconfig of other machines would name.
    /// Without it, the first listening address that is not a wildcard; without such a one, loopback.
    pub advertise: Option<IpAddr>,
    /// More names and addresses for the serving certificate.
    pub extra_sans: Vec<String>,
    /// Ranges for Service addresses, the first is the default family; one of each family at most.
    pub service_cidrs: Vec<IpNet>,
    /// Ports for Services of type NodePort and LoadBalancer.
    pub node_ports: RangeInclusive<u16>,
    /// The port of a kubelet whose Node names none in `status.daemonEndpoints`.
    pub kubelet_port: u16,
    /// Whether a kubelet's certificate must be of this cluster's authority. An upstream kubelet makes one of its own
    /// unless it is told otherwise, and upstream's API server takes it.
    pub verify_kubelets: bool,
    /// DNS suffix of Services, for certificates and the issuer of tokens.
    pub cluster_domain: String,
}

impl Config {
    /// The defaults of a one-machine cluster that keeps its files under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 6443))],
            advertise: None,
            extra_sans: Vec::new(),
            service_cidrs: vec![IpNet::new_assert(IpAddr::from([10, 96, 0, 0]), 16)],
            node_ports: 30000..=32767,
            kubelet_port: 10250,
            verify_kubelets: true,
            cluster_domain: "cluster.local".into(),
        }
    }
}
