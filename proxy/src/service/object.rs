//! The parts of Service, EndpointSlice and Node that the proxy reads; all other fields are skipped while parsing.

use serde::Deserialize;
use std::collections::BTreeMap;

/// Metadata that the proxy reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace; empty for a Node.
    pub namespace: String,
    /// Its version.
    pub resource_version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Set while it is being deleted.
    pub deletion_timestamp: Option<String>,
}

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Who it is.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: ServiceSpec,
    /// What a cloud gave it.
    pub status: ServiceStatus,
}

/// A Service's spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// ClusterIP, NodePort, LoadBalancer or ExternalName.
    #[serde(rename = "type")]
    pub kind: String,
    /// The first of `cluster_ips`, or `None`.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// One a family.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// IPv4, IPv6, or both.
    pub ip_families: Vec<String>,
    /// Its ports.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<Port>,
    /// Addresses that reach this node by means of their own.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Cluster or Local, for traffic from within.
    pub internal_traffic_policy: Option<String>,
    /// Cluster or Local, for traffic from outside.
    pub external_traffic_policy: Option<String>,
    /// None or ClientIP.
    pub session_affinity: Option<String>,
    /// For how long.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Where a load balancer asks whether this node has endpoints.
    pub health_check_node_port: u16,
    /// Who may use the load balancer's address.
    pub load_balancer_source_ranges: Vec<String>,
}

/// A Service's port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Unique in the Service, empty if it is the only one.
    pub name: String,
    /// TCP if not given.
    pub protocol: Option<String>,
    /// Where the Service listens.
    pub port: u16,
    /// The same on every node; 0 if there is none.
    pub node_port: u16,
}

/// Session affinity's parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// For ClientIP.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// ClientIP affinity's parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// From the last connection on.
    pub timeout_seconds: Option<u32>,
}

/// A Service's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// The load balancer's.
    pub load_balancer: LoadBalancerStatus,
}

/// The load balancer's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    #[serde(deserialize_with = "null_is_empty")]
    pub ingress: Vec<Ingress>,
}

/// One address of a load balancer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// The address; empty if it is known by name only.
    pub ip: String,
    /// VIP (packets keep the address) or Proxy (they come to a node's own).
    pub ip_mode: Option<String>,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Who it is.
    pub metadata: Metadata,
    /// IPv4, IPv6 or FQDN.
    pub address_type: String,
    /// The endpoints.
    #[serde(deserialize_with = "null_is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// The ports that all of them have.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<EndpointPort>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Of which the first counts.
    pub addresses: Vec<String>,
    /// Its state.
    pub conditions: Conditions,
    /// Which node and zone prefer it.
    pub hints: Option<Hints>,
    /// Where it runs.
    pub node_name: Option<String>,
}

/// An endpoint's state; what isn't stated is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// May get traffic; true if not stated.
    pub ready: Option<bool>,
    /// Passes its probes, terminating or not.
    pub serving: Option<bool>,
    /// Is being deleted.
    pub terminating: Option<bool>,
}

/// Who prefers an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// Zones.
    pub for_zones: Vec<Named>,
    /// Nodes.
    pub for_nodes: Vec<Named>,
}

/// A zone or a node in a hint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Its name.
    pub name: String,
}

/// A slice's port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// The Service port's name.
    pub name: Option<String>,
    /// TCP if not given.
    pub protocol: Option<String>,
    /// None means all ports, which the proxy can't use.
    pub port: Option<u16>,
}

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Who it is.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: NodeSpec,
    /// What is seen.
    pub status: NodeStatus,
}

/// A Node's spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// The pods' networks.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// Why pods keep off.
    pub taints: Vec<Taint>,
}

/// A Node's taint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its key.
    pub key: String,
}

/// A Node's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its addresses.
    pub addresses: Vec<NodeAddress>,
}

/// A Node's address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// InternalIP, ExternalIP, Hostname, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

fn null_is_empty<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}
