//! What can be done with a resource: one file for each operation.

mod create;
mod delete;
mod options;
mod patch;
mod pods;
mod read;
mod scale;
mod service_accounts;
mod update;
mod watch;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;

pub use create::{create_object, random_suffix};
pub use options::WriteOptions;
pub use update::{Part, Update, update_object};

use super::api::Api;
use super::auth::User;
use super::cache::Resource;
use super::failure::{Failure, Result};
use super::kind::Kind;
use super::negotiate;
use super::node_restriction;
use super::query::Query;
use super::reply::{self, Reply};
use super::route::Target;

/// A request for a resource that is served, by a user who may make it.
pub struct Request {
    pub user: User,
    pub target: Target,
    pub query: Query,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub resource: Arc<Resource>,
}

impl Request {
    pub fn kind(&self) -> &'static Kind {
        self.resource.kind
    }
}

/// Does what a request asks.
///
/// # Errors
/// Whatever the client is to be told instead.
pub async fn dispatch(api: &Arc<Api>, request: Request) -> Result<Reply> {
    node_restriction::check(api, &request).await?;
    let kind = request.kind();
    let subresource = request.target.subresource.as_str();
    if subresource.is_empty() {
        if !kind.verbs.contains(&request.target.verb) {
            return Err(Failure::method_not_allowed());
        }
        return whole(api, request).await;
    }
    match (subresource, request.target.verb) {
        ("status", verb) if kind.has_status => part(api, request, verb, Part::Status).await,
        ("scale", "get") if kind.scale => scale::get(api, &request).await,
        ("scale", "update" | "patch") if kind.scale => scale::put(api, &request).await,
        (name, verb) if kind.subresources.contains(&name) => match (kind.plural, name, verb) {
            ("pods", "binding", "create") => pods::bind(api, &request).await,
            ("pods", "eviction", "create") => pods::evict(api, &request).await,
            ("pods", "ephemeralcontainers" | "resize", verb) => {
                part(api, request, verb, Part::Whole).await
            }
            ("serviceaccounts", "token", "create") => {
                service_accounts::create_token(api, &request).await
            }
            ("namespaces", "finalize", "update") => {
                part(api, request, "update", Part::Finalize).await
            }
            _ => Err(Failure::method_not_allowed()),
        },
        _ => Err(Failure::no_such_path()),
    }
}

async fn whole(api: &Arc<Api>, request: Request) -> Result<Reply> {
    match request.target.verb {
        "get" => read::get(api, &request).await,
        "list" => read::list(api, &request).await,
        "watch" => watch::watch(api, &request).await,
        "create" => create::create(api, &request).await,
        "update" => update::put(api, &request, Part::Whole).await,
        "patch" => patch::patch(api, &request, Part::Whole).await,
        "delete" => delete::delete(api, &request).await,
        "deletecollection" => delete::delete_collection(api, &request).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

async fn part(api: &Arc<Api>, request: Request, verb: &str, part: Part) -> Result<Reply> {
    match verb {
        "get" => read::get(api, &request).await,
        "update" => update::put(api, &request, part).await,
        "patch" => patch::patch(api, &request, part).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

/// Reads the object in the body, which has to be of the kind that the path names; returns it in the form that
/// it is stored in, and a message for each field that the kind does not have.
fn decode_object(request: &Request) -> Result<(Value, Vec<String>)> {
    let object = negotiate::decode(&request.headers, &request.body)?;
    typed(request.kind(), object)
}

/// Checks an object's kind and the types of its fields.
fn typed(kind: &Kind, mut object: Value) -> Result<(Value, Vec<String>)> {
    let api_version = kind.api_version();
    for (field, expected, what) in [
        ("apiVersion", api_version.as_str(), "API version"),
        ("kind", kind.kind, "kind"),
    ] {
        match object[field].as_str() {
            None | Some("") if object.is_object() => object[field] = expected.into(),
            Some(found) if found == expected => {}
            found => {
                let found = found.unwrap_or_default();
                return Err(Failure::bad_request(format!(
                    "the {what} in the data ({found}) does not match the expected {what} ({expected})"
                )));
            }
        }
    }
    let unhandled = |why: &dyn std::fmt::Display| {
        let (version, kind) = (kind.version, kind.kind);
        Failure::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
        ))
    };
    let schema =
        api::schema::Struct::find(kind.schema).ok_or_else(|| Failure::internal(kind.schema))?;
    let unknown = api::schema::decode(schema, &mut object).map_err(|e| unhandled(&e))?;
    Ok((object, unknown))
}

/// Refuses or reports unknown fields, as the client asked.
fn check_unknown(kind: &Kind, unknown: Vec<String>, options: &WriteOptions) -> Result<Vec<String>> {
    match options.validation {
        _ if unknown.is_empty() => Ok(unknown),
        options::FieldValidation::Ignore => Ok(Vec::new()),
        options::FieldValidation::Warn => Ok(unknown),
        options::FieldValidation::Strict => {
            let (version, kind) = (kind.version, kind.kind);
            Err(Failure::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
                unknown.join(", ")
            )))
        }
    }
}

/// One object, in the form that the client wants.
fn object_reply(
    request: &Request,
    code: http::StatusCode,
    json: Bytes,
    revision: crate::store::Revision,
) -> Result<Reply> {
    read::one(request, code, json, revision)
}

/// An error in the words of a `Status`, for operations that succeed without an object.
fn success(code: http::StatusCode, details: Value) -> Reply {
    reply::json(
        code,
        &serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        }),
    )
}
