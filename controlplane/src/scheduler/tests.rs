use serde_json::{Value, json};

use super::*;

fn node(name: &str, extra: Value) -> Node {
    let mut node = json!({ "metadata": { "name": name, "labels": { "disk": "ssd", "size": "4" } }, "spec": {},
        "status": { "allocatable": { "cpu": "2", "memory": "1Gi", "pods": "3" } } });
    json_patch::merge(&mut node, &extra);
    serde_json::from_value(node).expect("a node")
}

fn pod(name: &str, spec: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec, "status": { "phase": "Pending" } }))
        .expect("a pod")
}

fn asking(name: &str, cpu: &str) -> Pod {
    pod(
        name,
        json!({ "containers": [{ "resources": { "requests": { "cpu": cpu } } }] }),
    )
}

fn cluster(nodes: &[Node]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.node_changed(None, Some(node));
    }
    cluster
}

fn place(pod: &Pod, cluster: &Cluster) -> Result<String, String> {
    choose(pod, &Demand::of(pod), cluster)
}

#[test]
fn a_pod_goes_where_there_is_more_room() {
    let mut cluster = cluster(&[node("a", json!({})), node("b", json!({}))]);
    let mut first = asking("first", "500m");
    first.spec.node_name = Some("a".to_owned());
    cluster.pod_changed(None, Some(&first));
    assert_eq!(
        place(&asking("second", "500m"), &cluster),
        Ok("b".to_owned())
    );
}

#[test]
fn requests_are_summed_exactly_and_an_ended_pod_frees_its_part() {
    let mut cluster = cluster(&[node("a", json!({}))]);
    let mut first = asking("first", "1500m");
    first.spec.node_name = Some("a".to_owned());
    cluster.pod_changed(None, Some(&first));
    assert_eq!(
        place(&asking("x", "501m"), &cluster),
        Err("0/1 nodes are available: 1 Insufficient cpu.".to_owned())
    );
    assert!(place(&asking("x", "500m"), &cluster).is_ok());
    let mut ended = first.clone();
    ended.status.phase = Some("Succeeded".to_owned());
    assert!(
        cluster.pod_changed(Some(&first), Some(&ended)),
        "this frees something"
    );
    assert!(place(&asking("x", "2"), &cluster).is_ok());
}

#[test]
fn a_full_node_says_too_many_pods() {
    let mut cluster = cluster(&[node(
        "a",
        json!({ "status": { "allocatable": { "pods": "1" } } }),
    )]);
    cluster.assume(&Key::new("default", "other"), "a", &Demand::default());
    assert_eq!(
        place(&asking("x", "0"), &cluster),
        Err("0/1 nodes are available: 1 Too many pods.".to_owned())
    );
    cluster.forget(&Key::new("default", "other"));
    assert!(place(&asking("x", "0"), &cluster).is_ok());
}

#[test]
fn taints_selectors_and_affinity_keep_pods_away_in_upstreams_words() {
    let tainted = node(
        "a",
        json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] } }),
    );
    let other = node(
        "b",
        json!({ "metadata": { "labels": { "disk": "hdd", "size": "2" } } }),
    );
    let cluster = cluster(&[tainted, other]);
    let picky = pod(
        "p",
        json!({ "nodeSelector": { "disk": "ssd" }, "containers": [] }),
    );
    let expected = "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {k: v}.";
    assert_eq!(place(&picky, &cluster), Err(expected.to_owned()));
    let bearing = pod(
        "p",
        json!({ "nodeSelector": { "disk": "ssd" }, "tolerations": [{ "key": "k", "operator": "Exists" }], "containers": [] }),
    );
    assert_eq!(place(&bearing, &cluster), Ok("a".to_owned()));
    let affine = |expression: Value| {
        pod(
            "p",
            json!({ "containers": [], "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution":
            { "nodeSelectorTerms": [{ "matchExpressions": [expression] }] } } } }),
        )
    };
    assert_eq!(
        place(
            &affine(json!({ "key": "size", "operator": "Lt", "values": ["3"] })),
            &cluster
        ),
        Ok("b".to_owned())
    );
    assert!(
        place(
            &affine(json!({ "key": "size", "operator": "Gt", "values": ["3"] })),
            &cluster
        )
        .is_err()
    );
}

#[test]
fn a_host_port_is_held_once() {
    let mut cluster = cluster(&[node("a", json!({}))]);
    let holder = |name: &str, ip: &str| {
        pod(
            name,
            json!({ "nodeName": "a", "containers": [{ "ports": [{ "containerPort": 80, "hostPort": 80, "hostIP": ip }] }] }),
        )
    };
    cluster.pod_changed(None, Some(&holder("first", "10.0.0.1")));
    assert!(place(&holder("second", "10.0.0.2"), &cluster).is_ok());
    assert!(place(&holder("second", "0.0.0.0"), &cluster).is_err());
}

#[test]
fn no_nodes_is_said() {
    assert_eq!(
        place(&asking("x", "1"), &Cluster::default()),
        Err("no nodes available to schedule pods".to_owned())
    );
}
