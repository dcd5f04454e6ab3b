//! One Service with its slices, as this node has to serve it.

use super::ServiceName;
use super::endpoints::{Candidate, choose};
use super::facts::{Affinity, NodeFacts, PortFacts, Protocol, ServiceFacts, SliceFacts};
use ipnet::IpNet;
use linux::nftables::Family;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

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
    /// Those of `external` that are the load balancer's alone.
    pub balanced: Vec<Frontend>,
    /// Who may use those; all if empty.
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
    /// Whether the endpoints of `cluster` all terminate, and are used for want of better.
    pub cluster_draining: bool,
    /// The same of `local`.
    pub local_draining: bool,
}

impl ServicePort {
    /// Those of its frontends that only `source_ranges` may use. As upstream, ranges of the other family alone leave
    /// this one open.
    pub fn restricted(&self) -> &[Frontend] {
        if self.source_ranges.is_empty() {
            return &[];
        }
        &self.balanced
    }

    /// Whether others than pods and nodes reach it.
    pub fn is_external(&self) -> bool {
        !self.external.is_empty() || self.node_port.is_some()
    }

    /// Whether any frontend leads to endpoints on other nodes, too.
    pub fn uses_cluster(&self) -> bool {
        !self.internal_local || self.is_external()
    }

    /// Of these endpoints for traffic that may go anywhere and that stays, those on this node that get it, but for those
    /// that get it only because all of their list terminate: the rules won't take it from them. Each list is judged
    /// alone, for the last endpoint on this node under a Local policy keeps that traffic, whatever other nodes have.
    pub fn local_addresses(
        &self,
        cluster: impl Iterator<Item = SocketAddr>,
        local: impl Iterator<Item = SocketAddr>,
    ) -> BTreeSet<IpAddr> {
        if self.on_node.is_empty() {
            return BTreeSet::new();
        }
        let cluster = cluster.filter(|_| !self.cluster_draining && self.uses_cluster());
        let local = local.filter(|_| !self.local_draining);
        let used = cluster.chain(local).map(|address| address.ip());
        used.filter(|address| self.on_node.binary_search(address).is_ok())
            .collect()
    }

    /// Whether traffic that stays on the node finds none of its endpoints here, though there is one elsewhere: 1 or 0
    /// for that of internalTrafficPolicy, and of externalTrafficPolicy.
    pub fn without_local(&self, has_local: bool) -> [u32; 2] {
        let none = self.any && !has_local;
        [self.internal_local, self.external_local].map(|local| u32::from(none && local))
    }
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

/// Resolves a Service. One that isn't served (headless, by external name) has no ports here.
pub fn resolve<'a>(
    name: &ServiceName,
    service: &ServiceFacts,
    slices: impl Iterator<Item = &'a SliceFacts> + Clone,
    node: &NodeFacts,
) -> ResolvedService {
    let mut resolved = ResolvedService::default();
    for cluster_ip in &service.cluster_ips {
        for port in &service.ports {
            let port = resolve_port(name, service, port, *cluster_ip, slices.clone(), node);
            resolved.ports.push(port);
        }
    }
    if let Some(port) = service.health_check_port {
        resolved.health_check_port = Some(port);
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

fn resolve_port<'a>(
    name: &ServiceName,
    service: &ServiceFacts,
    port: &PortFacts,
    cluster_ip: IpAddr,
    slices: impl Iterator<Item = &'a SliceFacts>,
    node: &NodeFacts,
) -> ServicePort {
    let protocol = port.protocol;
    let family = Family::of(cluster_ip);
    let frontend = |address| Frontend {
        address,
        protocol,
        port: port.port,
    };
    let of_family = |addresses: &[IpAddr]| -> BTreeSet<Frontend> {
        let same = addresses
            .iter()
            .copied()
            .filter(|address| Family::of(*address) == family);
        same.map(frontend).collect()
    };
    let balanced = of_family(&service.balanced_ips);
    let external = of_family(&service.external_ips);
    let source_ranges = source_ranges(service, family);
    let candidates = candidates(slices, port, family);
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
    let needs_local = service.internal_local || service.external_local;
    ServicePort {
        name: name.into(),
        family,
        protocol,
        cluster_ip: frontend(cluster_ip),
        external: external.union(&balanced).copied().collect(),
        balanced: balanced.difference(&external).copied().collect(),
        source_ranges,
        node_port: port.node_port,
        affinity: service.affinity,
        internal_local: service.internal_local,
        external_local: service.external_local,
        cluster: chosen.cluster,
        local: if needs_local {
            chosen.local
        } else {
            Vec::new()
        },
        on_node: on_node.into_iter().collect(),
        any: chosen.any,
        cluster_draining: chosen.cluster_draining,
        local_draining: chosen.local_draining,
    }
}

fn source_ranges(service: &ServiceFacts, family: Family) -> Vec<IpNet> {
    let same = service
        .source_ranges
        .iter()
        .copied()
        .filter(|range| Family::of(range.addr()) == family);
    let mut ranges = IpNet::aggregate(&same.collect());
    ranges.sort_unstable();
    ranges
}

/// The endpoints that the slices have for a port. An endpoint may stand in two slices while it moves between them: the
/// better word about it holds.
fn candidates<'a>(
    slices: impl Iterator<Item = &'a SliceFacts>,
    port: &PortFacts,
    family: Family,
) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for slice in slices.filter(|slice| slice.ipv6 == (family == Family::Ip6)) {
        let same = |(name, protocol, _): &&(Box<str>, Protocol, u16)| {
            *name == port.name && *protocol == port.protocol
        };
        let Some((_, _, number)) = slice.ports.iter().find(same) else {
            continue;
        };
        found.extend(slice.endpoints.iter().map(|endpoint| Candidate {
            address: SocketAddr::new(endpoint.address, *number),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.local,
            hints: endpoint.hints.clone(),
        }));
    }
    found.sort_by_key(|c: &Candidate| (c.address, !c.ready, !c.serving, c.terminating));
    found.dedup_by_key(|candidate| candidate.address);
    found
}

#[cfg(test)]
mod tests;
