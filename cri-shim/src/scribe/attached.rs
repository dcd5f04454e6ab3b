//! An attached client: a socket on which it gets output and gives input.

use crate::keeper::poll::{Peer, Token};
use rustix::event::epoll::EventFlags;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A client with more unsent messages than this holds back the reading of its container's output …
const MAX_BACKLOG: usize = 16;

/// … for at most this long without progress; then it is cut off, and the log goes on without it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Output is sent in pieces of this size.
const PIECE: usize = 16 * 1024;

/// One attached client.
#[derive(Debug)]
pub(super) struct Attached {
    pub peer: Peer,
    pub token: Token,
    pub watched_for: EventFlags,
    /// Input that the container did not take yet; no more is read from the client meanwhile.
    pub input: Vec<u8>,
    /// The client gives no more input.
    pub input_ended: bool,
    /// It is let go when all has been sent.
    pub ending: bool,
    progress: (usize, Instant),
}

impl Attached {
    pub(super) fn new(socket: OwnedFd, token: Token) -> Self {
        Attached {
            peer: Peer::new(socket),
            token,
            watched_for: EventFlags::IN,
            input: Vec::new(),
            input_ended: false,
            ending: false,
            progress: (0, Instant::now()),
        }
    }

    /// Sends output of stream `number` (1 or 2).
    ///
    /// # Errors
    /// The client is gone.
    pub(super) fn send(&mut self, number: u8, data: &[u8]) -> linux::Result<()> {
        for piece in data.chunks(PIECE) {
            let mut message = Vec::with_capacity(piece.len() + 1);
            message.push(number);
            message.extend_from_slice(piece);
            self.peer.send(message, Vec::new())?;
        }
        Ok(())
    }

    /// Whether it is so far behind that more must not be read for it; and until when to be patient.
    pub(super) fn behind(&mut self) -> Option<Instant> {
        let backlog = self.peer.backlog();
        if backlog <= MAX_BACKLOG {
            self.progress = (0, Instant::now());
            return None;
        }
        if backlog < self.progress.0 || self.progress.0 == 0 {
            self.progress = (backlog, Instant::now());
        }
        Some(self.progress.1 + PATIENCE)
    }

    /// What epoll should watch it for: no input while the container takes none.
    pub(super) fn interest(&self) -> EventFlags {
        let mut interest = self.peer.interest();
        if self.input_ended || !self.input.is_empty() {
            interest.remove(EventFlags::IN);
        }
        interest
    }
}
