//! watch: from now, from before, with selectors, and across a restart.

use serde_json::json;

use super::harness::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn version(object: &serde_json::Value) -> String {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there() {
    let cluster = Cluster::start().await;
    cluster.configmap("a", json!({})).await;
    let mut events = cluster.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(events.names(1).await, ["ADDED a"]);
    cluster
        .merge(&format!("{MAPS}/a"), json!({"data": {"key": "new"}}))
        .await
        .ok();
    cluster.delete(&format!("{MAPS}/a")).await.ok();
    assert_eq!(events.names(2).await, ["MODIFIED a", "DELETED a"]);
}

#[tokio::test]
async fn a_watch_from_a_version_tells_all_that_came_after_it() {
    let cluster = Cluster::start().await;
    let a = cluster.configmap("a", json!({})).await;
    cluster.configmap("b", json!({})).await;
    cluster
        .post(
            "/api/v1/namespaces/kube-system/configmaps",
            json!({"metadata": {"name": "elsewhere"}}),
        )
        .await
        .ok();
    cluster.delete(&format!("{MAPS}/a")).await.ok();
    let mut events = cluster
        .watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&a)))
        .await;
    assert_eq!(events.names(2).await, ["ADDED b", "DELETED a"]);
    cluster.configmap("c", json!({})).await;
    let event = events.next().await.unwrap();
    assert_eq!(event["object"]["metadata"]["name"], "c");
    assert_eq!(event["object"]["kind"], "ConfigMap");
}

#[tokio::test]
async fn an_object_comes_and_goes_as_it_matches_the_selector() {
    let cluster = Cluster::start().await;
    let mut events = cluster
        .watch(&format!("{MAPS}?watch=1&labelSelector=app%3Dweb"))
        .await;
    cluster.configmap("a", json!({"app": "other"})).await;
    let path = format!("{MAPS}/a");
    for app in ["web", "other", "web"] {
        cluster
            .merge(&path, json!({"metadata": {"labels": {"app": app}}}))
            .await
            .ok();
    }
    cluster
        .merge(&path, json!({"data": {"key": "new"}}))
        .await
        .ok();
    cluster.delete(&path).await.ok();
    let expected = ["ADDED a", "DELETED a", "ADDED a", "MODIFIED a", "DELETED a"];
    assert_eq!(events.names(5).await, expected);
}

#[tokio::test]
async fn a_field_selector_picks_one_object() {
    let cluster = Cluster::start().await;
    let mut events = cluster
        .watch(&format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Db"))
        .await;
    cluster.configmap("a", json!({})).await;
    cluster.configmap("b", json!({})).await;
    assert_eq!(events.names(1).await, ["ADDED b"]);
    let unknown = cluster
        .get(&format!("{MAPS}?fieldSelector=spec.x%3Db"))
        .await
        .failure();
    assert!(
        unknown.2.contains("field label not supported: spec.x"),
        "{}",
        unknown.2
    );
}

#[tokio::test]
async fn a_streamed_list_ends_with_its_bookmark() {
    let cluster = Cluster::start().await;
    cluster.configmap("a", json!({})).await;
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = cluster.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(events.names(1).await, ["ADDED a"]);
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    cluster.configmap("b", json!({})).await;
    assert_eq!(events.names(1).await, ["ADDED b"]);
    let refused = cluster
        .get(&format!("{MAPS}?watch=1&sendInitialEvents=true"))
        .await
        .failure();
    assert_eq!((refused.0, &*refused.1), (422, "Invalid"));
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart_of_the_server() {
    let cluster = Cluster::start().await;
    let a = cluster.configmap("a", json!({})).await;
    cluster.configmap("b", json!({})).await;
    let cluster = cluster.restart().await;
    let mut events = cluster
        .watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&a)))
        .await;
    assert_eq!(events.names(1).await, ["ADDED b"]);
}

#[tokio::test]
async fn a_watch_from_too_long_ago_is_told_so() {
    let cluster = Cluster::start().await;
    let a = cluster.configmap("a", json!({})).await;
    // More than what is kept for watches, in changes of 100 kB.
    let data = "x".repeat(100_000);
    for count in 0..80 {
        let patch = json!({"data": {"key": format!("{count}{data}")}});
        cluster.merge(&format!("{MAPS}/a"), patch).await.ok();
    }
    let mut events = cluster
        .watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&a)))
        .await;
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "ERROR");
    assert_eq!(
        (&event["object"]["code"], &event["object"]["reason"]),
        (&json!(410), &json!("Expired"))
    );
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over() {
    let cluster = Cluster::start().await;
    let mut events = cluster
        .watch(&format!("{MAPS}?watch=1&timeoutSeconds=1"))
        .await;
    assert_eq!(events.next().await, None);
}
