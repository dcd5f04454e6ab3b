//! Garbage collection by ownerReferences.
//!
//! One metadata-only watch a kind keeps a graph of who owns whom. An object goes when none of its owners exists
//! any more. An owner deleted in the foreground waits for those of its dependents that block it; one deleted
//! with `orphan` takes its name off them first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::namespace::collection;
use super::object::{ignore_not_found, is_code};
use super::queue::Queue;
use crate::apiserver::kind::Kind;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// The garbage collector.
pub struct Controller {
    context: Context,
    kinds: &'static [Kind],
    graph: Mutex<Graph>,
}

#[derive(Default)]
struct Graph {
    nodes: HashMap<String, Node>,
    /// Owner's uid to the uids of what it owns.
    dependents: HashMap<String, BTreeSet<String>>,
}

/// What is known of one object.
#[derive(Clone, Debug)]
struct Node {
    kind: usize,
    namespace: String,
    name: String,
    owners: Vec<OwnerReference>,
    deleting: bool,
    finalizers: Vec<String>,
}

impl Controller {
    /// A collector over `kinds`; [`Controller::watch`] feeds it.
    pub fn new(context: Context, kinds: &'static [Kind]) -> Arc<Self> {
        Arc::new(Self {
            context,
            kinds,
            graph: Mutex::default(),
        })
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the metadata of every kind (events have no owners and no dependents) until `shutdown`.
    pub async fn watch(
        self: Arc<Self>,
        client: Client,
        queue: Queue<String>,
        shutdown: CancellationToken,
    ) {
        let mut watches = tokio::task::JoinSet::new();
        for (index, kind) in self.kinds.iter().enumerate() {
            if kind.plural == "events"
                || !["list", "watch", "delete"]
                    .iter()
                    .all(|verb| kind.verbs.contains(verb))
            {
                continue;
            }
            watches.spawn(self.clone().watch_kind(
                index,
                client.clone(),
                queue.clone(),
                shutdown.clone(),
            ));
        }
        while watches.join_next().await.is_some() {}
    }

    async fn watch_kind(
        self: Arc<Self>,
        index: usize,
        client: Client,
        queue: Queue<String>,
        shutdown: CancellationToken,
    ) {
        let kind = &self.kinds[index];
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk(kind.group, kind.version, kind.kind),
            kind.plural,
        );
        let objects = Api::<PartialObjectMeta<DynamicObject>>::all_with(client, &resource);
        let events = watcher(objects, watcher::Config::default()).default_backoff();
        futures::pin_mut!(events);
        let mut listed = BTreeSet::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    tracing::debug!(kind = kind.kind, %error, "watch interrupted, will resume")
                }
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    listed.insert(object.metadata.uid.clone().unwrap_or_default());
                    self.seen(index, object, &queue);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    let gone: Vec<String> = {
                        let graph = self.graph();
                        let of_kind = graph.nodes.iter().filter(|(_, node)| node.kind == index);
                        of_kind
                            .map(|(uid, _)| uid.clone())
                            .filter(|uid| !listed.contains(uid))
                            .collect()
                    };
                    gone.iter().for_each(|uid| self.gone(uid, &queue));
                }
                Some(Ok(watcher::Event::Apply(object))) => self.seen(index, object, &queue),
                Some(Ok(watcher::Event::Delete(object))) => {
                    self.gone(object.metadata.uid.as_deref().unwrap_or_default(), &queue)
                }
            }
        }
    }

    fn seen(&self, kind: usize, object: PartialObjectMeta<DynamicObject>, queue: &Queue<String>) {
        let ObjectMeta {
            uid: Some(uid),
            name: Some(name),
            namespace,
            owner_references,
            finalizers,
            deletion_timestamp,
            ..
        } = object.metadata
        else {
            return;
        };
        let node = Node {
            kind,
            namespace: namespace.unwrap_or_default(),
            name,
            owners: owner_references.unwrap_or_default(),
            deleting: deletion_timestamp.is_some(),
            finalizers: finalizers.unwrap_or_default(),
        };
        if !node.owners.is_empty() || node.deleting {
            queue.add(uid.clone());
        }
        // A dependent that is going, or no longer blocks, may be what an owner waits for.
        node.owners
            .iter()
            .for_each(|owner| queue.add(owner.uid.clone()));
        self.graph().insert(uid, node);
    }

    fn gone(&self, uid: &str, queue: &Queue<String>) {
        let (owners, dependents) = self.graph().remove(uid);
        owners
            .into_iter()
            .chain(dependents)
            .for_each(|uid| queue.add(uid));
    }

    /// Decides about one object.
    pub async fn reconcile(&self, uid: String) -> Result<Option<Duration>, kube::Error> {
        let (node, dependents) = {
            let graph = self.graph();
            let Some(node) = graph.nodes.get(&uid).cloned() else {
                return Ok(None);
            };
            (node, graph.dependents_of(&uid))
        };
        if node.deleting {
            if node.finalizers.iter().any(|f| f == ORPHAN) {
                for (dependent_uid, dependent) in &dependents {
                    self.disown(dependent_uid, dependent, &uid).await?;
                }
                return self.drop_finalizer(&uid, &node, ORPHAN).await;
            }
            if node.finalizers.iter().any(|f| f == FOREGROUND) {
                return self.finish_foreground(&uid, &node, &dependents).await;
            }
            return Ok(None);
        }
        if node.owners.is_empty() {
            return Ok(None);
        }
        self.judge(&uid, &node).await
    }

    /// Deletes the object if none of its owners is left, or if those that are left only wait for it.
    async fn judge(&self, uid: &str, node: &Node) -> Result<Option<Duration>, kube::Error> {
        let (mut solid, mut waiting, mut dangling) = (0, 0, Vec::new());
        for owner in &node.owners {
            match self.find_owner(node, owner).await? {
                Owner::Missing => dangling.push(owner.uid.clone()),
                Owner::Waits => waiting += 1,
                Owner::Lives => solid += 1,
            }
        }
        if solid == 0 && (waiting > 0 || !dangling.is_empty()) {
            let foreground = waiting > 0 && !self.graph().dependents_of(uid).is_empty();
            let policy = if foreground {
                "Foreground"
            } else {
                "Background"
            };
            let options = json!({ "preconditions": { "uid": uid }, "propagationPolicy": policy });
            match self
                .context
                .writer
                .delete_at(self.path(node), &options)
                .await
            {
                Err(error) if is_code(&error, 409) => {} // another object has the name now
                other => drop(other?),
            }
        } else if !dangling.is_empty() {
            let kept: Vec<_> = node
                .owners
                .iter()
                .filter(|owner| !dangling.contains(&owner.uid))
                .collect();
            let patch = json!({ "metadata": { "uid": uid, "ownerReferences": kept } });
            ignore_not_found(self.context.writer.merge_at(self.path(node), &patch).await)?;
        }
        Ok(None)
    }

    async fn find_owner(&self, node: &Node, owner: &OwnerReference) -> Result<Owner, kube::Error> {
        let known = self.graph().nodes.get(&owner.uid).cloned();
        if let Some(known) = known {
            let misplaced = !known.namespace.is_empty() && known.namespace != node.namespace;
            let waits = known.deleting && known.finalizers.iter().any(|f| f == FOREGROUND);
            return Ok(if misplaced {
                Owner::Missing
            } else if waits {
                Owner::Waits
            } else {
                Owner::Lives
            });
        }
        // Not watched yet, or truly gone: the API server knows.
        let Some(kind) = self
            .kinds
            .iter()
            .find(|kind| kind.kind == owner.kind && api_version(kind) == owner.api_version)
        else {
            return Ok(Owner::Lives); // not a kind of ours: whoever serves it collects it
        };
        let path = format!("{}/{}", collection(kind, &node.namespace), owner.name);
        let found = ignore_not_found(self.context.writer.get(&path).await)?;
        let same = found.is_some_and(|object| {
            object.pointer("/metadata/uid").and_then(Value::as_str) == Some(&owner.uid)
        });
        Ok(if same { Owner::Lives } else { Owner::Missing })
    }

    async fn finish_foreground(
        &self,
        uid: &str,
        node: &Node,
        dependents: &[(String, Node)],
    ) -> Result<Option<Duration>, kube::Error> {
        let blocks = |dependent: &Node| {
            dependent
                .owners
                .iter()
                .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
        };
        for (dependent_uid, dependent) in dependents
            .iter()
            .filter(|(_, dependent)| !dependent.deleting)
        {
            self.judge(dependent_uid, dependent).await?;
        }
        if dependents.iter().any(|(_, dependent)| blocks(dependent)) {
            return Ok(None); // the end of the last of them brings the owner back
        }
        self.drop_finalizer(uid, node, FOREGROUND).await
    }

    async fn disown(&self, uid: &str, node: &Node, owner: &str) -> Result<(), kube::Error> {
        let kept: Vec<_> = node
            .owners
            .iter()
            .filter(|reference| reference.uid != owner)
            .collect();
        let patch = json!({ "metadata": { "uid": uid, "ownerReferences": kept } });
        ignore_not_found(self.context.writer.merge_at(self.path(node), &patch).await).map(drop)
    }

    async fn drop_finalizer(
        &self,
        uid: &str,
        node: &Node,
        finalizer: &str,
    ) -> Result<Option<Duration>, kube::Error> {
        let Some(object) = ignore_not_found(self.context.writer.get(&self.path(node)).await)?
        else {
            return Ok(None);
        };
        let current = object
            .pointer("/metadata/finalizers")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let kept: Vec<_> = current.into_iter().filter(|f| f != finalizer).collect();
        let version = object.pointer("/metadata/resourceVersion");
        let patch =
            json!({ "metadata": { "uid": uid, "resourceVersion": version, "finalizers": kept } });
        ignore_not_found(self.context.writer.merge_at(self.path(node), &patch).await)?;
        Ok(None)
    }

    fn path(&self, node: &Node) -> String {
        format!(
            "{}/{}",
            collection(&self.kinds[node.kind], &node.namespace),
            node.name
        )
    }
}

enum Owner {
    Missing,
    /// Being deleted in the foreground: it waits for its dependents to go.
    Waits,
    Lives,
}

fn api_version(kind: &Kind) -> String {
    if kind.group.is_empty() {
        kind.version.to_owned()
    } else {
        format!("{}/{}", kind.group, kind.version)
    }
}

impl Graph {
    fn insert(&mut self, uid: String, node: Node) {
        if let Some(old) = self.nodes.get(&uid) {
            let gone: Vec<_> = old.owners.iter().map(|owner| owner.uid.clone()).collect();
            gone.iter().for_each(|owner| self.unlink(owner, &uid));
        }
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
        }
        self.nodes.insert(uid, node);
    }

    /// Forgets an object; its owners and its dependents.
    fn remove(&mut self, uid: &str) -> (Vec<String>, Vec<String>) {
        let owners: Vec<String> = self.nodes.remove(uid).map_or_else(Vec::new, |node| {
            node.owners.into_iter().map(|owner| owner.uid).collect()
        });
        owners.iter().for_each(|owner| self.unlink(owner, uid));
        (
            owners,
            self.dependents
                .get(uid)
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        )
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> Vec<(String, Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.clone())))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, owners: &[&str]) -> Node {
        let owners = owners
            .iter()
            .map(|uid| OwnerReference {
                uid: (*uid).to_owned(),
                ..OwnerReference::default()
            })
            .collect();
        Node {
            kind: 0,
            namespace: "default".to_owned(),
            name: name.to_owned(),
            owners,
            deleting: false,
            finalizers: Vec::new(),
        }
    }

    #[test]
    fn a_removed_owner_names_its_dependents_and_a_changed_owner_is_relinked() {
        let mut graph = Graph::default();
        graph.insert("a".to_owned(), node("a", &[]));
        graph.insert("b".to_owned(), node("b", &["a"]));
        graph.insert("c".to_owned(), node("c", &["a", "b"]));
        assert_eq!(graph.dependents_of("a").len(), 2);
        graph.insert("c".to_owned(), node("c", &["b"]));
        assert_eq!(graph.remove("a").1, ["b"]);
        assert_eq!(
            graph.remove("b"),
            (vec!["a".to_owned()], vec!["c".to_owned()])
        );
    }
}
