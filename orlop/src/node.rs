//! A node's components, in one process: the CRI server, the kubelet on it, the service proxy and network policies.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use kube::Client;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::layout::Layout;

/// What a node is told.
pub struct Config {
    /// Where its files are.
    pub layout: Layout,
    /// The name that it registers with.
    pub name: String,
    /// Its addresses, one a family.
    pub addresses: Vec<IpAddr>,
    /// Addresses of the cluster's pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// The kubelet's serving certificate; without one its API isn't served.
    pub serving: Option<Serving>,
    /// The kubelet's port.
    pub kubelet_port: u16,
    /// Manifests of static pods.
    pub pod_manifests: Option<std::path::PathBuf>,
    /// Most pods.
    pub max_pods: u32,
    /// How other nodes' pods are reached; `None` if another program takes care of it.
    pub pod_network: Option<watch::Receiver<proxy::route::Settings>>,
    /// Leave the containers at the end.
    pub keep: bool,
}

/// A certificate for the kubelet's API, and the CA of its callers; PEM.
#[derive(Clone)]
pub struct Serving {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Who signs callers.
    pub client_ca: String,
}

/// Clients of the API server, one for each identity.
pub struct Clients {
    /// The kubelet's.
    pub kubelet: Client,
    /// The proxy's.
    pub proxy: Client,
}

/// One running component.
struct Part {
    name: &'static str,
    task: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Part {
    fn start<F, E>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let stop = CancellationToken::new();
        let running = run(stop.clone());
        let task =
            tokio::spawn(
                async move { running.await.with_context(|| format!("the {name} failed")) },
            );
        Self { name, task, stop }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task
            .await
            .map_err(|error| anyhow!("the {} panicked: {error}", self.name))?
    }

    /// Waits for its end, which it should not come to by itself.
    async fn ended(&mut self) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => anyhow!("the {} ended", self.name),
            Ok(Err(error)) => error,
            Err(error) => anyhow!("the {} panicked: {error}", self.name),
        }
    }
}

/// A running CRI server.
pub struct Runtime(Part);

impl Runtime {
    /// Starts the CRI server and waits until it serves.
    pub async fn start(config: cri_shim::Config) -> anyhow::Result<Self> {
        let (ready, is_ready) = oneshot::channel();
        let mut part = Part::start("CRI server", |stop| {
            cri_shim::run(config, plugin, stop, ready)
        });
        tokio::select! {
            result = is_ready => match result {
                Ok(()) => Ok(Self(part)),
                Err(_) => Err(part.ended().await),
            },
            error = part.ended() => Err(error),
        }
    }

    /// Waits for its end, which it should not come to by itself.
    pub async fn ended(&mut self) -> anyhow::Error {
        self.0.ended().await
    }

    /// Stops serving; the containers go on.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.0.stop().await
    }
}

/// Our own CNI plugins, called in process.
pub fn plugin(
    name: &str,
    env: &BTreeMap<String, String>,
    stdin: &[u8],
) -> Option<cri_shim::cni::PluginOutput> {
    cni_plugins::run(name, env, stdin).map(|output| cri_shim::cni::PluginOutput {
        code: output.code,
        stdout: output.stdout,
    })
}

/// The CRI server's configuration for this layout.
pub fn runtime_config(layout: &Layout) -> cri_shim::Config {
    cri_shim::Config {
        listen: layout.cri_socket(),
        root: layout.root().join("cri"),
        state: layout.run().join("cri"),
        cni_conf_dir: layout.cni_conf(),
        cni_data_dir: layout.cni_leases(),
        ..Default::default()
    }
}

/// A running node.
pub struct Node {
    runtime: Runtime,
    kubelet: Part,
    proxy: Part,
    policy: Part,
    routes: Option<Part>,
    layout: Layout,
    keep: bool,
}

impl Node {
    /// Starts kubelet, proxy and network policies on a running CRI server.
    pub fn start(config: Config, runtime: Runtime, clients: Clients) -> Self {
        let (keep, layout) = (config.keep, config.layout.clone());
        let proxy_config = proxy_config(&config.name, &config.cluster_cidrs);
        let policy_config = proxy::policy::Config::new(&config.name);
        let policy_client = clients.proxy.clone();
        let routes = config.pod_network.clone().map(|settings| {
            let config = proxy::route::Config::new(&config.name, settings);
            let client = clients.proxy.clone();
            Part::start("routes to other nodes", |stop| {
                proxy::route::run(config, client, stop)
            })
        });
        let policy = Part::start("network policy", |stop| {
            proxy::policy::run(policy_config, policy_client, stop)
        });
        let served = proxy_config.local_endpoints();
        let proxy = Part::start("service proxy", |stop| {
            proxy::run(proxy_config, clients.proxy, stop)
        });
        let mut kubelet_config = kubelet_config(config);
        kubelet_config.served = Some(served);
        let kubelet = Part::start("kubelet", |stop| {
            kubelet::run(kubelet_config, clients.kubelet, stop)
        });
        Self {
            runtime,
            kubelet,
            proxy,
            policy,
            routes,
            layout,
            keep,
        }
    }

    /// Waits for the end of a component, which none should come to by itself.
    pub async fn ended(&mut self) -> anyhow::Error {
        let routes = async {
            match &mut self.routes {
                Some(routes) => routes.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = routes => error,
            error = self.runtime.ended() => error,
            error = self.kubelet.ended() => error,
            error = self.proxy.ended() => error,
            error = self.policy.ended() => error,
        }
    }

    /// Stops it. Unless the containers are kept, nothing of the node is left in the kernel. Goes on past errors,
    /// and returns the first.
    pub async fn stop(self) -> anyhow::Result<()> {
        let drained = self.kubelet.stop().await;
        let mut results = vec![drained, self.proxy.stop().await, self.policy.stop().await];
        if let Some(routes) = self.routes {
            results.push(routes.stop().await);
            if !self.keep {
                results.push(proxy::route::cleanup().context("remove the routes to other nodes"));
            }
        }
        if !self.keep {
            results.push(proxy::cleanup().context("remove the service rules"));
            results.push(proxy::policy::cleanup().context("remove the network policies' rules"));
        }
        results.push(self.runtime.stop().await);
        if !self.keep {
            results.push(remove_network(&self.layout));
        }
        results.into_iter().collect()
    }
}

/// Removes the default pod network with what outlives its last pod: the bridge, its rules, the configuration.
fn remove_network(layout: &Layout) -> anyhow::Result<()> {
    let (name, bridge) = (
        cri_shim::cni::DEFAULT_NETWORK,
        cri_shim::cni::DEFAULT_BRIDGE,
    );
    cni_plugins::remove_network(name, bridge, &layout.cni_leases())
        .context("remove the pod network")?;
    let conflist = layout.cni_conf().join(cri_shim::cni::DEFAULT_CONFLIST);
    match std::fs::remove_file(&conflist) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", conflist.display()))
        }
        _ => Ok(()),
    }
}

/// The kubelet's configuration.
pub fn kubelet_config(config: Config) -> kubelet::Config {
    let layout = config.layout;
    let mut kubelet = kubelet::Config::new(config.name, config.addresses);
    kubelet.root_dir = layout.kubelet();
    kubelet.pod_logs_dir = layout.pod_logs();
    kubelet.container_logs_dir = layout.container_logs();
    kubelet.cri_socket = layout.cri_socket();
    kubelet.static_pod_path = config.pod_manifests;
    kubelet.max_pods = config.max_pods;
    kubelet.drain_on_shutdown = !config.keep;
    let port = config.kubelet_port;
    // The wildcard of IPv6 takes IPv4 too.
    let v6 = kubelet.node_ips.iter().any(IpAddr::is_ipv6);
    let address = if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    kubelet.server = config.serving.map(|serving| kubelet::ServerConfig {
        address,
        port,
        cert_pem: serving.certificate,
        key_pem: serving.key,
        client_ca_pem: serving.client_ca,
        allowed_users: vec!["kube-apiserver-kubelet-client".to_owned()],
    });
    kubelet
}

/// The proxy's configuration.
pub fn proxy_config(node_name: &str, cluster_cidrs: &[IpNet]) -> proxy::Config {
    proxy::Config {
        bridge: Some(cri_shim::cni::DEFAULT_BRIDGE.to_owned()),
        ..proxy::Config::new(node_name, cluster_cidrs.to_vec())
    }
}

/// A client with a pod's service account.
pub fn in_cluster_client() -> anyhow::Result<Client> {
    Ok(Client::try_from(kube::Config::incluster()?)?)
}

/// A client from a kubeconfig file.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    client_of(kubeconfig, None).await
}

/// A client from a kubeconfig file, of the API server at another URL if one is given.
pub async fn client_of(kubeconfig: &Path, url: Option<&str>) -> anyhow::Result<Client> {
    let read = kube::config::Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("read {}", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await;
    let mut config = config.with_context(|| format!("use {}", kubeconfig.display()))?;
    if let Some(url) = url {
        config.cluster_url = url.parse().with_context(|| format!("--master {url}"))?;
    }
    Client::try_from(config).with_context(|| format!("use {}", kubeconfig.display()))
}
