//! The mode for hosts that need `iptables`: kube-proxy's chains, as kube-proxy 1.36 fills them, so that other programs
//! find what they expect, and each takes over from the other without a gap.
//!
//! ```text
//! ServicePort -> service (rules) -> Model -> Patch -> text -> iptables-restore --noflush
//!                                     ^ against: what iptables-save prints; since: the states before
//! ```

mod fixed;
pub mod model;
pub mod names;
mod program;
pub mod service;
pub mod settings;
pub mod text;
pub mod words;

pub use model::{Model, Patch};
pub use program::Error;
pub use settings::Settings;

use self::names::{CANARY, Table};
use self::program::Programs;
use self::service::Service;
use crate::config::{Config, IptablesSettings};
use crate::conntrack::Served;
use crate::family::{self, Changes, Failure, FamilyRules, Outcome};
use crate::metrics::Metrics;
use crate::service::{NodeFacts, ResolvedService, ServiceName, ServicePort};
use linux::nftables::{Family, Socket};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// All is compared with the kernel's copy at least this often, as upstream.
const WHOLE_PERIOD: Duration = Duration::from_secs(3_600);

type States = Vec<(ServiceName, Option<Service>)>;

/// A patch that `iptables-restore` didn't take, and the line that it failed at, if it says so.
struct Refused {
    error: Error,
    line: Option<String>,
}

/// A family's chains in the kernel, and the model of what they hold.
pub struct FamilyChains {
    own: IptablesSettings,
    model: Model,
    programs: Programs,
    metrics: Metrics,
    /// The kernel may not hold what the model says, so that all has to be compared.
    doubt: bool,
    last_whole: Option<Instant>,
    /// What connections may be of before the changes that the kernel doesn't hold yet.
    before: Vec<(ServiceName, Vec<Served>)>,
    random_fully: bool,
    drop_invalid: bool,
}

impl FamilyChains {
    /// A family's chains; nothing is done to the kernel yet.
    pub fn new(
        family: Family,
        own: IptablesSettings,
        config: &Config,
        node: &NodeFacts,
        metrics: Metrics,
    ) -> FamilyChains {
        let drop_invalid = !crate::sysctl::takes_packets_out_of_window();
        FamilyChains {
            own,
            model: Model::new(Settings {
                drop_invalid,
                ..Settings::new(family, own, config, node)
            }),
            programs: Programs::new(family),
            metrics,
            doubt: true,
            last_whole: None,
            before: Vec::new(),
            random_fully: true,
            drop_invalid,
        }
    }

    /// The settings with what the host's programs and kernel have in them.
    fn settings(&self, node: &NodeFacts, config: &Config) -> Settings {
        Settings {
            random_fully: self.random_fully,
            drop_invalid: self.drop_invalid,
            ..Settings::new(self.family(), self.own, config, node)
        }
    }

    /// Brings the kernel to what the model says. A Service that the kernel refuses gets the state before.
    fn sync(&mut self, mut states: States) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.doubt {
            let patch = self.model.since(&states);
            match self.restore(&patch) {
                Ok(()) => outcome.changes = patch.len(),
                Err(Refused { error, .. }) => {
                    tracing::warn!(%error, family = %self.family(), "a change of the rules was refused; looking what the kernel holds");
                    self.metrics.partial_restore_failed(self.family());
                    self.doubt = true;
                }
            }
        }
        if self.doubt {
            outcome.whole = true;
            if let Err(error) = self.sync_whole(&mut states, &mut outcome) {
                tracing::error!(%error, family = %self.family(), "the rules could not be changed; trying again");
                return outcome;
            }
            self.doubt = false;
            self.last_whole = Some(Instant::now());
        }
        for table in [Table::Filter, Table::Nat] {
            let rules = self.model.rules(table);
            self.metrics.set_iptables_rules(self.family(), table, rules);
        }
        outcome.before = std::mem::take(&mut self.before);
        outcome
    }

    /// Compares all with the kernel's copy. Refused Services are left out one by one.
    fn sync_whole(&mut self, states: &mut States, outcome: &mut Outcome) -> Result<(), Error> {
        loop {
            let patch = self.model.against(&self.programs.save()?);
            let Refused { error, line } = match self.restore(&patch) {
                Ok(()) => {
                    outcome.changes = patch.len();
                    return Ok(());
                }
                Err(refused) => refused,
            };
            let owner = line.as_deref().and_then(|line| self.model.owner(line));
            let Some(service) = owner else {
                return Err(error);
            };
            // First the state that it had, then none.
            let known = states.iter().position(|(name, _)| *name == service);
            let before = known.and_then(|index| states.swap_remove(index).1);
            self.model.replace(&service, before);
            let reason = error.to_string();
            outcome
                .failures
                .retain(|failure: &Failure| failure.service != service);
            outcome.failures.push(Failure { service, reason });
        }
    }

    fn give(&self, patch: &Patch) -> Result<(), Refused> {
        let text = text::format_patch(patch);
        self.programs.restore(&text).map_err(|error| {
            let line = match &error {
                Error::Failed { line, .. } => *line,
                Error::Run { .. } => None,
            };
            let line = line.and_then(|line| text.lines().nth(line.checked_sub(1)?));
            let line = line.map(str::to_owned);
            Refused { error, line }
        })
    }

    /// Gives a patch to the kernel. Chains that can't be deleted, since another's rule leads there, are left
    /// empty.
    fn restore(&self, patch: &Patch) -> Result<(), Refused> {
        if patch.is_empty() {
            return Ok(());
        }
        for table in [Table::Filter, Table::Nat] {
            let rules = patch.rules(Some(table));
            self.metrics
                .set_last_iptables_rules(self.family(), table, rules);
        }
        let Err(refused) = self.give(patch) else {
            return Ok(());
        };
        self.metrics.restore_failed(self.family());
        if patch.delete.is_empty() {
            return Err(refused);
        }
        let mut kept = patch.clone();
        let stale = std::mem::take(&mut kept.delete);
        let emptied = stale
            .into_iter()
            .map(|chain| ((Table::Nat, chain), Vec::new()));
        kept.write.extend(emptied);
        self.give(&kept)?;
        let error = refused.error;
        tracing::warn!(%error, family = %self.family(), "stale chains could not be deleted: does a rule of another program lead to them?");
        Ok(())
    }
}

impl FamilyRules for FamilyChains {
    fn family(&self) -> Family {
        self.model.settings().family
    }

    fn expect_node(&mut self, node: &NodeFacts, config: &Config) {
        self.model.set_settings(self.settings(node, config));
    }

    fn adopt(&mut self, _: &mut Socket) -> Result<(), family::Error> {
        Ok(())
    }

    fn expect(
        &mut self,
        name: &ServiceName,
        resolved: Option<&ResolvedService>,
    ) -> BTreeSet<ServiceName> {
        let next = self.model.plan(resolved);
        self.model.replace(name, next);
        BTreeSet::new()
    }

    /// What can't be done now is [`FamilyRules::is_pending`].
    fn start(&mut self, _: &mut Socket) -> Result<Outcome, family::Error> {
        self.random_fully = self.programs.observe_version()?;
        let settings = Settings {
            random_fully: self.random_fully,
            ..self.model.settings().clone()
        };
        self.model.set_settings(settings);
        if self.family() == Family::Ip6 && self.services() == 0 {
            // The kernel may have no such family, which is for the caller to know.
            let patch = self.model.against(&self.programs.save()?);
            self.restore(&patch).map_err(|refused| refused.error)?;
        }
        let services = self.model.services();
        self.before = services
            .map(|(name, _)| (name.clone(), Vec::new()))
            .collect();
        Ok(self.sync(Vec::new()))
    }

    fn apply(&mut self, _: &mut Socket, changes: Changes<'_>) -> Outcome {
        let mut states = States::new();
        for (name, resolved) in changes {
            let next = self.model.plan(resolved);
            if self.model.get(name) == next.as_ref() {
                continue;
            }
            self.before.push((name.clone(), self.served(name)));
            let before = self.model.replace(name, next);
            states.push((name.clone(), before));
        }
        self.sync(states)
    }

    fn set_node(
        &mut self,
        _: &mut Socket,
        node: &NodeFacts,
        config: &Config,
    ) -> Result<(), family::Error> {
        let settings = self.settings(node, config);
        if settings != *self.model.settings() {
            self.model.set_settings(settings);
            self.doubt = true;
        }
        Ok(())
    }

    fn check(&mut self) {
        let gone = || {
            let mut tables = Table::ALL.into_iter().rev();
            tables.any(|table| !self.programs.has_chain(table, CANARY))
        };
        let is_old = |last: Instant| last.elapsed() >= WHOLE_PERIOD;
        if self.last_whole.is_none_or(is_old) {
            self.doubt = true;
        } else if gone() {
            tracing::warn!(family = %self.family(), "somebody took the rules away");
            self.doubt = true;
        }
    }

    fn is_pending(&self) -> bool {
        self.doubt
    }

    fn services(&self) -> usize {
        self.model.services().count()
    }

    fn local_addresses(&self) -> Vec<IpAddr> {
        let of = |port: &ServicePort| {
            port.local_addresses(port.cluster.iter().copied(), port.local.iter().copied())
        };
        let services = self.model.services();
        let ports = services.flat_map(|(_, service)| &service.ports);
        ports.flat_map(of).collect()
    }

    fn without_local(&self) -> [u32; 2] {
        let services = self.model.services();
        let ports = services.flat_map(|(_, service)| &service.ports);
        let counts = ports.map(|port| port.without_local(!port.local.is_empty()));
        counts.fold([0; 2], |[a, b], [c, d]| [a + c, b + d])
    }

    fn served(&self, name: &ServiceName) -> Vec<Served> {
        let ports = self
            .model
            .get(name)
            .into_iter()
            .flat_map(|service| &service.ports);
        let endpoints = |port: &ServicePort| {
            let lists = [&port.cluster, &port.local];
            lists.into_iter().flatten().copied().collect::<Vec<_>>()
        };
        ports
            .filter_map(|port| Served::new(port, endpoints(port).into_iter()))
            .collect()
    }

    fn text(&mut self) -> String {
        text::format_patch(&self.model.against(&model::Chains::new()))
    }
}

/// Deletes the chains of this mode and of kube-proxy's, of both families and kinds. None there is no error, and neither
/// is a host without `iptables`, whose rules of the older kind, if any, only that could delete.
///
/// # Errors
/// The kernel's, and those of the programs.
pub fn delete(socket: &mut Socket) -> Result<(), family::Error> {
    crate::leftovers::delete_iptables(socket)?;
    let kinds = [
        (Family::Ip, "/proc/thread-self/net/ip_tables_names"),
        (Family::Ip6, "/proc/thread-self/net/ip6_tables_names"),
    ];
    for (family, names) in kinds {
        let has_tables = std::fs::read_to_string(names).is_ok_and(|text| !text.trim().is_empty());
        if has_tables {
            delete_legacy(family)?;
        }
    }
    Ok(())
}

fn delete_legacy(family: Family) -> Result<(), Error> {
    // Where there is but one kind, its programs may have no other name.
    let found = [Programs::legacy(family), Programs::new(family)]
        .into_iter()
        .find_map(|programs| programs.save().ok().map(|kernel| (programs, kernel)));
    let Some((programs, kernel)) = found else {
        tracing::warn!(%family, "there are tables of the older kind of iptables, but no program that could tell what is in them");
        return Ok(());
    };
    let text = text::format_deletion(&kernel);
    if text.is_empty() {
        return Ok(());
    }
    programs.restore(&text)
}
