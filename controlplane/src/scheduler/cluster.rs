//! What is taken on each node, kept up to date by each change of a pod or a node.

use std::collections::{BTreeMap, HashMap};

use api::resources::{self, Resources};
use k8s_openapi::api::core::v1 as core;

use crate::controllers::object::{Container, Key, Node, Pod};

/// What a pod takes of its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Requests of all its containers together.
    pub requests: Resources,
    /// Ports of the node.
    pub ports: Vec<HostPort>,
}

/// A port of the node that a pod occupies.
#[derive(Clone, Debug, PartialEq)]
pub struct HostPort {
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// Empty for all addresses.
    pub ip: String,
    /// 1 to 65535.
    pub port: i32,
}

impl HostPort {
    /// Whether both can't be held at once.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

impl Demand {
    /// What `pod` takes.
    pub fn of(pod: &Pod) -> Self {
        let convert = |container: &Container| core::Container {
            resources: Some(core::ResourceRequirements {
                requests: Some(container.resources.requests.clone()),
                limits: Some(container.resources.limits.clone()),
                ..Default::default()
            }),
            restart_policy: container.restart_policy.clone(),
            ..Default::default()
        };
        let spec =
            core::PodSpec {
                containers: pod.spec.containers.iter().map(convert).collect(),
                init_containers: Some(pod.spec.init_containers.iter().map(convert).collect()),
                overhead: Some(pod.spec.overhead.clone()),
                resources: pod.spec.resources.as_ref().map(|resources| {
                    core::ResourceRequirements {
                        requests: Some(resources.requests.clone()),
                        limits: Some(resources.limits.clone()),
                        ..Default::default()
                    }
                }),
                ..Default::default()
            };
        let ports = pod
            .spec
            .containers
            .iter()
            .flat_map(|container| &container.ports);
        let taken = ports.filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some(HostPort {
                protocol,
                ip: port.host_ip.clone().unwrap_or_default(),
                port: number,
            })
        });
        Self {
            ports: taken.collect(),
            requests: resources::pod_requests(&spec),
        }
    }
}

/// A node and what is taken on it.
#[derive(Debug, Default)]
pub struct NodeState {
    /// Names, labels, taints.
    pub node: Node,
    /// What its pods may take together.
    pub allocatable: Resources,
    /// What its pods take, by the pod.
    pods: HashMap<Key, Demand>,
}

impl NodeState {
    /// How many pods are on it.
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// What its pods take together.
    pub fn requested(&self, resource: &str) -> api::quantity::Quantity {
        self.pods
            .values()
            .filter_map(|demand| demand.requests.get(resource))
            .copied()
            .sum()
    }

    /// Whether one of its pods holds such a port.
    pub fn holds(&self, port: &HostPort) -> bool {
        self.pods
            .values()
            .flat_map(|demand| &demand.ports)
            .any(|held| held.conflicts(port))
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeState>,
    /// Pods on nodes that are not known (yet).
    elsewhere: HashMap<String, HashMap<Key, Demand>>,
    /// Pods bound by us whose binding the watch hasn't shown yet.
    assumed: HashMap<Key, String>,
}

impl Cluster {
    /// The nodes by name, without those being deleted.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeState)> {
        let live = self
            .nodes
            .iter()
            .filter(|(_, state)| state.node.metadata.deletion_timestamp.is_none());
        live.map(|(name, state)| (name.as_str(), state))
    }

    /// Takes in a change of a pod; whether it freed something.
    pub fn pod_changed(&mut self, old: Option<&Pod>, new: Option<&Pod>) -> bool {
        let placed = |pod: &&Pod| {
            pod.is_active()
                && pod
                    .spec
                    .node_name
                    .as_ref()
                    .is_some_and(|name| !name.is_empty())
        };
        let (before, after) = (old.filter(placed), new.filter(placed));
        if let Some(pod) = old.or(new) {
            let key = Key::of(pod);
            if after.is_some() || new.is_none() {
                self.forget(&key);
            }
        }
        if let Some(pod) = before {
            let node = pod.spec.node_name.as_deref().unwrap_or_default();
            self.pods_of(node).remove(&Key::of(pod));
        }
        if let Some(pod) = after {
            let node = pod.spec.node_name.as_deref().unwrap_or_default();
            let demand = Demand::of(pod);
            self.pods_of(node).insert(Key::of(pod), demand);
        }
        before.is_some() && after.is_none()
    }

    /// Takes in a change of a node; whether it may help a pod that waits.
    pub fn node_changed(&mut self, old: Option<&Node>, new: Option<&Node>) -> bool {
        let Some(node) = new else {
            if let Some(name) = old.and_then(|node| node.metadata.name.as_ref())
                && let Some(state) = self.nodes.remove(name)
            {
                self.elsewhere.insert(name.clone(), state.pods);
            }
            return false;
        };
        let name = node.metadata.name.clone().unwrap_or_default();
        let early = self.elsewhere.remove(&name).unwrap_or_default();
        let state = self.nodes.entry(name).or_default();
        state.pods.extend(early);
        state.allocatable = resources::parse(Some(&node.status.allocatable));
        state.node = node.clone();
        old.is_none_or(|old| {
            old.spec.taints != node.spec.taints
                || old.spec.unschedulable != node.spec.unschedulable
                || old.metadata.labels != node.metadata.labels
                || old.status.allocatable != node.status.allocatable
        })
    }

    fn pods_of(&mut self, node: &str) -> &mut HashMap<Key, Demand> {
        match self.nodes.get_mut(node) {
            Some(state) => &mut state.pods,
            None => self.elsewhere.entry(node.to_owned()).or_default(),
        }
    }

    /// Counts a pod as placed before the watch shows it.
    pub fn assume(&mut self, key: &Key, node: &str, demand: &Demand) {
        self.assumed.insert(key.clone(), node.to_owned());
        self.pods_of(node).insert(key.clone(), demand.clone());
    }

    /// Whether the pod was placed by us a moment ago.
    pub fn is_assumed(&self, key: &Key) -> bool {
        self.assumed.contains_key(key)
    }

    /// Takes an assumption back.
    pub fn forget(&mut self, key: &Key) {
        if let Some(node) = self.assumed.remove(key) {
            self.pods_of(&node).remove(key);
        }
    }
}
