//! The `scale` subresource: the replicas of anything that has some (`autoscaling/v1 Scale`).

use api::selector::LabelSelector;
use http::StatusCode;
use serde_json::{Value, json};

use super::super::api::Api;
use super::super::failure::{Failure, Result};
use super::super::managed::Manager;
use super::super::negotiate;
use super::super::reply::{self, Reply};
use super::{Part, Request, Update, WriteOptions, patch, update_object};

pub async fn get(api: &Api, request: &Request) -> Result<Reply> {
    let target = &request.target;
    let object = api
        .read(&request.resource, &target.namespace, &target.name)
        .await?;
    Ok(reply::json(StatusCode::OK, &scale_of(&object.value())))
}

/// update and patch.
pub async fn put(api: &Api, request: &Request) -> Result<Reply> {
    let options = WriteOptions::parse(&request.query, &request.headers)?;
    let target = &request.target;
    let update = Update {
        resource: &request.resource,
        namespace: &target.namespace,
        name: &target.name,
        part: Part::Whole,
        options: &options,
        manager: Manager::update(&options.manager, "scale"),
        user: &request.user,
    };
    let written = update_object(api, &update, |old| {
        let scale = if target.verb == "patch" {
            patch::plain(request, &scale_of(old))?
        } else {
            negotiate::decode_as("autoscaling/v1.Scale", &request.headers, &request.body)?
        };
        let mut new = old.clone();
        new["metadata"]["resourceVersion"] = scale["metadata"]["resourceVersion"].clone();
        if target.verb == "patch" {
            patch::unpin(&mut new, old);
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error = api::field::FieldError::invalid(
                "spec.replicas",
                replicas,
                "must be greater than or equal to 0",
            );
            return Err(Failure::invalid(request.kind(), &target.name, &[error]));
        }
        new["spec"]["replicas"] = replicas.into();
        Ok(new)
    })
    .await?;
    let object: Value = serde_json::from_slice(&written.json).map_err(Failure::internal)?;
    Ok(reply::json(StatusCode::OK, &scale_of(&object)))
}

fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let selector = LabelSelector::from_object(&object["spec"]["selector"]);
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {
            "replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector.map(|s| s.to_string()).unwrap_or_default(),
        },
    })
}
