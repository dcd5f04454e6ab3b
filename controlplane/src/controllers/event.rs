//! Events about what a controller did, sent in the background: a full queue drops events, never work.

use std::collections::HashMap;

use kube::{Client, Resource};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::object::{Key, Writer, now_rfc3339, path};

/// Repeats of so many different events are counted instead of sent anew.
const REMEMBERED: usize = 1000;
const QUEUED: usize = 1000;

/// Sends events in the name of one component.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Value>);

/// Event as a kind, for its path.
#[derive(Clone, Debug, Default, serde::Deserialize)]
struct Event {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
}

impl Resource for Event {
    type DynamicType = ();
    type Scope = kube::core::NamespaceResourceScope;
    fn kind(_: &()) -> std::borrow::Cow<'_, str> {
        "Event".into()
    }
    fn group(_: &()) -> std::borrow::Cow<'_, str> {
        "".into()
    }
    fn version(_: &()) -> std::borrow::Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> std::borrow::Cow<'_, str> {
        "events".into()
    }
    fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        &mut self.metadata
    }
}

impl Recorder {
    /// A recorder for `component` (such as "deployment-controller"); its task ends with its last handle.
    pub fn new(client: Client, component: &'static str) -> Self {
        let (sender, mut events) = mpsc::channel::<Value>(QUEUED);
        tokio::spawn(async move {
            let writer = Writer(client);
            let mut sent: HashMap<String, (Key, u64)> = HashMap::new();
            while let Some(mut event) = events.recv().await {
                event["source"] = json!({ "component": component });
                event["reportingComponent"] = json!(component);
                if let Err(error) = send(&writer, &mut sent, event).await {
                    tracing::debug!(%error, "an event was not recorded");
                }
            }
        });
        Self(sender)
    }

    /// An event of type Normal about `object`.
    pub fn normal<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &str, message: String) {
        self.record(object, "Normal", reason, message);
    }

    /// An event of type Warning about `object`.
    pub fn warning<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &str,
        message: String,
    ) {
        self.record(object, "Warning", reason, message);
    }

    fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: &str,
        reason: &str,
        message: String,
    ) {
        let meta = object.meta();
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "namespace": namespace },
            "involvedObject": {
                "apiVersion": K::api_version(&()), "kind": K::kind(&()), "namespace": meta.namespace,
                "name": meta.name, "uid": meta.uid, "resourceVersion": meta.resource_version,
            },
            "type": type_, "reason": reason, "message": message,
        });
        if self.0.try_send(event).is_err() {
            tracing::debug!(reason, "too many events at once, one is dropped");
        }
    }
}

async fn send(
    writer: &Writer,
    sent: &mut HashMap<String, (Key, u64)>,
    mut event: Value,
) -> Result<(), kube::Error> {
    let about = |pointer: &str| {
        event
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let identity = [
        "/involvedObject/uid",
        "/involvedObject/name",
        "/type",
        "/reason",
        "/message",
    ]
    .map(about)
    .join("\u{0}");
    let now = now_rfc3339();
    if let Some((key, count)) = sent.get_mut(&identity) {
        *count += 1;
        let again = json!({ "count": *count, "lastTimestamp": now });
        match writer.merge::<Event>(key, None, &again).await {
            Err(error) if super::object::is_code(&error, 404) => {}
            other => return other.map(drop),
        }
    }
    let key = Key::new(
        &about("/metadata/namespace"),
        &format!("{}.{:016x}", about("/involvedObject/name"), stamp()),
    );
    event["metadata"]["name"] = json!(key.name);
    event["count"] = json!(1);
    event["firstTimestamp"] = json!(now);
    event["lastTimestamp"] = json!(now);
    writer.create::<Event>(&key.namespace, &event).await?;
    tracing::trace!(path = path::<Event>(&key), "event recorded");
    if sent.len() >= REMEMBERED {
        sent.clear();
    }
    sent.insert(identity, (key, 1));
    Ok(())
}

/// What makes an event's name unique: the time, as upstream's names have it.
fn stamp() -> i128 {
    jiff::Timestamp::now().as_nanosecond()
}
