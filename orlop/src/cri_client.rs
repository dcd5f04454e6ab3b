//! A connection to a CRI server on this machine.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tonic::transport::{Channel, Endpoint, Uri};

/// Connects to the CRI server that listens on `socket`.
pub async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let path = PathBuf::from(socket);
    let dial = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move {
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                tokio::net::UnixStream::connect(path).await?,
            ))
        }
    });
    // The authority is not looked at: the socket is the address.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(dial)
        .await;
    channel.with_context(|| {
        format!(
            "connect to the CRI server at {}: is it running?",
            socket.display()
        )
    })
}
