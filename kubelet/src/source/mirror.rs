//! Mirror pods: objects in the API that show the static pods of this node. They are made, remade when deleted or
//! outdated, and deleted with their file; nothing that is done to them reaches the static pod.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::ids::PodUid;
use crate::pod::{ANNOTATION_HASH, ANNOTATION_MIRROR, PodExt};
use crate::status::{StatusWriter, Target};

/// Namespace and name.
type FullName = (String, String);

#[derive(Clone)]
struct Mirror {
    uid: String,
    hash: String,
    deleting: bool,
    listed: bool,
}

#[derive(Default)]
struct State {
    wanted: HashMap<FullName, Arc<Pod>>,
    present: HashMap<FullName, Mirror>,
    synced: bool,
}

/// The mirrors of this node's static pods. Cheap to clone.
#[derive(Clone)]
pub struct Mirrors {
    client: kube::Client,
    node_name: String,
    writer: StatusWriter,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

fn full_name(pod: &Pod) -> FullName {
    (pod.namespace().to_owned(), pod.name().to_owned())
}

impl Mirrors {
    /// Mirrors on `client`'s API server; [`Mirrors::run`] keeps them.
    pub fn new(client: kube::Client, node_name: &str, writer: StatusWriter) -> Self {
        Self {
            client,
            node_name: node_name.to_owned(),
            writer,
            state: Arc::default(),
            changed: Arc::default(),
        }
    }

    /// A static pod is to have a mirror.
    pub fn wanted(&self, pod: Arc<Pod>) {
        self.lock().wanted.insert(full_name(&pod), pod);
        self.changed.notify_one();
    }

    /// Only these static pods are left.
    pub fn retain(&self, uids: &HashSet<PodUid>) {
        self.lock()
            .wanted
            .retain(|_, pod| uids.contains(&pod.uid()));
        self.changed.notify_one();
    }

    /// The API has a mirror.
    pub fn seen(&self, mirror: &Pod) {
        let hash = mirror
            .annotation(ANNOTATION_MIRROR)
            .unwrap_or_default()
            .to_owned();
        let uid = mirror.metadata.uid.clone().unwrap_or_default();
        let deleting = mirror.metadata.deletion_timestamp.is_some();
        let known = Mirror {
            uid: uid.clone(),
            hash: hash.clone(),
            deleting,
            listed: true,
        };
        self.lock().present.insert(full_name(mirror), known);
        if !deleting {
            let (namespace, name) = full_name(mirror);
            let status = mirror.status.clone().unwrap_or_default();
            self.writer.observe(
                &PodUid::new(hash),
                Target {
                    uid,
                    namespace,
                    name,
                },
                &status,
            );
        }
        self.changed.notify_one();
    }

    /// The API no longer has a mirror.
    pub fn deleted(&self, mirror: &Pod) {
        self.lock().present.remove(&full_name(mirror));
        self.changed.notify_one();
    }

    /// A complete list begins.
    pub fn begin_list(&self) {
        self.lock()
            .present
            .values_mut()
            .for_each(|m| m.listed = false);
    }

    /// A complete list has ended: mirrors that were not in it are gone.
    pub fn end_list(&self) {
        let mut state = self.lock();
        state.present.retain(|_, m| m.listed);
        state.synced = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Makes and deletes mirrors as needed, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut retry: Option<Duration> = None;
        loop {
            let pause = retry.unwrap_or(Duration::from_secs(365 * 24 * 3600));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            retry = match self.reconcile().await {
                Ok(()) => None,
                Err(error) => {
                    tracing::warn!(%error, "keep mirror pods; it will be tried again");
                    let longer = retry.unwrap_or(Duration::from_millis(250)) * 2;
                    Some(
                        longer
                            .min(Duration::from_secs(10))
                            .mul_f64(rand::random_range(0.75..1.25)),
                    )
                }
            };
        }
    }

    async fn reconcile(&self) -> Result<(), kube::Error> {
        let (wanted, present) = {
            let state = self.lock();
            if !state.synced {
                return Ok(());
            }
            (state.wanted.clone(), state.present.clone())
        };
        for (name, mirror) in &present {
            let current = wanted
                .get(name)
                .is_some_and(|pod| pod.annotation(ANNOTATION_HASH) == Some(mirror.hash.as_str()));
            if !current || mirror.deleting {
                self.delete(name, mirror).await?;
            }
        }
        for (name, pod) in &wanted {
            if !present.contains_key(name) {
                self.create(name, pod).await?;
            }
        }
        Ok(())
    }

    async fn create(&self, name: &FullName, pod: &Pod) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node_uid = nodes
            .get_opt(&self.node_name)
            .await?
            .and_then(|n| n.metadata.uid);
        let mut mirror = pod.clone();
        let hash = pod
            .annotation(ANNOTATION_HASH)
            .unwrap_or_default()
            .to_owned();
        mirror.metadata.uid = None;
        mirror
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(ANNOTATION_MIRROR.into(), hash);
        mirror.metadata.owner_references = node_uid.map(|uid| {
            vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: self.node_name.clone(),
                uid,
                controller: Some(true),
                ..OwnerReference::default()
            }]
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &name.0);
        match api.create(&PostParams::default(), &mirror).await {
            Ok(made) => {
                self.seen(&made);
                Ok(())
            }
            // The watch will tell.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, name: &FullName, mirror: &Mirror) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &name.0);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(mirror.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&name.1, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
