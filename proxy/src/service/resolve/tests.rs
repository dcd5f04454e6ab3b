use super::*;
use crate::service::object::{EndpointSlice, Service};
use serde_json::{Value, json};

fn resolved(spec: Value, status: Value) -> ResolvedService {
    let service =
        json!({ "metadata": { "namespace": "ns", "name": "web" }, "spec": spec, "status": status });
    let service: Service = serde_json::from_value(service).expect("service");
    let slice = |name: &str, kind: &str, address: &str| {
        json!({
            "metadata": { "namespace": "ns", "name": name },
            "addressType": kind,
            "endpoints": [{ "addresses": [address], "nodeName": "here", "conditions": { "ready": true } }],
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }, { "name": "dns", "port": 53, "protocol": "UDP" }]
        })
    };
    let slices: Vec<SliceFacts> = [
        slice("a", "IPv4", "10.0.0.1"),
        slice("b", "IPv6", "fd00::1"),
    ]
    .into_iter()
    .map(|slice| serde_json::from_value(slice).expect("slice"))
    .map(|slice: EndpointSlice| SliceFacts::of(&slice, "here").expect("addresses"))
    .collect();
    let node = NodeFacts {
        name: "here".into(),
        ..NodeFacts::default()
    };
    resolve(
        &ServiceName::new("ns", "web"),
        &ServiceFacts::of(&service),
        slices.iter(),
        &node,
    )
}

#[test]
fn a_dual_stack_service_has_each_port_in_each_family_with_that_familys_endpoints() {
    let resolved = resolved(
        json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"],
            "ports": [{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]
        }),
        json!({}),
    );
    let seen: Vec<_> = resolved
        .ports
        .iter()
        .map(|p| (p.family, &*p.name, p.protocol, p.cluster.clone()))
        .collect();
    let v4 = |port| vec![SocketAddr::from(([10, 0, 0, 1], port))];
    let v6 = |port| vec![format!("[fd00::1]:{port}").parse().expect("address")];
    assert_eq!(
        seen,
        [
            (Family::Ip, "ns/web:http", Protocol::Tcp, v4(8080)),
            (Family::Ip, "ns/web:dns", Protocol::Udp, v4(53)),
            (Family::Ip6, "ns/web:http", Protocol::Tcp, v6(8080)),
            (Family::Ip6, "ns/web:dns", Protocol::Udp, v6(53)),
        ]
    );
}

#[test]
fn headless_and_external_name_services_are_left_alone() {
    let ports = json!([{ "name": "http", "port": 80 }]);
    assert_eq!(
        resolved(json!({ "clusterIP": "None", "ports": ports }), json!({})),
        ResolvedService::default()
    );
    let named = json!({ "type": "ExternalName", "clusterIP": "10.96.0.1", "ports": ports });
    assert_eq!(resolved(named, json!({})), ResolvedService::default());
}

#[test]
fn an_unknown_protocol_is_not_taken_for_tcp() {
    let spec = json!({ "clusterIP": "10.96.0.1", "ports": [{ "name": "http", "port": 80, "protocol": "QUIC" }] });
    assert!(resolved(spec, json!({})).ports.is_empty());
}

#[test]
fn a_load_balancer_in_proxy_mode_has_no_frontend_and_ranges_bind_its_address_only() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30999, "externalIPs": ["192.0.2.9"],
        "loadBalancerSourceRanges": ["198.51.100.0/24", " 203.0.113.0/24", "fd00::/8"],
        "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }]
    });
    let status = json!({ "loadBalancer": { "ingress": [
        { "ip": "192.0.2.1", "ipMode": "VIP" }, { "ip": "192.0.2.2", "ipMode": "Proxy" }, { "hostname": "x" }
    ] } });
    let resolved = resolved(spec, status);
    let port = &resolved.ports[0];
    let external: Vec<String> = port
        .external
        .iter()
        .map(|frontend| frontend.address.to_string())
        .collect();
    assert_eq!(external, ["192.0.2.1", "192.0.2.9"]);
    assert_eq!(port.restricted().len(), 1);
    assert_eq!(port.source_ranges.len(), 2);
    assert_eq!((port.node_port, port.external_local), (Some(30080), true));
    assert_eq!(
        (resolved.health_check_port, resolved.local_endpoints),
        (Some(30999), 1)
    );
}

#[test]
fn affinity_has_upstreams_default() {
    let spec = |config: Value| {
        json!({
            "clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP", "sessionAffinityConfig": config,
            "ports": [{ "name": "http", "port": 80 }]
        })
    };
    let seconds = |config| {
        resolved(spec(config), json!({})).ports[0]
            .affinity
            .map(|affinity| affinity.seconds)
    };
    assert_eq!(seconds(Value::Null), Some(10_800));
    assert_eq!(
        seconds(json!({ "clientIP": { "timeoutSeconds": 10 } })),
        Some(10)
    );
}
