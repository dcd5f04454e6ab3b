//! The paths of a document: each kind's, with the operations that it has.

use serde_json::{Map, Value, json};

use super::super::kind::Kind;
use super::definitions::full_name;
use super::{Form, group_version_kind, root};

/// What a client may send as a patch.
const PATCH_TYPES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Every path of the kinds.
pub fn paths(kinds: &[&Kind], form: Form) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        let root = root(kind);
        let scope = if kind.namespaced {
            "namespaces/{namespace}/"
        } else {
            ""
        };
        let collection = format!("/{root}/{scope}{}", kind.plural);
        if kind.namespaced {
            let everywhere = operations(kind, &[("get", "list")], form);
            paths.insert(
                format!("/{root}/{}", kind.plural),
                path_item(everywhere, &[], form),
            );
        }
        let names: &[&str] = if kind.namespaced { &["namespace"] } else { &[] };
        let many = operations(
            kind,
            &[
                ("get", "list"),
                ("post", "post"),
                ("delete", "deletecollection"),
            ],
            form,
        );
        paths.insert(collection.clone(), path_item(many, names, form));
        let names: &[&str] = if kind.namespaced {
            &["name", "namespace"]
        } else {
            &["name"]
        };
        let item = format!("{collection}/{{name}}");
        let one = [
            ("get", "get"),
            ("put", "put"),
            ("patch", "patch"),
            ("delete", "delete"),
        ];
        paths.insert(
            item.clone(),
            path_item(operations(kind, &one, form), names, form),
        );
        if kind.has_status {
            let status = operations(
                kind,
                &[("get", "get"), ("put", "put"), ("patch", "patch")],
                form,
            );
            paths.insert(format!("{item}/status"), path_item(status, names, form));
        }
    }
    paths
}

fn path_item(mut operations: Map<String, Value>, names: &[&str], form: Form) -> Value {
    let parameters: Vec<Value> = names
        .iter()
        .map(|name| parameter(name, "path", "string", form))
        .collect();
    if !parameters.is_empty() {
        operations.insert("parameters".into(), parameters.into());
    }
    operations.into()
}

fn parameter(name: &str, place: &str, ty: &str, form: Form) -> Value {
    let mut parameter = json!({"name": name, "in": place});
    if place == "path" {
        parameter["required"] = true.into();
    }
    match form {
        Form::V2 => parameter["type"] = ty.into(),
        Form::V3 => parameter["schema"] = json!({"type": ty}),
    }
    parameter
}

/// Operations by HTTP method; the second word is the Kubernetes action.
fn operations(kind: &Kind, methods: &[(&str, &str)], form: Form) -> Map<String, Value> {
    let has = |action: &str| {
        let verb = match action {
            "post" => "create",
            "put" => "update",
            other => other,
        };
        kind.verbs.contains(&verb)
    };
    let methods = methods.iter().filter(|(_, action)| has(action));
    methods
        .map(|(method, action)| ((*method).to_owned(), operation(kind, method, action, form)))
        .collect()
}

fn operation(kind: &Kind, method: &str, action: &str, form: Form) -> Value {
    let own_type = full_name(kind.schema);
    let answer = match action {
        "list" => format!("{own_type}List"),
        "delete" | "deletecollection" => "io.k8s.apimachinery.pkg.apis.meta.v1.Status".to_owned(),
        _ => own_type.clone(),
    };
    let mut operation = json!({
        "responses": {"200": response(&answer, form), "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": group_version_kind(kind, kind.kind),
    });
    let mut query: Vec<&str> = vec!["pretty"];
    match method {
        "post" | "put" | "patch" => query.extend(["dryRun", "fieldManager", "fieldValidation"]),
        "delete" => query.extend(["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
        _ => {}
    }
    if matches!(action, "list" | "deletecollection") {
        query.extend([
            "continue",
            "fieldSelector",
            "labelSelector",
            "limit",
            "resourceVersion",
            "resourceVersionMatch",
        ]);
    }
    if action == "list" {
        query.extend([
            "allowWatchBookmarks",
            "sendInitialEvents",
            "timeoutSeconds",
            "watch",
        ]);
    }
    let mut parameters: Vec<Value> = query
        .into_iter()
        .map(|name| parameter(name, "query", query_type(name), form))
        .collect();
    let (body, types): (&str, &[&str]) = match method {
        "post" | "put" => (&own_type, &["*/*"]),
        "patch" => {
            parameters.push(parameter("force", "query", "boolean", form));
            ("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", PATCH_TYPES)
        }
        "delete" => (
            "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
            &["*/*"],
        ),
        _ => ("", &[]),
    };
    if !body.is_empty() {
        add_body(&mut operation, &mut parameters, body, types, form);
    }
    operation["parameters"] = parameters.into();
    operation
}

fn query_type(name: &str) -> &'static str {
    match name {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
        "watch" | "allowWatchBookmarks" | "sendInitialEvents" => "boolean",
        _ => "string",
    }
}

fn reference(name: &str, form: Form) -> Value {
    json!({"$ref": format!("#{}/{name}", form.types())})
}

fn response(name: &str, form: Form) -> Value {
    match form {
        Form::V2 => json!({"description": "OK", "schema": reference(name, form)}),
        Form::V3 => {
            json!({"description": "OK", "content": {"application/json": {"schema": reference(name, form)}}})
        }
    }
}

fn add_body(
    operation: &mut Value,
    parameters: &mut Vec<Value>,
    name: &str,
    types: &[&str],
    form: Form,
) {
    match form {
        Form::V2 => {
            parameters.push(json!({"name": "body", "in": "body", "schema": reference(name, form)}));
            operation["consumes"] = json!(types);
        }
        Form::V3 => {
            let content: Map<String, Value> = types
                .iter()
                .map(|ty| ((*ty).to_owned(), json!({"schema": reference(name, form)})))
                .collect();
            operation["requestBody"] = json!({"content": content});
        }
    }
}
