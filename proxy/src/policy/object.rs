//! The parts of NetworkPolicy, Pod and Namespace that policies are made of; all other fields are skipped while parsing.

use crate::service::object::{Metadata, null_is_default};
use serde::Deserialize;
use serde_json::Value;

/// A NetworkPolicy (networking.k8s.io/v1).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    /// Who it is.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// What it says.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: NetworkPolicySpec,
}

/// A NetworkPolicy's spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    /// Which pods of its namespace it isolates; absent: all.
    pub pod_selector: Value,
    /// `Ingress`, `Egress` or both.
    #[serde(deserialize_with = "null_is_default")]
    pub policy_types: Vec<String>,
    /// What may come in.
    #[serde(deserialize_with = "null_is_default")]
    pub ingress: Vec<IngressRule>,
    /// What may go out.
    #[serde(deserialize_with = "null_is_default")]
    pub egress: Vec<EgressRule>,
}

/// One thing that may come in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// From whom; from everybody if empty.
    #[serde(deserialize_with = "null_is_default")]
    pub from: Vec<Peer>,
    /// To which of the pod's ports; to all if empty.
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<PolicyPort>,
}

/// One thing that may go out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    /// To whom; to everybody if empty.
    #[serde(deserialize_with = "null_is_default")]
    pub to: Vec<Peer>,
    /// To which of their ports; to all if empty.
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<PolicyPort>,
}

/// Pods, or a network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    /// By their labels.
    pub pod_selector: Option<Value>,
    /// By their namespaces' labels; of the policy's namespace if absent.
    pub namespace_selector: Option<Value>,
    /// By address.
    pub ip_block: Option<IpBlock>,
}

/// A network less some of its parts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    /// The network.
    #[serde(deserialize_with = "null_is_default")]
    pub cidr: String,
    /// The parts.
    #[serde(deserialize_with = "null_is_default")]
    pub except: Vec<String>,
}

/// Ports of a rule.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPort {
    /// TCP if absent.
    pub protocol: Option<String>,
    /// A number or the name of a container's port; absent: all ports.
    pub port: Option<Value>,
    /// The last port of a range.
    pub end_port: Option<u16>,
}

/// A Pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Who it is.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// What runs in it.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: PodSpec,
    /// Where it is reached.
    #[serde(deserialize_with = "null_is_default")]
    pub status: PodStatus,
}

/// A Pod's spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Its node.
    #[serde(deserialize_with = "null_is_default")]
    pub node_name: String,
    /// It has the node's addresses.
    #[serde(deserialize_with = "null_is_default")]
    pub host_network: bool,
    /// Its containers.
    #[serde(deserialize_with = "null_is_default")]
    pub containers: Vec<Container>,
    /// Its init containers, sidecars among them.
    #[serde(deserialize_with = "null_is_default")]
    pub init_containers: Vec<Container>,
}

/// A container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Its ports.
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<ContainerPort>,
    /// `Always` tells a sidecar among init containers.
    pub restart_policy: Option<String>,
}

/// A container's port.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Its name, if it has one.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// Its number.
    #[serde(deserialize_with = "null_is_default")]
    pub container_port: u16,
    /// TCP if absent.
    pub protocol: Option<String>,
}

/// A Pod's status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed.
    #[serde(deserialize_with = "null_is_default")]
    pub phase: String,
    /// Its first address.
    #[serde(rename = "podIP", deserialize_with = "null_is_default")]
    pub pod_ip: String,
    /// One a family.
    #[serde(rename = "podIPs", deserialize_with = "null_is_default")]
    pub pod_ips: Vec<PodIp>,
}

/// An address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    #[serde(deserialize_with = "null_is_default")]
    pub ip: String,
}

/// A Namespace.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Who it is.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
}
