//! Which endpoints of a Service port get traffic: readiness, termination, locality and topology, as upstream's
//! `pkg/proxy/topology.go` decides it.

use super::facts::{Hints, NodeFacts};
use std::net::SocketAddr;
use std::sync::Arc;

/// An endpoint of one Service port, as its slices state it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Where it answers.
    pub address: SocketAddr,
    /// May get traffic.
    pub ready: bool,
    /// Would answer.
    pub serving: bool,
    /// Is going.
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
    /// Who prefers it, if it says so.
    pub hints: Option<Arc<Hints>>,
}

impl Candidate {
    fn is_for_node(&self, name: &str) -> bool {
        self.hints
            .as_ref()
            .is_some_and(|hints| hints.nodes.iter().any(|node| **node == *name))
    }

    fn is_for_zone(&self, name: &str) -> bool {
        self.hints
            .as_ref()
            .is_some_and(|hints| hints.zones.iter().any(|zone| **zone == *name))
    }
}

/// The endpoints that are used, each sorted by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// For traffic that may go anywhere.
    pub cluster: Vec<SocketAddr>,
    /// For traffic that stays on the node.
    pub local: Vec<SocketAddr>,
    /// Whether there is any endpoint anywhere: without one, packets are refused.
    pub any: bool,
    /// Whether `cluster` is what terminates, for want of better.
    pub cluster_draining: bool,
    /// The same of `local`.
    pub local_draining: bool,
}

/// Narrows the endpoints of a port to those that get traffic.
pub fn choose(candidates: &[Candidate], node: &NodeFacts) -> Chosen {
    let fallback = |candidate: &&Candidate| candidate.serving && candidate.terminating;
    let all: Vec<&Candidate> = with_fallback(candidates.iter(), |c| c.ready, fallback);
    let local = with_fallback(candidates.iter().filter(|c| c.local), |c| c.ready, fallback);
    let preference = preference(candidates, node);
    let near = |candidate: &&&Candidate| match preference {
        Preference::None => true,
        // What terminates is used for want of better: then no preference holds.
        _ if !candidate.ready => true,
        Preference::Node => candidate.is_for_node(&node.name),
        Preference::Zone => candidate.is_for_zone(&node.zone),
    };
    let sorted = |mut addresses: Vec<SocketAddr>| {
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    };
    Chosen {
        any: !all.is_empty(),
        cluster_draining: all.iter().all(|c| !c.ready),
        local_draining: local.iter().all(|c| !c.ready),
        cluster: sorted(all.iter().filter(near).map(|c| c.address).collect()),
        local: sorted(local.iter().map(|c| c.address).collect()),
    }
}

/// Those for which `first` holds; if there are none, those for which `second` does.
fn with_fallback<'a>(
    candidates: impl Iterator<Item = &'a Candidate> + Clone,
    first: impl Fn(&&Candidate) -> bool,
    second: impl Fn(&&Candidate) -> bool,
) -> Vec<&'a Candidate> {
    let chosen: Vec<_> = candidates.clone().filter(first).collect();
    if chosen.is_empty() {
        candidates.filter(second).collect()
    } else {
        chosen
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preference {
    None,
    Node,
    Zone,
}

/// Hints hold only if every ready endpoint has one, and one of them is meant for this node or its zone.
fn preference(candidates: &[Candidate], node: &NodeFacts) -> Preference {
    let ready = || candidates.iter().filter(|c| c.ready);
    let has = |of: fn(&Hints) -> &[Box<str>]| {
        ready().all(|c| c.hints.as_ref().is_some_and(|hints| !of(hints).is_empty()))
    };
    if has(|hints| &hints.nodes) && ready().any(|c| c.is_for_node(&node.name)) {
        return Preference::Node;
    }
    let zone_known = !node.zone.is_empty();
    if zone_known && has(|hints| &hints.zones) && ready().any(|c| c.is_for_zone(&node.zone)) {
        return Preference::Zone;
    }
    Preference::None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(last: u8) -> Candidate {
        Candidate {
            address: SocketAddr::from(([10, 0, 0, last], 80)),
            ready: true,
            serving: true,
            terminating: false,
            local: false,
            hints: None,
        }
    }

    fn hints(zones: &[&str], nodes: &[&str]) -> Option<Arc<Hints>> {
        let boxed = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        Some(Arc::new(Hints {
            zones: boxed(zones),
            nodes: boxed(nodes),
        }))
    }

    fn terminating(last: u8) -> Candidate {
        Candidate {
            ready: false,
            terminating: true,
            ..candidate(last)
        }
    }

    fn lasts(addresses: &[SocketAddr]) -> Vec<u8> {
        addresses
            .iter()
            .map(|address| match address {
                SocketAddr::V4(address) => address.ip().octets()[3],
                SocketAddr::V6(_) => 0,
            })
            .collect()
    }

    fn node() -> NodeFacts {
        NodeFacts {
            name: "here".into(),
            zone: "a".into(),
            ..NodeFacts::default()
        }
    }

    #[test]
    fn terminating_endpoints_serve_only_when_none_is_ready() {
        let chosen = choose(&[candidate(1), terminating(2)], &node());
        assert_eq!(lasts(&chosen.cluster), [1]);
        let chosen = choose(
            &[
                terminating(2),
                Candidate {
                    serving: false,
                    ..terminating(3)
                },
            ],
            &node(),
        );
        assert_eq!((lasts(&chosen.cluster), chosen.any), (vec![2], true));
        let chosen = choose(
            &[Candidate {
                serving: false,
                ..terminating(3)
            }],
            &node(),
        );
        assert!(chosen.cluster.is_empty() && !chosen.any);
    }

    #[test]
    fn a_local_endpoint_that_terminates_serves_local_traffic_though_others_are_ready() {
        let chosen = choose(
            &[
                candidate(1),
                Candidate {
                    local: true,
                    ..terminating(2)
                },
            ],
            &node(),
        );
        assert_eq!(
            (lasts(&chosen.cluster), lasts(&chosen.local)),
            (vec![1], vec![2])
        );
        assert!(chosen.local_draining && !chosen.cluster_draining);
    }

    #[test]
    fn zone_hints_hold_only_if_every_endpoint_has_one() {
        let in_zone = |last, zone: &str| Candidate {
            hints: hints(&[zone], &[]),
            ..candidate(last)
        };
        assert_eq!(
            lasts(&choose(&[in_zone(1, "a"), in_zone(2, "b")], &node()).cluster),
            [1]
        );
        assert_eq!(
            lasts(&choose(&[in_zone(1, "a"), candidate(2)], &node()).cluster),
            [1, 2]
        );
        assert_eq!(
            lasts(&choose(&[in_zone(1, "c"), in_zone(2, "b")], &node()).cluster),
            [1, 2]
        );
    }

    #[test]
    fn node_hints_go_before_zone_hints() {
        let hinted = |last, to: &str| Candidate {
            hints: hints(&["a"], &[to]),
            ..candidate(last)
        };
        assert_eq!(
            lasts(&choose(&[hinted(1, "here"), hinted(2, "there")], &node()).cluster),
            [1]
        );
        assert_eq!(
            lasts(&choose(&[hinted(1, "x"), hinted(2, "y")], &node()).cluster),
            [1, 2]
        );
    }
}
