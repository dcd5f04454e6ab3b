//! What a kubelet may do, and what it may not.

use http::Method;
use serde_json::json;

use super::harness::{Answer, Cluster, send};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// Two nodes with a pod each.
async fn cluster() -> (Cluster, kube::Client) {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster
        .post(accounts, json!({"metadata": {"name": "default"}}))
        .await
        .ok();
    for (pod, node) in [("mine", "n1"), ("theirs", "n2")] {
        let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}]});
        cluster
            .post(PODS, json!({"metadata": {"name": pod}, "spec": spec}))
            .await
            .ok();
    }
    let kubelet = cluster.server.client("system:node:n1", &["system:nodes"]);
    (cluster, kubelet)
}

async fn patch(client: &kube::Client, path: &str, patch: serde_json::Value) -> Answer {
    send(
        client,
        Method::PATCH,
        path,
        Some(patch),
        "application/strategic-merge-patch+json",
    )
    .await
}

async fn post(client: &kube::Client, path: &str, object: serde_json::Value) -> Answer {
    send(client, Method::POST, path, Some(object), "application/json").await
}

#[tokio::test]
async fn a_kubelet_reports_and_ends_its_own_pods_only() {
    let (_cluster, kubelet) = cluster().await;
    let status = json!({"status": {"phase": "Running"}});
    let patched = patch(&kubelet, &format!("{PODS}/mine/status"), status.clone())
        .await
        .ok();
    assert_eq!(patched["status"]["phase"], "Running");
    let (code, _, message) = patch(&kubelet, &format!("{PODS}/theirs/status"), status)
        .await
        .failure();
    assert_eq!(code, 403);
    assert!(message.contains(
        "node \"n1\" can only update pod status for pods with spec.nodeName set to itself"
    ));
    let end = |name: &str| format!("{PODS}/{name}?gracePeriodSeconds=0");
    send(&kubelet, Method::DELETE, &end("mine"), None, "")
        .await
        .ok();
    assert_eq!(
        send(&kubelet, Method::DELETE, &end("theirs"), None, "")
            .await
            .failure()
            .0,
        403
    );
}

#[tokio::test]
async fn a_kubelet_registers_itself_and_nobody_else() {
    let (_cluster, kubelet) = cluster().await;
    let node = |name: &str| json!({"metadata": {"name": name}});
    post(&kubelet, "/api/v1/nodes", node("n1")).await.ok();
    assert_eq!(
        post(&kubelet, "/api/v1/nodes", node("n2"))
            .await
            .failure()
            .0,
        403
    );
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    post(&kubelet, leases, node("n1")).await.ok();
    assert_eq!(post(&kubelet, leases, node("n2")).await.failure().0, 403);
}

#[tokio::test]
async fn a_kubelet_gets_tokens_for_its_own_pods_only() {
    let (cluster, kubelet) = cluster().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    for (name, allowed) in [("mine", true), ("theirs", false)] {
        let pod = cluster.get(&format!("{PODS}/{name}")).await.ok();
        let bound =
            json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod["metadata"]["uid"]});
        let answer = post(&kubelet, path, json!({"spec": {"boundObjectRef": bound}})).await;
        assert_eq!(answer.0.is_ok(), allowed, "{name}");
    }
    assert_eq!(
        post(&kubelet, path, json!({"spec": {}})).await.failure().0,
        403
    );
}

#[tokio::test]
async fn a_kubelet_reads_what_its_own_pods_refer_to() {
    let (cluster, kubelet) = cluster().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for (name, node) in [("a", "n1"), ("b", "n2")] {
        cluster
            .post(secrets, json!({"metadata": {"name": name}}))
            .await
            .ok();
        let spec = json!({
            "nodeName": node,
            "volumes": [{"name": "v", "secret": {"secretName": name}}],
            "containers": [{"name": "c", "image": "i"}],
        });
        cluster
            .post(PODS, json!({"metadata": {"name": name}, "spec": spec}))
            .await
            .ok();
    }
    let code = async |path: String| match send(&kubelet, Method::GET, &path, None, "").await.0 {
        Ok(_) => 200,
        Err(status) => status["code"].as_u64().unwrap(),
    };
    assert_eq!(code(format!("{secrets}/a")).await, 200);
    assert_eq!(
        code(format!("{secrets}?fieldSelector=metadata.name%3Da")).await,
        200
    );
    assert_eq!(code(format!("{secrets}/b")).await, 403);
    assert_eq!(code(secrets.into()).await, 403);
    assert_eq!(
        code("/api/v1/namespaces/default/configmaps/kube-root-ca.crt".into()).await,
        404
    );
}
