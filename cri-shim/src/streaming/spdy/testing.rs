//! The client's side, for tests.

use super::frame::{self, Frame, Reset};
use super::headers::{Decoder, Encoder};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A client that opens streams and reads them one after the other.
pub(in crate::streaming) struct Client {
    transport: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
    next: u32,
    received: HashMap<u32, (Vec<u8>, bool)>,
    pongs: Vec<u32>,
}

impl Client {
    pub(in crate::streaming) fn new(transport: DuplexStream) -> Self {
        Client {
            transport,
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            buffer: BytesMut::new(),
            next: 1,
            received: HashMap::new(),
            pongs: Vec::new(),
        }
    }

    /// Opens a stream and waits until it is accepted.
    pub(in crate::streaming) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let headers = self.encoder.encode(&headers).into();
        self.write(Frame::SynStream {
            stream,
            fin: false,
            headers,
        })
        .await;
        while !self.received.contains_key(&stream) {
            self.read().await;
        }
        stream
    }

    pub(in crate::streaming) async fn send(&mut self, stream: u32, data: &'static [u8], fin: bool) {
        self.write(Frame::Data {
            stream,
            fin,
            data: Bytes::from_static(data),
        })
        .await;
    }

    pub(in crate::streaming) async fn reset(&mut self, stream: u32) {
        self.write(Frame::RstStream {
            stream,
            status: Reset::Cancel as u32,
        })
        .await;
    }

    /// All that came on a stream, to its end.
    pub(in crate::streaming) async fn read_to_end(&mut self, stream: u32) -> Vec<u8> {
        while !self.received[&stream].1 {
            self.read().await;
        }
        self.received[&stream].0.clone()
    }

    async fn write(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        frame::encode(&frame, &mut bytes);
        self.transport.write_all(&bytes).await.unwrap();
    }

    async fn read(&mut self) {
        let frame = loop {
            match frame::decode(&mut self.buffer).unwrap() {
                Some(frame) => break frame,
                None => assert!(
                    self.transport.read_buf(&mut self.buffer).await.unwrap() > 0,
                    "the server left"
                ),
            }
        };
        match frame {
            Frame::SynReply { stream, headers } => {
                self.decoder.decode(&headers).unwrap();
                self.received.insert(stream, (Vec::new(), false));
            }
            Frame::Data { stream, fin, data } => {
                let (received, ended) = self.received.get_mut(&stream).unwrap();
                received.extend_from_slice(&data);
                *ended |= fin;
            }
            Frame::Ping { id } => self.pongs.push(id),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn pings_are_answered_and_a_second_stream_of_one_id_is_refused() {
    let (ours, theirs) = tokio::io::duplex(1024);
    let mut connection = super::Connection::start(theirs);
    let mut client = Client::new(ours);
    client.write(Frame::Ping { id: 7 }).await;
    while client.pongs.is_empty() {
        client.read().await;
    }
    assert_eq!(client.pongs, [7]);
    let stream = client.open(&[("streamtype", "data")]).await;
    let held = connection.streams.recv().await.unwrap();
    assert_eq!(held.header("streamType"), Some("data"));
    let headers = client.encoder.encode(&Vec::new()).into();
    client
        .write(Frame::SynStream {
            stream,
            fin: false,
            headers,
        })
        .await;
    let mut bytes = [0; 16];
    client.transport.read_exact(&mut bytes).await.unwrap();
    let refused = frame::decode(&mut BytesMut::from(&bytes[..])).unwrap();
    assert_eq!(
        refused,
        Some(Frame::RstStream {
            stream,
            status: Reset::RefusedStream as u32
        })
    );
}
