//! What every operation of the server works on.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::sandbox::{Abilities, Cgroups, Pins, SandboxFiles};
use crate::service::Error;
use crate::state::{Container, Events, Operations, Sandbox, State};
use crate::{cni, image, keeper, streaming};

/// The server's parts. The operations are methods of it, each in a file of [`crate::service`].
pub struct Runtime {
    pub config: Config,
    pub state: State,
    pub images: Arc<image::Store>,
    pub puller: image::Puller,
    pub keeper: keeper::Client,
    pub network: cni::Network,
    pub events: Events,
    pub cgroups: Cgroups,
    pub pins: Pins,
    pub abilities: Abilities,
    pub operations: Operations<String>,
    pub streams: streaming::Server,
    pub metrics: Metrics,
    /// The server is ending: streams that have no end of their own end with it.
    pub shutdown: CancellationToken,
}

impl Runtime {
    /// A sandbox by its id or the beginning of it.
    ///
    /// # Errors
    /// [`Error::NoSandbox`].
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        self.state
            .sandbox(id)
            .ok_or_else(|| Error::NoSandbox(id.to_owned()))
    }

    /// A container by its id or the beginning of it.
    ///
    /// # Errors
    /// [`Error::NoContainer`].
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.state
            .container(id)
            .ok_or_else(|| Error::NoContainer(id.to_owned()))
    }

    /// A container's folder: its specification and its writable layer.
    pub fn container_folder(&self, id: &str) -> PathBuf {
        self.config.root.join("containers").join(id)
    }

    /// Where a sandbox's network namespace is pinned.
    pub fn netns_path(&self, sandbox_id: &str) -> PathBuf {
        self.config.netns_dir.join(sandbox_id)
    }

    /// A sandbox's files.
    pub fn files(&self, sandbox_id: &str) -> SandboxFiles {
        SandboxFiles::of(&self.config.state, sandbox_id)
    }
}

/// Runs `work` where it may block.
///
/// # Errors
/// Its own; a panic of its is one too.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Io {
            what: "run blocking work".into(),
            source: std::io::Error::other(error),
        }),
    }
}
