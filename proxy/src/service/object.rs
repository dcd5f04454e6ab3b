//! The parts of Service, EndpointSlice and Node that the proxy reads; all other fields are skipped while parsing.

use serde::Deserialize;
use std::collections::BTreeMap;

/// Metadata that the proxy reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Its name.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// Its namespace; empty for a Node.
    #[serde(deserialize_with = "null_is_default")]
    pub namespace: String,
    /// Its version.
    #[serde(deserialize_with = "null_is_default")]
    pub resource_version: String,
    /// Its labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: Annotations,
    /// Set while it is being deleted.
    pub deletion_timestamp: Option<String>,
}

/// The annotations that the proxy reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// When what an EndpointSlice follows from changed, in the form of RFC 3339.
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub last_change_trigger_time: Option<String>,
}

impl Annotations {
    /// When that was; a text of another form says nothing.
    pub fn triggered(&self) -> Option<std::time::SystemTime> {
        let text = self.last_change_trigger_time.as_deref()?;
        text.parse::<jiff::Timestamp>().ok().map(Into::into)
    }
}

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Who it is.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// What is wanted.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: ServiceSpec,
    /// What a cloud gave it.
    #[serde(deserialize_with = "null_is_default")]
    pub status: ServiceStatus,
}

/// A Service's spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// ClusterIP, NodePort, LoadBalancer or ExternalName.
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// The first of `cluster_ips`, or `None`.
    #[serde(rename = "clusterIP", deserialize_with = "null_is_default")]
    pub cluster_ip: String,
    /// One a family.
    #[serde(rename = "clusterIPs", deserialize_with = "null_is_default")]
    pub cluster_ips: Vec<String>,
    /// IPv4, IPv6, or both.
    #[serde(deserialize_with = "null_is_default")]
    pub ip_families: Vec<String>,
    /// Its ports.
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<Port>,
    /// Addresses that reach this node by means of their own.
    #[serde(rename = "externalIPs", deserialize_with = "null_is_default")]
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
    #[serde(deserialize_with = "null_is_default")]
    pub health_check_node_port: u16,
    /// Who may use the load balancer's address.
    #[serde(deserialize_with = "null_is_default")]
    pub load_balancer_source_ranges: Vec<String>,
}

/// A Service's port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Unique in the Service, empty if it is the only one.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// TCP if not given.
    pub protocol: Option<String>,
    /// Where the Service listens.
    #[serde(deserialize_with = "null_is_default")]
    pub port: u16,
    /// The same on every node; 0 if there is none.
    #[serde(deserialize_with = "null_is_default")]
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
    #[serde(deserialize_with = "null_is_default")]
    pub load_balancer: LoadBalancerStatus,
}

/// The load balancer's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    #[serde(deserialize_with = "null_is_default")]
    pub ingress: Vec<Ingress>,
}

/// One address of a load balancer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// The address; empty if it is known by name only.
    #[serde(deserialize_with = "null_is_default")]
    pub ip: String,
    /// VIP (packets keep the address) or Proxy (they come to a node's own).
    pub ip_mode: Option<String>,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Who it is.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// IPv4, IPv6 or FQDN.
    #[serde(deserialize_with = "null_is_default")]
    pub address_type: String,
    /// The endpoints.
    #[serde(deserialize_with = "null_is_default")]
    pub endpoints: Vec<Endpoint>,
    /// The ports that all of them have.
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<EndpointPort>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Of which the first counts.
    #[serde(deserialize_with = "null_is_default")]
    pub addresses: Vec<String>,
    /// Its state.
    #[serde(deserialize_with = "null_is_default")]
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
    #[serde(deserialize_with = "null_is_default")]
    pub for_zones: Vec<Named>,
    /// Nodes.
    #[serde(deserialize_with = "null_is_default")]
    pub for_nodes: Vec<Named>,
}

/// A zone or a node in a hint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Its name.
    #[serde(deserialize_with = "null_is_default")]
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
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// What is wanted.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: NodeSpec,
    /// What is seen.
    #[serde(deserialize_with = "null_is_default")]
    pub status: NodeStatus,
}

/// A Node's spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// The first of `pod_cidrs`.
    #[serde(rename = "podCIDR", deserialize_with = "null_is_default")]
    pub pod_cidr: String,
    /// The pods' networks, one a family.
    #[serde(rename = "podCIDRs", deserialize_with = "null_is_default")]
    pub pod_cidrs: Vec<String>,
    /// Why pods keep off.
    #[serde(deserialize_with = "null_is_default")]
    pub taints: Vec<Taint>,
}

/// A Node's taint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its key.
    #[serde(deserialize_with = "null_is_default")]
    pub key: String,
}

/// A Node's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its addresses.
    #[serde(deserialize_with = "null_is_default")]
    pub addresses: Vec<NodeAddress>,
}

/// A Node's address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// InternalIP, ExternalIP, Hostname, …
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// The address.
    #[serde(deserialize_with = "null_is_default")]
    pub address: String,
}

/// Go writes what is empty as nothing or as null.
pub(crate) fn null_is_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_taken_for_nothing() {
        let service = r#"{"metadata":{"name":"a","labels":null},"spec":{"ports":null,"clusterIPs":null,
            "externalIPs":null},"status":{"loadBalancer":null}}"#;
        assert!(serde_json::from_str::<Service>(service).is_ok());
        let slice = r#"{"metadata":{"name":"a"},"endpoints":[{"addresses":null,"conditions":null,
            "hints":{"forZones":null}}],"ports":null}"#;
        assert!(serde_json::from_str::<EndpointSlice>(slice).is_ok());
        let node = r#"{"metadata":{"name":"a"},"spec":{"taints":null,"podCIDRs":null},"status":{"addresses":null}}"#;
        assert!(serde_json::from_str::<Node>(node).is_ok());
    }
}
