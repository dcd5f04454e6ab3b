//! Namespace (core/v1).

use api::field::{FieldError, Path};
use api::names;
use api::object::{child, list, name, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{Column, Kind};
use super::meta::{self, Errors, invalid};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    namespaced: false,
    // As upstream: a namespace goes through its finalizer, so there is no deletecollection.
    verbs: &[
        "create", "delete", "get", "list", "patch", "update", "watch",
    ],
    has_status: true,
    scale: false,
    subresources: &["finalize"],
    schema: "core/v1.Namespace",
    default,
    prepare_create,
    prepare_update,
    prepare_status_update: strategy::update_status,
    validate,
    validate_update: meta::validate_update,
    columns: &[Column::NAME, Column::text("Status"), Column::AGE],
    row,
    selectable_fields,
};

/// Selectors find a namespace by this label, so it always has it.
fn default(object: &mut Value) {
    let own_name = name(object).to_owned();
    if !own_name.is_empty() {
        child(child(object, "metadata"), "labels")["kubernetes.io/metadata.name"] = own_name.into();
    }
}

/// The finalizer holds a deleted namespace until the controller has emptied it.
fn prepare_create(object: &mut Value) {
    default(object);
    object["status"] = json!({"phase": "Active"});
    let spec = child(object, "spec");
    if !list(spec, "/finalizers").iter().any(|f| f == "kubernetes") {
        match spec.get_mut("finalizers").and_then(Value::as_array_mut) {
            Some(finalizers) => finalizers.push("kubernetes".into()),
            None => spec["finalizers"] = json!(["kubernetes"]),
        }
    }
}

/// `spec.finalizers` changes through `/finalize` only.
fn prepare_update(new: &mut Value, old: &Value) {
    strategy::update_without_generation(new, old);
    new["spec"] = old["spec"].clone();
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, false, names::dns1123_label);
    for finalizer in list(object, "/spec/finalizers")
        .iter()
        .filter_map(Value::as_str)
    {
        let at = Path::new("spec").child("finalizers");
        invalid(
            &mut errors,
            &at,
            finalizer,
            names::qualified_name(finalizer),
        );
        if !finalizer.contains('/') && finalizer != "kubernetes" && finalizer != "orphan" {
            errors.push(FieldError::invalid(
                &at,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errors
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(text(object, "/status/phase")),
        strategy::age(object, now),
    ]
}

fn selectable_fields(object: &Value) -> Vec<(&'static str, String)> {
    let mut fields = strategy::cluster_fields(object);
    fields.push(("status.phase", text(object, "/status/phase").to_owned()));
    fields
}
