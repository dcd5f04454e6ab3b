//! What is allowed to and from a pod, and by which policy: for people.

use super::facts::{Direction, Name, Namespaces, PodFacts, PolicyFacts, RuleFacts};
use super::object::{NetworkPolicy, Pod};
use serde::Serialize;

/// One direction of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// Some policy isolates the pod this way: only what is listed is allowed.
    pub isolated: bool,
    /// Policies and what each allows.
    pub policies: Vec<Allowed>,
}

/// What a policy allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// The policy's name.
    pub policy: String,
    /// What it allows; nothing if empty.
    pub allows: Vec<String>,
}

/// Explains what holds for a pod; `policies` are those of its namespace. `None` if no policy can hold for it: it has the
/// node's address, or ended.
///
/// # Errors
/// What in a policy can't be understood, with the policy's name.
pub fn explain(pod: &Pod, policies: &[NetworkPolicy]) -> Result<Option<Vec<Explanation>>, String> {
    let node = &pod.spec.node_name;
    let mut facts = Vec::new();
    for policy in policies
        .iter()
        .filter(|policy| policy.metadata.namespace == pod.metadata.namespace)
    {
        let name = Name::new(&policy.metadata.namespace, &policy.metadata.name);
        let parsed = PolicyFacts::of(policy).map_err(|error| format!("{name}: {error}"))?;
        if parsed.pods.matches(&pod.metadata.labels) {
            facts.push((name.name, parsed));
        }
    }
    if pod.spec.host_network || PodFacts::of(pod, node).is_none() && !pod.status.pod_ip.is_empty() {
        return Ok(None);
    }
    Ok(Some(
        Direction::BOTH
            .map(|direction| explain_direction(direction, &facts))
            .into(),
    ))
}

fn explain_direction(direction: Direction, facts: &[(String, PolicyFacts)]) -> Explanation {
    let policies: Vec<Allowed> = facts
        .iter()
        .filter_map(|(policy, facts)| {
            let rules = facts.rules(direction)?.iter();
            Some(Allowed {
                policy: policy.clone(),
                allows: rules.map(|rule| describe(rule, direction)).collect(),
            })
        })
        .collect();
    Explanation {
        direction: direction.name(),
        isolated: !policies.is_empty(),
        policies,
    }
}

/// `from pods app=web of namespaces team=a or 10.0.0.0/8 except 10.1.0.0/16, on TCP 80, UDP dns`.
fn describe(rule: &RuleFacts, direction: Direction) -> String {
    let word = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let peers = match &rule.peers {
        None => "everybody".to_owned(),
        Some(peers) => {
            let selectors = peers.selectors.iter().map(|selector| {
                let pods = match selector.pods.to_string() {
                    text if text.is_empty() => "all pods".to_owned(),
                    text => format!("pods {text}"),
                };
                match &selector.namespaces {
                    Namespaces::Only(name) => format!("{pods} of namespace {name}"),
                    Namespaces::Labelled(labels) => match labels.to_string() {
                        text if text.is_empty() => format!("{pods} of all namespaces"),
                        text => format!("{pods} of namespaces {text}"),
                    },
                }
            });
            let blocks = peers.block_texts.iter().cloned();
            selectors.chain(blocks).collect::<Vec<_>>().join(" or ")
        }
    };
    let ports = match &rule.ports {
        None => "on all ports".to_owned(),
        Some(ports) => {
            let numbers = ports
                .numbers
                .iter()
                .map(|(protocol, first, last)| match (first, last) {
                    (0, &u16::MAX) => format!("{protocol}"),
                    (first, last) if first == last => format!("{protocol} {first}"),
                    (first, last) => format!("{protocol} {first}-{last}"),
                });
            let named = ports
                .named
                .iter()
                .map(|port| format!("{} {}", port.protocol, port.name));
            format!("on {}", numbers.chain(named).collect::<Vec<_>>().join(", "))
        }
    };
    format!("{word} {peers}, {ports}")
}
