//! update, and the read-change-write loop of everything that changes an object.

use http::StatusCode;
use serde_json::Value;

use super::super::admission;
use super::super::api::Api;
use super::super::auth::User;
use super::super::cache::Resource;
use super::super::failure::{Failure, Result};
use super::super::managed::{self, Manager};
use super::super::object::{finalizers, metadata};
use super::super::reply::{self, Reply};
use super::write::{Written, remove, replace};
use super::{
    Request, WriteOptions, check_unknown, create::set_namespace, decode_object, object_reply,
};

/// Which part of an object a request may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Whole,
    Status,
    /// A namespace's own finalizers.
    Finalize,
    /// Whatever the server's own code changes; it is not validated again.
    Internal,
}

/// What to change, and how.
pub struct Update<'a> {
    pub resource: &'a Resource,
    pub namespace: &'a str,
    pub name: &'a str,
    pub part: Part,
    pub options: &'a WriteOptions,
    pub manager: Manager<'a>,
    /// Who asks for it.
    pub user: &'a User,
}

pub async fn put(api: &Api, request: &Request, part: Part) -> Result<Reply> {
    let options = WriteOptions::parse(&request.query, &request.headers)?;
    let (mut object, unknown) = decode_object(request)?;
    let warnings = check_unknown(request.kind(), unknown, &options)?;
    set_namespace(&mut object, request).or_else(|e| {
        if request.kind().namespaced {
            Err(e)
        } else {
            Ok(())
        }
    })?;
    let name = request.target.name.as_str();
    match api::object::name(&object) {
        "" => drop(metadata(&mut object).insert("name".into(), name.into())),
        same if same == name => {}
        other => {
            return Err(Failure::bad_request(format!(
                "the name of the object ({other}) does not match the name on the URL ({name})"
            )));
        }
    }
    (request.kind().default)(&mut object);
    let update = Update {
        resource: &request.resource,
        namespace: &request.target.namespace,
        name,
        part,
        options: &options,
        manager: Manager::update(&options.manager, &request.target.subresource),
        user: &request.user,
    };
    let written = update_object(api, &update, |_| Ok(object.clone())).await?;
    let mut reply = object_reply(request, StatusCode::OK, written.json, written.revision)?;
    reply::warn(&mut reply, &warnings);
    Ok(reply)
}

/// Reads the object, changes it, and writes it, again from the start when somebody else wrote it in between,
/// unless `change` gives an object with a `resourceVersion`, which then has to be the current one.
///
/// # Errors
/// 404 when there is none, 409 when it is at another version, 422 when the result is not valid.
pub async fn update_object(
    api: &Api,
    update: &Update<'_>,
    mut change: impl FnMut(&Value) -> Result<Value>,
) -> Result<Written> {
    let kind = update.resource.kind;
    loop {
        let current = api
            .read(update.resource, update.namespace, update.name)
            .await?;
        let old = current.value();
        let mut new = change(&old)?;
        let given = new["metadata"]["resourceVersion"]
            .as_str()
            .filter(|v| !v.is_empty() && *v != "0");
        let pinned = given.is_some();
        if given.is_some_and(|version| version != current.revision.to_string()) {
            return Err(Failure::modified(kind, update.name));
        }
        keep_system_metadata(kind, &mut new, &old)?;
        prepare(update, &mut new, &old)?;
        let reservation = admission::update(api, update.resource, &mut new, &old, update.user)?;
        validate(update, &new, &old)?;
        managed::updated(kind, &mut new, &old, &update.manager)?;
        if same(&new, &old) {
            return Ok(Written {
                json: current.json.clone(),
                revision: current.revision,
            });
        }
        let dry_run = update.options.dry_run;
        let written = if is_finished(&new, &old) {
            remove(api, update.resource, &new, current.revision, dry_run).await?
        } else {
            replace(api, update.resource, &new, current.revision, dry_run).await?
        };
        match written {
            Some(written) => {
                if !dry_run {
                    reservation.keep();
                }
                return Ok(written);
            }
            None if pinned => return Err(Failure::modified(kind, update.name)),
            None => {}
        }
    }
}

/// Clients may leave these out, and may not change them; the name and namespace least of all, since they are the
/// object's key.
fn keep_system_metadata(kind: &super::Kind, new: &mut Value, old: &Value) -> Result<()> {
    let (old_uid, name) = (api::object::uid(old), api::object::name(old));
    let key = |object: &Value| {
        (
            api::object::namespace(object).to_owned(),
            api::object::name(object).to_owned(),
        )
    };
    if key(new) != key(old) {
        return Err(Failure::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            api::object::name(new)
        )));
    }
    let given = api::object::uid(new).to_owned();
    if !given.is_empty() && given != old_uid {
        let why = format!(
            "Precondition failed: UID in precondition: {given}, UID in object meta: {old_uid}"
        );
        return Err(Failure::conflict(kind, name, &why));
    }
    let metadata = metadata(new);
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        match &old["metadata"][field] {
            Value::Null => drop(metadata.shift_remove(field)),
            value => drop(metadata.insert(field.into(), value.clone())),
        }
    }
    metadata.shift_remove("selfLink");
    metadata.insert(
        "resourceVersion".into(),
        old["metadata"]["resourceVersion"].clone(),
    );
    Ok(())
}

fn prepare(update: &Update<'_>, new: &mut Value, old: &Value) -> Result<()> {
    match update.part {
        Part::Whole => (update.resource.kind.prepare_update)(new, old),
        Part::Status => (update.resource.kind.prepare_status_update)(new, old),
        Part::Finalize => {
            let finalizers = new["spec"]["finalizers"].take();
            *new = old.clone();
            new["spec"]["finalizers"] = if finalizers.is_null() {
                Value::Array(Vec::new())
            } else {
                finalizers
            };
        }
        Part::Internal => {}
    }
    Ok(())
}

fn validate(update: &Update<'_>, new: &Value, old: &Value) -> Result<()> {
    let kind = update.resource.kind;
    let mut errors = match update.part {
        Part::Whole => (kind.validate)(new),
        Part::Status | Part::Finalize | Part::Internal => Vec::new(),
    };
    if matches!(update.part, Part::Whole | Part::Status) {
        errors.extend((kind.validate_update)(new, old));
    }
    if api::object::is_terminating(old) {
        let before = finalizers(old);
        let added = finalizers(new)
            .into_iter()
            .filter(|f| !before.contains(f))
            .collect::<Vec<_>>();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{added:?}}}"
            );
            errors.push(api::field::FieldError::forbidden(
                "metadata.finalizers",
                detail,
            ));
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Failure::invalid(kind, update.name, &errors))
    }
}

/// Whether a write would change nothing.
fn same(new: &Value, old: &Value) -> bool {
    new == old
}

/// Whether the object waited only for the finalizers that this write removes.
fn is_finished(new: &Value, old: &Value) -> bool {
    let waits = |object: &Value| {
        !object["spec"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty)
    };
    let namespace = new["kind"] == "Namespace" && new["apiVersion"] == "v1";
    api::object::is_terminating(old)
        && finalizers(new).is_empty()
        && !(namespace && waits(new))
        && old["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
}
