//! One netlink socket, and requests over it.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::Result;
use super::error::{Error, Refusal};
use super::message::{HEADER, Message, attributes, replies, text, u32_at};

/// The kernel makes dumps in pieces of at most this, and no single answer of rtnetlink is longer.
const BUFFER: usize = 32 * 1024;
/// A dump during which the listed things changed is repeated; under constant change this often.
const DUMP_ATTEMPTS: u32 = 8;
/// `NLMSGERR_ATTR_MSG`
const EXTACK_MESSAGE: u16 = 1;

/// A conversation with the kernel about one network namespace: that of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a conversation about the calling thread's network namespace.
    ///
    /// # Errors
    /// EMFILE and its like; EAFNOSUPPORT in a kernel without netlink.
    pub fn open() -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Comfort of newer kernels: without them the words, and the filtering of dumps, are missing.
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_cap_ack(true);
            let _ = socket.set_netlink_get_strict_chk(true);
            Ok(socket)
        };
        let socket = open().map_err(|cause| Error::io("open", "netlink socket", &cause))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Carries out a request and waits for its acknowledgement.
    pub(super) fn execute(&mut self, message: Message) -> std::result::Result<(), Refusal> {
        self.exchange(message, |_, _| {}).map(drop)
    }

    /// Asks for one thing, given to `read` as message type and payload.
    pub(super) fn query<T>(
        &mut self,
        message: Message,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> std::result::Result<Option<T>, Refusal> {
        let mut found = None;
        self.exchange(message, |_, payload| found = read(payload))?;
        Ok(found)
    }

    /// Lists things: `make` gives the request, `read` turns each message's payload into a thing, or drops it.
    pub(super) fn dump<T>(
        &mut self,
        make: impl Fn() -> Message,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> std::result::Result<Vec<T>, Refusal> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let interrupted = self.exchange(make(), |_, payload| found.extend(read(payload)))?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Refusal {
            errno: libc::EAGAIN,
            detail: "list changed while it was read".to_owned(),
        })
    }

    /// Sends one request and hands over its answers until the acknowledgement. True if it was a dump that came out
    /// inconsistent.
    fn exchange(
        &mut self,
        message: Message,
        mut each: impl FnMut(u16, &[u8]),
    ) -> std::result::Result<bool, Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence);
        retry(|| self.socket.send(&bytes, 0))?;
        let mut interrupted = false;
        loop {
            let buffer = &mut self.buffer;
            let length = retry(|| {
                self.socket
                    .recv(&mut buffer.as_mut_slice(), libc::MSG_TRUNC)
            })?;
            let Some(datagram) = buffer.get(..length) else {
                return Err(Refusal {
                    errno: libc::EMSGSIZE,
                    detail: String::new(),
                });
            };
            for reply in replies(datagram).filter(|reply| reply.sequence == self.sequence) {
                interrupted |= i32::from(reply.flags) & libc::NLM_F_DUMP_INTR != 0;
                match i32::from(reply.kind) {
                    libc::NLMSG_ERROR => {
                        return verdict(reply.flags, reply.payload).map(|()| interrupted);
                    }
                    libc::NLMSG_DONE => {
                        return verdict(reply.flags, reply.payload).map(|()| interrupted);
                    }
                    _ => each(reply.kind, reply.payload),
                }
            }
        }
    }
}

/// Reads an acknowledgement: a negative errno, the request's header, and attributes about the reason.
fn verdict(flags: u16, payload: &[u8]) -> std::result::Result<(), Refusal> {
    let Some(code) = u32_at(payload, 0) else {
        return Ok(());
    };
    let errno = -(code as i32);
    if errno == 0 {
        return Ok(());
    }
    let has_words = i32::from(flags) & libc::NLM_F_ACK_TLVS != 0;
    let words = payload
        .get(4 + HEADER..)
        .filter(|_| has_words)
        .unwrap_or_default();
    let detail = attributes(words)
        .find(|(kind, _)| *kind == EXTACK_MESSAGE)
        .map(|(_, value)| text(value));
    Err(Refusal {
        errno,
        detail: detail.unwrap_or_default(),
    })
}

fn retry<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
