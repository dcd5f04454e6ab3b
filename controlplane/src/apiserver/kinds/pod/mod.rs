//! Pod (core/v1), and the pod template that workloads carry.

mod container;
mod defaults;
mod row;
mod update;
mod validate;
mod volume;

use api::field::Path;
use api::names;
use api::object::{flag, number, text};
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors};
use super::strategy;

pub use defaults::default_template;
pub use validate::validate_spec;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: true,
    scale: false,
    subresources: &[
        "attach",
        "binding",
        "eviction",
        "exec",
        "log",
        "portforward",
        "proxy",
    ],
    schema: "core/v1.Pod",
    default: defaults::default,
    prepare_create,
    prepare_update,
    prepare_status_update: strategy::update_status,
    validate,
    validate_update: update::validate,
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::text("Status"),
        Column::text("Restarts"),
        Column::AGE,
        Column::text("IP").wide(),
        Column::text("Node").wide(),
        Column::text("Nominated Node").wide(),
        Column::text("Readiness Gates").wide(),
    ],
    row: row::row,
    selectable_fields,
};

fn prepare_create(object: &mut Value) {
    strategy::create(object);
    // A negative grace period was once allowed, and means the shortest.
    if number(object, "/spec/terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        object["spec"]["terminationGracePeriodSeconds"] = 1.into();
    }
    object["status"] = json!({"phase": "Pending", "qosClass": qos_class(object)});
}

fn prepare_update(new: &mut Value, old: &Value) {
    strategy::update(new, old);
}

/// The quality of service that the spec's resources give.
fn qos_class(object: &Value) -> &'static str {
    match serde_json::from_value(object["spec"].clone()) {
        Ok(spec) => api::resources::qos_class(&spec).as_str(),
        // Not a pod spec: validation says why.
        Err(_) => "BestEffort",
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1123_subdomain);
    validate_spec(&mut errors, &object["spec"], &Path::new("spec"));
    errors
}

fn selectable_fields(object: &Value) -> Vec<(&'static str, String)> {
    let mut fields = strategy::namespaced_fields(object);
    for (field, pointer) in [
        ("spec.nodeName", "/spec/nodeName"),
        ("spec.restartPolicy", "/spec/restartPolicy"),
        ("spec.schedulerName", "/spec/schedulerName"),
        ("spec.serviceAccountName", "/spec/serviceAccountName"),
        ("status.phase", "/status/phase"),
        ("status.nominatedNodeName", "/status/nominatedNodeName"),
        ("status.podIP", "/status/podIP"),
    ] {
        fields.push((field, text(object, pointer).to_owned()));
    }
    fields.push((
        "spec.hostNetwork",
        flag(object, "/spec/hostNetwork").to_string(),
    ));
    fields
}

/// The pod's phase is an end.
fn is_finished(object: &Value) -> bool {
    matches!(text(object, "/status/phase"), "Succeeded" | "Failed")
}

/// An init container that keeps running beside the others.
fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// A count that may be absent.
fn count(object: &Value, pointer: &str) -> i64 {
    number(object, pointer).unwrap_or_default()
}
