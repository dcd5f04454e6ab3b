//! What the API server adds to an object, and what it refuses, beyond the kind's own rules.

use std::time::Duration;

use serde_json::{Value, json};

use super::api::Api;
use super::auth::{User, escalation};
use super::cache::Resource;
use super::failure::{Failure, Result};
use super::kind::Kind;
use super::object::field;
use super::rest::random_suffix;
use super::services::Reservation;

/// Where a pod finds its service account's token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Asked for, so that the kubelet renews it well before an hour is over.
const TOKEN_SECONDS: i64 = 3607;

/// How long a pod stays on a node that is not ready or can't be reached.
const TOLERATION_SECONDS: i64 = 300;

/// How long a new pod waits for the service account of a new namespace.
const ACCOUNT_WAIT: Duration = Duration::from_secs(2);

/// Completes and checks an object that is to be created. What it reserves is given back unless it is kept.
///
/// # Errors
/// 404 when the namespace is not there, 403 when it is being deleted or the service account is missing, 422 when an
/// address or port can't be had.
pub async fn create(
    api: &Api,
    resource: &Resource,
    object: &mut Value,
    user: &User,
) -> Result<Reservation> {
    let kind = resource.kind;
    if kind.namespaced {
        check_namespace(api, kind, object).await?;
    }
    escalation::check(api, kind, user, object, None)?;
    if is(kind, "pods") {
        mirror_pod_is_of_its_node(kind, object, user)?;
        set_priority(object);
        add_tolerations(object);
        add_service_account(api, kind, object).await?;
    }
    if is(kind, "services") {
        return api.services.allocate(kind, object, None);
    }
    Ok(Reservation::none())
}

/// Completes an object that is to be changed.
///
/// # Errors
/// 403 for rights that the user doesn't have, 422 when an address or port can't be had.
pub fn update(
    api: &Api,
    resource: &Resource,
    new: &mut Value,
    old: &Value,
    user: &User,
) -> Result<Reservation> {
    escalation::check(api, resource.kind, user, new, Some(old))?;
    if is(resource.kind, "services") {
        return api.services.allocate(resource.kind, new, Some(old));
    }
    Ok(Reservation::none())
}

fn is(kind: &Kind, plural: &str) -> bool {
    kind.group.is_empty() && kind.plural == plural
}

async fn check_namespace(api: &Api, kind: &Kind, object: &Value) -> Result<()> {
    let name = api::object::namespace(object);
    let namespaces = api
        .cache
        .resource("", "v1", "namespaces")
        .ok_or_else(Failure::no_such_path)?;
    let namespace = match namespaces.get("", name) {
        Some(namespace) => namespace,
        None => api.read(namespaces, "", name).await?,
    };
    if !api::object::is_terminating(&namespace.value()) {
        return Ok(());
    }
    let why =
        format!("unable to create new content in namespace {name} because it is being terminated");
    let mut failure = Failure::forbidden(kind, api::object::name(object), &why);
    failure.details["causes"] = json!([{
        "reason": "NamespaceTerminating",
        "message": format!("namespace {name} is being terminated"),
        "field": "metadata.namespace",
    }]);
    Err(failure)
}

fn is_mirror(object: &Value) -> bool {
    object["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string()
}

/// A kubelet creates pods only to show the static ones that it runs (NodeRestriction).
fn mirror_pod_is_of_its_node(kind: &Kind, object: &Value, user: &User) -> Result<()> {
    let Some(node) = user.name.strip_prefix("system:node:") else {
        return Ok(());
    };
    let name = api::object::name(object);
    if !is_mirror(object) {
        let why = format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        );
        return Err(Failure::forbidden(kind, name, &why));
    }
    if api::object::text(object, "/spec/nodeName") != node {
        let why = format!("node {node:?} can only create pods with spec.nodeName set to itself");
        return Err(Failure::forbidden(kind, name, &why));
    }
    Ok(())
}

fn set_priority(object: &mut Value) {
    let spec = field(object, "spec");
    let priority = match spec.get("priorityClassName").and_then(Value::as_str) {
        Some("system-node-critical") => 2_000_001_000,
        Some("system-cluster-critical") => 2_000_000_000,
        _ => 0,
    };
    spec.insert("priority".into(), priority.into());
    spec.entry("preemptionPolicy")
        .or_insert_with(|| "PreemptLowerPriority".into());
}

/// Every pod bears a node's failure for a while (DefaultTolerationSeconds).
fn add_tolerations(object: &mut Value) {
    let spec = field(object, "spec");
    let tolerations = match spec.entry("tolerations").or_insert_with(|| json!([])) {
        Value::Array(tolerations) => tolerations,
        _ => return, // validation says what is wrong
    };
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = tolerations.iter().any(|t| {
            let keys = t["key"] == key || t["key"].as_str().unwrap_or_default().is_empty();
            keys && (t["effect"] == "NoExecute"
                || t["effect"].as_str().unwrap_or_default().is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

/// Gives the pod its service account and, where a container has none, the account's token.
async fn add_service_account(api: &Api, kind: &Kind, object: &mut Value) -> Result<()> {
    if is_mirror(object) {
        return Ok(());
    }
    let name = match object["spec"]["serviceAccountName"].as_str() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "default".to_owned(),
    };
    let namespace = api::object::namespace(object).to_owned();
    let account = find_account(api, &namespace, &name).await.ok_or_else(|| {
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        );
        Failure::forbidden(kind, api::object::name(object), &why)
    })?;
    let spec = field(object, "spec");
    spec.insert("serviceAccountName".into(), name.as_str().into());
    spec.insert("serviceAccount".into(), name.as_str().into());
    if spec
        .get("imagePullSecrets")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
        && let Some(secrets) = account.get("imagePullSecrets")
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let wanted = spec
        .get("automountServiceAccountToken")
        .or_else(|| account.get("automountServiceAccountToken"))
        .and_then(Value::as_bool)
        .unwrap_or(true);
    if wanted {
        mount_token(object);
    }
    Ok(())
}

/// The account; that of a new namespace is made by a controller, a moment after it.
async fn find_account(api: &Api, namespace: &str, name: &str) -> Option<Value> {
    let accounts = api.cache.resource("", "v1", "serviceaccounts")?;
    let wait = async {
        let mut applied = api.cache.subscribe();
        loop {
            if let Some(account) = accounts.get(namespace, name) {
                return Some(account.value());
            }
            applied.changed().await.ok()?;
        }
    };
    tokio::time::timeout(ACCOUNT_WAIT, wait)
        .await
        .ok()
        .flatten()
}

fn mount_token(object: &mut Value) {
    let volume = format!("kube-api-access-{}", random_suffix());
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in object["spec"][list].as_array_mut().into_iter().flatten() {
            if !container.is_object() {
                continue;
            }
            let mounts = match &mut container["volumeMounts"] {
                Value::Array(mounts) => mounts,
                other => {
                    *other = json!([]);
                    let Value::Array(mounts) = other else {
                        continue;
                    };
                    mounts
                }
            };
            if mounts.iter().any(|m| m["mountPath"] == TOKEN_PATH) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
            used = true;
        }
    }
    // An absent list was made null by the look at it.
    let spec = field(object, "spec");
    spec.retain(|_, value| !value.is_null());
    if !used {
        return;
    }
    if let Value::Array(volumes) = spec.entry("volumes").or_insert_with(|| json!([])) {
        volumes.push(json!({
            "name": volume,
            "projected": {
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                    ]}},
                ],
                "defaultMode": 420,
            },
        }));
    }
}
