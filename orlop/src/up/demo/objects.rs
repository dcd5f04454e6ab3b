//! The demo's objects, as a user would write them.

use serde_json::{Value, json};

use super::image;

/// Where the demo lives.
pub const NAMESPACE: &str = "default";
/// The name of all of its objects.
pub const NAME: &str = "demo";
/// What the ConfigMap says.
pub const GREETING: &str = "hello from a ConfigMap";
/// What the Secret says.
pub const PASSWORD: &str = "a secret that is only on tmpfs";
/// How many replicas it has.
pub const REPLICAS: u32 = 3;

/// In the order in which they are applied.
pub fn all() -> [Value; 4] {
    [config_map(), secret(), service(), deployment(REPLICAS)]
}

fn meta() -> Value {
    json!({ "name": NAME, "namespace": NAMESPACE, "labels": { "app": NAME } })
}

fn config_map() -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(), "data": { "greeting": GREETING } })
}

fn secret() -> Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": meta(), "stringData": { "password": PASSWORD } })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta(),
        "spec": { "type": "NodePort", "selector": { "app": NAME }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
    })
}

/// The Deployment with so many replicas.
pub fn deployment(replicas: u32) -> Value {
    let probe =
        |path: &str| json!({ "httpGet": { "path": path, "port": "http" }, "periodSeconds": 2 });
    let container = json!({
        "name": "server", "image": image::name(1), "imagePullPolicy": "IfNotPresent",
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "env": [{ "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
        "resources": { "requests": { "cpu": "10m", "memory": "8Mi" }, "limits": { "cpu": "500m", "memory": "32Mi" } },
        "livenessProbe": probe("/healthz"), "readinessProbe": probe("/readyz"),
        "volumeMounts": [
            { "name": "config", "mountPath": "/etc/demo/config", "readOnly": true },
            { "name": "secret", "mountPath": "/etc/demo/secret", "readOnly": true },
        ],
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(),
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": NAME } },
            "template": {
                "metadata": { "labels": { "app": NAME } },
                "spec": {
                    "terminationGracePeriodSeconds": 2,
                    "containers": [container],
                    "volumes": [
                        { "name": "config", "configMap": { "name": NAME } },
                        { "name": "secret", "secret": { "secretName": NAME } },
                    ],
                },
            },
        },
    })
}
