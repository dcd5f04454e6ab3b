//! The last step of every write: to the store.

use bytes::Bytes;
use serde_json::Value;

use super::super::api::Api;
use super::super::cache::Resource;
use super::super::failure::{Failure, Result};
use super::super::object::{stored, write_with_revision};
use crate::store::{Error, Revision};

/// An object as it was written, with its revision.
pub struct Written {
    pub json: Bytes,
    pub revision: Revision,
}

impl Written {
    fn new(stored: &[u8], revision: Revision) -> Self {
        let mut json = Vec::with_capacity(stored.len() + 40);
        write_with_revision(&mut json, stored, revision);
        Self {
            json: json.into(),
            revision,
        }
    }

    /// What a dry run answers: the object as it would be, at the revision that it has.
    fn dry(stored: &[u8], revision: Option<Revision>) -> Self {
        match revision {
            Some(revision) => Self::new(stored, revision),
            None => Self {
                json: Bytes::copy_from_slice(stored),
                revision: Revision::default(),
            },
        }
    }
}

fn key(resource: &Resource, object: &Value) -> String {
    resource.key(api::object::namespace(object), api::object::name(object))
}

/// # Errors
/// 409 when the name is taken.
pub async fn insert(
    api: &Api,
    resource: &Resource,
    object: &Value,
    dry_run: bool,
) -> Result<Written> {
    let (stored, key) = (stored(object), key(resource, object));
    let exists = || Failure::already_exists(resource.kind, api::object::name(object));
    if dry_run {
        return match api.cache.store().get(&key).await? {
            Some(_) => Err(exists()),
            None => Ok(Written::dry(&stored, None)),
        };
    }
    match api.cache.store().create(&key, stored.clone()).await {
        Ok(revision) => Ok(Written::new(&stored, revision)),
        Err(Error::Exists { .. }) => Err(exists()),
        Err(other) => Err(other.into()),
    }
}

/// Replaces the object if it is still at `expected`; `None` when it isn't.
pub async fn replace(
    api: &Api,
    resource: &Resource,
    object: &Value,
    expected: Revision,
    dry_run: bool,
) -> Result<Option<Written>> {
    let stored = stored(object);
    if dry_run {
        return Ok(Some(Written::dry(&stored, Some(expected))));
    }
    match api
        .cache
        .store()
        .update(&key(resource, object), stored.clone(), expected)
        .await
    {
        Ok(revision) => Ok(Some(Written::new(&stored, revision))),
        Err(Error::Conflict { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Removes the object if it is still at `expected`; `None` when it isn't. Watches see `object` as the deleted one.
pub async fn remove(
    api: &Api,
    resource: &Resource,
    object: &Value,
    expected: Revision,
    dry_run: bool,
) -> Result<Option<Written>> {
    let stored = stored(object);
    if dry_run {
        return Ok(Some(Written::dry(&stored, Some(expected))));
    }
    match api
        .cache
        .store()
        .delete(&key(resource, object), stored.clone(), expected)
        .await
    {
        Ok(revision) => {
            api.deleted(resource, object);
            Ok(Some(Written::new(&stored, revision)))
        }
        Err(Error::Conflict { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}
