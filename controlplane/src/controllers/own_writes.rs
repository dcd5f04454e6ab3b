//! What a controller wrote last for each of its objects, so that it doesn't act on a copy older than its own writes.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::Resource;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::informer::Informer;
use super::object::{Key, revision};

/// Past this time a write that no watch brought is taken to be superseded.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// The last write made for each object of a controller, until the local copy has it.
#[derive(Default)]
pub struct OwnWrites(Mutex<HashMap<Key, (u64, Instant)>>);

impl OwnWrites {
    /// Notes the API's answer to a write that was made for the object `key`.
    pub fn wrote(&self, key: Key, answer: &Value) {
        let mut writes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = writes.get(&key).map_or(0, |(revision, _)| *revision);
        writes.insert(key, (last.max(revision(answer)), Instant::now()));
    }

    /// Whether `copy` holds all that was written for `key`: only then may a reconcile act on it.
    pub fn are_in<K>(&self, copy: &Informer<K>, key: &Key) -> bool
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let mut writes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let awaited = writes
            .get(key)
            .is_some_and(|(revision, at)| !copy.has_seen(*revision) && at.elapsed() < SEEN_WITHIN);
        if !awaited {
            writes.remove(key);
        }
        !awaited
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, key: &Key) {
        let mut writes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writes.remove(key);
    }
}
