//! What packets meet.

use crate::lab::{Answer, Lab, NODE, NODE6, OUTSIDE};
use crate::{Api, Kind, merged, service, slice, slice_of, start};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub const WEB: &str = "10.96.0.10";

/// Each behaviour, by each kind of rules.
macro_rules! by_each_kind {
    ($($name:ident)*) => {
        mod nftables {
            $(#[test] fn $name() { super::$name(super::Kind::Nftables) })*
        }
        mod iptables {
            $(#[test] fn $name() { super::$name(super::Kind::Iptables) })*
        }
        mod legacy_iptables {
            $(#[test] fn $name() { super::$name(super::Kind::LegacyIptables) })*
        }
    };
}

by_each_kind! {
    a_cluster_ip_answers_from_node_and_pod_and_spreads_evenly
    pods_see_each_others_address_and_nodes_are_masqueraded
    dual_stack_serves_both_families
    a_service_without_endpoints_is_refused_at_once_and_so_is_another_port
    a_node_port_answers_outside_and_inside_and_on_loopback_by_iptables_alone
    external_traffic_policy_local_keeps_the_clients_address_and_the_node
    internal_traffic_policy_local_stays_on_the_node
    source_ranges_bind_the_load_balancers_address_only
    a_client_stays_with_its_endpoint_until_that_goes
    affinity_ends_with_its_timeout_and_spreads_clients
    udp_leaves_an_endpoint_that_goes
    terminating_endpoints_serve_while_there_is_no_other
    connections_made_during_changes_all_succeed
    node_ports_answer_on_the_nodes_primary_address_if_told_so
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("address"), port)
}

fn node(port: u16) -> SocketAddr {
    SocketAddr::from((NODE, port))
}

pub fn addresses(lab: &Lab) -> Vec<IpAddr> {
    lab.pods.iter().map(|pod| pod.address).collect()
}

fn servers(answers: impl IntoIterator<Item = Result<Answer, String>>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.expect("an answer").server).or_default() += 1;
    }
    counts
}

fn a_cluster_ip_answers_from_node_and_pod_and_spreads_evenly(kind: Kind) {
    let lab = kind.lab(3);
    let api = Api::default();
    api.apply(service(WEB));
    api.apply(slice(&addresses(&lab)));
    let _running = start(&api, &lab.node, kind.config());
    let from_node = servers((0..600).map(|_| lab.node.ask(at(WEB, 80))));
    assert_eq!(from_node.len(), 3);
    // Three standard deviations of a fair draw are 35.
    assert!(
        from_node.values().all(|count| (150..=250).contains(count)),
        "{from_node:?}"
    );
    let from_pod = servers((0..60).map(|_| lab.pods[0].namespace.ask(at(WEB, 80))));
    assert_eq!(from_pod.len(), 3, "itself too: {from_pod:?}");
}

fn pods_see_each_others_address_and_nodes_are_masqueraded(kind: Kind) {
    let lab = kind.lab(2);
    let api = Api::default();
    api.apply(service(WEB));
    api.apply(slice(&[lab.pods[1].address]));
    let _running = start(&api, &lab.node, kind.config());
    let seen = lab.pods[0]
        .namespace
        .ask(at(WEB, 80))
        .expect("an answer")
        .seen;
    if lab
        .node
        .command("cat /proc/sys/net/bridge/bridge-nf-call-iptables || true")
        .trim()
        == "1"
    {
        assert_eq!(seen, lab.pods[0].address);
    }
    assert_eq!(
        lab.node.ask(at(WEB, 80)).expect("an answer").seen,
        IpAddr::from([10, 244, 0, 1])
    );
    let itself = lab.pods[1]
        .namespace
        .ask(at(WEB, 80))
        .expect("a hairpin answer")
        .seen;
    assert_ne!(itself, lab.pods[1].address);
}

fn dual_stack_serves_both_families(kind: Kind) {
    let lab = kind.lab(2);
    let api = Api::default();
    let both = merged(
        service(WEB),
        json!({ "spec": {
        "type": "NodePort", "clusterIPs": [WEB, "fd96::10"],
        "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080 }]
    } }),
    );
    api.apply(both);
    api.apply(slice(&addresses(&lab)));
    let six: Vec<IpAddr> = lab.pods.iter().map(|pod| pod.address6).collect();
    api.apply(merged(
        slice(&six),
        json!({ "metadata": { "name": "web-6" } }),
    ));
    let _running = start(&api, &lab.node, kind.config());
    for address in [WEB, "fd96::10"] {
        assert_eq!(
            servers((0..40).map(|_| lab.node.ask(at(address, 80)))).len(),
            2,
            "{address}"
        );
        assert_eq!(
            servers((0..40).map(|_| lab.pods[0].namespace.ask(at(address, 80)))).len(),
            2,
            "{address}"
        );
    }
    assert_eq!(
        servers((0..40).map(|_| lab.outside.ask(at(NODE6, 30080)))).len(),
        2
    );
    assert_eq!(
        servers((0..40).map(|_| lab.outside.ask(node(30080)))).len(),
        2
    );
}

fn a_service_without_endpoints_is_refused_at_once_and_so_is_another_port(kind: Kind) {
    let lab = kind.lab(1);
    let api = Api::default();
    api.apply(merged(
        service(WEB),
        json!({ "spec": {
        "type": "NodePort", "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }]
    } }),
    ));
    let running = start(&api, &lab.node, kind.config());
    let refused = Err("connection refused".to_owned());
    for namespace in [&lab.node, &lab.pods[0].namespace] {
        assert_eq!(namespace.ask(at(WEB, 80)), refused);
        if kind == Kind::Nftables {
            assert_eq!(namespace.ask(at(WEB, 81)), refused);
        }
        assert_eq!(namespace.ask(node(30080)), refused);
    }
    assert_eq!(lab.outside.ask(node(30080)), refused);
    running.after(|| api.apply(slice(&addresses(&lab))));
    assert!(lab.node.ask(at(WEB, 80)).is_ok());
    assert!(lab.outside.ask(node(30080)).is_ok());
    running.after(|| api.apply(slice(&[])));
    assert_eq!(lab.pods[0].namespace.ask(at(WEB, 80)), refused);
}

fn a_node_port_answers_outside_and_inside_and_on_loopback_by_iptables_alone(kind: Kind) {
    let lab = kind.lab(2);
    let api = Api::default();
    api.apply(merged(
        service(WEB),
        json!({ "spec": {
        "type": "NodePort", "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }]
    } }),
    ));
    api.apply(slice(&addresses(&lab)));
    let _running = start(&api, &lab.node, kind.config());
    assert_eq!(
        servers((0..40).map(|_| lab.outside.ask(node(30080)))).len(),
        2
    );
    assert_eq!(servers((0..40).map(|_| lab.node.ask(node(30080)))).len(), 2);
    assert_eq!(
        servers((0..40).map(|_| lab.pods[0].namespace.ask(node(30080)))).len(),
        2
    );
    assert_eq!(
        lab.node.ask(at("127.0.0.1", 30080)).is_ok(),
        kind != Kind::Nftables
    );
    assert_ne!(
        lab.outside.ask(node(30080)).expect("an answer").seen,
        IpAddr::from(OUTSIDE)
    );
}

fn external_traffic_policy_local_keeps_the_clients_address_and_the_node(kind: Kind) {
    let lab = kind.lab(2);
    let api = Api::default();
    let spec = json!({ "spec": {
        "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }]
    }, "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } } });
    api.apply(merged(service(WEB), spec));
    let on = |address: IpAddr, node: &str| json!({ "addresses": [address.to_string()], "nodeName": node });
    api.apply(slice_of(
        false,
        vec![
            on(lab.pods[0].address, "node"),
            on(lab.pods[1].address, "elsewhere"),
        ],
    ));
    let running = start(&api, &lab.node, kind.config());
    for to in [node(30080), at("203.0.113.7", 80)] {
        for _ in 0..20 {
            let answer = lab.outside.ask(to).expect("an answer");
            assert_eq!(
                (answer.server.as_str(), answer.seen),
                ("pod0", IpAddr::from(OUTSIDE))
            );
        }
        assert_eq!(
            servers((0..40).map(|_| lab.pods[0].namespace.ask(to))).len(),
            2,
            "from within, all endpoints"
        );
        assert_eq!(
            servers((0..40).map(|_| lab.node.ask(to))).len(),
            2,
            "from the node, all endpoints"
        );
    }
    running.after(|| api.apply(slice_of(false, vec![on(lab.pods[1].address, "elsewhere")])));
    assert_eq!(
        lab.outside.ask(node(30080)),
        Err("timed out".into()),
        "dropped, so that the balancer looks elsewhere"
    );
    assert!(lab.pods[0].namespace.ask(node(30080)).is_ok());
}

fn internal_traffic_policy_local_stays_on_the_node(kind: Kind) {
    let lab = kind.lab(2);
    let api = Api::default();
    api.apply(merged(
        service(WEB),
        json!({ "spec": { "internalTrafficPolicy": "Local" } }),
    ));
    let on = |address: IpAddr, node: &str| json!({ "addresses": [address.to_string()], "nodeName": node });
    api.apply(slice_of(
        false,
        vec![
            on(lab.pods[0].address, "node"),
            on(lab.pods[1].address, "elsewhere"),
        ],
    ));
    let running = start(&api, &lab.node, kind.config());
    let from_pod = servers((0..20).map(|_| lab.pods[1].namespace.ask(at(WEB, 80))));
    assert_eq!(from_pod.keys().collect::<Vec<_>>(), ["pod0"]);
    running.after(|| api.apply(slice_of(false, vec![on(lab.pods[1].address, "elsewhere")])));
    assert_eq!(
        lab.pods[1].namespace.ask(at(WEB, 80)),
        Err("timed out".into())
    );
}

fn source_ranges_bind_the_load_balancers_address_only(kind: Kind) {
    let lab = kind.lab(1);
    let api = Api::default();
    let balanced = |range: &str| {
        merged(
            service(WEB),
            json!({ "spec": {
            "type": "LoadBalancer", "loadBalancerSourceRanges": [range, "198.51.100.0/24"],
            "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }]
        }, "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } } }),
        )
    };
    api.apply(balanced("203.0.113.0/24"));
    api.apply(slice(&addresses(&lab)));
    let running = start(&api, &lab.node, kind.config());
    assert_eq!(
        lab.outside.ask(at("203.0.113.7", 80)),
        Err("timed out".into())
    );
    assert!(lab.outside.ask(node(30080)).is_ok());
    assert!(lab.node.ask(at(WEB, 80)).is_ok());
    running.after(|| api.apply(balanced("192.0.2.0/25")));
    assert!(lab.outside.ask(at("203.0.113.7", 80)).is_ok());
}

fn a_client_stays_with_its_endpoint_until_that_goes(kind: Kind) {
    let lab = kind.lab(3);
    let api = Api::default();
    api.apply(merged(
        service(WEB),
        json!({ "spec": { "sessionAffinity": "ClientIP" } }),
    ));
    api.apply(slice(&addresses(&lab)));
    let running = start(&api, &lab.node, kind.config());
    let client = &lab.pods[0].namespace;
    let first = servers((0..30).map(|_| client.ask(at(WEB, 80))));
    assert_eq!(first.len(), 1, "{first:?}");
    let chosen = first.into_keys().next().expect("a server");
    let others: Vec<IpAddr> = lab
        .pods
        .iter()
        .filter(|pod| pod.name != chosen)
        .map(|pod| pod.address)
        .collect();
    running.after(|| api.apply(slice(&others)));
    let second = servers((0..30).map(|_| client.ask(at(WEB, 80))));
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(!second.contains_key(&chosen));
    running.after(|| api.apply(slice(&addresses(&lab))));
    assert_eq!(
        servers((0..30).map(|_| client.ask(at(WEB, 80)))),
        second,
        "a new endpoint moves nobody"
    );
}

fn affinity_ends_with_its_timeout_and_spreads_clients(kind: Kind) {
    let lab = kind.lab(4);
    let api = Api::default();
    let timeout = json!({ "spec": {
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 1 } }
    } });
    api.apply(merged(service(WEB), timeout));
    api.apply(slice(&addresses(&lab)));
    let _running = start(&api, &lab.node, kind.config());
    let mut seen = BTreeSet::new();
    for _ in 0..12 {
        let answers = servers((0..5).map(|_| lab.node.ask(at(WEB, 80))));
        assert_eq!(answers.len(), 1, "{answers:?}");
        seen.extend(answers.into_keys());
        if seen.len() > 1 {
            return;
        }
        // The timeout itself is what is tested.
        std::thread::sleep(Duration::from_millis(1_300));
    }
    panic!("twelve draws among four gave {seen:?}");
}

fn udp_leaves_an_endpoint_that_goes(kind: Kind) {
    let lab = kind.lab(2);
    let api = Api::default();
    api.apply(merged(
        service(WEB),
        json!({ "spec": { "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }] } }),
    ));
    api.apply(slice(&addresses(&lab)));
    let running = start(&api, &lab.node, kind.config());
    let client = &lab.outside;
    client.ip("route add 10.96.0.0/16 via 192.0.2.1");
    let first = client
        .ask_udp(at(WEB, 53), 4_000)
        .expect("an answer")
        .server;
    for _ in 0..5 {
        assert_eq!(
            client
                .ask_udp(at(WEB, 53), 4_000)
                .expect("an answer")
                .server,
            first
        );
    }
    let others: Vec<IpAddr> = lab
        .pods
        .iter()
        .filter(|pod| pod.name != first)
        .map(|pod| pod.address)
        .collect();
    running.after(|| api.apply(slice(&others)));
    // The entry is deleted after the transaction.
    let moved = (0..20).any(|_| {
        client
            .ask_udp(at(WEB, 53), 4_000)
            .is_ok_and(|answer| answer.server != first)
    });
    assert!(moved);
}

fn terminating_endpoints_serve_while_there_is_no_other(kind: Kind) {
    let lab = kind.lab(2);
    let api = Api::default();
    api.apply(service(WEB));
    let going = |address: IpAddr| {
        json!({ "addresses": [address.to_string()],
                "conditions": { "ready": false, "serving": true, "terminating": true } })
    };
    let ready = |address: IpAddr| json!({ "addresses": [address.to_string()], "conditions": { "ready": true } });
    api.apply(slice_of(
        false,
        vec![going(lab.pods[0].address), ready(lab.pods[1].address)],
    ));
    let running = start(&api, &lab.node, kind.config());
    assert_eq!(
        servers((0..20).map(|_| lab.node.ask(at(WEB, 80)))),
        BTreeMap::from([("pod1".into(), 20)])
    );
    running.after(|| api.apply(slice_of(false, vec![going(lab.pods[0].address)])));
    assert_eq!(
        servers((0..20).map(|_| lab.node.ask(at(WEB, 80)))),
        BTreeMap::from([("pod0".into(), 20)])
    );
}

fn connections_made_during_changes_all_succeed(kind: Kind) {
    let lab = kind.lab(4);
    let api = Api::default();
    api.apply(service(WEB));
    api.apply(slice(&addresses(&lab)));
    let running = start(&api, &lab.node, kind.config());
    let all = addresses(&lab);
    let changes = {
        let api = api.clone();
        std::thread::spawn(move || {
            for step in 0..400usize {
                // The first endpoint stays; the others come and go, through all classes.
                let kept: Vec<IpAddr> = all
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| *index == 0 || step >> (index - 1) & 1 == 0)
                    .map(|(_, address)| *address)
                    .collect();
                api.apply(slice(&kept));
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let mut asked = 0;
    while !changes.is_finished() || asked < 500 {
        lab.node.ask(at(WEB, 80)).expect("no connection fails");
        asked += 1;
    }
    changes.join().expect("changes");
    // A run of iptables-restore takes longer, and more changes go together.
    let least = if kind == Kind::Nftables { 50 } else { 1 };
    assert!(running.progress().transactions > least);
}

fn node_ports_answer_on_the_nodes_primary_address_if_told_so(kind: Kind) {
    let lab = kind.lab(1);
    let api = Api::default();
    api.apply(merged(
        service(WEB),
        json!({ "spec": { "type": "NodePort", "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }] } }),
    ));
    api.apply(slice(&addresses(&lab)));
    lab.node.ip("addr add 192.0.2.7/24 dev eth0");
    let node_with = |address: &str| {
        json!({ "kind": "Node", "metadata": { "name": "node" }, "spec": { "podCIDRs": ["10.244.0.0/24"] },
                "status": { "addresses": [{ "type": "InternalIP", "address": address }] } })
    };
    api.apply(node_with("192.0.2.1"));
    let config = proxy::Config {
        node_port_addresses: proxy::NodePortAddresses::Primary,
        detect_local: proxy::DetectLocal::NodeNetworks,
        ..kind.config()
    };
    let _running = start(&api, &lab.node, config);
    assert!(lab.outside.ask(node(30080)).is_ok());
    assert!(lab.outside.ask(at("192.0.2.7", 30080)).is_err());
    // From the node the source is masqueraded, so that the Node's podCIDRs are in the rules.
    assert_eq!(
        lab.node.ask(at(WEB, 80)).expect("an answer").seen,
        IpAddr::from([10, 244, 0, 1])
    );
    api.apply(node_with("192.0.2.7"));
    let moved = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        lab.outside.ask(at("192.0.2.7", 30080)).is_ok()
    });
    assert!(moved && lab.outside.ask(node(30080)).is_err());
}

/// One-to-one SCTP sockets, which are used as TCP's are.
fn sctp_socket() -> std::os::fd::OwnedFd {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP))
        .expect("SCTP in the kernel")
}

#[test]
#[ignore = "needs SCTP in the kernel: runs in the VM"]
fn sctp_is_translated_as_the_others() {
    for kind in [Kind::Nftables, Kind::Iptables] {
        sctp(kind);
    }
}

fn sctp(kind: Kind) {
    use std::io::{Read, Write};
    let lab = kind.lab(2);
    for pod in &lab.pods {
        let (name, address) = (pod.name.clone(), SocketAddr::new(pod.address, 8080));
        pod.namespace.spawn(move || {
            let listener = sctp_socket();
            rustix::net::bind(&listener, &address).expect("bind");
            rustix::net::listen(&listener, 8).expect("listen");
            while let Ok(stream) = rustix::net::accept(&listener) {
                let _ = std::fs::File::from(stream).write_all(name.as_bytes());
            }
        });
    }
    let api = Api::default();
    api.apply(merged(
        service(WEB),
        json!({ "spec": { "ports": [{ "name": "sctp", "port": 80, "protocol": "SCTP" }] } }),
    ));
    let with = |addresses: &[IpAddr]| {
        let mut slice = slice(addresses);
        slice["ports"] = json!([{ "name": "sctp", "port": 8080, "protocol": "SCTP" }]);
        slice
    };
    api.apply(with(&addresses(&lab)));
    let running = start(&api, &lab.node, kind.config());
    // Bound to one address: what has several tells them all to its peer, which no translation changes.
    let ask = |namespace: &crate::lab::Namespace, from: IpAddr| {
        namespace.run(move || {
            let socket = sctp_socket();
            rustix::net::bind(&socket, &SocketAddr::new(from, 0)).expect("bind");
            for timeout in [
                rustix::net::sockopt::Timeout::Recv,
                rustix::net::sockopt::Timeout::Send,
            ] {
                let limit = Some(Duration::from_secs(10));
                rustix::net::sockopt::set_socket_timeout(&socket, timeout, limit).expect("timeout");
            }
            rustix::net::connect(&socket, &at(WEB, 80)).map_err(|error| error.to_string())?;
            let mut answer = String::new();
            let read = std::fs::File::from(socket).read_to_string(&mut answer);
            read.map_err(|error| error.to_string())?;
            Ok::<String, String>(answer)
        })
    };
    let clients = [
        (&lab.node, IpAddr::from(NODE)),
        (&lab.pods[0].namespace, lab.pods[0].address),
    ];
    for (namespace, address) in clients {
        let seen: BTreeSet<String> = (0..20)
            .map(|_| ask(namespace, address).expect("an answer"))
            .collect();
        assert_eq!(seen, BTreeSet::from(["pod0".to_owned(), "pod1".to_owned()]));
    }
    running.after(|| api.apply(with(&[])));
    // The kernel's SCTP gives up by its time limit alone: it pays no heed to ICMP.
    assert!(ask(&lab.node, IpAddr::from(NODE)).is_err());
}
