//! ConfigMap (core/v1).

use api::field::{FieldError, Path};
use api::names;
use api::object::{map, name};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, invalid};
use super::strategy;

/// The sum of all values may not be larger.
pub const MAX_BYTES: usize = 1 << 20;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "core/v1.ConfigMap",
    default: strategy::nothing,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update,
    columns: &[Column::NAME, Column::text("Data"), Column::AGE],
    row,
    selectable_fields: strategy::namespaced_fields,
};

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1123_subdomain);
    let mut total = 0;
    for (key, value) in map(object, "/data") {
        invalid(
            &mut errors,
            &Path::new("data").key(key),
            key,
            names::config_map_key(key),
        );
        if !object["binaryData"][key].is_null() {
            errors.push(FieldError::invalid(
                Path::new("data").key(key),
                key,
                "duplicate of key present in binaryData",
            ));
        }
        total += value.as_str().map_or(0, str::len);
    }
    for (key, value) in map(object, "/binaryData") {
        invalid(
            &mut errors,
            &Path::new("binaryData").key(key),
            key,
            names::config_map_key(key),
        );
        total += value.as_str().map_or(0, |v| v.len() / 4 * 3);
    }
    if total > MAX_BYTES {
        errors.push(FieldError::too_long("", MAX_BYTES));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    immutable_data(&mut errors, new, old, &["data", "binaryData"]);
    errors
}

/// What `immutable: true` forbids, for ConfigMaps and Secrets.
pub fn immutable_data(errors: &mut Errors, new: &Value, old: &Value, fields: &[&str]) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if old["immutable"] != true {
        return;
    }
    for field in std::iter::once(&"immutable").chain(fields) {
        if new[*field] != old[*field] {
            errors.push(FieldError::forbidden(field, DETAIL));
        }
    }
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let entries = map(object, "/data").count() + map(object, "/binaryData").count();
    vec![
        json!(name(object)),
        json!(entries.to_string()),
        strategy::age(object, now),
    ]
}
