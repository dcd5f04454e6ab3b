//! What NetworkPolicy means, written down a second time and as plainly as can be, over the objects as they are.

use serde_json::Value;
use std::net::IpAddr;

/// Someone who sends or receives: a pod, or an address of no pod.
pub struct Party<'a> {
    pub address: IpAddr,
    pub pod: Option<&'a Value>,
}

pub struct World<'a> {
    pub namespaces: &'a [Value],
    pub policies: &'a [Value],
}

impl World<'_> {
    /// Whether a new connection is allowed.
    pub fn allows(&self, from: &Party<'_>, to: &Party<'_>, protocol: &str, port: u16) -> bool {
        from.address == to.address
            || (self.direction("Egress", from, to, to, protocol, port)
                && self.direction("Ingress", to, from, to, protocol, port))
    }

    fn direction(
        &self,
        kind: &str,
        own: &Party<'_>,
        peer: &Party<'_>,
        to: &Party<'_>,
        protocol: &str,
        port: u16,
    ) -> bool {
        let Some(pod) = own.pod else { return true };
        let applies = |policy: &&Value| {
            let types = policy["spec"]["policyTypes"].as_array().expect("types");
            policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
                && matches(&policy["spec"]["podSelector"], &pod["metadata"]["labels"])
                && types.iter().any(|found| found == kind)
        };
        let policies: Vec<&Value> = self.policies.iter().filter(applies).collect();
        let (rules, peers) = if kind == "Ingress" {
            ("ingress", "from")
        } else {
            ("egress", "to")
        };
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        policies.is_empty()
            || policies.iter().any(|policy| {
                list(&policy["spec"][rules]).iter().any(|rule| {
                    let (peers, ports) = (list(&rule[peers]), list(&rule["ports"]));
                    let peer_fits = peers.is_empty()
                        || peers.iter().any(|wanted| {
                            self.is_peer(wanted, peer, &policy["metadata"]["namespace"])
                        });
                    let port_fits = ports.is_empty()
                        || ports
                            .iter()
                            .any(|wanted| is_port(wanted, to, protocol, port));
                    peer_fits && port_fits
                })
            })
    }

    fn is_peer(&self, wanted: &Value, peer: &Party<'_>, policy_namespace: &Value) -> bool {
        if let Some(block) = wanted.get("ipBlock") {
            let contains = |network: &Value| {
                let network: ipnet::IpNet =
                    network.as_str().expect("network").parse().expect("network");
                network.contains(&peer.address)
            };
            let except = block["except"].as_array();
            return contains(&block["cidr"]) && !except.into_iter().flatten().any(contains);
        }
        let Some(pod) = peer.pod else { return false };
        let namespace = &pod["metadata"]["namespace"];
        let namespace_fits = match wanted.get("namespaceSelector") {
            None => namespace == policy_namespace,
            Some(selector) => {
                let found = self
                    .namespaces
                    .iter()
                    .find(|object| object["metadata"]["name"] == *namespace);
                found.is_some_and(|object| matches(selector, &object["metadata"]["labels"]))
            }
        };
        namespace_fits
            && wanted
                .get("podSelector")
                .is_none_or(|selector| matches(selector, &pod["metadata"]["labels"]))
    }
}

fn is_port(wanted: &Value, to: &Party<'_>, protocol: &str, port: u16) -> bool {
    if wanted["protocol"].as_str().unwrap_or("TCP") != protocol {
        return false;
    }
    match &wanted["port"] {
        Value::Null => true,
        Value::String(name) => {
            let ports = to.pod.map(|pod| &pod["spec"]["containers"][0]["ports"][0]);
            ports.is_some_and(|found| {
                found["name"] == *name && found["containerPort"] == port && protocol == "TCP"
            })
        }
        first => {
            let first = first.as_u64().expect("port");
            let last = wanted["endPort"].as_u64().unwrap_or(first);
            (first..=last).contains(&u64::from(port))
        }
    }
}

fn matches(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten();
    equal
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().all(|expression| {
            let label = labels.get(expression["key"].as_str().expect("key"));
            let is_one = || {
                let values = expression["values"].as_array().expect("values");
                label.is_some_and(|label| values.contains(label))
            };
            match expression["operator"].as_str().expect("operator") {
                "In" => is_one(),
                "NotIn" => !is_one(),
                "Exists" => label.is_some(),
                _ => label.is_none(),
            }
        })
}
