//! What the table holds for each Service, and what has to change in it: one family, pure.
//!
//! ```text
//! plan(service)  -> the Service's next state; takes numbers and frontends, changes nothing else
//! replace        -> the difference in elements, and the state before
//! settle / undo  -> after the kernel took the difference, or refused it
//! ```

use super::element::{Entry, Handle, Key, NUMBER_MASK, SetName};
use super::layout::Slots;
use super::programmed::{Claim, List, PortState};
pub use super::programmed::{Labelled, Programmed};
use crate::service::{ResolvedService, ServiceName, ServicePort};
use linux::nftables::Family;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// What has to change in the table: first all deletions, then all additions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Elements that go.
    pub delete: Vec<Labelled>,
    /// Elements that come.
    pub add: Vec<Labelled>,
}

impl Difference {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }
}

/// A frontend's owner, and who wants it too.
#[derive(Debug, Default)]
struct Claimants {
    owner: Option<ServiceName>,
    waiting: BTreeSet<ServiceName>,
}

/// Lists' slots as they were found in the kernel, by the list's number.
pub type Found = HashMap<u32, Slots>;

/// Everything that the table of one family holds for Services.
#[derive(Debug)]
pub struct Model {
    family: Family,
    services: HashMap<ServiceName, Programmed>,
    /// Entries that several Services may need.
    shared: HashMap<(SetName, IpAddr), u32>,
    /// Endpoints on this node that get traffic not only for want of better, and from how many ports.
    local_addresses: HashMap<IpAddr, u32>,
    /// Ports of Services without an endpoint on this node under a Local policy, internal and external.
    without_local: [u32; 2],
    claims: HashMap<Claim, Claimants>,
    list_numbers: HashSet<u32>,
    handle_numbers: HashSet<u32>,
    found: Found,
}

/// What tells an entry that several Services can need from others of its kind; `None` for one that only one can.
fn shared_key(entry: &Entry) -> Option<(SetName, IpAddr)> {
    match entry.key {
        Key::Hairpin(address) | Key::Address(address) => Some((entry.set, address)),
        _ => None,
    }
}

/// FNV-1a: the same in every process, so that a restarted proxy gives its lists the same numbers.
fn stable_hash(parts: &[&[u8]]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0])) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash ^ hash >> 32) as u32
}

/// Takes the first number from `start` on that is free.
fn take_number(used: &mut HashSet<u32>, start: u32, mask: u32) -> u32 {
    let mut number = start & mask;
    while !used.insert(number) {
        number = (number + 1) & mask;
    }
    number
}

impl Model {
    /// An empty table's.
    pub fn new(family: Family) -> Model {
        Model {
            family,
            services: HashMap::new(),
            shared: HashMap::new(),
            local_addresses: HashMap::new(),
            without_local: [0; 2],
            claims: HashMap::new(),
            list_numbers: HashSet::new(),
            handle_numbers: HashSet::new(),
            found: Found::new(),
        }
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Gives the slots that the kernel's table has: a Service that is planned for the first time keeps its layout.
    pub fn adopt(&mut self, found: Found) {
        self.found = found;
    }

    /// A Service as it is programmed.
    pub fn get(&self, name: &ServiceName) -> Option<&Programmed> {
        self.services.get(name)
    }

    /// The Services that are programmed.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &Programmed)> {
        self.services.iter()
    }

    /// The endpoints on this node that get traffic.
    pub fn local_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.local_addresses.keys().copied()
    }

    /// How many ports of Services have endpoints on other nodes only, by internalTrafficPolicy and
    /// externalTrafficPolicy.
    pub fn without_local(&self) -> [u32; 2] {
        self.without_local
    }

    /// All entries that the table must hold.
    pub fn entries(&self) -> impl Iterator<Item = Labelled> {
        let mut seen = HashSet::new();
        self.services
            .values()
            .flat_map(Programmed::entries)
            .filter(move |labelled| shared_key(&labelled.entry).is_none_or(|key| seen.insert(key)))
    }

    /// The timeouts of the affinities that are in use, in seconds.
    pub fn affinities(&self) -> BTreeSet<u32> {
        let ports = self.services.values().flat_map(|service| &*service.ports);
        ports.filter_map(|state| state.cluster.affinity).collect()
    }

    /// The Service's next state. Must be followed by [`Model::replace`] for the same Service.
    pub fn plan(
        &mut self,
        name: &ServiceName,
        resolved: Option<&ResolvedService>,
    ) -> Option<Programmed> {
        let resolved = resolved?;
        let before = self.services.get(name).cloned().unwrap_or_default();
        let family = self.family;
        let ports = resolved.ports.iter().filter(|port| port.family == family);
        let ports: Box<[PortState]> = ports
            .filter_map(|port| self.plan_port(name, port, &before))
            .collect();
        (!ports.is_empty()).then_some(Programmed { ports })
    }

    fn plan_port(
        &mut self,
        name: &ServiceName,
        port: &ServicePort,
        before: &Programmed,
    ) -> Option<PortState> {
        let mut port = port.clone();
        if !self.claim(name, Claim::Frontend(port.cluster_ip)) {
            tracing::warn!(service = %port.name, address = %port.cluster_ip.address, "another Service has this address and port");
            return None;
        }
        port.external
            .retain(|frontend| self.claim(name, Claim::Frontend(*frontend)));
        port.balanced
            .retain(|frontend| port.external.contains(frontend));
        port.node_port = port
            .node_port
            .filter(|number| self.claim(name, Claim::NodePort(port.protocol, *number)));
        let same = |state: &&PortState| {
            state.port.name == port.name && state.port.protocol == port.protocol
        };
        let before = before.ports.iter().find(same);
        // A client that stays must not stay with an endpoint that another policy gave it.
        let same_policies = before.is_some_and(|state| {
            state.port.internal_local == port.internal_local
                && state.port.external_local == port.external_local
        });
        let needs_local = port.internal_local || port.external_local;
        let cluster = self.plan_list(
            &port,
            "cluster",
            &port.cluster,
            before.map(|state| &state.cluster),
            same_policies,
        );
        let local = needs_local.then(|| {
            self.plan_list(
                &port,
                "local",
                &port.local,
                before.and_then(|state| state.local.as_deref()),
                same_policies,
            )
        });
        // What is programmed is in the lists now.
        port.cluster = Vec::new();
        port.local = Vec::new();
        Some(PortState {
            port,
            cluster,
            local: local.map(Box::new),
        })
    }

    fn plan_list(
        &mut self,
        port: &ServicePort,
        kind: &str,
        wanted: &[SocketAddr],
        before: Option<&List>,
        keep_handles: bool,
    ) -> List {
        let affinity = port.affinity.map(|affinity| affinity.seconds);
        let number = match before {
            Some(list) => list.number,
            None => {
                let start = stable_hash(&[
                    port.name.as_bytes(),
                    &[port.protocol as u8],
                    kind.as_bytes(),
                ]);
                take_number(&mut self.list_numbers, start, NUMBER_MASK)
            }
        };
        let found = self.found.remove(&number);
        let slots = before
            .map(|list| &list.slots)
            .or(found.as_ref())
            .unwrap_or(&Slots::default())
            .deal(wanted);
        let mut handles = BTreeMap::new();
        if affinity.is_some() {
            let known = before.filter(|_| keep_handles).map(|list| &list.handles);
            for (_, address) in slots.filled() {
                let known = known.and_then(|handles| handles.get(&address)).copied();
                let handle = known.unwrap_or_else(|| self.take_handle(port, number, address));
                handles.insert(address, handle);
            }
        }
        List {
            number,
            affinity,
            slots,
            handles,
        }
    }

    fn take_handle(&mut self, port: &ServicePort, list: u32, address: SocketAddr) -> Handle {
        let policies = [u8::from(port.internal_local), u8::from(port.external_local)];
        let start = stable_hash(&[
            &list.to_le_bytes(),
            &policies,
            address.to_string().as_bytes(),
        ]);
        let mask = Handle::new(u32::MAX).number();
        Handle::new(take_number(&mut self.handle_numbers, start, mask))
    }

    /// Whether the Service has it now; if another has, it waits.
    fn claim(&mut self, name: &ServiceName, claim: Claim) -> bool {
        let claimants = self.claims.entry(claim).or_default();
        match &claimants.owner {
            Some(owner) if owner != name => {
                claimants.waiting.insert(name.clone());
                false
            }
            _ => {
                claimants.owner = Some(name.clone());
                claimants.waiting.remove(name);
                true
            }
        }
    }

    /// Puts a Service's next state in the place of the one before; returns what changes and the state before.
    pub fn replace(
        &mut self,
        name: &ServiceName,
        next: Option<Programmed>,
    ) -> (Difference, Option<Programmed>) {
        let before = self.services.remove(name);
        let old = before.as_ref().map(Programmed::entries).unwrap_or_default();
        let new = next.as_ref().map(Programmed::entries).unwrap_or_default();
        let without = |state: Option<&Programmed>| state.map_or([0; 2], Programmed::without_local);
        let (come, gone) = (without(next.as_ref()), without(before.as_ref()));
        for ((count, come), gone) in self.without_local.iter_mut().zip(come).zip(gone) {
            *count = *count + come - gone;
        }
        for address in next.iter().flat_map(Programmed::local_addresses) {
            *self.local_addresses.entry(address).or_default() += 1;
        }
        for address in before.iter().flat_map(Programmed::local_addresses) {
            if let Some(count) = self.local_addresses.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.local_addresses.remove(&address);
                }
            }
        }
        if let Some(next) = next {
            self.services.insert(name.clone(), next);
        }
        (self.difference(old, new), before)
    }

    /// The difference of two sorted lists; of shared entries only the first that comes and the last that goes count.
    fn difference(&mut self, old: Vec<Labelled>, new: Vec<Labelled>) -> Difference {
        let mut difference = Difference::default();
        let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return difference,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some(new)) => old.entry.cmp(&new.entry),
            };
            match order {
                std::cmp::Ordering::Equal => {
                    old.next();
                    new.next();
                }
                std::cmp::Ordering::Less => {
                    let gone = old.next().filter(|gone| self.release_shared(&gone.entry));
                    difference.delete.extend(gone);
                }
                std::cmp::Ordering::Greater => {
                    let come = new.next().filter(|come| self.take_shared(&come.entry));
                    difference.add.extend(come);
                }
            }
        }
    }

    /// Whether the entry wasn't needed before.
    fn take_shared(&mut self, entry: &Entry) -> bool {
        let Some(key) = shared_key(entry) else {
            return true;
        };
        let count = self.shared.entry(key).or_default();
        *count += 1;
        *count == 1
    }

    /// Whether the entry isn't needed any more.
    fn release_shared(&mut self, entry: &Entry) -> bool {
        let Some(key) = shared_key(entry) else {
            return true;
        };
        let count = self.shared.get(&key).copied().unwrap_or(1);
        if count > 1 {
            self.shared.insert(key, count - 1);
        } else {
            self.shared.remove(&key);
        }
        count <= 1
    }

    /// The kernel took the change: what the Service had before is free. Returns who waited for it.
    pub fn settle(
        &mut self,
        name: &ServiceName,
        before: Option<Programmed>,
    ) -> BTreeSet<ServiceName> {
        let now = self.services.get(name).cloned();
        self.release(name, before.unwrap_or_default(), now.unwrap_or_default())
    }

    /// The kernel refused the change: the state before holds again. Returns who waited for what is free now.
    pub fn undo(
        &mut self,
        name: &ServiceName,
        before: Option<Programmed>,
    ) -> BTreeSet<ServiceName> {
        let (_, refused) = self.replace(name, before);
        let now = self.services.get(name).cloned();
        self.release(name, refused.unwrap_or_default(), now.unwrap_or_default())
    }

    /// Frees what `gone` has and `kept` hasn't.
    fn release(
        &mut self,
        name: &ServiceName,
        gone: Programmed,
        kept: Programmed,
    ) -> BTreeSet<ServiceName> {
        let numbers = |state: &Programmed| -> HashSet<u32> {
            state
                .ports
                .iter()
                .flat_map(PortState::lists)
                .map(|list| list.number)
                .collect()
        };
        let handles = |state: &Programmed| -> HashSet<u32> {
            let lists = state.ports.iter().flat_map(PortState::lists);
            lists
                .flat_map(|list| list.handles.values().map(|handle| handle.number()))
                .collect()
        };
        for number in numbers(&gone).difference(&numbers(&kept)) {
            self.list_numbers.remove(number);
        }
        for number in handles(&gone).difference(&handles(&kept)) {
            self.handle_numbers.remove(number);
        }
        let claims = |state: &Programmed| -> BTreeSet<Claim> {
            state.ports.iter().flat_map(PortState::claims).collect()
        };
        let mut waiting = BTreeSet::new();
        for claim in claims(&gone).difference(&claims(&kept)) {
            let Some(claimants) = self.claims.remove(claim) else {
                continue;
            };
            if claimants.owner.as_ref() == Some(name) {
                waiting.extend(claimants.waiting);
            } else {
                self.claims.insert(*claim, claimants);
            }
        }
        waiting
    }
}

#[cfg(test)]
mod tests;
