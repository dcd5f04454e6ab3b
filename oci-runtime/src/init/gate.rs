//! The gate between `create` and `start`.
//!
//! `create` leaves the first process waiting on a listening socket; `start` connects, and the connection ends with
//! `execve` (it is close-on-exec), or carries the error that kept it from happening. Only one `start` can get through:
//! the process accepts once, and the socket's file is gone after it.

use crate::error::LaunchError;
use rustix::net::SocketFlags;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Waits for `start`; the connection is where errors go from here on.
pub(super) fn wait(gate: BorrowedFd<'_>) -> Result<OwnedFd, LaunchError> {
    loop {
        match rustix::net::accept_with(gate, SocketFlags::CLOEXEC) {
            Ok(connection) => return Ok(connection),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(errno) => {
                return Err(LaunchError::new(
                    "wait for start",
                    linux::describe_errno(errno.raw_os_error()),
                ));
            }
        }
    }
}
