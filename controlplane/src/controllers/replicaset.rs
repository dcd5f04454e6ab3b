//! ReplicaSets: as many pods as asked for, adopted, created or deleted.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::object::{
    Key, Pod, ReplicaSet, ReplicaSetStatus, controller_of, controller_reference, ignore_not_found,
    is_code,
};
use super::own_writes::OwnWrites;
use super::queue::Queue;

/// Pods are created in rounds of 1, 2, 4, … so that a template that is always refused is tried few times.
const FIRST_ROUND: usize = 1;

/// The ReplicaSet controller.
pub struct Controller {
    context: Context,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    /// Of pods, for each set.
    writes: OwnWrites,
}

impl Controller {
    /// Registers what brings a ReplicaSet back: itself, and its pods.
    pub fn new(
        context: Context,
        sets: Arc<Informer<ReplicaSet>>,
        pods: Arc<Informer<Pod>>,
        queue: &Queue<Key>,
    ) -> Self {
        let q = queue.clone();
        sets.on_change(move |change| change.both().for_each(|set| q.add(Key::of(&**set))));
        let (q, all) = (queue.clone(), sets.clone());
        pods.on_change(move |change| {
            for pod in change.both() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                match controller_of(&pod.metadata) {
                    Some(owner) if owner.kind == "ReplicaSet" => {
                        q.add(Key::new(namespace, &owner.name))
                    }
                    Some(_) => {}
                    None => all
                        .list(|set| {
                            set.metadata.namespace == pod.metadata.namespace && claims(set, pod)
                        })
                        .iter()
                        .for_each(|set| q.add(Key::of(&**set))),
                }
            }
        });
        Self {
            context,
            sets,
            pods,
            writes: OwnWrites::default(),
        }
    }

    /// Brings one ReplicaSet's pods to their number, and its status up to date.
    pub async fn reconcile(&self, key: Key) -> Result<Option<Duration>, kube::Error> {
        let Some(set) = self.sets.get(&key) else {
            self.writes.forget(&key);
            return Ok(None);
        };
        if !self.writes.are_in(&self.pods, &key) {
            return Ok(Some(Duration::from_millis(100)));
        }
        let pods = self.claim(&set).await?;
        let active: Vec<_> = pods
            .iter()
            .filter(|pod| pod.is_active() && !pod.is_terminating())
            .cloned()
            .collect();
        let failure = match set.metadata.deletion_timestamp {
            None => self.scale(&set, &active).await,
            Some(_) => Ok(()),
        };
        let now = Timestamp::now();
        let status = status(&set, &pods, now);
        self.write_status(&set, &status, failure.as_ref().err())
            .await?;
        failure?;
        Ok(next_availability(&set, &active, now))
    }

    fn wrote(&self, set: &ReplicaSet, answer: &Value) {
        self.writes.wrote(Key::of(set), answer);
    }

    /// The set's pods: those that name it as controller, and orphans that match, which it adopts.
    async fn claim(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let mine = |pod: &Pod| {
            pod.metadata.namespace == set.metadata.namespace
                && match controller_of(&pod.metadata) {
                    Some(owner) => Some(&owner.uid) == set.metadata.uid.as_ref(),
                    None => pod.is_active() && !pod.is_terminating() && claims(set, pod),
                }
        };
        let mut claimed = Vec::new();
        for pod in self.pods.list(mine) {
            let owned = controller_of(&pod.metadata).is_some();
            let matches = set.spec.selector.selects(pod.metadata.labels.as_ref());
            if owned && !matches {
                self.release(set, &pod).await?;
                continue;
            }
            if !owned {
                if set.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                self.adopt(set, &pod).await?;
            }
            claimed.push(pod);
        }
        Ok(claimed)
    }

    async fn adopt(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), kube::Error> {
        let mut owners = json!(pod.metadata.owner_references.clone().unwrap_or_default());
        if let Some(owners) = owners.as_array_mut() {
            owners.push(controller_reference(set));
        }
        self.set_owners(set, pod, owners).await
    }

    async fn release(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), kube::Error> {
        let owners = pod.metadata.owner_references.iter().flatten();
        let kept: Vec<_> = owners
            .filter(|owner| Some(&owner.uid) != set.metadata.uid.as_ref())
            .collect();
        self.set_owners(set, pod, json!(kept)).await
    }

    async fn set_owners(
        &self,
        set: &ReplicaSet,
        pod: &Pod,
        owners: Value,
    ) -> Result<(), kube::Error> {
        let meta = json!({ "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "ownerReferences": owners });
        let written = self
            .context
            .writer
            .merge::<Pod>(&Key::of(pod), None, &json!({ "metadata": meta }))
            .await;
        if let Some(answer) = ignore_not_found(written)? {
            self.wrote(set, &answer);
        }
        Ok(())
    }

    async fn scale(&self, set: &ReplicaSet, active: &[Arc<Pod>]) -> Result<(), kube::Error> {
        let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
        if active.len() < wanted {
            self.create(set, wanted - active.len()).await
        } else {
            self.delete(set, surplus(active, active.len() - wanted))
                .await
        }
    }

    async fn create(&self, set: &ReplicaSet, count: usize) -> Result<(), kube::Error> {
        let pod = pod_of(set);
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let (mut left, mut round) = (count, FIRST_ROUND);
        while left > 0 {
            let now = round.min(left);
            let answers = futures::future::join_all(
                (0..now).map(|_| self.context.writer.create::<Pod>(namespace, &pod)),
            )
            .await;
            for answer in answers {
                match answer {
                    Ok(answer) => {
                        self.wrote(set, &answer);
                        let name = answer
                            .pointer("/metadata/name")
                            .and_then(Value::as_str)
                            .unwrap_or_default();
                        self.context.events.normal(
                            set,
                            "SuccessfulCreate",
                            format!("Created pod: {name}"),
                        );
                    }
                    // The namespace is going, and the set with it.
                    Err(error) if is_code(&error, 404) => return Ok(()),
                    Err(error) => {
                        self.context.events.warning(
                            set,
                            "FailedCreate",
                            format!("Error creating: {error}"),
                        );
                        return Err(error);
                    }
                }
            }
            left -= now;
            round *= 2;
        }
        Ok(())
    }

    async fn delete(&self, set: &ReplicaSet, pods: Vec<Arc<Pod>>) -> Result<(), kube::Error> {
        let answers =
            futures::future::join_all(pods.iter().map(|pod| self.context.writer.delete(&**pod)))
                .await;
        for (pod, answer) in pods.iter().zip(answers) {
            if let Some(answer) = answer? {
                self.wrote(set, &answer);
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                self.context
                    .events
                    .normal(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
            }
        }
        Ok(())
    }

    async fn write_status(
        &self,
        set: &ReplicaSet,
        status: &ReplicaSetStatus,
        failure: Option<&kube::Error>,
    ) -> Result<(), kube::Error> {
        let mut patch = json!({
            "replicas": status.replicas, "fullyLabeledReplicas": status.fully_labeled_replicas,
            "readyReplicas": status.ready_replicas, "availableReplicas": status.available_replicas,
            "terminatingReplicas": status.terminating_replicas, "observedGeneration": status.observed_generation,
        });
        if let Some(error) = failure {
            patch["conditions"] = json!([{ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
                "message": error.to_string(), "lastTransitionTime": super::object::now_rfc3339() }]);
        } else if *status == set.status {
            return Ok(());
        } else {
            patch["conditions"] = Value::Null;
        }
        let (key, patch) = (Key::of(set), json!({ "status": patch }));
        ignore_not_found(
            self.context
                .writer
                .merge::<ReplicaSet>(&key, Some("status"), &patch)
                .await,
        )
        .map(drop)
    }
}

fn claims(set: &ReplicaSet, pod: &Pod) -> bool {
    set.spec.selector.selects(pod.metadata.labels.as_ref())
}

/// A pod of the set's template, which the set controls.
fn pod_of(set: &ReplicaSet) -> Value {
    let template = &set.spec.template;
    let meta = |field: &str| {
        template
            .pointer(&format!("/metadata/{field}"))
            .cloned()
            .unwrap_or(Value::Null)
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", set.metadata.name.as_deref().unwrap_or_default()),
            "labels": meta("labels"), "annotations": meta("annotations"), "finalizers": meta("finalizers"),
            "ownerReferences": [controller_reference(set)],
        },
        "spec": template.get("spec"),
    })
}

/// The pods to delete first: not placed, not running, not ready, ready for a shorter time, younger.
fn surplus(active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let mut ranked = active.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let phase = match pod.status.phase.as_deref() {
            Some("Running") => 2,
            Some("Unknown") => 1,
            _ => 0,
        };
        (
            pod.spec.node_name.is_some(),
            phase,
            pod.is_ready(),
            deletion_cost(pod),
            Reverse(ready_since(pod)),
            Reverse(pod.metadata.creation_timestamp.as_ref().map(|time| time.0)),
            pod.metadata.name.clone(),
        )
    });
    ranked.truncate(count);
    ranked
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|a| {
            a.get("controller.kubernetes.io/pod-deletion-cost")?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = pod
        .condition("Ready")
        .filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// When the pod becomes available; None while it isn't ready.
fn available_at(set: &ReplicaSet, pod: &Pod) -> Option<Timestamp> {
    let wait = Duration::from_secs(u64::try_from(set.spec.min_ready_seconds).unwrap_or(0));
    if pod.is_ready() && wait.is_zero() {
        return Some(Timestamp::MIN);
    }
    ready_since(pod).and_then(|since| since.checked_add(wait).ok())
}

fn next_availability(set: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let next = active
        .iter()
        .filter_map(|pod| available_at(set, pod))
        .filter(|at| *at > now)
        .min()?;
    Duration::try_from(next.duration_since(now)).ok()
}

fn status(set: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) -> ReplicaSetStatus {
    let count = |wanted: &dyn Fn(&Pod) -> bool| {
        let counted = pods
            .iter()
            .filter(|pod| pod.is_active() && wanted(pod))
            .count();
        i32::try_from(counted).unwrap_or(i32::MAX)
    };
    let live = |pod: &Pod| !pod.is_terminating();
    let template = set
        .spec
        .template
        .pointer("/metadata/labels")
        .and_then(Value::as_object);
    let labelled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        template.is_none_or(|wanted| {
            wanted.iter().all(|(key, value)| {
                labels.and_then(|l| l.get(key)).map(String::as_str) == value.as_str()
            })
        })
    };
    ReplicaSetStatus {
        replicas: count(&live),
        fully_labeled_replicas: count(&|pod| live(pod) && labelled(pod)),
        ready_replicas: count(&|pod| live(pod) && pod.is_ready()),
        available_replicas: count(&|pod| {
            live(pod) && available_at(set, pod).is_some_and(|at| at <= now)
        }),
        terminating_replicas: Some(count(&|pod| pod.is_terminating())),
        observed_generation: set.metadata.generation.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, value: Value) -> Arc<Pod> {
        let mut pod: Pod = serde_json::from_value(value).expect("a pod");
        pod.metadata.name = Some(name.to_owned());
        Arc::new(pod)
    }

    fn running(name: &str, ready: &str, since: &str) -> Arc<Pod> {
        pod(
            name,
            json!({ "metadata": {}, "spec": { "nodeName": "n" }, "status": { "phase": "Running",
            "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": since }] } }),
        )
    }

    #[test]
    fn surplus_takes_unplaced_then_unready_then_youngest_ready() {
        let pods = [
            running("old", "True", "2026-01-01T00:00:00Z"),
            running("new", "True", "2026-01-02T00:00:00Z"),
            running("unready", "False", "2026-01-01T00:00:00Z"),
            pod(
                "unplaced",
                json!({ "metadata": {}, "status": { "phase": "Pending" } }),
            ),
        ];
        let names = |count| -> Vec<_> {
            surplus(&pods, count)
                .iter()
                .map(|pod| pod.metadata.name.clone().unwrap_or_default())
                .collect()
        };
        assert_eq!(names(3), ["unplaced", "unready", "new"]);
    }

    #[test]
    fn a_pod_is_available_only_after_min_ready_seconds() {
        let set: ReplicaSet =
            serde_json::from_value(json!({ "metadata": {}, "spec": { "minReadySeconds": 10 } }))
                .expect("a set");
        let pods = [running("a", "True", "2026-01-01T00:00:00Z")];
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(
            status(&set, &pods, at("2026-01-01T00:00:09Z")).available_replicas,
            0
        );
        assert_eq!(
            status(&set, &pods, at("2026-01-01T00:00:10Z")).available_replicas,
            1
        );
        assert_eq!(
            next_availability(&set, &pods, at("2026-01-01T00:00:09Z")),
            Some(Duration::from_secs(1))
        );
    }
}
