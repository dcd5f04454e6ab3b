//! The rules of one Service: those that lead to it from chains that all share, and its own chains.

use super::names::{
    EXTERNAL_SERVICES, MARK_MASQ, NODE_PORTS, PROXY_FIREWALL, PortChains, SERVICES, Table,
    endpoint_chain,
};
use super::settings::{LocalPods, Settings};
use super::words::{Words, one_of, protocol_name};
use crate::service::{Frontend, Protocol, ServicePort};
use linux::nftables::Family;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// A Service in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// Where a load balancer asks for its health.
    pub health_check_port: Option<u16>,
}

/// Takes rules, each with its table and chain, in order.
pub trait Sink {
    /// Takes one.
    fn rule(&mut self, table: Table, chain: &str, rule: String);
}

impl<F: FnMut(Table, &str, String)> Sink for F {
    fn rule(&mut self, table: Table, chain: &str, rule: String) {
        self(table, chain, rule);
    }
}

/// The words of packets that come from the node's own pods, or from anywhere else; `None` if there is no telling.
fn from_local(words: Words, pods: &LocalPods, local: bool) -> Option<Words> {
    match pods {
        LocalPods::Network(network) if local => Some(words.from(*network)),
        LocalPods::Network(network) => Some(words.not_from(*network)),
        LocalPods::Interface(name) => Some(words.interface(name, !local)),
        LocalPods::Unknown => None,
    }
}

/// One port, and what its rules depend on.
struct Port<'a> {
    port: &'a ServicePort,
    settings: &'a Settings,
    chains: PortChains,
    has_internal: bool,
    has_external: bool,
}

impl<'a> Port<'a> {
    fn new(port: &'a ServicePort, settings: &'a Settings) -> Port<'a> {
        let reached = |local: bool| port.any && !(local && port.local.is_empty());
        Port {
            port,
            settings,
            chains: PortChains::new(&port.name, protocol_name(port.protocol)),
            has_internal: reached(port.internal_local),
            has_external: reached(port.external_local),
        }
    }

    fn name(&self) -> &str {
        &self.port.name
    }

    fn internal_chain(&self) -> &str {
        if self.port.internal_local {
            &self.chains.local
        } else {
            &self.chains.cluster
        }
    }

    fn words(&self, comment: &str, frontend: Frontend) -> Words {
        Words::about(comment).frontend(frontend.address, frontend.protocol, frontend.port)
    }

    fn has_firewall(&self) -> bool {
        self.port.any && !self.port.restricted().is_empty()
    }

    /// What becomes of packets that find no endpoint, and why.
    fn refusal(&self) -> (&'static str, String) {
        if self.port.any {
            let why = format!("{} has no local endpoints", self.name());
            return ("-j DROP", why);
        }
        let reject = match self.settings.family {
            Family::Ip6 => "-j REJECT --reject-with icmp6-port-unreachable",
            _ => "-j REJECT --reject-with icmp-port-unreachable",
        };
        (reject, format!("{} has no endpoints", self.name()))
    }

    /// The rules that lead to it.
    fn ways(&self, out: &mut impl Sink) {
        let (port, name) = (self.port, self.name());
        let (refusal, why) = self.refusal();
        if self.has_internal {
            let words = self.words(&format!("{name} cluster IP"), port.cluster_ip);
            out.rule(Table::Nat, SERVICES, words.jump(self.internal_chain()));
        } else {
            let words = self.words(&why, port.cluster_ip);
            out.rule(Table::Filter, SERVICES, words.then(refusal));
        }
        let is_balanced = |frontend: &Frontend| port.balanced.contains(frontend);
        let external = port.external.iter().filter(|f| !is_balanced(f));
        for frontend in external.chain(&port.balanced) {
            let balanced = is_balanced(frontend);
            if port.any {
                let kind = if balanced { "loadbalancer" } else { "external" };
                let words = self.words(&format!("{name} {kind} IP"), *frontend);
                let chain = if balanced && self.has_firewall() {
                    &self.chains.firewall
                } else {
                    &self.chains.external
                };
                out.rule(Table::Nat, SERVICES, words.jump(chain));
            }
            if balanced && self.has_firewall() {
                let comment = format!("{name} traffic not accepted by {}", self.chains.firewall);
                let words = self.words(&comment, *frontend);
                out.rule(Table::Filter, PROXY_FIREWALL, words.then("-j DROP"));
            }
            if !self.has_external {
                let words = self.words(&why, *frontend);
                out.rule(Table::Filter, EXTERNAL_SERVICES, words.then(refusal));
            }
        }
        let Some(node_port) = port.node_port else {
            return;
        };
        if port.any {
            let words = Words::about(name).port(port.protocol, node_port);
            out.rule(Table::Nat, NODE_PORTS, words.jump(&self.chains.external));
        }
        if !self.has_external {
            let words = Words::about(&why).matches("-m addrtype --dst-type LOCAL");
            let words = words.port(port.protocol, node_port);
            out.rule(Table::Filter, EXTERNAL_SERVICES, words.then(refusal));
        }
    }

    /// Its own chains.
    fn chains(&self, comments: bool, out: &mut impl Sink) {
        let port = self.port;
        if !port.any {
            return;
        }
        self.masquerade_internal(out);
        if port.is_external() {
            self.external_chain(out);
        }
        if self.has_firewall() {
            self.firewall_chain(out);
        }
        let uses_local = port.internal_local || (port.external_local && port.is_external());
        let lists = [
            (&self.chains.cluster, &port.cluster, port.uses_cluster()),
            (&self.chains.local, &port.local, uses_local),
        ];
        let used = || lists.iter().filter(|(_, _, used)| *used);
        for (chain, endpoints, _) in used() {
            self.draw(chain, endpoints, comments, out);
        }
        let endpoints: BTreeSet<SocketAddr> = used()
            .flat_map(|(_, endpoints, _)| endpoints.iter().copied())
            .collect();
        for endpoint in endpoints {
            self.endpoint_chain(endpoint, comments, out);
        }
    }

    /// What comes from outside may have been routed here from anywhere, and goes on to another node.
    fn masquerade_internal(&self, out: &mut impl Sink) {
        if !self.has_internal {
            return;
        }
        let words = self.words(&format!("{} cluster IP", self.name()), self.port.cluster_ip);
        let words = if self.settings.masquerade_all {
            Some(words)
        } else {
            from_local(words, &self.settings.local_pods, false)
        };
        if let Some(words) = words {
            out.rule(Table::Nat, self.internal_chain(), words.jump(MARK_MASQ));
        }
    }

    fn external_chain(&self, out: &mut impl Sink) {
        let (name, chain) = (self.name(), &self.chains.external);
        let about = |what: &str| Words::about(&format!("{what} for {name} external destinations"));
        let mut add = |rule| out.rule(Table::Nat, chain, rule);
        if self.port.external_local {
            // Pods reach it as if their packets had gone out to a load balancer and come back.
            let pods = about("pod traffic");
            if let Some(pods) = from_local(pods, &self.settings.local_pods, true) {
                add(pods.jump(&self.chains.cluster));
            }
            // The node's own source may be the load balancer's address.
            let here = "-m addrtype --src-type LOCAL";
            add(about("masquerade LOCAL traffic")
                .matches(here)
                .jump(MARK_MASQ));
            add(about("route LOCAL traffic")
                .matches(here)
                .jump(&self.chains.cluster));
            if self.has_external {
                add(Words::new().jump(&self.chains.local));
            }
        } else {
            add(about("masquerade traffic").jump(MARK_MASQ));
            add(Words::new().jump(&self.chains.cluster));
        }
    }

    fn firewall_chain(&self, out: &mut impl Sink) {
        let port = self.port;
        let (name, chain) = (self.name(), &self.chains.firewall);
        let mut add = |rule| out.rule(Table::Nat, chain, rule);
        let words = || Words::about(&format!("{name} loadbalancer IP"));
        for range in &port.source_ranges {
            add(words().from(*range).jump(&self.chains.external));
        }
        // Where the load balancer's address is one of the node's, it is the source of what the node sends there.
        let node = self.settings.node_addresses.first();
        if node.is_some_and(|node| port.source_ranges.iter().any(|range| range.contains(node))) {
            for frontend in port.restricted() {
                add(words()
                    .from(frontend.address.into())
                    .jump(&self.chains.external));
            }
        }
        let rest = format!("other traffic to {name} will be dropped by KUBE-PROXY-FIREWALL");
        add(Words::about(&rest).then(""));
    }

    /// The draw among a list's endpoints.
    fn draw(&self, chain: &str, endpoints: &[SocketAddr], comments: bool, out: &mut impl Sink) {
        let name = self.name();
        let words = |endpoint: &SocketAddr| {
            if comments {
                Words::about(&format!("{name} -> {endpoint}"))
            } else {
                Words::new()
            }
        };
        if let Some(affinity) = self.port.affinity {
            for endpoint in endpoints {
                let target = self.name_of(endpoint);
                let recent = format!(
                    "-m recent --rcheck --seconds {} --reap --name {target} --mask {} --rsource",
                    affinity.seconds,
                    self.whole_mask()
                );
                let rule = words(endpoint).matches(&recent).jump(&target);
                out.rule(Table::Nat, chain, rule);
            }
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            let left = endpoints.len() - index;
            let words = match left {
                1 => words(endpoint),
                _ => words(endpoint).matches(&one_of(left)),
            };
            out.rule(Table::Nat, chain, words.jump(&self.name_of(endpoint)));
        }
    }

    fn endpoint_chain(&self, endpoint: SocketAddr, comments: bool, out: &mut impl Sink) {
        let chain = self.name_of(&endpoint);
        let words = || {
            if comments {
                Words::about(self.name())
            } else {
                Words::new()
            }
        };
        // One that reaches itself through the Service has to see another's address.
        let itself = words().from(endpoint.ip().into());
        out.rule(Table::Nat, &chain, itself.jump(MARK_MASQ));
        let words = match self.port.affinity {
            None => words(),
            Some(_) => words().matches(&format!(
                "-m recent --set --name {chain} --mask {} --rsource",
                self.whole_mask()
            )),
        };
        let target = format!("-j DNAT --to-destination {endpoint}");
        out.rule(
            Table::Nat,
            &chain,
            words.protocol(self.port.protocol).then(&target),
        );
    }

    fn name_of(&self, endpoint: &SocketAddr) -> String {
        let protocol = protocol_name(self.port.protocol);
        endpoint_chain(self.name(), protocol, &endpoint.to_string())
    }

    fn whole_mask(&self) -> &'static str {
        match self.settings.family {
            Family::Ip6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            _ => "255.255.255.255",
        }
    }
}

impl Service {
    /// The rules in the chains that all Services share.
    pub fn ways(&self, settings: &Settings, out: &mut impl Sink) {
        for port in &self.ports {
            Port::new(port, settings).ways(out);
            if let Some(check) = self.health_check_port {
                let words = Words::about(&format!("{} health check node port", port.name));
                let words = words.port(Protocol::Tcp, check);
                out.rule(Table::Filter, NODE_PORTS, words.then("-j ACCEPT"));
            }
        }
    }

    /// The rules in its own chains, which name themselves for the reader if `comments`.
    pub fn chains(&self, settings: &Settings, comments: bool, out: &mut impl Sink) {
        for port in &self.ports {
            Port::new(port, settings).chains(comments, out);
        }
    }

    /// How many endpoints' chains it has, about.
    pub fn endpoints(&self) -> usize {
        let ports = self.ports.iter();
        ports
            .map(|port| port.cluster.len().max(port.local.len()))
            .sum()
    }
}
