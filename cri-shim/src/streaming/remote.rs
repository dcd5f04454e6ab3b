//! A remote client, whatever protocol it speaks: bytes to the command, bytes and a status from it.

use super::status::Status;
use bytes::Bytes;
use tokio::sync::mpsc;

/// Messages in flight each way. The client is slowed down by what is behind it, and the command by the client.
const DEPTH: usize = 8;

/// To the client.
#[derive(Debug)]
pub(super) enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last one.
    Status(Status),
}

/// The session's side.
#[derive(Debug)]
pub(super) struct Remote {
    /// Input; ends when the client says so or is gone.
    pub stdin: mpsc::Receiver<Bytes>,
    /// Columns and rows.
    pub resize: mpsc::Receiver<(u16, u16)>,
    /// Fails when the client is gone.
    pub output: mpsc::Sender<Output>,
}

/// The protocol's side.
#[derive(Debug)]
pub(super) struct Wire {
    pub stdin: Option<mpsc::Sender<Bytes>>,
    pub resize: mpsc::Sender<(u16, u16)>,
    pub output: mpsc::Receiver<Output>,
}

/// Both sides.
pub(super) fn remote() -> (Remote, Wire) {
    let (stdin_sender, stdin) = mpsc::channel(DEPTH);
    let (resize_sender, resize) = mpsc::channel(DEPTH);
    let (output, output_receiver) = mpsc::channel(DEPTH);
    let wire = Wire {
        stdin: Some(stdin_sender),
        resize: resize_sender,
        output: output_receiver,
    };
    (
        Remote {
            stdin,
            resize,
            output,
        },
        wire,
    )
}

/// A resize message's body: `{"Width":80,"Height":24}`.
pub(super) fn parse_resize(data: &[u8]) -> Option<(u16, u16)> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let size: Size = serde_json::from_slice(data).ok()?;
    Some((size.width, size.height))
}
