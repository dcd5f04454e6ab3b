//! Streams over one connection.

use super::frame::{self, Frame, Reset};
use super::headers::{Decoder, Encoder, Headers};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Data frames in flight for one stream, towards its reader. A stream that nobody reads holds the others up, as it does
/// upstream: there are no windows.
const DEPTH: usize = 8;

/// Streams at a time; more are refused.
const MAX_STREAMS: usize = 1024;

/// A connection: the streams that the client opens, in order. It ends when the client is gone.
#[derive(Debug)]
pub(in crate::streaming) struct Connection {
    pub streams: mpsc::Receiver<Stream>,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
    /// Dropping the connection ends it.
    _end: DropGuard,
}

/// One stream.
#[derive(Debug)]
pub(in crate::streaming) struct Stream {
    pub(super) headers: Headers,
    /// What the client sends; it ends with the client's half of the stream.
    pub input: mpsc::Receiver<Bytes>,
    /// To the client.
    pub output: StreamWriter,
}

/// Our half of a stream.
#[derive(Debug, Clone)]
pub(in crate::streaming) struct StreamWriter {
    pub id: u32,
    /// Cancelled when the client has reset the stream.
    pub reset: CancellationToken,
    frames: mpsc::Sender<Outgoing>,
    /// The stream is open for us as long as one of these is there.
    _alive: Arc<()>,
}

#[derive(Debug)]
enum Outgoing {
    Frame(Frame),
    /// Accepts a stream.
    Reply(u32),
}

impl Stream {
    /// A header's value; names are compared without case.
    pub(in crate::streaming) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

impl StreamWriter {
    /// Sends data; false if the client is gone or has reset the stream.
    pub(in crate::streaming) async fn send(&self, data: Bytes) -> bool {
        self.frame(Frame::Data {
            stream: self.id,
            fin: false,
            data,
        })
        .await
    }

    /// Ends our half.
    pub(in crate::streaming) async fn finish(&self) -> bool {
        self.frame(Frame::Data {
            stream: self.id,
            fin: true,
            data: Bytes::new(),
        })
        .await
    }

    /// Ends both halves.
    pub(in crate::streaming) async fn reset(&self) -> bool {
        self.frame(Frame::RstStream {
            stream: self.id,
            status: Reset::Cancel as u32,
        })
        .await
    }

    async fn frame(&self, frame: Frame) -> bool {
        !self.reset.is_cancelled() && self.frames.send(Outgoing::Frame(frame)).await.is_ok()
    }
}

impl Connection {
    /// Speaks SPDY over `transport`, in tasks of its own, until the client or every user of it is gone.
    pub(in crate::streaming) fn start<T>(transport: T) -> Connection
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(transport);
        let (stream_sender, streams) = mpsc::channel(DEPTH);
        let (frames, outgoing) = mpsc::channel(4 * DEPTH);
        let gone = CancellationToken::new();
        tokio::spawn(write(writer, outgoing));
        let receiver = Receiver {
            decoder: Decoder::new(),
            open: HashMap::new(),
            streams: stream_sender,
            frames,
        };
        let end = gone.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = receiver.run(reader) => end.cancel(),
            }
        });
        Connection {
            streams,
            _end: gone.clone().drop_guard(),
            gone,
        }
    }
}

async fn write(mut transport: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<Outgoing>) {
    let (mut encoder, mut buffer) = (Encoder::new(), BytesMut::new());
    while let Some(first) = outgoing.recv().await {
        let mut next = Some(first);
        while let Some(message) = next {
            let frame = match message {
                Outgoing::Frame(frame) => frame,
                Outgoing::Reply(stream) => Frame::SynReply {
                    stream,
                    headers: encoder.encode(&Headers::new()).into(),
                },
            };
            frame::encode(&frame, &mut buffer);
            next = if buffer.len() < 64 * 1024 {
                outgoing.try_recv().ok()
            } else {
                None
            };
        }
        if transport.write_all_buf(&mut buffer).await.is_err() || transport.flush().await.is_err() {
            return;
        }
    }
    // Everybody has finished; the client may not be listening any more.
    let _ = transport.shutdown().await;
}

/// The client's half of the connection.
struct Receiver {
    decoder: Decoder,
    open: HashMap<u32, Open>,
    streams: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Outgoing>,
}

struct Open {
    /// `None` when the client has ended its half.
    input: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
    alive: Weak<()>,
}

impl Receiver {
    async fn run(mut self, mut transport: impl AsyncRead + Unpin) {
        let mut buffer = BytesMut::with_capacity(16 * 1024);
        loop {
            match frame::decode(&mut buffer) {
                Ok(Some(frame)) => {
                    if !self.handle(frame).await {
                        return;
                    }
                }
                Ok(None) => match transport.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                Err(error) => {
                    tracing::debug!(%error, "SPDY connection ended");
                    return;
                }
            }
        }
    }

    /// False at the end.
    async fn handle(&mut self, frame: Frame) -> bool {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => return self.open(stream, fin, &headers).await,
            Frame::Data { stream, fin, data } => self.data(stream, fin, data).await,
            Frame::RstStream { stream, .. } => {
                if let Some(open) = self.open.remove(&stream) {
                    open.reset.cancel();
                }
            }
            Frame::Ping { id } => return self.send(Frame::Ping { id }).await,
            // Their end matters only for the compression's state.
            Frame::Headers { headers } | Frame::SynReply { headers, .. } => {
                return self.decoder.decode(&headers).is_ok();
            }
            // The client opens no more streams; those that are open go on.
            Frame::GoAway | Frame::Other => {}
        }
        true
    }

    async fn open(&mut self, id: u32, fin: bool, headers: &[u8]) -> bool {
        let Ok(headers) = self.decoder.decode(headers) else {
            return false;
        };
        self.open.retain(|_, open| open.alive.strong_count() > 0);
        if self.open.len() >= MAX_STREAMS || self.open.contains_key(&id) {
            return self
                .send(Frame::RstStream {
                    stream: id,
                    status: Reset::RefusedStream as u32,
                })
                .await;
        }
        let (sender, input) = mpsc::channel(DEPTH);
        let reset = CancellationToken::new();
        let alive = Arc::new(());
        let input_end = if fin { None } else { Some(sender) };
        let open = Open {
            input: input_end,
            reset: reset.clone(),
            alive: Arc::downgrade(&alive),
        };
        self.open.insert(id, open);
        if self.frames.send(Outgoing::Reply(id)).await.is_err() {
            return false;
        }
        let output = StreamWriter {
            id,
            reset,
            frames: self.frames.clone(),
            _alive: alive,
        };
        self.streams
            .send(Stream {
                headers,
                input,
                output,
            })
            .await
            .is_ok()
    }

    async fn data(&mut self, id: u32, fin: bool, data: Bytes) {
        let Some(Open { input, .. }) = self.open.get_mut(&id) else {
            // Most likely a stream that we have let go of.
            self.send(Frame::RstStream {
                stream: id,
                status: Reset::InvalidStream as u32,
            })
            .await;
            return;
        };
        if let Some(sender) = input
            && !data.is_empty()
            && sender.send(data).await.is_err()
        {
            *input = None; // nobody reads it any more; the rest is dropped
        }
        if fin {
            *input = None;
        }
    }

    async fn send(&self, frame: Frame) -> bool {
        self.frames.send(Outgoing::Frame(frame)).await.is_ok()
    }
}
