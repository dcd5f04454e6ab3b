//! What happens to an object's status and generation on its way into the store.

use api::object::{child, name, namespace, number};
use serde_json::Value;

/// For kinds without defaults, status or generation.
pub fn nothing(_: &mut Value) {}

/// For kinds where an update is taken as it comes.
pub fn nothing_on_update(_: &mut Value, _: &Value) {}

/// Only the controller of a kind reports its status, and its first generation is 1.
pub fn create(object: &mut Value) {
    object["status"] = Value::Object(serde_json::Map::new());
    child(object, "metadata")["generation"] = 1.into();
}

/// An update of the main resource leaves the status alone; a changed spec is a new generation.
pub fn update(new: &mut Value, old: &Value) {
    new["status"] = old["status"].clone();
    let generation = number(old, "/metadata/generation").unwrap_or_default();
    let changed = new["spec"] != old["spec"];
    child(new, "metadata")["generation"] = (generation + i64::from(changed)).into();
}

/// Like [`update`], for kinds that count no generations.
pub fn update_without_generation(new: &mut Value, old: &Value) {
    new["status"] = old["status"].clone();
}

/// An update of `/status` changes metadata and status only.
pub fn update_status(new: &mut Value, old: &Value) {
    let (Some(fields), Some(old_fields)) = (new.as_object_mut(), old.as_object()) else {
        return;
    };
    fields.retain(|key, _| {
        matches!(key.as_str(), "metadata" | "status") || old_fields.contains_key(key)
    });
    for (key, value) in old_fields {
        if key != "metadata" && key != "status" {
            fields.insert(key.clone(), value.clone());
        }
    }
    let old_meta = &old["metadata"];
    for key in ["generation", "ownerReferences"] {
        let meta = child(new, "metadata");
        match old_meta.get(key) {
            Some(value) => meta[key] = value.clone(),
            None => {
                meta.as_object_mut().map(|m| m.remove(key));
            }
        }
    }
}

/// What every namespaced kind can be selected by.
pub fn namespaced_fields(object: &Value) -> Vec<(&'static str, String)> {
    vec![
        ("metadata.name", name(object).to_owned()),
        ("metadata.namespace", namespace(object).to_owned()),
    ]
}

/// What every cluster-scoped kind can be selected by.
pub fn cluster_fields(object: &Value) -> Vec<(&'static str, String)> {
    vec![("metadata.name", name(object).to_owned())]
}

/// The cell of the object's age.
pub fn age(object: &Value, now: jiff::Timestamp) -> Value {
    api::time::age(
        object
            .pointer("/metadata/creationTimestamp")
            .and_then(Value::as_str),
        now,
    )
    .into()
}
