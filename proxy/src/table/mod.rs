//! One family's table in the kernel: what the model says is put there, checked and repaired.

mod repair;
mod write;

use self::write::{add_difference, add_rules};
use crate::config::{Config, DetectLocal, NodePortAddresses};
use crate::conntrack::Served;
use crate::family::{Changes, Error, Failure, FamilyRules, Outcome};
use crate::ruleset::model::{Difference, Found, Labelled};
use crate::ruleset::skeleton::{ChainRules, Skeleton};
use crate::ruleset::{Model, SetName, TABLE};
use crate::service::{NodeFacts, ResolvedService, ServiceName};
use ipnet::IpNet;
use linux::nftables::{Batch, BatchError, Family, Socket, Table};
use std::collections::BTreeSet;
use std::net::IpAddr;

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
    pub fn new(family: Family, config: &Config, node: &NodeFacts) -> FamilyTable {
        let (config, node_addresses) = for_node(node, config);
        let skeleton = Skeleton::new(family, &config, &node_addresses, &BTreeSet::new());
        FamilyTable {
            table: Table::new(family, TABLE),
            config,
            node_addresses,
            skeleton,
            model: Model::new(family),
        }
    }

    /// Halves a refused change until the Service is found that it is refused for.
    fn narrow(
        &mut self,
        socket: &mut Socket,
        mut changes: Changes<'_>,
        error: &BatchError,
    ) -> Outcome {
        if let [(service, _)] = changes[..] {
            let failure = Failure {
                service: service.clone(),
                reason: error.to_string(),
            };
            return Outcome {
                failures: vec![failure],
                ..Outcome::default()
            };
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

    fn try_apply(
        &mut self,
        socket: &mut Socket,
        changes: &Changes<'_>,
    ) -> Result<Outcome, BatchError> {
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
                let mut outcome = Outcome {
                    changes: changed,
                    ..Outcome::default()
                };
                for (name, old) in before {
                    let served = old.as_ref().map(|old| old.served()).unwrap_or_default();
                    outcome.waiting.extend(self.model.settle(&name, old));
                    outcome.before.push((name, served));
                }
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
    fn extend_affinities(
        &mut self,
        difference: &Difference,
        batch: &mut Batch,
    ) -> Option<Skeleton> {
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
        for set in self
            .skeleton
            .sets
            .iter()
            .filter(|set| !old.sets.contains(set))
        {
            batch.add_set(&self.table, set);
        }
        let changed: Vec<&ChainRules> = self
            .skeleton
            .chains
            .iter()
            .filter(|chain| !old.chains.contains(chain))
            .collect();
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
        self.skeleton = Skeleton::new(
            self.table.family,
            &self.config,
            &self.node_addresses,
            &affinities,
        );
    }
}

impl FamilyRules for FamilyTable {
    fn family(&self) -> Family {
        self.table.family
    }

    fn expect_node(&mut self, node: &NodeFacts, config: &Config) {
        (self.config, self.node_addresses) = for_node(node, config);
    }

    /// So that the Services that [`FamilyRules::expect`] adds keep their places.
    fn adopt(&mut self, socket: &mut Socket) -> Result<(), Error> {
        let found = self.found(socket).map_err(BatchError::from)?;
        self.model.adopt(found);
        Ok(())
    }

    fn expect(
        &mut self,
        name: &ServiceName,
        resolved: Option<&ResolvedService>,
    ) -> BTreeSet<ServiceName> {
        let next = self.model.plan(name, resolved);
        let (_, before) = self.model.replace(name, next);
        self.model.settle(name, before)
    }

    fn start(&mut self, socket: &mut Socket) -> Result<Outcome, Error> {
        self.model.adopt(Found::new());
        self.rebuild_skeleton(BTreeSet::new());
        let mut outcome = Outcome {
            whole: true,
            ..Outcome::default()
        };
        loop {
            match self.repair(socket) {
                Ok(changes) => {
                    outcome.changes += changes;
                    return Ok(outcome);
                }
                Err((error, services)) if services.is_empty() => return Err(error.into()),
                Err((error, services)) => {
                    for service in services {
                        let (_, before) = self.model.replace(&service, None);
                        outcome.waiting.extend(self.model.settle(&service, before));
                        outcome.failures.push(Failure {
                            service,
                            reason: error.to_string(),
                        });
                    }
                }
            }
        }
    }

    /// One transaction. If the kernel refuses it, the table is checked and repaired, and what is still refused is
    /// narrowed down to single Services.
    fn apply(&mut self, socket: &mut Socket, changes: Changes<'_>) -> Outcome {
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

    fn set_node(
        &mut self,
        socket: &mut Socket,
        node: &NodeFacts,
        config: &Config,
    ) -> Result<(), Error> {
        let (config, addresses) = for_node(node, config);
        if addresses == self.node_addresses && config.detect_local == self.config.detect_local {
            return Ok(());
        }
        (self.config, self.node_addresses) = (config, addresses);
        self.rebuild_skeleton(BTreeSet::new());
        self.repair(socket)
            .map(drop)
            .map_err(|(error, _)| error.into())
    }

    /// A change that the kernel refuses tells of it.
    fn check(&mut self) {}

    fn is_pending(&self) -> bool {
        false
    }

    fn services(&self) -> usize {
        self.model.services().count()
    }

    fn local_addresses(&self) -> Vec<IpAddr> {
        self.model.local_addresses().collect()
    }

    fn without_local(&self) -> [u32; 2] {
        self.model.without_local()
    }

    fn served(&self, name: &ServiceName) -> Vec<Served> {
        self.model
            .get(name)
            .map(|service| service.served())
            .unwrap_or_default()
    }

    /// As `nft list table` prints it.
    fn text(&mut self) -> String {
        self.rebuild_skeleton(BTreeSet::new());
        crate::ruleset::text::format_table(&self.skeleton, self.model.entries())
    }
}

/// The configuration with what the Node says in it, and the networks in which its addresses serve NodePorts; all if
/// there are none.
fn for_node(node: &NodeFacts, config: &Config) -> (Config, Vec<IpNet>) {
    let mut config = config.clone();
    if config.detect_local == DetectLocal::NodeNetworks && !node.pod_networks.is_empty() {
        config.detect_local = DetectLocal::Networks(node.pod_networks.clone());
    }
    let of = |ipv6: bool| {
        node.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv6() == ipv6)
    };
    let addresses = match &config.node_port_addresses {
        NodePortAddresses::All => Vec::new(),
        NodePortAddresses::Networks(networks) => networks.clone(),
        NodePortAddresses::Primary => [false, true]
            .into_iter()
            .filter_map(of)
            .map(IpNet::from)
            .collect(),
    };
    (config, addresses)
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
