//! The server's life: what an earlier one left is taken over, the socket is served, and at the end nothing is left
//! that nobody needs.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri_api::MAX_MESSAGE_BYTES;
use cri_api::images::images_server::ImagesServer;
use cri_api::v1::image_service_server::ImageServiceServer;
use cri_api::v1::runtime_service_server::RuntimeServiceServer;
use journal::Journal;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::cni::BuiltinPlugins;
use crate::config::Config;
use crate::metrics::{Metrics, Timed};
use crate::runtime::Runtime;
use crate::sandbox::{Abilities, CgroupError, Cgroups, Pins};
use crate::service::{self, ImageFiles, Service};
use crate::state::{Events, Operations, State};
use crate::{cni, image, keeper, streaming};

/// The version of the journal's records.
const SCHEMA_VERSION: u32 = 1;

/// How long running requests may go on once the server is told to end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often, and how far apart, it is looked whether the keeper has ended after it agreed to.
const KEEPER_END_TRIES: u32 = 100;
const KEEPER_END_PAUSE: Duration = Duration::from_millis(5);

/// Why the server couldn't start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}: {source}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{0}: another CRI server is listening there; stop it or choose another --listen")]
    InUse(PathBuf),
    #[error(transparent)]
    Journal(#[from] journal::Error),
    #[error(transparent)]
    Images(#[from] image::Error),
    #[error(transparent)]
    Proxy(#[from] image::InvalidProxy),
    #[error(transparent)]
    Keeper(#[from] keeper::KeeperError),
    #[error(transparent)]
    Streams(#[from] streaming::Error),
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    #[error("take over what an earlier server left: {0}")]
    Recover(String),
    #[error("metrics_address {address}: {source}")]
    Metrics {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("serve {path}: {source}")]
    Serve {
        path: PathBuf,
        source: tonic::transport::Error,
    },
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io {
        operation,
        path,
        source,
    }
}

/// Serves CRI until `shutdown`. `ready` is told when the socket answers. `plugins` are the CNI plugins that this
/// program holds itself.
///
/// Containers that run when it ends go on, held by the keeper, and the next server takes them over. With no sandbox
/// left, the keeper and all else ends too.
///
/// # Errors
/// [`Error`]: nothing was served, or the socket broke.
pub async fn run(
    config: Config,
    plugins: BuiltinPlugins,
    shutdown: CancellationToken,
    ready: oneshot::Sender<()>,
) -> Result<(), Error> {
    let listen = config.listen.clone();
    // Before anything is touched: a second server is told to go away by the first one's journal or socket.
    let runtime = Arc::new(open(config, plugins, &shutdown).await?);
    runtime
        .recover()
        .await
        .map_err(|error: service::Error| Error::Recover(error.to_string()))?;
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(address) = runtime.config.metrics_address {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Metrics { address, source })?;
        tasks.spawn(runtime.metrics.clone().serve(listener));
    }
    tasks.spawn(runtime.clone().follow_exits());
    runtime.settle_images();
    let listener = bind(&listen)?;
    tracing::info!(socket = %listen.display(), "serving CRI");
    // The receiver may not care.
    let _ = ready.send(());
    let served = serve(&runtime, listener, &shutdown).await;
    drop(tasks);
    // A socket that nobody serves only misleads.
    let _ = std::fs::remove_file(&listen);
    served.map_err(|source| Error::Serve {
        path: listen,
        source,
    })?;
    close(&runtime).await;
    Ok(())
}

/// Serves until `shutdown`, and then as long as requests that are running take to end, up to [`FAREWELL`].
async fn serve(
    runtime: &Arc<Runtime>,
    listener: UnixListener,
    shutdown: &CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = Service(runtime.clone());
    let timed = Timed {
        metrics: runtime.metrics.clone(),
    };
    let server = tonic::transport::Server::builder()
        .layer(timed)
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            ImageServiceServer::new(service)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            ImagesServer::new(ImageFiles(runtime.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled());
    let impatient = async {
        shutdown.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        served = server => served,
        () = impatient => Ok(()),
    }
}

async fn open(
    config: Config,
    plugins: BuiltinPlugins,
    shutdown: &CancellationToken,
) -> Result<Runtime, Error> {
    for folder in [&config.root, &config.state] {
        make_folder(folder)?;
    }
    if UnixStream::connect(&config.listen).is_ok() {
        return Err(Error::InUse(config.listen));
    }
    let journal = Arc::new(Journal::open(config.root.join("cri.db"), SCHEMA_VERSION)?);
    let images = Arc::new(image::Store::open(
        config.root.join("images"),
        journal.clone(),
        config.layer_limits,
    )?);
    let hosts = config.registry_hosts_dirs.clone();
    let puller = image::Puller::new(images.clone(), hosts, image::Proxies::from_environment()?);
    let state = State::load(journal.clone(), &images)?;
    let cgroups = Cgroups::open(journal.clone())?;
    let pins = Pins::open(&config.state)
        .await
        .map_err(at("make the pins in", &config.state))?;
    let keeper = keeper::Client::connect_or_spawn(keeper::Config {
        dir: config.state.join("keeper"),
        program: config.keeper_program.clone(),
        cgroup: config.keeper_cgroup.clone(),
    })
    .await?;
    let streams = streaming::Server::start(config.stream_address, shutdown.clone()).await?;
    let network = cni::Network::load(
        config.cni_conf_dir.clone(),
        config.cni_bin_dirs.clone(),
        plugins,
    );
    let root = config.root.clone();
    let abilities = tokio::task::spawn_blocking(move || Abilities::observe(&root));
    let abilities = abilities
        .await
        .map_err(|error| at("ask what can be done in", &config.root)(io::Error::other(error)))?;
    if let Err(why) = &abilities.user_namespaces {
        tracing::info!(%why, "no user namespaces for pods");
    }
    Ok(Runtime {
        config,
        state,
        images,
        puller,
        keeper,
        network,
        events: Events::new(),
        cgroups,
        pins,
        abilities,
        operations: Operations::default(),
        streams,
        metrics: Metrics::default(),
        shutdown: shutdown.clone(),
    })
}

fn make_folder(path: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(at("make", path))
}

/// Binds the socket under another name, closes it to everybody but its owner, and only then gives it its name.
fn bind(path: &Path) -> Result<UnixListener, Error> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("remove", &new)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(at("bind", &new))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))
        .map_err(at("close", &new))?;
    std::fs::rename(&new, path).map_err(at("name", path))?;
    Ok(listener)
}

/// With no sandbox left, ends what outlives a server.
async fn close(runtime: &Runtime) {
    if !runtime.state.all_sandboxes().is_empty() {
        return;
    }
    match runtime.keeper.shutdown().await {
        Ok(()) => remove_keeper_cgroup(runtime).await,
        Err(error) => tracing::warn!(%error, "the keeper stays"),
    }
    if let Err(error) = runtime.pins.clone().close() {
        tracing::warn!(%error, "the pins' namespace stays");
    }
}

/// Removes the keeper's cgroup, once the keeper and the scribe have left it by ending. Another server's may be in it:
/// then it stays.
async fn remove_keeper_cgroup(runtime: &Runtime) {
    let Some(name) = &runtime.config.keeper_cgroup else {
        return;
    };
    let path = format!("/{}", name.trim_start_matches('/'));
    let Ok(cgroup) = linux::cgroup::Cgroup::at(runtime.cgroups.hierarchies().clone(), &path) else {
        return;
    };
    for _ in 0..KEEPER_END_TRIES {
        if cgroup
            .processes()
            .is_ok_and(|processes| processes.is_empty())
        {
            if let Err(error) = cgroup.delete() {
                tracing::debug!(%error, "the keeper's cgroup stays");
            }
            return;
        }
        tokio::time::sleep(KEEPER_END_PAUSE).await;
    }
}
