//! Against the kernel, each test in a network namespace of its own.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::namespace::{NamespaceKind, open_own, unshare};

/// Runs `test` on a thread in a new network namespace, which ends with it.
fn in_new_namespace(test: impl FnOnce(&mut Netlink) + Send) {
    let netns = new_namespace();
    in_namespace(&netns, || test(&mut Netlink::open().expect("open netlink")))
        .expect("enter namespace");
}

fn new_namespace() -> OwnedFd {
    let make = || {
        unshare(&[NamespaceKind::Network]).expect("these tests need root");
        open_own(NamespaceKind::Network).expect("open own namespace")
    };
    std::thread::spawn(make).join().expect("join")
}

fn index(netlink: &mut Netlink, name: &str) -> u32 {
    netlink
        .link_by_name(name)
        .expect("get link")
        .expect("link exists")
        .index
}

fn bridge(netlink: &mut Netlink, name: &str) -> u32 {
    let kind = LinkKind::Bridge {
        vlan_filtering: false,
        no_default_vlan: false,
    };
    netlink
        .add_link(&NewLink {
            up: true,
            ..NewLink::new(name, kind)
        })
        .expect("add bridge");
    index(netlink, name)
}

#[test]
fn a_veth_is_made_whole_by_one_message_with_its_peer_in_another_namespace() {
    let pod = new_namespace();
    in_new_namespace(|host| {
        let bridge = bridge(host, "br0");
        let mac = MacAddress([0x0a, 0x58, 1, 2, 3, 4]);
        let peer = VethPeer {
            name: "eth0",
            netns: Some(pod.as_fd()),
            mac: Some(mac),
            mtu: Some(1400),
        };
        let link = NewLink {
            mtu: Some(1400),
            master: Some(bridge),
            up: true,
            ..NewLink::new("veth0", LinkKind::Veth(peer))
        };
        host.add_link(&link).expect("add veth");

        let seen = host.link_by_name("veth0").expect("get").expect("exists");
        assert_eq!(
            (seen.mtu, seen.master, seen.is_up(), seen.kind.as_deref()),
            (1400, Some(bridge), true, Some("veth"))
        );
        let inner = in_namespace(&pod, || {
            Netlink::open().and_then(|mut pod| pod.link_by_name("eth0"))
        });
        let inner = inner.expect("enter").expect("get").expect("exists");
        assert_eq!(
            (inner.mtu, inner.mac, inner.is_up()),
            (1400, Some(mac), false)
        );

        let port = BridgePort {
            hairpin: Some(true),
            isolated: Some(true),
        };
        let change = LinkChange {
            port: Some(port),
            alias: Some("of pod 7"),
            ..LinkChange::default()
        };
        host.change_link(seen.index, &change).expect("change port");
        let flag =
            |file: &str| std::fs::read_to_string(format!("/sys/class/net/veth0/brport/{file}"));
        // Sysfs shows the namespace that it was mounted in; in a new one the file is not there.
        assert!(flag("hairpin_mode").map_or(true, |text| text.trim() == "1"));
        assert_eq!(
            host.link_by_name("veth0")
                .expect("get")
                .expect("exists")
                .alias,
            "of pod 7"
        );

        let counted = host
            .link_statistics("veth0")
            .expect("statistics")
            .expect("exists");
        assert_eq!(counted.rx_errors, 0);
        host.delete_link(seen.index).expect("delete");
        host.delete_link(seen.index).expect("delete again");
        assert_eq!(host.link_by_name("veth0").expect("get"), None);
    });
}

#[test]
fn addresses_of_both_families_are_usable_at_once_and_can_be_taken_back() {
    in_new_namespace(|netlink| {
        let bridge = bridge(netlink, "br0");
        let v4 = "10.1.0.1/24".parse().expect("v4");
        let v6 = "fd00::1/64".parse().expect("v6");
        netlink.add_address(bridge, v6).expect("add v6");
        netlink.add_address(bridge, v4).expect("add v4");
        netlink
            .add_address(bridge, v4)
            .expect("adding again is no error");

        let seen = netlink.addresses(bridge).expect("list");
        let global: Vec<_> = seen
            .iter()
            .filter(|a| !a.is_link_local())
            .map(|a| a.net)
            .collect();
        assert_eq!(global, [v4, v6]);
        assert!(
            seen.iter()
                .filter(|a| !a.is_link_local())
                .all(|a| !a.is_tentative())
        );

        netlink.delete_address(bridge, v4).expect("delete");
        netlink
            .delete_address(bridge, v4)
            .expect("deleting again is no error");
        assert!(
            netlink
                .addresses(bridge)
                .expect("list")
                .iter()
                .all(|a| a.net != v4)
        );
    });
}

#[test]
fn routes_are_added_once_replaced_listed_and_deleted() {
    in_new_namespace(|netlink| {
        let bridge = bridge(netlink, "br0");
        netlink
            .add_address(bridge, "10.1.0.2/24".parse().expect("net"))
            .expect("add address");
        netlink
            .add_address(bridge, "fd00::2/64".parse().expect("net"))
            .expect("add address");
        let gateway: IpAddr = "10.1.0.1".parse().expect("ip");
        let default = Route {
            mtu: Some(1300),
            ..Route::via(Destination::DefaultV4, gateway)
        };
        netlink.add_route(&default).expect("add");
        let again = netlink.add_route(&default).expect_err("a second one");
        assert!(again.is(libc::EEXIST), "{again}");
        netlink
            .replace_route(&Route {
                mtu: Some(1200),
                ..default.clone()
            })
            .expect("replace");
        let six = Route::via(Destination::DefaultV6, "fd00::1".parse().expect("ip"));
        netlink.add_route(&six).expect("add v6");

        let all = netlink.routes(254).expect("list");
        let seen = all
            .iter()
            .find(|r| r.destination == Destination::DefaultV4)
            .expect("default route");
        assert_eq!(
            (seen.gateway, seen.mtu, seen.index),
            (Some(gateway), Some(1200), Some(bridge))
        );
        assert!(
            all.iter()
                .any(|r| r.destination == Destination::DefaultV6 && r.gateway == six.gateway)
        );

        netlink.delete_route(&default).expect("delete");
        netlink
            .delete_route(&default)
            .expect("deleting again is no error");
        assert!(
            !netlink
                .routes(254)
                .expect("list")
                .iter()
                .any(|r| r.destination == Destination::DefaultV4)
        );
    });
}

#[test]
fn an_error_names_the_operation_and_the_object_and_carries_the_kernels_words() {
    in_new_namespace(|netlink| {
        let lost = Route::via(Destination::DefaultV4, "192.0.2.1".parse().expect("ip"));
        let error = netlink.add_route(&lost).expect_err("no such link");
        assert!(error.is(libc::ENETUNREACH));
        assert_eq!(
            error.to_string(),
            "add route to 0.0.0.0/0 via 192.0.2.1: network is unreachable: Nexthop has invalid gateway"
        );
    });
}

#[test]
fn permanent_neighbours_replace_what_was_known() {
    in_new_namespace(|netlink| {
        let bridge = bridge(netlink, "br0");
        let ip: IpAddr = "10.9.0.9".parse().expect("ip");
        let mac: MacAddress = "02:00:00:00:00:09".parse().expect("mac");
        netlink
            .replace_neighbour(bridge, ip, MacAddress([2, 0, 0, 0, 0, 1]))
            .expect("set");
        netlink.replace_neighbour(bridge, ip, mac).expect("replace");
        let known = netlink.neighbours(bridge).expect("list");
        assert!(
            known.iter().any(|n| n.ip == ip && n.mac == Some(mac)),
            "{known:?}"
        );
        netlink.delete_neighbour(bridge, ip).expect("delete");
        netlink
            .delete_neighbour(bridge, ip)
            .expect("deleting again is no error");
    });
}

#[test]
fn sysctls_are_those_of_the_namespace() {
    in_new_namespace(|_| {
        write_sysctl(&["net", "ipv4", "ip_forward"], "1").expect("write");
        assert_eq!(
            read_sysctl(&["net", "ipv4", "ip_forward"]).expect("read"),
            "1"
        );
    });
    in_new_namespace(|_| {
        write_sysctl(&["net", "ipv4", "ip_forward"], "0").expect("write");
        assert_eq!(
            read_sysctl(&["net", "ipv4", "ip_forward"]).expect("read"),
            "0"
        );
    });
}

#[test]
fn hardware_addresses_are_read_as_they_are_written() {
    let mac: MacAddress = "0A:58:0a:f4:00:05".parse().expect("mac");
    assert_eq!(mac.to_string(), "0a:58:0a:f4:00:05");
    for bad in [
        "",
        "0a:58:0a:f4:00",
        "0a:58:0a:f4:00:05:06",
        "zz:58:0a:f4:00:05",
        "a:58:0a:f4:00:05",
    ] {
        assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
    }
}
