//! Who owns which field (`metadata.managedFields`), for server-side apply.

use serde_json::Value;

use super::failure::{Failure, Result};
use super::kind::Kind;

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    pub subresource: &'a str,
    pub operation: Operation,
    /// Takes fields from other appliers.
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Apply,
    Update,
}

impl<'a> Manager<'a> {
    pub fn update(name: &'a str, subresource: &'a str) -> Self {
        Self { name, subresource, operation: Operation::Update, force: false }
    }

    pub fn apply(name: &'a str, subresource: &'a str, force: bool) -> Self {
        Self { name, subresource, operation: Operation::Apply, force }
    }
}

pub fn created(_kind: &Kind, _object: &mut Value, _manager: &str) {}

pub fn updated(_kind: &Kind, _new: &mut Value, _old: &Value, _manager: &Manager<'_>) {}

pub fn apply(_kind: &Kind, _old: &Value, _wanted: &Value, _manager: &Manager<'_>) -> Result<Value> {
    Err(Failure::unsupported_media_type(&["application/merge-patch+json"]))
}
