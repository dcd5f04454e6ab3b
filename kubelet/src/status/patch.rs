//! The difference of two statuses as a strategic merge patch, so that what others wrote in between is kept.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Lists whose elements a strategic merge patch merges by a key: an element that went must be said to have gone.
const MERGED_BY_IP: [&str; 2] = ["podIPs", "hostIPs"];

/// The patch for `pods/status` that turns `before` into `after`; none if they are equal. It names the pod's UID,
/// so that a successor of the same name is never touched.
pub fn status_patch(uid: &str, before: &PodStatus, after: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(before)), Ok(Value::Object(after))) =
        (serde_json::to_value(before), serde_json::to_value(after))
    else {
        return None;
    };
    let mut changes = Map::new();
    for (key, new) in &after {
        let old = before.get(key);
        if old == Some(new) {
            continue;
        }
        let change = match key.as_str() {
            "conditions" => conditions(old, new),
            list if MERGED_BY_IP.contains(&list) && old.is_some() => replaced(new),
            _ => new.clone(),
        };
        changes.insert(key.clone(), change);
    }
    for key in before.keys().filter(|k| !after.contains_key(*k)) {
        changes.insert(key.clone(), Value::Null);
    }
    if changes.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"uid": uid}, "status": changes}))
}

/// Only the conditions that changed; a field that went is said to be null.
fn conditions(old: Option<&Value>, new: &Value) -> Value {
    let empty = Vec::new();
    let old = old.and_then(Value::as_array).unwrap_or(&empty);
    let new = new.as_array().unwrap_or(&empty);
    let changed = new.iter().filter_map(|condition| {
        let kind = condition.get("type");
        let before = old.iter().find(|c| c.get("type") == kind);
        if before == Some(condition) {
            return None;
        }
        let mut patch = condition.as_object()?.clone();
        for key in before
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::keys)
        {
            if !patch.contains_key(key) {
                patch.insert(key.clone(), Value::Null);
            }
        }
        Some(Value::Object(patch))
    });
    Value::Array(changed.collect())
}

fn replaced(new: &Value) -> Value {
    let mut list = vec![json!({"$patch": "replace"})];
    list.extend(new.as_array().into_iter().flatten().cloned());
    Value::Array(list)
}
