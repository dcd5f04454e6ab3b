//! The chains and rules of the table: they depend on the configuration and on the affinity timeouts in use, and not on
//! the Services.

use super::element::{AFFINITY_BIT, CLASS_MASK, LARGEST_CLASS, SetName};
use crate::config::{Config, DetectLocal};
use ipnet::IpNet;
use linux::nftables::{
    ADDRESS_TYPE_LOCAL, Chain, ChainKind, Compare, Family, Field, Hook, Rule, Set, SetOperation,
    Verdict, ct_state, ct_status,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// How often a draw that met an empty slot is repeated before slot 0 is taken: at worst half the slots are empty, and
/// one packet in 4,096 comes to that.
const DRAWS: usize = 12;
/// Clients with affinity that are remembered at once; the next ones draw each time.
const AFFINITY_CLIENTS: u32 = 1 << 20;

/// A map of verdicts that never changes, with its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictMap {
    /// The map.
    pub set: Set,
    /// Key and verdict.
    pub elements: Vec<(u32, Verdict)>,
}

/// A chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainRules {
    /// The chain.
    pub chain: Chain,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// All of a family's table but the Services' elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skeleton {
    /// The family.
    pub family: Family,
    /// The networks that pods have, if that tells local traffic.
    pub pod_networks: Vec<IpNet>,
    /// The sets, without the verdict maps.
    pub sets: Vec<Set>,
    /// Where a class of lists is served.
    pub verdict_maps: Vec<VerdictMap>,
    /// Chains in an order in which each stands before those that lead to it.
    pub chains: Vec<ChainRules>,
}

/// The set of the pods' networks.
pub const POD_NETWORKS: &str = "pod-networks";
const AFFINITY: &str = "affinity";
const CLASSES: &str = "classes";
const AFFINITY_CLASSES: &str = "affinity-classes";
/// A reset for TCP, which no rate limit holds back; a message for the others.
const REFUSE: &str = "refuse";
const MASQUERADE: &str = "mark-for-masquerade";

/// Builds the table of a family.
struct Builder<'a> {
    family: Family,
    config: &'a Config,
    /// What a packet's destination is looked up by.
    frontend: [Field; 3],
    node_port: [Field; 2],
    /// The node's addresses, as `nodePortAddresses` names them.
    node_addresses: Vec<IpNet>,
    chains: Vec<ChainRules>,
}

impl Skeleton {
    /// The table for a configuration. `affinities` are timeouts in seconds; `node_addresses` are the networks in which
    /// the node's addresses serve NodePorts, all if there are none.
    pub fn new(
        family: Family,
        config: &Config,
        node_addresses: &[IpNet],
        affinities: &BTreeSet<u32>,
    ) -> Skeleton {
        let of_family = |network: &&IpNet| network.addr().is_ipv6() == (family == Family::Ip6);
        let mut builder = Builder {
            family,
            config,
            frontend: [Field::daddr(family), Field::L4Proto, Field::ThDport],
            node_port: [Field::L4Proto, Field::ThDport],
            node_addresses: node_addresses.iter().filter(of_family).copied().collect(),
            chains: Vec::new(),
        };
        builder.masquerade();
        builder.draws();
        builder.affinity(affinities);
        builder.frontends();
        builder.node_ports();
        builder.entry_points();
        builder.checks();
        let pod_networks = match &config.detect_local {
            DetectLocal::Networks(networks) => networks.iter().filter(of_family).copied().collect(),
            _ => Vec::new(),
        };
        Skeleton {
            family,
            pod_networks: IpNet::aggregate(&pod_networks),
            sets: sets(family, affinities),
            verdict_maps: verdict_maps(),
            chains: builder.chains,
        }
    }
}

fn sets(family: Family, affinities: &BTreeSet<u32>) -> Vec<Set> {
    let client = [
        Field::saddr(family),
        Field::daddr(family),
        Field::L4Proto,
        Field::ThDport,
    ];
    let mut sets = vec![Set::of(POD_NETWORKS, &[Field::saddr(family)]).of_intervals()];
    sets.extend(SetName::ALL.map(|set| set.declaration(family)));
    sets.push(Set::map(AFFINITY, &client, &[Field::Priority]).dynamic(AFFINITY_CLIENTS));
    sets.extend(
        affinities
            .iter()
            .map(|seconds| SetName::AffinityLists(*seconds).declaration(family)),
    );
    sets
}

fn verdict_maps() -> Vec<VerdictMap> {
    let map = |name: &str, chain: &str| VerdictMap {
        set: Set::verdict_map(name, &[Field::Priority]),
        elements: (0..=LARGEST_CLASS)
            .map(|class| {
                (
                    (class + 1) << 28,
                    Verdict::Goto(format!("{chain}-{}", 1u32 << class)),
                )
            })
            .collect(),
    };
    vec![map(CLASSES, "pick"), map(AFFINITY_CLASSES, "affinity-draw")]
}

impl Builder<'_> {
    fn chain(&mut self, chain: Chain, rules: Vec<Rule>) {
        self.chains.push(ChainRules { chain, rules });
    }

    fn regular(&mut self, name: &str, rules: Vec<Rule>) {
        self.chain(Chain::regular(name), rules);
    }

    /// Only a connection's first packet comes here; what follows is translated alike.
    fn masquerade(&mut self) {
        let mark = self.config.masquerade_mark();
        self.regular(MASQUERADE, vec![Rule::new().set_mark_bits(mark)]);
        let hairpin = [Field::saddr(self.family), Field::daddr(self.family)];
        let mut rules = vec![
            Rule::new()
                .has_any(Field::CtStatus, ct_status::DNAT)
                .clear_priority()
                .comment("it held the list"),
            Rule::new()
                .has_any(Field::CtStatus, ct_status::DNAT)
                .is_in(&hairpin, &SetName::Hairpin.name())
                .masquerade_fully_random()
                .comment("an endpoint that reaches itself"),
            Rule::new()
                .mark_has(mark)
                .flip_mark_bits(mark)
                .masquerade_fully_random(),
        ];
        if let Some(bridge) = &self.config.bridge {
            let rule = Rule::new()
                .has_any(Field::CtStatus, ct_status::DNAT)
                .interface(Field::IifName, Compare::Equal, bridge)
                .interface(Field::OifName, Compare::Equal, bridge)
                .masquerade_fully_random()
                .comment("else the answer goes past the node");
            rules.insert(2, rule);
        }
        self.chain(
            Chain::base("nat-postrouting", ChainKind::Nat, Hook::Postrouting, 100),
            rules,
        );
    }

    /// A draw among 2^class slots: `pick-N` repeats `draw-N` until it finds an endpoint.
    fn draws(&mut self) {
        let protocols: [&[u8]; 3] = [&[6], &[17], &[132]];
        for class in 0..=LARGEST_CLASS {
            let size = 1u32 << class;
            let key = [Field::Priority, Field::random(size)];
            let rule = Rule::new().is_one_of(Field::L4Proto, &protocols).dnat_from(
                self.family,
                &key,
                &SetName::Endpoints.name(),
            );
            self.regular(&format!("draw-{size}"), vec![rule]);
            let mut rules = vec![Rule::new().mask_priority(!CLASS_MASK)];
            rules.extend(repeated("draw", class));
            rules.push(Rule::new().drop().comment("sent again, it draws again"));
            self.regular(&format!("pick-{size}"), rules);
            let rule = Rule::new().set_priority_from(&key, &SetName::AffinitySlots.name());
            self.regular(&format!("affinity-try-{size}"), vec![rule]);
            let mut rules = vec![Rule::new().mask_priority(!CLASS_MASK)];
            rules.extend(repeated("affinity-try", class));
            self.regular(&format!("affinity-draw-{size}"), rules);
        }
    }

    /// Clients that stay: `affinity` leads from a client and a frontend to the handle of its endpoint.
    fn affinity(&mut self, affinities: &BTreeSet<u32>) {
        let draw = Rule::new().verdict_from_masked(Field::Priority, CLASS_MASK, AFFINITY_CLASSES);
        self.regular("affinity-draw", vec![draw]);
        let mut local = self.for_local_sources(|rule| rule.return_());
        local.push(
            Rule::new()
                .matches(Field::FibSaddrType, &local_type())
                .return_(),
        );
        local.extend(self.to_local_list(|rule| rule));
        self.regular("restore-local-list", local);
        let frontend = self.frontend;
        let node_port = self.node_port;
        let restore = |key: &[Field], set: SetName| Rule::new().set_priority_from(key, &set.name());
        let rules = vec![
            restore(&frontend, SetName::ClusterIps).return_(),
            restore(&frontend, SetName::ExternalIps).return_(),
            restore(&frontend, SetName::LocalExternalIps).goto("restore-local-list"),
            restore(&node_port, SetName::NodePorts).return_(),
            restore(&node_port, SetName::LocalNodePorts).goto("restore-local-list"),
        ];
        self.regular("restore-list", rules);
        let mut rules = Vec::new();
        for seconds in affinities {
            self.affinity_of(*seconds);
            let list = SetName::AffinityLists(*seconds).name();
            rules.push(
                Rule::new()
                    .is_in(&[Field::Priority], &list)
                    .goto(&format!("affinity-{seconds}")),
            );
        }
        // Between two transactions a packet may hold a list's former class: then any timeout is better than none.
        rules.extend(
            affinities
                .first()
                .map(|seconds| Rule::new().goto(&format!("affinity-{seconds}"))),
        );
        self.regular("affinity", rules);
    }

    fn affinity_of(&mut self, seconds: u32) {
        let client = [
            Field::saddr(self.family),
            self.frontend[0],
            self.frontend[1],
            self.frontend[2],
        ];
        let timeout = Some(Duration::from_secs(seconds.into()));
        let handle = [Field::Priority];
        let protocols: [&[u8]; 3] = [&[6], &[17], &[132]];
        let family = self.family;
        let change = |operation, timeout| {
            Rule::new().change_set(operation, AFFINITY, &client, timeout, &handle)
        };
        let to_endpoint = || {
            let endpoints = SetName::AffinityEndpoints.name();
            Rule::new()
                .is_one_of(Field::L4Proto, &protocols)
                .dnat_from(family, &handle, &endpoints)
        };
        let new = format!("affinity-new-{seconds}");
        let known = format!("affinity-known-{seconds}");
        let draw = vec![
            Rule::new().jump("affinity-draw"),
            change(SetOperation::Update, timeout),
            to_endpoint(),
            Rule::new().drop().comment("sent again, it draws again"),
        ];
        self.regular(&new, draw);
        let follow = vec![
            change(SetOperation::Update, timeout),
            to_endpoint(),
            change(SetOperation::Delete, None).comment("its endpoint is gone"),
            Rule::new().jump("restore-list"),
            Rule::new().goto(&new),
        ];
        self.regular(&known, follow);
        let rules = vec![
            Rule::new()
                .set_priority_from(&client, AFFINITY)
                .goto(&known),
            Rule::new().goto(&new),
        ];
        self.regular(&format!("affinity-{seconds}"), rules);
    }

    /// Rules that end in `then` for sources that are the node's own pods.
    fn for_local_sources(&self, then: impl Fn(Rule) -> Rule) -> Vec<Rule> {
        match &self.config.detect_local {
            DetectLocal::Networks(_) => {
                vec![then(
                    Rule::new().is_in(&[Field::saddr(self.family)], POD_NETWORKS),
                )]
            }
            DetectLocal::Interface(name) => {
                vec![then(Rule::new().interface(
                    Field::IifName,
                    Compare::Equal,
                    name,
                ))]
            }
            DetectLocal::NodeNetworks | DetectLocal::Unknown => Vec::new(),
        }
    }

    /// From a list to the list of those of its endpoints that are on this node.
    fn to_local_list(&self, then: impl Fn(Rule) -> Rule) -> [Rule; 2] {
        let local = Rule::new().set_priority_from(&[Field::Priority], &SetName::LocalLists.name());
        [Rule::new().mask_priority(!CLASS_MASK), then(local)]
    }

    fn frontends(&mut self) {
        let pick = vec![
            Rule::new()
                .masked(Field::Priority, AFFINITY_BIT, AFFINITY_BIT)
                .goto("affinity"),
            Rule::new().verdict_from_masked(Field::Priority, CLASS_MASK, CLASSES),
        ];
        self.regular("pick", pick);
        let mut cluster = Vec::new();
        if self.config.masquerade_all {
            cluster.push(Rule::new().jump(MASQUERADE));
        } else {
            cluster.extend(match &self.config.detect_local {
                DetectLocal::Networks(_) => Some(
                    Rule::new()
                        .is_not_in(&[Field::saddr(self.family)], POD_NETWORKS)
                        .jump(MASQUERADE),
                ),
                DetectLocal::Interface(name) => Some(
                    Rule::new()
                        .interface(Field::IifName, Compare::NotEqual, name)
                        .jump(MASQUERADE),
                ),
                DetectLocal::NodeNetworks | DetectLocal::Unknown => None,
            });
        }
        cluster.push(Rule::new().goto("pick"));
        self.regular("cluster-frontend", cluster);
        self.regular(
            "external-frontend",
            vec![Rule::new().jump(MASQUERADE), Rule::new().goto("pick")],
        );
        let mut local = self.for_local_sources(|rule| rule.goto("pick"));
        local.push(
            Rule::new()
                .matches(Field::FibSaddrType, &local_type())
                .jump(MASQUERADE),
        );
        local.push(
            Rule::new()
                .matches(Field::FibSaddrType, &local_type())
                .goto("pick"),
        );
        local.extend(self.to_local_list(|rule| rule.goto("pick")));
        local.push(Rule::new().drop());
        self.regular("local-frontend", local);
        let source = [
            Field::saddr(self.family),
            self.frontend[0],
            self.frontend[1],
            self.frontend[2],
        ];
        let check = vec![
            Rule::new()
                .is_in(&source, &SetName::SourceRanges.name())
                .return_(),
            Rule::new().drop(),
        ];
        self.regular("check-source-ranges", check);
        for (chain, then) in [
            ("external-ip-frontend", "external-frontend"),
            ("local-external-ip-frontend", "local-frontend"),
        ] {
            let restricted = Rule::new().is_in(&self.frontend, &SetName::RestrictedServices.name());
            self.regular(
                chain,
                vec![
                    restricted.jump("check-source-ranges"),
                    Rule::new().goto(then),
                ],
            );
        }
    }

    /// A packet to one of this node's own addresses, but not to its loopback.
    fn to_node(&self) -> Vec<Rule> {
        let local = Rule::new().matches(Field::FibDaddrType, &local_type());
        let daddr = Field::daddr(self.family);
        if self.node_addresses.is_empty() {
            let (address, prefix): (IpAddr, u8) = if self.family == Family::Ip6 {
                (IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]), 128)
            } else {
                ([127, 0, 0, 0].into(), 8)
            };
            return vec![local.in_network(daddr, Compare::NotEqual, address, prefix)];
        }
        self.node_addresses
            .iter()
            .map(|network| {
                local.clone().in_network(
                    daddr,
                    Compare::Equal,
                    network.addr(),
                    network.prefix_len(),
                )
            })
            .collect()
    }

    fn node_ports(&mut self) {
        let node_port = self.node_port;
        let lookup = |set: SetName| Rule::new().set_priority_from(&node_port, &set.name());
        let rules = vec![
            lookup(SetName::NodePorts).goto("external-frontend"),
            lookup(SetName::LocalNodePorts).goto("local-frontend"),
        ];
        self.regular("node-ports", rules);
        let frontend = self.frontend;
        let lookup = |set: SetName| Rule::new().set_priority_from(&frontend, &set.name());
        let mut rules = vec![
            lookup(SetName::ClusterIps).goto("cluster-frontend"),
            lookup(SetName::ExternalIps).goto("external-ip-frontend"),
            lookup(SetName::LocalExternalIps).goto("local-external-ip-frontend"),
        ];
        rules.extend(
            self.to_node()
                .into_iter()
                .map(|rule| rule.jump("node-ports")),
        );
        self.regular("services", rules);
    }

    fn entry_points(&mut self) {
        let services = || vec![Rule::new().jump("services")];
        self.chain(
            Chain::base("nat-prerouting", ChainKind::Nat, Hook::Prerouting, -100),
            services(),
        );
        self.chain(
            Chain::base("nat-output", ChainKind::Nat, Hook::Output, -100),
            services(),
        );
    }

    /// What wasn't translated and yet goes to a Service is refused.
    fn checks(&mut self) {
        let family = self.family;
        self.regular(
            REFUSE,
            vec![Rule::new().reject_tcp(), Rule::new().reject(family)],
        );
        let reject_node_port = Rule::new()
            .is_in(&self.node_port, &SetName::NoEndpointNodePorts.name())
            .goto(REFUSE);
        self.regular("check-node-ports", vec![reject_node_port]);
        let other_port = vec![
            // It is known, and yet it wasn't translated: its element was being replaced.
            Rule::new()
                .set_priority_from(&self.frontend, &SetName::ClusterIps.name())
                .drop(),
            Rule::new().goto(REFUSE).comment("no such port"),
        ];
        self.regular("check-cluster-address", other_port);
        let mut rules = vec![
            Rule::new()
                .has_any(Field::CtStatus, ct_status::DNAT)
                .return_(),
            Rule::new()
                .is_in(&self.frontend, &SetName::NoEndpointServices.name())
                .goto(REFUSE),
            Rule::new()
                .is_in(&[self.frontend[0]], &SetName::ClusterAddresses.name())
                .goto("check-cluster-address"),
        ];
        rules.extend(
            self.to_node()
                .into_iter()
                .map(|rule| rule.jump("check-node-ports")),
        );
        self.regular("check-services", rules);
        let check = || {
            vec![
                Rule::new()
                    .has_any(Field::CtState, ct_state::NEW)
                    .jump("check-services"),
            ]
        };
        self.chain(
            Chain::base("filter-input", ChainKind::Filter, Hook::Input, -110),
            check(),
        );
        self.chain(
            Chain::base("filter-forward", ChainKind::Filter, Hook::Forward, -110),
            check(),
        );
        // After nat-output, which is at -100.
        self.chain(
            Chain::base("filter-output", ChainKind::Filter, Hook::Output, -90),
            check(),
        );
    }
}

fn local_type() -> [u8; 4] {
    ADDRESS_TYPE_LOCAL.to_ne_bytes()
}

/// Jumps to the draw of a class, as often as it takes. The last resort is the draw of one: twice, since before Linux
/// 6.17 a lookup may miss an element that is being replaced.
fn repeated(chain: &str, class: u32) -> Vec<Rule> {
    let draws = std::iter::repeat_n(
        Rule::new().jump(&format!("{chain}-{}", 1u32 << class)),
        DRAWS,
    );
    let last = std::iter::repeat_n(Rule::new().jump(&format!("{chain}-1")), 2);
    draws
        .take(if class > 0 { DRAWS } else { 0 })
        .chain(last)
        .collect()
}
