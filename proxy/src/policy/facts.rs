//! What the objects say, parsed: a policy's rules, a pod's addresses and named ports.

use super::object::{IpBlock, NetworkPolicy, Peer, Pod, PolicyPort};
use super::ranges::Ranges;
use api::selector::{LabelSelector, Labels};
use ipnet::IpNet;
use serde_json::Value;
use std::fmt;
use std::net::IpAddr;

/// Namespace and name of a policy or a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl Name {
    /// `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Name {
        Name {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which way traffic goes, as the isolated pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// Its name in chains and texts.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// A protocol with ports, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// TCP if nothing is said.
    fn parse(text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("" | "TCP") => Some(Protocol(6)),
            Some("UDP") => Some(Protocol(17)),
            Some("SCTP") => Some(Protocol(132)),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            6 => "TCP",
            17 => "UDP",
            _ => "SCTP",
        })
    }
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFacts {
    /// Which pods of its namespace it isolates.
    pub pods: LabelSelector,
    /// What may come in; `None` if it doesn't isolate that way.
    pub ingress: Option<Vec<RuleFacts>>,
    /// What may go out; `None` if it doesn't isolate that way.
    pub egress: Option<Vec<RuleFacts>>,
}

impl PolicyFacts {
    /// The rules of a direction; `None` if the policy doesn't isolate that way.
    pub fn rules(&self, direction: Direction) -> Option<&[RuleFacts]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Something that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleFacts {
    /// With whom; with everybody if `None`.
    pub peers: Option<Peers>,
    /// On which ports of the receiver; on all, of all protocols, if `None`.
    pub ports: Option<Ports>,
}

/// Peers of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peers {
    /// Pods.
    pub selectors: Vec<PeerSelector>,
    /// Addresses.
    pub blocks: Ranges,
    /// The same, as written.
    pub block_texts: Vec<String>,
}

/// Pods by their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSelector {
    /// Tells equal selectors.
    pub key: String,
    /// Their namespaces.
    pub namespaces: Namespaces,
    /// Their labels.
    pub pods: LabelSelector,
}

/// Namespaces of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// One.
    Only(String),
    /// Those with such labels.
    Labelled(LabelSelector),
}

impl PeerSelector {
    /// Whether a pod is meant. `labels` are its namespace's.
    pub fn matches(&self, pod: &PodFacts, labels: Option<&Labels>) -> bool {
        let namespace = match &self.namespaces {
            Namespaces::Only(name) => *name == pod.namespace,
            Namespaces::Labelled(selector) => labels.is_some_and(|labels| selector.matches(labels)),
        };
        namespace && self.pods.matches(&pod.labels)
    }
}

/// Ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    /// First and last port of ranges, disjoint.
    pub numbers: Vec<(Protocol, u16, u16)>,
    /// Names of the receiver's container ports.
    pub named: Vec<NamedPort>,
}

/// A port by the name that a container gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
}

/// A pod that policies can isolate or allow: it has addresses of its own, and runs or will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// It is on this node.
    pub local: bool,
    /// Its containers' named ports.
    pub ports: Vec<(NamedPort, u16)>,
}

impl PodFacts {
    /// `None` for a pod that has no address of its own: not yet, not any more, or because it has the node's.
    pub fn of(pod: &Pod, node: &str) -> Option<PodFacts> {
        let ended = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
        if pod.spec.host_network || ended {
            return None;
        }
        let listed = pod.status.pod_ips.iter().map(|address| &address.ip);
        let mut addresses: Vec<IpAddr> = listed
            .chain([&pod.status.pod_ip])
            .filter_map(|text| text.parse().ok())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return None;
        }
        let sidecars = pod.spec.init_containers.iter();
        let sidecars =
            sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports = pod.spec.containers.iter().chain(sidecars);
        let ports = ports.flat_map(|container| &container.ports);
        let named = ports.filter(|port| !port.name.is_empty() && port.container_port != 0);
        let named = named.filter_map(|port| {
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            let name = port.name.clone();
            Some((NamedPort { name, protocol }, port.container_port))
        });
        let mut ports: Vec<_> = named.collect();
        ports.sort();
        ports.dedup();
        Some(PodFacts {
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            addresses,
            local: pod.spec.node_name == node,
            ports,
        })
    }
}

impl PolicyFacts {
    /// Parses a policy.
    ///
    /// # Errors
    /// What in it can't be understood; the API server doesn't let such a policy in.
    pub fn of(policy: &NetworkPolicy) -> Result<PolicyFacts, String> {
        let namespace = &policy.metadata.namespace;
        let spec = &policy.spec;
        let isolates = |kind: &str, default: bool| {
            if spec.policy_types.is_empty() {
                default
            } else {
                spec.policy_types.iter().any(|found| found == kind)
            }
        };
        let ingress = spec
            .ingress
            .iter()
            .map(|rule| RuleFacts::of(namespace, &rule.from, &rule.ports));
        let egress = spec
            .egress
            .iter()
            .map(|rule| RuleFacts::of(namespace, &rule.to, &rule.ports));
        let ingress: Vec<_> = ingress.collect::<Result<_, _>>()?;
        let egress: Vec<_> = egress.collect::<Result<_, _>>()?;
        Ok(PolicyFacts {
            pods: selector(&spec.pod_selector)?,
            egress: isolates("Egress", !egress.is_empty()).then_some(egress),
            ingress: isolates("Ingress", true).then_some(ingress),
        })
    }

    /// What stands for a policy that can't be understood: it isolates the namespace both ways and allows nothing.
    pub fn closed() -> PolicyFacts {
        PolicyFacts {
            pods: LabelSelector::default(),
            ingress: Some(Vec::new()),
            egress: Some(Vec::new()),
        }
    }
}

fn selector(object: &Value) -> Result<LabelSelector, String> {
    if object.is_null() {
        return Ok(LabelSelector::default());
    }
    LabelSelector::from_object(object).map_err(|error| error.to_string())
}

impl RuleFacts {
    fn of(namespace: &str, peers: &[Peer], ports: &[PolicyPort]) -> Result<RuleFacts, String> {
        Ok(RuleFacts {
            peers: if peers.is_empty() {
                None
            } else {
                Some(Peers::of(namespace, peers)?)
            },
            ports: if ports.is_empty() {
                None
            } else {
                Some(Ports::of(ports)?)
            },
        })
    }
}

impl Peers {
    fn of(namespace: &str, peers: &[Peer]) -> Result<Peers, String> {
        let mut all = Peers::default();
        for peer in peers {
            if let Some(block) = &peer.ip_block {
                all.add_block(block)?;
            } else if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
                let pods = peer.pod_selector.as_ref().unwrap_or(&Value::Null);
                let (namespaces, text) = match &peer.namespace_selector {
                    Some(labels) => (Namespaces::Labelled(selector(labels)?), labels.to_string()),
                    None => (Namespaces::Only(namespace.to_owned()), namespace.to_owned()),
                };
                let key = format!("{text} {pods}");
                if all.selectors.iter().all(|known| known.key != key) {
                    let pods = selector(pods)?;
                    all.selectors.push(PeerSelector {
                        key,
                        namespaces,
                        pods,
                    });
                }
            }
        }
        Ok(all)
    }

    fn add_block(&mut self, block: &IpBlock) -> Result<(), String> {
        let parse = |text: &String| {
            text.parse::<IpNet>()
                .map_err(|_| format!("ipBlock: {text} is not a network"))
        };
        let network = parse(&block.cidr)?;
        let except: Vec<IpNet> = block.except.iter().map(parse).collect::<Result<_, _>>()?;
        self.blocks.add(network, &except);
        let mut text = network.to_string();
        if !except.is_empty() {
            let list: Vec<_> = except.iter().map(ToString::to_string).collect();
            text = format!("{text} except {}", list.join(", "));
        }
        self.block_texts.push(text);
        Ok(())
    }
}

impl Ports {
    fn of(ports: &[PolicyPort]) -> Result<Ports, String> {
        let (mut numbers, mut named) = (Vec::new(), Vec::new());
        for port in ports {
            let protocol = Protocol::parse(port.protocol.as_deref())
                .ok_or_else(|| format!("protocol {:?} is unknown", port.protocol))?;
            match &port.port {
                None => numbers.push((protocol, 0, u16::MAX)),
                Some(Value::String(name)) => named.push(NamedPort {
                    name: name.clone(),
                    protocol,
                }),
                Some(value) => {
                    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
                    let first = number.ok_or_else(|| format!("port {value} is no port"))?;
                    numbers.push((protocol, first, port.end_port.unwrap_or(first).max(first)));
                }
            }
        }
        named.sort();
        named.dedup();
        Ok(Ports {
            numbers: disjoint(numbers),
            named,
        })
    }
}

/// Joins ranges that touch or overlap.
fn disjoint(mut ranges: Vec<(Protocol, u16, u16)>) -> Vec<(Protocol, u16, u16)> {
    ranges.sort_unstable();
    let mut joined: Vec<(Protocol, u16, u16)> = Vec::with_capacity(ranges.len());
    for (protocol, first, last) in ranges {
        match joined.last_mut() {
            Some(before) if before.0 == protocol && first <= before.2.saturating_add(1) => {
                before.2 = before.2.max(last);
            }
            _ => joined.push((protocol, first, last)),
        }
    }
    joined
}
