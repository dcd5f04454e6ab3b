//! Secret (core/v1).

use api::field::{FieldError, Path};
use api::names;
use api::object::{child, map, name, set_default, text};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::configmap::{MAX_BYTES, immutable_data};
use super::meta::{self, Errors, immutable, invalid};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "core/v1.Secret",
    default,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update,
    columns: &[
        Column::NAME,
        Column::text("Type"),
        Column::text("Data"),
        Column::AGE,
    ],
    row,
    selectable_fields,
};

/// `stringData` is for writing only: it ends up in `data`.
fn default(object: &mut Value) {
    set_default(object, "type", "Opaque");
    let Some(Value::Object(plain)) = object.as_object_mut().and_then(|o| o.remove("stringData"))
    else {
        return;
    };
    let data = child(object, "data");
    for (key, value) in plain {
        data[&key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
    }
}

/// The keys that a type of Secret must have.
fn required_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    }
}

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
        total += value.as_str().map_or(0, |v| v.len() / 4 * 3);
    }
    if total > MAX_BYTES {
        errors.push(FieldError::too_long("data", MAX_BYTES));
    }
    for key in required_keys(text(object, "/type")) {
        if object["data"][*key].is_null() {
            errors.push(FieldError::required(Path::new("data").key(key), ""));
        }
    }
    if text(object, "/type") == "kubernetes.io/service-account-token"
        && text(
            &object["metadata"]["annotations"],
            "/kubernetes.io~1service-account.name",
        )
        .is_empty()
    {
        let at = Path::new("metadata")
            .child("annotations")
            .key("kubernetes.io/service-account.name");
        errors.push(FieldError::required(at, ""));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    immutable(&mut errors, &new["type"], &old["type"], &Path::new("type"));
    immutable_data(&mut errors, new, old, &["data"]);
    errors
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let entries = map(object, "/data").count();
    vec![
        json!(name(object)),
        object["type"].clone(),
        json!(entries.to_string()),
        strategy::age(object, now),
    ]
}

fn selectable_fields(object: &Value) -> Vec<(&'static str, String)> {
    let mut fields = strategy::namespaced_fields(object);
    fields.push(("type", text(object, "/type").to_owned()));
    fields
}
