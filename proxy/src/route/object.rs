//! What routes are made of: the Node objects.

use super::{Change, Kind};
use crate::service::object::{self, Metadata};
use crate::source::Followed;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;

/// A Node, followed for its pods' addresses and its own.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Node(object::Node);

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
    fn of(node: &object::Node) -> NodeFacts {
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
        &self.0.metadata
    }

    fn changed(&self, _node: &str) -> Change {
        Change::Node(self.0.metadata.name.clone(), Some(NodeFacts::of(&self.0)))
    }

    fn gone(&self) -> Change {
        Change::Node(self.0.metadata.name.clone(), None)
    }
}
