//! What is to be in the kernel, kept up to date by single changes.
//!
//! A change touches what depends on it and no more: a pod's new label is looked up in the selectors of its namespace and
//! in those that reach across namespaces, and ends as few elements of sets.

use super::facts::{Direction, Name, NamedPort, PeerSelector, PodFacts, PolicyFacts};
use super::source::Change;
use api::selector::Labels;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

/// A set whose elements follow the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PodSet {
    /// Addresses of the pods that a selector means.
    Selector(u32),
    /// Addresses with the protocol and number of the port that they call so.
    Port(u32),
}

/// An element of such a set: an address, and a port in sets of ports.
pub type Element = (IpAddr, Option<(u8, u16)>);

/// A policy with the number that its chains and sets carry; a changed policy has a new one.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its number.
    pub number: u32,
    /// What it says.
    pub facts: PolicyFacts,
}

#[derive(Debug)]
struct Selector {
    number: u32,
    uses: usize,
    selector: PeerSelector,
}

#[derive(Debug)]
struct Port {
    number: u32,
    uses: usize,
}

/// What isolates an address, by direction: the numbers of policies; `None` where nothing does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Isolation {
    /// To the address.
    pub ingress: Option<BTreeSet<u32>>,
    /// From the address.
    pub egress: Option<BTreeSet<u32>>,
}

impl Isolation {
    /// Of one direction.
    pub fn of(&self, direction: Direction) -> Option<&BTreeSet<u32>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// What changed since the last [`Model::take_difference`].
#[derive(Debug, Default)]
pub struct Difference {
    /// Sets to be made.
    pub new_sets: BTreeSet<PodSet>,
    /// Sets to be deleted; nothing refers to them any more.
    pub gone_sets: BTreeSet<PodSet>,
    /// Policies to be made, by number.
    pub new_policies: BTreeSet<u32>,
    /// Policies to be deleted, with what they said.
    pub gone_policies: BTreeMap<u32, PolicyFacts>,
    /// Elements of sets that stay: whether each is there now.
    pub elements: BTreeMap<(PodSet, Element), bool>,
    /// Addresses whose isolation changed: what it was and is.
    pub addresses: BTreeMap<IpAddr, (Isolation, Isolation)>,
}

impl Difference {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.new_sets.is_empty()
            && self.gone_sets.is_empty()
            && self.new_policies.is_empty()
            && self.gone_policies.is_empty()
            && self.elements.is_empty()
            && self.addresses.is_empty()
    }
}

/// All that is known, and what follows from it.
#[derive(Debug, Default)]
pub struct Model {
    namespaces: HashMap<String, Labels>,
    pods: HashMap<Name, PodFacts>,
    pods_of: HashMap<String, BTreeSet<String>>,
    policies: BTreeMap<Name, Policy>,
    names: HashMap<u32, Name>,
    policies_of: HashMap<String, BTreeSet<String>>,
    selectors: HashMap<String, Selector>,
    /// Keys of selectors by the one namespace that they mean; the others are under `None`.
    selectors_of: HashMap<Option<String>, BTreeSet<String>>,
    ports: HashMap<NamedPort, Port>,
    /// How many pods stand behind an element: an address may pass from one pod to the next.
    sets: BTreeMap<PodSet, HashMap<Element, u32>>,
    /// Pods of this node by address.
    local: HashMap<IpAddr, BTreeSet<Name>>,
    isolated: BTreeMap<IpAddr, Isolation>,
    last_number: u32,
    difference: Difference,
    /// Addresses whose isolation is to be looked at.
    dirty: HashSet<IpAddr>,
    /// Whether elements were there when the difference began.
    before: BTreeMap<(PodSet, Element), bool>,
}

impl Model {
    /// Takes one change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Policy(name, facts) => self.set_policy(name, facts.map(|facts| *facts)),
            Change::Pod(name, facts) => self.set_pod(name, facts.map(|facts| *facts)),
            Change::Namespace(name, labels) => self.set_namespace(name, labels),
        }
    }

    /// The policies by name.
    pub fn policies(&self) -> &BTreeMap<Name, Policy> {
        &self.policies
    }

    /// The pods that have addresses.
    pub fn pods(&self) -> impl Iterator<Item = &Name> {
        self.pods.keys()
    }

    /// The namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &String> {
        self.namespaces.keys()
    }

    /// A policy by its number.
    pub fn policy(&self, number: u32) -> Option<(&Name, &PolicyFacts)> {
        let name = self.names.get(&number)?;
        self.policies
            .get(name)
            .filter(|policy| policy.number == number)
            .map(|policy| (name, &policy.facts))
    }

    /// The number of a selector's set.
    pub fn selector(&self, key: &str) -> Option<u32> {
        self.selectors.get(key).map(|selector| selector.number)
    }

    /// The number of a named port's set.
    pub fn port(&self, port: &NamedPort) -> Option<u32> {
        self.ports.get(port).map(|port| port.number)
    }

    /// The sets with their elements.
    pub fn sets(&self) -> impl Iterator<Item = (PodSet, impl Iterator<Item = &Element>)> {
        self.sets
            .iter()
            .map(|(set, elements)| (*set, elements.keys()))
    }

    /// The elements of one set.
    pub fn elements(&self, set: PodSet) -> impl Iterator<Item = &Element> {
        self.sets.get(&set).into_iter().flat_map(HashMap::keys)
    }

    /// This node's isolated addresses.
    pub fn isolated(&self) -> &BTreeMap<IpAddr, Isolation> {
        &self.isolated
    }

    /// Who has an address of this node's.
    pub fn owner(&self, address: IpAddr) -> Option<&Name> {
        self.local.get(&address)?.first()
    }

    /// What changed since it was asked last.
    pub fn take_difference(&mut self) -> Difference {
        for address in std::mem::take(&mut self.dirty) {
            let now = self.isolation(address);
            let none = Isolation::default();
            let before = if now == none {
                self.isolated.remove(&address)
            } else {
                self.isolated.insert(address, now.clone())
            };
            let before = before.unwrap_or_default();
            if before != now {
                let first = self.difference.addresses.remove(&address);
                let before = first.map_or(before, |(first, _)| first);
                self.difference.addresses.insert(address, (before, now));
            }
        }
        for ((set, element), was) in std::mem::take(&mut self.before) {
            let is = self
                .sets
                .get(&set)
                .is_some_and(|elements| elements.contains_key(&element));
            let stays = self.sets.contains_key(&set) && !self.difference.new_sets.contains(&set);
            if stays && is != was {
                self.difference.elements.insert((set, element), is);
            }
        }
        std::mem::take(&mut self.difference)
    }

    fn next_number(&mut self) -> u32 {
        self.last_number = self.last_number.wrapping_add(1);
        self.last_number
    }

    fn set_policy(&mut self, name: Name, facts: Option<PolicyFacts>) {
        let before = self.policies.get(&name);
        if before.map(|policy| &policy.facts) == facts.as_ref() {
            return;
        }
        let before = self.policies.remove(&name);
        if let Some(facts) = &facts {
            // First what is new, so that a set that stays in use stays.
            self.use_sets(facts);
            let (number, facts) = (self.next_number(), facts.clone());
            self.difference.new_policies.insert(number);
            self.names.insert(number, name.clone());
            self.policies.insert(name.clone(), Policy { number, facts });
            self.policies_of
                .entry(name.namespace.clone())
                .or_default()
                .insert(name.name.clone());
        } else if let Some(names) = self.policies_of.get_mut(&name.namespace) {
            names.remove(&name.name);
        }
        if let Some(before) = &before {
            self.names.remove(&before.number);
            self.release_sets(&before.facts);
            if !self.difference.new_policies.remove(&before.number) {
                self.difference
                    .gone_policies
                    .insert(before.number, before.facts.clone());
            }
        }
        let selects = |pod: &PodFacts| {
            let old = before.as_ref().map(|policy| &policy.facts);
            old.into_iter()
                .chain(&facts)
                .any(|facts| facts.pods.matches(&pod.labels))
        };
        for pod in self.pods_of.get(&name.namespace).into_iter().flatten() {
            let pod = self.pods.get(&Name::new(&name.namespace, pod));
            if let Some(pod) = pod.filter(|pod| pod.local && selects(pod)) {
                self.dirty.extend(&pod.addresses);
            }
        }
    }

    fn set_pod(&mut self, name: Name, facts: Option<PodFacts>) {
        if self.pods.get(&name) == facts.as_ref() {
            return;
        }
        let before = self.pods.remove(&name);
        self.move_elements(before.as_ref(), facts.as_ref());
        let local = |pod: &Option<PodFacts>| -> Vec<IpAddr> {
            let pod = pod.iter().filter(|pod| pod.local);
            pod.flat_map(|pod| pod.addresses.iter().copied()).collect()
        };
        for address in local(&before) {
            if let Some(pods) = self.local.get_mut(&address) {
                pods.remove(&name);
                if pods.is_empty() {
                    self.local.remove(&address);
                }
            }
            self.dirty.insert(address);
        }
        for address in local(&facts) {
            self.local.entry(address).or_default().insert(name.clone());
            self.dirty.insert(address);
        }
        let names = self.pods_of.entry(name.namespace.clone()).or_default();
        if let Some(facts) = facts {
            names.insert(name.name.clone());
            self.pods.insert(name, facts);
        } else {
            names.remove(&name.name);
            if names.is_empty() {
                self.pods_of.remove(&name.namespace);
            }
        }
    }

    fn set_namespace(&mut self, name: String, labels: Option<Labels>) {
        if self.namespaces.get(&name) == labels.as_ref() {
            return;
        }
        let pods: Vec<PodFacts> = self
            .pods_of
            .get(&name)
            .into_iter()
            .flatten()
            .filter_map(|pod| self.pods.get(&Name::new(&name, pod)).cloned())
            .collect();
        for pod in &pods {
            self.move_elements(Some(pod), None);
        }
        match labels {
            Some(labels) => self.namespaces.insert(name, labels),
            None => self.namespaces.remove(&name),
        };
        for pod in &pods {
            self.move_elements(None, Some(pod));
        }
    }

    /// What isolates an address: the policies of the pods that have it.
    fn isolation(&self, address: IpAddr) -> Isolation {
        let mut isolation = Isolation::default();
        for name in self.local.get(&address).into_iter().flatten() {
            let Some(pod) = self.pods.get(name) else {
                continue;
            };
            for policy in self.policies_of.get(&name.namespace).into_iter().flatten() {
                let policy = self.policies.get(&Name::new(&name.namespace, policy));
                let Some(policy) = policy.filter(|policy| policy.facts.pods.matches(&pod.labels))
                else {
                    continue;
                };
                if policy.facts.ingress.is_some() {
                    let ingress = isolation.ingress.get_or_insert_default();
                    ingress.insert(policy.number);
                }
                if policy.facts.egress.is_some() {
                    let egress = isolation.egress.get_or_insert_default();
                    egress.insert(policy.number);
                }
            }
        }
        isolation
    }

    /// Takes a pod's elements out of all sets and puts those in that it has now.
    fn move_elements(&mut self, before: Option<&PodFacts>, now: Option<&PodFacts>) {
        for (pod, added) in [(before, false), (now, true)] {
            for (set, element) in pod.map(|pod| self.elements_of(pod)).unwrap_or_default() {
                self.count(set, element, added);
            }
        }
    }

    fn elements_of(&self, pod: &PodFacts) -> Vec<(PodSet, Element)> {
        let labels = self.namespaces.get(&pod.namespace);
        let own = self.selectors_of.get(&Some(pod.namespace.clone()));
        let all = self.selectors_of.get(&None);
        let selectors = own.into_iter().chain(all).flatten();
        let selectors = selectors.filter_map(|key| self.selectors.get(key));
        let meant = selectors.filter(|selector| selector.selector.matches(pod, labels));
        let mut elements = Vec::new();
        for selector in meant {
            let set = PodSet::Selector(selector.number);
            elements.extend(pod.addresses.iter().map(|address| (set, (*address, None))));
        }
        for (port, number) in &pod.ports {
            if let Some(known) = self.ports.get(port) {
                elements.extend(port_elements(known.number, pod, port, *number));
            }
        }
        elements
    }

    fn count(&mut self, set: PodSet, element: Element, added: bool) {
        let elements = self.sets.entry(set).or_default();
        let count = elements.get(&element).copied().unwrap_or(0);
        self.before.entry((set, element)).or_insert(count > 0);
        match if added {
            count + 1
        } else {
            count.saturating_sub(1)
        } {
            0 => elements.remove(&element),
            count => elements.insert(element, count),
        };
    }

    fn use_sets(&mut self, facts: &PolicyFacts) {
        for selector in selectors(facts) {
            if let Some(known) = self.selectors.get_mut(&selector.key) {
                known.uses += 1;
                continue;
            }
            let number = self.next_number();
            self.make_set(PodSet::Selector(number));
            let only = selector.only_namespace();
            let pods: Vec<&PodFacts> = match &only {
                Some(namespace) => {
                    let names = self.pods_of.get(namespace).into_iter().flatten();
                    names
                        .filter_map(|name| self.pods.get(&Name::new(namespace, name)))
                        .collect()
                }
                None => self.pods.values().collect(),
            };
            let meant = pods
                .into_iter()
                .filter(|pod| selector.matches(pod, self.namespaces.get(&pod.namespace)));
            let elements: Vec<Element> = meant
                .flat_map(|pod| pod.addresses.iter().map(|address| (*address, None)))
                .collect();
            for element in elements {
                self.count(PodSet::Selector(number), element, true);
            }
            self.selectors_of
                .entry(only)
                .or_default()
                .insert(selector.key.clone());
            let known = Selector {
                number,
                uses: 1,
                selector: selector.clone(),
            };
            self.selectors.insert(selector.key.clone(), known);
        }
        for port in named_ports(facts) {
            if let Some(known) = self.ports.get_mut(port) {
                known.uses += 1;
                continue;
            }
            let number = self.next_number();
            self.make_set(PodSet::Port(number));
            let pods = self.pods.values();
            let elements: Vec<_> = pods
                .flat_map(|pod| {
                    let same = pod.ports.iter().filter(|(name, _)| name == port);
                    same.flat_map(|(name, port)| port_elements(number, pod, name, *port))
                })
                .collect();
            for (set, element) in elements {
                self.count(set, element, true);
            }
            self.ports.insert(port.clone(), Port { number, uses: 1 });
        }
    }

    fn release_sets(&mut self, facts: &PolicyFacts) {
        for selector in selectors(facts) {
            let Some(known) = self.selectors.get_mut(&selector.key) else {
                continue;
            };
            known.uses -= 1;
            if known.uses == 0 {
                let number = known.number;
                self.selectors.remove(&selector.key);
                let only = selector.only_namespace();
                if let Some(keys) = self.selectors_of.get_mut(&only) {
                    keys.remove(&selector.key);
                    if keys.is_empty() {
                        self.selectors_of.remove(&only);
                    }
                }
                self.drop_set(PodSet::Selector(number));
            }
        }
        for port in named_ports(facts) {
            let Some(known) = self.ports.get_mut(port) else {
                continue;
            };
            known.uses -= 1;
            if known.uses == 0 {
                let number = known.number;
                self.ports.remove(port);
                self.drop_set(PodSet::Port(number));
            }
        }
    }

    fn make_set(&mut self, set: PodSet) {
        self.sets.insert(set, HashMap::new());
        self.difference.new_sets.insert(set);
    }

    fn drop_set(&mut self, set: PodSet) {
        self.sets.remove(&set);
        if !self.difference.new_sets.remove(&set) {
            self.difference.gone_sets.insert(set);
        }
    }
}

impl PeerSelector {
    fn only_namespace(&self) -> Option<String> {
        match &self.namespaces {
            super::facts::Namespaces::Only(name) => Some(name.clone()),
            super::facts::Namespaces::Labelled(_) => None,
        }
    }
}

fn port_elements<'a>(
    set: u32,
    pod: &'a PodFacts,
    port: &'a NamedPort,
    number: u16,
) -> impl Iterator<Item = (PodSet, Element)> + 'a {
    let what = Some((port.protocol.0, number));
    pod.addresses
        .iter()
        .map(move |address| (PodSet::Port(set), (*address, what)))
}

fn rules(facts: &PolicyFacts) -> impl Iterator<Item = &super::facts::RuleFacts> {
    let directions = [&facts.ingress, &facts.egress];
    directions.into_iter().flatten().flatten()
}

fn selectors(facts: &PolicyFacts) -> impl Iterator<Item = &PeerSelector> {
    let peers = rules(facts).filter_map(|rule| rule.peers.as_ref());
    peers.flat_map(|peers| &peers.selectors)
}

fn named_ports(facts: &PolicyFacts) -> impl Iterator<Item = &NamedPort> {
    let ports = rules(facts).filter_map(|rule| rule.ports.as_ref());
    ports.flat_map(|ports| &ports.named)
}
