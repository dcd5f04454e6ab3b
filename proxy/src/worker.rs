//! The thread that turns the API's changes into transactions.

use crate::config::{Config, Mode, Progress};
use crate::conntrack::{self, Served};
use crate::events::Events;
use crate::family::{self, FamilyRules, Outcome};
use crate::health::{Health, ServiceHealth};
use crate::iptables::FamilyChains;
use crate::metrics::Metrics;
use crate::service::{Change, NodeFacts, ResolvedService, ServiceName, SliceName, Tracker};
use crate::source::{Kind, Update};
use crate::sysctl;
use crate::table::FamilyTable;
use linux::nftables::{Family, Socket};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

const SHORTEST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// A sync of more Services than this leaves memory behind that is worth giving back.
const MANY: usize = 500;
/// With nothing to retry the thread sleeps until there is news.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Why the worker ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no netlink socket to be had.
    #[error("open the netfilter socket: {0}")]
    Socket(#[source] linux::Error),
    /// A family's rules can't be made at all.
    #[error("make the rules of {family}: {source}")]
    Rules {
        /// Which.
        family: Family,
        /// Why.
        source: family::Error,
    },
}

/// What the kernel refused: when it is tried again.
struct Retry {
    at: Instant,
    delay: Duration,
}

impl Retry {
    /// After a failure, and after another one before it.
    fn after(before: Option<&Retry>) -> Retry {
        let delay = before.map_or(SHORTEST_RETRY, |retry| retry.delay * 2);
        let delay = delay.min(LONGEST_RETRY);
        Retry {
            at: Instant::now() + delay,
            delay,
        }
    }
}

/// All state of the proxy.
pub struct Worker {
    config: Config,
    socket: Socket,
    tracker: Tracker,
    families: Vec<Box<dyn FamilyRules>>,
    listed: HashSet<Kind>,
    retries: BTreeMap<ServiceName, Retry>,
    /// When a family whose rules couldn't be changed is tried again.
    whole_retry: Option<Retry>,
    /// When it is next checked whether others took the rules away.
    next_check: Option<Instant>,
    health: Health,
    metrics: Metrics,
    events: Events,
    /// The ports of Services' health checks.
    check_ports: HashMap<ServiceName, u16>,
    progress: Progress,
    started: bool,
    last_sync: Option<Instant>,
    /// Of which family a slice is that changed, and when its endpoints did.
    triggers: Vec<(bool, SystemTime)>,
    since: SystemTime,
}

impl Worker {
    /// A worker in this thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn new(
        mut config: Config,
        health: Health,
        metrics: Metrics,
        events: Events,
    ) -> Result<Worker, Error> {
        let socket = Socket::open().map_err(Error::Socket)?;
        sysctl::prepare(&mut config);
        let node = NodeFacts::named(&config.node_name);
        let rules = |family| -> Box<dyn FamilyRules> {
            match config.mode {
                Mode::Nftables => Box::new(FamilyTable::new(family, &config, &node)),
                Mode::Iptables(settings) => Box::new(FamilyChains::new(
                    family,
                    settings,
                    &config,
                    &node,
                    metrics.clone(),
                )),
            }
        };
        let families = [Family::Ip, Family::Ip6].map(rules).into();
        Ok(Worker {
            config,
            socket,
            tracker: Tracker::new(node),
            families,
            listed: HashSet::new(),
            retries: BTreeMap::new(),
            whole_retry: None,
            next_check: None,
            health,
            metrics,
            events,
            check_ports: HashMap::new(),
            progress: Progress::default(),
            started: false,
            last_sync: None,
            triggers: Vec::new(),
            since: SystemTime::now(),
        })
    }

    /// Takes news until their senders are gone. Changes that came while a transaction was made go into the next one.
    ///
    /// # Errors
    /// [`Error::Rules`], if the rules can't be made at the start.
    pub fn run(&mut self, updates: &Receiver<Update>) -> Result<(), Error> {
        loop {
            let mut since = None;
            match updates.recv_timeout(self.next_wake()) {
                Ok(update) => self.take(update, &mut since),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            while let Some(wait) = self.hold_off() {
                match updates.recv_timeout(wait) {
                    Ok(update) => self.take(update, &mut since),
                    Err(_) => break,
                }
            }
            while let Ok(update) = updates.try_recv() {
                self.take(update, &mut since);
            }
            if self.listed.len() == 3 {
                self.sync(since.unwrap_or_else(Instant::now))?;
            }
        }
    }

    fn next_wake(&self) -> Duration {
        let retries = self.retries.values().chain(&self.whole_retry);
        let next = retries.map(|retry| retry.at).chain(self.next_check).min();
        next.map_or(FOREVER, |at| at.saturating_duration_since(Instant::now()))
    }

    /// How long changes are still gathered, by `min_sync_period`.
    fn hold_off(&self) -> Option<Duration> {
        let next = self.last_sync? + self.config.min_sync_period;
        next.checked_duration_since(Instant::now())
            .filter(|wait| !wait.is_zero())
    }

    fn take(&mut self, update: Update, since: &mut Option<Instant>) {
        match update {
            Update::Change(mut change, at) => {
                since.get_or_insert(at);
                self.take_trigger(&mut change);
                if let Change::Node(node) = &change {
                    self.health.set_node_eligible(node.eligible);
                } else {
                    let is_service = matches!(change, Change::Service(..) | Change::ServiceGone(_));
                    self.metrics.queued(is_service);
                    self.health.pending();
                }
                self.tracker.apply(change);
            }
            Update::List(kind, changes) => {
                since.get_or_insert_with(Instant::now);
                for gone in self.missing_from(kind, &changes) {
                    self.tracker.apply(gone);
                }
                for mut change in changes {
                    self.take_trigger(&mut change);
                    if let Change::Node(node) = &change {
                        self.health.set_node_eligible(node.eligible);
                    }
                    self.tracker.apply(change);
                }
                self.listed.insert(kind);
            }
        }
    }

    /// Remembers when a slice's endpoints changed. As upstream, what changed before the proxy began doesn't count.
    fn take_trigger(&mut self, change: &mut Change) {
        if let Change::Slice(_, _, facts) = change
            && let Some(triggered) = facts.triggered.take()
            && triggered > self.since
        {
            self.triggers.push((facts.ipv6, triggered));
        }
    }

    /// What is known of a kind and not in its new list.
    fn missing_from(&self, kind: Kind, changes: &[Change]) -> Vec<Change> {
        match kind {
            Kind::Services => {
                let name = |change: &Change| match change {
                    Change::Service(name, _) => Some(name.clone()),
                    _ => None,
                };
                let present: HashSet<ServiceName> = changes.iter().filter_map(name).collect();
                let gone = self
                    .tracker
                    .services()
                    .filter(|name| !present.contains(name));
                gone.cloned().map(Change::ServiceGone).collect()
            }
            Kind::Slices => {
                let name = |change: &Change| match change {
                    Change::Slice(name, _, _) => Some(name.clone()),
                    _ => None,
                };
                let present: HashSet<SliceName> = changes.iter().filter_map(name).collect();
                let gone = self.tracker.slices().filter(|name| !present.contains(name));
                gone.cloned().map(Change::SliceGone).collect()
            }
            Kind::Node => Vec::new(),
        }
    }

    /// Brings the kernel to what the tracker says.
    fn sync(&mut self, since: Instant) -> Result<(), Error> {
        let now = Instant::now();
        for (name, _) in self.retries.iter().filter(|(_, retry)| retry.at <= now) {
            self.tracker.mark_changed(name.clone());
        }
        let changed = self.tracker.take_changed();
        self.follow_node();
        self.check_rules(now);
        let pending = self.families.iter().any(|rules| rules.is_pending());
        let waits = pending
            && self
                .whole_retry
                .as_ref()
                .is_some_and(|retry| retry.at > now);
        if changed.is_empty() && self.started && (waits || !pending) {
            if !waits {
                self.metrics.nothing_pending();
                self.triggers.clear();
                self.health.synced();
            }
            return Ok(());
        }
        let outcome = if self.started {
            self.apply(&changed)
        } else {
            self.start(&changed)?
        };
        self.last_sync = Some(Instant::now());
        self.note(&changed, outcome, since);
        if changed.len() > MANY {
            linux::memory::trim();
        }
        Ok(())
    }

    /// What the Node says may have changed.
    fn follow_node(&mut self) {
        if !self.started {
            return;
        }
        for rules in &mut self.families {
            if let Err(error) = rules.set_node(&mut self.socket, self.tracker.node(), &self.config)
            {
                tracing::error!(%error, "what the Node says could not be put into the rules");
            }
        }
    }

    /// Looks whether others took the rules away, if it is time to.
    fn check_rules(&mut self, now: Instant) {
        let Mode::Iptables(settings) = self.config.mode else {
            return;
        };
        if self.started && self.next_check.is_some_and(|at| at <= now) {
            self.families.iter_mut().for_each(|rules| rules.check());
            self.next_check = None;
        }
        self.next_check.get_or_insert(now + settings.sync_period);
    }

    /// The first transaction. A kernel without IPv6 has only the other family's rules.
    fn start(&mut self, changed: &BTreeSet<ServiceName>) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let mut families = std::mem::take(&mut self.families);
        for rules in &mut families {
            // The Node came with the first list.
            rules.expect_node(self.tracker.node(), &self.config);
            let family = rules.family();
            rules
                .adopt(&mut self.socket)
                .map_err(|source| Error::Rules { family, source })?;
        }
        for name in changed {
            let resolved = self.tracker.resolve(name);
            self.check(name, resolved.as_ref());
            for rules in &mut families {
                outcome
                    .waiting
                    .extend(rules.expect(name, resolved.as_ref()));
            }
        }
        let all: Vec<_> = changed
            .iter()
            .map(|name| (name.clone(), Vec::new()))
            .collect();
        for mut rules in families {
            let family = rules.family();
            let begun = Instant::now();
            match rules.start(&mut self.socket) {
                Ok(part) => {
                    self.count(&*rules, &part, begun);
                    self.delete_stale(&*rules, &all);
                    outcome.join(part);
                    self.families.push(rules);
                }
                Err(error) if family == Family::Ip6 && rules.services() == 0 => {
                    tracing::warn!(%error, "no rules for IPv6 could be made; going on without");
                }
                Err(source) => return Err(Error::Rules { family, source }),
            }
        }
        self.started = true;
        Ok(outcome)
    }

    fn apply(&mut self, changed: &BTreeSet<ServiceName>) -> Outcome {
        let resolve = |name: &ServiceName| (name.clone(), self.tracker.resolve(name));
        let resolved: Vec<(ServiceName, Option<ResolvedService>)> =
            changed.iter().map(resolve).collect();
        for (name, resolved) in &resolved {
            self.check(name, resolved.as_ref());
        }
        let mut outcome = Outcome::default();
        let mut families = std::mem::take(&mut self.families);
        for rules in &mut families {
            let begun = Instant::now();
            let changes = resolved
                .iter()
                .map(|(name, resolved)| (name, resolved.as_ref()))
                .collect();
            let part = rules.apply(&mut self.socket, changes);
            self.count(&**rules, &part, begun);
            self.delete_stale(&**rules, &part.before);
            outcome.join(part);
        }
        self.families = families;
        outcome
    }

    fn count(&self, rules: &dyn FamilyRules, part: &Outcome, begun: Instant) {
        let family = rules.family();
        self.metrics
            .synced(family, part.whole, begun.elapsed(), part.changes);
        part.failures
            .iter()
            .for_each(|_| self.metrics.refused(family));
    }

    /// Deletes the connections that changes left behind, once the kernel holds the rules.
    fn delete_stale(&mut self, rules: &dyn FamilyRules, before: &[(ServiceName, Vec<Served>)]) {
        if rules.is_pending() {
            return;
        }
        let begun = Instant::now();
        let deleted = conntrack::delete_stale(&mut self.socket, rules, before);
        self.metrics
            .conntrack_synced(rules.family(), begun.elapsed(), deleted);
    }

    /// Follows a Service's health check.
    fn check(&mut self, name: &ServiceName, resolved: Option<&ResolvedService>) {
        let wanted = resolved
            .and_then(|resolved| Some((resolved.health_check_port?, resolved.local_endpoints)));
        if wanted.is_none() && !self.check_ports.contains_key(name) {
            return;
        }
        let before = self.check_ports.remove(name);
        self.health.change_checks(|checks| {
            if let Some(port) = before {
                checks.remove(&port);
            }
            if let Some((port, local_endpoints)) = wanted {
                checks.insert(
                    port,
                    ServiceHealth {
                        service: name.clone(),
                        local_endpoints,
                    },
                );
            }
        });
        self.check_ports
            .extend(wanted.map(|(port, _)| (name.clone(), port)));
    }

    /// Remembers what was refused, and says what was done.
    fn note(&mut self, changed: &BTreeSet<ServiceName>, outcome: Outcome, since: Instant) {
        let refused: HashSet<&ServiceName> = outcome
            .failures
            .iter()
            .map(|failure| &failure.service)
            .collect();
        self.retries
            .retain(|name, _| refused.contains(name) || !changed.contains(name));
        for failure in &outcome.failures {
            self.events.refused(failure);
            let service = failure.service.as_str();
            tracing::error!(
                service,
                reason = failure.reason,
                "the kernel refused a Service's rules"
            );
            let retry = Retry::after(self.retries.get(&failure.service));
            self.retries.insert(failure.service.clone(), retry);
        }
        for name in outcome.waiting {
            self.retries.insert(
                name,
                Retry {
                    at: Instant::now(),
                    delay: SHORTEST_RETRY,
                },
            );
        }
        self.metrics.set_refused(self.retries.len());
        if self.families.iter().any(|rules| rules.is_pending()) {
            self.whole_retry = Some(Retry::after(self.whole_retry.as_ref()));
            return;
        }
        self.whole_retry = None;
        self.metrics.nothing_pending();
        for (ipv6, triggered) in std::mem::take(&mut self.triggers) {
            let family = if ipv6 { Family::Ip6 } else { Family::Ip };
            // Another machine's clock may go ahead of this one's.
            let ago = triggered.elapsed().unwrap_or_default();
            self.metrics.programmed(family, ago);
        }
        for rules in &self.families {
            self.metrics
                .set_no_local_endpoints(rules.family(), rules.without_local());
        }
        self.health.synced();
        if !self.progress.synced() {
            self.end_other_mode();
        }
        self.progress = Progress {
            transactions: self.progress.transactions + 1,
            last_changes: outcome.changes,
            last_duration: since.elapsed(),
            services: self
                .families
                .iter()
                .map(|rules| rules.services())
                .max()
                .unwrap_or(0),
            failed_services: self.retries.len(),
        };
        let local = self
            .families
            .iter()
            .flat_map(|rules| rules.local_addresses());
        self.config.report_local_endpoints(&local.collect());
        self.config.report(self.progress);
    }

    /// The rules of iptables stand: those that nftables mode left serve no more.
    fn end_other_mode(&mut self) {
        if self.config.mode == Mode::Nftables {
            return;
        }
        if let Err(error) = crate::table::delete_tables(&mut self.socket) {
            tracing::warn!(%error, "the rules of nftables mode could not be deleted");
        }
    }

    /// Deletes the rules, if the configuration says so.
    pub fn clean_up(&mut self) {
        if !self.config.cleanup_on_exit {
            return;
        }
        let deleted = match self.config.mode {
            Mode::Nftables => crate::table::delete_tables(&mut self.socket).map_err(Into::into),
            Mode::Iptables(_) => crate::iptables::delete(&mut self.socket),
        };
        if let Err(error) = deleted {
            tracing::error!(%error, "the rules could not be deleted");
        }
    }
}
