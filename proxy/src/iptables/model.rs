//! What the kernel is to hold in one family, and what has to be given to `iptables-restore` for it: pure.
//!
//! ```text
//! against(kernel's copy) -> all that differs: at the start, after a failure, when others meddled
//! since(states before)   -> what some Services changed
//! ```

use super::fixed;
use super::names::{FIXED, JUMPS, Jump, KUBELET_FIREWALL, SERVICES, Table, is_of_service};
use super::service::Service;
use super::settings::Settings;
use crate::service::{ResolvedService, ServiceName};
use std::collections::{BTreeMap, BTreeSet};

/// Rules by their chains, in order, without `-A` and the chain's name.
pub type Chains = BTreeMap<(Table, String), Vec<String>>;

/// With more endpoints than this the chains of single Services say nothing for the reader, as upstream.
const MOST_COMMENTED: usize = 1_000;

/// What is given to `iptables-restore`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patch {
    /// Chains with all their rules, whatever they held.
    pub write: Chains,
    /// Rules in built-in chains, to be put before all others.
    pub jumps: Vec<Jump>,
    /// Chains of nat to delete; no rule that is kept leads to them.
    pub delete: BTreeSet<String>,
}

impl Patch {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.write.is_empty() && self.jumps.is_empty() && self.delete.is_empty()
    }

    /// How many rules and chains it gives.
    pub fn len(&self) -> usize {
        self.rules(None) + self.jumps.len() + self.delete.len()
    }

    /// How many rules it writes, in one table or in all.
    pub fn rules(&self, table: Option<Table>) -> usize {
        let of_table = |key: &Table| table.is_none_or(|table| table == *key);
        let chains = self.write.iter().filter(|((table, _), _)| of_table(table));
        chains.map(|(_, rules)| rules.len()).sum()
    }
}

/// One family's Services and settings.
#[derive(Debug)]
pub struct Model {
    settings: Settings,
    services: BTreeMap<ServiceName, Service>,
    endpoints: usize,
    /// How many rules the kernel is to hold.
    rules: BTreeMap<Table, usize>,
}

/// What some Services have, in the chains that all share and in their own.
#[derive(Default)]
struct Part {
    ways: Chains,
    own: Chains,
}

impl Part {
    fn add(&mut self, service: &Service, model: &Model) {
        let ways = &mut self.ways;
        service.ways(&model.settings, &mut |table, chain: &str, rule| {
            push(ways, table, chain, rule);
        });
        let own = &mut self.own;
        let comments = model.has_comments();
        service.chains(
            &model.settings,
            comments,
            &mut |table, chain: &str, rule| {
                push(own, table, chain, rule);
            },
        );
    }

    fn rules(&self, of: Table) -> usize {
        let chains = self.ways.iter().chain(&self.own);
        let chains = chains.filter(|((table, _), _)| *table == of);
        chains.map(|(_, rules)| rules.len()).sum()
    }
}

fn push(chains: &mut Chains, table: Table, chain: &str, rule: String) {
    chains
        .entry((table, chain.to_owned()))
        .or_default()
        .push(rule);
}

impl Model {
    /// Without Services.
    pub fn new(settings: Settings) -> Model {
        Model {
            settings,
            services: BTreeMap::new(),
            endpoints: 0,
            rules: BTreeMap::new(),
        }
    }

    /// What the rules depend on beside the Services.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes other settings: then only [`Model::against`] tells what has to change.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// The Services.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &Service)> {
        self.services.iter()
    }

    /// A Service.
    pub fn get(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)
    }

    /// How many rules a table is to hold of ours.
    pub fn rules(&self, table: Table) -> usize {
        self.rules.get(&table).copied().unwrap_or(0)
    }

    /// A Service's part in this family.
    pub fn plan(&self, resolved: Option<&ResolvedService>) -> Option<Service> {
        let resolved = resolved?;
        let ports = resolved.ports.iter();
        let ports = ports.filter(|port| port.family == self.settings.family);
        let ports: Box<[_]> = ports.cloned().collect();
        (!ports.is_empty()).then_some(Service {
            ports,
            health_check_port: resolved.health_check_port,
        })
    }

    /// Puts a Service's state in the place of the one before, and returns that.
    pub fn replace(&mut self, name: &ServiceName, next: Option<Service>) -> Option<Service> {
        let count = |service: &Option<Service>| service.as_ref().map_or(0, Service::endpoints);
        self.endpoints += count(&next);
        let before = match next {
            Some(next) => self.services.insert(name.clone(), next),
            None => self.services.remove(name),
        };
        self.endpoints -= count(&before);
        before
    }

    fn has_comments(&self) -> bool {
        self.endpoints <= MOST_COMMENTED
    }

    /// All chains and rules.
    pub fn chains(&self) -> Chains {
        let mut part = Part::default();
        for service in self.services.values() {
            part.add(service, self);
        }
        let Part { ways, own } = part;
        let mut chains = own;
        for (table, chain) in self.fixed() {
            let key = (table, chain.to_owned());
            let rules = ways.get(&key).cloned().unwrap_or_default();
            chains.insert(key, self.complete(table, chain, rules));
        }
        chains
    }

    fn fixed(&self) -> impl Iterator<Item = (Table, &'static str)> {
        let firewall = (Table::Filter, KUBELET_FIREWALL);
        let firewall = self.settings.localhost.then_some(firewall);
        FIXED.into_iter().chain(firewall)
    }

    /// A chain that isn't a single Service's, with what the Services have in it.
    fn complete(&self, table: Table, chain: &str, mut ways: Vec<String>) -> Vec<String> {
        ways.extend(fixed::rules(table, chain, &self.settings));
        if (table, chain) == (Table::Nat, SERVICES) {
            ways.extend(fixed::node_ports(&self.settings));
        }
        ways
    }

    /// What has to change in what the kernel holds.
    pub fn against(&mut self, kernel: &Chains) -> Patch {
        let wanted = self.chains();
        self.rules.clear();
        for ((table, _), rules) in &wanted {
            *self.rules.entry(*table).or_default() += rules.len();
        }
        let is_stale = |table: &Table, chain: &str| *table == Table::Nat && is_of_service(chain);
        let delete = kernel
            .keys()
            .filter(|key| is_stale(&key.0, &key.1) && !wanted.contains_key(*key))
            .map(|(_, chain)| chain.clone())
            .collect();
        let is_right = |key: &(Table, String), rules: &Vec<String>| {
            let found = kernel.get(key);
            if key.1 == KUBELET_FIREWALL {
                // The kubelet may have rules there, too.
                let has = |rule| found.is_some_and(|found| found.contains(rule));
                return rules.iter().all(has);
            }
            found == Some(rules)
        };
        let jumps = JUMPS.into_iter().filter(|jump| {
            let wanted = jump.to != KUBELET_FIREWALL || self.settings.localhost;
            let found = kernel.get(&(jump.table, jump.from.to_owned()));
            let end = jump.end();
            let is_there = found.is_some_and(|found| found.iter().any(|rule| rule.ends_with(&end)));
            wanted && !is_there
        });
        Patch {
            jumps: jumps.collect(),
            delete,
            write: wanted
                .into_iter()
                .filter(|(key, rules)| !is_right(key, rules))
                .collect(),
        }
    }

    /// What the changes of some Services change, if the kernel holds their states before.
    pub fn since(&mut self, before: &[(ServiceName, Option<Service>)]) -> Patch {
        let (mut old, mut new) = (Part::default(), Part::default());
        for (name, before) in before {
            if let Some(before) = before {
                old.add(before, self);
            }
            if let Some(now) = self.services.get(name) {
                new.add(now, self);
            }
        }
        for table in Table::ALL {
            let count = self.rules.entry(table).or_default();
            *count = (*count + new.rules(table)).saturating_sub(old.rules(table));
        }
        let delete = old.own.keys().filter(|key| !new.own.contains_key(*key));
        let delete = delete.map(|(_, chain)| chain.clone()).collect();
        let mut write = self.shared(&old.ways, &new.ways);
        write.extend(
            new.own
                .into_iter()
                .filter(|(key, rules)| old.own.get(key) != Some(rules)),
        );
        Patch {
            write,
            jumps: Vec::new(),
            delete,
        }
    }

    /// The shared chains in which something differs, whole.
    fn shared(&self, old: &Chains, new: &Chains) -> Chains {
        let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        let differing = keys
            .into_iter()
            .filter(|key| old.get(*key) != new.get(*key));
        let mut chains: Chains = differing.map(|key| (key.clone(), Vec::new())).collect();
        if chains.is_empty() {
            return chains;
        }
        for service in self.services.values() {
            service.ways(&self.settings, &mut |table, chain: &str, rule| {
                if let Some(rules) = chains.get_mut(&(table, chain.to_owned())) {
                    rules.push(rule);
                }
            });
        }
        let complete = |((table, chain), rules): ((Table, String), Vec<String>)| {
            let rules = self.complete(table, &chain, rules);
            ((table, chain), rules)
        };
        chains.into_iter().map(complete).collect()
    }

    /// Whose a line for `iptables-restore` is, by the chains that it names.
    pub fn owner(&self, line: &str) -> Option<ServiceName> {
        let words = line.split(' ').map(|word| word.trim_start_matches(':'));
        let chains: Vec<&str> = words.filter(|word| is_of_service(word)).collect();
        let comments = self.has_comments();
        let has = |service: &Service| {
            let mut found = false;
            service.chains(&self.settings, comments, &mut |_, chain: &str, _| {
                found |= chains.contains(&chain);
            });
            found
        };
        let mut services = self.services.iter();
        let owner = services.find(|(_, service)| has(service));
        owner.map(|(name, _)| name.clone())
    }
}

#[cfg(test)]
mod tests;
