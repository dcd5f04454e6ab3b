//! A Service as it stands in the table, and the entries that it comes to.

use super::element::{Entry, Handle, Key, ListId, SetName, Value};
use super::layout::Slots;
use crate::conntrack::Served;
use crate::service::{Frontend, Protocol, ServicePort};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// An entry, and whose it is (`namespace/name:port`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// The entry.
    pub entry: Entry,
    /// Its owner, for the reader of `nft list`.
    pub label: Arc<str>,
}

/// A list of endpoints as it is programmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List {
    pub(super) number: u32,
    pub(super) affinity: Option<u32>,
    pub(super) slots: Slots,
    /// With affinity: each endpoint's handle.
    pub(super) handles: BTreeMap<SocketAddr, Handle>,
}

impl List {
    pub(super) fn id(&self) -> ListId {
        ListId::new(self.number, self.slots.class(), self.affinity.is_some())
    }

    pub(super) fn entries(&self, mut add: impl FnMut(SetName, Key, Value)) {
        if let Some(seconds) = self.affinity {
            add(
                SetName::AffinityLists(seconds),
                Key::List(self.id()),
                Value::None,
            );
        }
        let id = self.id().without_class();
        for (slot, address) in self.slots.filled() {
            match self.handles.get(&address) {
                Some(handle) => {
                    add(
                        SetName::AffinitySlots,
                        Key::Slot(id, slot),
                        Value::Handle(*handle),
                    );
                    add(
                        SetName::AffinityEndpoints,
                        Key::Handle(*handle),
                        Value::Endpoint(address),
                    );
                }
                None => add(
                    SetName::Endpoints,
                    Key::Slot(id, slot),
                    Value::Endpoint(address),
                ),
            }
        }
    }
}

/// A Service's port as it is programmed. Its frontends are those that no other Service had before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortState {
    pub(super) port: ServicePort,
    pub(super) cluster: List,
    pub(super) local: Option<Box<List>>,
}

impl PortState {
    pub(super) fn entries(&self, out: &mut Vec<Labelled>) {
        let port = &self.port;
        let mut add = |set, key, value| {
            out.push(Labelled {
                entry: Entry { set, key, value },
                label: port.name.clone(),
            });
        };
        add(
            SetName::ClusterAddresses,
            Key::Address(port.cluster_ip.address),
            Value::None,
        );
        for frontend in port.restricted() {
            add(
                SetName::RestrictedServices,
                Key::Frontend(*frontend),
                Value::None,
            );
            for range in &port.source_ranges {
                add(
                    SetName::SourceRanges,
                    Key::Source(*range, *frontend),
                    Value::None,
                );
            }
        }
        if !port.any {
            for frontend in std::iter::once(&port.cluster_ip).chain(&port.external) {
                add(
                    SetName::NoEndpointServices,
                    Key::Frontend(*frontend),
                    Value::None,
                );
            }
            if let Some(node_port) = port.node_port {
                add(
                    SetName::NoEndpointNodePorts,
                    Key::NodePort(port.protocol, node_port),
                    Value::None,
                );
            }
            return;
        }
        self.frontend_entries(&mut add);
        if port.uses_cluster() {
            self.cluster.entries(&mut add);
        }
        if let Some(local) = &self.local {
            local.entries(&mut add);
        }
        for address in &port.on_node {
            add(SetName::Hairpin, Key::Hairpin(*address), Value::None);
        }
    }

    pub(super) fn frontend_entries(&self, add: &mut impl FnMut(SetName, Key, Value)) {
        let port = &self.port;
        let all = Value::List(self.cluster.id());
        let local = self.local.as_ref().map(|local| local.id());
        let inside = if port.internal_local {
            local.map_or(all, Value::List)
        } else {
            all
        };
        add(SetName::ClusterIps, Key::Frontend(port.cluster_ip), inside);
        let (external_ips, node_ports) = if port.external_local {
            (SetName::LocalExternalIps, SetName::LocalNodePorts)
        } else {
            (SetName::ExternalIps, SetName::NodePorts)
        };
        for frontend in &port.external {
            add(external_ips, Key::Frontend(*frontend), all);
        }
        if let Some(node_port) = port.node_port {
            add(node_ports, Key::NodePort(port.protocol, node_port), all);
        }
        if let (true, true, Some(local)) = (port.external_local, port.is_external(), local) {
            let list = self.cluster.id().without_class();
            add(SetName::LocalLists, Key::List(list), Value::List(local));
        }
    }

    pub(super) fn local_addresses(&self) -> BTreeSet<IpAddr> {
        let filled = |list: &List| -> Vec<SocketAddr> {
            list.slots.filled().map(|(_, address)| address).collect()
        };
        if self.port.on_node.is_empty() {
            return BTreeSet::new();
        }
        let local = self.local.as_deref().map(filled).unwrap_or_default();
        self.port
            .local_addresses(filled(&self.cluster).into_iter(), local.into_iter())
    }

    fn without_local(&self) -> [u32; 2] {
        let has_any = |list: &List| list.slots.filled().next().is_some();
        self.port
            .without_local(self.local.as_deref().is_none_or(has_any))
    }

    pub(super) fn lists(&self) -> impl Iterator<Item = &List> {
        std::iter::once(&self.cluster).chain(self.local.as_deref())
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = Claim> {
        let port = &self.port;
        let frontends = std::iter::once(port.cluster_ip).chain(port.external.iter().copied());
        frontends.map(Claim::Frontend).chain(
            port.node_port
                .map(|number| Claim::NodePort(port.protocol, number)),
        )
    }
}

/// A Service as it is programmed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    pub(super) ports: Box<[PortState]>,
}

impl Programmed {
    pub(super) fn entries(&self) -> Vec<Labelled> {
        let mut entries = Vec::new();
        for port in &self.ports {
            port.entries(&mut entries);
        }
        entries.sort_unstable_by_key(|labelled| labelled.entry);
        entries.dedup_by_key(|labelled| labelled.entry);
        entries
    }

    /// How many of its ports find no endpoint on this node, by internal and external policy.
    pub(super) fn without_local(&self) -> [u32; 2] {
        let counts = self.ports.iter().map(PortState::without_local);
        counts.fold([0; 2], |[a, b], [c, d]| [a + c, b + d])
    }

    pub(super) fn local_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ports.iter().flat_map(PortState::local_addresses)
    }

    /// The ports as they are served; their endpoints are in [`Programmed::endpoints`].
    pub fn ports(&self) -> impl Iterator<Item = &ServicePort> {
        self.ports.iter().map(|state| &state.port)
    }

    /// What its connections without a handshake may be.
    pub fn served(&self) -> Vec<Served> {
        let served = |state: &PortState| {
            let filled = state.lists().flat_map(|list| list.slots.filled());
            Served::new(&state.port, filled.map(|(_, address)| address))
        };
        self.ports.iter().filter_map(served).collect()
    }
}

/// What only one Service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Claim {
    Frontend(Frontend),
    NodePort(Protocol, u16),
}
