//! Pods that nobody would end: those bound to a node that is gone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Context;
use super::informer::Informer;
use super::object::{Key, Node, Pod, path};
use super::queue::Queue;

/// A node may be deleted and register again: its pods wait this long.
const QUARANTINE: Duration = Duration::from_secs(40);

/// The pod garbage collector, by node.
pub struct Controller {
    context: Context,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
}

impl Controller {
    /// Looks at a node's pods when the node goes, and at a pod bound to a node that isn't there.
    pub fn new(
        context: Context,
        pods: Arc<Informer<Pod>>,
        nodes: Arc<Informer<Node>>,
        queue: &Queue<Key>,
    ) -> Self {
        let q = queue.clone();
        nodes.on_change(move |change| {
            if let (Some(node), None) = (&change.old, &change.new) {
                q.add_after(Key::of(&**node), QUARANTINE);
            }
        });
        let (q, all) = (queue.clone(), nodes.clone());
        pods.on_change(move |change| {
            let node =
                |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|pod| pod.spec.node_name.clone());
            if let (None, Some(name)) = (node(&change.old), node(&change.new)) {
                let key = Key::new("", &name);
                if all.get(&key).is_none() {
                    q.add_after(key, QUARANTINE);
                }
            }
        });
        Self {
            context,
            pods,
            nodes,
        }
    }

    /// Deletes the pods of a node that is still gone.
    pub async fn reconcile(&self, key: Key) -> Result<Option<Duration>, kube::Error> {
        if self.nodes.get(&key).is_some() {
            return Ok(None);
        }
        for pod in self
            .pods
            .list(|pod| pod.spec.node_name.as_deref() == Some(&key.name))
        {
            let options =
                json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": pod.metadata.uid } });
            self.context
                .writer
                .delete_at(path::<Pod>(&Key::of(&*pod)), &options)
                .await?;
        }
        Ok(None)
    }
}
