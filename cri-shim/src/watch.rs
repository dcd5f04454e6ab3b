//! Descriptors in tokio's event loop.

use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor: a socket, a pipe, a terminal, a pidfd.
///
/// # Errors
/// `epoll_ctl`'s; EPERM for a regular file.
#[allow(
    deprecated,
    reason = "`AsyncFd::new` is unsound only for types that may give up their descriptor; OwnedFd can't"
)]
pub(crate) fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
