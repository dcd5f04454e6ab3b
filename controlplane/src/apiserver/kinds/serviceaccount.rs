//! ServiceAccount (core/v1).

use api::names;
use api::object::{list, name};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &["token"],
    schema: "core/v1.ServiceAccount",
    default: strategy::nothing,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update: meta::validate_update,
    columns: &[Column::NAME, Column::text("Secrets"), Column::AGE],
    row,
    selectable_fields: strategy::namespaced_fields,
};

fn validate(object: &Value) -> Errors {
    meta::validate(object, true, names::dns1123_subdomain)
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(list(object, "/secrets").len().to_string()),
        strategy::age(object, now),
    ]
}
