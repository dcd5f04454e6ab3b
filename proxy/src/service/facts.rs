//! Objects as they are kept: parsed, and only what this node needs. A cluster's Services and slices are all held by every
//! node, so that each byte here counts thousands of times.

use super::object::{self, EndpointSlice, Service};
use super::{ServiceName, SliceName};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// What the proxy knows about its own node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The Node's name.
    pub name: String,
    /// Its `topology.kubernetes.io/zone`, or empty.
    pub zone: String,
    /// Its addresses, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
    /// Its pods' networks.
    pub pod_networks: Vec<IpNet>,
    /// Whether load balancers may send traffic to it: not while it is being deleted.
    pub eligible: bool,
}

impl NodeFacts {
    /// A node of which only the name is known.
    pub fn named(name: &str) -> NodeFacts {
        NodeFacts {
            name: name.to_owned(),
            zone: String::new(),
            addresses: Vec::new(),
            pod_networks: Vec::new(),
            eligible: true,
        }
    }
}

impl Default for NodeFacts {
    fn default() -> NodeFacts {
        NodeFacts::named("")
    }
}

/// A transport protocol that Services have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl Protocol {
    /// Reads the API's word; nothing stated means TCP, and a word that isn't known means nothing.
    pub fn parse(word: Option<&str>) -> Option<Protocol> {
        match word {
            None | Some("TCP" | "") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }
}

/// ClientIP affinity: how long after a client's last connection it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Affinity {
    /// 1 to 86,400.
    pub seconds: u32,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFacts {
    /// Empty if it is the only one.
    pub name: Box<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// Where the Service listens.
    pub port: u16,
    /// The port on the nodes' own addresses.
    pub node_port: Option<u16>,
}

/// A Service that this node serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// One a family; none for what isn't served: headless, or by external name.
    pub cluster_ips: Box<[IpAddr]>,
    /// Its ports; those of unknown protocols are left out.
    pub ports: Box<[PortFacts]>,
    /// `externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// The load balancer's addresses whose packets come here unchanged.
    pub balanced_ips: Box<[IpAddr]>,
    /// Who may use those; all if empty.
    pub source_ranges: Box<[IpNet]>,
    /// Whether a client stays with its endpoint.
    pub affinity: Option<Affinity>,
    /// Traffic from within stays on the node.
    pub internal_local: bool,
    /// Traffic from outside stays on the node.
    pub external_local: bool,
    /// Where a load balancer asks whether this node has endpoints.
    pub health_check_port: Option<u16>,
}

/// An endpoint's state, place and preferences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointFacts {
    /// Its address.
    pub address: IpAddr,
    /// May get traffic.
    pub ready: bool,
    /// Would answer.
    pub serving: bool,
    /// Is going.
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
    /// Who prefers it, if it says so.
    pub hints: Option<Arc<Hints>>,
}

/// Who prefers an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hints {
    /// Zones.
    pub zones: Box<[Box<str>]>,
    /// Nodes.
    pub nodes: Box<[Box<str>]>,
}

/// A slice's endpoints and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceFacts {
    /// IPv6, or IPv4.
    pub ipv6: bool,
    /// The endpoints.
    pub endpoints: Box<[EndpointFacts]>,
    /// The Service ports' names, with protocol and number.
    pub ports: Box<[(Box<str>, Protocol, u16)]>,
    /// When what its endpoints follow from changed, by the word of who wrote it; not kept.
    pub triggered: Option<SystemTime>,
}

/// The label that says whose slice it is.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

fn is_local(policy: &Option<String>) -> bool {
    policy.as_deref() == Some("Local")
}

fn addresses(texts: &[String]) -> Box<[IpAddr]> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

impl ServiceFacts {
    /// What a Service says.
    pub fn of(service: &Service) -> ServiceFacts {
        let spec = &service.spec;
        if spec.kind == "ExternalName" || spec.cluster_ip.is_empty() || spec.cluster_ip == "None" {
            return ServiceFacts::default();
        }
        // Objects of old have `clusterIP` alone.
        let first = std::slice::from_ref(&spec.cluster_ip);
        let cluster_ips = if spec.cluster_ips.is_empty() {
            first
        } else {
            &spec.cluster_ips
        };
        let balanced = spec.kind == "LoadBalancer";
        let ingress = service.status.load_balancer.ingress.iter();
        let unchanged =
            ingress.filter(|ingress| balanced && ingress.ip_mode.as_deref() != Some("Proxy"));
        let ranges = spec.load_balancer_source_ranges.iter();
        let external_local = is_local(&spec.external_traffic_policy);
        let has_check = balanced && external_local && spec.health_check_node_port != 0;
        ServiceFacts {
            cluster_ips: addresses(cluster_ips),
            ports: spec.ports.iter().filter_map(PortFacts::of).collect(),
            external_ips: addresses(&spec.external_ips),
            balanced_ips: unchanged
                .filter_map(|ingress| ingress.ip.parse().ok())
                .collect(),
            source_ranges: ranges.filter_map(|text| text.trim().parse().ok()).collect(),
            affinity: affinity(spec),
            internal_local: is_local(&spec.internal_traffic_policy),
            external_local,
            health_check_port: has_check.then_some(spec.health_check_node_port),
        }
    }
}

impl PortFacts {
    fn of(port: &object::Port) -> Option<PortFacts> {
        Some(PortFacts {
            name: port.name.as_str().into(),
            protocol: Protocol::parse(port.protocol.as_deref())?,
            port: port.port,
            node_port: (port.node_port != 0).then_some(port.node_port),
        })
    }
}

/// Upstream's default is three hours.
fn affinity(spec: &object::ServiceSpec) -> Option<Affinity> {
    const DEFAULT_SECONDS: u32 = 10_800;
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let seconds = config
        .and_then(|config| config.timeout_seconds)
        .unwrap_or(DEFAULT_SECONDS);
    Some(Affinity {
        seconds: seconds.clamp(1, 86_400),
    })
}

impl SliceFacts {
    /// What a slice says to the node `node`; `None` for one whose addresses are names.
    pub fn of(slice: &EndpointSlice, node: &str) -> Option<SliceFacts> {
        let ipv6 = match slice.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            _ => return None,
        };
        let ports = slice.ports.iter().filter_map(|port| {
            let name = port.name.as_deref().unwrap_or_default();
            Some((
                name.into(),
                Protocol::parse(port.protocol.as_deref())?,
                port.port?,
            ))
        });
        let endpoints = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| EndpointFacts::of(endpoint, node));
        Some(SliceFacts {
            ipv6,
            endpoints: endpoints.collect(),
            ports: ports.collect(),
            triggered: slice.metadata.annotations.triggered(),
        })
    }

    /// The slice's own name, and whose it is.
    pub fn names(slice: &EndpointSlice) -> (SliceName, Option<ServiceName>) {
        let metadata = &slice.metadata;
        let owner = metadata
            .labels
            .get(SERVICE_NAME_LABEL)
            .filter(|name| !name.is_empty());
        let name = SliceName::new(&metadata.namespace, &metadata.name);
        (
            name,
            owner.map(|owner| ServiceName::new(&metadata.namespace, owner)),
        )
    }
}

impl EndpointFacts {
    fn of(endpoint: &object::Endpoint, node: &str) -> Option<EndpointFacts> {
        let ready = endpoint.conditions.ready.unwrap_or(true);
        let names = |list: &[object::Named]| {
            list.iter()
                .map(|named| named.name.as_str().into())
                .collect()
        };
        let hints = endpoint.hints.as_ref().map(|hints| Hints {
            zones: names(&hints.for_zones),
            nodes: names(&hints.for_nodes),
        });
        Some(EndpointFacts {
            address: endpoint.addresses.first()?.parse().ok()?,
            ready,
            serving: endpoint.conditions.serving.unwrap_or(ready),
            terminating: endpoint.conditions.terminating.unwrap_or(false),
            local: endpoint.node_name.as_deref() == Some(node),
            hints: hints
                .filter(|hints| *hints != Hints::default())
                .map(Arc::new),
        })
    }
}
