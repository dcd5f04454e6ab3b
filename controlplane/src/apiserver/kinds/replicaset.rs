//! ReplicaSet (apps/v1).

use api::field::Path;
use api::names;
use api::object::{child, name, number, set_default};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, immutable, not_negative};
use super::{pod, strategy, workload};

pub const KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: true,
    scale: true,
    subresources: &[],
    schema: "apps/v1.ReplicaSet",
    default,
    prepare_create: strategy::create,
    prepare_update: strategy::update,
    prepare_status_update: strategy::update_status,
    validate,
    validate_update,
    columns: &[
        Column::NAME,
        Column::number("Desired"),
        Column::number("Current"),
        Column::number("Ready"),
        Column::AGE,
        Column::text("Containers").wide(),
        Column::text("Images").wide(),
        Column::text("Selector").wide(),
    ],
    row,
    selectable_fields,
};

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    pod::default_template(child(spec, "template"));
    set_default(spec, "replicas", 1);
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1123_subdomain);
    let (spec, at) = (&object["spec"], Path::new("spec"));
    for field in ["replicas", "minReadySeconds"] {
        not_negative(&mut errors, spec, &format!("/{field}"), &at.child(field));
    }
    workload::validate_template(&mut errors, spec, &at, "deployment");
    workload::validate_replaced_template(&mut errors, spec, &at);
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    immutable(
        &mut errors,
        &new["spec"]["selector"],
        &old["spec"]["selector"],
        &Path::new("spec").child("selector"),
    );
    errors
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |pointer: &str| json!(number(object, pointer).unwrap_or_default());
    let [names, images] = workload::containers(object);
    vec![
        json!(name(object)),
        count("/spec/replicas"),
        count("/status/replicas"),
        count("/status/readyReplicas"),
        strategy::age(object, now),
        names,
        images,
        workload::selector(object),
    ]
}

fn selectable_fields(object: &Value) -> Vec<(&'static str, String)> {
    let mut fields = strategy::namespaced_fields(object);
    fields.push((
        "status.replicas",
        number(object, "/status/replicas")
            .unwrap_or_default()
            .to_string(),
    ));
    fields
}
