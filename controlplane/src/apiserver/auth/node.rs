//! What a kubelet may do of what its rules allow (upstream's node authorizer): it writes no Node but its own, and reads
//! the Secrets, ConfigMaps and claims of the pods that are bound to it, each by its name.

use api::selector::FieldSelector;
use serde_json::Value;

use super::super::cache::{Cache, Filter};
use super::super::route::Target;
use super::User;

/// What is read only by the name that a pod gives.
const REFERENCED: &[&str] = &["secrets", "configmaps", "persistentvolumeclaims"];

/// Whether a request that the rules allow is this kubelet's to make. Whoever is no kubelet may.
pub fn permits(cache: &Cache, user: &User, target: &Target) -> bool {
    let Some(node) = user.name.strip_prefix("system:node:") else {
        return true;
    };
    if !target.group.is_empty() {
        return true;
    }
    let reads = matches!(target.verb, "get" | "list" | "watch");
    match target.resource.as_str() {
        "nodes" => reads || target.name.is_empty() || target.name == node,
        kind if REFERENCED.contains(&kind) => {
            !target.name.is_empty() && is_referenced(cache, node, target)
        }
        _ => true,
    }
}

/// Whether a pod on `node` refers to the object.
fn is_referenced(cache: &Cache, node: &str, target: &Target) -> bool {
    let Some(pods) = cache.resource("", "v1", "pods") else {
        return false;
    };
    let Ok(on_node) = FieldSelector::parse(&format!("spec.nodeName={node}")) else {
        return false;
    };
    let filter = Filter {
        namespace: target.namespace.clone(),
        labels: None,
        fields: Some(on_node),
    };
    let quoted = format!("{:?}", target.name);
    let (pods, _) = pods.list(&filter, cache.applied());
    pods.iter().any(|pod| {
        // Most pods don't even hold the word.
        let spoken_of = pod
            .json
            .windows(quoted.len())
            .any(|w| w == quoted.as_bytes());
        spoken_of && refers(&pod.value()["spec"], &target.resource, &target.name)
    })
}

/// Whether a pod's spec, or a part of it, refers to an object of a resource.
fn refers(part: &Value, resource: &str, name: &str) -> bool {
    match part {
        Value::Array(items) => items.iter().any(|item| refers(item, resource, name)),
        Value::Object(fields) => fields.iter().any(|(field, value)| {
            let named = match (resource, field.as_str()) {
                ("secrets", "secretName") => value == name,
                ("secrets", "secret" | "secretRef" | "secretKeyRef" | "nodePublishSecretRef")
                | ("configmaps", "configMap" | "configMapRef" | "configMapKeyRef") => {
                    value["name"] == name
                }
                ("secrets", "imagePullSecrets") => api::object::list(value, "")
                    .iter()
                    .any(|s| s["name"] == name),
                ("persistentvolumeclaims", "persistentVolumeClaim") => value["claimName"] == name,
                _ => false,
            };
            named || refers(value, resource, name)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_refers_to_what_its_volumes_and_variables_name() {
        let spec = json!({
            "volumes": [
                {"name": "a", "secret": {"secretName": "s1"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "s2"}}, {"configMap": {"name": "c1"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "p1"}},
            ],
            "containers": [{"name": "s9", "env": [
                {"name": "E", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "k"}}},
            ], "envFrom": [{"configMapRef": {"name": "c2"}}]}],
            "imagePullSecrets": [{"name": "s4"}],
        });
        for name in ["s1", "s2", "s3", "s4"] {
            assert!(refers(&spec, "secrets", name), "{name}");
            assert!(!refers(&spec, "configmaps", name), "{name}");
        }
        assert!(refers(&spec, "configmaps", "c1") && refers(&spec, "configmaps", "c2"));
        assert!(refers(&spec, "persistentvolumeclaims", "p1"));
        assert!(!refers(&spec, "secrets", "s9") && !refers(&spec, "secrets", "c1"));
    }
}
