//! Rules for metadata, labels and selectors, which all kinds share (`k8s.io/apimachinery/pkg/api/validation`).

use api::field::{FieldError, Path};
use api::names::{self, Problems};
use api::object::{is_terminating, list, map, name, namespace, number, text};
use serde_json::Value;

pub type Errors = Vec<FieldError>;
pub type NameRule = fn(&str) -> Problems;

/// Annotations may hold this many bytes in all.
const ANNOTATIONS_LIMIT: usize = 256 << 10;
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";

/// Everything about `metadata` by itself.
pub fn validate(object: &Value, namespaced: bool, rule: NameRule) -> Errors {
    let at = Path::new("metadata");
    let mut errors = Vec::new();
    let prefix = text(object, "/metadata/generateName");
    if !prefix.is_empty() {
        invalid(
            &mut errors,
            &at.child("generateName"),
            prefix,
            rule(&names::as_prefix(prefix)),
        );
    }
    if name(object).is_empty() {
        errors.push(FieldError::required(
            at.child("name"),
            "name or generateName is required",
        ));
    } else {
        invalid(
            &mut errors,
            &at.child("name"),
            name(object),
            rule(name(object)),
        );
    }
    if namespaced && namespace(object).is_empty() {
        errors.push(FieldError::required(at.child("namespace"), ""));
    } else if namespaced {
        invalid(
            &mut errors,
            &at.child("namespace"),
            namespace(object),
            names::dns1123_label(namespace(object)),
        );
    } else if !namespace(object).is_empty() {
        errors.push(FieldError::forbidden(
            at.child("namespace"),
            "not allowed on this type",
        ));
    }
    labels(
        &mut errors,
        &object["metadata"]["labels"],
        &at.child("labels"),
    );
    annotations(
        &mut errors,
        &object["metadata"]["annotations"],
        &at.child("annotations"),
    );
    owner_references(&mut errors, object, &at.child("ownerReferences"));
    for finalizer in list(object, "/metadata/finalizers")
        .iter()
        .filter_map(Value::as_str)
    {
        invalid(
            &mut errors,
            &at.child("finalizers"),
            finalizer,
            names::qualified_name(finalizer),
        );
    }
    errors
}

/// What of `metadata` may not change.
pub fn validate_update(new: &Value, old: &Value) -> Errors {
    let at = Path::new("metadata");
    let mut errors = Vec::new();
    if is_terminating(old) {
        let known = list(old, "/metadata/finalizers");
        let added: Vec<&str> = list(new, "/metadata/finalizers")
            .iter()
            .filter(|f| !known.contains(f))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden(at.child("finalizers"), detail));
        }
    }
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        immutable(
            &mut errors,
            &new["metadata"][key],
            &old["metadata"][key],
            &at.child(key),
        );
    }
    errors
}

/// Adds one "Invalid value" for each problem.
pub fn invalid(errors: &mut Errors, at: &Path, value: &str, problems: Problems) {
    errors.extend(
        problems
            .into_iter()
            .map(|problem| FieldError::invalid(at, value, problem)),
    );
}

/// Adds an error if the field changed.
pub fn immutable(errors: &mut Errors, new: &Value, old: &Value, at: &Path) {
    if new != old {
        errors.push(FieldError::invalid(at, new.clone(), IMMUTABLE));
    }
}

/// Adds an error if the integer is there and negative.
pub fn not_negative(errors: &mut Errors, object: &Value, pointer: &str, at: &Path) {
    if let Some(value) = number(object, pointer).filter(|v| *v < 0) {
        errors.push(FieldError::invalid(at, value, NOT_NEGATIVE));
    }
}

/// Adds an error unless the string is one of `allowed`; an empty one is not.
pub fn one_of(errors: &mut Errors, value: &str, allowed: &[&str], at: &Path) {
    if !allowed.contains(&value) {
        errors.push(FieldError::not_supported(at, value, allowed));
    }
}

pub fn labels(errors: &mut Errors, labels: &Value, at: &Path) {
    for (key, value) in map(labels, "") {
        invalid(errors, at, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid(errors, at, value, names::label_value(value));
    }
}

pub fn annotations(errors: &mut Errors, annotations: &Value, at: &Path) {
    let mut total = 0;
    for (key, value) in map(annotations, "") {
        total += key.len() + value.as_str().map_or(0, str::len);
        invalid(errors, at, key, names::qualified_name(&key.to_lowercase()));
    }
    if total > ANNOTATIONS_LIMIT {
        errors.push(FieldError::too_long(at, ANNOTATIONS_LIMIT));
    }
}

fn owner_references(errors: &mut Errors, object: &Value, at: &Path) {
    let mut controller: Option<String> = None;
    for (index, reference) in list(object, "/metadata/ownerReferences").iter().enumerate() {
        let at = at.index(index);
        for key in ["apiVersion", "kind", "name", "uid"] {
            if text(reference, &format!("/{key}")).is_empty() {
                errors.push(FieldError::required(at.child(key), "must not be empty"));
            }
        }
        if reference["controller"] == true {
            let this = format!("{}/{}", text(reference, "/kind"), text(reference, "/name"));
            match &controller {
                Some(first) => errors.push(FieldError::invalid(
                    Path::new("metadata").child("ownerReferences"),
                    object["metadata"]["ownerReferences"].clone(),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"),
                )),
                None => controller = Some(this),
            }
        }
    }
}

/// The object form of a label selector.
pub fn label_selector(errors: &mut Errors, selector: &Value, at: &Path) {
    labels(errors, &selector["matchLabels"], &at.child("matchLabels"));
    for (index, requirement) in list(selector, "/matchExpressions").iter().enumerate() {
        let at = at.child("matchExpressions").index(index);
        let (key, operator) = (text(requirement, "/key"), text(requirement, "/operator"));
        let values = list(requirement, "/values");
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                at.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                at.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(FieldError::invalid(
                at.child("operator"),
                operator,
                "not a valid selector operator",
            )),
        }
        invalid(errors, &at.child("key"), key, names::qualified_name(key));
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            invalid(
                errors,
                &at.child("values").index(index),
                value,
                names::label_value(value),
            );
        }
    }
}
