//! One output stream of a container: from its pipe or terminal into its spool.

use super::spool::{MAX_PENDING, Spool};
use crate::keeper::poll::Token;
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;

/// An output stream.
#[derive(Debug)]
pub(super) struct Output {
    pub source: Source,
    pub spool: Spool,
    /// `stdout` or `stderr`.
    pub name: &'static str,
    pub token: Token,
    /// It is in the queue of those to look at.
    pub queued: bool,
    /// It is among those to look at later.
    pub paused: bool,
    /// Nobody has the other end any more.
    pub ended: bool,
    /// How much of what is pending attached clients have seen already.
    pub seen: usize,
    /// What there was when the container ended, and is still to be written; `None` while it runs.
    pub drain: Option<u64>,
}

/// Where output comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// The read end of the container's FIFO.
    Pipe(OwnedFd),
    /// The terminal's master. What is read from it exists in our memory alone until it is in the spool.
    Terminal(OwnedFd),
}

impl Output {
    /// The descriptor to watch.
    pub(super) fn fd(&self) -> &OwnedFd {
        match &self.source {
            Source::Pipe(fd) | Source::Terminal(fd) => fd,
        }
    }

    /// Takes what there is, as far as the spool has room. True if there may be more.
    ///
    /// # Errors
    /// The spool's.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        match &self.source {
            Source::Pipe(pipe) => loop {
                if self.spool.pending.len() >= MAX_PENDING {
                    return Ok(true);
                }
                match self.spool.fill_from(pipe)? {
                    Some(0) => {
                        self.ended = true;
                        return Ok(false);
                    }
                    Some(_) => {}
                    None => return Ok(false),
                }
            },
            Source::Terminal(master) => {
                let mut buffer = [0; 4096];
                loop {
                    if self.spool.pending.len() + buffer.len() > MAX_PENDING {
                        return Ok(true);
                    }
                    match rustix::io::read(master, &mut buffer) {
                        // EIO: no process has the other side open.
                        Ok(0) | Err(Errno::IO) => {
                            self.ended = true;
                            return Ok(false);
                        }
                        Ok(count) => self.spool.push(&buffer[..count])?,
                        Err(Errno::INTR) => {}
                        Err(_) => return Ok(false),
                    }
                }
            }
        }
    }

    /// How many bytes there are that have not been written.
    pub(super) fn unwritten(&self) -> u64 {
        self.spool.pending.len() as u64 + self.waiting()
    }

    /// How many bytes wait in the pipe. (What waits in a terminal can't be told by its master; it is little.)
    fn waiting(&self) -> u64 {
        match &self.source {
            Source::Pipe(pipe) => rustix::io::ioctl_fionread(pipe).unwrap_or(0),
            Source::Terminal(_) => 0,
        }
    }

    /// Whether the container has to wait, since neither spool nor pipe take more.
    pub(super) fn is_stuffed(&self) -> bool {
        let capacity = match &self.source {
            Source::Pipe(pipe) => rustix::pipe::fcntl_getpipe_size(pipe).unwrap_or(0) as u64,
            Source::Terminal(_) => 0,
        };
        self.spool.pending.len() + 4096 >= MAX_PENDING && self.waiting() + 4096 >= capacity
    }
}
