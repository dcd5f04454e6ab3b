//! A running API server: its listeners, and clients that need no socket.

use std::convert::Infallible;
use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Config;
use super::api::Api;
use super::auth::User;
use super::auth::authorize::Authorizer;
use super::auth::tokens::{TokenError, Tokens};
use super::cache::{Cache, Filter};
use super::failure::Failure;
use super::kinds::kinds;
use super::kubelet::Kubelets;
use super::services::Services;
use super::{bootstrap, expiry, listen, reply, tls};
use crate::pki::{self, Pki, Subject};
use crate::store::compaction;
use crate::store::sqlite::{OpenError, Sqlite};

/// How long a stop waits for connections that are in use.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// A running API server. Dropping it does not stop it: [`Server::shutdown`] does.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    api: Arc<Api>,
    pki: Pki,
    addresses: Vec<SocketAddr>,
    kubeconfig: PathBuf,
    store_opened: Instant,
    tasks: TaskTracker,
}

/// Why an API server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("create {}: {source}", path.display())]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("read the store: {0}")]
    Store(#[from] crate::store::Error),
    #[error(transparent)]
    Pki(#[from] pki::Error),
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("make the cluster's first objects: {0}")]
    Bootstrap(Failure),
}

impl Server {
    /// Opens the store, makes what certificates are missing, listens, and serves.
    ///
    /// # Errors
    /// When the store, a key file or a listening address cannot be had; nothing is left running then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let root = config.root.clone();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(|source| StartError::Folder {
                path: root.clone(),
                source,
            })?;
        let (listeners, addresses) = bind(&config.listen).await?;
        let store = Arc::new(Sqlite::open(&root.join("store.db"))?);
        let store_opened = Instant::now();
        let pki = Pki::open(&root.join("pki"))?;
        let advertised = config.advertise.unwrap_or_else(|| advertised(&addresses));
        let services = Services::new(config.service_cidrs.clone(), config.node_ports.clone());
        let serving = pki.ensure(
            "apiserver",
            &serving_subject(&config, &addresses, advertised, &services),
        )?;
        let tls_server = TlsAcceptor::from(Arc::new(tls::server(pki.ca(), &serving)?));
        let kubelet_client =
            Subject::client("kube-apiserver-kubelet-client", Some("system:masters"));
        let kubelet_client = pki.ensure("apiserver-kubelet-client", &kubelet_client)?;
        let mut kubelet_tls = tls::client(pki.ca(), &kubelet_client)?;
        if !config.verify_kubelets {
            tls::trust_any(&mut kubelet_tls);
        }
        let kubelets = Kubelets::new(kubelet_tls, config.kubelet_port);
        let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
        let tokens = Tokens::new(
            issuer,
            &pki.service_account_key(),
            &pki.service_account_public_key(),
        )?;

        let stop = CancellationToken::new();
        let stop_on_error = stop.clone().drop_guard();
        let cache = Cache::start(store, kinds(), stop.clone()).await?;
        let port = addresses.first().map_or(6443, SocketAddr::port);
        let authorizer = Authorizer::new(cache.clone());
        let api = Arc::new(Api {
            authorizer,
            cache,
            tokens,
            services,
            kubelets,
            config,
            stop: stop.clone(),
        });
        adopt_services(&api);
        bootstrap::ensure(&api, advertised, port)
            .await
            .map_err(StartError::Bootstrap)?;
        let kubeconfig = root.join("admin.kubeconfig");
        let admin = pki.ensure(
            "admin",
            &Subject::client("kubernetes-admin", Some("system:masters")),
        )?;
        let url = format!("https://{}", reachable(&addresses));
        pki::write_private(
            &kubeconfig,
            &pki.kubeconfig(&url, "kubernetes-admin", &admin),
        )?;

        let tasks = TaskTracker::new();
        for listener in listeners {
            tasks.spawn(listen::serve(
                api.clone(),
                listener,
                tls_server.clone(),
                tasks.clone(),
            ));
        }
        tasks.spawn(expiry::run(api.clone()));
        let compacted = api.clone();
        tasks.spawn(async move {
            compaction::run(
                compacted.cache.store(),
                compaction::Policy::default(),
                compacted.stop.clone(),
            )
            .await;
        });
        tasks.close();
        stop_on_error.disarm();
        Ok(Self {
            shared: Arc::new(Shared {
                api,
                pki,
                addresses,
                kubeconfig,
                store_opened,
                tasks,
            }),
        })
    }

    /// A client that calls this server in process, as `user` in `groups`, watch streams included. It passes
    /// authorization and admission like any other. Call it inside a tokio runtime.
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        let user = User::authenticated(user, groups.iter().copied());
        let api = self.shared.api.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (api, user) = (api.clone(), user.clone());
            let request = request.map(reply::boxed);
            async move { Ok::<_, Infallible>(api.handle(Some(user), request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Where HTTPS is served.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.shared.addresses
    }

    /// When the store was open, as a stage of the start.
    pub fn store_opened(&self) -> Instant {
        self.shared.store_opened
    }

    /// The administrator's kubeconfig, mode 0600.
    pub fn kubeconfig_path(&self) -> &Path {
        &self.shared.kubeconfig
    }

    /// The cluster's authority, for the certificates of its other components.
    pub fn pki(&self) -> &Pki {
        &self.shared.pki
    }

    /// Stops listening and ends every watch; waits a moment for requests that are under way. The store is closed
    /// when the last client is dropped.
    pub async fn shutdown(&self) {
        self.shared.api.stop.cancel();
        if tokio::time::timeout(SHUTDOWN_WAIT, self.shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::debug!("connections are still in use at the stop of the API server");
        }
    }
}

async fn bind(wanted: &[SocketAddr]) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), StartError> {
    let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
    for &address in wanted {
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        addresses.push(listener.local_addr().map_err(listen)?);
        listeners.push(listener);
    }
    Ok((listeners, addresses))
}

/// The address at which others reach a server that was not told one.
fn advertised(addresses: &[SocketAddr]) -> IpAddr {
    let listening = addresses.iter().map(SocketAddr::ip);
    if let Some(address) = listening
        .clone()
        .find(|a| !a.is_unspecified() && !a.is_loopback())
    {
        return address;
    }
    let loopback = IpAddr::from([127, 0, 0, 1]);
    if listening.clone().any(|a| a.is_unspecified()) {
        default_source().unwrap_or(loopback)
    } else {
        loopback
    }
}

/// The address that this machine would call the world from; nothing is sent.
fn default_source() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip())
}

/// Where a client on this machine reaches the server.
fn reachable(addresses: &[SocketAddr]) -> SocketAddr {
    let mut address = addresses
        .first()
        .copied()
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 6443)));
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            IpAddr::from([127, 0, 0, 1])
        } else {
            IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
        });
    }
    address
}

/// Every name under which the server is called.
fn serving_subject(
    config: &Config,
    addresses: &[SocketAddr],
    advertised: IpAddr,
    services: &Services,
) -> Subject {
    let mut sans: Vec<String> = [
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ]
    .map(String::from)
    .to_vec();
    sans.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    let listening = addresses
        .iter()
        .map(SocketAddr::ip)
        .filter(|a| !a.is_unspecified());
    sans.extend(
        listening
            .chain([advertised])
            .chain(services.first_addresses())
            .map(|a| a.to_string()),
    );
    sans.extend(config.extra_sans.iter().cloned());
    sans.sort();
    sans.dedup();
    Subject {
        common_name: "kube-apiserver".into(),
        organization: None,
        sans,
    }
}

/// Notes the addresses and ports of the Services that are there.
fn adopt_services(api: &Api) {
    let Some(services) = api.cache.resource("", "v1", "services") else {
        return;
    };
    for service in services.list(&Filter::default(), api.cache.applied()).0 {
        api.services.adopt(&service.value());
    }
}
