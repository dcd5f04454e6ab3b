//! The gate between `create` and `start`.
//!
//! `create` leaves the first process waiting on a listening socket; `start` connects, and the connection ends with
//! `execve` (it is close-on-exec), or carries the error that kept it from happening. Only one `start` can get through:
//! the process accepts once, and the socket's file is gone after it.

use crate::error::LaunchError;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::SocketFlags;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What ends a container that waits. As the first of its pid namespace the process would never get them, were they not
/// blocked and read.
const ENDING: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// Waits for `start`; the connection is where errors go from here on.
pub(super) fn wait(gate: BorrowedFd<'_>) -> Result<OwnedFd, LaunchError> {
    let ending: SigSet = ENDING.into_iter().collect();
    ending.thread_block().map_err(failed)?;
    let signals = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failed)?;
    let connection = accept(gate, &signals);
    ending.thread_unblock().map_err(failed)?;
    connection
}

const STEP: &str = "wait for start";

fn failed(errno: Errno) -> LaunchError {
    LaunchError::new(STEP, linux::describe_errno(errno as i32))
}

fn accept(gate: BorrowedFd<'_>, signals: &SignalFd) -> Result<OwnedFd, LaunchError> {
    loop {
        let mut polled = [
            PollFd::from_borrowed_fd(gate, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(Errno::from_raw(errno.raw_os_error()))),
        }
        if let Ok(Some(signal)) = signals.read_signal() {
            return Err(LaunchError {
                exit_code: 128 + signal.ssi_signo as i32,
                ..LaunchError::new(STEP, format!("ended by signal {}", signal.ssi_signo))
            });
        }
        if polled[0].revents().is_empty() {
            continue;
        }
        match rustix::net::accept_with(gate, SocketFlags::CLOEXEC) {
            Ok(connection) => return Ok(connection),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(errno) => return Err(failed(Errno::from_raw(errno.raw_os_error()))),
        }
    }
}
