//! Port forwarding: pairs of streams, one for a connection's bytes and one for what goes wrong with it.

use super::session::PortForwardSession;
use super::spdy::{Connection, Stream};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The protocol's name, in `X-Stream-Protocol-Version`.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";

/// The same inside WebSocket messages, in `Sec-WebSocket-Protocol`.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// How long half a pair waits for its other half (upstream's default).
const PAIR_LIMIT: Duration = Duration::from_secs(30);

/// A pair that isn't complete yet.
#[derive(Default)]
struct Half {
    data: Option<Stream>,
    error: Option<Stream>,
    since: Option<tokio::time::Instant>,
}

/// Serves until the client is gone.
pub(super) async fn serve(mut connection: Connection, session: PortForwardSession) {
    let session = Arc::new(session);
    let mut halves: HashMap<String, Half> = HashMap::new();
    while let Some(stream) = connection.streams.recv().await {
        halves.retain(|_, half| half.since.is_none_or(|since| since.elapsed() < PAIR_LIMIT));
        let Some(key) = pair_of(&stream) else {
            stream.output.reset().await;
            continue;
        };
        let half = halves.entry(key.clone()).or_default();
        half.since.get_or_insert_with(tokio::time::Instant::now);
        match stream.header("streamType") {
            Some("data") => half.data = Some(stream),
            _ => half.error = Some(stream),
        }
        if let Some(Half {
            data: Some(data),
            error: Some(error),
            ..
        }) = halves
            .remove(&key)
            .and_then(|half| keep_incomplete(&mut halves, key, half))
        {
            tokio::spawn(forward(data, error, session.clone()));
        }
    }
}

/// Gives a complete pair back, and keeps half a one.
fn keep_incomplete(halves: &mut HashMap<String, Half>, key: String, half: Half) -> Option<Half> {
    if half.data.is_some() && half.error.is_some() {
        return Some(half);
    }
    halves.insert(key, half);
    None
}

/// Which pair a stream belongs to: its `requestID`, or for older clients the id of its error stream, which comes first.
fn pair_of(stream: &Stream) -> Option<String> {
    let id = stream.output.id;
    match (stream.header("requestID"), stream.header("streamType")) {
        (Some(request), Some("data" | "error")) => Some(request.to_owned()),
        (None, Some("error")) => Some(id.to_string()),
        (None, Some("data")) => Some(id.checked_sub(2)?.to_string()),
        _ => None,
    }
}

/// One connection to one port. A client's reset ends it, and nothing else.
async fn forward(data: Stream, error: Stream, session: Arc<PortForwardSession>) {
    let (output, reset) = (data.output.clone(), data.output.reset.clone());
    let result = match data
        .header("port")
        .and_then(|port| port.parse::<u16>().ok())
    {
        None | Some(0) => Err("the stream names no port".to_owned()),
        Some(port) => {
            let carry = async {
                let socket = (session.dial)(port)
                    .await
                    .map_err(|cause| format!("connect to port {port}: {cause}"))?;
                carry(data, socket)
                    .await
                    .map_err(|cause| format!("port {port}: {cause}"))
            };
            tokio::select! {
                () = reset.cancelled() => Ok(()),
                result = carry => result,
            }
        }
    };
    if let Err(message) = result {
        tracing::debug!(%message, "port forward");
        error
            .output
            .send(Bytes::from(format!("error forwarding port: {message}")))
            .await;
    }
    error.output.finish().await;
    output.finish().await;
}

/// Both ways, each to its own end.
async fn carry(stream: Stream, socket: TcpStream) -> std::io::Result<()> {
    let (mut reader, mut writer) = socket.into_split();
    let Stream {
        mut input, output, ..
    } = stream;
    let inward = async {
        while let Some(bytes) = input.recv().await {
            writer.write_all(&bytes).await?;
        }
        writer.shutdown().await
    };
    let outward = async {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let count = reader.read(&mut buffer).await?;
            if count == 0 || !output.send(Bytes::copy_from_slice(&buffer[..count])).await {
                return Ok(());
            }
        }
    };
    // When the server has ended its half, the client may go on for ever; upstream doesn't wait for it either.
    tokio::pin!(inward, outward);
    tokio::select! {
        result = &mut outward => result,
        result = &mut inward => {
            result?;
            outward.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spdy::testing::Client;
    use super::*;
    use tokio::net::TcpListener;

    /// A server that gives back what it gets, and a session that forwards to it; port 9 is refused.
    async fn echo() -> (u16, PortForwardSession) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut reader, mut writer) = socket.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        let dial: super::super::session::DialPort = Box::new(move |asked| {
            Box::pin(async move {
                match asked {
                    9 => Err(std::io::ErrorKind::ConnectionRefused.into()),
                    _ => TcpStream::connect(("127.0.0.1", port)).await,
                }
            })
        });
        (
            port,
            PortForwardSession {
                ports: Vec::new(),
                dial,
            },
        )
    }

    fn start(session: PortForwardSession) -> Client {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(Connection::start(theirs), session));
        Client::new(ours)
    }

    async fn open_pair(client: &mut Client, port: u16, request: &str) -> (u32, u32) {
        let port = port.to_string();
        let error = client
            .open(&[
                ("streamtype", "error"),
                ("port", &port),
                ("requestid", request),
            ])
            .await;
        let data = client
            .open(&[
                ("streamtype", "data"),
                ("port", &port),
                ("requestid", request),
            ])
            .await;
        (error, data)
    }

    #[tokio::test]
    async fn a_connection_is_carried_both_ways_to_its_end() {
        let (port, session) = echo().await;
        let mut client = start(session);
        let (error, data) = open_pair(&mut client, port, "0").await;
        client.send(data, b"hello", true).await;
        assert_eq!(client.read_to_end(data).await, b"hello");
        assert_eq!(client.read_to_end(error).await, b"");
    }

    #[tokio::test]
    async fn a_refused_port_is_told_and_ends_one_connection_only() {
        let (port, session) = echo().await;
        let mut client = start(session);
        let (good_error, good) = open_pair(&mut client, port, "0").await;
        let (error, data) = open_pair(&mut client, 9, "1").await;
        let told = String::from_utf8(client.read_to_end(error).await).unwrap();
        assert!(
            told.contains("error forwarding port") && told.contains("refused"),
            "{told}"
        );
        assert_eq!(client.read_to_end(data).await, b"");
        client.send(good, b"still here", true).await;
        assert_eq!(client.read_to_end(good).await, b"still here");
        assert_eq!(client.read_to_end(good_error).await, b"");
    }

    #[tokio::test]
    async fn a_reset_ends_one_connection_only() {
        let (port, session) = echo().await;
        let mut client = start(session);
        let (_, first) = open_pair(&mut client, port, "0").await;
        let (_, second) = open_pair(&mut client, port, "1").await;
        client.send(first, b"x", false).await;
        client.reset(first).await;
        client.send(second, b"other", true).await;
        assert_eq!(client.read_to_end(second).await, b"other");
    }
}
