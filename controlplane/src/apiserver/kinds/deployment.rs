//! Deployment (apps/v1).

use api::field::{FieldError, Path};
use api::names;
use api::object::{child, name, number, set_default, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, immutable, not_negative};
use super::{pod, strategy, workload};

pub const KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: true,
    scale: true,
    subresources: &[],
    schema: "apps/v1.Deployment",
    default,
    prepare_create: strategy::create,
    prepare_update,
    prepare_status_update: strategy::update_status,
    validate,
    validate_update,
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::number("Up-to-date"),
        Column::number("Available"),
        Column::AGE,
        Column::text("Containers").wide(),
        Column::text("Images").wide(),
        Column::text("Selector").wide(),
    ],
    row,
    selectable_fields: strategy::namespaced_fields,
};

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    pod::default_template(child(spec, "template"));
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    let strategy = child(spec, "strategy");
    if text(strategy, "/type").is_empty() {
        strategy["type"] = "RollingUpdate".into();
    }
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set_default(rolling, "maxUnavailable", "25%");
        set_default(rolling, "maxSurge", "25%");
    }
}

/// Annotations that ask for a rollback or pause count as spec too: upstream bumps the generation for them.
fn prepare_update(new: &mut Value, old: &Value) {
    strategy::update(new, old);
    if new["spec"] == old["spec"]
        && new["metadata"]["annotations"] != old["metadata"]["annotations"]
    {
        let generation = number(old, "/metadata/generation").unwrap_or_default();
        new["metadata"]["generation"] = (generation + 1).into();
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1123_subdomain);
    let (spec, at) = (&object["spec"], Path::new("spec"));
    for field in [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        not_negative(&mut errors, spec, &format!("/{field}"), &at.child(field));
    }
    let (deadline, ready) = (
        number(spec, "/progressDeadlineSeconds"),
        number(spec, "/minReadySeconds").unwrap_or(0),
    );
    if let Some(deadline) = deadline.filter(|d| *d <= ready) {
        let at = at.child("progressDeadlineSeconds");
        errors.push(FieldError::invalid(
            at,
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
    workload::validate_template(&mut errors, spec, &at, "deployment");
    workload::validate_replaced_template(&mut errors, spec, &at);
    validate_strategy(&mut errors, &spec["strategy"], &at.child("strategy"));
    errors
}

fn validate_strategy(errors: &mut Errors, strategy: &Value, at: &Path) {
    let rolling = &strategy["rollingUpdate"];
    let at_rolling = at.child("rollingUpdate");
    match text(strategy, "/type") {
        "Recreate" => {
            if !rolling.is_null() {
                errors.push(FieldError::forbidden(
                    at_rolling,
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        "RollingUpdate" => {
            for field in ["maxUnavailable", "maxSurge"] {
                int_or_percent(errors, &rolling[field], &at_rolling.child(field));
            }
            if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
                let at = at_rolling.child("maxUnavailable");
                errors.push(FieldError::invalid(
                    at,
                    rolling["maxUnavailable"].clone(),
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
            if percentage(&rolling["maxUnavailable"]).is_some_and(|p| p > 100) {
                let at = at_rolling.child("maxUnavailable");
                errors.push(FieldError::invalid(
                    at,
                    rolling["maxUnavailable"].clone(),
                    "must not be greater than 100%",
                ));
            }
        }
        other => errors.push(FieldError::not_supported(
            at.child("type"),
            other,
            &["Recreate", "RollingUpdate"],
        )),
    }
}

/// A count of pods, or a share of them.
pub fn int_or_percent(errors: &mut Errors, value: &Value, at: &Path) {
    match value {
        Value::String(text) => meta::invalid(errors, at, text, names::percent(text)),
        value => {
            if let Some(count) = value.as_i64().filter(|c| *c < 0) {
                errors.push(FieldError::invalid(at, count, meta::NOT_NEGATIVE));
            }
        }
    }
}

fn percentage(value: &Value) -> Option<u64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

fn is_zero(value: &Value) -> bool {
    value.as_i64() == Some(0) || percentage(value) == Some(0)
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
    let status = |field: &str| number(&object["status"], field).unwrap_or_default();
    let desired = number(object, "/spec/replicas").unwrap_or_default();
    let [names, images] = workload::containers(object);
    vec![
        json!(name(object)),
        json!(format!("{}/{desired}", status("/readyReplicas"))),
        json!(status("/updatedReplicas")),
        json!(status("/availableReplicas")),
        strategy::age(object, now),
        names,
        images,
        workload::selector(object),
    ]
}
