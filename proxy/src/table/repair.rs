//! The kernel's table against the model: what is wrong is put right by the smallest change.

use super::FamilyTable;
use super::write::{add_labelled, add_rules, add_verdict};
use crate::ruleset::SetName;
use crate::ruleset::element::ListId;
use crate::ruleset::layout::Slots;
use crate::ruleset::model::{Difference, Found, Labelled};
use crate::ruleset::skeleton::POD_NETWORKS;
use crate::service::ServiceName;
use ipnet::IpNet;
use linux::nftables::{
    Batch, BatchError, Element, ElementDump, RuleDump, Socket, Verdict, address_bytes,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

impl FamilyTable {
    /// Makes the kernel's table what the model says, by the smallest change; if that is refused, the table is made
    /// anew. Returns how much was wrong; an error names the Services that it concerns, if the kernel told.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn repair(
        &mut self,
        socket: &mut Socket,
    ) -> Result<usize, (BatchError, BTreeSet<ServiceName>)> {
        match self.repair_by(socket, false) {
            Err((error, services)) if services.is_empty() => {
                tracing::warn!(%error, "the rules are made anew");
                self.repair_by(socket, true)
            }
            result => result,
        }
    }

    fn repair_by(
        &self,
        socket: &mut Socket,
        anew: bool,
    ) -> Result<usize, (BatchError, BTreeSet<ServiceName>)> {
        let plain = |error: linux::Error| (BatchError::Socket(error), BTreeSet::new());
        let mut batch = Batch::new();
        let mut labels: Vec<Arc<str>> = vec!["".into()];
        let anew = anew || !self.repair_skeleton(socket, &mut batch).map_err(plain)?;
        let difference = if anew {
            batch = Batch::new();
            self.create(&mut batch);
            let mut add: Vec<Labelled> = self.model.entries().collect();
            add.sort_by_key(|labelled| labelled.entry.set);
            Difference {
                add,
                ..Difference::default()
            }
        } else {
            self.compare_elements(socket, &mut batch).map_err(plain)?
        };
        add_labelled(&mut batch, &self.table, difference, &mut labels);
        let changes = batch.len();
        batch.commit(socket).map_err(|error| {
            let services = match &error {
                BatchError::Refused(refusals) => {
                    let tags = refusals.iter().filter_map(|refusal| refusal.tag);
                    tags.filter_map(|tag| service_of(labels.get(tag as usize)?))
                        .collect()
                }
                BatchError::Socket(_) => BTreeSet::new(),
            };
            (error, services)
        })?;
        Ok(changes)
    }

    /// The table anew, with all but the Services' elements; an old one is deleted in the same transaction.
    fn create(&self, batch: &mut Batch) {
        batch.delete_table(&self.table);
        batch.add_table(&self.table);
        for chain in &self.skeleton.chains {
            batch.add_chain(&self.table, &chain.chain);
        }
        for set in self
            .skeleton
            .sets
            .iter()
            .chain(self.skeleton.verdict_maps.iter().map(|map| &map.set))
        {
            batch.add_set(&self.table, set);
        }
        // Rules before elements: a rule costs in proportion to the elements of the maps that it names.
        for chain in &self.skeleton.chains {
            add_rules(batch, &self.table, chain);
        }
        for map in &self.skeleton.verdict_maps {
            for (key, verdict) in &map.elements {
                add_verdict(batch, &self.table, &map.set.name, *key, verdict);
            }
        }
        for (key, end) in network_ends(&self.skeleton.pod_networks) {
            let element = Element {
                interval_end: end,
                ..Element::key(&key)
            };
            batch.add_element(&self.table, POD_NETWORKS, &element);
        }
    }

    /// Adds what the table lacks in chains, sets and rules, and deletes what it has too much. False if the table isn't
    /// there, or if something can't be changed in place.
    fn repair_skeleton(&self, socket: &mut Socket, batch: &mut Batch) -> linux::Result<bool> {
        let chains = socket.chains(&self.table)?;
        if chains.is_empty() {
            return Ok(false);
        }
        let sets = socket.sets(&self.table)?;
        let wanted_sets: Vec<_> = self
            .skeleton
            .sets
            .iter()
            .chain(self.skeleton.verdict_maps.iter().map(|map| &map.set))
            .collect();
        for set in &wanted_sets {
            match sets.iter().find(|found| found.name == set.name) {
                Some(found) if !found.is_like(set) => return Ok(false),
                Some(_) => {}
                None => batch.add_set(&self.table, set),
            }
        }
        let rules = socket.rules(&self.table)?;
        let mut by_chain: HashMap<&str, Vec<&RuleDump>> = HashMap::new();
        for rule in &rules {
            by_chain.entry(&rule.chain).or_default().push(rule);
        }
        let mut wrong = Vec::new();
        for wanted in &self.skeleton.chains {
            let hook = wanted
                .chain
                .base
                .map(|base| (base.hook as u32, base.priority));
            match chains.iter().find(|found| found.name == wanted.chain.name) {
                Some(found) if found.hook != hook => return Ok(false),
                Some(_) => {}
                None => batch.add_chain(&self.table, &wanted.chain),
            }
            let found = by_chain
                .remove(wanted.chain.name.as_str())
                .unwrap_or_default();
            let right = found.len() == wanted.rules.len()
                && found
                    .iter()
                    .zip(&wanted.rules)
                    .all(|(found, wanted)| found.is_like(wanted));
            if !right {
                wrong.push((wanted, !found.is_empty()));
            }
        }
        for (chain, filled) in &wrong {
            if *filled {
                batch.flush_chain(&self.table, &chain.chain.name);
            }
        }
        let is_wanted = |name: &str| {
            self.skeleton
                .chains
                .iter()
                .any(|chain| chain.chain.name == name)
        };
        let extra: Vec<&str> = chains
            .iter()
            .map(|chain| chain.name.as_str())
            .filter(|name| !is_wanted(name))
            .collect();
        for name in &extra {
            batch.flush_chain(&self.table, name);
        }
        for (chain, _) in wrong {
            add_rules(batch, &self.table, chain);
        }
        for name in extra {
            batch.delete_chain(&self.table, name);
        }
        for set in sets
            .iter()
            .filter(|set| !wanted_sets.iter().any(|wanted| wanted.name == set.name))
        {
            batch.delete_set(&self.table, &set.name);
        }
        self.static_elements_are_right(socket, &sets)
    }

    /// The pods' networks and the verdict maps: if they aren't right, the table is made anew.
    fn static_elements_are_right(
        &self,
        socket: &mut Socket,
        sets: &[linux::nftables::SetDump],
    ) -> linux::Result<bool> {
        let exists = |name: &str| sets.iter().any(|set| set.name == name);
        let read = |socket: &mut Socket, name: &str| {
            if exists(name) {
                socket.elements(&self.table, name)
            } else {
                Ok(Vec::new())
            }
        };
        let mut found: Vec<(Vec<u8>, bool)> = read(socket, POD_NETWORKS)?
            .into_iter()
            .map(|element| (element.key, element.interval_end))
            // The kernel may keep a mark at the very beginning, where no range ends.
            .filter(|(key, end)| !(*end && key.iter().all(|byte| *byte == 0)))
            .collect();
        found.sort_unstable();
        let mut wanted = network_ends(&self.skeleton.pod_networks);
        wanted.sort_unstable();
        if found != wanted {
            return Ok(false);
        }
        for map in &self.skeleton.verdict_maps {
            let found = read(socket, &map.set.name)?;
            let held = |key: u32, verdict: &Verdict| {
                found
                    .iter()
                    .any(|element| element.key == key.to_ne_bytes() && element.leads_to(verdict))
            };
            if found.len() != map.elements.len()
                || !map
                    .elements
                    .iter()
                    .all(|(key, verdict)| held(*key, verdict))
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The difference between the kernel's elements and the model's. Elements that the model can't express are deleted
    /// in the batch.
    fn compare_elements(
        &self,
        socket: &mut Socket,
        batch: &mut Batch,
    ) -> linux::Result<Difference> {
        let mut wanted: BTreeMap<SetName, HashMap<Vec<u8>, Labelled>> = BTreeMap::new();
        for labelled in self.model.entries() {
            let mut key = labelled.entry.key.bytes().as_slice().to_vec();
            key.extend(
                labelled
                    .entry
                    .key
                    .end_bytes()
                    .iter()
                    .flat_map(|end| end.as_slice().to_vec()),
            );
            wanted
                .entry(labelled.entry.set)
                .or_default()
                .insert(key, labelled);
        }
        let affinities = self
            .model
            .affinities()
            .into_iter()
            .map(SetName::AffinityLists);
        let mut difference = Difference::default();
        let existing: BTreeSet<String> = socket
            .sets(&self.table)?
            .into_iter()
            .map(|set| set.name)
            .collect();
        for set in SetName::ALL.into_iter().chain(affinities) {
            let name = set.name();
            let mut wanted = wanted.remove(&set).unwrap_or_default();
            let found = if existing.contains(&*name) {
                socket.elements(&self.table, &name)?
            } else {
                Vec::new()
            };
            for element in found {
                let mut key = element.key.clone();
                key.extend(element.key_end.iter().flatten());
                let right = wanted.get(&key).is_some_and(|labelled| {
                    labelled.entry.value.bytes().as_slice() == element.value
                });
                if right {
                    wanted.remove(&key);
                } else {
                    let key_end = element.key_end.as_deref();
                    batch.delete_element(
                        &self.table,
                        &name,
                        &Element {
                            key_end,
                            ..Element::key(&element.key)
                        },
                    );
                }
            }
            difference.add.extend(wanted.into_values());
        }
        difference
            .add
            .sort_unstable_by_key(|labelled| labelled.entry);
        Ok(difference)
    }

    /// The lists' slots in the kernel's table.
    pub(super) fn found(&self, socket: &mut Socket) -> linux::Result<Found> {
        if !socket.tables()?.contains(&self.table) {
            return Ok(Found::new());
        }
        let existing: BTreeSet<String> = socket
            .sets(&self.table)?
            .into_iter()
            .map(|set| set.name)
            .collect();
        let mut read = |set: SetName| -> linux::Result<Vec<ElementDump>> {
            if existing.contains(&*set.name()) {
                socket.elements(&self.table, &set.name())
            } else {
                Ok(Vec::new())
            }
        };
        let handles: HashMap<Vec<u8>, Vec<u8>> = read(SetName::AffinityEndpoints)?
            .into_iter()
            .map(|element| (element.key, element.value))
            .collect();
        let mut lists: HashMap<ListId, Vec<(u32, SocketAddr)>> = HashMap::new();
        let mut add = |key: &[u8], address: &[u8]| {
            if let (Some((list, slot)), Some(address)) = (parse_slot(key), parse_endpoint(address))
            {
                lists.entry(list).or_default().push((slot, address));
            }
        };
        for element in read(SetName::Endpoints)? {
            add(&element.key, &element.value);
        }
        for element in read(SetName::AffinitySlots)? {
            if let Some(address) = handles.get(&element.value) {
                add(&element.key, address);
            }
        }
        let mut classes: HashMap<u32, u32> = HashMap::new();
        for map in [
            SetName::ClusterIps,
            SetName::ExternalIps,
            SetName::LocalExternalIps,
            SetName::NodePorts,
        ]
        .into_iter()
        .chain([SetName::LocalNodePorts, SetName::LocalLists])
        {
            for element in read(map)? {
                let list = element
                    .value
                    .try_into()
                    .ok()
                    .map(|bytes| ListId(u32::from_ne_bytes(bytes)));
                classes.extend(list.and_then(|list| Some((list.number(), list.class()?))));
            }
        }
        let adopt = |(list, slots): (ListId, Vec<(u32, SocketAddr)>)| {
            let class = *classes.get(&list.number())?;
            Some((list.number(), Slots::adopt(class, &slots)?))
        };
        Ok(lists.into_iter().filter_map(adopt).collect())
    }
}

fn service_of(label: &str) -> Option<ServiceName> {
    let (namespace, rest) = label.split_once('/')?;
    Some(ServiceName::new(
        namespace,
        rest.split_once(':').map_or(rest, |(name, _)| name),
    ))
}

/// Where networks begin, and the first address past each; past the last address there is no end.
fn network_ends(networks: &[IpNet]) -> Vec<(Vec<u8>, bool)> {
    let mut ends = Vec::new();
    for network in networks {
        ends.push((address_bytes(network.network()), false));
        let mut next = address_bytes(network.broadcast());
        let carried = next.iter_mut().rev().all(|byte| {
            *byte = byte.wrapping_add(1);
            *byte == 0
        });
        if !carried {
            ends.push((next, true));
        }
    }
    ends
}

fn parse_slot(key: &[u8]) -> Option<(ListId, u32)> {
    let (list, slot) = key.split_first_chunk::<4>()?;
    Some((
        ListId(u32::from_ne_bytes(*list)),
        u32::from_ne_bytes(slot.try_into().ok()?),
    ))
}

fn parse_endpoint(value: &[u8]) -> Option<SocketAddr> {
    let (address, port) = value.split_at_checked(value.len().checked_sub(4)?)?;
    let port = u16::from_be_bytes([*port.first()?, *port.get(1)?]);
    let address = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    Some(SocketAddr::new(address, port))
}
