//! Which Services a change of an object concerns, and each Service's objects.

use super::facts::{NodeFacts, ServiceFacts, SliceFacts};
use super::resolve::{ResolvedService, resolve};
use super::{ServiceName, SliceName};
use std::collections::{BTreeSet, HashMap};

/// A change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A Service was added or changed.
    Service(ServiceName, Box<ServiceFacts>),
    /// A Service is gone.
    ServiceGone(ServiceName),
    /// A slice of a Service was added or changed; it may have been another's before.
    Slice(SliceName, ServiceName, Box<SliceFacts>),
    /// A slice is gone, or is no Service's any more.
    SliceGone(SliceName),
    /// The node's facts.
    Node(NodeFacts),
}

/// All that is known about a Service. A slice may be known before its Service.
#[derive(Debug, Default)]
struct Known {
    service: Option<Box<ServiceFacts>>,
    slices: Vec<(SliceName, Box<SliceFacts>)>,
}

/// All objects, by Service, and the Services that changed since they were last taken.
#[derive(Debug, Default)]
pub struct Tracker {
    known: HashMap<ServiceName, Known>,
    /// Whose slice it is.
    owners: HashMap<SliceName, ServiceName>,
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

    /// Takes a change. What is known already changes nothing.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(name, facts) => {
                let known = self.known.entry(name.clone()).or_default();
                if known.service.as_ref() != Some(&facts) {
                    known.service = Some(facts);
                    self.dirty.insert(name);
                }
            }
            Change::ServiceGone(name) => {
                if self
                    .known
                    .get_mut(&name)
                    .is_some_and(|known| known.service.take().is_some())
                {
                    self.forget_if_empty(&name);
                    self.dirty.insert(name);
                }
            }
            Change::Slice(slice, owner, facts) => self.apply_slice(slice, owner, facts),
            Change::SliceGone(slice) => self.remove_slice(&slice),
            Change::Node(node) => {
                // Endpoints are chosen by the zone; the rest of it is for others.
                if node.zone != self.node.zone {
                    self.dirty.extend(self.known.keys().cloned());
                }
                self.node = node;
            }
        }
    }

    fn apply_slice(&mut self, slice: SliceName, owner: ServiceName, facts: Box<SliceFacts>) {
        if self
            .owners
            .get(&slice)
            .is_some_and(|before| *before != owner)
        {
            self.remove_slice(&slice);
        }
        // The name is kept once, whoever named it first.
        let owner = self
            .known
            .get_key_value(&owner)
            .map_or(owner.clone(), |(name, _)| name.clone());
        let slices = &mut self.known.entry(owner.clone()).or_default().slices;
        match slices.iter_mut().find(|(name, _)| *name == slice) {
            Some((_, before)) if *before == facts => return,
            Some((_, before)) => *before = facts,
            None => {
                // Most Services have one.
                slices.reserve_exact(1);
                slices.push((slice.clone(), facts));
                self.owners.insert(slice, owner.clone());
            }
        }
        self.dirty.insert(owner);
    }

    fn remove_slice(&mut self, slice: &SliceName) {
        let Some(owner) = self.owners.remove(slice) else {
            return;
        };
        if let Some(known) = self.known.get_mut(&owner) {
            known.slices.retain(|(name, _)| name != slice);
        }
        self.forget_if_empty(&owner);
        self.dirty.insert(owner);
    }

    fn forget_if_empty(&mut self, name: &ServiceName) {
        if self
            .known
            .get(name)
            .is_some_and(|known| known.service.is_none() && known.slices.is_empty())
        {
            self.known.remove(name);
        }
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
        let known = self.known.get(name)?;
        let slices = known.slices.iter().map(|(_, facts)| &**facts);
        Some(resolve(name, known.service.as_ref()?, slices, &self.node))
    }

    /// The Services that are known.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.known
            .iter()
            .filter(|(_, known)| known.service.is_some())
            .map(|(name, _)| name)
    }

    /// The slices that are known.
    pub fn slices(&self) -> impl Iterator<Item = &SliceName> {
        self.owners.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::object::{EndpointSlice, Service};
    use crate::source::Followed;
    use serde_json::json;

    fn service(name: &str) -> Change {
        let service = json!({
            "metadata": { "namespace": "default", "name": name },
            "spec": { "clusterIP": "10.96.0.7", "ports": [{ "port": 80 }] }
        });
        serde_json::from_value::<Service>(service)
            .expect("service")
            .changed("here")
    }

    fn slice(name: &str, owner: &str, address: &str) -> Change {
        let slice = json!({
            "metadata": {
                "namespace": "default", "name": name, "labels": { "kubernetes.io/service-name": owner }
            },
            "addressType": "IPv4", "endpoints": [{ "addresses": [address] }], "ports": [{ "port": 8080 }]
        });
        serde_json::from_value::<EndpointSlice>(slice)
            .expect("slice")
            .changed("here")
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
        tracker.apply(Change::SliceGone(SliceName::new("default", "s1")));
        assert_eq!(endpoints(&tracker, "a"), 1);
        tracker.apply(Change::ServiceGone(ServiceName::new("default", "a")));
        assert_eq!(tracker.resolve(&ServiceName::new("default", "a")), None);
    }
}
