//! A kubelet changes only what is its own: its Node, its Lease, the pods that are bound to it (upstream's NodeRestriction).
//!
//! Which verbs it may use at all, and that it names no other Node, is [`auth`](super::auth)'s; that it creates mirror
//! pods only, [`admission`](super::admission)'s.

use serde_json::Value;

use super::api::Api;
use super::failure::{Failure, Result};
use super::negotiate;
use super::rest::Request;

const LEASE_NAMESPACE: &str = "kube-node-lease";

/// # Errors
/// 403 when the request comes from a kubelet and is about another's things.
pub async fn check(api: &Api, request: &Request) -> Result<()> {
    let Some(node) = request.user.name.strip_prefix("system:node:") else {
        return Ok(());
    };
    let target = &request.target;
    if matches!(target.verb, "get" | "list" | "watch") || request.user.is_in("system:masters") {
        return Ok(());
    }
    let refuse = |why: String| Err(Failure::forbidden(request.kind(), &target.name, &why));
    match (target.resource.as_str(), target.subresource.as_str()) {
        ("nodes", "") if target.verb == "create" => match named(request)? {
            name if name == node => Ok(()),
            name => refuse(format!(
                "node {node:?} is not allowed to modify node {name:?}"
            )),
        },
        ("leases", _) => {
            let name = named(request)?;
            if target.namespace == LEASE_NAMESPACE && name == node {
                Ok(())
            } else {
                refuse(format!(
                    "can only access node lease with the same name as the requesting node {node:?}"
                ))
            }
        }
        ("pods", subresource) if target.verb != "create" || subresource == "eviction" => {
            if is_on(api, target.namespace.as_str(), &target.name, None, node).await? {
                return Ok(());
            }
            refuse(match subresource {
                "status" => {
                    format!(
                        "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                    )
                }
                "eviction" => {
                    format!("node {node:?} can only evict pods with spec.nodeName set to itself")
                }
                _ => format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
            })
        }
        ("serviceaccounts", "token") => {
            let wanted = negotiate::decode(&request.headers, &request.body)?;
            let bound = &wanted["spec"]["boundObjectRef"];
            let pod = bound["name"].as_str().unwrap_or_default();
            let uid = bound["uid"].as_str().filter(|uid| !uid.is_empty());
            if bound["kind"] != "Pod" || pod.is_empty() {
                return refuse("node requested token not bound to a pod".into());
            }
            if uid.is_none() {
                return refuse("node requested token with a pod binding without a uid".into());
            }
            match is_on(api, target.namespace.as_str(), pod, uid, node).await {
                Ok(true) => Ok(()),
                _ => refuse(format!(
                    "node requested token bound to a pod scheduled on a different node: {pod:?}"
                )),
            }
        }
        _ => Ok(()),
    }
}

/// The name that a request is about, from its body when it creates.
fn named(request: &Request) -> Result<String> {
    if !request.target.name.is_empty() {
        return Ok(request.target.name.clone());
    }
    let object: Value = negotiate::decode(&request.headers, &request.body)?;
    Ok(api::object::name(&object).to_owned())
}

/// Whether a pod, with this uid if one is given, is bound to `node`.
async fn is_on(
    api: &Api,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    node: &str,
) -> Result<bool> {
    let pods = api
        .cache
        .resource("", "v1", "pods")
        .ok_or_else(Failure::no_such_path)?;
    let pod = api.read(pods, namespace, name).await?.value();
    let same = uid.is_none_or(|uid| uid == api::object::uid(&pod));
    Ok(same && api::object::text(&pod, "/spec/nodeName") == node)
}
