//! All pods of this node: a worker for each, told by the sources what is wanted.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, watch};

use crate::ids::PodUid;
use crate::pod::PodExt;
use crate::shared::Shared;
use crate::worker::stages::Stages;
use crate::worker::{Desired, Stop, Worker};

/// Where a pod comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The API server.
    Api,
    /// A file on this node.
    File,
    /// Only the runtime has it: nobody wants it any more.
    Orphan,
}

struct Handle {
    source: Source,
    desired: watch::Sender<Desired>,
    stages: Stages,
    /// Its worker has ended.
    done: bool,
    /// Its source no longer has it.
    removed: bool,
}

/// The pods of a node. Cheap to clone.
#[derive(Clone)]
pub struct Pods {
    shared: Arc<Shared>,
    handles: Arc<Mutex<HashMap<PodUid, Handle>>>,
    ended: Arc<Notify>,
}

/// A pod, as the node's own API shows it.
pub struct Shown {
    /// The pod, as its source has it.
    pub pod: Arc<Pod>,
    /// How far it got.
    pub stages: Stages,
    /// Whether it is ending.
    pub stopping: bool,
}

impl Pods {
    /// No pods yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            handles: Arc::default(),
            ended: Arc::default(),
        }
    }

    /// Takes in a pod as its source has it now.
    pub fn apply(&self, source: Source, pod: Arc<Pod>) {
        let uid = pod.uid();
        let stop = stop_of(source, &pod);
        let mut handles = self.lock();
        if let Some(handle) = handles.get_mut(&uid) {
            handle.desired.send_modify(|desired| {
                let shorter = match (&desired.stop, &stop) {
                    (Some(old), Some(new)) => new.grace_seconds < old.grace_seconds,
                    (None, Some(_)) => true,
                    _ => false,
                };
                if shorter {
                    desired.stop = stop;
                }
                desired.pod = pod;
            });
            return;
        }
        let stages = Stages::new();
        let (desired, receiver) = watch::channel(Desired { pod, stop });
        handles.insert(
            uid.clone(),
            Handle {
                source,
                desired,
                stages: stages.clone(),
                done: false,
                removed: source == Source::Orphan,
            },
        );
        drop(handles);
        let worker = Worker::new(self.shared.clone(), receiver, stages);
        let pods = self.clone();
        tokio::spawn(async move {
            worker.run().await;
            pods.note_done(&uid);
        });
    }

    /// A source no longer has a pod: it ends, if it hasn't.
    pub fn remove(&self, uid: &PodUid) {
        let mut handles = self.lock();
        let Some(handle) = handles.get_mut(uid) else {
            return;
        };
        handle.removed = true;
        if handle.done {
            handles.remove(uid);
            return;
        }
        handle.desired.send_modify(|desired| {
            let grace = desired
                .pod
                .metadata
                .deletion_grace_period_seconds
                .unwrap_or_else(|| desired.pod.grace_seconds());
            let grace = desired
                .stop
                .as_ref()
                .map_or(grace, |s| s.grace_seconds.min(grace));
            desired.stop = Some(Stop {
                grace_seconds: grace,
                gone: true,
            });
        });
    }

    /// After a complete list from a source: what is not in it is gone.
    pub fn retain(&self, source: Source, present: &HashSet<PodUid>) {
        let absent: Vec<PodUid> = {
            let handles = self.lock();
            let of_source = handles.iter().filter(|(_, handle)| handle.source == source);
            of_source
                .map(|(uid, _)| uid.clone())
                .filter(|uid| !present.contains(uid))
                .collect()
        };
        for uid in absent {
            self.remove(&uid);
        }
    }

    /// Ends what the runtime has and no source wants: pods deleted while the kubelet was away.
    pub fn end_orphans(&self) {
        for uid in self.shared.cache.uids() {
            if self.lock().contains_key(&uid) {
                continue;
            }
            let Some(runtime) = self.shared.cache.pod(&uid) else {
                continue;
            };
            tracing::info!(%uid, pod = %runtime.name, namespace = %runtime.namespace, "ending a pod that nobody wants any more");
            let mut pod = Pod::default();
            pod.metadata.name = Some(runtime.name.to_string());
            pod.metadata.namespace = Some(runtime.namespace.to_string());
            pod.metadata.uid = Some(uid.as_str().to_owned());
            self.apply(Source::Orphan, Arc::new(pod));
        }
    }

    /// All pods, as the node's own API shows them.
    pub fn all(&self) -> Vec<Shown> {
        let handles = self.lock();
        let shown = handles.values().filter(|h| !h.done).map(|handle| {
            let desired = handle.desired.borrow();
            Shown {
                pod: desired.pod.clone(),
                stages: handle.stages.clone(),
                stopping: desired.stop.is_some(),
            }
        });
        shown.collect()
    }

    /// The pod of a name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let handles = self.lock();
        let mut pods = handles
            .values()
            .filter(|h| !h.done)
            .map(|h| h.desired.borrow().pod.clone());
        pods.find(|pod| pod.namespace() == namespace && pod.name() == name)
    }

    /// The UIDs of pods that have a worker.
    pub fn uids(&self) -> HashSet<PodUid> {
        self.lock().keys().cloned().collect()
    }

    /// Stops every pod, each with its own grace period but none longer than `limit`, and waits until nothing of
    /// them is left on the node. Their objects in the API stay.
    pub async fn drain(&self, limit: Duration) {
        let most = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        for handle in self.lock().values() {
            handle.desired.send_modify(|desired| {
                let grace = desired.pod.grace_seconds().min(most);
                desired.stop = Some(Stop {
                    grace_seconds: grace,
                    gone: true,
                });
            });
        }
        loop {
            let ended = self.ended.notified();
            if self.lock().values().all(|handle| handle.done) {
                return;
            }
            ended.await;
        }
    }

    fn note_done(&self, uid: &PodUid) {
        let mut handles = self.lock();
        let removed = handles.get_mut(uid).is_some_and(|handle| {
            handle.done = true;
            handle.removed
        });
        // Until its source says that it is gone, a late word about it must not begin it anew.
        if removed {
            handles.remove(uid);
        }
        drop(handles);
        self.ended.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stop_of(source: Source, pod: &Pod) -> Option<Stop> {
    if source == Source::Orphan {
        return Some(Stop {
            grace_seconds: pod.grace_seconds(),
            gone: true,
        });
    }
    pod.metadata.deletion_timestamp.as_ref()?;
    let grace = pod
        .metadata
        .deletion_grace_period_seconds
        .unwrap_or_else(|| pod.grace_seconds());
    Some(Stop {
        grace_seconds: grace,
        gone: source == Source::File,
    })
}
