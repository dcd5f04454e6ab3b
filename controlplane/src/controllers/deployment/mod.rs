//! Deployments: a ReplicaSet a pod template, and pods moved from the old ones to the new within bounds.
//!
//! What is to be done is planned as data ([`plan`]) from the Deployment and its ReplicaSets, then carried out
//! here. The status follows in [`status`].

mod plan;
mod status;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::object::{
    Deployment, Key, Pod, ReplicaSet, controller_of, controller_reference, ignore_not_found,
    is_code,
};
use super::own_writes::OwnWrites;
use super::queue::Queue;
use plan::{Plan, Step};

/// The annotation that numbers a Deployment's templates, which `kubectl rollout` reads.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The label that tells the pods of one template from those of another.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// The Deployment controller.
pub struct Controller {
    context: Context,
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    writes: OwnWrites,
}

impl Controller {
    /// Registers what brings a Deployment back: itself, its ReplicaSets, and (for Recreate) the end of a pod.
    pub fn new(
        context: Context,
        deployments: Arc<Informer<Deployment>>,
        sets: Arc<Informer<ReplicaSet>>,
        pods: Arc<Informer<Pod>>,
        queue: &Queue<Key>,
    ) -> Self {
        let q = queue.clone();
        deployments.on_change(move |change| {
            change
                .both()
                .for_each(|deployment| q.add(Key::of(&**deployment)))
        });
        let (q, all) = (queue.clone(), deployments.clone());
        sets.on_change(move |change| {
            for set in change.both() {
                let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
                match controller_of(&set.metadata) {
                    Some(owner) if owner.kind == "Deployment" => {
                        q.add(Key::new(namespace, &owner.name))
                    }
                    Some(_) => {}
                    None => all
                        .list(|d| claims(d, set))
                        .iter()
                        .for_each(|d| q.add(Key::of(&**d))),
                }
            }
        });
        let (q, all) = (queue.clone(), sets.clone());
        pods.on_change(move |change| {
            let (Some(pod), None) = (&change.old, &change.new) else {
                return;
            };
            let Some(owner) =
                controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")
            else {
                return;
            };
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let set = all.get(&Key::new(namespace, &owner.name));
            if let Some(owner) = set.as_ref().and_then(|set| controller_of(&set.metadata)) {
                q.add(Key::new(namespace, &owner.name));
            }
        });
        Self {
            context,
            deployments,
            sets,
            pods,
            writes: OwnWrites::default(),
        }
    }

    /// Takes one Deployment a step further.
    pub async fn reconcile(&self, key: Key) -> Result<Option<Duration>, kube::Error> {
        let Some(deployment) = self.deployments.get(&key) else {
            self.writes.forget(&key);
            return Ok(None);
        };
        if !self.writes.are_in(&self.sets, &key) {
            return Ok(Some(Duration::from_millis(100)));
        }
        let sets = self.claim(&deployment).await?;
        let plan = match deployment.metadata.deletion_timestamp {
            None => plan::plan(&deployment, &sets, self.has_old_pods(&deployment, &sets)),
            Some(_) => Plan::default(),
        };
        for step in &plan.steps {
            self.carry_out(&deployment, step).await?;
        }
        self.write_status(&deployment, &sets, &plan).await
    }

    fn wrote(&self, deployment: &Deployment, answer: &Value) {
        self.writes.wrote(Key::of(deployment), answer);
    }

    async fn claim(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, kube::Error> {
        let found = self.sets.list(|set| {
            set.metadata.namespace == deployment.metadata.namespace
                && match controller_of(&set.metadata) {
                    Some(owner) => Some(&owner.uid) == deployment.metadata.uid.as_ref(),
                    None => set.metadata.deletion_timestamp.is_none() && claims(deployment, set),
                }
        });
        for set in found
            .iter()
            .filter(|set| controller_of(&set.metadata).is_none())
        {
            if deployment.metadata.deletion_timestamp.is_none() {
                let meta = json!({ "uid": set.metadata.uid, "resourceVersion": set.metadata.resource_version,
                    "ownerReferences": [controller_reference(deployment)] });
                let (key, patch) = (Key::of(&**set), json!({ "metadata": meta }));
                self.wrote(
                    deployment,
                    &self
                        .context
                        .writer
                        .merge::<ReplicaSet>(&key, None, &patch)
                        .await?,
                );
            }
        }
        Ok(found)
    }

    /// Whether a pod of an older template is still there: Recreate waits for the last of them.
    fn has_old_pods(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
        let new = plan::find_new(deployment, sets).and_then(|set| set.metadata.uid.clone());
        let old: Vec<_> = sets
            .iter()
            .filter_map(|set| set.metadata.uid.as_ref())
            .filter(|uid| Some(*uid) != new.as_ref())
            .collect();
        let is_old = |pod: &Pod| {
            pod.is_active()
                && controller_of(&pod.metadata).is_some_and(|owner| old.contains(&&owner.uid))
        };
        !self.pods.list(is_old).is_empty()
    }

    async fn carry_out(&self, deployment: &Deployment, step: &Step) -> Result<(), kube::Error> {
        match step {
            Step::Create { set } => self.create(deployment, set).await,
            Step::Annotate { set, patch } => {
                let answer = self
                    .context
                    .writer
                    .merge::<ReplicaSet>(&Key::of(&**set), None, patch)
                    .await;
                if let Some(answer) = ignore_not_found(answer)? {
                    self.wrote(deployment, &answer);
                }
                Ok(())
            }
            Step::Scale { set, to, patch } => {
                let from = set.spec.replicas.unwrap_or(1);
                let answer = self
                    .context
                    .writer
                    .merge::<ReplicaSet>(&Key::of(&**set), None, patch)
                    .await?;
                self.wrote(deployment, &answer);
                if from != *to {
                    let (way, name) = (
                        if from < *to { "up" } else { "down" },
                        set.metadata.name.as_deref().unwrap_or_default(),
                    );
                    let message = format!("Scaled {way} replica set {name} from {from} to {to}");
                    self.context
                        .events
                        .normal(deployment, "ScalingReplicaSet", message);
                }
                Ok(())
            }
            Step::Delete { set } => {
                if let Some(answer) = self.context.writer.delete(&**set).await? {
                    self.wrote(deployment, &answer);
                }
                Ok(())
            }
            Step::SetRevision { revision } => {
                let patch = json!({ "metadata": { "annotations": { REVISION: revision } } });
                ignore_not_found(
                    self.context
                        .writer
                        .merge::<Deployment>(&Key::of(deployment), None, &patch)
                        .await,
                )
                .map(drop)
            }
        }
    }

    async fn create(&self, deployment: &Deployment, set: &Value) -> Result<(), kube::Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let answer = match self
            .context
            .writer
            .create::<ReplicaSet>(namespace, set)
            .await
        {
            Err(error) if is_code(&error, 409) => {
                return self.name_taken(deployment, set, error).await;
            }
            other => other?,
        };
        self.wrote(deployment, &answer);
        let name = answer
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let replicas = answer
            .pointer("/spec/replicas")
            .and_then(Value::as_i64)
            .unwrap_or_default();
        if replicas > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {replicas}");
            self.context
                .events
                .normal(deployment, "ScalingReplicaSet", message);
        }
        Ok(())
    }

    /// The name that the template's hash gives is another's: with a higher collision count it gives another name.
    async fn name_taken(
        &self,
        deployment: &Deployment,
        set: &Value,
        error: kube::Error,
    ) -> Result<(), kube::Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let key = Key::new(
            namespace,
            set.pointer("/metadata/name")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        );
        let mine = self.sets.get(&key).is_some_and(|set| {
            controller_of(&set.metadata)
                .is_some_and(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref())
        });
        if !mine {
            let count = deployment.status["collisionCount"].as_i64().unwrap_or(0) + 1;
            let patch = json!({ "status": { "collisionCount": count } });
            self.context
                .writer
                .merge::<Deployment>(&Key::of(deployment), Some("status"), &patch)
                .await?;
        }
        Err(error)
    }

    async fn write_status(
        &self,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        plan: &Plan,
    ) -> Result<Option<Duration>, kube::Error> {
        let now = jiff::Timestamp::now();
        let next = status::status(deployment, sets, plan, now);
        if !status::same(&next, &deployment.status) {
            let patch = json!({ "status": next });
            let written = self
                .context
                .writer
                .merge::<Deployment>(&Key::of(deployment), Some("status"), &patch)
                .await;
            ignore_not_found(written)?;
        }
        Ok(status::until_deadline(deployment, &next, now))
    }
}

fn claims(deployment: &Deployment, set: &ReplicaSet) -> bool {
    deployment.metadata.namespace == set.metadata.namespace
        && deployment
            .spec
            .selector
            .selects(set.metadata.labels.as_ref())
}
