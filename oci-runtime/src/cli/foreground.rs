//! Staying with a process until it ends: signals passed on, the terminal relayed.

use super::Failure;
use linux::{pidfd, terminal};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, OutputModes, Termios};
use std::os::fd::{AsFd, OwnedFd};

/// Blocks all signals so that none is lost between the launch and [`follow`]; they are read from the result.
pub(super) fn block_signals() -> Result<SignalFd, Failure> {
    linux::signal::block_all()?;
    SignalFd::with_flags(
        &SigSet::all(),
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )
    .map_err(|errno| Failure::Kernel(linux::Error::new("signalfd", "", errno as i32)))
}

/// Waits for a child to end and returns what a shell would: its status, or 128 plus the signal.
pub(super) fn follow(
    child: &OwnedFd,
    master: Option<OwnedFd>,
    signals: SignalFd,
) -> Result<i32, Failure> {
    let _raw = master.as_ref().and_then(RawMode::enter);
    if let Some(master) = &master {
        copy_size(master);
    }
    let mut master = master;
    let mut input_open = true;
    loop {
        let stdin = std::io::stdin();
        let mut polled = vec![
            PollFd::new(child, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        if let Some(master) = &master {
            polled.push(PollFd::new(master, PollFlags::IN));
            if input_open {
                polled.push(PollFd::new(&stdin, PollFlags::IN));
            }
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Failure::Kernel(linux::Error::new(
                    "poll",
                    "",
                    errno.raw_os_error(),
                )));
            }
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        if is_ready(1) {
            pass_signals(child, &signals, master.as_ref());
        }
        if let Some(fd) = &master {
            if is_ready(3) && !relay(&stdin, fd) {
                input_open = false;
            }
            if is_ready(2) && !relay(fd, std::io::stdout()) {
                master = None;
            }
        }
        if is_ready(0) {
            // What is still in the terminal belongs to the output.
            while let Some(fd) = &master {
                if !has_input(fd) || !relay(fd, std::io::stdout()) {
                    break;
                }
            }
            let exit = pidfd::reap(child, true)?;
            return Ok(exit.map_or(255, pidfd::Exit::code));
        }
    }
}

fn has_input(fd: &OwnedFd) -> bool {
    let now = rustix::fs::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&now)), Ok(1))
        && polled.iter().all(|fd| fd.revents().contains(PollFlags::IN))
}

/// Copies what is there; false at the end.
fn relay(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buffer = [0; 8192];
    let count = match rustix::io::read(&from, &mut buffer) {
        Ok(count) => count,
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return true,
        Err(_) => return false,
    };
    let mut rest = buffer.get(..count).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    count > 0
}

fn pass_signals(child: &OwnedFd, signals: &SignalFd, master: Option<&OwnedFd>) {
    while let Ok(Some(info)) = signals.read_signal() {
        let signal = info.ssi_signo as i32;
        match signal {
            libc::SIGCHLD => {}
            libc::SIGWINCH => {
                if let Some(master) = master {
                    copy_size(master);
                }
            }
            // The process may have ended at this moment; that is seen next.
            _ => drop(pidfd::send_signal(child, signal)),
        }
    }
}

fn copy_size(master: &OwnedFd) {
    if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
        let _ = terminal::resize(master, size.ws_col, size.ws_row);
    }
}

/// The caller's terminal passes every key on as it is, until this is dropped.
struct RawMode(Termios);

impl RawMode {
    fn enter(_master: &OwnedFd) -> Option<Self> {
        let before = rustix::termios::tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // The container's terminal passes line feeds on: this one makes line ends of them.
        raw.output_modes |= OutputModes::OPOST;
        rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(RawMode(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
