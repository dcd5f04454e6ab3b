//! Which Services a change of an object concerns, and each Service's objects.

use super::ServiceName;
use super::object::{EndpointSlice, Service};
use super::resolve::{NodeFacts, ResolvedService, resolve};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The label that says whose slice it is.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A Service was added or changed.
    Service(Box<Service>),
    /// A Service is gone.
    ServiceGone(ServiceName),
    /// A slice was added or changed.
    Slice(Box<EndpointSlice>),
    /// A slice is gone: namespace and name.
    SliceGone(String, String),
    /// The node's facts.
    Node(NodeFacts),
}

/// All objects, by Service, and the Services that changed since they were last taken.
#[derive(Debug, Default)]
pub struct Tracker {
    services: HashMap<ServiceName, Service>,
    slices: HashMap<ServiceName, BTreeMap<String, EndpointSlice>>,
    /// Whose slice it was when it was seen last: a label may change.
    owners: HashMap<(String, String), ServiceName>,
    node: NodeFacts,
    dirty: BTreeSet<ServiceName>,
}

impl Tracker {
    /// Nothing is known yet but the node.
    pub fn new(node: NodeFacts) -> Tracker {
        Tracker {
            node,
            ..Tracker::default()
        }
    }

    /// What is known about this node.
    pub fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// Takes a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(service) => {
                let name = ServiceName::new(&service.metadata.namespace, &service.metadata.name);
                // A list repeats what is known.
                if self.services.get(&name) != Some(&service) {
                    self.dirty.insert(name.clone());
                    self.services.insert(name, *service);
                }
            }
            Change::ServiceGone(name) => {
                if self.services.remove(&name).is_some() {
                    self.dirty.insert(name);
                }
            }
            Change::Slice(slice) => self.apply_slice(*slice),
            Change::SliceGone(namespace, name) => self.remove_slice((namespace, name)),
            Change::Node(node) => {
                if node != self.node {
                    self.node = node;
                    self.dirty.extend(self.services.keys().cloned());
                }
            }
        }
    }

    fn apply_slice(&mut self, slice: EndpointSlice) {
        let key = (
            slice.metadata.namespace.clone(),
            slice.metadata.name.clone(),
        );
        let owner = slice
            .metadata
            .labels
            .get(SERVICE_NAME_LABEL)
            .filter(|name| !name.is_empty());
        let owner = owner.map(|name| ServiceName::new(&slice.metadata.namespace, name));
        if self.owners.get(&key) != owner.as_ref() {
            self.remove_slice(key.clone());
        }
        let Some(owner) = owner else { return };
        let slices = self.slices.entry(owner.clone()).or_default();
        if slices.get(&key.1) == Some(&slice) {
            return;
        }
        slices.insert(key.1.clone(), slice);
        self.owners.insert(key, owner.clone());
        self.dirty.insert(owner);
    }

    fn remove_slice(&mut self, key: (String, String)) {
        let Some(owner) = self.owners.remove(&key) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&key.1);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.dirty.insert(owner);
    }

    /// The Services that changed since the last call, in order.
    pub fn take_changed(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.dirty)
    }

    /// Lets a Service be taken as changed again.
    pub fn mark_changed(&mut self, name: ServiceName) {
        self.dirty.insert(name);
    }

    /// What this node has to do for a Service; `None` if there is no such Service.
    pub fn resolve(&self, name: &ServiceName) -> Option<ResolvedService> {
        let service = self.services.get(name)?;
        let slices = self.slices.get(name).into_iter().flat_map(BTreeMap::values);
        Some(resolve(name, service, slices, &self.node))
    }

    /// How many Services and slices there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.services.len(), self.owners.len())
    }

    /// The names of all Services that are known, and of all slices (namespace, name): what a new list lacks is gone.
    pub fn known(
        &self,
    ) -> (
        impl Iterator<Item = &ServiceName>,
        impl Iterator<Item = &(String, String)>,
    ) {
        (self.services.keys(), self.owners.keys())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str) -> Change {
        let service = json!({
            "metadata": { "namespace": "default", "name": name },
            "spec": { "clusterIP": "10.96.0.7", "ports": [{ "port": 80 }] }
        });
        Change::Service(serde_json::from_value(service).expect("service"))
    }

    fn slice(name: &str, owner: &str, address: &str) -> Change {
        let slice = json!({
            "metadata": {
                "namespace": "default", "name": name, "labels": { "kubernetes.io/service-name": owner }
            },
            "addressType": "IPv4", "endpoints": [{ "addresses": [address] }], "ports": [{ "port": 8080 }]
        });
        Change::Slice(serde_json::from_value(slice).expect("slice"))
    }

    fn endpoints(tracker: &Tracker, name: &str) -> usize {
        let resolved = tracker
            .resolve(&ServiceName::new("default", name))
            .expect("the service");
        resolved.ports.iter().map(|port| port.cluster.len()).sum()
    }

    #[test]
    fn a_change_concerns_the_service_that_it_names_only() {
        let mut tracker = Tracker::default();
        tracker.apply(service("a"));
        tracker.apply(service("b"));
        tracker.take_changed();
        tracker.apply(slice("a-1", "a", "10.0.0.1"));
        assert_eq!(
            tracker.take_changed(),
            BTreeSet::from([ServiceName::new("default", "a")])
        );
        assert_eq!((endpoints(&tracker, "a"), endpoints(&tracker, "b")), (1, 0));
    }

    #[test]
    fn a_slice_that_changes_its_service_leaves_the_old_one() {
        let mut tracker = Tracker::default();
        tracker.apply(service("a"));
        tracker.apply(service("b"));
        tracker.apply(slice("s", "a", "10.0.0.1"));
        tracker.take_changed();
        tracker.apply(slice("s", "b", "10.0.0.1"));
        assert_eq!(tracker.take_changed().len(), 2);
        assert_eq!((endpoints(&tracker, "a"), endpoints(&tracker, "b")), (0, 1));
    }

    #[test]
    fn several_slices_make_one_service() {
        let mut tracker = Tracker::default();
        tracker.apply(slice("s1", "a", "10.0.0.1"));
        tracker.apply(slice("s2", "a", "10.0.0.2"));
        tracker.apply(service("a"));
        assert_eq!(endpoints(&tracker, "a"), 2);
        tracker.apply(Change::SliceGone("default".into(), "s1".into()));
        assert_eq!(endpoints(&tracker, "a"), 1);
        tracker.apply(Change::ServiceGone(ServiceName::new("default", "a")));
        assert_eq!(tracker.resolve(&ServiceName::new("default", "a")), None);
    }
}
