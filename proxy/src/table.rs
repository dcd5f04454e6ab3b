//! One family's table in the kernel: what the model says is put there, checked and repaired.

use crate::config::Config;
use crate::ruleset::element::{CLASS_MASK, ListId};
use crate::ruleset::layout::Slots;
use crate::ruleset::model::{Difference, Found, Labelled, Programmed};
use crate::ruleset::skeleton::{ChainRules, POD_NETWORKS, Skeleton};
use crate::ruleset::{Entry, Model, SetName, TABLE};
use crate::service::{ResolvedService, ServiceName};
use ipnet::IpNet;
use linux::nftables::{
    Batch, BatchError, Element, ElementDump, ElementValue, Family, RuleDump, Socket, Table, Verdict,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A Service that the kernel refused, and its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The Service.
    pub service: ServiceName,
    /// The kernel's words.
    pub reason: String,
}

/// What became of some changes.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Elements that changed.
    pub changes: usize,
    /// What was refused; the others were applied.
    pub failures: Vec<Failure>,
    /// Services that waited for what is free now.
    pub waiting: BTreeSet<ServiceName>,
    /// What Services that changed had before.
    pub before: Vec<(ServiceName, Option<Programmed>)>,
}

impl Outcome {
    /// Adds what became of others.
    pub fn join(&mut self, other: Outcome) {
        self.changes += other.changes;
        self.failures.extend(other.failures);
        self.waiting.extend(other.waiting);
        self.before.extend(other.before);
    }
}

/// Services with what they have to be; `None` for one that is gone.
pub type Changes<'a> = Vec<(&'a ServiceName, Option<&'a ResolvedService>)>;

/// A family's table, and the model of what it holds.
pub struct FamilyTable {
    table: Table,
    config: Config,
    node_addresses: Vec<IpNet>,
    skeleton: Skeleton,
    model: Model,
}

impl FamilyTable {
    /// The table of a family; nothing is done to the kernel yet.
    pub fn new(family: Family, config: &Config, node_addresses: Vec<IpNet>) -> FamilyTable {
        let skeleton = Skeleton::new(family, config, &node_addresses, &BTreeSet::new());
        FamilyTable {
            table: Table::new(family, TABLE),
            config: config.clone(),
            node_addresses,
            skeleton,
            model: Model::new(family),
        }
    }

    /// What the table holds.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The table as `nft list table` prints it.
    pub fn text(&self) -> String {
        crate::ruleset::text::format_table(&self.skeleton, self.model.entries())
    }

    /// Makes the kernel's table what these Services need, whatever it holds now: an earlier proxy's elements are kept
    /// where they are right.
    ///
    /// # Errors
    /// What the kernel says to the table as such; a Service that it refuses is in the outcome.
    pub fn start(&mut self, socket: &mut Socket, services: Changes<'_>) -> Result<Outcome, BatchError> {
        self.model.adopt(self.found(socket)?);
        let mut outcome = Outcome::default();
        for (name, resolved) in services {
            let next = self.model.plan(name, resolved);
            let (_, before) = self.model.replace(name, next);
            outcome.waiting.extend(self.model.settle(name, before));
        }
        self.model.adopt(Found::new());
        self.rebuild_skeleton(BTreeSet::new());
        loop {
            match self.repair(socket) {
                Ok(changes) => {
                    outcome.changes += changes;
                    return Ok(outcome);
                }
                Err((error, services)) if services.is_empty() => return Err(error),
                Err((error, services)) => {
                    for service in services {
                        let (_, before) = self.model.replace(&service, None);
                        outcome.waiting.extend(self.model.settle(&service, before));
                        outcome.failures.push(Failure { service, reason: error.to_string() });
                    }
                }
            }
        }
    }

    /// Applies changes of Services in one transaction. If the kernel refuses it, the table is checked and repaired,
    /// and what is still refused is narrowed down to single Services.
    pub fn apply(&mut self, socket: &mut Socket, changes: Changes<'_>) -> Outcome {
        let error = match self.try_apply(socket, &changes) {
            Ok(outcome) => return outcome,
            Err(error) => error,
        };
        tracing::warn!(%error, family = %self.table.family, "the kernel refused a change of the rules; looking what it holds");
        let repaired = self.repair(socket);
        if let Err((error, _)) = &repaired {
            tracing::error!(%error, "the rules could not be repaired");
        }
        match self.try_apply(socket, &changes) {
            Ok(outcome) => outcome,
            Err(error) => self.narrow(socket, changes, &error),
        }
    }

    /// Halves a refused change until the Service is found that it is refused for.
    fn narrow(&mut self, socket: &mut Socket, mut changes: Changes<'_>, error: &BatchError) -> Outcome {
        if let [(service, _)] = changes[..] {
            let failure = Failure { service: service.clone(), reason: error.to_string() };
            return Outcome { failures: vec![failure], ..Outcome::default() };
        }
        let second = changes.split_off(changes.len() / 2);
        let mut outcome = Outcome::default();
        for half in [changes, second] {
            if half.is_empty() {
                continue;
            }
            let part = match self.try_apply(socket, &half) {
                Ok(outcome) => outcome,
                Err(error) => self.narrow(socket, half, &error),
            };
            outcome.join(part);
        }
        outcome
    }

    fn try_apply(&mut self, socket: &mut Socket, changes: &Changes<'_>) -> Result<Outcome, BatchError> {
        let mut difference = Difference::default();
        let mut before = Vec::with_capacity(changes.len());
        for (name, resolved) in changes {
            let next = self.model.plan(name, *resolved);
            let (part, old) = self.model.replace(name, next);
            difference.delete.extend(part.delete);
            difference.add.extend(part.add);
            before.push(((*name).clone(), old));
        }
        let mut batch = Batch::new();
        let old_skeleton = self.extend_affinities(&difference, &mut batch);
        add_difference(&mut batch, &self.table, difference);
        let changed = batch.len();
        match batch.commit(socket) {
            Ok(()) => {
                let mut outcome = Outcome { changes: changed, ..Outcome::default() };
                for (name, old) in &before {
                    outcome.waiting.extend(self.model.settle(name, old.clone()));
                }
                outcome.before = before;
                Ok(outcome)
            }
            Err(error) => {
                for (name, old) in before.into_iter().rev() {
                    self.model.undo(&name, old);
                }
                if let Some(skeleton) = old_skeleton {
                    self.skeleton = skeleton;
                }
                Err(error)
            }
        }
    }

    /// Adds chains for affinity timeouts that are new; returns the skeleton before, if it changed.
    fn extend_affinities(&mut self, difference: &Difference, batch: &mut Batch) -> Option<Skeleton> {
        let seconds = |labelled: &Labelled| match labelled.entry.set {
            SetName::AffinityLists(seconds) => Some(seconds),
            _ => None,
        };
        let wanted: BTreeSet<u32> = difference.add.iter().filter_map(seconds).collect();
        let have = |seconds: &u32| {
            let name = SetName::AffinityLists(*seconds).name();
            self.skeleton.sets.iter().any(|set| set.name == name)
        };
        if wanted.iter().all(have) {
            return None;
        }
        let old = self.skeleton.clone();
        self.rebuild_skeleton(wanted);
        for set in self.skeleton.sets.iter().filter(|set| !old.sets.contains(set)) {
            batch.add_set(&self.table, set);
        }
        let changed: Vec<&ChainRules> =
            self.skeleton.chains.iter().filter(|chain| !old.chains.contains(chain)).collect();
        for chain in &changed {
            batch.add_chain(&self.table, &chain.chain);
            batch.flush_chain(&self.table, &chain.chain.name);
        }
        for chain in changed {
            add_rules(batch, &self.table, chain);
        }
        Some(old)
    }

    /// Builds the skeleton for the affinities in use and some more.
    fn rebuild_skeleton(&mut self, more: BTreeSet<u32>) {
        let mut affinities = self.model.affinities();
        affinities.extend(more);
        self.skeleton = Skeleton::new(self.table.family, &self.config, &self.node_addresses, &affinities);
    }

    /// The node's addresses for NodePorts, before the start.
    pub fn expect_node_addresses(&mut self, addresses: Vec<IpNet>) {
        self.node_addresses = addresses;
    }

    /// Whether any Service has this family.
    pub fn is_needed(&self) -> bool {
        self.model.services().next().is_some()
    }

    /// Takes the node's addresses for NodePorts anew, and changes the chains that name them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_node_addresses(&mut self, socket: &mut Socket, addresses: Vec<IpNet>) -> Result<(), BatchError> {
        if addresses == self.node_addresses {
            return Ok(());
        }
        self.node_addresses = addresses;
        self.rebuild_skeleton(BTreeSet::new());
        self.repair(socket).map(drop).map_err(|(error, _)| error)
    }

    /// Makes the kernel's table what the model says, by the smallest change; if that is refused, the table is made
    /// anew. Returns how much was wrong; an error names the Services that it concerns, if the kernel told.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn repair(&mut self, socket: &mut Socket) -> Result<usize, (BatchError, BTreeSet<ServiceName>)> {
        match self.repair_by(socket, false) {
            Err((error, services)) if services.is_empty() => {
                tracing::warn!(%error, "the rules are made anew");
                self.repair_by(socket, true)
            }
            result => result,
        }
    }

    fn repair_by(&self, socket: &mut Socket, anew: bool) -> Result<usize, (BatchError, BTreeSet<ServiceName>)> {
        let plain = |error: linux::Error| (BatchError::Socket(error), BTreeSet::new());
        let mut batch = Batch::new();
        let mut labels: Vec<Arc<str>> = vec!["".into()];
        let anew = anew || !self.repair_skeleton(socket, &mut batch).map_err(plain)?;
        let difference = if anew {
            batch = Batch::new();
            self.create(&mut batch);
            let mut add: Vec<Labelled> = self.model.entries().collect();
            add.sort_by_key(|labelled| labelled.entry.set);
            Difference { add, ..Difference::default() }
        } else {
            self.compare_elements(socket, &mut batch).map_err(plain)?
        };
        add_labelled(&mut batch, &self.table, difference, &mut labels);
        let changes = batch.len();
        batch.commit(socket).map_err(|error| {
            let services = match &error {
                BatchError::Refused(refusals) => {
                    let tags = refusals.iter().filter_map(|refusal| refusal.tag);
                    tags.filter_map(|tag| service_of(labels.get(tag as usize)?)).collect()
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
        for set in self.skeleton.sets.iter().chain(self.skeleton.verdict_maps.iter().map(|map| &map.set)) {
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
            let element = Element { interval_end: end, ..Element::key(&key) };
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
        let wanted_sets: Vec<_> =
            self.skeleton.sets.iter().chain(self.skeleton.verdict_maps.iter().map(|map| &map.set)).collect();
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
            let hook = wanted.chain.base.map(|base| (base.hook as u32, base.priority));
            match chains.iter().find(|found| found.name == wanted.chain.name) {
                Some(found) if found.hook != hook => return Ok(false),
                Some(_) => {}
                None => batch.add_chain(&self.table, &wanted.chain),
            }
            let found = by_chain.remove(wanted.chain.name.as_str()).unwrap_or_default();
            let right = found.len() == wanted.rules.len()
                && found.iter().zip(&wanted.rules).all(|(found, wanted)| found.is_like(wanted));
            if !right {
                wrong.push((wanted, !found.is_empty()));
            }
        }
        for (chain, filled) in &wrong {
            if *filled {
                batch.flush_chain(&self.table, &chain.chain.name);
            }
        }
        let is_wanted = |name: &str| self.skeleton.chains.iter().any(|chain| chain.chain.name == name);
        let extra: Vec<&str> = chains.iter().map(|chain| chain.name.as_str()).filter(|name| !is_wanted(name)).collect();
        for name in &extra {
            batch.flush_chain(&self.table, name);
        }
        for (chain, _) in wrong {
            add_rules(batch, &self.table, chain);
        }
        for name in extra {
            batch.delete_chain(&self.table, name);
        }
        for set in sets.iter().filter(|set| !wanted_sets.iter().any(|wanted| wanted.name == set.name)) {
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
            if exists(name) { socket.elements(&self.table, name) } else { Ok(Vec::new()) }
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
                found.iter().any(|element| element.key == key.to_ne_bytes() && element.leads_to(verdict))
            };
            if found.len() != map.elements.len() || !map.elements.iter().all(|(key, verdict)| held(*key, verdict)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The difference between the kernel's elements and the model's. Elements that the model can't express are deleted
    /// in the batch.
    fn compare_elements(&self, socket: &mut Socket, batch: &mut Batch) -> linux::Result<Difference> {
        let mut wanted: BTreeMap<SetName, HashMap<Vec<u8>, Labelled>> = BTreeMap::new();
        for labelled in self.model.entries() {
            let mut key = labelled.entry.key.bytes().as_slice().to_vec();
            key.extend(labelled.entry.key.end_bytes().iter().flat_map(|end| end.as_slice().to_vec()));
            wanted.entry(labelled.entry.set).or_default().insert(key, labelled);
        }
        let affinities = self.model.affinities().into_iter().map(SetName::AffinityLists);
        let mut difference = Difference::default();
        let existing: BTreeSet<String> = socket.sets(&self.table)?.into_iter().map(|set| set.name).collect();
        for set in SetName::ALL.into_iter().chain(affinities) {
            let name = set.name();
            let mut wanted = wanted.remove(&set).unwrap_or_default();
            let found =
                if existing.contains(&*name) { socket.elements(&self.table, &name)? } else { Vec::new() };
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
                    batch.delete_element(&self.table, &name, &Element { key_end, ..Element::key(&element.key) });
                }
            }
            difference.add.extend(wanted.into_values());
        }
        difference.add.sort_unstable_by_key(|labelled| labelled.entry);
        Ok(difference)
    }

    /// The lists' slots in the kernel's table.
    fn found(&self, socket: &mut Socket) -> linux::Result<Found> {
        if !socket.tables()?.contains(&self.table) {
            return Ok(Found::new());
        }
        let existing: BTreeSet<String> = socket.sets(&self.table)?.into_iter().map(|set| set.name).collect();
        let mut read = |set: SetName| -> linux::Result<Vec<ElementDump>> {
            if existing.contains(&*set.name()) { socket.elements(&self.table, &set.name()) } else { Ok(Vec::new()) }
        };
        let handles: HashMap<Vec<u8>, Vec<u8>> =
            read(SetName::AffinityEndpoints)?.into_iter().map(|element| (element.key, element.value)).collect();
        let mut lists: HashMap<ListId, Vec<(u32, SocketAddr)>> = HashMap::new();
        let mut add = |key: &[u8], address: &[u8]| {
            if let (Some((list, slot)), Some(address)) = (parse_slot(key), parse_endpoint(address)) {
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
        let adopt = |(list, slots): (ListId, Vec<(u32, SocketAddr)>)| {
            let class = ((list.0 & CLASS_MASK) >> 28).checked_sub(1)?;
            Some((list.number(), Slots::adopt(class, &slots)?))
        };
        Ok(lists.into_iter().filter_map(adopt).collect())
    }
}

/// Deletes the tables of both families; what isn't there is no error.
///
/// # Errors
/// The kernel's.
pub fn delete_tables(socket: &mut Socket) -> Result<(), BatchError> {
    let mut batch = Batch::new();
    for table in socket.tables()? {
        if table.name == TABLE && table.family != Family::Inet {
            batch.delete_table(&table);
        }
    }
    batch.commit(socket)
}

fn service_of(label: &str) -> Option<ServiceName> {
    let (namespace, rest) = label.split_once('/')?;
    Some(ServiceName::new(namespace, rest.split_once(':').map_or(rest, |(name, _)| name)))
}

fn add_rules(batch: &mut Batch, table: &Table, chain: &ChainRules) {
    for rule in &chain.rules {
        batch.add_rule(table, &chain.chain.name, rule);
    }
}

fn add_verdict(batch: &mut Batch, table: &Table, set: &str, key: u32, verdict: &Verdict) {
    let key = key.to_ne_bytes();
    let value = Some(ElementValue::Verdict(verdict));
    batch.add_element(table, set, &Element { key: &key, value, ..Element::default() });
}

/// Deletions, then additions, each by set, so that they share messages.
fn add_difference(batch: &mut Batch, table: &Table, mut difference: Difference) {
    difference.delete.sort_by_key(|labelled| labelled.entry.set);
    difference.add.sort_by_key(|labelled| labelled.entry.set);
    add_labelled(batch, table, difference, &mut Vec::new());
}

/// Adds a difference; each element's tag is its label's index in `labels`.
fn add_labelled(batch: &mut Batch, table: &Table, difference: Difference, labels: &mut Vec<Arc<str>>) {
    for labelled in &difference.delete {
        add_entry(batch, table, &labelled.entry, None);
    }
    for labelled in &difference.add {
        if labels.last() != Some(&labelled.label) {
            labels.push(labelled.label.clone());
        }
        batch.tag(labels.len() as u32 - 1);
        add_entry(batch, table, &labelled.entry, Some(&labelled.label));
    }
}

/// Adds an entry with its owner's name, or deletes it if there is no name.
fn add_entry(batch: &mut Batch, table: &Table, entry: &Entry, label: Option<&str>) {
    let (key, end, value) = (entry.key.bytes(), entry.key.end_bytes(), entry.value.bytes());
    let has_value = label.is_some() && !value.as_slice().is_empty();
    let element = Element {
        key: key.as_slice(),
        key_end: end.as_ref().map(|end| end.as_slice()),
        interval_end: false,
        value: has_value.then(|| ElementValue::Data(value.as_slice())),
        comment: label,
    };
    let name = entry.set.name();
    if label.is_some() {
        batch.add_element(table, &name, &element);
    } else {
        batch.delete_element(table, &name, &element);
    }
}

/// Where networks begin, and the first address past each; past the last address there is no end.
fn network_ends(networks: &[IpNet]) -> Vec<(Vec<u8>, bool)> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut ends = Vec::new();
    for network in networks {
        ends.push((bytes(network.network()), false));
        let mut next = bytes(network.broadcast());
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
    Some((ListId(u32::from_ne_bytes(*list)), u32::from_ne_bytes(slot.try_into().ok()?)))
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
