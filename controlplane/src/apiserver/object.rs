//! An object as it is stored and cached: compact JSON, with the little of it that is looked at often beside it.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

use super::kind::Kind;
use crate::store::Revision;

/// What selectors look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    pub namespace: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    pub fields: Box<[(&'static str, String)]>,
}

impl Index {
    pub fn of(kind: &Kind, object: &Value) -> Self {
        let labels = object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten();
        Self {
            namespace: api::object::namespace(object).into(),
            labels: labels
                .map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into()))
                .collect(),
            fields: (kind.selectable_fields)(object).into(),
        }
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(k, _)| **k == *name)
            .map(|(_, v)| &**v)
    }
}

/// One version of an object.
#[derive(Debug)]
pub struct Object {
    pub revision: Revision,
    /// The whole object, `metadata.resourceVersion` included.
    pub json: Bytes,
    pub index: Arc<Index>,
}

impl Object {
    /// The object as a tree. What is cached was written by this server, so it parses; an empty object is what
    /// a damaged store would give.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_else(|_| Value::Object(Map::new()))
    }
}

/// The text before an object's metadata fields, as [`stored`] writes it.
const METADATA: &[u8] = br#""metadata":{"#;

/// An object as the store keeps it: `apiVersion`, `kind` and `metadata` first, and no resource version, which
/// only the store's answer tells.
pub fn stored(object: &Value) -> Bytes {
    let mut text = Vec::with_capacity(2048);
    text.push(b'{');
    for name in ["apiVersion", "kind"] {
        write_field(&mut text, name, &object[name]);
    }
    write_name(&mut text, "metadata");
    text.push(b'{');
    for (name, value) in fields(&object["metadata"]) {
        if name != "resourceVersion" {
            write_field(&mut text, name, value);
        }
    }
    text.push(b'}');
    for (name, value) in fields(object) {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            write_field(&mut text, name, value);
        }
    }
    text.push(b'}');
    text.into()
}

fn fields(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

fn write_field(text: &mut Vec<u8>, name: &str, value: &Value) {
    write_name(text, name);
    write_json(text, value);
}

/// The name of a field, after a comma if it isn't the first.
fn write_name(text: &mut Vec<u8>, name: &str) {
    if text.last() != Some(&b'{') {
        text.push(b',');
    }
    write_json(text, name);
    text.push(b':');
}

fn write_json<T: Serialize + ?Sized>(text: &mut Vec<u8>, value: &T) {
    // Memory takes everything, and a tree of JSON has no key that is no string.
    let _ = serde_json::to_writer(text, value);
}

/// Writes a stored object with its resource version to the end of `out`.
pub fn write_with_revision(out: &mut Vec<u8>, stored: &[u8], revision: Revision) {
    // Group, version and kind hold no quote, so the first match is the object's own metadata.
    let Some(at) = stored
        .windows(METADATA.len())
        .position(|window| window == METADATA)
    else {
        out.extend_from_slice(stored);
        return;
    };
    let (head, tail) = stored.split_at(at + METADATA.len());
    out.extend_from_slice(head);
    out.extend_from_slice(format!(r#""resourceVersion":"{revision}""#).as_bytes());
    if !tail.starts_with(b"}") {
        out.push(b',');
    }
    out.extend_from_slice(tail);
}

/// The object's metadata, made when it is missing.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    field(object, "metadata")
}

/// An object-valued field, made when it is missing or something else.
pub fn field<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let value = &mut object[name];
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object just above"),
    }
}

/// Finalizers of the metadata.
pub fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Now, as the API writes times.
pub fn now() -> String {
    api::time::seconds(jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_revision_goes_into_the_objects_own_metadata() {
        let object = json!({
            "spec": {"template": {"metadata": {"labels": {"metadata": "{"}}}},
            "metadata": {"resourceVersion": "old", "name": "a"},
            "kind": "Deployment", "apiVersion": "apps/v1",
        });
        let mut text = Vec::new();
        write_with_revision(&mut text, &stored(&object), Revision(7));
        let read: Value = serde_json::from_slice(&text).unwrap();
        let mut expected = object;
        expected["metadata"]["resourceVersion"] = "7".into();
        assert_eq!(read, expected);
        assert!(text.starts_with(br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"resourceVersion":"7","name""#));
    }
}
