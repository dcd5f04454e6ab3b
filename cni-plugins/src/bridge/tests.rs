use std::net::SocketAddr;

use linux::netlink::Netlink;
use serde_json::{Value, json};

use crate::lab::{Host, Pod, connect, ips, new_namespace, wire_to_world};

#[test]
fn pods_reach_each_other_and_the_host_in_both_families() {
    let host = Host::new();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let config = host.bridge_config();
    let first = host.call("ADD", &a, &config).expect("add a");
    let second = host.call("ADD", &b, &config).expect("add b");
    assert_eq!(first["interfaces"][2]["name"], "eth0");
    assert_eq!(first["ips"][1]["interface"], 2);
    for (own, other) in ips(&first).into_iter().zip(ips(&second)) {
        assert_eq!(
            connect(&a.netns, &b.netns, SocketAddr::new(other, 8080)),
            Some(own)
        );
        assert!(
            connect(&host.netns, &b.netns, SocketAddr::new(other, 8080)).is_some(),
            "host to {other}"
        );
    }
    for gateway in ["10.1.0.1:8081", "[fd00:1::1]:8081"] {
        assert!(
            connect(&a.netns, &host.netns, gateway.parse().expect("address")).is_some(),
            "{gateway}"
        );
    }
    host.call("DEL", &a, &config).expect("del a");
    host.call("DEL", &b, &config).expect("del b");
}

#[test]
fn del_leaves_nothing_of_the_pod_and_succeeds_again_and_without_its_namespace() {
    let host = Host::new();
    let config = host.bridge_config();
    let before = {
        let pod = Pod::new("first");
        host.call("ADD", &pod, &config).expect("add");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        assert!(
            pod.inside(|| Netlink::open()
                .expect("netlink")
                .link_by_name("eth0")
                .expect("get"))
                .is_none()
        );
        host.links()
    };
    assert_eq!(before.len(), 2, "lo and the bridge: {before:?}");
    assert!(host.leases().is_empty());

    let gone = Pod::new("gone");
    host.call("ADD", &gone, &config).expect("add");
    let held_by_a_stray_descriptor = gone.netns.try_clone().expect("clone");
    drop(gone);
    host.call_without_netns("DEL", "gone", &config)
        .expect("del without namespace");
    assert_eq!(host.links(), before);
    assert!(host.leases().is_empty());
    drop(held_by_a_stray_descriptor);
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let host = Host::new();
    let mut config = host.bridge_config();
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.1.0.0/30" }]]);
    config["ipam"]["routes"] = json!([]);
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    host.call("ADD", &a, &config).expect("the only address");
    let links = host.links();
    let error = host.call("ADD", &b, &config).expect_err("exhausted");
    assert!(
        error["msg"]
            .as_str()
            .expect("msg")
            .starts_with("no IP addresses available"),
        "{error}"
    );
    assert_eq!(host.links(), links);
    host.call("DEL", &a, &config).expect("del");

    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "198.51.100.1" }]);
    let error = host
        .call("ADD", &b, &config)
        .expect_err("gateway that is on no link");
    assert!(
        error["msg"]
            .as_str()
            .expect("msg")
            .contains("192.0.2.0/24 via 198.51.100.1"),
        "{error}"
    );
    assert!(host.leases().is_empty());
    assert!(
        b.inside(|| Netlink::open()
            .expect("netlink")
            .link_by_name("eth0")
            .expect("get"))
            .is_none()
    );
}

#[test]
fn a_second_add_fails_and_the_first_stays_connected() {
    let host = Host::new();
    let config = host.bridge_config();
    let pod = Pod::new("a");
    let result = host.call("ADD", &pod, &config).expect("add");
    let error = host
        .call("ADD", &pod, &config)
        .expect_err("the interface is there");
    assert!(
        error["msg"].as_str().expect("msg").contains("file exists"),
        "{error}"
    );
    check(&host, &pod, &config, &result).expect("still connected");
}

fn check(host: &Host, pod: &Pod, config: &Value, result: &Value) -> Result<Value, Value> {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    host.call("CHECK", pod, &config)
}

#[test]
fn check_finds_a_lost_address_and_a_lost_lease() {
    let host = Host::new();
    let config = host.bridge_config();
    let pod = Pod::new("a");
    let result = host.call("ADD", &pod, &config).expect("add");
    check(&host, &pod, &config, &result).expect("all there");
    pod.inside(|| {
        let mut netlink = Netlink::open().expect("netlink");
        let index = netlink
            .link_by_name("eth0")
            .expect("get")
            .expect("eth0")
            .index;
        netlink
            .delete_address(index, "10.1.0.2/24".parse().expect("net"))
            .expect("delete");
    });
    let error = check(&host, &pod, &config, &result).expect_err("address is gone");
    assert_eq!(
        error["msg"],
        "check eth0: failed to find address 10.1.0.2/24"
    );
    host.call("DEL", &pod, &config).expect("del");
    check(&host, &pod, &config, &result).expect_err("lease is gone");
}

#[test]
fn fifty_pods_at_once_have_fifty_addresses_and_leave_nothing() {
    let host = Host::new();
    let config = host.bridge_config();
    let pods: Vec<Pod> = (0..50).map(|n| Pod::new(&format!("pod{n}"))).collect();
    let all = |command: &str| -> Vec<Value> {
        std::thread::scope(|scope| {
            let (host, config) = (&host, &config);
            let call = |pod| scope.spawn(move || host.call(command, pod, config).expect(command));
            let calls: Vec<_> = pods.iter().map(call).collect();
            calls
                .into_iter()
                .map(|call| call.join().expect("join"))
                .collect()
        })
    };
    let mut given: Vec<_> = all("ADD").iter().flat_map(ips).collect();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 100);
    all("DEL");
    assert_eq!(host.links().len(), 2);
    assert!(host.leases().is_empty());
}

#[test]
fn traffic_to_the_outside_gets_the_hosts_address_and_keeps_its_own_inside() {
    let host = Host::new();
    let config = host.bridge_config();
    let pod = Pod::new("a");
    host.call("ADD", &pod, &config).expect("add");
    let world = new_namespace();
    wire_to_world(&host, &world);
    for (outside, hosts) in [
        ("192.0.2.2:80", "192.0.2.1"),
        ("[2001:db8::2]:80", "2001:db8::1"),
    ] {
        let seen = connect(&pod.netns, &world, outside.parse().expect("address"));
        assert_eq!(seen.map(|ip| ip.to_string()).as_deref(), Some(hosts));
    }
}

#[test]
fn gc_cuts_the_cables_of_attachments_that_do_not_exist() {
    let host = Host::new();
    let mut config = host.bridge_config();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    host.call("ADD", &a, &config).expect("add");
    host.call("ADD", &b, &config).expect("add");
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    host.call_without_netns("GC", "", &config).expect("gc");
    assert_eq!(host.leases(), ["10.1.0.3", "fd00:1::3"]);
    let inner = |pod: &Pod| {
        pod.inside(|| {
            Netlink::open()
                .expect("netlink")
                .link_by_name("eth0")
                .expect("get")
        })
    };
    assert!(inner(&a).is_none() && inner(&b).is_some());
}

#[test]
fn a_bridge_with_another_address_is_refused_unless_forced() {
    let host = Host::new();
    let mut config = host.bridge_config();
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.1.0.0/24" }]]);
    config["ipam"]["routes"] = json!([]);
    host.call("ADD", &Pod::new("a"), &config).expect("add");
    config["name"] = json!("other");
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.2.0.0/24" }]]);
    let pod = Pod::new("b");
    let error = host
        .call("ADD", &pod, &config)
        .expect_err("another address");
    assert!(
        error["msg"]
            .as_str()
            .expect("msg")
            .contains("already has an IP address"),
        "{error}"
    );
    config["forceAddress"] = json!(true);
    host.call("ADD", &pod, &config).expect("forced");
}

#[test]
#[ignore = "needs a kernel with VLAN filtering in bridges: the VM's"]
fn vlans_keep_pods_apart_on_one_bridge() {
    let host = Host::new();
    let pods = [Pod::new("a"), Pod::new("b"), Pod::new("c")];
    let add = |pod: &Pod, vlan: u16| {
        let mut config = host.bridge_config();
        config["vlan"] = json!(vlan);
        config["preserveDefaultVlan"] = json!(false);
        config["isGateway"] = json!(false);
        config["ipam"]["routes"] = json!([]);
        ips(&host.call("ADD", pod, &config).expect("add"))[0]
    };
    add(&pods[0], 100);
    let same = add(&pods[1], 100);
    let other = add(&pods[2], 200);
    let reached =
        |pod: &Pod, ip| connect(&pods[0].netns, &pod.netns, SocketAddr::new(ip, 80)).is_some();
    assert!(reached(&pods[1], same));
    assert!(!reached(&pods[2], other));
}

#[test]
fn the_reference_address_plugin_and_ours_understand_each_others_leases() {
    assert!(
        std::path::Path::new("/usr/lib/cni").exists(),
        "needs Debian's containernetworking-plugins"
    );
    let host = Host::new();
    let mut config = host.bridge_config();
    // The reference plugins of Debian 12 know versions up to 1.0.0.
    config["cniVersion"] = json!("1.0.0");
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    host.call("ADD", &a, &config).expect("ours");
    let reference = |command: &str, pod: &Pod| {
        use std::io::Write;
        let mut child = std::process::Command::new("/usr/lib/cni/host-local")
            .envs([
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", &pod.id),
                ("CNI_IFNAME", "eth0"),
            ])
            .envs([
                ("CNI_NETNS", pod.path().as_str()),
                ("CNI_PATH", "/usr/lib/cni"),
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("spawn");
        child
            .stdin
            .take()
            .expect("stdin")
            .write_all(config.to_string().as_bytes())
            .expect("write");
        let output = child.wait_with_output().expect("wait");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    reference("CHECK", &a);
    let theirs = reference("ADD", &b);
    assert_eq!(theirs["ips"][0]["address"], "10.1.0.3/24");
    reference("DEL", &a);
    assert_eq!(host.leases(), ["10.1.0.3", "fd00:1::3"]);
    host.call("DEL", &b, &config).expect("ours frees theirs");
    assert!(host.leases().is_empty());
}

#[test]
fn del_before_the_namespaces_end_makes_the_interface_unusable_and_frees_its_addresses() {
    let host = Host::new();
    let config = host.bridge_config();
    let pod = Pod::new("a");
    host.call("ADD", &pod, &config).expect("add");
    host.call_ending("DEL", &pod, &config).expect("del");
    assert!(host.leases().is_empty());
    let left = pod.inside(|| {
        let mut netlink = Netlink::open().expect("netlink");
        let link = netlink
            .link_by_name("eth0")
            .expect("get")
            .expect("left to the namespace's end");
        (
            link.is_up(),
            netlink.addresses(link.index).expect("addresses").len(),
        )
    });
    assert_eq!(left, (false, 0));
    host.call_ending("DEL", &pod, &config).expect("del again");
}

#[test]
fn a_network_is_removed_when_nobody_is_connected_any_more() {
    let host = Host::new();
    let config = host.bridge_config();
    let pod = Pod::new("a");
    host.call("ADD", &pod, &config).expect("add");
    let remove = || host.inside(|| crate::remove_network("net", "br0", host.dir.path()));
    let error = remove().expect_err("a port").to_string();
    assert!(
        error.starts_with("remove network net: br0 has ports: veth"),
        "{error}"
    );
    host.call("DEL", &pod, &config).expect("del");
    remove().expect("remove");
    remove().expect("remove again");
    assert_eq!(host.links(), ["lo"]);
    assert!(!host.dir.path().join("net").exists());
    let listed = host.inside(|| {
        std::process::Command::new("nft")
            .args(["list", "ruleset"])
            .output()
            .expect("nft")
    });
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
}

#[test]
fn a_checked_pod_sends_from_its_own_hardware_address_only() {
    let host = Host::new();
    let mut config = host.bridge_config();
    config["macspoofchk"] = json!(true);
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let result = host.call("ADD", &a, &config).expect("add");
    host.call("ADD", &b, &config).expect("add");
    let own = result["interfaces"][2]["mac"].as_str().expect("mac");
    let send_as = |mac: &str| {
        let mac = Some(mac.parse().expect("mac"));
        a.inside(|| {
            let mut inner = Netlink::open().expect("netlink");
            let index = inner
                .link_by_name("eth0")
                .expect("get")
                .expect("eth0")
                .index;
            let change = linux::netlink::LinkChange {
                mac,
                ..Default::default()
            };
            inner.change_link(index, &change).expect("change");
        });
        let gateway = "10.1.0.1:80".parse().expect("address");
        connect(&a.netns, &host.netns, gateway).is_some()
    };
    assert!(send_as(own));
    check(&host, &a, &config, &result).expect("check");
    assert!(!send_as("0a:00:00:00:00:99"));
    assert!(send_as(own));
    let listed = |host: &Host| {
        let nft = || {
            std::process::Command::new("nft")
                .args(["list", "table", "bridge", "orlop-cni"])
                .output()
        };
        let output = host.inside(nft).expect("nft");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let rule = "iifname @checked-ports iifname . ether saddr != @port-addresses drop";
    let text = listed(&host);
    assert!(text.contains(rule) && text.contains(own), "{text}");

    host.call("DEL", &a, &config).expect("del");
    assert!(!listed(&host).contains(own));
    config["cni.dev/valid-attachments"] = json!([]);
    host.call_without_netns("GC", "", &config).expect("gc");
    assert!(!listed(&host).contains("veth"), "{}", listed(&host));
    host.call("DEL", &b, &config).expect("del");
    host.inside(|| crate::remove_network("net", "br0", host.dir.path()))
        .expect("remove");
    assert_eq!(listed(&host), "");
}

#[test]
fn a_bridge_of_others_keeps_its_hardware_address_and_reports_it() {
    let host = Host::new();
    let make = || {
        let kind = linux::netlink::LinkKind::Bridge {
            vlan_filtering: false,
            no_default_vlan: false,
        };
        let mut netlink = Netlink::open().expect("netlink");
        netlink
            .add_link(&linux::netlink::NewLink::new("br0", kind))
            .expect("make");
    };
    host.inside(make);
    let mac = || {
        let link = host.inside(|| Netlink::open().expect("netlink").link_by_name("br0"));
        let link = link.expect("get").expect("br0");
        link.mac.expect("mac").to_string()
    };
    let config = host.bridge_config();
    let before = mac();
    for id in ["a", "b"] {
        let pod = Pod::new(id);
        let result = host.call("ADD", &pod, &config).expect("add");
        assert_eq!(result["interfaces"][0]["mac"], json!(before));
        assert_eq!(mac(), before);
        host.call("DEL", &pod, &config).expect("del");
        assert_eq!(mac(), before);
    }
}
