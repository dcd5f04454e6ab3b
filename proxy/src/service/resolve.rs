//! One Service with its slices, as this node has to serve it.

use super::ServiceName;
use super::endpoints::{Candidate, choose};
use super::object::{EndpointSlice, Service};
use ipnet::IpNet;
use linux::nftables::Family;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What the proxy knows about its own node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The Node's name.
    pub name: String,
    /// Its `topology.kubernetes.io/zone`, or empty.
    pub zone: String,
    /// Its addresses, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
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

/// An address, protocol and port at which a Service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// ClientIP affinity: how long after a client's last connection it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Affinity {
    /// 1 to 86,400.
    pub seconds: u32,
}

/// One port of a Service in one address family, as this node serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name:port`, or without the port's name if it has none.
    pub name: Arc<str>,
    /// The family.
    pub family: Family,
    /// The protocol.
    pub protocol: Protocol,
    /// Where pods and nodes reach it.
    pub cluster_ip: Frontend,
    /// Where others reach it: external addresses and the load balancer's.
    pub external: Vec<Frontend>,
    /// Those of `external` that only some may use.
    pub restricted: Vec<Frontend>,
    /// Who may use them.
    pub source_ranges: Vec<IpNet>,
    /// The port on the nodes' own addresses.
    pub node_port: Option<u16>,
    /// Whether a client stays with its endpoint.
    pub affinity: Option<Affinity>,
    /// Traffic from within stays on the node.
    pub internal_local: bool,
    /// Traffic from outside stays on the node.
    pub external_local: bool,
    /// Endpoints for traffic that may go anywhere.
    pub cluster: Vec<SocketAddr>,
    /// Endpoints on this node; empty unless a policy is Local.
    pub local: Vec<SocketAddr>,
    /// Endpoints that run on this node: they may reach themselves through the Service.
    pub on_node: Vec<IpAddr>,
    /// Whether any endpoint exists: without one, packets are refused.
    pub any: bool,
}

/// What this node does for one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedService {
    /// Its ports, by family.
    pub ports: Vec<ServicePort>,
    /// The port of its health check, if it has one.
    pub health_check_port: Option<u16>,
    /// Its endpoints on this node, for the health check.
    pub local_endpoints: usize,
}

/// Resolves a Service. A headless one, one by external name, and one whose protocol isn't known has no ports here.
pub fn resolve<'a>(
    name: &ServiceName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeFacts,
) -> ResolvedService {
    let spec = &service.spec;
    if spec.kind == "ExternalName" || spec.cluster_ip.is_empty() || spec.cluster_ip == "None" {
        return ResolvedService::default();
    }
    let mut resolved = ResolvedService::default();
    for cluster_ip in cluster_ips(service) {
        for port in &spec.ports {
            resolved.ports.extend(resolve_port(
                name,
                service,
                port,
                cluster_ip,
                slices.clone(),
                node,
            ));
        }
    }
    if spec.kind == "LoadBalancer"
        && is_local(&spec.external_traffic_policy)
        && spec.health_check_node_port != 0
    {
        resolved.health_check_port = Some(spec.health_check_node_port);
        let local: BTreeSet<IpAddr> = resolved
            .ports
            .iter()
            .flat_map(|p| &p.local)
            .map(SocketAddr::ip)
            .collect();
        resolved.local_endpoints = local.len();
    }
    resolved
}

/// One address a family; objects of old have `clusterIP` alone.
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = &service.spec;
    let texts = if spec.cluster_ips.is_empty() {
        std::slice::from_ref(&spec.cluster_ip)
    } else {
        &spec.cluster_ips
    };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn is_local(policy: &Option<String>) -> bool {
    policy.as_deref() == Some("Local")
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv6() {
        Family::Ip6
    } else {
        Family::Ip
    }
}

fn resolve_port<'a>(
    name: &ServiceName,
    service: &Service,
    port: &super::object::Port,
    cluster_ip: IpAddr,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    node: &NodeFacts,
) -> Option<ServicePort> {
    let spec = &service.spec;
    let protocol = Protocol::parse(port.protocol.as_deref())?;
    let family = family_of(cluster_ip);
    let frontend = |address| Frontend {
        address,
        protocol,
        port: port.port,
    };
    let of_family = |text: &String| {
        text.parse()
            .ok()
            .filter(|address| family_of(*address) == family)
    };
    let balanced = load_balancer_addresses(service).filter(|address| family_of(*address) == family);
    let balanced: BTreeSet<Frontend> = balanced.map(frontend).collect();
    let external: BTreeSet<Frontend> = spec
        .external_ips
        .iter()
        .filter_map(of_family)
        .map(frontend)
        .collect();
    let source_ranges = source_ranges(spec, family);
    // As upstream: ranges of the other family alone leave this one open.
    let restricted: Vec<Frontend> = if source_ranges.is_empty() {
        Vec::new()
    } else {
        balanced.difference(&external).copied().collect()
    };
    let external_local = is_local(&spec.external_traffic_policy);
    let internal_local = is_local(&spec.internal_traffic_policy);
    let candidates = candidates(slices, port, protocol, family, node);
    let chosen = choose(&candidates, node);
    let usable = |candidate: &&Candidate| candidate.local && (candidate.ready || candidate.serving);
    let on_node: BTreeSet<IpAddr> = candidates
        .iter()
        .filter(usable)
        .map(|c| c.address.ip())
        .collect();
    let name = if port.name.is_empty() {
        name.to_string()
    } else {
        format!("{name}:{}", port.name)
    };
    Some(ServicePort {
        name: name.into(),
        family,
        protocol,
        cluster_ip: frontend(cluster_ip),
        external: external.union(&balanced).copied().collect(),
        restricted,
        source_ranges,
        node_port: (port.node_port != 0).then_some(port.node_port),
        affinity: affinity(spec),
        internal_local,
        external_local,
        cluster: chosen.cluster,
        local: if internal_local || external_local {
            chosen.local
        } else {
            Vec::new()
        },
        on_node: on_node.into_iter().collect(),
        any: chosen.any,
    })
}

/// The load balancer's addresses whose packets come here unchanged.
fn load_balancer_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let balanced = service.spec.kind == "LoadBalancer";
    service
        .status
        .load_balancer
        .ingress
        .iter()
        .filter(move |ingress| balanced && ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.parse().ok())
}

fn source_ranges(spec: &super::object::ServiceSpec, family: Family) -> Vec<IpNet> {
    let parsed = spec
        .load_balancer_source_ranges
        .iter()
        .filter_map(|text| text.trim().parse::<IpNet>().ok());
    let ranges: Vec<IpNet> = parsed
        .filter(|range| family_of(range.addr()) == family)
        .collect();
    let mut ranges = IpNet::aggregate(&ranges);
    ranges.sort_unstable();
    ranges
}

/// Upstream's default is three hours.
fn affinity(spec: &super::object::ServiceSpec) -> Option<Affinity> {
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

/// The endpoints that the slices have for a port. An endpoint may stand in two slices while it moves between them: the
/// better word about it holds.
fn candidates<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &super::object::Port,
    protocol: Protocol,
    family: Family,
    node: &NodeFacts,
) -> Vec<Candidate> {
    let wanted = if family == Family::Ip6 {
        "IPv6"
    } else {
        "IPv4"
    };
    let mut found: Vec<Candidate> = Vec::new();
    for slice in slices.filter(|slice| slice.address_type == wanted) {
        let port = slice.ports.iter().find(|candidate| {
            candidate.name.as_deref().unwrap_or_default() == port.name
                && Protocol::parse(candidate.protocol.as_deref()) == Some(protocol)
        });
        let Some(port) = port.and_then(|port| port.port) else {
            continue;
        };
        found.extend(
            slice
                .endpoints
                .iter()
                .filter_map(|endpoint| candidate(endpoint, port, node)),
        );
    }
    let rank = |c: &Candidate| (c.address, !c.ready, !c.serving, c.terminating);
    found.sort_by_key(rank);
    found.dedup_by_key(|candidate| candidate.address);
    found
}

fn candidate(endpoint: &super::object::Endpoint, port: u16, node: &NodeFacts) -> Option<Candidate> {
    let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let ready = endpoint.conditions.ready.unwrap_or(true);
    let names = |list: &[super::object::Named]| {
        list.iter()
            .map(|named| named.name.clone())
            .collect::<Arc<[String]>>()
    };
    Some(Candidate {
        address: SocketAddr::new(address, port),
        ready,
        serving: endpoint.conditions.serving.unwrap_or(ready),
        terminating: endpoint.conditions.terminating.unwrap_or(false),
        local: endpoint.node_name.as_deref() == Some(&node.name),
        zones: endpoint.hints.as_ref().map_or_else(
            || Arc::new([]) as Arc<[String]>,
            |hints| names(&hints.for_zones),
        ),
        nodes: endpoint.hints.as_ref().map_or_else(
            || Arc::new([]) as Arc<[String]>,
            |hints| names(&hints.for_nodes),
        ),
    })
}

#[cfg(test)]
mod tests;
