//! Deleted namespaces: all that is in one is deleted, then the namespace lets go.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::object::{Key, Namespace, ignore_not_found, path};
use super::queue::Queue;
use crate::apiserver::kind::Kind;

/// Pods end gracefully: how long until what is left is counted again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The namespace controller.
pub struct Controller {
    context: Context,
    namespaces: Arc<Informer<Namespace>>,
    kinds: &'static [Kind],
}

impl Controller {
    /// Empties namespaces of every namespaced kind in `kinds`.
    pub fn new(
        context: Context,
        namespaces: Arc<Informer<Namespace>>,
        kinds: &'static [Kind],
        queue: &Queue<Key>,
    ) -> Self {
        let q = queue.clone();
        namespaces.on_change(move |change| {
            let going = change
                .new
                .iter()
                .filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
            going.for_each(|namespace| q.add(Key::of(&**namespace)));
        });
        Self {
            context,
            namespaces,
            kinds,
        }
    }

    /// Takes a deleted namespace as far towards its end as it goes now.
    pub async fn reconcile(&self, key: Key) -> Result<Option<Duration>, kube::Error> {
        let going = self
            .namespaces
            .get(&key)
            .filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
        if going.is_none() {
            return Ok(None);
        }
        let mut left = Vec::new();
        for kind in self
            .kinds
            .iter()
            .filter(|kind| kind.namespaced && kind.verbs.contains(&"list"))
        {
            let count = self.empty(&key.name, kind).await?;
            if count > 0 {
                left.push(format!(
                    "{} has {count} resource instances",
                    resource_name(kind)
                ));
            }
        }
        if !left.is_empty() {
            self.report(&key, left.join(", ")).await?;
            return Ok(Some(LOOK_AGAIN));
        }
        let at = path::<Namespace>(&key);
        let Some(mut namespace) = ignore_not_found(self.context.writer.get(&at).await)? else {
            return Ok(None);
        };
        namespace["spec"]["finalizers"] = json!([]);
        ignore_not_found(
            self.context
                .writer
                .replace_at(format!("{at}/finalize"), &namespace)
                .await,
        )?;
        Ok(None)
    }

    /// Deletes all of one kind; how many are left.
    async fn empty(&self, namespace: &str, kind: &Kind) -> Result<usize, kube::Error> {
        let collection = collection(kind, namespace);
        let count = |list: &Value| list["items"].as_array().map_or(0, Vec::len);
        if count(&self.context.writer.get(&collection).await?) == 0 {
            return Ok(0);
        }
        self.context
            .writer
            .delete_at(
                collection.clone(),
                &json!({ "propagationPolicy": "Background" }),
            )
            .await?;
        Ok(count(&self.context.writer.get(&collection).await?))
    }

    async fn report(&self, key: &Key, message: String) -> Result<(), kube::Error> {
        let condition = json!({ "type": "NamespaceContentRemaining", "status": "True", "reason": "SomeResourcesRemain",
            "message": format!("Some resources are remaining: {message}"), "lastTransitionTime": super::object::now_rfc3339() });
        let patch = json!({ "status": { "conditions": [condition] } });
        ignore_not_found(
            self.context
                .writer
                .merge::<Namespace>(key, Some("status"), &patch)
                .await,
        )
        .map(drop)
    }
}

/// The path of a kind's objects in a namespace, or of all where it has none.
pub fn collection(kind: &Kind, namespace: &str) -> String {
    let root = if kind.group.is_empty() {
        "api".to_owned()
    } else {
        format!("apis/{}", kind.group)
    };
    let within = if kind.namespaced && !namespace.is_empty() {
        format!("namespaces/{namespace}/")
    } else {
        String::new()
    };
    format!("/{root}/{}/{within}{}", kind.version, kind.plural)
}

fn resource_name(kind: &Kind) -> String {
    if kind.group.is_empty() {
        kind.plural.to_owned()
    } else {
        format!("{}.{}", kind.plural, kind.group)
    }
}
