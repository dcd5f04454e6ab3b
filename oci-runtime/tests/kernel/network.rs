//! Interfaces of the host's that become the container's.

use crate::bundle::Bundle;
use serde_json::json;

const VETH: &str = "ip link add o0 type veth peer name o1; ip addr add 10.9.8.7/24 dev o0; ip addr add fd00::7/64 dev o0 nodad; ip link set o0 up";

#[test]
fn a_network_device_moves_to_the_container_with_its_addresses() {
    for user_namespace in [false, true] {
        let mut bundle = Bundle::new("busybox ip addr show dev eth9; busybox ip addr show dev o1");
        if user_namespace {
            bundle = bundle.with_user_namespace();
        }
        bundle.linux()["netDevices"] = json!({"o0": {"name": "eth9"}, "o1": {}});
        let out = bundle.run_beside("--net", VETH).ok();
        assert!(out.contains("eth9@"), "{out}");
        assert!(out.contains("UP"), "{out}");
        assert!(out.contains("10.9.8.7/24"), "{out}");
        assert!(out.contains("fd00::7/64"), "{out}");
        assert!(out.contains("o1@"), "{out}");
    }
}

#[test]
fn a_network_device_moves_to_a_namespace_that_is_joined() {
    let mut bundle = Bundle::new("busybox ip addr show dev o0");
    let name = format!("{}-net", bundle.id);
    let ip = |words: &[&str]| {
        std::process::Command::new("ip")
            .args(words)
            .status()
            .unwrap()
    };
    assert!(ip(&["netns", "add", &name]).success());
    bundle.linux()["namespaces"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .filter(|entry| entry["type"] == "network")
        .for_each(|entry| entry["path"] = json!(format!("/run/netns/{name}")));
    bundle.linux()["netDevices"] = json!({"o0": {}});
    let ran = bundle.run_beside("--net", VETH);
    assert!(ip(&["netns", "delete", &name]).success());
    assert!(ran.ok().contains("10.9.8.7/24"));
}

#[test]
fn a_network_device_that_is_not_there_is_named_and_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    bundle.linux()["netDevices"] = json!({"absent0": {}});
    let ran = bundle.run_beside("--net", "true");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .contains("give network device absent0 to the container"),
        "{}",
        ran.stderr
    );
    assert_eq!(bundle.must(&["list", "--quiet"]), "");
}
