//! What a kind states about itself. The generic REST machinery knows nothing else about it.

use api::field::FieldError;
use jiff::Timestamp;
use serde_json::Value;

/// One column of the table that `kubectl get` prints (`meta/v1 TableColumnDefinition`).
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading as upstream writes it, `Nominated Node`.
    pub name: &'static str,
    /// OpenAPI type of the cells: `string`, `integer`, `boolean`.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the column of the object's name.
    pub format: &'static str,
    /// 0 is always shown, 1 with `-o wide` only.
    pub priority: u8,
}

impl Column {
    pub const NAME: Self = Self {
        name: "Name",
        kind: "string",
        format: "name",
        priority: 0,
    };
    pub const AGE: Self = Self::text("Age");

    pub const fn text(name: &'static str) -> Self {
        Self {
            name,
            kind: "string",
            format: "",
            priority: 0,
        }
    }

    pub const fn number(name: &'static str) -> Self {
        Self {
            name,
            kind: "integer",
            format: "",
            priority: 0,
        }
    }

    /// The same column, shown with `-o wide` only.
    pub const fn wide(self) -> Self {
        Self {
            priority: 1,
            ..self
        }
    }
}

/// Every verb of a kind that is stored.
pub const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// A built-in kind: its names, its defaults, its rules, and how it is shown.
///
/// The order for a create is: decode (`openapi::decode`) -> `default` -> admission -> `prepare_create` ->
/// `validate`; for an update the same with `prepare_update`, `validate` and `validate_update`. An update of
/// `/status` runs `prepare_status_update` instead, and `validate_update` only.
/// Every function takes the object as JSON whose field types have been checked by `openapi::decode`.
pub struct Kind {
    /// API group, `""` for core.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// Name in paths, `pods`.
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub has_status: bool,
    /// Has a `scale` subresource (replicas at `spec.replicas` and `status.replicas`).
    pub scale: bool,
    /// Other subresources, which the API server handles by name: `log`, `exec`, `binding`, `token`, …
    pub subresources: &'static [&'static str],
    /// Name of the type in [`api::schema`], `core/v1.Pod`.
    pub schema: &'static str,
    /// Fills what the user left out, as upstream's defaulting does. Idempotent.
    pub default: fn(&mut Value),
    /// Clears what a user may not set on create (status), sets the first generation.
    pub prepare_create: fn(&mut Value),
    /// Keeps the old status, and raises the generation if the spec changed.
    pub prepare_update: fn(new: &mut Value, old: &Value),
    /// Keeps all but the status of the old object.
    pub prepare_status_update: fn(new: &mut Value, old: &Value),
    /// All that is wrong with the object by itself, metadata included.
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// What may not change from `old` to `new`, metadata included.
    pub validate_update: fn(new: &Value, old: &Value) -> Vec<FieldError>,
    pub columns: &'static [Column],
    /// The cells of one object, as many as `columns`; ages are relative to the given time.
    pub row: fn(&Value, Timestamp) -> Vec<Value>,
    /// What `fieldSelector` may ask for, with this object's values; `metadata.name` (and `.namespace`) included.
    pub selectable_fields: fn(&Value) -> Vec<(&'static str, String)>,
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}
