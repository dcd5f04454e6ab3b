//! Connections without a handshake stay with an endpoint that is gone, for as long as packets come: their entries are
//! deleted when endpoints change. TCP is left to close by itself.

use crate::family::FamilyRules;
use crate::service::{Protocol, ServiceName, ServicePort};
use linux::conntrack::Entry;
use linux::nftables::{Family, Socket};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// A Service's port whose connections have no handshake, as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    protocol: Protocol,
    frontends: Vec<SocketAddr>,
    node_port: Option<u16>,
    endpoints: HashSet<SocketAddr>,
}

impl Served {
    /// What the connections of a port with these endpoints may be; `None` for TCP.
    pub fn new(port: &ServicePort, endpoints: impl Iterator<Item = SocketAddr>) -> Option<Served> {
        let frontends = std::iter::once(&port.cluster_ip).chain(&port.external);
        (port.protocol != Protocol::Tcp).then(|| Served {
            protocol: port.protocol,
            frontends: frontends
                .map(|frontend| SocketAddr::new(frontend.address, frontend.port))
                .collect(),
            node_port: port.node_port,
            endpoints: endpoints.collect(),
        })
    }
}

/// Where packets of one protocol may be going, by where they were sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rightful {
    /// A Service's address and port, and its endpoints.
    frontends: HashMap<SocketAddr, HashSet<SocketAddr>>,
    /// The same of NodePorts.
    node_ports: HashMap<u16, HashSet<SocketAddr>>,
}

impl Rightful {
    /// Adds what a Service's state says for a protocol. A frontend that it had before only has no endpoints.
    fn add(&mut self, protocol: Protocol, before: &[Served], now: &[Served]) {
        for (state, holds) in [(before, false), (now, true)] {
            for served in state.iter().filter(|served| served.protocol == protocol) {
                let endpoints = || served.endpoints.iter().filter(|_| holds);
                for frontend in &served.frontends {
                    self.frontends
                        .entry(*frontend)
                        .or_default()
                        .extend(endpoints());
                }
                if let Some(node_port) = served.node_port {
                    self.node_ports
                        .entry(node_port)
                        .or_default()
                        .extend(endpoints());
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.node_ports.is_empty()
    }

    /// Whether a connection goes where it must not go any more.
    pub fn is_stale(&self, entry: &Entry) -> bool {
        let (sent_to, answered_by) = (entry.original.destination, entry.reply.source);
        if let Some(endpoints) = self.frontends.get(&sent_to) {
            return !endpoints.contains(&answered_by);
        }
        // A NodePort is one only if it was translated: the port may be a program's own on another address.
        let translated = sent_to != answered_by;
        let endpoints = self.node_ports.get(&sent_to.port());
        endpoints.is_some_and(|endpoints| translated && !endpoints.contains(&answered_by))
    }
}

/// Deletes the entries that changed Services leave behind, and returns how many. Errors are logged: the rules stand.
pub fn delete_stale(
    socket: &mut Socket,
    rules: &dyn FamilyRules,
    before: &[(ServiceName, Vec<Served>)],
) -> usize {
    let family = rules.family();
    let mut deleted = 0;
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let mut rightful = Rightful::default();
        for (name, before) in before {
            rightful.add(protocol, before, &rules.served(name));
        }
        if !rightful.is_empty() {
            deleted += delete_of(socket, family, protocol, &rightful);
        }
    }
    deleted
}

fn delete_of(
    socket: &mut Socket,
    family: Family,
    protocol: Protocol,
    rightful: &Rightful,
) -> usize {
    let stale = match socket.connections(family, protocol as u8, |entry| rightful.is_stale(entry)) {
        Ok(stale) => stale,
        Err(error) => {
            tracing::warn!(%error, %family, "stale connections could not be listed");
            return 0;
        }
    };
    let mut deleted = 0;
    for entry in &stale {
        match socket.delete_connection(entry) {
            Ok(()) => deleted += 1,
            Err(error) => tracing::warn!(%error, "a stale connection could not be deleted"),
        }
    }
    deleted
}
