//! The kubelet: pods to CRI calls, volumes, probes, status, and the node's own API.
//!
//! ```text
//! source/ (API watch, files) ─▶ pods ─▶ worker/ ─▶ plan/ (pure) ─▶ CRI calls, volumes/, hooks
//!                                         ▲                               │
//!            probes/, objects, the clock ─┤                               ▼
//!                                         └── runtime/ (events ─▶ cache) ◀┘
//!                                         └─▶ status/ (pure) ─▶ PATCH pods/status
//! ```
//!
//! It speaks to the runtime over CRI and to the cluster over the Kubernetes API, and to nothing else. A pod's
//! worker is level-triggered: each wake compares what is wanted with what there is. Nothing is kept on disk that
//! the API or the runtime keeps already, so a kubelet that is killed and started again takes up every container
//! where it is.

mod config;
mod fields;
mod garbage;
mod hooks;
mod ids;
mod image_name;
mod images;
mod inotify;
mod logs;
mod node;
mod objects;
mod plan;
mod pod;
mod pods;
mod probes;
mod recorder;
mod resources;
mod runtime;
mod server;
mod services;
mod shared;
mod source;
mod spec;
mod status;
mod tokens;
mod user_namespaces;
mod volumes;
mod wakes;
mod worker;

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use config::{Config, FileError, ServerConfig};
use fields::NodeFacts;
use images::Images;
use node::{Machine, NodeKeeper};
use objects::ObjectCache;
use pods::Pods;
use probes::ProbeRunner;
use recorder::Recorder;
use runtime::{Cri, RuntimeCache, follow_events};
use server::{Answers, Server};
use services::Services;
use shared::Shared;
use source::Mirrors;
use spec::dns::{NodeDns, parse_resolv_conf};
use status::StatusWriter;
use tokens::Tokens;
use wakes::Wakes;

/// A kubelet that can't run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its API can't be served.
    #[error("serve the kubelet's API: {0}")]
    Server(#[from] server::TlsError),
    /// Its folders can't be made.
    #[error("prepare {}: {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The node has no address.
    #[error("the node has no address: give it one (node_ips)")]
    NoAddress,
}

/// Runs a kubelet until `shutdown`. The CRI server and the API server may come later: they are waited for.
///
/// At the end, pods are left running (the next kubelet finds them), unless `drain_on_shutdown` says that nothing
/// of them is to be left.
pub async fn run(
    config: Config,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (ready, _) = watch::channel(false);
    run_and_tell(config, client, shutdown, ready).await
}

/// Like [`run`]; `ready` turns true once the API shows the node as Ready.
pub async fn run_and_tell(
    config: Config,
    client: kube::Client,
    shutdown: CancellationToken,
    ready: watch::Sender<bool>,
) -> Result<(), Error> {
    if config.node_ips.is_empty() {
        return Err(Error::NoAddress);
    }
    let config = Arc::new(config);
    prepare_folders(&config)?;
    let server = match &config.server {
        Some(server) => Some(Server::bind(server).await?),
        None => None,
    };
    let wakes = Wakes::default();
    let cri = Cri::new(&config.cri_socket);
    let cache = RuntimeCache::new(cri.clone(), wakes.clone());
    let look = Arc::new(Notify::new());
    // The runtime outlives the sources in a drain: its events are followed to the very end.
    let to_the_end = CancellationToken::new();
    let _stop_at_the_end = to_the_end.clone().drop_guard();
    let (listed, mut runtime_listed) = watch::channel(false);
    tokio::spawn(follow_events(
        cri.clone(),
        cache.clone(),
        listed,
        to_the_end.clone(),
    ));
    let keeper = NodeKeeper {
        config: config.clone(),
        client: client.clone(),
        cri: cri.clone(),
        port: server.as_ref().map_or(0, Server::port),
        look: look.clone(),
    };
    tokio::spawn(keeper.run(ready, to_the_end.clone()));
    tokio::spawn(node::hand_on_pod_cidr(
        client.clone(),
        config.node_name.clone(),
        cri.clone(),
        look.clone(),
        to_the_end.clone(),
    ));
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        // The sender lives as long as the events are followed.
        _ = runtime_listed.wait_for(|listed| *listed) => {}
    }
    look.notify_one();
    let shared = Arc::new(
        assemble(
            config.clone(),
            client.clone(),
            cri,
            cache,
            wakes,
            &to_the_end,
        )
        .await,
    );
    let pods = Pods::new(shared.clone());
    if let Some(server) = server {
        let answers = Answers {
            shared: shared.clone(),
            pods: pods.clone(),
        };
        tokio::spawn(server.run(answers, to_the_end.clone()));
    }
    follow_sources(&shared, &pods, &shutdown);
    tokio::spawn(garbage::collect(shared.clone(), shutdown.clone()));
    let rotation = logs::rotate_logs(
        config.clone(),
        shared.cri.clone(),
        shared.cache.clone(),
        shutdown.clone(),
    );
    tokio::spawn(rotation);
    shutdown.cancelled().await;
    if config.drain_on_shutdown {
        drain(&shared, &pods).await;
    }
    Ok(())
}

fn prepare_folders(config: &Config) -> Result<(), Error> {
    let failed = |path: PathBuf| move |source| Error::Folder { path, source };
    let make = |path: PathBuf, mode| {
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path);
        made.map_err(failed(path))
    };
    make(config.root_dir.clone(), 0o750)?;
    make(config.root_dir.join("pods"), 0o750)?;
    make(config.pod_logs_dir.clone(), 0o755)?;
    make(config.container_logs_dir.clone(), 0o755)?;
    if let Some(manifests) = config.static_pod_path.clone() {
        make(manifests, 0o755)?;
    }
    let volatile = config.volatile_dir();
    volumes::mount_shared_tmpfs(&volatile).map_err(failed(volatile.clone()))
}

async fn assemble(
    config: Arc<Config>,
    client: kube::Client,
    cri: Cri,
    cache: RuntimeCache,
    wakes: Wakes,
    to_the_end: &CancellationToken,
) -> Shared {
    let machine = Machine::observe(&config);
    let allocatable = machine.allocatable(&config);
    let amount = |name: &str| allocatable.get(name).copied().unwrap_or_default();
    let facts = NodeFacts {
        name: config.node_name.clone(),
        ips: config.node_ips.iter().map(ToString::to_string).collect(),
        allocatable_cpu_milli: amount("cpu").milli_value(),
        allocatable_memory_bytes: amount("memory").value(),
        allocatable_storage_bytes: amount("ephemeral-storage").value(),
    };
    let resolv_conf = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    let dns = NodeDns {
        servers: config.cluster_dns.clone(),
        domain: config.cluster_domain.clone(),
        host: parse_resolv_conf(&resolv_conf),
    };
    let recorder = Recorder::start(client.clone(), &config.node_name);
    let version = cri.version(cri_api::v1::VersionRequest::default()).await;
    Shared {
        objects: ObjectCache::new(client.clone(), wakes.clone()),
        tokens: Tokens::new(client.clone()),
        services: Services::follow(client.clone(), to_the_end.clone()),
        images: Images::new(cri.clone(), recorder.clone()),
        probes: ProbeRunner::new(cri.clone(), recorder.clone(), wakes.clone()),
        writer: StatusWriter::new(client.clone()),
        user_ranges: user_namespaces::Ranges::new(config.root_dir.join("pods"), config.ids_per_pod),
        node_memory: machine.memory_bytes,
        cgroup_unified: node::cgroup_unified(),
        runtime_name: version.map_or_else(|_| "unknown".to_owned(), |v| v.runtime_name),
        facts,
        dns,
        recorder,
        config,
        client,
        cri,
        cache,
        wakes,
    }
}

/// Starts the sources; once all of them have spoken, what nobody wants is ended.
fn follow_sources(shared: &Arc<Shared>, pods: &Pods, shutdown: &CancellationToken) {
    let config = &shared.config;
    let mirrors = Mirrors::new(
        shared.client.clone(),
        &config.node_name,
        shared.writer.clone(),
    );
    let (api_synced, mut api) = watch::channel(false);
    let (files_read, mut files) = watch::channel(config.static_pod_path.is_none());
    if let Some(folder) = config.static_pod_path.clone() {
        let follow = source::follow_files(
            folder,
            config.node_name.clone(),
            pods.clone(),
            mirrors.clone(),
            files_read,
            shutdown.clone(),
        );
        tokio::spawn(follow);
    }
    let follow = source::follow_api(
        shared.client.clone(),
        config.node_name.clone(),
        pods.clone(),
        mirrors.clone(),
        api_synced,
        shutdown.clone(),
    );
    tokio::spawn(follow);
    tokio::spawn(mirrors.run(shutdown.clone()));
    let (shared, pods) = (shared.clone(), pods.clone());
    tokio::spawn(async move {
        let both = api.wait_for(|synced| *synced).await.is_ok()
            && files.wait_for(|read| *read).await.is_ok();
        // Otherwise the kubelet ended first.
        if both {
            pods.end_orphans();
            let _ = tokio::task::spawn_blocking(move || {
                garbage::remove_abandoned_folders(&shared, &pods)
            })
            .await;
        }
    });
}

/// Ends every pod and removes what this kubelet made on the node.
async fn drain(shared: &Arc<Shared>, pods: &Pods) {
    let limit = shared.config.drain_grace + Duration::from_secs(10);
    if tokio::time::timeout(limit, pods.drain(shared.config.drain_grace))
        .await
        .is_err()
    {
        tracing::warn!("some pods did not end in time; the next start ends them");
        return;
    }
    let config = shared.config.clone();
    let _ = tokio::task::spawn_blocking(move || {
        if let Err(error) = volumes::unmount_shared_tmpfs(&config.volatile_dir()) {
            tracing::warn!(%error, "unmount the shared tmpfs");
        }
        for folder in [
            config.volatile_dir(),
            config.root_dir.join("pods"),
            config.root_dir.clone(),
        ] {
            let _ = std::fs::remove_dir(folder);
        }
    })
    .await;
}
