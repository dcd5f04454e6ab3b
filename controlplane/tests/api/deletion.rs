//! delete: grace periods, finalizers, namespaces, preconditions.

use serde_json::json;

use super::harness::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn pod(cluster: &Cluster, name: &str) {
    let account = json!({"metadata": {"name": "default"}});
    let _ = cluster
        .post("/api/v1/namespaces/default/serviceaccounts", account)
        .await;
    let object =
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster.post(PODS, object).await.ok();
}

async fn bind(cluster: &Cluster, name: &str) {
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    cluster
        .post(&format!("{PODS}/{name}/binding"), binding)
        .await
        .ok();
}

#[tokio::test]
async fn a_pod_on_a_node_goes_when_its_kubelet_says_so() {
    let cluster = Cluster::start().await;
    pod(&cluster, "web").await;
    bind(&cluster, "web").await;
    let path = format!("{PODS}/web");
    let deleted = cluster.delete(&path).await.ok();
    assert_eq!(deleted["metadata"]["deletionGracePeriodSeconds"], 30);
    let hastened = cluster
        .delete(&format!("{path}?gracePeriodSeconds=5"))
        .await
        .ok();
    assert_eq!(hastened["metadata"]["deletionGracePeriodSeconds"], 5);
    let delayed = cluster
        .delete(&format!("{path}?gracePeriodSeconds=60"))
        .await
        .ok();
    assert_eq!(delayed["metadata"]["deletionGracePeriodSeconds"], 5);
    cluster
        .merge(&path, json!({"metadata": {"labels": {"still": "here"}}}))
        .await
        .ok();
    cluster
        .delete(&format!("{path}?gracePeriodSeconds=0"))
        .await
        .ok();
    assert_eq!(cluster.get(&path).await.failure().0, 404);
}

#[tokio::test]
async fn a_pod_that_is_on_no_node_goes_at_once() {
    let cluster = Cluster::start().await;
    pod(&cluster, "web").await;
    assert_eq!(
        cluster.delete(&format!("{PODS}/web")).await.ok()["kind"],
        "Pod"
    );
    assert_eq!(cluster.get(&format!("{PODS}/web")).await.failure().0, 404);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::start().await;
    pod(&cluster, "web").await;
    bind(&cluster, "web").await;
    let bound = cluster.get(&format!("{PODS}/web")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let scheduled = &bound["status"]["conditions"][0];
    assert_eq!(
        (&scheduled["type"], &scheduled["status"]),
        (&json!("PodScheduled"), &json!("True"))
    );
    let binding = json!({"metadata": {"name": "web"}, "target": {"name": "n2"}});
    assert_eq!(
        cluster
            .post(&format!("{PODS}/web/binding"), binding)
            .await
            .failure()
            .0,
        409
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let cluster = Cluster::start().await;
    let object = json!({"metadata": {"name": "a", "finalizers": ["example.com/a"]}});
    cluster.post(MAPS, object).await.ok();
    let path = format!("{MAPS}/a");
    let deleted = cluster.delete(&path).await.ok();
    assert!(deleted["metadata"]["deletionTimestamp"].is_string());
    let added = json!({"metadata": {"finalizers": ["example.com/a", "example.com/b"]}});
    assert_eq!(cluster.merge(&path, added).await.failure().0, 422);
    cluster
        .merge(&path, json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    assert_eq!(cluster.get(&path).await.failure().0, 404);
}

#[tokio::test]
async fn propagation_is_a_finalizer_for_the_garbage_collector() {
    let cluster = Cluster::start().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        cluster.configmap("a", json!({})).await;
        let path = format!("{MAPS}/a");
        let deleted = cluster
            .delete(&format!("{path}?propagationPolicy={policy}"))
            .await
            .ok();
        assert_eq!(deleted["metadata"]["finalizers"], json!([finalizer]));
        cluster
            .merge(&path, json!({"metadata": {"finalizers": []}}))
            .await
            .ok();
        assert_eq!(cluster.get(&path).await.failure().0, 404);
    }
}

#[tokio::test]
async fn a_namespace_takes_nothing_new_and_goes_when_it_is_finalized() {
    let cluster = Cluster::start().await;
    cluster
        .post("/api/v1/namespaces", json!({"metadata": {"name": "x"}}))
        .await
        .ok();
    let deleted = cluster.delete("/api/v1/namespaces/x").await.ok();
    assert_eq!(deleted["status"]["phase"], "Terminating");
    let (code, _, message) = cluster
        .post(
            "/api/v1/namespaces/x/configmaps",
            json!({"metadata": {"name": "a"}}),
        )
        .await
        .failure();
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "configmaps \"a\" is forbidden: unable to create new content in namespace x because it is being terminated"
    );
    let mut finalized = cluster.get("/api/v1/namespaces/x").await.ok();
    finalized["spec"]["finalizers"] = json!([]);
    cluster
        .put("/api/v1/namespaces/x/finalize", finalized)
        .await
        .ok();
    assert_eq!(cluster.get("/api/v1/namespaces/x").await.failure().0, 404);
    assert_eq!(
        cluster
            .delete("/api/v1/namespaces/default")
            .await
            .failure()
            .0,
        403
    );
}

#[tokio::test]
async fn a_collection_goes_by_its_selector() {
    let cluster = Cluster::start().await;
    for (name, app) in [("a", "1"), ("b", "2"), ("c", "1")] {
        cluster.configmap(name, json!({"app": app})).await;
    }
    cluster
        .delete(&format!("{MAPS}?labelSelector=app%3D1"))
        .await
        .ok();
    let left = cluster.get(MAPS).await.ok();
    let names: Vec<_> = left["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["metadata"]["name"].clone())
        .collect();
    assert_eq!(names, ["b"]);
}

#[tokio::test]
async fn a_precondition_must_hold() {
    let cluster = Cluster::start().await;
    cluster.configmap("a", json!({})).await;
    let body = json!({"preconditions": {"uid": "other"}});
    let path = format!("{MAPS}/a");
    let answer = super::harness::send(
        &cluster.client,
        http::Method::DELETE,
        &path,
        Some(body),
        "application/json",
    )
    .await;
    let (code, _, message) = answer.failure();
    assert_eq!(code, 409);
    assert!(
        message.contains("the UID in the precondition (other) does not match the UID in record"),
        "{message}"
    );
}
