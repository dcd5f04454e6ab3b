//! The event loop's two parts that the keeper and the scribe share: epoll with tokens, and a peer that is never waited
//! for.

use linux::socket::{self, Message};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Names a watched descriptor.
pub(crate) type Token = u64;

/// epoll(7).
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> linux::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| kernel("epoll_create", errno))?;
        Ok(Poller { epoll })
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> linux::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)
            .map_err(|errno| kernel("epoll_ctl add", errno))
    }

    pub(crate) fn modify(
        &self,
        fd: impl AsFd,
        token: Token,
        flags: EventFlags,
    ) -> linux::Result<()> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags)
            .map_err(|errno| kernel("epoll_ctl mod", errno))
    }

    /// Must come before the descriptor is closed if a duplicate of it lives on elsewhere: epoll watches open files, not
    /// numbers.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // ENOENT is all that can happen, and then it is as wanted.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events, at most `timeout` (`None`: for ever); an interrupted wait has none.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
    ) -> linux::Result<Vec<(Token, EventFlags)>> {
        let mut events = Vec::with_capacity(64);
        let timeout =
            timeout.map(|timeout| rustix::fs::Timespec::try_from(timeout).unwrap_or_default());
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) => Ok(events
                .iter()
                .map(|event: &epoll::Event| (event.data.u64(), event.flags))
                .collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(kernel("epoll_wait", errno)),
        }
    }
}

/// A connected seqpacket socket with what could not be sent yet.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) socket: OwnedFd,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Peer {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Peer {
            socket,
            outbox: VecDeque::new(),
        }
    }

    /// Messages that wait.
    pub(crate) fn backlog(&self) -> usize {
        self.outbox.len()
    }

    /// Sends now, or queues.
    ///
    /// # Errors
    /// The peer is gone.
    pub(crate) fn send(&mut self, data: Vec<u8>, fds: Vec<OwnedFd>) -> linux::Result<()> {
        self.outbox.push_back((data, fds));
        self.flush()
    }

    /// Sends what is queued, as far as the peer takes it.
    ///
    /// # Errors
    /// The peer is gone.
    pub(crate) fn flush(&mut self) -> linux::Result<()> {
        while let Some((data, fds)) = self.outbox.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send(&self.socket, data, &borrowed) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.is(Errno::AGAIN.raw_os_error()) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What epoll should watch it for.
    pub(crate) fn interest(&self) -> EventFlags {
        if self.outbox.is_empty() {
            EventFlags::IN
        } else {
            EventFlags::IN | EventFlags::OUT
        }
    }

    /// The next message.
    pub(crate) fn recv(&self, buffer: &mut Vec<u8>) -> Received {
        match socket::recv(&self.socket, buffer) {
            Ok(Some(message)) => Received::Message(message),
            Err(error) if error.is(Errno::AGAIN.raw_os_error()) => Received::Nothing,
            Ok(None) | Err(_) => Received::End,
        }
    }
}

/// What [`Peer::recv`] found.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message),
    Nothing,
    /// The peer is gone, or broke the protocol.
    End,
}

/// A failed system call without an object worth naming.
pub(crate) fn kernel(operation: &'static str, errno: Errno) -> linux::Error {
    linux::Error::new(operation, "", errno.raw_os_error())
}

/// Another descriptor for the same open file.
pub(crate) fn duplicate(fd: impl AsFd) -> linux::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|errno| kernel("fcntl F_DUPFD_CLOEXEC", errno))
}

/// Makes reads and writes of this open file (and of its duplicates) return instead of wait.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> linux::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(|errno| kernel("fcntl F_GETFL", errno))?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)
        .map_err(|errno| kernel("fcntl F_SETFL", errno))
}
