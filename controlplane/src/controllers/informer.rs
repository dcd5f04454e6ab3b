//! One watch a kind, shared by all controllers: a local copy of what they read, and a call for every change.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::object::Key;

/// A change of one object: `old` is missing when it was created, `new` when it was deleted.
pub struct Change<K> {
    /// As it was known before.
    pub old: Option<Arc<K>>,
    /// As it is now.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The old and the new object, whichever exist: what a handler looks at to find the keys it must add.
    pub fn both(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// The local copy of all objects of a kind.
pub struct Informer<K> {
    objects: RwLock<HashMap<Key, Arc<K>>>,
    handlers: RwLock<Vec<Handler<K>>>,
    seen: AtomicU64,
    synced: watch::Sender<bool>,
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// An informer that has seen nothing; [`Informer::run`] fills it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            objects: RwLock::default(),
            handlers: RwLock::default(),
            seen: AtomicU64::new(0),
            synced: watch::Sender::new(false),
        })
    }

    /// Calls `handler` for every change from now on. It runs in the watch's task and must only add keys.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.handlers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(handler));
    }

    /// The object, if it exists.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    /// All objects for which `wanted` holds.
    pub fn list(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects
            .values()
            .filter(|object| wanted(object))
            .cloned()
            .collect()
    }

    /// Whether this copy holds the write that was answered with `revision`. A controller that acts on a copy
    /// older than its own last write would repeat it; the event that brings the write also brings it back.
    pub fn has_seen(&self, revision: u64) -> bool {
        self.seen.load(Ordering::Acquire) >= revision
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Lists and watches until `shutdown`; relists after 410 and errors, with backoff.
    pub async fn run(
        self: Arc<Self>,
        client: Client,
        config: watcher::Config,
        shutdown: CancellationToken,
    ) {
        let events = watcher(Api::<K>::all(client), config).default_backoff();
        futures::pin_mut!(events);
        let mut listed: Option<HashMap<Key, Arc<K>>> = None;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted, will resume")
                }
                Some(Ok(watcher::Event::Init)) => listed = Some(HashMap::new()),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    let (key, object) = self.take_in(object);
                    listed.get_or_insert_default().insert(key, object);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    self.replace(listed.take().unwrap_or_default());
                    self.synced.send_replace(true);
                }
                Some(Ok(watcher::Event::Apply(object))) => {
                    let (key, object) = self.take_in(object);
                    self.set(key, Some(object));
                }
                Some(Ok(watcher::Event::Delete(object))) => {
                    let (key, _) = self.take_in(object);
                    self.set(key, None);
                }
            }
        }
    }

    fn take_in(&self, mut object: K) -> (Key, Arc<K>) {
        object.meta_mut().managed_fields = None;
        let key = Key::of(&object);
        if let Some(revision) = object
            .meta()
            .resource_version
            .as_deref()
            .and_then(|v| v.parse().ok())
        {
            self.seen.fetch_max(revision, Ordering::AcqRel);
        }
        (key, Arc::new(object))
    }

    fn set(&self, key: Key, new: Option<Arc<K>>) {
        let old = {
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            match &new {
                Some(object) => objects.insert(key, object.clone()),
                None => objects.remove(&key),
            }
        };
        self.tell(&Change { old, new });
    }

    fn replace(&self, listed: HashMap<Key, Arc<K>>) {
        let gone: Vec<Key> = {
            let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
            objects
                .keys()
                .filter(|key| !listed.contains_key(*key))
                .cloned()
                .collect()
        };
        gone.into_iter().for_each(|key| self.set(key, None));
        listed
            .into_iter()
            .for_each(|(key, object)| self.set(key, Some(object)));
    }

    fn tell(&self, change: &Change<K>) {
        self.handlers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .for_each(|handler| handler(change));
    }
}
