//! Asking the demo's server something, as any client on the node would.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(3);

/// What `http://address/path` answers, if it answers 200 in time.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        anyhow::Ok(reply)
    };
    let answered = tokio::time::timeout(TIMEOUT, talk).await;
    let reply = answered
        .with_context(|| format!("http://{address}{path} did not answer in {TIMEOUT:?}"))?;
    let reply = reply.with_context(|| format!("get http://{address}{path}"))?;
    match reply.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => bail!(
            "http://{address}{path} answered {:?}",
            reply.lines().next().unwrap_or_default()
        ),
    }
}
