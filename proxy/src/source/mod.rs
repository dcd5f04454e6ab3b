//! What the API says: Services, EndpointSlices and this Node, listed and then watched, as changes for the tracker.
//!
//! A watch resumes from the version that it saw last; when the API has forgotten that version (410), the objects are
//! listed again, and what the list lacks is gone.

mod watch;

pub use watch::{follow, list};

use crate::service::object::{EndpointSlice, Metadata, Node, Service};
use crate::service::{Change, NodeFacts, ServiceName};
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
pub enum Update {
    /// All objects of the kind; others are gone.
    List(Kind, Vec<Change>),
    /// One object, and when it was read.
    Change(Change, Instant),
}

/// An object that can be followed.
pub trait Followed: DeserializeOwned + Clone + Send + 'static {
    /// Its kind.
    const KIND: Kind;
    /// Its metadata.
    fn metadata(&self) -> &Metadata;
    /// It was added or changed.
    fn changed(self) -> Change;
    /// It was deleted.
    fn gone(self) -> Change;
}

impl Followed for Service {
    const KIND: Kind = Kind::Services;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(self) -> Change {
        Change::Service(Box::new(self))
    }

    fn gone(self) -> Change {
        Change::ServiceGone(ServiceName::new(
            &self.metadata.namespace,
            &self.metadata.name,
        ))
    }
}

impl Followed for EndpointSlice {
    const KIND: Kind = Kind::Slices;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(self) -> Change {
        Change::Slice(Box::new(self))
    }

    fn gone(self) -> Change {
        Change::SliceGone(self.metadata.namespace, self.metadata.name)
    }
}

impl Followed for Node {
    const KIND: Kind = Kind::Node;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(self) -> Change {
        const ZONE: &str = "topology.kubernetes.io/zone";
        let mut addresses: Vec<(bool, std::net::IpAddr)> = self
            .status
            .addresses
            .iter()
            .filter(|address| matches!(address.kind.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|address| {
                Some((address.kind != "InternalIP", address.address.parse().ok()?))
            })
            .collect();
        addresses.sort_by_key(|(external, _)| *external);
        Change::Node(NodeFacts {
            zone: self.metadata.labels.get(ZONE).cloned().unwrap_or_default(),
            name: self.metadata.name,
            addresses: addresses.into_iter().map(|(_, address)| address).collect(),
        })
    }

    /// The proxy goes on with what it knew.
    fn gone(self) -> Change {
        self.changed()
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
