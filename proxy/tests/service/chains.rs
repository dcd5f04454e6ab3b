//! What stands in the kernel in iptables mode.

use crate::lab::Namespace;
use crate::packets::{WEB, addresses, at};
use crate::rules::many;
use crate::{Api, Kind, Running, merged, service, slice, slice_of, start};
use linux::namespace::{NamespaceKind, unshare};
use proxy::{Config, IptablesSettings, LocalEndpoints, Mode};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::sync::watch;

fn pods(count: u8) -> Vec<IpAddr> {
    (1..=count)
        .map(|last| IpAddr::from([10, 244, 0, last]))
        .collect()
}

/// A node's namespace whose `iptables` is of a kind.
fn node_of(kind: Kind) -> Namespace {
    let node = Namespace::new();
    kind.prepare(&node);
    node
}

/// An API with one Service of so many endpoints.
fn web(endpoints: u8) -> Api {
    let api = Api::default();
    api.apply(service(WEB));
    api.apply(slice(&pods(endpoints)));
    api
}

/// The rules of both families, but for what says when they were read.
fn saved(node: &Namespace) -> String {
    let text = node.command("iptables-save; ip6tables-save");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    // Counters of built-in chains.
    lines
        .map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n")
        .collect()
}

fn full_service() -> Value {
    merged(
        service(WEB),
        json!({ "spec": {
        "type": "LoadBalancer", "sessionAffinity": "ClientIP", "clusterIPs": [WEB, "fd96::10"],
        "externalIPs": ["203.0.113.9", "2001:db8:9::9"], "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999,
        "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8:1::/48"],
        "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }, { "name": "dns", "port": 53, "protocol": "UDP" }]
    }, "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }, { "ip": "2001:db8:9::7" }] } } }),
    )
}

/// Services of all sorts, with endpoints of both families.
fn fill(api: &Api, count: u8) {
    api.apply(full_service());
    api.apply(slice(&pods(count)));
    let six: Vec<IpAddr> = (1..=count)
        .map(|last| format!("fd00:10:244::{last:x}").parse().expect("address"))
        .collect();
    api.apply(merged(
        slice(&six),
        json!({ "metadata": { "name": "web-6" } }),
    ));
    api.apply(merged(
        service("10.96.0.11"),
        json!({ "metadata": { "name": "empty" }, "spec": { "clusterIPs": ["10.96.0.11", "fd96::11"] } }),
    ));
}

const KINDS: [Kind; 2] = [Kind::Iptables, Kind::LegacyIptables];

/// The rules' words are those of iptables-save: else a restart would give them all again.
#[test]
fn a_restart_changes_nothing_if_nothing_changed() {
    for kind in KINDS {
        let node = node_of(kind);
        let api = Api::default();
        fill(&api, 7);
        let running = start(&api, &node, kind.config());
        running.after(|| api.apply(slice(&pods(4))));
        running.stop().expect("stop");
        let before = saved(&node);
        let running = start(&api, &node, kind.config());
        assert_eq!(running.progress().last_changes, 0, "{kind:?}");
        assert_eq!(saved(&node), before);
    }
}

#[test]
fn a_restart_repairs_what_others_changed_and_leaves_what_is_theirs() {
    for kind in KINDS {
        let node = node_of(kind);
        node.command("iptables -t nat -N MINE; iptables -t nat -A MINE -j RETURN; iptables -t nat -A PREROUTING -j MINE");
        let api = Api::default();
        fill(&api, 3);
        let running = start(&api, &node, kind.config());
        let whole = saved(&node);
        assert!(whole.contains("-A PREROUTING -j MINE") && whole.contains("-A MINE -j RETURN"));
        running.stop().expect("stop");
        let damages = [
            "iptables -t nat -F KUBE-SERVICES",
            "iptables -t nat -A KUBE-MARK-MASQ -j RETURN",
            "iptables -t nat -F $(iptables-save -t nat | grep -o 'KUBE-SEP-[A-Z0-9]*' | head -1)",
            "iptables -F KUBE-FORWARD",
            "iptables -t nat -D PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES",
            "iptables -t nat -N KUBE-SVC-STALE; iptables -t nat -A KUBE-SVC-STALE -j RETURN",
            "iptables -t mangle -X KUBE-PROXY-CANARY",
            "ip6tables -t nat -F",
        ];
        for damage in damages {
            node.command(damage);
            let running = start(&api, &node, kind.config());
            assert_eq!(
                lines(&saved(&node)),
                lines(&whole),
                "{kind:?} after {damage}"
            );
            running.stop().expect("stop");
        }
    }
}

/// In an order that doesn't depend on which jump was put back last.
fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn one_endpoint_among_a_thousand_services_is_two_chains() {
    let node = node_of(Kind::Iptables);
    let api = Api::default();
    many(&api, 1_000);
    api.apply(service("10.96.9.10"));
    api.apply(slice(&pods(3)));
    let begun = Instant::now();
    let running = start(&api, &node, Kind::Iptables.config());
    println!(
        "1,001 Services: {} ms to start",
        begun.elapsed().as_millis()
    );
    let mut slowest = Duration::ZERO;
    for step in 0..10 {
        let count = if step % 2 == 0 { 4 } else { 3 };
        let progress = running.after(|| api.apply(slice(&pods(count))));
        // The draw among four is five rules and the new chain two; the draw among three is four, and a chain goes.
        assert_eq!(progress.last_changes, if count == 4 { 7 } else { 5 });
        slowest = slowest.max(progress.last_duration);
    }
    println!("one endpoint: {} ms at most", slowest.as_millis());
    let text = saved(&node);
    running.stop().expect("stop");
    let running = start(&api, &node, Kind::Iptables.config());
    assert_eq!(running.progress().last_changes, 0);
    assert_eq!(saved(&node), text);
}

#[test]
fn after_many_random_changes_the_rules_are_as_if_made_anew() {
    let node = node_of(Kind::Iptables);
    let api = Api::default();
    let config = Kind::Iptables.config();
    let local = config.local_endpoints();
    let running = start(&api, &node, config);
    let mut state = 7u32;
    let mut draw = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    for _ in 0..400 {
        let index = draw(8);
        let name = format!("web-{index}");
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        match draw(6) {
            0 => api.delete("Service", "default", &name),
            1 => api.delete("EndpointSlice", "default", &name),
            2 => {
                let spec = json!({ "metadata": { "name": name }, "spec": {
                    "type": "LoadBalancer", "externalTrafficPolicy": policy(draw(2) == 0),
                    "internalTrafficPolicy": policy(draw(2) == 0),
                    "sessionAffinity": if draw(3) == 0 { "ClientIP" } else { "None" },
                    "loadBalancerSourceRanges": if draw(2) == 0 { json!(["192.0.2.0/24"]) } else { json!([]) },
                    "ports": [{ "name": "http", "port": 80, "nodePort": 30000 + index }]
                }, "status": { "loadBalancer": { "ingress": [{ "ip": format!("203.0.113.{index}") }] } } });
                api.apply(merged(service(&format!("10.96.0.{index}")), spec));
            }
            _ => {
                let count = draw(5);
                let endpoints = (0..count).map(|_| {
                    let node = if draw(2) == 0 { "node" } else { "elsewhere" };
                    json!({ "addresses": [format!("10.244.0.{}", 1 + draw(9))], "nodeName": node })
                });
                let slice = slice_of(false, endpoints.collect());
                let labels =
                    json!({ "name": name, "labels": { "kubernetes.io/service-name": name } });
                api.apply(merged(slice, json!({ "metadata": labels })));
            }
        }
    }
    crate::random::settle(&api, &local, 1);
    let found = saved(&node);
    running.stop().expect("stop");
    let running = start(&api, &node, Kind::Iptables.config());
    assert_eq!(running.progress().last_changes, 0);
    running.stop().expect("stop");
    let fresh = node_of(Kind::Iptables);
    let _running = start(&api, &fresh, Kind::Iptables.config());
    assert_eq!(saved(&fresh), found);
}

fn checked_often(kind: Kind) -> Config {
    let own = IptablesSettings {
        sync_period: Duration::from_millis(100),
        ..IptablesSettings::default()
    };
    Config {
        mode: Mode::Iptables(own),
        ..kind.config()
    }
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    for kind in KINDS {
        let node = node_of(kind);
        let api = Api::default();
        fill(&api, 2);
        let _running = start(&api, &node, checked_often(kind));
        let whole = saved(&node);
        for table in ["mangle", "nat", "filter"] {
            // The proxy may come between the two.
            let flush = format!("iptables -t {table} -F; iptables -t {table} -X || true");
            node.command(&flush);
            wait_until(table, || lines(&saved(&node)) == lines(&whole));
        }
    }
}

#[test]
fn another_programs_rule_that_holds_a_chain_holds_up_no_change() {
    let node = node_of(Kind::Iptables);
    let api = web(1);
    let running = start(&api, &node, Kind::Iptables.config());
    let text = saved(&node);
    let (_, chain) = text
        .split_once("-j KUBE-SEP-")
        .expect("an endpoint's chain");
    let chain = chain.lines().next().expect("its name").to_owned();
    node.command(&format!("iptables -t nat -A OUTPUT -j KUBE-SEP-{chain}"));
    running.after(|| api.apply(slice(&pods(2)[1..])));
    let text = saved(&node);
    assert!(text.contains("--to-destination 10.244.0.2:8080"), "{text}");
    assert_eq!(running.progress().failed_services, 0);
    assert!(text.contains(&format!(":KUBE-SEP-{chain} ")) && !text.contains("10.244.0.1:8080"));
    node.command(&format!("iptables -t nat -D OUTPUT -j KUBE-SEP-{chain}"));
    running.stop().expect("stop");
    let _running = start(&api, &node, Kind::Iptables.config());
    assert!(!saved(&node).contains(&chain), "the next start deletes it");
}

/// A chain that hooks into the kernel can't be jumped to, so that one Service is refused.
#[test]
fn a_service_that_is_refused_keeps_no_other_out_and_is_tried_again() {
    let node = node_of(Kind::Iptables);
    let api = web(1);
    let running = start(&api, &node, Kind::Iptables.config());
    let text = saved(&node);
    let (_, chain) = text.split_once("-A KUBE-SVC-").expect("a chain");
    let chain = chain.split(' ').next().expect("its name").to_owned();
    running.after(|| api.delete("Service", "default", "web"));
    node.command(&format!(
        "nft 'add chain ip nat KUBE-SVC-{chain} {{ type nat hook prerouting priority 200; }}'"
    ));
    running.after(|| {
        api.apply(service(WEB));
        api.apply(merged(
            service("10.96.0.11"),
            json!({ "metadata": { "name": "other" } }),
        ));
        let labels =
            json!({ "name": "other", "labels": { "kubernetes.io/service-name": "other" } });
        api.apply(merged(slice(&pods(2)), json!({ "metadata": labels })));
    });
    wait_until("others are served", || {
        saved(&node).contains("default/other:http -> 10.244.0.2:8080")
    });
    wait_until("it is refused", || running.progress().failed_services == 1);
    wait_until("an Event", || api.events() > 0);
    node.command(&format!("nft delete chain ip nat KUBE-SVC-{chain}"));
    wait_until("it is served", || {
        saved(&node).contains("default/web:http -> 10.244.0.1:8080")
    });
    wait_until("none is refused", || {
        running.progress().failed_services == 0
    });
}

#[test]
fn what_a_kube_proxy_left_is_taken_over_while_connections_go_on() {
    let lab = Kind::Iptables.lab(2);
    let api = Api::default();
    api.apply(service(WEB));
    api.apply(slice(&addresses(&lab)));
    let running = start(&api, &lab.node, Kind::Iptables.config());
    running.stop().expect("stop");
    // The same words in another order, and a Service that is gone, as a kube-proxy would have left them.
    let text = lab.node.command("iptables-save");
    let shuffled = text.replace("-p tcp -m comment", "-m comment -p tcp");
    let stale = "*nat\n:KUBE-SVC-GONE - [0:0]\n:KUBE-SEP-GONE - [0:0]\n-A KUBE-SERVICES -d 10.96.9.9 -j KUBE-SVC-GONE\n\
                 -A KUBE-SVC-GONE -j KUBE-SEP-GONE\n-A KUBE-SEP-GONE -p tcp -j DNAT --to-destination 10.244.0.99:80\nCOMMIT\n";
    let file = tempfile::NamedTempFile::new().expect("file");
    for text in [&shuffled, stale] {
        std::fs::write(file.path(), text).expect("write");
        let noflush = if text == stale { "--noflush" } else { "" };
        lab.node.command(&format!(
            "iptables-restore {noflush} {}",
            file.path().display()
        ));
    }
    let asking = {
        let (sender, asked) = std::sync::mpsc::channel();
        let to = at(WEB, 80);
        lab.node.spawn(move || {
            for _ in 0..300 {
                let result = std::net::TcpStream::connect_timeout(&to, Duration::from_millis(700));
                let _ = sender.send(result.map(drop).map_err(|error| error.to_string()));
            }
        });
        asked
    };
    let _running = start(&api, &lab.node, Kind::Iptables.config());
    assert!(!lab.node.command("iptables-save").contains("GONE"));
    let results: Vec<_> = asking.iter().collect();
    assert_eq!(results.len(), 300);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

#[test]
fn the_rules_of_nftables_mode_end_when_those_of_iptables_stand() {
    let node = Namespace::new();
    let api = Api::default();
    fill(&api, 2);
    start(&api, &node, Kind::Nftables.config())
        .stop()
        .expect("stop");
    assert!(node.command("nft list tables").contains("table ip orlop"));
    let _running = start(&api, &node, Kind::Iptables.config());
    assert!(!node.command("nft list tables").contains("orlop"));
}

#[test]
fn cleanup_takes_all_of_it_and_nothing_else() {
    for kind in KINDS {
        let node = node_of(kind);
        node.command("iptables -t nat -N MINE; iptables -t nat -A PREROUTING -j MINE; iptables -t mangle -L >&2; ip6tables -t nat -L >&2");
        let before = saved(&node);
        let api = Api::default();
        fill(&api, 2);
        start(&api, &node, kind.config()).stop().expect("stop");
        assert!(saved(&node).contains("KUBE-SERVICES"));
        node.run(|| proxy::cleanup_iptables().expect("cleanup"));
        let after = saved(&node);
        let ours: Vec<&str> = after
            .lines()
            .filter(|line| line.contains("KUBE-"))
            .collect();
        // The kubelet has the same, and keeps it.
        assert!(
            ours.iter().all(|line| line.contains("KUBE-FIREWALL")),
            "{kind:?} {ours:?}"
        );
        assert!(lines(&before).is_subset(&lines(&after)), "{kind:?} {after}");
        node.run(|| proxy::cleanup_iptables().expect("again"));
        // On exit, too.
        let config = Config {
            cleanup_on_exit: true,
            ..kind.config()
        };
        start(&api, &node, config).stop().expect("stop");
        assert!(!saved(&node).contains("KUBE-SERVICES"));
    }
}

#[test]
fn the_mode_and_its_metrics_have_upstreams_names() {
    let node = node_of(Kind::Iptables);
    let api = Api::default();
    fill(&api, 2);
    let metrics = SocketAddr::from(([127, 0, 0, 1], 10249));
    let config = Config {
        metrics_address: Some(metrics),
        ..Kind::Iptables.config()
    };
    let running = start(&api, &node, config);
    let ask = |path| crate::serving::wait_for(&node, metrics, path, 200);
    assert!(ask("/proxyMode").ends_with("iptables"));
    let count = |chain: &str| {
        let text = node.command(&format!("iptables-save -t {chain}"));
        text.lines()
            .filter(|line| line.starts_with("-A KUBE-"))
            .count()
    };
    running.after(|| api.apply(slice(&pods(3))));
    let text = ask("/metrics");
    for name in [
        format!(
            "kubeproxy_sync_proxy_rules_iptables_total{{table=\"nat\",ip_family=\"IPv4\"}} {}",
            count("nat")
        ),
        format!(
            "kubeproxy_sync_proxy_rules_iptables_total{{table=\"filter\",ip_family=\"IPv4\"}} {}",
            count("filter")
        ),
        "kubeproxy_sync_proxy_rules_iptables_last{table=\"filter\",ip_family=\"IPv4\"} 0"
            .to_owned(),
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"} 0"
            .to_owned(),
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv6\"} 0"
            .to_owned(),
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1".to_owned(),
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1"
            .to_owned(),
    ] {
        assert!(text.contains(&name), "{name} in {text}");
    }
    assert!(!text.contains("nftables"));
}

/// This node's endpoints of IPv4 that get traffic.
fn served(local: &watch::Receiver<LocalEndpoints>) -> Vec<IpAddr> {
    let told = local.borrow();
    let served = told
        .iter()
        .filter(|(ip, left)| left.is_none() && ip.is_ipv4());
    served.map(|(ip, _)| *ip).collect()
}

#[test]
fn the_nodes_own_endpoints_are_told_while_they_get_traffic() {
    let node = node_of(Kind::Iptables);
    let api = web(2);
    let config = Kind::Iptables.config();
    let local = config.local_endpoints();
    let running = start(&api, &node, config);
    let told = || served(&local);
    assert_eq!(told(), pods(2));
    running.after(|| api.apply(slice(&pods(1))));
    assert_eq!(told(), pods(1));
    running.after(|| api.delete("Service", "default", "web"));
    assert!(told().is_empty());
}

#[test]
fn a_restore_that_fails_is_tried_again_and_no_change_is_lost() {
    let node = Namespace::new();
    node.run(|| unshare(&[NamespaceKind::Mount]).expect("a mount namespace"));
    node.command("mount --make-rprivate /");
    let api = Api::default();
    fill(&api, 2);
    let health = SocketAddr::from(([127, 0, 0, 1], 10249));
    let config = Config {
        metrics_address: Some(health),
        ..Kind::Iptables.config()
    };
    let local = config.local_endpoints();
    let running = start(&api, &node, config);
    let transactions = running.progress().transactions;
    let multi = "/usr/sbin/xtables-nft-multi";
    node.command(&format!("mount --bind /bin/false {multi}"));
    api.apply(slice(&pods(3)));
    wait_until("failures are counted", || {
        let text = crate::serving::wait_for(&node, health, "/metrics", 200);
        let failures = "iptables_partial_restore_failures_total{ip_family=\"IPv4\"} 1";
        text.contains(failures) && text.contains("endpoint_changes_pending 1")
    });
    assert_eq!(running.progress().transactions, transactions);
    assert_eq!(served(&local), pods(2), "the third isn't served yet");
    node.command(&format!("umount {multi}"));
    running.wait_for(|progress| progress.transactions > transactions);
    assert!(saved(&node).contains("--to-destination 10.244.0.3:8080"));
    assert_eq!(served(&local), pods(3));
}

#[test]
fn a_host_without_iptables_is_told_what_to_do() {
    let node = Namespace::new();
    node.run(|| unshare(&[NamespaceKind::Mount]).expect("a mount namespace"));
    node.command("mount --make-rprivate /; mount -t tmpfs none /usr/sbin");
    let api = Api::default();
    let running = crate::start_unsynced(&api, &node, Kind::Iptables.config());
    let error = running.ended().expect_err("no program").to_string();
    assert!(
        error.contains("run iptables-restore: ")
            && error.contains("install iptables, or use mode nftables"),
        "{error}"
    );
}

/// Set in the process that is to be killed, which makes its rules where it is.
const IN_THIS_NAMESPACE: &str = "ORLOP_TEST_IN_THIS_NAMESPACE";

/// A proxy that changes its rules as fast as it can until it is killed, or for some seconds: a process of its own for the
/// next test.
#[test]
#[ignore = "is run by the next one"]
fn proxy_to_be_killed() {
    let api = Api::default();
    fill(&api, 5);
    let shutdown = tokio_util::sync::CancellationToken::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let (changes, end) = (api.clone(), shutdown.clone());
    std::thread::spawn(move || {
        for step in 0..5_000u32 {
            fill(&changes, 1 + (step % 7) as u8);
            std::thread::sleep(Duration::from_millis(2));
        }
        end.cancel();
    });
    let node = Namespace::new();
    let told = std::env::var_os(IN_THIS_NAMESPACE).is_some();
    let run = move || {
        let run = proxy::run(Kind::Iptables.config(), api.client(), shutdown);
        runtime.block_on(run).expect("it ends");
    };
    if told { run() } else { node.run(run) }
}

#[test]
fn a_proxy_that_is_killed_leaves_what_the_next_one_makes_right() {
    let node = node_of(Kind::Iptables);
    let api = Api::default();
    fill(&api, 3);
    let fresh = node_of(Kind::Iptables);
    let _fresh = start(&api, &fresh, Kind::Iptables.config());
    let wanted = lines(&saved(&fresh));
    for step in 0..8u64 {
        let mut killed = node.run(|| {
            let program = std::env::current_exe().expect("this program");
            let test = "chains::proxy_to_be_killed";
            std::process::Command::new(program)
                .args(["--exact", test, "--ignored"])
                .env(IN_THIS_NAMESPACE, "1")
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("a process")
        });
        std::thread::sleep(Duration::from_millis(60 + 37 * step));
        killed.kill().expect("kill");
        killed.wait().expect("its end");
        let running: Running = start(&api, &node, Kind::Iptables.config());
        assert_eq!(lines(&saved(&node)), wanted);
        running.stop().expect("stop");
    }
}
