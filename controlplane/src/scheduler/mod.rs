//! The scheduler: a pod without a node gets the best of those that it fits on.
//!
//! ```text
//! pods and nodes (watch) -> Cluster, kept up to date by each change -> filter -> score -> POST binding
//! ```
//!
//! A pod that fits nowhere waits until something changes that could help it: a node, or a pod that ends.
//! Left for later: preemption, priorities, pod (anti-)affinity and topology spread.

mod cluster;
mod filter;
mod score;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::runtime::watcher;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::controllers::Recorder;
use crate::controllers::informer::Informer;
use crate::controllers::object::{Key, Node, Pod, Writer, ignore_not_found, is_code, now_rfc3339};
use crate::controllers::queue::Queue;
use cluster::{Cluster, Demand};

const NAME: &str = "default-scheduler";

struct Scheduler {
    writer: Writer,
    events: Recorder,
    pods: Arc<Informer<Pod>>,
    cluster: Mutex<Cluster>,
    /// Pods that fitted nowhere when they were last tried.
    waiting: Mutex<BTreeSet<Key>>,
}

/// Schedules pods until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let (pods, nodes) = (Informer::<Pod>::new(), Informer::<Node>::new());
    let scheduler = Arc::new(Scheduler {
        writer: Writer(client.clone()),
        events: Recorder::new(client.clone(), NAME),
        pods: pods.clone(),
        cluster: Mutex::default(),
        waiting: Mutex::default(),
    });
    let queue = Queue::new();
    scheduler.clone().follow(&pods, &nodes, &queue);
    let work = async {
        tokio::join!(pods.synced(), nodes.synced());
        let reconcile = {
            let scheduler = scheduler.clone();
            move |key| {
                let scheduler = scheduler.clone();
                async move { scheduler.schedule(key).await }
            }
        };
        queue.run("scheduler", 1, shutdown.clone(), reconcile).await;
    };
    tokio::join!(
        pods.clone()
            .run(client.clone(), watcher::Config::default(), shutdown.clone()),
        nodes
            .clone()
            .run(client.clone(), watcher::Config::default(), shutdown.clone()),
        work,
    );
}

/// Whether a pod is for this scheduler to place.
fn is_ours(pod: &Pod) -> bool {
    pod.spec.node_name.as_deref().unwrap_or_default().is_empty()
        && pod.is_active()
        && !pod.is_terminating()
        && pod.spec.scheduling_gates.is_empty()
        && pod
            .spec
            .scheduler_name
            .as_deref()
            .is_none_or(|name| name == NAME)
}

impl Scheduler {
    fn follow(self: Arc<Self>, pods: &Informer<Pod>, nodes: &Informer<Node>, queue: &Queue<Key>) {
        let (me, q) = (self.clone(), queue.clone());
        pods.on_change(move |change| {
            let freed = me
                .cluster()
                .pod_changed(change.old.as_deref(), change.new.as_deref());
            match &change.new {
                Some(pod) if is_ours(pod) => q.add(Key::of(&**pod)),
                _ => {
                    if let Some(pod) = &change.old {
                        me.waiting().remove(&Key::of(&**pod));
                    }
                }
            }
            if freed {
                me.retry_waiting(&q);
            }
        });
        let (me, q) = (self, queue.clone());
        nodes.on_change(move |change| {
            if me
                .cluster()
                .node_changed(change.old.as_deref(), change.new.as_deref())
            {
                me.retry_waiting(&q);
            }
        });
    }

    fn cluster(&self) -> std::sync::MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeSet<Key>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retry_waiting(&self, queue: &Queue<Key>) {
        std::mem::take(&mut *self.waiting())
            .into_iter()
            .for_each(|key| queue.add(key));
    }

    async fn schedule(&self, key: Key) -> Result<Option<Duration>, kube::Error> {
        let Some(pod) = self.pods.get(&key).filter(|pod| is_ours(pod)) else {
            return Ok(None);
        };
        let demand = Demand::of(&pod);
        let choice = {
            let mut cluster = self.cluster();
            if cluster.is_assumed(&key) {
                return Ok(None);
            }
            let choice = choose(&pod, &demand, &cluster);
            if let Ok(node) = &choice {
                cluster.assume(&key, node, &demand);
            }
            choice
        };
        match choice {
            Ok(node) => self.bind(&key, &pod, &node).await,
            Err(message) => self.report(&key, &pod, message).await,
        }
    }

    async fn bind(
        &self,
        key: &Key,
        pod: &Pod,
        node: &str,
    ) -> Result<Option<Duration>, kube::Error> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        match self
            .writer
            .create_sub::<Pod>(key, "binding", &binding)
            .await
        {
            Ok(_) => {
                self.events.normal(
                    pod,
                    "Scheduled",
                    format!("Successfully assigned {key} to {node}"),
                );
                Ok(None)
            }
            Err(error) => {
                self.cluster().forget(key);
                // Gone, or placed by somebody else: the watch tells.
                if is_code(&error, 404) || is_code(&error, 409) {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
        }
    }

    async fn report(
        &self,
        key: &Key,
        pod: &Pod,
        message: String,
    ) -> Result<Option<Duration>, kube::Error> {
        self.waiting().insert(key.clone());
        let known = pod
            .condition("PodScheduled")
            .and_then(|condition| condition.message.as_ref());
        if known != Some(&message) {
            self.events
                .warning(pod, "FailedScheduling", message.clone());
            let condition = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": message, "lastTransitionTime": now_rfc3339() });
            let mut conditions: Vec<_> = pod
                .status
                .conditions
                .iter()
                .filter(|c| c.type_ != "PodScheduled")
                .map(|c| json!(c))
                .collect();
            conditions.push(condition);
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": conditions } });
            ignore_not_found(self.writer.merge::<Pod>(key, Some("status"), &patch).await)?;
        }
        Ok(None)
    }
}

/// The best node that the pod fits on, or why there is none.
fn choose(pod: &Pod, demand: &Demand, cluster: &Cluster) -> Result<String, String> {
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(i64, &str)> = None;
    let mut count = 0;
    for (name, node) in cluster.nodes() {
        count += 1;
        match filter::refusals(pod, demand, node) {
            reasons if reasons.is_empty() => {
                let score = score::score(pod, demand, node);
                if best.is_none_or(|(highest, _)| score > highest) {
                    best = Some((score, name));
                }
            }
            reasons => reasons
                .into_iter()
                .for_each(|reason| *refusals.entry(reason).or_default() += 1),
        }
    }
    if let Some((_, name)) = best {
        return Ok(name.to_owned());
    }
    if count == 0 {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let mut reasons: Vec<String> = refusals
        .into_iter()
        .map(|(reason, times)| format!("{times} {reason}"))
        .collect();
    reasons.sort();
    Err(format!(
        "0/{count} nodes are available: {}.",
        reasons.join(", ")
    ))
}

#[cfg(test)]
mod tests;
