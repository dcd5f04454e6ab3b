//! The service proxy: what the API says about Services becomes this node's rules, of nftables or of iptables.
//!
//! ```text
//! source (list, watch) -> service::Tracker -> resolve -> ruleset::Model  -> difference -> one netlink transaction
//!                                                     -> iptables::Model -> difference -> iptables-restore
//! ```
//!
//! All stages but the first and the last are pure. nftables' rules don't grow with the Services: each Service is a few
//! elements in maps, and a change of one costs the same at any number of them. See `README.md`.

pub mod config;
mod conntrack;
mod dump;
mod events;
mod family;
mod health;
pub mod iptables;
pub mod kube_proxy;
mod leftovers;
mod metrics;
pub mod policy;
pub mod route;
pub mod ruleset;
pub mod service;
mod serving;
mod source;
mod sysctl;
mod table;
mod thread;
mod worker;

pub use config::{
    Config, ConntrackSettings, DetectLocal, IptablesSettings, LocalEndpoints, Mode,
    NodePortAddresses, Progress,
};
pub use dump::dump;
pub use sysctl::prepare;

use crate::service::object::{EndpointSlice, Node, Service};
use crate::source::follow;
use crate::thread::{Ended, Thread};
use crate::worker::Worker;
use tokio_util::sync::CancellationToken;

/// Why the proxy ended or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the table itself.
    #[error(transparent)]
    Kernel(#[from] worker::Error),
    /// The rules could not be deleted.
    #[error("delete the service rules: {0}")]
    Cleanup(#[source] linux::nftables::BatchError),
    /// The rules of iptables mode could not be deleted.
    #[error("delete the service rules of iptables: {0}")]
    CleanupIptables(#[source] family::Error),
    /// The device of kube-proxy's ipvs mode could not be deleted.
    #[error(transparent)]
    Device(linux::netlink::Error),
    /// The thread that makes the rules ended of itself.
    #[error("the thread that makes the rules ended")]
    WorkerEnded,
}

impl From<Ended> for Error {
    fn from(_: Ended) -> Self {
        Error::WorkerEnded
    }
}

/// Runs the proxy in this network namespace until `shutdown`. The rules stay when it ends, unless
/// [`Config::cleanup_on_exit`]; [`Config::progress`] tells when they stand first.
///
/// # Errors
/// [`Error::Kernel`] if there is no netfilter or no permission. Refused Services and an API that is away are logged
/// and tried again.
pub async fn run(
    config: Config,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (updates, receiver) = std::sync::mpsc::channel();
    let node_name = config.node_name.clone();
    let health = health::Health::default();
    let metrics = metrics::Metrics::new(config.mode);
    let mut tasks = tokio::task::JoinSet::new();
    let (events, failures) = events::Events::new();
    tasks.spawn(events::post(
        client.clone(),
        node_name.as_str().into(),
        failures,
    ));
    serve(&mut tasks, &config, &health, &metrics);
    let worker = Thread::start("service-rules", move || {
        let mut worker = Worker::new(config, health, metrics, events)?;
        let result = worker.run(&receiver);
        worker.clean_up();
        Ok(result?)
    })?;
    tasks.spawn(follow::<Node>(
        client.clone(),
        source::node(&node_name),
        node_name.clone(),
        updates.clone(),
    ));
    tasks.spawn(follow::<Service>(
        client.clone(),
        source::services(),
        node_name.clone(),
        updates.clone(),
    ));
    tasks.spawn(follow::<EndpointSlice>(
        client,
        source::slices(),
        node_name.clone(),
        updates,
    ));
    worker.run(tasks, shutdown).await
}

/// Starts what the proxy serves over HTTP.
fn serve(
    tasks: &mut tokio::task::JoinSet<()>,
    config: &Config,
    health: &health::Health,
    metrics: &metrics::Metrics,
) {
    tasks.spawn(serving::serve_checks(health.clone()));
    if let Some(address) = config.healthz_address {
        let (health, metrics) = (health.clone(), metrics.clone());
        tasks.spawn(serving::serve_address(
            address,
            "/healthz",
            move |request| serving::answer_health(request.uri().path(), &health, &metrics),
        ));
    }
    if let Some(address) = config.metrics_address {
        let metrics = metrics.clone();
        tasks.spawn(serving::serve_address(
            address,
            "/metrics",
            move |request| serving::answer_metrics(request.uri().path(), &metrics),
        ));
    }
}

/// Deletes the proxy's rules in this network namespace; none there is no error. For a node that no proxy serves any
/// more: established connections go on, new ones to Services fail.
///
/// # Errors
/// [`Error::Cleanup`].
pub fn cleanup() -> Result<(), Error> {
    let mut socket =
        linux::nftables::Socket::open().map_err(|error| Error::Cleanup(error.into()))?;
    table::delete_tables(&mut socket).map_err(Error::Cleanup)
}

/// Deletes the rules of iptables mode in this network namespace, which are a kube-proxy's too; none there is no error.
///
/// # Errors
/// [`Error::CleanupIptables`].
pub fn cleanup_iptables() -> Result<(), Error> {
    let socket = linux::nftables::Socket::open();
    let mut socket = socket.map_err(|error| Error::Cleanup(error.into()))?;
    iptables::delete(&mut socket).map_err(Error::CleanupIptables)
}

/// Deletes what a kube-proxy that ran on this node left in nf_tables, in any of its modes, and ipvs mode's device; what
/// else it may have left is named in the log. Safe beside running Services of this proxy's.
///
/// # Errors
/// [`Error::Cleanup`], [`Error::Device`].
pub fn cleanup_kube_proxy() -> Result<(), Error> {
    let mut socket =
        linux::nftables::Socket::open().map_err(|error| Error::Cleanup(error.into()))?;
    leftovers::delete(&mut socket).map_err(Error::Cleanup)?;
    leftovers::delete_device().map_err(Error::Device)
}
