//! Who is to look at its pod again. Any number of wakes before a worker looks are one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::ids::PodUid;

/// The pod workers that listen, by pod.
#[derive(Clone, Default)]
pub struct Wakes {
    workers: Arc<Mutex<HashMap<PodUid, Arc<Notify>>>>,
}

impl Wakes {
    /// Registers a pod's worker; the same one again if it is registered already.
    pub fn register(&self, uid: &PodUid) -> Arc<Notify> {
        self.lock().entry(uid.clone()).or_default().clone()
    }

    /// Ends a registration: the pod is done.
    pub fn forget(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    /// Has the pod looked at again, soon.
    pub fn wake(&self, uid: &PodUid) {
        if let Some(worker) = self.lock().get(uid) {
            worker.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Arc<Notify>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
