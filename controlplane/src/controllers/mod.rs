//! The controllers: level-triggered loops over the API, as kube-controller-manager runs them.
//!
//! ```text
//! watch (one a kind) -> Informer -> handlers add keys -> Queue -> reconcile(key) -> writes through the API
//! ```
//!
//! A reconcile reads the local copies, plans, writes, and returns. It may be called at any time and any number of
//! times; what it left undone the next call finds. A controller waits with a key until the copies hold its own
//! last write, so that nothing is created twice.

mod deployment;
mod endpointslice;
mod event;
mod garbage;
pub(crate) mod informer;
mod namespace;
mod node;
pub(crate) mod object;
mod own_writes;
mod pod_gc;
pub(crate) mod queue;
mod replicaset;
mod serviceaccount;

use std::sync::Arc;

use ipnet::IpNet;
use kube::Client;
use kube::runtime::watcher;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use event::Recorder;
use informer::Informer;
use object::Writer;
use queue::Queue;

/// What the controllers are told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ranges that nodes get their pods' addresses from, one a family; empty if others assign them.
    pub cluster_cidrs: Vec<IpNet>,
    /// The size of a node's part of them.
    pub node_mask_sizes: MaskSizes,
    /// The cluster's CA, for `kube-root-ca.crt`.
    pub ca_pem: String,
}

/// The lengths of the prefixes that a node gets.
#[derive(Clone, Copy, Debug)]
pub struct MaskSizes {
    /// Of an IPv4 range.
    pub ipv4: u8,
    /// Of an IPv6 range.
    pub ipv6: u8,
}

impl Default for MaskSizes {
    /// As kube-controller-manager's.
    fn default() -> Self {
        Self { ipv4: 24, ipv6: 64 }
    }
}

/// What every controller has.
#[derive(Clone)]
struct Context {
    writer: Writer,
    events: Recorder,
}

impl Context {
    fn new(client: &Client, component: &'static str) -> Self {
        Self {
            writer: Writer(client.clone()),
            events: Recorder::new(client.clone(), component),
        }
    }
}

/// Runs all controllers until `shutdown`.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    let pods = Informer::new();
    let (deployments, sets) = (Informer::new(), Informer::new());
    let (services, slices) = (Informer::new(), Informer::new());
    let (nodes, leases, namespaces) = (Informer::new(), Informer::new(), Informer::new());
    let (accounts, maps) = (Informer::new(), Informer::new());
    let kinds = crate::apiserver::kinds::kinds();

    let synced = Synced::default();
    macro_rules! start {
        ($name:literal, $workers:literal, $queue:ident, $controller:expr) => {{
            let controller = Arc::new($controller);
            let (queue, shutdown, ready) = ($queue.clone(), shutdown.clone(), synced.clone());
            tasks.spawn(async move {
                ready.wait().await;
                let reconcile = move |key| {
                    let controller = controller.clone();
                    async move { controller.reconcile(key).await }
                };
                queue.run($name, $workers, shutdown, reconcile).await;
            });
        }};
    }
    let context = |name| Context::new(&client, name);

    let queue = Queue::new();
    start!(
        "deployment",
        2,
        queue,
        deployment::Controller::new(
            context("deployment-controller"),
            deployments.clone(),
            sets.clone(),
            pods.clone(),
            &queue
        )
    );
    let queue = Queue::new();
    start!(
        "replicaset",
        4,
        queue,
        replicaset::Controller::new(
            context("replicaset-controller"),
            sets.clone(),
            pods.clone(),
            &queue
        )
    );
    let queue = Queue::new();
    start!(
        "endpointslice",
        2,
        queue,
        endpointslice::Controller::new(
            context("endpoint-slice-controller"),
            services.clone(),
            pods.clone(),
            slices.clone(),
            nodes.clone(),
            &queue
        )
    );
    let queue = Queue::new();
    start!(
        "namespace",
        2,
        queue,
        namespace::Controller::new(
            context("namespace-controller"),
            namespaces.clone(),
            kinds,
            &queue
        )
    );
    let queue = Queue::new();
    start!(
        "serviceaccount",
        1,
        queue,
        serviceaccount::Controller::new(
            context("serviceaccount-controller"),
            config.ca_pem,
            namespaces.clone(),
            accounts.clone(),
            maps.clone(),
            &queue
        )
    );
    let queue = Queue::new();
    start!(
        "node",
        1,
        queue,
        node::Controller::new(
            context("node-controller"),
            config.cluster_cidrs,
            config.node_mask_sizes,
            nodes.clone(),
            leases.clone(),
            pods.clone(),
            &queue
        )
    );
    let queue = Queue::new();
    start!(
        "pod-gc",
        1,
        queue,
        pod_gc::Controller::new(
            context("pod-garbage-collector"),
            pods.clone(),
            nodes.clone(),
            &queue
        )
    );

    let queue = Queue::new();
    let collector = garbage::Controller::new(context("garbage-collector"), kinds);
    tasks.spawn(
        collector
            .clone()
            .watch(client.clone(), queue.clone(), shutdown.clone()),
    );
    let stop = shutdown.clone();
    tasks.spawn(async move {
        let reconcile = move |uid| {
            let collector = collector.clone();
            async move { collector.reconcile(uid).await }
        };
        queue.run("garbage", 4, stop, reconcile).await;
    });

    let root_ca_only =
        watcher::Config::default().fields(&format!("metadata.name={}", serviceaccount::ROOT_CA));
    tasks.spawn(
        maps.clone()
            .run(client.clone(), root_ca_only, shutdown.clone()),
    );
    macro_rules! watch {
        ($($informer:ident),*) => { $(tasks.spawn($informer.clone().run(client.clone(), watcher::Config::default(), shutdown.clone()));)* };
    }
    watch!(
        pods,
        deployments,
        sets,
        services,
        slices,
        nodes,
        leases,
        namespaces,
        accounts
    );
    tokio::join!(
        pods.synced(),
        deployments.synced(),
        sets.synced(),
        services.synced(),
        slices.synced()
    );
    tokio::join!(
        nodes.synced(),
        leases.synced(),
        namespaces.synced(),
        accounts.synced(),
        maps.synced()
    );
    synced.set();
    while tasks.join_next().await.is_some() {}
}

/// Controllers act once all copies are complete: an empty copy would look like an empty cluster.
#[derive(Clone)]
struct Synced(tokio::sync::watch::Sender<bool>);

impl Default for Synced {
    fn default() -> Self {
        Self(tokio::sync::watch::Sender::new(false))
    }
}

impl Synced {
    fn set(&self) {
        self.0.send_replace(true);
    }

    async fn wait(&self) {
        // The sender is held by `self`.
        let _ = self.0.subscribe().wait_for(|synced| *synced).await;
    }
}
