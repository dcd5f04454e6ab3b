//! One family's table in the kernel: what the model says is put there, checked and repaired.

mod repair;
mod write;

use self::write::{add_difference, add_rules};
use crate::config::{Config, DetectLocal, NodePortAddresses};
use crate::ruleset::model::{Difference, Found, Labelled, Programmed};
use crate::ruleset::skeleton::{ChainRules, Skeleton};
use crate::ruleset::{Model, SetName, TABLE};
use crate::service::{NodeFacts, ResolvedService, ServiceName};
use ipnet::IpNet;
use linux::nftables::{Batch, BatchError, Family, Socket, Table};
use std::collections::BTreeSet;

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

    /// What the table holds.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The table as `nft list table` prints it.
    pub fn text(&mut self) -> String {
        self.rebuild_skeleton(BTreeSet::new());
        crate::ruleset::text::format_table(&self.skeleton, self.model.entries())
    }

    /// Begins a start: looks how the kernel's table has laid out its endpoints, so that the Services that
    /// [`FamilyTable::expect`] adds keep their places.
    ///
    /// # Errors
    /// The kernel's.
    pub fn adopt(&mut self, socket: &mut Socket) -> Result<(), BatchError> {
        self.model.adopt(self.found(socket)?);
        Ok(())
    }

    /// Lets the model hold a Service, without the kernel. Returns those that waited for what it had.
    pub fn expect(
        &mut self,
        name: &ServiceName,
        resolved: Option<&ResolvedService>,
    ) -> BTreeSet<ServiceName> {
        let next = self.model.plan(name, resolved);
        let (_, before) = self.model.replace(name, next);
        self.model.settle(name, before)
    }

    /// Ends a start: makes the kernel's table what the model says, whatever it holds now. An earlier proxy's elements
    /// are kept where they are right.
    ///
    /// # Errors
    /// What the kernel says to the table as such; a Service that it refuses is in the outcome.
    pub fn start(&mut self, socket: &mut Socket) -> Result<Outcome, BatchError> {
        self.model.adopt(Found::new());
        self.rebuild_skeleton(BTreeSet::new());
        let mut outcome = Outcome::default();
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
                        outcome.failures.push(Failure {
                            service,
                            reason: error.to_string(),
                        });
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

    /// What is known about the node, before the start.
    pub fn expect_node(&mut self, node: &NodeFacts, config: &Config) {
        (self.config, self.node_addresses) = for_node(node, config);
    }

    /// Whether any Service has this family.
    pub fn is_needed(&self) -> bool {
        self.model.services().next().is_some()
    }

    /// Takes what is known about the node, and changes the chains that it concerns.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_node(
        &mut self,
        socket: &mut Socket,
        node: &NodeFacts,
        config: &Config,
    ) -> Result<(), BatchError> {
        let (config, addresses) = for_node(node, config);
        if addresses == self.node_addresses && config.detect_local == self.config.detect_local {
            return Ok(());
        }
        (self.config, self.node_addresses) = (config, addresses);
        self.rebuild_skeleton(BTreeSet::new());
        self.repair(socket).map(drop).map_err(|(error, _)| error)
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
