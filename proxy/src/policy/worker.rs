//! The thread that turns changes of policies, pods and namespaces into transactions.

use super::model::Model;
use super::source::{Change, Kind, News};
use super::{Config, Error, Progress, table};
use crate::source::Update;
use linux::nftables::{Batch, BatchError, Family, Socket};
use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const SHORTEST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

pub struct Worker {
    config: Config,
    socket: Socket,
    families: Vec<Family>,
    model: Model,
    listed: HashSet<Kind>,
    /// Asks for pods and namespaces, which matter only where there are policies.
    want_pods: Option<oneshot::Sender<()>>,
    /// The tables are what the model was at the last difference.
    programmed: bool,
    retry: Option<(Instant, Duration)>,
    progress: Progress,
}

impl Worker {
    pub fn new(config: Config, want_pods: oneshot::Sender<()>) -> Result<Worker, Error> {
        let socket = Socket::open().map_err(Error::Socket)?;
        // At once: connections that are to go on when a policy comes have to be known before.
        if config.bridge_filtering && !crate::sysctl::enable_bridge_filtering() {
            tracing::error!(
                "the kernel has no br_netfilter (modprobe br_netfilter): network policies don't hold between pods of one bridge"
            );
        }
        let mut families = vec![Family::Ip];
        if Path::new("/proc/sys/net/ipv6").exists() {
            families.push(Family::Ip6);
        }
        Ok(Worker {
            config,
            socket,
            families,
            model: Model::default(),
            listed: HashSet::new(),
            want_pods: Some(want_pods),
            programmed: false,
            retry: None,
            progress: Progress::default(),
        })
    }

    /// Takes news until their senders are gone.
    pub fn run(&mut self, news: &Receiver<News>) {
        loop {
            let wait = self.retry.map_or(FOREVER, |(at, _)| {
                at.saturating_duration_since(Instant::now())
            });
            match news.recv_timeout(wait) {
                Ok(update) => self.take(update),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // What came while a transaction was made goes into the next one.
            while let Ok(update) = news.try_recv() {
                self.take(update);
            }
            self.sync();
        }
    }

    fn take(&mut self, update: News) {
        self.progress.updates += 1;
        match update {
            Update::Change(change, _) => self.model.apply(change),
            Update::List(kind, changes) => {
                for gone in self.missing_from(kind, &changes) {
                    self.model.apply(gone);
                }
                changes
                    .into_iter()
                    .for_each(|change| self.model.apply(change));
                self.listed.insert(kind);
            }
        }
    }

    /// What is known of a kind and not in its new list.
    fn missing_from(&self, kind: Kind, changes: &[Change]) -> Vec<Change> {
        let mut names = HashSet::new();
        let mut namespaces = HashSet::new();
        for change in changes {
            match change {
                Change::Policy(name, _) | Change::Pod(name, _) => {
                    names.insert(name);
                }
                Change::Namespace(name, _) => {
                    namespaces.insert(name);
                }
            }
        }
        match kind {
            Kind::Policies => {
                let known = self.model.policies().keys();
                let gone = known.filter(|name| !names.contains(name));
                gone.map(|name| Change::Policy(name.clone(), None))
                    .collect()
            }
            Kind::Pods => {
                let gone = self.model.pods().filter(|name| !names.contains(name));
                gone.map(|name| Change::Pod(name.clone(), None)).collect()
            }
            Kind::Namespaces => {
                let known = self.model.namespaces();
                let gone = known.filter(|name| !namespaces.contains(name));
                gone.map(|name| Change::Namespace(name.clone(), None))
                    .collect()
            }
        }
    }

    /// Brings the kernel to what the model says, if enough is known.
    fn sync(&mut self) {
        if !self.listed.contains(&Kind::Policies) {
            return;
        }
        let none = self.model.policies().is_empty();
        if !none && let Some(want) = self.want_pods.take() {
            let _ = want.send(());
        }
        if !none && self.listed.len() < 3 {
            return;
        }
        let begun = Instant::now();
        let difference = self.model.take_difference();
        let mut batch = Batch::new();
        if self.programmed {
            table::change(&mut batch, &self.families, &self.model, &difference);
        } else {
            table::replace(&mut batch, &self.families, &self.model);
        }
        let changes = batch.len();
        match batch.commit(&mut self.socket) {
            Ok(()) => {
                self.programmed = true;
                self.retry = None;
                if changes > 0 {
                    self.progress.transactions += 1;
                    self.progress.last_changes = changes;
                    self.progress.last_duration = begun.elapsed();
                }
            }
            Err(error) => self.failed(&error),
        }
        self.report();
    }

    /// The next transaction makes the tables anew; until then what stands, stands.
    fn failed(&mut self, error: &BatchError) {
        let delay = self
            .retry
            .map_or(SHORTEST_RETRY, |(_, delay)| (delay * 2).min(LONGEST_RETRY));
        tracing::error!(%error, "the network policies' rules were refused; trying again in {delay:?}");
        self.programmed = false;
        self.retry = Some((Instant::now() + delay, delay));
    }

    fn report(&mut self) {
        self.progress.synced = self.retry.is_none();
        self.progress.policies = self.model.policies().len();
        self.progress.isolated = self.model.isolated().len();
        self.config.report(self.progress);
    }
}
