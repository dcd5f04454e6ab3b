//! What of a pod may change once it exists (`ValidatePodUpdate`).

use api::field::{FieldError, Path};
use api::object::{items_mut, list, number};
use serde_json::Value;

use super::super::meta::{self, Errors};

const RULE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    let at = Path::new("spec");
    for list_name in ["containers", "initContainers"] {
        let pointer = format!("/spec/{list_name}");
        if list(new, &pointer).len() != list(old, &pointer).len() {
            errors.push(FieldError::forbidden(
                at.child(list_name),
                "pod updates may not add or remove containers",
            ));
            return errors;
        }
    }
    let deadline = |object: &Value| number(object, "/spec/activeDeadlineSeconds");
    match (deadline(new), deadline(old)) {
        (Some(now), Some(was)) if now > was => {
            let detail = format!("must be less than or equal to previous value ({was})");
            errors.push(FieldError::invalid(
                at.child("activeDeadlineSeconds"),
                now,
                detail,
            ));
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(
                at.child("activeDeadlineSeconds"),
                Value::Null,
                detail,
            ));
        }
        _ => {}
    }
    let tolerations = list(new, "/spec/tolerations");
    if !list(old, "/spec/tolerations")
        .iter()
        .all(|t| tolerations.iter().any(|n| same_toleration(n, t)))
    {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(at.child("tolerations"), detail));
    }
    if fixed_part(new, old) != old["spec"] {
        errors.push(FieldError::forbidden(at, RULE));
    }
    errors
}

fn same_toleration(a: &Value, b: &Value) -> bool {
    ["key", "operator", "value", "effect"]
        .iter()
        .all(|key| a[*key] == b[*key])
}

/// The new spec with everything that may change set back to the old.
fn fixed_part(new: &Value, old: &Value) -> Value {
    let mut spec = new["spec"].clone();
    let was = &old["spec"];
    for list_name in ["containers", "initContainers"] {
        for (container, before) in
            items_mut(&mut spec, list_name).zip(list(was, &format!("/{list_name}")))
        {
            set(container, before, "image");
        }
    }
    set(&mut spec, was, "activeDeadlineSeconds");
    set(&mut spec, was, "tolerations");
    if number(was, "/terminationGracePeriodSeconds").is_some_and(|s| s < 0)
        && number(&spec, "/terminationGracePeriodSeconds") == Some(1)
    {
        set(&mut spec, was, "terminationGracePeriodSeconds");
    }
    // Gates may only be taken away.
    let gates = list(was, "/schedulingGates");
    if list(&spec, "/schedulingGates")
        .iter()
        .all(|gate| gates.contains(gate))
    {
        set(&mut spec, was, "schedulingGates");
    }
    spec
}

fn set(object: &mut Value, from: &Value, key: &str) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    match from.get(key) {
        Some(value) => {
            map.insert(key.to_owned(), value.clone());
        }
        None => {
            map.remove(key);
        }
    }
}
