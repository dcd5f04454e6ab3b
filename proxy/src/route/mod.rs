//! The way to the pods of other nodes: routes, and VXLAN where nodes share no link, from the Node objects.
//!
//! ```text
//! source (list, watch of Nodes) -> plan (pure, with this node's links) -> what differs, by netlink
//! ```
//!
//! A direct route is made only if the kernel's own best route to the other node has no gateway. Tunnels need no learning
//! and no announcements: the hardware address of a node's VXLAN device follows from the node's address. Everything stays
//! when the program ends, and is compared with the plan at the next start.

mod kernel;
pub mod object;
pub mod plan;
mod settings;

pub use settings::{Mode, Settings};

use crate::source::{Update, follow};
use crate::thread::{Ended, Thread};
use linux::netlink::Netlink;
use object::NodeFacts;
use plan::Plan;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The VXLAN device.
pub const DEVICE: &str = "orlop-vxlan";
/// The nftables table of what isn't masqueraded.
pub const TABLE: &str = "orlop-route";
/// Who made a route, in the kernel's words.
pub(crate) const PROTOCOL: u8 = 0x6f;
const NODES: &str = "/api/v1/nodes?";
/// After an error, and never else.
const RETRY: Duration = Duration::from_secs(5);
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name.
    pub node_name: String,
    /// A change takes effect at once; what it doesn't concern stays, with its connections.
    pub settings: watch::Receiver<Settings>,
    /// What is marked so is masqueraded.
    pub masquerade_mark: u32,
    progress: watch::Sender<Progress>,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// News and changes of the settings taken.
    pub updates: u64,
    /// The kernel has what was planned last.
    pub synced: bool,
    /// Ranges of pods that can be reached.
    pub ways: usize,
    /// Ranges that can't.
    pub unreachable: usize,
}

impl Config {
    /// For a node, with settings that stay or change.
    pub fn new(node_name: impl Into<String>, settings: watch::Receiver<Settings>) -> Config {
        Config {
            node_name: node_name.into(),
            settings,
            masquerade_mark: 1 << 14,
            progress: watch::Sender::default(),
        }
    }

    /// Follows what is done.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}

/// Why a route can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Routes or links.
    #[error(transparent)]
    Netlink(#[from] linux::netlink::Error),
    /// The netfilter socket.
    #[error(transparent)]
    Socket(#[from] linux::Error),
    /// What isn't masqueraded.
    #[error("except pods from masquerading: {0}")]
    Rules(#[from] linux::nftables::BatchError),
    /// Somebody else deletes it.
    #[error("the device {DEVICE} was deleted while it was made")]
    DeviceGone,
    /// The thread did not start, or ended of itself.
    #[error("the thread that makes the pods' routes ended")]
    WorkerEnded,
}

impl From<Ended> for Error {
    fn from(_: Ended) -> Self {
        Error::WorkerEnded
    }
}

/// The one kind that is followed.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Nodes.
    Nodes,
}

/// What changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A node says this now, or is gone.
    Node(String, Option<NodeFacts>),
    /// Other settings are wanted.
    Settings,
}

type News = Update<Kind, Change>;

struct Worker {
    config: Config,
    netlink: Netlink,
    nodes: BTreeMap<String, NodeFacts>,
    listed: bool,
    /// What the plan follows from has changed.
    changed: bool,
    done: Plan,
    progress: Progress,
}

impl Worker {
    fn run(&mut self, news: &Receiver<News>) {
        loop {
            let wait = if self.progress.synced || !self.listed {
                FOREVER
            } else {
                RETRY
            };
            match news.recv_timeout(wait) {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(news) = news.try_recv() {
                self.take(news);
            }
            if self.listed {
                self.sync();
            }
            self.config.progress.send_replace(self.progress);
        }
    }

    fn take(&mut self, news: News) {
        self.progress.updates += 1;
        let changes = match news {
            Update::Change(change, _) => vec![change],
            Update::List(Kind::Nodes, changes) => {
                self.nodes.clear();
                (self.listed, self.changed) = (true, true);
                changes
            }
        };
        for change in changes {
            match change {
                Change::Node(name, Some(facts)) => {
                    let before = self.nodes.insert(name, facts.clone());
                    self.changed |= before.as_ref() != Some(&facts);
                }
                Change::Node(name, None) => self.changed |= self.nodes.remove(&name).is_some(),
                Change::Settings => self.changed = true,
            }
        }
    }

    fn sync(&mut self) {
        if !std::mem::take(&mut self.changed) && self.progress.synced {
            return;
        }
        let result = self.converge();
        self.progress.synced = result.is_ok();
        if let Err(error) = result {
            tracing::error!(%error, "the routes to other nodes' pods could not be made; trying again in {RETRY:?}");
        }
    }

    fn converge(&mut self) -> Result<(), Error> {
        let Some(own) = self.nodes.get(&self.config.node_name) else {
            return Ok(());
        };
        let others = self.nodes.values().filter(|node| node.name != own.name);
        let links = kernel::observe(&mut self.netlink)?;
        let settings = self.config.settings.borrow().clone();
        let plan = plan::plan(own, others, &links, &settings);
        for reason in &plan.unreachable {
            if !self.done.unreachable.contains(reason) {
                tracing::error!("no way to {reason}");
            }
        }
        self.progress.ways = plan.ways.len();
        self.progress.unreachable = plan.unreachable.len();
        let mark = self.config.masquerade_mark;
        kernel::apply(&mut self.netlink, &links, &self.done, &plan, mark)?;
        self.done = plan;
        Ok(())
    }
}

/// Keeps the ways to other nodes' pods in this network namespace until `shutdown`; they stay when it ends.
///
/// # Errors
/// [`Error::Netlink`] without a netlink socket. What can't be made is logged and tried again.
pub async fn run(
    config: Config,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (news, receiver) = std::sync::mpsc::channel();
    let (node, mut settings) = (config.node_name.clone(), config.settings.clone());
    let worker = Thread::start("pod-routes", move || {
        let mut worker = Worker {
            config,
            netlink: Netlink::open()?,
            nodes: BTreeMap::new(),
            listed: false,
            changed: false,
            done: Plan::default(),
            progress: Progress::default(),
        };
        worker.run(&receiver);
        Ok(())
    })?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follow::<object::Node>(
        client,
        NODES.to_owned(),
        node,
        news.clone(),
    ));
    tasks.spawn(async move {
        while settings.changed().await.is_ok() {
            if news
                .send(Update::Change(Change::Settings, Instant::now()))
                .is_err()
            {
                return;
            }
        }
    });
    worker.run(tasks, shutdown).await
}

/// Removes routes, device and rules of this network namespace; none there is no error.
///
/// # Errors
/// The kernel's.
pub fn cleanup() -> Result<(), Error> {
    kernel::remove(&mut Netlink::open()?)
}
