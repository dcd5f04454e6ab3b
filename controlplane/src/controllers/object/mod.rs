//! What the controllers and the scheduler read of each kind, and how they write.
//!
//! A typed Pod takes 30 kB of heap and these few fields about one, so the local copies hold only what is read.
//! Pod templates pass through as JSON: a field that this program does not know is not lost.

mod facts;

use std::collections::BTreeMap;
use std::fmt;

use api::selector::LabelSelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Client, Resource};
use serde::Deserialize;
use serde_json::{Value, json};

pub use facts::*;

/// Namespace and name; the namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Empty for a cluster-scoped kind.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key of `object`.
    pub fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A controller's label selector: as it was written, and parsed once.
#[derive(Clone, Debug)]
pub struct Selector {
    /// As the API has it, to be passed on.
    pub written: Value,
    parsed: LabelSelector,
}

impl Default for Selector {
    fn default() -> Self {
        Self {
            written: Value::Null,
            parsed: LabelSelector::nothing(),
        }
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Value::deserialize(deserializer)?;
        let parsed = LabelSelector::from_object(&written).map_err(serde::de::Error::custom)?;
        Ok(Self { written, parsed })
    }
}

impl Selector {
    /// Whether it selects what has these labels. An empty selector selects nothing: a controller with one would
    /// take every pod of its namespace.
    pub fn selects(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        !self.parsed.is_empty() && self.parsed.matches(labels.unwrap_or(&NONE))
    }
}

/// The owner that controls an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|owner| owner.controller == Some(true))
}

/// An owner reference that makes `owner` the controller of what carries it.
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> Value {
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "name": owner.meta().name,
        "uid": owner.meta().uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The revision that an answer carries, 0 where it carries none.
pub fn revision(object: &Value) -> u64 {
    object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// The answer was of this HTTP code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Drops "not found": what a deletion or an update of a thing that went meanwhile answers.
pub fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_code(&error, 404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes of objects as JSON.
#[derive(Clone)]
pub struct Writer(pub Client);

impl Writer {
    async fn send(
        &self,
        method: &str,
        path: String,
        content: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let body = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .body(body);
        self.0
            .request(request.map_err(kube::Error::HttpError)?)
            .await
    }

    /// Reads an object, or a list, by its path.
    pub async fn get(&self, path: &str) -> Result<Value, kube::Error> {
        self.0
            .request(
                http::Request::get(path)
                    .body(Vec::new())
                    .map_err(kube::Error::HttpError)?,
            )
            .await
    }

    /// Creates an object of kind `K`.
    pub async fn create<K: Resource<DynamicType = ()>>(
        &self,
        ns: &str,
        object: &Value,
    ) -> Result<Value, kube::Error> {
        self.create_at(collection::<K>(ns), object).await
    }

    /// Sends `object` to a subresource of an object of kind `K`.
    pub async fn create_sub<K: Resource<DynamicType = ()>>(
        &self,
        key: &Key,
        sub: &str,
        object: &Value,
    ) -> Result<Value, kube::Error> {
        self.send(
            "POST",
            format!("{}/{sub}", path::<K>(key)),
            "application/json",
            object,
        )
        .await
    }

    /// Merges `patch` into an object, or into the subresource `sub` of it.
    pub async fn merge<K: Resource<DynamicType = ()>>(
        &self,
        key: &Key,
        sub: Option<&str>,
        patch: &Value,
    ) -> Result<Value, kube::Error> {
        let path = match sub {
            Some(sub) => format!("{}/{sub}", path::<K>(key)),
            None => path::<K>(key),
        };
        self.send("PATCH", path, "application/merge-patch+json", patch)
            .await
    }

    /// Merges `patch` into the object at `path`.
    pub async fn merge_at(&self, path: String, patch: &Value) -> Result<Value, kube::Error> {
        self.send("PATCH", path, "application/merge-patch+json", patch)
            .await
    }

    /// Creates an object in the collection at `path`.
    pub async fn create_at(&self, path: String, object: &Value) -> Result<Value, kube::Error> {
        self.send("POST", path, "application/json", &without_nulls(object))
            .await
    }

    /// Replaces the object at `path`.
    pub async fn replace_at(&self, path: String, object: &Value) -> Result<Value, kube::Error> {
        self.send("PUT", path, "application/json", object).await
    }

    /// Deletes an object if it still has this uid.
    pub async fn delete<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
    ) -> Result<Option<Value>, kube::Error> {
        let options = json!({ "preconditions": { "uid": object.meta().uid }, "propagationPolicy": "Background" });
        self.delete_at(path::<K>(&Key::of(object)), &options).await
    }

    /// Deletes what is at `path` with these DeleteOptions; None if it was gone.
    pub async fn delete_at(
        &self,
        path: String,
        options: &Value,
    ) -> Result<Option<Value>, kube::Error> {
        ignore_not_found(self.send("DELETE", path, "application/json", options).await)
    }
}

fn collection<K: Resource<DynamicType = ()>>(namespace: &str) -> String {
    K::url_path(&(), (!namespace.is_empty()).then_some(namespace))
}

/// The path of one object.
pub fn path<K: Resource<DynamicType = ()>>(key: &Key) -> String {
    format!("{}/{}", collection::<K>(&key.namespace), key.name)
}

/// `object` without the fields that are null: what a pass-through left out is left out, not sent as null.
fn without_nulls(object: &Value) -> Value {
    match object {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(key, value)| (key.clone(), without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// Now, as the API writes times: whole seconds, UTC.
pub fn now_rfc3339() -> String {
    api::time::seconds(jiff::Timestamp::now())
}
