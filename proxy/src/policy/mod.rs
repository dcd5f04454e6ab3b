//! NetworkPolicy (networking.k8s.io/v1): which packets pods get and send, as nftables rules of this node.
//!
//! ```text
//! source (list, watch) -> facts -> Model -> Difference -> one netlink transaction
//! ```
//!
//! See `README.md` beside this file for the layout of the tables and its reasons.

mod compile;
pub mod explain;
pub mod facts;
pub mod model;
pub mod object;
mod ranges;
mod source;
mod table;
mod worker;

pub(crate) use ranges::Ranges;
pub use source::Change;
pub use table::TABLE;

use crate::source::follow;
use crate::thread::{Ended, Thread};
use linux::nftables::{Batch, BatchError, Family, Socket};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What is to be enforced, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name; only its pods are isolated here.
    pub node_name: String,
    /// Pods may be neighbours on a bridge: its packets have to pass the IP layer.
    pub bridge_filtering: bool,
    progress: watch::Sender<Progress>,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The rules are what the API said last.
    pub synced: bool,
    /// News taken from the API.
    pub updates: u64,
    /// Transactions made.
    pub transactions: u64,
    /// Changes in the last one; an element counts as one.
    pub last_changes: usize,
    /// How long it took to plan and make.
    pub last_duration: Duration,
    /// Policies.
    pub policies: usize,
    /// Isolated addresses of this node.
    pub isolated: usize,
}

impl Config {
    /// The defaults for a node.
    pub fn new(node_name: impl Into<String>) -> Config {
        Config {
            node_name: node_name.into(),
            bridge_filtering: true,
            progress: watch::Sender::new(Progress::default()),
        }
    }

    /// Follows what is done.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn report(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }
}

/// Why policies can't be enforced.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no netlink socket to be had.
    #[error("open the netfilter socket: {0}")]
    Socket(#[source] linux::Error),
    /// The rules could not be deleted.
    #[error("delete the network policies' rules: {0}")]
    Cleanup(#[source] BatchError),
    /// The thread that makes the rules did not start, or ended of itself.
    #[error("the thread that makes the network policies' rules ended")]
    WorkerEnded,
}

impl From<Ended> for Error {
    fn from(_: Ended) -> Self {
        Error::WorkerEnded
    }
}

/// Enforces the policies in this network namespace until `shutdown`. The rules stay when it ends: what was isolated
/// stays isolated until the next start replaces the rules in one transaction.
///
/// # Errors
/// [`Error::Socket`] without netfilter or permission. Refused rules and an API that is away are logged and tried again.
pub async fn run(
    config: Config,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (news, receiver) = std::sync::mpsc::channel();
    let (want_pods, pods_wanted) = tokio::sync::oneshot::channel();
    let node = config.node_name.clone();
    let worker = Thread::start("policy-rules", move || {
        worker::Worker::new(config, want_pods)?.run(&receiver);
        Ok(())
    })?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follow::<object::NetworkPolicy>(
        client.clone(),
        source::POLICIES.to_owned(),
        node.clone(),
        news.clone(),
    ));
    tasks.spawn(async move {
        if pods_wanted.await.is_err() {
            return;
        }
        tokio::join!(
            follow::<object::Pod>(
                client.clone(),
                source::PODS.to_owned(),
                node.clone(),
                news.clone()
            ),
            follow::<object::Namespace>(client, source::NAMESPACES.to_owned(), node, news),
        );
    });
    worker.run(tasks, shutdown).await
}

/// Deletes the policies' rules in this network namespace; none there is no error.
///
/// # Errors
/// [`Error::Cleanup`].
pub fn cleanup() -> Result<(), Error> {
    let mut socket = Socket::open().map_err(Error::Socket)?;
    let mut batch = Batch::new();
    table::delete(&mut batch, &[Family::Ip, Family::Ip6]);
    batch.commit(&mut socket).map_err(Error::Cleanup)
}
