//! One change is a few elements, however many policies and pods there are.

use crate::api::Api;
use crate::lab::Namespace;
use crate::{namespace, policy, start};
use serde_json::{Value, json};

fn pod(index: usize, labels: Value) -> Value {
    let address = format!(
        "10.{}.{}.{}",
        100 + index / 60_000,
        index / 250 % 240,
        1 + index % 250
    );
    json!({
        "kind": "Pod",
        "metadata": { "namespace": format!("n{}", index % 50), "name": format!("p{index}"), "labels": labels },
        "spec": { "nodeName": if index.is_multiple_of(20) { "node" } else { "other" }, "containers": [] },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] }
    })
}

fn changes(policies: usize, pods: usize) -> (usize, usize, usize) {
    let node = Namespace::new();
    let api = Api::default();
    for index in 0..50 {
        api.apply(namespace(
            &format!("n{index}"),
            json!({ "team": format!("t{}", index % 5) }),
        ));
    }
    for index in 0..pods {
        api.apply(pod(index, json!({ "app": format!("a{}", index % 40) })));
    }
    for index in 0..policies {
        let peer = json!({
            "namespaceSelector": { "matchLabels": { "team": format!("t{}", index % 5) } },
            "podSelector": { "matchLabels": { "app": format!("a{}", index % 40) } }
        });
        let spec = json!({
            "podSelector": { "matchLabels": { "app": format!("a{}", index / 50 % 40) } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [peer], "ports": [{ "port": 80 }] }]
        });
        api.apply(policy(
            &format!("n{}", index % 50),
            &format!("p{index}"),
            spec,
        ));
    }
    let running = start(&api, &node);
    running.wait_for(|progress| progress.policies == policies && progress.transactions > 0);
    let begun = running.progress();
    // A pod of another node comes to be a peer, and goes.
    let coming = running.after(1, || api.apply(pod(1, json!({ "app": "a6" }))));
    let going = running.after(1, || api.delete("Pod", "n1", "p1"));
    assert_eq!(going.transactions, begun.transactions + 2);
    let spec =
        json!({ "podSelector": { "matchLabels": { "app": "a0" } }, "policyTypes": ["Egress"] });
    let policy = running.after(1, || api.apply(policy("n0", "one-more", spec)));
    running.stop().expect("stop");
    (coming.last_changes, going.last_changes, policy.last_changes)
}

#[test]
fn one_change_is_as_small_among_many_policies_as_among_few() {
    let few = changes(200, 400);
    let many = changes(2_000, 4_000);
    assert!(few.0 <= 8 && few.1 <= 8, "{few:?}");
    assert_eq!((few.0, few.1), (many.0, many.1));
    assert!(
        many.2 < 120,
        "{many:?}: by the pods that the policy isolates"
    );
}
