//! patch: JSON patch, merge patch, strategic merge patch and server-side apply.

use http::StatusCode;
use serde_json::Value;

use super::super::api::Api;
use super::super::failure::{Failure, Result};
use super::super::managed::{self, Manager};
use super::super::negotiate;
use super::super::object::metadata;
use super::super::reply::{self, Reply};
use super::create::{create_object, set_namespace};
use super::{
    Part, Request, Update, WriteOptions, check_unknown, object_reply, typed, update_object,
};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

pub async fn patch(api: &Api, request: &Request, part: Part) -> Result<Reply> {
    let options = WriteOptions::parse(&request.query, &request.headers)?;
    if negotiate::media_type(&request.headers) == APPLY {
        return apply(api, request, part, &options).await;
    }
    let kind = request.kind();
    let update = Update {
        resource: &request.resource,
        namespace: &request.target.namespace,
        name: &request.target.name,
        part,
        options: &options,
        manager: Manager::update(&options.manager, &request.target.subresource),
        user: &request.user,
    };
    let mut warnings = Vec::new();
    let written = update_object(api, &update, |old| {
        let (mut new, unknown) = typed(kind, plain(request, old)?)?;
        warnings = check_unknown(kind, unknown, &options)?;
        unpin(&mut new, old);
        (kind.default)(&mut new);
        Ok(new)
    })
    .await?;
    let mut reply = object_reply(request, StatusCode::OK, written.json, written.revision)?;
    reply::warn(&mut reply, &warnings);
    Ok(reply)
}

/// The object with the request's patch, which is one of those that need no record of who owns what.
pub fn plain(request: &Request, old: &Value) -> Result<Value> {
    let body = || negotiate::json(&request.body);
    let kind = request.kind();
    let unprocessable =
        |why: String| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", why);
    match negotiate::media_type(&request.headers) {
        JSON => {
            let patch: json_patch::Patch =
                serde_json::from_value(body()?).map_err(|e| Failure::bad_request(e.to_string()))?;
            let mut new = old.clone();
            json_patch::patch(&mut new, &patch).map_err(|e| {
                unprocessable(format!(
                    "the server rejected our request due to an error in our request: {e}"
                ))
            })?;
            Ok(new)
        }
        MERGE => {
            let mut new = old.clone();
            json_patch::merge(&mut new, &body()?);
            Ok(new)
        }
        STRATEGIC if old["kind"] == "Scale" => {
            let mut new = old.clone();
            json_patch::merge(&mut new, &body()?);
            Ok(new)
        }
        STRATEGIC => {
            let schema = api::schema::Struct::find(kind.schema)
                .ok_or_else(|| Failure::internal(kind.schema))?;
            api::patch::strategic(schema, old, &body()?)
                .map_err(|e| Failure::bad_request(e.to_string()))
        }
        _ => Err(Failure::unsupported_media_type(&[
            JSON, MERGE, STRATEGIC, APPLY,
        ])),
    }
}

/// A patch that leaves the resource version alone holds for any version.
pub fn unpin(new: &mut Value, old: &Value) {
    if new["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"] {
        metadata(new).shift_remove("resourceVersion");
    }
}

/// Server-side apply: the object is made when it is not there.
async fn apply(api: &Api, request: &Request, part: Part, options: &WriteOptions) -> Result<Reply> {
    if request.query.get("fieldManager").is_none() {
        return Err(Failure::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    let kind = request.kind();
    let (mut wanted, unknown) = applied(request)?;
    let warnings = check_unknown(kind, unknown, options)?;
    set_namespace(&mut wanted, request)?;
    if api::object::name(&wanted).is_empty() {
        metadata(&mut wanted).insert("name".into(), request.target.name.as_str().into());
    } else if api::object::name(&wanted) != request.target.name {
        let (given, name) = (api::object::name(&wanted), &request.target.name);
        return Err(Failure::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let manager = Manager::apply(&options.manager, &request.target.subresource, options.force);
    let update = Update {
        resource: &request.resource,
        namespace: &request.target.namespace,
        name: &request.target.name,
        part,
        options,
        manager,
        user: &request.user,
    };
    loop {
        let updated = update_object(api, &update, |old| {
            let mut new = managed::applied(kind, old, &wanted, &update.manager)?;
            match wanted["metadata"]["resourceVersion"].as_str() {
                Some(_) => {
                    new["metadata"]["resourceVersion"] =
                        wanted["metadata"]["resourceVersion"].clone()
                }
                None => unpin(&mut new, old),
            }
            (kind.default)(&mut new);
            Ok(new)
        });
        let (code, written) = match updated.await {
            Ok(written) => (StatusCode::OK, written),
            Err(missing) if missing.code == StatusCode::NOT_FOUND && part == Part::Whole => {
                let object = managed::applied(kind, &Value::Null, &wanted, &update.manager)?;
                match create_object(
                    api,
                    &request.resource,
                    object,
                    &request.user,
                    options,
                    &manager,
                )
                .await
                {
                    Ok(written) => (StatusCode::CREATED, written),
                    // Somebody else was faster; their object is to be changed then.
                    Err(failure) if failure.reason == "AlreadyExists" => continue,
                    Err(failure) => return Err(failure),
                }
            }
            Err(failure) => return Err(failure),
        };
        let mut reply = object_reply(request, code, written.json, written.revision)?;
        reply::warn(&mut reply, &warnings);
        return Ok(reply);
    }
}

/// The applied configuration as it was written: its types are checked, but nothing is added to it.
fn applied(request: &Request) -> Result<(Value, Vec<String>)> {
    let object = negotiate::yaml(&request.body)?;
    let (_, unknown) = typed(request.kind(), object.clone())?;
    if !api::object::list(&object, "/metadata/managedFields").is_empty() {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    Ok((object, unknown))
}
