//! Writes statuses to the API: one write of a pod at a time, always the newest, and only what changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};
use tokio::sync::watch;

use super::status_patch;
use crate::ids::PodUid;

/// A status that the API server refused, or did not take.
#[derive(Debug, thiserror::Error)]
#[error("patch status of pod {namespace}/{name}: {source}")]
pub struct WriteError {
    namespace: String,
    name: String,
    #[source]
    source: kube::Error,
}

/// How long the first status of a pod waits: most pods run before, and need one write less.
const FIRST_PATIENCE: Duration = Duration::from_millis(30);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Which object shows a pod in the API: itself, or a static pod's mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The object's own UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

struct Entry {
    target: Option<Target>,
    wanted: Arc<PodStatus>,
    written: Arc<PodStatus>,
    version: u64,
    done: watch::Sender<u64>,
    busy: bool,
}

/// The writer; cheap to clone. Each pod's writes run in a task of their own while there is something to write.
#[derive(Clone)]
pub struct StatusWriter {
    client: kube::Client,
    entries: Arc<Mutex<HashMap<PodUid, Entry>>>,
}

impl StatusWriter {
    /// A writer that speaks to `client`'s API server.
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            entries: Arc::default(),
        }
    }

    /// The status last handed in.
    pub fn wanted(&self, uid: &PodUid) -> Option<Arc<PodStatus>> {
        self.lock().get(uid).map(|e| e.wanted.clone())
    }

    /// Says which object shows the pod, and what status the API has of it.
    pub fn observe(&self, uid: &PodUid, target: Target, status: &PodStatus) {
        let mut entries = self.lock();
        let entry = entries
            .entry(uid.clone())
            .or_insert_with(|| Entry::new(status));
        if entry.target.as_ref() == Some(&target) {
            return;
        }
        entry.target = Some(target);
        entry.written = Arc::new(status.clone());
        if entry.version > 0 {
            // What was written was written to another object.
            entry.version += 1;
            drop(entries);
            self.begin(uid, Duration::ZERO);
        }
    }

    /// Hands in the newest status.
    pub fn set(&self, uid: &PodUid, status: PodStatus) {
        let mut entries = self.lock();
        let entry = entries
            .entry(uid.clone())
            .or_insert_with(|| Entry::new(&PodStatus::default()));
        if *entry.wanted == status && entry.version > 0 {
            return;
        }
        let first = status.phase.as_deref() == Some("Pending")
            && entry.written.container_statuses.is_none();
        entry.wanted = Arc::new(status);
        entry.version += 1;
        drop(entries);
        self.begin(
            uid,
            if first {
                FIRST_PATIENCE
            } else {
                Duration::ZERO
            },
        );
    }

    /// Waits until the newest status is written, or its object is gone.
    pub async fn flush(&self, uid: &PodUid) {
        let (version, mut done) = match self.lock().get(uid) {
            Some(entry) if entry.target.is_some() => (entry.version, entry.done.subscribe()),
            _ => return,
        };
        // An error means that the entry is forgotten: nobody will write it any more.
        let _ = done.wait_for(|written| *written >= version).await;
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    fn begin(&self, uid: &PodUid, patience: Duration) {
        let mut entries = self.lock();
        match entries.get_mut(uid) {
            Some(entry) if !entry.busy && entry.target.is_some() => entry.busy = true,
            _ => return,
        }
        drop(entries);
        let (writer, uid) = (self.clone(), uid.clone());
        tokio::spawn(async move {
            if !patience.is_zero() {
                tokio::time::sleep(patience).await;
            }
            writer.write_until_done(&uid).await;
        });
    }

    async fn write_until_done(&self, uid: &PodUid) {
        let mut retry = RETRY_MIN;
        while let Some((target, before, after, version)) = self.next(uid) {
            let outcome = match status_patch(&target.uid, &before, &after) {
                None => Ok(()),
                Some(patch) => self.write(&target, &patch).await,
            };
            match outcome {
                Ok(()) => {
                    retry = RETRY_MIN;
                    self.note_written(uid, &target, &after, version);
                }
                // The object is gone: nothing is left to show.
                Err(WriteError {
                    source: kube::Error::Api(status),
                    ..
                }) if status.code == 404 => {
                    self.note_written(uid, &target, &after, version);
                }
                Err(error) => {
                    tracing::warn!(%error, "will be tried again");
                    tokio::time::sleep(retry.mul_f64(rand::random_range(0.75..1.25))).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// What is to be written; none ends the task, under the same lock that a new status takes.
    fn next(&self, uid: &PodUid) -> Option<(Target, Arc<PodStatus>, Arc<PodStatus>, u64)> {
        let mut entries = self.lock();
        let entry = entries.get_mut(uid)?;
        let pending = *entry.done.borrow() < entry.version;
        match (&entry.target, pending) {
            (Some(target), true) => Some((
                target.clone(),
                entry.written.clone(),
                entry.wanted.clone(),
                entry.version,
            )),
            _ => {
                entry.busy = false;
                None
            }
        }
    }

    fn note_written(&self, uid: &PodUid, target: &Target, status: &Arc<PodStatus>, version: u64) {
        if let Some(entry) = self.lock().get_mut(uid)
            && entry.target.as_ref() == Some(target)
        {
            entry.written = status.clone();
            entry.done.send_replace(version);
        }
    }

    async fn write(&self, target: &Target, patch: &serde_json::Value) -> Result<(), WriteError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &target.namespace);
        let params = PatchParams::default();
        let written = api
            .patch_status(&target.name, &params, &Patch::Strategic(patch))
            .await;
        written.map(drop).map_err(|source| WriteError {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            source,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(status: &PodStatus) -> Self {
        let status = Arc::new(status.clone());
        Self {
            target: None,
            wanted: status.clone(),
            written: status,
            version: 0,
            done: watch::Sender::new(0),
            busy: false,
        }
    }
}
