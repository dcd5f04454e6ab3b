//! Figures, not checks: run by `cargo xtask bench policy`.

use crate::api::Api;
use crate::lab::{Lab, PORT};
use crate::{namespace, pod, policy, start};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Isolated pods of this node, besides the two that are measured.
const LOCAL: usize = 250;
const CONNECTIONS: usize = 1_000;
const CHANGES: u16 = 21;

fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// A new connection and its answer, in microseconds.
fn connection(lab: &Lab) -> f64 {
    let to = SocketAddr::new(lab.pods[1].address, PORT);
    let times = (0..CONNECTIONS).map(|_| {
        let begun = Instant::now();
        lab.pods[0].namespace.ask(to).expect("an answer");
        begun.elapsed()
    });
    middle(times.collect())
}

fn other(index: usize) -> Value {
    let address = format!("10.200.{}.{}", index / 250, 1 + index % 250);
    json!({
        "kind": "Pod",
        "metadata": { "namespace": format!("n{}", index % 50), "name": format!("p{index}"), "labels": { "app": format!("a{index}") } },
        "spec": { "nodeName": "node", "containers": [] },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] }
    })
}

fn guard(port: u16) -> Value {
    let from = json!([{ "podSelector": { "matchLabels": { "app": "web" } } }]);
    let rule = json!({ "from": from, "ports": [{ "port": PORT }, { "port": port }] });
    policy(
        "a",
        "guard",
        json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Ingress"], "ingress": [rule] }),
    )
}

#[test]
#[ignore = "a benchmark"]
fn measure() {
    let lab = Lab::new(2);
    let plain = connection(&lab);
    println!("new connection, no policies: {plain:.1} us");
    for policies in [10, 1_000, 10_000] {
        let api = Api::default();
        api.apply(namespace("a", json!({})));
        api.apply(pod(&lab, 0, "a", json!({ "app": "web" }), PORT));
        api.apply(pod(&lab, 1, "a", json!({ "app": "db" }), PORT));
        (0..50).for_each(|index| api.apply(namespace(&format!("n{index}"), json!({}))));
        (0..LOCAL).for_each(|index| api.apply(other(index)));
        api.apply(guard(81));
        for index in 1..policies {
            let one = format!("a{}", index % LOCAL);
            let rule = json!({ "from": [{ "podSelector": { "matchLabels": { "app": one } } }], "ports": [{ "port": 80 }] });
            let spec = json!({ "podSelector": { "matchLabels": { "app": one } }, "policyTypes": ["Ingress"], "ingress": [rule] });
            api.apply(policy(
                &format!("n{}", index % LOCAL % 50),
                &format!("p{index}"),
                spec,
            ));
        }
        let begun = Instant::now();
        let running = start(&api, &lab.node);
        running.wait_for(|progress| progress.policies == policies);
        let started = begun.elapsed().as_secs_f64() * 1e3;
        let with = connection(&lab);
        let changes = (0..CHANGES).map(|index| {
            let begun = Instant::now();
            running.after(1, || api.apply(guard(100 + index)));
            begun.elapsed()
        });
        let change = middle(changes.collect());
        let moves = (0..CHANGES).map(|index| {
            let label = if index.is_multiple_of(2) {
                "other"
            } else {
                "web"
            };
            let begun = Instant::now();
            running.after(1, || {
                api.apply(pod(&lab, 0, "a", json!({ "app": label }), PORT))
            });
            begun.elapsed()
        });
        let label = middle(moves.collect());
        println!(
            "{policies} policies: started in {started:.0} ms; new connection {with:.1} us ({:+.1}); \
             API write to kernel: a policy {change:.0} us, a pod's label {label:.0} us",
            with - plain
        );
        running.stop().expect("stop");
    }
}
