use super::*;
use crate::config::{Config, DetectLocal, IptablesSettings, NodePortAddresses};
use crate::iptables::text::{format_deletion, format_patch, parse_saved};
use crate::service::object::{EndpointSlice, Service as Object};
use crate::service::resolve::resolve;
use crate::service::{NodeFacts, ServiceFacts, SliceFacts};
use linux::nftables::Family;
use serde_json::{Value, json};

fn node() -> NodeFacts {
    NodeFacts {
        addresses: vec!["192.0.2.1".parse().expect("address")],
        ..NodeFacts::named("here")
    }
}

fn config() -> Config {
    Config::new("here", vec!["10.244.0.0/16".parse().expect("network")])
}

fn settings(change: impl FnOnce(&mut Config)) -> Settings {
    let mut config = config();
    change(&mut config);
    Settings::new(Family::Ip, IptablesSettings::default(), &config, &node())
}

fn model() -> Model {
    Model::new(settings(|_| {}))
}

fn name() -> ServiceName {
    ServiceName::new("ns", "web")
}

fn endpoint(address: &str, here: bool) -> Value {
    json!({ "addresses": [address], "nodeName": if here { "here" } else { "there" } })
}

/// `ns/web`, its port `http` 80, with a `spec` of its own beside, and a load balancer's address if it has that type.
fn resolved(mut spec: Value, endpoints: Vec<Value>) -> ResolvedService {
    let own = json!({ "clusterIP": "10.96.0.10", "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }] });
    for (key, value) in own.as_object().expect("an object") {
        let spec = spec.as_object_mut().expect("an object");
        spec.entry(key.clone()).or_insert(value.clone());
    }
    let service = json!({
        "metadata": { "namespace": "ns", "name": "web" }, "spec": spec,
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } }
    });
    let slice = json!({
        "metadata": { "namespace": "ns", "name": "web-1" }, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }]
    });
    let service: Object = serde_json::from_value(service).expect("a service");
    let slice: EndpointSlice = serde_json::from_value(slice).expect("a slice");
    let slices = SliceFacts::of(&slice, "here");
    resolve(&name(), &ServiceFacts::of(&service), slices.iter(), &node())
}

/// The rules of a Service's own chains and those that lead to it, by settings.
fn rules(settings: Settings, spec: Value, endpoints: Vec<Value>) -> Vec<String> {
    let model = Model::new(settings);
    let service = model.plan(Some(&resolved(spec, endpoints)));
    let mut rules = Vec::new();
    let mut add = |_: Table, chain: &str, rule: String| rules.push(format!("{chain} {rule}"));
    if let Some(service) = service {
        service.ways(&model.settings, &mut add);
        service.chains(&model.settings, true, &mut add);
    }
    rules
}

/// `printf %s ns/web:httptcp | sha256sum`, in base32.
const WEB: &str = "HMALVVKA6APKJPPY";

fn hash_of(endpoint: &str) -> String {
    crate::iptables::names::endpoint_chain("ns/web:http", "tcp", endpoint)
}

/// The rules with short names for chains, and without what they say for the reader.
fn short(rules: Vec<String>) -> Vec<String> {
    let one = hash_of("10.0.0.1:8080");
    let two = hash_of("10.0.0.2:8080");
    let shorten = |rule: String| {
        let rule = rule
            .replace(WEB, "WEB")
            .replace(&one, "SEP-1")
            .replace(&two, "SEP-2");
        let rule = rule.replace("KUBE-", "");
        match rule.split_once("-m comment --comment \"") {
            None => rule,
            Some((before, after)) => {
                let (_, after) = after.split_once('"').expect("the comment's end");
                format!("{before}{}", after.trim_start())
            }
        }
    };
    rules.into_iter().map(shorten).collect()
}

#[test]
fn a_cluster_ip_leads_to_a_fair_draw_and_masquerades_what_comes_from_outside() {
    let endpoints = vec![endpoint("10.0.0.1", true), endpoint("10.0.0.2", false)];
    let spec = json!({ "ports": [{ "name": "http", "port": 80 }] });
    assert_eq!(
        short(rules(settings(|_| {}), spec, endpoints)),
        [
            "SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j SVC-WEB",
            "SVC-WEB ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j MARK-MASQ",
            "SVC-WEB -m statistic --mode random --probability 0.50000000000 -j SEP-1",
            "SVC-WEB -j SEP-2",
            "SEP-1 -s 10.0.0.1/32 -j MARK-MASQ",
            "SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:8080",
            "SEP-2 -s 10.0.0.2/32 -j MARK-MASQ",
            "SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.0.0.2:8080",
        ]
    );
}

#[test]
fn what_is_masqueraded_follows_how_pods_are_told() {
    let first = |change: fn(&mut Config)| {
        let spec = json!({ "ports": [{ "name": "http", "port": 80 }] });
        let endpoints = vec![endpoint("10.0.0.1", true)];
        short(rules(settings(change), spec, endpoints))[1].clone()
    };
    let frontend = "-d 10.96.0.10/32";
    let port = "-p tcp -m tcp --dport 80 -j MARK-MASQ";
    assert_eq!(
        first(|config| config.masquerade_all = true),
        format!("SVC-WEB {frontend} {port}")
    );
    assert_eq!(
        first(|config| config.detect_local = DetectLocal::Interface("veth*".into())),
        format!("SVC-WEB {frontend} ! -i veth+ {port}")
    );
    assert_eq!(
        first(|config| config.detect_local = DetectLocal::Unknown),
        "SVC-WEB -j SEP-1"
    );
}

#[test]
fn external_traffic_is_masqueraded_under_the_policy_cluster() {
    let spec = json!({ "type": "LoadBalancer", "externalIPs": ["198.51.100.1"] });
    let rules = short(rules(
        settings(|_| {}),
        spec,
        vec![endpoint("10.0.0.1", true)],
    ));
    assert_eq!(
        rules[1..4],
        [
            "SERVICES -d 198.51.100.1/32 -p tcp -m tcp --dport 80 -j EXT-WEB",
            "SERVICES -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -j EXT-WEB",
            "NODEPORTS -p tcp -m tcp --dport 30080 -j EXT-WEB",
        ]
    );
    assert_eq!(rules[5..7], ["EXT-WEB -j MARK-MASQ", "EXT-WEB -j SVC-WEB"]);
}

#[test]
fn external_traffic_stays_here_under_the_policy_local_but_for_the_nodes_and_its_pods() {
    let spec = || json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999 });
    let both = vec![endpoint("10.0.0.1", true), endpoint("10.0.0.2", false)];
    let found = short(rules(settings(|_| {}), spec(), both));
    let external: Vec<&String> = found.iter().filter(|r| r.starts_with("EXT")).collect();
    assert_eq!(
        external,
        [
            "EXT-WEB -s 10.244.0.0/16 -j SVC-WEB",
            "EXT-WEB -m addrtype --src-type LOCAL -j MARK-MASQ",
            "EXT-WEB -m addrtype --src-type LOCAL -j SVC-WEB",
            "EXT-WEB -j SVL-WEB",
        ]
    );
    assert!(found.contains(&"SVL-WEB -j SEP-1".to_owned()));
    assert!(found.contains(&"NODEPORTS -p tcp -m tcp --dport 30999 -j ACCEPT".to_owned()));
    // None here: what comes from elsewhere is dropped.
    let found = short(rules(
        settings(|_| {}),
        spec(),
        vec![endpoint("10.0.0.2", false)],
    ));
    let dropped: Vec<&String> = found.iter().filter(|r| r.ends_with("DROP")).collect();
    assert_eq!(
        dropped,
        [
            "EXTERNAL-SERVICES -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -j DROP",
            "EXTERNAL-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j DROP",
        ]
    );
    assert!(!found.iter().any(|rule| rule.contains("SVL-WEB")));
}

#[test]
fn internal_traffic_stays_here_under_the_policy_local() {
    let spec =
        || json!({ "internalTrafficPolicy": "Local", "ports": [{ "name": "http", "port": 80 }] });
    let both = vec![endpoint("10.0.0.1", true), endpoint("10.0.0.2", false)];
    let found = short(rules(settings(|_| {}), spec(), both));
    assert_eq!(
        found[..3],
        [
            "SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j SVL-WEB",
            "SVL-WEB ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j MARK-MASQ",
            "SVL-WEB -j SEP-1",
        ]
    );
    assert!(!found.iter().any(|rule| rule.contains("SVC-WEB")));
    let none = short(rules(
        settings(|_| {}),
        spec(),
        vec![endpoint("10.0.0.2", false)],
    ));
    assert_eq!(
        none,
        ["SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DROP"]
    );
}

#[test]
fn source_ranges_are_a_chain_and_the_rest_is_dropped() {
    let spec = json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24", "198.51.100.0/25"] });
    let found = short(rules(
        settings(|_| {}),
        spec,
        vec![endpoint("10.0.0.1", true)],
    ));
    assert_eq!(
        found[1..3],
        [
            "SERVICES -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -j FW-WEB",
            "PROXY-FIREWALL -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -j DROP",
        ]
    );
    let firewall: Vec<&String> = found.iter().filter(|r| r.starts_with("FW")).collect();
    assert_eq!(
        firewall,
        [
            "FW-WEB -s 192.0.2.0/24 -j EXT-WEB",
            "FW-WEB -s 198.51.100.0/25 -j EXT-WEB",
            // The node is among them.
            "FW-WEB -s 203.0.113.7/32 -j EXT-WEB",
            "FW-WEB ",
        ]
    );
}

#[test]
fn a_client_that_was_here_goes_where_it_went() {
    let spec = json!({ "sessionAffinity": "ClientIP", "ports": [{ "name": "http", "port": 80 }] });
    let both = vec![endpoint("10.0.0.1", true), endpoint("10.0.0.2", false)];
    let found = short(rules(settings(|_| {}), spec, both));
    let of = |target: &str| {
        format!(
            "SVC-WEB -m recent --rcheck --seconds 10800 --reap --name {target} --mask 255.255.255.255 --rsource -j {target}"
        )
    };
    assert_eq!(found[2..4], [of("SEP-1"), of("SEP-2")]);
    assert!(found[4].contains("statistic") && found[5] == "SVC-WEB -j SEP-2");
    assert_eq!(
        found[7],
        "SEP-1 -p tcp -m recent --set --name SEP-1 --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.0.0.1:8080"
    );
}

#[test]
fn without_endpoints_all_is_refused_and_those_that_end_serve_for_want_of_better() {
    let spec = || json!({ "type": "LoadBalancer" });
    let reject = "-j REJECT --reject-with icmp-port-unreachable";
    let found = short(rules(settings(|_| {}), spec(), Vec::new()));
    assert_eq!(
        found,
        [
            format!("SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 {reject}"),
            format!("EXTERNAL-SERVICES -d 203.0.113.7/32 -p tcp -m tcp --dport 80 {reject}"),
            format!(
                "EXTERNAL-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 30080 {reject}"
            ),
        ]
    );
    let mut going = endpoint("10.0.0.1", true);
    going["conditions"] = json!({ "ready": false, "serving": true, "terminating": true });
    let found = short(rules(settings(|_| {}), spec(), vec![going.clone()]));
    assert!(found.contains(&"SVC-WEB -j SEP-1".to_owned()));
    let found = short(rules(
        settings(|_| {}),
        spec(),
        vec![going, endpoint("10.0.0.2", false)],
    ));
    assert!(!found.iter().any(|rule| rule.contains("SEP-1")));
}

#[test]
fn node_ports_answer_where_they_are_told() {
    let ways = |change: fn(&mut Config), localhost: bool, family| {
        let mut config = config();
        change(&mut config);
        let own = IptablesSettings {
            localhost_node_ports: localhost,
            ..IptablesSettings::default()
        };
        let settings = Settings::new(family, own, &config, &node());
        let has_firewall = settings.localhost;
        (short(fixed::node_ports(&settings)), has_firewall)
    };
    let all = |_: &mut Config| {};
    let local = "-m addrtype --dst-type LOCAL -j NODEPORTS";
    assert_eq!(ways(all, true, Family::Ip), (vec![local.to_owned()], true));
    assert_eq!(
        ways(all, false, Family::Ip),
        (vec![format!("! -d 127.0.0.0/8 {local}")], false)
    );
    assert_eq!(
        ways(all, true, Family::Ip6),
        (vec![format!("! -d ::1/128 {local}")], false)
    );
    let primary = |config: &mut Config| config.node_port_addresses = NodePortAddresses::Primary;
    assert_eq!(
        ways(primary, true, Family::Ip),
        (vec![format!("-d 192.0.2.1/32 {local}")], false)
    );
    assert_eq!(ways(primary, true, Family::Ip6), (vec![], false));
    let networks = |config: &mut Config| {
        let networks = ["192.0.2.0/24", "127.0.0.1/32"].map(|text| text.parse().expect("network"));
        config.node_port_addresses = NodePortAddresses::Networks(networks.to_vec());
    };
    let rules = |first: Option<&str>| {
        let both = [
            format!("-d 192.0.2.0/24 {local}"),
            format!("-d 127.0.0.1/32 {local}"),
        ];
        first
            .map(str::to_owned)
            .into_iter()
            .chain(both)
            .collect::<Vec<_>>()
    };
    assert_eq!(ways(networks, true, Family::Ip), (rules(None), true));
    assert_eq!(
        ways(networks, false, Family::Ip),
        (rules(Some("-d 127.0.0.0/8 -j RETURN")), false)
    );
}

#[test]
fn the_rules_for_all_follow_the_settings() {
    let text = |settings: Settings| format_patch(&Model::new(settings).against(&Chains::new()));
    let found = text(Settings {
        drop_invalid: false,
        random_fully: false,
        ..settings(|c| c.masquerade_bit = 15)
    });
    for rule in [
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x8000/0x8000\n",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x8000/0x8000 -j RETURN\n",
        "-A KUBE-POSTROUTING -j MARK --set-xmark 0x8000/0x0\n",
        "SNAT\" -j MASQUERADE\n",
    ] {
        assert!(found.contains(rule), "{rule} in {found}");
    }
    assert!(!found.contains("INVALID"));
    let found = text(settings(|_| {}));
    assert!(found.contains("-j MASQUERADE --random-fully\n"));
    assert!(found.contains("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n"));
    let firewall = "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 ";
    assert!(found.contains(firewall) && found.contains("-I INPUT -j KUBE-FIREWALL\n"));
    let found = text(settings(|c| {
        c.node_port_addresses = NodePortAddresses::Primary
    }));
    assert!(!found.contains("KUBE-FIREWALL"));
}

/// What `iptables-save` would print.
fn saved(chains: &Chains) -> String {
    let mut text = format_patch(&Patch {
        write: chains.clone(),
        ..Patch::default()
    });
    for jump in JUMPS {
        text.push_str(&format!(
            "*{}\n-A {} {}\nCOMMIT\n",
            jump.table,
            jump.from,
            jump.rule()
        ));
    }
    text
}

fn set(model: &mut Model, endpoints: &[&str]) -> Patch {
    let endpoints = endpoints
        .iter()
        .map(|address| endpoint(address, true))
        .collect();
    let next = model.plan(Some(&resolved(json!({}), endpoints)));
    let before = model.replace(&name(), next);
    model.since(&[(name(), before)])
}

#[test]
fn what_the_kernel_holds_already_is_not_given_again() {
    let mut model = model();
    set(&mut model, &["10.0.0.1"]);
    let kernel = parse_saved(&saved(&model.chains()));
    assert_eq!(model.against(&kernel), Patch::default());
    // Others' rules beside stay, and ours that are gone or changed come.
    let mut damaged = kernel.clone();
    damaged.remove(&(Table::Nat, hash_of("10.0.0.1:8080")));
    let services = (Table::Nat, SERVICES.to_owned());
    damaged.entry(services.clone()).or_default().pop();
    damaged.insert((Table::Nat, "KUBE-SEP-STALE".into()), Vec::new());
    damaged.insert((Table::Nat, "PREROUTING".into()), vec!["-j MINE".into()]);
    let patch = model.against(&damaged);
    let written: Vec<_> = patch.write.keys().cloned().collect();
    assert_eq!(written, [(Table::Nat, hash_of("10.0.0.1:8080")), services]);
    assert_eq!(patch.delete, BTreeSet::from(["KUBE-SEP-STALE".to_owned()]));
    assert_eq!(patch.jumps.len(), 1);
    let text = format_patch(&patch);
    assert!(text.starts_with("*nat\n:KUBE-SEP-"), "{text}");
    assert!(text.contains(
        "-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n"
    ));
    assert!(
        text.contains(":KUBE-SEP-STALE - [0:0]\n") && text.ends_with("-X KUBE-SEP-STALE\nCOMMIT\n")
    );
}

#[test]
fn a_change_gives_only_the_chains_that_changed() {
    let mut model = model();
    model.against(&Chains::new());
    let chains =
        |patch: &Patch| short(patch.write.keys().map(|(_, chain)| chain.clone()).collect());
    // New: its own chains, and the ways to it.
    let first = set(&mut model, &["10.0.0.1"]);
    assert_eq!(chains(&first).len(), 5);
    // One endpoint more: its chain and the draw.
    let second = set(&mut model, &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(chains(&second), ["SEP-2", "SVC-WEB"]);
    assert!(second.delete.is_empty());
    // One less: the draw, and a chain goes.
    let third = set(&mut model, &["10.0.0.2"]);
    assert_eq!(chains(&third), ["SVC-WEB"]);
    assert_eq!(third.delete, BTreeSet::from([hash_of("10.0.0.1:8080")]));
    // None: all its own go, and it is refused in two chains and no longer found in two.
    let none = set(&mut model, &[]);
    assert_eq!(chains(&none).len(), 4);
    assert_eq!(none.delete.len(), 3);
    assert_eq!(set(&mut model, &[]), Patch::default());
}

#[test]
fn the_count_of_rules_follows_the_changes() {
    let mut model = model();
    model.against(&Chains::new());
    for endpoints in [
        &["10.0.0.1"][..],
        &["10.0.0.1", "10.0.0.2"],
        &[],
        &["10.0.0.2"],
    ] {
        set(&mut model, endpoints);
        for table in [Table::Filter, Table::Nat] {
            let wanted = Patch {
                write: model.chains(),
                ..Patch::default()
            }
            .rules(Some(table));
            assert_eq!(model.rules(table), wanted, "{table} with {endpoints:?}");
        }
    }
}

#[test]
fn many_endpoints_say_nothing_for_the_reader() {
    let mut model = model();
    let addresses: Vec<String> = (0..1_001)
        .map(|i: u32| format!("10.1.{}.{}", i / 250, i % 250))
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let text = format_patch(&set(&mut model, &addresses));
    assert!(!text.contains(" -> ") && text.contains("cluster IP"));
}

#[test]
fn a_line_tells_whose_it_is() {
    let mut model = model();
    let text = format_patch(&set(&mut model, &["10.0.0.1"]));
    let of = |start: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(start))
            .expect("a line");
        model.owner(line)
    };
    assert_eq!(of("-A KUBE-SEP-"), Some(name()));
    assert_eq!(of(":KUBE-SEP-"), Some(name()));
    assert_eq!(of("-A KUBE-SERVICES"), Some(name()));
    assert_eq!(of("COMMIT"), None);
}

#[test]
fn a_deletion_takes_ours_and_the_ways_to_them_alone() {
    let mut model = model();
    set(&mut model, &["10.0.0.1"]);
    let mut kernel = parse_saved(&saved(&model.chains()));
    kernel
        .entry((Table::Nat, "PREROUTING".into()))
        .or_default()
        .push("-j MINE".into());
    let text = format_deletion(&kernel);
    assert!(text.contains(
        "-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n"
    ));
    assert!(text.contains(&format!("-X {}\n", hash_of("10.0.0.1:8080"))));
    assert!(!text.contains("MINE") && !text.contains("KUBE-FIREWALL"));
    assert_eq!(
        format_deletion(&parse_saved("*nat\n:MINE - [0:0]\nCOMMIT\n")),
        ""
    );
}
