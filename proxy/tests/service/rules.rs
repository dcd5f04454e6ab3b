//! What stands in the kernel.

use crate::lab::Namespace;
use crate::{Api, config, merged, service, slice, start};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

fn pods(count: u8) -> Vec<IpAddr> {
    (1..=count)
        .map(|last| IpAddr::from([10, 244, 0, last]))
        .collect()
}

fn list(namespace: &Namespace, family: &str) -> String {
    namespace.command(&format!("nft list table {family} orlop"))
}

/// The table's elements and rules, in an order that doesn't depend on hashes, and one an item: nft puts short elements
/// into one line.
fn lines(text: &str) -> BTreeSet<String> {
    let items = text
        .lines()
        .flat_map(|line| line.trim().trim_start_matches("elements = { ").split(", "));
    items
        .map(|item| item.trim_end_matches([',', '}', ' ']).to_owned())
        .collect()
}

fn full_service() -> Value {
    merged(
        service("10.96.0.10"),
        json!({ "spec": {
        "type": "LoadBalancer", "sessionAffinity": "ClientIP", "clusterIPs": ["10.96.0.10", "fd96::10"],
        "externalIPs": ["203.0.113.9"], "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }, { "name": "dns", "port": 53, "protocol": "UDP" }]
    }, "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } } }),
    )
}

#[test]
fn one_endpoint_is_a_transaction_of_two_elements() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(service("10.96.0.10"));
    api.apply(slice(&pods(3)));
    let running = start(&api, &node, config());
    let progress = running.after(|| api.apply(slice(&pods(4))));
    assert_eq!(progress.last_changes, 2, "the endpoint and its hairpin");
}

#[test]
fn the_table_is_readable_and_can_be_loaded_again() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(full_service());
    api.apply(slice(&pods(3)));
    let running = start(&api, &node, config());
    let text = list(&node, "ip");
    assert!(text.contains("comment \"default/web:http\""), "{text}");
    running.stop().expect("stop");
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), &text).expect("write");
    node.command("nft flush ruleset");
    node.command(&format!("nft -f {}", file.path().display()));
    assert_eq!(lines(&list(&node, "ip")), lines(&text));
}

#[test]
fn the_rules_stay_when_the_proxy_stops_and_go_when_it_is_told_so() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(service("10.96.0.10"));
    api.apply(slice(&pods(1)));
    let running = start(&api, &node, config());
    running.stop().expect("stop");
    assert!(list(&node, "ip").contains("10.96.0.10"));
    node.run(|| proxy::cleanup().expect("cleanup"));
    assert_eq!(node.command("nft list tables"), "");
    let running = start(
        &api,
        &node,
        proxy::Config {
            cleanup_on_exit: true,
            ..config()
        },
    );
    running.stop().expect("stop");
    assert_eq!(node.command("nft list tables"), "");
}

#[test]
fn a_restart_changes_nothing_if_nothing_changed() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(full_service());
    for count in [1, 3, 7, 5] {
        api.apply(slice(&pods(count)));
    }
    let running = start(&api, &node, config());
    running.after(|| api.apply(slice(&pods(4))));
    running.after(|| api.apply(slice(&pods(4)[1..])));
    running.stop().expect("stop");
    let (ip, ip6) = (list(&node, "ip"), list(&node, "ip6"));
    let running = start(&api, &node, config());
    assert_eq!(running.progress().last_changes, 0);
    assert_eq!((list(&node, "ip"), list(&node, "ip6")), (ip, ip6));
}

#[test]
fn a_restart_repairs_what_others_changed_and_catches_up() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(full_service());
    api.apply(slice(&pods(3)));
    let running = start(&api, &node, config());
    let whole = lines(&list(&node, "ip"));
    running.stop().expect("stop");
    let damages = [
        "nft flush map ip orlop cluster-ips",
        "nft flush map ip orlop affinity-slots",
        "nft add element ip orlop hairpin '{ 10.9.9.9 . 10.9.9.9 }'",
        "nft flush chain ip orlop pick",
        "nft add rule ip orlop services counter",
        "nft add chain ip orlop stranger; nft add rule ip orlop stranger drop; nft add rule ip orlop services jump stranger",
        "nft flush map ip orlop classes",
        "nft flush set ip orlop pod-networks",
        "nft add set ip orlop strange '{ type ipv4_addr; }'",
        "nft delete table ip orlop",
        "nft flush chain ip orlop nat-output; nft delete chain ip orlop nat-output",
    ];
    for damage in damages {
        node.command(damage);
        let running = start(&api, &node, config());
        assert_eq!(lines(&list(&node, "ip")), whole, "after {damage}");
        running.stop().expect("stop");
    }
}

#[test]
fn a_table_edited_under_the_proxy_is_repaired_when_a_change_is_refused() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(service("10.96.0.10"));
    api.apply(slice(&pods(3)));
    let running = start(&api, &node, config());
    node.command("nft flush map ip orlop endpoints");
    running.after(|| api.apply(slice(&pods(2))));
    let text = list(&node, "ip");
    assert!(
        text.contains("10.244.0.1 . 8080") && text.contains("10.244.0.2 . 8080"),
        "{text}"
    );
    assert!(!text.contains("10.244.0.3 . 8080"));
    node.command("nft delete table ip orlop");
    running.after(|| api.apply(slice(&pods(3))));
    assert!(list(&node, "ip").contains("10.244.0.3 . 8080"));
}

#[test]
fn the_api_may_be_away_and_forget_versions() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(service("10.96.0.10"));
    api.apply(slice(&pods(1)));
    let running = start(&api, &node, config());
    api.set_away(true);
    api.apply(slice(&pods(2)));
    running.after(|| api.set_away(false));
    assert!(list(&node, "ip").contains("10.244.0.2 . 8080"));
    let lists = api.lists();
    api.delete("EndpointSlice", "default", "web-1");
    running.wait_for(|_| !list(&node, "ip").contains("10.244.0.2 . 8080"));
    assert_eq!(api.lists(), lists, "a watch that ended was resumed");
    api.set_away(true);
    api.delete("Service", "default", "web");
    api.compact();
    api.set_away(false);
    running.wait_for(|_| !list(&node, "ip").contains("10.96.0.10"));
    assert!(api.lists() > lists);
}

/// `count` Services with two endpoints each, as one proxy start.
pub fn many(api: &Api, count: u32) {
    for index in 0..count {
        let [_, high, middle, low] = index.to_be_bytes();
        let name = format!("web-{index}");
        let address = |host: u8| {
            format!(
                "10.{}.{middle}.{low}",
                u32::from(host) + 10 * u32::from(high)
            )
        };
        let cluster_ip = format!("10.{}.{middle}.{low}", 96 + u32::from(high));
        api.apply(merged(
            service(&cluster_ip),
            json!({ "metadata": { "name": name } }),
        ));
        let endpoint = |host: u8| json!({ "addresses": [address(host)], "nodeName": "elsewhere" });
        let endpoints = vec![endpoint(128), endpoint(129)];
        let slice = crate::slice_of(false, endpoints);
        let labels = json!({ "name": name, "labels": { "kubernetes.io/service-name": name } });
        api.apply(merged(slice, json!({ "metadata": labels })));
    }
}

#[test]
fn a_change_among_many_services_stays_small() {
    let node = Namespace::new();
    let api = Api::default();
    many(&api, 2_000);
    api.apply(service("10.96.200.10"));
    api.apply(slice(&pods(3)));
    let begun = Instant::now();
    let running = start(&api, &node, config());
    println!("start with 2,000 Services: {:?}", begun.elapsed());
    let progress = running.after(|| api.apply(slice(&pods(4))));
    println!("one endpoint: {:?}", progress.last_duration);
    assert_eq!(progress.last_changes, 2);
}

#[test]
fn a_dump_without_the_kernel_is_what_nft_lists() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(full_service());
    api.apply(slice(&pods(3)));
    let _running = start(&api, &node, config());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let dump = runtime.block_on(async {
        // Without a bridge setting: the kernel has br_netfilter, or the rule for those that lack it is there.
        let config = proxy::Config {
            bridge: None,
            ..config()
        };
        proxy::dump(&config, &api.client()).await.expect("dump")
    });
    let listed = list(&node, "ip") + &list(&node, "ip6");
    let skip = |line: &String| line.contains("past the node");
    let (dump, listed) = (lines(&dump), lines(&listed));
    let listed: BTreeSet<String> = listed.into_iter().filter(|line| !skip(line)).collect();
    let only_dumped: Vec<_> = dump.difference(&listed).collect();
    let only_listed: Vec<_> = listed.difference(&dump).collect();
    assert!(
        only_dumped.is_empty() && only_listed.is_empty(),
        "{only_dumped:#?} {only_listed:#?}"
    );
}

#[test]
fn a_service_that_the_kernel_refuses_stops_no_other() {
    let node = Namespace::new();
    let api = Api::default();
    let running = start(&api, &node, config());
    // A table in which a set holds one element only: a second one is refused by the kernel.
    running.stop().expect("stop");
    node.command(
        "nft delete set ip orlop restricted-services 2>/dev/null; nft flush chain ip orlop external-ip-frontend; \
         nft flush chain ip orlop local-external-ip-frontend; nft delete set ip orlop restricted-services; \
         nft add set ip orlop restricted-services '{ typeof ip daddr . meta l4proto . th dport; size 1; }'",
    );
    let running = start(&api, &node, config());
    let balanced = |name: &str, last: u8, ingress: Value| {
        merged(
            service(&format!("10.96.0.{last}")),
            json!({
                "metadata": { "name": name },
                "spec": { "type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"] },
                "status": { "loadBalancer": { "ingress": ingress } }
            }),
        )
    };
    let greedy = balanced(
        "greedy",
        1,
        json!([{ "ip": "203.0.113.1" }, { "ip": "203.0.113.2" }]),
    );
    api.apply(greedy);
    api.apply(balanced("modest", 2, json!([{ "ip": "203.0.113.3" }])));
    for last in 10..30 {
        api.apply(merged(
            service(&format!("10.96.0.{last}")),
            json!({ "metadata": { "name": format!("web-{last}") } }),
        ));
    }
    running.wait_for(|progress| progress.services == 21 && progress.failed_services == 1);
    let text = list(&node, "ip");
    assert!(
        text.contains("203.0.113.3") && text.contains("10.96.0.29"),
        "{text}"
    );
    assert!(!text.contains("203.0.113.1") && !text.contains("10.96.0.1 "));
    assert!(api.events() > 0, "its owner is told");
    running.wait_for(|progress| progress.failed_services == 1);
    api.delete("Service", "default", "modest");
    running.after(|| api.apply(balanced("greedy", 1, json!([{ "ip": "203.0.113.1" }]))));
    running.wait_for(|progress| progress.failed_services == 0);
    assert!(list(&node, "ip").contains("203.0.113.1"));
}

#[test]
fn after_thousands_of_random_changes_the_rules_are_as_if_made_anew() {
    const SERVICES: u32 = 20;
    let node = Namespace::new();
    let api = Api::default();
    many(&api, SERVICES);
    let config = config();
    let local = config.local_endpoints();
    let running = start(&api, &node, config);
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for _ in 0..5_000 {
        let name = format!("web-{}", draw(SERVICES.into()));
        let count = draw(20) as u8;
        let first = draw(200) as u8;
        let endpoints = (0..count).map(|offset| {
            let ready = draw(5) > 0;
            json!({ "addresses": [format!("10.244.7.{}", first + offset)], "nodeName": "node",
                    "conditions": { "ready": ready, "serving": true, "terminating": !ready } })
        });
        let labels = json!({ "name": name, "labels": { "kubernetes.io/service-name": name } });
        api.apply(merged(
            crate::slice_of(false, endpoints.collect()),
            json!({ "metadata": labels }),
        ));
        if draw(20) == 0 {
            let affinity = if draw(2) == 0 { "ClientIP" } else { "None" };
            let index = draw(SERVICES.into());
            let name = format!("web-{index}");
            let spec =
                json!({ "metadata": { "name": name }, "spec": { "sessionAffinity": affinity } });
            api.apply(merged(service(&format!("10.96.0.{index}")), spec));
        }
    }
    crate::random::settle(&api, &local, 1);
    running.stop().expect("stop");
    let running = start(&api, &node, crate::config());
    assert_eq!(running.progress().last_changes, 0);
    assert_eq!(running.progress().failed_services, 0);
}

#[test]
fn the_nodes_own_endpoints_are_told_while_they_get_traffic() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(service("10.96.0.10"));
    let endpoint = |last: u8, node: &str, ready: bool| {
        json!({ "addresses": [format!("10.244.0.{last}")], "nodeName": node,
                "conditions": { "ready": ready, "serving": true, "terminating": !ready } })
    };
    api.apply(crate::slice_of(
        false,
        vec![
            endpoint(1, "node", true),
            endpoint(2, "node", true),
            endpoint(3, "other", true),
        ],
    ));
    let config = config();
    let local = config.local_endpoints();
    let running = start(&api, &node, config);
    let told = || {
        let told = local.borrow();
        let served = told.iter().filter(|(_, left)| left.is_none());
        served.map(|(ip, _)| ip.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(told(), ["10.244.0.1", "10.244.0.2"]);
    running.after(|| {
        api.apply(crate::slice_of(
            false,
            vec![endpoint(1, "node", false), endpoint(2, "node", true)],
        ))
    });
    assert_eq!(told(), ["10.244.0.2"]);
    running.after(|| api.delete("Service", "default", "web"));
    assert!(told().is_empty());
    assert_eq!(local.borrow().len(), 2, "when each left is told as well");
}

#[test]
fn the_last_endpoint_here_is_not_waited_for_under_a_local_policy() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(crate::merged(
        service("10.96.0.10"),
        json!({ "spec": { "internalTrafficPolicy": "Local" } }),
    ));
    let here = |ready: bool| {
        json!({ "addresses": ["10.244.0.1"], "nodeName": "node",
                "conditions": { "ready": ready, "serving": true, "terminating": !ready } })
    };
    let there = json!({ "addresses": ["10.244.1.1"], "nodeName": "other" });
    api.apply(crate::slice_of(false, vec![here(true), there.clone()]));
    let config = config();
    let local = config.local_endpoints();
    let running = start(&api, &node, config);
    assert!(local.borrow().values().all(Option::is_none));
    assert_eq!(local.borrow().len(), 1);
    running.after(|| api.apply(crate::slice_of(false, vec![here(false), there])));
    assert!(
        local.borrow().values().all(Option::is_some),
        "the rules won't take the traffic from it"
    );
}

#[test]
fn what_kube_proxy_left_is_deleted_and_nothing_else() {
    let node = Namespace::new();
    node.command(
        "nft -f - <<'END'
         table ip kube-proxy {
             map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
             chain services { type nat hook prerouting priority -100; ip daddr . meta l4proto . th dport vmap @service-ips; }
         }
         table ip nat {
             chain KUBE-SEP-X { tcp dport 80 dnat to 10.0.0.1:8080; }
             chain KUBE-SVC-X { jump KUBE-SEP-X; }
             chain KUBE-SERVICES { ip daddr 10.96.0.1 counter jump KUBE-SVC-X; }
             chain KUBE-KUBELET-CANARY { }
             chain MINE { accept; }
             chain PREROUTING { type nat hook prerouting priority -100; counter jump KUBE-SERVICES; jump MINE; }
         }
         table ip6 kube-proxy { }
         table ip other { chain KUBE-SERVICES { }; }
END",
    );
    let api = Api::default();
    api.apply(service("10.96.0.10"));
    let _running = start(&api, &node, config());
    // A bridge, since not every kernel has dummy devices.
    node.command(
        "ip link add kube-ipvs0 type bridge && ip address add 10.96.0.10/32 dev kube-ipvs0",
    );
    node.run(|| proxy::cleanup_kube_proxy().expect("cleanup"));
    assert!(!node.command("ip address").contains("kube-ipvs0"));
    let text = node.command("nft list ruleset");
    assert!(
        !text.contains("kube-proxy {")
            && !text.contains("KUBE-SVC-X")
            && !text.contains("KUBE-SEP-X"),
        "{text}"
    );
    assert_eq!(
        text.matches("KUBE-SERVICES").count(),
        1,
        "the one in another's table: {text}"
    );
    assert!(text.contains("KUBE-KUBELET-CANARY") && text.contains("jump MINE"));
    assert!(list(&node, "ip").contains("10.96.0.10"));
    node.run(|| proxy::cleanup_kube_proxy().expect("again"));
}

#[test]
fn a_kube_proxy_that_runs_beside_is_no_hindrance() {
    let node = Namespace::new();
    node.command(
        "nft 'table ip kube-proxy { chain services { type nat hook prerouting priority -100; }; \
         chain mine { type nat hook output priority -100; }; }'",
    );
    let api = Api::default();
    api.apply(service("10.96.0.10"));
    api.apply(slice(&pods(2)));
    let running = start(&api, &node, config());
    running.after(|| api.apply(slice(&pods(3))));
    running.stop().expect("stop");
    node.run(|| proxy::cleanup().expect("cleanup"));
    assert_eq!(
        node.command("nft list tables").trim(),
        "table ip kube-proxy",
        "handed back"
    );
}

#[test]
fn changes_within_the_shortest_sync_period_are_joined() {
    let node = Namespace::new();
    let api = Api::default();
    api.apply(service("10.96.0.10"));
    api.apply(slice(&pods(1)));
    let config = proxy::Config {
        min_sync_period: std::time::Duration::from_secs(2),
        ..config()
    };
    let local = config.local_endpoints();
    let running = start(&api, &node, config);
    let before = running.progress().transactions;
    let begun = Instant::now();
    for count in 2..60 {
        api.apply(slice(&pods(count)));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    crate::random::settle(&api, &local, 1);
    let periods = begun.elapsed().as_secs() / 2 + 2;
    let transactions = running.progress().transactions - before;
    assert!(
        transactions <= periods,
        "{transactions} transactions in {periods} periods"
    );
    assert!(list(&node, "ip").contains("10.244.0.59 . 8080"));
}
