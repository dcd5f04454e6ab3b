//! What each command does: configuration in, a component run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cli::{self, Command};
use crate::control_plane::ControlPlane;
use crate::layout::Layout;
use crate::lock::Lock;
use crate::node::{self, Clients, Node, Runtime, Serving};
use crate::{address, image, pod_network, status, up};

/// Runs a command to its end.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(options) => block_on(up::run(options)),
        Command::Server(options) => block_on(server(options)),
        Command::Node(options) => block_on(whole_node(options)),
        Command::Kubelet(options) => block_on(kubelet(options)),
        Command::Cri(options) => block_on(cri(options)),
        Command::Proxy(options) => block_on(proxy(*options)),
        Command::Image(command) => block_on(image::run(command)),
        Command::Status(options) => block_on(status::run(options)),
        Command::Cni(command) => cni(command),
        Command::Runtime { .. } => {
            bail!("runc's words are read before any others: this is unreachable")
        }
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(work);
    // A blocking call that hangs must not hang the end.
    runtime.shutdown_background();
    outcome
}

/// Runs until SIGINT or SIGTERM cancels the token that `work` was given.
async fn until_signal<T>(
    work: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    });
    work(stop).await
}

async fn server(options: cli::Server) -> anyhow::Result<()> {
    let layout = Layout::new(&std::path::absolute(&options.root.root)?);
    let _lock = Lock::folders(&layout)?;
    let names = options
        .advertise_address
        .iter()
        .map(ToString::to_string)
        .collect();
    let plane = ControlPlane::start(
        &layout,
        &options.api,
        &options.network,
        options.advertise_address,
        names,
        10250,
    )
    .await?;
    println!("kubeconfig: {}", layout.kubeconfig().display());
    until_signal(async |stop| {
        stop.cancelled().await;
        anyhow::Ok(())
    })
    .await?;
    plane.stop().await;
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn serving(tls: &cli::Tls) -> anyhow::Result<Option<Serving>> {
    match (
        &tls.tls_cert_file,
        &tls.tls_private_key_file,
        &tls.client_ca_file,
    ) {
        (Some(certificate), Some(key), Some(ca)) => Ok(Some(Serving {
            certificate: read(certificate)?,
            key: read(key)?,
            client_ca: read(ca)?,
        })),
        (None, None, _) => Ok(None),
        _ => bail!("--tls-cert-file, --tls-private-key-file and --client-ca-file go together"),
    }
}

async fn whole_node(options: cli::Node) -> anyhow::Result<()> {
    let layout = Layout::new(&std::path::absolute(&options.root.root)?);
    let _lock = Lock::folders(&layout)?;
    let (name, addresses) = address::identity(&options.this_node)?;
    let serving = serving(&options.tls)?;
    let pod_network = pod_network::settings(&options.between_nodes)?;
    let runtime = Runtime::start(node::runtime_config(&layout)).await?;
    let client = node::client(&options.kubeconfig).await?;
    let config = node::Config {
        layout,
        name,
        addresses,
        cluster_cidrs: options.cluster_cidr,
        serving,
        kubelet_port: options.this_node.kubelet_port,
        pod_manifests: options.this_node.pod_manifest_path,
        max_pods: options.this_node.max_pods,
        pod_network,
        keep: true,
    };
    let mut node = Node::start(
        config,
        runtime,
        Clients {
            kubelet: client.clone(),
            proxy: client,
        },
    );
    let ended = until_signal(async |stop| {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            error = node.ended() => Err(error),
        }
    })
    .await;
    ended.and(node.stop().await)
}

async fn kubelet(options: cli::Kubelet) -> anyhow::Result<()> {
    let layout = Layout::new(&std::path::absolute(&options.root.root)?);
    let (name, addresses) = address::identity(&options.this_node)?;
    let socket = options
        .container_runtime_endpoint
        .strip_prefix("unix://")
        .unwrap_or(&options.container_runtime_endpoint);
    ensure!(
        socket.starts_with('/'),
        "--container-runtime-endpoint: {socket} is not a unix socket's path"
    );
    let config = node::Config {
        layout,
        name,
        addresses,
        cluster_cidrs: Vec::new(),
        serving: serving(&options.tls)?,
        kubelet_port: options.this_node.kubelet_port,
        pod_manifests: options.this_node.pod_manifest_path,
        max_pods: options.this_node.max_pods,
        pod_network: None,
        keep: true,
    };
    let mut config = node::kubelet_config(config);
    config.cri_socket = PathBuf::from(socket);
    let client = node::client(&options.kubeconfig).await?;
    until_signal(async |stop| {
        kubelet::run(config, client, stop)
            .await
            .context("the kubelet failed")
    })
    .await
}

async fn cri(options: cli::Cri) -> anyhow::Result<()> {
    let config = match &options.config {
        Some(file) => cri_shim::Config::from_toml(&read(file)?)
            .with_context(|| format!("read {}", file.display()))?,
        None => cri_shim::Config::default(),
    };
    let config = cri_shim::Config {
        listen: options.listen.unwrap_or(config.listen),
        root: options.root.unwrap_or(config.root),
        state: options.state.unwrap_or(config.state),
        ..config
    };
    if options.print_config {
        print!("{}", config.documented());
        return Ok(());
    }
    let (ready, _is_ready) = oneshot::channel();
    until_signal(async |stop| {
        cri_shim::run(config, node::plugin, stop, ready)
            .await
            .context("the CRI server failed")
    })
    .await
}

async fn proxy(options: cli::Proxy) -> anyhow::Result<()> {
    let flags = &options.flags;
    match flags.version.as_deref() {
        None | Some("false") => {}
        Some(_) => {
            println!("orlop {}", env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
    }
    if flags.switches.cleanup || options.cleanup_kube_proxy {
        return remove_rules(&options);
    }
    let host_name = address::host_name()?;
    if let Some(path) = &flags.write_config_to {
        let text = flags.file()?.text()?;
        return fs::write(path, text).with_context(|| format!("write {}", path.display()));
    }
    let mut loaded = flags.load(&host_name)?;
    loaded
        .config
        .bridge
        .get_or_insert_with(|| cri_shim::cni::DEFAULT_BRIDGE.to_owned());
    if flags.switches.init_only {
        proxy::prepare(&mut loaded.config);
        return Ok(());
    }
    let client = proxy_client(&loaded).await?;
    if flags.dump {
        let text = proxy::dump(&loaded.config, &client).await;
        print!("{}", text.context("read Services from the API server")?);
        return Ok(());
    }
    set_oom_score_adj(loaded.oom_score_adj);
    let policy = options
        .network_policy
        .then(|| proxy::policy::Config::new(&loaded.config.node_name));
    let config = loaded.config;
    until_signal(async |stop| {
        let services = async {
            proxy::run(config, client.clone(), stop.clone())
                .await
                .context("the service proxy failed")
        };
        let policies = async {
            match policy {
                None => Ok(()),
                Some(policy) => proxy::policy::run(policy, client.clone(), stop.clone())
                    .await
                    .context("the network policies failed"),
            }
        };
        tokio::try_join!(services, policies).map(|_| ())
    })
    .await
}

/// By the kubeconfig, or as the service account of the pod that this runs in.
async fn proxy_client(loaded: &proxy::kube_proxy::Loaded) -> anyhow::Result<kube::Client> {
    if let Some(kubeconfig) = &loaded.kubeconfig {
        return node::client_of(kubeconfig, loaded.master.as_deref()).await;
    }
    if let Some(master) = &loaded.master {
        let url = master
            .parse()
            .with_context(|| format!("--master {master}"))?;
        return Ok(kube::Client::try_from(kube::Config::new(url))?);
    }
    node::in_cluster_client().context(
        "no --kubeconfig, no clientConnection.kubeconfig in --config, no --master, and no service account of a pod",
    )
}

/// As kube-proxy, which is among the last that the kernel ends for want of memory. Without the right to it the process
/// goes on with what it has.
fn set_oom_score_adj(score: i32) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(%error, "oom_score_adj can't be set to {score}: it stays as it is");
    }
}

fn remove_rules(options: &cli::Proxy) -> anyhow::Result<()> {
    if options.flags.switches.cleanup {
        proxy::policy::cleanup().context("remove the network policies' rules")?;
        proxy::cleanup().context("remove the service rules")?;
        proxy::cleanup_iptables().context("remove the service rules of iptables")?;
    }
    if options.cleanup_kube_proxy {
        proxy::cleanup_kube_proxy().context("remove kube-proxy's rules")?;
    }
    Ok(())
}

fn cni(command: cli::Cni) -> anyhow::Result<()> {
    match command {
        // It has to begin without threads, so that it is usually dispatched before the command line is read.
        cli::Cni::DhcpDaemon { flags } => {
            std::process::exit(cni_plugins::dhcp_daemon(&flags));
        }
        cli::Cni::List => cni_plugins::names().for_each(|name| println!("{name}")),
        cli::Cni::Install { folder } => {
            let program = std::env::current_exe().context("find this program")?;
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            for name in cni_plugins::names() {
                let (link, fresh) = (folder.join(name), folder.join(format!(".{name}.new")));
                let _ = fs::remove_file(&fresh);
                std::os::unix::fs::symlink(&program, &fresh)
                    .with_context(|| format!("link {}", fresh.display()))?;
                fs::rename(&fresh, &link).with_context(|| format!("link {}", link.display()))?;
            }
        }
    }
    Ok(())
}
