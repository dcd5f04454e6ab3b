//! Pseudoterminals: of the host, or of a container's own devpts instance.

use crate::error::{Context, Error, Result};
use crate::mount::{self, DEVPTS_MAGIC};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes};
use std::os::fd::{AsFd, OwnedFd};

/// Opens a new terminal of the devpts instance whose root `devpts` is (attached or not): the master and the slave.
///
/// The instance is verified to be devpts, and the slave is taken from the master and not by a path, so that neither
/// can be replaced by something else in between.
///
/// # Errors
/// EINVAL if it isn't devpts; ENOSPC over the limit on terminals.
pub fn open(devpts: impl AsFd) -> Result<(OwnedFd, OwnedFd)> {
    if mount::file_system_magic(&devpts)? != DEVPTS_MAGIC {
        return Err(Error::new(
            "open terminal",
            "on what is not devpts",
            libc::EINVAL,
        ));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master =
        rustix::fs::openat(&devpts, "ptmx", flags, Mode::empty()).context("open", || "ptmx")?;
    rustix::pty::unlockpt(&master).context("unlock terminal", || "")?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .context("open terminal's slave", || "")?;
    Ok((master, slave))
}

/// Sets a terminal's size.
///
/// # Errors
/// The `ioctl`'s.
pub fn resize(terminal: impl AsFd, columns: u16, rows: u16) -> Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size).context("resize terminal", || "")
}

/// Lets line feeds through as they are, without a carriage return before each.
///
/// # Errors
/// The `ioctl`'s.
pub fn leave_line_feeds(terminal: impl AsFd) -> Result<()> {
    let mut settings =
        rustix::termios::tcgetattr(&terminal).context("read terminal's settings", || "")?;
    settings.output_modes -= OutputModes::ONLCR;
    rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &settings)
        .context("set terminal's settings", || "")
}

/// Makes a terminal's slave this session's controlling terminal.
///
/// # Errors
/// EPERM if it is another session's, or this process doesn't lead its session.
pub fn control(slave: impl AsFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave).context("make controlling terminal", || "")
}
