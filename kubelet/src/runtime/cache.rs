//! The one place where the kubelet keeps what the runtime has: filled by replies, by events, and by a relist.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cri_api::v1;
use tokio::sync::Notify;

use super::view::{Container, PodRuntime, Sandbox};
use super::{Cri, Error, labels, last_words};
use crate::ids::PodUid;
use crate::wakes::Wakes;

/// What the runtime has of every pod. Cheap to clone.
#[derive(Clone)]
pub struct RuntimeCache {
    cri: Cri,
    wakes: Wakes,
    pods: Arc<Mutex<HashMap<PodUid, PodRuntime>>>,
    changed: Arc<Notify>,
}

impl RuntimeCache {
    /// An empty cache; [`RuntimeCache::relist`] fills it.
    pub fn new(cri: Cri, wakes: Wakes) -> Self {
        Self {
            cri,
            wakes,
            pods: Arc::default(),
            changed: Arc::default(),
        }
    }

    /// A copy of what the runtime has of a pod.
    pub fn pod(&self, uid: &PodUid) -> Option<PodRuntime> {
        self.lock().get(uid).cloned()
    }

    /// The pods of which the runtime has something.
    pub fn uids(&self) -> Vec<PodUid> {
        self.lock().keys().cloned().collect()
    }

    /// Runs `read` over every pod, under the lock: it must be quick.
    pub fn for_each(&self, mut read: impl FnMut(&PodRuntime)) {
        self.lock().values().for_each(&mut read);
    }

    /// The container of an id, wherever it is.
    pub fn container(&self, id: &str) -> Option<Container> {
        let pods = self.lock();
        pods.values()
            .flat_map(|p| &p.containers)
            .find(|c| c.id == id)
            .cloned()
    }

    /// Is notified after each change of any pod.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Makes room for a pod, so that events about it are heeded.
    pub fn expect(&self, uid: &PodUid, namespace: &str, name: &str) {
        self.lock()
            .entry(uid.clone())
            .or_insert_with(|| PodRuntime::new(uid.clone(), namespace, name));
    }

    /// Drops what is known of a pod that is done.
    pub fn forget(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    /// Takes in a container's present status, as the runtime has it now.
    pub async fn refresh_container(
        &self,
        uid: &PodUid,
        sandbox_id: &str,
        id: &str,
    ) -> Result<(), Error> {
        let status = self.cri.container_status(id).await?;
        self.merge(uid, None, std::slice::from_ref(&status), sandbox_id);
        Ok(())
    }

    /// Takes in a sandbox's present status.
    pub async fn refresh_sandbox(&self, uid: &PodUid, id: &str) -> Result<(), Error> {
        let reply = self.cri.pod_sandbox_status(id).await?;
        self.merge(uid, reply.status.as_ref(), &reply.containers_statuses, id);
        Ok(())
    }

    /// Notes that a container is removed.
    pub fn removed_container(&self, uid: &PodUid, id: &str) {
        self.change(uid, |pod| pod.remove_container(id));
    }

    /// Notes that a sandbox, with what was in it, is removed.
    pub fn removed_sandbox(&self, uid: &PodUid, id: &str) {
        self.change(uid, |pod| pod.remove_sandbox(id));
    }

    /// Takes in one event of the runtime's (CRI GetContainerEvents).
    pub async fn take_event(&self, event: v1::ContainerEventResponse) {
        let deleted = event.container_event_type() == v1::ContainerEventType::ContainerDeletedEvent;
        let sandbox = event.pod_sandbox_status.as_ref();
        let owner = sandbox.and_then(owner_of_sandbox).or_else(|| {
            let pods = self.lock();
            let has = |p: &&PodRuntime| {
                p.containers.iter().any(|c| c.id == event.container_id)
                    || p.sandboxes.iter().any(|s| s.id == event.container_id)
            };
            pods.values().find(has).map(|p| p.uid.clone())
        });
        let Some(uid) = owner else {
            return;
        };
        let sandbox_id = sandbox.map(|s| s.id.as_str()).unwrap_or_default();
        if deleted {
            self.change(&uid, |pod| pod.remove_container(&event.container_id));
        } else {
            self.merge(&uid, sandbox, &event.containers_statuses, sandbox_id);
        }
        let told = event
            .containers_statuses
            .iter()
            .any(|s| s.id == event.container_id);
        if !deleted && !told && event.container_id != sandbox_id {
            // A runtime that tells which container, but not how it is.
            if let Err(error) = self
                .refresh_container(&uid, sandbox_id, &event.container_id)
                .await
            {
                tracing::debug!(container = event.container_id, %error, "container of an event has no status");
            }
        }
    }

    /// Asks the runtime for everything it has. What it no longer has is forgotten.
    pub async fn relist(&self) -> Result<(), Error> {
        // What is made while the lists are on their way is in neither, and stays.
        let known = self.known();
        let sandboxes = self
            .cri
            .list_pod_sandbox(v1::ListPodSandboxRequest::default())
            .await?;
        let containers = self
            .cri
            .list_containers(v1::ListContainersRequest::default())
            .await?;
        let mut present: BTreeSet<String> = BTreeSet::new();
        for item in &sandboxes.items {
            let Some(uid) = item.labels.get(labels::POD_UID) else {
                continue;
            };
            let uid = PodUid::new(uid.as_str());
            let label = |key| item.labels.get(key).map(String::as_str).unwrap_or_default();
            self.expect(&uid, label(labels::POD_NAMESPACE), label(labels::POD_NAME));
            present.insert(item.id.clone());
            self.tolerate(self.refresh_sandbox(&uid, &item.id).await)?;
        }
        for item in &containers.containers {
            let Some(uid) = item.labels.get(labels::POD_UID) else {
                continue;
            };
            let uid = PodUid::new(uid.as_str());
            let label = |key| item.labels.get(key).map(String::as_str).unwrap_or_default();
            self.expect(&uid, label(labels::POD_NAMESPACE), label(labels::POD_NAME));
            present.insert(item.id.clone());
            self.tolerate(
                self.refresh_container(&uid, &item.pod_sandbox_id, &item.id)
                    .await,
            )?;
        }
        for (uid, object) in known {
            match object {
                Object::Container(id) if !present.contains(&id) => {
                    self.removed_container(&uid, &id)
                }
                Object::Sandbox(id) if !present.contains(&id) => self.removed_sandbox(&uid, &id),
                _ => {}
            }
        }
        Ok(())
    }

    /// Something removed between the list and the question about it is no error.
    fn tolerate(&self, outcome: Result<(), Error>) -> Result<(), Error> {
        match outcome {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn known(&self) -> Vec<(PodUid, Object)> {
        let mut known = Vec::new();
        self.for_each(|pod| {
            let sandboxes = pod.sandboxes.iter().map(|s| Object::Sandbox(s.id.clone()));
            let containers = pod
                .containers
                .iter()
                .map(|c| Object::Container(c.id.clone()));
            known.extend(
                sandboxes
                    .chain(containers)
                    .map(|object| (pod.uid.clone(), object)),
            );
        });
        known
    }

    fn merge(
        &self,
        uid: &PodUid,
        sandbox: Option<&v1::PodSandboxStatus>,
        containers: &[v1::ContainerStatus],
        sandbox_id: &str,
    ) {
        let known_exits: Vec<String> = self.pod(uid).map_or_else(Vec::new, |p| {
            p.containers
                .into_iter()
                .filter(|c| c.exit().is_some())
                .map(|c| c.id)
                .collect()
        });
        // The last words are read once, when the exit becomes known.
        let containers: Vec<Container> = containers
            .iter()
            .filter(|status| !known_exits.contains(&status.id))
            .map(|status| Container::from_cri(status, sandbox_id, last_words::read(status)))
            .collect();
        self.change(uid, |pod| {
            let mut news = sandbox.is_some_and(|s| pod.merge_sandbox(Sandbox::from_cri(s)));
            for container in containers {
                news |= pod.merge_container(container);
            }
            news
        });
    }

    fn change(&self, uid: &PodUid, apply: impl FnOnce(&mut PodRuntime) -> bool) {
        let news = self.lock().get_mut(uid).is_some_and(apply);
        if news {
            self.wakes.wake(uid);
            self.changed.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, PodRuntime>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Object {
    Sandbox(String),
    Container(String),
}

fn owner_of_sandbox(status: &v1::PodSandboxStatus) -> Option<PodUid> {
    let from_label = status.labels.get(labels::POD_UID).map(String::as_str);
    let uid = from_label.or_else(|| status.metadata.as_ref().map(|m| m.uid.as_str()))?;
    (!uid.is_empty()).then(|| PodUid::new(uid))
}
