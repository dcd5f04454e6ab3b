//! One family's rules in the kernel, whatever the mode: what the worker drives.

use crate::config::Config;
use crate::conntrack::Served;
use crate::service::{NodeFacts, ResolvedService, ServiceName};
use linux::nftables::{BatchError, Family, Socket};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Why a family's rules can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's words.
    #[error(transparent)]
    Kernel(#[from] BatchError),
    /// The programs of `iptables`.
    #[error(transparent)]
    Iptables(#[from] crate::iptables::Error),
}

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
    /// Elements or rules that changed.
    pub changes: usize,
    /// Whether all were compared with the kernel's.
    pub whole: bool,
    /// What was refused; the others were applied.
    pub failures: Vec<Failure>,
    /// Services that waited for what is free now.
    pub waiting: BTreeSet<ServiceName>,
    /// What Services that changed served before.
    pub before: Vec<(ServiceName, Vec<Served>)>,
}

impl Outcome {
    /// Adds what became of others.
    pub fn join(&mut self, other: Outcome) {
        self.changes += other.changes;
        self.whole |= other.whole;
        self.failures.extend(other.failures);
        self.waiting.extend(other.waiting);
        self.before.extend(other.before);
    }
}

/// Services with what they have to be; `None` for one that is gone.
pub type Changes<'a> = Vec<(&'a ServiceName, Option<&'a ResolvedService>)>;

/// One family's rules, and the model of what the kernel holds.
pub trait FamilyRules {
    /// The family.
    fn family(&self) -> Family;

    /// Takes what is known about the node, before the start.
    fn expect_node(&mut self, node: &NodeFacts, config: &Config);

    /// Begins a start: looks what the kernel holds.
    ///
    /// # Errors
    /// If it can't be had, so that nothing can be done in this family.
    fn adopt(&mut self, socket: &mut Socket) -> Result<(), Error>;

    /// Lets the model hold a Service, without the kernel. Returns those that waited for what it had.
    fn expect(
        &mut self,
        name: &ServiceName,
        resolved: Option<&ResolvedService>,
    ) -> BTreeSet<ServiceName>;

    /// Ends a start: makes the kernel hold what the model says, whatever it holds now. What an earlier proxy left is
    /// kept where it is right.
    ///
    /// # Errors
    /// If nothing can be done in this family; a Service that is refused is in the outcome.
    fn start(&mut self, socket: &mut Socket) -> Result<Outcome, Error>;

    /// Applies changes of Services, and whatever else is [`FamilyRules::is_pending`].
    fn apply(&mut self, socket: &mut Socket, changes: Changes<'_>) -> Outcome;

    /// Takes what is known about the node, and changes the rules that it concerns, or leaves that to the next
    /// [`FamilyRules::apply`].
    ///
    /// # Errors
    /// The kernel's.
    fn set_node(
        &mut self,
        socket: &mut Socket,
        node: &NodeFacts,
        config: &Config,
    ) -> Result<(), Error>;

    /// Looks whether others took the rules away, so that they are pending.
    fn check(&mut self);

    /// Whether the kernel doesn't hold what the model says.
    fn is_pending(&self) -> bool;

    /// How many Services have this family.
    fn services(&self) -> usize;

    /// The endpoints on this node that get traffic.
    fn local_addresses(&self) -> Vec<IpAddr>;

    /// How many ports of Services have endpoints on other nodes only, by internalTrafficPolicy and
    /// externalTrafficPolicy.
    fn without_local(&self) -> [u32; 2];

    /// What connections without a handshake of a Service may be.
    fn served(&self, name: &ServiceName) -> Vec<Served>;

    /// The rules as text, as if the node had none yet.
    fn text(&mut self) -> String;
}
