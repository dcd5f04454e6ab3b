//! Event (core/v1).

use api::field::{FieldError, Path};
use api::names::{self, Problems};
use api::object::{name, namespace, number, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "core/v1.Event",
    default: strategy::nothing,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update: meta::validate_update,
    columns: &[
        Column::text("Last Seen"),
        Column::text("Type"),
        Column::text("Reason"),
        Column::text("Object"),
        Column::text("Subobject").wide(),
        Column::text("Source").wide(),
        Column::text("Message"),
        Column::text("First Seen").wide(),
        Column::number("Count").wide(),
        Column::NAME.wide(),
    ],
    row,
    selectable_fields,
};

/// Events of cluster-scoped objects lie in `default`.
fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, |_| Problems::new());
    errors.extend(meta_name(object));
    let involved = text(object, "/involvedObject/namespace");
    let own = namespace(object);
    let at = Path::new("involvedObject").child("namespace");
    let of_the_cluster = involved.is_empty() && matches!(own, "default" | "kube-system");
    if involved != own && !of_the_cluster {
        errors.push(FieldError::invalid(
            &at,
            involved,
            "does not match event.namespace",
        ));
    }
    errors
}

fn meta_name(object: &Value) -> Errors {
    let mut errors = Vec::new();
    meta::invalid(
        &mut errors,
        &Path::new("metadata").child("name"),
        name(object),
        names::dns1123_subdomain(name(object)),
    );
    errors
}

fn time<'a>(object: &'a Value, pointers: &[&str]) -> Option<&'a str> {
    pointers
        .iter()
        .map(|p| text(object, p))
        .find(|t| !t.is_empty())
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let first = time(object, &["/firstTimestamp", "/eventTime"]);
    let last = time(object, &["/series/lastObservedTime", "/lastTimestamp"]).or(first);
    let kind = text(object, "/involvedObject/kind").to_lowercase();
    let involved = format!("{kind}/{}", text(object, "/involvedObject/name"));
    let count = number(object, "/series/count")
        .or(number(object, "/count"))
        .filter(|c| *c > 0)
        .unwrap_or(1);
    vec![
        json!(api::time::age(last, now)),
        json!(text(object, "/type")),
        json!(text(object, "/reason")),
        json!(involved),
        json!(text(object, "/involvedObject/fieldPath")),
        json!(source(object)),
        json!(text(object, "/message").trim()),
        json!(api::time::age(first, now)),
        json!(count),
        json!(name(object)),
    ]
}

fn source(object: &Value) -> String {
    let component = time(object, &["/source/component", "/reportingComponent"]).unwrap_or_default();
    match time(object, &["/source/host", "/reportingInstance"]) {
        Some(host)
            if text(object, "/source/component").is_empty()
                || !text(object, "/source/host").is_empty() =>
        {
            format!("{component}, {host}")
        }
        _ => component.to_owned(),
    }
}

fn selectable_fields(object: &Value) -> Vec<(&'static str, String)> {
    let mut fields = strategy::namespaced_fields(object);
    let source = time(object, &["/source/component", "/reportingComponent"]).unwrap_or_default();
    fields.push(("source", source.to_owned()));
    for (field, pointer) in [
        ("involvedObject.kind", "/involvedObject/kind"),
        ("involvedObject.namespace", "/involvedObject/namespace"),
        ("involvedObject.name", "/involvedObject/name"),
        ("involvedObject.uid", "/involvedObject/uid"),
        ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
        (
            "involvedObject.resourceVersion",
            "/involvedObject/resourceVersion",
        ),
        ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
        ("reason", "/reason"),
        ("reportingComponent", "/reportingComponent"),
        ("type", "/type"),
    ] {
        fields.push((field, text(object, pointer).to_owned()));
    }
    fields
}
