//! Pidfds: a process by reference, which can't become another's as a pid can.

use crate::error::{Context, Error, Result};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

fn as_pid(operation: &'static str, pid: i32) -> Result<Pid> {
    Pid::from_raw(pid)
        .filter(|_| pid > 0)
        .ok_or_else(|| Error::new(operation, format!("pid {pid}"), libc::ESRCH))
}

/// Opens a process (its thread group's leader).
///
/// # Errors
/// ESRCH if there is none.
pub fn open(pid: i32) -> Result<OwnedFd> {
    rustix::process::pidfd_open(as_pid("pidfd_open", pid)?, PidfdFlags::empty())
        .context("pidfd_open", || format!("pid {pid}"))
}

/// Sends a signal, real-time ones included; 0 only asks whether it may be sent.
///
/// # Errors
/// ESRCH if the process has ended, EPERM, EINVAL for a number that is no signal.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: a null siginfo means the same as kill(2); nothing else is a pointer.
    crate::error::check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .context("pidfd_send_signal", || format!("signal {signal}"))?;
    Ok(())
}

/// Kills the process with SIGKILL; one that has ended is killed.
///
/// # Errors
/// EPERM.
pub fn kill(pidfd: impl AsFd) -> Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.context("pidfd_send_signal", || "SIGKILL"),
    }
}

/// Waits for the process to end, without reaping it; false if it hasn't after `timeout` (`None` waits for ever).
///
/// # Errors
/// The `poll`'s.
pub fn wait_exit(pidfd: impl AsFd, timeout: Option<Duration>) -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};
    let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            rustix::fs::Timespec::try_from(left).unwrap_or_default()
        });
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::new("poll", "pidfd", errno.raw_os_error())),
        }
    }
}

/// The process's pid in this process's pid namespace, from the pidfd's fdinfo; `None` once it has been reaped.
///
/// # Errors
/// The read's.
pub fn pid(pidfd: impl AsFd) -> Result<Option<i32>> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).context("read", || path)?;
    let pid = text
        .lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
    Ok(pid.filter(|pid| *pid > 0))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By `exit`, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// As shells and runc report it: the status, or 128 plus the signal.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

/// Reaps a child of this process through its pidfd; `None` if it still runs (with `wait` false).
///
/// # Errors
/// ECHILD if it isn't a child or was reaped before.
pub fn reap(pidfd: impl AsFd, wait: bool) -> Result<Option<Exit>> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = if wait {
        WaitIdOptions::EXITED
    } else {
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG
    };
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(status) => {
                return Ok(status.and_then(|status| {
                    status
                        .exit_status()
                        .map(Exit::Code)
                        .or_else(|| status.terminating_signal().map(Exit::Signal))
                }));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::new("waitid", "pidfd", errno.raw_os_error())),
        }
    }
}
