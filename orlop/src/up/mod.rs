//! `orlop up`: one machine, everything.

pub mod console;
pub mod demo;
mod preflight;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control_plane::ControlPlane;
use crate::layout::Layout;
use crate::lock::Lock;
use crate::node::{self, Clients, Node, Runtime, Serving};
use crate::{address, cli, image, pod_network};
use console::Console;
use controlplane::pki::Subject;

const NODE_READY: Duration = Duration::from_secs(30);

/// Runs a whole cluster until a signal (or, with `--exit`, until it is up and proved).
pub async fn run(options: cli::Up) -> anyhow::Result<()> {
    let mut console = Console::new();
    preflight::is_root()?;
    preflight::kernel()?;
    let layout = Layout::new(&std::path::absolute(&options.root.root)?);
    preflight::room(layout.root())?;
    let folder = Folder::open(&layout)?;
    let mut signals = Signals::new()?;
    let mut was_ready = false;
    let outcome = async {
        preflight::port(
            options.api.bind_address,
            options.api.secure_port,
            "secure-port",
        )?;
        preflight::port(
            options.api.bind_address,
            options.this_node.kubelet_port,
            "kubelet-port",
        )?;
        cluster(
            &options,
            &layout,
            &mut console,
            &mut signals,
            &mut was_ready,
        )
        .await
    };
    let outcome = outcome.await;
    // A cluster that a user worked with keeps its data; a demo, and one that never got ready, has none.
    let remove = !options.keep && (options.demo || options.exit || !was_ready);
    let closed = folder.close(remove);
    outcome.and(closed)
}

/// From the first component's start to the last one's end.
async fn cluster(
    options: &cli::Up,
    layout: &Layout,
    console: &mut Console,
    signals: &mut Signals,
    was_ready: &mut bool,
) -> anyhow::Result<()> {
    let (name, addresses) = address::identity(&options.this_node)?;
    let mut names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    names.push(name.clone());
    let mut network = options.network.clone();
    network.make_room(options.this_node.max_pods);
    let plane = ControlPlane::start(
        layout,
        &options.api,
        &network,
        addresses.first().copied(),
        names,
        options.this_node.kubelet_port,
    );
    let (plane, runtime) = tokio::join!(plane, Runtime::start(node::runtime_config(layout)));
    let (plane, runtime) = match (plane, runtime) {
        (Ok(plane), Ok(runtime)) => (plane, runtime),
        (plane, runtime) => return undo(plane, runtime).await,
    };
    let store = layout.root().join("store.db");
    console.stage_at(
        plane.server.store_opened(),
        "store open",
        &store.display().to_string(),
    );
    console.stage("API ready", &format!("https://{}", reachable(&plane)));
    let started = start_node(options, layout, &plane, runtime, &name, addresses);
    let mut node = match started {
        Ok(node) => node,
        Err(error) => {
            plane.stop().await;
            return Err(error);
        }
    };
    let outcome = tokio::select! {
        outcome = work(options, layout, &name, console, was_ready) => outcome,
        () = signals.next() => Ok(()),
        error = node.ended() => Err(error),
    };
    let stopped = node.stop().await;
    plane.stop().await;
    outcome.and(stopped)
}

/// One of the two did not start: the other is stopped.
async fn undo(
    plane: anyhow::Result<ControlPlane>,
    runtime: anyhow::Result<Runtime>,
) -> anyhow::Result<()> {
    let mut results = Vec::new();
    match plane {
        Ok(plane) => plane.stop().await,
        Err(error) => results.push(Err(error)),
    }
    match runtime {
        Ok(runtime) => results.push(runtime.stop().await),
        Err(error) => results.push(Err(error)),
    }
    results.into_iter().collect()
}

fn start_node(
    options: &cli::Up,
    layout: &Layout,
    plane: &ControlPlane,
    runtime: Runtime,
    name: &str,
    addresses: Vec<std::net::IpAddr>,
) -> anyhow::Result<Node> {
    let pki = plane.server.pki();
    let serving = pki.ensure(
        "kubelet-serving",
        &Subject::kubelet_serving(name, &addresses),
    )?;
    let config = node::Config {
        layout: layout.clone(),
        name: name.to_owned(),
        addresses,
        cluster_cidrs: options.network.cluster_cidr.clone(),
        serving: Some(Serving {
            certificate: serving.certificate,
            key: serving.key,
            client_ca: pki.ca().to_owned(),
        }),
        kubelet_port: options.this_node.kubelet_port,
        pod_manifests: options.this_node.pod_manifest_path.clone(),
        max_pods: options.this_node.max_pods,
        pod_network: pod_network::settings(&options.between_nodes)?,
        keep: options.keep,
    };
    let clients = Clients {
        kubelet: plane
            .server
            .client(&format!("system:node:{name}"), &["system:nodes"]),
        proxy: plane
            .server
            .client("system:kube-proxy", &["system:node-proxier"]),
    };
    Ok(Node::start(config, runtime, clients))
}

fn reachable(plane: &ControlPlane) -> String {
    plane
        .server
        .addresses()
        .first()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// What a user sees once the components run: the node gets ready, the demo is proved, the cluster stays.
async fn work(
    options: &cli::Up,
    layout: &Layout,
    name: &str,
    console: &mut Console,
    was_ready: &mut bool,
) -> anyhow::Result<()> {
    let client = node::client(&layout.kubeconfig()).await?;
    node_ready(&client, name).await?;
    *was_ready = true;
    console.stage("node Ready", name);
    if options.demo {
        let imported = image::import_bytes(&layout.cri_socket(), demo::image_archive()?).await?;
        console.stage("image imported", &imported.join(", "));
        demo::apply(&client).await?;
        demo::prove(&client, &layout.cri_socket(), console).await?;
    }
    if options.exit {
        return Ok(());
    }
    if options.demo {
        demo::apply(&client).await?;
        console.line("\nThe demo runs again, for you to look at.");
    }
    console.line(format!(
        "\nready: export KUBECONFIG={}",
        layout.kubeconfig().display()
    ));
    console.line("       kubectl get pods --all-namespaces --output wide");
    console.line("       Ctrl-C stops the cluster.");
    std::future::pending().await
}

async fn node_ready(client: &Client, name: &str) -> anyhow::Result<()> {
    let ready = |node: Option<&ApiNode>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| {
            all.iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
    };
    let waiting = await_condition(Api::<ApiNode>::all(client.clone()), name, ready);
    let waited = tokio::time::timeout(NODE_READY, waiting).await;
    waited.with_context(|| {
        format!("the node {name} did not get ready in {NODE_READY:?}; `orlop status` tells why")
    })??;
    Ok(())
}

/// SIGINT and SIGTERM.
struct Signals(Signal, Signal);

impl Signals {
    /// From now on they end the cluster in order, instead of the process.
    fn new() -> anyhow::Result<Self> {
        Ok(Self(
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

/// The root folder, and whether this run made it.
struct Folder {
    path: PathBuf,
    run: PathBuf,
    made: bool,
    lock: Lock,
}

impl Folder {
    fn open(layout: &Layout) -> anyhow::Result<Self> {
        let path = layout.root().to_owned();
        let made = !path.exists();
        let lock = Lock::folders(layout)?;
        Ok(Self {
            path,
            run: layout.run(),
            made,
            lock,
        })
    }

    /// Removes what this run made, if it is not to be kept.
    fn close(self, remove: bool) -> anyhow::Result<()> {
        if remove && self.made {
            for folder in [self.run.join("cri"), self.path.clone()] {
                match fs::remove_dir_all(&folder) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("remove {}", folder.display()));
                    }
                    _ => {}
                }
            }
            // Others' state may be beside it: the folder stays then.
            let _ = fs::remove_dir(&self.run);
        }
        drop(self.lock);
        Ok(())
    }
}
