//! One output stream of a container: looking at what it has printed without taking it.

use crate::keeper::poll::Token;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::os::fd::OwnedFd;

/// The most that is looked at in one go, in bytes: what a pipe holds unless somebody enlarged it.
pub(super) const MAX_PEEK: usize = 64 * 1024;

/// An output stream.
#[derive(Debug)]
pub(super) struct Output {
    /// The read end of the container's FIFO, or of its terminal's pending pipe.
    pub pipe: OwnedFd,
    pub terminal: Option<Terminal>,
    /// `stdout` or `stderr`.
    pub name: &'static str,
    pub token: Token,
    /// It is in the queue of those to look at.
    pub queued: bool,
    /// It is among those to look at later.
    pub paused: bool,
    /// Nobody has the other end any more.
    pub hung_up: bool,
    /// How much of the pipe's front attached clients have seen already.
    pub seen: usize,
    /// What was in the pipe when the container ended, and is still to be written; `None` while it runs.
    pub drain: Option<u64>,
}

/// The terminal's part of an output. Its master is read into the pending pipe, which can be looked at repeatedly.
#[derive(Debug)]
pub(super) struct Terminal {
    pub master: OwnedFd,
    pub pending: OwnedFd,
}

/// What [`Output::peek`] found in the pipe.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Peek {
    /// The pipe holds more than could be looked at.
    pub more: bool,
}

impl Output {
    /// Moves what the terminal has into the pending pipe, as far as that holds it; a plain FIFO has nothing to do. True
    /// if the terminal may have more.
    pub(super) fn pump(&mut self) -> bool {
        let Some(terminal) = &self.terminal else {
            return false;
        };
        let mut buffer = [0; 4096];
        loop {
            // A pipe is writable when a whole page is free: what is read is never more.
            let mut pending = [PollFd::new(&terminal.pending, PollFlags::OUT)];
            match rustix::event::poll(&mut pending, Some(&rustix::fs::Timespec::default())) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
            match rustix::io::read(&terminal.master, &mut buffer) {
                // EIO: no process has the other side open.
                Ok(0) | Err(Errno::IO) => {
                    self.hung_up = true;
                    return false;
                }
                Ok(count) => {
                    if rustix::io::write(&terminal.pending, &buffer[..count]).is_err() {
                        return false;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Copies the pipe's front into `buffer`, through the empty pipe `scratch`.
    ///
    /// # Errors
    /// `tee`'s or `read`'s.
    pub(super) fn peek(
        &self,
        scratch: &(OwnedFd, OwnedFd),
        buffer: &mut Vec<u8>,
    ) -> Result<Peek, Errno> {
        buffer.clear();
        let available = self.available();
        let count = loop {
            match rustix::pipe::tee(&self.pipe, &scratch.1, MAX_PEEK, SpliceFlags::NONBLOCK) {
                Ok(count) => break count,
                Err(Errno::AGAIN) => break 0,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        };
        buffer.resize(count, 0);
        let mut filled = 0;
        while filled < count {
            match rustix::io::read(&scratch.0, &mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        buffer.truncate(filled);
        Ok(Peek {
            more: available > filled as u64,
        })
    }

    /// How many bytes the pipe holds.
    pub(super) fn available(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.pipe).unwrap_or(0)
    }

    /// Whether the pipe takes no more, so that the container waits for us: it may be full of small pieces.
    pub(super) fn is_full(&self) -> bool {
        use rustix::fs::{Mode, OFlags};
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", self.pipe.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(writer) = rustix::fs::open(path, flags, Mode::empty()) else {
            return false;
        };
        let mut polled = [PollFd::new(&writer, PollFlags::OUT)];
        matches!(
            rustix::event::poll(&mut polled, Some(&rustix::fs::Timespec::default())),
            Ok(0)
        )
    }
}
