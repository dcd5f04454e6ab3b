//! WebSocket (RFC 6455) with upstream's channel protocols: the first byte of each message names its channel.

use super::remote::{Output, Wire, parse_resize};
use super::session::{PortForwardSession, Streams};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the next byte names a channel on which nothing more comes.
const CLOSE: u8 = 255;

/// What the client and we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Protocol {
    /// Its name in `Sec-WebSocket-Protocol`; empty if the client named none.
    pub name: &'static str,
    /// The end is told as a `metav1.Status`.
    status: bool,
    /// The client may end its input.
    close: bool,
    /// Messages are text, base64 after the channel's digit.
    base64: bool,
}

const PROTOCOLS: [Protocol; 6] = [
    Protocol {
        name: "v5.channel.k8s.io",
        status: true,
        close: true,
        base64: false,
    },
    Protocol {
        name: "v4.channel.k8s.io",
        status: true,
        close: false,
        base64: false,
    },
    Protocol {
        name: "v4.base64.channel.k8s.io",
        status: true,
        close: false,
        base64: true,
    },
    Protocol {
        name: "base64.channel.k8s.io",
        status: false,
        close: false,
        base64: true,
    },
    Protocol {
        name: "channel.k8s.io",
        status: false,
        close: false,
        base64: false,
    },
    Protocol {
        name: "",
        status: false,
        close: false,
        base64: false,
    },
];

/// The first of the client's protocols that we speak; without any, the oldest.
pub(super) fn negotiate<'a>(offered: impl Iterator<Item = &'a str>) -> Option<Protocol> {
    let mut offered = offered.filter(|name| !name.is_empty()).peekable();
    if offered.peek().is_none() {
        return PROTOCOLS.last().copied();
    }
    offered.find_map(|name| {
        PROTOCOLS
            .iter()
            .find(|protocol| protocol.name == name)
            .copied()
    })
}

/// Carries a session over an upgraded connection, until the session or the client ends.
pub(super) async fn serve(upgraded: Upgraded, protocol: Protocol, streams: Streams, wire: Wire) {
    let config = WebSocketConfig::default();
    let socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (mut sink, mut messages) = socket.split();
    let Wire {
        mut stdin,
        resize,
        mut output,
    } = wire;
    let send = async {
        // The client takes the first message for the sign that the connection stands.
        let lowest = if streams.stdout {
            STDOUT
        } else if streams.stderr {
            STDERR
        } else {
            ERROR
        };
        sink.send(protocol.encode(lowest, &[])).await?;
        while let Some(message) = output.recv().await {
            match message {
                Output::Stdout(data) => sink.send(protocol.encode(STDOUT, &data)).await?,
                Output::Stderr(data) => sink.send(protocol.encode(STDERR, &data)).await?,
                Output::Status(status) => {
                    let text = if protocol.status {
                        Some(status.to_json())
                    } else {
                        status.to_text()
                    };
                    if let Some(text) = text {
                        sink.send(protocol.encode(ERROR, text.as_bytes())).await?;
                    }
                    break;
                }
            }
        }
        // client-go takes a close without a status for a failure.
        sink.send(Message::Close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: Default::default(),
        })))
        .await
    };
    let receive = async {
        while let Some(Ok(message)) = messages.next().await {
            match protocol.decode(message) {
                Some((STDIN, data)) if streams.stdin => {
                    // Nobody reads it any more: the session is about to end.
                    if let Some(sender) = &stdin
                        && sender.send(data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some((RESIZE, data)) => {
                    if let Some(size) = parse_resize(&data) {
                        let _ = resize.send(size).await;
                    }
                }
                Some((CLOSE, data)) if protocol.close && data.first() == Some(&STDIN) => {
                    stdin = None
                }
                _ => {}
            }
        }
    };
    tokio::pin!(send, receive);
    tokio::select! {
        result = &mut send => {
            if let Err(error) = result {
                tracing::debug!(%error, "websocket ended");
            }
            // The client answers our close; without the answer it would see a reset.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), receive).await;
        }
        () = &mut receive => {}
    }
}

/// Carries the bytes of another protocol in binary messages: what one side writes is what the other reads, wherever the
/// messages begin and end.
pub(super) async fn tunnel(upgraded: Upgraded) -> DuplexStream {
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let (mut sink, mut messages) = socket.split();
        let (mut reader, mut writer) = tokio::io::split(theirs);
        let inward = async {
            while let Some(Ok(message)) = messages.next().await {
                if let Message::Binary(data) = message
                    && writer.write_all(&data).await.is_err()
                {
                    return;
                }
            }
        };
        let outward = async {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                let message = Message::binary(Bytes::copy_from_slice(&buffer[..count]));
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            // The client may have gone first.
            let _ = sink.close().await;
        };
        tokio::select! {
            () = inward => {}
            () = outward => {}
        }
    });
    ours
}

/// Forwards ports as upstream's WebSocket clients do: a data and an error channel for each port, in order, and one
/// connection each. The first message on a channel is its port, little end first.
pub(super) async fn forward_ports(
    upgraded: Upgraded,
    protocol: Protocol,
    session: PortForwardSession,
) {
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let (mut sink, mut messages) = socket.split();
    let (output, mut outputs) = mpsc::channel::<(u8, Bytes)>(8);
    let mut inputs = Vec::new();
    for (index, port) in session.ports.iter().take(MAX_PORTS).enumerate() {
        let (sender, receiver) = mpsc::channel(8);
        inputs.push(Some(sender));
        let channel = (index * 2) as u8;
        tokio::spawn(forward_port(
            channel,
            *port,
            (session.dial)(*port),
            receiver,
            output.clone(),
        ));
    }
    drop(output);
    let send = async {
        while let Some((channel, data)) = outputs.recv().await {
            if sink.send(protocol.encode(channel, &data)).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    };
    let receive = async {
        while let Some(Ok(message)) = messages.next().await {
            let Some((channel, data)) = protocol.decode(message) else {
                continue;
            };
            let Some(input) = inputs.get_mut(usize::from(channel / 2)) else {
                continue;
            };
            if channel % 2 == 0
                && let Some(sender) = input
                && sender.send(data).await.is_err()
            {
                *input = None; // this connection has ended; the others go on
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = receive => {}
    }
}

/// Channels are one byte.
const MAX_PORTS: usize = 127;

async fn forward_port(
    channel: u8,
    port: u16,
    dial: BoxFuture<'static, std::io::Result<TcpStream>>,
    mut input: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<(u8, Bytes)>,
) {
    let number = Bytes::copy_from_slice(&port.to_le_bytes());
    for channel in [channel, channel + 1] {
        if output.send((channel, number.clone())).await.is_err() {
            return;
        }
    }
    let result = async {
        let (mut reader, mut writer) = dial.await?.into_split();
        let inward = async {
            while let Some(data) = input.recv().await {
                writer.write_all(&data).await?;
            }
            writer.shutdown().await?;
            std::future::pending::<std::io::Result<()>>().await
        };
        let outward = async {
            let mut buffer = vec![0; 32 * 1024];
            loop {
                let count = reader.read(&mut buffer).await?;
                if count == 0
                    || output
                        .send((channel, Bytes::copy_from_slice(&buffer[..count])))
                        .await
                        .is_err()
                {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            result = inward => result,
            result = outward => result,
        }
    };
    if let Err(cause) = result.await {
        let message = Bytes::from(format!("error forwarding port {port}: {cause}"));
        // Nobody may be there to read it.
        let _ = output.send((channel + 1, message)).await;
    }
}

impl Protocol {
    fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            BASE64.encode_string(data, &mut text);
            return Message::text(text);
        }
        let mut message = Vec::with_capacity(1 + data.len());
        message.push(channel);
        message.extend_from_slice(data);
        Message::binary(message)
    }

    /// A message's channel and body; `None` for what isn't one.
    fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        let channel = *data.first()?;
        if !self.base64 {
            return Some((channel, data.slice(1..)));
        }
        Some((
            channel.checked_sub(b'0')?,
            BASE64.decode(&data[1..]).ok()?.into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_known_protocol_is_taken() {
        let negotiated = |offered: &[&'static str]| {
            negotiate(offered.iter().copied()).map(|protocol| protocol.name)
        };
        assert_eq!(
            negotiated(&["v9", "v4.channel.k8s.io", "v5.channel.k8s.io"]),
            Some("v4.channel.k8s.io")
        );
        assert_eq!(negotiated(&[]), Some(""));
        assert_eq!(negotiated(&["SPDY/3.1+portforward.k8s.io"]), None);
    }

    #[test]
    fn messages_survive_both_codings() {
        for protocol in PROTOCOLS {
            let message = protocol.encode(STDERR, b"\0text\xff");
            assert_eq!(
                protocol.decode(message),
                Some((STDERR, Bytes::from_static(b"\0text\xff")))
            );
            assert_eq!(
                protocol.decode(protocol.encode(STDOUT, b"")),
                Some((STDOUT, Bytes::new()))
            );
            assert_eq!(protocol.decode(Message::binary(Vec::new())), None);
        }
        assert_eq!(PROTOCOLS[3].decode(Message::text("0!!")), None);
    }
}
