//! The parts of Node that routes are made of.

use super::{Change, Kind};
use crate::service::object::{Metadata, null_is_default};
use crate::source::Followed;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;

/// A Node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Who it is.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// Its pods' addresses.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: NodeSpec,
    /// Its own addresses.
    #[serde(deserialize_with = "null_is_default")]
    pub status: NodeStatus,
}

/// A Node's spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// The first of `pod_cidrs`.
    #[serde(rename = "podCIDR", deserialize_with = "null_is_default")]
    pub pod_cidr: String,
    /// One a family.
    #[serde(rename = "podCIDRs", deserialize_with = "null_is_default")]
    pub pod_cidrs: Vec<String>,
}

/// A Node's status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its addresses.
    #[serde(deserialize_with = "null_is_default")]
    pub addresses: Vec<NodeAddress>,
}

/// An address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// InternalIP, ExternalIP, Hostname.
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// The address.
    #[serde(deserialize_with = "null_is_default")]
    pub address: String,
}

/// What a Node says about the way to its pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its InternalIPs.
    pub addresses: Vec<IpAddr>,
    /// Its pods' addresses.
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeFacts {
    fn of(node: &Node) -> NodeFacts {
        let internal = node.status.addresses.iter();
        let internal = internal.filter(|address| address.kind == "InternalIP");
        let cidrs = node.spec.pod_cidrs.iter().chain([&node.spec.pod_cidr]);
        let mut pod_cidrs: Vec<IpNet> = cidrs.filter_map(|text| text.parse().ok()).collect();
        pod_cidrs.sort_unstable();
        pod_cidrs.dedup();
        NodeFacts {
            name: node.metadata.name.clone(),
            addresses: internal
                .filter_map(|address| address.address.parse().ok())
                .collect(),
            pod_cidrs,
        }
    }
}

impl Followed for Node {
    type Kind = Kind;
    type Change = Change;
    const KIND: Kind = Kind::Nodes;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(&self, _node: &str) -> Change {
        Change::Node(self.metadata.name.clone(), Some(NodeFacts::of(self)))
    }

    fn gone(&self) -> Change {
        Change::Node(self.metadata.name.clone(), None)
    }
}
