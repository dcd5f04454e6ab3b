//! Nodes: each gets its pod addresses, one whose lease runs out is marked, and pods that don't bear that go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::taints::tolerates;
use api::time::seconds as rfc3339;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use serde_json::{Value, json};

use super::informer::Informer;
use super::object::{Key, Lease, Node, Pod, ignore_not_found};
use super::queue::Queue;
use super::{Context, MaskSizes};

/// A node that did not renew its lease for so long is Unknown, as upstream's grace period.
const GRACE: Duration = Duration::from_secs(50);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const LEASES: &str = "kube-node-lease";

/// The node controller: IPAM, lifecycle, eviction by taint.
pub struct Controller {
    context: Context,
    cluster_cidrs: Vec<IpNet>,
    mask_sizes: MaskSizes,
    nodes: Arc<Informer<Node>>,
    leases: Arc<Informer<Lease>>,
    pods: Arc<Informer<Pod>>,
    /// Given, but not yet seen in the local copy.
    given: Mutex<BTreeMap<String, Vec<IpNet>>>,
}

impl Controller {
    /// Gives nodes parts of `cluster_cidrs`.
    pub fn new(
        context: Context,
        cluster_cidrs: Vec<IpNet>,
        mask_sizes: MaskSizes,
        nodes: Arc<Informer<Node>>,
        leases: Arc<Informer<Lease>>,
        pods: Arc<Informer<Pod>>,
        queue: &Queue<Key>,
    ) -> Self {
        let q = queue.clone();
        nodes.on_change(move |change| change.both().for_each(|node| q.add(Key::of(&**node))));
        let q = queue.clone();
        leases.on_change(move |change| {
            let ours = change
                .both()
                .filter(|lease| lease.metadata.namespace.as_deref() == Some(LEASES));
            ours.for_each(|lease| {
                q.add(Key::new(
                    "",
                    lease.metadata.name.as_deref().unwrap_or_default(),
                ))
            });
        });
        let q = queue.clone();
        pods.on_change(move |change| {
            let placed =
                |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|pod| pod.spec.node_name.clone());
            if let (None, Some(node)) = (placed(&change.old), placed(&change.new)) {
                q.add(Key::new("", &node));
            }
        });
        Self {
            context,
            cluster_cidrs,
            mask_sizes,
            nodes,
            leases,
            pods,
            given: Mutex::default(),
        }
    }

    /// Looks after one node.
    pub async fn reconcile(&self, key: Key) -> Result<Option<Duration>, kube::Error> {
        let Some(node) = self.nodes.get(&key) else {
            self.given
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key.name);
            return Ok(None);
        };
        if node.spec.pod_cidrs.is_empty() && !self.cluster_cidrs.is_empty() {
            self.give_addresses(&node).await?;
        }
        let now = Timestamp::now();
        let (lost, next_look) = self.liveness(&key, &node, now);
        if lost {
            self.mark_unknown(&key, &node, now).await?;
        }
        self.set_taints(&key, &node, lost, now).await?;
        let next_eviction = self.evict(&node, now).await?;
        Ok([next_look, next_eviction].into_iter().flatten().min())
    }

    async fn give_addresses(&self, node: &Node) -> Result<(), kube::Error> {
        let name = node.metadata.name.clone().unwrap_or_default();
        let cidrs = {
            let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(cidrs) = given.get(&name) {
                cidrs.clone()
            } else {
                let in_nodes = self.nodes.list(|node| !node.spec.pod_cidrs.is_empty());
                let mut taken: BTreeSet<IpNet> = in_nodes
                    .iter()
                    .flat_map(|node| &node.spec.pod_cidrs)
                    .filter_map(|cidr| cidr.parse().ok())
                    .collect();
                taken.extend(given.values().flatten());
                let cidrs: Vec<IpNet> = self
                    .cluster_cidrs
                    .iter()
                    .filter_map(|range| free_part(range, self.mask_sizes, &taken))
                    .collect();
                given.insert(name.clone(), cidrs.clone());
                cidrs
            }
        };
        if cidrs.is_empty() {
            let message = format!(
                "no free part of {:?} is left for the node's pods: use a larger cluster CIDR",
                self.cluster_cidrs
            );
            self.context
                .events
                .warning(node, "CIDRNotAvailable", message);
            return Ok(());
        }
        let patch = json!({ "spec": { "podCIDR": cidrs[0].to_string(), "podCIDRs": cidrs } });
        ignore_not_found(
            self.context
                .writer
                .merge::<Node>(&Key::new("", &name), None, &patch)
                .await,
        )
        .map(drop)
    }

    /// Whether the node's lease has run out; else when to look again.
    fn liveness(&self, key: &Key, node: &Node, now: Timestamp) -> (bool, Option<Duration>) {
        let lease = self.leases.get(&Key::new(LEASES, &key.name));
        let renewed: Option<Timestamp> =
            lease.and_then(|lease| lease.spec["renewTime"].as_str()?.parse().ok());
        let heartbeat = node
            .condition("Ready")
            .and_then(|c| c.last_heartbeat_time.as_ref())
            .map(|time| time.0);
        let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let Some(last) = renewed.max(heartbeat).or(created) else {
            return (false, Some(GRACE));
        };
        let until = last
            .checked_add(GRACE)
            .unwrap_or(Timestamp::MAX)
            .duration_since(now);
        match Duration::try_from(until) {
            Ok(left) if !left.is_zero() => (false, Some(left)),
            _ => (true, None),
        }
    }

    async fn mark_unknown(
        &self,
        key: &Key,
        node: &Node,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        if node
            .condition("Ready")
            .is_some_and(|ready| ready.status == "Unknown")
        {
            return Ok(());
        }
        let types = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
        let conditions: Vec<Value> = types
            .iter()
            .map(|type_| {
                json!({ "type": type_, "status": "Unknown", "reason": "NodeStatusUnknown",
                    "message": "Kubelet stopped posting node status.", "lastTransitionTime": rfc3339(now),
                    "lastHeartbeatTime": node.condition(type_).and_then(|c| c.last_heartbeat_time.clone()) })
            })
            .collect();
        let patch = json!({ "status": { "conditions": conditions } });
        self.context.events.normal(
            node,
            "NodeNotReady",
            format!("Node {} status is now: NodeNotReady", key.name),
        );
        ignore_not_found(
            self.context
                .writer
                .merge::<Node>(key, Some("status"), &patch)
                .await,
        )
        .map(drop)
    }

    async fn set_taints(
        &self,
        key: &Key,
        node: &Node,
        lost: bool,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let ready = node
            .condition("Ready")
            .map_or("False", |condition| condition.status.as_str());
        let trouble = match ready {
            _ if lost => Some(UNREACHABLE),
            "True" => None,
            "Unknown" => Some(UNREACHABLE),
            _ => Some(NOT_READY),
        };
        let current = &node.spec.taints;
        let mut wanted: Vec<Value> = current
            .iter()
            .filter(|taint| taint.key != NOT_READY && taint.key != UNREACHABLE)
            .map(|taint| json!(taint))
            .collect();
        let others = wanted.len();
        for effect in trouble.iter().flat_map(|_| ["NoSchedule", "NoExecute"]) {
            let key = trouble.unwrap_or_default();
            let kept = current
                .iter()
                .find(|taint| taint.key == key && taint.effect == effect);
            wanted.push(kept.map_or_else(
                || json!({ "key": key, "effect": effect, "timeAdded": rfc3339(now) }),
                |taint| json!(taint),
            ));
        }
        if wanted.len() == current.len()
            && (trouble.is_none()
                || others + 2 == current.len()
                    && current.iter().any(|t| Some(t.key.as_str()) == trouble))
        {
            return Ok(());
        }
        let patch = json!({ "metadata": { "resourceVersion": node.metadata.resource_version }, "spec": { "taints": wanted } });
        ignore_not_found(self.context.writer.merge::<Node>(key, None, &patch).await).map(drop)
    }

    /// Deletes pods that don't bear the node's NoExecute taints (any longer); when the next one is due.
    async fn evict(&self, node: &Node, now: Timestamp) -> Result<Option<Duration>, kube::Error> {
        let taints: Vec<&Taint> = node
            .spec
            .taints
            .iter()
            .filter(|taint| taint.effect == "NoExecute")
            .collect();
        if taints.is_empty() {
            return Ok(None);
        }
        let mut next: Option<Duration> = None;
        for pod in self
            .pods
            .list(|pod| pod.spec.node_name == node.metadata.name && !pod.is_terminating())
        {
            let Some(due) = eviction_time(&taints, &pod.spec.tolerations, now) else {
                continue;
            };
            match Duration::try_from(due.duration_since(now)) {
                Ok(left) if !left.is_zero() => {
                    next = Some(next.map_or(left, |next| next.min(left)))
                }
                _ => {
                    let message = format!("Marking for deletion Pod {}", Key::of(&*pod));
                    self.context
                        .events
                        .normal(&*pod, "TaintManagerEviction", message);
                    self.context.writer.delete(&*pod).await?;
                }
            }
        }
        Ok(next)
    }
}

/// When a pod with these tolerations must go; None if it may stay.
fn eviction_time(
    taints: &[&Taint],
    tolerations: &[Toleration],
    now: Timestamp,
) -> Option<Timestamp> {
    let mut due: Option<Timestamp> = None;
    for taint in taints {
        let bearing: Vec<_> = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .collect();
        if bearing.is_empty() {
            return Some(now);
        }
        let Some(seconds) = bearing
            .iter()
            .filter_map(|toleration| toleration.toleration_seconds)
            .min()
        else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let end = since
            .checked_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
            .unwrap_or(Timestamp::MAX);
        due = Some(due.map_or(end, |due| due.min(end)));
    }
    due
}

/// The first part of `range` of a node's size that overlaps nothing in `taken`.
fn free_part(range: &IpNet, sizes: MaskSizes, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let size = match range.addr() {
        IpAddr::V4(_) => sizes.ipv4,
        IpAddr::V6(_) => sizes.ipv6,
    };
    let overlaps = |part: &IpNet| {
        taken
            .iter()
            .any(|other| other.contains(&part.network()) || part.contains(&other.network()))
    };
    range
        .subnets(size.max(range.prefix_len()))
        .ok()?
        .find(|part| !overlaps(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_gets_its_own_part_in_both_families() {
        let sizes = MaskSizes::default();
        let four: IpNet = "10.244.0.0/16".parse().expect("a range");
        let first = free_part(&four, sizes, &BTreeSet::new()).expect("room");
        assert_eq!(first.to_string(), "10.244.0.0/24");
        assert_eq!(
            free_part(&four, sizes, &BTreeSet::from([first]))
                .expect("room")
                .to_string(),
            "10.244.1.0/24"
        );
        let six: IpNet = "fd00:10::/56".parse().expect("a range");
        assert_eq!(
            free_part(&six, sizes, &BTreeSet::from([first]))
                .expect("room")
                .to_string(),
            "fd00:10::/64"
        );
        let small: IpNet = "10.1.0.0/24".parse().expect("a range");
        let wide = MaskSizes { ipv4: 21, ..sizes };
        let part = free_part(&four, wide, &BTreeSet::from([first])).expect("room");
        assert_eq!(part.to_string(), "10.244.8.0/21");
        assert_eq!(free_part(&small, sizes, &BTreeSet::from([small])), None);
    }

    #[test]
    fn a_pod_goes_at_once_later_or_never_by_its_tolerations() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let taint: Taint = serde_json::from_value(
            json!({ "key": NOT_READY, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z" }),
        )
        .expect("a taint");
        let bears =
            |value: Value| vec![serde_json::from_value::<Toleration>(value).expect("a toleration")];
        assert_eq!(eviction_time(&[&taint], &[], now), Some(now));
        let for_a_while = bears(
            json!({ "key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }),
        );
        assert_eq!(
            eviction_time(&[&taint], &for_a_while, now).map(|at| at.duration_since(now).as_secs()),
            Some(300)
        );
        assert_eq!(
            eviction_time(&[&taint], &bears(json!({ "operator": "Exists" })), now),
            None
        );
    }
}
