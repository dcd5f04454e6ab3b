use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::lab::{Host, Pod, connect_by, ips, new_namespace, wire_to_world};

/// A pod on the bridge with port mappings; the portmap configuration and the pod's result.
fn mapped(host: &Host, pod: &Pod, mappings: Value) -> Result<(Value, Value), Value> {
    let result = host
        .call("ADD", pod, &host.bridge_config())
        .expect("bridge");
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "portmap",
        "runtimeConfig": { "portMappings": mappings },
        "prevResult": result,
    });
    let passed_on = host.call("ADD", pod, &config)?;
    assert_eq!(passed_on, result);
    Ok((config, result))
}

fn web() -> Value {
    json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }])
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

#[test]
fn a_host_port_leads_to_the_pod_from_outside_the_host_itself_and_the_pod() {
    let host = Host::new();
    let world = new_namespace();
    wire_to_world(&host, &world);
    let (pod, other) = (Pod::new("a"), Pod::new("b"));
    let (config, result) = mapped(&host, &pod, web()).expect("mapped");
    host.call("ADD", &other, &host.bridge_config())
        .expect("add");
    let seen =
        |from, to: &str| connect_by(from, &pod.netns, 80, address(to)).map(|ip| ip.to_string());
    assert_eq!(seen(&world, "192.0.2.1:8080").as_deref(), Some("192.0.2.2"));
    assert_eq!(
        seen(&world, "[2001:db8::1]:8080").as_deref(),
        Some("2001:db8::2")
    );
    assert!(seen(&host.netns, "192.0.2.1:8080").is_some());
    assert_eq!(
        seen(&host.netns, "127.0.0.1:8080").as_deref(),
        Some("10.1.0.1")
    );
    assert!(
        seen(&pod.netns, "192.0.2.1:8080").is_some(),
        "the pod reaches itself"
    );
    assert!(
        seen(&pod.netns, "[2001:db8::1]:8080").is_some(),
        "the pod reaches itself"
    );
    assert!(seen(&other.netns, "10.1.0.1:8080").is_some(), "a neighbour");
    assert_eq!(ips(&result).len(), 2);

    host.call("CHECK", &pod, &config).expect("check");
    host.call("DEL", &pod, &config).expect("del");
    host.call("DEL", &pod, &config).expect("del again");
    host.call("CHECK", &pod, &config).expect_err("gone");
    assert_eq!(seen(&world, "192.0.2.1:8080"), None);
}

#[test]
fn a_port_in_use_is_refused_and_named_and_the_first_keeps_it() {
    let host = Host::new();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let (config, _) = mapped(&host, &a, web()).expect("mapped");
    let error = mapped(&host, &b, web()).expect_err("taken");
    assert_eq!(
        error["msg"],
        "add host port 8080/tcp to 10.1.0.3:80: host port is already in use"
    );
    host.call("CHECK", &a, &config).expect("still there");
    let udp = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "udp" }]);
    let c = Pod::new("c");
    mapped(&host, &c, udp).expect("another protocol is another port");
}

#[test]
fn a_mapping_of_one_host_address_is_not_one_of_the_others() {
    let host = Host::new();
    let world = new_namespace();
    wire_to_world(&host, &world);
    let pod = Pod::new("a");
    let one = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1" }]);
    mapped(&host, &pod, one).expect("mapped");
    assert!(connect_by(&world, &pod.netns, 80, address("192.0.2.1:8080")).is_some());
    assert!(connect_by(&host.netns, &pod.netns, 80, address("10.1.0.1:8080")).is_none());
    assert!(connect_by(&world, &pod.netns, 80, address("[2001:db8::1]:8080")).is_none());
}

#[test]
fn gc_removes_the_mappings_of_attachments_that_do_not_exist() {
    let host = Host::new();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let (config_a, _) = mapped(&host, &a, web()).expect("mapped");
    let other = json!([{ "hostPort": 8081, "containerPort": 80, "protocol": "tcp" }]);
    let (config_b, _) = mapped(&host, &b, other).expect("mapped");
    let mut gc = config_a.clone();
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    host.call_without_netns("GC", "", &gc).expect("gc");
    host.call("CHECK", &a, &config_a).expect_err("gone");
    host.call("CHECK", &b, &config_b).expect("kept");
}

#[test]
fn bad_mappings_are_refused_by_key() {
    let host = Host::new();
    let pod = Pod::new("a");
    let cases = [
        (
            json!([{ "hostPort": 70000, "containerPort": 80, "protocol": "tcp" }]),
            "[0].hostPort",
        ),
        (
            json!([{ "hostPort": 80, "containerPort": 0, "protocol": "tcp" }]),
            "[0].containerPort",
        ),
        (
            json!([{ "hostPort": 80, "containerPort": 80, "protocol": "icmp" }]),
            "[0].protocol",
        ),
        (
            json!([{ "hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "x" }]),
            "[0].hostIP",
        ),
    ];
    for (mappings, key) in cases {
        let error = mapped(&host, &pod, mappings).expect_err(key);
        assert!(error["msg"].as_str().expect("msg").contains(key), "{error}");
        host.call("DEL", &pod, &host.bridge_config()).expect("del");
    }
}

#[test]
fn without_mappings_the_result_is_passed_on_and_no_table_is_made() {
    let host = Host::new();
    let pod = Pod::new("a");
    mapped(&host, &pod, json!([])).expect("nothing to map");
    let listed = host.inside(|| {
        std::process::Command::new("nft")
            .args(["list", "ruleset"])
            .output()
            .expect("nft")
    });
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("host-ports"));
}

#[test]
fn neighbours_reach_a_host_port_also_where_bridges_bypass_the_ip_layer() {
    let host = Host::new();
    host.inside(|| {
        for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            // A kernel without br_netfilter has neither, and is what this is about.
            let _ = linux::netlink::write_sysctl(&["net", "bridge", name], "0");
        }
    });
    let (pod, neighbour) = (Pod::new("a"), Pod::new("b"));
    let two = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8081, "containerPort": 81, "protocol": "tcp" },
    ]);
    mapped(&host, &pod, two).expect("mapped");
    host.call("ADD", &neighbour, &host.bridge_config())
        .expect("add");
    for (port, by) in [
        (80, "10.1.0.1:8080"),
        (81, "10.1.0.1:8081"),
        (80, "[fd00:1::1]:8080"),
    ] {
        let seen = connect_by(&neighbour.netns, &pod.netns, port, address(by));
        assert_eq!(seen, Some(address(by).ip()), "{by}");
    }
    let direct = connect_by(&neighbour.netns, &pod.netns, 80, address("10.1.0.2:80"));
    assert_eq!(direct.map(|ip| ip.to_string()).as_deref(), Some("10.1.0.3"));
}
