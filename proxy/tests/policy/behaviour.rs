//! What packets meet where the matrix doesn't look: Services, nodes, established connections, restarts.

use crate::api::Api;
use crate::lab::{Lab, PORT, Pod};
use crate::{namespace, pod, policy, start};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

fn at(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.address, PORT)
}

fn deny_all() -> Value {
    policy(
        "a",
        "deny-all",
        json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }),
    )
}

/// Two pods `web` and `db` in namespace a.
fn world(lab: &Lab) -> Api {
    let api = Api::default();
    api.apply(namespace("a", json!({})));
    api.apply(pod(lab, 0, "a", json!({ "app": "web" }), PORT));
    api.apply(pod(lab, 1, "a", json!({ "app": "db" }), PORT));
    api
}

#[test]
fn the_node_reaches_an_isolated_pod_and_nobody_else_does() {
    let lab = Lab::new(2);
    let api = world(&lab);
    api.apply(deny_all());
    let running = start(&api, &lab.node);
    running.wait_for(|progress| progress.isolated == 4);
    for pod in &lab.pods {
        assert!(lab.node.ask(at(pod)).is_ok(), "a kubelet's probe");
        assert!(pod.namespace.ask(at(pod)).is_ok(), "itself");
    }
    assert!(lab.pods[0].namespace.ask(at(&lab.pods[1])).is_err());
    let to_node: SocketAddr = "10.244.0.1:7000".parse().expect("address");
    let listener = lab
        .node
        .run(move || TcpListener::bind(to_node))
        .expect("listen");
    let reach = move || TcpStream::connect_timeout(&to_node, Duration::from_millis(300)).is_ok();
    assert!(
        !lab.pods[0].namespace.run(reach),
        "egress to the node is egress"
    );
    running.after(1, || api.delete("NetworkPolicy", "a", "deny-all"));
    assert!(lab.pods[0].namespace.ask(at(&lab.pods[1])).is_ok());
    assert!(lab.pods[0].namespace.run(reach));
    drop(listener);
}

#[test]
fn a_pod_of_the_host_network_is_no_peer_and_is_not_isolated() {
    let lab = Lab::new(2);
    let api = world(&lab);
    let mut host = pod(&lab, 0, "a", json!({ "app": "web" }), PORT);
    host["spec"]["hostNetwork"] = true.into();
    api.apply(host);
    let spec = json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{ "from": [{ "podSelector": {} }] }] });
    api.apply(policy("a", "same-namespace", spec));
    let running = start(&api, &lab.node);
    running.wait_for(|progress| progress.isolated == 2);
    assert!(lab.pods[0].namespace.ask(at(&lab.pods[1])).is_err());
    assert!(lab.pods[1].namespace.ask(at(&lab.pods[0])).is_ok());
}

#[test]
fn an_address_that_passes_to_another_pod_passes_without_its_policies() {
    let lab = Lab::new(2);
    let api = world(&lab);
    let spec =
        json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Ingress"] });
    api.apply(policy("a", "db", spec));
    let running = start(&api, &lab.node);
    running.wait_for(|progress| progress.isolated == 2);
    assert!(lab.pods[0].namespace.ask(at(&lab.pods[1])).is_err());
    let mut next = pod(&lab, 1, "a", json!({ "app": "other" }), PORT);
    next["metadata"]["name"] = "next".into();
    let mut ended = pod(&lab, 1, "a", json!({ "app": "db" }), PORT);
    ended["status"]["phase"] = "Succeeded".into();
    running.after(2, || {
        api.apply(next);
        api.apply(ended);
    });
    assert_eq!(running.progress().isolated, 0);
    assert!(lab.pods[0].namespace.ask(at(&lab.pods[1])).is_ok());
}

#[test]
fn connections_that_stand_go_on_and_rules_stay_while_nobody_is_there() {
    let lab = Lab::new(2);
    let api = world(&lab);
    let running = start(&api, &lab.node);
    let echo = lab.pods[1]
        .namespace
        .run(|| TcpListener::bind("0.0.0.0:7001"))
        .expect("listen");
    lab.pods[1].namespace.spawn(move || {
        for mut stream in echo.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().expect("clone");
                std::io::copy(&mut reader, &mut stream)
            });
        }
    });
    let to = SocketAddr::new(lab.pods[1].address, 7001);
    let mut stream = lab.pods[0]
        .namespace
        .run(move || TcpStream::connect(to))
        .expect("connect");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("timeout");
    let mut echoes = || {
        stream.write_all(b"x").expect("write");
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an echo");
    };
    echoes();
    api.apply(deny_all());
    running.wait_for(|progress| progress.isolated == 4);
    echoes();
    assert!(lab.pods[0].namespace.ask(at(&lab.pods[1])).is_err());
    running.stop().expect("stop");
    assert!(
        lab.pods[0].namespace.ask(at(&lab.pods[1])).is_err(),
        "rules stay"
    );
    let again = start(&api, &lab.node);
    again.wait_for(|progress| progress.isolated == 4);
    echoes();
    again.stop().expect("stop");
    lab.node.run(proxy::policy::cleanup).expect("clean up");
    assert!(lab.pods[0].namespace.ask(at(&lab.pods[1])).is_ok());
}

#[test]
fn policies_see_a_services_endpoint_and_the_client_itself() {
    let lab = Lab::new(2);
    let api = world(&lab);
    let object = |kind: &str, name: &str| json!({ "kind": kind, "metadata": { "namespace": "a", "name": name } });
    let mut service = object("Service", "db");
    service["spec"] = json!({
        "type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
        "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "nodePort": 30081 }]
    });
    api.apply(service);
    let mut slice = object("EndpointSlice", "db-1");
    slice["metadata"]["labels"] = json!({ "kubernetes.io/service-name": "db" });
    slice["addressType"] = "IPv4".into();
    slice["ports"] = json!([{ "name": "http", "port": PORT, "protocol": "TCP" }]);
    slice["endpoints"] = json!([{ "addresses": [lab.pods[1].address], "nodeName": "node", "conditions": { "ready": true } }]);
    api.apply(slice);
    let only = |peer: Value| {
        let spec = json!({
            "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [peer], "ports": [{ "port": "http" }] }]
        });
        policy("a", "db", spec)
    };
    api.apply(only(
        json!({ "podSelector": { "matchLabels": { "app": "web" } } }),
    ));
    let networks = vec!["10.244.0.0/16".parse().expect("network")];
    let config = proxy::Config {
        bridge: Some("orlop0".into()),
        ..proxy::Config::new("node", networks)
    };
    let mut progress = config.progress();
    let (served, token) = (api.clone(), tokio_util::sync::CancellationToken::new());
    let stop = token.clone();
    lab.node.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime
            .block_on(async { proxy::run(config, served.client(), token).await })
            .expect("the proxy");
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime
        .block_on(progress.wait_for(proxy::Progress::synced))
        .expect("synced");
    let running = start(&api, &lab.node);
    running.wait_for(|progress| progress.isolated == 2);
    let through: SocketAddr = "10.96.0.7:80".parse().expect("address");
    let node_port = SocketAddr::new(IpAddr::from([192, 0, 2, 1]), 30081);
    assert!(lab.pods[0].namespace.ask(through).is_ok());
    assert!(
        lab.pods[1].namespace.ask(through).is_ok(),
        "itself through its Service"
    );
    assert!(lab.outside.ask(node_port).is_err());
    running.after(1, || {
        api.apply(only(json!({ "ipBlock": { "cidr": "192.0.2.100/32" } })))
    });
    assert!(lab.pods[0].namespace.ask(through).is_err());
    assert!(
        lab.outside.ask(node_port).is_ok(),
        "the client's address is seen, not the node's"
    );
    stop.cancel();
}
