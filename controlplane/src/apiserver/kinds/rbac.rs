//! Role, ClusterRole and their bindings (rbac.authorization.k8s.io/v1): who may do what. The API server decides by them.

use api::field::{FieldError, Path};
use api::names::{self, Problems};
use api::object::{list, name, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, invalid, one_of};
use super::strategy;

const GROUP: &str = "rbac.authorization.k8s.io";

pub const ROLE: Kind = Kind {
    group: GROUP,
    version: "v1",
    kind: "Role",
    plural: "roles",
    singular: "role",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "rbac/v1.Role",
    default: strategy::nothing,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate: validate_role,
    validate_update: meta::validate_update,
    columns: &[Column::NAME, Column::text("Created At")],
    row: role_row,
    selectable_fields: strategy::namespaced_fields,
};

pub const CLUSTER_ROLE: Kind = Kind {
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    schema: "rbac/v1.ClusterRole",
    validate: validate_cluster_role,
    selectable_fields: strategy::cluster_fields,
    ..ROLE
};

pub const ROLE_BINDING: Kind = Kind {
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    schema: "rbac/v1.RoleBinding",
    default: default_binding,
    validate: validate_role_binding,
    validate_update: validate_binding_update,
    columns: BINDING_COLUMNS,
    row: binding_row,
    ..ROLE
};

pub const CLUSTER_ROLE_BINDING: Kind = Kind {
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    schema: "rbac/v1.ClusterRoleBinding",
    validate: validate_cluster_role_binding,
    selectable_fields: strategy::cluster_fields,
    ..ROLE_BINDING
};

const BINDING_COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Role"),
    Column::AGE,
    Column::text("Users").wide(),
    Column::text("Groups").wide(),
    Column::text("ServiceAccounts").wide(),
];

/// Names of roles may be anything that can stand in a path.
fn path_segment(name: &str) -> Problems {
    let mut problems = Vec::new();
    if matches!(name, "." | "..") {
        problems.push(format!("may not be '{name}'"));
    }
    for forbidden in ["/", "%"] {
        if name.contains(forbidden) {
            problems.push(format!("may not contain '{forbidden}'"));
        }
    }
    problems
}

fn validate_role(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, path_segment);
    validate_rules(&mut errors, object, true);
    errors
}

fn validate_cluster_role(object: &Value) -> Errors {
    let mut errors = meta::validate(object, false, path_segment);
    validate_rules(&mut errors, object, false);
    errors
}

fn validate_rules(errors: &mut Errors, object: &Value, namespaced: bool) {
    for (index, rule) in list(object, "/rules").iter().enumerate() {
        let at = Path::new("rules").index(index);
        let empty = |field: &str| list(rule, &format!("/{field}")).is_empty();
        let mut require = |field: &str, detail: &str| {
            errors.push(FieldError::required(at.child(field), detail));
        };
        if empty("verbs") {
            require("verbs", "verbs must contain at least one value");
        }
        if empty("nonResourceURLs") {
            if empty("apiGroups") {
                require(
                    "apiGroups",
                    "resource rules must supply at least one api group",
                );
            }
            if empty("resources") {
                require(
                    "resources",
                    "resource rules must supply at least one resource",
                );
            }
            continue;
        }
        let urls = rule["nonResourceURLs"].clone();
        let at = at.child("nonResourceURLs");
        if namespaced {
            let detail = "namespaced rules cannot apply to non-resource URLs";
            errors.push(FieldError::invalid(&at, urls, detail));
        } else if !empty("apiGroups") || !empty("resources") || !empty("resourceNames") {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(FieldError::invalid(&at, urls, detail));
        }
    }
}

fn default_binding(object: &mut Value) {
    let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        if matches!(text(subject, "/kind"), "User" | "Group")
            && text(subject, "/apiGroup").is_empty()
        {
            subject["apiGroup"] = GROUP.into();
        }
    }
    if let Some(reference) = object.get_mut("roleRef").filter(|r| r.is_object())
        && text(reference, "/apiGroup").is_empty()
    {
        reference["apiGroup"] = GROUP.into();
    }
}

fn validate_role_binding(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, path_segment);
    validate_binding(&mut errors, object, &["ClusterRole", "Role"]);
    errors
}

fn validate_cluster_role_binding(object: &Value) -> Errors {
    let mut errors = meta::validate(object, false, path_segment);
    validate_binding(&mut errors, object, &["ClusterRole"]);
    errors
}

fn validate_binding(errors: &mut Errors, object: &Value, roles: &[&str]) {
    let (reference, at) = (&object["roleRef"], Path::new("roleRef"));
    one_of(
        errors,
        text(reference, "/apiGroup"),
        &[GROUP],
        &at.child("apiGroup"),
    );
    one_of(errors, text(reference, "/kind"), roles, &at.child("kind"));
    match text(reference, "/name") {
        "" => errors.push(FieldError::required(at.child("name"), "")),
        role => invalid(errors, &at.child("name"), role, path_segment(role)),
    }
    for (index, subject) in list(object, "/subjects").iter().enumerate() {
        let at = Path::new("subjects").index(index);
        let (group, subject_name) = (text(subject, "/apiGroup"), text(subject, "/name"));
        if subject_name.is_empty() {
            errors.push(FieldError::required(at.child("name"), ""));
        }
        match text(subject, "/kind") {
            "ServiceAccount" => {
                if !subject_name.is_empty() {
                    let problems = names::dns1123_subdomain(subject_name);
                    invalid(errors, &at.child("name"), subject_name, problems);
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(
                        at.child("apiGroup"),
                        group,
                        &[""],
                    ));
                }
                if text(subject, "/namespace").is_empty() {
                    errors.push(FieldError::required(at.child("namespace"), ""));
                }
            }
            "User" | "Group" if group != GROUP => {
                errors.push(FieldError::not_supported(
                    at.child("apiGroup"),
                    group,
                    &[GROUP],
                ));
            }
            "User" | "Group" => {}
            other => {
                let known = ["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(at.child("kind"), other, &known));
            }
        }
    }
}

fn validate_binding_update(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    if new["roleRef"] != old["roleRef"] {
        let detail = "cannot change roleRef";
        errors.push(FieldError::invalid(
            "roleRef",
            new["roleRef"].clone(),
            detail,
        ));
    }
    errors
}

fn role_row(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(text(object, "/metadata/creationTimestamp")),
    ]
}

fn binding_row(object: &Value, now: Timestamp) -> Vec<Value> {
    let reference = &object["roleRef"];
    let role = format!("{}/{}", text(reference, "/kind"), text(reference, "/name"));
    let subjects = |kind: &str| {
        let of_kind = list(object, "/subjects")
            .iter()
            .filter(|s| s["kind"] == kind);
        let names: Vec<String> = of_kind
            .map(|s| match text(s, "/namespace") {
                "" => text(s, "/name").to_owned(),
                namespace => format!("{namespace}/{}", text(s, "/name")),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        json!(name(object)),
        json!(role),
        strategy::age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
