//! Who owns which field (`metadata.managedFields`): every write is recorded, so that server-side apply can tell a
//! conflict.

use api::apply::{self, Conflicts};
use api::schema::Struct;
use serde_json::{Value, json};

use super::failure::{Failure, Result};
use super::kind::Kind;
use super::object::now;

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    name: &'a str,
    subresource: &'a str,
    operation: Operation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Takes fields from other appliers when `force` is set.
    Apply {
        force: bool,
    },
    Update,
}

impl<'a> Manager<'a> {
    pub fn update(name: &'a str, subresource: &'a str) -> Self {
        Self {
            name,
            subresource,
            operation: Operation::Update,
        }
    }

    pub fn apply(name: &'a str, subresource: &'a str, force: bool) -> Self {
        Self {
            name,
            subresource,
            operation: Operation::Apply { force },
        }
    }

    /// The fields that a write through this subresource leaves alone.
    fn ignored(&self, kind: &Kind) -> &'static [&'static str] {
        match self.subresource {
            "status" => &["spec"],
            _ if kind.has_status => &["status"],
            _ => &[],
        }
    }
}

/// Runs `body` with the kind's type and what [`apply`] wants to know of the write.
fn with<T>(
    kind: &Kind,
    manager: &Manager<'_>,
    body: impl FnOnce(&'static Struct, &apply::Manager<'_>) -> T,
) -> Result<T> {
    let schema = Struct::find(kind.schema).ok_or_else(|| Failure::internal(kind.schema))?;
    let (api_version, time) = (kind.api_version(), now());
    let manager = apply::Manager {
        name: manager.name,
        api_version: &api_version,
        subresource: manager.subresource,
        ignored: manager.ignored(kind),
        time: &time,
    };
    Ok(body(schema, &manager))
}

/// Records the creation of an object. An applied one has its record already.
pub fn created(kind: &Kind, object: &mut Value, manager: &Manager<'_>) -> Result<()> {
    updated(kind, object, &Value::Null, manager)
}

/// Records a change.
pub fn updated(kind: &Kind, new: &mut Value, old: &Value, manager: &Manager<'_>) -> Result<()> {
    if manager.operation != Operation::Update {
        return Ok(());
    }
    with(kind, manager, |schema, manager| {
        apply::record_update(schema, new, old, manager)
    })
}

/// What applying `wanted` makes of `old`, which is null when there is none yet.
///
/// # Errors
/// 409 with every field that somebody else owns.
pub fn applied(kind: &Kind, old: &Value, wanted: &Value, manager: &Manager<'_>) -> Result<Value> {
    let force = manager.operation == Operation::Apply { force: true };
    with(kind, manager, |schema, manager| {
        apply::apply(schema, old, wanted, manager, force)
    })?
    .map_err(|e| conflict(&e))
}

fn conflict(conflicts: &Conflicts) -> Failure {
    let causes = conflicts
        .fields
        .iter()
        .map(|(manager, field)| {
            json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": field})
        })
        .collect();
    Failure::apply_conflict(conflicts.to_string(), causes)
}
