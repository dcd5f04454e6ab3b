//! What the rules depend on beside the Services: one family's part of the configuration and of the Node.

use crate::config::{Config, DetectLocal, IptablesSettings, NodePortAddresses};
use crate::service::NodeFacts;
use ipnet::IpNet;
use linux::nftables::Family;
use std::net::IpAddr;

/// How the node's own pods are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalPods {
    /// By their network.
    Network(IpNet),
    /// By the interface that they come in by; `+` at its end stands for the rest of the name.
    Interface(String),
    /// Not at all.
    Unknown,
}

/// Where NodePorts answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePorts {
    /// On all of the node's addresses.
    All,
    /// On those in these networks.
    Networks(Vec<IpNet>),
}

/// One family's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which.
    pub family: Family,
    /// Masquerade all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// The mark that asks for masquerading.
    pub mark: u32,
    /// How the node's own pods are told.
    pub local_pods: LocalPods,
    /// Where NodePorts answer.
    pub node_ports: NodePorts,
    /// Whether they answer on loopback.
    pub localhost: bool,
    /// The node's addresses, the primary one first.
    pub node_addresses: Vec<IpAddr>,
    /// Drop what connection tracking can't place, before it resets the connection.
    pub drop_invalid: bool,
    /// Masquerade to ports that can't be foretold; iptables before 1.6.2 can't.
    pub random_fully: bool,
}

/// 127.0.0.0/8, or ::1.
pub fn loopback(family: Family) -> IpNet {
    match family {
        Family::Ip6 => IpNet::from(IpAddr::from(std::net::Ipv6Addr::LOCALHOST)),
        _ => IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8),
    }
}

/// Where NodePorts answer in a family. As upstream: on all of its addresses, if nothing is said about it.
fn node_ports(family: Family, config: &Config, primary: Option<&IpAddr>) -> NodePorts {
    let networks: Vec<IpNet> = match &config.node_port_addresses {
        NodePortAddresses::All => return NodePorts::All,
        NodePortAddresses::Primary => {
            return NodePorts::Networks(primary.copied().map(IpNet::from).into_iter().collect());
        }
        NodePortAddresses::Networks(networks) => networks
            .iter()
            .filter(|network| is_of(family, network.addr()))
            .map(IpNet::trunc)
            .collect(),
    };
    if networks.is_empty() || networks.iter().any(|network| network.prefix_len() == 0) {
        return NodePorts::All;
    }
    NodePorts::Networks(networks)
}

impl NodePorts {
    /// Whether any loopback address is among those where NodePorts are to answer.
    pub fn include_loopback(&self, family: Family) -> bool {
        let loopback = loopback(family);
        let meets = |network: &IpNet| network.contains(&loopback) || loopback.contains(network);
        match self {
            NodePorts::All => true,
            NodePorts::Networks(networks) => networks.iter().any(meets),
        }
    }
}

/// Whether NodePorts are to answer on 127.0.0.1, which takes a setting of the kernel's.
pub fn serves_localhost(own: IptablesSettings, config: &Config) -> bool {
    own.localhost_node_ports && node_ports(Family::Ip, config, None).include_loopback(Family::Ip)
}

fn is_of(family: Family, address: IpAddr) -> bool {
    address.is_ipv6() == (family == Family::Ip6)
}

impl Settings {
    /// By the configuration and what the Node says. Of several networks of pods in one family only the first counts,
    /// since one rule can exclude no more.
    pub fn new(
        family: Family,
        own: IptablesSettings,
        config: &Config,
        node: &NodeFacts,
    ) -> Settings {
        let first = |networks: &[IpNet]| {
            let found = networks
                .iter()
                .find(|network| is_of(family, network.addr()));
            found.map_or(LocalPods::Unknown, |network| {
                LocalPods::Network(network.trunc())
            })
        };
        let local_pods = match &config.detect_local {
            DetectLocal::Networks(networks) => first(networks),
            DetectLocal::NodeNetworks => first(&node.pod_networks),
            DetectLocal::Interface(name) => LocalPods::Interface(name.replace('*', "+")),
            DetectLocal::Unknown => LocalPods::Unknown,
        };
        let addresses = node.addresses.iter().copied();
        let node_addresses: Vec<IpAddr> = addresses.filter(|a| is_of(family, *a)).collect();
        Settings {
            family,
            masquerade_all: config.masquerade_all,
            mark: config.masquerade_mark(),
            local_pods,
            node_ports: node_ports(family, config, node_addresses.first()),
            localhost: family == Family::Ip && serves_localhost(own, config),
            node_addresses,
            drop_invalid: true,
            random_fully: true,
        }
    }
}
