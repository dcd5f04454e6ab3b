//! Unix sockets of whole messages that carry descriptors (`SOCK_SEQPACKET`, `SCM_RIGHTS`; unix(7)).
//!
//! A message arrives whole or not at all, with its descriptors, so that the ends need no framing and no lock around a
//! half-read header. All descriptors that arrive are close-on-exec.

use crate::error::{Context, Error, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The largest message that [`recv`] takes, in bytes. What may be larger travels in a memory file, as a descriptor.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// The most descriptors that one message carries (the kernel's `SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// A received message.
#[derive(Debug)]
pub struct Message {
    /// Its bytes; never empty.
    pub data: Vec<u8>,
    /// Its descriptors, in the sender's order.
    pub fds: Vec<OwnedFd>,
}

/// A connected pair, both ends non-blocking.
///
/// # Errors
/// The `socketpair`'s.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .context("socketpair", || "")
}

/// Makes a listening socket at `path` (at most 107 bytes), readable and writable by its owner only, non-blocking.
///
/// # Errors
/// EADDRINUSE if the path exists, also as the leftover of a dead listener.
pub fn listen(path: &Path) -> Result<OwnedFd> {
    let name = || path.display().to_string();
    let socket = seqpacket(name)?;
    let address = SocketAddrUnix::new(path).context("name socket", name)?;
    rustix::net::bind(&socket, &address).context("bind", name)?;
    // Nobody can connect before `listen`, so the mode is in force before it matters.
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o600)).context("chmod", name)?;
    rustix::net::listen(&socket, 64).context("listen", name)?;
    Ok(socket)
}

/// Connects to the listener at `path`; the result is non-blocking.
///
/// # Errors
/// ENOENT without a socket there, ECONNREFUSED without a listener behind it, EAGAIN if its backlog is full.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let name = || path.display().to_string();
    let socket = seqpacket(name)?;
    let address = SocketAddrUnix::new(path).context("name socket", name)?;
    rustix::net::connect(&socket, &address).context("connect", name)?;
    Ok(socket)
}

/// Accepts one connection, non-blocking; `None` if none waits.
///
/// # Errors
/// The `accept4`'s, for instance EMFILE.
pub fn accept(listener: impl AsFd) -> Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(
            rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED,
        ) => Ok(None),
        Err(errno) => Err(errno).context("accept", || ""),
    }
}

/// Sends one message, never waiting and never raising SIGPIPE. `data` must not be empty: an empty message could not
/// be told from the end.
///
/// # Errors
/// EAGAIN if the receiver is behind, EPIPE if it is gone, EMSGSIZE if the message exceeds the socket's buffer, EINVAL
/// for more than [`MAX_FDS`] descriptors or no data.
pub fn send(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    if data.is_empty() || fds.len() > MAX_FDS {
        return Err(Error::new("sendmsg", "", libc::EINVAL));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    loop {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(&socket, &[IoSlice::new(data)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(drop).context("sendmsg", || ""),
        }
    }
}

/// Receives one message without waiting; `None` at the end (the other side is gone). `buffer` is scratch space that
/// the caller keeps between calls; it is grown to [`MAX_MESSAGE`].
///
/// # Errors
/// EAGAIN if nothing waits, EMSGSIZE for a message over [`MAX_MESSAGE`] or with more descriptors than this process
/// may hold (they are closed).
pub fn recv(socket: impl AsFd, buffer: &mut Vec<u8>) -> Result<Option<Message>> {
    buffer.resize(MAX_MESSAGE, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            result => break result.context("recvmsg", || "")?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(Error::new("recvmsg", "", libc::EMSGSIZE));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some(Message {
        data: buffer[..received.bytes].to_vec(),
        fds,
    }))
}

fn seqpacket<S: Into<String>>(name: impl FnOnce() -> S) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .context("socket", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors_in_order() {
        let (left, right) = pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        send(&left, b"plan", &[reader.as_fd(), writer.as_fd()]).unwrap();
        drop((reader, writer));
        let message = recv(&right, &mut Vec::new()).unwrap().unwrap();
        assert_eq!(message.data, b"plan");
        let [reader, writer]: [OwnedFd; 2] = message.fds.try_into().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn recv_tells_nothing_yet_from_the_end() {
        let (left, right) = pair().unwrap();
        assert!(recv(&right, &mut Vec::new()).unwrap_err().is(libc::EAGAIN));
        drop(left);
        assert!(recv(&right, &mut Vec::new()).unwrap().is_none());
    }

    #[test]
    fn a_full_receiver_is_told_by_eagain_and_not_waited_for() {
        let (left, _right) = pair().unwrap();
        let error = (0..100_000)
            .find_map(|_| send(&left, &[0; 4096], &[]).err())
            .unwrap();
        assert!(error.is(libc::EAGAIN));
    }

    #[test]
    fn a_listener_is_private_and_gives_connections() {
        let dir = std::env::temp_dir().join(format!("orlop-socket-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s");
        assert!(connect(&path).unwrap_err().is(libc::ENOENT));
        let listener = listen(&path).unwrap();
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(accept(&listener).unwrap().is_none());
        let client = connect(&path).unwrap();
        let server = accept(&listener).unwrap().unwrap();
        send(&client, b"hello", &[]).unwrap();
        assert_eq!(
            recv(&server, &mut Vec::new()).unwrap().unwrap().data,
            b"hello"
        );
        drop(listener);
        assert!(connect(&path).unwrap_err().is(libc::ECONNREFUSED));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
