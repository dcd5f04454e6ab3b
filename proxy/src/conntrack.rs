//! Connections without a handshake stay with an endpoint that is gone, for as long as packets come: their entries are
//! deleted when endpoints change. TCP is left to close by itself.

use crate::ruleset::model::Programmed;
use crate::service::{Protocol, ServiceName};
use crate::table::FamilyTable;
use linux::conntrack::Entry;
use linux::nftables::{Family, Socket};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

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
    fn add(&mut self, protocol: Protocol, before: Option<&Programmed>, now: Option<&Programmed>) {
        for (state, holds) in [(before, false), (now, true)] {
            for (port, endpoints) in state.into_iter().flat_map(Programmed::endpoints) {
                if port.protocol != protocol {
                    continue;
                }
                let endpoints = if holds { endpoints } else { HashSet::new() };
                for frontend in std::iter::once(&port.cluster_ip).chain(&port.external) {
                    let key = SocketAddr::new(frontend.address, frontend.port);
                    self.frontends.entry(key).or_default().extend(&endpoints);
                }
                if let Some(node_port) = port.node_port {
                    self.node_ports
                        .entry(node_port)
                        .or_default()
                        .extend(&endpoints);
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
    table: &FamilyTable,
    before: &[(ServiceName, Option<Programmed>)],
) -> usize {
    let family = table.model().family();
    let mut deleted = 0;
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let mut rightful = Rightful::default();
        for (name, before) in before {
            rightful.add(protocol, before.as_ref(), table.model().get(name));
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
