use serde_json::json;

use super::*;
use crate::apiserver::kinds::kinds;

fn kind() -> &'static Kind {
    kinds().iter().find(|k| k.plural == "services").unwrap()
}

fn services(cidrs: &[&str]) -> Services {
    Services::new(
        cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        30000..=30003,
    )
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})
}

fn allocated(services: &Services, mut object: Value) -> Result<Value> {
    services.allocate(kind(), &mut object, None)?.keep();
    Ok(object)
}

#[test]
fn each_service_gets_an_address_of_its_own_until_none_is_left() {
    let services = services(&["10.0.0.0/29"]);
    let mut seen = std::collections::HashSet::new();
    // Of eight addresses, the network, the API's own and the last are not given out.
    for count in 0..5 {
        let object = allocated(
            &services,
            service(&format!("s{count}"), json!({"type": "ClusterIP"})),
        )
        .unwrap();
        assert!(seen.insert(object["spec"]["clusterIP"].as_str().unwrap().to_owned()));
        assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4"]));
    }
    assert!(allocated(&services, service("more", json!({"type": "ClusterIP"}))).is_err());
}

#[test]
fn a_failed_write_gives_everything_back() {
    let services = services(&["10.0.0.0/24"]);
    let wanted = json!({"type": "NodePort", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"],
                        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]});
    drop(
        services
            .allocate(kind(), &mut service("a", wanted.clone()), None)
            .unwrap(),
    );
    let b = allocated(&services, service("b", wanted.clone())).unwrap();
    let failure = allocated(&services, service("c", wanted.clone())).unwrap_err();
    assert!(
        failure.message.contains("provided IP is already allocated"),
        "{}",
        failure.message
    );
    services.release(&b);
    allocated(&services, service("c", wanted)).unwrap();
}

#[test]
fn an_update_keeps_what_the_client_leaves_out_and_frees_what_is_no_longer_wanted() {
    let services = services(&["10.0.0.0/24"]);
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]});
    let old = allocated(&services, service("a", spec)).unwrap();
    let node_port = old["spec"]["ports"][0]["nodePort"].clone();
    assert_eq!(node_port, old["spec"]["ports"][1]["nodePort"]);

    let mut new = service(
        "a",
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
    );
    services
        .allocate(kind(), &mut new, Some(&old))
        .unwrap()
        .keep();
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    assert_eq!(new["spec"]["ports"][0]["nodePort"], node_port);

    let mut plain = new.clone();
    plain["spec"]["type"] = "ClusterIP".into();
    services
        .allocate(kind(), &mut plain, Some(&new))
        .unwrap()
        .keep();
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    let taken = json!({"type": "NodePort", "ports": [{"port": 1, "protocol": "TCP", "nodePort": node_port}]});
    allocated(&services, service("b", taken)).unwrap();
}

#[test]
fn dual_stack_takes_one_address_of_each_family() {
    let services = services(&["10.0.0.0/24", "fd00::/108"]);
    let object = allocated(
        &services,
        service(
            "a",
            json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"}),
        ),
    )
    .unwrap();
    assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert!(
        object["spec"]["clusterIPs"][1]
            .as_str()
            .unwrap()
            .starts_with("fd00::")
    );
    let six = allocated(
        &services,
        service("b", json!({"type": "ClusterIP", "ipFamilies": ["IPv6"]})),
    )
    .unwrap();
    assert_eq!(six["spec"]["clusterIPs"].as_array().unwrap().len(), 1);
}

#[test]
fn a_port_outside_the_range_is_refused_in_upstreams_words() {
    let services = services(&["10.0.0.0/24"]);
    let spec =
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 80}]});
    let failure = allocated(&services, service("a", spec)).unwrap_err();
    assert_eq!(
        failure.message,
        "Service \"a\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid \
         range. The range of valid ports is 30000-30003"
    );
}
