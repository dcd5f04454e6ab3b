//! Random Services: where packets go is foretold from the API objects alone, by rules written down here a second time and
//! in another way, and then tried.

use crate::lab::{Lab, NODE, Namespace, OUTSIDE};
use crate::{Api, Kind, slice_of, start};
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, TestRunner};
use proxy::LocalEndpoints;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const PODS: usize = 4;

#[derive(Debug, Clone)]
struct RandomEndpoint {
    pod: usize,
    here: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
}

#[derive(Debug, Clone)]
struct RandomService {
    internal_local: bool,
    external_local: bool,
    affinity: bool,
    /// None, the client outside, or somebody else.
    ranges: Option<bool>,
    endpoints: Vec<RandomEndpoint>,
}

fn endpoint() -> impl Strategy<Value = RandomEndpoint> {
    (0..PODS, any::<bool>(), 0..4u8).prop_map(|(pod, here, state)| {
        // Ready most often; else terminating and serving, or terminating and not, or not ready yet.
        let (ready, serving, terminating) = match state {
            0 | 1 => (true, true, false),
            2 => (false, true, true),
            _ => (false, false, pod % 2 == 0),
        };
        RandomEndpoint {
            pod,
            here,
            ready,
            serving,
            terminating,
        }
    })
}

fn service() -> impl Strategy<Value = RandomService> {
    let flags = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        proptest::option::weighted(0.3, any::<bool>()),
    );
    (flags, proptest::collection::vec(endpoint(), 0..4)).prop_map(|(flags, mut endpoints)| {
        endpoints.sort_by_key(|endpoint| endpoint.pod);
        endpoints.dedup_by_key(|endpoint| endpoint.pod);
        let (internal_local, external_local, affinity, ranges) = flags;
        RandomService {
            internal_local,
            external_local,
            affinity,
            ranges,
            endpoints,
        }
    })
}

impl RandomService {
    fn objects(&self, index: usize, lab: &Lab) -> [Value; 2] {
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let ranges: Vec<String> = match self.ranges {
            None => Vec::new(),
            Some(true) => vec![format!("{}/32", IpAddr::from(OUTSIDE))],
            Some(false) => vec!["198.51.100.0/24".into()],
        };
        let name = format!("random-{index}");
        let service = json!({
            "kind": "Service", "metadata": { "namespace": "default", "name": name },
            "spec": {
                "type": "LoadBalancer", "clusterIP": cluster_ip(index),
                "internalTrafficPolicy": policy(self.internal_local),
                "externalTrafficPolicy": policy(self.external_local),
                "sessionAffinity": if self.affinity { "ClientIP" } else { "None" },
                "loadBalancerSourceRanges": ranges,
                "ports": [{ "name": "http", "port": 80, "nodePort": 30_000 + index }]
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": balancer_ip(index) }] } }
        });
        let endpoint = |endpoint: &RandomEndpoint| {
            json!({
                "addresses": [lab.pods[endpoint.pod].address.to_string()],
                "nodeName": if endpoint.here { "node" } else { "elsewhere" },
                "conditions": {
                    "ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating
                }
            })
        };
        let mut slice = slice_of(false, self.endpoints.iter().map(endpoint).collect());
        slice["metadata"]["name"] = name.clone().into();
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = name.into();
        [service, slice]
    }

    /// Whom a packet may reach; `Err` says how it fails.
    fn foretold(&self, kind: Kind, from: From, to: To) -> Result<BTreeSet<String>, &'static str> {
        let names = |wanted: &dyn Fn(&RandomEndpoint) -> bool| -> BTreeSet<String> {
            self.endpoints
                .iter()
                .filter(|e| wanted(e))
                .map(|e| format!("pod{}", e.pod))
                .collect()
        };
        let ready_or_serving = |of: &dyn Fn(&RandomEndpoint) -> bool| {
            let ready = names(&|e| of(e) && e.ready);
            if ready.is_empty() {
                names(&|e| of(e) && e.serving && e.terminating)
            } else {
                ready
            }
        };
        let all = ready_or_serving(&|_| true);
        let local = ready_or_serving(&|e| e.here);
        if all.is_empty() {
            // kube-proxy's chains in iptables don't look at what the node itself sends out.
            let leaves = (from, to) == (From::Node, To::Balancer);
            if leaves && kind != Kind::Nftables {
                return Err("timed out");
            }
            return Err("connection refused");
        }
        let allowed = match (to, self.ranges) {
            (To::Balancer, Some(outside)) => outside && from == From::Outside,
            _ => true,
        };
        let stays = match to {
            To::Cluster => self.internal_local,
            To::Node | To::Balancer => self.external_local && from == From::Outside,
        };
        let reached = if stays { local } else { all };
        if reached.is_empty() || !allowed {
            Err("timed out")
        } else {
            Ok(reached)
        }
    }
}

fn cluster_ip(index: usize) -> String {
    format!("10.96.1.{}", index + 1)
}

fn balancer_ip(index: usize) -> String {
    format!("203.0.113.{}", index + 1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Node,
    Pod(usize),
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Cluster,
    Node,
    Balancer,
}

impl To {
    fn address(self, index: usize) -> SocketAddr {
        let parsed = |text: String| SocketAddr::new(text.parse().expect("address"), 80);
        match self {
            To::Cluster => parsed(cluster_ip(index)),
            To::Balancer => parsed(balancer_ip(index)),
            To::Node => SocketAddr::from((NODE, 30_000 + index as u16)),
        }
    }
}

fn check(kind: Kind, lab: &Lab, services: &[RandomService]) {
    for (index, service) in services.iter().enumerate() {
        for from in [From::Node, From::Pod(0), From::Pod(3), From::Outside] {
            // A pod can't run elsewhere and send from here.
            let elsewhere =
                |endpoint: &RandomEndpoint| !endpoint.here && from == From::Pod(endpoint.pod);
            if service.endpoints.iter().any(elsewhere) {
                continue;
            }
            let namespace: &Namespace = match from {
                From::Node => &lab.node,
                From::Pod(pod) => &lab.pods[pod].namespace,
                From::Outside => &lab.outside,
            };
            for to in [To::Cluster, To::Node, To::Balancer] {
                let foretold = service.foretold(kind, from, to);
                for _ in 0..if foretold.is_ok() { 4 } else { 1 } {
                    let seen = namespace.ask_briefly(to.address(index));
                    let right = match (&foretold, &seen) {
                        (Ok(servers), Ok(answer)) => servers.contains(&answer.server),
                        (Err(failure), Err(seen)) => failure == seen,
                        _ => false,
                    };
                    assert!(
                        right,
                        "{from:?} to {to:?} of {service:?}: {seen:?}, not {foretold:?}"
                    );
                }
                if let (Ok(_), To::Node, From::Outside, true) =
                    (&foretold, to, from, service.external_local)
                {
                    let seen = namespace.ask(to.address(index)).expect("an answer").seen;
                    assert_eq!(seen, IpAddr::from(OUTSIDE), "the client's address is kept");
                }
            }
        }
    }
}

#[test]
fn random_services_take_packets_where_the_api_says() {
    random_services(Kind::Nftables);
}

#[test]
fn random_services_take_packets_where_the_api_says_by_iptables() {
    random_services(Kind::Iptables);
}

fn random_services(kind: Kind) {
    let lab = kind.lab(PODS);
    // The kernel spares ICMP, by which iptables' chains refuse.
    lab.node
        .command("echo 0 > /proc/sys/net/ipv4/icmp_ratelimit");
    let api = Api::default();
    let config = kind.config();
    let local = config.local_endpoints();
    let _running = start(&api, &lab.node, config);
    let turn = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(RunnerConfig {
        cases: 8,
        max_shrink_iters: 20,
        ..RunnerConfig::default()
    });
    let cases = proptest::collection::vec(service(), 3);
    // Case after case on the same proxy: what one leaves behind the next would meet.
    runner
        .run(&cases, |services| {
            turn.set(turn.get() + 1);
            for (index, service) in services.iter().enumerate() {
                service
                    .objects(index, &lab)
                    .into_iter()
                    .for_each(|object| api.apply(object));
            }
            settle(&api, &local, turn.get());
            check(kind, &lab, &services);
            Ok(())
        })
        .expect("packets go where they should");
}

/// Waits until all that was applied is in the rules: each watch tells its changes in order, and the last of both
/// together make an endpoint that wasn't there before.
pub fn settle(api: &Api, local: &watch::Receiver<LocalEndpoints>, turn: u8) {
    let address = IpAddr::from([10, 245, 0, turn]);
    let name = format!("marker-{turn}");
    api.apply(json!({
        "kind": "Service", "metadata": { "namespace": "default", "name": name },
        "spec": { "clusterIP": format!("10.96.99.{turn}"), "ports": [{ "name": "http", "port": 80 }] }
    }));
    let mut slice = slice_of(
        false,
        vec![json!({ "addresses": [address.to_string()], "nodeName": "node" })],
    );
    slice["metadata"]["name"] = name.clone().into();
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = name.into();
    api.apply(slice);
    let deadline = Instant::now() + Duration::from_secs(30);
    while local.borrow().get(&address) != Some(&None) {
        assert!(Instant::now() < deadline, "the rules don't follow");
        std::thread::sleep(Duration::from_millis(1));
    }
}
