//! What the API says: Services, EndpointSlices and this Node, listed and then watched, as changes for the tracker.
//!
//! A watch resumes from the version that it saw last; when the API has forgotten that version (410), the objects are
//! listed again, and what the list lacks is gone.

mod watch;

pub use watch::{follow, list};

use crate::service::object::{EndpointSlice, Metadata, Node, Service};
use crate::service::{Change, NodeFacts, ServiceFacts, ServiceName, SliceFacts, SliceName};
use serde::de::DeserializeOwned;
use std::time::Instant;

/// A kind of object that the proxy follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// This Node.
    Node,
}

/// News of one kind.
#[derive(Debug, Clone)]
pub enum Update<K = Kind, C = Change> {
    /// All objects of the kind; others are gone.
    List(K, Vec<C>),
    /// One object, and when it was read.
    Change(C, Instant),
}

/// An object that can be followed.
pub trait Followed: DeserializeOwned + Clone + Send + 'static {
    /// The kinds that its reader follows.
    type Kind: std::fmt::Debug + Send;
    /// What its reader is told.
    type Change: Send;
    /// Its kind.
    const KIND: Self::Kind;
    /// Its metadata.
    fn metadata(&self) -> &Metadata;
    /// It was added or changed; `node` is this node's name.
    fn changed(&self, node: &str) -> Self::Change;
    /// It was deleted.
    fn gone(&self) -> Self::Change;
}

impl Followed for Service {
    type Kind = Kind;
    type Change = Change;
    const KIND: Kind = Kind::Services;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(&self, _node: &str) -> Change {
        let name = ServiceName::new(&self.metadata.namespace, &self.metadata.name);
        Change::Service(name, Box::new(ServiceFacts::of(self)))
    }

    fn gone(&self) -> Change {
        Change::ServiceGone(ServiceName::new(
            &self.metadata.namespace,
            &self.metadata.name,
        ))
    }
}

impl Followed for EndpointSlice {
    type Kind = Kind;
    type Change = Change;
    const KIND: Kind = Kind::Slices;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(&self, node: &str) -> Change {
        match (SliceFacts::names(self), SliceFacts::of(self, node)) {
            ((name, Some(owner)), Some(facts)) => Change::Slice(name, owner, Box::new(facts)),
            ((name, _), _) => Change::SliceGone(name),
        }
    }

    fn gone(&self) -> Change {
        Change::SliceGone(SliceName::new(
            &self.metadata.namespace,
            &self.metadata.name,
        ))
    }
}

impl Followed for Node {
    type Kind = Kind;
    type Change = Change;
    const KIND: Kind = Kind::Node;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(&self, _node: &str) -> Change {
        /// The cluster autoscaler is about to delete the node.
        const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";
        const ZONE: &str = "topology.kubernetes.io/zone";
        let addresses = || self.status.addresses.iter();
        let of_kind = |kind| {
            let same = addresses().filter(move |address| address.kind == kind);
            same.filter_map(|address| address.address.parse().ok())
        };
        Change::Node(NodeFacts {
            zone: self.metadata.labels.get(ZONE).cloned().unwrap_or_default(),
            name: self.metadata.name.clone(),
            addresses: of_kind("InternalIP").chain(of_kind("ExternalIP")).collect(),
            pod_networks: self
                .spec
                .pod_cidrs
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            eligible: self.metadata.deletion_timestamp.is_none()
                && !self.spec.taints.iter().any(|taint| taint.key == LEAVING),
        })
    }

    /// The proxy goes on with what it knew.
    fn gone(&self) -> Change {
        self.changed("")
    }
}

/// The Services that are the proxy's to serve.
const SERVED: &str = "labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name";

/// Where the Services are, without those that another proxy serves.
pub fn services() -> String {
    format!("/api/v1/services?{SERVED}")
}

/// Where the EndpointSlices are.
pub fn slices() -> String {
    format!("/apis/discovery.k8s.io/v1/endpointslices?{SERVED}")
}

/// Where the Node is.
pub fn node(name: &str) -> String {
    format!("/api/v1/nodes?fieldSelector=metadata.name%3D{name}")
}
