//! The built-in types as data: which fields each has, with number, type and how patches treat them.
//!
//! Decoding protobuf, finding unknown fields, strategic merge patch, server-side apply and OpenAPI's `x-kubernetes-*`
//! extensions are all generic over this one set of facts, which upstream states as tags and markers in
//! `k8s.io/api/*/types.go`; these are those of v0.36.3. The facts are in `tables/`, one file for each API group and
//! version, and become static data at build time. A table's lines:
//!
//! ```text
//! Container                                              a type; "atomic" after it: apply replaces it whole
//!  1 name string                                         protobuf number, JSON name, type
//!  3 command []string ?                                  a list; "?": an empty value is left out ("?z": a zero struct too)
//!  6 ports []ContainerPort ? map=containerPort,protocol patch=merge:containerPort
//!                                                        apply: a map by these keys; strategic merge: by this one
//!  10 livenessProbe *Probe ?                             a pointer: only null is empty
//!  2 ~ VolumeSource                                      fields inline in JSON, a message of its own in protobuf
//! ```
//!
//! Other flags: `set` (apply: a set), `atomic` and `granular` (of a struct or map field), `default=X` (of a key field
//! that may be absent), `items` (protobuf wraps the list in a message). Number 0: not in protobuf.

mod decode;
#[cfg(test)]
mod tests;

pub use decode::{TypeError, canonicalize, decode};

/// The tables as static data; see the module's documentation.
#[allow(clippy::all, reason = "generated")]
mod tables {
    use super::{Field, Omit, Patch, Struct, Topology, Type};
    include!(concat!(env!("OUT_DIR"), "/schema_tables.rs"));
}

/// An object type.
#[derive(Debug)]
pub struct Struct {
    /// `core/v1.PodSpec`
    pub name: &'static str,
    /// Server-side apply treats it as one value.
    pub atomic: bool,
    pub fields: &'static [Field],
}

/// A field of an object type.
#[derive(Debug)]
pub struct Field {
    /// Protobuf number, 0 if the field isn't in the protobuf form.
    pub number: u16,
    /// Name in JSON.
    pub name: &'static str,
    pub ty: Type,
    /// A pointer in upstream's type: zero and absent differ.
    pub pointer: bool,
    /// The fields of this struct appear in its parent's JSON object.
    pub inline: bool,
    pub omit: Omit,
    pub topology: Topology,
    pub patch: Option<Patch>,
    /// Value of an absent list-map key.
    pub default: Option<&'static str>,
    /// Each list value is a message with the list as its field 1 in protobuf.
    pub wrapped: bool,
}

/// What a JSON value has to be.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    String,
    Int32,
    Int64,
    Bool,
    /// base64 in JSON
    Bytes,
    Quantity,
    /// RFC 3339, whole seconds
    Time,
    /// RFC 3339 with microseconds
    MicroTime,
    IntOrString,
    /// A set of field paths, `managedFields[].fieldsV1`.
    FieldsV1,
    /// Any JSON object.
    Raw,
    Struct(&'static Struct),
    List(&'static Type),
    Map(&'static Type),
}

/// When upstream leaves a field out of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Omit {
    Never,
    /// Empty, but never a struct (Go's `omitempty`).
    Empty,
    /// Also a struct that is zero (Go's `omitzero`).
    Zero,
}

/// How server-side apply merges a field (`x-kubernetes-list-type`, `-map-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Structs and maps merge by field, lists are atomic.
    Default,
    Atomic,
    Granular,
    Set,
    /// A list of objects with these fields as the key.
    Map(&'static [&'static str]),
}

/// How strategic merge patch merges a list or object (`x-kubernetes-patch-strategy`, `-merge-key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Merge rather than replace.
    pub merge: bool,
    pub retain_keys: bool,
    pub key: Option<&'static str>,
}

impl Struct {
    /// The type of this name, `apps/v1.Deployment`.
    pub fn find(name: &str) -> Option<&'static Struct> {
        tables::ALL
            .binary_search_by(|s| s.name.cmp(name))
            .ok()
            .map(|i| tables::ALL[i])
    }

    /// The type of an `apiVersion` and `kind`: `apps/v1` and `Deployment`. The options that any group's requests carry
    /// (`DeleteOptions`) are found under every version.
    pub fn of(api_version: &str, kind: &str) -> Option<&'static Struct> {
        let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
        // `rbac.authorization.k8s.io` is upstream's package `rbac`.
        let package = group.split('.').next().unwrap_or(group);
        let own = Self::find(&format!("{package}/{version}.{kind}"));
        own.or_else(|| {
            kind.ends_with("Options")
                .then(|| Self::find(&format!("meta/v1.{kind}")))
                .flatten()
        })
    }

    /// The field of this JSON name, inlined ones included.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields
            .iter()
            .find_map(|field| match (&field.ty, field.inline) {
                (Type::Struct(inner), true) => inner.field(name),
                _ => (field.name == name).then_some(field),
            })
    }

    /// Calls `visit` with each field as JSON has it: those of inlined structs in their place.
    pub fn each_field(&self, visit: &mut dyn FnMut(&'static Field)) {
        for field in self.fields {
            match (&field.ty, field.inline) {
                (Type::Struct(inner), true) => inner.each_field(visit),
                _ => visit(field),
            }
        }
    }
}

/// Every type, sorted by name.
pub fn all() -> &'static [&'static Struct] {
    tables::ALL
}
