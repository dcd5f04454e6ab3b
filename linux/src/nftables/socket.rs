//! The netlink socket of the netfilter subsystems.

use super::wire::{Answer, DONE, ERROR, Message, Messages, Writer, flag};
use crate::error::{Error, Result};
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::os::fd::{AsRawFd, BorrowedFd};

const RECEIVE_BYTES: usize = 8 << 20;
const REPLY_BYTES: usize = 128 << 10;
/// A dump that its object changes under is started again so often.
const DUMP_ATTEMPTS: usize = 20;

/// A netlink socket to nf_tables and conntrack. It stays in the network namespace that its thread was in when it was
/// opened. Needs CAP_NET_ADMIN there.
pub struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    reply: Vec<u8>,
}

impl Socket {
    /// Opens a socket in this thread's network namespace.
    ///
    /// # Errors
    /// EPROTONOSUPPORT where the kernel has no nfnetlink.
    pub fn open() -> Result<Socket> {
        let context = |cause: std::io::Error| Error::io("open netlink socket", "netfilter", &cause);
        let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER).map_err(context)?;
        socket.bind_auto().map_err(context)?;
        socket.set_cap_ack(true).map_err(context)?;
        socket.set_ext_ack(true).map_err(context)?;
        let socket = Socket {
            socket,
            sequence: 0,
            reply: vec![0; REPLY_BYTES],
        };
        // Without the capability the default size stands, and what doesn't fit is refused by the call that needs it.
        let _ = nix::sys::socket::setsockopt(
            &socket.fd(),
            nix::sys::socket::sockopt::RcvBufForce,
            &RECEIVE_BYTES,
        );
        Ok(socket)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.socket`, which outlives the borrow that this signature gives out.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }

    /// Sends whole messages in one call. The kernel carries them out before the call returns.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        const SMALL: usize = 100 << 10;
        if bytes.len() > SMALL {
            let size = bytes.len() + (bytes.len() >> 1) + 4096;
            let _ = nix::sys::socket::setsockopt(
                &self.fd(),
                nix::sys::socket::sockopt::SndBufForce,
                &size,
            );
        }
        let sent = self
            .socket
            .send(bytes, 0)
            .map_err(|cause| Error::io("send netlink messages", "", &cause))?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(Error::new("send netlink messages", "", libc::EMSGSIZE))
        }
    }

    /// Reads one datagram that is there already; `None` if there is none.
    fn receive_ready(&mut self) -> Result<Option<usize>> {
        loop {
            let mut buffer = &mut self.reply[..];
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(length) => return Ok(Some(length)),
                Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(Error::io("read netlink answers", "", &cause)),
            }
        }
    }

    /// All answers that the kernel gave to what was sent.
    pub(crate) fn answers(&mut self) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        while let Some(length) = self.receive_ready()? {
            for message in Messages(&self.reply[..length]) {
                if message.kind == ERROR {
                    answers.push(Answer::parse(&message)?);
                }
            }
        }
        Ok(answers)
    }

    /// Sends one request that `write` builds, with `NLM_F_ACK`, and gives the errno of the answer as an error.
    pub(crate) fn request(
        &mut self,
        operation: &'static str,
        object: &str,
        kind: u16,
        family: u8,
        write: impl FnOnce(&mut Writer),
    ) -> Result<()> {
        let mut out = Writer::default();
        self.sequence = self.sequence.wrapping_add(1);
        out.begin(kind, flag::REQUEST | flag::ACK, self.sequence, family, 0);
        write(&mut out);
        out.end();
        self.send(&out.buffer)?;
        let sequence = self.sequence;
        let answer = self
            .answers()?
            .into_iter()
            .find(|answer| answer.sequence == sequence);
        match answer {
            Some(Answer { errno: 0, .. }) => Ok(()),
            Some(answer) => Err(Error::new(operation, object, answer.errno)),
            None => Err(Error::new(operation, object, libc::ENOBUFS)),
        }
    }

    /// Asks for a dump and calls `each` with every message of it. A dump that was disturbed by a change begins again,
    /// after `restart`.
    pub(crate) fn dump(
        &mut self,
        object: &str,
        kind: u16,
        family: u8,
        write: &dyn Fn(&mut Writer),
        collect: &mut dyn DumpTarget,
    ) -> Result<()> {
        for _ in 0..DUMP_ATTEMPTS {
            collect.restart();
            if self.dump_once(object, kind, family, write, collect)? {
                return Ok(());
            }
        }
        Err(Error::new("dump", object, libc::EINTR))
    }

    /// False if the dump was disturbed.
    fn dump_once(
        &mut self,
        object: &str,
        kind: u16,
        family: u8,
        write: &dyn Fn(&mut Writer),
        collect: &mut dyn DumpTarget,
    ) -> Result<bool> {
        let mut out = Writer::default();
        self.sequence = self.sequence.wrapping_add(1);
        out.begin(kind, flag::REQUEST | flag::DUMP, self.sequence, family, 0);
        write(&mut out);
        out.end();
        self.send(&out.buffer)?;
        let mut whole = true;
        loop {
            let mut buffer = &mut self.reply[..];
            let length = match self.socket.recv(&mut buffer, 0) {
                Ok(length) => length,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(Error::io("read netlink dump", object, &cause)),
            };
            for message in Messages(&self.reply[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & flag::DUMP_INTERRUPTED == 0;
                match message.kind {
                    DONE => return Ok(whole),
                    ERROR => {
                        let errno = Answer::parse(&message)?.errno;
                        return if errno == libc::EINTR {
                            Ok(false)
                        } else {
                            Err(Error::new("dump", object, errno))
                        };
                    }
                    _ => collect.message(&message)?,
                }
            }
        }
    }
}

/// Takes the messages of a dump.
pub(crate) trait DumpTarget {
    /// Forgets what came so far: the dump begins again.
    fn restart(&mut self);
    /// Takes one message.
    fn message(&mut self, message: &Message<'_>) -> Result<()>;
}

/// Collects into a vector what a parser makes of each message.
pub(crate) struct Collect<T, F>(pub Vec<T>, pub F);

impl<T, F: FnMut(&Message<'_>) -> Option<T>> DumpTarget for Collect<T, F> {
    fn restart(&mut self) {
        self.0.clear();
    }

    fn message(&mut self, message: &Message<'_>) -> Result<()> {
        self.0.extend((self.1)(message));
        Ok(())
    }
}
