//! What the kinds that make pods from a template share.

use api::field::{FieldError, Path};
use api::object::{list, map, text};
use api::selector::LabelSelector;
use serde_json::Value;

use super::meta::{self, Errors};
use super::pod;

/// Selector and template of a workload: the selector is there, selects something, and selects the template's pods.
/// `kind` is the word in the message about an empty selector.
pub fn validate_template(errors: &mut Errors, spec: &Value, at: &Path, kind: &str) {
    let selector = &spec["selector"];
    let at_selector = at.child("selector");
    if selector.is_null() {
        errors.push(FieldError::required(&at_selector, ""));
    } else {
        meta::label_selector(errors, selector, &at_selector);
        if is_empty(selector) {
            errors.push(FieldError::invalid(
                &at_selector,
                selector.clone(),
                format!("empty selector is invalid for {kind}"),
            ));
        }
    }
    let template = &spec["template"];
    let at_template = at.child("template");
    let labels = &template["metadata"]["labels"];
    let selected = LabelSelector::from_object(selector).is_ok_and(|s| s.matches_json(labels));
    if !selector.is_null() && !is_empty(selector) && !selected {
        let shown = if labels.is_null() {
            Value::Null
        } else {
            labels.clone()
        };
        let at = at_template.child("metadata").child("labels");
        errors.push(FieldError::invalid(
            at,
            shown,
            "`selector` does not match template `labels`",
        ));
    }
    meta::labels(
        errors,
        labels,
        &at_template.child("metadata").child("labels"),
    );
    meta::annotations(
        errors,
        &template["metadata"]["annotations"],
        &at_template.child("metadata").child("annotations"),
    );
    pod::validate_spec(errors, &template["spec"], &at_template.child("spec"));
}

/// A template whose pods are replaced when they end: they always restart and have no deadline.
pub fn validate_replaced_template(errors: &mut Errors, spec: &Value, at: &Path) {
    let at = at.child("template").child("spec");
    let policy = text(spec, "/template/spec/restartPolicy");
    if policy != "Always" {
        errors.push(FieldError::not_supported(
            at.child("restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if !spec["template"]["spec"]["activeDeadlineSeconds"].is_null() {
        let at = at.child("activeDeadlineSeconds");
        errors.push(FieldError::forbidden(
            at,
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

fn is_empty(selector: &Value) -> bool {
    map(selector, "/matchLabels").next().is_none() && list(selector, "/matchExpressions").is_empty()
}

/// The container names and images of a template, each joined by commas: two columns of `-o wide`.
pub fn containers(object: &Value) -> [Value; 2] {
    let containers = list(object, "/spec/template/spec/containers");
    let join = |key: &str| {
        containers
            .iter()
            .map(|c| text(c, key))
            .collect::<Vec<_>>()
            .join(",")
    };
    [join("/name").into(), join("/image").into()]
}

/// A selector as `kubectl` prints it.
pub fn selector(object: &Value) -> Value {
    match LabelSelector::from_object(&object["spec"]["selector"]) {
        Ok(selector) if selector.is_empty() => "<none>".into(),
        Ok(selector) => selector.to_string().into(),
        Err(error) => error.to_string().into(),
    }
}
