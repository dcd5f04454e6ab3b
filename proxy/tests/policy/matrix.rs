//! Every pod to every pod, port by port, over random policies: the kernel does what the plain model says.

use crate::api::Api;
use crate::lab::Lab;
use crate::plain::{Party, World};
use crate::{namespace, pod, policy, start};
use serde_json::{Value, json};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

const TCP_PORTS: [u16; 3] = [8080, 8081, 8090];
const PODS: usize = 5;
const ENOUGH: Duration = Duration::from_millis(500);

/// Small numbers from a seed that the failure names.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }

    fn one(&mut self, of: &[Value]) -> Value {
        of[self.below(of.len())].clone()
    }

    fn some(&mut self, most: usize, make: impl Fn(&mut Dice) -> Value) -> Vec<Value> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }

    fn pod_selector(&mut self) -> Value {
        self.one(&[
            json!({}),
            json!({ "matchLabels": { "app": "web" } }),
            json!({ "matchLabels": { "app": "db" } }),
            json!({ "matchExpressions": [{ "key": "tier", "operator": "Exists" }] }),
            json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["db"] }] }),
        ])
    }

    fn peer(&mut self) -> Value {
        let pods = self.pod_selector();
        let namespaces = self.one(&[
            json!({}),
            json!({ "matchLabels": { "team": "red" } }),
            json!({ "matchExpressions": [{ "key": "team", "operator": "In", "values": ["blue", "green"] }] }),
        ]);
        let block = self.one(&[
            json!({ "cidr": "10.244.0.0/24", "except": ["10.244.0.10/32", "10.244.0.12/31"] }),
            json!({ "cidr": "192.0.2.0/24" }),
            json!({ "cidr": "fd00:10:244::/64", "except": ["fd00:10:244::11/128"] }),
            json!({ "cidr": "0.0.0.0/0", "except": ["10.244.0.0/28"] }),
        ]);
        match self.below(4) {
            0 => json!({ "podSelector": pods }),
            1 => json!({ "namespaceSelector": namespaces }),
            2 => json!({ "namespaceSelector": namespaces, "podSelector": pods }),
            _ => json!({ "ipBlock": block }),
        }
    }

    fn port(&mut self) -> Value {
        self.one(&[
            json!({ "port": 8080 }),
            json!({ "protocol": "TCP", "port": 8081, "endPort": 8085 }),
            json!({ "protocol": "TCP", "port": "http" }),
            json!({ "protocol": "UDP", "port": 8080 }),
            json!({ "protocol": "UDP" }),
            json!({ "protocol": "SCTP", "port": 8080 }),
            json!({ "protocol": "TCP", "port": 8081, "endPort": 9000 }),
        ])
    }

    fn policy(&mut self, index: usize) -> Value {
        let rule = |peers: &'static str| move |dice: &mut Dice| json!({ peers: dice.some(2, Dice::peer), "ports": dice.some(2, Dice::port) });
        let types = self.one(&[
            json!(["Ingress"]),
            json!(["Egress"]),
            json!(["Ingress", "Egress"]),
        ]);
        let space = self.one(&[json!("a"), json!("b"), json!("c")]);
        let spec = json!({
            "podSelector": self.pod_selector(), "policyTypes": types,
            "ingress": self.some(2, rule("from")), "egress": self.some(2, rule("to")),
        });
        policy(space.as_str().expect("text"), &format!("p{index}"), spec)
    }
}

fn listen(lab: &Lab) {
    for pod in &lab.pods {
        for port in TCP_PORTS
            .into_iter()
            .filter(|port| *port != crate::lab::PORT)
        {
            let listener = pod
                .namespace
                .run(move || TcpListener::bind(("::", port)).expect("listen"));
            pod.namespace
                .spawn(move || listener.incoming().for_each(drop));
        }
    }
}

/// Whether it connects; twice, for a machine that is busy.
fn connects(to: SocketAddr) -> bool {
    (0..2).any(|_| {
        TcpStream::connect_timeout(&to, ENOUGH).is_ok_and(|mut stream| {
            let _ = stream.set_read_timeout(Some(ENOUGH));
            let _ = stream.read(&mut [0; 64]);
            true
        })
    })
}

/// A client's port is used once: what answered before is an established connection for a while.
static NEXT_CLIENT_PORT: AtomicU16 = AtomicU16::new(10_000);

fn answers(to: SocketAddr) -> bool {
    let any: IpAddr = if to.is_ipv6() {
        [0u16; 8].into()
    } else {
        [0, 0, 0, 0].into()
    };
    let socket =
        UdpSocket::bind((any, NEXT_CLIENT_PORT.fetch_add(1, Ordering::Relaxed))).expect("bind");
    socket.set_read_timeout(Some(ENOUGH)).expect("timeout");
    socket.connect(to).expect("connect");
    (0..2).any(|_| socket.send(b"?").is_ok() && socket.recv(&mut [0; 64]).is_ok())
}

/// What was tried: from, to, protocol, port, whether it went through.
type Probe = (IpAddr, IpAddr, &'static str, u16, bool);

/// All probes at once: what is dropped takes its time.
fn probe(lab: &Lab) -> Vec<Probe> {
    let targets: Vec<(IpAddr, IpAddr)> = lab
        .pods
        .iter()
        .map(|pod| (pod.address, pod.address6))
        .collect();
    let pods = lab
        .pods
        .iter()
        .map(|pod| (&pod.namespace, pod.address, pod.address6));
    let outside: (_, IpAddr, IpAddr) = (
        &lab.outside,
        [192, 0, 2, 100].into(),
        "2001:db8::100".parse().expect("address"),
    );
    let (done, results) = std::sync::mpsc::channel();
    for (namespace, address, address6) in pods.chain([outside]) {
        for (target, target6) in &targets {
            for (from, to) in [(address, *target), (address6, *target6)] {
                let tcp = TCP_PORTS.map(|port| ("TCP", port));
                for (protocol, port) in tcp.into_iter().chain([("UDP", 8080)]) {
                    let done = done.clone();
                    let at = SocketAddr::new(to, port);
                    namespace.spawn(move || {
                        let went = if protocol == "TCP" {
                            connects(at)
                        } else {
                            answers(at)
                        };
                        let _ = done.send((from, to, protocol, port, went));
                    });
                }
            }
        }
    }
    drop(done);
    results.iter().collect()
}

/// The lab's pods, in three namespaces.
fn pods(lab: &Lab) -> Vec<Value> {
    vec![
        pod(lab, 0, "a", json!({ "app": "web" }), 8080),
        pod(lab, 1, "a", json!({ "app": "db", "tier": "back" }), 8081),
        pod(lab, 2, "b", json!({ "app": "web", "tier": "front" }), 8090),
        pod(lab, 3, "b", json!({ "app": "db" }), 8080),
        pod(lab, 4, "c", json!({}), 8081),
    ]
}

fn compare(lab: &Lab, namespaces: &[Value], pods: &[Value], policies: &[Value], seed: u64) {
    let world = World {
        namespaces,
        policies,
    };
    let party = |address: IpAddr| {
        let text = address.to_string();
        let has = |pod: &&Value| {
            pod["status"]["podIPs"]
                .as_array()
                .is_some_and(|list| list.iter().any(|ip| ip["ip"] == text))
        };
        Party {
            address,
            pod: pods.iter().find(has),
        }
    };
    let wrong: Vec<_> = probe(lab)
        .into_iter()
        .filter(|(from, to, protocol, port, went)| {
            world.allows(&party(*from), &party(*to), protocol, *port) != *went
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "seed {seed}: {wrong:#?}\n{policies:#?}\n{}",
        lab.node.command("nft list table ip orlop-policy")
    );
}

#[test]
fn the_kernel_does_what_the_model_says_over_random_policies() {
    let cases: u64 =
        std::env::var("ORLOP_POLICY_CASES").map_or(4, |text| text.parse().expect("a number"));
    let first: u64 =
        std::env::var("ORLOP_POLICY_SEED").map_or(1, |text| text.parse().expect("a number"));
    let lab = Lab::new(PODS);
    listen(&lab);
    // As the proxy does.
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lab.node.command(&format!("echo 1 > /proc/sys/{setting}"));
    }
    let api = Api::default();
    let mut namespaces = vec![
        namespace("a", json!({ "team": "red" })),
        namespace("b", json!({ "team": "blue" })),
        namespace("c", json!({})),
    ];
    let mut pods = pods(&lab);
    for object in namespaces.iter().chain(&pods) {
        api.apply(object.clone());
    }
    let mut policies = vec![policy(
        "c",
        "first",
        json!({ "podSelector": {}, "policyTypes": ["Ingress"] }),
    )];
    api.apply(policies[0].clone());
    let running = start(&api, &lab.node);
    // Pods and namespaces are read when there is a policy to read them for.
    running.wait_for(|progress| progress.policies == 1);
    for seed in first..first + cases {
        let mut dice = Dice(seed);
        for _ in 0..3 {
            dice.below(2);
        }
        // Some stay, so that what follows is a difference.
        let (gone, kept) = policies.drain(..).partition(|_| dice.below(2) == 0);
        policies = kept;
        for (index, _) in (0..2 + dice.below(3)).enumerate() {
            policies.push(dice.policy(seed as usize * 10 + index));
        }
        let team = ["red", "blue", "green"][dice.below(3)];
        namespaces[2]["metadata"]["labels"] = json!({ "team": team });
        let app = ["web", "db"][dice.below(2)];
        pods[dice.below(PODS)]["metadata"]["labels"] = json!({ "app": app });
        let changes = gone.len() + policies.len() + namespaces.len() + pods.len();
        let gone: Vec<Value> = gone;
        let apply = || {
            for object in &gone {
                let text = |at: &str| {
                    object
                        .pointer(at)
                        .and_then(Value::as_str)
                        .expect("text")
                        .to_owned()
                };
                api.delete(
                    "NetworkPolicy",
                    &text("/metadata/namespace"),
                    &text("/metadata/name"),
                );
            }
            for object in policies.iter().chain(&namespaces).chain(&pods) {
                api.apply(object.clone());
            }
        };
        running.after(changes as u64, apply);
        compare(&lab, &namespaces, &pods, &policies, seed);
    }
    running.stop().expect("stop");
    // What stands, stands, and a start replaces it by the same.
    let again = start(&api, &lab.node);
    again.wait_for(|progress| progress.transactions > 0);
    compare(&lab, &namespaces, &pods, &policies, first + cases);
    again.stop().expect("stop");
}
