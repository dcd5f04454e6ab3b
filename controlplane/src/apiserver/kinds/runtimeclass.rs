//! RuntimeClass (node.k8s.io/v1): the CRI runtime handler that a pod's `runtimeClassName` stands for.

use api::field::{FieldError, Path};
use api::names;
use api::object::{name, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, immutable, invalid};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "node.k8s.io",
    version: "v1",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    short_names: &[],
    categories: &[],
    namespaced: false,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "node/v1.RuntimeClass",
    default: strategy::nothing,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update,
    columns: &[Column::NAME, Column::text("Handler"), Column::AGE],
    row,
    selectable_fields: strategy::cluster_fields,
};

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, false, names::dns1123_subdomain);
    let (handler, at) = (text(object, "/handler"), Path::new("handler"));
    if handler.is_empty() {
        errors.push(FieldError::required(&at, ""));
    } else {
        invalid(&mut errors, &at, handler, names::dns1123_label(handler));
    }
    let selector = &object["scheduling"]["nodeSelector"];
    meta::labels(
        &mut errors,
        selector,
        &Path::new("scheduling").child("nodeSelector"),
    );
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    immutable(
        &mut errors,
        &new["handler"],
        &old["handler"],
        &Path::new("handler"),
    );
    errors
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(text(object, "/handler")),
        strategy::age(object, now),
    ]
}
