//! What a client says about how to write (`meta/v1 CreateOptions`, `UpdateOptions`, `PatchOptions`).

use http::HeaderMap;
use http::header::USER_AGENT;

use super::super::failure::{Failure, Result};
use super::super::query::Query;

/// What to do with fields that the kind does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Do everything but write.
    pub dry_run: bool,
    /// Who is recorded as the manager of the fields that are written.
    pub manager: String,
    pub validation: FieldValidation,
    /// Server-side apply takes over fields that others own.
    pub force: bool,
}

impl WriteOptions {
    /// Of a component of this server itself.
    pub fn internal(manager: &str) -> Self {
        Self {
            manager: manager.into(),
            validation: FieldValidation::Ignore,
            ..Self::default()
        }
    }

    /// # Errors
    /// 400 for values that are none.
    pub fn parse(query: &Query, headers: &HeaderMap) -> Result<Self> {
        let dry_run = dry_run(query.all("dryRun"))?;
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(Failure::bad_request(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        let agent = headers
            .get(USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("unknown");
        let manager = query
            .get("fieldManager")
            .unwrap_or_else(|| agent.split('/').next().unwrap_or("unknown"));
        Ok(Self {
            dry_run,
            manager: manager.chars().take(128).collect(),
            validation,
            force: query.flag("force"),
        })
    }
}

/// Whether the only value is `All`.
pub fn dry_run<'a>(mut values: impl Iterator<Item = &'a str>) -> Result<bool> {
    match values.find(|v| !v.is_empty()) {
        None => Ok(false),
        Some("All") => Ok(true),
        Some(other) => Err(Failure::bad_request(format!(
            "dryRun: Unsupported value: {other:?}: supported values: \"All\""
        ))),
    }
}
