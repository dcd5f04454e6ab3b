//! Objects as the table that `kubectl get` prints (`meta/v1 Table`).

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::kind::Kind;
use super::negotiate::RowObject;
use super::object::Object;

/// The headings.
pub fn columns(kind: &Kind) -> Value {
    kind.columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": "",
                "priority": column.priority,
            })
        })
        .collect()
}

/// A table without its metadata; `headings` only where they are not known yet (a watch tells them once).
pub fn table(kind: &Kind, objects: &[Arc<Object>], row_object: RowObject, headings: bool) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| row(kind, object.value(), row_object, now))
        .collect();
    let columns = if headings { columns(kind) } else { json!([]) };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn row(kind: &Kind, object: Value, row_object: RowObject, now: Timestamp) -> Value {
    let cells = (kind.row)(&object, now);
    let mut row = json!({"cells": cells});
    match row_object {
        RowObject::None => {}
        RowObject::Metadata => row["object"] = partial_metadata(object),
        RowObject::Whole => row["object"] = object,
    }
    row
}

/// `meta/v1 PartialObjectMetadata`.
pub fn partial_metadata(mut object: Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"].take(),
    })
}
