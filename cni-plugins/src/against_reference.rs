//! The same scenarios over the reference plugins, which Debian has, and over ours: what they report, what is in the
//! container and on the host, and what is left after DEL must be the same.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::lab::{Host, Pod, new_namespace, wire_to_world};

const REFERENCE: &str = "/usr/lib/cni";

/// Where ours do otherwise, on purpose; docs/cni.md says so too.
const ON_PURPOSE: [&str; 3] = [
    // The resolver settings of the address plugin stay in the result, as bridge and ptp leave them.
    "macvlan, result after ADD",
    "host-device, result after ADD",
    // An address's table gets no routes of the other family, which no packet from the address could use.
    "sbr, routes after ADD",
];

/// A chain of plugins; each but the first gets the result of the one before.
struct Scenario {
    name: &'static str,
    chain: Vec<Value>,
    args: &'static str,
}

fn scenarios(host: &Host) -> Vec<Scenario> {
    let bridge = |changes: Value| {
        let mut config = host.bridge_config();
        config["cniVersion"] = json!("1.0.0");
        merge(&mut config, changes);
        config
    };
    let ipam = |ipam: Value| {
        let mut config = json!({ "type": "host-local", "dataDir": host.dir.path() });
        merge(&mut config, ipam);
        config
    };
    let v4 = json!([[{ "subnet": "10.1.0.0/24" }]]);
    let one = |name, changes| Scenario {
        name,
        chain: vec![bridge(changes)],
        args: "",
    };
    let chained = |name, plugin: &str, changes: Value| {
        let mut second = json!({ "cniVersion": "1.0.0", "name": "net", "type": plugin });
        merge(&mut second, changes);
        Scenario {
            name,
            chain: vec![bridge(json!({})), second],
            args: "",
        }
    };
    let on_link = json!({
        "type": "static",
        "addresses": [{ "address": "192.0.2.9/24", "gateway": "192.0.2.2" }],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "198.51.100.0/24", "gw": "192.0.2.2" }],
        "dns": { "nameservers": ["192.0.2.53"], "search": ["a.test"] },
    });
    vec![
        one("dual stack", json!({})),
        one("MTU", json!({ "mtu": 1400 })),
        one(
            "default gateway",
            json!({ "isDefaultGateway": true, "ipam": ipam(json!({ "ranges": v4 })) }),
        ),
        one(
            "promiscuous",
            json!({ "hairpinMode": false, "promiscMode": true }),
        ),
        one(
            "not a gateway",
            json!({ "isGateway": false, "ipMasq": false }),
        ),
        one(
            "link only",
            json!({ "isGateway": false, "ipMasq": false, "ipam": {} }),
        ),
        one(
            "hardware address",
            json!({ "runtimeConfig": { "mac": "0a:58:00:00:00:42" } }),
        ),
        one(
            "requested addresses",
            json!({ "runtimeConfig": { "ips": ["10.1.0.77/24", "fd00:1::77/64"] } }),
        ),
        one(
            "a range in the old form, with its own gateway",
            json!({ "ipam": null, "isGateway": true }),
        ),
        Scenario {
            name: "an address by CNI_ARGS",
            chain: vec![bridge(
                json!({ "ipam": ipam(json!({ "ranges": v4, "routes": [] })) }),
            )],
            args: "IgnoreUnknown=1;IP=10.1.0.88",
        },
        one("CNI 0.3.1", json!({ "cniVersion": "0.3.1" })),
        one("CNI 0.4.0", json!({ "cniVersion": "0.4.0" })),
        one("ptp", json!({ "type": "ptp" })),
        one(
            "macvlan",
            json!({ "type": "macvlan", "master": "out0", "mode": "bridge", "ipam": on_link }),
        ),
        one(
            "host-device",
            json!({ "type": "host-device", "device": "out0", "ipam": on_link }),
        ),
        one("loopback", json!({ "type": "loopback", "ipam": null })),
        chained(
            "tuning",
            "tuning",
            json!({
                "mtu": 1300, "promisc": true, "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" },
            }),
        ),
        chained("sbr", "sbr", json!({})),
        chained(
            "portmap",
            "portmap",
            json!({
                "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
            }),
        ),
        chained("firewall", "firewall", json!({})),
    ]
}

/// Replaces members; those that are null are removed, and the one range of older configurations takes their place.
fn merge(config: &mut Value, changes: Value) {
    for (key, value) in changes.as_object().expect("object") {
        config[key] = value.clone();
    }
    if config["ipam"].is_null() && config["isGateway"] == true && config["type"] == "bridge" {
        config["ipam"] = json!({
            "type": "host-local", "subnet": "10.3.0.0/24", "rangeStart": "10.3.0.50", "rangeEnd": "10.3.0.60",
            "gateway": "10.3.0.254", "routes": [{ "dst": "0.0.0.0/0" }],
        });
    }
}

/// Calls a plugin of ours, or of the reference's if it is `theirs`.
fn call(host: &Host, pod: &Pod, command: &str, config: &Value, args: &str, theirs: bool) -> Value {
    let mut env = host.env(command, pod);
    env.insert("CNI_ARGS".to_owned(), args.to_owned());
    let name = config["type"].as_str().expect("type");
    let text = config.to_string();
    let (succeeded, stdout) = if theirs {
        let path = format!("/proc/{}/fd/{}", std::process::id(), pod.netns.as_raw_fd());
        env.insert("CNI_NETNS".to_owned(), path);
        let execute = || {
            let mut child = Command::new(format!("{REFERENCE}/{name}"))
                .envs(&env)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("Debian's containernetworking-plugins");
            let mut stdin = child.stdin.take().expect("stdin");
            stdin.write_all(text.as_bytes()).expect("write");
            drop(stdin);
            child.wait_with_output().expect("wait")
        };
        let output = host.inside(execute);
        (output.status.success(), output.stdout)
    } else {
        let output = host.inside(|| crate::run(name, &env, text.as_bytes()));
        let output = output.expect("plugin");
        (output.code == 0, output.stdout)
    };
    let printed = String::from_utf8_lossy(&stdout);
    assert!(succeeded, "{command} of {name}: {printed}");
    serde_json::from_slice(&stdout).unwrap_or_default()
}

/// What a program prints as JSON.
fn query(program: &str, words: &[&str]) -> Vec<Value> {
    let output = Command::new(program).args(words).output().expect(program);
    serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap_or_default()
}

fn is_up(link: &Value) -> bool {
    let flags = link["flags"].as_array();
    flags.is_some_and(|flags| flags.contains(&json!("UP")))
}

/// What a scenario made, without what is chosen at random.
fn observe(host: &Host, pod: &Pod, result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let name = interface["name"].as_str().expect("name").to_owned();
        let of_host = interface["sandbox"].as_str().is_none_or(str::is_empty);
        interface["name"] = json!(if of_host && name.starts_with("veth") {
            "veth"
        } else {
            &name
        });
        interface["sandbox"] = json!(!of_host);
        if !interface["mac"]
            .as_str()
            .unwrap_or_default()
            .starts_with("0a:58:00:00:00:42")
        {
            interface["mac"] = json!(interface["mac"].is_string());
        }
    }
    let addresses = || {
        let of_link = |link: &Value| {
            let own = link["addr_info"].as_array().cloned().unwrap_or_default();
            let global = own.into_iter().filter(|a| a["scope"] != "link");
            let text = |a: Value| format!("{}/{}", a["local"], a["prefixlen"]);
            json!([
                link["ifname"],
                link["mtu"],
                link["promiscuity"],
                is_up(link),
                global.map(text).collect::<Vec<_>>()
            ])
        };
        query("ip", &["-json", "-details", "address"])
            .iter()
            .map(of_link)
            .collect::<Vec<_>>()
    };
    let routes = || {
        let mut all = Vec::new();
        for family in ["-4", "-6"] {
            for table in ["main", "100", "101"] {
                let routes = query("ip", &["-json", family, "route", "show", "table", table]);
                let own = routes
                    .iter()
                    .filter(|r| !r["dst"].as_str().unwrap_or_default().starts_with("fe80"));
                all.extend(own.map(|r| {
                    format!(
                        "{table}: {} via {} dev {}",
                        r["dst"], r["gateway"], r["dev"]
                    )
                }));
            }
        }
        all.sort();
        all.dedup();
        all
    };
    let rules = || {
        let rules = query("ip", &["-json", "rule"]);
        let own = rules.iter().filter(|rule| rule["src"] != "all");
        own.map(|rule| format!("{} to {}", rule["src"], rule["table"]))
            .collect::<Vec<_>>()
    };
    let forwarding = || {
        ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
            .map(|key| std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap_or_default())
    };
    let of_bridge = host
        .inside(addresses)
        .into_iter()
        .filter(|link| link[0] == "br0");
    json!({
        "result": result,
        "pod": pod.inside(addresses),
        "routes": pod.inside(routes),
        "rules": pod.inside(rules),
        "bridge": of_bridge.collect::<Vec<_>>(),
        "forwarding": host.inside(forwarding),
        "leases": host.leases(),
    })
}

/// ADD of the chain, CHECK where the version has it, DEL backwards; what there was in between, and after.
fn play(number: usize, theirs: bool) -> (&'static str, Value) {
    let host = Host::new();
    let world = new_namespace();
    wire_to_world(&host, &world);
    let pod = Pod::new("a");
    let Scenario { name, chain, args } = scenarios(&host).swap_remove(number);
    let call = |command, config: &Value| call(&host, &pod, command, config, args, theirs);
    let mut result = Value::Null;
    let mut called = Vec::new();
    for mut config in chain {
        if !result.is_null() {
            config["prevResult"] = result;
        }
        if config["ipam"]["type"] == "host-local" {
            config["ipam"]["dataDir"] = json!(host.dir.path());
        }
        result = call("ADD", &config);
        called.push(config);
    }
    let made = observe(&host, &pod, &result);
    for config in called.iter_mut().rev() {
        config["prevResult"] = result.clone();
        call("DEL", config);
    }
    let mut left = observe(&host, &pod, &Value::Null);
    left["links"] = json!(host.links());
    (name, json!([made, left]))
}

#[test]
fn every_scenario_comes_out_the_same() {
    let host = Host::new();
    let mut differences = Vec::new();
    for number in 0..scenarios(&host).len() {
        let (name, theirs) = play(number, true);
        let (_, ours) = play(number, false);
        for (at, when) in ["ADD", "DEL"].into_iter().enumerate() {
            let (ours, theirs) = (&ours[at], &theirs[at]);
            let keys = ours.as_object().expect("object").keys();
            let different = keys.filter(|key| ours[key] != theirs[key]);
            differences.extend(different.map(|key| {
                let text = format!("  ours {}\n  theirs {}", ours[key], theirs[key]);
                (format!("{name}, {key} after {when}"), text)
            }));
        }
    }
    let found: Vec<&str> = differences.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(found, ON_PURPOSE, "{differences:#?}");
}
