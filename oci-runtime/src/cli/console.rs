//! The standard streams and the console socket.

use super::Failure;
use crate::launch::Stdio;
use linux::process::inherited_fd;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A detached process with a terminal needs somebody who takes its master, and only that one does.
pub(super) fn check(terminal: bool, detached: bool, socket: Option<&Path>) -> Result<(), Failure> {
    match (terminal, detached, socket) {
        (true, true, None) => Err(Failure::other(
            "cannot allocate tty if runc will detach without setting console socket",
        )),
        (false, _, Some(_)) | (true, false, Some(_)) => Err(Failure::other(
            "cannot use console socket if runc will not detach or allocate tty",
        )),
        _ => Ok(()),
    }
}

/// This process's own streams.
pub(super) fn own_streams() -> Result<Stdio, Failure> {
    Ok(Stdio::Fds {
        stdin: inherited_fd(0)?,
        stdout: inherited_fd(1)?,
        stderr: inherited_fd(2)?,
    })
}

/// Sends a descriptor to whoever listens at a socket, with its name as the message's bytes.
pub(super) fn hand_over(path: &Path, fd: &OwnedFd, name: &[u8]) -> Result<(), Failure> {
    let failed = |operation, errno: rustix::io::Errno| {
        Failure::Kernel(linux::Error::new(
            operation,
            path.display().to_string(),
            errno.raw_os_error(),
        ))
    };
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed("make socket for", errno))?;
    let address = SocketAddrUnix::new(path).map_err(|errno| failed("name socket", errno))?;
    rustix::net::connect(&socket, &address).map_err(|errno| failed("connect to socket", errno))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(
        &socket,
        &[IoSlice::new(name)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map_err(|errno| failed("send descriptor to", errno))?;
    Ok(())
}
