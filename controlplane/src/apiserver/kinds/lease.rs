//! Lease (coordination.k8s.io/v1).

use api::field::{FieldError, Path};
use api::names;
use api::object::{name, number, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "coordination/v1.Lease",
    default: strategy::nothing,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update: meta::validate_update,
    columns: &[Column::NAME, Column::text("Holder"), Column::AGE],
    row,
    selectable_fields: strategy::namespaced_fields,
};

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1123_subdomain);
    let at = Path::new("spec");
    if let Some(seconds) = number(object, "/spec/leaseDurationSeconds").filter(|s| *s <= 0) {
        errors.push(FieldError::invalid(
            at.child("leaseDurationSeconds"),
            seconds,
            "must be greater than 0",
        ));
    }
    meta::not_negative(
        &mut errors,
        object,
        "/spec/leaseTransitions",
        &at.child("leaseTransitions"),
    );
    errors
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(text(object, "/spec/holderIdentity")),
        strategy::age(object, now),
    ]
}
