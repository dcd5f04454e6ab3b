//! What the proxy answers over HTTP.

use crate::lab::{NODE, Namespace};
use crate::{Api, config, merged, service, slice_of, start};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The status and the rest of an answer.
fn get(node: &Namespace, to: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    let answer = node.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    });
    let Some(answer) = answer else {
        return (0, String::new());
    };
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a status");
    (status, answer)
}

/// Asks until the answer has a status: what is served follows the rules in a moment.
pub fn wait_for(node: &Namespace, to: SocketAddr, path: &str, status: u16) -> String {
    for _ in 0..500 {
        let (found, answer) = get(node, to, path);
        if found == status {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{path} gives {:?}, not {status}", get(node, to, path))
}

fn node_object(metadata: Value, spec: Value) -> Value {
    merged(
        json!({ "kind": "Node", "metadata": { "name": "node" }, "spec": {} }),
        json!({ "metadata": metadata, "spec": spec }),
    )
}

#[test]
fn health_and_metrics_have_upstreams_names() {
    let node = Namespace::new();
    let api = Api::default();
    let local = json!({ "spec": { "internalTrafficPolicy": "Local" } });
    api.apply(merged(service("10.96.0.10"), local));
    let health = SocketAddr::from(([127, 0, 0, 1], 10256));
    let metrics = SocketAddr::from(([127, 0, 0, 1], 10249));
    let config = proxy::Config {
        healthz_address: Some(health),
        metrics_address: Some(metrics),
        ..config()
    };
    let running = start(&api, &node, config);
    assert!(wait_for(&node, health, "/healthz", 200).contains("\"nodeEligible\": true"));
    assert!(wait_for(&node, health, "/livez", 200).contains("lastUpdated"));
    running.after(|| {
        let slice = slice_of(false, vec![json!({ "addresses": ["10.244.0.9"] })]);
        let time = "endpoints.kubernetes.io/last-change-trigger-time";
        let annotations = json!({ time: jiff::Timestamp::now().to_string() });
        api.apply(merged(
            slice,
            json!({ "metadata": { "annotations": annotations } }),
        ))
    });
    let text = wait_for(&node, metrics, "/metrics", 200);
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"}",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0",
        "kubeproxy_sync_proxy_rules_service_changes_total 0",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"} 0",
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 0",
        "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"} 0",
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\",ip_family=\"IPv4\"} 1",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"}",
        "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 0",
        "kubeproxy_proxy_healthz_total{code=\"200\"}",
    ] {
        assert!(text.contains(name), "{name} in {text}");
    }
    assert!(wait_for(&node, metrics, "/proxyMode", 200).ends_with("nftables"));
    api.apply(node_object(
        json!({}),
        json!({ "taints": [{ "key": "ToBeDeletedByClusterAutoscaler" }] }),
    ));
    wait_for(&node, health, "/healthz", 503);
    wait_for(&node, health, "/livez", 200);
}

#[test]
fn a_load_balancer_learns_whether_the_node_has_endpoints() {
    let node = Namespace::new();
    let api = Api::default();
    let balanced = |port: u16| {
        merged(
            service("10.96.0.10"),
            json!({ "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port
        } }),
        )
    };
    let on = |name: &str| {
        slice_of(
            false,
            vec![json!({ "addresses": ["10.244.0.9"], "nodeName": name })],
        )
    };
    api.apply(balanced(30999));
    api.apply(on("node"));
    let running = start(&api, &node, config());
    node.ip("addr add 192.0.2.1/24 dev lo");
    let at = |port| SocketAddr::from((NODE, port));
    let answer = wait_for(&node, at(30999), "/", 200);
    assert!(
        answer.contains("\"localEndpoints\": 1")
            && answer.contains("x-load-balancing-endpoint-weight: 1"),
        "{answer}"
    );
    running.after(|| api.apply(on("elsewhere")));
    wait_for(&node, at(30999), "/", 503);
    running.after(|| api.apply(balanced(30998)));
    wait_for(&node, at(30998), "/", 503);
    wait_for(&node, at(30999), "/", 0);
    running.after(|| api.delete("Service", "default", "web"));
    wait_for(&node, at(30998), "/", 0);
}
