use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

const ADD: &[(&str, &str)] = &[
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/ns"),
    ("CNI_IFNAME", "eth0"),
];

fn parse(command: Command, pairs: &[(&str, &str)], config: &Value) -> Result<Request, Value> {
    Request::parse(command, &env(pairs), config.to_string().as_bytes()).map_err(
        |(version, error)| serde_json::from_slice(&error.report(version)).expect("report is JSON"),
    )
}

#[test]
fn each_kind_of_bad_request_has_the_specifications_code() {
    let good = json!({ "cniVersion": "1.0.0", "name": "net" });
    let code = |command, pairs: &[(&str, &str)], config: &Value| {
        parse(command, pairs, config).expect_err("bad")["code"].clone()
    };
    assert_eq!(
        code(
            Command::Add,
            ADD,
            &json!({ "cniVersion": "9.0.0", "name": "net" })
        ),
        1
    );
    assert_eq!(code(Command::Gc, &[], &good), 1);
    assert_eq!(code(Command::Add, &ADD[..2], &good), 4);
    for (name, value) in [
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_IFNAME", "a-name-that-is-too-long"),
    ] {
        let mut pairs = ADD.to_vec();
        pairs.push((name, value));
        assert_eq!(code(Command::Add, &pairs, &good), 4, "{name}");
    }
    assert_eq!(
        code(Command::Add, ADD, &json!({ "cniVersion": "1.0.0" })),
        7
    );
    assert_eq!(
        code(
            Command::Add,
            ADD,
            &json!({ "cniVersion": "1.0.0", "name": "a b" })
        ),
        7
    );
    let (_, error) = Request::parse(Command::Add, &env(ADD), b"{").expect_err("not JSON");
    assert!(String::from_utf8_lossy(&error.report(None)).contains("\"code\": 6"));
}

#[test]
fn bad_arguments_matter_only_to_who_reads_them() {
    let config = json!({ "cniVersion": "1.0.0", "name": "net" });
    let mut pairs = ADD.to_vec();
    pairs.push(("CNI_ARGS", "none"));
    let request = parse(Command::Add, &pairs, &config).expect("request");
    let error = request.args().expect_err("no pair").to_string();
    assert_eq!(error, "CNI_ARGS: invalid pair \"none\"");
}

#[test]
fn a_decoding_error_names_the_key() {
    let config = json!({ "cniVersion": "1.0.0", "name": "net", "prevResult": { "cniVersion": "1.0.0", "ips": [{ "address": "x" }] } });
    let report = parse(Command::Add, ADD, &config).expect_err("bad address");
    assert!(
        report["msg"]
            .as_str()
            .expect("msg")
            .contains("ips[0].address"),
        "{report}"
    );
}

#[test]
fn del_needs_no_namespace() {
    let config = json!({ "cniVersion": "0.4.0", "name": "net" });
    let request = parse(Command::Del, &[ADD[0], ADD[2]], &config).expect("request");
    assert_eq!(request.netns, None);
}

fn result() -> NetResult {
    NetResult {
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            mac: "0a:58:00:00:00:01".to_owned(),
            mtu: 1500,
            sandbox: "/ns".to_owned(),
            ..Interface::default()
        }],
        ips: vec![
            IpConfig {
                interface: Some(0),
                address: "10.1.0.5/24".parse().expect("net"),
                gateway: "10.1.0.1".parse().ok(),
            },
            IpConfig {
                interface: Some(0),
                address: "fd00::5/64".parse().expect("net"),
                gateway: None,
            },
        ],
        routes: vec![Route {
            mtu: Some(1400),
            ..Route::new("0.0.0.0/0".parse().expect("net"), None)
        }],
        dns: Dns {
            nameservers: vec!["10.1.0.1".to_owned()],
            ..Dns::default()
        },
    }
}

#[test]
fn a_result_reads_back_what_its_version_can_say() {
    let read = |version: Version| {
        let value =
            serde_json::from_slice(&result().encode(version).expect("encode")).expect("JSON");
        NetResult::decode(&value).expect("decode")
    };
    assert_eq!(read(Version::V1_1_0), result());
    let older = read(Version::V1_0_0);
    assert_eq!(
        (older.interfaces[0].mtu, older.routes[0].mtu, &older.ips),
        (0, None, &result().ips)
    );
    assert_eq!(read(Version::V0_3_1).ips, result().ips);
    let oldest = read(Version::V0_2_0);
    assert_eq!(oldest.interfaces, []);
    assert_eq!(
        oldest.ips.iter().map(|ip| ip.address).collect::<Vec<_>>(),
        result().ips.iter().map(|ip| ip.address).collect::<Vec<_>>()
    );
    assert_eq!(oldest.routes.len(), 1);
}

#[test]
fn versions_between_0_3_and_1_0_state_the_family_of_each_address() {
    let value: Value =
        serde_json::from_slice(&result().encode(Version::V0_4_0).expect("encode")).expect("JSON");
    assert_eq!(value["ips"][0]["version"], "4");
    assert_eq!(value["ips"][1]["version"], "6");
    let value: Value =
        serde_json::from_slice(&result().encode(Version::V1_0_0).expect("encode")).expect("JSON");
    assert_eq!(value["ips"][0].get("version"), None);
}

#[test]
fn what_go_writes_is_read_nulls_and_keys_in_other_cases() {
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "net",
        "ipam": { "routes": null, "ranges": [{ "gateway": null }] },
        "prevResult": null,
        "RuntimeConfig": {
            "mac": "0a:00:00:00:00:01",
            "bandWidth": { "IngressRate": 1 },
            "portMappings": [{ "HostPort": 80, "ContainerPort": 81, "Protocol": "tcp", "HostIP": "" }],
        },
        "dns": { "nameservers": null, "domain": "" },
    });
    let request = parse(Command::Add, ADD, &config).expect("request");
    assert_eq!(request.config["ipam"], json!({ "ranges": [{}] }));
    assert_eq!(
        request.config["runtimeConfig"],
        json!({
            "mac": "0a:00:00:00:00:01",
            "bandwidth": { "ingressRate": 1 },
            "portMappings": [{ "hostPort": 80, "containerPort": 81, "protocol": "tcp", "hostIP": "" }],
        })
    );
    assert_eq!((request.previous.is_none(), request.dns()), (true, None));
    let config = json!({ "cniVersion": "1.0.0", "name": "net", "dns": { "nameservers": [] } });
    let request = parse(Command::Add, ADD, &config).expect("request");
    assert_eq!(
        request.dns(),
        Some(Dns::default()),
        "an empty list is a word too"
    );
}

#[test]
fn old_versions_refuse_what_they_have_no_place_for() {
    let refusal = |result: NetResult| {
        let error = result.encode(Version::V0_2_0).expect_err("no place");
        serde_json::from_slice::<Value>(&error.report(None)).expect("JSON")
    };
    let mut two = result();
    two.ips.push(two.ips[0].clone());
    let error = refusal(two);
    assert_eq!(
        (&error["code"], &error["msg"]),
        (
            &json!(1),
            &json!("CNI version 0.2.0 does not support more than 1 address per family")
        )
    );
    assert_eq!(
        refusal(NetResult::default())["msg"],
        "cannot convert: no valid IP addresses"
    );
    let config = json!({ "cniVersion": "0.3.1", "name": "net" });
    let error = parse(Command::Check, ADD, &config).expect_err("too old");
    assert_eq!(
        (&error["code"], &error["msg"]),
        (&json!(1), &json!("config version does not allow CHECK"))
    );
}
