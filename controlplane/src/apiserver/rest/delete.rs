//! delete and deletecollection: at once, after a grace period, or when finalizers are done.

use std::sync::Arc;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::api::Api;
use super::super::cache::{Filter, Resource};
use super::super::failure::{Failure, Result};
use super::super::kind::Kind;
use super::super::negotiate;
use super::super::object::{Object, finalizers, metadata};
use super::super::query::Query;
use super::super::reply::{self, Reply};
use super::write::{Written, remove, replace};
use super::{Request, object_reply, options, read, success};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// Namespaces that can't be deleted.
const LASTING_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public"];

/// Kinds whose deletion answers with the object; the others answer with a Status.
const ANSWERED_WITH_OBJECT: &[&str] = &[
    "pods",
    "services",
    "serviceaccounts",
    "persistentvolumeclaims",
    "resourcequotas",
];

/// `meta/v1 DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    /// Background, Foreground or Orphan.
    pub propagation: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the body, or from the query when there is no body.
    ///
    /// # Errors
    /// 400 for a body that is something else, 422 for a value that is none.
    pub fn parse(request: &Request) -> Result<Self> {
        let body = if request.body.is_empty() {
            Value::Null
        } else {
            negotiate::decode_as("meta/v1.DeleteOptions", &request.headers, &request.body)?
        };
        Self::from(&body, &request.query)
    }

    pub fn from(body: &Value, query: &Query) -> Result<Self> {
        let text = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let orphan = body["orphanDependents"].as_bool().or_else(|| {
            query
                .get("orphanDependents")
                .map(|_| query.flag("orphanDependents"))
        });
        let asked = text(&body["propagationPolicy"])
            .or_else(|| query.get("propagationPolicy").map(Into::into));
        let propagation = match (asked, orphan) {
            (Some(policy), None) if matches!(&*policy, "Background" | "Foreground" | "Orphan") => {
                Some(policy)
            }
            (Some(policy), None) => {
                return Err(Failure::bad_request(format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {policy:?}: \
                     supported values: \"Background\", \"Foreground\", \"Orphan\", \"nil\""
                )));
            }
            (Some(_), Some(_)) => {
                return Err(Failure::bad_request(
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            (None, Some(true)) => Some(ORPHAN_POLICY.into()),
            (None, _) => None,
        };
        let grace = match body["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => query.number("gracePeriodSeconds")?,
        };
        let listed = body["dryRun"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        Ok(Self {
            // A negative value means one second, for clients of long ago.
            grace_period_seconds: grace.map(|seconds| if seconds < 0 { 1 } else { seconds }),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            propagation,
            dry_run: options::dry_run(listed.chain(query.all("dryRun")))?,
        })
    }
}

const ORPHAN_POLICY: &str = "Orphan";

/// What a deletion came to.
pub enum Deletion {
    Gone(Written),
    /// The object is there still, and will go when its grace period or its finalizers are over.
    Begun(Written),
}

pub async fn delete(api: &Api, request: &Request) -> Result<Reply> {
    let options = DeleteOptions::parse(request)?;
    let (kind, target) = (request.kind(), &request.target);
    match delete_object(
        api,
        &request.resource,
        &target.namespace,
        &target.name,
        &options,
    )
    .await?
    {
        Deletion::Begun(written) => {
            object_reply(request, StatusCode::OK, written.json, written.revision)
        }
        Deletion::Gone(written) if ANSWERED_WITH_OBJECT.contains(&kind.plural) => {
            object_reply(request, StatusCode::OK, written.json, written.revision)
        }
        Deletion::Gone(written) => {
            let object: Value = serde_json::from_slice(&written.json).unwrap_or_default();
            let mut details = json!({"name": target.name});
            if !kind.group.is_empty() {
                details["group"] = kind.group.into();
            }
            details["kind"] = kind.plural.into();
            details["uid"] = api::object::uid(&object).into();
            Ok(success(StatusCode::OK, details))
        }
    }
}

/// Deletes each object that the selectors choose; those that are gone already don't matter.
pub async fn delete_collection(api: &Arc<Api>, request: &Request) -> Result<Reply> {
    let options = DeleteOptions::parse(request)?;
    let filter: Filter = read::filter(request)?;
    api.cache.catch_up().await?;
    let (objects, revision) = request.resource.list(&filter, api.cache.applied());
    for object in &objects {
        let name = api::object::name(&object.value()).to_owned();
        match delete_object(
            api,
            &request.resource,
            &object.index.namespace,
            &name,
            &options,
        )
        .await
        {
            Err(failure) if failure.code != StatusCode::NOT_FOUND => return Err(failure),
            _ => {}
        }
    }
    let items: Vec<Value> = objects.iter().map(|o| o.value()).collect();
    let kind = request.kind();
    Ok(reply::json(
        StatusCode::OK,
        &json!({
            "kind": format!("{}List", kind.kind),
            "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": revision.to_string()},
            "items": items,
        }),
    ))
}

/// Deletes one object, or begins to.
///
/// # Errors
/// 404 when there is none, 409 when a precondition does not hold.
pub async fn delete_object(
    api: &Api,
    resource: &Resource,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deletion> {
    let kind = resource.kind;
    if kind.plural == "namespaces" && kind.group.is_empty() && LASTING_NAMESPACES.contains(&name) {
        return Err(Failure::forbidden(
            kind,
            name,
            "this namespace may not be deleted",
        ));
    }
    loop {
        let current = api.read(resource, namespace, name).await?;
        let old = current.value();
        check_preconditions(kind, &old, options)?;
        let step = plan(kind, &old, options, Timestamp::now());
        if let Some(deletion) = carry_out(api, resource, &current, step, options.dry_run).await? {
            return Ok(deletion);
        }
    }
}

async fn carry_out(
    api: &Api,
    resource: &Resource,
    current: &Object,
    step: Step,
    dry_run: bool,
) -> Result<Option<Deletion>> {
    Ok(match step {
        Step::Remove(object) => remove(api, resource, &object, current.revision, dry_run)
            .await?
            .map(Deletion::Gone),
        Step::Mark(object) => replace(api, resource, &object, current.revision, dry_run)
            .await?
            .map(Deletion::Begun),
        Step::Wait => {
            let written = Written {
                json: current.json.clone(),
                revision: current.revision,
            };
            Some(Deletion::Begun(written))
        }
    })
}

fn check_preconditions(kind: &Kind, old: &Value, options: &DeleteOptions) -> Result<()> {
    let name = api::object::name(old);
    let checks = [
        ("UID", &options.uid, api::object::uid(old)),
        (
            "ResourceVersion",
            &options.resource_version,
            api::object::text(old, "/metadata/resourceVersion"),
        ),
    ];
    for (what, wanted, found) in checks {
        if let Some(wanted) = wanted
            && wanted != found
        {
            let why = if what == "UID" {
                format!(
                    "the UID in the precondition ({wanted}) does not match the UID in record ({found}). The object might have been deleted and then recreated"
                )
            } else {
                format!(
                    "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({found}). The object might have been modified"
                )
            };
            return Err(Failure::conflict(kind, name, &why));
        }
    }
    Ok(())
}

/// The next step of a deletion.
#[derive(Debug, PartialEq)]
enum Step {
    Remove(Value),
    Mark(Value),
    Wait,
}

/// Decides without doing: what deleting `old` at `now` comes to.
fn plan(kind: &Kind, old: &Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let grace = grace_period(kind, old, options);
    let mut new = old.clone();
    set_deletion_finalizers(&mut new, options.propagation.as_deref());
    let held = !finalizers(&new).is_empty() || holds_namespace(kind, &new);
    if grace == 0 && !held {
        return Step::Remove(new);
    }
    let terminating = api::object::is_terminating(old);
    let current = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    // A deletion that has begun can be hastened, not delayed.
    if !terminating || current.is_none_or(|current| grace < current) {
        let at = now
            .saturating_add(SignedDuration::from_secs(grace))
            .unwrap_or(now);
        let metadata = metadata(&mut new);
        metadata.insert("deletionTimestamp".into(), api::time::seconds(at).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        if let Some(generation) = metadata
            .get("generation")
            .and_then(Value::as_i64)
            .filter(|g| *g > 0 && !terminating)
        {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    if holds_namespace(kind, &new) {
        new["status"]["phase"] = "Terminating".into();
    }
    if new == *old {
        Step::Wait
    } else {
        Step::Mark(new)
    }
}

/// A namespace stays until its own finalizers, in its spec, are done.
fn holds_namespace(kind: &Kind, object: &Value) -> bool {
    kind.group.is_empty()
        && kind.plural == "namespaces"
        && object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty())
}

/// Only pods have a grace period: until their containers are stopped.
fn grace_period(kind: &Kind, old: &Value, options: &DeleteOptions) -> i64 {
    if !(kind.group.is_empty() && kind.plural == "pods") {
        return 0;
    }
    let ended = matches!(
        old["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    );
    let unscheduled = old["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    if ended || unscheduled {
        return 0;
    }
    options
        .grace_period_seconds
        .or_else(|| old["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30)
}

/// The garbage collector's finalizers say what is to happen to the object's dependents.
fn set_deletion_finalizers(object: &mut Value, propagation: Option<&str>) {
    let wanted = match propagation {
        Some("Foreground") => Some(FOREGROUND),
        Some(ORPHAN_POLICY) => Some(ORPHAN),
        Some(_) => None,
        None => return,
    };
    let mut left: Vec<Value> = finalizers(object)
        .into_iter()
        .filter(|f| !matches!(*f, FOREGROUND | ORPHAN))
        .map(Value::from)
        .collect();
    left.extend(wanted.map(Value::from));
    let metadata = metadata(object);
    if left.is_empty() {
        metadata.shift_remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), left.into());
    }
}
