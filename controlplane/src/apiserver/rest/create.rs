//! create.

use http::StatusCode;
use rand::RngExt;
use serde_json::Value;

use super::super::admission;
use super::super::api::Api;
use super::super::auth::User;
use super::super::cache::Resource;
use super::super::failure::{Failure, Result};
use super::super::managed::{self, Manager};
use super::super::object::{metadata, now};
use super::super::reply::{self, Reply};
use super::write::{Written, insert};
use super::{Request, WriteOptions, check_unknown, decode_object, object_reply};

/// Letters of generated names: no vowels, so no words; none that look like another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Tries to find a free name for `generateName`.
const NAME_TRIES: usize = 8;

pub async fn create(api: &Api, request: &Request) -> Result<Reply> {
    let options = WriteOptions::parse(&request.query, &request.headers)?;
    let (mut object, unknown) = decode_object(request)?;
    let warnings = check_unknown(request.kind(), unknown, &options)?;
    set_namespace(&mut object, request)?;
    let manager = Manager::update(&options.manager, "");
    let written = create_object(
        api,
        &request.resource,
        object,
        &request.user,
        &options,
        &manager,
    )
    .await?;
    let mut reply = object_reply(request, StatusCode::CREATED, written.json, written.revision)?;
    reply::warn(&mut reply, &warnings);
    Ok(reply)
}

/// Puts the object into the namespace of the path.
pub fn set_namespace(object: &mut Value, request: &Request) -> Result<()> {
    let namespace = request.target.namespace.as_str();
    if !request.kind().namespaced {
        metadata(object).shift_remove("namespace");
        return Ok(());
    }
    if namespace.is_empty() {
        return Err(Failure::bad_request(
            "an empty namespace may not be set during creation",
        ));
    }
    match api::object::namespace(object) {
        "" => drop(metadata(object).insert("namespace".into(), namespace.into())),
        same if same == namespace => {}
        other => {
            return Err(Failure::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({other} != {namespace})"
            )));
        }
    }
    Ok(())
}

/// Creates an object whose fields have been checked and that is in its namespace.
///
/// # Errors
/// 409 when the name is taken, 422 when the object is not valid, 403 or 404 from admission.
pub async fn create_object(
    api: &Api,
    resource: &Resource,
    mut object: Value,
    user: &User,
    options: &WriteOptions,
    manager: &Manager<'_>,
) -> Result<Written> {
    if object["metadata"]["resourceVersion"]
        .as_str()
        .is_some_and(|v| !v.is_empty())
    {
        return Err(Failure::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    (resource.kind.default)(&mut object);
    set_system_metadata(&mut object);
    managed::created(resource.kind, &mut object, manager)?;
    let base = object["metadata"]["generateName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let generated = api::object::name(&object).is_empty() && !base.is_empty();
    let mut tries = if generated { NAME_TRIES } else { 1 };
    loop {
        let mut candidate = object.clone();
        if generated {
            metadata(&mut candidate).insert("name".into(), generate_name(&base).into());
        }
        tries -= 1;
        match create_named(api, resource, candidate, user, options).await {
            Err(failure) if failure.reason == "AlreadyExists" && tries > 0 => {}
            outcome => return outcome,
        }
    }
}

async fn create_named(
    api: &Api,
    resource: &Resource,
    mut object: Value,
    user: &User,
    options: &WriteOptions,
) -> Result<Written> {
    let kind = resource.kind;
    let reservation = admission::create(api, resource, &mut object, user).await?;
    (kind.prepare_create)(&mut object);
    let errors = (kind.validate)(&object);
    if !errors.is_empty() {
        return Err(Failure::invalid(kind, api::object::name(&object), &errors));
    }
    let written = insert(api, resource, &object, options.dry_run).await?;
    if !options.dry_run {
        reservation.keep();
    }
    Ok(written)
}

/// What only the server may set.
fn set_system_metadata(object: &mut Value) {
    let metadata = metadata(object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "resourceVersion",
    ] {
        metadata.shift_remove(field);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), now().into());
}

/// `base` and five random letters; a long base is cut so that the name is no longer than a label may be.
fn generate_name(base: &str) -> String {
    let mut name: String = base.chars().take(58).collect();
    name.push_str(&random_suffix());
    name
}

/// Five random letters.
pub fn random_suffix() -> String {
    let mut random = rand::rng();
    (0..5)
        .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
        .collect()
}
