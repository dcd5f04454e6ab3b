//! The ConfigMaps and Secrets that this node's pods refer to: each is watched, by name, while a pod does.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::ids::PodUid;
use crate::pod::PodExt;
use crate::spec::env;
use crate::volumes::payload;
use crate::wakes::Wakes;

/// How long a pod waits for the API to say whether an object exists.
const PATIENCE: Duration = Duration::from_secs(10);

/// An object that a pod refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// A ConfigMap: namespace and name.
    ConfigMap(String, String),
    /// A Secret: namespace and name.
    Secret(String, String),
}

#[derive(Clone)]
enum Found {
    Unknown,
    Absent,
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
}

struct Entry {
    found: watch::Receiver<Found>,
    users: Arc<Mutex<BTreeSet<PodUid>>>,
    task: AbortHandle,
}

/// The objects that pods refer to, as the API has them. Cheap to clone.
#[derive(Clone)]
pub struct ObjectCache {
    client: kube::Client,
    wakes: Wakes,
    entries: Arc<Mutex<HashMap<Reference, Entry>>>,
}

/// What is there of what a pod refers to.
#[derive(Default)]
pub struct Present {
    /// By name.
    pub config_maps: HashMap<String, Arc<ConfigMap>>,
    /// By name.
    pub secrets: HashMap<String, Arc<Secret>>,
    /// The API server hasn't said about these.
    pub unknown: Vec<Reference>,
    /// Changes whenever any of them does.
    pub fingerprint: Vec<String>,
}

impl ObjectCache {
    /// A cache that asks `client`'s API server and wakes pods whose objects change.
    pub fn new(client: kube::Client, wakes: Wakes) -> Self {
        Self {
            client,
            wakes,
            entries: Arc::default(),
        }
    }

    /// Everything that a pod's environment and volumes refer to, and its pull secrets.
    pub fn references(pod: &Pod) -> BTreeSet<Reference> {
        let namespace = pod.namespace().to_owned();
        let (env_maps, env_secrets) = env::references(pod);
        let (volume_maps, volume_secrets) = payload::references(pod);
        let pulls = pod
            .pod_spec()
            .image_pull_secrets
            .iter()
            .flatten()
            .map(|r| r.name.clone());
        let config_maps = env_maps.into_iter().chain(volume_maps);
        let secrets = env_secrets.into_iter().chain(volume_secrets).chain(pulls);
        config_maps
            .map(|name| Reference::ConfigMap(namespace.clone(), name))
            .chain(secrets.map(|name| Reference::Secret(namespace.clone(), name)))
            .collect()
    }

    /// Says what a pod refers to from now on; the watches that it needs are started. An empty set: nothing any more.
    pub fn refer(&self, uid: &PodUid, references: &BTreeSet<Reference>) {
        let mut entries = self.lock();
        for reference in references {
            let entry = entries
                .entry(reference.clone())
                .or_insert_with(|| self.watch(reference));
            users(&entry.users).insert(uid.clone());
        }
        entries.retain(|reference, entry| {
            let mut users = users(&entry.users);
            if !references.contains(reference) {
                users.remove(uid);
            }
            let used = !users.is_empty();
            if !used {
                entry.task.abort();
            }
            used
        });
    }

    /// What is there, as soon as the API server has said so of each.
    pub async fn present(&self, references: &BTreeSet<Reference>) -> Present {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut present = Present::default();
        for reference in references {
            let Some(mut found) = self.lock().get(reference).map(|e| e.found.clone()) else {
                present.unknown.push(reference.clone());
                continue;
            };
            let known = found.wait_for(|f| !matches!(f, Found::Unknown));
            let state = match tokio::time::timeout_at(deadline, known).await {
                Ok(Ok(state)) => state.clone(),
                _ => Found::Unknown,
            };
            present.take(reference, state);
        }
        present
    }

    /// What [`ObjectCache::present`] would find now, in short; it doesn't wait.
    pub fn fingerprint(&self, references: &BTreeSet<Reference>) -> Vec<String> {
        let entries = self.lock();
        let mut present = Present::default();
        for reference in references {
            let state = entries
                .get(reference)
                .map_or(Found::Unknown, |e| e.found.borrow().clone());
            present.take(reference, state);
        }
        present.fingerprint
    }

    fn watch(&self, reference: &Reference) -> Entry {
        let (sender, found) = watch::channel(Found::Unknown);
        let users = Arc::new(Mutex::new(BTreeSet::new()));
        let wake = Wake {
            wakes: self.wakes.clone(),
            users: users.clone(),
        };
        let client = self.client.clone();
        let task = match reference {
            Reference::ConfigMap(namespace, name) => tokio::spawn(follow(
                Api::<ConfigMap>::namespaced(client, namespace),
                name.clone(),
                Found::ConfigMap,
                sender,
                wake,
            )),
            Reference::Secret(namespace, name) => tokio::spawn(follow(
                Api::<Secret>::namespaced(client, namespace),
                name.clone(),
                Found::Secret,
                sender,
                wake,
            )),
        };
        Entry {
            found,
            users,
            task: task.abort_handle(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Reference, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Present {
    fn take(&mut self, reference: &Reference, state: Found) {
        let version = match (reference, state) {
            (Reference::ConfigMap(_, name), Found::ConfigMap(object)) => {
                let version = object.metadata.resource_version.clone();
                self.config_maps.insert(name.clone(), object);
                version
            }
            (Reference::Secret(_, name), Found::Secret(object)) => {
                let version = object.metadata.resource_version.clone();
                self.secrets.insert(name.clone(), object);
                version
            }
            (_, Found::Absent) => None,
            _ => {
                self.unknown.push(reference.clone());
                None
            }
        };
        self.fingerprint.push(version.unwrap_or_default());
    }
}

struct Wake {
    wakes: Wakes,
    users: Arc<Mutex<BTreeSet<PodUid>>>,
}

impl Wake {
    fn all(&self) {
        for uid in users(&self.users).iter() {
            self.wakes.wake(uid);
        }
    }
}

fn users(users: &Mutex<BTreeSet<PodUid>>) -> MutexGuard<'_, BTreeSet<PodUid>> {
    users.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow<K>(
    api: Api<K>,
    name: String,
    found: fn(Arc<K>) -> Found,
    sender: watch::Sender<Found>,
    wake: Wake,
) where
    K: kube::Resource<Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = Box::pin(watcher(api, config).default_backoff());
    let mut listed = false;
    while let Some(event) = events.next().await {
        let state = match event {
            Ok(watcher::Event::Init) => {
                listed = false;
                continue;
            }
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                listed = true;
                found(Arc::new(object))
            }
            Ok(watcher::Event::InitDone) if listed => continue,
            Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => Found::Absent,
            Err(error) => {
                tracing::warn!(name, %error, "watch of an object that a pod refers to broke off; it will be tried again");
                continue;
            }
        };
        sender.send_replace(state);
        wake.all();
    }
}
