//! What is done with pods alone: binding to a node, and eviction.

use http::StatusCode;
use serde_json::{Value, json};

use super::super::api::Api;
use super::super::failure::{Failure, Result};
use super::super::managed::Manager;
use super::super::negotiate;
use super::super::object::now;
use super::super::query::Query;
use super::super::reply::Reply;
use super::delete::{DeleteOptions, delete_object};
use super::options::WriteOptions;
use super::{Part, Request, Update, success, update_object};

/// Assigns a pod to the node that a `Binding` names. A pod is bound once.
pub async fn bind(api: &Api, request: &Request) -> Result<Reply> {
    let options = WriteOptions::parse(&request.query, &request.headers)?;
    let binding = negotiate::decode_as("core/v1.Binding", &request.headers, &request.body)?;
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Failure::bad_request(
            "Binding is invalid: target.name: Required value",
        ));
    }
    let target = &request.target;
    let wanted_uid = api::object::uid(&binding);
    let update = Update {
        resource: &request.resource,
        namespace: &target.namespace,
        name: &target.name,
        part: Part::Internal,
        options: &options,
        manager: Manager::update(&options.manager, "binding"),
        user: &request.user,
    };
    update_object(api, &update, |pod| {
        let conflict = |why: &str| Failure::conflict(request.kind(), &target.name, why);
        if !wanted_uid.is_empty() && wanted_uid != api::object::uid(pod) {
            let uid = api::object::uid(pod);
            return Err(conflict(&format!(
                "Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {uid}"
            )));
        }
        if api::object::is_terminating(pod) {
            return Err(conflict(&format!(
                "pod {} is being deleted, cannot be assigned to a host",
                target.name
            )));
        }
        if let Some(bound) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            return Err(conflict(&format!(
                "pod {} is already assigned to node {bound:?}",
                target.name
            )));
        }
        Ok(bound(pod, &binding, node))
    })
    .await?;
    let mut status = success(StatusCode::CREATED, Value::Null);
    *status.body_mut() = super::reply::full(
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}).to_string(),
    );
    Ok(status)
}

fn bound(pod: &Value, binding: &Value, node: &str) -> Value {
    let mut pod = pod.clone();
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.shift_remove("resourceVersion");
    }
    pod["spec"]["nodeName"] = node.into();
    for (name, value) in api::object::map(binding, "/metadata/annotations") {
        pod["metadata"]["annotations"][name] = value.clone();
    }
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now(),
    });
    let status = api::object::child(&mut pod, "status");
    let conditions = match &mut status["conditions"] {
        Value::Array(conditions) => conditions,
        other => {
            *other = Value::Array(Vec::new());
            match other {
                Value::Array(conditions) => conditions,
                _ => return pod,
            }
        }
    };
    conditions.retain(|c| c["type"] != "PodScheduled");
    conditions.push(condition);
    pod
}

/// Deletes a pod as its `Eviction` says. There are no disruption budgets yet that could object.
pub async fn evict(api: &Api, request: &Request) -> Result<Reply> {
    let eviction = negotiate::decode_as("policy/v1.Eviction", &request.headers, &request.body)?;
    let mut options = DeleteOptions::from(&eviction["deleteOptions"], &Query::default())?;
    options.dry_run |= WriteOptions::parse(&request.query, &request.headers)?.dry_run;
    let target = &request.target;
    delete_object(
        api,
        &request.resource,
        &target.namespace,
        &target.name,
        &options,
    )
    .await?;
    Ok(super::reply::json(
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}
